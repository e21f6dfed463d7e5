# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Callable
from typing import Any, Concatenate

import numpy as np

from fastconv.kernels.lattice import Lattice

Array = np.ndarray[Any, Any]

# with the number of products before it, a correlate.Run
run: Callable[Concatenate[int, ...], int]

def weight_gradient(
    products: int,
    lattice: Lattice,
    x: Array,
    dw: Array,
    dy: Array,
    groups: int,
    threads: int,
    max_workspace: int | None,
) -> int: ...
