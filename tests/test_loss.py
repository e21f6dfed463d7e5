# SPDX-License-Identifier: BSD-3-Clause
"""Cross-entropy: classes and probabilities, weights, ignored rows, smoothing, reductions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastconv.functional as F
from fastconv import reference as ref
from fastconv.functional._calls import SERIAL_ELEMENTS
from tests.calls import run_python
from tests.checks import (
    BAD_ARRAYS,
    BAD_INTS,
    SEEDS,
    by_teams,
    check_half,
    check_hostile,
    examples,
    named,
    same_bytes,
    slope,
)
from tests.data import Array, hostile, integers, reals, rng
from tests.tolerance import assert_close

SHAPES = ((5,), (1, 7), (8, 3), (4, 5, 6), (2, 9, 3, 4), (2, 3, 2, 2, 2))
LARGE = (300, 33, 7)
REDUCTIONS = ("mean", "sum", "none")
IGNORED = 2


def axis_of(shape: tuple[int, ...]) -> int:
    return 0 if len(shape) == 1 else 1


def problem(
    shape: tuple[int, ...], kind: str, dtype: Any, seed: int = 1
) -> tuple[Array, Array, Array]:
    """logits, target ("classes" or "probabilities") and class weights."""
    at = axis_of(shape)
    logits = reals(rng(seed), shape, dtype) * np.asarray(3, dtype)
    weight = rng(seed + 1).uniform(0.5, 2, shape[at]).astype(dtype)
    if kind == "classes":
        outer = shape[:at] + shape[at + 1 :]
        return logits, rng(seed + 2).integers(0, shape[at], outer), weight
    return logits, ref.softmax(reals(rng(seed + 2), shape, "f8"), at).astype(dtype), weight


def scales(logits: Array, target: Array, dloss: float, options: dict[str, Any]) -> tuple[Any, Any]:
    """Of the loss and its gradient: sums of absolute values, an error of log p counted as theirs.

    A log p is wrong by eps * (1 + the spread of its row): so much the exponents are rounded.
    """
    reduction = options.get("reduction", "mean")
    names = ("weight", "ignore_index", "label_smoothing")
    defaults = {"weight": None, "ignore_index": -100, "label_smoothing": 0.0}
    mass = [(defaults | options)[name] for name in names]
    at, x = axis_of(logits.shape), np.asarray(logits, "f8")
    q, total = ref._target_mass(x, target, *mass)
    q = np.abs(q) / (total if reduction == "mean" else 1.0)
    error = 1 + np.ptp(x, axis=at, keepdims=True)
    loss = (q * (error - ref.log_softmax(x, at))).sum(at)
    dx = (q + ref.softmax(x, at) * q.sum(at, keepdims=True)) * error * abs(dloss)
    return (loss if reduction == "none" else loss.sum()), dx


def check(logits: Array, target: Array, dtype: Any, dloss: float = 1.0, **options: Any) -> None:
    """Loss and gradient against the reference."""
    loss_scale, dx_scale = scales(logits, target, dloss, options)
    loss = by_teams(lambda: F.cross_entropy(logits, target, **options))
    wanted = np.asarray(ref.cross_entropy(logits, target, **options))
    assert loss.dtype == dtype
    assert_close(np.asarray(loss), wanted, loss_scale, "transcendental")
    dx = by_teams(lambda: F.cross_entropy_backward(logits, target, dloss=dloss, **options))
    wanted = ref.cross_entropy_backward(logits, target, dloss=dloss, **options)
    assert dx.dtype == dtype
    assert_close(dx, wanted, dx_scale, "transcendental")


# ---------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [*SHAPES, LARGE], ids=str)
def test_cross_entropy(isa_row, dtype, shape, kind):
    logits, target, weight = problem(shape, kind, dtype)
    smoothings = (0.1,) if shape == LARGE else (0.0, 0.1, 1.0)
    for reduction, smoothing, weighted in itertools.product(REDUCTIONS, smoothings, (False, True)):
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        if weighted:
            options["weight"] = weight
        check(logits, target, dtype, 1.5, **options)


@pytest.mark.parametrize("shape", [(8, 3), (4, 5, 6), LARGE], ids=str)
@pytest.mark.parametrize("ignore_index", [IGNORED, -100, -1, 2**62])
def test_ignored_rows(isa_row, dtype, shape, ignore_index):
    logits, target, weight = problem(shape, "classes", dtype)
    target[rng(7).random(target.shape) < 0.3] = ignore_index
    assert (target == ignore_index).any()
    for reduction in REDUCTIONS:
        options = {"reduction": reduction, "ignore_index": ignore_index, "weight": weight}
        check(logits, target, dtype, **options, label_smoothing=0.2)
    loss = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    dx = F.cross_entropy_backward(logits, target, ignore_index=ignore_index)
    ignored = target == ignore_index
    assert_array_equal(loss[ignored], 0)
    assert (loss[~ignored] > 0).all()
    assert_array_equal(np.moveaxis(dx, 1, -1)[ignored], 0)


def test_the_large_logits_need_a_team():
    assert math.prod(LARGE) >= SERIAL_ELEMENTS


def test_by_hand(isa_row, dtype):
    """Two classes with odds 3 : 1."""
    logits = np.log(np.array([[3, 1], [1, 3], [1, 1]])).astype(dtype)
    target = np.array([0, 0, 1])
    eps = np.finfo(dtype).eps
    losses = -np.log([0.75, 0.25, 0.5])
    cases = (
        ({"reduction": "none"}, losses),
        ({"reduction": "sum"}, losses.sum()),
        ({}, losses.mean()),
        ({"weight": np.array([1, 4])}, (losses * [1, 1, 4]).sum() / 6),
        ({"ignore_index": 1}, losses[:2].mean()),
    )
    for options, wanted in cases:
        got = F.cross_entropy(logits, target, **options)
        assert np.abs(got - wanted).max() <= 8 * eps
    smooth = F.cross_entropy(logits, target, reduction="none", label_smoothing=0.5)[0]
    assert abs(smooth + 0.75 * np.log(0.75) + 0.25 * np.log(0.25)) <= 8 * eps
    dx = F.cross_entropy_backward(logits, target, reduction="sum", dloss=2.0)
    assert np.abs(dx - 2 * np.array([[-0.25, 0.25], [-0.75, 0.75], [0.5, -0.5]])).max() <= 8 * eps


def test_uniform_logits_have_exact_gradients(isa_row, dtype):
    logits = np.full((4, 8, 3), 5, dtype)
    target = rng().integers(0, 8, (4, 3))
    onehot = np.moveaxis(np.eye(8)[target], -1, 1)
    dx = by_teams(lambda: F.cross_entropy_backward(logits, target, reduction="sum"))
    # exp(log(1/8)) is 1/8 but for rounding
    assert_close(dx, 0.125 - onehot, 1.0, "elementwise")
    same_bytes(F.cross_entropy_backward(logits, target, reduction="none"), dx)
    half = F.cross_entropy_backward(logits, target, reduction="sum", dloss=0.5)
    same_bytes(half, dx / np.asarray(2, dtype))
    assert_array_equal(F.cross_entropy_backward(logits, target, dloss=0), np.zeros(dx.shape))


def test_scalars_and_shapes(dtype):
    logits, target, _ = problem((4, 5, 6), "classes", dtype)
    for reduction in ("mean", "sum"):
        loss = F.cross_entropy(logits, target, reduction=reduction)
        assert np.shape(loss) == ()
        assert isinstance(loss, np.dtype(dtype).type)
    assert F.cross_entropy(logits, target, reduction="none").shape == (4, 6)
    one = F.cross_entropy(logits[0, :, 0], target[0, 0], reduction="none")
    assert np.shape(one) == ()
    assert F.cross_entropy_backward(logits[0, :, 0], target[0, 0]).shape == (5,)
    row = F.cross_entropy_backward(logits[:1, :, :1], target[:1, :1])
    same_bytes(F.cross_entropy_backward(logits[0, :, 0], target[0, 0]), row[0, :, 0])


@examples(80)
@given(
    data=st.data(),
    classes=st.integers(1, 9),
    kind=st.sampled_from(("classes", "probabilities")),
    reduction=st.sampled_from(REDUCTIONS),
    smoothing=st.floats(0, 1),
    weighted=st.booleans(),
    seed=SEEDS,
)
def test_any_problem(isa_row, data, classes, kind, reduction, smoothing, weighted, seed):
    lead = data.draw(st.lists(st.integers(1, 5), max_size=3))
    shape = (classes,) if not lead else (lead[0], classes, *lead[1:])
    logits, target, weight = problem(shape, kind, "f8", seed)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    if weighted:
        options["weight"] = weight
    check(logits, target, "f8", **options)


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_finite_differences(isa_row, kind, reduction):
    for shape in ((6,), (4, 5), (2, 5, 3)):
        logits, target, weight = problem(shape, kind, "f8")
        options = {"reduction": reduction, "weight": weight, "label_smoothing": 0.1}
        loss = F.cross_entropy(logits, target, **options)
        dloss = reals(rng(9), np.shape(loss), "f8")
        dx = F.cross_entropy_backward(logits, target, dloss=dloss, **options)
        slope(
            lambda a, t=target, d=dloss, o=options: float(np.sum(d * F.cross_entropy(a, t, **o))),
            logits,
            dx,
        )


# ---------------------------------------------------------------------------- special values


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_special_logits_stay_in_their_row(isa_row, dtype, special):
    logits, target, _ = problem((6, 21), "classes", dtype)
    clean = F.cross_entropy(logits, target, reduction="none")
    clean_gradient = F.cross_entropy_backward(logits, target, reduction="none")
    for place in range(21):
        bad = logits.copy()
        bad[3, place] = special
        others = [0, 1, 2, 4, 5]
        loss = F.cross_entropy(bad, target, reduction="none")
        assert np.isnan(loss[3])
        same_bytes(loss[others], clean[others])
        dx = F.cross_entropy_backward(bad, target, reduction="none")
        assert np.isnan(dx[3]).any()
        same_bytes(dx[others], clean_gradient[others])
        assert np.isnan(F.cross_entropy(bad, target))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_impossible_classes(isa_row, dtype):
    """log p = -inf counts for nothing unless it is the target."""
    logits = np.array([[0, -np.inf, 0], [0, 0, -np.inf]], dtype)
    loss = F.cross_entropy(logits, np.array([0, 2]), reduction="none")
    assert_close(loss[:1], np.log([2.0]), 1.0, "elementwise")
    assert loss[1] == np.inf
    dx = F.cross_entropy_backward(logits, np.array([0, 2]), reduction="none")
    assert_close(dx, np.array([[-0.5, 0, 0.5], [0.5, 0.5, -1]]), 1.0, "elementwise")
    # with smoothing the impossible class has a share
    assert F.cross_entropy(logits, np.array([0, 0]), label_smoothing=0.1) == np.inf
    soft = F.cross_entropy(logits[:1], np.array([[0.5, 0, 0.5]], dtype))
    assert_close(np.asarray(soft), np.log(2.0), 1.0, "elementwise")


def test_huge_logits(isa_row, dtype):
    logits = np.array([[1e30, 0, -1e30], [1000, 0, -1000]], dtype)
    loss = F.cross_entropy(logits, np.array([0, 0]), reduction="none")
    assert_array_equal(loss, [0, 0])
    assert F.cross_entropy(logits, np.array([1, 1]), reduction="none")[1] == 1000


def test_no_rows_that_count(isa_row, dtype):
    logits, target = np.ones((3, 4), dtype), np.full(3, -100)
    assert np.isnan(F.cross_entropy(logits, target))
    assert F.cross_entropy(logits, target, reduction="sum") == 0
    for reduction in REDUCTIONS:
        dx = F.cross_entropy_backward(logits, target, reduction=reduction)
        assert_array_equal(dx, np.zeros((3, 4)))


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (2, 4, 0)])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_no_rows_at_all(isa_row, dtype, shape, kind):
    logits = np.zeros(shape, dtype)
    outer = (shape[0], *shape[2:])
    target = np.zeros(outer, int) if kind == "classes" else logits
    assert np.isnan(F.cross_entropy(logits, target))
    assert F.cross_entropy(logits, target, reduction="sum") == 0
    assert F.cross_entropy(logits, target, reduction="none").shape == outer
    assert F.cross_entropy_backward(logits, target).shape == shape


# ------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 3)])
def test_arrays(dtype, shape, kind):
    logits, target, weight = problem(shape, kind, dtype)
    whole = np.rint(logits).astype(dtype)
    for reduction in REDUCTIONS:
        options = {"reduction": reduction, "label_smoothing": 0.25}

        def loss(a: Array, t: Array = target, w: Array = weight, o: Any = options) -> Any:
            return F.cross_entropy(a, t, w, **o)

        def back(a: Array, t: Array = target, w: Array = weight, o: Any = options) -> Array:
            return F.cross_entropy_backward(a, t, w, **o)

        for f in (loss, back):
            if target.ndim:
                check_hostile(f, logits, target, weight)
            check_half(f, whole)
            for kind_, real in (("i1", "f4"), ("i4", "f8"), ("i8", "f8")):
                same_bytes(f(whole.astype(kind_)), f(whole.astype(real)))
            same_bytes(f(logits, target, weight.tolist()), f(logits, target, weight.astype("f8")))


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u8"])
def test_any_integers_are_classes(dtype, kind):
    logits, target, _ = problem((6, 4), "classes", dtype)
    wanted = F.cross_entropy(logits, target)
    same_bytes(F.cross_entropy(logits, target.astype(kind)), wanted)
    same_bytes(F.cross_entropy(logits, target.tolist()), wanted)


def test_dloss_arrays():
    logits, target, _ = problem((6, 4), "classes", "f4")
    dloss = integers(rng(), (6,), "f4")
    wanted = F.cross_entropy_backward(logits, target, reduction="none", dloss=dloss)
    for awkward in (
        *hostile(dloss).values(),
        dloss.astype("f8"),
        dloss.astype("i8"),
        dloss.tolist(),
    ):
        got = F.cross_entropy_backward(logits, target, reduction="none", dloss=awkward)
        same_bytes(got, wanted)
    scalar = F.cross_entropy_backward(logits, target, reduction="none", dloss=2)
    full = F.cross_entropy_backward(logits, target, reduction="none", dloss=np.full(6, 2.0))
    same_bytes(scalar, full)


# --------------------------------------------------------------------------------- bad input

LOGITS, TARGET = np.zeros((2, 3)), np.zeros(2, int)
BOTH = (F.cross_entropy, F.cross_entropy_backward)


@pytest.mark.parametrize("kind", BAD_ARRAYS)
@pytest.mark.parametrize("f", BOTH)
def test_what_is_no_array(f, kind):
    bad = BAD_ARRAYS[kind]
    with named("logits"):
        f(bad, TARGET)
    with named("target"):
        f(LOGITS, bad)
    if bad is not None and kind != "longdouble":
        with named("weight"):
            f(LOGITS, TARGET, bad.ravel().repeat(3))
    if bad is not None and kind not in ("longdouble", "masked"):  # an element has no mask
        with named("dloss"):
            F.cross_entropy_backward(LOGITS, TARGET, dloss=bad[0, 0, 0, 0])


@pytest.mark.parametrize("f", BOTH)
def test_bad_targets(f):
    for bad in (3, -1, -99, 2**31, 2**32, 2**62, -(2**63)):
        for place in (0, 1):
            target = TARGET.copy()
            target[place] = bad
            with pytest.raises(ValueError, match=f"target: .*{bad}"):
                f(LOGITS, target)
    for bad in (0, [0], [0, 0, 0], [[0, 0]], [[0], [0]], np.zeros((2, 3), int), [], [0.0, 1.0]):
        with named("target"):
            f(LOGITS, bad)
    for bad in ([True, False], np.zeros((2, 3), bool), np.zeros((3, 2)), np.zeros((2, 3, 1))):
        with named("target"):
            f(LOGITS, bad)
    with named("logits"):
        f(1.0, 0)


@pytest.mark.parametrize("f", BOTH)
@pytest.mark.parametrize("bad", [1.0, np.ones(2), np.ones(4), np.ones((1, 3)), np.ones((3, 1)), []])
def test_bad_weights(f, bad):
    with named("weight"):
        f(LOGITS, TARGET, bad)


@pytest.mark.parametrize("f", BOTH)
@pytest.mark.parametrize("bad", ["average", "", None, 0, True, b"mean", 2**62])
def test_bad_reductions(f, bad):
    with named("reduction"):
        f(LOGITS, TARGET, reduction=bad)


@pytest.mark.parametrize("f", BOTH)
@pytest.mark.parametrize("bad", [*BAD_INTS, None, (1,)])
def test_bad_ignore_index(f, bad):
    with named("ignore_index"):
        f(LOGITS, TARGET, ignore_index=bad)


@pytest.mark.parametrize("f", BOTH)
@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf, 2**62])
def test_bad_label_smoothing(f, bad):
    with named("label_smoothing"):
        f(LOGITS, TARGET, label_smoothing=bad)


def test_bad_dloss():
    for reduction, shapes in (
        ("mean", ((1,), (2,), (2, 3))),
        ("sum", ((1,), (2,), (2, 3))),
        ("none", ((1,), (3,), (2, 1), (2, 3))),
    ):
        for shape in shapes:
            with named("dloss"):
                F.cross_entropy_backward(LOGITS, TARGET, reduction=reduction, dloss=np.ones(shape))


# ------------------------------------------------------------------------------- hard cases


def test_huge_unsigned_classes():
    with named("target"):
        F.cross_entropy(LOGITS, np.array([2**64 - 100, 1], np.uint64))


def test_unsigned_class_of_one_sample():
    for function in (F.cross_entropy, F.cross_entropy_backward):
        signed, unsigned = (function(LOGITS[0], np.array(1, kind)) for kind in ("i8", "u8"))
        assert_array_equal(signed, unsigned)


@pytest.mark.parametrize("options", [{"weight": [1.0, 0.0, 2.0]}, {"label_smoothing": 1}])
def test_gradient_of_a_probability_that_is_nan(options):
    """Also where it is multiplied by zero: the loss of the row is NaN, and so is its gradient."""
    target = np.full((2, 3), 1 / 3)
    target[1, 1] = np.nan
    logits = np.zeros((2, 3))
    loss = F.cross_entropy(logits, target, reduction="none", **options)
    dx = F.cross_entropy_backward(logits, target, reduction="none", **options)
    assert_array_equal(np.isnan(loss), [False, True])
    assert_array_equal(np.isnan(dx), [[False] * 3, [True] * 3])


@pytest.mark.parametrize("rows", [0, 2])
def test_no_classes(rows):
    with named("logits"):
        F.cross_entropy(np.zeros((rows, 0)), np.zeros(rows, int))


@pytest.mark.parametrize("bad", ["0.1", None, 1j, np.ones(2), True])
def test_label_smoothing_that_is_no_number(bad):
    with named("label_smoothing"):
        F.cross_entropy(LOGITS, TARGET, label_smoothing=bad)


def test_reduction_array():
    with named("reduction"):
        F.cross_entropy(LOGITS, TARGET, reduction=np.array(["mean", "sum"]))


@pytest.mark.filterwarnings("error")
def test_impossible_classes_without_a_warning():
    logits = np.array([[0, -np.inf, 0]])
    assert abs(F.cross_entropy(logits, np.array([0])) - math.log(2)) < 1e-15


def test_ignore_index_is_always_checked():
    with named("ignore_index"):
        F.cross_entropy(LOGITS, LOGITS + 1 / 3, ignore_index="x")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_large_batch_in_slices(reduction):
    """36 MiB of logits go through in three slices, with the reference's numbers."""
    g = np.random.default_rng(7)
    logits = g.standard_normal((24, 6, 256, 256)).astype(np.float32)
    target = g.integers(0, 6, (24, 256, 256))
    target[:, 0] = -100
    weight = np.arange(1.0, 7.0)
    got = F.cross_entropy(logits, target, weight, reduction=reduction)
    np.testing.assert_allclose(
        got, ref.cross_entropy(logits, target, weight, reduction=reduction), rtol=1e-5, atol=1e-5
    )
    got = F.cross_entropy_backward(logits, target, weight, reduction=reduction)
    expected = ref.cross_entropy_backward(logits, target, weight, reduction=reduction)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_classes_that_another_thread_changes() -> None:
    """What was checked is what is used: an error or a loss, but nothing is read or written elsewhere."""
    run_python("""
    import threading
    import numpy as np, fastconv
    logits, target = np.zeros((50_000, 2), "f4"), np.zeros(50_000, "i8")
    done = False
    def change():
        while not done:
            target[-1] = 1 << 50
            target[-1] = 0
    thread = threading.Thread(target=change)
    thread.start()
    for call in (fastconv.cross_entropy, fastconv.cross_entropy_backward) * 200:
        try:
            assert np.isfinite(call(logits, target)).all()
        except ValueError as error:
            assert "target" in str(error)
    done = True
    thread.join()
    """)
