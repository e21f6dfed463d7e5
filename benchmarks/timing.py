# SPDX-License-Identifier: BSD-3-Clause
"""What the pytest benchmarks share."""

from __future__ import annotations

from functools import lru_cache

from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.calls import Arrays, fastconv_call
from benchmarks.problems import Problem
from benchmarks.verify import check

DTYPE = "float32"
# Arguments of pytest.mark.benchmark: at most a second for each of several hundred tests.
LIMITS = {"min_rounds": 3, "max_time": 0.3, "warmup": False}


@lru_cache(maxsize=1)
def _arrays(problem: Problem) -> Arrays:
    return problem.arrays(DTYPE)


def verify_and_time(
    benchmark: BenchmarkFixture, problem: Problem, what: str, algo: str = "auto"
) -> None:
    """Check the small variant (vector and tile tails) and the problem itself, then time it."""
    small = problem.reduced()
    check(small, what, DTYPE, fastconv_call(small, what, small.arrays(DTYPE), algo)())
    call = fastconv_call(problem, what, _arrays(problem), algo)
    check(problem, what, DTYPE, call())
    benchmark.group = f"{problem.name} {what}"
    benchmark(call)
    if benchmark.stats:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["gflops"] = problem.flops / seconds / 1e9
        benchmark.extra_info["floor_gbs"] = problem.floor(what, 4) / seconds / 1e9
