# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalisation layers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastconv import functional as F
from fastconv.nn.module import Array, Module, Parameter, accumulate, data_of
from fastconv.problem import elements, finite, flag, float_dtype, integer


class _BatchNorm(Module):
    """See :func:`fastconv.batch_norm_train` and, in evaluation mode, :func:`fastconv.batch_norm`.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float
        Added to the variance.
    momentum : float or None
        The share of the *new* value in the running statistics, as in PyTorch; None averages all
        batches equally.
    affine : bool
        Whether there are a weight and a bias.
    track_running_stats : bool
        False uses the statistics of the batch in evaluation mode too.
    dtype : float32 or float64
        Of parameters and buffers.

    Attributes
    ----------
    weight, bias : Parameter (C,) or None
    running_mean, running_var : array (C,) or None
    num_batches_tracked : int64 array () or None

    Raises
    ------
    ValueError
        When a call has the wrong number of axes or, in training, one value per channel.
    """

    axes: ClassVar[dict[int, str]]
    buffer_names = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        c = self.num_features = integer("num_features", num_features, 1)
        elements("num_features", (c,))
        self.eps = finite("eps", eps, 0)
        self.momentum = None if momentum is None else finite("momentum", momentum)
        affine, tracked = flag("affine", affine), flag("track_running_stats", track_running_stats)
        dtype = float_dtype(dtype)
        self.weight = Parameter(np.ones(c, dtype)) if affine else None
        self.bias = Parameter(np.zeros(c, dtype)) if affine else None
        self.running_mean = np.zeros(c, dtype) if tracked else None
        self.running_var = np.ones(c, dtype) if tracked else None
        self.num_batches_tracked = np.array(0, np.int64) if tracked else None

    def forward(self, x: Any) -> Array:
        if np.ndim(x) not in self.axes:
            expected = " or ".join(self.axes.values())
            raise ValueError(f"x: {type(self).__name__} takes {expected}, got shape {np.shape(x)}")
        return self._train(x) if self.training or self.running_mean is None else self._evaluate(x)

    def _train(self, x: Any) -> Array:
        running = (self.running_mean, self.running_var)
        y, saved = F.batch_norm_train(
            x, data_of(self.weight), data_of(self.bias), *running, self._share(), self.eps
        )
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        self._keep(x, saved, True)
        return y  # type: ignore[no-any-return]

    def _share(self) -> float:
        """How much the coming batch counts in the running statistics."""
        if self.momentum is not None or self.num_batches_tracked is None:
            return self.momentum or 0.0
        return 1.0 / (int(self.num_batches_tracked) + 1)

    def _evaluate(self, x: Any) -> Array:
        mean, var = np.array(self.running_mean), np.asarray(self.running_var, np.float64)
        y = F.batch_norm(
            x, mean, self.running_var, data_of(self.weight), data_of(self.bias), self.eps
        )
        self._keep(x, (mean, 1 / np.sqrt(var + self.eps)), False)
        return y  # type: ignore[no-any-return]

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        x, saved, training = self._take()
        dx, dweight, dbias = F.batch_norm_backward(
            dy, x, data_of(self.weight), saved, training=training
        )
        accumulate(self.weight, dweight)
        accumulate(self.bias, dbias)
        return dx  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.weight is not None}, track_running_stats={self.running_mean is not None}"
        )


class BatchNorm1d(_BatchNorm):
    __doc__ = f"Batch normalisation of (N, C) or (N, C, L).\n\n    {_BatchNorm.__doc__}"
    axes: ClassVar[dict[int, str]] = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm):
    __doc__ = f"Batch normalisation of (N, C, H, W).\n\n    {_BatchNorm.__doc__}"
    axes: ClassVar[dict[int, str]] = {4: "(N, C, H, W)"}


class BatchNorm3d(_BatchNorm):
    __doc__ = f"Batch normalisation of (N, C, D, H, W).\n\n    {_BatchNorm.__doc__}"
    axes: ClassVar[dict[int, str]] = {5: "(N, C, D, H, W)"}
