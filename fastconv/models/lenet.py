# SPDX-License-Identifier: BSD-3-Clause
"""LeNet-5, the network that read cheques."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastconv import nn
from fastconv.functional._arrays import generator
from fastconv.nn.init import Rng
from fastconv.problem import integer


class LeNet5(nn.Sequential):
    """LeNet-5 (LeCun, Bottou, Bengio & Haffner, 1998): (N, 1, 32, 32) -> logits (N, 10).

    ===== ============================ =============
    name  layer                        output
    ===== ============================ =============
    c1    5x5 convolution, tanh        6 x 28 x 28
    s2    2x2 average pooling          6 x 14 x 14
    c3    5x5 convolution, tanh        16 x 10 x 10
    s4    2x2 average pooling          16 x 5 x 5
    c5    5x5 convolution, tanh        120 x 1 x 1
    f6    linear, tanh                 84
    out   linear                       `classes`
    ===== ============================ =============

    What differs from the paper: the subsampling layers S2 and S4 have no learnt coefficient, bias
    and squashing of their own; every map of C3 sees all six maps of S2, not the subset of the
    paper's table 1 (which saved parameters and broke symmetry); tanh is not scaled to
    ``1.7159 tanh(2x/3)``; the output is linear, for softmax and cross entropy, in place of
    radial basis functions with fixed codes; the initial weights are PyTorch's defaults.

    Parameters
    ----------
    classes : int
    in_channels : int
    dtype : float32 or float64
    rng : numpy Generator, seed or None
        Source of the initial weights.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 1,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        rng, classes = generator(rng), integer("classes", classes, 1)
        super().__init__(
            {
                "c1": nn.Conv2d(in_channels, 6, 5, dtype=dtype, rng=rng),
                "tanh1": nn.Tanh(),
                "s2": nn.AvgPool2d(2),
                "c3": nn.Conv2d(6, 16, 5, dtype=dtype, rng=rng),
                "tanh3": nn.Tanh(),
                "s4": nn.AvgPool2d(2),
                "c5": nn.Conv2d(16, 120, 5, dtype=dtype, rng=rng),
                "tanh5": nn.Tanh(),
                "flatten": nn.Flatten(),
                "f6": nn.Linear(120, 84, dtype=dtype, rng=rng),
                "tanh6": nn.Tanh(),
                "out": nn.Linear(84, classes, dtype=dtype, rng=rng),
            }
        )
