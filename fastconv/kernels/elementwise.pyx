# SPDX-License-Identifier: BSD-3-Clause
"""Activations and softmax over contiguous arrays, in chunks that any thread may take."""

from libc.string cimport memset

from fastconv.kernels.fastconv cimport (
    FC_ACT_RELU, FC_CACHE_LINE, FC_COLUMNS, FC_TOGETHER,
    fc_kernels, fc_map2_fn, fc_map_fn, fc_softmax_columns_fn, fc_softmax_fn,
)
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.memory cimport address, streams
from fastconv.kernels.team cimport run_tasks

cdef enum:
    CHUNK = 1 << 14  # elements of a task
    COLUMNS = 64     # columns of a task, and short rows, at least
    SHORT = 32       # elements of a row that is not
    SCRATCH = 256 << 10  # most bytes of the columns that a task keeps: they stay in any L2

cdef struct Job:
    fc_map_fn map
    fc_map2_fn map2
    char *y
    const char *x
    const char *second
    Py_ssize_t size, chunk, itemsize
    bint stream


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t first = number * job.chunk, at = first * job.itemsize
    cdef Py_ssize_t n = min(job.chunk, job.size - first)
    if job.second == NULL:
        job.map(job.y + at, job.x + at, n, job.stream)
    else:
        job.map2(job.y + at, job.x + at, job.second + at, n, job.stream)


cdef void clear_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t first = number * job.chunk
    memset(job.y + first * job.itemsize, 0, min(job.chunk, job.size - first) * job.itemsize)


def clear(y, int threads):
    """y = 0."""
    cdef Job job
    job.y = address(y)
    job.size, job.chunk, job.itemsize = y.size, CHUNK, y.itemsize
    run_tasks(clear_task, &job, (job.size + CHUNK - 1) // CHUNK, 0, threads)


cdef struct SoftmaxJob:
    fc_softmax_fn run
    fc_softmax_columns_fn columns
    char *y
    const char *x
    const char *second            # factors, one for each row or column; backward: the forward result
    Py_ssize_t outer, n, inner, itemsize, group, parts
    bint factors


cdef void softmax_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """A few whole rows, or some columns of one block [n][inner]."""
    cdef const SoftmaxJob *job = <const SoftmaxJob *>argument
    cdef Py_ssize_t first, count, at, item = job.itemsize
    cdef const char *second = job.second
    if job.inner == 1:
        first = number * job.group
        count, at = min(job.group, job.outer - first), first * job.n
    else:
        first = number % job.parts * job.group
        count, at = min(job.group, job.inner - first), number // job.parts * job.n * job.inner + first
        first += number // job.parts * job.inner
    if second != NULL:
        second += (first if job.factors else at) * item
    if job.inner == 1:
        job.run(job.y + at * item, job.x + at * item, second, count, job.n)
    else:
        job.columns(job.y + at * item, job.x + at * item, second, job.n, job.inner, count, workspace)


def activation(int code, y, x, dy, int threads):
    """y = f(x), or with dy y = dy * f'(x); code is an fc_activation."""
    cdef Job job
    cdef const fc_kernels *kernels = active_kernels(x.itemsize)
    job.map = kernels.act[code]
    job.map2 = kernels.act_backward[code]
    job.y = address(y)
    job.x = address(x) if dy is None else address(dy)
    job.second = NULL if dy is None else address(x)
    job.size, job.chunk, job.itemsize = x.size, CHUNK, x.itemsize
    # where the results of a line come one by one, and late, the line may leave before it is whole
    job.stream = ((code == FC_ACT_RELU or kernels.lanes * job.itemsize == FC_CACHE_LINE) and job.y != job.second
                  and streams(job.y, job.x, job.size * job.itemsize, CHUNK * job.itemsize))
    run_tasks(task, &job, (job.size + CHUNK - 1) // CHUNK, 0, threads)


def softmax(bint log, y, x, dy, factor, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner, int threads):
    """Contiguous [outer][n][inner] along n: y = softmax(x), times factor[outer][inner] if given, or log_softmax(x).

    With dy, x is the forward result and y its gradient.
    """
    cdef SoftmaxJob job
    cdef const fc_kernels *kernels = active_kernels(x.itemsize)
    cdef Py_ssize_t step
    cdef size_t scratch = 0
    if dy is None:
        job.run = kernels.log_softmax if log else kernels.softmax
        job.columns = kernels.log_softmax_columns if log else kernels.softmax_columns
    else:
        job.run = kernels.log_softmax_backward if log else kernels.softmax_backward
        job.columns = kernels.log_softmax_columns_backward if log else kernels.softmax_columns_backward
    job.y = address(y)
    job.x = address(x) if dy is None else address(dy)
    job.second = address(factor) if dy is None else address(x)
    job.factors = dy is None
    job.outer, job.n, job.inner, job.itemsize = outer, n, inner, x.itemsize
    if inner == 1:
        step = FC_TOGETHER if n >= SHORT else COLUMNS
        job.group = max(1 if n >= SHORT else COLUMNS, CHUNK // n // step * step)
        job.parts = (outer + job.group - 1) // job.group
        outer = 1
    else:
        # twice as many: nobody asks for the first columns of a task before it needs them
        job.group = min(max(COLUMNS, 2 * CHUNK // n // COLUMNS * COLUMNS), <Py_ssize_t>FC_COLUMNS)
        job.parts = (inner + job.group - 1) // job.group
        if dy is None:
            scratch = n * FC_TOGETHER * kernels.lanes * job.itemsize
            if scratch > SCRATCH:  # the result serves
                scratch = 0
    run_tasks(softmax_task, &job, outer * job.parts, scratch, threads)
