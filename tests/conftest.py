# SPDX-License-Identifier: BSD-3-Clause
"""The ISA matrix: every test that takes `isa_row` runs once per row this machine (and FASTCONV_ISA) allows."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from fastconv import algorithms, runtime
from fastconv.kernels import isa, team

DEFAULT_ROW = isa.current()
_AVAILABLE = isa.available()
ROWS = _AVAILABLE[: _AVAILABLE.index(DEFAULT_ROW) + 1]
MISSING = {row["name"]: row["missing"] for row in isa.rows() if row["missing"]}
THREADS = (1, 2, 3, 7)


def pytest_report_header() -> list[str]:
    missing = ", ".join(f"{name} (needs {what})" for name, what in MISSING.items()) or "none"
    return [
        f"fastconv: ISA rows tested: {', '.join(ROWS)}; default row: {DEFAULT_ROW}; missing here: {missing}",
        f"fastconv: {runtime.get_num_threads()} threads by default; thread counts tested: {THREADS}",
    ]


def pytest_sessionstart() -> None:
    """FASTCONV_REQUIRE_ISA=avx512,amx makes the absence of a row a failure; teams stay whole on a busy machine."""
    team.set_rests(False)
    required = [name for name in os.environ.get("FASTCONV_REQUIRE_ISA", "").split(",") if name]
    absent = [name for name in required if name not in ROWS]
    if absent:
        pytest.exit(f"FASTCONV_REQUIRE_ISA: {', '.join(absent)} not available; tested: {ROWS}", 1)


@pytest.fixture(params=ROWS)
def isa_row(request: pytest.FixtureRequest) -> Iterator[str]:
    isa.select(request.param)
    assert isa.current() == request.param
    yield request.param
    isa.select(DEFAULT_ROW)


@pytest.fixture
def avx2_row() -> Iterator[None]:
    """The row to whose costs the shapes of a test belong; what others choose may differ."""
    if "avx2" not in ROWS:
        pytest.skip("the costs are those of avx2")
    isa.select("avx2")
    yield
    isa.select(DEFAULT_ROW)


@pytest.fixture(params=algorithms.GENERAL_NAMES)
def algo(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)
