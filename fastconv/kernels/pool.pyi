# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

class Windows:
    cells: int
    windows: int
    nbytes: int
    def __init__(
        self,
        sizes: Any,
        starts: Any,
        stops: Any,
        steps: Any,
        lattice: tuple[int, int, int] | None,
        divisors: Any,
    ) -> None: ...

def max_pool(
    windows: Windows, x: Array, y: Array, index: Array | None, planes: int, threads: int
) -> None: ...
def avg_pool(windows: Windows, x: Array, y: Array, planes: int, threads: int) -> None: ...
def avg_pool_backward(
    windows: Windows, dy: Array, dx: Array, planes: int, threads: int
) -> None: ...
def max_pool_backward(
    dy: Array, index: Array, dx: Array, planes: int, windows: int, cells: int, threads: int
) -> bool: ...
