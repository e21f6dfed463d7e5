# SPDX-License-Identifier: BSD-3-Clause
"""Pooling layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastconv import functional as F
from fastconv.nn.module import Array, Module, recording
from fastconv.problem import adaptive_sizes, flag, pool_divisor, pool_windows


class _Pool(Module):
    """A pooling over `rank` axes."""

    rank: ClassVar[int]
    op: ClassVar[Callable[..., Any]]
    op_backward: ClassVar[Callable[..., Any]]


class _MaxPool(_Pool):
    """Largest value of every window; see :func:`fastconv.max_pool{rank}d`.

    Parameters
    ----------
    kernel_size, stride, padding, dilation : int or tuple of {rank}
        `stride` is `kernel_size` by default.
    ceil_mode : bool
        Whether a last window may hang over the end. By name only: PyTorch's fifth argument is `return_indices`.
    """

    option_names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        *,
        ceil_mode: bool = False,
    ) -> None:
        pool_windows(self.rank, kernel_size, stride, padding, dilation)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = flag("ceil_mode", ceil_mode)

    def forward(self, x: Any) -> Array:
        if not recording():
            self._keep()
            return type(self).op(x, **self._options())  # type: ignore[no-any-return]
        y, indices = type(self).op(x, return_indices=True, **self._options())
        self._keep(indices, np.shape(x))
        return y  # type: ignore[no-any-return]

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        indices, x_shape = self._take()
        return type(self).op_backward(dy, indices, x_shape, **self._options()) if needs_dx else None

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class _AvgPool(_Pool):
    """Average of every window; see :func:`fastconv.avg_pool{rank}d`.

    Parameters
    ----------
    kernel_size, stride, padding : int or tuple of {rank}
        `stride` is `kernel_size` by default.
    ceil_mode : bool
        Whether a last window may hang over the end.
    count_include_pad : bool
        Whether padding counts in the divisor.
    divisor_override : int, optional
    """

    option_names = (
        *("kernel_size", "stride", "padding"),
        *("ceil_mode", "count_include_pad", "divisor_override"),
    )

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        pool_windows(self.rank, kernel_size, stride, padding, 1)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = flag("ceil_mode", ceil_mode)
        self.count_include_pad = flag("count_include_pad", count_include_pad)
        self.divisor_override = pool_divisor(divisor_override)

    def forward(self, x: Any) -> Array:
        y: Array = type(self).op(x, **self._options())
        self._keep(np.shape(x))
        return y

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        (x_shape,) = self._take()
        return type(self).op_backward(dy, x_shape, **self._options()) if needs_dx else None

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _AdaptivePool(_Pool):
    def __init__(self, output_size: Any) -> None:
        adaptive_sizes(self.rank, output_size)
        self.output_size = output_size

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class _AdaptiveMaxPool(_AdaptivePool):
    """Largest values of windows that tile the input; ``AdaptiveMaxPool{rank}d(1)`` is global pooling.

    Parameters
    ----------
    output_size : int, or tuple of {rank} with None for the input's size
    """

    def forward(self, x: Any) -> Array:
        if not recording():
            self._keep()
            return type(self).op(x, self.output_size)  # type: ignore[no-any-return]
        y, indices = type(self).op(x, self.output_size, return_indices=True)
        self._keep(indices, np.shape(x))
        return y  # type: ignore[no-any-return]

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        indices, x_shape = self._take()
        return type(self).op_backward(dy, indices, x_shape) if needs_dx else None


class _AdaptiveAvgPool(_AdaptivePool):
    """Averages of windows that tile the input; ``AdaptiveAvgPool{rank}d(1)`` is global pooling.

    Parameters
    ----------
    output_size : int, or tuple of {rank} with None for the input's size
    """

    def forward(self, x: Any) -> Array:
        y: Array = type(self).op(x, self.output_size)
        self._keep(np.shape(x))
        return y

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        (x_shape,) = self._take()
        return type(self).op_backward(dy, x_shape) if needs_dx else None


class MaxPool1d(_MaxPool):
    __doc__ = (_MaxPool.__doc__ or "").format(rank=1)
    rank = 1
    op = staticmethod(F.max_pool1d)
    op_backward = staticmethod(F.max_pool1d_backward)


class MaxPool2d(_MaxPool):
    __doc__ = (_MaxPool.__doc__ or "").format(rank=2)
    rank = 2
    op = staticmethod(F.max_pool2d)
    op_backward = staticmethod(F.max_pool2d_backward)


class MaxPool3d(_MaxPool):
    __doc__ = (_MaxPool.__doc__ or "").format(rank=3)
    rank = 3
    op = staticmethod(F.max_pool3d)
    op_backward = staticmethod(F.max_pool3d_backward)


class AvgPool1d(_AvgPool):
    __doc__ = (_AvgPool.__doc__ or "").format(rank=1)
    rank = 1
    op = staticmethod(F.avg_pool1d)
    op_backward = staticmethod(F.avg_pool1d_backward)


class AvgPool2d(_AvgPool):
    __doc__ = (_AvgPool.__doc__ or "").format(rank=2)
    rank = 2
    op = staticmethod(F.avg_pool2d)
    op_backward = staticmethod(F.avg_pool2d_backward)


class AvgPool3d(_AvgPool):
    __doc__ = (_AvgPool.__doc__ or "").format(rank=3)
    rank = 3
    op = staticmethod(F.avg_pool3d)
    op_backward = staticmethod(F.avg_pool3d_backward)


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    __doc__ = (_AdaptiveMaxPool.__doc__ or "").format(rank=1)
    rank = 1
    op = staticmethod(F.adaptive_max_pool1d)
    op_backward = staticmethod(F.adaptive_max_pool1d_backward)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    __doc__ = (_AdaptiveMaxPool.__doc__ or "").format(rank=2)
    rank = 2
    op = staticmethod(F.adaptive_max_pool2d)
    op_backward = staticmethod(F.adaptive_max_pool2d_backward)


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    __doc__ = (_AdaptiveMaxPool.__doc__ or "").format(rank=3)
    rank = 3
    op = staticmethod(F.adaptive_max_pool3d)
    op_backward = staticmethod(F.adaptive_max_pool3d_backward)


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    __doc__ = (_AdaptiveAvgPool.__doc__ or "").format(rank=1)
    rank = 1
    op = staticmethod(F.adaptive_avg_pool1d)
    op_backward = staticmethod(F.adaptive_avg_pool1d_backward)


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    __doc__ = (_AdaptiveAvgPool.__doc__ or "").format(rank=2)
    rank = 2
    op = staticmethod(F.adaptive_avg_pool2d)
    op_backward = staticmethod(F.adaptive_avg_pool2d_backward)


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    __doc__ = (_AdaptiveAvgPool.__doc__ or "").format(rank=3)
    rank = 3
    op = staticmethod(F.adaptive_avg_pool3d)
    op_backward = staticmethod(F.adaptive_avg_pool3d_backward)
