# SPDX-License-Identifier: BSD-3-Clause
"""Planes side by side, one in each lane of a vector: to the band and back."""

from libc.stdint cimport int32_t

from fastconv.kernels.correlate cimport Job, Task

# How the source pixels of a block are spread over its band.
cdef struct Spread:
    Py_ssize_t first, pitch  # the table has columns [first, first + pitch) of each padded row
    bint whole               # these are whole rows of the source
    int32_t *at              # at[row][column]: elements, in the band

cdef void set_band(Job *job, const Py_ssize_t *block) noexcept nogil
cdef Py_ssize_t spread_size(const Job *job, Spread *spread) noexcept nogil
cdef void set_spread(const Job *job, Spread *spread) noexcept nogil
cdef void load_band(const Job *job, const Spread *spread, const Task *t, const char *x, Py_ssize_t x_plane,
                    Py_ssize_t x_lane, Py_ssize_t planes, char *to) noexcept nogil
cdef void store_tile(const Job *job, const Task *t, const Py_ssize_t *tile, Py_ssize_t plane, const char *bias,
                     Py_ssize_t bias_plane, Py_ssize_t planes, const char *sums) noexcept nogil
