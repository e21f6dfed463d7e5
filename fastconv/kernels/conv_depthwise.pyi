# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

import numpy as np

from fastconv.kernels.correlate import Run, WeightRun

Array = np.ndarray[Any, Any]

run: Run
weight_gradient: WeightRun
