# SPDX-License-Identifier: BSD-3-Clause
"""Losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.functional._arrays import (
    Array,
    as_array,
    common_dtypes,
    contiguous,
    result,
    slices,
)
from fastconv.functional.activation import log_softmax, scaled_softmax
from fastconv.problem import choice, integer, number

REDUCTIONS = ("mean", "sum", "none")


class _CrossEntropy:
    """The pieces that the loss and its gradient share: logits, targets, weights.

    The loss of a row is -sum_c t_c * log p_c. With class targets t is (1 - s)*onehot + s/C times the class weights, which is
    kept as its two parts; with probability targets it is the smoothed target times the class weights, kept as the array it is.
    """

    def __init__(
        self,
        logits: Any,
        target: Any,
        weight: Any,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
    ) -> None:
        logits, target = as_array("logits", logits), as_array("target", target)
        self.reduction = choice("reduction", reduction, REDUCTIONS)
        label_smoothing = number("label_smoothing", label_smoothing, 0, 1)
        ignore_index = integer("ignore_index", ignore_index)
        if logits.ndim == 0 or logits.shape[min(logits.ndim, 2) - 1] == 0:
            raise ValueError(
                f"logits: expected (C,), (N, C) or (N, C, ...) with classes, got shape {logits.shape}"
            )
        self.dtype, self.result_dtype = common_dtypes(logits=logits)
        self.axis = 0 if logits.ndim == 1 else 1
        self.shape = logits.shape
        self.classes = logits.shape[self.axis]
        self.outer = logits.shape[: self.axis] + logits.shape[self.axis + 1 :]
        self.weight = self._class_weights(weight)
        self.logits = contiguous(logits, self.dtype)
        self.t: Array | None = None
        if target.shape == logits.shape and target.dtype.kind == "f":
            self._from_probabilities(target, label_smoothing)
        else:
            self._from_classes(target, ignore_index, label_smoothing)

    def _class_weights(self, weight: Any) -> Array:
        if weight is None:
            return np.ones(self.classes, dtype=self.dtype)
        array = as_array("weight", weight)
        if array.shape != (self.classes,):
            raise ValueError(f"weight: expected shape ({self.classes},), got {array.shape}")
        return array.astype(self.dtype)

    def _from_probabilities(self, target: Array, smoothing: float) -> None:
        t = target.astype(self.dtype) * (1 - smoothing) + smoothing / self.classes
        self.t = (t * self._along(self.weight)).astype(self.dtype)
        self.divisor = float(math.prod(self.outer))

    def _from_classes(self, target: Array, ignore_index: int, smoothing: float) -> None:
        if target.dtype.kind not in "iu":
            raise TypeError(
                f"target: expected integer classes of shape {self.outer} or probabilities of shape {self.shape}, "
                f"got {target.dtype} of shape {target.shape}"
            )
        if target.shape != self.outer:
            raise ValueError(f"target: expected shape {self.outer}, got {target.shape}")
        kept = target != ignore_index
        wrong = kept & ((target < 0) | (target >= self.classes))
        if wrong.any():
            raise ValueError(
                f"target: expected classes in [0, {self.classes}), got {int(target[wrong][0])}"
            )
        safe = np.where(kept, target, 0).astype(np.intp)
        self.kept = kept
        self.picked = np.expand_dims(safe, self.axis)  # the index of take_along_axis
        chosen = self.weight[safe] * kept
        self.onehot = (1 - smoothing) * chosen  # t's part at the target ...
        self.everywhere = smoothing / self.classes * self.weight  # ... and in each class
        self.divisor = float(chosen.sum(dtype=np.float64))

    def _along(self, per_class: Array) -> Array:
        """A value a class, to be broadcast over the logits."""
        return per_class.reshape((-1,) + (1,) * (len(self.shape) - 1 - self.axis))

    def losses(self) -> Array:
        """-sum_c t_c log p_c of each row; a zero weight silences an infinite log p."""
        log_p = log_softmax(self.logits, self.axis)
        if self.t is not None:
            return -_weighted(self.t, log_p).sum(axis=self.axis, dtype=np.float64)
        at_target = np.take_along_axis(log_p, self.picked, self.axis).reshape(self.outer)
        loss = -_weighted(self.onehot, at_target).astype(np.float64)
        if self.everywhere.any():
            terms = _weighted(self._along(self.everywhere), log_p)
            loss -= terms.sum(axis=self.axis, dtype=np.float64) * self.kept
        return loss

    def gradient(self, scale: Array) -> Array:
        """scale_r * (p_rc * sum_k t_rk - t_rc); scale is one number, or one a row."""
        if self.t is not None:
            total = self.t.sum(axis=self.axis)
        else:
            total = self.onehot + self.everywhere.sum() * self.kept
        factor = contiguous(np.broadcast_to(total * scale, self.outer), self.dtype)
        dz = result("logits", self.shape, self.dtype)
        scaled_softmax(self.logits, factor, dz, self.axis)
        if self.t is not None:
            dz -= self.t * (np.expand_dims(scale, self.axis) if scale.ndim else scale)
            return dz
        at_target = np.take_along_axis(dz, self.picked, self.axis)
        at_target -= np.expand_dims(self.onehot * scale, self.axis)
        np.put_along_axis(dz, self.picked, at_target, self.axis)
        if self.everywhere.any():
            dz -= np.expand_dims(self.kept * scale, self.axis) * self._along(self.everywhere)
        return dz


def _weighted(weights: Array, log_p: Array) -> Array:
    """weights * log_p, zero where the weight is zero, even if log_p is -inf."""
    silent = (weights == 0) & ~np.isfinite(log_p)
    terms: Array = weights * np.where(silent, 0, log_p)
    return terms


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
    sum by the targets' summed class weights (by N for probability targets).

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
    options = (weight, ignore_index, reduction, label_smoothing)
    losses, divisor = [], 0.0
    for part in _parts(logits, target):
        rows = _CrossEntropy(
            logits if part is None else logits[part],
            target if part is None else target[part],
            *options,
        )
        losses.append(rows.losses())
        divisor += rows.divisor
    if reduction == "none":
        whole = losses[0] if len(losses) == 1 else np.concatenate(losses)
        return whole.astype(rows.result_dtype)[()]
    total = sum(part.sum() for part in losses)
    if reduction == "mean":
        total = total / divisor if divisor else np.float64(np.nan)
    return rows.result_dtype.type(total)


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
    options = (weight, ignore_index, reduction, label_smoothing)
    parts = _parts(logits, target)
    if parts == [None]:
        rows = _CrossEntropy(logits, target, *options)
        return _gradient(rows, dloss, rows.divisor)
    divisor = 0.0
    if reduction == "mean":
        divisor = sum(_CrossEntropy(logits[p], target[p], *options).divisor for p in parts)
    gradient = result("logits", logits.shape, common_dtypes(logits=logits)[1])
    for part in parts:
        rows = _CrossEntropy(logits[part], target[part], *options)
        own = np.ndim(dloss) > 0
        gradient[part] = _gradient(rows, dloss[part] if own else dloss, divisor)
    return gradient


def _parts(logits: Any, target: Any) -> list[Any]:
    """Slices of a large batch, so that log-probabilities and weights are kept for a few rows at a time; [None]: the whole."""
    if not (isinstance(logits, np.ndarray) and isinstance(target, np.ndarray)):
        return [None]
    if logits.ndim < 2 or target.ndim < 1 or len(target) != len(logits) or not len(logits):
        return [None]
    parts = list(slices(len(logits), logits.nbytes // len(logits)))
    return parts if len(parts) > 1 else [None]


def _gradient(rows: _CrossEntropy, dloss: Any, divisor: float) -> Array:
    scale = as_array("dloss", dloss).astype(rows.dtype)
    expected = rows.outer if rows.reduction == "none" else ()
    if scale.shape != expected and scale.shape != ():
        raise ValueError(f"dloss: expected shape {expected}, got {scale.shape}")
    if rows.reduction == "mean":
        scale = scale / rows.dtype.type(divisor) if divisor else scale * 0
    return rows.gradient(scale.astype(rows.dtype)).astype(rows.result_dtype, copy=False)
