# SPDX-License-Identifier: BSD-3-Clause
from typing import Any, Protocol

import numpy as np

from fastconv.kernels.lattice import Lattice

Array = np.ndarray[Any, Any]

class Weights:
    array: Array
    nbytes: int
    def __init__(
        self, array: Array, packed: dict[Any, Any] | None = None, limit: int = ...
    ) -> None: ...
    def refresh(self, array: Array) -> None: ...

def reruns() -> int: ...

class Run(Protocol):
    """`run` of the convolution algorithms: known to type checkers alone."""

    def __call__(
        self,
        lattice: Lattice,
        x: Array,
        w: Array | Weights,
        y: Array,
        groups: int,
        transposed: bool,
        bias: Array | None,
        residual: Array | None,
        activation: int,
        threads: int,
        max_workspace: int | None,
    ) -> int: ...

class WeightRun(Protocol):
    """The same of the weight gradients."""

    def __call__(
        self,
        lattice: Lattice,
        x: Array,
        dw: Array,
        dy: Array,
        groups: int,
        threads: int,
        max_workspace: int | None,
    ) -> int: ...
