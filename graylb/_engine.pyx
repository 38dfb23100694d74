"""The engine: data sockets, connections, pools, relay, timers.

uvloop calls in once for a batch of events (`_on_ready`), for new connections (`_on_accept`) and for the clock (`_on_tick`);
everything else is C level. One request, in reading order: `_client_readable` → `_request_head` → `_begin` → `_acquire` →
`_upstream_readable` → `_response_head` → `_finish`.

Rules of the house: a connection is freed only after the batch (`_reap`), for events of this batch may still name it; the
shared buffer belongs to the function that received into it, so nothing below it may start another connection's reading:
that goes through the ready-again list (`_again`).
"""

cimport cython
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from graylb._fast cimport (DECIDED, NO_INSTANCE, NO_ROUTE, REDIRECT, TOO_LARGE, Context, Decision, Live, Query, Route,
                           Service, Table, decide, free_context, make_context, pick_other,
                           write_decision)
from graylb._gate cimport Gate
from graylb._http1 cimport (BODY_CHUNKED, BODY_CLOSE, BODY_LENGTH, BODY_NONE, DROP, H_ACCEPT, H_CONTENT_LENGTH, MAX_HEADERS,
                            Body, Client, ForwardingPolicy, Head, Header, Piece, chunk_head, decode_body, find_blank_line,
                            reset_head, same_name, scan_request, scan_response, start_body, write_request, write_response)
from graylb._live cimport (CLIENT, MAX_HEAD, S_BODY, S_HEAD, S_LINGER, S_TUNNEL, S_WAIT, U_BODY, U_HEAD, U_IDLE, UPSTREAM, Conn,
                           Counter, Exchange, TableState, Upstream, sockaddr_storage)

from graylb._live import is_ip
from graylb.errors import BY_REASON, KINDS

cdef extern from * nogil:
    """
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    static uint64_t gl_now_ms(void) {
      struct timespec t; clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
      return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000; }
    /* accepts one connection; text and packed address of the peer, IPv4 (also when mapped) as IPv4 */
    static int gl_accept(int listener, char *text, uint8_t *packed, uint8_t *v4) {
      struct sockaddr_storage a; socklen_t n = sizeof a; int one = 1;
      int fd = accept4(listener, (struct sockaddr *)&a, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) return -1;
      memset(packed, 0, 16); text[0] = 0; *v4 = 0;
      if (a.ss_family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)&a;
        packed[10] = packed[11] = 0xff; memcpy(packed + 12, &in->sin_addr, 4); *v4 = 1;
      } else if (a.ss_family == AF_INET6) {
        struct sockaddr_in6 *in = (struct sockaddr_in6 *)&a;
        memcpy(packed, &in->sin6_addr, 16); *v4 = IN6_IS_ADDR_V4MAPPED(&in->sin6_addr) != 0; }
      inet_ntop(*v4 ? AF_INET : AF_INET6, *v4 ? packed + 12 : packed, text, 46);
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      return fd; }
    /* begins a connection; -1 with errno */
    static int gl_connect(const struct sockaddr_storage *s, uint32_t n) {
      int one = 1, fd = socket(s->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
      if (fd < 0) return -1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      if (connect(fd, (const struct sockaddr *)s, n) < 0 && errno != EINPROGRESS) {
        int e = errno; close(fd); errno = e; return -1; }
      return fd; }
    static int gl_socket_error(int fd) {
      int e = 0; socklen_t n = sizeof e; if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n) < 0) return errno; return e; }
    static void gl_reset_on_close(int fd) {
      struct linger l = {1, 0}; setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l); }
    static int gl_watch(int ep, int fd, void *p) {
      struct epoll_event e; e.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET; e.data.ptr = p;
      return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e); }
    static ssize_t gl_send2(int fd, const char *a, size_t an, const char *b, size_t bn) {
      struct iovec v[2] = {{(void *)a, an}, {(void *)b, bn}}; struct msghdr m;
      memset(&m, 0, sizeof m); m.msg_iov = v; m.msg_iovlen = 2;
      return sendmsg(fd, &m, MSG_NOSIGNAL); }
    """
    uint64_t gl_now_ms()
    int gl_accept(int, char*, uint8_t*, uint8_t*)
    int gl_connect(const sockaddr_storage*, uint32_t)
    int gl_socket_error(int)
    int gl_watch(int, int, void*)
    void gl_reset_on_close(int)
    ssize_t gl_send2(int, const char*, size_t, const char*, size_t)
    ctypedef union epoll_data_t:
        void* ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_wait(int, epoll_event*, int, int)
    ssize_t send(int, const void*, size_t, int)
    ssize_t recv(int, void*, size_t, int)
    int shutdown(int, int)
    int close(int)
    enum: EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLL_CLOEXEC, MSG_NOSIGNAL, MSG_PEEK, SHUT_WR
    void* memmem(const void*, size_t, const void*, size_t)

cdef enum:
    HEADROOM = 64          # before received bytes: a chunk head is written there
    RECEIVE = 262144
    SMALL = 8192           # a body piece up to this long is copied behind its head: one buffer, one send
    FAIR = 524288          # bytes one connection may move before others have their turn
    EVENTS = 512
    TICK_MS = 100
    WHEEL = 1024           # slots; later deadlines go round again
    MAX_ATTEMPTS = 4
    SAVED_MAX = 65536      # a request longer than this is not kept for another attempt
    LINGER_MS = 2000
    ACCEPT_BATCH = 256
    ACCEPT_PAUSE_MS = 100
    MARGIN = 16384         # room for what heads gain

# errors by code, see graylb.errors
cdef int E_BAD_FRAMING = BY_REASON["bad-framing"].code
cdef int E_BAD_REQUEST = BY_REASON["bad-request"].code
cdef int E_HEADER_TIMEOUT = BY_REASON["header-timeout"].code
cdef int E_BODY_TIMEOUT = BY_REASON["body-timeout"].code
cdef int E_URI_TOO_LONG = BY_REASON["uri-too-long"].code
cdef int E_HEAD_TOO_LARGE = BY_REASON["head-too-large"].code
cdef int E_NO_ROUTE = BY_REASON["no-route"].code
cdef int E_NO_INSTANCE = BY_REASON["no-instance"].code
cdef int E_OVERLOADED = BY_REASON["overloaded"].code
cdef int E_CONNECT_FAILED = BY_REASON["connect-failed"].code
cdef int E_CONNECT_TIMEOUT = BY_REASON["connect-timeout"].code
cdef int E_UPSTREAM_RESET = BY_REASON["upstream-reset"].code
cdef int E_UPSTREAM_INVALID = BY_REASON["upstream-invalid"].code
cdef int E_RESPONSE_TIMEOUT = BY_REASON["response-timeout"].code


cdef enum:
    N_CODES = 32

cdef class Engine:
    """Serves clients by the current table. One engine a worker, on one event loop.

    loop: a running uvloop (or asyncio) loop. worker: number of this worker, sets its counters apart from its siblings'.
    """

    cdef object loop
    cdef object on_ready
    cdef object on_quiet           # called once when draining and no client is left
    cdef int ep
    cdef int worker
    cdef epoll_event* events
    cdef char* memory              # HEADROOM + RECEIVE + slack
    cdef char* buf
    cdef char* heads               # rewritten heads
    cdef size_t heads_size
    cdef Conn* again
    cdef Conn* dead
    cdef Exchange* spare
    cdef Conn wheel[WHEEL]         # list heads
    cdef uint64_t now
    cdef uint64_t ticked
    cdef object ticker
    cdef TableState state
    cdef dict upstreams
    cdef dict counters
    cdef dict listeners
    cdef dict fallbacks
    cdef list answers
    cdef Gate gate
    cdef Head head
    cdef Context context
    cdef bint draining
    cdef bint in_batch
    cdef bint kicked
    cdef bint closed
    cdef readonly int clients
    cdef readonly int upstream_connections
    cdef readonly int exchanges
    cdef readonly int tunnels
    cdef readonly uint64_t accepted
    cdef readonly uint64_t requests
    cdef readonly uint64_t retries
    cdef readonly uint64_t disagreements
    cdef readonly uint64_t aborted
    cdef uint64_t errors[N_CODES]
    cdef bint retriable[N_CODES]
    cdef uint64_t statuses[6]

    def __init__(self, loop, int worker=0):
        cdef int i
        self.loop = loop
        self.worker = worker
        self.ep = epoll_create1(EPOLL_CLOEXEC)
        self.memory = <char*>malloc(HEADROOM + RECEIVE + 64)
        self.heads_size = 3 * (MAX_HEAD) + MARGIN + SMALL
        self.heads = <char*>malloc(self.heads_size)
        self.events = <epoll_event*>malloc(EVENTS * sizeof(epoll_event))
        if self.ep < 0 or self.memory == NULL or self.heads == NULL or self.events == NULL \
                or not make_context(&self.context, MAX_HEAD): raise MemoryError
        self.buf = self.memory + HEADROOM
        for i in range(WHEEL): self.wheel[i].later = self.wheel[i].earlier = &self.wheel[i]
        self.upstreams = {}
        self.counters = {}
        self.listeners = {}
        self.fallbacks = {}
        self.gate = Gate()
        self.now = gl_now_ms()
        self.ticked = self.now // TICK_MS
        # answers[code][json][close]; HEAD cuts the body off
        self.answers = [[[kind.response(json=json, close=close) for close in (False, True)] for json in (False, True)]
                        for kind in KINDS]
        for kind in KINDS: self.retriable[<int>kind.code] = kind.retriable
        self.on_ready = self._on_ready
        loop.add_reader(self.ep, self.on_ready)
        self.ticker = loop.call_later(TICK_MS / 1000.0, self._on_tick)

    def __dealloc__(self):
        cdef Exchange* x
        while self.spare != NULL:
            x = self.spare
            self.spare = x.next
            free(x.saved)
            free(x)
        free(self.memory)
        free(self.heads)
        free(self.events)
        free_context(&self.context)

    # ---- the Python face -------------------------------------------------------------------------------------------

    def swap(self, Table table):
        """Requests whose head completes from now on are decided by this table. Live state is carried over by identity."""
        cdef Upstream u
        before = self.upstreams
        named = {}
        instances = []
        for service, address, version, _ in table.instance_list():
            u = before.get((service, address))
            if u is None or u.version != version: u = Upstream(service, address, version)
            named[service, address] = u
            instances.append(u)
        counters = {name: self.counters.get(name) or Counter(<uint64_t>self.worker * 7919) for name in table.meta["splits"]}
        pick = self.state.live.pick if self.state is not None else <uint64_t>self.worker << 48
        self.state = TableState(table, instances, counters, pick)
        self.upstreams, self.counters = named, counters
        for u in before.values():
            if named.get((u.service, u.address)) is not u: self._retire(u)
        self._reap()

    def listen(self, int fd):
        """Accepts clients from a listening, non-blocking socket. The caller keeps it open until `unlisten`."""
        self.listeners[fd] = True
        self.loop.add_reader(fd, self._on_accept, fd)

    def unlisten(self):
        """Accepts what is in the backlogs, then no more. The caller may close the sockets."""
        for fd in self.listeners: self._on_accept(fd)
        for fd in self.listeners: self.loop.remove_reader(fd)
        self.listeners.clear()

    def drain(self, on_quiet):
        """Accepts no more and lets exchanges finish with `connection: close`; calls on_quiet() when no client is left.

        Idle clients are closed; those that have not asked anything yet have until their header timeout.
        """
        cdef int i
        cdef Conn* c
        cdef Conn* following
        self.unlisten()
        self.draining = True
        self.on_quiet = on_quiet
        for i in range(WHEEL):
            c = self.wheel[i].later
            while c != &self.wheel[i]:
                following = c.later
                if c.side == CLIENT and c.state == S_HEAD and c.reused and c.held_len == 0 and c.out_len == 0 \
                        and not c.readable:
                    self._kill(c)
                c = following
        self._reap()
        self._quiet()

    def close(self):
        """Closes everything at once. To be called before the loop ends, which would wait for our descriptors."""
        cdef int i
        cdef Conn* c
        if self.closed: return
        self.closed = True
        self.unlisten()
        self.ticker.cancel()
        self.loop.remove_reader(self.ep)
        for i in range(WHEEL):
            while self.wheel[i].later != &self.wheel[i]: self._abort(self.wheel[i].later)
        while self.again != NULL:
            c = self.again
            self.again = c.after
            self._bury(c)
        self._reap()
        close(self.ep)

    def upstream_names(self):
        """((service, address), known) of the current instances whose host is a name; known: it was resolved before."""
        cdef Upstream u
        return [((u.service, u.address), u.sa_len > 0) for u in self.upstreams.values() if not is_ip(u.address)]

    def resolved(self, str service, str address, str ip):
        """Takes the IP address found for an instance's host name."""
        u = self.upstreams.get((service, address))
        if u is not None: (<Upstream>u).resolve(ip)

    def stats(self):
        """Counters as a dict of plain values."""
        return {
            "revision": self.state.table.revision if self.state is not None else None,
            "clients": self.clients, "upstream_connections": self.upstream_connections, "exchanges": self.exchanges,
            "tunnels": self.tunnels,
            "accepted": self.accepted, "requests": self.requests, "retries": self.retries, "aborted": self.aborted,
            "disagreements": self.disagreements,
            "statuses": {f"{i}xx": self.statuses[i] for i in range(1, 6)},
            "errors": {kind.reason: self.errors[kind.code] for kind in KINDS if self.errors[kind.code]},
            "fallbacks": [{"service": s, "wanted": w, "got": g, "count": n} for (s, w, g), n in self.fallbacks.items()],
            "instances": [u.figures() for u in self.upstreams.values()],
        }

    # ---- entries from the loop -------------------------------------------------------------------------------------

    def _on_accept(self, int listener):
        cdef Conn* c
        cdef char text[48]
        cdef uint8_t packed[16]
        cdef uint8_t v4
        cdef int i, fd
        self.now = gl_now_ms()
        for i in range(ACCEPT_BATCH):
            fd = gl_accept(listener, text, packed, &v4)
            if fd < 0:
                if errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
                    self._pause_accepting(listener)
                    return
                if errno == EINTR or errno == ECONNABORTED: continue
                return
            c = self._new(fd, CLIENT)
            if c == NULL: continue
            c.state = S_HEAD
            c.v4 = v4
            memcpy(c.address, packed, 16)
            memcpy(c.address_text, text, 48)
            while c.address_text[c.address_len]: c.address_len += 1
            self.clients += 1
            self.accepted += 1
            self._set_deadline(c, self.now + self.state.header_ms)

    cdef _pause_accepting(self, int listener):
        """Out of descriptors: clients wait in the backlog; trying at once would only spin."""
        self.errors[E_OVERLOADED] += 1
        self.loop.remove_reader(listener)
        self.loop.call_later(ACCEPT_PAUSE_MS / 1000.0, self._accept_again, listener)

    def _accept_again(self, int listener):
        if listener in self.listeners: self.loop.add_reader(listener, self._on_accept, listener)

    def _on_ready(self):
        cdef int i, n
        cdef uint32_t ev
        cdef Conn* c
        cdef Conn* batch
        self.kicked = False
        self.in_batch = True
        self.now = gl_now_ms()
        n = epoll_wait(self.ep, self.events, EVENTS, 0)
        for i in range(n):
            c = <Conn*>self.events[i].data.ptr
            ev = self.events[i].events
            if ev & EPOLLOUT and not c.dead and (c.out_len or c.connecting): self._writable(c)
            if ev & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR) and not c.dead: self._event(c, ev)
        batch = self.again
        self.again = NULL
        while batch != NULL:
            c = batch
            batch = c.after
            c.queued = 0
            if c.dead: self._bury(c)
            else: self._readable(c)
        self._reap()
        self.in_batch = False
        if self.again != NULL: self._kick()

    cdef _kick(self):
        if not self.kicked:
            self.kicked = True
            self.loop.call_soon(self.on_ready)

    def _on_tick(self):
        """Looks at every connection whose wheel slot has come round; a deadline that moved on is put back."""
        cdef uint64_t tick
        cdef Conn due                                # list head: what is put back must not be met again in this walk
        cdef Conn* slot
        cdef Conn* c
        self.now = gl_now_ms()
        self.ticker = self.loop.call_later(TICK_MS / 1000.0, self._on_tick)
        tick = self.now // TICK_MS
        if tick > self.ticked + WHEEL: self.ticked = tick - WHEEL
        while self.ticked < tick:
            self.ticked += 1
            slot = &self.wheel[self.ticked % WHEEL]
            if slot.later == slot: continue
            due.later = slot.later
            due.earlier = slot.earlier
            due.later.earlier = due.earlier.later = &due
            slot.later = slot.earlier = slot
            while due.later != &due:
                c = due.later
                self._place(c)
                if c.deadline and c.deadline <= self.now: self._expired(c)
        self._reap()

    # ---- connections -----------------------------------------------------------------------------------------------

    cdef Conn* _new(self, int fd, int side) noexcept:
        cdef Conn* c = <Conn*>calloc(1, sizeof(Conn))
        if c == NULL:
            close(fd)
            return NULL
        c.fd = fd
        c.side = side
        c.later = c.earlier = c
        self._place(c)
        if gl_watch(self.ep, fd, c) < 0:
            self._unplace(c)
            close(fd)
            free(c)
            return NULL
        return c

    cdef void _place(self, Conn* c) noexcept:
        """Into the wheel slot of its deadline; one turn ahead when it has none."""
        cdef uint64_t far = self.now + TICK_MS * (WHEEL // 2)
        cdef uint64_t when = far
        cdef Conn* slot
        if c.deadline and c.deadline < far: when = c.deadline if c.deadline > self.now else self.now
        self._unplace(c)
        c.slot_time = when
        slot = &self.wheel[(when // TICK_MS + 1) % WHEEL]
        c.later = slot
        c.earlier = slot.earlier
        c.earlier.later = c
        slot.earlier = c

    cdef void _unplace(self, Conn* c) noexcept:
        c.earlier.later = c.later
        c.later.earlier = c.earlier
        c.later = c.earlier = c

    cdef inline void _set_deadline(self, Conn* c, uint64_t when) noexcept:
        """Progress costs one store; only an earlier deadline than its slot's moves the connection."""
        c.deadline = when
        if when and when < c.slot_time: self._place(c)

    cdef void _kill(self, Conn* c) noexcept:
        """Closes one connection; its exchange, if any, is the caller's affair."""
        if c.dead: return
        c.dead = 1
        if c.side == UPSTREAM and c.state == U_IDLE: self._unpool(c)
        self._unplace(c)
        close(c.fd)
        if c.side == CLIENT: self.clients -= 1
        else: self.upstream_connections -= 1
        if not c.queued: self._bury(c)

    cdef void _bury(self, Conn* c) noexcept:
        c.next = self.dead
        self.dead = c

    cdef void _reap(self) noexcept:
        cdef Conn* c
        while self.dead != NULL:
            c = self.dead
            self.dead = c.next
            free(c.out)
            free(c.held)
            if c.upstream != NULL: Py_DECREF(<object>c.upstream)
            free(c)
        if self.draining: self._quiet()

    cdef _quiet(self):
        if self.draining and self.clients == 0 and self.on_quiet is not None:
            told, self.on_quiet = self.on_quiet, None
            self.loop.call_soon(told)

    cdef void _again(self, Conn* c) noexcept:
        """Reads this connection once more at the end of the batch."""
        if c.queued or c.dead: return
        c.queued = 1
        c.after = self.again
        self.again = c
        if not self.in_batch: self._kick()

    cdef void _event(self, Conn* c, uint32_t ev) noexcept:
        c.readable = 1
        if ev & (EPOLLRDHUP | EPOLLHUP | EPOLLERR): c.shut = 1
        if c.state == S_TUNNEL:
            if ev & EPOLLERR: self._abort(c)
            else: self._readable(c)
            return
        if ev & (EPOLLHUP | EPOLLERR) and c.side == CLIENT and c.x != NULL:
            # reset, or shut on both sides: nobody is there to read the answer
            self._abort(c)
            return
        if ev & EPOLLRDHUP and c.side == CLIENT and c.state == S_WAIT:
            # half closed while waiting: a client may still read, but one that is gone looks the same; see half_close_grace
            if not c.x.response_begun: self._set_deadline(c, self.now + self.state.grace_ms)
            return
        self._readable(c)

    cdef void _readable(self, Conn* c) noexcept:
        if c.state == S_TUNNEL: self._tunnel(c, c.x.upstream if c.side == CLIENT else c.x.client)
        elif c.side == CLIENT: self._client_readable(c)
        else: self._upstream_readable(c)

    # ---- sending ---------------------------------------------------------------------------------------------------

    cdef int _keep(self, Conn* c, const char* p, size_t n) noexcept:
        """Adds to what is pending; -1 out of memory."""
        cdef size_t need = c.out_len + n
        cdef char* q
        if c.out_off and c.out_off + need > c.out_cap:
            memmove(c.out, c.out + c.out_off, c.out_len)
            c.out_off = 0
        if need > c.out_cap - c.out_off:
            q = <char*>realloc(c.out, need + 1024)
            if q == NULL: return -1
            c.out = q
            c.out_cap = need + 1024
        memcpy(c.out + c.out_off + c.out_len, p, n)
        c.out_len = need
        return 0

    cdef int _send(self, Conn* c, const char* p, size_t n) noexcept:
        """Sends what the kernel takes and keeps the rest; -1: the connection is broken."""
        cdef ssize_t w = 0
        if c.out_len == 0 and not c.connecting:
            w = send(c.fd, p, n, MSG_NOSIGNAL)
            if w < 0:
                if errno != EAGAIN and errno != EINTR: return -1
                w = 0
            if <size_t>w == n: return 0
        return self._keep(c, p + w, n - w)

    cdef int _send_two(self, Conn* c, char* a, size_t an, const char* b, size_t bn) noexcept:
        """Head and body piece in one system call. `a` has SMALL bytes of room behind it."""
        cdef ssize_t w = 0
        if bn == 0: return self._send(c, a, an)
        if bn <= SMALL:
            memcpy(a + an, b, bn)
            return self._send(c, a, an + bn)
        if c.out_len == 0 and not c.connecting:
            w = gl_send2(c.fd, a, an, b, bn)
            if w < 0:
                if errno != EAGAIN and errno != EINTR: return -1
                w = 0
            if <size_t>w == an + bn: return 0
        if <size_t>w < an:
            return -1 if self._keep(c, a + w, an - w) < 0 else self._keep(c, b, bn)
        return self._keep(c, b + (w - an), bn - (w - an))

    cdef void _writable(self, Conn* c) noexcept:
        cdef ssize_t w
        cdef Conn* peer
        if c.connecting and not self._connected(c): return
        while c.out_len:
            w = send(c.fd, c.out + c.out_off, c.out_len, MSG_NOSIGNAL)
            if w < 0:
                if errno == EAGAIN: return
                if errno == EINTR: continue
                self._broken(c)
                return
            c.out_off += w
            c.out_len -= w
            self._progress(c)
        free(c.out)
        c.out = NULL
        c.out_off = c.out_cap = 0
        if c.closing:
            self._linger(c)
            return
        if c.x == NULL:
            if c.side == CLIENT: self._rest(c)
            return
        if c.half_close and not self._pass_end(c): return
        peer = c.x.upstream if c.side == CLIENT else c.x.client
        if peer != NULL and (peer.readable or peer.held_len): self._again(peer)

    cdef inline void _progress(self, Conn* c) noexcept:
        """Bytes moved: the exchange is not idle."""
        cdef Exchange* x = c.x
        if x == NULL: return
        if x.upstream != NULL and not x.upstream.connecting and (x.upstream.state != U_HEAD or not x.request_done):
            self._set_deadline(x.upstream, self.now + x.idle_ms)

    cdef void _broken(self, Conn* c) noexcept:
        """A send failed."""
        if c.side == CLIENT: self._abort(c)
        elif c.x == NULL: self._kill(c)
        # an upstream may have answered before it stopped reading: its answer comes first
        elif c.x.response_begun or c.state == U_BODY: self._upstream_failed(c, E_UPSTREAM_RESET)
        else:
            c.out_len = 0
            c.readable = 1
            c.shut = 1
            c.x.request_done = 0
            self._again(c)

    # ---- ends ------------------------------------------------------------------------------------------------------

    cdef Exchange* _exchange(self) noexcept:
        cdef Exchange* x = self.spare
        cdef char* saved
        cdef size_t cap
        if x == NULL: x = <Exchange*>calloc(1, sizeof(Exchange))
        else:
            self.spare = x.next
            saved = x.saved
            cap = x.saved_cap
            memset(x, 0, sizeof(Exchange))
            x.saved = saved
            x.saved_cap = cap
        if x != NULL: self.exchanges += 1
        return x

    cdef void _drop_exchange(self, Exchange* x) noexcept:
        """Unties both sides; connections are dealt with by the caller."""
        if x.client != NULL: x.client.x = NULL
        if x.client != NULL and x.client.state == S_TUNNEL: self.tunnels -= 1
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

    cdef void _detach(self, Exchange* x) noexcept:
        (<Upstream>x.upstream.upstream).in_flight -= 1
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
            self.aborted += 1
            # an answer that its end delimits would look complete behind an orderly close
            if x.response_begun and x.response_kind == BODY_CLOSE and d != NULL: gl_reset_on_close(d.fd)
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
        shutdown(c.fd, SHUT_WR)
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
        else: self._kill(c)

    cdef void _fail(self, Conn* c, int code) noexcept:
        """Answers with an error of ours and ends the exchange. The request body, if any is left, is not read."""
        cdef Exchange* x = c.x
        cdef bint wants_json = False, head_only = False, close_after = True
        cdef Conn* u = NULL
        cdef size_t n
        self.errors[code] += 1
        if x != NULL:
            wants_json = x.wants_json
            head_only = x.head_only
            close_after = x.close_client or not x.request_done or self.draining
            u = x.upstream
        n = self._write_answer(x, self.answers[code][wants_json][close_after], head_only)
        if x != NULL:
            self._drop_exchange(x)
            if u != NULL: self._kill(u)
        self.statuses[<int>KINDS[code].status // 100] += 1
        if self._send(c, self.heads, n) < 0:
            self._kill(c)
            return
        if close_after: self._close_client(c, True)
        else: self._next_request(c)

    cdef size_t _write_answer(self, Exchange* x, bytes answer, bint head_only) noexcept:
        """An answer of ours into `heads`, with the decision if there is one to tell and it is to be told."""
        cdef const char* p = PyBytes_AS_STRING(answer)
        cdef size_t n = PyBytes_GET_SIZE(answer)
        cdef size_t head = <const char*>memmem(p, n, b"\r\n\r\n", 4) - p + 2
        cdef TableState state
        cdef size_t at = head
        memcpy(self.heads, p, head)
        if x != NULL and x.d.service >= 0:
            state = <TableState>x.state
            if state.decision_headers: at += write_decision(state.table, &x.d, self.heads + at, 2048)
        if head_only: n = head + 2
        memcpy(self.heads + at, p + head, n - head)
        return at + n - head

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

    # ---- time ------------------------------------------------------------------------------------------------------

    cdef void _expired(self, Conn* c) noexcept:
        cdef Exchange* x = c.x
        c.deadline = 0
        if c.side == CLIENT:
            if c.state == S_HEAD and x == NULL:
                if c.held_len: self._fail(c, E_HEADER_TIMEOUT)
                else: self._kill(c)
            elif c.state == S_BODY and x != NULL and not x.response_begun and not x.request_done:
                if x.upstream != NULL and x.upstream.out_len:      # it is the upstream that does not read
                    self._set_deadline(c, self.now + self.state.body_ms)
                else: self._fail(c, E_BODY_TIMEOUT)
            elif c.state == S_WAIT and x != NULL and x.response_begun: self._place(c)
            else: self._abort(c)
        elif c.state == U_IDLE: self._kill(c)
        elif c.connecting: self._upstream_failed(c, E_CONNECT_TIMEOUT)
        elif x != NULL and x.response_begun: self._abort(c)
        else: self._upstream_failed(c, E_RESPONSE_TIMEOUT)

    # ---- the client side -------------------------------------------------------------------------------------------

    cdef ssize_t _receive(self, Conn* c, size_t* have) noexcept:
        """Held bytes, then what the kernel has, into the shared buffer. >0 something is there, 0 end, -1 nothing, -2 broken."""
        cdef ssize_t n
        have[0] = c.held_len
        if c.held_len:
            memcpy(self.buf, c.held, c.held_len)
            c.held_len = 0
        if not c.readable: return 1 if have[0] else -1
        n = recv(c.fd, self.buf + have[0], RECEIVE - have[0], 0)
        if n > 0:
            # a short read has drained the socket, but behind a shut the end itself is still to be read
            if <size_t>n < RECEIVE - have[0] and not c.shut: c.readable = 0
            have[0] += n
            return n
        if n == 0:
            c.shut = 1
            c.readable = 0
            return 0
        if errno == EAGAIN:
            c.readable = 0
            return -1
        return -1 if errno == EINTR else -2

    cdef int _hold(self, Conn* c, const char* p, size_t n) noexcept:
        """Keeps received bytes for later; p may lie in the shared buffer."""
        cdef char* q
        if n > c.held_cap:
            q = <char*>realloc(c.held, n + 512)
            if q == NULL: return -1
            c.held = q
            c.held_cap = n + 512
        memcpy(c.held, p, n)
        c.held_len = n
        return 0

    cdef void _client_readable(self, Conn* c) noexcept:
        cdef size_t have, moved = 0
        cdef ssize_t n
        while not c.dead:
            if c.state == S_WAIT: return             # pipelined bytes wait in the kernel
            if c.state == S_HEAD and c.out_len: return
            if c.state == S_BODY and (c.x.upstream == NULL or c.x.upstream.out_len): return
            if moved >= FAIR:
                self._again(c)
                return
            if c.state == S_HEAD and c.partial:
                if not self._more_of_head(c):
                    if c.dead or not c.readable: return
                    continue
                c.partial = 0
                n = 1
                have = c.held_len
                memcpy(self.buf, c.held, have)
                c.held_len = 0
            else: n = self._receive(c, &have)
            if n == -2:
                self._abort(c)
                return
            moved += have
            if c.state == S_HEAD:
                if not self._head_bytes(c, have, n): return
            elif c.state == S_BODY:
                if not self._body_bytes(c, have, n): return
            else:
                # lingering: thrown away
                if n == 0 and c.out_len == 0: self._kill(c)
                if n <= 0 or not c.readable: return

    cdef bint _head_bytes(self, Conn* c, size_t have, ssize_t n) noexcept:
        """Bytes of a head are in the shared buffer. True: go on reading."""
        cdef char* p = self.buf
        cdef int r
        if n == 0 and c.out_len == 0 and (have == 0 or not find_blank_line(p, p + have)):
            self._kill(c)                            # the end between messages, or inside a head
            return False
        while have >= 2 and p[0] == 13 and p[1] == 10:     # RFC 9112 2.2: empty lines before a request are skipped
            p += 2
            have -= 2
        if have == 0: return n > 0 and c.readable
        reset_head(&self.head, self.state.max_headers)
        r = 0 if have == 1 and p[0] == 13 else scan_request(&self.head, p, p + have, self.state.max_headers)
        if r == 0: return self._head_incomplete(c, p, have)
        if r > 0 and <size_t>(self.head.end - p) > self.state.head_bytes:
            self.head.error = E_HEAD_TOO_LARGE
            r = -1
        if r > 0 and self.head.target_len > self.state.uri_bytes:
            self.head.error = E_URI_TOO_LONG
            r = -1
        if r > 0 and not self.gate.admits(&self.head):
            self.disagreements += 1
            self.head.error = E_BAD_REQUEST
            r = -1
        if r < 0:
            self._fail(c, self.head.error)
            return False
        self._request_head(c, p, have)
        return not c.dead and c.state == S_BODY

    cdef bint _head_incomplete(self, Conn* c, char* p, size_t have) noexcept:
        """Keeps a first part of a head; the rest is received behind it by `_more_of_head`."""
        if self.head.target_len > self.state.uri_bytes:
            self._fail(c, E_URI_TOO_LONG)
            return False
        if have > self.state.head_bytes:
            self._fail(c, E_HEAD_TOO_LARGE)
            return False
        if self._hold(c, p, have) < 0:
            self._kill(c)
            return False
        if not c.partial: self._set_deadline(c, self.now + self.state.header_ms)
        c.partial = 1
        return c.readable

    cdef bint _more_of_head(self, Conn* c) noexcept:
        """A slow sender's bytes go straight behind those held, and only the new ones are looked at. True: a blank line came."""
        cdef size_t room = self.state.head_bytes + 1 - c.held_len
        cdef size_t known = c.held_len - 3 if c.held_len > 3 else 0
        cdef char* q
        cdef ssize_t n
        if not c.readable: return False
        if room > 4096: room = 4096
        if c.held_len + room > c.held_cap:
            q = <char*>realloc(c.held, 2 * (c.held_len + room))
            if q == NULL:
                self._kill(c)
                return False
            c.held = q
            c.held_cap = 2 * (c.held_len + room)
        n = recv(c.fd, c.held + c.held_len, room, 0)
        if n <= 0:
            if n < 0 and (errno == EAGAIN or errno == EINTR): c.readable = errno == EINTR
            else: self._kill(c)                      # the end inside a head
            return False
        if <size_t>n < room and not c.shut: c.readable = 0
        c.held_len += n
        return c.held_len > self.state.head_bytes or find_blank_line(c.held + known, c.held + c.held_len)

    cdef void _request_head(self, Conn* c, char* p, size_t have) noexcept:
        """A whole, lawful head: decide and begin."""
        cdef Head* h = &self.head
        cdef Exchange* x = self._exchange()
        cdef TableState state = self.state
        cdef Query q
        if x == NULL:
            self._kill(c)
            return
        self.requests += 1
        c.x = x
        x.client = c
        Py_INCREF(state)
        x.state = <PyObject*>state
        x.minor = h.minor
        x.head_only = h.is_head
        x.keep_alive = not h.close and (h.minor == 1 or h.keep_alive)
        x.close_client = not x.keep_alive
        x.wants_json = _accepts_json(h)
        x.safe = _idempotent(h)
        x.websocket = h.websocket
        start_body(&x.request, BODY_CHUNKED if h.chunked else (BODY_LENGTH if h.content_length > 0 else BODY_NONE),
                   h.content_length)
        x.request_kind = x.request.kind
        x.request_done = x.request.kind == BODY_NONE
        c.state = S_WAIT if x.request_done else S_BODY
        q.head = h
        q.ip = c.address_text
        q.ip_len = c.address_len
        q.v4 = c.v4
        memcpy(q.address, c.address, 16)
        decide(state.table, &q, &self.context, &state.live, &x.d)
        if x.d.fell_back: self._count_fallback(x)
        if x.d.outcome != DECIDED: self._undecided(c, p, have)
        else: self._begin(c, p, have)

    cdef void _undecided(self, Conn* c, char* p, size_t have) noexcept:
        cdef Exchange* x = c.x
        cdef int code
        # a body that is wholly here needs no closing
        if not x.request_done or <size_t>(self.head.end - p) < have: self._rest_of_request(c, p, have)
        if x.d.outcome == REDIRECT:
            self._redirect(c)
            return
        if x.d.outcome == NO_ROUTE: code = E_NO_ROUTE
        elif x.d.outcome == NO_INSTANCE: code = E_NO_INSTANCE
        else: code = E_HEAD_TOO_LARGE
        self._fail(c, code)

    cdef void _rest_of_request(self, Conn* c, char* p, size_t have) noexcept:
        """Takes what of the body arrived with the head, for an answer of ours that needs none of it; holds what follows."""
        cdef Exchange* x = c.x
        cdef Piece piece
        cdef char* s = <char*>self.head.end
        cdef size_t rest = have - (s - p)
        piece.used = 0
        if not x.request_done:
            if decode_body(&x.request, s, rest, &piece) < 0: return
            if not piece.done: return
            x.request_done = 1
            c.state = S_WAIT
        if rest > piece.used: self._hold(c, s + piece.used, rest - piece.used)

    cdef void _redirect(self, Conn* c) noexcept:
        """A route's redirect: parts it does not name stay as the request has them."""
        cdef Exchange* x = c.x
        cdef Table t = (<TableState>x.state).table
        cdef const Route* r = &t.routes[x.d.route]
        cdef Head* h = &self.head
        cdef bint close_after = x.close_client or not x.request_done or self.draining
        scheme = t._str(r.scheme) if r.parts & 1 else "http"
        host = t._str(r.host) if r.parts & 2 else h.host[:h.host_len].decode("latin-1")
        path = t._str(r.to_path) if r.parts & 4 else h.path[:h.path_len].decode("latin-1")
        query = "?" + h.query[:h.query_len].decode("latin-1") if h.query != NULL else ""
        cdef bytes answer = (f"HTTP/1.1 {r.status} {REDIRECTS.get(r.status, 'Redirect')}\r\n"
                             f"location: {scheme}://{host}{path}{query}\r\ncontent-length: 0\r\n"
                             f"{'connection: close' + chr(13) + chr(10) if close_after else ''}\r\n").encode("latin-1", "replace")
        self.statuses[3] += 1
        self._drop_exchange(x)
        if self._send(c, PyBytes_AS_STRING(answer), PyBytes_GET_SIZE(answer)) < 0: self._kill(c)
        elif close_after: self._close_client(c, True)
        else: self._next_request(c)

    cdef _count_fallback(self, Exchange* x):
        cdef Table t = (<TableState>x.state).table
        cdef const Service* s = &t.services[x.d.service]
        key = t._str(s.name), t._version(s, x.d.wanted), self._got(t, &x.d)
        self.fallbacks[key] = self.fallbacks.get(key, 0) + 1

    cdef str _got(self, Table t, Decision* d):
        return t._version(&t.services[d.service], t.instances[d.instance].version) if d.instance >= 0 else None

    cdef void _begin(self, Conn* c, char* p, size_t have) noexcept:
        """Rewrites the head, finds a connection and sends head and first body bytes in one go."""
        cdef Exchange* x = c.x
        cdef TableState state = <TableState>x.state
        cdef const Service* s = &state.table.services[x.d.service]
        cdef const Route* r = &state.table.routes[x.d.route]
        cdef Client told
        cdef char* body = <char*>self.head.end
        cdef char* e
        cdef size_t size
        cdef Piece piece
        told.address = c.address_text
        told.address_len = c.address_len
        told.scheme = b"http"
        told.scheme_len = 4
        e = write_request(&self.head, self.heads, &state.policy, &told, x.request_kind,
                          NULL, r.path.n if r.has_rewrite else 0,
                          state.table.base + r.rewrite.off, r.rewrite.n if r.has_rewrite else 0)
        size = e - self.heads
        x.connect_ms = <uint64_t>(s.connect_timeout * 1000)
        x.response_ms = <uint64_t>(s.response_timeout * 1000)
        x.idle_ms = <uint64_t>(s.idle_timeout * 1000)
        if not self._take_body(c, body, have - (body - p), &piece): return
        c.deadline = 0
        # only what may be repeated after it was sent needs a copy; what could not be sent at all is still here
        if x.request_done and x.safe: self._save(x, self.heads, size, piece.data, piece.length)
        if not self._acquire(x, False): return
        while self._send_two(x.upstream, self.heads, size, piece.data, piece.length) < 0:
            # the kernel took nothing: a pooled connection was closed under us, and nobody has seen this request
            self._leave(x)
            if x.attempts >= MAX_ATTEMPTS:
                self._fail(c, E_UPSTREAM_RESET)
                return
            self.retries += 1
            if not self._acquire(x, True): return
        self._await(x)

    cdef void _leave(self, Exchange* x) noexcept:
        """Gives up the upstream connection of an exchange that goes on."""
        cdef Conn* u = x.upstream
        (<Upstream>u.upstream).failures += 1
        self._detach(x)
        self._kill(u)

    cdef void _await(self, Exchange* x) noexcept:
        """Sets the clocks after something was sent to the upstream."""
        if not x.request_done: self._set_deadline(x.client, self.now + self.state.body_ms)
        elif x.client.shut and not x.response_begun: self._set_deadline(x.client, self.now + self.state.grace_ms)
        if not x.upstream.connecting:
            self._set_deadline(x.upstream, self.now + (x.response_ms if x.request_done else x.idle_ms))

    cdef void _save(self, Exchange* x, const char* a, size_t an, const char* b, size_t bn) noexcept:
        """Keeps a complete request so that it can be sent once more if its connection turns out to be stale."""
        cdef char* q
        if an + bn > SAVED_MAX: return
        if an + bn > x.saved_cap:
            q = <char*>realloc(x.saved, an + bn + 256)
            if q == NULL: return
            x.saved = q
            x.saved_cap = an + bn + 256
        memcpy(x.saved, a, an)
        if bn: memcpy(x.saved + an, b, bn)
        x.saved_len = an + bn

    cdef bint _take_body(self, Conn* c, char* p, size_t n, Piece* piece) noexcept:
        """Decodes request body bytes at p and encodes them for the upstream, in place. False: malformed, answered."""
        cdef Exchange* x = c.x
        if decode_body(&x.request, p, n, piece) < 0:
            if x.response_begun: self._abort(c)
            else: self._fail(c, E_BAD_FRAMING)
            return False
        if piece.done:
            x.request_done = 1
            c.state = S_WAIT
            c.deadline = 0
        if piece.used < n and self._hold(c, p + piece.used, n - piece.used) < 0:
            self._abort(c)
            return False
        _encode(x.request_kind, piece)
        return True

    cdef bint _body_bytes(self, Conn* c, size_t have, ssize_t n) noexcept:
        """Bytes of a request body are in the shared buffer. True: go on reading."""
        cdef Exchange* x = c.x
        cdef Piece piece
        if have == 0:
            if n == 0: self._abort(c)                # gone in the middle of its request
            return False
        if not self._take_body(c, self.buf, have, &piece): return False
        if piece.length and self._send(x.upstream, piece.data, piece.length) < 0:
            self._broken(x.upstream)
            return False
        self._await(x)
        return c.state == S_BODY and c.readable

    # ---- the upstream side -----------------------------------------------------------------------------------------

    cdef bint _acquire(self, Exchange* x, bint fresh) noexcept:
        """An idle connection to the chosen instance (last in, first out), else a new one. False: failed, answered."""
        cdef TableState state = <TableState>x.state
        cdef Upstream up
        cdef Conn* u
        cdef int fd, first = x.d.instance
        while True:
            x.attempts += 1
            up = <Upstream>state.upstreams[x.d.instance]
            u = NULL if fresh else self._idle(up, x)
            if u == NULL: u = self._connect(up, x)
            if u != NULL:
                u.state = U_HEAD
                u.x = x
                x.upstream = u
                up.in_flight += 1
                up.requests += 1
                return True
            up.failures += 1
            if x.attempts >= MAX_ATTEMPTS or not pick_other(state.table, &state.live, &x.d, first):
                self._fail(x.client, E_CONNECT_FAILED)
                return False
            self.retries += 1

    cdef Conn* _idle(self, Upstream up, Exchange* x) noexcept:
        """A pooled connection, the last one used. For a request that may not be repeated it is asked first whether the
        instance has closed it: the event that says so may stand later in this very batch."""
        cdef Conn* u
        cdef char probe
        while up.idle != NULL:
            u = up.idle
            if x.safe or (recv(u.fd, &probe, 1, MSG_PEEK) < 0 and errno == EAGAIN):
                self._unpool(u)
                return u
            self._kill(u)
        return NULL

    cdef Conn* _connect(self, Upstream up, Exchange* x) noexcept:
        cdef int fd
        cdef Conn* u
        if up.sa_len == 0: return NULL
        fd = gl_connect(&up.sa, up.sa_len)
        if fd < 0: return NULL
        u = self._new(fd, UPSTREAM)
        if u == NULL: return NULL
        Py_INCREF(up)
        u.upstream = <PyObject*>up
        u.connecting = 1
        up.connects += 1
        self.upstream_connections += 1
        self._set_deadline(u, self.now + x.connect_ms)
        return u

    cdef bint _connected(self, Conn* u) noexcept:
        """The connection attempt has ended, one way or the other."""
        cdef Exchange* x = u.x
        if gl_socket_error(u.fd) != 0:
            self._upstream_failed(u, E_CONNECT_FAILED)
            return False
        u.connecting = 0
        if x != NULL:
            self._set_deadline(u, self.now + (x.response_ms if x.request_done else x.idle_ms))
        return True

    cdef void _pool(self, Conn* u) noexcept:
        cdef Upstream up = <Upstream>u.upstream
        u.state = U_IDLE
        u.reused = 1
        u.previous = NULL
        u.next = up.idle
        if up.idle != NULL: up.idle.previous = u
        up.idle = u
        up.n_idle += 1
        self._set_deadline(u, self.now + self.state.upstream_idle_ms)

    cdef void _unpool(self, Conn* u) noexcept:
        cdef Upstream up = <Upstream>u.upstream
        if u.previous != NULL: u.previous.next = u.next
        else: up.idle = u.next
        if u.next != NULL: u.next.previous = u.previous
        u.next = u.previous = NULL
        u.state = U_HEAD
        up.n_idle -= 1

    cdef void _retire(self, Upstream up) noexcept:
        """No table names it any more: idle connections go now, busy ones when they are done."""
        up.retired = True
        while up.idle != NULL: self._kill(up.idle)

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
            self._abort(u)
            return
        # A pooled connection that the instance closed meanwhile: the request met nobody, or its method may be repeated.
        stale = u.reused and code == E_UPSTREAM_RESET and u.held_len == 0
        if x.attempts < MAX_ATTEMPTS and (self.retriable[code] or (stale and x.safe)) and self._can_repeat(x, u):
            self._repeat(x, u, stale, code)
            return
        up.failures += 1
        self._fail(c, code)

    cdef bint _can_repeat(self, Exchange* x, Conn* u) noexcept:
        # while connecting nothing has left: what is pending is the whole request so far
        return x.saved_len > 0 or u.connecting

    cdef void _repeat(self, Exchange* x, Conn* u, bint stale, int code) noexcept:
        """One more attempt: a fresh connection to the same instance if the old one was stale, else another instance."""
        cdef TableState state = <TableState>x.state
        cdef Conn* c = x.client
        cdef char* unsent = NULL
        cdef size_t off = 0, n = 0
        cdef int failed = x.d.instance
        cdef bint ok
        if x.saved_len == 0:
            unsent = u.out
            off = u.out_off
            n = u.out_len
            u.out = NULL
            u.out_len = u.out_off = u.out_cap = 0
        self._leave(x)
        self.retries += 1
        if not stale and not pick_other(state.table, &state.live, &x.d, failed):
            free(unsent)
            self._fail(c, code)
            return
        if self._acquire(x, True):
            if unsent != NULL: ok = self._send(x.upstream, unsent + off, n) >= 0
            else: ok = self._send(x.upstream, x.saved, x.saved_len) >= 0
            if not ok: self._fail(c, E_UPSTREAM_RESET)
            else:
                self._await(x)
                if c.state == S_BODY and (c.readable or c.held_len): self._again(c)
        free(unsent)

    cdef void _upstream_readable(self, Conn* u) noexcept:
        cdef size_t have, moved = 0
        cdef ssize_t n
        cdef Exchange* x
        while not u.dead:
            x = u.x
            if x == NULL:
                self._kill(u)                        # closed while idle, or bytes nobody asked for: never reuse
                return
            if u.connecting:
                if u.shut: self._connected(u)
                return
            if x.client.out_len: return              # the client is slow: bytes wait in the kernel
            if moved >= FAIR:
                self._again(u)
                return
            n = self._receive(u, &have)
            if n == -1 and have == 0: return
            moved += have
            if n == -2 or n == 0:
                self._upstream_end(u, have, n)
                return
            if u.state == U_HEAD:
                if not self._response_head(u, have): return
            elif not self._response_bytes(u, self.buf, have): return
            if not u.readable and u.held_len == 0: return

    cdef void _upstream_end(self, Conn* u, size_t have, ssize_t n) noexcept:
        """The instance closed (0) or reset (-2)."""
        cdef Exchange* x = u.x
        cdef Conn* c = x.client
        if u.state == U_BODY and x.response.kind == BODY_CLOSE and n == 0:
            x.response.kind = BODY_NONE
            if x.response_kind == BODY_CHUNKED and self._send(c, b"0\r\n\r\n", 5) < 0:
                self._abort(c)
                return
            self._finish(x, False)
            return
        u.held_len = have
        self._upstream_failed(u, E_UPSTREAM_RESET)

    cdef bint _response_head(self, Conn* u, size_t have) noexcept:
        """Bytes of a response head are in the shared buffer. True: go on reading."""
        cdef Exchange* x = u.x
        cdef Conn* c = x.client
        cdef Head* h = &self.head
        cdef char* p = self.buf
        cdef char* e = p + have
        cdef int r = scan_response(h, p, e, MAX_HEADERS)
        while r == 1 and h.status < 200 and h.status != 101:
            if not self._interim(x): return False
            p = <char*>h.end
            if p == e: return u.readable
            r = scan_response(h, p, e, MAX_HEADERS)
        if r == 0:
            if e - p > MAX_HEAD: self._upstream_failed(u, E_UPSTREAM_INVALID)
            elif self._hold(u, p, e - p) < 0: self._abort(u)
            else: return u.readable
            return False
        if r < 0 or (h.status == 101 and not (h.websocket and x.websocket)):
            self._upstream_failed(u, E_UPSTREAM_INVALID)
            return False
        if h.status == 101:
            self._open_tunnel(x, <char*>h.end, e - <char*>h.end)
            return False
        return self._final(u, <char*>h.end, e - <char*>h.end)

    cdef bint _interim(self, Exchange* x) noexcept:
        """1xx: passed on to clients that can read it (RFC 9110 15.2). False: the client is gone."""
        cdef char* e
        if x.minor == 0: return True
        _drop_length(&self.head)
        e = write_response(&self.head, self.heads, BODY_NONE, 0, False, NULL, 0)
        if self._send(x.client, self.heads, e - self.heads) == 0: return True
        self._abort(x.client)
        return False

    # ---- tunnels ---------------------------------------------------------------------------------------------------

    cdef void _open_tunnel(self, Exchange* x, char* rest, size_t n) noexcept:
        """The upstream has switched to WebSocket: its 101 goes on, and from here on bytes go through as they are."""
        cdef Conn* c = x.client
        cdef Conn* u = x.upstream
        cdef TableState state = <TableState>x.state
        cdef char extra[2048]
        cdef size_t extra_len = 0
        cdef char* e
        if state.decision_headers: extra_len = write_decision(state.table, &x.d, extra, sizeof(extra))
        _drop_length(&self.head)
        e = write_response(&self.head, self.heads, BODY_NONE, 0, state.policy.via, extra, extra_len)
        x.response_begun = 1
        c.state = u.state = S_TUNNEL
        c.deadline = 0
        self.statuses[1] += 1
        self.tunnels += 1
        self._set_deadline(u, self.now + x.idle_ms)
        if self._send_two(c, self.heads, e - self.heads, rest, n) < 0:
            self._abort(c)
            return
        # what the client sent meanwhile has waited for this
        if c.readable or c.held_len: self._again(c)
        if u.readable: self._again(u)

    cdef void _tunnel(self, Conn* a, Conn* b) noexcept:
        """Moves what has arrived at one end of a tunnel to the other."""
        cdef size_t have, moved = 0
        cdef ssize_t n
        while not a.dead and b.out_len == 0:
            if moved >= FAIR:
                self._again(a)
                return
            n = self._receive(a, &have)
            if n == -2:
                self._abort(a)
                return
            moved += have
            if have:
                self._set_deadline(a.x.upstream, self.now + a.x.idle_ms)
                if self._send(b, self.buf, have) < 0:
                    self._abort(b)
                    return
            if n == 0:
                a.ended = 1
                if b.out_len: b.half_close = 1
                else: self._pass_end(b)
                return
            if n < 0 or not a.readable: return

    cdef bint _pass_end(self, Conn* b) noexcept:
        """The other end has said all: so do we to this one. False: that was the end of the tunnel."""
        cdef Exchange* x = b.x
        cdef Conn* c = x.client
        cdef Conn* u = x.upstream
        b.half_close = 0
        shutdown(b.fd, SHUT_WR)
        if not (c.ended and u.ended and c.out_len == 0 and u.out_len == 0): return True
        self._drop_exchange(x)
        self._kill(u)
        self._kill(c)
        return False

    cdef bint _final(self, Conn* u, char* body, size_t n) noexcept:
        """The final head, with n body bytes behind it: framing on both sides, head and body in one go. True: go on."""
        cdef Exchange* x = u.x
        cdef Conn* c = x.client
        cdef Head* h = &self.head
        cdef TableState state = <TableState>x.state
        cdef char extra[2048]
        cdef size_t extra_len = 0
        cdef char* e
        cdef Piece piece
        cdef int connection
        cdef uint8_t told = self._frame_response(x, h)
        u.no_reuse = h.close or (h.minor == 0 and not h.keep_alive) or x.response.kind == BODY_CLOSE
        if not x.request_done or self.draining: x.close_client = 1
        if state.decision_headers: extra_len = write_decision(state.table, &x.d, extra, sizeof(extra))
        connection = 1 if x.close_client else (2 if x.minor == 0 else 0)
        e = write_response(h, self.heads, told, connection, state.policy.via, extra, extra_len)
        x.response_begun = 1
        u.state = U_BODY
        self.statuses[h.status // 100] += 1
        c.deadline = 0
        self._set_deadline(u, self.now + x.idle_ms)
        if decode_body(&x.response, body, n, &piece) < 0:
            x.response_begun = 0
            self._upstream_failed(u, E_UPSTREAM_INVALID)
            return False
        if piece.used < n: u.no_reuse = 1   # bytes behind the answer: this connection is never used again
        if piece.done: x.response.kind = BODY_NONE
        _encode(x.response_kind, &piece)
        if self._send_two(c, self.heads, e - self.heads, piece.data, piece.length) < 0:
            self._abort(c)
            return False
        if piece.done:
            self._finish(x, True)
            return False
        return True

    cdef uint8_t _frame_response(self, Exchange* x, Head* h) noexcept:
        """Which framing the answer has (RFC 9112 section 6.3) and gets on its way on; returns the one that its head names."""
        if x.head_only or h.status == 204 or h.status == 304:
            start_body(&x.response, BODY_NONE, 0)
            x.response_kind = BODY_NONE
            if h.status == 204: _drop_length(h)
            return BODY_CHUNKED if h.chunked and x.minor and h.status != 204 else BODY_NONE
        if h.chunked: start_body(&x.response, BODY_CHUNKED, 0)
        elif h.content_length >= 0: start_body(&x.response, BODY_LENGTH, h.content_length)
        else: start_body(&x.response, BODY_CLOSE, 0)
        if h.content_length >= 0: x.response_kind = BODY_LENGTH
        elif x.minor: x.response_kind = BODY_CHUNKED
        else:
            x.response_kind = BODY_CLOSE
            x.close_client = 1
        return x.response_kind

    cdef bint _response_bytes(self, Conn* u, char* p, size_t n) noexcept:
        """Bytes of a response body are in the shared buffer. True: go on reading."""
        cdef Exchange* x = u.x
        cdef Conn* c = x.client
        cdef Piece piece
        if decode_body(&x.response, p, n, &piece) < 0:
            self._abort(u)                           # cut off: the client must not take it for complete
            return False
        if piece.used < n: u.no_reuse = 1
        _encode(x.response_kind, &piece)
        self._set_deadline(u, self.now + x.idle_ms)
        if piece.length and self._send(c, piece.data, piece.length) < 0:
            self._abort(c)
            return False
        if piece.done:
            self._finish(x, True)
            return False
        return True

    cdef void _finish(self, Exchange* x, bint open_) noexcept:
        """The answer is complete. open_: the upstream connection may serve again if nothing speaks against it."""
        cdef Conn* c = x.client
        cdef Conn* u = x.upstream
        cdef Upstream up = <Upstream>u.upstream
        cdef bint whole = x.request_done
        cdef bint close_client = x.close_client or not whole
        cdef bint reuse = open_ and whole and not u.no_reuse and not u.shut and u.out_len == 0 and not up.retired \
            and up.n_idle < self.state.max_idle
        self._drop_exchange(x)
        if reuse: self._pool(u)
        else: self._kill(u)
        if close_client or self.draining: self._close_client(c, not whole or c.readable or c.held_len > 0)
        else: self._next_request(c)


# ---- helpers -------------------------------------------------------------------------------------------------------

REDIRECTS = {301: "Moved Permanently", 302: "Found", 303: "See Other", 307: "Temporary Redirect", 308: "Permanent Redirect"}


cdef void _encode(uint8_t kind, Piece* piece) noexcept:
    """Chunked coding around a decoded piece, in the room before and behind it; other kinds leave it as it is."""
    cdef char* e
    if kind != BODY_CHUNKED: return
    e = piece.data + piece.length
    if piece.length:
        piece.data = chunk_head(piece.data, piece.length)
        e[0] = 13
        e[1] = 10
        e += 2
    if piece.done:
        memcpy(e, b"0\r\n\r\n", 5)
        e += 5
    piece.length = e - piece.data


cdef bint _accepts_json(Head* h) noexcept:
    cdef int i
    cdef uint32_t k
    for i in range(h.count):
        if h.headers[i].id == H_ACCEPT and h.headers[i].value_len > 3:
            for k in range(h.headers[i].value_len - 3):
                if same_name(h.headers[i].value + k, b"json", 4): return True
    return False


cdef bint _idempotent(Head* h) noexcept:
    """RFC 9110 section 9.2.2."""
    cdef const char* m = h.method
    cdef size_t n = h.method_len
    return (n == 3 and (memcmp(m, b"GET", 3) == 0 or memcmp(m, b"PUT", 3) == 0)) or (n == 4 and memcmp(m, b"HEAD", 4) == 0) \
        or (n == 6 and memcmp(m, b"DELETE", 6) == 0) or (n == 7 and memcmp(m, b"OPTIONS", 7) == 0) \
        or (n == 5 and memcmp(m, b"TRACE", 5) == 0)


cdef void _drop_length(Head* h) noexcept:
    """Neither 1xx nor 204 has a Content-Length (RFC 9110 section 8.6)."""
    cdef int i
    for i in range(h.count):
        if h.headers[i].name_len == 14 and h.headers[i].id == H_CONTENT_LENGTH: h.headers[i].use = DROP
    h.content_length = -1
