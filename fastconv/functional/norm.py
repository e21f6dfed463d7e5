# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalisation (Ioffe and Szegedy, 2015), with PyTorch's conventions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.functional._arrays import (
    Array,
    as_array,
    check_out,
    common_dtypes,
    contiguous,
    deliver,
    plain,
    result,
    target,
)
from fastconv.functional._calls import again, launch_first
from fastconv.kernels import norm as _norm
from fastconv.kernels.call import OPERANDS, RESULTS, TEAM
from fastconv.problem import LAYOUTS, choice, finite, flag, is_sequence

Saved = tuple[Array, Array]


def _channels(x: Array) -> int:
    if x.ndim < 2:
        raise ValueError(f"x: expected (N, C) or (N, C, ...), got shape {x.shape}")
    return int(x.shape[1])


def _parameter(name: str, value: Any, channels: int) -> Array | None:
    """A per-channel parameter (C,) as kernels take it, in float32 or float64; or None."""
    if value is None:
        return None
    array = as_array(name, value)
    if array.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), got {array.shape}")
    return _held(array)


def _held(array: Array) -> Array:
    """The array itself if kernels take it as it is, else a float64 copy."""
    return contiguous(array, np.dtype(np.float32 if array.dtype == np.float32 else np.float64))


def _statistics(running_mean: Any, running_var: Any, channels: int) -> tuple[Array, Array]:
    """The running statistics of evaluation, both as kernels take them."""
    mean = _parameter("running_mean", running_mean, channels)
    var = _parameter("running_var", running_var, channels)
    if mean is None or var is None:
        raise ValueError("running_mean, running_var: evaluation needs both, got None")
    return mean, var


def _running(name: str, value: Any, channels: int) -> Array | None:
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or plain(name, value).dtype.kind != "f":
        raise TypeError(
            f"{name}: expected an array of floats (it is updated in place), got {value!r}"
        )
    if value.shape != (channels,) or not value.flags.writeable:
        raise ValueError(
            f"{name}: expected a writable array of shape ({channels},), got shape {value.shape}, "
            f"writable: {value.flags.writeable}"
        )
    return value


def batch_norm_train(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    out: Array | None = None,
) -> tuple[Array, Saved]:
    """Normalise each channel by the statistics of this batch.

    y = (x - mean_c)/sqrt(var_c + eps) * weight_c + bias_c, with the biased variance over N and the pixels.
    running <- (1 - momentum)*running + momentum*batch, with the unbiased variance.

    Parameters
    ----------
    x : array (N, C) or (N, C, ...)
    weight, bias : arrays (C,), optional
        Ones and zeros by default.
    running_mean, running_var : arrays (C,), optional
        Updated in place.
    momentum : float
        The share of the new value (PyTorch's convention; CS231n's and Keras' is the reverse).
    eps : float >= 0
    out : array like x, optional

    Returns
    -------
    y : array like x
    saved : (mean, invstd)
        What :func:`batch_norm_backward` takes: float64 arrays (C,), invstd = 1/sqrt(var + eps).

    Raises
    ------
    ValueError
        With one value per channel (its variance would be zero): use evaluation mode.
    """
    momentum = finite("momentum", momentum)  # not in the signature: it may differ each time
    given = ("batch_norm_train", eps), (x, weight, bias, running_mean, running_var), out
    found = again(*given, (momentum,))
    if found is not None:
        y, *saved = found
        return y, tuple(saved)
    x = as_array("x", x)
    channels = _channels(x)
    w, b = _parameter("weight", weight, channels), _parameter("bias", bias, channels)
    running = (
        _running("running_mean", running_mean, channels),
        _running("running_var", running_var, channels),
    )
    dtype, result_dtype = common_dtypes(x=x)
    check_out(out, x.shape, result_dtype)
    count = x.shape[0] * math.prod(x.shape[2:])
    if count <= 1 and channels:
        raise ValueError(
            f"x: training needs more than one value per channel, got shape {x.shape}; "
            "use batch_norm with running statistics (evaluation mode)"
        )
    held = tuple(None if r is None else _held(r) for r in running)
    arrays = contiguous(x, dtype), w, b, *held
    y = target(out, x.shape, dtype, *arrays)
    arguments = (*OPERANDS, finite("eps", eps, 0), *RESULTS, TEAM)
    operands = *arrays, momentum
    results = y, np.empty(channels), np.empty(channels)
    launch_first(given, "batch_norm_train", x.size, _norm.train, arguments, operands, results)
    for values, updated in zip(running, held, strict=True):
        if values is not None and values is not updated:
            values[...] = updated
    return deliver(y, out, result_dtype), results[1:]


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    out: Array | None = None,
) -> Array:
    """Normalise each channel by given statistics (evaluation mode).

    y = (x - running_mean_c)/sqrt(running_var_c + eps) * weight_c + bias_c

    Parameters
    ----------
    x : array (N, C) or (N, C, ...)
    running_mean, running_var : arrays (C,)
    weight, bias : arrays (C,), optional
    eps : float >= 0
    out : array like x, optional

    Returns
    -------
    array like x
    """
    given = ("batch_norm", eps), (x, running_mean, running_var, weight, bias), out
    found: Array | None = again(*given)
    if found is not None:
        return found
    x = as_array("x", x)
    channels = _channels(x)
    mean, var = _statistics(running_mean, running_var, channels)
    w, b = _parameter("weight", weight, channels), _parameter("bias", bias, channels)
    dtype, result_dtype = common_dtypes(x=x)
    check_out(out, x.shape, result_dtype)
    arrays = contiguous(x, dtype), mean, var, w, b
    y = target(out, x.shape, dtype, *arrays)
    eps = finite("eps", eps, 0)
    if y.size:
        arguments = (*OPERANDS[:5], eps, RESULTS[0], TEAM)
        launch_first(given, "batch_norm", y.size, _norm.evaluate, arguments, arrays, (y,))
    return deliver(y, out, result_dtype)


def fold_batch_norm(
    w: Any,
    b: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    layout: str = "NCHW",
) -> tuple[Array, Array]:
    """Fold a batch normalisation in evaluation mode into the convolution before it: one call in place of two.

    With scale_o = weight_o / sqrt(running_var_o + eps):
    w'[o] = w[o] * scale_o, b'[o] = (b_o - running_mean_o) * scale_o + bias_o

    Up to rounding ``conv2d(x, w', b')`` is then ``batch_norm(conv2d(x, w, b), running_mean, running_var, weight, bias)``.
    w' and b' are computed in float64 and rounded once.

    Parameters
    ----------
    w : array (O, C/groups, ...), or with layout "NHWC" (..., C/groups, O)
        Of a convolution in any dimension.
    b : array (O,) or None
    running_mean, running_var, weight, bias, eps
        As in :func:`batch_norm`, with C = O.
    layout : {"NCHW", "NHWC"}
        As in :func:`fastconv.conv2d`.

    Returns
    -------
    (w', b') : arrays of the shapes of w and (O,), in the type that w and b promote to

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what was given and what was expected.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> w, mean, var = np.ones((2, 3, 3, 3)), np.zeros(2), np.array([1.0, 4.0])
    >>> folded = fastconv.fold_batch_norm(w, None, mean, var, eps=0)
    >>> fastconv.conv2d(np.ones((1, 3, 3, 3)), *folded).ravel()
    array([27. , 13.5])
    """
    w = as_array("w", w)
    last = choice("layout", layout, LAYOUTS) == "NHWC"
    if not 3 <= w.ndim <= 5:
        raise ValueError(f"w: expected 3 to 5 axes, got shape {w.shape}")
    outputs = w.shape[-1 if last else 0]
    b = None if b is None else as_array("b", b)
    _, dtype = common_dtypes(w=w, b=b)
    shift = _parameter("b", b, outputs)
    statistics = _statistics(running_mean, running_var, outputs)
    given = shift, _parameter("weight", weight, outputs), _parameter("bias", bias, outputs)
    mean, var = (a.astype(np.float64) for a in statistics)
    shift, gain, offset = (None if a is None else a.astype(np.float64) for a in given)
    with np.errstate(all="ignore"):
        scale = (1.0 if gain is None else gain) / np.sqrt(var + finite("eps", eps, 0))
        folded = w * (scale if last else scale.reshape(-1, *(1,) * (w.ndim - 1)))
        shift = ((0.0 if shift is None else shift) - mean) * scale
        shift = shift if offset is None else shift + offset
        return folded.astype(dtype, copy=False), shift.astype(dtype, copy=False)


def batch_norm_backward(
    dy: Any, x: Any, weight: Any, saved: Saved, *, training: bool = True
) -> tuple[Array, Array, Array]:
    """Gradients of :func:`batch_norm_train`, or with training=False of :func:`batch_norm`.

    With xhat = (x - mean)*invstd and means over N and the pixels:
    dx = weight*invstd*(dy - mean(dy) - xhat*mean(dy*xhat)), dweight = sum dy*xhat, dbias = sum dy; in evaluation mode the
    statistics are constants and dx = weight*invstd*dy.

    Parameters
    ----------
    dy, x : arrays of one shape (N, C, ...)
    weight : array (C,) or None
    saved : (mean, invstd)

    Returns
    -------
    (dx, dweight, dbias) : arrays of the shapes of x, (C,) and (C,)
    """
    if not is_sequence(saved) or len(saved) != 2 or any(s is None for s in saved):
        raise ValueError(f"saved: expected (mean, invstd), got {saved!r}")
    given = ("batch_norm_dx", training), (dy, x, weight, *saved), None
    found: tuple[Array, Array, Array] | None = again(*given)
    if found is not None:
        return found
    dy, x = as_array("dy", dy), as_array("x", x)
    channels = _channels(x)
    if dy.shape != x.shape:
        raise ValueError(f"dy: expected the shape of x {x.shape}, got {dy.shape}")
    mean, invstd = (_parameter("saved", s, channels) for s in saved)
    w = _parameter("weight", weight, channels)
    dtype, result_dtype = common_dtypes(dy=dy, x=x)
    arrays = contiguous(dy, dtype), contiguous(x, dtype), w, mean, invstd
    dx = result("x", x.shape, dtype)
    dweight, dbias = result("x", (channels,), dtype), result("x", (channels,), dtype)
    dweight[...] = dbias[...] = 0
    constant = not flag("training", training)
    if x.size:
        arguments = (*OPERANDS[:5], constant, *RESULTS, TEAM)
        results = dx, dweight, dbias
        launch_first(given, "batch_norm_dx", x.size, _norm.backward, arguments, arrays, results)
    return (
        deliver(dx, None, result_dtype),
        deliver(dweight, None, result_dtype),
        deliver(dbias, None, result_dtype),
    )
