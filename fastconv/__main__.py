# SPDX-License-Identifier: BSD-3-Clause
"""The command line: ``python -m fastconv {info,demo,bench,selftest}``."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastconv
from fastconv import algorithms, demo, functional, reference, runtime
from fastconv.kernels import isa

# ---------------------------------------------------------------------------------------- info


def info(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(runtime.config(), indent=2))
    else:
        runtime.show_config()
    return 0


# ------------------------------------------------------------------------------------ selftest

# (x, w, options): the smallest set with every rank, stride, dilation, groups, padding and a tail.
PROBLEMS: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((2, 3, 19), (5, 3, 4), {"stride": 2, "padding": 1}),
    ((2, 3, 13, 17), (21, 3, 3, 3), {"padding": 1}),
    ((1, 8, 11, 9), (34, 4, 3, 2), {"stride": (2, 1), "dilation": (1, 2), "groups": 2}),
    ((1, 7, 16, 16), (7, 1, 3, 3), {"padding": "same", "groups": 7}),
    ((1, 20, 15, 15), (33, 20, 1, 1), {}),
    ((1, 2, 9, 9), (4, 2, 5, 5), {"padding": 2, "padding_mode": "reflect"}),
    ((1, 3, 6, 7, 8), (18, 3, 2, 3, 3), {"padding": 1}),
)


def _small_integers(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Values on which every order of summation is exact."""
    return rng.integers(-4, 5, shape).astype(dtype)


def _differs(got: Any, expected: Any) -> str | None:
    """What is wrong with a result, or None; NaN never equals."""
    wrong = int(np.count_nonzero(~(np.asarray(got) == expected)))
    return f"{wrong} of {np.size(expected)} values are wrong" if wrong else None


def _check(case: tuple[Any, ...], dtype: str, algo: str) -> str | None:
    """The first error of the forward and backward convolution of one case."""
    x_shape, w_shape, options = case
    rng = np.random.default_rng(len(x_shape))
    x, w = _small_integers(rng, x_shape, dtype), _small_integers(rng, w_shape, dtype)
    b = _small_integers(rng, w_shape[:1], dtype)
    rank = len(w_shape) - 2
    expected = reference.conv(x, w, b, **options)
    got = getattr(functional, f"conv{rank}d")(x, w, b, **options, algo=algo)
    error = _differs(got, expected)
    if error:
        return f"forward: {error}"
    dy = _small_integers(rng, expected.shape, dtype)
    gradients = getattr(functional, f"conv{rank}d_backward")(dy, x, w, **options, algo=algo)
    wanted = reference.conv_backward(dy, x, w, **options)
    for name, gradient, right in zip(("dx", "dw", "db"), gradients, wanted, strict=True):
        error = _differs(gradient, right)
        if error:
            return f"{name}: {error}"
    return None


def _selftest_rows() -> Iterator[dict[str, Any]]:
    """One row for each available ISA, algorithm and dtype."""
    before = isa.current()
    try:
        for name, algo, dtype in itertools.product(
            isa.available(), ("auto", *algorithms.GENERAL_NAMES), ("float32", "float64")
        ):
            isa.select(name)
            errors = [f"{c[0]} * {c[1]}: {e}" for c in PROBLEMS if (e := _check(c, dtype, algo))]
            yield {"isa": name, "algorithm": algo, "dtype": dtype, "errors": errors}
    finally:
        isa.select(before)


def selftest(options: argparse.Namespace) -> int:
    start, rows = time.perf_counter(), []
    for row in _selftest_rows():
        rows.append(row)
        if not options.json:
            state = "; ".join(row["errors"]) or f"{len(PROBLEMS)} problems exact"
            print(f"{row['isa']:8} {row['algorithm']:8} {row['dtype']:8} {state}")
    passed = not any(row["errors"] for row in rows)
    seconds = time.perf_counter() - start
    if options.json:
        print(json.dumps({"passed": passed, "seconds": seconds, "rows": rows}, indent=2))
    else:
        print(f"{'passed' if passed else 'FAILED'} in {seconds:.1f} s")
    return 0 if passed else 1


# --------------------------------------------------------------------------------------- bench


def _benchmarks() -> Path | None:
    """The source tree whose benchmarks measure this very package, if there is one."""
    tree = Path(fastconv.__file__).resolve().parents[1]
    return tree if (tree / "benchmarks" / "report.py").is_file() else None


def _refuse(message: str, options: argparse.Namespace) -> int:
    print(json.dumps({"error": message}) if options.json else message)
    return 1


def bench(options: argparse.Namespace) -> int:
    tree = _benchmarks()
    if tree is None:
        message = "the benchmarks live in the source tree: run this in a checkout of fastconv"
        return _refuse(message, options)
    output = options.output.resolve()
    results = output / "results.json"
    try:
        results.unlink(missing_ok=True)  # an earlier report must not pass for this one
    except OSError as error:
        return _refuse(f"--output: {error}", options)
    command = [sys.executable, "-m", "benchmarks.report", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=tree, stdout=sys.stderr if options.json else None)
    if options.json:
        failed = {"error": f"benchmarks.report wrote no results (exit {done.returncode})"}
        print(results.read_text() if results.is_file() else json.dumps(failed))
    return done.returncode


# ---------------------------------------------------------------------------------------- main


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m fastconv",
        description="Fast CNN kernels for NumPy: what runs here, and does it run well?",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    texts = {
        info: "versions, compiler, instruction sets, threads, memory",
        demo.main: "train LeNet-5 on handwritten digits, and compare with NumPy and SciPy",
        bench: "measure against other libraries (in a source tree)",
        selftest: "check every instruction set and algorithm against the reference",
    }
    for (run, text), name in zip(texts.items(), ("info", "demo", "bench", "selftest"), strict=True):
        command = commands.add_parser(name, help=text, description=f"{name}: {text}.")
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.set_defaults(run=run)
        if run is demo.main:
            demo.add_arguments(command)
        if run is bench:
            command.add_argument(
                "--output", type=Path, default=Path("bench-output"), metavar="DIR",
                help="folder for the report (bench-output)",
            )  # fmt: skip
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
