# SPDX-License-Identifier: BSD-3-Clause
"""im2col + GEMM: the columns of a few pixels at a time, multiplied while they are in the cache.

The pixels of all images are one axis, cut into tiles of NR. The columns of a tile and of CHAIN rows are written to the
workspace as [channel*tap][NR], where they stay in L1 while panels of weights pass, and the packed micro-kernel GEMM adds the
product to the partial sums, or to the bias and so on in the output. Nothing of the size of a full im2col matrix ever exists.

Where dilation takes many taps to padding, terms are in the order [tap][channel], so that those of a chain have one tap, and
tiles of which all pixels have it on padding leave the chain out. Rows are then cut into strips whose pixels have the same taps.
"""

from libc.stdint cimport uint64_t

from fastconv.kernels.correlate cimport (
    Job,
    activate_rows,
    band_budget,
    has_zero_taps,
    output_at,
    packed_panel,
    panel_bounds,
    run_packed,
    split_panels,
    start_job,
)
from fastconv.kernels.fastconv cimport FC_CACHE_LINE, FC_FIRST, FC_LAST, FC_NV_MAX, FC_RELU, FC_STREAM, fc_fetch, fc_gemm_tile
from fastconv.kernels.lattice cimport Axis, Lattice, copy_taps, own_pixels, real_taps, source_at
from fastconv.kernels.memory cimport streams

cdef enum:
    CHAIN = 256    # rows of columns multiplied at a time; shows in the last bits, so it is a constant
    # Weights that pass over all tiles of a task, each tile from L1, before the next ones do: they stay in L2.
    PANEL_BYTES = 256 << 10
    # Of a task: their partial sums, of all its pixels, take 1 MiB (float32). With half of it columns are filled more often:
    # a layer of 2048 outputs and stride 2 took 1.07 times as long.
    OUTPUTS = 2048
    # Multiply-adds worth a task: where two threads write runs of few pixels in turns, they wait for each other. 3x3 from 3 to
    # 32 channels, with a stride of 2, took 1.5 times as long.
    TERMS = 1 << 20
    # Most cache lines of a tile in a plane that are fetched ahead: where its rows lie further apart, most would not be read.
    FETCHED = 8
    # Channels from which on taps on padding are left out, where those are at least one of SPARE: shorter chains may take longer
    # than what is saved, and so may strips of fewer pixels.
    DEEP = 128
    SPARE = 5
    STRIP = 64

# Each tap by itself, see lattice.pxd.
cdef Py_ssize_t EACH[TAPS]
cdef Py_ssize_t ONES[TAPS]
cdef Py_ssize_t tap
for tap in range(TAPS):
    EACH[tap], ONES[tap] = tap, 1

# Neighbouring pixels of one row: pixel (d, h, w) of image n, and the count - 1 after it.
cdef struct Run:
    Py_ssize_t n, d, h, w, count


cdef Run run_at(const Columns *all, Py_ssize_t pixel, Py_ssize_t most) noexcept nogil:
    """The longest run from a pixel on: they are in the order [image][strip][d][h][w]."""
    cdef const Axis *axis = all.job.axis
    cdef Py_ssize_t rows = axis[0].out * axis[1].out, first = 0, last = axis[2].out, i
    cdef Run run
    run.n = pixel // (rows * last)
    pixel -= run.n * rows * last
    for i in range(all.cuts):
        if pixel < rows * (all.cut[i] - first):
            last = all.cut[i]
            break
        pixel -= rows * (all.cut[i] - first)
        first = all.cut[i]
    last -= first
    run.w = pixel % last
    run.count = min(most, last - run.w)
    run.w += first
    pixel //= last
    run.h = pixel % axis[1].out
    run.d = pixel // axis[1].out
    return run


cdef uint64_t taps_of(const Columns *all, Py_ssize_t pixel, Py_ssize_t count) noexcept nogil:
    """The taps with which some of `count` pixels read others than zeros, at least one."""
    cdef const Axis *axis = all.job.axis
    cdef uint64_t taps = 0, row
    cdef Py_ssize_t done = 0, d, h
    cdef Py_ssize_t first[3]
    cdef Py_ssize_t stop[3]
    cdef Run run
    while done < count:
        run = run_at(all, pixel + done, count - done)
        real_taps(&axis[0], run.d, run.d, first, stop)
        real_taps(&axis[1], run.h, run.h, first + 1, stop + 1)
        real_taps(&axis[2], run.w, run.w + run.count - 1, first + 2, stop + 2)
        row = ((<uint64_t>1 << (stop[2] - first[2])) - 1) << first[2]
        for d in range(first[0], stop[0]):
            for h in range(first[1], stop[1]):
                taps |= row << (d * axis[1].taps + h) * axis[2].taps
        done += run.count
    return taps if taps else 1


cdef bint is_needed(const Columns *all, Py_ssize_t pixel, Py_ssize_t count, Py_ssize_t term, int *flags) noexcept nogil:
    """Whether a tile has the chain from `term` on, and whether that is its FC_FIRST or FC_LAST one."""
    cdef const Job *job = &all.job
    cdef uint64_t taps
    cdef Py_ssize_t tap, stop = min(term + all.chain, all.terms)
    flags[0] = (FC_FIRST if term == 0 else 0) | (FC_LAST if stop == all.terms else 0)
    if not all.skips:
        return True
    taps = taps_of(all, pixel, count)
    tap = term // job.channels
    flags[0] = (FC_FIRST if term == tap * job.channels and not taps & ((<uint64_t>1 << tap) - 1) else 0)
    if stop >= (tap + 1) * job.channels and not taps >> tap >> 1:
        flags[0] |= FC_LAST
    return taps >> tap & 1


cdef void merge_axes(Axis *axis) noexcept:
    """Where every output, which reads at its own place, lands there too, whole maps are one row."""
    cdef Py_ssize_t i, pixels = 1
    for i in range(3):
        if axis[i].y_step != 1 or axis[i].y_size != axis[i].out:
            return
        pixels *= axis[i].out
    for i in range(3):
        axis[i].out = axis[i].size = axis[i].y_size = pixels if i == 2 else 1
        axis[i].inner_stop = axis[i].inner_start + axis[i].size


cdef const char *image(const Job *job, Py_ssize_t n, Py_ssize_t group, Py_ssize_t channel) noexcept nogil:
    return job.x + (n * job.x_n + (group * job.channels + channel) * job.x_c) * job.itemsize


cdef Py_ssize_t channel_of(const Columns *all, Py_ssize_t term) noexcept nogil:
    return term % all.job.channels if all.by_tap else term // all.job.taps


cdef void fill_tile(const Columns *all, Py_ssize_t group, Py_ssize_t pixel, Py_ssize_t count, Py_ssize_t term,
                    Py_ssize_t terms, char *to) noexcept nogil:
    """to[(c, tap)][NR] of `count` pixels, zeros after them; `terms` from `term` on."""
    cdef const Job *job = &all.job
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t done = 0, item = job.itemsize, kd, kh, src_d, src_h, zeros, tap, first, last
    cdef Py_ssize_t taps = 1 if all.by_tap else min(terms, job.taps)  # of each channel
    cdef Py_ssize_t begin = term // job.channels if all.by_tap else term % job.taps  # the first of them
    cdef const char *plane
    cdef const char *row
    cdef char *line
    cdef Run run
    while done < count:
        run = run_at(all, pixel + done, count - done)
        plane = image(job, run.n, group, channel_of(all, term))
        line = to + done * item
        tap = -begin  # the first of a row, counted from the first that is wanted
        done += run.count
        zeros = all.nr - count if done == count else 0
        for kd in range(axis[0].taps):
            src_d = source_at(&axis[0], run.d * axis[0].step + axis[0].offset[kd])
            for kh in range(axis[1].taps):
                src_h = source_at(&axis[1], run.h * axis[1].step + axis[1].offset[kh])
                row = NULL if src_d < 0 or src_h < 0 else plane + (src_d * axis[1].size + src_h) * axis[2].size * item
                first = max(0, -tap)
                last = min(axis[2].taps, taps - tap)
                if first < last:
                    copy_taps(&axis[2], item, line, all.nr, taps * all.nr, row, job.x_c, terms // taps,
                              axis[2].offset + first, last - first, run.w * axis[2].step, run.count, zeros)
                    line += (last - first) * all.nr * item
                tap += axis[2].taps


cdef void start_tile(const Columns *all, Py_ssize_t group, Py_ssize_t pixel, Py_ssize_t count, Py_ssize_t term,
                     Py_ssize_t terms, char *columns, fc_gemm_tile *tile) noexcept nogil:
    """fill_tile, but where the columns lie in x as they are, rows apart, the first panel reads them there and writes them."""
    cdef const Job *job = &all.job
    cdef Py_ssize_t at = pixel % job.x_c
    if all.own and count == all.nr <= job.x_c - at:
        tile.keep = columns
        tile.x = image(job, pixel // job.x_c, group, term) + at * job.itemsize
        tile.x_c = job.x_c
    else:
        fill_tile(all, group, pixel, count, term, terms, columns)


cdef Py_ssize_t first_read(const Columns *all, const Run *pixel, Py_ssize_t tap) noexcept nogil:
    """Where in its plane a tap of a pixel reads; -1: padding."""
    cdef const Axis *axis = all.job.axis
    cdef Py_ssize_t row = tap // axis[2].taps
    cdef Py_ssize_t d = source_at(&axis[0], pixel.d * axis[0].step + axis[0].offset[row // axis[1].taps])
    cdef Py_ssize_t h = source_at(&axis[1], pixel.h * axis[1].step + axis[1].offset[row % axis[1].taps])
    cdef Py_ssize_t w = source_at(&axis[2], pixel.w * axis[2].step + axis[2].offset[tap % axis[2].taps])
    return (d * axis[1].size + h) * axis[2].size + w if min(d, h, w) >= 0 else -1


cdef void look_ahead(const Columns *all, Py_ssize_t group, Py_ssize_t pixel, Py_ssize_t count, Py_ssize_t term,
                     fc_fetch *fetch) noexcept nogil:
    """What the first tap of `count` pixels reads in their last image, in the chain from `term` on, is needed soon."""
    cdef const Job *job = &all.job
    cdef Run run = run_at(all, pixel + count - 1, 1)
    cdef Py_ssize_t tap = term // job.channels if all.by_tap and term < all.terms else 0
    cdef Py_ssize_t last = first_read(all, &run, tap), first, n = run.n
    fetch.rows = fetch.lines = 0
    if term >= all.terms or last < 0:
        return
    if run.w >= count - 1:  # they are of one row
        run.w -= count - 1
    else:
        run = run_at(all, max(pixel, n * (all.pixels // job.batch)), 1)
    first = first_read(all, &run, tap)
    if first < 0 or first > last:
        first = last
    fetch.lines = (last - first) * job.itemsize // FC_CACHE_LINE + 1
    if fetch.lines > FETCHED:
        fetch.lines = 1
    fetch.at = image(job, n, group, channel_of(all, term)) + last * job.itemsize - (fetch.lines - 1) * FC_CACHE_LINE
    fetch.row = job.x_c
    fetch.rows = max(1, min(all.chain, all.terms - term) // (1 if all.by_tap else job.taps))


cdef void places(const Columns *all, Py_ssize_t pixel, Py_ssize_t count, Py_ssize_t *at) noexcept nogil:
    """Where the outputs of pixels land, from the first image's plane of an output."""
    cdef const Job *job = &all.job
    cdef Py_ssize_t done = 0, i, first, step = job.axis[2].y_step
    cdef Run run
    while done < count:
        run = run_at(all, pixel + done, count - done)
        first = run.n * job.y_n + output_at(job, run.d, run.h, run.w)
        for i in range(run.count):
            at[done + i] = first + i * step
        done += run.count


cdef void multiply_tile(const Columns *all, Py_ssize_t group, Py_ssize_t panel0, Py_ssize_t panel1, Py_ssize_t term,
                        const Py_ssize_t *at, Py_ssize_t count, char *partial, fc_gemm_tile *tile) noexcept nogil:
    """Panels [panel0, panel1), terms from `term` on, on one tile of `count` pixels that land at `at`."""
    cdef const Job *job = &all.job
    cdef Py_ssize_t start, size, width, stop, at_y
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes, output = group * job.outputs
    cdef int nv
    cdef bint apart = all.cuts > 0 or at[count - 1] - at[0] >= count
    tile.y_at = at if apart else NULL
    tile.fetch.rows = (tile.fetch.rows + panel1 - panel0 - 1) // (panel1 - panel0)
    while panel0 < panel1:  # the wider ones, then the others
        stop = min(panel1, all.wider) if panel0 < all.wider else panel1
        panel_bounds(job, panel0, &start, &size, &width)
        nv = 1 if count <= lanes or width > job.kernels.gemm_mr[2] else 2
        tile.panels = stop - panel0
        tile.pixels = <int>(nv * lanes if all.whole else min(nv * lanes, count))
        tile.a = packed_panel(job, group, start) + term * width * item
        tile.a_c = width
        tile.a_panel = width * all.terms
        tile.acc = partial + start * all.nr * item
        tile.bias_m = NULL if job.bias == NULL else job.bias + (output + start) * item
        at_y = (output + start) * job.y_c + (0 if apart else at[0])
        tile.y = job.y + at_y * item
        tile.residual = NULL if job.residual == NULL else job.residual + at_y * item
        job.kernels.gemm_tile[nv][width](tile)
        if tile.keep != NULL:
            tile.x = tile.keep
            tile.x_c = all.nr
            tile.keep = NULL
        tile.fetch.at = <const char *>tile.fetch.at + tile.panels * tile.fetch.rows * tile.fetch.row * item
        panel0 = stop


cdef void activate(const Columns *all, Py_ssize_t group, Py_ssize_t panel0, Py_ssize_t panel1, const Py_ssize_t *at,
                   Py_ssize_t pixels) noexcept nogil:
    """activate_rows of the finished outputs of a task, whose pixels landed at `at`."""
    cdef const Job *job = &all.job
    cdef Py_ssize_t first, last, size, width, i = 0, count
    if job.activation < 0:
        return
    panel_bounds(job, panel0, &first, &size, &width)
    panel_bounds(job, panel1 - 1, &last, &size, &width)
    while i < pixels:
        count = 1
        while i + count < pixels and at[i + count] == at[i] + count:
            count += 1
        activate_rows(job, job.y + ((group * job.outputs + first) * job.y_c + at[i]) * job.itemsize, last + size - first, 1,
                      count, count)
        i += count


cdef void multiply(const Columns *all, Py_ssize_t group, Py_ssize_t panel0, Py_ssize_t panel1, Py_ssize_t first,
                   Py_ssize_t pixels, char *workspace) noexcept nogil:
    """Panels [panel0, panel1) on `pixels` pixels from `first` on, whose places in y the workspace begins with."""
    cdef const Job *job = &all.job
    cdef fc_gemm_tile tile
    cdef Py_ssize_t nr = all.nr, panel, stop, term = 0, i, terms, start, size, width
    cdef const Py_ssize_t *at = <const Py_ssize_t *>workspace
    cdef char *columns
    cdef char *partial = workspace + all.places_bytes + all.columns_bytes
    panel_bounds(job, panel0, &start, &size, &width)
    partial -= start * nr * job.itemsize  # the sums of output 0
    tile.keep = NULL
    tile.y_m = job.y_c
    tile.bias_n = NULL
    tile.fetch.at = job.x
    tile.fetch.row = 0
    while term < all.terms:
        terms = min(all.chain, all.terms - term)
        if all.by_tap:
            terms = min(terms, job.channels - term % job.channels)
        elif job.taps > CHAIN:
            terms = min(terms, job.taps - term % job.taps)
        tile.channels = terms
        panel = panel0
        while panel < panel1:
            stop = min(panel1, panel + all.range_panels)
            i = 0
            while i < pixels:
                if not is_needed(all, first + i, min(nr, pixels - i), term, &tile.flags):
                    i += nr
                    continue
                tile.flags |= FC_RELU if job.relu else 0
                if all.stream and tile.flags & FC_LAST:
                    tile.flags |= FC_STREAM
                columns = workspace + all.places_bytes + (i // nr * all.tile_bytes if job.panels > all.range_panels else 0)
                tile.x = columns
                tile.x_c = nr
                tile.fetch.rows = tile.fetch.lines = 0
                if panel == panel0:
                    start_tile(all, group, first + i, min(nr, pixels - i), term, terms, columns, &tile)
                    if i + nr < pixels:
                        look_ahead(all, group, first + i + nr, min(nr, pixels - i - nr), term, &tile.fetch)
                    elif term + terms < all.terms:
                        look_ahead(all, group, first, min(nr, pixels), term + terms, &tile.fetch)
                    elif first + pixels < all.pixels:  # of the next task
                        look_ahead(all, group, first + pixels, min(nr, all.pixels - first - pixels), 0, &tile.fetch)
                multiply_tile(all, group, panel, stop, term, at + i, min(nr, pixels - i),
                              partial + i * all.outputs * job.itemsize, &tile)
                i += nr
            panel = stop
        term += terms


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Columns *all = <const Columns *>argument
    cdef const Job *job = &all.job
    cdef Py_ssize_t block = number % all.blocks, first = block * all.tiles // all.blocks * all.nr
    cdef Py_ssize_t pixels = min((block + 1) * all.tiles // all.blocks * all.nr, all.pixels) - first
    cdef Py_ssize_t group, panel0, panel1
    cdef Py_ssize_t *at = <Py_ssize_t *>workspace
    number //= all.blocks
    group = job.group0 + number % (job.group1 - job.group0)
    split_panels(job, number // (job.group1 - job.group0), &panel0, &panel1)
    places(all, first, pixels, at)
    multiply(all, group, panel0, panel1, first, pixels, workspace)
    activate(all, group, panel0, panel1, at, pixels)


cdef Py_ssize_t outputs_below(const Axis *axis, Py_ssize_t q) noexcept nogil:
    """Outputs whose first coordinate is less than q."""
    return min((max(q, 0) + axis.step - 1) // axis.step, axis.out)


cdef double real_share(const Axis *axis) noexcept nogil:
    """The share of the taps of all outputs that lie on pixels."""
    cdef Py_ssize_t k, real = 0
    if axis.source != NULL:  # padding that copies pixels
        return 1
    for k in range(axis.taps):
        real += (outputs_below(axis, axis.inner_stop - axis.offset[k])
                 - outputs_below(axis, axis.inner_start - axis.offset[k]))
    return <double>real / (axis.out * axis.taps)


cdef void set_strips(Columns *all) noexcept:
    """Whether the terms are [tap][channel], and where rows are cut."""
    cdef Job *job = &all.job
    cdef const Axis *axis = job.axis
    cdef Py_ssize_t o, before = 0, rows = axis[0].out * axis[1].out
    cdef Py_ssize_t first[2]
    cdef Py_ssize_t stop[2]
    all.by_tap = all.skips = False
    all.cuts = 0
    if job.channels < DEEP or job.taps == 1 or job.taps > TAPS:
        return
    if SPARE * (1 - real_share(&axis[0]) * real_share(&axis[1]) * real_share(&axis[2])) < 1:
        return
    for o in range(axis[2].out):
        real_taps(&axis[2], o, o, first, stop)
        if o and (first[0] != first[1] or stop[0] != stop[1]):
            if all.cuts == CUTS or rows * (o - before) < STRIP:
                all.cuts = 0
                return
            all.cut[all.cuts] = before = o
            all.cuts += 1
        first[1], stop[1] = first[0], stop[0]
    all.by_tap = True
    job.phase_tap = EACH
    job.phase_taps = ONES


cdef void start_columns(Columns *all) noexcept:
    """Fill in what follows from the job."""
    cdef Job *job = &all.job
    cdef Py_ssize_t parts
    all.own = own_pixels(job.axis)
    if all.own:
        merge_axes(job.axis)
    set_strips(all)
    all.terms = job.channels * job.taps
    if all.by_tap:
        parts = (job.channels + CHAIN - 1) // CHAIN
        all.chain = (job.channels + parts - 1) // parts
    elif job.taps <= CHAIN:
        all.chain = min(CHAIN // job.taps, job.channels) * job.taps
    else:  # equal parts of the taps
        parts = (job.taps + CHAIN - 1) // CHAIN
        all.chain = (job.taps + parts - 1) // parts
    all.nr = FC_NV_MAX * job.kernels.lanes
    all.pixels = job.batch * job.axis[0].out * job.axis[1].out * job.axis[2].out
    all.tiles = (all.pixels + all.nr - 1) // all.nr
    # a cache line more than the terms take: no power-of-two stride that maps all tiles to one set of the cache
    all.tile_bytes = (all.chain + 1) * all.nr * job.itemsize
    job.multiple = 0
    job.panel = job.kernels.gemm_mr[1 if all.pixels <= job.kernels.lanes else FC_NV_MAX]
    job.panels = (job.outputs + job.panel - 1) // job.panel
    job.task_panels = max(1, OUTPUTS // job.panel)
    all.outputs = min(job.outputs, job.task_panels * job.panel)
    all.wider = job.outputs % job.panels
    all.range_panels = max(1, PANEL_BYTES // (all.chain * job.panel * job.itemsize))
    all.whole = all.stream = False


cdef Py_ssize_t partial_bytes(const Columns *all) noexcept:
    """Of the sums of a tile that are not complete."""
    return all.nr * all.outputs * all.job.itemsize if all.chain < all.terms else 0


cdef Py_ssize_t set_tiles(Columns *all, Py_ssize_t tiles) noexcept:
    """The workspace of a task of as many tiles."""
    all.places_bytes = (tiles * all.nr * sizeof(Py_ssize_t) + 63) // 64 * 64
    all.columns_bytes = (1 if all.job.panels <= all.range_panels else tiles) * all.tile_bytes
    return all.places_bytes + all.columns_bytes + tiles * partial_bytes(all)


def run(Lattice lattice, x, w, y, Py_ssize_t groups, bint transposed, bias, residual, int activation,
        int threads, max_workspace):
    """y = act(correlation of x with w over the lattice + bias + residual); see correlate.start_job for the shapes.

    Returns the bytes of workspace a thread needs. With threads=0 that is all it does.
    """
    cdef Columns all
    cdef Job *job = &all.job
    cdef Py_ssize_t tiles, workspace
    cdef size_t budget = band_budget(max_workspace)
    start_job(job, lattice, x, w, y, groups, transposed, bias, residual, activation)
    start_columns(&all)
    tiles = min(TERMS // (all.terms * all.outputs), all.pixels // (2 * max(1, threads)))  # each thread has some of the tasks
    tiles = min(max(<Py_ssize_t>PIXELS, tiles) // all.nr, <Py_ssize_t>budget // (all.tile_bytes + partial_bytes(&all)))
    tiles = max(1, min(tiles, all.tiles))
    all.blocks = (all.tiles + tiles - 1) // tiles
    if all.blocks > threads > 0:  # as many for each thread
        all.blocks = min(all.tiles, (all.blocks + threads - 1) // threads * threads)
    workspace = set_tiles(&all, tiles)
    # past the caches where a row of a tile is whole lines, and all tiles of a plane begin with one
    all.stream = (all.nr * job.itemsize % FC_CACHE_LINE == 0 and job.activation < 0 and job.axis[2].out == job.y_c
                  and streams(job.y, job.x, job.batch * job.y_n * job.itemsize, job.y_c * job.itemsize))
    all.skips = all.by_tap and threads > 0 and has_zero_taps(job, w, transposed)
    if threads:
        run_packed(job, w, task, all.blocks, workspace, threads)
    return workspace
