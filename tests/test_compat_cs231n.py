# SPDX-License-Identifier: BSD-3-Clause
"""fastconv.compat.cs231n against plain loops, the reference, differences and a made-up course."""

from __future__ import annotations

import importlib
import itertools
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastconv import reference
from fastconv.compat import cs231n

CONV_PAIRS = [
    (getattr(cs231n, f"conv_forward_{kind}"), getattr(cs231n, f"conv_backward_{kind}"))
    for kind in ("fast", "naive", "im2col", "strides")
]
POOL_PAIRS = [
    (getattr(cs231n, f"max_pool_forward_{kind}"), getattr(cs231n, f"max_pool_backward_{kind}"))
    for kind in ("fast", "naive", "im2col", "reshape")
]
# (N, C, H, W), (F, HH, WW), stride, pad; several do not divide, one kernel is not square.
CONV_CASES = [
    ((2, 3, 5, 6), (4, 3, 3), 1, 1),
    ((2, 3, 8, 7), (2, 3, 3), 2, 1),
    ((1, 2, 9, 8), (3, 4, 2), 3, 0),
    ((3, 1, 4, 4), (1, 1, 1), 1, 0),
    ((2, 2, 5, 5), (2, 5, 5), 1, 2),
]
# (N, C, H, W), pool_height, pool_width, stride; overlapping, tiling, with gaps, not dividing.
POOL_CASES = [
    ((2, 3, 8, 8), 2, 2, 2),
    ((2, 3, 7, 9), 3, 3, 2),
    ((1, 2, 6, 6), 3, 2, 1),
    ((2, 1, 9, 8), 2, 2, 3),
    ((2, 2, 5, 4), 2, 2, 2),
]


@pytest.fixture
def rng():
    return np.random.default_rng(20240613)


def numeric_gradient(f, x, dout, step=1e-5):
    """d<f(x), dout>/dx by central differences, one element at a time."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[place] = step
        gradient[place] = np.sum((f(x + shift) - f(x - shift)) * dout) / (2 * step)
    return gradient


def assert_close(got, want):
    assert_allclose(got, want, rtol=1e-10, atol=1e-10)


# -------------------------------------------------------------------------------- convolution


def loop_conv(x, w, b, stride, pad):
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    (hh, ww), (h, v) = w.shape[2:], padded.shape[2:]
    out = np.zeros((len(x), len(w), (h - hh) // stride + 1, (v - ww) // stride + 1))
    for n, f, i, j in np.ndindex(out.shape):
        rows, columns = i * stride, j * stride
        window = padded[n, :, rows : rows + hh, columns : columns + ww]
        out[n, f, i, j] = np.sum(window * w[f]) + b[f]
    return out


def conv_arrays(rng, x_shape, field):
    f, *kernel = field
    x, w = rng.standard_normal(x_shape), rng.standard_normal((f, x_shape[1], *kernel))
    return x, w, rng.standard_normal(f)


@pytest.mark.parametrize(("x_shape", "field", "stride", "pad"), CONV_CASES)
def test_conv_forward_is_the_loop(rng, x_shape, field, stride, pad):
    x, w, b = conv_arrays(rng, x_shape, field)
    for forward, _ in CONV_PAIRS:
        out, _ = forward(x, w, b, {"stride": stride, "pad": pad})
        assert out.dtype == np.float64
        assert_close(out, loop_conv(x, w, b, stride, pad))


@pytest.mark.parametrize(("x_shape", "field", "stride", "pad"), CONV_CASES)
def test_conv_backward_is_the_reference(rng, x_shape, field, stride, pad):
    x, w, b = conv_arrays(rng, x_shape, field)
    for forward, backward in CONV_PAIRS:
        out, cache = forward(x, w, b, {"stride": stride, "pad": pad})
        dout = rng.standard_normal(out.shape)
        want = reference.conv2d_backward(dout, x, w, stride, pad)
        for got, expected, operand in zip(backward(dout, cache), want, (x, w, b), strict=True):
            assert got.shape == operand.shape
            assert_close(got, expected)


def test_conv_gradients_are_numeric_gradients(rng):
    x, w, b = conv_arrays(rng, (2, 2, 6, 5), (2, 3, 3))
    param = {"stride": 2, "pad": 1}
    out, cache = cs231n.conv_forward_fast(x, w, b, param)
    dout = rng.standard_normal(out.shape)
    dx, dw, db = cs231n.conv_backward_fast(dout, cache)

    def f(x, w, b):
        return cs231n.conv_forward_fast(x, w, b, param)[0]

    assert_allclose(dx, numeric_gradient(lambda v: f(v, w, b), x, dout), rtol=1e-7, atol=1e-8)
    assert_allclose(dw, numeric_gradient(lambda v: f(x, v, b), w, dout), rtol=1e-7, atol=1e-8)
    assert_allclose(db, numeric_gradient(lambda v: f(x, w, v), b, dout), rtol=1e-7, atol=1e-8)


def test_conv_cache_is_the_courses(rng):
    x, w, b = conv_arrays(rng, (1, 1, 3, 3), (1, 2, 2))
    param = {"stride": 1, "pad": 0}
    _, cache = cs231n.conv_forward_naive(x, w, b, param)
    assert all(a is b for a, b in zip(cache, (x, w, b, param), strict=True))


def test_mixed_float_types_promote(rng):
    x, w, b = conv_arrays(rng, (2, 3, 6, 6), (2, 3, 3))
    narrow = w.astype(np.float32)
    param = {"stride": 1, "pad": 1}
    out, cache = cs231n.conv_forward_fast(x, narrow, b, param)
    assert out.dtype == np.float64
    assert_close(out, loop_conv(x, narrow.astype(np.float64), b, 1, 1))
    dx, dw, _ = cs231n.conv_backward_fast(out.astype(np.float32), cache)
    assert dx.dtype == dw.dtype == np.float64
    f32 = [a.astype(np.float32) for a in (x, w, b)]
    assert cs231n.conv_forward_fast(*f32, param)[0].dtype == np.float32


@pytest.mark.parametrize("order", [np.asfortranarray, lambda a: a[..., ::-1].copy()[..., ::-1]])
def test_any_memory_order_gives_the_same_bits(rng, order):
    x, w, b = conv_arrays(rng, (2, 3, 7, 6), (4, 3, 3))
    param = {"stride": 2, "pad": 1}
    window = {"pool_height": 3, "pool_width": 3, "stride": 2}
    assert not order(x).flags.c_contiguous
    out, cache = cs231n.conv_forward_fast(x, w, b, param)
    dout = rng.standard_normal(out.shape)
    other, other_cache = cs231n.conv_forward_fast(order(x), order(w), b, param)
    assert_array_equal(other, out)
    for got, want in zip(
        cs231n.conv_backward_fast(order(dout), other_cache),
        cs231n.conv_backward_fast(dout, cache),
        strict=True,
    ):
        assert_array_equal(got, want)
    pooled, cache = cs231n.max_pool_forward_fast(x, window)
    other, other_cache = cs231n.max_pool_forward_fast(order(x), window)
    assert_array_equal(other, pooled)
    assert_array_equal(
        cs231n.max_pool_backward_fast(order(pooled), other_cache),
        cs231n.max_pool_backward_fast(pooled, cache),
    )
    assert_array_equal(
        cs231n.im2col_cython(order(x), 3, 2, 1, 1), cs231n.im2col_cython(x, 3, 2, 1, 1)
    )


# ------------------------------------------------------------------------------------ pooling


def loop_pool(x, height, width, stride):
    """(out, a function from dout to dx); the first maximum in row order takes it all."""
    n, c, h, w = x.shape
    out = np.zeros((n, c, (h - height) // stride + 1, (w - width) // stride + 1))
    winners = {}
    for place in np.ndindex(out.shape):
        image, channel, i, j = place
        cells = itertools.product(
            range(i * stride, i * stride + height), range(j * stride, j * stride + width)
        )
        winner = max(cells, key=lambda cell: x[(image, channel, *cell)])
        winners[place] = (image, channel, *winner)
        out[place] = x[winners[place]]

    def backward(dout):
        dx = np.zeros(x.shape)
        for place, winner in winners.items():
            dx[winner] += dout[place]
        return dx

    return out, backward


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("x_shape", "height", "width", "stride"), POOL_CASES)
def test_max_pool_is_the_loop(rng, x_shape, height, width, stride, ties):
    x = rng.integers(0, 2, x_shape).astype(float) if ties else rng.standard_normal(x_shape)
    want, want_backward = loop_pool(x, height, width, stride)
    dout = rng.standard_normal(want.shape)
    for forward, backward in POOL_PAIRS:
        param = {"pool_height": height, "pool_width": width, "stride": stride}
        out, cache = forward(x, param)
        assert_array_equal(out, want)
        dx = backward(dout, cache)
        assert dx.dtype == np.float64
        assert_close(dx, want_backward(dout))


def test_max_pool_gradient_is_the_numeric_gradient(rng):
    # A permutation has no ties, and no two values closer than the step.
    x = rng.permutation(72).reshape(2, 1, 6, 6).astype(float)
    param = {"pool_height": 3, "pool_width": 2, "stride": 2}
    out, cache = cs231n.max_pool_forward_fast(x, param)
    dout = rng.standard_normal(out.shape)
    want = numeric_gradient(lambda v: cs231n.max_pool_forward_fast(v, param)[0], x, dout)
    assert_allclose(cs231n.max_pool_backward_fast(dout, cache), want, rtol=1e-7, atol=1e-8)


# -------------------------------------------------------------------------- batch normalisation


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (6, 3)])
def test_batchnorm_keeps_running_statistics(rng, shape):
    axes = (0, *range(2, len(shape)))
    bn_param = {"mode": "train"}
    mean, var = np.zeros(3), np.zeros(3)
    for _ in range(3):
        x = rng.standard_normal(shape) * 2 + 1
        cs231n.spatial_batchnorm_forward(x, np.ones(3), np.zeros(3), bn_param)
        mean = 0.9 * mean + 0.1 * x.mean(axis=axes)
        var = 0.9 * var + 0.1 * x.var(axis=axes)  # NumPy's var is the biased one
    assert_close(bn_param["running_mean"], mean)
    assert_close(bn_param["running_var"], var)
    assert set(bn_param) == {"mode", "running_mean", "running_var"}
    gamma, beta = rng.standard_normal(3), rng.standard_normal(3)
    bn_param["mode"] = "test"
    out, _ = cs231n.spatial_batchnorm_forward(x, gamma, beta, bn_param)
    assert_close(out, reference.batch_norm(x, mean, var, gamma, beta, 1e-5))
    assert_close(bn_param["running_mean"], mean)


def test_batchnorm_takes_eps_and_momentum_and_leaves_old_arrays_alone(rng):
    x, old = rng.standard_normal((4, 2, 3, 3)), np.full(2, 5.0)
    bn_param = {
        "mode": "train", "eps": 0.5, "momentum": 0.25, "running_mean": old, "running_var": old,
    }  # fmt: skip
    out, _ = cs231n.spatial_batchnorm_forward(x, np.ones(2), np.zeros(2), bn_param)
    want, _ = reference.batch_norm_train(x, None, None, eps=0.5)
    assert_close(out, want)
    assert_close(bn_param["running_mean"], 1.25 + 0.75 * x.mean(axis=(0, 2, 3)))
    assert_close(bn_param["running_var"], 1.25 + 0.75 * x.var(axis=(0, 2, 3)))
    assert_array_equal(old, [5.0, 5.0])
    out, _ = cs231n.spatial_batchnorm_forward(
        x, np.ones(2), np.zeros(2), {"mode": "test", "eps": 0.5, "running_mean": old}
    )
    assert_close(out, (x - 5.0) / np.sqrt(0.5))


def test_running_variance_of_a_constant_channel_is_zero():
    bn_param = {"mode": "train", "momentum": 0}
    cs231n.spatial_batchnorm_forward(np.full((4, 1, 2, 2), 3.7), [1.0], [0.0], bn_param)
    assert 0 <= bn_param["running_var"][0] < 1e-18


@pytest.mark.parametrize("mode", ["train", "test"])
def test_batchnorm_gradients_are_numeric_gradients(rng, mode):
    x = rng.standard_normal((3, 2, 3, 2))
    gamma, beta = rng.standard_normal(2), rng.standard_normal(2)
    running = {"running_mean": rng.standard_normal(2), "running_var": rng.uniform(1, 2, 2)}
    dout = rng.standard_normal(x.shape)

    def f(x, gamma, beta):
        bn_param = {"mode": mode, "eps": 0.1, **running}
        return cs231n.spatial_batchnorm_forward(x, gamma, beta, bn_param)

    _, cache = f(x, gamma, beta)
    dx, dgamma, dbeta = cs231n.spatial_batchnorm_backward(dout, cache)
    wants = (
        numeric_gradient(lambda v: f(v, gamma, beta)[0], x, dout),
        numeric_gradient(lambda v: f(x, v, beta)[0], gamma, dout),
        numeric_gradient(lambda v: f(x, gamma, v)[0], beta, dout),
    )
    for got, want in zip((dx, dgamma, dbeta), wants, strict=True):
        assert_allclose(got, want, rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------------- columns


def loop_columns(x, height, width, pad, stride):
    """(C, height, width, out_h, out_w, N), copied cell by cell."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    n, c, h, w = padded.shape
    shape = (c, height, width, (h - height) // stride + 1, (w - width) // stride + 1, n)
    cols = np.zeros(shape)
    for ch, k, m, i, j, image in np.ndindex(shape):
        cols[ch, k, m, i, j, image] = padded[image, ch, i * stride + k, j * stride + m]
    return cols


@pytest.mark.parametrize(("x_shape", "field", "stride", "pad"), CONV_CASES)
def test_columns_and_back(rng, x_shape, field, stride, pad):
    x, window = rng.standard_normal(x_shape), field[1:]
    want = loop_columns(x, *window, pad, stride)
    c, hh, ww, out_h, out_w, n = want.shape
    cols = cs231n.im2col_cython(x, *window, pad, stride)
    assert_array_equal(cols, want.reshape(c * hh * ww, out_h * out_w * n))

    # The adjoint: <cols, im2col(v)> = <col2im(cols), v> for every v, here each unit vector.
    values = rng.standard_normal(want.shape)
    image = np.zeros(x_shape)
    for place in np.ndindex(x_shape):
        unit = np.zeros(x_shape)
        unit[place] = 1
        image[place] = np.sum(values * loop_columns(unit, *window, pad, stride))
    flat = values.reshape(cols.shape)
    assert_close(cs231n.col2im_cython(flat, *x_shape, *window, pad, stride), image)
    six = values.transpose(0, 1, 2, 5, 3, 4)
    assert_close(cs231n.col2im_6d_cython(six, *x_shape, *window, pad, stride), image)


def test_columns_reject_wrong_shapes():
    with pytest.raises(ValueError, match="x:"):
        cs231n.im2col_cython(np.ones((3, 4, 4)), 2, 2, 0, 1)
    with pytest.raises(ValueError, match="field_height: expected at most 2"):
        cs231n.im2col_cython(np.ones((1, 1, 2, 2)), 3, 3, 0, 1)
    with pytest.raises(ValueError, match="cols"):
        cs231n.col2im_cython(np.ones((4, 8)), 1, 1, 4, 4, 2, 2, 0, 1)
    with pytest.raises(ValueError, match="cols"):
        # out_h and out_w exchanged: as many elements, in other places
        cs231n.col2im_6d_cython(np.ones((1, 2, 2, 1, 4, 3)), 1, 1, 4, 5, 2, 2, 0, 1)
    with pytest.raises(ValueError, match="stride"):
        cs231n.col2im_cython(np.ones((4, 9)), 1, 1, 4, 4, 2, 2, 0, 0)


def test_columns_of_no_images_and_no_channels():
    for shape in ((0, 2, 5, 6), (3, 0, 5, 6)):
        cols = cs231n.im2col_cython(np.ones(shape), 2, 3, 1, 1)
        assert cols.shape == (shape[1] * 6, 36 * shape[0])
        assert cs231n.col2im_cython(cols, *shape, 2, 3, 1, 1).shape == shape
        six = np.ones((shape[1], 2, 3, shape[0], 6, 6))
        assert cs231n.col2im_6d_cython(six, *shape, 2, 3, 1, 1).shape == shape


@pytest.mark.parametrize("bad", [None, "2", 1.5, -1, np.ones(2), {}])
def test_bad_numbers_of_columns_are_named(bad):
    x, cols, six = np.ones((1, 2, 5, 5)), np.ones((18, 9)), np.ones((2, 3, 3, 1, 3, 3))
    field = {"field_height": 3, "field_width": 3, "padding": 0, "stride": 1}
    short = {"HH": 3, "WW": 3, "pad": 0, "stride": 1}
    images = {"N": 1, "C": 2, "H": 5, "W": 5}
    for function, array, numbers in (
        (cs231n.im2col_cython, x, field),
        (cs231n.col2im_cython, cols, images | field),
        (cs231n.col2im_6d_cython, six, images | short),
    ):
        function(array, **numbers)
        for name in numbers:
            with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
                function(array, **(numbers | {name: bad}))
        for name in set(numbers) & {"field_height", "field_width", "HH", "WW"}:
            with pytest.raises(ValueError, match=f"^{name}: expected at most 5 pixels"):
                function(array, **(numbers | {name: 6}))


# -------------------------------------------------------------------------------------- errors


def test_missing_keys_are_named(rng):
    x, w, b = conv_arrays(rng, (1, 1, 4, 4), (1, 3, 3))
    for key in ("stride", "pad"):
        param = {"stride": 1, "pad": 0}
        del param[key]
        with pytest.raises(ValueError, match=f"conv_param.*'{key}' is missing"):
            cs231n.conv_forward_fast(x, w, b, param)
    for key in ("pool_height", "pool_width", "stride"):
        param = {"pool_height": 2, "pool_width": 2, "stride": 2}
        del param[key]
        with pytest.raises(ValueError, match=f"pool_param.*'{key}' is missing"):
            cs231n.max_pool_forward_fast(x, param)
    with pytest.raises(ValueError, match=r"bn_param.*'mode' is missing"):
        cs231n.spatial_batchnorm_forward(x, np.ones(1), np.ones(1), {})


def test_bad_values_are_named(rng):
    x, w, b = conv_arrays(rng, (1, 1, 4, 4), (1, 3, 3))
    for param, error in (
        ({"stride": 0, "pad": 0}, ValueError),
        ({"stride": 1, "pad": -1}, ValueError),
        ({"stride": 1.0, "pad": 0}, TypeError),
        ([1, 0], TypeError),
    ):
        with pytest.raises(error, match="conv_param"):
            cs231n.conv_forward_fast(x, w, b, param)
    with pytest.raises(ValueError, match="pool_param"):
        cs231n.max_pool_forward_fast(x, {"pool_height": 0, "pool_width": 2, "stride": 2})
    with pytest.raises(ValueError, match="mode"):
        cs231n.spatial_batchnorm_forward(x, np.ones(1), np.ones(1), {"mode": "eval"})
    _, cache = cs231n.conv_forward_fast(x, w, b, {"stride": 1, "pad": 0})
    with pytest.raises(ValueError, match="dout"):
        cs231n.conv_backward_fast(np.ones((1, 1, 4, 4)), cache)


# ------------------------------------------------------------------------------------ importing


def test_star_import():
    names = {}
    exec("from fastconv.compat.cs231n import *", names)
    del names["__builtins__"]
    assert set(names) == set(cs231n.__all__)
    kinds = ("fast", "naive", "im2col", "strides")
    assert {f"conv_{way}_{kind}" for way in ("forward", "backward") for kind in kinds} <= set(names)
    assert {"max_pool_forward_fast", "max_pool_backward_naive", "im2col_cython"} <= set(names)
    assert {"col2im_cython", "col2im_6d_cython", "spatial_batchnorm_forward"} <= set(names)
    assert names["conv_forward_fast"] is cs231n.conv_forward_fast


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A package laid out as the course's, whose own fast_layers cannot work; its name."""
    name = "made_up_course"
    root = tmp_path / name
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "layers.py").write_text("def conv_forward_naive():\n    return 'the student'\n")
    (root / "fast_layers.py").write_text("from .im2col_cython import nothing_compiled\n")
    (root / "layer_utils.py").write_text(
        "from .layers import *\nfrom .fast_layers import *\n"
        "def block(x, w, b, conv_param):\n    return conv_forward_fast(x, w, b, conv_param)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield name
    cs231n.uninstall(name)
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]


def test_install_before_the_course_is_imported(course):
    with pytest.raises(ImportError):
        importlib.import_module(f"{course}.layer_utils")
    assert cs231n.install(course) is None
    utils = importlib.import_module(f"{course}.layer_utils")
    assert utils.conv_forward_fast is cs231n.conv_forward_fast
    assert utils.conv_forward_naive() == "the student"
    out, _ = utils.block(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)), [1], {"stride": 1, "pad": 0})
    assert_array_equal(out, [[[[10]]]])
    names = {}
    exec(f"from {course}.im2col_cython import *", names)
    assert names["im2col_cython"] is cs231n.im2col_cython


def test_install_sets_attributes_of_an_imported_package(course):
    package = importlib.import_module(course)
    cs231n.install(course)
    assert package.fast_layers is sys.modules[f"{course}.fast_layers"]
    assert package.im2col_cython.col2im_6d_cython is cs231n.col2im_6d_cython


def test_install_where_there_is_no_package():
    cs231n.install("no_such_course")
    names = {}
    exec("from no_such_course.fast_layers import max_pool_forward_fast", names)
    assert names["max_pool_forward_fast"] is cs231n.max_pool_forward_fast
    cs231n.uninstall("no_such_course")
    assert not [m for m in sys.modules if m.startswith("no_such_course")]


def test_install_twice_and_after_the_package_appears(course):
    cs231n.install(course)
    first = sys.modules[f"{course}.fast_layers"]
    package = importlib.import_module(course)
    cs231n.install(course)
    assert sys.modules[f"{course}.fast_layers"] is first is package.fast_layers


def test_uninstall_brings_back_what_was_there(course, tmp_path):
    (tmp_path / course / "im2col_cython.py").write_text("nothing_compiled = 1\n")
    theirs = importlib.import_module(f"{course}.fast_layers")
    package = sys.modules[course]
    cs231n.install(course)
    cs231n.install(course)
    assert package.fast_layers is not theirs
    cs231n.uninstall(course)
    assert package.fast_layers is theirs is sys.modules[f"{course}.fast_layers"]
    cs231n.uninstall(course)
    assert package.fast_layers is theirs


def test_uninstall_removes_what_was_not_there(course):
    package = importlib.import_module(course)
    cs231n.install(course)
    cs231n.uninstall(course)
    assert not hasattr(package, "fast_layers")
    assert f"{course}.fast_layers" not in sys.modules


def test_install_rejects_what_is_no_name():
    for name in ("", "a-b", "a..b", ".fast_layers"):
        with pytest.raises(ValueError, match="package"):
            cs231n.install(name)
    with pytest.raises(TypeError, match="package"):
        cs231n.install(None)


@pytest.mark.parametrize("cache", [None, 3, (), "four", [1, 2, 3, 4], (1, 2, 3, 4, 5)])
def test_a_cache_of_another_function_is_named(cache):
    for backward in (
        cs231n.conv_backward_fast,
        cs231n.max_pool_backward_fast,
        cs231n.spatial_batchnorm_backward,
    ):
        with pytest.raises(TypeError, match=r"^cache: "):
            backward(np.ones((1, 1, 2, 2)), cache)


@pytest.mark.parametrize(
    "bad", [np.ones(3), np.ones((1, 1, 5, 6)), None, np.ones((1, 1, 5, 5), complex)]
)
def test_a_bad_gradient_is_named(bad):
    x, w, one = np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3)), np.ones(1)
    pool_param = {"pool_height": 2, "pool_width": 2, "stride": 1}
    for backward, (_, cache) in (
        (cs231n.conv_backward_fast, cs231n.conv_forward_fast(x, w, one, {"stride": 1, "pad": 1})),
        (cs231n.max_pool_backward_fast, cs231n.max_pool_forward_fast(x, pool_param)),
        (cs231n.batchnorm_backward, cs231n.batchnorm_forward(x, one, one, {"mode": "train"})),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^dout: expected"):
            backward(bad, cache)


@pytest.mark.parametrize("key", ["eps", "momentum", "running_mean", "running_var"])
@pytest.mark.parametrize("bad", ["0.1", None, 1j])
def test_bad_batch_norm_settings_are_named(key, bad):
    x = np.ones((2, 3, 2, 2))
    for mode in ("train", "test"):
        with pytest.raises((TypeError, ValueError), match=key):
            cs231n.spatial_batchnorm_forward(x, np.ones(3), np.ones(3), {"mode": mode, key: bad})


@pytest.mark.parametrize("bad", [np.ones(2), 1.0, "1", np.ones(3, complex)])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_bad_gamma_and_beta_are_named(bad, mode):
    x, one = np.ones((2, 3, 2, 2)), np.ones(3)
    with pytest.raises((TypeError, ValueError), match=r"^gamma: expected"):
        cs231n.spatial_batchnorm_forward(x, bad, one, {"mode": mode})
    with pytest.raises((TypeError, ValueError), match=r"^beta: expected"):
        cs231n.spatial_batchnorm_forward(x, one, bad, {"mode": mode})
    with pytest.raises(ValueError, match=r"^x: expected"):
        cs231n.spatial_batchnorm_forward(one, one, one, {"mode": mode})
