cimport cython


@cython.final
cdef class Meter:
    cdef object _region, _to, _wrong
    cdef dict _durations
    cdef readonly object cells

    cpdef answered(self, object rcode, long long started)
