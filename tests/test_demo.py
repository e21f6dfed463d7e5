# SPDX-License-Identifier: BSD-3-Clause
"""The demo in miniature: two epochs on a few digits."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastconv
from fastconv import __main__ as cli
from fastconv import demo, nn
from fastconv.models import LeNet5

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


ARGUMENTS = ("--epochs", "2", "--images", "64", "--seed", "3", "--json")


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """What one small run prints as JSON."""
    output, text = tmp_path_factory.mktemp("demo") / "pictures", io.StringIO()
    patching, printing = pytest.MonkeyPatch.context(), contextlib.redirect_stdout(text)
    with patching as patch, printing, fastconv.threads(1):
        patch.setattr(demo, "fastest", lambda run, *_, **__: [1.0, run()][0])
        patch.setattr(demo, "BATCH", 8)
        assert cli.main(["demo", *ARGUMENTS, "--output", str(output)]) == 0
    return json.loads(text.getvalue())


def test_json(facts):
    assert facts["losses"][1] < facts["losses"][0]
    assert facts["accuracy"] == facts["accuracies"][-1] > 0.2
    assert (facts["epochs"], facts["trained_on"], facts["held_out"]) == (2, 64, 359)
    assert facts["step"]["numpy_gradient_difference"] < 1e-4
    assert facts["step"]["scipy_gradient_difference"] < 1e-4
    assert facts["step"]["numpy_ratio"] > 0


def test_pictures(facts):
    assert len(facts["files"]) == 4
    for file in map(Path, facts["files"]):
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.stat().st_size > 5000


def test_text(facts):
    text = demo.report(facts)
    assert "of 359 held-out digits" in text
    assert "scipy.signal in loops" in text


def test_the_same_numbers_at_any_thread_count_with_and_without_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    digits, histories = demo.load_digits(96), []
    for threads, quiet in ((1, True), (2, True), (1, False)):
        rng = np.random.default_rng(0)
        with fastconv.threads(threads):
            histories.append(demo.train(LeNet5(rng=rng), digits, 2, rng, quiet))
    assert "6/6" in sys.stderr.getvalue()
    for history in histories[1:]:
        assert history.losses == histories[0].losses
        assert history.accuracies == histories[0].accuracies


def test_twins_have_the_same_gradients():
    rng = np.random.default_rng(0)
    model = LeNet5(dtype=np.float64, rng=rng)
    x, target = rng.standard_normal((3, 1, 32, 32)), np.array([1, 5, 9])
    expected = demo.gradient(model, nn.CrossEntropyLoss(), x, target)
    for layers in (demo.NUMPY, demo.SCIPY):
        twin = demo.twin(model, layers)
        assert_allclose(
            demo.gradient(twin, demo.NumpyCrossEntropy(), x, target), expected, atol=1e-10
        )


def test_wrong_gradients_are_not_timed(monkeypatch):
    wrong = {**demo.NUMPY, nn.Tanh: lambda layer: nn.ReLU()}
    monkeypatch.setattr(demo, "NUMPY", wrong)
    with pytest.raises(ArithmeticError, match="differs from that of numpy"):
        demo.compare_steps(LeNet5(rng=0), np.ones((2, 1, 32, 32), np.float32), np.arange(2))


def test_enlarge_keeps_constants_and_centres():
    assert_allclose(demo.enlarge(np.ones((1, 8, 8)))[0, 2:-2, 2:-2], 1)
    dot = np.zeros((1, 8, 8))
    dot[0, 2, 5] = 1
    big = demo.enlarge(dot, size=24, border=0)
    assert np.unravel_index(big.argmax(), big.shape) == (0, 7, 16)
    assert_allclose(big.sum(), 9)


def test_shifts_move_whole_pictures():
    x = np.zeros((40, 1, 16, 16), np.float32)
    x[:, 0, 8, 8] = 1
    moved = demo.shifted(x, np.random.default_rng(0))
    _, _, i, j = np.nonzero(moved)
    assert moved.sum() == 40
    for places in (i, j):
        assert_array_equal(np.unique(places), np.arange(6, 11))


def test_a_missing_extra_is_named(monkeypatch, capsys):
    original = importlib.import_module

    def import_module(name, *args):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *args)

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert cli.main(["demo"]) == 1
    assert 'needs sklearn: pip install "fastconv[demo]"' in capsys.readouterr().err
