"""Marks of a worker's requests: see _marker.pyx."""

from libc.stdint cimport uint8_t, uint64_t
from graylb._http1 cimport Head
from graylb._live cimport Conn, Exchange, ServiceLive, TableState
from graylb._mark cimport Carried, Role
from graylb._memory cimport Memory

cdef class Marker:
    cdef Carried carried           # of the request whose head is looked at
    cdef uint8_t edge
    cdef Memory memory             # of traces, shared by all workers
    cdef readonly uint64_t kept
    cdef readonly uint64_t signed
    cdef readonly uint64_t stripped
    cdef readonly uint64_t conflicts
    cdef readonly uint64_t begun
    cdef readonly uint64_t remembered
    cdef readonly uint64_t recalled
    cdef readonly uint64_t ambiguous

    cdef bint take(self, Conn* c, Head* h, TableState state, Role role) noexcept
    cdef bint _trace(self, Conn* c, Head* h, TableState state, Role role) noexcept
    cdef bint give(self, Exchange* x, Head* h, TableState state, ServiceLive live) noexcept
