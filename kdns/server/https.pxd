cimport cython

from kdns.server.packet_cache cimport Entry
from kdns.server.tcp cimport Connection, TcpServer


cdef class HttpConnection(Connection):
    cdef object _session, _todo
    cdef long long _stream, _requests, _progress
    cdef bint _leaving, _warned
    cdef double _stuck

    cdef _came(self, bytes data, long long now)
    cdef _agreed(self)
    cdef _proceed(self, long long now)
    cdef _note(self)
    cpdef expire(self, double now)
    cdef _leave(self)
    cdef _use(self, session)
    @cython.locals(until=cython.double)
    cdef _converse(self, long long now)
    cdef _settle(self)
    cdef _answer(self, request, long long now)
    cdef _respond(self, long long stream, bytes message)
    cdef _refuse(self, long long stream, status)
    cdef _count_status(self, status)
    cdef _send(self)
