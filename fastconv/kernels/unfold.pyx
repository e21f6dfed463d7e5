# SPDX-License-Identifier: BSD-3-Clause
"""unfold (explicit im2col) and its adjoint fold over a lattice. Padding is an unfold with one tap.

columns[n][channel][tap][output] = padded x[n][channel] at the tap's cell of each output.
"""

cimport numpy as cnp
from libc.string cimport memset

from fastconv.kernels.fastconv cimport fc_fold, fc_kernels
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.lattice cimport Axis, Lattice, fill_lines, first_at, source_at
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
    bint mapped       # fold looks for the cells of padding
    Fold fold
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


cdef void start_fold(Fold *fold, Lattice lattice, Py_ssize_t itemsize, Py_ssize_t columns_tap) noexcept:
    """For planes without padding that copies cells."""
    cdef const Axis *row = &lattice.axis[2]
    cdef Py_ssize_t i
    fold.kernels = active_kernels(itemsize)
    for i in range(3):
        fold.axis[i] = lattice.axis[i]
    fold.itemsize = itemsize
    fold.taps = lattice.taps
    fold.row = row.size
    fold.plane = fold.axis[0].size * fold.axis[1].size * fold.row
    fold.columns_tap = columns_tap
    fold.line = row.out + row.shift_max if row.step > 1 else 0


cdef Py_ssize_t tables(const Fold *fold) noexcept nogil:
    """Bytes of the lists that fc_fold reads."""
    return (fold.axis[0].taps * fold.axis[1].taps + 2 * fold.axis[2].taps) * sizeof(Py_ssize_t)


cdef Py_ssize_t fold_workspace(const Fold *fold, Py_ssize_t planes) noexcept nogil:
    return tables(fold) + (planes + 1) * fold.axis[2].step * fold.line * fold.itemsize


cdef inline Py_ssize_t first_reader(const Axis *axis, Py_ssize_t cell) noexcept nogil:
    """The first output that may read a cell."""
    cdef Py_ssize_t q = cell - axis.inner_shift - axis.offset[axis.taps - 1]
    return 0 if q <= 0 else (q + axis.step - 1) // axis.step


cdef inline Py_ssize_t readers_stop(const Axis *axis, Py_ssize_t cell) noexcept nogil:
    """After the last of them."""
    cdef Py_ssize_t q = cell - axis.inner_shift
    return 0 if q < 0 else min(axis.out, q // axis.step + 1)


cdef inline Py_ssize_t tap_at(const Axis *axis, Py_ssize_t output, Py_ssize_t cell) noexcept nogil:
    """The tap with which a reader of the cell reads it, or -1: it reads those around it."""
    cdef Py_ssize_t q = cell - axis.inner_shift - output * axis.step
    cdef Py_ssize_t gap = axis.offset[1] if axis.taps > 1 else 1
    return q // gap if gap == 1 or q % gap == 0 else -1


cdef void cells_of(const Axis *axis, Py_ssize_t output, Py_ssize_t last, Py_ssize_t *first, Py_ssize_t *stop) noexcept nogil:
    """Cells [first, stop) have all that outputs up to `last` read."""
    first[0] = max(0, output * axis.step + axis.inner_shift)
    stop[0] = min(axis.size, last * axis.step + axis.offset[axis.taps - 1] + axis.inner_shift + 1)


cdef void readers(const Fold *fold, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t *begin, Py_ssize_t *end) noexcept nogil:
    """The rows of outputs that read rows [first, stop) of a plane of x, and perhaps some between them that do not."""
    cdef const Axis *axis = &fold.axis[1]
    begin[0] = first_reader(axis, first)
    end[0] = (fold.axis[0].out - 1) * axis.out + readers_stop(axis, stop - 1)


cdef Py_ssize_t cut_rows(Fold *fold, Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """Leave cells [first, stop) of each row, and the outputs of a row that read them: the first of those."""
    cdef Axis *axis = &fold.axis[2]
    cdef Py_ssize_t begin = first_reader(axis, first)
    axis.out = max(0, readers_stop(axis, stop - 1) - begin)
    axis.size = stop - first
    axis.inner_shift += begin * axis.step - first
    if fold.line:
        fold.line = axis.out + axis.shift_max
    return begin


cdef void clear_rows(const Fold *fold, char *x, Py_ssize_t planes, Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """Rows [first, stop) of some planes become zero."""
    cdef Py_ssize_t rows = stop - first, cells = fold.axis[2].size, i, j
    if cells == fold.row:  # they are one stretch
        cells *= rows
        rows = 1
    for i in range(planes * fold.axis[0].size):
        for j in range(rows):
            memset(x + (i * fold.axis[1].size + first + j) * fold.row * fold.itemsize, 0, cells * fold.itemsize)


cdef void fold_row(const Fold *fold, fc_fold *row, char *x, Py_ssize_t *tap, Py_ssize_t *shift, char *lines) noexcept nogil:
    """Add the columns that `row` says to one row of each plane of x. Phases are summed one by one and put side by side."""
    cdef const Axis *axis = &fold.axis[2]
    cdef Py_ssize_t item = fold.itemsize, cells = fold.line * axis.step, left, right, i, phase
    cdef Py_ssize_t phases = axis.step, from_phase = fold.line, from_plane = cells
    cdef char *stretch = lines + row.planes * cells * item
    cdef const char *source = lines
    if not fold.line:
        row.y = x
        row.y_c = fold.plane
        row.m = axis.size
        row.taps = axis.taps
        fold.kernels.fold_row(row)
        return
    if row.rows == 1 and axis.taps <= axis.step and axis.offset[axis.taps - 1] == axis.taps - 1:  # tap i is all of phase i
        source = <const char *>row.x + row.off[0] * item
        phases = axis.taps
        from_phase = fold.columns_tap
        from_plane = row.x_c
    else:
        row.y_c = cells
        row.m = fold.line
        for phase in range(axis.phases):
            row.taps = 0
            for i in range(axis.taps):
                if axis.phase_of[i] == phase:
                    tap[row.taps] = i * fold.columns_tap
                    shift[row.taps] = axis.shift[i]
                    row.taps += 1
            row.y = lines + axis.residue[phase] * fold.line * item
            fold.kernels.fold_row(row)
    left = max(0, -axis.inner_shift)
    right = min(cells, axis.size - axis.inner_shift)
    for i in range(row.planes):
        fold.kernels.transpose(stretch, axis.step, source + i * from_plane * item, from_phase, phases, fold.line, axis.step)
        fold.kernels.add(x + (i * fold.plane + left + axis.inner_shift) * item, stretch + left * item, right - left)


cdef void fold_rows(const Fold *fold, const char *columns, Py_ssize_t row, Py_ssize_t rows, char *x, Py_ssize_t planes,
                    Py_ssize_t first, Py_ssize_t stop, char *workspace) noexcept nogil:
    """Add the columns of `rows` rows of outputs, from `row` on, to rows [first, stop) of planes of x.

    columns[plane][tap] begin with output row `row`, taps columns_tap apart; rows are counted over all d.
    """
    cdef const Axis *deep = &fold.axis[0]
    cdef const Axis *high = &fold.axis[1]
    cdef const Axis *wide = &fold.axis[2]
    cdef Py_ssize_t *off = <Py_ssize_t *>workspace
    cdef Py_ssize_t *tap = off + deep.taps * high.taps
    cdef Py_ssize_t *shift = tap + wide.taps
    cdef char *lines = workspace + tables(fold)
    cdef Py_ssize_t d, h, kd, kh, i, top, bottom, front, back, at_d, at_h
    cdef fc_fold line
    line.x = columns
    line.x_c = fold.taps * fold.columns_tap
    line.planes = planes
    line.n = wide.out
    line.off = off
    line.tap = tap
    line.shift = shift
    line.add = not fold.line
    if wide.phases < wide.step:  # phases without taps stay zero
        memset(lines, 0, planes * wide.step * fold.line * fold.itemsize)
    if not fold.line:
        for i in range(wide.taps):
            tap[i] = i * fold.columns_tap
            shift[i] = wide.offset[i] + wide.inner_shift
    if rows <= high.out - row % high.out:  # of one d
        cells_of(high, row % high.out, (row + rows - 1) % high.out, &top, &bottom)
    else:
        cells_of(high, 0, high.out - 1, &top, &bottom)
    cells_of(deep, row // high.out, (row + rows - 1) // high.out, &front, &back)
    for at_d in range(front, back):
        for at_h in range(max(first, top), min(stop, bottom)):
            line.rows = 0
            for d in range(first_reader(deep, at_d), readers_stop(deep, at_d)):
                kd = tap_at(deep, d, at_d)
                for h in range(max(first_reader(high, at_h), row - d * high.out),
                               min(readers_stop(high, at_h), row + rows - d * high.out)):
                    kh = tap_at(high, h, at_h)
                    if kd >= 0 and kh >= 0:
                        off[line.rows] = ((kd * high.taps + kh) * wide.taps * fold.columns_tap
                                          + (d * high.out + h - row) * wide.out)
                        line.rows += 1
            if line.rows:
                fold_row(fold, &line, x + (at_d * high.size + at_h) * fold.row * fold.itemsize, tap, shift, lines)


cdef void fold_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """Some rows of a plane: every column entry added to the cell it came from, in one fixed order."""
    cdef const Job *job = <const Job *>argument
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t k, kd, kh, d, h, src_d, src_h, at, item = job.itemsize
    cdef Py_ssize_t first = number % job.bands * axis[1].size // job.bands
    cdef Py_ssize_t stop = (number % job.bands + 1) * axis[1].size // job.bands
    cdef char *x = job.x + number // job.bands * job.plane * item
    cdef const char *columns = job.columns + number // job.bands * job.taps * job.outputs * item
    clear_rows(&job.fold, x, 1, first, stop)
    if not job.mapped:
        fold_rows(&job.fold, columns, 0, axis[0].out * axis[1].out, x, 1, first, stop, workspace)
        return
    for kd in range(axis[0].taps):
        for kh in range(axis[1].taps):
            for k in range(axis[2].taps):
                for d in range(axis[0].out):
                    src_d = source_at(&axis[0], d * axis[0].step + axis[0].offset[kd])
                    for h in range(axis[1].out):
                        src_h = source_at(&axis[1], h * axis[1].step + axis[1].offset[kh])
                        if src_d >= 0 and first <= src_h < stop:
                            at = (src_d * axis[1].size + src_h) * axis[2].size
                            if item == 4:
                                add_row(&axis[2], <float *>x + at, <const float *>columns, axis[2].offset[k])
                            else:
                                add_row(&axis[2], <double *>x + at, <const double *>columns, axis[2].offset[k])
                        columns += axis[2].out * item


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
    cdef Py_ssize_t i
    start(&job, lattice, x, columns)
    start_fold(&job.fold, lattice, job.itemsize, job.outputs)
    job.mapped = False
    for i in range(3):
        job.mapped = job.mapped or job.axis[i].source != NULL
    job.bands = max(1, min(job.axis[1].size, 2 * threads // max(1, planes)))
    run_tasks(fold_task, &job, planes * job.bands, fold_workspace(&job.fold, 1), threads)
