# SPDX-License-Identifier: BSD-3-Clause
"""Elementwise operations, forward and backward: each result is verified, then timed."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.problems import ELEMENTWISE, Problem
from benchmarks.timing import LIMITS, verify_and_time


@pytest.mark.benchmark(**LIMITS)
@pytest.mark.parametrize("what", ["forward", "dx"])
@pytest.mark.parametrize("problem", ELEMENTWISE, ids=lambda p: p.name)
def test_elementwise(benchmark: BenchmarkFixture, problem: Problem, what: str) -> None:
    verify_and_time(benchmark, problem, what)
