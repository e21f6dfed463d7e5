# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Callable
from typing import Any, Concatenate

import numpy as np

Array = np.ndarray[Any, Any]

# with the number of products before it, a correlate.WeightRun
run: Callable[Concatenate[int, ...], int]

def bias_gradient(dy: Array, db: Array, threads: int) -> None: ...
def along_pixels(outputs: int, cols: int, itemsize: int) -> bool: ...
