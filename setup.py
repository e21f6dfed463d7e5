# SPDX-License-Identifier: BSD-3-Clause
"""Compile csrc/isa/<row>.c with that row's flags, then the Cython modules; nothing else."""

import os
import platform
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).parent
KERNELS = Path("fastconv/kernels")
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
COMMON_FLAGS = ["-std=c11", "-O2", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden"]
# Python's own flags ask for debug information, which is half of a wheel; reports of sanitizers need it.
if "-fsanitize" not in os.environ.get("CFLAGS", ""):
    COMMON_FLAGS.append("-g0")
BASELINE = ["-march=x86-64-v2"] if X86_64 else []
BASE_FLAGS = COMMON_FLAGS + BASELINE
CORES = os.cpu_count() or 1
OPENMP = os.environ.get("FASTCONV_NO_OPENMP", "0") in ("", "0")
MODEL_AVX512 = os.environ.get("FASTCONV_MODEL_AVX512", "0") not in ("", "0")
MODEL_MACROS = [("FC_MODEL_AVX512", "1")] if MODEL_AVX512 else []
NO_OPENMP_MESSAGE = """\
fastconv needs a C compiler with OpenMP (-fopenmp), and this one cannot build with it:
    {error}
Install an OpenMP run time (Debian: gcc brings libgomp1; clang needs libomp-dev), choose another compiler with
CC=..., or set FASTCONV_NO_OPENMP=1 to build a single-threaded fastconv."""


def isa_rows() -> list[tuple[str, list[str]]]:
    """(name, its own compiler flags) of each row of isa.def that this platform can compile."""
    text = (ROOT / "csrc/isa/isa.def").read_text()
    portable, x86 = text.split("#if defined(__x86_64__)")
    x86, model = x86.split("#if defined(FC_MODEL_AVX512)")
    model, real = model.split("#else")
    real, rest = real.split("#endif", 1)
    x86 += (model if MODEL_AVX512 else real) + rest
    rows = re.findall(r'^FC_ISA\((\w+), .*, "(.*)"\)$', portable + (x86 if X86_64 else ""), re.M)
    return [(name, flags.split() or BASELINE) for name, flags in rows]


class BuildExt(build_ext):
    """build_ext that compiles one object per ISA row into the module that owns the dispatch."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or CORES

    def build_extensions(self) -> None:
        if OPENMP:
            self.check_openmp()
        for extension in self.extensions:
            if extension.name == "fastconv.kernels.isa":
                extension.extra_objects = self.isa_objects()
                extension.depends = extension.extra_objects  # always just compiled: always linked
        super().build_extensions()

    def isa_objects(self) -> list[str]:
        # most of the time of a build, so all at once: a compiler runs in a process of its own
        with ThreadPoolExecutor(CORES) as pool:
            return list(pool.map(self.isa_object, *zip(*isa_rows(), strict=True)))

    def isa_object(self, name: str, flags: list[str]) -> str:
        text = " ".join(flags)
        (made,) = self.compiler.compile(
            [f"csrc/isa/{name}.c"],
            output_dir=self.build_temp,
            include_dirs=["csrc"],
            macros=[("FC_ISA_FLAGS", f'"{text}"')],
            extra_postargs=COMMON_FLAGS + flags,
        )
        return made

    def check_openmp(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "openmp.c")
            source.write_text(
                "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
            )
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=["-fPIC", "-fopenmp"]
                )
                self.compiler.link_shared_object(
                    objects, str(Path(folder, "openmp.so")), extra_postargs=["-fopenmp"]
                )
            except (CompileError, LinkError) as error:
                raise SystemExit(NO_OPENMP_MESSAGE.format(error=error)) from None


def extensions() -> list[Extension]:
    modules = []
    for path in sorted((ROOT / KERNELS).glob("*.pyx")):
        openmp = ["-fopenmp"] if OPENMP and path.stem == "team" else []
        modules.append(
            Extension(
                f"fastconv.kernels.{path.stem}",
                [str(KERNELS / path.name), *(["csrc/cpu.c"] if path.stem == "isa" else [])],
                include_dirs=["csrc", numpy.get_include()],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), *MODEL_MACROS],
                extra_compile_args=BASE_FLAGS + openmp,
                extra_link_args=openmp,
            )
        )
    return modules


# worker processes of cythonize may import this file again
if __name__ == "__main__":
    setup(
        ext_modules=cythonize(
            extensions(),
            compiler_directives={
                "language_level": 3,
                "boundscheck": False,
                "wraparound": False,
                "cdivision": True,
                "initializedcheck": False,
                "embedsignature": False,
            },
            nthreads=CORES,
        ),
        cmdclass={"build_ext": BuildExt},
    )
