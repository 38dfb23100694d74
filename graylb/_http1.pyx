"""HTTP/1 without I/O: the strict head scanner, the law of the message, body coding, head rewriting.

Everything works on bytes in place at C level; the `def` functions at the end are faces for tests, fuzzing and benchmarks.
The law (RFC 9110, RFC 9112) stands here once, for both directions: `_finish_request`, `_finish_response`, `_note`.
A head that came by HTTP/2 has known lines, and is read (`read_…`) where one of HTTP/1 is scanned (`scan_…`).
Scans answer 1 (complete), 0 (more bytes needed) or -1 (refused: `Head.error` holds the code of `graylb.errors`).
"""

from libc.string cimport memchr, memcmp, memcpy, memmove
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE, PyBytes_FromStringAndSize

# Codes of graylb.errors.KINDS; a test compares them.
cdef enum:
    E_BAD_REQUEST = 0
    E_BAD_HOST = 1
    E_BAD_FRAMING = 2
    E_BAD_TARGET = 3
    E_CONNECT = 4
    E_URI_TOO_LONG = 7
    E_EXPECTATION = 8
    E_TOO_LARGE = 9
    E_CODING = 10
    E_VERSION = 11

cdef enum:
    METHOD_MAX = 32

cdef bint same_name(const char* a, const char* low, size_t n) noexcept nogil:
    return gl_same(a, low, n)


# ---- the head scanner ----------------------------------------------------------------------------------------------

cdef int classify(const char* n, size_t size, bint plain) noexcept nogil:
    """Header name -> HeaderId: by length first, so that most names cost one switch. plain: it has nothing but letters, digits and
    `-`."""
    if size == 2:
        if gl_same(n, b"te", 2): return H_TE
    elif size == 3:
        if gl_same(n, b"via", 3): return H_VIA
    elif size == 4:
        if gl_same(n, b"host", 4): return H_HOST
    elif size == 6:
        if gl_same(n, b"cookie", 6): return H_COOKIE
        if gl_same(n, b"accept", 6): return H_ACCEPT
        if gl_same(n, b"expect", 6): return H_EXPECT
    elif size == 7:
        if gl_same(n, b"upgrade", 7): return H_UPGRADE
        if gl_same(n, b"trailer", 7): return H_TRAILER
        if gl_same(n, b"baggage", 7): return H_BAGGAGE
    elif size == 9:
        if gl_same(n, b"forwarded", 9): return H_FORWARDED
    elif size == 10:
        if gl_same(n, b"connection", 10): return H_CONNECTION
        if gl_same(n, b"keep-alive", 10): return H_KEEP_ALIVE
        if gl_same(n, b"user-agent", 10): return H_USER_AGENT
    elif size == 11:
        if gl_same(n, b"grpc-status", 11): return H_GRPC_STATUS
    elif size == 12:
        if gl_same(n, b"content-type", 12): return H_CONTENT_TYPE
        if gl_same(n, b"grpc-timeout", 12): return H_GRPC_TIMEOUT
    elif size == 14:
        if gl_same(n, b"content-length", 14): return H_CONTENT_LENGTH
        if gl_same(n, b"http2-settings", 14): return H_HTTP2_SETTINGS
        if gl_same(n, b"x-graylb-probe", 14) or gl_same(n, b"x-graylb-trail", 14): return H_OTHER  # of services (SDK)
    elif size == 15:
        if gl_same(n, b"x-forwarded-for", 15): return H_XFF
    elif size == 16:
        if gl_same(n, b"x-forwarded-host", 16): return H_XFH
        if gl_same(n, b"proxy-connection", 16): return H_PROXY_CONNECTION
        if gl_same(n, b"sec-ch-ua-mobile", 16): return H_CH_MOBILE
    elif size == 17:
        if gl_same(n, b"transfer-encoding", 17): return H_TRANSFER_ENCODING
        if gl_same(n, b"x-forwarded-proto", 17): return H_XFP
        if gl_same(n, b"x-service-version", 17): return H_MARK
    elif size == 23:
        if gl_same(n, b"x-forwarded-client-cert", 23): return H_XFCC
    if not plain and memchr(n, 95, size) != NULL: return H_UNDERSCORE
    if size > 9 and gl_same(n, b"x-graylb-", 9): return H_GRAYLB
    return H_OTHER


cdef int _content_length(Head* h, Header* x) noexcept nogil:
    cdef size_t i
    cdef int64_t n = 0
    if h.content_length >= 0 or x.value_len == 0: return E_BAD_FRAMING
    if x.value_len > 1 and x.value[0] == 48: x.use = DROP      # leading zeros: written anew
    for i in range(x.value_len):
        if x.value[i] < 48 or x.value[i] > 57: return E_BAD_FRAMING
        if n > 100000000000000000LL: return E_BAD_FRAMING
        n = n * 10 + (x.value[i] - 48)
    h.content_length = n
    return -1


cdef void _connection(Head* h, Header* x) noexcept nogil:
    cdef const char* p = x.value
    cdef const char* e = p + x.value_len
    cdef const char* q
    while p < e:
        while p < e and (p[0] == 32 or p[0] == 44 or p[0] == 9): p += 1
        q = p
        while p < e and p[0] != 44 and p[0] != 32 and p[0] != 9: p += 1
        if p - q == 5 and gl_same(q, b"close", 5): h.close = 1
        elif p - q == 10 and gl_same(q, b"keep-alive", 10): h.keep_alive = 1
        elif p - q == 7 and gl_same(q, b"upgrade", 7): h.asks_upgrade = 1
        elif p > q: h.has_tokens = 1


cdef int _note(Head* h, Header* x) noexcept nogil:
    """What one known header means for framing and forwarding; -1 fine, else the error's code."""
    cdef int id = x.id
    if id == H_CONTENT_LENGTH: return _content_length(h, x)
    if id == H_TRANSFER_ENCODING:
        x.use = DROP
        if h.chunked: return E_BAD_FRAMING
        if not (x.value_len == 7 and gl_same(x.value, b"chunked", 7)): return E_CODING
        h.chunked = 1
    elif id == H_CONNECTION:
        x.use = DROP
        _connection(h, x)
    elif id == H_KEEP_ALIVE or id == H_PROXY_CONNECTION or id == H_HTTP2_SETTINGS or id == H_TRAILER:
        x.use = DROP
    elif id == H_UNDERSCORE:
        # to a CGI-like upstream `x_a` is `x-a`: a way around rules; answers have no such reader
        if not h.is_response: x.use = DROP
    elif id == H_UPGRADE:
        x.use = DROP
        h.websocket = not h.upgrade and x.value_len == 9 and gl_same(x.value, b"websocket", 9)
        h.upgrade = 1
    elif id == H_TE:
        # only `trailers` survives the hop (RFC 9110 10.1.4)
        x.use = DROP
    elif id == H_HOST:
        h.hosts += 1
        if not h.absolute:
            h.host = x.value
            h.host_len = x.value_len
    elif id == H_EXPECT:
        if x.value_len == 12 and gl_same(x.value, b"100-continue", 12): h.expect_continue = 1
        elif not h.is_response: return E_EXPECTATION
    elif id == H_CONTENT_TYPE:
        if not h.typed and x.value_len >= 16 and gl_same(x.value, b"application/grpc", 16):
            h.is_grpc = GRPC_WEB if x.value_len >= 20 and gl_same(x.value + 16, b"-web", 4) else GRPC
        h.typed = 1
    return -1


cdef void reset_head(Head* h, int limit) noexcept nogil:
    h.content_length = -1
    h.count = h.status = 0
    h.minor = 1
    h.is_head = h.chunked = h.close = h.keep_alive = h.has_tokens = h.expect_continue = 0
    h.is_response = h.upgrade = h.asks_upgrade = h.websocket = h.is_grpc = h.typed = h.absolute = h.hosts = 0
    h.host = h.query = h.path = NULL
    h.host_len = h.query_len = h.path_len = h.target_len = 0
    h.error = E_BAD_REQUEST
    h.limit = limit if limit < MAX_HEADERS else MAX_HEADERS


cdef int _refuse(Head* h, int code) noexcept nogil:
    h.error = code
    return -1


cdef int _scan_fields(Head* h, const char* p, const char* e) noexcept nogil:
    """Field lines up to the blank line: token names, no space before the colon, no folding, no bare CR or LF."""
    cdef const char* q
    cdef const char* v
    cdef Header* x
    cdef int code
    cdef bint plain
    while True:
        if e - p < 2: return 0
        if p[0] == 13:
            if p[1] != 10: return _refuse(h, E_BAD_REQUEST)
            h.end = p + 2
            return 1
        if h.count >= h.limit: return _refuse(h, E_TOO_LARGE)
        x = &h.headers[h.count]
        q = gl_skip_plain(p, e)
        plain = q < e and q[0] == 58
        if not plain: q = gl_skip_token(q, e)
        if q == e: return 0
        if q[0] != 58 or q == p: return _refuse(h, E_BAD_REQUEST)
        x.name = p
        x.name_len = <uint32_t>(q - p)
        v = q + 1
        while v < e and (v[0] == 32 or v[0] == 9): v += 1
        x.use = RUN if v == q + 2 and q[1] == 32 else EMIT
        q = gl_skip_value(v, e)
        if e - q < 2:
            if q < e and q[0] != 13: return _refuse(h, E_BAD_REQUEST)
            return 0
        if q[0] != 13 or q[1] != 10: return _refuse(h, E_BAD_REQUEST)
        p = q + 2
        while q > v and ((q - 1)[0] == 32 or (q - 1)[0] == 9):
            q -= 1
            x.use = EMIT
        x.value = v
        x.value_len = <uint32_t>(q - v)
        x.id = classify(x.name, x.name_len, plain)
        if x.id:
            code = _note(h, x)
            if code >= 0: return _refuse(h, code)
        h.count += 1


cdef int _take_lines(Head* h, const KnownHead* k) noexcept nogil:
    """What `_scan_fields` does, where the lines are known."""
    cdef const Line* line = k.lines
    cdef const Line* e = line + k.count
    cdef Header* x = h.headers
    cdef int code
    if k.count > h.limit: e = line + h.limit
    while line < e:
        h.count += 1
        x.name = k.text + line.at
        x.name_len = line.name_len
        x.value = x.name + line.name_len + 2
        x.value_len = line.value_len
        x.id = <uint16_t>line.id
        x.use = RUN
        if x.id:
            code = _note(h, x)
            if code >= 0: return _refuse(h, code)
        x += 1
        line += 1
    if k.count > h.limit: return _refuse(h, E_TOO_LARGE)
    h.end = k.text + k.n
    return 1


cdef extern from * nogil:
    """
    /* characters of a host's name */
    static const unsigned char GL_HOST[256] = {
      ['0' ... '9'] = 1, ['a' ... 'z'] = 1, ['A' ... 'Z'] = 1, ['-'] = 1, ['.'] = 1, ['_'] = 1};
    """
    const unsigned char* GL_HOST

cdef bint _valid_host(const char* p, size_t n) noexcept nogil:
    """host [":" port] (RFC 9112 3.2): reg-name characters or a bracketed IPv6 literal; no userinfo, no list."""
    cdef size_t i = 0
    cdef int port = 0
    cdef unsigned char c
    if n == 0 or n > 255: return False
    if p[0] == 91:
        i = 1
        while i < n and p[i] != 93:
            c = <unsigned char>p[i]
            if not (c == 58 or c == 46 or (48 <= c <= 57) or (97 <= gl_lower(c) <= 102)): return False
            i += 1
        if i == n or i < 3: return False
        i += 1
    else:
        while i < n and GL_HOST[<unsigned char>p[i]]: i += 1
        if i == 0: return False
    if i == n: return True
    if p[i] != 58 or n - i > 6: return False
    i += 1
    while i < n:
        if p[i] < 48 or p[i] > 57: return False
        port = port * 10 + (p[i] - 48)
        i += 1
    return port < 65536


cdef int _split_target(Head* h) noexcept nogil:
    """Origin, absolute or asterisk form -> path, query, host (RFC 9112 section 3.2); -1 fine, else an error code."""
    cdef const char* p = h.target
    cdef const char* e = p + h.target_len
    cdef const char* q
    if h.method_len == 7 and memcmp(h.method, b"CONNECT", 7) == 0: return E_CONNECT
    if p[0] != 47:
        if h.target_len == 1 and p[0] == 42:
            if not (h.method_len == 7 and memcmp(h.method, b"OPTIONS", 7) == 0): return E_BAD_TARGET
        elif h.target_len > 7 and gl_same(p, b"http://", 7): p += 7
        elif h.target_len > 8 and gl_same(p, b"https://", 8): p += 8
        else: return E_BAD_TARGET
        if p != h.target:
            h.absolute = 1
            q = p
            while q < e and q[0] != 47 and q[0] != 63: q += 1
            h.host = p
            h.host_len = <uint32_t>(q - p)
            if not _valid_host(p, h.host_len): return E_BAD_TARGET
            p = q
    q = <const char*>memchr(p, 63, e - p) if p < e else NULL
    if q == NULL: q = e
    else:
        h.query = q + 1
        h.query_len = <uint32_t>(e - q - 1)
    h.path = p
    h.path_len = <uint32_t>(q - p)
    if h.path_len == 0:                      # http://host or http://host?query
        h.path = b"/"
        h.path_len = 1
    return -1


cdef bint _te_trailers(Header* x) noexcept nogil:
    return x.value_len == 8 and gl_same(x.value, b"trailers", 8)


cdef bint _protected(Header* x) noexcept nogil:
    """Headers that a Connection header may not remove: they frame, route or testify."""
    cdef int id = x.id
    return id == H_HOST or id == H_CONTENT_LENGTH or id == H_FORWARDED or id == H_VIA or id == H_MARK \
        or id == H_BAGGAGE or id == H_EXPECT or (x.name_len > 12 and gl_same(x.name, b"x-forwarded-", 12))


cdef void _drop_named(Head* h) noexcept nogil:
    """Removes what Connection names (RFC 9110 section 7.6.1)."""
    cdef int i, j
    cdef const char* p
    cdef const char* e
    cdef const char* q
    cdef size_t k, n
    for i in range(h.count):
        if h.headers[i].id != H_CONNECTION: continue
        p = h.headers[i].value
        e = p + h.headers[i].value_len
        while p < e:
            while p < e and (p[0] == 32 or p[0] == 44 or p[0] == 9): p += 1
            q = p
            while p < e and p[0] != 44 and p[0] != 32 and p[0] != 9: p += 1
            n = p - q
            if n == 0: continue
            for j in range(h.count):
                if h.headers[j].name_len != n or _protected(&h.headers[j]): continue
                k = 0
                while k < n and gl_lower(<unsigned char>h.headers[j].name[k]) == gl_lower(<unsigned char>q[k]): k += 1
                if k == n: h.headers[j].use = DROP


cdef int _finish_request(Head* h) noexcept nogil:
    """The law that needs the whole head: framing, Host, Connection."""
    if h.chunked and h.content_length >= 0: return _refuse(h, E_BAD_FRAMING)
    if h.chunked and h.minor == 0: return _refuse(h, E_BAD_FRAMING)
    if h.hosts > 1 or (h.hosts == 0 and h.minor == 1): return _refuse(h, E_BAD_HOST)
    if h.hosts == 0 and not h.absolute:      # HTTP/1.0 may leave it out; it routes as the empty host
        h.host = b""
        h.host_len = 0
    elif not _valid_host(h.host, h.host_len): return _refuse(h, E_BAD_HOST)
    if h.absolute and not _same_authority(h): return _refuse(h, E_BAD_HOST)
    # An upgrade whose body no parser would frame the same way (hazard 1): refused.
    if h.upgrade and (h.chunked or h.content_length > 0): return _refuse(h, E_BAD_FRAMING)
    # only WebSocket is tunnelled (RFC 6455 section 4.1); any other offer is left out and the request goes on as it is
    h.websocket = h.websocket and h.asks_upgrade and h.minor == 1 and h.method_len == 3 and memcmp(h.method, b"GET", 3) == 0
    if h.has_tokens: _drop_named(h)
    return 1


cdef bint _same_authority(Head* h) noexcept nogil:
    """The absolute form's authority against the Host header: equal but for case."""
    cdef int i
    cdef size_t k
    for i in range(h.count):
        if h.headers[i].id == H_HOST:
            if h.headers[i].value_len != h.host_len: return False
            for k in range(h.host_len):
                if gl_lower(<unsigned char>h.headers[i].value[k]) != gl_lower(<unsigned char>h.host[k]): return False
    return True


cdef inline void _method(Head* h, const char* p, size_t n) noexcept nogil:
    h.method = p
    h.method_len = <uint32_t>n
    h.is_head = n == 4 and memcmp(p, b"HEAD", 4) == 0


cdef int _request_line(Head* h, const char* p, const char* e) noexcept nogil:
    """Up to the first field line."""
    cdef const char* q
    cdef int r
    h.start = p
    q = gl_skip_token(p, e)
    if q == e: return 0 if q - p <= METHOD_MAX else _refuse(h, E_BAD_REQUEST)
    if q[0] != 32 or q == p or q - p > METHOD_MAX: return _refuse(h, E_BAD_REQUEST)
    _method(h, p, q - p)
    p = q + 1
    q = gl_skip_target(p, e)
    h.target = p
    h.target_len = <uint32_t>(q - p)
    if q == e: return 0
    if q[0] != 32 or q == p: return _refuse(h, E_BAD_REQUEST)
    if e - q < 11: return 0 if gl_skip_value(q, e) >= e - 2 else _refuse(h, E_BAD_REQUEST)
    if memcmp(q + 1, b"HTTP/", 5) != 0 or q[9] != 13 or q[10] != 10: return _refuse(h, E_BAD_REQUEST)
    if memcmp(q + 6, b"1.", 2) != 0 or (q[8] | 1) != 49: return _refuse(h, E_VERSION)
    h.minor = q[8] - 48
    h.fields = q + 11
    r = _split_target(h)
    return _refuse(h, r) if r >= 0 else 1


cdef int scan_request(Head* h, const char* p, const char* e, int limit) noexcept nogil:
    """Scans one request head from [p, e). The caller bounds e - p by the head limit."""
    cdef int r
    reset_head(h, limit)
    r = _request_line(h, p, e)
    if r == 1: r = _scan_fields(h, h.fields, e)
    return r if r != 1 else _finish_request(h)


cdef int read_request(Head* h, const KnownHead* k, int limit) noexcept nogil:
    """The same of a head whose lines are known."""
    cdef int r
    reset_head(h, limit)
    h.start = k.text
    if k.method_len > METHOD_MAX: return _refuse(h, E_BAD_REQUEST)
    _method(h, k.text, k.method_len)
    h.target = k.text + k.method_len + 1
    h.target_len = k.target_len
    h.fields = h.target + k.target_len + 11
    r = _split_target(h)
    if r >= 0: return _refuse(h, r)
    r = _take_lines(h, k)
    return r if r != 1 else _finish_request(h)


cdef int _status_line(Head* h, const char* p, const char* e) noexcept nogil:
    """Up to the first field line."""
    cdef const char* q
    cdef int i
    h.is_response = 1
    h.start = p
    # what cannot become a status line is refused at once: waiting for more of it would be waiting for the timeout
    if memcmp(p, b"HTTP/1.", 7 if e - p > 7 else e - p) != 0: return -1
    if e - p < 15: return 0
    if p[8] != 32 or (p[7] | 1) != 49: return -1
    h.minor = p[7] - 48
    for i in range(9, 12):
        if p[i] < 48 or p[i] > 57: return -1
    h.status = (p[9] - 48) * 100 + (p[10] - 48) * 10 + (p[11] - 48)
    if h.status < 100 or h.status > 599: return -1
    if p[12] != 32 and p[12] != 13: return -1
    q = gl_skip_value(p + 12, e)
    if e - q < 2: return 0 if q == e or q[0] == 13 else -1
    if q[0] != 13 or q[1] != 10: return -1
    h.reason = p + 13
    h.reason_len = <uint32_t>(q - p - 13) if q > p + 13 else 0
    h.fields = q + 2
    return 1


cdef int scan_response(Head* h, const char* p, const char* e, int limit) noexcept nogil:
    """Scans one response head from [p, e)."""
    cdef int r
    reset_head(h, limit)
    r = _status_line(h, p, e)
    if r == 1: r = _scan_fields(h, h.fields, e)
    return r if r != 1 else _finish_response(h)


cdef int read_response(Head* h, const KnownHead* k, int limit) noexcept nogil:
    """The same of a head whose lines are known."""
    cdef int r
    reset_head(h, limit)
    r = _status_line(h, k.text, k.text + k.n)
    if r == 1: r = _take_lines(h, k)
    return r if r != 1 else _finish_response(h)


cdef int _finish_response(Head* h) noexcept nogil:
    if h.chunked and h.content_length >= 0: return -1      # a smuggler's answer (RFC 9112 6.3): refused
    if h.chunked and h.minor == 0: return -1
    h.websocket = h.websocket and h.asks_upgrade and h.minor == 1 and h.status == 101
    if h.has_tokens: _drop_named(h)
    return 1


cdef bint find_blank_line(const char* p, const char* e) noexcept nogil:
    """Whether CR LF CR LF ends somewhere in [p, e): the cheap look that keeps a slow sender from costing a rescan."""
    cdef const char* q = p
    while True:
        q = <const char*>memchr(q, 10, e - q) if q < e else NULL
        if q == NULL or e - q < 3: return False
        if q[1] == 13 and q[2] == 10: return True
        q += 1


# ---- bodies --------------------------------------------------------------------------------------------------------

cdef enum:
    C_SIZE_START = 0
    C_SIZE
    C_EXT
    C_SIZE_LF
    C_DATA
    C_DATA_CR
    C_DATA_LF
    C_TRAILER_START
    C_TRAILER_NAME
    C_TRAILER_VALUE
    C_TRAILER_LF
    C_END_LF
    LINE_LIMIT = 8192      # extensions and trailers between two data bytes

cdef void start_body(Body* b, uint8_t kind, int64_t length) noexcept nogil:
    """Readies a decoder; a LENGTH body of 0 is NONE."""
    b.kind = BODY_NONE if kind == BODY_LENGTH and length == 0 else kind
    b.state = C_SIZE_START
    b.line = 0
    b.left = length if kind == BODY_LENGTH else 0


cdef int decode_body(Body* b, char* p, size_t n, Piece* out) noexcept nogil:
    """Takes what of [p, p+n) belongs to the body. Data is left in place or moved down to be contiguous. -1: malformed."""
    out.data = p
    out.length = out.used = 0
    out.done = b.kind == BODY_NONE
    if b.kind == BODY_NONE: return 0
    if b.kind == BODY_CLOSE:
        out.length = out.used = n
        return 0
    if b.kind == BODY_LENGTH:
        if <int64_t>n > b.left: n = b.left
        b.left -= n
        out.length = out.used = n
        if b.left == 0:
            b.kind = BODY_NONE
            out.done = True
        return 0
    return _decode_chunked(b, p, n, out)


cdef int _hex(int c) noexcept nogil:
    if 48 <= c <= 57: return c - 48
    c |= 32
    if 97 <= c <= 102: return c - 87
    return -1


cdef int _decode_chunked(Body* b, char* p, size_t n, Piece* out) noexcept nogil:
    """RFC 9112 section 7.1: extensions are skipped, trailers checked and dropped."""
    cdef size_t i = 0, k
    cdef int c, x
    while i < n:
        if b.state == C_DATA:
            k = n - i
            if <int64_t>k > b.left: k = b.left
            if out.length == 0: out.data = p + i
            elif out.data + out.length != p + i: memmove(out.data + out.length, p + i, k)
            out.length += k
            i += k
            b.left -= k
            b.line = 0
            if b.left == 0: b.state = C_DATA_CR
            continue
        c = <unsigned char>p[i]
        i += 1
        b.line += 1
        if b.line > LINE_LIMIT: return -1
        x = _chunk_step(b, c)
        if x < 0: return -1
        if x:
            b.kind = BODY_NONE
            out.done = True
            break
    out.used = i
    return 0


cdef int _chunk_step(Body* b, int c) noexcept nogil:
    """One framing byte: 0 go on, 1 the message ends with it, -1 malformed."""
    cdef int s = b.state, x
    if s == C_SIZE_START or s == C_SIZE:
        x = _hex(c)
        if x >= 0:
            if b.left >> 56: return -1
            b.left = b.left * 16 + x
            b.state = C_SIZE
            return 0
        if s == C_SIZE_START: return -1
        if c == 13: b.state = C_SIZE_LF
        elif c == 59: b.state = C_EXT
        else: return -1
    elif s == C_EXT:
        if c == 13: b.state = C_SIZE_LF
        elif not gl_is_value(<unsigned char>c): return -1
    elif s == C_SIZE_LF:
        if c != 10: return -1
        b.state = C_DATA if b.left else C_TRAILER_START
    elif s == C_DATA_CR:
        if c != 13: return -1
        b.state = C_DATA_LF
    elif s == C_DATA_LF:
        if c != 10: return -1
        b.state = C_SIZE_START
    elif s == C_TRAILER_START:
        if c == 13: b.state = C_END_LF
        elif GL_TOKEN[c]: b.state = C_TRAILER_NAME
        else: return -1
    elif s == C_TRAILER_NAME:
        if c == 58: b.state = C_TRAILER_VALUE
        elif not GL_TOKEN[c]: return -1
    elif s == C_TRAILER_VALUE:
        if c == 13: b.state = C_TRAILER_LF
        elif not gl_is_value(<unsigned char>c): return -1
    elif s == C_TRAILER_LF:
        if c != 10: return -1
        b.state = C_TRAILER_START
    elif s == C_END_LF:
        return 1 if c == 10 else -1
    return 0


cdef char* put_line(char* e, const char* line, size_t n) noexcept nogil:
    """Adds a line, `name: value` with its end, to a written head, of which e is the end; its new end. Before `put_timeout`,
    whose line has to be the last."""
    memcpy(e - 2, line, n)
    memcpy(e + n - 2, b"\r\n", 2)
    return e + n


cdef char* chunk_head(char* data, size_t n) noexcept nogil:
    """Writes `HEX CRLF` right before data (18 bytes of room) and returns where it begins."""
    cdef char* o = data - 2
    o[0] = 13
    o[1] = 10
    while n:
        o -= 1
        o[0] = b"0123456789abcdef"[n & 15]
        n >>= 4
    return o


# ---- head rewriting ------------------------------------------------------------------------------------------------

cdef inline char* _put(char* o, const char* p, size_t n) noexcept nogil:
    memcpy(o, p, n)
    return o + n


cdef char* _number(char* o, uint64_t n) noexcept nogil:
    cdef char digits[20]
    cdef int i = 20
    while True:
        i -= 1
        digits[i] = <char>(48 + n % 10)
        n //= 10
        if n == 0: break
    return _put(o, digits + i, 20 - i)


cdef char* _fields(Head* h, char* o, const uint8_t* dropped) noexcept nogil:
    """Copies the forwarded field lines, whole runs at a time. dropped[id] != 0 leaves that header out."""
    cdef int i
    cdef Header* x
    cdef const char* run = NULL
    cdef bint keep
    for i in range(h.count):
        x = &h.headers[i]
        keep = x.use == RUN and not dropped[x.id]
        if keep:
            if run == NULL: run = x.name
            continue
        if run != NULL:
            # what stands outside of the message was added to it, behind all that arrived
            o = _put(o, run, (x.name if h.start <= x.name < h.end else h.end - 2) - run)
            run = NULL
        if x.use == EMIT and not dropped[x.id]:
            o = _put(o, x.name, x.name_len)
            o = _put(o, b": ", 2)
            o = _put(o, x.value, x.value_len)
            o = _put(o, b"\r\n", 2)
    if run != NULL: o = _put(o, run, h.end - 2 - run)
    return o


cdef bint _has(Head* h, int id) noexcept nogil:
    cdef int i
    for i in range(h.count):
        if h.headers[i].id == id: return True
    return False


cdef char* _joined(Head* h, char* o, int id) noexcept nogil:
    """All values of one header, each followed by a comma."""
    cdef int i
    for i in range(h.count):
        if h.headers[i].id == id and h.headers[i].value_len:
            o = _put(o, h.headers[i].value, h.headers[i].value_len)
            o = _put(o, b", ", 2)
    return o


cdef char* _tell_forwarded(Head* h, char* o, ForwardingPolicy* policy, Client* client) noexcept nogil:
    cdef bint quoted
    if policy.x_forwarded:
        o = _put(o, b"x-forwarded-for: ", 17)
        if policy.x_forwarded == 1: o = _joined(h, o, H_XFF)
        o = _put(o, client.address, client.address_len) if client.address_len else _put(o, b"unix:", 5)
        if policy.x_forwarded == 2 or not _has(h, H_XFP):
            o = _put(o, b"\r\nx-forwarded-proto: ", 21)
            o = _put(o, client.scheme, client.scheme_len)
        if h.host_len and (policy.x_forwarded == 2 or not _has(h, H_XFH)):
            o = _put(o, b"\r\nx-forwarded-host: ", 20)
            o = _put(o, h.host, h.host_len)
        o = _put(o, b"\r\n", 2)
    if policy.forwarded:                     # RFC 7239: an IPv6 address is bracketed and quoted
        o = _put(o, b"forwarded: ", 11)
        if policy.forwarded == 1: o = _joined(h, o, H_FORWARDED)
        quoted = memchr(client.address, 58, client.address_len) != NULL
        o = _put(o, b"for=\"[", 6) if quoted else _put(o, b"for=", 4)
        o = _put(o, client.address, client.address_len) if client.address_len else _put(o, b"unknown", 7)
        if quoted: o = _put(o, b"]\"", 2)
        if h.host_len:
            o = _put(o, b";host=\"", 7)
            o = _put(o, h.host, h.host_len)
            o = _put(o, b"\"", 1)
        o = _put(o, b";proto=", 7)
        o = _put(o, client.scheme, client.scheme_len)
        o = _put(o, b"\r\n", 2)
    if client.certificate_len:
        o = _put(o, b"x-forwarded-client-cert: ", 25)
        o = _put(o, client.certificate, client.certificate_len)
        o = _put(o, b"\r\n", 2)
    if policy.via: o = _put(o, b"via: 1.1 graylb\r\n", 17) if h.minor else _put(o, b"via: 1.0 graylb\r\n", 17)
    return o


cdef char* write_request(Head* h, char* o, ForwardingPolicy* policy, Client* client, uint8_t body_kind,
                         const char* strip, size_t strip_len, const char* prefix, size_t prefix_len) noexcept nogil:
    """The head as the upstream gets it. Room needed: the head's length twice (forwarding headers repeat what came) + 1 KiB.

    strip_len > 0 or prefix_len > 0 replaces the first strip_len bytes of the path by prefix (a route's rewrite).
    """
    cdef uint8_t dropped[32]
    cdef const char* rest = h.path + strip_len
    cdef size_t rest_len = h.path_len - strip_len
    cdef int i
    for i in range(32): dropped[i] = 0
    if policy.x_forwarded: dropped[<int>H_XFF] = 1
    if policy.x_forwarded == 2: dropped[<int>H_XFP] = dropped[<int>H_XFH] = 1
    if policy.forwarded: dropped[<int>H_FORWARDED] = 1
    dropped[<int>H_XFCC] = 1                 # who showed no certificate must not tell of one
    dropped[<int>H_GRAYLB] = 1               # these are ours to say
    if h.minor == 0: dropped[<int>H_EXPECT] = 1
    o = _put(o, h.method, h.method_len)
    o = _put(o, b" ", 1)
    if prefix_len:
        o = _put(o, prefix, prefix_len)
        if prefix[prefix_len - 1] == 47 and rest_len and rest[0] == 47:
            rest += 1
            rest_len -= 1
    elif rest_len == 0 or (rest[0] != 47 and rest[0] != 42): o = _put(o, b"/", 1)
    o = _put(o, rest, rest_len)
    if h.query != NULL:
        o = _put(o, b"?", 1)
        o = _put(o, h.query, h.query_len)
    o = _put(o, b" HTTP/1.1\r\n", 11)
    if h.hosts == 0:
        o = _put(o, b"host: ", 6)
        o = _put(o, h.host, h.host_len)
        o = _put(o, b"\r\n", 2)
    o = _fields(h, o, dropped)
    for i in range(h.count):
        # beside a handshake's own Connection it would be a second line, of which some servers read only one
        if h.headers[i].id == H_TE and not h.websocket and _te_trailers(&h.headers[i]):
            o = _put(o, b"te: trailers\r\nconnection: te\r\n", 30)
            break
    o = _tell_forwarded(h, o, policy, client)
    if h.websocket: o = _put(o, b"connection: upgrade\r\nupgrade: websocket\r\n", 41)
    return _framing(h, o, body_kind)


cdef char* _framing(Head* h, char* o, uint8_t body_kind) noexcept nogil:
    """The framing headers that the copied fields lack, then the blank line."""
    cdef int i
    if body_kind == BODY_CHUNKED: o = _put(o, b"transfer-encoding: chunked\r\n", 28)
    elif h.content_length >= 0:
        for i in range(h.count):
            if h.headers[i].id == H_CONTENT_LENGTH and h.headers[i].use == DROP:
                o = _put(o, b"content-length: ", 16)
                o = _number(o, h.content_length)
                o = _put(o, b"\r\n", 2)
    return _put(o, b"\r\n", 2)


cdef char* write_response(Head* h, char* o, uint8_t body_kind, int connection, bint via,
                          const char* extra, size_t extra_len) noexcept nogil:
    """The head as the client gets it. connection: 0 say nothing, 1 `close`, 2 `keep-alive` (HTTP/1.0 clients).

    extra: whole field lines to add; then the instance's own x-graylb-* lines are left out.
    """
    cdef uint8_t dropped[32]
    cdef int i
    for i in range(32): dropped[i] = 0
    if extra_len: dropped[<int>H_GRAYLB] = 1
    o = _put(o, b"HTTP/1.1 ", 9)
    o = _number(o, h.status)
    o = _put(o, b" ", 1)
    o = _put(o, h.reason, h.reason_len)
    o = _put(o, b"\r\n", 2)
    o = _fields(h, o, dropped)
    if via: o = _put(o, b"via: 1.1 graylb\r\n", 17) if h.minor else _put(o, b"via: 1.0 graylb\r\n", 17)
    if extra_len: o = _put(o, extra, extra_len)
    if connection == 1: o = _put(o, b"connection: close\r\n", 19)
    elif connection == 2: o = _put(o, b"connection: keep-alive\r\n", 24)
    elif h.websocket: o = _put(o, b"connection: upgrade\r\nupgrade: websocket\r\n", 41)
    return _framing(h, o, body_kind)


# ---- faces for tests, fuzzing and benchmarks -----------------------------------------------------------------------

cdef bytes _text(const char* p, size_t n):
    return PyBytes_FromStringAndSize(p, n) if p != NULL else b""


cdef dict _view(Head* h, bint request):
    cdef int i
    fields = []
    for i in range(h.count):
        x = h.headers[i]
        fields.append((_text(x.name, x.name_len), _text(x.value, x.value_len), x.use != DROP))
    out = {
        "used": h.end - h.start, "minor": h.minor, "headers": fields, "chunked": bool(h.chunked),
        "content_length": h.content_length if h.content_length >= 0 else None, "close": bool(h.close),
        "keep_alive": bool(h.keep_alive),
    }
    if request:
        out.update(method=_text(h.method, h.method_len), path=_text(h.path, h.path_len),
                   query=_text(h.query, h.query_len) if h.query != NULL else None,
                   host=_text(h.host, h.host_len), grpc=bool(h.is_grpc), grpc_web=h.is_grpc == GRPC_WEB, websocket=bool(h.websocket))
    else:
        out.update(status=h.status, reason=_text(h.reason, h.reason_len), websocket=bool(h.websocket))
    return out


cdef bint read_as_scanned(const KnownHead* k, bint request):
    """Whether `read_…` makes of a head what `scan_…` makes of its text."""
    cdef Head a, b
    cdef int i
    cdef int read = read_request(&a, k, MAX_HEADERS) if request else read_response(&a, k, MAX_HEADERS)
    cdef int scanned = scan_request(&b, k.text, k.text + k.n, MAX_HEADERS) if request \
        else scan_response(&b, k.text, k.text + k.n, MAX_HEADERS)
    if read != scanned or a.error != b.error: return False
    if read < 0: return True
    if _view(&a, request) != _view(&b, request): return False
    return not any([a.headers[i].id != b.headers[i].id or a.headers[i].use != b.headers[i].use for i in range(a.count)])


def parse_request(bytes data, int limit=100):
    """A request head -> dict, None when incomplete, or the error's code as an int (graylb.errors)."""
    cdef Head h
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef int r = scan_request(&h, p, p + PyBytes_GET_SIZE(data), limit)
    if r == 0: return None
    return _view(&h, True) if r == 1 else h.error


def parse_response(bytes data, int limit=100):
    """A response head -> dict, None when incomplete, -1 when refused."""
    cdef Head h
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef int r = scan_response(&h, p, p + PyBytes_GET_SIZE(data), limit)
    if r == 0: return None
    return _view(&h, False) if r == 1 else -1


def rewrite_request(bytes data, str address="127.0.0.1", str x_forwarded="append", str forwarded="off", bint via=False,
                    bytes strip=b"", bytes prefix=b""):
    """The bytes that an upstream would get for this head.

    ValueError when the head is refused or incomplete, or strip is longer than its path.
    """
    cdef Head h
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef ForwardingPolicy policy
    cdef Client client
    modes = {"off": 0, "append": 1, "replace": 2}
    if scan_request(&h, p, p + PyBytes_GET_SIZE(data), MAX_HEADERS) != 1: raise ValueError("not a request head")
    if <size_t>len(strip) > h.path_len: raise ValueError(f"strip {strip!r}: longer than the path")
    policy.x_forwarded = modes[x_forwarded]
    policy.forwarded = modes[forwarded]
    policy.via = via
    raw = address.encode()
    client.address = PyBytes_AS_STRING(raw)
    client.address_len = <uint32_t>PyBytes_GET_SIZE(raw)
    client.scheme = b"http"
    client.scheme_len = 4
    client.certificate_len = 0
    out = bytearray(3 * len(data) + 4096 + len(prefix))
    cdef char* o = out
    cdef char* e = write_request(&h, o, &policy, &client, BODY_CHUNKED if h.chunked else BODY_NONE,
                                 PyBytes_AS_STRING(strip), len(strip), PyBytes_AS_STRING(prefix), len(prefix))
    return bytes(out[:e - o])


def rewrite_response(bytes data, int connection=0, bint via=False, bytes extra=b""):
    """The bytes that a client would get for this head; ValueError when the head is refused or incomplete."""
    cdef Head h
    cdef const char* p = PyBytes_AS_STRING(data)
    if scan_response(&h, p, p + PyBytes_GET_SIZE(data), MAX_HEADERS) != 1: raise ValueError("not a response head")
    out = bytearray(2 * len(data) + 4096 + len(extra))
    cdef char* o = out
    cdef char* e = write_response(&h, o, BODY_CHUNKED if h.chunked else BODY_NONE, connection, via,
                                  PyBytes_AS_STRING(extra), len(extra))
    return bytes(out[:e - o])


cdef class BodyDecoder:
    """decode_body as an object: feed(bytes) -> data; `done`, `used` (bytes of the last feed that belonged to the body)."""

    cdef Body body
    cdef readonly bint done
    cdef readonly size_t used

    def __init__(self, str kind, int64_t length=0):
        if length < 0: raise ValueError(f"length {length}: expected 0 or more")
        start_body(&self.body, {"length": BODY_LENGTH, "chunked": BODY_CHUNKED, "close": BODY_CLOSE}[kind], length)
        self.done = self.body.kind == BODY_NONE

    def feed(self, bytes data):
        cdef bytearray work = bytearray(data)
        cdef char* p = work
        cdef Piece piece
        if decode_body(&self.body, p, len(work), &piece) < 0: raise ValueError("malformed body")
        self.done = piece.done
        self.used = piece.used
        return piece.data[:piece.length]


def encode_chunk(bytes data):
    """One chunk of the chunked coding; ValueError without data, for a chunk of size 0 ends the body."""
    if not data: raise ValueError("empty data is no chunk")
    cdef bytearray work = bytearray(24 + len(data))
    cdef char* p = work
    memcpy(p + 24, PyBytes_AS_STRING(data), len(data))
    cdef char* o = chunk_head(p + 24, len(data))
    return bytes(work[o - p:]) + b"\r\n"


def bench_scan(bytes data, int n):
    """Nanoseconds for one scan of this request head, over n scans."""
    import time
    cdef Head h
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef const char* e = p + PyBytes_GET_SIZE(data)
    cdef int i, ok = 0
    begin = time.perf_counter_ns()
    for i in range(n): ok += scan_request(&h, p, e, 100)
    took = time.perf_counter_ns() - begin
    if ok != n: raise ValueError("not a request head")
    return took / n


def bench_write(bytes data, int n):
    """Nanoseconds for writing this request's head as an instance gets it, on default forwarding, over n times."""
    import time
    cdef Head h
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef ForwardingPolicy policy
    cdef Client client
    cdef int i
    if scan_request(&h, p, p + PyBytes_GET_SIZE(data), MAX_HEADERS) != 1: raise ValueError("not a request head")
    policy.x_forwarded, policy.forwarded, policy.via = 1, 0, False
    client.address, client.address_len = b"127.0.0.1", 9
    client.scheme, client.scheme_len = b"http", 4
    client.certificate_len = 0
    out = bytearray(3 * len(data) + 4096)
    cdef char* o = out
    begin = time.perf_counter_ns()
    for i in range(n): write_request(&h, o, &policy, &client, BODY_NONE, b"", 0, b"", 0)
    return (time.perf_counter_ns() - begin) / n


def bench_answer(bytes data, int n):
    """Nanoseconds for reading this response's head and writing it as the client gets it, over n times."""
    import time
    cdef Head h
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef const char* e = p + PyBytes_GET_SIZE(data)
    cdef int i, ok = 0
    out = bytearray(2 * len(data) + 4096)
    cdef char* o = out
    begin = time.perf_counter_ns()
    for i in range(n):
        ok += scan_response(&h, p, e, MAX_HEADERS)
        write_response(&h, o, BODY_LENGTH, 0, False, b"", 0)
    took = time.perf_counter_ns() - begin
    if ok != n: raise ValueError("not a response head")
    return took / n
