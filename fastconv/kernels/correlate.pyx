# SPDX-License-Identifier: BSD-3-Clause
"""What the convolution algorithms share: the job, weight packing, and the order of the work.

Packed weights are [group][panel][phase][channel][tap][width]: the micro-kernels read them in one sequential stream.
"""

import sys

import numpy as np

cimport numpy as cnp
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from fastconv.kernels.isa cimport active_kernels, cache_bytes
from fastconv.kernels.lattice cimport band_offsets
from fastconv.kernels.memory cimport address, block_alloc, block_free
from fastconv.kernels.team cimport run_tasks, run_tasks_nogil

from fastconv.kernels.memory import empty

cnp.import_array()

cdef enum:
    # Default bound on one thread's band; what goes beyond it is blocked along the rows.
    BAND_LIMIT = 16 << 20
    # Below this many bytes one thread packs. With more the others would wait for them to come from its caches: 36 to 128 KiB
    # that the team packs save 1 to 7 us of 20 to 35. Less was not measured.
    PACK_SERIAL = 16 << 10
    # Channels packed for one panel after the other: as many runs of w are read at a time, and each to its end; or those of a
    # task, where they are not fewer and stay in L1.
    PACK_CHANNELS = 8
    PACK_BYTES = 32 << 10


# Calls that a guard has made the direct kernel do again.
cdef Py_ssize_t guarded = 0


cdef void count_rerun() noexcept:
    global guarded
    guarded += 1


def reruns() -> int:
    return guarded


cdef inline uint64_t mixed(uint64_t word) noexcept nogil:
    """A bijection. The product moves no bit down, so that alone two changed signs would cancel."""
    word *= <uint64_t>0x9E3779B97F4A7C15
    return word ^ word >> 32


cdef uint64_t fingerprint(const char *data, size_t size) noexcept nogil:
    """A mark of the bytes: one changed word always changes it, many do but for a chance of 2^-64."""
    cdef uint64_t lane[4]
    cdef uint64_t word
    cdef size_t i, j
    for j in range(4):
        lane[j] = j + 1
    for i in range(size // 32):
        for j in range(4):
            memcpy(&word, data + 32 * i + 8 * j, 8)
            lane[j] = mixed(lane[j] ^ word)
    for i in range(size // 32 * 32, size):
        lane[0] = mixed(lane[0] ^ <unsigned char>data[i])
    return ((lane[0] * 3 + lane[1]) * 5 + lane[2]) * 7 + lane[3]


cdef class Weights:
    """Contiguous weights [output][channel][taps...], and what algorithms made of them: packed at most once for each instruction
    set and algorithm.

    Whoever changes the array calls `refresh` before the next use. Weights of the same array may share `packed`. All forms
    together take at most `limit` bytes.
    """

    def __init__(self, cnp.ndarray array, dict packed=None, Py_ssize_t limit=sys.maxsize):
        self.packed = {} if packed is None else packed
        self.limit = limit
        self.refresh(array)

    def __reduce__(self):
        return Weights, (self.array,)

    @property
    def nbytes(self):
        """Bytes of all packed forms."""
        return sum([form.nbytes for key, form in self.packed.items() if key != "source"])

    cdef object form(self, key, Py_ssize_t size, char **at, task_fn pack, void *job, Py_ssize_t tasks, size_t workspace,
                     int threads):
        """The `size` bytes at `at` that `tasks` of `pack` make: those of an earlier call, or made now and kept."""
        form = self.packed.get(key)
        if form is None:
            array, source = self.array, self.packed["source"]  # which another thread may replace meanwhile
            form = empty((size,), np.dtype(np.uint8))
            at[0] = address(form)
            run_tasks(pack, job, tasks, workspace, threads)
            if self.array is array and self.packed["source"] is source:
                self.keep(key, form)
        at[0] = address(form)
        return form

    cdef keep(self, key, cnp.ndarray form):
        """Keep a packed form; the oldest ones make room for it."""
        cdef Py_ssize_t size = cnp.PyArray_NBYTES(form)
        if size > self.limit:
            return
        for old in list(self.packed):
            if self.nbytes + size <= self.limit:
                break
            if old != "source":
                self.packed.pop(old, None)
        self.packed[key] = form

    def refresh(self, cnp.ndarray array):
        """Forget what was packed unless `array` has the bytes it was packed from."""
        mark = fingerprint(cnp.PyArray_BYTES(array), cnp.PyArray_NBYTES(array))
        source = (mark, (<object>array).shape, array.dtype)
        if self.packed.get("source") != source:
            self.packed.clear()
            self.packed["source"] = source
        self.array = array


cdef void panel_bounds(const Job *job, Py_ssize_t i, Py_ssize_t *start, Py_ssize_t *size,
                       Py_ssize_t *width) noexcept nogil:
    """Outputs [start, start + size) of panel i, and the width they are packed to."""
    cdef Py_ssize_t wider
    if job.multiple:
        start[0] = i * job.panel
        size[0] = min(job.panel, job.outputs - start[0])
        width[0] = (size[0] + job.multiple - 1) // job.multiple * job.multiple
    else:
        size[0] = job.outputs // job.panels
        wider = job.outputs - size[0] * job.panels
        start[0] = i * size[0] + min(i, wider)
        size[0] += i < wider
        width[0] = size[0]


cdef Py_ssize_t packed_width(const Job *job, Py_ssize_t i) noexcept nogil:
    """Columns of all panels before panel i."""
    cdef Py_ssize_t start, size, width
    if i < job.panels:
        panel_bounds(job, i, &start, &size, &width)
        return start
    panel_bounds(job, i - 1, &start, &size, &width)
    return start + width


cdef const char *packed_panel(const Job *job, Py_ssize_t group, Py_ssize_t start) noexcept nogil:
    """The packed panel that begins with output `start` of `group`."""
    cdef Py_ssize_t first = packed_width(job, job.panel0)
    return job.packed + (group - job.group0) * job.packed_group + (start - first) * job.column


cdef void pack_channels(const Job *job, Py_ssize_t group, Py_ssize_t panel, Py_ssize_t first, Py_ssize_t last,
                        char *workspace) noexcept nogil:
    """Channels [first, last) of one panel."""
    cdef Py_ssize_t start, size, width, c, t, i, item = job.itemsize
    cdef const char *w
    cdef char *to
    panel_bounds(job, panel, &start, &size, &width)
    to = <char *>packed_panel(job, group, start)
    w = job.w + (group * job.w_g + start * job.w_o + first * job.w_c) * item
    if job.order:
        to += first * job.taps * width * item
        if job.order > 0 and job.w_c == job.w_taps:
            job.kernels.transpose(to, width, w, job.w_o, size, (last - first) * job.taps, width)
            return
        if job.w_o == 1:  # a 1x1 kernel read transposed is in the order of the panel
            job.kernels.copy_rows(to, width, w, job.w_c, last - first, 0, size, width - size, 1)
            return
    for c in range(first, last):
        if job.order:
            job.kernels.transpose(to if job.order > 0 else to + (job.taps - 1) * width * item, job.order * width, w, job.w_o,
                                  size, job.taps, width)
            to += job.taps * width * item
        else:
            job.kernels.transpose(workspace, width, w, job.w_o, size, job.w_taps, width)
            for t in range(job.taps):
                i = packed_term(job, c, job.phase_tap[t], job.phase_taps[t]) + t - job.phase_tap[t]
                memcpy(to + i * width * item, workspace + job.tap_index[t] * width * item, width * item)
        w += job.w_c * item


cdef void pack_task(void *argument, Py_ssize_t task, char *workspace) noexcept nogil:
    """A panel or, where w has the outputs of a channel side by side, as large a share of the channels of all panels: w is
    read in its order."""
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t panels = job.panel1 - job.panel0, panel, c, last, block
    cdef Py_ssize_t group = job.group0 + task // panels
    task %= panels
    if job.w_c <= job.w_o:
        pack_channels(job, group, job.panel0 + task, 0, job.channels, workspace)
        return
    block = max(<Py_ssize_t>PACK_CHANNELS, PACK_BYTES // (job.w_c * job.itemsize))
    last = max(block, (job.channels + panels - 1) // panels)
    c = task * last
    last = min(job.channels, c + last)
    while c < last:
        for panel in range(job.panel0, job.panel1):
            pack_channels(job, group, panel, c, min(last, c + block), workspace)
        c += block


cdef void decode(const Job *job, Py_ssize_t task, Task *t) noexcept nogil:
    """Task number -> image, group, panels and block of outputs; blocks vary fastest, panel ranges slowest."""
    cdef Py_ssize_t i, at
    for i in range(2, -1, -1):
        at = task % job.blocks[i]
        task //= job.blocks[i]
        t.origin[i] = at * job.band.block[i]
        t.count[i] = min(job.band.block[i], job.axis[i].out - t.origin[i])
    t.n = task % job.batch
    task //= job.batch
    i = (job.group1 - job.group0 + job.group_step - 1) // job.group_step
    t.group = job.group0 + task % i * job.group_step
    t.groups = min(job.group_step, job.group1 - t.group)
    split_panels(job, task // i, &t.panel0, &t.panel1)


cdef void split_panels(const Job *job, Py_ssize_t split, Py_ssize_t *panel0, Py_ssize_t *panel1) noexcept nogil:
    """The panels [panel0, panel1) of one of job.splits ranges."""
    panel0[0] = job.panel0 + split * (job.panel1 - job.panel0) // job.splits
    panel1[0] = job.panel0 + (split + 1) * (job.panel1 - job.panel0) // job.splits


cdef const char *source_plane(const Job *job, const Task *t) noexcept nogil:
    return job.x + (t.n * job.x_n + t.group * job.channels * job.x_c) * job.itemsize


cdef Py_ssize_t tap_at(const Axis *axis, Py_ssize_t tap) noexcept nogil:
    """The pixel that a tap of output 0 reads; it may be padding."""
    return axis.offset[tap] + axis.inner_shift


cdef bint spans_vectors(const Axis *axis, Py_ssize_t first, Py_ssize_t last, Py_ssize_t out, Py_ssize_t lanes) noexcept nogil:
    """Whether of `out` pixels in vectors, from `first` to `last` of a row on, only those at its ends may lack lanes."""
    cdef Py_ssize_t whole = (out - 1) // lanes * lanes
    return whole == 0 or (-lanes <= first and whole + last <= axis.size)


cdef Py_ssize_t output_at(const Job *job, Py_ssize_t d, Py_ssize_t h, Py_ssize_t w) noexcept nogil:
    """Element of lattice output (d, h, w) in a plane of y."""
    cdef const Axis *axis = job.axis
    return (
        ((axis[0].y_start + d * axis[0].y_step) * axis[1].y_size
         + axis[1].y_start + h * axis[1].y_step) * axis[2].y_size
        + axis[2].y_start + w * axis[2].y_step
    )


cdef void activate_rows(const Job *job, char *y, Py_ssize_t outputs, Py_ssize_t rows, Py_ssize_t y_row,
                        Py_ssize_t cols) noexcept nogil:
    """Apply an activation that the tiles do not know to finished rows, y_row elements apart, while they are in the cache."""
    cdef Py_ssize_t o, i
    cdef char *row
    if job.activation < 0:
        return
    if y_row == cols:  # one stretch: short rows would be mostly tails
        cols *= rows
        rows = 1
    for o in range(outputs):
        for i in range(rows):
            row = y + (o * job.y_c + i * y_row) * job.itemsize
            job.kernels.act[job.activation](row, row, cols, False)


cdef void activate(const Job *job, const Task *t) noexcept nogil:
    """activate_rows of a finished block."""
    cdef Py_ssize_t start, size, width, last, d, at
    panel_bounds(job, t.panel0, &start, &size, &width)
    panel_bounds(job, t.panel1 - 1, &last, &size, &width)
    for d in range(t.count[0]):
        at = (t.n * job.y_n + (t.group * job.outputs + start) * job.y_c
              + output_at(job, t.origin[0] + d, t.origin[1], t.origin[2]))
        activate_rows(job, job.y + at * job.itemsize, last + size - start, t.count[1],
                      job.axis[1].y_step * job.axis[2].y_size, t.count[2])


cdef int start_job(Job *job, Lattice lattice, object x, object w, object y, Py_ssize_t groups,
                   bint transposed, object bias, object residual, int activation) except -1:
    """Fill in what does not depend on the algorithm.

    x, y: contiguous elements [n][channel][d][h][w], whatever their axes are; w: [group*output][channel][taps...] of the forward
    convolution, contiguous but for the distance of outputs, or Weights of that. With `transposed` the roles of its two
    channel axes are swapped: the input gradient.
    """
    cdef cnp.ndarray xa = x, wa = (<Weights>w).array if isinstance(w, Weights) else w, ya = y
    cdef Py_ssize_t x_channels, y_channels, w_row
    memset(job, 0, sizeof(Job))
    job.itemsize = cnp.PyArray_ITEMSIZE(xa)
    job.kernels = active_kernels(job.itemsize)
    for i in range(3):
        job.axis[i] = lattice.axis[i]
    job.taps = lattice.taps
    job.tap_index = lattice.tap_index
    job.phase_tap = lattice.phase_tap
    job.phase_taps = lattice.phase_taps
    job.groups = groups
    job.group_step = 1
    job.tasks = 2
    x_channels = cnp.PyArray_DIM(wa, 0) if transposed else cnp.PyArray_DIM(wa, 1) * groups
    y_channels = cnp.PyArray_DIM(wa, 1) * groups if transposed else cnp.PyArray_DIM(wa, 0)
    job.channels = x_channels // groups
    job.outputs = y_channels // groups
    job.x_c = job.axis[0].size * job.axis[1].size * job.axis[2].size
    job.x_n = job.x_c * x_channels
    job.y_c = job.axis[0].y_size * job.axis[1].y_size * job.axis[2].y_size
    job.y_n = job.y_c * y_channels
    # an input of size zero has outputs where it is padded, and then they tell the number of images
    job.batch = cnp.PyArray_SIZE(ya) // job.y_n if job.y_n else cnp.PyArray_SIZE(xa) // job.x_n
    job.w_taps = cnp.PyArray_SIZE(wa) // (cnp.PyArray_DIM(wa, 0) * cnp.PyArray_DIM(wa, 1))
    w_row = cnp.PyArray_STRIDE(wa, 0) // job.itemsize
    job.w_g = cnp.PyArray_DIM(wa, 0) // groups * w_row
    job.w_o = job.w_taps if transposed else w_row
    job.w_c = w_row if transposed else job.w_taps
    job.x, job.w, job.y = address(x), address(wa), address(y)
    job.bias, job.residual = address(bias), address(residual)
    job.relu = activation == 0
    job.activation = activation if activation > 0 else -1
    return 0


cdef bint has_zero_taps(const Job *job, object w, bint transposed):
    """Whether taps on padding may be left out: of an input gradient, whose sum has no such terms, and of finite weights, which
    make them zeros."""
    cdef cnp.ndarray array = (<Weights>w).array if isinstance(w, Weights) else w
    cdef Py_ssize_t i, outputs = cnp.PyArray_DIM(array, 0), row = cnp.PyArray_STRIDE(array, 0)
    if transposed:
        return True
    for i in range(outputs):
        if not job.kernels.finite(job.w + i * row, cnp.PyArray_SIZE(array) // outputs):
            return False
    return True


cdef void set_phase(const Job *job, Lattice lattice, Py_ssize_t tap, Phase *phase, Py_ssize_t *off):
    """Phase `lattice`, whose taps begin at `tap`, and the offsets of its taps in the job's band."""
    cdef const Axis *axis = lattice.axis
    cdef Py_ssize_t i, shift
    phase.tap = tap
    phase.taps = lattice.taps
    for i in range(3):
        phase.out[i] = axis[i].out
        phase.start[i] = axis[i].y_start
    band_offsets(axis, &job.band, off + tap)
    shift = axis[0].inner_shift - job.axis[0].inner_shift
    shift = shift * job.band.rows + axis[1].inner_shift - job.axis[1].inner_shift
    shift = shift * job.band.width + axis[2].inner_shift - job.axis[2].inner_shift
    for i in range(phase.taps):
        off[tap + i] += shift


cdef Py_ssize_t lag_of(const Axis *axis, const Py_ssize_t *off, Py_ssize_t x_row) noexcept:
    """`lag` of fc_pixel_sums for taps at `off` in a band whose rows are x_row apart, or 0."""
    cdef Py_ssize_t i, shift, lag = axis[2].taps if axis[0].taps == 1 and axis[1].taps > 1 else 0
    shift = off[lag] - off[0]
    for i in range(lag, axis[1].taps * axis[2].taps):
        if abs(shift) != x_row or off[i] - off[i - lag] != shift:
            return 0
    return lag


cdef int run_panels(Job *job, Py_ssize_t tasks, task_fn task, size_t workspace, int threads) except -1 nogil:
    """The tasks of the groups and panels that the job says, of which there are `tasks` for one step of groups."""
    cdef Py_ssize_t base = (job.group1 - job.group0 + job.group_step - 1) // job.group_step * tasks
    job.splits = 1
    if job.task_panels:
        job.splits = (job.panel1 - job.panel0 + job.task_panels - 1) // job.task_panels
    if base * job.splits < job.tasks * threads:
        job.splits = max(job.splits, min(job.panel1 - job.panel0, (job.tasks * threads + base - 1) // base))
    return run_tasks_nogil(task, job, base * job.splits, workspace, threads)


cdef int run_rounds(Job *job, object w, task_fn pack, size_t pack_workspace, size_t limit, Py_ssize_t tasks,
                    task_fn task, size_t workspace, int threads) except -1:
    """Pack as many weights as `limit` bytes hold, run all tasks on them, and so on to the last output; Weights are packed once.

    `tasks` is their number for one step of groups and all outputs; job.column the bytes of one packed output.
    """
    cdef size_t group_bytes = job.column * packed_width(job, job.panels)
    cdef Py_ssize_t groups_at_once = 1, panels_at_once = job.panels, i
    cdef char *all = NULL
    kept = None
    job.packed_group = group_bytes
    if isinstance(w, Weights):
        key = (<size_t>job.kernels, <size_t>pack, job.groups, job.w_g, job.column, job.panel, job.panels, job.multiple,
               job.order)
        job.group1, job.panel1 = job.groups, job.panels
        kept = (<Weights>w).form(key, group_bytes * job.groups, &job.packed, pack, job, job.groups * job.panels, pack_workspace,
                                 threads)
        all = job.packed
    if group_bytes <= limit:
        groups_at_once = max(1, min(job.groups, limit // max(group_bytes, 1)))
    else:
        panels_at_once = max(1, limit // (job.column * job.panel))
        if all == NULL:
            job.packed_group = job.column * panels_at_once * job.panel
    if all == NULL:
        job.packed = <char *>block_alloc(job.packed_group * groups_at_once)
        if job.packed == NULL:
            raise MemoryError(
                f"fastconv: no memory for {job.packed_group * groups_at_once} bytes of packed weights")
    try:
        with nogil:
            job.group0 = 0
            while job.group0 < job.groups:
                job.group1 = min(job.groups, job.group0 + groups_at_once)
                job.panel0 = 0
                while job.panel0 < job.panels:
                    job.panel1 = min(job.panels, job.panel0 + panels_at_once)
                    if all != NULL:
                        job.packed = all + job.group0 * group_bytes + packed_width(job, job.panel0) * job.column
                    else:
                        i = (job.group1 - job.group0) * (job.panel1 - job.panel0)
                        run_tasks_nogil(pack, job, i, pack_workspace,
                                        threads if job.packed_group * groups_at_once > PACK_SERIAL else 1)
                    run_panels(job, tasks, task, workspace, threads)
                    job.panel0 = job.panel1
                job.group0 = job.group1
    finally:
        if all == NULL:
            block_free(job.packed)
    return 0


cdef Py_ssize_t set_blocks(Job *job) noexcept:
    """Cut the outputs into blocks of job.band; their number over all images."""
    cdef Py_ssize_t i, blocks = job.batch
    for i in range(3):
        job.blocks[i] = (job.axis[i].out + job.band.block[i] - 1) // job.band.block[i]
        blocks *= job.blocks[i]
    return blocks


cdef int run_packed(Job *job, object w, task_fn task, Py_ssize_t tasks, size_t workspace, int threads) except -1:
    """run_rounds with weights packed as [phase][channel][tap][width]."""
    cdef Py_ssize_t i
    cdef bint forward = job.taps == job.w_taps == job.phase_taps[0], reverse = forward
    for i in range(job.taps):
        forward = forward and job.tap_index[i] == i
        reverse = reverse and job.tap_index[i] == job.taps - 1 - i
    job.order = 1 if forward else -1 if reverse else 0
    job.column = job.channels * job.taps * job.itemsize
    if not isinstance(w, Weights) and job.order > 0 and job.outputs == job.panel == 1 and job.w_c == job.w_taps:
        # w is packed as it is
        job.packed, job.packed_group = <char *>job.w, job.w_g * job.itemsize
        job.group0, job.group1, job.panel0, job.panel1 = 0, job.groups, 0, 1
        with nogil:
            return run_panels(job, tasks, task, workspace, threads)
    return run_rounds(job, w, pack_task, job.w_taps * job.panel * job.itemsize, PACKED_LIMIT, tasks, task,
                      workspace, threads)


cdef int run_job(Job *job, object w, task_fn task, size_t workspace, int threads) except -1:
    """run_packed over the blocks of job.band."""
    return run_packed(job, w, task, set_blocks(job), workspace, threads)


cdef size_t band_budget(object max_workspace) except? 0:
    """Bytes a band may take: what stays in L2 or near it, and never more than `max_workspace`."""
    cdef size_t budget = max(cache_bytes(2), <size_t>1 << 20)
    budget = min(budget, <size_t>BAND_LIMIT)
    if max_workspace is not None:
        budget = min(budget, <size_t>max_workspace)
    return budget
