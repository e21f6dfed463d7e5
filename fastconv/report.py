# SPDX-License-Identifier: BSD-3-Clause
"""explain(): what a call would do, and why."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastconv import algorithms, costs, runtime
from fastconv.kernels import correlate, peak
from fastconv.problem import Conv, choice, conv_problem, float_dtype, integer, is_sequence


@dataclass(frozen=True)
class Explanation:
    """What explain() found; print it, or read the fields."""

    operation: str
    dtype: str
    algorithm: str
    summary: str
    passed_by: dict[str, str]
    isa: str
    threads: int
    flops: int
    bytes: int
    workspace: int
    expected_seconds: float
    candidates: dict[str, float]
    precision: str
    guard: str | None
    reruns: int

    def __str__(self) -> str:
        lines = [
            f"{self.operation} {self.dtype}: {self.algorithm} ({self.summary})",
            f"  isa {self.isa}, {self.threads} thread{'s' if self.threads > 1 else ''}, precision {self.precision}",
            f"  {self.flops} flops, {self.bytes} bytes at least, {self.workspace} bytes of workspace a thread",
            f"  expected about {1e3 * self.expected_seconds:.3g} ms",
        ]
        others = (f"{name} {1e3 * t:.3g} ms" for name, t in self.candidates.items())
        lines += [f"  of {', '.join(others)}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.passed_by.items()]
        if self.guard:
            lines.append(
                f"  done again on direct after {self.guard}; in this process {self.reruns} times so far"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _peak(itemsize: int) -> float:
    """Multiply-add flops a second of one core, measured for some milliseconds."""
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        flops = peak.fma(itemsize, 50_000, 1)
        best = max(best, flops / (time.perf_counter() - start))
    return best


OPTIONS: dict[str, Any] = {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "padding_mode": "zeros",
    "dtype": np.float32,
}


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if not is_sequence(value):
        raise TypeError(f"{name}: expected a shape, got {value!r}")
    return tuple(integer(name, n, 0) for n in value[:9])  # no convolution has as many axes


def _conv(rank: int, x_shape: Any, w_shape: Any, options: dict[str, Any]) -> Conv:
    unknown = set(options) - set(OPTIONS)
    if unknown:
        raise TypeError(
            f"explain: unknown options {', '.join(sorted(unknown))}; known are {', '.join(OPTIONS)}"
        )
    chosen = {**OPTIONS, **options}
    return conv_problem(
        float_dtype(chosen["dtype"]).name,
        _shape("x_shape", x_shape),
        _shape("w_shape", w_shape),
        chosen["stride"],
        chosen["padding"],
        chosen["dilation"],
        chosen["groups"],
        chosen["padding_mode"],
        rank,
    )


def explain(
    operation: str | Conv,
    x_shape: Any = None,
    w_shape: Any = None,
    *,
    algo: str = "auto",
    precision: str | None = None,
    **options: Any,
) -> Explanation:
    """Which algorithm a convolution would take, why not the others, and what it costs.

    Parameters
    ----------
    operation : {"conv1d", "conv2d", "conv3d"}, the same with "_dx" or "_dw" for its gradients, or a problem.Conv
    x_shape, w_shape : shapes (N, C, ...) and (O, C/groups, ...)
        Whatever the layout of the call: kernels see NCHW.
    algo, precision : as in conv2d
    **options : stride, padding, dilation, groups, padding_mode, dtype (float32)

    Returns
    -------
    Explanation
        With fields algorithm, passed_by (name -> reason), flops, bytes (each operand once), workspace (bytes a thread), threads,
        isa, precision, candidates (name -> expected seconds of each that could be taken) and expected_seconds, that of the
        algorithm; guard, what in the data makes the direct kernel do the call again, and reruns, how often that happened in
        this process. The seconds come from the model by which it was chosen (costs.py), scaled by the multiply-add peak
        measured here and divided by the threads.

    Examples
    --------
    >>> import fastconv
    >>> print(fastconv.explain("conv2d", (1, 64, 56, 56), (64, 64, 3, 3), padding=1).algorithm)
    winograd_4_3
    """
    what: costs.Pass = "forward"
    if isinstance(operation, Conv):
        problem, name = operation, f"conv{operation.rank}d"
    else:
        passes: dict[str, costs.Pass] = {"": "forward", "_dx": "dx", "_dw": "dw"}
        name = choice("operation", operation, [f"conv{r}d{g}" for r in (1, 2, 3) for g in passes])
        what = passes[name[6:]]
        if x_shape is None or w_shape is None:
            raise ValueError(f"x_shape, w_shape: explain({name!r}, ...) needs both")
        problem = _conv(int(name[4]), x_shape, w_shape, options)
    choice("algo", algo, ("auto", *algorithms.NAMES))
    word = runtime.resolve_precision(precision)
    plan = algorithms.plan(problem, algo, what, precision=word)
    team = plan.threads(runtime.get_num_threads())
    # the table's machine and this one differ by their clocks, at least
    scale = costs.peak(problem.itemsize) / _peak(problem.itemsize) / team
    candidates = {row: scale * seconds for row, seconds in plan.expected.items()}
    return Explanation(
        operation=name,
        dtype=problem.dtype,
        algorithm=plan.algorithm.name,
        summary=plan.algorithm.summary,
        passed_by=dict(plan.reasons),
        isa=runtime.isa(),
        threads=team,
        flops=plan.flops,
        bytes=problem.bytes,
        workspace=algorithms.workspace(plan),
        expected_seconds=candidates[plan.algorithm.name],
        candidates=candidates,
        precision=word,
        guard=plan.algorithm.guard,
        reruns=correlate.reruns(),
    )
