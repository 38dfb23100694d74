"""Connections to instances: see _pools.pyx."""

from libc.stdint cimport uint8_t, uint64_t
from graylb._live cimport Conn, Exchange, Upstream
from graylb._sockets cimport Sockets

cdef class Pools(Sockets):
    cdef dict upstreams            # (service, address) -> Upstream of the current table
    cdef dict named                # those whose host is a name, to be resolved
    cdef dict files                # PEM texts by digest, for connections over TLS
    cdef dict originations         # settings -> _tls.Origination
    cdef _origin_of(self, dict tls, str address)
    cdef set warm                 # those that keep connections open in advance
    cdef uint64_t warmed           # ms
    cdef bint exhausted            # the last connection was not opened for want of a descriptor or memory
    cdef Conn* _idle(self, Upstream up, Exchange* x) noexcept
    cdef Conn* _connect(self, Upstream up, Exchange* x) noexcept
    cdef Conn* _open_to(self, Upstream up, uint8_t alpn=*) noexcept
    cdef void _pool(self, Conn* u) noexcept
    cdef void _unpool(self, Conn* u) noexcept
    cdef bint _has_room(self, Upstream up) noexcept
    cdef void _wait(self, Upstream up, Exchange* x) noexcept
    cdef void _leave_queue(self, Upstream up, Exchange* x) noexcept
    cdef void _call(self, Upstream up) noexcept
    cdef void _call_all(self, Upstream up) noexcept
    cdef void _lost(self, Conn* u) noexcept
    cdef void _retire(self, Upstream up) noexcept
    cdef void _fit(self, Upstream up) noexcept
    cdef void _warm_up(self) noexcept
    cdef Conn* _open_warm(self, Upstream up) noexcept
    cdef bint _is_spare(self, Upstream up) noexcept
    cdef bint _expired_idle(self, Conn* u) noexcept

cdef enum:
    WARM_EVERY_MS = 1000
    WARM_CONNECT_MS = 5000

cdef bint may_repeat(Exchange* x) noexcept
