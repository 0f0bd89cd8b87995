cimport cython

@cython.locals(at=cython.Py_ssize_t, size=cython.Py_ssize_t, length=cython.Py_ssize_t)
cpdef Py_ssize_t question_end(bytes data) except -1

@cython.locals(size=cython.Py_ssize_t, length=cython.Py_ssize_t)
cpdef Py_ssize_t skip_name(bytes data, Py_ssize_t at) except -1

@cython.locals(index=cython.Py_ssize_t, owner=cython.Py_ssize_t, rtype=cython.int, size=cython.Py_ssize_t)
cdef object _records(bytes data, Py_ssize_t at, Py_ssize_t before, Py_ssize_t additionals)

@cython.final
cdef class _Writer:
    cdef readonly object query, rotation
    cdef readonly Py_ssize_t at, end
    cdef readonly bint full
    cdef dict offsets
    cdef readonly list parts

    @cython.locals(count=cython.Py_ssize_t)
    cpdef Py_ssize_t section(self, list records, bint rotate) except -1
    @cython.locals(at=cython.Py_ssize_t)
    cpdef Py_ssize_t negative(self, bytes owner, object rrset) except -1
    @cython.locals(
        count=cython.Py_ssize_t, first=cython.Py_ssize_t, step=cython.Py_ssize_t, fit=cython.Py_ssize_t,
        head=bytes, fixed=bytes, prefix=bytes, rdata=bytes, rdatas=tuple,
    )
    cdef Py_ssize_t _addresses(self, bytes owner, object rrset, bint rotate) except -1
    @cython.locals(count=cython.Py_ssize_t, start=cython.Py_ssize_t, head=bytes, record=bytes)
    cdef Py_ssize_t _any(self, bytes owner, object rrset) except -1
    cdef bint _add(self, bytes record) except -1
    @cython.locals(first_end=cython.Py_ssize_t, second_end=cython.Py_ssize_t, first=bytes)
    cdef bytes _rdata(self, int rtype, bytes rdata, Py_ssize_t at)
    @cython.locals(start=cython.Py_ssize_t, step=cython.Py_ssize_t)
    cdef bytes _name(self, bytes name, object at=?)
    @cython.locals(step=cython.Py_ssize_t, end=cython.Py_ssize_t)
    cdef _remember(self, bytes name, Py_ssize_t at, object upto=?)
