# SPDX-License-Identifier: BSD-3-Clause
"""Calls that are remembered: the short way gives the bits and the errors of the long one, and notices what changed."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fastconv
from benchmarks.problems import OVERHEAD, PROBLEMS
from fastconv import algorithms, runtime
from fastconv.functional import activation, conv, dense, loss, norm, pool
from fastconv.functional import shape as moving
from fastconv.kernels import isa
from fastconv.kernels.call import Memo
from tests.conftest import DEFAULT_ROW, ROWS, THREADS
from tests.data import Array, hostile, integers, reals, rng
from tests.test_conv import CASES, FORWARD, MODES

X, W = reals(rng(1), (1, 1, 8, 8), "float32"), reals(rng(2), (1, 1, 3, 3), "float32")


def forget() -> None:
    """The next call goes the long way."""
    algorithms.clear_plans()


@pytest.fixture(autouse=True)
def fresh() -> None:
    forget()


def outcome(call: Callable[[], Any]) -> Any:
    """The result, or the type and text of the error."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        return type(error), str(error)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return isinstance(b, tuple) and all(map(same, a, b))
    if not isinstance(a, np.ndarray):
        return bool(a == b)
    return (
        isinstance(b, np.ndarray)
        and a.dtype == b.dtype
        and a.shape == b.shape
        and bool(a.tobytes() == b.tobytes())
    )


def short(call: Callable[[], Any]) -> Any:
    """The result of a call that was made before; it must not go the long way."""
    call()

    def long_way(*_: Any) -> Any:
        raise AssertionError("the long way")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "convolve", long_way)
        patch.setattr(conv, "_Layout", long_way)
        patch.setattr(dense, "multiply_add", long_way)
        for module in (activation, conv, dense, loss, moving, norm, pool):
            patch.setattr(module, "common_dtypes", long_way)
        return call()


@pytest.mark.parametrize("problem", PROBLEMS + OVERHEAD, ids=lambda p: p.name)
def test_named_problems(problem: Any, dtype: str) -> None:
    small = problem.reduced()
    x, w, dy = (
        reals(rng(i), s, dtype) for i, s in enumerate((small.x_shape, small.w_shape, small.y_shape))
    )
    options = small.options
    expected = fastconv.conv2d(x, w, **options)
    assert same(expected, short(lambda: fastconv.conv2d(x, w, **options)))
    gradients = fastconv.conv2d_backward(dy, x, w, **options)
    assert same(gradients, short(lambda: fastconv.conv2d_backward(dy, x, w, **options)))


@pytest.mark.parametrize("mode", ["zeros", *MODES])
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, mode: str, algo: str, isa_row: str) -> None:
    """Every rank, option and algorithm, with bias, residual, activation and a given result."""
    x_shape, w_shape, options = CASES[name]
    options = {**options, "padding_mode": mode, "algo": algo}
    rank = len(w_shape) - 2
    x, w, b = (reals(rng(i), s, "float32") for i, s in enumerate((x_shape, w_shape, w_shape[:1])))
    f = FORWARD[rank]
    plain = f(x, w, **options)
    residual = reals(rng(4), plain.shape, "float32")
    assert same(plain, short(lambda: f(x, w, **options)))
    for fused in (None, "relu", "tanh"):
        more = {**options, "activation": fused, "residual": residual}
        forget()
        expected = f(x, w, b, **more)
        assert same(expected, short(lambda more=more: f(x, w, b, **more)))
        out = np.full_like(expected, np.nan)
        assert short(lambda more=more, out=out: f(x, w, b, out=out, **more)) is out
        assert same(expected, out)
    if x_shape[0] == 1:
        assert same(plain[0], short(lambda: f(x[0], w, **options)))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_linear(lead: tuple[int, ...], dtype: str) -> None:
    x, w, b = (reals(rng(i), s, dtype) for i, s in enumerate(((*lead, 9), (5, 9), (5,))))
    expected = fastconv.linear(x, w, b)
    assert same(expected, short(lambda: fastconv.linear(x, w, b)))
    out = np.empty_like(expected)
    assert short(lambda: fastconv.linear(x, w, b, out=out)) is out
    assert same(expected, out)


def test_linear_of_many_axes() -> None:
    w = np.ones((5, 9), "float32")
    for axes in range(1, 45):
        x = np.ones((1,) * axes + (9,), "float32")
        assert short(lambda x=x: fastconv.linear(x, w)).shape == (1,) * axes + (5,)


OTHERS: dict[str, Callable[..., Any]] = {
    "relu": fastconv.relu,
    "tanh": fastconv.tanh,
    "sigmoid_backward": lambda x, **o: fastconv.sigmoid_backward(x[::-1].copy(), x, **o),
    "softmax": lambda x, **o: fastconv.softmax(x, 1, **o),
    "log_softmax": fastconv.log_softmax,
    "softmax_backward": lambda x, **o: fastconv.softmax_backward(x[::-1].copy(), x, **o),
    "max_pool2d": lambda x, **o: fastconv.max_pool2d(x, 3, 2, (1, 0), ceil_mode=True, **o),
    "avg_pool2d": lambda x, **o: fastconv.avg_pool2d(x, (2, 3), divisor_override=5, **o),
    "adaptive_max_pool2d": lambda x, **o: fastconv.adaptive_max_pool2d(x, (4, 3), **o),
    "adaptive_avg_pool2d": lambda x, **o: fastconv.adaptive_avg_pool2d(x, None, **o),
    "pad": lambda x, **o: fastconv.pad(x, ((1, 0), (2, 3)), **o),
    "pad reflect": lambda x, **o: fastconv.pad(x, ((2, 1),), "reflect", **o),
    "unfold": lambda x, **o: fastconv.unfold(x, 2, 1, (1, 0), 2, **o),
    "fold": lambda x, **o: fastconv.fold(fastconv.unfold(x, 3), x.shape[2:], 3, **o),
    "batch_norm": lambda x, **o: fastconv.batch_norm(
        x, x[0, :, 0, 0].copy(), x[1, :, 0, 1] ** 2, **o
    ),
    "batch_norm affine": lambda x, **o: fastconv.batch_norm(
        x, *(np.ascontiguousarray(abs(x[0, :, 0, i])) for i in range(4)), 1e-3, **o
    ),
}


WITHOUT_OUT: dict[str, Callable[..., Any]] = {
    "max_pool2d indices": lambda x: fastconv.max_pool2d(x, 3, 2, 1, return_indices=True),
    "adaptive_max_pool2d indices": lambda x: fastconv.adaptive_max_pool2d(x, (4, 3), True),
    "avg_pool2d_backward": lambda x: fastconv.avg_pool2d_backward(
        x, (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), 2
    ),
    "adaptive_avg_pool2d_backward": lambda x: fastconv.adaptive_avg_pool2d_backward(
        x, (*x.shape[:2], x.shape[2] + 3, 2 * x.shape[3])
    ),
    "max_pool2d_backward": lambda x: fastconv.max_pool2d_backward(
        x, _maxima(x), (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), 2
    ),
    "pad_backward": lambda x: fastconv.pad_backward(
        x, (*x.shape[:2], x.shape[2] - 3, x.shape[3] - 1), ((1, 2), (1, 0)), "replicate"
    ),
    "batch_norm_train": lambda x: (*fastconv.batch_norm_train(x, *_parameters(x)[:2]),),
    "batch_norm_train statistics": lambda x: _updated(x, _parameters(x)),
    "batch_norm_backward": lambda x: fastconv.batch_norm_backward(
        x[::-1].copy(), x, _parameters(x)[0], fastconv.batch_norm_train(x)[1]
    ),
    "batch_norm_backward evaluation": lambda x: fastconv.batch_norm_backward(
        x[::-1].copy(), x, None, _parameters(x)[:2], training=False
    ),
    "linear_backward": lambda x: fastconv.linear_backward(x[..., :5].copy(), x, x[0, 0, :5].copy()),
    "linear_backward dw": lambda x: fastconv.linear_backward(
        x[..., :5].copy(), x, x[0, 0, :5].copy(), needs=(False, True, False)
    ),
    "conv2d_backward unbatched": lambda x: fastconv.conv2d_backward(
        x[0], x[1], x[0, :, None, :3, :3].copy(), padding=1, groups=3
    ),
    "conv2d_backward reflect": lambda x: fastconv.conv2d_backward(
        x, x, x[0, :, None, :3, :3].copy(), 1, 1, groups=3, padding_mode="reflect"
    ),
    "dropout": lambda x: fastconv.dropout(x, 0.25, True, 3),
    "dropout2d": lambda x: fastconv.dropout2d(x, 0.5, True, np.random.default_rng(5)),
    "dropout evaluation": lambda x: fastconv.dropout(x, 0.5, False),
    "dropout_backward": lambda x: fastconv.dropout_backward(x, x > 0, 0.25),
    "dropout2d_backward": lambda x: fastconv.dropout2d_backward(x, _maxima(x)[..., :1, :1] > 0),
    "cross_entropy": lambda x: (fastconv.cross_entropy(x, _classes(x)),),
    "cross_entropy weighted": lambda x: (
        fastconv.cross_entropy(x, _classes(x), _parameters(x)[0], 1, "none", 0.1),
    ),
    "cross_entropy probabilities": lambda x: (fastconv.cross_entropy(x, abs(x)),),
    "cross_entropy_backward": lambda x: fastconv.cross_entropy_backward(x, _classes(x)),
    "cross_entropy_backward weighted": lambda x: fastconv.cross_entropy_backward(
        x, _classes(x), _parameters(x)[0], 1, "none", 0.1, x[:, 0].copy()
    ),
}


def _maxima(x: Array) -> Array:
    """Some cell of each plane that is four times as large as one of x, for each cell of x."""
    return np.argsort(x.reshape(*x.shape[:2], -1)).reshape(x.shape)


def _classes(x: Array) -> Array:
    return np.argmax(x[:, ::-1], axis=1)


def _parameters(x: Array) -> tuple[Array, ...]:
    """Four per-channel arrays, positive."""
    return tuple(np.ascontiguousarray(abs(x[0, :, 0, i])) for i in range(4))


def _updated(x: Array, parameters: tuple[Array, ...]) -> tuple[Any, ...]:
    y, saved = fastconv.batch_norm_train(x, *parameters)
    return y, saved, parameters[2:]


@pytest.mark.parametrize("name", WITHOUT_OUT)
def test_indices_and_gradients(name: str, dtype: str, isa_row: str) -> None:
    call, g = WITHOUT_OUT[name], rng(12)
    for size in ((2, 3, 9, 10), (2, 3, 150, 120)):
        x, other = reals(g, size, dtype), reals(g, size, dtype)
        expected, differs = call(x), call(other)
        assert not same(expected, differs)
        algorithms.clear_plans()
        assert same(differs, call(other))
        for threads in THREADS:
            with fastconv.threads(threads):
                assert same(expected, short(lambda x=x: call(x)))


@pytest.mark.parametrize(
    "x_shape", [[1, 1, 9, 9], (1, 1, 8, 10), (1, 2, 8, 8), (1, 1, 9.0, 9), None]
)
def test_the_shape_of_x_counts(x_shape: Any) -> None:
    """A gradient's signature has the shape that it is to have."""
    dy = reals(rng(13), (1, 1, 4, 4), "float32")
    for call in (
        lambda shape: fastconv.avg_pool2d_backward(dy, shape, 2),
        lambda shape: fastconv.adaptive_avg_pool2d_backward(dy, shape),
        lambda shape: fastconv.max_pool2d_backward(dy, np.zeros(dy.shape, int), shape, 2),
        lambda shape: fastconv.pad_backward(np.ones((1, 1, 10, 10)), shape, ((1, 1), (1, 1))),
    ):
        first = outcome(lambda call=call: call(x_shape))
        forget()
        call((1, 1, 8, 8))
        for _ in range(2):
            assert same(first, outcome(lambda call=call: call(x_shape)))


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions(name: str, dtype: str, isa_row: str) -> None:
    call, g = OTHERS[name], rng(11)
    for shape in ((2, 3, 9, 10), (2, 3, 150, 120)):  # on one thread, and on as many as are wanted
        x, other = reals(g, shape, dtype), reals(g, shape, dtype)
        expected, differs = call(x), call(other)
        assert not same(expected, differs)
        algorithms.clear_plans()
        assert same(differs, call(other))
        for threads in THREADS:
            with fastconv.threads(threads):
                assert same(expected, short(lambda x=x: call(x)))
        out = np.full_like(expected, np.nan)
        assert short(lambda x=x, out=out: call(x, out=out)) is out
        assert same(expected, out)
        if expected.shape == x.shape:  # the result may be the operand itself
            call(x, out=x)
            assert same(expected, x)


@pytest.mark.parametrize("option", [True, 1, 1.0, np.True_, "1", (1,), None, 2])
def test_flags_are_not_numbers(option: Any) -> None:
    """Calls that differ in the type of an option are different calls."""
    x = reals(rng(12), (1, 2, 7, 7), "float32")
    for remembered in (False, True, 0, 1):
        forget()
        first = outcome(lambda: fastconv.avg_pool2d(x, 2, 2, 1, option, False))
        forget()
        fastconv.avg_pool2d(x, 2, 2, 1, remembered, False)
        for _ in range(2):
            assert same(first, outcome(lambda: fastconv.avg_pool2d(x, 2, 2, 1, option, False)))


def test_eps_counts() -> None:
    x, ones = np.ones((1, 2, 3, 3), "float32"), np.ones(2, "float32")
    found = [
        fastconv.batch_norm(x, 0 * ones, ones, eps=eps)[0, 0, 0, 0] for eps in (0, 0.0, 3, 3.0)
    ]
    assert found == [1, 1, 0.5, 0.5]
    with pytest.raises(ValueError, match="eps"):
        fastconv.batch_norm(x, 0 * ones, ones, eps=-1.0)


# Each: changes to the call conv2d(X, W) that was made before.
CHANGES: dict[str, dict[str, Any]] = {
    "list": {"x": X.tolist()},
    "subclass": {"x": X.view(np.memmap)},
    "wider": {"x": X.astype("float64")},
    "narrower": {"w": W.astype("float16")},
    "complex": {"x": X.astype("complex64")},
    "unbatched": {"x": X[0]},
    "empty batch": {"x": X[:0]},
    "empty plane": {"x": X[:, :, :0]},
    "other size": {"x": X[:, :, :5].copy()},
    "more channels": {"x": np.ones((1, 2, 8, 8), "float32")},
    "large kernel": {"w": np.ones((1, 1, 9, 9), "float32")},
    "kernel axes": {"w": W[0]},
    "stride": {"stride": 2},
    "bool stride": {"stride": True},
    "float stride": {"stride": 1.0},
    "NumPy stride": {"stride": np.int64(1)},
    "list stride": {"stride": [1, 1]},
    "no stride": {"stride": None},
    "zero stride": {"stride": 0},
    "huge stride": {"stride": 2**64},
    "pair": {"stride": (2, 1)},
    "bool in a pair": {"stride": (True, 1)},
    "long tuple": {"stride": (1,) * 200},
    "pairs": {"padding": ((1, 0), (0, 1))},
    "nested": {"padding": ((((1,),),),)},
    "negative": {"padding": -1},
    "word": {"padding": "same"},
    "wrong word": {"padding": "some"},
    "no text": {"padding": "\ud800"},
    "groups": {"groups": 2},
    "mode": {"padding_mode": "reflect", "padding": 1},
    "wrong mode": {"padding_mode": "mirror"},
    "layout": {"layout": "NHWC"},
    "activation": {"activation": "relu"},
    "wrong activation": {"activation": "gelu"},
    "bias": {"b": np.ones(1, "float32")},
    "long bias": {"b": np.ones(2, "float32")},
    "wide bias": {"b": np.ones(1)},
    "residual": {"residual": np.ones((1, 1, 6, 6), "float32")},
    "wrong residual": {"residual": np.ones((1, 1, 5, 6), "float32")},
    "algo": {"algo": "direct"},
    "wrong algo": {"algo": "linear"},
    "precision": {"precision": "medium"},
    "wrong precision": {"precision": "low"},
    "workspace": {"max_workspace": 4096},
    "no workspace": {"max_workspace": 0},
    "wide out": {"out": np.zeros((1, 1, 6, 6))},
    "wrong out": {"out": np.zeros((1, 1, 5, 6), "float32")},
    "list out": {"out": [1]},
    **{f"{k} x": {"x": v} for k, v in hostile(X).items()},
    **{f"{k} w": {"w": v} for k, v in hostile(W).items()},
    **{f"{k} out": {"out": v} for k, v in hostile(np.zeros((1, 1, 6, 6), "float32")).items()},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_similar_call_changes_counts(name: str) -> None:
    """After conv2d(X, W), and after the call itself, the result or the error is that of a first call."""
    arguments = {"x": X, "w": W, **CHANGES[name]}
    first = outcome(lambda: fastconv.conv2d(**arguments))
    first = first.copy() if isinstance(first, np.ndarray) else first  # it may be `out`
    forget()
    fastconv.conv2d(X, W)
    for _ in range(2):
        assert same(first, outcome(lambda: fastconv.conv2d(**arguments)))


STATISTICS = tuple(np.ones(3, "float32") for _ in range(4))
LOGITS, CLASSES = reals(rng(20), (4, 3), "float32"), np.array([0, 2, 1, 1])
POOLED = reals(rng(21), (1, 3, 4, 4), "float32")
NUMBERED = np.arange(48).reshape(POOLED.shape) % 16
# Each: a function, arrays it takes and options.
GRADIENTS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    "linear_backward": (
        fastconv.linear_backward,
        {"dy": LOGITS[:, :2].copy(), "x": LOGITS, "w": LOGITS[:2].copy()},
        {},
    ),
    "conv2d_backward": (fastconv.conv2d_backward, {"dy": X, "x": X, "w": W}, {"padding": 1}),
    "max_pool2d_backward": (
        fastconv.max_pool2d_backward,
        {"dy": POOLED, "indices": NUMBERED},
        {"x_shape": (1, 3, 8, 8), "kernel_size": 2},
    ),
    "pad_backward": (
        fastconv.pad_backward,
        {"dy": POOLED},
        {"x_shape": (1, 3, 4, 2), "pads": ((1, 1),)},
    ),
    "batch_norm": (
        fastconv.batch_norm,
        dict(zip(("running_mean", "running_var", "weight"), STATISTICS, strict=False))
        | {"x": POOLED},
        {},
    ),
    "batch_norm_train": (
        fastconv.batch_norm_train,
        dict(zip(("running_mean", "running_var", "weight", "bias"), STATISTICS, strict=True))
        | {"x": POOLED},
        {},
    ),
    "dropout_backward": (fastconv.dropout_backward, {"dy": POOLED, "mask": POOLED > 0}, {}),
    "dropout": (fastconv.dropout, {"x": POOLED}, {"rng": 3}),
    "cross_entropy": (
        fastconv.cross_entropy,
        {"logits": LOGITS, "target": CLASSES, "weight": STATISTICS[0]},
        {},
    ),
    "cross_entropy_backward": (
        fastconv.cross_entropy_backward,
        {"logits": LOGITS, "target": CLASSES, "weight": STATISTICS[0]},
        {},
    ),
}


def replaced(array: Array) -> dict[str, Any]:
    """What may stand in the place of an array: of other types, shapes and layouts, and no arrays at all."""
    types = ("float16", "float64", "int8", "int64", "uint64", "bool", "complex64")
    return {
        **{kind: array.astype(kind) for kind in types},
        **hostile(array),
        "list": array.tolist(),
        "subclass": array.view(np.memmap),
        "longer": np.concatenate([array, array]),
        "shorter": array[:-1],
        "more axes": array[np.newaxis],
        "None": None,
    }


@pytest.mark.parametrize("name", GRADIENTS)
def test_other_arrays_count(name: str) -> None:
    """After a call, the same with one array replaced has the result or the error of a first call; statistics are the same too."""
    function, arrays, options = GRADIENTS[name]

    def once(changed: str = "", kind: str = "") -> tuple[Any, Any]:
        """The outcome, and the statistics then."""
        fresh = {n: a.copy() for n, a in arrays.items()}
        if changed:
            fresh[changed] = replaced(fresh[changed])[kind]
        found = outcome(lambda: function(**fresh, **options))
        return found, tuple(np.array(a) for n, a in fresh.items() if n.startswith("running"))

    for changed, array in arrays.items():
        for kind in replaced(array):
            forget()
            first = once(changed, kind)
            forget()
            once()
            for _ in range(2):
                assert same(first, once(changed, kind)), (changed, kind)


def test_elements_are_looked_at_in_every_call() -> None:
    """What no signature shows: classes, indices, the scale of a gradient, and generators."""
    for _ in range(2):
        fastconv.cross_entropy(LOGITS, CLASSES)
        fastconv.cross_entropy_backward(LOGITS, CLASSES)
        fastconv.max_pool2d_backward(POOLED, NUMBERED, (1, 3, 8, 8), 2)
        fastconv.dropout(POOLED, 0.5, True, 3)
        with pytest.raises(ValueError, match=r"target: expected classes in \[0, 3\), got 3"):
            fastconv.cross_entropy(LOGITS, CLASSES + 1)
        with pytest.raises(ValueError, match=r"target: expected classes in \[0, 3\), got -1"):
            fastconv.cross_entropy_backward(LOGITS, CLASSES - 1)
        with pytest.raises(ValueError, match=r"dloss: expected shape \(\), got \(2,\)"):
            fastconv.cross_entropy_backward(LOGITS, CLASSES, dloss=np.ones(2))
        with pytest.raises(ValueError, match=r"indices: expected flat indices in \[0, 64\)"):
            fastconv.max_pool2d_backward(POOLED, NUMBERED + 49, (1, 3, 8, 8), 2)
        with pytest.raises(TypeError, match="rng"):
            fastconv.dropout(POOLED, 0.5, True, "seed")
        doubled = fastconv.cross_entropy_backward(LOGITS, CLASSES, dloss=2.0)
        assert same(doubled, 2 * fastconv.cross_entropy_backward(LOGITS, CLASSES))


def test_statistics_that_became_read_only_are_refused() -> None:
    mean, var = np.zeros(3, "float32"), np.ones(3, "float32")
    for _ in range(2):
        fastconv.batch_norm_train(POOLED, None, None, mean, var)
    before = var.copy()
    var.flags.writeable = False
    with pytest.raises(ValueError, match="running_var: expected a writable array"):
        fastconv.batch_norm_train(POOLED, None, None, mean, var)
    assert same(var, before)


def test_reversed_kernels_of_signals() -> None:
    """scipy.signal's functions flip a kernel; the convolution that they make is remembered all the same."""
    for call in (fastconv.signal.convolve2d, fastconv.signal.correlate2d):
        for dtype in ("float32", "float64", "int16"):
            image, kernel = (16 * X[0, 0]).astype(dtype), (16 * W[0, 0]).astype(dtype)
            expected = call(image, kernel)
            assert same(expected, short(lambda call=call, x=image, h=kernel: call(x, h)))


def test_a_result_that_became_read_only_is_refused() -> None:
    out = np.empty((1, 1, 6, 6), "float32")
    fastconv.conv2d(X, W, out=out)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writable array"):
        fastconv.conv2d(X, W, out=out)


@pytest.mark.parametrize("operand", ["x", "w", "b", "residual"])
def test_a_result_that_overlaps_an_operand(operand: str) -> None:
    """The same signature, apart and overlapping: the first image's result would spoil what the others read."""
    g = rng(5)
    shapes = {"x": (3, 1, 8, 8), "w": (2, 1, 3, 3), "b": (2,), "residual": (3, 2, 8, 8)}
    arrays = {name: reals(g, shape, "float32") for name, shape in shapes.items()}
    expected = fastconv.conv2d(**arrays, padding=1, out=np.empty((3, 2, 8, 8), "float32"))
    size = arrays[operand].size
    for offset in (-40, -1, 0, 1, 30, size - 1):
        room = np.empty(1200, "float32")
        arrays[operand] = room[400 : 400 + size].reshape(shapes[operand])
        out = room[400 + offset : 784 + offset].reshape(expected.shape)
        g = rng(5)
        for name, shape in shapes.items():
            arrays[name][...] = reals(g, shape, "float32")
        assert fastconv.conv2d(**arrays, padding=1, out=out) is out
        assert same(expected, out.copy())


@pytest.mark.parametrize("row", ROWS)
def test_the_instruction_set_may_change(row: str) -> None:
    fastconv.conv2d(X, W)
    try:
        isa.select(row)
        found = fastconv.conv2d(X, W)
        assert len(algorithms.calls) == (1 if row == DEFAULT_ROW else 2)
        forget()
        assert same(found, fastconv.conv2d(X, W))
    finally:
        isa.select(DEFAULT_ROW)


def test_the_number_of_threads_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    row = next(a for a in algorithms.ALGORITHMS if a.name == "direct")

    def run(*arguments: Any) -> int:
        seen.append(arguments[9])
        return row.run(*arguments)

    monkeypatch.setattr(algorithms, "ALGORITHMS", (replace(row, run=run),))
    monkeypatch.setattr(algorithms, "_plans", Memo(8, 1 << 20))
    large = reals(rng(), (1, 16, 32, 32), "float32"), reals(rng(), (16, 16, 3, 3), "float32")
    for count in (1, 2, 3):
        with fastconv.threads(count):
            fastconv.conv2d(*large, algo="direct")
            fastconv.conv2d(X, W, algo="direct")
    assert seen == [1, 1, 2, 1, 3, 1]


def test_the_precision_may_change() -> None:
    fastconv.conv2d(X, W)
    with fastconv.precision("medium"):
        fastconv.conv2d(X, W)
    assert len(algorithms.calls) == 2
    short(lambda: fastconv.conv2d(X, W, precision="medium"))
    assert len(algorithms.calls) == 2


def test_lines_may_be_asked_for(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fastconv.conv2d(X, W)
    fastconv.linear(X[0, 0], X[0, 0])
    fastconv.relu(X)
    monkeypatch.setattr(runtime, "verbose", sys.stderr)
    fastconv.conv2d(X, W)
    fastconv.linear(X[0, 0], X[0, 0])
    fastconv.relu(X)
    lines = capfd.readouterr().err.splitlines()[-3:]
    assert [line.split(",")[1] for line in lines] == ["conv2d", "linear", "relu"]


def test_arrays_are_not_kept() -> None:
    def calls() -> list[weakref.ref[Array]]:
        x, w, b = X.copy(), W.copy(), np.ones(1, "float32")
        residual, out = np.ones((1, 1, 6, 6), "float32"), np.empty((1, 1, 6, 6), "float32")
        matrix = np.ones((3, 3), "float32")
        for _ in range(2):
            fastconv.conv2d(x, w, b, residual=residual, out=out)
            fastconv.conv2d_backward(out, x, w)
            fastconv.linear(matrix, matrix)
        return [weakref.ref(a) for a in (x, w, b, residual, out, matrix)]

    refs = calls()
    gc.collect()
    assert [ref() for ref in refs] == [None] * 6


def test_a_memo_is_bounded() -> None:
    memo = Memo(4, 100)
    for i in range(10):
        memo.put(i, str(i), 10)
    assert [i for i in range(10) if memo.get(i)] == [6, 7, 8, 9]
    memo.put("large", "large", 75)
    assert [i for i in (*range(10), "large") if memo.get(i)] == [8, 9, "large"]
    assert (len(memo), memo.bytes) == (3, 95)
    memo.put("too large", "too large", 101)
    memo.put("large", "again", 1)
    assert memo.get("too large") is None
    assert memo.get("large") == "large"
    memo.clear()
    assert (len(memo), memo.bytes) == (0, 0)


def test_the_momentum_is_no_part_of_a_signature() -> None:
    """A layer that averages all batches has another one in each step."""
    layer = fastconv.nn.BatchNorm2d(1, momentum=None)
    batches = [X + i for i in range(5)]
    layer(batches[0])
    before = len(algorithms.calls)
    for x in batches[1:]:
        layer(x)
    assert len(algorithms.calls) == before
    np.testing.assert_allclose(layer.running_mean, np.mean(batches), rtol=1e-6)


def test_remembered_calls_are_bounded() -> None:
    w = np.ones((1, 1, 1), "float32")
    for size in range(1, algorithms.CALLS + 50):
        x = np.ones((1, 1, size), "float32")
        fastconv.conv1d(x, w)
        fastconv.linear(x[0], x[0])
        fastconv.conv1d_backward(x, x, w, needs=(False, False, True))
    assert len(algorithms.calls) == algorithms.CALLS
    forget()
    wide = np.ones((1, 1, 8), "float32")
    for i in range(40):  # 2 MB of table each
        fastconv.conv1d(wide, w, padding=120_000 + i, padding_mode="replicate")
        assert algorithms.calls.bytes <= algorithms.PLAN_BYTES
    assert 1 < len(algorithms.calls) < 20


def test_many_python_threads() -> None:
    """Calls of many signatures at once, more than are kept."""
    shapes = [(1, 1, 5 + i % 37, 5 + i // 37) for i in range(algorithms.CALLS + 100)]
    wrong: list[Any] = []

    def work(seed: int) -> None:
        order = rng(seed).permutation(len(shapes))
        for i in order:
            x = np.full(shapes[i], i % 64, "float32")
            y = fastconv.conv2d(x, np.ones((1, 1, 2, 2), "float32"))
            if (
                y.shape != (1, 1, shapes[i][2] - 1, shapes[i][3] - 1)
                or not (y == 4 * (i % 64)).all()
            ):
                wrong.append(shapes[i])

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert len(algorithms.calls) <= algorithms.CALLS


SIZES = st.integers(0, 6)
NUMBERS = st.one_of(
    st.integers(-1, 3),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from([1.0, True, None, "same", (1,)]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(
    x_shape=(0, 2, 1, 1),
    w_shape=(1, 2, 1, 1),
    fix_channels=True,
    options={"stride": 2, "algo": "images"},
    kinds=("float32", "float32"),
    layouts=("plain", "plain"),
    bias=None,
)
@given(
    x_shape=st.tuples(st.integers(0, 2), st.integers(1, 4), SIZES, SIZES),
    w_shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    fix_channels=st.booleans(),
    options=st.fixed_dictionaries(
        {},
        optional={
            "stride": NUMBERS,
            "padding": NUMBERS,
            "dilation": NUMBERS,
            "groups": st.sampled_from([1, 2, 1.0, True]),
            "padding_mode": st.sampled_from(["zeros", *MODES, "mirror"]),
            "layout": st.sampled_from(["NCHW", "NHWC"]),
            "activation": st.sampled_from([None, "relu", "sigmoid", "gelu"]),
            "algo": st.sampled_from(["auto", *algorithms.NAMES]),
            "max_workspace": st.sampled_from([None, 1, 5000, 0]),
        },
    ),
    kinds=st.tuples(*[st.sampled_from(["float32", "float64", "int16", "float16"])] * 2),
    layouts=st.tuples(
        *[
            st.sampled_from(
                ["plain", "plain", "fortran", "unaligned", "strided", "negative", "big-endian"]
            )
        ]
        * 2
    ),
    bias=st.sampled_from([None, "float32", "float64", "wrong"]),
)
def test_first_and_later_calls_agree(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    fix_channels: bool,
    options: dict[str, Any],
    kinds: tuple[str, str],
    layouts: tuple[str, str],
    bias: str | None,
) -> None:
    """Any sizes, options, types and layouts, right and wrong: the first call, a later one, and its gradients."""
    g = rng(3)
    if fix_channels:
        x_shape = (x_shape[0], w_shape[1], *x_shape[2:])
    operands: list[Array] = []
    for shape, kind, layout in zip((x_shape, w_shape), kinds, layouts, strict=True):
        array = integers(g, shape, kind)
        operands.append(array if layout == "plain" else hostile(array)[layout])
    b = (
        None
        if bias is None
        else np.ones(9 if bias == "wrong" else w_shape[0], "f4" if bias == "wrong" else bias)
    )
    forget()
    first = outcome(lambda: fastconv.conv2d(*operands, b, **options))
    for _ in range(2):
        assert same(first, outcome(lambda: fastconv.conv2d(*operands, b, **options)))
    if isinstance(first, np.ndarray):
        dy = np.ones(first.shape, first.dtype)
        rest = {k: v for k, v in options.items() if k != "activation"}
        gradients = outcome(lambda: fastconv.conv2d_backward(dy, *operands, **rest))
        if isinstance(gradients[0], type):  # an error
            assert options["algo"] == "images"
            assert "several convolutions" in gradients[1]
        for _ in range(2):
            assert same(gradients, outcome(lambda: fastconv.conv2d_backward(dy, *operands, **rest)))


def test_memo_cleared_while_it_is_searched():
    """Comparing keys may run Python code, during which another thread clears the memo."""
    memo = Memo(4, 1 << 10)

    class Key:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            memo.clear()
            gc.collect()
            held = [dict.fromkeys(range(i)) for i in range(64)]  # takes the freed memory
            return not held

    for _ in range(100):
        memo.put(Key(), "value", 1)
        assert memo.get(Key()) is None
