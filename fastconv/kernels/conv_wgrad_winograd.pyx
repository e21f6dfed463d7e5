# SPDX-License-Identifier: BSD-3-Clause
"""Weight gradient of 3x3 and 5x5 convolutions with stride 1 by Winograd's F(3x3, 4x4), F(3x3, 2x2) and F(5x5, 2x2).

dw is the correlation of x with dy. Cut dy into tiles of 4x4 (2x2): for 3x3 taps each correlates with its 6x6 pixels of x, which
takes 36 products instead of 144, and the products of all tiles are added up before the one transform to 3x3 taps:
dw[o][c] = A^T (sum over tiles of V[c] * W[o]) A. For each of the 36 positions that sum is a matrix product over the tiles.

The work goes in rounds of tiles. In a round, tasks transform x and dy by panels of channels to [panel][position][tile][width],
then tasks multiply all panels of a position, which are read from beyond L2 only once, and add to the sums of that position.
After the last round, and after so many tiles, tasks transform the sums and store them or add them to dw. The rounds, and the
chains within, depend on the problem alone: neither the team nor max_workspace shows in the bits.

Where the cores have an L2 cache of 1 MiB or more (taken to be those with vectors of 64 bytes) and it holds the sums of enough
channels, tasks are slices of the tiles instead. Each transforms some tiles and multiplies them at once, so that all but x and
dy stays in its L2; at last the dw of the slices are added in order. Measured on 16x64x56x56: 1.25 times as fast on one core,
1.85 times on two.

As in the forward convolution, sums that are not finite are noticed, and the call runs again on the direct kernel.
"""

cimport numpy as cnp
from libc.string cimport memset

from fastconv.kernels.conv_winograd cimport (
    Blocks,
    Tiling,
    block_at,
    choose_band,
    choose_blocks,
    columns_of_tiles,
    rows_of_tiles,
    start_tiling,
    transform_tiles,
)
from fastconv.kernels.correlate cimport Job, count_rerun, start_job
from fastconv.kernels.fastconv cimport (
    FC_CACHE_LINE,
    FC_FIRST,
    FC_NV_MAX,
    fc_winograd_dw,
    fc_winograd_sum,
)
from fastconv.kernels.lattice cimport Axis, Lattice, lines
from fastconv.kernels.memory cimport block_alloc, block_free
from fastconv.kernels.team cimport run_tasks

from fastconv.kernels import conv_wgrad
from fastconv.kernels.conv_winograd import KINDS

cnp.import_array()

cdef enum:
    # Tiles summed in registers before the partial sums go to memory (L1): longer chains are less accurate. (With 32 products
    # took 3 to 6 % less time, and errors of small layers broke the promise.)
    CHAIN = 16
    # Of one panel, the chains that are multiplied at a time: those of X_PANELS of x and of one of dy, 24 KiB, stay in L1 while
    # all panels of dy come from L2, each for both.
    STEP_BYTES = 8 << 10
    X_PANELS = 2
    # Tiles of a round: as many as have transforms of ROUND_BYTES, between these. Those of one position are 340 KiB (36
    # positions), which stay in L2. After TILES_MAX or more the sums are transformed and added to dw: longer sums are less
    # accurate.
    TILES_MIN = 64
    TILES_MAX = 2048
    ROUND_BYTES = 12 << 20
    # So few tiles are one round, whose sums stay in L2, a pair of panels at a time: no round after it needs them. Half of the
    # 60 tiles that a core multiplies in the time it takes to write their sum beyond L2 and read it (2 flops each at 200
    # GFLOP/s, 8 bytes at 13 GB/s), for the panels are read again for each pair.
    PAIR_TILES = 32
    # Transforms and sums of a round. Where all channels take more, it is done for some of the channels at a time: 512 x 256 of
    # them have 27 MiB. (All 512 x 512 at once, 48 MiB, took 1.15 to 1.2 times as long, avx512.)
    SHARED_LIMIT = 32 << 20
    # Tiles that one task transforms.
    TASK_TILES = 64
    # Of a slice: most bytes of its sums; tiles that it transforms at a time (64 + 64 channels: 1.2 MiB).
    SLICE_SUMS = 1 << 20
    SLICE_TILES = 64
    # Most slices of all groups: half as many, which store half the sums, unless each has so many blocks of tiles.
    SLICES = 16
    SLICE_BLOCKS = 8

cdef struct Gradient:
    Job job                       # x as in the forward convolution, y = dy, w = dw; first: tasks get a pointer to it
    Tiling tiling[2]              # of x and of dy
    int kind, nonfinite
    Py_ssize_t positions, taps    # alpha^2, r^2
    Py_ssize_t channels[2]        # of a group, of x and of dy
    Py_ssize_t panels[2]          # of a group
    Py_ssize_t nr                 # channels of a panel
    Py_ssize_t panel              # elements of a transformed panel
    char *transformed
    # what is worked on: groups, panels [first, last) of x and of dy, a block of tiles
    Py_ssize_t group0, group1
    Py_ssize_t first[2]
    Py_ssize_t last[2]
    Py_ssize_t row, rows, col, cols
    Py_ssize_t task_rows, tasks   # rows of tiles that a task transforms, tasks of a panel
    bint add                      # to dw
    bint add_sums                 # to the sums of the tiles before
    Py_ssize_t tiles_summed       # since dw was stored
    Py_ssize_t parts              # tasks of a position
    Py_ssize_t step               # chains that a product takes at a time
    Py_ssize_t block[2]           # panels that are worked on at a time
    Py_ssize_t sums_p             # elements of the sums from position to position
    char *sums                    # of the groups that are worked on; slices have their own
    size_t band_bytes, sums_bytes, taps_bytes
    # Slices; 0: none
    Py_ssize_t slices             # of a group
    const Blocks *tiles
    char *slice_dw                # dw of the slices but the first, of all groups each
    size_t transformed_bytes      # of one


# Sums of the panels [first, last) of x and of dy: at[position][dy panel][channel][width]
cdef struct Sums:
    char *at
    Py_ssize_t first[2]
    Py_ssize_t last[2]
    Py_ssize_t p                  # elements from position to position


cdef inline Py_ssize_t panel_size(const Gradient *g, int side, Py_ssize_t panel) noexcept nogil:
    return min(g.nr, g.channels[side] - panel * g.nr)


cdef inline Py_ssize_t panel_width(const Gradient *g, int side, Py_ssize_t panel) noexcept nogil:
    """Channels, in whole vectors."""
    return g.nr if panel_size(g, side, panel) > g.job.kernels.lanes else g.job.kernels.lanes


cdef inline char *panel_at(const Gradient *g, Py_ssize_t group, int side, Py_ssize_t panel) noexcept nogil:
    """Where V or W of a panel is."""
    cdef Py_ssize_t x_panels = g.last[0] - g.first[0], all = x_panels + g.last[1] - g.first[1]
    cdef Py_ssize_t i = (group - g.group0) * all + side * x_panels + panel - g.first[side]
    return g.transformed + i * g.panel * g.job.itemsize


cdef void transform(const Gradient *g, Py_ssize_t group, int side, Py_ssize_t panel, Py_ssize_t row, Py_ssize_t rows,
                    char *band) noexcept nogil:
    """Some rows of tiles of one panel of x or dy."""
    cdef const Job *job = &g.job
    cdef Tiling tiling = g.tiling[side]
    cdef Py_ssize_t c = group * g.channels[side] + panel * g.nr
    tiling.v_t = panel_width(g, side, panel)
    transform_tiles(&tiling, (job.y if side else job.x) + c * tiling.x_c * job.itemsize, panel_size(g, side, panel),
                    g.row + row, rows, g.col, g.cols, band,
                    panel_at(g, group, side, panel) + row * g.cols * tiling.v_t * job.itemsize)


cdef void transform_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Gradient *g = <const Gradient *>argument
    cdef Py_ssize_t row = number % g.tasks * g.task_rows
    cdef Py_ssize_t x_panels = g.last[0] - g.first[0], all = x_panels + g.last[1] - g.first[1]
    cdef int side
    number //= g.tasks
    side = 0 if number % all < x_panels else 1
    transform(g, g.group0 + number // all, side, g.first[side] + number % all - side * x_panels, row,
              min(g.task_rows, g.rows - row), workspace)


cdef inline Py_ssize_t sums_at(const Gradient *g, const Sums *sums, Py_ssize_t c, Py_ssize_t o) noexcept nogil:
    """Elements from the first sum of a position to those of the first channel of panel c of x with panel o of dy."""
    cdef Py_ssize_t channels = min(g.channels[0], sums.last[0] * g.nr) - sums.first[0] * g.nr
    return (o - sums.first[1]) * channels * g.nr + (c - sums.first[0]) * g.nr * panel_width(g, 1, o)


cdef void multiply(const Gradient *g, Py_ssize_t group, Py_ssize_t p, const Py_ssize_t *first, const Py_ssize_t *last,
                   const Sums *sums) noexcept nogil:
    """Those of position p, of the panels [first, last) of x and dy."""
    cdef const Job *job = &g.job
    cdef fc_winograd_sum tile
    cdef Py_ssize_t item = job.itemsize
    cdef Py_ssize_t tiles = g.rows * g.cols, chains = (tiles + CHAIN - 1) // CHAIN, i = 0, t = 0, c, o, size, at, width
    cdef int nv, mr
    cdef const char *v
    cdef char *to
    tile.chain = tiles // chains
    while i < chains:
        tile.chains = min(g.step, chains - i)
        tile.longer = min(max(tiles % chains - i, 0), tile.chains)
        tile.flags = FC_FIRST if i == 0 and not g.add_sums else 0
        for o in range(first[1], last[1]):
            width = panel_width(g, 1, o)
            nv = <int>(width // job.kernels.lanes)
            tile.w = panel_at(g, group, 1, o) + (p * g.tiling[1].v_p + t * width) * item
            for c in range(first[0], last[0]):
                tile.v_t = panel_width(g, 0, c)
                v = panel_at(g, group, 0, c) + (p * g.tiling[0].v_p + t * tile.v_t) * item
                to = sums.at + (p * sums.p + sums_at(g, sums, c, o)) * item
                size = panel_size(g, 0, c)
                at = 0
                while at < size:
                    mr = <int>min(<Py_ssize_t>job.kernels.sum_mr[nv], size - at)
                    tile.v = v + at * item
                    tile.y = to + at * width * item
                    job.kernels.winograd_sum[nv][mr](&tile)
                    at += mr
        t += tile.chains * tile.chain + tile.longer
        i += tile.chains


cdef void store(const Gradient *g, Py_ssize_t group, Py_ssize_t c, Py_ssize_t c1, Py_ssize_t o, const Sums *sums,
                char *taps, char *turned) noexcept nogil:
    """dw of the panels [c, c1) of x and o of dy, from their sums."""
    cdef const Job *job = &g.job
    cdef fc_winograd_dw t
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes, v, i, size = panel_size(g, 1, o), pairs
    cdef char *dw
    t.channels = min(g.channels[0], c1 * g.nr) - c * g.nr
    t.s_p = sums.p
    t.nonfinite = <int *>&g.nonfinite
    pairs = t.channels * g.taps
    t.s_c = t.dw_t = panel_width(g, 1, o)
    for v in range(t.s_c // lanes):
        t.sums = sums.at + (sums_at(g, sums, c, o) + v * lanes) * item
        t.dw = taps + v * lanes * item
        job.kernels.winograd_dw[g.kind](&t)
    dw = <char *>job.w + (group * job.w_g + o * g.nr * job.w_o + c * g.nr * job.w_c) * item
    if not g.add:
        job.kernels.transpose(dw, job.w_o, taps, t.dw_t, pairs, size, pairs)
        return
    job.kernels.transpose(turned, pairs, taps, t.dw_t, pairs, size, pairs)
    for i in range(size):
        job.kernels.add(dw + i * job.w_o * item, turned + i * pairs * item, pairs)


cdef inline Sums sums_of(const Gradient *g, Py_ssize_t group) noexcept nogil:
    """What the rounds add to."""
    cdef Sums sums
    cdef int side
    sums.at = g.sums + (group - g.group0) * g.sums_bytes
    sums.p = g.sums_p
    for side in range(2):
        sums.first[side], sums.last[side] = g.first[side], g.last[side]
    return sums


cdef void product_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """One position: some panels of x, X_PANELS at a time, with all of dy, which stay in L2."""
    cdef const Gradient *g = <const Gradient *>argument
    cdef Py_ssize_t first[2]
    cdef Py_ssize_t last[2]
    cdef Py_ssize_t p = number % g.positions, part, stop, group, panels = g.last[0] - g.first[0]
    cdef Sums sums
    if g.nonfinite:
        return  # the direct kernel will do it all again
    number //= g.positions
    part = number % g.parts
    group = g.group0 + number // g.parts
    sums = sums_of(g, group)
    first[0] = g.first[0] + part * panels // g.parts
    stop = g.first[0] + (part + 1) * panels // g.parts
    first[1], last[1] = g.first[1], g.last[1]
    while first[0] < stop:
        last[0] = min(stop, first[0] + X_PANELS)
        multiply(g, group, p, first, last, &sums)
        first[0] = last[0]


cdef inline Py_ssize_t pair_at(const Gradient *g, Py_ssize_t number, Py_ssize_t *panel) noexcept nogil:
    """The panels of x and of dy that are pair `number`, and its group."""
    cdef Py_ssize_t panels
    cdef int side
    for side in range(2):
        panels = g.last[side] - g.first[side]
        panel[side] = g.first[side] + number % panels
        number //= panels
    return g.group0 + number


cdef void store_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Gradient *g = <const Gradient *>argument
    cdef Py_ssize_t panel[2]
    cdef Py_ssize_t group = pair_at(g, number, panel)
    cdef Sums sums = sums_of(g, group)
    if g.nonfinite:
        return
    store(g, group, panel[0], panel[0] + 1, panel[1], &sums, workspace, workspace + g.taps_bytes)


cdef inline size_t panel_sums(const Gradient *g) noexcept nogil:
    """Bytes of the sums of one position of two panels."""
    return g.nr * g.nr * g.job.itemsize


cdef void pair_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """All of a panel of x by one of dy, where there is one round of few tiles: the sums stay in L2."""
    cdef const Gradient *g = <const Gradient *>argument
    cdef Sums sums
    cdef Py_ssize_t group = pair_at(g, number, sums.first), p
    cdef int i
    if g.nonfinite:
        return
    for i in range(2):
        sums.last[i] = sums.first[i] + 1
    sums.at = workspace + 2 * g.taps_bytes
    sums.p = lines(panel_sums(g)) // g.job.itemsize
    for p in range(g.positions):
        multiply(g, group, p, sums.first, sums.last, &sums)
    store(g, group, sums.first[0], sums.last[0], sums.first[1], &sums, workspace, workspace + g.taps_bytes)


cdef void slice_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """Some blocks of tiles, of all panels that are worked on."""
    cdef Gradient *shared = <Gradient *>argument
    cdef Gradient g = shared[0]
    cdef Py_ssize_t slice = number % g.slices, group = g.group0 + number // g.slices, block, panel, p, tiles = 0
    cdef Py_ssize_t last = (slice + 1) * g.tiles.count // g.slices
    cdef int side
    cdef Sums sums
    cdef char *taps
    if shared.nonfinite:
        return
    g.group0, g.group1 = group, group + 1
    g.transformed = workspace + g.band_bytes
    g.sums = g.transformed + g.transformed_bytes
    taps = g.sums + g.sums_bytes
    sums = sums_of(&g, group)
    if slice:
        g.job.w = g.slice_dw + (slice - 1) * g.job.groups * g.job.w_g * g.job.itemsize
    g.add = g.add_sums = False
    for block in range(slice * g.tiles.count // g.slices, last):
        block_at(g.tiles, block, &g.row, &g.rows, &g.col, &g.cols)
        for side in range(2):
            for panel in range(g.first[side], g.last[side]):
                transform(&g, group, side, panel, 0, g.rows, workspace)
        for p in range(g.positions):
            multiply(&g, group, p, g.first, g.last, &sums)
        tiles += g.rows * g.cols
        g.add_sums = True
        if tiles >= TILES_MAX or block == last - 1:
            for panel in range(g.first[1], g.last[1]):
                store(&g, group, g.first[0], g.last[0], panel, &sums, taps, taps + g.taps_bytes)
            g.add = True
            g.add_sums = False
            tiles = 0
    if g.nonfinite:
        shared.nonfinite = True


cdef void reduce_task(void *argument, Py_ssize_t output, char *workspace) noexcept nogil:
    """Add the slices in order."""
    cdef const Gradient *g = <const Gradient *>argument
    cdef Py_ssize_t s, item = g.job.itemsize, size = g.job.groups * g.job.w_g
    cdef char *dw = <char *>g.job.w + output * g.job.w_o * item
    for s in range(g.slices - 1):
        g.job.kernels.add(dw, g.slice_dw + (s * size + output * g.job.w_o) * item, g.job.channels * g.taps)


cdef inline void halve(Gradient *g) noexcept nogil:
    cdef int wide = 1 if g.block[1] >= g.block[0] else 0
    g.block[wide] = (g.block[wide] + 1) // 2


cdef void set_products(Gradient *g) noexcept nogil:
    """Lay out the sums of g.block."""
    g.sums_p = lines(panel_sums(g) * g.block[0] * g.block[1]) // g.job.itemsize
    g.sums_bytes = g.positions * g.sums_p * g.job.itemsize
    g.taps_bytes = lines(g.taps * panel_sums(g) * g.block[0])


cdef size_t slice_bytes(const Gradient *g) noexcept nogil:
    """Workspace of a slice."""
    return g.band_bytes + g.transformed_bytes + g.sums_bytes + 2 * g.taps_bytes


cdef size_t pair_bytes(const Gradient *g) noexcept nogil:
    """Workspace of a pair of panels."""
    return 2 * g.taps_bytes + g.positions * lines(panel_sums(g))


cdef size_t round_bytes(const Gradient *g) noexcept nogil:
    """Of a group's transforms and sums."""
    return (g.block[0] + g.block[1]) * g.panel * g.job.itemsize + g.sums_bytes


cdef void choose_panels(Gradient *g, Py_ssize_t tiles, size_t budget) noexcept nogil:
    """As many panels as have room for so many tiles; their sums, where those are read again. No sum depends on it."""
    g.block[0], g.block[1] = g.panels[0], g.panels[1]
    while True:
        set_products(g)
        if tiles <= PAIR_TILES:
            g.sums_bytes = 0
        if g.block[0] * g.block[1] == 1 or round_bytes(g) <= budget:
            break
        halve(g)
    g.taps_bytes = lines(g.taps * panel_sums(g))


cdef bint slices_fit(Gradient *g) noexcept nogil:
    """The panels of slices, whose sums stay in L2; whether not many panels are transformed more than once for it."""
    cdef Py_ssize_t transforms
    g.block[0], g.block[1] = g.panels[0], g.panels[1]
    while g.block[0] * g.block[1] > 1 and g.positions * panel_sums(g) * g.block[0] * g.block[1] > <size_t>SLICE_SUMS:
        halve(g)
    transforms = ((g.panels[0] + g.block[0] - 1) // g.block[0] * g.panels[1]
                  + (g.panels[1] + g.block[1] - 1) // g.block[1] * g.panels[0])
    return g.job.kernels.lanes * g.job.itemsize == FC_CACHE_LINE and 3 * transforms <= 4 * (g.panels[0] + g.panels[1])


cdef void choose_slices(Gradient *g, size_t budget) noexcept nogil:
    """Fewer panels where the budget wants it, and the number of slices. No sum depends on the panels."""
    cdef Py_ssize_t dw = g.job.groups * g.job.outputs * g.job.channels * g.taps * g.job.itemsize
    g.slices = min(<Py_ssize_t>SLICES, max(<Py_ssize_t>SLICES // 2, g.tiles.count // SLICE_BLOCKS)) // g.job.groups
    g.slices = max(1, min(min(g.slices, g.tiles.count), SHARED_LIMIT // dw))
    while True:
        set_products(g)
        g.transformed_bytes = (g.block[0] + g.block[1]) * g.panel * g.job.itemsize
        if g.block[0] * g.block[1] == 1 or slice_bytes(g) <= budget:
            return
        halve(g)


cdef int run_round(Gradient *g, bint is_last, int threads) except -1:
    """The block of tiles that g says, for the groups and panels that it says."""
    cdef Py_ssize_t x_panels = g.last[0] - g.first[0], dy_panels = g.last[1] - g.first[1], groups = g.group1 - g.group0
    g.task_rows = min(g.rows, max(<Py_ssize_t>1, TASK_TILES // g.cols))
    g.tasks = (g.rows + g.task_rows - 1) // g.task_rows
    run_tasks(transform_task, g, groups * (x_panels + dy_panels) * g.tasks, g.band_bytes, threads)
    if g.sums_bytes == 0:
        run_tasks(pair_task, g, groups * x_panels * dy_panels, pair_bytes(g), threads)
        return 0
    g.parts = min(x_panels, (4 * threads + g.positions - 1) // g.positions)
    run_tasks(product_task, g, groups * g.parts * g.positions, 0, threads)
    g.tiles_summed += g.rows * g.cols
    g.add_sums = True
    if g.tiles_summed >= TILES_MAX or is_last:
        run_tasks(store_task, g, groups * x_panels * dy_panels, 2 * g.taps_bytes, threads)
        g.add = True
        g.add_sums = False
        g.tiles_summed = 0
    return 0


cdef void whole_axis(Axis *axis, Py_ssize_t size) noexcept nogil:
    """Coordinate q is pixel q."""
    memset(axis, 0, sizeof(Axis))
    axis.out = axis.size = axis.span = axis.inner_stop = size
    axis.step = 1


def run(int kind, Lattice lattice, x, dw, dy, Py_ssize_t groups, int threads, max_workspace):
    """dw[group*output][channel][tap], from contiguous x and dy[n][channel][d][h][w] of the forward lattice.

    `kind` is an index of KINDS, whose F(m, r) is that of the convolution. Returns the bytes of workspace a thread needs. With
    threads=0 that is all it does.
    """
    cdef Gradient g
    cdef Job *job = &g.job
    cdef Tiling *tiling
    cdef Blocks tiles
    cdef Py_ssize_t m, r, lanes, channels, most, number
    cdef Py_ssize_t at_once[2]
    cdef size_t workspace, shared_bytes, limit = SHARED_LIMIT
    cdef char *shared
    cdef bint sliced
    cdef int side
    memset(&g, 0, sizeof(Gradient))
    start_job(job, lattice, x, dw, dy, groups, False, None, None, -1)
    m, r = KINDS[kind]
    g.kind = kind
    g.positions = (m + r - 1) ** 2
    g.taps = r * r
    lanes = job.kernels.lanes
    g.nr = FC_NV_MAX * lanes
    g.step = max(1, STEP_BYTES // (g.nr * job.itemsize * CHAIN))
    channels = 0
    for side in range(2):
        g.channels[side] = job.outputs if side else job.channels
        g.panels[side] = (g.channels[side] + g.nr - 1) // g.nr
        channels += g.panels[side] * g.nr
        tiling = &g.tiling[side]
        start_tiling(tiling, job.kernels, job.itemsize, job.axis, r, m, m if side else m + r - 1)
        tiling.transform = job.kernels.winograd_dy[kind] if side else job.kernels.winograd_input[kind]
        tiling.x_n, tiling.x_c = (job.y_n, job.y_c) if side else (job.x_n, job.x_c)
        tiling.v_b = lanes
        if side:
            for i in range(3):
                whole_axis(&tiling.axis[i], job.axis[i].out)
    sliced = slices_fit(&g)
    most = ROUND_BYTES // (g.positions * channels * job.itemsize)
    choose_blocks(&tiles, rows_of_tiles(&g.tiling[0], job.batch), columns_of_tiles(&g.tiling[0]),
                  SLICE_TILES if sliced else max(<Py_ssize_t>TILES_MIN, min(<Py_ssize_t>TILES_MAX, most)))
    for side in range(2):
        tiling = &g.tiling[side]
        g.band_bytes = max(g.band_bytes, choose_band(tiling, tiles.row_block, tiles.col_block))
        tiling.v_p = lines(tiles.tiles * g.nr * job.itemsize) // job.itemsize
    g.panel = g.positions * g.tiling[0].v_p
    if max_workspace is not None:
        limit = min(limit, <size_t>max_workspace)
    if sliced:
        g.tiles = &tiles
        choose_slices(&g, limit)
        shared_bytes = (g.slices - 1) * groups * job.w_g * job.itemsize
        workspace = slice_bytes(&g)
        most = groups
        for side in range(2):
            at_once[side] = g.block[side]
    else:
        choose_panels(&g, tiles.rows * tiles.cols, limit)
        for side in range(2):
            at_once[side] = g.block[side]
        most = min(groups, max(<Py_ssize_t>1, <Py_ssize_t>(limit // round_bytes(&g))))
        shared_bytes = most * round_bytes(&g)
        workspace = max(g.band_bytes, pair_bytes(&g) if g.sums_bytes == 0 else 2 * g.taps_bytes)
    if threads == 0:
        return workspace
    shared = <char *>block_alloc(shared_bytes)
    if shared == NULL:
        raise MemoryError(f"fastconv: no memory for {shared_bytes} bytes of transforms and sums")
    g.transformed = g.slice_dw = shared
    if not sliced:
        g.sums = shared + most * (at_once[0] + at_once[1]) * g.panel * job.itemsize
    try:
        for g.group0 in range(0, groups, most):
            g.group1 = min(groups, g.group0 + most)
            for g.first[0] in range(0, g.panels[0], at_once[0]):
                g.last[0] = min(g.panels[0], g.first[0] + at_once[0])
                for g.first[1] in range(0, g.panels[1], at_once[1]):
                    g.last[1] = min(g.panels[1], g.first[1] + at_once[1])
                    if sliced:
                        run_tasks(slice_task, &g, groups * g.slices, workspace, threads)
                        continue
                    g.add = g.add_sums = False
                    for number in range(tiles.count):
                        block_at(&tiles, number, &g.row, &g.rows, &g.col, &g.cols)
                        run_round(&g, number == tiles.count - 1, threads)
        if g.slices > 1 and not g.nonfinite:
            run_tasks(reduce_task, &g, groups * job.outputs, 0, threads)
    finally:
        block_free(shared)
    if g.nonfinite:
        count_rerun()
        conv_wgrad.run(0, lattice, x, dw, dy, groups, threads, max_workspace)
    return workspace
