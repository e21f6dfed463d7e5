# SPDX-License-Identifier: BSD-3-Clause
"""Convolution layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastconv import functional as F
from fastconv.algorithms import NAMES
from fastconv.functional.prepared import kept
from fastconv.nn.init import Rng, affine
from fastconv.nn.module import Array, Module, accumulate, data_of
from fastconv.problem import PADDING_MODES, PRECISIONS, choice, integer, integers, resolve_padding


class _Conv(Module):
    rank: ClassVar[int]
    op: ClassVar[Callable[..., Any]]
    op_backward: ClassVar[Callable[..., Any]]
    option_names = (
        *("stride", "padding", "dilation", "groups"),
        *("padding_mode", "precision", "algo"),
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        precision: str | None = None,
        algo: str = "auto",
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        self.in_channels = integer("in_channels", in_channels, 1)
        self.out_channels = integer("out_channels", out_channels, 1)
        self.kernel_size = integers("kernel_size", kernel_size, self.rank, 1)
        self.stride = integers("stride", stride, self.rank, 1)
        self.dilation = integers("dilation", dilation, self.rank, 1)
        # "same" depends on the input: any size will do to see whether the words and numbers are right
        pads = resolve_padding(
            padding, (1,) * self.rank, self.kernel_size, self.stride, self.dilation
        )
        alike = not isinstance(padding, str) and all(low == high for low, high in pads)
        self.padding = tuple(low for low, _ in pads) if alike else padding
        self.groups = integer("groups", groups, 1)
        self.padding_mode = choice("padding_mode", padding_mode, PADDING_MODES)
        self.precision = None if precision is None else choice("precision", precision, PRECISIONS)
        self.algo = choice("algo", algo, ("auto", *NAMES))
        for channels in (self.in_channels, self.out_channels):
            if channels % self.groups:
                raise ValueError(
                    f"groups: {channels} channels cannot be divided into {self.groups} groups"
                )
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self.weight, self.bias = affine(shape, bias, dtype, rng)
        self._packed: Any = None

    def _weights(self) -> Any:
        """In evaluation the weights are packed once, and again when they have changed."""
        self._packed = None if self.training else kept(self._packed, self.weight.data)
        return self.weight.data if self._packed is None else self._packed

    def forward(self, x: Any) -> Array:
        y = type(self).op(x, self._weights(), data_of(self.bias), **self._options())
        self._keep(x)
        return y  # type: ignore[no-any-return]

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        (x,) = self._take()
        needs = (needs_dx, True, self.bias is not None)
        dx, dw, db = type(self).op_backward(dy, x, self.weight.data, needs=needs, **self._options())
        accumulate(self.weight, dw)
        accumulate(self.bias, db)
        return dx  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        rows = (
            ("stride", self.stride, None),
            ("padding", self.padding, (0,) * self.rank),
            ("dilation", self.dilation, (1,) * self.rank),
            ("groups", self.groups, 1),
            ("bias", self.bias is not None, True),
            ("padding_mode", self.padding_mode, "zeros"),
            ("precision", self.precision, None),
            ("algo", self.algo, "auto"),
        )
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return text + "".join(f", {name}={value}" for name, value, usual in rows if value != usual)


class Conv1d(_Conv):
    rank = 1
    op = staticmethod(F.conv1d)
    op_backward = staticmethod(F.conv1d_backward)


class Conv2d(_Conv):
    rank = 2
    op = staticmethod(F.conv2d)
    op_backward = staticmethod(F.conv2d_backward)


class Conv3d(_Conv):
    rank = 3
    op = staticmethod(F.conv3d)
    op_backward = staticmethod(F.conv3d_backward)


_DOC = """{rank}-D convolution with learnt weights; the formula: :func:`fastconv.conv{rank}d`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or tuple of {rank}
    padding, groups, padding_mode, precision, algo
        As in :func:`fastconv.conv{rank}d`.
    bias : bool
    dtype : float32 or float64
        Of the parameters.
    rng : numpy Generator, seed or None
        Source of the initial weights, uniform in +-1/sqrt(fan_in) as in PyTorch.

    Attributes
    ----------
    weight : Parameter (out_channels, in_channels/groups, {kernel})
    bias : Parameter (out_channels,) or None

    Raises
    ------
    ValueError, TypeError
        Naming the argument.
    """

for _layer in (Conv1d, Conv2d, Conv3d):
    _kernel = ", ".join(f"K{axis}" for axis in "DHW"[3 - _layer.rank :])
    _layer.__doc__ = _DOC.format(rank=_layer.rank, kernel=_kernel)
