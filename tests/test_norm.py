# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalisation: training, evaluation, gradients, running statistics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fastconv.functional as F
from fastconv import reference as ref
from fastconv.functional._calls import SERIAL_ELEMENTS
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
    equal,
    examples,
    named,
    same_bytes,
    slope,
)
from tests.data import Array, hostile, integers, reals, rng
from tests.tolerance import assert_close

SHAPES = ((16, 5), (2, 3, 7), (4, 3, 5, 6), (2, 2, 3, 4, 5), (1, 3, 1030), (2, 1, 33), (300, 7))
LARGE = ((3, 8, 53, 61), (9001, 9))
EPS = 1e-5


def per_channel(value: Any, x: Array) -> Array:
    return np.asarray(value, "f8").reshape(1, -1, *(1,) * (x.ndim - 2))


def size_of(x: Array) -> Array:
    """The mean absolute value of each channel: the scale of the error of its mean."""
    return np.abs(x, dtype="f8").mean((0, *range(2, x.ndim)))


def parameters(channels: int, seed: int = 3) -> tuple[Array, Array]:
    generator = rng(seed)
    return generator.uniform(0.5, 2, channels), generator.standard_normal(channels)


def forward_scale(x: Array, mean: Array, invstd: Array, weight: Any, bias: Any) -> Array:
    """What is summed: (|x| + |mean|) * |weight| * invstd + |bias|."""
    weight = 1.0 if weight is None else np.abs(weight)
    bias = 0.0 if bias is None else np.abs(bias)
    slope_ = per_channel(np.broadcast_to(weight * invstd, mean.shape), x)
    shift = per_channel(np.broadcast_to(bias, mean.shape), x)
    return (np.abs(x, dtype="f8") + np.abs(per_channel(mean, x))) * slope_ + shift


def backward_scales(dy: Array, x: Array, weight: Any, saved: Any) -> tuple[Array, Array, Array]:
    """The gradients' sums over absolute values."""
    mean, invstd = (per_channel(s, x) for s in saved)
    axes, count = (0, *range(2, x.ndim)), x.size // x.shape[1]
    dy, centred = np.abs(dy, dtype="f8"), (np.abs(x, dtype="f8") + np.abs(mean)) * invstd
    dbias, dweight = dy.sum(axes), (dy * centred).sum(axes)
    dx = dy + per_channel(dbias, x) / count + centred * per_channel(dweight, x) / count
    return dx * invstd * (1.0 if weight is None else np.abs(per_channel(weight, x))), dweight, dbias


def check_train(x: Array, weight: Any, bias: Any, eps: float = EPS) -> tuple[Array, Any]:
    y, saved = by_teams(lambda: F.batch_norm_train(x, weight, bias, eps=eps))
    # NumPy's sums are only pairwise along contiguous axes
    planes = np.ascontiguousarray(x.T)[np.newaxis] if x.ndim == 2 else x
    wanted, (mean, invstd) = ref.batch_norm_train(planes, weight, bias, eps=eps)
    wanted = wanted[0].T if x.ndim == 2 else wanted
    assert y.dtype == x.dtype
    assert_close(y, wanted, forward_scale(x, size_of(x), invstd, weight, bias), "elementwise")
    tolerance = 64 * np.finfo(x.dtype).eps
    assert_allclose(saved[0], mean, rtol=0, atol=tolerance * np.abs(x).max(initial=0))
    assert_allclose(saved[1], invstd, rtol=tolerance)
    return y, saved


def check_backward(dy: Array, x: Array, weight: Any, saved: Any) -> None:
    got = by_teams(lambda: F.batch_norm_backward(dy, x, weight, saved))
    wanted = ref.batch_norm_backward(dy, x, weight, saved)
    for a, b, scale in zip(got, wanted, backward_scales(dy, x, weight, saved), strict=True):
        assert a.dtype == x.dtype
        assert_close(a, b, scale, "elementwise")


# ---------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
def test_training_and_gradient(isa_row, dtype, shape):
    x = reals(rng(1), shape, dtype) * np.asarray(3, dtype) + np.asarray(2, dtype)
    dy = reals(rng(2), shape, dtype)
    weight, bias = parameters(shape[1])
    for w, b in ((weight, bias), (None, None), (weight.astype(dtype), None), (None, bias)):
        _, saved = check_train(x, w, b)
        check_backward(dy, x, w, saved)


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
def test_evaluation(isa_row, dtype, shape):
    x = reals(rng(1), shape, dtype)
    weight, bias = parameters(shape[1])
    mean, var = parameters(shape[1], 4)[1], parameters(shape[1], 5)[0]
    for w, b in ((weight, bias), (None, None), (weight.astype(dtype), None), (None, bias)):
        y = by_teams(lambda w=w, b=b: F.batch_norm(x, mean, var, w, b))
        wanted = ref.batch_norm(x, mean, var, w, b)
        assert y.dtype == dtype
        invstd = 1 / np.sqrt(var + EPS)
        assert_close(y, wanted, forward_scale(x, mean, invstd, w, b), "elementwise")


def test_the_large_shapes_need_a_team():
    assert min(map(math.prod, LARGE)) >= SERIAL_ELEMENTS
    assert min(shape[1] for shape in LARGE) >= 7


@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
def test_evaluation_is_exact_on_integers(isa_row, dtype, shape):
    """var = 1/4 - 0, weight 1.5: every number is a small dyadic fraction."""
    channels = shape[1]
    x = integers(rng(1), shape, dtype)
    mean, var = integers(rng(2), (channels,), dtype), np.full(channels, 0.25)
    weight, bias = np.full(channels, 1.5), integers(rng(3), (channels,), "f8")
    equal(
        by_teams(lambda: F.batch_norm(x, mean, var, weight, bias, 0)),
        ref.batch_norm(x, mean, var, weight, bias, 0),
        dtype,
    )
    dy = integers(rng(4), shape, dtype)
    saved = (mean, np.full(channels, 2.0))
    dx, dweight, dbias = by_teams(
        lambda: F.batch_norm_backward(dy, x, weight, saved, training=False)
    )
    equal(dx, dy * 3.0, dtype)
    _, wanted_weight, wanted_bias = ref.batch_norm_backward(dy, x, weight, saved)
    assert_array_equal(dweight, wanted_weight)
    assert_array_equal(dbias, wanted_bias)


@pytest.mark.parametrize("pixels", [2, 8, 34, 66, 1024, 1030, 4100])
def test_training_is_exact_on_signs(isa_row, dtype, pixels):
    """As many +3 as -1 in each channel: mean 1, variance 4; every tail length of the sums."""
    x = np.where(np.arange(pixels) % 2, 3, -1).astype(dtype)
    x = np.stack([rng(k).permutation(x) for k in range(6)]).reshape(2, 3, pixels)
    y, (mean, invstd) = by_teams(lambda: F.batch_norm_train(x, eps=0.0))
    assert_array_equal(mean, np.ones(3))
    assert_array_equal(invstd, np.full(3, 0.5))
    assert_array_equal(y, (x - 1) / 2)
    dx, dweight, dbias = F.batch_norm_backward(np.ones_like(x), x, None, (mean, invstd))
    assert_array_equal(dx, np.zeros(x.shape))
    assert_array_equal(dweight, np.zeros(3))
    assert_array_equal(dbias, np.full(3, 2 * pixels))


def test_a_large_mean_does_not_ruin_the_variance(isa_row, dtype):
    """Two passes: the error of the variance does not grow with mean^2."""
    offset = 2.0**12 if dtype == "float32" else 2.0**40
    x = (integers(rng(1), (4, 3, 20, 21), "f8") + offset).astype(dtype)
    _, (mean, invstd) = F.batch_norm_train(x)
    wanted = ref.batch_norm_train(x, None, None)[1]
    assert_allclose(mean, wanted[0], rtol=4 * np.finfo(dtype).eps)
    assert_allclose(invstd, wanted[1], rtol=1e-4)


@pytest.mark.parametrize("shape", [(5, 2, 40, 40), (30, 3, 7, 7), (4000, 5)], ids=str)
def test_a_first_block_unlike_the_others(isa_row, dtype, shape):
    """Constant where the sums begin and far away from everything after it, by images or by rows."""
    x = reals(rng(1), shape, dtype) + np.asarray(3000, dtype)
    x.reshape(-1)[: x.size // shape[0]] = 0.25
    x[: max(1, min(shape[0] // 40, 32))] = 0.25
    _, (mean, invstd) = by_teams(lambda: F.batch_norm_train(x))
    exact, axes = x.astype(np.longdouble), (0, *range(2, x.ndim))
    assert_allclose(mean, exact.mean(axes), rtol=4 * np.finfo(dtype).eps)
    assert_allclose(invstd, 1 / np.sqrt(exact.var(axes) + EPS), rtol=16 * np.finfo(dtype).eps)


@examples(60)
@given(
    lead=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sizes=st.lists(st.integers(0, 9), max_size=3),
    seed=SEEDS,
    affine=st.booleans(),
    eps=st.sampled_from((1e-5, 1e-3, 1.0)),
)
def test_any_shape(isa_row, lead, sizes, seed, affine, eps):
    shape = (*lead, *sizes)
    x, dy = reals(rng(seed), shape, "f4"), reals(rng(seed + 1), shape, "f4")
    weight, bias = parameters(shape[1], seed) if affine else (None, None)
    if x.size <= shape[1]:
        with named("x"):
            F.batch_norm_train(x, weight, bias)
        assert F.batch_norm(x, np.zeros(shape[1]), np.ones(shape[1])).shape == shape
        return
    y, saved = F.batch_norm_train(x, weight, bias, eps=eps)
    wanted, (_, invstd) = ref.batch_norm_train(x, weight, bias, eps=eps)
    assert_close(y, wanted, forward_scale(x, size_of(x), invstd, weight, bias), "elementwise")
    for a, b, scale in zip(
        F.batch_norm_backward(dy, x, weight, saved),
        ref.batch_norm_backward(dy, x, weight, saved),
        backward_scales(dy, x, weight, saved),
        strict=True,
    ):
        assert_close(a, b, scale, "elementwise")


@pytest.mark.parametrize("shape", [(9, 4), (3, 2, 5), (2, 3, 4, 5)])
def test_finite_differences(isa_row, shape):
    x, dy = reals(rng(1), shape, "f8"), reals(rng(2), shape, "f8")
    weight, bias = parameters(shape[1])
    saved = F.batch_norm_train(x, weight, bias)[1]
    dx, dweight, dbias = F.batch_norm_backward(dy, x, weight, saved)

    def loss(a: Array, w: Array, b: Array) -> float:
        return float(np.vdot(F.batch_norm_train(a, w, b)[0], dy))

    slope(lambda a: loss(a, weight, bias), x, dx)
    slope(lambda w: loss(x, w, bias), weight, dweight)
    slope(lambda b: loss(x, weight, b), bias, dbias)


@pytest.mark.parametrize("shape", [(9, 4), (2, 3, 4, 5)])
def test_evaluation_is_linear_and_adjoint(isa_row, shape):
    x = reals(rng(1), shape, "f8")
    (weight, bias), zeros = parameters(shape[1]), np.zeros(shape[1])
    var = parameters(shape[1], 5)[0]
    saved = (zeros, 1 / np.sqrt(var + EPS))
    adjoint(
        lambda a: F.batch_norm(a, zeros, var, weight),
        lambda g: F.batch_norm_backward(g, x, weight, saved, training=False)[0],
        x,
    )
    _, dweight, dbias = F.batch_norm_backward(x, x, weight, (bias, saved[1]), training=False)
    wanted = ref.batch_norm_backward(x, x, weight, (bias, saved[1]))
    assert_allclose(dweight, wanted[1], rtol=1e-12)
    assert_allclose(dbias, wanted[2], rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------- running statistics


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", ">f8"])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.75])
def test_running_statistics(isa_row, dtype, momentum, kind):
    x = reals(rng(1), (3, 4, 5, 6), dtype)
    mean, var = np.arange(4).astype(kind), np.arange(1, 5).astype(kind)
    for name, pair in (
        ("whole", (mean, var)),
        ("strided", (mean.repeat(2)[::2], var.repeat(2)[::2])),
    ):
        wanted = (pair[0].astype("f8"), pair[1].astype("f8"))
        ref.batch_norm_train(x, None, None, *wanted, momentum=momentum)
        same_bytes(
            F.batch_norm_train(x, None, None, *pair, momentum=momentum), F.batch_norm_train(x)
        )
        eps = max(np.finfo(kind).eps, np.finfo(dtype).eps)
        for a, b in zip(pair, wanted, strict=True):
            assert_allclose(a.astype("f8"), b, rtol=8 * eps, atol=8 * eps, err_msg=name)


def test_running_statistics_are_unbiased_and_exact(isa_row, dtype):
    """mean 1, biased variance 4 of 16 values: unbiased 64/15; half of the new value is taken."""
    x = np.tile(np.array([3, -1], dtype), 8).reshape(2, 1, 8)
    mean, var = np.array([3.0]), np.array([1.0])
    F.batch_norm_train(x, running_mean=mean, running_var=var, momentum=0.5)
    assert mean[0] == 2
    assert var[0] == 0.5 + 0.5 * (4 * 16 / 15)


def test_running_statistics_one_without_the_other(isa_row):
    x = reals(rng(), (4, 3), "f4")
    both = np.zeros(3), np.zeros(3)
    F.batch_norm_train(x, None, None, *both)
    alone = np.zeros(3), np.zeros(3)
    F.batch_norm_train(x, running_mean=alone[0])
    F.batch_norm_train(x, running_var=alone[1])
    same_bytes(alone, both)


def test_an_error_leaves_the_running_statistics_alone():
    mean, var = np.zeros(3), np.ones(3)
    for x, options in (
        (np.ones((1, 3)), {}),
        (np.ones((4, 3)), {"eps": -1.0}),
        (np.ones((4, 3)), {"weight": np.ones(2)}),
        (np.ones((4, 3)), {"out": np.ones(3)}),
    ):
        with named(next(iter(options), "x")):
            F.batch_norm_train(x, running_mean=mean, running_var=var, **options)
        assert_array_equal(mean, np.zeros(3))
        assert_array_equal(var, np.ones(3))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1), (0, 3), (0, 3, 4), (2, 3, 0)])
def test_one_value_per_channel(isa_row, dtype, shape):
    with pytest.raises(ValueError, match=r"x: .*more than one value per channel"):
        F.batch_norm_train(np.ones(shape, dtype))


# ---------------------------------------------------------------------------- special values


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pixels", [5, 8, 21])
def test_special_values_stay_in_their_channel(isa_row, dtype, pixels, special):
    for place in range(pixels):
        x = reals(rng(1), (2, 3, pixels), dtype)
        clean, (mean, invstd) = F.batch_norm_train(x)
        weight, saved = np.ones(3), (mean.copy(), invstd.copy())
        clean_gradient = F.batch_norm_backward(x, x, weight, saved)
        x[1, 1, place] = special
        y, (mean, invstd) = F.batch_norm_train(x)
        assert np.isnan(y[:, 1]).all()
        assert not np.isfinite(mean[1])
        assert np.isnan(invstd[1])
        same_bytes(y[:, [0, 2]], clean[:, [0, 2]])
        wanted = ref.batch_norm(x, saved[0], saved[1])
        assert_array_equal(np.isnan(F.batch_norm(x, *saved)), np.isnan(wanted))
        gradient = F.batch_norm_backward(x, x, weight, saved)
        for a, b in zip(gradient, clean_gradient, strict=True):
            channel = (slice(None), [0, 2]) if a.ndim > 1 else [0, 2]
            same_bytes(a[channel], b[channel])
        assert not np.isfinite(gradient[2][1])


def test_evaluation_follows_ieee(isa_row, dtype):
    x = np.array([[[1, -1, np.nan, np.inf]]], dtype)
    for mean, var in ((0, 0), (0, -1), (np.nan, 1), (np.inf, 1), (0, np.inf), (0, np.nan)):
        got = F.batch_norm(x, np.array([mean]), np.array([var]), eps=0.0)
        assert_array_equal(got, ref.batch_norm(x, [mean], [var], eps=0.0))


# ------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 5, 4)])
def test_arrays(dtype, shape):
    x, dy = integers(rng(1), shape, dtype), integers(rng(2), shape, dtype)
    weight, bias = parameters(3)
    mean, var = np.abs(bias), np.abs(weight)
    saved = F.batch_norm_train(x)[1]

    def train(a: Array, out: Array | None = None) -> Array:
        return F.batch_norm_train(a, weight, bias, out=out)[0]

    def evaluate(a: Array, out: Array | None = None) -> Array:
        return F.batch_norm(a, mean, var, weight, bias, out=out)

    for f in (train, evaluate):
        check_hostile(f, x)
        check_out(lambda out, f=f: f(x, out), f(x))
        check_overlap(f, x, x.shape)
        check_half(f, x)
        check_integers(f, x + np.arange(x.size, dtype=dtype).reshape(shape))
    check_hostile(lambda a, b: F.batch_norm_backward(a, b, weight, saved), dy, x)
    check_hostile(lambda *p: F.batch_norm(x, *p), mean, var, weight, bias)
    check_hostile(lambda *p: F.batch_norm_train(x, *p), weight, bias)
    check_hostile(lambda *p: F.batch_norm_backward(dy, x, p[0], p[1:]), weight, *saved)
    check_half(lambda a, b: F.batch_norm_backward(a, b, weight, saved), dy, x)
    check_integers(lambda a, b: F.batch_norm_backward(a, b, weight, saved), dy, x)
    for name, awkward in hostile(mean).items():
        if name != "readonly":
            F.batch_norm_train(x, running_mean=awkward)


def test_evaluation_of_nothing(isa_row, dtype):
    for shape in ((0, 3), (0, 3, 4, 5), (2, 3, 0), (2, 0, 4)):
        channels = shape[1]
        x = np.zeros(shape, dtype)
        y = F.batch_norm(x, np.zeros(channels), np.ones(channels))
        assert (y.shape, y.dtype) == (shape, dtype)
        saved = (np.zeros(channels), np.ones(channels))
        dx, dweight, dbias = F.batch_norm_backward(x, x, None, saved)
        assert dx.shape == shape
        assert_array_equal((dweight, dbias), np.zeros((2, channels)))


# --------------------------------------------------------------------------------- bad input

X = np.arange(12.0).reshape(4, 3)
GOOD = {
    "weight": np.ones(3),
    "bias": np.zeros(3),
    "running_mean": np.zeros(3),
    "running_var": np.ones(3),
}
SAVED = (np.zeros(3), np.ones(3))


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_what_is_no_array(kind):
    bad = BAD_ARRAYS[kind]
    ones = np.ones(1)
    with named("x"):
        F.batch_norm_train(bad)
    with named("x"):
        F.batch_norm(bad, ones, ones)
    with named("dy"):
        F.batch_norm_backward(bad, np.ones((1, 1, 1, 1)), None, (ones, ones))
    with named("x"):
        F.batch_norm_backward(np.ones((1, 1, 1, 1)), bad, None, (ones, ones))
    if kind not in ("none", "longdouble"):
        for name in ("weight", "bias", "running_mean", "running_var"):
            with named(name):
                F.batch_norm_train(X, **{name: bad.ravel().repeat(3)})
            with named(name):
                F.batch_norm(X, **GOOD | {name: bad.ravel().repeat(3)})
        with named("weight"):
            F.batch_norm_backward(X, X, bad.ravel().repeat(3), SAVED)
        for saved in ((bad.ravel().repeat(3), SAVED[1]), (SAVED[0], bad.ravel().repeat(3))):
            with named("saved"):
                F.batch_norm_backward(X, X, None, saved)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (4,), (3, 1), (1, 3)])
@pytest.mark.parametrize("name", GOOD)
def test_parameters_of_the_wrong_shape(name, shape):
    with named(name):
        F.batch_norm_train(X, **{name: np.ones(shape)})
    with named(name):
        F.batch_norm(X, **GOOD | {name: np.ones(shape)})
    with named("weight"):
        F.batch_norm_backward(X, X, np.ones(shape), SAVED)
    for saved in ((np.ones(shape), SAVED[1]), (SAVED[0], np.ones(shape))):
        with named("saved"):
            F.batch_norm_backward(X, X, None, saved)


def test_running_statistics_must_be_writable_floats():
    readonly = np.zeros(3)
    readonly.flags.writeable = False
    for name in ("running_mean", "running_var"):
        for bad in (readonly, [0.0] * 3, np.zeros(3, int), np.zeros(3, complex), 0.0, "abc"):
            with named(name):
                F.batch_norm_train(X, **{name: bad})
        with named(name):
            F.batch_norm(X, **GOOD | {name: None})


@pytest.mark.parametrize("eps", [-1e-5, math.nan, math.inf, -math.inf, "1", None, 1j, np.ones(1)])
def test_bad_eps(eps):
    with named("eps"):
        F.batch_norm_train(X, eps=eps)
    with named("eps"):
        F.batch_norm(X, *SAVED, eps=eps)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_inputs_without_channels(shape):
    for call in (
        lambda x: F.batch_norm_train(x),
        lambda x: F.batch_norm(x, *SAVED),
        lambda x: F.batch_norm_backward(x, x, None, SAVED),
    ):
        with named("x"):
            call(np.ones(shape))


@pytest.mark.parametrize("shape", [(3,), (3, 3), (4, 4), (4, 3, 1)])
def test_dy_of_another_shape(shape):
    with named("dy"):
        F.batch_norm_backward(np.ones(shape), X, None, SAVED)


# ------------------------------------------------------------------------------- hard cases


@pytest.mark.parametrize("saved", [(None, None), (None, np.ones(3)), (np.ones(3), None)])
def test_no_saved_statistics(saved):
    with named("saved"):
        F.batch_norm_backward(X, X, None, saved)


@pytest.mark.parametrize("saved", [None, (), SAVED[:1], (*SAVED, SAVED[0]), 3])
def test_saved_must_be_a_pair(saved):
    with named("saved"):
        F.batch_norm_backward(X, X, None, saved)


@pytest.mark.parametrize("momentum", [math.nan, math.inf, "0.1", None, 1j, True, np.ones(2)])
def test_bad_momentum(momentum):
    with named("momentum"):
        F.batch_norm_train(X, running_mean=np.zeros(3), momentum=momentum)


def test_eps_is_a_number():
    same_bytes(F.batch_norm(X, *SAVED, eps=np.int64(1)), F.batch_norm(X, *SAVED, eps=1))
    with named("eps"):
        F.batch_norm(X, *SAVED, eps=True)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean"])
def test_out_over_the_parameters(name):
    x, memory = np.full((1, 39, 1), 2.0), np.arange(1.0, 41)
    options = {key: np.ones(39) for key in GOOD}
    wanted = F.batch_norm(x, **options | {name: memory[:-1].copy()})
    got = F.batch_norm(x, **options | {name: memory[:-1]}, out=memory[1:].reshape(x.shape))
    assert_array_equal(got, wanted)


# ------------------------------------------------------------------------------------ folding


FOLDED = {"1d": (6, 3, 5), "2d": (6, 2, 3, 1), "3d": (5, 3, 2, 1, 3)}


def statistics(channels: int, seed: int) -> tuple[Array, Array, Array, Array]:
    """Mean, variance, weight and bias, far from 0 and 1."""
    made = rng(seed)
    mean, bias = made.standard_normal((2, channels))
    return mean, made.uniform(0.01, 9, channels), made.uniform(-2, 2, channels), bias


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_folded_weights_are_rounded_once(name: str, layout: str, dtype: str) -> None:
    made, shape = rng(21), FOLDED[name]
    w, b = reals(made, shape, dtype), reals(made, shape[:1], dtype)
    if layout == "NHWC":
        w = np.ascontiguousarray(np.moveaxis(w, (0, 1), (-1, -2)))
    mean, var, weight, bias = (v.astype(dtype) for v in statistics(len(b), 22))
    for b_, weight_, bias_ in ((b, weight, bias), (None, None, None), (b, None, bias)):
        arguments = (w, b_, mean, var, weight_, bias_, 1e-3)
        found = F.fold_batch_norm(*arguments, layout=layout)
        wanted = ref.fold_batch_norm(*arguments, layout=layout)
        for f, r in zip(found, wanted, strict=True):
            assert f.dtype == dtype
            assert_array_equal(f, r.astype(dtype))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_with_folded_weights_is_both_steps(
    groups: int, dtype: str, isa_row: str
) -> None:
    made = rng(23)
    x, w = reals(made, (2, 6, 9, 11), dtype), reals(made, (8, 6 // groups, 3, 3), dtype)
    b, norm, options = reals(made, (8,), dtype), statistics(8, 24), {"padding": 1, "groups": groups}
    folded = F.fold_batch_norm(w, b, *norm)
    y = F.conv2d(x, *folded, **options, algo="direct")
    wanted = ref.batch_norm(ref.conv2d(x, w, b, **options), *norm)
    mean, var, weight, bias = norm
    scale = ref.abs_conv(x, w, np.abs(b) + np.abs(mean), **options)
    scale = scale * per_channel(np.abs(weight) / np.sqrt(var + EPS), x) + per_channel(
        np.abs(bias), x
    )
    assert_close(y, wanted, scale)


def test_folding_half_precision_and_integers() -> None:
    ones = np.ones(2)
    w, b = F.fold_batch_norm(np.ones((2, 1, 3), "f2"), None, ones, 3 * ones, eps=1)
    assert (w.dtype, b.dtype) == (np.float16, np.float16)
    assert_array_equal(w, np.full((2, 1, 3), 0.5))
    assert_array_equal(b, [-0.5, -0.5])
    w, _ = F.fold_batch_norm(np.ones((2, 1, 3), int), None, ones, 3 * ones, eps=1)
    assert (w.dtype, w[0, 0, 0]) == (np.float64, 0.5)


def test_folding_a_variance_of_zero_follows_ieee() -> None:
    w, b = F.fold_batch_norm(np.ones((1, 1, 1)), None, [0.0], [0.0], eps=0)
    assert np.isinf(w[0, 0, 0])
    assert np.isnan(b[0])


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("w", np.ones((4, 2))),
        ("w", np.ones((4, 2, 1, 1, 1, 1))),
        ("w", np.ones((4, 2, 3), complex)),
        ("b", np.ones(3)),
        ("running_mean", np.ones(2)),
        ("running_mean", None),
        ("running_var", np.ones((4, 1))),
        ("running_var", "a"),
        ("weight", np.ones(())),
        ("bias", np.ones(5)),
        ("eps", -1),
        ("eps", math.nan),
        ("layout", "HWIO"),
    ],
)
def test_folding_names_what_is_wrong(name: str, bad: Any) -> None:
    good = {
        "w": np.ones((4, 2, 3)),
        **dict.fromkeys(("b", "running_mean", "running_var"), np.ones(4)),
    }
    with named(name):
        F.fold_batch_norm(**{**good, name: bad})
