# SPDX-License-Identifier: BSD-3-Clause
"""Convolution, batch normalisation and ReLU: the prepared model and its three layers, verified and timed."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.problems import BLOCKS, Block
from benchmarks.timing import LIMITS, verify_and_time


@pytest.mark.benchmark(**LIMITS)
@pytest.mark.parametrize("variant", ["auto", "layers"])
@pytest.mark.parametrize("problem", BLOCKS, ids=lambda p: p.name)
def test_block(benchmark: BenchmarkFixture, problem: Block, variant: str) -> None:
    verify_and_time(benchmark, problem, "forward", variant)
