# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

def multiply(
    a: Array,
    a_transposed: bool,
    b: Array,
    b_transposed: bool,
    bias: Array | None,
    c: Array,
    threads: int,
    products: int = 0,
) -> None: ...
def workspace(itemsize: int, products: int = 0) -> int: ...
