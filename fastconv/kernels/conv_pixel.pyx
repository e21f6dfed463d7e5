# SPDX-License-Identifier: BSD-3-Clause
"""Direct convolution, vectorised over pixels: depthwise, few output channels, small calls.

As conv_direct, but a vector holds neighbouring pixels and the weights are broadcast, so it needs no transposed store and
wastes nothing where output channels are few.
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
from fastconv.kernels.fastconv cimport FC_FIRST, FC_LAST, FC_NV_MAX, FC_RELU, fc_pixel_tile
from fastconv.kernels.lattice cimport (
    Lattice,
    band_layout,
    band_offsets,
    choose_block,
    fill_band,
)
from fastconv.kernels.memory cimport block_alloc, block_free

cdef enum:
    PIXELS = 4096  # outputs of a block: long rows for the vectors; the band's own budget bounds the memory


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Task t
    cdef fc_pixel_tile tile
    cdef Py_ssize_t panel, start, size, width, d, r, first, rows, cols, at_x, at_y, o_index
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes
    cdef int nv
    decode(job, number, &t)
    fill_band(job.axis, &job.band, item, t.origin, t.count, source_plane(job, &t), job.x_c, job.channels,
              workspace)
    merge_rows(job, &t, &rows, &cols)
    tile.off = job.off
    tile.taps = job.taps
    tile.channels = job.channels
    tile.x_c = job.band.channel
    tile.y_m = job.y_c
    tile.y_px = job.axis[2].y_step
    tile.bias_n = NULL
    tile.flags = FC_FIRST | FC_LAST | (FC_RELU if job.relu else 0)
    for panel in range(t.panel0, t.panel1):
        panel_bounds(job, panel, &start, &size, &width)
        tile.a = packed_panel(job, t.group, start)
        o_index = t.group * job.outputs + start
        tile.bias_m = NULL if job.bias == NULL else job.bias + o_index * item
        for d in range(t.count[0]):
            for r in range(rows):
                at_x = (d * job.band.rows + r) * job.band.width
                at_y = t.n * job.y_n + o_index * job.y_c + output_at(
                    job, t.origin[0] + d, t.origin[1] + r, t.origin[2])
                first = 0
                while first < cols:
                    nv = 1 if cols - first <= lanes or width > job.kernels.pixel_mr[2] else 2
                    tile.pixels = <int>min(nv * lanes, cols - first)
                    tile.x = workspace + (at_x + first) * item
                    tile.y = job.y + (at_y + first * tile.y_px) * item
                    tile.residual = NULL
                    if job.residual != NULL:
                        tile.residual = job.residual + (at_y + first * tile.y_px) * item
                    job.kernels.pixel_tile[nv][width](&tile)
                    first += tile.pixels
    activate(job, &t)


def run(Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Job job
    cdef Py_ssize_t *off
    cdef Py_ssize_t lanes, longest
    cdef Py_ssize_t block[3]
    start_job(&job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    lanes = job.kernels.lanes
    choose_block(job.axis, job.channels, job.itemsize, band_budget(max_workspace), PIXELS, block)
    band_layout(job.axis, block, job.itemsize, &job.band)
    longest = block[2]
    if job.band.width == longest == job.axis[2].y_size and job.axis[2].y_step == 1:
        longest *= block[1]
    job.padded = False
    job.panel = job.kernels.pixel_mr[1 if longest <= lanes else FC_NV_MAX]
    job.panels = (job.outputs + job.panel - 1) // job.panel
    # a tile reads whole vectors: up to FC_NV_MAX of them beyond the last row
    job.band_bytes = (job.band.channel * job.channels + FC_NV_MAX * lanes) * job.itemsize
    if threads == 0:
        return job.band_bytes
    off = <Py_ssize_t *>block_alloc(job.taps * sizeof(Py_ssize_t))
    if off == NULL:
        raise MemoryError("fastconv: no memory for the tap offsets")
    try:
        band_offsets(job.axis, &job.band, off)
        job.off = off
        run_job(&job, task, job.band_bytes, threads)
    finally:
        block_free(off)
    return job.band_bytes
