"""Exchanges and how they end: in order, by an answer of ours, or cut short."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from graylb._clients cimport Listening
from graylb._fast cimport write_decision
from graylb._http1 cimport BODY_CLOSE, Head
from graylb._limits cimport end, late
from graylb._live cimport (MAX_HEAD, RESTED, RESTS, S_HEAD, S_LINGER, S_TUNNEL, S_WAIT, Conn, Exchange, TableState, Upstream,
                           record)
from graylb._logs cimport C_SPAN, Logs, Settings
from graylb._meter cimport Meter
from graylb._sockets cimport SMALL, gl_clear, gl_now_us, gl_soon, reset_on_close
from graylb._streams cimport Streams, now_us

from graylb._meter import unrouted
from graylb.errors import BY_REASON, KINDS

cdef extern from * nogil:
    """
    #include <string.h>
    """
    void* memmem(const void*, size_t, const void*, size_t)

cdef int E_INJECTED = BY_REASON["injected-fault"].code

cdef enum:
    LINGER_MS = 2000
    MARGIN = 16384         # room for what heads gain


cdef class Exchanges(Streams):
    """The exchanges of one worker."""

    cdef _open_books(self):
        self.heads = <char*>malloc(3 * MAX_HEAD + MARGIN + SMALL)
        if self.heads == NULL: raise MemoryError
        # answers[code][json][close]; HEAD cuts the body off
        self.answers = [[[kind.response(json=json, close=close) for close in (False, True)] for json in (False, True)]
                        for kind in KINDS]
        self.grpc_answers = [kind.grpc_response() for kind in KINDS]
        self.grpc_ends = [kind.grpc_trailers() for kind in KINDS]
        self.begun = self.slab.counter("_begun", ())
        self.ended = self.slab.counter("_ended", ())
        # what a former worker of this number had under way when it was killed
        self.slab.counter("graylb_requests_lost_total", ())[0] += self.begun[0] - self.ended[0]
        self.ended[0] = self.begun[0]
        cells, errors = unrouted(self.slab)
        self.unrouted = <uint64_t*><size_t>cells
        self.unrouted_errors = <uint64_t*><size_t>errors
        for kind in KINDS: self.retriable[<int>kind.code] = kind.retriable

    def __dealloc__(self):
        cdef Exchange* x
        while self.spare != NULL:
            x = self.spare
            self.spare = x.next
            free(x.saved)
            free(x.log)
            free(x)
        free(self.heads)

    cdef Exchange* _exchange(self) noexcept:
        cdef Exchange* x = self.spare
        cdef char* saved
        cdef char* log
        cdef size_t cap
        cdef uint32_t log_cap
        if x == NULL: x = <Exchange*>calloc(1, sizeof(Exchange))
        else:
            self.spare = x.next
            gl_soon(self.spare, sizeof(Exchange))            # of the next one
            saved = x.saved
            cap = x.saved_cap
            log = x.log
            log_cap = x.log_cap
            gl_clear(x, sizeof(Exchange))
            x.saved = saved
            x.saved_cap = cap
            x.log = log
            x.log_cap = log_cap
        if x != NULL: self.exchanges += 1
        return x

    cdef void _drop_exchange(self, Exchange* x) noexcept:
        """Unties both sides; connections are dealt with by the caller."""
        cdef Upstream up
        cdef uint64_t now
        if x.hedging: self._end_hedge(x)
        if x.detour != NULL or x.copy != NULL: self._end_detour(x)
        if x.waiting == RESTS or x.waiting == RESTED: self._rise(x)
        elif x.waiting and x.waiting < RESTS:
            up = <Upstream>(<TableState>x.state).upstreams[x.d.instance]
            self._leave_queue(up, x)
            self._call_all(up)
        if x.client != NULL:
            x.client.x = NULL
            x.client.limit = 0
        if x.client != NULL and x.client.state == S_TUNNEL: self._tunnel_closed(x)
        now = now_us(self)
        if x.of_service != NULL: self._count_out(x, now)
        if x.client != NULL and not x.is_copy: self._account(x, now)
        if x.captured: self.logs.ended(x, gl_now_us())       # its attempts, which are told of too, end within it
        if x.upstream != NULL: self._detach(x)
        if x.state != NULL: Py_DECREF(<object>x.state)
        x.state = NULL
        if x.saved_cap > 4096:
            free(x.saved)
            x.saved = NULL
            x.saved_cap = 0
        x.next = self.spare
        self.spare = x
        self.exchanges -= 1

    cdef void _account(self, Exchange* x, uint64_t now) noexcept:
        """Every request of a client once, at its end, with everything known that is told of it."""
        record(x, now, self.slab)
        if x.d.service < 0: self.unrouted[x.status // 100 if x.status < 600 else 5] += 1
        self.ended[0] += 1

    cdef void _count_out(self, Exchange* x, uint64_t now) noexcept:
        """It is not one of its service's requests at once any more. An answer's time tells of instances when it is a good one;
        the lack of an answer does when it has taken longer than one would have."""
        cdef uint64_t us = 0
        if x.head_us: us = x.head_us - x.began_us if x.status < 500 else 0
        elif x.upstream != NULL and not x.upstream.connecting: us = now - x.began_us
        end(x.of_service, us if x.head_us else late(x.of_service, us), now)
        end(x.of_version, us if x.head_us else late(x.of_version, us), now)
        x.of_service = x.of_version = NULL

    cdef void _try_ended(self, Exchange* x, Conn* u, int code, int status, int grpc) noexcept:
        """For spans, see `Logs.try_ended`. Those of a second attempt are its request's."""
        if x.rival != NULL and not x.captured & C_SPAN: x = x.rival
        if x.captured & C_SPAN: self.logs.try_ended(x, u, code, status, grpc)

    cdef void _detach(self, Exchange* x) noexcept:
        self._try_ended(x, x.upstream, -1, 0, -1)
        (<Upstream>x.upstream.upstream).in_flight -= 1
        (<Upstream>x.upstream.upstream).series.in_flight[0] -= 1
        x.upstream.limit = 0
        x.upstream.x = NULL
        x.upstream = NULL

    cdef void _abort(self, Conn* c) noexcept:
        """Ends a connection and, with it, its exchange and the other side: the client is gone, or the answer was cut short."""
        cdef Exchange* x = c.x
        cdef Conn* u
        cdef Conn* d
        if x != NULL:
            u = x.upstream
            d = x.client
            self.aborted += not x.is_copy
            x.cut = 1 if c == d else 2
            # an answer that its end delimits would look complete behind an orderly close
            if x.response_begun and x.response_kind == BODY_CLOSE and d != NULL and d.fd >= 0: reset_on_close(d.fd)
            self._drop_exchange(x)
            if u != NULL: self._kill(u)
            if d != NULL: self._kill(d)
        self._kill(c)

    cdef void _linger(self, Conn* c) noexcept:
        """Everything is sent: says so, and reads on for a moment, for a reset would destroy the answer in flight."""
        c.closing = 0
        if c.shut and not c.readable:
            self._kill(c)
            return
        self._say_end(c)
        c.state = S_LINGER
        c.held_len = 0
        self._set_deadline(c, self.now + LINGER_MS)
        if c.readable: self._again(c)

    cdef void _close_client(self, Conn* c, bint unread) noexcept:
        """Closes after the answer; unread: bytes of the client may still be on their way to us."""
        if c.out_len:
            c.closing = 1
            c.state = S_LINGER
            self._set_deadline(c, self.now + self.state.body_ms)
        elif unread: self._linger(c)
        else:
            c.state = S_LINGER                       # an orderly end
            self._kill(c)

    cdef void _fail(self, Conn* c, int code) noexcept:
        """Answers with an error of ours and ends the exchange. The request body, if any is left, is not read."""
        cdef Exchange* x = c.x
        cdef bint wants_json = False, head_only = False, close_after = True, grpc = False
        cdef Conn* u = NULL
        cdef bytes answer
        cdef int status
        if c.sink:                                   # nobody is there to be told
            self._abort(c)
            return
        status = KINDS[code].status
        self.errors[code] += 1
        if x != NULL:
            wants_json = x.wants_json
            head_only = x.head_only
            grpc = x.grpc
            close_after = c.fd >= 0 and (x.close_client or not x.request_done or self.draining)
            u = x.upstream
            x.failed = code + 1
            if grpc: x.grpc_status = KINDS[code].grpc + 1
        else: self._log_refusal(c, code)
        answer = self.grpc_answers[code] if grpc else self.answers[code][wants_json][close_after and c.fd >= 0]
        if code == E_INJECTED: answer = self._injected(x, close_after and c.fd >= 0, &status)
        cdef size_t n = self._write_answer(x, answer, head_only)
        if grpc: status = 200
        if x == NULL:
            self.unrouted[status // 100] += 1
            self.unrouted_errors[code] += 1
        else:
            x.status = status
            if not x.is_copy: self._count_error(x, code)
            self._drop_exchange(x)
            if u != NULL: self._kill(u)
        self.statuses[status // 100] += 1
        self._answer(c, n, close_after)

    cdef void _log_refusal(self, Conn* c, int code) noexcept:
        """What was refused before it was a request has a line, too."""
        cdef Exchange* x
        if (<Settings>self.state.log).format is None and not self.logs.n_views: return
        x = self._exchange()
        if x == NULL: return
        Py_INCREF(self.state)
        x.state = <PyObject*>self.state
        x.began_us = now_us(self)
        x.failed = code + 1
        self._log_request(x, c, NULL)
        self._drop_exchange(x)

    cdef void _log_request(self, Exchange* x, Conn* c, Head* h) noexcept:
        """To be called before anything is made of a head. h: NULL where it is none."""
        cdef Listening* l = &self.listening[c.listener]
        x.d.service = x.d.instance = x.d.route = x.d.rule = x.d.slot = -1
        self.logs.asked(x, <Settings>(<TableState>x.state).log, h, &c.peer, l.name, l.name_n, l.secure, c.fd < 0)

    cdef void _ticked(self) noexcept:
        self.logs.ticked()

    cdef void _count_error(self, Exchange* x, int code) noexcept:
        """It was answered with an error of ours."""
        cdef TableState state = <TableState>x.state
        if x.d.service < 0: self.unrouted_errors[code] += 1
        else: (<Meter>state.meters[x.d.service]).count_error(state.table, &x.d, code)

    cdef void _answer(self, Conn* c, size_t n, bint close_after) noexcept:
        """Sends an answer of ours, n bytes in `heads`, to a client whose exchange is over."""
        cdef size_t head
        if c.fd < 0:
            head = <char*>memmem(self.heads, n, b"\r\n\r\n", 4) - self.heads + 4
            c.eof = 1
            if c.stream == 0 or (n > head and self._keep(c, self.heads + head, n - head) < 0) \
                    or self.h2.respond(c, self.heads, head, n == head) < 0: self._kill(c)
            else: self._see_out(c)
            return
        if self._send(c, self.heads, n) < 0:
            self._kill(c)
            return
        if close_after: self._close_client(c, True)
        else: self._next_request(c)

    cdef void _see_out(self, Conn* c) noexcept:
        """A stream whose answer is complete, as far as we are concerned: it stays until the client has it."""
        c.state = S_WAIT
        if c.owed and c.stream: self.h2.consume(c, c.owed)
        self._set_deadline(c, self.now + self.state.body_ms)

    cdef size_t _write_answer(self, Exchange* x, bytes answer, bint head_only) noexcept:
        """An answer of ours into `heads`, with the decision if there is one to tell and it is to be told."""
        cdef const char* p = PyBytes_AS_STRING(answer)
        cdef size_t n = PyBytes_GET_SIZE(answer)
        cdef size_t head = <const char*>memmem(p, n, b"\r\n\r\n", 4) - p + 2
        cdef TableState state
        cdef size_t at = head
        memcpy(self.heads, p, head)
        if self.retry_after:
            at += snprintf(self.heads + at, 40, b"retry-after: %llu\r\n", <unsigned long long>self.retry_after)
            self.retry_after = 0
        if x != NULL and x.d.service >= 0:
            state = <TableState>x.state
            if state.decision_headers: at += self._tell_decision(x, self.heads + at, 2048)
        if head_only: n = head + 2
        memcpy(self.heads + at, p + head, n - head)
        return at + n - head

    cdef size_t _tell_decision(self, Exchange* x, char* o, size_t room) noexcept:
        """Lines of an answer that tell what was decided, and how often it was tried -> bytes written."""
        cdef size_t n = write_decision((<TableState>x.state).table, &x.d, o, room)
        if x.attempts > 1 and n + 22 <= room:
            memcpy(o + n, b"x-graylb-attempts: 0\r\n", 22)
            o[n + 19] += x.attempts
            n += 22
        return n

    cdef void _next_request(self, Conn* c) noexcept:
        """Keep-alive: back to waiting for a head, which may be here already."""
        c.state = S_HEAD
        c.reused = 1
        self._set_deadline(c, self.now + self.state.client_idle_ms)
        if c.out_len == 0: self._rest(c)

    cdef void _rest(self, Conn* c) noexcept:
        """Between messages: reads on if there is something, closes if the client has said that nothing will come."""
        if c.held_len or c.readable: self._again(c)
        elif c.shut: self._kill(c)

    # ---- hooks -----------------------------------------------------------------------------------------------------

    cdef void _rise(self, Exchange* x) noexcept:
        """An exchange that rests before its next attempt does so no more."""

    cdef void _tunnel_closed(self, Exchange* x) noexcept:
        """An exchange that was a tunnel is over."""

    cdef void _end_detour(self, Exchange* x) noexcept:
        """An exchange with a detour is over."""

    cdef void _end_hedge(self, Exchange* x) noexcept:
        """An exchange with a second attempt, or that is one, or may have one, is over."""

    cdef bytes _injected(self, Exchange* x, bint close_after, int* status):
        """The answer of a fault that was injected, and its status."""
