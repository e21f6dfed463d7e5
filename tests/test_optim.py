# SPDX-License-Identifier: BSD-3-Clause
"""The update formulas, written out by hand for each step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastconv import nn, optim

GRADIENTS = (0.5, -1.0, 2.0, 0.25)


def run(optimiser, start=1.0, dtype=np.float64, **settings):
    """The value of one scalar parameter after each step."""
    parameter = nn.Parameter(np.array([start], dtype))
    optimiser = optimiser([parameter], **settings)
    values = []
    for gradient in GRADIENTS:
        optimiser.zero_grad()
        parameter.grad = np.array([gradient], dtype)
        optimiser.step()
        values.append(float(parameter.data[0]))
    return values


def test_plain_sgd():
    expected = 1.0 - 0.1 * np.cumsum(GRADIENTS)
    assert_allclose(run(optim.SGD, lr=0.1), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("nesterov", "decay", "dampening"),
    [(False, 0.0, 0.0), (False, 0.2, 0.3), (True, 0.0, 0.0), (True, 0.2, 0.0)],
)
def test_sgd_with_momentum(nesterov, decay, dampening):
    p, v, expected = 1.0, None, []
    for gradient in GRADIENTS:
        g = gradient + decay * p
        v = g if v is None else 0.9 * v + (1 - dampening) * g
        p -= 0.1 * (g + 0.9 * v if nesterov else v)
        expected.append(p)
    got = run(
        optim.SGD, lr=0.1, momentum=0.9, dampening=dampening, weight_decay=decay, nesterov=nesterov
    )
    assert_allclose(got, expected, rtol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam(decay):
    p, m, v, expected = 1.0, 0.0, 0.0, []
    for t, gradient in enumerate(GRADIENTS, start=1):
        g = gradient + decay * p
        m = 0.8 * m + 0.2 * g
        v = 0.95 * v + 0.05 * g * g
        m_hat, v_hat = m / (1 - 0.8**t), v / (1 - 0.95**t)
        p -= 0.01 * m_hat / (math.sqrt(v_hat) + 1e-3)
        expected.append(p)
    got = run(optim.Adam, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=decay)
    assert_allclose(got, expected, rtol=1e-13)


OPTIMISERS = [
    lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    lambda p: optim.Adam(p, 0.1, weight_decay=0.1),
]


@pytest.mark.parametrize("make", OPTIMISERS)
def test_a_restored_optimiser_goes_on_alike(make):
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((6, 3, 2)).astype(np.float32)
    one = nn.Parameter(np.ones((3, 2), np.float32))
    first = make([one])
    for i, gradient in enumerate(gradients):
        if i == 3:
            two = nn.Parameter(one.data.copy())
            second = make([two])
            second.lr = 7.0
            saved = first.state_dict()
            second.load_state_dict(saved)
        for parameter, optimiser in ((one, first), *([(two, second)] if i >= 3 else [])):
            parameter.grad = gradient
            optimiser.step()
    assert one.data.dtype == np.float32
    assert_array_equal(one.data, two.data)
    assert saved["settings"]["lr"] == 0.1


@pytest.mark.parametrize("make", OPTIMISERS)
def test_parameters_without_gradient_stay(make):
    parameter = nn.Parameter(np.ones(3))
    optimiser = make([parameter])
    optimiser.step()
    assert_array_equal(parameter.data, 1)
    parameter.grad = np.ones(3)
    optimiser.zero_grad()
    assert parameter.grad is None


def test_gradients_are_not_changed():
    parameter = nn.Parameter(np.ones(2))
    optimiser = optim.SGD([parameter], 0.1, momentum=0.9, weight_decay=0.1)
    parameter.grad = np.ones(2)
    optimiser.step()
    optimiser.step()
    assert_array_equal(parameter.grad, 1)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda p: optim.SGD([]), ValueError, "params"),
        (lambda p: optim.SGD([p.data]), TypeError, "params: expected Parameters, got ndarray"),
        (lambda p: optim.SGD([p], -1), ValueError, r"lr: expected a number in \[0, .*\], got -1"),
        (lambda p: optim.SGD([p], "1"), TypeError, "lr"),
        (lambda p: optim.SGD([p], float("nan")), ValueError, "lr"),
        (lambda p: optim.SGD([p], 0.1, nesterov=True), ValueError, "nesterov"),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), ValueError, "betas"),
        (lambda p: optim.Adam([p], betas=(0.9,)), ValueError, "betas"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make(nn.Parameter(np.ones(2)))


def test_foreign_state_is_refused():
    p, q = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(3))
    sgd = optim.SGD([p], momentum=0.9)
    p.grad = np.ones(2)
    sgd.step()
    with pytest.raises(ValueError, match="settings"):
        optim.Adam([p]).load_state_dict(sgd.state_dict())
    with pytest.raises(ValueError, match="expected 2 parameters, got 1"):
        optim.SGD([p, q]).load_state_dict(sgd.state_dict())
    with pytest.raises(ValueError, match=r"expected shape \(3,\), got \(2,\)"):
        optim.SGD([q]).load_state_dict(sgd.state_dict())


def test_repr():
    text = repr(optim.SGD([nn.Parameter(np.ones(2))], 0.5))
    assert text.startswith("SGD(lr=0.5, momentum=0.0")
