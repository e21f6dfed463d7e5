# SPDX-License-Identifier: BSD-3-Clause
"""Pooling, forward and backward, a few planes a task. Windows are tables: sliding and adaptive pools are the same code."""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastconv.kernels.fastconv cimport FC_LANES_MAX, fc_kernels, fc_pool, fc_pool_fn
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.lattice cimport ceil_div
from fastconv.kernels.memory cimport address, streams
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

ctypedef fused real:
    float
    double

cdef enum:
    TASK = 1 << 14        # elements that a task reads and writes, or one plane
    EXACT = 1 << 24       # integers below are exact as float
    BLOCK = 1 << 9        # elements of a block of rows, or one row: short turns of reading and writing
    TURNED = 1 << 11      # the same where windows are no lattice
    ROWS = 1 << 18        # elements of the rows that it reaches over, at most
    SMALL = 1 << 7        # elements of such a block in each lane
    FLAT = 1 << 10        # elements of planes that are one array, or one plane
    FLAT_CELLS = 1 << 9   # of such a plane, at most
    FLAT_REACH = 7        # of a window, at most
    LANED = 1 << 11       # cells of rows that lie in the lanes, at most
    POURED = 1 << 18      # bytes of a plane that stays in any L2, at most
    WHOLE = 1 << 10       # cells of a plane that is one window, of which the lanes add up all
    TOGETHER = 1 << 8     # cells, and windows, of a plane that is small: a lane adds up so many

cdef struct Job:
    fc_pool pool
    fc_pool_fn run
    const fc_kernels *kernels
    Py_ssize_t planes, group, plane_in, plane_out, itemsize
    bint bad_index        # scatter met an index outside its plane
    bint stream           # its results are whole before they leave for memory


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef fc_pool pool = job.pool
    cdef Py_ssize_t at = number * job.group
    pool.row = workspace
    pool.x = <const char *>job.pool.x + at * job.plane_in * job.itemsize
    pool.y = <char *>job.pool.y + at * job.plane_out * job.itemsize
    if pool.index != NULL:
        pool.index = job.pool.index + at * job.plane_out
    pool.planes = min(job.group, job.planes - at)
    job.run(&pool)


cdef Py_ssize_t padded(const fc_pool *pool, bint adjoint, Py_ssize_t lanes) noexcept:
    """A row with what its windows reach over, where results come in vectors of so many lanes."""
    cdef Py_ssize_t out
    if adjoint:
        out = ceil_div(ceil_div(pool.out[2], pool.stride), lanes) * lanes
        return pool.left + max(pool.inp[2], out + pool.pad + 1)
    out = ceil_div(pool.out[2], lanes) * lanes
    return max(pool.left + pool.inp[2], out * pool.stride + (pool.taps - 1) * pool.step[2])


cdef object found_lattice(start, stop, step):
    """(stride, 0, taps) of several equal windows at equal distances from 0 on; None for others."""
    strides, spans = np.unique(np.diff(start)), np.unique(stop - start)
    if start[0] or step != 1 or len(strides) != 1 or len(spans) != 1:
        return None
    return strides[0], 0, spans[0]


cdef class Windows:
    """start[o], stop[o] of each window along three axes, their step, and the sizes of the input.

    `lattice` is (stride, padding, taps) of the windows along the last axis, or None where they are as they are: all alike, as
    adaptive ones may be, they form one too.
    Averages are divided by the product of the windows' `divisors` along the axes.
    """

    cdef fc_pool pool     # forward
    cdef fc_pool adjoint  # backward; its tables are made when they are asked for
    cdef bint scanned     # whether indices need the scalar scan
    cdef bint whole       # whether a plane is one row, and one window of which the lanes add up all cells
    cdef bint halves      # whether they are 2x2 with a stride of 2, from the first cell on, in one d
    cdef bint quarters    # whether each of these is divided by 4
    cdef list arrays
    cdef dict divisor_w   # itemsize: divisors along w in that type
    cdef dict inside      # itemsize: fc_pool.inside, of the forward pass and of its adjoint
    cdef readonly Py_ssize_t cells
    cdef readonly Py_ssize_t windows

    def __init__(self, sizes, starts, stops, steps, lattice, divisors):
        cdef bint empty = False
        self.arrays = []
        self.cells = 1
        self.windows = 1
        for i in range(3):
            start, stop = self.set_axis(&self.pool, i, starts[i], stops[i])
            counts = -(-(stop - start) // steps[i])
            empty = empty or counts.min() < 1
            self.pool.step[i] = steps[i]
            self.pool.inp[i] = sizes[i]
            self.pool.out[i] = len(start)
            self.cells *= sizes[i]
            self.windows *= len(start)
        self.pool.width = sizes[2]
        self.pool.stride = 0
        if lattice is None:
            lattice = found_lattice(start, stop, steps[2])
        if lattice is not None and not empty:
            self.set_lattice(lattice[0], lattice[1], lattice[2])
        self.whole = (self.windows == 1 and self.cells == sizes[2] == stop[0] - start[0] and steps[2] == 1
                      and self.cells <= WHOLE)
        self.set_scanned()
        self.set_divisors(divisors)
        self.set_halves()
        self.inside = {4: [None, None], 8: [None, None]}
        self.set_flat(&self.pool, False)

    @property
    def nbytes(self):
        """About what its tables take, with those of the gradient: starts, stops and divisors."""
        cdef Py_ssize_t cells = 0
        for i in range(3):
            cells += 16 * self.pool.inp[i] + 36 * self.pool.out[i]
        if self.pool.flat:
            cells += 24 * (self.cells + FC_LANES_MAX) * (1 + self.pool.reach[0] + self.pool.reach[1])
        return 4096 + cells

    cdef tuple set_axis(self, fc_pool *pool, int axis, starts, stops):
        cdef cnp.ndarray start = np.ascontiguousarray(starts, dtype=np.intp)
        cdef cnp.ndarray stop = np.ascontiguousarray(stops, dtype=np.intp)
        self.arrays += [start, stop]
        pool.start[axis] = <const Py_ssize_t *>cnp.PyArray_DATA(start)
        pool.stop[axis] = <const Py_ssize_t *>cnp.PyArray_DATA(stop)
        return start, stop

    cdef set_lattice(self, stride, padding, taps):
        """Rows are padded for all windows, unless that makes them far longer than the input."""
        cdef fc_pool pool = self.pool
        if stride not in (1, 2):
            return
        pool.stride, pool.pad, pool.taps, pool.left = stride, padding, taps, padding
        pool.width = padded(&pool, False, FC_LANES_MAX)
        if pool.width <= 2 * pool.inp[2] + 1024:
            self.pool = pool

    cdef set_divisors(self, divisors):
        cdef cnp.ndarray d, h, w
        d, h, w = [np.ascontiguousarray(each, dtype=np.float64) for each in divisors]
        self.arrays += [d, h]
        self.divisor_w = {8: w, 4: w.astype(np.float32)}
        self.pool.divisor[0] = <const double *>cnp.PyArray_DATA(d)
        self.pool.divisor[1] = <const double *>cnp.PyArray_DATA(h)

    cdef set_halves(self):
        cdef cnp.ndarray d, h
        self.halves = self.pool.inp[0] == self.pool.out[0] == 1
        for i in range(1, 3):
            start, stop = self.arrays[2 * i], self.arrays[2 * i + 1]
            first = 2 * np.arange(len(start))
            self.halves = self.halves and self.pool.step[i] == 1 and (start == first).all() and (stop == first + 2).all()
        d, h = self.arrays[6], self.arrays[7]
        self.quarters = self.halves and (d[0] * h * self.divisor_w[8][:, None] == 4).all()

    cdef set_scanned(self):
        """The vector kernel keeps the offset of a maximum in a float, and copies the rows of a block of windows."""
        cdef Py_ssize_t reach = self.pool.inp[2] + self.pool.taps
        reach += self.extent(0) * self.pool.inp[1] * self.pool.inp[2] + self.extent(1) * self.pool.inp[2]
        self.set_blocks(&self.pool)
        self.scanned = self.pool.stride == 0 or self.pool.step[2] != 1 or reach >= EXACT or self.pool.rows == 0

    cdef Py_ssize_t extent(self, int axis):
        """Of the longest window, from its first to its last cell."""
        return (self.arrays[2 * axis + 1] - self.arrays[2 * axis]).max()

    cdef void set_blocks(self, fc_pool *pool) noexcept:
        """Clipped by the padding, dilated windows need not begin in the order of their rows: a block is one of those."""
        cdef Py_ssize_t i, last, depth = 0
        pool.block = 1
        if pool.step[1] == 1:
            pool.block = (BLOCK if pool.stride else TURNED) // max(pool.width, pool.out[2])
            pool.block = max(<Py_ssize_t>1, min(pool.block, pool.out[1]))
        pool.rows = 1
        for i in range(pool.out[0]):
            depth = max(depth, pool.stop[0][i] - pool.start[0][i])
        for i in range(0, pool.out[1], pool.block):
            last = min(i + pool.block, pool.out[1]) - 1
            pool.rows = max(pool.rows, depth * (pool.stop[1][last] - pool.start[1][i]))
        if pool.rows > ROWS // pool.width:
            pool.rows = 0

    cdef set_flat(self, fc_pool *pool, bint adjoint):
        """Where each cell of a small plane has a window that holds it: the tables of fc_pool.inside."""
        pool.flat = 0
        if pool.inp[0] != 1 or pool.out[0] != 1 or self.cells > FLAT_CELLS or self.windows == 1:
            return
        held = []
        for i in range(1, 3):
            cells = np.arange(pool.inp[i])
            start, stop = self.arrays[8 * adjoint + 2 * i], self.arrays[8 * adjoint + 2 * i + 1]
            if pool.out[i] != pool.inp[i] or pool.step[i] != 1 or (start > cells).any() or (stop <= cells).any():
                return
            pool.before[i - 1] = (cells - start).max()
            pool.reach[i - 1] = pool.before[i - 1] + (stop - cells).max()
            if pool.reach[i - 1] > FLAT_REACH:
                return
            taps = cells + np.arange(pool.reach[i - 1])[:, None] - pool.before[i - 1]
            held.append((start <= taps) & (taps < stop))
        shape = pool.inp[1], pool.inp[2]
        for itemsize, w in self.divisor_w.items():
            d, h = self.arrays[6], self.arrays[7]
            rows = [(d * h).astype(w.dtype)[:, None] * w]
            rows += [np.broadcast_to(row[:, None], shape) for row in held[0]]
            rows += [np.broadcast_to(row, shape) for row in held[1]]
            table = np.stack([np.resize(row, self.cells + FC_LANES_MAX) for row in rows])
            self.inside[itemsize][adjoint] = table.astype(w.dtype)
        pool.flat = max(<Py_ssize_t>1, FLAT // self.cells)

    cdef fc_pool backward(self):
        """For each cell the windows it lies in: pooling dy over them is the adjoint, as windows are monotone and dense."""
        cdef fc_pool pool = self.adjoint
        if pool.start[0] == NULL:
            pool = self.pool
            for i in range(3):
                cells = np.arange(self.pool.inp[i])
                start, stop = self.arrays[2 * i], self.arrays[2 * i + 1]
                self.set_axis(&pool, i, stop.searchsorted(cells, "right"), start.searchsorted(cells, "right"))
                pool.inp[i], pool.out[i], pool.step[i] = self.pool.out[i], self.pool.inp[i], 1
            pool.left, pool.width = 0, pool.inp[2]
            if pool.stride:
                pool.left = pool.taps
                pool.width = padded(&pool, True, FC_LANES_MAX)
            self.set_blocks(&pool)
            self.set_flat(&pool, True)
            self.adjoint = pool
        return pool


cdef void set_planes(Job *job, const fc_pool *pool, object x, object y) noexcept:
    job.itemsize = cnp.PyArray_ITEMSIZE(<cnp.ndarray>x)
    job.plane_in = pool.inp[0] * pool.inp[1] * pool.inp[2]
    job.plane_out = pool.out[0] * pool.out[1] * pool.out[2]
    job.pool = pool[0]
    job.pool.x, job.pool.y = address(x), address(y)


cdef bint run_halves(Job *job, fc_pool_fn kernel, const fc_pool *pool, object x, object y, Py_ssize_t planes,
                     int threads) except -1:
    """Run the kernel for 2x2 windows, if the row has one; rows of a few cells leave too many lanes idle."""
    set_planes(job, pool, x, y)
    if kernel == NULL or 2 * max(pool.inp[2], pool.out[2]) <= active_kernels(job.itemsize).lanes:
        return False
    job.run = kernel
    set_group(job, planes, 1)
    run_tasks(task, job, ceil_div(planes, job.group), 0, threads)
    return True


cdef run(Job *job, Windows windows, fc_pool pool, bint adjoint, object x, object y, Py_ssize_t planes, int threads):
    cdef Py_ssize_t scratch, lanes, cells
    set_planes(job, &pool, x, y)
    lanes = active_kernels(job.itemsize).lanes
    # Rows of results of a vector or less, or of two where they need no indices, but for a single window, whose cells fill
    # vectors.
    if pool.index != NULL or lanes == 1:
        pool.flat = 0
    pool.together = (1 < lanes and not pool.flat and pool.out[2] <= (lanes if pool.index != NULL else 2 * lanes)
                     and 1 < job.plane_out <= TOGETHER and job.plane_in <= TOGETHER)
    # A long window fills vectors by itself, and so do the many cells that have the same.
    pool.lanes = (pool.stride == 0 and 1 < lanes and pool.inp[2] <= LANED and pool.out[2] < lanes * pool.inp[2]
                  and (pool.step[2] != 1 or longest(&pool) < lanes))
    set_group(job, planes, lanes if pool.together else 1)
    if pool.together:
        if adjoint and pool.taps <= pool.stride:  # no window reaches over another: nothing is added
            pool.stride = pool.left = 0
        if pool.stride:
            pool.width = padded(&pool, adjoint, 1)
        if pool.step[1] == 1:
            pool.block = max(<Py_ssize_t>1, SMALL // pool.width)
    scratch = (pool.rows + pool.block) * pool.width + 4 * lanes
    if pool.lanes:
        scratch += lanes * (pool.inp[2] + pool.out[2])
    if pool.together:
        scratch = max(scratch, lanes * (pool.block * pool.width + job.plane_in + 2 * job.plane_out))
    if pool.flat:
        cells = pool.flat * windows.cells + pool.reach[0] * pool.inp[2] + pool.reach[1]
        scratch = max(scratch, 2 * cells + 4 * lanes)
    if windows.whole and pool.index == NULL:
        scratch = 0
    job.pool = pool
    job.pool.x, job.pool.y = address(x), address(y)
    job.pool.divisor_w = address(windows.divisor_w[job.itemsize])
    job.pool.inside = address(windows.inside[job.itemsize][adjoint]) if pool.flat else NULL
    run_tasks(task, job, ceil_div(planes, job.group), scratch * job.itemsize, threads)


cdef Py_ssize_t longest(const fc_pool *pool) noexcept:
    """Cells of the longest window along the last axis."""
    cdef Py_ssize_t i, cells = 0
    for i in range(pool.out[2]):
        cells = max(cells, pool.stop[2][i] - pool.start[2][i])
    return cells


cdef void set_group(Job *job, Py_ssize_t planes, Py_ssize_t together) noexcept:
    job.planes = planes
    job.group = ceil_div(max(<Py_ssize_t>1, TASK // (job.plane_in + job.plane_out)), together) * together


def max_pool(Windows windows, x, y, index, Py_ssize_t planes, int threads):
    """y[plane][window] = the maximum; index[plane][window] (int64, or None) = where in the plane it lies."""
    cdef Job job
    cdef fc_pool pool = windows.pool
    cdef const fc_kernels *kernels = active_kernels(x.itemsize)
    pool.index = <int64_t *>address(index)
    if pool.index != NULL and windows.scanned:
        pool.stride = 0
    cdef fc_pool_fn halves = kernels.pool_halves_max if index is None else kernels.pool_halves_index
    if windows.halves and (index is None or not windows.scanned) and run_halves(&job, halves, &pool, x, y, planes, threads):
        return
    job.run = kernels.pool_max
    run(&job, windows, pool, False, x, y, planes, threads)


def avg_pool(Windows windows, x, y, Py_ssize_t planes, int threads):
    """y[plane][window] = the sum of the window / its divisor."""
    cdef Job job
    cdef const fc_kernels *kernels = active_kernels(x.itemsize)
    if windows.quarters and run_halves(&job, kernels.pool_halves_sum, &windows.pool, x, y, planes, threads):
        return
    job.run = kernels.pool_mean if windows.whole else kernels.pool_avg
    run(&job, windows, windows.pool, False, x, y, planes, threads)


def avg_pool_backward(Windows windows, dy, dx, Py_ssize_t planes, int threads):
    """dx[plane][cell] = sum over the windows that hold the cell of dy[plane][window] / divisor."""
    cdef Job job
    cdef fc_pool pool = windows.backward()
    cdef const fc_kernels *kernels = active_kernels(dy.itemsize)
    if windows.quarters and run_halves(&job, kernels.pool_halves_backward, &pool, dy, dx, planes, threads):
        return
    job.run = kernels.pool_mean_backward if windows.whole else kernels.pool_avg_backward
    run(&job, windows, pool, True, dy, dx, planes, threads)


cdef bint scatter(real *dx, const real *dy, const int64_t *index, Py_ssize_t cells, Py_ssize_t windows) noexcept nogil:
    """dx[index[i]] += dy[i]; True when some index lies outside the plane."""
    cdef Py_ssize_t i
    cdef bint bad = False
    for i in range(windows):
        if 0 <= index[i] < cells:
            dx[index[i]] += dy[i]
        else:
            bad = True
    return bad


cdef void scatter_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef Job *job = <Job *>argument
    cdef Py_ssize_t i, cells = job.plane_out, windows = job.plane_in
    cdef const int64_t *index
    cdef const char *dy
    cdef char *dx
    cdef char *to = workspace
    cdef bint bad = False
    if job.stream:
        memset(to, 0, cells * job.itemsize)
    for i in range(number * job.group, min((number + 1) * job.group, job.planes)):
        index = job.pool.index + i * windows
        dy = <const char *>job.pool.x + i * windows * job.itemsize
        dx = <char *>job.pool.y + i * cells * job.itemsize
        if not job.stream:
            to = dx
            memset(to, 0, cells * job.itemsize)
        if job.itemsize == 4:
            bad |= scatter(<float *>to, <const float *>dy, index, cells, windows)
        else:
            bad |= scatter(<double *>to, <const double *>dy, index, cells, windows)
        if job.stream:
            job.kernels.pour(dx, to, cells)
    if bad:
        job.bad_index = True


def max_pool_backward(dy, index, dx, Py_ssize_t planes, Py_ssize_t windows, Py_ssize_t cells, int threads) -> bool:
    """dx[plane][index[plane][window]] += dy[plane][window]; False when an index lay outside its plane."""
    cdef Job job
    job.itemsize = dy.itemsize
    job.pool.x, job.pool.y, job.pool.index = address(dy), address(dx), <int64_t *>address(index)
    job.plane_in, job.plane_out, job.bad_index = windows, cells, False
    job.kernels = active_kernels(job.itemsize)
    set_group(&job, planes, 1)
    cells *= job.itemsize
    job.stream = cells <= POURED and streams(<const char *>job.pool.y, <const char *>job.pool.x, planes * cells, cells)
    run_tasks(scatter_task, &job, ceil_div(planes, job.group), cells if job.stream else 0, threads)
    return not job.bad_index
