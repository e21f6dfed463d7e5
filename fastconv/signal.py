# SPDX-License-Identifier: BSD-3-Clause
"""Convolution and correlation of single arrays, called as in scipy.signal.

Here, as in signal processing, *convolution* flips the second array and *correlation* does not (but
conjugates it); :func:`fastconv.conv2d` is a correlation in these terms.

All functions compute the sums of the definition directly, never by a Fourier transform: exact for
integers, and made for a second array much smaller than the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv import functional
from fastconv.functional._arrays import Array, plain
from fastconv.problem import Pairs, choice

__all__ = ["convolve", "convolve2d", "correlate", "correlate2d"]

MODES = ("full", "valid", "same")
METHODS = ("auto", "direct", "fft")
# The boundary's names and numpy.pad's.
BOUNDARIES: dict[str, Any] = {
    "fill": "constant",
    "pad": "constant",
    "wrap": "wrap",
    "circular": "wrap",
    "symm": "symmetric",
    "symmetric": "symmetric",
}
# Integers up to here, and sums of them, are exact in float64.
EXACT_IN_FLOAT64 = 2**53


def correlate2d(
    in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0
) -> Array:
    """Cross-correlate two matrices.

    z[p, q] = sum over i, j of in1[p + i - A, q + j - B] * conj(in2[i, j])

    with 0 <= i < K, 0 <= j < L, and in1 continued beyond its edges as `boundary` says.

    Parameters
    ----------
    in1 : array (H, W)
    in2 : array (K, L)
        Neither may be empty.
    mode : {"full", "valid", "same"}
        "full": every p, q at which the two overlap, (H+K-1, W+L-1) values; A = K-1, B = L-1.
        "valid": only where in2 lies inside in1, (H-K+1, W-L+1); A = B = 0. in1 may lie inside in2
        instead, the result is then (K-H+1, L-W+1) and p, q run from H-K, W-L to 0.
        "same": the centre of "full", with the shape of in1; A = (K-1)//2, B = (L-1)//2.
    boundary : {"fill", "wrap", "symm"}
        in1 is continued by `fillvalue`, periodically, or mirrored with the edge repeated. "pad",
        "circular" and "symmetric" are other names of these.
    fillvalue : scalar

    Returns
    -------
    array of NumPy's promotion of both dtypes
        Integers are exact modulo the range of their dtype, as sums of NumPy arrays are. float16 is
        computed in float32.

    Raises
    ------
    ValueError
        Other axes than two, empty arrays, "valid" with neither array inside the other, an unknown
        mode or boundary, or a `fillvalue` the dtype cannot hold.
    TypeError
        Arrays which hold no numbers (bool counts as none when both are).

    Notes
    -----
    Signature and meaning are those of scipy.signal.correlate2d. One result differs: in "valid" mode
    with the larger array second, complex results follow the formula above, as those of
    scipy.signal.correlate do; scipy.signal.correlate2d returns their conjugate.
    """
    return _convolve2d(in1, in2, mode, boundary, fillvalue, correlation=True)


def convolve2d(
    in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0
) -> Array:
    """Convolve two matrices.

    z[p, q] = sum over i, j of in1[p - i + A, q - j + B] * in2[i, j]

    with A = B = 0 in "full" mode, (K-1)//2 and (L-1)//2 in "same", K-1 and L-1 in "valid".

    Parameters
    ----------
    in1, in2, mode, boundary, fillvalue
        As in :func:`correlate2d`.

    Returns
    -------
    array of NumPy's promotion of both dtypes

    Raises
    ------
    ValueError, TypeError
        As correlate2d.

    Notes
    -----
    Signature and meaning are those of scipy.signal.convolve2d.
    """
    return _convolve2d(in1, in2, mode, boundary, fillvalue)


def correlate(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Array:
    """Cross-correlate two arrays of one, two or three axes, with zeros beyond the edges.

    z[p] = sum over i of in1[p + i - A] * conj(in2[i])

    with p, i and A one entry for each axis; A = K-1 in "full" mode, K//2 in "same", 0 in "valid".

    Parameters
    ----------
    in1, in2 : arrays with the same number of axes, not empty
    mode : {"full", "valid", "same"}
        As in :func:`correlate2d`.
    method : {"auto", "direct", "fft"}
        Accepted for compatibility; the sum is always computed directly.

    Returns
    -------
    array of NumPy's promotion of both dtypes

    Raises
    ------
    ValueError, TypeError
        As correlate2d.

    Notes
    -----
    Signature and meaning are those of scipy.signal.correlate. With an even in2, "same" keeps
    another centre than correlate2d does: both follow SciPy.
    """
    return convolve(in1, _reversed_conjugate(in2), mode, method)


def convolve(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Array:
    """Convolve two arrays of one, two or three axes, with zeros beyond the edges.

    z[p] = sum over i of in1[p - i + A] * in2[i]

    with p, i and A one entry for each axis, and A as in :func:`convolve2d`.

    Parameters
    ----------
    in1, in2, mode, method
        As in :func:`correlate`.

    Returns
    -------
    array of NumPy's promotion of both dtypes

    Raises
    ------
    ValueError, TypeError
        As correlate2d.

    Notes
    -----
    Signature and meaning are those of scipy.signal.convolve.
    """
    in1, in2 = _operand("in1", in1), _operand("in2", in2)
    if in1.ndim != in2.ndim or in1.ndim not in (1, 2, 3):
        raise ValueError(
            f"in1, in2: expected one to three axes, as many in both, got shapes {in1.shape} and "
            f"{in2.shape}"
        )
    choice("method", method, METHODS)
    return _convolve(in1, in2, mode)


def _operand(name: str, value: Any) -> Array:
    """`value` as an array of numbers that is not empty."""
    array = plain(name, value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name}: expected an array of numbers, got dtype {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one element, got shape {array.shape}")
    return array


def _reversed_conjugate(in2: Any) -> Array:
    """The array to convolve with for a correlation with in2."""
    return np.flip(_operand("in2", in2)).conj()


def _convolve2d(
    in1: Any, in2: Any, mode: str, boundary: str, fillvalue: Any, correlation: bool = False
) -> Array:
    in1, in2 = _operand("in1", in1), _operand("in2", in2)
    for name, array in (("in1", in1), ("in2", in2)):
        if array.ndim != 2:
            raise ValueError(f"{name}: expected a matrix, got shape {array.shape}")
    pad_mode = BOUNDARIES[choice("boundary", boundary, tuple(BOUNDARIES))]
    h = _reversed_conjugate(in2) if correlation else in2
    return _convolve(in1, h, mode, pad_mode, fillvalue, late=correlation)


def _convolve(
    x: Array,
    h: Array,
    mode: str,
    pad_mode: Any = "constant",
    fillvalue: Any = 0,
    late: bool = False,
) -> Array:
    """Convolve checked operands; `late` takes the other centre of an even h in "same"."""
    choice("mode", mode, MODES)
    dtype = np.result_type(x, h)
    if dtype.kind == "b":
        raise TypeError(f"in1, in2: expected numbers, got dtypes {x.dtype} and {h.dtype}")
    fill = _fill_scalar(fillvalue, dtype)
    x, h = x.astype(dtype, copy=False), h.astype(dtype, copy=False)
    zeros = pad_mode == "constant" and fill == 0
    if _swap(x, h, mode, zeros):
        x, h = h, x
    pads = tuple((high, low) if late else (low, high) for low, high in _pads(h.shape, mode))
    if mode != "valid" and not zeros:
        options: dict[str, Any] = {"constant_values": fill} if pad_mode == "constant" else {}
        x, pads = np.pad(x, pads, pad_mode, **options), _pads(h.shape, "valid")
    return _slide(x, np.flip(h), pads)


def _fill_scalar(value: Any, dtype: np.dtype[Any]) -> Any:
    try:
        return dtype.type(np.asarray(value).item())
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"fillvalue: expected one {dtype} number, got {value!r}") from None


def _swap(x: Array, h: Array, mode: str, zeros: bool) -> bool:
    """Whether to slide x over h instead, as "valid" may need and "full" may prefer."""
    if mode == "full":
        return zeros and h.size > x.size
    if mode == "same":
        return False
    sizes = list(zip(x.shape, h.shape, strict=True))
    if all(n >= k for n, k in sizes):
        return False
    if all(n <= k for n, k in sizes):
        return True
    raise ValueError(
        'in1, in2: in "valid" mode one must be at least as large as the other along every axis, '
        f"got shapes {x.shape} and {h.shape}"
    )


def _pads(kernel: Sequence[int], mode: str) -> Pairs:
    """How far x reaches beyond its edges, (low, high) for each axis."""
    if mode == "full":
        return tuple((k - 1, k - 1) for k in kernel)
    if mode == "same":
        return tuple((k // 2, (k - 1) // 2) for k in kernel)
    return tuple((0, 0) for _ in kernel)


def _slide(x: Array, k: Array, pads: Pairs) -> Array:
    """z[p] = sum over i of x[p + i - low] * k[i], with x zero outside; all of one dtype."""
    dtype = x.dtype
    if dtype.kind == "c" and dtype.itemsize <= 16:
        parts = [[k.real, -k.imag], [k.imag, k.real]]
        real, imaginary = _conv(np.stack([x.real, x.imag]), np.array(parts), pads)
        z = np.empty(real.shape, dtype)
        z.real, z.imag = real, imaginary
        return z
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return _conv(x[np.newaxis], k[np.newaxis, np.newaxis], pads)[0]
    if dtype.kind in "iu" and _magnitude(x) * _magnitude(k) * k.size <= EXACT_IN_FLOAT64:
        # The direct algorithm only multiplies and adds, so every step is exact here.
        sums = _conv(x[np.newaxis].astype(np.float64), k[np.newaxis, np.newaxis], pads, "direct")[0]
        return sums.astype(np.int64).astype(dtype)
    return _tap_sum(x, k, pads)


def _magnitude(x: Array) -> int:
    """The largest absolute value of integers, as an int of any size."""
    return max(int(x.max()), -int(x.min()))


def _conv(x: Array, w: Array, pads: Pairs, algo: str = "auto") -> Array:
    """(C, *S) and (O, C, *K) -> (O, *out)."""
    conv = (functional.conv1d, functional.conv2d, functional.conv3d)[len(pads) - 1]
    # a reversed kernel is a view, and may be of integers; calls with a copy of it, which is small, are remembered
    return conv(x, np.ascontiguousarray(w, x.dtype), padding=pads, algo=algo)


def _tap_sum(x: Array, k: Array, pads: Pairs) -> Array:
    """_slide in x's own dtype, tap by tap: for integers beyond float64's and for long doubles."""
    x = np.pad(x, pads)
    shape = tuple(n - m + 1 for n, m in zip(x.shape, k.shape, strict=True))
    z = np.zeros(shape, x.dtype)
    for tap in np.ndindex(k.shape):
        z += k[tap] * x[tuple(slice(t, t + n) for t, n in zip(tap, shape, strict=True))]
    return z
