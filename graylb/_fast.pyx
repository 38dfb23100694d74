"""The decision at C level: route, rules, split, instance, over the table image that `graylb.table` writes.

Nothing here allocates or creates Python objects for a request, but for a rule that asks a regular expression (google-re2,
one bytes object). Matching knows no policy: it answers with numbers of routes, rules, targets, instances.
"""

from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, strtod
from libc.string cimport memchr, memcmp, memcpy, strlen
from libc.stdint cimport int64_t
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE, PyBytes_FromStringAndSize
from graylb._http1 cimport (DROP, Head, Header, H_ACCEPT, H_BAGGAGE, H_CH_MOBILE, H_COOKIE, H_MARK, H_OTHER, H_UNDERSCORE,
                            H_USER_AGENT, MAX_HEADERS, reset_head, same_name, scan_request)

import orjson
import re2

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>
    static inline uint64_t gl_r8(const char *p) { uint64_t v; memcpy(&v, p, 8); return v; }
    static inline uint32_t gl_r4(const char *p) { uint32_t v; memcpy(&v, p, 4); return v; }
    #define GL_ROL(x, r) (((x) << (r)) | ((x) >> (64 - (r))))
    #define GL_P1 0x9E3779B185EBCA87ULL
    #define GL_P2 0xC2B2AE3D27D4EB4FULL
    #define GL_P3 0x165667B19E3779F9ULL
    #define GL_P4 0x85EBCA77C2B2AE63ULL
    #define GL_P5 0x27D4EB2F165667C5ULL
    static inline uint64_t gl_round(uint64_t acc, uint64_t in) { return GL_ROL(acc + in * GL_P2, 31) * GL_P1; }
    /* XXH64 (xxHash specification 0.1.1), little endian */
    static uint64_t gl_xxh64(const char *p, size_t n, uint64_t seed) {
      const char *e = p + n;
      uint64_t h;
      if (n >= 32) {
        uint64_t a = seed + GL_P1 + GL_P2, b = seed + GL_P2, c = seed, d = seed - GL_P1;
        do {
          a = gl_round(a, gl_r8(p)); b = gl_round(b, gl_r8(p + 8));
          c = gl_round(c, gl_r8(p + 16)); d = gl_round(d, gl_r8(p + 24));
          p += 32;
        } while (e - p >= 32);
        h = GL_ROL(a, 1) + GL_ROL(b, 7) + GL_ROL(c, 12) + GL_ROL(d, 18);
        h = (h ^ gl_round(0, a)) * GL_P1 + GL_P4; h = (h ^ gl_round(0, b)) * GL_P1 + GL_P4;
        h = (h ^ gl_round(0, c)) * GL_P1 + GL_P4; h = (h ^ gl_round(0, d)) * GL_P1 + GL_P4;
      } else h = seed + GL_P5;
      h += n;
      while (e - p >= 8) { h ^= gl_round(0, gl_r8(p)); h = GL_ROL(h, 27) * GL_P1 + GL_P4; p += 8; }
      if (e - p >= 4) { h ^= (uint64_t)gl_r4(p) * GL_P1; h = GL_ROL(h, 23) * GL_P2 + GL_P3; p += 4; }
      while (p < e) { h ^= (unsigned char)*p++ * GL_P5; h = GL_ROL(h, 11) * GL_P1; }
      h ^= h >> 33; h *= GL_P2; h ^= h >> 29; h *= GL_P3; h ^= h >> 32;
      return h;
    }
    static inline unsigned char gl_low(unsigned char c) { return (c >= 'A' && c <= 'Z') ? c | 0x20 : c; }
    /* FNV-1a over lower-cased bytes, folded to 32 bits */
    static inline uint32_t gl_name_hash(const char *p, size_t n) {
      uint64_t h = 0xcbf29ce484222325ULL;
      for (size_t i = 0; i < n; i++) h = (h ^ gl_low((unsigned char)p[i])) * 0x100000001b3ULL;
      return (uint32_t)(h ^ (h >> 32)); }
    /* which of 64 classes a header name is in: most names of a request are in none that a rule reads */
    static inline uint64_t gl_sieve(const char *p, size_t n) {
      return 1ULL << ((n * 7 + gl_low((unsigned char)p[0])) & 63); }
    static inline uint64_t gl_mulhi(uint64_t a, uint64_t b, uint64_t *lo) {
      unsigned __int128 r = (unsigned __int128)a * b; *lo = (uint64_t)r; return (uint64_t)(r >> 64); }
    #define GL_GOLDEN 0x9E3779B97F4A7C15ULL
    /* splitmix64 (Steele, Lea, Flood 2014): a counter becomes a random number */
    static inline uint64_t gl_mix(uint64_t z) {
      z = (z + 1) * GL_GOLDEN; z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL; return z ^ (z >> 31); }
    #define GL_FNV_BASIS 0xcbf29ce484222325ULL
    #define GL_FNV_PRIME 0x100000001b3ULL
    """
    uint64_t gl_xxh64(const char*, size_t, uint64_t)
    unsigned char gl_low(unsigned char)
    uint32_t gl_name_hash(const char*, size_t)
    uint64_t gl_sieve(const char*, size_t)
    uint64_t gl_mulhi(uint64_t, uint64_t, uint64_t*)
    uint64_t gl_mix(uint64_t)
    uint64_t GL_GOLDEN
    uint64_t GL_FNV_BASIS
    uint64_t GL_FNV_PRIME

cdef extern from "Python.h":
    void PyErr_Clear()

# ---- scratch -------------------------------------------------------------------------------------------------------

cdef bint make_context(Context* c, size_t head_bytes) noexcept:
    """The arena holds joined and decoded values of one request: at most a few times its head."""
    c.size = 4 * head_bytes + 65536
    c.used = 0
    c.arena = <char*>malloc(c.size)
    return c.arena != NULL


cdef void free_context(Context* c) noexcept:
    free(c.arena)
    c.arena = NULL


cdef inline char* _room(Context* c, size_t n) noexcept:
    """n bytes of the arena, or NULL when a head is beyond all bounds."""
    if c.size - c.used < n: return NULL
    c.used += n
    return c.arena + c.used - n


cdef inline bint _is(const char* p, size_t n, const char* q, size_t m) noexcept:
    return n == m and memcmp(p, q, n) == 0

include "_fast_fields.pxi"
include "_fast_conditions.pxi"

# ---- step 1: route -------------------------------------------------------------------------------------------------

cdef const Entry* _find(Table t, uint32_t table, uint32_t mask, uint64_t hash) noexcept:
    cdef const Entry* x = <const Entry*>(t.base + table)
    cdef uint32_t k = <uint32_t>hash & mask
    while x[k].n:
        if x[k].hash == hash: return &x[k]
        k = (k + 1) & mask
    return NULL


cdef bint _path_fits(Table t, const Route* r, Head* h) noexcept:
    if r.path_kind == 0: return _is(h.path, h.path_len, t.base + r.path.off, r.path.n)
    if r.path_kind == 1: return _under(h.path, h.path_len, t.base + r.path.off, r.path.n)
    return _matches_pattern(t, r.pattern, h.path, h.path_len)


cdef int _first_route(Table t, uint32_t list_off, uint32_t n, Query* q, Context* c) noexcept:
    cdef const uint32_t* order = <const uint32_t*>(t.base + list_off)
    cdef const Route* r
    cdef uint32_t i
    for i in range(n):
        r = &t.routes[order[i]]
        if r.listeners and not r.listeners & q.listener: continue
        if _path_fits(t, r, q.head) and _all(t, r.conds, r.n_conds, q, c): return order[i]
    return -1


cdef int _route_in(Table t, const Node* x, Query* q, Context* c) noexcept:
    """Exact path, then regex, then the longest prefix. Prefixes are hashed (FNV-1a) at each element boundary."""
    cdef Head* h = q.head
    cdef uint64_t hashes[256]
    cdef uint64_t hash = GL_FNV_BASIS
    cdef const Entry* e
    cdef uint32_t i, depth = 0
    cdef int r
    if x.exact_mask:
        e = _find(t, x.exact, x.exact_mask, gl_xxh64(h.path, h.path_len, 0))
        if e != NULL:
            r = _first_route(t, e.value, e.n, q, c)
            if r >= 0: return r
    if x.n_regex:
        r = _first_route(t, x.regex, x.n_regex, q, c)
        if r >= 0: return r
    if x.n_prefix == 0 or h.path[0] != 47: return -1
    for i in range(h.path_len + 1):
        if i == h.path_len or h.path[i] == 47:
            hashes[depth] = hash
            depth += 1
            if depth == 256: break
        if i == h.path_len or i >= x.max_prefix: break
        hash = (hash ^ <unsigned char>h.path[i]) * GL_FNV_PRIME
    while depth:
        depth -= 1
        e = _find(t, x.prefix, x.prefix_mask, hashes[depth])
        if e != NULL:
            r = _first_route(t, e.value, e.n, q, c)
            if r >= 0: return r
    return -1


cdef int _route(Table t, Query* q, Context* c) noexcept:
    """The route's number, or -1. More specific hosts first; a host without a fitting path leaves it to the next."""
    cdef const ImageHeader* x = t.header
    cdef Head* h = q.head
    cdef char host[256]
    cdef size_t n = 0, i
    cdef const Entry* e
    cdef int r
    if _fill(t, <const FieldSet*>(t.base + x.fields), q, c) < 0: return -2
    if x.hosts_mask or x.wild_mask:
        n = _plain_host(h, host)
        if x.hosts_mask:
            e = _find(t, x.hosts, x.hosts_mask, gl_xxh64(host, n, 0))
            if e != NULL:
                r = _route_in(t, <const Node*>(t.base + e.value), q, c)
                if r >= 0: return r
        if x.wild_mask:
            for i in range(1, n):
                if host[i] != 46: continue
                e = _find(t, x.wild, x.wild_mask, gl_xxh64(host + i + 1, n - i - 1, 0))
                if e != NULL:
                    r = _route_in(t, <const Node*>(t.base + e.value), q, c)
                    if r >= 0: return r
    if x.default_node: return _route_in(t, <const Node*>(t.base + x.default_node), q, c)
    return -1


cdef size_t _plain_host(Head* h, char* out) noexcept:
    """Lower case, without port and without one trailing dot."""
    cdef size_t n = h.host_len if h.host_len < 256 else 255
    cdef size_t i
    if n and h.host[0] == 91:
        for i in range(n):
            if h.host[i] == 93:
                n = i + 1
                break
    else:
        for i in range(n):
            if h.host[i] == 58:
                n = i
                break
        if n and h.host[n - 1] == 46: n -= 1
    for i in range(n): out[i] = <char>gl_low(<unsigned char>h.host[i])
    return n


cdef uint64_t hash64(const char* p, size_t n, uint64_t seed) noexcept:
    """XXH64."""
    return gl_xxh64(p, n, seed)


# ---- step 2: rules -------------------------------------------------------------------------------------------------

cdef int _match(Table t, const Service* s, Query* q, Context* c) noexcept:
    """The first rule, in order, that holds; -1 when none does. Merges the ordered lists that the request's values name."""
    cdef const FieldSet* f = <const FieldSet*>(t.base + s.fields)
    cdef const Field* fields = <const Field*>(t.base + f.fields)
    cdef const Rule* rules = <const Rule*>(t.base + s.rules)
    cdef const uint32_t* lists[MAX_FIELDS + 1]
    cdef uint32_t left[MAX_FIELDS + 1]
    cdef uint32_t i, k = 0, best, at = 0
    cdef const Entry* e
    cdef Value* v
    if s.n_rest:
        lists[0] = <const uint32_t*>(t.base + s.rest)
        left[0] = s.n_rest
        k = 1
    if s.index_mask:
        for i in range(f.n):
            if not fields[i].indexed: continue
            v = &c.values[i]
            if v.count == 0: continue
            e = _find(t, s.index, s.index_mask, gl_xxh64(v.p, v.n, i + 1))
            if e != NULL:
                lists[k] = <const uint32_t*>(t.base + e.value) if e.n > 1 else &e.value
                left[k] = e.n
                k += 1
    while True:
        best = NONE32
        for i in range(k):
            if left[i] and lists[i][0] < best:
                best = lists[i][0]
                at = i
        if best == NONE32: return -1
        if _rule_holds(t, &rules[best], q, c): return best
        lists[at] += 1
        left[at] -= 1


include "_fast_choice.pxi"


# ---- the decision, told ----------------------------------------------------------------------------------------------

cdef size_t _add(char* o, size_t at, size_t room, const char* name, const char* p, size_t n) noexcept:
    """`name: value CRLF` at o + at; left out when there is no room."""
    cdef size_t size = strlen(name)
    if at + size + n + 4 > room: return at
    memcpy(o + at, name, size)
    at += size
    memcpy(o + at, b": ", 2)
    at += 2
    memcpy(o + at, p, n)
    at += n
    memcpy(o + at, b"\r\n", 2)
    return at + 2


cdef size_t _add_number(char* o, size_t at, size_t room, const char* name, uint64_t n) noexcept:
    cdef char digits[24]
    return _add(o, at, room, name, digits, snprintf(digits, 24, b"%llu", <unsigned long long>n))


cdef size_t _add_str(Table t, char* o, size_t at, size_t room, const char* name, Str s) noexcept:
    return _add(o, at, room, name, t.base + s.off, s.n)


cdef size_t write_decision(Table t, Decision* d, char* o, size_t room) noexcept:
    """The decision as response header lines, as many as there is room for -> bytes written."""
    cdef const Service* s = &t.services[d.service]
    cdef const Str* versions = <const Str*>(t.base + s.versions)
    cdef size_t at = _add_str(t, o, 0, room, b"x-graylb-service", s.name)
    if d.instance >= 0: at = _add_str(t, o, at, room, b"x-graylb-version", versions[t.instances[d.instance].version])
    if d.rule >= 0: at = _add_str(t, o, at, room, b"x-graylb-rule", (<const Rule*>(t.base + s.rules))[d.rule].name)
    if d.slot >= 0: at = _add_number(o, at, room, b"x-graylb-slot", d.slot)
    if d.drew: at = _add_number(o, at, room, b"x-graylb-draw", d.draw)
    if d.fell_back:
        at = _add_str(t, o, at, room, b"x-graylb-fallback", versions[d.wanted]) if d.wanted != NONE32 \
            else _add(o, at, room, b"x-graylb-fallback", b"subset", 6)
    return _add_number(o, at, room, b"x-graylb-revision", t.revision)


# ---- the table -----------------------------------------------------------------------------------------------------

cdef class Table:
    """One revision's compiled configuration, loaded from its image. Raises ValueError for bytes that are no intact image.

    `decide`, `trace` and the bench functions are faces for explain, tests and benchmarks; the engine uses the C functions.
    """

    def __cinit__(self, bytes image):
        cdef const ImageHeader* h
        self.image = image
        self.base = PyBytes_AS_STRING(image)
        h = self.header = <const ImageHeader*>self.base
        if len(image) < <Py_ssize_t>sizeof(ImageHeader) or memcmp(h.magic, b"GRAYLB01", 8) != 0:
            raise ValueError("not a table image")
        if h.size != <uint64_t>len(image) or gl_xxh64(self.base + 16, len(image) - 16, 0) != h.checksum:
            raise ValueError("the table image is damaged")
        self.revision = h.revision
        self.digest = self._str(h.digest)
        self.meta = orjson.loads(PyBytes_FromStringAndSize(self.base + h.meta.off, h.meta.n))
        self.services = <const Service*>(self.base + h.services)
        self.routes = <const Route*>(self.base + h.routes)
        self.instances = <const Instance*>(self.base + h.instances)
        self._load_patterns()
        self._own_scratch()

    def _load_patterns(self):
        cdef const Str* p = <const Str*>(self.base + self.header.patterns)
        self.patterns = [_compiled(PyBytes_FromStringAndSize(self.base + p[i].off, p[i].n))
                         for i in range(self.header.n_patterns)]

    def mark(self, bytes marks, list warmth=None):
        """Live state for what this table decides outside a worker, until the next call: a byte of bits for each instance, in the
        order of `instance_list` (1 ill, 2 ejected, 4 warming), and of warming ones which part of their weight they get, of 65536.
        Empty: nobody is marked. ValueError when it is not as many as there are instances.
        """
        cdef uint32_t i, n = self.header.n_instances
        cdef uint8_t* m
        cdef uint32_t* w
        if marks and len(marks) != n: raise ValueError(f"{len(marks)} marks for {n} instances")
        if self.mine.down == NULL:
            self.mine.down = <uint8_t**>calloc(n + 1, sizeof(void*))
            self.mine.warmth = <uint32_t**>calloc(n + 1, sizeof(void*))
            if self.mine.down == NULL or self.mine.warmth == NULL: raise MemoryError
        self.marks = marks
        self.parts = b"".join([each.to_bytes(4, "little") for each in warmth or [FULL] * n])
        if len(self.parts) != 4 * n: raise ValueError(f"{len(self.parts) // 4} parts for {n} instances")
        m = <uint8_t*>PyBytes_AS_STRING(self.marks)
        w = <uint32_t*>PyBytes_AS_STRING(self.parts)
        self.mine.n_down = 0
        for i in range(n if marks else 0):
            self.mine.down[i] = &m[i]
            self.mine.warmth[i] = &w[i]
            self.mine.n_down += m[i] != 0

    def _own_scratch(self):
        """Counters of its own, so that a table can decide outside a worker."""
        cdef uint32_t i
        self.own = <Context*>calloc(1, sizeof(Context))
        self.mine.draws = <uint64_t**>calloc(self.header.n_splits + 1, sizeof(void*))
        if self.own == NULL or self.mine.draws == NULL or not make_context(self.own, 65536): raise MemoryError
        for i in range(self.header.n_splits): self.mine.draws[i] = &self.shared_draw

    def __dealloc__(self):
        if self.own != NULL: free_context(self.own)
        free(self.own)
        free(self.mine.draws)
        free(self.mine.down)
        free(self.mine.warmth)

    cdef str _str(self, Str s):
        return self.base[s.off:s.off + s.n].decode("utf-8", "surrogateescape")

    cdef str _version(self, const Service* s, uint32_t i):
        return None if i == NONE32 else self._str((<const Str*>(self.base + s.versions))[i])

    cdef str _rule_name(self, int service, int rule):
        return self._str((<const Rule*>(self.base + self.services[service].rules))[rule].name)

    def settings(self, int service):
        """What a service says of connections and tunnels, as `graylb.blocks` writes it."""
        cdef Str told = self.services[service].settings
        return orjson.loads(PyBytes_FromStringAndSize(self.base + told.off, told.n))

    def route_names(self):
        """Names by route number."""
        return [self._str(self.routes[i].name) for i in range(self.header.n_routes)]

    def version_names(self, int service):
        """Names by version number of a service."""
        return [self._version(&self.services[service], i) for i in range(self.services[service].n_versions)]

    def service_names(self):
        """Names by service number."""
        return [self._str(self.services[i].name) for i in range(self.header.n_services)]

    def instance_list(self, int first=0, int n=-1):
        """(service, address, version, weight) by instance number: of n instances (-1: all) from the first on."""
        if n < 0: n = self.header.n_instances
        return [(self._str(self.services[self.instances[i].service].name), self._str(self.instances[i].address),
                 self._version(&self.services[self.instances[i].service], self.instances[i].version),
                 self.instances[i].weight) for i in range(first, first + n)]

    def weights(self, int first, int n):
        """Of n instances from the first on, as `instance_list` has them."""
        return [self.instances[i].weight for i in range(first, first + n)]

    def decide(self, bytes head, str client_ip="127.0.0.1", uint64_t draw=0, uint64_t pick=0, uint32_t listener=0):
        """The decision for one request head as a dict; ValueError when the head is not a whole valid one.

        draw, pick: the counters' values, so that an answer can be repeated. listener: the bit of where the request came
        in, of `meta["listener_bits"]`; 0: only routes for every listener are there.
        """
        cdef Head h
        cdef Query q
        cdef Decision d
        cdef bytes ip = client_ip.encode()
        asked = _ask(head, ip, &h, &q)
        q.listener = listener
        self.shared_draw = draw
        self.mine.pick = pick
        decide(self, &q, self.own, &self.mine, &d)
        return self._told(&d)

    def decide_again(self, bytes head, uint64_t draw=0, uint64_t pick=0):
        """The decision for a head and, for one more attempt, the address of another instance (None: there is none)."""
        cdef Head h
        cdef Query q
        cdef Decision d
        cdef int32_t failed
        cdef dict told
        asked = _ask(head, b"127.0.0.1", &h, &q)
        q.listener = 0
        self.shared_draw = draw
        self.mine.pick = pick
        decide(self, &q, self.own, &self.mine, &d)
        told = self._told(&d)
        failed = d.instance
        if d.instance < 0 or not pick_other(self, &self.mine, &d, &failed, 1): return told, None
        return told, self._str(self.instances[d.instance].address)

    def decide_many(self, list heads, list addresses, list listeners):
        """Decisions for many requests, without what a draw or a pick would add: for each of them (outcome, route, service,
        rule, wanted, how), or None for a head that is not a whole valid one.

        addresses: text of each client's address, "" for none. listeners: the bit of each, as for `decide`. outcome: 0 decided (also
        where no instance is available), 1 no route, 3 redirect, 4 too large. route, service, rule: numbers, -1 for none.
        wanted: number of the version in `version_names`, -1 when it is a draw's or a subset's of several. how: 0 the rule's
        subset or the stable version, 1 a slot, 2 a draw. OSError for a text that is no address.
        """
        cdef Head h
        cdef Query q
        cdef Decision d
        cdef bytes head, ip, packed
        cdef Py_ssize_t i
        cdef int outcome, how, wanted
        known = {}
        out = []
        for i in range(len(heads)):
            head = heads[i]
            if scan_request(&h, PyBytes_AS_STRING(head), PyBytes_AS_STRING(head) + len(head), MAX_HEADERS) != 1:
                out.append(None)
                continue
            found = known.get(addresses[i])
            if found is None:
                found = known[addresses[i]] = (
                    addresses[i].encode(), pack_address(addresses[i]) if addresses[i] else bytes(16))
            ip, packed = found
            q.head = &h
            q.ip = PyBytes_AS_STRING(ip)
            q.ip_len = <uint32_t>PyBytes_GET_SIZE(ip)
            memcpy(q.address, PyBytes_AS_STRING(packed), 16)
            q.v4 = memchr(q.ip, 58, q.ip_len) == NULL
            q.listener = listeners[i]
            decide(self, &q, self.own, &self.mine, &d)
            outcome = DECIDED if d.outcome == NO_INSTANCE else d.outcome
            how = 2 if d.drew else (1 if d.slot >= 0 else 0)
            wanted = -1 if d.drew or d.wanted == NONE32 else <int>d.wanted
            out.append((outcome, d.route, d.service, d.rule, wanted, how))
        return out

    def members(self, int service, int subset):
        """(address, version, weight) of the instances among which a subset's pick is made."""
        cdef const Service* s = &self.services[service]
        cdef const Target* x = &(<const Target*>(self.base + s.targets))[subset]
        cdef const Instance* i
        out = []
        for k in range(x.n):
            i = &self.instances[_item(self, x, k)]
            out.append((self._str(i.address), self._version(s, i.version), i.weight))
        return out

    cdef dict _told(self, Decision* d):
        cdef const Service* s
        out = {
            "outcome": ("decided", "no-route", "no-instance", "redirect", "too-large")[d.outcome],
            "route": self._str(self.routes[d.route].name) if d.route >= 0 else None,
            "service": None, "rule": None, "slot": d.slot if d.slot >= 0 else None, "draw": d.draw if d.drew else None,
            "wanted": None, "version": None, "instance": None, "fallback": bool(d.fell_back), "panic": bool(d.panic), "revision": self.revision,
            "service_number": d.service, "rule_number": d.rule, "subset_number": d.subset if d.instance >= 0 else None,
        }
        if d.service >= 0:
            s = &self.services[d.service]
            out["service"] = self._str(s.name)
            out["wanted"] = self._version(s, d.wanted)
            if d.instance >= 0: out["version"] = self._version(s, self.instances[d.instance].version)
            if d.rule >= 0: out["rule"] = self._str((<const Rule*>(self.base + s.rules))[d.rule].name)
            if d.instance >= 0: out["instance"] = self._str(self.instances[d.instance].address)
        return out

    def trace(self, bytes head, str client_ip, int service, int upto):
        """What the matcher sees: (values, rules).

        values: (kind, name) -> bytes or None, for every field that the service reads. rules: for rule numbers 0 … upto,
        (whether it holds, outcomes of its conditions, outcomes of each `not` group's conditions).
        """
        cdef Head h
        cdef Query q
        cdef const Service* s = &self.services[service]
        cdef const FieldSet* f = <const FieldSet*>(self.base + s.fields)
        cdef const Field* fields = <const Field*>(self.base + f.fields)
        cdef const Rule* r = <const Rule*>(self.base + s.rules)
        cdef const Group* g
        cdef uint32_t i
        cdef Value* v
        cdef bytes ip = client_ip.encode()
        asked = _ask(head, ip, &h, &q)
        if _fill(self, f, &q, self.own) < 0: raise ValueError("the head is too large")
        values = {}
        for i in range(f.n):
            v = &self.own.values[i]
            values[KIND_NAMES[fields[i].kind], self._str(fields[i].name)] = \
                PyBytes_FromStringAndSize(v.p, v.n) if v.count else None
        rules = []
        for i in range(min(upto + 1, s.n_rules)):
            g = <const Group*>(self.base + r[i].groups)
            rules.append((_rule_holds(self, &r[i], &q, self.own), self._outcomes(r[i].conds, r[i].n_conds, &q),
                          [self._outcomes(g[k].conds, g[k].n, &q) for k in range(r[i].n_groups)]))
        return values, rules

    cdef list _outcomes(self, uint32_t conds, uint32_t n, Query* q):
        cdef const Cond* x = <const Cond*>(self.base + conds)
        cdef uint32_t i
        out = []
        for i in range(n): out.append(bool(_test(self, &x[i], q, self.own)))
        return out

    def bench_match(self, list heads, str client_ip, int n):
        """Nanoseconds for one whole decision, over n rounds of these heads (each scanned once before)."""
        import time
        cdef int i, k, count = len(heads)
        cdef bytes ip = client_ip.encode()
        cdef Head* scanned = <Head*>malloc(count * sizeof(Head))
        cdef Query q
        cdef Decision d
        if scanned == NULL: raise MemoryError
        try:
            for k in range(count): asked = _ask(heads[k], ip, &scanned[k], &q)
            begin = time.perf_counter_ns()
            for i in range(n):
                for k in range(count):
                    q.head = &scanned[k]
                    decide(self, &q, self.own, &self.mine, &d)
            return (time.perf_counter_ns() - begin) / n / count
        finally:
            free(scanned)

    def bench_pick(self, int service, int target, int n):
        """Nanoseconds for one pick of an instance from a subset, over n."""
        import time
        cdef Decision d
        cdef int i
        begin = time.perf_counter_ns()
        for i in range(n):
            if not _pick(self, &self.services[service], target, &self.mine, &d): raise ValueError("an empty subset")
        return (time.perf_counter_ns() - begin) / n

    def bench_slot(self, int service, int target, bytes key, int n):
        """Nanoseconds for one sticky key to its owner, over n."""
        import time
        cdef const Service* s = &self.services[service]
        cdef const Target* x = &(<const Target*>(self.base + s.targets))[target]
        cdef char work[64]
        cdef size_t size = min(len(key), 64)
        cdef int32_t slot = 0
        cdef int i
        if not x.is_split: raise ValueError("not a split")
        memcpy(work, PyBytes_AS_STRING(key), size)
        begin = time.perf_counter_ns()
        for i in range(n): work[0] = <char>_owner(self, x, work, size, &slot)
        return (time.perf_counter_ns() - begin) / n


KIND_NAMES = ("path", "method", "grpc_service", "grpc_method", "client_ip", "api_version", "device", "mark",
              "header", "metadata", "cookie", "query")

_patterns = {}


def _compiled(bytes pattern):
    """Full-match function of a pattern, compiled once a process."""
    found = _patterns.get(pattern)
    if found is None:
        if len(_patterns) > 10000: _patterns.clear()
        found = _patterns[pattern] = re2.compile(pattern).fullmatch
    return found


cdef const char* CERTIFICATE = b":client-certificate"     # as snapshot.CLIENT_CERTIFICATE
cdef enum: CERTIFICATE_LEN = 19


cdef int add_certificate(Head* h, const char* p, uint32_t n) noexcept:
    """Who the client's certificate names, as the header that only conditions see; -1: there are too many headers."""
    cdef Header* x = &h.headers[h.count]
    if h.count == MAX_HEADERS: return -1
    x.name = CERTIFICATE
    x.name_len = CERTIFICATE_LEN
    x.value = p
    x.value_len = n
    x.id = H_OTHER
    x.use = DROP
    h.count += 1
    return 0


cdef bytes _ask(bytes head, bytes ip, Head* h, Query* q):
    """Readies a question, which points into `head`, `ip` and what this returns.

    A line `:client-certificate: NAME` in the head stands for what no head can say.
    """
    cdef const char* p = PyBytes_AS_STRING(head)
    cdef const char* e = p + PyBytes_GET_SIZE(head)
    cdef const char* name = NULL
    cdef size_t n = 0
    cdef bytes rest = head
    at = head.find(b"\r\n:client-certificate:")
    if at >= 0:
        end = head.find(b"\r\n", at + 2)
        if end < 0: raise ValueError("not a whole, valid request head")
        told = head[at + 2 + CERTIFICATE_LEN + 1 : end].strip(b" \t")
        name = p + head.index(told, at + 2 + CERTIFICATE_LEN)
        n = len(told)
        rest = head[:at] + head[end:]
        p = PyBytes_AS_STRING(rest)
        e = p + PyBytes_GET_SIZE(rest)
    if scan_request(h, p, e, MAX_HEADERS) != 1: raise ValueError("not a whole, valid request head")
    if name != NULL and add_certificate(h, name, <uint32_t>n) < 0: raise ValueError("too many headers")
    q.head = h
    q.ip = PyBytes_AS_STRING(ip)
    q.ip_len = <uint32_t>PyBytes_GET_SIZE(ip)
    packed = pack_address(ip.decode())
    memcpy(q.address, PyBytes_AS_STRING(packed), 16)
    q.v4 = b":" not in ip
    q.listener = 0
    return rest


def pack_address(str address):
    """16 bytes; IPv4 as ::ffff:a.b.c.d. OSError when it is no address."""
    import socket
    if ":" in address: return socket.inet_pton(socket.AF_INET6, address)
    return b"\0" * 10 + b"\xff\xff" + socket.inet_pton(socket.AF_INET, address)


include "_fast_builders.pxi"
