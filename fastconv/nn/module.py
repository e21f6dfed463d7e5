# SPDX-License-Identifier: BSD-3-Clause
"""Parameter, Module and Sequential: state, names and gradients; no arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from fastconv.functional._arrays import as_array, plain
from fastconv.problem import flag

if TYPE_CHECKING:
    from fastconv.nn.prepared import PreparedModule

Array = npt.NDArray[Any]
T = TypeVar("T")

_recording: ContextVar[bool] = ContextVar("fastconv_nn_recording", default=True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Within the block, layers keep nothing for ``backward``: less memory, the same results."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


def recording() -> bool:
    """Whether layers keep what ``backward`` needs: outside ``no_grad()``."""
    return _recording.get()


class Parameter:
    """An array to be learnt.

    Attributes
    ----------
    data : array
    grad : array like `data`, or None
        The sum of the gradients of every ``backward`` since the last ``zero_grad``.
    """

    def __init__(self, data: npt.ArrayLike) -> None:
        self.data: Array = as_array("data", data)
        self.grad: Array | None = None
        if self.data.dtype.kind != "f":
            raise TypeError(f"data: expected an array of floats, got dtype {self.data.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    @property
    def size(self) -> int:
        return self.data.size

    def zero_grad(self) -> None:
        self.grad = None

    def __repr__(self) -> str:
        return f"Parameter(shape={self.shape}, dtype={self.dtype})"


def data_of(parameter: Parameter | None) -> Array | None:
    """The array of a parameter that a layer may do without."""
    return None if parameter is None else parameter.data


def accumulate(parameter: Parameter | None, gradient: Array | None) -> None:
    """Add to ``.grad``. The first gradient is taken over, not copied: it is a fresh array."""
    if parameter is None or gradient is None:
        return
    gradient = gradient.astype(parameter.dtype, copy=False)
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient


class LoadResult(NamedTuple):
    """What :meth:`Module.load_state_dict` could not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """A layer or a network: parameters, buffers, submodules, and a mode.

    A subclass assigns :class:`Parameter` and :class:`Module` attributes (their names are found by
    looking at the instance; ``super().__init__()`` is not needed), names its state that is not
    learnt in `buffer_names`, and writes ``forward(x) -> y`` and ``backward(dy) -> dx``.

    A layer keeps what ``backward`` needs of its *last* call, and ``backward`` uses it up. So a
    layer cannot stand at two places of one network, and its input must not change in between.
    """

    training: bool = True
    buffer_names: ClassVar[tuple[str, ...]] = ()
    option_names: ClassVar[tuple[str, ...]] = ()
    _kept: tuple[Any, ...] | None = None

    def forward(self, x: Any) -> Array:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        """Add to the ``.grad`` of the parameters and return the gradient of the input.

        Parameters
        ----------
        dy : array of the shape of the last call's result
        needs_dx : bool
            False lets the layer leave out dx; it may then return None. For the first layer of a
            network.

        Raises
        ------
        RuntimeError
            When there is no call to differentiate.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def _options(self) -> dict[str, Any]:
        """The attributes that the layer's functions, forward and backward, take by name."""
        return {name: getattr(self, name) for name in self.option_names}

    def _keep(self, *values: Any) -> None:
        """Keep `values` for ``backward``, unless in ``no_grad()``."""
        self._kept = values if recording() else None

    def _take(self) -> tuple[Any, ...]:
        """Hand out what the last call kept, once."""
        if self._kept is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: there is no forward call to differentiate; call "
                "the layer first, outside no_grad(), and once for every backward"
            )
        values, self._kept = self._kept, None
        return values

    # ---------------------------------------------------------------------------------- names

    def named_children(self) -> Iterator[tuple[str, Module]]:
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        for _, child in self.named_children():
            yield child

    def _walk(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(f"{prefix}.{name}" if prefix else name)

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """This module (its name is empty) and all below it, each once, in order of assignment."""
        return _unique(self._walk())

    def modules(self) -> Iterator[Module]:
        for _, module in self.named_modules():
            yield module

    def _own_parameters(self) -> Iterator[tuple[str, Parameter]]:
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield name, value

    def _own_buffers(self) -> Iterator[tuple[str, Array]]:
        for name in self.buffer_names:
            value = getattr(self, name)
            if value is not None:
                yield name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, with its dotted name."""
        return _unique(
            (_dotted(prefix, name), parameter)
            for prefix, module in self._walk()
            for name, parameter in module._own_parameters()
        )

    def parameters(self) -> Iterator[Parameter]:
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Every buffer (state that is not learnt) once, with its dotted name."""
        return _unique(
            (_dotted(prefix, name), buffer)
            for prefix, module in self._walk()
            for name, buffer in module._own_buffers()
        )

    def buffers(self) -> Iterator[Array]:
        for _, buffer in self.named_buffers():
            yield buffer

    # ---------------------------------------------------------------------------------- state

    def _named_arrays(self) -> Iterator[tuple[str, Array]]:
        for prefix, module in self._walk():
            for name, parameter in module._own_parameters():
                yield _dotted(prefix, name), parameter.data
            for name, buffer in module._own_buffers():
                yield _dotted(prefix, name), buffer

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers by name; names, shapes and order are PyTorch's.

        ``np.savez(file, **model.state_dict())`` writes them. PyTorch returns the live arrays
        instead; a copy stays what it was when training goes on.
        """
        return {name: array.copy() for name, array in self._named_arrays()}

    def load_state_dict(
        self, state: Mapping[str, npt.ArrayLike], strict: bool = True
    ) -> LoadResult:
        """Write the arrays of `state` into the parameters and buffers of the same names.

        Parameters
        ----------
        state : mapping of names to arrays, such as a state_dict or what ``np.load`` opens
        strict : bool
            Whether names that only one side has are an error.

        Returns
        -------
        (missing_keys, unexpected_keys)

        Raises
        ------
        ValueError
            Naming the keys, and the shapes that differ. Nothing is written then.
        """
        own = dict(self._named_arrays())
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping of names to arrays, got {state!r}")
        strict = flag("strict", strict)
        result = LoadResult(
            [name for name in own if name not in state], [name for name in state if name not in own]
        )
        found = {name: plain(f"state[{name!r}]", state[name]) for name in own if name in state}
        problems = [text for name in found for text in _mismatch(name, found[name], own[name])]
        if strict:
            named = zip(("missing", "unexpected"), result, strict=True)
            problems += [f"{what}: {', '.join(keys)}" for what, keys in named if keys]
        if problems:
            raise ValueError(f"state: does not fit {type(self).__name__}; " + "; ".join(problems))
        for name, array in found.items():
            np.copyto(own[name], array, casting="same_kind")
        return result

    def train(self, mode: bool = True) -> Self:
        """Set training mode here and below: dropout drops, batch norm uses batch statistics."""
        mode = flag("mode", mode)
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Leave training mode, here and below."""
        return self.train(False)

    def prepare(self, input_shape: Sequence[int], precision: str | None = None) -> PreparedModule:
        """Freeze a copy of the model for inference: ``prepared(x)`` has the values of ``model.eval()(x)``.

        Weights are packed now, for inputs of this shape. In every :class:`Sequential`, dropout is gone, and a convolution takes
        the batch normalisation after it into its weights (:func:`fastconv.fold_batch_norm`: they are rounded once more, in their
        own type) and the ReLU, Tanh or Sigmoid after it into its call. Modules with a `forward` of their own run it, with
        prepared layers; all other layers run as they are. Nothing is kept for ``backward``.

        Parameters
        ----------
        input_shape : tuple (N, ...)
            Of the inputs to come. The model runs once on zeros of this shape and of its parameters' type. Later calls may have
            another batch size N, for which weights may be packed once more.
        precision : {None, "highest", "high", "medium"}
            For layers that have none of their own; None takes the surrounding :func:`fastconv.precision`.

        Returns
        -------
        PreparedModule
            Call it with ``(x)``. Later changes of the model do not show.

        Raises
        ------
        ValueError, TypeError
            Naming the argument; `prepared` names `x` when it has another shape. And what the model raises.
        """
        from fastconv.nn.prepared import PreparedModule  # which imports the layers

        return PreparedModule(self, input_shape, precision)

    def zero_grad(self) -> None:
        """Forget the gradients: every ``.grad`` becomes None."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    # ----------------------------------------------------------------------------------- text

    def extra_repr(self) -> str:
        """What stands between the brackets of a layer's repr."""
        return ""

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}" for name, child in self.named_children()]
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = "\n".join([self.extra_repr(), *children]).strip().replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {lines}\n)"


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _unique(items: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """The first of the items that are the same object."""
    seen: set[int] = set()
    for name, value in items:
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


def _mismatch(name: str, given: Array, own: Array) -> list[str]:
    if given.shape != own.shape:
        return [f"{name}: expected shape {own.shape}, got {given.shape}"]
    if not np.can_cast(given.dtype, own.dtype, casting="same_kind"):
        return [f"{name}: expected dtype {own.dtype}, got {given.dtype}"]
    return []


class Sequential(Module):
    """Layers one after another: ``y = layer_n(... layer_1(x))``.

    Parameters
    ----------
    layers : modules, or one mapping of names to modules
        Without names the layers are called "0", "1", ...

    Raises
    ------
    TypeError
        When something is not a module.
    ValueError
        When a layer is given twice (it keeps one input only) or a name cannot be used.
    """

    def __init__(self, *layers: Any) -> None:
        named = layers[0] if len(layers) == 1 and isinstance(layers[0], Mapping) else None
        items = dict(named) if named is not None else {str(i): v for i, v in enumerate(layers)}
        for name, layer in items.items():
            if not isinstance(layer, Module):
                raise TypeError(f"layers: expected modules, got {layer!r} for {name!r}")
            if hasattr(type(self), name) or "." in name:
                raise ValueError(f"layers: {name!r} cannot be the name of a layer")
        if len({id(layer) for layer in items.values()}) != len(items):
            raise ValueError("layers: a layer stands at two places; it can keep one input only")
        vars(self).update(items)

    def forward(self, x: Any) -> Array:
        for layer in self:
            x = layer(x)
        return x  # type: ignore[no-any-return]

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        """Gradients of all layers, last to first.

        With ``needs_dx=False`` no gradient goes further back than the first layer with parameters.
        """
        layers = list(self)
        learning = (i for i, layer in enumerate(layers) if any(layer.parameters()))
        first = 0 if needs_dx else next(learning, len(layers))
        for i in range(len(layers) - 1, first - 1, -1):
            dy = layers[i].backward(dy, needs_dx or i > first)
        return dy if needs_dx else None

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: int | slice) -> Any:
        """The layer at `index`; a slice is a Sequential that shares these layers and names."""
        items = list(self.named_children())
        return Sequential(dict(items[index])) if isinstance(index, slice) else items[index][1]
