cimport cython

from kdns.server.packet_cache cimport Entry, PacketCache
from kdns.server.secure cimport Secure

@cython.final
cdef class Connections:
    cdef readonly object region, open, followed, epoll
    cdef public object following
    cdef readonly Py_ssize_t unsent
    cdef readonly dict shaking, shares
    cdef dict _servers
    cdef object _due, _turns
    cdef bint _taking
    cdef long long _most, _held
    cdef Py_ssize_t _gauge, _followers

    @cython.locals(connection=Connection, server=TcpServer, servers=dict, found=list, listening=list, fd=cython.int, events=cython.int, served=cython.int)
    cpdef _look(self)
    cdef add(self, int fd, Connection connection)
    cdef _show(self)
    cdef bint follow(self, int fd, Connection connection, object zone) except -1
    @cython.locals(one=Connection)
    cdef dict _weights(self)
    @cython.locals(one=Connection)
    cdef Connection _most_following(self, dict shares, Connection newest=*)
    cdef serve_follower(self, Connection connection, int events)
    cdef spend(self, double started)
    cpdef list everyone(self)
    cdef touch(self, int fd, Connection connection)
    @cython.locals(connection=Connection)
    cdef Connection _idlest(self)
    cdef remove(self, int fd, Connection connection)
    cdef hold(self, Connection connection, Py_ssize_t size)
    @cython.locals(connection=Connection, found=Connection, most=cython.Py_ssize_t, size=cython.Py_ssize_t)
    cdef Connection _largest(self)
    @cython.locals(first=Connection)
    cdef begin_shaking(self, int fd, Connection connection)
    cdef shake_later(self, Connection connection)
    @cython.locals(connection=Connection)
    cpdef _shake_some(self)
    cdef turn_later(self, Connection connection)
    @cython.locals(until=cython.double)
    cpdef _take_turns(self)

@cython.final
cdef class TcpServer:
    cdef readonly object responder, limits, region, via, local, certificate, label
    cdef readonly Connections connections
    cdef readonly PacketCache cache
    cdef readonly int family
    cdef readonly bint wildcard
    cdef unsigned long long[:] counters, cells
    cdef Py_ssize_t hits, misses, same
    cdef object block, _socket, _pause, _kind

    @cython.locals(fd=cython.int, connection=Connection)
    cpdef accept(self)
    cdef count_durations(self, long long started)

@cython.freelist(64)
cdef class Connection:
    cdef readonly Py_ssize_t held, pending
    cdef readonly bint follows
    cdef TcpServer _server
    cdef object _socket
    cdef tuple _client, _local
    cdef Secure _secure
    cdef int _fd, _watched
    cdef Py_ssize_t _most, _overhead, _told
    cdef long long _asked
    cdef bint _open, _half_closed, _turn
    cdef bytes _rest
    cdef bytearray _unsent
    cdef double _heard, _started, _blocked, _closing, _ended, _questioned, _streamed, _paced
    cdef long long _written, _taken
    cdef list _streams

    cdef begin(self)
    cdef happened(self, int events)
    @cython.locals(events=cython.int)
    cdef _watch(self)
    @cython.locals(data=bytes, now=cython.longlong)
    cdef _read(self)
    @cython.locals(data=bytes)
    cdef _came(self, bytes data, long long now)
    cdef _begin_secure(self)
    cdef bytes _unseal(self, bytes data)
    cdef bytes _opened(self)
    @cython.locals(secure=Secure, now=cython.longlong)
    cpdef shake(self)
    cdef _agreed(self)
    cdef _shook(self, result)
    cdef _break(self, reason)
    cdef _leave(self)
    cdef _half_close(self)
    @cython.locals(
        server=TcpServer, data=bytes, size=cython.Py_ssize_t, at=cython.Py_ssize_t, end=cython.Py_ssize_t,
        count=cython.Py_ssize_t, unsent=cython.Py_ssize_t, pending=cython.Py_ssize_t, most=cython.longlong,
        answers=cython.bint, reply=bytes, replies=list,
    )
    cdef _proceed(self, long long now)
    cdef _keep(self, Py_ssize_t done)
    cdef Py_ssize_t excess(self)
    @cython.locals(size=cython.Py_ssize_t)
    cdef _note(self)
    cdef _end(self)
    cdef _say_end(self)
    @cython.locals(server=TcpServer, cache=PacketCache, entry=Entry, key=bytes)
    cdef bytes _take(self, bytes query, long long now)
    @cython.locals(
        server=TcpServer, response=bytes, size=cython.Py_ssize_t, length=cython.Py_ssize_t, cell=cython.Py_ssize_t,
    )
    cdef bytes _reply(self, bytes query, Entry entry, long long now)
    cdef _follow(self, zone)
    cdef become_follower(self)
    cdef bint _is_answer(self, bytes data, long long now) except -1
    cpdef notify(self, bytes data)
    cpdef next_turn(self)
    @cython.locals(sent=cython.Py_ssize_t)
    cdef _send_on(self, transfer)
    @cython.locals(count=cython.int, now=cython.longlong, started=cython.double)
    cpdef _go_on(self)
    @cython.locals(before=cython.longlong)
    cdef long long _look_at_pace(self, double now) except? -1
    @cython.locals(seconds=cython.double)
    cdef bint _is_in_the_way(self, double now) except -1
    cdef _write(self, bytes data)
    @cython.locals(sent=cython.Py_ssize_t)
    cdef _transmit(self, bytes data)
    @cython.locals(sent=cython.Py_ssize_t)
    cdef _flush(self)
    cdef _resume(self, long long now)
    cpdef expire(self, double now)
    cdef bint _is_idle(self, double now) except -1
    cdef close(self, reason)
    cdef _finish(self)
    cpdef evict(self)
    cdef abort(self)
    cdef _count(self, reason)
