cimport cython

@cython.final
cdef class Reader:
    cdef readonly long long commit, floor
    cdef object _changes, _env, _databases, _names, _zones, _mutex, _txn, _cursor, _set_range, _key, _value, _snapshots
    cdef int _depth

    cdef object _begin(self)
    cpdef enter(self)
    cpdef leave(self)
    @cython.locals(found=bytes)
    cpdef bytes find(self, bytes key)
    cpdef object before(self, bytes key)
