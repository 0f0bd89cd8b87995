cimport cython

from kdns.upstream.streams cimport Streams


@cython.final
cdef class Upstream:
    cdef readonly object target
    cdef readonly str name
    cdef public Py_ssize_t fails
    cdef object _settings, _around, _meter, _standing, _datagrams, _https, _timer, _probe
    cdef readonly Streams _streams
    cdef bint _checking, _closed, _fast
    cdef double _read_timeout

    @cython.locals(until=cython.double)
    cdef object _transfer(self, object ask, bint tcp, double now, double give_up)
