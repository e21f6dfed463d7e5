# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Callable
from typing import Concatenate

# with the number of products before it, a correlate.Run
run: Callable[Concatenate[int, ...], int]
