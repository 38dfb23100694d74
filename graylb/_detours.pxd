"""Requests that do not go the straight way: see _detours.pyx."""

from graylb._faults cimport Fault
from graylb._live cimport Exchange, ServiceLive, Upstream
from graylb._mirrors cimport Copy, Mirror
from graylb._tunnels cimport Tunnels

cdef class Detour:
    cdef Detours engine
    cdef Exchange* x               # NULL: it is over
    cdef Fault fault
    cdef bint abort
    cdef double seconds
    cdef object timer

cdef class Detours(Tunnels):
    cdef dict services             # name -> ServiceLive
    cdef object on_pair            # takes both answers to a request that was mirrored while somebody watches
    cdef bint _injects(self, Exchange* x, ServiceLive live) noexcept
    cdef void _hold_back(self, Exchange* x) noexcept
    cdef void _end_delay(self, Exchange* x) noexcept
    cdef _tell_pair(self, Copy made)
    cdef void _go_on(self, Exchange* x) noexcept
    cdef _due(self, Exchange* x)
    cdef void _mirrors(self, Exchange* x, Mirror mirror) noexcept
    cdef void _copy_head(self, Exchange* x, size_t n) noexcept
    cdef void _copy_body(self, Exchange* x, const char* p, size_t n) noexcept
    cdef void _send_copy(self, Exchange* x) noexcept
    cdef void _launch(self, Exchange* x) noexcept
    cdef void _leave_out(self, Exchange* x, str outcome) noexcept
    cdef void _end_copy(self, Exchange* x) noexcept
    cdef void _note_answer(self, Exchange* x, const char* body, size_t n) noexcept
    cdef void _note_bytes(self, Exchange* x, const char* p, size_t n) noexcept
    cdef void _note_end(self, Exchange* x) noexcept
    cdef void _note_trailers(self, Exchange* x, const char* p, size_t n) noexcept
