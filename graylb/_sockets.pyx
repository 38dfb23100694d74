"""The floor under the engine: data sockets in two epoll descriptors, what is pending on them, and the clock.

uvloop calls in when there are events (`_on_ready`) and for each tick (`_on_tick`); everything else is C level. What a
connection's events mean is for the floors above: they fill in the hooks at the end.

Within a batch, what has come from instances is looked at again after every few clients: answers are passed on before many more
requests are begun, so that only a few are under way at once and what those need stays in the processor's cache.

Rules of the house: a connection is freed only after the batch (`_reap`), for events of this batch may still name it; the
shared buffer belongs to the function that received into it, so nothing below it may start another connection's reading:
that goes through the ready-again list (`_again`). Whoever sends from the shared buffer is done with it: what the kernel does
not take at once stays in it, and the buffer goes to the connection.
"""

from libc.errno cimport EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF
from graylb._live cimport (CLIENT, S_HEAD, S_LINGER, S_SESSION, TRAILERS_SLACK, U_IDLE, UPSTREAM, Conn, Peer, Pipe, Session,
                           sockaddr_storage)
from graylb._tls cimport TLS_API, TlsApi

cdef extern from * nogil:
    """
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <fcntl.h>
    #include <stddef.h>
    #ifdef __SANITIZE_ADDRESS__ /* sanitizers see what becomes of each block */
    #define GL_PLAIN_MALLOC 1
    #else
    #define GL_PLAIN_MALLOC 0
    #endif
    static int gl_accept(int listener, uint8_t *packed, char *text, uint16_t *port, uint8_t *v4) {
      struct sockaddr_storage a; socklen_t n = sizeof a; int one = 1;
      int fd = accept4(listener, (struct sockaddr *)&a, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) return -1;
      memset(packed, 0, 16); text[0] = 0; *v4 = 0; *port = 0;
      if (a.ss_family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)&a;
        packed[10] = packed[11] = 0xff; memcpy(packed + 12, &in->sin_addr, 4); *v4 = 1; *port = ntohs(in->sin_port);
      } else if (a.ss_family == AF_INET6) {
        struct sockaddr_in6 *in = (struct sockaddr_in6 *)&a;
        memcpy(packed, &in->sin6_addr, 16); *v4 = IN6_IS_ADDR_V4MAPPED(&in->sin6_addr) != 0; *port = ntohs(in->sin6_port);
      } else return fd;
      inet_ntop(*v4 ? AF_INET : AF_INET6, *v4 ? packed + 12 : packed, text, 46);
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      return fd; }
    /* the address that a connection was made to; IPv4 as ::ffff:a.b.c.d */
    static void gl_local(int fd, uint8_t *packed, uint16_t *port) {
      struct sockaddr_storage a; socklen_t n = sizeof a;
      memset(packed, 0, 16); *port = 0;
      if (getsockname(fd, (struct sockaddr *)&a, &n) < 0) return;
      if (a.ss_family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)&a;
        packed[10] = packed[11] = 0xff; memcpy(packed + 12, &in->sin_addr, 4); *port = ntohs(in->sin_port);
      } else if (a.ss_family == AF_INET6) {
        struct sockaddr_in6 *in = (struct sockaddr_in6 *)&a;
        memcpy(packed, &in->sin6_addr, 16); *port = ntohs(in->sin6_port); } }
    static int gl_connect(const struct sockaddr_storage *s, uint32_t n) {
      int one = 1, fd = socket(s->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
      if (fd < 0) return -1;
      if (s->ss_family != AF_UNIX) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      if (connect(fd, (const struct sockaddr *)s, n) < 0 && errno != EINPROGRESS) {
        int e = errno; close(fd); errno = e; return -1; }
      return fd; }
    static int gl_socket_error(int fd) {
      int e = 0; socklen_t n = sizeof e; if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n) < 0) return errno; return e; }
    static void gl_reset_on_close(int fd) {
      struct linger l = {1, 0}; setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l); }
    static int gl_pipe(int *ends, int size) {
      if (pipe2(ends, O_NONBLOCK | O_CLOEXEC) < 0) return -1;
      if (fcntl(ends[1], F_SETPIPE_SZ, size) < size) { close(ends[0]); close(ends[1]); return -1; }
      return 0; }
    static ssize_t gl_splice(int from, int to, size_t n) {
      return splice(from, NULL, to, NULL, n, SPLICE_F_MOVE | SPLICE_F_NONBLOCK); }
    static int gl_watch(int ep, int fd, void *p) {
      struct epoll_event e; e.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET; e.data.ptr = p;
      return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e); }
    """
    bint GL_PLAIN_MALLOC
    int gl_accept(int, uint8_t*, char*, uint16_t*, uint8_t*)
    void gl_local(int, uint8_t*, uint16_t*)
    int gl_connect(const sockaddr_storage*, uint32_t)
    int gl_socket_error(int)
    void gl_reset_on_close(int)
    int gl_pipe(int*, int)
    ssize_t gl_splice(int, int, size_t)
    int gl_watch(int, int, void*)

cdef enum:
    EVENTS = 512             # of clients in one batch, of instances at once
    FEW_CLIENTS = 32         # between two looks at the instances
    IDLE_US = 1000
    SPARE_BLOCKS = 16
    SMALL_OUT = 1024         # bytes pending of a stream, as a rule
    SPARE_OUTS = 1024        # streams come and go many at a time: more than malloc keeps at hand
    SPARE_CONNS = 512
    PIPE = 1048576         # bytes that a pipe holds, so that the pages of a slice find room
    FEW = 4                # events at once: nobody waits for others' large bodies
    TURN = 16777216        # bytes that a batch moves at most, for whoever comes meanwhile waits for its end …
    LEAST = 32768          # … or a little more where very many have their share
    MAX_PIPES = 64
    SPARE_PIPES = 16
    HANDED = 32768         # a rest this long is worth a block of its own; a shorter one is copied


cdef int accept_from(int listener, Peer* peer) noexcept:
    """A new connection, non-blocking, and who it is from; -1 with errno. IPv4 stays IPv4 when it arrives mapped."""
    cdef int fd = gl_accept(listener, peer.address, peer.text, &peer.port, &peer.v4)
    peer.text_len = 0
    if fd >= 0:
        while peer.text[peer.text_len]: peer.text_len += 1
    return fd


cdef void local_address(int fd, uint8_t* packed, uint16_t* port) noexcept:
    """The address that a client's connection was made to."""
    gl_local(fd, packed, port)


cdef int connect_to(const sockaddr_storage* s, uint32_t n) noexcept:
    """Begins a connection; -1 with errno."""
    return gl_connect(s, n)


cdef int socket_error(int fd) noexcept:
    return gl_socket_error(fd)


cdef bint exhausted() noexcept:
    """Whether the last call failed because descriptors or memory have run out."""
    return errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM


cdef void reset_on_close(int fd) noexcept:
    gl_reset_on_close(fd)


cdef TlsApi* _find_tls() except? NULL:
    """The functions of `_tls`, if it was built."""
    cdef TlsApi* api
    try: from graylb import _tls
    except ImportError: return NULL
    api = <TlsApi*>PyCapsule_GetPointer(_tls.api, b"graylb._tls.api")
    if api.version != TLS_API: raise ImportError(f"graylb._tls is of another build: version {api.version}, expected {TLS_API}")
    return api


cdef class Sockets:
    """Connections of one worker, on one event loop. The floors above inherit from it."""

    cdef _open(self, loop):
        cdef int i
        self.loop = loop
        self.secure = _find_tls()
        self.handshakes_failed = {}
        self.ep_clients = epoll_create1(EPOLL_CLOEXEC)
        self.ep_instances = epoll_create1(EPOLL_CLOEXEC)
        self.memory = <char*>malloc(BLOCK)
        self.events = <epoll_event*>malloc(2 * EVENTS * sizeof(epoll_event))
        if self.ep_clients < 0 or self.ep_instances < 0 or self.memory == NULL or self.events == NULL: raise MemoryError
        self.buf = self.memory + HEADROOM
        for i in range(WHEEL): self.wheel[i].later = self.wheel[i].earlier = &self.wheel[i]
        self.now = gl_now_ms()
        self.ticked = self.now // TICK_MS
        self._share(FEW + 1)
        self.on_ready = self._on_ready
        loop.add_reader(self.ep_clients, self.on_ready)
        loop.add_reader(self.ep_instances, self.on_ready)
        self.ticker = loop.call_later(TICK_MS / 1000.0, self._on_tick)

    cdef _shut(self):
        """No more events; every connection is gone by now."""
        cdef Conn* c
        cdef Pipe* p
        self.ticker.cancel()
        self.loop.remove_reader(self.ep_clients)
        self.loop.remove_reader(self.ep_instances)
        while self.again != NULL:
            c = self.again
            self.again = c.after
            self._bury(c)
        self._reap()
        while self.pipes != NULL:
            p = self.pipes
            self.pipes = p.next
            self._close_pipe(p)
        while self.conns != NULL:
            c = self.conns
            self.conns = c.next
            free(c)
        close(self.ep_clients)
        close(self.ep_instances)

    def __dealloc__(self):
        cdef Block* b
        while self.blocks != NULL:
            b = self.blocks
            self.blocks = b.next
            free(b)
        while self.outs != NULL:
            b = self.outs
            self.outs = b.next
            free(b)
        free(self.memory)
        free(self.events)

    # ---- entries from the loop -------------------------------------------------------------------------------------

    def _on_ready(self):
        cdef int n, at = 0
        cdef Conn* c
        cdef Conn* batch
        if self.closed: return
        self.kicked = False
        self.in_batch = True
        self.now = gl_now_ms()
        self.shaken = 0
        n = max(epoll_wait(self.ep_clients, self.events, EVENTS, 0), 0)
        if self.lag_us: self._measure(n)
        self._share(n + self.n_again)
        while True:
            self._take(self.events + EVENTS, max(epoll_wait(self.ep_instances, self.events + EVENTS, EVENTS, 0), 0))
            if at >= n: break
            self._take(self.events + at, min(n - at, FEW_CLIENTS))
            at += FEW_CLIENTS
            self.now = gl_now_ms()
        batch = self.again
        self.again = NULL
        self.n_again = 0
        while batch != NULL:
            c = batch
            batch = c.after
            c.queued = 0
            if c.dead: self._bury(c)
            elif c.tls != NULL and not c.tls.ready: self._shake(c, 0)
            else: self._readable(c)
        self._reap()
        self.in_batch = False
        if self.lag_us: self.batch_ended = gl_now_us()
        if self.again != NULL: self._kick()

    cdef void _take(self, epoll_event* events, int n) noexcept:
        cdef int i
        cdef uint32_t ev
        cdef Conn* c
        for i in range(n):
            # what the next events need comes into the cache while this one is in the kernel
            if i + 3 < n: gl_soon(events[i + 3].data.ptr, 192)
            if i + 2 < n: gl_soon((<Conn*>events[i + 2].data.ptr).x, 320)
            if i + 1 < n and (<Conn*>events[i + 1].data.ptr).x != NULL: gl_soon((<Conn*>events[i + 1].data.ptr).x.client, 192)
            c = <Conn*>events[i].data.ptr
            ev = events[i].events
            if c.tls != NULL and not c.tls.ready:
                if not c.dead: self._shake(c, ev)
                continue
            if ev & EPOLLOUT and not c.dead and (c.out_len or c.connecting): self._writable(c)
            if ev & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR) and not c.dead: self._event(c, ev)

    cdef void _measure(self, int n) noexcept:
        """How long what has come may have waited: as long as the batch before took, or those before that did not get to it."""
        cdef uint64_t now = gl_now_us()
        if now > self.batch_ended + IDLE_US: self.behind_us = 0     # the loop was waiting, not they
        else: self.behind_us = (self.behind_us if self.cut_short else 0) + self.batch_ended - self.batch_began
        self.cut_short = n == EVENTS
        self.batch_began = now

    cdef void _share(self, int n) noexcept:
        """What each of n connections may move in this batch."""
        cdef size_t slice = TURN // n if n > FEW else PIPE
        if n > FEW and slice > SLICE: slice = SLICE
        self.slice = slice if slice > LEAST else LEAST
        self.gulp = RECEIVE if slice >= SLICE else self.slice

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
                if (c.deadline and c.deadline <= self.now) or (c.limit and c.limit <= self.now): self._expired(c)
        self._reap()
        self._ticked()

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
        if gl_watch(self.ep_clients if side == CLIENT else self.ep_instances, fd, c) < 0:
            self._unplace(c)
            close(fd)
            free(c)
            return NULL
        if side == CLIENT: self.clients += 1
        else: self.upstream_connections += 1
        return c

    cdef void _place(self, Conn* c) noexcept:
        """Into the wheel slot of its deadline; one turn ahead when it has none."""
        cdef uint64_t far = self.now + TICK_MS * (WHEEL // 2)
        cdef uint64_t when = far
        cdef Conn* slot
        if c.deadline and c.deadline < far: when = c.deadline if c.deadline > self.now else self.now
        if c.limit and c.limit < when: when = c.limit if c.limit > self.now else self.now
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

    cdef void _set_deadline(self, Conn* c, uint64_t when) noexcept:
        """Progress costs one store; only an earlier deadline than its slot's moves the connection."""
        c.deadline = when
        if when and when < c.slot_time: self._place(c)

    cdef void _kill(self, Conn* c) noexcept:
        """Closes one connection; its exchange, if any, is the caller's affair."""
        if c.dead: return
        c.dead = 1
        # between messages the end is an orderly one; elsewhere it must not look as if it was
        if c.tls != NULL and (c.state == S_HEAD or c.state == S_LINGER or c.state == S_SESSION or c.state == U_IDLE): self.secure.shut(c.tls)
        self._gone(c)
        self._unplace(c)
        if c.fd >= 0:
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
            gl_soon(self.dead, 192)
            self._forget(c)
            free(c.held)
            if c.tls != NULL: self.secure.free(c.tls)
            if c.trailers != NULL: self._forget_trailers(c)
            if c.session != NULL and c.fd >= 0: self._free_session(c.session)
            if c.upstream != NULL: Py_DECREF(<object>c.upstream)
            if self.n_conns < SPARE_CONNS and not GL_PLAIN_MALLOC:
                c.next = self.conns
                self.conns = c
                self.n_conns += 1
            else: free(c)
        self._batch_done()

    cdef void _again(self, Conn* c) noexcept:
        """Reads this connection once more at the end of the batch."""
        if c.queued or c.dead: return
        c.queued = 1
        self.n_again += 1
        c.after = NULL
        if self.again == NULL: self.again = c
        else: self.again_last.after = c
        self.again_last = c
        if not self.in_batch: self._kick()

    # ---- sending ---------------------------------------------------------------------------------------------------

    cdef int _keep(self, Conn* c, const char* p, size_t n) noexcept:
        """Adds to what is pending; -1 out of memory, or what is pending lies in a pipe."""
        cdef size_t need = c.out_len + n
        cdef char* q
        if c.pipe != NULL: return -1
        if c.out_off and c.out_off + need > c.out_cap:
            memmove(c.out, c.out + c.out_off, c.out_len)
            c.out_off = 0
        if c.out == NULL and need <= SMALL_OUT:
            c.out = self._small_out()
            if c.out == NULL: return -1
            c.out_cap = SMALL_OUT
        elif need > c.out_cap - c.out_off:
            q = <char*>realloc(c.out, need + 1024)
            if q == NULL: return -1
            c.out = q
            c.out_cap = need + 1024
        memcpy(c.out + c.out_off + c.out_len, p, n)
        c.out_len = need
        return 0

    cdef void _set_trailers(self, Conn* c, const char* p, size_t n) noexcept:
        """What is sent behind what is pending. Without memory a stream ends without them."""
        cdef size_t size = n + TRAILERS_SLACK
        if c.trailers != NULL: self._forget_trailers(c)
        c.trailers_len = 0
        c.trailers = self._small_out() if size <= SMALL_OUT else <char*>malloc(size)
        if c.trailers == NULL: return
        memcpy(c.trailers, p, n)
        memset(c.trailers + n, 0, TRAILERS_SLACK)
        c.trailers_len = <uint32_t>n

    cdef void _forget_trailers(self, Conn* c) noexcept:
        if c.trailers_len + TRAILERS_SLACK <= SMALL_OUT: self._spare_out(c.trailers)
        else: free(c.trailers)
        c.trailers = NULL

    cdef char* _small_out(self) noexcept:
        """SMALL_OUT bytes; NULL: out of memory."""
        cdef Block* b = self.outs
        if b == NULL: return <char*>malloc(SMALL_OUT)
        self.outs = b.next
        gl_soon(self.outs, 1)
        self.n_outs -= 1
        return <char*>b

    cdef void _spare_out(self, char* p) noexcept:
        """Gives back SMALL_OUT bytes."""
        cdef Block* b = <Block*>p
        if self.n_outs >= SPARE_OUTS or GL_PLAIN_MALLOC:
            free(p)
            return
        b.next = self.outs
        self.outs = b
        self.n_outs += 1

    cdef int _rest_of(self, Conn* c, const char* p, size_t n) noexcept:
        """Keeps what the kernel did not take. A long rest in the shared buffer is not copied: the buffer goes with it."""
        cdef char* fresh
        if n < HANDED or c.out != NULL or p < self.memory or p >= self.memory + BLOCK: return self._keep(c, p, n)
        fresh = self._block()
        if fresh == NULL: return -1
        c.out = self.memory
        c.out_off = p - self.memory
        c.out_len = n
        c.out_cap = BLOCK
        self.memory = fresh
        self.buf = fresh + HEADROOM
        return 0

    cdef char* _block(self) noexcept:
        cdef Block* b = self.blocks
        if b == NULL: return <char*>malloc(BLOCK)
        self.blocks = b.next
        self.n_blocks -= 1
        return <char*>b

    cdef void _forget(self, Conn* c) noexcept:
        """Gives back the memory of what was pending."""
        cdef Block* b
        if c.pipe != NULL:
            self._drop_pipe(c.pipe)
            c.pipe = NULL
            c.out_len = c.out_off = 0
            return
        if c.out_cap == BLOCK and self.n_blocks < SPARE_BLOCKS:
            b = <Block*>c.out
            b.next = self.blocks
            self.blocks = b
            self.n_blocks += 1
        elif c.out_cap == SMALL_OUT: self._spare_out(c.out)
        else: free(c.out)
        c.out = NULL
        c.out_off = c.out_cap = c.out_len = 0

    cdef int _send(self, Conn* c, const char* p, size_t n) noexcept:
        """Sends what the kernel takes and keeps the rest; -1: the connection is broken."""
        cdef ssize_t w = 0
        if c.fd < 0: return self._push(c, p, n)
        if c.out_len == 0 and not c.connecting:
            w = send(c.fd, p, n, MSG_NOSIGNAL) if c.tls == NULL else self.secure.write(c.tls, p, n)
            if w < 0:
                if errno != EAGAIN and errno != EINTR: return -1
                w = 0
            if <size_t>w == n: return 0
        return self._rest_of(c, p + w, n - w)

    cdef int _send_two(self, Conn* c, char* a, size_t an, const char* b, size_t bn) noexcept:
        """Head and body piece in one system call. `a` has SMALL bytes of room behind it."""
        cdef ssize_t w = 0
        if bn == 0: return self._send(c, a, an)
        if bn <= SMALL:
            memcpy(a + an, b, bn)
            return self._send(c, a, an + bn)
        if c.tls != NULL:                            # a record is a record: the first one is filled up
            memcpy(a + an, b, SMALL)
            return -1 if self._send(c, a, an + SMALL) < 0 else self._send(c, b + SMALL, bn - SMALL)
        if c.out_len == 0 and not c.connecting:
            w = gl_send2(c.fd, a, an, b, bn)
            if w < 0:
                if errno != EAGAIN and errno != EINTR: return -1
                w = 0
            if <size_t>w == an + bn: return 0
        if <size_t>w < an:
            return -1 if self._keep(c, a + w, an - w) < 0 else self._keep(c, b, bn)
        return self._rest_of(c, b + (w - an), bn - (w - an))

    cdef void _writable(self, Conn* c) noexcept:
        cdef ssize_t w
        if c.connecting and not self._connected(c): return
        while c.out_len:
            if c.pipe != NULL:
                w = gl_splice(c.pipe.out, c.fd, c.out_len)
                if w > 0: c.pipe.filled -= w
            elif c.tls == NULL: w = send(c.fd, c.out + c.out_off, c.out_len, MSG_NOSIGNAL)
            else: w = self.secure.write(c.tls, c.out + c.out_off, c.out_len)
            if w < 0:
                if errno == EAGAIN: return
                if errno == EINTR: continue
                self._broken(c)
                return
            c.out_off += w
            c.out_len -= w
            self._progress(c)
        self._forget(c)
        self._sent(c)

    # ---- receiving -------------------------------------------------------------------------------------------------

    cdef ssize_t _receive(self, Conn* c, size_t* have, size_t most) noexcept:
        """Held bytes, then what the kernel has, up to `most` in all, into the shared buffer, which holds RECEIVE.

        >0: something is there; 0: the end; -1: nothing; -2: broken.
        """
        cdef ssize_t n
        have[0] = c.held_len
        if c.held_len:
            memcpy(self.buf, c.held, c.held_len)
            c.held_len = 0
        if not c.readable: return 1 if have[0] else -1
        if most <= have[0]: most = RECEIVE
        n = recv(c.fd, self.buf + have[0], most - have[0], 0) if c.tls == NULL \
            else self.secure.read(c.tls, self.buf + have[0], most - have[0])
        if n > 0:
            # a short read has drained the socket, but behind a shut the end itself is still to be read
            if <size_t>n < most - have[0] and not c.shut and (c.tls == NULL or not c.tls.more): c.readable = 0
            have[0] += n
            return n
        if n == 0:
            c.shut = 1
            c.readable = 0
            return 0
        if errno == EAGAIN:
            if c.tls != NULL and c.tls.more: self._again(c)
            else: c.readable = 0
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

    # ---- TLS ---------------------------------------------------------------------------------------------------------

    cdef bint _accept_tls(self, Conn* c, object certificates) noexcept:
        """A client's bytes are TLS from here on, those that are held included. False: out of memory."""
        c.tls = self.secure.accept(<void*>certificates, c.fd)
        if c.tls == NULL: return False
        if c.held_len and self.secure.early(c.tls, c.held, c.held_len) < 0: return False
        c.held_len = 0
        return True

    cdef bint _connect_tls(self, Conn* c, object origin, uint8_t alpn) noexcept:
        """The same for a connection to an instance, which stays `connecting` until its handshake is done."""
        c.tls = self.secure.connect(<void*>origin, c.fd, alpn)
        return c.tls != NULL

    cdef void _shake(self, Conn* c, uint32_t ev) noexcept:
        """The next step of a handshake. One costs as much as 50 requests, so a batch has time for a few of them only."""
        cdef uint64_t began
        cdef ssize_t w
        cdef int r
        cdef const char* why
        if ev & (EPOLLRDHUP | EPOLLHUP | EPOLLERR): c.shut = 1
        if self.shaken >= SHAKE_US:
            self._again(c)
            return
        if c.preface:                                # the PROXY header comes before TLS, and is said in the clear
            w = send(c.fd, c.out + c.out_off, c.preface, MSG_NOSIGNAL)
            if w < 0 and (errno == EAGAIN or errno == EINTR): return
            if w > 0:
                c.out_off += w
                c.out_len -= w
                c.preface -= <uint8_t>w
            if c.preface and w >= 0: return
        began = gl_now_us()
        r = self.secure.handshake(c.tls)
        self.shaken += gl_now_us() - began
        if r == 0:
            if c.tls.more: self._again(c)
            return
        if r < 0:
            if c.side == CLIENT:
                why = c.tls.reason
                self.handshakes_failed[why] = self.handshakes_failed.get(why, 0) + 1
            self._insecure(c)
            return
        self.handshakes += 1
        self.resumed += c.tls.resumed
        c.readable = 1                               # data may have come with the last bytes of the handshake
        self._secured(c)
        if c.dead: return
        if c.connecting and not self._connected(c): return
        if c.out_len: self._writable(c)
        if not c.dead: self._again(c)

    cdef ssize_t _recv(self, Conn* c, char* p, size_t n) noexcept:
        """recv, whatever the connection is."""
        return recv(c.fd, p, n, 0) if c.tls == NULL else self.secure.read(c.tls, p, n)

    cdef bint _says_nothing(self, Conn* c) noexcept:
        """Whether the connection is open and nothing waits in it, as far as the kernel knows by now."""
        cdef char probe
        if c.tls != NULL: return self.secure.quiet(c.tls)
        return recv(c.fd, &probe, 1, MSG_PEEK) < 0 and errno == EAGAIN

    cdef void _say_end(self, Conn* c) noexcept:
        """Nothing more will be sent."""
        if c.tls != NULL: self.secure.shut(c.tls)
        shutdown(c.fd, SHUT_WR)

    # ---- large bodies ----------------------------------------------------------------------------------------------

    cdef Pipe* _pipe(self) noexcept:
        """An empty pipe; NULL when there are enough of them, or the system gives none."""
        cdef int ends[2]
        cdef Pipe* p = self.pipes
        if p != NULL:
            self.pipes = p.next
            return p
        if self.n_pipes >= MAX_PIPES or gl_pipe(ends, PIPE) < 0: return NULL
        p = <Pipe*>malloc(sizeof(Pipe))
        if p == NULL:
            close(ends[0])
            close(ends[1])
            return NULL
        p.out = ends[0]
        p.into = ends[1]
        p.filled = 0
        self.n_pipes += 1
        return p

    cdef void _drop_pipe(self, Pipe* p) noexcept:
        """Keeps an empty pipe for the next body. One with bytes in it can only be closed: they are somebody's."""
        cdef int spare = 0
        cdef Pipe* q = self.pipes
        while q != NULL and spare < SPARE_PIPES:
            spare += 1
            q = q.next
        if p.filled == 0 and spare < SPARE_PIPES:
            p.next = self.pipes
            self.pipes = p
        else: self._close_pipe(p)

    cdef void _close_pipe(self, Pipe* p) noexcept:
        close(p.into)
        close(p.out)
        free(p)
        self.n_pipes -= 1

    cdef bint _can_splice(self, Conn* a, Conn* b, int64_t left) noexcept:
        """Whether the rest of a body, `left` bytes, is to go from a to b inside the kernel."""
        return (left >= SPLICE_FROM and a.held_len == 0 and a.readable and b.out_len == 0 and not b.connecting
                and b.fd >= 0 and a.tls == NULL and b.tls == NULL)

    cdef ssize_t _splice(self, Conn* a, Conn* b, int64_t left) noexcept:
        """Moves body bytes from a to b through a pipe, without copying them; what b does not take is pending in the pipe.

        Bytes moved, at most `left`; 0: a has ended; -1: nothing is there; -2: a is broken; -3: b is; -4: no pipe to be had.
        """
        cdef ssize_t n, w
        cdef Pipe* p = self._pipe()
        if p == NULL: return -4
        n = gl_splice(a.fd, p.into, left if left < <int64_t>self.slice else self.slice)
        if n <= 0:
            if n < 0:
                if errno == EAGAIN: a.readable = 0
                n = -1 if errno == EAGAIN or errno == EINTR else -2
            else:
                a.shut = 1
                a.readable = 0
            self._drop_pipe(p)
            return n
        p.filled = n
        while p.filled:                              # up to EAGAIN: only that promises an event
            w = gl_splice(p.out, b.fd, p.filled)
            if w > 0: p.filled -= w
            elif w < 0 and errno == EAGAIN: break
            elif w == 0 or errno != EINTR:
                self._drop_pipe(p)
                return -3
        if p.filled == 0: self._drop_pipe(p)
        else:
            b.pipe = p
            b.out_len = p.filled
        return n

    # ---- hooks -----------------------------------------------------------------------------------------------------

    cdef void _event(self, Conn* c, uint32_t ev) noexcept:
        """Something arrived, or the peer shut or reset."""

    cdef void _readable(self, Conn* c) noexcept:
        """Its turn to read again has come."""

    cdef void _expired(self, Conn* c) noexcept:
        """Its deadline has passed."""

    cdef bint _connected(self, Conn* c) noexcept:
        """The connection attempt has ended, one way or the other. False: it failed, and that was dealt with."""
        return True

    cdef void _progress(self, Conn* c) noexcept:
        """Pending bytes were taken."""

    cdef void _sent(self, Conn* c) noexcept:
        """Nothing is pending any more."""

    cdef void _broken(self, Conn* c) noexcept:
        """A send failed."""

    cdef void _gone(self, Conn* c) noexcept:
        """It is about to be closed."""

    cdef void _batch_done(self) noexcept:
        """The dead are buried."""

    cdef void _ticked(self) noexcept:
        """Ten times a second."""

    cdef void _secured(self, Conn* c) noexcept:
        """Its TLS handshake is done; c.tls.alpn is what both speak from now on. What is pending is sent after this."""

    cdef void _insecure(self, Conn* c) noexcept:
        """Its TLS handshake has failed; c.tls.reason tells why."""
    cdef int _push(self, Conn* c, const char* p, size_t n) noexcept:
        """What `_send` does for a stream, which has no descriptor."""
        return -1

    cdef void _free_session(self, Session* s) noexcept:
        """The socket that carried it is gone."""
