# SPDX-License-Identifier: BSD-3-Clause
"""fastconv: fast CNN kernels for NumPy on the CPU, forward and backward.

Functions are here (``fastconv.conv2d``), layers in ``fastconv.nn``, optimisers in ``fastconv.optim``, classical image
filters in ``fastconv.filters``, scipy.signal's two-dimensional functions in ``fastconv.signal``, and drop-in replacements
in ``fastconv.compat``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from fastconv.arithmetic import conv_output_size, count_parameters, receptive_field
    from fastconv.report import explain

# Imported at first use: `import fastconv` stays fast, and `fastconv.nn.Conv2d` works.
_SUBMODULES = ("compat", "filters", "models", "nn", "optim", "reference", "signal")
_FUNCTIONS = {
    "conv_output_size": "arithmetic",
    "count_parameters": "arithmetic",
    "receptive_field": "arithmetic",
    "explain": "report",
}

__all__ = [
    "conv_output_size",
    "count_parameters",
    "empty_cache",
    "explain",
    "get_num_threads",
    "isa",
    "memory_stats",
    "precision",
    "receptive_field",
    "set_num_threads",
    "show_config",
    "threads",
    *functional.__all__,
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"fastconv.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(f"fastconv.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'fastconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES, *_FUNCTIONS])
