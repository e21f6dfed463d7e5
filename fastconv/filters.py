# SPDX-License-Identifier: BSD-3-Clause
"""Classical image filters: named kernels, and their correlation or convolution with an image.

*Correlation* lays the kernel on the image as it is printed; :func:`apply` does that, as courses on
image processing show it and as :func:`fastconv.conv2d` does. *Convolution* turns the kernel by 180
degrees first. For kernels which look the same turned so (blurs, sharpening, Laplacians, lines)
there is no difference; for Sobel and Prewitt it is the sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from fastconv import functional
from fastconv.functional._arrays import Array, as_array, common_dtypes
from fastconv.problem import choice, integer, number

__all__ = ["KERNELS", "apply", "convolution", "correlation", "gaussian"]


def gaussian(size: int, sigma: float) -> Array:
    """A Gaussian blur kernel.

    k[i, j] = exp(-((i - m)^2 + (j - m)^2) / (2 sigma^2)) / total, m = (size - 1) / 2

    Parameters
    ----------
    size : int
        Cells along each axis, at least 1. 6 sigma + 1 cells hold 99.7 % of the bell along an axis.
    sigma : float
        Standard deviation in cells, above 0.

    Returns
    -------
    float64 array (size, size) with sum 1

    Raises
    ------
    TypeError, ValueError
        When size is not such an int or sigma not such a finite number.
    """
    size = integer("size", size, 1)
    sigma = number("sigma", sigma)
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma: expected a finite number above 0, got {sigma!r}")
    # The nearest cell has exponent 0, so that a small sigma does not underflow to 0/0.
    squares = (np.arange(size) - (size - 1) / 2) ** 2
    with np.errstate(over="ignore"):
        bell = np.exp((squares.min() - squares) / (2 * sigma) / sigma)
    bell /= bell.sum()
    return np.outer(bell, bell)


def _binomial(row: Sequence[int]) -> Array:
    """The blur kernel whose rows and columns are these binomial coefficients."""
    return np.outer(row, row) / sum(row) ** 2


def _read_only(kernels: Mapping[str, Any]) -> Mapping[str, Array]:
    arrays = {name: np.array(kernel, dtype=np.float64) for name, kernel in kernels.items()}
    for array in arrays.values():
        array.flags.writeable = False
    return MappingProxyType(arrays)


KERNELS: Mapping[str, Array] = _read_only(
    {
        "identity": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        "horizontal_lines": [[-1, -1, -1], [2, 2, 2], [-1, -1, -1]],
        "vertical_lines": [[-1, 2, -1], [-1, 2, -1], [-1, 2, -1]],
        "lines_45": [[-1, -1, 2], [-1, 2, -1], [2, -1, -1]],
        "lines_135": [[2, -1, -1], [-1, 2, -1], [-1, -1, 2]],
        "sobel_x": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
        "sobel_y": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
        "prewitt_x": [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]],
        "prewitt_y": [[-1, -1, -1], [0, 0, 0], [1, 1, 1]],
        "box_blur": np.full((3, 3), 1 / 9),
        "gaussian_blur_3x3": _binomial([1, 2, 1]),
        "gaussian_blur_5x5": _binomial([1, 4, 6, 4, 1]),
        "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
        "edge_detect": [[0, -1, 0], [-1, 4, -1], [0, -1, 0]],
        "strong_edge_detect": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
    }
)
"""Named kernels, float64 and read-only.

===================== ==========================================================================
name                  answers to, or does
===================== ==========================================================================
identity              the image itself
horizontal_lines      bright lines one cell wide, from left to right
vertical_lines        ... from top to bottom
lines_45              ... rising to the right, /
lines_135             ... falling to the right, \\
sobel_x, prewitt_x    brightness growing to the right: positive under :func:`apply`
sobel_y, prewitt_y    brightness growing downwards: positive under :func:`apply`
box_blur              mean of 3x3 cells
gaussian_blur_3x3     binomial weights 1 2 1 along each axis, sum 1
gaussian_blur_5x5     binomial weights 1 4 6 4 1 along each axis, sum 1
sharpen               the image plus edge_detect
edge_detect           minus the Laplacian over 4 neighbours
strong_edge_detect    minus the Laplacian over 8 neighbours
===================== ==========================================================================
"""


def correlation(image: Any, kernel: Any, padding_mode: str = "zeros") -> Array:
    """Filter an image with a kernel that is not flipped; :func:`apply` is the same function.

    y[i, j] = sum over k, l of image[i + k - K//2, j + l - L//2] * kernel[k, l]

    and so for each channel by itself.

    Parameters
    ----------
    image : array (H, W) or (H, W, C)
        Of real numbers; uint8 pictures are taken as they are, 0 to 255.
    kernel : name in KERNELS, or array (K, L)
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What lies beyond the edges; as in :func:`fastconv.pad`.

    Returns
    -------
    array of the image's shape
        Neither clipped nor rounded. A named kernel takes the image's float type, which is float32
        for uint8; with an array the type is NumPy's promotion of both, float64 at least for
        integers of more than 16 bits.

    Raises
    ------
    ValueError
        An unknown name or mode, other axes than these, an empty kernel or image, or a kernel that
        reaches further than "reflect" or "circular" can continue the image.
    TypeError
        Arrays which do not hold real numbers.
    """
    image, kernel = _image_and_kernel(image, kernel)
    low = tuple(k // 2 for k in kernel.shape)
    return _filter(image, kernel, low, padding_mode)


def convolution(image: Any, kernel: Any, padding_mode: str = "zeros") -> Array:
    """Filter an image with a kernel that is flipped along both axes.

    y[i, j] = sum over k, l of image[i - k + K//2, j - l + L//2] * kernel[k, l]

    and so for each channel by itself.

    Parameters
    ----------
    image, kernel, padding_mode
        As in :func:`correlation`.

    Returns
    -------
    array of the image's shape
        As correlation.

    Raises
    ------
    ValueError, TypeError
        As correlation.
    """
    image, kernel = _image_and_kernel(image, kernel)
    low = tuple((k - 1) // 2 for k in kernel.shape)
    return _filter(image, np.flip(kernel), low, padding_mode)


apply = correlation


def _image_and_kernel(image: Any, kernel: Any) -> tuple[Array, Array]:
    """Both as checked arrays; a named kernel in the image's float type."""
    image = as_array("image", image)
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"image: expected (H, W) or (H, W, C), none 0, got shape {image.shape}")
    if isinstance(kernel, str):
        kernel = KERNELS[choice("kernel", kernel, tuple(KERNELS))]
        return image, kernel.astype(common_dtypes(image=image)[1])
    kernel = as_array("kernel", kernel)
    if kernel.ndim != 2 or kernel.size == 0:
        raise ValueError(f"kernel: expected a name or (K, L), none 0, got shape {kernel.shape}")
    return image, kernel


def _filter(image: Array, kernel: Array, low: tuple[int, ...], padding_mode: str) -> Array:
    """y[i, j] = sum over k, l of image[i + k - low[0], j + l - low[1]] * kernel[k, l]."""
    pads = tuple((a, k - 1 - a) for a, k in zip(low, kernel.shape, strict=True))
    planes = np.moveaxis(np.atleast_3d(image), -1, 0)[:, np.newaxis]
    weights = kernel[np.newaxis, np.newaxis]
    y = functional.conv2d(planes, weights, padding=pads, padding_mode=padding_mode)
    return np.ascontiguousarray(np.moveaxis(y[:, 0], 0, -1)).reshape(image.shape)
