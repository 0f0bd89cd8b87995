cdef class Run


cdef class Wait:
    cdef readonly bint is_done
    cdef public object _asyncio_future_blocking
    cdef object _value, _error, _call, _context
    cdef Run _run

    cpdef set(self, object value)
    cpdef fail(self, object error)
    cdef _wake(self)
    cpdef wake(self, Run run)


cdef class Run:
    cdef object _steps, _task

    cpdef begin(self)
    cpdef go_on(self)
    cpdef wait_for(self, object waited)
    cdef _become_task(self)
    cdef _end(self, object value, object error)
    cpdef ended(self, object value, object error)
