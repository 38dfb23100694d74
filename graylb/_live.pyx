"""What a worker keeps across tables: instances with their pools and counters, draws; and a table bound to them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.ref cimport PyObject
from graylb._faults cimport Faults
from graylb._mirrors cimport Mirror
from graylb._fast cimport EJECTED, FULL, ILL, NONE32, WARMING, Instance, Rule, Service, Str, Table, Target
from graylb._http1 cimport MAX_HEADERS
from graylb._grpc cimport STATUS_NONE, final_status, is_failure
from graylb._limits cimport Breaker, Limits, share
from graylb._mark cimport Marks, ServiceMark
from graylb._meter cimport Meter, Series
from graylb._retries cimport set_policy
from graylb._slab cimport COUNTER, Slab

from graylb._grpc import CODE_NAMES
from graylb._meter import CODES

import socket
import time

cdef extern from * nogil:
    """
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <stddef.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/un.h>
    static uint32_t gl_unix(struct sockaddr_storage *s, const char *path, size_t n) {
      struct sockaddr_un *a = (struct sockaddr_un *)s;
      memset(s, 0, sizeof *s);
      if (n >= sizeof a->sun_path) return 0;
      a->sun_family = AF_UNIX; memcpy(a->sun_path, path, n);
      return offsetof(struct sockaddr_un, sun_path) + n + 1; }
    static uint32_t gl_sockaddr(struct sockaddr_storage *s, const char *ip, int port) {
      struct sockaddr_in *a = (struct sockaddr_in *)s; struct sockaddr_in6 *b = (struct sockaddr_in6 *)s;
      memset(s, 0, sizeof *s);
      if (inet_pton(AF_INET, ip, &a->sin_addr) == 1) { a->sin_family = AF_INET; a->sin_port = htons(port); return sizeof *a; }
      if (inet_pton(AF_INET6, ip, &b->sin6_addr) == 1) { b->sin6_family = AF_INET6; b->sin6_port = htons(port); return sizeof *b; }
      return 0; }
    """
    uint32_t gl_sockaddr(sockaddr_storage*, const char*, int)
    uint32_t gl_unix(sockaddr_storage*, const char*, size_t)


PROTOCOLS = ("auto", "http1", "h2")     # see Protocol


cdef double KEPT = 600                  # seconds
cdef enum: DIGEST = 32                  # bytes of a service's


cdef class Counter:
    """One number that outlives tables, by name."""

    def __cinit__(self, uint64_t value=0):
        self.value = value


cdef void record(Exchange* x, uint64_t now_us, Slab own) noexcept:
    """A client's request that is over. own: the worker's, for those that no service has. Called once for each."""
    cdef TableState state = <TableState>x.state
    cdef Series s
    cdef uint64_t* cells
    cdef int status = x.status // 100 if x.status < 600 else 5
    cdef int grpc = STATUS_NONE
    if x.d.route >= 0:
        cells = state.routes[x.d.route]
        if cells == NULL: cells = state._route(x.d.route, own)
        cells[status] += 1
    if x.d.service < 0: return
    (<Meter>state.meters[x.d.service]).count(state.table, &x.d, status)
    if x.grpc and (x.status == 200 or x.status == 0):
        grpc = final_status(x.grpc_status, x.status == 0 or x.cut == 1, x.cut == 2)
        (<Meter>state.meters[x.d.service]).count_call(state.table, &x.d, grpc)
        if x.d.route >= 0: state._calls(x.d.route)[grpc] += 1
    if x.d.instance < 0: return
    s = (<Upstream>state.upstreams[x.d.instance]).series
    s.bytes_in[0] += x.bytes_in
    s.bytes_out[0] += x.bytes_out
    if x.response_begun:
        s.statuses[status] += 1
        if grpc > 0 and is_failure(grpc): s.failed_calls += 1
    if x.status == 0 or x.status == 101: return      # how long a tunnel was open is no latency
    s.took(now_us - x.began_us)
    if x.traced & T_SAMPLED: s.sampled(now_us - x.began_us, now_us, x.trace_id, x.span_id)
    if x.head_us: s.began_to_answer(x.head_us - x.began_us)


cdef class Upstream:
    """One instance of one service, while a table names it or a connection to it lives."""

    def __init__(self, str service, str address, str version, Series series, Limits limits=None):
        self.limits = limits if limits is not None else Limits()
        self.whole = &self.limits.breaker
        self.own = &series.breaker if limits is not None else self.whole
        self.service = service
        self.address = address
        self.version = version
        self.series = series
        self.warmth = FULL
        series.open()
        if address.startswith("unix:"):
            raw = address[5:].encode()
            self.sa_len = gl_unix(&self.sa, PyBytes_AS_STRING(raw), len(raw))
        else: self.resolve(address.rpartition(":")[0].strip("[]"))

    def resolve(self, str ip):
        """Takes an IP address for this instance's host; a host name leaves it unresolved."""
        raw = ip.encode()
        self.sa_len = gl_sockaddr(&self.sa, PyBytes_AS_STRING(raw), int(self.address.rpartition(":")[2]))

    def configure(self, dict connections, int workers):
        """Takes the service's settings, as `snapshot.Connections` has them.

        connections["bounds"]: `snapshot_limits.Bounds` of each instance, for so many workers.
        """
        cdef uint32_t most = share(connections["bounds"]["connections"], workers)
        self.max = min(connections["max"] or most, most or connections["max"])
        self.max_requests = share(connections["bounds"]["requests"], workers)
        self.max_pending = share(connections["bounds"]["pending"], workers)
        self.queue = connections["queue"]
        self.queue_ms = round(connections["queue_timeout"] * 1000)
        self.proxy = ("off", "v1", "v2").index(connections["proxy_protocol"])
        self.warm = 0 if self.proxy else connections["warm"]
        self.protocol = PROTOCOLS.index(connections.get("protocol", "auto"))
        self.streams = connections.get("streams", 100)
        self.max_idle = connections["idle"]
        self.idle_ms = round(connections["idle_timeout"] * 1000)

    def figures(self):
        """Counters as a dict."""
        return {"service": self.service, "address": self.address, "version": self.version, "requests": self.requests,
                "failures": self.failures, "connects": self.connects, "in_flight": self.in_flight, "idle": self.n_idle,
                **({"copies": self.shadow.in_flight, "copies_idle": self.shadow.n_idle} if self.shadow is not None else {}),
                "open": self.n_open, "waiting": self.n_waiting + self.n_called, "down": bool(self.down & ILL),
                "ejected": bool(self.down & EJECTED), "warming": bool(self.down & WARMING),
                **({"tls_failed": self.tls_failed.decode() if self.tls_failed != NULL else None} if self.origin is not None else {})}


cdef class Retries:
    """What a service says of retries. A change of it is another object: requests under way keep the one of their table."""


cdef class ServiceLive:
    """One service, while tables name it: what is to be known of it from one request to the next."""

    def __init__(self, str name, int worker, Slab slab):
        self.name = name
        self.worker = worker
        self.slab = slab
        self.limits = Limits()
        self.panics = slab.counter("graylb_panic_picks_total", (("service", name),))
        self.series, self.left = {}, {}

    cdef bind(self, Table table, int number):
        """A new table has it, changed or for the first time. Versions that it names no more have their figures for a while."""
        names = table.version_names(number)
        now = time.monotonic()
        for version in ("", *names):
            self.left.pop(version, None)
            if version not in self.series: self.series[version] = Series(self.name, version, self.slab.part())
        for version in self.series.keys() - {"", *names}:
            if self.left.setdefault(version, now) + KEPT < now: del self.series[version], self.left[version]
        self.meter = Meter(self.name, [self.series[version] for version in (*names, "")])

    cpdef configure(self, dict settings):
        """Takes what it says (`Table.settings`), whenever that is new."""
        self.settings = settings
        self.mark = ServiceMark(settings["marks"]) if settings.get("marks") is not None else None
        self.request_ms = round(settings.get("request_timeout", 0) * 1000)
        self.retries = Retries()
        set_policy(&self.retries.policy, &self.budget, settings.get("retries") or {})
        if "faults" not in settings: self.faults = None
        else:
            if self.faults is None: self.faults = Faults(self.worker * 7919)
            self.faults.configure(self.name, settings["faults"])
        if "mirror" not in settings: self.mirror = None
        else:
            if self.mirror is None: self.mirror = Mirror(self.name, self.worker * 7919)
            self.mirror.configure(settings["mirror"])

    def fault_figures(self):
        """What was injected, as a list of dicts."""
        return self.faults.figures() if self.faults is not None else []

    def figures(self):
        """Counters as a dict."""
        return {"service": self.name, "requests": self.requests, "retry_budget_exhausted": self.unaffordable,
                "retries_left_version": self.left_version}


cdef class TableState:
    """A table bound to the live state of this worker; requests hold it from their head to their end.

    services, upstreams: one for each service and instance of the table, in its order. counters: those of its splits, by name.
    marks: None where there are none.
    """

    def __cinit__(self, Table table, list services, list upstreams, dict counters, uint64_t pick, Marks marks=None):
        cdef Upstream u
        cdef ServiceLive s
        cdef Counter n
        cdef int i
        cdef int instances = table.header.n_instances
        self.table = table
        self.boxes = upstreams
        self.service_boxes = services
        self.counters = []
        self.live.draws = <uint64_t**>calloc(table.header.n_splits + 1, sizeof(void*))
        self.live.in_flight = <uint32_t**>calloc(instances + 1, sizeof(void*))
        self.live.down = <uint8_t**>calloc(instances + 1, sizeof(void*))
        self.live.warmth = <uint32_t**>calloc(instances + 1, sizeof(void*))
        self.upstreams = <PyObject**>calloc(instances + 1, sizeof(void*))
        self.services = <PyObject**>calloc(len(services) + 1, sizeof(void*))
        self.meters = <PyObject**>calloc(len(services) + 1, sizeof(void*))
        self.retries = <PyObject**>calloc(len(services) + 1, sizeof(void*))
        self.routes = <uint64_t**>calloc(table.header.n_routes + 1, sizeof(void*))
        if self.live.draws == NULL or self.live.in_flight == NULL or self.live.down == NULL or self.upstreams == NULL \
                or self.live.warmth == NULL \
                or self.services == NULL or self.meters == NULL or self.retries == NULL or self.routes == NULL: raise MemoryError
        self.live.pick = pick
        if len(upstreams) != instances: raise ValueError(f"{len(upstreams)} upstreams for {instances} instances")
        self.meter_boxes, self.retry_boxes = [], []
        for i, s in enumerate(services):
            self.services[i] = <PyObject*>s
            self.meter_boxes.append(s.meter)
            self.meters[i] = <PyObject*>s.meter
            self.retry_boxes.append(s.retries)
            self.retries[i] = <PyObject*>s.retries
        for i, u in enumerate(upstreams):
            self.live.in_flight[i] = &u.in_flight
            self.live.down[i] = &u.down
            self.live.warmth[i] = &u.warmth
            self.live.n_down += u.down != 0
            self.upstreams[i] = <PyObject*>u
        for i, name in enumerate(table.meta["splits"]):
            n = counters[name]
            self.counters.append(n)
            self.live.draws[i] = &n.value
        self.service_settings = {(<ServiceLive>each).name: (<ServiceLive>each).settings for each in services}
        self._settings(table.meta)
        self.marks = marks

    def _settings(self, dict meta):
        modes = {"off": 0, "append": 1, "replace": 2}
        limits = meta["limits"]
        self.policy.x_forwarded = modes[meta["forwarding"]["x_forwarded"]]
        self.policy.forwarded = modes[meta["forwarding"]["forwarded"]]
        self.policy.via = meta["forwarding"]["via"]
        self.decision_headers = meta["decision_headers"]
        self.max_headers = min(limits["headers"], MAX_HEADERS)
        self.head_bytes = min(limits["head_bytes"], MAX_HEAD)
        self.uri_bytes = limits["uri_bytes"]
        self.header_ms = round(limits["header_timeout"] * 1000)
        self.client_idle_ms = round(limits["idle_timeout"] * 1000)
        self.body_ms = round(limits["body_timeout"] * 1000)
        self.grace_ms = round(limits["half_close_grace"] * 1000)
        self.client_connections = limits["client_connections"]

    cdef uint64_t* _route(self, int route, Slab own) noexcept:
        """Where requests by this route are counted; it is of the service's figures, or of the worker's where it redirects."""
        cdef uint32_t service = self.table.routes[route].service
        cdef ServiceLive live = <ServiceLive>self.services[service] if service != NONE32 else None
        labels = (("service", live.name if live is not None else ""), ("route", self.table._str(self.table.routes[route].name)))
        try:
            self.routes[route] = (live.slab if live is not None else own).several(COUNTER, "graylb_route_requests_total", labels, "code", CODES)
        except MemoryError:
            return own.memory.scrap
        return self.routes[route]

    cdef uint64_t* _calls(self, int route) noexcept:
        """Where gRPC calls by this route, which has a service, are counted."""
        cdef ServiceLive live = <ServiceLive>self.services[self.table.routes[route].service]
        if self.calls == NULL: self.calls = <uint64_t**>calloc(self.table.header.n_routes + 1, sizeof(void*))
        if self.calls == NULL: return live.slab.memory.scrap
        if self.calls[route] != NULL: return self.calls[route]
        labels = (("service", live.name), ("route", self.table._str(self.table.routes[route].name)))
        try:
            self.calls[route] = live.slab.several(COUNTER, "graylb_route_grpc_requests_total", labels, "grpc_code", CODE_NAMES)
        except MemoryError:
            return live.slab.memory.scrap
        return self.calls[route]

    def count_down(self):
        """To be called when marks of instances have changed."""
        cdef Upstream u
        self.live.n_down = 0
        for u in self.boxes: self.live.n_down += u.down != 0

    def __dealloc__(self):
        free(self.live.draws)
        free(self.live.in_flight)
        free(self.live.down)
        free(self.live.warmth)
        free(self.upstreams)
        free(self.services)
        free(self.meters)
        free(self.retries)
        free(self.routes)
        free(self.calls)


cdef bint _same(Table a, int i, Table b, int k) noexcept:
    """Whether instances of two tables, of one service, are one and the same to this worker: only a weight may differ."""
    cdef const Instance* x = &a.instances[i]
    cdef const Instance* y = &b.instances[k]
    cdef const Str* v = <const Str*>(a.base + a.services[x.service].versions) + x.version
    cdef const Str* w = <const Str*>(b.base + b.services[y.service].versions) + y.version
    return (x.weight == 0) == (y.weight == 0) and _same_text(a, x.address, b, y.address) and _same_text(a, v[0], b, w[0])


def carried(Table table, int first, int n, Table former, int at, list members, list left):
    """The upstreams of a service's n instances from `first` on, as far as those of the former table, from `at` on, are the
    same; None for the others. left: gets those of `members` that were not carried over.

    Where few come, go or change it costs one comparison each; an instance that is not recognised is only looked up anew.
    """
    cdef int i = 0, k = 0, m = len(members)
    cdef list found = []
    while i < n:
        if k < m and _same(table, first + i, former, at + k):
            found.append(members[k])
            i, k = i + 1, k + 1
        elif k + 1 < m and _same(table, first + i, former, at + k + 1):  # one has gone
            left.append(members[k])
            k += 1
        else:
            found.append(None)
            i += 1
            if k < m and not (i < n and _same(table, first + i, former, at + k)):  # else one has come
                left.append(members[k])
                k += 1
    left += members[k:]
    return found


cdef inline bint _same_text(Table a, Str x, Table b, Str y) noexcept:
    return x.n == y.n and memcmp(a.base + x.off, b.base + y.off, x.n) == 0


cdef bint same_service(Table a, int i, Table b, int k) noexcept:
    """Whether services of two tables are one and the same in all that they say."""
    return memcmp(a.base + a.services[i].digest, b.base + b.services[k].digest, DIGEST) == 0


cdef bint same_settings(Table a, int i, Table b, int k) noexcept:
    """Whether services of two tables say the same of connections and tunnels, the numbers of rules, fields and targets in it
    included."""
    return _same_text(a, a.services[i].settings, b, b.services[k].settings)


cdef bint same_names(Table a, int i, Table b, int k) noexcept:
    """Whether services of two tables have the same versions and rules, by number, and a split both or neither: what their
    figures go by."""
    cdef const Service* x = &a.services[i]
    cdef const Service* y = &b.services[k]
    cdef const Str* v = <const Str*>(a.base + x.versions)
    cdef const Str* w = <const Str*>(b.base + y.versions)
    cdef const Rule* r = <const Rule*>(a.base + x.rules)
    cdef const Rule* s = <const Rule*>(b.base + y.rules)
    cdef uint32_t n
    if x.n_versions != y.n_versions or x.n_rules != y.n_rules or _splits(a, x) != _splits(b, y): return False
    for n in range(x.n_versions):
        if not _same_text(a, v[n], b, w[n]): return False
    for n in range(x.n_rules):
        if not _same_text(a, r[n].name, b, s[n].name): return False
    return True


cdef inline bint _splits(Table t, const Service* s) noexcept:
    return (<const Target*>(t.base + s.targets) + s.default_target).is_split != 0


def is_ip(str address):
    """Whether an address needs no resolving: a Unix socket, or host:port whose host is an IP address and not a name."""
    if address.startswith("unix:"): return True
    host = address.rpartition(":")[0].strip("[]")
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False
