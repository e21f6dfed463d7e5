# SPDX-License-Identifier: BSD-3-Clause
"""Convolutions vectorised over images: batches of small maps, and the taps on padding that they leave out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv import costs, reference
from fastconv.kernels import isa
from fastconv.problem import conv_problem
from tests import data
from tests.conftest import THREADS

Shape = tuple[int, ...]
FORWARD = {1: fastconv.conv1d, 2: fastconv.conv2d, 3: fastconv.conv3d}
BACKWARD = {1: fastconv.conv1d_backward, 2: fastconv.conv2d_backward, 3: fastconv.conv3d_backward}
DX = {"needs": (True, False, False), "algo": "images"}

# x, w, options: batches of whole vectors and others, one output and more than a panel, more terms than are summed at a time;
# padding beyond the reach of some taps, or of all taps of some outputs; rows whose taps are one row, with and without a pair
PROBLEMS: dict[str, tuple[Shape, Shape, dict[str, Any]]] = {
    "unpadded": ((17, 6, 14, 14), (16, 6, 5, 5), {}),
    "one output": ((9, 3, 12, 11), (1, 3, 5, 5), {"padding": 2}),
    "one channel": ((33, 1, 12, 13), (6, 1, 5, 5), {"padding": 2}),
    "one image": ((1, 3, 5, 7), (4, 3, 3, 3), {"padding": 1}),
    "many terms": ((8, 40, 5, 6), (7, 40, 3, 3), {"padding": 1}),
    "wide padding": ((9, 2, 4, 5), (3, 2, 3, 3), {"padding": 6}),
    "wide padding, one output": ((9, 2, 4, 5), (1, 2, 3, 3), {"padding": 6}),
    "dilated": ((10, 3, 9, 8), (5, 3, 3, 3), {"padding": 4, "dilation": 4}),
    "smaller than its kernel": ((8, 2, 3, 2), (2, 2, 5, 5), {"padding": (2, 3)}),
    "grouped": ((8, 6, 7, 9), (8, 3, 3, 2), {"groups": 2, "padding": (0, 1)}),
    "line": ((19, 3, 40), (4, 3, 7), {"padding": 3}),
    "volume": ((9, 2, 4, 5, 6), (3, 2, 2, 3, 3), {"padding": 1}),
    "blocks": ((8, 1, 50, 40), (2, 1, 3, 3), {"padding": 1}),
}
STRIDED: dict[str, tuple[Shape, Shape, dict[str, Any]]] = {
    "stride": ((10, 4, 9, 13), (6, 2, 3, 2), {"stride": (2, 1), "padding": (1, 2), "groups": 2}),
    "reflect": ((9, 3, 9, 6), (5, 3, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
    "patches": ((8, 3, 12, 12), (7, 3, 4, 4), {"stride": 4}),
}


def operands(name: str, dtype: str, make: Any = data.integers) -> Any:
    """rank, x, w, dy, b, residual, options; small integers have exact sums."""
    x_shape, w_shape, options = {**PROBLEMS, **STRIDED}[name]
    made = data.rng(31)
    x, w, b = (make(made, shape, dtype) for shape in (x_shape, w_shape, w_shape[:1]))
    shape = FORWARD[len(x_shape) - 2](x, w, **options).shape
    return len(x_shape) - 2, x, w, make(made, shape, dtype), b, make(made, shape, dtype), options


@pytest.mark.parametrize("name", [*PROBLEMS, *STRIDED])
def test_forward(name: str, dtype: str, isa_row: str) -> None:
    rank, x, w, _, b, residual, options = operands(name, dtype)
    y = FORWARD[rank](x, w, b, residual=residual, activation="relu", algo="images", **options)
    expected = np.maximum(reference.conv(x, w, b, **options) + residual, 0)
    assert_array_equal(y, expected, isa_row)


@pytest.mark.parametrize("name", PROBLEMS)
def test_input_gradient(name: str, dtype: str, isa_row: str) -> None:
    rank, x, w, dy, _, _, options = operands(name, dtype)
    dx = BACKWARD[rank](dy, x, w, **DX, **options)[0]
    expected = reference.conv_backward(dy, x, w, needs=(True, False, False), **options)[0]
    assert_array_equal(dx, expected, isa_row)


@pytest.mark.parametrize("name", PROBLEMS)
def test_bits(name: str, dtype: str) -> None:
    """Neither the threads nor the limit show, nor how many images there are."""
    rank, x, w, dy, b, _, options = operands(name, dtype, data.reals)

    def results(threads: int, limit: int | None, images: int) -> list[bytes]:
        how = {"max_workspace": limit, **options}
        with fastconv.threads(threads):
            y = FORWARD[rank](x[:images], w, b, activation="tanh", algo="images", **how)
            dx = BACKWARD[rank](dy[:images], x[:images], w, **DX, **how)[0]
        return [y[0].tobytes(), dx[0].tobytes(), y[-1].tobytes(), dx[-1].tobytes()]

    expected = results(1, None, len(x))
    for threads in THREADS:
        for limit in (None, 5000):
            assert results(threads, limit, len(x)) == expected
    assert results(2, None, 1)[:2] == expected[:2]


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weights_that_are_not_finite_reach_the_padding(value: float, dtype: str) -> None:
    """Taps on padding are left out only where they add zeros; both outputs of the panel show it."""
    x, w = np.ones((8, 2, 4, 6), dtype), np.ones((2, 2, 3, 3), dtype)
    w[1, 1, 0, 0] = value
    with np.errstate(invalid="ignore"):
        y = fastconv.conv2d(x, w, padding=1, algo="images")
    assert np.isfinite(y[:, 0]).all()
    assert np.isnan(y[:, 1, 0]).all()
    assert np.isnan(y[:, 1, :, 0]).all()
    assert not np.isfinite(y[:, 1]).any()


def test_it_is_for_strides_of_one() -> None:
    x, w = np.ones((8, 1, 8, 8), "f4"), np.ones((2, 1, 4, 4), "f4")
    dy = fastconv.conv2d(x, w, stride=4, algo="images")
    with pytest.raises(ValueError, match="'images' cannot run this problem: an input gradient"):
        fastconv.conv2d_backward(dy, x, w, stride=4, algo="images")


@pytest.mark.usefixtures("avx2_row")
def test_choice() -> None:
    """The layers of LeNet-5, forward and backward, from a vector of images on."""
    for what in ("conv2d", "conv2d_dx"):
        for x, w, padding in (
            ((64, 1, 28, 28), (6, 1, 5, 5), 2),
            ((64, 6, 14, 14), (16, 6, 5, 5), 0),
        ):
            assert fastconv.explain(what, x, w, padding=padding).algorithm == "images"
            one = fastconv.explain(what, (1, *x[1:]), w, padding=padding)
            assert one.candidates["images"] > 2 * one.candidates[one.algorithm]


@pytest.mark.parametrize("name", [*PROBLEMS, *STRIDED])
@pytest.mark.parametrize("what", ["forward", "dx"])
@pytest.mark.parametrize("unit", [1, 2, 8])
def test_taps_on_padding_are_not_counted(name: str, what: costs.Pass, unit: int) -> None:
    if what == "dx" and name in STRIDED:
        return
    x_shape, w_shape, options = {**PROBLEMS, **STRIDED}[name]
    rank = len(x_shape) - 2
    how = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
    problem = conv_problem("float32", x_shape, w_shape, *{**how, **options}.values(), rank)
    shape = costs.shape_of(problem, what)
    axis = (problem.input_gradient_lattices()[0] if what == "dx" else problem.forward_lattice())[0][
        2
    ]
    reads = axis.offsets + axis.step * np.arange(axis.out)[:, np.newaxis]
    inside = (axis.inner_start <= reads) & (reads < axis.inner_stop)
    units = [inside[i : i + unit].any(0).sum() for i in range(0, axis.out, unit)]
    assert costs._real_taps(shape, 2, unit) == pytest.approx(np.mean(units))


def test_a_task_has_several_vectors(dtype: str) -> None:
    """Of more images than four vectors for each thread; the last one is not full."""
    lanes = isa.lanes(np.dtype(dtype).itemsize)
    made = data.rng(32)
    x = data.integers(made, (17 * lanes - (lanes > 1), 1, 5, 4), dtype)
    w = data.integers(made, (3, 1, 3, 3), dtype)
    for threads in THREADS:
        with fastconv.threads(threads):
            y = fastconv.conv2d(x, w, padding=1, algo="images")
        assert_array_equal(y, reference.conv(x, w, padding=1))
