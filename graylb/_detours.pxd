"""Requests that do not go the straight way: see _detours.pyx."""

from graylb._faults cimport Fault
from graylb._live cimport Conn, Exchange, ServiceLive
from graylb._tunnels cimport Tunnels

cdef class Detour:
    cdef Detours engine
    cdef Exchange* x               # NULL: it is over
    cdef Fault fault
    cdef bint abort
    cdef double seconds
    cdef object timer

cdef class Detours(Tunnels):
    cdef bint _injects(self, Exchange* x, ServiceLive live) noexcept
    cdef void _hold_back(self, Exchange* x) noexcept
    cdef void _go_on(self, Exchange* x) noexcept
    cdef _due(self, Exchange* x)
