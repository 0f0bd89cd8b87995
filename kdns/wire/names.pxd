cimport cython

cpdef bint is_subdomain(bytes name, bytes zone)

@cython.locals(step=cython.Py_ssize_t)
cpdef bint is_between_labels(bytes name, Py_ssize_t at)

@cython.locals(octets="const unsigned char *", at=cython.Py_ssize_t, end=cython.Py_ssize_t, size=cython.Py_ssize_t)
cpdef object longest(dict by_zone, list sizes, bytes name)
