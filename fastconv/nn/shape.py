# SPDX-License-Identifier: BSD-3-Clause
"""Layers that change a shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import functional as F
from fastconv.nn.module import Array, Module
from fastconv.problem import integer


class Flatten(Module):
    """Merge the axes `start_dim` to `end_dim` into one: (N, C, H, W) -> (N, C*H*W) by default."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim = integer("start_dim", start_dim)
        self.end_dim = integer("end_dim", end_dim)

    def forward(self, x: Any) -> Array:
        y: Array = F.flatten(x, self.start_dim, self.end_dim)
        self._keep(np.shape(x))
        return y

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        (x_shape,) = self._take()
        return F.flatten_backward(dy, x_shape) if needs_dx else None

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"
