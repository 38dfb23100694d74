"""The engine: clients, exchanges, relay, tunnels.

One request, in reading order: `_client_readable` → `_request_head` → `_begin` → `_acquire` → `_upstream_readable` →
`_response_head` → `_finish`. Below it are the sockets (`_sockets`, with the rules of the house) and the pools (`_pools`).
"""

cimport cython
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from graylb._fast cimport (DECIDED, NO_INSTANCE, NO_ROUTE, REDIRECT, TOO_LARGE, Context, Decision, Live, Query, Route,
                           Service, Table, decide, free_context, make_context, pick_other,
                           write_decision)
from graylb._gate cimport Gate
from graylb._http1 cimport (BODY_CHUNKED, BODY_CLOSE, BODY_LENGTH, BODY_NONE, DROP, H_ACCEPT, H_CONTENT_LENGTH, MAX_HEADERS,
                            Body, Client, ForwardingPolicy, Head, Header, Piece, chunk_head, decode_body, find_blank_line,
                            reset_head, same_name, scan_request, scan_response, start_body, write_request, write_response)
from graylb._live cimport (CALLED, CLIENT, MAX_HEAD, SAVED_MAX, S_BODY, S_HEAD, S_LINGER, S_PROXY, S_TUNNEL, S_WAIT, U_BODY, U_HEAD, U_IDLE,
                           UPSTREAM, Conn, Counter, Exchange, Peer, Series, TableState, Upstream, record)
from graylb._pools cimport WARM_EVERY_MS, Pools, may_repeat
from graylb._proxy cimport ProxyInfo, read_proxy
from graylb._sockets cimport (EPOLLERR, EPOLLHUP, EPOLLRDHUP, LITTLE, MSG_NOSIGNAL, MSG_PEEK, SHUT_WR, SMALL, SPLICE_FROM,
                              WHEEL, accept_from, close, exhausted, gl_now_ms, gl_now_us, recv, reset_on_close, send, shutdown, socket_error)

import ipaddress
import resource

from graylb._live import carried, is_ip
from graylb.errors import BY_REASON, KINDS
cdef extern from * nogil:
    """
    #include <string.h>
    """
    void* memmem(const void*, size_t, const void*, size_t)

cdef enum:
    MAX_ATTEMPTS = 4
    LINGER_MS = 2000
    ACCEPT_BATCH = 256
    ACCEPT_PAUSE_MS = 100
    MARGIN = 16384         # room for what heads gain
    SHED_LOOKS = 64        # connections that are looked at for an idle one when there is no room for another
    MAX_LISTENERS = 256

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
cdef int E_BAD_PROXY = BY_REASON["bad-proxy-header"].code
cdef int E_RESPONSE_TIMEOUT = BY_REASON["response-timeout"].code


cdef const uint8_t* MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"

cdef enum:
    N_CODES = 32

cdef struct Listening:
    int fd
    uint8_t proxy                  # its connections begin with a PROXY header
    uint8_t all_trusted            # whoever they are from; else those of `trusted`, see `_is_trusted`
    uint32_t bit                   # of its name in the current table; 0: no route names it

cdef class Engine(Pools):
    """Serves clients by the current table. One engine a worker, on one event loop.

    loop: a running uvloop (or asyncio) loop. worker: number of this worker, sets its counters apart from its siblings'.
    """

    cdef object on_quiet           # called once when draining and no client is left
    cdef int worker
    cdef char* heads               # rewritten heads
    cdef size_t heads_size
    cdef Exchange* spare
    cdef Exchange* tunnel_list     # open tunnels
    cdef TableState state
    cdef dict members              # service -> (its digest, its instances in the table's order)
    cdef dict counters
    cdef dict series               # (service, version) -> Series
    cdef list listeners            # (name, trusted networks) by number
    cdef Listening listening[MAX_LISTENERS]
    cdef int n_listening
    cdef int max_clients           # what the descriptors allow
    cdef uint32_t hand             # wheel slot where `_shed` goes on
    cdef dict fallbacks
    cdef list answers
    cdef bytes full                # the answer to a connection too many
    cdef Gate gate
    cdef Head head
    cdef Context context
    cdef bint draining
    cdef readonly int exchanges
    cdef readonly int tunnels
    cdef readonly uint64_t accepted
    cdef readonly uint64_t requests
    cdef readonly uint64_t retries
    cdef readonly uint64_t disagreements
    cdef readonly uint64_t aborted
    cdef readonly uint64_t shed    # idle clients closed to make room for others
    cdef readonly uint64_t tunnels_cut
    cdef uint64_t errors[N_CODES]
    cdef bint retriable[N_CODES]
    cdef uint64_t statuses[6]

    def __init__(self, loop, int worker=0):
        self.worker = worker
        self.heads_size = 3 * (MAX_HEAD) + MARGIN + SMALL
        self.heads = <char*>malloc(self.heads_size)
        if self.heads == NULL or not make_context(&self.context, MAX_HEAD): raise MemoryError
        self.upstreams = {}
        self.named = {}
        self.counters = {}
        self.series = {}
        self.listeners = []
        self.fallbacks = {}
        self.warm = set()
        self.members = {}
        self.gate = Gate()
        # answers[code][json][close]; HEAD cuts the body off
        self.answers = [[[kind.response(json=json, close=close) for close in (False, True)] for json in (False, True)]
                        for kind in KINDS]
        for kind in KINDS: self.retriable[<int>kind.code] = kind.retriable
        self.full = self.answers[E_OVERLOADED][False][True]
        # half of the descriptors for clients and half for instances, after what the process itself needs
        self.max_clients = max(64, (min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 30) - 128) // 2)
        self._open(loop)

    def __dealloc__(self):
        cdef Exchange* x
        while self.spare != NULL:
            x = self.spare
            self.spare = x.next
            free(x.saved)
            free(x)
        free(self.heads)
        free_context(&self.context)

    # ---- the Python face -------------------------------------------------------------------------------------------

    def swap(self, Table table):
        """Requests whose head completes from now on are decided by this table. Live state is carried over by identity."""
        cdef TableState former = self.state
        before, self.members = self.members, {}
        instances, retired = [], []
        for service in table.meta["services"]:
            known = before.pop(service["name"], None)
            if known is None or known[0] != service["digest"]: own = self._instances_of(service, table, len(instances), known, retired)
            else: own = known[1]
            self.members[service["name"]] = service["digest"], own, len(instances), service["connections"]
            instances += own
        for name, (_, gone, *_) in before.items():
            retired += gone
            self.series = {key: found for key, found in self.series.items() if key[0] != name}
        counters = {name: self.counters.get(name) or Counter(<uint64_t>self.worker * 7919) for name in table.meta["splits"]}
        pick = former.live.pick if former is not None else <uint64_t>self.worker << 48
        self.state = TableState(table, instances, counters, pick)
        self.counters = counters
        self._name_listeners()
        for u in retired: self._retire_instance(u)
        if former is not None: self._judge_tunnels(former)
        self._warm_up()
        self._reap()

    cdef list _instances_of(self, dict service, Table table, int first, tuple known, list retired):
        """The instances of a service that is new or changed; former ones that it has no more are added to `retired`."""
        cdef int i, n = service["instances"]
        cdef list left = []
        if known is None: found = [None] * n
        elif known[3] != service["connections"]:
            left += known[1]
            found = [None] * n
        else: found = carried(table, first, n, self.state.table, known[2], known[1], left)
        for i in range(n):
            if found[i] is None: found[i] = self._instance_of(service, table.instance_list(first + i, 1)[0])
        if left: retired += set(left).difference(found)
        return found

    cdef Upstream _instance_of(self, dict service, tuple instance):
        cdef Upstream u
        name, address, version, weight = instance
        u = self.upstreams.get((name, address))
        if u is None or u.version != version:
            u = self.upstreams[name, address] = Upstream(name, address, version, self._series(name, version))
            if not is_ip(address): self.named[name, address] = u
        u.configure(service["connections"])
        if weight == 0: u.warm = 0
        if u.warm: self.warm.add(u)
        else: self.warm.discard(u)
        self._fit(u)
        return u

    cdef _retire_instance(self, Upstream u):
        """No table names it any more; another version may have taken its address."""
        if self.upstreams.get((u.service, u.address)) is u:
            del self.upstreams[u.service, u.address]
            self.named.pop((u.service, u.address), None)
        self.warm.discard(u)
        self._retire(u)

    def _series(self, str service, str version):
        found = self.series.get((service, version))
        if found is None: found = self.series[service, version] = Series(service, version)
        return found

    def listen(self, int fd, *, str name="edge", str role="edge", bint proxy_protocol=False, trusted=(), protocols=()):
        """Accepts clients from a listening, non-blocking socket. The caller keeps it open until `unlisten`.

        name: what routes call it. proxy_protocol: connections from the networks `trusted` (none given: all) begin with a
        PROXY header. ValueError with more than 256 listeners.
        """
        cdef Listening* l = &self.listening[self.n_listening]
        if self.n_listening == MAX_LISTENERS: raise ValueError(f"at most {MAX_LISTENERS} listeners are possible")
        l.fd = fd
        l.proxy = proxy_protocol
        l.all_trusted = not trusted
        self.listeners.append((name, [ipaddress.ip_network(each, strict=False) for each in trusted]))
        self.n_listening += 1
        self._name_listeners()
        self.loop.add_reader(fd, self._on_accept, self.n_listening - 1)

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

    def drain(self, on_quiet, *, bint keep_idle=False):
        """Accepts no more and lets exchanges finish with `connection: close`; calls on_quiet() when no client is left.

        Idle clients are closed; those that have not asked anything yet have until their header timeout.
        keep_idle: idle clients may ask once more, and are told then that the connection ends.
        """
        cdef int i
        cdef Conn* c
        cdef Conn* following
        cdef char probe
        self.unlisten()
        self.draining = True
        self.on_quiet = on_quiet
        for i in range(0 if keep_idle else WHEEL):
            c = self.wheel[i].later
            while c != &self.wheel[i]:
                following = c.later
                if c.side == CLIENT and c.state == S_HEAD and c.reused and c.held_len == 0 and c.out_len == 0 \
                        and not c.readable and recv(c.fd, &probe, 1, MSG_PEEK) <= 0:
                    self._kill(c)                            # nothing asked that epoll has not told us yet
                c = following
        self._reap()
        self._quiet()

    def close(self):
        """Closes everything at once. To be called before the loop ends, which would wait for our descriptors."""
        cdef int i
        if self.closed: return
        self.closed = True
        self.unlisten()
        for i in range(WHEEL):
            while self.wheel[i].later != &self.wheel[i]: self._abort(self.wheel[i].later)
        self._shut()

    def upstream_names(self):
        """((service, address), known) of the current instances whose host is a name; known: it was resolved before."""
        cdef Upstream u
        return [(key, u.sa_len > 0) for key, u in self.named.items()]

    def resolved(self, str service, str address, str ip):
        """Takes the IP address found for an instance's host name."""
        u = self.upstreams.get((service, address))
        if u is not None: (<Upstream>u).resolve(ip)

    def stats(self):
        """Counters as a dict of plain values."""
        return {
            "revision": self.state.table.revision if self.state is not None else None,
            "clients": self.clients, "upstream_connections": self.upstream_connections, "exchanges": self.exchanges,
            "tunnels": self.tunnels, "tunnels_cut": self.tunnels_cut, "shed": self.shed,
            "accepted": self.accepted, "requests": self.requests, "retries": self.retries, "aborted": self.aborted,
            "disagreements": self.disagreements,
            "statuses": {f"{i}xx": self.statuses[i] for i in range(1, 6)},
            "errors": {kind.reason: self.errors[kind.code] for kind in KINDS if self.errors[kind.code]},
            "fallbacks": [{"service": s, "wanted": w, "got": g, "count": n} for (s, w, g), n in self.fallbacks.items()],
            "instances": [u.figures() for u in self.upstreams.values()],
            "versions": [each.figures() for each in self.series.values()],
        }

    # ---- clients come ----------------------------------------------------------------------------------------------

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
                self._turn_away(fd)
                continue
            c = self._new(fd, CLIENT)
            if c == NULL: continue
            c.peer = peer
            c.listener = <uint8_t>number
            c.state = S_PROXY if l.proxy and (l.all_trusted or self._is_trusted(c)) else S_HEAD
            self.accepted += 1
            self._set_deadline(c, self.now + self.state.header_ms)
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
                if c.side == CLIENT and c.state == S_HEAD and c.reused and c.held_len == 0 and c.out_len == 0 and not c.readable:
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

    cdef void _turn_away(self, int fd) noexcept:
        """One connection too many: a quick answer instead of a queue that only grows."""
        self.errors[E_OVERLOADED] += 1
        self.statuses[5] += 1
        send(fd, PyBytes_AS_STRING(self.full), PyBytes_GET_SIZE(self.full), MSG_NOSIGNAL)
        close(fd)

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
        return True

    # ---- what happens to connections -------------------------------------------------------------------------------

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

    cdef void _sent(self, Conn* c) noexcept:
        cdef Conn* peer
        if c.closing:
            self._linger(c)
            return
        if c.x == NULL:
            if c.side == CLIENT: self._rest(c)
            return
        if c.half_close and not self._pass_end(c): return
        peer = c.x.upstream if c.side == CLIENT else c.x.client
        if peer != NULL and (peer.readable or peer.held_len): self._again(peer)

    cdef void _gone(self, Conn* c) noexcept:
        if c.side == UPSTREAM: self._lost(c)

    cdef void _batch_done(self) noexcept:
        if self.warm and self.now >= self.warmed + WARM_EVERY_MS and not self.closed: self._warm_up()
        if self.draining: self._quiet()

    cdef _quiet(self):
        if self.clients == 0 and self.on_quiet is not None:
            told, self.on_quiet = self.on_quiet, None
            self.loop.call_soon(told)

    cdef void _progress(self, Conn* c) noexcept:
        """Bytes moved: the exchange is not idle."""
        cdef Exchange* x = c.x
        if x == NULL: return
        if x.upstream != NULL and not x.upstream.connecting and (x.upstream.state != U_HEAD or not x.request_done):
            self._set_deadline(x.upstream, self._idle_deadline(x))

    cdef inline uint64_t _idle_deadline(self, Exchange* x) noexcept:
        """When the exchange has stalled; for a tunnel that is to be cut, when that is, if it comes first."""
        cdef uint64_t when = self.now + x.idle_ms
        return x.cut_ms if x.cut_ms and x.cut_ms < when else when

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
        cdef Upstream up
        if x.waiting:
            up = <Upstream>(<TableState>x.state).upstreams[x.d.instance]
            self._leave_queue(up, x)
            self._call_all(up)
        if x.client != NULL: x.client.x = NULL
        if x.client != NULL and x.client.state == S_TUNNEL: self._tunnel_closed(x)
        if x.status and x.upstream != NULL: record((<Upstream>x.upstream.upstream).series, x, gl_now_us())
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
            if x.response_begun and x.response_kind == BODY_CLOSE and d != NULL: reset_on_close(d.fd)
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
            elif x != NULL and x.waiting and not c.shut: self._fail(c, E_OVERLOADED)
            elif c.state == S_BODY and x != NULL and not x.waiting and not x.response_begun and not x.request_done:
                if x.upstream != NULL and x.upstream.out_len:      # it is the upstream that does not read
                    self._set_deadline(c, self.now + self.state.body_ms)
                else: self._fail(c, E_BODY_TIMEOUT)
            elif c.state == S_WAIT and x != NULL and x.response_begun: self._place(c)
            else: self._abort(c)
        elif c.state == U_IDLE: self._expired_idle(c)
        elif c.state == S_TUNNEL and x.cut_ms and x.cut_ms <= self.now: self._cut(x)
        elif c.connecting: self._upstream_failed(c, E_CONNECT_TIMEOUT)
        elif x != NULL and x.response_begun: self._abort(c)
        else: self._upstream_failed(c, E_RESPONSE_TIMEOUT)

    # ---- the client side -------------------------------------------------------------------------------------------

    cdef void _client_readable(self, Conn* c) noexcept:
        cdef size_t have, moved = 0
        cdef ssize_t n
        if c.x != NULL and c.x.waiting:
            if c.x.waiting == CALLED: self._serve(c.x)
            return
        while not c.dead:
            if c.state == S_WAIT: return             # pipelined bytes wait in the kernel
            if c.state == S_HEAD and c.out_len: return
            if c.state == S_BODY and (c.x.upstream == NULL or c.x.upstream.out_len): return
            if moved >= self.slice:
                self._again(c)
                return
            if c.state == S_BODY and c.x.request.kind == BODY_LENGTH and self._can_splice(c, c.x.upstream, c.x.request.left):
                n = self._splice_request(c)
                if n == 0: return
                if n > 0:
                    moved += n
                    continue
            if c.state == S_HEAD and c.partial:
                if not self._more_of_head(c):
                    if c.dead or not c.readable: return
                    continue
                c.partial = 0
                n = 1
                have = c.held_len
                memcpy(self.buf, c.held, have)
                c.held_len = 0
            else: n = self._receive(c, &have, self.gulp)
            if n == -2:
                self._abort(c)
                return
            moved += have
            if c.state == S_HEAD:
                if not self._head_bytes(c, have, n): return
            elif c.state == S_BODY:
                if not self._body_bytes(c, have, n): return
            elif c.state == S_PROXY:
                if not self._proxy_header(c, have, n) or c.held_len == 0:
                    if c.dead or not c.readable: return
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
        x.began_us = gl_now_us()
        q.ip = c.peer.text
        q.ip_len = c.peer.text_len
        q.v4 = c.peer.v4
        q.listener = self.listening[c.listener].bit
        memcpy(q.address, c.peer.address, 16)
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
        told.address = c.peer.text
        told.address_len = c.peer.text_len
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
        while True:
            if not self._acquire(x, x.attempts > 0):
                if c.x == x and self._keep_request(x, self.heads, size, piece.data, piece.length) < 0: self._abort(c)
                return
            if self._send_two(x.upstream, self.heads, size, piece.data, piece.length) >= 0: break
            # the kernel took nothing: a pooled connection was closed under us, and nobody has seen this request
            self._leave(x)
            if x.attempts >= MAX_ATTEMPTS:
                self._fail(c, E_UPSTREAM_RESET)
                return
            self.retries += 1
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
        if an + bn <= SAVED_MAX: self._keep_request(x, a, an, b, bn)

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

    cdef void _serve(self, Exchange* x) noexcept:
        """It has waited for a connection, and one is kept for it."""
        cdef Conn* c = x.client
        cdef Upstream up = <Upstream>(<TableState>x.state).upstreams[x.d.instance]
        if up.max and up.n_open + up.n_called > up.n_idle + up.max:
            self._leave_queue(up, x)                 # the maximum was lowered in between
            self._wait(up, x)
            return
        c.deadline = 0
        self._send_kept(x, False, -1)

    cdef void _send_kept(self, Exchange* x, bint fresh, int failed) noexcept:
        """Sends a request that is kept, on the connection that `_acquire` finds, or has it wait."""
        cdef Conn* c = x.client
        if not self._acquire(x, fresh, failed): return
        while self._send(x.upstream, x.saved, x.saved_len) < 0:
            self._leave(x)
            if x.attempts >= MAX_ATTEMPTS:
                self._fail(c, E_UPSTREAM_RESET)
                return
            self.retries += 1
            if not self._acquire(x, True): return
        # only what may be repeated after it was sent stays
        if not may_repeat(x): x.saved_len = 0
        self._await(x)
        if c.state == S_BODY and (c.readable or c.held_len): self._again(c)

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
        x.bytes_in += piece.length
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

    cdef bint _acquire(self, Exchange* x, bint fresh, int failed=-1) noexcept:
        """An idle connection to the chosen instance (last in, first out), else a new one; where instances are full, a place
        in the queue of the one first chosen. A request that was called has room at the first. failed: the instance that
        this attempt is not to meet again. False: failed and answered, or x.waiting."""
        cdef TableState state = <TableState>x.state
        cdef Upstream up
        cdef Conn* u
        cdef int tries, full = -1, first = x.d.instance
        cdef bint called
        for tries in range(MAX_ATTEMPTS):
            up = <Upstream>state.upstreams[x.d.instance]
            called = x.waiting == CALLED
            if not called and not self._has_room(up):
                if full < 0: full = x.d.instance
            elif x.d.instance != failed:
                x.attempts += 1
                u = NULL if fresh else self._idle(up, x)
                if u == NULL: u = self._connect(up, x)
                if u == NULL and self.exhausted and self._shed(): u = self._connect(up, x)
                if called: self._leave_queue(up, x)  # not before: what these two close is room for nobody else
                if u != NULL:
                    u.state = U_HEAD
                    u.x = x
                    x.upstream = u
                    up.in_flight += 1
                    up.requests += 1
                    return True
                if called: self._call_all(up)
                if self.exhausted:                   # not the instance is to blame, and no other could be reached
                    self._fail(x.client, E_OVERLOADED)
                    return False
                up.failures += 1
                self.retries += 1
            if x.attempts >= MAX_ATTEMPTS or not pick_other(state.table, &state.live, &x.d, first): break
        if full >= 0:
            x.d.instance = full
            up = <Upstream>state.upstreams[full]
            if up.n_waiting < up.queue:
                self._wait(up, x)
                self._set_deadline(x.client, self.now + up.queue_ms)
                return False
        self._fail(x.client, E_OVERLOADED if full >= 0 else E_CONNECT_FAILED)
        return False

    cdef bint _connected(self, Conn* u) noexcept:
        """The connection attempt has ended, one way or the other."""
        cdef Exchange* x = u.x
        if socket_error(u.fd) != 0:
            self._upstream_failed(u, E_CONNECT_FAILED)
            return False
        u.connecting = 0
        if x != NULL: self._set_deadline(u, self.now + (x.response_ms if x.request_done else x.idle_ms))
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
            if moved >= self.slice:
                self._again(u)
                return
            if u.state == U_BODY and x.response.kind == BODY_LENGTH and self._can_splice(u, x.client, x.response.left):
                n = self._splice_response(u)
                if n == 0: return
                if n > 0:
                    moved += n
                    continue
            n = self._receive(u, &have, LITTLE if u.state == U_HEAD and (<Upstream>u.upstream).large else self.gulp)
            if n == -1 and have == 0: return
            moved += have
            if n == -2 or n == 0:
                self._upstream_end(u, have, n)
                return
            if u.state == U_HEAD:
                if not self._response_head(u, have): return
            elif not self._response_bytes(u, self.buf, have): return
            if not u.readable and u.held_len == 0: return

    cdef ssize_t _splice_response(self, Conn* u) noexcept:
        """Moves on a piece of a large body; both sides have it by its length. Bytes moved; 0: no more for now; -1: copy."""
        cdef Exchange* x = u.x
        cdef ssize_t n = self._splice(u, x.client, x.response.left)
        if n == -4: return -1
        if n == -1: return 0
        if n == 0 or n == -2: self._upstream_end(u, 0, n)
        elif n == -3: self._abort(x.client)
        else:
            x.response.left -= n
            x.bytes_out += n
            self._set_deadline(u, self._idle_deadline(x))
            if x.response.left: return n
            x.response.kind = BODY_NONE
            self._finish(x, True)
        return 0

    cdef ssize_t _splice_request(self, Conn* c) noexcept:
        """The same for a request's body."""
        cdef Exchange* x = c.x
        cdef ssize_t n = self._splice(c, x.upstream, x.request.left)
        if n == -4: return -1
        if n == -1: return 0
        if n == 0 or n == -2: self._abort(c)             # gone in the middle of its request
        elif n == -3: self._broken(x.upstream)
        else:
            x.request.left -= n
            x.bytes_in += n
            if x.request.left == 0:
                x.request.kind = BODY_NONE
                x.request_done = 1
                c.state = S_WAIT
                c.deadline = 0
            self._await(x)
            if x.request.left: return n
        return 0

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
        x.upstream.reused = 0                        # not stale: it has this request, which is not asked once more
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
        x.status = 101
        self.statuses[1] += 1
        self.tunnels += 1
        x.previous = NULL
        x.next = self.tunnel_list
        if x.next != NULL: x.next.previous = x
        self.tunnel_list = x
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
            if moved >= self.slice:
                self._again(a)
                return
            n = self._receive(a, &have, self.gulp)
            if n == -2:
                self._abort(a)
                return
            moved += have
            if have:
                if a.side == CLIENT: a.x.bytes_in += have
                else: a.x.bytes_out += have
                self._set_deadline(a.x.upstream, self._idle_deadline(a.x))
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

    cdef void _tunnel_closed(self, Exchange* x) noexcept:
        self.tunnels -= 1
        if x.previous != NULL: x.previous.next = x.next
        else: self.tunnel_list = x.next
        if x.next != NULL: x.next.previous = x.previous

    cdef void _cut(self, Exchange* x) noexcept:
        """Closes both ends of a tunnel in order; frames are the ends' affair, so none is put in."""
        cdef Conn* c = x.client
        cdef Conn* u = x.upstream
        self.tunnels_cut += 1
        self._drop_exchange(x)
        self._kill(u)
        self._kill(c)

    cdef _judge_tunnels(self, TableState former):
        """The policy of each service decides about the tunnels of a version that a new table takes the traffic from."""
        cdef Exchange* x = self.tunnel_list
        cdef Exchange* following
        while x != NULL:
            following = x.next
            policy, seconds = self._verdict(x, former)
            if policy == "keep":
                if x.cut_ms:
                    x.cut_ms = 0
                    self._set_deadline(x.upstream, self._idle_deadline(x))
            elif policy == "cut": self._cut(x)
            elif x.cut_ms == 0:
                x.cut_ms = self.now + <uint64_t>(seconds * 1000)
                self._set_deadline(x.upstream, self._idle_deadline(x))
            x = following

    cdef _verdict(self, Exchange* x, TableState former):
        """(policy, seconds) for one tunnel. Its version has lost its traffic when what chose it, the split or the rule of
        that name, does not choose it any more, or when its instance is gone."""
        cdef Upstream up = <Upstream>x.upstream.upstream
        cdef Table t = (<TableState>x.state).table
        settings = self.state.service_settings.get(up.service) or former.service_settings.get(up.service)
        keep = ("keep", 0.0)
        if settings is None or settings["tunnels"]["policy"] == "keep": return keep
        policy = settings["tunnels"]["policy"], settings["tunnels"]["seconds"]
        if up.retired: return policy
        rule = t._rule_name(x.d.service, x.d.rule) if x.d.rule >= 0 else None
        if x.d.fell_back: return keep                # it was never this version's traffic
        return keep if up.version in _chosen_by(self.state.service_settings.get(up.service), rule) else policy

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
        x.status = h.status
        (<Upstream>u.upstream).large = x.response.kind == BODY_LENGTH and x.response.left >= SPLICE_FROM
        self.statuses[h.status // 100] += 1
        c.deadline = 0
        self._set_deadline(u, self.now + x.idle_ms)
        if decode_body(&x.response, body, n, &piece) < 0:
            x.response_begun = 0
            self._upstream_failed(u, E_UPSTREAM_INVALID)
            return False
        x.bytes_out += piece.length
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
        x.bytes_out += piece.length
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
            and up.n_idle < up.max_idle and (up.max == 0 or up.n_open <= up.max)
        self._drop_exchange(x)
        if reuse: self._pool(u)
        else: self._kill(u)
        if close_client or self.draining: self._close_client(c, not whole or c.readable or c.held_len > 0)
        else: self._next_request(c)


# ---- helpers -------------------------------------------------------------------------------------------------------

REDIRECTS = {301: "Moved Permanently", 302: "Found", 303: "See Other", 307: "Temporary Redirect", 308: "Permanent Redirect"}


def _chosen_by(settings, rule):
    """The versions that a service's split, or its rule of that name, sends requests to."""
    if settings is None: return ()
    traffic = settings.get("traffic") or {"split": (), "rules": {}}
    return traffic["split"] if rule is None else traffic["rules"].get(rule, ())


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
