"""Attempts: see _attempts.pyx."""

from libc.stdint cimport uint64_t
from graylb._admission cimport Admission
from graylb._http1 cimport Head
from graylb._live cimport Conn, Exchange, Upstream
from graylb._outliers cimport Outliers

cdef enum:
    MAX_ATTEMPTS = 4

cdef class Attempts(Admission):
    cdef Head head                 # the one that was scanned last
    cdef readonly uint64_t retries
    cdef Outliers outliers
    cdef public object on_ejections        # called when an instance is ejected or back; None: nobody asks

    cdef bint _acquire(self, Exchange* x, bint fresh, int failed=*) noexcept
    cdef void _serve(self, Exchange* x) noexcept
    cdef void _send_kept(self, Exchange* x, bint fresh, int failed) noexcept
    cdef int _send_saved(self, Exchange* x) noexcept
    cdef int _send_request(self, Exchange* x, char* head, size_t n, char* body, size_t bn) noexcept
    cdef void _await(self, Exchange* x) noexcept
    cdef void _save(self, Exchange* x, const char* a, size_t an, const char* b, size_t bn) noexcept
    cdef int _keep_request(self, Exchange* x, const char* a, size_t an, const char* b, size_t bn) noexcept
    cdef int _keep_on(self, Exchange* x, const char* p, size_t n) noexcept
    cdef void _upstream_failed(self, Conn* u, int code) noexcept
    cdef bint _can_repeat(self, Exchange* x, Conn* u) noexcept
    cdef void _repeat(self, Exchange* x, Conn* u, bint stale, int code) noexcept
    cdef bint _asks_another(self, Exchange* x, Conn* u) noexcept
    cdef void _leave(self, Exchange* x) noexcept
    cdef void _saw(self, Upstream up, int status, uint64_t us) noexcept
    cdef void _saw_head(self, Exchange* x, Conn* u) noexcept
    cdef void _saw_end(self, Exchange* x, Conn* u, const char* trailers, size_t n) noexcept
    cdef void _saw_status(self, Exchange* x, Upstream up, int grpc) noexcept
    cdef void _remark(self) noexcept
