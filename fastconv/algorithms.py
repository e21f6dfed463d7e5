# SPDX-License-Identifier: BSD-3-Clause
"""The convolution algorithms, in order of preference, and the choice among them.

A row says why it cannot or need not run a problem (`refuses`), which error class it belongs to, and how it runs. The first
row that does not refuse is taken; `algo=` forces one. Tests and benchmarks iterate over ALGORITHMS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fastconv.kernels import conv_direct, conv_im2col, conv_linear, conv_pixel, conv_winograd, isa
from fastconv.kernels.call import Memo
from fastconv.kernels.lattice import Lattice, join
from fastconv.problem import Conv, LatticeSpec, Sizes, choice

# Up to these the pixel-vectorised kernel is the fastest, measured on Zen 3 (AVX2): by 1.1 to 1.2 times at the limits, and by
# 2 and more for first layers of networks, where others spend their time on transposed stores. From 16 channels on Winograd
# is faster still where it applies.
FEW_OUTPUTS = 12
FEW_TERMS, FEW_CHANNELS = 150, 15
FEW_CHANNELS_1X1 = 48

# Below this many flops one thread is faster: waking a team costs microseconds, the work takes as long.
SERIAL_FLOPS = 2.5e6

# Bounds on what is kept: plans, signatures of calls, and the tables of either.
PLANS = 512
CALLS = 1024
PLAN_BYTES = 32 << 20


@dataclass(frozen=True)
class Shape:
    """What the choice looks at: one group of the convolution that will run (for the input gradient the transposed one)."""

    itemsize: int
    channels: int
    outputs: int
    images: int  # times the planes of each
    size: Sizes  # output pixels of a plane
    kernel: Sizes
    is_plain: bool  # stride and dilation 1
    is_linear: bool
    prepared: bool = False  # the weights are packed once for many calls

    @property
    def pixels(self) -> int:
        return self.images * self.size[0] * self.size[1]

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)


def nothing(shape: Shape) -> str | None:
    return None


@dataclass(frozen=True)
class Algorithm:
    """One way to compute a convolution.

    `cannot(shape)` is the reason, or None, why this row is not able to run a problem; `refuses(shape)` the reason why the
    automatic choice passes it by although it could. One that `joins` runs the phases of an input gradient together. `error`
    names the tolerance class of tests/tolerance.py.
    """

    name: str
    summary: str
    error: str
    run: Callable[..., int]
    refuses: Callable[[Shape], str | None] = nothing
    cannot: Callable[[Shape], str | None] = nothing
    joins: bool = False

    @property
    def general(self) -> bool:
        """Whether it can run every problem."""
        return self.cannot is nothing


def cannot_linear(shape: Shape) -> str | None:
    return None if shape.is_linear else "the kernel does not cover the whole unpadded input"


def refuse_pixel(shape: Shape) -> str | None:
    terms = shape.channels * shape.taps
    channels = FEW_CHANNELS if shape.taps > 1 else FEW_CHANNELS_1X1
    if shape.outputs <= FEW_OUTPUTS or (terms <= FEW_TERMS and shape.channels <= channels):
        return None
    return (
        f"{shape.outputs} output channels a group fill the vectors of the oc-vectorised kernel, and sums of {terms} "
        "terms pay for its transposed store"
    )


def refuse_direct(shape: Shape) -> str | None:
    if shape.taps == 1 and shape.size[0] * shape.size[1] >= 64:
        return "a 1x1 convolution is a matrix product: no columns to build, and rows are stored without a transpose"
    return None


def cannot_winograd(r: int, shape: Shape) -> str | None:
    if shape.kernel != (1, r, r):
        return f"the kernel is not {r}x{r}"
    return None if shape.is_plain else "stride and dilation must be 1"


def cycles_direct(shape: Shape) -> float:
    """Cycles of one core that the direct kernel takes."""
    vectors = shape.pixels * shape.channels * shape.outputs * shape.taps / isa.lanes(shape.itemsize)
    return vectors / (FMA_PER_CYCLE * DIRECT_EFFICIENCY)


def cycles_winograd(m: int, r: int, shape: Shape) -> float:
    """The same for F(m, r): products, both transforms, and the weights, which are transformed once and read for each block."""
    positions, pairs = (m + r - 1) ** 2, shape.channels * shape.outputs
    tiles = shape.images * math.prod(-(-n // m) for n in shape.size)
    products = (
        positions
        * tiles
        * pairs
        / isa.lanes(shape.itemsize)
        / (FMA_PER_CYCLE * WINOGRAD_EFFICIENCY)
    )
    transforms = (
        positions
        * tiles
        * (shape.channels + shape.outputs)
        / isa.lanes(shape.itemsize)
        * TRANSFORM_CYCLES
    )
    transform = 0.0 if shape.prepared else WEIGHT_CYCLES
    weights = positions * pairs * (transform + tiles / WEIGHT_TILES * WEIGHT_READ_CYCLES)
    return products + transforms + weights


def refuse_winograd(m: int, r: int, least: int, shape: Shape) -> str | None:
    if min(shape.channels, shape.outputs) < least:
        return (
            f"fewer than {least} channels: its rounding errors and transforms would weigh too much"
        )
    others = [k for k in conv_winograd.KINDS if k[1] == r]
    own, direct = cycles_winograd(m, r, shape), cycles_direct(shape)
    if own > 0.9 * direct:
        return f"too few tiles for the transform of the weights: {own / direct:.2f} of the direct time expected"
    best = min(others, key=lambda k: cycles_winograd(k[0], k[1], shape))
    if best != (m, r) and shape.channels >= WINOGRAD_LEAST[best]:
        return f"F({best[0]}, {r}) should be faster"
    return None


# Vector multiply-adds a cycle of the cores this was written for.
FMA_PER_CYCLE = 2
# What follows was measured on Zen 3 (AVX2): the share of the peak that the direct kernel and the products of Winograd reach on
# layers of VGG-16 and ResNet-50; cycles a transformed vector; cycles to transform, write and read a weight in L3.
DIRECT_EFFICIENCY = 0.86
WINOGRAD_EFFICIENCY = 0.85
TRANSFORM_CYCLES = 5.5
WEIGHT_CYCLES = 1.4
WEIGHT_READ_CYCLES = 0.7
WEIGHT_TILES = 32
# Fewest channels with which F(m, r) keeps the promise of docs/numerics.md: at most twice the error of a multiply-add chain.
WINOGRAD_LEAST = {(4, 3): 48, (2, 3): 16, (2, 5): 24}


def _winograd(kind: int) -> Algorithm:
    m, r = conv_winograd.KINDS[kind]
    return Algorithm(
        f"winograd_{m}_{r}",
        f"Winograd F({m}x{m}, {r}x{r}): {m * m * r * r / (m + r - 1) ** 2:.3g} times fewer products",
        f"winograd_{m}_{r}",
        partial(conv_winograd.run, kind),
        partial(refuse_winograd, m, r, WINOGRAD_LEAST[m, r]),
        partial(cannot_winograd, r),
    )


ALGORITHMS = (
    Algorithm(
        "linear",
        "one matrix product over flattened images",
        "direct",
        conv_linear.run,
        cannot=cannot_linear,
    ),
    Algorithm(
        "pixel",
        "direct, vectorised over pixels: depthwise, few output channels, few terms",
        "direct",
        conv_pixel.run,
        refuse_pixel,
        joins=True,
    ),
    *map(_winograd, range(len(conv_winograd.KINDS))),
    Algorithm(
        "direct",
        "direct, vectorised over output channels",
        "direct",
        conv_direct.run,
        refuse_direct,
    ),
    Algorithm(
        "im2col",
        "columns of one block of pixels, multiplied by the packed GEMM",
        "direct",
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

    @property
    def serial(self) -> bool:
        """Whether one thread does it, however many are wanted."""
        return self.flops < SERIAL_FLOPS

    def threads(self, wanted: int) -> int:
        return 1 if self.serial else wanted

    @property
    def nbytes(self) -> int:
        """About what keeping the plan takes: its tables, which are long for padding that copies cells."""
        return 4096 + sum(lattice.nbytes for lattice in self.lattices)


def select(algo: str, shape: Shape) -> tuple[Algorithm, tuple[tuple[str, str], ...]]:
    """The algorithm and the (name, reason) of each row passed by. ValueError when a forced row cannot run it."""
    choice("algo", algo, ("auto", *NAMES))
    reasons: list[tuple[str, str]] = []
    for algorithm in ALGORITHMS:
        if algo not in ("auto", algorithm.name):
            continue
        reason = algorithm.cannot(shape)
        if reason is None and algo == "auto":
            reason = algorithm.refuses(shape)
        if reason is None:
            return algorithm, tuple(reasons)
        reasons.append((algorithm.name, reason))
    raise ValueError(f"algo: {algo!r} cannot run this problem: {reasons[-1][1]}")


def _lattices(algorithm: Algorithm, specs: Sequence[LatticeSpec]) -> tuple[Lattice, ...]:
    """One lattice a run; a linear layer is one product, whatever the stride."""
    used = specs[:1] if algorithm.name == "linear" else specs
    lattices = tuple(Lattice(*spec) for spec in used)
    return (join(lattices),) if algorithm.joins and len(lattices) > 1 else lattices


def _shape(problem: Conv, channels: int, outputs: int, out: Sizes, prepared: bool = False) -> Shape:
    return Shape(
        problem.itemsize,
        channels,
        outputs,
        problem.batch * out[0],
        out[1:],
        problem.kernel,
        problem.stride == problem.dilation == (1, 1, 1),
        problem.is_linear,
        prepared,
    )


def _make_plan(problem: Conv, algo: str, gradient: bool, prepared: bool) -> Plan:
    if gradient:
        shape = _shape(problem, problem.outputs, problem.channels, problem.sizes)
    else:
        shape = _shape(problem, problem.channels, problem.outputs, problem.out, prepared)
    algorithm, reasons = select(algo, shape)
    specs = problem.input_gradient_lattices() if gradient else [problem.forward_lattice()]
    return Plan(problem, algorithm, reasons, _lattices(algorithm, specs), gradient)


_plans = Memo(PLANS, PLAN_BYTES)


def plan(problem: Conv, algo: str = "auto", gradient: bool = False, prepared: bool = False) -> Plan:
    """The cached plan of a forward convolution or of its input gradient, on the active ISA."""
    key = (problem, algo, gradient, prepared, isa.current())
    found: Plan | None = _plans.get(key)
    if found is None:
        found = _make_plan(problem, algo, gradient, prepared)
        _plans.put(key, found, found.nbytes)
    return found


def clear_plans() -> None:
    _plans.clear()


def forward_lattice(problem: Conv) -> Lattice:
    """The lattice of the forward convolution, for the weight gradient."""
    return plan(problem).lattices[0]


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
