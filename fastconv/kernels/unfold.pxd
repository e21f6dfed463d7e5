# SPDX-License-Identifier: BSD-3-Clause
"""Folding columns to the rows of planes."""

from fastconv.kernels.fastconv cimport fc_kernels
from fastconv.kernels.lattice cimport Axis, Lattice

# What does not change from one part of the columns to another.
cdef struct Fold:
    const fc_kernels *kernels
    Axis axis[3]
    Py_ssize_t itemsize, taps
    Py_ssize_t plane, row   # elements of x from plane to plane, from row to row
    Py_ssize_t columns_tap  # elements of columns from tap to tap
    Py_ssize_t line         # of one phase of a row of x; 0: a row has no phases

cdef void start_fold(Fold *fold, Lattice lattice, Py_ssize_t itemsize, Py_ssize_t columns_tap) noexcept
cdef Py_ssize_t fold_workspace(const Fold *fold, Py_ssize_t planes) noexcept nogil
cdef void readers(const Fold *fold, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t *begin, Py_ssize_t *end) noexcept nogil
cdef Py_ssize_t cut_rows(Fold *fold, Py_ssize_t first, Py_ssize_t stop) noexcept nogil
cdef void clear_rows(const Fold *fold, char *x, Py_ssize_t planes, Py_ssize_t first, Py_ssize_t stop) noexcept nogil
cdef void fold_rows(const Fold *fold, const char *columns, Py_ssize_t row, Py_ssize_t rows, char *x, Py_ssize_t planes,
                    Py_ssize_t first, Py_ssize_t stop, char *workspace) noexcept nogil
