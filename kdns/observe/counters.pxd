cimport cython

cdef long long _FAST
cdef int _SLOW

@cython.final
cdef class QueryCounters:
    cdef readonly object region
    cdef readonly unsigned long long[:] cells
    cdef object _labels
    cdef readonly dict _index
    cdef Py_ssize_t _duration, _sum

    cpdef object key(
        self, object proto, object family, object qtype_text, object rcode_text, object plugin, bint do,
        Py_ssize_t request_bytes, Py_ssize_t response_bytes,
    )
    @cython.locals(bucket=cython.int, bound=cython.longlong, i=cython.Py_ssize_t, j=cython.Py_ssize_t, total=cython.longlong)
    cpdef duration(self, long long nanoseconds, long long count=?)
