# SPDX-License-Identifier: BSD-3-Clause
"""unfold (explicit im2col) and its adjoint fold over a lattice. Padding is an unfold with one tap.

columns[n][channel][tap][output] = padded x[n][channel] at the tap's cell of each output.
"""

cimport numpy as cnp
from libc.string cimport memset

from fastconv.kernels.fastconv cimport fc_kernels
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.lattice cimport Axis, Lattice, apart, fill_lines, first_at, source_at
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

ctypedef fused real:
    float
    double

cdef struct Job:
    const fc_kernels *kernels
    Axis axis[3]
    Py_ssize_t taps, outputs, plane, itemsize
    Py_ssize_t bands  # tasks of a plane of fold: each has some of its rows
    bint transposed   # fold turns the taps of a row
    char *x
    char *columns


cdef void unfold_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """All columns of plane `number` (image and channel)."""
    cdef const Job *job = <const Job *>argument
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t kd, kh, d, src_d, item = job.itemsize, plane = axis[1].out * axis[2].out
    cdef const char *x = job.x + number * job.plane * item
    cdef char *to = job.columns + number * job.taps * job.outputs * item
    for kd in range(axis[0].taps):
        for kh in range(axis[1].taps):
            for d in range(axis[0].out):
                src_d = source_at(&axis[0], d * axis[0].step + axis[0].offset[kd])
                fill_lines(axis, axis[2].out, job.outputs, item, axis[1].offset[kh], axis[1].out, axis[2].offset, axis[2].taps,
                           0, axis[2].out, NULL if src_d < 0 else x + src_d * axis[1].size * axis[2].size * item,
                           to + d * plane * item)
            to += axis[2].taps * job.outputs * item


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


cdef void add_taps(const Job *job, char *row, const char *columns, char *line) noexcept nogil:
    """add_row for all taps along w. As many as the step at a time are neighbours in x: transposed, they are one stretch."""
    cdef const Axis *axis = &job.axis[2]
    cdef Py_ssize_t item = job.itemsize, tap = 0, left, right, taps, cells = axis.out * axis.step
    if not job.transposed:
        for tap in range(axis.taps):
            if item == 4:
                add_row(axis, <float *>row, <const float *>columns, axis.offset[tap])
            else:
                add_row(axis, <double *>row, <const double *>columns, axis.offset[tap])
            columns += job.outputs * item
        return
    while tap < axis.taps:
        taps = min(axis.step, axis.taps - tap)
        job.kernels.transpose(line, axis.step, columns, job.outputs, taps, axis.out, axis.step)
        left = first_at(axis.offset[tap], 1, axis.inner_start, cells)
        right = first_at(axis.offset[tap], 1, axis.inner_stop, cells)
        job.kernels.add(row + (axis.offset[tap] + left + axis.inner_shift) * item, line + left * item, right - left)
        columns += taps * job.outputs * item
        tap += taps


cdef void fold_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """Some rows of a plane: every column entry added to the cell it came from, in one fixed order."""
    cdef const Job *job = <const Job *>argument
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t kd, kh, d, h, src_d, src_h, item = job.itemsize
    cdef Py_ssize_t first = number % job.bands * axis[1].size // job.bands
    cdef Py_ssize_t stop = (number % job.bands + 1) * axis[1].size // job.bands
    cdef char *x = job.x + number // job.bands * job.plane * item
    cdef const char *columns = job.columns + number // job.bands * job.taps * job.outputs * item
    for d in range(axis[0].size):
        memset(x + (d * axis[1].size + first) * axis[2].size * item, 0, (stop - first) * axis[2].size * item)
    for kd in range(axis[0].taps):
        for kh in range(axis[1].taps):
            for d in range(axis[0].out):
                src_d = source_at(&axis[0], d * axis[0].step + axis[0].offset[kd])
                for h in range(axis[1].out):
                    src_h = source_at(&axis[1], h * axis[1].step + axis[1].offset[kh])
                    if src_d >= 0 and first <= src_h < stop:
                        add_taps(job, x + (src_d * axis[1].size + src_h) * axis[2].size * item,
                                 columns + (d * axis[1].out + h) * axis[2].out * item, workspace)
            columns += axis[2].taps * job.outputs * item


cdef int start(Job *job, Lattice lattice, object x, object columns) except -1:
    for i in range(3):
        job.axis[i] = lattice.axis[i]
    job.taps, job.outputs = lattice.taps, lattice.outputs
    job.plane = lattice.axis[0].size * lattice.axis[1].size * lattice.axis[2].size
    job.itemsize = x.itemsize
    job.kernels = active_kernels(job.itemsize)
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
    cdef Axis *row = &job.axis[2]
    start(&job, lattice, x, columns)
    job.bands = max(1, min(job.axis[1].size, 2 * threads // max(1, planes)))
    # no gaps between the taps of one output and the next, and whole vectors of both
    job.transposed = job.kernels.lanes <= row.step <= row.taps and apart(row, job.itemsize, row.offset, row.taps)
    run_tasks(fold_task, &job, planes * job.bands, row.out * row.step * job.itemsize if job.transposed else 0, threads)
