# SPDX-License-Identifier: BSD-3-Clause
"""The convolution algorithms, in order of preference, and the choice among them.

A row says why it cannot or need not run a problem (`refuses`), which error class it belongs to, and how it runs. The first
row that does not refuse is taken; `algo=` forces one. Tests and benchmarks iterate over ALGORITHMS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fastconv.kernels import conv_direct, conv_im2col, conv_linear, conv_pixel, isa
from fastconv.kernels.lattice import Lattice
from fastconv.problem import Conv, LatticeSpec, choice

# Below this many flops one thread is faster: waking a team costs microseconds, the work takes as long.
SERIAL_FLOPS = 2.5e6


@dataclass(frozen=True)
class Shape:
    """What the choice looks at: one group of the convolution that will run (for the input gradient the transposed one)."""

    channels: int
    outputs: int
    pixels: int
    taps: int
    is_linear: bool


@dataclass(frozen=True)
class Algorithm:
    """One way to compute a convolution.

    `refuses(shape)` is the reason, or None, why the automatic choice passes this row by. A row that is `general` can run every
    problem when it is forced; the others cannot run what they refuse. `error` names the tolerance class of
    tests/tolerance.py.
    """

    name: str
    summary: str
    error: str
    refuses: Callable[[Shape], str | None]
    run: Callable[..., int]
    general: bool = True


def refuse_linear(shape: Shape) -> str | None:
    return None if shape.is_linear else "the kernel does not cover the whole unpadded input"


def refuse_pixel(shape: Shape) -> str | None:
    if shape.outputs <= 8:
        return None
    return f"{shape.outputs} output channels a group fill the vectors of the oc-vectorised kernel"


def refuse_direct(shape: Shape) -> str | None:
    if shape.taps == 1 and shape.pixels >= 64:
        return "a 1x1 convolution is a matrix product: no columns to build, and rows are stored without a transpose"
    return None


def refuse_nothing(shape: Shape) -> str | None:
    return None


ALGORITHMS = (
    Algorithm(
        "linear",
        "one matrix product over flattened images",
        "direct",
        refuse_linear,
        conv_linear.run,
        general=False,
    ),
    Algorithm(
        "pixel",
        "direct, vectorised over pixels: depthwise and few output channels",
        "direct",
        refuse_pixel,
        conv_pixel.run,
    ),
    Algorithm(
        "direct",
        "direct, vectorised over output channels",
        "direct",
        refuse_direct,
        conv_direct.run,
    ),
    Algorithm(
        "im2col",
        "columns of one block of pixels, multiplied by the packed GEMM",
        "direct",
        refuse_nothing,
        conv_im2col.run,
    ),
)
NAMES = tuple(a.name for a in ALGORITHMS)
GENERAL_NAMES = tuple(a.name for a in ALGORITHMS if a.general)


@dataclass(frozen=True)
class Plan:
    """What one call does: the algorithm, why not the earlier ones, and the lattices it runs over."""

    problem: Conv
    algorithm: Algorithm
    reasons: tuple[tuple[str, str], ...]
    lattices: tuple[Lattice, ...]
    gradient: bool = False

    @property
    def flops(self) -> int:
        return self.problem.flops

    def threads(self, wanted: int) -> int:
        return 1 if self.flops < SERIAL_FLOPS else wanted


def select(algo: str, shape: Shape) -> tuple[Algorithm, tuple[tuple[str, str], ...]]:
    """The algorithm and the (name, reason) of each row passed by. ValueError when a forced row cannot run it."""
    choice("algo", algo, ("auto", *NAMES))
    reasons: list[tuple[str, str]] = []
    for algorithm in ALGORITHMS:
        reason = algorithm.refuses(shape)
        if algo not in ("auto", algorithm.name):
            continue
        if reason is None or (algo != "auto" and algorithm.general):
            return algorithm, tuple(reasons)
        reasons.append((algorithm.name, reason))
    raise ValueError(f"algo: {algo!r} cannot run this problem: {reasons[-1][1]}")


def _lattices(algorithm: Algorithm, specs: Sequence[LatticeSpec]) -> tuple[Lattice, ...]:
    """One lattice a run; a linear layer is one product, whatever the stride."""
    used = specs if algorithm.general else specs[:1]
    return tuple(Lattice(*spec) for spec in used)


@lru_cache(maxsize=256)
def plan_forward(problem: Conv, algo: str, isa_name: str) -> Plan:
    shape = Shape(
        problem.channels,
        problem.outputs,
        math.prod(problem.out),
        math.prod(problem.kernel),
        problem.is_linear,
    )
    algorithm, reasons = select(algo, shape)
    return Plan(problem, algorithm, reasons, _lattices(algorithm, [problem.forward_lattice()]))


@lru_cache(maxsize=256)
def plan_input_gradient(problem: Conv, algo: str, isa_name: str) -> Plan:
    shape = Shape(
        problem.outputs,
        problem.channels,
        math.prod(problem.sizes),
        math.prod(problem.kernel),
        problem.is_linear,
    )
    algorithm, reasons = select(algo, shape)
    specs = problem.input_gradient_lattices()
    return Plan(problem, algorithm, reasons, _lattices(algorithm, specs), gradient=True)


def plan(problem: Conv, algo: str = "auto", gradient: bool = False) -> Plan:
    """The cached plan of a forward convolution or of its input gradient, on the active ISA."""
    return (plan_input_gradient if gradient else plan_forward)(problem, algo, isa.current())


@lru_cache(maxsize=256)
def forward_lattice(problem: Conv) -> Lattice:
    """The lattice of the forward convolution, for the weight gradient."""
    return Lattice(*problem.forward_lattice())


def clear_plans() -> None:
    for cache in (plan_forward, plan_input_gradient, forward_lattice):
        cache.cache_clear()


def workspace(found: Plan, max_workspace: int | None = None) -> int:
    """Bytes of workspace the plan needs on each thread."""
    problem, gradient = found.problem, found.gradient
    shapes = (problem.y_shape, problem.x_shape) if gradient else (problem.x_shape, problem.y_shape)
    w_shape = (problem.groups * problem.outputs, problem.channels, math.prod(problem.kernel))
    x, y, w = (np.broadcast_to(np.zeros(1, problem.dtype), s) for s in (*shapes, w_shape))
    sizes = [
        found.algorithm.run(
            lattice, x, w, y, problem.groups, gradient, None, None, -1, 0, max_workspace
        )
        for lattice in found.lattices
    ]
    return max(sizes, default=0)
