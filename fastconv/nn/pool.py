# SPDX-License-Identifier: BSD-3-Clause
"""Pooling layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import functional as F
from fastconv.nn.module import Array, Module, recording
from fastconv.problem import adaptive_sizes, flag, pool_divisor, pool_windows


class MaxPool2d(Module):
    """Largest value of every window; see :func:`fastconv.max_pool2d`.

    Parameters
    ----------
    kernel_size, stride, padding, dilation : int or tuple of 2
        `stride` is `kernel_size` by default.
    ceil_mode : bool
        Whether a last window may hang over the end.
    """

    option_names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> None:
        pool_windows(2, kernel_size, stride, padding, dilation)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = flag("ceil_mode", ceil_mode)

    def forward(self, x: Any) -> Array:
        if not recording():
            self._keep()
            return F.max_pool2d(x, **self._options())  # type: ignore[no-any-return]
        y, indices = F.max_pool2d(x, return_indices=True, **self._options())
        self._keep(indices, np.shape(x))
        return y  # type: ignore[no-any-return]

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        indices, x_shape = self._take()
        return F.max_pool2d_backward(dy, indices, x_shape, **self._options()) if needs_dx else None

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AvgPool2d(Module):
    """Average of every window; see :func:`fastconv.avg_pool2d`.

    Parameters
    ----------
    kernel_size, stride, padding : int or tuple of 2
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
        pool_windows(2, kernel_size, stride, padding, 1)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = flag("ceil_mode", ceil_mode)
        self.count_include_pad = flag("count_include_pad", count_include_pad)
        self.divisor_override = pool_divisor(divisor_override)

    def forward(self, x: Any) -> Array:
        y: Array = F.avg_pool2d(x, **self._options())
        self._keep(np.shape(x))
        return y

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        (x_shape,) = self._take()
        return F.avg_pool2d_backward(dy, x_shape, **self._options()) if needs_dx else None

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _AdaptivePool2d(Module):
    def __init__(self, output_size: Any) -> None:
        adaptive_sizes(2, output_size)
        self.output_size = output_size

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveMaxPool2d(_AdaptivePool2d):
    """Largest values of windows that tile the input; ``AdaptiveMaxPool2d(1)`` is global pooling.

    Parameters
    ----------
    output_size : int, or tuple of 2 with None for the input's size
    """

    def forward(self, x: Any) -> Array:
        if not recording():
            self._keep()
            return F.adaptive_max_pool2d(x, self.output_size)  # type: ignore[no-any-return]
        y, indices = F.adaptive_max_pool2d(x, self.output_size, return_indices=True)
        self._keep(indices, np.shape(x))
        return y  # type: ignore[no-any-return]

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        indices, x_shape = self._take()
        return F.adaptive_max_pool2d_backward(dy, indices, x_shape) if needs_dx else None


class AdaptiveAvgPool2d(_AdaptivePool2d):
    """Averages of windows that tile the input; ``AdaptiveAvgPool2d(1)`` is global pooling.

    Parameters
    ----------
    output_size : int, or tuple of 2 with None for the input's size
    """

    def forward(self, x: Any) -> Array:
        y: Array = F.adaptive_avg_pool2d(x, self.output_size)
        self._keep(np.shape(x))
        return y

    def backward(self, dy: Any, needs_dx: bool = True) -> Array | None:
        (x_shape,) = self._take()
        return F.adaptive_avg_pool2d_backward(dy, x_shape) if needs_dx else None
