# SPDX-License-Identifier: BSD-3-Clause
"""Direct convolution, vectorised over images: batches of small maps with few channels.

A vector holds one pixel of as many images as it has lanes, so rows of any length fill all lanes, a band has no halo between
its rows, and where all taps of a row or of some columns lie on padding they are left out: the input gradient of an unpadded
convolution has as many products as the convolution. The planes are transposed on their way to the band and back, as in
conv_depthwise; in between the kernels are those of conv_pixel.
"""

from libc.stdint cimport int32_t
from libc.string cimport memset

from fastconv.kernels.conv_depthwise cimport Spread, load_band, set_band, set_spread, spread_size, store_tile
from fastconv.kernels.correlate cimport (
    Job,
    Task,
    band_budget,
    decode,
    has_zero_taps,
    lag_of,
    packed_panel,
    panel_bounds,
    run_job,
    start_job,
)
from fastconv.kernels.fastconv cimport fc_pixel_sums
from fastconv.kernels.isa cimport cache_bytes
from fastconv.kernels.lattice cimport Lattice, band_offsets, choose_block, real_taps
from fastconv.kernels.memory cimport block_alloc, block_free

cdef enum:
    CHAIN = 256   # terms summed in registers before the partial sums go to memory: constant, because the bits show it
    PIXELS = 784  # outputs of a block: its band and its tile share L2
    # Sums that must be under way to cover the latency of a multiply-add: as many neighbours have their taps in common.
    LATENCY = 8
    TASKS = 2     # for each thread, where there are enough vectors: those of a task share the zeros around their bands

cdef struct Images:
    Job job  # the first member: tasks get its address. Its batch counts runs of vectors; x_c and y_c lead from image to image
    Py_ssize_t x_plane, y_plane
    Py_ssize_t images, together  # in all; vectors of a task
    bint skips                   # taps on padding
    Py_ssize_t lag               # see fc_pixel_sums
    Spread spread


cdef void sum_panel(const Images *all, const Task *t, Py_ssize_t panel, const char *band, char *sums) noexcept nogil:
    """All outputs of a panel: those that have the same taps inside the source together."""
    cdef const Job *job = &all.job
    cdef fc_pixel_sums s
    cdef Py_ssize_t start, size, width, chain, unit, row, rows, col, cols, d, c
    cdef Py_ssize_t item = job.itemsize, vector = item * job.kernels.lanes, tap_cols = job.axis[2].taps
    cdef Py_ssize_t high[2]
    cdef Py_ssize_t wide[2]
    cdef const char *weights
    panel_bounds(job, panel, &start, &size, &width)
    weights = packed_panel(job, t.group, start)
    unit = max(2, (LATENCY + width - 1) // width)
    chain = max(1, CHAIN // job.taps)
    s.y = NULL
    s.y_m = s.y_row = 0
    s.stream = False
    s.ahead = True
    s.x_c = job.band.channel * job.kernels.lanes
    s.x_row = job.band.width * job.kernels.lanes
    s.a_c = job.taps * width
    s.tap_row = tap_cols
    s.s_row = t.count[2] * job.kernels.lanes
    s.s_m = t.count[0] * t.count[1] * s.s_row
    row = 0
    while row < t.count[1]:
        rows = same_taps(all, t, 1, row, 1, high)
        col = 0
        while col < t.count[2]:
            cols = same_taps(all, t, 2, col, unit, wide)
            s.rows = rows
            s.cols = s.row = cols * job.kernels.lanes
            s.tap_rows = max(<Py_ssize_t>1, high[1] - high[0])
            s.taps = wide[1] - wide[0] if high[0] < high[1] else 0
            s.lag = 0
            if s.taps == tap_cols:  # they are one row
                s.taps *= s.tap_rows
                s.tap_rows = 1
                s.lag = all.lag if s.taps > all.lag else 0
            c = high[0] * tap_cols + wide[0]
            s.off = job.off + c
            s.a = weights + c * width * item
            for d in range(t.count[0]):
                s.sums = sums + ((d * t.count[1] + row) * t.count[2] + col) * vector
                s.x = band + ((d * job.band.rows + row) * job.band.width + col) * vector
                s.add = False
                c = 0
                while c < job.channels:
                    s.channels = min(chain, job.channels - c)
                    job.kernels.pixel_sums[width](&s)
                    s.add = True
                    s.x = <const char *>s.x + s.channels * s.x_c * item
                    s.a = <const char *>s.a + s.channels * s.a_c * item
                    c += chain
                s.a = <const char *>s.a - job.channels * s.a_c * item
            col += cols
        row += rows


cdef Py_ssize_t same_taps(const Images *all, const Task *t, int axis, Py_ssize_t first, Py_ssize_t unit,
                          Py_ssize_t *taps) noexcept nogil:
    """How many outputs of a block from `first` on, some units, have taps [taps[0], taps[1]) inside the source. Of axis 1 the
    taps are rows, of all d."""
    cdef const Job *job = &all.job
    cdef Py_ssize_t count = unit, at = t.origin[axis] + first, left = t.count[axis] - first
    cdef Py_ssize_t next[2]
    taps[0] = 0
    taps[1] = job.axis[axis].taps
    if axis == 1:
        taps[1] *= job.axis[0].taps
    if not all.skips or axis == 1 and job.axis[0].taps > 1:
        return left
    real_taps(&job.axis[axis], at, at + min(unit, left) - 1, taps, taps + 1)
    while count < left:
        real_taps(&job.axis[axis], at + count, at + min(count + unit, left) - 1, next, next + 1)
        if next[0] != taps[0] or next[1] != taps[1]:
            break
        count += unit
    return min(count, left)


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """The images of some vectors."""
    cdef const Images *all = <const Images *>argument
    cdef const Job *job = &all.job
    cdef Task t
    cdef Py_ssize_t panel, start, size, width, output, image, stop, planes, i, item = job.itemsize
    cdef const char *bias
    cdef char *sums = workspace + job.band_bytes
    decode(job, number, &t)
    memset(workspace, 0, job.band_bytes)  # every vector leaves the same cells zero
    image = t.n * all.together * job.kernels.lanes
    stop = min(all.images, image + all.together * job.kernels.lanes)
    while image < stop:
        planes = min(<Py_ssize_t>job.kernels.lanes, stop - image)
        load_band(job, &all.spread, &t, job.x + (image * job.x_c + t.group * job.channels * all.x_plane) * item, all.x_plane,
                  job.x_c, planes, workspace)
        for panel in range(t.panel0, t.panel1):
            sum_panel(all, &t, panel, workspace, sums)
            panel_bounds(job, panel, &start, &size, &width)
            for i in range(size):
                output = t.group * job.outputs + start + i
                bias = NULL if job.bias == NULL else job.bias + output * item
                store_tile(job, &t, t.count, image * job.y_c + output * all.y_plane, bias, 0, planes,
                           sums + i * t.count[0] * t.count[1] * t.count[2] * job.kernels.lanes * item)
        image += job.kernels.lanes


def run(Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Images all
    cdef Job *job = &all.job
    cdef Py_ssize_t pixel, workspace, cells, vectors, i
    cdef size_t budget
    cdef Py_ssize_t block[3]
    cdef char *tables
    start_job(job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    all.x_plane, all.y_plane = job.x_c, job.y_c
    job.x_c, job.y_c = job.x_n, job.y_n
    all.images = job.batch
    job.multiple = 0
    job.panels = (job.outputs + job.kernels.pixel_mr - 1) // job.kernels.pixel_mr
    job.panel = (job.outputs + job.panels - 1) // job.panels
    pixel = job.itemsize * job.kernels.lanes  # bytes, of as many images as a vector has lanes
    budget = band_budget(max_workspace)
    if job.panels > 1:  # each reads the band again, from L2
        budget = min(budget, cache_bytes(2) // 2)
    choose_block(job.axis, job.channels, pixel, budget, PIXELS, block)
    set_band(job, block)
    job.band_bytes = (job.band.channel * job.channels * pixel + 63) // 64 * 64
    workspace = job.band_bytes + pixel * job.panel * block[0] * block[1] * block[2]
    if threads == 0:
        return workspace
    vectors = (all.images + job.kernels.lanes - 1) // job.kernels.lanes
    all.together = max(<Py_ssize_t>1, vectors // (TASKS * threads))
    job.batch = (vectors + all.together - 1) // all.together
    all.skips = has_zero_taps(job, w, transposed)
    cells = spread_size(job, &all.spread)
    tables = <char *>block_alloc(job.taps * sizeof(Py_ssize_t) + cells * sizeof(int32_t))
    if tables == NULL:
        raise MemoryError("fastconv: no memory for the tap offsets")
    try:
        job.off = <Py_ssize_t *>tables
        all.spread.at = <int32_t *>(tables + job.taps * sizeof(Py_ssize_t))
        set_spread(job, &all.spread)
        band_offsets(job.axis, &job.band, <Py_ssize_t *>tables)
        for i in range(job.taps):
            (<Py_ssize_t *>tables)[i] *= job.kernels.lanes
        all.lag = lag_of(job.axis, job.off, job.band.width * job.kernels.lanes)
        run_job(job, w, task, workspace, threads)
    finally:
        block_free(tables)
    return workspace
