"""Hedging: see _hedges.pyx."""

from graylb._attempts cimport Attempts
from graylb._live cimport Conn, Exchange, Retries
from graylb._retries cimport RetryPolicy

cdef class Hedges(Attempts):
    cdef _set_hedge_alarm(self, Retries of)
    cdef void _race(self, Exchange* x) noexcept
    cdef Exchange* _second(self, Exchange* x) noexcept
    cdef bint _finds_another(self, Exchange* x, Exchange* y, const RetryPolicy* policy) noexcept
    cdef bint _send_second(self, Exchange* x, Exchange* y) noexcept
    cdef Exchange* _settle(self, Conn* u) noexcept
    cdef void _take_over(self, Exchange* x) noexcept
    cdef void _call_off(self, Exchange* x, int outcome) noexcept
    cdef void _count_hedge(self, Exchange* y, int outcome) noexcept
    cdef Conn* _sink(self) noexcept
