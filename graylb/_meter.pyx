"""What requests are counted in: of a service by rule and version, of a version its times, bytes and connections.

Names are told to the slab when something is counted for the first time; from then on it is a look into a small hash table by
the decision's numbers, and an increment. The numbers hold for as long as tables have the service unchanged, and so does its
`Meter`; a `Series` is of a version's name and goes on from one Meter to the next. docs/metrics.md says what the names mean.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from graylb._fast cimport NONE32, Decision, Service, Table, Target
from graylb._limits cimport Breaker
from graylb._limits cimport figures as limit_figures
from graylb._retries cimport CAUSES
from graylb._slab cimport COUNTER, GAUGE, HISTOGRAM_BUCKETS, Exemplar, Slab, bucket, show

from graylb._grpc import CODE_NAMES
from graylb._retries import CAUSE_NAMES, HEDGE_NAMES
from graylb._slab import bucket_end
from graylb.errors import KINDS

CODES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
MEANS = ("exact", "slot", "draw")            # see Means
REASONS = tuple(kind.reason for kind in KINDS)
CONNECTIONS = ("busy", "idle")
UNNAMED = (("service", ""), ("version", ""))


cdef class Series:
    """What one version of one service has answered, for as long as tables name it. slab: for it alone; None: memory of its own."""

    def __cinit__(self):
        memset(&self.breaker, 0, sizeof(Breaker))

    def __dealloc__(self):
        free(self.breaker.gradient)

    def __init__(self, str service, str version, Slab slab=None):
        self.service = service
        self.version = version
        self.slab = slab if slab is not None else Slab()

    cdef open(self):
        """To be called when there is an instance of it."""
        cdef tuple labels = (("service", self.service), ("version", self.version))
        cdef Slab slab = self.slab
        if self.idle != NULL: return
        self.bytes_in = slab.counter("graylb_request_body_bytes_total", labels)
        self.bytes_out = slab.counter("graylb_response_body_bytes_total", labels)
        self.attempts = slab.counter("graylb_upstream_attempts_total", labels)
        self.failures = slab.counter("graylb_upstream_failures_total", labels)
        self.connects = slab.counter("graylb_upstream_connects_total", labels)
        self.in_flight = slab.gauge("graylb_requests_in_flight", labels)
        self.waiting = slab.gauge("graylb_upstream_requests_waiting", labels)
        self.busy = slab.several(GAUGE, "graylb_upstream_connections", labels, "state", CONNECTIONS)
        self.idle = self.busy + 1

    cdef void took(self, uint64_t us) noexcept:
        """One answer was complete after so long."""
        if self.times == NULL: self.times = self._histogram("graylb_request_duration_seconds")
        self.times[bucket(us)] += 1
        self.times[HISTOGRAM_BUCKETS] += us

    cdef void sampled(self, uint64_t us, uint64_t now_us, const char* trace_id, const char* span_id) noexcept:
        """And it is traced: an exemplar."""
        if self.examples == NULL:
            try:
                self.examples = self.slab.exemplars("graylb_request_duration_seconds", (("service", self.service), ("version", self.version)))
            except MemoryError:
                return
        show(self.examples, us, now_us, trace_id, span_id)

    cdef void began_to_answer(self, uint64_t us) noexcept:
        """The head of an answer was here after so long."""
        if self.first_bytes == NULL: self.first_bytes = self._histogram("graylb_time_to_first_byte_seconds")
        self.first_bytes[bucket(us)] += 1
        self.first_bytes[HISTOGRAM_BUCKETS] += us

    cdef uint64_t* _histogram(self, str name) noexcept:
        try:
            return self.slab.histogram(name, (("service", self.service), ("version", self.version)))
        except MemoryError:
            return self.slab.memory.scrap

    @property
    def opened(self):
        """Whether it has, or had, an instance."""
        return self.idle != NULL

    def figures(self):
        """Counters as a dict; times: microseconds, as [end of bucket, count] for those that have any."""
        cdef int k
        return {"service": self.service, "version": self.version, "limits": limit_figures(&self.breaker),
                "statuses": {f"{i}xx": self.statuses[i] for i in range(1, 6)}, "failed_calls": self.failed_calls,
                "bytes_in": self.bytes_in[0], "bytes_out": self.bytes_out[0],
                "times": [] if self.times == NULL else
                         [[bucket_end(k), self.times[k]] for k in range(HISTOGRAM_BUCKETS) if self.times[k]],
                "retries": {CAUSE_NAMES[k]: self.retried[k] for k in range(<int>CAUSES) if self.retried[k]},
                "hedges": {HEDGE_NAMES[k]: self.hedged[k] for k in range(<int>HEDGED) if self.hedged[k]}}


cdef class Meter:
    """Of one service. series: by number of version, and one more."""

    def __cinit__(self, str service, list series):
        self.service = service
        self.series = series
        self.n_versions = len(series) - 1
        self.mask = 15
        self.cells = <Cell*>calloc(self.mask + 1, sizeof(Cell))
        if self.cells == NULL: raise MemoryError

    def __dealloc__(self):
        free(self.cells)

    cdef uint64_t* of(self, Table t, int service, int tag, int64_t a, uint32_t version) noexcept:
        """Where it is counted. a: rule or version, see Tag; version: by number, NONE32 where none is known."""
        cdef uint64_t key
        cdef uint32_t i
        if version > self.n_versions: version = self.n_versions
        key = <uint64_t>tag << 60 | <uint64_t>(a + 1) << 30 | version
        i = <uint32_t>((key * 0x9E3779B97F4A7C15u) >> 40) & self.mask
        while self.cells[i].key:
            if self.cells[i].key == key: return self.cells[i].at
            i = (i + 1) & self.mask
        try:
            at = self._make(t, service, tag, a, version)
            if 2 * self.n >= self.mask:
                self._grow()
                i = <uint32_t>((key * 0x9E3779B97F4A7C15u) >> 40) & self.mask
                while self.cells[i].key: i = (i + 1) & self.mask
        except MemoryError:
            return (<Series>self.series[0]).slab.memory.scrap
        self.cells[i].key = key
        self.cells[i].at = at
        self.n += 1
        return at

    cdef uint64_t* _make(self, Table t, int service, int tag, int64_t a, uint32_t version) except NULL:
        cdef const Service* s = &t.services[service]
        cdef Series of = self.series[version], wanted
        cdef tuple labels = (("service", self.service), ("version", of.version))
        if tag == T_ERRORS: return of.slab.several(COUNTER, "graylb_errors_total", labels, "reason", REASONS)
        if tag == T_FALLBACKS:
            wanted = self.series[a]
            return wanted.slab.counter("graylb_fallbacks_total", (("service", self.service), ("wanted", wanted.version), ("got", of.version)))
        if a >= 0: rule = t._rule_name(service, a)
        else: rule = "(split)" if (<const Target*>(t.base + s.targets) + s.default_target).is_split else "(stable)"
        labels = (*labels, ("rule", rule))
        if tag == T_CALLS: return of.slab.several(COUNTER, "graylb_grpc_requests_total", labels, "grpc_code", CODE_NAMES)
        if tag == T_DECISIONS: return of.slab.several(COUNTER, "graylb_decisions_total", labels, "by", MEANS)
        return of.slab.several(COUNTER, "graylb_requests_total", labels, "code", CODES)

    cdef int _grow(self) except -1:
        cdef Cell* former = self.cells
        cdef uint32_t k, i, n = self.mask + 1
        cdef Cell* made = <Cell*>calloc(2 * n, sizeof(Cell))
        if made == NULL: raise MemoryError
        self.cells = made
        self.mask = 2 * n - 1
        for k in range(n):
            if former[k].key == 0: continue
            i = <uint32_t>((former[k].key * 0x9E3779B97F4A7C15u) >> 40) & self.mask
            while made[i].key: i = (i + 1) & self.mask
            made[i] = former[k]
        free(former)
        return 0

    cdef void count(self, Table t, Decision* d, int status) noexcept:
        """One request, which is over. status: its class, 0 where there was no answer."""
        cdef int means = BY_SLOT if d.slot >= 0 else (BY_DRAW if d.drew else BY_RULE)
        self.of(t, d.service, T_REQUESTS, d.rule, served(t, d))[status] += 1
        self.of(t, d.service, T_DECISIONS, d.rule, d.wanted if d.wanted != NONE32 else served(t, d))[means] += 1

    cdef void count_call(self, Table t, Decision* d, int status) noexcept:
        """A request that was a call of gRPC, once more. status: one of gRPC's."""
        self.of(t, d.service, T_CALLS, d.rule, served(t, d))[status] += 1

    cdef void count_error(self, Table t, Decision* d, int code) noexcept:
        """One that graylb has answered with an error of its own."""
        self.of(t, d.service, T_ERRORS, 0, served(t, d))[code] += 1

    cdef void count_fallback(self, Table t, Decision* d) noexcept:
        """Another version than the one that was wanted, or none."""
        cdef int64_t wanted = d.wanted if d.wanted <= self.n_versions else self.n_versions
        self.of(t, d.service, T_FALLBACKS, wanted, t.instances[d.instance].version if d.instance >= 0 else NONE32)[0] += 1


cdef uint32_t served(Table t, Decision* d) noexcept:
    """The version that a decision has come to: its instance's, else the one that was wanted."""
    return t.instances[d.instance].version if d.instance >= 0 else d.wanted


def unrouted(Slab slab):
    """(by class of status, by kind of error): requests that no service has, as addresses of counters."""
    return (<size_t>slab.several(COUNTER, "graylb_requests_total", (*UNNAMED, ("rule", "")), "code", CODES),
            <size_t>slab.several(COUNTER, "graylb_errors_total", UNNAMED, "reason", REASONS))
