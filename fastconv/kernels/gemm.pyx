# SPDX-License-Identifier: BSD-3-Clause
"""Matrix product c[M][N] = a[M][K] @ b[K][N] + bias[N] on the packed micro-kernel.

A task owns one block of c. For each CHAIN rows of K it packs its part of a into panels and of b into aligned rows, and adds
their product to c; CHAIN is a constant, so the bits depend on the problem and the ISA alone. Few rows times a transposed b
(a linear layer on a small batch) are dot products instead: b is read once and nothing is packed.
"""

cimport numpy as cnp
from libc.string cimport memset

from fastconv.kernels.fastconv cimport (
    FC_DOT_B_MAX,
    FC_FIRST,
    FC_LAST,
    FC_MR_MAX,
    FC_NV_MAX,
    fc_dot_tile,
    fc_kernels,
    fc_gemm_tile,
)
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

cdef enum:
    CHAIN = 256        # rows of K summed in registers
    BLOCK = 192        # rows and columns of a block of c: its packed b is 192 KiB in float
    DOT_ROWS = 4       # up to this many rows are dot products
    DOT_COLUMNS = 64   # columns of a task of dot products

cdef struct Job:
    const fc_kernels *kernels
    const char *a
    const char *b
    const char *bias
    char *c
    Py_ssize_t m, n, k, a_row, a_col, b_row, b_col, itemsize
    Py_ssize_t m_block, n_block, n_blocks, pitch


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
             int threads):
    """c = a @ b + bias for contiguous matrices; a_transposed: a is stored [K][M], b_transposed: b is stored [N][K]."""
    cdef Job job
    cdef Py_ssize_t m_blocks, wanted
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
    if job.k == 0:
        run_tasks(fill_task, &job, job.m, 0, 1)
        return
    if job.m <= DOT_ROWS and b_transposed and not a_transposed:
        run_tasks(dot_task, &job, (job.n + DOT_COLUMNS - 1) // DOT_COLUMNS, 0, threads)
        return
    job.m_block = min(job.m, <Py_ssize_t>BLOCK)
    m_blocks = (job.m + job.m_block - 1) // job.m_block
    wanted = max(1, 2 * threads // m_blocks)
    job.n_block = max(FC_NV_MAX * job.kernels.lanes, min(<Py_ssize_t>BLOCK, (job.n + wanted - 1) // wanted))
    job.n_block = min(job.n, job.n_block)
    job.n_blocks = (job.n + job.n_block - 1) // job.n_block
    # an odd number of cache lines from row to row: no power-of-two stride that maps all rows to one set of the cache
    job.pitch = ((job.n_block * job.itemsize + 63) // 64 | 1) * 64 // job.itemsize
    run_tasks(task, &job, m_blocks * job.n_blocks,
              (CHAIN * (FC_MR_MAX + job.pitch) + FC_NV_MAX * job.kernels.lanes) * job.itemsize, threads)


def workspace(int itemsize) -> int:
    """Most bytes of workspace a thread needs, for any product."""
    cdef Py_ssize_t lanes = active_kernels(itemsize).lanes
    return (CHAIN * (FC_MR_MAX + BLOCK + 128 // itemsize) + FC_NV_MAX * lanes) * itemsize
