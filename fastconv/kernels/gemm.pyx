# SPDX-License-Identifier: BSD-3-Clause
"""Matrix product c[M][N] = a[M][K] @ b[K][N] + bias[N] on the packed micro-kernel.

A task owns one block of c. For each CHAIN rows of K it packs its part of a into panels and of b into aligned rows, and adds
their product to c; CHAIN is a constant, so the bits depend on the problem and the ISA alone. Few rows times a transposed b
(a linear layer on a small batch) are dot products instead: b is read once and nothing is packed. With `products` a and b are
split for tile registers first, see conv_split.
"""

cimport numpy as cnp
from libc.stdint cimport uint32_t
from libc.string cimport memset

from fastconv.kernels.correlate cimport count_rerun

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
from fastconv.kernels.memory cimport block_alloc, block_free
from fastconv.kernels.split cimport SIDE, TERMS, Operand, lost, parts_of, split_a, split_b, steps_in_l1, whole
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
    # Split products: the parts of terms k0.. of all blocks of a, then of b, and the least magnitude in each
    const fc_split_kernels *split
    int products, parts, failed
    Py_ssize_t c_row, k0, terms
    char *packed
    uint32_t *least


cdef void pack_a(const Job *job, Py_ssize_t m, Py_ssize_t rows, Py_ssize_t k, Py_ssize_t count, char *to) noexcept nogil:
    """to[k][rows] of rows m.., terms k.. of a."""
    cdef Py_ssize_t i, item = job.itemsize
    cdef const char *a = job.a + (m * job.a_row + k * job.a_col) * item
    if job.a_col == 1:
        job.kernels.transpose(to, rows, a, job.a_row, rows, count, rows)
        return
    for i in range(count):
        job.kernels.copy_strided(to + i * rows * item, a + i * job.a_col * item, rows, job.a_row)


cdef void pack_b(const Job *job, Py_ssize_t n, Py_ssize_t columns, Py_ssize_t k, Py_ssize_t count, char *to) noexcept nogil:
    """to[k][pitch] of terms k.., columns n.. of b."""
    cdef Py_ssize_t i, item = job.itemsize
    cdef const char *b = job.b + (n * job.b_col + k * job.b_row) * item
    if job.b_col == 1:
        for i in range(count):
            job.kernels.copy_strided(to + i * job.pitch * item, b + i * job.b_row * item, columns, 1)
        return
    job.kernels.transpose(to, job.pitch, b, job.b_col, columns, count, columns)


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t item = job.itemsize, lanes = job.kernels.lanes
    cdef Py_ssize_t m0 = number // job.n_blocks * job.m_block, n0 = number % job.n_blocks * job.n_block
    cdef Py_ssize_t rows = min(job.m_block, job.m - m0), columns = min(job.n_block, job.n - n0)
    cdef Py_ssize_t k = 0, i, first, mr, column, panels
    cdef fc_gemm_tile tile
    cdef int nv
    cdef char *packed_b = workspace + CHAIN * FC_MR_MAX * item
    panels = (rows + job.kernels.gemm_mr[FC_NV_MAX] - 1) // job.kernels.gemm_mr[FC_NV_MAX]
    tile.bias_m = NULL
    tile.residual = NULL
    tile.x_c = job.pitch
    tile.y_m = job.n
    tile.y_px = 1
    tile.left = tile.cols = job.n
    tile.y_gap = 0
    while k < job.k:
        tile.channels = min(<Py_ssize_t>CHAIN, job.k - k)
        tile.flags = (FC_FIRST if k == 0 else 0) | (FC_LAST if k + tile.channels == job.k else 0)
        pack_b(job, n0, columns, k, tile.channels, packed_b)
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
                tile.x = packed_b + column * item
                tile.y = job.c + ((m0 + first) * job.n + n0 + column) * item
                tile.bias_n = NULL if job.bias == NULL else job.bias + (n0 + column) * item
                job.kernels.gemm_tile[nv][mr](&tile)
                column += tile.pixels
        k += tile.channels


cdef Py_ssize_t unit(const Job *job, Py_ssize_t block) noexcept nogil:
    """Bytes of the parts of a block of a or b, for the terms of one round."""
    return 2 * job.parts * whole(block) * ((job.terms + TERMS - 1) // TERMS * TERMS)


cdef void split_block(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """The parts of one block of rows of a, or after those of columns of b, for the terms of this round."""
    cdef const Job *job = <const Job *>argument
    cdef Operand operand
    cdef Py_ssize_t first
    operand.kernels = job.kernels
    operand.split = job.split
    operand.parts = job.parts
    if number < job.m_blocks:
        operand.row = job.a_row
        operand.col = job.a_col
        first = number * job.m_block
        job.least[number] = split_a(
            &operand, job.a + 4 * (first * job.a_row + job.k0 * job.a_col), min(job.m_block, job.m - first), job.terms,
            workspace, job.packed + number * unit(job, job.m_block))
        return
    operand.row = job.b_col
    operand.col = job.b_row
    first = (number - job.m_blocks) * job.n_block
    job.least[number] = split_b(
        &operand, job.b + 4 * (first * job.b_col + job.k0 * job.b_row), min(job.n_block, job.n - first), job.terms,
        workspace, job.packed + job.m_blocks * unit(job, job.m_block) + (number - job.m_blocks) * unit(job, job.n_block))


cdef void multiply_split(const Job *job, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t terms, bint first, const char *a,
                         const char *b, char *acc) noexcept nogil:
    """acc[row][whole(columns)] (+)= a b, as split_block leaves them."""
    cdef fc_split_tile tile
    cdef Py_ssize_t zero = 0, m, n = 0, pitch = whole(columns)
    cdef int nb
    tile.off = &zero
    tile.taps = 1
    tile.channels = (terms + TERMS - 1) // TERMS
    tile.a_part = whole(rows) * TERMS
    tile.a_tile = SIDE * TERMS
    tile.a_row = TERMS
    tile.a_c = tile.a_part * job.parts
    tile.b_row = 2 * pitch
    tile.b_part = SIDE * tile.b_row
    tile.b_tile = 2 * SIDE
    tile.b_k = tile.b_part * job.parts
    tile.acc_row = pitch
    tile.flags = FC_FIRST if first else 0
    while n < columns:
        nb = 1 if columns - n <= SIDE else 2
        tile.b = b + 4 * n
        m = 0
        while m < rows:
            tile.a = a + 2 * m * TERMS
            tile.acc = acc + 4 * (m * pitch + n)
            job.split.tile[job.products][1 if rows - m <= SIDE else 2][nb](&tile)
            m += 2 * SIDE
        n += 2 * SIDE


cdef void split_task(void *argument, Py_ssize_t number, char *acc) noexcept nogil:
    """One block of c, for the terms of this round; c holds the sums of the rounds before."""
    cdef Job *job = <Job *>argument
    cdef Py_ssize_t m = number // job.n_blocks, n = number % job.n_blocks, k = 0, count, i
    cdef Py_ssize_t rows = min(job.m_block, job.m - m * job.m_block), columns = min(job.n_block, job.n - n * job.n_block)
    cdef const char *a = job.packed + m * unit(job, job.m_block)
    cdef const char *b = job.packed + job.m_blocks * unit(job, job.m_block) + n * unit(job, job.n_block)
    cdef char *c = job.c + (m * job.m_block * job.c_row + n * job.n_block) * 4
    if lost(job.parts, job.least[m], job.least[job.m_blocks + n]):
        job.failed = True
    if job.failed:
        return  # the other kernels will do it all again
    if job.k0:
        for i in range(rows):
            job.kernels.copy_strided(acc + i * whole(columns) * 4, c + i * job.c_row * 4, columns, 1)
    job.split.begin()
    while k < job.terms:
        count = min(steps_in_l1(job.parts, True) * TERMS, job.terms - k)
        multiply_split(job, rows, columns, count, job.k0 == k == 0, a, b, acc)
        a += 2 * job.parts * whole(rows) * count
        b += 2 * job.parts * whole(columns) * count
        k += count
    job.split.end()
    for i in range(rows):
        job.kernels.copy_strided(c, acc + i * whole(columns) * 4, columns, 1)
        if not job.kernels.finite(c, columns):
            job.failed = True
        if job.bias != NULL and job.k0 + job.terms == job.k:
            job.kernels.add(c, job.bias + n * job.n_block * 4, columns)
        c += job.c_row * 4


cdef void set_blocks(Job *job, int threads) noexcept:
    """Cut c into blocks, two for each thread where there are not more."""
    cdef Py_ssize_t wanted
    job.m_block = min(job.m, <Py_ssize_t>BLOCK)
    job.m_blocks = (job.m + job.m_block - 1) // job.m_block
    wanted = max(1, 2 * threads // job.m_blocks)
    job.n_block = max(FC_NV_MAX * job.kernels.lanes, min(<Py_ssize_t>BLOCK, (job.n + wanted - 1) // wanted))
    job.n_block = min(job.n, job.n_block)
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
            job.m = min(<Py_ssize_t>SLAB, job.m - m * SLAB)
            job.n = min(<Py_ssize_t>SLAB, job.n - n * SLAB)
            set_blocks(&job, threads)
            run_slab(&job, threads)
            if job.failed:
                return 1
    return 0


cdef int run_slab(Job *job, int threads) except -1:
    """One slab: a and b are split once, as many terms at a time as SPLIT_LIMIT allows."""
    cdef Py_ssize_t each = 2 * job.parts * (job.m_blocks * whole(job.m_block) + job.n_blocks * whole(job.n_block))
    # rounds must not depend on the blocks, and so on the threads: both guards look at one round at a time
    cdef Py_ssize_t most = max(1, SPLIT_LIMIT // (2 * job.parts * (job.m + job.n) * CHAIN)) * CHAIN
    cdef Py_ssize_t blocks = job.m_blocks + job.n_blocks
    job.packed = <char *>block_alloc(each * min(most, (job.k + TERMS - 1) // TERMS * TERMS))
    job.least = <uint32_t *>block_alloc(blocks * sizeof(uint32_t))
    try:
        if job.packed == NULL or job.least == NULL:
            raise MemoryError(f"fastconv: no memory for {each * most} bytes of split matrices")
        job.k0 = 0
        while job.k0 < job.k:
            job.terms = min(most, job.k - job.k0)
            run_tasks(split_block, job, blocks, 4 * TERMS * max(job.m_block, job.n_block), threads)
            run_tasks(split_task, job, job.m_blocks * job.n_blocks, 4 * whole(job.m_block) * whole(job.n_block), threads)
            job.k0 += job.terms
    finally:
        block_free(job.packed)
        block_free(job.least)
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
                job.kernels.copy_strided(tile.acc, job.bias + n * item, mr, 1)
            job.kernels.dot_tile[1][mr](&tile)
        n += mr


cdef void fill_task(void *argument, Py_ssize_t row, char *workspace) noexcept nogil:
    """K = 0: c is the bias."""
    cdef const Job *job = <const Job *>argument
    cdef char *c = job.c + row * job.n * job.itemsize
    if job.bias == NULL:
        memset(c, 0, job.n * job.itemsize)
    else:
        job.kernels.copy_strided(c, job.bias, job.n, 1)


def multiply(cnp.ndarray a, bint a_transposed, cnp.ndarray b, bint b_transposed, cnp.ndarray bias, cnp.ndarray c,
             int threads, int products=0):
    """c = a @ b + bias for contiguous matrices; a_transposed: a is stored [K][M], b_transposed: b is stored [N][K].

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
    job.b = <const char *>cnp.PyArray_DATA(b)
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
    if products:
        job.c_row = job.n
        if run_split(&job, threads):
            count_rerun()
            multiply(a, a_transposed, b, b_transposed, bias, c, threads)
        return
    set_blocks(&job, threads)
    # an odd number of cache lines from row to row: no power-of-two stride that maps all rows to one set of the cache
    job.pitch = ((job.n_block * job.itemsize + 63) // 64 | 1) * 64 // job.itemsize
    run_tasks(task, &job, job.m_blocks * job.n_blocks,
              (CHAIN * (FC_MR_MAX + job.pitch) + FC_NV_MAX * job.kernels.lanes) * job.itemsize, threads)


def workspace(int itemsize, int products=0) -> int:
    """Most bytes of workspace a thread needs, for any product."""
    if products:
        return 4 * BLOCK * BLOCK
    cdef Py_ssize_t lanes = active_kernels(itemsize).lanes
    return (CHAIN * (FC_MR_MAX + BLOCK + 128 // itemsize) + FC_NV_MAX * lanes) * itemsize
