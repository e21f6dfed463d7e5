# SPDX-License-Identifier: BSD-3-Clause
from fastconv.kernels.correlate import WeightRun

run: WeightRun
