# SPDX-License-Identifier: BSD-3-Clause
"""Weight and bias gradients of every convolution.

dw[o][c][tap] = sum over images and pixels of dy[o][pixel] * x[c][pixel*stride + tap]. The work is divided over groups,
channels and outputs; only where that gives fewer than SLICES tasks are the images and blocks divided too, into a number of
slices that depends on the problem alone, and the slices are added in order. So the bits do not depend on the team.
"""

cimport numpy as cnp
from libc.stdint cimport uint32_t
from libc.string cimport memset

from fastconv.kernels.correlate cimport Job, count_rerun, set_blocks, start_job
from fastconv.kernels.fastconv cimport (
    FC_DOT_A_MAX,
    FC_NV_MAX,
    fc_dot_tile,
    fc_kernels,
    fc_split_kernels,
    fc_split_tile,
    fc_wgrad_tile,
)
from fastconv.kernels.isa cimport active_kernels, active_split
from fastconv.kernels.lattice cimport (
    Lattice,
    band_layout,
    band_offsets,
    choose_block,
    fill_band,
)
from fastconv.kernels.memory cimport block_alloc, block_free
from fastconv.kernels.split cimport NOTHING, SIDE, TERMS as SPLIT_TERMS, lost, parts_of, whole
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

cdef enum:
    SLICES = 16         # tasks worth having: several for each of a few threads
    PIXELS = 256        # outputs of a block: length of the chains that are summed in registers
    DOT_CELLS = 1 << 16  # (channel, output) pairs of a block where a chain is one of the lanes: its band is 256 KiB
    OUTPUTS = 128       # output channels of a task: its transposed dy is PIXELS * OUTPUTS floats = 128 KiB
    SUMS_LIMIT = 24 << 20  # partial sums at a time; larger weights go through in rounds
    BAND_LIMIT = 1 << 20   # bytes of a block's band; a constant, because the blocks show in the bits
    TERMS = 288         # (channel, tap) pairs of a task: its sums are TERMS * OUTPUTS floats = 144 KiB

cdef struct Gradient:
    Job job                        # x as in the forward convolution, y = dy, w = dw
    Py_ssize_t channel_chunk, channel_chunks, output_chunk, output_chunks
    Py_ssize_t slices, blocks      # blocks of all images
    Py_ssize_t pairs               # channel_chunk * taps
    Py_ssize_t nr                  # output channels of a panel
    bint dot                       # few output channels: vectorise along the pixels
    size_t band_bytes
    Py_ssize_t first               # the parts worked on now begin here
    char *sums                     # sums[part][slice][panel][pair][NR], or [output][pair] with `dot`
    size_t sums_bytes              # of one slice of one part
    # Split products; 0: none
    int products, parts, failed
    const fc_split_kernels *split
    Py_ssize_t terms               # pixels of a block in its band, in whole tiles
    size_t x_bytes                 # of the parts of a block's band

cdef struct Part:
    Py_ssize_t slice, group, channel, channels, output, outputs


cdef void part_of(const Gradient *g, Py_ssize_t number, Part *part) noexcept nogil:
    part.slice = number % g.slices
    number //= g.slices
    part.channel = number % g.channel_chunks * g.channel_chunk
    number //= g.channel_chunks
    part.output = number % g.output_chunks * g.output_chunk
    part.group = number // g.output_chunks
    part.channels = min(g.channel_chunk, g.job.channels - part.channel)
    part.outputs = min(g.output_chunk, g.job.outputs - part.output)


cdef Py_ssize_t panel_width(const Gradient *g, Py_ssize_t outputs) noexcept nogil:
    """Columns of the panel that begins with `outputs` channels yet to do: half a panel when they fit."""
    return g.nr // 2 if outputs <= g.nr // 2 else g.nr


cdef void add_block(const Gradient *g, const Part *part, const Py_ssize_t *count, const char *band,
                    const char *dy_t, char *sums) noexcept nogil:
    """One block of pixels, output channels in vectors; dy_t[panel][pixel][NR]."""
    cdef const Job *job = &g.job
    cdef fc_wgrad_tile tile
    cdef Py_ssize_t item = job.itemsize, nr = g.nr, o, d, pair, i, at, tap, pairs
    cdef Py_ssize_t pixels = count[0] * count[1] * count[2], width
    cdef int mr, nv
    pairs = part.channels * job.taps
    tile.x_row = job.band.width
    tile.rows = count[1]
    tile.cols = count[2]
    if job.band.width == tile.cols:  # no halo along w: the rows are one
        tile.cols *= tile.rows
        tile.rows = 1
    o = 0
    while o < part.outputs:
        width = panel_width(g, part.outputs - o)
        nv = <int>(width // job.kernels.lanes)
        for d in range(count[0]):
            pair = 0
            tap = 0
            at = d * job.band.rows * job.band.width
            while pair < pairs:
                mr = <int>min(job.kernels.wgrad_mr, pairs - pair)
                for i in range(mr):
                    tile.x[i] = band + (at + job.off[tap]) * item
                    tap += 1
                    if tap == job.taps:
                        tap = 0
                        at += job.band.channel
                tile.dy = dy_t + (o * pixels + d * count[1] * count[2] * width) * item
                tile.acc = sums + (o * g.pairs + pair * width) * item
                job.kernels.wgrad_tile[nv][mr](&tile)
                pair += mr
        o += nr


cdef void transpose_dy(const Gradient *g, const Part *part, const char *dy, const Py_ssize_t *origin,
                       const Py_ssize_t *count, char *to) noexcept nogil:
    """dy_t[panel][pixel][NR] of the block, from planes dy[output][d][h][w]."""
    cdef const Job *job = &g.job
    cdef const Py_ssize_t *size = [job.axis[0].out, job.axis[1].out, job.axis[2].out]
    cdef Py_ssize_t item = job.itemsize, nr = g.nr, o, d, h, rows, cols, width
    rows, cols = count[1], count[2]
    if cols == size[2]:
        cols *= rows
        rows = 1
    o = 0
    while o < part.outputs:
        width = panel_width(g, part.outputs - o)
        for d in range(count[0]):
            for h in range(rows):
                job.kernels.transpose(
                    to, width,
                    dy + (o * job.y_c + ((origin[0] + d) * size[1] + origin[1] + h) * size[2] + origin[2]) * item,
                    job.y_c, min(nr, part.outputs - o), cols, width)
                to += cols * width * item
        o += nr


cdef void add_block_dot(const Gradient *g, const Part *part, const char *dy, const Py_ssize_t *origin,
                        const Py_ssize_t *count, const char *band, char *sums) noexcept nogil:
    """One block of pixels, vectorised along the rows."""
    cdef const Job *job = &g.job
    cdef fc_dot_tile tile
    cdef Py_ssize_t item = job.itemsize, d, i, at, k, j, o, pair, pairs = part.channels * job.taps, o_tiles, pair_tiles
    cdef int na, nb
    tile.rows = count[1]
    tile.cols = count[2]
    tile.acc_row = g.pairs
    tile.a_row = job.axis[2].out
    tile.b_row = job.band.width
    if tile.a_row == tile.b_row == tile.cols:
        tile.cols *= tile.rows
        tile.rows = 1
    o_tiles = (part.outputs + FC_DOT_A_MAX - 1) // FC_DOT_A_MAX
    for k in range(o_tiles):
        o = k * part.outputs // o_tiles
        na = <int>((k + 1) * part.outputs // o_tiles - o)
        pair_tiles = (pairs + job.kernels.dot_mr[na] - 1) // job.kernels.dot_mr[na]
        for j in range(pair_tiles):
            pair = j * pairs // pair_tiles
            nb = <int>((j + 1) * pairs // pair_tiles - pair)
            tile.acc = sums + (o * g.pairs + pair) * item
            for d in range(count[0]):
                at = ((origin[0] + d) * job.axis[1].out + origin[1]) * job.axis[2].out + origin[2]
                for i in range(na):
                    tile.a[i] = dy + ((o + i) * job.y_c + at) * item
                for i in range(nb):
                    at = (pair + i) // job.taps * job.band.channel + job.off[(pair + i) % job.taps]
                    tile.b[i] = band + (at + d * job.band.rows * job.band.width) * item
                job.kernels.dot_tile[na][nb](&tile)


cdef uint32_t pair_dy(const Gradient *g, const Part *part, const char *dy, const Py_ssize_t *origin,
                      const Py_ssize_t *count, char *pixels, char *to) noexcept nogil:
    """to[panel][d][block of pixels][part][pair of pixels][width][2]: dy as it lies over the band, zero between its rows."""
    cdef const Job *job = &g.job
    cdef const Py_ssize_t *size = [job.axis[0].out, job.axis[1].out, job.axis[2].out]
    cdef Py_ssize_t o = 0, d, h, k, width
    cdef uint32_t least = NOTHING
    while o < part.outputs:
        width = panel_width(g, part.outputs - o)
        for d in range(count[0]):
            memset(pixels, 0, g.terms * width * 4)
            for h in range(count[1]):
                job.kernels.transpose(
                    pixels + h * job.band.width * width * 4, width,
                    dy + (o * job.y_c + ((origin[0] + d) * size[1] + origin[1] + h) * size[2] + origin[2]) * 4,
                    job.y_c, min(width, part.outputs - o), count[2], width)
            for k in range(g.terms // 2):
                least = min(least, g.split.pairs(
                    to + 2 * width * (k // SIDE * SPLIT_TERMS * g.parts + k % SIDE * 2), SPLIT_TERMS * width,
                    <const float *>pixels + 2 * k * width, <const float *>pixels + (2 * k + 1) * width, width, g.parts))
            to += 2 * width * g.terms * g.parts
        o += g.nr
    return least


cdef void add_block_split(const Gradient *g, const Part *part, const Py_ssize_t *count, const char *x,
                          const char *dy, char *sums) noexcept nogil:
    """One block of pixels in tiles of channels and outputs, tap by tap; x[part][channel][pixel], dy as of pair_dy()."""
    cdef const Job *job = &g.job
    cdef fc_split_tile tile
    cdef Py_ssize_t zero = 0, o = 0, d, c, tap, width
    cdef int na
    tile.off = &zero
    tile.taps = 1
    tile.channels = ((count[1] - 1) * job.band.width + count[2] + SPLIT_TERMS - 1) // SPLIT_TERMS
    tile.a_part = g.band_bytes // 4
    tile.a_row = job.band.channel
    tile.a_tile = SIDE * tile.a_row
    tile.a_c = SPLIT_TERMS
    tile.b_tile = 2 * SIDE
    tile.flags = 0
    while o < part.outputs:
        width = panel_width(g, part.outputs - o)
        tile.b_row = 2 * width
        tile.b_part = SPLIT_TERMS * width
        tile.b_k = tile.b_part * g.parts
        tile.acc_row = job.taps * width
        for d in range(count[0]):
            tile.b = dy
            c = 0
            while c < part.channels:
                na = 1 if part.channels - c <= SIDE else 2
                for tap in range(job.taps):
                    tile.a = x + 2 * (c * tile.a_row + d * job.band.rows * job.band.width + job.off[tap])
                    tile.acc = sums + 4 * (o * g.pairs + (c * job.taps + tap) * width)
                    g.split.tile[g.products][na][width // SIDE](&tile)
                c += 2 * SIDE
            dy += 2 * width * g.terms * g.parts
        o += g.nr


cdef void split_block(Gradient *g, const Part *part, const Py_ssize_t *origin, const Py_ssize_t *count,
                      const char *dy, char *workspace, char *sums) noexcept nogil:
    """One block on tile registers: from the band at `workspace`, with room behind it."""
    cdef const Job *job = &g.job
    cdef char *x = workspace + g.band_bytes
    cdef char *pairs = x + g.x_bytes
    cdef uint32_t least, least_dy
    least = g.split.rows(x, g.band_bytes // 4, <const float *>workspace, g.band_bytes // 4, g.parts)
    memset(pairs - 2 * SPLIT_TERMS, 0, 2 * SPLIT_TERMS)
    least_dy = pair_dy(g, part, dy, origin, count, pairs + 2 * g.parts * g.terms * job.band.block[0] * whole_panels(g),
                       pairs)
    if lost(g.parts, least, least_dy):
        g.failed = True
    else:
        add_block_split(g, part, count, x, pairs, sums)


cdef void slice_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef Gradient *g = <Gradient *>argument
    cdef const Job *job = &g.job
    cdef Part part
    cdef Py_ssize_t block, at, i, n, item = job.itemsize
    cdef Py_ssize_t origin[3]
    cdef Py_ssize_t count[3]
    cdef const char *dy
    cdef char *sums = g.sums + number * g.sums_bytes
    part_of(g, g.first * g.slices + number, &part)
    memset(sums, 0, g.sums_bytes)
    if g.products:
        if g.failed:
            return
        memset(workspace, 0, g.band_bytes)  # what lies between rows is multiplied by zero: it must be finite
        g.split.begin()
    for block in range(part.slice * g.blocks // g.slices, (part.slice + 1) * g.blocks // g.slices):
        at = block
        for i in range(2, -1, -1):
            origin[i] = at % job.blocks[i] * job.band.block[i]
            count[i] = min(job.band.block[i], job.axis[i].out - origin[i])
            at //= job.blocks[i]
        n = at
        fill_band(job.axis, &job.band, item, origin, count,
                  job.x + (n * job.x_n + (part.group * job.channels + part.channel) * job.x_c) * item,
                  job.x_c, part.channels, workspace)
        dy = job.y + (n * job.y_n + (part.group * job.outputs + part.output) * job.y_c) * item
        if g.products:
            split_block(g, &part, origin, count, dy, workspace, sums)
        elif g.dot:
            add_block_dot(g, &part, dy, origin, count, workspace, sums)
        else:
            transpose_dy(g, &part, dy, origin, count, workspace + g.band_bytes)
            add_block(g, &part, count, workspace, workspace + g.band_bytes, sums)
    if g.products:
        g.split.end()


cdef void reduce_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """Add the slices in order and write dw[output][channel][tap]."""
    cdef Gradient *g = <Gradient *>argument
    cdef const Job *job = &g.job
    cdef Part part
    cdef Py_ssize_t s, o, pairs, width, nr = g.nr, item = job.itemsize
    cdef char *sums = g.sums + number * g.slices * g.sums_bytes
    cdef char *dw
    part_of(g, (g.first + number) * g.slices, &part)
    pairs = part.channels * job.taps
    for s in range(1, g.slices):
        job.kernels.add(sums, sums + s * g.sums_bytes, g.sums_bytes // item)
    dw = <char *>job.w + (part.group * job.w_g + part.output * job.w_o + part.channel * job.w_c) * item
    if g.dot:
        for o in range(part.outputs):
            job.kernels.copy_strided(dw + o * job.w_o * item, sums + o * g.pairs * item, pairs, 1)
        return
    o = 0
    while o < part.outputs:
        width = panel_width(g, part.outputs - o)
        # dw[o + j][pair i] = sums[panel][pair i][j]
        job.kernels.transpose(dw + o * job.w_o * item, job.w_o, sums + o * g.pairs * item, width, pairs,
                              min(nr, part.outputs - o), pairs)
        if g.products:
            for s in range(o, min(part.outputs, o + nr)):
                if not job.kernels.finite(dw + s * job.w_o * item, pairs):
                    g.failed = True
        o += nr


cdef Py_ssize_t whole_panels(const Gradient *g) noexcept nogil:
    """The output channels of a task rounded up to panels."""
    return (g.output_chunk + g.nr - 1) // g.nr * g.nr


def run(int products, Lattice lattice, x, dw, dy, Py_ssize_t groups, int threads, max_workspace):
    """dw[group*output][channel][tap], from contiguous x and dy[n][channel][d][h][w] of the forward lattice.

    With `products`, of the bfloat16 parts of x and dy on tile registers; sums that those may not give exactly enough are done
    again without, see conv_split. Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Gradient g
    cdef Job *job = &g.job
    cdef Py_ssize_t i, parts, at_once, pixels
    cdef size_t workspace, limit = BAND_LIMIT
    cdef Py_ssize_t *off
    start_job(job, lattice, x, dw, dy, groups, False, None, None, -1)
    g.products, g.parts, g.failed = products, parts_of(products), False
    g.split = active_split()
    g.nr = 2 * SIDE if products else FC_NV_MAX * job.kernels.lanes
    g.dot = not products and job.outputs <= job.kernels.lanes
    g.channel_chunk = min(job.channels, max(1, TERMS // job.taps))
    if products:
        g.channel_chunk = min(job.channels, max(2 * SIDE, g.channel_chunk // (2 * SIDE) * 2 * SIDE))
    g.channel_chunks = (job.channels + g.channel_chunk - 1) // g.channel_chunk
    pixels = PIXELS
    if g.dot:
        pixels = max(pixels, min(pixels * job.kernels.lanes, DOT_CELLS // g.channel_chunk))
    choose_block(job.axis, g.channel_chunk, job.itemsize, BAND_LIMIT, pixels, job.band.block)
    band_layout(job.axis, job.band.block, job.itemsize, &job.band)
    g.blocks = set_blocks(job)
    # few pixels leave room for the dy of twice as many outputs, and packing their bands would weigh more
    i = OUTPUTS if 2 * job.band.block[0] * job.band.block[1] * job.band.block[2] > PIXELS else 2 * OUTPUTS
    g.output_chunk = min(job.outputs, i)
    g.output_chunks = (job.outputs + g.output_chunk - 1) // g.output_chunk
    g.slices = max(1, min(g.blocks, SLICES // (groups * g.output_chunks * g.channel_chunks)))
    if max_workspace is not None:
        limit = min(limit, <size_t>max_workspace) // job.itemsize
        while g.channel_chunk > 1 and <size_t>(job.band.channel * g.channel_chunk) > limit:
            g.channel_chunk = (g.channel_chunk + 1) // 2
        if <size_t>job.band.channel > limit:  # the one case in which the limit shows in the bits
            choose_block(job.axis, 1, job.itemsize, limit * job.itemsize, pixels, job.band.block)
            band_layout(job.axis, job.band.block, job.itemsize, &job.band)
            g.blocks = set_blocks(job)
            g.slices = min(g.slices, g.blocks)
        g.channel_chunks = (job.channels + g.channel_chunk - 1) // g.channel_chunk
    parts = groups * g.output_chunks * g.channel_chunks
    i = job.band.block[0] * job.band.block[1] * job.band.block[2]
    if products:
        g.pairs = whole(g.channel_chunk) * job.taps
        g.band_bytes = whole(g.channel_chunk) * job.band.channel * 4
        g.terms = (job.band.block[1] - 1) * job.band.width + job.band.block[2]
        g.terms = (g.terms + SPLIT_TERMS - 1) // SPLIT_TERMS * SPLIT_TERMS
        # the band in parts, dy in parts, and dy of one panel and depth before
        g.x_bytes = g.band_bytes // 2 * g.parts + 2 * SPLIT_TERMS  # the last tile reads beyond the last row
        workspace = g.x_bytes + 2 * g.parts * g.terms * job.band.block[0] * whole_panels(&g) + g.terms * g.nr * 4
    else:
        g.pairs = g.channel_chunk * job.taps
        g.band_bytes = (job.band.channel * g.channel_chunk * job.itemsize + 63) // 64 * 64
        workspace = 0 if g.dot else i * whole_panels(&g) * job.itemsize
    workspace += g.band_bytes
    g.sums_bytes = g.pairs * job.itemsize * (g.output_chunk if g.dot else whole_panels(&g))
    g.sums_bytes = (g.sums_bytes + 63) // 64 * 64
    if threads == 0:
        return workspace
    off = <Py_ssize_t *>block_alloc(job.taps * sizeof(Py_ssize_t))
    at_once = max(1, min(parts, SUMS_LIMIT // (g.slices * <Py_ssize_t>g.sums_bytes)))
    g.sums = <char *>block_alloc(at_once * g.slices * g.sums_bytes)
    try:
        if off == NULL or g.sums == NULL:
            raise MemoryError(
                f"fastconv: no memory for {at_once * g.slices * g.sums_bytes} bytes of partial sums")
        band_offsets(job.axis, &job.band, off)
        job.off = off
        for g.first in range(0, parts, at_once):
            i = min(at_once, parts - g.first)
            run_tasks(slice_task, &g, i * g.slices, workspace, threads)
            run_tasks(reduce_task, &g, i, 0, threads if i > 1 else 1)
    finally:
        block_free(off)
        block_free(g.sums)
    if g.failed:
        count_rerun()
        run(0, lattice, x, dw, dy, groups, threads, max_workspace)
    return workspace


cdef struct BiasJob:
    const fc_kernels *kernels
    const char *dy
    char *db
    Py_ssize_t batch, channels, plane, itemsize


cdef void bias_task(void *argument, Py_ssize_t channel, char *workspace) noexcept nogil:
    cdef const BiasJob *job = <const BiasJob *>argument
    cdef Py_ssize_t n
    cdef double total = 0
    for n in range(job.batch):
        total += job.kernels.sum(job.dy + (n * job.channels + channel) * job.plane * job.itemsize, job.plane)
    if job.itemsize == 4:
        (<float *>job.db)[channel] = <float>total
    else:
        (<double *>job.db)[channel] = total


def bias_gradient(dy, db, int threads):
    """db[channel] = sum of dy[n][channel][...] over images and pixels; dy contiguous [n][channel][plane]."""
    cdef BiasJob job
    job.itemsize = dy.itemsize
    job.kernels = active_kernels(job.itemsize)
    job.dy = <const char *>cnp.PyArray_DATA(<cnp.ndarray>dy)
    job.db = <char *>cnp.PyArray_DATA(<cnp.ndarray>db)
    job.batch, job.channels, job.plane = dy.shape[0], dy.shape[1], dy.shape[2]
    run_tasks(bias_task, &job, job.channels, 0, threads)
