# SPDX-License-Identifier: BSD-3-Clause
"""The layers of Stanford's CS231n, assignment 2, under their names: arrays NCHW, ``(out, cache)``.

Two ways in. Replace the course's import by ``from fastconv.compat.cs231n import *``, which brings
every name of ``__all__``. Or call :func:`install` before the course's code is imported: its
``fast_layers`` and ``im2col_cython`` then are these, nothing needs to be compiled, and its other
modules stay as they are.

All the ways the course computes a convolution or a pooling (naive, im2col, strides, fast, reshape)
are one function here. Sizes which the stride does not divide are rounded down; pooling windows may
overlap; any memory order and any mixture of float types will do. Results have NumPy's promotion of
the operands' types: float64 for the course's arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from fastconv import functional
from fastconv.functional._arrays import Array, as_array
from fastconv.problem import choice, finite, integer, output_size

# install() gives these to <package>.<key>, the modules which the course compiles or builds on it.
MODULES = {
    "fast_layers": (
        "conv_backward_fast",
        "conv_backward_im2col",
        "conv_backward_strides",
        "conv_forward_fast",
        "conv_forward_im2col",
        "conv_forward_strides",
        "max_pool_backward_fast",
        "max_pool_backward_im2col",
        "max_pool_backward_reshape",
        "max_pool_forward_fast",
        "max_pool_forward_im2col",
        "max_pool_forward_reshape",
    ),
    "im2col_cython": ("col2im_6d_cython", "col2im_cython", "im2col_cython"),
}

__all__ = [
    *MODULES["fast_layers"],
    *MODULES["im2col_cython"],
    "batchnorm_backward",
    "batchnorm_forward",
    "conv_backward_naive",
    "conv_forward_naive",
    "max_pool_backward_naive",
    "max_pool_forward_naive",
    "spatial_batchnorm_backward",
    "spatial_batchnorm_forward",
]

Cache = tuple[Any, ...]


# --------------------------------------------------------------------------------- parameters


def _parameter(name: str, params: Mapping[str, Any], key: str) -> Any:
    if not isinstance(params, Mapping):
        raise TypeError(f"{name}: expected a dictionary, got {params!r}")
    if key not in params:
        raise ValueError(f"{name}: the key {key!r} is missing, got {sorted(params)}")
    return params[key]


def _kept(cache: Any, count: int) -> Cache:
    """What the forward function kept."""
    if not isinstance(cache, tuple) or len(cache) != count:
        raise TypeError(f"cache: expected what the forward function returned, got {cache!r}")
    return cache


def _of_shape(name: str, value: Any, shape: tuple[int, ...], whose: str = "") -> Array:
    """`value` as an array of this shape; the functions below have other names for it."""
    array = as_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name}: expected the shape {shape}{whose}, got {array.shape}")
    return array


def _like_out(dout: Any, shape: tuple[int, ...]) -> Array:
    return _of_shape("dout", dout, shape, " of out")


def _field(
    height: Any, width: Any, padding: Any, stride: Any, names: Sequence[str]
) -> tuple[tuple[int, int], int, int]:
    """((height, width), padding, stride) of the windows whose arguments have these names."""
    values = zip(names, (height, width, padding, stride), (1, 1, 0, 1), strict=True)
    hh, ww, pad, step = (integer(name, value, least) for name, value, least in values)
    return (hh, ww), pad, step


def _conv_numbers(conv_param: Mapping[str, Any]) -> tuple[int, int]:
    """(stride, pad)."""
    stride = integer("conv_param['stride']", _parameter("conv_param", conv_param, "stride"), 1)
    return stride, integer("conv_param['pad']", _parameter("conv_param", conv_param, "pad"), 0)


def _pool_numbers(pool_param: Mapping[str, Any]) -> tuple[tuple[int, int], int]:
    """((pool_height, pool_width), stride)."""
    height, width, stride = (
        integer(f"pool_param[{key!r}]", _parameter("pool_param", pool_param, key), 1)
        for key in ("pool_height", "pool_width", "stride")
    )
    return (height, width), stride


# -------------------------------------------------------------------------------- convolution


def conv_forward_fast(x: Any, w: Any, b: Any, conv_param: Mapping[str, Any]) -> tuple[Array, Cache]:
    """Convolution with zero padding (the kernel is not flipped).

    out[n, f, i, j] = sum over c, k, l of x[n, c, i*stride + k - pad, j*stride + l - pad]
    * w[f, c, k, l] + b[f]

    Parameters
    ----------
    x : array (N, C, H, W)
    w : array (F, C, HH, WW)
    b : array (F,)
    conv_param : {"stride": int >= 1, "pad": int >= 0}

    Returns
    -------
    out : array (N, F, 1 + (H + 2*pad - HH)//stride, 1 + (W + 2*pad - WW)//stride)
    cache : (x, w, b, conv_param)

    Raises
    ------
    ValueError
        A key of conv_param missing or out of range, or shapes which do not fit each other.
    TypeError
        A stride or pad that is no integer, or arrays without real numbers.
    """
    stride, pad = _conv_numbers(conv_param)
    return functional.conv2d(x, w, b, stride, pad), (x, w, b, conv_param)


def conv_backward_fast(dout: Any, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients of :func:`conv_forward_fast`.

    Parameters
    ----------
    dout : array like out
    cache : of conv_forward_fast

    Returns
    -------
    (dx, dw, db) : arrays like x, w and b
        By the formulas of :func:`fastconv.conv2d_backward`.

    Raises
    ------
    ValueError
        When dout has not the shape of out.
    """
    x, w, _, conv_param = _kept(cache, 4)
    stride, pad = _conv_numbers(conv_param)
    x, w = as_array("x", x), as_array("w", w)
    sizes = zip(x.shape[2:], w.shape[2:], strict=False)
    plane = (output_size(size, kernel, stride, (pad, pad), 1) for size, kernel in sizes)
    dout = _like_out(dout, (*x.shape[:1], *w.shape[:1], *plane))
    gradients: Any = functional.conv2d_backward(dout, x, w, stride, pad)
    return gradients


conv_forward_naive = conv_forward_im2col = conv_forward_strides = conv_forward_fast
conv_backward_naive = conv_backward_im2col = conv_backward_strides = conv_backward_fast


# ------------------------------------------------------------------------------------ pooling


def max_pool_forward_fast(x: Any, pool_param: Mapping[str, Any]) -> tuple[Array, Cache]:
    """Max pooling without padding.

    out[n, c, i, j] = max over k, l of x[n, c, i*stride + k, j*stride + l]

    Parameters
    ----------
    x : array (N, C, H, W)
    pool_param : {"pool_height": int, "pool_width": int, "stride": int}, each at least 1

    Returns
    -------
    out : array (N, C, 1 + (H - pool_height)//stride, 1 + (W - pool_width)//stride)
    cache : for :func:`max_pool_backward_fast`

    Raises
    ------
    ValueError
        A key of pool_param missing or out of range, or windows larger than x.
    TypeError
        A size or stride that is no integer, or an array without real numbers.
    """
    window, stride = _pool_numbers(pool_param)
    out, indices = functional.max_pool2d(x, window, stride, return_indices=True)
    return out, (indices, np.shape(x), pool_param)


def max_pool_backward_fast(dout: Any, cache: Cache) -> Array:
    """Gradient of :func:`max_pool_forward_fast`.

    Each window's gradient goes to its maximum; of several equal ones, to the first in row order
    alone. The course's reshape variant divides it among them instead.

    Parameters
    ----------
    dout : array like out
    cache : of max_pool_forward_fast

    Returns
    -------
    dx : array like x

    Raises
    ------
    ValueError
        When dout has not the shape of out.
    """
    indices, x_shape, pool_param = _kept(cache, 3)
    dout = _like_out(dout, np.shape(indices))
    return functional.max_pool2d_backward(dout, indices, x_shape, *_pool_numbers(pool_param))


max_pool_forward_naive = max_pool_forward_im2col = max_pool_forward_reshape = max_pool_forward_fast
max_pool_backward_naive = max_pool_backward_im2col = max_pool_backward_fast
max_pool_backward_reshape = max_pool_backward_fast


# -------------------------------------------------------------------------- batch normalisation


def spatial_batchnorm_forward(
    x: Any, gamma: Any, beta: Any, bn_param: MutableMapping[str, Any]
) -> tuple[Array, Cache]:
    """Batch normalisation of each channel over images and pixels; batchnorm_forward is the same.

    out = gamma * (x - mean) / sqrt(var + eps) + beta

    In "train" mode mean and var are those of x, var divided by their number (biased), and

    running = momentum * running + (1 - momentum) * new

    is written into bn_param for both. In "test" mode the running ones are used.

    Parameters
    ----------
    x : array (N, C, H, W) or (N, C)
    gamma, beta : arrays (C,)
    bn_param : dict
        "mode", "train" or "test", must be there. "eps" is 1e-5 by default, "momentum", the share of
        the old value, 0.9, and "running_mean" and "running_var", arrays (C,), zeros.

    Returns
    -------
    out : array like x
    cache : for :func:`spatial_batchnorm_backward`

    Raises
    ------
    ValueError
        No or an unknown mode, shapes which do not fit, or "train" with one value a channel.
    """
    mode = choice("bn_param['mode']", _parameter("bn_param", bn_param, "mode"), ("train", "test"))
    eps = finite("bn_param['eps']", bn_param.get("eps", 1e-5), 0)
    momentum = finite("bn_param['momentum']", bn_param.get("momentum", 0.9))
    x = as_array("x", x)
    if x.ndim < 2:
        raise ValueError(f"x: expected (N, C) or (N, C, H, W), got shape {x.shape}")
    channels = x.shape[1:2]
    gamma, beta = _of_shape("gamma", gamma, channels), _of_shape("beta", beta, channels)
    zeros = np.zeros(channels)
    running_mean = as_array("bn_param['running_mean']", bn_param.get("running_mean", zeros))
    running_var = as_array("bn_param['running_var']", bn_param.get("running_var", zeros))
    if mode == "train":
        out, saved = functional.batch_norm_train(x, gamma, beta, eps=eps)
        mean, var = saved[0], np.maximum(saved[1] ** -2 - eps, 0.0)
        running_mean = momentum * running_mean + (1 - momentum) * mean
        running_var = momentum * running_var + (1 - momentum) * var
    else:
        out = functional.batch_norm(x, running_mean, running_var, gamma, beta, eps=eps)
        saved = running_mean, 1 / np.sqrt(running_var + eps)
    bn_param["running_mean"], bn_param["running_var"] = running_mean, running_var
    return out, (x, gamma, saved, mode == "train")


def spatial_batchnorm_backward(dout: Any, cache: Cache) -> tuple[Array, Array, Array]:
    """Gradients of :func:`spatial_batchnorm_forward`; batchnorm_backward is the same.

    After a forward pass in "test" mode the statistics count as constants.

    Parameters
    ----------
    dout : array like out
    cache : of spatial_batchnorm_forward

    Returns
    -------
    (dx, dgamma, dbeta) : arrays like x, gamma and beta
        By the formulas of :func:`fastconv.batch_norm_backward`.

    Raises
    ------
    ValueError
        When dout has not the shape of out.
    """
    x, gamma, saved, training = _kept(cache, 4)
    dout = _like_out(dout, np.shape(x))
    return functional.batch_norm_backward(dout, x, gamma, saved, training=training)


batchnorm_forward = spatial_batchnorm_forward
batchnorm_backward = spatial_batchnorm_backward


# ------------------------------------------------------------------------------------- columns


def im2col_cython(x: Any, field_height: int, field_width: int, padding: int, stride: int) -> Array:
    """Every window of every image as a column.

    cols[(c, k, l), (i, j, n)] = x[n, c, i*stride + k - padding, j*stride + l - padding]

    with the last of (i, j, n), the image, changing fastest.

    Parameters
    ----------
    x : array (N, C, H, W)
    field_height, field_width, padding, stride : int

    Returns
    -------
    array (C * field_height * field_width, out_h * out_w * N)

    Raises
    ------
    ValueError
        When x has other axes, or no window fits.
    """
    x = as_array("x", x)
    if x.ndim != 4:
        raise ValueError(f"x: expected (N, C, H, W), got shape {x.shape}")
    names = "field_height", "field_width", "padding", "stride"
    field, padding, stride = _field(field_height, field_width, padding, stride, names)
    _windows(x.shape[2:], field, padding, stride, names)
    cols = functional.unfold(x, field, padding=padding, stride=stride)
    images, rows, windows = cols.shape
    return cols.transpose(1, 2, 0).reshape(rows, windows * images)


def col2im_cython(
    cols: Any,
    N: int,
    C: int,
    H: int,
    W: int,
    field_height: int,
    field_width: int,
    padding: int,
    stride: int,
) -> Array:
    """Add columns back into images: the adjoint of :func:`im2col_cython`.

    Parameters
    ----------
    cols : array (C * field_height * field_width, out_h * out_w * N)
    N, C, H, W : int
        The images' shape.
    field_height, field_width, padding, stride : int

    Returns
    -------
    array (N, C, H, W)

    Raises
    ------
    ValueError
        When the columns do not belong to such images.
    """
    names = "field_height", "field_width", "padding", "stride"
    field, padding, stride = _field(field_height, field_width, padding, stride, names)
    N, C, H, W = _images(N, C, H, W)
    out_h, out_w = _windows((H, W), field, padding, stride, names)
    rows = C * field[0] * field[1]
    cols = _of_shape("cols", cols, (rows, out_h * out_w * N), " for such images")
    cols = cols.reshape(rows, out_h * out_w, N).transpose(2, 0, 1)
    return functional.fold(cols, (H, W), field, padding=padding, stride=stride)


def col2im_6d_cython(
    cols: Any, N: int, C: int, H: int, W: int, HH: int, WW: int, pad: int, stride: int
) -> Array:
    """Add columns with an axis for each index back into images.

    x[n, c, i*stride + k - pad, j*stride + l - pad] += cols[c, k, l, n, i, j]

    Parameters
    ----------
    cols : array (C, HH, WW, N, out_h, out_w)
    N, C, H, W : int
        The images' shape.
    HH, WW, pad, stride : int
        Sizes of the field, padding, stride.

    Returns
    -------
    array (N, C, H, W)

    Raises
    ------
    ValueError
        When the columns do not belong to such images.
    """
    names = "HH", "WW", "pad", "stride"
    (HH, WW), pad, stride = _field(HH, WW, pad, stride, names)
    N, C, H, W = _images(N, C, H, W)
    out_h, out_w = _windows((H, W), (HH, WW), pad, stride, names)
    cols = _of_shape("cols", cols, (C, HH, WW, N, out_h, out_w), " for such images")
    cols = cols.reshape(C * HH * WW, N, out_h * out_w).transpose(1, 0, 2)
    return functional.fold(cols, (H, W), (HH, WW), padding=pad, stride=stride)


def _images(n: Any, c: Any, h: Any, w: Any) -> tuple[int, int, int, int]:
    """The images' shape."""
    return integer("N", n, 0), integer("C", c, 0), integer("H", h, 1), integer("W", w, 1)


def _windows(
    sizes: Sequence[int], field: tuple[int, int], padding: int, stride: int, names: Sequence[str]
) -> tuple[int, int]:
    """(out_h, out_w) of the windows whose arguments have these names."""
    pads = (padding, padding)
    height, width = (output_size(n, k, stride, pads, 1) for n, k in zip(sizes, field, strict=True))
    for name, kernel, size, count in zip(names, field, sizes, (height, width), strict=False):
        if count < 1:
            raise ValueError(
                f"{name}: expected at most {size} pixels and {padding} of padding on both sides, got {kernel}"
            )
    return height, width


# ------------------------------------------------------------------------------------ installing


class _Installed(ModuleType):
    """A module with the given names of this one; it remembers the module whose place it took."""

    def __init__(
        self, full_name: str, names: tuple[str, ...], displaced: ModuleType | None
    ) -> None:
        super().__init__(full_name, f"{full_name}, from {__name__}.")
        self.__dict__.update({name: globals()[name] for name in names})
        self.__all__ = list(names)
        self.__displaced__ = displaced


def install(package: str = "cs231n") -> None:
    """Make ``<package>.fast_layers`` and ``<package>.im2col_cython`` the functions of this module.

    Call it before course code imports them: names that ``from .fast_layers import *`` has copied
    already stay the old ones. The package need not be importable yet; one that is already imported
    gets the modules as attributes too. Installing again is harmless, and adds these attributes to a
    package imported in the meantime.

    Parameters
    ----------
    package : str
        Full name of the course's package.

    Raises
    ------
    TypeError, ValueError
        When that is no name of a package.
    """
    for full_name, names in _modules(package):
        module = sys.modules.get(full_name)
        if not isinstance(module, _Installed):
            module = sys.modules[full_name] = _Installed(full_name, names, module)
        _set_attribute(full_name, module)


def uninstall(package: str = "cs231n") -> None:
    """Undo :func:`install`: the modules that were there before come back. Harmless without it.

    Parameters
    ----------
    package : str
        As in install.
    """
    for full_name, _ in _modules(package):
        module = sys.modules.get(full_name)
        if not isinstance(module, _Installed):
            continue
        if module.__displaced__ is None:
            del sys.modules[full_name]
        else:
            sys.modules[full_name] = module.__displaced__
        _set_attribute(full_name, module.__displaced__)


def _modules(package: str) -> list[tuple[str, tuple[str, ...]]]:
    """(full name, names in it) of each module to install."""
    if not isinstance(package, str):
        raise TypeError(f"package: expected a name, got {package!r}")
    if not all(part.isidentifier() for part in package.split(".")):
        raise ValueError(f"package: expected the name of a package, got {package!r}")
    return [(f"{package}.{name}", names) for name, names in MODULES.items()]


def _set_attribute(full_name: str, module: ModuleType | None) -> None:
    """Let the module's package, where it is imported, hold this module, or nothing for None."""
    package, _, name = full_name.rpartition(".")
    parent = sys.modules.get(package)
    if parent is None:
        return
    if module is not None:
        setattr(parent, name, module)
    elif hasattr(parent, name):
        delattr(parent, name)
