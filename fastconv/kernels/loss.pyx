# SPDX-License-Identifier: BSD-3-Clause
"""Cross entropy: what is left to do with the log-probabilities and the probabilities of softmax.

Arrays are contiguous [outer][classes][inner]; a row is one outer and one inner index. t_rc is the target times the class
weights w_c: of class targets t_rc = w_c*((1 - s)*(c is the target) + s/C), or zero where the class is `ignored`; of
probabilities q_rc it is w_c*((1 - s)*q_rc + s/C). All sums are in float64 and have one fixed order.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from fastconv.kernels.isa cimport active_kernels
from fastconv.kernels.memory cimport address, block_alloc, block_free

cnp.import_array()

ctypedef fused real:
    float
    double

cdef enum:
    CHAIN = 64  # classes of a partial sum

cdef struct Job:
    int64_t *target        # classes of the rows, a copy: what was checked stays; NULL: there are probabilities q
    const char *q
    int64_t ignored
    Py_ssize_t outer, classes, inner, count  # count: of rows
    bint smooth            # s is not zero
    double *weight         # w_c; and the memory of what follows
    double *share          # w_c * s/C
    double *rest           # w_c * (1 - s)
    double *rows           # sums
    double *part           # partial sums, of `inner` rows


cdef Py_ssize_t wrong_class(const Job *job) noexcept nogil:
    """The first row whose class is none; job.count where there is no such row."""
    cdef Py_ssize_t r = 0
    while r < job.count and (job.target[r] == job.ignored or 0 <= job.target[r] < job.classes):
        r += 1
    return r


cdef int start(Job *job, cnp.ndarray target, weight, double smoothing, int64_t ignored,
               Py_ssize_t outer, Py_ssize_t classes, Py_ssize_t inner) except -1:
    """Check the classes and set all; the caller frees job.weight."""
    cdef Py_ssize_t c, r
    cdef char *given = address(weight)
    cdef char *from_caller
    cdef bint wide = weight is not None and cnp.PyArray_ITEMSIZE(<cnp.ndarray>weight) == sizeof(double)
    job.target = job.q = NULL
    job.ignored, job.smooth = ignored, smoothing != 0
    job.outer, job.classes, job.inner, job.count = outer, classes, inner, outer * inner
    job.weight = <double *>block_alloc((3 * classes + 2 * job.count + inner) * sizeof(double))
    if job.weight == NULL:
        raise MemoryError("fastconv: no memory for the sums of rows")
    job.share, job.rest = job.weight + classes, job.weight + 2 * classes
    job.rows, job.part = job.weight + 3 * classes, job.weight + 3 * classes + 2 * job.count
    if cnp.PyArray_TYPE(target) != cnp.NPY_INT64:
        job.q = address(target)
    else:
        job.target = <int64_t *>(job.rows + job.count)
        from_caller = address(target)
        with nogil:
            memcpy(job.target, from_caller, job.count * sizeof(int64_t))
            r = wrong_class(job)
        if r < job.count:
            wrong = job.target[r]
            block_free(job.weight)
            raise ValueError(f"target: expected classes in [0, {classes}), got {wrong}")
    for c in range(classes):
        job.weight[c] = 1 if given == NULL else (<double *>given)[c] if wide else (<float *>given)[c]
        job.share[c], job.rest[c] = job.weight[c] * (smoothing / classes), job.weight[c] * (1 - smoothing)
    return 0


cdef inline bint is_ignored(const Job *job, Py_ssize_t r) noexcept nogil:
    return job.target != NULL and job.target[r] == job.ignored


cdef inline Py_ssize_t at_target(const Job *job, Py_ssize_t r) noexcept nogil:
    """Where the target's class of a row is among the logits."""
    return (r // job.inner * job.classes + job.target[r]) * job.inner + r % job.inner


cdef double total(const double *values, Py_ssize_t count) noexcept nogil:
    return active_kernels(sizeof(double)).sum(values, count)


cdef double divisor_of(Job *job) noexcept nogil:
    """What "mean" divides by: the weights of the targets, or the number of rows of probabilities."""
    cdef Py_ssize_t r
    if job.target == NULL:
        return <double>job.count
    for r in range(job.count):
        job.rows[r] = 0 if is_ignored(job, r) else job.weight[job.target[r]]
    return total(job.rows, job.count)


cdef inline double term(double a, double b, const real *q, const real *values, Py_ssize_t at) noexcept nogil:
    """(a + b*q) * value, zero where the first factor is, even if the value is not finite; NULL: all values are one."""
    cdef double t = a if q == NULL else a + b * q[at]
    if values == NULL:
        return t
    return 0 if t == 0 else t * values[at]


cdef void add_sums(Job *job, const double *a, const double *b, const real *q, const real *values) noexcept nogil:
    """rows[r] += sum_c (a_c + b_c*q_rc) * values_rc; without q the second summand is zero, without values they are one."""
    cdef Py_ssize_t o, c, i, k, last, at
    cdef double part
    for o in range(job.outer):
        last = 0
        while last < job.classes:
            c, last = last, min(last + CHAIN, job.classes)
            at = (o * job.classes + c) * job.inner
            if job.inner == 1:
                part = 0
                for k in range(c, last):
                    part += term(a[k], b[k], q, values, at + k - c)
                job.rows[o] += part
                continue
            memset(job.part, 0, job.inner * sizeof(double))
            for k in range(c, last):
                for i in range(job.inner):
                    job.part[i] += term(a[k], b[k], q, values, at + i)
                at += job.inner
            for i in range(job.inner):
                job.rows[o * job.inner + i] += job.part[i]


cdef void sum_losses(Job *job, const real *log_p) noexcept nogil:
    """rows[r] = sum_c t_rc * log_p[r][c]; a zero t silences an infinite log_p."""
    cdef Py_ssize_t r
    memset(job.rows, 0, job.count * sizeof(double))
    if job.target == NULL:
        add_sums(job, job.share, job.rest, <const real *>job.q, log_p)
        return
    if job.smooth:
        add_sums(job, job.share, job.rest, <const real *>NULL, log_p)
    for r in range(job.count):
        if is_ignored(job, r):
            job.rows[r] = 0
        elif job.rest[job.target[r]] != 0:
            job.rows[r] += job.rest[job.target[r]] * log_p[at_target(job, r)]


cdef void sum_targets(Job *job, const real *q) noexcept nogil:
    """rows[r] = sum_c t_rc; `q` is job.q, or NULL."""
    cdef Py_ssize_t r
    cdef double whole
    if q != NULL:
        memset(job.rows, 0, job.count * sizeof(double))
        add_sums(job, job.share, job.rest, q, <const real *>NULL)
        return
    whole = total(job.share, job.classes)
    for r in range(job.count):
        job.rows[r] = 0 if is_ignored(job, r) else whole + job.rest[job.target[r]]


cdef void subtract_targets(const Job *job, const double *scale, real *dz) noexcept nogil:
    """dz[r][c] -= t_rc * scale[r]"""
    cdef Py_ssize_t o, c, i, at
    cdef const real *q = <const real *>job.q
    if job.target != NULL:
        for i in range(job.count):
            if not is_ignored(job, i):
                at = at_target(job, i)
                dz[at] = <real>(dz[at] - job.rest[job.target[i]] * scale[i])
        if not job.smooth:
            return
    for o in range(job.outer):
        at = o * job.classes * job.inner
        if job.inner == 1:
            for c in range(job.classes):
                dz[at + c] = <real>(dz[at + c] - scale[o] * (job.share[c] if q == NULL else
                                                             job.share[c] + job.rest[c] * q[at + c]))
            continue
        for c in range(job.classes):
            for i in range(job.inner):
                dz[at + i] = <real>(dz[at + i] - scale[o * job.inner + i] * (
                    job.share[c] if q == NULL else job.share[c] + job.rest[c] * q[at + i]))
            at += job.inner


def losses(log_p, target, weight, double smoothing, int64_t ignored, Py_ssize_t outer, Py_ssize_t classes,
           Py_ssize_t inner, loss):
    """Write the rows' losses, -sum_c t_rc * log_p_rc, unless `loss` is None. Gives their sum, and what "mean" divides it by."""
    cdef Job job
    cdef Py_ssize_t r
    cdef double whole, divisor
    cdef char *data = address(log_p)
    cdef char *y = address(loss)
    cdef bint wide = log_p.itemsize == sizeof(double)
    start(&job, target, weight, smoothing, ignored, outer, classes, inner)
    with nogil:
        divisor = divisor_of(&job)
        if wide:
            sum_losses(&job, <const double *>data)
        else:
            sum_losses(&job, <const float *>data)
        whole = -total(job.rows, job.count)
        for r in range(job.count if y != NULL else 0):
            if wide:
                (<double *>y)[r] = 0 - job.rows[r]
            else:
                (<float *>y)[r] = <float>(0 - job.rows[r])
        block_free(job.weight)
    return whole, divisor


def factors(target, weight, double smoothing, int64_t ignored, Py_ssize_t outer, Py_ssize_t classes,
            Py_ssize_t inner, dloss, bint mean, scale, factor):
    """scale[r] = dloss, which is one number or one for each row (float64), divided for "mean", and zero where ignored.

    factor[r] = scale[r] * sum_c t_rc.
    """
    cdef Job job
    cdef Py_ssize_t r
    cdef double divisor = 1
    cdef const double *given = <const double *>address(dloss)
    cdef double *scales = <double *>address(scale)
    cdef char *y = address(factor)
    cdef bint wide = factor.itemsize == sizeof(double), alike = dloss.ndim == 0
    start(&job, target, weight, smoothing, ignored, outer, classes, inner)
    with nogil:
        if mean:
            divisor = divisor_of(&job)
        if wide:
            sum_targets(&job, <const double *>job.q)
        else:
            sum_targets(&job, <const float *>job.q)
        for r in range(job.count):
            scales[r] = given[0 if alike else r] / divisor if divisor != 0 and not is_ignored(&job, r) else 0
            if wide:
                (<double *>y)[r] = job.rows[r] * scales[r]
            else:
                (<float *>y)[r] = <float>(job.rows[r] * scales[r])
        block_free(job.weight)


def subtract(target, weight, double smoothing, int64_t ignored, Py_ssize_t outer, Py_ssize_t classes,
             Py_ssize_t inner, scale, dz):
    """dz[r][c] -= t_rc * scale[r], the scale being that of `factors`."""
    cdef Job job
    cdef const double *scales = <const double *>address(scale)
    cdef char *y = address(dz)
    cdef bint wide = dz.itemsize == sizeof(double)
    start(&job, target, weight, smoothing, ignored, outer, classes, inner)
    with nogil:
        if wide:
            subtract_targets(&job, scales, <double *>y)
        else:
            subtract_targets(&job, scales, <float *>y)
        block_free(job.weight)
