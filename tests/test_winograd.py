# SPDX-License-Identifier: BSD-3-Clause
"""Winograd convolution and its weight gradient: tables, results, errors, and what they do with values that are not finite."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import algorithms, reference
from fastconv.kernels import conv_winograd
from tests.conftest import THREADS
from tests.data import Array, integers, reals, rng, trusted
from tests.tolerance import assert_close

KINDS = {f"winograd_{m}_{r}": (m, r) for m, r in conv_winograd.KINDS}
POINTS = Path(__file__).parents[1] / "csrc/body/winograd_points.py"

# x shape, outputs, options: whole and cut tiles, images of one tile, several images a block, one pixel, channel and output
# tails, several blocks of channels, groups, a depth, padding of every kind and size
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "whole": ((1, 16, 12, 12), 16, {}),
    "tails": ((2, 5, 13, 35), 19, {"padding": 1}),
    "small-maps": ((9, 20, 7, 7), 40, {"padding": 1}),
    "one-pixel": ((3, 8, 1, 1), 8, {}),
    "one-channel": ((1, 1, 9, 30), 1, {"padding": 1}),
    "deep": ((1, 75, 8, 9), 33, {"padding": 1}),
    "wide": ((1, 3, 6, 450), 8, {"padding": 1}),
    "groups": ((2, 12, 9, 9), 15, {"padding": 1, "groups": 3}),
    "one-sided": ((1, 8, 9, 11), 8, {"padding": ((3, 0), (0, 2))}),
    "reflect": ((1, 8, 9, 11), 8, {"padding": 2, "padding_mode": "reflect"}),
    "replicate": ((1, 8, 9, 11), 8, {"padding": 7, "padding_mode": "replicate"}),
    "circular": ((1, 8, 9, 11), 8, {"padding": 5, "padding_mode": "circular"}),
    "many-tiles": ((1, 2, 199, 181), 3, {"padding": 1}),
    "dilated": ((2, 20, 28, 28), 24, {"padding": 2, "dilation": 2}),
    "phases-of-many-sizes": ((2, 5, 27, 38), 9, {"padding": (3, 7), "dilation": (3, 5)}),
    "phases-of-few-pixels": ((3, 9, 26, 26), 8, {"padding": 26, "dilation": (13, 12)}),
    "dilated-down": ((1, 9, 25, 14), 17, {"padding": ((5, 0), (0, 2)), "dilation": (4, 1)}),
    "dilated-across": ((2, 9, 6, 301), 8, {"padding": (1, 8), "dilation": (1, 4)}),
    "several-bands": ((1, 3, 4, 1700), 5, {"padding": (1, 2), "dilation": (1, 2)}),
    "dilated-circular": (
        (1, 8, 9, 21),
        8,
        {"padding": 4, "dilation": 2, "padding_mode": "circular"},
    ),
}


@pytest.fixture(params=KINDS)
def winograd(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def operands(name: str, algo: str, dtype: str, make: Any) -> tuple[Array, Array, Array, Array, Any]:
    x_shape, outputs, options = CASES[name]
    r = KINDS[algo][1]
    if x_shape[2] < r and "padding" not in options:
        options = {**options, "padding": r - 1}
    g = rng(len(name))
    w_shape = (outputs, x_shape[1] // options.get("groups", 1), r, r)
    x, w, b = make(g, x_shape, dtype), make(g, w_shape, dtype), make(g, (outputs,), dtype)
    dy = make(g, reference.conv(x, w, **options).shape, dtype)
    return x, w, b, dy, options


def points() -> Any:
    spec = importlib.util.spec_from_file_location("winograd_points", POINTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_generated() -> None:
    text = subprocess.run([sys.executable, POINTS], check=True, capture_output=True, text=True)
    assert text.stdout == POINTS.with_suffix(".h").read_text()


@pytest.mark.parametrize(
    ("m", "r"), [*conv_winograd.KINDS, *(k[::-1] for k in conv_winograd.KINDS)]
)
def test_matrices_compute_a_correlation(m: int, r: int) -> None:
    """A^T [(G g) * (B^T x)] is the correlation of x with g, in exact rationals, for each pair of unit vectors."""
    a_t, g, b_t = points().matrices(m, r)
    alpha = m + r - 1
    for j in range(r):
        for k in range(alpha):
            y = [sum(a_t[i][p] * g[p][j] * b_t[p][k] for p in range(alpha)) for i in range(m)]
            assert y == [Fraction(i + j == k) for i in range(m)]


@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(name: str, winograd: str, dtype: str, isa_row: str) -> None:
    """Forward and input gradient, the same bits at every thread count."""
    x, w, b, dy, options = operands(name, winograd, dtype, reals)
    y = reference.conv(x, w, b, **options)
    trusted(y)
    dx = reference.conv_backward(dy, x, w, **options)[0]
    scale = reference.abs_conv(x, w, b, **options)
    dx_scale = reference.conv_backward(abs(dy), abs(x), abs(w), **options)[0]
    bits = set()
    for threads in THREADS:
        with fastconv.threads(threads):
            found = fastconv.conv2d(x, w, b, algo=winograd, **options)
            found_dx = fastconv.conv2d_backward(
                dy, x, w, algo=winograd, needs=(True, False, False), **options
            )[0]
            bits.add(found.tobytes() + found_dx.tobytes())
    assert len(bits) == 1
    assert_close(found, y, np.maximum(scale, scale.mean()), winograd)
    assert_close(found_dx, dx, np.maximum(dx_scale, dx_scale.mean()), winograd)


@pytest.mark.parametrize("name", CASES)
def test_two_by_two_is_exact(name: str, dtype: str, isa_row: str) -> None:
    """F(2, 3) multiplies by powers of two only: small integers come out ==."""
    x, w, b, dy, options = operands(name, "winograd_2_3", dtype, integers)
    y = fastconv.conv2d(x, w, b, algo="winograd_2_3", **options)
    assert np.array_equal(y, reference.conv(x, w, b, **options))
    found = fastconv.conv2d_backward(dy, x, w, algo="winograd_2_3", **options)[:2]
    for a, expected in zip(found, reference.conv_backward(dy, x, w, **options), strict=False):
        assert np.array_equal(a, expected)


def weight_gradient(dy: Array, x: Array, w: Array, algo: str = "auto", **options: Any) -> Array:
    needs = (False, True, False)
    dw: Array = fastconv.conv2d_backward(dy, x, w, algo=algo, needs=needs, **options)[1]
    return dw


@pytest.mark.parametrize("name", CASES)
def test_weight_gradient_against_the_reference(
    name: str, winograd: str, dtype: str, isa_row: str
) -> None:
    """The same bits at every thread count and within any workspace: fewer channels at a time, not fewer tiles."""
    x, w, _, dy, options = operands(name, winograd, dtype, reals)
    found = weight_gradient(dy, x, w, winograd, **options)
    for threads in THREADS:
        for most in (None, 1, 300_000):
            with fastconv.threads(threads):
                again = weight_gradient(dy, x, w, winograd, max_workspace=most, **options)
            assert again.tobytes() == found.tobytes()
    expected = reference.conv_backward(dy, x, w, **options)[1]
    trusted(expected)
    scale = reference.conv_backward(abs(dy), abs(x), abs(w), **options)[1]
    assert_close(found, expected, np.maximum(scale, scale.mean()), f"{winograd}_dw")


def test_weight_gradient_of_a_depth(winograd: str, isa_row: str) -> None:
    g = rng(1)
    r = KINDS[winograd][1]
    x, w = reals(g, (2, 9, 3, 8, 9), "float64"), reals(g, (10, 9, 1, r, r), "float64")
    dy = reals(g, (2, 10, 3, 8, 9), "float64")
    options = {"padding": (0, r // 2, r // 2)}
    dw = fastconv.conv3d_backward(dy, x, w, algo=winograd, **options)[1]
    scale = reference.conv_backward(abs(dy), abs(x), abs(w), **options)[1]
    expected = reference.conv_backward(dy, x, w, **options)[1]
    assert_close(dw, expected, scale, f"{winograd}_dw")


def test_which_names_are_for_the_weight_gradient(winograd: str, isa_row: str) -> None:
    """It has the Winograd rows of the convolution; every other name, "linear" apart, pins the direct kernel."""
    x, w, _, dy, options = operands("tails", winograd, "float32", reals)
    direct = weight_gradient(dy, x, w, "direct", **options)
    for name in ("pixel", "im2col"):
        assert np.array_equal(weight_gradient(dy, x, w, name, **options), direct)
    assert not np.array_equal(weight_gradient(dy, x, w, winograd, **options), direct)
    with pytest.raises(ValueError, match=rf"algo: '{winograd}' .* the stride must be 1"):
        weight_gradient(dy[..., ::2, ::2], x, w, winograd, stride=2, **options)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weight_gradient_of_values_that_are_not_finite(
    value: float, winograd: str, isa_row: str
) -> None:
    """Only the tap that meets the corner pixel, and only of its channel."""
    x, w, _, dy, options = operands("whole", winograd, "float32", reals)
    x[0, 3, 0, 0] = value
    dw = weight_gradient(dy, x, w, winograd, **options)
    reached = np.zeros(w.shape, bool)
    reached[:, 3, 0, 0] = True
    assert np.array_equal(np.isfinite(dw), ~reached)
    assert np.array_equal(dw, weight_gradient(dy, x, w, "direct", **options), equal_nan=True)


@pytest.mark.parametrize("what", ["conv2d", "conv2d_dx", "conv2d_dw"])
def test_workspace_of_wide_dilated_maps(what: str, winograd: str, isa_row: str) -> None:
    """The weight gradient takes thousands of tiles at a time, but not their pixels."""
    r = KINDS[winograd][1]
    options = {"padding": (r // 2, 16 * (r - 1)), "dilation": (1, 32)}
    found = fastconv.explain(what, (1, 8, 32, 270_000), (8, 8, r, r), algo=winograd, **options)
    assert 0 < found.workspace <= 8 << 20


@pytest.mark.parametrize("full", [False, True], ids=["same", "full"])
@pytest.mark.parametrize("data", ["normal", "relu"])
@pytest.mark.parametrize(
    ("algo", "images", "size"),
    [
        *(("winograd_4_3", n, size) for n, size in ((16, 5), (8, 7), (2, 14), (1, 28), (1, 56))),
        *(("winograd_2_3", n, size) for n, size in ((6, 3), (2, 5), (1, 7), (1, 28))),
        *(("winograd_2_5", n, size) for n, size in ((4, 14), (1, 27), (1, 28), (1, 56))),
    ],
)
def test_the_promise_of_the_weight_gradient(
    algo: str, images: int, size: int, data: str, full: bool, isa_row: str
) -> None:
    """From the fewest terms that the automatic choice takes on: rms error at most twice that of a multiply-add chain.

    With full padding the terms are no more than the pixels of x.
    """
    r = KINDS[algo][1]
    pad = r - 1 if full else r // 2
    least, smallest = algorithms.WEIGHT_GRADIENT_LEAST[KINDS[algo]]
    assert images * size**2 >= least
    assert size >= smallest
    g = rng(5)
    out = size + 2 * pad - r + 1
    x, dy = (reals(g, (images, 20, n, n), "float32") for n in (size, out))
    x = np.maximum(x, 0) if data == "relu" else x
    w = np.zeros((20, 20, r, r), np.float32)
    exact = reference.conv_backward(dy, x, w, padding=pad)[1]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    chained = np.zeros_like(w)
    for n, i, j in np.ndindex(images, out, out):
        factor = dy[n, :, i, j].astype(np.float64)[:, None, None, None]
        chained = (chained + factor * padded[n, :, i : i + r, j : j + r]).astype(np.float32)
    dw = weight_gradient(dy, x, w, algo, padding=pad)
    errors = [np.sqrt(((a - exact) ** 2).mean()) for a in (dw, chained)]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("name", ["tails", "phases-of-many-sizes"])
@pytest.mark.parametrize("activation", [None, "relu", "tanh", "sigmoid"])
def test_epilogue(
    activation: str | None, name: str, winograd: str, dtype: str, isa_row: str
) -> None:
    x, w, b, dy, options = operands(name, winograd, dtype, reals)
    options = {**options, "residual": dy}
    y = fastconv.conv2d(x, w, b, activation=activation, algo=winograd, **options)
    scale = reference.abs_conv(x, w, b, **options)
    assert_close(y, reference.conv(x, w, b, activation=activation, **options), scale, winograd)


@pytest.mark.parametrize("name", ["small-maps", "deep"])
def test_weights_packed_by_the_tasks(name: str, winograd: str, dtype: str, isa_row: str) -> None:
    """Where all tiles are one block: the bits of weights packed beforehand, for want of workspace or by `prepare_conv2d`."""
    x, w, b, _, options = operands(name, winograd, dtype, reals)
    x = x[:1]
    y = fastconv.conv2d(x, w, b, algo=winograd, **options)
    prepared = fastconv.prepare_conv2d(w, b, algo=winograd, **options)
    assert np.array_equal(prepared(x), y)
    for most in (1, 100_000, 1_000_000):
        for threads in THREADS:
            with fastconv.threads(threads):
                again = fastconv.conv2d(x, w, b, algo=winograd, max_workspace=most, **options)
            assert np.array_equal(again, y)


def test_a_depth_of_one(winograd: str, isa_row: str) -> None:
    r = KINDS[winograd][1]
    g = rng(1)
    x, w = reals(g, (2, 9, 3, 8, 9), "float64"), reals(g, (10, 9, 1, r, r), "float64")
    options = {"padding": (0, 1, 2)}
    y = fastconv.conv3d(x, w, algo=winograd, **options)
    assert_close(y, reference.conv(x, w, **options), reference.abs_conv(x, w, **options), winograd)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 2e38])
def test_values_that_are_not_finite(value: float, winograd: str, isa_row: str) -> None:
    """An infinity reaches the outputs of its own window and no others: the direct kernel's bits."""
    x, w, b, dy, options = operands("tails", winograd, "float32", reals)
    x[1, 2, 3, 7] = dy[0, 3, 2, 1] = value
    y = fastconv.conv2d(x, w, b, algo=winograd, **options)
    assert not np.isfinite(y).all() or abs(value) < np.inf
    assert np.isfinite(y).mean() > 0.9
    np.testing.assert_array_equal(y, fastconv.conv2d(x, w, b, algo="direct", **options))
    found = fastconv.conv2d_backward(dy, x, w, algo=winograd, **options)
    expected = fastconv.conv2d_backward(dy, x, w, algo="direct", **options)
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, e)
    w[0, 0, 1, 1] = value
    y = fastconv.conv2d(reals(rng(2), x.shape, "float32"), w, b, algo=winograd, **options)
    assert np.isfinite(y[:, 1:]).all()


def test_what_it_cannot_run() -> None:
    x = np.ones((1, 4, 9, 9))
    with pytest.raises(ValueError, match=r"algo: 'winograd_4_3' .* the kernel is not 3x3"):
        fastconv.conv2d(x, np.ones((4, 4, 5, 5)), algo="winograd_4_3")
    for options, message in (
        ({"stride": 2}, "the stride must be 1"),
        ({"dilation": (1, 4)}, "the dilation is more than 32 or than the pixels along w"),
        ({"dilation": (10, 1), "padding": 20}, "the dilation is more than 32 .* along h"),
        ({"dilation": (33, 1), "padding": (66, 0)}, "the dilation is more than 32 .* along h"),
    ):
        for what in ("conv2d", "conv2d_dx", "conv2d_dw"):  # no pass can what another cannot
            with pytest.raises(ValueError, match=message):
                fastconv.explain(what, x.shape, (4, 4, 3, 3), algo="winograd_2_3", **options)


def test_a_map_without_pixels(winograd: str) -> None:
    """Padding alone gives outputs, but no phase of the input gradient has one."""
    x, w = np.ones((1, 8, 0, 9)), np.ones((8, 8, *(KINDS[winograd][1],) * 2))
    y = fastconv.conv2d(x, w, padding=4, algo=winograd)
    dx, dw, _ = fastconv.conv2d_backward(y, x, w, padding=4, algo=winograd)
    assert dx.shape == x.shape
    assert not y.any()
    assert not dw.any()


def test_workspace(winograd: str) -> None:
    for channels in (64, 2048):
        r = KINDS[winograd][1]
        for dtype in ("float32", "float64"):
            found = fastconv.explain(
                "conv2d", (8, channels, 112, 112), (channels, channels, r, r), algo=winograd, dtype=dtype
            )  # fmt: skip
            assert 0 < found.workspace <= 64 << 20


def test_workspace_of_the_weight_gradient(winograd: str) -> None:
    r = KINDS[winograd][1]
    for channels in (1, 64, 2048):
        w = (channels, channels, r, r)
        for dtype in ("float32", "float64"):
            found = fastconv.explain(
                "conv2d_dw", (8, channels, 112, 112), w, algo=winograd, dtype=dtype
            )
            assert 0 < found.workspace <= 64 << 20


def chain(x: Array, w: Array) -> Array:
    """The sum over (channel, tap) as one float32 multiply-add chain, no padding; x is one image."""
    r, (height, width) = w.shape[-1], x.shape[1:]
    rows, cols = height - r + 1, width - r + 1
    y = np.zeros((len(w), rows, cols), np.float32)
    for c in range(len(x)):
        for i in range(r):
            for j in range(r):
                factor = w[:, c, i, j].astype(np.float64)[:, None, None]
                y = (y + factor * x[c, i : i + rows, j : j + cols]).astype(np.float32)
    return y


@pytest.mark.parametrize("full", [False, True], ids=["same", "full"])
@pytest.mark.parametrize("data", ["normal", "relu"])
@pytest.mark.parametrize(
    ("algo", "size", "channels"),
    [
        (algo, size, channels)
        for algo, kind in KINDS.items()
        for size, channels in (*algorithms.WINOGRAD_LEAST[kind].items(), (16, 128))
    ],
)
def test_the_promise(
    algo: str, size: int, channels: int, data: str, full: bool, isa_row: str
) -> None:
    """From the fewest channels on with which the automatic choice takes a map: rms error at most twice that of a chain.

    Every phase of a dilated map is such a map. Full padding is that of the input gradient of an unpadded convolution.
    """
    g = rng(5)
    r = KINDS[algo][1]
    pad = r - 1 if full else r // 2
    sums = np.zeros(2)
    for dilation in (1, 3):
        x = reals(g, (channels, size * dilation, size * dilation), "float32")
        x = np.maximum(x, 0) if data == "relu" else x
        w = reals(g, (64 // size + 16, channels, r, r), "float32")
        options = {"padding": pad * dilation, "dilation": dilation}
        exact = reference.conv(x[None], w, **options)[0]
        y = fastconv.conv2d(x[None], w, algo=algo, **options)[0]
        chained = np.empty_like(y)
        for i, j in np.ndindex(dilation, dilation):
            phase = x[:, i::dilation, j::dilation]
            chained[:, i::dilation, j::dilation] = chain(
                np.pad(phase, ((0, 0), (pad, pad), (pad, pad))), w
            )
        sums += [((a - exact) ** 2).sum() for a in (y, chained)]
    assert sums[0] <= 4 * sums[1]


@pytest.mark.parametrize(
    ("x", "w", "options", "reason"),
    [
        ((1, 63, 16, 16), (9, 63, 3, 3), {}, "fewer than 64 channels"),
        ((1, 56, 4, 16), (9, 56, 3, 3), {}, "fewer than 112 channels"),
        ((1, 56, 16, 14), (9, 56, 3, 3), {"dilation": (1, 3)}, "fewer than 112 channels"),
        ((1, 999, 3, 16), (9, 999, 5, 5), {}, "maps of less than 4x4"),
    ],
)
def test_what_it_leaves_to_others(x: Any, w: Any, options: Any, reason: str, isa_row: str) -> None:
    padding = tuple(w[2] // 2 * d for d in options.get("dilation", (1, 1)))
    name = "winograd_2_5" if w[2] == 5 else "winograd_4_3"
    found = fastconv.explain("conv2d", x, w, padding=padding, **options)
    assert reason in str(found)
    assert found.algorithm != name


def test_the_smaller_of_input_and_output_counts(isa_row: str) -> None:
    """The terms of an unpadded convolution's input gradient are those of dy; of a fully padded one's weight gradient, of x."""
    found = fastconv.explain("conv2d_dx", (1, 64, 13, 13), (64, 64, 3, 3))
    assert "fewer than 96 channels" in str(found)
    found = fastconv.explain("conv2d_dw", (8, 56, 5, 5), (56, 56, 3, 3), padding=2)
    assert "fewer than 392 terms" in str(found)


@pytest.mark.usefixtures("avx2_row")
def test_choice() -> None:
    """Many tiles: F(4, 3); few tiles: F(2, 3), whose weights are smaller; few tiles or channels: neither."""
    for x, w, expected in (
        ((1, 64, 56, 56), (64, 64, 3, 3), "winograd_4_3"),
        ((1, 256, 14, 14), (256, 256, 3, 3), "winograd_2_3"),
        ((8, 32, 28, 28), (32, 32, 3, 3), "winograd_2_3"),
        ((8, 32, 28, 28), (96, 32, 5, 5), "winograd_2_5"),
        ((1, 96, 4, 4), (96, 96, 3, 3), "direct"),
        ((4, 12, 28, 28), (32, 12, 3, 3), "direct"),
    ):
        assert fastconv.explain("conv2d", x, w, padding=w[2] // 2).algorithm == expected


@pytest.mark.usefixtures("avx2_row")
def test_choice_of_the_weight_gradient() -> None:
    for x, w, expected in (
        ((1, 64, 56, 56), (64, 64, 3, 3), "winograd_4_3"),
        ((4, 256, 14, 14), (256, 256, 3, 3), "winograd_4_3"),
        ((1, 256, 14, 14), (256, 256, 3, 3), "winograd_2_3"),  # the promise
        ((128, 256, 2, 2), (256, 256, 3, 3), "direct"),  # likewise
        ((8, 4, 28, 28), (3, 4, 3, 3), "direct"),
        ((8, 64, 28, 28), (64, 64, 5, 5), "winograd_2_5"),
        ((8, 64, 7, 7), (64, 64, 5, 5), "direct"),  # likewise
        ((8, 16, 5, 5), (120, 16, 5, 5), "linear"),
    ):
        padding = 0 if expected == "linear" else w[2] // 2
        assert fastconv.explain("conv2d_dw", x, w, padding=padding).algorithm == expected
