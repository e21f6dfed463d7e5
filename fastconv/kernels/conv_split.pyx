# SPDX-License-Identifier: BSD-3-Clause
"""Convolution of floats as products of their bfloat16 parts, on tile registers; see csrc/body/split.h.

A task owns one block of output pixels of one image and group. It splits the block's band once, to rows of 32 channels for each
pixel, so that any 16 neighbouring pixels are a tile, whatever the tap; then for each panel of output channels and each block of
channels runs the tiles along the band. The rows of a block are one long row where that takes fewer tiles: the sums between the
rows proper are thrown away.

Tile products count denormals as zero, and the parts of very large and very small floats are no longer exact. Two guards find
the calls that this may touch, and the direct kernel does those again: a sum that is not finite, and a pair of the least input
and the least weight (but zero) whose lowest parts might be lost.
"""

cimport numpy as cnp
from libc.math cimport isfinite
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
from fastconv.kernels.lattice cimport Lattice, band_layout, band_offsets, choose_block, fill_band
from fastconv.kernels.memory cimport block_alloc, block_free
from fastconv.kernels.split cimport NOTHING, SIDE, TERMS, lost, parts_of, whole

from fastconv.kernels import conv_direct

cnp.import_array()

cdef enum:
    PANEL = 2 * SIDE  # output channels, and pixels, of a tile kernel
    # (channel block, tap) steps summed in tiles before the partial sums go to memory: three blocks of 3x3 kernels, whose weights
    # (162 KiB with three parts) and pixels stay in L2. A constant, because it shows in the bits.
    STEPS = 27
    PIXELS = 784     # outputs of a block
    CHUNK = 64       # pixels converted at a time: 8 KiB of floats, in L1
    PACKED_LIMIT = 24 << 20

cdef struct Split:
    Job job                     # first: tasks get a pointer to it
    const fc_split_kernels *kernels
    int products, parts, failed
    Py_ssize_t blocks           # of TERMS channels
    Py_ssize_t used, positions  # pixels of a band, and with those that the last tile reads beyond
    Py_ssize_t sums_m           # elements from output to output of the sums
    size_t planes_bytes, acc_bytes


cdef void pack_task(void *argument, Py_ssize_t task, char *workspace) noexcept nogil:
    """One panel as [channel block][tap][part][pair of channels][width][2], and the least magnitude of its weights."""
    cdef const Split *g = <const Split *>argument
    cdef const Job *job = &g.job
    cdef Py_ssize_t panels = job.panel1 - job.panel0, group = job.group0 + task // panels, start, size, width, c, i, t
    cdef uint32_t least = NOTHING
    cdef const char *w
    cdef const float *even
    cdef const float *odd
    cdef char *to
    cdef char *at
    panel_bounds(job, job.panel0 + task % panels, &start, &size, &width)
    to = <char *>packed_panel(job, group, start)
    w = job.w + (group * job.w_g + start * job.w_o) * 4
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
    (<uint32_t *>(to + (<Py_ssize_t>job.column - 4) * width))[0] = least


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
    cdef double total = 0
    for m in range(store.outputs):
        for r in range(store.rows):
            total += g.job.kernels.sum(<const float *>store.sums + m * store.s_m + r * store.s_row, store.cols)
    return isfinite(total)


cdef bint run_panel(const Split *g, const Task *t, Py_ssize_t panel, const char *planes, char *acc,
                    uint32_t least) noexcept nogil:
    """One panel of outputs of a task; False when the direct kernel must do it."""
    cdef const Job *job = &g.job
    cdef fc_split_tile tile
    cdef fc_pixel_store store
    cdef Py_ssize_t start, size, width, rows = t.count[1], run = t.count[2], pitch, d, c, r, first, at
    cdef Py_ssize_t joined = (rows - 1) * job.band.width + run
    cdef int na, nb
    cdef const char *weights
    panel_bounds(job, panel, &start, &size, &width)
    weights = packed_panel(job, t.group, start)
    if lost(g.parts, least, (<const uint32_t *>(weights + (<Py_ssize_t>job.column - 4) * width))[0]):
        return False
    pitch = whole(run)
    store.s_row = pitch
    if whole(joined) <= rows * pitch:
        rows = 1
        run = joined
        store.s_row = job.band.width
        pitch = whole(run)
    nb = <int>(width // SIDE)
    tile.off = job.off
    tile.taps = job.taps
    tile.a_part = g.positions * TERMS
    tile.a_tile = SIDE * TERMS
    tile.a_row = TERMS
    tile.a_c = g.positions * TERMS * g.parts
    tile.b_part = TERMS * width
    tile.b_tile = 2 * SIDE
    tile.b_row = 2 * width
    tile.b_k = TERMS * width * g.parts
    tile.acc_row = width
    store.sums = acc + g.acc_bytes
    store.odd = NULL
    store.rows = t.count[1]
    store.cols = t.count[2]
    store.s_m = g.sums_m
    store.outputs = <int>size
    store.y_m = job.y_c
    store.y_row = job.axis[1].y_step * job.axis[2].y_size
    store.y_px = job.axis[2].y_step
    store.relu = job.relu
    start += t.group * job.outputs
    store.bias = NULL if job.bias == NULL else job.bias + start * 4
    for d in range(t.count[0]):
        c = 0
        while c < g.blocks:
            tile.channels = min(job.channel_block, g.blocks - c)
            tile.flags = FC_FIRST if c == 0 else 0
            tile.b = weights + 2 * tile.b_k * job.taps * c
            for r in range(rows):
                first = 0
                while first < run:
                    na = 1 if run - first <= SIDE else 2
                    at = (d * job.band.rows + r) * job.band.width + first
                    tile.a = planes + 2 * (c * tile.a_c + at * TERMS)
                    tile.acc = acc + 4 * width * (r * pitch + first)
                    g.kernels.tile[g.products][na][nb](&tile)
                    first += 2 * SIDE
            c += job.channel_block
        job.kernels.transpose(<char *>store.sums, store.s_m, acc, width, rows * pitch, size, rows * pitch)
        if not finite(g, &store):
            return False
        at = t.n * job.y_n + start * job.y_c + output_at(job, t.origin[0] + d, t.origin[1], t.origin[2])
        store.y = job.y + at * 4
        store.residual = NULL if job.residual == NULL else job.residual + at * 4
        job.kernels.pixel_store(&store)
    return True


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef Split *g = <Split *>argument
    cdef Job *job = &g.job
    cdef Task t
    cdef Py_ssize_t panel
    cdef uint32_t least
    if g.failed:
        return  # the direct kernel will do it all again
    decode(job, number, &t)
    least = split_band(g, &t, workspace, workspace + g.planes_bytes)
    g.kernels.begin()
    for panel in range(t.panel0, t.panel1):
        if not run_panel(g, &t, panel, workspace, workspace + g.planes_bytes, least):
            g.failed = True
            break
    g.kernels.end()
    activate(job, &t)


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
    g.used = job.axis[0].phases * (block[0] + job.axis[0].shift_max) * job.band.rows * job.band.width
    g.positions = g.used + SIDE
    most = max(block[1] * whole(block[2]), whole((block[1] - 1) * job.band.width + block[2]))
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
        run_rounds(job, w, pack_task, 2 * job.w_taps * PANEL * 4, PACKED_LIMIT, tasks, task, workspace, threads)
    finally:
        block_free(off)
    if g.failed:
        count_rerun()
        conv_direct.run(lattice, x, w, y, groups, transposed, bias, residual, activation, threads, max_workspace)
    return workspace
