# SPDX-License-Identifier: BSD-3-Clause
"""Hostile arrays: odd layouts, guard pages, poisoned outputs and workspaces, overlaps, Inf and NaN."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv import reference
from fastconv.functional import _arrays
from fastconv.kernels import isa, memory
from tests import data
from tests.calls import all_calls, run_python
from tests.checks import arrays_in
from tests.conftest import ROWS

Array = data.Array
PAGE = mmap.PAGESIZE
OPTIONS: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "groups": 2}
LAYOUTS = list(data.hostile(np.zeros((2, 2), "f4")))


def operands(dtype: str) -> dict[str, Array]:
    """A grouped, strided, padded convolution with every operand."""
    made = data.rng(3)
    x, w = data.integers(made, (2, 6, 9, 13), dtype), data.integers(made, (8, 3, 3, 2), dtype)
    y = reference.conv(x, w, **OPTIONS).shape
    return {
        "x": x,
        "w": w,
        "b": data.integers(made, (8,), dtype),
        "residual": data.integers(made, y, dtype),
        "dy": data.integers(made, y, dtype),
    }


def check_conv(
    given: dict[str, Array],
    plain: dict[str, Array],
    dtype: str,
    **options: Any,
) -> None:
    """Forward and backward on `given` equal the reference on `plain`, the same values."""
    options = {**OPTIONS, **options}
    algo = options.pop("algo", "auto")
    forward = {k: plain[k] for k in ("x", "w", "b", "residual")}
    expected = reference.conv(**forward, **options)
    y = fastconv.conv2d(**{k: given[k] for k in forward}, algo=algo, **options)
    data.trusted(y)
    assert y.dtype == dtype
    assert y.dtype.isnative
    assert_array_equal(y, expected)
    dy, x, w = plain["dy"], plain["x"], plain["w"]
    wanted = reference.conv_backward(dy, x, w, **options)
    found = fastconv.conv2d_backward(given["dy"], given["x"], given["w"], algo=algo, **options)
    for name, a, b in zip(("dx", "dw", "db"), found, wanted, strict=True):
        assert a is not None
        data.trusted(a)
        assert a.dtype == dtype
        assert_array_equal(a, b, err_msg=name)


# ------------------------------------------------------------------------------ memory layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_awkward_layouts(layout: str, isa_row: str, algo: str, dtype: str) -> None:
    plain = operands(dtype)
    given = {name: data.hostile(a)[layout] for name, a in plain.items()}
    before = {name: a.tobytes() for name, a in given.items()}
    check_conv(given, plain, dtype, algo=algo)
    assert {name: a.tobytes() for name, a in given.items()} == before, "an input has changed"


def reversed_everywhere(a: Array) -> Array:
    index = (slice(None, None, -1),) * a.ndim
    return np.ascontiguousarray(a[index])[index]


def odd_unit_strides(a: Array) -> Array:
    """Axes of size 1 with strides that no address arithmetic may use."""
    strides = [s if n > 1 else 7_654_321 for s, n in zip(a.strides, a.shape, strict=True)]
    return np.lib.stride_tricks.as_strided(a, strides=strides)


def test_negative_strides_on_every_axis(isa_row: str, algo: str, dtype: str) -> None:
    plain = operands(dtype)
    given = {name: reversed_everywhere(a) for name, a in plain.items()}
    assert all(min(a.strides) < 0 for a in given.values())
    check_conv(given, plain, dtype, algo=algo)


def test_zero_strides(isa_row: str, algo: str, dtype: str) -> None:
    plain = operands(dtype)
    first = {
        "x": plain["x"][:1, :1] + 1,
        "w": plain["w"][:, :1, :1],
        "b": np.array([3], dtype),
        "residual": plain["residual"][..., :1],
        "dy": plain["dy"][:1, :, :1],
    }
    given = {name: np.broadcast_to(a, plain[name].shape) for name, a in first.items()}
    assert all(0 in a.strides for a in given.values())
    check_conv(given, {name: a.copy() for name, a in given.items()}, dtype, algo=algo)


def test_axes_of_size_one_with_odd_strides(isa_row: str, algo: str, dtype: str) -> None:
    made = data.rng(4)
    plain = {
        "x": data.integers(made, (1, 1, 9, 1), dtype),
        "w": data.integers(made, (1, 1, 3, 1), dtype),
        "b": np.array([2], dtype),
        "residual": data.integers(made, (1, 1, 7, 1), dtype),
        "dy": data.integers(made, (1, 1, 7, 1), dtype),
    }
    given = {name: odd_unit_strides(a) for name, a in plain.items()}
    assert 7_654_321 in given["x"].strides
    check_conv(given, plain, dtype, algo=algo, stride=1, padding=0, groups=1)


def test_memory_maps(tmp_path: Path, algo: str, dtype: str) -> None:
    plain, given = operands(dtype), {}
    for name, a in plain.items():
        a.tofile(tmp_path / name)
        given[name] = np.memmap(tmp_path / name, dtype, "r", shape=a.shape)
    check_conv(given, plain, dtype, algo=algo)


def test_channels_last_of_awkward_arrays(algo: str, dtype: str) -> None:
    plain = operands(dtype)
    plain = {
        "w": np.ascontiguousarray(plain.pop("w").transpose(2, 3, 1, 0)),
        "b": plain.pop("b"),
        **{name: np.ascontiguousarray(np.moveaxis(a, 1, -1)) for name, a in plain.items()},
    }
    for layout in LAYOUTS:
        given = {name: data.hostile(a)[layout] for name, a in plain.items()}
        check_conv(given, plain, dtype, algo=algo, layout="NHWC")


@pytest.mark.parametrize(
    ("given_dtype", "result"),
    [("float16", "float16"), ("int8", "float32"), ("uint8", "float32"), ("int16", "float32"),
     ("int32", "float64"), ("int64", "float64"), ("bool", "float32")],
)  # fmt: skip
def test_other_numbers(given_dtype: str, result: str, isa_row: str, algo: str) -> None:
    plain = {name: np.abs(a) % 2 for name, a in operands("float32").items()}
    given = {name: a.astype(given_dtype) for name, a in plain.items()}
    check_conv(given, plain, result, algo=algo)


def test_lists(algo: str) -> None:
    plain = operands("float64")
    given: dict[str, Any] = {name: a.tolist() for name, a in plain.items()}
    check_conv(given, plain, "float64", algo=algo)


@pytest.mark.parametrize("shape", [(0, 6, 9, 13), (2, 6, 9, 13)])
def test_an_empty_batch(shape: tuple[int, ...], isa_row: str, algo: str, dtype: str) -> None:
    w = operands(dtype)["w"]
    x = np.ones(shape, dtype)[:0]
    y = fastconv.conv2d(x, w, algo=algo, **OPTIONS)
    assert y.shape == (0, *reference.conv(np.ones((1, 6, 9, 13)), w, **OPTIONS).shape[1:])
    dx, dw, db = fastconv.conv2d_backward(y, x, w, algo=algo, **OPTIONS)
    assert dx.shape == x.shape
    assert dw.shape == w.shape
    assert not dw.any()
    assert db.shape == (8,)
    assert not db.any()


# Windows that hold no cell of the input: an empty axis, or dilated taps on both sides of it.
# PyTorch refuses the first; for the second its maximum is -inf. Garbage or a crash is wrong.
NO_CELLS: dict[str, str] = {
    "max_pool1d": "f.max_pool1d(np.zeros((1, 1, 0), 'f4'), 2, 1, 1)",
    "max_pool1d indices": "f.max_pool1d(np.zeros((1, 1, 0), 'f4'), 2, 1, 1, 1, False, True)[0]",
    "max_pool2d": "f.max_pool2d(np.zeros((1, 1, 0, 4), 'f4'), 2, 1, 1)",
    "max_pool2d dilated": "f.max_pool2d(np.ones((1, 1, 1, 4), 'f4'), 2, 1, 1, 2)",
    "max_pool1d dilated": "f.max_pool1d(np.ones((1, 1, 1), 'f4'), 2, 1, 1, 2)",
    "max_pool1d dilated indices":
        "f.max_pool1d(np.ones((1, 1, 1), 'f4'), 2, 1, 1, 2, False, True)[0]",
    "avg_pool1d": "f.avg_pool1d(np.zeros((1, 1, 0), 'f4'), 2, 1, 1)",
    "conv1d": "f.conv1d(np.zeros((1, 1, 0), 'f4'), np.ones((1, 1, 2), 'f4'), padding=1)",
    "conv2d": "f.conv2d(np.zeros((2, 3, 0, 4), 'f4'), np.ones((5, 3, 3, 3), 'f4'), padding=2)",
    "unfold": "f.unfold(np.zeros((1, 1, 0, 4), 'f4'), 2, padding=1)",
    "pad": "f.pad(np.zeros((3, 0), 'f4'), ((1, 2),))",
}  # fmt: skip

NO_CELLS_SCRIPT = """
import os, sys
import numpy as np, fastconv as f
from fastconv.kernels import memory
def dirty():
    for n in range(1024, 20000, 1024):
        memory.empty((n,), np.dtype("f4"))[...] = 1e30
    for n in (1, 2, 4, 8, 16):
        f.max_pool2d(np.full((1, 1, 4, n), 1e30, "f4"), (2, 1))
def outcome(expression):
    try:
        y = eval(expression)
    except ValueError as error:
        return "refused " + str(error).partition(":")[0]
    return "right" if np.isin(y, (0, -np.inf)).all() else f"wrong: {y.ravel()[:4]}"
for expression in sys.stdin.read().splitlines():
    if os.fork() == 0:
        dirty()
        print(outcome(expression), flush=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    if code:
        print("exit", code, flush=True)
"""


@pytest.fixture(scope="module")
def no_cells() -> dict[str, str]:
    """What became of each call; a crash is one of the outcomes."""
    done = run_python(NO_CELLS_SCRIPT, stdin="\n".join(NO_CELLS.values()))
    return dict(zip(NO_CELLS, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("name", NO_CELLS)
def test_windows_without_a_cell(name: str, no_cells: dict[str, str]) -> None:
    """Nothing is read where there is nothing: zero (or -inf for a maximum), or a ValueError."""
    fine = ("right", "refused x", "refused padding", "refused kernel_size")
    assert no_cells[name] in fine


# ------------------------------------------------------------------------------- guard pages

_libc = ctypes.CDLL(None, use_errno=True)


def fenced(shape: Sequence[int], dtype: Any, after: bool) -> Array:
    """An array that ends where an unreadable page begins, or with `after` starts where one ends."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    if count == 0:
        return np.empty(shape, dtype)
    size = count * dtype.itemsize
    room = -(-size // PAGE) * PAGE
    block = mmap.mmap(-1, room + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    for page in (start, start + PAGE + room):
        if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE if after else PAGE + room - size
    array: Array = np.frombuffer(block, dtype, count, offset).reshape(shape)
    if dtype.kind == "f":
        array[...] = np.nan
    return array


def run_guarded(row: str, after: bool) -> None:
    """In a process of its own: every call, inputs and results fenced, against the same unfenced."""

    def place(array: Array) -> Array:
        copy = fenced(array.shape, array.dtype, after)
        copy[...] = array
        return copy

    isa.select(row)
    plain_empty = _arrays.empty
    for dtype in ("float32", "float64"):
        calls = all_calls(dtype)
        expected = {name: [a.copy() for a in arrays_in(call())] for name, call in calls.items()}
        _arrays.empty = lambda shape, kind: fenced(shape, kind, after)  # type: ignore[assignment]
        print(f"{row} {dtype}: set up", flush=True)
        for name, call in all_calls(dtype, place).items():
            print(f"{row} {dtype}: {name}", flush=True)
            for a, b in zip(arrays_in(call()), expected[name], strict=True):
                assert a.dtype == b.dtype
                assert a.tobytes() == b.tobytes(), f"{name}: another result, or not all written"
        _arrays.empty = plain_empty
    print("all done", flush=True)


def run_strided(row: str, after: bool) -> None:
    """In a process of its own: rows of every length up to some vectors, read with gaps up to the end of an array."""
    isa.select(row)
    made = data.rng(12)
    for dtype, step, cols in product(("float32", "float64"), range(1, 7), range(1, 36)):
        print(f"{row} {dtype}: {cols} columns, stride {step}", flush=True)
        x, w = (
            data.integers(made, s, dtype) for s in ((1, 2, 1, (cols - 1) * step + 1), (3, 2, 1, 1))
        )
        given = fenced(x.shape, dtype, after)
        given[...] = x
        expected = reference.conv(x, w, stride=step)
        for algo in ("im2col", "pixel", "direct"):
            y = fastconv.conv2d(given, w, stride=step, algo=algo)
            assert np.array_equal(y, expected), algo
    print("all done", flush=True)


def test_the_fence_is_unreadable() -> None:
    """The guard itself: one element beyond the fence kills the process."""
    code = """
    import ctypes, numpy as np, sys
    from tests.test_hostile import fenced
    a = fenced((5, 3), "f4", {after})
    print(np.isnan(a).all(), flush=True)
    ctypes.c_float.from_address(a.ctypes.data + {at}).value
    print("not reached")
    """
    for after, at in ((False, 60), (True, -4)):
        # under AddressSanitizer the signal would become a report
        env = {"ASAN_OPTIONS": "handle_segv=0"}
        done = run_python(code.format(after=after, at=at), env=env, check=False)
        assert done.stdout == "True\n"
        assert done.returncode < 0


@pytest.mark.parametrize("run", ["guarded", "strided"])
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("row", ROWS)
def test_nothing_beyond_an_array_is_touched(row: str, side: str, run: str) -> None:
    """All operations of the C core, each array directly before (after) an unreadable page."""
    code = f"from tests import test_hostile; test_hostile.run_{run}({row!r}, {side == 'after'})"
    done = run_python(code, check=False)
    last = (done.stdout.strip().splitlines() or ["nothing ran"])[-1]
    assert done.returncode == 0, f"last call: {last}\nexit {done.returncode}\n{done.stderr[-2000:]}"
    assert last == "all done"


# ---------------------------------------------------------------------- poison: out and workspace


def with_out() -> dict[str, Callable[..., Any]]:
    """name -> function of out= only; float32 inputs, odd sizes."""
    f, made = fastconv, data.rng(9)
    given = operands("float32")
    x = data.integers(made, (2, 3, 9, 13), "float32")
    row = data.reals(made, (5, 37), "float32")
    c = np.array([1, 2, 3], "f4")
    calls: dict[str, Callable[..., Any]] = {
        f"conv2d {algo}": partial(
            f.conv2d, given["x"], given["w"], given["b"], algo=algo, **OPTIONS
        )
        for algo in ("auto", "pixel", "direct", "im2col")
    }
    calls |= {
        "conv1d": partial(f.conv1d, x[0], np.ones((4, 9, 3), "f4")),
        "conv2d NHWC": partial(f.conv2d, x, np.ones((2, 2, 13, 4), "f4"), layout="NHWC"),
        "conv3d": partial(f.conv3d, x[None], np.ones((4, 2, 2, 2, 2), "f4")),
        "max_pool2d": partial(f.max_pool2d, x, 3, 2, 1),
        "avg_pool2d": partial(f.avg_pool2d, x, 3, 2, 1),
        "adaptive_max_pool2d": partial(f.adaptive_max_pool2d, x, (4, 5)),
        "adaptive_avg_pool2d": partial(f.adaptive_avg_pool2d, x, (4, 5)),
        "batch_norm": partial(f.batch_norm, x, c, c, c, c),
        "batch_norm rows": partial(f.batch_norm, row, row[0], np.abs(row[1])),
        "batch_norm_train": lambda **o: f.batch_norm_train(x, c, c, **o)[0],
        "linear": partial(f.linear, row, data.reals(made, (19, 37), "f4"), np.ones(19, "f4")),
        "linear no terms": partial(f.linear, row[:, :0], np.ones((19, 0), "f4")),
        "relu": partial(f.relu, x),
        "tanh_backward": partial(f.tanh_backward, x, x),
        "softmax": partial(f.softmax, row),
        "softmax first": partial(f.softmax, row, 0),
        "log_softmax_backward": partial(f.log_softmax_backward, row, row),
        "pad": partial(f.pad, x, ((1, 2), (0, 3)), value=7.0),
        "pad zeros": partial(f.pad, x, ((1, 2), (0, 3))),
        "pad reflect": partial(f.pad, x, ((1, 2), (0, 3)), "reflect"),
        "unfold": partial(f.unfold, x, 3, padding=1),
        "fold": partial(f.fold, f.unfold(x, 2), (9, 13), 2),
        "fold with gaps": partial(f.fold, f.unfold(x, 2, stride=3), (9, 13), 2, stride=3),
    }
    return calls


OUT_CALLS = with_out()


def outs(shape: tuple[int, ...]) -> dict[str, Array]:
    """Arrays to write to, full of NaN, in every layout that can be written."""
    nan = np.full(shape, np.nan, "float32")
    made = data.hostile(nan)
    made.pop("readonly")
    return {"plain": nan, "wider": nan.astype("f8"), "half": nan.astype("f2"), **made}


@pytest.mark.parametrize("name", OUT_CALLS)
def test_every_element_of_out_is_written(name: str, isa_row: str) -> None:
    call = OUT_CALLS[name]
    expected = call()
    for kind, out in outs(expected.shape).items():
        found = call(out=out)
        assert found is out, kind
        if kind == "half":
            assert_array_equal(out, expected.astype("f2"), err_msg=kind)
        else:
            assert_array_equal(out, expected, err_msg=kind)


@pytest.mark.parametrize("name", OUT_CALLS)
def test_a_wrong_out_is_refused(name: str) -> None:
    call = OUT_CALLS[name]
    expected = call()
    readonly = data.hostile(expected)["readonly"]
    for bad in (expected[..., :-1], expected[None], readonly):
        with pytest.raises(ValueError, match=r"^out:"):
            call(out=bad)
    for wrong in (expected.astype("i4"), expected.tolist(), expected.astype("?")):
        with pytest.raises(TypeError, match=r"^out:"):
            call(out=wrong)


def dirty_cache() -> None:
    """Free blocks of every size class up to 1 MiB, full of NaN."""
    fastconv.empty_cache()
    blocks = []
    for octave in range(12, 20):
        for eighth in range(8, 16):
            blocks.append(memory.empty((eighth << (octave - 3 - 3),), np.dtype("f8")))
            blocks[-1][...] = np.nan
    del blocks


def poison(array: Array) -> Array:
    return np.full_like(array, np.nan) if array.dtype.kind == "f" else array


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_dirty_workspaces_do_not_show(isa_row: str, dtype: str) -> None:
    """First every call runs on NaN alone, so that the workspaces it gets back are full of them."""
    calls, poisoned = all_calls(dtype), all_calls(dtype, poison)
    expected = {name: [a.copy() for a in arrays_in(call())] for name, call in calls.items()}
    for name, call in calls.items():
        dirty_cache()
        poisoned[name]()
        for a, b in zip(arrays_in(call()), expected[name], strict=True):
            assert np.isfinite(b).all(), name
            assert a.tobytes() == b.tobytes(), name


def test_dirty_workspaces_and_the_exact_result(isa_row: str, algo: str, dtype: str) -> None:
    plain = operands(dtype)
    dirty_cache()
    nan = {name: poison(a) for name, a in plain.items()}
    fastconv.conv2d(nan["x"], nan["w"], algo=algo, **OPTIONS)
    fastconv.conv2d_backward(nan["dy"], nan["x"], nan["w"], algo=algo, **OPTIONS)
    check_conv(plain, plain, dtype, algo=algo)


# ------------------------------------------------------------------------------------ overlaps


@pytest.mark.parametrize("shift", [0, 1, 5, 40])
def test_out_overlapping_x_of_a_convolution(shift: int, isa_row: str, algo: str) -> None:
    made = data.rng(6)
    w = data.integers(made, (3, 3, 3, 3), "float32")
    b = data.integers(made, (3,), "float32")
    size = 2 * 3 * 9 * 11
    buffer = data.integers(made, (size + shift,), "float32")
    x, out = buffer[:size].reshape(2, 3, 9, 11), buffer[shift:].reshape(2, 3, 9, 11)
    expected = reference.conv(x.copy(), w, b, padding=1)
    assert fastconv.conv2d(x, w, b, padding=1, algo=algo, out=out) is out
    assert_array_equal(out, expected)


@pytest.mark.parametrize("which", ["w", "b", "residual"])
def test_out_overlapping_another_operand(which: str, algo: str) -> None:
    made = data.rng(6)
    x = data.integers(made, (1, 3, 3, 3), "float32")
    given = {
        "w": data.integers(made, (3, 3, 3, 3), "float32"),
        "b": data.integers(made, (27,), "float32"),
        "residual": data.integers(made, (1, 3, 3, 3), "float32"),
    }
    out = given[which][:1] if which == "w" else given[which].reshape(-1)[:27].reshape(1, 3, 3, 3)
    given["b"] = given["b"][5:8]
    expected = reference.conv(x, padding=1, **{k: a.copy() for k, a in given.items()})
    fastconv.conv2d(x, padding=1, out=out, algo=algo, **given)
    assert_array_equal(out, expected)


IN_PLACE: dict[str, Callable[..., Array]] = {
    "relu": fastconv.relu,
    "tanh": fastconv.tanh,
    "sigmoid": fastconv.sigmoid,
    "softmax": fastconv.softmax,
    "softmax first": partial(fastconv.softmax, axis=0),
    "log_softmax": fastconv.log_softmax,
    "batch_norm": lambda x, out: fastconv.batch_norm(x, x[0].copy(), np.ones(33, "f4"), out=out),
    "batch_norm_train": lambda x, out: fastconv.batch_norm_train(x, out=out)[0],
    "pad": lambda x, out: fastconv.pad(x, ((0, 0),), out=out),
    "max_pool1d": lambda x, out: fastconv.max_pool1d(x[None], 3, 1, 1, out=out[None])[0],
    "avg_pool1d": lambda x, out: fastconv.avg_pool1d(x[None], 3, 1, 1, out=out[None])[0],
    "linear": lambda x, out: fastconv.linear(x, np.tri(33, dtype="f4"), out=out),
}


@pytest.mark.parametrize("shift", [0, 1, 7, 33])
@pytest.mark.parametrize("name", IN_PLACE)
def test_out_overlapping_the_input(name: str, shift: int) -> None:
    """Both ways: out a little after x in memory, and a little before."""
    call = IN_PLACE[name]
    values = data.reals(data.rng(8), (9 * 33 + shift,), "float32")
    for first, second in ((0, shift), (shift, 0)):
        buffer = values.copy()
        x = buffer[first : first + 9 * 33].reshape(9, 33)
        out = buffer[second : second + 9 * 33].reshape(9, 33)
        expected = call(x.copy(), out=np.empty((9, 33), "f4"))
        call(x, out=out)
        assert_array_equal(out, expected)


def backward_of(name: str) -> Callable[..., Array]:
    return getattr(fastconv, f"{name}_backward")  # type: ignore[no-any-return]


@pytest.mark.parametrize("shift", [0, 1, 7, 33])
@pytest.mark.parametrize("same", ["dy", "x", "neither"])
@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "softmax", "log_softmax"])
def test_out_overlapping_the_inputs_of_a_gradient(name: str, same: str, shift: int) -> None:
    """out lies exactly on one operand while the other is shifted against it."""
    call = backward_of(name)
    size = 9 * 33
    values = data.reals(data.rng(8), (size + 2 * shift + 1,), "float32")
    for first, second in ((0, shift), (shift, 0)):
        buffer = values.copy()
        dy = buffer[first : first + size].reshape(9, 33)
        x = buffer[second : second + size].reshape(9, 33)
        other = buffer[2 * shift : 2 * shift + size].reshape(9, 33)
        out = {"dy": dy, "x": x, "neither": other}[same]
        expected = call(dy.copy(), x.copy())
        call(dy, x, out=out)
        assert_array_equal(out, expected)


# ------------------------------------------------------------------------------ special values


def same_specials(found: Array, expected: Array) -> None:
    assert_array_equal(np.isnan(found), np.isnan(expected), err_msg="NaN")
    assert_array_equal(np.isposinf(found), np.isposinf(expected), err_msg="+Inf")
    assert_array_equal(np.isneginf(found), np.isneginf(expected), err_msg="-Inf")
    finite = np.isfinite(expected)
    assert_array_equal(found[finite], expected[finite])
    assert 0 < finite.sum() < finite.size, "no specials, or nothing else: not trusted"


def sprinkled(array: Array, seed: int, *values: float) -> Array:
    """A copy with each of the values in one place."""
    copy = array.copy()
    at = np.random.default_rng(seed).choice(array.size, len(values), replace=False)
    copy.reshape(-1)[at] = values
    return copy


SPECIALS = {
    "inf": (np.inf,),
    "nan": (np.nan,),
    "both": (np.inf, -np.inf, np.nan),
    "opposite": (np.inf, -np.inf, np.inf, -np.inf),
}
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 6, 9, 13), (8, 6, 3, 3), {"padding": 1}),
    "stride": ((2, 6, 9, 13), (8, 3, 3, 2), {"stride": (2, 1), "padding": (1, 2), "groups": 2}),
    "few": ((1, 3, 8, 21), (3, 3, 3, 3), {"dilation": 2}),
    "1x1": ((2, 19, 7, 11), (21, 19, 1, 1), {}),
    "reflect": ((2, 3, 9, 13), (5, 3, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
}


SPECIAL_WEIGHTS = [("w", "inf"), ("w", "nan")]


def special_operands(where: str, kind: str, case: str, dtype: str) -> dict[str, Array]:
    x_shape, w_shape, options = CASES[case]
    made = data.rng(11)
    x, w = data.integers(made, x_shape, dtype), data.integers(made, w_shape, dtype)
    dy = data.integers(made, reference.conv(x, w, **options).shape, dtype)
    given = {"dy": dy, "x": x, "w": w}
    given[where] = sprinkled(given[where], 1, *SPECIALS[kind])
    return given


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("where", "kind"), [("x", "both"), ("x", "opposite"), *SPECIAL_WEIGHTS])
def test_inf_and_nan_in_a_convolution(
    where: str, kind: str, case: str, isa_row: str, algo: str, dtype: str
) -> None:
    given, options = special_operands(where, kind, case, dtype), CASES[case][2]
    found = fastconv.conv2d(given["x"], given["w"], algo=algo, **options)
    same_specials(found, reference.conv(given["x"], given["w"], **options))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["both", "opposite"])
@pytest.mark.parametrize("where", ["dy", "x"])
def test_inf_and_nan_in_the_gradients(
    where: str, kind: str, case: str, isa_row: str, algo: str, dtype: str
) -> None:
    given, options = special_operands(where, kind, case, dtype), CASES[case][2]
    found = fastconv.conv2d_backward(**given, algo=algo, **options)
    wanted = reference.conv_backward(**given, **options)
    specials = 0
    for a, b in zip(found, wanted, strict=True):
        assert a is not None
        assert_array_equal(a, b)  # equal Inf, NaN in the same places
        specials += int((~np.isfinite(b)).sum())
    assert specials, "no specials: not trusted"


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("where", "kind"), SPECIAL_WEIGHTS)
def test_inf_and_nan_in_the_weights_of_an_input_gradient(
    where: str, kind: str, case: str, isa_row: str, algo: str, dtype: str
) -> None:
    """None is lost, and all is exact where every tap lies inside dy.

    At the edges the kernels multiply the weight with a zero beyond dy, so Inf gives NaN there; the
    reference has no such term.
    """
    given, options = special_operands(where, kind, case, dtype), CASES[case][2]
    needs = (True, False, False)
    found = fastconv.conv2d_backward(**given, algo=algo, needs=needs, **options)[0]
    wanted = reference.conv_backward(**given, needs=needs, **options)[0]
    ones = {name: np.ones_like(a) for name, a in given.items()}
    taps = reference.conv_backward(**ones, needs=needs, **options)[0]
    assert found is not None
    assert taps is not None
    assert not np.isfinite(found[~np.isfinite(wanted)]).any()
    assert not np.isfinite(wanted).all(), "no specials: not trusted"
    if options.get("padding_mode", "zeros") == "zeros":
        w = given["w"]
        inside = taps == w[:, 0].size // options.get("groups", 1)
        assert_array_equal(found[inside], wanted[inside])
