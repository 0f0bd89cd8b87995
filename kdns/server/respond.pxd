cimport cython

from kdns.server.packet_cache cimport Entry, PacketCache
from kdns.upstream.steps cimport Run


@cython.final
cdef class Pending(Run):
    cdef readonly object responder, query, via, block, seen, waited, started
    cdef public object deliver, entry, transfer


@cython.final
cdef class Responder:
    cdef object _label, _blocks, _region, _report, _dump, _top, _waiting, _make_direct, _views, _notified
    cdef Py_ssize_t _panics
    cdef readonly object dropped, direct
    cdef readonly bint personal

    cpdef object respond(self, bytes data, object via, object client, object local)
    cpdef finish(self, Pending pending, object deliver)
    cpdef finished(self, Pending pending, object response, object error)
    @cython.locals(key=bytes, wire=bytes, entry=Entry)
    cdef Entry _finished(self, object query, object response, object via, object block, object seen)
    cdef object _run(self, object steps, object query, object via, object block)
