# SPDX-License-Identifier: BSD-3-Clause
"""Arrays in, arrays out: coercion, promotion, layouts, and where a result goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.kernels.memory import empty, is_plain
from fastconv.problem import elements, flag, integer, is_sequence

Array = np.ndarray[Any, Any]
# (dx, dw, db), those that are wanted
Gradients = tuple[Array | None, Array | None, Array | None]
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

# Bytes of a temporary copy where a layout does not suit a kernel; more goes through in slices of the batch.
COPY_LIMIT = 16 << 20


def plain(name: str, value: Any) -> Array:
    """`value` as an array of NumPy's own type. TypeError for masked arrays: no sum here could skip what is masked."""
    derived = isinstance(value, np.ndarray) and type(value) is not np.ndarray
    if derived and isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected an array without a mask; fill it first, as with .filled(0)"
        )
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def as_array(name: str, value: Any) -> Array:
    """`value` as an array of real numbers. TypeError for masked, object, complex, string and date arrays."""
    array = value if type(value) is np.ndarray else plain(name, value)  # most are: no call
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
    return array


def common_dtypes(**operands: Array | None) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """(computing dtype, result dtype) of the operands by NumPy's promotion rules.

    float16 is computed in float32 and returned as float16; integers become the float NumPy would pair them with. Anything
    beyond float64 is a TypeError.
    """
    kinds = [a.dtype for a in operands.values() if a is not None]
    first = kinds[0]
    if (first is _FLOAT32 or first is _FLOAT64) and kinds.count(first) == len(kinds):
        return first, first
    found = _promote(tuple(kinds))
    if found is None:
        names = ", ".join(name for name, a in operands.items() if a is not None)
        raise TypeError(f"{names}: float32 and float64 are supported, not longer floats")
    return found


@lru_cache(maxsize=512)
def _promote(kinds: tuple[np.dtype[Any], ...]) -> tuple[np.dtype[Any], np.dtype[Any]] | None:
    result = np.result_type(*kinds)
    if result.kind != "f":
        result = np.result_type(result, np.float32)
    if result.itemsize > 8:
        return None
    result = result.newbyteorder("=")
    return (np.dtype(np.float32) if result.itemsize == 2 else result), result


def contiguous(array: Array, dtype: np.dtype[Any]) -> Array:
    """C-contiguous, aligned, native `array` of `dtype`; a copy only where it is none of that already."""
    if is_plain(array, dtype):
        return array
    copy = empty(array.shape, dtype)
    np.copyto(copy, array, casting="unsafe")
    return copy


def result(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """A fresh array from the recycling allocator."""
    elements(name, shape)
    return empty(tuple(shape), dtype)


def check_out(out: Any, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """`out` can take a result of this shape and dtype."""
    if out is None:
        return
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected an array, got {type(out).__name__}")
    plain("out", out)
    if out.shape != tuple(shape):
        raise ValueError(f"out: expected shape {tuple(shape)}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writable array, got a read-only one")
    if out.dtype.kind != "f":
        raise TypeError(f"out: cannot hold a {dtype} result, got dtype {out.dtype}")


def target(
    out: Array | None, shape: Sequence[int], dtype: np.dtype[Any], *operands: Array | None
) -> Array:
    """Where a kernel may write: `out` itself if it is fit for that and shares no memory with the operands."""
    if (
        out is not None
        and is_plain(out, dtype)
        and out.size
        and not any(a is not None and np.may_share_memory(out, a) for a in operands)
    ):
        return out
    return result("out", shape, dtype)


def deliver(value: Array, out: Array | None, dtype: np.dtype[Any]) -> Array:
    """The value in `out` when given, else as an array of the result's dtype."""
    if out is None:
        return value if value.dtype == dtype else value.astype(dtype)
    if value is not out and not (
        value.base is out and np.shares_memory(value, out) and value.size == out.size
    ):
        np.copyto(out, value.reshape(out.shape), casting="same_kind")
    return out


def deliver_gradients(results: Sequence[Array | None], dtype: np.dtype[Any]) -> Gradients:
    """What deliver gives of dx, dw and db; those that are not wanted are None."""
    dx, dw, db = (None if each is None else deliver(each, None, dtype) for each in results)
    return dx, dw, db


def shape_of(name: str, value: Any) -> tuple[int, ...]:
    """A shape argument as a tuple of sizes >= 0."""
    if not is_sequence(value):
        raise TypeError(f"{name}: expected a shape, got {value!r}")
    if len(value) > 64:
        raise ValueError(f"{name}: arrays have at most 64 axes, got a shape of {len(value)}")
    return tuple(integer(name, n, 0) for n in value)


def axis_of(name: str, value: Any, ndim: int) -> int:
    """An axis of an array with `ndim`, counted from the front."""
    axis = integer(name, value)
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name}: expected an axis of an array with {ndim}, got {axis}")
    return axis % ndim


def slices(count: int, bytes_each: int) -> Iterator[slice]:
    """Slices of `count` items whose temporary copies stay below COPY_LIMIT bytes, or hold one item."""
    step = max(1, COPY_LIMIT // max(bytes_each, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def needed(needs: Any) -> tuple[bool, bool, bool]:
    """The three flags (dx, dw, db) of a backward function."""
    if not is_sequence(needs):
        raise TypeError(f"needs: expected three flags (dx, dw, db), got {needs!r}")
    if len(needs) != 3:
        raise ValueError(f"needs: expected three flags (dx, dw, db), got {needs!r}")
    return flag("needs", needs[0]), flag("needs", needs[1]), flag("needs", needs[2])


def generator(rng: Any) -> np.random.Generator:
    """The random generator of an `rng` argument: a generator, a seed or None."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rng: {error}") from None


def public(function: Any, name: str, doc: str) -> Any:
    """Give a function that was made for one rank its public name and docstring; it pickles by that name."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function
