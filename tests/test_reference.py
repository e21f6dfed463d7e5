# SPDX-License-Identifier: BSD-3-Clause
"""The reference against independent oracles: SciPy, plain loops, finite differences, hand sums.

Everything else is compared with the reference, so nothing here may use the fast kernels.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, signal, special

from fastconv import reference as ref

INF, NAN = np.inf, np.nan


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)


def integers(rng, shape):
    """Small integers, on which every sum of products is exact."""
    return rng.integers(-4, 5, shape).astype(np.float64)


def inner(a, b):
    return float(np.sum(a * b))


def check_gradient(f, args, grads, rng, step=1e-6):
    """Compare ``<grad, v>`` with the central difference of ``<f, dy>`` along a random v."""
    dy, given = grads
    for k, grad in enumerate(given):
        v = rng.standard_normal(np.shape(args[k]))
        up, down = ([a + s * v if j == k else a for j, a in enumerate(args)] for s in (step, -step))
        slope = (inner(f(*up), dy) - inner(f(*down), dy)) / (2 * step)
        assert np.shape(grad) == np.shape(args[k])
        assert_allclose(inner(grad, v), slope, rtol=1e-6, atol=1e-6)


def test_it_imports_numpy_only():
    imported = set()
    for node in ast.walk(ast.parse(inspect.getsource(ref))):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy"}


# ------------------------------------------------------------------------------------ padding

PADDED = {
    "zeros": [9, 9, 1, 2, 3, 9, 9],
    "replicate": [1, 1, 1, 2, 3, 3, 3],
    "reflect": [3, 2, 1, 2, 3, 2, 1],
    "circular": [2, 3, 1, 2, 3, 1, 2],
}


@pytest.mark.parametrize("mode", PADDED)
def test_pad_by_hand(mode):
    assert_array_equal(ref.pad([1, 2, 3], ((2, 2),), mode, value=9), PADDED[mode])
    assert_array_equal(ref.pad([1, 2, 3], ((0, 1),), mode, value=9), PADDED[mode][2:6])


@pytest.mark.parametrize(
    ("mode", "numpy_mode"),
    [("zeros", "constant"), ("replicate", "edge"), ("reflect", "reflect"), ("circular", "wrap")],
)
def test_pad_is_numpy_pad_on_the_last_axes(mode, numpy_mode, rng):
    x = rng.standard_normal((2, 5, 4, 6))
    pads = ((3, 2), (0, 5))
    assert_array_equal(ref.pad(x, pads, mode), np.pad(x, [(0, 0)] * 2 + [*pads], numpy_mode))


def test_pad_limits():
    assert_array_equal(ref.pad([1, 2], ((5, 4),), "replicate"), [1] * 6 + [2] * 5)
    assert_array_equal(ref.pad([1, 2], ((2, 2),), "circular"), [1, 2] * 3)
    for mode, width in [("reflect", 2), ("circular", 3), ("replicate", -1), ("mirror", 1)]:
        with pytest.raises(ValueError, match=r"pads|mode"):
            ref.pad([1, 2], ((width, 0),), mode)


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_an_empty_axis_has_nothing_to_copy(mode):
    for images in (0, 1):
        x = np.zeros((images, 1, 0))
        assert ref.pad(x, ((0, 0),), mode).shape == x.shape
        assert ref.pad_backward(x, x.shape, ((0, 0),), mode).shape == x.shape
        with pytest.raises(ValueError, match=r"pads: got \(1, 0\), expected 0 to 0"):
            ref.pad(x, ((1, 0),), mode)
        with pytest.raises(ValueError, match=r"pads: got \(0, 1\), expected 0 to 0"):
            ref.pad_backward(np.zeros((images, 1, 1)), x.shape, ((0, 1),), mode)


@pytest.mark.parametrize("mode", PADDED)
def test_pad_backward_is_the_adjoint(mode, rng):
    x = rng.standard_normal((2, 4, 5))
    pads = ((3, 2), (1, 4))
    y = ref.pad(x, pads, mode)
    dy = rng.standard_normal(y.shape)
    dx = ref.pad_backward(dy, x.shape, pads, mode)
    assert dx.shape == x.shape
    assert_allclose(inner(y, dy), inner(x, dx), rtol=1e-12)


def test_resolve_padding_spellings():
    for padding, expected in [
        (2, ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        ([(0, 1), (2, 3)], ((0, 1), (2, 3))),
        (np.array([[0, 1], [2, 3]]), ((0, 1), (2, 3))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 1), (0, 1))),
    ]:
        assert ref.resolve_padding(padding, (5, 6), (3, 2)) == expected
    for wrong in ("full", (1, 2, 3)):
        with pytest.raises(ValueError, match="expected"):
            ref.resolve_padding(wrong, (5, 6), 3)


def test_same_padding_is_tensorflows_rule():
    for size, k, s, d in itertools.product(range(1, 9), range(1, 5), range(1, 4), range(1, 4)):
        ((lo, hi),) = ref.resolve_padding("same", (size,), k, s, d)
        assert 0 <= hi - lo <= 1
        if k <= s and d == 1 and size % s == 0:
            assert lo == hi == 0
        assert ref.conv_output_size(size, k, s, (lo, hi), d) >= math.ceil(size / s)
        if lo + hi:
            assert ref.conv_output_size(size, k, s, (lo, hi), d) == math.ceil(size / s)
    assert ref.resolve_padding("same", (224,), 3, 2) == ((0, 1),)  # TensorFlow's well-known case
    assert ref.resolve_padding("same", (224,), 7, 2) == ((2, 3),)


def test_conv_output_size():
    assert ref.conv_output_size(224, 7, 2, 3) == 112
    assert ref.conv_output_size(10, 3, 2, (0, 1), 2) == 4
    for size, k, s, p, d in itertools.product(range(4, 9), (1, 3), (1, 2, 3), (0, 2), (1, 2)):
        starts = range(0, size + 2 * p - d * (k - 1), s)
        assert ref.conv_output_size(size, k, s, p, d) == len(starts)


# -------------------------------------------------------------------------------- convolution


def naive_conv2d(x, w, b, stride, pads, dilation, groups):
    """Seven loops and no arrays cleverness; zero padding by testing the index."""
    (n, _, h, wd), (o, cg, kh, kw) = x.shape, w.shape
    (top, bottom), (left, right) = pads
    (sh, sw), (dh, dw) = stride, dilation
    oh = (h + top + bottom - dh * (kh - 1) - 1) // sh + 1
    ow = (wd + left + right - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((n, o, oh, ow))
    for i, k, r, c in np.ndindex(*y.shape):
        first = k // (o // groups) * cg
        total = b[k]
        for ch, u, v in np.ndindex(cg, kh, kw):
            row, col = r * sh + u * dh - top, c * sw + v * dw - left
            if 0 <= row < h and 0 <= col < wd:
                total += x[i, first + ch, row, col] * w[k, ch, u, v]
        y[i, k, r, c] = total
    return y


CONV_CASES = [
    # sizes, C, O, kernel, stride, pads, dilation, groups
    ((5, 6), 3, 2, (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((5, 6), 2, 4, (3, 2), (2, 1), ((1, 1), (0, 1)), (1, 1), 2),
    ((7, 5), 4, 4, (2, 3), (1, 3), ((2, 0), (3, 3)), (2, 1), 4),
    ((6, 7), 3, 6, (3, 3), (2, 2), ((2, 2), (2, 1)), (2, 3), 3),
    ((4, 4), 1, 1, (1, 1), (3, 2), ((1, 0), (0, 0)), (1, 1), 1),
    ((1, 1), 2, 3, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
]


@pytest.mark.parametrize("case", CONV_CASES)
def test_conv2d_equals_plain_loops(case, rng):
    sizes, c, o, kernel, stride, pads, dilation, groups = case
    x = integers(rng, (2, c, *sizes))
    w, b = integers(rng, (o, c // groups, *kernel)), integers(rng, o)
    expected = naive_conv2d(x, w, b, stride, pads, dilation, groups)
    y = ref.conv2d(x, w, b, stride, pads, dilation, groups)
    assert y.dtype == np.float64
    assert_array_equal(y, expected)

    x, w = x.transpose(0, 2, 3, 1), w.transpose(2, 3, 1, 0)
    y = ref.conv2d(x, w, b, stride, pads, dilation, groups, layout="NHWC")
    assert_array_equal(y, expected.transpose(0, 2, 3, 1))


def test_conv1d_and_conv3d_are_conv2d_with_other_axes(rng):
    x, w = integers(rng, (2, 4, 9)), integers(rng, (6, 2, 3))
    y = ref.conv1d(x, w, None, 2, 1, 2, 2)
    plane = ref.conv2d(x[:, :, None], w[:, :, None], None, (1, 2), (0, 1), (1, 2), 2)
    assert_array_equal(y, plane[:, :, 0])
    x, w = integers(rng, (1, 2, 4, 5, 6)), integers(rng, (3, 2, 2, 3, 3))
    volume = ref.conv3d(x, w, None, (1, 2, 1), (0, 1, 1))
    slabs = [
        sum(ref.conv2d(x[:, :, i + t], w[:, :, t], None, (2, 1), 1) for t in range(2))
        for i in range(3)
    ]
    assert_array_equal(volume, np.stack(slabs, axis=2))


@pytest.mark.parametrize("mode", ["full", "valid", "same"])
def test_conv2d_is_scipys_correlate2d(mode, rng):
    x, w = integers(rng, (7, 8)), integers(rng, (3, 5))
    padding = {"full": (2, 4), "valid": "valid", "same": "same"}[mode]
    y = ref.conv2d(x[None], w[None, None], padding=padding)[0]
    assert_array_equal(y, signal.correlate2d(x, w, mode))
    y = ref.conv2d(x[None], w[None, None, ::-1, ::-1], padding=padding)[0]
    assert_array_equal(y, signal.convolve2d(x, w, mode))


def test_conv2d_is_scipys_correlate2d_with_boundaries(rng):
    x, w = integers(rng, (7, 8)), integers(rng, (3, 5))
    y = ref.conv2d(x[None], w[None, None], padding="same", padding_mode="circular")[0]
    assert_array_equal(y, signal.correlate2d(x, w, "same", "wrap"))
    w = integers(rng, (3, 3))  # one cell of symmetric padding is replication
    y = ref.conv2d(x[None], w[None, None], padding=1, padding_mode="replicate")[0]
    assert_array_equal(y, signal.correlate2d(x, w, "same", "symm"))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(
    ("mode", "scipy_mode"),
    [("zeros", "constant"), ("circular", "wrap"), ("reflect", "mirror"), ("replicate", "nearest")],
)
def test_padding_modes_are_ndimages(mode, scipy_mode, ndim, rng):
    x, w = integers(rng, (6, 5, 7)[:ndim]), integers(rng, (5, 3, 5)[:ndim])
    y = ref.conv(x[None], w[None, None], padding="same", padding_mode=mode)[0]
    assert_array_equal(y, ndimage.correlate(x, w, mode=scipy_mode))


def test_depthwise_is_one_correlation_per_channel(rng):
    x, w = integers(rng, (2, 3, 6, 6)), integers(rng, (6, 1, 3, 3))
    y = ref.conv2d(x, w, groups=3)
    for n, o in np.ndindex(2, 6):
        assert_array_equal(y[n, o], signal.correlate2d(x[n, o // 2], w[o, 0], "valid"))


def test_unbatched_and_layouts(rng):
    x, w = integers(rng, (2, 6, 5)), integers(rng, (4, 2, 3, 3))
    y = ref.conv2d(x[None], w, padding=1)
    assert_array_equal(ref.conv2d(x, w, padding=1), y[0])
    options = {"layout": "NHWC", "padding": 1, "residual": np.ones((6, 5, 4))}
    y_nhwc = ref.conv2d(x.transpose(1, 2, 0), w.transpose(2, 3, 1, 0), **options)
    assert_array_equal(y_nhwc, y[0].transpose(1, 2, 0) + 1)
    with pytest.raises(ValueError, match="layout"):
        ref.conv2d(x, w, layout="CHWN")
    with pytest.raises(ValueError, match="axes"):
        ref.conv2d(x[0], w)
    with pytest.raises(ValueError, match="does not fit"):
        ref.conv2d(x[:, :2], w)
    assert ref.conv2d(np.zeros((0, 2, 6, 5)), w).shape == (0, 4, 4, 3)


def test_activation_comes_after_bias_and_residual(rng):
    x, w, b = (rng.standard_normal(s) for s in [(2, 3, 5, 5), (4, 3, 3, 3), 4])
    plain = ref.conv2d(x, w)
    residual = rng.standard_normal(plain.shape)
    z = plain + b[:, None, None] + residual
    acts = {"relu": lambda v: v.clip(0), "tanh": np.tanh, "sigmoid": special.expit}
    for name, act in acts.items():
        y = ref.conv2d(x, w, b, activation=name, residual=residual)
        assert_allclose(y, act(z), atol=1e-12)


def test_conv_special_values_follow_ieee():
    x = np.zeros((1, 1, 4, 4))
    x[0, 0, 0, 0], x[0, 0, 3, 3] = INF, NAN
    y = ref.conv2d(x, np.array([[[[1.0, 1.0], [1.0, 0.0]]]]))[0, 0]
    assert_array_equal(y, [[INF, 0, 0], [0, 0, 0], [0, 0, NAN]])
    assert np.isnan(ref.conv2d(x, np.zeros((1, 1, 1, 1)))[0, 0, 0, 0])  # Inf * 0


def test_abs_conv_is_the_sum_of_magnitudes(rng):
    x, w, b = integers(rng, (1, 2, 5, 5)), integers(rng, (2, 1, 3, 3)), integers(rng, 2)
    scale = ref.abs_conv(x, w, b, 2, 1, 1, 2)
    assert_array_equal(
        scale, naive_conv2d(abs(x), abs(w), abs(b), (2, 2), ((1, 1),) * 2, (1, 1), 2)
    )
    assert np.all(scale >= np.abs(ref.conv2d(x, w, b, 2, 1, 1, 2)))


GRADIENT_CASES = [
    # x, w, stride, padding, dilation, groups, mode
    ((2, 3, 7), (4, 3, 3), 2, 1, 1, 1, "zeros"),
    ((3, 7), (4, 3, 3), 1, "same", 2, 1, "reflect"),
    ((2, 4, 6, 5), (6, 2, 3, 2), (2, 1), ((1, 2), (0, 1)), (1, 2), 2, "zeros"),
    ((2, 3, 5, 6), (3, 1, 3, 3), 1, 2, 1, 3, "circular"),
    ((1, 2, 6, 6), (2, 2, 2, 3), 3, (1, 2), 1, 1, "reflect"),
    ((1, 2, 4, 5, 4), (4, 1, 2, 3, 2), (1, 2, 1), 3, 1, 2, "replicate"),
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_conv_backward(case, layout, rng):
    x_shape, w_shape, stride, padding, dilation, groups, mode = case
    x, w, b = (rng.standard_normal(s) for s in (x_shape, w_shape, w_shape[0]))
    if layout == "NHWC":
        x, w = np.moveaxis(x, -w.ndim + 1, -1), np.moveaxis(w, (0, 1), (-1, -2))
    options = {"padding_mode": mode, "layout": layout}
    spatial = (stride, padding, dilation, groups)

    y = ref.conv(x, w, None, *spatial, **options)
    dy = rng.standard_normal(y.shape)
    grads = ref.conv_backward(dy, x, w, *spatial, **options)
    check_gradient(lambda *a: ref.conv(*a, *spatial, **options), (x, w, b), (dy, grads), rng)

    assert_allclose(inner(y, dy), inner(x, grads[0]), rtol=1e-12)
    assert_allclose(inner(y, dy), inner(w, grads[1]), rtol=1e-12)
    for k in range(3):
        needs = [j == k for j in range(3)]
        some = ref.conv_backward(dy, x, w, *spatial, **options, needs=needs)
        assert [g is not None for g in some] == needs
        assert_array_equal(some[k], grads[k])


# ------------------------------------------------------------------------------ unfold and fold


@pytest.mark.parametrize("unfold_options", [(1, 0, 1), (2, 1, 1), ((1, 2), (2, 0), (2, 3))])
def test_unfold_turns_convolution_into_a_matrix_product(unfold_options, rng):
    dilation, padding, stride = unfold_options
    x, w = integers(rng, (2, 3, 6, 7)), integers(rng, (4, 3, 3, 2))
    cols = ref.unfold(x, (3, 2), dilation, padding, stride)
    y = ref.conv2d(x, w, None, stride, padding, dilation)
    assert_array_equal((w.reshape(4, -1) @ cols).reshape(y.shape), y)
    assert_array_equal(ref.unfold(x[0], (3, 2), dilation, padding, stride), cols[0])

    dy = rng.standard_normal(cols.shape)
    dx = ref.fold(dy, (6, 7), (3, 2), dilation, padding, stride)
    assert_allclose(inner(cols, dy), inner(x, dx), rtol=1e-12)
    assert_array_equal(dx, ref.unfold_backward(dy, x.shape, (3, 2), dilation, padding, stride))
    assert_array_equal(dx[0], ref.fold(dy[0], (6, 7), (3, 2), dilation, padding, stride))
    assert_array_equal(ref.fold_backward(x, (3, 2), dilation, padding, stride), cols)


def test_unfold_and_fold_by_hand():
    x = np.arange(9.0).reshape(1, 3, 3)
    cols = [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    assert_array_equal(ref.unfold(x, 2), cols)
    assert_array_equal(ref.fold(np.ones((4, 4)), 3, 2), [[[1, 2, 1], [2, 4, 2], [1, 2, 1]]])


# ------------------------------------------------------------------------------------ pooling


def test_max_pool_is_ndimages_maximum_filter(rng):
    x = rng.standard_normal((2, 3, 7, 8))
    y = ref.max_pool2d(x, (3, 5), 1, (1, 2))
    assert_array_equal(y, ndimage.maximum_filter(x, (1, 1, 3, 5), mode="constant", cval=-INF))
    assert_array_equal(ref.max_pool2d(x, (3, 5), (2, 3), (1, 2)), y[..., ::2, ::3])


def test_max_pool_ceil_mode():
    x = np.arange(6.0)[None]
    assert_array_equal(ref.max_pool1d(x, 2), [[1, 3, 5]])
    assert_array_equal(ref.max_pool1d(x, 3, 2), [[2, 4]])
    assert_array_equal(ref.max_pool1d(x, 3, 2, ceil_mode=True), [[2, 4, 5]])
    assert_array_equal(ref.max_pool1d(x, 2, 4, 1, ceil_mode=True), [[0, 4]])
    # ceil((5 + 2 - 2) / 3) + 1 = 3 windows, but the third would start at 5, beyond the input
    assert_array_equal(ref.max_pool1d(x[:, :5], 2, 3, 1, ceil_mode=True), [[0, 3]])
    assert_array_equal(ref.max_pool1d(x, 2, 1, 0, 3), [[3, 4, 5]])
    assert_array_equal(ref.max_pool1d(x, 2, 2, 0, 4, True), [[4, 2]])


def test_max_pool_indices():
    x = np.array([[[1.0, 5, 5, 2], [5, 0, 2, 9], [7, 7, 3, 3], [7, 7, 3, 4]]])
    y, indices = ref.max_pool2d(x, 2, return_indices=True)
    assert_array_equal(y, [[[5, 9], [7, 4]]])
    assert_array_equal(indices, [[[1, 7], [8, 15]]])  # the first maximum wins
    assert indices.dtype == np.int64
    _, indices = ref.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert_array_equal(indices, [[[1, 7], [8, 7]]])


def test_max_pool_nan_and_minus_infinity():
    y, indices = ref.max_pool1d([[NAN, 3, NAN, 1, 2, -INF]], 3, 1, 1, return_indices=True)
    assert_array_equal(y, [[NAN, NAN, NAN, NAN, 2, 2]])
    assert_array_equal(indices, [[0, 2, 2, 2, 4, 4]])  # the last NaN
    x = np.full((1, 4, 4), -INF)
    y, indices = ref.max_pool2d(x, 2, 2, 1, return_indices=True)
    assert_array_equal(y, np.full((1, 3, 3), -INF))
    assert_array_equal(indices, [[[0, 1, 3], [4, 5, 7], [12, 13, 15]]])
    _, indices = ref.max_pool1d([[-INF, -INF, -INF]], 2, 1, 1, 2, return_indices=True)
    assert_array_equal(indices, [[1, 0, 1]])  # the first cell not in the padding
    y, indices = ref.max_pool1d([[4.0]], 2, 1, 1, 2, return_indices=True)
    assert_array_equal((y, indices), ([[-INF]], [[0]]))  # a window of padding only


def test_max_pool_1d_and_3d_agree_with_2d(rng):
    x = rng.standard_normal((2, 3, 6, 6))
    y, i = ref.max_pool1d(x, 3, 2, 1, return_indices=True)
    y2, i2 = ref.max_pool2d(x, (1, 3), (1, 2), (0, 1), return_indices=True)
    assert_array_equal(y, y2)
    assert_array_equal(i, i2 % 6)
    y3, i3 = ref.max_pool3d(x, (1, 3, 2), (1, 2, 2), (0, 1, 0), return_indices=True)
    y2, i2 = ref.max_pool2d(x, (3, 2), (2, 2), (1, 0), return_indices=True)
    assert_array_equal(y3, y2)
    assert_array_equal(i3, i2 + 36 * np.arange(3)[:, None, None])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_max_pool_backward(ndim, rng):
    x = rng.permutation(2 * 3 * 6**ndim).reshape(2, 3, *[6] * ndim).astype(float)
    pool, backward = getattr(ref, f"max_pool{ndim}d"), getattr(ref, f"max_pool{ndim}d_backward")
    y, indices = pool(x, 3, 2, 1, 1, True, True)
    dy = rng.standard_normal(y.shape)
    dx = backward(dy, indices, x.shape, 3, 2, 1, 1, True)
    check_gradient(lambda a: pool(a, 3, 2, 1, 1, True), (x,), (dy, (dx,)), rng)
    taken = np.take_along_axis(x.reshape(2, 3, -1), indices.reshape(2, 3, -1), -1)
    assert_array_equal(taken.reshape(y.shape), y)


def test_max_pool_backward_adds_where_windows_overlap():
    x = np.array([[0.0, 9, 0, 0]])
    _, indices = ref.max_pool1d(x, 3, 1, return_indices=True)
    assert_array_equal(ref.max_pool1d_backward([[2, 3]], indices, x.shape), [[0, 5, 0, 0]])


def test_avg_pool_divisors():
    x = np.full((1, 5), 6.0)
    # windows of 3 cells at -1, 1, 3 (and 5 in ceil mode, which starts beyond the input)
    assert_array_equal(ref.avg_pool1d(x, 3, 2, 1), [[4, 6, 4]])
    assert_array_equal(ref.avg_pool1d(x, 3, 2, 1, count_include_pad=False), [[6, 6, 6]])
    assert_array_equal(ref.avg_pool1d(x, 3, 2, 1, divisor_override=2), [[6, 9, 6]])
    # windows at 0, 3: the second hangs over the end by one cell, which does not count
    assert_array_equal(ref.avg_pool1d(x, 3, ceil_mode=True), [[6, 6]])
    # windows at -1, 2, 5 -> two; with one padded cell at the end the second sees 3 cells + 1 pad
    assert_array_equal(ref.avg_pool1d(x, 4, 3, 1, ceil_mode=True), [[4.5, 4.5]])
    # windows of 4 at -2, 1, 4: the last sees 1 cell, 2 padded cells and 1 of overhang
    assert_array_equal(ref.avg_pool1d(x, 4, 3, 2, ceil_mode=True), [[3, 6, 2]])
    assert_array_equal(ref.avg_pool1d(x, 4, 3, 2, True, False), [[6, 6, 6]])
    plane = ref.avg_pool2d(np.full((1, 5, 5), 6.0), 4, 3, 2, ceil_mode=True)
    assert_allclose(plane[0], np.outer([3, 6, 2], [3, 6, 2]) / 6, rtol=1e-15)


def test_avg_pool_is_ndimages_uniform_filter(rng):
    x = rng.standard_normal((2, 3, 7, 8))
    y = ndimage.uniform_filter(x, (1, 1, 3, 5), mode="constant")
    assert_allclose(ref.avg_pool2d(x, (3, 5), (2, 1), (1, 2)), y[..., ::2, :], atol=1e-14)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [(3, 2, 1), (2,), (3, 2, 1, True, False), (4, 3, 2, True), (3, 2, 0, True, True, 5)]
)
def test_avg_pool_backward(options, ndim, rng):
    pool, backward = getattr(ref, f"avg_pool{ndim}d"), getattr(ref, f"avg_pool{ndim}d_backward")
    x = rng.standard_normal((2, 2, *[6, 5, 7][:ndim]))
    y = pool(x, *options)
    dy = rng.standard_normal(y.shape)
    dx = backward(dy, x.shape, *options)
    check_gradient(lambda a: pool(a, *options), (x,), (dy, (dx,)), rng)
    assert_allclose(inner(y, dy), inner(x, dx), rtol=1e-12)


def test_adaptive_pools_by_hand():
    x = np.array([[1.0, 2, 3, 4, 6]])
    assert_array_equal(ref.adaptive_avg_pool1d(x, 3), [[1.5, 3, 5]])  # windows 0:2, 1:4, 3:5
    assert_array_equal(ref.adaptive_avg_pool1d(x, 1), [[3.2]])
    assert_array_equal(ref.adaptive_avg_pool1d(x, 5), x)
    assert_array_equal(ref.adaptive_avg_pool1d(x[:, :2], 3), [[1, 1.5, 2]])
    y, indices = ref.adaptive_max_pool1d([[7.0, 2, 7, 7, 6]], 3, return_indices=True)
    assert_array_equal(y, [[7, 7, 7]])
    assert_array_equal(indices, [[0, 2, 3]])
    y, indices = ref.adaptive_max_pool1d([[NAN, 2, NAN, 7, 6]], 1, return_indices=True)
    assert_array_equal((y, indices), ([[NAN]], [[2]]))
    x = np.arange(24.0).reshape(1, 1, 4, 6)
    assert ref.adaptive_avg_pool2d(x, (None, 2)).shape == (1, 1, 4, 2)
    assert_array_equal(ref.adaptive_avg_pool2d(x, 2), ref.avg_pool2d(x, (2, 3)))
    assert_array_equal(ref.adaptive_max_pool2d(x, 2), ref.max_pool2d(x, (2, 3)))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_adaptive_pools_backward(ndim, rng):
    sizes, out = [5, 6, 4][:ndim], [3, 4, 5][:ndim]
    x = rng.permutation(2 * 2 * math.prod(sizes)).reshape(2, 2, *sizes).astype(float)
    dy = rng.standard_normal((2, 2, *out))
    pool = getattr(ref, f"adaptive_avg_pool{ndim}d")
    dx = getattr(ref, f"adaptive_avg_pool{ndim}d_backward")(dy, x.shape)
    check_gradient(lambda a: pool(a, out), (x,), (dy, (dx,)), rng)
    pool = getattr(ref, f"adaptive_max_pool{ndim}d")
    _, indices = pool(x, out, True)
    dx = getattr(ref, f"adaptive_max_pool{ndim}d_backward")(dy, indices, x.shape)
    check_gradient(lambda a: pool(a, out), (x,), (dy, (dx,)), rng)


# ------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize("sizes", [(), (5,), (3, 4), (2, 3, 2)])
def test_batch_norm_train(sizes, rng):
    x = 3 * rng.standard_normal((4, 3, *sizes)) + 5
    weight, bias = rng.standard_normal((2, 3))
    running_mean, running_var = np.zeros(3), np.ones(3, dtype=np.float32)
    y, (mean, invstd) = ref.batch_norm_train(x, weight, bias, running_mean, running_var, 0.25, 1e-3)
    for c in range(3):
        values = x[:, c]
        assert_allclose(mean[c], values.mean(), rtol=1e-12)
        assert_allclose(invstd[c], 1 / math.sqrt(values.var() + 1e-3), rtol=1e-12)
        expected = (values - values.mean()) / math.sqrt(values.var() + 1e-3) * weight[c] + bias[c]
        assert_allclose(y[:, c], expected, atol=1e-12)
        assert_allclose(running_mean[c], 0.25 * values.mean(), rtol=1e-12)
        assert_allclose(running_var[c], 0.75 + 0.25 * values.var(ddof=1), rtol=1e-6)

    dy = rng.standard_normal(x.shape)
    grads = ref.batch_norm_backward(dy, x, weight, (mean, invstd))
    check_gradient(
        lambda *a: ref.batch_norm_train(*a, eps=1e-3)[0], (x, weight, bias), (dy, grads), rng
    )
    plain, saved = ref.batch_norm_train(x, None, None)
    assert_allclose(plain.mean(axis=0).sum(), 0, atol=1e-10)
    dx = ref.batch_norm_backward(dy, x, None, saved)[0]
    check_gradient(lambda a: ref.batch_norm_train(a, None, None)[0], (x,), (dy, (dx,)), rng)


def test_batch_norm_by_hand():
    x = [[1.0, 4.0], [3.0, 4.0]]
    y = ref.batch_norm(x, [1, 2], [4, 0.25], [2, 1], [0, -1], eps=0)
    assert_array_equal(y, [[0, 3], [2, 3]])
    y, _ = ref.batch_norm_train(x, None, None, eps=1.0)
    assert_allclose(y, [[-math.sqrt(0.5), 0], [math.sqrt(0.5), 0]])
    with pytest.raises(ValueError, match="more than one value"):
        ref.batch_norm_train(np.zeros((1, 3)), None, None)


def test_fold_batch_norm_by_hand():
    w, b = ref.fold_batch_norm([[[1, 2]], [[3, 4]]], [5, 6], [1, 2], [4, 0.25], [2, 1], [0, -1], 0)
    assert_array_equal(w, [[[1, 2]], [[6, 8]]])
    assert_array_equal(b, [4, 7])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_fold_batch_norm_is_both_steps(layout, rng):
    x, w, b = (rng.standard_normal(s) for s in ((2, 4, 6, 5), (3, 3, 5, 7), 7))
    if layout == "NCHW":
        x, w = x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)
    norm = (
        rng.standard_normal(7),
        rng.uniform(0.1, 2, 7),
        rng.standard_normal(7),
        rng.standard_normal(7),
    )
    for b_, norm_ in ((b, norm), (None, norm[:2])):
        y = ref.conv2d(x, w, b_, padding=1, layout=layout)
        wanted = ref.batch_norm(y if layout == "NCHW" else np.moveaxis(y, -1, 1), *norm_)
        found = ref.conv2d(
            x, *ref.fold_batch_norm(w, b_, *norm_, layout=layout), padding=1, layout=layout
        )
        found = found if layout == "NCHW" else np.moveaxis(found, -1, 1)
        assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------- activations, dense


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("relu", lambda x: x.clip(0)), ("tanh", np.tanh), ("sigmoid", special.expit)],
)
def test_activations(name, oracle, rng):
    f, backward = getattr(ref, name), getattr(ref, f"{name}_backward")
    x = rng.standard_normal((3, 7))
    assert_allclose(f(x), oracle(x), rtol=1e-14)
    edges = np.array([-INF, -800, -40, -0.0, 0, 40, 800, INF, NAN])
    assert_allclose(f(edges), oracle(edges), rtol=1e-14)
    dy = rng.standard_normal(x.shape)
    check_gradient(f, (x,), (dy, (backward(dy, x),)), rng)
    assert_array_equal(backward(np.ones(4), [-INF, -800, INF, NAN])[:2], 0)


def test_activation_gradients_at_the_edges():
    assert_array_equal(ref.relu_backward([1, 1, 1, 1], [-0.0, 0, 1e-300, NAN]), [0, 0, 1, 1])
    assert_allclose(ref.tanh_backward(1, 20.0), 4 * math.exp(-40), rtol=1e-12)
    assert_allclose(ref.sigmoid_backward(1, 40.0), math.exp(-40), rtol=1e-12)


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, axis, rng):
    f, backward = getattr(ref, name), getattr(ref, f"{name}_backward")
    x = 30 * rng.standard_normal((3, 4, 5))
    assert_allclose(f(x, axis), getattr(special, name)(x, axis), rtol=1e-11, atol=1e-300)
    assert_allclose(f(x + 1e4, axis), f(x, axis), rtol=1e-9, atol=1e-9)
    x /= 30
    dy = rng.standard_normal(x.shape)
    dx = backward(dy, f(x, axis), axis)
    check_gradient(lambda a: f(a, axis), (x,), (dy, (dx,)), rng)


def test_softmax_special_values():
    assert_array_equal(ref.softmax([-INF, 2, 2]), [0, 0.5, 0.5])
    assert_array_equal(ref.log_softmax([-INF, 2]), [-INF, 0])
    assert np.isnan(ref.softmax([-INF, -INF])).all()
    assert np.isnan(ref.softmax([NAN, 1])).all()


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
def test_linear(batch, rng):
    x, w, b = (rng.standard_normal(s) for s in ((*batch, 5), (3, 5), 3))
    y = ref.linear(x, w, b)
    assert_allclose(y, np.einsum("...i,oi->...o", x, w) + b, rtol=1e-12)
    assert_allclose(ref.linear(x, w), y - b, atol=1e-12)
    dy = rng.standard_normal(y.shape)
    check_gradient(ref.linear, (x, w, b), (dy, ref.linear_backward(dy, x, w)), rng)


def test_flatten(rng):
    x = rng.standard_normal((2, 3, 4, 5))
    assert_array_equal(ref.flatten(x), x.reshape(2, 60))
    assert ref.flatten(x, 0).shape == (120,)
    assert ref.flatten(x, 1, 2).shape == ref.flatten(x, -3, -2).shape == (2, 12, 5)
    assert ref.flatten(x, 2, 2).shape == x.shape
    assert ref.flatten(np.zeros((0, 3, 4))).shape == (0, 12)
    assert ref.flatten(3.0, 0).shape == (1,)
    assert_array_equal(ref.flatten_backward(ref.flatten(x), x.shape), x)


def test_dropout(rng):
    x = rng.standard_normal((50, 40))
    y, mask = ref.dropout(x, 0.25, rng=np.random.default_rng(1))
    assert_array_equal(mask, np.random.default_rng(1).random(x.shape) >= 0.25)
    assert_array_equal(y, np.where(mask, x / 0.75, 0))
    assert abs(mask.mean() - 0.75) < 0.05
    assert_array_equal(ref.dropout_backward(x, mask, 0.25), y)
    y, mask = ref.dropout(x, 0.25, training=False)
    assert mask.all()
    assert_array_equal(y, x)
    assert_array_equal(ref.dropout_backward(x, mask, 0.25, training=False), x)
    for p, keep in [(0.0, True), (1.0, False)]:
        y, mask = ref.dropout(x, p)
        assert (mask == keep).all()
        assert_array_equal(y, x * keep)
        assert_array_equal(ref.dropout_backward(x, mask, p), x * keep)


def test_dropout2d_drops_whole_channels(rng):
    x = rng.standard_normal((4, 16, 3, 3))
    y, mask = ref.dropout2d(x, 0.5, rng=rng)
    assert mask.shape == (4, 16, 1, 1)
    assert 0 < mask.sum() < mask.size
    assert_array_equal(y, x * mask * 2)
    assert_array_equal(ref.dropout2d_backward(x, mask, 0.5), y)


# --------------------------------------------------------------------------------------- loss


def naive_cross_entropy(logits, classes, weight, ignore_index, smoothing):
    """Loss and weight of every sample of (N, C) logits, from the definition."""
    losses, weights = [], []
    for row, k in zip(logits, classes, strict=True):
        logp = [z - math.log(sum(map(math.exp, row))) for z in row]
        spread = sum(w * lp for w, lp in zip(weight, logp, strict=True)) / len(row)
        ignored = k == ignore_index
        hit = 0.0 if ignored else weight[k] * logp[k]
        losses.append(0.0 if ignored else -(1 - smoothing) * hit - smoothing * spread)
        weights.append(0.0 if ignored else weight[k])
    return np.array(losses), np.array(weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 1])
def test_cross_entropy_of_classes(ignore_index, weighted, smoothing, rng):
    logits, classes = rng.standard_normal((6, 4)), np.array([0, 1, 2, 3, 1, 0])
    classes[3] = ignore_index
    weight = rng.random(4) + 0.5 if weighted else None
    losses, weights = naive_cross_entropy(
        logits, classes, np.ones(4) if weight is None else weight, ignore_index, smoothing
    )
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": smoothing}
    for reduction, expected in [
        ("none", losses),
        ("sum", losses.sum()),
        ("mean", losses.sum() / weights.sum()),
    ]:
        loss = ref.cross_entropy(logits, classes, reduction=reduction, **options)
        assert_allclose(loss, expected, rtol=1e-12, atol=1e-15)
        assert loss.dtype == np.float64

    # the same samples as pixels of one image: (N, C, *S)
    pixels, plane = logits.reshape(2, 3, 4).transpose(0, 2, 1), classes.reshape(2, 3)
    assert_allclose(
        ref.cross_entropy(pixels, plane, reduction="none", **options), losses.reshape(2, 3)
    )


def test_cross_entropy_of_probabilities(rng):
    logits, target = rng.standard_normal((2, 3, 4)), rng.random((2, 3, 4))
    weight = np.array([1.0, 2.0, 0.5])
    logp = special.log_softmax(logits, 1)
    losses = -(weight[:, None] * (0.8 * target + 0.2 / 3) * logp).sum(axis=1)
    options = {"weight": weight, "label_smoothing": 0.2}
    assert_allclose(ref.cross_entropy(logits, target, reduction="none", **options), losses)
    assert_allclose(ref.cross_entropy(logits, target, **options), losses.mean())
    classes = rng.integers(0, 3, (2, 4))
    onehot = np.moveaxis(np.eye(3)[classes], -1, 1)
    assert_allclose(ref.cross_entropy(logits, onehot), ref.cross_entropy(logits, classes))


def test_cross_entropy_edges():
    assert_allclose(ref.cross_entropy([0.0, 0.0], 1), math.log(2))
    assert ref.cross_entropy([[0.0, -INF]], [0]) == 0
    assert ref.cross_entropy([[0.0, -INF]], [1]) == INF
    assert ref.cross_entropy([[1000.0, -1000.0]], [1]) == 2000
    assert np.isnan(ref.cross_entropy(np.zeros((2, 3)), [-100, -100]))
    assert_array_equal(ref.cross_entropy([[NAN, 1], [2, 2]], [-100, 0], reduction="none")[0], 0)
    assert_array_equal(ref.cross_entropy_backward(np.zeros((2, 3)), [-100, -100]), 0)
    assert_allclose(ref.cross_entropy_backward([0.0, 0.0], 1, dloss=2.0), [1, -1])
    for target in ([2], [-1]):
        with pytest.raises(ValueError, match="classes 0 to 1"):
            ref.cross_entropy([[0.0, 0.0]], target)
    with pytest.raises(ValueError, match="reduction"):
        ref.cross_entropy([[0.0, 0.0]], [0], reduction="average")


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 2, 3)])
def test_cross_entropy_backward(shape, kind, reduction, rng):
    logits = rng.standard_normal(shape)
    if kind == "classes":
        target = rng.integers(0, 5, shape[:1] + shape[2:] if len(shape) > 1 else ())
        if target.ndim:
            target.flat[1] = -100
    else:
        target = rng.random(shape)
    options = {"weight": rng.random(5), "reduction": reduction, "label_smoothing": 0.1}
    dloss = rng.standard_normal(np.shape(ref.cross_entropy(logits, target, **options)))
    dlogits = ref.cross_entropy_backward(logits, target, **options, dloss=dloss)
    check_gradient(
        lambda a: ref.cross_entropy(a, target, **options), (logits,), (dloss, (dlogits,)), rng
    )


# -------------------------------------------------------------------------------- conventions


def test_arguments_are_never_modified_and_any_dtype_becomes_float64(rng):
    x = rng.integers(-3, 4, (2, 3, 5, 5)).astype(np.float32)
    w = rng.integers(-3, 4, (3, 3, 3, 3)).astype(np.int8)
    x.flags.writeable = w.flags.writeable = False
    dy = ref.conv2d(x, w, x[0, :, 0, 0], padding=1, residual=x)
    dy.flags.writeable = False
    results = [
        dy,
        *ref.conv2d_backward(dy, x, w, padding=1),
        ref.pad(x, ((1, 1),), "circular"),
        ref.pad_backward(dy, x.shape, ((0, 0), (0, 0)), "circular"),
        ref.max_pool2d(x, 2),
        ref.avg_pool2d_backward(dy, x.shape, 1),
        ref.adaptive_max_pool2d(x, 2),
        *ref.linear_backward(dy, x, np.ones((5, 5), dtype=np.float32)),
        ref.relu(x),
        ref.softmax(x),
        ref.batch_norm_train(x, None, None)[0],
        ref.flatten(x),
    ]
    assert {r.dtype for r in results} == {np.dtype(np.float64)}
