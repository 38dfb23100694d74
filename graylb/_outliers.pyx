"""Outlier ejection and slow start, without I/O and without a clock: what comes of how instances answer.

An instance answers badly while its siblings do well: it is ejected for a time, and they take its requests. All of it is live
state of one worker, on the instance itself (`Upstream.conduct`), so tables come and go without a change to it; an instance that
no table names any more is forgotten, and is new if it comes back.

| state | what happens | where | then |
| --- | --- | --- | --- |
| in | an answer that is no 5xx | | its runs are 0 |
| in | a gateway failure: no answer, or 502, 503, 504 | | both runs grow by one |
| in | another 5xx | | the run of errors grows by one, the run of gateway failures is 0 |
| in | a run is as long as its limit, or an interval's rate or time is an outlier | the share allows it | ejected |
| in | the same | it does not | as it was, `spared` counts it; the next failure tries again |
| ejected | an answer to an earlier request, or one that panic sent | | nothing: it has been judged |
| ejected | its time is over | | in; runs and interval are 0; slow start begins |

**The share.** Ejection leaves a version able to bear its load: at most `max_ejection_percent` of its instances may be out, those
that health checks find ill counted with them, so ejection never adds to an illness what would bring on panic. One may be ejected
however few they are, but never one that is alone: there would be nobody to take its requests, and to move its callers to another
version is what fallback is for, when health checks say so, or a person. (Envoy would eject it, and its panic threshold would send
the requests there all the same.)

**The time** is `base_ejection_time` x the ejections in a row, at most `max_ejection_time`. Each interval that an instance gets
through without another one takes one from that number again.

**Success rate**, once an interval: of the instances that had `requests` answers, if there are `instances` of them, those whose rate
is below mean - `stdev_factor` x standard deviation (of the population, as Envoy's). The worst goes first. **Latency**: those whose
mean time until the head of the answer is more than `factor` times the median of their siblings' means.

**Slow start** (Envoy's formula): an instance that is new, or back from illness or ejection, gets the part
max(`min_percent` / 100, (age / `window`) ^ (1 / `aggression`)) of its weight. Within its version only, and relative to its siblings:
where all are new, nobody is held back.
"""

from libc.math cimport pow, sqrt
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from graylb._fast cimport EJECTED, FULL, ILL, OUT, WARMING
from graylb._live cimport RATES, RUNS, TIMES, Conduct, Upstream
from graylb._slab cimport Memory, Slab

from bisect import bisect_left

from graylb._meter import Series
from graylb.errors import KINDS

NAMES = ("gateway-failures", "5xx", "success-rate", "latency")     # see Reason
cdef uint64_t NEVER = <uint64_t>-1
cdef double ROUNDING = 1e-9           # equal rates are not below their mean


cdef class Watch:
    """One version of one service: its instances and settings."""

    def __init__(self, str service, str version, uint64_t now, Slab slab):
        self.slab = slab
        self.service = service
        self.version = version
        self.began = now
        self.members = []

    cdef configure(self, dict outliers, dict slow_start):
        """Takes a service's settings, as `snapshot.Outliers` and `snapshot.SlowStart` (None: off) have them."""
        self.gateway_limit = outliers["consecutive_gateway_failures"]
        self.error_limit = outliers["consecutive_5xx"]
        self.success_rate = outliers["success_rate"]
        self.latency = outliers["latency"]
        self.interval = max(1, round(outliers["interval"] * 1000))
        self.base = round(outliers["base_ejection_time"] * 1000)
        self.longest = max(self.base, round(outliers["max_ejection_time"] * 1000))
        self.most_percent = outliers["max_ejection_percent"]
        self.window = round(slow_start["window"] * 1000) if slow_start is not None else 0
        if self.window:
            self.aggression = slow_start["aggression"]
            self.least = slow_start["min_percent"] / 100.0

    cdef int watched(self):
        return ((RUNS if self.gateway_limit or self.error_limit else 0) | (RATES if self.success_rate is not None else 0)
                | (TIMES if self.latency is not None else 0)) if self.most_percent else 0

    cdef bint may_eject(self, Upstream u):
        """Whether the share leaves room for one more."""
        cdef Upstream v
        cdef uint64_t others = 0, n = len(self.members)
        for v in self.members: others += v is not u and (v.down & OUT) != 0
        return (others + 1) * 100 <= self.most_percent * n or (others == 0 and n > 1)

    cdef uint32_t part(self, uint64_t age) noexcept:
        """Of its weight, of FULL, so many ms after it began."""
        cdef double found = pow(<double>age / self.window, 1.0 / self.aggression) if age < self.window else 1.0
        if found < self.least: found = self.least
        return max(<uint32_t>(found * FULL), 1)


cdef uint64_t judged_at(Watch w) noexcept:
    """When its interval ends, where anything is judged by one."""
    return w.began + w.interval if w.success_rate is not None or w.latency is not None else NEVER


cdef class Outliers:
    """All instances of one worker. `changed` and `news` are for the owner to look at after each call, and to take back."""

    def __init__(self, Slab slab):
        self.slab = slab
        self.watches = {}
        self.out = {}
        self.starting = set()
        self.look_at = NEVER

    cdef follow(self, dict service, list upstreams, list weighted, bint first, uint64_t now):
        """Takes a service that is new or changed (what it says) and its instances; weighted: whether each has a
        weight. first: in a worker's first table nobody is new."""
        cdef Upstream u
        cdef Watch w
        cdef str name = service["name"]
        cdef dict former = self.watches.get(name) or {}, found = {}
        for u, weight in zip(upstreams, weighted):
            if not weight:
                self.forget(u)
                continue
            w = found.get(u.version)
            if w is None:
                w = found[u.version] = former.get(u.version) or Watch(name, u.version, now, self.slab.part())
                w.configure(service["outliers"], service["slow_start"])
                w.members = []
            w.members.append(u)
            u.watch = w
            u.conduct.watched = w.watched()
            if not u.conduct.watched and u.down & EJECTED: self._return(u, now)
            if u.conduct.fresh and not first: self._warm(u, now)
            u.conduct.fresh = 0
        self.watches[name] = found
        # a look that comes too early makes the plan anew; to make it here would cost the square of all services in a swap
        if self.starting: self.look_at = min(self.look_at, now + 1)
        for w in found.values(): self.look_at = min(self.look_at, judged_at(w))

    def gone(self, str service):
        """No table names it any more."""
        self.watches.pop(service, None)

    cdef forget(self, Upstream u):
        """It gets no requests any more, and is judged no more."""
        if u.down & (EJECTED | WARMING): self.changed = True
        if self.out.pop(u, None) is not None:
            self._count(u.watch)
            self.news = True
        self.starting.discard(u)
        u.down &= ILL
        u.watch = None
        memset(&u.conduct, 0, sizeof(Conduct))

    cdef void saw(self, Upstream u, int status, uint64_t us, uint64_t now) noexcept:
        """One answer, or NO_ANSWER. us: how long its head took; 0: not known. To be called where `conduct.watched`."""
        cdef Conduct* c = &u.conduct
        if u.down & EJECTED: return
        if c.watched & (RATES | TIMES):
            c.answers += 1
            c.errors += status >= 500
            if us:
                c.timed += 1
                c.us += us
        if status < 500:
            c.gateway_run = c.error_run = 0
            return
        c.error_run += 1
        c.gateway_run = c.gateway_run + 1 if status >= NO_ANSWER or 502 <= status <= 504 else 0
        self._failed(u, status, now)

    cdef _failed(self, Upstream u, int status, uint64_t now):
        cdef Watch w = u.watch
        cdef Conduct* c = &u.conduct
        last = KINDS[status - NO_ANSWER].reason if status >= NO_ANSWER else str(status)
        if w.gateway_limit and c.gateway_run >= w.gateway_limit:
            self._eject(u, GATEWAY, f"{c.gateway_run} gateway failures in a row, {last} the last", now)
        elif w.error_limit and c.error_run >= w.error_limit:
            self._eject(u, ERRORS, f"{c.error_run} errors in a row, {last} the last", now)

    cdef bint _eject(self, Upstream u, int reason, str why, uint64_t now):
        cdef Watch w = u.watch
        cdef Conduct* c = &u.conduct
        cdef uint64_t quiet
        if not w.may_eject(u):
            w.spared += 1
            return False
        if c.times:
            quiet = (now - c.until) // w.interval
            c.times = c.times - <uint32_t>quiet if quiet < c.times else 0
        c.times += 1
        c.until = now + min(w.base * c.times, w.longest)
        u.down |= EJECTED
        if w.ejections[reason] == NULL:
            labels = ("service", w.service), ("version", w.version), ("reason", NAMES[reason])
            w.ejections[reason] = w.slab.counter("graylb_ejections_total", labels)
        w.ejections[reason][0] += 1
        self.out[u] = NAMES[reason], why
        self._count(w)
        self.changed = self.news = True
        if c.until < self.look_at: self.look_at = c.until
        return True

    cdef _return(self, Upstream u, uint64_t now):
        cdef Conduct* c = &u.conduct
        c.gateway_run = c.error_run = 0
        c.answers = c.errors = c.timed = c.us = 0
        c.until = now
        u.down &= ~EJECTED
        self.out.pop(u, None)
        self._count(u.watch)
        self.changed = self.news = True
        self._warm(u, now)

    cdef _count(self, Watch w):
        """How many of its instances are ejected."""
        cdef Upstream u
        if w.ejected == NULL:
            w.ejected = w.slab.gauge("graylb_ejected_instances", (("service", w.service), ("version", w.version)))
        w.ejected[0] = sum([u.watch is w for u in self.out])

    cdef void look(self, uint64_t now) noexcept:
        """What time brings about: the end of ejections, of intervals, a larger part for who is warming."""
        cdef Upstream u
        cdef Watch w
        for u in [u for u in self.out if (<Upstream>u).conduct.until <= now]: self._return(u, now)
        for u in list(self.starting):
            w = u.watch
            if now - u.conduct.warm_since < w.window: u.warmth = w.part(now - u.conduct.warm_since)
            else:
                u.down &= ~WARMING
                self.starting.discard(u)
                self.changed = True
        for versions in self.watches.values():
            for w in (<dict>versions).values():
                if now >= judged_at(w): self._judge(w, now)
        self._plan(now)

    def _plan(self, uint64_t now):
        """When to look again."""
        cdef Upstream u
        cdef Watch w
        self.look_at = now + 1 if self.starting else NEVER
        for u in self.out: self.look_at = min(self.look_at, u.conduct.until)
        for versions in self.watches.values():
            for w in (<dict>versions).values(): self.look_at = min(self.look_at, judged_at(w))

    cdef _judge(self, Watch w, uint64_t now):
        """The end of an interval."""
        cdef Upstream u
        members = [u for u in w.members if not (<Upstream>u).down & EJECTED]
        if w.success_rate is not None and w.most_percent:
            enough = [u for u in members if (<Upstream>u).conduct.answers >= <uint64_t>w.success_rate["requests"]]
            if len(enough) >= w.success_rate["instances"]:
                for u, why in failing(enough, w.success_rate["stdev_factor"]): self._eject(u, RATE, why, now)
        if w.latency is not None and w.most_percent:
            enough = [u for u in members if (<Upstream>u).conduct.timed >= <uint64_t>w.latency["requests"]]
            if len(enough) >= w.latency["instances"]:
                for u, why in slow(enough, w.latency["factor"]):
                    if not u.down & EJECTED: self._eject(u, SLOW, why, now)
        for u in w.members: u.conduct.answers = u.conduct.errors = u.conduct.timed = u.conduct.us = 0
        w.began = now

    cdef void well(self, Upstream u, uint64_t now) noexcept:
        """Health checks find it well again."""
        if u.watch is not None: self._warm(u, now)

    cdef _warm(self, Upstream u, uint64_t now):
        """Slow start begins, or begins again."""
        cdef Watch w = u.watch
        if w.window == 0: return
        u.conduct.warm_since = now
        u.warmth = w.part(0)
        u.down |= WARMING
        self.starting.add(u)
        self.changed = True
        self.look_at = now + 1

    cdef list told(self, uint64_t now):
        """The ejected, for people: seconds: that are left."""
        cdef Upstream u
        found = []
        for u, (reason, why) in self.out.items():
            found.append({"service": u.service, "address": u.address, "version": u.version, "reason": reason, "why": why,
                          "times": u.conduct.times, "seconds": (u.conduct.until - now) / 1000.0 if u.conduct.until > now else 0.0})
        return found

    cdef list counted(self):
        """By service and version, where there is anything to tell."""
        cdef Watch w
        cdef uint32_t i
        return [{"service": w.service, "version": w.version, "spared": w.spared,
                 "ejections": {NAMES[i]: w.ejections[i][0] for i in range(REASONS) if w.ejections[i] != NULL}}
                for versions in self.watches.values() for w in (<dict>versions).values()
                if w.spared or any([w.ejections[i] != NULL for i in range(REASONS)])]


cdef list failing(list upstreams, double factor):
    """Those whose success rate is an outlier, worst first, and why."""
    cdef Upstream u
    cdef double rate, mean = 0, variance = 0, bound
    rates = []
    for u in upstreams:
        rate = 100.0 * (u.conduct.answers - u.conduct.errors) / u.conduct.answers
        rates.append(rate)
        mean += rate / len(upstreams)
    for rate in rates: variance += (rate - mean) * (rate - mean) / len(upstreams)
    bound = mean - factor * sqrt(variance)
    found = sorted([(rate, i) for i, rate in enumerate(rates) if rate < bound - ROUNDING])
    return [(upstreams[i], f"a success rate of {rate:.1f} %, below {bound:.1f} %") for rate, i in found]


cdef list slow(list upstreams, double factor):
    """Those that take too long, worst first, and why."""
    cdef Upstream u
    means = [<double>(<Upstream>u).conduct.us / (<Upstream>u).conduct.timed for u in upstreams]
    ordered = sorted(means)
    found = []
    for i, mean in enumerate(means):
        others = median_without(ordered, bisect_left(ordered, mean))
        if mean > factor * others: found.append((-mean, i, others))
    return [(upstreams[i], f"{-mean / 1000:.1f} ms to answer, its siblings {others / 1000:.1f} ms") for mean, i, others in sorted(found)]


cdef double median_without(list ordered, Py_ssize_t gone):
    """The median of at least one value, in order, but for the one at `gone`."""
    cdef Py_ssize_t n = len(ordered) - 1, k = (n - 1) // 2, j = n // 2
    return (ordered[k if k < gone else k + 1] + ordered[j if j < gone else j + 1]) / 2


# ---- a face for tests ------------------------------------------------------------------------------------------------

class Trial:
    """A service's instances, by any names, and time as an argument (ms)."""

    def __init__(self, dict service):
        self.service = service
        self.outliers = Outliers(Slab(Memory(-1, 0)))
        self.upstreams = {}
        self.first = True

    def table(self, list instances, uint64_t now):
        """instances: (address, version, weight)."""
        cdef Upstream u
        cdef Outliers o = self.outliers
        former, self.upstreams = self.upstreams, {}
        for address, version, _ in instances:
            u = former.get(address)
            if u is None or u.version != version:
                u = Upstream(self.service["name"], "unix:" + address, version, Series(self.service["name"], version))
                u.conduct.fresh = 1
            self.upstreams[address] = u
        o.follow(self.service, list(self.upstreams.values()), [weight for _, _, weight in instances], self.first, now)
        for address in former:
            if self.upstreams.get(address) is not former[address]: o.forget(former[address])
        self.first = False

    def answered(self, str address, int status, uint64_t now, uint64_t us=0):
        """status: below 0 is no answer."""
        cdef Upstream u = self.upstreams[address]
        if u.conduct.watched: (<Outliers>self.outliers).saw(u, status if status >= 0 else NO_ANSWER - 1 - status, us, now)

    def tick(self, uint64_t now):
        if due(self.outliers, now): (<Outliers>self.outliers).look(now)

    def ill(self, str address, bint ill, uint64_t now):
        cdef Upstream u = self.upstreams[address]
        if ill: u.down |= ILL
        elif u.down & ILL:
            u.down &= ~ILL
            (<Outliers>self.outliers).well(u, now)

    def marks(self):
        return {address: (<Upstream>u).down for address, u in self.upstreams.items()}

    def parts(self):
        """Of their weights, of 65536."""
        return {address: (<Upstream>u).warmth if (<Upstream>u).down & WARMING else FULL for address, u in self.upstreams.items()}

    def told(self, uint64_t now):
        return [{**each, "address": each["address"][5:]} for each in (<Outliers>self.outliers).told(now)]

    def counted(self):
        return (<Outliers>self.outliers).counted()
