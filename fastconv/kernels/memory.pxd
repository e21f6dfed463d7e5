# SPDX-License-Identifier: BSD-3-Clause
cimport numpy as cnp
from libc.stdint cimport uintptr_t

from fastconv.kernels.fastconv cimport FC_CACHE_LINE

cdef enum:
    AXES_MAX = 64        # of a NumPy array
    STREAMED = 32 << 20  # bytes of a result of which caches keep too little for whoever reads it next

cdef void *block_alloc(size_t size) noexcept nogil
cdef void block_free(void *block) noexcept nogil
cdef object fresh(int axes, cnp.npy_intp *shape, int kind, Py_ssize_t itemsize)


cdef inline char *address(object array) noexcept:
    """The first byte of an array; NULL for None."""
    return NULL if array is None else cnp.PyArray_BYTES(<cnp.ndarray>array)


cdef inline bint streams(const char *y, const char *x, Py_ssize_t size, Py_ssize_t run) noexcept:
    """Whether a result of `size` bytes, in runs of `run` bytes, is to be stored past the caches, which else read it first.

    Not where it takes the place of x.
    """
    return size >= STREAMED and y != x and <uintptr_t>y % FC_CACHE_LINE == 0 and run % FC_CACHE_LINE == 0
