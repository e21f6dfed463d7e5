# SPDX-License-Identifier: BSD-3-Clause
"""Max and average pooling, sliding and adaptive, in one, two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.functional._arrays import (
    Array,
    as_array,
    check_out,
    common_dtypes,
    contiguous,
    deliver,
    public,
    result,
    shape_of,
    target,
)
from fastconv.functional._calls import again, launch_first
from fastconv.kernels import pool as _pool
from fastconv.kernels.call import OPERANDS, RESULTS, TEAM
from fastconv.problem import (
    AXES,
    Pool,
    adaptive_pool_problem,
    flag,
    planes_of,
    pool_divisor,
    pool_problem,
    pool_sizes,
)

# Whether padded cells count, and the divisor that is used instead of counting cells.
Divide = tuple[bool, float | None]
BY_CELLS: Divide = (False, None)


@lru_cache(maxsize=256)
def _windows(problem: Pool, padded: bool = False, divisor: float | None = None) -> _pool.Windows:
    """The windows; averages are divided by the given divisor, or by the cells with or without the padding."""
    count = problem.padded_counts if padded else problem.counts
    divisors = (
        [count(axis) for axis in range(3)] if divisor is None else _constant(problem, divisor)
    )
    if problem.is_global:  # the plane is one row
        cells = math.prod(problem.sizes)
        starts, stops = ([0], [0], [0]), ([1], [1], [cells])
        return _pool.Windows((1, 1, cells), starts, stops, (1, 1, 1), None, divisors)
    starts, stops = zip(*(problem.windows(axis) for axis in range(3)), strict=True)
    return _pool.Windows(
        problem.sizes, starts, stops, problem.dilation, problem.lattice(2), divisors
    )


def _constant(problem: Pool, divisor: float) -> list[Array]:
    """One divisor for all windows, as factors along the axes."""
    d, h, w = problem.out
    return [np.ones(d), np.ones(h), np.full(w, divisor)]


def _shapes(x_shape: Sequence[int], problem: Pool) -> tuple[tuple[int, ...], int]:
    """(result shape, number of planes)"""
    lead = tuple(x_shape[: len(x_shape) - problem.rank])
    return lead + problem.out[3 - problem.rank :], math.prod(lead)


def _max(find: Callable[..., Pool], options: tuple[Any, ...], x: Any, out: Array | None) -> Any:
    """Max pooling; `options` are its name, return_indices, and what `find` takes after the shape."""
    given = options, (x,), out
    y = again(*given)
    if y is not None:
        return y
    x = as_array("x", x)
    dtype, result_dtype = common_dtypes(x=x)
    problem = find(x.shape, *options[2:])
    indices = flag("return_indices", options[1])
    shape, planes = _shapes(x.shape, problem)
    check_out(out, shape, result_dtype)
    xc = contiguous(x, dtype)
    y = target(out, shape, dtype, xc)
    index = result("x", shape, np.dtype(np.int64)) if indices else None
    if y.size:
        windows = _windows(problem)
        arguments = windows, OPERANDS[0], RESULTS[0], RESULTS[1] if indices else None, planes, TEAM
        results = (y, index) if indices else (y,)
        launch_first(
            given, "max_pool", x.size, _pool.max_pool, arguments, (xc,), results, windows.nbytes
        )
    y = deliver(y, out, result_dtype)
    return (y, index) if indices else y


def _max_backward(dy: Any, indices: Any, x_shape: Sequence[int], rank: int) -> Array:
    given = ("max_pool_dx", rank, x_shape), (dy, indices), None
    found: Array | None = again(*given)
    if found is not None:
        return found
    dy, index = as_array("dy", dy), as_array("indices", indices)
    x_shape = shape_of("x_shape", x_shape)
    if index.dtype.kind not in "iu":
        raise TypeError(f"indices: expected integers, got dtype {index.dtype}")
    if index.shape != dy.shape:
        raise ValueError(f"indices: expected the shape of dy {dy.shape}, got {index.shape}")
    planes_of("x_shape", x_shape, rank)
    lead = len(x_shape) - rank
    if dy.ndim != len(x_shape) or dy.shape[:lead] != x_shape[:lead]:
        raise ValueError(
            f"dy: expected ({', '.join(map(str, x_shape[:lead]))}, {', '.join('O' + a for a in AXES[rank])}) "
            f"for an input of shape {x_shape}, got {dy.shape}"
        )
    dtype, result_dtype = common_dtypes(dy=dy)
    dx = result("x_shape", x_shape, dtype)
    planes = math.prod(x_shape[:lead])
    windows, cells = math.prod(dy.shape[lead:]), math.prod(x_shape[lead:])
    if index.size or dx.size:
        arrays = contiguous(dy, dtype), contiguous(index, np.dtype(np.int64))
        arguments = x_shape, *OPERANDS[:2], RESULTS[0], planes, windows, cells, TEAM
        launch_first(given, "max_pool_dx", dx.size, _scatter, arguments, arrays, (dx,))
    return deliver(dx, None, result_dtype)


def _scatter(
    x_shape: tuple[int, ...],
    dy: Array,
    index: Array,
    dx: Array,
    planes: int,
    windows: int,
    cells: int,
    threads: int,
) -> None:
    if not _pool.max_pool_backward(dy, index, dx, planes, windows, cells, threads):
        raise ValueError(
            f"indices: expected flat indices in [0, {cells}) into each plane of {x_shape}"
        )


def _avg(
    find: Callable[..., tuple[Pool, Divide]], options: tuple[Any, ...], x: Any, out: Array | None
) -> Array:
    """Average pooling; `options` are its name and what `find` takes after the shape."""
    given = options, (x,), out
    y = again(*given)
    if y is not None:
        return y
    x = as_array("x", x)
    problem, divide = find(x.shape, *options[1:])
    dtype, result_dtype = common_dtypes(x=x)
    shape, planes = _shapes(x.shape, problem)
    check_out(out, shape, result_dtype)
    xc = contiguous(x, dtype)
    y = target(out, shape, dtype, xc)
    if y.size:
        windows = _windows(problem, *divide)
        arguments = windows, OPERANDS[0], RESULTS[0], planes, TEAM
        launch_first(
            given, "avg_pool", x.size, _pool.avg_pool, arguments, (xc,), (y,), windows.nbytes
        )
    return deliver(y, out, result_dtype)


def _avg_backward(
    find: Callable[..., tuple[Pool, Divide]], options: tuple[Any, ...], dy: Any, x_shape: Any
) -> Array:
    """Its gradient; `find` takes dy, the shape and the options but the name."""
    given = (*options, x_shape), (dy,), None
    found: Array | None = again(*given)
    if found is not None:
        return found
    dy, x_shape = as_array("dy", dy), shape_of("x_shape", x_shape)
    pool_sizes(x_shape, options[1], "x_shape")
    problem, divide = find(dy, x_shape, *options[1:])
    shape, planes = _shapes(x_shape, problem)
    if dy.shape != shape:
        raise ValueError(
            f"dy: expected shape {shape} for an input of shape {x_shape}, got {dy.shape}"
        )
    dtype, result_dtype = common_dtypes(dy=dy)
    dx = result("x_shape", x_shape, dtype)
    if dx.size:
        windows = _windows(problem, *divide)
        arguments = windows, OPERANDS[0], RESULTS[0], planes, TEAM
        arrays = (contiguous(dy, dtype),)
        launch_first(
            given,
            "avg_pool_dx",
            dx.size,
            _pool.avg_pool_backward,
            arguments,
            arrays,
            (dx,),
            windows.nbytes,
        )
    return deliver(dx, None, result_dtype)


def _adaptive_windows_of(dy: Array, x_shape: tuple[int, ...], rank: int) -> tuple[Pool, Divide]:
    """The adaptive windows whose gradient dy is."""
    shape = dy.shape
    if len(shape) != len(x_shape) or 0 in shape[-rank:]:
        raise ValueError(
            f"dy: expected the pooled shape of an input of shape {x_shape}, got {shape}"
        )
    return _adaptive_windows(x_shape, rank, shape[-rank:])


def _average_windows(
    x_shape: tuple[int, ...],
    rank: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> tuple[Pool, Divide]:
    """The windows, and what their sums are divided by."""
    problem = pool_problem(x_shape, rank, kernel_size, stride, padding, 1, ceil_mode)
    return problem, (flag("count_include_pad", count_include_pad), pool_divisor(divisor_override))


def _average_windows_of(dy: Array, *options: Any) -> tuple[Pool, Divide]:
    """The same for a gradient, whose shape says no more."""
    return _average_windows(*options)


def _adaptive_windows(x_shape: tuple[int, ...], rank: int, output_size: Any) -> tuple[Pool, Divide]:
    return adaptive_pool_problem(x_shape, rank, output_size), BY_CELLS


def _words(rank: int) -> dict[str, Any]:
    """What the docstrings' blanks are filled with."""
    return {
        "rank": rank,
        "axes": ", ".join(AXES[rank]),
        "out": ", ".join(f"O{a}" for a in AXES[rank]),
    }


_MAX_DOC = """{rank}-D max pooling.

    y[n, c, o] = max over taps k of x[n, c, o*stride - padding + k*dilation], over the cells inside the input

    Parameters
    ----------
    x : array (N, C, {axes}), or without N
    kernel_size, stride, padding, dilation : int or tuple of {rank}
        stride defaults to kernel_size; padding is at most half of it, the same at both ends, and never wins.
        What conv{rank}d pads otherwise (pairs, "same"), :func:`fastconv.pad` does.
    ceil_mode : bool
        Round the output size up; the last window must begin inside the input or its left padding.
    return_indices : bool
        Also return the flat index of each maximum in its plane (int64). The first maximum wins; a NaN wins over everything.
    out : array, optional

    Returns
    -------
    array (N, C, {out}), or (array, indices)
    """

_AVG_DOC = """{rank}-D average pooling.

    y[n, c, o] = sum over the window of x / divisor

    Parameters
    ----------
    x : array (N, C, {axes}), or without N
    kernel_size, stride, padding : int or tuple of {rank}
        stride defaults to kernel_size; padding is at most half of it and the same at both ends.
        What conv{rank}d pads otherwise (pairs, "same"), :func:`fastconv.pad` does.
    ceil_mode : bool
        Round the output size up; the last window must begin inside the input or its left padding.
    count_include_pad : bool
        Whether padded cells count in the divisor.
    divisor_override : int, optional
        Divide by this instead of the number of cells.
    out : array, optional

    Returns
    -------
    array (N, C, {out})
    """


def _max_pool_of(rank: int):  # type: ignore[no-untyped-def]
    def max_pool(
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
        *,
        out: Array | None = None,
    ) -> Any:
        options = (
            "max_pool", return_indices, rank, kernel_size, stride, padding, dilation, ceil_mode,
        )  # fmt: skip
        return _max(pool_problem, options, x, out)

    return public(max_pool, f"max_pool{rank}d", _MAX_DOC.format(**_words(rank)))


def _max_pool_backward_of(rank: int):  # type: ignore[no-untyped-def]
    def max_pool_backward(
        dy: Any,
        indices: Any,
        x_shape: Sequence[int],
        kernel_size: Any = None,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Array:
        return _max_backward(dy, indices, x_shape, rank)

    return public(
        max_pool_backward,
        f"max_pool{rank}d_backward",
        f"""Gradient of max_pool{rank}d: dx[n, c, indices[n, c, o]] += dy[n, c, o].

        The indices say all; the window's options are accepted for symmetry.
        """,
    )


def _avg_pool_of(rank: int):  # type: ignore[no-untyped-def]
    def avg_pool(
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        out: Array | None = None,
    ) -> Array:
        options = (
            "avg_pool", rank, kernel_size, stride, padding, ceil_mode, count_include_pad,
            divisor_override,
        )  # fmt: skip
        return _avg(_average_windows, options, x, out)

    return public(avg_pool, f"avg_pool{rank}d", _AVG_DOC.format(**_words(rank)))


def _avg_pool_backward_of(rank: int):  # type: ignore[no-untyped-def]
    def avg_pool_backward(
        dy: Any,
        x_shape: Sequence[int],
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Array:
        options = (
            "avg_pool_dx", rank, kernel_size, stride, padding, ceil_mode, count_include_pad,
            divisor_override,
        )  # fmt: skip
        return _avg_backward(_average_windows_of, options, dy, x_shape)

    return public(
        avg_pool_backward,
        f"avg_pool{rank}d_backward",
        f"""Gradient of avg_pool{rank}d: dx[n, c, i] = sum of dy[n, c, o]/divisor[o] over the windows that hold i.""",
    )


def _adaptive_max_pool_of(rank: int):  # type: ignore[no-untyped-def]
    def adaptive_max_pool(
        x: Any, output_size: Any, return_indices: bool = False, *, out: Array | None = None
    ) -> Any:
        options = ("adaptive_max_pool", return_indices, rank, output_size)
        return _max(adaptive_pool_problem, options, x, out)

    return public(
        adaptive_max_pool,
        f"adaptive_max_pool{rank}d",
        """Max pooling to `output_size`: window o covers floor(o*size/out) .. ceil((o + 1)*size/out). 1 pools globally.""",
    )


def _adaptive_max_pool_backward_of(rank: int):  # type: ignore[no-untyped-def]
    def adaptive_max_pool_backward(dy: Any, indices: Any, x_shape: Sequence[int]) -> Array:
        return _max_backward(dy, indices, x_shape, rank)

    return public(
        adaptive_max_pool_backward,
        f"adaptive_max_pool{rank}d_backward",
        f"""Gradient of adaptive_max_pool{rank}d.""",
    )


def _adaptive_avg_pool_of(rank: int):  # type: ignore[no-untyped-def]
    def adaptive_avg_pool(x: Any, output_size: Any, *, out: Array | None = None) -> Array:
        return _avg(_adaptive_windows, ("adaptive_avg_pool", rank, output_size), x, out)

    return public(
        adaptive_avg_pool,
        f"adaptive_avg_pool{rank}d",
        """Average pooling to `output_size`: window o covers floor(o*size/out) .. ceil((o + 1)*size/out). 1 pools globally.""",
    )


def _adaptive_avg_pool_backward_of(rank: int):  # type: ignore[no-untyped-def]
    def adaptive_avg_pool_backward(dy: Any, x_shape: Sequence[int]) -> Array:
        return _avg_backward(_adaptive_windows_of, ("adaptive_avg_pool_dx", rank), dy, x_shape)

    return public(
        adaptive_avg_pool_backward,
        f"adaptive_avg_pool{rank}d_backward",
        f"""Gradient of adaptive_avg_pool{rank}d.""",
    )


RANKS = (1, 2, 3)
max_pool1d, max_pool2d, max_pool3d = map(_max_pool_of, RANKS)
max_pool1d_backward, max_pool2d_backward, max_pool3d_backward = map(_max_pool_backward_of, RANKS)
avg_pool1d, avg_pool2d, avg_pool3d = map(_avg_pool_of, RANKS)
avg_pool1d_backward, avg_pool2d_backward, avg_pool3d_backward = map(_avg_pool_backward_of, RANKS)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = map(_adaptive_max_pool_of, RANKS)
adaptive_max_pool1d_backward, adaptive_max_pool2d_backward, adaptive_max_pool3d_backward = map(
    _adaptive_max_pool_backward_of, RANKS
)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = map(_adaptive_avg_pool_of, RANKS)
adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward = map(
    _adaptive_avg_pool_backward_of, RANKS
)
