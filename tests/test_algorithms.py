# SPDX-License-Identifier: BSD-3-Clause
"""The registry, the automatic choice, and explain()."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import algorithms, costs
from fastconv.kernels import isa
from fastconv.problem import Conv, conv_problem


def problem(x: tuple[int, ...], w: tuple[int, ...], **options: object) -> Conv:
    rest = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "mode": "zeros", **options}
    return conv_problem("float32", x, w, *rest.values(), len(w) - 2)


@pytest.mark.usefixtures("avx2_row")
@pytest.mark.parametrize(
    ("x", "w", "options", "expected"),
    [
        ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, "winograd_4_3"),
        ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1, "stride": 2}, "direct"),
        ((1, 384, 14, 14), (384, 1, 3, 3), {"padding": 1, "groups": 384}, "depthwise"),
        ((8, 960, 7, 7), (960, 1, 5, 5), {"padding": 2, "groups": 960, "stride": 2}, "depthwise"),
        ((1, 2, 112, 112), (2, 1, 3, 3), {"padding": 1, "groups": 2}, "pixel"),
        ((1, 1, 28, 28), (6, 1, 5, 5), {}, "pixel"),
        ((1, 384, 14, 14), (384, 4, 1, 1), {"groups": 96}, "pixel"),
        ((1, 3, 56, 56), (6, 3, 7, 7), {"stride": 2}, "pixel"),
        ((8, 16, 5, 5), (120, 16, 5, 5), {}, "linear"),
    ],
)
def test_choice(
    x: tuple[int, ...], w: tuple[int, ...], options: dict[str, int], expected: str
) -> None:
    plan = algorithms.plan(problem(x, w, **options))
    assert plan.algorithm.name == expected
    passed_by = {name for name, _ in plan.reasons}
    assert passed_by == set(algorithms.NAMES) - {expected}
    assert all(reason for _, reason in plan.reasons)
    assert plan.expected[expected] == min(plan.expected.values())


@pytest.mark.parametrize("name", algorithms.GENERAL_NAMES)
def test_forced(name: str) -> None:
    plan = algorithms.plan(problem((1, 3, 8, 8), (4, 3, 3, 3)), name)
    assert plan.algorithm.name == name
    assert plan.reasons == ()


def test_unknown_algorithm() -> None:
    with pytest.raises(ValueError, match=r"algo: .*'direct'.*got 'winograd9'"):
        fastconv.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), algo="winograd9")


def test_small_problems_run_on_one_thread() -> None:
    assert algorithms.plan(problem((1, 1, 8, 8), (1, 1, 3, 3))).threads(8) == 1
    assert algorithms.plan(problem((1, 64, 56, 56), (64, 64, 3, 3))).threads(8) == 8


def test_plans_are_cached_and_bounded() -> None:
    algorithms.clear_plans()
    p = problem((1, 3, 8, 8), (4, 3, 3, 3))
    assert algorithms.plan(p) is algorithms.plan(p)
    assert len(algorithms._plans) == 1
    for size in range(3, algorithms.PLANS + 10):
        algorithms.plan(problem((1, 1, size, 3), (1, 1, 3, 3)))
    assert len(algorithms._plans) == algorithms.PLANS


def test_clear_plans_forgets_calls() -> None:
    x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    fastconv.linear(w[0, 0], w[0, 0])
    fastconv.conv2d_backward(fastconv.conv2d(x, w), x, w)
    assert len(algorithms.calls) == 3
    algorithms.clear_plans()
    assert len(algorithms.calls) == 0


def test_plans_are_bounded_in_bytes() -> None:
    """Padding that copies cells takes 8 bytes of table a cell; one plan may take all of the bound, but no more."""
    algorithms.clear_plans()
    for size in range(10):
        algorithms.plan(
            problem((1, 1, 1, 1000 + size), (1, 1, 1, 2), padding=(0, 500_000), mode="replicate")
        )
        assert algorithms._plans.bytes <= algorithms.PLAN_BYTES
    assert len(algorithms._plans) == algorithms.PLAN_BYTES // 8_100_000
    algorithms.plan(
        problem(
            (1, 1, 1, 8), (1, 1, 1, 2), padding=(0, algorithms.PLAN_BYTES // 8), mode="replicate"
        )
    )
    assert len(algorithms._plans) == algorithms.PLAN_BYTES // 8_100_000


@pytest.mark.parametrize("what", costs.PASSES)
@pytest.mark.parametrize("name", algorithms.GENERAL_NAMES)
def test_workspace_of_a_large_problem(name: str, what: costs.Pass) -> None:
    """A 9x9, 64 -> 3 convolution on 16x64x224x224: at most 64 MiB a thread."""
    p = problem((16, 64, 224, 224), (3, 64, 9, 9), padding=4)
    size = algorithms.workspace(algorithms.plan(p, name, what))
    assert 0 < size <= 64 << 20


@pytest.mark.parametrize("what", ["forward", "dx"])
@pytest.mark.parametrize("name", ["direct", "pixel"])
@pytest.mark.parametrize(
    "shapes",
    [
        ((1, 200, 6, 329), (16, 200, 3, 3), 2),
        ((1, 3, 13, 127), (40, 3, 1, 1), 1),
        ((1, 3, 1, 723), (40, 3, 5, 5), 1),
        ((2, 64, 25, 25), (1, 64, 1, 1), 1),
    ],
    ids=str,
)
def test_workspace_of_a_team(shapes: tuple[Any, Any, int], name: str, what: costs.Pass) -> None:
    """The blocks that threads share are smaller: none takes more than was told."""
    x_shape, w_shape, stride = shapes
    p = problem(x_shape, w_shape, stride=stride, padding=w_shape[2] // 2)
    found, transposed = algorithms.plan(p, name, what), what == "dx"
    x, y = np.ones(p.x_shape, p.dtype), np.zeros(p.y_shape, p.dtype)
    source, result = (y, x) if transposed else (x, y)
    w = np.ones((*w_shape[:2], w_shape[2] * w_shape[3]), p.dtype)
    for limit in (None, 30_000, 200_000):
        told = algorithms.workspace(found, limit)
        for threads in (1, 2, 3, 7):
            for lattice in found.lattices:
                options = (1, transposed, None, None, -1, threads, limit)
                assert found.run(lattice, source, w, result, *options) <= told


def test_explain() -> None:
    found = fastconv.explain("conv2d", (1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    assert found.algorithm == "winograd_4_3"
    assert found.flops == 2 * 64 * 64 * 9 * 56 * 56
    assert found.bytes == 4 * (2 * 64 * 56 * 56 + 64 * 64 * 9)
    assert found.workspace > 0
    assert found.expected_seconds > 0
    assert found.isa == fastconv.isa()
    text = str(found)
    assert "winograd_4_3" in text
    assert "not pixel: " in text
    assert found.candidates["winograd_4_3"] == min(found.candidates.values())
    assert found.expected_seconds == found.candidates["winograd_4_3"]
    assert {"linear", "winograd_2_5"}.isdisjoint(found.candidates), "they cannot run it"
    assert found.as_dict()["algorithm"] == "winograd_4_3"
    p = problem((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    assert fastconv.explain(p).algorithm == "winograd_4_3"
    assert fastconv.explain("conv1d_dx", (1, 2, 90), (3, 2, 5), algo="im2col").algorithm == "im2col"
    assert fastconv.explain("conv1d_dw", (1, 2, 90), (3, 2, 5), algo="im2col").algorithm == "direct"


def test_depthwise_weight_gradients() -> None:
    """A row of its own; where it cannot run the problem its name stands for direct, as that runs every convolution."""

    def found(x: tuple[int, ...], groups: int = 1, algo: str = "auto", outputs: int = 1) -> Any:
        w = (outputs * groups, x[1] // groups, 3, 3)
        return fastconv.explain("conv2d_dw", x, w, padding=1, groups=groups, algo=algo)

    layer = (2, 64, 28, 28)
    assert found(layer, 64).algorithm == "depthwise" or isa.current() == "scalar"
    assert {"depthwise", "direct"} <= set(found(layer, 64).candidates)
    for algo in ("depthwise", "direct"):
        assert found(layer, 64, algo).algorithm == algo
    for other in (found(layer, 32, "depthwise"), found(layer, 64, "depthwise", 2)):
        assert other.algorithm == "direct"
    large = (1, 64, 112, 112)
    assert "more than 8192 pixels" not in str(found(large, 64))  # straight from the planes
    apart = fastconv.explain("conv2d_dw", large, (64, 1, 5, 5), padding=2, groups=64)
    assert apart.algorithm == "direct"
    assert "more than 8192 pixels" in str(apart)


def test_explain_says_what_runs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verbose line of a call names the algorithm that explain() announced."""
    import sys

    from fastconv import runtime

    monkeypatch.setattr(runtime, "verbose", sys.stderr)
    for x, w in (
        ((1, 8, 20, 20), (64, 8, 3, 3)),
        ((1, 8, 20, 20), (2, 8, 3, 3)),
        ((1, 8, 20, 20), (64, 8, 1, 1)),
    ):
        expected = fastconv.explain("conv2d", x, w).algorithm
        fastconv.conv2d(np.ones(x, np.float32), np.ones(w, np.float32))
        line = capfd.readouterr().err.splitlines()[-1]
        assert line.split(",")[1:3] == ["conv2d", expected]
    for shape in ((2, 64, 28, 28), (1, 64, 7, 7)):
        a = np.ones(shape, np.float32)
        expected = fastconv.explain("conv2d_dw", shape, (64, 64, 3, 3), padding=1).algorithm
        needs = (False, True, False)
        fastconv.conv2d_backward(a, a, np.ones((64, 64, 3, 3), np.float32), padding=1, needs=needs)
        line = capfd.readouterr().err.splitlines()[-1]
        assert line.split(",")[1:3] == ["conv2d_dw", expected]


def test_explain_errors() -> None:
    with pytest.raises(ValueError, match="operation"):
        fastconv.explain("pool", (1, 1, 3, 3), (1, 1, 2, 2))
    with pytest.raises(ValueError, match="x_shape, w_shape"):
        fastconv.explain("conv2d")
    with pytest.raises(TypeError, match="strides"):
        fastconv.explain("conv2d", (1, 1, 3, 3), (1, 1, 2, 2), strides=2)
