# SPDX-License-Identifier: BSD-3-Clause
"""Measure the constants of fastconv/costs.py: `python -m benchmarks.costs` prints the table of the active ISA row.

Every algorithm runs layers of known networks (one image) and random shapes, forward and both gradients, on one thread, in
turns. A column of the model is a number of things done (vectors multiplied, copied, packed, ...); its constant is the time
of one, fitted so that the sum of squared relative errors is least and no constant is negative. Takes about a minute.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import roofline
from benchmarks.problems import PROBLEMS, Conv

# Random shapes, from a seed, and the flops between which they lie; besides them linear layers in disguise, depthwise
# ones, small groups and batches of small maps.
RANDOM, LINEAR, DEPTHWISE, GROUPED, BATCHES, SEED = 110, 20, 40, 40, 40, 11
FLOPS = (1e5, 3e8)
# A measurement: so many turns, each of about so many seconds; a slow problem gets fewer.
TURNS, SECONDS, LONGEST = 7, 0.001, 0.15
# Bytes at this share of the time or more say nothing about the rest.
MEMORY_SHARE = 0.6
# What takes so many times as long as the fastest is never chosen: the model need not fit it.
HOPELESS = 3

Row = tuple[float, dict[str, float]]  # nanoseconds, and what was done in them


def problems() -> Iterator[Conv]:
    yield from (p.with_batch(1) for p in PROBLEMS)
    rng = random.Random(SEED)

    def size(low: float, high: float) -> int:
        return int(2 ** rng.uniform(low, high))

    for _ in range(LINEAR):
        kernel = rng.choice((1, 4, 7))
        yield Conv("linear", "random", size(0, 7), size(3, 9), kernel, size(3, 10), kernel)
    left = RANDOM
    while left:
        kernel = rng.choice((1, 1, 2, 3, 3, 3, 3, 5, 5, 7))
        groups = rng.choice((1, 1, 1, 1, 4, 32))
        options = (kernel, rng.choice((1, 1, 1, 2, 3)), rng.choice((0, kernel // 2)), groups)
        channels, outputs = groups * size(0, 8), groups * size(0, 8)
        p = Conv("random", "random", rng.choice((1, 1, 4)), channels, size(2, 7), outputs, *options)
        if p.size + 2 * p.padding >= kernel and FLOPS[0] < p.flops < FLOPS[1]:
            left -= 1
            yield p
    left = DEPTHWISE
    while left:
        kernel, planes = rng.choice((3, 3, 5, 7)), size(3, 10)
        options = (kernel, rng.choice((1, 1, 2)), kernel // 2, planes)
        p = Conv("depthwise", "random", 1, planes, size(2, 7), planes, *options)
        if FLOPS[0] < p.flops < FLOPS[1]:
            left -= 1
            yield p
    left = GROUPED
    while left:
        groups, kernel = size(3, 7), rng.choice((1, 1, 1, 3))
        channels, outputs = groups * size(1, 4), groups * size(1, 4)
        options = (kernel, 1, kernel // 2, groups)
        p = Conv("grouped", "random", 1, channels, size(2, 6), outputs, *options)
        if FLOPS[0] < p.flops < FLOPS[1]:
            left -= 1
            yield p
    left = BATCHES
    while left:
        kernel, channels, outputs = rng.choice((1, 3, 3, 5)), size(0, 6), size(0, 6)
        options = (kernel, 1, rng.choice((0, kernel // 2)))
        p = Conv("batch", "random", size(3, 7), channels, size(2, 6), outputs, *options)
        if p.size + 2 * p.padding >= kernel and FLOPS[0] < p.flops < FLOPS[1]:
            left -= 1
            yield p


def turns(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The least time of each call in nanoseconds: others on the machine only add to it."""
    repeat, times = {}, {name: list[float]() for name in calls}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeat[name] = max(1, int(SECONDS / (time.perf_counter() - start)))
    begin = time.perf_counter()
    for turn in range(TURNS):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeat[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeat[name])
        if turn >= 2 and time.perf_counter() - begin > LONGEST:
            break
    return {name: 1e9 * min(found) for name, found in times.items()}


def measure(bandwidth: float) -> dict[str, list[Row]]:
    """The rows of each family of algorithms."""
    from benchmarks.calls import fastconv_call
    from fastconv import costs
    from fastconv.algorithms import rows as rows_of
    from fastconv.problem import conv_problem

    rows: dict[str, list[Row]] = {}
    for p in problems():
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
            for name, ns in times.items():
                hopeless = ns > HOPELESS * min(times.values())
                if shape.bytes / bandwidth < MEMORY_SHARE * ns and not hopeless:
                    rows.setdefault(costs.family(name, what), []).append(
                        (ns, costs.count(name, shape))
                    )
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


def main() -> None:
    import fastconv
    from fastconv.kernels import isa

    fastconv.set_num_threads(1)
    peak = roofline.peak_gflops("float32", 1)
    bandwidth = roofline.bandwidth(1)["copy"]
    config = isa.machine()
    print(f"# {config['cpu']}, {config['compiler']}, row {isa.current()}")
    print(
        f"    {isa.current()!r}: Costs(\n        peak={peak:.0f},\n        bandwidth={bandwidth:.0f},"
    )
    print("        ns={")
    for name, rows in measure(bandwidth).items():
        found = fit(rows)
        found["efficiency"] = 2 * isa.lanes(4) / peak / found.pop("fma")
        digits = {key: float(f"{value:.3g}") for key, value in sorted(found.items()) if value}
        print(f"            {name!r}: {digits},")
    print("        },\n    ),")


if __name__ == "__main__":
    main()
