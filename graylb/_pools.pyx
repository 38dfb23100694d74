"""Connections to instances: pooled last in first out, bounded, opened in advance; requests that wait for one.

An instance with a maximum serves waiting requests in their order: when one of its connections comes free or goes, the
first in the queue is called (`_call`), which keeps room for it until its turn to run has come.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcmp
from cpython.ref cimport Py_INCREF, PyObject
from graylb._live cimport ALPN_HTTP1, CALLED, U_HEAD, U_IDLE, UPSTREAM, WAITS, Conn, Exchange, Peer, Upstream
from graylb._proxy cimport write_proxy
from graylb._sockets cimport Sockets, connect_to, exhausted, local_address

cdef enum:
    PEERS_LOOKED_AT = 256  # pooled connections that are asked whether they belong to this client


cdef class Pools(Sockets):
    """The pools of one worker. The engine above them knows exchanges."""

    cdef Conn* _idle(self, Upstream up, Exchange* x) noexcept:
        """A pooled connection, the last one used. For a request that may not be repeated it is asked first whether the
        instance has closed it: the event that says so may stand later in this very batch."""
        cdef Conn* u = up.idle
        cdef Conn* following
        cdef int looked = 0
        while u != NULL and looked < PEERS_LOOKED_AT:
            following = u.next
            looked += 1
            if up.proxy and not _same_peer(&u.peer, &x.client.peer): u = following
            elif may_repeat(x) or self._says_nothing(u):
                self._unpool(u)
                return u
            else:
                self._kill(u)
                u = following
        return NULL

    cdef Conn* _connect(self, Upstream up, Exchange* x) noexcept:
        """Begins a connection for a request; NULL: it failed at once."""
        cdef char header[256]
        cdef uint8_t ours[16]
        cdef uint16_t port
        cdef size_t n
        cdef Conn* u
        # idle ones that were of no use to this request are room all the same
        if up.max and up.n_open >= up.max and up.idle != NULL: self._kill(up.idle)
        u = self._open_to(up)
        if u == NULL: return NULL
        self._set_deadline(u, self.now + x.connect_ms)
        if up.proxy:
            u.peer = x.client.peer
            local_address(x.client.fd, ours, &port)
            n = write_proxy(up.proxy, u.peer.address, ours, 0, u.peer.port, port, u.peer.text_len == 0, header)
            if self._keep(u, header, n) < 0:
                self._kill(u)
                return NULL
            u.preface = <uint8_t>n
        return u

    cdef Conn* _open_to(self, Upstream up, uint8_t alpn=ALPN_HTTP1) noexcept:
        """Begins a connection; alpn: what to offer where it is over TLS."""
        cdef int fd
        cdef Conn* u
        self.exhausted = False
        if up.sa_len == 0: return NULL
        fd = connect_to(&up.sa, up.sa_len)
        if fd < 0:
            self.exhausted = exhausted()
            return NULL
        u = self._new(fd, UPSTREAM)
        if u == NULL: return NULL
        Py_INCREF(up)
        u.upstream = <PyObject*>up
        u.connecting = 1
        up.connects += 1
        up.n_open += 1
        up.series.connects[0] += 1
        up.series.busy[0] += 1
        up.whole.connections += 1
        up.own.connections += 1
        if up.origin is not None and not self._connect_tls(u, up.origin, alpn):
            self._kill(u)
            return NULL
        return u

    cdef _origin_of(self, dict tls, str address):
        """How an instance is called over TLS, if it is; all that are called alike share what that takes."""
        if tls is None: return None
        from graylb import _tls
        key = repr(tls)
        made = self.originations.get(key)
        if made is None:
            own = {part: self.files[tls[part]] for part in ("ca", "cert", "key") if tls[part] is not None}
            made = self.originations[key] = _tls.Origination(**own, server_name=tls["server_name"], verify=tls["verify"],
                                                             min_version=tls["min_version"])
        return _tls.Origin(made, "" if address.startswith("unix:") else address.rpartition(":")[0].strip("[]"))

    cdef void _pool(self, Conn* u) noexcept:
        cdef Upstream up = <Upstream>u.upstream
        u.state = U_IDLE
        u.reused = 1
        u.previous = NULL
        u.next = up.idle
        if up.idle != NULL: up.idle.previous = u
        up.idle = u
        up.n_idle += 1
        up.series.idle[0] += 1
        up.series.busy[0] -= 1
        self._set_deadline(u, self.now + up.idle_ms)
        self._call_all(up)

    cdef void _unpool(self, Conn* u) noexcept:
        cdef Upstream up = <Upstream>u.upstream
        if u.previous != NULL: u.previous.next = u.next
        else: up.idle = u.next
        if u.next != NULL: u.next.previous = u.previous
        u.next = u.previous = NULL
        u.state = U_HEAD
        up.n_idle -= 1
        up.series.idle[0] -= 1
        up.series.busy[0] += 1

    cdef bint _expired_idle(self, Conn* u) noexcept:
        """An unused connection's time is over; one of those that are to be kept open stays. True: it was closed."""
        cdef Upstream up = <Upstream>u.upstream
        if not self._is_spare(up):
            self._set_deadline(u, self.now + up.idle_ms)
            return False
        self._kill(u)
        return True

    cdef bint _is_spare(self, Upstream up) noexcept:
        """Whether there are more connections than are to be kept open."""
        return up.n_open > up.warm or up.retired

    cdef bint _has_room(self, Upstream up) noexcept:
        """Whether one more request may have a connection now, those that were called before it allowed for."""
        return up.max == 0 or up.n_idle + up.max > up.n_open + up.n_called

    # ---- waiting ---------------------------------------------------------------------------------------------------

    cdef void _wait(self, Upstream up, Exchange* x) noexcept:
        x.waiting = WAITS
        x.next = NULL
        x.previous = up.last
        if up.last != NULL: up.last.next = x
        else: up.first = x
        up.last = x
        up.n_waiting += 1
        up.series.waiting[0] += 1
        up.whole.pending += 1
        up.own.pending += 1

    cdef void _leave_queue(self, Upstream up, Exchange* x) noexcept:
        """It need not wait any more, for whatever reason. Room that was kept for it is its own, or `_call_all` gives it on."""
        up.series.waiting[0] -= 1
        up.whole.pending -= 1
        up.own.pending -= 1
        if x.waiting == CALLED:
            up.n_called -= 1
            x.waiting = 0
            return
        if x.previous != NULL: x.previous.next = x.next
        else: up.first = x.next
        if x.next != NULL: x.next.previous = x.previous
        else: up.last = x.previous
        x.next = x.previous = NULL
        x.waiting = 0
        up.n_waiting -= 1

    cdef void _call(self, Upstream up) noexcept:
        """The first that waits is to run at the end of this batch."""
        cdef Exchange* x = up.first
        self._leave_queue(up, x)
        x.waiting = CALLED
        up.n_called += 1
        up.series.waiting[0] += 1
        up.whole.pending += 1
        up.own.pending += 1
        self._again(x.client)

    cdef void _call_all(self, Upstream up) noexcept:
        """As many as there is room for: nobody waits beside room."""
        while up.n_waiting and self._has_room(up): self._call(up)

    cdef void _lost(self, Conn* u) noexcept:
        """A connection to an instance is about to be closed."""
        cdef Upstream up = <Upstream>u.upstream
        if up is None: return
        if u.state == U_IDLE: self._unpool(u)
        up.n_open -= 1
        up.series.busy[0] -= 1
        up.whole.connections -= 1
        up.own.connections -= 1
        self._call_all(up)

    # ---- tables ----------------------------------------------------------------------------------------------------

    cdef void _retire(self, Upstream up) noexcept:
        """No table names it any more: idle connections go now, busy ones when they are done."""
        up.retired = True
        while up.idle != NULL: self._kill(up.idle)
        if up.shadow is not None: self._retire(up.shadow)

    cdef void _fit(self, Upstream up) noexcept:
        """Its settings are new: unused connections above the maximum go, who waits may have room now."""
        while up.max and up.n_open > up.max and up.idle != NULL: self._kill(up.idle)
        self._call_all(up)

    cdef void _warm_up(self) noexcept:
        """Opens what is missing of the connections that are to be open in advance. Called once in WARM_EVERY_MS, so that an
        instance that is down, or closes them, is not tried in a loop."""
        cdef Upstream up
        cdef Conn* u
        self.warmed = self.now
        for up in self.warm:
            while not up.retired and up.n_open < up.warm and (up.max == 0 or up.n_open < up.max):
                u = self._open_warm(up)
                if u == NULL: break

    cdef Conn* _open_warm(self, Upstream up) noexcept:
        cdef Conn* u = self._open_to(up)
        if u != NULL: self._set_deadline(u, self.now + WARM_CONNECT_MS)
        return u


cdef bint may_repeat(Exchange* x) noexcept:
    """Whether the request may be sent once more on another connection, and is kept for that."""
    return x.safe and x.request_done and 0 < x.saved_len <= x.keep_max


cdef bint _same_peer(Peer* a, Peer* b) noexcept:
    return a.port == b.port and a.text_len == b.text_len and memcmp(a.address, b.address, 16) == 0
