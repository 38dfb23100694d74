"""Marks of a worker's requests: see _marker.pyx."""

from libc.stdint cimport uint8_t, uint64_t
from graylb._http1 cimport Head
from graylb._live cimport Conn, Exchange, ServiceLive, TableState
from graylb._mark cimport Carried

cdef class Marker:
    cdef Carried carried           # of the request whose head is looked at
    cdef uint8_t edge
    cdef readonly uint64_t kept
    cdef readonly uint64_t signed
    cdef readonly uint64_t stripped
    cdef readonly uint64_t conflicts
    cdef readonly uint64_t begun

    cdef bint take(self, Conn* c, Head* h, TableState state, bint edge) noexcept
    cdef bint give(self, Exchange* x, Head* h, TableState state, ServiceLive live) noexcept
