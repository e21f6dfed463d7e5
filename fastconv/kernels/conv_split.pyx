# SPDX-License-Identifier: BSD-3-Clause
"""Convolution of floats as products of their bfloat16 parts, on tile registers; see csrc/body/split.h.

A task owns one block of output pixels of one group, of one image or of several small ones. It splits the block's band once,
to rows of 32 channels for each pixel, so that any 16 neighbouring pixels are a tile, whatever the tap; then for each panel of
output channels runs the tiles along the band. The rows of a block are one long row where that takes fewer tiles: the sums
between the rows proper are thrown away. All phases of an input gradient with a stride read the one band.

Where there are few channels, which would leave most of a tile empty, and for a 1x1 kernel it is a matrix product instead: of
the weights with columns of (channel, tap) terms, in pairs, one column for each pixel. Its sums come out as planes. The columns
of a 1x1 kernel are made for some of the channels at a time, so that a task has more pixels, and weights are read for as many.

But for that the sums of a tile stay in registers for all of its terms: weights and pixels come from L2 in time, and keeping the
weights of some terms in L1 while the sums go to memory and back takes longer. Weights that take more than half of L2 come from
beyond it for each task: small images then share a task, so that the output channels are outside and the images inside, and the
tiles of a panel fetch the weights of the next one. None of that shows in the bits.

Tile products count denormals as zero, and the parts of very large and very small floats are no longer exact. Two guards find
the calls that this may touch, and the direct kernel does those again: a sum that is not finite, and a pair of the least input
and the least weight (but zero) whose lowest parts might be lost.
"""

cimport numpy as cnp
from libc.stdint cimport uint32_t
from libc.string cimport memset

from fastconv.kernels.correlate cimport (
    PACKED_LIMIT,
    Job,
    Phase,
    Task,
    activate,
    band_budget,
    count_rerun,
    decode,
    packed_panel,
    panel_bounds,
    run_rounds,
    set_blocks,
    set_phase,
    source_plane,
    start_job,
)
from fastconv.kernels.fastconv cimport FC_CACHE_LINE, FC_FIRST, fc_pixel_store, fc_split_kernels, fc_split_tile
from fastconv.kernels.isa cimport active_split, cache_bytes
from fastconv.kernels.lattice cimport (
    Axis,
    Lattice,
    band_layout,
    choose_block,
    fill_band,
    own_pixels,
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
    whole,
    whole_terms,
)

from fastconv.kernels import conv_direct

cnp.import_array()

cdef enum:
    PANEL = 2 * SIDE  # output channels, and pixels, of a tile kernel
    # Up to so many channels, which would leave more than half of a tile empty, the taps share its terms. A constant, because it
    # shows in the bits.
    FEW = 15
    PIXELS = 784     # outputs of a block
    # Blocks of terms of columns at a time. Of all outputs the sums wait meanwhile; each reads 6 bytes of weights a pixel for
    # that many terms, so more pixels, with fewer terms, are better while the sums stay in L2. If not, a sum is read and written
    # once for so many terms too: with P pixels of 1 MiB in three parts, 8/(32 depth) + 6/P is least at 15 blocks.
    SHALLOW = 4
    DEEP = 16
    SUMS = 16 << 20  # most bytes of the sums that wait: those of 784 pixels and 5000 outputs
    CHUNK = 64       # pixels converted at a time: 8 KiB of floats, in L1
    TURNED = 256     # weights of an output transposed at a time: of a panel 32 KiB of floats, in L1

cdef struct SplitPhase:
    Phase phase
    Py_ssize_t first  # steps of the phases before it

cdef struct Split:
    Job job                     # first: tasks get a pointer to it; job.batch counts tasks
    const fc_split_kernels *kernels
    int products, parts, failed
    bint columns                # pixels are columns of a matrix, see above
    bint pointwise              # and x has them as they are
    Py_ssize_t depth, steps     # blocks of terms of the columns that are made at a time, and all: of one phase
    Py_ssize_t channels         # of the bands of floats from which columns are made
    SplitPhase *phases
    Py_ssize_t count
    Py_ssize_t together         # phases that are stored together: 2 where they are the even and the odd places of the same rows
    Py_ssize_t batch, images    # all, and those of a task
    Py_ssize_t blocks           # of TERMS channels
    Py_ssize_t used, positions  # pixels of a band, and of those of a task with what the last tile reads beyond
    Py_ssize_t sums_m           # elements from output to output of the sums
    size_t source_bytes         # of the parts of a task's band, or of floats where the taps are gathered from it
    size_t work_bytes           # of the sums of a phase as the tiles leave them, or of its columns
    size_t sums_bytes           # of those that are stored


# What a task does of one phase: outputs, and how their sums lie.
cdef struct Visit:
    Py_ssize_t count[3]
    Py_ssize_t start[3]    # of the outputs in y
    Py_ssize_t images
    Py_ssize_t rows, run   # runs of tiles in one d
    Py_ssize_t pitch       # from run to run of the sums
    Py_ssize_t pixels      # all, as columns


cdef inline Py_ssize_t step_bytes(const Split *g, Py_ssize_t width) noexcept nogil:
    """Bytes of the weights of one step of a panel of `width` outputs."""
    return 2 * width * TERMS * g.parts


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


cdef void pack_rows(void *argument, Py_ssize_t task, char *workspace) noexcept nogil:
    """One panel as [phase][block of terms][part][width][TERMS], and the least magnitude of its weights."""
    cdef const Split *g = <const Split *>argument
    cdef const Job *job = &g.job
    cdef const Phase *phase
    cdef Py_ssize_t size, width, f, o, c, k, terms
    cdef uint32_t least = NOTHING
    cdef const char *w
    cdef char *to = find_panel(job, task, &size, &width, &w)
    cdef Operand operand
    operand.kernels = job.kernels
    operand.split = g.kernels
    operand.parts = g.parts
    if job.w_taps == 1:
        operand.row = job.w_o
        operand.col = job.w_c
        set_least(job, to, width, split_a(&operand, w, size, job.channels, workspace, to))
        return
    for f in range(g.count):
        phase = &g.phases[f].phase
        terms = job.channels * phase.taps
        for o in range(size):
            for c in range(job.channels):
                for k in range(phase.taps):
                    (<float *>workspace)[o * terms + c * phase.taps + k] = (
                        <const float *>w)[o * job.w_o + c * job.w_c + job.tap_index[phase.tap + k]]
        operand.row = terms
        operand.col = 1
        least = min(least, split_a(&operand, workspace, size, terms, workspace + 4 * size * terms,
                                   to + step_bytes(g, width) * g.phases[f].first))
    set_least(job, to, width, least)


cdef inline Py_ssize_t turned_channels(const Job *job) noexcept nogil:
    """Channels, an even number, whose weights pack_pairs transposes at a time: at most TURNED values of a row, or two."""
    return max(<Py_ssize_t>2, min(<Py_ssize_t>TERMS, TURNED // max(<Py_ssize_t>1, job.w_taps) // 2 * 2))


cdef void pack_pairs(void *argument, Py_ssize_t task, char *workspace) noexcept nogil:
    """One panel as [phase][channel block][tap][part][pair of channels][width][2], and the least magnitude of its weights."""
    cdef const Split *g = <const Split *>argument
    cdef const Job *job = &g.job
    cdef const SplitPhase *own
    cdef Py_ssize_t size, width, c, i, f, k, first = 0, last, together = turned_channels(job), plane
    cdef uint32_t least = NOTHING
    cdef const char *w
    cdef const float *even
    cdef const float *odd
    cdef char *at
    cdef char *to = find_panel(job, task, &size, &width, &w)
    plane = job.w_taps * width
    while first < g.blocks * TERMS:
        last = min(first + together, job.channels)
        # the channels of a row are one row, but in an input gradient
        if job.w_c == job.w_taps and first < last:
            job.kernels.transpose(workspace, width, w + first * job.w_c * 4, job.w_o, size, (last - first) * job.w_taps, width)
        else:
            for c in range(first, last):
                job.kernels.transpose(workspace + (c - first) * plane * 4, width, w + c * job.w_c * 4, job.w_o, size,
                                      job.w_taps, width)
        for c in range(first, min(first + together, g.blocks * TERMS), 2):
            for f in range(g.count):
                own = g.phases + f
                for k in range(own.phase.taps):
                    at = to + step_bytes(g, width) * (own.first + c // TERMS * own.phase.taps + k)
                    at += 2 * width * (c % TERMS)
                    if c >= job.channels:
                        for i in range(g.parts):
                            memset(at + i * 2 * width * TERMS, 0, 4 * width)
                        continue
                    even = <const float *>workspace + (c - first) * plane + job.tap_index[own.phase.tap + k] * width
                    odd = NULL if c + 1 == job.channels else even + plane
                    least = min(least, g.kernels.pairs(at, TERMS * width, 0, even, odd, width, 0, g.parts))
        first += together
    set_least(job, to, width, least)


cdef uint32_t split_band(const Split *g, const Task *t, Py_ssize_t images, char *planes, char *band) noexcept nogil:
    """planes[channel block][part][image][pixel][TERMS] of the bands of a task; the least magnitude in them."""
    cdef const Job *job = &g.job
    cdef Py_ssize_t b, i, p, pixels, channels
    cdef uint32_t least = NOTHING
    cdef char *chunk = band + job.band.channel * TERMS * 4
    cdef char *to
    for b in range(3):
        if t.count[b] < job.band.block[b]:  # what fill_band leaves out
            memset(band, 0, job.band.channel * TERMS * 4)
    for b in range(g.blocks):
        channels = min(<Py_ssize_t>TERMS, job.channels - b * TERMS)
        for i in range(images):
            fill_band(job.axis, &job.band, 4, t.origin, t.count,
                      source_plane(job, t) + (i * job.x_n + b * TERMS * job.x_c) * 4, job.x_c, channels, band)
            to = planes + 2 * TERMS * (b * g.parts * g.positions + i * g.used)
            p = 0
            while p < g.used:
                pixels = min(<Py_ssize_t>CHUNK, g.used - p)
                job.kernels.transpose(chunk, TERMS, band + p * 4, job.band.channel, channels, pixels, TERMS)
                least = min(least, g.kernels.rows(to + 2 * TERMS * p, g.positions * TERMS, <const float *>chunk,
                                                  pixels * TERMS, g.parts))
                p += CHUNK
    return least


cdef inline Py_ssize_t whole_panels(Py_ssize_t pixels) noexcept nogil:
    """`pixels` rounded up to whole panels."""
    return (pixels + PANEL - 1) // PANEL * PANEL


cdef uint32_t pair_row(const Split *g, const float *even, const float *odd, Py_ssize_t first, Py_ssize_t cols,
                       Py_ssize_t block, Py_ssize_t ahead, char *to) noexcept nogil:
    """Pixels from `first` on of a pair of terms, to panels that are `block` bytes apart; the least magnitude."""
    cdef Py_ssize_t count = min((PANEL - first % PANEL) % PANEL, cols)  # to the end of a panel
    cdef uint32_t least = NOTHING
    to += first // PANEL * block + first % PANEL * 4
    if count:
        least = g.kernels.pairs(to, TERMS * PANEL, 0, even, odd, count, 0, g.parts)
        to += block - first % PANEL * 4
        even += count
        if odd != NULL:
            odd += count
    if count < cols:
        least = min(least, g.kernels.pairs(to, TERMS * PANEL, block // 2, even, odd, cols - count, ahead, g.parts))
    return least


cdef uint32_t pair_columns(const Split *g, const Task *t, const Visit *v, const Phase *phase, Py_ssize_t first,
                           Py_ssize_t count, const char *band, char *to) noexcept nogil:
    """to[panel of pixels][block of terms][part][pair of terms][PANEL][2] of `count` blocks of one phase; the least magnitude.

    From bands of floats, one after another for the images; or from the input where that has the columns as they are.
    """
    cdef const Job *job = &g.job
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t terms = job.channels * phase.taps, k0 = first * TERMS, k, image, d, r, i, at, x_n, x_c, x_d, x_row
    cdef Py_ssize_t depths = v.count[0], rows = v.count[1], cols = v.count[2], part = 2 * TERMS * PANEL
    cdef Py_ssize_t block = count * g.parts * part, base = 0, ahead = 0
    cdef uint32_t least = NOTHING
    cdef const float *even
    cdef const float *odd
    cdef const Py_ssize_t *off = job.off + phase.tap
    cdef char *start
    if g.pointwise:
        ahead = 2 * job.x_c
        band = source_plane(job, t) + 4 * ((t.origin[0] * axis[1].size + t.origin[1]) * axis[2].size + t.origin[2])
        x_n = job.x_n
        x_c = job.x_c
        cols *= depths * rows
        depths = rows = 1
    else:
        x_n = g.channels * job.band.channel
        x_c = job.band.channel
        base = k0  # where bands are of some channels, those have one tap
    x_row = job.band.width
    x_d = job.band.rows * x_row
    for k in range(k0, k0 + count * TERMS, 2):
        start = to + (k - k0) // TERMS * g.parts * part + k % TERMS * 2 * PANEL
        if k >= terms:
            for i in range(whole_panels(v.pixels) // PANEL * g.parts):
                memset(start + i // g.parts * block + i % g.parts * part, 0, 4 * PANEL)
            continue
        at = 0
        for image in range(v.images):
            for d in range(depths):
                for r in range(rows):
                    even = <const float *>band + image * x_n + d * x_d + r * x_row
                    odd = NULL
                    if k + 1 < terms:
                        odd = even + (k + 1 - base) // phase.taps * x_c + off[(k + 1) % phase.taps]
                    even += (k - base) // phase.taps * x_c + off[k % phase.taps]
                    least = min(least, pair_row(g, even, odd, at, cols, block, 0 if odd == NULL else ahead, start))
                    at += cols
    return least


cdef const char *next_weights(const Split *g, const Task *t, const SplitPhase *own, Py_ssize_t panel,
                              Py_ssize_t first) noexcept nogil:
    """Those of a phase that come after those of a panel, from a block of terms on: of the next panel, or of the next blocks."""
    cdef Py_ssize_t start, size, width
    panel += 1
    if panel == t.panel1:
        panel = t.panel0
        first += g.depth
        if first >= g.steps:
            return NULL
    panel_bounds(&g.job, panel, &start, &size, &width)
    return packed_panel(&g.job, t.group, start) + step_bytes(g, width) * (own.first + first)


cdef inline void fetch_weights(const Split *g, fc_split_tile *tile, const char *weights, Py_ssize_t width,
                               Py_ssize_t tiles) noexcept nogil:
    """Fetch weights of as many steps as a tile has, in the course of so many tiles; NULL: nothing."""
    cdef Py_ssize_t lines = (step_bytes(g, width) + FC_CACHE_LINE - 1) // FC_CACHE_LINE
    tile.fetch = tile.fetch_end = weights
    tile.fetch_step = 0
    if weights != NULL:
        tile.fetch_step = (lines + tiles - 1) // tiles * FC_CACHE_LINE
        tile.fetch_end = weights + step_bytes(g, width) * tile.channels * tile.taps


cdef void sum_band(const Split *g, const Visit *v, const SplitPhase *own, const char *weights, Py_ssize_t width,
                   const char *following, const char *planes, char *acc) noexcept nogil:
    """acc[image][d][row][pixel][width]: the sums of one phase and a panel of `width` outputs."""
    cdef const Job *job = &g.job
    cdef fc_split_tile tile
    cdef Py_ssize_t image, d, r, first, at
    tile.taps = own.phase.taps
    tile.channels = g.blocks
    tile.off = job.off + own.phase.tap
    tile.a_part = g.positions * TERMS
    tile.a_tile = SIDE * TERMS
    tile.a_row = TERMS
    tile.a_c = tile.a_part * g.parts
    tile.b_part = TERMS * width
    tile.b_tile = 2 * SIDE
    tile.b_row = 2 * width
    tile.b_k = tile.b_part * g.parts
    tile.b = weights + 2 * tile.b_k * own.first
    tile.acc_row = width
    tile.flags = FC_FIRST
    fetch_weights(g, &tile, following, width, v.images * v.count[0] * v.rows * (whole_panels(v.run) // PANEL))
    for image in range(v.images):
        for d in range(v.count[0]):
            for r in range(v.rows):
                first = 0
                while first < v.run:
                    at = image * g.used + (d * job.band.rows + r) * job.band.width + first
                    tile.a = planes + 2 * at * TERMS
                    tile.acc = acc + 4 * width * first
                    g.kernels.tile[g.products][1 if v.run - first <= SIDE else 2][width // SIDE](&tile)
                    tile.fetch = <const char *>tile.fetch + tile.channels * tile.taps * tile.fetch_step
                    first += 2 * SIDE
                acc += 4 * width * v.pitch


cdef void sum_columns(const Split *g, const Visit *v, const SplitPhase *own, Py_ssize_t block, Py_ssize_t blocks,
                      const char *weights, Py_ssize_t width, const char *following, const char *columns,
                      char *sums) noexcept nogil:
    """sums[output][whole_panels(v.pixels)] (+)= some blocks of the terms of one phase and a panel of `width` outputs."""
    cdef fc_split_tile tile
    cdef Py_ssize_t zero = 0, first = 0
    tile.off = &zero
    tile.taps = 1
    tile.channels = blocks
    tile.a_part = width * TERMS
    tile.a_tile = SIDE * TERMS
    tile.a_row = TERMS
    tile.a_c = tile.a_part * g.parts
    tile.a = weights + 2 * tile.a_c * (own.first + block)
    tile.b_row = 2 * PANEL
    tile.b_part = SIDE * tile.b_row
    tile.b_tile = 2 * SIDE
    tile.b_k = tile.b_part * g.parts
    tile.acc_row = whole_panels(v.pixels)
    tile.flags = 0 if block else FC_FIRST
    fetch_weights(g, &tile, following, width, whole_panels(v.pixels) // PANEL)
    while first < v.pixels:
        tile.b = columns + 2 * first // PANEL * tile.b_k * tile.channels
        tile.acc = sums + 4 * first
        g.kernels.tile[g.products][width // SIDE][1 if v.pixels - first <= SIDE else 2](&tile)
        tile.fetch = <const char *>tile.fetch + blocks * tile.fetch_step
        first += PANEL


cdef bint finite(const Split *g, const fc_pixel_store *store, const void *sums, Py_ssize_t cols) noexcept nogil:
    cdef Py_ssize_t m, r
    for m in range(store.outputs):
        for r in range(store.rows):
            if not g.job.kernels.finite(<const float *>sums + m * store.s_m + r * store.s_row, cols):
                return False
    return True


cdef bint store_panel(const Split *g, const Task *t, const Visit *v, fc_pixel_store *store, Py_ssize_t start, Py_ssize_t width,
                      const char *work, char *sums) noexcept nogil:
    """The outputs of a panel from `sums` of its phases, or, where they come from bands, by way of it; False when the direct
    kernel must do it."""
    cdef const Job *job = &g.job
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t image, d, i, at, planes = v.rows * v.pitch
    cdef bint odd = store.odd != NULL
    cdef char *to[2]
    for image in range(v.images):
        for d in range(v.count[0]):
            at = image * v.count[0] + d
            for i in range(2 if odd else 1):
                to[i] = sums + i * g.sums_bytes
                if g.columns:
                    to[i] += 4 * at * planes
                else:
                    job.kernels.transpose(to[i], store.s_m, work + i * g.work_bytes + 4 * width * planes * at, width, planes,
                                          store.outputs, planes)
            store.sums = to[0]
            store.odd = to[1] if odd else NULL
            if not finite(g, store, store.sums, store.cols):
                return False
            if odd and not finite(g, store, store.odd, store.odd_cols):
                return False
            at = (t.n + image) * job.y_n + start * job.y_c
            at += ((v.start[0] + d * axis[0].y_step) * axis[1].y_size + v.start[1]) * axis[2].y_size + v.start[2]
            store.y = job.y + at * 4
            store.residual = NULL if job.residual == NULL else job.residual + at * 4
            job.kernels.pixel_store(store)
    return True


cdef inline Py_ssize_t blocks_of(const Split *g, const SplitPhase *own, Py_ssize_t first) noexcept nogil:
    """Blocks of terms of a phase, from `first` on, whose columns are made together."""
    return min(g.depth, whole_terms(g.job.channels * own.phase.taps) // TERMS - first)


cdef void fill_bands(const Split *g, const Task *t, Py_ssize_t images, Py_ssize_t channel, char *bands) noexcept nogil:
    """The floats from which columns are made: bands[image][channel] from `channel` on."""
    cdef const Job *job = &g.job
    cdef Py_ssize_t i
    for i in range(images):
        fill_band(job.axis, &job.band, 4, t.origin, t.count, source_plane(job, t) + (i * job.x_n + channel * job.x_c) * 4,
                  job.x_c, min(g.channels, job.channels - channel), bands + i * g.channels * job.band.channel * 4)


cdef bint run_phase(const Split *g, const Task *t, const SplitPhase *own, Py_ssize_t images, char *source, char *work,
                    uint32_t least) noexcept nogil:
    """The outputs of one phase, or of two together; False when the direct kernel must do them."""
    cdef const Job *job = &g.job
    cdef const Axis *axis = job.axis
    cdef Visit v
    cdef fc_pixel_store store
    cdef Py_ssize_t i, panel, start, size, width, joined, phases = 1, first = 0
    cdef const char *weights
    cdef const char *following
    cdef char *sums
    for i in range(3):
        v.count[i] = min(t.count[i], own.phase.out[i] - t.origin[i])
        if v.count[i] <= 0:
            return True
        v.start[i] = own.phase.start[i] + t.origin[i] * axis[i].y_step
    v.images = images
    v.pixels = images * v.count[0] * v.count[1] * v.count[2]
    store.rows = v.count[1]
    store.cols = v.count[2]
    store.y_m = job.y_c
    store.y_row = axis[1].y_step * axis[2].y_size
    store.y_px = axis[2].y_step
    store.relu = job.relu
    store.odd = NULL
    if g.together == 2:
        store.odd_cols = min(t.count[2], own[1].phase.out[2] - t.origin[2])
        if store.odd_cols > 0:
            store.odd = work  # store_panel says where
            phases = 2
    v.rows = v.count[1]
    v.run = v.count[2]
    v.pitch = v.run if g.columns else whole(v.run)
    store.s_m = g.sums_m
    store.s_row = v.pitch
    joined = (v.rows - 1) * job.band.width + v.run
    if g.columns:
        store.s_m = whole_panels(v.pixels)
        if store.y_row == v.run:  # the rows are one
            store.cols *= store.rows
            store.rows = 1
    elif whole(joined) <= v.rows * v.pitch:
        v.rows = 1
        v.run = joined
        v.pitch = whole(joined)
        store.s_row = job.band.width
    while first < g.steps:  # of columns; all else has one
        if g.columns:
            if not g.pointwise and own == g.phases:
                fill_bands(g, t, images, first * TERMS, source)
            for i in range(phases):
                least = min(least, pair_columns(g, t, &v, &own[i].phase, first, blocks_of(g, own + i, first), source,
                                                work + i * g.work_bytes))
        for panel in range(t.panel0, t.panel1):
            panel_bounds(job, panel, &start, &size, &width)
            weights = packed_panel(job, t.group, start)
            if lost(g.parts, least, get_least(job, weights, width)):
                return False
            sums = work + g.together * g.work_bytes
            if g.depth < g.steps:
                sums += (panel - t.panel0) * g.sums_bytes
            for i in range(phases):
                following = next_weights(g, t, own + i, panel, first)
                if not g.columns:
                    sum_band(g, &v, own + i, weights, width, following, source, work + i * g.work_bytes)
                else:
                    sum_columns(g, &v, own + i, first, blocks_of(g, own + i, first), weights, width, following,
                                work + i * g.work_bytes, sums + i * g.sums_bytes)
            if first + g.depth < g.steps:
                continue
            start += t.group * job.outputs
            store.outputs = <int>size
            store.bias = NULL if job.bias == NULL else job.bias + start * 4
            if not store_panel(g, t, &v, &store, start, width, work, sums):
                return False
        first += g.depth
    return True


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef Split *g = <Split *>argument
    cdef Job *job = &g.job
    cdef Task t
    cdef Py_ssize_t i = 0, images
    cdef uint32_t least = NOTHING
    cdef char *work = workspace + g.source_bytes
    if g.failed:
        return  # the direct kernel will do it all again
    decode(job, number, &t)
    images = (t.n + 1) * g.batch // job.batch
    t.n = t.n * g.batch // job.batch
    images -= t.n
    if not g.columns:
        least = split_band(g, &t, images, workspace, work)
    g.kernels.begin()
    while i < g.count and not g.failed:
        if not run_phase(g, &t, g.phases + i, images, workspace, work, least):
            g.failed = True
        i += g.together
    g.kernels.end()
    images += t.n
    while t.n < images:
        activate(job, &t)
        t.n += 1


cdef void share_rows(const Split *g, int threads, Py_ssize_t *block) noexcept:
    """Blocks of fewer rows where every thread then has as many tasks.

    Fewer than threads share their panels instead, if each then has about as many.
    """
    cdef const Axis *axis = g.job.axis
    cdef Py_ssize_t blocks = (axis[1].out + block[1] - 1) // max(<Py_ssize_t>1, block[1]), others = g.batch * g.job.groups
    cdef Py_ssize_t panels = g.job.panels
    others *= (axis[0].out + block[0] - 1) // block[0] * ((axis[2].out + block[2] - 1) // block[2])
    if block[0] > 1:  # of several d: whole planes
        return
    if blocks * others < threads and (panels % threads == 0 or panels >= 2 * threads):
        return
    while blocks < axis[1].out and blocks * others % threads and blocks * others < 4 * threads:
        blocks += 1
    if blocks * others % threads == 0:
        block[1] = (axis[1].out + blocks - 1) // max(<Py_ssize_t>1, blocks)


cdef void set_tasks(Split *g, size_t budget, size_t sums, int threads) noexcept:
    """The block of a task: pixels, images and bytes, of which sums that wait take at most `sums`."""
    cdef Job *job = &g.job
    cdef Py_ssize_t block[3]
    cdef Py_ssize_t most, image, pixels = PIXELS, i
    image = 2 * g.parts * g.depth * TERMS  # bytes of a column
    if g.columns:
        pixels = max(<Py_ssize_t>SIDE, min(pixels, <Py_ssize_t>budget // max(1, image)))
        if g.depth < g.steps:
            pixels = max(<Py_ssize_t>SIDE, min(pixels, <Py_ssize_t>min(sums, <size_t>SUMS) // (4 * PANEL * job.panels)))
    choose_block(job.axis, 1 if g.pointwise else g.channels if g.columns else g.blocks * TERMS * g.parts // 2, 4, budget,
                 pixels, block)
    share_rows(g, max(1, threads), block)
    band_layout(job.axis, block, 4, &job.band)
    g.used = job.axis[0].phases * (block[0] + job.axis[0].shift_max) * job.band.rows * job.band.width
    most = block[0] * block[1] * block[2]
    if not g.columns:
        image = 2 * TERMS * g.blocks * g.parts * g.used
    else:
        image *= most
    g.images = 1
    set_blocks(job)
    # Images share a task where the weights do not stay in L2 from one to the next, or to fill the tiles with their columns.
    if job.blocks[0] == job.blocks[1] == job.blocks[2] == 1 and (
            g.columns or job.column * <size_t>(job.panels * PANEL) > cache_bytes(2) // 2):
        g.images = max(1, min(pixels // max(1, most), <Py_ssize_t>budget // max(1, image)))
        threads = max(1, threads)  # all of which get as many
        i = (g.batch + g.images * threads - 1) // (g.images * threads) * threads
        g.images = max(1, (g.batch + i - 1) // max(1, i))
        job.batch = (g.batch + g.images - 1) // g.images
    if g.columns:
        most = whole_panels(most * g.images)
        g.sums_m = most + SIDE
        g.source_bytes = 0 if g.pointwise else g.images * g.channels * job.band.channel * 4
        g.work_bytes = 2 * g.parts * g.depth * TERMS * most
    else:
        most = max(block[1] * whole(block[2]), whole((block[1] - 1) * job.band.width + block[2]))
        g.sums_m = most + SIDE
        g.positions = g.images * g.used + SIDE
        g.source_bytes = 2 * TERMS * g.blocks * g.parts * g.positions
        g.work_bytes = 4 * PANEL * most * block[0] * g.images
    g.source_bytes = (g.source_bytes + 63) // 64 * 64
    g.sums_bytes = 4 * PANEL * g.sums_m


def run(int products, Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    `products` is 1, 3 or 6. Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Split g
    cdef Job *job = &g.job
    cdef Lattice phase
    cdef tuple phases = lattice.phases or (lattice,)
    cdef Py_ssize_t *off = NULL
    cdef Py_ssize_t i, workspace, tasks, steps = 0, tap = 0, most = 0
    g.kernels = active_split()
    g.products, g.parts, g.failed = products, parts_of(products), False
    start_job(job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    g.batch = job.batch
    g.blocks = whole_terms(job.channels) // TERMS
    g.pointwise = job.w_taps == 1 and own_pixels(job.axis)
    g.columns = job.w_taps == 1 or job.channels <= FEW
    g.count = len(phases)
    g.together = 1
    if job.axis[2].y_step == 2 and [phase.starts[2] for phase in phases[:2]] == [0, 1]:
        g.together = 2
    job.multiple = SIDE
    job.panel = PANEL
    job.panels = (job.outputs + PANEL - 1) // PANEL
    job.tasks = 1  # another range of panels would convert the pixels again
    g.phases = <SplitPhase *>block_alloc(g.count * sizeof(SplitPhase))
    try:
        if g.phases != NULL:
            off = <Py_ssize_t *>block_alloc(job.taps * sizeof(Py_ssize_t))
        if off == NULL:
            raise MemoryError("fastconv: no memory for the tap offsets")
        for i in range(g.count):
            phase = phases[i]
            g.phases[i].phase.taps = phase.taps
            g.phases[i].first = steps
            steps += whole_terms(job.channels * phase.taps) // TERMS if g.columns else g.blocks * phase.taps
            most = max(most, phase.taps)
        job.column = 2 * steps * g.parts * TERMS + 4
        g.steps = g.depth = max(<Py_ssize_t>1, whole_terms(job.channels * most) // TERMS)
        g.channels = job.channels
        if job.w_taps == 1:
            i = DEEP if job.outputs * PIXELS * 4 > cache_bytes(2) // 2 else SHALLOW
            i = (g.steps + i - 1) // i
            g.depth = (g.steps + i - 1) // i
            g.channels = min(job.channels, g.depth * TERMS)
        set_tasks(&g, band_budget(max_workspace) // 2, SUMS if max_workspace is None else max_workspace, threads)
        workspace = g.together * (g.work_bytes + g.sums_bytes * (job.panels if g.depth < g.steps else 1))
        if not g.columns:  # the band of floats is not needed any more when there are sums
            workspace = max(workspace, (job.band.channel + CHUNK) * TERMS * 4)
        workspace += g.source_bytes
        if threads == 0:
            return workspace
        for i in range(g.count):
            phase = phases[i]
            set_phase(job, phase, tap, &g.phases[i].phase, off)
            tap += phase.taps
        job.off = off
        tasks = set_blocks(job)
        # two functions, because kept weights are told apart by the one that packed them
        run_rounds(job, w, pack_rows if g.columns else pack_pairs,
                   max(turned_channels(job) * job.w_taps, job.channels * most + TERMS if g.columns else 0) * PANEL * 4,
                   PACKED_LIMIT, tasks, task, workspace, threads)
    finally:
        block_free(off)
        block_free(g.phases)
    if g.failed:
        count_rerun()
        conv_direct.run(lattice, x, w, y, groups, transposed, bias, residual, activation, threads, max_workspace)
    return workspace
