# Of `_fast`: conditions on those values.

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
