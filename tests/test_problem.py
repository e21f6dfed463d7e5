# SPDX-License-Identifier: BSD-3-Clause
"""Problems: sizes, padding in every form, lattices, and overflow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv import reference
from fastconv.problem import (
    Conv,
    adaptive_pool_problem,
    conv_problem,
    finite,
    integer,
    integers,
    number,
    pool_output_size,
    pool_problem,
    resolve_padding,
    source_map,
)


@pytest.mark.parametrize("value", [1, np.int32(1), np.uint8(1), np.array(1)])
def test_integer_accepts_every_integer(value: object) -> None:
    assert integer("n", value) == 1


@pytest.mark.parametrize("value", [True, np.True_, 1.0, "1", None, np.nan, [1], np.array([1])])
def test_integer_refuses_the_rest(value: object) -> None:
    with pytest.raises(TypeError, match=r"^n: "):
        integer("n", value)


@pytest.mark.parametrize("value", [2**62 + 1, 2**63, -(2**63), 10**30])
def test_integer_refuses_what_overflows(value: int) -> None:
    with pytest.raises(ValueError, match=r"^n: .* too large"):
        integer("n", value)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.filterwarnings("error")
def test_numbers_of_every_float_have_the_same_limits(kind: type[np.floating]) -> None:
    """Limits that a short float cannot hold are not rounded to infinity, or to 1."""
    assert finite("n", kind(0.5), 0) == 0.5
    assert number("n", kind(0.5), 0, np.nextafter(1, 0)) == 0.5
    for wrong in (kind(np.inf), kind(-np.inf), kind(np.nan)):
        with pytest.raises(ValueError, match=r"^n: "):
            finite("n", wrong)
    with pytest.raises(ValueError, match=r"^n: "):
        number("n", kind(1), 0, np.nextafter(1, 0))


def test_integers() -> None:
    assert integers("k", 3, 2) == (3, 3)
    assert integers("k", [3, 4], 2) == (3, 4)
    assert integers("k", np.array([3, 4]), 2) == (3, 4)
    with pytest.raises(ValueError, match="k: expected an integer or 2 integers"):
        integers("k", (1, 2, 3), 2)
    with pytest.raises(TypeError, match="k: "):
        integers("k", "33", 2)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 6),
    stride=st.integers(1, 5),
    dilation=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 3, "same", "valid", [(1, 2)], (2,)]),
)
def test_padding_like_the_reference(
    size: int, kernel: int, stride: int, dilation: int, padding: object
) -> None:
    ours = resolve_padding(padding, (size,), (kernel,), (stride,), (dilation,))
    theirs = reference.resolve_padding(padding, (size,), (kernel,), (stride,), (dilation,))
    assert ours == tuple(tuple(int(v) for v in pair) for pair in theirs)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_source_map_is_numpy_pad(mode: str, size: int) -> None:
    low = high = {"reflect": size - 1, "circular": size}.get(mode, 5)
    words = {"replicate": "edge", "circular": "wrap"}
    cells = np.pad(np.arange(1, size + 1), (low, high), mode=words.get(mode, mode))  # type: ignore[call-overload]
    assert np.array_equal(source_map(size, -low, size + low + high, mode) + 1, cells)


def conv(sizes: tuple[int, ...], kernel: tuple[int, ...], **options: object) -> Conv:
    rest = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    return conv_problem(
        "float32", (2, 3, *sizes), (4, 3, *kernel), *rest.values(), "zeros", len(sizes)
    )


def test_conv_counts() -> None:
    p = conv((10, 12), (3, 3), stride=2, padding=1)
    assert p.out == (1, 5, 6)
    assert p.y_shape == (2, 4, 1, 5, 6)
    assert p.flops == 2 * 2 * 4 * 30 * 27
    assert p.bytes == 4 * (2 * 3 * 120 + 4 * 27 + 2 * 4 * 30)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 20),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 3),
)
def test_input_gradient_lattices_partition_the_input(
    size: int, kernel: int, stride: int, dilation: int, padding: int
) -> None:
    """Each input cell is in at most one lattice, in exactly one where phases_cover_input says so, and every product of the
    forward convolution appears exactly once."""
    if dilation * (kernel - 1) + 1 > size + 2 * padding:
        return
    p = conv((size,), (kernel,), stride=stride, dilation=dilation, padding=padding)
    cells: list[int] = []
    products = set()
    for spec in p.input_gradient_lattices():
        axis = spec.axes[2]
        for j in range(axis.out):
            cell = axis.y_start + j * axis.y_step
            cells.append(cell)
            for tap, offset in zip(spec.tap_index, axis.offsets, strict=True):
                o = j * axis.step + offset + axis.inner_shift
                if 0 <= o < axis.size:
                    products.add((cell, int(tap), int(o)))
    assert len(cells) == len(set(cells))
    assert set(cells) <= set(range(size))
    if p.phases_cover_input:
        assert len(cells) == size
    expected = {
        (o * stride - padding + k * dilation, k, o) for o in range(p.out[2]) for k in range(kernel)
    }
    assert products == {e for e in expected if 0 <= e[0] < size}


@pytest.mark.parametrize("huge", [2**30, 2**40, 2**62])
def test_huge_padding(huge: int) -> None:
    """Never a wrapped size."""
    with pytest.raises(ValueError, match="padding"):
        conv((4, 4), (3, 3), padding=huge)


def test_huge_dilation_and_stride() -> None:
    with pytest.raises(ValueError, match="dilation"):
        conv((4, 4), (3, 3), dilation=2**61)
    assert conv((4, 4), (3, 3), stride=2**61).out == (1, 1, 1)


def test_pool_output_size_is_torchs() -> None:
    assert pool_output_size(7, 3, 2, 0, 1, False) == 3
    assert pool_output_size(8, 3, 2, 0, 1, True) == 4
    assert pool_output_size(4, 1, 3, 0, 1, True) == 2
    assert (
        pool_output_size(3, 2, 2, 1, 1, True) == 2
    )  # the window that would begin in the right padding is dropped


def test_windows() -> None:
    p = pool_problem((1, 1, 5), 1, 3, 2, 1, 1, False)
    assert [a.tolist() for a in p.windows(2)] == [[0, 1, 3], [2, 4, 5]]
    assert [p.counts(axis).tolist() for axis in range(3)] == [[1], [1], [2, 3, 2]]
    assert [p.padded_counts(axis).tolist() for axis in range(3)] == [[1], [1], [3, 3, 3]]
    q = adaptive_pool_problem((1, 1, 5), 1, 3)
    assert [a.tolist() for a in q.windows(2)] == [[0, 1, 3], [2, 4, 5]]
