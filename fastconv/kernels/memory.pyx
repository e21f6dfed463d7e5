# SPDX-License-Identifier: BSD-3-Clause
"""The recycling allocator of results and workspaces.

First touch of fresh pages costs more than most kernels, so freed blocks are kept, by size class, up to a cap. Blocks are
64-byte aligned, and large ones are advised to be huge pages. Arrays get their block through NumPy's own hook (NEP 49):
they own their data like any other array.
"""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **block, size_t alignment, size_t size)

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *addr, size_t length, int advice)
    int MADV_HUGEPAGE

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    pthread_mutex_t PTHREAD_MUTEX_INITIALIZER
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)

cdef extern from *:
    """
    static pthread_mutex_t fc_memory_lock = PTHREAD_MUTEX_INITIALIZER;
    static int fc_log2(size_t n) { int k = 0; while (n >>= 1) k++; return k; }

    /* For `make sanitize`: what a block has beyond the size that was asked for must not be touched. */
    #ifdef __SANITIZE_ADDRESS__
    #include <sanitizer/asan_interface.h>
    static void fc_fence(char *data, size_t size, size_t rounded)
    {
        ASAN_UNPOISON_MEMORY_REGION(data, rounded);
        ASAN_POISON_MEMORY_REGION(data + size, rounded - size);
    }
    #else
    static void fc_fence(char *data, size_t size, size_t rounded) { (void)data, (void)size, (void)rounded; }
    #endif
    """
    pthread_mutex_t fc_memory_lock
    int fc_log2(size_t) nogil
    void fc_fence(char *data, size_t size, size_t rounded) nogil

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *, size_t) noexcept nogil
        void *(*calloc)(void *, size_t, size_t) noexcept nogil
        void *(*realloc)(void *, void *, size_t) noexcept nogil
        void (*free)(void *, void *, size_t) noexcept nogil
    ctypedef struct PyDataMem_Handler:
        char name[127]
        uint8_t version
        PyDataMemAllocator allocator
    object PyDataMem_SetHandler(object handler)

cnp.import_array()

# A block is a 64-byte header and the data. Size classes are eighths of a power of two: at most 12.5 % is lost.
cdef enum:
    HEADER = 64
    CLASSES = 64 * 8
    HUGE_PAGE = 2 << 20
    SMALL = 4096  # below this NumPy's own cache of small blocks is as good

cdef struct Block:
    size_t size  # bytes of data
    int size_class
    Block *next

cdef Block *free_blocks[CLASSES]
cdef size_t cached = 0
cdef size_t cap = 512 << 20
cdef size_t hits = 0
cdef size_t misses = 0
cdef size_t in_use = 0
cdef size_t peak = 0
memset(free_blocks, 0, sizeof(free_blocks))


cdef int size_class(size_t size, size_t *rounded) noexcept nogil:
    cdef int k = fc_log2(size if size > 64 else 64)
    cdef size_t step = (<size_t>1) << (k - 3)
    cdef size_t eighths = (size + step - 1) // step if size > 64 else 8
    rounded[0] = eighths * step
    return k * 8 + <int>eighths - 8


cdef void lock() noexcept nogil:
    pthread_mutex_lock(&fc_memory_lock)


cdef void unlock() noexcept nogil:
    pthread_mutex_unlock(&fc_memory_lock)


cdef Block *fresh_block(size_t size) noexcept nogil:
    cdef void *block = NULL
    cdef bint huge = size >= HUGE_PAGE
    if posix_memalign(&block, HUGE_PAGE if huge else 64, size + HEADER):
        return NULL
    if huge:
        madvise(block, size + HEADER, MADV_HUGEPAGE)
    return <Block *>block


cdef void *block_alloc(size_t size) noexcept nogil:
    """`size` bytes, 64-byte aligned, not cleared; NULL when there is no memory even after the cache was emptied."""
    global cached, hits, misses, in_use, peak
    cdef size_t rounded
    cdef int cls
    cdef Block *block
    if size >= <size_t>1 << 60:
        return NULL
    cls = size_class(size, &rounded)
    lock()
    block = free_blocks[cls]
    if block != NULL:
        free_blocks[cls] = block.next
        cached -= rounded
        hits += 1
    else:
        misses += 1
        unlock()
        block = fresh_block(rounded)
        if block == NULL:
            release_cached()
            block = fresh_block(rounded)
        if block == NULL:
            return NULL
        block.size = rounded
        block.size_class = cls
        lock()
    in_use += rounded
    if in_use > peak:
        peak = in_use
    unlock()
    fc_fence(<char *>block + HEADER, size, rounded)
    return <char *>block + HEADER


cdef void block_free(void *data) noexcept nogil:
    global cached, in_use
    cdef Block *block
    cdef bint release = False
    if data == NULL:
        return
    block = <Block *>(<char *>data - HEADER)
    if block.size > cap:
        release = True
    elif cached + block.size > cap:
        release_cached()  # sizes that are no longer asked for must not keep out those that are
    lock()
    in_use -= block.size
    if not release:
        block.next = free_blocks[block.size_class]
        free_blocks[block.size_class] = block
        cached += block.size
    unlock()
    if release:
        free(block)


cdef void release_cached() noexcept nogil:
    global cached
    cdef Block *block
    cdef Block *following
    cdef int i
    lock()
    for i in range(CLASSES):
        block = free_blocks[i]
        free_blocks[i] = NULL
        while block != NULL:
            following = block.next
            free(block)
            block = following
    cached = 0
    unlock()


cdef void *handler_malloc(void *ctx, size_t size) noexcept nogil:
    return block_alloc(size)


cdef void *handler_calloc(void *ctx, size_t count, size_t size) noexcept nogil:
    cdef void *data
    if size and count > (<size_t>1 << 60) // size:
        return NULL
    data = block_alloc(count * size)
    if data != NULL:
        memset(data, 0, count * size)
    return data


cdef void *handler_realloc(void *ctx, void *data, size_t size) noexcept nogil:
    cdef void *grown = block_alloc(size)
    cdef size_t old
    if grown == NULL or data == NULL:
        return grown
    old = (<Block *>(<char *>data - HEADER)).size
    fc_fence(<char *>data, old, old)
    memcpy(grown, data, old if old < size else size)
    block_free(data)
    return grown


cdef void handler_free(void *ctx, void *data, size_t size) noexcept nogil:
    block_free(data)


cdef PyDataMem_Handler handler
memcpy(handler.name, b"fastconv", 9)
handler.version = 1
handler.allocator.ctx = NULL
handler.allocator.malloc = handler_malloc
handler.allocator.calloc = handler_calloc
handler.allocator.realloc = handler_realloc
handler.allocator.free = handler_free
cdef object handler_capsule = PyCapsule_New(&handler, "mem_handler", NULL)

pthread_atfork(lock, unlock, unlock)


cdef object fresh(int axes, cnp.npy_intp *shape, int kind, Py_ssize_t itemsize):
    """numpy.empty(shape, dtype) from recycled memory, for the type number of a dtype. Raises MemoryError when there is none."""
    cdef Py_ssize_t size = itemsize, i
    for i in range(axes):
        size = min(<Py_ssize_t>SMALL, size * min(<Py_ssize_t>SMALL, shape[i]))
    if size < SMALL:
        return cnp.PyArray_SimpleNew(axes, shape, kind)
    previous = PyDataMem_SetHandler(handler_capsule)
    try:
        return cnp.PyArray_SimpleNew(axes, shape, kind)
    finally:
        PyDataMem_SetHandler(previous)


def empty(tuple shape, cnp.dtype dtype):
    """numpy.empty(shape, dtype) of a native dtype from recycled memory. Raises MemoryError when there is none."""
    cdef cnp.npy_intp sizes[AXES_MAX]
    cdef Py_ssize_t i
    if len(shape) > AXES_MAX:
        raise ValueError(f"a shape of {len(shape)} axes; arrays have at most {AXES_MAX}")
    for i in range(len(shape)):
        sizes[i] = shape[i]
    return fresh(<int>len(shape), sizes, dtype.type_num, dtype.itemsize)


def is_plain(cnp.ndarray array, cnp.dtype dtype) -> bool:
    """Whether kernels take the array as it is: of `dtype`, native, C-contiguous and aligned."""
    return cnp.PyArray_TYPE(array) == dtype.type_num and cnp.PyArray_ISCARRAY_RO(array)


def set_cap(size_t size) -> None:
    """Keep at most `size` bytes of freed blocks; what is cached now is released first."""
    global cap
    release_cached()
    cap = size


def empty_cache() -> None:
    release_cached()


def stats() -> dict:
    return {"cached": cached, "cap": cap, "in_use": in_use, "peak": peak, "hits": hits, "misses": misses}


def reset_peak() -> None:
    global peak
    peak = in_use
