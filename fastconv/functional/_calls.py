# SPDX-License-Identifier: BSD-3-Clause
"""How functions run their kernels: with a team fit for the work, traced, and remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastconv import runtime
from fastconv.algorithms import calls
from fastconv.functional._arrays import Array
from fastconv.kernels.call import Call
from fastconv.problem import describe

# What a caller gave, by which a call is known: options (the function's name first), arrays, and `out`.
Given = tuple[tuple[Any, ...], tuple[Any, ...], Any]

# Elements below which one thread moves them faster than a team wakes up.
SERIAL_ELEMENTS = 1 << 16


def launch(operation: str, x: Array, size: int, kernel: Callable[..., Any], *arguments: Any) -> Any:
    """kernel(*arguments, threads) with a team fit for `size` elements; traced under the operation's name."""
    team = runtime.get_num_threads() if size >= SERIAL_ELEMENTS else 1
    return _traced(operation, x, size, team, lambda: kernel(*arguments, team))


def launch_first(
    given: Given,
    operation: str,
    size: int,
    kernel: Callable[..., Any],
    arguments: tuple[Any, ...],
    arrays: tuple[Any, ...],
    y: Array,
    nbytes: int = 0,
) -> Any:
    """Like launch, but with Places for `arrays`, results and the team among the arguments; remembered for what is like `given`.

    `nbytes` is what the arguments take. Gives `y`, or (y, index) where there is a Place for an index.
    """
    call = Call(kernel, arguments, runtime.get_num_threads if size >= SERIAL_ELEMENTS else None, y)
    results = _traced(operation, arrays[0], size, call.team(), lambda: call.apply(arrays, y))
    options, originals, out = given
    calls.remember(call, nbytes, options, originals, out)
    return results


def _traced(operation: str, x: Array, size: int, team: int, run: Callable[[], Any]) -> Any:
    return runtime.traced(operation, "kernel", x.dtype, lambda: describe(x.shape), size, team, run)
