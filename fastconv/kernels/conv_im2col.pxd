# SPDX-License-Identifier: BSD-3-Clause
"""Products of packed weights and columns, some pixels at a time."""

from fastconv.kernels.correlate cimport Job

cdef enum:
    CUTS = 8      # most places where the pixels of a row are cut
    TAPS = 63     # most of a mask
    PIXELS = 128  # of a task: enough of them pass each weight that comes to L2

cdef struct Columns:
    Job job                       # the first member: tasks get its address
    Py_ssize_t nr                 # pixels of a tile
    Py_ssize_t terms, chain       # of an output, and of those multiplied at a time: of some whole channels, or of one's taps
    Py_ssize_t pixels             # of all images
    Py_ssize_t tiles, blocks      # of those; a task has one block of tiles
    Py_ssize_t wider              # panels of one output more than the others
    Py_ssize_t range_panels       # panels that pass over all tiles of a task
    Py_ssize_t outputs            # most of a task
    # Bytes of a task: the places of its pixels in y, the columns of one tile and of all that are kept
    Py_ssize_t places_bytes, tile_bytes, columns_bytes
    # Taps that lie on padding are left out: terms are [tap][channel], and rows are cut where other taps begin to read pixels.
    bint by_tap
    bint skips                    # by_tap, and weights are finite
    Py_ssize_t cuts
    Py_ssize_t cut[CUTS]
    bint own                      # every output reads the pixel at its own place and nothing else
    bint whole                    # y has room for whole tiles
    bint stream                   # whole vectors are stored past the caches

cdef void start_columns(Columns *all) noexcept
cdef Py_ssize_t set_tiles(Columns *all, Py_ssize_t tiles) noexcept
cdef void multiply(const Columns *all, Py_ssize_t group, Py_ssize_t panel0, Py_ssize_t panel1, Py_ssize_t first,
                   Py_ssize_t pixels, char *workspace) noexcept nogil
