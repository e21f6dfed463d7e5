# SPDX-License-Identifier: BSD-3-Clause
"""What the drivers of the split kernels share: tiles, parts, and the guard for small magnitudes."""

from libc.stdint cimport uint32_t

cdef enum:
    SIDE = 16    # rows of a tile, and floats in one
    TERMS = 32   # bfloat16 in a row of a tile: terms of one tile product
    NOTHING = 0xffffffff  # the least of no magnitudes


cdef inline Py_ssize_t whole(Py_ssize_t count) noexcept nogil:
    """`count` rounded up to whole tiles."""
    return (count + SIDE - 1) // SIDE * SIDE


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
