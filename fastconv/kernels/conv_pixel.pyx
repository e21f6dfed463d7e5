# SPDX-License-Identifier: BSD-3-Clause
"""Direct convolution, vectorised over pixels: depthwise, few output channels, small calls.

As conv_direct, but a vector holds neighbouring pixels and the weights are broadcast, so it needs no transposed store and
wastes nothing where output channels are few. The sums of a block go to the workspace and from there to the rows of y.
"""

from fastconv.kernels.correlate cimport (
    Job,
    Task,
    activate,
    band_budget,
    decode,
    output_at,
    packed_panel,
    panel_bounds,
    run_job,
    source_plane,
    start_job,
)
from fastconv.kernels.fastconv cimport FC_PIXEL_NV_MAX, fc_pixel_store, fc_pixel_sums
from fastconv.kernels.lattice cimport (
    Lattice,
    band_layout,
    band_offsets,
    choose_block,
    fill_band,
)
from fastconv.kernels.memory cimport block_alloc, block_free

cdef enum:
    # Terms summed in registers before the partial sums go to memory; a constant, because it shows in the last bits.
    CHAIN = 256
    PIXELS = 4096  # outputs of a block: long rows for the vectors; the band's own budget bounds the memory
    # Sums that must be under way to cover the latency of a multiply-add: a narrower tile takes as long as one of these.
    LATENCY = 8


cdef Py_ssize_t whole(const Job *job, Py_ssize_t pixels) noexcept nogil:
    """`pixels` rounded up to whole vectors."""
    return (pixels + job.kernels.lanes - 1) // job.kernels.lanes * job.kernels.lanes


cdef bint one_row(const Job *job, const Py_ssize_t *count) noexcept nogil:
    """Whether a block is faster as one long row, whose sums between the rows proper are thrown away."""
    cdef Py_ssize_t outputs = min(job.panel, job.outputs), least = LATENCY * job.kernels.lanes
    cdef Py_ssize_t rows = count[1] * max(least, outputs * whole(job, count[2]))
    return outputs * whole(job, (count[1] - 1) * job.band.width + count[2]) <= rows


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Task t
    cdef fc_pixel_sums sums
    cdef fc_pixel_store store
    cdef Py_ssize_t panel, start, size, width, c, d, at_y, o_index, item = job.itemsize
    decode(job, number, &t)
    fill_band(job.axis, &job.band, item, t.origin, t.count, source_plane(job, &t), job.x_c, job.channels,
              workspace)
    sums.off = job.off
    sums.taps = job.taps
    sums.x_c = job.band.channel
    sums.x_row = job.band.width
    sums.sums = workspace + job.band_bytes
    if one_row(job, t.count):
        sums.rows = 1
        sums.cols = (t.count[1] - 1) * job.band.width + t.count[2]
        sums.s_row = job.band.width
    else:
        sums.rows = t.count[1]
        sums.cols = t.count[2]
        sums.s_row = whole(job, t.count[2])
    sums.s_m = t.count[1] * sums.s_row + FC_PIXEL_NV_MAX * job.kernels.lanes
    store.sums = sums.sums
    store.rows = t.count[1]
    store.cols = t.count[2]
    store.s_m = sums.s_m
    store.s_row = sums.s_row
    store.y_m = job.y_c
    store.y_row = job.axis[1].y_step * job.axis[2].y_size
    store.y_px = job.axis[2].y_step
    store.relu = job.relu
    if store.y_px == 1 and store.cols == store.s_row == store.y_row:
        store.cols *= store.rows
        store.rows = 1
    for panel in range(t.panel0, t.panel1):
        panel_bounds(job, panel, &start, &size, &width)
        o_index = t.group * job.outputs + start
        store.outputs = <int>size
        store.bias = NULL if job.bias == NULL else job.bias + o_index * item
        for d in range(t.count[0]):
            c = 0
            while c < job.channels:
                sums.channels = min(job.channel_block, job.channels - c)
                sums.add = c > 0
                sums.a = packed_panel(job, t.group, start) + c * job.taps * width * item
                sums.x = workspace + (c * job.band.channel + d * job.band.rows * job.band.width) * item
                job.kernels.pixel_sums[width](&sums)
                c += job.channel_block
            at_y = t.n * job.y_n + o_index * job.y_c + output_at(job, t.origin[0] + d, t.origin[1], t.origin[2])
            store.y = job.y + at_y * item
            store.residual = NULL if job.residual == NULL else job.residual + at_y * item
            job.kernels.pixel_store(&store)
    activate(job, &t)


def run(Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Job job
    cdef Py_ssize_t *off
    cdef Py_ssize_t slack, workspace
    cdef Py_ssize_t block[3]
    start_job(&job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    choose_block(job.axis, job.channels, job.itemsize, band_budget(max_workspace), PIXELS, block)
    band_layout(job.axis, block, job.itemsize, &job.band)
    job.padded = False
    job.panels = (job.outputs + job.kernels.pixel_mr - 1) // job.kernels.pixel_mr
    job.panel = (job.outputs + job.panels - 1) // job.panels
    job.channel_block = max(1, CHAIN // job.taps)
    # whole vectors are read and written: up to one tile of them beyond the last row
    slack = FC_PIXEL_NV_MAX * job.kernels.lanes
    job.band_bytes = ((job.band.channel * job.channels + slack) * job.itemsize + 63) // 64 * 64
    workspace = job.band_bytes + job.panel * job.itemsize * (
        block[1] * max(job.band.width, whole(&job, block[2])) + slack)
    if threads == 0:
        return workspace
    off = <Py_ssize_t *>block_alloc(job.taps * sizeof(Py_ssize_t))
    if off == NULL:
        raise MemoryError("fastconv: no memory for the tap offsets")
    try:
        band_offsets(job.axis, &job.band, off)
        job.off = off
        run_job(&job, task, workspace, threads)
    finally:
        block_free(off)
    return workspace
