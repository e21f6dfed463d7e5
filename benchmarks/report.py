# SPDX-License-Identifier: BSD-3-Clause
"""Compare fastconv with its peers: `python -m benchmarks.report` writes tables and a roofline plot.

Results go to results.md, results.json and roofline.png in the output folder. Each result is
verified before it is timed. The default, --quick, takes a few minutes, and so does each --set.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import roofline
from benchmarks.peers import PEERS, Worker, caps, find_peer
from benchmarks.problems import ALL, SETS, Problem, find
from benchmarks.runner import compare, geometric_mean, start_workers

OURS = "fastconv"
Table = tuple[str, list[dict[str, Any]]]  # a title and its results
PASSES = ("forward", "dx", "dw")
TITLES = {"conv": "Convolution", "block": "Prepared convolution, batch normalisation and ReLU"}
OTHERS = "Memory-bound operations"
QUICK = (
    "lenet1,lenet2,alexnet_conv1,alexnet_conv2,vgg1_2,vgg3_2,vgg5,googlenet_5x5_28,"
    "resnet_7x7s2_224,resnet_3x3_56,resnet_1x1_64_256_56,resnet_3x3s2_56,resnet_1x1_1024_256_14,"
    "resnet_3x3_7,depthwise_3x3_56,grouped_3x3_56,resnet_max_3x3s2,batch_norm_112,relu_112"
)
# Peers of --set: the others take many times as long.
SET_PEERS = ["fastconv", "torch", "torch_channels_last"]
# Quick runs take fewer images of a problem with more flops than this.
QUICK_FLOPS = 2e9
PRECISIONS = ("highest", "high", "medium")  # convolutions know them
AUTOCAST = "torch_autocast"  # a peer of "medium" alone


@dataclass(frozen=True)
class Effort:
    """How long each peer is timed: `rounds` turns of about `seconds`."""

    rounds: int
    seconds: float


EFFORTS = {"quick": Effort(3, 0.05), "full": Effort(11, 0.2)}


def quick_batch(problem: Problem) -> Problem:
    """The problem with as many images as QUICK_FLOPS allow, one at least."""
    images = int(QUICK_FLOPS * problem.batch // problem.flops)
    return problem.with_batch(max(1, min(problem.batch, images)))


def chosen_problems(options: argparse.Namespace) -> list[Problem]:
    if options.set:
        found = list(SETS[options.set])
    else:
        found = find(options.problems or (QUICK if options.effort == "quick" else "*"))
    if not found:
        names = ", ".join(p.name for p in ALL)
        raise SystemExit(f"--problems: nothing matches {options.problems!r}; there are {names}")
    if options.batch:
        return [p.with_batch(options.batch) for p in found]
    return (
        [quick_batch(p) for p in found] if options.effort == "quick" and not options.set else found
    )


def progress(jobs: Sequence[Any]) -> Iterable[Any]:
    """The jobs, behind a progress bar when someone watches and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return jobs
    return tqdm(jobs, unit="problem", disable=not sys.stderr.isatty())


def machine(options: argparse.Namespace, roof: dict[str, Any]) -> dict[str, Any]:
    """What a reader must know about where the numbers come from."""
    from fastconv import runtime

    config = runtime.config()
    return {
        "cpu": config["cpu"],
        "cores": os.cpu_count(),
        "caches": config["caches"],
        "system": platform.platform(),
        "isa": config["isa"],
        "compiler": config["compiler"],
        "threads": options.threads,
        "dtype": options.dtype,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "peak_gflops": roof[options.dtype],
        "read_gbs": roof["read"],
        "copy_gbs": roof["copy"],
    }


def measure_roof(options: argparse.Namespace) -> dict[str, float]:
    """Taken before and after the comparison; the better counts, as other processes only slow it."""
    roofs: list[dict[str, float]] = roofline.measure([options.threads], [options.dtype])["roofs"]
    return roofs[0]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that results.json holds."""
    problems = chosen_problems(options)
    before = measure_roof(options)
    workers, missing = start_workers(options.peers, options.threads)
    versions = {worker.name: worker.version for worker in workers}
    jobs = [
        (p, what, word)
        for p in problems
        for what in p.passes
        if what in options.passes
        for word in (options.precision if p.op == "conv" else PRECISIONS[:1])
    ]
    try:
        results = [_result(*job, workers, options) for job in progress(jobs)]
    finally:
        for worker in workers:
            worker.close()
    after = measure_roof(options)
    roof = {name: max(rate, after[name]) for name, rate in before.items()}
    return {
        "machine": machine(options, roof),
        "versions": versions,
        "caps": caps(),
        "missing": missing,
        "results": results,
    }


def _result(
    problem: Problem, what: str, precision: str, workers: list[Worker], options: argparse.Namespace
) -> dict[str, Any]:
    effort = EFFORTS[options.effort]
    found = compare(workers, problem, what, options.dtype, effort.rounds, effort.seconds, precision)
    return {
        "problem": problem.as_dict(),
        "label": problem.label,
        "pass": what,
        "precision": precision,
        "flops": problem.flops,
        "bytes": problem.floor(what, np.dtype(options.dtype).itemsize),
        **found,
    }


# ---------------------------------------------------------------------------------------- tables


def bandwidth(facts: dict[str, Any]) -> float:
    """The better of reading and copying, GB/s."""
    return max(facts["read_gbs"], facts["copy_gbs"])


def ratio(result: dict[str, Any], peer: str) -> float | None:
    """Time of the peer over ours; None where either is missing."""
    times = result["times"]
    if peer not in times or OURS not in times:
        return None
    return times[peer]["seconds"] / times[OURS]["seconds"]


def _row(result: dict[str, Any], peers: Sequence[str], facts: dict[str, Any]) -> list[str]:
    cells = [result["problem"]["name"], result["label"]]
    ours = result["times"].get(OURS)
    if ours is None:
        cells += [result["skipped"].get(OURS, "–"), "–", "–", "–"]
    else:
        seconds = ours["seconds"]
        gflops = result["flops"] / seconds / 1e9
        over_floor = seconds * bandwidth(facts) * 1e9 / result["bytes"]
        cells += [
            f"{1e3 * seconds:.3g}",
            f"{gflops:.1f}",
            f"{100 * gflops / facts['peak_gflops']:.0f}",
            f"{over_floor:.1f}",
        ]
    for peer in peers:
        found = ratio(result, peer)
        scaled = found is not None and result["times"][peer]["scale"] > 1
        cells.append("–" if found is None else f"{found:.2f}{'*' if scaled else ''}")
    return cells


def _table(
    results: Sequence[dict[str, Any]], peers: Sequence[str], facts: dict[str, Any]
) -> Iterator[str]:
    head = ["problem", "sizes", "ms", "GFLOP/s", "% of peak", "bytes over floor", *peers]
    yield "| " + " | ".join(head) + " |"
    yield "|---|---|" + "---:|" * (len(head) - 2)
    for result in results:
        yield "| " + " | ".join(_row(result, peers, facts)) + " |"


def _summary(tables: Sequence[Table], peers: Sequence[str]) -> Iterator[str]:
    """What each table comes to: for each peer the mean, the worst case and how many were lost."""
    yield "| times faster than | pass | geometric mean | worst case | losses |"
    yield "|---|---|---:|---|---:|"
    for peer in peers:
        for title, results in tables:
            found = {r["problem"]["name"]: x for r in results if (x := ratio(r, peer)) is not None}
            if not found:
                continue
            mean, worst = geometric_mean(list(found.values())), min(found, key=found.__getitem__)
            losses = sum(x < 1 for x in found.values())
            yield (
                f"| {peer} | {title} | {mean:.2f} | {found[worst]:.2f} {worst} | {losses} of {len(found)} |"
            )


LEGEND = """\
Time, GFLOP/s and % of peak are fastconv's: medians of real calls, which allocate their result and
pack their weights. GFLOP/s counts the flops of the direct algorithm. *Bytes over floor* is how many
times the bytes that cannot be avoided (operands read once, results written once) this machine
could have moved in that time; what stays in cache can be below 1. A peer's column is its time over
ours: above 1, fastconv is faster. Peers run in processes of their own, with as many threads, and
take turns; each result was verified before it was timed. `*`: measured on some of the images and
output channels and scaled. ONNX Runtime packs weights beforehand, when its session is built, as does
`fastconv:prepared`. Prepared models pack theirs beforehand too; PyTorch runs the Sequential in
evaluation mode, `fastconv:layers` ours.
Against precision "medium" PyTorch may multiply bfloat16 (torch.backends.mkldnn.conv.fp32_precision =
"bf16"), and is left out where its processor does not; torch_autocast turns tensors to bfloat16."""


def markdown(report: dict[str, Any], peers: Sequence[str]) -> str:
    """The report as a page."""
    facts, results = report["machine"], report["results"]
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in facts["caches"].items())
    lines = [
        "# fastconv and its peers",
        "",
        f"- processor: {facts['cpu']}, {facts['cores']} logical cores; data caches {caches}",
        f"- peak on {facts['threads']} threads, {facts['isa']}, {facts['dtype']}: "
        f"{facts['peak_gflops']:.0f} GFLOP/s; memory: read {facts['read_gbs']:.1f} GB/s, "
        f"copy {facts['copy_gbs']:.1f} GB/s",
        f"- {facts['system']}; {facts['compiler']}; Python {facts['python']}",
        "- versions: " + ", ".join(f"{n} {v}" for n, v in report["versions"].items()),
        *(
            f"- in every peer's environment, so that none uses wider vectors: {name}={value}"
            for name, value in report["caps"].items()
        ),
        *(f"- not here: {name} ({reason})" for name, reason in report["missing"].items()),
        "",
        LEGEND,
    ]
    shown = [peer for peer in peers if peer != OURS and peer in report["versions"]]
    tables = _split(results)
    lines += ["", "## Summary", "", *_summary(tables, shown)]
    for title, rows in tables:
        with_times = [p for p in shown if any(p in r["times"] for r in rows)]
        lines += ["", f"## {title}", "", *_table(rows, with_times, facts)]
    lines += ["", *_failures(results)]
    return "\n".join(lines).rstrip() + "\n"


def _title(result: dict[str, Any]) -> str:
    word = "" if result["precision"] == PRECISIONS[0] else f", {result['precision']}"
    return f"{TITLES.get(result['problem']['op'], OTHERS)}{word}: {result['pass']}"


def _split(results: Sequence[dict[str, Any]]) -> list[Table]:
    """The results by operation, precision and pass."""
    operations = (*TITLES, "")

    def place(result: dict[str, Any]) -> tuple[int, int, int]:
        op, word, what = result["problem"]["op"], result["precision"], result["pass"]
        row = operations.index(op if op in TITLES else "")
        return row, PRECISIONS.index(word), PASSES.index(what)

    return [(title, list(rows)) for title, rows in groupby(sorted(results, key=place), _title)]


def _failures(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Wrong results and dead processes; a peer that lacks an operation is no failure."""
    for result in results:
        for peer, reason in result["skipped"].items():
            if reason.startswith("WRONG RESULT") or "process" in reason:
                place = f"{result['problem']['name']} {result['pass']}, {result['precision']}"
                yield f"- {peer}, {place}: {reason}"


def draw(report: dict[str, Any], path: Path) -> None:
    """The roofline of the first pass and precision that was timed."""
    facts, results = report["machine"], report["results"]
    timed = [r for r in results if OURS in r["times"]]
    if not timed:
        return
    what = next(p for p in PASSES if any(r["pass"] == p for r in timed))
    word = next(w for w in PRECISIONS if any(r["precision"] == w for r in timed))
    points = [
        (
            r["problem"]["name"],
            r["problem"]["network"],
            r["flops"] / r["bytes"],
            r["flops"] / r["times"][OURS]["seconds"] / 1e9,
        )
        for r in timed
        if r["pass"] == what and r["precision"] == word
    ]
    title = f"fastconv {what}, {facts['dtype']}, threads: {facts['threads']}, {facts['cpu']}"
    title += f" ({facts['isa']})"
    roof = {"title": title, "gflops": facts["peak_gflops"], "bandwidth": bandwidth(facts)}
    roofline.plot(points, roof, path)


# ----------------------------------------------------------------------------------- command line


def words_of(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of words with commas."""

    def parse(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}")
        return words

    return parse


def peer_names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    try:
        for name in names:
            find_peer(name)
    except ValueError as reason:
        raise argparse.ArgumentTypeError(str(reason)) from None
    return names


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    import fastconv

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    effort = parser.add_mutually_exclusive_group()
    parser.set_defaults(effort="quick")
    effort.add_argument("--quick", dest="effort", action="store_const", const="quick")
    effort.add_argument("--full", dest="effort", action="store_const", const="full")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--problems", metavar="GLOB", help="names or patterns, with commas")
    which.add_argument(
        "--set",
        choices=SETS,
        help=f"a named list, with all its images; peers are then {', '.join(SET_PEERS)}",
    )
    parser.add_argument("--batch", type=int, help="images of each problem, instead of its own")
    parser.add_argument("--passes", type=words_of(PASSES), default=list(PASSES))
    parser.add_argument(
        "--peers",
        type=peer_names,
        help="with commas; also fastconv:ALGORITHM and fastconv:prepared",
    )
    parser.add_argument(
        "--precision",
        type=words_of(PRECISIONS),
        default=list(PRECISIONS[:1]),
        metavar="WORDS",
        help="of convolutions, with commas, each a table: " + ", ".join(PRECISIONS),
    )
    parser.add_argument("--dtype", choices=roofline.DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=fastconv.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("bench-output"), metavar="DIR")
    options = parser.parse_args(arguments)
    for name, value in (("threads", options.threads), ("batch", options.batch)):
        if value is not None and value < 1:
            parser.error(f"argument --{name}: expected an integer >= 1, got {value}")
    if options.dtype == "float64" and options.precision != list(PRECISIONS[:1]):
        parser.error("argument --precision: float64 has one precision")
    if options.peers is None:
        options.peers = [p for p in (SET_PEERS if options.set else PEERS) if p != AUTOCAST]
        options.peers += [AUTOCAST] if "medium" in options.precision else []
    if OURS not in options.peers:
        options.peers = [OURS, *options.peers]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # before minutes of work
        raise SystemExit(f"--output: {error}") from None
    report = run(options)
    page = markdown(report, options.peers)
    (options.output / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    (options.output / "results.md").write_text(page)
    print(page)
    try:
        draw(report, options.output / "roofline.png")
    except ImportError as reason:
        print(f"no roofline.png: {reason}", file=sys.stderr)
    return 1 if any(_failures(report["results"])) else 0


if __name__ == "__main__":
    sys.exit(main())
