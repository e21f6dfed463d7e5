# SPDX-License-Identifier: BSD-3-Clause
"""Max, average and adaptive pooling in one, two and three dimensions.

Max pooling is always exact; averages of small integers are exact where the divisor is a power of
two (or overridden by one), and obey the tolerance policy elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastconv.functional as F
from fastconv import reference as ref
from fastconv.functional._calls import SERIAL_ELEMENTS
from tests.checks import (
    BAD_ARRAYS,
    BAD_INTS,
    SEEDS,
    adjoint,
    by_teams,
    check_half,
    check_hostile,
    check_integers,
    check_out,
    check_overlap,
    equal,
    examples,
    named,
    same_bytes,
    slope,
)
from tests.data import Array, hostile, integers, reals, rng
from tests.tolerance import assert_close

RANKS = (1, 2, 3)
LARGE = {1: (3, 41, 700), 2: (2, 11, 61, 53), 3: (3, 5, 17, 16, 19)}
SMALL = {1: (2, 3, 19), 2: (2, 3, 9, 10), 3: (1, 2, 5, 6, 7)}


def fast(name: str, rank: int) -> Callable[..., Any]:
    return getattr(F, name.format(rank))


def slow(name: str, rank: int) -> Callable[..., Any]:
    return getattr(ref, name.format(rank))


MAX, AVG = "max_pool{}d", "avg_pool{}d"
ADAPTIVE_MAX, ADAPTIVE_AVG = "adaptive_max_pool{}d", "adaptive_avg_pool{}d"
MAX_BACK, AVG_BACK, ADAPTIVE_MAX_BACK, ADAPTIVE_AVG_BACK = (
    f"{name}_backward" for name in (MAX, AVG, ADAPTIVE_MAX, ADAPTIVE_AVG)
)

MAX_OPTIONS = (
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 2, "stride": 3, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 1},
    {"kernel_size": 1, "stride": 2},
)
AVG_OPTIONS = (
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    {"kernel_size": 4, "stride": 3, "padding": 2, "ceil_mode": True},
    {"kernel_size": 4, "stride": 3, "padding": 2, "ceil_mode": True, "count_include_pad": False},
    {"kernel_size": 3, "stride": 1, "padding": 1, "ceil_mode": True, "divisor_override": 4},
)


def max_both_ways(rank: int, x: Array, **options: Any) -> tuple[Array, Array]:
    """The values with and without return_indices are the same; returns values and indices."""
    pool = fast(MAX, rank)
    y, index = pool(x, return_indices=True, **options)
    assert_array_equal(pool(x, **options), y)
    return y, index


# ------------------------------------------------------------------------------- max pooling


@pytest.mark.parametrize("options", MAX_OPTIONS, ids=str)
@pytest.mark.parametrize("rank", RANKS)
def test_max_pool_is_exact(isa_row, dtype, rank, options):
    for shape in (SMALL[rank], LARGE[rank]):
        x = integers(rng(1), shape, dtype, 20)
        wanted = slow(MAX, rank)(x, return_indices=True, **options)
        y, index = by_teams(lambda x=x: max_both_ways(rank, x, **options))
        equal((y, index), wanted, dtype)
        dy = integers(rng(2), y.shape, dtype) + np.asarray(5, dtype)
        back = fast(MAX_BACK, rank)
        dx = by_teams(lambda: back(dy, index, shape, **options))  # noqa: B023
        assert dx.dtype == dtype
        assert_array_equal(dx, slow(MAX_BACK, rank)(dy, index, shape))
        assert dx.sum(dtype="f8") == dy.sum(dtype="f8") != 0


@pytest.mark.parametrize("rank", RANKS)
def test_the_large_pools_need_a_team(rank):
    assert math.prod(LARGE[rank]) >= SERIAL_ELEMENTS
    assert math.prod(LARGE[rank][:2]) >= 7


@st.composite
def windows(draw: st.DrawFn, *, dilated: bool) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """(rank, sizes, options) of windows that fit; dilated ones may lie in the padding alone."""
    rank = draw(st.sampled_from(RANKS))
    ceil_mode = draw(st.booleans())

    def axis() -> tuple[int, int, int, int, int]:
        kernel, stride = draw(st.integers(1, 5)), draw(st.integers(1, 6))
        dilation = draw(st.integers(1, 3)) if dilated else 1
        padding = draw(st.integers(0, kernel // 2))
        least = max(dilation * (kernel - 1) + 1 - 2 * padding, 1)
        return kernel, stride, dilation, padding, draw(st.integers(least, least + 17 // rank))

    kernel, stride, dilation, padding, sizes = zip(*(axis() for _ in range(rank)), strict=True)
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return rank, sizes, options | ({"dilation": dilation} if dilated else {})


@examples(70)
@given(problem=windows(dilated=True), seed=SEEDS, unbatched=st.booleans())
def test_max_pool_any_windows(isa_row, problem, seed, unbatched):
    rank, sizes, options = problem
    x = integers(rng(seed), ((2,) if unbatched else (2, 2)) + sizes, "f4")
    x[rng(seed).random(x.shape) < 0.02] = np.nan
    wanted = slow(MAX, rank)(x, return_indices=True, **options)
    y, index = max_both_ways(rank, x, **options)
    assert_array_equal(y, wanted[0])
    assert_array_equal(index, wanted[1])
    dy = integers(rng(seed + 1), y.shape, "f4")
    dx = fast(MAX_BACK, rank)(dy, index, x.shape)
    assert_array_equal(dx, slow(MAX_BACK, rank)(dy, index, x.shape))


@pytest.mark.parametrize("rank", RANKS)
def test_max_pool_finite_differences(isa_row, rank):
    x = reals(rng(3), SMALL[rank], "f8")
    options = {"kernel_size": 3, "stride": 2, "padding": 1}
    y, index = max_both_ways(rank, x, **options)
    dy = reals(rng(4), y.shape, "f8")
    dx = fast(MAX_BACK, rank)(dy, index, x.shape, **options)
    slope(lambda a: float(np.vdot(fast(MAX, rank)(a, **options), dy)), x, dx, 1e-7)
    adjoint(
        lambda a: np.take_along_axis(  # with the indices held fixed it is linear
            a.reshape(*x.shape[:2], -1), index.reshape(*x.shape[:2], -1), -1
        ),
        lambda g: fast(MAX_BACK, rank)(g.reshape(y.shape), index, x.shape),
        x,
    )


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("width", [5, 8, 16, 21, 37])
def test_max_pool_special_values_at_every_place(isa_row, dtype, width, special):
    """Every lane and every tail place of a row, in the first, a middle and the last row."""
    for row in range(3):
        x = np.broadcast_to(integers(rng(5), (1, 1, 3, width), dtype), (width, 1, 3, width)).copy()
        x[np.arange(width), 0, row, np.arange(width)] = special
        for options in (
            {"kernel_size": 3, "stride": 1, "padding": 1},
            {"kernel_size": 2, "padding": 1},
            {"kernel_size": (3, width)},
        ):
            wanted = ref.max_pool2d(x, return_indices=True, **options)
            y, index = max_both_ways(2, x, **options)
            assert_array_equal(y, wanted[0])
            assert_array_equal(index, wanted[1])
    assert np.isnan(y).all() or np.isposinf(y).all()


def test_max_pool_ties_and_several_nans(isa_row, dtype):
    nan = np.nan
    x = np.array([[[2, 7, 7, 1], [nan, 3, nan, 0], [5, 5, 5, 5]]], dtype)
    y, index = max_both_ways(2, x, kernel_size=(1, 4))
    assert_array_equal(y, [[[7], [nan], [5]]])
    assert_array_equal(index, [[[1], [6], [8]]])  # the first maximum, the last NaN


@pytest.mark.parametrize("rank", RANKS)
def test_windows_of_minus_infinity_have_valid_indices(isa_row, dtype, rank):
    x = np.full(SMALL[rank], -np.inf, dtype)
    for options in MAX_OPTIONS:
        y, index = max_both_ways(rank, x, **options)
        assert np.isneginf(y).all()
        assert index.min() >= 0
        assert index.max() < math.prod(SMALL[rank][2:])
        assert_array_equal(index, slow(MAX, rank)(x, return_indices=True, **options)[1])


@pytest.mark.parametrize("options", [*MAX_OPTIONS, "global", 18, 20], ids=str)
@pytest.mark.parametrize("rank", RANKS)
def test_which_zero_or_nan_wins(isa_row, dtype, rank, options):
    """The first maximum and the last NaN of a window, bit for bit, with indices and without.

    A number stands for adaptive pooling: 20 windows of 41 cells are all alike, 18 are not.
    """
    shape = (2, 3, *(11, 13, 41)[3 - rank :])
    for share in (0.0, 0.02):
        x = rng(8).choice(np.array([-1, -0.0, 0.0], dtype), shape, p=[0.8, 0.1, 0.1])
        nans = np.array([np.nan, -np.nan, np.nan], dtype)
        nans.view(np.uint8)[-nans.itemsize] ^= 1  # another payload
        x = np.where(rng(9).random(shape) < share, rng(10).choice(nans, shape), x)
        if isinstance(options, int):
            size = (3, 4, options)[3 - rank :]
            y, index = fast(ADAPTIVE_MAX, rank)(x, size, True)
            alone = fast(ADAPTIVE_MAX, rank)(x, size)
        else:
            window = {"kernel_size": shape[2:]} if options == "global" else options
            y, index = fast(MAX, rank)(x, **window, return_indices=True)
            alone = fast(MAX, rank)(x, **window)
            assert_array_equal(index, slow(MAX, rank)(x, **window, return_indices=True)[1])
        cells = np.take_along_axis(x.reshape(2, 3, -1), index.reshape(2, 3, -1), 2)
        same_bytes(y, cells.reshape(y.shape))
        same_bytes(alone, y)


@pytest.mark.parametrize("width", [1, 3, 8, 9, 33])
def test_global_maximum_with_ties_and_nans(isa_row, dtype, width):
    """One window that is the whole plane: the first maximum, the last NaN, at every place."""
    x = integers(rng(6), (3 * width, 2, 3, width), dtype, 3)
    x[np.arange(3 * width), 0, np.arange(3 * width) // width, np.arange(3 * width) % width] = np.nan
    x[:, 0, 0, 0] = np.nan
    x[0, 1] = -np.inf
    for options in ({"kernel_size": (3, width)}, {"kernel_size": (5, width), "padding": (1, 0)}):
        y, index = max_both_ways(2, x, **options)
        wanted = ref.max_pool2d(x, return_indices=True, **options)
        assert_array_equal(y, wanted[0])
        assert_array_equal(index, wanted[1])


DILATED_ROWS = {"kernel_size": (3, 2), "stride": 1, "padding": 1, "dilation": (2, 1)}


@pytest.mark.parametrize("size", [7, 16, 17, 30], ids=str)
@pytest.mark.parametrize("options", [*MAX_OPTIONS, DILATED_ROWS], ids=str)
def test_planes_together_and_rows_in_blocks(isa_row, dtype, options, size):
    """Small planes go through together, rows of windows in blocks: each plane as if it were alone, NaNs or none."""
    x = integers(rng(6), (3, 7, size, size), dtype, 3)
    for special in (None, -0.0, -np.inf, np.inf, np.nan):
        if special is not None:
            x[rng(7).random(x.shape) < 0.02] = special
        y, index = max_both_ways(2, x, **options)
        wanted = ref.max_pool2d(x, return_indices=True, **options)
        assert_array_equal(y, wanted[0])
        assert_array_equal(index, wanted[1])
        for n, c in ((0, 0), (1, 3), (2, 6)):
            same_bytes(F.max_pool2d(x[n : n + 1, c : c + 1], **options), y[n : n + 1, c : c + 1])


@pytest.mark.parametrize(
    "size", [(4, 8), (6, 14), (7, 9), (3, 17), (9, 31), (2, 33), (5, 70)], ids=str
)
def test_halves(isa_row, dtype, size):
    """2x2 windows with a stride of 2: maxima, averages and both gradients, where rows end within vectors and have a cell over."""
    x = integers(rng(6), (3, 5, *size), dtype, 3)
    for special in (-0.0, -np.inf, np.inf, np.nan):
        x[rng(7).random(x.shape) < 0.05] = special
        y, index = max_both_ways(2, x, kernel_size=2)
        wanted = ref.max_pool2d(x, 2, return_indices=True)
        assert_array_equal(y, wanted[0])
        assert_array_equal(index, wanted[1])
        cells = np.take_along_axis(x.reshape(3, 5, -1), index.reshape(3, 5, -1), 2)
        same_bytes(y, cells.reshape(y.shape))
        with np.errstate(invalid="ignore"):
            assert_array_equal(F.avg_pool2d(x, 2), ref.avg_pool2d(x, 2))
            wanted = ref.avg_pool2d_backward(y, x.shape, 2)
        assert_array_equal(F.avg_pool2d_backward(y, x.shape, 2), wanted)
    minus = np.full_like(x, -0.0)
    for zeros in (
        F.avg_pool2d(minus, 2),
        F.avg_pool2d_backward(F.max_pool2d(minus, 2), x.shape, 2),
    ):
        same_bytes(zeros, np.zeros_like(zeros))


SAME = [
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": (5, 3), "stride": 1, "padding": (2, 1), "count_include_pad": False},
    {"kernel_size": (1, 7), "stride": 1, "padding": (0, 3)},
]


@pytest.mark.parametrize("size", [5, 7, 14, 16, 22, 23, 30], ids=str)
@pytest.mark.parametrize("options", [*AVG_OPTIONS, *SAME], ids=str)
def test_average_planes_together(isa_row, dtype, options, size):
    """Each plane as if it were alone, forward and backward."""
    x = reals(rng(6), (3, 7, size, size), dtype)
    y = F.avg_pool2d(x, **options)
    dy = reals(rng(7), y.shape, dtype)
    dx = F.avg_pool2d_backward(dy, x.shape, **options)
    wanted, scale = (ref.avg_pool2d(a, **options) for a in (x, np.abs(x)))
    assert_close(y, wanted, scale, "elementwise")
    wanted, scale = (ref.avg_pool2d_backward(a, x.shape, **options) for a in (dy, np.abs(dy)))
    assert_close(dx, wanted, scale, "elementwise")
    for n, c in ((0, 0), (1, 3), (2, 6)):
        one = (slice(n, n + 1), slice(c, c + 1))
        same_bytes(F.avg_pool2d(x[one], **options), y[one])
        same_bytes(F.avg_pool2d_backward(dy[one], x[one].shape, **options), dx[one])


@pytest.mark.parametrize("size", [(1, 9), (5, 5), (7, 6), (17, 17)], ids=str)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, -0.0])
def test_no_window_reaches_into_the_next_plane(isa_row, dtype, size, special):
    """Windows of small planes with an output for each cell: what lies behind an edge is another plane."""
    x = reals(rng(6), (2, 5, *size), dtype)
    x[0, 2] = x[1, 1] = special
    for options in SAME:
        if options["kernel_size"] != 3 and size[0] == 1:
            continue
        window = {k: v for k, v in options.items() if k != "count_include_pad"}
        same_bytes(F.max_pool2d(x, **window), ref.max_pool2d(x, **window).astype(dtype))
        y = F.avg_pool2d(x, **options)
        dx = F.avg_pool2d_backward(x, x.shape, **options)
        for n, c in ((0, 1), (0, 3), (1, 0), (1, 2)):
            one = (slice(n, n + 1), slice(c, c + 1))
            same_bytes(F.avg_pool2d(x[one], **options), y[one])
            same_bytes(F.avg_pool2d_backward(x[one], x[one].shape, **options), dx[one])
            assert np.isfinite(y[one]).all()
            assert np.isfinite(dx[one]).all()


@pytest.mark.parametrize("kernel", [3, 5])
def test_average_gradients_add_in_one_order(isa_row, dtype, kernel):
    """Whatever the size of the plane: small ones go other ways than large ones."""
    options = {"kernel_size": kernel, "stride": 1, "padding": kernel // 2}
    dy = reals(rng(6), (1, 2, 40, 40), dtype)
    whole = F.avg_pool2d_backward(dy, dy.shape, **options)
    for size in (9, 14, 20, 33):
        part = np.ascontiguousarray(dy[..., :size, :size])
        dx = F.avg_pool2d_backward(part, part.shape, **options)
        inner = (..., slice(size - kernel // 2), slice(size - kernel // 2))
        same_bytes(np.ascontiguousarray(dx[inner]), np.ascontiguousarray(whole[inner]))


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (7, 7), (4, 8), (32, 32), (25, 41)], ids=str)
def test_means_of_planes(isa_row, dtype, size):
    """One window that is the whole plane, of any number of planes: each as if it were alone."""
    x = reals(rng(6), (3, 7, *size), dtype)
    x[1, 2, 0, 0] = np.inf
    x[2, 3, -1, -1] = np.nan
    y = by_teams(lambda: F.avg_pool2d(x, size))
    assert np.isinf(y[1, 2, 0, 0])
    assert np.isnan(y[2, 3, 0, 0])
    for n, c in np.ndindex(3, 7):
        one = (slice(n, n + 1), slice(c, c + 1))
        same_bytes(F.avg_pool2d(x[one], size), y[one])
        if np.isfinite(x[one]).all():
            wanted, scale = (ref.avg_pool2d(a, size) for a in (x[one], np.abs(x[one])))
            assert_close(y[one], wanted, scale, "elementwise")
    dx = by_teams(lambda: F.avg_pool2d_backward(y, x.shape, size))
    assert_array_equal(dx, np.broadcast_to(y / np.asarray(np.prod(size), dtype), x.shape))


def test_windows_too_large_for_their_scratch(isa_row, dtype):
    """Their rows are not copied: indices come from a scan."""
    x = integers(rng(7), (1, 1, 402, 903), dtype, 9)
    options = {"kernel_size": (400, 900), "stride": (1, 2)}
    y, index = max_both_ways(2, x, **options)
    equal((y, index), ref.max_pool2d(x, return_indices=True, **options), dtype)


def test_padding_never_wins(isa_row, dtype):
    x = np.full((1, 1, 4, 9), -5, dtype)
    y, index = max_both_ways(2, x, kernel_size=3, stride=1, padding=1)
    assert_array_equal(y, x)
    assert_array_equal(index[0, 0, 0, :3], [0, 0, 1])


def test_windows_in_the_padding_alone(isa_row, dtype):
    """Dilation jumps over the input: -inf and index 0, as in the reference."""
    for rank in RANKS:
        x = np.ones((2, 2, *(3,) * rank), dtype)
        wanted = np.full((2, 2, *(1,) * rank), -np.inf)
        for dilation in (4, 1000, 10**9, 10**17):
            ceil_mode = dilation > 4
            y, index = max_both_ways(
                rank, x, kernel_size=2, stride=dilation, padding=1, dilation=dilation,
                ceil_mode=ceil_mode,
            )  # fmt: skip
            assert_array_equal(y, wanted)
            assert_array_equal(index, np.zeros(wanted.shape))


# --------------------------------------------------------------------------- average pooling


def abs_avg(rank: int, x: Array, options: dict[str, Any]) -> Array:
    return slow(AVG, rank)(np.abs(x), **options)


@pytest.mark.parametrize("options", AVG_OPTIONS, ids=str)
@pytest.mark.parametrize("rank", RANKS)
def test_avg_pool(isa_row, dtype, rank, options):
    pool, back = fast(AVG, rank), fast(AVG_BACK, rank)
    for shape in (SMALL[rank], LARGE[rank]):
        x = reals(rng(1), shape, dtype)
        y = by_teams(lambda x=x: pool(x, **options))
        assert y.dtype == dtype
        assert_close(y, slow(AVG, rank)(x, **options), abs_avg(rank, x, options), "elementwise")
        dy = reals(rng(2), y.shape, dtype)
        dx = by_teams(lambda: back(dy, shape, **options))  # noqa: B023
        wanted = slow(AVG_BACK, rank)
        assert dx.dtype == dtype
        assert_close(
            dx, wanted(dy, shape, **options), wanted(np.abs(dy), shape, **options), "elementwise"
        )


@pytest.mark.parametrize("divisor", [1, 4, -2, 2**62])
@pytest.mark.parametrize("rank", RANKS)
def test_avg_pool_is_exact_with_powers_of_two(isa_row, dtype, rank, divisor):
    options = {
        "kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "divisor_override": divisor
    }  # fmt: skip
    shape = LARGE[rank]
    x = integers(rng(1), shape, dtype)
    y = by_teams(lambda: fast(AVG, rank)(x, **options))
    equal(y, slow(AVG, rank)(x, **options), dtype)
    dy = integers(rng(2), y.shape, dtype)
    dx = by_teams(lambda: fast(AVG_BACK, rank)(dy, shape, **options))
    equal(dx, slow(AVG_BACK, rank)(dy, shape, **options), dtype)
    for plain in ({"kernel_size": 2}, {"kernel_size": 4, "stride": 1}):
        equal(fast(AVG, rank)(x, **plain), slow(AVG, rank)(x, **plain), dtype)


@pytest.mark.parametrize(
    ("options", "divisors"),
    [
        ({"kernel_size": 3, "stride": 2, "padding": 1}, [3, 3, 3, 3]),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}, [2, 3, 3, 2]),
        ({"kernel_size": 4, "stride": 3, "ceil_mode": True}, [4, 4]),
        ({"kernel_size": 4, "stride": 2, "padding": 0, "ceil_mode": True}, [4, 4, 3]),
        ({"kernel_size": 4, "stride": 3, "padding": 2, "ceil_mode": True}, [4, 4, 4]),
        ({"kernel_size": 5, "stride": 4, "padding": 1, "ceil_mode": True}, [5, 5]),
        # the last window overhangs the right padding: cells 6..8 of 7 + 1, the overhang is free
        ({"kernel_size": 4, "stride": 3, "padding": 1, "ceil_mode": True}, [4, 4, 3]),
        (
            {"kernel_size": 4, "stride": 3, "padding": 1, "ceil_mode": True,
             "count_include_pad": False}, [3, 4, 2],
        ),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "divisor_override": 7}, [7, 7, 7, 7]),
    ],
)  # fmt: skip
def test_divisors_by_hand(isa_row, options, divisors):
    """Sums of ones over the cells inside, divided: the divisor is the cells inside / y."""
    x = np.ones((1, 1, 7))
    y = F.avg_pool1d(x, **options)[0, 0]
    inside = F.avg_pool1d(x, **{**options, "divisor_override": 1})[0, 0]
    assert_array_equal(np.rint(inside / y), divisors)
    assert_array_equal(np.rint(inside / ref.avg_pool1d(x, **options)[0, 0]), divisors)


def test_ceil_mode_output_sizes(isa_row):
    """PyTorch's rule: no window begins in the right padding or beyond."""
    for size in range(1, 12):
        for kernel in range(1, 5):
            for stride in range(1, 6):
                for padding in range(kernel // 2 + 1):
                    x = np.zeros((1, 1, size), "f4")
                    try:
                        y = F.max_pool1d(x, kernel, stride, padding, ceil_mode=True)
                    except ValueError:
                        room = size + 2 * padding - kernel
                        assert room < 0
                        assert math.ceil(room / stride) < 0
                        continue
                    last = (y.shape[2] - 1) * stride
                    room = size + 2 * padding - kernel
                    assert last < size + padding
                    assert last >= room or last + stride >= size + padding
                    assert F.avg_pool1d(x, kernel, stride, padding, ceil_mode=True).shape == y.shape


@examples(70)
@given(
    problem=windows(dilated=False),
    seed=SEEDS,
    unbatched=st.booleans(),
    include=st.booleans(),
    override=st.sampled_from((None, None, 3, 8, -1)),
)
def test_avg_pool_any_windows(isa_row, problem, seed, unbatched, include, override):
    rank, sizes, options = problem
    options |= {"count_include_pad": include, "divisor_override": override}
    shape = ((2,) if unbatched else (2, 2)) + sizes
    x = reals(rng(seed), shape, "f4")
    y = fast(AVG, rank)(x, **options)
    scale = abs_avg(rank, x, options)
    assert_close(y, slow(AVG, rank)(x, **options), np.abs(scale), "elementwise")
    adjoint(
        lambda a: fast(AVG, rank)(a, **options),
        lambda g: fast(AVG_BACK, rank)(g, shape, **options),
        x.astype("f8"),
    )


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_avg_pool_special_values_at_every_place(isa_row, dtype, special):
    width = 21
    x = np.broadcast_to(integers(rng(5), (1, 1, 3, width), dtype), (width, 1, 3, width)).copy()
    x[np.arange(width), 0, 1, np.arange(width)] = special
    options = {"kernel_size": (2, 4), "stride": (1, 2), "padding": (1, 2), "divisor_override": 8}
    assert_array_equal(F.avg_pool2d(x, **options), ref.avg_pool2d(x, **options))
    dy = ref.avg_pool2d(x, **options).astype(dtype)
    dx = F.avg_pool2d_backward(dy, x.shape, **options)
    assert_array_equal(dx, ref.avg_pool2d_backward(dy, x.shape, **options))


# -------------------------------------------------------------------------- adaptive pooling

ADAPTIVE = {
    1: (1, 3, 7, 9, 19, 23, None),
    2: (1, (2, 5), (None, 3), (9, 10), (11, 1), (4, 5)),
    3: (1, (2, 3, 4), (2, 3, 3)),
}


@pytest.mark.parametrize("rank", RANKS)
def test_adaptive_pools(isa_row, dtype, rank):
    for size in ADAPTIVE[rank]:
        x = integers(rng(1), SMALL[rank], dtype, 20)
        wanted = slow(ADAPTIVE_MAX, rank)(x, _sizes(size, rank), return_indices=True)
        y, index = fast(ADAPTIVE_MAX, rank)(x, size, True)
        equal((y, index), wanted, dtype)
        assert_array_equal(fast(ADAPTIVE_MAX, rank)(x, size), y)
        dy = integers(rng(2), y.shape, dtype)
        dx = fast(ADAPTIVE_MAX_BACK, rank)(dy, index, x.shape)
        assert_array_equal(dx, slow(ADAPTIVE_MAX_BACK, rank)(dy, index, x.shape))
        x = reals(rng(3), SMALL[rank], dtype)
        mean, scale = (slow(ADAPTIVE_AVG, rank)(a, _sizes(size, rank)) for a in (x, np.abs(x)))
        y = fast(ADAPTIVE_AVG, rank)(x, size)
        assert y.dtype == dtype
        assert_close(y, mean, scale, "elementwise")
        dx = fast(ADAPTIVE_AVG_BACK, rank)(y, x.shape)
        wanted, scale = (slow(ADAPTIVE_AVG_BACK, rank)(a, x.shape) for a in (y, np.abs(y)))
        assert_close(dx, wanted, scale, "elementwise")
        adjoint(
            lambda a, s=size: fast(ADAPTIVE_AVG, rank)(a, s),
            lambda g: fast(ADAPTIVE_AVG_BACK, rank)(g, SMALL[rank]),
            x.astype("f8"),
        )


def _sizes(size: Any, rank: int) -> Any:
    """The reference takes None only inside a tuple, or for all axes as an int's place."""
    return size if isinstance(size, tuple) else (size,) * rank


@pytest.mark.parametrize("rank", RANKS)
def test_adaptive_pools_by_teams(isa_row, dtype, rank):
    x = integers(rng(1), LARGE[rank], dtype, 20)
    size = (3, 5, 4)[:rank]
    y, index = by_teams(lambda: fast(ADAPTIVE_MAX, rank)(x, size, True))
    equal((y, index), slow(ADAPTIVE_MAX, rank)(x, size, return_indices=True), dtype)
    by_teams(lambda: fast(ADAPTIVE_MAX_BACK, rank)(y, index, x.shape))
    y = by_teams(lambda: fast(ADAPTIVE_AVG, rank)(x, size))
    wanted, scale = (slow(ADAPTIVE_AVG, rank)(a, size) for a in (x, np.abs(x)))
    assert_close(y, wanted, scale * 4, "elementwise")  # sums of some hundred terms
    by_teams(lambda: fast(ADAPTIVE_AVG_BACK, rank)(y, x.shape))


@pytest.mark.parametrize("rank", RANKS)
def test_global_pools(isa_row, dtype, rank):
    shape = (2, 3, *(4, 8, 2)[:rank])
    x = integers(rng(), shape, dtype)
    axes = tuple(range(2, 2 + rank))
    assert_array_equal(fast(ADAPTIVE_AVG, rank)(x, 1), x.mean(axes, keepdims=True, dtype="f8"))
    y, index = fast(ADAPTIVE_MAX, rank)(x, 1, return_indices=True)
    assert_array_equal(y, x.max(axes, keepdims=True))
    assert_array_equal(index.ravel(), x.reshape(6, -1).argmax(1))


@examples(40)
@given(seed=SEEDS, data=st.data(), rank=st.sampled_from(RANKS))
def test_adaptive_pools_any_sizes(isa_row, data, seed, rank):
    sizes = tuple(data.draw(st.integers(1, 24 // rank)) for _ in range(rank))
    size = tuple(data.draw(st.none() | st.integers(1, 12)) for _ in range(rank))
    x = reals(rng(seed), (2, *sizes), "f4")
    x[rng(seed).random(x.shape) < 0.02] = np.nan
    y, index = fast(ADAPTIVE_MAX, rank)(x, size, True)
    wanted = slow(ADAPTIVE_MAX, rank)(x, size, True)
    assert_array_equal(y, wanted[0])
    assert_array_equal(index, wanted[1])
    assert_array_equal(fast(ADAPTIVE_MAX, rank)(x, size), y)
    assert_array_equal(np.isnan(fast(ADAPTIVE_AVG, rank)(x, size)), np.isnan(y))
    x = np.nan_to_num(x)
    mean, scale = (slow(ADAPTIVE_AVG, rank)(a, size) for a in (x, np.abs(x)))
    assert_close(fast(ADAPTIVE_AVG, rank)(x, size), mean, scale, "elementwise")


# ------------------------------------------------------------------------------------ arrays


def calls(rank: int, shape: tuple[int, ...]) -> dict[str, Callable[..., Any]]:
    """Every forward pool as f(x, out=None)."""
    options = {"kernel_size": 3, "stride": 2, "padding": 1}
    return {
        "max": lambda x, out=None: fast(MAX, rank)(x, out=out, **options),
        "avg": lambda x, out=None: fast(AVG, rank)(x, out=out, divisor_override=4, **options),
        "adaptive_max": lambda x, out=None: fast(ADAPTIVE_MAX, rank)(x, 2, out=out),
        "adaptive_avg": lambda x, out=None: fast(ADAPTIVE_AVG, rank)(x, shape[-rank:], out=out),
        "indices": lambda x, out=None: fast(MAX, rank)(x, return_indices=True, out=out, **options),
    }


@pytest.mark.parametrize("name", calls(1, (1, 1, 1)))
@pytest.mark.parametrize("rank", RANKS)
def test_arrays(dtype, rank, name):
    x = integers(rng(), SMALL[rank], dtype)
    f = calls(rank, x.shape)[name]
    check_hostile(f, x)
    check_half(f, x)
    check_integers(f, x)
    for image in (x[0], x[:0], x[:, :0]):
        for got, whole in zip(_parts(f(image)), _parts(f(x)), strict=True):
            assert got.dtype == whole.dtype
            wanted = whole[0] if image.ndim < x.ndim else whole[: image.shape[0], : image.shape[1]]
            same_bytes(got, wanted)
    if name == "indices":
        out = np.full(f(x)[0].shape, np.nan, dtype)
        y, index = f(x, out)
        assert y is out
        same_bytes((y, index), f(x))
        return
    check_out(lambda out: f(x, out), f(x))
    check_overlap(f, x, f(x).shape)


def _parts(value: Any) -> tuple[Array, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("rank", RANKS)
def test_arrays_of_the_gradients(dtype, rank):
    x = integers(rng(), SMALL[rank], dtype)
    y, index = fast(MAX, rank)(x, 2, return_indices=True)
    back, avg_back = fast(MAX_BACK, rank), fast(AVG_BACK, rank)
    wanted = back(y, index, x.shape)
    for f in (
        lambda g: back(g, index, x.shape),
        lambda g: fast(ADAPTIVE_MAX_BACK, rank)(g, index, x.shape),
        lambda g: avg_back(g, x.shape, 2),
        lambda g: fast(ADAPTIVE_AVG_BACK, rank)(g, x.shape),
    ):
        check_hostile(f, y)
        check_half(f, y)
        check_integers(f, y)
        same_bytes(f(y), f(y.copy()))
    for awkward in (
        *hostile(index).values(),
        index.astype("i4"),
        index.astype("u8"),
        index.tolist(),
    ):
        same_bytes(back(y, awkward, x.shape), wanted)
    for shape in (x.shape, list(x.shape), np.array(x.shape)):
        same_bytes(back(y, index, shape), wanted)
        same_bytes(avg_back(y, shape, 2), avg_back(y, x.shape, 2))
    same_bytes(back(y[0], index[0], x.shape[1:]), wanted[0])
    same_bytes(back(y[:0], index[:0], (0, *x.shape[1:])), wanted[:0])
    same_bytes(avg_back(y[0], x.shape[1:], 2), avg_back(y, x.shape, 2)[0])
    same_bytes(avg_back(y[:0], (0, *x.shape[1:]), 2), wanted[:0])
    same_bytes(
        fast(ADAPTIVE_AVG_BACK, rank)(y[0], x.shape[1:]),
        fast(ADAPTIVE_AVG_BACK, rank)(y, x.shape)[0],
    )


# --------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_what_is_no_array(kind):
    bad = BAD_ARRAYS[kind]
    index = np.zeros((1, 1, 1, 1), int)
    for call in (
        lambda: F.max_pool2d(bad, 1),
        lambda: F.avg_pool2d(bad, 1),
        lambda: F.adaptive_max_pool2d(bad, 1),
        lambda: F.adaptive_avg_pool2d(bad, 1),
    ):
        with named("x"):
            call()
    for call in (
        lambda: F.max_pool2d_backward(bad, index, (1, 1, 1, 1)),
        lambda: F.adaptive_max_pool2d_backward(bad, index, (1, 1, 1, 1)),
        lambda: F.avg_pool2d_backward(bad, (1, 1, 1, 1), 1),
    ):
        with named("dy"):
            call()


@pytest.mark.parametrize("bad", [*BAD_INTS, -1, 0, (1, 1, 1, 1), (), (1, 2.0, 1), (2, True)])
@pytest.mark.parametrize("argument", ["kernel_size", "stride", "padding", "dilation"])
@pytest.mark.parametrize("rank", RANKS)
def test_bad_windows(rank, argument, bad):
    if argument == "padding" and isinstance(bad, int) and bad == 0:
        bad = -2
    x = np.zeros((1, 1, *(6,) * rank))
    options = {"kernel_size": 2, argument: bad}
    with named(argument):
        fast(MAX, rank)(x, **options)
    if argument != "dilation":
        with named(argument):
            fast(AVG, rank)(x, **options)
        with named(argument):
            fast(AVG_BACK, rank)(np.zeros((1, 1, *(3,) * rank)), x.shape, **options)


@pytest.mark.parametrize("rank", RANKS)
def test_windows_that_do_not_fit(rank):
    x = np.zeros((1, 1, *(6,) * rank))
    for options in ({"kernel_size": 7}, {"kernel_size": 2, "dilation": 6}, {"kernel_size": 2**62}):
        with named("kernel_size"):
            fast(MAX, rank)(x, **options)
    with named("kernel_size"):
        fast(MAX, rank)(x, 2, dilation=2**62)
    with named("kernel_size"):
        fast(AVG, rank)(x, 2**62)
    for padding in (2, 2**61, 2**62):
        with named("padding"):
            fast(MAX, rank)(x, 3, padding=padding)
        with named("padding"):
            fast(AVG, rank)(x, 3, padding=padding)


def test_the_largest_windows_that_do_fit(isa_row):
    x = np.arange(6.0).reshape(1, 1, 6)
    assert_array_equal(F.max_pool1d(x, 2, stride=2**62), [[[1]]])
    assert_array_equal(F.max_pool1d(x, 2**59, padding=2**58), [[[5]]])
    y, index = F.max_pool1d(x, 2, 2**58, 0, 2**58, ceil_mode=True, return_indices=True)
    assert_array_equal((y, index), np.zeros((2, 1, 1, 1)))
    assert_array_equal(F.avg_pool1d(x, 2**59, padding=2**58, count_include_pad=False), [[[2.5]]])


@pytest.mark.parametrize("bad", ["no", "yes", None, 3, -1, 0.5, (True,), np.ones(2)])
def test_bad_flags(bad):
    x, dy = np.zeros((1, 1, 6)), np.zeros((1, 1, 3))
    with named("ceil_mode"):
        F.max_pool1d(x, 2, ceil_mode=bad)
    with named("return_indices"):
        F.max_pool1d(x, 2, return_indices=bad)
    with named("return_indices"):
        F.adaptive_max_pool1d(x, 2, return_indices=bad)
    for name in ("ceil_mode", "count_include_pad"):
        with named(name):
            F.avg_pool1d(x, 2, **{name: bad})
        with named(name):
            F.avg_pool1d_backward(dy, (1, 1, 6), 2, **{name: bad})


@pytest.mark.parametrize("flag", [1, 0, np.True_, np.int8(0)])
def test_flags_may_be_one_and_zero(flag):
    x = integers(rng(), (1, 2, 7), "f4")
    same_bytes(F.avg_pool1d(x, 2, ceil_mode=flag), F.avg_pool1d(x, 2, ceil_mode=bool(flag)))


@pytest.mark.parametrize(
    "padding", ["same", "valid", ((1, 0), (0, 1)), ((1, 1), (1, 1)), np.ones((2, 2), int)]
)
def test_poolings_pad_both_ends_alike(padding):
    """Pairs and words are conv2d's; the error says what to do instead, and that does it."""
    x = integers(rng(), (1, 2, 5, 6), "f4")
    for pool in (F.max_pool2d, F.avg_pool2d):
        with pytest.raises(TypeError, match=r"(?s)padding: .*fastconv\.pad"):
            pool(x, 2, padding=padding)
    padded = F.pad(x, ((1, 0), (0, 1)), value=-np.inf)
    assert_array_equal(F.max_pool2d(padded, 2), ref.max_pool2d(padded, 2))


@pytest.mark.parametrize("rank", RANKS)
def test_bad_ranks(rank):
    for axes in {0, 1, 2, 3, 4, 5, 6} - {rank + 1, rank + 2}:
        x = np.zeros((1,) * axes)
        for call in (
            lambda: fast(MAX, rank)(x, 1),  # noqa: B023
            lambda: fast(AVG, rank)(x, 1),  # noqa: B023
            lambda: fast(ADAPTIVE_MAX, rank)(x, 1),  # noqa: B023
            lambda: fast(ADAPTIVE_AVG, rank)(x, 1),  # noqa: B023
        ):
            with named("x"):
                call()
    with named("x"):
        fast(ADAPTIVE_AVG, rank)(np.zeros((1, 1, *(0,) * rank)), 1)


@pytest.mark.parametrize("bad", [*BAD_INTS, 0, -1, (1,) * 4, (), (1, 0, 1), (2.0,) * 3, "ab"])
def test_bad_output_sizes(bad):
    for rank in RANKS:
        for name in (ADAPTIVE_MAX, ADAPTIVE_AVG):
            with named("output_size"):
                fast(name, rank)(np.zeros((1, 1, *(6,) * rank)), bad)


@pytest.mark.parametrize("bad", [*BAD_INTS, 0])
def test_bad_divisors(bad):
    with named("divisor_override"):
        F.avg_pool1d(np.zeros((1, 1, 6)), 2, divisor_override=bad)
    with named("divisor_override"):
        F.avg_pool1d_backward(np.zeros((1, 1, 3)), (1, 1, 6), 2, divisor_override=bad)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("index", [-1, 6, 2**31, 2**32, 2**62, -(2**63), 2**64 - 1])
def test_indices_out_of_range(isa_row, dtype, rank, index):
    shape = (2, 3, *(1,) * (rank - 1), 6)
    dy = np.ones((2, 3, *(1,) * (rank - 1), 3), dtype)
    good = np.zeros(dy.shape, np.uint64 if index > 2**63 else np.int64)
    for place in (0, good.size - 1):
        bad = good.copy()
        bad.flat[place] = index
        for name in (MAX_BACK, ADAPTIVE_MAX_BACK):
            with named("indices"):
                fast(name, rank)(dy, bad, shape)


def test_bad_indices_and_shapes():
    dy, shape = np.ones((2, 3, 4)), (2, 3, 8)
    good = np.zeros(dy.shape, int)
    for bad in (
        good * 1.0,
        good > 0,
        good * 1j,
        good.astype(object),
        None,
        good[0],
        good[..., :3],
        "a",
    ):
        with named("indices"):
            F.max_pool1d_backward(dy, bad, shape)
    for bad in ((2, 4, 8), (3, 8)):
        with named("dy"):
            F.max_pool1d_backward(dy, good, bad)
    for bad in (
        None,
        5,
        "abc",
        (2, 3, -1),
        (2, 3, 8.0),
        (2, 3, True),
        (2, 3, 2**62),
        (2, 3, 2**64),
        (),
        (8,),
        (2, 3, 8, 1),
        (1, 2, 3, 8),
    ):
        with named("x_shape"):
            F.max_pool1d_backward(dy, good, bad)
    shapes = (2, 3, -1), (2, 3, 0), (2, 3, 8.0), (2, 3, True), (2, 3, 2**64), (3,), (1, 2, 3, 8)
    for bad in (None, 5, "abc", (), *shapes):
        with named("x_shape"):
            F.avg_pool1d_backward(dy, bad, 2)
        with named("x_shape"):
            F.adaptive_avg_pool1d_backward(dy, bad)
    for bad in (dy[0], dy[..., :3], dy[:1], dy[:, :2]):
        with named("dy"):
            F.avg_pool1d_backward(bad, shape, 2)
    for bad in (dy[0], dy[:1], dy[:, :2]):
        with named("dy"):
            F.adaptive_avg_pool1d_backward(bad, shape)


@pytest.mark.parametrize("rank", RANKS)
def test_empty_planes(rank):
    x = np.zeros((1, 1, *(0,) * rank))
    for name in (MAX, AVG):
        for options in ({}, {"padding": 1}):
            with named("x"):
                fast(name, rank)(x, 2, **options)


def test_huge_planes_are_refused_at_once():
    """No table of their windows is begun. A MemoryError is as good as the argument's name."""
    for call in (
        lambda: F.avg_pool1d_backward(np.zeros((1, 1, 3)), (1, 1, 2**50), 2),
        lambda: F.adaptive_avg_pool1d_backward(np.zeros((1, 2, 3)), (1, 1, 2**50)),
        lambda: F.max_pool1d_backward(np.zeros((1, 1, 3)), np.zeros((1, 1, 3), int), (1, 1, 2**50)),
        lambda: F.adaptive_avg_pool1d(np.zeros((1, 1, 3)), 2**50),
    ):
        with pytest.raises((MemoryError, ValueError)):
            call()


# ------------------------------------------------------------------------------- hard cases


@pytest.mark.parametrize("dy", [np.float64(1), np.zeros((1, 1, 0)), None])
def test_adaptive_backward_names_dy(dy):
    with named("dy"):
        F.adaptive_avg_pool1d_backward(dy, (1, 1, 6))


def test_indices_into_nothing():
    with named("indices"):
        F.max_pool1d_backward(np.ones((1, 1, 3)), np.full((1, 1, 3), 7), (1, 1, 0))


def test_a_scalar_array_is_an_integer():
    x = np.arange(6.0).reshape(1, 1, 6)
    assert_array_equal(F.max_pool1d(x, np.array(2)), F.max_pool1d(x, 2))
