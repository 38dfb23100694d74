"""Tunnels: see _tunnels.pyx."""

from libc.stdint cimport uint64_t
from graylb._hedges cimport Hedges
from graylb._live cimport Conn, Exchange, TableState

cdef class Tunnels(Hedges):
    cdef Exchange* tunnel_list     # open tunnels
    cdef readonly int tunnels
    cdef readonly uint64_t tunnels_cut

    cdef void _begin_tunnel(self, Exchange* x, size_t head, char* rest, size_t n) noexcept
    cdef void _tunnel(self, Conn* a, Conn* b) noexcept
    cdef bint _pass_end(self, Conn* b) noexcept
    cdef void _cut(self, Exchange* x) noexcept
    cdef _judge_tunnels(self, TableState former)
    cdef _verdict(self, Exchange* x, TableState former)
    cdef uint64_t _idle_deadline(self, Exchange* x) noexcept
