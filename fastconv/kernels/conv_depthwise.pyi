# SPDX-License-Identifier: BSD-3-Clause
from fastconv.kernels.correlate import Run, WeightRun

run: Run
weight_gradient: WeightRun
