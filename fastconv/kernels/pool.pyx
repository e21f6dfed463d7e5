# SPDX-License-Identifier: BSD-3-Clause
"""Pooling, forward and backward, one plane a task. Windows are tables: sliding and adaptive pools are the same code."""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastconv.kernels.fastconv cimport fc_pool, fc_pool_fn
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

ctypedef fused real:
    float
    double

cdef struct Job:
    fc_pool pool
    fc_pool_fn run
    Py_ssize_t plane_in, plane_out, itemsize
    bint clear          # zero y first: pool_avg_backward adds
    bint bad_index      # scatter met an index outside its plane


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef fc_pool pool = job.pool
    pool.x = <const char *>pool.x + number * job.plane_in * job.itemsize
    pool.y = <char *>pool.y + number * job.plane_out * job.itemsize
    if pool.index != NULL:
        pool.index += number * job.plane_out
    pool.row = workspace
    if job.clear:
        memset(pool.y, 0, job.plane_out * job.itemsize)
    job.run(&pool)


cdef class Windows:
    """start[o], stop[o] of each window along three axes, their step, and the sizes of the input."""

    cdef fc_pool pool
    cdef list arrays
    cdef readonly Py_ssize_t cells
    cdef readonly Py_ssize_t windows

    def __init__(self, sizes, starts, stops, steps):
        cdef cnp.ndarray start, stop
        self.arrays = []
        self.cells = 1
        self.windows = 1
        for i in range(3):
            start = np.ascontiguousarray(starts[i], dtype=np.intp)
            stop = np.ascontiguousarray(stops[i], dtype=np.intp)
            self.arrays += [start, stop]
            self.pool.start[i] = <const Py_ssize_t *>cnp.PyArray_DATA(start)
            self.pool.stop[i] = <const Py_ssize_t *>cnp.PyArray_DATA(stop)
            self.pool.step[i] = steps[i]
            self.pool.inp[i] = sizes[i]
            self.pool.out[i] = len(start)
            self.cells *= sizes[i]
            self.windows *= len(start)


cdef void *address(object array):
    if array is None:
        return NULL
    return cnp.PyArray_DATA(<cnp.ndarray>array)


cdef run(Job *job, Windows windows, object x, object y, object index, object scale, Py_ssize_t planes,
         int threads):
    job.itemsize = x.itemsize
    job.pool = windows.pool
    job.pool.x, job.pool.y = address(x), address(y)
    job.pool.index, job.pool.scale = <int64_t *>address(index), <const double *>address(scale)
    run_tasks(task, job, planes, windows.pool.inp[2] * job.itemsize, threads)


def max_pool(Windows windows, x, y, index, Py_ssize_t planes, int threads):
    """y[plane][window] = the maximum; index[plane][window] (int64, or None) = where in the plane it lies."""
    cdef Job job
    job.run = active_kernels(x.itemsize).pool_max
    job.plane_in, job.plane_out, job.clear = windows.cells, windows.windows, False
    run(&job, windows, x, y, index, None, planes, threads)


def avg_pool(Windows windows, x, y, scale, Py_ssize_t planes, int threads):
    """y[plane][window] = scale[window] * the sum of the window; scale is float64."""
    cdef Job job
    job.run = active_kernels(x.itemsize).pool_avg
    job.plane_in, job.plane_out, job.clear = windows.cells, windows.windows, False
    run(&job, windows, x, y, None, scale, planes, threads)


def avg_pool_backward(Windows windows, dy, dx, scale, Py_ssize_t planes, int threads):
    """dx[plane][cell] = sum over the windows that hold the cell of scale[window] * dy[plane][window]."""
    cdef Job job
    job.run = active_kernels(dy.itemsize).pool_avg_backward
    job.plane_in, job.plane_out, job.clear = windows.windows, windows.cells, True
    run(&job, windows, dy, dx, None, scale, planes, threads)


cdef bint scatter(real *dx, const real *dy, const int64_t *index, Py_ssize_t cells, Py_ssize_t windows) noexcept nogil:
    """dx[index[i]] += dy[i]; True when some index lies outside the plane."""
    cdef Py_ssize_t i
    cdef bint bad = False
    memset(dx, 0, cells * sizeof(real))
    for i in range(windows):
        if 0 <= index[i] < cells:
            dx[index[i]] += dy[i]
        else:
            bad = True
    return bad


cdef void scatter_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef Job *job = <Job *>argument
    cdef Py_ssize_t cells = job.plane_out, windows = job.plane_in
    cdef const int64_t *index = job.pool.index + number * windows
    cdef bint bad
    if job.itemsize == 4:
        bad = scatter(<float *>job.pool.y + number * cells, <const float *>job.pool.x + number * windows, index,
                      cells, windows)
    else:
        bad = scatter(<double *>job.pool.y + number * cells, <const double *>job.pool.x + number * windows, index,
                      cells, windows)
    if bad:
        job.bad_index = True


def max_pool_backward(dy, index, dx, Py_ssize_t planes, Py_ssize_t windows, Py_ssize_t cells, int threads) -> bool:
    """dx[plane][index[plane][window]] += dy[plane][window]; False when an index lay outside its plane."""
    cdef Job job
    job.itemsize = dy.itemsize
    job.pool.x, job.pool.y, job.pool.index = address(dy), address(dx), <int64_t *>address(index)
    job.plane_in, job.plane_out, job.bad_index = windows, cells, False
    run_tasks(scatter_task, &job, planes, 0, threads)
    return not job.bad_index
