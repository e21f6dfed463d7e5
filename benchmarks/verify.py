# SPDX-License-Identifier: BSD-3-Clause
"""Is a result right? Answered for every element at a small part of the cost of computing it again.

Results are projected on random signs along their channel axis, group by group (Freivalds' check).
A convolution is linear, so the projection of its result is a convolution with one channel, which
the float64 reference computes quickly; a wrong element, tap, channel or tail changes it visibly.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np

from benchmarks.problems import (
    Array,
    AvgPool,
    BatchNorm,
    BatchNormEval,
    Block,
    Conv,
    MaxPool,
    Problem,
    Softmax,
    Unfold,
)

# Largest error allowed, in units of the projection's root mean square. A peer that adds a batch in
# float32, term by term, reaches 1e-4. bfloat16 products are at 3e-3 in the mean and five times that at worst.
TOLERANCE = {"float32": 5e-4, "float64": 1e-11}
BFLOAT16_TOLERANCE = 0.05


def tolerance(dtype: str, precision: str) -> float:
    bfloat16 = dtype == "float32" and precision == "medium"
    return BFLOAT16_TOLERANCE if bfloat16 else TOLERANCE[dtype]


def _signs(count: int) -> Array:
    return np.random.default_rng(7).choice([-1.0, 1.0], count)


def _project(array: Array, axis: int, groups: int) -> Array:
    """sum of sign[i] * array[..., group, i, ...] within each group of `axis`, in float64."""
    shape = array.shape
    split = (*shape[:axis], groups, shape[axis] // groups, -1)
    lines = np.asarray(array, np.float64).reshape(split)
    projected = _signs(split[axis + 1]) @ lines
    return projected.reshape(*shape[:axis], groups, *shape[axis + 1 :])


def projected(problem: Problem, what: str, result: Array) -> Array:
    """The projection of a result; what `expected` computes without knowing the result."""
    if result.shape != problem.result_shape(what):
        raise ValueError(f"result: expected shape {problem.result_shape(what)}, got {result.shape}")
    groups = getattr(problem, "groups", 1)
    return _project(result, 0 if what == "dw" else 1, groups)


def error(problem: Problem, what: str, result: Array, want: Array) -> float:
    """Largest error of the projected result over its root mean square; inf when not finite."""
    difference = np.abs(projected(problem, what, result) - want).max()
    scale = float(np.sqrt(np.mean(np.square(want))))
    return float(difference) / scale if np.isfinite(difference) and scale > 0 else float("inf")


@lru_cache(maxsize=8)
def expected(problem: Problem, what: str, dtype: str) -> Array:
    """The projection of the right result, by the float64 reference."""
    from fastconv import reference

    arrays = problem.arrays(dtype)
    if isinstance(problem, Conv):
        return _expected_conv(reference, problem, what, arrays)
    return projected(problem, what, _reference(reference, problem, what, arrays))


def _expected_conv(
    reference: ModuleType, problem: Conv, what: str, arrays: dict[str, Array]
) -> Array:
    x, w, dy, g = arrays["x"], arrays["w"], arrays["dy"], problem.groups
    if what == "forward":
        one = _project(w, 0, g)
        return reference.conv(x, one, _project(arrays["b"], 0, g).ravel(), **problem.options)
    if what == "dx":
        x_shape = (problem.batch, g, problem.size, problem.size)
        one = _project(w, 1, 1)
        dx, _, _ = reference.conv_backward(
            dy, np.broadcast_to(0.0, x_shape), one, **problem.options, needs=(True, False, False)
        )
        return dx
    shape = (g, *problem.w_shape[1:])
    _, dw, _ = reference.conv_backward(
        _project(dy, 1, g),
        x,
        np.broadcast_to(0.0, shape),
        **problem.options,
        needs=(False, True, False),
    )
    return dw


def _reference(
    reference: ModuleType, problem: Problem, what: str, arrays: dict[str, Array]
) -> Array:
    x, dy = arrays["x"], arrays["dy"]
    forward = what == "forward"
    if isinstance(problem, Block):
        y = reference.conv(x, arrays["w"], arrays["b"], **problem.options)
        return reference.relu(reference.batch_norm(y, *(arrays[name] for name in problem.norm)))
    if isinstance(problem, MaxPool):
        window = (problem.kernel, problem.stride, problem.padding)
        y, index = reference.max_pool(2, x, *window, return_indices=True)
        return y if forward else reference.max_pool_backward(2, dy, index, x.shape, *window)
    if isinstance(problem, AvgPool):
        window = (problem.kernel, problem.stride, problem.padding)
        if forward:
            return reference.avg_pool(2, x, *window)
        return reference.avg_pool_backward(2, dy, x.shape, *window)
    if isinstance(problem, Unfold):
        columns = (problem.kernel, 1, problem.padding, problem.stride)
        if forward:
            return reference.unfold(x, *columns)
        return reference.unfold_backward(dy, x.shape, *columns)
    if isinstance(problem, BatchNorm):
        if isinstance(problem, BatchNormEval):
            zeros = np.zeros(problem.channels)
            return reference.batch_norm(x, zeros, zeros + 1, arrays["weight"], arrays["bias"])
        y, saved = reference.batch_norm_train(x, arrays["weight"], arrays["bias"])
        return y if forward else reference.batch_norm_backward(dy, x, arrays["weight"], saved)[0]
    function, backward = (getattr(reference, f"{problem.op}{end}") for end in ("", "_backward"))
    if isinstance(problem, Softmax):
        y = function(x, problem.axis)
        return y if forward else backward(dy, y, problem.axis)
    return function(x) if forward else backward(dy, x)


def check(problem: Problem, what: str, dtype: str, result: Array) -> None:
    """AssertionError when a result is wrong."""
    found = error(problem, what, result, expected(problem, what, dtype))
    assert found <= TOLERANCE[dtype], f"{problem.name} {what}: error {found:.2g} of the rms"
