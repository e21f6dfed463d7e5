# SPDX-License-Identifier: BSD-3-Clause
"""Loss layers: ``value = loss(logits, target)``, then ``dlogits = loss.backward()``."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from fastconv import functional as F
from fastconv.functional._arrays import as_array
from fastconv.functional.loss import REDUCTIONS
from fastconv.nn.module import Array, Module
from fastconv.problem import choice, integer, number


class CrossEntropyLoss(Module):
    """Cross entropy of softmax(logits); see :func:`fastconv.cross_entropy`.

    Parameters
    ----------
    weight : array (C,), optional
        One weight for each class; a buffer.
    ignore_index : int
        Targets of this class count for nothing.
    reduction : {"mean", "sum", "none"}
    label_smoothing : float in [0, 1]
    """

    buffer_names = ("weight",)
    option_names = ("weight", "ignore_index", "reduction", "label_smoothing")

    def __init__(
        self,
        weight: npt.ArrayLike | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        self.weight = None if weight is None else as_array("weight", weight)
        self.ignore_index = integer("ignore_index", ignore_index)
        self.reduction = choice("reduction", reduction, REDUCTIONS)
        self.label_smoothing = number("label_smoothing", label_smoothing, 0, 1)

    def forward(self, logits: Any, target: Any) -> Any:  # type: ignore[override]
        """Return the loss of logits (N, C) or (N, C, *S) for integer or probability targets."""
        loss = F.cross_entropy(logits, target, **self._options())
        self._keep(logits, target)
        return loss

    def backward(self, dloss: Any = 1.0, needs_dx: bool = True) -> Array | None:
        """Gradient of the logits; `dloss` is a scalar, or an array with ``reduction="none"``."""
        logits, target = self._take()
        if not needs_dx:
            return None
        return F.cross_entropy_backward(logits, target, dloss=dloss, **self._options())

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
