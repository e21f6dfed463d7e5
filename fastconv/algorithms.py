# SPDX-License-Identifier: BSD-3-Clause
"""The convolution algorithms, and the choice among them.

A row says why it cannot run a problem, or not accurately enough, which error class it belongs to, and how it runs. Of the
others the one of which the least time is expected is taken (costs.py); `algo=` forces one. Tests and benchmarks iterate over
ALGORITHMS, whose rows run a convolution and its input gradient, and over WEIGHT_GRADIENTS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv import costs
from fastconv.costs import Pass, Shape
from fastconv.kernels import (
    conv_col2im,
    conv_depthwise,
    conv_direct,
    conv_im2col,
    conv_images,
    conv_linear,
    conv_pixel,
    conv_split,
    conv_wgrad,
    conv_wgrad_winograd,
    conv_winograd,
    isa,
)
from fastconv.kernels.call import Memo
from fastconv.kernels.lattice import Lattice, join
from fastconv.problem import PRECISIONS, Conv, LatticeSpec, choice

if TYPE_CHECKING:
    from fastconv.kernels.correlate import Run, WeightRun

# Below this many flops, and bytes, one thread is faster: waking a team costs microseconds, the work takes as long.
SERIAL_FLOPS, SERIAL_BYTES = 2.5e6, 1 << 18

# Most pixels of a padded map and its dy in a weight gradient that is vectorised over groups: vectors of so many stay in L2.
DEPTHWISE_PIXELS = 1 << 13

# Most bytes of the band of one output. A thread has the sums and the rest of its workspace besides, at most 64 MiB together.
BAND_LIMIT = 32 << 20

# Most bytes of weights that are packed at a time, see kernels/correlate.pxd.
PACKED_LIMIT = 24 << 20

# Bounds on what is kept: plans, signatures of calls, and the tables of either.
PLANS = 512
CALLS = 1024
PLAN_BYTES = 32 << 20


def nothing(shape: Shape) -> str | None:
    return None


@dataclass(frozen=True)
class Algorithm:
    """One way to compute a convolution.

    `cannot(shape)` is the reason, or None, why this row is not able to run a problem; `inaccurate(shape)` the reason why the
    automatic choice does not take it although it could; nor does that take it where more than its `precision` is asked for, or
    where it would need too much memory: `band` is how often a thread keeps the pixels that one output needs, of all channels.
    After what `guard` says the direct kernel does the call again. `lattice` is what it runs over; an input gradient has one for
    each of its phases, but where the algorithm `folds`, and one that `joins` runs them together. `run_linear` is for problems
    that are one matrix product.
    `error` names the tolerance class of tests/tolerance.py.
    """

    name: str
    summary: str
    error: str
    run: Run | WeightRun
    cannot: Callable[[Shape], str | None] = nothing
    inaccurate: Callable[[Shape], str | None] = nothing
    lattice: Callable[[Conv], LatticeSpec] = Conv.forward_lattice
    joins: bool = False
    folds: bool = False
    band: float = 0.0
    precision: str = "highest"
    guard: str | None = None
    run_linear: Callable[..., int] | None = None

    @property
    def general(self) -> bool:
        """Whether it can run every problem."""
        return self.cannot is nothing


def cannot_linear(shape: Shape) -> str | None:
    return None if shape.is_linear else "the kernel does not cover the whole unpadded input"


def cannot_images(shape: Shape) -> str | None:
    if max(shape.spread) > 1:
        return "an input gradient with a stride is several convolutions"
    return None


def cannot_col2im(shape: Shape) -> str | None:
    if shape.what != "dx":
        return "it computes input gradients"
    if math.prod(shape.kernel) == 1:
        return "the kernel has one tap: nothing to fold"
    if shape.columns > BAND_LIMIT:
        return f"the columns of one channel would take more than {BAND_LIMIT >> 20} MiB"
    if shape.itemsize * shape.channels * math.prod(shape.kernel) > PACKED_LIMIT:
        return f"the weights of one channel take more than {PACKED_LIMIT >> 20} MiB"
    return None


# Most dilation that Winograd takes: a band of so many phases has a few MiB, see BAND_TILES in conv_winograd.
WINOGRAD_DILATION = 32


def cannot_winograd(r: int, shape: Shape) -> str | None:
    if shape.kernel != (1, r, r):
        return f"the kernel is not {r}x{r}"
    if shape.has_stride:
        return "the stride must be 1"
    for name, side, dilation in zip("hw", shape.sides[1:], shape.dilation[1:], strict=True):
        if dilation > max(1, min(side, WINOGRAD_DILATION)):
            return f"the dilation is more than {WINOGRAD_DILATION} or than the pixels along {name}"
    return None


def _side(shape: Shape) -> int:
    """Of a map, the smaller of input and output; a dilated one is several, a phase each."""
    return min(n // d for n, d in zip(shape.sides[1:], shape.dilation[1:], strict=True))


def inaccurate_winograd(least: dict[int, int], shape: Shape) -> str | None:
    smallest = max((n for n in least if n <= _side(shape)), default=None)
    if smallest is None:
        return (
            f"maps of less than {min(least)}x{min(least)}: its rounding errors would weigh too much"
        )
    if shape.channels < least[smallest]:
        return f"fewer than {least[smallest]} channels: its rounding errors would weigh too much"
    return None


def inaccurate_weight_gradient(least: int, smallest: int, shape: Shape) -> str | None:
    if _side(shape) < smallest:
        return f"maps of less than {smallest}x{smallest}: its rounding errors would weigh too much"
    if shape.images * math.prod(shape.sides[1:]) < least:
        return f"fewer than {least} terms a sum: its rounding errors would weigh too much"
    return None


def cannot_depthwise_weight_gradient(shape: Shape) -> str | None:
    if shape.channels * shape.outputs > 1:
        return "a group has more than one channel or output"
    if shape.cells > DEPTHWISE_PIXELS and not costs.are_planes(shape):
        return f"a padded map and its gradient have more than {DEPTHWISE_PIXELS} pixels"
    return None


# Fewest channels with which F(m, r) keeps the promise of docs/numerics.md, at most twice the error of a multiply-add chain, by
# the side of the smallest maps for which they suffice: in small ones most terms are padding, and the chain's error is less.
WINOGRAD_LEAST = {
    (4, 3): {3: 160, 4: 112, 5: 96, 12: 64},
    (2, 3): {2: 24, 3: 16},
    (2, 5): {4: 80, 5: 56, 7: 40, 14: 32},
}
# Likewise the fewest pixels of x or dy, over all images, and the smallest map for the weight gradient by F(r, m): in smaller
# maps most terms of the outer taps are padding.
WEIGHT_GRADIENT_LEAST = {(4, 3): (392, 5), (2, 3): (49, 3), (2, 5): (700, 14)}


def cannot_split(shape: Shape) -> str | None:
    if shape.itemsize != 4:
        return "only float32 is split into bfloat16 parts"
    return None if isa.has_split() else "the instruction set has no tile registers"


# The number of products, from the most precise on.
SPLITS = {
    6: "six products of the three bfloat16 parts of each float",
    3: "three products of two bfloat16 parts of each float",
    1: "floats rounded to bfloat16",
}
# The most precise word that each serves.
SPLIT_PRECISIONS = dict(zip(SPLITS, PRECISIONS, strict=True))


def _split(run: Callable[..., int], run_linear: Callable[..., int], products: int) -> Algorithm:
    return Algorithm(
        f"split_{products}",
        f"direct, {SPLITS[products]}",
        f"split_{products}",
        partial(run, products),
        cannot_split,
        joins=True,
        band=1.5,  # three parts of two bytes
        run_linear=partial(run_linear, products),
        precision=SPLIT_PRECISIONS[products],
        guard="a sum that is not finite, or operands so small that their last bits would be lost",
    )


def _winograd(kind: int, gradient: bool = False) -> Algorithm:
    """F(m, r); its weight gradient is F(r, m), with the same products."""
    m, r = conv_winograd.KINDS[kind]
    name = f"winograd_{m}_{r}"
    outputs, taps = (r, m) if gradient else (m, r)
    if gradient:
        inaccurate = partial(inaccurate_weight_gradient, *WEIGHT_GRADIENT_LEAST[m, r])
    else:
        inaccurate = partial(inaccurate_winograd, WINOGRAD_LEAST[m, r])
    return Algorithm(
        name,
        f"Winograd F({outputs}x{outputs}, {taps}x{taps}): "
        f"{m * m * r * r / (m + r - 1) ** 2:.3g} times fewer products",
        f"{name}_dw" if gradient else name,
        partial((conv_wgrad_winograd if gradient else conv_winograd).run, kind),
        partial(cannot_winograd, r),
        inaccurate,
        guard="a sum that is not finite",
    )


ALGORITHMS = (
    Algorithm(
        "linear",
        "one matrix product over flattened images",
        "direct",
        partial(conv_linear.run, 0),
        cannot=cannot_linear,
        run_linear=partial(conv_linear.run, 0),
    ),
    Algorithm(
        "pixel",
        "direct, vectorised over pixels: depthwise, few output channels, few terms",
        "direct",
        conv_pixel.run,
        joins=True,
        band=1,
    ),
    Algorithm(
        "depthwise",
        "direct, vectorised over groups",
        "direct",
        conv_depthwise.run,
        joins=True,
        band=16,  # groups, the lanes of a vector
    ),
    Algorithm(
        "images",
        "direct, vectorised over images: batches of small maps",
        "direct",
        conv_images.run,
        cannot=cannot_images,
        band=16,  # images, the lanes of a vector
    ),
    *map(_winograd, range(len(conv_winograd.KINDS))),
    *map(partial(_split, conv_split.run, conv_linear.run), SPLITS),
    Algorithm(
        "direct",
        "direct, vectorised over output channels",
        "direct",
        conv_direct.run,
        joins=True,
        band=1,
    ),
    Algorithm(
        "im2col",
        "columns of one tile of pixels, multiplied by the packed GEMM",
        "direct",
        conv_im2col.run,
    ),
    Algorithm(
        "col2im",
        "one matrix product to columns, which are folded",
        "direct",
        conv_col2im.run,
        cannot=cannot_col2im,
        folds=True,
    ),
)
WEIGHT_GRADIENTS = (
    Algorithm(
        "linear",
        "one matrix product over flattened images",
        "direct",
        partial(conv_linear.weight_gradient, 0),
        cannot=cannot_linear,
    ),
    Algorithm(
        "depthwise",
        "direct, vectorised over groups",
        "direct",
        conv_depthwise.weight_gradient,
        cannot=cannot_depthwise_weight_gradient,
        lattice=Conv.weight_gradient_lattice,
    ),
    *map(partial(_winograd, gradient=True), range(len(conv_winograd.KINDS))),
    *map(partial(_split, conv_wgrad.run, conv_linear.weight_gradient), SPLITS),
    Algorithm(
        "direct",
        "direct, vectorised over output channels, or along the pixels where they are few",
        "direct",
        partial(conv_wgrad.run, 0),
    ),
)
NAMES = tuple(a.name for a in ALGORITHMS)
GENERAL_NAMES = tuple(a.name for a in ALGORITHMS if a.general)


def is_serial(problem: Conv) -> bool:
    """Whether one thread does it, however many are wanted."""
    return problem.flops < SERIAL_FLOPS and problem.bytes < SERIAL_BYTES


def rows(what: Pass) -> tuple[Algorithm, ...]:
    """The algorithms of a pass."""
    return WEIGHT_GRADIENTS if what == "dw" else ALGORITHMS


@dataclass(frozen=True)
class Plan:
    """What one call does: the algorithm, why not the others, what was expected of each, and the lattices it runs over."""

    problem: Conv
    algorithm: Algorithm
    reasons: tuple[tuple[str, str], ...]
    expected: dict[str, float]
    lattices: tuple[Lattice, ...]
    what: Pass = "forward"

    @property
    def flops(self) -> int:
        return self.problem.flops

    @property
    def run(self) -> Callable[..., int]:
        """The kernel's driver."""
        return _runs_linear(self.algorithm, self.problem) or self.algorithm.run

    @property
    def serial(self) -> bool:
        """Whether one thread does it, however many are wanted."""
        return is_serial(self.problem)

    def threads(self, wanted: int) -> int:
        return 1 if self.serial else wanted

    @property
    def nbytes(self) -> int:
        """About what keeping the plan takes: its tables, which are long for padding that copies cells."""
        return 4096 + sum(lattice.nbytes for lattice in self.lattices)


def _less(precision: str, asked: str) -> bool:
    return PRECISIONS.index(precision) > PRECISIONS.index(asked)


def _imprecise(algorithm: Algorithm, precision: str) -> str | None:
    if _less(algorithm.precision, precision):
        return f"it is for precision {algorithm.precision!r}, and {precision!r} is asked for"
    return None


def _wide(algorithm: Algorithm, shape: Shape) -> str | None:
    if algorithm.band * shape.reach > BAND_LIMIT:
        return f"the pixels of one output would take more than {BAND_LIMIT >> 20} MiB a thread"
    return None


def select(
    algo: str, shape: Shape, precision: str = "highest"
) -> tuple[Algorithm, tuple[tuple[str, str], ...], dict[str, float]]:
    """The algorithm, the (name, reason) of each row passed by, and the seconds on one thread expected of each that was weighed.

    ValueError when a forced row cannot run it. A name that is no row of the weight gradient stands for "direct" there, and so
    does one that can run every convolution but not this gradient.
    """
    choice("algo", algo, ("auto", *NAMES))
    candidates = rows(shape.what)
    able = [a.name for a in candidates if algo not in GENERAL_NAMES or not a.cannot(shape)]
    if algo not in ("auto", *able):
        algo = "direct"
    reasons: dict[str, str] = {}
    weighed: dict[Algorithm, float] = {}
    for algorithm in candidates:
        if algo not in ("auto", algorithm.name):
            continue
        reason = algorithm.cannot(shape)
        if reason is None and algo == "auto":
            reason = (
                _imprecise(algorithm, precision)
                or algorithm.inaccurate(shape)
                or _wide(algorithm, shape)
            )
        if reason is None:
            weighed[algorithm] = costs.seconds(algorithm.name, shape)
        else:
            reasons[algorithm.name] = reason
    if not weighed:
        raise ValueError(f"algo: {algo!r} cannot run this problem: {reasons[algo]}")
    best = min(weighed, key=weighed.__getitem__)
    for algorithm, seconds in weighed.items():
        if algorithm is not best:
            reasons[algorithm.name] = (
                f"{seconds / weighed[best]:.2f} times the time of {best.name} is expected"
            )
    return best, tuple(reasons.items()), {a.name: weighed[a] for a in weighed}


def _runs_linear(algorithm: Algorithm, problem: Conv) -> Callable[..., int] | None:
    return algorithm.run_linear if problem.is_linear else None


def _lattices(
    algorithm: Algorithm, problem: Conv, what: Pass, specs: Sequence[LatticeSpec]
) -> tuple[Lattice, ...]:
    """One lattice a run; a linear layer is one product, whatever the stride."""
    used = specs[:1] if _runs_linear(algorithm, problem) else specs
    lattices = tuple(Lattice(*spec) for spec in used)
    return (join(lattices),) if algorithm.joins and what == "dx" and lattices else lattices


def _make_plan(problem: Conv, algo: str, what: Pass, prepared: bool, precision: str) -> Plan:
    shape = costs.shape_of(problem, what, prepared)
    algorithm, reasons, expected = select(algo, shape, precision)
    phased = what == "dx" and not algorithm.folds
    specs = problem.input_gradient_lattices() if phased else [algorithm.lattice(problem)]
    lattices = _lattices(algorithm, problem, what, specs)
    return Plan(problem, algorithm, reasons, expected, lattices, what)


_plans = Memo(PLANS, PLAN_BYTES)
# Calls made before, by their signature.
calls = Memo(CALLS, PLAN_BYTES)


def plan(
    problem: Conv,
    algo: str = "auto",
    what: Pass = "forward",
    prepared: bool = False,
    precision: str = "highest",
) -> Plan:
    """The cached plan of a convolution or of one of its gradients, on the active ISA; `prepared`: with packed weights."""
    key = (problem, algo, what, prepared, precision, isa.current())
    found: Plan | None = _plans.get(key)
    if found is None:
        found = _make_plan(problem, algo, what, prepared, precision)
        _plans.put(key, found, found.nbytes)
    return found


def clear_plans() -> None:
    """Forget the plans and the calls made before."""
    for memo in (_plans, calls):
        memo.clear()


def _allowed(precision: str) -> list[int]:
    """Numbers of products that are precise enough, and 0 for the other kernels."""
    return [0, *(n for n, word in SPLIT_PRECISIONS.items() if not _less(word, precision))]


def gemm_products(
    dtype: np.dtype[Any], m: int, n: int, k: int, precision: str, *, b_transposed: bool
) -> int:
    """The products of the split kernels that a matrix product of m rows, n columns and k terms takes; 0: the others."""
    if dtype.itemsize != 4 or not isa.has_split():
        return 0
    return min(
        _allowed(precision),
        key=lambda products: costs.gemm_seconds(products, m, n, k, b_transposed),
    )


def workspace(found: Plan, max_workspace: int | None = None) -> int:
    """Bytes of workspace the plan needs on each thread."""
    problem, gradient = found.problem, found.what == "dx"
    shapes = (problem.y_shape, problem.x_shape) if gradient else (problem.x_shape, problem.y_shape)
    w_shape = (problem.groups * problem.outputs, problem.channels, math.prod(problem.kernel))
    x, y, w = (np.broadcast_to(np.zeros(1, problem.dtype), s) for s in (*shapes, w_shape))
    if found.what == "dw":
        return found.run(found.lattices[0], x, w, y, problem.groups, 0, max_workspace)
    sizes = [
        found.run(lattice, x, w, y, problem.groups, gradient, None, None, -1, 0, max_workspace)
        for lattice in found.lattices
    ]
    return max(sizes, default=0)
