# SPDX-License-Identifier: BSD-3-Clause
"""Every operation of the C core as a table of calls, and a fresh interpreter to make them in."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastconv
from fastconv import algorithms
from tests import data

ROOT = Path(__file__).parents[1]
Array = data.Array
Place = Callable[[Array], Array]
Calls = dict[str, Callable[[], Any]]


def run_python(
    code: str,
    *,
    env: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    stdin: str = "",
    timeout: float = 120,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that inherits none of the variables that we read."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTCONV_", "OMP_"))}
    clean["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [*prefix, sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)],
        env=clean | dict(env or {}),
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def refused_import(variable: str, value: str) -> str:
    """The last line of an `import fastconv` that this environment stops; it names the variable and the value."""
    done = run_python("import fastconv", env={variable: value}, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: environment variable {variable}: ")
    assert repr(value) in last
    return last


def conv_calls(dtype: str, place: Place) -> Calls:
    """name -> call: convolutions of odd sizes, on integers."""
    made = data.rng(7)
    calls: Calls = {}

    def ints(*shape: int) -> Array:
        return place(data.integers(made, shape, dtype))

    def add(name: str, x: Array, w: Array, **options: Any) -> None:
        rank = x.ndim - 2
        forward = getattr(fastconv, f"conv{rank}d")
        backward = getattr(fastconv, f"conv{rank}d_backward")
        y = forward(x, w, **options).shape
        extra = {"b": ints(y[1]), "residual": ints(*y), "activation": "relu"}
        dy = ints(*y)
        for algo in algorithms.GENERAL_NAMES:
            forced = {**options, "algo": algo}
            calls[f"conv{rank}d {name} {algo}"] = partial(forward, x, w, **forced)
            calls[f"conv{rank}d {name} {algo} epilogue"] = partial(forward, x, w, **extra, **forced)
            calls[f"conv{rank}d {name} {algo} backward"] = partial(backward, dy, x, w, **forced)

    add("3x3", ints(2, 5, 9, 11), ints(19, 5, 3, 3), padding=1)
    add("valid", ints(1, 3, 9, 23), ints(7, 3, 3, 3))
    add("few outputs", ints(1, 3, 7, 37), ints(3, 3, 5, 3), padding=2)
    add("stride 2", ints(2, 3, 9, 7), ints(5, 3, 3, 3), stride=2, padding=1)
    add("stride 3 dilation 2", ints(1, 2, 11, 13), ints(9, 2, 3, 2), stride=3, dilation=2)
    add("depthwise", ints(2, 5, 7, 17), ints(5, 1, 3, 3), padding=1, groups=5)
    add("grouped", ints(1, 6, 7, 5), ints(9, 2, 3, 3), groups=3)
    add("1x1", ints(2, 7, 5, 13), ints(17, 7, 1, 1))
    add("reflect", ints(1, 3, 7, 9), ints(4, 3, 3, 3), padding=2, padding_mode="reflect")
    add("many channels", ints(1, 37, 5, 5), ints(33, 37, 3, 3), padding=1)
    add("line", ints(2, 3, 131), ints(4, 3, 7), padding=3)
    add("volume", ints(1, 2, 5, 4, 7), ints(3, 2, 2, 3, 3), padding=1)
    return calls


def other_calls(dtype: str, place: Place) -> Calls:
    """name -> call: every other operation of the C core, of odd sizes."""
    made = data.rng(8)

    def real(*shape: int) -> Array:
        return place(data.reals(made, shape, dtype))

    f = fastconv
    x, g = real(2, 3, 9, 13), real(2, 3, 9, 13)
    y, index = f.max_pool2d(x, 3, 2, 1, return_indices=True)
    z = real(*y.shape)
    line, volume = real(3, 5, 37), real(1, 3, 5, 4, 7)
    c, row = real(3), real(5, 37)
    variance = place(np.abs(real(3)) + np.asarray(1, dtype))
    saved = f.batch_norm_train(x, c, c)[1]
    saved_rows = f.batch_norm_train(row)[1]
    few, many, w, b = real(3, 37), real(11, 37), real(19, 37), real(19)
    columns = f.unfold(x, 3, padding=1, stride=2)
    calls: Calls = {
        "max_pool2d": partial(f.max_pool2d, x, 3, 2, 1),
        "max_pool2d indices": partial(f.max_pool2d, x, 3, 2, 1, return_indices=True),
        "max_pool2d dilated": partial(f.max_pool2d, x, 2, 3, 1, 2),
        "max_pool2d_backward": partial(f.max_pool2d_backward, z, place(index), x.shape, 3, 2, 1),
        "avg_pool2d": partial(f.avg_pool2d, x, 3, 2, 1),
        "avg_pool2d_backward": partial(f.avg_pool2d_backward, z, x.shape, 3, 2, 1),
        "max_pool1d": partial(f.max_pool1d, line, 5, 3),
        "max_pool3d": partial(f.max_pool3d, volume, 2, 1),
        "avg_pool3d": partial(f.avg_pool3d, volume, 2, 1),
        "adaptive_max_pool2d": partial(f.adaptive_max_pool2d, x, (4, 5)),
        "adaptive_avg_pool2d": partial(f.adaptive_avg_pool2d, x, (4, 5)),
        "adaptive_avg_pool2d_backward": partial(
            f.adaptive_avg_pool2d_backward, real(2, 3, 4, 5), x.shape
        ),
        "batch_norm_train": partial(f.batch_norm_train, x, c, c),
        "batch_norm_train rows": partial(f.batch_norm_train, row),
        "batch_norm": partial(f.batch_norm, x, c, variance, c, c),
        "batch_norm_backward": partial(f.batch_norm_backward, g, x, c, saved),
        "batch_norm_backward rows": partial(
            f.batch_norm_backward, real(5, 37), row, None, saved_rows
        ),
        "linear few rows": partial(f.linear, few, w, b),
        "linear": partial(f.linear, many, w, b),
        "linear_backward": partial(f.linear_backward, real(11, 19), many, w),
        "unfold": partial(f.unfold, x, 3, padding=1, stride=2),
        "fold": partial(f.fold, place(columns), (9, 13), 3, padding=1, stride=2),
        "dropout": partial(f.dropout, x, 0.5, True, 3),
        "cross_entropy": partial(f.cross_entropy, row, np.arange(5)),
        "cross_entropy_backward": partial(f.cross_entropy_backward, row, np.arange(5)),
    }
    for name in ("relu", "tanh", "sigmoid"):
        calls[name] = partial(getattr(f, name), x)
        calls[f"{name}_backward"] = partial(getattr(f, f"{name}_backward"), g, x)
    for name in ("softmax", "log_softmax"):
        for axis in (1, -1):
            p = place(getattr(f, name)(x, axis))
            calls[f"{name} {axis}"] = partial(getattr(f, name), x, axis)
            calls[f"{name}_backward {axis}"] = partial(getattr(f, f"{name}_backward"), g, p, axis)
    for mode in ("zeros", "reflect", "replicate", "circular"):
        pads = ((1, 2), (3, 0))
        dy = real(2, 3, 12, 16)
        calls[f"pad {mode}"] = partial(f.pad, x, pads, mode)
        calls[f"pad_backward {mode}"] = partial(f.pad_backward, dy, x.shape, pads, mode)
    return calls


def all_calls(dtype: str, place: Place = lambda array: array) -> Calls:
    return conv_calls(dtype, place) | other_calls(dtype, place)
