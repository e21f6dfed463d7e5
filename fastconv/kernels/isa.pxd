# SPDX-License-Identifier: BSD-3-Clause
from fastconv.kernels.fastconv cimport fc_kernels, fc_split_kernels

cdef const fc_kernels *active_kernels(Py_ssize_t itemsize) noexcept nogil
cdef size_t cache_bytes(int level) noexcept nogil
cdef const fc_split_kernels *active_split() noexcept
cdef const void *active_row() noexcept nogil
