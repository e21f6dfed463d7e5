# SPDX-License-Identifier: BSD-3-Clause
"""The public pure functions: NumPy in, NumPy out."""

from fastconv.functional.activation import (
    log_softmax,
    log_softmax_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    softmax,
    softmax_backward,
    tanh,
    tanh_backward,
)
from fastconv.functional.conv import (
    conv1d,
    conv1d_backward,
    conv2d,
    conv2d_backward,
    conv3d,
    conv3d_backward,
)
from fastconv.functional.dense import linear, linear_backward
from fastconv.functional.loss import cross_entropy, cross_entropy_backward
from fastconv.functional.norm import batch_norm, batch_norm_backward, batch_norm_train
from fastconv.functional.pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool1d_backward,
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    adaptive_avg_pool3d,
    adaptive_avg_pool3d_backward,
    adaptive_max_pool1d,
    adaptive_max_pool1d_backward,
    adaptive_max_pool2d,
    adaptive_max_pool2d_backward,
    adaptive_max_pool3d,
    adaptive_max_pool3d_backward,
    avg_pool1d,
    avg_pool1d_backward,
    avg_pool2d,
    avg_pool2d_backward,
    avg_pool3d,
    avg_pool3d_backward,
    max_pool1d,
    max_pool1d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool3d,
    max_pool3d_backward,
)
from fastconv.functional.shape import (
    dropout,
    dropout2d,
    dropout2d_backward,
    dropout_backward,
    flatten,
    flatten_backward,
    fold,
    fold_backward,
    pad,
    pad_backward,
    unfold,
    unfold_backward,
)

__all__ = [name for name in dir() if not name.startswith("_") and callable(globals()[name])]
