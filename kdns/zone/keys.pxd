cimport cython

cdef extern from *:
    """
    #include <string.h>

    /* Each label moves to the other end, behind which its length byte becomes the zero byte that closes it. */
    static inline PyObject *kdns_plain_key(PyObject *prefix, PyObject *name, Py_ssize_t end)
    {
        const unsigned char *octets = (const unsigned char *)PyBytes_AS_STRING(name);
        Py_ssize_t size = PyBytes_GET_SIZE(prefix), at = size + end, from = 0, length, i;
        unsigned char key[512];
        if (end < 0 || end > PyBytes_GET_SIZE(name) || size + end > (Py_ssize_t)sizeof key) Py_RETURN_NONE;
        while (from < end) {
            length = octets[from];
            if (from + 1 + length > end) Py_RETURN_NONE;
            at -= length + 1;
            for (i = 0; i < length; i++) {
                key[at + i] = octets[from + 1 + i];
                if (key[at + i] <= 1) Py_RETURN_NONE;
            }
            key[at + length] = 0;
            from += 1 + length;
        }
        memcpy(key, PyBytes_AS_STRING(prefix), size);
        return PyBytes_FromStringAndSize((const char *)key, size + end);
    }
    """
    object plain_key "kdns_plain_key"(bytes prefix, bytes name, Py_ssize_t end)

@cython.locals(end=cython.Py_ssize_t, labels=list)
cpdef bytes name_key(bytes prefix, bytes name, bytes origin)
