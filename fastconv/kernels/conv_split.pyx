# SPDX-License-Identifier: BSD-3-Clause
"""Convolution of floats as products of their bfloat16 parts, on tile registers; see csrc/body/split.h.

A task owns one block of output pixels of one image and group. It splits the block's band once, to rows of 32 channels for each
pixel, so that any 16 neighbouring pixels are a tile, whatever the tap; then for each panel of output channels and each block of
channels runs the tiles along the band. The rows of a block are one long row where that takes fewer tiles: the sums between the
rows proper are thrown away. A 1x1 kernel of stride 1 without padding is a matrix product instead, of the weights with the
pixels, which are split where they lie, channels in pairs: its sums come out as planes.

Tile products count denormals as zero, and the parts of very large and very small floats are no longer exact. Two guards find
the calls that this may touch, and the direct kernel does those again: a sum that is not finite, and a pair of the least input
and the least weight (but zero) whose lowest parts might be lost.
"""

cimport numpy as cnp
from libc.stdint cimport uint32_t
from libc.string cimport memset

from fastconv.kernels.correlate cimport (
    Job,
    Task,
    activate,
    band_budget,
    count_rerun,
    decode,
    output_at,
    packed_panel,
    panel_bounds,
    run_rounds,
    set_blocks,
    source_plane,
    start_job,
)
from fastconv.kernels.fastconv cimport FC_FIRST, fc_pixel_store, fc_split_kernels, fc_split_tile
from fastconv.kernels.isa cimport active_split
from fastconv.kernels.lattice cimport (
    Axis,
    Lattice,
    band_layout,
    band_offsets,
    choose_block,
    fill_band,
)
from fastconv.kernels.memory cimport block_alloc, block_free
from fastconv.kernels.split cimport (
    NOTHING,
    SIDE,
    TERMS,
    Operand,
    lost,
    parts_of,
    split_a,
    split_b,
    whole,
)

from fastconv.kernels import conv_direct

cnp.import_array()

cdef enum:
    PANEL = 2 * SIDE  # output channels, and pixels, of a tile kernel
    # (channel block, tap) steps summed in tiles before the partial sums go to memory: three blocks of 3x3 kernels, whose
    # weights (162 KiB with three parts) and pixels stay in L2. A constant, because it shows in the bits.
    STEPS = 27
    PIXELS = 784     # outputs of a block
    CHUNK = 64       # pixels converted at a time: 8 KiB of floats, in L1
    PACKED_LIMIT = 24 << 20

cdef struct Split:
    Job job                     # first: tasks get a pointer to it
    const fc_split_kernels *kernels
    int products, parts, failed
    bint pointwise              # a 1x1 kernel of stride 1 without padding
    Py_ssize_t blocks           # of TERMS channels
    Py_ssize_t used, positions  # pixels of a band, and with those that the last tile reads beyond
    Py_ssize_t sums_m           # elements from output to output of the sums
    size_t planes_bytes, acc_bytes


cdef Operand operand_of(const Split *g, Py_ssize_t row, Py_ssize_t col) noexcept nogil:
    cdef Operand operand
    operand.kernels = g.job.kernels
    operand.split = g.kernels
    operand.parts = g.parts
    operand.row = row
    operand.col = col
    return operand


cdef void set_least(const Job *job, char *panel, Py_ssize_t width, uint32_t least) noexcept nogil:
    """Keep the least magnitude of a packed panel in what job.column has room for."""
    (<uint32_t *>(panel + (<Py_ssize_t>job.column - 4) * width))[0] = least


cdef uint32_t get_least(const Job *job, const char *panel, Py_ssize_t width) noexcept nogil:
    return (<const uint32_t *>(panel + (<Py_ssize_t>job.column - 4) * width))[0]


cdef char *find_panel(const Job *job, Py_ssize_t task, Py_ssize_t *size, Py_ssize_t *width,
                      const char **w) noexcept nogil:
    """Where a task packs its panel of `size` outputs, and from where."""
    cdef Py_ssize_t panels = job.panel1 - job.panel0, group = job.group0 + task // panels, start
    panel_bounds(job, job.panel0 + task % panels, &start, size, width)
    w[0] = job.w + (group * job.w_g + start * job.w_o) * 4
    return <char *>packed_panel(job, group, start)


cdef void pack_pointwise(void *argument, Py_ssize_t task, char *workspace) noexcept nogil:
    """One panel as [channel block][part][width][TERMS], and the least magnitude of its weights."""
    cdef const Split *g = <const Split *>argument
    cdef Py_ssize_t size, width
    cdef const char *w
    cdef char *to = find_panel(&g.job, task, &size, &width, &w)
    cdef Operand operand = operand_of(g, g.job.w_o, g.job.w_c)
    set_least(&g.job, to, width, split_a(&operand, w, size, g.job.channels, workspace, to))


cdef void pack_task(void *argument, Py_ssize_t task, char *workspace) noexcept nogil:
    """One panel as [channel block][tap][part][pair of channels][width][2], and the least magnitude of its weights."""
    cdef const Split *g = <const Split *>argument
    cdef const Job *job = &g.job
    cdef Py_ssize_t size, width, c, i, t
    cdef uint32_t least = NOTHING
    cdef const char *w
    cdef const float *even
    cdef const float *odd
    cdef char *at
    cdef char *to = find_panel(job, task, &size, &width, &w)
    for c in range(0, g.blocks * TERMS, 2):
        for i in range(min(<Py_ssize_t>2, job.channels - c)):
            job.kernels.transpose(workspace + i * job.w_taps * width * 4, width, w + (c + i) * job.w_c * 4, job.w_o, size,
                                  job.w_taps, width)
        for t in range(job.taps):
            at = to + 2 * width * ((c // TERMS * job.taps + t) * g.parts * TERMS + c % TERMS)
            if c >= job.channels:
                for i in range(g.parts):
                    memset(at + i * 2 * width * TERMS, 0, 4 * width)
                continue
            even = <const float *>workspace + job.tap_index[t] * width
            odd = NULL if c + 1 == job.channels else even + job.w_taps * width
            least = min(least, g.kernels.pairs(at, TERMS * width, even, odd, width, g.parts))
    set_least(job, to, width, least)


cdef uint32_t split_band(const Split *g, const Task *t, char *planes, char *band) noexcept nogil:
    """planes[channel block][part][pixel][TERMS] of a task's band; the least magnitude in it."""
    cdef const Job *job = &g.job
    cdef Py_ssize_t b, p, pixels, channels
    cdef uint32_t least = NOTHING
    cdef char *chunk = band + job.band.channel * TERMS * 4
    for b in range(3):
        if t.count[b] < job.band.block[b]:  # what fill_band leaves out
            memset(band, 0, job.band.channel * TERMS * 4)
    for b in range(g.blocks):
        channels = min(<Py_ssize_t>TERMS, job.channels - b * TERMS)
        fill_band(job.axis, &job.band, 4, t.origin, t.count, source_plane(job, t) + b * TERMS * job.x_c * 4, job.x_c,
                  channels, band)
        p = 0
        while p < g.used:
            pixels = min(<Py_ssize_t>CHUNK, g.used - p)
            job.kernels.transpose(chunk, TERMS, band + p * 4, job.band.channel, channels, pixels, TERMS)
            least = min(least, g.kernels.rows(planes + 2 * TERMS * p, g.positions * TERMS, <const float *>chunk,
                                              pixels * TERMS, g.parts))
            p += CHUNK
        planes += 2 * TERMS * g.positions * g.parts
    return least


cdef bint finite(const Split *g, const fc_pixel_store *store) noexcept nogil:
    cdef Py_ssize_t m, r
    for m in range(store.outputs):
        for r in range(store.rows):
            if not g.job.kernels.finite(<const float *>store.sums + m * store.s_m + r * store.s_row, store.cols):
                return False
    return True


cdef void sum_panel(const Split *g, const Task *t, const char *weights, Py_ssize_t width, Py_ssize_t d, const char *planes,
                    char *acc, fc_pixel_store *store) noexcept nogil:
    """store.sums[output][pixel] of a panel of `width` outputs, for one d of a block."""
    cdef const Job *job = &g.job
    cdef fc_split_tile tile
    cdef Py_ssize_t rows = t.count[1], run = t.count[2], pitch = whole(run), c = 0, r, first, at
    cdef Py_ssize_t joined = (rows - 1) * job.band.width + run
    store.s_row = pitch
    if whole(joined) <= rows * pitch:
        rows = 1
        run = joined
        store.s_row = job.band.width
        pitch = whole(run)
    tile.off = job.off
    tile.taps = job.taps
    tile.a_part = g.positions * TERMS
    tile.a_tile = SIDE * TERMS
    tile.a_row = TERMS
    tile.a_c = tile.a_part * g.parts
    tile.b_part = TERMS * width
    tile.b_tile = 2 * SIDE
    tile.b_row = 2 * width
    tile.b_k = tile.b_part * g.parts
    tile.acc_row = width
    while c < g.blocks:
        tile.channels = min(job.channel_block, g.blocks - c)
        tile.flags = FC_FIRST if c == 0 else 0
        tile.b = weights + 2 * tile.b_k * job.taps * c
        for r in range(rows):
            first = 0
            while first < run:
                at = (d * job.band.rows + r) * job.band.width + first
                tile.a = planes + 2 * (c * tile.a_c + at * TERMS)
                tile.acc = acc + 4 * width * (r * pitch + first)
                g.kernels.tile[g.products][1 if run - first <= SIDE else 2][width // SIDE](&tile)
                first += 2 * SIDE
        c += job.channel_block
    job.kernels.transpose(<char *>store.sums, store.s_m, acc, width, rows * pitch, store.outputs, rows * pitch)


cdef void sum_pointwise(const Split *g, Py_ssize_t pixels, const char *weights, Py_ssize_t width, const char *planes,
                        char *sums) noexcept nogil:
    """sums[output][whole(pixels)] of a panel of `width` outputs, for all pixels of a block."""
    cdef const Job *job = &g.job
    cdef fc_split_tile tile
    cdef Py_ssize_t zero = 0, c = 0, first
    tile.off = &zero
    tile.taps = 1
    tile.a_part = width * TERMS
    tile.a_tile = SIDE * TERMS
    tile.a_row = TERMS
    tile.a_c = tile.a_part * g.parts
    tile.b_row = 2 * whole(pixels)
    tile.b_part = SIDE * tile.b_row
    tile.b_tile = 2 * SIDE
    tile.b_k = tile.b_part * g.parts
    tile.acc_row = whole(pixels)
    while c < g.blocks:
        tile.channels = min(job.channel_block, g.blocks - c)
        tile.flags = FC_FIRST if c == 0 else 0
        tile.a = weights + 2 * c * tile.a_c
        first = 0
        while first < pixels:
            tile.b = planes + 2 * (c * tile.b_k + 2 * first)
            tile.acc = sums + 4 * first
            g.kernels.tile[g.products][width // SIDE][1 if pixels - first <= SIDE else 2](&tile)
            first += 2 * SIDE
        c += job.channel_block


cdef bint run_panel(const Split *g, const Task *t, Py_ssize_t panel, const char *planes, char *acc,
                    uint32_t least) noexcept nogil:
    """One panel of outputs of a task; False when the direct kernel must do it."""
    cdef const Job *job = &g.job
    cdef fc_pixel_store store
    cdef Py_ssize_t start, size, width, d, at, pixels = t.count[1] * t.count[2]
    cdef const char *weights
    panel_bounds(job, panel, &start, &size, &width)
    weights = packed_panel(job, t.group, start)
    if lost(g.parts, least, get_least(job, weights, width)):
        return False
    store.sums = acc + g.acc_bytes
    store.s_m = g.sums_m
    store.s_row = t.count[2]
    store.odd = NULL
    store.rows = t.count[1]
    store.cols = t.count[2]
    store.outputs = <int>size
    store.y_m = job.y_c
    store.y_row = job.axis[1].y_step * job.axis[2].y_size
    store.y_px = job.axis[2].y_step
    store.relu = job.relu
    start += t.group * job.outputs
    store.bias = NULL if job.bias == NULL else job.bias + start * 4
    if g.pointwise:
        store.s_m = whole(t.count[0] * pixels)
        sum_pointwise(g, t.count[0] * pixels, weights, width, planes, <char *>store.sums)
    for d in range(t.count[0]):
        if g.pointwise:
            store.sums = acc + g.acc_bytes + 4 * d * pixels
        else:
            sum_panel(g, t, weights, width, d, planes, acc, &store)
        if not finite(g, &store):
            return False
        at = t.n * job.y_n + start * job.y_c + output_at(job, t.origin[0] + d, t.origin[1], t.origin[2])
        store.y = job.y + at * 4
        store.residual = NULL if job.residual == NULL else job.residual + at * 4
        job.kernels.pixel_store(&store)
    return True


cdef uint32_t split_input(const Split *g, const Task *t, char *workspace) noexcept nogil:
    """What sum_panel or sum_pointwise needs of a task's input; the least magnitude in it."""
    cdef const Job *job = &g.job
    cdef const Axis *axis = job.axis
    cdef Operand operand
    cdef Py_ssize_t at
    if not g.pointwise:
        return split_band(g, t, workspace, workspace + g.planes_bytes)
    operand = operand_of(g, 1, job.x_c)
    at = (t.origin[0] * axis[1].size + t.origin[1]) * axis[2].size + t.origin[2]
    return split_b(&operand, source_plane(job, t) + 4 * at, t.count[0] * t.count[1] * t.count[2], job.channels, NULL,
                   workspace)


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef Split *g = <Split *>argument
    cdef Job *job = &g.job
    cdef Task t
    cdef Py_ssize_t panel
    cdef uint32_t least
    if g.failed:
        return  # the direct kernel will do it all again
    decode(job, number, &t)
    least = split_input(g, &t, workspace)
    g.kernels.begin()
    for panel in range(t.panel0, t.panel1):
        if not run_panel(g, &t, panel, workspace, workspace + g.planes_bytes, least):
            g.failed = True
            break
    g.kernels.end()
    activate(job, &t)


cdef bint is_pointwise(const Job *job) noexcept:
    """Whether every output reads the one input at its own place, and the weights are a matrix."""
    cdef const Axis *axis
    if job.w_taps != 1:  # one tap of several, as in the gradient of a strided convolution, is not
        return False
    for i in range(3):
        axis = &job.axis[i]
        if axis.step != 1 or axis.out != axis.size or axis.offset[0] != 0:
            return False
        if axis.inner_start != 0 or axis.inner_shift != 0 or axis.inner_stop < axis.out:
            return False
    return True


def run(int products, Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    `products` is 1, 3 or 6. Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Split g
    cdef Job *job = &g.job
    cdef Py_ssize_t *off
    cdef Py_ssize_t most, workspace, tasks
    cdef Py_ssize_t block[3]
    g.kernels = active_split()
    g.products, g.parts, g.failed = products, parts_of(products), False
    start_job(job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    g.blocks = (job.channels + TERMS - 1) // TERMS
    job.multiple = SIDE
    job.panel = PANEL
    job.panels = (job.outputs + PANEL - 1) // PANEL
    job.channel_block = max(1, STEPS // job.taps)
    job.column = g.blocks * job.taps * g.parts * TERMS * 2 + 4
    choose_block(job.axis, g.blocks * TERMS * g.parts // 2, 4, band_budget(max_workspace), PIXELS, block)
    band_layout(job.axis, block, 4, &job.band)
    g.pointwise = is_pointwise(job)
    g.used = job.axis[0].phases * (block[0] + job.axis[0].shift_max) * job.band.rows * job.band.width
    g.positions = g.used + SIDE
    most = max(block[1] * whole(block[2]), whole((block[1] - 1) * job.band.width + block[2]))
    if g.pointwise:
        most = whole(block[0] * block[1] * block[2])
        g.positions = most
    g.sums_m = most + SIDE
    g.planes_bytes = g.blocks * g.parts * g.positions * TERMS * 2
    g.acc_bytes = most * PANEL * 4
    # the band of floats is not needed any more when there are sums
    workspace = g.planes_bytes + max((job.band.channel + CHUNK) * TERMS * 4, g.acc_bytes + g.sums_m * PANEL * 4)
    if threads == 0:
        return workspace
    off = <Py_ssize_t *>block_alloc(job.taps * sizeof(Py_ssize_t))
    if off == NULL:
        raise MemoryError("fastconv: no memory for the tap offsets")
    try:
        band_offsets(job.axis, &job.band, off)
        job.off = off
        tasks = set_blocks(job)
        # two functions, because kept weights are told apart by the one that packed them
        run_rounds(job, w, pack_pointwise if g.pointwise else pack_task, max(2 * job.w_taps, <Py_ssize_t>TERMS) * PANEL * 4,
                   PACKED_LIMIT, tasks, task, workspace, threads)
    finally:
        block_free(off)
    if g.failed:
        count_rerun()
        conv_direct.run(lattice, x, w, y, groups, transposed, bias, residual, activation, threads, max_workspace)
    return workspace
