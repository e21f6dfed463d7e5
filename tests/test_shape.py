# SPDX-License-Identifier: BSD-3-Clause
"""pad, unfold, fold, flatten and dropout: all but dropout only move or add numbers, so small integers give equality."""

from __future__ import annotations

import math

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
)
from tests.data import Array, hostile, integers, reals, rng
from tests.tolerance import assert_close

MODES = ("zeros", "reflect", "replicate", "circular")

# ---------------------------------------------------------------------------------------- pad

PADS = (
    ((3, 7), ((1, 2),)),
    ((2, 4, 9), ((0, 3), (2, 1))),
    ((2, 2, 3, 4, 17), ((1, 2), (2, 0), (5, 16))),
    ((7,), ((3, 0),)),
    ((3, 5, 120, 41), ((2, 3), (4, 4))),
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "pads"), PADS)
def test_pad_and_its_gradient_are_exact(isa_row, dtype, shape, pads, mode):
    x = integers(rng(1), shape, dtype) + np.asarray(9, dtype)
    wanted = ref.pad(x, pads, mode)
    equal(by_teams(lambda: F.pad(x, pads, mode)), wanted, dtype)
    dy = integers(rng(2), wanted.shape, dtype)
    dx = by_teams(lambda: F.pad_backward(dy, shape, pads, mode))
    equal(dx, ref.pad_backward(dy, shape, pads, mode), dtype)


def test_the_large_pads_need_a_team():
    assert math.prod(PADS[-1][0]) > SERIAL_ELEMENTS


@pytest.mark.parametrize("value", [7.5, -np.inf, np.nan, -0.0])
def test_pad_value(isa_row, dtype, value):
    x = integers(rng(), (2, 3, 5), dtype)
    equal(F.pad(x, ((1, 2), (3, 0)), value=value), ref.pad(x, ((1, 2), (3, 0)), value=value), dtype)


def test_pad_passes_nan_and_inf_to_the_cells_that_copy_them(isa_row, dtype):
    x = integers(rng(), (1, 9), dtype)
    x[0, 1], x[0, 7] = np.nan, -np.inf
    for mode in MODES:
        assert_array_equal(F.pad(x, ((3, 3),), mode), ref.pad(x, ((3, 3),), mode))
    dy = integers(rng(), (1, 15), dtype)
    dy[0, 0] = np.nan
    for mode in MODES:
        dx = F.pad_backward(dy, (1, 9), ((3, 3),), mode)
        assert_array_equal(dx, ref.pad_backward(dy, (1, 9), ((3, 3),), mode))


@examples(80)
@given(data=st.data(), seed=SEEDS, mode=st.sampled_from(MODES))
def test_pad_any_shape(isa_row, data, seed, mode):
    lead = tuple(data.draw(st.lists(st.integers(0, 3), max_size=2)))
    sizes = tuple(data.draw(st.lists(st.integers(1, 19), min_size=1, max_size=3)))
    limit = {"reflect": -1, "circular": 0}
    most = [s + limit[mode] if mode in limit else 20 for s in sizes]
    pads = tuple((data.draw(st.integers(0, m)), data.draw(st.integers(0, m))) for m in most)
    x = integers(rng(seed), lead + sizes, "f4")
    y = F.pad(x, pads, mode)
    assert_array_equal(y, ref.pad(x, pads, mode))
    dy = integers(rng(seed + 1), y.shape, "f4")
    dx = F.pad_backward(dy, x.shape, pads, mode)
    assert_array_equal(dx, ref.pad_backward(dy, x.shape, pads, mode))


@pytest.mark.parametrize("mode", MODES)
def test_pad_adjoint(isa_row, mode):
    x, pads = reals(rng(), (2, 3, 11, 13), "f8"), ((4, 9), (12, 1))
    adjoint(lambda a: F.pad(a, pads, mode), lambda g: F.pad_backward(g, x.shape, pads, mode), x)


@pytest.mark.parametrize("mode", MODES)
def test_pad_arrays(dtype, mode):
    x, pads = integers(rng(), (2, 5, 6), dtype), ((1, 2), (3, 4))
    y = F.pad(x, pads, mode)
    check_hostile(lambda a: F.pad(a, pads, mode), x)
    check_hostile(lambda a: F.pad_backward(a, x.shape, pads, mode), y)
    check_out(lambda out: F.pad(x, pads, mode, out=out), y)
    check_overlap(lambda a, out=None: F.pad(a, pads, mode, out=out), x, y.shape)
    check_half(lambda a: F.pad(a, pads, mode), x)
    check_half(lambda a: F.pad_backward(a, x.shape, pads, mode), y)
    check_integers(lambda a: F.pad(a, pads, mode), x)
    check_integers(lambda a: F.pad_backward(a, x.shape, pads, mode), y)


def test_pad_out_with_a_value(dtype):
    x = integers(rng(), (2, 3), dtype)
    check_out(lambda out: F.pad(x, ((2, 1),), value=3.0, out=out), F.pad(x, ((2, 1),), value=3.0))


def test_pad_of_nothing(isa_row, dtype):
    assert F.pad(np.zeros((0, 3, 4), dtype), ((1, 1), (2, 0))).shape == (0, 5, 6)
    dy = np.zeros((0, 5, 6), dtype)
    assert F.pad_backward(dy, (0, 3, 4), ((1, 1), (2, 0))).shape == (0, 3, 4)
    assert_array_equal(F.pad(np.zeros((2, 0), dtype), ((1, 2),)), np.zeros((2, 3)))
    assert_array_equal(F.pad(np.zeros((2, 0), dtype), ((1, 2),), value=4), np.full((2, 3), 4))
    assert F.pad_backward(np.ones((2, 3), dtype), (2, 0), ((1, 2),)).shape == (2, 0)
    for mode in MODES[1:]:
        with pytest.raises(ValueError, match="padding"):
            F.pad(np.zeros((2, 0), dtype), ((1, 2),), mode)


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_pad_refuses_what_is_no_array(kind):
    with named("x"):
        F.pad(BAD_ARRAYS[kind], ((0, 0),))
    with named("dy"):
        F.pad_backward(BAD_ARRAYS[kind], (1, 1, 1, 1), ((0, 0),))


@pytest.mark.parametrize("bad", [*BAD_INTS, -1, None])
def test_pad_refuses_bad_pads_and_shapes(bad):
    x = np.zeros((2, 3))
    for pads in (((bad, 0),), ((0, bad),), ((0, 0), (bad, 0)), bad):
        with named("pads"):
            F.pad(x, pads)
        with named("pads"):
            F.pad_backward(x, (2, 3), pads)
    with named("x_shape"):
        F.pad_backward(x, (2, bad), ((0, 0),))


def test_pad_refuses_other_bad_input():
    x = np.zeros((2, 3))
    for pads in ((), ((0, 0),) * 3, ((1,),), ((1, 2, 3),), (1, 2), "ab", ((2**61, 2**61),), ["ab"]):
        with named("pads"):
            F.pad(x, pads)
    for mode in ("constant", "", None, 3, b"zeros"):
        with named("mode"):
            F.pad(x, ((0, 0),), mode)
        with named("mode"):
            F.pad_backward(x, (2, 3), ((0, 0),), mode)
    for mode, size in (("reflect", 3), ("circular", 4)):
        for pads in (((size, 0),), ((0, size),)):
            with pytest.raises(ValueError, match=f"{mode} padding"):
                F.pad(x, pads, mode)
            with pytest.raises(ValueError, match=f"{mode} padding"):
                F.pad_backward(np.zeros((2, 3 + size)), (2, 3), pads, mode)
    for shape in ((2, 4), (3, 3), (2,), (2, 3, 1)):
        with named("dy"):
            F.pad_backward(np.zeros(shape), (2, 3), ((0, 0),))
    for shape in (5, "ab", None):
        with named("x_shape"):
            F.pad_backward(x, shape, ((0, 0),))


# --------------------------------------------------------------------------- unfold and fold

WINDOWS = (
    ((2, 3, 9), {"kernel_size": (3,)}),
    ((2, 3, 17), {"kernel_size": (4,), "dilation": 2, "padding": 3, "stride": 2}),
    ((3, 17), {"kernel_size": (2,), "stride": 3}),
    ((2, 3, 4, 5), {"kernel_size": (2, 1, 3)}),
    ((2, 3, 6, 7), {"kernel_size": 3, "padding": 1}),
    ((1, 2, 9, 19), {"kernel_size": (2, 5), "dilation": (3, 1), "stride": (1, 3)}),
    ((2, 1, 8, 9), {"kernel_size": 3, "padding": "same", "stride": 2}),
    ((1, 2, 8, 9), {"kernel_size": (2, 3), "padding": ((0, 1), (2, 3))}),
    ((1, 2, 4, 5, 11), {"kernel_size": (2, 3, 2), "padding": (1, 0, 1), "stride": (2, 1, 1)}),
    ((5, 6, 7), {"kernel_size": (2, 2)}),
    ((2, 7, 50, 101), {"kernel_size": 2, "stride": 2, "padding": 1}),
)


@pytest.mark.parametrize(("shape", "options"), WINDOWS)
def test_unfold_and_fold_are_exact(isa_row, dtype, shape, options):
    x = integers(rng(3), shape, dtype) + np.asarray(9, dtype)
    wanted = ref.unfold(x, **options)
    cols = by_teams(lambda: F.unfold(x, **options))
    equal(cols, wanted, dtype)
    dy = integers(rng(4), cols.shape, dtype)
    sizes = shape[1:] if cols.ndim == 2 else shape[2:]
    folded = ref.fold(dy, sizes, **options)
    equal(by_teams(lambda: F.fold(dy, sizes, **options)), folded, dtype)
    equal(F.unfold_backward(dy, shape, **options), folded, dtype)
    equal(F.fold_backward(x, **options), wanted, dtype)


def test_the_large_unfold_needs_a_team():
    assert math.prod(WINDOWS[-1][0]) >= SERIAL_ELEMENTS


@examples(80)
@given(data=st.data(), seed=SEEDS)
def test_unfold_any_windows(isa_row, data, seed):
    rank = data.draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    kernel, dilation, stride = each(1, 4), each(1, 3), each(1, 4)
    pads = tuple((data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))) for _ in range(rank))
    sizes = tuple(
        max(1, d * (k - 1) + 1 - sum(p)) + extra
        for k, d, p, extra in zip(kernel, dilation, pads, each(0, 6), strict=True)
    )
    x = integers(rng(seed), (2, 2, *sizes), "f4")
    options = {"kernel_size": kernel, "dilation": dilation, "padding": pads, "stride": stride}
    cols = F.unfold(x, **options)
    assert_array_equal(cols, ref.unfold(x, **options))
    dy = integers(rng(seed + 1), cols.shape, "f4")
    assert_array_equal(F.fold(dy, sizes, **options), ref.fold(dy, sizes, **options))
    assert_array_equal(F.unfold_backward(dy, x.shape, **options), ref.fold(dy, sizes, **options))


def test_fold_of_one_axis(isa_row, dtype):
    for options in ({}, {"dilation": 2, "padding": 3, "stride": 2}, {"padding": ((0, 2),)}):
        shape = ref.unfold(np.zeros((2, 3, 17)), (4,), **options).shape
        cols = integers(rng(6), shape, dtype)
        for batch in (cols, cols[0]):
            equal(
                F.fold(batch, (17,), (4,), **options),
                ref.fold(batch, (17,), (4,), **options),
                dtype,
            )


@pytest.mark.parametrize(("shape", "options"), WINDOWS[:-1])
def test_unfold_and_fold_are_adjoint(isa_row, shape, options):
    x = reals(rng(5), shape, "f8")
    cols = F.unfold(x, **options)
    sizes = shape[1:] if cols.ndim == 2 else shape[2:]
    adjoint(lambda a: F.unfold(a, **options), lambda g: F.unfold_backward(g, shape, **options), x)
    adjoint(
        lambda a: F.fold(a, sizes, **options), lambda g: F.fold_backward(g, **options), cols + 0.5
    )


def test_unfold_passes_nan_and_inf_only_to_the_windows_that_see_them(isa_row, dtype):
    x = integers(rng(), (1, 1, 5, 12), dtype)
    x[0, 0, 2, 3], x[0, 0, 4, 11] = np.nan, np.inf
    cols = F.unfold(x, 3, padding=1)
    assert_array_equal(cols, ref.unfold(x, 3, padding=1))
    assert_array_equal(F.fold(cols, (5, 12), 3, padding=1), ref.fold(cols, (5, 12), 3, padding=1))


def test_unfold_arrays(dtype):
    x = integers(rng(), (2, 3, 5, 6), dtype)
    cols = F.unfold(x, (2, 3), padding=1)

    def fold(a: Array, out: Array | None = None) -> Array:
        return F.fold(a, (5, 6), (2, 3), padding=1, out=out)

    def unfold(a: Array, out: Array | None = None) -> Array:
        return F.unfold(a, (2, 3), padding=1, out=out)

    for f, operand, result in ((unfold, x, cols), (fold, cols, fold(cols))):
        check_hostile(f, operand)
        check_out(lambda out, f=f, a=operand: f(a, out), result)
        check_overlap(f, operand, result.shape)
        check_half(f, operand)
        check_integers(f, operand)


def test_unfold_of_nothing(isa_row, dtype):
    assert F.unfold(np.zeros((0, 3, 5, 6), dtype), 2).shape == (0, 12, 20)
    assert F.unfold(np.zeros((2, 0, 5, 6), dtype), 2).shape == (2, 0, 20)
    assert F.fold(np.zeros((0, 12, 20), dtype), (5, 6), 2).shape == (0, 3, 5, 6)
    assert F.unfold_backward(np.zeros((0, 12, 20), dtype), (0, 3, 5, 6), 2).shape == (0, 3, 5, 6)
    assert_array_equal(F.unfold(np.zeros((1, 1, 0, 2), dtype), 2, padding=1), np.zeros((1, 4, 3)))


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_unfold_refuses_what_is_no_array(kind):
    with named("x"):
        F.unfold(BAD_ARRAYS[kind], 1)
    value = BAD_ARRAYS[kind]
    with named("cols"):
        F.fold(value if value is None else value[0], (1, 1), 1)


@pytest.mark.parametrize("argument", ["kernel_size", "dilation", "padding", "stride"])
@pytest.mark.parametrize("bad", [*BAD_INTS, -1, 0, None, (1,) * 4, ()])
def test_unfold_refuses_bad_windows(argument, bad):
    if argument == "padding" and bad == 0 and bad is not False:
        bad = (-1, 0)
    options = {"kernel_size": 2, argument: bad}
    x, cols = np.zeros((1, 1, 4, 4)), np.zeros((1, 4, 9))
    with named(argument):
        F.unfold(x, **options)
    with named(argument):
        F.fold(cols, (4, 4), **options)
    # the length of kernel_size says how many axes x_shape must have
    with named("(kernel_size|x_shape)" if argument == "kernel_size" else argument):
        F.unfold_backward(cols, x.shape, **options)
    with named(argument):
        F.fold_backward(x, **options)


@pytest.mark.parametrize("huge", [2**31, 2**61, 2**62])
def test_unfold_refuses_huge_windows(huge):
    x = np.zeros((1, 1, 4, 4))
    with named("kernel_size"):
        F.unfold(x, huge)
    with named("kernel_size"):
        F.unfold(x, 2, dilation=huge)
    with named("padding"):
        F.unfold(x, 2, padding=huge)
    assert_array_equal(F.unfold(x + 1, 2, stride=huge), np.ones((1, 4, 1)))


def test_unfold_refuses_other_bad_input():
    for shape in ((4, 4), (4,), (), (1,) * 6):
        with named("x"):
            F.unfold(np.zeros(shape), 2)
    for padding in ("full", "SAME", ((1, 1),), ((1, 1), (1, -1)), (2, "x")):
        with named("padding"):
            F.unfold(np.zeros((1, 1, 4, 4)), 2, padding=padding)
    with named("kernel_size"):
        F.unfold(np.zeros((1, 1, 4, 4)), 5)
    for shape in ((1, 3, 9), (1, 4, 8), (4,), (1, 1, 4, 9)):
        with named("cols"):
            F.fold(np.zeros(shape), (4, 4), 2)
    for sizes in (0, -1, (4, 0), (1.0, 4), (True, 4), "ab", None, (), (1,) * 4, 2**63):
        with named("output_size"):
            F.fold(np.zeros((1, 4, 9)), sizes, 2)
    for shape in (5, "ab", None, (1, 1, 4, 2.0), (1, 1, 4, -1), (1, 1, 4, 2**63), (1, 1, True, 4)):
        with named("x_shape"):
            F.unfold_backward(np.zeros((1, 4, 9)), shape, 2)


# ------------------------------------------------------------------------------------ flatten


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3), (4,), (), (0, 3, 4), (3, 0)])
def test_flatten(dtype, shape):
    x = np.arange(math.prod(shape), dtype=dtype).reshape(shape)
    for start in range(-len(shape), max(len(shape), 1)):
        for end in range(-len(shape), max(len(shape), 1)):
            if shape and start % len(shape) > end % len(shape):
                with named("start_dim"):
                    F.flatten(x, start, end)
                continue
            y = F.flatten(x, start, end)
            same_bytes(y, ref.flatten(x, start, end).astype(dtype))
            same_bytes(F.flatten_backward(y, shape), x)


def test_flatten_arrays(dtype):
    x = integers(rng(), (2, 3, 4), dtype)
    assert np.shares_memory(F.flatten(x), x)
    assert F.flatten(x).shape == (2, 12)
    for awkward in hostile(x).values():
        assert_array_equal(F.flatten(awkward), x.reshape(2, 12))
        assert_array_equal(F.flatten_backward(awkward, (6, 4)), x.reshape(6, 4))
    adjoint(F.flatten, lambda g: F.flatten_backward(g, x.shape), reals(rng(), x.shape, "f8"))


@pytest.mark.parametrize("bad", [*BAD_INTS, 2, -3, None])
def test_flatten_refuses_bad_axes(bad):
    with named("start_dim"):
        F.flatten(np.zeros((2, 3)), bad)
    with named("end_dim"):
        F.flatten(np.zeros((2, 3)), 0, bad)
    if bad != 2:
        with named("x_shape"):
            F.flatten_backward(np.zeros((2, 3)), (2, bad))


def test_flatten_refuses_what_is_no_array():
    for kind in ("none", "object", "complex", "text", "date"):
        with named("x"):
            F.flatten(BAD_ARRAYS[kind])
        with named("dy"):
            F.flatten_backward(BAD_ARRAYS[kind], (1,))


# ------------------------------------------------------------------------------------ dropout

DROPS = {"dropout": (F.dropout, ref.dropout), "dropout2d": (F.dropout2d, ref.dropout2d)}


@pytest.mark.parametrize("name", DROPS)
@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.75, 1.0, 0.1, np.float32(0.5), 0, 1])
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 7), (1, 5, 151, 101), (0, 3, 2)])
def test_dropout(dtype, name, p, shape):
    drop, wanted = DROPS[name]
    x = reals(rng(6), shape, dtype)
    y, mask = by_teams(lambda: drop(x, p, rng=rng(7)))
    y_wanted, mask_wanted = wanted(x, float(p), rng=rng(7))
    if p == 0:  # nothing is drawn
        mask_wanted = np.ones_like(mask_wanted)
    assert mask.dtype == bool
    assert_array_equal(mask, mask_wanted)
    assert y.dtype == dtype
    assert_close(y, y_wanted, y_wanted, "elementwise")
    dx = by_teams(lambda: F.dropout_backward(x, mask, p))
    same_bytes(dx, y)
    assert_close(dx, ref.dropout_backward(x, mask, float(p)), y_wanted, "elementwise")


def test_dropout_drops_the_right_share():
    y, mask = F.dropout(np.ones((100, 1000), "f4"), 0.3, rng=1)
    assert abs(mask.mean() - 0.7) < 5 * math.sqrt(0.21 / mask.size)
    assert_array_equal(y != 0, mask)
    y, mask = F.dropout2d(np.ones((400, 50, 2, 3), "f4"), 0.3, rng=1)
    assert mask.shape == (400, 50, 1, 1)
    assert abs(mask.mean() - 0.7) < 5 * math.sqrt(0.21 / mask.size)
    assert_array_equal(y != 0, np.broadcast_to(mask, y.shape))


@pytest.mark.parametrize("name", DROPS)
def test_dropout_generators(name):
    drop, x = DROPS[name][0], np.ones((8, 9, 10))
    same_bytes(drop(x, rng=5), drop(x, rng=rng(5)))
    generator = rng(5)
    assert drop(x, rng=generator)[1].tobytes() != drop(x, rng=generator)[1].tobytes()
    assert drop(x)[1].tobytes() != drop(x)[1].tobytes()


@pytest.mark.parametrize("name", DROPS)
def test_dropout_outside_training(dtype, name):
    drop, x = DROPS[name][0], reals(rng(), (3, 4, 5), dtype)
    y, mask = drop(x, 0.9, training=False)
    same_bytes(y, x)
    assert mask.all()
    assert mask.shape == ((3, 4, 5) if name == "dropout" else (3, 4, 1))
    assert not np.shares_memory(y, x)
    same_bytes(F.dropout_backward(x, np.zeros(x.shape, bool), 0.9, training=False), x)


@pytest.mark.parametrize("name", DROPS)
def test_dropout_arrays(dtype, name):
    drop, x = DROPS[name][0], integers(rng(), (3, 4, 5), dtype)
    mask = drop(x, rng=3)[1]
    check_hostile(lambda a: drop(a, rng=3), x)
    check_hostile(lambda a: F.dropout_backward(a, mask), x)
    check_half(lambda a: drop(a, 0.3, rng=3), x)
    check_integers(lambda a: drop(a, rng=3), x)


def test_dropout_adjoint():
    x = reals(rng(), (4, 5, 6), "f8")
    for drop, _ in DROPS.values():
        mask = drop(x, 0.3, rng=3)[1]
        adjoint(
            lambda a, drop=drop: drop(a, 0.3, rng=3)[0],
            lambda g, mask=mask: F.dropout2d_backward(g, mask, 0.3),
            x,
        )


BAD_PROBABILITIES = (-0.1, 1.1, math.nan, math.inf, True, "0.5", None, 1j, np.ones(2), 2**62)


@pytest.mark.parametrize("p", BAD_PROBABILITIES)
def test_dropout_refuses_bad_probabilities(p):
    for drop, _ in DROPS.values():
        with named("p"):
            drop(np.ones((2, 2)), p)
    with named("p"):
        F.dropout_backward(np.ones((2, 2)), np.ones((2, 2), bool), p)


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_dropout_refuses_what_is_no_array(kind):
    for drop, _ in DROPS.values():
        with named("x"):
            drop(BAD_ARRAYS[kind])
    with named("dy"):
        F.dropout_backward(BAD_ARRAYS[kind], np.ones((1, 1, 1, 1), bool))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_dropout2d_needs_channels(shape):
    with named("x"):
        F.dropout2d(np.ones(shape))


# ------------------------------------------------------------------------------- hard cases


@pytest.mark.parametrize("kind", ["kernel_size", "cols", "pads", "x_shape"])
def test_arrays_without_axes_are_named(kind):
    scalar = np.array(2)
    calls = {
        "kernel_size": lambda: F.unfold(np.zeros((1, 1, 4, 4)), np.array(9)),
        "cols": lambda: F.fold(np.zeros((1, 4, 9)), np.array(9), 2),  # as output_size=9
        "pads": lambda: F.pad(np.zeros(3), scalar),
        "x_shape": lambda: F.flatten_backward(np.zeros((1, 1)), scalar),
    }
    with named(kind):
        calls[kind]()


@pytest.mark.parametrize("value", [None, "a", 1j])
def test_pad_refuses_bad_values(value):
    with named("value"):
        F.pad(np.zeros((1, 3)), ((1, 1),), value=value)


def test_pad_names_its_own_argument():
    with named("pads"):
        F.pad(np.zeros((1, 3)), ((3, 0),), "reflect")


def test_pad_refuses_huge_pads_of_nothing():
    with named("pads"):
        F.pad(np.zeros((0, 3)), ((2**61, 1),))


@pytest.mark.parametrize("x_shape", [(2, 99, 4, 4), (7, 3, 4, 4)])
def test_unfold_backward_refuses_another_shape(x_shape):
    with named("x_shape"):
        F.unfold_backward(np.zeros((2, 12, 9)), x_shape, 2)


@pytest.mark.parametrize("dy", ["ab", np.ones((2, 12, 8)), np.ones(3)])
def test_window_gradients_name_dy(dy):
    with named("dy"):
        F.unfold_backward(dy, (2, 3, 4, 4), 2)


@pytest.mark.parametrize(
    ("lead", "sizes", "kernel"),
    [((2, 3), (5,), (3,)), ((3,), (5,), (3,)), ((2,), (3, 4, 5), (2, 2, 2))],
)
def test_whatever_fold_takes_has_a_gradient(lead, sizes, kernel):
    cols = ref.unfold(reals(rng(), (*lead, *sizes), "f8"), kernel)
    adjoint(lambda a: F.fold(a, sizes, kernel), lambda g: F.fold_backward(g, kernel), cols)


def test_flatten_backward_names_dy():
    with named("dy"):
        F.flatten_backward(np.zeros(6), (5,))


@pytest.mark.parametrize("bad", ["no", None, 3, 0.5])
def test_dropout_refuses_bad_flags(bad):
    x = np.ones((2, 3, 4), "f4")
    for drop in (F.dropout, F.dropout2d):
        with named("training"):
            drop(x, 0.5, bad)
    for backward in (F.dropout_backward, F.dropout2d_backward):
        with named("training"):
            backward(x, np.ones(x.shape, bool), 0.5, bad)


def test_every_function_carries_its_own_name():
    for name in F.__all__:
        assert getattr(F, name).__name__ == name


@pytest.mark.parametrize("seed", ["a", -1, 1.5])
def test_dropout_refuses_bad_generators(seed):
    with named("rng"):
        F.dropout(np.zeros(3), rng=seed)


@pytest.mark.parametrize(
    "mask",
    [np.ones(3, bool), np.ones((4, 2, 3), bool), np.ones((2, 4), bool), np.ones((2, 1)), "a"],
)
def test_dropout_backward_refuses_bad_masks(mask):
    with named("mask"):
        F.dropout_backward(np.zeros((2, 3)), mask)


def test_unfold_refuses_a_kernel_of_2_to_the_40_at_once():
    with pytest.raises((ValueError, MemoryError)):
        F.unfold(np.zeros((1, 1, 4, 4)), (2**40, 1), padding=(2**39, 0), stride=2**62)


def test_fold_of_one_axis_needs_its_kernel_as_a_tuple():
    """An int would make its gradient, unfold, take the result for one image (C, H, W)."""
    with named("kernel_size"):
        F.fold(np.ones((2, 6, 4)), (5,), 2)
