# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of every operator check: teams, memory layouts, `out=`, error texts, adjoints, slopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fastconv import runtime
from fastconv.kernels import memory
from tests.conftest import THREADS
from tests.data import Array, hostile, reals, rng, trusted

GUARD = 64
SEEDS = st.integers(0, 2**16)

# Not arrays of real numbers.
BAD_ARRAYS = {
    "none": None,
    "object": np.array([[[[None]]]]),
    "complex": np.ones((1, 1, 1, 1), np.complex64),
    "text": np.array([[[["1"]]]]),
    "date": np.zeros((1, 1, 1, 1), "M8[s]"),
    "longdouble": np.ones((1, 1, 1, 1), np.longdouble),
    "masked": np.ma.ones((1, 1, 1, 1), np.float32),
}
# Not integers, or not ones any array can have.
TOO_LARGE = (2**62 + 1, -(2**62) - 1, 2**64)
BAD_INTS = (1.0, math.nan, math.inf, True, np.True_, "2", 1j, object(), *TOO_LARGE)


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@contextmanager
def named(argument: str) -> Iterator[None]:
    """The block raises TypeError or ValueError, whose text names the argument."""
    with pytest.raises((TypeError, ValueError), match=rf"(?<!\w){argument}(?!\w)"):
        yield


def arrays_in(value: Any) -> list[Array]:
    """All arrays of a result, however nested in tuples; scalars become arrays."""
    if isinstance(value, tuple):
        return [a for part in value for a in arrays_in(part)]
    return [] if value is None else [np.asarray(value)]


def same_bytes(got: Any, wanted: Any) -> None:
    pairs = zip(arrays_in(got), arrays_in(wanted), strict=True)
    for a, b in pairs:
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


def poison(dtype: Any, *shapes: tuple[int, ...]) -> None:
    """Fill with NaN the recycled memory in which the next results of these shapes will lie."""
    blocks = [memory.empty(shape, np.dtype(dtype)) for shape in shapes]
    for block in blocks:
        block.fill(np.nan)


def by_teams(run: Callable[[], Any]) -> Any:
    """run() with every number of threads: the same bytes each time. Returns the result."""
    result = None
    for count in THREADS:
        with runtime.threads(count):
            for a in arrays_in(result):
                if a.dtype.kind == "f":
                    poison(a.dtype, a.shape)
            again = run()
        if result is not None:
            same_bytes(again, result)
        result = again
    return result


def equal(got: Any, wanted: Any, dtype: Any) -> None:
    """Exact equality with the float64 reference, in the dtype expected; mostly not zero."""
    for a, b in zip(arrays_in(got), arrays_in(wanted), strict=True):
        assert a.dtype == (np.int64 if b.dtype.kind == "i" else dtype)
        assert_array_equal(a, b, strict=False)
        assert a.shape == b.shape
        if a.dtype.kind == "f":
            trusted(a)


def check_hostile(f: Callable[..., Any], *operands: Array) -> None:
    """f gives the same bytes for every memory layout of each operand, and leaves it as it was."""
    wanted = f(*operands)
    for place, operand in enumerate(operands):
        for name, awkward in hostile(operand).items():
            before = awkward.copy()
            got = f(*operands[:place], awkward, *operands[place + 1 :])
            same_bytes(got, wanted)
            assert_array_equal(awkward, before, err_msg=name)


def check_out(f: Callable[..., Any], wanted: Array) -> None:
    """f(out=...) writes all of `out`, nothing beside it, returns it, and refuses what is unfit."""
    shape, dtype = wanted.shape, wanted.dtype
    block = np.full(wanted.size + 2 * GUARD, np.nan, dtype)
    out = block[GUARD:-GUARD].reshape(shape)
    assert f(out=out) is out
    same_bytes(out, wanted)
    assert np.isnan(block[:GUARD]).all()
    assert np.isnan(block[-GUARD:]).all()
    whole = np.full(shape, np.nan, dtype)
    assert f(out=whole) is whole
    same_bytes(whole, wanted)
    gaps = np.full((*shape, 2), np.nan, dtype)
    assert f(out=gaps[..., 1]) is not None
    assert gaps[..., 1].tobytes() == wanted.tobytes()
    assert np.isnan(gaps[..., 0]).all()
    swapped = np.full(shape, np.nan, dtype.newbyteorder(">"))
    f(out=swapped)
    assert_array_equal(swapped, wanted)
    wider = np.full(shape, np.nan, np.float64)
    f(out=wider)
    assert_array_equal(wider, wanted)
    check_bad_out(f, shape, dtype)


def check_bad_out(f: Callable[..., Any], shape: tuple[int, ...], dtype: Any) -> None:
    readonly = np.zeros(shape, dtype)
    readonly.flags.writeable = False
    wrong = (
        np.zeros((*shape, 1), dtype),
        np.zeros((shape[0] + 1, *shape[1:]), dtype),
        np.zeros(shape, np.int64),
        np.zeros(shape, bool),
        readonly,
        [[0.0]],
    )
    for out in wrong:
        with named("out"):
            f(out=out)


def check_overlap(f: Callable[..., Any], x: Array, y_shape: tuple[int, ...]) -> None:
    """f(x, out=...) where out begins inside x, or x inside out, is as if they lay apart."""
    wanted = f(x.copy())
    for x_at, y_at in ((0, 3), (3, 0), (0, 0)):
        memory = np.zeros(max(x.size, math.prod(y_shape)) + 8, x.dtype)
        source = memory[x_at : x_at + x.size].reshape(x.shape)
        source[...] = x
        out = memory[y_at : y_at + math.prod(y_shape)].reshape(y_shape)
        f(source, out=out)
        same_bytes(out, wanted)


def check_half(f: Callable[..., Any], *operands: Array) -> None:
    """float16 is computed in float32 and rounded once."""
    half = [a.astype(np.float16) for a in operands]
    got = arrays_in(f(*half))
    wanted = arrays_in(f(*(a.astype(np.float32) for a in half)))
    for a, b in zip(got, wanted, strict=True):
        same_bytes(a, b if b.dtype.kind != "f" else b.astype(np.float16))


def check_integers(f: Callable[..., Any], *operands: Array) -> None:
    """Integers (and bool) become the float that NumPy pairs with them and float32."""
    for kind, real in (("i1", "f4"), ("u2", "f4"), ("i4", "f8"), ("i8", "f8"), ("?", "f4")):
        whole = [np.abs(a).astype(kind) for a in operands]
        got, wanted = f(*whole), f(*(a.astype(real) for a in whole))
        same_bytes(got, wanted)


def adjoint(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array], x: Array
) -> None:
    """<forward(x), g> = <x, backward(g)> in float64 to 1e-12."""
    assert x.dtype == np.float64
    y = forward(x)
    g = reals(rng(99), y.shape, np.float64)
    dx = backward(g)
    assert dx.shape == x.shape
    scale = np.linalg.norm(y.ravel()) * np.linalg.norm(g.ravel())
    assert abs(np.vdot(y, g) - np.vdot(x, dx)) <= 1e-12 * max(scale, 1e-300)


def slope(loss: Callable[[Array], float], x: Array, gradient: Array, step: float = 1e-5) -> None:
    """<gradient, v> equals the central difference of the scalar loss along a random v."""
    assert gradient.shape == x.shape
    v = reals(rng(98), x.shape, np.float64)
    wanted = (loss(x + step * v) - loss(x - step * v)) / (2 * step)
    got = float(np.vdot(gradient, v))
    assert abs(got - wanted) <= 1e-7 * max(1.0, np.linalg.norm(gradient.ravel()), abs(wanted))
