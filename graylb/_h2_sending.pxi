# Of `_h2`: text as header blocks that go, and bodies.

cdef inline void _pair(nghttp2_nv* nv, const char* name, size_t n, const char* value, size_t m, uint8_t flags) noexcept:
    nv.name = <uint8_t*>name
    nv.namelen = n
    nv.value = <uint8_t*>value
    nv.valuelen = m
    nv.flags = flags


cdef bint _left_out(const char* p, size_t name, const char* v, size_t value, nghttp2_nv* host) noexcept:
    """Whether a field is one that HTTP/2 does not send; host, if wanted, gets its value."""
    if host != NULL and name == 4 and memcmp(p, b"host", 4) == 0:
        host.value = <uint8_t*>v
        host.valuelen = value
        return True
    if name == 2: return memcmp(p, b"te", 2) == 0 and not (value == 8 and gl_same(v, b"trailers", 8))
    return _of_connection(p, name)


cdef int _pairs(Before* before, char* p, char* e, nghttp2_nv* nv, nghttp2_nv* host, uint8_t flags) noexcept:
    """Field lines of a text -> pairs; how many, or -1: too many, or no text. host, if wanted, gets that field's value.

    Names are made lower case in place. SLACK bytes behind e may be looked at. flags: of the pairs. before: what went before, and then
    this.
    """
    cdef const Line* line = before.lines
    cdef const Line* last = line + before.n
    cdef char* start = p
    cdef int n = 0, missed = 0
    cdef size_t size
    while p < e and p[0] != 13:
        if n == FIELDS: return -1
        if line < last:
            size = line.name_len + line.value_len + 4
            if size <= <size_t>(e - p) and gl_equal(p, before.text + line.at, size):
                _pair(&nv[n], p, line.name_len, p + line.name_len + 2, line.value_len, flags)
                n += 1
                line += 1
                p += size
                continue
        p = _pair_of(p, e, &nv[n], host, flags)
        if p == NULL: return -1
        if nv[n].name == NULL: continue
        missed += 1
        if line < last and line.name_len == nv[n].namelen \
                and gl_equal(before.text + line.at, <const char*>nv[n].name, line.name_len): line += 1
        n += 1
    if 4 * missed > n: _keep_what_went(before, start, p - start, nv, n)
    return n


cdef char* _pair_of(char* p, char* e, nghttp2_nv* nv, nghttp2_nv* host, uint8_t flags) noexcept:
    """One line -> its pair, without a name if HTTP/2 does not send it; what follows it, or NULL: it is none."""
    cdef char* q = gl_name(p, e)
    cdef char* v = q + 1
    cdef char* z
    cdef size_t name, value
    if q >= e: return NULL
    z = gl_find(v, e + SLACK, 13)
    if z >= e: return NULL
    while v < z and (v[0] == 32 or v[0] == 9): v += 1
    name = q - p
    value = z - v
    while value and (v[value - 1] == 32 or v[value - 1] == 9): value -= 1
    if name <= 17 and PECULIAR >> name & 1 and _left_out(p, name, v, value, host): nv.name = NULL
    else: _pair(nv, p, name, v, value, flags)
    return z + 2


cdef void _keep_what_went(Before* b, const char* text, size_t size, const nghttp2_nv* nv, int n) noexcept:
    """The next one is likely to be the same. What is no line as graylb writes them is not looked for."""
    cdef int i
    cdef Line* line
    if not _keep(b, text, size, n): return
    for i in range(n):
        line = &b.lines[i]
        line.at = <uint32_t>(<const char*>nv[i].name - text)
        line.name_len = <uint32_t>nv[i].namelen
        line.value_len = <uint32_t>nv[i].valuelen
        if nv[i].value != nv[i].name + nv[i].namelen + 2 or (nv[i].value + nv[i].valuelen)[0] != 13: line.value_len = NEVER


cdef ssize_t _read(nghttp2_session* ng, int32_t stream, uint8_t* buf, size_t most, uint32_t* flags, nghttp2_data_source* source,
                   void* user) noexcept:
    """How much of a stream's pending bytes goes into the next DATA frame."""
    cdef Framer* f = <Framer*>user
    cdef Conn* c = _conn(f, stream)
    cdef size_t n, room
    cdef int fields
    if c == NULL: return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    n = min(c.out_len, most)
    if n == 0 and not (c.eof and c.out_len == 0):
        c.deferred = 1
        return NGHTTP2_ERR_DEFERRED
    room = f.room - f.used
    if n + FRAME_HEAD > room and room >= TIGHT: n = room - FRAME_HEAD
    flags[0] = NGHTTP2_DATA_FLAG_NO_COPY
    if c.eof and n == c.out_len:
        flags[0] |= NGHTTP2_DATA_FLAG_EOF
        if c.trailers_len:
            fields = _pairs(&f.went[1], c.trailers, c.trailers + c.trailers_len, _nv, NULL, 0)
            if fields < 0: return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
            if fields:
                flags[0] |= NGHTTP2_DATA_FLAG_NO_END_STREAM
                if nghttp2_submit_trailer(ng, stream, _nv, fields) != 0: return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    return <ssize_t>n


cdef int _send_data(nghttp2_session* ng, nghttp2_frame* frame, const uint8_t* head, size_t n, nghttp2_data_source* source,
                    void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef Conn* c = _conn(f, frame.hd.stream_id)
    if c == NULL or n > c.out_len: return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    if f.used + FRAME_HEAD + n > f.room: return NGHTTP2_ERR_WOULDBLOCK
    memcpy(f.o + f.used, head, FRAME_HEAD)
    if n: memcpy(f.o + f.used + FRAME_HEAD, c.out + c.out_off, n)
    f.used += FRAME_HEAD + n
    _earn(f, EARNED)
    if n == 0: return 0
    c.out_off += n
    c.out_len -= n
    if c.out_len == 0:
        c.out_off = 0
        f.hooks.drained(f.engine, c)
    return 0


cdef int _on_frame_send(nghttp2_session* ng, const nghttp2_frame* frame, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef uint8_t type = frame.hd.type
    cdef Conn* c
    if type == NGHTTP2_HEADERS: _packed(f, frame)
    if type == NGHTTP2_DATA or type == NGHTTP2_HEADERS:
        if f.s.server:
            # answered before the request was complete: the rest of it is not wanted (RFC 9113 section 8.1)
            if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
                if nghttp2_session_get_stream_remote_close(ng, frame.hd.stream_id):
                    _over(f, frame.hd.stream_id)[0] = frame.hd.stream_id
                else: nghttp2_submit_rst_stream(ng, NGHTTP2_FLAG_NONE, frame.hd.stream_id, H2_NO_ERROR)
        elif type == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
            c = _conn(f, frame.hd.stream_id)
            if c != NULL: c.phase |= SENT
    elif type == NGHTTP2_RST_STREAM:
        # resets for which the peer gave reason count as its own ("made you reset")
        if frame.rst_stream.error_code not in (H2_NO_ERROR, H2_INTERNAL_ERROR, H2_REFUSED_STREAM, H2_CANCEL): _reset(f)
    elif type == NGHTTP2_GOAWAY and frame.goaway.error_code != H2_NO_ERROR: f.broken = f.s.ending = 1
    return 0


cdef int _on_frame_not_send(nghttp2_session* ng, const nghttp2_frame* frame, int error, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    if frame.hd.type == NGHTTP2_HEADERS: _packed(f, frame)
    # a head that cannot be sent would leave its stream open for ever
    if frame.hd.type == NGHTTP2_HEADERS and error != NGHTTP2_ERR_STREAM_CLOSED and error != NGHTTP2_ERR_STREAM_CLOSING \
            and (f.s.server or frame.headers.cat != NGHTTP2_HCAT_REQUEST):
        nghttp2_submit_rst_stream(ng, NGHTTP2_FLAG_NONE, frame.hd.stream_id, H2_INTERNAL_ERROR)
    return 0
