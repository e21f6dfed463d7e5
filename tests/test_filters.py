# SPDX-License-Identifier: BSD-3-Clause
"""fastconv.filters against scipy.ndimage, on random images and on photographs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from sklearn.datasets import load_sample_images

from fastconv import filters

# Ours and ndimage's names of the ways beyond the edges.
MODES = {"zeros": "constant", "reflect": "mirror", "replicate": "nearest", "circular": "wrap"}
PAIRS = {"apply": "correlate", "correlation": "correlate", "convolution": "convolve"}
SIZES = [(3, 3), (1, 1), (2, 2), (4, 3), (1, 5), (5, 2)]


@pytest.fixture
def rng():
    return np.random.default_rng(20240612)


@pytest.fixture(scope="module")
def photographs():
    """(427, 640, 3) uint8: a temple and a flower; a piece of each keeps the tests fast."""
    return [photo[100:220, 200:330] for photo in load_sample_images().images]


def expected(name, image, kernel, mode):
    """ndimage's answer in float64, channel by channel."""
    function = getattr(ndimage, PAIRS[name])
    planes = np.atleast_3d(image).astype(np.float64)
    done = [function(planes[..., c], kernel, mode=MODES[mode]) for c in range(planes.shape[-1])]
    return np.stack(done, axis=-1).reshape(image.shape)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", [(9, 8), (8, 7, 3)])
def test_equals_ndimage(rng, shape, name, mode, size):
    image, kernel = rng.standard_normal(shape), rng.standard_normal(size)
    got = getattr(filters, name)(image, kernel, mode)
    assert got.shape == image.shape
    assert got.dtype == np.float64
    assert_allclose(got, expected(name, image, kernel, mode), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", filters.KERNELS)
@pytest.mark.parametrize("mode", MODES)
def test_named_kernels_on_photographs(photographs, kernel, mode):
    for photo in photographs:
        got = filters.apply(photo, kernel, mode)
        assert got.dtype == np.float32
        assert got.flags.c_contiguous
        want = expected("apply", photo, filters.KERNELS[kernel], mode)
        # float32 holds sums of integers below 2^24, and blurs to 7 digits of at most 255.
        assert_allclose(got, want, rtol=0, atol=1e-4)
        grey = photo.mean(axis=-1)
        assert_allclose(
            filters.apply(grey, kernel, mode),
            expected("apply", grey, filters.KERNELS[kernel], mode),
            rtol=0,
            atol=1e-9,
        )


def test_results_are_neither_clipped_nor_rounded(photographs):
    edges = filters.apply(photographs[0], "edge_detect")
    assert edges.min() < 0
    assert edges.max() > 255
    blurred = filters.apply(photographs[0], "box_blur")
    assert np.any(blurred != np.rint(blurred))


def test_dtypes():
    image = np.arange(20).reshape(4, 5)
    names = {"u1": "f4", "i2": "f4", "i8": "f8", "f2": "f2", "f4": "f4", "f8": "f8"}
    for given, result in names.items():
        assert filters.apply(image.astype(given), "sharpen").dtype == result
    assert filters.apply(image.astype("u1"), np.ones((2, 2), "f8")).dtype == np.float64
    assert filters.apply(image.astype("u1"), np.ones((2, 2), "f4")).dtype == np.float32


def test_named_kernels_keep_float64s_digits():
    image = np.full((3, 3), 1.0)
    assert_allclose(filters.apply(image, "box_blur", "replicate"), image, rtol=1e-15)


def test_convolution_flips_and_correlation_does_not():
    impulse = np.zeros((5, 5))
    impulse[2, 2] = 1
    kernel = np.arange(1.0, 10.0).reshape(3, 3)
    assert_array_equal(filters.convolution(impulse, kernel)[1:4, 1:4], kernel)
    assert_array_equal(filters.correlation(impulse, kernel)[1:4, 1:4], kernel[::-1, ::-1])
    assert filters.apply is filters.correlation


def test_gradients_are_positive_where_it_gets_brighter():
    ramp = np.tile(np.arange(6.0), (5, 1))
    for name, rise in (("sobel", 8), ("prewitt", 6)):
        right, down = filters.KERNELS[f"{name}_x"], filters.KERNELS[f"{name}_y"]
        assert_array_equal(filters.apply(ramp, right)[1:-1, 1:-1], np.full((3, 4), rise))
        assert_array_equal(filters.apply(ramp.T, down)[1:-1, 1:-1], np.full((4, 3), rise))
        assert_array_equal(filters.apply(ramp, down)[1:-1, 1:-1], np.zeros((3, 4)))
        assert_array_equal(filters.convolution(ramp, right)[1:-1, 1:-1], np.full((3, 4), -rise))


def test_each_line_detector_prefers_its_line():
    lines = {
        "horizontal_lines": np.eye(5)[[2]].T @ np.ones((1, 5)),
        "vertical_lines": np.ones((5, 1)) @ np.eye(5)[[2]],
        "lines_45": np.eye(5)[::-1],
        "lines_135": np.eye(5),
    }
    for name, picture in lines.items():
        at_centre = {other: filters.apply(picture, other)[2, 2] for other in lines}
        assert at_centre.pop(name) == 6
        assert max(at_centre.values()) <= 0


def test_sums_of_the_kernels():
    ones = {"identity", "box_blur", "gaussian_blur_3x3", "gaussian_blur_5x5", "sharpen"}
    for name, kernel in filters.KERNELS.items():
        assert kernel.sum() == pytest.approx(1 if name in ones else 0, abs=1e-12)


def test_kernels_cannot_be_changed():
    with pytest.raises(TypeError):
        filters.KERNELS["sobel_x"] = np.ones((3, 3))
    for kernel in filters.KERNELS.values():
        with pytest.raises(ValueError, match="read-only"):
            kernel[0, 0] = 1


@pytest.mark.parametrize(
    ("size", "sigma"), [(1, 1.0), (3, 0.5), (7, 1.5), (4, 1), (5, 1e-200), (4, 1e-200)]
)
@pytest.mark.filterwarnings("error")
def test_gaussian(size, sigma):
    kernel = filters.gaussian(size, sigma)
    assert kernel.shape == (size, size)
    assert kernel.sum() == pytest.approx(1)
    assert_array_equal(kernel, kernel[::-1, ::-1])
    assert_array_equal(kernel, kernel.T)


def test_gaussian_is_ndimages_bell():
    impulse = np.zeros((9, 9))
    impulse[4, 4] = 1
    want = ndimage.gaussian_filter(impulse, 1.3, radius=4, mode="constant")
    assert_allclose(filters.gaussian(9, 1.3), want, rtol=1e-12)


def test_gaussian_rejects():
    for size, sigma, error in (
        (0, 1, ValueError),
        (3, 0, ValueError),
        (3, -1, ValueError),
        (3, np.nan, ValueError),
        (3, np.inf, ValueError),
        (2.5, 1, TypeError),
        (3, "1", TypeError),
        (3, [1, 2], TypeError),
        (3, 1j, TypeError),
    ):
        with pytest.raises(error, match=r"size|sigma"):
            filters.gaussian(size, sigma)


def test_errors():
    image, kernel = np.ones((4, 4)), np.ones((3, 3))
    for bad_image in (np.ones(4), np.ones((2, 4, 4, 3)), np.ones((0, 4))):
        with pytest.raises(ValueError, match="image"):
            filters.apply(bad_image, kernel)
    for bad_kernel in (np.ones(3), np.ones((3, 3, 3)), np.ones((0, 3)), "sobel"):
        with pytest.raises(ValueError, match="kernel"):
            filters.apply(image, bad_kernel)
    with pytest.raises(TypeError, match="image"):
        filters.apply(image * 1j, kernel)
    with pytest.raises(TypeError, match="kernel"):
        filters.convolution(image, kernel * 1j)
    with pytest.raises(ValueError, match="padding_mode"):
        filters.apply(image, kernel, "mirror")
    with pytest.raises(ValueError, match="padding"):
        filters.apply(image, np.ones((9, 9)), "reflect")
