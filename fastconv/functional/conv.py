# SPDX-License-Identifier: BSD-3-Clause
"""Convolution, forward and backward, in one, two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from fastconv import algorithms, runtime
from fastconv.algorithms import calls
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
    public,
    result,
    slices,
    target,
)
from fastconv.functional._calls import again
from fastconv.functional.shape import pad_backward
from fastconv.kernels import conv_wgrad, elementwise
from fastconv.kernels.call import OPERANDS, RESULTS, TEAM, WEIGHTS, Call, frozen
from fastconv.kernels.correlate import Weights
from fastconv.problem import ACTIVATIONS, LAYOUTS, Conv, choice, conv_problem, describe, integer

Padding = int | Sequence[int] | Sequence[tuple[int, int]] | Literal["valid", "same"]
Spatial = int | Sequence[int]


class _Layout:
    """How the caller's arrays map to batched NCHW and OIHW; `canonical` weights are OIHW in any layout."""

    def __init__(self, layout: str, rank: int, x: Array, w: Array, canonical: bool = False) -> None:
        self.last = layout == "NHWC"
        self.rank = rank
        self.batched = x.ndim != rank + 1
        self.x, self.w = x, w
        if w.ndim != rank + 2 or x.ndim not in (rank + 1, rank + 2):
            return  # conv_problem names what is wrong
        self.x = self.inner(x)
        if self.last and not canonical:
            self.w = w.transpose(rank + 1, rank, *range(rank))

    def inner(self, a: Array) -> Array:
        """(N, ..., C) or unbatched -> (N, C, ...)."""
        if not self.batched:
            a = a[np.newaxis]
        return np.moveaxis(a, -1, 1) if self.last and a.ndim > 1 else a

    def outer(self, a: Array) -> Array:
        """The reverse of inner; contiguous in the caller's layout."""
        if self.last:
            a = np.moveaxis(a, 1, -1)
        return a if self.batched else a[0]

    def outer_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        n, c, *sizes = shape
        axes = (*sizes, c) if self.last else (c, *sizes)
        return (n, *axes) if self.batched else axes


def _describe(p: Conv) -> str:
    return (
        f"mb{p.batch}g{p.groups}ic{p.groups * p.channels}oc{p.groups * p.outputs}i{describe(p.sizes)}"
        f"k{describe(p.kernel)}s{describe(p.stride)}d{describe(p.dilation)}p{p.pads}".replace(
            " ", ""
        ).replace(",", ":")
    )


def _image_parts(arrange: _Layout, problem: Conv) -> list[slice]:
    """Channels-last operands are copied: the slices of a batch to do that for, a few images at a time."""
    if not (arrange.last and arrange.batched and problem.batch):
        return []
    size = (math.prod(problem.x_shape) + math.prod(problem.y_shape)) * problem.itemsize
    return list(slices(problem.batch, size // problem.batch))


def convolve(
    options: tuple[Any, ...], x: Any, w: Any, b: Any, residual: Any, out: Array | None
) -> Array:
    """Check everything, choose, run; and remember it for the next call with the same signature."""
    (
        rank, stride, padding, dilation, groups, padding_mode, layout, activation, algo, precision,
        max_workspace,
    ) = options  # fmt: skip
    given = (x, w, b, residual)
    x, weights, b, residual = _operands(layout, *given)
    canonical = isinstance(weights, Weights)
    w = weights.array if canonical else weights
    dtype, result_dtype = common_dtypes(x=x, w=w, b=b, residual=residual)
    if activation is not None:
        choice("activation", activation, ACTIVATIONS)
    if max_workspace is not None:
        max_workspace = integer("max_workspace", max_workspace, 1)
    arrange = _Layout(layout, rank, x, w, canonical)
    problem = conv_problem(
        dtype.name, arrange.x.shape, arrange.w.shape, stride, padding, dilation, groups,
        padding_mode, rank,
    )  # fmt: skip
    choice("algo", algo, ("auto", *algorithms.NAMES))
    packed = canonical and w.dtype == dtype
    plan = algorithms.plan(problem, algo, prepared=packed, precision=precision)
    shape = arrange.outer_shape(_result_shape(problem))
    _check_epilogue(problem, shape, w, b, residual)
    check_out(out, shape, result_dtype)
    parts = _image_parts(arrange, problem)
    if len(parts) > 1:
        y = target(out, shape, result_dtype, x, w, b, residual)
        for part in parts:
            rest = None if residual is None else residual[part]
            convolve(options, x[part], weights, b, rest, y[part])
        return deliver(y, out, result_dtype)
    arrays = (
        contiguous(arrange.x, dtype),
        weights if packed else contiguous(arrange.w, dtype),
        None if b is None else contiguous(b, dtype),
        None if residual is None else contiguous(arrange.inner(residual), dtype),
    )
    if arrange.last:
        y = result("out", _result_shape(problem), dtype)
        _run(plan, activation, max_workspace, arrays, y)
        return deliver(contiguous(arrange.outer(y), dtype), out, result_dtype)
    y = target(out, shape, dtype, arrays[0], w if packed else arrays[1], *arrays[2:])
    call = _run(plan, activation, max_workspace, arrays, y)
    if y.size:
        calls.remember(call, plan.nbytes, options, given, out, arrays)
    return deliver(y, out, result_dtype)


def _operands(layout: str, x: Any, w: Any, b: Any, residual: Any) -> tuple[Any, ...]:
    """The operands as arrays of real numbers, but Weights where w is packed or may be."""
    if choice("layout", layout, LAYOUTS) == "NCHW":  # others are rearranged before they are packed
        w = frozen(w)
    return (
        as_array("x", x),
        w if isinstance(w, Weights) else as_array("w", w),
        None if b is None else as_array("b", b),
        None if residual is None else as_array("residual", residual),
    )


def _result_shape(problem: Conv) -> tuple[int, ...]:
    """The result in batched NCHW."""
    return problem.batch, problem.groups * problem.outputs, *problem.out[3 - problem.rank :]


def _check_epilogue(
    problem: Conv, shape: tuple[int, ...], w: Array, b: Array | None, residual: Array | None
) -> None:
    """Bias and residual fit the result, whose shape in the caller's layout is `shape`."""
    outputs = problem.groups * problem.outputs
    if b is not None and b.shape != (outputs,):
        raise ValueError(
            f"b: expected shape ({outputs},) for weights of shape {w.shape}, got {b.shape}"
        )
    if residual is not None and residual.shape != shape:
        raise ValueError(f"residual: expected the result's shape {shape}, got {residual.shape}")


def _run(
    plan: algorithms.Plan,
    activation: str | None,
    max_workspace: int | None,
    arrays: tuple[Any, ...],
    y: Array,
) -> Call:
    """Compute y from (x, w, b, residual), which kernels take as they are. Returns the call, for other arrays like these."""
    call = _call(plan, activation, max_workspace, y)
    if y.size:
        runtime.traced(
            f"conv{plan.problem.rank}d",
            plan.algorithm.name,
            plan.problem.dtype,
            lambda: _describe(plan.problem),
            plan.flops,
            call.team(),
            lambda: call.apply(arrays, (y,)),
        )
    return call


def _call(
    plan: algorithms.Plan, activation: str | None, max_workspace: int | None, y: Array
) -> Call:
    x, _, b, residual, *_ = OPERANDS
    code = -1 if activation is None else ACTIVATIONS.index(activation)
    arguments = (
        plan.lattices[0], x, WEIGHTS, RESULTS[0], plan.problem.groups, False, b, residual, code, TEAM,
        max_workspace,
    )  # fmt: skip
    threads = None if plan.serial else runtime.get_num_threads
    return Call(plan.run, arguments, threads, (y,))


def _run_gradient(
    plan: algorithms.Plan, dtype: np.dtype[Any], team: int, run: Callable[[], Any]
) -> None:
    problem = plan.problem
    runtime.traced(
        f"conv{problem.rank}d_{plan.what}",
        plan.algorithm.name,
        dtype,
        lambda: _describe(problem),
        plan.flops,
        team,
        run,
    )


def _input_gradient(
    plan: algorithms.Plan, dy: Array, w: Array, dx: Array, max_workspace: int | None, team: int
) -> None:
    """dx of a zero-padded convolution, batched NCHW with three spatial axes."""
    problem = plan.problem
    if not problem.phases_cover_input or dy.size == 0:
        elementwise.clear(dx, team)
    if dy.size == 0:
        return

    def run() -> None:
        for lattice in plan.lattices:
            plan.run(lattice, dy, w, dx, problem.groups, True, None, None, -1, team, max_workspace)

    _run_gradient(plan, dx.dtype, team, run)


def _weight_gradient(
    plan: algorithms.Plan, dy: Array, x: Array, dw: Array, max_workspace: int | None, team: int
) -> None:
    if dy.size == 0:
        dw[...] = 0
        return
    problem = plan.problem
    dw = dw.reshape(*dw.shape[:2], math.prod(problem.kernel))

    def run() -> None:
        plan.run(plan.lattices[0], x, dw, dy, problem.groups, team, max_workspace)

    _run_gradient(plan, dw.dtype, team, run)


def _bias_gradient(dy: Array, db: Array, team: int) -> None:
    dy = dy.reshape(*dy.shape[:2], math.prod(dy.shape[2:]))
    conv_wgrad.bias_gradient(dy, db, team if dy.size > 1 << 18 else 1)


class _Backward(NamedTuple):
    """How gradients are computed: of which problem, with which plans, and for dx of padding that copies input cells from what."""

    problem: Conv
    dx: algorithms.Plan | None
    dw: algorithms.Plan | None
    algo: str
    precision: str
    max_workspace: int | None

    @property
    def nbytes(self) -> int:
        """About what keeping it takes."""
        return 4096 + sum(plan.nbytes for plan in (self.dx, self.dw) if plan is not None)


def _backward(
    problem: Conv, needs: tuple[bool, bool, bool], algo: str, precision: str, max_workspace: Any
) -> _Backward:
    copies = problem.mode != "zeros" and any(any(pair) for pair in problem.pads)
    find = partial(algorithms.plan, problem, algo, precision=precision)
    dx = find("dx") if needs[0] and not copies else None
    dw = find("dw") if needs[1] else None
    return _Backward(problem, dx, dw, algo, precision, max_workspace)


def _conv_backward(
    options: tuple[Any, ...], needs: Sequence[bool], dy: Any, x: Any, w: Any
) -> Gradients:
    given = ("backward", needs, *options), (dy, x, w), None
    known: Gradients | None = again(*given)
    if known is not None:
        return known
    rank, stride, padding, dilation, groups, padding_mode, layout, *how = options
    dy, x, w = as_array("dy", dy), as_array("x", x), as_array("w", w)
    dtype, result_dtype = common_dtypes(dy=dy, x=x, w=w)
    flags = needed(needs)
    algo, precision, max_workspace = how
    if max_workspace is not None:
        max_workspace = integer("max_workspace", max_workspace, 1)
    arrange = _Layout(choice("layout", layout, LAYOUTS), rank, x, w)
    problem = conv_problem(
        dtype.name, arrange.x.shape, arrange.w.shape, stride, padding, dilation, groups,
        padding_mode, rank,
    )  # fmt: skip
    choice("algo", algo, ("auto", *algorithms.NAMES))
    shape = arrange.outer_shape(_result_shape(problem))
    if dy.shape != shape:
        raise ValueError(f"dy: expected the output's shape {shape}, got {dy.shape}")
    parts = _image_parts(arrange, problem)
    if len(parts) > 1:
        gradients: list[Any] = [
            result("dx", x.shape, result_dtype) if flags[0] else None,
            None,
            None,
        ]
        for part in parts:
            found = _conv_backward(options, needs, dy[part], x[part], w)
            if flags[0]:
                gradients[0][part] = found[0]
            for i in (1, 2):
                if flags[i]:
                    gradients[i] = found[i] if part.start == 0 else gradients[i] + found[i]
        return gradients[0], gradients[1], gradients[2]
    arrays = (
        contiguous(arrange.inner(dy), dtype),
        contiguous(arrange.x, dtype) if flags[1] else arrange.x,
        contiguous(arrange.w, dtype) if flags[0] else arrange.w,
    )
    x_shape = arrange.x.shape if arrange.last else x.shape
    results = (
        result("dx", x_shape, dtype) if flags[0] else None,
        result("dw", arrange.w.shape, dtype) if flags[1] else None,
        result("db", (arrange.w.shape[0],), dtype) if flags[2] else None,
    )
    backward = _backward(problem, flags, algo, precision, max_workspace)
    threads = None if algorithms.is_serial(problem) else runtime.get_num_threads
    if (
        flags == (True, False, False)
        and backward.dx is not None
        and _is_one_run(backward.dx, arrays[0])
    ):
        call = Call(backward.dx.run, _dx_arguments(backward), threads, results)
        _run_gradient(backward.dx, dtype, call.team(), lambda: call.apply(arrays, results))
    else:
        places = (place if wanted else None for place, wanted in zip(RESULTS, flags, strict=True))
        call = Call(_gradients, (backward, *OPERANDS[:3], *places, TEAM), threads, results)
        call.apply(arrays, results)
    if not arrange.last:
        calls.remember(call, backward.nbytes, *given, arrays)
    dx, dw, db = results
    if arrange.last and dx is not None:
        dx = contiguous(arrange.outer(dx), dtype)
    if arrange.last and dw is not None:
        dw = np.ascontiguousarray(dw.transpose(*range(2, rank + 2), 1, 0))
    return deliver_gradients((dx, dw, db), result_dtype)


def _is_one_run(plan: algorithms.Plan, dy: Array) -> bool:
    """Whether an input gradient is one run of its kernel, which writes all of dx."""
    return len(plan.lattices) == 1 and plan.problem.phases_cover_input and dy.size > 0


def _dx_arguments(how: _Backward) -> tuple[Any, ...]:
    """Of a Call of the kernel itself, with the operands dy, x and w."""
    assert how.dx is not None
    dy, _, w, *_ = OPERANDS
    return (
        how.dx.lattices[0], dy, w, RESULTS[0], how.problem.groups, True, None, None, -1, TEAM, how.max_workspace,
    )  # fmt: skip


def _gradients(
    how: _Backward,
    dy: Array,
    x: Array,
    w: Array,
    dx: Array | None,
    dw: Array | None,
    db: Array | None,
    team: int,
) -> None:
    """Compute those of dx, dw and db that are wanted, from arrays in NCHW and OIHW that kernels take as they are."""
    problem = how.problem
    dy = dy.reshape(problem.y_shape)
    if dx is not None:
        dx, w = dx.reshape(problem.x_shape), w.reshape(w.shape[0], w.shape[1], -1)
        if how.dx is None:
            _copied_input_gradient(how, dy, w, dx, team)
        else:
            _input_gradient(how.dx, dy, w, dx, how.max_workspace, team)
    if how.dw is not None and dw is not None:
        _weight_gradient(how.dw, dy, x.reshape(problem.x_shape), dw, how.max_workspace, team)
    if db is not None:
        _bias_gradient(dy, db, team)


def _copied_input_gradient(how: _Backward, dy: Array, w: Array, dx: Array, team: int) -> None:
    """dx where padding copies input cells: that of the padded input, folded back."""
    problem = how.problem
    sizes = tuple(s + sum(p) for s, p in zip(problem.sizes, problem.pads, strict=True))
    for part in slices(problem.batch, dx.nbytes // max(problem.batch, 1)):
        padded = replace(
            problem, batch=part.stop - part.start, sizes=sizes, pads=((0, 0),) * 3, mode="zeros"
        )
        plan = algorithms.plan(padded, how.algo, "dx", precision=how.precision)
        dxp = result("dx", padded.x_shape, dy.dtype)
        _input_gradient(plan, dy[part], w, dxp, how.max_workspace, team)
        dx[part] = pad_backward(dxp, dx[part].shape, problem.pads, problem.mode)


_FORWARD_DOC = """{rank}-D convolution (cross-correlation, as in every deep-learning library: the kernel is not flipped).

    y[n, o, p] = act(sum_c sum_k x[n, c, p*stride - low + k*dilation] * w[o, c, k] + b[o] + residual[n, o, p])

    with c over the channels of o's group, and p and k over {rank} spatial axes.

    Parameters
    ----------
    x : array (N, C, {axes}), or (C, {axes}) for one image without a batch axis
    w : array (O, C/groups, {kernel})
        One that is read-only, owns its data and is not "NHWC" is packed once and kept packed while it lives, in a bounded cache.
    b : array (O,), optional
    stride, dilation : int or tuple of {rank}
        Both are at least 1.
    padding : int, tuple of {rank}, {rank} pairs (low, high), "valid" or "same"
        "same" gives ceil(size/stride) outputs and puts an odd cell at the end (TensorFlow's rule).
    groups : int
        Must divide C and O; groups == C is a depthwise convolution.
    padding_mode : {{"zeros", "reflect", "replicate", "circular"}}
        Image processing calls them zero, mirror, clamp and wrap.
    layout : {{"NCHW", "NHWC"}}
        "NHWC": x is (N, {axes}, C), w is ({kernel}, C/groups, O) and so is the result's channel axis last, in any rank.
    activation : {{None, "relu", "tanh", "sigmoid"}}
        Fused into the store.
    residual : array of the result's shape, optional
        Added before the activation.
    algo : {{"auto", {algorithms}}}
        See :func:`fastconv.explain`.
    precision : {{None, "highest", "high", "medium"}}
        None takes the surrounding :func:`fastconv.precision`.
    max_workspace : int, optional
        Bytes of workspace a thread may use for the input; the default stays below 64 MiB, but for an `algo` forced on kernels
        that reach over many pixels of many channels.
    out : array, optional
        Takes the result. It may share memory with the inputs; then a copy is made.

    Returns
    -------
    array (N, O, {out}) of NumPy's promotion of the operands' dtypes; float16 is computed in float32.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what was given and what was expected.
    MemoryError
        When the result or the workspace cannot be had; the library stays usable.
    """

_BACKWARD_DOC = """Gradients of {name} (without activation and residual).

    dx[n, c, i] = sum of dy[n, o, p] * w[o, c, k] over i = p*stride - low + k*dilation (padded cells fold back)
    dw[o, c, k] = sum over n, p of dy[n, o, p] * x[n, c, p*stride - low + k*dilation]
    db[o]       = sum over n, p of dy[n, o, p]

    Parameters
    ----------
    dy : array of the result's shape
    x, w, stride, padding, dilation, groups, padding_mode, layout, precision, max_workspace
        As in {name}.
    algo : {{"auto", {algorithms}}}
        Of dx; and of dw, which has "linear", "depthwise", "winograd_...", "split_..." and "direct", and takes "direct" for
        the others.
    needs : three bools
        Which of dx, dw, db to compute; the others are None.

    Returns
    -------
    (dx, dw, db) : arrays of the shapes of x, w and (O,)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As {name}.
    """


def _document(rank: int) -> dict[str, str]:
    letters = "DHW"[3 - rank :]
    return {
        "rank": str(rank),
        "name": f"conv{rank}d",
        "axes": ", ".join(letters),
        "kernel": ", ".join(f"K{a}" for a in letters),
        "out": ", ".join(f"O{a}" for a in letters),
        "algorithms": ", ".join(f'"{name}"' for name in algorithms.NAMES),
    }


def _forward_of(rank: int):  # type: ignore[no-untyped-def]
    """conv1d, conv2d or conv3d: they differ in their rank alone."""

    def conv(
        x: Any,
        w: Any,
        b: Any = None,
        stride: Spatial = 1,
        padding: Padding = 0,
        dilation: Spatial = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
        layout: str = "NCHW",
        activation: str | None = None,
        residual: Any = None,
        algo: str = "auto",
        precision: str | None = None,
        max_workspace: int | None = None,
        out: Array | None = None,
    ) -> Array:
        options = (
            rank, stride, padding, dilation, groups, padding_mode, layout, activation, algo,
            runtime.resolve_precision(precision), max_workspace,
        )  # fmt: skip
        y = again(options, (x, w, b, residual), out)
        return convolve(options, x, w, b, residual, out) if y is None else y

    return public(conv, f"conv{rank}d", _FORWARD_DOC.format(**_document(rank)))


def _backward_of(rank: int):  # type: ignore[no-untyped-def]
    """conv1d_backward, conv2d_backward or conv3d_backward."""

    def conv_backward(
        dy: Any,
        x: Any,
        w: Any,
        stride: Spatial = 1,
        padding: Padding = 0,
        dilation: Spatial = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
        layout: str = "NCHW",
        needs: Sequence[bool] = (True, True, True),
        algo: str = "auto",
        precision: str | None = None,
        max_workspace: int | None = None,
    ) -> Gradients:
        options = (
            rank, stride, padding, dilation, groups, padding_mode, layout, algo,
            runtime.resolve_precision(precision), max_workspace,
        )  # fmt: skip
        return _conv_backward(options, needs, dy, x, w)

    return public(conv_backward, f"conv{rank}d_backward", _BACKWARD_DOC.format(**_document(rank)))


conv1d, conv2d, conv3d = map(_forward_of, (1, 2, 3))
conv1d_backward, conv2d_backward, conv3d_backward = map(_backward_of, (1, 2, 3))
