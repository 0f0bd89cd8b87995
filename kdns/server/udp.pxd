cimport cython

from kdns.observe.counters cimport QueryCounters
from kdns.server.batch cimport Batch
from kdns.server.direct cimport Direct
from kdns.server.packet_cache cimport Entry, PacketCache

@cython.final
cdef class UdpServer:
    cdef readonly PacketCache cache, personal
    cdef object _socket, _responder, _sampler, _region, _loop, _via, _done, _thread
    cdef Batch _batch, _outgoing
    cdef Direct _direct
    cdef unsigned long long[:] _cells
    cdef unsigned long long[:] _generation
    cdef Py_ssize_t _refused, _hits, _misses
    cdef Py_ssize_t _pending
    cdef list _due
    cdef bint _stopping

    @cython.locals(count=cython.int, started=cython.longlong)
    cdef bint _turn(self, int flags) except -1
    @cython.locals(
        batch=Batch, cache=PacketCache, personal=PacketCache, young=dict, old=dict, seen=cython.ulonglong, lengths="unsigned int[:]", cells="unsigned long long[:]",
        slot=cython.int, first=cython.int, misses=cython.Py_ssize_t, same=cython.Py_ssize_t,
        key=bytes, entry=Entry, response=bytes, length=cython.Py_ssize_t, size=cython.Py_ssize_t,
        cell=cython.Py_ssize_t, counters=QueryCounters, elapsed=cython.longlong,
    )
    cdef _answer(self, int count, long long started, list waiting)
    cdef Entry _miss(self, int slot, bytes key, list waiting)
    cdef _send(self, int start, int end)
