# SPDX-License-Identifier: BSD-3-Clause
"""Threads, ISA rows, precision, reports, floating-point mode, the GIL, forks and foreign threads."""

from __future__ import annotations

import asyncio
import csv
import inspect
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv import algorithms, reference, runtime
from fastconv.kernels import isa, team
from tests import data
from tests.calls import ROOT, all_calls, refused_import, run_python
from tests.checks import arrays_in
from tests.conftest import MISSING

Array = data.Array


def big_operands() -> tuple[Array, Array]:
    """A convolution well above the size that is worth a team."""
    made = data.rng(5)
    return (
        data.integers(made, (4, 16, 33, 35), "float32"),
        data.integers(made, (24, 16, 3, 3), "float32"),
    )


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = runtime._process_threads
    yield
    runtime._process_threads = before


# ------------------------------------------------------------------------------------- threads


def test_threads_nest_and_come_back() -> None:
    fastconv.set_num_threads(6)
    with fastconv.threads(3):
        assert fastconv.get_num_threads() == 3
        with fastconv.threads(2):
            assert fastconv.get_num_threads() == 2
            fastconv.set_num_threads(5)
            assert fastconv.get_num_threads() == 2
        assert fastconv.get_num_threads() == 3
    assert fastconv.get_num_threads() == 5


def test_threads_come_back_after_an_exception() -> None:
    before = fastconv.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), fastconv.threads(before + 1):
        raise RuntimeError("inside")
    assert fastconv.get_num_threads() == before


@pytest.mark.parametrize("bad", [0, -1, 4097, 2**70, True, 1.5, "2", None, [2]])
@pytest.mark.parametrize("entry", ["set", "block"])
def test_a_bad_number_of_threads_is_refused(entry: str, bad: Any) -> None:
    before = fastconv.get_num_threads()
    enter = ExitStack().enter_context
    with pytest.raises((TypeError, ValueError), match=r"^n:"):
        fastconv.set_num_threads(bad) if entry == "set" else enter(fastconv.threads(bad))
    assert fastconv.get_num_threads() == before


def test_numpy_integers_are_numbers_of_threads() -> None:
    with fastconv.threads(np.int64(3)):  # type: ignore[arg-type]
        assert fastconv.get_num_threads() == 3


def test_python_threads_do_not_see_each_others_blocks() -> None:
    """One thread is inside threads(3), the other inside threads(5), at the same time."""
    inside, seen = threading.Barrier(2, timeout=30), {}

    def worker(n: int) -> None:
        with fastconv.threads(n):
            inside.wait()
            seen[n] = fastconv.get_num_threads()
            inside.wait()

    fastconv.set_num_threads(7)
    workers = [threading.Thread(target=worker, args=(n,)) for n in (3, 5)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert seen == {3: 3, 5: 5}
    assert fastconv.get_num_threads() == 7


def test_set_num_threads_reaches_threads_that_already_run() -> None:
    ask, answer = threading.Event(), []

    def worker() -> None:
        ask.wait(30)
        answer.append(fastconv.get_num_threads())

    thread = threading.Thread(target=worker)
    thread.start()
    fastconv.set_num_threads(9)
    ask.set()
    thread.join()
    assert answer == [9]


def test_asyncio_tasks_have_their_own_settings() -> None:
    async def task(n: int, word: str) -> list[tuple[int, str]]:
        seen = []
        with fastconv.threads(n), fastconv.precision(word):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append((fastconv.get_num_threads(), runtime.resolve_precision(None)))
        return seen

    async def both() -> Any:
        return await asyncio.gather(task(3, "high"), task(5, "medium"))

    assert list(asyncio.run(both())) == [[(3, "high")] * 3, [(5, "medium")] * 3]
    assert runtime.resolve_precision(None) == "highest"


# ------------------------------------------------------------------- defaults of a fresh process

THREADS = "import fastconv; print(fastconv.get_num_threads())"


def usable() -> int:
    """What a fresh process may use: the affinity mask, and the quota if there is one."""
    return min(len(os.sched_getaffinity(0)), runtime._cgroup_cpus() or 4096)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": ""}, None),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,2"}, 1),
        ({"OMP_NUM_THREADS": "2,1"}, 2),
        ({"OMP_NUM_THREADS": " 1 "}, 1),
        ({"OMP_NUM_THREADS": "4000"}, None),
        ({"FASTCONV_NUM_THREADS": "5"}, 5),
        ({"FASTCONV_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}, 3),
    ],
)
def test_default_threads_from_the_environment(
    env: dict[str, str], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FASTCONV_NUM_THREADS wins; OMP_NUM_THREADS only lowers what the machine gives."""
    for name in ("FASTCONV_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if expected is None:
        expected = usable()
    elif "FASTCONV_NUM_THREADS" not in env:
        expected = min(expected, usable())
    assert runtime._default_threads()[0] == expected


@pytest.mark.parametrize(
    ("cpus", "omp", "quota", "expected"),
    [
        (8, "", None, (8, "affinity")),
        (8, "4", None, (4, "OMP_NUM_THREADS")),
        (8, "4", 3, (3, "cgroup quota")),
        (2, "2", 2, (2, "affinity, OMP_NUM_THREADS, cgroup quota")),
    ],
)
def test_the_number_of_threads_says_where_it_comes_from(
    cpus: int,
    omp: str,
    quota: int | None,
    expected: tuple[int, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FASTCONV_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    monkeypatch.setattr(runtime, "_cgroup_cpus", lambda: quota)
    assert runtime._default_threads() == expected
    monkeypatch.setenv("FASTCONV_NUM_THREADS", "5")
    assert runtime._default_threads() == (5, "FASTCONV_NUM_THREADS")
    fastconv.set_num_threads(6)
    assert runtime.config()["threads_reason"] == "set_num_threads"
    with fastconv.threads(3):
        assert runtime.config()["threads_reason"] == "threads(...)"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "2,1"}, min(2, len(os.sched_getaffinity(0)))),
        ({"FASTCONV_NUM_THREADS": "5", "OMP_NUM_THREADS": "1"}, 5),
    ],
)
def test_a_fresh_process_takes_that_default(env: dict[str, str], expected: int) -> None:
    assert int(run_python(THREADS, env=env).stdout) == expected


BAD_THREADS = ["0", "-1", "two", "1.5", "²"]


@pytest.mark.parametrize("value", BAD_THREADS)
def test_a_bad_thread_variable_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCONV_NUM_THREADS", value)
    with pytest.raises(ValueError, match=rf"variable FASTCONV_NUM_THREADS: .*'{re.escape(value)}'"):
        runtime._default_threads()


@pytest.mark.parametrize("value", BAD_THREADS)
def test_a_bad_variable_of_openmp_is_ignored(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTCONV_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    usual = runtime._default_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert runtime._default_threads() == usual


def test_a_bad_thread_variable_stops_the_import() -> None:
    refused_import("FASTCONV_NUM_THREADS", "two")


@pytest.mark.parametrize(
    "name", ["FASTCONV_NUM_THREADS", "OMP_NUM_THREADS", "FASTCONV_CACHE_BYTES"]
)
def test_a_huge_number_in_the_environment_is_refused_or_works(name: str) -> None:
    """Never an OverflowError from the depths: neither at import nor at the first call."""
    code = """
    import numpy as np, fastconv
    x, w = np.ones((4, 32, 32, 32), "f4"), np.ones((32, 32, 3, 3), "f4")
    print(fastconv.conv2d(x, w).sum())
    """
    done = run_python(code, env={name: "9" * 30}, check=False)
    last = (done.stderr.strip().splitlines() or ["worked"])[-1]
    assert done.returncode == 0 or (last.startswith("ValueError") and name in last), last


def test_affinity_limits_the_default() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}})\n{THREADS}"
    assert int(run_python(code).stdout) == 1
    if len(os.sched_getaffinity(0)) > 1:  # the test can fail only where there is a second CPU
        assert int(run_python(THREADS).stdout) == usable()


def test_taskset_limits_the_default() -> None:
    if shutil.which("taskset") is None:
        pytest.skip("taskset is not installed; test_affinity_limits_the_default covers the mask")
    one = str(min(os.sched_getaffinity(0)))
    assert int(run_python(THREADS, prefix=("taskset", "-c", one)).stdout) == 1


QUOTA = "cpu.cfs_quota_us"
PERIOD = "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "1000 100000"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "500000 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "500000 100000", "cpu.max": "100000 100000"}, 1),
        ("0::/a\n", {"b/cpu.max": "100000 100000"}, None),
        ("0::/a\n", {"a/cpu.max": "nonsense"}, None),
        ("0::/a\n", {"a/cpu.max": ""}, None),
        ("2:cpu,cpuacct:/x\n", {f"cpu/x/{QUOTA}": "250000", f"cpu/x/{PERIOD}": "100000"}, 3),
        ("2:cpu:/x\n", {f"cpu/x/{QUOTA}": "-1", f"cpu/x/{PERIOD}": "100000"}, None),
        ("2:cpuset:/x\n", {f"cpu/x/{QUOTA}": "100000", f"cpu/x/{PERIOD}": "100000"}, None),
        ("1:name=systemd:/\n2:cpu:/\n0::/\n", {f"cpu/{QUOTA}": "7", f"cpu/{PERIOD}": "2"}, 4),
        # inside a container the path of /proc is not the path of the mount: the root counts
        ("2:cpu:/docker/x\n", {f"cpu/{QUOTA}": "200000", f"cpu/{PERIOD}": "100000"}, 2),
        (None, {"cpu.max": "100000 100000"}, None),
    ],
)
def test_cgroup_quota(
    tmp_path: Path, groups: str | None, files: dict[str, str], expected: int | None
) -> None:
    own = tmp_path / "own"
    if groups is not None:
        own.write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert runtime._cgroup_cpus(str(tmp_path), str(own)) == expected


# ----------------------------------------------------------------------------------------- ISA


@pytest.mark.parametrize("row", isa.available())
def test_fastconv_isa_chooses_the_row(row: str) -> None:
    code = """
    import numpy as np, fastconv
    x = np.arange(2 * 3 * 9 * 11, dtype="f4").reshape(2, 3, 9, 11) % 7
    w = np.arange(5 * 3 * 3 * 3, dtype="f4").reshape(5, 3, 3, 3) % 5
    from fastconv import reference
    assert (fastconv.conv2d(x, w, padding=1) == reference.conv(x, w, padding=1)).all()
    print(fastconv.isa(), fastconv.runtime.config()["isa_reason"])
    """
    assert run_python(code, env={"FASTCONV_ISA": row}).stdout == f"{row} FASTCONV_ISA={row}\n"


def test_the_default_row_is_the_fastest() -> None:
    done = run_python("import fastconv; print(fastconv.isa())")
    assert done.stdout.strip() == isa.available()[-1]


def refused_row(name: str) -> str:
    last = refused_import("FASTCONV_ISA", name)
    for available in isa.available():
        assert available in last
    return last


def test_an_unknown_row_is_an_error_that_lists_them_all() -> None:
    text = refused_row("sse9")
    assert all(row["name"] in text for row in isa.rows())


def test_a_missing_row_is_an_error_that_says_what_is_missing() -> None:
    if not MISSING:
        pytest.skip("this machine can run every row that is built in")
    for name, needs in MISSING.items():
        assert needs in refused_row(name)
        before = isa.current()
        with pytest.raises(ValueError, match=needs):
            isa.select(name)
        assert isa.current() == before


# ------------------------------------------------------------------------------ configuration


def rows_of_isa_def() -> dict[str, str]:
    text = (ROOT / "csrc/isa/isa.def").read_text()
    rows = re.findall(r'^FC_ISA\((\w+), .*, "(.*)"\)$', text, re.M)
    modelled = any("avx512_model.h" in row["flags"] for row in isa.rows())
    flags = dict(reversed(rows) if modelled else rows)  # the model's row stands before the real one
    if platform.machine() in ("x86_64", "AMD64"):
        flags["scalar"] = "-march=x86-64-v2"
    return flags


def test_config_tells_the_truth() -> None:
    with fastconv.threads(3), fastconv.precision("high"):
        facts = runtime.config()
    assert facts["fastconv"] == fastconv.__version__
    assert facts["numpy"] == np.__version__
    assert facts["threads"] == 3
    assert facts["precision"] == "high"
    assert facts["isa"] == fastconv.isa()
    assert facts["openmp"] == team.openmp()["version"]
    assert bool(facts["openmp"]) <= bool(facts["openmp_runtimes"])
    assert all(Path(file).is_file() for file in facts["openmp_runtimes"])
    assert set(facts["caches"]) == {"L1", "L2", "L3"}
    assert all(size > 0 for size in facts["caches"].values())
    assert set(facts["memory"]) == set(fastconv.memory_stats())
    assert {row["name"]: row["flags"] for row in facts["rows"]} == rows_of_isa_def()
    missing = {row["name"]: row["missing"] for row in facts["rows"] if row["missing"]}
    assert missing == MISSING


def test_show_config_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    with fastconv.threads(3):
        fastconv.show_config()
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert fastconv.__version__ in lines["fastconv"]
    assert lines["threads"].split()[1:] == ["3", "(threads(...))"]
    assert all(file in lines["openmp"] for file in runtime._openmp_runtimes())
    assert lines["isa"].split()[1] == fastconv.isa()
    for name, flags in rows_of_isa_def().items():
        assert (flags or "none") in lines[name]
        state = f"needs {MISSING[name]}" if name in MISSING else "available"
        assert state in lines[name]
    file = io.StringIO()
    fastconv.show_config(file)
    assert file.getvalue().splitlines()[0] == lines["fastconv"]
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------- precision


def test_precision_words_nest() -> None:
    with fastconv.precision("medium"):
        with fastconv.precision("high"):
            assert runtime.resolve_precision(None) == "high"
            assert runtime.resolve_precision("highest") == "highest"
        assert runtime.resolve_precision(None) == "medium"
    assert runtime.resolve_precision(None) == "highest"


@pytest.mark.parametrize("bad", ["low", "HIGH", "", None, 3])
def test_a_bad_precision_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"precision.*'highest', 'high', 'medium'"):
        fastconv.precision(bad).__enter__()
    assert runtime.resolve_precision(None) == "highest"


@pytest.mark.parametrize("word", ["highest", "high", "medium"])
def test_every_precision_computes_integers_exactly(word: str) -> None:
    """Small integers are bfloat16: all three words promise exact sums here."""
    x, w = big_operands()
    expected = reference.conv(x, w)
    assert_array_equal(fastconv.conv2d(x, w, precision=word), expected)
    with fastconv.precision(word):
        assert_array_equal(fastconv.conv2d(x, w), expected)


def test_fastconv_precision() -> None:
    code = "import fastconv; print(fastconv.runtime.resolve_precision(None))"
    assert run_python(code, env={"FASTCONV_PRECISION": "high"}).stdout == "high\n"
    assert run_python(code, env={"FASTCONV_PRECISION": ""}).stdout == "highest\n"
    assert "'medium'" in refused_import("FASTCONV_PRECISION", "best")


# ------------------------------------------------------------------------------------ verbose

VERBOSE = """
import numpy as np, fastconv as f
x, w = np.ones((2, 3, 8, 9), "f4"), np.ones((5, 3, 3, 3), "f4")
y = f.conv2d(x, w, padding=1, algo="im2col")
f.conv2d_backward(y, x, w, padding=((0, 2), (1, 1)))
f.conv1d(np.ones((1, 2, 9)), np.ones((3, 2, 2)))
f.linear(np.ones((4, 6), "f4"), np.ones((5, 6), "f4"))
f.conv2d_backward(y, x, w, padding=1, padding_mode="reflect")
"""


def test_verbose_lines_are_csv_of_the_header() -> None:
    done = run_python(VERBOSE, env={"FASTCONV_VERBOSE": "1", "FASTCONV_NUM_THREADS": "2"})
    assert done.stdout == ""
    header, *rows = list(csv.reader(io.StringIO(done.stderr)))
    assert ",".join(header) == runtime.VERBOSE_HEADER
    assert [len(row) for row in rows] == [len(header)] * len(rows)
    lines = [dict(zip(header, row, strict=True)) for row in rows]
    names = [
        "conv2d",
        "conv2d_dx",
        "conv2d_dw",
        "conv1d",
        "linear",
        "conv2d_dx",
        "pad_dx",
        "conv2d_dw",
    ]
    assert [line["operation"] for line in lines] == names
    assert {line["fastconv"] for line in lines} == {"fastconv"}
    assert {line["isa"] for line in lines} == {isa.available()[-1]}
    assert lines[0]["algorithm"] == "im2col"
    assert [line["dtype"] for line in lines] == ["float32"] * 3 + ["float64"] + ["float32"] * 4
    assert int(lines[0]["flops"]) == 2 * 2 * 5 * 8 * 9 * 3 * 3 * 3
    assert int(lines[4]["flops"]) == 2 * 4 * 5 * 6
    assert all(1 <= int(line["threads"]) <= 2 for line in lines)
    assert all(0 < float(line["milliseconds"]) < 60e3 for line in lines)
    assert all(line["problem"] for line in lines)


def test_without_verbose_nothing_is_printed() -> None:
    done = run_python(VERBOSE, env={"FASTCONV_VERBOSE": "0"})
    assert (done.stdout, done.stderr) == ("", "")


# ------------------------------------------------------------------------- floating-point mode

FP_MODE = """
import operator, sys
import numpy as np

def subnormal() -> tuple[bool, ...]:
    '''Products and sums that flush-to-zero or denormals-are-zero would turn into 0; rounding.'''
    tiny = np.float32(1e-40)
    two = np.full(64, 1e-40, np.float32)
    half = np.float32(2**-24)
    return (
        bool(operator.mul(tiny, np.float32(1)) != 0),
        bool(operator.mul(np.float32(1e-20), np.float32(1e-20)) != 0),
        operator.mul(5e-324, 1.0) != 0.0,
        operator.mul(1e-200, 1e-120) != 0.0,
        bool((two * np.float32(0.5)).all()),
        bool(np.float32(1) + half == 1),
        bool(np.float32(1) - half / 2 == 1),
    )

before = subnormal()
assert all(before), before
import fastconv
assert subnormal() == before, "import"
from fastconv.kernels import isa
from tests.calls import all_calls
assert subnormal() == before, "import of the tests"
count = 0
for row in isa.available():
    isa.select(row)
    for dtype in ("float32", "float64"):
        for name, call in all_calls(dtype).items():
            call()
            count += 1
            assert subnormal() == before, (row, dtype, name)
x, w = np.ones((4, 16, 33, 35), "f4"), np.ones((24, 16, 3, 3), "f4")
with fastconv.threads(3):
    fastconv.conv2d(x, w)
assert subnormal() == before, "a team of threads"
print(count)
"""


def test_no_call_changes_the_floating_point_mode() -> None:
    assert int(run_python(FP_MODE).stdout) > 100 * len(isa.available())


@pytest.mark.parametrize("team_size", [1, 3])
def test_kernels_keep_subnormal_numbers(isa_row: str, algo: str, team_size: int) -> None:
    """In every thread of the team: 1e-40 times 1 and 1e-20 times 1e-20."""
    x, w = big_operands()
    tiny = np.float32(1e-40)
    one = np.zeros_like(w)
    one[:, 3, 1, 1] = 1
    with fastconv.threads(team_size):
        y = fastconv.conv2d(np.full_like(x, tiny), one, padding=1, algo=algo)
        assert (y == tiny).all()
        small = np.float32(1e-20)
        y = fastconv.conv2d(np.full_like(x, small), one * small, padding=1, algo=algo)
    assert (y == small * small).all()
    assert small * small > 0


# ------------------------------------------------------------------------------ GIL and threads


def test_kernels_release_the_gil() -> None:
    """A thread that wakes up every millisecond does so during one long call.

    With the GIL held it could wake up only before and after the call: a few times.
    """
    made = data.rng(1)
    x = data.integers(made, (4, 256, 56, 56), "float32")
    w = data.integers(made, (256, 256, 3, 3), "float32")
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        with fastconv.threads(1):
            start = time.perf_counter()
            y = fastconv.conv2d(x, w, padding=1, algo="direct")
            end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    data.trusted(y)
    # the middle half of the call lies inside the kernel
    quarter = (end - start) / 4
    inside = sum(start + quarter < t < end - quarter for t in ticks)
    assert inside >= 5, f"{inside} of {len(ticks)} ticks in the middle of {end - start:.3f} s"


@pytest.mark.parametrize("size", [14, 40])
@pytest.mark.parametrize(
    "algo", [n for n in algorithms.NAMES if not n.startswith(("linear", "split"))]
)
def test_every_convolution_releases_the_gil(algo: str, size: int) -> None:
    """Nobody can take the GIL while threads are never switched: another one runs during a call only if that gives it away."""
    kernel = 5 if algo.endswith("_5") else 3
    x, w = np.ones((1, 96, size, size), "float32"), np.ones((96, 96, kernel, kernel), "float32")
    options = {"padding": kernel // 2, "algo": algo}
    calls = [
        partial(fastconv.conv2d_backward, x, x, w, needs=(True, False, False), **options),
        partial(fastconv.conv2d_backward, x, x, w, needs=(False, True, False), **options),
    ]
    if algo != "col2im":  # of input gradients alone
        calls.append(partial(fastconv.conv2d, x, w, **options))
    turns = [0]
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0)

    def others_ran(call: Callable[[], Any]) -> bool:
        before = turns[0]
        call()
        return turns[0] > before

    for call in calls:
        call()  # with what NumPy does to make a plan
    thread, interval = threading.Thread(target=run), sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread.start()
        with fastconv.threads(1):
            found = [any(others_ran(call) for _ in range(1000)) for call in calls]
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()
    assert found == [True] * len(calls)


def test_many_threads_at_once_compute_the_same_bits() -> None:
    """Eight Python threads, different operations, each with its own team size."""
    calls = all_calls("float32")
    expected = {name: [a.copy() for a in arrays_in(call())] for name, call in calls.items()}
    x, w = big_operands()
    calls["big"] = partial(fastconv.conv2d, x, w)
    calls["big backward"] = partial(fastconv.conv2d_backward, fastconv.conv2d(x, w), x, w)
    for name in ("big", "big backward"):
        expected[name] = [a.copy() for a in arrays_in(calls[name]())]
    order = [*calls, "big", "big backward"] * 3

    def check(job: tuple[int, str]) -> str | None:
        number, name = job
        with fastconv.threads(1 + number % 3):
            found = arrays_in(calls[name]())
        same = all(a.tobytes() == b.tobytes() for a, b in zip(found, expected[name], strict=True))
        return None if same else name

    with ThreadPoolExecutor(8) as pool:
        wrong = [name for name in pool.map(check, enumerate(order)) if name]
    assert wrong == []


FOREIGN_C = """
typedef void (*callback)(int);
void in_parallel(callback f, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int i = 0; i < threads; i++) f(i);
}
"""

FOREIGN = """
import ctypes, os, sys
import numpy as np, fastconv
from tests.test_runtime import big_operands
library = ctypes.CDLL(os.environ["FOREIGN_SO"])
x, w = big_operands()
expected = fastconv.conv2d(x, w)
found = {}
fastconv.set_num_threads(3)
TYPE = ctypes.CFUNCTYPE(None, ctypes.c_int)
@TYPE
def call(i):
    y = fastconv.conv2d(x, w)
    dx, dw, db = fastconv.conv2d_backward(y, x, w)
    found[i] = (y == expected).all(), dx.sum(), dw.sum(), db.sum()
for _ in range(3):
    library.in_parallel(call, 3)
assert sorted(found) == [0, 1, 2], found
assert all(v == found[0] and v[0] for v in found.values()), found
assert (fastconv.conv2d(x, w) == expected).all()
print("done")
"""


def test_calls_inside_a_foreign_parallel_region(tmp_path: Path) -> None:
    """Three OpenMP threads of someone else's region call us; each call then runs serially."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None or not team.openmp()["version"]:
        pytest.skip("needs a C compiler and an OpenMP build")
    source, library = tmp_path / "foreign.c", tmp_path / "foreign.so"
    source.write_text(FOREIGN_C)
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-fopenmp", str(source), "-o", str(library)],
        check=True,
    )
    assert run_python(FOREIGN, env={"FOREIGN_SO": str(library)}, timeout=60).stdout == "done\n"


# ------------------------------------------------------------------------------------ busy machines

RESTS = """
import os, time
import fastconv
from fastconv.kernels import team
from tests.test_runtime import big_operands
x, w = big_operands()
fastconv.set_num_threads(2)
SECOND, NOW = 10**9, time.monotonic_ns()

def after(start, done, end):
    team.set_rests(True)
    team.rest(start, done, end)
    return team.alone()

def threads_started():
    before = len(os.listdir("/proc/self/task"))
    fastconv.conv2d(x, w)
    return len(os.listdir("/proc/self/task")) - before
"""


@pytest.mark.skipif(not team.openmp()["version"], reason="needs OpenMP")
def test_callers_rest_after_a_wait_for_a_processor() -> None:
    """A caller that waited a minute for its team works alone, and no thread is started; then teams are whole again."""
    code = (
        RESTS
        + """
print(after(NOW, NOW + SECOND, NOW + 60 * SECOND), threads_started())
team.set_rests(False)
print(team.alone(), threads_started())
"""
    )
    assert run_python(code).stdout == "True 0\nFalse 1\n"


def test_when_callers_rest() -> None:
    """Not after waits shorter than a time slice, or than twice the work, or a single one; nor when they do not; not for ever."""
    code = (
        RESTS
        + """
print(after(NOW, NOW, NOW + 900_000), after(NOW, NOW + 30 * SECOND, NOW + 85 * SECOND))
print(after(NOW - 60 * SECOND, NOW - 50 * SECOND, NOW - 10 * SECOND))
print(after(NOW - 60 * SECOND, NOW - 59 * SECOND, NOW - 50 * SECOND))
waits = [after(NOW, NOW, NOW + SECOND // 100)]
for end in (SECOND // 100, SECOND // 2000, SECOND // 100, SECOND // 100):
    team.rest(NOW, NOW if end > 10**6 else NOW + end, NOW + end)
    waits.append(team.alone())
print(waits)
team.set_rests(False)
team.rest(NOW, NOW, NOW + 60 * SECOND)
print(team.alone())
"""
    )
    waits = [False, False, False, False, True]  # the third one is a region without a wait
    expected = f"False False\nTrue\nFalse\n{waits}\nFalse\n"
    if not team.openmp()["version"]:
        expected = expected.replace("False", "True")
    assert run_python(code).stdout == expected


# ---------------------------------------------------------------------------------------- fork

FORK = """
import os, sys
import numpy as np, fastconv
from fastconv.kernels import team
from tests.test_runtime import big_operands
x, w = big_operands()
fastconv.set_num_threads(3)

def child(expected, serial):
    y = fastconv.conv2d(x, w)
    dx, dw, db = fastconv.conv2d_backward(y, x, w)
    return bool((y == expected).all()) and team.openmp()["serial_only"] == serial

def forked(serial, expected):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if child(expected, serial) else 7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_fork_before_the_first_use() -> None:
    """Another library may have started OpenMP's threads, so every forked child is serial."""
    code = (
        FORK
        + """
from fastconv import reference
print(forked(True, reference.conv(x, w)), team.openmp()["serial_only"])
"""
    )
    assert run_python(code, timeout=60).stdout == "0 False\n"


def test_fork_after_use() -> None:
    """No hang: the child of a parent whose team has started runs serially, and equals it."""
    code = (
        FORK
        + """
expected = fastconv.conv2d(x, w)
codes = [forked(True, expected) for _ in range(3)]
after = fastconv.conv2d(x, w)
print(codes, team.openmp()["serial_only"], bool((after == expected).all()))
"""
    )
    assert run_python(code, timeout=60).stdout == "[0, 0, 0] False True\n"


def test_multiprocessing_with_fork() -> None:
    code = (
        FORK
        + """
import multiprocessing
expected = fastconv.conv2d(x, w)
with multiprocessing.get_context("fork").Pool(3) as pool:
    print(pool.starmap(child, [(expected, True)] * 6))
"""
    )
    assert run_python(code, timeout=60).stdout == f"{[True] * 6}\n"


def test_fork_while_another_thread_allocates() -> None:
    """The allocator's lock is free in the child, whoever held it in the parent."""
    code = (
        FORK
        + """
import threading
from fastconv.kernels import memory
expected = fastconv.conv2d(x, w)
stop = False
def churn():
    while not stop:
        for size in (4096, 8192, 1 << 16):
            memory.empty((size,), np.dtype("u1"))
threads = [threading.Thread(target=churn) for _ in range(2)]
for t in threads: t.start()
codes = [forked(True, expected) for _ in range(15)]
stop = True
for t in threads: t.join()
print(set(codes))
"""
    )
    assert run_python(code, timeout=60).stdout == "{0}\n"


# ------------------------------------------------------------------------------- public names


def test_the_runtime_functions_are_public_and_documented() -> None:
    for name in ("set_num_threads", "get_num_threads", "threads", "isa", "precision",
                 "show_config", "empty_cache", "memory_stats"):  # fmt: skip
        function = getattr(fastconv, name)
        assert name in fastconv.__all__
        assert inspect.getdoc(function)
