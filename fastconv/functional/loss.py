# SPDX-License-Identifier: BSD-3-Clause
"""Losses."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv.functional._arrays import (
    Array,
    as_array,
    common_dtypes,
    contiguous,
    deliver,
    result,
    slices,
)
from fastconv.functional._calls import Given, again, launch_first
from fastconv.kernels import elementwise
from fastconv.kernels import loss as _loss
from fastconv.kernels.call import OPERANDS, RESULTS, TEAM
from fastconv.problem import choice, integer, number

REDUCTIONS = ("mean", "sum", "none")


class _Loss(NamedTuple):
    """What a loss and its gradient are computed with, but arrays; a row is one outer and one inner index of the logits."""

    shape: tuple[int, ...]  # of the rows' losses
    outer: int
    classes: int
    inner: int
    reduction: str
    smoothing: float
    ignored: int
    result_dtype: np.dtype[Any]

    @property
    def loss_shape(self) -> tuple[int, ...]:
        """The shape of the loss as it is given back."""
        return self.shape if self.reduction == "none" else ()


def _check(given: Given) -> tuple[tuple[Array, Array, Array | None], _Loss]:
    """The arrays of a call as kernels take them, and what else it says."""
    (_, ignore_index, reduction, smoothing), (logits, target, weight), _ = given
    logits, target = as_array("logits", logits), as_array("target", target)
    reduction = choice("reduction", reduction, REDUCTIONS)
    smoothing = number("label_smoothing", smoothing, 0, 1)
    ignored = integer("ignore_index", ignore_index)
    axis = min(logits.ndim, 2) - 1
    if logits.ndim == 0 or logits.shape[axis] == 0:
        raise ValueError(
            f"logits: expected (C,), (N, C) or (N, C, ...) with classes, got shape {logits.shape}"
        )
    dtype, result_dtype = common_dtypes(logits=logits)
    before, classes, after = logits.shape[:axis], logits.shape[axis], logits.shape[axis + 1 :]
    weight = None if weight is None else as_array("weight", weight)
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"weight: expected shape ({classes},), got {weight.shape}")
    if target.shape == logits.shape and target.dtype.kind == "f":
        target = contiguous(target, dtype)
    else:
        target = _class_target(target, before + after, logits.shape)
    arrays = (
        contiguous(logits, dtype),
        target,
        None if weight is None else contiguous(weight, dtype),
    )
    sizes = math.prod(before), classes, math.prod(after)
    return arrays, _Loss(before + after, *sizes, reduction, smoothing, ignored, result_dtype)


def _class_target(target: Array, rows: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Classes of the rows, as kernels take them; they check the numbers."""
    if target.dtype.kind not in "iu":
        raise TypeError(
            f"target: expected integer classes of shape {rows} or probabilities of shape {shape}, "
            f"got {target.dtype} of shape {target.shape}"
        )
    if target.shape != rows:
        raise ValueError(f"target: expected shape {rows}, got {target.shape}")
    if target.dtype == np.uint64:
        target = np.asarray(np.minimum(target, np.uint64(2**63 - 1)))  # as wrong, and an int64
    return contiguous(target, np.dtype(np.int64))


def cross_entropy(
    logits: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Cross-entropy of softmax(logits) against the target.

    loss_r = -sum_c t_rc * log softmax(logits_r)_c, t = weight_c * ((1 - s)*onehot + s/C) for class targets; "mean" divides the
    sum by the targets' summed class weights (for probability targets by their number: N times the size of what follows C).

    Parameters
    ----------
    logits : array (C,), (N, C) or (N, C, ...)
    target : integer array of logits' shape without C, or probabilities of logits' shape
    weight : array (C,), optional
    ignore_index : int
        Rows with this class count for nothing.
    reduction : {"mean", "sum", "none"}
    label_smoothing : float in [0, 1]

    Returns
    -------
    scalar of logits' dtype, or for "none" an array of logits' shape without C

    Raises
    ------
    ValueError, TypeError
        For classes outside [0, C) other than ignore_index, and for wrong shapes.
    """
    options = ("cross_entropy", ignore_index, reduction, label_smoothing)
    given = options, (logits, target, weight), None
    found = again(*given)
    if found is not None:
        return found[()]
    arrays, how = _check(given)
    loss = result("logits", how.loss_shape, arrays[0].dtype)
    arguments = how, *OPERANDS[:3], RESULTS[0], TEAM
    launch_first(given, "cross_entropy", arrays[0].size, _losses, arguments, arrays, (loss,))
    return deliver(loss, None, how.result_dtype)[()]


def _losses(
    how: _Loss, logits: Array, target: Array, weight: Array | None, loss: Array, team: int
) -> None:
    """The log-probabilities are those of a few images at a time."""
    shape, numbers = (how.outer, how.classes, how.inner), (how.smoothing, how.ignored)
    x, t = logits.reshape(shape), target.reshape(how.outer, -1 if target.size else 0)
    each = loss.reshape(how.outer, how.inner) if how.reduction == "none" else None
    total = divisor = 0.0
    for part in slices(how.outer, logits.nbytes // max(how.outer, 1)):
        images = part.stop - part.start
        sizes = images, how.classes, how.inner
        log_p = result("logits", sizes, logits.dtype)
        elementwise.softmax(True, log_p, x[part], None, None, *sizes, team)
        y = None if each is None else each[part]
        found = _loss.losses(log_p, t[part], weight, *numbers, *sizes, y)
        total, divisor = total + found[0], divisor + found[1]
    if how.reduction == "mean":
        total = total / divisor if divisor else math.nan
    if each is None:
        loss[()] = total


def cross_entropy_backward(
    logits: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    dloss: Any = 1.0,
) -> Array:
    """Gradient of :func:`cross_entropy`: dlogits_rc = dloss_r * (softmax_rc * sum_k t_rk - t_rc), over the divisor of "mean".

    Parameters
    ----------
    logits, target, weight, ignore_index, reduction, label_smoothing : as in cross_entropy
    dloss : scalar, or with "none" an array of the loss' shape

    Returns
    -------
    array like logits
    """
    options = ("cross_entropy_dx", ignore_index, reduction, label_smoothing)
    given = options, (logits, target, weight), None
    found: Array | None = again(*given, (dloss,))
    if found is not None:
        return found
    arrays, how = _check(given)
    dx = result("logits", arrays[0].shape, arrays[0].dtype)
    arguments = how, *OPERANDS[:4], RESULTS[0], TEAM
    operands = *arrays, dloss
    launch_first(given, options[0], dx.size, _gradient, arguments, operands, (dx,))
    return deliver(dx, None, how.result_dtype)


def _gradient(
    how: _Loss,
    logits: Array,
    target: Array,
    weight: Array | None,
    dloss: Any,
    dx: Array,
    team: int,
) -> None:
    """dx_rc = scale_r * (p_rc * sum_k t_rk - t_rc)"""
    dloss = contiguous(as_array("dloss", dloss), np.dtype(np.float64))
    if dloss.shape not in (how.loss_shape, ()):
        raise ValueError(f"dloss: expected shape {how.loss_shape}, got {dloss.shape}")
    sizes = how.outer, how.classes, how.inner
    t = target, weight, how.smoothing, how.ignored, *sizes
    rows = how.outer, how.inner
    scale, factor = result("logits", rows, np.dtype(np.float64)), result("logits", rows, dx.dtype)
    _loss.factors(*t, dloss, how.reduction == "mean", scale, factor)
    elementwise.softmax(False, dx, logits, None, factor, *sizes, team)
    _loss.subtract(*t, scale, dx)
