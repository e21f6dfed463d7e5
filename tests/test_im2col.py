# SPDX-License-Identifier: BSD-3-Clause
"""im2col: tiles that span rows, strips and images, columns read in place, and taps on padding that are left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv import reference
from tests import data
from tests.conftest import THREADS

Shape = tuple[int, ...]
FORWARD = {1: fastconv.conv1d, 2: fastconv.conv2d, 3: fastconv.conv3d}
BACKWARD = {1: fastconv.conv1d_backward, 2: fastconv.conv2d_backward, 3: fastconv.conv3d_backward}

# x, w, options: dilation by a third of the map, more terms of a tap than are summed at a time, strips along one axis or of
# different taps, pixels of which all taps lie on padding, two sorts of padding that are not left out, volumes, groups; and so
# many outputs that the terms of the input gradient are as many
DILATED: dict[str, tuple[Shape, Shape, dict[str, Any]]] = {
    "third": ((2, 130, 33, 33), (20, 130, 3, 3), {"padding": 12, "dilation": 12}),
    "many channels": ((1, 300, 24, 22), (17, 300, 3, 3), {"padding": 8, "dilation": 8}),
    "columns": ((3, 128, 20, 40), (5, 128, 1, 3), {"padding": (0, 18), "dilation": 18}),
    "rows": ((2, 140, 40, 12), (17, 140, 3, 1), {"padding": (15, 0), "dilation": 15}),
    "line": ((2, 128, 400), (15, 128, 3), {"padding": 150, "dilation": 150}),
    "stride": ((2, 129, 33, 33), (16, 129, 3, 3), {"padding": 12, "dilation": 12, "stride": 2}),
    "five": ((1, 130, 29, 29), (9, 130, 5, 5), {"padding": 16, "dilation": 8}),
    "beyond": ((2, 128, 16, 16), (14, 128, 3, 3), {"padding": 30, "dilation": 16}),
    "uneven": ((1, 128, 30, 30), (7, 128, 3, 3), {"padding": ((1, 18), (17, 2)), "dilation": 9}),
    "copied": (
        (1, 128, 20, 20),
        (3, 128, 3, 3),
        {"padding": 9, "dilation": 9, "padding_mode": "reflect"},
    ),
    "volume": ((1, 128, 9, 10, 11), (4, 128, 3, 3, 3), {"padding": 4, "dilation": 4}),
    "groups": ((1, 256, 30, 30), (6, 128, 3, 3), {"padding": 12, "dilation": 12, "groups": 2}),
    "gradient": ((1, 9, 30, 30), (130, 9, 3, 3), {"padding": 12, "dilation": 12}),
    "gradient, stride": (
        (2, 7, 33, 33),
        (129, 7, 3, 3),
        {"padding": 12, "dilation": 12, "stride": 2},
    ),
}
# maps that fill tiles, or of which tiles end within several, in one image or in many
POINTS: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((5, 20, 7, 7), (30, 20, 1, 1), {}),
    ((2, 300, 9, 9), (17, 300, 1, 1), {}),
    ((2, 270, 14, 14), (70, 270, 1, 1), {"stride": 2}),
    ((1, 7, 33, 33), (40, 7, 1, 1), {}),
    ((70, 9, 1, 1), (29, 9, 1, 1), {}),
    ((3, 260, 24), (330, 260, 1), {}),
]


def check(x_shape: Shape, w_shape: Shape, options: dict[str, Any], dtype: str, row: str) -> None:
    """Forward with all epilogues, prepared, and the input gradient, on small integers."""
    made, rank = data.rng(31), len(x_shape) - 2
    x, w = data.integers(made, x_shape, dtype), data.integers(made, w_shape, dtype)
    b = data.integers(made, w_shape[:1], dtype)
    y = reference.conv(x, w, **options)
    dy = data.integers(made, y.shape, dtype)
    assert_array_equal(FORWARD[rank](x, w, algo="im2col", **options), y, row)
    full = {"residual": dy, "activation": "relu", **options}
    expected = np.maximum(y + b.reshape(-1, *(1,) * rank) + dy, 0)
    assert_array_equal(FORWARD[rank](x, w, b, algo="im2col", **full), expected, row)
    if "padding_mode" not in options:
        dx = BACKWARD[rank](dy, x, w, algo="im2col", needs=(True, False, False), **options)[0]
        assert_array_equal(dx, reference.conv_backward(dy, x, w, **options)[0], row)


@pytest.mark.parametrize("name", DILATED)
def test_taps_on_padding(name: str, dtype: str, isa_row: str) -> None:
    check(*DILATED[name], dtype, isa_row)


@pytest.mark.parametrize("problem", POINTS, ids=str)
def test_points(problem: tuple[Shape, Shape, dict[str, Any]], dtype: str, isa_row: str) -> None:
    check(*problem, dtype, isa_row)


@pytest.mark.parametrize("name", ["third", "many channels", "stride"])
def test_bits(name: str, dtype: str) -> None:
    """Neither the threads nor the limit show, nor whether the weights were packed before, for another algorithm too."""
    x_shape, w_shape, options = DILATED[name]
    made = data.rng(32)
    x, w = data.reals(made, x_shape, dtype), data.reals(made, w_shape, dtype)
    expected = fastconv.conv2d(x, w, algo="im2col", **options)
    prepared = fastconv.prepare_conv2d(w, algo="im2col", **options)
    frozen = w.copy()
    frozen.flags.writeable = False
    fastconv.conv2d(x, frozen, algo="pixel", **options)
    for threads in THREADS:
        with fastconv.threads(threads):
            assert_array_equal(prepared(x), expected)
            assert_array_equal(fastconv.conv2d(x, frozen, algo="im2col", **options), expected)
            for limit in (1, 100_000):
                y = fastconv.conv2d(x, w, algo="im2col", max_workspace=limit, **options)
                assert_array_equal(y, expected)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_not_finite(value: float, isa_row: str) -> None:
    """Weights that are not finite meet the padding; pixels that are not reach no more outputs than their taps."""
    x_shape, w_shape, options = DILATED["third"]
    made = data.rng(33)
    x, w = data.integers(made, x_shape, "f4"), data.integers(made, w_shape, "f4")
    for array, at in ((w, (3, 5, 0, 2)), (x, (1, 7, 2, 31))):
        kept = array[at]
        array[at] = value
        with np.errstate(invalid="ignore"):
            expected = reference.conv(x, w, **options)
        assert_array_equal(fastconv.conv2d(x, w, algo="im2col", **options), expected, isa_row)
        array[at] = kept
