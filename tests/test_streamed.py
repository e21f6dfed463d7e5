# SPDX-License-Identifier: BSD-3-Clause
"""Results so large that they are stored past the caches have the bytes of smaller calls, which are not."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv.functional as F
from tests.checks import same_bytes
from tests.data import Array, reals, rng

SHAPE = (
    2,
    4,
    1024,
    1025,
)  # 32.03 MiB of float32; half of it is not streamed


def halves(x: Array) -> list[Array]:
    return [x[:1], x[1:]]


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
def test_activations(name: str, isa_row: str) -> None:
    g = rng(1)
    x, dy = reals(g, SHAPE, np.float32), reals(g, SHAPE, np.float32)
    act, backward = getattr(F, name), getattr(F, f"{name}_backward")
    same_bytes(act(x), np.concatenate([act(half) for half in halves(x)]))
    saved = x if name == "relu" else act(x)
    wanted = [backward(*each) for each in zip(halves(dy), halves(saved), strict=True)]
    same_bytes(backward(dy, saved), np.concatenate(wanted))
    in_place = x.copy()
    same_bytes(act(in_place, out=in_place), act(x))


def test_batch_norm(isa_row: str) -> None:
    g = rng(2)
    x, dy = reals(g, SHAPE, np.float32), reals(g, SHAPE, np.float32)
    weight, bias = reals(g, (4,), np.float32), reals(g, (4,), np.float32)
    y, saved = F.batch_norm_train(x, weight, bias)
    dx, dweight, dbias = F.batch_norm_backward(dy, x, weight, saved)
    for c in range(4):
        own = slice(c, c + 1)
        part, kept = F.batch_norm_train(x[:, own], weight[own], bias[own])
        same_bytes(y[:, own], part)
        wanted = F.batch_norm_backward(dy[:, own], x[:, own], weight[own], kept)
        same_bytes((dx[:, own], dweight[own], dbias[own]), wanted)


def test_max_pool_gradient(isa_row: str) -> None:
    g = rng(3)
    x = reals(g, (2, 80, 256, 208), np.float32)
    y, index = F.max_pool2d(x, 3, stride=2, return_indices=True)
    dy = reals(g, y.shape, np.float32)
    dx = F.max_pool2d_backward(dy, index, x.shape, 3, stride=2)
    parts = [
        F.max_pool2d_backward(*each, (1, *x.shape[1:]), 3, stride=2)
        for each in zip(halves(dy), halves(index), strict=True)
    ]
    same_bytes(dx, np.concatenate(parts))


def test_im2col(isa_row: str) -> None:
    g = rng(4)
    x, w = reals(g, (2, 5, 256, 256), np.float32), reals(g, (66, 5, 1, 1), np.float32)
    bias, residual = reals(g, (66,), np.float32), reals(g, (2, 66, 256, 256), np.float32)
    for activation in (None, "relu", "tanh"):
        y = F.conv2d(x, w, bias, residual=residual, activation=activation, algo="im2col")
        parts = [
            F.conv2d(part, w, bias, residual=add, activation=activation, algo="im2col")
            for part, add in zip(halves(x), halves(residual), strict=True)
        ]
        same_bytes(y, np.concatenate(parts))


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (4, 4)])
def test_pixel(stride: int, kernel: int, isa_row: str) -> None:
    """Rows of whole cache lines, from the registers or, with a residual, the workspace."""
    g = rng(6)
    x = reals(g, (2, 2, 256 * stride, 320 * stride), np.float32)
    w, bias = reals(g, (56, 2, kernel, kernel), np.float32), reals(g, (56,), np.float32)
    residual = reals(g, (2, 56, 256, 320), np.float32)

    def run(x: Array, add: Array | None, activation: str | None) -> Array:
        return F.conv2d(
            x,
            w,
            bias,
            stride=stride,
            padding=(kernel - stride) // 2,
            residual=add,
            activation=activation,
            algo="pixel",
        )

    same_bytes(
        run(x, None, "relu"), np.concatenate([run(each, None, "relu") for each in halves(x)])
    )
    parts = [run(*each, None) for each in zip(halves(x), halves(residual), strict=True)]
    same_bytes(run(x, residual, None), np.concatenate(parts))
