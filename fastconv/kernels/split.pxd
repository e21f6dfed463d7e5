# SPDX-License-Identifier: BSD-3-Clause
"""What the drivers of the split kernels share: tiles, parts, and the guard for small magnitudes."""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from fastconv.kernels.fastconv cimport fc_kernels, fc_split_kernels

cdef enum:
    SIDE = 16    # rows of a tile, and floats in one
    TERMS = 32   # bfloat16 in a row of a tile: terms of one tile product
    NOTHING = 0xffffffff  # the least of no magnitudes


cdef inline Py_ssize_t whole(Py_ssize_t count) noexcept nogil:
    """`count` rounded up to whole tiles."""
    return (count + SIDE - 1) // SIDE * SIDE


cdef inline Py_ssize_t whole_terms(Py_ssize_t count) noexcept nogil:
    """`count` rounded up to whole blocks of terms."""
    return (count + TERMS - 1) // TERMS * TERMS


cdef inline int parts_of(int products) noexcept nogil:
    """bfloat16 parts of each operand."""
    return 3 if products == 6 else 2 if products == 3 else 1


cdef inline bint lost(int parts, uint32_t a, uint32_t b) noexcept nogil:
    """Whether parts of products of magnitudes from `a` and from `b` on (fc_split_kernels.rows) might be denormal.

    The last bit of the last of n parts of 2^e is at least 2^(e - 8n), and 2^-126 is the least normal number; biased exponents
    are larger by 127.
    """
    cdef Py_ssize_t x = (<Py_ssize_t>a + 1) >> 23, w = (<Py_ssize_t>b + 1) >> 23
    return min(x, w) < 1 + 8 * parts or x + w < 128 + 8 * parts


# An operand of a matrix product on tile registers: element (i, k) of a at i*row + k*col.
cdef struct Operand:
    const fc_kernels *kernels
    const fc_split_kernels *split
    int parts
    Py_ssize_t row, col


cdef inline uint32_t split_a(const Operand *a, const char *x, Py_ssize_t rows, Py_ssize_t terms, char *scratch,
                             char *to) noexcept nogil:
    """to[block of TERMS][part][whole(rows)][TERMS] of a, zero beyond the last term; the least magnitude.

    `scratch` has room for `rows` times TERMS floats.
    """
    cdef Py_ssize_t count, part = whole(rows) * TERMS
    cdef uint32_t least = NOTHING
    while terms > 0:
        count = min(terms, <Py_ssize_t>TERMS)
        if a.col == 1:
            a.kernels.copy_rows(scratch, TERMS, x, a.row, rows, 0, count, TERMS - count, 1)
        else:
            a.kernels.transpose(scratch, TERMS, x, a.col, count, rows, TERMS)
        least = min(least, a.split.rows(to, part, <const float *>scratch, rows * TERMS, a.parts))
        x += TERMS * a.col * 4
        to += 2 * part * a.parts
        terms -= TERMS
    return least


cdef inline uint32_t split_b(const Operand *b, const char *x, Py_ssize_t columns, Py_ssize_t terms, char *scratch,
                             char *to) noexcept nogil:
    """to[block of TERMS][part][pair of terms][whole(columns)][2] of the transpose of b, zero beyond the last term; the least
    magnitude.

    `scratch` has room for `columns` times TERMS floats.
    """
    cdef Py_ssize_t count, i, p, pair = 2 * whole(columns), pitch = b.col
    cdef const char *rows
    cdef char *at
    cdef uint32_t least = NOTHING
    while terms > 0:
        count = min(terms, <Py_ssize_t>TERMS)
        rows = x
        if b.row != 1:
            pitch = columns
            rows = scratch
            b.kernels.transpose(scratch, columns, x, b.row, columns, count, columns)
        for i in range(SIDE):
            at = to + 2 * i * pair
            if 2 * i < count:
                least = min(least, b.split.pairs(
                    at, SIDE * pair, 0, <const float *>rows + 2 * i * pitch,
                    NULL if 2 * i + 1 == count else <const float *>rows + (2 * i + 1) * pitch, columns, 0, b.parts))
            else:
                for p in range(b.parts):
                    memset(at + 2 * p * SIDE * pair, 0, 2 * pair)
        x += TERMS * b.col * 4
        to += 2 * SIDE * pair * b.parts
        terms -= TERMS
    return least
