cimport cython

from kdns.upstream.steps cimport Run, Wait


@cython.final
cdef class Item:
    cdef readonly object relay, depends
    cdef public object seen
    cdef readonly bint recursion, failure
    cdef readonly int set_flags, clear_flags
    cdef readonly str kind
    cdef readonly Py_ssize_t ttl
    cdef public double until
    cdef readonly double expires
    cdef public Py_ssize_t size, hits
    cdef public double last, retry
    cdef public bint refreshing

    cpdef Py_ssize_t left(self, double now) except -1
    cpdef asked(self, double now, double pause)


@cython.final
cdef class _Kept:
    cdef object _items
    cdef Py_ssize_t _most
    cdef readonly Py_ssize_t capacity, size, evicted

    cdef bint has(self, bytes key) except -1
    cdef Item use(self, bytes key)
    cdef put(self, bytes key, Item item)
    @cython.locals(item=Item)
    cdef drop(self, bytes key)
    @cython.locals(item=Item)
    cdef Py_ssize_t evict(self) except -1


@cython.final
cdef class Items:
    cdef _Kept _success, _denial
    cdef object _lock, _budget
    cdef dict _kept
    cdef bint _prefer_positive
    cdef double _longer

    @cython.locals(item=Item, kept=_Kept)
    cpdef Item find(self, bytes key, double now)
    @cython.locals(known=Item, kept=_Kept, before=cython.Py_ssize_t, more=cython.Py_ssize_t)
    cpdef bint put(self, bytes key, Item item, double now) except -1
    cpdef bint claim(self, Item item, double now) except -1


@cython.final
cdef class _Counts:
    cdef readonly unsigned long long[:] cells
    cdef readonly Py_ssize_t requests, misses, prefetches, stale
    cdef readonly dict hits, evictions, entries, served


@cython.final
cdef class _Flight(Run):
    cdef Handler handler
    cdef object query
    cdef bytes key, way
    cdef _Counts counts
    cdef object seen
    cdef readonly list waiting
    cdef readonly object response, failed
    cdef readonly bint cancelled
    cdef public bint told

    cpdef Wait wait(self)


@cython.locals(bits=cython.int)
cpdef bytes key_of(object query)
cdef bytes _flight_of(object query, bytes key)


@cython.final
cdef class Handler:
    cdef double _recheck
    cdef bint _keepttl
    cdef object _options, _prefetching, _site, _cells, _log, _clock, _wall, _zones
    cdef bint _everything
    cdef dict _disabled, _evicted, _counts
    cdef readonly dict _flights
    cdef str _label
    cdef readonly Items _items

    cdef _Counts _count_for(self, str server)
    @cython.locals(item=Item, cells="unsigned long long[:]", requests=cython.Py_ssize_t, index=cython.Py_ssize_t)
    cdef Item _find(self, bytes key, double now, _Counts counts)
    cdef _prefetch(self, object prefetch, object query, object next, bytes key, Item item, double now, _Counts counts)
    @cython.locals(cells="unsigned long long[:]")
    cdef _count(self, _Counts counts, Py_ssize_t index)
    cdef _landed(self, _Flight flight, object query)
    cdef _hit(self, Item item, double now, _Counts counts)
    cdef _aging(self, Item item, _Counts counts)
    cdef bint _replaces(self, Item item, object response) except -1
    @cython.locals(item=Item)
    cdef _meanwhile(self, bytes key, _Counts counts)
    cdef bint _is_outdated(self, Item item) except -1
    cdef bint _have_changed(self, tuple depends, object seen) except -1
    cdef _Flight _start(self, object steps, object query, bytes key, bytes way, _Counts counts, object seen)
    @cython.locals(item=Item)
    cdef land(self, _Flight flight, object response, object error)
    cdef _renew(self, object query, object next, bytes key, Item item, _Counts counts)
    cdef _tell(self, _Flight flight)
    @cython.locals(item=Item)
    cdef _keep(self, object query, object response, bytes key, _Counts counts, object seen)
    cdef _verdict(self, object query, object relay)
    cdef bint _holds(self, object query, object relay) except -1
    @cython.locals(cells="unsigned long long[:]", index=cython.Py_ssize_t, more=cython.Py_ssize_t)
    cdef _report(self, _Counts counts)


cdef _answer(Item item, object ttl, object aging)
