cimport cython

cpdef bytes stamp(bytes data, object offsets, long ttl)
cpdef bint same_question(bytes data, bytes question) except -1

@cython.final
cdef class _Walk:
    cdef bytes data, question, name
    cdef int qtype, flags, rcode
    cdef list counts, ttls, pointers, runs
    cdef long long ttl, negative_ttl
    cdef dict aliases
    cdef set owners
    cdef tuple opt

    @cython.locals(at=cython.Py_ssize_t, section=cython.int, count=cython.int)
    cpdef object relay(self)
    @cython.locals(at=cython.Py_ssize_t, rtype=cython.int, ttl=cython.longlong, size=cython.Py_ssize_t, end=cython.Py_ssize_t, data=bytes, owner=bytes)
    cdef Py_ssize_t _record(self, Py_ssize_t start, int section) except -1
    @cython.locals(at=cython.Py_ssize_t, end=cython.Py_ssize_t)
    cdef list _targets(self, Py_ssize_t at, int rtype, Py_ssize_t size)
    @cython.locals(record=cython.Py_ssize_t, at=cython.Py_ssize_t, behind=cython.Py_ssize_t, opt=tuple)
    cdef _check_run(self, Py_ssize_t start, Py_ssize_t end, bint goes_on)
    cdef bint _answered(self) except -1
    cdef bytes _body(self)
