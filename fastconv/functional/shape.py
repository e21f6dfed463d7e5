# SPDX-License-Identifier: BSD-3-Clause
"""Operations that move data: pad, unfold, fold, flatten, dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.functional._arrays import (
    Array,
    as_array,
    axis_of,
    check_out,
    common_dtypes,
    contiguous,
    deliver,
    generator,
    result,
    shape_of,
    slices,
    target,
)
from fastconv.functional._calls import again, launch_first
from fastconv.kernels import unfold as _unfold
from fastconv.kernels.call import OPERANDS, RESULTS, TEAM
from fastconv.kernels.lattice import Lattice
from fastconv.problem import (
    AXES,
    ELEMENTS_MAX,
    PADDING_MODES,
    Conv,
    Pairs,
    check_padding_mode,
    choice,
    elements,
    flag,
    integers,
    is_sequence,
    lattice_axis,
    lattice_spec,
    number,
    sliding_windows,
)


def _three(values: Sequence[Any], fill: Any) -> tuple[Any, Any, Any]:
    lead = (fill,) * (3 - len(values))
    return (*lead, *values)  # type: ignore[return-value]


@lru_cache(maxsize=256)
def _pad_lattice(sizes: tuple[int, ...], pads: Pairs, mode: str) -> Lattice:
    axes = []
    for size, (low, high) in zip(sizes, pads, strict=True):
        out = size + low + high
        axes.append(lattice_axis(size, np.array([-low]), out, 1, mode, 0, 1, out))
    return Lattice(*lattice_spec(axes, [[0]] * 3, (1, 1, 1)))


def _pad_pairs(pads: Any, ndim: int) -> Pairs:
    if not is_sequence(pads):
        raise TypeError(f"pads: expected (low, high) pairs of the last axes, got {pads!r}")
    if not 1 <= len(pads) <= min(3, ndim):
        raise ValueError(f"pads: expected 1 to {min(3, ndim)} (low, high) pairs, got {pads!r}")
    pairs = []
    for pair in pads:
        if not is_sequence(pair) or len(pair) != 2:
            raise ValueError(f"pads: expected (low, high) pairs of the last axes, got {pads!r}")
        low, high = integers("pads", pair, 2, 0)
        pairs.append((low, high))
    return tuple(pairs)


def pad(
    x: Any, pads: Any, mode: str = "zeros", value: float = 0.0, *, out: Array | None = None
) -> Array:
    """Pad the last axes.

    y[..., i] = x[..., source(i - low)], where source is outside x: `value` ("zeros"), the mirrored cell without
    repeating the edge ("reflect"), the nearest ("replicate") or the opposite one ("circular").

    Parameters
    ----------
    x : array (..., A) with as many trailing axes as there are pairs
    pads : sequence of (low, high)
        One pair for each of the last one to three axes, each >= 0.
    mode : {"zeros", "reflect", "replicate", "circular"}
    value : float
        What "zeros" writes.

    Returns
    -------
    array of x's float dtype, each padded axis longer by low + high

    Raises
    ------
    ValueError
        For negative pads, reflect pads not smaller and circular pads larger than their axis.
    """
    given = ("pad", pads, mode, value), (x,), out
    found: Array | None = again(*given)
    if found is not None:
        return found
    x = as_array("x", x)
    value = number("value", value)
    pairs = _pad_pairs(pads, x.ndim)
    dtype, result_dtype = common_dtypes(x=x)
    sizes = x.shape[x.ndim - len(pairs) :]
    choice("mode", mode, PADDING_MODES)
    check_padding_mode(sizes, pairs, mode, "pads")
    lead = x.shape[: x.ndim - len(pairs)]
    shape = lead + tuple(s + sum(p) for s, p in zip(sizes, pairs, strict=True))
    elements("pads", shape)
    check_out(out, shape, result_dtype)
    xc = contiguous(x, dtype)
    y = target(out, shape, dtype, xc)
    if y.size and (mode != "zeros" or value == 0.0):
        lattice = _pad_lattice(_three(sizes, 1), _three(pairs, (0, 0)), mode)
        arguments = lattice, OPERANDS[0], RESULTS[0], math.prod(lead), TEAM
        launch_first(given, "pad", y.size, _unfold.unfold, arguments, (xc,), (y,), lattice.nbytes)
    elif y.size:
        y[...] = value
        inner: tuple[Any, ...] = tuple(
            slice(low, low + s) for s, (low, _) in zip(sizes, pairs, strict=True)
        )
        y[(..., *inner)] = xc
    return deliver(y, out, result_dtype)


def pad_backward(dy: Any, x_shape: Sequence[int], pads: Any, mode: str = "zeros") -> Array:
    """Gradient of :func:`pad`: every padded cell's gradient is added to the cell it was copied from.

    Parameters
    ----------
    dy : array of the padded shape
    x_shape : shape of x
    pads, mode : as in pad

    Returns
    -------
    array of shape x_shape
    """
    given = ("pad_dx", x_shape, pads, mode), (dy,), None
    found: Array | None = again(*given)
    if found is not None:
        return found
    dy = as_array("dy", dy)
    x_shape = shape_of("x_shape", x_shape)
    pairs = _pad_pairs(pads, len(x_shape))
    sizes = x_shape[len(x_shape) - len(pairs) :]
    choice("mode", mode, PADDING_MODES)
    check_padding_mode(sizes, pairs, mode, "pads")
    lead = x_shape[: len(x_shape) - len(pairs)]
    expected = lead + tuple(s + sum(p) for s, p in zip(sizes, pairs, strict=True))
    if dy.shape != expected:
        raise ValueError(f"dy: expected the padded shape {expected}, got {dy.shape}")
    dtype, result_dtype = common_dtypes(dy=dy)
    dyc = contiguous(dy, dtype)
    dx = result("x_shape", x_shape, dtype)
    if dx.size:
        lattice = _pad_lattice(_three(sizes, 1), _three(pairs, (0, 0)), mode)
        arguments = lattice, RESULTS[0], OPERANDS[0], math.prod(lead), TEAM
        arrays, size = (dyc,), dyc.size
        launch_first(given, "pad_dx", size, _unfold.fold, arguments, arrays, (dx,), lattice.nbytes)
    return deliver(dx, None, result_dtype)


@lru_cache(maxsize=256)
def _unfold_lattice(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pads: Pairs,
    dilation: tuple[int, ...],
) -> Lattice:
    spec = Conv("float32", 1, 1, 1, 1, sizes, kernel, stride, pads, dilation).forward_lattice()
    return Lattice(*spec)


def _windows(
    sizes: tuple[int, ...], kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[Lattice, tuple[int, ...], int]:
    """(lattice, output sizes, taps) of unfold's sliding windows over the trailing `sizes`."""
    windows = sliding_windows(sizes, kernel_size, stride, padding, dilation)
    fits = math.prod((*sizes, *windows.kernel)) <= ELEMENTS_MAX  # but for the padding
    elements("padding" if fits else "kernel_size", (*windows.out, *windows.kernel))
    lattice = _unfold_lattice(
        _three(sizes, 1),
        _three(windows.kernel, 1),
        _three(windows.stride, 1),
        _three(windows.pads, (0, 0)),
        _three(windows.dilation, 1),
    )
    return lattice, windows.out, math.prod(windows.kernel)


def _window_rank(kernel_size: Any, ndim: int) -> int:
    """Spatial axes of unfold's input: as many as kernel_size has, else PyTorch's two, or three of five axes."""
    rank = len(kernel_size) if is_sequence(kernel_size) else min(max(2, ndim - 2), 3)
    if rank not in AXES:
        raise ValueError(f"kernel_size: expected 1 to 3 sizes, got {kernel_size!r}")
    return rank


def unfold(
    x: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
    *,
    out: Array | None = None,
) -> Array:
    """Sliding windows as columns (im2col).

    y[n, c*K + k, l] = x_padded[n, c, position of tap k in window l]

    Parameters
    ----------
    x : array (N, C, H, W), (N, C, D, H, W) or (N, C, W), or one image without N
        Three axes with an int as kernel_size are one image (C, H, W), as in PyTorch; a 1-tuple makes them (N, C, W).
    kernel_size, dilation, padding, stride : as in :func:`fastconv.conv2d`

    Returns
    -------
    array (N, C*prod(kernel_size), L), L the number of windows; without N for one image

    Raises
    ------
    ValueError
        When no window fits.
    """
    return _unfold_array("x", as_array("x", x), kernel_size, dilation, padding, stride, out)


def _unfold_array(
    name: str,
    x: Array,
    kernel_size: Any,
    dilation: Any,
    padding: Any,
    stride: Any,
    out: Array | None,
) -> Array:
    """unfold, whose input the caller calls `name`."""
    given = ("unfold", kernel_size, dilation, padding, stride), (x,), out
    found: Array | None = again(*given)
    if found is not None:
        return found
    rank = _window_rank(kernel_size, x.ndim)
    if x.ndim not in (rank + 1, rank + 2):
        raise ValueError(
            f"{name}: expected (N, C) or (C,) and as many axes as kernel_size {kernel_size!r} has, got shape {x.shape}"
        )
    single = x.ndim == rank + 1
    xb = x[np.newaxis] if single else x
    dtype, result_dtype = common_dtypes(x=x)
    lattice, outs, taps = _windows(xb.shape[2:], kernel_size, dilation, padding, stride)
    shape: tuple[int, ...] = (xb.shape[0], xb.shape[1] * taps, math.prod(outs))
    shape = shape[1:] if single else shape
    elements("x", shape)
    check_out(out, shape, result_dtype)
    xc = contiguous(xb, dtype)
    y = target(out, shape, dtype, xc)
    if y.size:
        arguments = lattice, OPERANDS[0], RESULTS[0], math.prod(xb.shape[:2]), TEAM
        launch_first(
            given, "unfold", y.size, _unfold.unfold, arguments, (xc,), (y,), lattice.nbytes
        )
    return deliver(y, out, result_dtype)


def fold(
    cols: Any,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
    *,
    out: Array | None = None,
) -> Array:
    """Sum columns back into an image (col2im): the adjoint of :func:`unfold`.

    Parameters
    ----------
    cols : array (N, C*prod(kernel_size), L), or without N
    output_size : tuple of 1 to 3 sizes (..., H, W)
    kernel_size, dilation, padding, stride : as in unfold

    Returns
    -------
    array (N, C, *output_size)

    Raises
    ------
    ValueError
        When the columns do not belong to such an image.
    """
    return _fold(
        "cols", as_array("cols", cols), output_size, kernel_size, dilation, padding, stride, out
    )


def _fold(
    name: str,
    cols: Array,
    output_size: Any,
    kernel_size: Any,
    dilation: Any,
    padding: Any,
    stride: Any,
    out: Array | None,
) -> Array:
    """fold, whose columns the caller calls `name`."""
    given = ("fold", output_size, kernel_size, dilation, padding, stride), (cols,), out
    found: Array | None = again(*given)
    if found is not None:
        return found
    if cols.ndim not in (2, 3):
        raise ValueError(f"{name}: expected (N, C*K, L) or (C*K, L), got shape {cols.shape}")
    single = cols.ndim == 2
    batch = cols[np.newaxis] if single else cols
    sizes = integers(
        "output_size", output_size, len(output_size) if is_sequence(output_size) else 2, 1
    )
    if len(sizes) not in AXES:
        raise ValueError(f"output_size: expected 1 to 3 sizes, got {output_size!r}")
    if len(sizes) != 2 and not is_sequence(kernel_size):
        raise ValueError(
            f"kernel_size: expected {len(sizes)} sizes for an output_size of {sizes}, got {kernel_size!r}"
        )
    dtype, result_dtype = common_dtypes(cols=cols)
    lattice, outs, taps = _windows(sizes, kernel_size, dilation, padding, stride)
    if batch.shape[1] % taps or batch.shape[2] != math.prod(outs):
        raise ValueError(
            f"{name}: expected (N, a multiple of {taps}, {math.prod(outs)}) for {outs} windows of {taps} cells, "
            f"got shape {cols.shape}"
        )
    shape: tuple[int, ...] = (batch.shape[0], batch.shape[1] // taps, *sizes)
    shape = shape[1:] if single else shape
    elements("output_size", shape)
    check_out(out, shape, result_dtype)
    columns = contiguous(batch, dtype)
    y = target(out, shape, dtype, columns)
    if y.size:
        planes = batch.shape[0] * (batch.shape[1] // taps)
        arguments = lattice, RESULTS[0], OPERANDS[0], planes, TEAM
        arrays, size = (columns,), columns.size
        launch_first(given, "fold", size, _unfold.fold, arguments, arrays, (y,), lattice.nbytes)
    return deliver(y, out, result_dtype)


def unfold_backward(
    dy: Any,
    x_shape: Sequence[int],
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Array:
    """Gradient of :func:`unfold`: fold. x_shape is the shape of x."""
    dy, shape = as_array("dy", dy), shape_of("x_shape", x_shape)
    rank = _window_rank(kernel_size, len(shape))
    if len(shape) not in (rank + 1, rank + 2):
        raise ValueError(f"x_shape: expected {rank + 1} or {rank + 2} sizes, got {shape}")
    if dy.ndim != len(shape) - rank + 1:
        raise ValueError(
            f"dy: expected {len(shape) - rank + 1} axes for x_shape {shape}, got {dy.shape}"
        )
    dx = _fold("dy", dy, shape[-rank:], kernel_size, dilation, padding, stride, None)
    if dx.shape != shape:
        raise ValueError(f"x_shape: dy of shape {dy.shape} belongs to {dx.shape}, got {shape}")
    return dx


def fold_backward(
    dy: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Array:
    """Gradient of :func:`fold`: unfold, of dy (N, C, *output_size)."""
    return _unfold_array("dy", as_array("dy", dy), kernel_size, dilation, padding, stride, None)


def flatten(x: Any, start_dim: int = 1, end_dim: int = -1) -> Array:
    """Merge axes start_dim..end_dim into one: (N, C, H, W) -> (N, C*H*W) by default. A view where NumPy can make one."""
    x = as_array("x", x)
    if x.ndim == 0:
        return x.reshape(1)
    start, end = axis_of("start_dim", start_dim, x.ndim), axis_of("end_dim", end_dim, x.ndim)
    if start > end:
        raise ValueError(f"start_dim: must not come after end_dim, got {start_dim} and {end_dim}")
    shape = (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :])
    return x.reshape(shape)


def flatten_backward(dy: Any, x_shape: Sequence[int]) -> Array:
    """Gradient of :func:`flatten`: dy in the shape of x."""
    dy, shape = as_array("dy", dy), shape_of("x_shape", x_shape)
    if dy.size != math.prod(shape):
        raise ValueError(
            f"dy: expected {math.prod(shape)} elements for shape {shape}, got {dy.shape}"
        )
    return dy.reshape(shape)


def _channels_alone(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] + (1,) * (len(shape) - 2)


def _drops(p: Any, training: Any) -> tuple[float, bool]:
    """p, and whether anything is to be dropped."""
    p = number("p", p, 0, 1)
    return p, flag("training", training) and p != 0.0


def _drop(operation: str, x: Any, p: Any, training: Any, rng: Any) -> tuple[Array, Array]:
    """dropout, or dropout2d."""
    given = (operation, p, training), (x,), None
    found: tuple[Array, Array] | None = again(*given, (rng,))
    if found is not None:
        return found
    x = as_array("x", x)
    if operation == "dropout2d" and x.ndim < 2:
        raise ValueError(f"x: expected (N, C, ...), got shape {x.shape}")
    p, drops = _drops(p, training)
    dtype, result_dtype = common_dtypes(x=x)
    y = result("x", x.shape, dtype)
    mask = np.empty(x.shape if operation == "dropout" else _channels_alone(x.shape), dtype=bool)
    arguments = p, drops, *OPERANDS[:2], *RESULTS[:2]
    launch_first(given, operation, x.size, _draw, arguments, (x, rng), (y, mask))
    return deliver(y, None, result_dtype), mask


def _draw(p: float, drops: bool, x: Array, rng: Any, y: Array, mask: Array) -> None:
    if drops:
        numbers = generator(rng)
        drawn = mask.reshape(-1)
        # the generator gives the same numbers in any number of draws
        for part in slices(drawn.size, 8):
            np.greater_equal(numbers.random(len(drawn[part])), p, out=drawn[part])
    else:
        mask[...] = True
    _apply_mask(p, drops, x, mask, y)


def _apply_mask(p: float, drops: bool, x: Array, mask: Array, y: Array) -> None:
    if drops:
        np.multiply(x, mask, out=y, casting="unsafe", dtype=y.dtype)
        y *= 0.0 if p == 1.0 else 1.0 / (1.0 - p)
    else:
        y[...] = x


def dropout(x: Any, p: float = 0.5, training: bool = True, rng: Any = None) -> tuple[Array, Array]:
    """Zero elements with probability p and scale the others by 1/(1 - p) (Srivastava et al., 2014).

    Parameters
    ----------
    x : array
    p : float in [0, 1]
    training : bool
        False returns x unchanged.
    rng : numpy Generator, seed or None

    Returns
    -------
    y : array like x
    mask : bool array like x
        True where an element was kept.
    """
    return _drop("dropout", x, p, training, rng)


def dropout2d(
    x: Any, p: float = 0.5, training: bool = True, rng: Any = None
) -> tuple[Array, Array]:
    """Zero whole channels with probability p and scale the others by 1/(1 - p) (Tompson et al., 2015).

    Parameters
    ----------
    x : array (N, C, ...)
    p, training, rng : as in :func:`dropout`

    Returns
    -------
    y : array like x
    mask : bool array (N, C, 1, ...)
    """
    return _drop("dropout2d", x, p, training, rng)


def _drop_backward(dy: Any, mask: Any, p: Any, training: Any) -> Array:
    given = ("dropout_dx", p, training), (dy, mask), None
    found: Array | None = again(*given)
    if found is not None:
        return found
    dy = as_array("dy", dy)
    dtype, result_dtype = common_dtypes(dy=dy)
    mask = as_array("mask", mask)
    channels = _channels_alone(dy.shape)
    if mask.dtype != bool or mask.shape not in (dy.shape, channels):
        whole = "" if channels == dy.shape else f" or {channels}"
        raise ValueError(
            f"mask: expected bools of shape {dy.shape}{whole}, got {mask.dtype} of shape {mask.shape}"
        )
    p, drops = _drops(p, training)
    dx = result("dy", dy.shape, dtype)
    arguments = p, drops, *OPERANDS[:2], RESULTS[0]
    launch_first(given, "dropout_dx", dy.size, _apply_mask, arguments, (dy, mask), (dx,))
    return deliver(dx, None, result_dtype)


def dropout_backward(dy: Any, mask: Any, p: float = 0.5, training: bool = True) -> Array:
    """Gradient of :func:`dropout`: dy * mask / (1 - p)."""
    return _drop_backward(dy, mask, p, training)


def dropout2d_backward(dy: Any, mask: Any, p: float = 0.5, training: bool = True) -> Array:
    """Gradient of :func:`dropout2d`: dy * mask / (1 - p), a mask of whole channels."""
    return _drop_backward(dy, mask, p, training)
