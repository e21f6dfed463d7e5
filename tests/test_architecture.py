# SPDX-License-Identifier: BSD-3-Clause
"""The rules of docs/architecture.md, as tests."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from platform import machine

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastconv"
CSRC = ROOT / "csrc"
GCC = shutil.which("gcc")

# What the modules of a layer may import of ours. Data goes one way: nn -> functional -> problem, algorithms -> kernels.
ALLOWED = {
    "problem.py": set(),
    "reference.py": set(),
    "kernels": {"kernels"},
    "costs.py": {"kernels", "problem"},
    "algorithms.py": {"kernels", "problem", "costs"},
    "runtime.py": {"kernels", "problem"},
    "report.py": {"kernels", "problem", "costs", "algorithms", "runtime"},
    "functional": {"kernels", "problem", "algorithms", "runtime", "functional"},
    "nn": {"algorithms", "functional", "nn", "problem"},
    "models": {"functional", "nn", "models", "problem"},
    "optim.py": {"nn", "problem"},
    "arithmetic.py": {"nn", "problem"},
    "filters.py": {"functional", "problem"},
    "signal.py": {"functional", "problem"},
    "compat": {"functional", "problem"},
    "demo.py": {"filters", "models", "nn", "optim", "runtime"},
}
# The two that tie the layers together.
FREE = {"__init__.py", "__main__.py"}
KERNEL_WORDS = ("malloc", "calloc", "realloc", "free(", "pthread", "omp_", "#pragma omp", "printf")


def modules_of(place: str) -> list[Path]:
    path = PACKAGE / place
    return (
        [path]
        if path.is_file()
        else sorted(p for s in ("*.py", "*.pyx", "*.pxd") for p in path.glob(s))
    )


def imports_of(path: Path) -> set[str]:
    """First-level names of ours that a module imports at its top level or inside functions."""
    text = path.read_text()
    if path.suffix == ".py":
        names = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= (
                    {f"fastconv.{a.name}" for a in node.names}
                    if node.module == "fastconv"
                    else {node.module}
                )
            elif isinstance(node, ast.Import):
                names |= {a.name for a in node.names}
    else:
        names = set(re.findall(r"^\s*(?:from|cimport|import) +(fastconv[.\w]*)", text, re.M))
    return {name.split(".")[1] for name in names if name.startswith("fastconv.")}


def test_every_module_has_its_row() -> None:
    found = {
        p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert found == {*ALLOWED, *FREE}


@pytest.mark.parametrize("place", ALLOWED)
def test_layers_import_one_way(place: str) -> None:
    files = modules_of(place)
    assert files, f"{place} is gone: change this table"
    for path in files:
        allowed = ALLOWED[place] | ({"__version__"} if place == "runtime.py" else set())
        assert imports_of(path) <= allowed, f"{path.name} imports {imports_of(path) - allowed}"


@pytest.mark.parametrize("path", modules_of("functional"), ids=lambda p: p.name)
def test_functions_remember_calls_in_algorithms(path: Path) -> None:
    assert "Memo(" not in path.read_text()


def test_reference_imports_numpy_only() -> None:
    text = (PACKAGE / "reference.py").read_text()
    found = set(re.findall(r"^\s*(?:import|from) +(\w+)", text, re.M))
    assert found <= {
        "__future__",
        "collections",
        "dataclasses",
        "functools",
        "itertools",
        "math",
        "typing",
        "numpy",
    }


def test_import_needs_numpy_alone() -> None:
    """`import fastconv` works with every other third-party package hidden."""
    code = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'scipy', 'sklearn', 'matplotlib', 'tqdm', 'torch', 'onnx', 'pytest'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import fastconv, fastconv.nn, fastconv.optim, fastconv.filters, fastconv.signal, fastconv.compat.cs231n\n"
        "import fastconv.models\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["fastconv.h", "cpu.c"])
def test_contract_is_plain_c(name: str) -> None:
    text = (CSRC / name).read_text()
    for header in ("Python.h", "omp.h", "immintrin.h"):
        assert f"<{header}>" not in text
        assert f'"{header}"' not in text


@pytest.mark.parametrize(
    "path",
    sorted((CSRC / "body").glob("*.h")) + sorted((CSRC / "isa").glob("*.c")),
    ids=lambda p: p.name,
)
def test_kernels_allocate_nothing_and_start_nothing(path: Path) -> None:
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
    for word in KERNEL_WORDS:
        assert word not in text, f"{path.name} uses {word}"


@pytest.mark.parametrize("path", sorted((CSRC / "body").glob("*.h")), ids=lambda p: p.name)
def test_bodies_are_static_and_without_intrinsics(path: Path) -> None:
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
    assert not re.search(r"_mm\d*_", text), "intrinsics belong in isa/simd.h"
    for line in text.splitlines():
        if re.match(r"[A-Za-z].*\bFC_FN\(\w+\)\(.*", line):
            assert line.startswith("static"), f"{path.name}: {line}"


def test_no_fast_math() -> None:
    for path in [ROOT / "setup.py", *CSRC.rglob("*.*")]:
        text = path.read_text()
        for flag in ("-ffast-math", "-Ofast", "-funsafe-math", "-march=native"):
            assert flag not in text, f"{path.name} uses {flag}"


def test_one_parallel_region() -> None:
    """OpenMP lives in team.pyx alone."""
    users = [
        p.name
        for p in (PACKAGE / "kernels").glob("*.pyx")
        if re.search(r"cython\.parallel|omp_", p.read_text())
    ]
    assert users == ["team.pyx"]


def test_every_row_of_isa_def_has_its_file() -> None:
    rows = re.findall(r"^FC_ISA\((\w+),", (CSRC / "isa/isa.def").read_text(), re.M)
    assert rows[0] == "scalar"
    for name in rows:
        assert f"#define FC_ISA_NAME {name}" in (CSRC / f"isa/{name}.c").read_text()


# What computes parameters, not outputs of a network.
WITHOUT_GRADIENT = {"fold_batch_norm"}


def test_every_function_has_a_twin_and_a_gradient() -> None:
    """Each public op has a reference of the same name, and each differentiable one a backward."""
    from fastconv import functional, reference

    for name in functional.__all__:
        if name.startswith("prepare_"):  # another way to call an op
            continue
        assert hasattr(reference, name), f"reference.{name} is missing"
        base = name.removesuffix("_backward").removesuffix("_train")
        assert name in WITHOUT_GRADIENT or hasattr(functional, f"{base}_backward"), (
            f"{base}_backward is missing"
        )
        assert getattr(functional, name).__doc__, f"{name} has no docstring"


def source_files() -> list[Path]:
    places = ("csrc", "fastconv", "tests", "benchmarks", "examples")
    files = [
        p
        for place in places
        for p in (ROOT / place).rglob("*")
        if p.suffix in {".py", ".pyx", ".pxd", ".c", ".h", ".def"}
    ]
    generated = {p.with_suffix(".c") for p in files if p.suffix == ".pyx"}
    return sorted(set(files) - generated)


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_sources_carry_their_licence_and_no_dead_code(path: Path) -> None:
    text = path.read_text()
    assert "SPDX-License-Identifier: BSD-3-Clause" in text[:120]
    if path != Path(__file__):
        assert "#if 0" not in text
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


@pytest.mark.skipif(GCC is None or machine() != "x86_64", reason="gcc for x86-64 is not installed")
def test_the_model_of_avx512_has_every_intrinsic() -> None:
    """FASTCONV_MODEL_AVX512=1 still compiles; see CONTRIBUTING.md."""
    row = re.search(r'FC_ISA\(avx512, .*"(.* -include .*)"\)', (CSRC / "isa/isa.def").read_text())
    assert row is not None
    command = [GCC, "-std=c11", "-fsyntax-only", "-Icsrc", '-DFC_ISA_FLAGS=""', *row[1].split()]
    run = subprocess.run(
        [*command, "csrc/isa/avx512.c"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[:2000]
