# SPDX-License-Identifier: BSD-3-Clause
"""Direct convolution, vectorised over pixels: depthwise, few output channels, small calls.

As conv_direct, but a vector holds neighbouring pixels and the weights are broadcast, so it needs no transposed store and
wastes nothing where output channels are few. The sums of a block go to the rows of y or, where those have holes between them
or some channels are still to come, to the workspace and from there to y. The phases of an input gradient share one band and
one visit to the rows of y.

Where one channel goes to one output without a stride, or (AVX-512) with one of 2, tiles of rows are summed from the planes
themselves: no band, no sums. Of input gradients with such a stride (AVX-512) pairs of rows are.
"""

from libc.stdint cimport SIZE_MAX
from libc.string cimport memset

from fastconv.kernels.correlate cimport (
    Job,
    Phase,
    Task,
    activate,
    band_budget,
    decode,
    lag_of,
    output_at,
    packed_panel,
    packed_term,
    panel_bounds,
    run_job,
    run_panels,
    set_blocks,
    set_phase,
    source_plane,
    spans_vectors,
    start_job,
    tap_at,
)
from fastconv.kernels.fastconv cimport (
    FC_CACHE_LINE,
    FC_PIXEL_NV_MAX,
    FC_PLANE_TAPS,
    fc_pixel_planes,
    fc_pixel_store,
    fc_pixel_sums,
    fc_plane_grads,
)
from fastconv.kernels.isa cimport cache_bytes
from fastconv.kernels.lattice cimport (
    Axis,
    Band,
    Lattice,
    band_layout,
    choose_block,
    fill_band,
    share_block,
)
from fastconv.kernels.memory cimport block_alloc, block_free, streams

cdef enum:
    # Terms summed in registers before the partial sums go to memory; a constant, because it shows in the last bits.
    CHAIN = 256
    # Outputs of a block: long rows for the vectors; the band's own budget bounds the memory. Fewer where one image gives some
    # threads nothing to do: an eighth of all.
    PIXELS = 4096
    PIXELS_MIN = 512
    BLOCKS = 8
    TERMS = 1 << 14  # multiply-adds worth a task: small planes go several groups at a time
    # Sums that must be under way to cover the latency of a multiply-add: a narrower tile takes as long as one of these.
    LATENCY = 8
    PLANE = 1 << 15  # outputs of a task's planes, or of its part of one
    NEAR = 512 << 10  # a band of no more bytes comes from L2 without being asked for
    PAIR = 2  # rows of more vectors than this are worked on two by two where the kernel allows it

cdef struct PixelPhase:
    Phase phase
    Py_ssize_t lag        # see fc_pixel_sums

cdef struct Pixel:
    Job job  # the first member: tasks get its address
    PixelPhase *phases
    Py_ssize_t count
    bint paired           # stride 2: phases 2i and 2i + 1 are the even and the odd places of the same rows
    bint stream           # complete rows go past the caches


cdef Py_ssize_t whole(const Job *job, Py_ssize_t pixels) noexcept nogil:
    """`pixels` rounded up to whole vectors."""
    return (pixels + job.kernels.lanes - 1) & -job.kernels.lanes


cdef void set_rows(const Job *job, const Py_ssize_t *count, bint in_pairs, fc_pixel_sums *sums) noexcept nogil:
    """A block's rows one by one, or as one long row, whose sums between the rows proper are left out, if that is faster."""
    cdef Py_ssize_t outputs = min(job.panel, job.outputs), least = LATENCY * job.kernels.lanes
    cdef Py_ssize_t row = max(least, outputs * whole(job, count[2])), joined
    sums.rows = count[1]
    sums.cols = sums.row = count[2]
    sums.s_row = whole(job, count[2])
    joined = (count[1] - 1) * job.band.width + count[2]
    in_pairs = in_pairs and count[2] > PAIR * job.kernels.lanes
    if not in_pairs and outputs * whole(job, joined) <= count[1] * row:
        sums.rows = 1
        sums.cols = joined
        sums.s_row = job.band.width
        if job.band.width == count[2] == job.axis[1].y_step * job.axis[2].y_size:  # nor are there holes in y
            sums.row = joined
    sums.s_m = count[1] * sums.s_row + FC_PIXEL_NV_MAX * job.kernels.lanes


cdef bint are_rows(const Job *job, const PixelPhase *own, const fc_pixel_sums *sums) noexcept nogil:
    """Whether the tiles can write the rows of y themselves. Of rows that are summed as one they would add a residual in pieces,
    which takes more calls than to add it to a whole block."""
    if job.axis[2].y_step > 1 or (own.lag and job.panel == 1):
        return False
    return sums.cols == sums.row or (job.residual == NULL and sums.x_row >= job.kernels.lanes)


cdef void sum_phase(const Pixel *pixel, const PixelPhase *own, const char *weights, Py_ssize_t width, const char *band,
                    fc_pixel_sums *sums, void *y) noexcept nogil:
    """All channels of one phase, one panel and one d; to y, or NULL: to the sums."""
    cdef const Job *job = &pixel.job
    cdef const Phase *phase = &own.phase
    cdef Py_ssize_t c = 0, item = job.itemsize
    sums.off = job.off + phase.tap
    sums.tap_rows = 1
    sums.taps = sums.tap_row = phase.taps
    sums.a_c = phase.taps * width
    sums.lag = own.lag
    while c < job.channels:
        sums.channels = min(job.channel_block, job.channels - c)
        sums.add = c > 0
        sums.y = y if c + sums.channels == job.channels else NULL
        sums.a = weights + packed_term(job, c, phase.tap, phase.taps) * width * item
        sums.x = band + c * job.band.channel * item
        job.kernels.pixel_sums[width](sums)
        c += job.channel_block


cdef void run_phase(const Pixel *pixel, const Task *t, const PixelPhase *own, char *workspace) noexcept nogil:
    """The outputs of one phase, or of two together, from the task's band."""
    cdef const Job *job = &pixel.job
    cdef const Phase *phase = &own.phase
    cdef const Axis *axis = job.axis
    cdef fc_pixel_sums sums
    cdef fc_pixel_store store
    cdef Py_ssize_t panel, start, size, width, i, g, d, at_y, o_index, cols, item = job.itemsize
    cdef Py_ssize_t count[3]
    cdef Py_ssize_t at[3]
    cdef const char *weights
    cdef const char *band
    cdef bint complete
    for i in range(3):
        count[i] = min(t.count[i], phase.out[i] - t.origin[i])
        if count[i] <= 0:
            return
        at[i] = phase.start[i] + t.origin[i] * axis[i].y_step
    sums.x_c = job.band.channel
    sums.x_row = job.band.width
    set_rows(job, count, own.lag > 0 and job.panel == 1, &sums)
    cols = sums.cols
    complete = not pixel.paired and are_rows(job, own, &sums)
    sums.y_m = job.y_c
    sums.y_row = axis[1].y_step * axis[2].y_size
    sums.relu = job.relu
    sums.ahead = job.band_bytes > NEAR
    sums.stream = pixel.stream and complete and sums.row == sums.cols
    store.sums = workspace + job.band_bytes
    store.rows = count[1]
    store.cols = count[2]
    store.s_m = sums.s_m
    store.s_row = sums.s_row
    store.y_m = job.y_c
    store.y_row = axis[1].y_step * axis[2].y_size
    store.y_px = axis[2].y_step
    store.relu = job.relu
    store.odd = NULL
    if pixel.paired:
        store.odd_cols = min(t.count[2], own[1].phase.out[2] - t.origin[2])
        if store.odd_cols > 0:
            store.odd = <char *>store.sums + job.panel * sums.s_m * item
    elif store.y_px == 1 and store.cols == store.s_row == store.y_row:
        store.cols *= store.rows
        store.rows = 1
    for panel in range(t.panel0, t.panel1):
        panel_bounds(job, panel, &start, &size, &width)
        weights = packed_panel(job, t.group, start)
        store.outputs = <int>size
        for g in range(t.groups):
            o_index = (t.group + g) * job.outputs + start
            store.bias = NULL if job.bias == NULL else job.bias + o_index * item
            for d in range(count[0]):
                band = workspace + (
                    g * job.channels * job.band.channel + d * job.band.rows * job.band.width) * item
                at_y = t.n * job.y_n + o_index * job.y_c + (
                    ((at[0] + d * axis[0].y_step) * axis[1].y_size + at[1]) * axis[2].y_size + at[2])
                store.y = job.y + at_y * item
                store.residual = NULL if job.residual == NULL else job.residual + at_y * item
                sums.sums = <void *>store.sums
                sums.bias = store.bias
                sums.residual = store.residual
                sum_phase(pixel, own, weights, width, band, &sums, store.y if complete else NULL)
                if complete:
                    continue
                if store.odd != NULL:
                    sums.sums = <void *>store.odd
                    sums.cols = cols - count[2] + store.odd_cols
                    sum_phase(pixel, own + 1, weights, width, band, &sums, NULL)
                    sums.cols = cols
                job.kernels.pixel_store(&store)
            weights += job.packed_group


cdef void clear_holes(const Job *job, const Task *t, char *band) noexcept nogil:
    """What fill_band leaves as it was: the tiles read and multiply whole vectors of it, and on a processor that takes a hundred
    cycles for a denormal number, as Intel's do, what happens to lie there could make a call ten times as long."""
    cdef const Band *layout = &job.band
    cdef Py_ssize_t item = job.itemsize, used = layout.channel * job.channels * t.groups * item, c, i
    for i in range(3):
        if t.count[i] < layout.block[i]:
            memset(band, 0, job.band_bytes)
            return
    for c in range(job.channels * t.groups):
        memset(band + (c * layout.channel + layout.size) * item, 0, (layout.channel - layout.size) * item)
    memset(band + used, 0, min(<Py_ssize_t>job.band_bytes - used, FC_PIXEL_NV_MAX * job.kernels.lanes * item))


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Pixel *pixel = <const Pixel *>argument
    cdef const Job *job = &pixel.job
    cdef Task t
    cdef Py_ssize_t i = 0
    decode(job, number, &t)
    clear_holes(job, &t, workspace)
    fill_band(job.axis, &job.band, job.itemsize, t.origin, t.count, source_plane(job, &t), job.x_c,
              job.channels * t.groups, workspace)
    while i < pixel.count:
        run_phase(pixel, &t, pixel.phases + i, workspace)
        i += 2 if pixel.paired else 1
    activate_groups(job, &t)


cdef void activate_groups(const Job *job, Task *t) noexcept nogil:
    cdef Py_ssize_t stop = t.group + t.groups
    while job.activation >= 0 and t.group < stop:
        activate(job, t)
        t.group += 1


cdef void planes_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """One channel to one output, of several groups."""
    cdef const Pixel *pixel = <const Pixel *>argument
    cdef const Job *job = &pixel.job
    cdef const Axis *axis = job.axis
    cdef Task t
    cdef fc_pixel_planes planes
    cdef Py_ssize_t d, y_at, item = job.itemsize
    decode(job, number, &t)
    memset(workspace, 0, axis[2].size * item)
    planes.zeros = workspace
    planes.off = job.off
    planes.planes = t.groups
    planes.x_plane = job.x_c
    planes.y_plane = job.y_c
    planes.a = packed_panel(job, t.group, 0)
    planes.a_plane = job.packed_group // item
    planes.down = axis[1].taps
    planes.across = planes.a_row = axis[2].taps
    planes.step = axis[1].step
    planes.top = t.origin[1] * planes.step + tap_at(&axis[1], 0)
    if axis[1].offset[planes.down - 1] < axis[1].offset[0]:  # of a gradient: from the last row of weights to the first
        planes.top -= planes.down - 1
        planes.a = <const char *>planes.a + (planes.down - 1) * planes.a_row * item
        planes.a_row = -planes.a_row
    planes.x_row = planes.in_cols = axis[2].size
    planes.in_rows = axis[1].size
    planes.rows = t.count[1]
    planes.cols = t.count[2]
    planes.y_row = axis[2].y_size
    planes.relu = job.relu
    planes.bias = NULL if job.bias == NULL else job.bias + t.group * item
    for d in range(t.count[0]):
        planes.x = source_plane(job, &t) + (t.origin[0] + d) * axis[1].size * axis[2].size * item
        y_at = t.n * job.y_n + t.group * job.y_c + output_at(job, t.origin[0] + d, t.origin[1], t.origin[2])
        planes.y = job.y + y_at * item
        planes.residual = NULL if job.residual == NULL else job.residual + y_at * item
        job.kernels.pixel_planes(&planes)
    activate_groups(job, &t)


cdef bint are_strided(const Job *job):
    """Whether rows with a step of 2 are as pixel_planes wants them."""
    cdef const Axis *w = &job.axis[2]
    cdef Py_ssize_t i
    for i in range(w.taps):
        if tap_at(w, i) != i - w.taps // 2:
            return False
    return (w.step == 2 and w.taps == job.axis[1].taps and w.out <= job.kernels.plane_strided
            and w.out == (w.size + 1) // 2)


cdef bint are_planes(const Job *job):
    """Whether pixel_planes can run it."""
    cdef const Axis *axis = job.axis
    cdef const Axis *w = &job.axis[2]
    cdef Py_ssize_t i
    for i in range(3):
        if axis[i].y_step != 1 or axis[i].source != NULL:
            return False
    if axis[0].step != 1 or axis[1].step != w.step or (w.step != 1 and not are_strided(job)):
        return False
    if job.channels != 1 or job.outputs != 1 or axis[1].taps not in (3, 5, 7) or w.taps > FC_PLANE_TAPS or w.out > PLANE:
        return False
    for i in range(1, axis[1].taps):
        if axis[1].offset[i] - axis[1].offset[i - 1] != axis[1].offset[1] - axis[1].offset[0]:
            return False
    for i in range(w.taps if w.step == 1 else 0):
        if not spans_vectors(w, tap_at(w, i), tap_at(w, i), w.out, job.kernels.lanes):
            return False
    return (abs(axis[1].offset[1] - axis[1].offset[0]) == axis[0].taps == 1 and axis[0].out == axis[0].size
            and tap_at(&axis[0], 0) == 0)


cdef bint are_gradients(const Job *job, tuple phases):
    """Whether plane_grads can run it."""
    cdef Lattice phase
    cdef const Axis *axis
    cdef Py_ssize_t taps = 3 if job.w_taps == 9 else 5, i, t, k
    cdef Py_ssize_t at[2]
    if job.kernels.plane_grads == NULL or len(phases) != 4 or job.channels != 1 or job.outputs != 1:
        return False
    if job.taps != taps * taps or job.bias != NULL or job.residual != NULL or job.relu or job.activation >= 0:
        return False
    for i in range(3):
        axis = &job.axis[i]
        if axis.size != (axis.y_size + 1) // 2 or (i == 0 and axis.y_size != 1):
            return False
    for phase in phases:
        for t in range(phase.taps):
            at[0], at[1] = divmod(t, phase.axis[2].taps)
            k = phase.tap_index[t]
            for i in range(2):
                axis = &phase.axis[i + 1]
                if axis.y_step != 2 or 2 * tap_at(axis, at[i]) != axis.y_start + taps // 2 - (k % taps if i else k // taps):
                    return False
    return job.axis[2].size <= job.kernels.plane_strided


cdef void gradients_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """Some pairs of rows of dx, of several groups."""
    cdef const Job *job = <const Job *>argument
    cdef const Axis *axis = job.axis
    cdef Task t
    cdef fc_plane_grads planes
    decode(job, number, &t)
    memset(workspace, 0, axis[2].size * job.itemsize)
    planes.zeros = workspace
    planes.dy, planes.dy_plane = source_plane(job, &t), job.x_c
    planes.a, planes.a_plane = job.packed + t.group * job.packed_group, job.w_g
    planes.dx, planes.dx_plane = job.y + (t.n * job.y_n + t.group * job.y_c) * job.itemsize, job.y_c
    planes.planes = t.groups
    planes.rows, planes.cols = axis[1].size, axis[2].size
    planes.height, planes.width = axis[1].y_size, axis[2].y_size
    planes.top, planes.pairs = t.origin[1], t.count[1]
    planes.taps = 3 if job.w_taps == 9 else 5
    job.kernels.plane_grads(&planes)


cdef void set_plane_tasks(Job *job, int threads) noexcept:
    """Blocks of rows of planes, or several planes."""
    cdef Py_ssize_t block[3]
    choose_block(job.axis, 1, job.itemsize, SIZE_MAX, PLANE, block)
    band_layout(job.axis, block, job.itemsize, &job.band)
    job.group_step = min(PLANE // max(1, block[0] * block[1] * block[2]), job.groups * job.batch // (4 * threads))
    job.group_step = max(1, min(job.group_step, job.groups))


cdef Py_ssize_t run_gradients(Job *job, int threads) except -1:
    cdef Py_ssize_t workspace = job.axis[2].size * job.itemsize
    if threads > 0:
        set_plane_tasks(job, threads)
        job.packed, job.packed_group = <char *>job.w, job.w_g * job.itemsize  # as they are
        job.group0, job.group1, job.panel0, job.panel1 = 0, job.groups, 0, 1
        run_panels(job, set_blocks(job), gradients_task, workspace, threads)
    return workspace


cdef Py_ssize_t run_planes(Pixel *pixel, object w, int threads) except -1:
    cdef Job *job = &pixel.job
    cdef Py_ssize_t off[FC_PLANE_TAPS]
    cdef Py_ssize_t workspace = job.axis[2].size * job.itemsize, i
    if threads == 0:
        return workspace
    for i in range(job.axis[2].taps):
        off[i] = tap_at(&job.axis[2], i)
    job.off = off
    set_plane_tasks(job, threads)
    run_job(job, w, planes_task, workspace, threads)
    return workspace


def run(Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Pixel pixel
    cdef Job *job = &pixel.job
    cdef Lattice phase
    cdef tuple phases = lattice.phases
    cdef Py_ssize_t few_taps[64]  # small calls need no allocation for these
    cdef PixelPhase few_phases[4]
    cdef Py_ssize_t *off = few_taps
    cdef Py_ssize_t slack, workspace, terms, budget, pixels, most = lattice.taps, tap = 0, i = 0
    cdef Py_ssize_t block[3]
    start_job(job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    job.multiple = 0
    job.panels = (job.outputs + job.kernels.pixel_mr - 1) // job.kernels.pixel_mr
    job.panel = (job.outputs + job.panels - 1) // job.panels
    pixel.count = len(phases) or 1
    if pixel.count == 1 and are_planes(job):
        return run_planes(&pixel, w, threads)
    if are_gradients(job, phases):
        return run_gradients(job, threads)
    budget = band_budget(max_workspace)
    if job.panels * pixel.count > 1:  # each reads the band again, from L2
        budget = min(budget, <Py_ssize_t>(cache_bytes(2) // 2))
    pixels = groups * job.batch * job.axis[0].out * job.axis[1].out * job.axis[2].out // BLOCKS
    pixels = min(max(pixels, <Py_ssize_t>PIXELS_MIN), <Py_ssize_t>PIXELS)
    choose_block(job.axis, job.channels, job.itemsize, budget, pixels, block)
    share_block(job.axis, groups * job.batch * job.panels, threads, block)
    band_layout(job.axis, block, job.itemsize, &job.band)
    if phases:
        most = max([phase.taps for phase in phases])
    pixel.paired = job.axis[2].y_step == 2 and [phase.starts[2] for phase in phases[:2]] == [0, 1]
    # past the caches where the rows of y are whole lines, and whole in a block
    pixel.stream = (job.axis[2].out * job.itemsize % FC_CACHE_LINE == 0 and block[2] == job.axis[2].out and job.activation < 0
                    and streams(job.y, job.x, job.batch * job.y_n * job.itemsize, job.axis[2].y_size * job.itemsize))
    job.channel_block = max(1, CHAIN // most)
    terms = job.channels * job.outputs * job.taps * block[0] * block[1] * block[2]
    job.group_step = min(TERMS // max(1, terms), groups)
    job.group_step = min(job.group_step, budget // (job.channels * job.band.channel * job.itemsize))
    job.group_step = max(1, min(job.group_step, groups * job.batch // (4 * max(1, threads))))
    # whole vectors are read and written: up to one tile of them beyond the last row
    slack = FC_PIXEL_NV_MAX * job.kernels.lanes
    job.band_bytes = ((job.band.channel * job.channels * job.group_step + slack) * job.itemsize + 63) // 64 * 64
    workspace = job.band_bytes + (2 if pixel.paired else 1) * job.panel * job.itemsize * (
        block[1] * max(job.band.width, whole(job, block[2])) + slack)
    if threads == 0:
        return workspace
    pixel.phases = few_phases
    if job.taps > 64:
        off = <Py_ssize_t *>block_alloc(job.taps * sizeof(Py_ssize_t))
    if pixel.count > 4:
        pixel.phases = <PixelPhase *>block_alloc(pixel.count * sizeof(PixelPhase))
    try:
        if off == NULL or pixel.phases == NULL:
            raise MemoryError("fastconv: no memory for the tap offsets")
        job.off = off
        for phase in phases or (lattice,):
            set_phase(job, phase, tap, &pixel.phases[i].phase, off)
            pixel.phases[i].lag = lag_of(phase.axis, off + tap, job.band.width)
            tap += phase.taps
            i += 1
        run_job(job, w, task, workspace, threads)
    finally:
        if off != few_taps:
            block_free(off)
        if pixel.phases != few_phases:
            block_free(pixel.phases)
    return workspace
