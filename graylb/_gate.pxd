"""The second parser: see _gate.pyx."""

from graylb._http1 cimport Head

cdef class View:
    cdef const char* p
    cdef Py_ssize_t n

cdef class Gate:
    cdef int heads
    cdef int messages
    cdef View view
    cdef object feed
    cdef renew(self)
    cdef _feed(self, const char* p, size_t n)
    cdef bint admits(self, Head* h) noexcept
