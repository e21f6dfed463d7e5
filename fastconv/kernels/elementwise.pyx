# SPDX-License-Identifier: BSD-3-Clause
"""Activations and softmax over contiguous arrays, in chunks that any thread may take."""

cimport numpy as cnp

from fastconv.kernels.fastconv cimport fc_kernels, fc_map2_fn, fc_map_fn
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

cdef enum:
    CHUNK = 1 << 14  # elements of a task

cdef struct Job:
    fc_map_fn map
    fc_map2_fn map2
    char *y
    const char *x
    const char *second
    Py_ssize_t size, chunk, itemsize


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t first = number * job.chunk, at = first * job.itemsize
    cdef Py_ssize_t n = min(job.chunk, job.size - first)
    if job.second == NULL:
        job.map(job.y + at, job.x + at, n)
    else:
        job.map2(job.y + at, job.x + at, job.second + at, n)


cdef void row_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """A chunk of whole rows; `size` counts rows here."""
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t i, at, rows = CHUNK // max(job.chunk, 1) + 1
    for i in range(number * rows, min((number + 1) * rows, job.size)):
        at = i * job.chunk * job.itemsize
        if job.second == NULL:
            job.map(job.y + at, job.x + at, job.chunk)
        else:
            job.map2(job.y + at, job.x + at, job.second + at, job.chunk)


cdef const char *data(object array):
    if array is None:
        return NULL
    return <const char *>cnp.PyArray_DATA(<cnp.ndarray>array)


def activation(int code, y, x, dy, int threads):
    """y = f(x), or with dy y = dy * f'(x); code is an fc_activation."""
    cdef Job job
    cdef const fc_kernels *kernels = active_kernels(x.itemsize)
    job.map = kernels.act[code]
    job.map2 = kernels.act_backward[code]
    job.y = <char *>data(y)
    job.x = data(x) if dy is None else data(dy)
    job.second = NULL if dy is None else data(x)
    job.size, job.chunk, job.itemsize = x.size, CHUNK, x.itemsize
    run_tasks(task, &job, (job.size + CHUNK - 1) // CHUNK, 0, threads)


def softmax(bint log, y, x, dy, int threads):
    """Rows of the last axis: y = softmax(x) or log_softmax(x); with dy, x is the forward result and y its gradient."""
    cdef Job job
    cdef const fc_kernels *kernels = active_kernels(x.itemsize)
    job.map = kernels.log_softmax if log else kernels.softmax
    job.map2 = kernels.log_softmax_backward if log else kernels.softmax_backward
    job.y = <char *>data(y)
    job.x = data(x) if dy is None else data(dy)
    job.second = NULL if dy is None else data(x)
    job.chunk, job.itemsize = x.shape[x.ndim - 1], x.itemsize
    job.size = x.size // max(job.chunk, 1)
    run_tasks(row_task, &job, job.size // (CHUNK // max(job.chunk, 1) + 1) + 1, 0, threads)
