# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

def activation(code: int, y: Array, x: Array, dy: Array | None, threads: int) -> None: ...
def clear(y: Array, threads: int) -> None: ...
def softmax(
    log: bool,
    y: Array,
    x: Array,
    dy: Array | None,
    factor: Array | None,
    outer: int,
    n: int,
    inner: int,
    threads: int,
) -> None: ...
