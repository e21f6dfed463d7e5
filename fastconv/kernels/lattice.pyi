# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Sequence
from typing import Any

class Lattice:
    taps: int
    outputs: int
    nbytes: int
    phases: tuple[Lattice, ...]
    starts: tuple[int, int, int]
    def __init__(self, axes: Any, tap_index: Any) -> None: ...

def join(lattices: Sequence[Lattice]) -> Lattice: ...
def row(pixels: int) -> Lattice: ...
