# SPDX-License-Identifier: BSD-3-Clause
"""The arithmetic of convolutional networks: output sizes, receptive fields, parameter counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from fastconv import nn
from fastconv.nn.pool import _AdaptivePool
from fastconv.problem import integers, is_sequence, sliding_windows

Sizes = int | tuple[int, ...]


def _rank(*values: Any) -> int | None:
    """How many axes the tuples among the arguments have; None when there are only ints."""
    return max((len(v) for v in values if is_sequence(v)), default=None)


def conv_output_size(
    size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> Sizes:
    """Outputs of a convolution or a pooling along each axis.

    ``floor((size + low + high - dilation*(kernel_size - 1) - 1) / stride) + 1``

    Parameters
    ----------
    size, kernel_size, stride, dilation : int or tuple
        An int holds for all axes.
    padding : int, tuple, (low, high) pairs, "valid" or "same"
        As in :func:`fastconv.conv2d`; "same" gives ``ceil(size / stride)``.

    Returns
    -------
    int, or a tuple when any argument is one

    Raises
    ------
    ValueError
        When no window fits, or the tuples have different lengths.
    TypeError
        For anything but integers.

    Examples
    --------
    >>> conv_output_size(224, 7, stride=2, padding=3)
    112
    >>> conv_output_size((28, 28), (5, 3))
    (24, 26)
    """
    found = _rank(size, kernel_size, stride, padding, dilation)
    rank = found or 1
    sizes = integers("size", size, rank, 0)
    outs = sliding_windows(sizes, kernel_size, stride, padding, dilation).out
    return outs[0] if found is None else outs


class ReceptiveField(NamedTuple):
    """`size` input cells are seen by one output; neighbouring outputs are `jump` cells apart."""

    size: Sizes
    jump: Sizes


def receptive_field(layers: nn.Module | Iterable[Any]) -> ReceptiveField:
    """The input cells which one output of a chain of convolutions and poolings depends on.

    ``size_0 = jump_0 = 1``, and for each layer ``size += (kernel - 1) * dilation * jump``, then
    ``jump *= stride``.

    Parameters
    ----------
    layers : Module, or iterable of layers or (kernel, stride[, dilation])
        A Module is walked in the order of its layers, which must be a chain, up to the first one
        that sees the whole map (Flatten, Linear, adaptive pooling). Layers without a kernel
        change nothing.

    Returns
    -------
    (size, jump) : ints, or tuples with one entry for each axis when a kernel or stride is a tuple

    Raises
    ------
    ValueError, TypeError
        For windows that are not 2 or 3 integers (or tuples of integers).

    Examples
    --------
    >>> receptive_field([(3, 1), (3, 1)])
    ReceptiveField(size=5, jump=1)
    >>> receptive_field([(11, 4), (3, 2)]).size
    19
    """
    try:
        chain = iter(layers.modules() if isinstance(layers, nn.Module) else layers)
    except TypeError:
        expected = "a Module or an iterable of layers"
        raise TypeError(f"layers: expected {expected}, got {layers!r}") from None
    windows = list(_windows(chain))
    found = _rank(*(value for window in windows for value in window))
    rank = found or 1
    size, jump = [1] * rank, [1] * rank
    for kernel, stride, dilation in windows:
        kernels = integers("kernel", kernel, rank, 1)
        strides = integers("stride", stride, rank, 1)
        dilations = integers("dilation", dilation, rank, 1)
        for axis in range(rank):
            size[axis] += (kernels[axis] - 1) * dilations[axis] * jump[axis]
            jump[axis] *= strides[axis]
    if found is None:
        return ReceptiveField(size[0], jump[0])
    return ReceptiveField(tuple(size), tuple(jump))


_WHOLE_MAP = (nn.Flatten, nn.Linear, _AdaptivePool)


def _windows(layers: Iterable[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """(kernel, stride, dilation) of every layer that has a kernel."""
    for layer in layers:
        if isinstance(layer, _WHOLE_MAP):
            return
        if not isinstance(layer, nn.Module):
            if not is_sequence(layer) or len(layer) not in (2, 3):
                raise ValueError(f"layers: expected (kernel, stride[, dilation]), got {layer!r}")
            yield (*layer, 1)[:3]  # type: ignore[misc]
        elif hasattr(layer, "kernel_size"):
            yield layer.kernel_size, layer.stride, getattr(layer, "dilation", 1)  # type: ignore[attr-defined]


def count_parameters(module: nn.Module) -> int:
    """How many numbers the parameters of `module` hold; shared ones count once."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a Module, got {module!r}")
    return sum(parameter.size for parameter in module.parameters())
