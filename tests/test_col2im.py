# SPDX-License-Identifier: BSD-3-Clause
"""Columns by transposition, and the input gradient as a product and its fold: large strides, and kernels as large as the map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv import algorithms, costs, reference
from fastconv.kernels import isa
from fastconv.problem import conv_problem
from tests import data
from tests.conftest import THREADS

Shape = tuple[int, ...]
FORWARD = {1: fastconv.conv1d, 2: fastconv.conv2d, 3: fastconv.conv3d}
BACKWARD = {1: fastconv.conv1d_backward, 2: fastconv.conv2d_backward, 3: fastconv.conv3d_backward}

# x, w, options: patches, overlapping ones, gaps, padding that cuts them, and more taps than are summed at a time; stride 1 on
# maps of few pixels, one and five planes, more rows than are folded at a time, within a plane and over several
PROBLEMS: dict[str, tuple[Shape, Shape, dict[str, Any]]] = {
    "patches": ((3, 3, 48, 64), (19, 3, 16, 16), {"stride": 16}),
    "small patches": ((2, 5, 23, 41), (7, 5, 4, 4), {"stride": 4}),
    "overlapping": ((2, 2, 37, 45), (9, 2, 11, 11), {"stride": 4, "padding": 2}),
    "gaps": ((2, 3, 29, 50), (5, 3, 2, 3), {"stride": (3, 7)}),
    "padded": ((2, 3, 20, 31), (6, 3, 9, 9), {"stride": 5, "padding": 8}),
    "dilated": ((1, 4, 25, 43), (5, 4, 3, 3), {"stride": 3, "padding": 2, "dilation": 2}),
    "grouped": ((2, 6, 22, 34), (8, 3, 5, 9), {"stride": (2, 8), "groups": 2, "padding": 1}),
    "spectrum": ((3, 1, 1500), (33, 1, 400), {"stride": 160}),
    "many taps": ((2, 2, 40, 40), (5, 2, 20, 20), {"stride": 10}),
    "small map": ((3, 6, 14, 14), (16, 6, 5, 5), {}),
    "smaller than its kernel": ((2, 1, 3, 5), (7, 1, 5, 7), {"padding": (2, 3)}),
    "wide": ((2, 5, 9, 61), (4, 5, 3, 11), {"padding": (0, 5), "dilation": (2, 3)}),
    "blocks": ((1, 20, 40, 40), (5, 20, 5, 5), {}),
    "blocks over planes": ((1, 8, 6, 12, 40), (3, 8, 2, 3, 7), {}),
    "many terms": ((1, 3, 8, 9), (300, 3, 3, 3), {}),
    "volume": ((2, 2, 9, 16, 21), (4, 2, 2, 4, 5), {"stride": (2, 4, 3)}),
}


@pytest.fixture(params=PROBLEMS)
def operands(request: pytest.FixtureRequest, dtype: str) -> Any:
    """rank, x, w, dy, options: small integers, whose sums are exact."""
    x_shape, w_shape, options = PROBLEMS[request.param]
    made = data.rng(21)
    x, w = data.integers(made, x_shape, dtype), data.integers(made, w_shape, dtype)
    dy = data.integers(made, reference.conv(x, w, **options).shape, dtype)
    return len(x_shape) - 2, x, w, dy, options


@pytest.mark.parametrize("algo", ["auto", "im2col", "direct", "pixel"])
def test_forward(operands: Any, algo: str, isa_row: str) -> None:
    rank, x, w, _, options = operands
    assert_array_equal(
        FORWARD[rank](x, w, algo=algo, **options), reference.conv(x, w, **options), isa_row
    )


@pytest.mark.parametrize("algo", ["auto", "col2im"])
def test_gradients(operands: Any, algo: str, isa_row: str) -> None:
    rank, x, w, dy, options = operands
    dx, dw, db = BACKWARD[rank](dy, x, w, algo=algo, **options)
    expected = reference.conv_backward(dy, x, w, **options)
    assert_array_equal(dx, expected[0], isa_row)
    assert_array_equal(db, expected[2], isa_row)
    if algo != "auto":  # which may take Winograd for the weights
        assert_array_equal(dw, expected[1], isa_row)


@pytest.mark.parametrize("limit", [1, 3000, 100_000])
def test_some_channels_at_a_time(operands: Any, limit: int) -> None:
    rank, x, w, dy, options = operands
    found = BACKWARD[rank](dy, x, w, algo="col2im", max_workspace=limit, **options)[0]
    assert_array_equal(found, reference.conv_backward(dy, x, w, **options)[0])


@pytest.mark.parametrize("name", PROBLEMS)
def test_bits(name: str, dtype: str) -> None:
    """Neither the threads nor the limit show."""
    x_shape, w_shape, options = PROBLEMS[name]
    rank, made = len(x_shape) - 2, data.rng(22)
    x, w = data.reals(made, x_shape, dtype), data.reals(made, w_shape, dtype)
    dy = data.reals(made, FORWARD[rank](x, w, **options).shape, dtype)

    def results(threads: int, limit: int | None) -> list[bytes]:
        forced: dict[str, Any] = {"max_workspace": limit, **options}
        with fastconv.threads(threads):
            y = FORWARD[rank](x, w, algo="im2col", **forced)
            dx = BACKWARD[rank](dy, x, w, algo="col2im", needs=(True, False, False), **forced)[0]
        return [y.tobytes(), dx.tobytes()]

    expected = results(1, None)
    for threads in THREADS:
        for limit in (None, 5000):
            assert results(threads, limit) == expected


def test_adjoint(operands: Any) -> None:
    """<dy, conv(x)> = <dx, x>, exactly on integers."""
    rank, x, w, dy, options = operands
    dx = BACKWARD[rank](dy, x, w, algo="col2im", needs=(True, False, False), **options)[0]
    y = FORWARD[rank](x, w, algo="im2col", **options)
    assert np.vdot(dy.astype("f8"), y.astype("f8")) == np.vdot(dx.astype("f8"), x.astype("f8"))


def test_many_outputs(dtype: str) -> None:
    """More than a task of im2col takes at a time, with partial sums."""
    made = data.rng(23)
    x, w = data.integers(made, (2, 300, 3, 7), dtype), data.integers(made, (2300, 300, 1, 1), dtype)
    b = data.integers(made, (2300,), dtype)
    for threads in (1, 7):
        with fastconv.threads(threads):
            y = fastconv.conv2d(x, w, b, algo="im2col", activation="relu")
        assert_array_equal(y, np.maximum(reference.conv(x, w, b), 0))


@pytest.mark.parametrize("size", [(1, 3), (30, 37), (48, 64), (7, 61)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(16, 16, 0), (9, 4, 3), (3, 8, 1)])
def test_unfold_and_fold(
    size: tuple[int, int], kernel: int, stride: int, padding: int, dtype: str, isa_row: str
) -> None:
    """Few planes on many threads: each task folds some rows."""
    made = data.rng(24)
    how: dict[str, Any] = {"stride": stride, "padding": padding}
    x = data.integers(made, (1, 2, *(n + kernel - 1 for n in size)), dtype)
    expected = reference.unfold(x, kernel, **how)
    columns = data.integers(made, expected.shape, dtype)
    for threads in THREADS:
        with fastconv.threads(threads):
            assert_array_equal(fastconv.unfold(x, kernel, **how), expected, isa_row)
            found = fastconv.fold(columns, x.shape[2:], kernel, **how)
        assert_array_equal(found, reference.fold(columns, x.shape[2:], kernel, **how), isa_row)


def test_it_is_for_input_gradients() -> None:
    x, w = np.ones((1, 1, 8, 8), "f4"), np.ones((2, 1, 4, 4), "f4")
    with pytest.raises(ValueError, match=r"'col2im' cannot run this problem: it computes input"):
        fastconv.conv2d(x, w, stride=4, algo="col2im")
    with pytest.raises(ValueError, match="the kernel has one tap"):
        fastconv.conv2d_backward(x, x, np.ones((1, 1, 1, 1), "f4"), algo="col2im")
    problem = conv_problem(
        "float32", (1, 1, 1 << 14, 1 << 14), (1, 1, 3, 3), 4, 1, 1, 1, "zeros", 2
    )
    with pytest.raises(ValueError, match=r"columns of one channel would take more than 32 MiB"):
        algorithms.plan(problem, "col2im", "dx")
    assert "col2im" not in algorithms.plan(problem, "auto", "dx").expected
    problem = conv_problem("float32", (1, 1, 64, 64), (1600, 1, 64, 64), 1, 0, 1, 1, "zeros", 2)
    with pytest.raises(ValueError, match=r"weights of one channel take more than 24 MiB"):
        algorithms.plan(problem, "col2im", "dx")


def test_choice() -> None:
    """Patches of 16x16 have 256 phases of one tap; 3x3 kernels with stride 1 have nine columns a pixel, which gain nothing but
    where the correlation with dy would multiply padding: 5x5 on 14x14 has half as many products."""
    if isa.current() == "scalar":
        pytest.skip("the costs are those of vector rows")
    patches = fastconv.explain("conv2d_dx", (1, 3, 224, 224), (768, 3, 16, 16), stride=16)
    assert patches.algorithm == "col2im"
    assert 0 < patches.workspace <= 64 << 20
    small = fastconv.explain("conv2d_dx", (4, 6, 14, 14), (16, 6, 5, 5))
    assert small.algorithm == "col2im"
    plain = fastconv.explain("conv2d_dx", (1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    assert plain.candidates["col2im"] > plain.candidates[plain.algorithm]


@pytest.mark.parametrize("what", costs.PASSES)
def test_transposed_columns_are_counted(what: costs.Pass) -> None:
    """Of im2col where the taps of a pixel fill vectors, of col2im where a stride leaves gaps."""
    for kernel, stride in ((16, 16), (3, 1)):
        p = conv_problem(
            "float32", (1, 3, 64, 64), (32, 3, kernel, kernel), stride, 0, 1, 1, "zeros", 2
        )
        shape = costs.shape_of(p, what)
        name = {"forward": "im2col", "dx": "col2im", "dw": "direct"}[what]
        counted = costs.count(name, shape)
        assert ("transposes" in counted) == (stride > 2 or what == "dw")
