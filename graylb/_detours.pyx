"""Requests that do not go the straight way: those that a fault delays or ends, and copies for another version.

A delayed request is kept as one that waits for a connection is (`Exchange.waiting`): its head is rewritten, its body stays where it
is, it holds no connection and no place in a queue. A timer of the event loop ends its delay, to the millisecond; the wheel of
deadlines is too coarse for what tests of timeouts need.

A copy is collected while its request passes (`_mirrors.Copy`) and becomes an exchange of its own when that is complete. Its client is
a Conn without descriptor and without session, which swallows the answer (`Conn.sink`); its instance is a shadow of the
real one, an Upstream that no table names, so that copies have connections and counters of their own. It is sent with the end of
the batch, behind the request itself, once, to one instance.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memchr
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from graylb._retries cimport MAX_ATTEMPTS
from graylb._fast cimport Service, Table, Target, pick_from
from graylb._faults cimport Fault, drawn
from graylb._http1 cimport BODY_CHUNKED, GRPC, Head, same_name
from graylb._live cimport AUTO, DELAYED, DUE, HTTP2, U_HEAD, Conn, Exchange, ServiceLive, TableState, Upstream
from graylb._mirrors cimport Copy, Mirror, Side
from graylb._sockets cimport gl_now_ms, gl_now_us
from graylb._tunnels cimport Tunnels

from graylb.errors import BY_REASON

cdef int E_INJECTED = BY_REASON["injected-fault"].code


cdef const char* MARK = b"x-graylb-mirror: 1\r\n\r\n"
cdef size_t MARK_LEN = 22
cdef size_t MARK_NAME = 15


cdef class Detour:
    """What is injected into one request. Called when its delay is over."""

    def __call__(self):
        self.timer = None
        if self.x != NULL: self.engine._due(self.x)


cdef class Detours(Tunnels):
    """The requests of one worker that wait on purpose, and the copies."""

    def watch_mirror(self, str service, double seconds, int requests, on_pair):
        """Calls on_pair for each of the next mirrored requests of a service once both of its exchanges are over.

        on_pair: takes (request line, version that answered, version of the copy, its answer, the copy's), an answer as
        (status or 0, head, body, its whole size, trailers, complete), texts as bytes. False: the service mirrors nothing.
        """
        cdef ServiceLive live = self.services.get(service)
        if live is None or live.mirror is None: return False
        self.on_pair = on_pair
        live.mirror.watch(gl_now_ms() + <uint64_t>(seconds * 1000), requests)
        return True

    # ---- faults ----------------------------------------------------------------------------------------------------

    cdef bint _injects(self, Exchange* x, ServiceLive live) noexcept:
        """Draws what is injected into a request. True: it is to be answered with E_INJECTED now."""
        cdef Fault fault = live.faults.of_rule(x.d.rule)
        cdef Detour made
        cdef bint delay, abort
        if fault is None: return False
        delay = drawn(&fault.delay)
        abort = drawn(&fault.abort)
        if delay and fault.held >= fault.max:
            fault.overflows += 1
            delay = False
        if not (delay or abort): return False
        made = Detour.__new__(Detour)
        made.engine = self
        made.x = x
        made.fault = fault
        made.abort = abort
        made.seconds = fault.seconds if delay else 0
        Py_INCREF(made)
        x.detour = <PyObject*>made
        if delay:
            fault.delays += 1
            fault.held += 1
        return not delay

    cdef void _hold_back(self, Exchange* x) noexcept:
        """A request that is kept waits for as long as its fault says."""
        cdef Detour made = <Detour>x.detour
        x.waiting = DELAYED
        x.client.deadline = 0
        made.timer = self.loop.call_later(made.seconds, made)

    cdef _due(self, Exchange* x):
        """The delay is over; it goes on with the next batch."""
        self.now = gl_now_ms()
        x.waiting = DUE
        self._again(x.client)

    cdef void _go_on(self, Exchange* x) noexcept:
        cdef Conn* c = x.client
        if x.waiting != DUE:
            Tunnels._go_on(self, x)
            return
        x.waiting = 0
        if x.is_copy: self._launch(x)
        elif (<Detour>x.detour).abort: self._fail(c, E_INJECTED)
        else:
            self._end_delay(x)
            self._send_kept(x, False)

    cdef void _end_detour(self, Exchange* x) noexcept:
        if x.detour != NULL: self._end_delay(x)
        if x.copy != NULL: self._end_copy(x)

    cdef void _end_delay(self, Exchange* x) noexcept:
        cdef Detour made = <Detour>x.detour
        made.x = NULL
        if made.seconds: made.fault.held -= 1
        if made.timer is not None: made.timer.cancel()
        made.timer = None
        x.detour = NULL
        Py_DECREF(made)

    cdef bytes _injected(self, Exchange* x, bint close_after, int* status):
        cdef Detour made = <Detour>x.detour
        made.fault.aborts += 1
        status[0] = made.fault.status
        x.grpc_status = made.fault.grpc_status + 1
        return made.fault.answer(x.grpc, x.wants_json, close_after)

    # ---- copies ----------------------------------------------------------------------------------------------------

    cdef void _mirrors(self, Exchange* x, Mirror mirror) noexcept:
        """Draws whether a copy of this request is to be sent, and where."""
        cdef TableState state = <TableState>x.state
        cdef Table t = state.table
        cdef const Service* s = &t.services[x.d.service]
        cdef const Target* to = &(<const Target*>(t.base + s.targets))[mirror.target]
        cdef Head* h = &self.head
        cdef uint32_t own = t.instances[x.d.instance].version
        cdef int32_t i
        cdef Copy made
        cdef str version
        if to.version == own or h.websocket or x.detour != NULL and (<Detour>x.detour).abort: return
        if not mirror.takes(h.method, h.method_len) or _is_copy(h) or not drawn(&mirror.draw): return
        i = pick_from(t, &state.live, x.d.service, mirror.target)
        if i < 0:
            mirror.count(t._str(to.label), "no-instance")
            return
        if t.instances[i].version == own: return
        version = t._version(s, t.instances[i].version)
        if h.content_length > <int64_t>mirror.body or mirror.active >= mirror.max:
            mirror.count(version, "too-large" if h.content_length > <int64_t>mirror.body else "busy")
            return
        made = Copy.__new__(Copy)
        made.mirror = mirror
        made.version = version
        made.instance = i
        made.grpc = h.is_grpc == GRPC
        mirror.active += 1
        if mirror.watched_ms > self.now and mirror.to_watch:
            mirror.to_watch -= 1
            made.primary = Side.__new__(Side)
            made.other = Side.__new__(Side)
            made.primary_version = t._version(s, own)
        Py_INCREF(made)
        x.copy = <PyObject*>made

    cdef void _copy_head(self, Exchange* x, size_t n) noexcept:
        """The head in `heads`, as the instance gets it, and the mark of a copy."""
        cdef Copy made = <Copy>x.copy
        made.kind = x.request_kind
        if made.primary is not None: made.line = self.heads[:<char*>memchr(self.heads, 13, n) - self.heads]
        if not made.put(self.heads, n - 2) or not made.put(MARK, MARK_LEN): self._leave_out(x, "failed")
        made.head = made.n

    cdef void _copy_body(self, Exchange* x, const char* p, size_t n) noexcept:
        """Bytes of the body, none of its coding around them."""
        cdef Copy made = <Copy>x.copy
        if not made.add(p, n): self._leave_out(x, "too-large")
        elif x.request_done: self._send_copy(x)

    cdef void _send_copy(self, Exchange* x) noexcept:
        """The request is complete: its copy is an exchange that has its turn at the end of this batch."""
        cdef Copy made = <Copy>x.copy
        cdef TableState state = <TableState>x.state
        cdef Upstream up = <Upstream>state.upstreams[made.instance]
        cdef Exchange* y
        cdef Conn* c
        if made.launched: return
        y = self._exchange()
        c = self._sink() if y != NULL else NULL
        if c == NULL:
            if y != NULL: self._drop_exchange(y)
            self._leave_out(x, "failed")
            return
        made.launched = True
        Py_INCREF(made)
        y.copy = <PyObject*>made
        y.is_copy = 1
        y.client = c
        c.x = y
        c.peer = x.client.peer
        Py_INCREF(state)
        y.state = x.state
        y.d = x.d
        y.d.instance = made.instance
        y.h2 = (up.protocol == HTTP2 or (up.protocol == AUTO and made.grpc and not up.proxy)) and self.h2 != NULL
        y.head_only = x.head_only
        y.request_done = 1
        y.request_kind = made.kind
        y.attempts = MAX_ATTEMPTS                    # there is no other one
        y.connect_ms = <uint64_t>(state.table.services[x.d.service].connect_timeout * 1000)
        y.response_ms = <uint64_t>(state.table.services[x.d.service].response_timeout * 1000)
        y.idle_ms = <uint64_t>(state.table.services[x.d.service].idle_timeout * 1000)
        y.began_us = gl_now_us()
        y.waiting = DUE
        if made.kind == BODY_CHUNKED and not y.h2 and not made.close_body():
            self._abort(c)
            return
        free(y.saved)
        y.saved_len = made.n
        y.saved_cap = made.cap
        y.saved = made.take()
        if made.primary is None: self._end_copy(x)
        self._set_deadline(c, self.now + made.mirror.timeout_ms)
        self._again(c)

    cdef void _launch(self, Exchange* x) noexcept:
        cdef Upstream up = _shadow_of(<Upstream>(<TableState>x.state).upstreams[x.d.instance])
        cdef Conn* u = NULL
        if x.h2: u = self._stream_to(up, x)
        else:
            u = self._idle(up, x)
            if u == NULL: u = self._connect(up, x)
        if u == NULL:
            self._abort(x.client)
            return
        u.state = U_HEAD
        u.x = x
        x.upstream = u
        up.in_flight += 1
        up.requests += 1
        if self._send_saved(x) < 0:
            self._abort(x.client)
            return
        x.saved_len = 0
        self._await(x)

    cdef void _leave_out(self, Exchange* x, str outcome) noexcept:
        """The request goes on, its copy does not."""
        (<Copy>x.copy).outcome = outcome
        self._end_copy(x)

    cdef void _end_copy(self, Exchange* x) noexcept:
        """One of the two has no more to do with it."""
        cdef Copy made = <Copy>x.copy
        x.copy = NULL
        if x.is_copy:
            made.mirror.active -= 1
            made.mirror.count(made.version, "answered" if x.is_copy == 2 else "failed")
            if made.other is not None: made.other.over = 1
        elif not made.launched:
            made.mirror.active -= 1
            made.mirror.count(made.version, made.outcome or "incomplete")
            if made.primary is not None: made.mirror.to_watch += 1
        elif made.primary is not None: made.primary.over = 1
        if made.primary is not None and made.primary.over and made.other.over: self._tell_pair(made)
        Py_DECREF(made)

    cdef _tell_pair(self, Copy made):
        told = made.line, made.primary_version, made.version, made.primary.told(), made.other.told()
        if not self.closed: self.loop.call_soon(self.on_pair, made.mirror.service, told)

    cdef void _note_answer(self, Exchange* x, const char* body, size_t n) noexcept:
        """A final head was scanned; it is kept, with the body bytes behind it, where somebody watches."""
        cdef Side side = _side(x)
        if side is None: return
        side.begin(self.head.status, self.head.start, self.head.end - self.head.start)
        side.add(body, n)

    cdef void _note_bytes(self, Exchange* x, const char* p, size_t n) noexcept:
        cdef Side side = _side(x)
        if side is not None: side.add(p, n)

    cdef void _note_end(self, Exchange* x) noexcept:
        cdef Side side = _side(x)
        if side is not None: side.complete = True
        if x.is_copy: x.is_copy = 2

    cdef void _note_trailers(self, Exchange* x, const char* p, size_t n) noexcept:
        cdef Side side = _side(x)
        if side is not None: side.trailers = p[:n]


cdef Side _side(Exchange* x):
    cdef Copy made = <Copy>x.copy
    return made.other if x.is_copy else made.primary


cdef bint _is_copy(Head* h) noexcept:
    """It has been copied once; copies of copies would grow with every proxy on the way."""
    cdef int i
    for i in range(h.count):
        if h.headers[i].name_len == MARK_NAME and same_name(h.headers[i].name, MARK, MARK_NAME): return True
    return False


cdef Upstream _shadow_of(Upstream up):
    """The same instance, for copies: no maximum, no queue, no warm connections; as its settings and its address are now."""
    cdef Upstream shadow = up.shadow
    if shadow is None: shadow = up.shadow = Upstream(up.service, up.address, up.version, up.series)
    shadow.sa = up.sa
    shadow.sa_len = up.sa_len
    shadow.origin = up.origin
    shadow.protocol = up.protocol
    shadow.proxy = up.proxy
    shadow.streams = up.streams
    shadow.max_idle = up.max_idle
    shadow.idle_ms = up.idle_ms
    shadow.retired = up.retired
    return shadow
