# SPDX-License-Identifier: BSD-3-Clause
"""The one parallel region of the package: a team of OpenMP threads works through numbered tasks.

The team's size is an argument of every call (omp_set_num_threads is per-thread state). Tasks write disjoint outputs or
numbered slots that are reduced in order, so neither the team's size nor the schedule shows in the result.
"""

from cython.parallel cimport parallel, prange, threadid

from fastconv.kernels.memory cimport block_alloc, block_free

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static const int fc_has_openmp = _OPENMP;
    #else
    static const int fc_has_openmp = 0;
    static int omp_in_parallel(void) { return 0; }
    static int omp_get_max_threads(void) { return 1; }
    #endif
    """
    int fc_has_openmp
    int omp_in_parallel() nogil
    int omp_get_max_threads() nogil

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)

# libgomp's worker threads do not survive a fork, and a parallel region in the child would wait for them for ever. Another
# library may have started them, so every forked child is serial.
cdef bint serial_only = False


cdef void in_child() noexcept nogil:
    global serial_only
    serial_only = True


pthread_atfork(NULL, NULL, in_child)


cdef int team_size(Py_ssize_t tasks, int threads) noexcept nogil:
    """Threads a region of `tasks` may use: 1 after a fork and inside someone else's parallel region."""
    if serial_only or threads <= 1 or tasks <= 1 or fc_has_openmp == 0 or omp_in_parallel():
        return 1
    return threads if threads < tasks else <int>tasks


cdef int run_tasks(task_fn task, void *job, Py_ssize_t count, size_t workspace, int threads) except -1:
    """task(job, i, workspace) for i < count, with `workspace` bytes for each thread. Releases the GIL.

    Raises MemoryError, before any task has run, when the workspace cannot be had.
    """
    with nogil:
        run_tasks_nogil(task, job, count, workspace, threads)
    return 0


cdef int run_tasks_nogil(task_fn task, void *job, Py_ssize_t count, size_t workspace,
                         int threads) except -1 nogil:
    """run_tasks for several regions in a row, by a caller that has released the GIL."""
    cdef int team = team_size(count, threads)
    cdef size_t stride = (workspace + 63) // 64 * 64
    cdef char *memory = NULL
    cdef Py_ssize_t i
    if count <= 0:
        return 0
    if stride:
        memory = <char *>block_alloc(stride * team)
        if memory == NULL:
            with gil:
                raise MemoryError(
                    f"fastconv: no memory for a workspace of {stride} bytes for each of {team} threads"
                )
    if team == 1:
        for i in range(count):
            task(job, i, memory)
    else:
        with parallel(num_threads=team):
            for i in prange(count, schedule="dynamic", chunksize=1):
                task(job, i, memory + stride * threadid())
    block_free(memory)
    return 0


def openmp() -> dict:
    """The OpenMP specification date this build uses (0: none), and whether this process is a forked child."""
    return {"version": fc_has_openmp, "serial_only": bool(serial_only)}
