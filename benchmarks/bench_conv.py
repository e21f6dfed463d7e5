# SPDX-License-Identifier: BSD-3-Clause
"""Every convolution problem on every algorithm: each result is verified, then timed.

pytest benchmarks -o python_files="bench_*.py" --benchmark-only -k resnet
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.problems import OVERHEAD, PROBLEMS, Conv
from benchmarks.timing import LIMITS, verify_and_time
from fastconv.algorithms import GENERAL_NAMES

# A forced algorithm may be far slower than the automatic choice: fewer images keep it bearable.
FLOPS = 2e9


def few_images(problem: Conv) -> Conv:
    return problem.with_batch(max(1, int(problem.batch * min(1.0, FLOPS / problem.flops))))


@pytest.mark.benchmark(**LIMITS)
@pytest.mark.parametrize("algo", ["auto", *GENERAL_NAMES])
@pytest.mark.parametrize("what", ["forward", "dx"])
@pytest.mark.parametrize("problem", PROBLEMS + OVERHEAD, ids=lambda p: p.name)
def test_conv(benchmark: BenchmarkFixture, problem: Conv, what: str, algo: str) -> None:
    verify_and_time(benchmark, few_images(problem), what, algo)


@pytest.mark.benchmark(**LIMITS)
@pytest.mark.parametrize("problem", PROBLEMS + OVERHEAD, ids=lambda p: p.name)
def test_conv_dw(benchmark: BenchmarkFixture, problem: Conv) -> None:
    verify_and_time(benchmark, few_images(problem), "dw", "auto")
