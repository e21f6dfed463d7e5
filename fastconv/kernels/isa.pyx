# SPDX-License-Identifier: BSD-3-Clause
"""The C core's rows, and which of them runs: chosen at import, capped by FASTCONV_ISA."""

import os

from fastconv.kernels.fastconv cimport (
    fc_cache_bytes,
    fc_compiler,
    fc_cpu_name,
    fc_isa_count,
    fc_isa_missing,
    fc_isa_table,
    fc_kernels,
    fc_split_kernels,
    fc_table,
)

cdef const fc_table *active = NULL
# Whether the OS was asked for what the active row needs. It is at the first use: tile registers make the kernel save more at
# every signal, which a program that only imports the package should not notice.
cdef bint settled = False

# Bytes of the caches by level, read once: under a hypervisor each cpuid takes microseconds. Where it tells nothing, the
# smallest in use on CPUs of the last ten years.
cdef size_t CACHES[4]
CACHES[:] = [0, 32 << 10, 256 << 10, 4 << 20]
for level in (1, 2, 3):
    CACHES[level] = fc_cache_bytes(level) or CACHES[level]


cdef const fc_kernels *active_kernels(Py_ssize_t itemsize) noexcept nogil:
    return active.f64 if itemsize == 8 else active.f32


cdef const void *active_row() noexcept nogil:
    """What tells rows apart; two rows may share kernels."""
    return active


cdef size_t cache_bytes(int level) noexcept nogil:
    return CACHES[level]


cdef void settle() noexcept:
    """Fall back to the row before while the OS refuses what the active one needs."""
    global active, settled
    if not settled:
        settled = True
        activate_last(1)


cdef void activate_last(int ask) noexcept:
    """Make the fastest row active that is not faster than the active one and that this machine can run."""
    global active
    cdef bint below = active == NULL
    for i in range(fc_isa_count() - 1, -1, -1):
        below = below or fc_isa_table(i) == active
        if below and fc_isa_missing(i, ask) == NULL:
            active = fc_isa_table(i)
            return


cdef const fc_split_kernels *active_split() noexcept:
    """The split kernels of the active row; NULL when it has none."""
    settle()
    return active.split


def rows() -> list[dict]:
    """Every row built in, slowest first: name, compiler flags, and what this machine lacks for it (or None)."""
    result = []
    for i in range(fc_isa_count()):
        missing = fc_isa_missing(i, 1)
        result.append({
            "name": fc_isa_table(i).name.decode(),
            "flags": fc_isa_table(i).flags.decode(),
            "missing": None if missing == NULL else missing.decode(),
        })
    return result


def available() -> list[str]:
    """Names of the rows that this machine can run, slowest first."""
    return [row["name"] for row in rows() if row["missing"] is None]


def has_split() -> bool:
    """Whether the active row has split kernels."""
    return active_split() != NULL


def current() -> str:
    settle()
    return active.name.decode()


def lanes(int itemsize) -> int:
    """Elements of `itemsize` bytes in a vector of the active row."""
    return active_kernels(itemsize).lanes


def plane_strided(int itemsize) -> int:
    """Most columns of rows with a stride of 2 that pixel_planes takes."""
    return active_kernels(itemsize).plane_strided


def tiles(int itemsize) -> dict:
    """The largest tiles of the active row: pixels by vectors, rows by vectors, outputs."""
    cdef const fc_kernels *kernels = active_kernels(itemsize)
    return {"conv": kernels.conv_mr, "gemm": kernels.gemm_mr, "pixel": kernels.pixel_mr}


def select(str name) -> None:
    """Make `name` the active row. ValueError when it is unknown or this machine cannot run it."""
    global active, settled
    cdef const char *missing
    for i in range(fc_isa_count()):
        if fc_isa_table(i).name.decode() != name:
            continue
        missing = fc_isa_missing(i, 1)  # of this row alone: nobody who caps the row asks for tile registers
        if missing != NULL:
            raise ValueError(
                f"ISA {name!r} needs {missing.decode()}, which this CPU or its operating system lacks; "
                f"available here: {', '.join(available())}"
            )
        active = fc_isa_table(i)
        settled = True
        return
    raise ValueError(
        f"ISA {name!r} is not known; built in: {', '.join(row['name'] for row in rows())}; "
        f"available here: {', '.join(available())}"
    )


def set_cache(int level, size_t size) -> None:
    """Let the blocks follow a cache of another size. For tests: it does not show in the bits."""
    CACHES[level] = size


def machine() -> dict:
    """Compiler, processor and data caches in bytes."""
    return {
        "compiler": fc_compiler().decode(),
        "cpu": fc_cpu_name().decode().strip(),
        "caches": {f"L{level}": cache_bytes(level) for level in (1, 2, 3)},
    }


cdef str requested = os.environ.get("FASTCONV_ISA", "")
if requested:
    try:
        select(requested)
    except ValueError as error:
        raise ValueError(f"environment variable FASTCONV_ISA: {error}") from None
else:
    activate_last(0)
