# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalisation, channel-major: all planes of a few channels pass while they are in the cache.

Arrays are contiguous [n][channel][plane...]; per-channel arrays are float32 or float64. Every sum has one fixed order.
"""

cimport numpy as cnp
from libc.math cimport sqrt

from fastconv.kernels.fastconv cimport FC_COLUMNS, fc_kernels
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.memory cimport address, block_alloc, block_free, streams
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

cdef enum:
    TASK = 1 << 11  # elements of a task's planes in one image, or one plane
    # Elements of the rows of a task, where planes are of one element and statistics are given: 256 KiB of float32, which stay
    # in L2 with their results. The fewest rows: each task begins with all channels' parameters, four doubles each, which are
    # then a sixteenth of what it moves or less.
    ROWS = 1 << 16
    ROWS_MIN = 64
    # Otherwise channels of a task of such planes: a quarter of them, in whole pairs of cache lines of float32, and two pairs at
    # least. (With one pair training took 1.07 to 1.2 times as long, 8192 rows of 128.)
    SHARES = 4
    PAIR = 32

cdef struct Job:
    const fc_kernels *kernels
    const char *x
    const char *dy
    char *y                # y, or dx
    const double *weight   # NULL: ones
    const double *bias     # NULL: zeros
    double *mean
    double *invstd         # 1/sqrt(var + eps)
    double *var            # biased
    double *dweight
    double *dbias
    double eps
    bint constant          # backward: mean and invstd do not depend on x (evaluation mode)
    Py_ssize_t batch, channels, plane, itemsize
    Py_ssize_t group       # channels of a task
    Py_ssize_t rows        # or images of a task
    bint stream


cdef inline double weight_of(const Job *job, Py_ssize_t channel) noexcept nogil:
    return 1.0 if job.weight == NULL else job.weight[channel]


cdef void apply(const Job *job, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """y = (x - mean) * weight*invstd + bias."""
    cdef Py_ssize_t i, stride = job.channels * job.plane, at = first * job.plane * job.itemsize
    cdef double scale[FC_COLUMNS]
    cdef double shift[FC_COLUMNS]
    for i in range(count):
        scale[i] = weight_of(job, first + i) * job.invstd[first + i]
        shift[i] = 0.0 if job.bias == NULL else job.bias[first + i]
    if job.plane == 1:
        job.kernels.column_affine(job.y + at, job.x + at, job.batch, stride, count, job.mean + first, scale, shift)
        return
    for i in range(count):
        job.kernels.affine(job.y + at, job.x + at, job.batch, stride, job.plane, job.mean[first + i], scale[i], shift[i],
                           job.stream)
        at += job.plane * job.itemsize


cdef Py_ssize_t channels_of(const Job *job, Py_ssize_t first) noexcept nogil:
    return min(job.group, job.channels - first)


cdef void train_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t first = number * job.group, count = channels_of(job, first)
    cdef Py_ssize_t c, stride = job.channels * job.plane
    cdef const char *x = job.x + first * job.plane * job.itemsize
    if job.plane == 1:
        job.kernels.column_moments(x, job.batch, stride, count, job.mean + first, job.var + first)
    for c in range(first, first + count):
        if job.plane != 1:
            job.kernels.moments(x, job.batch, stride, job.plane, job.mean + c, job.var + c)
            x += job.plane * job.itemsize
        job.var[c] /= <double>job.batch * job.plane
        job.invstd[c] = 1 / sqrt(job.var[c] + job.eps)
    apply(job, first, count)


cdef void evaluate_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    apply(job, number * job.group, channels_of(job, number * job.group))


cdef void evaluate_rows_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """All channels of some rows, which follow each other in memory."""
    cdef Job part = (<const Job *>argument)[0]
    cdef Py_ssize_t first = number * part.rows, channel = 0, at = first * part.channels * part.itemsize
    part.x += at
    part.y += at
    part.batch = min(part.rows, part.batch - first)
    while channel < part.channels:
        apply(&part, channel, min(<Py_ssize_t>FC_COLUMNS, part.channels - channel))
        channel += FC_COLUMNS


cdef void backward_task(void *argument, Py_ssize_t number, char *workspace) noexcept nogil:
    """xhat = (x - mean)*invstd; dbias = sum dy; dweight = sum dy*xhat;
    dx = weight*invstd * (dy - mean(dy) - xhat*mean(dy*xhat)); evaluation mode has neither mean."""
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t first = number * job.group, count = channels_of(job, first)
    cdef Py_ssize_t i, c, at, stride = job.channels * job.plane
    cdef double share = 0 if job.constant else 1 / (<double>job.batch * job.plane)
    cdef double mean_dy[FC_COLUMNS]
    cdef double slope[FC_COLUMNS]
    cdef double scale[FC_COLUMNS]
    if job.plane == 1:
        at = first * job.itemsize
        job.kernels.column_sums(job.dy + at, job.x + at, job.batch, stride, count, job.mean + first, job.dbias + first,
                                job.dweight + first)
    for i in range(count):
        c = first + i
        at = c * job.plane * job.itemsize
        if job.plane != 1:
            job.kernels.norm_sums(job.dy + at, job.x + at, job.batch, stride, job.plane, job.mean[c], job.dbias + c,
                                  job.dweight + c)
        job.dweight[c] *= job.invstd[c]
        mean_dy[i] = 0 if job.constant else job.dbias[c] * share
        slope[i] = 0 if job.constant else job.dweight[c] * job.invstd[c] * share
        scale[i] = weight_of(job, c) * job.invstd[c]
        if job.plane != 1:
            job.kernels.norm_backward(job.y + at, job.dy + at, job.x + at, job.batch, stride, job.plane, job.mean[c],
                                      mean_dy[i], slope[i], scale[i], job.stream)
    if job.plane == 1:
        at = first * job.itemsize
        job.kernels.column_backward(job.y + at, job.dy + at, job.x + at, job.batch, stride, count, job.mean + first,
                                    mean_dy, slope, scale)


cdef double *start(Job *job, object x, object y, int arrays) except NULL:
    """Set what all passes need. Gives room for so many per-channel arrays."""
    cdef double *room
    job.itemsize = x.itemsize
    job.kernels = active_kernels(job.itemsize)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(<cnp.ndarray>x)
    job.batch, job.channels, job.plane = shape[0], shape[1], 1
    for i in range(2, cnp.PyArray_NDIM(<cnp.ndarray>x)):
        job.plane *= shape[i]
    job.x, job.y = address(x), address(y)
    job.stream = streams(job.y, job.x, x.nbytes, job.plane * job.itemsize)
    if job.plane == 1:
        job.group = (job.channels + SHARES * PAIR - 1) // (SHARES * PAIR) * PAIR
        job.group = min(<Py_ssize_t>FC_COLUMNS, max(<Py_ssize_t>2 * PAIR, job.group))
    else:
        job.group = max(<Py_ssize_t>1, min(<Py_ssize_t>FC_COLUMNS, TASK // max(<Py_ssize_t>1, job.plane)))
    room = <double *>block_alloc(arrays * job.channels * sizeof(double))
    if room == NULL:
        raise MemoryError("fastconv: no memory for the channels' parameters")
    return room


cdef Py_ssize_t tasks(const Job *job) noexcept:
    return (job.channels + job.group - 1) // job.group


cdef double *place(object values, double *room) noexcept:
    """Where a per-channel array is as float64: in place, or in `room`; NULL for None."""
    if values is None or cnp.PyArray_ITEMSIZE(<cnp.ndarray>values) == sizeof(double):
        return <double *>address(values)
    return room


cdef double *doubles(object values, Py_ssize_t channels, double *room) noexcept:
    """The same, with float32 widened."""
    cdef Py_ssize_t c
    cdef double *found = place(values, room)
    if found == room:
        for c in range(channels):
            room[c] = (<const float *>address(values))[c]
    return found


cdef void narrow(object values, Py_ssize_t channels, const double *room) noexcept:
    """Round what is in `room` to a per-channel array, unless that is of float64 and was written in place."""
    cdef Py_ssize_t c
    if cnp.PyArray_ITEMSIZE(<cnp.ndarray>values) != sizeof(double):
        for c in range(channels):
            (<float *>address(values))[c] = <float>room[c]


cdef void update(object running, Py_ssize_t channels, double share, const double *values, double n, double divisor,
                 double *room) noexcept:
    """running = (1 - share)*running + share*values*n/divisor."""
    cdef Py_ssize_t c
    cdef double *kept
    if running is None:
        return
    kept = doubles(running, channels, room)
    for c in range(channels):
        kept[c] = (1 - share) * kept[c] + share * (values[c] * n / divisor)
    narrow(running, channels, kept)


def train(x, weight, bias, running_mean, running_var, double share, double eps, y, mean, invstd, int threads):
    """Write y, and the channels' mean and invstd (float64); update the running statistics, with the unbiased variance."""
    cdef Job job
    cdef double *room = start(&job, x, y, 3)
    cdef double count = <double>job.batch * job.plane
    job.var, job.eps = room, eps
    job.weight = doubles(weight, job.channels, room + job.channels)
    job.bias = doubles(bias, job.channels, room + 2 * job.channels)
    job.mean, job.invstd = <double *>address(mean), <double *>address(invstd)
    try:
        run_tasks(train_task, &job, tasks(&job), 0, threads)
        update(running_mean, job.channels, share, job.mean, 1, 1, room + job.channels)
        update(running_var, job.channels, share, job.var, count, count - 1, room + job.channels)
    finally:
        block_free(room)


def evaluate(x, mean, var, weight, bias, double eps, y, int threads):
    """Write y for given mean and variance."""
    cdef Job job
    cdef double *room = start(&job, x, y, 5)
    cdef const double *variance = doubles(var, job.channels, room)
    cdef Py_ssize_t c, count
    job.mean = doubles(mean, job.channels, room + job.channels)
    job.weight = doubles(weight, job.channels, room + 2 * job.channels)
    job.bias = doubles(bias, job.channels, room + 3 * job.channels)
    job.invstd = room + 4 * job.channels
    for c in range(job.channels):
        job.invstd[c] = 1 / sqrt(variance[c] + eps)
    job.rows = max(<Py_ssize_t>1, ROWS // max(<Py_ssize_t>1, job.channels))
    try:
        if job.plane == 1 and job.rows >= ROWS_MIN:
            count = max(1, ((job.batch + job.rows - 1) // job.rows + threads - 1) // threads * threads)
            job.rows = max(<Py_ssize_t>1, (job.batch + count - 1) // count)  # as many for every thread
            run_tasks(evaluate_rows_task, &job, (job.batch + job.rows - 1) // job.rows, 0, threads)
        else:
            run_tasks(evaluate_task, &job, tasks(&job), 0, threads)
    finally:
        block_free(room)


def backward(dy, x, weight, mean, invstd, bint constant, dx, dweight, dbias, int threads):
    """Write dx, dweight and dbias."""
    cdef Job job
    cdef double *room = start(&job, x, dx, 5)
    job.dy, job.constant = address(dy), constant
    job.stream = job.stream and job.y != job.dy
    job.weight = doubles(weight, job.channels, room)
    job.mean = doubles(mean, job.channels, room + job.channels)
    job.invstd = doubles(invstd, job.channels, room + 2 * job.channels)
    job.dweight = place(dweight, room + 3 * job.channels)
    job.dbias = place(dbias, room + 4 * job.channels)
    try:
        run_tasks(backward_task, &job, tasks(&job), 0, threads)
        narrow(dweight, job.channels, job.dweight)
        narrow(dbias, job.channels, job.dbias)
    finally:
        block_free(room)
