cimport cython


@cython.final
cdef class Secure:
    cdef object _incoming, _outgoing, _object
    cdef object _first
    cdef bytes _behind, _said
    cdef bint _left, _renegotiable
    cdef readonly bint done, ended

    cpdef feed(self, bytes data)
    @cython.locals(said=bytes, behind=bytes)
    cpdef bint shake(self) except -1
    @cython.locals(found=bytes, data=bytes)
    cpdef bytes read(self)
    cpdef bytes seal(self, bytes data)
    cpdef bytes leave(self)
    @cython.locals(said=bytes)
    cpdef bytes rest(self)
