# SPDX-License-Identifier: BSD-3-Clause
"""Cross entropy: what is left to do with the log-probabilities and the probabilities of softmax.

Arrays are contiguous [outer][classes][inner]; a row is one outer and one inner index. t_rc is the target times the class
weights w_c: of class targets t_rc = w_c*((1 - s)*(c is the target) + s/C), or zero where the class is `ignored`; of probabilities
q_rc it is w_c*((1 - s)*q_rc + s/C). All sums are in float64 and have one fixed order.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.memory cimport address, block_alloc, block_free

cnp.import_array()

ctypedef fused real:
    float
    double

cdef enum:
    CHAIN = 64  # classes of a partial sum

cdef struct Job:
    const int64_t *target  # classes of the rows; NULL: there are probabilities
    const char *q
    const char *weight     # NULL: ones
    double smoothing
    int64_t ignored
    Py_ssize_t outer, classes, inner


cdef inline double weight_of(const Job *job, Py_ssize_t c, const real *kind) noexcept nogil:
    """`kind` says the type of the weights, here and below; it may be NULL."""
    return 1.0 if job.weight == NULL else (<const real *>job.weight)[c]


cdef int set_target(Job *job, cnp.ndarray target, weight, double smoothing, int64_t ignored,
                    Py_ssize_t outer, Py_ssize_t classes, Py_ssize_t inner) except -1:
    cdef Py_ssize_t i
    cdef bint wrong = False
    job.target, job.q = NULL, NULL
    job.weight = address(weight)
    job.smoothing, job.ignored = smoothing, ignored
    job.outer, job.classes, job.inner = outer, classes, inner
    if cnp.PyArray_TYPE(target) != cnp.NPY_INT64:
        job.q = address(target)
        return 0
    job.target = <const int64_t *>address(target)
    with nogil:
        for i in range(outer * inner):
            wrong = job.target[i] != ignored and not 0 <= job.target[i] < classes
            if wrong:
                break
    if wrong:
        raise ValueError(f"target: expected classes in [0, {classes}), got {job.target[i]}")
    return 0


cdef double *room_for(Py_ssize_t rows, Py_ssize_t inner) except NULL:
    cdef double *room = <double *>block_alloc((rows + inner) * sizeof(double))
    if room == NULL:
        raise MemoryError("fastconv: no memory for the sums of rows")
    return room


cdef double total(const double *rows, Py_ssize_t count) noexcept nogil:
    return active_kernels(sizeof(double)).sum(rows, count)


cdef double divisor_of(const Job *job, const real *kind, double *rows) noexcept nogil:
    """What "mean" divides by: the weights of the targets, or the number of rows of probabilities. `rows` is for its use."""
    cdef Py_ssize_t r, count = job.outer * job.inner
    if job.target == NULL:
        return <double>count
    for r in range(count):
        rows[r] = 0 if job.target[r] == job.ignored else weight_of(job, job.target[r], kind)
    return total(rows, count)


cdef void sum_rows(const Job *job, const real *log_p, double *rows) noexcept nogil:
    """rows[r] = sum_c t_rc * log_p[r][c], where a zero t silences an infinite log_p; without log_p sum_c t_rc.

    Beyond the rows is room for partial sums.
    """
    cdef Py_ssize_t o, c, i, r, at
    cdef double w, t
    cdef double share = job.smoothing / job.classes
    cdef double *part = rows + job.outer * job.inner
    memset(rows, 0, job.outer * job.inner * sizeof(double))
    if job.target != NULL:
        for r in range(job.outer * job.inner):
            if job.target[r] != job.ignored:
                c = job.target[r]
                at = (r // job.inner * job.classes + c) * job.inner + r % job.inner
                t = (1 - job.smoothing) * weight_of(job, c, log_p)
                if t != 0:
                    rows[r] = t if log_p == NULL else t * log_p[at]
        if share == 0:
            return
    for o in range(job.outer):
        for c in range(job.classes):
            w = weight_of(job, c, log_p)
            if c % CHAIN == 0:
                memset(part, 0, job.inner * sizeof(double))
            for i in range(job.inner):
                at = (o * job.classes + c) * job.inner + i
                t = w * share
                if job.target == NULL:
                    t += w * (1 - job.smoothing) * (<const real *>job.q)[at]
                if t != 0:
                    part[i] += t if log_p == NULL else t * log_p[at]
            if c % CHAIN == CHAIN - 1 or c == job.classes - 1:
                for i in range(job.inner):
                    r = o * job.inner + i
                    if job.target == NULL or job.target[r] != job.ignored:
                        rows[r] += part[i]


def losses(log_p, target, weight, double smoothing, int64_t ignored, Py_ssize_t outer, Py_ssize_t classes,
           Py_ssize_t inner, loss):
    """Write the rows' losses, -sum_c t_rc * log_p_rc, unless `loss` is None. Gives their sum, and what "mean" divides it by."""
    cdef Job job
    cdef Py_ssize_t r, count = outer * inner
    cdef double whole, divisor
    cdef char *data = address(log_p)
    cdef char *y = address(loss)
    cdef bint wide = log_p.itemsize == sizeof(double)
    cdef double *rows
    set_target(&job, target, weight, smoothing, ignored, outer, classes, inner)
    rows = room_for(count, inner)
    with nogil:
        if wide:
            divisor = divisor_of(&job, <const double *>data, rows)
            sum_rows(&job, <const double *>data, rows)
        else:
            divisor = divisor_of(&job, <const float *>data, rows)
            sum_rows(&job, <const float *>data, rows)
        whole = -total(rows, count)
        for r in range(count):
            if y != NULL and wide:
                (<double *>y)[r] = 0 - rows[r]
            elif y != NULL:
                (<float *>y)[r] = <float>(0 - rows[r])
    block_free(rows)
    return whole, divisor


cdef void subtract_targets(const Job *job, const double *scale, bint alike, real *dz) noexcept nogil:
    """dz[r][c] -= t_rc * scale[r], or of all rows `alike` scale[0]."""
    cdef Py_ssize_t o, c, i, r, at
    cdef double w, t, share = job.smoothing / job.classes
    if job.target != NULL:
        for r in range(job.outer * job.inner):
            if job.target[r] != job.ignored:
                c = job.target[r]
                at = (r // job.inner * job.classes + c) * job.inner + r % job.inner
                t = (1 - job.smoothing) * weight_of(job, c, <const real *>dz)
                dz[at] = <real>(dz[at] - t * scale[0 if alike else r])
        if share == 0:
            return
    for o in range(job.outer):
        for c in range(job.classes):
            w = weight_of(job, c, <const real *>dz)
            for i in range(job.inner):
                r, at = o * job.inner + i, (o * job.classes + c) * job.inner + i
                t = w * share
                if job.target == NULL:
                    t += w * (1 - job.smoothing) * (<const real *>job.q)[at]
                elif job.target[r] == job.ignored:
                    continue
                dz[at] = <real>(dz[at] - t * scale[0 if alike else r])


def factors(target, weight, double smoothing, int64_t ignored, Py_ssize_t outer, Py_ssize_t classes,
            Py_ssize_t inner, scale, factor, bint mean):
    """factor[r] = scale * sum_c t_rc; `scale` (float64) is one number, or one for each row, and "mean" divides it, in place."""
    cdef Job job
    cdef Py_ssize_t r, count = outer * inner, scale_count = scale.size
    cdef double divisor
    cdef double *scales = <double *>address(scale)
    cdef char *y = address(factor)
    cdef bint wide = factor.itemsize == sizeof(double), alike = scale.ndim == 0
    cdef double *rows
    set_target(&job, target, weight, smoothing, ignored, outer, classes, inner)
    rows = room_for(count, inner)
    with nogil:
        if wide:
            divisor = divisor_of(&job, <const double *>NULL, rows)
            sum_rows(&job, <const double *>NULL, rows)
        else:
            divisor = divisor_of(&job, <const float *>NULL, rows)
            sum_rows(&job, <const float *>NULL, rows)
        for r in range(scale_count if mean else 0):
            scales[r] = scales[r] / divisor if divisor != 0 else 0
        for r in range(count):
            rows[r] *= scales[0 if alike else r]
            if wide:
                (<double *>y)[r] = rows[r]
            else:
                (<float *>y)[r] = <float>rows[r]
    block_free(rows)


def subtract(target, weight, double smoothing, int64_t ignored, Py_ssize_t outer, Py_ssize_t classes,
             Py_ssize_t inner, scale, dz):
    """dz[r][c] -= t_rc * scale[r]; targets are those that `factors` has checked."""
    cdef Job job
    cdef const double *scales = <const double *>address(scale)
    cdef char *y = address(dz)
    cdef bint wide = dz.itemsize == sizeof(double), alike = scale.ndim == 0
    set_target(&job, target, weight, smoothing, ignored, outer, classes, inner)
    with nogil:
        if wide:
            subtract_targets(&job, scales, alike, <double *>y)
        else:
            subtract_targets(&job, scales, alike, <float *>y)
