# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Callable
from typing import Any

import numpy as np

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
    def remember(
        self,
        call: Call,
        size: int,
        options: tuple[Any, ...],
        given: tuple[Any, ...],
        out: Any,
        arrays: tuple[Any, ...],
    ) -> None: ...
    def drop(self, key: Any) -> None: ...

frozen_weights: Memo

def frozen(w: Any) -> Any: ...

class Place: ...

OPERANDS: tuple[Place, Place, Place, Place, Place, Place]
RESULTS: tuple[Place, Place, Place]
WEIGHTS: Place
TEAM: Place

class Call:
    def __init__(
        self,
        kernel: Callable[..., Any],
        arguments: tuple[Any, ...],
        threads: Callable[[], int] | None,
        results: tuple[Array | None, ...],
    ) -> None: ...
    def team(self) -> int: ...
    def apply(self, arrays: tuple[Any, ...], results: tuple[Any, ...]) -> Any: ...

class Again:
    def __init__(self, made: Memo, settings: Any) -> None: ...
    def call(
        self,
        options: tuple[Any, ...],
        arrays: tuple[Any, ...],
        out: Any = None,
        unsigned: tuple[Any, ...] = (),
    ) -> Any: ...
