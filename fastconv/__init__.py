# SPDX-License-Identifier: BSD-3-Clause
"""fastconv: fast CNN kernels for NumPy on the CPU, forward and backward."""

__version__ = "0.1.0"

from fastconv import functional
from fastconv.functional import *  # noqa: F403
from fastconv.runtime import (
    empty_cache,
    get_num_threads,
    isa,
    memory_stats,
    precision,
    set_num_threads,
    show_config,
    threads,
)

__all__ = [
    "empty_cache",
    "get_num_threads",
    "isa",
    "memory_stats",
    "precision",
    "set_num_threads",
    "show_config",
    "threads",
    *functional.__all__,
]
