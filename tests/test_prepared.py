# SPDX-License-Identifier: BSD-3-Clause
"""Weights that are packed once: prepare_conv*, prepare_linear, and layers in evaluation."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest

import fastconv
from benchmarks.problems import PROBLEMS
from fastconv import algorithms, costs, nn
from fastconv.kernels import isa
from fastconv.kernels.call import frozen, frozen_weights
from fastconv.kernels.correlate import Weights
from fastconv.problem import conv_problem
from tests.conftest import THREADS
from tests.data import reals, rng

CONV = {1: fastconv.conv1d, 2: fastconv.conv2d, 3: fastconv.conv3d}
PREPARE = {
    1: fastconv.prepare_conv1d,
    2: fastconv.prepare_conv2d,
    3: fastconv.prepare_conv3d,
}
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 20, 9, 17), (35, 20, 3, 3), {"padding": 1, "activation": "relu"}),
    "5x5": ((2, 6, 14, 14), (16, 6, 5, 5), {}),
    "1x1": ((2, 33, 9, 9), (20, 33, 1, 1), {}),
    "strided": ((2, 5, 11, 12), (19, 5, 3, 3), {"stride": 2, "padding": 1}),
    "groups": (
        (2, 12, 9, 9),
        (21, 4, 3, 3),
        {"groups": 3, "padding_mode": "reflect", "padding": 1},
    ),
    "depthwise": ((2, 9, 12, 37), (9, 1, 3, 3), {"groups": 9, "padding": 1}),
    "linear": ((3, 4, 5, 5), (7, 4, 5, 5), {}),
    "1d": ((2, 3, 41), (5, 3, 7), {"stride": 2, "padding": 3, "dilation": 2}),
    "3d": ((1, 3, 5, 6, 7), (4, 3, 3, 2, 3), {"padding": 1}),
    "unbatched": ((3, 12, 13), (4, 3, 3, 3), {"padding": "same"}),
}


SPLIT_NAMES = {f"split_{products}" for products in algorithms.SPLITS}


def able(x_shape: tuple[int, ...], w_shape: tuple[int, ...], **options: Any) -> list[str]:
    """The algorithms that can run it on every row and in both types; test_split.py has the others."""
    rank = len(w_shape) - 2
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
    batched = x_shape if len(x_shape) == rank + 2 else (1, *x_shape)
    problem = conv_problem(
        "float32", batched, w_shape, *(options.get(name, usual[name]) for name in names), rank
    )
    shape = costs.shape_of(problem, False, True)
    rows = [row for row in algorithms.ALGORITHMS if row.cannot(shape) is None]
    return [row.name for row in rows if row.name not in SPLIT_NAMES]


RUNS = [(name, algo) for name, (x, w, options) in CASES.items() for algo in able(x, w, **options)]


@pytest.mark.parametrize(("name", "algo"), RUNS)
def test_same_bits(name: str, algo: str, dtype: str, isa_row: str) -> None:
    """With the same algorithm prepared weights give the bits of the call, the first time and the next, at any thread count."""
    x_shape, w_shape, options = CASES[name]
    g = rng(1)
    x, w, b = reals(g, x_shape, dtype), reals(g, w_shape, dtype), reals(g, w_shape[:1], dtype)
    rank = len(w_shape) - 2
    y = CONV[rank](x, w, b, algo=algo, **options)
    prepared = PREPARE[rank](w, b, algo=algo, **options)
    for threads in THREADS:
        with fastconv.threads(threads):
            assert np.array_equal(prepared(x), y)
    assert prepared.nbytes >= w.nbytes
    residual = reals(g, y.shape, dtype)
    out = np.empty_like(y)
    assert prepared(x, residual, out) is out
    assert np.array_equal(out, CONV[rank](x, w, b, algo=algo, residual=residual, **options))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_network_layers(problem: Any) -> None:
    small = problem.reduced()
    a = small.arrays("float32")
    prepared = fastconv.prepare_conv2d(a["w"], a["b"], **small.options)
    y = prepared(a["x"])
    chosen = algorithms.NAMES
    found = [
        name
        for name in chosen
        if _runs(name, a, small.options)
        and np.array_equal(fastconv.conv2d(a["x"], a["w"], a["b"], algo=name, **small.options), y)
    ]
    assert found, "the result of no algorithm"


def _runs(name: str, a: Any, options: Any) -> bool:
    try:
        fastconv.conv2d(a["x"], a["w"], algo=name, **options)
    except ValueError:
        return False
    return True


def test_weights_are_copied() -> None:
    x, w = np.ones((1, 2, 5, 5)), np.ones((3, 2, 3, 3))
    prepared = fastconv.prepare_conv2d(w)
    w[...] = 7
    assert np.all(prepared(x) == 18)


def test_weights_larger_than_a_round() -> None:
    """24 MiB are packed at a time in a call; prepared weights are all there at once."""
    g = rng(2)
    x, w = reals(g, (1, 1024, 3, 3), "float32"), reals(g, (800, 1024, 3, 3), "float32")
    y = fastconv.conv2d(x, w, padding=1, algo="direct")
    prepared = fastconv.prepare_conv2d(w, padding=1, algo="direct")
    assert np.array_equal(prepared(x), y)
    assert np.array_equal(prepared(x), y)


def test_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = fastconv.prepare_conv2d(
        np.ones((32, 16, 3, 3), np.float32), padding=1, algo="direct"
    )
    x = np.ones((1, 16, 8, 8), np.float32)
    prepared(x)
    size = prepared.nbytes
    for _ in range(3):
        prepared(x)
        prepared(np.ones((2, 16, 9, 9), np.float32))
    assert prepared.nbytes == size


def test_layouts_and_types() -> None:
    g = rng(3)
    x, w = reals(g, (2, 9, 9, 5), "float32"), reals(g, (3, 3, 5, 6), "float32")
    prepared = fastconv.prepare_conv2d(w, padding=1, layout="NHWC", algo="direct")
    expected = fastconv.conv2d(x, w, padding=1, layout="NHWC", algo="direct")
    assert np.array_equal(prepared(x), expected)
    wide = prepared(x.astype("float64"))
    assert wide.dtype == np.float64
    assert np.allclose(wide, expected, rtol=1e-4, atol=1e-4)
    whole = fastconv.prepare_conv2d(np.ones((2, 1, 2, 2), int))
    assert whole(np.ones((1, 3, 3))).tolist() == [[[4, 4], [4, 4]]] * 2


def test_winograd_of_values_that_are_not_finite() -> None:
    g = rng(4)
    x, w = reals(g, (1, 16, 8, 8), "float32"), reals(g, (16, 16, 3, 3), "float32")
    x[0, 3, 2, 2] = np.inf
    prepared = fastconv.prepare_conv2d(w, algo="winograd_4_3")
    np.testing.assert_array_equal(prepared(x), fastconv.conv2d(x, w, algo="direct"))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [((1, 1, 1, 2, 1), (2049, 1, 1, 1, 1), {}), ((1, 1, 70_001), (1, 1, 2), {"dilation": 70_000})],
)
def test_many_outputs_and_wide_kernels(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    x, w, rank = np.ones(x_shape), np.ones(w_shape), len(w_shape) - 2
    y = PREPARE[rank](w, **options)(x)
    np.testing.assert_array_equal(y, CONV[rank](x, w, **options))


def test_bad_input() -> None:
    w = np.ones((4, 2, 3, 3))
    for wrong, message in (
        ({"stride": 0}, "stride"),
        ({"padding": -1}, "padding"),
        ({"groups": 3}, "groups"),
        ({"algo": "fft"}, "algo"),
        ({"layout": "CHWN"}, "layout"),
        ({"activation": "gelu"}, "activation"),
        ({"precision": "low"}, "precision"),
        ({"padding_mode": "wrap"}, "padding_mode"),
        ({"b": np.ones(3)}, "b: expected shape"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            fastconv.prepare_conv2d(w, **wrong)
    with pytest.raises(ValueError, match="w: expected 4 axes"):
        fastconv.prepare_conv2d(np.ones((4, 2, 3)))
    prepared = fastconv.prepare_conv2d(w)
    with pytest.raises(ValueError, match="channels"):
        prepared(np.ones((1, 3, 9, 9)))
    with pytest.raises(ValueError, match="residual"):
        prepared(np.ones((1, 2, 9, 9)), np.ones(3))


@pytest.mark.parametrize("rows", [1, 4, 5, 40])
@pytest.mark.parametrize(("outputs", "inputs"), [(3, 5), (70, 33), (417, 300), (16, 1030)])
def test_linear_has_the_same_bits(
    rows: int, outputs: int, inputs: int, dtype: str, isa_row: str
) -> None:
    """Panels with a tail, several blocks of outputs and of terms; few rows are dot products, which pack nothing."""
    g = rng(6)
    x, w, b = (reals(g, s, dtype) for s in ((rows, inputs), (outputs, inputs), (outputs,)))
    y = fastconv.linear(x, w, b)
    prepared = fastconv.prepare_linear(w, b)
    expected = fastconv.linear(x, w)
    for threads in THREADS:
        with fastconv.threads(threads):
            assert np.array_equal(prepared(x), y)
            out = np.full_like(y, np.nan)
            assert prepared(x, out) is out
            assert np.array_equal(out, y)
            assert np.array_equal(fastconv.prepare_linear(w)(x), expected)
    packed = prepared.nbytes > w.nbytes
    assert packed or rows <= 4
    if not isa.has_split() or dtype == "float64":  # split products pack for any rows
        assert packed == (rows > 4)


def test_prepared_linear_takes_any_rows_and_types() -> None:
    g = rng(7)
    w, b = reals(g, (9, 12), "float32"), reals(g, (9,), "float32")
    prepared = fastconv.prepare_linear(w, b)
    for shape in ((12,), (3, 5, 12), (0, 12)):
        x = reals(g, shape, "float32")
        assert np.array_equal(prepared(x), fastconv.linear(x, w, b))
        wide = x.astype("float64")
        assert np.array_equal(prepared(wide), fastconv.linear(wide, w, b))
    before = prepared(np.ones((6, 12), "float32"))
    w[...] = b[...] = 7
    assert np.array_equal(prepared(np.ones((6, 12), "float32")), before)


def test_prepare_linear_errors_name_the_argument() -> None:
    w = np.ones((4, 3))
    for arguments, message in (
        ((np.ones(3),), "w: expected a matrix"),
        ((w, np.ones(3)), "b: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            fastconv.prepare_linear(*arguments)
    with pytest.raises(ValueError, match="precision"):
        fastconv.prepare_linear(w, precision="low")
    with pytest.raises(ValueError, match="x: expected 3 features"):
        fastconv.prepare_linear(w)(np.ones((2, 4)))
    with pytest.raises(ValueError, match="out"):
        fastconv.prepare_linear(w)(np.ones((2, 3)), np.ones((2, 3)))


def test_layers_notice_changed_weights() -> None:
    """In evaluation a layer keeps packed weights, and what writes to its parameters still shows."""
    layer = nn.Conv2d(16, 32, 3, padding=1, rng=0).eval()
    x = reals(rng(5), (2, 16, 9, 9), "float32")

    def expected() -> Any:
        return layer.__class__.op(
            x, layer.weight.data.copy(), layer.bias.data, padding=1, algo="direct"
        )

    layer.algo = "direct"
    for _ in range(2):
        assert np.array_equal(layer(x), expected())
    layer.weight.data[3, 1, 0, 2] += 1
    assert np.array_equal(layer(x), expected())
    layer.weight.data = layer.weight.data * 2
    assert np.array_equal(layer(x), expected())
    layer.train()
    layer.weight.data[...] = 0.5
    assert np.array_equal(layer(x), expected())
    layer.eval()
    assert np.array_equal(layer(x), expected())
    again = pickle.loads(pickle.dumps(layer))
    assert np.array_equal(again(x), layer(x))
    assert np.array_equal(copy.deepcopy(layer)(x), layer(x))


def test_read_only_weights_are_packed_once() -> None:
    """The cache knows an array by its identity, lets it go, and notices that it was changed in between."""
    fastconv.empty_cache()
    g = rng(6)
    x, w = reals(g, (1, 16, 9, 9), "float32"), reals(g, (32, 16, 3, 3), "float32")
    y = fastconv.conv2d(x, w, padding=1, algo="direct")
    assert len(frozen_weights) == 0, "writable arrays are not kept"
    w.flags.writeable = False
    for _ in range(3):
        assert np.array_equal(fastconv.conv2d(x, w, padding=1, algo="direct"), y)
    assert len(frozen_weights) == 1
    w.flags.writeable = True
    w[...] *= 2
    w.flags.writeable = False
    assert np.array_equal(fastconv.conv2d(x, w, padding=1, algo="direct"), 2 * y)
    view = w[:, :, ::1]
    assert np.array_equal(fastconv.conv2d(x, view, padding=1, algo="direct"), 2 * y)
    assert len(frozen_weights) == 1, "views can change under our feet"
    del w, view
    assert len(frozen_weights) == 0
    for i in range(100):  # bounded, and a new array at an old address is another array
        new = np.full((32, 16, 3, 3), i, np.float32)
        new.flags.writeable = False
        assert fastconv.conv2d(np.ones((1, 16, 3, 3), np.float32), new)[0, 0, 0, 0] == 144 * i
    keep = [np.zeros((32, 16, 3, 3), np.float32) for _ in range(100)]
    for new in keep:
        new.flags.writeable = False
        fastconv.conv2d(x, new)
    assert len(frozen_weights) <= frozen_weights.entries_max
    fastconv.empty_cache()
    assert len(frozen_weights) == 0


def test_packed_forms_of_read_only_weights_are_bounded() -> None:
    """They take no more bytes than the cache counts for them, and the latest one is kept."""
    fastconv.empty_cache()
    w = reals(rng(7), (64, 64, 3, 3), "float32")
    w.flags.writeable = False
    sizes = set()
    for groups in (1, 2, 4, 8, 16, 32):
        for algo in algorithms.GENERAL_NAMES:
            x = reals(rng(8), (1, 64 * groups, 5, 5), "float32")
            y = fastconv.conv2d(x, w, groups=groups, algo=algo)
            assert np.array_equal(fastconv.conv2d(x, w, groups=groups, algo=algo), y)
            packed = frozen(w).nbytes
            assert 0 < packed <= frozen_weights.bytes
            sizes.add(packed)
    assert max(sizes) > frozen_weights.bytes / 2


def test_every_changed_byte_is_noticed() -> None:
    for size in (1, 5, 8, 13, 70):
        for dtype in ("float32", "float64"):
            w = np.ones((size, 1, 1, 1), dtype)
            weights = Weights(w)
            x = np.ones((1, 1, 1, 1), dtype)
            prepared = fastconv.conv2d(x, weights, algo="direct")
            assert np.all(prepared == 1)
            for i in range(size):
                w[i] = 3
                weights.refresh(w)
                assert fastconv.conv2d(x, weights, algo="direct")[0, i] == 3


@pytest.mark.parametrize("positions", [(0, 4), (0, 1), (1, 3), (1, 9), (65, 69)])
def test_changed_signs_do_not_cancel(positions: tuple[int, int], dtype: str) -> None:
    w = np.arange(1, 71).astype(dtype).reshape(70, 1, 1, 1)
    weights = Weights(w)
    x = np.ones((1, 1, 1, 1), dtype)
    fastconv.conv2d(x, weights, algo="direct")
    w[list(positions)] *= -1
    weights.refresh(w)
    assert np.array_equal(fastconv.conv2d(x, weights, algo="direct").ravel(), w.ravel())


@pytest.mark.parametrize("algo", able((1, 16, 6, 7), (24, 16, 3, 3)))
def test_read_only_weights_in_another_number_of_groups(algo: str) -> None:
    g = rng(7)
    w = reals(g, (24, 16, 3, 3), "float32")
    frozen = w.copy()
    frozen.flags.writeable = False
    for groups in (1, 3, 4, 2, 1):
        x = reals(g, (1, 16 * groups, 6, 7), "float32")
        expected = fastconv.prepare_conv2d(w, groups=groups, algo=algo)(x)
        assert np.array_equal(fastconv.conv2d(x, frozen, groups=groups, algo=algo), expected)


def test_read_only_weights_channels_last() -> None:
    g = rng(8)
    x, w = reals(g, (1, 6, 7, 16), "float32"), reals(g, (3, 3, 16, 24), "float32")
    expected = fastconv.conv2d(x, w, layout="NHWC")
    w.flags.writeable = False
    for _ in range(2):
        assert np.array_equal(fastconv.conv2d(x, w, layout="NHWC"), expected)


def test_weights_replaced_while_another_thread_packs_them() -> None:
    """What that thread packed of the old ones is not taken for the new ones."""
    g = rng(9)
    x, old = reals(g, (1, 512, 4, 4), "float32"), reals(g, (512, 512, 3, 3), "float32")
    new, options = 2 * old, {"padding": 1, "algo": "winograd_4_3"}
    expected = fastconv.conv2d(x, new, **options)
    for delay in range(20):
        weights = Weights(old)
        thread = threading.Thread(target=fastconv.conv2d, args=(x, weights), kwargs=options)
        thread.start()
        time.sleep(delay * 3e-4)  # somewhere in the packing
        weights.refresh(new)
        thread.join()
        assert np.array_equal(fastconv.conv2d(x, weights, **options), expected)
