"""Attempts: a request on its way to an instance, on a connection that is found or opened for it, and once more where that
failed and the request may be sent again.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy
from graylb._admission cimport Admission
from graylb._clients cimport Clients
from graylb._fast cimport pick_other
from graylb._grpc cimport STATUS_NONE, http_of, read_status, renew_timeout, status_in
from graylb._live cimport CALLED, SAVED_MAX, S_BODY, TIMES, U_HEAD, Conn, Exchange, TableState, Upstream
from graylb._outliers cimport NO_ANSWER, due
from graylb._pools cimport may_repeat
from graylb._sockets cimport gl_now_us, socket_error

from graylb.errors import BY_REASON

cdef extern from * nogil:
    """
    #include <string.h>
    """
    void* memmem(const void*, size_t, const void*, size_t)

cdef int E_CIRCUIT_OPEN = BY_REASON["circuit-open"].code
cdef int E_OVERLOADED = BY_REASON["overloaded"].code
cdef int E_CONNECT_FAILED = BY_REASON["connect-failed"].code
cdef int E_RESPONSE_TIMEOUT = BY_REASON["response-timeout"].code
cdef int E_UPSTREAM_RESET = BY_REASON["upstream-reset"].code

cdef enum:
    DEADLINE_EXCEEDED = 4  # of gRPC


cdef class Attempts(Admission):
    """The attempts of one worker."""

    cdef bint _acquire(self, Exchange* x, bint fresh, int failed=-1) noexcept:
        """An idle connection to the chosen instance (last in, first out), else a new one; where instances are full, a place
        in the queue of the one first chosen. A request that was called has room at the first. failed: the instance that
        this attempt is not to meet again. False: failed and answered, or x.waiting."""
        cdef TableState state = <TableState>x.state
        cdef Upstream up
        cdef Conn* u
        cdef int tries, barred = 0, full = -1, first = x.d.instance
        cdef bint called
        for tries in range(MAX_ATTEMPTS):
            up = <Upstream>state.upstreams[x.d.instance]
            called = x.waiting == CALLED
            if x.of_service != NULL and self._bars(x, up):
                barred = 1
                if called:
                    self._leave_queue(up, x)
                    self._call_all(up)
            elif not called and up.max and not (self._room_for_stream(up) if x.h2 else Clients._has_room(self, up)):
                if full < 0: full = x.d.instance
            elif x.d.instance != failed:
                x.attempts += 1
                if x.h2: u = self._stream_to(up, x)
                else:
                    u = NULL if fresh else self._idle(up, x)
                    if u == NULL: u = self._connect(up, x)
                if u == NULL and self.exhausted and self._shed(): u = self._stream_to(up, x) if x.h2 else self._connect(up, x)
                if called: self._leave_queue(up, x)  # not before: what these two close is room for nobody else
                if u != NULL:
                    x.connecting_us = gl_now_us() if x.captured and u.connecting else 0
                    x.connect_us = 0
                    u.state = U_HEAD
                    u.x = x
                    x.upstream = u
                    up.in_flight += 1
                    up.requests += 1
                    if up.conduct.watched & TIMES: x.tried_us = gl_now_us()
                    up.series.in_flight[0] += 1
                    up.series.attempts[0] += 1
                    return True
                if called: self._call_all(up)
                if self.exhausted:                   # not the instance is to blame, and no other could be reached
                    self._fail(x.client, E_OVERLOADED)
                    return False
                up.failures += 1
                self._saw(up, NO_ANSWER + E_CONNECT_FAILED, 0)
                up.series.failures[0] += 1
                self.retries += 1
            if x.attempts >= MAX_ATTEMPTS or not pick_other(state.table, &state.live, &x.d, first): break
        if full >= 0:
            x.d.instance = full
            up = <Upstream>state.upstreams[full]
            if x.of_service != NULL and self._bars_waiting(up): barred = 1
            elif up.n_waiting < up.queue:
                self._wait(up, x)
                self._set_deadline(x.client, self.now + up.queue_ms)
                return False
        self._fail(x.client, E_CIRCUIT_OPEN if barred else E_OVERLOADED if full >= 0 else E_CONNECT_FAILED)
        return False

    cdef void _serve(self, Exchange* x) noexcept:
        """It has waited for a connection, and one is kept for it."""
        cdef Conn* c = x.client
        cdef Upstream up = <Upstream>(<TableState>x.state).upstreams[x.d.instance]
        if up.max and up.n_open + up.n_called > up.n_idle + up.max and not (x.h2 and self._room_for_stream(up)):
            self._leave_queue(up, x)                 # the maximum was lowered in between
            self._wait(up, x)
            return
        c.deadline = 0
        self._send_kept(x, False, -1)

    cdef void _send_kept(self, Exchange* x, bint fresh, int failed) noexcept:
        """Sends a request that is kept, on the connection that `_acquire` finds, or has it wait."""
        cdef Conn* c = x.client
        if not self._acquire(x, fresh, failed): return
        while self._send_saved(x) < 0:
            self._leave(x)
            if x.attempts >= MAX_ATTEMPTS:
                self._fail(c, E_UPSTREAM_RESET)
                return
            self.retries += 1
            if not self._acquire(x, True): return
        # only what may be repeated after it was sent stays
        if not may_repeat(x) and not x.keeping: x.saved_len = 0
        self._await(x)
        if c.state == S_BODY and (c.readable or c.held_len): self._again(c)

    cdef int _send_saved(self, Exchange* x) noexcept:
        cdef char* body
        if x.upstream.fd >= 0 and not x.until_us: return self._send(x.upstream, x.saved, x.saved_len)
        body = <char*>memmem(x.saved, x.saved_len, b"\r\n\r\n", 4) + 4
        if x.until_us: renew_timeout(body, x.until_us - gl_now_us())
        return self._send_request(x, x.saved, body - x.saved, body, x.saved_len - (body - x.saved))

    cdef int _send_request(self, Exchange* x, char* head, size_t n, char* body, size_t bn) noexcept:
        """Head and first body bytes to the upstream; -1: this connection does not take them."""
        cdef Conn* u = x.upstream
        if u.fd >= 0: return self._send_two(u, head, n, body, bn)
        u.eof = x.request_done
        if bn and self._keep(u, body, bn) < 0: return -1
        return self.h2.ask(u.session, u, head, n, u.eof and bn == 0, u.session.conn.tls != NULL)

    cdef void _await(self, Exchange* x) noexcept:
        """Sets the clocks after something was sent to the upstream."""
        cdef Conn* u = x.upstream
        if u.fd < 0 and x.request_done and not u.eof:
            u.eof = 1
            self.h2.more(u)
        # a call may be silent for as long as it likes: it says itself how long it takes, and its instance's clock looks after it
        if not x.request_done and not x.grpc: self._set_deadline(x.client, self.now + self.state.body_ms)
        elif x.client.shut and not x.response_begun: self._set_deadline(x.client, self.now + self.state.grace_ms)
        if not u.connecting: self._set_deadline(u, self.now + (x.response_ms if x.request_done and not x.grpc else x.idle_ms))

    cdef void _save(self, Exchange* x, const char* a, size_t an, const char* b, size_t bn) noexcept:
        """Keeps a complete request so that it can be sent once more if its connection turns out to be stale."""
        if an + bn > SAVED_MAX or self._keep_request(x, a, an, b, bn) < 0: x.keeping = 0

    cdef int _keep_request(self, Exchange* x, const char* a, size_t an, const char* b, size_t bn) noexcept:
        """Keeps what is to be sent; -1 out of memory."""
        cdef char* q
        if an + bn > x.saved_cap:
            q = <char*>realloc(x.saved, an + bn + 256)
            if q == NULL: return -1
            x.saved = q
            x.saved_cap = an + bn + 256
        memcpy(x.saved, a, an)
        if bn: memcpy(x.saved + an, b, bn)
        x.saved_len = an + bn
        return 0

    cdef int _keep_on(self, Exchange* x, const char* p, size_t n) noexcept:
        """Keeps more of a request that may have to be sent once more; what grows too long can not be."""
        cdef char* q
        if not x.keeping: return 0
        if x.saved_len + n > SAVED_MAX:
            x.keeping = 0
            x.saved_len = 0
            return 0
        if x.saved_len + n > x.saved_cap:
            q = <char*>realloc(x.saved, 2 * (x.saved_len + n))
            if q == NULL: return -1
            x.saved = q
            x.saved_cap = 2 * (x.saved_len + n)
        memcpy(x.saved + x.saved_len, p, n)
        x.saved_len += n
        return 0

    cdef bint _connected(self, Conn* u) noexcept:
        """The connection attempt has ended, one way or the other."""
        cdef Exchange* x = u.x
        if socket_error(u.fd) != 0:
            self._upstream_failed(u, E_CONNECT_FAILED)   # a session tells its streams
            return False
        u.connecting = 0
        if x != NULL and x.connecting_us: x.connect_us = gl_now_us() - x.connecting_us
        if u.session != NULL: self._session_connected(u)
        elif x != NULL: self._set_deadline(u, self.now + (x.response_ms if x.request_done else x.idle_ms))
        elif (<Upstream>u.upstream).retired:
            self._kill(u)
            return False
        else: self._pool(u)                          # opened in advance
        return True

    cdef void _upstream_failed(self, Conn* u, int code) noexcept:
        """The connection failed before an answer; whether anybody can have seen the request is the error kind's to say."""
        cdef Exchange* x = u.x
        cdef Upstream up = <Upstream>u.upstream
        cdef Conn* c
        cdef bint stale
        if x == NULL:
            self._kill(u)
            return
        c = x.client
        if x.response_begun:
            if x.grpc: self._saw(up, NO_ANSWER + code, 0)    # what it answers stands at the end
            self._abort(u)
            return
        # A pooled connection that the instance closed meanwhile: the request met nobody, or its method may be repeated.
        stale = u.reused and code == E_UPSTREAM_RESET and u.held_len == 0
        # who waits for the rest of a request is not late himself
        if not stale and (code != E_RESPONSE_TIMEOUT or x.request_done): self._saw(up, NO_ANSWER + code, 0)
        if x.attempts < MAX_ATTEMPTS and (self.retriable[code] or (stale and x.safe)) and self._can_repeat(x, u):
            self._repeat(x, u, stale, code)
            return
        up.failures += 1
        up.series.failures[0] += 1
        self._fail(c, code)

    cdef bint _can_repeat(self, Exchange* x, Conn* u) noexcept:
        # while connecting nothing has left: what is pending is the whole request so far
        return x.saved_len > 0 or (u.connecting and u.fd >= 0)

    cdef void _repeat(self, Exchange* x, Conn* u, bint stale, int code) noexcept:
        """One more attempt: a fresh connection to the same instance if the old one was stale, else another instance."""
        cdef int failed = x.d.instance
        # nobody kept it: what is pending behind a PROXY header is the whole request so far
        if x.saved_len == 0 and self._keep_request(x, u.out + u.out_off + u.preface, u.out_len - u.preface, NULL, 0) < 0:
            self._abort(u)
            return
        self._leave(x)
        self.retries += 1
        if stale: self._send_kept(x, True, -1)
        elif pick_other((<TableState>x.state).table, &(<TableState>x.state).live, &x.d, failed): self._send_kept(x, False, failed)
        else: self._fail(x.client, code)

    cdef bint _asks_another(self, Exchange* x, Conn* u) noexcept:
        """The call has failed before it began, and so that its service wants another instance asked. False: that cannot be."""
        cdef Upstream up = <Upstream>u.upstream
        cdef TableState state = <TableState>x.state
        cdef int failed = x.d.instance
        cdef int status = read_status(&self.head) if up.retry_on else -1
        if status < 0 or not (up.retry_on >> status) & 1: return False
        if x.attempts >= up.attempts or not x.request_done or x.saved_len == 0 or not up.affords(gl_now_us()): return False
        if not pick_other(state.table, &state.live, &x.d, failed): return False
        self._leave(x)
        self.retries += 1
        self._send_kept(x, False, failed)
        return True

    cdef void _leave(self, Exchange* x) noexcept:
        """Gives up the upstream connection of an exchange that goes on."""
        cdef Conn* u = x.upstream
        (<Upstream>u.upstream).failures += 1
        (<Upstream>u.upstream).series.failures[0] += 1
        self._detach(x)
        self._kill(u)

    # ---- what comes of how instances answer, see _outliers -----------------------------------------------------------

    cdef void _saw(self, Upstream up, int status, uint64_t us) noexcept:
        """An answer of an instance, or that there was none: NO_ANSWER and the error's code."""
        if not up.conduct.watched: return
        self.outliers.saw(up, status, us, self.now)
        if self.outliers.changed: self._remark()

    cdef void _saw_head(self, Exchange* x, Conn* u) noexcept:
        """The head of an answer is in `head`. A gRPC call's status is in its trailers, unless it ends here."""
        cdef Upstream up = <Upstream>u.upstream
        cdef int status = self.head.status
        if not up.conduct.watched: return
        if up.conduct.watched & TIMES and x.tried_us: x.took_us = gl_now_us() - x.tried_us + 1
        if x.grpc and u.fd < 0 and status == 200:
            if u.ended: self._saw_status(x, up, read_status(&self.head))
        else: self._saw(up, status, x.took_us)

    cdef void _saw_end(self, Exchange* x, Conn* u, const char* trailers, size_t n) noexcept:
        """The end of a gRPC call's answer."""
        if x.grpc and (<Upstream>u.upstream).conduct.watched: self._saw_status(x, <Upstream>u.upstream, status_in(trailers, n))

    cdef void _saw_status(self, Exchange* x, Upstream up, int grpc) noexcept:
        # a deadline that the caller himself has set says nothing of the instance
        if grpc == DEADLINE_EXCEEDED and x.until_us: return
        self._saw(up, http_of(grpc) if grpc != STATUS_NONE else 200, x.took_us)

    cdef void _ticked(self) noexcept:
        """Ejections end, new instances get more."""
        Admission._ticked(self)
        if not due(self.outliers, self.now): return
        self.outliers.look(self.now)
        if self.outliers.changed or self.outliers.news: self._remark()

    cdef void _remark(self) noexcept:
        """Marks of instances have changed."""
        if self.outliers.changed and self.state is not None: self.state.count_down()
        self.outliers.changed = False
        if self.outliers.news and self.on_ejections is not None: self.loop.call_soon(self.on_ejections)
        self.outliers.news = False

    def ejected(self):
        """The instances that are ejected: a list of dicts, with why, how often in a row and the seconds that are left."""
        return self.outliers.told(self.now)
