# Of `_fast`: what rules ask of a head.

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
