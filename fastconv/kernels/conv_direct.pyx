# SPDX-License-Identifier: BSD-3-Clause
"""Direct convolution, vectorised over output channels.

A task owns one block of output pixels of one image and group. It packs the block's band once, then for some panels of
output channels at a time and each block of channels runs the tiles along the rows; the sums stay in the workspace, in the
order of the rows of y, until these are complete. Where vectors are cache lines the tiles meanwhile fetch those rows, and the
channels of x that the band, packed a block of them at a time, takes next, in this task or the one after. The phases of an
input gradient share the band, and those of the same rows of y the visit to them. Every output is summed over (channel, tap)
in the same order whatever the blocking.
"""

from libc.string cimport memset

from fastconv.kernels.correlate cimport (
    Job,
    Phase,
    Task,
    activate,
    band_budget,
    decode,
    packed_panel,
    packed_term,
    panel_bounds,
    run_job,
    set_phase,
    source_plane,
    start_job,
)
from fastconv.kernels.fastconv cimport (
    FC_CACHE_LINE,
    FC_CONV_RUN,
    FC_NV_MAX,
    fc_conv_store,
    fc_conv_tile,
    fc_conv_tile_fn,
    fc_fetch,
)
from fastconv.kernels.lattice cimport (
    Axis,
    Lattice,
    band_layout,
    choose_block,
    fill_band,
    share_block,
)
from fastconv.kernels.memory cimport block_alloc, block_free

cdef enum:
    # Terms summed in registers before the partial sums go to memory. 256 terms of a panel of 16 (32) floats are 16 (32) KiB:
    # they stay in L1 while all tiles of the block pass. A constant, because it shows in the last bits of the result.
    CHAIN = 256
    # Outputs of a block: the sums of a panel take PIXELS * 64 or 128 bytes.
    PIXELS = 784
    # Sums of the panels that pass over one block of channels before the next one comes: they and those channels share L2 with
    # the weights, so that a band larger than L2 comes from beyond it once for all of them.
    SUMS_BYTES = 128 << 10
    # Pixels of a tile from which on terms in runs are faster: fewer sums wait for their latency.
    RUNS_MIN = 7

cdef struct Direct:
    Job job  # the first member: tasks get its address
    Phase *phases
    Py_ssize_t count
    Py_ssize_t together  # phases of the same rows of y: they follow one another
    Py_ssize_t spread    # places in the rows of sums for each output of a phase: the stride, or 1 of one too large for that
    Py_ssize_t s_px      # of neighbours in the rows of sums
    Py_ssize_t sums_bytes, panels  # of the sums of one panel; panels that are summed together
    Py_ssize_t off_bytes   # of the offsets of a chain's terms, with which the workspace begins


# What a task is about: its source and workspace, and what the tiles bring to the cache meanwhile.
cdef struct Visit:
    const Task *t
    const Task *after       # most likely the thread's next one
    Py_ssize_t *off
    char *band
    char *sums
    Py_ssize_t filled       # channels that the band has
    fc_fetch fetch          # of the channels that come next, or of the rows of y that these tiles complete
    Py_ssize_t tile, parts  # tiles so far; tiles that share a row of what is to be fetched


cdef void fill_to(const Direct *direct, Visit *visit, Py_ssize_t channels) noexcept nogil:
    """The band of so many channels."""
    cdef const Job *job = &direct.job
    cdef Py_ssize_t first = visit.filled
    if first < channels:
        fill_band(job.axis, &job.band, job.itemsize, visit.t.origin, visit.t.count,
                  source_plane(job, visit.t) + first * job.x_c * job.itemsize, job.x_c, channels - first,
                  visit.band + first * job.band.channel * job.itemsize)
        visit.filled = channels


cdef void fetch_source(const Job *job, const Task *t, Py_ssize_t channel, Py_ssize_t channels, fc_fetch *fetch) noexcept nogil:
    """What the block of a task reads of `channels` channels from `channel` on: some rows of a plane."""
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t first = t.origin[1] * axis[1].step + axis[1].inner_shift
    cdef Py_ssize_t last = first + (t.count[1] + axis[1].shift_max) * axis[1].step
    first = max(0, first)
    last = min(axis[1].size, last)
    fetch.rows = 0
    if axis[0].size == 1 and first < last:
        fetch.rows = min(channels, job.channels - channel)
        fetch.row = job.x_c
        fetch.at = source_plane(job, t) + (channel * job.x_c + first * axis[2].size) * job.itemsize
        fetch.lines = (last - first) * axis[2].size * job.itemsize // FC_CACHE_LINE + 1


cdef void share_fetch(Visit *visit, Py_ssize_t tiles, Py_ssize_t itemsize) noexcept nogil:
    """Shares of so many tiles: each goes along a part of a row, so fewer tiles than rows fetch nothing."""
    cdef fc_fetch *fetch = &visit.fetch
    if fetch.rows > 1 and fetch.lines * FC_CACHE_LINE >= fetch.row * itemsize:  # they are one
        fetch.lines += (fetch.rows - 1) * fetch.row * itemsize // FC_CACHE_LINE
        fetch.rows = 1
    visit.parts = tiles // max(1, fetch.rows)
    if visit.parts == 0:
        fetch.rows = 0


cdef bint in_runs(const Job *job, const Phase *phase) noexcept nogil:
    """Whether the taps are runs of neighbours, as conv_runs takes them."""
    cdef const Py_ssize_t *off = job.off + phase.tap
    cdef Py_ssize_t i
    for i in range(phase.taps):
        if i % FC_CONV_RUN and off[i] != off[i - 1] + 1:
            return False
    return phase.taps % FC_CONV_RUN == 0


cdef void run_tiles(const Job *job, Visit *visit, fc_conv_tile *tile, const fc_conv_tile_fn *kernels, const char *x, char *sums,
                    Py_ssize_t cols, Py_ssize_t tiles) noexcept nogil:
    """`tiles` tiles of about equal sizes on the `cols` pixels from x on."""
    cdef Py_ssize_t j, first, last = 0, part
    for j in range(tiles):
        first = last
        last = (j + 1) * cols // tiles
        tile.x = x + first * job.itemsize
        tile.sums = sums + first * tile.s_px * job.itemsize
        tile.fetch = tile.w
        tile.fetch_step = 0
        if visit.tile < visit.fetch.rows * visit.parts:
            part = visit.tile % visit.parts
            tile.fetch_step = (visit.fetch.lines * FC_CACHE_LINE // visit.parts + tile.terms - 1) // tile.terms
            tile.fetch = (<const char *>visit.fetch.at + visit.tile // visit.parts * visit.fetch.row * job.itemsize
                          + part * visit.fetch.lines * FC_CACHE_LINE // visit.parts)
        kernels[last - first](tile)
        tile.next = <const char *>tile.next + tile.next_bytes
        visit.tile += 1


cdef void sum_phase(const Direct *direct, Visit *visit, const Phase *phase, const Py_ssize_t *count,
                    Py_ssize_t panel0, Py_ssize_t panel1, char *sums, const fc_fetch *y) noexcept nogil:
    """Some panels of the `count` outputs of a phase, to their places in the rows of y; `y`: these rows, to be fetched."""
    cdef const Job *job = &direct.job
    cdef fc_conv_tile tile
    cdef Py_ssize_t item = job.itemsize, step = direct.spread * direct.s_px
    cdef Py_ssize_t row = job.band.block[2] * step, rows = count[1], cols = count[2]
    cdef Py_ssize_t block = max(1, CHAIN // phase.taps), c, d, r, most, half, rest, pairs, tiles, steps, panel, start
    cdef Py_ssize_t size, width, shorter
    cdef bint fetches = job.kernels.lanes * item == FC_CACHE_LINE
    cdef const char *x
    cdef char *to
    cdef int nv
    cdef const fc_conv_tile_fn *kernels
    cdef bint runs = in_runs(job, phase)
    if cols == job.band.width:  # no halo: rows follow one another in the band as well
        cols *= rows
        rows = 1
    for c in range(min(block, job.channels)):
        for r in range(phase.taps):
            visit.off[c * phase.taps + r] = c * job.band.channel + job.off[phase.tap + r]
    c = 0
    tile.off = visit.off
    tile.s_px = step
    tile.x_jump = tile.s_jump = 0
    while c < job.channels:
        tile.terms = min(block, job.channels - c) * phase.taps
        tile.add = c > 0
        fill_to(direct, visit, min(c + block, job.channels) if fetches else job.channels)
        for panel in range(panel0, panel1):
            panel_bounds(job, panel, &start, &size, &width)
            nv = <int>(width // job.kernels.lanes)
            # one tile has the end of a row and the start of the next one, where two rows then take a tile less
            most = job.kernels.conv_mr[nv]
            half = min(cols, most // 2)
            rest = (cols - half + most - 1) // most
            tiles = (cols + most - 1) // most
            pairs = rows // 2 if 2 * rest + 1 < 2 * tiles else 0
            kernels = job.kernels.conv_tile[nv]
            if runs and job.kernels.run_mr[nv]:
                shorter = (cols + job.kernels.run_mr[nv] - 1) // job.kernels.run_mr[nv]
                if cols >= shorter * RUNS_MIN:
                    kernels, tiles, pairs = job.kernels.conv_runs[nv], shorter, 0
            tile.w = packed_panel(job, visit.t.group, start) + packed_term(job, c, phase.tap, phase.taps) * width * item
            # the tiles of this block of channels share the fetching of what comes next out among them
            steps = count[0] * (pairs * (2 * rest + 1) + (rows - 2 * pairs) * tiles)
            visit.tile = visit.fetch.rows = 0
            if fetches and visit.filled < job.channels and panel == panel0:
                fetch_source(job, visit.t, visit.filled, block, &visit.fetch)
            elif fetches and y != NULL and c + block >= job.channels:
                visit.fetch = y[0]
                visit.fetch.at = <const char *>y.at + (panel - panel0) * job.panel * y.row * item
                visit.fetch.rows = size
            elif (fetches and visit.filled == job.channels and panel + 1 == visit.t.panel1
                  and c < job.channels - block <= c + block):  # as late as y allows
                fetch_source(job, visit.after, 0, block, &visit.fetch)
            share_fetch(visit, steps, item)
            tile.next_bytes = tile.terms * width * item
            tile.next = <const char *>tile.w + (
                job.panel * job.column if panel + 1 < panel1 else
                tile.next_bytes - (panel1 - 1 - panel0) * job.panel * job.column if c + block < job.channels else
                tile.next_bytes)
            tile.next_bytes //= steps
            for d in range(count[0]):
                for r in range(rows):
                    x = visit.band + (c * job.band.channel + (d * job.band.rows + r) * job.band.width) * item
                    to = sums + ((panel - panel0) * direct.sums_bytes + (d * job.band.block[1] + r) * row * item)
                    if r >= 2 * pairs:
                        run_tiles(job, visit, &tile, kernels, x, to, cols, tiles)
                        continue
                    if r % 2:
                        x += half * item
                        to += half * step * item
                    run_tiles(job, visit, &tile, kernels, x, to, cols - half, rest)
                    if r % 2 == 0:
                        tile.x_jump = job.band.width - cols
                        tile.s_jump = row - cols * step
                        run_tiles(job, visit, &tile, kernels, x + (cols - half) * item, to + (cols - half) * step * item,
                                  2 * half, 1)
                        tile.x_jump = tile.s_jump = 0
        c += block


cdef void run_rows(const Direct *direct, Visit *visit, const Phase *phase, Py_ssize_t panel0,
                   Py_ssize_t panel1) noexcept nogil:
    """Some panels of the rows of y that `phase` and those after it share, or of its own outputs where those are apart."""
    cdef const Job *job = &direct.job
    cdef const Axis *axis = job.axis
    cdef const Task *t = visit.t
    cdef fc_conv_store store
    cdef fc_fetch y
    cdef Py_ssize_t item = job.itemsize, start, size, width, o_index, i, d, j, panel
    cdef bint whole = direct.spread == axis[2].y_step
    cdef bint fetches = phase == direct.phases and t.count[0] == 1  # the rows of other phases lie between those of the first
    cdef Py_ssize_t count[3]
    cdef Py_ssize_t at[3]
    cdef char *sums = visit.sums
    for i in range(3):
        at[i] = t.origin[i] * axis[i].y_step + (0 if i == 2 and whole else phase.start[i])
        count[i] = min(t.count[i], phase.out[i] - t.origin[i])
    if count[0] <= 0 or count[1] <= 0:
        return
    panel_bounds(job, panel0, &start, &size, &width)
    y.row = job.y_c
    y.lines = ((count[1] - 1) * axis[1].y_step * axis[2].y_size + count[2] * axis[2].y_step) * item // FC_CACHE_LINE + 1
    i = (at[0] * axis[1].y_size + at[1]) * axis[2].y_size + at[2] + t.n * job.y_n + (t.group * job.outputs + start) * job.y_c
    y.at = job.y + i * item
    for i in range(direct.together):
        count[2] = min(t.count[2], phase[i].out[2] - t.origin[2])
        if count[2] > 0:
            sum_phase(direct, visit, phase + i, count, panel0, panel1,
                      sums + (phase[i].start[2] * direct.s_px * item if whole else 0), &y if fetches and i == 0 else NULL)
    for panel in range(panel0, panel1):
        panel_bounds(job, panel, &start, &size, &width)
        o_index = t.group * job.outputs + start
        store.bias = NULL if job.bias == NULL else job.bias + o_index * item
        store.outputs = <int>size
        store.relu = job.relu
        store.s_px = direct.s_px
        store.s_row = job.band.block[2] * direct.spread * direct.s_px
        store.y_oc = job.y_c
        store.y_row = axis[1].y_step * axis[2].y_size
        store.rows = count[1]
        store.cols = min(t.count[2] * axis[2].y_step, axis[2].y_size - at[2]) if whole else 1
        if store.cols == store.y_row and store.cols * store.s_px == store.s_row:  # the rows are one
            store.cols *= store.rows
            store.rows = 1
        for d in range(count[0]):
            for j in range(1 if whole else count[2]):
                store.sums = sums + (d * job.band.block[1] * store.s_row + j * direct.s_px) * item
                i = ((at[0] + d * axis[0].y_step) * axis[1].y_size + at[1]) * axis[2].y_size + at[2]
                i += t.n * job.y_n + o_index * job.y_c + j * axis[2].y_step
                store.y = job.y + i * item
                store.residual = NULL if job.residual == NULL else job.residual + i * item
                job.kernels.conv_store(&store)
        sums += direct.sums_bytes


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Direct *direct = <const Direct *>argument
    cdef const Job *job = &direct.job
    cdef Task t, after
    cdef Visit visit
    cdef Py_ssize_t panel, i
    decode(job, number, &t)
    decode(job, number + 1, &after)
    visit.t = &t
    visit.after = &after
    visit.off = <Py_ssize_t *>workspace
    visit.band = workspace + direct.off_bytes
    visit.sums = visit.band + job.band_bytes
    visit.filled = 0
    if direct.together < direct.spread:  # no tap reaches the other places of a row
        memset(visit.sums, 0, direct.panels * direct.sums_bytes)
    panel = t.panel0
    while panel < t.panel1:
        i = 0
        while i < direct.count:
            run_rows(direct, &visit, direct.phases + i, panel, min(panel + direct.panels, t.panel1))
            i += direct.together
        panel += direct.panels
    activate(job, &t)


def run(Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Direct direct
    cdef Job *job = &direct.job
    cdef Lattice phase
    cdef tuple phases = lattice.phases or (lattice,)
    cdef Py_ssize_t workspace, place, tap = 0, i = 0
    cdef Py_ssize_t block[3]
    cdef char *tables
    start_job(job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    job.multiple = job.kernels.lanes
    job.panel = job.kernels.lanes * FC_NV_MAX
    job.panels = (job.outputs + job.panel - 1) // job.panel
    direct.spread = job.axis[2].y_step if job.axis[2].y_step <= PIXELS else 1
    choose_block(job.axis, job.channels, job.itemsize, band_budget(max_workspace), PIXELS // direct.spread, block)
    direct.s_px = min(job.panel, (job.outputs + job.multiple - 1) // job.multiple * job.multiple)
    place = direct.spread * direct.s_px * job.itemsize
    # of the whole block: the team's smaller ones take no more
    direct.panels = max(1, min(job.panels, SUMS_BYTES // max(block[0] * block[1] * block[2] * place, 1)))
    share_block(job.axis, groups * job.batch * job.panels, threads, block)
    direct.sums_bytes = block[0] * block[1] * block[2] * place
    band_layout(job.axis, block, job.itemsize, &job.band)
    job.band_bytes = (job.band.channel * job.channels * job.itemsize + 63) // 64 * 64
    direct.off_bytes = (max(<Py_ssize_t>CHAIN, job.taps) * sizeof(Py_ssize_t) + 63) // 64 * 64
    workspace = direct.off_bytes + job.band_bytes + direct.panels * direct.sums_bytes
    if threads == 0:
        return workspace
    direct.count = len(phases)
    direct.together = 0
    for phase in phases:
        direct.together += phase.starts[:2] == (<Lattice>phases[0]).starts[:2]
    if direct.spread < job.axis[2].y_step:
        direct.together = 1
    tables = <char *>block_alloc(job.taps * sizeof(Py_ssize_t) + direct.count * sizeof(Phase))
    if tables == NULL:
        raise MemoryError("fastconv: no memory for the tap offsets")
    try:
        job.off = <Py_ssize_t *>tables
        direct.phases = <Phase *>(tables + job.taps * sizeof(Py_ssize_t))
        for phase in phases:
            set_phase(job, phase, tap, direct.phases + i, <Py_ssize_t *>tables)
            tap += phase.taps
            i += 1
        run_job(job, w, task, workspace, threads)
    finally:
        block_free(tables)
    return workspace
