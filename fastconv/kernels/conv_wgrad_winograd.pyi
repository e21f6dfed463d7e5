# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

from fastconv.kernels.lattice import Lattice

Array = np.ndarray[Any, Any]

def run(
    lattice: Lattice,
    x: Array,
    dw: Array,
    dy: Array,
    groups: int,
    threads: int,
    max_workspace: int | None,
) -> int: ...
