# SPDX-License-Identifier: BSD-3-Clause
"""Threads, precision, memory, and reports on what runs."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

import numpy as np

from fastconv.kernels import call as _call
from fastconv.kernels import correlate as _correlate
from fastconv.kernels import isa as _isa
from fastconv.kernels import memory as _memory
from fastconv.kernels import team as _team
from fastconv.problem import PRECISIONS, choice, integer

CACHE_BYTES = 512 << 20
THREADS_MAX = 4096
VERBOSE_HEADER = "fastconv,operation,algorithm,isa,threads,dtype,problem,flops,milliseconds"


def _environment_integer(name: str, least: int, most: int) -> int | None:
    """A positive integer of the environment; None when unset. OMP_NUM_THREADS may be a list: its first entry counts."""
    text = os.environ.get(name, "").split(",")[0].strip()
    if not text:
        return None
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ValueError(
            f"environment variable {name}: expected an integer in [{least}, {most}], got {text!r}"
        )
    return int(text)


def _words(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


def _cgroup_share(folder: str) -> float | None:
    """CPUs that one control group may use: cpu.max (version 2) or cpu.cfs_* (version 1)."""
    try:
        if os.path.exists(f"{folder}/cpu.max"):
            quota, period = _words(f"{folder}/cpu.max")
        else:
            (quota,) = _words(f"{folder}/cpu.cfs_quota_us")
            (period,) = _words(f"{folder}/cpu.cfs_period_us")
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError):
        return None


def _cgroup_cpus(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int | None:
    """The CPU quota of this process' control group, rounded up; None when there is none."""
    quotas = []
    try:
        with open(own) as file:
            groups = file.read().splitlines()
    except OSError:
        return None
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = [name for name in path.split("/") if name]
        # a limit of any parent holds too; inside a container the path may only exist on the host
        for depth in range(len(names) + 1):
            place = os.path.join(root, *(["cpu"] if controllers else []), *names[:depth])
            share = _cgroup_share(place)
            if share is not None:
                quotas.append(share)
    return max(1, math.ceil(min(quotas))) if quotas else None


def _default_threads() -> tuple[int, str]:
    """FASTCONV_NUM_THREADS, else the least of OMP_NUM_THREADS, the affinity mask and the cgroup quota; and which it was."""
    own = _environment_integer("FASTCONV_NUM_THREADS", 1, THREADS_MAX)
    if own is not None:
        return own, "FASTCONV_NUM_THREADS"
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        wanted = _environment_integer("OMP_NUM_THREADS", 1, 2**31 - 1)
    except ValueError:  # not our variable: what OpenMP ignores, so do we
        wanted = None
    limits = {"affinity": usable, "OMP_NUM_THREADS": wanted, "cgroup quota": _cgroup_cpus()}
    least = min(n for n in limits.values() if n is not None)
    return least, ", ".join(name for name, n in limits.items() if n == least)


# the number for the whole process, and where it comes from
_process_threads: tuple[int, str] = _default_threads()
_threads: ContextVar[int | None] = ContextVar("fastconv_threads", default=None)
_default_precision: str = choice(
    "environment variable FASTCONV_PRECISION",
    os.environ.get("FASTCONV_PRECISION") or "highest",
    PRECISIONS,
)
_precision: ContextVar[str | None] = ContextVar("fastconv_precision", default=None)
_cache_bytes = _environment_integer("FASTCONV_CACHE_BYTES", 0, 2**62)
_memory.set_cap(CACHE_BYTES if _cache_bytes is None else _cache_bytes)
# where calls print lines, if they do
verbose: TextIO | None = (
    sys.stderr if os.environ.get("FASTCONV_VERBOSE", "0") not in ("", "0") else None
)
_header_printed = False


def set_num_threads(n: int) -> None:
    """Let every call of this process use up to `n` threads, except inside `threads(...)`."""
    global _process_threads
    _process_threads = _checked_threads(n), "set_num_threads"


def _checked_threads(n: int) -> int:
    count = integer("n", n, 1)
    if count > THREADS_MAX:
        raise ValueError(f"n: expected at most {THREADS_MAX} threads, got {count}")
    return count


def get_num_threads() -> int:
    """Threads a call may use here: that of the innermost `threads(...)`, else the process-wide number.

    The default is the least of the affinity mask, the cgroup quota and OMP_NUM_THREADS; FASTCONV_NUM_THREADS overrides it.
    """
    return _threads.get() or _process_threads[0]


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Within the block, calls of this thread (or task) use up to `n` threads. The bits of results do not depend on it."""
    token = _threads.set(_checked_threads(n))
    try:
        yield
    finally:
        _threads.reset(token)


@contextmanager
def precision(word: str) -> Iterator[None]:
    """Within the block, convolutions and linear layers use this precision: "highest", "high" or "medium".

    The words are PyTorch's; docs/numerics.md says what they promise. Instruction sets without tile registers serve all three with
    float32-grade kernels.
    """
    token = _precision.set(choice("precision", word, PRECISIONS))
    try:
        yield
    finally:
        _precision.reset(token)


def resolve_precision(word: str | None) -> str:
    if word is None:
        return _precision.get() or _default_precision
    return str(choice("precision", word, PRECISIONS))


def isa() -> str:
    """The instruction set in use: a row of csrc/isa/isa.def."""
    return _isa.current()


def empty_cache() -> None:
    """Forget packed weights of read-only arrays, and give the blocks that the allocator keeps for reuse back to the system."""
    _call.frozen_weights.clear()
    _memory.empty_cache()


def memory_stats() -> dict[str, int]:
    """Bytes of results and workspaces: cached, cap, in_use, peak; and hits and misses of the cache."""
    return dict(_memory.stats())


def _openmp_runtimes() -> list[str]:
    """The OpenMP run times that this process has loaded, ours or another library's; none where there is no /proc."""
    try:
        with open("/proc/self/maps") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    files = {columns[5] for line in lines if len(columns := line.split(maxsplit=5)) == 6}
    return sorted(f for f in files if re.match(r"lib(gomp|i?omp5?)\b", os.path.basename(f)))


def config() -> dict[str, Any]:
    """Everything show_config() prints, as a dictionary."""
    import platform

    import fastconv

    asked = os.environ.get("FASTCONV_ISA")
    return {
        "fastconv": fastconv.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **_isa.machine(),
        "isa": isa(),
        "isa_reason": f"FASTCONV_ISA={asked}" if asked else "the fastest row this machine can run",
        "rows": _isa.rows(),
        "openmp": _team.openmp()["version"],
        "openmp_runtimes": _openmp_runtimes(),
        "threads": get_num_threads(),
        "threads_reason": "threads(...)" if _threads.get() else _process_threads[1],
        "precision": resolve_precision(None),
        "memory": memory_stats(),
    }


def show_config(file: TextIO | None = None) -> None:
    """Print versions, compiler, rows with their flags, the ISA and threads chosen and why, OpenMP, caches and memory."""
    facts = config()
    out = file or sys.stdout
    for name in ("fastconv", "python", "numpy", "compiler", "cpu"):
        print(f"{name:10} {facts[name]}", file=out)
    sizes = ", ".join(f"{name} {size >> 10} KiB" for name, size in facts["caches"].items())
    print(f"{'caches':10} {sizes}", file=out)
    print(f"{'isa':10} {facts['isa']} ({facts['isa_reason']})", file=out)
    for row in facts["rows"]:
        state = f"not here: needs {row['missing']}" if row["missing"] else "available"
        print(f"  {row['name']:8} {state}; flags: {row['flags'] or 'none'}", file=out)
    openmp = facts["openmp"] or "none (built with FASTCONV_NO_OPENMP)"
    print(
        f"{'openmp':10} {openmp}; run time: {', '.join(facts['openmp_runtimes']) or 'none'}",
        file=out,
    )
    print(f"{'threads':10} {facts['threads']} ({facts['threads_reason']})", file=out)
    print(f"{'precision':10} {facts['precision']}", file=out)
    print(
        f"{'memory':10} {facts['memory']['in_use']} bytes in use, {facts['memory']['cached']} cached, "
        f"at most {facts['memory']['cap']} kept",
        file=out,
    )


def traced(
    operation: str,
    algorithm: str,
    dtype: Any,
    problem: Callable[[], str],
    flops: int,
    team: int,
    run: Callable[[], Any],
) -> Any:
    """What the kernel returns; with FASTCONV_VERBOSE=1 print one CSV line about it on standard error.

    Where a guard has made the direct kernel do the call again, the algorithm is printed as "winograd_4_3+direct", for example.
    """
    global _header_printed
    if verbose is None:
        return run()
    team = 1 if _team.alone() else team
    before = _correlate.reruns()
    start = time.perf_counter()
    value = run()
    elapsed = 1e3 * (time.perf_counter() - start)
    if _correlate.reruns() > before:
        algorithm += "+direct"
    if not _header_printed:
        print(VERBOSE_HEADER, file=verbose)
        _header_printed = True
    print(
        f"fastconv,{operation},{algorithm},{isa()},{team},{np.dtype(dtype).name},{problem()},{flops},{elapsed:.3f}",
        file=verbose,
    )
    return value
