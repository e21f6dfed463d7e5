# SPDX-License-Identifier: BSD-3-Clause
"""The command line: JSON parses, failures are seen by the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fastconv import __main__ as cli
from fastconv import functional
from fastconv.kernels import isa


def test_info(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["isa"] in {row["name"] for row in facts["rows"]}
    assert cli.main(["info"]) == 0
    assert facts["cpu"] in capsys.readouterr().out


def test_selftest(capsys):
    before = isa.current()
    assert cli.main(["selftest", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["passed"]
    assert {row["isa"] for row in facts["rows"]} == set(isa.available())
    assert isa.current() == before


def test_a_failing_selftest_says_so(capsys, monkeypatch):
    right = functional.conv2d

    def wrong(*args, **options):
        y = right(*args, **options)
        y.flat[0] = np.nan
        return y

    monkeypatch.setattr(functional, "conv2d", wrong)
    monkeypatch.setattr(isa, "available", lambda: ["scalar"])
    assert cli.main(["selftest"]) == 1
    out = capsys.readouterr().out
    assert "forward: 1 of" in out
    assert "FAILED" in out


def test_bench_without_a_source_tree(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_benchmarks", lambda: None)
    assert cli.main(["bench", "--json"]) == 1
    assert "source tree" in json.loads(capsys.readouterr().out)["error"]


def test_bench_runs_the_report(capsys, monkeypatch, tmp_path):
    """--json prints this run's results, and neither an earlier run's nor nothing."""
    calls = []
    report = {"machine": {"cpu": "abacus"}, "results": []}

    def run(command, **options):
        calls.append((command, options))
        if report is not None:
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out/results.json").write_text(json.dumps(report))
        return subprocess.CompletedProcess(command, 0 if report else 1)

    monkeypatch.setattr(cli, "_benchmarks", lambda: tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    assert cli.main(["bench", "--output", str(tmp_path / "out"), "--json"]) == 0
    command = calls[0][0]
    assert command[1:4] == ["-m", "benchmarks.report", "--quick"]
    assert command[-2:] == ["--output", str(tmp_path / "out")]
    assert json.loads(capsys.readouterr().out) == report
    report = None
    assert cli.main(["bench", "--output", str(tmp_path / "out"), "--json"]) == 1
    assert "no results" in json.loads(capsys.readouterr().out)["error"]


def test_bench_refuses_an_output_that_is_a_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "_benchmarks", lambda: tmp_path)
    (tmp_path / "out").write_text("")
    assert cli.main(["bench", "--output", str(tmp_path / "out"), "--json"]) == 1
    assert "--output" in json.loads(capsys.readouterr().out)["error"]


def test_the_demo_refuses_an_output_that_is_a_file_before_it_trains(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli.demo, "run", lambda options: pytest.fail("trained"))
    (tmp_path / "out").write_text("")
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 1
    assert "File exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["demo", "--epochs", "0"], ["demo", "--seed", "-1"]]
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "demo", "bench", "selftest"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main([command, "--help"])
    assert error.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_as_a_module():
    command = [sys.executable, "-m", "fastconv", "info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    assert json.loads(done.stdout)["fastconv"]
