# SPDX-License-Identifier: BSD-3-Clause
"""The input gradient as a product and its fold: columns = w^T dy, each entry added to the cell that im2col takes it from.

For kernels of which the correlation with dy would multiply much padding, on small maps, and for large strides, where the phases
of the input have few taps each. A task keeps the columns of some rows of dy of one image and folds them from L2.
"""

from fastconv.kernels.conv_im2col cimport PIXELS, Columns, multiply, set_tiles, start_columns
from fastconv.kernels.correlate cimport PACKED_LIMIT, Job, run_packed, start_job
from fastconv.kernels.fastconv cimport FC_NV_MAX
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.lattice cimport Lattice, band_pitch
from fastconv.kernels.memory cimport address
from fastconv.kernels.unfold cimport Fold, clear_rows, cut_rows, fold_rows, fold_workspace, readers, start_fold

from fastconv.kernels.lattice import row as pixels_row

cdef enum:
    # Columns of as many rows of dy, at least of PIXELS pixels, are folded at a time: they stay in L2. A constant, because the
    # order of sums follows from it.
    COLUMNS_BYTES = 256 << 10
    # Columns of a task: where those pixels have more, it has some of the channels.
    LIMIT_BYTES = 512 << 10

cdef struct Gradient:
    Columns product        # the first member: tasks get the address of its job
    Fold fold
    Py_ssize_t rows, most  # of a plane of dy, and of those at a time
    Py_ssize_t pixels      # multiplied at a time
    # Tasks of an image and group: each has some rows of dx or, where all of them read the one row of dy, some cells of each.
    Py_ssize_t parts
    Py_ssize_t channels    # of a group, whose planes of dx are written
    char *dx
    Py_ssize_t dx_n, dx_g
    Py_ssize_t product_bytes, columns_bytes


cdef void task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Gradient *all = <const Gradient *>argument
    cdef Fold fold = all.fold
    cdef Columns product = all.product
    cdef Py_ssize_t size = fold.axis[2 if all.rows == 1 else 1].size, first, stop, begin, end
    cdef Py_ssize_t block = 0, row, rows, width, pixel, i, n, group
    cdef Py_ssize_t *at = <Py_ssize_t *>workspace
    cdef char *columns = workspace + all.product_bytes
    cdef char *dx
    first = number % all.parts * size // all.parts
    stop = (number % all.parts + 1) * size // all.parts
    number //= all.parts
    n = number % product.job.batch
    group = product.job.group0 + number // product.job.batch
    dx = all.dx + (n * all.dx_n + group * all.dx_g) * fold.itemsize
    pixel = n * all.rows * fold.axis[2].out
    product.job.y_c = fold.columns_tap
    for i in range(all.pixels):
        at[i] = i
    if all.rows == 1:
        dx += first * fold.itemsize
        pixel += cut_rows(&fold, first, stop)
        first = 0
        stop = fold.axis[1].size
    width = fold.axis[2].out
    clear_rows(&fold, dx, all.channels, first, stop)
    readers(&fold, first, stop, &begin, &end)
    while block < end:
        row = max(block, begin)
        rows = min(block + all.most, end) - row
        block += all.most
        if rows <= 0:
            continue
        i = 0
        while i < rows * width:
            product.job.y = columns + (i - group * product.job.outputs * fold.columns_tap) * fold.itemsize
            multiply(&product, group, 0, product.job.panels, pixel + row * width + i,
                     min(all.pixels, rows * width - i), workspace)
            i += all.pixels
        fold_rows(&fold, columns, row, rows, dx, all.channels, first, stop, columns + all.columns_bytes)


def run(Lattice lattice, dy, w, dx, Py_ssize_t groups, bint transposed, bias, residual, int activation, int threads,
        max_workspace):
    """As in the other algorithms, for input gradients (`transposed`) over the lattice of the forward convolution."""
    cdef Gradient all
    cdef Columns *product = &all.product
    cdef Job *job = &product.job
    cdef Py_ssize_t channels = w.shape[1], outputs = len(w) // groups, taps = lattice.taps, item = dx.itemsize
    cdef Py_ssize_t width = lattice.axis[2].out, limit = LIMIT_BYTES, c, pixels, column, most, workspace, used = 0
    cdef Py_ssize_t images = dy.size // (len(w) * lattice.outputs), tasks = groups * images
    cdef Py_ssize_t nr = FC_NV_MAX * active_kernels(item).lanes
    over, weights = pixels_row(lattice.outputs), w.reshape(len(w), channels * taps, 1)
    if max_workspace is not None:
        limit = min(limit, max_workspace)
    all.rows = lattice.axis[0].out * lattice.axis[1].out
    all.most = max(COLUMNS_BYTES // (channels * taps * width * item), (PIXELS + width - 1) // width)
    all.most = min(all.rows, all.most)
    pixels = (all.most * width + nr - 1) // nr * nr
    start_fold(&all.fold, lattice, item, band_pitch(pixels, item))
    all.pixels = min(pixels, PIXELS)
    all.parts = 1
    if threads and tasks % threads and tasks < 4 * threads:
        all.parts = min(all.fold.axis[2 if all.rows == 1 else 1].size, max(2, (threads + tasks - 1) // tasks))
    all.dx_g = channels * all.fold.plane
    all.dx_n = groups * all.dx_g
    column = taps * all.fold.columns_tap * item
    most = max(1, min(limit // column, PACKED_LIMIT // (outputs * taps * item)))  # channels at a time
    for c in range(0, channels, most):
        all.channels = min(most, channels - c)
        some = weights if all.channels == channels else weights[:, c * taps:(c + all.channels) * taps]
        start_job(job, over, dy, some, dy, groups, True, None, None, -1)
        job.batch = images
        start_columns(product)
        product.whole = True
        product.outputs = job.outputs  # a task has all of them
        job.tasks = job.task_panels = 0
        all.product_bytes = set_tiles(product, all.pixels // nr)
        all.columns_bytes = (all.channels * column + 63) // 64 * 64
        all.dx = address(dx) + c * all.fold.plane * item
        workspace = all.product_bytes + all.columns_bytes + fold_workspace(&all.fold, all.channels)
        used = max(used, workspace)
        if threads:
            run_packed(job, None, task, job.batch * all.parts, workspace, threads)
    return used
