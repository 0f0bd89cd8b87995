cimport cython


@cython.final
cdef class Secure:
    cdef object _incoming, _outgoing, _object
    cdef object _first
    cdef bytes _behind, _said
    cdef bint _left, _renegotiable
    cdef readonly bint done, ended

    cdef feed(self, bytes data)
    @cython.locals(said=bytes, behind=bytes)
    cdef bint shake(self) except -1
    @cython.locals(found=bytes, data=bytes)
    cdef bytes read(self)
    cdef bytes seal(self, bytes data)
    cdef bytes leave(self)
    @cython.locals(said=bytes)
    cdef bytes rest(self)
