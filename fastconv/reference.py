# SPDX-License-Identifier: BSD-3-Clause
"""The slow twin: every operation of fastconv again, in plain float64 NumPy, written to be read.

Names, argument order and meanings are those of the public functions (and of PyTorch). Tests
compare the fast kernels with this file; readers open it to learn what an operation means.
It imports NumPy and nothing of fastconv.

Conventions
-----------
Every argument is converted to float64 first and every result is float64 (indices are int64).
Axes are named ``n`` batch, ``c`` channels, ``g`` groups, ``o`` output channels, ``*S`` the
spatial axes (one, two or three), ``*K`` the kernel axes and ``p`` all output pixels in one axis.

Convolution, pooling and folding all slide a window over a padded grid. They share `_Windows`
and one idea: a Python loop runs over the *taps* (the cells of one window), and a strided slice
picks the cell which that tap sees in all windows at once.

Special values follow IEEE; NumPy's warnings about them are switched off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
ArrayLike = npt.ArrayLike
Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], ...]

_ieee = np.errstate(all="ignore")


def _f64(x: ArrayLike) -> Array:
    """Any array-like as a float64 array."""
    return np.asarray(x, dtype=np.float64)


def _ntuple(value: Ints, n: int) -> tuple[int, ...]:
    """One int for each of `n` axes: ``2 -> (2, 2)``, ``(2,) -> (2, 2)``, ``(2, 3) -> (2, 3)``."""
    values = (value,) if isinstance(value, (int, np.integer)) else tuple(value)
    if len(values) == 1:
        values *= n
    if len(values) != n:
        raise ValueError(f"got {value!r}, expected an int or {n} ints")
    return tuple(int(v) for v in values)


# ------------------------------------------------------------------------------------ windows


@dataclass(frozen=True)
class _Windows:
    """Where the windows lie on the padded grid: one entry for each spatial axis.

    Output cell ``i`` owns the window whose tap ``t`` is the padded cell
    ``i * stride + t * dilation``, for ``0 <= i < out`` and ``0 <= t < kernel``.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: Pads
    out: tuple[int, ...]

    def taps(self) -> Iterator[tuple[int, ...]]:
        """Yield the cells of one window, in row-major order."""
        return itertools.product(*map(range, self.kernel))

    def cells(self, tap: tuple[int, ...]) -> Any:
        """Index a padded array ``(..., *S)`` by what `tap` sees in all windows: ``(..., *out)``."""
        slices = [
            slice(t * d, t * d + s * o, s)
            for t, d, s, o in zip(tap, self.dilation, self.stride, self.out, strict=True)
        ]
        return (..., *slices)


def conv_output_size(
    size: int, kernel: int, stride: int = 1, padding: int | tuple[int, int] = 0, dilation: int = 1
) -> int:
    """How many windows fit: ``floor((size + lo + hi - dilation*(kernel-1) - 1) / stride) + 1``."""
    lo, hi = (padding, padding) if isinstance(padding, int) else padding
    return (size + lo + hi - dilation * (kernel - 1) - 1) // stride + 1


def resolve_padding(
    padding: Padding, sizes: Sequence[int], kernel: Ints, stride: Ints = 1, dilation: Ints = 1
) -> Pads:
    """Any way of saying padding, as ``((lo, hi), ...)`` with one pair for each spatial axis.

    Parameters
    ----------
    padding : int, one int per axis, one pair per axis, ``"valid"`` or ``"same"``
        ``"valid"`` is no padding. ``"same"`` is TensorFlow's rule: ``out = ceil(in / stride)``,
        ``total = max((out-1)*stride + dilation*(kernel-1) + 1 - in, 0)``, and the odd cell
        goes to the end.
    sizes, kernel, stride, dilation : one entry for each spatial axis (or an int for all)
    """
    n = len(sizes)
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ValueError(f"padding: got {padding!r}, expected 'valid' or 'same'")
        if padding == "valid":
            return ((0, 0),) * n
        axes = zip(sizes, _ntuple(kernel, n), _ntuple(stride, n), _ntuple(dilation, n), strict=True)
        return tuple(_same_padding(*axis) for axis in axes)
    if np.ndim(padding) == 2:
        return tuple((int(lo), int(hi)) for lo, hi in padding)  # type: ignore[union-attr, misc]
    return tuple((p, p) for p in _ntuple(padding, n))  # type: ignore[arg-type]


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    out = -(-size // stride)
    total = max((out - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def _windows(
    sizes: Sequence[int], kernel: Ints, stride: Ints, padding: Padding, dilation: Ints
) -> _Windows:
    """Lay the windows of a convolution over an input with these spatial sizes."""
    n = len(sizes)
    kernel, stride, dilation = _ntuple(kernel, n), _ntuple(stride, n), _ntuple(dilation, n)
    pads = resolve_padding(padding, sizes, kernel, stride, dilation)
    axes = zip(sizes, kernel, stride, pads, dilation, strict=True)
    out = tuple(conv_output_size(*axis) for axis in axes)
    if min(out) < 1:
        raise ValueError(f"kernel {kernel} does not fit sizes {tuple(sizes)} padded by {pads}")
    return _Windows(kernel, stride, dilation, pads, out)


# ------------------------------------------------------------------------------------ padding


def pad(x: ArrayLike, pads: Pads, mode: str = "zeros", value: float = 0.0) -> Array:
    """Grow the last ``len(pads)`` axes of `x` by ``(lo, hi)`` cells each.

    ========== ===================  ==========================================
    mode       ``a b c d`` becomes  limit
    ========== ===================  ==========================================
    zeros      ``v v|a b c d|v v``  none (v = `value`)
    replicate  ``a a|a b c d|d d``  none
    reflect    ``c b|a b c d|c b``  lo, hi < size (the edge is not repeated)
    circular   ``c d|a b c d|a b``  lo, hi <= size
    ========== ===================  ==========================================
    """
    x = _f64(x)
    if mode == "zeros":
        batch = [(0, 0)] * (x.ndim - len(pads))
        return np.pad(x, [*batch, *pads], constant_values=value)
    for axis, (lo, hi) in enumerate(pads, start=x.ndim - len(pads)):
        x = np.take(x, _pad_source(x.shape[axis], lo, hi, mode), axis)
    return x


def pad_backward(dy: ArrayLike, x_shape: Sequence[int], pads: Pads, mode: str = "zeros") -> Array:
    """Gradient of `pad`: every padded cell hands its gradient to the cell it was copied from.

    Parameters
    ----------
    dy : (..., *padded S)
    x_shape : shape (or only the spatial sizes) of the array that was padded

    Returns
    -------
    dx : (..., *S)
    """
    dx = _f64(dy)
    sizes = x_shape[len(x_shape) - len(pads) :]
    for axis, (size, (lo, hi)) in enumerate(
        zip(sizes, pads, strict=True), start=dx.ndim - len(pads)
    ):
        padded = np.moveaxis(dx, axis, 0)
        inside = padded[lo : lo + size].copy()
        if mode != "zeros":
            source = _pad_source(size, lo, hi, mode)
            for cell in [*range(lo), *range(lo + size, lo + size + hi)]:
                inside[source[cell]] += padded[cell]
        dx = np.moveaxis(inside, 0, axis)
    return dx


def _pad_source(size: int, lo: int, hi: int, mode: str) -> Indices:
    """For each cell of a padded axis, the cell of the original axis it is a copy of."""
    limits = {"replicate": math.inf if size else 0, "reflect": max(0, size - 1), "circular": size}
    if mode not in limits:
        raise ValueError(f"mode: got {mode!r}, expected 'zeros' or one of {sorted(limits)}")
    if not 0 <= min(lo, hi) <= max(lo, hi) <= limits[mode]:
        raise ValueError(f"pads: got {(lo, hi)}, expected 0 to {limits[mode]} for {mode!r}")
    cell = np.arange(-lo, size + hi)
    if mode == "replicate":
        return cell.clip(0, size - 1)
    if mode == "circular":
        return cell % size
    return (size - 1) - np.abs((size - 1) - np.abs(cell))


# -------------------------------------------------------------------------------- convolution


@_ieee
def conv(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    activation: str | None = None,
    residual: ArrayLike | None = None,
) -> Array:
    """Convolution (cross-correlation) over the one, two or three spatial axes of `w`.

    ``y[n,o,i] = act(b[o] + residual[n,o,i] + sum_{c,t} w[o,c,t] * x[n, c, i*stride + t*dilation])``
    where ``i``, ``t`` are spatial indices, ``x`` is padded and ``c`` runs over o's group.

    Parameters
    ----------
    x : (N, C, *S) or unbatched (C, *S); with ``layout="NHWC"`` (N, *S, C) or (*S, C)
    w : (O, C/groups, *K); with ``layout="NHWC"`` (*K, C/groups, O)
    b : (O,)
    residual : same shape as the result; added before the activation
    activation : None, "relu", "tanh" or "sigmoid"

    Returns
    -------
    y : (N, O, *out), in the layout (and with the batch axis or not) of `x`
    """
    x, w = _f64(x), _weights_first(w, layout)
    batched = x.ndim == w.ndim
    x = _images_first(x, w.ndim - 2, layout)
    windows = _windows(x.shape[2:], w.shape[2:], stride, padding, dilation)
    y = _conv_sum(pad(x, windows.pads, padding_mode), w, windows, groups)
    if b is not None:
        y += _per_channel(b, y.ndim)
    y = _images_back(y, layout, batched)
    if residual is not None:
        y = y + _f64(residual)
    return _ACTIVATIONS[activation](y)


@_ieee
def conv_backward(
    dy: ArrayLike,
    x: ArrayLike,
    w: ArrayLike,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    needs: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of the plain convolution (no activation): `conv` is linear in x, w and b.

    | ``dx[n,c,j] = sum over (o,i,t) with i*stride + t*dilation = j of w[o,c,t] * dy[n,o,i]``
    | ``dw[o,c,t] = sum_{n,i} dy[n,o,i] * x[n, c, i*stride + t*dilation]``
    | ``db[o] = sum_{n,i} dy[n,o,i]``

    Parameters
    ----------
    dy : shape of the result of `conv`
    needs : which of dx, dw, db to compute; the others are None

    Returns
    -------
    dx, dw, db : shapes of x, w and (O,)
    """
    x, dy, w = _f64(x), _f64(dy), _weights_first(w, layout)
    batched, n = x.ndim == w.ndim, w.ndim - 2
    x, dy = _images_first(x, n, layout), _images_first(dy, n, layout)
    windows = _windows(x.shape[2:], w.shape[2:], stride, padding, dilation)
    dx = dw = db = None
    if needs[0]:
        dx_padded = _conv_sum_dx(dy, w, _padded_shape(x.shape, windows.pads), windows, groups)
        dx = pad_backward(dx_padded, x.shape, windows.pads, padding_mode)
        dx = _images_back(dx, layout, batched)
    if needs[1]:
        x_padded = pad(x, windows.pads, padding_mode)
        dw = _weights_back(_conv_sum_dw(dy, x_padded, windows, groups), layout)
    if needs[2]:
        db = dy.sum(axis=(0, *range(2, dy.ndim)))
    return dx, dw, db


conv1d = conv2d = conv3d = conv
conv1d_backward = conv2d_backward = conv3d_backward = conv_backward


def abs_conv(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    residual: ArrayLike | None = None,
) -> Array:
    """Sum as `conv` does, but over absolute values: the scale of its rounding errors."""
    x, w = np.abs(_f64(x)), np.abs(_f64(w))
    b = None if b is None else np.abs(_f64(b))
    residual = None if residual is None else np.abs(_f64(residual))
    spatial = (stride, padding, dilation, groups)
    return conv(x, w, b, *spatial, padding_mode=padding_mode, layout=layout, residual=residual)


def _conv_sum(x_padded: Array, w: Array, windows: _Windows, groups: int) -> Array:
    """``y[n,g,o,p] = sum over taps, c of w[tap][g,o,c] * x[tap][n,g,c,p]``, as (N, O, *out)."""
    n, o = x_padded.shape[0], w.shape[0]
    w_taps = _by_tap(w, groups)
    y = np.zeros((n, groups, o // groups, math.prod(windows.out)))
    for tap in windows.taps():
        y += w_taps[tap] @ _grouped(x_padded[windows.cells(tap)], groups)
    return y.reshape(n, o, *windows.out)


def _conv_sum_dx(
    dy: Array, w: Array, padded_shape: tuple[int, ...], windows: _Windows, groups: int
) -> Array:
    """Each tap sends ``sum_o w[tap][g,o,c] * dy[n,g,o,p]`` back to the cells it saw."""
    n, c = padded_shape[:2]
    w_taps, dy = _by_tap(w, groups), _grouped(dy, groups)
    dx = np.zeros(padded_shape)
    for tap in windows.taps():
        dx[windows.cells(tap)] += (w_taps[tap].mT @ dy).reshape(n, c, *windows.out)
    return dx


def _conv_sum_dw(dy: Array, x_padded: Array, windows: _Windows, groups: int) -> Array:
    """``dw[tap][g,o,c] = sum_{n,p} dy[n,g,o,p] * x[tap][n,g,c,p]``, as (O, C/groups, *K)."""
    dy = _grouped(dy, groups)
    _, g, o, _ = dy.shape
    c = x_padded.shape[1] // groups
    dw = np.zeros((*windows.kernel, g, o, c))
    for tap in windows.taps():
        x_tap = _grouped(x_padded[windows.cells(tap)], groups)
        dw[tap] = (dy @ x_tap.mT).sum(axis=0)
    return np.moveaxis(dw, (-3, -2, -1), (0, 1, 2)).reshape(g * o, c, *windows.kernel)


def _grouped(x: Array, groups: int) -> Array:
    """``(N, C, *S) -> (N, groups, C/groups, prod(S))``."""
    n, c, *sizes = x.shape
    return x.reshape(n, groups, c // groups, math.prod(sizes))


def _by_tap(w: Array, groups: int) -> Array:
    """``(O, C/groups, *K) -> (*K, groups, O/groups, C/groups)``: one matrix for a tap and group."""
    o, c, *kernel = w.shape
    w = w.reshape(groups, o // groups, c, *kernel)
    return np.ascontiguousarray(np.moveaxis(w, (0, 1, 2), (-3, -2, -1)))


def _padded_shape(shape: Sequence[int], pads: Pads) -> tuple[int, ...]:
    batch = len(shape) - len(pads)
    sizes = (s + lo + hi for s, (lo, hi) in zip(shape[batch:], pads, strict=True))
    return (*shape[:batch], *sizes)


def _per_channel(v: ArrayLike, ndim: int) -> Array:
    """``(C,) -> (1, C, 1, ...)``, ready to be combined with (N, C, *S)."""
    v = _f64(v)
    return v.reshape(1, v.size, *(1,) * (ndim - 2))


def _check_layout(layout: str) -> None:
    if layout not in ("NCHW", "NHWC"):
        raise ValueError(f"layout: got {layout!r}, expected 'NCHW' or 'NHWC'")


def _images_first(x: Array, n: int, layout: str) -> Array:
    """Any image array as ``(N, C, *S)`` with `n` spatial axes; a missing N axis becomes 1."""
    _check_layout(layout)
    if x.ndim not in (n + 1, n + 2):
        raise ValueError(f"x: got {x.ndim} axes, expected {n + 1} or {n + 2}")
    x = x if x.ndim == n + 2 else x[np.newaxis]
    return x if layout == "NCHW" else np.moveaxis(x, -1, 1)


def _images_back(y: Array, layout: str, batched: bool) -> Array:
    """Undo `_images_first`."""
    y = y if layout == "NCHW" else np.moveaxis(y, 1, -1)
    return y if batched else y[0]


def _weights_first(w: ArrayLike, layout: str) -> Array:
    """Weights of either layout as ``(O, I, *K)``."""
    _check_layout(layout)
    w = _f64(w)
    return w if layout == "NCHW" else np.moveaxis(w, (-1, -2), (0, 1))


def _weights_back(w: Array, layout: str) -> Array:
    """Undo `_weights_first`."""
    return w if layout == "NCHW" else np.moveaxis(w, (0, 1), (-1, -2))


# ------------------------------------------------------------------------------ unfold and fold


def unfold(
    x: ArrayLike, kernel_size: Ints, dilation: Ints = 1, padding: Padding = 0, stride: Ints = 1
) -> Array:
    """Write every window as a column: ``cols[n, (c, tap), i] = x[n, c, i*stride + tap*dilation]``.

    Parameters
    ----------
    x : (N, C, *S) or (C, *S); two spatial axes unless `kernel_size` is a longer or shorter tuple

    Returns
    -------
    cols : (N, C * prod(K), L) or (C * prod(K), L), with one column for each of the L windows
    """
    x = _f64(x)
    n = _spatial_axes(kernel_size)
    windows = _windows(x.shape[-n:], kernel_size, stride, padding, dilation)
    x_padded = pad(x, windows.pads)
    cols = np.stack([x_padded[windows.cells(tap)] for tap in windows.taps()], axis=-1 - n)
    *batch, c, taps = cols.shape[:-n]
    return cols.reshape(*batch, c * taps, math.prod(windows.out))


def fold(
    cols: ArrayLike,
    output_size: Ints,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Padding = 0,
    stride: Ints = 1,
) -> Array:
    """Add every column back to the cells `unfold` took it from (the adjoint of `unfold`).

    Parameters
    ----------
    cols : (N, C * prod(K), L) or (C * prod(K), L)
    output_size : spatial sizes of the result

    Returns
    -------
    x : (N, C, *output_size) or (C, *output_size)
    """
    cols = _f64(cols)
    n = _spatial_axes(kernel_size)
    sizes = _ntuple(output_size, n)
    windows = _windows(sizes, kernel_size, stride, padding, dilation)
    *batch, rows, _ = cols.shape
    c = rows // math.prod(windows.kernel)
    cols = cols.reshape(*batch, c, *windows.kernel, *windows.out)
    x_padded = np.zeros(_padded_shape((*batch, c, *sizes), windows.pads))
    for tap in windows.taps():
        row: Any = (..., *tap, *(slice(None),) * n)
        x_padded[windows.cells(tap)] += cols[row]
    return pad_backward(x_padded, sizes, windows.pads)


def unfold_backward(
    dy: ArrayLike,
    x_shape: Sequence[int],
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Padding = 0,
    stride: Ints = 1,
) -> Array:
    """Gradient of `unfold`: `fold` (`x_shape` is the shape of x, or only its spatial sizes)."""
    sizes = x_shape[len(x_shape) - _spatial_axes(kernel_size) :]
    return fold(dy, sizes, kernel_size, dilation, padding, stride)


def fold_backward(
    dy: ArrayLike, kernel_size: Ints, dilation: Ints = 1, padding: Padding = 0, stride: Ints = 1
) -> Array:
    """Gradient of `fold`: `unfold`."""
    return unfold(dy, kernel_size, dilation, padding, stride)


def _spatial_axes(kernel_size: Ints) -> int:
    return 2 if isinstance(kernel_size, (int, np.integer)) else len(kernel_size)


# ------------------------------------------------------------------------------------ pooling


def _pool_windows(
    sizes: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    dilation: Ints,
    ceil_mode: bool,
) -> _Windows:
    """Lay the windows of a pooling. ``ceil_mode`` admits one more, which hangs over the end.

    ``out = ceil(...)`` instead of ``floor(...)`` of the convolution's formula, less one if the
    last window would start beyond the input and its left padding. The pads returned are never
    smaller than asked for, and include the overhang.
    """
    n = len(sizes)
    kernel, dilation = _ntuple(kernel_size, n), _ntuple(dilation, n)
    stride = kernel if stride is None else _ntuple(stride, n)
    pads = resolve_padding(padding, sizes, kernel, stride, dilation)
    out, grown = [], []
    for size, k, s, d, (lo, hi) in zip(sizes, kernel, stride, dilation, pads, strict=True):
        cells = conv_output_size(size, k, s, (lo, hi + s - 1 if ceil_mode else hi), d)
        if ceil_mode and (cells - 1) * s >= size + lo:
            cells -= 1
        reach = (cells - 1) * s + d * (k - 1) + 1
        out.append(cells)
        grown.append((lo, max(hi, reach - lo - size)))
    if min(out) < 1:
        raise ValueError(f"kernel {kernel} does not fit sizes {tuple(sizes)} padded by {pads}")
    return _Windows(kernel, stride, dilation, tuple(grown), tuple(out))


def max_pool(
    ndim: int,
    x: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Indices]:
    """Largest value of every window: ``y[i] = max over taps t of x[i*stride + t*dilation]``.

    Padding is never chosen. The first maximum wins ties; NaN wins over every number, and the
    last NaN over the earlier ones. A window that sees nothing but padding (dilation can jump
    over a small input) gives -inf and index 0, where PyTorch's index may be out of range.

    Parameters
    ----------
    ndim : number of spatial axes; bound to 1, 2, 3 in `max_pool1d`, `max_pool2d`, `max_pool3d`
    x : (..., *S)
    stride : default `kernel_size`

    Returns
    -------
    y : (..., *out)
    indices : (..., *out), only when asked for
        The place of the maximum in the flattened spatial plane of `x`.
    """
    x = _f64(x)
    sizes = x.shape[-ndim:]
    windows = _pool_windows(sizes, kernel_size, stride, padding, dilation, ceil_mode)
    x_padded = pad(x, windows.pads, value=-np.inf)
    plane = np.arange(math.prod(sizes)).reshape(sizes)
    plane_padded = np.pad(plane, windows.pads, constant_values=-1)
    shape = (*x.shape[:-ndim], *windows.out)
    y, indices = np.full(shape, -np.inf), np.full(shape, -1, dtype=np.int64)
    for tap in windows.taps():
        value, place = x_padded[windows.cells(tap)], plane_padded[windows.cells(tap)]
        first = indices == -1
        wins = (place >= 0) & (first | (value > y) | np.isnan(value))
        y = np.where(wins, value, y)
        indices = np.where(wins, place, indices)
    return (y, indices.clip(min=0)) if return_indices else y


def max_pool_backward(
    ndim: int,
    dy: ArrayLike,
    indices: npt.ArrayLike,
    x_shape: Sequence[int],
    kernel_size: Ints | None = None,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> Array:
    """Gradient of `max_pool`: each window's gradient goes to the place of its maximum.

    ``dx[indices[i]] += dy[i]``. The indices say everything; the options are not needed.
    """
    dy, indices = _f64(dy), np.asarray(indices)
    batch, sizes = math.prod(x_shape[:-ndim]), math.prod(x_shape[-ndim:])
    cells = math.prod(dy.shape[-ndim:])
    dx = np.zeros((batch, sizes))
    rows = np.arange(batch)[:, np.newaxis]
    np.add.at(dx, (rows, indices.reshape(batch, cells)), dy.reshape(batch, cells))
    return dx.reshape(x_shape)


@_ieee
def avg_pool(
    ndim: int,
    x: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Average of every window: ``y[i] = sum over taps t of x[i*stride + t] / divisor[i]``.

    The divisor counts the window's cells which lie in the padded input or, without
    ``count_include_pad``, in the input; the overhang of ``ceil_mode`` never counts.
    ``divisor_override`` replaces it.

    Parameters
    ----------
    ndim : number of spatial axes; bound to 1, 2, 3 in `avg_pool1d`, `avg_pool2d`, `avg_pool3d`
    x : (..., *S)
    stride : default `kernel_size`

    Returns
    -------
    y : (..., *out)
    """
    x = _f64(x)
    sizes = x.shape[-ndim:]
    windows = _pool_windows(sizes, kernel_size, stride, padding, 1, ceil_mode)
    x_padded = pad(x, windows.pads)
    total = np.zeros((*x.shape[:-ndim], *windows.out))
    for tap in windows.taps():
        total += x_padded[windows.cells(tap)]
    return total / _avg_divisor(sizes, windows, padding, count_include_pad, divisor_override)


@_ieee
def avg_pool_backward(
    ndim: int,
    dy: ArrayLike,
    x_shape: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Gradient of `avg_pool`: every cell of window i receives ``dy[i] / divisor[i]``."""
    sizes = x_shape[-ndim:]
    windows = _pool_windows(sizes, kernel_size, stride, padding, 1, ceil_mode)
    share = _f64(dy) / _avg_divisor(sizes, windows, padding, count_include_pad, divisor_override)
    dx_padded = np.zeros(_padded_shape(x_shape, windows.pads))
    for tap in windows.taps():
        dx_padded[windows.cells(tap)] += share
    return pad_backward(dx_padded, x_shape, windows.pads)


def _avg_divisor(
    sizes: Sequence[int],
    windows: _Windows,
    padding: Padding,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Array:
    """``(*out)``: how many cells each window counts (1 for an empty window, whose sum is 0)."""
    if divisor_override is not None:
        return np.full(windows.out, float(divisor_override))
    pads = resolve_padding(padding, sizes, windows.kernel, windows.stride)
    divisor = np.ones(())
    for size, (lo, hi), k, s, out in zip(
        sizes, pads, windows.kernel, windows.stride, windows.out, strict=True
    ):
        begin, end = (-lo, size + hi) if count_include_pad else (0, size)
        start = np.arange(out) * s - lo
        count = np.minimum(start + k, end) - np.maximum(start, begin)
        divisor = np.multiply.outer(divisor, count.clip(min=0))
    return divisor.clip(min=1.0)


@_ieee
def adaptive_avg_pool(ndim: int, x: ArrayLike, output_size: Any) -> Array:
    """Average of windows that tile the input: ``floor(i*S/out)`` to ``ceil((i+1)*S/out)``.

    Parameters
    ----------
    ndim : bound to 1, 2, 3 in `adaptive_avg_pool1d`, `adaptive_avg_pool2d`, ...
    x : (..., *S)
    output_size : int, or one int (or None for the input's size) for each spatial axis

    Returns
    -------
    y : (..., *output_size)
    """
    x = _f64(x)
    out = _adaptive_out(x.shape[-ndim:], output_size)
    y = np.empty((*x.shape[:-ndim], *out))
    for cell, window in _adaptive_windows(x.shape[-ndim:], out):
        y[cell] = x[window].mean(axis=tuple(range(-ndim, 0)))
    return y


def adaptive_avg_pool_backward(ndim: int, dy: ArrayLike, x_shape: Sequence[int]) -> Array:
    """Gradient of `adaptive_avg_pool`: ``dy[i] / (cells of window i)`` to each of its cells."""
    dy = _f64(dy)
    dx = np.zeros(x_shape)
    for cell, window in _adaptive_windows(x_shape[-ndim:], dy.shape[-ndim:]):
        count = math.prod(dx[window].shape[-ndim:])
        share = dy[cell] / count
        dx[window] += share.reshape(*share.shape, *(1,) * ndim)
    return dx


def adaptive_max_pool(
    ndim: int, x: ArrayLike, output_size: Any, return_indices: bool = False
) -> Array | tuple[Array, Indices]:
    """Largest value of the windows of `adaptive_avg_pool`; ties, NaN, indices as in `max_pool`."""
    x = _f64(x)
    batch, sizes = x.shape[:-ndim], x.shape[-ndim:]
    out = _adaptive_out(sizes, output_size)
    plane = np.arange(math.prod(sizes)).reshape(sizes)
    y, indices = np.empty((*batch, *out)), np.empty((*batch, *out), dtype=np.int64)
    for cell, window in _adaptive_windows(sizes, out):
        places = plane[window].ravel()
        values = x[window].reshape(*batch, places.size)
        winner = _first_max_or_last_nan(values)
        y[cell] = np.take_along_axis(values, winner[..., np.newaxis], -1)[..., 0]
        indices[cell] = places[winner]
    return (y, indices) if return_indices else y


def adaptive_max_pool_backward(
    ndim: int, dy: ArrayLike, indices: npt.ArrayLike, x_shape: Sequence[int]
) -> Array:
    """Gradient of `adaptive_max_pool`: ``dx[indices[i]] += dy[i]``."""
    return max_pool_backward(ndim, dy, indices, x_shape)


def _first_max_or_last_nan(values: Array) -> Indices:
    """Find the winner's place along the last axis."""
    nan = np.isnan(values)
    last_nan = values.shape[-1] - 1 - nan[..., ::-1].argmax(axis=-1)
    return np.where(nan.any(axis=-1), last_nan, values.argmax(axis=-1))


def _adaptive_out(sizes: Sequence[int], output_size: Any) -> tuple[int, ...]:
    wanted = output_size if isinstance(output_size, Sequence) else (output_size,) * len(sizes)
    return tuple(s if o is None else int(o) for s, o in zip(sizes, wanted, strict=True))


def _adaptive_windows(sizes: Sequence[int], out: Sequence[int]) -> Iterator[tuple[Any, Any]]:
    """Every output cell (an index into ``(..., *out)``) and its window (into ``(..., *S)``)."""
    for cell in np.ndindex(*out):
        axes = zip(cell, sizes, out, strict=True)
        window = [slice(i * s // o, -(-(i + 1) * s // o)) for i, s, o in axes]
        yield (..., *cell), (..., *window)


max_pool1d, max_pool2d, max_pool3d = (partial(max_pool, n) for n in (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = (partial(avg_pool, n) for n in (1, 2, 3))
max_pool1d_backward, max_pool2d_backward, max_pool3d_backward = (
    partial(max_pool_backward, n) for n in (1, 2, 3)
)
avg_pool1d_backward, avg_pool2d_backward, avg_pool3d_backward = (
    partial(avg_pool_backward, n) for n in (1, 2, 3)
)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (
    partial(adaptive_avg_pool, n) for n in (1, 2, 3)
)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (
    partial(adaptive_max_pool, n) for n in (1, 2, 3)
)
adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward = (
    partial(adaptive_avg_pool_backward, n) for n in (1, 2, 3)
)
adaptive_max_pool1d_backward, adaptive_max_pool2d_backward, adaptive_max_pool3d_backward = (
    partial(adaptive_max_pool_backward, n) for n in (1, 2, 3)
)


# ------------------------------------------------------------------------------ normalisation


@_ieee
def batch_norm_train(
    x: ArrayLike,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    running_mean: npt.NDArray[Any] | None = None,
    running_var: npt.NDArray[Any] | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, tuple[Array, Array]]:
    """Normalise every channel by its own mean and variance over the batch and space.

    ``y = (x - mean) * invstd * weight + bias`` with ``invstd = 1 / sqrt(var + eps)`` and the
    biased variance (divided by the count m).

    Parameters
    ----------
    x : (N, C) or (N, C, *S)
    weight, bias : (C,) or None for ones and zeros
    running_mean, running_var : (C,) or None
        Updated in place: ``running = (1 - momentum) * running + momentum * new``, where the new
        variance is the unbiased one (divided by m - 1).

    Returns
    -------
    y : shape of x
    saved : (mean, invstd), each (C,), for `batch_norm_backward`
    """
    x = _f64(x)
    axes, count = _all_but_channels(x)
    if count == 1:
        raise ValueError(f"x: got shape {x.shape}, expected more than one value per channel")
    mean, var = x.mean(axis=axes), x.var(axis=axes)
    if running_mean is not None:
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
    if running_var is not None:
        running_var[...] = (1 - momentum) * running_var + momentum * var * count / (count - 1)
    return batch_norm(x, mean, var, weight, bias, eps), (mean, 1 / np.sqrt(var + eps))


@_ieee
def batch_norm(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
) -> Array:
    """Normalise with given statistics: ``y = (x - mean) / sqrt(var + eps) * weight + bias``.

    Parameters
    ----------
    x : (N, C) or (N, C, *S)
    running_mean, running_var, weight, bias : (C,)
    """
    x = _f64(x)
    y = x - _per_channel(running_mean, x.ndim)
    y = y / np.sqrt(_per_channel(running_var, x.ndim) + eps)
    if weight is not None:
        y = y * _per_channel(weight, x.ndim)
    if bias is not None:
        y = y + _per_channel(bias, x.ndim)
    return y


@_ieee
def batch_norm_backward(
    dy: ArrayLike, x: ArrayLike, weight: ArrayLike | None, saved: tuple[ArrayLike, ArrayLike]
) -> tuple[Array, Array, Array]:
    """Gradients of `batch_norm_train`, with ``xhat = (x - mean) * invstd`` and m values a channel.

    ``dbias = sum dy``; ``dweight = sum dy * xhat``;
    ``dx = weight * invstd * (dy - dbias / m - xhat * dweight / m)``

    Returns
    -------
    dx, dweight, dbias : shapes of x, (C,), (C,)
    """
    dy, x = _f64(dy), _f64(x)
    axes, count = _all_but_channels(x)
    mean, invstd = (_per_channel(s, x.ndim) for s in saved)
    xhat = (x - mean) * invstd
    dbias, dweight = dy.sum(axis=axes), (dy * xhat).sum(axis=axes)
    mean_dy = _per_channel(dbias / count, x.ndim)
    mean_dy_xhat = _per_channel(dweight / count, x.ndim)
    dx = invstd * (dy - mean_dy - xhat * mean_dy_xhat)
    return (dx if weight is None else dx * _per_channel(weight, x.ndim)), dweight, dbias


@_ieee
def fold_batch_norm(
    w: ArrayLike,
    b: ArrayLike | None,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    layout: str = "NCHW",
) -> tuple[Array, Array]:
    """Weights and bias of the convolution that equals one with (w, b) and `batch_norm` after it.

    ``scale = weight / sqrt(var + eps)``; ``w[o] * scale[o]`` and ``(b - mean) * scale + bias``.

    Parameters
    ----------
    w : (O, C/groups, *K), with layout "NHWC" (*K, C/groups, O)
    b, running_mean, running_var, weight, bias : (O,)
    """
    w, mean = _weights_first(w, layout), _f64(running_mean)
    scale = (1.0 if weight is None else _f64(weight)) / np.sqrt(_f64(running_var) + eps)
    folded = w * scale.reshape(-1, *(1,) * (w.ndim - 1))
    shift = ((0.0 if b is None else _f64(b)) - mean) * scale
    return _weights_back(folded, layout), shift if bias is None else shift + _f64(bias)


def _all_but_channels(x: Array) -> tuple[tuple[int, ...], int]:
    """Return the axes of (N, C, *S) without C, and how many values they hold."""
    axes = (0, *range(2, x.ndim))
    return axes, math.prod(x.shape[a] for a in axes)


# -------------------------------------------------------------------------------- activations


def relu(x: ArrayLike) -> Array:
    """``max(x, 0)``; NaN stays NaN."""
    return np.maximum(_f64(x), 0.0)


def relu_backward(dy: ArrayLike, x: ArrayLike) -> Array:
    """``dx = dy`` where the input was positive, else 0 (a NaN input lets dy through)."""
    return np.where(_f64(x) <= 0, 0.0, _f64(dy))


def tanh(x: ArrayLike) -> Array:
    """``(e^x - e^-x) / (e^x + e^-x)``."""
    return np.tanh(_f64(x))


@_ieee
def tanh_backward(dy: ArrayLike, x: ArrayLike) -> Array:
    """``dx = dy * (1 - tanh(x)^2)``, written without cancellation as 4 s(2x) s(-2x)."""
    x = _f64(x)
    return _f64(dy) * 4.0 * sigmoid(2.0 * x) * sigmoid(-2.0 * x)


@_ieee
def sigmoid(x: ArrayLike) -> Array:
    """``s(x) = 1 / (1 + e^-x)``; the exponential is that of ``-|x|``, which cannot overflow."""
    x = _f64(x)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


@_ieee
def sigmoid_backward(dy: ArrayLike, x: ArrayLike) -> Array:
    """``dx = dy * s(x) * (1 - s(x))``, with ``1 - s(x) = s(-x)``."""
    x = _f64(x)
    return _f64(dy) * sigmoid(x) * sigmoid(-x)


_ACTIVATIONS = {None: _f64, "relu": relu, "tanh": tanh, "sigmoid": sigmoid}


@_ieee
def softmax(x: ArrayLike, axis: int = -1) -> Array:
    """``y_i = e^(x_i - max) / sum_j e^(x_j - max)`` along `axis`."""
    x = _f64(x)
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


@_ieee
def softmax_backward(dy: ArrayLike, y: ArrayLike, axis: int = -1) -> Array:
    """``dx = y * (dy - sum(dy * y))``, from the result `y` of `softmax`."""
    dy, y = _f64(dy), _f64(y)
    return y * (dy - (dy * y).sum(axis=axis, keepdims=True))


@_ieee
def log_softmax(x: ArrayLike, axis: int = -1) -> Array:
    """``y_i = (x_i - max) - log(sum_j e^(x_j - max))`` along `axis`."""
    x = _f64(x)
    z = x - x.max(axis=axis, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True))


@_ieee
def log_softmax_backward(dy: ArrayLike, y: ArrayLike, axis: int = -1) -> Array:
    """``dx = dy - e^y * sum(dy)``, from the result `y` of `log_softmax`."""
    dy, y = _f64(dy), _f64(y)
    return dy - np.exp(y) * dy.sum(axis=axis, keepdims=True)


# ------------------------------------------------------------------------- linear and shape


@_ieee
def linear(x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None) -> Array:
    """``y[..., o] = sum_i x[..., i] * w[o, i] + b[o]``, with w (out, in) and b (out,)."""
    y = _f64(x) @ _f64(w).T
    return y if b is None else y + _f64(b)


@_ieee
def linear_backward(dy: ArrayLike, x: ArrayLike, w: ArrayLike) -> tuple[Array, Array, Array]:
    """Gradients of `linear`: ``dx = dy w``, ``dw = dy^T x`` and ``db = sum dy`` over all rows.

    Returns
    -------
    dx, dw, db : shapes of x, w and (out,)
    """
    dy, x, w = _f64(dy), _f64(x), _f64(w)
    rows = math.prod(x.shape[:-1])
    dy_rows, x_rows = dy.reshape(rows, w.shape[0]), x.reshape(rows, w.shape[1])
    return dy @ w, dy_rows.T @ x_rows, dy_rows.sum(axis=0)


def flatten(x: ArrayLike, start_dim: int = 1, end_dim: int = -1) -> Array:
    """Merge the axes `start_dim` to `end_dim` (both included) into one."""
    x = _f64(x)
    if x.ndim == 0:
        return x.reshape(1)
    start, end = start_dim % x.ndim, end_dim % x.ndim
    merged = math.prod(x.shape[start : end + 1])
    return x.reshape(*x.shape[:start], merged, *x.shape[end + 1 :])


def flatten_backward(dy: ArrayLike, x_shape: Sequence[int]) -> Array:
    """Gradient of `flatten`: the same numbers in the shape of x."""
    return _f64(dy).reshape(x_shape)


# ------------------------------------------------------------------------------------ dropout


def dropout(
    x: ArrayLike, p: float = 0.5, training: bool = True, rng: np.random.Generator | None = None
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Drop each value with probability `p` and scale the others: ``y = x * mask / (1 - p)``.

    Parameters
    ----------
    training : False returns `x` and a mask that keeps all
    rng : source of ``mask = rng.random(x.shape) >= p``; default a fresh ``default_rng()``

    Returns
    -------
    y, mask : shape of x; the mask is True where the value was kept
    """
    x = _f64(x)
    return _drop(x, x.shape, p, training, rng)


def dropout2d(
    x: ArrayLike, p: float = 0.5, training: bool = True, rng: np.random.Generator | None = None
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """`dropout` of whole channels: x is (N, C, *S), the mask is (N, C, 1, ...)."""
    x = _f64(x)
    return _drop(x, (*x.shape[:2], *(1,) * (x.ndim - 2)), p, training, rng)


def dropout_backward(
    dy: ArrayLike, mask: npt.ArrayLike, p: float = 0.5, training: bool = True
) -> Array:
    """``dx = dy * mask / (1 - p)``; ``dx = dy`` when not training."""
    return _f64(dy) * np.asarray(mask) / _keep_rate(p, training)


dropout2d_backward = dropout_backward


def _drop(
    x: Array,
    mask_shape: tuple[int, ...],
    p: float,
    training: bool,
    rng: np.random.Generator | None,
) -> tuple[Array, npt.NDArray[np.bool_]]:
    rng = np.random.default_rng() if rng is None else rng
    mask = rng.random(mask_shape) >= p if training else np.ones(mask_shape, dtype=np.bool_)
    return x * mask / _keep_rate(p, training), mask


def _keep_rate(p: float, training: bool) -> float:
    """Return the divisor ``1 - p``; 1 where there is nothing to scale (p = 1 drops all)."""
    return 1.0 - p if training and p < 1 else 1.0


# --------------------------------------------------------------------------------------- loss


@_ieee
def cross_entropy(
    logits: ArrayLike,
    target: npt.ArrayLike,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Array | np.float64:
    """``loss = -sum_c q_c * log_softmax(logits)_c``, with q the smoothed and weighted target.

    ``q_c = weight_c * ((1 - s) * target_c + s / C)`` where ``s = label_smoothing``, and
    ``target_c`` is 1 for the class and 0 for the others if classes are given. Samples of class
    `ignore_index` have q = 0. A class with q = 0 adds nothing, even where its log is -inf (where
    PyTorch agrees for classes, but returns NaN for probabilities).

    Parameters
    ----------
    logits : (N, C), (N, C, *S) or (C,)
    target : integer classes, shape of logits without C; or probabilities, shape of logits
    weight : (C,)
    reduction : "none", "sum" or "mean"
        The mean of integer targets is weighted: ``sum(loss) / sum(weight[target])`` over the
        samples not ignored. That of probabilities is divided by the number of samples.

    Returns
    -------
    loss : a scalar; shape of logits without C for "none"
    """
    logits = _f64(logits)
    axis = _class_axis(logits)
    q, total = _target_mass(logits, target, weight, ignore_index, label_smoothing)
    logp = log_softmax(logits, axis)
    loss = np.where(q == 0, 0.0, -q * logp).sum(axis=axis)
    return loss if reduction == "none" else loss.sum() / _divisor(reduction, total)


@_ieee
def cross_entropy_backward(
    logits: ArrayLike,
    target: npt.ArrayLike,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    dloss: ArrayLike = 1.0,
) -> Array:
    """``dlogits_c = softmax(logits)_c * sum_k d_k - d_c``, with ``d = q * dloss`` over the divisor.

    Parameters
    ----------
    dloss : a scalar, or (for ``reduction="none"``) the shape of the loss

    Returns
    -------
    dlogits : shape of logits
    """
    logits, dloss = _f64(logits), _f64(dloss)
    axis = _class_axis(logits)
    q, total = _target_mass(logits, target, weight, ignore_index, label_smoothing)
    if reduction == "none":
        scale = np.expand_dims(dloss, axis) if dloss.ndim else dloss
    else:
        scale = dloss / _divisor(reduction, total)
    dlogp = np.where(q == 0, 0.0, -q * scale)
    return log_softmax_backward(dlogp, log_softmax(logits, axis), axis)


def _class_axis(logits: Array) -> int:
    return 0 if logits.ndim == 1 else 1


def _target_mass(
    logits: Array,
    target: npt.ArrayLike,
    weight: ArrayLike | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Array, np.float64]:
    """Return the q of `cross_entropy` (shape of logits), and the divisor of its mean."""
    axis = _class_axis(logits)
    classes = logits.shape[axis]
    column = (classes, *(1,) * (logits.ndim - axis - 1))
    w = (np.ones(classes) if weight is None else _f64(weight)).reshape(column)
    target = np.asarray(target)
    if np.issubdtype(target.dtype, np.integer):
        target = np.expand_dims(target, axis)
        counted = target != ignore_index
        if np.any(counted & ((target < 0) | (target >= classes))):
            raise ValueError(f"target: expected classes 0 to {classes - 1} or {ignore_index}")
        share = (target == np.arange(classes).reshape(column)) & counted
        total = (w * share).sum()
    else:
        counted, share = np.True_, _f64(target)
        total = np.float64(logits.size / classes)
    q = w * ((1 - label_smoothing) * share + label_smoothing / classes) * counted
    return q, total


def _divisor(reduction: str, total: np.float64) -> np.float64:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: got {reduction!r}, expected 'none', 'mean' or 'sum'")
    return total if reduction == "mean" else np.float64(1.0)
