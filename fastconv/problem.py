# SPDX-License-Identifier: BSD-3-Clause
"""Problems: the shapes of every operation, checked. All error texts about sizes live here.

A problem is a small frozen value shared by the forward operation and its gradients. It knows sizes, flops and bytes; it
never sees array data.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np

Pairs = tuple[tuple[int, int], ...]
Sizes = tuple[int, ...]
Result = TypeVar("Result")

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
LAYOUTS = ("NCHW", "NHWC")
ACTIVATIONS = ("relu", "tanh", "sigmoid")
PRECISIONS = ("highest", "high", "medium")
AXES = {1: "W", 2: "HW", 3: "DHW"}
# No array may have this many elements: 8-byte elements still have 63-bit byte offsets.
ELEMENTS_MAX = 2**59
# Most cells of an axis that needs a table of 8 bytes a cell: padding that copies cells, adaptive windows.
CELLS_MAX = 2**28


def integer(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int. TypeError when it is none, ValueError when it is below `least` or beyond 62 bits."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {number}")
    if abs(number) > 2**62:
        raise ValueError(f"{name}: {number} is too large")
    return number


def flag(name: str, value: Any) -> bool:
    """`value` as a bool: True, False, 1 or 0, but no other truth, so that a "no" is not taken for a yes."""
    if value is True or value is False:  # nearly always
        return bool(value)
    if not isinstance(value, (np.bool_, int, np.integer)) or value not in (0, 1):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float in [low, high]; a NaN is in no range but the whole line."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:  # before it is compared: a float32 would round the limits
        real = float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number that a float64 can hold") from None
    if (low, high) != (-math.inf, math.inf) and not low <= real <= high:
        raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], got {value}")
    return real


def finite(name: str, value: Any, low: float = -sys.float_info.max) -> float:
    """`value` as a float >= `low`, neither infinite nor NaN."""
    if type(value) is float and low <= value < math.inf:  # nearly always
        return value
    return number(name, value, low, sys.float_info.max)


def is_sequence(value: Any) -> bool:
    """Several values: a sequence or an array with an axis, but not a string."""
    if isinstance(value, (tuple, list)):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def integers(name: str, value: Any, count: int, least: int | None = None) -> Sizes:
    """One integer, or `count` of them, as a tuple of `count`."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: expected an integer or {count} integers, got {value!r}")
    if is_sequence(value):
        if len(value) == 1:
            return (integer(name, value[0], least),) * count
        if len(value) != count:
            raise ValueError(f"{name}: expected an integer or {count} integers, got {value!r}")
        return tuple(integer(name, v, least) for v in value)
    return (integer(name, value, least),) * count


def float_dtype(value: Any) -> np.dtype[Any]:
    """The `dtype` argument of what computes in float32 or float64 alone."""
    try:
        dtype = np.dtype(value)
    except (TypeError, ValueError):
        dtype = None
    if value is None or dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {value!r}")
    return dtype


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    if not isinstance(value, str) or value not in allowed:
        expected = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"{name}: expected one of {expected}, got {value!r}")
    return value


def elements(name: str, shape: Sequence[int]) -> int:
    """The product of `shape`; ValueError when no array can be that large."""
    count = math.prod(shape)
    if not 0 < count <= ELEMENTS_MAX and max(count, *shape, 0) > ELEMENTS_MAX:
        raise ValueError(f"{name}: an array of shape {tuple(shape)} would have {count} elements")
    return count


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's rule: ceil(size/stride) outputs, and an odd cell of padding goes at the end."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def resolve_padding(
    padding: Any, sizes: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes
) -> Pairs:
    """Any form of `padding` as one (low, high) pair an axis."""
    pads = _padding_pairs(padding, sizes, kernel, stride, dilation)
    for size, pair in zip(sizes, pads, strict=True):
        elements("padding", (size + sum(pair),))
    return pads


def _padding_pairs(
    padding: Any, sizes: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes
) -> Pairs:
    rank = len(sizes)
    if isinstance(padding, str):
        if choice("padding", padding, ("valid", "same")) == "valid":
            return ((0, 0),) * rank
        return tuple(
            same_padding(*axis) for axis in zip(sizes, kernel, stride, dilation, strict=True)
        )
    if is_sequence(padding) and any(is_sequence(p) for p in padding[: rank + 1]):
        if len(padding) != rank:
            raise ValueError(f"padding: expected {rank} (low, high) pairs, got {padding!r}")
        pairs = []
        for pair in padding:
            low, high = integers("padding", pair, 2, 0)
            pairs.append((low, high))
        return tuple(pairs)
    return tuple((p, p) for p in integers("padding", padding, rank, 0))


def check_padding_mode(sizes: Sizes, pads: Pairs, mode: str, name: str = "padding") -> None:
    """reflect and circular padding take their cells from the input, so it must have them."""
    choice("padding_mode" if name == "padding" else "mode", mode, PADDING_MODES)
    for size, pair in zip(sizes, pads, strict=True):
        if mode == "reflect" and max(pair) >= max(size, 1):
            raise ValueError(
                f"{name}: reflect padding must be smaller than the input, got {pair} on an axis of {size}"
            )
        if mode == "circular" and max(pair) > size:
            raise ValueError(
                f"{name}: circular padding must not exceed the input, got {pair} on an axis of {size}"
            )
        if mode == "replicate" and size == 0 and max(pair) > 0:
            raise ValueError(f"{name}: replicate padding of an empty axis")


def output_size(size: int, kernel: int, stride: int, pair: tuple[int, int], dilation: int) -> int:
    """floor((size + low + high - dilation*(kernel - 1) - 1)/stride) + 1; may be <= 0."""
    return (size + sum(pair) - dilation * (kernel - 1) - 1) // stride + 1


class Windows(NamedTuple):
    """Sliding windows over spatial axes, checked: one entry for each axis."""

    kernel: Sizes
    stride: Sizes
    pads: Pairs
    dilation: Sizes
    out: Sizes


def sliding_windows(
    sizes: Sizes, kernel_size: Any, stride: Any, padding: Any, dilation: Any
) -> Windows:
    """Check windows that slide over axes of these sizes; at least one must fit."""
    rank = len(sizes)
    kernel = integers("kernel_size", kernel_size, rank, 1)
    strides = integers("stride", stride, rank, 1)
    dilations = integers("dilation", dilation, rank, 1)
    pads = resolve_padding(padding, sizes, kernel, strides, dilations)
    outs = tuple(output_size(*a) for a in zip(sizes, kernel, strides, pads, dilations, strict=True))
    if min(outs) < 1:
        raise ValueError(
            f"kernel_size: windows of {kernel} with dilation {dilations} do not fit sizes {sizes} "
            f"with padding {pads}"
        )
    return Windows(kernel, strides, pads, dilations, outs)


_SIMPLE = frozenset((int, str, bool, type(None)))


def _cacheable(value: Any) -> bool:
    """Whether an equal value of the same type is the same: not for tuples, which may hold 1, 1.0 or True."""
    kind = type(value)
    return kind in _SIMPLE or (kind is tuple and all(type(v) is int for v in value))


def remembered(make: Callable[..., Result]) -> Callable[..., Result]:
    """`make`, whose checks need not be repeated for the same arguments."""
    cached = lru_cache(maxsize=1024, typed=True)(make)

    @wraps(make)
    def call(*arguments: Any) -> Result:
        return (cached if all(map(_cacheable, arguments)) else make)(*arguments)

    return call


class LatticeAxis(NamedTuple):
    """One axis of a lattice, as kernels/lattice.pxd documents it."""

    out: int
    step: int
    offsets: np.ndarray
    source: np.ndarray
    span: int
    size: int
    y_start: int
    y_step: int
    y_size: int
    inner_start: int
    inner_stop: int
    inner_shift: int


def source_map(size: int, first: int, span: int, mode: str) -> np.ndarray:
    """source[q], the input cell at padded coordinate q, q = 0 at cell `first` (usually negative).

    Zero padding needs no table, however wide it is: it is empty, and cells outside the input are zero.
    """
    if mode == "zeros":
        return np.empty(0, dtype=np.intp)
    if span > CELLS_MAX:
        raise ValueError(f"padding: a {mode}-padded axis of {span} cells; at most {CELLS_MAX}")
    cell = np.arange(first, first + span, dtype=np.intp)
    if mode == "replicate":
        return cell.clip(0, max(size - 1, 0))
    if mode == "circular":
        return cell % max(size, 1)
    period = max(2 * (size - 1), 1)
    cell %= period
    return np.minimum(cell, period - cell) if size > 1 else np.zeros(span, np.intp)


def lattice_axis(
    size: int,
    cells: np.ndarray,
    out: int,
    step: int,
    mode: str,
    y_start: int,
    y_step: int,
    y_size: int,
) -> LatticeAxis:
    """Output j reads, at tap k, cell cells[k] + j*step of the (padded) input.

    Steps that lead beyond an axis belong to one output alone. They are cut: kernels multiply them, without a check.
    """
    first = int(cells.min())
    span = int(cells.max()) - first + (out - 1) * step + 1
    return LatticeAxis(
        out=out,
        step=min(step, span),
        offsets=cells - first,
        source=source_map(size, first, span, mode),
        span=span,
        size=size,
        y_start=y_start,
        y_step=min(y_step, max(y_size, 1)),
        y_size=y_size,
        inner_start=min(max(-first, 0), span),
        inner_stop=min(max(size - first, 0), span),
        inner_shift=first,
    )


class LatticeSpec(NamedTuple):
    axes: tuple[LatticeAxis, LatticeAxis, LatticeAxis]
    tap_index: np.ndarray


def lattice_spec(axes: Sequence[LatticeAxis], taps: Sequence[Any], kernel: Sizes) -> LatticeSpec:
    """`taps`: the kernel indices that each axis of the lattice uses."""
    at = np.zeros(1, dtype=np.intp)
    for chosen, k in zip(taps, kernel, strict=True):
        at = (at[:, None] * k + np.asarray(chosen, dtype=np.intp)).reshape(-1)
    return LatticeSpec(tuple(axes), at)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Conv:
    """A convolution in canonical form: three spatial axes (d, h, w), leading ones of size 1.

    x[n][groups*channels][*sizes], w[groups*outputs][channels][*kernel], y[n][groups*outputs][*out].
    """

    dtype: str
    batch: int
    groups: int
    channels: int
    outputs: int
    sizes: Sizes
    kernel: Sizes
    stride: Sizes
    pads: Pairs
    dilation: Sizes
    mode: str = "zeros"
    rank: int = 2

    @cached_property
    def out(self) -> Sizes:
        return tuple(
            output_size(*axis)
            for axis in zip(
                self.sizes, self.kernel, self.stride, self.pads, self.dilation, strict=True
            )
        )

    @property
    def itemsize(self) -> int:
        return int(np.dtype(self.dtype).itemsize)

    @cached_property
    def flops(self) -> int:
        terms = self.channels * math.prod(self.kernel)
        return 2 * self.batch * self.groups * self.outputs * math.prod(self.out) * terms

    @cached_property
    def bytes(self) -> int:
        """The floor: every operand once."""
        x = self.batch * self.groups * self.channels * math.prod(self.sizes)
        w = self.groups * self.outputs * self.channels * math.prod(self.kernel)
        y = self.batch * self.groups * self.outputs * math.prod(self.out)
        return self.itemsize * (x + w + y)

    @cached_property
    def x_shape(self) -> Sizes:
        return (self.batch, self.groups * self.channels, *self.sizes)

    @cached_property
    def y_shape(self) -> Sizes:
        return (self.batch, self.groups * self.outputs, *self.out)

    @cached_property
    def is_linear(self) -> bool:
        """Whether the kernel covers the whole input: a linear layer in disguise."""
        whole = self.kernel == self.sizes and not any(any(pair) for pair in self.pads)
        return (
            whole
            and self.groups == 1
            and all(k == 1 or d == 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        )

    def forward_lattice(self) -> LatticeSpec:
        axes = []
        for i, size in enumerate(self.sizes):
            cells = np.arange(self.kernel[i]) * self.dilation[i] - self.pads[i][0]
            axes.append(
                lattice_axis(size, cells, self.out[i], self.stride[i], self.mode, 0, 1, self.out[i])
            )
        return lattice_spec(axes, [np.arange(k) for k in self.kernel], self.kernel)

    def weight_gradient_lattice(self) -> LatticeSpec:
        """The weight gradient as a convolution of the input with dy: strides and dilations, pixels and taps change places."""
        axes = []
        for i, size in enumerate(self.sizes):
            cells = np.arange(self.out[i]) * self.stride[i] - self.pads[i][0]
            taps = self.kernel[i]
            axes.append(lattice_axis(size, cells, taps, self.dilation[i], self.mode, 0, 1, taps))
        return lattice_spec(axes, [np.arange(n) for n in self.out], self.out)

    def input_gradient_lattices(self) -> list[LatticeSpec]:
        """One lattice for each phase of the input, input = phase (mod stride), that any tap reaches.

        Input i gets dy[o] * w[k] wherever i = o*stride - low + k*dilation; zero padding only.
        """
        phases: list[list[tuple[LatticeAxis, list[int]]]] = []
        for i in range(3):
            found = []
            size, stride, low = self.sizes[i], self.stride[i], self.pads[i][0]
            for phase, taps in self._phases(i).items():
                cells = (phase + low - np.array(taps) * self.dilation[i]) // stride
                count = -(-(size - phase) // stride)
                axis = lattice_axis(self.out[i], cells, count, 1, "zeros", phase, stride, size)
                found.append((axis, taps))
            phases.append(found)
        return [
            lattice_spec((d[0], h[0], w[0]), (d[1], h[1], w[1]), self.kernel)
            for d in phases[0]
            for h in phases[1]
            for w in phases[2]
        ]

    def _phases(self, axis: int) -> dict[int, list[int]]:
        """The phases of an axis of the input that taps reach, and the taps of each."""
        found: dict[int, list[int]] = {}
        for k in range(self.kernel[axis]):
            phase = (k * self.dilation[axis] - self.pads[axis][0]) % self.stride[axis]
            if phase < self.sizes[axis]:
                found.setdefault(phase, []).append(k)
        return dict(sorted(found.items()))

    @cached_property
    def phases_cover_input(self) -> bool:
        """Whether every input cell belongs to some lattice of input_gradient_lattices."""
        return all(len(self._phases(i)) == min(self.stride[i], self.sizes[i]) for i in range(3))


def describe(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape) if shape else "scalar"


@remembered
def conv_problem(
    dtype: str,
    x_shape: Sizes,
    w_shape: Sizes,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    mode: str,
    rank: int,
) -> Conv:
    """Check a batched NCHW-like convolution and put it in canonical form."""
    name = f"conv{rank}d"
    if len(w_shape) != rank + 2:
        raise ValueError(
            f"w: {name} takes weights with {rank + 2} axes (O, C/groups, {', '.join(AXES[rank])}), "
            f"got shape {w_shape}"
        )
    if len(x_shape) != rank + 2:
        raise ValueError(
            f"x: {name} takes an input with {rank + 2} axes (N, C, {', '.join(AXES[rank])}) or {rank + 1} "
            f"without N, got shape {x_shape}"
        )
    groups = integer("groups", groups, 1)
    strides = integers("stride", stride, rank, 1)
    dilations = integers("dilation", dilation, rank, 1)
    batch, in_channels, *sizes = x_shape
    outputs, channels, *kernel = w_shape
    if in_channels != channels * groups:
        raise ValueError(
            f"x: expected {channels * groups} channels for weights of shape {w_shape} and groups={groups}, "
            f"got {in_channels} in an input of shape {x_shape}"
        )
    if outputs % groups:
        raise ValueError(
            f"groups: {outputs} output channels cannot be divided into {groups} groups"
        )
    if channels == 0 or outputs == 0 or 0 in kernel:
        raise ValueError(f"w: every axis of the weights must be at least 1, got shape {w_shape}")
    pads = resolve_padding(padding, tuple(sizes), tuple(kernel), strides, dilations)
    check_padding_mode(tuple(sizes), pads, mode)
    for axis, size, k, s, pair, d in zip(
        AXES[rank], sizes, kernel, strides, pads, dilations, strict=True
    ):
        if output_size(size, k, s, pair, d) < 1:
            raise ValueError(
                f"w: a kernel of {k} cells with dilation {d} spans {d * (k - 1) + 1} cells along {axis}, more "
                f"than the {size + sum(pair)} of the padded input (x has shape {x_shape}, padding {pair})"
            )
    lead = 3 - rank
    problem = Conv(
        dtype,
        batch,
        groups,
        channels,
        outputs // groups,
        (1,) * lead + tuple(sizes),
        (1,) * lead + tuple(kernel),
        (1,) * lead + strides,
        ((0, 0),) * lead + pads,
        (1,) * lead + dilations,
        mode,
        rank,
    )
    elements("padding", problem.y_shape)
    return problem


def pool_output_size(
    size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool
) -> int:
    """PyTorch's rule: in ceil_mode the last window must begin inside the input or its left padding."""
    room = size + 2 * pad - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    out = -(-room // stride) + 1
    return out - 1 if (out - 1) * stride >= size + pad else out


@dataclass(frozen=True)
class Pool:
    """Pooling windows in canonical form: three spatial axes (d, h, w), leading ones of size 1.

    Sliding windows begin at o*stride - padding and hold `kernel` cells `dilation` apart; adaptive ones (kernel is empty)
    cover floor(o*size/out) .. ceil((o + 1)*size/out).
    """

    rank: int
    sizes: Sizes
    out: Sizes
    kernel: Sizes = ()
    stride: Sizes = ()
    padding: Sizes = ()
    dilation: Sizes = (1, 1, 1)

    def windows(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """(start, stop) of each window, clipped to the input: it holds start, start + dilation, ... < stop."""
        size, o = self.sizes[axis], np.arange(self.out[axis], dtype=np.intp)
        if not self.kernel:
            out = self.out[axis]
            return o * size // out, -(-(o + 1) * size // out)
        d = self.dilation[axis]
        first = o * self.stride[axis] - self.padding[axis]
        start = np.where(first >= 0, first, first + -(first // d) * d)
        return start, np.minimum(first + d * (self.kernel[axis] - 1) + 1, size)

    def lattice(self, axis: int) -> tuple[int, int, int] | None:
        """(stride, padding, taps) of the windows of an axis, where they are the same for all of them."""
        if self.kernel:
            return self.stride[axis], self.padding[axis], self.kernel[axis]
        size, rest = divmod(self.sizes[axis], self.out[axis])
        return None if rest else (size, 0, size)

    @property
    def is_global(self) -> bool:
        """Whether there is one window, and it holds every cell."""
        return all(
            self.out[axis] == 1 and self.counts(axis)[0] == self.sizes[axis] for axis in range(3)
        )

    def counts(self, axis: int) -> np.ndarray:
        """Cells along an axis of each window that lie in the input."""
        start, stop = self.windows(axis)
        return np.maximum(-(-(stop - start) // self.dilation[axis]), 0)

    def padded_counts(self, axis: int) -> np.ndarray:
        """Cells along an axis of each sliding window in the padded input: what ceil_mode hangs over its end does not count."""
        first = np.arange(self.out[axis]) * self.stride[axis] - self.padding[axis]
        end = self.sizes[axis] + self.padding[axis]
        return np.minimum(first + self.kernel[axis], end) - first


def planes_of(name: str, x_shape: Sizes, rank: int) -> Sizes:
    """The sizes of the planes of the argument `name`: an input, or the shape of one."""
    if len(x_shape) not in (rank + 1, rank + 2):
        axes = ", ".join(AXES[rank])
        raise ValueError(f"{name}: expected (N, C, {axes}) or (C, {axes}), got shape {x_shape}")
    return x_shape[-rank:]


def pool_sizes(x_shape: Sizes, rank: int, name: str = "x") -> Sizes:
    """Those of planes that windows can lie in."""
    sizes = planes_of(name, x_shape, rank)
    if 0 in sizes:
        raise ValueError(f"{name}: pooling of an empty plane, got shape {x_shape}")
    return sizes


def pool_windows(
    rank: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any
) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """Check what sliding windows are whatever the input: (kernel, strides, pads, dilations)."""
    kernel = integers("kernel_size", kernel_size, rank, 1)
    strides = kernel if stride is None else integers("stride", stride, rank, 1)
    if isinstance(padding, str) or (is_sequence(padding) and any(map(is_sequence, padding[:rank]))):
        raise TypeError(
            f"padding: poolings pad both ends alike: expected an integer or {rank} integers, got {padding!r}; "
            "fastconv.pad does the rest"
        )
    pads = integers("padding", padding, rank, 0)
    for k, p in zip(kernel, pads, strict=True):
        if p > k // 2:
            raise ValueError(f"padding: expected at most half the kernel size {k}, got {p}")
    return kernel, strides, pads, integers("dilation", dilation, rank, 1)


def pool_divisor(value: Any) -> int | None:
    """The `divisor_override` of an average: any integer but zero, or None."""
    if value is None:
        return None
    divisor = integer("divisor_override", value)
    if divisor == 0:
        raise ValueError("divisor_override: must not be zero")
    return divisor


@remembered
def pool_problem(
    x_shape: Sizes,
    rank: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> Pool:
    """Check sliding windows over x."""
    sizes = pool_sizes(x_shape, rank)
    kernel, strides, pads, dilations = pool_windows(rank, kernel_size, stride, padding, dilation)
    ceil_mode = flag("ceil_mode", ceil_mode)
    outs = []
    for axis, size, k, s, p, d in zip(
        AXES[rank], sizes, kernel, strides, pads, dilations, strict=True
    ):
        span = d * (k - 1) + 1
        out = pool_output_size(size, k, s, p, d, ceil_mode)
        if out < 1 or span > ELEMENTS_MAX:
            raise ValueError(
                f"kernel_size: a window of {span} cells does not fit the {size} of the input along {axis} "
                f"(x has shape {x_shape}, padding {p}, dilation {d})"
            )
        outs.append(out)
    one = (1,) * (3 - rank)
    none = (0,) * (3 - rank)
    return Pool(
        rank,
        one + sizes,
        one + tuple(outs),
        one + kernel,
        one + strides,
        none + pads,
        one + dilations,
    )


def adaptive_sizes(rank: int, output_size: Any) -> tuple[int | None, ...]:
    """The windows of an adaptive pooling along each axis; None keeps the input's size."""
    if output_size is None:
        return (None,) * rank
    if is_sequence(output_size) and len(output_size) == rank:
        return tuple(None if n is None else integer("output_size", n, 1) for n in output_size)
    return integers("output_size", output_size, rank, 1)


def adaptive_pool_problem(x_shape: Sizes, rank: int, output_size: Any) -> Pool:
    """Check PyTorch's adaptive windows over x."""
    sizes = pool_sizes(x_shape, rank)
    wanted = adaptive_sizes(rank, output_size)
    outs = tuple(s if o is None else o for o, s in zip(wanted, sizes, strict=True))
    if max(outs) > CELLS_MAX:
        raise ValueError(f"output_size: expected at most {CELLS_MAX} windows, got {outs}")
    one = (1,) * (3 - rank)
    return Pool(rank, one + sizes, one + outs)
