# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

def train(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    share: float,
    eps: float,
    y: Array,
    mean: Array,
    invstd: Array,
    threads: int,
) -> None: ...
def evaluate(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    y: Array,
    threads: int,
) -> None: ...
def backward(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    invstd: Array,
    constant: bool,
    dx: Array,
    dweight: Array,
    dbias: Array,
    threads: int,
) -> None: ...
