# SPDX-License-Identifier: BSD-3-Clause
"""Direct convolution, vectorised over groups: depthwise layers, above all on small maps.

A vector holds one pixel of as many groups as it has lanes. The planes are transposed on their way to the band and back; in
between neither short rows nor strides cost anything. The phases of an input gradient write to one tile of the result, which
leaves in whole rows.

The weights are packed as if the groups were outputs and the outputs groups: [output][vector of groups][channel][tap][lane].
"""

from libc.stdint cimport INT32_MAX, int32_t
from libc.string cimport memset

from fastconv.kernels.correlate cimport (
    Job,
    Phase,
    Task,
    activate_rows,
    band_budget,
    decode,
    packed_panel,
    packed_term,
    panel_bounds,
    run_job,
    set_phase,
    spans_vectors,
    start_job,
    tap_at,
)
from fastconv.kernels.fastconv cimport fc_depthwise_store, fc_depthwise_sums, fc_plane_dots
from fastconv.kernels.lattice cimport (
    Axis,
    Lattice,
    band_layout,
    band_offsets,
    choose_block,
    source_at,
)
from fastconv.kernels.memory cimport address, block_alloc, block_free
from fastconv.kernels.team cimport run_tasks

cdef enum:
    CHAIN = 256   # terms summed in registers before the partial sums go to memory: constant, because the bits show it
    PIXELS = 784  # outputs of a block: its band and its tile share L2
    PLANE = 1 << 15  # pixels of the planes of a task
    SLICES = 16   # tasks worth having for a weight gradient: several for each of a few threads

cdef struct Depthwise:
    Job job  # the first member: tasks get its address. Its x_c and y_c lead from lane to lane
    Py_ssize_t x_plane, y_plane, y_outputs
    Phase *phases
    Py_ssize_t count
    Spread spread


cdef inline Py_ssize_t span_of(const Axis *axis, Py_ssize_t count) noexcept nogil:
    """Padded coordinates from the first to the last that the band of `count` outputs holds."""
    return (count + axis.shift_max - 1) * axis.step + axis.residue[axis.phases - 1] + 1


cdef inline Py_ssize_t inside(Py_ssize_t bound, Py_ssize_t origin, Py_ssize_t span) noexcept nogil:
    return min(max(bound - origin, 0), span)


cdef void set_band(Job *job, const Py_ssize_t *block) noexcept nogil:
    """The band of vectors of planes, and room for set_spread."""
    band_layout(job.axis, block, job.itemsize * job.kernels.lanes, &job.band)
    job.band.rows += 1
    job.band.channel += job.axis[0].phases * (block[0] + job.axis[0].shift_max) * job.band.width


cdef Py_ssize_t spread_size(const Job *job, Spread *spread) noexcept nogil:
    """Cells of the table, whose columns it chooses; more than any memory where padding or dilation reach too far for it."""
    cdef const Axis *w = &job.axis[2]
    cdef Py_ssize_t span = span_of(w, job.band.block[2]), rows = span_of(&job.axis[1], job.band.block[1])
    cdef Py_ssize_t most = <Py_ssize_t>1 << 56
    spread.first = 0
    spread.pitch = span
    spread.whole = False
    if job.band.block[2] == w.out and w.source == NULL and job.axis[1].source == NULL:
        spread.first = inside(w.inner_start, 0, span)
        spread.pitch = inside(w.inner_stop, 0, span) - spread.first
        spread.whole = spread.pitch == w.size
    if rows > most // max(<Py_ssize_t>1, spread.pitch) or job.band.channel > INT32_MAX // job.kernels.lanes:
        return most
    return rows * spread.pitch


cdef Py_ssize_t slot_of(const Axis *axis, Py_ssize_t slots, Py_ssize_t phase_size, Py_ssize_t q) noexcept nogil:
    """Where a band keeps padded coordinate q of an axis of `slots` a phase; -1: nowhere."""
    cdef Py_ssize_t i
    for i in range(axis.phases):
        if axis.residue[i] == q % axis.step:
            return i * phase_size + q // axis.step if q // axis.step < slots else -1
    return -1


cdef void set_spread(const Job *job, Spread *spread) noexcept nogil:
    """Cells that no output reads go to the row after those of a d."""
    cdef const Axis *h = &job.axis[1]
    cdef const Axis *w = &job.axis[2]
    cdef Py_ssize_t slots_h = job.band.block[1] + h.shift_max, lanes = job.kernels.lanes, i, j, row, at
    for i in range(span_of(h, job.band.block[1])):
        row = slot_of(h, slots_h, w.phases * slots_h, i)
        for j in range(spread.pitch):
            at = slot_of(w, job.band.width, slots_h * job.band.width, spread.first + j)
            if row < 0 or at < 0:
                at = (job.band.rows - 1) * job.band.width
            else:
                at += row * job.band.width
            spread.at[i * spread.pitch + j] = <int32_t>(at * lanes)


cdef void load_edge(const Job *job, const int32_t *at, const char *row, Py_ssize_t x_lane, Py_ssize_t q, Py_ssize_t cols,
                    Py_ssize_t planes, char *to) noexcept nogil:
    """Padded columns from q on that are copies of others."""
    cdef Py_ssize_t i, source
    for i in range(cols):
        source = source_at(&job.axis[2], q + i)
        if source >= 0:
            job.kernels.depthwise_load(to, at + i, row + source * job.itemsize, x_lane, 1, planes)


cdef void load_plane(const Job *job, const Spread *spread, const Task *t, const char *x, Py_ssize_t x_lane,
                     Py_ssize_t planes, char *to) noexcept nogil:
    """One d of a block of `planes` planes, x_lane elements apart. The zeros around it are there."""
    cdef const Axis *h = &job.axis[1]
    cdef const Axis *w = &job.axis[2]
    cdef Py_ssize_t q_h = t.origin[1] * h.step, q_w = t.origin[2] * w.step, rows = span_of(h, t.count[1])
    cdef Py_ssize_t cols = span_of(w, t.count[2]), item = job.itemsize, i = 0, n, source
    cdef Py_ssize_t left = inside(w.inner_start, q_w, cols), right = inside(w.inner_stop, q_w, cols)
    cdef const int32_t *at
    cdef const char *row
    while i < rows:
        source = source_at(h, q_h + i)
        n = 1
        if source >= 0:
            at = spread.at + i * spread.pitch - spread.first
            row = x + source * w.size * item
            if spread.whole:
                n = inside(h.inner_stop, q_h, rows) - i
            if right > left:
                job.kernels.depthwise_load(to, at + left, row + (q_w + left + w.inner_shift) * item, x_lane,
                                           n * (right - left), planes)
            if w.source != NULL:
                load_edge(job, at, row, x_lane, q_w, left, planes, to)
                right = max(left, right)
                load_edge(job, at + right, row, x_lane, q_w + right, cols - right, planes, to)
        i += n


cdef void load_band(const Job *job, const Spread *spread, const Task *t, const char *x, Py_ssize_t x_plane,
                    Py_ssize_t x_lane, Py_ssize_t planes, char *to) noexcept nogil:
    """lattice.fill_band for a vector of planes, x_lane elements apart; channels are x_plane apart."""
    cdef const Axis *depth = &job.axis[0]
    cdef Py_ssize_t c, phase, d, source, item = job.itemsize
    cdef Py_ssize_t pitch = job.band.rows * job.band.width, slots = job.band.block[0] + depth.shift_max
    for c in range(job.channels):
        for phase in range(depth.phases):
            for d in range(t.count[0] + depth.shift_max):
                source = source_at(depth, depth.residue[phase] + (t.origin[0] + d) * depth.step)
                if source >= 0:
                    load_plane(job, spread, t,
                               x + (c * x_plane + source * job.axis[1].size * job.axis[2].size) * item, x_lane, planes,
                               to + (c * job.band.channel + (phase * slots + d) * pitch) * job.kernels.lanes * item)


cdef void sum_phase(const Depthwise *dw, const Task *t, const Phase *phase, const Py_ssize_t *tile, const char *weights,
                    const char *band, char *sums) noexcept nogil:
    """The outputs of one phase, to their places in the tile."""
    cdef const Job *job = &dw.job
    cdef const Axis *axis = job.axis
    cdef fc_depthwise_sums s
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes, chain, c, d, i
    cdef Py_ssize_t count[3]
    for i in range(3):
        count[i] = min(t.count[i], phase.out[i] - t.origin[i])
        if count[i] <= 0:
            return
    s.off = job.off + phase.tap
    s.taps = phase.taps
    s.x_c = job.band.channel * lanes
    s.x_row = job.band.width * lanes
    s.rows = count[1]
    s.cols = count[2]
    s.s_row = axis[1].y_step * tile[2] * lanes
    s.s_px = axis[2].y_step * lanes
    chain = max(1, CHAIN // max(1, phase.taps))
    for d in range(count[0]):
        i = (phase.start[0] + d * axis[0].y_step) * tile[1] + phase.start[1]
        s.sums = sums + (i * tile[2] + phase.start[2]) * lanes * item
        c = 0
        while c < job.channels:
            s.channels = min(chain, job.channels - c)
            s.add = c > 0
            s.a = weights + packed_term(job, c, phase.tap, phase.taps) * lanes * item
            s.x = band + (c * job.band.channel + d * job.band.rows * job.band.width) * lanes * item
            job.kernels.depthwise_sums(&s)
            c += chain


cdef void store_tile(const Job *job, const Task *t, const Py_ssize_t *tile, Py_ssize_t plane, const char *bias,
                     Py_ssize_t bias_plane, Py_ssize_t planes, const char *sums) noexcept nogil:
    """The tile of a block to `planes` planes from element `plane` of y on, job.y_c elements apart."""
    cdef const Axis *axis = job.axis
    cdef fc_depthwise_store s
    cdef Py_ssize_t item = job.itemsize, rows = tile[1], d, r, at
    s.planes = planes
    s.y_plane = job.y_c
    s.bias = bias
    s.bias_plane = bias_plane
    s.relu = job.relu
    s.pixels = tile[2]
    if tile[2] == axis[2].y_size:  # the rows are one
        s.pixels *= rows
        rows = 1
    for d in range(tile[0]):
        for r in range(rows):
            at = ((t.origin[0] * axis[0].y_step + d) * axis[1].y_size + t.origin[1] * axis[1].y_step + r) * axis[2].y_size
            at += plane + t.origin[2] * axis[2].y_step
            s.sums = sums + (d * tile[1] + r) * tile[2] * job.kernels.lanes * item
            s.y = job.y + at * item
            s.residual = NULL if job.residual == NULL else job.residual + at * item
            job.kernels.depthwise_store(&s)
            activate_rows(job, <char *>s.y, planes, 1, 0, s.pixels)


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Depthwise *dw = <const Depthwise *>argument
    cdef const Job *job = &dw.job
    cdef Task t
    cdef Py_ssize_t group, stop, planes, width, output, i, size = job.itemsize * job.kernels.lanes
    cdef Py_ssize_t tile[3]
    cdef const char *x
    cdef const char *bias
    cdef const char *weights
    decode(job, number, &t)
    for i in range(3):
        tile[i] = min(t.count[i] * job.axis[i].y_step, job.axis[i].y_size - t.origin[i] * job.axis[i].y_step)
        size *= tile[i]
    # every vector of planes leaves the same cells zero: padding, and pixels of a gradient that no tap reaches
    memset(workspace, 0, job.band_bytes + size)
    panel_bounds(job, t.panel0, &group, &planes, &width)
    stop = min(job.outputs, group + (t.panel1 - t.panel0) * job.panel)
    weights = packed_panel(job, t.group, group)
    while group < stop:
        planes = min(job.panel, job.outputs - group)
        x = job.x + (t.n * job.x_n + group * job.x_c) * job.itemsize
        load_band(job, &dw.spread, &t, x, dw.x_plane, job.x_c, planes, workspace)
        for i in range(dw.count):
            sum_phase(dw, &t, dw.phases + i, tile, weights, workspace, workspace + job.band_bytes)
        output = group * dw.y_outputs + t.group
        bias = NULL if job.bias == NULL else job.bias + output * job.itemsize
        store_tile(job, &t, tile, t.n * job.y_n + output * dw.y_plane, bias, dw.y_outputs, planes, workspace + job.band_bytes)
        group += job.panel
        weights += job.panel * job.column


cdef void swap_groups(Job *job, Py_ssize_t *x_plane, Py_ssize_t *y_plane) noexcept nogil:
    """Groups become outputs, which are packed in whole vectors, and outputs become groups."""
    cdef Py_ssize_t outputs = job.outputs
    x_plane[0] = job.x_c
    y_plane[0] = job.y_c
    job.x_c *= job.channels
    job.y_c *= outputs
    job.outputs = job.groups
    job.groups = outputs
    job.w_g, job.w_o = job.w_o, job.w_g
    job.panel = job.multiple = job.kernels.lanes
    job.panels = (job.outputs + job.panel - 1) // job.panel


def run(Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Depthwise dw
    cdef Job *job = &dw.job
    cdef Lattice phase
    cdef tuple phases = lattice.phases or (lattice,)
    cdef Py_ssize_t workspace, cells, tap = 0, i
    cdef Py_ssize_t block[3]
    cdef char *tables
    start_job(job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    dw.y_outputs = job.outputs
    swap_groups(job, &dw.x_plane, &dw.y_plane)
    workspace = job.itemsize * job.kernels.lanes  # of one pixel
    i = job.axis[0].y_step * job.axis[1].y_step * job.axis[2].y_step
    choose_block(job.axis, job.channels, workspace, band_budget(max_workspace), max(1, PIXELS // i), block)
    set_band(job, block)
    job.band_bytes = (job.band.channel * job.channels * workspace + 63) // 64 * 64
    for i in range(3):
        workspace *= min(block[i] * job.axis[i].y_step, job.axis[i].y_size)
    workspace += job.band_bytes
    if threads == 0:
        return workspace
    dw.count = len(phases)
    cells = spread_size(job, &dw.spread)
    tables = <char *>block_alloc(
        job.taps * sizeof(Py_ssize_t) + dw.count * sizeof(Phase) + cells * sizeof(int32_t))
    if tables == NULL:
        raise MemoryError("fastconv: no memory for the tap offsets")
    try:
        job.off = <Py_ssize_t *>tables
        dw.phases = <Phase *>(tables + job.taps * sizeof(Py_ssize_t))
        dw.spread.at = <int32_t *>(dw.phases + dw.count)
        set_spread(job, &dw.spread)
        i = 0
        for phase in phases:
            set_phase(job, phase, tap, dw.phases + i, <Py_ssize_t *>tables)
            tap += phase.taps
            i += 1
        for i in range(job.taps):
            (<Py_ssize_t *>tables)[i] *= job.kernels.lanes
        run_job(job, w, task, workspace, threads)
    finally:
        block_free(tables)
    return workspace


# --------------------------------------------------------------------------------------------------------- weight gradient

cdef struct Gradient:
    Depthwise depthwise    # of x with dy as the weights, over the lattice of Conv.weight_gradient_lattice; y is dw
    const char *dy
    Py_ssize_t slices      # of the images: their sums are added in order
    const int32_t *at      # at[pixel of dy], in its transposed copy
    char *sums             # sums[panel][slice][tap][lane]
    size_t sums_bytes      # of one slice
    size_t x_bytes


cdef void slice_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """dw of the images of one slice, of a vector of groups."""
    cdef const Gradient *g = <const Gradient *>argument
    cdef const Depthwise *dw = &g.depthwise
    cdef const Job *job = &dw.job
    cdef fc_depthwise_sums s
    cdef Task t
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes, group = number // g.slices * lanes
    cdef Py_ssize_t slice = number % g.slices, planes = min(lanes, job.groups - group), n, d, i, first
    cdef char *dy = workspace + g.x_bytes
    cdef char *sums = g.sums + number * g.sums_bytes
    for i in range(3):
        t.origin[i] = 0
        t.count[i] = job.axis[i].out
    s.s_px = lanes
    s.s_row = t.count[2] * lanes
    s.rows = t.count[1]
    s.cols = t.count[2]
    s.x_row = job.band.width * lanes
    s.channels = 1
    s.x_c = 0
    memset(workspace, 0, g.x_bytes)
    memset(sums, 0, g.sums_bytes)
    s.add = True
    first = slice * job.batch // g.slices
    for n in range(first, (slice + 1) * job.batch // g.slices):
        load_band(job, &dw.spread, &t, job.x + (n * job.x_n + group * job.x_c) * item, 0, job.x_c, planes, workspace)
        job.kernels.depthwise_load(dy, g.at, g.dy + (n * job.groups + group) * job.taps * item, job.taps, job.taps, planes)
        i = 0
        while i < job.taps:
            s.taps = min(<Py_ssize_t>CHAIN, job.taps - i)
            s.off = job.off + i
            s.a = dy + i * lanes * item
            for d in range(t.count[0]):
                s.x = workspace + d * job.band.rows * s.x_row * item
                s.sums = sums + d * s.rows * s.s_row * item
                job.kernels.depthwise_sums(&s)
            i += s.taps


cdef void reduce_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """Add the slices in order and write dw of a vector of groups."""
    cdef const Gradient *g = <const Gradient *>argument
    cdef const Job *job = &g.depthwise.job
    cdef fc_depthwise_store s
    cdef Py_ssize_t i, group = number * job.kernels.lanes
    cdef char *sums = g.sums + number * g.slices * g.sums_bytes
    for i in range(1, g.slices):
        job.kernels.add(sums, sums + i * g.sums_bytes, g.sums_bytes // job.itemsize)
    s.sums = sums
    s.y = job.y + group * job.y_c * job.itemsize
    s.bias = s.residual = NULL
    s.pixels = s.y_plane = job.y_c
    s.planes = min(<Py_ssize_t>job.kernels.lanes, job.groups - group)
    s.bias_plane = s.relu = 0
    job.kernels.depthwise_store(&s)


cdef struct Dots:
    Job job                # the first member: tasks get its address
    const char *dy
    Py_ssize_t slices      # of the images: their sums are added in order
    Py_ssize_t step        # groups of a task
    char *sums             # sums[slice][group][tap][lane]
    size_t slice_bytes


cdef bint are_planes(const Job *job):
    """Whether plane_dots can run it, and fills vectors: a 3x3 kernel without a stride, whose columns may be apart."""
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t i, j
    for i in range(3):
        if axis[i].source != NULL or axis[i].out != (1 if i == 0 else 3):
            return False
        for j in range(1, axis[i].taps):
            if axis[i].offset[j] - axis[i].offset[j - 1] != 1:
                return False
    return (axis[0].taps == axis[0].size == axis[1].step == 1 and tap_at(axis, 0) == 0 and axis[2].taps > job.kernels.lanes
            and spans_vectors(&axis[2], tap_at(&axis[2], 0), tap_at(&axis[2], 0) + 2 * axis[2].step, axis[2].taps,
                              job.kernels.lanes))


cdef void dots_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """The sums of some groups, of the images of one slice."""
    cdef const Dots *dots = <const Dots *>argument
    cdef const Job *job = &dots.job
    cdef fc_plane_dots t
    cdef Py_ssize_t item = job.itemsize, group = number // dots.slices * dots.step, slice = number % dots.slices, i
    cdef Py_ssize_t sums = 9 * job.kernels.lanes * item  # of a group
    cdef Py_ssize_t[3] off
    memset(workspace, 0, job.axis[2].size * item)
    t.zeros = workspace
    t.off = off
    for i in range(3):
        off[i] = tap_at(&job.axis[2], 0) + i * job.axis[2].step
    t.planes = min(dots.step, job.groups - group)
    t.x_plane = job.x_c
    t.dy_plane = job.taps
    t.x_row = t.in_cols = job.axis[2].size
    t.in_rows = job.axis[1].size
    t.top = tap_at(&job.axis[1], 0)
    t.rows = job.axis[1].taps
    t.cols = job.axis[2].taps
    t.sums = dots.sums + slice * dots.slice_bytes + group * sums
    memset(t.sums, 0, t.planes * sums)
    for i in range(slice * job.batch // dots.slices, (slice + 1) * job.batch // dots.slices):
        t.x = job.x + (i * job.x_n + group * job.x_c) * item
        t.dy = dots.dy + (i * job.groups + group) * job.taps * item
        job.kernels.plane_dots(&t)


cdef Py_ssize_t plane_gradient(Dots *dots, int threads) except -1:
    cdef Job *job = &dots.job
    cdef Py_ssize_t workspace = job.axis[2].size * job.itemsize, i
    if threads == 0:
        return workspace
    dots.slices = max(1, min(job.batch, SLICES // job.groups))
    dots.step = max(1, min(PLANE // job.taps, job.groups // (4 * threads)))
    dots.slice_bytes = job.groups * 9 * job.kernels.lanes * job.itemsize
    dots.sums = <char *>block_alloc(dots.slices * dots.slice_bytes)
    if dots.sums == NULL:
        raise MemoryError(f"fastconv: no memory for {dots.slices * dots.slice_bytes} bytes of partial sums")
    try:
        run_tasks(dots_task, dots, (job.groups + dots.step - 1) // dots.step * dots.slices, workspace, threads)
        for i in range(1, dots.slices):
            job.kernels.add(dots.sums, dots.sums + i * dots.slice_bytes, dots.slice_bytes // job.itemsize)
        job.kernels.sum_lanes(job.y, dots.sums, job.groups * 9)
    finally:
        block_free(dots.sums)
    return workspace


def weight_gradient(Lattice lattice, x, dw, dy, Py_ssize_t groups, int threads, max_workspace):
    """dw[group][1][tap] of a depthwise convolution: x with dy over its weight_gradient_lattice, summed over images."""
    cdef Gradient g
    cdef Dots dots
    cdef Job *job = &g.depthwise.job
    cdef Py_ssize_t vectors, vector, cells, i
    cdef Py_ssize_t block[3]
    cdef Py_ssize_t *off
    cdef int32_t *at
    cdef size_t workspace
    start_job(job, lattice, x, dw, dw, groups, False, None, None, -1)
    g.dy = address(dy)
    vector = job.itemsize * job.kernels.lanes
    vectors = (groups + job.kernels.lanes - 1) // job.kernels.lanes
    job.batch = x.shape[0]
    if are_planes(job):
        dots.job, dots.dy = job[0], g.dy
        return plane_gradient(&dots, threads)
    for i in range(3):
        block[i] = job.axis[i].out
    set_band(job, block)
    g.x_bytes = (job.band.channel * vector + 63) // 64 * 64
    g.slices = max(1, min(job.batch, SLICES // vectors))
    g.sums_bytes = (job.y_c * vector + 63) // 64 * 64
    workspace = g.x_bytes + job.taps * vector
    if threads == 0:
        return workspace
    cells = spread_size(job, &g.depthwise.spread)
    off = <Py_ssize_t *>block_alloc(job.taps * sizeof(Py_ssize_t) + (cells + job.taps) * sizeof(int32_t))
    g.sums = <char *>block_alloc(vectors * g.slices * g.sums_bytes)
    try:
        if off == NULL or g.sums == NULL:
            raise MemoryError(
                f"fastconv: no memory for {vectors * g.slices * g.sums_bytes} bytes of partial sums")
        band_offsets(job.axis, &job.band, off)
        job.off = off
        at = <int32_t *>(off + job.taps)
        g.at = at
        g.depthwise.spread.at = at + job.taps
        set_spread(job, &g.depthwise.spread)
        for i in range(job.taps):
            off[i] *= job.kernels.lanes
            at[i] = <int32_t>(i * job.kernels.lanes)
        run_tasks(slice_task, &g, vectors * g.slices, workspace, threads)
        run_tasks(reduce_task, &g, vectors, 0, threads)
    finally:
        block_free(off)
        block_free(g.sums)
    return workspace
