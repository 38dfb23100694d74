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


# ---- fields: one pass over the head --------------------------------------------------------------------------------

cdef int _join(Query* q, Context* c, const char* name, size_t name_len, Value* out) noexcept:
    """All lines of one header joined by ", " (RFC 9110 section 5.3). -1: no room."""
    cdef Head* h = q.head
    cdef int i
    cdef size_t total = 0
    cdef bint first = True
    cdef char* o
    for i in range(h.count):
        if h.headers[i].name_len == name_len and h.headers[i].id != H_UNDERSCORE \
                and same_name(h.headers[i].name, name, name_len):
            total += h.headers[i].value_len + 2
    o = _room(c, total)
    if o == NULL: return -1
    out.p = o
    for i in range(h.count):
        if h.headers[i].name_len == name_len and h.headers[i].id != H_UNDERSCORE \
                and same_name(h.headers[i].name, name, name_len):
            if not first:
                memcpy(o, b", ", 2)
                o += 2
            first = False
            memcpy(o, h.headers[i].value, h.headers[i].value_len)
            o += h.headers[i].value_len
    out.n = <uint32_t>(o - out.p)
    return 0


cdef int _fill_headers(Table t, const FieldSet* f, Query* q, Context* c) noexcept:
    cdef Head* h = q.head
    cdef const Field* fields = <const Field*>(t.base + f.fields)
    cdef const NameEntry* names = <const NameEntry*>(t.base + f.names)
    cdef const Field* x
    cdef Header* y
    cdef uint32_t hash, k
    cdef bint repeated = False
    cdef int i
    for i in range(h.count):
        y = &h.headers[i]
        if not f.sieve & gl_sieve(y.name, y.name_len) or y.id == H_UNDERSCORE: continue
        hash = gl_name_hash(y.name, y.name_len)
        k = hash & f.names_mask
        while names[k].field:
            x = &fields[names[k].field - 1]
            if names[k].hash == hash and (x.kind == K_HEADER or (x.kind == K_METADATA and h.is_grpc)) \
                    and x.name.n == y.name_len and same_name(y.name, t.base + x.name.off, y.name_len):
                if c.values[names[k].field - 1].count == 0:
                    c.values[names[k].field - 1].p = y.value
                    c.values[names[k].field - 1].n = y.value_len
                else: repeated = True
                c.values[names[k].field - 1].count += 1
            k = (k + 1) & f.names_mask
    if repeated:
        for i in range(f.n_derived, f.n):
            if c.values[i].count > 1 and fields[i].kind <= K_METADATA:
                if _join(q, c, t.base + fields[i].name.off, fields[i].name.n, &c.values[i]) < 0: return -1
    return 0


cdef inline int _unhex(int c) noexcept:
    if 48 <= c <= 57: return c - 48
    c |= 32
    if 97 <= c <= 102: return c - 87
    return -1


cdef int _decode(Context* c, const char* p, size_t n, bint plus, const char** out, uint32_t* size) noexcept:
    """Percent-decoding (RFC 3986 2.1; with `plus`, `+` is a space as in forms); invalid escapes stay as they are."""
    cdef size_t i = 0, o = 0
    cdef int a, b
    cdef char* d
    if memchr(p, 37, n) == NULL and (not plus or memchr(p, 43, n) == NULL):
        out[0] = p
        size[0] = <uint32_t>n
        return 0
    d = _room(c, n)
    if d == NULL: return -1
    while i < n:
        if p[i] == 37 and i + 2 < n:
            a = _unhex(<unsigned char>p[i + 1])
            b = _unhex(<unsigned char>p[i + 2])
            if a >= 0 and b >= 0:
                d[o] = <char>(a * 16 + b)
                o += 1
                i += 3
                continue
        d[o] = 32 if plus and p[i] == 43 else p[i]
        o += 1
        i += 1
    out[0] = d
    size[0] = <uint32_t>o
    return 0


cdef int _named(Table t, const FieldSet* f, uint32_t kind, const char* p, size_t n, Context* c) noexcept:
    """The field of a cookie or query name, which are case-sensitive; -1: no rule reads it or it has its value."""
    cdef const Field* fields = <const Field*>(t.base + f.fields)
    cdef const NameEntry* names = <const NameEntry*>(t.base + f.names)
    cdef uint32_t hash = gl_name_hash(p, n)
    cdef uint32_t k = hash & f.names_mask
    cdef int i
    while names[k].field:
        i = names[k].field - 1
        if names[k].hash == hash and fields[i].kind == kind and c.values[i].count == 0 \
                and _is(p, n, t.base + fields[i].name.off, fields[i].name.n):
            return i
        k = (k + 1) & f.names_mask
    return -1


cdef inline bint _blank(char c) noexcept:
    return c == 32 or c == 9


cdef void _fill_cookies(Table t, const FieldSet* f, Query* q, Context* c) noexcept:
    """Every Cookie line (HTTP/2 splits them): pairs parted by `;`, white space around trimmed, one pair of quotes off."""
    cdef Head* h = q.head
    cdef const char* p
    cdef const char* e
    cdef const char* s
    cdef const char* v
    cdef const char* z
    cdef const char* m
    cdef int i, k
    for i in range(h.count):
        if h.headers[i].id != H_COOKIE: continue
        p = h.headers[i].value
        e = p + h.headers[i].value_len
        while p < e:
            s = <const char*>memchr(p, 59, e - p)
            if s == NULL: s = e
            v = <const char*>memchr(p, 61, s - p) if s > p else NULL
            if v != NULL:
                m = v
                while p < m and _blank(p[0]): p += 1
                while m > p and _blank((m - 1)[0]): m -= 1
                k = _named(t, f, K_COOKIE, p, m - p, c)
                if k >= 0:
                    v += 1
                    z = s
                    while v < z and _blank(v[0]): v += 1
                    while z > v and _blank((z - 1)[0]): z -= 1
                    if z - v >= 2 and v[0] == 34 and (z - 1)[0] == 34:
                        v += 1
                        z -= 1
                    c.values[k].p = v
                    c.values[k].n = <uint32_t>(z - v)
                    c.values[k].count = 1
            p = s + 1


cdef int _fill_query(Table t, const FieldSet* f, Query* q, Context* c) noexcept:
    cdef const char* p = q.head.query
    cdef const char* e = p + q.head.query_len
    cdef const char* s
    cdef const char* v
    cdef const char* name
    cdef uint32_t n
    cdef size_t mark
    cdef int k
    if p == NULL: return 0
    while p < e:
        s = <const char*>memchr(p, 38, e - p)
        if s == NULL: s = e
        v = <const char*>memchr(p, 61, s - p) if s > p else NULL
        mark = c.used
        if s > p:
            if _decode(c, p, (v if v != NULL else s) - p, True, &name, &n) < 0: return -1
            k = _named(t, f, K_QUERY, name, n, c)
            c.used = mark
            if k >= 0:
                c.values[k].count = 1
                if v == NULL:
                    c.values[k].p = s
                    c.values[k].n = 0
                elif _decode(c, v + 1, s - v - 1, True, &c.values[k].p, &c.values[k].n) < 0: return -1
        p = s + 1
    return 0


# ---- derived fields ------------------------------------------------------------------------------------------------

cdef bint _version_element(const char* p, size_t n) noexcept:
    """v1, v2.1: `v[0-9]+(\\.[0-9]+)*`"""
    cdef size_t i = 1
    if n < 2 or p[0] != 118: return False
    while True:
        if i == n or p[i] < 48 or p[i] > 57: return False
        while i < n and 48 <= p[i] <= 57: i += 1
        if i == n: return True
        if p[i] != 46: return False
        i += 1


cdef bint _version_in_media(const char* p, const char* e, Value* out) noexcept:
    """`application/vnd.NAME.v1+json` -> `v1`: the last dot-separated element before `+`, `;` or the end."""
    cdef const char* s
    cdef const char* d
    while p < e and _blank(p[0]): p += 1
    if e - p < 16 or not same_name(p, b"application/vnd.", 16): return False
    p += 16
    s = p
    while s < e and s[0] != 43 and s[0] != 59 and not _blank(s[0]): s += 1
    d = s
    while d > p and (d - 1)[0] != 46: d -= 1
    # `v2.1` holds a dot of its own: step back over numeric elements
    while d > p and 48 <= d[0] <= 57:
        d -= 1
        while d > p and (d - 1)[0] != 46: d -= 1
    if d - p < 2 or not _version_element(d, s - d): return False
    out.p = d
    out.n = <uint32_t>(s - d)
    out.count = 1
    return True


cdef void _api_version(Query* q, Value* out) noexcept:
    """From the path's first element, or its second behind `api`; else from Accept."""
    cdef Head* h = q.head
    cdef const char* p = h.path + 1
    cdef const char* e = h.path + h.path_len
    cdef const char* s
    cdef int i
    if h.path_len > 1 and h.path[0] == 47:
        s = <const char*>memchr(p, 47, e - p)
        if s == NULL: s = e
        if s - p == 3 and memcmp(p, b"api", 3) == 0 and s < e:
            p = s + 1
            s = <const char*>memchr(p, 47, e - p) if p < e else NULL
            if s == NULL: s = e
        if _version_element(p, s - p):
            out.p = p
            out.n = <uint32_t>(s - p)
            out.count = 1
            return
    for i in range(h.count):
        if h.headers[i].id != H_ACCEPT: continue
        p = h.headers[i].value
        e = p + h.headers[i].value_len
        while p < e:
            s = <const char*>memchr(p, 44, e - p)
            if s == NULL: s = e
            if _version_in_media(p, s, out): return
            p = s + 1


cdef bint _holds(const char* p, size_t n, const char* low, size_t m) noexcept:
    """Case-insensitive substring."""
    cdef size_t i
    for i in range(n - m + 1 if n >= m else 0):
        if gl_low(<unsigned char>p[i]) == <unsigned char>low[0] and same_name(p + i, low, m): return True
    return False


cdef bint _agent(Head* h, const char* low, size_t m) noexcept:
    cdef int i
    for i in range(h.count):
        if h.headers[i].id == H_USER_AGENT and _holds(h.headers[i].value, h.headers[i].value_len, low, m): return True
    return False


cdef void _device(Query* q, Value* out) noexcept:
    """Device class: the client hint first, then what the User-Agent says of itself."""
    cdef Head* h = q.head
    cdef int i, hints = 0, agents = 0
    cdef const char* name
    cdef bint hinted = False
    for i in range(h.count):
        if h.headers[i].id == H_CH_MOBILE:
            hints += 1
            hinted = _is(h.headers[i].value, h.headers[i].value_len, b"?1", 2)
        agents += h.headers[i].id == H_USER_AGENT
    if hinted and hints == 1: name = b"mobile"
    elif not agents: return
    elif _agent(h, b"bot", 3) or _agent(h, b"crawler", 7) or _agent(h, b"spider", 6) or _agent(h, b"slurp", 5):
        name = b"bot"
    elif _agent(h, b"ipad", 4) or _agent(h, b"tablet", 6) or _agent(h, b"kindle", 6) or _agent(h, b"silk/", 5) \
            or (_agent(h, b"android", 7) and not _agent(h, b"mobile", 6)):
        name = b"tablet"
    elif _agent(h, b"mobi", 4) or _agent(h, b"iphone", 6) or _agent(h, b"ipod", 4) or _agent(h, b"windows phone", 13):
        name = b"mobile"
    else: name = b"desktop"
    out.p = name
    out.n = 3 if name[0] == 98 else (7 if name[0] == 100 else 6)
    out.count = 1


cdef int _mark(Query* q, Context* c, Value* out) noexcept:
    """The mark: its header, else its member of W3C baggage."""
    cdef Head* h = q.head
    cdef int i, seen = 0
    cdef const char* p
    cdef const char* e
    cdef const char* s
    cdef const char* v
    cdef const char* z
    cdef const char* name_end
    for i in range(h.count):
        if h.headers[i].id == H_MARK:
            seen += 1
            out.p = h.headers[i].value
            out.n = h.headers[i].value_len
    if seen:
        out.count = 1
        return _join(q, c, b"x-service-version", 17, out) if seen > 1 else 0
    for i in range(h.count):
        if h.headers[i].id != H_BAGGAGE: continue
        p = h.headers[i].value
        e = p + h.headers[i].value_len
        while p < e:
            s = <const char*>memchr(p, 44, e - p)
            if s == NULL: s = e
            z = <const char*>memchr(p, 59, s - p) if s > p else NULL
            if z == NULL: z = s
            v = <const char*>memchr(p, 61, z - p) if z > p else NULL
            if v != NULL:
                while p < v and _blank(p[0]): p += 1
                name_end = v
                while name_end > p and _blank((name_end - 1)[0]): name_end -= 1
                if _is(p, name_end - p, b"x-service-version", 17):
                    v += 1
                    while v < z and _blank(v[0]): v += 1
                    while z > v and _blank((z - 1)[0]): z -= 1
                    out.count = 1
                    return _decode(c, v, z - v, False, &out.p, &out.n)
            p = s + 1
    return 0


cdef void _grpc(Query* q, bint method, Value* out) noexcept:
    """`/pkg.Service/Method` of a gRPC request."""
    cdef Head* h = q.head
    cdef const char* s
    cdef const char* e = h.path + h.path_len
    if not h.is_grpc or h.path_len < 4 or h.path[0] != 47: return
    s = <const char*>memchr(h.path + 1, 47, h.path_len - 1)
    if s == NULL or s == h.path + 1 or s + 1 == e or memchr(s + 1, 47, e - s - 1) != NULL: return
    out.p = s + 1 if method else h.path + 1
    out.n = <uint32_t>(e - s - 1 if method else s - h.path - 1)
    out.count = 1


cdef int _fill(Table t, const FieldSet* f, Query* q, Context* c) noexcept:
    """Values of all fields of a set. -1: the head is beyond all bounds."""
    cdef const Field* fields = <const Field*>(t.base + f.fields)
    cdef Value* v
    cdef uint32_t i, kind
    for i in range(f.n): c.values[i].count = 0
    c.used = 0
    for i in range(f.n_derived):
        v = &c.values[i]
        kind = fields[i].kind
        if kind == K_PATH:
            v.p = q.head.path
            v.n = q.head.path_len
            v.count = 1
        elif kind == K_METHOD:
            v.p = q.head.method
            v.n = q.head.method_len
            v.count = 1
        elif kind == K_CLIENT_IP:
            v.p = q.ip
            v.n = q.ip_len
            v.count = q.ip_len > 0                   # a client of a Unix socket has none
        elif kind == K_GRPC_SERVICE or kind == K_GRPC_METHOD: _grpc(q, kind == K_GRPC_METHOD, v)
        elif kind == K_API_VERSION: _api_version(q, v)
        elif kind == K_DEVICE: _device(q, v)
        elif kind == K_MARK:
            if _mark(q, c, v) < 0: return -1
    if f.uses & 1 and _fill_headers(t, f, q, c) < 0: return -1
    if f.uses & 2: _fill_cookies(t, f, q, c)
    if f.uses & 4: return _fill_query(t, f, q, c)
    return 0


# ---- conditions ----------------------------------------------------------------------------------------------------

cdef bint _in_set(Table t, const Cond* x, const Value* v) noexcept:
    cdef const SetEntry* s = <const SetEntry*>(t.base + x.a)
    cdef uint32_t hash = <uint32_t>gl_xxh64(v.p, v.n, 0)
    cdef uint32_t k = hash & x.b
    while s[k].used:
        if s[k].hash == hash and _is(v.p, v.n, t.base + s[k].off, s[k].n): return True
        k = (k + 1) & x.b
    return False


cdef bint _in_networks(Table t, const Cond* x, Query* q) noexcept:
    cdef const Network* w = <const Network*>(t.base + x.a)
    cdef uint32_t i, whole, rest
    for i in range(x.b):
        if w[i].v4 != <uint32_t>q.v4: continue
        whole = w[i].bits >> 3
        rest = w[i].bits & 7
        if memcmp(w[i].address, q.address, whole) != 0: continue
        if rest and (w[i].address[whole] ^ q.address[whole]) >> (8 - rest): continue
        return True
    return False


cdef inline bint _ordered(int sign, uint32_t op) noexcept:
    """op: 0 <, 1 <=, 2 >, 3 >=, 4 ==, 5 !="""
    if op == 0: return sign < 0
    if op == 1: return sign <= 0
    if op == 2: return sign > 0
    if op == 3: return sign >= 0
    if op == 4: return sign == 0
    return sign != 0


cdef bint _in_numbers(Table t, const Cond* x, const Value* v) noexcept:
    """The value is a plain decimal, at most 40 characters, within every bound."""
    cdef const NumberBound* w = <const NumberBound*>(t.base + x.a)
    cdef char text[48]
    cdef uint32_t i = 0, digits
    cdef double number
    if v.n == 0 or v.n > 40: return False
    if v.p[0] == 45: i = 1
    digits = i
    while i < v.n and 48 <= v.p[i] <= 57: i += 1
    if i == digits: return False
    if i < v.n:
        if v.p[i] != 46: return False
        i += 1
        digits = i
        while i < v.n and 48 <= v.p[i] <= 57: i += 1
        if i == digits or i < v.n: return False
    memcpy(text, v.p, v.n)
    text[v.n] = 0
    number = strtod(text, NULL)
    for i in range(x.b):
        if not _ordered(-1 if number < w[i].value else (1 if number > w[i].value else 0), w[i].op): return False
    return True


cdef struct Version:
    uint64_t part[3]
    uint32_t rank
    const char* pre
    uint32_t pre_n


cdef bint _identifiers(const char* p, const char* e, bint strict) noexcept:
    """Dot-separated SemVer identifiers; strict: numeric ones have no leading zero."""
    cdef const char* s
    cdef bint numeric
    while True:
        s = p
        numeric = True
        while s < e and s[0] != 46:
            if not (48 <= s[0] <= 57):
                numeric = False
                if not (97 <= gl_low(<unsigned char>s[0]) <= 122 or s[0] == 45): return False
            s += 1
        if s == p or (strict and numeric and s - p > 1 and p[0] == 48): return False
        if s == e: return True
        p = s + 1


cdef bint _parse_version(const char* p, size_t n, Version* out) noexcept:
    """Lenient SemVer: optional `v`, minor and patch may be missing; see graylb.release.semver.parse_version."""
    cdef const char* e = p + n
    cdef const char* s
    cdef int i
    out.part[0] = out.part[1] = out.part[2] = 0
    out.rank = 2
    out.pre = NULL
    out.pre_n = 0
    if p < e and (p[0] == 118 or p[0] == 86): p += 1
    for i in range(3):
        s = p
        while p < e and 48 <= p[0] <= 57:
            if out.part[i] > 922337203685477580ULL: return False
            out.part[i] = out.part[i] * 10 + <uint64_t>(p[0] - 48)
            p += 1
        if p == s or (p - s > 1 and s[0] == 48) or out.part[i] > 9223372036854775807ULL: return False
        if p == e or p[0] != 46 or i == 2: break
        p += 1
    if p < e and p[0] == 45:
        s = p + 1
        p = <const char*>memchr(s, 43, e - s) if s < e else NULL
        if p == NULL: p = e
        if not _identifiers(s, p, True): return False
        out.pre = s
        out.pre_n = <uint32_t>(p - s)
        out.rank = 1
    if p < e and p[0] == 43: return _identifiers(p + 1, e, False)
    return p == e


cdef int _compare_pre(const char* a, const char* ae, const char* b, const char* be) noexcept:
    """Precedence of pre-release identifiers (SemVer 2.0.0 section 11.4)."""
    cdef const char* p
    cdef const char* q
    cdef bint an, bn
    cdef size_t n, m
    cdef int r
    while True:
        p = a
        q = b
        an = bn = True
        while p < ae and p[0] != 46:
            an = an and 48 <= p[0] <= 57
            p += 1
        while q < be and q[0] != 46:
            bn = bn and 48 <= q[0] <= 57
            q += 1
        n = p - a
        m = q - b
        if an != bn: return -1 if an else 1
        if an and n != m: return -1 if n < m else 1
        r = memcmp(a, b, n if n < m else m)
        if r: return -1 if r < 0 else 1
        if n != m: return -1 if n < m else 1
        if p == ae or q == be: return (q == be) - (p == ae)
        a = p + 1
        b = q + 1


cdef int _against(Table t, Version* v, const VersionBound* w) noexcept:
    if v.part[0] != w.major: return -1 if v.part[0] < w.major else 1
    if v.part[1] != w.minor: return -1 if v.part[1] < w.minor else 1
    if v.part[2] != w.patch: return -1 if v.part[2] < w.patch else 1
    if v.rank != w.rank: return -1 if v.rank < w.rank else 1
    if v.rank != 1: return 0
    return _compare_pre(v.pre, v.pre + v.pre_n, t.base + w.pre.off, t.base + w.pre.off + w.pre.n)


cdef bint _in_versions(Table t, const Cond* x, const Value* v) noexcept:
    """Alternatives stand one after the other; all bounds of one must hold."""
    cdef const VersionBound* w = <const VersionBound*>(t.base + x.a)
    cdef Version parsed
    cdef uint32_t i = 0, alternative
    cdef bint ok
    if not _parse_version(v.p, v.n, &parsed): return False
    while i < x.b:
        alternative = w[i].alternative
        ok = True
        while i < x.b and w[i].alternative == alternative:
            # op 6 marks an alternative that every version satisfies
            ok = ok and (w[i].op == 6 or _ordered(_against(t, &parsed, &w[i]), w[i].op))
            i += 1
        if ok: return True
    return False


cdef bint _matches_pattern(Table t, uint32_t i, const char* p, size_t n) noexcept:
    try:
        return (<object>t.patterns[i])(PyBytes_FromStringAndSize(p, n)) is not None
    except Exception:                       # out of memory inside the engine: as if it did not match
        PyErr_Clear()
        return False


cdef bint _under(const char* p, size_t n, const char* prefix, size_t m) noexcept:
    """Prefix by whole path elements; prefix has no trailing slash, and "" is the root."""
    return n >= m and memcmp(p, prefix, m) == 0 and (n == m or p[m] == 47) and (m or (n and p[0] == 47))


cdef bint _test(Table t, const Cond* x, Query* q, Context* c) noexcept:
    cdef const Value* v = &c.values[x.field]
    cdef const char* s = t.base + x.a
    if v.count == 0: return x.negate
    cdef bint r = False
    if x.op == OP_EXACT: r = _is(v.p, v.n, s, x.b)
    elif x.op == OP_IN: r = _in_set(t, x, v)
    elif x.op == OP_PREFIX: r = v.n >= x.b and memcmp(v.p, s, x.b) == 0
    elif x.op == OP_PATH_PREFIX: r = _under(v.p, v.n, s, x.b)
    elif x.op == OP_PRESENT: r = True
    elif x.op == OP_SUFFIX: r = v.n >= x.b and memcmp(v.p + v.n - x.b, s, x.b) == 0
    elif x.op == OP_REGEX: r = _matches_pattern(t, x.a, v.p, v.n)
    elif x.op == OP_CIDR: r = _in_networks(t, x, q)
    elif x.op == OP_NUMBER: r = _in_numbers(t, x, v)
    elif x.op == OP_SEMVER: r = _in_versions(t, x, v)
    return r != x.negate


cdef bint _all(Table t, uint32_t conds, uint32_t n, Query* q, Context* c) noexcept:
    cdef const Cond* x = <const Cond*>(t.base + conds)
    cdef uint32_t i
    for i in range(n):
        if not _test(t, &x[i], q, c): return False
    return True


cdef bint _rule_holds(Table t, const Rule* r, Query* q, Context* c) noexcept:
    cdef const Group* g = <const Group*>(t.base + r.groups)
    cdef uint32_t i
    if not _all(t, r.conds, r.n_conds, q, c): return False
    for i in range(r.n_groups):
        if _all(t, g[i].conds, g[i].n, q, c): return False
    return True


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


# ---- steps 3 and 4: split, instance --------------------------------------------------------------------------------

cdef inline uint32_t _alias(const Cell* cells, uint32_t n, uint64_t x) noexcept:
    """Column and coin from one 64-bit fraction."""
    cdef uint64_t low
    cdef uint32_t i = <uint32_t>gl_mulhi(x, n, &low)
    # without a branch: which way the coin falls is what no predictor knows
    return cells[i].alias ^ ((i ^ cells[i].alias) & -<uint32_t>(<uint32_t>(low >> 32) < cells[i].threshold))


cdef inline uint32_t _column(const Column* columns, uint32_t n, uint64_t x) noexcept:
    cdef uint64_t low
    cdef const Column* c = &columns[gl_mulhi(x, n, &low)]
    return c.first if <uint32_t>(low >> 32) < c.threshold else c.second


cdef inline int _owner(Table t, const Target* x, const char* key, size_t n, int32_t* slot) noexcept:
    slot[0] = <int32_t>(gl_xxh64(key, n, x.seed) % ALL_SLOTS)
    return (<const uint16_t*>(t.base + x.owners))[slot[0]]


cdef uint32_t _split(Table t, const Service* s, const Target* x, Context* c, Live* live, Decision* d) noexcept:
    """Index of the chosen item: the sticky key's slot owner, else the alias table at the next golden-ratio point."""
    cdef const uint32_t* keys = <const uint32_t*>(t.base + s.sticky)
    cdef uint32_t i
    cdef Value* v
    cdef uint64_t* draw
    for i in range(s.n_sticky):
        v = &c.values[keys[i]]
        if v.count and v.n: return _owner(t, x, v.p, v.n, &d.slot)
    draw = live.draws[x.split_id]
    d.draw = draw[0]
    d.drew = True
    draw[0] += 1
    return _column(<const Column*>(t.base + x.cells), x.n_columns, (d.draw + 1) * GL_GOLDEN)


cdef inline int32_t _item(Table t, const Target* x, uint32_t i) noexcept:
    """Instance number of a subset's i-th member; most subsets are a run of neighbours and need no list."""
    return <int32_t>((<const uint32_t*>(t.base + x.items))[i] if x.items else x.first + i)


cdef inline uint64_t _load(Table t, const Target* x, uint32_t i, Live* live) noexcept:
    return live.in_flight[_item(t, x, i)][0] + 1


cdef bint _pick(Table t, const Service* s, uint32_t target, Live* live, Decision* d) noexcept:
    """An instance of a subset into the decision; False when it has none."""
    cdef const Target* x = &(<const Target*>(t.base + s.targets))[target]
    cdef const Cell* cells = <const Cell*>(t.base + x.cells)
    cdef uint32_t a, b, i
    cdef uint64_t seed, low
    if x.n == 0: return False
    seed = gl_mix(live.pick)
    live.pick += 1
    a = _alias(cells, x.n, seed) if x.cells else <uint32_t>gl_mulhi(seed, x.n, &low)
    if s.policy == 1 and x.n > 1 and live.in_flight != NULL:
        # power of two choices (Mitzenmacher 2001), load = requests in flight over weight
        b = a
        for i in range(8):
            seed = gl_mix(seed)
            b = _alias(cells, x.n, seed) if x.cells else <uint32_t>gl_mulhi(seed, x.n, &low)
            if b != a: break
        if _load(t, x, b, live) * t.instances[_item(t, x, a)].weight < _load(t, x, a, live) * t.instances[_item(t, x, b)].weight:
            a = b
    if live.n_down and live.down[_item(t, x, a)][0] and not _instead(t, s, x, live, seed, d, &a): return False
    d.subset = target
    d.instance = _item(t, x, a)
    d.version = x.version
    return True


cdef inline uint32_t _part(uint8_t marks, const uint32_t* warmth, bint panic) noexcept:
    """Which part of its weight an instance with these marks gets, of FULL."""
    if marks & OUT and not panic: return 0
    return warmth[0] if marks & WARMING else FULL


cdef bint _instead(Table t, const Service* s, const Target* x, Live* live, uint64_t seed, Decision* d, uint32_t* a) noexcept:
    """The drawn member a is marked: it stays, or another one takes its place. False: all are out, and the subset is as good as empty.

    Members get requests in proportion to weight x part (`_part`): the drawn one, which came by its weight, stays with the
    probability part / largest part, and else one is drawn by the products. Together that is exact, and unmarked ones, which
    are the largest there can be, need no look. Where fewer than the panic threshold are not out, nothing is out: the few would
    only be the next to fall.
    """
    cdef uint32_t i, k, part, most = 0, out = 0
    cdef uint64_t low
    for i in range(x.n): out += (live.down[_item(t, x, i)][0] & OUT) != 0
    if out == x.n: return False
    cdef bint panic = <uint64_t>(x.n - out) * 100 < <uint64_t>x.n * s.panic
    if panic: d.panic = 1
    for i in range(x.n):
        k = _item(t, x, i)
        part = _part(live.down[k][0], live.warmth[k], panic)
        if part > most: most = part
    k = _item(t, x, a[0])
    seed = gl_mix(seed)
    if gl_mulhi(seed, most, &low) < _part(live.down[k][0], live.warmth[k], panic): return True
    return _draw(t, x, live, gl_mix(seed), panic, NULL, 0, a)


cdef inline bint _among(int32_t instance, const int32_t* some, int n) noexcept:
    cdef int i
    for i in range(n):
        if some[i] == instance: return True
    return False


cdef bint _draw(Table t, const Target* x, Live* live, uint64_t seed, bint panic, const int32_t* avoid, int n_avoid,
                uint32_t* a) noexcept:
    """A member by weight x part, but for the instances to avoid; False when there is none."""
    cdef uint32_t i
    cdef int32_t k
    cdef uint64_t total = 0, low, one
    for i in range(x.n):
        k = _item(t, x, i)
        if not _among(k, avoid, n_avoid): total += <uint64_t>t.instances[k].weight * _part(live.down[k][0], live.warmth[k], panic)
    if total == 0: return False
    seed = gl_mulhi(seed, total, &low)
    for i in range(x.n):
        k = _item(t, x, i)
        if _among(k, avoid, n_avoid): continue
        one = <uint64_t>t.instances[k].weight * _part(live.down[k][0], live.warmth[k], panic)
        if seed < one:
            a[0] = i
            return True
        seed -= one
    return False


cdef bint _ladder(Table t, const Service* s, uint32_t target, uint32_t fallback, Live* live, Decision* d) noexcept:
    """An instance of the subset, or of those that the fallback names. False: there is none."""
    d.fell_back = False
    if _pick(t, s, target, live, d): return True
    d.fell_back = True
    return (fallback >= 1 and _pick(t, s, s.stable_target, live, d)) or (fallback == 2 and _pick(t, s, s.any_target, live, d))


cdef bint _all_out(Table t, const Service* s, Live* live) noexcept:
    """Every instance of the service, of whatever version, is out."""
    cdef const Target* x = &(<const Target*>(t.base + s.targets))[s.any_target]
    cdef uint32_t i
    for i in range(x.n):
        if not live.down[_item(t, x, i)][0] & OUT: return False
    return True


cdef void _resolve(Table t, const Service* s, uint32_t target, uint32_t fallback, Context* c, Live* live,
                   Decision* d) noexcept:
    """Target -> instance, through the split if it is one and down the fallback ladder if the subset is empty."""
    cdef const Target* x = &(<const Target*>(t.base + s.targets))[target]
    cdef uint32_t marked
    cdef bint found
    if x.is_split:
        target = (<const SplitItem*>(t.base + x.items))[_split(t, s, x, c, live, d)].target
        x = &(<const Target*>(t.base + s.targets))[target]
    d.wanted = x.version
    if _ladder(t, s, target, fallback, live, d): return
    if live.n_down and s.panic and _all_out(t, s, live):
        # nobody is well anywhere: then it is more likely that those who look are wrong, and to refuse all would be the worst.
        # The same ladder as ever, with nobody out
        marked = live.n_down
        live.n_down = 0
        found = _ladder(t, s, target, fallback, live, d)
        live.n_down = marked
        if found:
            d.panic = 2
            return
    d.outcome = NO_INSTANCE


cdef void decide(Table t, Query* q, Context* c, Live* live, Decision* d) noexcept:
    """One request, four steps. Field values in `c` are those of the service afterwards."""
    cdef const Service* s
    cdef const Rule* r
    cdef uint32_t target, fallback
    d.service = d.rule = d.slot = d.instance = -1
    d.wanted = d.version = NONE32
    d.drew = d.fell_back = False
    d.panic = 0
    d.outcome = DECIDED
    d.route = _route(t, q, c)
    if d.route < 0:
        d.outcome = NO_ROUTE if d.route == -1 else TOO_LARGE
        return
    if t.routes[d.route].service == NONE32:
        d.outcome = REDIRECT
        return
    d.service = t.routes[d.route].service
    s = &t.services[d.service]
    if _fill(t, <const FieldSet*>(t.base + s.fields), q, c) < 0:
        d.outcome = TOO_LARGE
        return
    target = s.default_target
    fallback = s.fallback
    if s.n_rules:
        d.rule = _match(t, s, q, c)
        if d.rule >= 0:
            r = &(<const Rule*>(t.base + s.rules))[d.rule]
            target = r.target
            fallback = r.fallback
    _resolve(t, s, target, fallback, c, live, d)


cdef int32_t pick_from(Table t, Live* live, int32_t service, uint32_t target) noexcept:
    """An instance of one of a service's subsets, whatever the decision was; -1: none is well."""
    cdef Decision d
    d.instance = -1
    _pick(t, &t.services[service], target, live, &d)
    return d.instance


cdef bint pick_other(Table t, Live* live, Decision* d, const int32_t* avoid, int n_avoid) noexcept:
    """Another instance of the same subset for one more attempt, none of those to avoid; False when there is no other that is not
    out."""
    cdef const Service* s = &t.services[d.service]
    cdef const Target* x = &(<const Target*>(t.base + s.targets))[d.subset]
    cdef uint32_t i, marked = live.n_down
    cdef bint found
    if x.n == 0: return False
    if d.panic == 2: live.n_down = 0                 # as when it was decided: nothing is out
    found = _pick_other(t, s, x, live, d, avoid, n_avoid)
    live.n_down = marked
    return found


cdef bint _pick_other(Table t, const Service* s, const Target* x, Live* live, Decision* d, const int32_t* avoid,
                      int n_avoid) noexcept:
    cdef uint32_t i, n, out = 0
    for i in range(8):
        if not _pick(t, s, d.subset, live, d): break
        if not _among(d.instance, avoid, n_avoid): return True
    if live.n_down == 0:                             # of few members the same comes up often, of very unequal ones too
        n = <uint32_t>(gl_mix(live.pick) % x.n)
        for i in range(x.n):
            d.instance = _item(t, x, (n + i) % x.n)
            if not _among(d.instance, avoid, n_avoid): return True
        return False
    for i in range(x.n): out += (live.down[_item(t, x, i)][0] & OUT) != 0
    if out == x.n or not _draw(t, x, live, gl_mix(live.pick), <uint64_t>(x.n - out) * 100 < <uint64_t>x.n * s.panic, avoid,
                               n_avoid, &n):
        return False
    d.instance = _item(t, x, n)
    return True


cdef bint pick_stable(Table t, Live* live, Decision* d, const int32_t* avoid, int n_avoid) noexcept:
    """An instance of the stable version for one more attempt of a request that another version has failed; False when its
    fallback is `strict`, it is of the stable version already, or there is none. Then `d` is as it was."""
    cdef const Service* s = &t.services[d.service]
    cdef const Target* x = &(<const Target*>(t.base + s.targets))[s.stable_target]
    cdef Decision before = d[0]
    cdef uint32_t fallback = (<const Rule*>(t.base + s.rules))[d.rule].fallback if d.rule >= 0 else s.fallback
    if fallback == 0 or d.subset == s.stable_target: return False
    if x.version == t.instances[d.instance].version: return False
    d.subset = s.stable_target
    d.version = x.version
    if pick_other(t, live, d, avoid, n_avoid):
        d.fell_back = True
        return True
    d[0] = before
    return False


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


# ---- builders' half: what graylb.table needs to agree with the matcher ---------------------------------------------------

def xxh64(bytes data, uint64_t seed=0):
    """XXH64."""
    return gl_xxh64(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), seed)


def fnv1a(bytes data):
    """64-bit FNV-1a, as route prefixes are hashed."""
    cdef uint64_t h = GL_FNV_BASIS
    cdef Py_ssize_t i
    cdef const char* p = PyBytes_AS_STRING(data)
    for i in range(PyBytes_GET_SIZE(data)): h = (h ^ <unsigned char>p[i]) * GL_FNV_PRIME
    return h


def name_hash(bytes name):
    """Hash of a header, cookie or query name."""
    return gl_name_hash(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


def sieve(bytes name):
    """The bit of FieldSet.sieve that a header name sets."""
    return gl_sieve(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


def alias_cells(list weights):
    """Alias table (Vose 1991) over positive weights -> 8 bytes a cell. ValueError when empty or a weight is not positive.

    Integers below 2**31 are used exactly; others are scaled so that the heaviest is 2**31 - 1 (relative error 2**-31).
    """
    cdef Py_ssize_t n = len(weights), i, ns = 0, nl = 0, s, l
    cdef uint64_t total = 0
    if n == 0: raise ValueError("an alias table needs an entry")
    top = max(weights)
    exact = top < 2 ** 31 and all(float(w).is_integer() for w in weights)
    cdef uint64_t* p = <uint64_t*>malloc(n * sizeof(uint64_t))
    cdef uint32_t* small = <uint32_t*>malloc(n * sizeof(uint32_t))
    cdef uint32_t* large = <uint32_t*>malloc(n * sizeof(uint32_t))
    cdef bytes out = PyBytes_FromStringAndSize(NULL, n * sizeof(Cell))
    cdef Cell* t = <Cell*>PyBytes_AS_STRING(out)
    try:
        if p == NULL or small == NULL or large == NULL: raise MemoryError
        for i in range(n):
            if not weights[i] > 0: raise ValueError(f"weight {weights[i]!r}: expected a positive number")
            p[i] = int(weights[i]) if exact else max(1, round(weights[i] / top * (2 ** 31 - 1)))
            total += p[i]
        for i in range(n):
            p[i] *= n
            if p[i] < total: small[ns] = i; ns += 1
            else: large[nl] = i; nl += 1
        while ns and nl:
            ns -= 1
            s = small[ns]
            l = large[nl - 1]
            t[s].threshold = <uint32_t>(<double>p[s] / <double>total * 4294967296.0)
            t[s].alias = l
            p[l] -= total - p[s]
            if p[l] < total:
                nl -= 1
                small[ns] = l
                ns += 1
        # integers leave no remainder: what is left are full columns
        while nl: nl -= 1; t[large[nl]].threshold = NONE32; t[large[nl]].alias = large[nl]
        while ns: ns -= 1; t[small[ns]].threshold = NONE32; t[small[ns]].alias = small[ns]
    finally:
        free(p); free(small); free(large)
    return out


def string_set(list values, uint32_t base):
    """Hash set of distinct byte strings -> (SetEntry table, mask, string bytes); `base` is where the strings will lie."""
    cdef Py_ssize_t n = len(values)
    cdef uint32_t mask = 3, k, off = base
    cdef bytes b
    while mask < 2 * n: mask = mask * 2 + 1
    cdef bytes out = bytes((mask + 1) * sizeof(SetEntry))
    cdef SetEntry* t = <SetEntry*>PyBytes_AS_STRING(out)
    cdef uint32_t hash
    for b in values:
        hash = <uint32_t>gl_xxh64(PyBytes_AS_STRING(b), PyBytes_GET_SIZE(b), 0)
        k = hash & mask
        while t[k].used: k = (k + 1) & mask
        t[k].hash = hash
        t[k].off = off
        t[k].n = <uint32_t>PyBytes_GET_SIZE(b)
        t[k].used = 1
        off += t[k].n
    return out, mask, b"".join(values)


def seal(bytearray image):
    """Writes the checksum of a finished image and returns it as bytes."""
    cdef char* p = image
    (<ImageHeader*>p).size = <uint32_t>len(image)
    (<ImageHeader*>p).checksum = gl_xxh64(p + 16, len(image) - 16, 0)
    return bytes(image)


SIZES = {
    "ImageHeader": sizeof(ImageHeader), "FieldSet": sizeof(FieldSet), "Field": sizeof(Field),
    "NameEntry": sizeof(NameEntry), "Entry": sizeof(Entry), "Cond": sizeof(Cond), "SetEntry": sizeof(SetEntry),
    "Network": sizeof(Network), "NumberBound": sizeof(NumberBound), "VersionBound": sizeof(VersionBound),
    "Group": sizeof(Group), "Rule": sizeof(Rule), "Target": sizeof(Target), "SplitItem": sizeof(SplitItem),
    "Cell": sizeof(Cell), "Column": sizeof(Column), "Instance": sizeof(Instance), "Service": sizeof(Service), "Route": sizeof(Route),
    "Node": sizeof(Node), "Str": sizeof(Str),
}
