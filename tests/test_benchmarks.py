# SPDX-License-Identifier: BSD-3-Clause
"""The named lists of problems, and what the report makes of their times. Nothing is timed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from benchmarks import accuracy, calls, peers, problems, report, verify
from fastconv.kernels import isa


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


def test_prepared_weights() -> None:
    """The like of ONNX Runtime's: only the forward of convolutions is prepared."""
    small = problems.find("resnet_3x3s2_56")[0].reduced()
    run = calls.fastconv_call(small, "forward", small.arrays("float32"), "prepared")
    verify.check(small, "forward", "float32", run())
    for name, what in (("resnet_3x3s2_56", "dx"), ("relu_112", "forward")):
        problem = problems.find(name)[0].reduced()
        with pytest.raises(calls.Unsupported, match="prepared"):
            calls.fastconv_call(problem, what, problem.arrays("float32"), "prepared")


def test_peers_are_held_to_our_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCONV_ISA", "avx512")
    assert peers.caps() == {}
    monkeypatch.setenv("FASTCONV_ISA", "avx2")
    assert peers.caps() == {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def test_a_worker_answers_when_its_threads_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    busy_until = 3 * peers.IDLE_SECONDS
    for until, waited in ((busy_until, 4 * peers.IDLE_SECONDS), (10.0, peers.IDLE_LIMIT)):
        clock = Clock(until)
        monkeypatch.setattr(peers, "time", clock)
        peers.settle()
        assert clock.now == pytest.approx(waited)


class Clock:
    """A time module whose process is busy until a moment."""

    def __init__(self, busy_until: float) -> None:
        self.now = 0.0
        self.busy_until = busy_until

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return min(self.now, self.busy_until)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def result(
    problem: problems.Problem, ours: float, theirs: float, precision: str = "highest"
) -> dict[str, Any]:
    def times(seconds: float) -> dict[str, float]:
        return {"seconds": seconds, "scale": 1}

    return {
        "problem": problem.as_dict(),
        "label": problem.label,
        "pass": "dx",
        "precision": precision,
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
    found.append(result(layers[0], 1.0, 3.0, "medium"))
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
    assert "| torch | Convolution, medium: dx | 3.00 | 3.00 lenet1 | 0 of 1 |" in page
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in page
    assert np.isclose(report.geometric_mean([8.0, 0.5, 2.0]), 2.0)


# Small enough for a smoke test: nothing is asserted about its time.
SMALL = problems.Conv("small", "none", 1, 64, 8, 16, 3, 1, 1)


def test_the_report_runs_with_every_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "chosen_problems", lambda options: [SMALL])
    monkeypatch.setattr(report, "EFFORTS", {"quick": report.Effort(1, 0)})
    monkeypatch.setattr(
        report, "measure_roof", lambda _: {"float32": 1.0, "read": 1.0, "copy": 1.0}
    )
    words = ",".join(report.PRECISIONS)
    arguments = ["--precision", words, "--peers", "numpy_im2col", "--output", str(tmp_path)]
    assert report.main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    timed = {(r["pass"], r["precision"]): set(r["times"]) for r in results}
    assert len(timed) == len(results) == 9
    for (_, word), peers_timed in timed.items():
        alone = word == "medium"  # NumPy does not multiply bfloat16
        assert peers_timed == ({"fastconv"} if alone else {"fastconv", "numpy_im2col"})
    assert "## Convolution, medium: dw" in (tmp_path / "results.md").read_text()


def test_a_worker_keeps_to_the_precision_that_is_asked_for() -> None:
    """On the row that has split kernels everywhere: bfloat16 products differ from floats'."""
    session = peers.Session(peers.find_peer("fastconv:split_1"))
    request = {"problem": SMALL.as_dict(), "pass": "forward", "dtype": "float32"}
    before = isa.current()
    isa.select("scalar")
    try:
        for word in report.PRECISIONS:
            session.prepare({**request, "precision": word})
            assert fastconv.runtime.resolve_precision(None) == word
    finally:
        isa.select(before)
        session.precision.close()
    assert fastconv.runtime.resolve_precision(None) == "highest"


@pytest.mark.parametrize(
    "arguments", [["--precision", "low"], ["--precision", "high", "--dtype", "float64"]]
)
def test_a_bad_precision_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        report.parse(arguments)
    assert "argument --precision: " in capsys.readouterr().err


def test_the_tables_of_accuracy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    numbers = tmp_path / "accuracy.json"
    asked = ["--problems", "lenet2", "--data", "relu", "--peers", "", "--json", str(numbers)]
    assert accuracy.main(asked) == 0
    (forward, dw) = json.loads(numbers.read_text())["results"]
    assert (forward["terms"], dw["terms"]) == (150, 200)
    for result in (forward, dw):
        assert set(result["errors"]) == {"chain", *report.PRECISIONS}
        assert 0 < result["errors"]["highest"]["rms"] < 1e-6
    page = capsys.readouterr().out
    assert "| data | layer | K | chain | highest |" in page
    assert "### Weight gradient: reduced precision" in page


def test_the_plot_of_speed_against_accuracy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(accuracy, "EFFORTS", {"quick": report.Effort(1, 0)})
    monkeypatch.setattr(accuracy, "able", lambda p, what: ["direct", "split_3"])
    monkeypatch.setattr(accuracy, "choice", lambda p, word, threads: "winograd_2_5")
    picture, numbers = tmp_path / "plot.png", tmp_path / "plot.json"
    asked = ["--plot", str(picture), "--layer", "lenet2", "--batch", "1", "--peers", "numpy_im2col"]
    assert accuracy.main([*asked, "--json", str(numbers)]) == 0
    found = json.loads(numbers.read_text())
    names = [point["name"] for point in found["points"]]
    assert {"direct", "choice for 'highest'", "numpy_im2col"} <= set(names)
    rms = {point["name"]: point["rms"] for point in found["points"]}
    assert rms["choice for 'highest'"] > 1.5 * rms["direct"]  # of the algorithm that is timed
    assert ("split_3" in found["model"]) != ("split_3" in names)
    assert picture.stat().st_size > 10_000
