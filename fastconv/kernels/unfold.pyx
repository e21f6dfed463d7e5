# SPDX-License-Identifier: BSD-3-Clause
"""unfold (explicit im2col) and its adjoint fold over a lattice. Padding is an unfold with one tap.

columns[n][channel][tap][output] = padded x[n][channel] at the tap's cell of each output.
"""

cimport numpy as cnp
from libc.string cimport memset

from fastconv.kernels.lattice cimport Axis, Lattice, fill_lines, first_at, source_at
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

ctypedef fused real:
    float
    double

cdef struct Job:
    Axis axis[3]
    Py_ssize_t taps, outputs, plane, itemsize
    char *x
    char *columns


cdef void unfold_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """All columns of plane `number` (image and channel)."""
    cdef const Job *job = <const Job *>argument
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t kd, kh, kw, d, src_d, item = job.itemsize
    cdef const char *x = job.x + number * job.plane * item
    cdef char *to = job.columns + number * job.taps * job.outputs * item
    for kd in range(axis[0].taps):
        for kh in range(axis[1].taps):
            for kw in range(axis[2].taps):
                for d in range(axis[0].out):
                    src_d = source_at(&axis[0], d * axis[0].step + axis[0].offset[kd])
                    fill_lines(axis, axis[2].out, item, axis[1].offset[kh], axis[1].out, axis[2].offset[kw], axis[2].out,
                               NULL if src_d < 0 else x + src_d * axis[1].size * axis[2].size * item, to)
                    to += axis[1].out * axis[2].out * item


cdef inline void add_mapped(const Axis *axis, real *row, const real *columns, Py_ssize_t q, Py_ssize_t first,
                            Py_ssize_t last) noexcept nogil:
    """add_row through the map: its padded edges."""
    cdef Py_ssize_t i, at
    for i in range(first, last):
        at = source_at(axis, q + i * axis.step)
        if at >= 0:
            row[at] += columns[i]


cdef inline void add_row(const Axis *axis, real *row, const real *columns, Py_ssize_t q) noexcept nogil:
    """Add a row of columns to the cells that its pixels came from, from padded coordinate q on."""
    cdef Py_ssize_t left = first_at(q, axis.step, axis.inner_start, axis.out)
    cdef Py_ssize_t right = first_at(q, axis.step, axis.inner_stop, axis.out)
    cdef Py_ssize_t i, at
    add_mapped(axis, row, columns, q, 0, left)
    at = q + axis.inner_shift
    if axis.step == 1:  # a loop that the compiler vectorises
        for i in range(left, right):
            row[at + i] += columns[i]
    else:
        for i in range(left, right):
            row[at + i * axis.step] += columns[i]
    add_mapped(axis, row, columns, q, right, axis.out)


cdef void fold_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """Plane `number`: every column entry added to the cell it came from, in one fixed order."""
    cdef const Job *job = <const Job *>argument
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t kd, kh, kw, d, h, src_d, src_h, at, item = job.itemsize
    cdef char *x = job.x + number * job.plane * item
    cdef const char *columns = job.columns + number * job.taps * job.outputs * item
    memset(x, 0, job.plane * item)
    for kd in range(axis[0].taps):
        for kh in range(axis[1].taps):
            for kw in range(axis[2].taps):
                for d in range(axis[0].out):
                    src_d = source_at(&axis[0], d * axis[0].step + axis[0].offset[kd])
                    for h in range(axis[1].out):
                        src_h = source_at(&axis[1], h * axis[1].step + axis[1].offset[kh])
                        if src_d >= 0 and src_h >= 0:
                            at = (src_d * axis[1].size + src_h) * axis[2].size
                            if item == 4:
                                add_row(&axis[2], <float *>x + at, <const float *>columns, axis[2].offset[kw])
                            else:
                                add_row(&axis[2], <double *>x + at, <const double *>columns,
                                        axis[2].offset[kw])
                        columns += axis[2].out * item


cdef int start(Job *job, Lattice lattice, object x, object columns) except -1:
    for i in range(3):
        job.axis[i] = lattice.axis[i]
    job.taps, job.outputs = lattice.taps, lattice.outputs
    job.plane = lattice.axis[0].size * lattice.axis[1].size * lattice.axis[2].size
    job.itemsize = x.itemsize
    job.x = <char *>cnp.PyArray_DATA(<cnp.ndarray>x)
    job.columns = <char *>cnp.PyArray_DATA(<cnp.ndarray>columns)
    return 0


def unfold(Lattice lattice, x, columns, Py_ssize_t planes, int threads):
    """Write columns[plane][tap][output] from contiguous x[plane][d][h][w]."""
    cdef Job job
    start(&job, lattice, x, columns)
    run_tasks(unfold_task, &job, planes, 0, threads)


def fold(Lattice lattice, x, columns, Py_ssize_t planes, int threads):
    """Write x[plane][d][h][w], the sum of the column entries that unfold takes from each cell."""
    cdef Job job
    start(&job, lattice, x, columns)
    run_tasks(fold_task, &job, planes, 0, threads)
