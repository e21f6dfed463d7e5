# SPDX-License-Identifier: BSD-3-Clause
"""The roofs of this machine: multiply-adds in registers, and reading and copying main memory.

`python -m benchmarks.roofline [--json]` measures them with fastconv's own vectors (the active ISA),
for each dtype and thread count. `plot` draws results under them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = ("float32", "float64")
REPEATS = 9
# Long enough for the clock to settle, short enough to find a quiet moment of a busy machine.
SECONDS = 0.05
# Several times the last-level cache of most processors.
BYTES = 256 << 20


def best_rate(work: Callable[[], float], repeats: int = REPEATS) -> float:
    """The highest of several rates of `work`, which returns how much it did, in 1e9 a second."""
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - start))
    return max(rates) / 1e9


def peak_gflops(dtype: str, threads: int) -> float:
    """Multiply-adds in registers, on every thread at once: GFLOP/s."""
    from fastconv.kernels import peak

    def run(rounds: int) -> float:
        return peak.fma(np.dtype(dtype).itemsize, rounds, threads)

    rounds, elapsed = 500, 0.0
    while elapsed < SECONDS:
        rounds *= 2
        start = time.perf_counter()
        run(rounds)
        elapsed = time.perf_counter() - start
    return best_rate(partial(run, rounds))


def bandwidth(threads: int, size: int = BYTES) -> dict[str, float]:
    """GB/s of reading one large array, and of copying it (bytes read plus bytes written)."""
    from fastconv.kernels import peak

    source = np.ones(size // 4, np.float32)
    to = np.zeros_like(source)
    return {
        "read": best_rate(lambda: peak.read(source, threads)),
        "copy": best_rate(lambda: peak.copy(to, source, threads)),
    }


def measure(threads: Iterable[int], dtypes: Sequence[str] = DTYPES) -> dict[str, Any]:
    """{"isa": ..., "roofs": [{"threads", "read", "copy", "float32", "float64"}]}; GB/s, GFLOP/s."""
    import fastconv

    roofs = [
        {"threads": n, **bandwidth(n), **{dtype: peak_gflops(dtype, n) for dtype in dtypes}}
        for n in threads
    ]
    return {"isa": fastconv.isa(), "roofs": roofs}


def default_threads() -> list[int]:
    """1, 2, 4, … and the number of threads that fastconv would use."""
    import fastconv

    most = fastconv.get_num_threads()
    return sorted({2**i for i in range(most.bit_length())} | {most})


# ---------------------------------------------------------------------------------------- drawing

Box = tuple[float, float, float, float]


def plot(points: Sequence[tuple[str, str, float, float]], roof: dict[str, Any], path: Path) -> None:
    """Draw (name, group, flops per byte, GFLOP/s) under a roof {"title", "gflops", "bandwidth"}."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(16, 10), dpi=110)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _set_limits(axes, points, roof)
    _draw_roof(axes, roof)
    groups = sorted({group for _, group, _, _ in points})
    for i, group in enumerate(groups):
        xs = [x for _, g, x, _ in points if g == group]
        ys = [y for _, g, _, y in points if g == group]
        axes.scatter(xs, ys, s=36, color=f"C{i}", label=group, zorder=3)
    axes.set_xlabel("flops per compulsory byte")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(roof["title"])
    axes.grid(True, which="both", alpha=0.2)
    if groups:
        axes.legend(loc="lower right")
    figure.tight_layout()
    draw_labels(axes, [(name, x, y) for name, _, x, y in points])
    figure.savefig(path)
    plt.close(figure)


def _set_limits(
    axes: Any, points: Sequence[tuple[str, str, float, float]], roof: dict[str, Any]
) -> None:
    ridge = roof["gflops"] / roof["bandwidth"]
    xs = [ridge, *(x for _, _, x, _ in points)]
    ys = [roof["gflops"], *(y for _, _, _, y in points)]
    axes.set_xlim(min(xs) / 2, max(xs) * 3)
    axes.set_ylim(min(ys) / 2, max(ys) * 2)


def _draw_roof(axes: Any, roof: dict[str, Any]) -> None:
    """The two ceilings, each with its name written along it."""
    gflops, rate = roof["gflops"], roof["bandwidth"]
    left, right = axes.get_xlim()
    ridge = gflops / rate
    axes.plot([left, ridge, right], [left * rate, gflops, gflops], color="black", lw=1.5, zorder=2)
    axes.annotate(
        f"multiply-add peak {gflops:.0f} GFLOP/s",
        (right, gflops),
        xytext=(-6, 5),
        textcoords="offset points",
        ha="right",
    )
    bottom = axes.get_ylim()[0]
    middle = math.sqrt(max(left, bottom / rate) * ridge)
    axes.annotate(
        f"memory {rate:.0f} GB/s",
        (middle, middle * rate),
        xytext=(-14, 14),
        textcoords="offset points",
        ha="center",
        va="center",
        rotation=math.degrees(math.atan(1)),
        transform_rotates_text=True,
        rotation_mode="anchor",
    )


def draw_labels(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """A name at the free place nearest to each point, joined to it by a thin line."""
    figure = axes.figure
    figure.canvas.draw()
    scale = figure.dpi / 72
    places = axes.transData.transform([(x, y) for _, x, y in points]) if points else []
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    taken += [text.get_window_extent().extents for text in axes.texts]
    taken += [(x - 3, y - 3, x + 3, y + 3) for line in axes.lines for x, y in _along(line)]
    if axes.get_legend():
        taken.append(axes.get_legend().get_window_extent().extents)
    frame = axes.get_window_extent().extents
    for (name, _, _), (x, y) in sorted(
        zip(points, places, strict=True), key=lambda pair: -pair[1][1]
    ):
        text = axes.annotate(name, (x, y), xycoords="figure pixels", fontsize=8)
        box = text.get_window_extent()
        text.remove()
        corner = _free_corner((x, y), (box.width, box.height), taken, frame)
        taken.append((*corner, corner[0] + box.width, corner[1] + box.height))
        axes.annotate(
            name,
            (x, y),
            xycoords="figure pixels",
            xytext=((corner[0] - x) / scale, (corner[1] - y) / scale),
            textcoords="offset points",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "gray", "lw": 0.5, "shrinkA": 0},
        )


def _along(line: Any) -> list[tuple[float, float]]:
    """Places in pixels along a drawn line, close enough that no label fits between them."""
    path = line.axes.transData.transform(line.get_xydata())
    return [
        tuple(a + (b - a) * share)
        for a, b in itertools.pairwise(path)
        for share in np.linspace(0, 1, 200)
    ]


def _free_corner(
    point: tuple[float, float], size: tuple[float, float], taken: Sequence[Box], frame: Box
) -> tuple[float, float]:
    """Lower left corner for a box of `size` near `point` that covers nothing taken."""
    x, y = point
    width, height = size
    for ring in range(1, 40):
        for step in range(16):
            angle = 2 * math.pi * step / 16
            centre_x = x + math.cos(angle) * (ring * 9 + width / 2)
            centre_y = y + math.sin(angle) * (ring * 9 + height / 2)
            left, bottom = centre_x - width / 2, centre_y - height / 2
            box = (left - 2, bottom - 2, left + width + 2, bottom + height + 2)
            if _inside(box, frame) and not any(_overlap(box, other) for other in taken):
                return left, bottom
    return x + 8, y + 8


def _inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--threads", type=int, action="append", help="may be given several times")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = measure(options.threads or default_threads())
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"ISA {found['isa']}")
    for roof in found["roofs"]:
        rates = ", ".join(f"{dtype} {roof[dtype]:.0f} GFLOP/s" for dtype in DTYPES)
        memory = f"read {roof['read']:.1f} GB/s, copy {roof['copy']:.1f} GB/s"
        print(f"{roof['threads']} threads: {rates}, {memory}")


if __name__ == "__main__":
    main()
