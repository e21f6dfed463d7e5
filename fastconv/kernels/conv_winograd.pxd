# SPDX-License-Identifier: BSD-3-Clause
"""Tiles and their transforms, which the convolution and its weight gradient share."""

from fastconv.kernels.fastconv cimport fc_kernels, fc_winograd_input_fn
from fastconv.kernels.lattice cimport Axis

# The tiles of one operand. A map is dilation[0] x dilation[1] phases, each a map of its own. The rows of tiles are numbered by
# image, depth, phase along h, place in the phase, and phase along w.
cdef struct Tiling:
    const fc_kernels *kernels
    Axis axis[3]
    fc_winograd_input_fn transform
    Py_ssize_t itemsize, x_n, x_c
    Py_ssize_t dilation[2]         # along h and w: pixels from neighbour to neighbour in a tile
    Py_ssize_t step, size          # such neighbours from tile to tile, and of a tile
    Py_ssize_t tile_rows           # of one phase
    Py_ssize_t run                 # rows of tiles that share one band
    Py_ssize_t band_row            # elements of a row of the band
    Py_ssize_t v_p, v_t, v_b       # elements of V from position to position, tile to tile, and vector to vector of channels

# Blocks of tiles: rectangles of the plane that all rows of tiles form together.
cdef struct Blocks:
    Py_ssize_t rows, cols, row_block, col_block, col_blocks, count
    Py_ssize_t tiles               # of a full block

cdef void start_tiling(Tiling *g, const fc_kernels *kernels, Py_ssize_t itemsize, const Axis *axis, Py_ssize_t taps,
                       Py_ssize_t step, Py_ssize_t size) noexcept nogil
cdef Py_ssize_t rows_of_tiles(const Tiling *g, Py_ssize_t batch) noexcept nogil
cdef Py_ssize_t columns_of_tiles(const Tiling *g) noexcept nogil
cdef void transform_tiles(const Tiling *g, const char *x, Py_ssize_t channels, Py_ssize_t row, Py_ssize_t rows,
                          Py_ssize_t col, Py_ssize_t cols, char *band, char *v) noexcept nogil
cdef void choose_blocks(Blocks *blocks, Py_ssize_t rows, Py_ssize_t cols, Py_ssize_t tiles) noexcept nogil
cdef void block_at(const Blocks *blocks, Py_ssize_t number, Py_ssize_t *row, Py_ssize_t *rows, Py_ssize_t *col,
                   Py_ssize_t *cols) noexcept nogil
cdef size_t choose_band(Tiling *g, Py_ssize_t rows, Py_ssize_t cols) noexcept nogil
