# SPDX-License-Identifier: BSD-3-Clause
"""Weight and bias gradients of every convolution.

dw[o][c][tap] = sum over images and pixels of dy[o][pixel] * x[c][pixel*stride + tap]. The work is divided over groups,
channels and outputs; only where that gives fewer than SLICES tasks are the images and blocks divided too, into a number of
slices that depends on the problem alone, and the slices are added in order. So the bits do not depend on the team.

A block is some rows of one image, or several small images: the tiles run over all of its pixels. Of x it reads a band, or x
itself where the band would be a copy. dy is transposed a panel of outputs at a time, each when its turn comes; meanwhile the
tiles fetch the next panel and the next block to the cache.
"""

cimport numpy as cnp
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from fastconv.kernels.correlate cimport Job, count_rerun, set_blocks, start_job
from fastconv.kernels.fastconv cimport (
    FC_CACHE_LINE,
    FC_DOT_A_MAX,
    FC_FIRST,
    FC_NV_MAX,
    fc_dot_tile,
    fc_fetch,
    fc_kernels,
    fc_split_kernels,
    fc_split_tile,
    fc_wgrad_tile,
)
from fastconv.kernels.isa cimport active_kernels, active_split
from fastconv.kernels.lattice cimport (
    Axis,
    Lattice,
    band_layout,
    band_offsets,
    band_pitch,
    choose_block,
    fill_band,
    own_pixels,
)
from fastconv.kernels.memory cimport block_alloc, block_free
from fastconv.kernels.split cimport NOTHING, SIDE, TERMS as SPLIT_TERMS, Operand, lost, parts_of, split_b, whole
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

cdef enum:
    SLICES = 16         # tasks worth having: several for each of a few threads
    PIXELS = 256        # outputs of a block: length of the chains that are summed in registers
    DOT_CELLS = 1 << 16  # (channel, output) pairs of a block where a chain is one of the lanes: its band is 256 KiB
    TERMS = 288         # (channel, tap) pairs of a task: the band of a 1x1 kernel is TERMS * PIXELS floats = 288 KiB
    OUTPUTS = 512       # output channels of a task, for each of which a block's band is read once
    # Split products. To split an element takes as long as some 100 products of it: so twice the channels, and as many outputs
    # as leave the parts of a block's x and dy, and its sums, in 2 MiB of L2; as many pixels as that allows, for the sums are
    # read and written once a block.
    SPLIT_TASK_TERMS = 2 * TERMS
    SPLIT_OUTPUTS = 256
    SPLIT_BYTES = 1 << 20
    SPLIT_PIXELS_MIN = 128
    SPLIT_PIXELS_MAX = 1024
    SUMS = 2 << 20      # most bytes of the sums of a task, if it has more than one panel
    SUMS_LIMIT = 24 << 20  # bytes of partial sums: larger ones are of fewer slices
    BAND_LIMIT = 1 << 20   # bytes of a block's band; a constant, because the blocks show in the bits
    SET_STRIDE = 4096   # addresses so far apart share a set of the L1 cache

cdef struct Gradient:
    Job job                        # x as in the forward convolution, y = dy, w = dw
    Py_ssize_t channel_chunk, channel_chunks, output_chunk, output_chunks
    Py_ssize_t slices, blocks      # blocks of all images
    Py_ssize_t images              # of a block
    bint in_place                  # x is read where it lies
    const Py_ssize_t *off          # off[pair], in the band or x
    Py_ssize_t row, plane          # elements from row to row and from plane to plane there
    Py_ssize_t nr                  # output channels of a panel
    bint dot                       # few output channels: vectorise along the pixels
    size_t band_bytes, block_bytes  # of what a block needs, its band first
    char *sums                     # sums[part][slice][panel][pair][NR], or [output][pair] with `dot`; one slice: workspace
    size_t sums_bytes              # of one slice of one part
    # Split products; 0: none
    int products, parts, failed
    const fc_split_kernels *split
    Py_ssize_t terms               # pixels of a block in its band, in whole tiles
    size_t x_bytes                 # of the parts of a block's band

# Some pixels: of one image, or of several whole images.
cdef struct Block:
    Py_ssize_t image, images
    Py_ssize_t origin[3]
    Py_ssize_t count[3]

cdef struct Part:
    Py_ssize_t slice, group, channel, channels, output, outputs
    Py_ssize_t pairs, columns      # of its sums: (channel, tap) pairs and outputs, in whole tiles and panels


cdef Py_ssize_t panel_width(const Gradient *g, Py_ssize_t outputs) noexcept nogil:
    """Columns of the panel that begins with `outputs` channels yet to do: half a panel when they fit."""
    return g.nr // 2 if outputs <= g.nr // 2 else g.nr


cdef Py_ssize_t columns(const Gradient *g, Py_ssize_t outputs) noexcept nogil:
    """Columns of all their panels."""
    cdef Py_ssize_t whole_panels = (outputs - 1) // g.nr * g.nr
    return whole_panels + panel_width(g, outputs - whole_panels)


cdef void part_of(const Gradient *g, Py_ssize_t number, Part *part) noexcept nogil:
    part.slice = number % g.slices
    number //= g.slices
    part.channel = number % g.channel_chunks * g.channel_chunk
    number //= g.channel_chunks
    part.output = number % g.output_chunks * g.output_chunk
    part.group = number // g.output_chunks
    part.channels = min(g.channel_chunk, g.job.channels - part.channel)
    part.outputs = min(g.output_chunk, g.job.outputs - part.output)
    part.pairs = (whole(part.channels) if g.products else part.channels) * g.job.taps
    part.columns = part.outputs if g.dot else columns(g, part.outputs)


cdef void block_at(const Gradient *g, Py_ssize_t number, Block *block) noexcept nogil:
    cdef const Job *job = &g.job
    cdef Py_ssize_t i
    for i in range(2, -1, -1):
        block.origin[i] = number % job.blocks[i] * job.band.block[i]
        block.count[i] = min(job.band.block[i], job.axis[i].out - block.origin[i])
        number //= job.blocks[i]
    block.image = number * g.images
    block.images = min(g.images, job.batch - block.image)


cdef const char *x_at(const Gradient *g, const Part *part, const Block *block) noexcept nogil:
    """The first pixel of x below the first of a block, but for padding."""
    cdef const Job *job = &g.job
    cdef const Axis *axis = job.axis
    cdef const Py_ssize_t *at = block.origin
    cdef Py_ssize_t pixel = (at[0] * axis[0].step * axis[1].size + at[1] * axis[1].step) * axis[2].size + at[2] * axis[2].step
    return job.x + (block.image * job.x_n + (part.group * job.channels + part.channel) * job.x_c + pixel) * job.itemsize


cdef const char *dy_at(const Gradient *g, const Part *part, const Block *block) noexcept nogil:
    """The first pixel of a block."""
    cdef const Job *job = &g.job
    cdef const Py_ssize_t *at = block.origin
    cdef Py_ssize_t pixel = (at[0] * job.axis[1].out + at[1]) * job.axis[2].out + at[2]
    return job.y + (block.image * job.y_n + (part.group * job.outputs + part.output) * job.y_c + pixel) * job.itemsize


cdef void transpose_plane(const Gradient *g, const Block *block, const char *dy, Py_ssize_t outputs, Py_ssize_t width,
                          Py_ssize_t pitch, char *to) noexcept nogil:
    """to[h*pitch + w][width] of one plane of a block, dy[output][h][w]."""
    cdef const Job *job = &g.job
    cdef Py_ssize_t rows = block.count[1], cols = block.count[2], h
    if cols == pitch == job.axis[2].out:
        cols *= rows
        rows = 1
    for h in range(rows):
        job.kernels.transpose(to, width, dy + h * job.axis[2].out * job.itemsize, job.y_c, outputs, cols, width)
        to += pitch * width * job.itemsize


cdef inline void fetch_share(fc_fetch *fetch, const char *x, Py_ssize_t rows, Py_ssize_t step, Py_ssize_t steps,
                             Py_ssize_t itemsize) noexcept nogil:
    """The rows that one of so many steps fetches, of those from x on."""
    cdef Py_ssize_t first = step * rows // steps
    fetch.at = x + first * fetch.row * itemsize
    fetch.rows = (step + 1) * rows // steps - first


cdef void add_block(const Gradient *g, const Part *part, const Block *block, const Block *following, const char *x,
                    char *panel, char *sums, int flags) noexcept nogil:
    """One block of pixels, output channels in vectors, a panel of them at a time: panel[image][d][h][w][NR].

    Meanwhile the next panel of dy, and what the following block reads of x, come to the cache; following.images == 0: none
    follows.
    """
    cdef const Job *job = &g.job
    cdef fc_wgrad_tile tile
    cdef fc_fetch *fetch_dy = &tile.fetch[0]
    cdef fc_fetch *fetch_x = &tile.fetch[1]
    cdef Py_ssize_t item = job.itemsize, plane = block.count[1] * block.count[2], pairs = part.pairs
    cdef Py_ssize_t tiles = (pairs + job.kernels.wgrad_mr - 1) // job.kernels.wgrad_mr, steps, step = 0
    cdef Py_ssize_t o = 0, i, d, pair, width, rows
    cdef const char *dy = dy_at(g, part, block)
    cdef const char *next_dy
    cdef const char *next_x = x_at(g, part, following)
    cdef char *acc
    cdef int mr, nv
    tile.flags = flags
    tile.x = x
    tile.dy = panel
    tile.x_plane = g.plane
    tile.x_row = g.row
    tile.planes = block.images * block.count[0]
    tile.rows = block.count[1]
    tile.cols = block.count[2]
    if tile.x_row == tile.cols:  # no halo along w: the rows are one
        tile.cols *= tile.rows
        tile.rows = 1
        if tile.x_plane == tile.cols:
            tile.cols *= tile.planes
            tile.planes = 1
    fetch_dy.row = job.y_c
    fetch_x.row = job.x_c
    steps = (part.outputs + g.nr - 1) // g.nr * tiles
    while o < part.outputs:
        width = panel_width(g, part.outputs - o)
        nv = <int>(width // job.kernels.lanes)
        acc = sums + o * pairs * item
        for i in range(block.images):
            for d in range(block.count[0]):
                transpose_plane(
                    g, block, dy + (i * job.y_n + o * job.y_c + d * job.axis[1].out * job.axis[2].out) * item,
                    min(g.nr, part.outputs - o), width, block.count[2],
                    panel + (i * block.count[0] + d) * plane * width * item)
        o += g.nr
        next_dy = dy + o * job.y_c * item if o < part.outputs else dy_at(g, part, following)
        rows = part.outputs - o if o < part.outputs else part.outputs if following.images else 0
        rows = min(g.nr, rows) if g.images == 1 else 0  # small maps are in the cache
        for i in range(tiles):
            fetch_share(fetch_dy, next_dy, rows, i, tiles, item)
            fetch_share(fetch_x, next_x, part.channels if following.images else 0, step, steps, item)
            step += 1
            pair = i * pairs // tiles
            mr = <int>((i + 1) * pairs // tiles - pair)
            tile.off = g.off + pair
            tile.acc = acc + pair * width * item
            job.kernels.wgrad_tile[nv][mr](&tile)


cdef void add_block_dot(const Gradient *g, const Part *part, const Block *block, const char *x, char *sums) noexcept nogil:
    """One block of pixels, vectorised along the rows."""
    cdef const Job *job = &g.job
    cdef fc_dot_tile tile
    cdef const char *dy = dy_at(g, part, block)
    cdef Py_ssize_t item = job.itemsize, d, i, k, j, o, pair, pairs = part.pairs, o_tiles, pair_tiles
    cdef int na, nb
    tile.rows = block.count[1]
    tile.cols = block.count[2]
    tile.acc_row = pairs
    tile.a_row = job.axis[2].out
    tile.b_row = g.row
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
            tile.acc = sums + (o * pairs + pair) * item
            for d in range(block.count[0]):
                for i in range(na):
                    tile.a[i] = dy + ((o + i) * job.y_c + d * job.axis[1].out * job.axis[2].out) * item
                for i in range(nb):
                    tile.b[i] = x + (g.off[pair + i] + d * g.plane) * item
                job.kernels.dot_tile[na][nb](&tile)


cdef uint32_t pair_dy(const Gradient *g, const Part *part, const Block *block, char *pixels, char *to) noexcept nogil:
    """to[panel][d][block of pixels][part][pair of pixels][width][2]: dy as it lies over the bands, zero between its rows."""
    cdef const Job *job = &g.job
    cdef const char *dy = dy_at(g, part, block)
    cdef Py_ssize_t o = 0, d, i
    cdef Operand operand
    cdef uint32_t least = NOTHING
    cdef Py_ssize_t filled = 0  # pixels without a gap
    if block.count[2] == job.band.width:
        filled = block.count[1] * block.count[2] * (block.images if block.count[1] * block.count[2] == job.band.size else 1)
    operand.kernels, operand.split, operand.parts, operand.row = job.kernels, g.split, g.parts, 1
    while o < part.outputs:
        operand.col = panel_width(g, part.outputs - o)
        for d in range(block.count[0]):
            memset(pixels + filled * operand.col * 4, 0, (g.terms - filled) * operand.col * 4)
            for i in range(block.images):
                transpose_plane(g, block, dy + (i * job.y_n + o * job.y_c + d * job.axis[1].out * job.axis[2].out) * 4,
                                min(g.nr, part.outputs - o), operand.col, job.band.width,
                                pixels + i * job.band.size * operand.col * 4)
            least = min(least, split_b(&operand, pixels, operand.col, g.terms, NULL, to))
            to += 2 * operand.col * g.terms * g.parts
        o += g.nr
    return least


cdef void add_block_split(const Gradient *g, const Part *part, const Block *block, const char *x, const char *dy,
                          char *sums) noexcept nogil:
    """One block of pixels in tiles of channels and outputs, tap by tap; x[part][channel][pixel], dy as of pair_dy()."""
    cdef const Job *job = &g.job
    cdef fc_split_tile tile
    cdef Py_ssize_t zero = 0, o = 0, d, c, tap, width
    cdef int na
    tile.off = &zero
    tile.taps = 1
    tile.fetch = tile.fetch_end = NULL
    tile.fetch_step = 0
    tile.channels = (block.images - 1) * job.band.size + (block.count[1] - 1) * job.band.width + block.count[2]
    tile.channels = (tile.channels + SPLIT_TERMS - 1) // SPLIT_TERMS
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
        for d in range(block.count[0]):
            tile.b = dy
            c = 0
            while c < part.channels:
                na = 1 if part.channels - c <= SIDE else 2
                for tap in range(job.taps):
                    tile.a = x + 2 * (c * tile.a_row + d * job.band.rows * job.band.width + job.off[tap])
                    tile.acc = sums + 4 * (o * part.pairs + (c * job.taps + tap) * width)
                    g.split.tile[g.products][na][width // SIDE](&tile)
                c += 2 * SIDE
            dy += 2 * width * g.terms * g.parts
        o += g.nr


cdef void split_block(Gradient *g, const Part *part, const Block *block, char *workspace, char *sums) noexcept nogil:
    """One block on tile registers: from the band at `workspace`, with room behind it."""
    cdef const Job *job = &g.job
    cdef char *x = workspace + g.band_bytes
    cdef char *pairs = x + g.x_bytes
    cdef uint32_t least, least_dy
    least = g.split.rows(x, g.band_bytes // 4, <const float *>workspace, g.band_bytes // 4, g.parts)
    memset(pairs - 2 * SPLIT_TERMS, 0, 2 * SPLIT_TERMS)
    least_dy = pair_dy(g, part, block, pairs + 2 * g.parts * g.terms * job.band.block[0] * columns(g, g.output_chunk),
                       pairs)
    if lost(g.parts, least, least_dy):
        g.failed = True
    else:
        add_block_split(g, part, block, x, pairs, sums)


cdef void store(Gradient *g, const Part *part, const char *sums) noexcept nogil:
    """Write dw[output][channel][tap] of a part."""
    cdef const Job *job = &g.job
    cdef Py_ssize_t o = 0, i, pairs = part.channels * job.taps, width, item = job.itemsize
    cdef char *dw = <char *>job.w + (part.group * job.w_g + part.output * job.w_o + part.channel * job.w_c) * item
    if g.dot:
        for o in range(part.outputs):
            memcpy(dw + o * job.w_o * item, sums + o * pairs * item, pairs * item)
        return
    while o < part.outputs:
        width = panel_width(g, part.outputs - o)
        # dw[o + j][pair i] = sums[panel][pair i][j]
        job.kernels.transpose(dw + o * job.w_o * item, job.w_o, sums + o * part.pairs * item, width, pairs,
                              min(g.nr, part.outputs - o), pairs)
        if g.products:
            for i in range(o, min(part.outputs, o + g.nr)):
                if not job.kernels.finite(dw + i * job.w_o * item, pairs):
                    g.failed = True
        o += g.nr


cdef void slice_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef Gradient *g = <Gradient *>argument
    cdef const Job *job = &g.job
    cdef Part part
    cdef Block block
    cdef Block following
    cdef Py_ssize_t item = job.itemsize, first, last, i
    cdef const char *x
    cdef char *sums = workspace + g.block_bytes if g.slices == 1 else g.sums + number * g.sums_bytes
    part_of(g, number, &part)
    first = part.slice * g.blocks // g.slices
    last = (part.slice + 1) * g.blocks // g.slices
    if g.products or g.dot or first == last:  # the other kernel stores its first sums
        memset(sums, 0, part.pairs * part.columns * item)
    if g.products:
        if g.failed:
            return
        memset(workspace, 0, g.band_bytes)  # what lies between rows is multiplied by zero: it must be finite
        g.split.begin()
    for number in range(first, last):
        block_at(g, number, &block)
        x = x_at(g, &part, &block)
        if not g.in_place:
            for i in range(block.images):
                fill_band(job.axis, &job.band, item, block.origin, block.count,
                          job.x + ((block.image + i) * job.x_n + (part.group * job.channels + part.channel) * job.x_c) * item,
                          job.x_c, part.channels, workspace + i * job.band.size * item)
            x = workspace
        if g.products:
            split_block(g, &part, &block, workspace, sums)
        elif g.dot:
            add_block_dot(g, &part, &block, x, sums)
        else:
            block_at(g, number + 1, &following)
            if number + 1 == last or g.images > 1:
                following.images = 0
            add_block(g, &part, &block, &following, x, workspace + g.band_bytes, sums,
                      FC_FIRST if number == first else 0)
    if g.products:
        g.split.end()
    if g.slices == 1:
        store(g, &part, sums)


cdef void reduce_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """Add the slices of a part in order."""
    cdef Gradient *g = <Gradient *>argument
    cdef Part part
    cdef Py_ssize_t s
    cdef char *sums = g.sums + number * g.slices * g.sums_bytes
    part_of(g, number * g.slices, &part)
    for s in range(1, g.slices):
        g.job.kernels.add(sums, sums + s * g.sums_bytes, part.pairs * part.columns)
    store(g, &part, sums)


cdef inline Py_ssize_t equal(Py_ssize_t count, Py_ssize_t most, Py_ssize_t unit) noexcept nogil:
    """The size of chunks of about equal size and at most `most`, in whole units."""
    cdef Py_ssize_t chunks = (count + most - 1) // most
    return min(count, ((count + chunks - 1) // chunks + unit - 1) // unit * unit)


cdef void set_pixels(Gradient *g, Py_ssize_t channels, size_t limit) noexcept:
    """Blocks of at most `limit` bytes for so many channels: several images where one has few pixels."""
    cdef Job *job = &g.job
    cdef bint joins
    cdef Py_ssize_t pixels = PIXELS, each
    if g.products:
        pixels = SPLIT_BYTES // (2 * g.parts * (channels + min(g.job.outputs, <Py_ssize_t>SPLIT_OUTPUTS)))
        pixels = max(<Py_ssize_t>SPLIT_PIXELS_MIN, min(pixels, <Py_ssize_t>SPLIT_PIXELS_MAX))
    if g.dot:
        pixels = max(pixels, min(pixels * job.kernels.lanes, DOT_CELLS // channels))
    choose_block(job.axis, channels, job.itemsize, limit, pixels, job.band.block)
    band_layout(job.axis, job.band.block, job.itemsize, &job.band)
    g.blocks = set_blocks(job)
    g.images = 1
    # what lies between the images is multiplied too: six products of it take longer than reading the sums again
    joins = job.axis[0].out == 1 and (g.products < 6 or job.band.size == job.axis[1].out * job.axis[2].out)
    if g.blocks == job.batch > 1 and joins and not g.dot:
        each = channels * job.band.size * job.itemsize
        g.images = max(1, min(pixels // (job.axis[1].out * job.axis[2].out), <Py_ssize_t>limit // each))
        g.blocks = (job.batch + g.images - 1) // g.images
        g.images = (job.batch + g.blocks - 1) // g.blocks
        job.band.channel = band_pitch(g.images * job.band.size, job.itemsize)
    g.row = job.band.width
    g.plane = job.band.size if g.images > 1 else job.band.rows * job.band.width
    # a band would be a copy of x: not needed, but where x has all channels in one set of the cache
    g.in_place = not g.products and own_pixels(job.axis) and job.x_c * job.itemsize % SET_STRIDE != 0
    if g.in_place:
        job.band.channel = 0
        g.row = job.axis[2].size
        g.plane = job.x_n if g.images > 1 else job.axis[1].size * job.axis[2].size


cdef void share_outputs(Gradient *g, Py_ssize_t others, int threads) noexcept nogil:
    """Chunks of outputs: few, but as many tasks for each thread, of which a chunk has `others`. No sum depends on it.

    Where even the most would leave threads without a task they are as many as that.
    """
    cdef Py_ssize_t chunks = g.output_chunks, most = min((g.job.outputs + g.nr - 1) // g.nr, chunks + threads)
    while chunks < most and chunks * others % threads and chunks * others < 4 * threads:
        chunks += 1
    if chunks * others % threads == 0 or chunks * others < threads:
        g.output_chunk = equal(g.job.outputs, (g.job.outputs + chunks - 1) // chunks, g.nr)
        g.output_chunks = (g.job.outputs + g.output_chunk - 1) // g.output_chunk


cpdef bint along_pixels(Py_ssize_t outputs, Py_ssize_t cols, Py_ssize_t itemsize):
    """Whether to vectorise along rows of so many pixels: where the outputs leave more lanes idle than the ends of rows do.

    A row takes the time of its vectors and of about one more. Outputs in vectors take a broadcast for each multiply-add, and so
    about 2/3 of the peak; vectors of whole cache lines do no better along the pixels, where nearly all of them cross a line.
    """
    cdef Py_ssize_t lanes = active_kernels(itemsize).lanes
    cdef Py_ssize_t row = outputs * ((cols + lanes - 1) // lanes + 1)
    return outputs <= lanes and (row <= cols if lanes * itemsize == FC_CACHE_LINE else 2 * row <= 3 * cols)


def run(int products, Lattice lattice, x, dw, dy, Py_ssize_t groups, int threads, max_workspace):
    """dw[group*output][channel][tap], from contiguous x and dy[n][channel][d][h][w] of the forward lattice.

    With `products`, of the bfloat16 parts of x and dy on tile registers; sums that those may not give exactly enough are done
    again without, see conv_split. Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Gradient g
    cdef Job *job = &g.job
    cdef Py_ssize_t i, parts, most, pairs
    cdef size_t workspace, limit
    cdef Py_ssize_t *off
    start_job(job, lattice, x, dw, dy, groups, False, None, None, -1)
    g.products, g.parts, g.failed = products, parts_of(products), False
    g.split = active_split()
    g.nr = 2 * SIDE if products else FC_NV_MAX * job.kernels.lanes
    g.dot = not products and along_pixels(job.outputs, job.axis[2].out, job.itemsize)
    if products:
        g.channel_chunk = equal(job.channels, max(2 * SIDE, SPLIT_TASK_TERMS // job.taps // (2 * SIDE) * 2 * SIDE), 2 * SIDE)
    else:
        g.channel_chunk = equal(job.channels, max(1, TERMS // job.taps), 1)
    g.channel_chunks = (job.channels + g.channel_chunk - 1) // g.channel_chunk
    set_pixels(&g, g.channel_chunk, BAND_LIMIT)
    most = SPLIT_OUTPUTS  # all of a block's dy is packed
    if not products:
        most = SUMS // (g.channel_chunk * job.taps * job.itemsize) // g.nr * g.nr
    g.output_chunk = equal(job.outputs, max(g.nr, min(<Py_ssize_t>OUTPUTS, most)), g.nr)
    g.output_chunks = (job.outputs + g.output_chunk - 1) // g.output_chunk
    parts = groups * g.output_chunks * g.channel_chunks
    i = SUMS_LIMIT // (parts * g.channel_chunk * job.taps * columns(&g, g.output_chunk) * job.itemsize)
    g.slices = max(1, min(g.blocks, SLICES // parts, i))
    if max_workspace is not None:
        limit = min(<size_t>BAND_LIMIT, <size_t>max_workspace) // job.itemsize
        while g.channel_chunk > 1 and <size_t>(job.band.channel * g.channel_chunk) > limit:
            g.channel_chunk = (g.channel_chunk + 1) // 2
        if <size_t>job.band.channel > limit:  # the one case in which the limit shows in the bits
            set_pixels(&g, 1, limit * job.itemsize)
            g.slices = min(g.slices, g.blocks)
        g.channel_chunks = (job.channels + g.channel_chunk - 1) // g.channel_chunk
    if threads > 1 and not g.dot:
        share_outputs(&g, groups * g.channel_chunks * g.slices, threads)
    parts = groups * g.output_chunks * g.channel_chunks
    pairs = g.channel_chunk * job.taps
    if products:
        pairs = whole(g.channel_chunk) * job.taps
        g.band_bytes = whole(g.channel_chunk) * job.band.channel * 4
        g.terms = (g.images - 1) * job.band.size + (job.band.block[1] - 1) * job.band.width + job.band.block[2]
        g.terms = (g.terms + SPLIT_TERMS - 1) // SPLIT_TERMS * SPLIT_TERMS
        # the band in parts, dy in parts, and dy of one panel and depth before
        g.x_bytes = g.band_bytes // 2 * g.parts + 2 * SPLIT_TERMS  # the last tile reads beyond the last row
        workspace = 2 * g.parts * g.terms * job.band.block[0] * columns(&g, g.output_chunk) + g.terms * g.nr * 4
        workspace += g.x_bytes
    else:
        g.band_bytes = (job.band.channel * g.channel_chunk * job.itemsize + 63) // 64 * 64
        workspace = g.images * job.band.block[0] * job.band.block[1] * job.band.block[2] * g.nr * job.itemsize
        if g.dot:
            workspace = 0
    g.block_bytes = (g.band_bytes + workspace + 63) // 64 * 64
    g.sums_bytes = pairs * job.itemsize * (g.output_chunk if g.dot else columns(&g, g.output_chunk))
    g.sums_bytes = (g.sums_bytes + 63) // 64 * 64
    workspace = g.block_bytes + (g.sums_bytes if g.slices == 1 else 0)
    if threads == 0:
        return workspace
    off = <Py_ssize_t *>block_alloc((job.taps + pairs) * sizeof(Py_ssize_t))
    g.sums = <char *>block_alloc(parts * g.slices * g.sums_bytes if g.slices > 1 else 0)
    try:
        if off == NULL or g.sums == NULL:
            raise MemoryError(
                f"fastconv: no memory for {parts * g.slices * g.sums_bytes} bytes of partial sums")
        band_offsets(job.axis, &job.band, off)
        job.off = off
        g.off = off + job.taps
        for i in range(pairs):
            off[job.taps + i] = i // job.taps * (job.x_c if g.in_place else job.band.channel) + off[i % job.taps]
        run_tasks(slice_task, &g, parts * g.slices, workspace, threads)
        if g.slices > 1:
            run_tasks(reduce_task, &g, parts, 0, threads)
    finally:
        block_free(off)
        block_free(g.sums)
    if g.failed:
        count_rerun()
        run(0, lattice, x, dw, dy, groups, threads, max_workspace)
    return workspace


ctypedef fused real:
    float
    double

cdef enum:
    BIAS_CHANNELS = 64  # of a task, where dy has one pixel: whole cache lines, and sums in L1

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


cdef void add_rows(const BiasJob *job, Py_ssize_t first, Py_ssize_t count, const real *dy, real *db) noexcept nogil:
    """db of `count` channels from `first` on, for planes of one pixel: rows of dy are read as they lie."""
    cdef double sums[BIAS_CHANNELS]
    cdef Py_ssize_t n, c
    memset(sums, 0, sizeof(sums))
    for n in range(job.batch):
        for c in range(count):
            sums[c] += dy[n * job.channels + first + c]
    for c in range(count):
        db[first + c] = <real>sums[c]


cdef void bias_rows_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const BiasJob *job = <const BiasJob *>argument
    cdef Py_ssize_t first = number * BIAS_CHANNELS, count = min(<Py_ssize_t>BIAS_CHANNELS, job.channels - first)
    if job.itemsize == 4:
        add_rows(job, first, count, <const float *>job.dy, <float *>job.db)
    else:
        add_rows(job, first, count, <const double *>job.dy, <double *>job.db)


def bias_gradient(cnp.ndarray dy, cnp.ndarray db, int threads):
    """db[channel] = sum of dy[n][channel][...] over images and pixels; dy contiguous [n][channel][plane] or [n][channel]."""
    cdef BiasJob job
    job.itemsize = cnp.PyArray_ITEMSIZE(dy)
    job.kernels = active_kernels(job.itemsize)
    job.dy, job.db = <const char *>cnp.PyArray_DATA(dy), <char *>cnp.PyArray_DATA(db)
    job.batch, job.channels = cnp.PyArray_DIM(dy, 0), cnp.PyArray_DIM(dy, 1)
    job.plane = cnp.PyArray_DIM(dy, 2) if cnp.PyArray_NDIM(dy) > 2 else 1
    if job.plane == 1:
        run_tasks(bias_rows_task, &job, (job.channels + BIAS_CHANNELS - 1) // BIAS_CHANNELS, 0, threads)
    else:
        run_tasks(bias_task, &job, job.channels, 0, threads)
