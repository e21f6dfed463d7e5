# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

def train(
    x: Array,
    y: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    mean: Array,
    var: Array,
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
    dx: Array,
    weight: Array | None,
    mean: Array | None,
    invstd: Array | None,
    dweight: Array,
    dbias: Array,
    constant: bool,
    threads: int,
) -> None: ...
