# SPDX-License-Identifier: BSD-3-Clause
"""Pooling and unfolding, forward and backward: each result is verified, then timed."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.problems import POOLS, Problem
from benchmarks.timing import LIMITS, verify_and_time


@pytest.mark.benchmark(**LIMITS)
@pytest.mark.parametrize(
    ("problem", "what"),
    [(p, what) for p in POOLS for what in p.passes],
    ids=lambda value: getattr(value, "name", value),
)
def test_pool(benchmark: BenchmarkFixture, problem: Problem, what: str) -> None:
    verify_and_time(benchmark, problem, what)
