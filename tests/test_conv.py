# SPDX-License-Identifier: BSD-3-Clause
"""Convolutions against the reference: every ISA, algorithm, type and thread count, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastconv
from benchmarks.problems import PROBLEMS
from fastconv import algorithms, reference
from fastconv.problem import conv_problem
from tests.conftest import THREADS
from tests.data import Array, integers, reals, rng, trusted
from tests.tolerance import assert_close

FORWARD = {1: fastconv.conv1d, 2: fastconv.conv2d, 3: fastconv.conv3d}
BACKWARD = {1: fastconv.conv1d_backward, 2: fastconv.conv2d_backward, 3: fastconv.conv3d_backward}
ALGORITHMS = algorithms.GENERAL_NAMES

# name: (x shape, w shape, options). Together: every dimension, both kinds of tails (OC = 19, W = 33), every stride phase,
# dilation, groups, depthwise, one-sided padding, several small maps in a block, kernels larger than a chain, one pixel, one
# channel.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 5, 9, 11), (7, 5, 3, 3), {"padding": 1}),
    "tails": ((1, 3, 6, 33), (19, 3, 3, 3), {}),
    "wide-oc": ((1, 4, 5, 5), (67, 4, 2, 2), {}),
    "stride2": ((2, 4, 11, 10), (17, 4, 3, 3), {"stride": 2, "padding": 1}),
    "stride4-k11": ((1, 3, 35, 35), (9, 3, 11, 11), {"stride": 4, "padding": 2}),
    "stride4-rows": ((2, 3, 12, 150), (9, 3, 5, 5), {"stride": 4, "padding": 2}),
    # rows of taps in threes
    "6-taps": ((2, 5, 8, 20), (19, 5, 2, 6), {"padding": (0, 3)}),
    "9-taps": ((1, 34, 6, 17), (35, 34, 1, 9), {"padding": (0, 4)}),
    "stride>kernel": ((1, 3, 13, 14), (5, 3, 2, 2), {"stride": 3}),
    "stride-mixed": ((1, 3, 13, 14), (5, 3, 3, 2), {"stride": (1, 3), "padding": (0, 1)}),
    "dilated": ((1, 3, 14, 13), (6, 3, 3, 3), {"dilation": (2, 3), "padding": 2}),
    "dilated-strided": ((1, 3, 17, 19), (6, 3, 3, 3), {"dilation": 2, "stride": 3, "padding": 3}),
    "groups": ((2, 6, 8, 8), (9, 2, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise": ((2, 5, 12, 37), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "depthwise-x2": ((1, 5, 9, 9), (10, 1, 5, 5), {"groups": 5, "padding": 2, "stride": 2}),
    # rows of several vectors, two by two and one left; both places of a stride of 2 in one visit; several groups a task
    "depthwise-wide": ((2, 3, 7, 101), (3, 1, 5, 4), {"groups": 3, "padding": 2}),
    "depthwise-stride2": ((2, 3, 9, 139), (3, 1, 3, 3), {"groups": 3, "padding": 1, "stride": 2}),
    "depthwise-small": ((3, 50, 4, 4), (50, 1, 3, 3), {"groups": 50, "padding": 1}),
    "depthwise-rows": ((2, 6, 10, 10), (6, 1, 5, 5), {"groups": 6, "padding": 2}),
    # whole vectors of groups and some left; tiles of one, two and three rows; blocks; chains of pixels; slices of images
    "depthwise-many": ((3, 19, 7, 7), (19, 1, 3, 3), {"groups": 19, "padding": 1}),
    "depthwise-many-stride2": (
        (2, 35, 14, 13),
        (35, 1, 5, 5),
        {"groups": 35, "padding": 2, "stride": 2},
    ),
    "depthwise-many-stride3": (
        (2, 9, 11, 10),
        (9, 1, 2, 2),
        {"groups": 9, "stride": 3, "dilation": 2},
    ),
    "depthwise-many-dilated": (
        (2, 17, 31, 33),
        (17, 1, 3, 7),
        {"groups": 17, "padding": (2, 6), "dilation": 2},
    ),
    "depthwise-many-3d": (
        (2, 16, 5, 6, 7),
        (16, 1, 3, 2, 3),
        {"groups": 16, "padding": 1, "stride": (2, 1, 2)},
    ),
    # one channel to one output, straight from planes to planes: tiles of rows and rows left, columns apart, several blocks, all
    # of them padding, more vectors than a tile, planes of a volume
    "plane": ((2, 3, 9, 40), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
    "plane-narrow": ((2, 3, 15, 13), (3, 1, 5, 5), {"groups": 3, "padding": 2}),
    "plane-wide": ((1, 2, 9, 150), (2, 1, 7, 4), {"groups": 2, "padding": (3, 2)}),
    "plane-five": ((2, 2, 6, 77), (2, 1, 3, 3), {"groups": 2}),
    # whole rows, with a stride too: fewer rows than a tile, rows left, one vector and several, more columns than they take
    "plane-whole": ((2, 2, 12, 27), (2, 1, 7, 7), {"groups": 2, "padding": 3}),
    "plane-strided": ((2, 3, 17, 14), (3, 1, 3, 3), {"groups": 3, "padding": 1, "stride": 2}),
    "plane-strided-5": ((2, 2, 7, 61), (2, 1, 5, 5), {"groups": 2, "padding": 2, "stride": 2}),
    "plane-strided-7": ((1, 2, 22, 30), (2, 1, 7, 7), {"groups": 2, "padding": 3, "stride": 2}),
    "plane-strided-short": ((2, 5, 13, 9), (5, 1, 5, 5), {"groups": 5, "padding": 2, "stride": 2}),
    "plane-strided-rows": ((1, 2, 40, 95), (2, 1, 3, 3), {"groups": 2, "padding": 1, "stride": 2}),
    "plane-strided-full": ((1, 2, 3, 128), (2, 1, 5, 5), {"groups": 2, "padding": 2, "stride": 2}),
    "plane-strided-tall": ((1, 1, 601, 125), (1, 1, 3, 3), {"padding": 1, "stride": 2}),
    "plane-strided-wide": ((1, 1, 8, 130), (1, 1, 3, 3), {"padding": 1, "stride": 2}),
    # rows of half a vector or less: fewer than a tile, several tiles, two lanes, no padding, planes of a volume
    "plane-halves": ((2, 5, 7, 7), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "plane-halves-5": ((2, 3, 5, 4), (3, 1, 5, 5), {"groups": 3, "padding": 2}),
    "plane-halves-7": ((1, 3, 19, 8), (3, 1, 7, 7), {"groups": 3, "padding": 3}),
    "plane-halves-valid": ((2, 3, 10, 9), (3, 1, 3, 3), {"groups": 3}),
    "plane-halves-two": ((2, 3, 2, 2), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
    "plane-halves-strided": (
        (2, 3, 14, 14),
        (3, 1, 5, 5),
        {"groups": 3, "padding": 2, "stride": 2},
    ),
    "plane-halves-strided-7": (
        (1, 4, 31, 7),
        (4, 1, 7, 7),
        {"groups": 4, "padding": 3, "stride": 2},
    ),
    "plane-halves-strided-tall": (
        (1, 2, 33, 13),
        (2, 1, 3, 3),
        {"groups": 2, "padding": 1, "stride": 2},
    ),
    "plane-halves-3d": ((2, 3, 4, 6, 7), (3, 1, 1, 3, 3), {"groups": 3, "padding": (0, 1, 1)}),
    "plane-dilated": (
        (1, 3, 8, 30),
        (3, 1, 3, 3),
        {"groups": 3, "dilation": (1, 4), "padding": (1, 4)},
    ),
    "plane-blocks": ((1, 1, 270, 130), (1, 1, 3, 3), {"padding": ((0, 4), (1, 1))}),
    "plane-3d": ((2, 2, 5, 6, 33), (2, 1, 1, 3, 3), {"groups": 2, "padding": (0, 1, 1)}),
    "groups-of-5": ((2, 6, 9, 53), (10, 3, 3, 3), {"groups": 2}),
    "odd-places-only": ((1, 2, 8, 8), (3, 2, 2, 1), {"stride": 2, "padding": (0, 1)}),
    "1x1": ((2, 9, 7, 7), (20, 9, 1, 1), {}),
    "1x1-stride2": ((2, 9, 7, 8), (20, 9, 1, 1), {"stride": 2}),
    "1x1-rows": ((3, 9, 20, 20), (37, 9, 1, 1), {}),
    "1x1-one-set": ((2, 7, 32, 32), (18, 7, 1, 1), {}),
    "small-maps": ((23, 5, 7, 7), (20, 5, 1, 1), {}),
    "small-maps-halo": ((19, 5, 7, 9), (20, 5, 3, 3), {"stride": 2, "padding": 1}),
    "small-maps-groups": ((9, 34, 7, 7), (51, 2, 1, 1), {"groups": 17}),
    "one-pixel": ((1, 3, 3, 3), (4, 3, 3, 3), {}),
    "deep": ((1, 70, 6, 6), (3, 70, 3, 3), {"padding": 1}),
    "huge-kernel": ((1, 2, 18, 20), (3, 2, 17, 18), {"padding": 3}),
    "one-sided": ((1, 2, 7, 7), (3, 2, 3, 3), {"padding": ((2, 0), (0, 1))}),
    "same": ((1, 2, 8, 7), (3, 2, 4, 3), {"padding": "same", "stride": 2}),
    "valid": ((1, 2, 8, 7), (3, 2, 4, 3), {"padding": "valid"}),
    "1d": ((2, 3, 41), (5, 3, 7), {"stride": 2, "padding": 3, "dilation": 2}),
    "1d-long": ((1, 2, 5000), (3, 2, 300), {}),
    "3d": ((1, 3, 5, 6, 7), (4, 3, 3, 2, 3), {"padding": 1, "stride": (2, 1, 2)}),
    "3d-groups": ((1, 4, 5, 5, 5), (6, 2, 2, 2, 2), {"groups": 2, "dilation": 2}),
}
MODES = ("reflect", "replicate", "circular")


def exact_case(name: str, dtype: str, mode: str = "zeros") -> tuple[Any, ...]:
    """Integer operands of a case: (rank, x, w, b, dy, options)."""
    x_shape, w_shape, options = CASES[name]
    options = dict(options, padding_mode=mode)
    g = rng(len(name))
    x, w = integers(g, x_shape, dtype), integers(g, w_shape, dtype)
    b = integers(g, w_shape[:1], dtype)
    dy = integers(g, reference.conv(x, w, **options).shape, dtype)
    return len(w_shape) - 2, x, w, b, dy, options


def assert_gradients(found: Any, expected: Any) -> None:
    for name, a, e in zip(("dx", "dw", "db"), found, expected, strict=True):
        assert np.array_equal(a, e), f"{name} differs"


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str, dtype: str, algo: str, isa_row: str) -> None:
    """Small integers are exact: == the reference at every thread count, forward and backward."""
    rank, x, w, b, dy, options = exact_case(name, dtype)
    y = reference.conv(x, w, b, **options)
    trusted(y)
    gradients = reference.conv_backward(dy, x, w, **options)
    for threads in THREADS:
        with fastconv.threads(threads):
            assert np.array_equal(FORWARD[rank](x, w, b, algo=algo, **options), y)
            assert_gradients(BACKWARD[rank](dy, x, w, algo=algo, **options), gradients)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", ["3x3", "stride2", "dilated", "one-sided", "1d", "3d", "groups", "depthwise-many"]
)
def test_padding_modes(name: str, mode: str, algo: str, isa_row: str) -> None:
    rank, x, w, b, dy, options = exact_case(name, "float32", mode)
    y = FORWARD[rank](x, w, b, algo=algo, **options)
    assert np.array_equal(y, reference.conv(x, w, b, **options))
    expected = reference.conv_backward(dy, x, w, **options)
    assert_gradients(BACKWARD[rank](dy, x, w, algo=algo, **options), expected)


@pytest.mark.parametrize("activation", [None, "relu", "tanh", "sigmoid"])
def test_epilogue(activation: str | None, dtype: str, algo: str, isa_row: str) -> None:
    """Bias, residual and activation are fused, with one channel block and with several."""
    g = rng(3)
    for channels in (3, 70):
        x, w = reals(g, (2, channels, 7, 19), dtype), reals(g, (20, channels, 3, 3), dtype) / 8
        b, residual = reals(g, (20,), dtype), reals(g, (2, 20, 7, 19), dtype)
        options: dict[str, Any] = {"padding": 1, "residual": residual}
        y = fastconv.conv2d(x, w, b, activation=activation, algo=algo, **options)
        scale = reference.abs_conv(x, w, b, **options)
        assert_close(y, reference.conv(x, w, b, activation=activation, **options), scale)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_network_layers(problem: Any, isa_row: str) -> None:
    """Real data on a small variant of every layer of the list: the tolerance policy, all algorithms, forward and backward."""
    small = problem.reduced()
    operands = small.arrays("float32")
    x, w, dy = operands["x"], operands["w"], operands["dy"]
    y = reference.conv(x, w, **small.options)
    gradients = reference.conv_backward(dy, x, w, **small.options)
    scale = reference.abs_conv(x, w, **small.options)
    scales = reference.conv_backward(abs(dy), abs(x), abs(w), **small.options)
    for algo in ALGORITHMS:
        assert_close(fastconv.conv2d(x, w, algo=algo, **small.options), y, scale)
        found = fastconv.conv2d_backward(dy, x, w, algo=algo, **small.options)
        for a, e, s in zip(found, gradients, scales, strict=True):
            assert_close(a, e, s)


def all_bits(problem: Any, threads: int) -> list[bytes]:
    """Forward, dx, dw and db of a problem, as bytes."""
    operands = problem.arrays("float32")
    x, w, b, dy = (operands[name] for name in ("x", "w", "b", "dy"))
    with fastconv.threads(threads):
        y = fastconv.conv2d(x, w, b, **problem.options)
        gradients = fastconv.conv2d_backward(dy, x, w, **problem.options)
    return [a.tobytes() for a in (y, *gradients) if a is not None]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_same_bits_at_any_thread_count(problem: Any) -> None:
    """Every layer of the list, at full size with one image (LeNet's with all), and a small variant of it."""
    full = problem.with_batch(1) if problem.flops > 1e8 else problem
    assert full.flops > algorithms.SERIAL_FLOPS, "one thread would run it anyway"
    assert all_bits(full, 2) == all_bits(full, 1)
    small = problem.reduced()
    one = all_bits(small, 1)
    assert len(one) == 4
    for threads in THREADS[1:]:
        assert all_bits(small, threads) == one


@pytest.mark.parametrize(
    "shape", [(1, 16, 28, 28, 16), (3, 20, 27, 13, 40), (1, 40, 1, 333, 33)], ids=str
)
def test_same_bits_where_threads_share_few_blocks(
    shape: tuple[int, ...], algo: str, dtype: str, isa_row: str
) -> None:
    made, (n, channels, height, width, outputs) = rng(16), shape
    x = reals(made, (n, channels, height, width), dtype)
    w = reals(made, (outputs, channels, 3, 3), dtype)
    dy = reals(made, (n, outputs, height, width), dtype)
    assert 18 * channels * dy.size > algorithms.SERIAL_FLOPS, "one thread would run it anyway"
    found = []
    for threads in THREADS:
        with fastconv.threads(threads):
            y = fastconv.conv2d(x, w, padding=1, algo=algo)
            gradients = fastconv.conv2d_backward(dy, x, w, padding=1, algo=algo)
        found.append([a.tobytes() for a in (y, *gradients) if a is not None])
    assert found == found[:1] * len(THREADS)


@pytest.mark.parametrize("name", CASES)
def test_adjoint(name: str, algo: str) -> None:
    """<conv(x, w), dy> = <x, dx> = <w, dw> in float64."""
    x_shape, w_shape, options = CASES[name]
    g = rng(7)
    x, w = reals(g, x_shape, "float64"), reals(g, w_shape, "float64")
    rank = len(w_shape) - 2
    y = FORWARD[rank](x, w, algo=algo, **options)
    dy = reals(g, y.shape, "float64")
    dx, dw, _ = BACKWARD[rank](dy, x, w, algo=algo, **options)
    size = np.linalg.norm(y) * np.linalg.norm(dy)
    assert abs(np.vdot(y, dy) - np.vdot(x, dx)) <= 1e-12 * size
    assert abs(np.vdot(y, dy) - np.vdot(w, dw)) <= 1e-12 * size


def test_finite_differences(algo: str) -> None:
    """The convolution is bilinear, so central differences along random directions are exact but for rounding."""
    g = rng(8)
    x, w, b = (
        reals(g, (2, 4, 7, 8), "float64"),
        reals(g, (6, 2, 3, 2), "float64"),
        reals(g, (6,), "float64"),
    )
    options: dict[str, Any] = {
        "stride": (2, 1),
        "padding": 1,
        "groups": 2,
        "padding_mode": "reflect",
    }
    y = fastconv.conv2d(x, w, b, algo=algo, **options)
    dy = reals(g, y.shape, "float64")
    gradients = fastconv.conv2d_backward(dy, x, w, algo=algo, **options)
    for i, gradient in enumerate(gradients):
        direction = reals(g, gradient.shape, "float64")
        moved = [
            [a + (h * direction if i == j else 0) for j, a in enumerate((x, w, b))] for h in (1, -1)
        ]
        high, low = (np.vdot(fastconv.conv2d(*m, algo=algo, **options), dy) for m in moved)
        assert np.isclose((high - low) / 2, np.vdot(gradient, direction), rtol=1e-10)


@pytest.mark.parametrize("needs", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_needs(needs: tuple[bool, bool, bool]) -> None:
    _, x, w, _, dy, options = exact_case("groups", "float32")
    found = fastconv.conv2d_backward(dy, x, w, needs=needs, **options)
    expected = reference.conv_backward(dy, x, w, **options)
    for needed, a, e in zip(needs, found, expected, strict=True):
        assert np.array_equal(a, e) if needed else a is None


@pytest.mark.parametrize("name", ["3x3", "stride2", "groups", "1d", "3d"])
def test_channels_last(name: str, algo: str) -> None:
    rank, x, w, b, dy, options = exact_case(name, "float32")
    last = (0, *range(2, rank + 2), 1)
    hwio = (*range(2, rank + 2), 1, 0)
    y = FORWARD[rank](x.transpose(last), w.transpose(hwio), b, layout="NHWC", algo=algo, **options)
    assert y.flags.c_contiguous
    assert np.array_equal(y, reference.conv(x, w, b, **options).transpose(last))
    dx, dw, db = BACKWARD[rank](
        dy.transpose(last),
        x.transpose(last),
        w.transpose(hwio),
        layout="NHWC",
        algo=algo,
        **options,
    )
    ex, ew, eb = reference.conv_backward(dy, x, w, **options)
    assert_gradients((dx, dw, db), (ex.transpose(last), ew.transpose(hwio), eb))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["3x3", "1d", "3d"])
def test_unbatched(name: str, layout: str) -> None:
    rank, x, w, b, dy, options = exact_case(name, "float64")
    x, dy = x[:1], dy[:1]
    y, gradients = reference.conv(x, w, b, **options), reference.conv_backward(dy, x, w, **options)
    expected = [y, *gradients]
    if layout == "NHWC":
        x, dy, expected[0], expected[1] = (np.moveaxis(a, 1, -1) for a in (x, dy, y, gradients[0]))
        w, expected[2] = (a.transpose(*range(2, rank + 2), 1, 0) for a in (w, gradients[1]))
    found = FORWARD[rank](x[0], w, b, layout=layout, **options)
    assert np.array_equal(found, expected[0][0])
    dx, dw, db = BACKWARD[rank](dy[0], x[0], w, layout=layout, **options)
    assert_gradients((dx, dw, db), (expected[1][0], *expected[2:]))


@pytest.mark.parametrize(("mode", "boundary"), [("zeros", "fill"), ("circular", "wrap")])
def test_scipy_signal(mode: str, boundary: str, algo: str, isa_row: str) -> None:
    g = rng(9)
    image, kernel = integers(g, (20, 23), "float64"), integers(g, (5, 3), "float64")
    expected = scipy.signal.correlate2d(image, kernel, mode="same", boundary=boundary)
    y = fastconv.conv2d(
        image[None, None], kernel[None, None], padding=(2, 1), padding_mode=mode, algo=algo
    )
    assert np.array_equal(y[0, 0], expected)
    flipped = scipy.signal.convolve2d(image, kernel[::-1, ::-1], mode="same", boundary=boundary)
    assert np.array_equal(y[0, 0], flipped)


@pytest.mark.parametrize(
    ("mode", "theirs"), [("circular", "wrap"), ("reflect", "mirror"), ("replicate", "nearest")]
)
def test_scipy_ndimage(mode: str, theirs: str, algo: str, isa_row: str) -> None:
    g = rng(10)
    image, kernel = integers(g, (12, 9, 11), "float64"), integers(g, (3, 5, 3), "float64")
    y = fastconv.conv3d(
        image[None, None], kernel[None, None], padding=(1, 2, 1), padding_mode=mode, algo=algo
    )
    assert np.array_equal(y[0, 0], scipy.ndimage.correlate(image, kernel, mode=theirs))


@st.composite
def convolutions(draw: Any) -> tuple[int, Array, Array, Array, dict[str, Any]]:
    """A random integer problem with every option, always valid."""
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    groups, channels, outputs = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 20)),
    )
    kernel, stride, dilation = each(1, 4), each(1, 4), each(1, 3)
    pads = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(rank))
    mode = draw(st.sampled_from(("zeros", *MODES)))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    sizes = [
        max(draw(st.integers(1, 12)), span - sum(pair), max(pair) + 1)
        for span, pair in zip(spans, pads, strict=True)
    ]
    g = rng(draw(st.integers(0, 2**32 - 1)))
    x = integers(g, (draw(st.integers(1, 3)), groups * channels, *sizes), "float32")
    w = integers(g, (groups * outputs, channels, *kernel), "float32")
    options = {
        "stride": stride,
        "padding": pads,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": mode,
    }
    dy = integers(g, reference.conv(x, w, **options).shape, "float32")
    return rank, x, w, dy, options


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    problem=convolutions(),
    algo=st.sampled_from(["auto", *ALGORITHMS]),
    threads=st.sampled_from(THREADS),
)
def test_any_problem(problem: Any, algo: str, threads: int, isa_row: str) -> None:
    rank, x, w, dy, options = problem
    with fastconv.threads(threads):
        assert np.array_equal(
            FORWARD[rank](x, w, algo=algo, **options), reference.conv(x, w, **options)
        )
        found = BACKWARD[rank](dy, x, w, algo=algo, **options)
    assert_gradients(found, reference.conv_backward(dy, x, w, **options))


def test_blocks_do_not_show() -> None:
    """Any bound on the workspace, so any blocking of the pixels, gives the same bits."""
    g = rng(11)
    x, w = reals(g, (1, 40, 30, 41), "float32"), reals(g, (24, 40, 3, 3), "float32")
    for algo in ALGORITHMS:
        full = fastconv.conv2d(x, w, padding=1, algo=algo)
        for limit in (1 << 16, 1 << 12, 1):
            small = fastconv.conv2d(x, w, padding=1, algo=algo, max_workspace=limit)
            assert small.tobytes() == full.tobytes()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 7, (5, 13)])
def test_pixels_of_many_small_images(
    size: int | tuple[int, int], stride: int, dtype: str, algo: str, isa_row: str
) -> None:
    """1x1 kernels on maps smaller than a tile, or ending within one: tiles span images, and sums of 300 channels two chains."""
    g = rng(15)
    h, w = size if isinstance(size, tuple) else (size, size)
    x, weights = integers(g, (5, 300, h, w), dtype, 2), integers(g, (53, 300, 1, 1), dtype, 2)
    b, options = integers(g, (53,), dtype), {"stride": stride}
    plain = reference.conv(x, weights, b, **options)
    residual = integers(g, plain.shape, dtype)
    y = reference.conv(x, weights, b, activation="relu", residual=residual, **options)
    with fastconv.threads(2):
        found = fastconv.conv2d(
            x, weights, b, activation="relu", residual=residual, algo=algo, **options
        )
        assert np.array_equal(found, y)
        found = fastconv.conv2d(x, weights, b, activation="tanh", algo=algo, **options)
        assert found.tobytes() == fastconv.tanh(plain.astype(dtype)).tobytes()
        gradients = fastconv.conv2d_backward(residual, x, weights, algo=algo, **options)
    assert_gradients(gradients, reference.conv_backward(residual, x, weights, **options))


@pytest.mark.parametrize("stride", [1, 2])
def test_direct_panels_in_groups(stride: int, dtype: str, isa_row: str) -> None:
    """Sums so large that the panels of outputs go through in groups, the last one smaller, and channels in several chains."""
    g = rng(16)
    x, w = integers(g, (1, 60, 28, 28), dtype, 2), integers(g, (70, 60, 3, 3), dtype, 2)
    options: dict[str, Any] = {"stride": stride, "padding": 1}
    y = reference.conv(x, w, **options)
    dy = integers(g, y.shape, dtype, 2)
    with fastconv.threads(1):  # more would divide the panels
        assert np.array_equal(fastconv.conv2d(x, w, algo="direct", **options), y)
        gradients = fastconv.conv2d_backward(dy, x, w, algo="direct", **options)
    assert_gradients(gradients, reference.conv_backward(dy, x, w, **options))


@pytest.mark.parametrize("stride", [1, 2])
def test_direct_rows_share_tiles(stride: int, dtype: str, isa_row: str) -> None:
    """Rows of every length about the tiles, an odd number of them, panels of one and two vectors, several chains."""
    g = rng(17)
    for width in range(1, 31):
        x, w = integers(g, (1, 30, 3, width), dtype), integers(g, (41, 30, 3, 3), dtype, 2)
        options: dict[str, Any] = {"stride": (1, stride), "padding": 1}
        y = reference.conv(x, w, **options)
        assert np.array_equal(fastconv.conv2d(x, w, algo="direct", **options), y), width
        dy = integers(g, y.shape, dtype, 2)
        dx = fastconv.conv2d_backward(dy, x, w, algo="direct", **options)[0]
        assert np.array_equal(dx, reference.conv_backward(dy, x, w, **options)[0]), width


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("taps", [3, 5, 7])
def test_rows_share_vectors(taps: int, stride: int, dtype: str, isa_row: str) -> None:
    """Depthwise layers of small maps with bias, residual and ReLU: a NaN stays in its windows, what surrounds y as it was."""
    g = rng(taps)
    for height, width in ((7, 7), (14, 14), (4, 4), (8, 3), (21, 8), (1, 2)):
        options: dict[str, Any] = {"groups": 5, "stride": stride, "padding": taps // 2}
        x, w = integers(g, (2, 5, height, width), dtype), integers(g, (5, 1, taps, taps), dtype)
        x[1, 2, height // 2, width - 1] = np.nan
        plain, b = reference.conv(x, w, **options), integers(g, (5,), dtype)
        residual = integers(g, plain.shape, dtype)
        around = np.full(plain.size + 128, 7, dtype)
        y = around[64:-64].reshape(plain.shape)
        options |= {"residual": residual, "activation": "relu"}
        fastconv.conv2d(x, w, b, algo="pixel", out=y, **options)
        assert np.array_equal(y, reference.conv(x, w, b, **options), equal_nan=True)
        assert np.isnan(y).any()
        assert (around[:64] == 7).all()
        assert (around[-64:] == 7).all()


@pytest.mark.parametrize("outputs", [3, 23])
def test_pixel_rows_end_within_tiles(outputs: int, dtype: str, isa_row: str) -> None:
    """Rows of every length about the vectors, which are summed as one: of tiles that end one or several, with and without a
    residual. Nothing beyond the result is written."""
    g = rng(19)
    w, b = integers(g, (outputs, 2, 3, 3), dtype, 2), integers(g, (outputs,), dtype)
    for width in (*range(3, 40), 67):
        x = integers(g, (2, 2, 9, width), dtype)
        for options in ({}, {"padding": (0, 1)}, {"stride": (1, 2)}, {"padding": 1, "stride": 2}):
            y = reference.conv(x, w, b, activation="relu", **options)
            around = np.full(y.size + 128, 7, dtype)
            out = around[64:-64].reshape(y.shape)
            fastconv.conv2d(x, w, b, activation="relu", algo="pixel", out=out, **options)
            assert np.array_equal(out, y), width
            assert np.all(around[:64] == 7)
            assert np.all(around[-64:] == 7)
            residual = integers(g, y.shape, dtype)
            y = reference.conv(x, w, b, residual=residual, **options)
            found = fastconv.conv2d(x, w, b, residual=residual, algo="pixel", **options)
            assert np.array_equal(found, y), width
            dx = fastconv.conv2d_backward(residual, x, w, algo="pixel", **options)[0]
            assert np.array_equal(dx, reference.conv_backward(residual, x, w, **options)[0]), width


def test_columns_of_many_outputs(dtype: str, isa_row: str) -> None:
    """More outputs than a task has, of several chains; the last tile of pixels is a part."""
    g = rng(18)
    x, w = integers(g, (1, 300, 5, 7), dtype), integers(g, (2100, 300, 1, 1), dtype, 2)
    y = fastconv.conv2d(x, w, stride=2, algo="im2col")
    assert np.array_equal(y, reference.conv(x, w, stride=2))


def test_weights_in_several_rounds() -> None:
    """Weights beyond the packing limit (24 MiB) are packed and used in rounds."""
    g = rng(12)
    x, w = integers(g, (1, 1024, 4, 4), "float32"), integers(g, (1000, 1024, 3, 3), "float32", 1)
    y = reference.conv(x, w)
    for algo in ALGORITHMS:
        assert np.array_equal(fastconv.conv2d(x, w, algo=algo), y)


@pytest.mark.parametrize("stride", [2, 3, 4, (1, 3), (2, 1)])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_phases_of_an_input_gradient(
    kernel: int, stride: int | tuple[int, int], dtype: str, isa_row: str
) -> None:
    """Some that no tap reaches, the last rows and columns short, panels of two widths; and never one phase by itself."""
    g = rng(14)
    x, w = integers(g, (2, 41, 23, 37), dtype), integers(g, (9, 41, kernel, kernel), dtype)
    options: dict[str, Any] = {"stride": stride, "padding": kernel // 2}
    dy = integers(g, fastconv.conv2d(x, w, **options).shape, dtype)
    expected = reference.conv_backward(dy, x, w, **options)[0]
    problem = conv_problem(dtype, x.shape, w.shape, stride, kernel // 2, 1, 1, "zeros", 2)
    assert len(algorithms.plan(problem, "direct", "dx").lattices) == 1
    for algo in ALGORITHMS:
        dx = fastconv.conv2d_backward(dy, x, w, algo=algo, needs=(True, False, False), **options)[0]
        assert np.array_equal(dx, expected), algo


@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 3, 7, 33])
def test_kernel_as_large_as_the_input(batch: int, stride: int, dtype: str, isa_row: str) -> None:
    """LeNet's C5: a linear layer over flattened images, with every epilogue and gradient."""
    g = rng(13)
    x, w = integers(g, (batch, 6, 5, 4), dtype), integers(g, (19, 6, 5, 4), dtype)
    b, residual = integers(g, (19,), dtype), integers(g, (batch, 19, 1, 1), dtype)
    options: dict[str, Any] = {"stride": stride}
    y = reference.conv(x, w, b, activation="relu", residual=residual, **options)
    gradients = reference.conv_backward(residual, x, w, **options)
    for algo in ("auto", "linear", *ALGORITHMS):
        found = fastconv.conv2d(x, w, b, activation="relu", residual=residual, algo=algo, **options)
        assert np.array_equal(found, y)
        assert_gradients(fastconv.conv2d_backward(residual, x, w, algo=algo, **options), gradients)


def test_linear_refuses_other_problems() -> None:
    x, w = np.ones((1, 2, 5, 5)), np.ones((3, 2, 3, 3))
    with pytest.raises(ValueError, match="algo: 'linear' cannot run this problem"):
        fastconv.conv2d(x, w, algo="linear")
    with pytest.raises(ValueError, match="algo: 'linear' cannot run this problem"):
        fastconv.conv2d_backward(np.ones((1, 3, 3, 3)), x, w, algo="linear")


def test_padding_far_beyond_a_plane(dtype: str, isa_row: str) -> None:
    """Rows of padding alone, above and below two rows of input."""
    g = rng(15)
    x, w = integers(g, (1, 2, 2, 60), dtype), integers(g, (2, 1, 3, 3), dtype)
    options: dict[str, Any] = {"groups": 2, "padding": (70, 1)}
    expected = reference.conv(x, w, **options)
    gradients = reference.conv_backward(expected, x, w, **options)
    for algo in ALGORITHMS:
        assert np.array_equal(fastconv.conv2d(x, w, algo=algo, **options), expected)
        found = fastconv.conv2d_backward(expected.astype(dtype), x, w, algo=algo, **options)
        assert_gradients(found, gradients)


@pytest.mark.parametrize("stride", [784, 785, 3000])
def test_strides_longer_than_a_row_of_sums(stride: int, dtype: str, isa_row: str) -> None:
    """The direct kernel sums whole rows of an input gradient, up to a stride beyond which its workspace would be large."""
    g = rng(14)
    x, w = integers(g, (2, 3, 2, 2 * stride + 5), dtype), integers(g, (18, 3, 2, 4), dtype)
    dy = integers(g, (2, 18, 1, 3), dtype)
    options: dict[str, Any] = {"stride": (1, stride)}
    found = fastconv.conv2d_backward(dy, x, w, algo="direct", needs=(True, False, False), **options)
    assert np.array_equal(found[0], reference.conv_backward(dy, x, w, **options)[0])
    gradient = fastconv.explain("conv2d_dx", x.shape, w.shape, algo="direct", **options)
    assert gradient.workspace < 1 << 20
