# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

def fma(itemsize: int, rounds: int, threads: int) -> float: ...
def read(array: Array, threads: int) -> int: ...
def copy(to: Array, source: Array, threads: int) -> int: ...
