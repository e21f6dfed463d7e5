# SPDX-License-Identifier: BSD-3-Clause
"""Verify, then time: peers take turns, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from benchmarks.peers import PeerFailed, Worker, repeats
from benchmarks.problems import Problem, from_dict
from benchmarks.verify import expected, tolerance


def start_workers(names: Sequence[str], threads: int) -> tuple[list[Worker], dict[str, str]]:
    """The peers that can run here, and why the others cannot."""
    workers, missing = [], {}
    for name in names:
        try:
            worker = Worker(name, threads)
        except (PeerFailed, OSError) as reason:
            missing[name] = str(reason)
            continue
        if worker.missing is None:
            workers.append(worker)
        else:
            missing[name] = worker.missing
            worker.close()
    return workers, missing


def _prepare(
    worker: Worker, problem: Problem, what: str, dtype: str, precision: str, folder: Path
) -> tuple[dict[str, Any] | None, str]:
    """Prepare and verify one peer: its reply, or None and the reason why it is not timed."""
    asked = {"problem": problem.as_dict(), "pass": what, "dtype": dtype, "precision": precision}
    reply = worker.ask("prepare", **asked)
    if "skip" in reply:
        return None, reply["skip"]
    path = folder / "expected.npy"
    np.save(path, expected(from_dict(reply["part"]), what, dtype))
    error = worker.ask("verify", expected=str(path))["error"]
    allowed = tolerance(dtype, precision)
    if not error <= allowed:
        return None, f"WRONG RESULT: error {error:.2g} of the rms, allowed {allowed:.0g}"
    return {**reply, "error": error}, ""


def _summary(times: Sequence[float], scale: float, error: float) -> dict[str, Any]:
    """Seconds of the whole problem; `scale` is whole flops over flops run."""
    low, _, high = quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return {
        "seconds": median(times) * scale,
        "quartiles": [low * scale, high * scale],
        "best": min(times) * scale,
        "calls": len(times),
        "scale": scale,
        "error": error,
    }


def compare(
    workers: list[Worker],
    problem: Problem,
    what: str,
    dtype: str,
    rounds: int,
    seconds: float,
    precision: str = "highest",
) -> dict[str, Any]:
    """Time one pass of one problem on every worker: {"times": {peer: ...}, "skipped": {...}}.

    In each of `rounds` rounds every peer runs for about `seconds`. A worker that dies is dropped
    from `workers`.
    """
    ready: dict[Worker, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    skipped: dict[str, str] = {}

    def drop(worker: Worker, reason: PeerFailed) -> None:
        workers.remove(worker)
        ready.pop(worker, None)
        times.pop(worker.name, None)
        skipped[worker.name] = str(reason)

    with tempfile.TemporaryDirectory() as folder:
        for worker in list(workers):
            try:
                reply, reason = _prepare(worker, problem, what, dtype, precision, Path(folder))
            except PeerFailed as failure:
                drop(worker, failure)
                continue
            if reply is None:
                skipped[worker.name] = reason
            else:
                ready[worker] = reply
    for _ in range(rounds):
        for worker, reply in list(ready.items()):
            try:
                found = worker.ask("time", repeat=repeats(reply["seconds"], seconds))["seconds"]
            except PeerFailed as failure:
                drop(worker, failure)
                continue
            times.setdefault(worker.name, []).extend(found)
    summaries = {
        worker.name: _summary(
            times[worker.name],
            problem.flops / from_dict(reply["part"]).flops,
            reply["error"],
        )
        for worker, reply in ready.items()
    }
    return {"times": summaries, "skipped": skipped}


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan
