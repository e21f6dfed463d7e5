# SPDX-License-Identifier: BSD-3-Clause
"""The one parallel region of the package: a team of OpenMP threads works through numbered tasks.

The team's size is an argument of every call (omp_set_num_threads is per-thread state). Tasks write disjoint outputs or
numbered slots that are reduced in order, so neither the team's size nor who runs which shows in the result.

A team waits for its last thread. On a busy machine that one may in turn wait for a processor, for as long as hundreds of small
regions take. After several such waits the caller works alone for a while.
"""

from cython.parallel cimport parallel, threadid
from libc.stdint cimport int64_t

from fastconv.kernels.memory cimport block_alloc, block_free

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static const int fc_has_openmp = _OPENMP;
    #else
    static const int fc_has_openmp = 0;
    static int omp_in_parallel(void) { return 0; }
    #endif
    #include <fcntl.h>
    #include <stdlib.h>
    #include <time.h>
    #include <unistd.h>

    static inline Py_ssize_t fc_next(Py_ssize_t *task) { return __atomic_fetch_add(task, 1, __ATOMIC_RELAXED); }

    static inline int64_t fc_now(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return INT64_C(1000000000) * t.tv_sec + t.tv_nsec;
    }

    /* How long the calling thread was ready to run and did not, since the last time it asked: the second number of schedstat
     * (Linux, Documentation/scheduler/sched-stats.rst). 0 the first time, and where the system does not tell. */
    static int64_t fc_delayed(void)
    {
        static __thread int64_t before = -1;
        char text[96] = "", *rest;
        const int file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
        if (file < 0)
            return 0;
        if (read(file, text, sizeof text - 1) < 0)
            text[0] = 0;
        close(file);
        strtoll(text, &rest, 10);
        const int64_t now = strtoll(rest, NULL, 10), since = before < 0 ? 0 : now - before;
        before = now;
        return since;
    }
    """
    int fc_has_openmp
    int omp_in_parallel() nogil
    Py_ssize_t fc_next(Py_ssize_t *task) nogil
    int64_t fc_now() nogil  # nanoseconds
    int64_t fc_delayed() nogil  # likewise

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)

cdef enum:
    # A region that takes longer than a time slice, a millisecond, may have waited for a processor. It has where that took more
    # than PATIENCE times the rest of it: the tasks of a region are of about one size.
    SLICE = 1_000_000
    PATIENCE = 2
    # Nanoseconds: when waits add up to so much, less the time of the regions in between, the caller works alone for REST times
    # as long. Single waits, as where another process has just ended its turn, do not count. While the machine stays busy, no
    # more than a fifth of the time is lost.
    DEBT = 30_000_000
    REST = 4

cdef enum:
    SHARES = 64  # more threads than that begin with the share of another

# Tasks [next, end) of one thread. The same ones in each call: it finds in its cache what it had there in the call before.
cdef struct Share:
    Py_ssize_t next, end
    Py_ssize_t[6] apart  # a cache line each

# What they add up to. Two threads that write it at once may lose a wait or a rest, no more.
cdef int64_t debt = 0
# Until when callers work alone.
cdef int64_t resting = 0
# Whether they do: tests want the teams they ask for.
cdef bint rests = True

# libgomp's worker threads do not survive a fork, and a parallel region in the child would wait for them for ever. Another
# library may have started them, so every forked child is serial.
cdef bint serial_only = False


cdef void in_child() noexcept nogil:
    global serial_only
    serial_only = True


pthread_atfork(NULL, NULL, in_child)


cdef bint is_alone() noexcept nogil:
    return serial_only or fc_has_openmp == 0 or omp_in_parallel() or (resting and fc_now() < resting)


cdef int team_size(Py_ssize_t tasks, int threads) noexcept nogil:
    """Threads a region of `tasks` may use: 1 after a fork, inside someone else's parallel region, and while callers rest."""
    if threads <= 1 or tasks <= 1 or is_alone():
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
        run_team(task, job, count, memory, stride, team)
    block_free(memory)
    return 0


cdef void run_team(task_fn task, void *job, Py_ssize_t count, char *memory, size_t stride, int team) noexcept nogil:
    """Each thread takes the tasks of its share one by one, then those that are left of others."""
    cdef Share[SHARES] shares
    cdef int parts = min(team, <int>SHARES), i = 0
    cdef int64_t start = fc_now()
    cdef int64_t[1] done = [start]  # of the caller
    for i in range(parts):
        shares[i].next = i * count // parts
        shares[i].end = (i + 1) * count // parts
    with parallel(num_threads=team):
        for i in range(parts):
            run_share(task, job, shares + (threadid() + i) % parts, memory + stride * threadid())
        if threadid() == 0:
            done[0] = fc_now()
    rest(start, done[0], fc_now())


cdef void run_share(task_fn task, void *job, Share *share, char *workspace) noexcept nogil:
    cdef Py_ssize_t i = fc_next(&share.next)
    while i < share.end:
        task(job, i, workspace)
        i = fc_next(&share.next)


cpdef void rest(int64_t start, int64_t done, int64_t end) noexcept nogil:
    """After a region from `start` to `end` whose caller was `done` with its tasks: whether that was a wait for a processor."""
    global debt, resting
    cdef int64_t lost = 0
    if rests and end - start > SLICE:
        lost = end - done + min(done - start, fc_delayed())
    if lost > PATIENCE * (end - start - lost):
        debt += lost
        if debt > DEBT:
            resting = end + REST * debt
            debt = 0
    elif debt:
        debt = max(0, debt - (end - start))


def set_rests(bint enabled) -> None:
    """Whether callers work alone for a while after waiting for a processor."""
    global rests, resting, debt
    rests, resting, debt = enabled, 0, 0


def alone() -> bool:
    """Whether a caller works alone now, whatever threads are wanted."""
    return is_alone()


def openmp() -> dict:
    """The OpenMP specification date this build uses (0: none), and whether this process is a forked child."""
    return {"version": fc_has_openmp, "serial_only": bool(serial_only)}
