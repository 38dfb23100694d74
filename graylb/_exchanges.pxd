"""Exchanges and their ends: see _exchanges.pyx."""

from libc.stdint cimport uint64_t
from graylb._clients cimport N_CODES
from graylb._http1 cimport Head
from graylb._live cimport Conn, Exchange
from graylb._logs cimport Logs
from graylb._streams cimport Streams

cdef class Exchanges(Streams):
    cdef char* heads               # rewritten heads
    cdef Exchange* spare
    cdef Logs logs
    cdef list answers
    cdef list grpc_answers
    cdef list grpc_ends
    cdef bint retriable[N_CODES]
    cdef uint64_t retry_after      # seconds to be told with the next answer of ours; 0: nothing is
    cdef readonly int exchanges
    cdef readonly uint64_t aborted
    cdef uint64_t* begun           # requests of clients
    cdef uint64_t* ended

    cdef _open_books(self)
    cdef Exchange* _exchange(self) noexcept
    cdef void _drop_exchange(self, Exchange* x) noexcept
    cdef void _account(self, Exchange* x, uint64_t now) noexcept
    cdef void _count_out(self, Exchange* x, uint64_t now) noexcept
    cdef void _try_ended(self, Exchange* x, Conn* u, int code, int status, int grpc) noexcept
    cdef void _detach(self, Exchange* x) noexcept
    cdef void _abort(self, Conn* c) noexcept
    cdef void _linger(self, Conn* c) noexcept
    cdef void _close_client(self, Conn* c, bint unread) noexcept
    cdef void _fail(self, Conn* c, int code) noexcept
    cdef void _log_refusal(self, Conn* c, int code) noexcept
    cdef void _log_request(self, Exchange* x, Conn* c, Head* h) noexcept
    cdef void _count_error(self, Exchange* x, int code) noexcept
    cdef void _answer(self, Conn* c, size_t n, bint close_after) noexcept
    cdef void _see_out(self, Conn* c) noexcept
    cdef size_t _tell_decision(self, Exchange* x, char* o, size_t room) noexcept
    cdef void _rise(self, Exchange* x) noexcept
    cdef size_t _write_answer(self, Exchange* x, bytes answer, bint head_only) noexcept
    cdef void _next_request(self, Conn* c) noexcept
    cdef void _rest(self, Conn* c) noexcept
    cdef void _end_detour(self, Exchange* x) noexcept
    cdef void _end_hedge(self, Exchange* x) noexcept
    cdef bytes _injected(self, Exchange* x, bint close_after, int* status)
    cdef void _tunnel_closed(self, Exchange* x) noexcept
