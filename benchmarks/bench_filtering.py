# SPDX-License-Identifier: BSD-3-Clause
"""Filtering one image, against scipy.signal.correlate2d: results agree, then both are timed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastconv.signal
from benchmarks.problems import Array
from benchmarks.timing import LIMITS

signal = pytest.importorskip("scipy.signal")

Filter = Callable[[Array, Array], Array]
KERNELS = (3, 5, 11, 25)


def ours(image: Array, kernel: Array) -> Array:
    return fastconv.signal.correlate2d(image, kernel, mode="same")


def scipy(image: Array, kernel: Array) -> Array:
    return signal.correlate2d(image, kernel, mode="same")


@pytest.mark.benchmark(**LIMITS)
@pytest.mark.parametrize("run", [ours, scipy], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("cells", KERNELS)
def test_filtering(
    benchmark: BenchmarkFixture, cells: int, size: int, dtype: str, run: Filter
) -> None:
    rng = np.random.default_rng(5)
    image = rng.random((size, size)).astype(dtype)
    kernel = rng.random((cells, cells)).astype(dtype)
    want = signal.correlate2d(image.astype("f8"), kernel.astype("f8"), mode="same")
    np.testing.assert_allclose(run(image, kernel), want, rtol=50 * float(np.finfo(dtype).eps))
    benchmark.group = f"filtering {size}x{size} by {cells}x{cells} {dtype}"
    benchmark(run, image, kernel)
