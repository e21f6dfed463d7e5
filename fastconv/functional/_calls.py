# SPDX-License-Identifier: BSD-3-Clause
"""How functions run their kernels: with a team fit for the work, traced, and remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastconv import runtime
from fastconv.algorithms import calls
from fastconv.functional._arrays import Array
from fastconv.kernels.call import Again, Call
from fastconv.problem import describe

# What a caller gave, by which a call is known: options (the function's name first), arrays, and `out`.
Given = tuple[tuple[Any, ...], tuple[Any, ...], Any]

# Elements below which one thread moves them faster than a team wakes up. (Two threads, AVX-512: 64000 elements of relu take
# 0.81, of tanh 0.63 of one thread's time.)
SERIAL_ELEMENTS = 1 << 15


# The results of a call like one that was made before; None when it must take the long way.
again = Again(calls, runtime).call


def launch_first(
    given: Given,
    operation: str,
    size: int,
    kernel: Callable[..., Any],
    arguments: tuple[Any, ...],
    arrays: tuple[Any, ...],
    results: tuple[Array | None, ...],
    nbytes: int = 0,
) -> Any:
    """kernel(*arguments) with a team fit for `size` elements; traced, and remembered for what is like `given`.

    Among the arguments are Places for `arrays`, results and the team; `nbytes` is what the others take. Gives the only result,
    or all.
    """
    threads = runtime.get_num_threads if size >= SERIAL_ELEMENTS else None
    call, x = Call(kernel, arguments, threads, results), arrays[0]
    found = runtime.traced(
        operation,
        "kernel",
        x.dtype,
        lambda: describe(x.shape),
        size,
        call.team(),
        lambda: call.apply(arrays, results),
    )
    options, originals, out = given
    calls.remember(call, nbytes, options, originals, out, arrays)
    return found
