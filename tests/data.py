# SPDX-License-Identifier: BSD-3-Clause
"""Test data: small integers, on which every kernel is exact, and real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def integers(
    generator: np.random.Generator, shape: Sequence[int], dtype: Any, most: int = 4
) -> Array:
    """Integers in [-most, most]: sums of up to 2^24/most^2 products are exact in float32."""
    return generator.integers(-most, most + 1, tuple(shape)).astype(dtype)


def reals(generator: np.random.Generator, shape: Sequence[int], dtype: Any) -> Array:
    return generator.standard_normal(tuple(shape)).astype(dtype)


def trusted(y: Array) -> None:
    """A comparison in which most outputs are zero proves nothing."""
    assert y.size == 0 or np.count_nonzero(y) >= 0.1 * y.size, "most outputs are zero: not trusted"


def hostile(array: Array) -> dict[str, Array]:
    """The same values in every awkward memory layout."""
    raw = np.empty(array.nbytes + 1, dtype=np.uint8)
    unaligned = raw[1:].view(array.dtype).reshape(array.shape)
    unaligned[...] = array
    padded = np.empty((*array.shape, 2), dtype=array.dtype)
    strided = padded[..., 1]
    strided[...] = array
    readonly = array.copy()
    readonly.flags.writeable = False
    reversed_ = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    swapped = array.astype(array.dtype.newbyteorder(">"))
    return {
        "fortran": np.asfortranarray(array),
        "unaligned": unaligned,
        "strided": strided,
        "readonly": readonly,
        "negative": reversed_,
        "big-endian": swapped,
    }
