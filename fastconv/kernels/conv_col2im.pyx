# SPDX-License-Identifier: BSD-3-Clause
"""The input gradient as a product and its fold: columns = w^T dy, each entry added to the cell that im2col takes it from.

For large strides, where the phases of the input have few taps each. The columns of several images are kept at a time, or of
some channels of one image where these are many.
"""

from fastconv.kernels import conv_im2col, unfold
from fastconv.kernels.lattice import row
from fastconv.kernels.memory import empty

# Bytes of columns, which the threads share: they stay in the last cache, where the fold finds them.
COLUMNS_BYTES = 8 << 20


def run(lattice, dy, w, dx, groups, transposed, bias, residual, activation, threads, max_workspace):
    """As in the other algorithms, for input gradients (`transposed`) over the lattice of the forward convolution."""
    taps, pixels, batch = lattice.taps, lattice.outputs, len(dy)
    outputs, channels = len(w) // groups, w.shape[1]
    limit = COLUMNS_BYTES if max_workspace is None else min(COLUMNS_BYTES, max_workspace)
    most = max(1, limit // (pixels * taps * dx.itemsize))  # channels, of all images and groups together
    images = max(1, most // (groups * channels))
    step = groups if most >= groups * channels else 1  # groups at a time
    most = min(most, channels)
    columns = empty((min(images, batch) * step * most * taps, pixels), dx.dtype)
    over, used = row(pixels), 0
    for n in range(0, batch, images):
        for g in range(0, groups, step):
            dy_part = dy[n:n + images, g * outputs:(g + step) * outputs]
            w_part = w[g * outputs:(g + step) * outputs].reshape(step * outputs, channels * taps, 1)
            for c in range(0, channels, most):
                dx_part = dx[n:n + images, g * channels + c:(g + step - 1) * channels + min(c + most, channels)]
                planes = dx_part.shape[0] * dx_part.shape[1]
                used = conv_im2col.run(over, dy_part, w_part[:, c * taps:(c + most) * taps], columns[:planes * taps], step,
                                       True, None, None, -1, threads, max_workspace)
                if threads == 0:
                    return used + columns.nbytes
                unfold.fold(lattice, dx_part, columns, planes, threads)
    return used + columns.nbytes
