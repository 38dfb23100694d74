"""Limits of traffic without I/O: circuit breakers, adaptive concurrency, rates, watermarks. Time is an argument.

A number of the configuration is for the whole proxy; each of its workers has a share of it, rounded up.
"""

from libc.math cimport ceil, sqrt
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from graylb._fast cimport Value, hash64

cdef enum:
    FEWEST = 5             # samples that a window needs
    INITIAL = 20           # a gradient's first limit

NAMES = ("", "requests", "pending", "connections", "adaptive", "rate")    # see Limited


cdef uint32_t share(uint32_t number, int workers) noexcept:
    """A worker's part of a number, 0 for none."""
    return (number + workers - 1) // workers


# ---- circuit breakers ----------------------------------------------------------------------------------------------

cdef int refuses(Breaker* b) noexcept:
    """What speaks against one more request; L_NONE: nothing does."""
    if b.max_requests and b.requests >= b.max_requests: return L_REQUESTS
    if b.gradient != NULL and b.requests >= b.gradient.limit: return L_ADAPTIVE
    return L_NONE


cdef void begin(Breaker* b) noexcept:
    b.requests += 1
    if b.gradient != NULL and b.requests > b.gradient.peak: b.gradient.peak = b.requests


cdef void end(Breaker* b, uint64_t us, uint64_t now) noexcept:
    """A request is over. us: how long it took until its answer began; 0: that tells nothing about its instances."""
    b.requests -= 1
    if b.gradient != NULL and us: sample(b.gradient, us, now)


cdef uint64_t late(Breaker* b, uint64_t us) noexcept:
    """The time that a request has had without an answer, where that tells as much as an answer's; 0: it does not."""
    return us if b.gradient != NULL and b.gradient.shortest and us > 2 * b.gradient.shortest else 0


cdef bint configure(Breaker* b, dict bounds, int workers, uint64_t now) except False:
    """Takes limits, as `snapshot_limits.Bounds` has them; what is counted goes on. now: microseconds."""
    cdef Gradient* g
    b.max_requests = share(bounds["requests"], workers)
    b.max_pending = share(bounds["pending"], workers)
    b.max_connections = share(bounds["connections"], workers)
    told = bounds["adaptive"]
    if told is None:
        free(b.gradient)
        b.gradient = NULL
        return True
    if b.gradient == NULL:
        g = b.gradient = <Gradient*>calloc(1, sizeof(Gradient))
        if g == NULL: raise MemoryError
        g.limit = INITIAL
        g.next_probe = now + <uint64_t>(told["probe"] * 1e6)
    g = b.gradient
    g.least = share(told["min"], workers)
    g.most = max(g.least, share(told["max"], workers))
    g.tolerance = told["tolerance"] / 100.0
    g.interval = <uint64_t>(told["interval"] * 1e6)
    g.probe_every = <uint64_t>(told["probe"] * 1e6)
    g.limit = within(g, g.limit)
    return True


cdef dict figures(Breaker* b):
    """Counters and limits of this worker, as a dict of plain values."""
    cdef dict told = {"requests": b.requests, "pending": b.pending, "connections": b.connections,
                      "limited": {NAMES[i]: b.limited[i] for i in range(1, L_RATE) if b.limited[i]}}
    if b.gradient != NULL: told["adaptive"] = {"limit": b.gradient.limit, "shortest_us": b.gradient.shortest}
    return told


# ---- adaptive concurrency ------------------------------------------------------------------------------------------

cdef uint32_t within(Gradient* g, double limit) noexcept:
    return g.least if limit < g.least else g.most if limit > g.most else <uint32_t>limit


cdef uint32_t median(Gradient* g) noexcept:
    """Of the window's samples, which it sorts."""
    cdef uint32_t i, k, x
    for i in range(1, g.n):
        x = g.samples[i]
        k = i
        while k and g.samples[k - 1] > x:
            g.samples[k] = g.samples[k - 1]
            k -= 1
        g.samples[k] = x
    return g.samples[g.n // 2]


cdef void sample(Gradient* g, uint64_t us, uint64_t now) noexcept:
    """The time that one request took; ends the window when it is time to.

    The gradient controller of Envoy's adaptive concurrency filter, which is that of Netflix' concurrency-limits: limit times
    (shortest time : median time of the last window), and the square root of that as room for a burst. Both keep the shortest
    time true by measuring it anew now and then with few requests at once. There it is done with 3, which refuses almost all; here
    with half the limit, which is enough for the queue that the limit allows for to drain, and refuses half at most.
    """
    cdef double gradient
    cdef uint64_t middle
    if us > 0xffffffff: us = 0xffffffff
    # what comes beyond the room for it takes the place of the oldest
    g.samples[g.n % SAMPLES] = <uint32_t>us
    g.n += 1
    if now < g.window_end or g.n < FEWEST: return
    if g.n > SAMPLES: g.n = SAMPLES
    middle = median(g)
    if middle == 0: middle = 1
    if g.probing == 1: g.probing = 2
    elif g.probing == 2:
        g.shortest = middle
        g.probing = 0
        g.limit = within(g, g.kept)
        g.next_probe = now + g.probe_every
    else:
        if g.shortest == 0 or middle < g.shortest: g.shortest = middle
        if g.peak * 2 <= g.limit:                    # it is not the limit that keeps the time short: no reason to raise it
            if now >= g.next_probe:
                g.shortest = middle
                g.next_probe = now + g.probe_every
        else:
            gradient = g.shortest * (1 + g.tolerance) / middle
            gradient = 0.5 if gradient < 0.5 else 2.0 if gradient > 2.0 else gradient
            g.limit = within(g, g.limit * gradient + sqrt(g.limit * gradient))
            if now >= g.next_probe:
                g.probing = 1
                g.kept = g.limit
                g.limit = within(g, g.limit // 2)
    g.n = 0
    g.peak = 0
    g.window_end = now + g.interval


# ---- rates -----------------------------------------------------------------------------------------------------------

cdef class Rate:
    """Token buckets of one rate of a service: one, or one for each key.

    A bucket is one number, the time when it will be full again: the generic cell rate algorithm (ITU-T I.371, annex A),
    which is a token bucket without a clock that fills it. The buckets of keys lie in a table of fixed size; a full bucket is the
    same as none, so it may be overwritten. Where all WAYS places of a key's line hold buckets that are not full, the
    fullest gives way: who has just come makes room, who uses up his rate is remembered. So a key may be forgotten, which
    lets it have more than its rate, and nobody ever gets less.
    """

    def __cinit__(self, dict told, int workers, uint64_t seed, uint64_t now, Rate former=None):
        """told: as `snapshot_limits.Rate` has it, with `rule` as its number and `fields`, those of the key. former: one of
        this name, whose buckets go on. now: ns. MemoryError."""
        cdef uint32_t lines = 1
        cdef uint32_t k
        self.name = told["name"]
        self.every = max(1, round(1e9 * workers / told["rate"]))
        self.span = self.every * max(1, -(-told["burst"] // workers))
        self.rule = told["rule"]
        self.n_key = len(told["fields"])
        for i, field in enumerate(told["fields"]): self.key[<int>i] = field
        if self.n_key:
            while lines * WAYS < told["keys"] * 2: lines *= 2
            self.lines = lines
        self.seed = seed
        if former is not None:
            self.limited = former.limited
            self.full = self.converted(former, former.full, now)
            if former.lines == self.lines:
                self.seed = former.seed
                self.slots, former.slots = former.slots, NULL
                if (self.every, self.span) != (former.every, former.span):
                    for k in range(self.lines * WAYS): self.slots[k].full = self.converted(former, self.slots[k].full, now)
        if self.lines and self.slots == NULL:
            self.slots = <Slot*>calloc(self.lines * WAYS, sizeof(Slot))
            if self.slots == NULL: raise MemoryError

    def __dealloc__(self):
        free(self.slots)

    cdef uint64_t converted(self, Rate former, uint64_t full, uint64_t now) noexcept:
        """A bucket with as many tokens, if it holds so many."""
        cdef double tokens
        if full <= now: return full
        tokens = max(0.0, (<double>former.span - (full - now)) / former.every)
        return now + self.span - <uint64_t>min(<double>self.span, tokens * self.every)

    cdef Slot* slot(self, uint64_t key, uint64_t now) noexcept:
        """Of a key's hash; one that is not known gets a place that is written to when a token is taken."""
        cdef Slot* line = self.slots + (key & (self.lines - 1)) * WAYS
        cdef Slot* fullest = line
        cdef int i
        for i in range(WAYS):
            if line[i].key == key: return &line[i]
            if line[i].full < fullest.full: fullest = &line[i]
        return fullest

    cdef uint64_t wait(self, uint64_t full, uint64_t now) noexcept:
        """Nanoseconds until a bucket has a token; 0: it has one."""
        if full <= now: return 0
        return full + self.every - now - self.span if full + self.every > now + self.span else 0

    cdef uint64_t less(self, uint64_t full, uint64_t now) noexcept:
        """When it is full again after one more token was taken."""
        return (full if full > now else now) + self.every


cdef class Limits:
    """Of one service, in one worker, for as long as tables name it."""

    def __cinit__(self):
        memset(&self.breaker, 0, sizeof(Breaker))
        self.rates = ()

    def __dealloc__(self):
        free(self.breaker.gradient)

    def configure(self, dict told, int workers, uint64_t seed, uint64_t now):
        """Takes the settings, `limits` of what a service says; None: there are none. now: microseconds."""
        cdef Rate rate
        self.told = told
        self.any = told is not None
        former = {each.name: each for each in self.rates}
        self.rates = ()
        self.n_rates = 0
        if told is None:
            free(self.breaker.gradient)
            self.breaker.gradient = NULL
            self.breaker.max_requests = self.breaker.max_pending = self.breaker.max_connections = 0
            return
        configure(&self.breaker, told["service"], workers, now)
        self.rates = tuple([Rate(each, workers, seed + i, now * 1000, former.get(each["name"])) for i, each in enumerate(told["rates"])])
        self.n_rates = len(self.rates)

    cdef uint64_t wait_ns(self, const void* values, int rule, uint64_t now_us) noexcept:
        """Nanoseconds until every rate that is for this request has a token for it; 0: they had, and have it no more.

        values: the request's fields (`_fast.Value`). A request without any source of a rate's key is not that rate's. rule: the one that
        chose its version, or -1.
        """
        cdef const Value* v = <const Value*>values
        cdef uint64_t* taken[MAX_RATES]
        cdef uint64_t* keys[MAX_RATES]
        cdef uint64_t hashes[MAX_RATES]
        cdef uint64_t now = now_us * 1000
        cdef uint64_t longest = 0, wait
        cdef Rate rate
        cdef Rate slowest = None
        cdef Slot* slot
        cdef int i, k
        for i in range(self.n_rates):
            rate = <Rate>self.rates[i]
            taken[i] = keys[i] = NULL
            if rate.rule >= 0 and rate.rule != rule: continue
            if not rate.lines: taken[i] = &rate.full
            else:
                for k in range(rate.n_key):
                    if v[rate.key[k]].count == 0 or v[rate.key[k]].n == 0: continue
                    hashes[i] = hash64(v[rate.key[k]].p, v[rate.key[k]].n, rate.seed + k) or 1
                    slot = rate.slot(hashes[i], now)
                    keys[i] = &slot.key
                    taken[i] = &slot.full
                    break
            if taken[i] == NULL: continue
            wait = rate.wait(taken[i][0], now) if keys[i] == NULL or keys[i][0] == hashes[i] else 0
            if wait > longest:
                longest = wait
                slowest = rate
        if longest:
            slowest.limited += 1
            self.breaker.limited[L_RATE] += 1
            return longest
        for i in range(self.n_rates):
            if taken[i] == NULL: continue
            rate = <Rate>self.rates[i]
            if keys[i] != NULL and keys[i][0] != hashes[i]:
                keys[i][0] = hashes[i]
                taken[i][0] = 0
            taken[i][0] = rate.less(taken[i][0], now)
        return 0

    def figures(self):
        """Counters and limits of this worker, as a dict of plain values."""
        cdef Rate rate
        told = figures(&self.breaker)
        if self.rates: told["rates"] = {rate.name: rate.limited for rate in self.rates}
        return told


# ---- watermarks ------------------------------------------------------------------------------------------------------

cdef bint weigh(Watermarks* w, uint64_t used) noexcept:
    """Finds the level of what is used; True: it is another one. Down it goes only 1/16 below a mark, so as not to flutter."""
    cdef uint8_t level = CALM
    if w.hard and used >= (w.hard - w.hard // 16 if w.level == FULL else w.hard): level = FULL
    elif w.soft and used >= (w.soft - w.soft // 16 if w.level >= HIGH else w.soft): level = HIGH
    if level == w.level: return False
    w.level = level
    return True


# ---- for tests -------------------------------------------------------------------------------------------------------

cdef class Bench:
    """All of this by Python values, for its tests: a service's Limits, and one breaker apart."""

    cdef Limits limits
    cdef Breaker breaker
    cdef Watermarks marks

    def __cinit__(self):
        memset(&self.breaker, 0, sizeof(Breaker))
        memset(&self.marks, 0, sizeof(Watermarks))
        self.limits = Limits()

    def __dealloc__(self):
        free(self.breaker.gradient)

    def configure(self, dict told, int workers=1, uint64_t now=0):
        self.limits.configure(told, workers, 7, now)

    def bound(self, dict bounds, int workers=1, uint64_t now=0):
        configure(&self.breaker, bounds, workers, now)

    def refuses(self):
        return NAMES[refuses(&self.breaker)]

    def begin(self):
        begin(&self.breaker)

    def end(self, uint64_t us=0, uint64_t now=0):
        end(&self.breaker, us, now)

    def figures(self):
        return {**figures(&self.breaker), "limits": self.limits.figures()}

    def wait(self, list keys, uint64_t now, int rule=-1):
        """Nanoseconds; keys: bytes or None by field number."""
        cdef Value values[16]
        cdef int i
        memset(values, 0, sizeof(values))
        for i in range(len(keys)):
            if keys[i] is None: continue
            values[i].p = <bytes>keys[i]
            values[i].n = len(keys[i])
            values[i].count = 1
        return self.limits.wait_ns(values, rule, now)

    def weigh(self, uint64_t used, uint64_t soft, uint64_t hard):
        self.marks.soft = soft
        self.marks.hard = hard
        weigh(&self.marks, used)
        return self.marks.level
