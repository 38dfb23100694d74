# Of `_h2`: header blocks that come, as text.

cdef inline bint _fits(Text* t, size_t more) noexcept:
    """Makes room for so many bytes more; False: out of memory."""
    cdef size_t cap
    cdef char* p
    if t.n + more < t.cap: return True     # where there is nothing yet, nothing fits: memcpy wants a place even for no bytes
    cap = t.cap * 2 if t.cap else 4096
    while cap <= t.n + more: cap *= 2
    p = <char*>realloc(t.p, cap)
    if p == NULL: return False
    t.p = p
    t.cap = cap
    return True


cdef inline void _put(Text* t, const void* p, size_t n) noexcept:
    """Appends to where `_fits` has made room."""
    memcpy(t.p + t.n, p, n)
    t.n += n


cdef void _borrow(Text* t) noexcept:
    global _n_spare
    if t.p == NULL and _n_spare:
        _n_spare -= 1
        t[0] = _spare[_n_spare]
    t.n = 0


cdef void _give_back(Text* t) noexcept:
    global _n_spare
    if t.p == NULL: return
    if _n_spare < SPARE and t.cap <= SPARE_MAX:
        _spare[_n_spare] = t[0]
        _n_spare += 1
    else: free(t.p)
    t.p = NULL
    t.n = t.cap = 0


cdef inline bint _line(Framer* f, int id, const char* name, size_t n, const char* value, size_t m) noexcept:
    cdef char* o
    cdef Line* line
    if not _fits(&f.text, n + m + 4) or not _fits(&f.lines, sizeof(Line)): return False
    line = <Line*>(f.lines.p + f.lines.n)
    line.at = <uint32_t>(f.text.n - f.start)
    line.name_len = <uint32_t>n
    line.value_len = <uint32_t>m
    line.id = id
    o = f.text.p + f.text.n
    f.lines.n += sizeof(Line)
    f.text.n += n + m + 4
    memcpy(o, name, n)
    memcpy(o + n, b": ", 2)
    memcpy(o + n + 2, value, m)
    memcpy(o + n + 2 + m, b"\r\n", 2)
    return True


cdef inline KnownHead _known(Framer* f) noexcept:
    """The head that has arrived."""
    return KnownHead(f.text.p + f.start, f.text.n - f.start, <Line*>(f.lines.p + f.lines_at),
                     <int>((f.lines.n - f.lines_at) // sizeof(Line)), f.method.n, f.path.n)


cdef inline bint _of_connection(const char* p, size_t n) noexcept:
    """Fields that HTTP/2 has no use for (RFC 9113 section 8.2.2); lower case."""
    if n == 7: return memcmp(p, b"upgrade", 7) == 0
    if n == 10: return memcmp(p, b"connection", 10) == 0 or memcmp(p, b"keep-alive", 10) == 0
    if n == 14: return memcmp(p, b"http2-settings", 14) == 0
    if n == 16: return memcmp(p, b"proxy-connection", 16) == 0
    return n == 17 and memcmp(p, b"transfer-encoding", 17) == 0


# ---- receiving -----------------------------------------------------------------------------------------------------

cdef int _on_begin_frame(nghttp2_session* ng, const nghttp2_frame_hd* hd, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef uint8_t type = hd.type
    if f.n_asked and type != NGHTTP2_DATA and type != NGHTTP2_HEADERS and type != NGHTTP2_CONTINUATION: _tell(f)
    if type == NGHTTP2_DATA or type == NGHTTP2_RST_STREAM: return 0
    if type == NGHTTP2_HEADERS:
        f.continuations = 0
        return _in_turn(f, hd.stream_id) if f.s.server else 0
    if type == NGHTTP2_CONTINUATION:
        f.continuations += 1
        if f.continuations > CONTINUATIONS: return _punish(f, H2_ENHANCE_YOUR_CALM)
    elif (type == NGHTTP2_PING or type == NGHTTP2_SETTINGS) and hd.flags & NGHTTP2_FLAG_ACK: return 0
    else: return _control(f)
    return 0


cdef int _on_extension(nghttp2_session* ng, void** payload, const nghttp2_frame_hd* hd, void* user) noexcept:
    return NGHTTP2_ERR_CANCEL      # frames that nobody knows are counted above, and no more


cdef int _on_begin_headers(nghttp2_session* ng, const nghttp2_frame* frame, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef Conn* c
    if frame.hd.type != NGHTTP2_HEADERS: return 0
    if f.n_asked and (frame.headers.cat != NGHTTP2_HCAT_REQUEST or f.n_asked == ASKED or f.text.n > ASKED_BYTES): _tell(f)
    f.begun = f.has_length = f.has_host = 0
    f.verdict = f.status = 0
    f.seen = 0
    f.length = -1
    f.fields = f.missed = 0
    f.next = 0
    f.size = ADDED
    f.cookies.n = 0                # of a block that broke off
    f.method.n = f.path.n = f.scheme.n = f.authority.n = 0
    f.most_bytes = f.limits.head_bytes if f.s.server else MAX_HEAD
    f.most_fields = min(f.limits.headers, <uint32_t>MAX_FIELDS) if f.s.server else MAX_FIELDS
    if f.s.server: f.block = REQUEST if frame.headers.cat == NGHTTP2_HCAT_REQUEST else TRAILERS
    else:
        # the final head behind a 1xx comes in the same category as trailers
        c = _conn(f, frame.hd.stream_id)
        f.block = TRAILERS if c == NULL or c.phase & HEADED else RESPONSE
    if f.n_asked == 0:
        _borrow(&f.text)
        _borrow(&f.lines)
    f.start = f.text.n
    f.lines_at = f.lines.n
    return 0


cdef void _begin_request(Framer* f) noexcept:
    """Writes the first lines behind the pseudo-header fields."""
    cdef Text* t = &f.text
    cdef const char* p
    f.begun = 1
    f.start = t.n
    if not _fits(t, f.method.n + f.path.n + f.authority.n + 32):
        f.verdict = 500
        return
    if f.method.n == 7 and memcmp(t.p + f.method.at, b"CONNECT", 7) == 0:
        f.verdict = 405 if f.seen == METHOD | AUTHORITY else MALFORMED
        return
    p = t.p + f.method.at
    if f.seen & NEEDED != NEEDED or gl_skip_token(p, p + f.method.n) != p + f.method.n or f.method.n == 0:
        f.verdict = MALFORMED
        return
    _put(t, p, f.method.n)
    _put(t, b" ", 1)
    p = t.p + f.path.at
    if f.path.n == 0 or not gl_is_target_text(p, f.path.n): f.verdict = MALFORMED
    # the absolute form the scanner would take
    elif p[0] != 47 and not (p[0] == 42 and f.path.n == 1 and f.method.n == 7 and memcmp(t.p + f.method.at, b"OPTIONS", 7) == 0):
        f.verdict = MALFORMED
    _put(t, p, f.path.n)
    _put(t, b" HTTP/1.1\r\n", 11)
    p = t.p + f.scheme.at
    if not (f.scheme.n == 4 and gl_same(p, b"http", 4)) and not (f.scheme.n == 5 and gl_same(p, b"https", 5)): f.verdict = 400
    if f.authority.n:
        p = t.p + f.authority.at
        if not gl_is_target_text(p, f.authority.n): f.verdict = MALFORMED
        elif not _line(f, H_HOST, b"host", 4, p, f.authority.n): f.verdict = 500
        f.next = 1


cdef void _pseudo(Framer* f, const char* name, size_t n, const char* value, size_t m) noexcept:
    cdef Span* into = NULL
    cdef uint8_t bit = 0
    cdef int status
    if f.block == RESPONSE:
        status = _number(value, 3) if n == 7 and m == 3 and memcmp(name, b":status", 7) == 0 else -1
        if status < 100 or status == 101 or f.status or f.begun: f.verdict = MALFORMED
        else: f.status = <uint16_t>status
        return
    if f.block == REQUEST and not f.begun:
        if n == 5 and memcmp(name, b":path", 5) == 0:
            into = &f.path
            bit = PATH
        elif n == 7 and memcmp(name, b":method", 7) == 0:
            into = &f.method
            bit = METHOD
        elif n == 7 and memcmp(name, b":scheme", 7) == 0:
            into = &f.scheme
            bit = SCHEME
        elif n == 10 and memcmp(name, b":authority", 10) == 0:
            into = &f.authority
            bit = AUTHORITY
    if into == NULL or f.seen & bit: f.verdict = MALFORMED
    elif not _fits(&f.text, m): f.verdict = 500
    else:
        f.seen |= bit
        into.at = <uint32_t>f.text.n
        into.n = <uint32_t>m
        _put(&f.text, value, m)


cdef int _number(const char* p, size_t n) noexcept:
    """Decimal digits, a few of them; -1: something else."""
    cdef int r = 0
    cdef size_t i
    for i in range(n):
        if p[i] < 48 or p[i] > 57: return -1
        r = r * 10 + (p[i] - 48)
    return r


cdef bint _authority_again(Framer* f, const char* value, size_t m) noexcept:
    """A Host field beside :authority: left out when it says the same, unlawful otherwise (RFC 9113 section 8.3.1)."""
    cdef size_t i
    cdef const char* p = f.text.p + f.authority.at
    if f.authority.n == 0: return False
    if f.authority.n != m: f.verdict = 400
    else:
        for i in range(m):
            if GL_TOKEN[<uint8_t>p[i]] != GL_TOKEN[<uint8_t>value[i]] or (GL_TOKEN[<uint8_t>p[i]] == 0 and p[i] != value[i]):
                f.verdict = 400
    return True


cdef bint _cookie(Framer* f, const char* value, size_t m) noexcept:
    """One cookie of several fields (RFC 9113 section 8.2.3)."""
    cdef Text* t = &f.cookies
    if m == 0: return True     # a separator with nothing behind it would end in a space
    if t.p == NULL: _borrow(t)
    if not _fits(t, m + 2): return False
    if t.n: _put(t, b"; ", 2)
    _put(t, value, m)
    return True


cdef int _on_header(nghttp2_session* ng, const nghttp2_frame* frame, const uint8_t* name_, size_t n, const uint8_t* value_,
                    size_t m, uint8_t flags, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef const char* name = <const char*>name_
    cdef const char* value = <const char*>value_
    if f.block == NOTHING: return 0
    f.size += n + m + 4
    if f.size > f.most_bytes:
        if f.verdict == 0: f.verdict = 431
        if f.size > BLOCK_FACTOR * f.most_bytes: return _punish(f, H2_ENHANCE_YOUR_CALM)
    if f.verdict: return 0
    if n and name[0] == 58: _pseudo(f, name, n, value, m)
    else: _field(f, name, n, value, m)
    return 0


cdef inline void _field(Framer* f, const char* name, size_t n, const char* value, size_t m) noexcept:
    cdef const Line* again
    cdef int kind, id
    f.fields += 1
    if f.fields > f.most_fields:
        f.verdict = 431
        return
    if not f.begun:
        if f.block == REQUEST:
            _begin_request(f)
            if f.verdict: return
        elif f.block == RESPONSE: _begin_response(f)
    again = _expected(f, name, n, value, m)
    if again != NULL:
        if (not SPECIAL >> again.id & 1 or _is_line(f, again.id, value, m)) and not _line_again(f, again): f.verdict = 500
        return
    f.missed += 1
    # what is only just written would be slow to look at: the name and the value are looked at where they came
    kind = gl_name_kind(name, n)
    if kind == 0 or not gl_is_bare_value(value, m):
        f.verdict = MALFORMED
        return
    id = classify(name, n, kind == GL_PLAIN)
    if (not SPECIAL >> id & 1 or _is_line(f, id, value, m)) and not _line(f, id, name, n, value, m): f.verdict = 500


cdef inline const Line* _expected(Framer* f, const char* name, size_t n, const char* value, size_t m) noexcept:
    """The line that this field was in the head before, if it was: then it is lawful, and known."""
    cdef Before* b = &f.came[f.block == TRAILERS]
    cdef const Line* line
    cdef const char* p
    if f.next >= b.n: return NULL
    line = &b.lines[f.next]
    p = b.text + line.at
    if line.name_len != n or not gl_equal(p, name, n): return NULL
    f.next += 1
    return line if line.value_len == m and gl_equal(p + n + 2, value, m) else NULL


cdef inline bint _line_again(Framer* f, const Line* before) noexcept:
    cdef const char* p = f.came[f.block == TRAILERS].text + before.at
    cdef size_t n = before.name_len + before.value_len + 4
    cdef Line* line
    if not _fits(&f.text, n) or not _fits(&f.lines, sizeof(Line)): return False
    line = <Line*>(f.lines.p + f.lines.n)
    line[0] = before[0]
    line.at = <uint32_t>(f.text.n - f.start)
    f.lines.n += sizeof(Line)
    _put(&f.text, p, n)
    return True


cdef void _keep_what_came(Framer* f, Before* b) noexcept:
    """The next one is likely to be the same."""
    cdef size_t lines = f.lines.n - f.lines_at
    if _keep(b, f.text.p + f.start, f.text.n - f.start, <int>(lines // sizeof(Line))):
        memcpy(b.lines, f.lines.p + f.lines_at, lines)


cdef bint _keep(Before* b, const char* text, size_t n, int lines) noexcept:
    """Keeps a text, with room for its lines; False: it is too large to."""
    cdef size_t room = lines * sizeof(Line)
    free(b.lines)
    b.lines = <Line*>malloc(room + n) if n <= BEFORE_BYTES and 0 < lines <= BEFORE_LINES else NULL
    b.n = lines if b.lines != NULL else 0
    if b.n == 0: return False
    b.text = <char*>b.lines + room
    memcpy(b.text, text, n)
    return True


cdef bint _is_line(Framer* f, int id, const char* value, size_t m) noexcept:
    """Takes a field of SPECIAL. False: it is no line of the text."""
    if id == H_CONTENT_LENGTH: return _length(f, value, m)
    if id == H_HOST and f.block != RESPONSE: return _host(f, value, m)
    if id == H_COOKIE and f.block == REQUEST:
        if not _cookie(f, value, m): f.verdict = 500
        return False
    # all others are of a connection, and HTTP/2 has no use for them (RFC 9113 section 8.2.2)
    if id != H_HOST and id != H_COOKIE and not (id == H_TE and m == 8 and gl_same(value, b"trailers", 8)): f.verdict = MALFORMED
    return True


cdef bint _host(Framer* f, const char* value, size_t m) noexcept:
    """Only one, and a line only where :authority does not say it already. It is no trailer."""
    if f.block == TRAILERS: return False
    if f.has_host: f.verdict = MALFORMED
    f.has_host = 1
    return not _authority_again(f, value, m)


cdef bint _length(Framer* f, const char* value, size_t m) noexcept:
    """Takes a Content-Length (RFC 9113 section 8.1.1). False: it is no line of the text."""
    cdef int64_t length = 0
    cdef size_t i
    for i in range(m):
        if value[i] < 48 or value[i] > 57 or length > <int64_t>922337203685477579: f.verdict = MALFORMED
        else: length = length * 10 + (value[i] - 48)
    if m == 0 or f.has_length: f.verdict = MALFORMED
    f.has_length = 1
    if f.block == TRAILERS: return False
    f.length = length
    if f.block == REQUEST or (f.status >= 200 and f.status != 204): return True
    # RFC 9110 section 8.6: neither 1xx nor 204 has one; that an instance says 0 of a 204 does no harm
    if f.status != 204 or length: f.verdict = MALFORMED
    return False


cdef void _begin_response(Framer* f) noexcept:
    cdef char line[13]
    f.begun = 1
    memcpy(line, b"HTTP/1.1 ", 9)
    line[9] = <char>(48 + f.status // 100)
    line[10] = <char>(48 + f.status // 10 % 10)
    line[11] = <char>(48 + f.status % 10)
    line[12] = 32
    if not _fits(&f.text, 15): f.verdict = 500
    else:
        _put(&f.text, line, 13)
        _put(&f.text, b"\r\n", 2)


cdef int _head_done(Framer* f, int32_t stream, bint end) noexcept:
    """A header block is complete."""
    cdef uint8_t block = f.block
    cdef int r = 0
    if f.verdict == 0 and 4 * f.missed > f.fields: _keep_what_came(f, &f.came[block == TRAILERS])
    f.block = NOTHING
    if block == REQUEST: r = _request_done(f, stream, end)
    elif block == RESPONSE: _response_done(f, stream, end)
    elif block == TRAILERS: _trailers_done(f, stream, end)
    return r


cdef void _forget_text(Framer* f) noexcept:
    _give_back(&f.text)
    _give_back(&f.lines)
    _give_back(&f.cookies)


cdef void _reset_unlawful(Framer* f, int32_t stream) noexcept:
    """Of a message that is none (RFC 9113 section 8.1.1)."""
    nghttp2_submit_rst_stream(f.ng, NGHTTP2_FLAG_NONE, stream, H2_PROTOCOL_ERROR)
    _touch(f)


cdef void _finish_text(Framer* f, bint chunked) noexcept:
    if f.cookies.n and not _line(f, H_COOKIE, b"cookie", 6, f.cookies.p, f.cookies.n): f.verdict = 500
    elif chunked and not _line(f, H_TRANSFER_ENCODING, b"transfer-encoding", 17, b"chunked", 7): f.verdict = 500
    elif not _fits(&f.text, 2): f.verdict = 500
    else: _put(&f.text, b"\r\n", 2)


cdef int _request_done(Framer* f, int32_t stream, bint end) noexcept:
    cdef nghttp2_nv nv
    cdef char digits[3]
    cdef Asked* a
    if f.verdict == 0 and not f.begun: _begin_request(f)
    if f.verdict == 0 and (not (f.seen & AUTHORITY or f.has_host) or (end and f.length > 0)): f.verdict = MALFORMED
    if f.verdict and f.n_asked: _tell(f)
    if f.verdict == MALFORMED:
        _reset_unlawful(f, stream)
        f.hooks.rejected(f.engine, &f.s, 400)
        return 0
    _earn(f, 2)
    if f.verdict == 0: _finish_text(f, not end and not f.has_length)
    if f.verdict == 0:
        a = &_asked_for[f.n_asked]
        a.stream = stream
        a.end = end
        a.ended = 0
        a.head = _known(f)
        a.at = f.start
        a.lines_at = f.lines_at
        a.length = f.length
        a.data_n = 0
        f.n_asked += 1
        return 0
    digits[0] = <char>(48 + f.verdict // 100)
    digits[1] = <char>(48 + f.verdict // 10 % 10)
    digits[2] = <char>(48 + f.verdict % 10)
    _pair(&nv, b":status", 7, digits, 3, 0)
    nghttp2_submit_response(f.ng, stream, &nv, 1, NULL)
    _touch(f)
    f.hooks.rejected(f.engine, &f.s, f.verdict)
    f.resets -= RESET_MS           # what this stream earns by ending in order
    return _reset(f)


cdef void _tell(Framer* f) noexcept:
    """The requests that have come meanwhile, one after the other: what unpacks them and what decides on them do not fit a processor's
    cache of instructions together."""
    cdef Asked* a
    cdef Conn* c
    cdef int64_t length = f.length     # of a head that is arriving
    cdef int i, n = f.n_asked
    for i in range(n):
        a = &_asked_for[i]
        f.length = a.length
        a.head.text = f.text.p + a.at
        a.head.lines = <Line*>(f.lines.p + a.lines_at)
        f.hooks.request(f.engine, &f.s, a.stream, &a.head, a.end)
        if a.data_n:
            c = _conn(f, a.stream)
            if c == NULL: continue
            if c.left >= 0: c.left -= a.data_n
            c.owed += a.data_n
            f.hooks.data(f.engine, c, <char*>a.data, a.data_n)
        if a.ended:
            c = _conn(f, a.stream)
            if c == NULL: continue
            c.phase |= ENDED
            f.hooks.end(f.engine, c, NULL, 0)
    f.n_asked = 0
    f.length = length


cdef inline Asked* _asked(Framer* f, int32_t stream) noexcept:
    """The last request, if it is this one and the engine does not know of it yet; else it knows of all after this."""
    cdef Asked* a
    if f.n_asked == 0: return NULL
    a = &_asked_for[f.n_asked - 1]
    if a.stream == stream and not a.ended: return a
    _tell(f)
    return NULL


cdef void _response_done(Framer* f, int32_t stream, bint end) noexcept:
    cdef Conn* c = _conn(f, stream)
    cdef KnownHead head
    cdef bint interim = f.status < 200
    if c == NULL: return
    if f.status == 204 or f.status == 304 or c.phase & BODILESS: f.length = 0
    if f.status == 0 or (end and (interim or f.length > 0)): f.verdict = MALFORMED
    if f.verdict == 0 and not f.begun: _begin_response(f)
    if f.verdict == 0:
        _finish_text(f, not end and not interim and not f.has_length and f.status != 204 and f.status != 304)
    if f.verdict:
        _reset_unlawful(f, stream)
        return
    if not interim:
        c.phase |= HEADED
        c.left = f.length
    if end: c.phase |= ENDED
    head = _known(f)
    f.hooks.response(f.engine, c, &head, end)


cdef void _trailers_done(Framer* f, int32_t stream, bint end) noexcept:
    cdef Conn* c = _conn(f, stream)
    if c == NULL: return
    _finish_text(f, False)
    if c.phase & SPOILT: return
    if f.verdict or not end or c.left > 0:
        _reset_unlawful(f, stream)
        return
    c.phase |= ENDED
    f.hooks.end(f.engine, c, f.text.p, f.text.n if f.text.n > 2 else 0)
