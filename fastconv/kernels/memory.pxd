# SPDX-License-Identifier: BSD-3-Clause
cimport numpy as cnp

cdef enum:
    AXES_MAX = 64  # of a NumPy array

cdef void *block_alloc(size_t size) noexcept nogil
cdef void block_free(void *block) noexcept nogil
cdef object fresh(int axes, cnp.npy_intp *shape, int kind, Py_ssize_t itemsize)


cdef inline char *address(object array) noexcept:
    """The first byte of an array; NULL for None."""
    return NULL if array is None else cnp.PyArray_BYTES(<cnp.ndarray>array)
