# SPDX-License-Identifier: BSD-3-Clause
"""Output sizes, receptive fields and parameter counts: textbook numbers, and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastconv import functional, nn
from fastconv.arithmetic import conv_output_size, count_parameters, receptive_field
from fastconv.models import LeNet5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((32, 5), 28),
        ((224, 7, 2, 3), 112),
        ((227, 11, 4), 55),
        ((7, 3, 1, 0, 2), 3),
        ((13, 3, 2, "same"), 7),
        ((13, 3, 2, "valid"), 6),
        ((28, (5, 3)), (24, 26)),
        (((28, 20), 5), (24, 16)),
        (((9, 9, 9), 3, (1, 2, 3)), (7, 4, 3)),
        (((9, 9), 3, 1, ((1, 2), (0, 0))), (10, 7)),
        (((9,), 3), (7,)),
        ((0, 3, 1, 2), 2),
    ],
)
def test_output_sizes(arguments, expected):
    assert conv_output_size(*arguments) == expected


def test_output_sizes_are_those_of_convolutions():
    for size, kernel, stride, padding, dilation in itertools.product(
        (9, 12), (1, 2, 3), (1, 2, 4), (0, 2, "same"), (1, 3)
    ):
        y = functional.conv1d(
            np.zeros((1, 1, size)), np.zeros((1, 1, kernel)), None, stride, padding, dilation
        )
        assert conv_output_size(size, kernel, stride, padding, dilation) == y.shape[2]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((2, 5), ValueError, "do not fit"),
        (((2, 2), (3, 3, 3)), ValueError, "size: expected an integer or 3 integers"),
        ((9, 0), ValueError, "kernel_size"),
        ((9, 3, 0), ValueError, "stride"),
        ((9, 3, 1, -1), ValueError, "padding"),
        ((9, 3, 1, "full"), ValueError, "padding"),
        ((9, 2.5), TypeError, "kernel_size"),
        (("9", 2), TypeError, "size"),
    ],
)
def test_output_size_errors(arguments, error, text):
    with pytest.raises(error, match=text):
        conv_output_size(*arguments)


@pytest.mark.parametrize(
    ("layers", "size", "jump"),
    [
        ([], 1, 1),
        ([(3, 1), (3, 1)], 5, 1),
        ([(11, 4), (3, 2)], 19, 8),
        ([(3, 1, 2), (3, 1, 4)], 13, 1),
        ([((3, 5), 1), (2, (2, 1))], (4, 6), (2, 1)),
    ],
)
def test_receptive_fields(layers, size, jump):
    assert receptive_field(layers) == (size, jump)


def test_receptive_field_of_networks():
    assert receptive_field(LeNet5()) == ((32, 32), (4, 4))
    layers = [nn.Conv1d(1, 1, 3, 2), nn.ReLU(), nn.Conv1d(1, 1, 3, dilation=2), nn.Conv1d(1, 1, 2)]
    field = receptive_field(nn.Sequential(*layers))
    assert field == receptive_field(layers) == ((13,), (2,))
    x = np.zeros((1, 1, 41))
    for layer in layers:
        if isinstance(layer, nn.Conv1d):
            layer.weight.data = np.ones_like(layer.weight.data)
    y = nn.Sequential(*[layer for layer in layers if not isinstance(layer, nn.ReLU)])
    middle = y(x).shape[2] // 2
    dy = np.zeros_like(y(x))
    dy[0, 0, middle] = 1
    seen = np.flatnonzero(y.backward(dy)[0, 0])
    assert seen.max() - seen.min() + 1 == field.size[0]


def test_the_whole_map_ends_the_walk():
    convolution = nn.Conv2d(1, 2, 3)
    for layer in (nn.Flatten(), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool3d(1), nn.Linear(4, 4)):
        model = nn.Sequential(convolution, layer, nn.Conv2d(2, 2, 5))
        assert receptive_field(model).size == (3, 3)


@pytest.mark.parametrize("layers", [[3], [(3,)], [(1, 2, 3, 4)], [(3, 0)], ["33"]])
def test_receptive_field_errors(layers):
    with pytest.raises(ValueError, match=r"layers|stride"):
        receptive_field(layers)


def test_count_parameters():
    assert count_parameters(LeNet5()) == 61_706
    assert count_parameters(nn.Linear(3, 2, bias=False)) == 6
    assert count_parameters(nn.ReLU()) == 0


@pytest.mark.parametrize("bad", [3, None, 1.5, object(), np.array(5)])
def test_what_is_no_network_is_named(bad):
    with pytest.raises(TypeError, match=r"^layers: "):
        receptive_field(bad)
    with pytest.raises(TypeError, match=r"^module: "):
        count_parameters(bad)
