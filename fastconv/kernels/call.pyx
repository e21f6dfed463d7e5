# SPDX-License-Identifier: BSD-3-Clause
"""Calls that were made before: what was checked and decided for the first one is remembered for those that look the same.

All that a function checks, and all it decides, follows from the signature of a call: the types and shapes of its arrays, the
values of its options and the instruction set. A call with a known signature allocates its results and runs. Only exact
ndarrays that kernels take as they are, prepared weights, and exact ints, floats, bools, strings, None and tuples of these have
a signature; every other call, and every wrong one, takes the long way. So do calls whose arrays are converted first. Kernels
check what depends on the elements of arrays.
"""

import weakref
from threading import Lock

cimport numpy as cnp
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from fastconv.kernels.correlate cimport Weights
from fastconv.kernels.isa cimport active_row
from fastconv.kernels.memory cimport AXES_MAX, fresh

cnp.import_array()

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    PyObject *PyTuple_GET_ITEM(object items, Py_ssize_t at)  # borrowed
    object PyObject_Vectorcall(object function, PyObject **arguments, size_t count, PyObject *names)

cdef enum:
    SIGNATURE_MAX = 512  # bytes; calls with longer ones take the long way
    NESTING = 3          # a pair of paddings, in the pairs of all axes, in the options
    OPERANDS_MAX = 6     # of a call: its arrays but results, and what is no part of the signature
    RESULTS_MAX = 3
    ARGUMENTS_MAX = 16   # of a kernel
    CONSTANT = -1        # an argument that is no Place; the others are numbers of Places
    AT_RESULT = OPERANDS_MAX
    AT_WEIGHTS = OPERANDS_MAX + RESULTS_MAX
    AT_TEAM = OPERANDS_MAX + RESULTS_MAX + 1
    WRITEABLE = 64       # beyond NumPy's type numbers
    FROZEN_LEAST = 4096  # bytes; smaller weights are packed as fast as they are looked up
    # The packed forms of read-only weights may take this many times their bytes, and a little: the largest, Winograd's of 3x3
    # kernels, takes four times; forms of few outputs are filled up to whole vectors.
    FORMS = 5
    FORMS_LEAST = 1 << 20

cdef struct Signature:
    char *at
    char *end


cdef inline bint put(Signature *s, char tag, const void *value, Py_ssize_t size) noexcept:
    if s.end - s.at <= size:
        return False
    s.at[0] = tag
    if size:  # C does not allow NULL even for no bytes
        memcpy(s.at + 1, value, size)
    s.at += 1 + size
    return True


cdef bint put_option(Signature *s, object value, int nesting) except -1:
    """Whether `value` has a signature. Equal ones are the same value: 1, 1.0 and True are not."""
    cdef int64_t number
    cdef double real
    cdef int overflow
    cdef Py_ssize_t size
    cdef const char *text
    if value is None:
        return put(s, b"n", NULL, 0)
    if type(value) is bool:
        return put(s, b"T" if value else b"F", NULL, 0)
    if type(value) is float:
        real = value
        return put(s, b"f", &real, sizeof(real))
    if type(value) is int:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        return not overflow and put(s, b"i", &number, sizeof(number))
    if type(value) is str and PyUnicode_IS_COMPACT_ASCII(value):
        text = PyUnicode_AsUTF8AndSize(value, &size)
        return put(s, b"s", &size, sizeof(size)) and put(s, b"=", text, size)
    if type(value) is tuple and nesting:
        size = len(<tuple>value)
        if not put(s, b"t", &size, sizeof(size)):
            return False
        for item in <tuple>value:
            if not put_option(s, item, nesting - 1):
                return False
        return True
    return False


cdef inline bint freezable(object w) noexcept:
    """Whether nobody can write to `w`, but by making it writable again: a read-only array that owns its data."""
    return (
        cnp.PyArray_CheckExact(w)
        and not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>w)
        and cnp.PyArray_CHKFLAGS(<cnp.ndarray>w, cnp.NPY_ARRAY_OWNDATA)
        and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>w)
        and cnp.PyArray_NBYTES(<cnp.ndarray>w) >= FROZEN_LEAST
        and cnp.PyArray_TYPE(<cnp.ndarray>w) in (cnp.NPY_FLOAT32, cnp.NPY_FLOAT64)
    )


cdef inline int type_of(object value) noexcept:
    """NumPy's type number of an array or of Weights; -1 for None."""
    if value is None:
        return -1
    return cnp.PyArray_TYPE((<Weights>value).array if type(value) is Weights else <cnp.ndarray>value)


cdef inline bint put_array(Signature *s, object value) noexcept:
    """Whether `value` is None, or an array or Weights that kernels take as they are."""
    if value is None:
        return put(s, b"n", NULL, 0)
    cdef cnp.ndarray array
    cdef char kind
    if type(value) is Weights:
        array = (<Weights>value).array
    elif not cnp.PyArray_CheckExact(value):
        return False
    else:
        array = value
    if (type(value) is Weights or freezable(value)) and not put(s, b"w", NULL, 0):
        return False
    kind = <char>cnp.PyArray_TYPE(array)
    if kind not in (cnp.NPY_FLOAT32, cnp.NPY_FLOAT64, cnp.NPY_INT64, cnp.NPY_BOOL) or not cnp.PyArray_ISCARRAY_RO(array):
        return False
    if cnp.PyArray_ISWRITEABLE(array):
        kind += WRITEABLE
    return (
        put(s, kind, NULL, 0)
        and put(s, <char>cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array),
                cnp.PyArray_NDIM(array) * sizeof(cnp.npy_intp))
    )


cdef bytes signature(tuple options, tuple arrays, out):
    """The key of a call; None when it has none."""
    cdef char buffer[SIGNATURE_MAX]
    cdef Signature s
    cdef const void *row = active_row()
    s.at, s.end = buffer, buffer + SIGNATURE_MAX
    put(&s, b"r", &row, sizeof(row))
    for array in arrays:
        if not put_array(&s, array):
            return None
    if not put_array(&s, out) or not put_option(&s, options, NESTING):
        return None
    return PyBytes_FromStringAndSize(buffer, s.at - buffer)


cdef bint apart(cnp.ndarray out, tuple arrays):
    """Whether the bytes of a contiguous `out` overlap with those of none of `arrays`, each contiguous, Weights or None."""
    cdef cnp.ndarray array
    cdef char *a
    cdef char *b = <char *>cnp.PyArray_DATA(out)
    for each in arrays:
        if each is None:
            continue
        array = (<Weights>each).array if type(each) is Weights else each
        a = <char *>cnp.PyArray_DATA(array)
        if a + cnp.PyArray_NBYTES(array) > b and b + cnp.PyArray_NBYTES(out) > a:
            return False
    return True


cdef class Memo:
    """A dictionary bounded in entries and in bytes: the oldest entries make room for new ones."""

    cdef dict values
    cdef dict sizes
    cdef object changing
    cdef readonly Py_ssize_t entries_max, bytes_max, bytes

    def __init__(self, Py_ssize_t entries_max, Py_ssize_t bytes_max):
        self.entries_max, self.bytes_max = entries_max, bytes_max
        self.changing = Lock()
        self.clear()

    def __len__(self):
        return len(self.values)

    def clear(self):
        with self.changing:
            self.values, self.sizes, self.bytes = {}, {}, 0

    def get(self, key):
        cdef dict values = self.values  # held: comparing keys may run Python code, and `clear` in another thread then
        return values.get(key)

    def put(self, key, value, Py_ssize_t size):
        """Keep `value`, of `size` bytes; one that is larger than everything may be is not kept.

        While another thread, or a finalizer within this call, is at it nothing is kept: a later call will do.
        """
        if not self.changing.acquire(False):
            return
        try:
            if size > self.bytes_max or key in self.values:
                return
            while self.values and (len(self.values) >= self.entries_max or self.bytes + size > self.bytes_max):
                oldest = next(iter(self.values))
                del self.values[oldest]
                self.bytes -= <Py_ssize_t>self.sizes.pop(oldest)
            self.values[key] = value
            self.sizes[key] = size
            self.bytes += size
        finally:
            self.changing.release()

    def remember(self, Call call, Py_ssize_t size, tuple options, tuple given, out, tuple arrays):
        """Keep the call for the signature of what was given, if it has one and the kernel's `arrays` are of the same types."""
        key = signature(options, given, out)
        if key is None or (out is not None and type_of(out) != call.results[0].kind):
            return
        for each, array in zip(given, arrays):
            if type_of(each) != type_of(array):
                return
        self.put(key, call, size)

    def drop(self, key):
        """Forget one entry; like `put`, not while somebody else is at it."""
        if not self.changing.acquire(False):
            return
        try:
            if self.values.pop(key, None) is not None:
                self.bytes -= <Py_ssize_t>self.sizes.pop(key)
        finally:
            self.changing.release()


cdef class Place:
    """Stands for an argument that differs from call to call: an operand or a result, by its number, or the team's size."""

    cdef int number

    def __init__(self, int number):
        self.number = number


OPERANDS = tuple([Place(i) for i in range(OPERANDS_MAX)])
RESULTS = tuple([Place(AT_RESULT + i) for i in range(RESULTS_MAX)])
WEIGHTS = Place(AT_WEIGHTS)  # operand 1, or what was packed of it in an earlier call
TEAM = Place(AT_TEAM)

cdef struct Result:
    int axes, kind, itemsize  # axes -1: there is none
    cnp.npy_intp shape[AXES_MAX]


cdef class Call:
    """A checked call whose arrays are still to come: a kernel, and its `arguments` with Places among them.

    Results look like `results`; those that are None are not wanted. `threads` gives the team's size, or is None for one thread.
    No argument is an array of the caller.
    """

    cdef object kernel, threads
    cdef tuple arguments
    cdef int place[ARGUMENTS_MAX]
    cdef int count, result_count
    cdef Result results[RESULTS_MAX]

    def __init__(self, kernel, tuple arguments, threads, tuple results):
        cdef Result *result
        self.count, self.result_count = <int>len(arguments), <int>len(results)
        if self.count > ARGUMENTS_MAX:
            raise ValueError(f"arguments: expected at most {ARGUMENTS_MAX}, got {self.count}")
        self.kernel, self.arguments, self.threads = kernel, arguments, threads
        for i, argument in enumerate(arguments):
            self.place[i] = (<Place>argument).number if type(argument) is Place else CONSTANT
        for i, array in enumerate(results):
            result = &self.results[i]
            result.axes = -1
            if array is not None:
                result.axes, result.kind = cnp.PyArray_NDIM(<cnp.ndarray>array), type_of(array)
                result.itemsize = cnp.PyArray_ITEMSIZE(<cnp.ndarray>array)
                for axis in range(result.axes):
                    result.shape[axis] = cnp.PyArray_DIM(<cnp.ndarray>array, axis)

    def team(self):
        """The number of threads it takes here and now."""
        return 1 if self.threads is None else self.threads()

    cdef tuple fresh_results(self, out):
        """Results to be computed; `out` is the first one when given."""
        if self.result_count == 1:
            return (self.fresh_result(0) if out is None else out,)
        return tuple([self.fresh_result(i) if i or out is None else out for i in range(self.result_count)])

    cdef object fresh_result(self, int i):
        cdef Result *result = &self.results[i]
        return None if result.axes < 0 else fresh(result.axes, result.shape, result.kind, result.itemsize)

    cpdef apply(self, tuple arrays, tuple results):
        """Compute the results from arrays that kernels take as they are, of the signature's shapes.

        Gives the only result, or all.
        """
        cdef PyObject *arguments[ARGUMENTS_MAX]
        cdef int i, place
        threads = 1 if self.threads is None else self.threads()
        weights = None
        for i in range(self.count):
            place = self.place[i]
            if place == CONSTANT:
                arguments[i] = PyTuple_GET_ITEM(self.arguments, i)
            elif place == AT_TEAM:
                arguments[i] = <PyObject *>threads
            elif place == AT_WEIGHTS:
                weights = arrays[1]
                if freezable(weights):
                    weights = frozen(weights)
                arguments[i] = <PyObject *>weights
            elif place >= AT_RESULT:
                arguments[i] = PyTuple_GET_ITEM(results, place - AT_RESULT)
            else:
                arguments[i] = PyTuple_GET_ITEM(arrays, place)
        PyObject_Vectorcall(self.kernel, arguments, self.count, NULL)
        return results[0] if self.result_count == 1 else results


cdef class Again:
    """Makes calls like those in `made` once more; while `settings.verbose` says that they print lines, they go the long way."""

    cdef Memo made
    cdef object settings

    def __init__(self, Memo made, settings):
        self.made, self.settings = made, settings

    def call(self, tuple options, tuple arrays, out=None, tuple unsigned=()):
        """The only result of the Call that was kept for this signature, or all; None when the long way must be taken.

        `unsigned` are more operands, which are no part of the signature.
        """
        cdef Call call
        if self.settings.verbose:
            return None
        key = signature(options, arrays, out)
        if key is None:
            return None
        call = self.made.values.get(key)
        if call is None:
            return None
        if out is not None and not (cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out) and apart(out, arrays)):
            return None
        return call.apply(arrays + unsigned if unsigned else arrays, call.fresh_results(out))


# id of a read-only array -> (weak reference to it, what was packed of it)
frozen_weights = Memo(64, 320 << 20)


def frozen(w):
    """Weights of a read-only array, packed in an earlier call; any other `w` as it is.

    Weights look at the array's bytes: one that was made writable, changed and made read-only again is packed again.
    """
    if not freezable(w):
        return w
    key = id(w)
    cdef Py_ssize_t limit = FORMS * cnp.PyArray_NBYTES(<cnp.ndarray>w) + FORMS_LEAST
    found = frozen_weights.get(key)
    if found is None or found[0]() is not w:
        frozen_weights.drop(key)
        found = (weakref.ref(w, lambda _: frozen_weights.drop(key)), {})
        frozen_weights.put(key, found, limit)
    return Weights(w, found[1], limit)
