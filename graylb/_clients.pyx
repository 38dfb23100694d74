"""Clients come: listeners, the limit on connections, PROXY headers; room is made by closing who waits between requests."""

from libc.errno cimport ECONNABORTED, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from graylb._limits cimport FULL, HIGH, weigh
from graylb._live cimport CLIENT, S_HEAD, S_PROXY, S_SESSION, Conn, Peer, TableState, Upstream
from graylb._mark cimport EDGE, INBOUND, OUTBOUND
from graylb._pools cimport Pools
from graylb._proxy cimport ProxyInfo, read_proxy
from graylb._sockets cimport MSG_NOSIGNAL, WHEEL, accept_from, close, exhausted, gl_now_ms, send

import ipaddress
import os
import resource

from graylb.errors import BY_REASON, KINDS

cdef extern from * nogil:
    """
    #include <malloc.h>
    #include <stdio.h>
    #include <sys/resource.h>
    #include <unistd.h>
    static uint64_t gl_resident(const char *statm) {   /* proc(5): pages, in all and resident */
      unsigned long long all, resident;
      return sscanf(statm, "%llu %llu", &all, &resident) == 2 ? resident * (uint64_t)sysconf(_SC_PAGESIZE) : 0; }
    """
    uint64_t gl_resident(const char*)
    ssize_t pread(int, void*, size_t, long)
    int malloc_trim(size_t)
    struct rlimit:
        unsigned long rlim_cur
    int getrlimit(int, rlimit*)
    int RLIMIT_NOFILE

cdef enum:
    FEW_DESCRIPTORS = 1024 # of fewer it is not worth to keep some free
    CLOSED_AT_ONCE = 4096
    ACCEPT_BATCH = 256
    ACCEPT_PAUSE_MS = 100
    SHED_LOOKS = 64        # connections that are looked at for an idle one when there is no room for another

cdef int E_OVERLOADED = BY_REASON["overloaded"].code
cdef int E_SHEDDING = BY_REASON["shedding"].code
cdef int E_BAD_PROXY = BY_REASON["bad-proxy-header"].code

cdef const uint8_t* MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


cdef class Clients(Pools):
    """The accepting side of one worker."""

    cdef _open_doors(self):
        self.listeners = []
        self.certificates = []
        self.files = {}
        self.originations = {}
        self.full = KINDS[E_OVERLOADED].response(json=False, close=True)
        self.shedding = KINDS[E_SHEDDING].response(json=False, close=True)
        self.statm = -1
        self.most_sockets = <uint64_t>-1
        # half of the descriptors for clients and half for instances, after what the process itself needs
        self.max_clients = max(64, (min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 30) - 128) // 2)

    def listen(self, int fd, *, str name="edge", str role="edge", bint proxy_protocol=False, trusted=(),
               protocols=("http/1.1", "h2"), bint grpc_health=False, tls=None):
        """Accepts clients from a listening, non-blocking socket. The caller keeps it open until `unlisten`.

        name: what routes call it. proxy_protocol: connections from the networks `trusted` (none given: all) begin with a
        PROXY header. protocols: what clients may speak, by their ALPN names. grpc_health: calls of the gRPC
        health checking protocol are answered by graylb. tls: the listener's _tls.Certificates. ValueError with more than
        256 listeners.
        """
        cdef Listening* l = &self.listening[self.n_listening]
        if self.n_listening == MAX_LISTENERS: raise ValueError(f"at most {MAX_LISTENERS} listeners are possible")
        cdef bytes text = name.encode()
        l.fd = fd
        l.name = PyBytes_AS_STRING(text)
        l.name_n = <uint32_t>PyBytes_GET_SIZE(text)
        l.proxy = proxy_protocol
        l.all_trusted = not trusted
        l.h1 = "http/1.1" in protocols
        l.h2 = "h2" in protocols
        l.health = grpc_health
        l.secure = tls is not None
        l.role = EDGE if role == "edge" else INBOUND if role == "inbound" else OUTBOUND
        self.certificates.append(tls)
        self.listeners.append((name, [ipaddress.ip_network(each, strict=False) for each in trusted], text))
        self.n_listening += 1
        self._name_listeners()
        self.loop.add_reader(fd, self._on_accept, self.n_listening - 1)

    def certify(self, certificates, dict files):
        """New certificates: of the listeners, in their order (None: as before), and PEM texts for instances, by digest, which
        the next table names. Connections that are open, or in their handshake, go on with what they have.
        """
        for i, each in enumerate(certificates):
            if self.listening[<int>i].secure and each is not None: self.certificates[i] = each
        if files != self.files:
            self.files = files
            self.originations = {}

    cdef _name_listeners(self):
        cdef int i
        bits = self.state.table.meta["listener_bits"] if self.state is not None else {}
        for i in range(self.n_listening): self.listening[i].bit = bits.get(self.listeners[i][0], 0)

    def unlisten(self):
        """Accepts what is in the backlogs, then no more. The caller may close the sockets."""
        cdef int i
        for i in range(self.n_listening):
            if self.listening[i].fd < 0: continue
            self._on_accept(i)
            self.loop.remove_reader(self.listening[i].fd)
            self.listening[i].fd = -1

    def _on_accept(self, int number):
        cdef Conn* c
        cdef Peer peer
        cdef Listening* l = &self.listening[number]
        cdef int limit = self.state.client_connections or self.max_clients
        cdef int i, fd
        self.now = gl_now_ms()
        if l.fd < 0: return
        for i in range(ACCEPT_BATCH):
            fd = accept_from(l.fd, &peer)
            if fd < 0:
                if exhausted():
                    if self._shed(): continue
                    self._pause_accepting(number)
                    break
                if errno == EINTR or errno == ECONNABORTED: continue
                break
            if self.clients >= limit and not self._shed():
                self._turn_away(fd, l.secure, False)
                continue
            while self._sockets() > self.most_sockets and self._shed(): pass
            if self.level >= HIGH or self._sockets() > self.most_sockets:
                self._turn_away(fd, l.secure, True)
                continue
            c = self._new(fd, CLIENT)
            if c == NULL: continue
            c.peer = peer
            c.listener = <uint8_t>number
            c.state = S_PROXY if l.proxy and (l.all_trusted or self._is_trusted(c)) else S_HEAD
            self.accepted += 1
            self._set_deadline(c, self.now + self.state.header_ms)
            if l.secure and c.state == S_HEAD and not self._accept_tls(c, self.certificates[number]): self._kill(c)
        if not self.in_batch: self._reap()

    cdef _pause_accepting(self, int number):
        """Out of descriptors: clients wait in the backlog; trying at once would only spin."""
        self.errors[E_OVERLOADED] += 1
        self.loop.remove_reader(self.listening[number].fd)
        self.loop.call_later(ACCEPT_PAUSE_MS / 1000.0, self._accept_again, number)

    def _accept_again(self, int number):
        if self.listening[number].fd >= 0: self.loop.add_reader(self.listening[number].fd, self._on_accept, number)

    cdef bint _shed(self) noexcept:
        """Closes a client that waits between requests, as nginx does; which one goes round. False: none was found."""
        cdef Conn* c
        cdef Conn* slot
        cdef uint32_t first = self.hand
        cdef int i, looked = 0
        for i in range(WHEEL):
            slot = &self.wheel[self.hand]
            c = slot.later
            while c != slot and looked < SHED_LOOKS:
                looked += 1
                if _is_idle(c):
                    self.shed += 1
                    self._kill(c)
                    return True
                c = c.later
            if looked >= SHED_LOOKS:
                # A slot that got what other slots left over has all the looks of the next try; one that had them all
                # gives way. When it is a slot's turn again, those that were not seen come first.
                if c != slot and c != slot.later: self._rotate(slot, c)
                if c == slot or self.hand == first: self.hand = (self.hand + 1) % WHEEL
                return False
            self.hand = (self.hand + 1) % WHEEL
        return False

    cdef void _rotate(self, Conn* slot, Conn* first) noexcept:
        """Makes `first` the head of its wheel slot's ring."""
        slot.earlier.later = slot.later
        slot.later.earlier = slot.earlier
        slot.later = first
        slot.earlier = first.earlier
        first.earlier.later = slot
        first.earlier = slot

    cdef void _turn_away(self, int fd, bint secure, bint shedding) noexcept:
        """One connection too many: a quick answer instead of a queue that only grows; none where it would cost a handshake."""
        cdef bytes answer = self.shedding if shedding else self.full
        self.errors[E_SHEDDING if shedding else E_OVERLOADED] += 1
        self.statuses[5] += 1
        self.unrouted[5] += 1
        self.unrouted_errors[E_SHEDDING if shedding else E_OVERLOADED] += 1
        if not secure: send(fd, PyBytes_AS_STRING(answer), PyBytes_GET_SIZE(answer), MSG_NOSIGNAL)
        close(fd)

    # ---- watermarks ------------------------------------------------------------------------------------------------

    cdef uint64_t _sockets(self) noexcept:
        return self.clients + self.upstream_connections + 2 * self.n_pipes

    cdef _set_marks(self, dict limits):
        """Takes the marks of a new table, as `snapshot.Limits` has them."""
        memory = limits["memory"]
        self.marks.soft = memory["soft"]
        self.marks.hard = memory["hard"]
        self.descriptors = limits["descriptors"]
        self.lag_us = <uint64_t>(limits["lag"] * 1e6)
        if self.statm < 0 and (self.marks.soft or self.marks.hard):
            try: self.statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
            except OSError: pass                     # no descriptor to be had: the next table tries again
        self._look()

    cdef void _look(self) noexcept:
        """Once in LOOK_EVERY_MS: how much there is of what may run out."""
        cdef rlimit most
        cdef char text[128]
        cdef ssize_t n
        self.looked = self.now
        if self.marks.soft or self.marks.hard:
            n = pread(self.statm, text, sizeof(text) - 1, 0)
            if n > 0:
                text[n] = 0
                self.resident = gl_resident(text)
        else: self.resident = 0
        weigh(&self.marks, self.resident)
        self.level = self.marks.level
        self.most_sockets = <uint64_t>-1
        if self.descriptors and getrlimit(RLIMIT_NOFILE, &most) == 0 and most.rlim_cur >= FEW_DESCRIPTORS:
            self.most_sockets = <uint64_t>most.rlim_cur // 100 * self.descriptors
        if self.level >= HIGH or self._sockets() > self.most_sockets: self._close_unused()

    cdef void _close_unused(self) noexcept:
        """Idle clients and unused connections to instances make room for those that are in use."""
        cdef Upstream up
        cdef int i
        for i in range(CLOSED_AT_ONCE):
            if not self._shed(): break
        for up in self.upstreams.values():
            while up.idle != NULL: self._kill(up.idle)
        malloc_trim(0)

    cdef bint _is_too_much(self, uint64_t now_us) noexcept:
        """Whether a request that has just come is to be refused for the sake of those that are under way."""
        return self.level == FULL or self.behind_us + now_us - self.batch_began > self.lag_us

    cdef _shut(self):
        if self.statm >= 0: close(self.statm)
        self.statm = -1
        Pools._shut(self)

    cdef bint _is_trusted(self, Conn* c):
        address = ipaddress.ip_address(c.peer.text[:c.peer.text_len].decode()) if c.peer.text_len else None
        return address is None or any(address in each for each in self.listeners[c.listener][1])

    cdef bint _proxy_header(self, Conn* c, size_t have, ssize_t n) noexcept:
        """Bytes of a PROXY header are in the shared buffer. True: it is complete; what is behind it is held."""
        cdef ProxyInfo info
        cdef ssize_t used = read_proxy(self.buf, have, &info)
        if used < 0 or (used == 0 and n == 0):
            if have: self.errors[E_BAD_PROXY] += 1   # else it just went away, as health checks do
            self._kill(c)
            return False
        if used == 0:
            if self._hold(c, self.buf, have) < 0: self._kill(c)
            return False
        if not info.local:
            memcpy(c.peer.address, info.source, 16)
            memcpy(c.peer.text, info.source_text, 48)
            c.peer.text_len = info.source_text_len
            c.peer.port = info.source_port
            c.peer.v4 = memcmp(info.source, MAPPED, 12) == 0   # of the source alone; info.v4 is of both
        c.state = S_HEAD
        if <size_t>used < have and self._hold(c, self.buf + used, have - used) < 0:
            self._kill(c)
            return False
        if not self.listening[c.listener].secure: return True
        if self._accept_tls(c, self.certificates[c.listener]): self._again(c)
        else: self._kill(c)
        return False


cdef inline bint _is_idle(Conn* c) noexcept:
    """A client between requests, or with an HTTP/2 session without streams."""
    if c.side != CLIENT or c.readable or c.out_len or c.fd < 0: return False
    return (c.state == S_HEAD and c.reused and c.held_len == 0) or (c.state == S_SESSION and c.session.n_streams == 0)
