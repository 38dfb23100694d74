"""HTTP/2 on connections: sessions of clients and to instances, their streams as Conns, and when each has its turn to send.

A session's socket is received from like any other; what arrives becomes calls to the floors above (`_stream_request` and its
neighbours), from inside the codec. What they submit is sent once, at the end of the batch (`_flush`): many streams, one send.
A stream is a Conn without a descriptor: what is sent to it is pending in `out` until its windows let the codec take it.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF, PyObject
from graylb._clients cimport Clients
from graylb._h2 cimport H2_API, H2_CANCEL, H2_INTERNAL_ERROR, H2_REFUSED_STREAM, H2Api
from graylb._live cimport ALPN_H2, CLIENT, HTTP2, S_LINGER, S_SESSION, UPSTREAM, Conn, Exchange, Session, Upstream
from graylb._pools cimport WARM_CONNECT_MS
from graylb._sockets cimport RECEIVE, gl_clear, gl_now_us, gl_soon

cdef enum:
    LEAVING_MS = 1000      # between the first GOAWAY, which asks for no more, and the second, which says what was taken
    LINGER_MS = 2000


cdef class Streams(Clients):
    """The HTTP/2 connections of one worker."""

    cdef _find_h2(self):
        """Takes the codec if it is in this build."""
        try: from graylb._h2 import api
        except ImportError: return
        self.h2 = <const H2Api*>PyCapsule_GetPointer(api, b"graylb._h2.api")
        if self.h2.version != H2_API: raise ImportError("graylb._h2 is of another build; build the extensions anew")
        self.hooks.request = on_request
        self.hooks.response = on_response
        self.hooks.data = on_data
        self.hooks.end = on_end
        self.hooks.drained = on_drained
        self.hooks.closed = on_closed
        self.hooks.leaving = on_leaving
        self.hooks.rejected = on_rejected
        self.hooks.dirty = on_dirty

    cdef _limit_streams(self, dict limits):
        """Takes a table's limits; sessions that are open keep the windows that they began with."""
        h2 = limits.get("h2") or {}
        self.h2_limits.streams = h2.get("streams", 100)
        self.h2_limits.window = h2.get("window", 65536)
        self.h2_limits.connection_window = h2.get("connection_window", 1 << 20)
        self.h2_limits.head_bytes = limits["head_bytes"]
        self.h2_limits.headers = limits["headers"]
        self.h2_limits.resets = h2.get("resets", 200)
        self.h2_limits.control = h2.get("control", 2000)

    # ---- sessions --------------------------------------------------------------------------------------------------

    cdef bint _begin_session(self, Conn* c) noexcept:
        """From here on this socket carries HTTP/2. False: out of memory."""
        cdef Session* s = self.h2.open(c.side == CLIENT, &self.h2_limits, &self.hooks, <void*>self, c)
        if s == NULL: return False
        c.session = s
        c.state = S_SESSION
        self.sessions += 1
        if c.side == CLIENT:
            self._set_deadline(c, self.now + self.state.client_idle_ms)
            if self.draining: self._leave_clients(c)
        self._mark(s)
        return True

    cdef void _session_readable(self, Conn* c) noexcept:
        """What has arrived goes to the codec, which calls back for what is in it."""
        cdef size_t have, moved = 0
        cdef ssize_t n
        if c.out_len == 0: self._mark(c.session)  # its turn to send may have been cut short
        while not c.dead and not c.session.ending:
            if moved >= self.slice:
                self._again(c)
                return
            n = self._receive(c, &have, self.gulp)
            if n == -2:
                self._kill(c)
                return
            moved += have
            if have and not self._session_bytes(c, self.buf, have): return
            if n == 0 and not c.dead: self._kill(c)
            if n <= 0 or not c.readable: return

    cdef bint _session_bytes(self, Conn* c, const char* p, size_t n) noexcept:
        """False: the peer broke the law or a limit; the connection is closed once that is said."""
        cdef int r
        self.received_us = gl_now_us()
        r = self.h2.receive(c.session, p, n)
        self.received_us = 0
        if r == 0: return not c.dead
        self.sessions_cut += 1
        c.readable = 0
        self._mark(c.session)
        return False

    cdef void _session_expired(self, Conn* c) noexcept:
        """An unused session, or one that was told to take no more requests."""
        cdef Session* s = c.session
        if c.connecting:
            c.timed_out = 1
            self._kill(c)
            return
        if c.side == UPSTREAM and s.n_streams == 0 and not s.ending and not self._is_spare(<Upstream>c.upstream):
            self._set_deadline(c, self.now + (<Upstream>c.upstream).idle_ms)
            return
        if c.side == CLIENT and s.full == 1:                 # the first GOAWAY has had its time
            s.full = 2
            self.h2.go_away(s, True)
            if s.n_streams == 0: s.ending = 1
            self._mark(s)
        elif s.n_streams: return                             # their own deadlines look after them
        elif s.ending: self._kill(c)                         # it does not even read our goodbye
        else:
            s.ending = 1
            self.h2.go_away(s, True)
            self._mark(s)
            self._set_deadline(c, self.now + LEAVING_MS)

    cdef void _leave_clients(self, Conn* c) noexcept:
        """The graceful end of a client's session: it is asked for no more requests, later told which were taken (RFC 9113 6.8)."""
        if c.session.full or c.session.ending: return
        c.session.full = 1
        self.h2.go_away(c.session, False)
        self._mark(c.session)
        self._set_deadline(c, self.now + LEAVING_MS)

    cdef void _session_connected(self, Conn* c) noexcept:
        """The connection to the instance is there: what was submitted goes out, and the clocks of its streams start."""
        cdef Conn* u = c.session.streams
        c.deadline = 0
        while u != NULL:
            u.connecting = 0
            self._waits_from_now(u)
            u = u.next
        if c.session.streams == NULL: self._unused(c.session)
        self._mark(c.session)

    cdef void _lose_session(self, Conn* c, bint reached) noexcept:
        """Its socket is about to be closed: so are its streams. reached: there was a connection."""
        cdef Session* s = c.session
        cdef Conn* each
        cdef uint32_t error
        cdef bint seen
        self._leave_pool(s)
        while s.streams != NULL:
            each = s.streams
            seen = reached and (each.side == CLIENT or self.h2.was_sent(each))
            self.h2.bind(s, each.stream, NULL)
            error = H2_CANCEL if each.side == CLIENT else H2_INTERNAL_ERROR
            self._stream_closed(each, error, seen)
            if not each.dead: self._kill(each)

    cdef void _mark(self, Session* s) noexcept:
        """It has its turn to send at the end of this batch."""
        if s.dirty: return
        s.dirty = 1
        on_dirty(<void*>self, s)

    # ---- sending ---------------------------------------------------------------------------------------------------

    cdef void _flush(self) noexcept:
        """Every session that may have something to send has its turn."""
        cdef Session* s
        while self.dirty != NULL:
            s = self.dirty
            self.dirty = s.following
            s.dirty = 0
            if s.conn.state == S_SESSION and not s.conn.dead and not s.conn.connecting and s.conn.out_len == 0: self._produce(s)

    cdef void _produce(self, Session* s) noexcept:
        cdef Conn* c = s.conn
        cdef ssize_t n = 1
        cdef size_t moved = 0
        while c.out_len == 0:
            if moved >= self.slice:                          # others first
                self._again(c)
                return
            n = self.h2.produce(s, self.buf, RECEIVE)
            if n <= 0: break
            moved += n
            if self._send(c, self.buf, n) < 0:
                self._kill(c)
                return
        if n < 0 or (n == 0 and c.out_len == 0 and (s.ending or self.h2.finished(s))): self._end_session(c)

    cdef void _end_session(self, Conn* c) noexcept:
        """All is said. A client that still sends is read for a moment, for a reset would destroy our goodbye in flight."""
        if c.side == UPSTREAM or (c.shut and not c.readable):
            self._kill(c)
            return
        self._lose_session(c, True)
        self._say_end(c)
        c.state = S_LINGER
        self._set_deadline(c, self.now + LINGER_MS)
        self._again(c)

    cdef int _push(self, Conn* c, const char* p, size_t n) noexcept:
        """What `_send` does for a stream."""
        if c.sink: return 0
        if c.stream == 0 or self._keep(c, p, n) < 0: return -1
        self.h2.more(c)
        return 0

    cdef void _sent(self, Conn* c) noexcept:
        """Nothing of a session's socket is pending any more."""
        self._mark(c.session)

    # ---- streams ---------------------------------------------------------------------------------------------------

    cdef Conn* _new_stream(self, Session* s, int side) noexcept:
        cdef Conn* c = self.conns
        if c != NULL:
            self.conns = c.next
            gl_soon(self.conns, sizeof(Conn))                # of the next one
            self.n_conns -= 1
        else:
            c = <Conn*>malloc(sizeof(Conn))
            if c == NULL: return NULL
        gl_clear(c, sizeof(Conn))
        c.fd = -1
        c.side = side
        c.session = s
        c.later = c.earlier = c
        self._place(c)
        self.streams += 1
        if s.full == 0 and not s.conn.connecting: s.conn.deadline = 0   # in use
        return c

    cdef void _gone(self, Conn* c) noexcept:
        """A stream, or a session's socket, is about to be closed."""
        cdef Session* s = c.session
        if c.fd >= 0:
            self._lose_session(c, not c.connecting)
            self.sessions -= 1
            if c.side == UPSTREAM: self._lost(c)
            return
        if c.stream: self.h2.reset(c, c.code if c.code else (H2_INTERNAL_ERROR if c.side == CLIENT else H2_CANCEL))
        self.streams -= 1
        if s.n_streams == 0 and not s.conn.dead: self._unused(s)
        if c.side == UPSTREAM: self._call_all(<Upstream>c.upstream)

    cdef void _unused(self, Session* s) noexcept:
        """Its last stream is over."""
        cdef Conn* c = s.conn
        cdef Upstream up
        if c.side == CLIENT:
            if s.full == 2: s.ending = 1
            if s.full == 0: self._set_deadline(c, self.now + self.state.client_idle_ms)
            if s.ending: self._mark(s)
            return
        up = <Upstream>c.upstream
        if s.full or up.retired:
            s.ending = 1
            self.h2.go_away(s, True)
            self._mark(s)
        elif not c.connecting: self._set_deadline(c, self.now + up.idle_ms)

    # ---- sessions to instances -------------------------------------------------------------------------------------

    cdef bint _room_for_stream(self, Upstream up) noexcept:
        """Whether one more request may have a stream now, on an open session or a new one."""
        return Clients._has_room(self, up) or open_session(up) != NULL

    cdef bint _has_room(self, Upstream up) noexcept:
        cdef Session* s
        if Clients._has_room(self, up): return True
        s = open_session(up)
        return s != NULL and min(s.max_streams, up.streams) - s.n_streams > up.n_called

    cdef Conn* _stream_to(self, Upstream up, Exchange* x) noexcept:
        """A stream on a session to this instance that takes one more, else on a new one; NULL: it failed at once."""
        cdef Session* s = open_session(up)
        cdef Conn* u
        if s == NULL: s = self._connect_session(up, x.connect_ms)
        if s == NULL: return NULL
        u = self._new_stream(s, UPSTREAM)
        if u == NULL: return NULL
        Py_INCREF(up)
        u.upstream = <PyObject*>up
        u.connecting = s.conn.connecting
        u.reused = s.conn.reused
        s.conn.reused = 1
        return u

    cdef Conn* _open_warm(self, Upstream up) noexcept:
        cdef Session* s
        if up.protocol != HTTP2 or self.h2 == NULL: return Clients._open_warm(self, up)
        s = self._connect_session(up, WARM_CONNECT_MS)
        return s.conn if s != NULL else NULL

    cdef Session* _connect_session(self, Upstream up, uint64_t connect_ms) noexcept:
        cdef Conn* c
        if up.max and up.n_open >= up.max and up.idle != NULL: self._kill(up.idle)
        c = self._open_to(up, ALPN_H2)
        if c == NULL: return NULL
        self._set_deadline(c, self.now + connect_ms)
        if not self._begin_session(c):
            self._kill(c)
            return NULL
        c.session.previous = NULL
        c.session.next = up.sessions
        if up.sessions != NULL: up.sessions.previous = c.session
        up.sessions = c.session
        return c.session

    cdef void _leave_pool(self, Session* s) noexcept:
        """No more requests go by it."""
        cdef Upstream up
        if s.conn.side == CLIENT: return
        up = <Upstream>s.conn.upstream
        if s.previous != NULL: s.previous.next = s.next
        elif up.sessions == s: up.sessions = s.next
        if s.next != NULL: s.next.previous = s.previous
        s.next = s.previous = NULL

    cdef void _retire(self, Upstream up) noexcept:
        cdef Session* s = up.sessions
        cdef Session* following
        Clients._retire(self, up)
        while s != NULL:
            following = s.next
            if s.n_streams == 0 and not s.conn.connecting: self._kill(s.conn)
            s = following

    # ---- the dead --------------------------------------------------------------------------------------------------

    cdef void _reap(self) noexcept:
        if self.dirty != NULL: self._flush()
        Clients._reap(self)

    cdef void _free_session(self, Session* s) noexcept:
        cdef Session** at = &self.dirty
        while at[0] != NULL:
            if at[0] == s: at[0] = s.following
            else: at = &at[0].following
        self.h2.free(s)

    # ---- hooks -----------------------------------------------------------------------------------------------------

    cdef void _waits_from_now(self, Conn* u) noexcept:
        """The session of a stream to an instance is connected."""

    cdef void _stream_request(self, Session* s, int32_t stream, const KnownHead* head, bint end) noexcept:
        """A client's new stream; head is good until this returns."""

    cdef void _stream_response(self, Conn* u, const KnownHead* head, bint end) noexcept:
        """A head of an answer, 1xx included."""

    cdef void _stream_data(self, Conn* c, char* p, size_t n) noexcept:
        """Bytes of a body."""

    cdef void _stream_end(self, Conn* c, char* trailers, size_t n) noexcept:
        """The message is complete."""

    cdef void _stream_closed(self, Conn* c, uint32_t error, bint seen) noexcept:
        """It is over for the peer. seen: the peer may have acted on its request."""


cdef Session* open_session(Upstream up) noexcept:
    """The first that takes one more stream: sessions fill up one by one, and those that are not needed end."""
    cdef Session* s = up.sessions
    while s != NULL:
        if not s.full and not s.ending and s.n_streams < s.max_streams and s.n_streams < up.streams: return s
        s = s.next
    return NULL


# ---- what the codec calls ------------------------------------------------------------------------------------------

cdef void on_request(void* engine, Session* s, int32_t stream, const KnownHead* head, bint end) noexcept:
    (<Streams>engine)._stream_request(s, stream, head, end)


cdef void on_response(void* engine, Conn* u, const KnownHead* head, bint end) noexcept:
    (<Streams>engine)._stream_response(u, head, end)


cdef void on_data(void* engine, Conn* c, char* p, size_t n) noexcept:
    (<Streams>engine)._stream_data(c, p, n)


cdef void on_end(void* engine, Conn* c, char* trailers, size_t n) noexcept:
    (<Streams>engine)._stream_end(c, trailers, n)


cdef void on_drained(void* engine, Conn* c) noexcept:
    cdef Streams self = <Streams>engine
    self._progress(c)
    self._forget(c)
    self._sent(c)


cdef void on_closed(void* engine, Conn* c, uint32_t error) noexcept:
    cdef Streams self = <Streams>engine
    cdef bint seen = error != H2_REFUSED_STREAM and (c.side == CLIENT or self.h2.was_sent(c))
    self._stream_closed(c, error, seen)
    if not c.dead: self._kill(c)


cdef void on_leaving(void* engine, Session* s) noexcept:
    """An instance takes no more on this connection. A client that says so only stops asking."""
    cdef Streams self = <Streams>engine
    if s.conn.side == CLIENT:
        s.full = 0
        return
    self._leave_pool(s)
    if s.n_streams == 0 and not s.conn.dead: self._unused(s)


cdef void on_rejected(void* engine, Session* s, int status) noexcept:
    cdef Streams self = <Streams>engine
    self.statuses[status // 100] += 1
    self.unrouted[status // 100] += 1


cdef void on_dirty(void* engine, Session* s) noexcept:
    cdef Streams self = <Streams>engine
    s.following = self.dirty
    self.dirty = s
    if not self.in_batch: self._kick()
