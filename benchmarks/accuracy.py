# SPDX-License-Identifier: BSD-3-Clause
"""How far every algorithm and precision is from the exact sums: `python -m benchmarks.accuracy`.

Prints the tables of docs/numerics.md; with --plot it draws speed against accuracy on one layer instead.

An error is that of sums of K products, against float64: root mean square and maximum, both over the
root mean square of the exact sums. Beside them stand the errors of PyTorch, where it is installed,
and of one float32 chain of fused multiply-adds over the same terms. The chain is computed as
float32(float64(a) * float64(b) + float64(sum)), which is a fused multiply-add but for rare double roundings.

The split algorithms run on the active instruction set where it has tile registers and else on plain C, whose
software model of these registers gives the same bits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import calls, roofline
from benchmarks.peers import Worker
from benchmarks.problems import PROBLEMS, SETS, Array, Conv, find
from benchmarks.report import EFFORTS, PRECISIONS, peer_names, progress, words_of
from benchmarks.runner import compare, start_workers

CHAIN = "chain"
PASSES = ("forward", "dw")
PEERS = ("torch", "torch_autocast")
# Sums that are looked at: so many pixels or weights, each with so many output channels.
PLACES, OUTPUTS = 128, 32


def _layer(name: str, batch: int, channels: int, size: int, kernel: int) -> Conv:
    return Conv(name, "", batch, channels, size, OUTPUTS, kernel)


# Sums of channels * kernel^2 terms: 27 to 25,088. Without padding, so that all sums of a layer are as long.
FORWARD = (
    _layer("3x3, 3 channels", 1, 3, 16, 3),
    _layer("3x3, 64 channels", 1, 64, 16, 3),
    _layer("5x5, 32 channels", 1, 32, 18, 5),
    _layer("1x1, 1024 channels", 1, 1024, 14, 1),
    _layer("3x3, 256 channels", 1, 256, 16, 3),
    _layer("3x3, 512 channels", 1, 512, 16, 3),
    _layer("linear, 512x7x7", 64, 512, 7, 7),
)
# Sums of images * pixels terms.
WEIGHT_GRADIENT = (
    _layer("4 images of 14x14", 4, 32, 16, 3),
    _layer("16 images of 14x14", 16, 32, 16, 3),
    _layer("8 images of 56x56", 8, 32, 58, 3),
    _layer("5x5, 4 images of 28x28", 4, 32, 32, 5),
)


# ------------------------------------------------------------------------------------------ data

# Both operands of a pass, of five axes; the terms of a sum run along `axis` of either, and along others.
Maker = Callable[[np.random.Generator, Sequence[tuple[int, ...]], int], list[Array]]


def _normal(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]], axis: int) -> list[Array]:
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def _relu(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]], axis: int) -> list[Array]:
    x, w = _normal(rng, shapes, axis)
    return [np.maximum(x, 0), w]


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.choice(np.array([-1, 1], np.float32), shape)


def _wide(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]], axis: int) -> list[Array]:
    """Magnitudes from 2^-20 to 2^20, equally many of each size."""
    return [_signs(rng, s) * np.exp2(rng.uniform(-20, 20, s).astype(np.float32)) for s in shapes]


def _cancelling(
    rng: np.random.Generator, shapes: Sequence[tuple[int, ...]], axis: int
) -> list[Array]:
    """The second half of the terms takes away the first but for 2^-12 of it; a term left over is as small."""
    x, w = (np.moveaxis(a, axis, 0) for a in _normal(rng, shapes, axis))
    half = len(x) // 2
    noise = rng.standard_normal(x[:half].shape, dtype=np.float32)
    x[half : 2 * half] = x[:half] * (1 + np.float32(2**-12) * noise)
    w[half : 2 * half] = -w[:half]
    x[2 * half :] *= np.float32(2**-12)
    return [np.moveaxis(a, 0, axis) for a in (x, w)]


def _float_of(mantissas: Sequence[int]) -> Array:
    """Floats from 1 to 2."""
    return (np.array(mantissas, np.uint32) | 0x3F800000).view(np.float32)


# 23 bits that bfloat16 parts of 8 round hardest: all ones; ties of the first part, to even and to odd; a first part that is
# rounded up by as much as can be, with nothing left and with a second part that is a tie.
EDGES = (0x7FFFFF, 0x008000, 0x018000, 0x007FFF, 0x7F8000, 0x7F7FFF, 0x007FC0, 0x007F40)
# 1 + 2^-8 - 2^-17 and 1 + 2^-8 - 2^-16 - 2^-18: their second parts are as large as can be, and so are their third, down and up.
DOWN, UP = 0x007FC0, 0x007F40


def _edges(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]], axis: int) -> list[Array]:
    return [_signs(rng, s) * rng.choice(_float_of(EDGES), s) for s in shapes]


def _aligned(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]], axis: int) -> list[Array]:
    """What six products leave out has one sign in all terms, whose own signs alternate; times small powers of two."""
    pair = _float_of((DOWN, UP))
    result = []
    for shape, factors in zip(shapes, (pair, pair * np.array([1, -1], np.float32)), strict=True):
        along = factors[np.arange(shape[axis]) % 2].reshape(
            [-1 if i == axis else 1 for i in range(5)]
        )
        result.append(along * np.exp2(rng.integers(-2, 3, shape).astype(np.float32)))
    return result


DATA: dict[str, Maker] = {
    "normal": _normal,
    "relu": _relu,
    "wide": _wide,
    "cancelling": _cancelling,
    "edges": _edges,
    "aligned": _aligned,
}


def operands(p: Conv, what: str, data: str, seed: int = 1) -> calls.Arrays:
    """The arrays of a problem; those that the pass does not use are zero."""
    rng = np.random.default_rng(seed)
    g, k = p.groups, p.kernel
    x = (p.batch, g, p.channels // g, p.size, p.size)
    w = (g, p.outputs // g, p.channels // g, k, k)
    dy = (p.batch, g, p.outputs // g, p.out, p.out)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in p.operands.items()}
    other, shape, axis = ("w", w, 2) if what == "forward" else ("dy", dy, 0)
    for name, array in zip(("x", other), DATA[data](rng, (x, shape), axis), strict=True):
        arrays[name] = np.ascontiguousarray(array.reshape(p.operands[name]))
    return arrays


# ------------------------------------------------------------------------------------------ sums


def count(p: Conv, what: str) -> int:
    """Terms of a sum."""
    return math.prod(p.w_shape[1:]) if what == "forward" else p.batch * p.out**2


def _some(shape: tuple[int, ...]) -> tuple[Array, ...]:
    """Indices of up to PLACES places, spread evenly."""
    size = math.prod(shape)
    return np.unravel_index(np.linspace(0, size - 1, min(size, PLACES)).astype(int), shape)


def terms(
    p: Conv, what: str, arrays: calls.Arrays
) -> tuple[Array, Array, Callable[[Array], Array]]:
    """a[k][i], b[k][j] and pick: pick(result)[i][j] is the sum over k of a[k][i] * b[k][j].

    Some of the sums of the first group, in the order (channel, tap) or, of a weight gradient, (image, pixel).
    """
    outputs = min(OUTPUTS, p.outputs // p.groups)
    windows = calls.windows(p, arrays["x"])[:, : p.channels // p.groups]
    n, c, ky, kx, oy, ox = range(6)
    if what == "forward":
        image, row, column = _some((p.batch, p.out, p.out))
        a = windows.transpose(c, ky, kx, n, oy, ox)[..., image, row, column]
        b = arrays["w"][:outputs].reshape(outputs, -1).T
        return a.reshape(-1, len(image)), b, lambda y: y[image, :outputs, row, column]
    channel, row, column = _some(p.w_shape[1:])
    a = windows.transpose(n, oy, ox, c, ky, kx)[..., channel, row, column]
    b = arrays["dy"][:, :outputs].transpose(0, 2, 3, 1).reshape(-1, outputs)
    return a.reshape(-1, len(channel)), b, lambda dw: dw[:outputs, channel, row, column].T


def chain(a: Array, b: Array) -> Array:
    """Every sum as one chain of float32 multiply-adds."""
    total = np.zeros((a.shape[1], b.shape[1]), np.float32)
    step = np.empty(total.shape)
    for left, right in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        np.multiply.outer(left, right, out=step)
        step += total
        total[...] = step
    return total


def error(found: Array, exact: Array, scale: Array) -> dict[str, float]:
    """rms and max over the rms of the exact sums; `bound`, the largest in units of eps * sum of magnitudes."""
    difference = np.abs(found - exact)
    rms = float(np.sqrt(np.mean(np.square(exact))))
    unit = np.finfo(np.float32).eps * np.where(scale > 0, scale, 1)
    return {
        "rms": float(np.sqrt(np.mean(np.square(difference)))) / rms,
        "max": float(difference.max()) / rms,
        "bound": float((difference / unit).max()),
    }


class Sums:
    """Sums of one problem, pass and kind of data: operands, exact results and what any result is off."""

    def __init__(self, p: Conv, what: str, data: str, seed: int = 1) -> None:
        self.problem, self.what = p, what
        self.arrays = operands(p, what, data, seed)
        self.a, self.b, self.pick = terms(p, what, self.arrays)
        a, b = self.a.astype(np.float64), self.b.astype(np.float64)
        self.exact, self.scale = a.T @ b, np.abs(a).T @ np.abs(b)

    def chain(self) -> dict[str, float]:
        return error(chain(self.a, self.b), self.exact, self.scale)

    def error(self, result: Array) -> dict[str, float]:
        return error(self.pick(result), self.exact, self.scale)

    def fastconv(self, name: str) -> dict[str, float]:
        """The error of an algorithm, or of what is chosen for a precision; `rerun`: a guard gave it to the direct kernel."""
        import fastconv
        from fastconv.kernels import correlate

        before = correlate.reruns()
        word, algo = (name, "auto") if name in PRECISIONS else ("highest", name)
        with fastconv.precision(word):
            found = self.error(calls.fastconv_call(self.problem, self.what, self.arrays, algo)())
        return {**found, "rerun": correlate.reruns() - before}

    def peer(self, worker: Worker, word: str) -> dict[str, float] | None:
        """None where the peer does not have the precision."""
        with tempfile.TemporaryDirectory() as folder:
            inputs, result = Path(folder, "operands.npz"), Path(folder, "result.npy")
            np.savez(inputs, **self.arrays)
            reply = worker.ask(
                "compute",
                problem=self.problem.as_dict(),
                precision=word,
                operands=str(inputs),
                result=str(result),
                **{"pass": self.what},
            )
            return None if "skip" in reply else self.error(np.load(result))


# ------------------------------------------------------------------------------------ algorithms


@contextmanager
def split_row() -> Iterator[str]:
    """The active instruction set, or plain C where it has no split kernels."""
    from fastconv.kernels import isa

    before = isa.current()
    if not isa.has_split():
        isa.select("scalar")
    try:
        yield isa.current()
    finally:
        isa.select(before)


def able(p: Conv, what: str) -> list[str]:
    """The algorithms of the active instruction set that can run it."""
    from fastconv import algorithms, costs
    from fastconv.problem import conv_problem

    options = (p.stride, p.padding, p.dilation, p.groups, "zeros", 2)
    shape = costs.shape_of(conv_problem("float32", p.x_shape, p.w_shape, *options), what)
    return [a.name for a in algorithms.rows(what) if a.cannot(shape) is None]


def precision_of(name: str) -> str:
    """The precision that a column belongs to."""
    from fastconv.algorithms import ALGORITHMS

    if name.endswith(", medium"):
        return "medium"
    known = {a.name: a.precision for a in ALGORITHMS} | {word: word for word in PRECISIONS}
    return known.get(name, "highest")


def measure(
    p: Conv, what: str, data: str, workers: Sequence[Worker], chosen: bool
) -> dict[str, Any]:
    """Errors of each algorithm that can run the problem or, `chosen`, of the automatic choices."""
    sums = Sums(p, what, data)
    errors = {CHAIN: sums.chain()}
    if chosen:
        errors |= {word: sums.fastconv(word) for word in PRECISIONS}
    else:
        plain = [n for n in able(p, what) if not n.startswith("split")]
        errors |= {name: sums.fastconv(name) for name in plain}
        with split_row():
            split = [n for n in able(p, what) if n.startswith("split")]
            errors |= {name: sums.fastconv(name) for name in split}
    for worker in workers:
        for word in ("highest", "medium"):
            found = sums.peer(worker, word)
            if found is not None:
                errors[worker.name if word == "highest" else f"{worker.name}, medium"] = found
    return {
        "problem": p.as_dict(),
        "pass": what,
        "data": data,
        "terms": count(p, what),
        "errors": errors,
    }


# ---------------------------------------------------------------------------------------- tables


def _cell(error: dict[str, float] | None, chain: dict[str, float] | None) -> str:
    """rms / max, as multiples of the chain's where one is given."""
    if error is None:
        return ""
    if chain:
        values = [f"{error[key] / chain[key]:.2f}" for key in ("rms", "max")]
    else:
        values = [f"{error[key]:.1e}".replace("e-0", "e-") for key in ("rms", "max")]
    return " / ".join(values) + (" †" if error.get("rerun") else "")


def _place(name: str) -> tuple[int, str]:
    """Ours in their own order, then the peers."""
    from fastconv.algorithms import NAMES

    ours = (*PRECISIONS, *NAMES)
    return (ours.index(name) if name in ours else len(ours), name)


def table(results: Sequence[dict[str, Any]], words: Sequence[str]) -> Iterator[str]:
    """Errors of the algorithms of these precisions: of the highest as multiples of the chain's. Equal columns are one."""
    relative = words == PRECISIONS[:1]
    seen = {name for r in results for name in r["errors"] if name != CHAIN}
    columns: dict[tuple[str, ...], list[str]] = {}
    for name in sorted((n for n in seen if precision_of(n) in words), key=_place):
        found = [(r["errors"].get(name), r["errors"][CHAIN] if relative else None) for r in results]
        columns.setdefault(tuple(_cell(*each) for each in found), []).append(name)
    head = ["data", "layer", "K", CHAIN, *map(", ".join, columns.values())]
    yield "| " + " | ".join(head) + " |"
    yield "|---|---|---:|" + "---:|" * (len(head) - 3)
    for i, r in enumerate(results):
        row = [r["data"], r["problem"]["name"], f"{r['terms']:,}", _cell(r["errors"][CHAIN], None)]
        yield "| " + " | ".join([*row, *(cells[i] for cells in columns)]) + " |"


LEGEND = """\
Each cell has rms / max of the error over the rms of the exact sums. *chain* is one float32 chain of fused
multiply-adds. Algorithms as precise as floats stand as multiples of the chain's: below 1 they are more accurate."""
RERUN = (
    "†: a guard found that the data are not for this algorithm, and the direct kernel did the call."
)


def markdown(report: dict[str, Any]) -> str:
    lines = [f"Measured on {report['machine']}.", "", LEGEND]
    if any(e.get("rerun") for r in report["results"] for e in r["errors"].values()):
        lines.append(RERUN)
    for what in PASSES:
        rows = [r for r in report["results"] if r["pass"] == what]
        if not rows:
            continue
        title = {"forward": "Forward", "dw": "Weight gradient"}[what]
        lines += ["", f"### {title}: float32-grade", "", *table(rows, PRECISIONS[:1])]
        lines += ["", f"### {title}: reduced precision", "", *table(rows, PRECISIONS[1:])]
    return "\n".join(lines) + "\n"


def machine(workers: Sequence[Worker], missing: dict[str, str]) -> str:
    """What a reader must know about where the numbers come from."""
    from fastconv.kernels import isa

    row = isa.current()
    with split_row() as split:
        model = ", through the software model of tile registers" if split == "scalar" else ""
    found = [f"{isa.machine()['cpu']}, row {row} (split algorithms: {split}{model})"]
    found += [f"{w.name} {w.version}" for w in workers]
    return ", ".join(found + [f"no {name} ({reason})" for name, reason in missing.items()])


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that --json writes."""
    peers = PEERS if options.peers is None else options.peers
    workers, missing = start_workers(peers, options.threads)
    try:
        jobs = [
            (p, what, data)
            for what in options.passes
            for data in options.data
            for p in _problems(options, what)
        ]
        chosen = bool(options.set or options.problems)
        results = [measure(*job, workers, chosen) for job in progress(jobs)]
        return {"machine": machine(workers, missing), "results": results}
    finally:
        for worker in workers:
            worker.close()


def _problems(options: argparse.Namespace, what: str) -> Sequence[Conv]:
    """The layers of other lists have two images at most: the errors of more are no different."""
    if options.set or options.problems:
        named = SETS[options.set] if options.set else find(options.problems)
        return [p.with_batch(min(p.batch, 2)) for p in named if isinstance(p, Conv)]
    return FORWARD if what == "forward" else WEIGHT_GRADIENT


# ------------------------------------------------------------------------------------------ plot

PLOT_PEERS = ("torch", "torch_channels_last", "torch_autocast", "onnxruntime", "numpy_im2col")


def choice(p: Conv, word: str, threads: int) -> str:
    """The algorithm that is timed: for one image, of which the errors are, another may be chosen."""
    import fastconv

    with fastconv.precision(word), fastconv.threads(threads):
        found: str = fastconv.explain("conv2d", p.x_shape, p.w_shape, **p.options).algorithm
    return found


def speeds(p: Conv, options: argparse.Namespace) -> dict[str, Any]:
    """{"points": [{"name", "group", "rms", "gflops"}], ...}; of the model of tile registers the errors alone."""
    from fastconv.kernels import isa

    with split_row() as row:
        split = [name for name in able(p, "forward") if name.startswith("split")]
    model = row == "scalar"
    plain = [name for name in able(p, "forward") if not name.startswith("split")]
    peers = PLOT_PEERS if options.peers is None else options.peers
    wanted: dict[str, list[str]] = {word: [] for word in PRECISIONS}
    for name in (*plain, *(() if model else split)):
        wanted[precision_of(name)].append(f"fastconv:{name}")
    for word in PRECISIONS[:1] if model else PRECISIONS:
        wanted[word].append("fastconv")
    for word in ("highest", "medium"):
        wanted[word] += peers
    workers, _ = start_workers(
        sorted({n for each in wanted.values() for n in each}), options.threads
    )
    sums = Sums(p.with_batch(1), "forward", "normal")
    points = []
    effort = EFFORTS["quick"]
    try:
        for word, names in progress(list(wanted.items())):
            taking = [worker for worker in workers if worker.name in names]
            times = compare(taking, p, "forward", "float32", effort.rounds, effort.seconds, word)
            for worker in taking:
                if worker.name not in times["times"]:
                    continue
                if worker.name == "fastconv":
                    found = sums.fastconv(choice(p, word, options.threads))
                else:
                    found = sums.peer(worker, word)
                assert found is not None
                gflops = p.flops / times["times"][worker.name]["seconds"] / 1e9
                points.append({**_label(worker.name, word), "rms": found["rms"], "gflops": gflops})
    finally:
        for worker in workers:
            worker.close()
    with split_row():
        errors = {name: sums.fastconv(name)["rms"] for name in split} if model else {}
    return {
        "layer": f"{p.name}: {p.label}",
        "machine": f"{isa.machine()['cpu']}, {isa.current()}, threads: {options.threads}",
        "points": points,
        "model": errors,
        "chain": sums.chain()["rms"],
    }


def _label(name: str, word: str) -> dict[str, str]:
    """The name of a point, and the group that gives its colour."""
    base, _, algo = name.partition(":")
    if base != "fastconv":
        return {"name": name if word == "highest" else f"{name}, {word}", "group": "peers"}
    return {"name": algo or f"choice for {word!r}", "group": "fastconv"}


def draw(found: dict[str, Any], path: Path) -> None:
    """Speed against accuracy, both logarithmic; dashed lines where only the error is known."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(12, 8), dpi=110)
    axes.set_xscale("log")
    axes.set_yscale("log")
    points, model = found["points"], found["model"]
    xs = [found["chain"], *model.values(), *(point["rms"] for point in points)]
    ys = [point["gflops"] for point in points]
    axes.set_xlim(max(xs) * 3, min(xs) / 3)  # to the right: more accurate
    axes.set_ylim(min(ys) / 2, max(ys) * 2.5)
    for name, rms in {"float32 chain": found["chain"], **model}.items():
        style = {"ls": ":", "color": "black"} if name not in model else {"ls": "--", "color": "C0"}
        axes.plot([rms, rms], axes.get_ylim(), lw=1, **style)
        axes.annotate(
            name,
            (rms, axes.get_ylim()[0]),
            (4, 4),
            textcoords="offset points",
            rotation=90,
            fontsize=8,
        )
    for i, group in enumerate(("fastconv", "peers")):
        inside = [point for point in points if point["group"] == group]
        axes.scatter(
            [point["rms"] for point in inside],
            [point["gflops"] for point in inside],
            s=40,
            color=f"C{i}",
            label=group,
            zorder=3,
        )
    axes.set_xlabel(
        "rms error over the rms of the exact sums (normal data); more accurate to the right"
    )
    axes.set_ylabel("GFLOP/s, of the direct algorithm's flops")
    axes.set_title(f"{found['layer']}\n{found['machine']}")
    axes.grid(True, which="both", alpha=0.2)
    note = (
        "dashed: the error alone; this processor has no tile registers to time it on"
        if model
        else None
    )
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.08), ncols=2, title=note, frameon=False)
    figure.tight_layout()
    roofline.draw_labels(axes, [(point["name"], point["rms"], point["gflops"]) for point in points])
    figure.savefig(path)
    plt.close(figure)


# ----------------------------------------------------------------------------------- command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    import fastconv

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--set", choices=SETS, help="a named list: errors of what is chosen for each precision"
    )
    which.add_argument("--problems", metavar="GLOB", help="the same for layers of these names")
    which.add_argument("--plot", type=Path, metavar="PNG", help="draw speed against accuracy")
    parser.add_argument(
        "--layer", choices=[p.name for p in PROBLEMS], default="resnet_3x3_14", metavar="NAME",
        help="of --plot: a convolution of benchmarks/problems.py (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, help="images of --layer, instead of its own")
    parser.add_argument("--passes", type=words_of(PASSES), default=list(PASSES), metavar="WORDS")
    parser.add_argument(
        "--data", type=words_of(tuple(DATA)), default=list(DATA), metavar="WORDS",
        help="with commas: " + ", ".join(DATA),
    )  # fmt: skip
    parser.add_argument("--peers", type=peer_names, help="with commas; empty: none")
    parser.add_argument("--threads", type=int, default=fastconv.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args(arguments)
    for name, value in (("threads", options.threads), ("batch", options.batch)):
        if value is not None and value < 1:
            parser.error(f"argument --{name}: expected an integer >= 1, got {value}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.plot:
        (layer,) = (p for p in PROBLEMS if p.name == options.layer)
        found = speeds(layer.with_batch(options.batch or layer.batch), options)
        draw(found, options.plot)
    else:
        found = run(options)
        print(markdown(found), end="")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
