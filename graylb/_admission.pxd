"""What the limits of a service say to a request: see _admission.pyx."""

from graylb._exchanges cimport Exchanges
from graylb._fast cimport Value
from graylb._live cimport Exchange, Upstream

cdef class Admission(Exchanges):
    cdef int _admit(self, Exchange* x, const Value* values) noexcept
    cdef int _bars(self, Exchange* x, Upstream up) noexcept
    cdef int _bars_waiting(self, Upstream up) noexcept
    cdef bint _make_room(self, Exchange* x, bint same_version) noexcept
