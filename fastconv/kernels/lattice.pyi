# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

class Lattice:
    taps: int
    outputs: int
    nbytes: int
    def __init__(self, axes: Any, tap_index: Any) -> None: ...
