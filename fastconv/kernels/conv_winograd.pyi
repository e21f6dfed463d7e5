# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Callable
from typing import Concatenate

KINDS: tuple[tuple[int, int], ...]

# with a number of KINDS before it, a correlate.Run
run: Callable[Concatenate[int, ...], int]
