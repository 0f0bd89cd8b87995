cimport cython

from kdns.server.packet_cache cimport Entry, PacketCache
from kdns.wire cimport names
from kdns.zone.lookup cimport ZoneView
from kdns.zone.reader cimport Reader

cdef int _QUESTION_AT, _OPT_SIZE, _ANSWER, _NO_DATA, _NO_NAME, _LEAST_LIMIT
cdef int _A, _AAAA, _CNAME, _DS, _OPT, _IN, _CD, _RA, _FLAGS, _LONGEST_LABEL, _LONGEST_NAME, _EXPIRED, _SYNCED
cdef int _TTL, _DATA_SIZE
cdef bytes _OWNER, _CLASS, _POD
cdef dict _KINDS

@cython.final
cdef class DirectZone:
    cdef readonly Py_ssize_t index
    cdef readonly ZoneView view
    cdef readonly bytes origin
    cdef readonly str plugin
    cdef readonly object block
    cdef readonly tuple counted
    cdef readonly bint recursion
    cdef readonly bytes bound
    cdef bint _denies, _of_data
    cdef dict _falls
    cdef list _fall_sizes
    cdef bytes _pods
    cdef object _soa, _denial
    cdef dict _soas

    @cython.locals(view=ZoneView)
    cpdef bint serves(self)
    cpdef bint denies(self, bytes name)
    cpdef bytes authority(self, Py_ssize_t at)

@cython.final
cdef class Direct:
    cdef dict _by_zone
    cdef list _sizes
    cdef Reader _reader
    cdef bint _inside, _moving
    cdef object _directory
    cdef unsigned long long[:] _cells
    cdef str _proto, _family
    cdef tuple _opts
    cdef dict _heads, _indexes

    @cython.locals(
        size=cython.Py_ssize_t, at=cython.Py_ssize_t, length=cython.Py_ssize_t, end=cython.Py_ssize_t,
        rest=cython.Py_ssize_t, qtype=cython.int, do=cython.int, name=bytes, octets="const unsigned char *",
    )
    cpdef Entry answer(self, bytes key, PacketCache cache)
    @cython.locals(
        view=ZoneView, kind=cython.int, record=bytes, found=bytes, flags=cython.int, end=cython.Py_ssize_t, cell=cython.Py_ssize_t,
        index=cython.Py_ssize_t, octets="const unsigned char *", cells="unsigned long long[:]", value=bytes, head=bytes,
        response=bytes, entry=Entry,
    )
    cdef Entry _look_up(
        self, bytes key, bytes name, int qtype, int do, bint edns, DirectZone zone, PacketCache cache
    )
    cdef bytes _head(self, int flags, int kind, bint edns)
    @cython.locals(wanted=cython.longlong)
    cdef Py_ssize_t _index(
        self, DirectZone zone, int kind, int qtype, int do, Py_ssize_t size, Py_ssize_t length
    ) except -1
    cdef bint _look(self)
    cdef _enter(self)
    cpdef leave(self)

@cython.locals(
    at=cython.Py_ssize_t, size=cython.Py_ssize_t, end=cython.Py_ssize_t, length=cython.Py_ssize_t, rtype=cython.int,
    one=cython.bint, octets="const unsigned char *", found=bytes,
)
cpdef bytes address(bytes value, int qtype)
