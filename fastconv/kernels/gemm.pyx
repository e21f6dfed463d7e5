# SPDX-License-Identifier: BSD-3-Clause
"""Matrix product c[M][N] = a[M][K] @ b[K][N] + bias[N] on the packed micro-kernel.

A task owns one block of c. For each CHAIN rows of K it packs its part of a into panels and of b into aligned rows, and adds
their product to the partial sums in its workspace; CHAIN is a constant, so the bits depend on the problem and the ISA alone.
Few rows times a transposed b (a linear layer on a small batch) are dot products instead: b is read once and nothing is
packed. With `products` a and b are split for tile registers first, see conv_split. Weights keep what b was packed to, in
panels as wide as a tile.
"""

cimport numpy as cnp
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from fastconv.kernels.correlate cimport Weights, count_rerun
from fastconv.kernels.fastconv cimport (
    FC_DOT_B_MAX,
    FC_FIRST,
    FC_LAST,
    FC_MR_MAX,
    FC_NV_MAX,
    fc_dot_tile,
    fc_kernels,
    fc_gemm_tile,
    fc_split_kernels,
    fc_split_tile,
)
from fastconv.kernels.isa cimport active_kernels, active_split
from fastconv.kernels.lattice cimport lines
from fastconv.kernels.memory cimport address, block_alloc, block_free
from fastconv.kernels.split cimport (
    NOTHING,
    SIDE,
    TERMS,
    Operand,
    lost,
    parts_of,
    split_a,
    split_b,
    whole,
    whole_terms,
)
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

cdef enum:
    CHAIN = 256        # rows of K summed in registers
    BLOCK = 192        # rows and columns of a block of c: its packed b is 192 KiB in float
    DOT_ROWS = 4       # up to this many rows are dot products
    DOT_COLUMNS = 64   # columns of a task of dot products
    SPLIT_LIMIT = 48 << 20  # bytes of split matrices at a time; more terms go through in rounds
    SLAB = 4096        # rows and columns at a time: three parts of CHAIN terms of both are 12 MiB

cdef struct Job:
    const fc_kernels *kernels
    const char *a
    const char *b
    const char *bias
    char *c
    Py_ssize_t m, n, k, a_row, a_col, b_row, b_col, itemsize
    Py_ssize_t m_block, m_blocks, n_block, n_blocks, pitch
    char *kept       # b of Weights as panels[k][panel], or in parts like `b_parts`; or NULL
    Py_ssize_t panel  # columns of a panel
    # Split products of terms k0..: the parts of blocks of a, and of panels of b, and the least magnitudes in both: of each
    # block, and of each CHAIN terms of a panel, `chains` of them. Those of `kept` begin with the first term.
    const fc_split_kernels *split
    int products, parts, failed
    Py_ssize_t c_row, k0, terms, chains
    char *a_parts
    char *b_parts
    uint32_t *a_least
    uint32_t *b_least


cdef void pack_a(const Job *job, Py_ssize_t m, Py_ssize_t rows, Py_ssize_t k, Py_ssize_t count, char *to) noexcept nogil:
    """to[k][rows] of rows m.., terms k.. of a."""
    cdef const char *a = job.a + (m * job.a_row + k * job.a_col) * job.itemsize
    if job.a_col == 1:
        job.kernels.transpose(to, rows, a, job.a_row, rows, count, rows)
    else:
        job.kernels.copy_rows(to, rows, a, job.a_col, count, 0, rows, 0, job.a_row)


cdef void pack_b(const Job *job, Py_ssize_t n, Py_ssize_t columns, Py_ssize_t k, Py_ssize_t count, char *to) noexcept nogil:
    """to[k][pitch] of terms k.., columns n.. of b; zero up to a whole vector, for tiles multiply all its lanes."""
    cdef const char *b = job.b + (n * job.b_col + k * job.b_row) * job.itemsize
    cdef Py_ssize_t lanes = job.kernels.lanes
    cdef Py_ssize_t padded = (columns + lanes - 1) // lanes * lanes
    if job.b_col == 1:
        job.kernels.copy_rows(to, job.pitch, b, job.b_row, count, 0, columns, padded - columns, 1)
    else:
        job.kernels.transpose(to, job.pitch, b, job.b_col, columns, count, padded)


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes
    cdef Py_ssize_t m0 = number // job.n_blocks * job.m_block, n0 = number % job.n_blocks * job.n_block
    cdef Py_ssize_t rows = min(job.m_block, job.m - m0), columns = min(job.n_block, job.n - n0)
    cdef Py_ssize_t k = 0, i, first, mr, column, panels
    cdef fc_gemm_tile tile
    cdef int nv
    cdef char *packed_b = workspace + CHAIN * FC_MR_MAX * item
    cdef char *partial
    panels = (rows + job.kernels.gemm_mr[FC_NV_MAX] - 1) // job.kernels.gemm_mr[FC_NV_MAX]
    tile.keep = NULL
    tile.bias_m = NULL
    tile.residual = NULL
    tile.x_c = job.pitch if job.kept == NULL else job.panel
    tile.y_m = job.n
    tile.y_at = NULL
    tile.panels = 1
    tile.fetch.rows = tile.fetch.lines = 0
    while k < job.k:
        tile.channels = min(<Py_ssize_t>CHAIN, job.k - k)
        tile.flags = (FC_FIRST if k == 0 else 0) | (FC_LAST if k + tile.channels == job.k else 0)
        if job.kept == NULL:
            pack_b(job, n0, columns, k, tile.channels, packed_b)
        partial = packed_b + CHAIN * job.pitch * item
        for i in range(panels):
            first = i * rows // panels
            mr = (i + 1) * rows // panels - first
            pack_a(job, m0 + first, mr, k, tile.channels, workspace)
            tile.a = workspace
            tile.a_c = mr
            column = 0
            while column < columns:
                nv = 1 if columns - column <= lanes else FC_NV_MAX
                tile.pixels = <int>min(nv * lanes, columns - column)
                if job.kept == NULL:
                    tile.x = packed_b + column * item
                else:  # the first column of a panel
                    tile.x = job.kept + ((n0 + column) * job.k + k * job.panel) * item
                tile.y = job.c + ((m0 + first) * job.n + n0 + column) * item
                tile.bias_n = NULL if job.bias == NULL else job.bias + (n0 + column) * item
                tile.acc = partial
                job.kernels.gemm_tile[nv][mr](&tile)
                partial += mr * nv * lanes * item
                column += tile.pixels
        k += tile.channels


cdef Py_ssize_t unit(const Job *job, Py_ssize_t block, Py_ssize_t terms) noexcept nogil:
    """Bytes of the parts of a block of a, or of a panel of b."""
    return 2 * job.parts * whole(block) * whole_terms(terms)


cdef Py_ssize_t panels_of(const Job *job) noexcept nogil:
    return (job.n + job.panel - 1) // job.panel


cdef Operand operand_of(const Job *job, Py_ssize_t row, Py_ssize_t col) noexcept nogil:
    cdef Operand operand
    operand.kernels = job.kernels
    operand.split = job.split
    operand.parts = job.parts
    operand.row = row
    operand.col = col
    return operand


cdef void split_panel(const Job *job, Py_ssize_t panel, Py_ssize_t k, Py_ssize_t terms, char *scratch, char *to,
                      uint32_t *least) noexcept nogil:
    """The parts of one panel of b, and the least magnitude of each CHAIN terms."""
    cdef Operand operand = operand_of(job, job.b_col, job.b_row)
    cdef Py_ssize_t columns = min(job.panel, job.n - panel * job.panel), count
    cdef const char *b = job.b + 4 * (panel * job.panel * job.b_col + k * job.b_row)
    while terms > 0:
        count = min(<Py_ssize_t>CHAIN, terms)
        least[0] = split_b(&operand, b, columns, count, scratch, to)
        to += unit(job, columns, count)
        b += 4 * count * job.b_row
        least += 1
        terms -= CHAIN


cdef uint32_t *kept_least(const Job *job) noexcept nogil:
    """The least magnitudes in the panels of `kept`, which they follow."""
    return <uint32_t *>(job.kept + panels_of(job) * unit(job, job.panel, job.k))


cdef void keep_panel(void *argument, Py_ssize_t panel, char *workspace) noexcept nogil:
    """One panel of b for `kept`; with tile registers its least magnitudes follow after all panels."""
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t start = panel * job.panel, item = job.itemsize
    if job.products:
        split_panel(job, panel, 0, job.k, workspace, job.kept + panel * unit(job, job.panel, job.k),
                    kept_least(job) + panel * job.chains)
        return
    job.kernels.transpose(job.kept + start * job.k * item, job.panel, job.b + start * job.b_col * item, job.b_col,
                          min(job.panel, job.n - start), job.k, job.panel)


cdef object keep_b(Job *job, Weights w, int threads):
    """Set job.kept to the packed form of w; who holds the result keeps it alive."""
    cdef Py_ssize_t panels = panels_of(job), size = panels * job.panel * job.k * job.itemsize
    job.chains = (job.k + CHAIN - 1) // CHAIN
    if job.products:
        size = panels * (unit(job, job.panel, job.k) + 4 * job.chains)
    key = (<size_t>job.kernels, <size_t>keep_panel, job.products)
    form = w.form(key, size, &job.kept, keep_panel, job, panels, 4 * TERMS * job.panel, threads)
    job.b_least = kept_least(job)
    return form


cdef void split_operand(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """The parts of one block of rows of a, or after those of one panel of columns of b, for the terms of this round."""
    cdef const Job *job = <const Job *>argument
    cdef Operand operand = operand_of(job, job.a_row, job.a_col)
    cdef Py_ssize_t first = number * job.m_block
    if number < job.m_blocks:
        job.a_least[number] = split_a(
            &operand, job.a + 4 * (first * job.a_row + job.k0 * job.a_col), min(job.m_block, job.m - first), job.terms,
            workspace, job.a_parts + number * unit(job, job.m_block, job.terms))
        return
    number -= job.m_blocks
    split_panel(job, number, job.k0, job.terms, workspace, job.b_parts + number * unit(job, job.panel, job.terms),
                job.b_least + number * job.chains)


cdef void multiply_split(const Job *job, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t columns, const char *a,
                         char *acc) noexcept nogil:
    """acc[row][whole(columns)] (+)= a b for columns n.. and the terms of this round, as split_operand leaves them."""
    cdef fc_split_tile tile
    cdef Py_ssize_t zero = 0, m, column = 0, pitch = whole(columns), width, panel
    cdef const char *b = job.b_parts
    cdef Py_ssize_t size = unit(job, job.panel, job.terms), first = 0
    if job.kept != NULL:
        b = job.kept
        size = unit(job, job.panel, job.k)
        first = job.k0
    tile.off = &zero
    tile.taps = 1
    tile.fetch = tile.fetch_end = NULL
    tile.fetch_step = 0
    tile.channels = whole_terms(job.terms) // TERMS
    tile.a_part = whole(rows) * TERMS
    tile.a_tile = SIDE * TERMS
    tile.a_row = TERMS
    tile.a_c = tile.a_part * job.parts
    tile.b_tile = 2 * SIDE
    tile.acc_row = pitch
    tile.flags = FC_FIRST if job.k0 == 0 else 0
    while column < columns:
        panel = (n + column) // job.panel
        width = whole(min(job.panel, columns - column))
        tile.b_row = 2 * width
        tile.b_part = SIDE * tile.b_row
        tile.b_k = tile.b_part * job.parts
        tile.b = b + panel * size + unit(job, width, first)
        m = 0
        while m < rows:
            tile.a = a + 2 * m * TERMS
            tile.acc = acc + 4 * (m * pitch + column)
            job.split.tile[job.products][1 if rows - m <= SIDE else 2][width // SIDE](&tile)
            m += 2 * SIDE
        column += job.panel


cdef uint32_t least_of(const Job *job, Py_ssize_t n, Py_ssize_t columns) noexcept nogil:
    """The least magnitude in the terms of this round of columns n.. of b."""
    cdef Py_ssize_t panel, i, first = 0 if job.kept == NULL else job.k0 // CHAIN
    cdef uint32_t least = NOTHING
    for panel in range(n // job.panel, (n + columns + job.panel - 1) // job.panel):
        for i in range((job.terms + CHAIN - 1) // CHAIN):
            least = min(least, job.b_least[panel * job.chains + first + i])
    return least


cdef void split_task(void *argument, Py_ssize_t number, char *acc) noexcept nogil:
    """One block of c, for the terms of this round; c holds the sums of the rounds before."""
    cdef Job *job = <Job *>argument
    cdef Py_ssize_t m = number // job.n_blocks, n = number % job.n_blocks * job.n_block, i
    cdef Py_ssize_t rows = min(job.m_block, job.m - m * job.m_block), columns = min(job.n_block, job.n - n)
    cdef const char *a = job.a_parts + m * unit(job, job.m_block, job.terms)
    cdef char *c = job.c + (m * job.m_block * job.c_row + n) * 4
    if lost(job.parts, job.a_least[m], least_of(job, n, columns)):
        job.failed = True
    if job.failed:
        return  # the other kernels will do it all again
    if job.k0:
        job.kernels.copy_rows(acc, whole(columns), c, job.c_row, rows, 0, columns, 0, 1)
    job.split.begin()
    multiply_split(job, rows, n, columns, a, acc)
    job.split.end()
    for i in range(rows):
        memcpy(c, acc + i * whole(columns) * 4, columns * 4)
        if not job.kernels.finite(c, columns):
            job.failed = True
        if job.bias != NULL and job.k0 + job.terms == job.k:
            job.kernels.add(c, job.bias + n * 4, columns)
        c += job.c_row * 4


cdef void set_gemm_blocks(Job *job, int threads) noexcept:
    """Cut c into blocks, two for each thread where there are not more."""
    cdef Py_ssize_t wanted
    job.m_block = min(job.m, <Py_ssize_t>BLOCK)
    job.m_blocks = (job.m + job.m_block - 1) // job.m_block
    wanted = max(1, 2 * threads // job.m_blocks)
    job.n_block = min(<Py_ssize_t>BLOCK, (job.n + wanted - 1) // wanted)
    job.n_block = min(job.n, (job.n_block + job.panel - 1) // job.panel * job.panel)
    job.n_blocks = (job.n + job.n_block - 1) // job.n_block


cdef int run_split(const Job *whole_job, int threads) except -1:
    """c on tile registers, in slabs of at most SLAB rows and columns. 1 where the other kernels must do it again."""
    cdef Job job
    cdef Py_ssize_t m, n
    for m in range((whole_job.m + SLAB - 1) // SLAB):
        for n in range((whole_job.n + SLAB - 1) // SLAB):
            job = whole_job[0]
            job.a += m * SLAB * job.a_row * 4
            job.b += n * SLAB * job.b_col * 4
            job.c += (m * SLAB * job.c_row + n * SLAB) * 4
            if job.bias != NULL:
                job.bias += n * SLAB * 4
            if job.kept != NULL:
                job.kept += n * SLAB // job.panel * unit(&job, job.panel, job.k)
                job.b_least += n * SLAB // job.panel * job.chains
            job.m = min(<Py_ssize_t>SLAB, job.m - m * SLAB)
            job.n = min(<Py_ssize_t>SLAB, job.n - n * SLAB)
            set_gemm_blocks(&job, threads)
            run_slab(&job, threads)
            if job.failed:
                return 1
    return 0


cdef int run_slab(Job *job, int threads) except -1:
    """One slab: a and b are split once, as many terms at a time as SPLIT_LIMIT allows."""
    # rounds must not depend on the blocks, and so on the threads: both guards look at one round at a time
    cdef Py_ssize_t most = max(1, SPLIT_LIMIT // (2 * job.parts * (job.m + job.n) * CHAIN)) * CHAIN
    cdef Py_ssize_t panels = panels_of(job) if job.kept == NULL else 0, size
    most = min(most, whole_terms(job.k))
    if job.kept == NULL:
        job.chains = (most + CHAIN - 1) // CHAIN
    size = job.m_blocks * (unit(job, job.m_block, most) + 4) + panels * (unit(job, job.panel, most) + 4 * job.chains)
    job.a_parts = <char *>block_alloc(size)
    if job.a_parts == NULL:
        raise MemoryError(f"fastconv: no memory for {size} bytes of split matrices")
    job.b_parts = job.a_parts + job.m_blocks * unit(job, job.m_block, most)
    job.a_least = <uint32_t *>(job.b_parts + panels * unit(job, job.panel, most))
    if job.kept == NULL:
        job.b_least = job.a_least + job.m_blocks
    try:
        job.k0 = 0
        while job.k0 < job.k:
            job.terms = min(most, job.k - job.k0)
            run_tasks(split_operand, job, job.m_blocks + panels, 4 * TERMS * max(job.m_block, job.panel), threads)
            run_tasks(split_task, job, job.m_blocks * job.n_blocks, 4 * whole(job.m_block) * whole(job.n_block), threads)
            job.k0 += job.terms
    finally:
        block_free(job.a_parts)
    return 0


cdef void dot_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t item = job.itemsize, n = number * DOT_COLUMNS, stop = min(job.n, (number + 1) * DOT_COLUMNS)
    cdef Py_ssize_t m, i
    cdef fc_dot_tile tile
    cdef int mr
    tile.rows = 1
    tile.cols = job.k
    tile.acc_row = job.n
    tile.a_row = 0
    tile.b_row = 0
    while n < stop:
        mr = <int>min(<Py_ssize_t>FC_DOT_B_MAX, stop - n)
        for i in range(mr):
            tile.b[i] = job.b + (n + i) * job.b_col * item
        for m in range(job.m):
            tile.a[0] = job.a + m * job.a_row * item
            tile.acc = job.c + (m * job.n + n) * item
            if job.bias == NULL:
                memset(tile.acc, 0, mr * item)
            else:
                memcpy(tile.acc, job.bias + n * item, mr * item)
            job.kernels.dot_tile[1][mr](&tile)
        n += mr


cdef void fill_task(void *argument, Py_ssize_t row, char *workspace) noexcept nogil:
    """K = 0: c is the bias."""
    cdef const Job *job = <const Job *>argument
    cdef char *c = job.c + row * job.n * job.itemsize
    if job.bias == NULL:
        memset(c, 0, job.n * job.itemsize)
    else:
        memcpy(c, job.bias, job.n * job.itemsize)


def multiply(cnp.ndarray a, bint a_transposed, b, bint b_transposed, cnp.ndarray bias, cnp.ndarray c,
             int threads, int products=0):
    """c = a @ b + bias for contiguous matrices; a_transposed: a is stored [K][M], b_transposed: b is stored [N][K].

    Weights, stored [N][K] whatever their axes, keep what they were packed to.

    With `products`, of the bfloat16 parts of a and b on tile registers, and again without where those are not exact enough.
    """
    cdef Job job
    job.itemsize = cnp.PyArray_ITEMSIZE(c)
    job.kernels = active_kernels(job.itemsize)
    job.m, job.n = cnp.PyArray_DIM(c, 0), cnp.PyArray_DIM(c, 1)
    job.k = cnp.PyArray_DIM(a, 0 if a_transposed else 1)
    job.a_row = 1 if a_transposed else job.k
    job.a_col = job.m if a_transposed else 1
    job.b_row = 1 if b_transposed else job.n
    job.b_col = job.k if b_transposed else 1
    job.a = <const char *>cnp.PyArray_DATA(a)
    job.b = address(b.array if isinstance(b, Weights) else b)
    job.kept = NULL
    job.c = <char *>cnp.PyArray_DATA(c)
    job.bias = NULL
    if bias is not None:
        job.bias = <const char *>cnp.PyArray_DATA(bias)
    job.split = active_split()
    job.products, job.parts, job.failed = products, parts_of(products), False
    if job.k == 0:
        run_tasks(fill_task, &job, job.m, 0, 1)
        return
    if not products and job.m <= DOT_ROWS and b_transposed and not a_transposed:
        run_tasks(dot_task, &job, (job.n + DOT_COLUMNS - 1) // DOT_COLUMNS, 0, threads)
        return
    job.panel = 2 * SIDE if products else FC_NV_MAX * job.kernels.lanes
    if isinstance(b, Weights):
        _form = keep_b(&job, b, threads)  # alive until all is done
    if products:
        job.c_row = job.n
        if run_split(&job, threads):
            count_rerun()
            multiply(a, a_transposed, b, b_transposed, bias, c, threads)
        return
    set_gemm_blocks(&job, threads)
    job.pitch = lines(job.n_block * job.itemsize) // job.itemsize
    run_tasks(task, &job, job.m_blocks * job.n_blocks,
              (CHAIN * (FC_MR_MAX + job.pitch) + job.m_block * (job.pitch + job.kernels.lanes)) * job.itemsize,
              threads)


def workspace(int itemsize, int products=0) -> int:
    """Most bytes of workspace a thread needs, for any product."""
    if products:
        return 4 * BLOCK * BLOCK
    cdef Py_ssize_t lanes = active_kernels(itemsize).lanes
    cdef Py_ssize_t pitch = BLOCK + 128 // itemsize
    return (CHAIN * (FC_MR_MAX + pitch) + BLOCK * (pitch + lanes)) * itemsize
