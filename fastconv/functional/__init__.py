# SPDX-License-Identifier: BSD-3-Clause
"""The public pure functions: NumPy in, NumPy out."""

from fastconv.functional.conv import (
    conv1d,
    conv1d_backward,
    conv2d,
    conv2d_backward,
    conv3d,
    conv3d_backward,
)
