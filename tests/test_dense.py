# SPDX-License-Identifier: BSD-3-Clause
"""linear and its gradients: matrix products of every blocking, exact on small integers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastconv
import fastconv.functional as F
from fastconv import reference as ref
from fastconv.algorithms import SERIAL_FLOPS
from tests.checks import (
    BAD_ARRAYS,
    SEEDS,
    adjoint,
    by_teams,
    check_half,
    check_hostile,
    check_integers,
    check_out,
    check_overlap,
    examples,
    named,
    same_bytes,
)
from tests.data import Array, integers, reals, rng, trusted
from tests.tolerance import assert_close

# (rows, inputs, outputs): dot products up to 4 rows, blocks of 192, chains of 256, and one over
SIZES = (
    (1, 1, 1), (1, 257, 65), (3, 40, 130), (4, 512, 64), (5, 7, 9), (16, 256, 33), (17, 300, 192),
    (193, 31, 194), (65, 513, 24), (2, 3, 1000),
)  # fmt: skip
LARGE = ((4, 1301, 301), (130, 263, 200), (400, 70, 97))
SHAPES = (((7,), 7, 4), ((2, 3, 5), 5, 6), ((2, 1, 4, 3), 3, 2), ((1, 9), 9, 1))


def operands(x_shape: tuple[int, ...], outputs: int, make: Any, dtype: Any) -> tuple[Array, ...]:
    """x, w, b, dy"""
    shapes = (x_shape, (outputs, x_shape[-1]), (outputs,), (*x_shape[:-1], outputs))
    return tuple(make(rng(k), shape, dtype) for k, shape in enumerate(shapes, 1))


def check_exact(
    x_shape: tuple[int, ...], outputs: int, dtype: Any, *, sparse: bool = False
) -> None:
    x, w, b, dy = operands(x_shape, outputs, integers, dtype)
    b[...] = 1 if sparse else b + np.asarray(9, dtype)
    for bias in (b, None):
        y = by_teams(lambda bias=bias: F.linear(x, w, bias))
        wanted = ref.linear(x, w, bias)
        assert y.dtype == dtype
        assert y.shape == wanted.shape
        assert_array_equal(y, wanted)
    if not sparse:
        trusted(y)
    got = by_teams(lambda: F.linear_backward(dy, x, w))
    for a, wanted in zip(got, ref.linear_backward(dy, x, w), strict=True):
        assert a.dtype == dtype
        assert a.shape == wanted.shape
        assert_array_equal(a, wanted)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES + LARGE)
def test_matrices_are_exact(isa_row, dtype, rows, inputs, outputs):
    check_exact((rows, inputs), outputs, dtype, sparse=rows == 1)


@pytest.mark.parametrize(("x_shape", "inputs", "outputs"), SHAPES)
def test_any_leading_axes(isa_row, dtype, x_shape, inputs, outputs):
    assert x_shape[-1] == inputs
    check_exact(x_shape, outputs, dtype, sparse=True)


def test_the_large_matrices_need_a_team():
    assert min(2 * math.prod(sizes) for sizes in LARGE) > SERIAL_FLOPS


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES + LARGE)
def test_real_numbers(isa_row, dtype, rows, inputs, outputs):
    x, w, b, dy = operands((rows, inputs), outputs, reals, dtype)
    y = by_teams(lambda: F.linear(x, w, b))
    assert_close(y, ref.linear(x, w, b), ref.linear(np.abs(x), np.abs(w), np.abs(b)))
    scales = ref.linear_backward(np.abs(dy), np.abs(x), np.abs(w))
    got = by_teams(lambda: F.linear_backward(dy, x, w))
    for a, wanted, scale in zip(got, ref.linear_backward(dy, x, w), scales, strict=True):
        assert_close(a, wanted, scale)


@examples(60)
@given(
    lead=st.lists(st.integers(0, 9), max_size=3),
    inputs=st.integers(0, 70),
    outputs=st.integers(0, 70),
    bias=st.booleans(),
    seed=SEEDS,
)
def test_any_sizes(isa_row, lead, inputs, outputs, bias, seed):
    x = integers(rng(seed), (*lead, inputs), "f4")
    w, b = (integers(rng(seed + 1), s, "f4") for s in ((outputs, inputs), (outputs,)))
    y = F.linear(x, w, b if bias else None)
    assert_array_equal(y, ref.linear(x, w, b if bias else None))
    assert y.shape == (*lead, outputs)
    for a, wanted in zip(F.linear_backward(y, x, w), ref.linear_backward(y, x, w), strict=True):
        assert a.shape == wanted.shape
        if np.abs(wanted).max(initial=0) < 2**23:
            assert_array_equal(a, wanted)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [*SIZES[:6], LARGE[1]])
def test_adjoint(isa_row, rows, inputs, outputs):
    x, w, b, _ = operands((rows, inputs), outputs, reals, "f8")
    adjoint(lambda a: F.linear(a, w), lambda g: F.linear_backward(g, x, w)[0], x)
    adjoint(lambda a: F.linear(x, a), lambda g: F.linear_backward(g, x, w)[1], w)
    zero = np.zeros_like(w)
    adjoint(lambda a: F.linear(x, zero, a), lambda g: F.linear_backward(g, x, w)[2], b)


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(3, 37, 21), (21, 37, 35), (33, 300, 17)])
def test_special_values_stay_in_their_row_and_column(
    isa_row, dtype, special, rows, inputs, outputs
):
    """Padding of blocks and vectors must not mix: every row of x and of w in turn."""
    x, w, b, dy = (np.abs(a) + 1 for a in operands((rows, inputs), outputs, integers, dtype))
    terms = (0, inputs // 2, inputs - 1)
    for row in range(rows):
        k = terms[row % 3]
        bad = x.copy()
        bad[row, k] = special
        assert_array_equal(F.linear(bad, w, b), ref.linear(bad, w, b))
    for row in range(outputs):
        k = terms[row % 3]
        bad = w.copy()
        bad[row, k] = special
        assert_array_equal(F.linear(x, bad, b), ref.linear(x, bad, b))
        bad_dy = dy.copy()
        bad_dy[k % rows, row] = special
        for a, wanted in zip(
            F.linear_backward(bad_dy, x, w), ref.linear_backward(bad_dy, x, w), strict=True
        ):
            assert_array_equal(a, wanted)
    b[outputs // 2] = special
    assert_array_equal(F.linear(x, w, b), ref.linear(x, w, b))


def test_needs(isa_row, dtype):
    x, w, _, dy = operands((6, 5), 4, integers, dtype)
    every = F.linear_backward(dy, x, w)
    for needs in itertools.product((False, True), repeat=3):
        got = F.linear_backward(dy, x, w, needs=needs)
        for wanted, a, all_of_it in zip(needs, got, every, strict=True):
            assert (a is not None) == wanted
            if wanted:
                same_bytes(a, all_of_it)


def test_nothing(isa_row, dtype):
    w, b = integers(rng(), (4, 3), dtype), integers(rng(), (4,), dtype)
    for lead in ((0,), (2, 0), (0, 5)):
        x = np.zeros((*lead, 3), dtype)
        assert F.linear(x, w, b).shape == (*lead, 4)
        dx, dw, db = F.linear_backward(np.zeros((*lead, 4), dtype), x, w)
        assert dx.shape == x.shape
        assert_array_equal(dw, np.zeros((4, 3)))
        assert_array_equal(db, np.zeros(4))
    no_inputs = np.zeros((300, 0), dtype)
    assert_array_equal(F.linear(no_inputs, np.zeros((4, 0), dtype), b), np.tile(b, (300, 1)))
    assert_array_equal(F.linear(no_inputs, np.zeros((4, 0), dtype)), np.zeros((300, 4)))
    assert F.linear(np.ones((2, 3), dtype), np.zeros((0, 3), dtype)).shape == (2, 0)
    dx, dw, db = F.linear_backward(np.zeros((2, 0)), np.ones((2, 3)), np.zeros((0, 3)))
    assert_array_equal(dx, np.zeros((2, 3)))
    assert (dw.shape, db.shape) == ((0, 3), (0,))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(3, 5, 6), (9, 5, 7)])
def test_arrays(dtype, rows, inputs, outputs):
    x, w, b, dy = operands((rows, inputs), outputs, integers, dtype)
    check_hostile(F.linear, x, w, b)
    check_hostile(F.linear_backward, dy, x, w)
    check_out(lambda out: F.linear(x, w, b, out=out), F.linear(x, w, b))
    check_overlap(lambda a, out=None: F.linear(a, w, b, out=out), x, dy.shape)
    check_overlap(lambda a, out=None: F.linear(x, a, b, out=out), w, dy.shape)
    check_overlap(lambda a, out=None: F.linear(x, w, a, out=out), b, dy.shape)
    check_half(F.linear, x, w, b)
    check_half(F.linear_backward, dy, x, w)
    check_integers(F.linear, x, w, b)
    check_integers(F.linear_backward, dy, x, w)


def test_mixed_types():
    x, w, b, _ = operands((3, 5), 4, integers, "f8")
    for kinds in itertools.product(("f2", "f4", "f8", "i1", "i8"), repeat=3):
        parts = [a.astype(kind) for a, kind in zip((x, w, b), kinds, strict=True)]
        y = F.linear(*parts)
        wanted = np.result_type(*parts)
        assert y.dtype == (wanted if wanted.kind == "f" else np.result_type(wanted, "f4"))
        assert_array_equal(y, ref.linear(x, w, b))


@pytest.mark.parametrize("precision", [None, "highest", "high", "medium"])
def test_precision(precision):
    x, w, b, dy = operands((9, 20), 8, integers, "f4")
    assert_array_equal(F.linear(x, w, b, precision=precision), ref.linear(x, w, b))
    got = F.linear_backward(dy, x, w, precision=precision)
    for a, wanted in zip(got, ref.linear_backward(dy, x, w), strict=True):
        assert_array_equal(a, wanted)
    with fastconv.precision(precision or "high"):
        assert_array_equal(F.linear(x, w, b), ref.linear(x, w, b))


# --------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_what_is_no_array(kind):
    bad, one = BAD_ARRAYS[kind], np.ones((1, 1))
    matrix = bad if bad is None else bad[0, 0]
    with named("x"):
        F.linear(matrix, one)
    with named("w"):
        F.linear(one, matrix)
    if bad is not None:
        with named("b"):
            F.linear(one, one, matrix[0])
    for place, name in enumerate(("dy", "x", "w")):
        with named(name):
            F.linear_backward(*(matrix if k == place else one for k in range(3)))


def test_shapes_that_do_not_fit():
    x, w = np.ones((2, 3)), np.ones((4, 3))
    for bad in (1.0, np.ones(3), np.ones((3, 4, 1)), np.ones((1, 4, 3))):
        with named("w"):
            F.linear(x, bad)
        with named("w"):
            F.linear_backward(np.ones((2, 4)), x, bad)
    for bad in (1.0, np.ones(4), np.ones((3, 2)), np.ones((2, 3, 1)), np.ones(0)):
        with named("x"):
            F.linear(bad, w)
        with named("x"):
            F.linear_backward(np.ones((2, 4)), bad, w)
    for bad in (1.0, np.ones(3), np.ones((4, 1)), np.ones((1, 4)), np.ones(1), np.ones(0)):
        with named("b"):
            F.linear(x, w, bad)
    for bad in (1.0, np.ones(4), np.ones((2, 3)), np.ones((4, 2)), np.ones((1, 2, 4))):
        with named("dy"):
            F.linear_backward(bad, x, w)


@pytest.mark.parametrize("bad", ["low", "", 1, True, b"high", 1.5])
def test_bad_precision(bad):
    x, w = np.ones((2, 3)), np.ones((4, 3))
    with named("precision"):
        F.linear(x, w, precision=bad)
    with named("precision"):
        F.linear_backward(np.ones((2, 4)), x, w, precision=bad)


@pytest.mark.parametrize("bad", [(), (True,), (True,) * 2, (True,) * 4, None, True, 3, "abc"])
def test_bad_needs(bad):
    with named("needs"):
        F.linear_backward(np.ones((2, 4)), np.ones((2, 3)), np.ones((4, 3)), needs=bad)


# ------------------------------------------------------------------------------- hard cases


def test_needs_without_axes():
    with named("needs"):
        F.linear_backward(np.ones((2, 4)), np.ones((2, 3)), np.ones((4, 3)), needs=np.array(True))
