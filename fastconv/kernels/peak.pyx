# SPDX-License-Identifier: BSD-3-Clause
"""The machine's roofs, for benchmarks: multiply-adds in registers, reading and copying memory."""

cimport numpy as cnp
from libc.string cimport memcpy

from fastconv.kernels.fastconv cimport fc_kernels
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

cdef enum:
    CHUNK = 1 << 18  # elements of a task: 1 or 2 MiB

cdef struct Job:
    const fc_kernels *kernels
    Py_ssize_t rounds, size, itemsize
    const char *source
    char *to
    double result[64]


cdef void fma_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef Job *job = <Job *>argument
    job.result[number] = job.kernels.fma_peak(job.rounds)


cdef void read_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef Job *job = <Job *>argument
    cdef Py_ssize_t first = number * CHUNK
    cdef double total = job.kernels.sum(job.source + first * job.itemsize, min(<Py_ssize_t>CHUNK, job.size - first))
    if total != 0:  # depends on what was read, so the reads cannot be dropped
        job.result[0] = total


cdef void copy_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef Job *job = <Job *>argument
    cdef Py_ssize_t first = number * CHUNK
    memcpy(job.to + first * job.itemsize, job.source + first * job.itemsize,
           min(<Py_ssize_t>CHUNK, job.size - first) * job.itemsize)


def fma(int itemsize, Py_ssize_t rounds, int threads) -> float:
    """Run `rounds` rounds of multiply-adds on each of `threads` (up to 64) threads; the flops done."""
    cdef Job job
    cdef int i, count = max(1, min(threads, 64))
    cdef double total = 0
    job.kernels = active_kernels(itemsize)
    job.rounds = rounds
    run_tasks(fma_task, &job, count, 0, threads)
    for i in range(count):
        total += job.result[i]
    return total


def read(cnp.ndarray array, int threads) -> int:
    """Read a contiguous float array once; the bytes read."""
    cdef Job job
    job.itemsize, job.size = array.itemsize, array.size
    job.kernels = active_kernels(job.itemsize)
    job.source = <const char *>cnp.PyArray_DATA(array)
    run_tasks(read_task, &job, (job.size + CHUNK - 1) // CHUNK, 0, threads)
    return array.nbytes


def copy(cnp.ndarray to, cnp.ndarray source, int threads) -> int:
    """Copy a contiguous array to another of the same size; the bytes read and written."""
    cdef Job job
    if to.nbytes != source.nbytes:
        raise ValueError(f"to: expected {source.nbytes} bytes, got {to.nbytes}")
    job.itemsize, job.size = source.itemsize, source.size
    job.source, job.to = <const char *>cnp.PyArray_DATA(source), <char *>cnp.PyArray_DATA(to)
    run_tasks(copy_task, &job, (job.size + CHUNK - 1) // CHUNK, 0, threads)
    return 2 * source.nbytes
