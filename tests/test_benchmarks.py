# SPDX-License-Identifier: BSD-3-Clause
"""The named lists of problems, and what the report makes of their times. Nothing is timed here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import calls, peers, problems, report, verify


def test_the_layers_are_22_convolutions() -> None:
    layers = problems.SETS["layers"]
    assert len({p.name for p in layers}) == 22
    assert {p.name for p in layers if p.batch != 16} == {"lenet1", "lenet2", "vgg1_1", "vgg1_2"}
    assert all(isinstance(p, problems.Conv) for p in layers)


def test_a_set_runs_whole_and_a_batch_is_taken_over() -> None:
    found = report.chosen_problems(report.parse(["--set", "layers"]))
    assert found == list(problems.SETS["layers"])
    found = report.chosen_problems(report.parse(["--set", "memory", "--batch", "1"]))
    assert {p.batch for p in found} == {1}


@pytest.mark.parametrize("problem", problems.SETS["memory"], ids=lambda p: p.name)
def test_calls_of_memory_bound_problems(problem: problems.Problem) -> None:
    small = problem.reduced()
    for what in small.passes:
        result = calls.fastconv_call(small, what, small.arrays("float32"))()
        verify.check(small, what, "float32", result)


@pytest.mark.parametrize("variant", ["auto", "layers"])
@pytest.mark.parametrize("problem", problems.BLOCKS, ids=lambda p: p.name)
def test_blocks(problem: problems.Block, variant: str) -> None:
    small = problem.reduced()
    for dtype in ("float32", "float64"):
        result = calls.fastconv_call(small, "forward", small.arrays(dtype), variant)()
        verify.check(small, "forward", dtype, result)
    with pytest.raises(calls.Unsupported):
        calls.fastconv_call(small, "forward", small.arrays("float32"), "direct")


def test_peers_are_held_to_our_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCONV_ISA", "avx512")
    assert peers.caps() == {}
    monkeypatch.setenv("FASTCONV_ISA", "avx2")
    assert peers.caps() == {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def result(problem: problems.Problem, ours: float, theirs: float) -> dict[str, Any]:
    def times(seconds: float) -> dict[str, float]:
        return {"seconds": seconds, "scale": 1}

    return {
        "problem": problem.as_dict(),
        "label": problem.label,
        "pass": "dx",
        "flops": problem.flops,
        "bytes": problem.floor("dx", 4),
        "times": {"fastconv": times(ours), "torch": times(theirs)},
        "skipped": {},
    }


def test_the_summary_tells_mean_worst_case_and_losses() -> None:
    layers = problems.SETS["layers"]
    facts = {
        "cpu": "a machine",
        "cores": 2,
        "caches": {"L1": 32 << 10},
        "dtype": "float32",
        "peak_gflops": 100.0,
        "read_gbs": 10.0,
        "copy_gbs": 10.0,
        **dict.fromkeys(("threads", "isa", "system", "compiler", "python"), "x"),
    }
    found = [result(layers[0], 1.0, 8.0), result(layers[1], 1.0, 0.5), result(layers[2], 1.0, 2.0)]
    page = report.markdown(
        {
            "machine": facts,
            "versions": {"fastconv": "1", "torch": "2"},
            "caps": peers.CAPS["avx2"],
            "missing": {},
            "results": found,
        },
        ["fastconv", "torch"],
    )
    assert "| torch | Convolution: dx | 2.00 | 0.50 lenet2 | 1 of 3 |" in page
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in page
    assert np.isclose(report.geometric_mean([8.0, 0.5, 2.0]), 2.0)
