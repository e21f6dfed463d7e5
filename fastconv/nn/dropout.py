# SPDX-License-Identifier: BSD-3-Clause
"""Dropout layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from fastconv import functional as F
from fastconv.functional._arrays import generator
from fastconv.nn.init import Rng
from fastconv.nn.module import Array, Module
from fastconv.problem import number


class _Dropout(Module):
    op: ClassVar[Callable[..., Any]]
    op_backward: ClassVar[Callable[..., Any]]

    def __init__(self, p: float = 0.5, *, rng: Rng = None) -> None:
        self.p = number("p", p, 0, 1)
        self.rng = generator(rng)

    def forward(self, x: Any) -> Array:
        y, mask = type(self).op(x, self.p, self.training, self.rng)
        self._keep(mask, self.training)
        return y  # type: ignore[no-any-return]

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        mask, training = self._take()
        return type(self).op_backward(dy, mask, self.p, training) if needs_dx else None

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout(_Dropout):
    """In training, zero elements with probability `p` and scale the others by ``1/(1 - p)``.

    `rng` is a NumPy generator, a seed or None.
    """

    op = staticmethod(F.dropout)
    op_backward = staticmethod(F.dropout_backward)


class Dropout2d(_Dropout):
    """:class:`Dropout` of whole channels of (N, C, H, W)."""

    op = staticmethod(F.dropout2d)
    op_backward = staticmethod(F.dropout2d_backward)
