# SPDX-License-Identifier: BSD-3-Clause
"""Models frozen for inference: what ``Module.prepare`` makes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from fastconv import functional as F
from fastconv.functional._arrays import as_array, shape_of
from fastconv.nn.activation import ReLU, Sigmoid, Tanh
from fastconv.nn.conv import _Conv
from fastconv.nn.dropout import _Dropout
from fastconv.nn.linear import Linear
from fastconv.nn.module import Array, Module, Sequential, data_of, no_grad
from fastconv.nn.norm import _BatchNorm
from fastconv.problem import PRECISIONS, choice, elements

_PREPARE = {1: F.prepare_conv1d, 2: F.prepare_conv2d, 3: F.prepare_conv3d}
_ACTIVATIONS: dict[type[Module], str] = {ReLU: "relu", Tanh: "tanh", Sigmoid: "sigmoid"}


class PreparedModule:
    """A model's forward pass in evaluation mode, for inputs of one shape: ``y = prepared(x)``.

    Made by :meth:`fastconv.nn.Module.prepare`. It may be called from several threads at once, if
    the layers that a user wrote may.
    """

    def __init__(self, model: Module, input_shape: Any, precision: str | None) -> None:
        self.input_shape = shape_of("input_shape", input_shape)
        if not self.input_shape:
            raise ValueError("input_shape: expected (N, ...), got ()")
        elements("input_shape", self.input_shape)
        if precision is not None:
            choice("precision", precision, PRECISIONS)
        self._model = _frozen(model, precision)
        parameter = next(self._model.parameters(), None)
        dtype = np.float32 if parameter is None else parameter.dtype
        with np.errstate(all="ignore"):
            self(np.zeros(self.input_shape, dtype))  # chooses the algorithms and packs the weights

    def __call__(self, x: Any) -> Array:
        """The result for x; its first axis, the batch, may have another size than at first."""
        x = as_array("x", x)
        if not x.ndim or x.shape[1:] != self.input_shape[1:]:
            expected = ", ".join(map(str, ("N", *self.input_shape[1:])))
            raise ValueError(f"x: expected shape ({expected}), got {x.shape}")
        with no_grad():
            return self._model(x)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<prepared for x of shape {self.input_shape}: {self._model!r}>"


def _frozen(model: Module, precision: str | None) -> Sequential:
    """A copy of the model in evaluation mode, with prepared convolutions and linear layers."""
    root = Sequential(copy.deepcopy(model)).eval()
    root.zero_grad()
    for module in list(root.modules()):
        if precision is not None and getattr(module, "precision", precision) is None:
            vars(module)["precision"] = precision
    for module in list(root.modules()):
        if _runs_as(module, Sequential):
            _fuse(module)
        else:
            for name, layer in list(module.named_children()):
                if _runs_as(layer, _Conv):
                    vars(module)[name] = _prepared(layer)
        for name, layer in list(module.named_children()):
            if _runs_as(layer, Linear):
                vars(module)[name] = _with_forward(layer, _linear(layer))
    return root


def _runs_as(layer: Module, kind: type[Module]) -> bool:
    """Whether the layer is one of ours, or a user's with the same forward pass."""
    return type(layer).forward is kind.forward


def _fuse(model: Module) -> None:
    """Leave dropout out of a Sequential, and join its convolutions with what follows them."""
    for name, layer in list(model.named_children()):
        if _runs_as(layer, _Dropout):
            delattr(model, name)
    rest = list(model.named_children())
    while rest:
        name, conv = rest.pop(0)
        if not _runs_as(conv, _Conv):
            continue
        norm = activation = None
        if rest and _folds(conv, rest[0][1]):
            done, norm = rest.pop(0)
            delattr(model, done)
        if rest and type(rest[0][1]) in _ACTIVATIONS:
            done, layer = rest.pop(0)
            delattr(model, done)
            activation = _ACTIVATIONS[type(layer)]
        vars(model)[name] = _prepared(conv, norm, activation)


def _folds(conv: Any, norm: Any) -> bool:
    """Whether `norm` normalises the convolution's channels by statistics that are known now."""
    return (
        _runs_as(norm, _BatchNorm) and norm.running_mean is not None and conv.rank + 2 in norm.axes
    )


def _with_forward(layer: Module, forward: Any) -> Module:
    """A twin of the layer with another forward; whoever else holds the layer keeps it as it is."""
    twin = copy.copy(layer)
    vars(twin)["forward"] = forward
    return twin


def _prepared(conv: Any, norm: Any = None, activation: str | None = None) -> Module:
    return _with_forward(conv, _Forward(conv, norm, activation))


def _linear(layer: Any) -> Any:
    return F.prepare_linear(layer.weight.data, data_of(layer.bias), precision=layer.precision)


class _Forward:
    """A convolution with packed weights, and in the same call what followed it."""

    def __init__(self, conv: Any, norm: Any, activation: str | None) -> None:
        w, b = conv.weight.data, data_of(conv.bias)
        if norm is not None:
            statistics = (norm.running_mean, norm.running_var)
            affine = (data_of(norm.weight), data_of(norm.bias))
            w, b = F.fold_batch_norm(w, b, *statistics, *affine, norm.eps)
        self.axes = None if norm is None else conv.rank + 2
        self.conv = _PREPARE[conv.rank](w, b, activation=activation, **conv._options())

    def __call__(self, x: Any) -> Array:
        if self.axes is not None and np.ndim(x) != self.axes:
            raise ValueError(
                f"x: batch normalisation needs a batch of {self.axes} axes, got shape {np.shape(x)}"
            )
        return self.conv(x)  # type: ignore[no-any-return]
