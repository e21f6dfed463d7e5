# SPDX-License-Identifier: BSD-3-Clause
"""Winograd convolution: F(4x4, 3x3), F(2x2, 3x3) and F(2x2, 5x5), stride 1, any dilation: every phase of a map is a map.

A task owns a block of tiles and keeps all that happens to it in its workspace: it packs the block's band a vector of channels
at a time and transforms it to V[position][channel block][tile][lanes]. Then, for some panels at a time, it multiplies each of
the alpha^2 positions with the transformed weights to M[position][panel][tile][width] and transforms M back to output pixels.
Tiles are numbered along the rows of tiles of all images, so that small maps fill a block too. Where all tiles are one block, a
panel of weights serves one task only, which then transforms it itself, a chain of channels at a time, in its cache.

The last step takes as long as memory does to give the lines of y before they can be written, so where vectors are cache lines
the tiles that are multiplied last fetch them (avx512: 0.8 to 0.96 of the time; the next block's rows of x as well: no less).

An infinity, a NaN or an overflow anywhere in a tile would reach outputs that do not depend on it. Sums that are not
finite are noticed before the epilogue, and the whole call runs again on the direct kernel.
"""

cimport numpy as cnp
from libc.string cimport memcpy, memset

from fastconv.kernels.correlate cimport (
    PACKED_LIMIT,
    Job,
    Weights,
    activate_rows,
    count_rerun,
    packed_panel,
    panel_bounds,
    run_panels,
    run_rounds,
    split_panels,
    start_job,
)
from fastconv.kernels.fastconv cimport (
    FC_CACHE_LINE,
    FC_FIRST,
    FC_NV_MAX,
    FC_RELU,
    FC_SHARE,
    fc_fetch,
    fc_kernels,
    fc_winograd_input,
    fc_winograd_output,
    fc_winograd_tile,
)
from fastconv.kernels.isa cimport cache_bytes
from fastconv.kernels.lattice cimport Axis, Lattice, ceil_div, fair_part, lines, source_at

from fastconv.kernels import conv_direct

cnp.import_array()

# (m, r) of each fc_winograd_kind
KINDS = ((4, 3), (2, 3), (2, 5))

cdef enum:
    # Channels summed in registers before the partial sums go to memory. Short chains keep the rounding errors below those of
    # the transforms, and 32 channels of a panel (2 or 4 KiB) stay in L1 while the block's tiles pass. A constant, because
    # it shows in the last bits.
    CHAIN = 32
    # Tiles of a block: each transformed weight that is read serves that many multiply-adds. With 32 that is 16 flops a byte,
    # which an L3 cache delivers (measured: 48 and 64 are no faster); more than 96 gain nothing.
    TILES_MIN = 32
    TILES_MAX = 96
    # Output channels of M. V is read again for each group of so many, 64 flops a byte; fewer sums leave L2 to V and more tiles.
    SUMS = 128
    # Transformed weights that a task packs at a time, of one chain and some panels: they stay in L2 beside V and M.
    PACKED_BYTES = 160 << 10
    # Bound on V and M of one thread.
    WORKSPACE_LIMIT = 32 << 20
    # A packed band of one vector of channels, which the input transform reads from L1.
    BAND_BYTES = 20 << 10
    # Tiles along its rows: the most of a forward's block. With 4 pixels a tile and 32 phases it has 2.4 MiB (avx2).
    BAND_TILES = TILES_MAX
    # Most images whose rows are fetched. Of smaller ones a block has more, but then it multiplies many channels.
    AHEAD = 32

cdef struct Winograd:
    Job job                            # first: tasks get a pointer to it
    Tiling tiling                      # of x
    int kind, nonfinite
    Py_ssize_t m, r, alpha, positions  # positions = alpha^2
    Py_ssize_t channel_blocks          # vectors of channels
    Py_ssize_t u_rows                  # rows of one position of U: the channels and one more, see lines()
    Blocks blocks
    Py_ssize_t m_p                     # elements from position to position of M
    Py_ssize_t m_panels                # panels of M
    size_t band_bytes, v_bytes, m_bytes
    size_t u_bytes                     # of the weights that a task packs at a time; 0: they are packed beforehand
    Py_ssize_t tap[25]                 # tap[i*r + j]: where the weights keep it


cdef void pack_panel(const Winograd *g, Py_ssize_t group, Py_ssize_t panel, Py_ssize_t first, Py_ssize_t channels,
                     char *workspace) noexcept nogil:
    """Transformed weights of some channels of one panel: U[position][channel][width]."""
    cdef const Job *job = &g.job
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes, start, size, width, c, t, v, u_p
    cdef const char *w
    cdef char *taps
    cdef char *to
    panel_bounds(job, panel, &start, &size, &width)
    to = <char *>packed_panel(job, group, start)
    w = job.w + (group * job.w_g + start * job.w_o + first * job.w_c) * item
    taps = workspace + job.w_taps * width * item
    u_p = g.u_rows * width
    for c in range(channels):
        job.kernels.transpose(workspace, width, w + c * job.w_c * item, job.w_o, size, job.w_taps, width)
        for t in range(job.w_taps):
            memcpy(taps + t * width * item, workspace + g.tap[t] * width * item, width * item)
        for v in range(width // lanes):
            job.kernels.winograd_weight[g.kind](to + (c * width + v * lanes) * item, u_p,
                                                taps + v * lanes * item, width)
    for t in range(g.positions):
        memset(to + (t * u_p + channels * width) * item, 0, (u_p - channels * width) * item)


cdef void pack_task(void *argument, Py_ssize_t task, char *workspace) noexcept nogil:
    """All channels of one panel."""
    cdef const Winograd *g = <const Winograd *>argument
    cdef Py_ssize_t panels = g.job.panel1 - g.job.panel0
    pack_panel(g, g.job.group0 + task // panels, g.job.panel0 + task % panels, 0, g.job.channels, workspace)


cdef void pack_row(const Tiling *g, const char *x, Py_ssize_t channels, Py_ssize_t d, Py_ssize_t h, Py_ssize_t q,
                   Py_ssize_t count, char *to) noexcept nogil:
    """to[i][lanes] = row h of depth d at padded coordinate q + i, i < count, of `channels` channels from x on.

    Short rows are packed as whole vectors of pixels: what they spill lies in the band's rows after, which overwrite it.
    """
    cdef const Axis *axis = &g.axis[2]
    cdef Py_ssize_t item = g.itemsize, lanes = g.kernels.lanes, row = (d * g.axis[1].size + h) * axis.size, i, at
    cdef Py_ssize_t left = min(max(axis.inner_start - q, 0), count)
    cdef Py_ssize_t right = max(left, min(axis.inner_stop - q, count)), pixels = right - left
    if pixels:
        at = row + q + left + axis.inner_shift
        if at + lanes <= g.x_c:
            pixels = max(pixels, lanes)
        g.kernels.transpose(to + left * lanes * item, lanes, x + at * item, g.x_c, channels, pixels, lanes)
    for i in range(count):
        if left <= i < right:
            continue
        at = source_at(axis, q + i)
        if at < 0:
            memset(to + i * lanes * item, 0, lanes * item)
        else:
            g.kernels.transpose(to + i * lanes * item, lanes, x + (row + at) * item, g.x_c, channels, 1, lanes)


cdef void start_tiling(Tiling *g, const fc_kernels *kernels, Py_ssize_t itemsize, const Axis *axis, Py_ssize_t taps,
                       Py_ssize_t step, Py_ssize_t size) noexcept nogil:
    """Tiles of `size` pixels, `step` from each other, as far apart as the `taps` of the lattice's axes."""
    cdef Py_ssize_t i, k
    g.kernels, g.itemsize = kernels, itemsize
    g.step, g.size = step, size
    for i in range(3):
        g.axis[i] = axis[i]
    for i in range(2):
        g.dilation[i] = 1
        for k in range(taps):
            g.dilation[i] = max(g.dilation[i], axis[i + 1].offset[k] // (taps - 1))
    g.tile_rows = ceil_div(ceil_div(axis[1].out, g.dilation[0]), step)


cdef Py_ssize_t rows_of_tiles(const Tiling *g, Py_ssize_t batch) noexcept nogil:
    return batch * g.axis[0].out * g.dilation[0] * g.tile_rows * g.dilation[1]


cdef Py_ssize_t columns_of_tiles(const Tiling *g) noexcept nogil:
    return ceil_div(ceil_div(g.axis[2].out, g.dilation[1]), g.step)


# Row of tiles `place` in phase (h, w) of depth d of image n.
cdef struct TileRow:
    Py_ssize_t n, d, h, place, w


cdef TileRow tile_row(const Tiling *g, Py_ssize_t number) noexcept nogil:
    cdef TileRow at
    at.w = number % g.dilation[1]
    number //= g.dilation[1]
    at.place = number % g.tile_rows
    number //= g.tile_rows
    at.h = number % g.dilation[0]
    number //= g.dilation[0]
    at.d = number % g.axis[0].out
    at.n = number // g.axis[0].out
    return at


cdef void next_row(const Tiling *g, TileRow *at) noexcept nogil:
    at.w += 1
    if at.w < g.dilation[1]:
        return
    at.w = 0
    at.place += 1
    if at.place < g.tile_rows:
        return
    at.place = 0
    at.h += 1
    if at.h < g.dilation[0]:
        return
    at.h = 0
    at.d += 1
    if at.d == g.axis[0].out:
        at.d = 0
        at.n += 1


cdef void transform_tiles(const Tiling *g, const char *x, Py_ssize_t channels, Py_ssize_t row, Py_ssize_t rows,
                          Py_ssize_t col, Py_ssize_t cols, char *band, char *v) noexcept nogil:
    """The tiles in rows [row, row + rows) and columns [col, col + cols); x is the first channel's plane in the first image.

    A band is the rows of pixels of one phase along h; the phases along w share it.
    """
    cdef fc_winograd_input t
    cdef TileRow at
    cdef Py_ssize_t item = g.itemsize, lanes = g.kernels.lanes, down = g.dilation[0], across = g.dilation[1]
    cdef Py_ssize_t b, k, c, i, r, count, h, d, width
    cdef const char *planes
    cdef char *line
    t.x_row = g.band_row
    t.x_px = across * lanes
    t.v_p = g.v_p
    t.v_t = g.v_t
    for b in range((channels + lanes - 1) // lanes):
        for k in range(ceil_div(cols, BAND_TILES)):
            c = k * BAND_TILES
            t.tiles = min(<Py_ssize_t>BAND_TILES, cols - c)
            width = ((t.tiles - 1) * g.step + g.size) * across
            r = 0
            while r < rows:
                at = tile_row(g, row + r)
                count = min(min(g.run, g.tile_rows - at.place) * across - at.w, rows - r)
                d = source_at(&g.axis[0], at.d * g.axis[0].step)
                planes = x + (at.n * g.x_n + b * lanes * g.x_c) * item
                for i in range((at.w + count - 1) // across * g.step + g.size):
                    h = source_at(&g.axis[1], at.h + (at.place * g.step + i) * down)
                    line = band + i * g.band_row * item
                    if h < 0 or d < 0:
                        memset(line, 0, width * lanes * item)
                    else:
                        pack_row(g, planes, min(lanes, channels - b * lanes), d, h, (col + c) * g.step * across, width,
                                 line)
                for i in range(at.w, at.w + count):
                    t.x = band + (i // across * g.step * g.band_row + i % across * lanes) * item
                    t.v = v + (b * g.v_b + ((r + i - at.w) * cols + c) * g.v_t) * item
                    g.transform(&t)
                r += count


# Rows of y that come to the L2 cache while tiles are multiplied.
cdef struct Ahead:
    fc_fetch rows[AHEAD]           # of the outputs of a panel or more, in one image
    Py_ssize_t count               # images
    Py_ssize_t image, plane, line  # where the next tile goes on
    Py_ssize_t wait                # tiles that go before: what comes too early does not stay


cdef inline Ahead nothing_ahead() noexcept nogil:
    cdef Ahead ahead
    ahead.count = ahead.image = ahead.plane = ahead.line = ahead.wait = 0
    return ahead


cdef Ahead ahead_of(const Winograd *g, Py_ssize_t group, Py_ssize_t panel0, Py_ssize_t panel1, Py_ssize_t row,
                    Py_ssize_t rows, Py_ssize_t cols) noexcept nogil:
    """Those that some panels of a block of tiles are stored to."""
    cdef const Job *job = &g.job
    cdef const Tiling *tiling = &g.tiling
    cdef Ahead ahead = nothing_ahead()
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes, chain, place, count, start, size, width
    cdef fc_fetch *to
    if lanes * item != FC_CACHE_LINE or g.channel_blocks == 0 or g.blocks.col_blocks > 1 or job.axis[0].out > 1 or max(
            tiling.dilation[0], tiling.dilation[1]) > 1:
        return ahead
    panel_bounds(job, panel0, &start, &size, &width)
    chain = min(max(<Py_ssize_t>CHAIN, lanes), g.channel_blocks * lanes)
    ahead.wait = g.channel_blocks * lanes // chain * (panel1 - panel0) * g.positions
    ahead.wait *= ceil_div(rows * cols, job.kernels.conv_mr[FC_NV_MAX])
    while rows > 0 and ahead.count < AHEAD:
        place = row % tiling.tile_rows
        count = min(rows, tiling.tile_rows - place)
        to = &ahead.rows[ahead.count]
        to.at = job.y + (row // tiling.tile_rows * job.y_n + (group * job.outputs + start) * job.y_c
                         + place * g.m * job.axis[2].out) * item
        to.row = job.y_c
        to.rows = min(job.outputs, panel1 * job.panel) - start
        to.lines = min(count * g.m, job.axis[1].out - place * g.m) * job.axis[2].out * item // FC_CACHE_LINE + 1
        if to.lines * FC_CACHE_LINE >= job.y_c * item:  # they are one
            to.lines += (to.rows - 1) * job.y_c * item // FC_CACHE_LINE
            to.rows = 1
        ahead.wait -= to.rows * ceil_div(to.lines, chain)
        ahead.count += 1
        row += count
        rows -= count
    return ahead


cdef void fetch_lines(Ahead *ahead, fc_winograd_tile *t, Py_ssize_t channels, Py_ssize_t item) noexcept nogil:
    """Those that the next tile fetches, at most one for each channel."""
    cdef const fc_fetch *rows = &ahead.rows[ahead.image]
    t.fetch, t.fetch_step = t.w, 0
    ahead.wait -= 1
    if ahead.wait >= 0 or ahead.image == ahead.count:
        return
    t.fetch = <const char *>rows.at + ahead.plane * rows.row * item + ahead.line * FC_CACHE_LINE
    t.fetch_step = (min(channels, rows.lines - ahead.line) * FC_CACHE_LINE + channels - 1) // channels
    ahead.line += channels
    if ahead.line >= rows.lines:
        ahead.line = 0
        ahead.plane += 1
    if ahead.plane == rows.rows:
        ahead.plane = 0
        ahead.image += 1


cdef const char *weights_at(const Winograd *g, Py_ssize_t group, Py_ssize_t panel, Py_ssize_t p) noexcept nogil:
    """U[position p] of a panel."""
    cdef Py_ssize_t start, size, width
    panel_bounds(&g.job, panel, &start, &size, &width)
    return packed_panel(&g.job, group, start) + p * g.u_rows * width * g.job.itemsize


cdef void multiply(const Winograd *g, Py_ssize_t group, Py_ssize_t panel0, Py_ssize_t panel1, Py_ssize_t block0,
                   Py_ssize_t block1, Py_ssize_t tiles, const char *v, char *m, Ahead *ahead) noexcept nogil:
    """M[position] (+)= V[position] U[position] of the blocks [block0, block1) of channels, for each panel."""
    cdef const Job *job = &g.job
    cdef fc_winograd_tile t
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes, p, b, panel, start, size, width, j, n, at, share
    cdef Py_ssize_t first, last
    cdef const char *x_next
    cdef const char *w_next
    cdef int nv, mr
    panel_bounds(job, panel0, &at, &size, &width)
    t.x_b = g.tiling.v_b
    for p in range(g.positions):
        for panel in range(panel0, panel1):
            panel_bounds(job, panel, &start, &size, &width)
            nv = <int>(width // lanes)
            n = (tiles + job.kernels.conv_mr[nv] - 1) // job.kernels.conv_mr[nv]
            t.w = weights_at(g, group, panel, p)
            b = block0
            while b < block1:
                t.blocks = min(block1 - b, max(CHAIN // lanes, 1))
                t.flags = FC_FIRST if b == 0 else 0
                share = t.blocks * lanes * width * item
                x_next = v + (p * g.tiling.v_p + (b + t.blocks) * g.tiling.v_b) * item
                w_next = <const char *>t.w + share
                if b + t.blocks == block1 and panel + 1 < panel1:
                    x_next = v + (p * g.tiling.v_p + block0 * g.tiling.v_b) * item
                    w_next = weights_at(g, group, panel + 1, p)
                elif b + t.blocks == block1:
                    x_next = v + ((p + 1) * g.tiling.v_p + block0 * g.tiling.v_b) * item
                    w_next = weights_at(g, group, panel0, p + 1)
                if n >= nv:  # a slower stream of lines, which L3 delivers (avx512, 512 channels of 7x7: 280 -> 323 GF/s)
                    t.flags |= FC_SHARE
                    share //= nv
                first = 0
                for j in range(n):
                    last = (j + 1) * tiles // n
                    mr = <int>(last - first)
                    t.x = v + (p * g.tiling.v_p + b * g.tiling.v_b + first * lanes) * item
                    t.x_next = x_next if last == tiles else v + (p * g.tiling.v_p + b * g.tiling.v_b + last * lanes) * item
                    t.y = m + (p * g.m_p + (start - at) * g.blocks.tiles + first * width) * item
                    first = last
                    t.w_next = w_next + min(j, nv - 1) * share
                    fetch_lines(ahead, &t, t.blocks * lanes, item)
                    job.kernels.winograd_tile[nv][mr](&t)
                t.w = w_next
                b += t.blocks


cdef void multiply_packing(const Winograd *g, Py_ssize_t group, Py_ssize_t panel0, Py_ssize_t panel1, Py_ssize_t tiles,
                           const char *v, char *m, char *u) noexcept nogil:
    """The same of all channels, with weights that are packed here, a chain at a time, and do not leave L2."""
    cdef Winograd part = g[0]
    cdef Ahead ahead = nothing_ahead()
    cdef Py_ssize_t lanes = g.job.kernels.lanes, b = 0, stop, panel, first
    part.job.packed = u
    part.job.group0, part.job.panel0 = group, panel0
    while b < g.channel_blocks:
        stop = min(g.channel_blocks, b + max(CHAIN // lanes, 1))
        first = b * lanes
        for panel in range(panel0, panel1):
            pack_panel(&part, group, panel, first, min(stop * lanes, g.job.channels) - first, u + g.u_bytes)
        multiply(&part, group, panel0, panel1, b, stop, tiles, v, m, &ahead)
        b = stop


cdef void transform_output(const Winograd *g, Py_ssize_t group, Py_ssize_t panel0, Py_ssize_t panel1, Py_ssize_t row,
                           Py_ssize_t rows, Py_ssize_t col, Py_ssize_t cols, const char *m) noexcept nogil:
    cdef const Job *job = &g.job
    cdef fc_winograd_output t
    cdef TileRow first_row = tile_row(&g.tiling, row), at
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes, panel, start, size, width, v, r, p, o, to, top, left
    cdef Py_ssize_t first, out_h = job.axis[1].out, out_w = job.axis[2].out
    cdef Py_ssize_t down = g.tiling.dilation[0], across = g.tiling.dilation[1]
    panel_bounds(job, panel0, &first, &size, &width)
    t.s_p = g.m_p
    t.y_oc = job.y_c
    t.y_row = down * out_w
    t.y_px = across
    t.flags = FC_RELU if job.relu else 0
    t.nonfinite = <int *>&g.nonfinite
    for panel in range(panel0, panel1):
        panel_bounds(job, panel, &start, &size, &width)
        t.s_t = width
        for v in range(width // lanes):
            o = group * job.outputs + start + v * lanes
            t.oc = <int>min(lanes, size - v * lanes)
            t.bias = NULL if job.bias == NULL else job.bias + o * item
            at = first_row
            for r in range(rows):
                top = at.h + at.place * g.m * down
                left = at.w + col * g.m * across
                to = at.n * job.y_n + o * job.y_c + (at.d * out_h + top) * out_w + left
                next_row(&g.tiling, &at)
                if top >= out_h or left >= out_w:
                    continue  # a shorter phase
                t.rows = min(g.m, ceil_div(out_h - top, down))
                t.cols = min(cols * g.m, ceil_div(out_w - left, across))
                t.tiles = ceil_div(t.cols, g.m)
                t.y = job.y + to * item
                t.residual = NULL if job.residual == NULL else job.residual + to * item
                t.sums = m + ((start - first) * g.blocks.tiles + r * cols * width + v * lanes) * item
                job.kernels.winograd_output[g.kind](&t)
                if across == 1:
                    activate_rows(job, job.y + to * item, t.oc, t.rows, t.y_row, t.cols)
                else:
                    for p in range(t.cols):
                        activate_rows(job, job.y + (to + p * across) * item, t.oc, t.rows, t.y_row, 1)


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Winograd *g = <const Winograd *>argument
    cdef const Job *job = &g.job
    cdef Py_ssize_t row, rows, col, cols, group, panel0, panel1, stop
    cdef Ahead ahead
    cdef char *v = workspace + g.band_bytes
    cdef char *m = v + g.v_bytes
    if g.nonfinite:
        return  # the direct kernel will do it all again
    block_at(&g.blocks, number % g.blocks.count, &row, &rows, &col, &cols)
    number //= g.blocks.count
    group = job.group0 + number % (job.group1 - job.group0)
    split_panels(job, number // (job.group1 - job.group0), &panel0, &panel1)
    transform_tiles(&g.tiling, job.x + group * job.channels * job.x_c * job.itemsize, job.channels, row, rows, col, cols,
                    workspace, v)
    while panel0 < panel1:
        stop = min(panel0 + g.m_panels, panel1)
        if g.u_bytes:
            multiply_packing(g, group, panel0, stop, rows * cols, v, m, m + g.m_bytes)
        else:
            ahead = ahead_of(g, group, panel0, stop, row, rows, cols)
            multiply(g, group, panel0, stop, 0, g.channel_blocks, rows * cols, v, m, &ahead)
        transform_output(g, group, panel0, stop, row, rows, col, cols, m)
        panel0 = stop


cdef void order_taps(Winograd *g, const Py_ssize_t *tap_index) noexcept nogil:
    """Lattice taps run in any order along each axis; F(m, r) wants them by ascending offset."""
    cdef const Axis *h = &g.job.axis[1]
    cdef const Axis *w = &g.job.axis[2]
    cdef Py_ssize_t i, j
    for i in range(g.r):
        for j in range(g.r):
            g.tap[h.offset[i] // g.tiling.dilation[0] * g.r + w.offset[j] // g.tiling.dilation[1]] = tap_index[i * g.r + j]


cdef Py_ssize_t pieces(Py_ssize_t size, Py_ssize_t block) noexcept nogil:
    """The size of equal pieces of at most `block`."""
    cdef Py_ssize_t count = (size + block - 1) // block
    return (size + count - 1) // max(count, 1)


cdef Py_ssize_t tiles_of_block(const Winograd *g, Py_ssize_t columns, size_t budget) noexcept nogil:
    """As many as keep V and M in half of L2, where a block of TILES_MIN allows it: pixels and weights pass through the other
    half (measured against 7/8: 1.03 to 1.15 times as fast, avx512, 64 and 128 channels)."""
    cdef size_t each = g.positions * g.job.itemsize * (g.channel_blocks * g.job.kernels.lanes + columns)
    cdef Py_ssize_t tiles = max(<Py_ssize_t>TILES_MIN, min(<Py_ssize_t>TILES_MAX,
                                                           <Py_ssize_t>(cache_bytes(2) // 2 // each)))
    return max(1, min(tiles, <Py_ssize_t>(budget // each)))


cdef void choose_blocks(Blocks *blocks, Py_ssize_t rows, Py_ssize_t cols, Py_ssize_t tiles) noexcept nogil:
    """Equal blocks of about `tiles` tiles, whole rows first."""
    blocks.rows, blocks.cols = rows, cols
    blocks.col_block = pieces(cols, tiles)
    blocks.row_block = pieces(rows, max(1, tiles // max(blocks.col_block, 1)))
    blocks.col_blocks = (cols + blocks.col_block - 1) // max(blocks.col_block, 1)
    blocks.count = (rows + blocks.row_block - 1) // max(blocks.row_block, 1) * blocks.col_blocks
    blocks.tiles = blocks.row_block * blocks.col_block


cdef void block_at(const Blocks *blocks, Py_ssize_t number, Py_ssize_t *row, Py_ssize_t *rows, Py_ssize_t *col,
                   Py_ssize_t *cols) noexcept nogil:
    row[0] = number // blocks.col_blocks * blocks.row_block
    col[0] = number % blocks.col_blocks * blocks.col_block
    rows[0] = min(blocks.row_block, blocks.rows - row[0])
    cols[0] = min(blocks.col_block, blocks.cols - col[0])


cdef size_t choose_band(Tiling *g, Py_ssize_t rows, Py_ssize_t cols) noexcept nogil:
    """Lay out the band of blocks of `rows` x `cols` tiles; returns its bytes, with what pack_row spills."""
    g.band_row = ((min(cols, <Py_ssize_t>BAND_TILES) - 1) * g.step + g.size) * g.dilation[1] * g.kernels.lanes
    g.run = (<Py_ssize_t>BAND_BYTES // (g.band_row * g.itemsize) - (g.size - g.step)) // g.step
    g.run = min(max(<Py_ssize_t>1, g.run), rows)
    return lines((((g.run - 1) * g.step + g.size) * g.band_row + g.kernels.lanes * g.kernels.lanes) * g.itemsize)


def run(int kind, Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    `kind` is an index of KINDS. Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Winograd g
    cdef Job *job = &g.job
    cdef Py_ssize_t lanes, columns, rows, part, panels
    cdef size_t workspace, limit, column, pack_bytes, u_bytes, budget = WORKSPACE_LIMIT
    memset(&g, 0, sizeof(Winograd))
    start_job(job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    lanes = job.kernels.lanes
    g.kind = kind
    g.m, g.r = KINDS[kind]
    g.alpha = g.m + g.r - 1
    g.positions = g.alpha * g.alpha
    start_tiling(&g.tiling, job.kernels, job.itemsize, job.axis, g.r, g.m, g.alpha)
    g.tiling.transform = job.kernels.winograd_input[kind]
    g.tiling.x_n, g.tiling.x_c = job.x_n, job.x_c
    order_taps(&g, lattice.tap_index)
    job.multiple = lanes
    job.panel = lanes * FC_NV_MAX
    job.panels = (job.outputs + job.panel - 1) // job.panel
    g.channel_blocks = (job.channels + lanes - 1) // lanes
    g.u_rows = g.channel_blocks * lanes + 1
    job.column = g.positions * g.u_rows * job.itemsize
    pack_bytes = 2 * job.w_taps * job.panel * job.itemsize
    # transformed weights at a time: they stay in L3 from block to block
    limit = max(<size_t>4 << 20, min(<size_t>PACKED_LIMIT, cache_bytes(3) // 2))
    g.m_panels = min(job.panels, max(<Py_ssize_t>1, SUMS // job.panel))
    columns = g.m_panels * job.panel
    if max_workspace is not None:
        budget = min(budget, <size_t>max_workspace)
    choose_blocks(&g.blocks, rows_of_tiles(&g.tiling, job.batch), columns_of_tiles(&g.tiling),
                  tiles_of_block(&g, columns, budget))
    # and smaller ones where they are few
    part = fair_part(g.blocks.rows, g.blocks.row_block, groups * job.panels * g.blocks.col_blocks, threads)
    choose_blocks(&g.blocks, g.blocks.rows, g.blocks.cols, part * g.blocks.col_block)
    g.band_bytes = choose_band(&g.tiling, g.blocks.row_block, g.blocks.col_block)
    g.tiling.v_t = lanes
    g.tiling.v_b = g.blocks.tiles * lanes
    g.tiling.v_p = lines(g.channel_blocks * g.tiling.v_b * job.itemsize) // job.itemsize
    g.m_p = lines(g.blocks.tiles * columns * job.itemsize) // job.itemsize
    g.v_bytes = g.positions * g.tiling.v_p * job.itemsize
    g.m_bytes = g.positions * g.m_p * job.itemsize
    workspace = g.band_bytes + g.v_bytes + g.m_bytes
    if g.blocks.count == 1 and not isinstance(w, Weights):  # each panel is for one task
        rows = max(CHAIN, lanes) + 1
        column = g.positions * rows * job.itemsize
        panels = max(<Py_ssize_t>1, min(g.m_panels, <Py_ssize_t>(PACKED_BYTES // (column * job.panel))))
        u_bytes = column * job.panel * panels
        if workspace + u_bytes + pack_bytes <= budget:
            g.u_rows, g.m_panels, g.u_bytes, job.column = rows, panels, u_bytes, column
            workspace += u_bytes + pack_bytes
    if threads == 0:
        return workspace
    if g.u_bytes:
        job.group1, job.panel1 = job.groups, job.panels
        with nogil:
            run_panels(job, 1, task, workspace, threads)
    else:
        run_rounds(job, w, pack_task, pack_bytes, limit, g.blocks.count, task, workspace, threads)
    if g.nonfinite:
        count_rerun()
        conv_direct.run(lattice, x, w, y, groups, transposed, bias, residual, activation, threads, max_workspace)
    return workspace
