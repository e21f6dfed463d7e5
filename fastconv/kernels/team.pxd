# SPDX-License-Identifier: BSD-3-Clause
ctypedef void (*task_fn)(void *job, Py_ssize_t task, char *workspace) noexcept nogil

cdef int run_tasks(task_fn task, void *job, Py_ssize_t count, size_t workspace, int threads) except -1
cdef int run_tasks_nogil(task_fn task, void *job, Py_ssize_t count, size_t workspace, int threads) except -1 nogil
