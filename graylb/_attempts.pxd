"""Attempts: see _attempts.pyx."""

from libc.stdint cimport uint64_t
from graylb._admission cimport Admission
from graylb._http1 cimport Head
from graylb._live cimport TIMES, U_HEAD, Conn, Exchange, Retries, TableState, Upstream
from graylb._outliers cimport Outliers
from graylb._retries cimport RetryPolicy
from graylb._sockets cimport gl_now_us

cdef inline RetryPolicy* policy_of(Exchange* x) noexcept:
    # what the service of a request said of retries when that was decided
    return &(<Retries>(<TableState>x.state).retries[x.d.service]).policy

cdef inline void attach(Exchange* x, Upstream up, Conn* u) noexcept:
    # an attempt has its connection
    u.state = U_HEAD
    u.x = x
    x.upstream = u
    up.in_flight += 1
    up.requests += 1
    if up.conduct.watched & TIMES: x.tried_us = gl_now_us()
    up.series.in_flight[0] += 1
    up.series.attempts[0] += 1

cdef class Attempts(Admission):
    cdef Head head                 # the one that was scanned last
    cdef readonly uint64_t retries
    cdef Outliers outliers
    cdef public object on_ejections        # called when an instance is ejected or back; None: nobody asks
    cdef Exchange* first_resting   # before their next attempt, by the time of that
    cdef Exchange* last_resting
    cdef object alarm
    cdef uint64_t alarm_us

    cdef bint _acquire(self, Exchange* x, bint fresh) noexcept
    cdef void _serve(self, Exchange* x) noexcept
    cdef void _send_kept(self, Exchange* x, bint fresh) noexcept
    cdef void _stamp(self, Exchange* x) noexcept
    cdef int _keep_room(self, Exchange* x, size_t n) noexcept
    cdef int _send_saved(self, Exchange* x) noexcept
    cdef int _send_request(self, Exchange* x, char* head, size_t n, char* body, size_t bn) noexcept
    cdef void _await(self, Exchange* x) noexcept
    cdef void _save(self, Exchange* x, const char* a, size_t an, const char* b, size_t bn) noexcept
    cdef int _keep_request(self, Exchange* x, const char* a, size_t an, const char* b, size_t bn) noexcept
    cdef int _keep_on(self, Exchange* x, const char* p, size_t n) noexcept
    cdef void _upstream_failed(self, Conn* u, int code) noexcept
    cdef bint _can_repeat(self, Exchange* x, Conn* u) noexcept
    cdef int _cause(self, Conn* u, int code) noexcept
    cdef bint _once_more(self, Exchange* x, Conn* u, int cause, int status, size_t rest) noexcept
    cdef bint _elsewhere(self, Exchange* x, const RetryPolicy* policy, bint other_version) noexcept
    cdef void _remember(self, Exchange* x) noexcept
    cdef bint _answer_retried(self, Exchange* x, Conn* u, size_t rest) noexcept
    cdef bint _is_drained(self, Conn* u, size_t rest) noexcept
    cdef bint _is_reusable(self, Conn* u) noexcept
    cdef void _arm(self, Exchange* x) noexcept
    cdef void _disarm(self, Exchange* x) noexcept
    cdef bint _gives_way(self, Exchange* x, Conn* u, int cause, int status, size_t rest) noexcept
    cdef void _rest_for(self, Exchange* x, uint64_t us) noexcept
    cdef _set_alarm(self)
    cdef void _go_on(self, Exchange* x) noexcept
    cdef _count_fallback(self, Exchange* x)
    cdef bint _asks_another(self, Exchange* x, Conn* u) noexcept
    cdef void _leave(self, Exchange* x) noexcept
    cdef void _saw(self, Upstream up, int status, uint64_t us) noexcept
    cdef void _saw_head(self, Exchange* x, Conn* u) noexcept
    cdef void _saw_end(self, Exchange* x, Conn* u, const char* trailers, size_t n) noexcept
    cdef void _saw_status(self, Exchange* x, Upstream up, int grpc) noexcept
    cdef void _remark(self) noexcept
