# SPDX-License-Identifier: BSD-3-Clause
"""What the compiler made of the kernels: no spilled accumulators, and wide instructions only where their row has them."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fastconv.kernels
from fastconv.kernels import isa

OBJDUMP = shutil.which("objdump")
pytestmark = pytest.mark.skipif(OBJDUMP is None, reason="objdump (binutils) is not installed")

ROWS = [row["name"] for row in isa.rows()]
# Tiles whose accumulators must stay in registers, and the loops in which they would be spilled.
TILES = (
    "conv_tile",
    "gemm_tile",
    "wgrad_tile",
    "winograd_tile",
    "winograd_sum",
    "pixel_sums",
    "dot_tile",
    "plane_dots",
)
# With 32 registers also those that hold several weights beside the sums: a column of a plane's, a row of three taps.
WIDE_TILES = (*TILES, "plane_tile", "conv_runs", "grads")
MEMORY_READ = re.compile(r"(?:mov|vmov|vbroadcast|vfn?madd)\S*\s+[^%$]*\([^)]*\)")
VECTOR_STORE = re.compile(r"vmov[a-z0-9]+\s+%[xyz]mm\d+,[-0-9a-fx]*\(%r[sb]p")


def modules() -> list[Path]:
    names = [m.name for m in pkgutil.iter_modules(fastconv.kernels.__path__)]
    found = [importlib.import_module(f"fastconv.kernels.{name}").__file__ for name in names]
    return [Path(path) for path in found if path is not None]


@cache
def functions(path: Path) -> dict[str, list[tuple[int, str]]]:
    """name -> [(address, instruction)] of an extension module."""
    assert OBJDUMP is not None
    text = subprocess.run(
        [OBJDUMP, "-d", "--no-show-raw-insn", path], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, list[tuple[int, str]]] = {}
    body: list[tuple[int, str]] = []
    for line in text.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.+)>:", line):
            body = found.setdefault(header[1], [])
        elif instruction := re.match(r"\s+([0-9a-f]+):\s+(.+)", line):
            body.append((int(instruction[1], 16), instruction[2]))
    return found


def row_of(function: str) -> str | None:
    """The ISA row that a kernel's name ends with; compilers may add suffixes such as .cold."""
    match = re.match(r"fc_\w+_f(?:32|64)_(\w+?)(?:\..*)?$", function)
    return match[1] if match else None


def innermost_loops(body: list[tuple[int, str]]) -> Iterator[list[str]]:
    """Loops end in a conditional jump; an unconditional one comes back from code that was moved out of the way."""
    jumps = []
    for address, text in body:
        if (jump := re.match(r"j(?!mp)\w+\s+([0-9a-f]+)", text)) and int(jump[1], 16) <= address:
            jumps.append((int(jump[1], 16), address))
    for start, end in jumps:
        if not any((s, e) != (start, end) and start <= s and e <= end for s, e in jumps):
            yield [text for address, text in body if start <= address <= end]


KERNELS = functions(Path(isa.__file__)) if OBJDUMP else {}


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ("scalar", "amx")])
def test_accumulators_are_not_spilled(row: str) -> None:
    """No vector is stored to the stack inside a loop that multiplies and adds."""
    if row == "avx512" and not any("zmm" in t for _, t in KERNELS["fc_conv_tile_14x2_f32_avx512"]):
        pytest.skip("built against the software model of AVX-512")
    tiles = WIDE_TILES if row == "avx512" else TILES
    checked, spilled = 0, []
    for name, body in KERNELS.items():
        if row_of(name) != row or not name.startswith(tuple(f"fc_{tile}" for tile in tiles)):
            continue
        for loop in innermost_loops(body):
            if any("vfmadd" in text for text in loop):
                checked += 1
                stores = sum(bool(VECTOR_STORE.match(text)) for text in loop)
                spilled += [f"{name}: {stores} stores in a loop"] if stores else []
    assert checked > 20, "the loops were not found: not trusted"
    assert not spilled, "\n".join(spilled)


def fewest_loads(name: str, products: int) -> int | None:
    """Of a loop of so many multiply-adds, each of one vector of either operand; None: of other kernels."""
    if match := re.match(r"fc_dot_tile_([2-9])x([2-9])_", name):
        a, b = map(int, match.groups())
        return products * (a + b) // (a * b)
    if match := re.match(r"fc_pixel_sums_([23])_", name):
        outputs = int(match[1])
        return products // outputs + outputs + 1  # pixels, weights and the tap's offset
    return None


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ("scalar", "amx")])
def test_operands_are_loaded_once(row: str) -> None:
    """What several multiply-adds of a step take is loaded to a register. Compilers like to load it for each of them."""
    if row == "avx512" and not any("zmm" in t for _, t in KERNELS["fc_conv_tile_14x2_f32_avx512"]):
        pytest.skip("built against the software model of AVX-512")
    checked, wrong = 0, []
    for name, body in KERNELS.items():
        if row_of(name) != row:
            continue
        for loop in innermost_loops(body):
            products = sum("vfmadd" in text for text in loop)
            fewest = fewest_loads(name, products)
            if products and fewest is not None:
                checked += 1
                loads = sum(bool(MEMORY_READ.match(text)) for text in loop)
                wrong += [f"{name}: {loads} loads, not {fewest}"] if loads > fewest else []
    assert checked > 20, "the loops were not found: not trusted"
    assert not wrong, "\n".join(wrong)


@pytest.mark.skipif("amx" not in ROWS, reason="not x86-64")
def test_tiles_are_loaded_as_seldom_as_can_be() -> None:
    """A step of two by two tiles, and the four of sums: (tile products, tile loads) for one, three and six products."""
    for products, expected in (("1", (4, 4)), ("3", (12, 8)), ("6", (24, 14))):
        body = KERNELS[f"fc_split_tile_{products}_2x2_f32_amx"]
        found = tuple(
            sum(line[1].startswith(word) for line in body) for word in ("tdpbf16ps", "tileload")
        )
        assert found == (expected[0], expected[1] + 4)


def test_wide_instructions_stay_in_their_row() -> None:
    """AVX only in functions of the rows that have it, AVX-512 only in those of avx512 and amx, tiles in those of amx."""
    wrong = []
    for path in modules():
        for name, body in functions(path).items():
            row = row_of(name)
            for _, text in body:
                wide = re.search(r"%[yz]mm\d|%k[0-7]\b", text)
                vex = text.startswith("v") and "%xmm" in text
                if row != "amx" and re.match(r"tile|ldtile|sttile|tdp", text):
                    wrong.append(f"{path.name}: {name}: {text}")
                if row in (None, "scalar") and (wide or vex):
                    wrong.append(f"{path.name}: {name}: {text}")
                if row == "avx2" and re.search(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b", text):
                    wrong.append(f"{path.name}: {name}: {text}")
    assert not wrong, "\n".join(wrong[:20])
    assert any("%ymm" in t for name in KERNELS if row_of(name) == "avx2" for _, t in KERNELS[name])
