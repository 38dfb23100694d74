"""Attempts: a request on its way to an instance, on a connection that is found or opened for it, and once more where that
failed and the request may be sent again.
"""

from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcmp, memcpy, memmove
from graylb._admission cimport Admission
from graylb._clients cimport Clients
from graylb._fast cimport Decision, pick_other, pick_stable
from graylb._grpc cimport STATUS_NONE, http_of, read_status, renew_timeout, status_in
from graylb._http1 cimport Head
from graylb._live cimport ARMED, CALLED, MAY_HEDGE, RACES, RESTED, RESTS, S_BODY, TIMES, Conn, Exchange, ServiceLive, TableState, Upstream
from graylb._logs cimport C_SPAN
from graylb._meter cimport Series
from graylb._outliers cimport NO_ANSWER, due
from graylb._pools cimport may_repeat
from graylb._retries cimport (AGAIN, GRPC_STATUS, INVALID, MAX_ATTEMPTS, OTHER_VERSION, RESET, STALE, STANDS, STATUS, TIMED_OUT,
                              UNSEEN, Failure, RetryPolicy, backoff, judge, scramble, spend)
from graylb._sockets cimport gl_now_us, socket_error
from graylb._spans cimport rename

from graylb.errors import BY_REASON

cdef extern from * nogil:
    """
    #include <string.h>
    """
    void* memmem(const void*, size_t, const void*, size_t)

cdef int E_CIRCUIT_OPEN = BY_REASON["circuit-open"].code
cdef int E_OVERLOADED = BY_REASON["overloaded"].code
cdef int E_CONNECT_FAILED = BY_REASON["connect-failed"].code
cdef int E_UPSTREAM_RESET = BY_REASON["upstream-reset"].code
cdef int E_RESPONSE_TIMEOUT = BY_REASON["response-timeout"].code
cdef int E_TRY_TIMEOUT = BY_REASON["try-timeout"].code

cdef enum:
    ATTEMPTS_LINE = 22     # `x-graylb-attempts: 2` and its end
    LEAST_REST_US = 1000   # a shorter rest is none
    SOON_US = 500          # an alarm rings this early at most

cdef enum:
    DEADLINE_EXCEEDED = 4  # of gRPC


cdef class Attempts(Admission):
    """The attempts of one worker."""

    cdef bint _acquire(self, Exchange* x, bint fresh) noexcept:
        """An idle connection to the chosen instance (last in, first out), else a new one; where instances are full, a place
        in the queue of the one first chosen. A request that was called has room at the first. False: failed and answered, or
        x.waiting."""
        cdef TableState state = <TableState>x.state
        cdef Upstream up
        cdef Conn* u
        cdef int tries, barred = 0, full = -1, first = x.d.instance
        cdef int32_t avoid[MAX_ATTEMPTS + 1]
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
            else:
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
                    attach(x, up, u)
                    if x.captured & C_SPAN: self.logs.tried(x, u, x.d.instance)
                    return True
                if called: self._call_all(up)
                if self.exhausted:                   # not the instance is to blame, and no other could be reached
                    self._fail(x.client, E_OVERLOADED)
                    return False
                up.failures += 1
                self._saw(up, NO_ANSWER + E_CONNECT_FAILED, 0)
                up.series.failures[0] += 1
                if x.captured & C_SPAN: self.logs.missed(x, E_CONNECT_FAILED)
                self.retries += 1
                self._remember(x)
                x.unseen += 1
            if x.attempts >= MAX_ATTEMPTS: break
            memcpy(avoid, x.tried, sizeof(x.tried))
            avoid[x.n_tried] = first
            if not pick_other(state.table, &state.live, &x.d, avoid, x.n_tried + 1): break
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
        self._send_kept(x, False)

    cdef void _send_kept(self, Exchange* x, bint fresh) noexcept:
        """Sends a request that is kept, on the connection that `_acquire` finds, or has it wait."""
        cdef Conn* c = x.client
        if not self._acquire(x, fresh): return
        if x.attempts > 1: self._stamp(x)
        while self._send_saved(x) < 0:
            self._leave(x)
            if x.attempts >= MAX_ATTEMPTS:
                self._fail(c, E_UPSTREAM_RESET)
                return
            self.retries += 1
            if not self._acquire(x, True): return
        # only what may be repeated after it was sent stays
        if not x.keeping and not may_repeat(x) and not (x.listed and x.request_done and x.saved_len <= x.keep_max): x.saved_len = 0
        self._await(x)
        if c.state == S_BODY and (c.readable or c.held_len): self._again(c)

    cdef void _stamp(self, Exchange* x) noexcept:
        """Tells the instance which attempt this is: a line behind the request line, one digit that the next writes over."""
        cdef char* at = <char*>memmem(x.saved, x.saved_len, b"\r\n", 2) + 2
        if x.saved_len <= <size_t>(at - x.saved) + ATTEMPTS_LINE or memcmp(at, b"x-graylb-attempts: ", ATTEMPTS_LINE - 3) != 0:
            if self._keep_room(x, ATTEMPTS_LINE) < 0: return
            at = <char*>memmem(x.saved, x.saved_len, b"\r\n", 2) + 2
            memmove(at + ATTEMPTS_LINE, at, x.saved_len - (at - x.saved))
            memcpy(at, b"x-graylb-attempts: 0\r\n", ATTEMPTS_LINE)
            x.saved_len += ATTEMPTS_LINE
            x.keep_max += ATTEMPTS_LINE
        at[ATTEMPTS_LINE - 3] = <char>(48 + x.attempts)

    cdef int _keep_room(self, Exchange* x, size_t n) noexcept:
        """For so many more bytes; -1 out of memory."""
        cdef char* q
        if x.saved_len + n <= x.saved_cap: return 0
        q = <char*>realloc(x.saved, 2 * (x.saved_len + n))
        if q == NULL: return -1
        x.saved = q
        x.saved_cap = 2 * (x.saved_len + n)
        return 0

    cdef int _send_saved(self, Exchange* x) noexcept:
        cdef char* body
        if x.traced and x.attempts > 1: rename(x.saved, x.saved_len, x)
        if x.upstream.fd >= 0 and not x.until_us: return self._send(x.upstream, x.saved, x.saved_len)
        body = <char*>memmem(x.saved, x.saved_len, b"\r\n\r\n", 4) + 4
        if x.until_us: renew_timeout(body, x.until_us - gl_now_us())
        return self._send_request(x, x.saved, body - x.saved, body, x.saved_len - (body - x.saved))

    cdef int _send_request(self, Exchange* x, char* head, size_t n, char* body, size_t bn) noexcept:
        """Head and first body bytes to the upstream; -1: this connection does not take them."""
        cdef Conn* u = x.upstream
        if x.traced and x.attempts > 1: rename(head, n, x)
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
        if x.try_ms and x.request_done and not u.limit:
            u.limit = self.now + x.try_ms
            if u.limit < u.slot_time: self._place(u)
        if not u.connecting: self._waits_from_now(u)
        if x.hedging == MAY_HEDGE and x.request_done: self._arm(x)

    cdef void _waits_from_now(self, Conn* u) noexcept:
        """The instance has been reached: what is allowed for its answer begins to count."""
        cdef Exchange* x = u.x
        if x != NULL: self._set_deadline(u, self.now + (x.response_ms if x.request_done and not x.grpc else x.idle_ms))

    cdef void _save(self, Exchange* x, const char* a, size_t an, const char* b, size_t bn) noexcept:
        """Keeps a complete request so that it can be sent once more if its connection turns out to be stale."""
        if an + bn > x.keep_max or self._keep_request(x, a, an, b, bn) < 0: x.keeping = 0

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
        if not x.keeping: return 0
        if x.saved_len + n > x.keep_max:
            x.keeping = 0
            x.saved_len = 0
            return 0
        if self._keep_room(x, n) < 0: return -1
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
        elif x != NULL: self._waits_from_now(u)
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
        cdef int cause
        if x == NULL:
            self._kill(u)
            return
        c = x.client
        if x.response_begun:
            if x.grpc: self._saw(up, NO_ANSWER + code, 0)    # what it answers stands at the end
            self._abort(u)
            return
        self._try_ended(x, u, code, 0, -1)
        cause = self._cause(u, code)
        # who waits for the rest of a request is not late himself
        if cause != STALE and (code != E_RESPONSE_TIMEOUT or x.request_done): self._saw(up, NO_ANSWER + code, 0)
        if self._once_more(x, u, cause, 0, 0): return
        up.failures += 1
        up.series.failures[0] += 1
        self._fail(c, code)

    cdef int _cause(self, Conn* u, int code) noexcept:
        if self.retriable[code]: return UNSEEN
        # A pooled connection that the instance closed meanwhile: the request met nobody, or its method may be repeated.
        if code == E_UPSTREAM_RESET and u.held_len == 0 and not u.x.heard: return STALE if u.reused else RESET
        return TIMED_OUT if code == E_RESPONSE_TIMEOUT or code == E_TRY_TIMEOUT else INVALID

    cdef bint _can_repeat(self, Exchange* x, Conn* u) noexcept:
        # while connecting nothing has left: what is pending is the whole request so far
        return x.saved_len > 0 or (u.connecting and u.fd >= 0)

    cdef bint _once_more(self, Exchange* x, Conn* u, int cause, int status, size_t rest) noexcept:
        """After a failed attempt the next one, if there may be one: see `_retries`. False: the failure stands.

        status: of an answer that is to be retried; rest: bytes that were received behind its head.
        """
        cdef ServiceLive live = <ServiceLive>(<TableState>x.state).services[x.d.service]
        cdef RetryPolicy* policy = policy_of(x)
        cdef Series series = (<Upstream>u.upstream).series
        cdef Decision before = x.d
        cdef int verdict
        cdef uint64_t wait
        cdef Failure f
        if x.hedging >= RACES: return self._gives_way(x, u, cause, status, rest)
        if x.hedging == ARMED: self._disarm(x)
        f.cause = cause
        f.status = status
        f.attempts = x.attempts
        f.unseen = x.unseen
        f.kept = self._can_repeat(x, u)
        f.idempotent = x.safe
        f.listed = x.listed
        verdict = judge(policy, &f)
        if verdict == STANDS: return False
        if verdict != AGAIN and not self._elsewhere(x, policy, verdict == OTHER_VERSION): return False
        if cause > STALE and not spend(&live.budget, live.requests, gl_now_us()):
            live.unaffordable += 1
            x.d = before
            return False
        # nobody kept it: what is pending behind a PROXY header is the whole request so far
        if x.saved_len == 0 and self._keep_request(x, u.out + u.out_off + u.preface, u.out_len - u.preface, NULL, 0) < 0:
            self._abort(u)
            return True
        if cause >= STATUS:
            self._try_ended(x, u, -1, status if cause == STATUS else 200, status if cause == GRPC_STATUS else -1)
        series.retried[cause] += 1
        x.heard = 0
        if cause <= STALE: x.unseen += 1
        self.retries += 1
        if x.d.fell_back and not before.fell_back:
            live.left_version += 1
            self._count_fallback(x)
        if cause == STATUS and self._is_drained(u, rest):
            (<Upstream>u.upstream).failures += 1
            self._detach(x)
            self._pool(u)
        else: self._leave(x)
        wait = 0
        if cause > STALE or (verdict != AGAIN and x.d.instance == before.instance):
            wait = backoff(policy, x.attempts, scramble(<uint64_t><size_t>x ^ gl_now_us()))
        if wait < LEAST_REST_US: self._send_kept(x, verdict == AGAIN)
        else: self._rest_for(x, wait)
        return True

    cdef bint _elsewhere(self, Exchange* x, const RetryPolicy* policy, bint other_version) noexcept:
        """Chooses an instance that has not failed this request. False: there is none; then `x.d` is as it was."""
        cdef TableState state = <TableState>x.state
        cdef Decision before = x.d
        self._remember(x)
        if other_version and pick_stable(state.table, &state.live, &x.d, x.tried, x.n_tried): return True
        if pick_other(state.table, &state.live, &x.d, x.tried, x.n_tried): return True
        x.d = before
        if policy.other_version and pick_stable(state.table, &state.live, &x.d, x.tried, x.n_tried): return True
        if not policy.same_instance: return False
        x.n_tried = 0
        if not pick_other(state.table, &state.live, &x.d, &before.instance, 1): x.d = before
        return True

    cdef void _remember(self, Exchange* x) noexcept:
        """Its present instance has failed it."""
        if x.n_tried >= MAX_ATTEMPTS: return
        x.tried[x.n_tried] = x.d.instance
        x.n_tried += 1

    cdef bint _answer_retried(self, Exchange* x, Conn* u, size_t rest) noexcept:
        """The scanned head of an answer has a status that its service wants retried, and that is done; rest: see `_once_more`."""
        return x.request_done and self.head.status >= 400 and self._once_more(x, u, STATUS, self.head.status, rest)

    cdef bint _asks_another(self, Exchange* x, Conn* u) noexcept:
        """The call has failed before it began, and so that its service wants another instance asked. False: that cannot be."""
        cdef int status = read_status(&self.head) if policy_of(x).grpc else -1
        return status >= 0 and x.request_done and self._once_more(x, u, GRPC_STATUS, status, 0)

    cdef bint _is_drained(self, Conn* u, size_t rest) noexcept:
        """Whether all of an answer that goes to nobody is here, so that its connection may serve again."""
        cdef Head* h = &self.head
        cdef bint bare = u.x.head_only or h.status == 204 or h.status == 304
        if u.fd < 0 or h.close or (h.minor == 0 and not h.keep_alive): return False
        if not bare and (h.chunked or h.content_length < 0): return False
        return rest == (0 if bare else <size_t>h.content_length) and self._is_reusable(u)

    cdef bint _is_reusable(self, Conn* u) noexcept:
        """Whether a connection whose exchange is complete may go to the pool."""
        cdef Upstream up = <Upstream>u.upstream
        return u.fd >= 0 and not u.no_reuse and not u.shut and u.out_len == 0 and not up.retired \
            and up.n_idle < up.max_idle and (up.max == 0 or up.n_open <= up.max)

    # ---- resting ---------------------------------------------------------------------------------------------------

    cdef void _rest_for(self, Exchange* x, uint64_t us) noexcept:
        """The next attempt waits. The list of those that rest is in order of their time, and mostly grows at its end."""
        cdef Exchange* at = self.last_resting
        cdef Conn* c = x.client
        c.deadline = 0
        if c.shut: self._set_deadline(c, self.now + self.state.grace_ms)
        x.waiting = RESTS
        x.due_us = gl_now_us() + us
        while at != NULL and at.due_us > x.due_us: at = at.previous
        x.previous = at
        x.next = self.first_resting if at == NULL else at.next
        if x.next != NULL: x.next.previous = x
        else: self.last_resting = x
        if at != NULL: at.next = x
        else:
            self.first_resting = x
            self._set_alarm()

    cdef void _rise(self, Exchange* x) noexcept:
        if x.waiting == RESTS:
            if x.previous != NULL: x.previous.next = x.next
            else: self.first_resting = x.next
            if x.next != NULL: x.next.previous = x.previous
            else: self.last_resting = x.previous
            x.next = x.previous = NULL
        x.waiting = 0

    cdef _set_alarm(self):
        """For the first that rests; an alarm that is too early sets the next one."""
        cdef uint64_t now = gl_now_us()
        cdef uint64_t due = self.first_resting.due_us
        if self.closed or (self.alarm is not None and self.alarm_us <= due): return
        if self.alarm is not None: self.alarm.cancel()
        self.alarm_us = due
        self.alarm = self.loop.call_later((due - now) / 1e6 if due > now else 0, self._on_alarm)

    def _on_alarm(self):
        """Who has rested long enough is to run in the next batch."""
        cdef Exchange* x
        cdef uint64_t now = gl_now_us()
        self.alarm = None
        while self.first_resting != NULL and self.first_resting.due_us <= now + SOON_US:
            x = self.first_resting
            self._rise(x)
            x.waiting = RESTED
            self._again(x.client)
        if self.first_resting != NULL: self._set_alarm()

    cdef void _go_on(self, Exchange* x) noexcept:
        """Its turn has come: a connection is kept for it, or the time of its next attempt is here."""
        if x.waiting == CALLED: self._serve(x)
        elif x.waiting == RESTED:
            x.waiting = 0
            self._send_kept(x, False)

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
        if (<Upstream>u.upstream).conduct.watched: self._saw_status(x, <Upstream>u.upstream, status_in(trailers, n))

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
    # ---- hooks -----------------------------------------------------------------------------------------------------

    cdef void _arm(self, Exchange* x) noexcept:
        """An attempt whose answer may come to be late was sent."""

    cdef void _disarm(self, Exchange* x) noexcept:
        """It has ended."""

    cdef bint _gives_way(self, Exchange* x, Conn* u, int cause, int status, size_t rest) noexcept:
        """One of two attempts at once has failed. False: nothing was done about it."""
        return False

    cdef _count_fallback(self, Exchange* x):
        """A request goes to another version than it was decided for."""
