# SPDX-License-Identifier: BSD-3-Clause
"""Bad arguments of the convolutions: always a ValueError or TypeError that names the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastconv
from fastconv import reference
from fastconv.algorithms import GENERAL_NAMES
from tests import data
from tests.calls import run_python

Array = data.Array
RANKS = (1, 2, 3)
SIZES = {1: (9,), 2: (8, 9), 3: (5, 6, 7)}
HUGE = (2**31, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64, 10**30)


def good(rank: int) -> dict[str, Any]:
    """x (2, 4, ...), w (6, 2, 3...), groups 2, padding 1: a correct call."""
    made = data.rng(rank)
    x = data.integers(made, (2, 4, *SIZES[rank]), "float32")
    w = data.integers(made, (6, 2) + (3,) * rank, "float32")
    return {"x": x, "w": w, "padding": 1, "groups": 2}


def gradient(rank: int) -> Array:
    return data.integers(data.rng(9), (2, 6, *SIZES[rank]), "float32")


def call(direction: str, rank: int, **changes: Any) -> Any:
    arguments = good(rank) | changes
    if direction == "backward":
        arguments = {"dy": gradient(rank)} | arguments
        return getattr(fastconv, f"conv{rank}d_backward")(**arguments)
    return getattr(fastconv, f"conv{rank}d")(**arguments)


def refused(direction: str, rank: int, names: str, **changes: Any) -> str:
    """The call raises, and the message names the argument (one of `names`, separated by |)."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call(direction, rank, **changes)
    text = str(caught.value)
    assert type(caught.value) in (ValueError, TypeError)
    assert re.search(rf"(?<![\w.])({names})(?![\w.(])", text), f"{names} not named: {text}"
    return text


@pytest.fixture(params=RANKS)
def rank(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["forward", "backward"])
def direction(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_good_call_is_good(rank: int) -> None:
    y = call("forward", rank)
    assert_array_equal(y, reference.conv(**good(rank)))
    wanted = reference.conv_backward(gradient(rank), **good(rank))
    for a, b in zip(call("backward", rank), wanted, strict=True):
        assert_array_equal(a, b)


# ---------------------------------------------------------------------------- arrays that are none

NO_NUMBERS = {
    "object": np.array([[1, None]], dtype=object),
    "None": None,
    "complex": np.zeros((2, 4, 8, 9), complex),
    "strings": np.array([["a", "b"]]),
    "bytes": b"abc",
    "dates": np.zeros((2, 4, 8, 9), "datetime64[s]"),
    "times": np.zeros((2, 4, 8, 9), "timedelta64[s]"),
    "records": np.zeros((2, 4), [("a", "f4")]),
    "masked": np.ma.masked_equal(np.zeros((2, 4, 8, 9), "f4"), 1),
    "long double": np.zeros((2, 4, 8, 9), np.longdouble),
    "ragged": [[1.0], [1.0, 2.0]],
    "dictionary": {"a": 1},
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.parametrize("name", ["x", "w", "b", "residual", "dy"])
def test_arrays_that_hold_no_real_numbers(name: str, kind: str) -> None:
    if kind == "None" and name in ("b", "residual"):
        assert call("forward", 2, **{name: None}).shape == (2, 6, 8, 9)
        return
    refused("backward" if name == "dy" else "forward", 2, name, **{name: NO_NUMBERS[kind]})


@pytest.mark.parametrize("name", ["x", "w"])
@pytest.mark.parametrize("change", ["fewer", "more", "scalar", "empty"])
def test_wrong_numbers_of_axes(direction: str, rank: int, name: str, change: str) -> None:
    right = good(rank)[name]
    wrong = {
        "fewer": right[0, 0],
        "more": right[None],
        "scalar": right.ravel()[0],
        "empty": right.ravel()[:0],
    }[change]
    refused(direction, rank, name, **{name: wrong})


def test_channels_that_do_not_match(direction: str, rank: int) -> None:
    refused(direction, rank, "x", x=good(rank)["x"][:, :3])
    refused(direction, rank, "x", w=good(rank)["w"][:, :1])
    refused(direction, rank, "groups", groups=4, w=good(rank)["w"][:, :1])
    refused(direction, rank, "groups", groups=1)
    refused(direction, rank, "groups", groups=3)


def test_weights_without_elements(direction: str, rank: int) -> None:
    right = good(rank)["w"]
    refused(direction, rank, "w", w=right[:0])
    refused(direction, rank, "w", w=right[:, :0], x=good(rank)["x"][:, :0])
    refused(direction, rank, "w", w=right[..., :0])


def test_a_kernel_larger_than_the_padded_input(direction: str, rank: int) -> None:
    w = np.ones((6, 2) + (12,) * rank, "f4")
    text = refused(direction, rank, "w", w=w)
    assert "12" in text
    refused(direction, rank, "w", dilation=6)
    refused(direction, rank, "w", x=good(rank)["x"][..., :0])


# ------------------------------------------------------------------- integers of the spatial axes


@pytest.mark.parametrize("name", ["stride", "dilation", "groups"])
@pytest.mark.parametrize(
    "bad",
    [0, -1, -(2**63), 1.0, 1.5, True, np.True_, float("nan"), "1", "same", b"1", None, 1j, {1}],
    ids=repr,
)
def test_bad_integers(direction: str, rank: int, name: str, bad: Any) -> None:
    refused(direction, rank, name, **{name: bad})


@pytest.mark.parametrize(
    "bad",
    [-1, -(2**63), 1.0, 1.5, True, float("nan"), "1", "SAME", "full", b"same", None, 1j, {1}],
    ids=repr,
)
def test_bad_padding(direction: str, rank: int, bad: Any) -> None:
    refused(direction, rank, "padding", padding=bad)


@pytest.mark.parametrize("name", ["stride", "dilation", "padding"])
@pytest.mark.parametrize("count", [0, 4])
def test_wrong_numbers_of_integers(direction: str, rank: int, name: str, count: int) -> None:
    refused(direction, rank, name, **{name: (1,) * count})
    refused(direction, rank, name, **{name: np.ones(count, int)})
    refused(direction, rank, name, **{name: [1.5] * rank})
    refused(direction, rank, name, **{name: ["1"] * rank})
    refused(direction, rank, name, **{name: (None,) * rank})


def test_bad_padding_pairs(direction: str, rank: int) -> None:
    for pair in ((1, -1), (1, 2, 3), (), (1.5, 1), ("1", 1), (None, 1), (True, 1), ((1,), 1)):
        refused(direction, rank, "padding", padding=(pair,) * rank)
    refused(direction, rank, "padding", padding=((1, 1),) * (rank + 1))


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("name", ["dilation", "padding", "groups"])
def test_huge_integers_are_refused(direction: str, rank: int, name: str, size: int) -> None:
    """A padding of 2^31 is a result of many gigabytes: MemoryError is an answer as well."""
    if name == "padding" and size < 2**40:
        size = 2**45
    names = {"dilation": "dilation|w", "padding": "padding|dy", "groups": "groups"}[name]
    try:
        refused(direction, rank, names, **{name: size})
    except MemoryError:
        assert name == "padding"
        assert direction == "forward"


@pytest.mark.parametrize("size", [2**22, *HUGE])
@pytest.mark.parametrize("algo", ["auto", *GENERAL_NAMES])
def test_huge_strides_take_the_first_window(rank: int, size: int, algo: str) -> None:
    """One window a axis, until the number itself is refused; products of strides overflow before that."""
    if size > 2**62:
        refused("forward", rank, "stride", stride=size)
        return
    first = call("forward", rank)[(..., *(slice(0, 1),) * rank)]
    y = call("forward", rank, stride=size, algo=algo)
    data.trusted(y)
    assert_array_equal(y, first)
    dy = np.ones_like(y)
    wanted = reference.conv_backward(dy, **good(rank), stride=max(SIZES[rank]) + 2)
    found = call("backward", rank, dy=dy, stride=size, algo=algo)
    for a, b in zip(found, wanted, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("padding", [2**20, 2**30, 2**57])
@pytest.mark.parametrize("algo", ["auto", *GENERAL_NAMES])
def test_few_windows_far_apart(algo: str, padding: int) -> None:
    """Three windows an axis, of which the second has one pixel; or an error, where the algorithm has tables of the padding."""
    x = np.arange(2.0, 514.0).reshape(1, 2, 16, 16)
    w = np.ones((2, 1, 1, 1))
    options = {"padding": padding, "stride": padding + 1, "groups": 2, "algo": algo}
    try:
        y = fastconv.conv2d(x, w, **options)
        dx, dw, db = fastconv.conv2d_backward(y, x, w, **options)
    except MemoryError:
        assert algo == "depthwise"
        return
    wanted = np.zeros((1, 2, 3, 3))
    wanted[:, :, 1, 1] = x[:, :, 1, 1]
    assert_array_equal(y, wanted)
    assert_array_equal(dx, np.where(np.isin(x, x[:, :, 1, 1]), x, 0))
    assert_array_equal(dw.ravel(), x[0, :, 1, 1] ** 2)
    assert_array_equal(db, x[0, :, 1, 1])


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_beyond_what_the_mode_can_copy(direction: str, rank: int, mode: str) -> None:
    refused(direction, rank, "padding", padding=20, padding_mode=mode)


# -------------------------------------------------------------------------- shapes of the others


@pytest.mark.parametrize("name", ["b", "residual", "dy", "out"])
def test_wrong_shapes(rank: int, name: str) -> None:
    right = np.zeros(6, "f4") if name == "b" else gradient(rank)
    direction = "backward" if name == "dy" else "forward"
    for wrong in (right[:-1], right[None], right[..., None], right[:0], np.float32(1)):
        if name == "out" and np.ndim(wrong) == 0:
            continue
        refused(direction, rank, name, **{name: wrong})


def test_an_unbatched_call_takes_unbatched_arrays(rank: int) -> None:
    x = good(rank)["x"][0]
    refused("forward", rank, "residual", x=x, residual=gradient(rank))
    refused("forward", rank, "out", x=x, out=gradient(rank))
    refused("backward", rank, "dy", x=x)


def test_bad_out(rank: int) -> None:
    for bad in (1.0, [1.0], "out", gradient(rank).tolist(), gradient(rank).astype("i4")):
        refused("forward", rank, "out", out=bad)
    refused("forward", rank, "out", out=np.ma.asarray(gradient(rank)))
    readonly = gradient(rank)
    readonly.flags.writeable = False
    refused("forward", rank, "out", out=readonly)


# ------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize("name", ["layout", "padding_mode", "activation", "algo", "precision"])
@pytest.mark.parametrize("bad", ["", "nonsense", "RELU", 3, 1.5, ("relu",), ["zeros"]], ids=repr)
def test_bad_words(direction: str, rank: int, name: str, bad: Any) -> None:
    if name == "activation" and direction == "backward":
        direction = "forward"
    text = refused(direction, rank, name, **{name: bad})
    assert repr(bad) in text


@pytest.mark.parametrize("name", ["layout", "padding_mode", "algo"])
@pytest.mark.parametrize("bad", [None, np.ones(2), np.ones((2, 4, 8, 9), "f4")], ids=np.ndim)
def test_no_array_and_not_none_is_a_word(direction: str, name: str, bad: Any) -> None:
    refused(direction, 2, name, **{name: bad})


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "1", 2**63, (1,)], ids=repr)
def test_bad_max_workspace(direction: str, bad: Any) -> None:
    refused(direction, 2, "max_workspace", max_workspace=bad)


@pytest.mark.parametrize(
    "bad",
    [(), (True,), (True, True), (True,) * 4, None, True, 3, ("no", 1, 1), (1, 2, 1)],
    ids=repr,
)
def test_bad_needs(rank: int, bad: Any) -> None:
    refused("backward", rank, "needs", needs=bad)


def test_unknown_arguments_are_refused(rank: int) -> None:
    refused("forward", rank, "strides", strides=1)
    refused("backward", rank, "activation", activation="relu")


def test_endless_sequences_are_refused_at_once(rank: int) -> None:
    """10^12 numbers: no list is made of them, and each argument is named."""
    endless = range(10**12)
    for name in ("stride", "padding", "dilation"):
        refused("forward", rank, name, **{name: endless})
    x, dy = good(rank)["x"], gradient(rank)
    for pool in ("max_pool", "avg_pool"):
        with pytest.raises((TypeError, ValueError), match="padding"):
            getattr(fastconv, f"{pool}{rank}d")(x, 2, padding=endless)
    with pytest.raises(ValueError, match="x_shape"):
        getattr(fastconv, f"adaptive_avg_pool{rank}d_backward")(dy, endless)
    with pytest.raises(ValueError, match="x_shape"):
        fastconv.flatten_backward(dy, endless)


def test_a_gradient_of_another_shape_is_refused_before_its_windows_are_made() -> None:
    with pytest.raises(ValueError, match="dy"):
        fastconv.avg_pool1d_backward(np.zeros((2, 4, 4)), (2, 4, 2**40), 2)


def test_explain_names_its_arguments() -> None:
    shapes = ((1, 4, 8, 8), (4, 4, 3, 3))
    for options in ({"algo": []}, {"algo": "fft"}, {"dtype": "f2"}, {"dtype": "\ud800"}):
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            fastconv.explain("conv2d", *shapes, **options)


def test_after_all_that_it_still_works(rank: int) -> None:
    assert_array_equal(call("forward", rank), reference.conv(**good(rank)))


# ------------------------------------------------------------------------------------------- fuzz

# Small, or so large that nothing may even try: what lies between is honest work of gigabytes.
BOUNDARIES = st.sampled_from([-(2**63), -(2**31), *(n for n in HUGE if n > 2**60)])
WILD = st.one_of(st.integers(-2, 9), BOUNDARIES)
OUTCOMES = (ValueError, TypeError, MemoryError)


@st.composite
def problems(draw: Callable[..., Any]) -> dict[str, Any]:
    rank = draw(st.sampled_from(RANKS))
    side = st.integers(0, 9 if rank < 3 else 5)
    groups = draw(st.integers(1, 3))
    wild = draw(st.sampled_from(["", "", "", "stride", "padding", "dilation", "groups"]))

    def spatial(name: str, low: int, high: int) -> Any:
        number = WILD if name == wild else st.integers(low, high)
        return draw(st.one_of(number, st.tuples(*(number,) * rank)))

    made = data.rng(draw(st.integers(0, 99)))
    x = (draw(st.integers(0, 2)), groups * 2, *(draw(side) for _ in range(rank)))
    w = (groups * draw(st.integers(1, 3)), 2, *(draw(st.integers(1, 3)) for _ in range(rank)))
    return {
        "rank": rank,
        "x": data.integers(made, x, "float32"),
        "w": data.integers(made, w, "float32"),
        "stride": spatial("stride", 1, 4),
        "padding": spatial("padding", 0, 3),
        "dilation": spatial("dilation", 1, 3),
        "groups": draw(WILD) if wild == "groups" else groups,
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }


def check_fuzzed(problem: dict[str, Any]) -> bool:
    """Exact, or refused. True when it was computed."""
    rank = problem.pop("rank")
    try:
        y = getattr(fastconv, f"conv{rank}d")(**problem)
    except OUTCOMES:
        return False
    # a stride beyond the input is one window: the reference need not step that far
    strides = np.broadcast_to(np.array(problem["stride"], dtype=object), (rank,))
    small = {**problem, "stride": tuple(min(int(s), 1000) for s in strides)}
    assert_array_equal(y, reference.conv(**small))
    dy = data.integers(data.rng(1), y.shape, "float32")
    found = getattr(fastconv, f"conv{rank}d_backward")(dy, **problem)
    for a, b in zip(found, reference.conv_backward(dy, **small), strict=True):
        assert_array_equal(a, b)
    return True


# The seed of a failure is printed; CI must not depend on the clock.
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


@FUZZ
@given(problems())
def test_fuzz(problem: dict[str, Any]) -> None:
    check_fuzzed(problem)


def run_fuzz(examples: int) -> None:
    """In a process of its own: other examples, and a crash is a message. Prints what was computed."""
    outcomes = []

    @settings(FUZZ, max_examples=examples, derandomize=False)
    @given(problems())
    def fuzz(problem: dict[str, Any]) -> None:
        outcomes.append(check_fuzzed(problem))

    from hypothesis import seed

    seed(20250101)(fuzz)()
    print(sum(outcomes), len(outcomes))


def test_fuzz_in_a_process_of_its_own() -> None:
    """A crash or a hang of the process is a failure; a fair share must have been computed."""
    done = run_python("from tests.test_bad_input import run_fuzz; run_fuzz(200)", timeout=100)
    computed, total = map(int, done.stdout.split())
    assert total >= 150
    assert computed >= 40, "almost everything was refused: not trusted"
