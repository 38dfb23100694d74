"""The second parser: see _gate.pyx."""

from graylb._http1 cimport Head
from libc.stdint cimport uint32_t

cdef enum:
    ADMITTED = 32
    LONGEST = 508          # bytes

cdef struct Admitted:
    uint32_t n             # 0: none
    char head[LONGEST]

cdef class View:
    cdef const char* p
    cdef Py_ssize_t n

cdef class Gate:
    cdef int heads
    cdef int messages
    cdef View view
    cdef object feed
    cdef Admitted admitted[ADMITTED]
    cdef renew(self)
    cdef bint _parse(self, Head* h) noexcept
    cdef _feed(self, const char* p, size_t n)
    cdef bint admits(self, Head* h) noexcept
