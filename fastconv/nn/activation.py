# SPDX-License-Identifier: BSD-3-Clause
"""Activation layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from fastconv import functional as F
from fastconv.nn.module import Array, Module
from fastconv.problem import integer


class _Elementwise(Module):
    """Keeps x: the gradient of an activation is a function of (dy, x)."""

    op: ClassVar[Callable[..., Any]]
    op_backward: ClassVar[Callable[..., Any]]

    def forward(self, x: Any) -> Array:
        y: Array = type(self).op(x)
        self._keep(x)
        return y

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        (x,) = self._take()
        return type(self).op_backward(dy, x) if needs_dx else None


class ReLU(_Elementwise):
    """``max(x, 0)``."""

    op = staticmethod(F.relu)
    op_backward = staticmethod(F.relu_backward)


class Tanh(_Elementwise):
    """``tanh(x)``."""

    op = staticmethod(F.tanh)
    op_backward = staticmethod(F.tanh_backward)


class Sigmoid(_Elementwise):
    """``1 / (1 + exp(-x))``."""

    op = staticmethod(F.sigmoid)
    op_backward = staticmethod(F.sigmoid_backward)


class _AlongAxis(Module):
    """Keeps y: the gradient of a softmax is a function of (dy, y) and the axis."""

    op: ClassVar[Callable[..., Any]]
    op_backward: ClassVar[Callable[..., Any]]

    def __init__(self, dim: int = -1) -> None:
        self.dim = integer("dim", dim)

    def forward(self, x: Any) -> Array:
        y: Array = type(self).op(x, self.dim)
        self._keep(y)
        return y

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        (y,) = self._take()
        return type(self).op_backward(dy, y, self.dim) if needs_dx else None

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmax(_AlongAxis):
    """``exp(x_i) / sum_j exp(x_j)`` along the axis `dim`."""

    op = staticmethod(F.softmax)
    op_backward = staticmethod(F.softmax_backward)


class LogSoftmax(_AlongAxis):
    """``x_i - log sum_j exp(x_j)`` along the axis `dim`."""

    op = staticmethod(F.log_softmax)
    op_backward = staticmethod(F.log_softmax_backward)
