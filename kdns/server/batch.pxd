cimport cython

cdef extern from *:
    """
    #include <errno.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <time.h>

    static inline int kdns_receive_many(int fd, size_t headers, unsigned int count, int flags)
    {
        int received;
        Py_BEGIN_ALLOW_THREADS
        received = recvmmsg(fd, (struct mmsghdr *)headers, count, flags, NULL);
        if (received < 0) received = -errno;
        Py_END_ALLOW_THREADS
        return received;
    }

    static inline int kdns_send_many(int fd, size_t headers, unsigned int count, int flags)
    {
        int sent;
        Py_BEGIN_ALLOW_THREADS
        sent = sendmmsg(fd, (struct mmsghdr *)headers, count, flags);
        if (sent < 0) sent = -errno;
        Py_END_ALLOW_THREADS
        return sent;
    }

    static inline long long kdns_monotonic_ns(void)
    {
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
    }

    static inline unsigned char *kdns_slots(PyObject *memory, size_t address)
    {
        (void)memory;
        return (unsigned char *)address;
    }

    static inline void kdns_write(unsigned char *data, Py_ssize_t at, PyObject *text)
    {
        memcpy(data + at, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text));
    }
    """
    int receive_many "kdns_receive_many"(int fd, size_t headers, unsigned int count, int flags)
    int send_many "kdns_send_many"(int fd, size_t headers, unsigned int count, int flags)
    long long monotonic_ns "kdns_monotonic_ns"()
    unsigned char *slots "kdns_slots"(object memory, size_t address)
    void write "kdns_write"(unsigned char *data, Py_ssize_t at, bytes text)

cdef class Batch:
    cdef size_t _address
    cdef unsigned char *_data
    cdef unsigned long long[:] _answer_lengths, _controllens, _full, _room
    cdef unsigned int[:] _indexes, _zeros
    cdef object _control, _headers, _memory, _names, _vectors
    cdef int _fd, _received
    cdef readonly object family
    cdef readonly bint packet_info
    cdef unsigned int[:] lengths

    @cython.locals(last=cython.int, count=cython.int)
    cpdef int receive(self, int flags) except -1
    cpdef long long now(self)
    @cython.locals(at=cython.Py_ssize_t)
    cpdef bytes query(self, Py_ssize_t slot)
    @cython.locals(at=cython.Py_ssize_t, size=cython.Py_ssize_t)
    cpdef bytes key(self, Py_ssize_t slot)
    @cython.locals(length=cython.Py_ssize_t)
    cpdef Py_ssize_t answer(self, Py_ssize_t slot, bytes response) except -1
    @cython.locals(at=cython.Py_ssize_t, length=cython.Py_ssize_t)
    cpdef bytes answered(self, Py_ssize_t slot, Py_ssize_t most)
    @cython.locals(refused=cython.int, sent=cython.int)
    cpdef int send(self, int start, int end, int flags=?) except -1
