# SPDX-License-Identifier: BSD-3-Clause
"""Linear (fully connected) layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastconv import runtime
from fastconv.algorithms import SERIAL_FLOPS, calls, gemm_products
from fastconv.functional._arrays import (
    Array,
    Gradients,
    as_array,
    check_out,
    common_dtypes,
    contiguous,
    deliver,
    deliver_gradients,
    needed,
    result,
    target,
)
from fastconv.functional._calls import again
from fastconv.kernels import conv_linear, conv_wgrad, gemm
from fastconv.kernels.call import OPERANDS, RESULTS, TEAM, Call
from fastconv.kernels.correlate import Weights


def _describe(rows: int, columns: int, terms: int) -> str:
    return f"m{rows}n{columns}k{terms}"


def _algorithm(products: int) -> str:
    return f"split_{products}" if products else "gemm"


def _multiply(
    name: str,
    a: Array,
    a_transposed: bool,
    b: Array,
    c: Array,
    precision: str,
) -> None:
    """c = a @ b; a and b contiguous matrices, a stored transposed where said."""
    rows, columns = c.shape
    terms = len(b)
    flops = 2 * rows * columns * terms
    team = 1 if flops < SERIAL_FLOPS else runtime.get_num_threads()
    products = gemm_products(c.dtype, rows, columns, terms, precision, b_transposed=False)
    runtime.traced(
        name,
        _algorithm(products),
        c.dtype,
        lambda: _describe(rows, columns, terms),
        flops,
        team,
        lambda: gemm.multiply(a, a_transposed, b, False, None, c, team, products),
    )


def _check(x: Array, w: Array) -> None:
    if w.ndim != 2:
        raise ValueError(f"w: expected a matrix (outputs, inputs), got shape {w.shape}")
    if x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"x: expected {w.shape[1]} features on the last axis for weights of shape {w.shape}, got shape {x.shape}"
        )


def linear(
    x: Any, w: Any, b: Any = None, *, precision: str | None = None, out: Array | None = None
) -> Array:
    """Fully connected layer.

    y[..., o] = sum_i x[..., i] * w[o, i] + b[o]

    Parameters
    ----------
    x : array (..., I)
    w : array (O, I)
    b : array (O,), optional
    precision : {None, "highest", "high", "medium"}
    out : array (..., O), optional

    Returns
    -------
    array (..., O)

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what was given and what was expected.
    """
    options = ("linear", runtime.resolve_precision(precision))
    y = again(options, (x, w, b), out)
    return multiply_add(options, x, w, b, out) if y is None else y


def multiply_add(options: tuple[str, str], x: Any, w: Any, b: Any, out: Array | None) -> Array:
    """linear: check everything and run; and remember it for the next call with the same signature."""
    given = (x, w, b)
    weights = w if isinstance(w, Weights) else None
    x, w = as_array("x", x), as_array("w", w) if weights is None else weights.array
    b = None if b is None else as_array("b", b)
    dtype, result_dtype = common_dtypes(x=x, w=w, b=b)
    _check(x, w)
    if b is not None and b.shape != (w.shape[0],):
        raise ValueError(f"b: expected shape ({w.shape[0]},), got {b.shape}")
    shape = (*x.shape[:-1], w.shape[0])
    check_out(out, shape, result_dtype)
    x, plain = contiguous(x, dtype), contiguous(w, dtype)
    b = None if b is None else contiguous(b, dtype)
    y = target(out, shape, dtype, x, plain, b)
    # packed forms are of weights that kernels take as they are
    arrays = (x, plain if weights is None or plain is not w else weights, b)
    if y.size:
        flops = 2 * y.size * w.shape[1]
        rows = math.prod(x.shape[:-1])
        products = gemm_products(dtype, rows, w.shape[0], w.shape[1], options[1], b_transposed=True)
        xs, ws, bs, *_ = OPERANDS
        arguments = (products, None, xs, ws, RESULTS[0], 1, False, bs, None, -1, TEAM, None)
        threads = None if flops < SERIAL_FLOPS else runtime.get_num_threads
        call = Call(conv_linear.run, arguments, threads, (y,))
        runtime.traced(
            "linear",
            _algorithm(products),
            dtype,
            lambda: _describe(rows, *w.shape),
            flops,
            call.team(),
            lambda: call.apply(arrays, (y,)),
        )
        calls.remember(call, 0, options, given, out, arrays)
    return deliver(y, out, result_dtype)


def linear_backward(
    dy: Any,
    x: Any,
    w: Any,
    *,
    needs: Sequence[bool] = (True, True, True),
    precision: str | None = None,
) -> Gradients:
    """Gradients of :func:`linear`: dx = dy @ w, dw = dy^T @ x, db = sum of dy over the rows.

    Parameters
    ----------
    dy : array (..., O)
    x : array (..., I)
    w : array (O, I)
    needs : three bools
        Which of dx, dw, db to compute; the others are None.

    Returns
    -------
    (dx, dw, db) : arrays of the shapes of x, w and (O,)
    """
    options, given = ("linear_dx", runtime.resolve_precision(precision), needs), (dy, x, w)
    found: Gradients | None = again(options, given)
    if found is not None:
        return found
    dy, x, w = as_array("dy", dy), as_array("x", x), as_array("w", w)
    dtype, result_dtype = common_dtypes(dy=dy, x=x, w=w)
    _check(x, w)
    if dy.shape != (*x.shape[:-1], w.shape[0]):
        raise ValueError(f"dy: expected shape {(*x.shape[:-1], w.shape[0])}, got {dy.shape}")
    flags = needed(needs)
    arrays = (
        contiguous(dy, dtype),
        contiguous(x, dtype) if flags[1] else x,
        contiguous(w, dtype) if flags[0] else w,
    )
    results = (
        result("dx", x.shape, dtype) if flags[0] else None,
        result("dw", w.shape, dtype) if flags[1] else None,
        result("db", (w.shape[0],), dtype) if flags[2] else None,
    )
    places = (place if wanted else None for place, wanted in zip(RESULTS, flags, strict=True))
    arguments = options[1], *OPERANDS[:3], *places
    call = Call(_gradients, arguments, None, results)
    call.apply(arrays, results)
    calls.remember(call, 0, options, given, None, arrays)
    return deliver_gradients(results, result_dtype)


def _gradients(
    precision: str,
    dy: Array,
    x: Array,
    w: Array,
    dx: Array | None,
    dw: Array | None,
    db: Array | None,
) -> None:
    outputs, inputs = w.shape
    rows = math.prod(dy.shape[:-1])
    dy = dy.reshape(rows, outputs)
    if dx is not None and dx.size:
        _multiply("linear_dx", dy, False, w, dx.reshape(rows, inputs), precision)
    if dw is not None and dw.size:
        _multiply("linear_dw", dy, True, x.reshape(rows, inputs), dw, precision)
    if db is not None:
        conv_wgrad.bias_gradient(dy, db, 1)
