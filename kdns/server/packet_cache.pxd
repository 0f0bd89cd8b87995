cimport cython

from kdns.observe.counters cimport QueryCounters

cdef int _VERSIONS

@cython.final
cdef class Turns:
    cdef readonly Py_ssize_t at, bytes, end, size, start, step
    cdef readonly object twice

    cpdef object next(self, object response, long long now)

@cython.final
cdef class Countdown:
    cdef unsigned long long[:] _cells
    cdef tuple _counted
    cdef object _asked, _current, _rotation, _ttls, _turns
    cdef long long _expires, _left
    cdef bint _begun
    cdef readonly Py_ssize_t bytes
    cdef readonly long long until

    @cython.locals(left=cython.longlong, cell=cython.Py_ssize_t)
    cpdef object next(self, object response, long long now)

@cython.final
@cython.freelist(256)
cdef class Entry:
    cdef readonly object response
    cdef readonly Py_ssize_t cell
    cdef readonly object turns, block
    cdef readonly tuple hashes
    cdef public unsigned long long seen, stamp

    @cython.locals(
        response=bytes, counters=QueryCounters, cells="unsigned long long[:]", cell=cython.Py_ssize_t,
        size=cython.Py_ssize_t, length=cython.Py_ssize_t,
    )
    cpdef bytes answer(self, bytes query, object client, object local, object proto, object started)

@cython.final
cdef class PacketCache:
    cdef object _changes, _budget, _lock, _cells
    cdef bytearray _asked
    cdef unsigned long long[:] _versions
    cdef Py_ssize_t _bytes, _old_bytes, _most
    cdef public dict young, old
    cdef public unsigned long long seen

    @cython.locals(number=cython.Py_hash_t, slot=cython.Py_ssize_t, mark=cython.int)
    cpdef bint wants(self, bytes key)
    @cython.locals(entry=Entry)
    cpdef Entry find(self, bytes key, long long now)
    cdef bint _holds(self, Entry entry) except -1
    @cython.locals(stamp=cython.ulonglong, number=cython.ulonglong)
    cdef unsigned long long _stamp(self, tuple hashes) except? 0
    cdef _drop(self, bytes key)
    @cython.locals(size=cython.Py_ssize_t, before=cython.Py_ssize_t, more=cython.Py_ssize_t)
    cpdef put(self, bytes key, Entry entry, unsigned long long seen)
    @cython.locals(versions="unsigned long long[:]", number=cython.ulonglong, before=cython.Py_ssize_t)
    cpdef sync(self)
