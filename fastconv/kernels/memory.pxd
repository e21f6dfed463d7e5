# SPDX-License-Identifier: BSD-3-Clause
cdef void *block_alloc(size_t size) noexcept nogil
cdef void block_free(void *block) noexcept nogil
cpdef object empty(tuple shape, object dtype)
