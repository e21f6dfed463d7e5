# SPDX-License-Identifier: BSD-3-Clause
"""im2col + GEMM: the columns of one block of pixels at a time, multiplied while they are in the cache.

The columns of a block and of CHAIN rows are written to the workspace as tiles [tile][channel*tap][NR] of NR pixels, and the
packed micro-kernel GEMM adds their product to the output. A tile stays in L1 while panels of weights pass. Nothing of the
size of a full im2col matrix ever exists.
"""

from libc.string cimport memset

from fastconv.kernels.correlate cimport (
    Job,
    Task,
    activate,
    band_budget,
    decode,
    merge_rows,
    output_at,
    packed_panel,
    panel_bounds,
    run_job,
    source_plane,
    start_job,
)
from fastconv.kernels.fastconv cimport FC_FIRST, FC_LAST, FC_NV_MAX, FC_RELU, fc_gemm_tile
from fastconv.kernels.lattice cimport Axis, Lattice, choose_block, copy_row, source_at

cdef enum:
    CHAIN = 256    # rows of columns multiplied at a time; shows in the last bits, so it is a constant
    PIXELS = 384   # columns of a block: CHAIN * PIXELS floats are 384 KiB, most of a small L2
    # Weights that pass over all tiles of a block, each tile from L1, before the next ones do: they stay in L2.
    PANEL_BYTES = 128 << 10


cdef bint is_inner(const Axis *axis, Py_ssize_t q, Py_ssize_t count) noexcept nogil:
    """Whether `count` outputs from padded coordinate q read consecutive source pixels, none of padding."""
    return axis.step == 1 and axis.inner_start <= q and q + count <= axis.inner_stop


cdef void fill_plane(const Job *job, const Task *t, const char *plane, Py_ssize_t q_h, Py_ssize_t q_w, char *line,
                     char *to) noexcept nogil:
    """One tap of the block's pixels in one plane (NULL: of zeros), as tiles; `line` is room for all of them."""
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t item = job.itemsize, nr = FC_NV_MAX * job.kernels.lanes, h, src_h, rest, tiles
    cdef Py_ssize_t pixels = t.count[1] * t.count[2]
    cdef const char *source = line
    if plane != NULL and axis[2].size == t.count[2] and is_inner(&axis[2], q_w, t.count[2]) \
            and is_inner(&axis[1], q_h, t.count[1]):
        source = plane + ((q_h + axis[1].inner_shift) * axis[2].size + q_w + axis[2].inner_shift) * item
    else:
        for h in range(t.count[1]):
            src_h = source_at(&axis[1], q_h + h * axis[1].step)
            if plane == NULL or src_h < 0:
                memset(line + h * t.count[2] * item, 0, t.count[2] * item)
            else:
                copy_row(&axis[2], item, line + h * t.count[2] * item, plane + src_h * axis[2].size * item, q_w,
                         t.count[2])
    tiles = pixels // nr
    rest = pixels - tiles * nr
    job.kernels.copy_rows(to, job.band.channel, source, nr, tiles, 0, nr, 0, 1)
    if rest:
        job.kernels.copy_rows(to + tiles * job.band.channel * item, nr, source + tiles * nr * item, nr, 1, 0, rest,
                              nr - rest, 1)


cdef void fill_columns(const Job *job, const Task *t, Py_ssize_t channel, Py_ssize_t channels, Py_ssize_t tiles,
                       char *line, char *to) noexcept nogil:
    """columns[d][tile][(c, tap)][NR] of the task's block."""
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t _c, kd, kh, kw, d, src_d, item = job.itemsize, nr = FC_NV_MAX * job.kernels.lanes
    cdef const char *plane = source_plane(job, t) + channel * job.x_c * item
    for _c in range(channels):
        for kd in range(axis[0].taps):
            for kh in range(axis[1].taps):
                for kw in range(axis[2].taps):
                    for d in range(t.count[0]):
                        src_d = source_at(&axis[0], (t.origin[0] + d) * axis[0].step + axis[0].offset[kd])
                        fill_plane(
                            job, t, NULL if src_d < 0 else plane + src_d * axis[1].size * axis[2].size * item,
                            t.origin[1] * axis[1].step + axis[1].offset[kh],
                            t.origin[2] * axis[2].step + axis[2].offset[kw],
                            line, to + d * tiles * job.band.channel * item)
                    to += nr * item
        plane += job.x_c * item


cdef void multiply_panels(const Job *job, const Task *t, Py_ssize_t panel0, Py_ssize_t panel1, Py_ssize_t c,
                          fc_gemm_tile *tile, const char *columns) noexcept nogil:
    """Panels [panel0, panel1), channels from c, on all tiles of the block."""
    cdef Py_ssize_t panel, start, size, width, d, first, rows, cols, at_d, at_y, o_index
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes, pixels = t.count[1] * t.count[2]
    cdef int nv
    merge_rows(job, t, &rows, &cols)
    tile.cols = cols
    tile.y_gap = job.axis[1].y_step * job.axis[2].y_size - cols * tile.y_px
    for d in range(t.count[0]):
        at_d = t.n * job.y_n + t.group * job.outputs * job.y_c
        first = 0
        while first < pixels:
            tile.x = columns
            columns += job.band.channel * item
            at_y = at_d + output_at(job, t.origin[0] + d, t.origin[1] + first // cols, t.origin[2])
            at_y += first % cols * tile.y_px
            tile.left = cols - first % cols
            for panel in range(panel0, panel1):
                panel_bounds(job, panel, &start, &size, &width)
                nv = 1 if pixels - first <= lanes or width > job.kernels.gemm_mr[2] else 2
                tile.pixels = <int>min(nv * lanes, pixels - first)
                tile.a = packed_panel(job, t.group, start) + c * job.taps * width * item
                tile.a_c = width
                o_index = t.group * job.outputs + start
                tile.bias_m = NULL if job.bias == NULL else job.bias + o_index * item
                tile.y = job.y + (at_y + start * job.y_c) * item
                tile.residual = NULL
                if job.residual != NULL:
                    tile.residual = job.residual + (at_y + start * job.y_c) * item
                job.kernels.gemm_tile[nv][width](tile)
            first += FC_NV_MAX * lanes


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Task t
    cdef fc_gemm_tile tile
    cdef Py_ssize_t panel, panels, c, tiles, item = job.itemsize, nr = FC_NV_MAX * job.kernels.lanes
    decode(job, number, &t)
    tiles = (t.count[1] * t.count[2] + nr - 1) // nr
    panels = max(1, PANEL_BYTES // max(1, min(job.channel_block, job.channels) * job.taps * job.panel * item))
    tile.x_c = nr
    tile.y_m = job.y_c
    tile.y_px = job.axis[2].y_step
    tile.bias_n = NULL
    c = 0
    while c < job.channels:
        tile.channels = min(job.channel_block, job.channels - c)
        fill_columns(job, &t, c, tile.channels, tiles, workspace + job.band_bytes, workspace)
        tile.flags = (FC_FIRST if c == 0 else 0) | (FC_RELU if job.relu else 0)
        if c + tile.channels == job.channels:
            tile.flags |= FC_LAST
        tile.channels *= job.taps
        panel = t.panel0
        while panel < t.panel1:
            multiply_panels(job, &t, panel, min(t.panel1, panel + panels), c, &tile, workspace)
            panel += panels
        c += job.channel_block
    activate(job, &t)


def run(Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Job job
    cdef Py_ssize_t nr, pixels, terms, tiles
    cdef size_t budget = band_budget(max_workspace)
    start_job(&job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    nr = FC_NV_MAX * job.kernels.lanes
    job.channel_block = max(1, CHAIN // job.taps)
    terms = min(job.channel_block, job.channels) * job.taps
    # a cache line more than the terms take: no power-of-two stride that maps all tiles to one set of the cache
    job.band.channel = (terms + 1) * nr
    pixels = max(1, min(<Py_ssize_t>PIXELS, <Py_ssize_t>budget // (job.band.channel * job.itemsize) * nr))
    choose_block(job.axis, 0, job.itemsize, budget, pixels, job.band.block)
    job.band.width = job.band.block[2]  # columns have no halo: rows always follow one another
    pixels = job.band.block[1] * job.band.block[2]
    tiles = job.band.block[0] * ((pixels + nr - 1) // nr)
    job.band_bytes = tiles * job.band.channel * job.itemsize
    job.multiple = 0
    job.panel = job.kernels.gemm_mr[1 if pixels <= job.kernels.lanes else FC_NV_MAX]
    job.panels = (job.outputs + job.panel - 1) // job.panel
    if threads:
        run_job(&job, w, task, job.band_bytes + pixels * job.itemsize, threads)
    return job.band_bytes + pixels * job.itemsize
