# SPDX-License-Identifier: BSD-3-Clause
"""Split products: sums exact to the bit on integers, the same bits everywhere, the guards, and the choice by precision.

They run on every row with tile registers, and on `scalar`, whose software model of those has the same bits. Their errors are in
test_precision.py.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastconv
from fastconv import algorithms, costs, reference, runtime
from fastconv.kernels import correlate, gemm, isa
from fastconv.problem import conv_problem
from tests.checks import SEEDS, by_teams, examples, same_bytes
from tests.conftest import DEFAULT_ROW, ROWS
from tests.data import Array, integers, reals, rng, trusted

SPLITS = {f"split_{products}": products for products in algorithms.SPLITS}
# What a call does on data of another magnitude than it can hold: values and the algorithms that notice.
OUT_OF_RANGE = {
    "infinite": np.inf,
    "nan": np.nan,
    "rounds-to-infinity": 3.4e38,
    "denormal": 1e-40,
}


def rows_with_split() -> list[str]:
    found = []
    for row in ROWS:
        isa.select(row)
        found += [row] if isa.has_split() else []
    isa.select(DEFAULT_ROW)
    return found


@pytest.fixture(params=rows_with_split())
def split_row(request: pytest.FixtureRequest) -> Iterator[str]:
    isa.select(request.param)
    yield request.param
    isa.select(DEFAULT_ROW)


@pytest.fixture(params=SPLITS)
def split(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# x, w and options: rows joined and not, several blocks of channels and of pixels, panels of one tile and of two, channel tails,
# strides and phases, groups, other ranks, and pointwise kernels, whose rows and planes are one. Up to 15 channels share tiles
# with the taps.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "joined": ((2, 5, 7, 7), (19, 5, 3, 3), {"padding": 1}),
    "rows": ((1, 3, 5, 16), (16, 3, 3, 9), {"padding": 4}),
    "rows-many": ((1, 17, 5, 16), (16, 17, 3, 9), {"padding": 4}),
    "blocks": ((1, 100, 6, 5), (33, 100, 3, 3), {"padding": 1}),
    "large": ((1, 2, 40, 41), (3, 2, 3, 3), {}),
    "strided": ((2, 4, 11, 12), (6, 4, 3, 5), {"stride": (2, 3), "padding": 2}),
    "strided-many": ((2, 17, 11, 12), (18, 17, 3, 5), {"stride": (2, 3), "padding": 2}),
    "sparse": ((1, 16, 9, 10), (17, 16, 2, 1), {"stride": (3, 2)}),  # some of dx belong to no phase
    # images of one task: their columns fill its tiles
    "small": ((7, 3, 4, 5), (18, 3, 3, 3), {"padding": 1}),
    "small-many": ((7, 33, 4, 5), (34, 33, 3, 3), {"padding": 1}),
    "small-pointwise": ((7, 40, 3, 3), (34, 40, 1, 1), {}),
    # one phase of dx has one tap, which reads dy at its own place
    "halved": ((1, 40, 8, 8), (33, 40, 3, 3), {"stride": 2, "padding": 1}),
    "dilated": ((1, 33, 9, 9), (5, 33, 3, 2), {"dilation": (2, 3)}),
    "groups": ((2, 12, 8, 6), (15, 4, 2, 2), {"groups": 3}),
    "reflected": ((1, 2, 6, 6), (2, 2, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
    "line": ((2, 6, 50), (7, 6, 5), {"stride": 2, "padding": 1}),
    "volume": ((1, 3, 4, 5, 6), (4, 3, 2, 3, 3), {"padding": 1, "stride": (1, 2, 1)}),
    "volume-many": ((1, 16, 4, 5, 6), (17, 16, 2, 3, 3), {"padding": 1, "stride": (1, 2, 2)}),
    "pointwise": ((2, 37, 5, 7), (35, 37, 1, 1), {}),
    "pointwise-groups": ((1, 8, 30, 31), (6, 4, 1, 1), {"groups": 2}),
    "pointwise-strided": ((1, 9, 7, 8), (20, 9, 1, 1), {"stride": 2}),
    "pointwise-padded": ((1, 9, 3, 4), (20, 9, 1, 1), {"padding": 1}),
    # columns of some channels at a time; of dx, the phase that has the tap is the last
    "pointwise-deep": ((2, 300, 5, 4), (170, 300, 1, 1), {}),
    "pointwise-deep-strided": ((3, 270, 6, 5), (150, 270, 1, 1), {"stride": 2, "padding": 1}),
    # blocks of several d, and for two threads an odd number of them
    "pointwise-volumes": ((3, 100, 3, 4, 5), (300, 100, 1, 1, 1), {}),
    "pointwise-volume": ((2, 3, 2, 3, 4), (4, 3, 1, 1, 1), {}),
    "linear": ((20, 6, 3, 3), (18, 6, 3, 3), {}),
}


def operands(name: str, make: Any = integers) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
    x_shape, w_shape, options = CASES[name]
    g = rng(len(name))
    x, w, b = (make(g, shape, "float32") for shape in (x_shape, w_shape, w_shape[:1]))
    return x, w, b, make(g, reference.conv(x, w, **options).shape, "float32"), options


def both(x: Array, w: Array, b: Array, dy: Array, **options: Any) -> tuple[Array, ...]:
    """The forward convolution with everything, and its gradients."""
    rank = x.ndim - 2
    forward = getattr(fastconv, f"conv{rank}d")
    backward = getattr(fastconv, f"conv{rank}d_backward")
    y = forward(x, w, b, residual=dy, activation="relu", **options)
    return (y, *backward(dy, x, w, **options))


@pytest.mark.parametrize("name", CASES)
def test_integers_are_exact(name: str, split: str, split_row: str) -> None:
    x, w, b, dy, options = operands(name)
    y = reference.conv(x, w, b, residual=dy, activation="relu", **options)
    trusted(y)
    expected = (y, *reference.conv_backward(dy, x, w, **options))
    found = by_teams(lambda: both(x, w, b, dy, algo=split, **options))
    for a, e in zip(found, expected, strict=True):
        assert_array_equal(a, e)


@examples(20)
@given(seed=SEEDS, data=st.data())
def test_any_problem(split: str, split_row: str, seed: int, data: st.DataObject) -> None:
    def size(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups = size(1, 3)
    kernel = (size(1, 4), size(1, 4))
    x_shape = (size(1, 3), groups * size(1, 40), kernel[0] + size(0, 9), kernel[1] + size(0, 20))
    options: dict[str, Any] = {"groups": groups, "stride": (size(1, 3), size(1, 3))}
    options["padding"] = ((size(0, 3), size(0, 3)), (size(0, 3), size(0, 3)))
    options["dilation"] = (size(1, 2) if kernel[0] <= 2 else 1, 1)
    x_shape = (*x_shape[:2], x_shape[2] + kernel[0], x_shape[3])
    g = rng(seed)
    x = integers(g, x_shape, "float32")
    w = integers(g, (groups * size(1, 40), x_shape[1] // groups, *kernel), "float32")
    dy = integers(g, reference.conv(x, w, **options).shape, "float32")
    found = (
        fastconv.conv2d(x, w, algo=split, **options),
        *fastconv.conv2d_backward(dy, x, w, algo=split, **options),
    )
    expected = (reference.conv(x, w, **options), *reference.conv_backward(dy, x, w, **options))
    for a, e in zip(found, expected, strict=True):
        assert_array_equal(a, e)


@pytest.mark.parametrize(("algo", "bits"), [("split_1", 8), ("split_3", 17), ("split_6", 24)])
def test_parts_hold_so_many_bits(algo: str, bits: int, split_row: str) -> None:
    """Odd integers of `bits` bits times a power of two, either way round; with more bits the last is lost.

    The sign of a part holds one more bit of the part before.
    """
    long = (rng(1).integers(2 ** (bits - 1), 2**bits, (1, 1, 6, 70)) | 1).astype("float32")
    long *= rng(2).choice([-1, 1], long.shape)
    short = np.full((1, 1, 1, 1), 0.25, "float32")
    assert_array_equal(fastconv.conv2d(long, short, algo=algo), long / 4)
    weights = long.reshape(-1, 1, 1, 1)
    assert_array_equal(fastconv.conv2d(short, weights, algo=algo).ravel(), long.ravel() / 4)
    if bits < 24:
        longer = 2 * long + 1
        assert not (fastconv.conv2d(longer, short, algo=algo) == longer / 4).all()


@pytest.mark.parametrize("name", ["blocks", "strided", "pointwise", "pointwise-deep", "linear"])
def test_neither_threads_nor_workspace_nor_layout_show(
    name: str, split: str, split_row: str
) -> None:
    x, w, b, dy, options = operands(name, reals)
    expected = by_teams(lambda: both(x, w, b, dy, algo=split, **options))
    for limit in (1 << 14, 1 << 17, 1 << 30):
        again = both(x, w, b, dy, algo=split, max_workspace=limit, **options)
        same_bytes(again, expected)
    last = fastconv.conv2d(
        np.moveaxis(x, 1, -1),
        w.transpose(2, 3, 1, 0),
        b,
        residual=np.moveaxis(dy, 1, -1),
        activation="relu",
        algo=split,
        layout="NHWC",
        **options,
    )
    assert_array_equal(np.moveaxis(last, -1, 1), expected[0])


@pytest.fixture
def caches() -> Iterator[Any]:
    before = isa.machine()["caches"]
    yield isa.set_cache
    for level in (1, 2):
        isa.set_cache(level, before[f"L{level}"])


@pytest.mark.parametrize("name", CASES)
def test_caches_do_not_show(name: str, split: str, split_row: str, caches: Any) -> None:
    """Neither in how many steps are summed at a time, nor in which loop is outside."""
    x, w, b, dy, options = operands(name, reals)
    expected = both(x, w, b, dy, algo=split, **options)
    for first, second in ((1 << 14, 1 << 16), (1 << 17, 1 << 14), (1 << 22, 1 << 24)):
        caches(1, first)
        caches(2, second)
        same_bytes(by_teams(lambda: both(x, w, b, dy, algo=split, **options)), expected)


def test_large_weights_serve_several_images_at_once(split_row: str, caches: Any) -> None:
    """Those that leave the caches from image to image: the channels are outside, the images inside."""
    shapes = (64, 128, 7, 7), (128, 128, 3, 3)
    caches(2, 1 << 26)
    one = fastconv.explain("conv2d", *shapes, padding=1, algo="split_6").workspace
    caches(2, 1 << 20)
    some = fastconv.explain("conv2d", *shapes, padding=1, algo="split_6").workspace
    assert 2 * one < some


def test_phases_of_a_gradient_share_one_band(split_row: str) -> None:
    problem = conv_problem("float32", (1, 16, 12, 12), (16, 16, 3, 3), 2, 1, 1, 1, "zeros", 2)
    for algo in SPLITS:
        (lattice,) = algorithms.plan(problem, algo, "dx").lattices
        assert len(lattice.phases) == 4


@pytest.mark.parametrize("name", ["blocks", "pointwise", "small", "small-many", "linear"])
def test_prepared_weights(name: str, split: str, split_row: str) -> None:
    x, w, b, _, options = operands(name, reals)
    prepared = fastconv.prepare_conv2d(w, b, algo=split, **options)
    expected = fastconv.conv2d(x, w, b, algo=split, **options)
    for _ in range(2):
        assert_array_equal(prepared(x), expected)


def test_weights_kept_for_one_stride_serve_another(split: str, split_row: str) -> None:
    """A 1x1 kernel is packed as a matrix, whatever its stride and padding."""
    x, w, *_ = operands("pointwise")
    x, w = np.repeat(x, 2, 1), np.tile(w, (1, 2, 1, 1))
    w.flags.writeable = False
    for options in ({}, {"stride": 2}, {"padding": 1}, {}):
        assert_array_equal(
            fastconv.conv2d(x, w, algo=split, **options), reference.conv(x, w, **options)
        )


@pytest.mark.parametrize("name", ["blocks", "strided", "strided-many", "pointwise", "linear"])
@pytest.mark.parametrize("kind", OUT_OF_RANGE)
@pytest.mark.parametrize("operand", ["x", "w", "dy"])
def test_what_is_out_of_range_is_done_again(
    operand: str, kind: str, name: str, split: str, split_row: str
) -> None:
    """The bits of the direct kernel, and the count of reruns tells."""
    x, w, b, dy, options = operands(name, reals)
    array = {"x": x, "w": w, "dy": dy}[operand]
    array[tuple(n // 2 for n in array.shape)] = OUT_OF_RANGE[kind]
    # the gradient that does not read the operand is not done again: one call at a time
    calls = [
        lambda algo: fastconv.conv2d(x, w, b, algo=algo, **options),
        lambda algo: fastconv.conv2d_backward(
            dy, x, w, algo=algo, needs=(True, False, False), **options
        )[0],
        lambda algo: fastconv.conv2d_backward(
            dy, x, w, algo=algo, needs=(False, True, False), **options
        )[1],
    ]
    for call, reads in zip(calls, ("xw", ("dy", "w"), ("dy", "x")), strict=True):
        if operand not in reads:
            continue
        before = correlate.reruns()
        with np.errstate(all="ignore"):
            found = call(split)
        assert correlate.reruns() > before
        expected = call("linear" if name == "linear" else "direct")
        same_bytes(found, expected)


def test_prepared_weights_remember_that_they_are_small(split: str, split_row: str) -> None:
    x, w, b, _, options = operands("blocks", reals)
    w[3, 4, 1, 1] = 1e-39
    prepared = fastconv.prepare_conv2d(w, b, algo=split, **options)
    expected = fastconv.conv2d(x, w, b, algo="direct", **options)
    for _ in range(2):
        assert_array_equal(prepared(x), expected)


def test_large_finite_sums_are_not_done_again(split: str, split_row: str) -> None:
    """Even where all of them together are not finite, which would depend on the blocks, and so on the threads."""
    a, b = np.full((3, 40), 2.0**60, "float32"), np.full((800, 40), 2.0**60, "float32")
    x, w = a[:1].reshape(1, 40, 1, 1), b[:3].reshape(3, 40, 1, 1)
    before = correlate.reruns()
    for threads in (1, 7):
        c = np.empty((3, 800), "float32")
        gemm.multiply(a, False, b, True, None, c, threads, SPLITS[split])
        assert_array_equal(c, a @ b.T)
    x = np.repeat(x, 500, 3)
    y = fastconv.conv2d(x, w, algo=split)
    assert_array_equal(y, reference.conv(x, w))
    dy = np.full(y.shape, 2.0**58, "float32")
    dw = fastconv.conv2d_backward(dy, x, w, algo=split, needs=(False, True, False))[1]
    assert_array_equal(dw, np.float32(500 * 2.0**118))
    assert correlate.reruns() == before


def test_small_times_small_is_done_again(split: str, split_row: str) -> None:
    """Neither operand is too small, but their products are."""
    x, w, _, _, options = operands("joined", reals)
    x, w = x * np.float32(1e-18), w * np.float32(1e-18)
    found = fastconv.conv2d(x, w, algo=split, **options)
    assert_array_equal(found, fastconv.conv2d(x, w, algo="direct", **options))


@pytest.mark.parametrize("name", CASES)
def test_ordinary_numbers_are_not_done_again(name: str, split: str, split_row: str) -> None:
    """Zeros, negative zeros and eight orders of magnitude; and the sums are those of the split kernels."""
    x, w, b, dy, options = operands(name, reals)
    x[x < 0] = -0.0
    dy *= np.float32(1e-8)
    before = correlate.reruns()
    found = both(x, w, b, dy, algo=split, **options)
    assert correlate.reruns() == before
    assert not np.array_equal(found[2], both(x, w, b, dy, algo="direct", **options)[2])


@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (5, 7, 3), (33, 50, 70), (200, 210, 260), (1, 40, 257)]
)
def test_matrix_product(
    m: int, n: int, k: int, a_transposed: bool, b_transposed: bool, split: str, split_row: str
) -> None:
    g = rng(m)
    a, b, bias = (integers(g, s, "float32") for s in ((m, k), (k, n), (n,)))
    ordered = [
        np.ascontiguousarray(x.T) if t else x for x, t in ((a, a_transposed), (b, b_transposed))
    ]
    for threads in (1, 2, 3, 7):
        c = np.full((m, n), np.nan, "float32")
        gemm.multiply(
            ordered[0], a_transposed, ordered[1], b_transposed, bias, c, threads, SPLITS[split]
        )
        assert_array_equal(c, a @ b + bias)


def test_matrix_product_in_rounds(split_row: str) -> None:
    """Parts of more than gemm.SPLIT_LIMIT bytes: 6 * (16 + 4000) * 2100 = 51 million."""
    g = rng(3)
    a, b = integers(g, (16, 2100), "float32"), integers(g, (4000, 2100), "float32")
    c = np.full((16, 4000), np.nan, "float32")
    gemm.multiply(a, False, b, True, None, c, 2, 6)
    assert_array_equal(c, a @ b.T)


@pytest.mark.parametrize(
    ("m", "n", "k"), [(5, 7, 3), (33, 50, 300), (16, 4200, 33), (9, 4000, 2100)]
)
def test_matrix_product_with_weights(m: int, n: int, k: int, split: str, split_row: str) -> None:
    """Packed once, the same bits: narrow panels, several rounds of terms and slabs of columns; and the same guards."""
    g = rng(m)
    a, b, bias = (reals(g, s, "float32") for s in ((m, k), (n, k), (n,)))
    expected, c = np.empty((2, m, n), "float32")
    gemm.multiply(a, False, b, True, bias, expected, 2, SPLITS[split])
    weights = correlate.Weights(b)
    for threads in (1, 2, 3):
        c[...] = np.nan
        gemm.multiply(a, False, weights, True, bias, c, threads, SPLITS[split])
        same_bytes(c, expected)
    size = weights.nbytes
    assert size >= n * k
    b[-1, -1] = 1e-39
    weights.refresh(b)
    before = correlate.reruns()
    gemm.multiply(a, False, weights, True, bias, c, 2, SPLITS[split])
    assert correlate.reruns() == before + 1
    gemm.multiply(a, False, b, True, bias, expected, 2)
    same_bytes(c, expected)


@pytest.mark.parametrize(("m", "n"), [(4200, 3), (3, 4200)])
def test_matrix_product_in_slabs(m: int, n: int, split_row: str) -> None:
    """More rows or columns than gemm.SLAB; a bias; the guard in the last of them."""
    g = rng(6)
    a, b, bias = (integers(g, s, "float32") for s in ((m, 33), (33, n), (n,)))
    c = np.full((m, n), np.nan, "float32")
    gemm.multiply(a, False, b, False, bias, c, 2, 6)
    assert_array_equal(c, a @ b + bias)
    a[-1, 5] = b[7, -1] = np.nan
    gemm.multiply(a, False, b, False, bias, c, 2, 6)
    assert_array_equal(c, a @ b + bias)


def test_linear_by_precision(split_row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word takes the split that it allows, forward and backward, where tile registers are the fastest."""
    seconds = lambda products, *_: 1 / (7 - products) if products else 2.0  # noqa: E731
    monkeypatch.setattr(costs, "gemm_seconds", seconds)
    g = rng(4)
    x, w, dy = (reals(g, s, "float32") for s in ((40, 70), (50, 70), (40, 50)))
    scale = abs(x) @ abs(w).T
    last = 0.0
    for word, bound in (("highest", 2**-23), ("high", 2**-15), ("medium", 2**-7)):
        y = fastconv.linear(x, w, precision=word)
        error = float((abs(y - x.astype(float) @ w.T.astype(float)) / scale).max())
        assert 4 * last < error < bound
        last = error
        dx, dw, _ = fastconv.linear_backward(dy, x, w, precision=word)
        assert 0 < np.abs(dx - dy.astype(float) @ w).max() / (abs(dy) @ abs(w)).max() < bound
        assert 0 < np.abs(dw - dy.T.astype(float) @ x).max() / (abs(dy.T) @ abs(x)).max() < bound


@pytest.mark.parametrize(
    ("word", "expected"), [("highest", "split_6"), ("high", "split_3"), ("medium", "split_1")]
)
def test_choice_by_precision(
    word: str, expected: str, split_row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The costs of the row with tile registers: a strided layer takes the fewest products that are allowed."""
    monkeypatch.setitem(costs.COSTS, split_row, costs.COSTS["amx"])
    problem = conv_problem("float32", (1, 128, 28, 28), (256, 128, 3, 3), 2, 1, 1, 1, "zeros", 2)
    shape = costs.shape_of(problem)
    chosen, reasons, _ = algorithms.select("auto", shape, word)
    assert chosen.name == expected
    less = [name for name in SPLITS if SPLITS[name] < SPLITS[expected]]
    assert all(repr(word) in dict(reasons)[name] for name in less)
    shape = costs.shape_of(problem, "dw")
    assert algorithms.select("auto", shape, word)[0].name == expected


def test_precision_reaches_the_kernels(split_row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an argument, in a context, of a layer; forward and both gradients."""
    table = costs.COSTS["amx"]
    slow = {name: {**ns, "calls": 1e9} for name, ns in table.ns.items() if "split" not in name}
    monkeypatch.setitem(costs.COSTS, split_row, replace(table, ns={**table.ns, **slow}))
    algorithms.clear_plans()
    g = rng(5)
    x, w = reals(g, (1, 64, 15, 15), "float32"), reals(g, (64, 64, 3, 3), "float32")
    expected = fastconv.conv2d(x, w, stride=2, algo="split_1")
    dy = reals(g, expected.shape, "float32")
    gradients = fastconv.conv2d_backward(dy, x, w, stride=2, algo="split_1")
    same_bytes(fastconv.conv2d(x, w, stride=2, precision="medium"), expected)
    same_bytes(fastconv.conv2d_backward(dy, x, w, stride=2, precision="medium"), gradients)
    with fastconv.precision("medium"):
        same_bytes(fastconv.conv2d(x, w, stride=2), expected)
        same_bytes(fastconv.prepare_conv2d(w, stride=2)(x), expected)
    layer = fastconv.nn.Conv2d(64, 64, 3, stride=2, bias=False, precision="medium")
    layer.weight.data[...] = w
    same_bytes(layer(x), expected)
    assert not np.array_equal(fastconv.conv2d(x, w, stride=2), expected)
    algorithms.clear_plans()


def test_explain_tells_of_precision_and_guard(split_row: str) -> None:
    shapes = (1, 64, 15, 15), (64, 64, 3, 3)
    found = fastconv.explain("conv2d", *shapes, stride=2, algo="split_6", precision="high")
    assert found.precision == "high"
    assert found.guard is not None
    assert found.guard in str(found)
    assert found.reruns == correlate.reruns()
    assert "precision 'medium'" in fastconv.explain("conv2d", *shapes).passed_by["split_1"]
    assert fastconv.explain("conv2d", *shapes, algo="direct").guard is None


def test_verbose_lines_tell_of_reruns(split_row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO()
    monkeypatch.setattr(runtime, "verbose", lines)
    x, w, *_ = operands("joined", reals)
    fastconv.conv2d(x, w, algo="split_6")
    x[0, 0, 3, 3] = np.inf
    with np.errstate(all="ignore"):
        fastconv.conv2d(x, w, algo="split_6")
    names = [line.split(",")[2] for line in lines.getvalue().splitlines()]
    assert names[-2:] == ["split_6", "split_6+direct"]


def test_in_python_threads_and_forked_children(split_row: str) -> None:
    """Tile registers are configured by each task, on whatever thread it runs."""
    x, w, b, dy, options = operands("blocks", reals)
    expected = both(x, w, b, dy, algo="split_6", **options)
    found: list[Any] = []
    team = [
        threading.Thread(target=lambda: found.append(both(x, w, b, dy, algo="split_6", **options)))
        for _ in range(4)
    ]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert len(found) == 4
    for one in found:
        same_bytes(one, expected)
    child = os.fork()
    if child == 0:
        try:
            same_bytes(both(x, w, b, dy, algo="split_6", **options), expected)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("row", [row for row in ROWS if row not in rows_with_split()])
def test_rows_without_tile_registers_say_so(row: str, split: str) -> None:
    x, w, _, dy, options = operands("joined")
    isa.select(row)
    try:
        for call in (
            lambda: fastconv.conv2d(x, w, algo=split, **options),
            lambda: fastconv.conv2d_backward(
                dy, x, w, algo=split, needs=(False, True, False), **options
            ),
        ):
            with pytest.raises(ValueError, match=rf"algo: '{split}' .* no tile registers"):
                call()
        for word in ("high", "medium"):
            same_bytes(
                fastconv.conv2d(x, w, precision=word, **options), fastconv.conv2d(x, w, **options)
            )
    finally:
        isa.select(DEFAULT_ROW)


def test_float64_is_not_split(split: str, split_row: str) -> None:
    x, w = np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3))
    with pytest.raises(ValueError, match=rf"algo: '{split}' .* only float32"):
        fastconv.conv2d(x, w, algo=split)
    for word in ("high", "medium"):
        assert (
            fastconv.explain("conv2d", x.shape, w.shape, dtype="float64", precision=word).algorithm
            == fastconv.explain("conv2d", x.shape, w.shape, dtype="float64").algorithm
        )
