"""HTTP/2 on connections: see _streams.pyx."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from graylb._clients cimport Clients
from graylb._h2 cimport H2Api, H2Hooks, H2Limits
from graylb._http1 cimport KnownHead
from graylb._live cimport Conn, Exchange, Session, TableState, Upstream
from graylb._sockets cimport gl_now_us

cdef class Streams(Clients):
    cdef const H2Api* h2           # NULL: not in this build
    cdef H2Hooks hooks
    cdef H2Limits h2_limits
    cdef Session* dirty            # those that may have something to send
    cdef bint draining
    cdef uint64_t received_us      # when what a session is telling of was received; 0: none is
    cdef readonly int sessions
    cdef readonly int streams
    cdef readonly uint64_t sessions_cut    # for breaking the law or a limit

    cdef _find_h2(self)
    cdef _limit_streams(self, dict limits)
    cdef bint _begin_session(self, Conn* c) noexcept
    cdef void _session_readable(self, Conn* c) noexcept
    cdef bint _session_bytes(self, Conn* c, const char* p, size_t n) noexcept
    cdef void _session_expired(self, Conn* c) noexcept
    cdef void _session_connected(self, Conn* c) noexcept
    cdef void _waits_from_now(self, Conn* u) noexcept
    cdef void _leave_clients(self, Conn* c) noexcept
    cdef void _mark(self, Session* s) noexcept
    cdef void _flush(self) noexcept
    cdef void _produce(self, Session* s) noexcept
    cdef void _lose_session(self, Conn* c, bint reached) noexcept
    cdef Conn* _new_stream(self, Session* s, int side) noexcept
    cdef Conn* _stream_to(self, Upstream up, Exchange* x) noexcept
    cdef bint _room_for_stream(self, Upstream up) noexcept
    cdef Session* _connect_session(self, Upstream up, uint64_t connect_ms) noexcept
    cdef void _end_session(self, Conn* c) noexcept
    cdef void _leave_pool(self, Session* s) noexcept
    cdef void _unused(self, Session* s) noexcept
    # what happens to streams is for the floors above to say
    cdef void _stream_request(self, Session* s, int32_t stream, const KnownHead* head, bint end) noexcept
    cdef void _stream_response(self, Conn* u, const KnownHead* head, bint end) noexcept
    cdef void _stream_data(self, Conn* c, char* p, size_t n) noexcept
    cdef void _stream_end(self, Conn* c, char* trailers, size_t n) noexcept
    # seen: its request may have been processed, as far as that can be told
    cdef void _stream_closed(self, Conn* c, uint32_t error, bint seen) noexcept

cdef inline uint64_t now_us(Streams self) noexcept:
    # The hour of what happens to an exchange. All that came by one receive came at once: the clock is read for it once, for
    # a session brings many requests, and the clock costs as much as a step of each.
    return self.received_us if self.received_us else gl_now_us()

cdef Session* open_session(Upstream up) noexcept
