# SPDX-License-Identifier: BSD-3-Clause
"""The accuracy promise of docs/numerics.md, on the data and sums of benchmarks/accuracy.py.

Split products run on `scalar` too, through a software model of tile registers with the same bits. Errors are compared with those
of one float32 multiply-add chain of the same terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import accuracy
from benchmarks.accuracy import Sums
from benchmarks.problems import Conv
from fastconv import algorithms, costs
from tests.tolerance import BOUND

SPLITS = [f"split_{products}" for products in algorithms.SPLITS]
# Sums of 64 to 6,272 terms; up to 15 channels share tiles with the taps
FORWARD = (
    Conv("first", "", 2, 3, 18, 32, 7),
    Conv("few", "", 2, 15, 14, 32, 3),
    Conv("half", "", 2, 16, 14, 32, 3),
    Conv("1x1", "", 1, 64, 14, 32, 1),
    Conv("3x3", "", 1, 32, 16, 32, 3),
    Conv("3x3-deep", "", 1, 512, 8, 32, 3),
    Conv("linear", "", 32, 64, 7, 32, 7),
)
WEIGHT_GRADIENT = (Conv("few-images", "", 4, 32, 16, 32, 3), Conv("images", "", 8, 16, 30, 16, 3))
CASES = [("forward", p) for p in FORWARD] + [("dw", p) for p in WEIGHT_GRADIENT]
# split_6 over the chain, rms and max: on wide-range data single terms outweigh their sum, and the chain's sums of mantissas that
# are nearly 1 and 2 are nearly exact. What six products leave out adds up in `aligned`, whose own sums do not.
MOST = {"wide": (1.1, 2), "edges": (1.1, 2), "aligned": (5, 5)}


@pytest.fixture
def split_row() -> Iterator[str]:
    with accuracy.split_row() as row:
        yield row


@pytest.mark.parametrize("data", accuracy.DATA)
@pytest.mark.parametrize(("what", "p"), CASES, ids=lambda v: getattr(v, "name", v))
def test_split_products(what: str, p: Conv, data: str, split_row: str) -> None:
    sums = Sums(p, what, data)
    chain = sums.chain()
    errors = {name: sums.fastconv(name) for name in SPLITS}
    for name, found in errors.items():
        assert not found["rerun"], "that was the direct kernel"
        assert found["bound"] <= BOUND[name]
    rms, most = MOST.get(data, (1, 1))
    assert errors["split_6"]["rms"] <= rms * chain["rms"]
    assert errors["split_6"]["max"] <= most * chain["max"]
    if data not in ("cancelling", "aligned"):
        assert errors["split_6"]["rms"] < errors["split_3"]["rms"] <= 2**-16
        assert 2**-10 < errors["split_1"]["rms"] <= 2**-7.5


@pytest.mark.parametrize("data", ["normal", "relu"])
@pytest.mark.parametrize("p", accuracy.FORWARD[:-1], ids=lambda p: p.name)
def test_highest(p: Conv, data: str, isa_row: str) -> None:
    sums = Sums(p, "forward", data)
    chain, found = sums.chain(), sums.fastconv("highest")
    assert found["rms"] <= 2 * chain["rms"]
    assert found["max"] <= 2 * chain["max"]


@pytest.mark.parametrize("data", ["normal", "relu"])
@pytest.mark.parametrize("channels", [3, 16, 64])
def test_highest_where_split_products_are_fastest(
    channels: int, data: str, split_row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = costs.COSTS["amx"]  # as of a processor whose tile products take no time
    free = {"split": {"efficiency": 1e6}}
    monkeypatch.setitem(costs.COSTS, split_row, replace(table, ns={**table.ns, **free}))
    algorithms.clear_plans()
    sums = Sums(Conv("layer", "", 1, channels, 16, 64, 7, 2), "forward", data)
    chain, found, split = sums.chain(), sums.fastconv("highest"), sums.fastconv("split_6")
    algorithms.clear_plans()
    assert found == split, "split products were not chosen"
    assert found["rms"] <= 2 * chain["rms"]
    assert found["max"] <= 2 * chain["max"]


def test_the_chain_is_the_plain_kernel(isa_row: str) -> None:
    """Short sums of the direct kernel are chains, on rows with fused multiply-adds to the bit."""
    sums = Sums(accuracy.FORWARD[0], "forward", "normal")
    direct = sums.pick(
        accuracy.calls.fastconv_call(sums.problem, "forward", sums.arrays, "direct")()
    )
    if isa_row == "scalar":  # rounds its products
        assert not np.array_equal(direct, accuracy.chain(sums.a, sums.b))
    else:
        assert np.array_equal(direct, accuracy.chain(sums.a, sums.b))
