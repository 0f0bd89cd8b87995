cimport cython


@cython.final
cdef class Group:
    cdef double _patience
    cdef object _max_attempts, _failover, _settings, _around, _targets, _resolvers
    cdef dict _known, _addresses
    cdef readonly dict _unresolved
    cdef Py_ssize_t _turn
    cdef readonly list upstreams

    cdef list _order(self)
