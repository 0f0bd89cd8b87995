cimport cython

@cython.locals(labels=list, at=cython.Py_ssize_t, end=cython.Py_ssize_t, step=cython.Py_ssize_t, key=bytes, octets="const unsigned char *")
cpdef bytes name_key(bytes prefix, bytes name, bytes origin)
