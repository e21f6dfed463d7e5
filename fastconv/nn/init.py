# SPDX-License-Identifier: BSD-3-Clause
"""Initial weights, drawn from a NumPy generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.functional._arrays import generator
from fastconv.nn.module import Array, Parameter
from fastconv.problem import elements, flag, float_dtype

Rng = np.random.Generator | int | None


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan in, fan out) of weights (O, C/groups, *K): inputs of an output, and outputs of an input.

    ``fan_in = C/groups * prod(K)``, ``fan_out = O * prod(K)``.
    """
    outputs, inputs, *kernel = shape
    return inputs * math.prod(kernel), outputs * math.prod(kernel)


def uniform(
    shape: Sequence[int], bound: float, dtype: npt.DTypeLike = np.float32, rng: Rng = None
) -> Array:
    """Uniform in [-bound, bound). The draws are those of float64 whatever the dtype."""
    return generator(rng).uniform(-bound, bound, shape).astype(float_dtype(dtype))


def kaiming_uniform(
    shape: Sequence[int], a: float = 0.0, dtype: npt.DTypeLike = np.float32, rng: Rng = None
) -> Array:
    """Uniform with ``bound = sqrt(6 / ((1 + a^2) * fan_in))`` (He et al., 2015).

    `a` is the negative slope of the leaky ReLU that follows.
    """
    return uniform(shape, math.sqrt(6 / ((1 + a * a) * fans(shape)[0])), dtype, rng)


def xavier_uniform(
    shape: Sequence[int], gain: float = 1.0, dtype: npt.DTypeLike = np.float32, rng: Rng = None
) -> Array:
    """Uniform with ``bound = gain * sqrt(6 / (fan_in + fan_out))`` (Glorot & Bengio, 2010)."""
    return uniform(shape, gain * math.sqrt(6 / sum(fans(shape))), dtype, rng)


def affine(
    shape: Sequence[int], bias: bool, dtype: Any, rng: Rng
) -> tuple[Parameter, Parameter | None]:
    """PyTorch's default (weight, bias) of convolutions and linear layers.

    The weight is ``kaiming_uniform(a=sqrt(5))``, which is uniform in ``1/sqrt(fan_in)``, and so is
    the bias.
    """
    elements("weight", shape)
    rng, bias = generator(rng), flag("bias", bias)
    weight = Parameter(kaiming_uniform(shape, math.sqrt(5), dtype, rng))
    bound = 1 / math.sqrt(fans(shape)[0])
    return weight, Parameter(uniform(shape[:1], bound, dtype, rng)) if bias else None
