# SPDX-License-Identifier: BSD-3-Clause
"""The peers, each a worker process speaking JSON lines: `python -m benchmarks.peers NAME THREADS`.

A worker says once what it is ({"version": ...} or {"missing": ...}) and then answers requests:

    {"do": "prepare", "problem": {...}, "pass": "dx", "dtype": "float32", "precision": "highest"}
        -> {"part": {...}, "seconds": of one call} or {"skip": reason}
    {"do": "verify", "expected": "projection.npy"} -> {"error": ...}
    {"do": "time", "repeat": 5}                    -> {"seconds": [...]}
    {"do": "compute", "problem": {...}, "pass": "dx", "precision": "highest", "operands": "arrays.npz",
     "result": "result.npy"}                       -> {} or {"skip": reason}

What is timed is what a user would call: fresh outputs, weights packed in the call. ONNX Runtime is
the exception: its weights are constants of the model, packed beforehand, as its users have them; and so
are those of a prepared model (problems.Block), "fastconv:layers" being its layers one by one, and those of the convolutions of
"fastconv:prepared".
`part` is the problem that was really run: SciPy's loops take too long for whole layers and run on
a few images and output channels.

FASTCONV_BENCH_PYTHON_TORCH and FASTCONV_BENCH_PYTHON_ONNXRUNTIME name interpreters that have these
packages, where it is not this one; only the fastconv worker imports fastconv.
With FASTCONV_ISA=avx2 PyTorch is held to AVX2 as well (CAPS).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks import calls
from benchmarks.problems import Problem, from_dict
from benchmarks.verify import error

ROOT = Path(__file__).resolve().parent.parent
# Calls that take longer are not repeated to warm up.
SLOW_SECONDS = 0.1
# Shorter calls are timed several at a time, for so long: reading the clock and the loop take a tenth of a microsecond.
SHORT_SECONDS = 5e-5
# Idle is a process that takes less than a tenth of a core for so long; one that never is, is not waited for any longer.
IDLE_SECONDS = 0.005
IDLE_LIMIT = 0.2


# ------------------------------------------------------------------------------------ registry


@dataclass(frozen=True)
class Peer:
    """`start(threads)` imports the package and says its version; `call` gives what is timed, within `precision(word)`."""

    start: Callable[[int], str]
    call: Callable[..., calls.Call]
    variant: str = ""
    partial: bool = False
    package: str = ""
    precision: Callable[[str], AbstractContextManager[None]] = calls.float32_only


_torch = partial(Peer, calls.start_torch, package="torch", precision=calls.torch_precision)

PEERS = {
    "fastconv": Peer(
        calls.start_fastconv, calls.fastconv_call, "auto", precision=calls.fastconv_precision
    ),
    "torch": _torch(calls.torch_call, "contiguous"),
    "torch_channels_last": _torch(calls.torch_call, "channels_last"),
    "torch_autocast": _torch(calls.torch_autocast_call, precision=calls.bfloat16_only),
    "onnxruntime": Peer(calls.start_onnxruntime, calls.onnxruntime_call, package="onnxruntime"),
    "numpy_im2col": Peer(calls.start_numpy, calls.numpy_call),
    "scipy_correlate2d": Peer(calls.start_scipy, calls.correlate2d_call, partial=True),
    "scipy_fftconvolve": Peer(calls.start_scipy, calls.fftconvolve_call, partial=True),
}
# Peers' own variables that hold them to the instruction set to which FASTCONV_ISA holds us.
CAPS = {"avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "FASTCONV_NUM_THREADS",
)


def caps() -> dict[str, str]:
    """What the environment of every worker gets so that no peer uses wider vectors than we may."""
    return CAPS.get(os.environ.get("FASTCONV_ISA", ""), {})


def find_peer(name: str) -> Peer:
    """A row of PEERS; "fastconv:direct" is fastconv with that algorithm, "fastconv:prepared" with prepared weights."""
    base, _, algo = name.partition(":")
    if base not in PEERS or (algo and base != "fastconv"):
        known = ", ".join(PEERS)
        raise ValueError(f"peer: expected one of {known} or fastconv:ALGORITHM, got {name!r}")
    return replace(PEERS[base], variant=algo) if algo else PEERS[base]


# ---------------------------------------------------------------------------- inside the worker


class Session:
    """The worker's side: one prepared call at a time."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.arrays_of = lru_cache(maxsize=1)(Problem.arrays)  # passes of a problem share them
        self.precision = ExitStack()

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        whole, self.what = from_dict(request["problem"]), request["pass"]
        self.problem = calls.part(whole, self.what) if self.peer.partial else whole
        arrays = self.arrays_of(self.problem, request["dtype"])
        try:
            self.call = self.call_of(self.problem, arrays, request)
        except calls.Unsupported as reason:
            return {"skip": str(reason)}
        self.calls = 1
        seconds = self.seconds()
        if seconds < SLOW_SECONDS:
            seconds = self.seconds()
        self.calls = max(1, round(SHORT_SECONDS / seconds))
        return {"part": self.problem.as_dict(), "seconds": seconds}

    def call_of(
        self, problem: Problem, arrays: calls.Arrays, request: dict[str, Any]
    ) -> calls.Call:
        """The call, in the precision that is asked for from now on."""
        self.precision.close()
        self.precision.enter_context(self.peer.precision(request["precision"]))
        return self.peer.call(problem, request["pass"], arrays, self.peer.variant)

    def seconds(self) -> float:
        self.result = None  # its memory is free for the next one, as in a user's loop
        start = time.perf_counter()
        for _ in range(self.calls):
            self.result = self.call()
        return (time.perf_counter() - start) / self.calls

    def verify(self, request: dict[str, Any]) -> dict[str, Any]:
        """The result of the last call is the one that is checked."""
        result = np.asarray(self.result)
        return {"error": error(self.problem, self.what, result, np.load(request["expected"]))}

    def compute(self, request: dict[str, Any]) -> dict[str, Any]:
        """One result from operands in a file."""
        problem = from_dict(request["problem"])
        try:
            call = self.call_of(problem, dict(np.load(request["operands"])), request)
        except calls.Unsupported as reason:
            return {"skip": str(reason)}
        np.save(request["result"], np.asarray(call()))
        return {}

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        """One call wakes the threads and fills the caches; the others count."""
        if request["repeat"] > 1:
            self.seconds()
        return {"seconds": [self.seconds() for _ in range(request["repeat"])]}


def settle() -> None:
    """Wait for threads that look for work after a call (ONNX Runtime's for 37 ms): the next peer needs their cores."""
    latest = time.perf_counter() + IDLE_LIMIT
    busy = True
    while busy and time.perf_counter() < latest:
        before = time.process_time()
        time.sleep(IDLE_SECONDS)
        busy = time.process_time() - before > IDLE_SECONDS / 10


def work(name: str, threads: int, replies: TextIO) -> None:
    """Answer requests until standard input ends."""

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    peer = find_peer(name)
    try:
        version = peer.start(threads)
    except ImportError as reason:
        answer({"missing": str(reason)})
        return
    answer({"version": version, "python": sys.version.split()[0]})
    session = Session(peer)
    actions = {
        "prepare": session.prepare,
        "verify": session.verify,
        "time": session.time,
        "compute": session.compute,
    }
    for line in sys.stdin:
        request = json.loads(line)
        reply = actions[request["do"]](request)
        settle()
        answer(reply)


# --------------------------------------------------------------------------- outside the worker


class PeerFailed(Exception):
    """A worker process ended unexpectedly."""


class Worker:
    """The process of one peer, seen from the process that reports."""

    def __init__(self, name: str, threads: int) -> None:
        package = find_peer(name).package
        python = os.environ.get(f"FASTCONV_BENCH_PYTHON_{package.upper()}") or sys.executable
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.peers", name, str(threads)],
            cwd=ROOT,
            env={**os.environ, **caps(), **dict.fromkeys(THREAD_VARIABLES, str(threads))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        hello = self._reply()
        self.missing: str | None = hello.get("missing")
        self.version: str = hello.get("version", "")

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        assert self.process.stdin
        try:
            print(json.dumps({"do": do, **fields}), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise PeerFailed(f"{self.name}: the process is gone") from None
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise PeerFailed(f"{self.name}: the process ended with code {self.process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def repeats(seconds: float, budget: float) -> int:
    """How many calls of `seconds` fit into `budget`; 1 to 1000."""
    return max(1, min(1000, math.floor(budget / max(seconds, 1e-9))))


def main() -> None:
    """Replies go to the real standard output; whatever a package prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work(sys.argv[1], int(sys.argv[2]), replies)


if __name__ == "__main__":
    main()
