cimport cython

from kdns.zone.reader cimport Reader

@cython.final
cdef class ZoneView:
    cdef readonly Py_ssize_t number
    cdef readonly bytes origin, prefix
    cdef readonly object soa
    cdef readonly int state
    cdef readonly bint plain
    cdef long long _commit

    cpdef refresh(self, Reader reader)
    cpdef object find(self, Reader reader, bytes name, int wanted=?)
    cpdef bint exists(self, Reader reader, bytes name)
