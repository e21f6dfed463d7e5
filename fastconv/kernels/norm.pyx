# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalisation, channel-major: all planes of a channel pass while they are in the cache.

Arrays are contiguous [n][channel][plane]; per-channel parameters are float64. The variance is the exact two-pass sum, and
every sum has one fixed order.
"""

cimport numpy as cnp
from libc.math cimport sqrt

from fastconv.kernels.fastconv cimport fc_kernels
from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.team cimport run_tasks

cnp.import_array()

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


cdef inline Py_ssize_t run_at(const Job *job, Py_ssize_t n, Py_ssize_t channel) noexcept nogil:
    return (n * job.channels + channel) * job.plane * job.itemsize


cdef inline double weight_of(const Job *job, Py_ssize_t channel) noexcept nogil:
    return 1.0 if job.weight == NULL else job.weight[channel]


cdef void apply(const Job *job, Py_ssize_t channel) noexcept nogil:
    """y = (x - mean) * weight*invstd + bias."""
    cdef Py_ssize_t n, at
    cdef double scale = weight_of(job, channel) * job.invstd[channel]
    cdef double shift = 0.0 if job.bias == NULL else job.bias[channel]
    for n in range(job.batch):
        at = run_at(job, n, channel)
        job.kernels.affine(job.y + at, job.x + at, job.plane, job.mean[channel], scale, shift)


cdef void train_task(void *argument, Py_ssize_t channel, char *workspace) noexcept nogil:
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t n
    cdef double total = 0, count = <double>job.batch * job.plane
    for n in range(job.batch):
        total += job.kernels.sum(job.x + run_at(job, n, channel), job.plane)
    job.mean[channel] = total / count
    total = 0
    for n in range(job.batch):
        total += job.kernels.sum_sq_dev(job.x + run_at(job, n, channel), job.plane, job.mean[channel])
    job.var[channel] = total / count
    job.invstd[channel] = 1 / sqrt(job.var[channel] + job.eps)
    apply(job, channel)


cdef void evaluate_task(void *argument, Py_ssize_t channel, char *workspace) noexcept nogil:
    apply(<const Job *>argument, channel)


cdef void backward_task(void *argument, Py_ssize_t channel, char *workspace) noexcept nogil:
    """xhat = (x - mean)*invstd; dbias = sum dy; dweight = sum dy*xhat;
    dx = weight*invstd * (dy - mean(dy) - xhat*mean(dy*xhat)); evaluation mode has neither mean."""
    cdef const Job *job = <const Job *>argument
    cdef Py_ssize_t n, at
    cdef double dbias = 0, dot = 0, count = <double>job.batch * job.plane
    cdef double mean = job.mean[channel], invstd = job.invstd[channel]
    cdef double mean_dy, slope
    for n in range(job.batch):
        at = run_at(job, n, channel)
        dbias += job.kernels.sum(job.dy + at, job.plane)
        dot += job.kernels.sum_dot_dev(job.dy + at, job.x + at, job.plane, mean)
    job.dbias[channel] = dbias
    job.dweight[channel] = dot * invstd
    mean_dy = 0 if job.constant else dbias / count
    slope = 0 if job.constant else dot * invstd * invstd / count
    for n in range(job.batch):
        at = run_at(job, n, channel)
        job.kernels.norm_backward(job.y + at, job.dy + at, job.x + at, job.plane, mean, mean_dy, slope,
                                  weight_of(job, channel) * invstd)


cdef void *address(object array):
    if array is None:
        return NULL
    return cnp.PyArray_DATA(<cnp.ndarray>array)


cdef start(Job *job, object x, object y, object weight, object bias, object mean, object invstd):
    job.itemsize = x.itemsize
    job.kernels = active_kernels(job.itemsize)
    job.batch, job.channels, job.plane = x.shape[0], x.shape[1], x.shape[2]
    job.x, job.y = <const char *>address(x), <char *>address(y)
    job.weight, job.bias = <const double *>address(weight), <const double *>address(bias)
    job.mean, job.invstd = <double *>address(mean), <double *>address(invstd)


def train(x, y, weight, bias, double eps, mean, var, invstd, int threads):
    """Write y and the channels' mean, biased variance and invstd."""
    cdef Job job
    start(&job, x, y, weight, bias, mean, invstd)
    job.var, job.eps = <double *>address(var), eps
    run_tasks(train_task, &job, job.channels, 0, threads)


def evaluate(x, y, weight, bias, mean, invstd, int threads):
    """Write y for given mean and invstd."""
    cdef Job job
    start(&job, x, y, weight, bias, mean, invstd)
    run_tasks(evaluate_task, &job, job.channels, 0, threads)


def backward(dy, x, dx, weight, mean, invstd, dweight, dbias, bint constant, int threads):
    """Write dx, dweight and dbias."""
    cdef Job job
    start(&job, x, dx, weight, None, mean, invstd)
    job.dy, job.constant = <const char *>address(dy), constant
    job.dweight, job.dbias = <double *>address(dweight), <double *>address(dbias)
    run_tasks(backward_task, &job, job.channels, 0, threads)
