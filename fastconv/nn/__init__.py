# SPDX-License-Identifier: BSD-3-Clause
"""Layers with state, named and shaped as in ``torch.nn``: arrays are NumPy, gradients are explicit.

``y = layer(x)`` keeps what the gradient needs; ``dx = layer.backward(dy)`` adds to the ``.grad`` of
every parameter. ``model.prepare(x.shape)`` freezes a model for inference.
"""

from fastconv.nn import init
from fastconv.nn.activation import LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from fastconv.nn.conv import Conv1d, Conv2d, Conv3d
from fastconv.nn.dropout import Dropout, Dropout2d
from fastconv.nn.linear import Linear
from fastconv.nn.loss import CrossEntropyLoss
from fastconv.nn.module import Module, Parameter, Sequential, no_grad
from fastconv.nn.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastconv.nn.pool import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from fastconv.nn.shape import Flatten

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout2d",
    "Flatten",
    "Linear",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "init",
    "no_grad",
]
