# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.kernels.lattice import Lattice

Array = np.ndarray[Any, Any]

class Memo:
    entries_max: int
    bytes_max: int
    bytes: int
    def __init__(self, entries_max: int, bytes_max: int) -> None: ...
    def __len__(self) -> int: ...
    def clear(self) -> None: ...
    def get(self, key: Any) -> Any: ...
    def put(self, key: Any, value: Any, size: int) -> None: ...
    def find(self, options: tuple[Any, ...], *arrays: Any) -> Any: ...
    def remember(self, value: Any, size: int, options: tuple[Any, ...], *arrays: Any) -> None: ...
    def drop(self, key: Any) -> None: ...
    def call(
        self, options: tuple[Any, ...], x: Any, w: Any, b: Any, residual: Any, out: Any
    ) -> Array | None: ...

frozen_weights: Memo

def frozen(w: Any) -> Any: ...

class Call:
    def __init__(
        self,
        run: Callable[..., Any],
        lattice: Lattice | None,
        groups: int,
        activation: int,
        max_workspace: int | None,
        threads: Callable[[], int] | None,
        y: Array,
    ) -> None: ...
