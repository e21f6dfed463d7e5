# SPDX-License-Identifier: BSD-3-Clause
"""im2col + GEMM: the columns of one block of pixels at a time, multiplied while they are in the cache.

The columns [channel*tap][pixel] of a block and of CHAIN rows are written to the workspace, and the packed micro-kernel
GEMM adds their product to the output. Nothing of the size of a full im2col matrix ever exists.
"""

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
from libc.string cimport memset

from fastconv.kernels.fastconv cimport FC_FIRST, FC_LAST, FC_NV_MAX, FC_RELU, fc_gemm_tile
from fastconv.kernels.lattice cimport Axis, Lattice, choose_block, copy_row, source_at

cdef enum:
    CHAIN = 256    # rows of columns multiplied at a time; shows in the last bits, so it is a constant
    PIXELS = 384   # columns of a block: CHAIN * PIXELS floats are 384 KiB, most of a small L2


cdef void fill_columns(const Job *job, const Task *t, Py_ssize_t channel, Py_ssize_t channels, Py_ssize_t pitch,
                       char *to) noexcept nogil:
    """columns[(c, tap)][pixel] of the task's block."""
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t _c, kd, kh, kw, d, h, src_d, src_h, item = job.itemsize
    cdef const char *plane = source_plane(job, t) + channel * job.x_c * item
    cdef char *line
    for _c in range(channels):
        for kd in range(axis[0].taps):
            for kh in range(axis[1].taps):
                for kw in range(axis[2].taps):
                    line = to
                    for d in range(t.count[0]):
                        src_d = source_at(&axis[0], (t.origin[0] + d) * axis[0].step + axis[0].offset[kd])
                        for h in range(t.count[1]):
                            src_h = source_at(&axis[1], (t.origin[1] + h) * axis[1].step + axis[1].offset[kh])
                            if src_d < 0 or src_h < 0:
                                memset(line, 0, t.count[2] * item)
                            else:
                                copy_row(&axis[2], item, line,
                                         plane + (src_d * axis[1].size + src_h) * axis[2].size * item,
                                         t.origin[2] * axis[2].step + axis[2].offset[kw], t.count[2])
                            line += t.count[2] * item
                    to += pitch * item
        plane += job.x_c * item


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Task t
    cdef fc_gemm_tile tile
    cdef Py_ssize_t panel, start, size, width, c, d, r, first, rows, cols, at_y, o_index
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes, pitch = job.band.channel
    cdef int nv
    decode(job, number, &t)
    merge_rows(job, &t, &rows, &cols)
    tile.x_c = pitch
    tile.y_m = job.y_c
    tile.y_px = job.axis[2].y_step
    tile.bias_n = NULL
    c = 0
    while c < job.channels:
        tile.channels = min(job.channel_block, job.channels - c)
        fill_columns(job, &t, c, tile.channels, pitch, workspace)
        tile.flags = (FC_FIRST if c == 0 else 0) | (FC_RELU if job.relu else 0)
        if c + tile.channels == job.channels:
            tile.flags |= FC_LAST
        tile.channels *= job.taps
        for panel in range(t.panel0, t.panel1):
            panel_bounds(job, panel, &start, &size, &width)
            tile.a = packed_panel(job, t.group, start) + c * job.taps * width * item
            o_index = t.group * job.outputs + start
            tile.bias_m = NULL if job.bias == NULL else job.bias + o_index * item
            for d in range(t.count[0]):
                for r in range(rows):
                    at_y = t.n * job.y_n + o_index * job.y_c + output_at(
                        job, t.origin[0] + d, t.origin[1] + r, t.origin[2])
                    first = 0
                    while first < cols:
                        nv = 1 if cols - first <= lanes or width > job.kernels.gemm_mr[2] else 2
                        tile.pixels = <int>min(nv * lanes, cols - first)
                        tile.x = workspace + ((d * rows + r) * cols + first) * item
                        tile.y = job.y + (at_y + first * tile.y_px) * item
                        tile.residual = NULL
                        if job.residual != NULL:
                            tile.residual = job.residual + (at_y + first * tile.y_px) * item
                        job.kernels.gemm_tile[nv][width](&tile)
                        first += tile.pixels
        c += job.channel_block
    activate(job, &t)


def run(Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Job job
    cdef Py_ssize_t lanes, pixels, terms, workspace
    cdef size_t budget = band_budget(max_workspace)
    start_job(&job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    lanes = job.kernels.lanes
    job.channel_block = max(1, CHAIN // job.taps)
    terms = min(job.channel_block, job.channels) * job.taps
    pixels = max(1, min(<Py_ssize_t>PIXELS, <Py_ssize_t>budget // (terms * job.itemsize)))
    choose_block(job.axis, 0, job.itemsize, budget, pixels, job.band.block)
    pixels = job.band.block[0] * job.band.block[1] * job.band.block[2]
    job.band.width = job.band.block[2]  # columns have no halo: rows always follow one another
    # an odd number of cache lines from row to row, see lattice.band_layout
    job.band.channel = ((pixels * job.itemsize + 63) // 64 | 1) * 64 // job.itemsize
    job.padded = False
    job.panel = job.kernels.gemm_mr[1 if pixels <= lanes else FC_NV_MAX]
    job.panels = (job.outputs + job.panel - 1) // job.panel
    workspace = (terms * job.band.channel + FC_NV_MAX * lanes) * job.itemsize
    if threads:
        run_job(&job, w, task, workspace, threads)
    return workspace
