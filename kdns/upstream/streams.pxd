cimport cython

from kdns.upstream.steps cimport Wait


@cython.final
cdef class Asked(Wait):
    cdef readonly object ask
    cdef readonly double sent, until


@cython.final
cdef class Streams:
    cdef readonly object target, settings, context, meter
    cdef readonly str proto
    cdef public Py_ssize_t limit
    cdef unsigned long long[:] _cells
    cdef readonly list _connections
    cdef Connection _current
    cdef double _limited_until
    cdef readonly double max_age
    cdef Py_ssize_t _ended_after, _hits, _misses
    cdef object _room

    @cython.locals(connection=Connection, hits=cython.Py_ssize_t, cells="unsigned long long[:]")
    cpdef object ask(self, object ask, double now, double until)
    @cython.locals(
        best=Connection, connection=Connection, opened=Connection, hits=cython.Py_ssize_t,
        cells="unsigned long long[:]", most=cython.Py_ssize_t,
    )
    cdef Connection _pick(self, double now)
    @cython.locals(connection=Connection)
    cdef _evict(self, double now)
    cpdef moved(self)


@cython.final
cdef class Connection:
    cdef Streams _pool
    cdef object _loop, _buffer, _view, _connecting, _socket
    cdef readonly dict waiting
    cdef readonly object _transport
    cdef list _out
    cdef Py_ssize_t _filled, _put, _answers
    cdef bint _ended
    cdef double _opened, _heard
    cdef public double idle_since

    cdef Py_ssize_t load(self) except -1
    cdef bint takes_more(self, double now) except -1
    @cython.locals(asked=Asked, body=bytes)
    cdef Asked put(self, object ask, double now, double until)
    cpdef _flush(self)
    cpdef filled(self, Py_ssize_t nbytes)
    @cython.locals(end=cython.Py_ssize_t, at=cython.Py_ssize_t, following=cython.Py_ssize_t)
    cdef _messages(self, bytes data, list answered)
    @cython.locals(asked=Asked)
    cdef _take(self, bytes data, list answered)
