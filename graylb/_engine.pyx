"""The engine: tables, clients' requests, relay.

One request, in reading order: `_client_readable` → `_request_head` → `_begin` → `_acquire` → `_upstream_readable` →
`_response_head` → `_finish`. A request that comes as an HTTP/2 stream begins at `_stream_request`, an answer that does at
`_stream_response`; in between they go the same way. The floors below, each a class that this one inherits from: `_sockets` (with
the rules of the house), `_pools`, `_clients`, `_streams`, `_exchanges`, `_attempts`, `_hedges`, `_tunnels`, `_detours`.
"""

cimport cython
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF, PyObject
from graylb._attempts cimport policy_of
from graylb._detours cimport Detours
from graylb._clients cimport LOOK_EVERY_MS
from graylb._fast cimport (DECIDED, ILL, NO_INSTANCE, NO_ROUTE, REDIRECT, Context, Decision, Query, Route, Service, Table,
                           add_certificate, decide, free_context, make_context)
from graylb._gate cimport Gate
from graylb._grpc cimport put_timeout, read_status, status_in, take_timeout, told
from graylb._h2 cimport H2_CANCEL, H2_REFUSED_STREAM, PREFACE
from graylb._http1 cimport (BODY_CHUNKED, BODY_CLOSE, BODY_LENGTH, BODY_NONE, DROP, GRPC, H_ACCEPT, H_CONTENT_LENGTH, MAX_HEADERS,
                            Body, Client, Head, KnownHead, Piece, chunk_head, decode_body, find_blank_line, read_request,
                            read_response, reset_head, same_name, scan_request, scan_response, start_body, write_request,
                            write_response)
from graylb._limits cimport FULL
from graylb._limits cimport configure as configure_breaker
from graylb._limits cimport figures as limit_figures
from graylb._live cimport (ALPN_H2, AUTO, CLIENT, HTTP2, MAX_HEAD, MAY_HEDGE, S_BODY, S_HEAD, S_PROXY, S_SESSION, S_TUNNEL,
                           S_WAIT, U_BODY, U_HEAD, U_IDLE, UPSTREAM, Conn, Counter, Exchange, ServiceLive, Session, TableState,
                           Tls, Upstream, same_names, same_service, same_settings)
from graylb._logs cimport EVENTS_BUFFER, Logs, Settings
from graylb._mark cimport Marks
from graylb._marker cimport Marker
from graylb._meter cimport Meter, Series
from graylb._outliers cimport NO_ANSWER, Outliers
from graylb._pools cimport WARM_EVERY_MS
from graylb._retries cimport CAUSES, HEDGED, MAX_ATTEMPTS, REFUSED, RetryPolicy, lists
from graylb._slab cimport Memory, Slab
from graylb._sockets cimport EPOLLERR, EPOLLHUP, EPOLLRDHUP, HEADROOM, LITTLE, SPLICE_FROM, WHEEL, gl_now_us
from graylb._streams cimport Streams, now_us

import os

from graylb._live import carried, is_ip
from graylb._retries import CAUSE_NAMES, HEDGE_NAMES
from graylb.errors import BY_REASON, KINDS
from graylb.grpc_health import reply as health_reply

cdef enum:
    LINGER_BYTES = 4194304
    N_OWN = 13
    PIECE = 65536          # a stream's body bytes are encoded for HTTP/1 in pieces of at most this

cdef extern from * nogil:
    """
    #include <string.h>
    """
    void* memmem(const void*, size_t, const void*, size_t)

# errors by code, see graylb.errors
cdef int E_BAD_FRAMING = BY_REASON["bad-framing"].code
cdef int E_BAD_REQUEST = BY_REASON["bad-request"].code
cdef int E_BAD_VERSION = BY_REASON["bad-version"].code
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
cdef int E_MISDIRECTED = BY_REASON["misdirected"].code
cdef int E_UPSTREAM_TLS = BY_REASON["upstream-tls"].code
cdef int E_RESPONSE_TIMEOUT = BY_REASON["response-timeout"].code
cdef int E_INJECTED = BY_REASON["injected-fault"].code
cdef int E_SHEDDING = BY_REASON["shedding"].code
cdef int E_TRY_TIMEOUT = BY_REASON["try-timeout"].code
cdef int E_REQUEST_TIMEOUT = BY_REASON["request-timeout"].code
cdef int E_DEADLINE = BY_REASON["deadline-exceeded"].code


cdef dict UNBOUNDED = {"requests": 0, "pending": 0, "connections": 0, "adaptive": None}

cdef const char* HEALTH = b"/grpc.health.v1.Health/"
cdef size_t HEALTH_LEN = 23
cdef const char* PRI = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"   # RFC 9113 section 3.4


# figures of the worker that it tells the slab of with each tick
cdef tuple OWN = (
    ("graylb_connections_accepted_total", ()), ("graylb_connections_shed_total", ()), ("graylb_requests_aborted_total", ()),
    ("graylb_tunnels_cut_total", ()), ("graylb_h2_sessions_cut_total", ()),
    ("graylb_parser_disagreements_total", ()), ("graylb_tls_handshakes_total", (("result", "full"),)),
    ("graylb_tls_handshakes_total", (("result", "resumed"),)), ("graylb_tls_handshakes_total", (("result", "failed"),)),
    ("graylb_connections", ()), ("graylb_tunnels", ()), ("graylb_h2_sessions", ()), ("graylb_h2_streams", ()),
)


cdef class Engine(Detours):
    """Serves clients by the current table. One engine a worker, on one event loop.

    loop: a running uvloop (or asyncio) loop. worker: number of this worker, sets its counters apart from its siblings'.
    slab: the descriptor of where it counts, which may be closed afterwards; -1: in memory of its own. memory: likewise of
    where it remembers the marks of traces.
    workers: how many there are, each with its share of what limits the whole proxy.
    """

    cdef object on_quiet           # called once when draining and no client is left
    cdef int worker
    cdef int workers
    cdef char* piece               # room to encode a stream's body bytes in
    cdef dict members              # service -> (its number in the table, its instances in the table's order)
    cdef dict counters
    cdef dict fallbacks
    cdef set down                  # (service, address) of instances that health checks find ill
    cdef Gate gate
    cdef uint64_t seed             # of the hashes of rates' keys
    cdef Marker marker
    cdef Context context
    cdef readonly uint64_t requests
    cdef readonly uint64_t disagreements
    cdef uint64_t* own[N_OWN]      # figures of the worker in the slab, see OWN
    cdef uint64_t former[N_OWN]    # what its predecessors have come to
    cdef dict told                 # (name, labels) -> what `_total` was told last
    cdef set limited               # names of services whose limits were told of last
    cdef int ticks

    def __init__(self, loop, int worker=0, int slab=-1, *, int workers=1, int memory=-1):
        self.worker = worker
        self.workers = workers
        self.slab = Slab(Memory(slab, worker))
        self.piece = <char*>malloc(HEADROOM + PIECE + HEADROOM)
        if self.piece == NULL or not make_context(&self.context, MAX_HEAD): raise MemoryError
        self.upstreams = {}
        self.named = {}
        self.counters = {}
        self.fallbacks = {}
        self.services = {}
        self.down = set()
        self.warm = set()
        self.members = {}
        self.gate = Gate()
        self.logs = Logs(worker)
        self._open_own()
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.marker = Marker(memory)
        self.outliers = Outliers(self.slab)
        self._open_doors()
        self._open_books()
        self._find_h2()
        self._open(loop)

    def __dealloc__(self):
        free(self.piece)
        free_context(&self.context)

    # ---- the Python face -------------------------------------------------------------------------------------------

    def swap(self, Table table):
        """Requests whose head completes from now on are decided by this table. Live state is carried over by identity."""
        cdef TableState former = self.state
        cdef uint32_t number
        before, self.members = self.members, {}
        instances, retired = [], []
        services = [self._service_of(table, number, before, retired) for number in range(table.header.n_services)]
        for service in services: instances += self.members[service.name][1]
        for name, (_, gone) in before.items():
            retired += gone
            self.services.pop(name, None)
            self.outliers.gone(name)
        marks = table.meta.get("marks")
        counters = {name: self.counters.get(name) or Counter(<uint64_t>self.worker * 7919) for name in table.meta["splits"]}
        pick = former.live.pick if former is not None else <uint64_t>self.worker << 48
        self.state = TableState(table, services, instances, counters, pick, Marks(marks, self.files) if marks is not None else None)
        self.state.log = Settings(table.meta, former.log if former is not None else None)
        if (<Settings>self.state.log).tracing: self.logs.events.resize(EVENTS_BUFFER)
        if (<Settings>self.state.log).buffer: self.logs.access.resize((<Settings>self.state.log).buffer)
        self.counters = counters
        self._limit_streams(table.meta["limits"])
        self._set_marks(table.meta["limits"])
        self._name_listeners()
        for u in retired: self._retire_instance(u)
        self._remark()
        if former is not None: self._judge_tunnels(former)
        self._warm_up()
        self._reap()

    cdef ServiceLive _service_of(self, Table table, int number, dict before, list retired):
        """The service of this number. before: what `members` was; loses it. retired: gets instances that it has no more.

        Most changes are of a weight or of what a rule says, and nothing is done about them: live state does not know them.
        """
        cdef str name = table._str(table.services[number].name)
        cdef ServiceLive found = self.services.get(name)
        cdef tuple known = before.pop(name, None)
        cdef Table former = self.state.table if known is not None else None
        cdef int at = known[0] if known is not None else -1
        cdef bint settled, named
        if known is not None and same_service(table, number, former, at):
            self.members[name] = number, known[1]
            return found
        settled = known is not None and same_settings(table, number, former, at)
        named = known is not None and same_names(table, number, former, at)
        if found is None: found = self.services[name] = ServiceLive(name, self.worker, self.slab.part())
        connections = found.settings["connections"] if known is not None else None
        if not settled: found.configure(table.settings(number))
        if not named: found.bind(table, number)
        if not (settled and named) and (found.settings["limits"] is not None or found.limits.any): self._limit_service(found)
        self.members[name] = number, self._instances_of(found, table, number, known, settled, connections, retired)
        return found

    cdef _limit_service(self, ServiceLive service):
        """Its limits are new, or the numbers of the fields and rules that they are about."""
        cdef Series each
        cdef dict told = service.settings["limits"]
        service.limits.configure(told, self.workers, self.seed, gl_now_us())
        for each in service.series.values(): self._limit_version(each, service)

    cdef _limit_version(self, Series series, ServiceLive service):
        bounds = service.limits.told["version"] if service.limits.told is not None else UNBOUNDED
        configure_breaker(&series.breaker, bounds, self.workers, gl_now_us())

    cdef list _instances_of(self, ServiceLive service, Table table, int number, tuple known, bint settled, connections, list retired):
        """The instances of a service that is new or changed; former ones that it has no more are added to `retired`.

        known: number in the former table and instances, or None. settled: its settings are as they were. connections: what
        those were that concern instances.
        """
        cdef const Service* told = &table.services[number]
        cdef list left = [], own = [None] * told.n_instances
        cdef uint32_t i
        cdef bint same = settled
        if known is not None and service.settings["connections"] == connections:
            own = carried(table, told.first_instance, told.n_instances, self.state.table,
                          self.state.table.services[<int>known[0]].first_instance, known[1], left)
        elif known is not None: left += known[1]
        for i in range(told.n_instances):
            if own[i] is None:
                same = False
                own[i] = self._instance_of(service, table.instance_list(told.first_instance + i, 1)[0])
        if left: retired += set(left).difference(own)
        if not same or left:
            weighted = table.weights(told.first_instance, told.n_instances)
            self.outliers.follow(service.settings, own, weighted, self.state is None, self.now)
        return own

    cdef Upstream _instance_of(self, ServiceLive service, tuple instance):
        cdef Upstream u
        name, address, version, weight = instance
        u = self.upstreams.get((name, address))
        if u is None or u.version != version:
            u = self.upstreams[name, address] = Upstream(name, address, version, service.series[version], service.limits)
            u.down = ILL if (name, address) in self.down else 0
            u.conduct.fresh = 1
            if not is_ip(address): self.named[name, address] = u
        u.configure(service.settings["connections"], self.workers)
        u.origin = self._origin_of(service.settings["connections"].get("tls"), address)
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
        self.outliers.forget(u)
        self._retire(u)

    def drain(self, on_quiet, *, bint keep_idle=False):
        """Accepts no more and lets exchanges finish with `connection: close`; calls on_quiet() when no client is left.

        Idle clients are closed; those that have not asked anything yet have until their header timeout.
        keep_idle: idle clients may ask once more, and are told then that the connection ends.
        """
        self.unlisten()
        self.draining = True
        self.on_quiet = on_quiet
        self._ask_to_leave(keep_idle)
        self._reap()
        self._quiet()

    cdef void _ask_to_leave(self, bint keep_idle) noexcept:
        """Idle clients go, those with a session are told to ask for no more."""
        cdef int i
        cdef Conn* c
        cdef Conn* following
        for i in range(WHEEL):
            c = self.wheel[i].later
            while c != &self.wheel[i]:
                following = c.later
                if c.side == CLIENT and c.state == S_SESSION: self._leave_clients(c)
                elif not keep_idle and c.side == CLIENT and c.fd >= 0 and c.state == S_HEAD and c.reused and c.held_len == 0 \
                        and c.out_len == 0 and not c.readable and self._says_nothing(c):
                    self._kill(c)                            # nothing asked that epoll has not told us yet
                c = following

    def close(self):
        """Closes everything at once. To be called before the loop ends, which would wait for our descriptors."""
        cdef int i
        if self.closed: return
        self.closed = True
        self._ticked()
        if self.alarm is not None: self.alarm.cancel()
        self.unlisten()
        for i in range(WHEEL):
            while self.wheel[i].later != &self.wheel[i]: self._abort(self.wheel[i].later)
        self._reap()
        self.logs.close()
        self._shut()

    def set_down(self, down):
        """Takes the instances, as pairs of service and address, that health checks find ill; all others are well."""
        cdef Upstream u
        former, self.down = self.down, {(service, address) for service, address in down}
        for key in former ^ self.down:
            u = self.upstreams.get(key)
            if u is None: continue
            if key in self.down: u.down |= ILL
            else:
                u.down &= ~ILL
                self.outliers.well(u, self.now)
        if self.state is not None: self.state.count_down()

    def open_logs(self, int access, int bell, int events):
        """Where lines of the access log go, a ring and its bell, and those for whoever looks on: a pipe's end. -1: nowhere. All
        stay the caller's. Raises OSError."""
        self.logs.open(access, bell, events)

    def watch(self, list views):
        """Who looks on, see `_logs.Logs.watch`."""
        self.logs.watch(views)

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
            "disagreements": self.disagreements, "access_log": self.logs.stats(),
            "tls": {"handshakes": self.handshakes, "resumed": self.resumed,
                    "failed": {why.decode(): n for why, n in self.handshakes_failed.items()}},
            "sessions": self.sessions, "streams": self.streams, "sessions_cut": self.sessions_cut,
            "statuses": {f"{i}xx": self.statuses[i] for i in range(1, 6)},
            "errors": {kind.reason: self.errors[kind.code] for kind in KINDS if self.errors[kind.code]},
            "fallbacks": [{"service": s, "wanted": w, "got": g, "count": n} for (s, w, g), n in self.fallbacks.items()],
            "marks": self.marker.figures(),
            "faults": [each for live in self.services.values() for each in (<ServiceLive>live).fault_figures()],
            "mirrors": [(<ServiceLive>live).mirror.figures() for live in self.services.values()
                        if (<ServiceLive>live).mirror is not None],
            "instances": [u.figures() for u in self.upstreams.values()],
            "versions": [each.figures() for live in self.services.values() for each in live.series.values() if each.opened],
            "outliers": self.outliers.counted(), "ejected": self.ejected(),
            "limits": {name: (<ServiceLive>each).limits.figures() for name, each in self.services.items()
                       if (<ServiceLive>each).limits.any},
            "pressure": {"level": ("calm", "high", "full")[self.level], "resident": self.resident},
            "panics": {name: (<ServiceLive>each).panics[0] for name, each in self.services.items() if (<ServiceLive>each).panics[0]},
            "services": [each.figures() for each in self.services.values()],
        }

    # ---- figures of its own ----------------------------------------------------------------------------------------

    cdef _open_own(self):
        cdef int i
        self.told, self.limited = {}, set()
        for i in range(N_OWN):
            name, labels = OWN[i]
            self.own[i] = self.slab.counter(name, labels) if name.endswith("_total") else self.slab.gauge(name, labels)
            self.former[i] = self.own[i][0]

    cdef void _own(self, int i, uint64_t value) noexcept:
        self.own[i][0] = self.former[i] + value

    cdef void _ticked(self) noexcept:
        Detours._ticked(self)
        self._own(0, self.accepted)
        self._own(1, self.shed)
        self._own(2, self.aborted)
        self._own(3, self.tunnels_cut)
        self._own(4, self.sessions_cut)
        self._own(5, self.disagreements)
        self._own(6, self.handshakes - self.resumed)
        self._own(7, self.resumed)
        self._own(8, sum(self.handshakes_failed.values()) if self.handshakes_failed else 0)
        self._own(9, self.clients)
        self._own(10, self.tunnels)
        self._own(11, self.sessions)
        self._own(12, self.streams)
        self.ticks += 1
        if self.ticks % 10 == 0 or self.closed: self._tell_rare()

    cdef _tell_rare(self):
        """Once a second: what others count as plain numbers, and is mostly nothing."""
        cdef ServiceLive live
        for result, n in (("written", self.logs.access.lines), ("dropped", self.logs.access.dropped)):
            self._total(self.slab, "graylb_access_log_lines_total", (("result", result),), n)
        for result, n in (("written", self.logs.spans), ("dropped", self.logs.spans_dropped)):
            self._total(self.slab, "graylb_worker_spans_total", (("result", result),), n)
        for live in self.services.values():
            self._tell_attempts(live)
            if live.mirror is not None:
                for each in live.mirror.figures()["outcomes"]:
                    labels = (("service", live.name), ("version", each["version"]), ("outcome", each["outcome"]))
                    self._total(live.slab, "graylb_mirrored_requests_total", labels, each["count"])
            if live.faults is not None:
                for each in live.fault_figures():
                    for kind in ("delay", "abort"):
                        labels = (("service", live.name), ("rule", each["rule"] or ""), ("kind", kind))
                        self._total(live.slab, "graylb_faults_injected_total", labels, each[kind])

    cdef _tell_attempts(self, ServiceLive live):
        """Of a service: attempts that were repeated, and requests that its limits turned away."""
        cdef Series of
        cdef int k
        if live.unaffordable:
            labels = (("service", live.name),)
            self._total(live.slab, "graylb_retry_budget_exhausted_total", labels, live.unaffordable)
        for of in live.series.values():
            for k in range(<int>CAUSES):
                if of.retried[k]:
                    labels = (("service", live.name), ("version", of.version), ("reason", CAUSE_NAMES[k]))
                    self._total(of.slab, "graylb_retries_total", labels, of.retried[k])
            for k in range(<int>HEDGED):
                if of.hedged[k]:
                    labels = (("service", live.name), ("version", of.version), ("outcome", HEDGE_NAMES[k]))
                    self._total(of.slab, "graylb_hedges_total", labels, of.hedged[k])
        if not live.limits.any and live.name not in self.limited: return
        if live.limits.any: self.limited.add(live.name)
        else: self.limited.discard(live.name)                # its gauges go to 0
        told = live.limits.figures()
        self._tell_limits(live.slab, live.name, "", told)
        self._tell_adaptive(live.slab, live.name, "", told)
        for of in live.series.values():
            told = limit_figures(&of.breaker)
            self._tell_limits(of.slab, live.name, of.version, told)
            if of.version: self._tell_adaptive(of.slab, live.name, of.version, told)

    cdef _tell_limits(self, Slab slab, str service, str version, dict told):
        for limit, n in [*told["limited"].items(), *((f"rate {name}", n) for name, n in told.get("rates", {}).items())]:
            self._total(slab, "graylb_limited_total", (("service", service), ("version", version), ("limit", limit)), n)

    cdef _tell_adaptive(self, Slab slab, str service, str version, dict told):
        name, labels = "graylb_adaptive_concurrency_limit", (("service", service), ("version", version))
        if "adaptive" in told: slab.gauge(name, labels)[0] = self.told[name, labels] = told["adaptive"]["limit"]
        elif self.told.pop((name, labels), None): slab.gauge(name, labels)[0] = 0

    cdef _total(self, Slab slab, str name, tuple labels, uint64_t value):
        """A counter that somebody else keeps, and that may begin anew."""
        cdef uint64_t last = self.told.get((name, labels), 0)
        if value == last: return
        slab.counter(name, labels)[0] += value - last if value > last else value
        self.told[name, labels] = value

    # ---- what happens to connections -------------------------------------------------------------------------------

    cdef void _event(self, Conn* c, uint32_t ev) noexcept:
        c.readable = 1
        if ev & (EPOLLRDHUP | EPOLLHUP | EPOLLERR): c.shut = 1
        if c.state == S_TUNNEL or c.state == S_SESSION:
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
        if c.fd < 0: self._stream_readable(c)
        elif c.state == S_TUNNEL: self._tunnel(c, c.x.upstream if c.side == CLIENT else c.x.client)
        elif c.state == S_SESSION: self._session_readable(c)
        elif c.side == CLIENT: self._client_readable(c)
        else: self._upstream_readable(c)

    cdef void _sent(self, Conn* c) noexcept:
        cdef Conn* peer
        if c.state == S_SESSION:
            Streams._sent(self, c)
            return
        if c.closing:
            self._linger(c)
            return
        if c.x == NULL:
            if c.side == CLIENT and c.fd >= 0: self._rest(c)
            return
        if c.half_close and not self._pass_end(c): return
        peer = c.x.upstream if c.side == CLIENT else c.x.client
        if peer == NULL: return
        if peer.fd < 0: self._used_up(peer)
        if peer.readable or peer.held_len: self._again(peer)

    cdef void _gone(self, Conn* c) noexcept:
        if c.session != NULL: Streams._gone(self, c)
        elif c.side != CLIENT: self._lost(c)

    cdef void _batch_done(self) noexcept:
        if self.now >= self.looked + LOOK_EVERY_MS and not self.closed: self._look()
        if self.warm and self.now >= self.warmed + WARM_EVERY_MS and not self.closed: self._warm_up()
        if self.draining: self._quiet()

    cdef _quiet(self):
        if self.clients == 0 and self.on_quiet is not None:
            told, self.on_quiet = self.on_quiet, None
            self.loop.call_soon(told)

    cdef void _secured(self, Conn* c) noexcept:
        if c.side == CLIENT:
            if c.tls.alpn == ALPN_H2 and not self._begin_session(c): self._kill(c)
            return
        (<Upstream>c.upstream).tls_failed = NULL
        if c.session != NULL and c.tls.alpn != ALPN_H2:     # it does not speak what it is to be spoken to in
            (<Upstream>c.upstream).tls_failed = b"no HTTP/2 by ALPN"
            self._kill(c)

    cdef void _insecure(self, Conn* c) noexcept:
        if c.side == UPSTREAM and not c.tls.unreached: (<Upstream>c.upstream).tls_failed = c.tls.reason
        if c.side == CLIENT or c.session != NULL: self._kill(c)
        else: self._upstream_failed(c, E_CONNECT_FAILED if c.tls.unreached else E_UPSTREAM_TLS)

    cdef inline Tls* _tls_of(self, Conn* c) noexcept:
        """Of a client, or of the session that its stream is on; NULL: its connection is plain."""
        return c.tls if c.fd >= 0 else c.session.conn.tls

    cdef void _progress(self, Conn* c) noexcept:
        """Bytes moved: the exchange is not idle."""
        cdef Exchange* x = c.x
        if x == NULL: return
        if x.upstream != NULL and not x.upstream.connecting and (x.upstream.state != U_HEAD or not x.request_done):
            self._set_deadline(x.upstream, self._idle_deadline(x))

    cdef void _broken(self, Conn* c) noexcept:
        """A send failed."""
        if c.side == CLIENT: self._abort(c)
        elif c.x == NULL: self._kill(c)
        elif c.fd < 0: self._upstream_failed(c, E_UPSTREAM_RESET)
        # an upstream may have answered before it stopped reading: its answer comes first
        elif c.x.response_begun or c.state == U_BODY: self._upstream_failed(c, E_UPSTREAM_RESET)
        else:
            c.out_len = 0
            c.readable = 1
            c.shut = 1
            c.x.request_done = 0
            self._again(c)

    # ---- time ------------------------------------------------------------------------------------------------------

    cdef void _expired(self, Conn* c) noexcept:
        cdef Exchange* x = c.x
        if c.limit and c.limit <= self.now:
            self._out_of_time(c)
            return
        c.deadline = 0
        if c.state == S_SESSION: self._session_expired(c)
        elif c.side == CLIENT:
            if c.state == S_HEAD and x == NULL:
                if c.held_len: self._fail(c, E_HEADER_TIMEOUT)
                else: self._kill(c)
            elif x != NULL and x.waiting and not c.shut: self._fail(c, E_OVERLOADED)
            elif c.state == S_BODY and x != NULL and not x.waiting and not x.response_begun and not x.request_done:
                if x.upstream != NULL and x.upstream.out_len:      # it is the upstream that does not read
                    self._set_deadline(c, self.now + self.state.body_ms)
                else: self._fail(c, E_BODY_TIMEOUT)
            elif c.state == S_WAIT and x != NULL and x.response_begun and not c.sink: self._place(c)
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
            self._go_on(c.x)
            return
        while not c.dead:
            if c.state == S_WAIT: return             # pipelined bytes wait in the kernel
            if c.state == S_HEAD and c.out_len: return
            if c.state == S_BODY and (c.x.upstream == NULL or c.x.upstream.out_len): return
            if moved >= self.slice:
                self._again(c)
                return
            if c.state == S_BODY and c.x.request.kind == BODY_LENGTH and not c.x.keeping and c.x.copy == NULL \
                    and self._can_splice(c, c.x.upstream, c.x.request.left):
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
                    if c.dead or c.tls != NULL or not c.readable: return
            else:
                # lingering: thrown away. Who goes on regardless behind a GOAWAY is not waiting for our last words.
                c.owed += have
                if (n == 0 and c.out_len == 0) or (c.session != NULL and c.owed > LINGER_BYTES): self._kill(c)
                if n <= 0 or not c.readable: return

    cdef bint _head_bytes(self, Conn* c, size_t have, ssize_t n) noexcept:
        """Bytes of a head are in the shared buffer. True: go on reading."""
        cdef char* p = self.buf
        cdef int r
        if n == 0 and c.out_len == 0 and (have == 0 or not find_blank_line(p, p + have)):
            self._kill(c)                            # the end between messages, or inside a head
            return False
        if not c.reused and have >= 3 and p[0] == 80 and p[1] == 82 and p[2] == 73 and self._may_be_h2(c):
            if memcmp(p, PRI, min(have, <size_t>PREFACE)) == 0: return self._preface(c, p, have)
        while have >= 2 and p[0] == 13 and p[1] == 10:     # RFC 9112 2.2: empty lines before a request are skipped
            p += 2
            have -= 2
        if have == 0: return n > 0 and c.readable
        reset_head(&self.head, self.state.max_headers)
        r = 0 if have == 1 and p[0] == 13 else scan_request(&self.head, p, p + have, self.state.max_headers)
        if r == 0: return self._head_incomplete(c, p, have)
        if not self.listening[c.listener].h1:
            # a request gets an answer that it can read; what is neither that nor a preface gets none (RFC 9113 section 3.4)
            if r > 0: self._fail(c, E_BAD_VERSION)
            else: self._kill(c)
            return False
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

    cdef bint _may_be_h2(self, Conn* c) noexcept:
        return self.h2 != NULL and self.listening[c.listener].h2

    cdef bint _preface(self, Conn* c, char* p, size_t have) noexcept:
        """A client that speaks HTTP/2 from its first byte on (RFC 9113 section 3.3)."""
        if have < PREFACE: return self._head_incomplete(c, p, have)
        if not self._begin_session(c):
            self._kill(c)
            return False
        if self._session_bytes(c, p, have) and c.readable: self._again(c)
        return False

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
        n = self._recv(c, c.held + c.held_len, room)
        if n <= 0:
            if n < 0 and (errno == EAGAIN or errno == EINTR): c.readable = errno == EINTR
            else: self._kill(c)                      # the end inside a head
            return False
        if <size_t>n < room and not c.shut and (c.tls == NULL or not c.tls.more): c.readable = 0
        c.held_len += n
        return c.held_len > self.state.head_bytes or find_blank_line(c.held + known, c.held + c.held_len)

    cdef void _request_head(self, Conn* c, char* p, size_t have) noexcept:
        """A whole, lawful head: decide and begin."""
        cdef Head* h = &self.head
        cdef Exchange* x = self._exchange()
        cdef TableState state = self.state
        cdef ServiceLive live
        cdef Tls* secure = self._tls_of(c)
        cdef Query q
        cdef int refused
        if x == NULL:
            self._kill(c)
            return
        self.requests += 1
        self.begun[0] += 1
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
        x.websocket = h.websocket and c.fd >= 0
        x.grpc = h.is_grpc == GRPC and c.fd < 0
        start_body(&x.request, BODY_CHUNKED if h.chunked else (BODY_LENGTH if h.content_length > 0 else BODY_NONE),
                   h.content_length)
        x.request_kind = x.request.kind
        x.request_done = x.request.kind == BODY_NONE
        if c.fd < 0:
            x.close_client = 0
            if not x.request_done: x.request.kind = BODY_CLOSE # as it comes: frames, not chunks; libnghttp2 counts them
        c.state = S_WAIT if x.request_done else S_BODY
        x.began_us = now_us(self)
        self._log_request(x, c, h)
        if (self.level == FULL or self.lag_us) and self._is_too_much(x.began_us):
            x.d.service = x.d.instance = -1
            self._refuse(c, p, have, E_SHEDDING)
            return
        if secure != NULL and secure.mixed and not self.secure.admits(secure, h.host, h.host_len):
            x.d.service = x.d.instance = x.d.route = -1          # client certificates asked for are not those of this host
            self._refuse(c, p, have, E_MISDIRECTED)
            return
        if x.grpc and self.listening[c.listener].health and h.path_len > HEALTH_LEN and memcmp(h.path, HEALTH, HEALTH_LEN) == 0:
            self._begin_health(c)
            return
        if state.marks is not None and not self.marker.take(c, h, state, self.listening[c.listener].role):
            x.d.service = x.d.instance = -1
            self._refuse(c, p, have, E_HEAD_TOO_LARGE)
            return
        q.head = h
        q.ip = c.peer.text
        q.ip_len = c.peer.text_len
        q.v4 = c.peer.v4
        q.listener = self.listening[c.listener].bit
        memcpy(q.address, c.peer.address, 16)
        if secure != NULL and secure.identity_len:
            # rules see it; it is gone again before anything is forwarded
            if add_certificate(h, secure.identity, secure.identity_len) < 0:
                x.d.service = x.d.instance = x.d.route = -1
                self._refuse(c, p, have, E_HEAD_TOO_LARGE)
                return
        decide(state.table, &q, &self.context, &state.live, &x.d)
        if secure != NULL and secure.identity_len: h.count -= 1
        if x.d.fell_back: self._count_fallback(x)
        if x.d.panic: (<ServiceLive>state.services[x.d.service]).panics[0] += 1
        if x.d.outcome == DECIDED: x.h2 = self._goes_by_h2(x, h)
        if x.d.outcome != DECIDED:
            self._undecided(c, p, have)
            return
        live = <ServiceLive>state.services[x.d.service]
        if state.marks is not None and not self.marker.give(x, h, state, live):
            self._refuse(c, p, have, E_HEAD_TOO_LARGE)
            return
        if live.faults is not None and self._injects(x, live):
            self._refuse(c, p, have, E_INJECTED)
            return
        if live.limits.any:
            refused = self._admit(x, self.context.values)
            if refused >= 0:
                self._refuse(c, p, have, refused)
                return
        if live.mirror is not None: self._mirrors(x, live.mirror)
        self._begin(c, p, have)

    cdef bint _goes_by_h2(self, Exchange* x, Head* h) noexcept:
        cdef Upstream up = <Upstream>(<TableState>x.state).upstreams[x.d.instance]
        return (up.protocol == HTTP2 or (up.protocol == AUTO and h.is_grpc == GRPC and not up.proxy)) and not h.websocket \
            and self.h2 != NULL

    cdef void _undecided(self, Conn* c, char* p, size_t have) noexcept:
        cdef Exchange* x = c.x
        if x.d.outcome == REDIRECT: self._refuse(c, p, have, -1)
        elif x.d.outcome == NO_ROUTE: self._refuse(c, p, have, E_NO_ROUTE)
        elif x.d.outcome == NO_INSTANCE: self._refuse(c, p, have, E_NO_INSTANCE)
        else: self._refuse(c, p, have, E_HEAD_TOO_LARGE)

    cdef void _refuse(self, Conn* c, char* p, size_t have, int code) noexcept:
        """An answer of ours to a head; -1: a redirect."""
        # a body that is wholly here needs no closing
        if c.fd >= 0 and (not c.x.request_done or <size_t>(self.head.end - p) < have): self._rest_of_request(c, p, have)
        if code < 0: self._redirect(c)
        else: self._fail(c, code)

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
        cdef bint close_after = c.fd >= 0 and (x.close_client or not x.request_done or self.draining)
        scheme = t._str(r.scheme) if r.parts & 1 else ("http" if self._tls_of(c) == NULL else "https")
        host = t._str(r.host) if r.parts & 2 else h.host[:h.host_len].decode("latin-1")
        path = t._str(r.to_path) if r.parts & 4 else h.path[:h.path_len].decode("latin-1")
        query = "?" + h.query[:h.query_len].decode("latin-1") if h.query != NULL else ""
        cdef bytes answer = (f"HTTP/1.1 {r.status} {REDIRECTS.get(r.status, 'Redirect')}\r\n"
                             f"location: {scheme}://{host}{path}{query}\r\ncontent-length: 0\r\n"
                             f"{'connection: close' + chr(13) + chr(10) if close_after else ''}\r\n").encode("latin-1", "replace")
        self.statuses[3] += 1
        x.status = r.status
        self._drop_exchange(x)
        memcpy(self.heads, PyBytes_AS_STRING(answer), PyBytes_GET_SIZE(answer))
        self._answer(c, PyBytes_GET_SIZE(answer), close_after)

    cdef _count_fallback(self, Exchange* x):
        cdef Table t = (<TableState>x.state).table
        cdef const Service* s = &t.services[x.d.service]
        key = t._str(s.name), t._version(s, x.d.wanted), self._got(t, &x.d)
        self.fallbacks[key] = self.fallbacks.get(key, 0) + 1
        (<Meter>(<TableState>x.state).meters[x.d.service]).count_fallback(t, &x.d)

    cdef str _got(self, Table t, Decision* d):
        return t._version(&t.services[d.service], t.instances[d.instance].version) if d.instance >= 0 else None

    cdef void _begin(self, Conn* c, char* p, size_t have) noexcept:
        """Rewrites the head, finds a connection and sends head and first body bytes in one go."""
        cdef Exchange* x = c.x
        cdef TableState state = <TableState>x.state
        cdef const Service* s = &state.table.services[x.d.service]
        cdef const Route* r = &state.table.routes[x.d.route]
        cdef ServiceLive live = <ServiceLive>state.services[x.d.service]
        cdef RetryPolicy* retries = policy_of(x)
        cdef Client told
        cdef Tls* secure = self._tls_of(c)
        cdef char* body = <char*>self.head.end
        cdef char* e
        cdef size_t size
        cdef Piece piece
        cdef int64_t us = take_timeout(&self.head) if x.grpc else -1
        told.address = c.peer.text
        told.address_len = c.peer.text_len
        told.scheme = b"https"
        told.scheme_len = 4 if secure == NULL else 5
        told.certificate_len = 0
        if secure != NULL:
            told.certificate = secure.told
            told.certificate_len = secure.told_len
        e = write_request(&self.head, self.heads, &state.policy, &told, x.request_kind,
                          NULL, r.path.n if r.has_rewrite else 0,
                          state.table.base + r.rewrite.off, r.rewrite.n if r.has_rewrite else 0)
        if x.traced or x.request_id_n: e = self.logs.lines(x, e)
        if us >= 0: e = self._limit(x, e, us)
        size = e - self.heads
        if x.copy != NULL: self._copy_head(x, size)
        x.connect_ms = <uint64_t>(s.connect_timeout * 1000)
        x.response_ms = <uint64_t>(s.response_timeout * 1000)
        x.idle_ms = <uint64_t>(s.idle_timeout * 1000)
        live.requests += 1
        x.try_ms = retries.try_ms
        x.keep_max = size + retries.buffer
        x.listed = x.safe if retries.idempotent else lists(retries, self.head.method, self.head.method_len)
        if live.request_ms: self._limit_whole(x, live.request_ms)
        # an instance can say that it has not looked at a stream, whatever the method
        if retries.hedge_us and x.listed and not x.websocket: x.hedging = MAY_HEDGE
        x.keeping = x.h2 or (retries.keeps and x.listed and self.head.content_length <= <int64_t>retries.buffer)
        if not self._take_body(c, body, have - (body - p), &piece): return
        c.deadline = 0
        # only what may be repeated after it was sent needs a copy; what could not be sent at all is still here
        if x.keeping or (x.request_done and (x.safe or x.listed)): self._save(x, self.heads, size, piece.data, piece.length)
        if x.detour != NULL:
            if self._keep_request(x, self.heads, size, piece.data, piece.length) < 0: self._abort(c)
            else: self._hold_back(x)
            return
        while True:
            if not self._acquire(x, x.attempts > 0):
                if c.x == x and self._keep_request(x, self.heads, size, piece.data, piece.length) < 0: self._abort(c)
                return
            if self._send_request(x, self.heads, size, piece.data, piece.length) >= 0: break
            # the kernel took nothing: a pooled connection was closed under us, and nobody has seen this request
            self._leave(x)
            if x.attempts >= MAX_ATTEMPTS:
                self._fail(c, E_UPSTREAM_RESET)
                return
            self.retries += 1
        self._await(x)

    cdef char* _limit(self, Exchange* x, char* e, int64_t us) noexcept:
        """A call says how long it may take: so long it has here, and what is left its instance is told. e: the head's end."""
        x.until_us = x.began_us + us
        x.client.limit = self.now + us // 1000 + 1
        if x.client.limit < x.client.slot_time: self._place(x.client)
        return put_timeout(e, x.until_us - gl_now_us())

    cdef void _limit_whole(self, Exchange* x, uint64_t ms) noexcept:
        """The time that its service gives a request as a whole, unless its caller gives it less."""
        cdef Conn* c = x.client
        if c.limit and c.limit <= self.now + ms: return
        x.whole_limit = 1
        c.limit = self.now + ms
        if c.limit < c.slot_time: self._place(c)

    cdef void _out_of_time(self, Conn* c) noexcept:
        """The time of a request as a whole, or of a try, is over."""
        cdef Exchange* x = c.x
        cdef int code
        c.limit = 0
        if x == NULL: return
        if c.side != CLIENT:
            self._upstream_failed(c, E_TRY_TIMEOUT)
            return
        code = E_REQUEST_TIMEOUT if x.whole_limit else E_DEADLINE
        if not x.response_begun: self._fail(c, code)
        else:
            self.errors[code] += 1
            c.code = H2_CANCEL
            self._abort(c)

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
        if x.copy != NULL: self._copy_body(x, piece.data, piece.length)
        if not x.h2: _encode(x.request_kind, piece)
        return True

    cdef bint _body_bytes(self, Conn* c, size_t have, ssize_t n) noexcept:
        """Bytes of a request body are in the shared buffer. True: go on reading."""
        cdef Exchange* x = c.x
        cdef Piece piece
        if have == 0:
            if n == 0: self._abort(c)                # gone in the middle of its request
            return False
        if not self._take_body(c, self.buf, have, &piece): return False
        if piece.length and (self._keep_on(x, piece.data, piece.length) < 0
                             or self._send(x.upstream, piece.data, piece.length) < 0):
            self._broken(x.upstream)
            return False
        self._await(x)
        return c.state == S_BODY and c.readable

    # ---- the upstream side -----------------------------------------------------------------------------------------

    cdef void _upstream_readable(self, Conn* u) noexcept:
        cdef size_t have, moved = 0
        cdef ssize_t n
        cdef Exchange* x
        while not u.dead:
            x = u.x
            if x == NULL:
                if u.tls != NULL and self.secure.quiet(u.tls): u.readable = 0    # a session ticket, say
                else: self._kill(u)                  # closed while idle, or bytes nobody asked for: never reuse
                return
            if u.connecting:
                if u.shut: self._connected(u)
                return
            if x.client.out_len: return              # the client is slow: bytes wait in the kernel
            if moved >= self.slice:
                self._again(u)
                return
            if u.state == U_BODY and x.response.kind == BODY_LENGTH and x.copy == NULL and self._can_splice(u, x.client, x.response.left):
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
            self._closed_answer(x)
            return
        u.held_len = have
        self._upstream_failed(u, E_UPSTREAM_RESET)

    cdef void _closed_answer(self, Exchange* x) noexcept:
        """The end of a body that only its end delimits."""
        x.response.kind = BODY_NONE
        if x.response_kind == BODY_CHUNKED and self._send(x.client, b"0\r\n\r\n", 5) < 0: self._abort(x.client)
        else: self._finish(x, False)

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
        self._saw_head(x, u)
        if h.status == 101:
            self._open_tunnel(x, <char*>h.end, e - <char*>h.end)
            return False
        return self._final(u, <char*>h.end, e - <char*>h.end)

    cdef bint _interim(self, Exchange* x) noexcept:
        """1xx: passed on to clients that can read it (RFC 9110 15.2). False: the client is gone."""
        cdef char* e
        x.heard = 1                                  # the instance has this request
        if x.minor == 0: return True
        _drop_length(&self.head)
        e = write_response(&self.head, self.heads, BODY_NONE, 0, False, NULL, 0)
        if x.client.fd < 0:
            if x.client.stream and self.h2.inform(x.client, self.heads, e - self.heads) == 0: return True
        elif self._send(x.client, self.heads, e - self.heads) == 0: return True
        self._abort(x.client)
        return False

    cdef void _open_tunnel(self, Exchange* x, char* rest, size_t n) noexcept:
        """The upstream has switched to WebSocket."""
        cdef TableState state = <TableState>x.state
        cdef char extra[2048]
        cdef size_t extra_len = 0
        cdef char* e
        if state.decision_headers: extra_len = self._tell_decision(x, extra, sizeof(extra))
        _drop_length(&self.head)
        x.client.limit = x.upstream.limit = 0
        e = write_response(&self.head, self.heads, BODY_NONE, 0, state.policy.via, extra, extra_len)
        self._begin_tunnel(x, e - self.heads, rest, n)

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
        cdef uint8_t told
        if policy_of(x).answers and self._answer_retried(x, u, n): return False
        if x.hedging:
            x = self._settle(u)
            c = x.client
        u.limit = 0
        told = self._frame_response(x, h)
        u.no_reuse = h.close or (h.minor == 0 and not h.keep_alive) or x.response.kind == BODY_CLOSE
        if c.fd >= 0 and (not x.request_done or self.draining): x.close_client = 1
        if state.decision_headers: extra_len = self._tell_decision(x, extra, sizeof(extra))
        connection = 1 if x.close_client else (2 if x.minor == 0 else 0)
        e = write_response(h, self.heads, told, connection, state.policy.via, extra, extra_len)
        x.response_begun = 1
        x.keeping = 0
        u.state = U_BODY
        x.status = h.status
        x.head_us = now_us(self)
        (<Upstream>u.upstream).large = x.response.kind == BODY_LENGTH and x.response.left >= SPLICE_FROM
        if not c.sink: self.statuses[h.status // 100] += 1
        c.deadline = 0
        self._set_deadline(u, self.now + x.idle_ms)
        if decode_body(&x.response, body, n, &piece) < 0:
            x.response_begun = 0
            self._upstream_failed(u, E_UPSTREAM_INVALID)
            return False
        x.bytes_out += piece.length
        if piece.used < n: u.no_reuse = 1   # bytes behind the answer: this connection is never used again
        if piece.done: x.response.kind = BODY_NONE
        if x.copy != NULL: self._note_answer(x, piece.data, piece.length)
        _encode(x.response_kind, &piece)
        if (self._send_two(c, self.heads, e - self.heads, piece.data, piece.length) if c.fd >= 0
                else self._respond(c, e - self.heads, piece.data, piece.length, piece.done)) < 0:
            self._abort(c)
            return False
        if piece.done:
            self._finish(x, True)
            return False
        return True

    cdef int _respond(self, Conn* c, size_t head, char* body, size_t n, bint done) noexcept:
        """The head in `heads` and first body bytes to a client's stream."""
        if c.sink: return 0
        c.eof = done
        if c.stream == 0 or (n and self._keep(c, body, n) < 0): return -1
        return self.h2.respond(c, self.heads, head, done and n == 0)

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
        if x.upstream.fd < 0:                                  # as it comes: frames, not chunks
            x.response.kind = BODY_NONE if x.upstream.ended else BODY_CLOSE
        if x.client.fd < 0:
            x.response_kind = BODY_CLOSE                       # likewise: nothing is put around what goes out
            return BODY_LENGTH if h.content_length >= 0 else BODY_CLOSE
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
        if x.copy != NULL: self._note_bytes(x, piece.data, piece.length)
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
        cdef bint whole = x.request_done
        cdef bint close_client = x.close_client or not whole
        cdef bint reuse = open_ and whole and self._is_reusable(u)
        if x.copy != NULL: self._note_end(x)
        self._drop_exchange(x)
        if reuse: self._pool(u)
        elif u.fd >= 0: self._kill(u)
        else: self._end_stream(u, whole)
        if c.sink:
            self._kill(c)
            return
        if c.fd < 0:
            if not c.eof:
                c.eof = 1
                if c.stream: self.h2.more(c)
            self._see_out(c)
            return
        if close_client or self.draining: self._close_client(c, not whole or c.readable or c.held_len > 0)
        else: self._next_request(c)

    # ---- streams ---------------------------------------------------------------------------------------------------

    cdef void _stream_request(self, Session* s, int32_t stream, const KnownHead* head, bint end) noexcept:
        """A client's new stream: its head goes the way of every head."""
        cdef Conn* c = self._new_stream(s, CLIENT) if s.full != 2 and not s.conn.dead else NULL
        cdef int r
        if c == NULL:
            self.h2.refuse(s, stream, H2_REFUSED_STREAM)
            return
        c.peer = s.conn.peer
        c.listener = s.conn.listener
        self.h2.bind(s, stream, c)
        r = read_request(&self.head, head, self.state.max_headers)
        if r > 0 and self.head.target_len > self.state.uri_bytes:
            self.head.error = E_URI_TOO_LONG
            r = -1
        if r <= 0:
            self._fail(c, self.head.error if r < 0 else E_BAD_REQUEST)
            return
        self._request_head(c, head.text, head.n)

    cdef void _begin_health(self, Conn* c) noexcept:
        """A call that graylb answers itself, once its message is here: a stream without an instance keeps what comes."""
        cdef Exchange* x = c.x
        cdef Head* h = &self.head
        x.health = 1 if h.path_len == HEALTH_LEN + 5 and memcmp(h.path + HEALTH_LEN, b"Check", 5) == 0 else 2
        x.d.service = x.d.instance = x.d.rule = x.d.route = -1
        if x.request_done: self._answer_health(c)
        else: self._set_deadline(c, self.now + self.state.body_ms)

    cdef void _answer_health(self, Conn* c) noexcept:
        cdef Exchange* x = c.x
        cdef bytes text, trailers, body = c.held[:c.held_len] if c.held_len else b""
        text, trailers = health_reply(x.health == 1, body, self._serving)
        c.held_len = 0
        self.statuses[2] += 1
        x.status = 200
        x.grpc_status = told(status_in(PyBytes_AS_STRING(trailers or text), PyBytes_GET_SIZE(trailers or text)))
        self._drop_exchange(x)
        if trailers: self._set_trailers(c, PyBytes_AS_STRING(trailers), PyBytes_GET_SIZE(trailers))
        memcpy(self.heads, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        self._answer(c, PyBytes_GET_SIZE(text), False)

    def _serving(self, str service):
        """Whether this proxy (""), or a service by its name, takes calls; None: there is no such service."""
        cdef Table t = self.state.table
        cdef uint32_t i
        if service == "": return not self.draining
        if service not in self.state.service_settings: return None
        for i in range(t.header.n_instances):
            if t.instances[i].weight and t._str(t.services[t.instances[i].service].name) == service: return True
        return False

    cdef void _stream_response(self, Conn* u, const KnownHead* head, bint end) noexcept:
        """A head of an instance's answer."""
        cdef Exchange* x = u.x
        if x == NULL: return
        if read_response(&self.head, head, MAX_HEADERS) <= 0 or self.head.status == 101:
            self._upstream_failed(u, E_UPSTREAM_INVALID)
            return
        if self.head.status < 200:
            self._interim(x)
            return
        u.ended = end                                        # gRPC tells a bare status by a head that ends its stream
        self._saw_head(x, u)
        if end and x.grpc:
            if self._asks_another(x, u): return
            x.grpc_status = told(read_status(&self.head))
        self._final(u, self.piece + HEADROOM, 0)

    cdef void _stream_data(self, Conn* c, char* p, size_t n) noexcept:
        """Body bytes. The window of their stream opens again when the other side has taken them."""
        cdef Exchange* x = c.x
        if x == NULL or (c.side == CLIENT and x.request_done):
            self._used_up(c)
            return
        if c.side == CLIENT:
            if x.waiting or x.upstream == NULL or c.held_len:
                if self._hold_more(c, p, n) < 0: self._abort(c)
            elif self._stream_body(c, p, n) and c.x == x and x.upstream != NULL and x.upstream.out_len == 0: self._used_up(c)
            return
        if self._response_piece(c, p, n) and c.x == x and x.client.out_len == 0: self._used_up(c)

    cdef void _stream_end(self, Conn* c, char* trailers, size_t n) noexcept:
        """The message is complete. Trailers go on to streams; HTTP/1 does without them."""
        cdef Exchange* x = c.x
        if x == NULL: return
        if c.side == CLIENT:
            if x.request_done: return
            c.ended = 1
            if x.health:
                self._answer_health(c)
                return
            if n and x.h2: self._keep_trailers(x, trailers, n)
            if x.waiting or x.upstream == NULL or c.held_len: c.readable = 1
            else: self._end_request(x)
            return
        if n and x.copy != NULL: self._note_trailers(x, trailers, n)
        if x.grpc:
            x.grpc_status = told(status_in(trailers, n))
            self._saw_end(x, c, trailers, n)
        if n and x.client.fd < 0: self._set_trailers(x.client, trailers, n)
        if x.response.kind == BODY_CLOSE: self._closed_answer(x)
        else: self._upstream_failed(c, E_UPSTREAM_INVALID)   # shorter than its Content-Length

    cdef void _stream_closed(self, Conn* c, uint32_t error, bint seen) noexcept:
        """Reset, or its connection is gone; c is not bound any more."""
        cdef Exchange* x = c.x
        if x == NULL: return
        if c.side == CLIENT:
            if x.upstream != NULL: x.upstream.code = error
            self._abort(c)
            return
        x.client.code = error
        if not c.session.conn.dead: c.reused = 0             # it was this request that was given up, and no connection
        if c.connecting: self._upstream_failed(c, E_CONNECT_TIMEOUT if c.session.conn.timed_out else E_CONNECT_FAILED)
        elif not seen and not x.response_begun and self._once_more(x, c, REFUSED, 0, 0): return
        elif x.grpc and x.response_begun and c.session.conn.dead:
            self._saw(<Upstream>c.upstream, NO_ANSWER + E_UPSTREAM_RESET, 0)
            self._break_off(x, self.grpc_ends[E_UPSTREAM_RESET])
        else: self._upstream_failed(c, E_UPSTREAM_RESET)

    cdef void _break_off(self, Exchange* x, bytes trailers) noexcept:
        """Ends a gRPC answer whose instance is lost: by a status, which tells a client more than a reset."""
        cdef Conn* c = x.client
        cdef Conn* u = x.upstream
        self.errors[E_UPSTREAM_RESET] += 1
        x.failed = E_UPSTREAM_RESET + 1
        x.grpc_status = told(status_in(PyBytes_AS_STRING(trailers), PyBytes_GET_SIZE(trailers)))
        self._count_error(x, E_UPSTREAM_RESET)
        self._set_trailers(c, PyBytes_AS_STRING(trailers), PyBytes_GET_SIZE(trailers))
        self._drop_exchange(x)
        self._kill(u)
        c.eof = 1
        if c.stream: self.h2.more(c)
        self._see_out(c)

    cdef void _stream_readable(self, Conn* c) noexcept:
        """A stream's turn: what it has waited with goes on."""
        cdef Exchange* x = c.x
        cdef char* p
        cdef size_t n, k
        if x == NULL or c.side != CLIENT: return
        if x.waiting:
            self._go_on(x)
            return
        if x.upstream == NULL or x.request_done: return
        p = c.held
        n = c.held_len
        c.held = NULL
        c.held_len = c.held_cap = 0
        c.readable = 0
        if n == 0 or self._stream_body(c, p, n):
            if c.x == x and x.upstream != NULL:
                if x.upstream.out_len == 0: self._used_up(c)
                if c.ended and not x.request_done: self._end_request(x)
        free(p)

    cdef bint _stream_body(self, Conn* c, char* p, size_t n) noexcept:
        """Bytes of a request body to the upstream. False: the exchange has failed, and that was dealt with."""
        cdef Exchange* x = c.x
        cdef Piece piece
        cdef size_t k
        while n:
            k = n if n < PIECE else PIECE
            # encoding writes around a piece, and these bytes have neighbours: it has its own room
            piece.data = p
            if not x.h2:
                piece.data = self.piece + HEADROOM
                memcpy(piece.data, p, k)
            piece.length = k
            piece.done = False
            x.bytes_in += k
            if x.copy != NULL: self._copy_body(x, piece.data, k)
            if not x.h2: _encode(x.request_kind, &piece)
            if self._keep_on(x, piece.data, piece.length) < 0 or self._send(x.upstream, piece.data, piece.length) < 0:
                self._broken(x.upstream)
                return False
            p += k
            n -= k
        self._await(x)
        return True

    cdef void _end_request(self, Exchange* x) noexcept:
        """A stream's request is complete."""
        cdef Conn* c = x.client
        x.request_done = 1
        x.request.kind = BODY_NONE
        c.state = S_WAIT
        c.deadline = 0
        if x.copy != NULL: self._send_copy(x)
        if not x.h2 and x.request_kind == BODY_CHUNKED \
                and (self._keep_on(x, b"0\r\n\r\n", 5) < 0 or self._send(x.upstream, b"0\r\n\r\n", 5) < 0): self._broken(x.upstream)
        else: self._await(x)

    cdef void _keep_trailers(self, Exchange* x, char* trailers, size_t n) noexcept:
        """Trailers of a request; one that has them is not repeated."""
        x.keeping = 0
        x.saved_len = 0
        if x.upstream != NULL: self._set_trailers(x.upstream, trailers, n)

    cdef bint _response_piece(self, Conn* u, char* p, size_t n) noexcept:
        """Bytes of an answer's body to the client. False: the exchange has failed or is over."""
        cdef Exchange* x = u.x
        cdef size_t k
        if x.client.fd < 0 or x.response_kind != BODY_CHUNKED: return self._response_bytes(u, p, n)
        while n:
            k = n if n < PIECE else PIECE
            memcpy(self.piece + HEADROOM, p, k)
            if not self._response_bytes(u, self.piece + HEADROOM, k): return False
            p += k
            n -= k
        return True

    cdef void _used_up(self, Conn* c) noexcept:
        """What a stream has given was taken: its window opens."""
        if c.owed and c.stream: self.h2.consume(c, c.owed)

    cdef void _end_stream(self, Conn* u, bint whole) noexcept:
        """An instance's answer is complete: its stream is over, and reset if the request is not."""
        if whole and u.out_len == 0 and u.stream:
            self.h2.bind(u.session, u.stream, NULL)
        self._kill(u)

    cdef int _hold_more(self, Conn* c, const char* p, size_t n) noexcept:
        """Behind what is held; a stream's window bounds it."""
        cdef char* q
        c.readable = 1
        if c.held_len + n > c.held_cap:
            q = <char*>realloc(c.held, 2 * (c.held_len + n))
            if q == NULL: return -1
            c.held = q
            c.held_cap = 2 * (c.held_len + n)
        memcpy(c.held + c.held_len, p, n)
        c.held_len += n
        return 0


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
