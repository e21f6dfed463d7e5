# SPDX-License-Identifier: BSD-3-Clause
"""fastconv.signal against scipy.signal, and integers against sums of Python ints."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import signal as scipy_signal

from fastconv import signal

MODES = ("full", "valid", "same")
BOUNDARIES = ("fill", "wrap", "symm")
DTYPES = ("u1", "i2", "i8", "u8", "f4", "f8", "c8", "c16")
PAIR_2D = ("correlate2d", "convolve2d")
PAIR_ND = ("correlate", "convolve")
# Rounding of a sum of some dozen products of numbers near 1, a hundredfold below any wrong tap.
RTOL = {"f4": 1e-5, "c8": 1e-5}


@pytest.fixture
def rng():
    return np.random.default_rng(20240611)


def sample(rng, shape, dtype):
    """Every value distinct enough that a wrong tap shows."""
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 50, shape).astype(dtype)
    values = rng.uniform(0.5, 1.5, shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.uniform(0.5, 1.5, shape)
    return values.astype(dtype)


def assert_equals_scipy(name, in1, in2, *args, **options):
    got = getattr(signal, name)(in1, in2, *args, **options)
    want = getattr(scipy_signal, name)(in1, in2, *args, **options)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if got.dtype.kind in "iu":
        assert_array_equal(got, want)
    else:
        rtol = RTOL.get(got.dtype.str[1:], 1e-12)
        assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max(initial=1))


# ------------------------------------------------------------------------------ two dimensions


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "boundary"), list(itertools.product(MODES, BOUNDARIES)))
@pytest.mark.parametrize("name", PAIR_2D)
def test_modes_boundaries_and_dtypes(rng, name, mode, boundary, dtype):
    for kernel in ((3, 3), (2, 4), (1, 5), (4, 1), (5, 2)):
        in1, in2 = sample(rng, (7, 6), dtype), sample(rng, kernel, dtype)
        assert_equals_scipy(name, in1, in2, mode, boundary)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(PAIR_2D),
    shapes=st.tuples(*[st.integers(1, 9)] * 4),
    mode=st.sampled_from(("full", "same")),
    boundary=st.sampled_from(BOUNDARIES),
    fillvalue=st.sampled_from((0, 3, -2.5)),
    seed=st.integers(0, 2**16),
)
def test_any_shapes(name, shapes, mode, boundary, fillvalue, seed):
    rng = np.random.default_rng(seed)
    in1, in2 = rng.standard_normal(shapes[:2]), rng.standard_normal(shapes[2:])
    assert_equals_scipy(name, in1, in2, mode, boundary, fillvalue)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(PAIR_2D),
    small=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    more=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    swapped=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_valid_takes_either_array_as_the_larger(name, small, more, swapped, seed):
    rng = np.random.default_rng(seed)
    large = tuple(np.add(small, more))
    shapes = (small, large) if swapped else (large, small)
    assert_equals_scipy(name, *(rng.standard_normal(s) for s in shapes), "valid")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["full", "same"])
@pytest.mark.parametrize("name", PAIR_2D)
def test_fillvalue(rng, name, mode, dtype):
    in1, in2 = sample(rng, (4, 5), dtype), sample(rng, (2, 3), dtype)
    assert_equals_scipy(name, in1, in2, mode, fillvalue=7)
    assert_equals_scipy(name, in1, in2, mode, "fill", 2.75)
    plain = getattr(signal, name)(in1, in2, mode)
    assert not np.array_equal(getattr(signal, name)(in1, in2, mode, fillvalue=7), plain)


def test_complex_fillvalue_and_a_value_that_does_not_fit(rng):
    z = sample(rng, (4, 4), "c16")
    assert_equals_scipy("correlate2d", z, z[:2, :3], fillvalue=1 - 2j)
    for array, value in (
        (z.real, 1j),
        (np.ones((2, 2), "u1"), 300),
        (np.ones((2, 2), "u1"), 300.0),
        (np.ones((2, 2), "u1"), -1),
        (np.ones((2, 2), int), np.nan),
        (np.ones((2, 2), int), np.inf),
        (z.real, [1, 2]),
        (z.real, "x"),
    ):
        with pytest.raises(ValueError, match="fillvalue"):
            signal.convolve2d(array, array, fillvalue=value)


@pytest.mark.parametrize(
    "dtypes", [("u1", "i1"), ("i4", "f4"), ("i8", "u8"), ("f4", "c16"), ("?", "i2")]
)
@pytest.mark.parametrize("name", PAIR_2D + PAIR_ND)
def test_mixed_dtypes_promote(rng, name, dtypes):
    in1, in2 = sample(rng, (5, 4), "i8").astype(dtypes[0]), sample(rng, (3, 2), dtypes[1])
    assert_equals_scipy(name, in1, in2)


@pytest.mark.parametrize("boundary", ["pad", "circular", "symmetric"])
def test_other_names_of_the_boundaries(rng, boundary):
    x = sample(rng, (4, 4), "f8")
    assert_equals_scipy("convolve2d", x, x[:3, :2], "full", boundary)


def test_complex_correlation_conjugates_the_second_array(rng):
    small, large = sample(rng, (2, 3), "c16"), sample(rng, (4, 5), "c16")
    full = scipy_signal.correlate2d(small, large)
    assert_allclose(signal.correlate2d(small, large, "valid"), full[1:4, 2:5])
    assert_allclose(signal.correlate2d(small, large), full)


def test_kernels_larger_than_the_image_reach_around_it_more_than_once(rng):
    in1, in2 = sample(rng, (2, 3), "f8"), sample(rng, (9, 8), "f8")
    for boundary, mode in itertools.product(BOUNDARIES, ("full", "same")):
        assert_equals_scipy("convolve2d", in1, in2, mode, boundary)


def test_float16_is_kept():
    x = np.arange(12, dtype="f2").reshape(3, 4)
    y = signal.convolve2d(x, x[:2, :2], "valid")
    assert y.dtype == np.float16
    assert_array_equal(y, scipy_signal.convolve2d(x.astype(int), x[:2, :2].astype(int), "valid"))


def test_long_doubles_keep_their_digits():
    x = np.array([[1, np.finfo("g").eps]], "g")
    y = signal.convolve2d(x, np.ones((1, 2), "g"), "valid")
    assert y.dtype == np.dtype("g")
    assert y[0, 0] == 1 + x[0, 1] != 1


def test_strided_and_readonly_inputs(rng):
    x = sample(rng, (12, 9), "f8")
    x.flags.writeable = False
    for view in (x[::2, ::-1], x.T[1:], np.asfortranarray(x)):
        assert_equals_scipy("correlate2d", view, view[:3, :2], "same", "symm")


@pytest.mark.parametrize("dtype", [">i4", ">f4", ">f8", ">c16"])
def test_foreign_byte_order(rng, dtype):
    x = sample(rng, (4, 5), dtype)
    assert_equals_scipy("correlate2d", x, x[:2, :3])


def test_lists():
    assert_array_equal(signal.convolve2d([[1, 2]], [[1, 1]]), [[1, 3, 2]])


# ------------------------------------------------------------------------------------ integers


def exact_convolution(x, h):
    """Mode "full" in Python's integers."""
    z = np.zeros(tuple(np.add(x.shape, h.shape) - 1), object)
    for i, j in np.ndindex(h.shape):
        z[i : i + x.shape[0], j : j + x.shape[1]] += x.astype(object) * int(h[i, j])
    return z


@pytest.mark.parametrize("bits", [10, 26, 27, 29])
def test_large_integers_are_exact(rng, bits):
    """Up to 2^58 a product: float64 rounds these, int64 holds them."""
    x = rng.integers(-(2**bits), 2**bits, (6, 7)) | 1
    h = rng.integers(-(2**bits), 2**bits, (3, 2)) | 1
    want = exact_convolution(x, h)
    assert max(abs(v) for v in want.ravel()) < 2**63
    got = signal.convolve2d(x, h)
    assert got.dtype == np.int64
    assert_array_equal(got, want.astype(np.int64))
    assert_array_equal(signal.convolve(x, h), got)
    assert_array_equal(signal.correlate2d(x, h[::-1, ::-1]), got)
    if bits == 29:
        floats = signal.convolve2d(x.astype(float), h.astype(float))
        assert not np.array_equal(floats.astype(np.int64), got)


def test_large_negative_integers_alone():
    x = np.array([[np.iinfo(np.int64).min + 1, 1], [np.iinfo(np.int64).min, 1]])
    assert_array_equal(signal.convolve2d(x, [[1]]), x)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "u4", "i8", "u8"])
def test_overflow_wraps_around_like_numpy(rng, dtype):
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, (5, 5), dtype=dtype, endpoint=True)
    h = rng.integers(info.min, info.max, (2, 3), dtype=dtype, endpoint=True)
    modulus = 2**info.bits
    want = (exact_convolution(x, h) - info.min) % modulus + info.min
    assert_array_equal(signal.convolve2d(x, h), want.astype(dtype))


# --------------------------------------------------------------------------- any number of axes


@pytest.mark.parametrize("dtype", ["i4", "f4", "f8", "c16"])
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((9,), (4,)),
        ((3,), (8,)),
        ((6, 7), (3, 2)),
        ((2, 3), (4, 5)),
        ((5, 4, 6), (2, 3, 1)),
        ((2, 2, 1), (3, 3, 2)),
    ],
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PAIR_ND)
def test_one_to_three_axes(rng, name, mode, shape, kernel, dtype):
    in1, in2 = sample(rng, shape, dtype), sample(rng, kernel, dtype)
    for method in ("auto", "direct"):
        # scipy computes integers of mixed sizes in in1's dtype when "direct"; here both have one.
        assert_equals_scipy(name, in1, in2, mode, method)


def test_two_axes_agree_with_the_2d_functions(rng):
    x, k = sample(rng, (6, 5), "c16"), sample(rng, (2, 3), "c16")
    assert_array_equal(signal.convolve(x, k, "same"), signal.convolve2d(x, k, "same"))
    assert_array_equal(signal.correlate(x, k, "full"), signal.correlate2d(x, k, "full"))


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PAIR_2D + PAIR_ND)
def test_empty_arrays(name, mode):
    function = getattr(signal, name)
    with pytest.raises(ValueError, match="in1"):
        function(np.ones((0, 3)), np.ones((2, 2)), mode)
    with pytest.raises(ValueError, match="in2"):
        function(np.ones((2, 2)), np.ones((3, 0)), mode)


@pytest.mark.parametrize("name", PAIR_2D + PAIR_ND)
def test_bad_arguments(name):
    function = getattr(signal, name)
    ones = np.ones((3, 3))
    with pytest.raises(ValueError, match="mode"):
        function(ones, ones, "everything")
    with pytest.raises(ValueError, match="valid"):
        function(np.ones((3, 1)), np.ones((1, 3)), "valid")
    with pytest.raises(ValueError, match="in1"):
        function(np.ones(3), ones)
    with pytest.raises(ValueError, match="in1"):
        function(np.ones((1,) * 4), np.ones((1,) * 4))
    with pytest.raises(TypeError, match="in1"):
        function(np.array([["a"]]), ones)
    with pytest.raises(TypeError, match="in2"):
        function(ones, np.array([[object()]]))
    with pytest.raises(TypeError, match="bool"):
        function(ones > 0, ones > 0)
    with pytest.raises(ValueError, match=r"boundary|method"):
        function(ones, ones, "full", "reflect")


@pytest.mark.parametrize("name", ["correlate2d", "convolve2d", "correlate", "convolve"])
def test_masked_arrays_are_refused(name):
    plain, masked = np.ones((3, 3)), np.ma.masked_less(np.eye(3), 1)
    for operands, named in (((masked, plain), "in1"), ((plain, masked), "in2")):
        with pytest.raises(TypeError, match=rf"^{named}: .*mask"):
            getattr(signal, name)(*operands)
