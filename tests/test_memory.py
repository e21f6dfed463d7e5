# SPDX-License-Identifier: BSD-3-Clause
"""The recycling allocator: alignment, reuse, cap, ownership, and how much workspace calls take."""

from __future__ import annotations

import ast
import ctypes
import ctypes.util
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv import algorithms, reference
from fastconv.kernels import isa, memory
from tests import data
from tests.calls import refused_import, run_python

ALGORITHMS = algorithms.GENERAL_NAMES
MIB = 1 << 20
# What docs and docstrings promise: the workspace of one thread.
WORKSPACE_LIMIT = 64 * MIB
FE_INVALID = 1  # of <fenv.h>, on x86 and Arm
Array = data.Array


def address(array: Array) -> int:
    return int(array.ctypes.data)


def in_use() -> int:
    gc.collect()
    return fastconv.memory_stats()["in_use"]


def ones(count: int, dtype: str = "float32") -> Array:
    return np.ones(count, dtype)


# ------------------------------------------------------------------------- alignment and reuse


@pytest.mark.parametrize("size", [4096, 4100, 5000, 65536, 2 * MIB - 64, 2 * MIB, 3 * MIB + 12])
def test_results_are_aligned(size: int) -> None:
    keep = [fastconv.relu(ones(size // 4)) for _ in range(5)]
    assert [address(y) % 64 for y in keep] == [0] * 5
    assert all((y == 1).all() for y in keep)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastconv.conv2d(np.ones((1, 3, 40, 40)), np.ones((5, 3, 3, 3))),
        lambda: fastconv.conv2d_backward(
            np.ones((1, 5, 38, 38)), np.ones((1, 3, 40, 40)), np.ones((5, 3, 3, 3))
        )[0],
        lambda: fastconv.max_pool2d(np.ones((1, 3, 80, 80)), 2),
        lambda: fastconv.softmax(np.ones((50, 40))),
        lambda: fastconv.linear(np.ones((50, 7)), np.ones((40, 7))),
        lambda: fastconv.pad(np.ones((40, 40)), ((1, 1),)),
        lambda: fastconv.batch_norm_train(np.ones((4, 3, 20, 20)))[0],
        lambda: fastconv.unfold(np.ones((1, 3, 20, 20)), 3),
    ],
    ids=["conv", "dx", "pool", "softmax", "linear", "pad", "norm", "unfold"],
)
def test_every_kind_of_result_comes_from_the_allocator(call: Callable[[], Array]) -> None:
    before = in_use()
    y = call()
    assert address(y) % 64 == 0
    assert y.nbytes <= fastconv.memory_stats()["in_use"] - before
    del y
    assert in_use() == before


@pytest.mark.parametrize("size", [4096, 10000, 5 * MIB])
def test_a_freed_block_is_used_again(size: int) -> None:
    x = ones(size // 4)
    fastconv.empty_cache()
    y = fastconv.relu(x)
    first = address(y)
    before = fastconv.memory_stats()
    del y
    assert fastconv.memory_stats()["cached"] >= before["cached"] + size
    y = fastconv.relu(x)
    after = fastconv.memory_stats()
    assert address(y) == first
    assert after["hits"] == before["hits"] + 1
    assert after["misses"] == before["misses"]
    assert_array_equal(y, x)


def test_blocks_in_use_are_never_given_away() -> None:
    keep = [memory.empty((2048,), np.dtype("f4")) for _ in range(50)]
    assert len({address(a) for a in keep}) == 50
    for i, array in enumerate(keep):
        array[:] = i
    assert all((array == i).all() for i, array in enumerate(keep))


def test_size_classes_waste_at_most_an_eighth() -> None:
    for size in (4096, 4097, 5000, 12345, MIB + 1, 3 * MIB - 1, 7 * MIB):
        before = in_use()
        array = memory.empty((size,), np.dtype("u1"))
        taken = in_use() - before
        assert size <= taken <= size * 1.125 + 64, (size, taken)
        array[:] = 255
        del array


def test_small_arrays_are_left_to_numpy() -> None:
    before = in_use()
    y = fastconv.relu(ones(1023))
    assert in_use() == before
    assert y.flags.owndata


# --------------------------------------------------------------------------------- ownership


def test_results_own_their_data() -> None:
    y = fastconv.relu(ones(5000))
    assert y.flags.owndata
    assert y.base is None
    assert y.flags.writeable


def test_a_result_survives_empty_cache() -> None:
    x = np.arange(1, 100_001, dtype=np.float32)
    y = fastconv.relu(x)
    fastconv.empty_cache()
    assert fastconv.memory_stats()["cached"] == 0
    other = fastconv.relu(-x)
    assert_array_equal(y, x)
    assert not other.any()


def test_a_view_keeps_the_memory_alive() -> None:
    x = np.arange(1, 50_001, dtype=np.float32)
    view = fastconv.relu(x)[10_000:10_010]
    for _ in range(20):
        fastconv.relu(-x)
    assert_array_equal(view, x[10_000:10_010])


def test_a_result_can_be_resized() -> None:
    """realloc through the NumPy hook: grow, shrink; old values stay and new ones are zero."""
    before = in_use()
    y = fastconv.relu(np.arange(2000, dtype=np.float32))
    y.resize(9000, refcheck=False)
    assert_array_equal(y[:2000], np.arange(2000))
    assert not y[2000:].any()
    y.resize(1500, refcheck=False)
    assert_array_equal(y, np.arange(1500))
    del y
    assert in_use() == before


# --------------------------------------------------------------------------- statistics and cap


def test_statistics_are_consistent() -> None:
    fastconv.empty_cache()
    before = fastconv.memory_stats()
    assert set(before) == {"cached", "cap", "in_use", "peak", "hits", "misses"}
    assert all(type(n) is int and n >= 0 for n in before.values())
    assert before["in_use"] <= before["peak"]
    arrays = [fastconv.relu(ones(n)) for n in (2000, 30_000, 400_000)]
    size = sum(a.nbytes for a in arrays)
    during = fastconv.memory_stats()
    assert size <= during["in_use"] - before["in_use"] <= 1.125 * size
    assert during["peak"] >= during["in_use"]
    del arrays
    after = fastconv.memory_stats()
    assert in_use() == before["in_use"]
    assert size <= after["cached"] <= after["cap"]
    fastconv.empty_cache()
    assert fastconv.memory_stats()["cached"] == 0
    memory.reset_peak()
    assert fastconv.memory_stats()["peak"] == fastconv.memory_stats()["in_use"]


def test_workspaces_are_given_back() -> None:
    """Whatever a call takes beside its results is free afterwards, for every algorithm."""
    x, w = np.ones((2, 8, 30, 30), "f4"), np.ones((8, 8, 3, 3), "f4")
    before = in_use()
    for algo in ALGORITHMS:
        y = fastconv.conv2d(x, w, padding=1, algo=algo)
        fastconv.conv2d_backward(y, x, w, padding=1, algo=algo)
    fastconv.linear_backward(np.ones((9, 9)), np.ones((9, 9)), np.ones((9, 9)))
    del y
    assert in_use() == before


CAP = """
import numpy as np, fastconv
cached = []
x = np.ones(1 << 18, "f4")
for n in (1 << 18, 1 << 17, 1 << 12, 1 << 11):
    y = fastconv.relu(x[:n])
    z = fastconv.relu(x[:n])
    del y, z
    cached.append(fastconv.memory_stats()["cached"])
print([fastconv.memory_stats()["cap"], max(cached)])
"""


@pytest.mark.parametrize("cap", [0, 600_000])
def test_the_cache_stays_below_its_cap(cap: int) -> None:
    """Freed: 2 x 1 MiB, 2 x 512 KiB, 2 x 16 KiB, 2 x 8 KiB; 600000 holds one of 512 KiB."""
    done = run_python(CAP, env={"FASTCONV_CACHE_BYTES": str(cap)})
    found, most = ast.literal_eval(done.stdout)
    assert found == cap
    assert most <= cap
    assert most > 500_000 or cap == 0


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_a_bad_cap_is_named(value: str) -> None:
    refused_import("FASTCONV_CACHE_BYTES", value)


def test_set_cap_releases_and_limits() -> None:
    cap = fastconv.memory_stats()["cap"]
    try:
        fastconv.relu(ones(1 << 20))
        memory.set_cap(100_000)
        assert fastconv.memory_stats()["cached"] == 0
        fastconv.relu(ones(1 << 20))
        assert fastconv.memory_stats()["cached"] <= 100_000
        fastconv.relu(ones(1 << 12))
        assert fastconv.memory_stats()["cached"] >= 1 << 14
    finally:
        memory.set_cap(cap)


# ------------------------------------------------------------------------------- out of memory


def impossible_conv() -> Array:
    """y would have (2^21)^2 * 33^2 floats = 2^54 bytes; the operands have 8 MiB each."""
    x = np.ones((1 << 21, 1, 1, 1), "f4")
    w = np.ones((1 << 21, 1, 1, 1), "f4")
    return fastconv.conv2d(x, w, padding=16)


IMPOSSIBLE = {
    "conv2d": impossible_conv,
    "conv2d padding": lambda: fastconv.conv2d(
        np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), padding=((0, 0), (0, 1 << 50))
    ),
    "relu": lambda: fastconv.relu(np.broadcast_to(np.float32(1), (1 << 50,))),
    "linear": lambda: fastconv.linear(
        np.broadcast_to(np.float32(1), (1 << 50, 1)), np.ones((1, 1), "f4")
    ),
    "pad": lambda: fastconv.pad(np.ones((1, 1)), ((0, 1 << 50),), value=1.0),
    "empty": lambda: memory.empty((1 << 50,), np.dtype("f8")),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_size_is_a_memory_error(name: str) -> None:
    before = in_use()
    with pytest.raises(MemoryError):
        IMPOSSIBLE[name]()
    assert in_use() == before
    x, w = (
        data.integers(data.rng(), (2, 3, 40, 40), "f4"),
        data.integers(data.rng(1), (5, 3, 3, 3), "f4"),
    )
    assert_array_equal(fastconv.conv2d(x, w), reference.conv(x, w))


def test_the_cache_is_emptied_before_memory_error() -> None:
    fastconv.relu(ones(1 << 20))
    assert fastconv.memory_stats()["cached"] >= 4 << 20
    with pytest.raises(MemoryError):
        memory.empty((1 << 50,), np.dtype("f8"))
    assert fastconv.memory_stats()["cached"] == 0


# ----------------------------------------------------------------------------------- workspace


def workspace(call: Callable[[], Any]) -> int:
    """Bytes of the allocator that the call took at its peak beside the results it returns."""
    gc.collect()
    memory.reset_peak()
    kept = call()
    stats = fastconv.memory_stats()
    assert kept is not None
    return stats["peak"] - stats["in_use"]


def test_a_line_is_shared_by_the_threads() -> None:
    """One row of dy, one channel: each has some cells of the row of dx, and their columns."""
    x, w = zeros(1, 1, 16_000), zeros(64, 1, 10)
    dy = zeros(1, 64, 3199)

    def run() -> Any:
        return fastconv.conv1d_backward(
            dy, x, w, stride=5, needs=(True, False, False), algo="col2im"
        )

    found = {}
    for threads in (1, 2):
        with fastconv.threads(threads):
            found[threads] = workspace(run)
    assert found[2] > 1.5 * found[1]


def zeros(*shape: int) -> Array:
    return np.zeros(shape, "f4")


# The blocks of all algorithms lie within one image: N = 1 or 2 takes what N = 16 takes.
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "9x9 64->3": ((1, 64, 224, 224), (3, 64, 9, 9), {"padding": 4}),
    "1x1": ((2, 256, 56, 56), (256, 256, 1, 1), {}),
    "depthwise": ((1, 128, 112, 112), (128, 1, 3, 3), {"padding": 1, "groups": 128}),
    "line": ((1, 1, 1_000_000), (1, 1, 501), {}),
    "deep": ((1, 512, 14, 14), (512, 512, 3, 3), {"padding": 1}),
}


def convolution(name: str) -> tuple[Array, Array, dict[str, Any], int]:
    x_shape, w_shape, options = CONVOLUTIONS[name]
    return zeros(*x_shape), zeros(*w_shape), options, len(x_shape) - 2


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_workspace_of_a_convolution(name: str, algo: str) -> None:
    x, w, options, rank = convolution(name)
    forward = getattr(fastconv, f"conv{rank}d")
    with fastconv.threads(2):
        taken = workspace(lambda: forward(x, w, algo=algo, **options))
    assert 0 < taken <= 2 * WORKSPACE_LIMIT


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_workspace_of_the_gradients(name: str) -> None:
    x, w, options, rank = convolution(name)
    y = getattr(fastconv, f"conv{rank}d")(x, w, **options)
    backward = getattr(fastconv, f"conv{rank}d_backward")
    for needs in ((True, False, False), (False, True, False), (False, False, True)):
        with fastconv.threads(2):
            taken = workspace(lambda n=needs: backward(y, x, w, needs=n, **options))
        assert taken <= 2 * WORKSPACE_LIMIT, needs


def test_workspace_of_a_large_weight_gradient() -> None:
    """80 MiB of weights: the partial sums must not be a second copy of them."""
    x, w = zeros(1, 1024, 3, 3), zeros(2304, 1024, 3, 3)
    dy = zeros(1, 2304, 3, 3)
    with fastconv.threads(1):
        taken = workspace(
            lambda: fastconv.conv2d_backward(dy, x, w, padding=1, needs=(False, True, False))
        )
    assert taken <= WORKSPACE_LIMIT, f"{taken / MIB:.0f} MiB"


def test_workspace_of_a_linear_layer() -> None:
    x, w = zeros(64, 4096), zeros(4096, 4096)
    with fastconv.threads(2):
        assert 0 < workspace(lambda: fastconv.linear(x, w)) <= 2 * WORKSPACE_LIMIT
        assert workspace(lambda: fastconv.linear_backward(x, x, w)) <= 2 * WORKSPACE_LIMIT


def fill_cache(dtype: str) -> None:
    """Leave signalling NaNs in the cached blocks up to 1 MiB, a few of each size class."""
    bits, pattern = ("uint32", 0x7FA00000) if dtype == "float32" else ("uint64", 0x7FF4 << 48)
    sizes = [(8 + eighths) << octave for octave in range(9, 17) for eighths in range(8)]
    blocks = [memory.empty((n,), np.dtype("uint8")) for n in sizes for _ in range(3)]
    for block in blocks:
        block.view(bits)[:] = pattern


def leftovers_in(call: Callable[[], object], dtype: str) -> bool:
    """Whether a call computes with what others left in its workspace: any operation on a signalling NaN is invalid."""
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    call()
    fill_cache(dtype)
    library.feclearexcept(FE_INVALID)
    call()
    return bool(library.fetestexcept(FE_INVALID))


def test_leftovers_are_found() -> None:
    x, made = ones(2048), memory.empty((2048,), np.dtype("float32"))
    made.view("uint32")[:] = 0x7FA00000
    assert not leftovers_in(lambda: np.add(x, x), "float32")
    with np.errstate(invalid="ignore"):
        assert leftovers_in(lambda: np.add(x, made, out=x), "float32")


@pytest.mark.parametrize("shape", [(20, 300, 7), (2, 40, 7), (200, 17, 33), (5, 7, 1)])
def test_linear_layers_leave_leftovers_alone(
    shape: tuple[int, int, int], dtype: str, isa_row: str
) -> None:
    """Lanes beyond the last column are multiplied too: denormals left there took 100 times as long."""
    made, (m, k, n) = data.rng(4), shape
    x, w, dy = (data.integers(made, s, dtype) for s in ((m, k), (n, k), (m, n)))
    with fastconv.threads(1):
        assert not leftovers_in(lambda: fastconv.linear(x, w), dtype)
        assert not leftovers_in(lambda: fastconv.linear_backward(dy, x, w), dtype)


@pytest.mark.parametrize("shape", [(2, 5, 7, 7, 3), (1, 17, 9, 33, 19), (3, 3, 13, 5, 34)], ids=str)
def test_convolutions_leave_leftovers_alone(
    shape: tuple[int, ...], algo: str, dtype: str, isa_row: str
) -> None:
    made, (n, channels, height, width, outputs) = data.rng(5), shape
    x = data.integers(made, (n, channels, height, width), dtype)
    w = data.integers(made, (outputs, channels, 3, 3), dtype)
    for stride in (1, 2):
        options: dict[str, Any] = {"stride": stride, "padding": 1, "algo": algo}
        y = fastconv.conv2d(x, w, **options)
        with fastconv.threads(1):
            assert not leftovers_in(lambda o=options: fastconv.conv2d(x, w, **o), dtype)
            for needs in ((True, False, False), (False, True, False)):
                assert not leftovers_in(
                    lambda o=options, y=y, n=needs: fastconv.conv2d_backward(y, x, w, needs=n, **o),
                    dtype,
                ), needs


@pytest.mark.parametrize("limit", [1, 4096, 100_000, 1 << 20, 1 << 30])
def test_max_workspace_does_not_change_the_result(limit: int, algo: str, dtype: str) -> None:
    made = data.rng(2)
    x = data.integers(made, (2, 19, 17, 23), dtype)
    w = data.integers(made, (21, 19, 3, 5), dtype)
    expected = reference.conv(x, w, stride=2, padding=2)
    dy = data.integers(made, expected.shape, dtype)
    y = fastconv.conv2d(x, w, stride=2, padding=2, algo=algo, max_workspace=limit)
    data.trusted(y)
    assert_array_equal(y, expected)
    found = fastconv.conv2d_backward(dy, x, w, stride=2, padding=2, algo=algo, max_workspace=limit)
    for a, b in zip(found, reference.conv_backward(dy, x, w, stride=2, padding=2), strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("outputs", [3, 24], ids=["few outputs", "more outputs"])
def test_max_workspace_does_not_change_the_bits_of_the_weight_gradient(
    outputs: int, dtype: str
) -> None:
    made = data.rng(3)
    x = made.standard_normal((2, 70, 31, 40)).astype(dtype)
    w = np.zeros((outputs, 70, 3, 3), dtype)
    dy = made.standard_normal((2, outputs, 29, 38)).astype(dtype)

    def gradient(limit: int | None) -> Array:
        return fastconv.conv2d_backward(dy, x, w, needs=(False, True, False), max_workspace=limit)[
            1
        ]

    expected = gradient(None)
    for limit in (1 << 14, 1 << 16, 1 << 18, 1 << 30):
        assert_array_equal(gradient(limit), expected, f"max_workspace={limit}")


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 5])
def test_max_workspace_does_not_change_the_bits_of_a_weight_gradient_along_the_pixels(
    outputs: int,
) -> None:
    """17 channels, or 9, 5 and 3 at a time, which fill tiles of other sizes."""
    made = data.rng(4)
    x = made.standard_normal((2, 17, 31, 40)).astype("f4")
    w = np.zeros((outputs, 17, 1, 1), "f4")
    dy = made.standard_normal((2, outputs, 16, 20)).astype("f4")
    options: dict[str, Any] = {"stride": 2, "needs": (False, True, False)}
    expected = fastconv.conv2d_backward(dy, x, w, **options)[1]
    for limit in (4096, 8192, 12288):
        found = fastconv.conv2d_backward(dy, x, w, max_workspace=limit, **options)[1]
        assert_array_equal(found, expected, f"max_workspace={limit}")


def test_max_workspace_bounds_the_band_of_a_thread(algo: str) -> None:
    """512 channels of a 57x57 image. The packed weights (of 16 outputs: 294912 bytes, in "depthwise" as many times as there are
    lanes for groups) come on top, and so do partial sums of at most 784 pixels x 32 outputs (100352 bytes)."""
    packed = 16 * 512 * 9 * 4 * (isa.lanes(4) if algo == "depthwise" else 1)
    x, w = zeros(1, 512, 57, 57), zeros(16, 512, 3, 3)
    taken = []
    with fastconv.threads(1):
        for limit in (1 << 18, 1 << 19, None):
            taken.append(
                workspace(lambda n=limit: fastconv.conv2d(x, w, algo=algo, max_workspace=n))
            )
    most = [1.125 * (n + packed + 784 * 32 * 4) + 4096 for n in (1 << 18, 1 << 19)]
    assert taken[0] <= most[0]
    assert taken[1] <= most[1]
    assert taken[0] < taken[2] or taken[2] - packed < 1 << 18, "the limit changes nothing"


def extra(call: Callable[[], Any]) -> int:
    """Bytes the allocator gave beyond the result, at the worst moment."""
    memory.empty_cache()
    before = fastconv.memory_stats()["in_use"]
    memory.reset_peak()
    value = call()
    return fastconv.memory_stats()["peak"] - before - value.nbytes


def test_copies_for_another_layout_are_made_in_slices() -> None:
    """Channels last, rows along another axis, folded padding: at most two copies of 16 MiB, whatever the batch."""
    x = np.ones((96, 32, 64, 64), np.float32)  # 48 MiB
    w = np.ones((8, 32, 3, 3), np.float32)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    hwio = np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    dy = np.ones((96, 8, 64, 64), np.float32)
    with fastconv.threads(1):
        calls = {
            "NHWC": lambda: fastconv.conv2d(last, hwio, padding=1, layout="NHWC"),
            "softmax": lambda: fastconv.softmax(x, axis=1),
            "reflect dx": lambda: fastconv.conv2d_backward(
                dy, x, w, padding=1, padding_mode="reflect", needs=(True, False, False)
            )[0],
        }
        for name, call in calls.items():
            assert extra(call) <= 40 << 20, name
        y = calls["NHWC"]()
        assert np.array_equal(np.moveaxis(y, -1, 1), fastconv.conv2d(x, w, padding=1))
        assert np.array_equal(
            fastconv.conv2d_backward(y, last, hwio, padding=1, layout="NHWC")[0],
            np.moveaxis(fastconv.conv2d_backward(np.moveaxis(y, -1, 1), x, w, padding=1)[0], 1, -1),
        )


def test_channels_last_gradients_are_made_in_slices() -> None:
    """Exact on integers, whatever the number of slices, and without copies of the whole batch."""
    g = data.rng(14)
    x = data.integers(g, (40, 64, 64, 32), np.float32, 1)  # 20 MiB
    w = data.integers(g, (3, 3, 32, 8), np.float32, 1)
    dy = data.integers(g, (40, 62, 62, 8), np.float32, 1)
    inner = (0, 3, 1, 2)
    expected = fastconv.conv2d_backward(
        dy.transpose(inner), x.transpose(inner), w.transpose(3, 2, 0, 1), algo="direct"
    )
    dx, dw, db = fastconv.conv2d_backward(dy, x, w, layout="NHWC", algo="direct")
    assert_array_equal(dx.transpose(inner), expected[0])
    assert_array_equal(dw.transpose(3, 2, 0, 1), expected[1])
    assert_array_equal(db, expected[2])
    with fastconv.threads(1):
        needs = (True, False, False)
        assert (
            extra(lambda: fastconv.conv2d_backward(dy, x, w, layout="NHWC", needs=needs)[0])
            <= 40 << 20
        )


@pytest.mark.parametrize("what", ["", "_dx", "_dw"])
@pytest.mark.parametrize(
    ("x", "w", "dilation"),
    [
        ((1, 2048, 128, 128), (8, 2048, 31, 31), 4),
        ((1, 256, 32, 64, 64), (128, 256, 11, 11, 11), 4),
        ((2, 2, 224, 14), (8192, 1, 31, 31), 4),
    ],
)
def test_workspace_of_kernels_that_reach_far(
    x: tuple[int, ...], w: tuple[int, ...], dilation: int, what: str
) -> None:
    """Some rows keep all channels of the pixels that one output needs."""
    groups = x[1] // w[1]
    operation = f"conv{len(x) - 2}d{what}"
    options: dict[str, Any] = {"padding": "same", "dilation": dilation, "groups": groups}
    chosen = fastconv.explain(operation, x, w, **options)
    assert chosen.workspace <= WORKSPACE_LIMIT
    if what == "" and w[0] < 1000:
        forced = fastconv.explain(operation, x, w, algo="direct", **options)
        assert forced.workspace > WORKSPACE_LIMIT
        assert chosen.passed_by["direct"].startswith("the pixels of one output would take")
