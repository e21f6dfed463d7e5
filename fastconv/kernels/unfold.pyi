# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

from fastconv.kernels.lattice import Lattice

Array = np.ndarray[Any, Any]

def unfold(lattice: Lattice, x: Array, columns: Array, planes: int, threads: int) -> None: ...
def fold(lattice: Lattice, x: Array, columns: Array, planes: int, threads: int) -> None: ...
