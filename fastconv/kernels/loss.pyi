# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

def losses(
    log_p: Array,
    target: Array,
    weight: Array | None,
    smoothing: float,
    ignored: int,
    outer: int,
    classes: int,
    inner: int,
    loss: Array | None,
) -> tuple[float, float]: ...
def factors(
    target: Array,
    weight: Array | None,
    smoothing: float,
    ignored: int,
    outer: int,
    classes: int,
    inner: int,
    dloss: Array,
    mean: bool,
    scale: Array,
    factor: Array,
) -> None: ...
def subtract(
    target: Array,
    weight: Array | None,
    smoothing: float,
    ignored: int,
    outer: int,
    classes: int,
    inner: int,
    scale: Array,
    dz: Array,
) -> None: ...
