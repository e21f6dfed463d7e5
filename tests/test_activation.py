# SPDX-License-Identifier: BSD-3-Clause
"""relu, tanh, sigmoid, softmax and log_softmax, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.testing import assert_array_equal

import fastconv.functional as F
from fastconv import reference as ref
from fastconv.functional._calls import SERIAL_ELEMENTS
from tests.checks import (
    BAD_ARRAYS,
    BAD_INTS,
    SEEDS,
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
from tests.data import Array, integers, reals, rng
from tests.tolerance import assert_close

ELEMENTWISE = ("relu", "tanh", "sigmoid")
ROWS = ("softmax", "log_softmax")
LARGE = (41, 71, 37)
AXES = (-3, -2, -1, 0, 1, 2)


def fast(name: str) -> Callable[..., Any]:
    return getattr(F, name)


def slow(name: str) -> Callable[..., Any]:
    return getattr(ref, name)


def back(name: str) -> str:
    return f"{name}_backward"


def scale_of(name: str, x: Array, dy: Array | None = None) -> Array:
    """The size of the result, or of the largest intermediate of the gradient."""
    x = np.asarray(x, "f8")
    if dy is None:
        return np.abs(slow(name)(x))
    dy = np.abs(dy, dtype="f8")
    return {"relu": dy, "tanh": dy, "sigmoid": dy * ref.sigmoid(x)}[name]


def row_scale(name: str, x: Array, y: Array, axis: int, dy: Array | None = None) -> Array:
    """x is the input and y the result of the forward function."""
    x, y = np.asarray(x, "f8"), np.asarray(y, "f8")
    if dy is None:
        deviation = np.abs(x - x.max(axis, keepdims=True))
        # exp(t) has the relative error eps*|t| of its argument, and so have its sums
        share = ref.softmax(x, axis)
        spread = (share * (1 + deviation)).sum(axis, keepdims=True)
        if name == "softmax":
            return y * (deviation + spread)
        return deviation + np.abs(y) + spread
    dy = np.abs(dy, dtype="f8")
    if name == "softmax":
        return y * (dy + (dy * y).sum(axis, keepdims=True))
    return dy + np.exp(y) * (1 + np.abs(y)) * dy.sum(axis, keepdims=True)


def class_of(name: str) -> str:
    return "elementwise" if name == "relu" else "transcendental"


# ----------------------------------------------------------------------- element by element


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(isa_row, dtype, name):
    spread = np.geomspace(1e-40 if dtype == "float32" else 1e-310, 1000, 997)
    for x in (
        reals(rng(1), LARGE, dtype) * np.asarray(4, dtype),
        np.concatenate([spread, -spread, np.arange(-30, 30, 0.0625)]).astype(dtype),
    ):
        dy = reals(rng(2), x.shape, dtype)
        y = by_teams(lambda x=x: fast(name)(x))
        assert y.dtype == dtype
        assert_close(y, slow(name)(x), scale_of(name, x), class_of(name))
        dx = by_teams(lambda x=x, dy=dy: fast(back(name))(dy, x))
        assert dx.dtype == dtype
        assert_close(dx, slow(back(name))(dy, x), scale_of(name, x, dy), class_of(name))


def test_the_large_shape_needs_a_team():
    assert math.prod(LARGE) >= SERIAL_ELEMENTS


@pytest.mark.parametrize("size", [1, 3, 8, 13, 16, 31, 70001])
def test_relu_is_exact(isa_row, dtype, size):
    x, dy = integers(rng(1), (size,), dtype), integers(rng(2), (size,), dtype)
    x[0], dy[0] = 3, 2
    equal(by_teams(lambda: F.relu(x)), ref.relu(x), dtype)
    equal(by_teams(lambda: F.relu_backward(dy, x)), ref.relu_backward(dy, x), dtype)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_each_element_by_itself(isa_row, dtype, name):
    """A result does not depend on the element's place: the vectors and their tails agree."""
    x, dy = reals(rng(1), (45,), dtype), reals(rng(2), (45,), dtype)
    y, dx = fast(name)(x), fast(back(name))(dy, x)
    for first in range(17):
        same_bytes(fast(name)(x[first:]), y[first:])
        same_bytes(fast(back(name))(dy[first:], x[first:]), dx[first:])
    assert_close(y, slow(name)(x), scale_of(name, x), class_of(name))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_special_values_at_every_place(isa_row, dtype, name):
    specials = [np.nan, np.inf, -np.inf, 0.0, -0.0, np.finfo(dtype).max, -np.finfo(dtype).max]
    specials += [np.finfo(dtype).smallest_subnormal, -np.finfo(dtype).tiny]
    for size in (1, 5, 16, 37):
        for special in specials:
            x = np.broadcast_to(reals(rng(1), (size,), dtype), (size, size)).copy()
            np.fill_diagonal(x, special)
            y, wanted = fast(name)(x), slow(name)(x)
            assert_array_equal(np.diag(y), np.diag(wanted).astype(dtype))
            assert np.isfinite(y[~np.eye(size, dtype=bool)]).all()
            dy = np.ones_like(x)
            dx, wanted = fast(back(name))(dy, x), slow(back(name))(dy, x)
            assert_close(
                np.nan_to_num(np.diag(dx)), np.nan_to_num(np.diag(wanted)), 1.0, class_of(name)
            )
            assert_array_equal(np.isnan(dx), np.isnan(wanted))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_special_gradients(isa_row, dtype, name):
    x, dy = np.ones((3, 9), dtype), np.ones((3, 9), dtype)
    dy[1, 3], dy[2, 8], dy[0, 0] = np.nan, np.inf, -np.inf
    assert_array_equal(np.isfinite(fast(back(name))(dy, x)), np.isfinite(slow(back(name))(dy, x)))
    x[...] = -1
    dx = F.relu_backward(dy, x)
    assert_array_equal(dx, np.zeros((3, 9)))  # chosen, not multiplied: no NaN from 0 * inf


def test_relu_at_its_corner(isa_row, dtype):
    x = np.array([0.0, -0.0, np.nan, 1, -1] * 4, dtype)
    dx = F.relu_backward(np.arange(1, 21).astype(dtype), x)
    assert_array_equal(dx[:5], [0, 0, 3, 4, 0])
    assert_array_equal(F.relu(x)[:5], [0, 0, np.nan, 1, 0])


def test_sigmoid_and_tanh_saturate_without_overflow(isa_row, dtype):
    big = np.array([-1e30, -1000, -200, 200, 1000, 1e30] * 3, dtype)
    with np.errstate(all="raise"):
        y = F.sigmoid(big)
    assert_array_equal(y[[0, 1, 3, 4, 5]], [0, 0, 1, 1, 1])
    assert (F.sigmoid(np.array([-700.0, -80.0])) > 0).all()
    assert_array_equal(F.tanh(big), np.sign(big))
    assert_array_equal(F.tanh_backward(big, big), np.zeros(18))
    assert np.signbit(F.tanh(np.array([-0.0] * 9, dtype))).all()


@examples(60)
@given(
    name=st.sampled_from(ELEMENTWISE),
    x=st_numpy.arrays(
        "f4", st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7),
        elements=st.floats(-100, 100, width=32),
    ),
)  # fmt: skip
def test_elementwise_any_array(isa_row, name, x):
    y = fast(name)(x)
    assert_close(y, slow(name)(x), scale_of(name, x), class_of(name))
    dx = fast(back(name))(y, x)
    assert_close(dx, slow(back(name))(y, x), scale_of(name, x, y), class_of(name))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_finite_differences(isa_row, name):
    x, dy = reals(rng(1), (4, 5, 7), "f8"), reals(rng(2), (4, 5, 7), "f8")
    slope(lambda a: float(np.vdot(fast(name)(a), dy)), x, fast(back(name))(dy, x))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_arrays(dtype, name):
    x, dy = integers(rng(1), (3, 5, 6), dtype), integers(rng(2), (3, 5, 6), dtype)
    f, g = fast(name), fast(back(name))
    check_hostile(f, x)
    check_hostile(g, dy, x)
    check_out(lambda out: f(x, out=out), f(x))
    check_out(lambda out: g(dy, x, out=out), g(dy, x))
    check_overlap(f, x, x.shape)
    check_overlap(lambda a, out=None: g(a, x, out=out), dy, dy.shape)
    check_overlap(lambda a, out=None: g(dy, a, out=out), x, x.shape)
    check_half(f, x)
    check_half(g, dy, x)
    check_integers(f, x)
    check_integers(g, dy, x)
    for shape in ((), (0,), (2, 0, 3)):
        empty = np.ones(shape, dtype)
        assert f(empty).shape == g(empty, empty).shape == shape
        same_bytes(f(empty), f(np.ones((1,), dtype)).reshape(()) if shape == () else empty)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_in_place(isa_row, dtype, name):
    f, g = fast(name), fast(back(name))
    for shape in (LARGE, (5, 7)):
        x, dy = reals(rng(1), shape, dtype), reals(rng(2), shape, dtype)
        y, dx = f(x), g(dy, x)
        for overwrite in (x.copy(), np.asfortranarray(x)):
            assert f(overwrite, out=overwrite) is overwrite
            assert_array_equal(overwrite, y)
        for first, second, out in ((dy.copy(), x, 0), (dy, x.copy(), 1)):
            target = (first, second)[out]
            assert g(first, second, out=target) is target
            same_bytes(target, dx)
        same = x.copy()
        g(same, same, out=same)
        same_bytes(same, g(x, x))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_out_is_x_and_overlaps_dy(name):
    memory = reals(rng(1), (100,), "f8")
    x, dy = memory[1:], memory[:-1]
    wanted = fast(back(name))(dy.copy(), x.copy())
    assert_array_equal(fast(back(name))(dy, x, out=x), wanted)


def test_in_place_by_teams(dtype):
    x = reals(rng(1), LARGE, dtype)

    def in_place() -> Array:
        copy = x.copy()
        return F.relu(copy, out=copy)

    same_bytes(by_teams(in_place), F.relu(x))


# ------------------------------------------------------------------------------ row by row


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("axis", AXES)
def test_rows(isa_row, dtype, name, axis):
    for shape in (LARGE, (2, 3, 5), (1, 17, 1), (4, 1, 33), (2, 70, 1100), (130, 3, 300)):
        x, dy = reals(rng(1), shape, dtype) * np.asarray(5, dtype), reals(rng(2), shape, dtype)
        y = by_teams(lambda x=x: fast(name)(x, axis))
        wanted = slow(name)(x, axis)
        assert y.dtype == dtype
        assert_close(y, wanted, row_scale(name, x, wanted, axis), "transcendental")
        dx = by_teams(lambda y=y, dy=dy: fast(back(name))(dy, y, axis))
        assert dx.dtype == dtype
        scale = row_scale(name, x, y, axis, dy)
        assert_close(dx, slow(back(name))(dy, y, axis), scale, "transcendental")


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_equal_values_are_exact(isa_row, dtype, name):
    for n in (1, 2, 4, 8, 16, 64, 1024):
        y = fast(name)(np.full((3, n), 7.0, dtype))
        exact = np.full((3, n), 1 / n)
        assert_array_equal(y, exact if name == "softmax" else np.log(exact).astype(dtype))
    dx = F.softmax_backward(np.full((2, 8), 3, dtype), np.full((2, 8), 0.125, dtype))
    assert_array_equal(dx, np.zeros((2, 8)))
    dx = F.log_softmax_backward(np.ones((2, 8), dtype), np.zeros((2, 8), dtype))
    assert_array_equal(dx, np.full((2, 8), -7))


def test_softmax_gradient_is_exact_on_integers(isa_row, dtype):
    for n in (1, 3, 8, 21):
        dy, y = integers(rng(1), (50, n), dtype), integers(rng(2), (50, n), dtype)
        assert_array_equal(F.softmax_backward(dy, y), ref.softmax_backward(dy, y))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_in_rows(isa_row, dtype, name, special):
    for width in (2, 5, 8, 21, 40, 70):
        x = np.broadcast_to(reals(rng(1), (width,), dtype), (width, width)).copy()
        np.fill_diagonal(x, special)
        y, wanted = fast(name)(x), slow(name)(x)
        assert_array_equal(np.isnan(y), np.isnan(wanted))
        assert_array_equal(np.isneginf(y), np.isneginf(wanted))
        finite = np.isfinite(wanted)
        assert_close(y[finite], wanted[finite], np.abs(wanted[finite]) + 4, "transcendental")
        assert finite.any() or special != -np.inf
        clean = np.vstack([x, np.zeros((1, width), dtype)])
        same_bytes(fast(name)(clean)[:-1], y)
        assert np.isfinite(fast(name)(clean)[-1]).all()
    all_of_it = np.full((2, 9), special, dtype)
    assert_array_equal(fast(name)(all_of_it), slow(name)(all_of_it))


@pytest.mark.parametrize("length", [10, 31, 32, 64, 70, 513, 1000, 2500], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_each_row_by_itself(isa_row, dtype, name, length):
    """Rows go through the passes together, and their last group is not full: each as if it were alone."""
    function = getattr(F, name)
    x = rng(3).normal(0, 9, (67, length)).astype(dtype)
    x[5, 3], x[33, 0], x[40, -1] = np.nan, np.inf, -np.inf
    x[66] = -np.inf
    y = by_teams(lambda: function(x))
    for row, result in zip(x, y, strict=True):
        same_bytes(function(row), result)
    bad = np.isnan(y).all(1)
    assert_array_equal(np.flatnonzero(bad), [5, 33, 66])
    assert not np.isnan(y[~bad]).any()


@pytest.mark.parametrize("length", [1, 9, 33, 70, 2100], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_each_column_by_itself(isa_row, dtype, name, length):
    """Vectors of columns go through the passes together, and the last ones are not full: two columns as if alone.

    The longest do so in the result, not in a copy.
    """
    function = getattr(F, name)
    x = rng(3).normal(0, 9, (length, 601)).astype(dtype)
    x[0, 5], x[length // 2, 77], x[-1, 600] = np.nan, np.inf, -np.inf
    x[:, 130] = -np.inf
    y = by_teams(lambda: function(x, 0))
    assert_array_equal(np.flatnonzero(np.isnan(y[0])), [5, 77, 130] + [600] * (length == 1))
    for first in (0, 4, 76, 129, 311, 511, 543, 575, 591, 599):
        same_bytes(function(x[:, first : first + 2], 0), y[:, first : first + 2])
    odd = np.ascontiguousarray(x[:, 100:])
    same_bytes(function(odd, 0), y[:, 100:])


def test_gradient_of_what_is_no_log_softmax(isa_row, dtype):
    """Any y may come: exp overflows to infinity as it should."""
    y = np.array([[0, 60, 1e3, 1e30, np.inf] * 9], dtype)
    with np.errstate(over="ignore"):
        wanted = 1 - np.exp(y) * y.size
    got = F.log_softmax_backward(np.ones_like(y), y)
    np.testing.assert_allclose(got, wanted, rtol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", ROWS)
def test_rows_do_not_overflow(isa_row, dtype, name):
    x = np.array([[1000, 999, -1000], [-1e30, -1e30, 0], [1e30, 1e30, 0]], dtype)
    y, wanted = fast(name)(x), slow(name)(x)
    assert_close(y, wanted, row_scale(name, x, wanted, -1), "transcendental")
    assert_array_equal(fast(name)(x + np.asarray(0, dtype)), y)


@examples(60)
@given(
    name=st.sampled_from(ROWS),
    shape=st_numpy.array_shapes(min_dims=1, max_dims=4, max_side=9),
    data=st.data(),
    seed=SEEDS,
    spread=st.sampled_from((0.01, 1.0, 30.0)),
)
def test_rows_any_array(isa_row, name, shape, data, seed, spread):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, dy = reals(rng(seed), shape, "f4") * np.float32(spread), reals(rng(seed + 1), shape, "f4")
    y, wanted = fast(name)(x, axis), slow(name)(x, axis)
    assert_close(y, wanted, row_scale(name, x, wanted, axis), "transcendental")
    dx = fast(back(name))(dy, y, axis)
    scale = row_scale(name, x, y, axis, dy)
    assert_close(dx, slow(back(name))(dy, y, axis), scale, "transcendental")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_finite_differences(isa_row, name, axis):
    x, dy = reals(rng(1), (4, 5, 7), "f8"), reals(rng(2), (4, 5, 7), "f8")
    dx = fast(back(name))(dy, fast(name)(x, axis), axis)
    slope(lambda a: float(np.vdot(fast(name)(a, axis), dy)), x, dx)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("axis", [0, -1])
def test_rows_arrays(dtype, name, axis):
    x, dy = integers(rng(1), (3, 5, 6), dtype), integers(rng(2), (3, 5, 6), dtype)
    y = fast(name)(x, axis)

    def f(a: Array, out: Array | None = None) -> Array:
        return fast(name)(a, axis, out=out)

    def g(a: Array, b: Array, out: Array | None = None) -> Array:
        return fast(back(name))(a, b, axis, out=out)

    check_hostile(f, x)
    check_hostile(g, dy, y)
    check_out(lambda out: f(x, out), y)
    check_out(lambda out: g(dy, y, out), g(dy, y))
    check_overlap(f, x, x.shape)
    check_overlap(lambda a, out=None: g(a, y, out), dy, dy.shape)
    check_overlap(lambda a, out=None: g(dy, a, out), y, y.shape)
    check_half(f, x)
    check_half(g, dy, y)
    check_integers(f, x)
    check_integers(g, dy, x)
    for shape in ((0,), (0, 5), (5, 0), (2, 0, 3)):
        assert f(np.ones(shape, dtype)).shape == shape
        assert g(np.ones(shape, dtype), np.ones(shape, dtype)).shape == shape


# --------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("kind", BAD_ARRAYS)
@pytest.mark.parametrize("name", ELEMENTWISE + ROWS)
def test_what_is_no_array(name, kind):
    bad, good = BAD_ARRAYS[kind], np.ones((1, 1, 1, 1))
    with named("x"):
        fast(name)(bad)
    second = "x" if name in ELEMENTWISE else "y"
    if bad is not None:
        with named("dy"):
            fast(back(name))(bad, good)
    with named(second if kind != "longdouble" else "x"):
        fast(back(name))(good, bad)


@pytest.mark.parametrize("name", ELEMENTWISE + ROWS)
def test_dy_of_another_shape(name):
    for shape in ((3,), (2, 3, 1), (3, 2), (1, 3), ()):
        with named("dy"):
            fast(back(name))(np.ones(shape), np.ones((2, 3)))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("axis", [*BAD_INTS, 2, -3, None, (0, 1), 2**62])
def test_bad_axes(name, axis):
    with named("axis"):
        fast(name)(np.ones((2, 3)), axis)
    with named("axis"):
        fast(back(name))(np.ones((2, 3)), np.ones((2, 3)), axis)


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_scalar(name):
    with named("x"):
        fast(name)(1.0)
    with named("y"):
        fast(back(name))(1.0, 1.0)


# ------------------------------------------------------------------------------- hard cases


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_dy_none_is_no_gradient(name):
    with named("dy"):
        fast(back(name))(None, np.ones(3))


@pytest.mark.parametrize("name", ROWS)
def test_dy_none_is_no_gradient_of_rows(name):
    with named("dy"):
        fast(back(name))(None, np.ones(3))
