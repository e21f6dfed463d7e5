# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalisation, channel-major: all planes of a few channels pass while they are in the cache.

Arrays are contiguous [n][channel][plane...]; per-channel parameters are float64. Every sum has one fixed order.
"""

cimport numpy as cnp
from libc.math cimport sqrt

from fastconv.kernels.fastconv cimport FC_COLUMNS, fc_kernels
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.memory cimport address, block_alloc, block_free
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

cdef enum:
    TASK = 1 << 11  # elements of a task's planes in one image, or one plane

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
        job.kernels.affine(job.y + at, job.x + at, job.batch, stride, job.plane, job.mean[first + i], scale[i], shift[i])
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
                                      mean_dy[i], slope[i], scale[i])
    if job.plane == 1:
        at = first * job.itemsize
        job.kernels.column_backward(job.y + at, job.dy + at, job.x + at, job.batch, stride, count, job.mean + first,
                                    mean_dy, slope, scale)


cdef start(Job *job, object x, object y, object weight, object bias, object mean, object invstd):
    job.itemsize = x.itemsize
    job.kernels = active_kernels(job.itemsize)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(<cnp.ndarray>x)
    job.batch, job.channels, job.plane = shape[0], shape[1], 1
    for i in range(2, cnp.PyArray_NDIM(<cnp.ndarray>x)):
        job.plane *= shape[i]
    job.x, job.y = address(x), address(y)
    job.weight, job.bias = <const double *>address(weight), <const double *>address(bias)
    job.mean, job.invstd = <double *>address(mean), <double *>address(invstd)
    if job.plane == 1:  # several tasks, of whole cache lines
        job.group = min(<Py_ssize_t>FC_COLUMNS, (job.channels // 4 + 31) // 32 * 32 + 32)
    else:
        job.group = max(<Py_ssize_t>1, min(<Py_ssize_t>FC_COLUMNS, TASK // max(<Py_ssize_t>1, job.plane)))


cdef Py_ssize_t tasks(const Job *job) noexcept:
    return (job.channels + job.group - 1) // job.group


def train(x, y, weight, bias, double eps, mean, var, invstd, int threads):
    """Write y and the channels' mean, biased variance and invstd."""
    cdef Job job
    start(&job, x, y, weight, bias, mean, invstd)
    job.var, job.eps = <double *>address(var), eps
    run_tasks(train_task, &job, tasks(&job), 0, threads)


cdef const double *doubles(object values, Py_ssize_t channels, double *room):
    """A per-channel array as float64; float32 is widened, to `room`."""
    cdef Py_ssize_t c
    if values is None or cnp.PyArray_ITEMSIZE(<cnp.ndarray>values) == sizeof(double):
        return <const double *>address(values)
    for c in range(channels):
        room[c] = (<const float *>address(values))[c]
    return room


def evaluate(x, mean, var, weight, bias, double eps, y, int threads):
    """Write y for given mean and variance; the per-channel arrays may be float32 too."""
    cdef Job job
    cdef double *room
    cdef const double *variance
    cdef Py_ssize_t c
    start(&job, x, y, None, None, None, None)
    room = <double *>block_alloc(5 * job.channels * sizeof(double))
    if room == NULL:
        raise MemoryError("fastconv: no memory for the channels' statistics")
    variance = doubles(var, job.channels, room)
    job.mean = <double *>doubles(mean, job.channels, room + job.channels)
    job.weight = doubles(weight, job.channels, room + 2 * job.channels)
    job.bias = doubles(bias, job.channels, room + 3 * job.channels)
    job.invstd = room + 4 * job.channels
    for c in range(job.channels):
        job.invstd[c] = 1 / sqrt(variance[c] + eps)
    try:
        run_tasks(evaluate_task, &job, tasks(&job), 0, threads)
    finally:
        block_free(room)


def backward(dy, x, dx, weight, mean, invstd, dweight, dbias, bint constant, int threads):
    """Write dx, dweight and dbias."""
    cdef Job job
    start(&job, x, dx, weight, None, mean, invstd)
    job.dy, job.constant = address(dy), constant
    job.dweight, job.dbias = <double *>address(dweight), <double *>address(dbias)
    run_tasks(backward_task, &job, tasks(&job), 0, threads)
