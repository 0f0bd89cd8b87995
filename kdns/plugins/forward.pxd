cimport cython

from kdns.upstream.group cimport Group


@cython.final
cdef class Handler:
    cdef tuple _forwards
    cdef bint _everywhere



@cython.final
cdef class _Forwarder:
    cdef object _forward, _region
    cdef readonly Group _group
    cdef tuple _zones, _excepted
    cdef Py_ssize_t _waiting, _most
    cdef bint _force_tcp, _prefer_udp
    cdef readonly bint everywhere
