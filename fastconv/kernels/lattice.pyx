# SPDX-License-Identifier: BSD-3-Clause
"""Lattices (see lattice.pxd) and the packing of their bands."""

import numpy as np

cimport numpy as cnp
from libc.string cimport memset

from fastconv.kernels.fastconv cimport fc_kernels
from fastconv.kernels.isa cimport active_kernels

cnp.import_array()


cdef const Py_ssize_t *keep(list owners, values):
    """A C array with the values; `owners` keeps it alive."""
    cdef cnp.ndarray array = np.ascontiguousarray(values, dtype=np.intp)
    owners.append(array)
    return <const Py_ssize_t *>cnp.PyArray_DATA(array)


cdef class Lattice:
    """`axes`: three records with the fields of problem.LatticeAxis; `tap_index`: see lattice.pxd."""

    def __init__(self, axes, tap_index):
        self.arrays = []
        self.phases = ()
        self.taps = 1
        self.outputs = 1
        for i, record in enumerate(axes):
            self.set_axis(&self.axis[i], record)
            self.taps *= self.axis[i].taps
            self.outputs *= self.axis[i].out
        self.tap_index = keep(self.arrays, tap_index)
        self.phase_tap = keep(self.arrays, np.zeros(self.taps))
        self.phase_taps = keep(self.arrays, np.full(self.taps, self.taps))

    @property
    def nbytes(self):
        """Bytes of the tables, those of its phases included."""
        return sum(array.nbytes for array in self.arrays) + sum(phase.nbytes for phase in self.phases)

    @property
    def starts(self):
        """Where its outputs begin in the output array."""
        return self.axis[0].y_start, self.axis[1].y_start, self.axis[2].y_start

    cdef set_axis(self, Axis *axis, record):
        offset = np.asarray(record.offsets, dtype=np.intp)
        source = np.asarray(record.source, dtype=np.intp)
        residue, phase_of = np.unique(offset % record.step, return_inverse=True)
        axis.out, axis.step, axis.taps = record.out, record.step, len(offset)
        axis.size, axis.span = record.size, record.span
        axis.y_start, axis.y_step, axis.y_size = record.y_start, record.y_step, record.y_size
        axis.offset = keep(self.arrays, offset)
        axis.source = keep(self.arrays, source) if len(source) else NULL
        axis.inner_start = record.inner_start
        axis.inner_stop = record.inner_stop
        axis.inner_shift = record.inner_shift
        axis.phases = len(residue)
        axis.shift_max = int((offset // record.step).max(initial=0))
        axis.residue = keep(self.arrays, residue)
        axis.phase_of = keep(self.arrays, phase_of.reshape(-1))
        axis.shift = keep(self.arrays, offset // record.step)


def join(lattices):
    """One lattice for several that read the same source: its band holds what any of them reads, its taps are all of theirs.

    The phases of an input gradient: they have stride 1 and padding by zeros.
    """
    cdef Lattice whole = Lattice.__new__(Lattice), phase
    cdef Py_ssize_t i, first, last
    cdef Axis *axis
    counts = [lattice.taps for lattice in lattices]
    whole.phases = tuple(lattices)
    whole.arrays = []
    whole.taps = sum(counts)
    whole.outputs = sum(lattice.outputs for lattice in lattices)
    taps = np.empty(whole.taps, dtype=np.intp)
    i = 0
    for phase in lattices:
        for first in range(phase.taps):
            taps[i] = phase.tap_index[first]
            i += 1
    whole.tap_index = keep(whole.arrays, taps)
    whole.phase_tap = keep(whole.arrays, np.repeat(np.cumsum(counts) - counts, counts))
    whole.phase_taps = keep(whole.arrays, np.repeat(counts, counts))
    for i in range(3):
        axis = &whole.axis[i]
        phase = lattices[0]
        axis[0] = phase.axis[i]
        for phase in lattices:
            first = min(axis.inner_shift, phase.axis[i].inner_shift)
            last = max(axis.inner_shift + axis.shift_max, phase.axis[i].inner_shift + phase.axis[i].shift_max)
            axis.inner_shift = first
            axis.shift_max = last - first
            axis.out = max(axis.out, phase.axis[i].out)
        axis.span = axis.shift_max + axis.out
        axis.inner_start = -axis.inner_shift
        axis.inner_stop = axis.size - axis.inner_shift
    return whole


cdef Py_ssize_t ZERO = 0, ONE = 1


def row(Py_ssize_t pixels):
    """Every output reads the pixel at its own place: a 1x1 kernel on planes of so many."""
    cdef Lattice lattice = Lattice.__new__(Lattice)
    cdef Axis *axis
    cdef Py_ssize_t i
    lattice.arrays = []
    lattice.phases = ()
    lattice.taps = 1
    lattice.outputs = pixels
    lattice.tap_index = lattice.phase_tap = &ZERO
    lattice.phase_taps = &ONE
    for i in range(3):
        axis = &lattice.axis[i]
        axis.out = axis.size = axis.span = axis.y_size = axis.inner_stop = pixels if i == 2 else 1
        axis.step = axis.taps = axis.y_step = axis.phases = 1
        axis.offset = axis.residue = axis.phase_of = axis.shift = &ZERO
        axis.source = NULL
        axis.y_start = axis.inner_start = axis.inner_shift = axis.shift_max = 0
    return lattice


cdef size_t lines(size_t size) noexcept nogil:
    """An odd number of cache lines: no power-of-two stride that would map all channels, rows or positions to one set."""
    return ((size + 63) // 64 | 1) * 64


cdef Py_ssize_t band_pitch(Py_ssize_t elements, Py_ssize_t itemsize) noexcept nogil:
    """Elements from channel to channel."""
    return lines(elements * itemsize) // itemsize


cdef void band_layout(const Axis *axis, const Py_ssize_t *block, Py_ssize_t itemsize, Band *band) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(3):
        band.block[i] = block[i]
    band.rows = axis[1].phases * axis[2].phases * (block[1] + axis[1].shift_max)
    band.width = block[2] + axis[2].shift_max
    band.size = axis[0].phases * (block[0] + axis[0].shift_max) * band.rows * band.width
    band.channel = band_pitch(band.size, itemsize)


cdef void band_offsets(const Axis *axis, const Band *band, Py_ssize_t *off) noexcept nogil:
    """Element offset in the band, from an output's own position, of each tap."""
    cdef Py_ssize_t d, h, w, i = 0
    cdef Py_ssize_t at[3]
    for d in range(axis[0].taps):
        at[0] = axis[0].phase_of[d] * (band.block[0] + axis[0].shift_max) + axis[0].shift[d]
        for h in range(axis[1].taps):
            for w in range(axis[2].taps):
                at[1] = axis[1].phase_of[h] * axis[2].phases + axis[2].phase_of[w]
                at[2] = at[1] * (band.block[1] + axis[1].shift_max) + axis[1].shift[h]
                off[i] = (at[0] * band.rows + at[2]) * band.width + axis[2].shift[w]
                i += 1


cdef void real_taps(const Axis *axis, Py_ssize_t first, Py_ssize_t last, Py_ssize_t *begin,
                    Py_ssize_t *stop) noexcept nogil:
    """Taps [begin, stop) have all with which outputs [first, last] read other than zeros; none: begin = stop = 0."""
    cdef Py_ssize_t k, low = axis.inner_start - last * axis.step, high = axis.inner_stop - first * axis.step
    begin[0] = stop[0] = 0
    if axis.source != NULL:  # padding that copies pixels
        stop[0] = axis.taps
        return
    for k in range(axis.taps):
        if low <= axis.offset[k] < high:
            if stop[0] == 0:
                begin[0] = k
            stop[0] = k + 1


cdef bint own_pixels(const Axis *axis) noexcept nogil:
    """Whether every output reads the pixel at its own place and nothing else."""
    cdef Py_ssize_t i
    for i in range(3):
        if not (axis[i].taps == axis[i].step == 1 and axis[i].out == axis[i].size
                and axis[i].offset[0] + axis[i].inner_shift == 0):
            return False
    return True


cdef inline void copy_mapped(const Axis *axis, Py_ssize_t itemsize, char *to, Py_ssize_t to_row, const char *x,
                             Py_ssize_t x_row, Py_ssize_t rows, Py_ssize_t q, Py_ssize_t count) noexcept nogil:
    """Element by element, through the map: the padded edges of rows."""
    cdef Py_ssize_t i, r, at
    for i in range(count):
        at = source_at(axis, q + i * axis.step)
        if at < 0:
            continue
        if itemsize == 4:
            for r in range(rows):
                (<float *>to)[r * to_row + i] = (<const float *>x)[r * x_row + at]
        else:
            for r in range(rows):
                (<double *>to)[r * to_row + i] = (<const double *>x)[r * x_row + at]


cdef void copy_padded(const Axis *axis, Py_ssize_t itemsize, char *to, Py_ssize_t to_row, const char *x, Py_ssize_t x_row,
                      Py_ssize_t rows, Py_ssize_t q, Py_ssize_t count, Py_ssize_t zeros) noexcept nogil:
    """to[r*to_row + i] = padded row x + r*x_row (NULL: of zeros) at coordinate q + i*step, i < count, and then `zeros`."""
    cdef const fc_kernels *kernels = active_kernels(itemsize)
    cdef Py_ssize_t step = axis.step
    cdef Py_ssize_t left = first_at(q, step, axis.inner_start, count)
    cdef Py_ssize_t right = first_at(q, step, axis.inner_stop, count)
    if x == NULL or right <= left:
        kernels.copy_rows(to, to_row, to, 0, rows, count + zeros, 0, 0, 1)
        right = left
    else:
        kernels.copy_rows(to, to_row, x + (q + left * step + axis.inner_shift) * itemsize, x_row, rows, left, right - left,
                          count - right + zeros, step)
    if x != NULL and axis.source != NULL:  # padding that copies pixels
        copy_mapped(axis, itemsize, to, to_row, x, x_row, rows, q, left)
        copy_mapped(axis, itemsize, to + right * itemsize, to_row, x, x_row, rows, q + right * step, count - right)


cdef bint apart(const Axis *axis, Py_ssize_t itemsize, const Py_ssize_t *at, Py_ssize_t taps) noexcept nogil:
    """Whether a tap's cells share no vector but the taps of an output are neighbours that fill some: to be transposed."""
    return axis.step > 2 and taps >= active_kernels(itemsize).lanes and at[taps - 1] - at[0] == taps - 1


cdef void copy_taps(const Axis *axis, Py_ssize_t itemsize, char *to, Py_ssize_t to_tap, Py_ssize_t to_row, const char *x,
                    Py_ssize_t x_row, Py_ssize_t rows, const Py_ssize_t *at, Py_ssize_t taps, Py_ssize_t q,
                    Py_ssize_t count, Py_ssize_t zeros) noexcept nogil:
    """copy_padded of several taps: to[k*to_tap + r*to_row + i] = padded row x + r*x_row at coordinate q + at[k] + i*step."""
    cdef Py_ssize_t k, step = axis.step, last = at[taps - 1], left = 0, right = 0
    if x != NULL and apart(axis, itemsize, at, taps):
        left = first_at(q + at[0], step, axis.inner_start, count)
        right = first_at(q + last, step, axis.inner_stop, count)
    if right <= left:
        for k in range(taps):
            copy_padded(axis, itemsize, to + k * to_tap * itemsize, to_row, x, x_row, rows, q + at[k], count, zeros)
        return
    for k in range(taps):  # the outputs that read padding
        if left > 0:
            copy_padded(axis, itemsize, to + k * to_tap * itemsize, to_row, x, x_row, rows, q + at[k], left, 0)
        if right < count:
            copy_padded(axis, itemsize, to + (k * to_tap + right) * itemsize, to_row, x, x_row, rows,
                        q + at[k] + right * step, count - right, zeros)
    if right == count:
        count += zeros
    else:
        count = right
    to += left * itemsize
    x += (q + at[0] + left * step + axis.inner_shift) * itemsize
    for k in range(rows):
        active_kernels(itemsize).transpose(to + k * to_row * itemsize, to_tap, x + k * x_row * itemsize, step, right - left,
                                           taps, count - left)


cdef void fill_band(const Axis *axis, const Band *band, Py_ssize_t itemsize, const Py_ssize_t *origin,
                    const Py_ssize_t *count, const char *x, Py_ssize_t x_c, Py_ssize_t channels,
                    char *to) noexcept nogil:
    """The band of `count` outputs from `origin`, for `channels` channels x_c elements apart."""
    cdef Py_ssize_t c, pd, ph, d, src_d
    cdef Py_ssize_t slots_d = band.block[0] + axis[0].shift_max, slots_h = band.block[1] + axis[1].shift_max
    cdef char *lines
    for c in range(channels):
        for pd in range(axis[0].phases):
            for d in range(count[0] + axis[0].shift_max):
                src_d = source_at(&axis[0], axis[0].residue[pd] + (origin[0] + d) * axis[0].step)
                lines = to + itemsize * (c * band.channel + (pd * slots_d + d) * band.rows * band.width)
                for ph in range(axis[1].phases):
                    fill_lines(
                        axis, band.width, slots_h * band.width, itemsize,
                        axis[1].residue[ph] + origin[1] * axis[1].step, count[1] + axis[1].shift_max,
                        axis[2].residue, axis[2].phases, origin[2] * axis[2].step, count[2] + axis[2].shift_max,
                        NULL if src_d < 0 else x + itemsize * (c * x_c + src_d * axis[1].size * axis[2].size),
                        lines)
                    lines += axis[2].phases * slots_h * band.width * itemsize


cdef void fill_lines(const Axis *axis, Py_ssize_t width, Py_ssize_t to_tap, Py_ssize_t itemsize, Py_ssize_t q_h,
                     Py_ssize_t rows, const Py_ssize_t *at, Py_ssize_t taps, Py_ssize_t q_w, Py_ssize_t cols,
                     const char *plane, char *to) noexcept nogil:
    """to[tap*to_tap + row*width + col] from coordinates (q_h, q_w + at[tap]) on, a step apart, of a plane (NULL: of zeros)."""
    cdef Py_ssize_t step = axis[1].step, h, k, src_h, row = axis[2].size
    cdef Py_ssize_t top = first_at(q_h, step, axis[1].inner_start, rows)
    cdef Py_ssize_t bottom = top if plane == NULL else first_at(q_h, step, axis[1].inner_stop, rows)
    cdef char *line = to
    for h in range(rows):
        if not top <= h < bottom:
            src_h = source_at(&axis[1], q_h + h * step)
            if plane == NULL or src_h < 0:
                for k in range(taps):
                    memset(line + k * to_tap * itemsize, 0, cols * itemsize)
            else:
                copy_taps(&axis[2], itemsize, line, to_tap, 0, plane + src_h * row * itemsize, 0, 1, at, taps, q_w, cols, 0)
        line += width * itemsize
    if top < bottom:
        copy_taps(&axis[2], itemsize, to + top * width * itemsize, to_tap, width,
                  plane + (q_h + top * step + axis[1].inner_shift) * row * itemsize,
                  step * row if bottom - top > 1 else 0,  # a step may lead far from the plane
                  bottom - top, at, taps, q_w, cols, 0)


cdef Py_ssize_t ceil_div(Py_ssize_t count, Py_ssize_t size) noexcept nogil:
    return (count + size - 1) // size


cdef Py_ssize_t fair_part(Py_ssize_t size, Py_ssize_t part, Py_ssize_t others, int threads) noexcept nogil:
    """The part of `size` for a task: `part`, or less where the tasks, `others` for each part, are so few that the thread with
    most of them would have more to do than with smaller ones."""
    cdef Py_ssize_t tasks, smaller
    if threads <= 1 or size == 0 or others == 0:
        return part
    tasks = ceil_div(size, part) * others
    if tasks >= 2 * threads:
        return part
    smaller = ceil_div(size, ceil_div(ceil_div(tasks, threads) * threads, others))
    if ceil_div(ceil_div(size, smaller) * others, threads) * smaller < ceil_div(tasks, threads) * part:
        return smaller
    return part


cdef void share_block(const Axis *axis, Py_ssize_t others, int threads, Py_ssize_t *block) noexcept nogil:
    """Cut a block, of which there are `others` for each, along the first axis where that leaves threads less to do."""
    cdef Py_ssize_t i, part, blocks = others
    for i in range(3):
        if axis[i].out == 0:
            return
        blocks *= ceil_div(axis[i].out, block[i])
    for i in range(3):
        part = fair_part(axis[i].out, block[i], blocks // ceil_div(axis[i].out, block[i]), threads)
        if part < block[i]:
            block[i] = part
            return


cdef void choose_block(const Axis *axis, Py_ssize_t channels, Py_ssize_t itemsize, size_t budget,
                       Py_ssize_t pixels, Py_ssize_t *block) noexcept nogil:
    """The largest block, whole rows first, of at most `pixels` outputs whose band fits `budget` bytes."""
    cdef Band band
    cdef Py_ssize_t i, grown
    block[0] = 1
    block[1] = 1
    block[2] = max(1, min(axis[2].out, pixels))
    band_layout(axis, block, itemsize, &band)
    while block[2] > 1 and <size_t>(band.channel * channels * itemsize) > budget:
        block[2] = (block[2] + 1) // 2
        band_layout(axis, block, itemsize, &band)
    for i in range(1, -1, -1):
        if block[i + 1] < axis[i + 1].out:
            break
        while block[i] < axis[i].out:
            grown = block[i] + 1
            if block[0] * block[1] * block[2] // block[i] * grown > pixels:
                break
            block[i] = grown
            band_layout(axis, block, itemsize, &band)
            if <size_t>(band.channel * channels * itemsize) > budget:
                block[i] = grown - 1
                break
    for i in range(3):  # equal blocks instead of a small last one
        grown = (axis[i].out + block[i] - 1) // max(block[i], 1)
        block[i] = (axis[i].out + grown - 1) // max(grown, 1)
