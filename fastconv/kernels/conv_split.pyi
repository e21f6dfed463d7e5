# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

from fastconv.kernels.lattice import Lattice

Array = np.ndarray[Any, Any]

def run(
    products: int,
    lattice: Lattice,
    x: Array,
    w: Array,
    y: Array,
    groups: int,
    transposed: bool,
    bias: Array | None,
    residual: Array | None,
    activation: int,
    threads: int,
    max_workspace: int | None,
) -> int: ...
