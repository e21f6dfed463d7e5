# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Callable
from typing import Any, Concatenate

import numpy as np

Array = np.ndarray[Any, Any]

# with the number of products before them, a correlate.Run and a correlate.WeightRun
run: Callable[Concatenate[int, ...], int]
weight_gradient: Callable[Concatenate[int, ...], int]
