# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

class Weights:
    array: Array
    nbytes: int
    def __init__(
        self, array: Array, packed: dict[Any, Any] | None = None, limit: int = ...
    ) -> None: ...
    def refresh(self, array: Array) -> None: ...

def reruns() -> int: ...
