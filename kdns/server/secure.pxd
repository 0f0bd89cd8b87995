cimport cython


@cython.final
cdef class Secure:
    cdef object _incoming, _outgoing, _object
    cdef bytes _start
    cdef bint _left, _renegotiable
    cdef readonly bint done, ended

    @cython.locals(size=cython.Py_ssize_t)
    cdef feed(self, bytes data)
    cdef bint shake(self) except -1
    @cython.locals(found=bytes, data=bytes)
    cdef bytes read(self)
    cdef bytes seal(self, bytes data)
    cdef bytes leave(self)
    cdef bytes rest(self)


@cython.locals(at=cython.Py_ssize_t, size=cython.Py_ssize_t, head=bytes)
cdef Py_ssize_t _first_size(bytes data) except -2
