# SPDX-License-Identifier: BSD-3-Clause
"""Direct convolution, vectorised over output channels.

A task owns one block of output pixels of one image and group. It packs the block's band once, then for each panel of
output channels and each block of channels runs the tiles along the rows; partial sums between channel blocks stay in the
workspace. Every output is summed over (channel, tap) in the same order whatever the blocking of the pixels.
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
from fastconv.kernels.fastconv cimport FC_FIRST, FC_LAST, FC_NV_MAX, FC_RELU, fc_conv_tile
from fastconv.kernels.lattice cimport (
    Lattice,
    band_layout,
    band_offsets,
    choose_block,
    fill_band,
)
from fastconv.kernels.memory cimport block_alloc, block_free

cdef enum:
    # Terms summed in registers before the partial sums go to memory. 256 terms of a panel of 16 (32) floats are 16 (32) KiB:
    # they stay in L1 while all tiles of the block pass. A constant, because it shows in the last bits of the result.
    CHAIN = 256
    # Outputs of a block: its partial sums (PIXELS * 64 or 128 bytes) and band share L2.
    PIXELS = 784


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Task t
    cdef fc_conv_tile tile
    cdef Py_ssize_t panel, start, size, width, c, d, r, j, rows, cols, tiles, first, item = job.itemsize
    cdef Py_ssize_t at_x, at_y, o_index
    cdef int nv, mr, pixels
    cdef const char *band = workspace
    cdef char *partial
    cdef const char *weights
    decode(job, number, &t)
    fill_band(job.axis, &job.band, item, t.origin, t.count, source_plane(job, &t), job.x_c, job.channels,
              workspace)
    merge_rows(job, &t, &rows, &cols)
    tile.off = job.off
    tile.taps = job.taps
    tile.x_c = job.band.channel
    tile.y_oc = job.y_c
    tile.y_px = job.axis[2].y_step
    for panel in range(t.panel0, t.panel1):
        panel_bounds(job, panel, &start, &size, &width)
        weights = packed_panel(job, t.group, start)
        nv = <int>(width // job.kernels.lanes)
        mr = job.kernels.conv_mr[nv]
        tiles = (cols + mr - 1) // mr
        tile.oc = <int>size
        o_index = t.group * job.outputs + start
        tile.bias = NULL if job.bias == NULL else job.bias + o_index * item
        c = 0
        while c < job.channels:
            tile.channels = min(job.channel_block, job.channels - c)
            tile.w = weights + c * job.taps * width * item
            # the tiles of this block of channels share the weights of the next, which follow its own, out among them
            tile.next = <const char *>tile.w + tile.channels * job.taps * width * item
            tile.next_bytes = tile.channels * job.taps * width * item // max(1, t.count[0] * rows * tiles)
            tile.flags = (FC_FIRST if c == 0 else 0) | (FC_RELU if job.relu else 0)
            if c + tile.channels == job.channels:
                tile.flags |= FC_LAST
            partial = workspace + job.band_bytes
            for d in range(t.count[0]):
                for r in range(rows):
                    at_x = c * job.band.channel + (d * job.band.rows + r) * job.band.width
                    at_y = t.n * job.y_n + o_index * job.y_c + output_at(
                        job, t.origin[0] + d, t.origin[1] + r, t.origin[2])
                    for j in range(tiles):
                        first = j * cols // tiles
                        pixels = <int>((j + 1) * cols // tiles - first)
                        tile.x = band + (at_x + first) * item
                        tile.y = job.y + (at_y + first * tile.y_px) * item
                        tile.residual = NULL
                        if job.residual != NULL:
                            tile.residual = job.residual + (at_y + first * tile.y_px) * item
                        tile.acc = partial
                        job.kernels.conv_tile[nv][pixels](&tile)
                        tile.next = <const char *>tile.next + tile.next_bytes
                        partial += pixels * width * item
            c += job.channel_block
    activate(job, &t)


def run(Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Job job
    cdef Py_ssize_t *off
    cdef Py_ssize_t lanes, workspace
    cdef Py_ssize_t block[3]
    start_job(&job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    lanes = job.kernels.lanes
    job.multiple = lanes
    job.panel = lanes * FC_NV_MAX
    job.panels = (job.outputs + job.panel - 1) // job.panel
    job.channel_block = max(1, CHAIN // job.taps)
    choose_block(job.axis, job.channels, job.itemsize, band_budget(max_workspace), PIXELS, block)
    band_layout(job.axis, block, job.itemsize, &job.band)
    job.band_bytes = (job.band.channel * job.channels * job.itemsize + 63) // 64 * 64
    workspace = job.band_bytes + block[0] * block[1] * block[2] * job.panel * job.itemsize
    if threads == 0:
        return workspace
    off = <Py_ssize_t *>block_alloc(job.taps * sizeof(Py_ssize_t))
    if off == NULL:
        raise MemoryError("fastconv: no memory for the tap offsets")
    try:
        band_offsets(job.axis, &job.band, off)
        job.off = off
        run_job(&job, w, task, workspace, threads)
    finally:
        block_free(off)
    return workspace
