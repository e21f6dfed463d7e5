# SPDX-License-Identifier: BSD-3-Clause
"""Activations and softmax, forward and backward."""

from __future__ import annotations

import math
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
    target,
)
from fastconv.functional._calls import again, launch_first
from fastconv.kernels import elementwise
from fastconv.kernels.call import OPERANDS, RESULTS, TEAM
from fastconv.problem import ACTIVATIONS


def _in_place(out: Array | None, dtype: Any, *operands: Array | None) -> Array | None:
    """`out` where the kernel may overwrite an operand: each is `out` itself or apart from it."""
    if out is None or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.aligned:
        return None
    others = [a for a in operands if a is not None and a is not out]
    if len(others) == len(operands) or any(np.may_share_memory(out, a) for a in others):
        return None
    return out


_FORWARD = object()  # what stands for dy in a forward call: None is a mistake


def _activation(name: str, x: Any, dy: Any = _FORWARD, out: Array | None = None) -> Array:
    """f(x), or with dy the gradient dy * f'(x)."""
    operation = name if dy is _FORWARD else f"{name}_dx"
    given = (operation,), (x, None if dy is _FORWARD else dy), out
    y: Array | None = again(*given)
    if y is not None:
        return y
    x = as_array("x", x)
    dy = None if dy is _FORWARD else as_array("dy", dy)
    if dy is not None and dy.shape != x.shape:
        raise ValueError(f"dy: expected the shape of x {x.shape}, got {dy.shape}")
    dtype, result_dtype = common_dtypes(x=x, dy=dy)
    check_out(out, x.shape, result_dtype)
    xc = contiguous(x, dtype)
    dyc = None if dy is None else contiguous(dy, dtype)
    y = _in_place(out, dtype, x, dy)
    if y is None:
        y = target(out, x.shape, dtype, xc, dyc)
    if y.size:
        arguments = (ACTIVATIONS.index(name), RESULTS[0], *OPERANDS[:2], TEAM)
        launch_first(given, operation, y.size, elementwise.activation, arguments, (xc, dyc), (y,))
    return deliver(y, out, result_dtype)


def relu(x: Any, *, out: Array | None = None) -> Array:
    """max(x, 0); a NaN stays a NaN. `out=x` works in place."""
    return _activation("relu", x, out=out)


def relu_backward(dy: Any, x: Any, *, out: Array | None = None) -> Array:
    """dy where x > 0, else 0; where x is NaN dy passes, as in PyTorch."""
    return _activation("relu", x, dy, out)


def tanh(x: Any, *, out: Array | None = None) -> Array:
    """Hyperbolic tangent, within a few units in the last place. `out=x` works in place."""
    return _activation("tanh", x, out=out)


def tanh_backward(dy: Any, x: Any, *, out: Array | None = None) -> Array:
    """dy * (1 - tanh(x)^2)."""
    return _activation("tanh", x, dy, out)


def sigmoid(x: Any, *, out: Array | None = None) -> Array:
    """1/(1 + exp(-x)), without overflow for any x. `out=x` works in place."""
    return _activation("sigmoid", x, out=out)


def sigmoid_backward(dy: Any, x: Any, *, out: Array | None = None) -> Array:
    """dy * s * (1 - s) with s = sigmoid(x)."""
    return _activation("sigmoid", x, dy, out)


def _softmax(log: bool, x: Any, axis: int, dy: Any = _FORWARD, out: Array | None = None) -> Array:
    """softmax or log_softmax of x; with dy the gradient, x being the forward result."""
    operation = ("log_softmax" if log else "softmax") + ("" if dy is _FORWARD else "_dx")
    given = (operation, axis), (x, None if dy is _FORWARD else dy), out
    found: Array | None = again(*given)
    if found is not None:
        return found
    name = "x" if dy is _FORWARD else "y"
    x = as_array(name, x)
    if x.ndim == 0:
        raise ValueError(f"{name}: expected at least one axis, got a scalar")
    dy = None if dy is _FORWARD else as_array("dy", dy)
    if dy is not None and dy.shape != x.shape:
        raise ValueError(f"dy: expected the shape of y {x.shape}, got {dy.shape}")
    at = axis_of("axis", axis, x.ndim)
    dtype, result_dtype = common_dtypes(x=x, dy=dy)
    check_out(out, x.shape, result_dtype)
    xc = contiguous(x, dtype)
    dyc = None if dy is None else contiguous(dy, dtype)
    y = target(out, x.shape, dtype, xc, dyc)
    if y.size:
        arguments = (log, RESULTS[0], *OPERANDS[:2], None, *_blocks(x.shape, at), TEAM)
        launch_first(given, operation, y.size, elementwise.softmax, arguments, (xc, dyc), (y,))
    return deliver(y, out, result_dtype)


def _blocks(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """The shape as [outer][n][inner], n being the axis."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def softmax(x: Any, axis: int = -1, *, out: Array | None = None) -> Array:
    """exp(x_i - max x) / sum_j exp(x_j - max x) along `axis`."""
    return _softmax(False, x, axis, out=out)


def softmax_backward(dy: Any, y: Any, axis: int = -1, *, out: Array | None = None) -> Array:
    """y * (dy - sum_j dy_j*y_j) along `axis`; y is the softmax."""
    return _softmax(False, y, axis, dy, out)


def log_softmax(x: Any, axis: int = -1, *, out: Array | None = None) -> Array:
    """x_i - max x - log sum_j exp(x_j - max x) along `axis`."""
    return _softmax(True, x, axis, out=out)


def log_softmax_backward(dy: Any, y: Any, axis: int = -1, *, out: Array | None = None) -> Array:
    """dy - exp(y) * sum_j dy_j along `axis`; y is the log_softmax."""
    return _softmax(True, y, axis, dy, out)
