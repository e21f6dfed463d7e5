# SPDX-License-Identifier: BSD-3-Clause
"""Measure the constants of fastconv/costs.py: `python -m benchmarks.costs` prints the table of the active ISA row.

Every algorithm runs layers of known networks (one image) and random shapes, forward and both gradients, on one thread, in
turns. A column of the model is a number of things done (vectors multiplied, copied, packed, ...); its constant is the time
of one, fitted so that the sum of squared relative errors is least and no constant is negative. `--check` measures other
random shapes instead, and prints how far the choice that the table in the code makes is from the fastest algorithm.
Both take a few minutes.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import roofline
from benchmarks.problems import PROBLEMS, Conv
from fastconv import costs
from fastconv.algorithms import rows as rows_of
from fastconv.kernels import isa
from fastconv.problem import conv_problem

# The random shapes that the constants are fitted to, and others, from seeds; a check takes one in so many. The flops between
# which they lie.
SEED, CHECK_SEED, CHECKED = 11, 12, 3
FLOPS = (2e2, 3e8)
# A measurement: so many turns, each of about so many seconds; a slow problem gets fewer.
TURNS, SECONDS, LONGEST = 7, 0.001, 0.15
# Bytes at this share of the time or more say nothing about the rest.
MEMORY_SHARE = 0.6
# What takes so many times as long as the fastest is never chosen: the model need not fit it, and it is not timed again.
HOPELESS = 3
# Several algorithms of less than float32's precision can be faster still: "highest" never takes them.
COARSE = ("split_3", "split_1")

Row = tuple[float, costs.Counts]  # nanoseconds, and what was done in them


@dataclass(frozen=True)
class Measured:
    """The nanoseconds of each algorithm for a pass of a problem."""

    problem: Conv
    shape: costs.Shape
    ns: dict[str, float]


def size(rng: random.Random, low: float, high: float) -> int:
    """Even in its logarithm; `low` and `high` are powers of two."""
    return int(2 ** rng.uniform(low, high))


def linear(rng: random.Random) -> Conv:
    """A linear layer in disguise."""
    kernel = rng.choice((1, 4, 7))
    sizes = size(rng, 0, 7), size(rng, 3, 9), kernel, size(rng, 3, 10), kernel
    return Conv("linear", "random", *sizes)


def common(rng: random.Random) -> Conv:
    kernel = rng.choice((1, 1, 2, 3, 3, 3, 3, 5, 5, 7))
    groups = rng.choice((1, 1, 1, 1, 4, 32))
    options = (kernel, rng.choice((1, 1, 1, 2, 3)), rng.choice((0, kernel // 2)), groups)
    channels, outputs = groups * size(rng, 0, 8), groups * size(rng, 0, 8)
    sizes = rng.choice((1, 1, 4)), channels, size(rng, 2, 7)
    return Conv("common", "random", *sizes, outputs, *options)


def depthwise(rng: random.Random) -> Conv:
    kernel, planes = rng.choice((3, 3, 5, 7)), size(rng, 3, 10)
    options = (kernel, rng.choice((1, 1, 2)), kernel // 2, planes)
    return Conv("depthwise", "random", 1, planes, size(rng, 2, 7), planes, *options)


def grouped(rng: random.Random) -> Conv:
    groups, kernel = size(rng, 3, 7), rng.choice((1, 1, 1, 3))
    channels, outputs = groups * size(rng, 1, 4), groups * size(rng, 1, 4)
    options = (kernel, 1, kernel // 2, groups)
    return Conv("grouped", "random", 1, channels, size(rng, 2, 6), outputs, *options)


def patches(rng: random.Random) -> Conv:
    """Kernels that do not overlap."""
    kernel, channels = rng.choice((2, 4, 8, 14, 16, 32)), rng.choice((1, 3, size(rng, 2, 8)))
    sizes = rng.choice((1, 4)), channels, kernel * size(rng, 0, 5)
    return Conv("patches", "random", *sizes, size(rng, 4, 10), kernel, kernel)


def strided(rng: random.Random) -> Conv:
    """First layers and other large steps, and what transposed convolutions are the gradient of."""
    kernel, channels = rng.choice((3, 4, 5, 7, 11)), rng.choice((1, 3, size(rng, 2, 8)))
    options = kernel, rng.choice((2, 2, 3, 4)), rng.choice((0, 1, kernel // 2))
    return Conv("strided", "random", 1, channels, size(rng, 3, 8), size(rng, 3, 8), *options)


def dilated(rng: random.Random) -> Conv:
    dilation = rng.choice((2, 4, 6, 12, 18, 24))
    sizes = 1, size(rng, 4, 10), size(rng, 4, 7), size(rng, 3, 9)
    return Conv("dilated", "random", *sizes, 3, 1, dilation, 1, dilation)


def batches(rng: random.Random) -> Conv:
    """Batches of small maps."""
    kernel = rng.choice((1, 3, 3, 5))
    sizes = size(rng, 3, 7), size(rng, 0, 6), size(rng, 2, 6), size(rng, 0, 6)
    return Conv("batches", "random", *sizes, kernel, 1, rng.choice((0, kernel // 2)))


def tiny(rng: random.Random) -> Conv:
    """Calls whose work hardly takes longer than the calls themselves."""
    kernel, groups = rng.choice((1, 2, 3, 3, 5, 7)), rng.choice((1, 1, 1, size(rng, 0, 5)))
    channels, outputs = groups * size(rng, 0, 4), groups * size(rng, 0, 4)
    options = kernel, rng.choice((1, 1, 2)), rng.choice((0, kernel // 2)), groups
    return Conv(
        "tiny", "random", rng.choice((1, 1, 4)), channels, size(rng, 2, 5), outputs, *options
    )


# So many shapes of each kind.
KINDS: tuple[tuple[Callable[[random.Random], Conv], int], ...] = (
    (linear, 20),
    (common, 110),
    (depthwise, 40),
    (grouped, 40),
    (patches, 40),
    (strided, 60),
    (dilated, 40),
    (batches, 40),
    (tiny, 60),
)


def random_problems(seed: int, one_in: int = 1) -> Iterator[Conv]:
    rng = random.Random(seed)
    for kind, count in KINDS:
        left = count // one_in
        while left:
            p = kind(rng)
            if min(p.size, p.out) > 0 and FLOPS[0] < p.flops < FLOPS[1]:
                left -= 1
                yield p


def timed(call: Callable[[], Any], count: int = 1) -> float:
    """Seconds of one of so many calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def turns(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The least time of each call in nanoseconds: others on the machine only add to it."""
    repeat, times = {}, {name: list[float]() for name in calls}
    for call in calls.values():
        call()
    first = {name: min(timed(call), timed(call)) for name, call in calls.items()}
    least = min(first.values())
    for name in calls:
        if first[name] < 2 * HOPELESS * least:
            repeat[name] = max(1, int(SECONDS / first[name]))
        times[name].append(first[name])
    begin = time.perf_counter()
    for turn in range(TURNS):
        for name, count in repeat.items():
            times[name].append(timed(calls[name], count))
        if turn >= 2 and time.perf_counter() - begin > LONGEST:
            break
    return {name: 1e9 * min(found) for name, found in times.items()}


def measure(problems: Iterator[Conv]) -> Iterator[Measured]:
    """Every pass of the problems, with every algorithm that could be chosen."""
    from benchmarks.calls import fastconv_call

    for p in problems:
        arrays = p.arrays("float32")
        options = (p.stride, p.padding, p.dilation, p.groups, "zeros", 2)
        problem = conv_problem("float32", p.x_shape, p.w_shape, *options)
        for what in costs.PASSES:
            shape = costs.shape_of(problem, what)
            able = [
                a.name for a in rows_of(what) if not a.cannot(shape) and not a.inaccurate(shape)
            ]
            if p.groups == 1 and "depthwise" in able:  # all lanes but one would idle, for seconds
                able.remove("depthwise")
            times = turns({name: fastconv_call(p, what, arrays, name) for name in able})
            yield Measured(p, shape, times)


def families(measured: Iterator[Measured], bandwidth: float) -> dict[str, list[Row]]:
    """The rows of each family of algorithms."""
    rows: dict[str, list[Row]] = {}
    for m in measured:
        for name, ns in m.ns.items():
            hopeless = ns > HOPELESS * min(
                other for peer, other in m.ns.items() if peer == name or peer not in COARSE
            )
            if m.shape.bytes / bandwidth < MEMORY_SHARE * ns and not hopeless:
                row = ns, costs.count(name, m.shape)
                rows.setdefault(costs.family(name, m.shape.what), []).append(row)
    return rows


def fit(rows: list[Row]) -> dict[str, float]:
    """Constants >= 0 of least relative error, by coordinate descent; rows far off count for less."""
    names = sorted({name for _, counts in rows for name in counts})
    a = np.array([[counts.get(name, 0.0) / ns for name in names] for ns, counts in rows])
    a, names = (
        a[:, a.any(axis=0)],
        [n for n, used in zip(names, a.any(axis=0), strict=True) if used],
    )
    x, weights = np.zeros(len(names)), np.ones(len(a))
    for _ in range(4):
        left = a.T * weights
        matrix, right = left @ a, left.sum(axis=1)
        for _ in range(3000):
            for i in range(len(x)):
                x[i] = max(0.0, x[i] + (right[i] - matrix[i] @ x) / matrix[i, i])
        weights = 1 / np.maximum(0.1, np.abs(a @ x - 1))
    error = np.abs(a @ x - 1)
    print(f"# {len(a)} times, {100 * np.mean(error < 0.1):.0f} % of them within 10 %")
    return dict(zip(names, x.tolist(), strict=True))


def print_table() -> None:
    """The lines of the active row in fastconv/costs.py."""
    from itertools import chain

    peak, bandwidth = roofline.peak_gflops("float32", 1), roofline.bandwidth(1)["copy"]
    print(
        f"    {isa.current()!r}: Costs(\n        peak={peak:.0f},\n        bandwidth={bandwidth:.0f},"
    )
    print("        ns={")
    named = (p.with_batch(1) for p in PROBLEMS)
    rows = families(measure(chain(named, random_problems(SEED))), bandwidth)
    for name, found in ((name, fit(of)) for name, of in rows.items()):
        found["efficiency"] = 2 * isa.lanes(4) / peak / found.pop("fma")
        digits = {key: float(f"{value:.3g}") for key, value in sorted(found.items()) if value}
        print(f"            {name!r}: {digits},")
    print("        },\n    ),")


def losses(measured: Iterator[Measured]) -> list[tuple[float, str]]:
    """How many times as long as the fastest algorithm the chosen one takes, and of what, the dearest first."""
    found = []
    for m in measured:
        ns, p = {name: t for name, t in m.ns.items() if name not in COARSE}, m.problem
        chosen = min(ns, key=lambda name, shape=m.shape: costs.seconds(name, shape))
        fastest = min(ns, key=ns.__getitem__)
        text = f"{chosen} instead of {fastest}: {m.shape.what}, {p.label}, padding {p.padding}"
        found.append((ns[chosen] / ns[fastest], text))
    return sorted(found, reverse=True)


def print_check() -> None:
    """What the choice costs for shapes that nothing was fitted to."""
    found = losses(measure(random_problems(CHECK_SEED, CHECKED)))
    for loss, text in found[:20]:
        print(f"# {loss:.2f} {text}")
    ratios = np.array([loss for loss, _ in found])
    print(
        f"# {len(ratios)} choices: {100 * np.mean(ratios < 1.1):.0f} % within 10 % of the fastest, "
        f"{100 * (ratios.mean() - 1):.1f} % slower on average, at worst {ratios.max():.2f} times as long"
    )


def main() -> None:
    import fastconv

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="judge the choice on other shapes")
    check = parser.parse_args().check
    fastconv.set_num_threads(1)
    machine = isa.machine()
    print(f"# {machine['cpu']}, {machine['compiler']}, row {isa.current()}")
    print_check() if check else print_table()


if __name__ == "__main__":
    main()
