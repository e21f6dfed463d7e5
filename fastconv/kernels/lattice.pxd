# SPDX-License-Identifier: BSD-3-Clause
"""One spatial problem for every dimension, direction and padding mode.

A lattice says which source pixels feed which output pixels. Per axis (d, h, w; a 2-D problem has one d), output j and tap k
read the padded coordinate q = j*step + offset[k], which is some source pixel, or zero. Output j lies
at y_start + j*y_step of the output array: the input gradient of a convolution with stride s is s lattices an axis.
"""

cdef struct Axis:
    Py_ssize_t out, step, taps, span, size
    Py_ssize_t y_start, y_step, y_size
    const Py_ssize_t *offset  # offset[taps]
    # coordinate q is source pixel q + inner_shift for inner_start <= q < inner_stop, else source[q], or zero without a table
    const Py_ssize_t *source  # source[span] or NULL
    Py_ssize_t inner_start, inner_stop, inner_shift
    # In a band the coordinates are kept by phase (q mod step), so that neighbouring outputs are neighbours in memory
    # at any stride: tap k is at index shift[k] + j of phase phase_of[k], whose residue is residue[phase_of[k]].
    Py_ssize_t phases, shift_max
    const Py_ssize_t *residue
    const Py_ssize_t *phase_of
    const Py_ssize_t *shift

# One block of outputs and the padded copy ("band") of the source pixels it needs, as a packed array
# band[channel][phase_d][d][phase_h][phase_w][h][w]: the rows of a phase follow one another, so a block is also one long row
# (with the halo between its parts).
cdef struct Band:
    Py_ssize_t block[3]      # outputs of a full block
    Py_ssize_t rows, width   # rows of one d, all phases together; elements of one row of one phase
    Py_ssize_t size          # elements of one channel
    Py_ssize_t channel       # elements from one channel to the next

cdef class Lattice:
    cdef Axis axis[3]
    cdef readonly Py_ssize_t taps
    cdef readonly Py_ssize_t outputs
    cdef const Py_ssize_t *tap_index  # position of each tap in the weights' own tap axis
    # the phase of each tap: its first tap, and how many it has
    cdef const Py_ssize_t *phase_tap
    cdef const Py_ssize_t *phase_taps
    cdef readonly tuple phases        # the lattices this one runs together, see join()
    cdef list arrays                  # owners of the pointers above
    cdef set_axis(self, Axis *axis, record)

cdef size_t lines(size_t size) noexcept nogil
cdef Py_ssize_t band_pitch(Py_ssize_t elements, Py_ssize_t itemsize) noexcept nogil
cdef void band_layout(const Axis *axis, const Py_ssize_t *block, Py_ssize_t itemsize, Band *band) noexcept nogil
cdef void band_offsets(const Axis *axis, const Band *band, Py_ssize_t *off) noexcept nogil
cdef inline Py_ssize_t source_at(const Axis *axis, Py_ssize_t q) noexcept nogil:
    """Source pixel of padded coordinate q, or -1 for zero."""
    if axis.inner_start <= q < axis.inner_stop:
        return q + axis.inner_shift
    return axis.source[q] if axis.source != NULL and q < axis.span else -1

cdef inline Py_ssize_t first_at(Py_ssize_t q, Py_ssize_t step, Py_ssize_t bound, Py_ssize_t count) noexcept nogil:
    """The first i <= count with q + i*step >= bound."""
    if q >= bound:
        return 0
    return min(count, bound - q if step == 1 else (bound - q + step - 1) // step)

cdef void real_taps(const Axis *axis, Py_ssize_t first, Py_ssize_t last, Py_ssize_t *begin,
                    Py_ssize_t *stop) noexcept nogil
cdef bint own_pixels(const Axis *axis) noexcept nogil
cdef bint apart(const Axis *axis, Py_ssize_t itemsize, const Py_ssize_t *at, Py_ssize_t taps) noexcept nogil
cdef void copy_taps(const Axis *axis, Py_ssize_t itemsize, char *to, Py_ssize_t to_tap, Py_ssize_t to_row, const char *x,
                    Py_ssize_t x_row, Py_ssize_t rows, const Py_ssize_t *at, Py_ssize_t taps, Py_ssize_t q,
                    Py_ssize_t count, Py_ssize_t zeros) noexcept nogil
cdef void fill_lines(const Axis *axis, Py_ssize_t width, Py_ssize_t to_tap, Py_ssize_t itemsize, Py_ssize_t q_h,
                     Py_ssize_t rows, const Py_ssize_t *at, Py_ssize_t taps, Py_ssize_t q_w, Py_ssize_t cols,
                     const char *plane, char *to) noexcept nogil
cdef void fill_band(const Axis *axis, const Band *band, Py_ssize_t itemsize, const Py_ssize_t *origin,
                    const Py_ssize_t *count, const char *x, Py_ssize_t x_c, Py_ssize_t channels,
                    char *to) noexcept nogil
cdef Py_ssize_t ceil_div(Py_ssize_t count, Py_ssize_t size) noexcept nogil
cdef Py_ssize_t fair_part(Py_ssize_t size, Py_ssize_t part, Py_ssize_t others, int threads) noexcept nogil
cdef void share_block(const Axis *axis, Py_ssize_t others, int threads, Py_ssize_t *block) noexcept nogil
cdef void choose_block(const Axis *axis, Py_ssize_t channels, Py_ssize_t itemsize, size_t budget,
                       Py_ssize_t pixels, Py_ssize_t *block) noexcept nogil
