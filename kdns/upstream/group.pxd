cimport cython


@cython.final
cdef class Group:
    cdef object _settings, _around, _targets, _resolvers
    cdef dict _known, _addresses, _unresolved
    cdef Py_ssize_t _turn
    cdef readonly list upstreams

    cdef list _order(self)
