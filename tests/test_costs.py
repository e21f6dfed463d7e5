# SPDX-License-Identifier: BSD-3-Clause
"""The model of costs: what it counts, not whether the constants fit this machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.costs import KINDS, Measured, fit, losses, random_problems
from benchmarks.problems import find
from fastconv import algorithms, costs
from fastconv.kernels import isa
from fastconv.problem import Conv, conv_problem


def problem(x: tuple[int, ...], w: tuple[int, ...], *options: int) -> Conv:
    stride, padding, dilation, groups = (*options, *(1, 0, 1, 1)[len(options) :])
    return conv_problem("float32", x, w, stride, padding, dilation, groups, "zeros", 2)


def rows(what: costs.Pass) -> list[str]:
    """The algorithms of a pass that the active row has."""
    ns = costs.COSTS[isa.current()].ns
    return [a.name for a in algorithms.rows(what) if costs.family(a.name, what) in ns]


@pytest.mark.parametrize("what", costs.PASSES)
def test_every_row_has_costs_of_its_algorithms(what: costs.Pass, isa_row: str) -> None:
    assert ("split_6" in rows(what)) == isa.has_split()
    assert len(rows(what)) == len(algorithms.rows(what)) - 3 * (not isa.has_split())
    for name in rows(what):
        assert costs.COSTS[isa.current()].ns[costs.family(name, what)]["efficiency"] > 0


def test_constants_are_of_what_is_counted() -> None:
    """A constant without a count, misspelt for example, would silently count for nothing."""
    counted = dict.fromkeys(costs.COSTS["amx"].ns, frozenset({"efficiency"}))
    for size, outputs, kernel, stride, groups in (
        (9, 1, 3, 1, 1),
        (9, 8, 3, 1, 1),
        (9, 40, 3, 2, 1),
        (9, 40, 3, 3, 1),
        (48, 8, 16, 16, 1),
        (3, 8, 3, 1, 1),
        (40, 6, 3, 1, 6),
        (40, 6, 3, 2, 6),
    ):
        for what in costs.PASSES:
            w_shape = (outputs, 6 // groups, kernel, kernel)
            p = problem((2, 6, size, size), w_shape, stride, 0, 1, groups)
            shape = costs.shape_of(p, what)
            for row in algorithms.rows(what):
                counted[costs.family(row.name, what)] |= costs.count(row.name, shape).keys()
    for table in costs.COSTS.values():
        for name, constants in table.ns.items():
            assert constants.keys() <= counted[name]


def test_rows_that_share_tiles() -> None:
    """Three pairs of rows of 7 and one row by itself; with the latency of each tile's accumulators."""
    shape = costs.shape_of(problem((1, 8, 7, 7), (2 * isa.lanes(4), 8, 3, 3), 1, 1))
    most = isa.tiles(4)["conv"][2]
    pixels = {5: 3 * (5 + 4 + 5) + 2 * 4, 6: 3 * (4 + 6 + 4) + 2 * 4, 14: 3 * 14 + 7}[most]
    assert costs.count("direct", shape)["fma"] == 9 * 8 * 2 * pixels
    assert costs.count("direct", shape)["tiles"] == {5: 11, 6: 11, 14: 4}[most]


def test_prepared_weights_cost_nothing() -> None:
    """One image of 7x7: F(4, 3) pays for its weights only where they are packed beforehand."""
    p = problem((1, 512, 7, 7), (512, 512, 3, 3), 1, 1)
    shape = costs.shape_of(p)
    prepared = costs.shape_of(p, prepared=True)
    assert prepared == replace(shape, prepared=True)
    for name in ("winograd_4_3", "direct", "im2col", "pixel"):
        assert costs.seconds(name, prepared) < costs.seconds(name, shape)
    assert algorithms.plan(p, prepared=True) is not algorithms.plan(p)


@pytest.mark.parametrize(
    ("x", "w"),
    [
        ((0, 2, 5, 5), (3, 2, 3, 3)),
        ((1, 2, 3, 3), (3, 2, 3, 3)),
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((1, 2, 3, 0), (3, 2, 1, 1)),
        ((1, 2, 0, 3), (3, 2, 1, 1)),
    ],
)
def test_costs_of_next_to_nothing(x: tuple[int, ...], w: tuple[int, ...]) -> None:
    for what in costs.PASSES:
        shape = costs.shape_of(problem(x, w, 1, int(0 in x[1:])), what)
        assert all(costs.seconds(name, shape) >= 0 for name in rows(what))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_an_input_gradient_multiplies_as_much_as_its_forward(kernel: int, stride: int) -> None:
    """The phases of the input share the taps: as many products, up to the edges."""
    p = problem((1, 4, 60, 60), (8, 4, kernel, kernel), stride, kernel // 2)
    shape = costs.shape_of(p, "dx")
    products = shape.runs * shape.pixels * shape.terms * shape.outputs
    assert products == pytest.approx(p.flops / 2, rel=0.15)


@pytest.mark.parametrize("name", ["direct", "pixel"])
@pytest.mark.parametrize("what", ["forward", "dx"])
def test_bands_that_reach_far_hold_few_outputs(name: str, what: costs.Pass) -> None:
    """2048 channels with a dilation of 24: the band of each output is copied for it alone."""
    near, far = (
        costs.shape_of(problem((1, 2048, 33, 33), (2048, 2048, 3, 3), 1, d, d), what)
        for d in (1, 24)
    )
    assert costs.count(name, far)["copies"] > 50 * costs.count(name, near)["copies"]
    assert costs.seconds(name, far) > 1.25 * costs.seconds("im2col", far)
    assert costs.seconds(name, near) < 1.5 * costs.seconds("im2col", near)


def test_pixels_that_a_short_phase_lacks_are_not_stored() -> None:
    """Four phases of 8 or 9 pixels a side take 3x3 tiles of 4x4."""
    short, long = (
        costs.count("winograd_4_3", costs.shape_of(problem((1, 64, n, n), (64, 64, 3, 3), 1, 4, 4)))
        for n in (33, 36)
    )
    assert short["fma"] == long["fma"]
    assert short["stores"] == pytest.approx(long["stores"] * 33**2 / 36**2)


def test_a_band_holds_the_channels_of_a_task() -> None:
    """The weight gradient goes through 2048 channels 32 at a time: there is room for them."""
    near, far = (
        costs.count(
            "direct",
            costs.shape_of(problem((1, 2048, 33, 33), (256, 2048, 3, 3), 1, d, d), "dw"),
        )
        for d in (1, 12)
    )
    assert far["copies"] < 10 * near["copies"]


def test_few_outputs_have_large_blocks() -> None:
    """Along the pixels a weight gradient sums those of 32x32 in few blocks, each with its chains."""
    shape = costs.shape_of(problem((3, 32, 32, 32), (1, 32, 3, 3), 1, 1), "dw")
    blocks = 3 * max(1, 1024 // (256 * isa.lanes(4)))
    assert costs.count("direct", shape)["chains"] == blocks * 32 * 9


def test_few_channels_wait_for_each_other() -> None:
    """A tile of one channel by two vectors of outputs takes as long as one of four."""
    fma = [
        costs.count(
            "winograd_4_3",
            costs.shape_of(problem((1, c, 8, 8), (2 * isa.lanes(4), c, 3, 3), 1, 1), "dw"),
        )["fma"]
        for c in (1, 4, 8)
    ]
    assert fma == [36 * 4 * n for n in (8, 8, 16)]


def test_fit_finds_the_constants() -> None:
    counts = [{"a": 1.0 + i, "b": 5.0 + i * i, "c": 3.0} for i in range(12)]
    rows = [(2 * c["a"] + 0.5 * c["b"] + 7 * c["c"], c) for c in counts]
    found = fit(rows)
    assert found == pytest.approx({"a": 2, "b": 0.5, "c": 7}, rel=1e-2)


def test_random_problems_are_valid_and_the_same_for_a_seed() -> None:
    found = list(random_problems(1, 10))
    assert {p.name for p in found} == {kind.__name__ for kind, _ in KINDS}
    assert all(min(p.x_shape + p.y_shape + p.w_shape) > 0 for p in found)
    assert found == list(random_problems(1, 10))
    assert found != list(random_problems(2, 10))


def test_losses_of_the_choice() -> None:
    """A loss is the time of what the model takes over that of the fastest."""
    (p,) = find("resnet_3x3_56")
    shape = costs.shape_of(problem(p.with_batch(1).x_shape, p.w_shape, 1, 1))
    right = {"direct": 3e6, "winograd_4_3": 1e6}
    wrong = {"direct": 1e6, "winograd_4_3": 2.5e6}
    found = losses(Measured(p, shape, ns) for ns in (right, wrong))
    assert [loss for loss, _ in found] == [2.5, 1]
    assert found[0][1].startswith("winograd_4_3 instead of direct: forward, ")
