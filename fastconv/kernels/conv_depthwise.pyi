# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

from fastconv.kernels.correlate import Run
from fastconv.kernels.lattice import Lattice

Array = np.ndarray[Any, Any]

run: Run

def weight_gradient(
    lattice: Lattice,
    x: Array,
    dw: Array,
    dy: Array,
    groups: int,
    threads: int,
) -> None: ...
