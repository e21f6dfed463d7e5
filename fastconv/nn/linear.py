# SPDX-License-Identifier: BSD-3-Clause
"""The fully connected layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv import functional as F
from fastconv.nn.init import Rng, affine
from fastconv.nn.module import Array, Module, accumulate, data_of
from fastconv.problem import PRECISIONS, choice, integer


class Linear(Module):
    """``y[..., o] = sum_i x[..., i] * weight[o, i] + bias[o]``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    precision : {None, "highest", "high", "medium"}
        As in :func:`fastconv.linear`.
    dtype : float32 or float64
        Of the parameters.
    rng : numpy Generator, seed or None
        Source of the initial weights, uniform in +-1/sqrt(in_features) as in PyTorch.

    Attributes
    ----------
    weight : Parameter (out_features, in_features)
    bias : Parameter (out_features,) or None
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        precision: str | None = None,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        self.in_features = integer("in_features", in_features, 1)
        self.out_features = integer("out_features", out_features, 1)
        self.precision = None if precision is None else choice("precision", precision, PRECISIONS)
        shape = (self.out_features, self.in_features)
        self.weight, self.bias = affine(shape, bias, dtype, rng)

    def forward(self, x: Any) -> Array:
        y: Array = F.linear(x, self.weight.data, data_of(self.bias), precision=self.precision)
        self._keep(x)
        return y

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        (x,) = self._take()
        needs = (needs_dx, True, self.bias is not None)
        dx, dw, db = F.linear_backward(
            dy, x, self.weight.data, needs=needs, precision=self.precision
        )
        accumulate(self.weight, dw)
        accumulate(self.bias, db)
        return dx  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"
