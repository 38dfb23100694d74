"""Hedging: a request whose answer is late is sent to a second instance as well, and whichever answers first has answered it.

After gRPC's hedging policy (gRFC A6) and Envoy's hedge_policy; what it is good for, and why it must be bounded, is in Dean and
Barroso, "The Tail at Scale" (2013). An attempt waits for its answer in the list of its service's settings (`Retries`), which is in
order of time, for all in it wait equally long. The second attempt is an exchange of its own whose client is a sink, as that of
a copy is; so each attempt has its connection, its clocks and its failures by itself. It never answers: when the head of its
answer comes first, or the first attempt fails, the request takes its connection over (`_take_over`) and goes on with that; else it
is called off, which closes a connection of HTTP/1 and resets a stream with CANCEL. There are never more than two at once.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset
from cpython.ref cimport Py_INCREF
from graylb._attempts cimport Attempts, attach, policy_of
from graylb._clients cimport Clients
from graylb._fast cimport OUT, pick_other, pick_stable
from graylb._limits cimport CALM
from graylb._live cimport (ARMED, CLIENT, HEDGE, MAY_HEDGE, RACES, S_WAIT, Conn, Exchange, Retries, ServiceLive, TableState,
                           Upstream)
from graylb._logs cimport C_SPAN
from graylb._outliers cimport NO_ANSWER
from graylb._retries cimport (GRPC_STATUS, HEDGE_CANCELLED, HEDGE_FAILED, HEDGE_LOST, HEDGE_WON, MAX_ATTEMPTS, STALE, STATUS,
                              RetryPolicy, names_status, spend)
from graylb._sockets cimport gl_now_ms, gl_now_us

from graylb.errors import BY_REASON

cdef int E_CONNECT_FAILED = BY_REASON["connect-failed"].code

cdef enum:
    SOON_US = 500          # a second attempt is this early at most


cdef class Hedges(Attempts):
    """The second attempts of one worker."""

    # ---- before ----------------------------------------------------------------------------------------------------

    cdef void _arm(self, Exchange* x) noexcept:
        """An attempt was sent, the request is complete: from here on its answer can be late."""
        cdef Retries of = <Retries>(<TableState>x.state).retries[x.d.service]
        if x.saved_len == 0 or not _may_go_on(x, &of.policy) or self.closed: return
        x.hedging = ARMED
        x.due_us = gl_now_us() + of.policy.hedge_us
        x.next = NULL
        x.previous = of.last
        if of.last != NULL: of.last.next = x
        else: of.first = x
        of.last = x
        # one that was set for a request that is over meanwhile rings too early, and sets the next one
        if of.alarm is None: self._set_hedge_alarm(of)

    cdef void _disarm(self, Exchange* x) noexcept:
        cdef Retries of = <Retries>(<TableState>x.state).retries[x.d.service]
        if x.previous != NULL: x.previous.next = x.next
        else: of.first = x.next
        if x.next != NULL: x.next.previous = x.previous
        else: of.last = x.previous
        x.next = x.previous = NULL
        x.hedging = MAY_HEDGE

    cdef _set_hedge_alarm(self, Retries of):
        cdef uint64_t now = gl_now_us()
        cdef uint64_t due = of.first.due_us
        of.alarm = self.loop.call_later((due - now) / 1e6 if due > now else 0, self._on_late, of)

    def _on_late(self, Retries of):
        """Whose answer is late by now has a second attempt."""
        cdef uint64_t due = gl_now_us() + SOON_US
        cdef Exchange* x
        of.alarm = None
        if self.closed: return
        self.now = gl_now_ms()
        while of.first != NULL and of.first.due_us <= due:
            x = of.first
            self._disarm(x)
            self._race(x)
        self._reap()
        if of.first != NULL and of.alarm is None: self._set_hedge_alarm(of)

    # ---- the second attempt ----------------------------------------------------------------------------------------

    cdef void _race(self, Exchange* x) noexcept:
        """Sends a request that waits for its answer to another instance too, if there is one for it, if the budget has
        something for it and the machine is not short of anything."""
        cdef ServiceLive live = <ServiceLive>(<TableState>x.state).services[x.d.service]
        cdef RetryPolicy* policy = policy_of(x)
        cdef Exchange* y
        if x.upstream == NULL or not x.request_done or x.saved_len == 0 or not _may_go_on(x, policy) or self.level != CALM: return
        y = self._second(x)
        if y == NULL: return
        if not self._finds_another(x, y, policy): self._abort(y.client)
        elif not spend(&live.budget, live.requests, gl_now_us()):
            live.unaffordable += 1
            self._abort(y.client)
        elif not self._send_second(x, y): self._abort(y.client)

    cdef Exchange* _second(self, Exchange* x) noexcept:
        """An exchange for the second attempt, which has no instance yet; NULL: out of memory."""
        cdef Exchange* y = self._exchange()
        if y == NULL: return NULL
        y.is_copy = 1                                # nobody's request: none is counted at its end
        y.d.instance = -1
        y.client = self._sink()
        if y.client == NULL:
            self._drop_exchange(y)
            return NULL
        y.client.x = y
        y.client.peer = x.client.peer
        Py_INCREF(<TableState>x.state)
        y.state = x.state
        y.hedging = HEDGE
        y.h2 = x.h2
        y.grpc = x.grpc
        y.head_only = x.head_only
        y.request_done = 1
        y.request_kind = x.request_kind
        y.until_us = x.until_us
        y.began_us = x.began_us
        y.connect_ms = x.connect_ms
        y.response_ms = x.response_ms
        y.idle_ms = x.idle_ms
        y.try_ms = x.try_ms
        y.traced = x.traced                          # for the span that its traceparent names
        memcpy(y.span_id, x.span_id, sizeof(x.span_id))
        return y

    cdef bint _finds_another(self, Exchange* x, Exchange* y, const RetryPolicy* policy) noexcept:
        """Decides on an instance to which nothing speaks against a second attempt now. False: there is none."""
        cdef TableState state = <TableState>x.state
        cdef Upstream up
        cdef int32_t avoid[MAX_ATTEMPTS + 1]
        memcpy(avoid, x.tried, sizeof(x.tried))
        avoid[x.n_tried] = x.d.instance
        y.d = x.d
        if not (policy.other_version and pick_stable(state.table, &state.live, &y.d, avoid, x.n_tried + 1)) \
                and not pick_other(state.table, &state.live, &y.d, avoid, x.n_tried + 1): return False
        up = <Upstream>state.upstreams[y.d.instance]
        if up.down & OUT or (up.max and not (self._room_for_stream(up) if x.h2 else Clients._has_room(self, up))): return False
        return x.of_service == NULL or not self._bars(y, up)

    cdef bint _send_second(self, Exchange* x, Exchange* y) noexcept:
        """False: its instance does not take it."""
        cdef Upstream up = <Upstream>(<TableState>x.state).upstreams[y.d.instance]
        cdef Conn* u
        cdef bint sent
        x.attempts += 1
        y.attempts = x.attempts
        x.hedging = RACES
        x.rival = y
        y.rival = x
        if x.h2: u = self._stream_to(up, y)
        else:
            u = self._idle(up, y)                    # which is asked first whether it is open, for this is not tried again
            if u == NULL: u = self._connect(up, x)   # to the instance it is the client of the request
        if u == NULL:
            x.unseen += 1
            if self.exhausted: return False
            up.failures += 1
            up.series.failures[0] += 1
            self._saw(up, NO_ANSWER + E_CONNECT_FAILED, 0)
            return False
        attach(y, up, u)
        if x.captured & C_SPAN: self.logs.tried(x, u, y.d.instance)
        y.connecting_us = gl_now_us() if x.captured and u.connecting else 0
        _lend(x, y)
        self._stamp(y)
        sent = self._send_saved(y) >= 0
        _lend(x, y)
        if sent: self._await(y)
        return sent

    # ---- its end ---------------------------------------------------------------------------------------------------

    cdef bint _gives_way(self, Exchange* x, Conn* u, int cause, int status, size_t rest) noexcept:
        """One of two attempts has failed, or its answer is one that is retried: the request goes on with the other. False: what
        came is an answer."""
        cdef Upstream up = <Upstream>u.upstream
        cdef Exchange* of = x.rival if x.hedging == HEDGE else x
        if cause >= STATUS and not names_status(policy_of(x), cause, status): return False
        if cause >= STATUS: self._try_ended(x, u, -1, status if cause == STATUS else 200, status if cause == GRPC_STATUS else -1)
        if cause <= STALE: of.unseen += 1
        if cause == STATUS and self._is_drained(u, rest):
            up.failures += 1
            self._detach(x)
            self._pool(u)
        else: self._leave(x)
        if x.hedging == HEDGE: self._abort(x.client)
        else:
            _remember(x, x.d.instance)
            self._take_over(x)
            self._arm(x)
        return True

    cdef Exchange* _settle(self, Conn* u) noexcept:
        """The head of an answer is here, and it counts: the other attempt is called off. -> the request that it answers."""
        cdef Exchange* x = u.x
        cdef Conn* late
        if x.hedging == HEDGE:
            x = x.rival
            late = x.upstream
            self._detach(x)
            self._kill(late)
            self._take_over(x)
        elif x.hedging == RACES: self._call_off(x, HEDGE_LOST)
        elif x.hedging == ARMED: self._disarm(x)
        x.hedging = 0
        return x

    cdef void _take_over(self, Exchange* x) noexcept:
        """The second attempt is the request's only one from here on; the first has left its instance."""
        cdef Exchange* y = x.rival
        cdef ServiceLive live = <ServiceLive>(<TableState>x.state).services[x.d.service]
        cdef bint fell_back = y.d.fell_back and not x.d.fell_back
        self._count_hedge(y, HEDGE_WON)
        x.rival = y.rival = NULL
        x.hedging = MAY_HEDGE
        x.d = y.d
        if fell_back:
            live.left_version += 1
            self._count_fallback(x)
        x.upstream = y.upstream
        x.upstream.x = x
        y.upstream = NULL
        x.heard = y.heard
        x.tried_us = y.tried_us
        x.took_us = y.took_us
        x.grpc_status = y.grpc_status
        x.connecting_us = y.connecting_us
        x.connect_us = y.connect_us
        self._abort(y.client)

    cdef void _call_off(self, Exchange* x, int outcome) noexcept:
        """The second attempt is of no use any more."""
        cdef Exchange* y = x.rival
        self._count_hedge(y, outcome)
        if y.upstream != NULL: self._try_ended(x, y.upstream, -1, 0, -1)
        x.rival = y.rival = NULL
        x.hedging = MAY_HEDGE
        self._abort(y.client)

    cdef void _count_hedge(self, Exchange* y, int outcome) noexcept:
        (<Upstream>(<TableState>y.state).upstreams[y.d.instance]).series.hedged[outcome] += 1

    cdef void _end_hedge(self, Exchange* x) noexcept:
        cdef Exchange* of
        if x.hedging == ARMED: self._disarm(x)
        elif x.hedging == RACES: self._call_off(x, HEDGE_CANCELLED)
        elif x.hedging == HEDGE and x.rival != NULL:     # it has failed; the first goes on alone, until that is late once more
            of = x.rival
            self._count_hedge(x, HEDGE_FAILED)
            of.rival = x.rival = NULL
            of.hedging = MAY_HEDGE
            _remember(of, x.d.instance)
            self._arm(of)

    cdef Conn* _sink(self) noexcept:
        """A client that is nobody: of a second attempt, and of a copy."""
        cdef Conn* c = self.conns
        if c != NULL:
            self.conns = c.next
            self.n_conns -= 1
        else:
            c = <Conn*>malloc(sizeof(Conn))
            if c == NULL: return NULL
        memset(c, 0, sizeof(Conn))
        c.fd = -1
        c.side = CLIENT
        c.state = S_WAIT
        c.sink = 1
        c.later = c.earlier = c
        self._place(c)
        return c


cdef bint _may_go_on(Exchange* x, const RetryPolicy* policy) noexcept:
    """Whether there may be one more attempt of all that there may be."""
    return x.attempts - x.unseen < policy.attempts and x.attempts < MAX_ATTEMPTS


cdef void _remember(Exchange* x, int32_t instance) noexcept:
    if x.n_tried >= MAX_ATTEMPTS: return
    x.tried[x.n_tried] = instance
    x.n_tried += 1


cdef void _lend(Exchange* x, Exchange* y) noexcept:
    """What is kept of the request changes hands: there is no need of two."""
    x.saved, y.saved = y.saved, x.saved
    x.saved_len, y.saved_len = y.saved_len, x.saved_len
    x.saved_cap, y.saved_cap = y.saved_cap, x.saved_cap
    x.keep_max, y.keep_max = y.keep_max, x.keep_max
