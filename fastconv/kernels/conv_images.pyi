# SPDX-License-Identifier: BSD-3-Clause
from fastconv.kernels.correlate import Run

run: Run
