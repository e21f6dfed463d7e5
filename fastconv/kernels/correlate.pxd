# SPDX-License-Identifier: BSD-3-Clause
"""What the convolution algorithms share: the job, weight packing, and the order of the work."""

cimport numpy as cnp

from fastconv.kernels.fastconv cimport fc_kernels
from fastconv.kernels.lattice cimport Axis, Band, Lattice
from fastconv.kernels.team cimport task_fn

cdef enum:
    # Weights packed at a time. Layers whose weights are larger go through in several rounds, which bounds the memory.
    PACKED_LIMIT = 24 << 20

cdef class Weights:
    cdef readonly object array
    cdef dict packed  # (kernels, packing) -> packed weights, and "source" -> what they were packed from
    cdef Py_ssize_t limit
    cdef object form(self, key, Py_ssize_t size, char **at, task_fn pack, void *job, Py_ssize_t tasks, size_t workspace,
                     int threads)
    cdef keep(self, key, cnp.ndarray form)

cdef struct Job:
    const fc_kernels *kernels
    Axis axis[3]
    Band band
    Py_ssize_t itemsize, batch, groups, channels, outputs, taps  # channels and outputs of one group
    Py_ssize_t blocks[3]           # spatial blocks
    Py_ssize_t group_step          # groups of a task
    const Py_ssize_t *off          # off[taps], in the band
    const char *x                  # x[n][group][channel][d][h][w]
    Py_ssize_t x_n, x_c
    char *y                        # y[n][group][output][d][h][w]
    Py_ssize_t y_n, y_c
    const char *w                  # w[group][output][channel][tap], at these strides
    Py_ssize_t w_g, w_o, w_c, w_taps
    const Py_ssize_t *tap_index    # these three: see lattice.pxd
    const Py_ssize_t *phase_tap
    const Py_ssize_t *phase_taps
    Py_ssize_t order               # 1 (-1): the packed taps are those of w, in their (reverse) order; else 0. Set by run_packed
    const char *bias               # bias[group*output] or NULL
    const char *residual           # like y, or NULL
    int relu, activation           # activation: fc_activation or -1, applied after the block
    # Weights are packed in panels of `panel` outputs, padded to a multiple of `multiple` (outputs in vectors or tiles), or,
    # where that is 0, of about equal sizes, the first ones of one output more than the others (pixels in vectors).
    Py_ssize_t panel, multiple
    Py_ssize_t panels              # in a group
    size_t column                  # bytes of one packed output
    char *packed
    size_t packed_group            # bytes of one packed group
    # the part of the weights packed now: groups [group0, group1), panels [panel0, panel1)
    Py_ssize_t group0, group1, panel0, panel1
    Py_ssize_t splits              # panel ranges worked on in parallel
    Py_ssize_t tasks               # wanted for each thread: where the blocks are fewer, the panels are divided
    Py_ssize_t task_panels         # most panels of a task, where that is not 0
    # one task
    Py_ssize_t channel_block
    size_t band_bytes

cdef struct Task:
    Py_ssize_t n, group, groups, panel0, panel1
    Py_ssize_t origin[3]
    Py_ssize_t count[3]

# One of the lattices that a lattice runs together (see lattice.join), or the only one.
cdef struct Phase:
    Py_ssize_t tap, taps  # its taps: `taps` of the job's, from `tap` on
    Py_ssize_t out[3]
    Py_ssize_t start[3]   # of its outputs in y

cdef inline Py_ssize_t packed_term(const Job *job, Py_ssize_t channel, Py_ssize_t tap, Py_ssize_t taps) noexcept nogil:
    """Where a packed panel has the first tap of a channel, of the phase that begins with `tap` and has `taps`."""
    return job.channels * tap + channel * taps

cdef void panel_bounds(const Job *job, Py_ssize_t i, Py_ssize_t *start, Py_ssize_t *size,
                       Py_ssize_t *width) noexcept nogil
cdef const char *packed_panel(const Job *job, Py_ssize_t group, Py_ssize_t start) noexcept nogil
cdef void decode(const Job *job, Py_ssize_t task, Task *t) noexcept nogil
cdef const char *source_plane(const Job *job, const Task *t) noexcept nogil
cdef Py_ssize_t tap_at(const Axis *axis, Py_ssize_t tap) noexcept nogil
cdef bint spans_vectors(const Axis *axis, Py_ssize_t first, Py_ssize_t last, Py_ssize_t out, Py_ssize_t lanes) noexcept nogil
cdef Py_ssize_t output_at(const Job *job, Py_ssize_t d, Py_ssize_t h, Py_ssize_t w) noexcept nogil
cdef void activate_rows(const Job *job, char *y, Py_ssize_t outputs, Py_ssize_t rows, Py_ssize_t y_row,
                        Py_ssize_t cols) noexcept nogil
cdef void activate(const Job *job, const Task *t) noexcept nogil
cdef int start_job(Job *job, Lattice lattice, object x, object w, object y, Py_ssize_t groups,
                   bint transposed, object bias, object residual, int activation) except -1
cdef bint has_zero_taps(const Job *job, object w, bint transposed)
cdef void set_phase(const Job *job, Lattice lattice, Py_ssize_t tap, Phase *phase, Py_ssize_t *off)
cdef void split_panels(const Job *job, Py_ssize_t split, Py_ssize_t *panel0, Py_ssize_t *panel1) noexcept nogil
cdef Py_ssize_t lag_of(const Axis *axis, const Py_ssize_t *off, Py_ssize_t x_row) noexcept
cdef int run_panels(Job *job, Py_ssize_t tasks, task_fn task, size_t workspace, int threads) except -1 nogil
cdef int run_rounds(Job *job, object w, task_fn pack, size_t pack_workspace, size_t limit, Py_ssize_t tasks, task_fn task,
                    size_t workspace, int threads) except -1
cdef Py_ssize_t set_blocks(Job *job) noexcept
cdef int run_packed(Job *job, object w, task_fn task, Py_ssize_t tasks, size_t workspace, int threads) except -1
cdef int run_job(Job *job, object w, task_fn task, size_t workspace, int threads) except -1
cdef size_t band_budget(object max_workspace) except? 0
cdef void count_rerun() noexcept
