# Of `_fast`: which version and which of its instances; steps 3 and 4 of a decision.

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
