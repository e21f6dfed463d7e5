# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalisation, forward and backward: each result is verified, then timed."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.problems import NORMS, Problem
from benchmarks.timing import LIMITS, verify_and_time


@pytest.mark.benchmark(**LIMITS)
@pytest.mark.parametrize("what", ["forward", "dx"])
@pytest.mark.parametrize("problem", NORMS, ids=lambda p: p.name)
def test_norm(benchmark: BenchmarkFixture, problem: Problem, what: str) -> None:
    verify_and_time(benchmark, problem, what)
