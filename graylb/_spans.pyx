"""Spans of requests, without I/O: a request, its attempts and what became of them in, OTLP's protobuf messages out.

A request is a span of kind SERVER, each of its attempts one of kind CLIENT below it. What is written is a `Span` of
opentelemetry/proto/trace/v1/trace.proto as field 2 of `ScopeSpans`, so that a batch is its spans in a row. Written here and
not by the SDK, for that takes some 230 µs for each; a test compares the two. Attributes are OpenTelemetry's semantic
conventions (HTTP and RPC spans), and ours, `graylb.`. Texts are UTF-8, whatever clients send, as in lines of the access log.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from graylb._accesslog cimport (L_FALLBACK, L_INSTANCE, L_ROUTE, L_RULE, L_SERVICE, L_VERSION, Asked, Ended, Text, decided,
                                gl_utf8, header_of)
from graylb._fast cimport Route, Service, Str, Table
from graylb._http1 cimport Head
from graylb._live cimport T_CHILD, Exchange, TableState, Upstream
from graylb._trace cimport gl_get_hex, gl_put_hex

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>
    static const char *gl_non_ascii(const char *p, const char *e) {
      for (; e - p >= 8; p += 8) { uint64_t w; memcpy(&w, p, 8); if (w & 0x8080808080808080ull) break; }
      while (p < e && !(*p & 0x80)) p++;
      return p; }
    /* as much of it as finds room, as UTF-8 */
    static uint32_t gl_as_utf8(char *out, uint32_t room, const char *text, uint32_t size) {
      const unsigned char *p = (const unsigned char *)text, *e = p + size; char *o = out; int n;
      while (p < e && room - (o - out) >= 4) {
        n = gl_utf8(p, e);
        if (n > 0) { memcpy(o, p, n); o += n; p += n; }
        else { memcpy(o, "\\xef\\xbf\\xbd", 3); o += 3; p -= n; } }
      return (uint32_t)(o - out); }
    """
    const char* gl_non_ascii(const char*, const char*)
    uint32_t gl_as_utf8(char*, uint32_t, const char*, uint32_t)
    void* memmem(const void*, size_t, const void*, size_t)
    uint64_t htobe64(uint64_t)

cdef enum:
    # tags: number of the field << 3 | wire type
    SPANS = 18             # of ScopeSpans
    TRACE_ID = 10
    SPAN_ID = 18
    TRACE_STATE = 26
    PARENT_ID = 34
    NAME = 42
    KIND = 48
    START = 57
    END = 65
    ATTRIBUTE = 74
    STATUS = 122
    FLAGS = 133            # as two bytes: 16 << 3 | 5
    # values
    SERVER = 2
    CLIENT = 3
    ERROR = 2
    REMOTE_KNOWN = 0x100
    REMOTE = 0x200
    # room that is left behind the last attribute
    LAST = 256

cdef struct Out:
    char* o
    char* limit            # attributes end here


# ---- ids -------------------------------------------------------------------------------------------------------------

cdef void put_id(char* o, Exchange* x, int number) noexcept nogil:
    """16 digits: the span of an attempt, 1 for the first. It follows from the request's, so nobody has to keep it
    (splitmix64's finalizer: Steele, Lea, Flood 2014)."""
    cdef uint64_t z = gl_get_hex(x.span_id) + <uint64_t>0x9e3779b97f4a7c15 * number
    z = (z ^ (z >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
    z = (z ^ (z >> 27)) * <uint64_t>0x94d049bb133111eb
    gl_put_hex(o, (z ^ (z >> 31)) | 1)


cdef void rename(char* head, size_t n, Exchange* x) noexcept nogil:
    """The traceparent in a head that is to be sent names the present attempt, which is not the first."""
    cdef char* at = <char*>memmem(head, n, b"\r\ntraceparent: 00-", 18)
    if at != NULL and n - (at - head) >= 67: put_id(at + 51, x, x.attempts)


# ---- protobuf --------------------------------------------------------------------------------------------------------

cdef inline Text _text(const char* p, size_t n) noexcept:
    cdef Text made
    made.p = p
    made.n = <uint32_t>n
    return made


cdef inline Text _str(Table t, Str s) noexcept:
    return _text(t.base + s.off, s.n)


cdef inline char* _varint(char* o, uint64_t n) noexcept:
    while n >= 128:
        o[0] = <char>(n | 128)
        o += 1
        n >>= 7
    o[0] = <char>n
    return o + 1


cdef inline uint32_t _size(uint64_t n) noexcept:
    """Bytes of a varint."""
    cdef uint32_t k = 1
    while n >= 128:
        n >>= 7
        k += 1
    return k


cdef inline char* _fixed(char* o, uint8_t tag, uint64_t n) noexcept:
    o[0] = <char>tag
    memcpy(o + 1, &n, 8)                                 # little endian, as x86 and ARM are
    return o + 9


cdef char* _hex(char* o, uint8_t tag, const char* digits, int n) noexcept:
    """Bytes of n digits, a multiple of 16."""
    cdef uint64_t id_
    cdef int i
    o[0] = <char>tag
    o[1] = <char>(n // 2)
    o += 2
    for i in range(n // 16):
        id_ = htobe64(gl_get_hex(digits))
        memcpy(o, &id_, 8)
        digits += 16
        o += 8
    return o


cdef Text _clean(Text t, char* room) noexcept:
    """A text as UTF-8 of VALUE_MAX bytes at most; room: so many, for one that is changed."""
    if t.n <= VALUE_MAX and gl_non_ascii(t.p, t.p + t.n) == t.p + t.n: return t
    return _text(room, gl_as_utf8(room, VALUE_MAX, t.p, t.n))


cdef char* _string(char* o, uint8_t tag, Text t) noexcept:
    cdef char room[VALUE_MAX]
    t = _clean(t, room)
    o[0] = <char>tag
    o = _varint(o + 1, t.n)
    memcpy(o, t.p, t.n)
    return o + t.n


cdef char* _key(Out* w, const char* key, uint32_t n, uint32_t value) noexcept:
    """The beginning of an attribute whose AnyValue has so many bytes. NULL: there is no room."""
    cdef char* o = w.o
    cdef uint32_t size = 2 + n + 1 + _size(value) + value
    if w.limit - o < <ptrdiff_t>(size + 8): return NULL
    o[0] = ATTRIBUTE
    o = _varint(o + 1, size)
    o[0] = 10
    o[1] = <char>n                                       # keys are shorter than 128
    memcpy(o + 2, key, n)
    o[n + 2] = 18
    return _varint(o + n + 3, value)


cdef void _put(Out* w, const char* key, Text t) noexcept:
    """An attribute that is a text, if it has a value."""
    cdef char room[VALUE_MAX]
    cdef char* o
    if t.p == NULL: return
    t = _clean(t, room)
    o = _key(w, key, <uint32_t>len(key), 1 + _size(t.n) + t.n)
    if o == NULL: return
    o[0] = 10
    o = _varint(o + 1, t.n)
    memcpy(o, t.p, t.n)
    w.o = o + t.n


cdef void _put_int(Out* w, const char* key, uint64_t n) noexcept:
    cdef char* o = _key(w, key, <uint32_t>len(key), 1 + _size(n))
    if o == NULL: return
    o[0] = 24
    w.o = _varint(o + 1, n)


cdef void _put_seconds(Out* w, const char* key, uint64_t us) noexcept:
    cdef char* o = _key(w, key, <uint32_t>len(key), 9)
    cdef double seconds = us / 1e6
    if o == NULL: return
    o[0] = 33
    memcpy(o + 1, &seconds, 8)
    w.o = o + 9


# ---- what both kinds have --------------------------------------------------------------------------------------------

cdef struct Called:
    # of gRPC. service.p is NULL: it is none
    Text service
    Text method
    Text both


cdef Called _called(Head* h) noexcept:
    cdef Called c
    cdef Text found = header_of(h, b"content-type", 12)
    cdef const char* p = h.path
    cdef const char* e = p + h.path_len
    cdef const char* q
    c.service = c.method = c.both = _text(NULL, 0)
    if found.p == NULL or found.n < 16 or memcmp(found.p, b"application/grpc", 16) != 0: return c
    while p < e and p[0] == 47: p += 1
    while p < e and (e - 1)[0] == 47: e -= 1
    q = e
    while q > p and (q - 1)[0] != 47: q -= 1
    if q - p < 2 or q == e: return c
    c.service = _text(p, q - 1 - p)
    c.method = _text(q, e - q)
    c.both = _text(p, e - p)
    return c


cdef char* _begin(char* o, Exchange* x, Asked* a, const char* span_id, const char* parent_id) noexcept:
    """A span up to its parent. Four bytes are left for `_end`."""
    cdef Text state
    o += 4
    o = _hex(o, TRACE_ID, x.trace_id, 32)
    o = _hex(o, SPAN_ID, span_id, 16)
    if x.traced & T_CHILD:
        state = header_of(a.head, b"tracestate", 10)
        if state.p != NULL and state.n: o = _string(o, TRACE_STATE, state)
    return _hex(o, PARENT_ID, parent_id, 16) if parent_id != NULL else o


cdef char* _name(char* o, Called* called, Text method, Text route) noexcept:
    """Of few different ones: no path is in it, but a gRPC call's, whose methods are as many as they are."""
    cdef char room[VALUE_MAX + 512]
    if called.service.p != NULL: return _string(o, NAME, called.both)
    if route.p == NULL or method.n + route.n >= VALUE_MAX: return _string(o, NAME, method)
    memcpy(room, method.p, method.n)
    room[method.n] = 32
    memcpy(room + method.n + 1, route.p, route.n)
    return _string(o, NAME, _text(room, method.n + 1 + route.n))


cdef char* _kind(char* o, uint8_t kind, uint64_t start_us, uint64_t end_us) noexcept:
    o[0] = KIND
    o[1] = <char>kind
    o = _fixed(o + 2, START, start_us * 1000)
    return _fixed(o, END, end_us * 1000)


cdef char* _end(char* o, char* start, bint failed, Text message, uint32_t flags) noexcept:
    """Status and flags; and the length of all, in three bytes whatever it is."""
    cdef char* status = o
    cdef uint32_t size
    o += 2
    if failed:
        if message.p != NULL and message.n < 64: o = _string(o, 18, message)
        o[0] = 24
        o[1] = ERROR
        o += 2
    status[0] = STATUS
    status[1] = <char>(o - status - 2)
    o[0] = <char>FLAGS
    o[1] = 1
    memcpy(o + 2, &flags, 4)
    o += 6
    size = <uint32_t>(o - start - 4)
    start[0] = SPANS
    start[1] = <char>(size | 128)
    start[2] = <char>(size >> 7 | 128)
    start[3] = <char>(size >> 14)
    return o


cdef void _put_server(Out* w, Text address) noexcept:
    """`server.address` and `server.port` of `host:port`."""
    cdef int i = <int>address.n, port = 0, factor = 1
    while i > 0 and 48 <= address.p[i - 1] <= 57 and <int>address.n - i < 5:
        i -= 1
        port += factor * (address.p[i] - 48)
        factor *= 10
    if i == <int>address.n or i == 0 or address.p[i - 1] != 58:
        _put(w, b"server.address", address)
        return
    address.n = i - 1
    while address.n and (address.p[0] == 91 or address.p[0] == 93): address = _text(address.p + 1, address.n - 1)
    while address.n and (address.p[address.n - 1] == 91 or address.p[address.n - 1] == 93): address.n -= 1
    _put(w, b"server.address", address)
    _put_int(w, b"server.port", port)


cdef void _put_protocol(Out* w, bint h2, int minor) noexcept:
    _put(w, b"network.protocol.name", _text(b"http", 4))
    _put(w, b"network.protocol.version", _text(b"2", 1) if h2 else _text(b"1.1", 3) if minor else _text(b"1.0", 3))


cdef void _put_called(Out* w, Called* called) noexcept:
    if called.service.p == NULL: return
    _put(w, b"rpc.system", _text(b"grpc", 4))
    _put(w, b"rpc.service", called.service)
    _put(w, b"rpc.method", called.method)


cdef void _put_status(Out* w, int status) noexcept:
    """A status as what went wrong: a text, of three digits at most."""
    cdef char digits[3]
    cdef int k = 3
    while True:
        k -= 1
        digits[k] = <char>(48 + status % 10)
        status //= 10
        if status == 0 or k == 0: break
    _put(w, b"error.type", _text(digits + k, 3 - k))


# ---- both kinds ------------------------------------------------------------------------------------------------------

cdef char* server_span(char* o, Exchange* x, Asked* a, Ended* e) noexcept:
    """The request's. o: SPAN_MAX bytes; where it ends."""
    cdef Table t = (<TableState>x.state).table
    cdef Head* h = a.head
    cdef Called called = _called(h)
    cdef Out w
    cdef char* start = o
    cdef Text message = e.error
    cdef bint child = x.traced & T_CHILD
    cdef bint failed = e.error.p != NULL or e.status >= 500
    o = _begin(o, x, a, x.span_id, x.parent_id if child else NULL)
    o = _name(o, &called, _text(h.method, h.method_len), decided(L_ROUTE, x, t))
    w.o = _kind(o, SERVER, a.wall_us, a.wall_us + e.now_us - x.began_us)
    w.limit = start + SPAN_MAX - LAST
    _put(&w, b"http.request.method", _text(h.method, h.method_len))
    _put(&w, b"url.scheme", _text(b"https", 5) if a.secure else _text(b"http", 4))
    _put(&w, b"url.path", _text(h.path, h.path_len))
    if h.query != NULL: _put(&w, b"url.query", _text(h.query, h.query_len))
    if h.host_len: _put_server(&w, _text(h.host, h.host_len))
    if a.peer.text_len: _put(&w, b"client.address", _text(a.peer.text, a.peer.text_len))
    if a.peer.port: _put_int(&w, b"client.port", a.peer.port)
    _put(&w, b"user_agent.original", header_of(h, b"user-agent", 10))
    _put_int(&w, b"http.response.status_code", e.status)
    _put_int(&w, b"http.request.body.size", x.bytes_in)
    _put_int(&w, b"http.response.body.size", x.bytes_out)
    _put_protocol(&w, a.h2, h.minor)
    _put_called(&w, &called)
    if failed:
        if e.error.p != NULL: _put(&w, b"error.type", e.error)
        else: _put_status(&w, e.status)
    _put(&w, b"graylb.request_id", a.request_id if a.request_id.p != NULL else header_of(h, b"x-request-id", 12))
    _put(&w, b"graylb.listener", a.listener)
    _put(&w, b"graylb.service", decided(L_SERVICE, x, t))
    _put(&w, b"graylb.route", decided(L_ROUTE, x, t))
    _put(&w, b"graylb.version", decided(L_VERSION, x, t))
    _put(&w, b"graylb.rule", decided(L_RULE, x, t))
    if x.d.service >= 0 and x.d.slot >= 0: _put_int(&w, b"graylb.slot", x.d.slot)
    if x.d.service >= 0 and x.d.drew: _put_int(&w, b"graylb.draw", x.d.draw)
    _put(&w, b"graylb.fallback", decided(L_FALLBACK, x, t))
    _put(&w, b"graylb.instance", decided(L_INSTANCE, x, t))
    _put_int(&w, b"graylb.revision", t.revision)
    if x.attempts: _put_int(&w, b"graylb.attempts", x.attempts)
    _put(&w, b"graylb.error_source", e.source)
    if x.cut: _put(&w, b"graylb.aborted", _cut(x.cut))
    if x.head_us: _put_seconds(&w, b"graylb.first_byte", x.head_us - x.began_us)
    if x.connect_us: _put_seconds(&w, b"graylb.connect", x.connect_us)
    _put_int(&w, b"graylb.worker", a.worker)
    return _end(w.o, start, failed and e.status != 499, message, REMOTE_KNOWN | (REMOTE if child else 0))


cdef Text _cut(int cut) noexcept:
    return _text(b"client", 6) if cut == 1 else _text(b"instance", 8)


cdef char* client_span(char* o, Exchange* x, Asked* a, Kept* k, Try* t, Text error, int cut) noexcept:
    """An attempt's, which is over. error: what it failed with; cut: see Exchange, of the one that was answered."""
    cdef TableState state = <TableState>x.state
    cdef Table table = state.table
    cdef const Service* s = &table.services[x.d.service]
    cdef const Str* versions = <const Str*>(table.base + s.versions)
    cdef Head* h = a.head
    cdef Called called = _called(h)
    cdef Text address = _str(table, table.instances[t.instance].address)
    cdef char id_[16]
    cdef char* start = o
    cdef Out w
    cdef bint failed = error.p != NULL or t.status >= 400 or t.grpc > 1
    put_id(id_, x, t.number)
    o = _begin(o, x, a, id_, x.span_id)
    o = _name(o, &called, _text(h.method, h.method_len), _text(NULL, 0))
    w.o = _kind(o, CLIENT, k.wall_us + t.began_us - x.began_us, k.wall_us + t.ended_us - x.began_us)
    w.limit = start + SPAN_MAX - LAST
    _put(&w, b"http.request.method", _text(h.method, h.method_len))
    _put_server(&w, address)
    _put_url(&w, x, h, (<Upstream>state.upstreams[t.instance]).origin is not None)
    if t.number > 1: _put_int(&w, b"http.request.resend_count", t.number - 1)
    if t.status: _put_int(&w, b"http.response.status_code", t.status)
    _put_protocol(&w, t.h2, 1)
    _put_called(&w, &called)
    if t.grpc: _put_int(&w, b"rpc.grpc.status_code", t.grpc - 1)
    if error.p != NULL: _put(&w, b"error.type", error)
    elif failed: _put_status(&w, t.status if t.status >= 400 else t.grpc - 1)
    _put(&w, b"graylb.service", _str(table, s.name))
    _put(&w, b"graylb.version", _str(table, versions[table.instances[t.instance].version]))
    _put(&w, b"graylb.instance", address)
    _put_int(&w, b"graylb.attempt", t.number)
    if t.connect_us: _put_seconds(&w, b"graylb.connect", t.connect_us)
    if cut: _put(&w, b"graylb.aborted", _cut(cut))
    return _end(w.o, start, failed, error, REMOTE_KNOWN)


cdef void _put_url(Out* w, Exchange* x, Head* h, bint secure) noexcept:
    """`url.full`, as the instance gets it: the client's, with the route's path (see `_http1.write_request`)."""
    cdef Table t = (<TableState>x.state).table
    cdef const Route* r = &t.routes[x.d.route]
    cdef char room[VALUE_MAX]
    cdef char* limit = room + VALUE_MAX
    cdef char* o = _add(room, limit, _text(b"https://", 8) if secure else _text(b"http://", 7))
    cdef Text path = _text(h.path, h.path_len)
    o = _add(o, limit, _text(h.host, h.host_len))
    if r.has_rewrite and r.path.n <= path.n:
        path = _text(path.p + r.path.n, path.n - r.path.n)
        o = _add(o, limit, _str(t, r.rewrite))
        if (o - 1)[0] == 47 and path.n and path.p[0] == 47: path = _text(path.p + 1, path.n - 1)
    if h.path_len > 1 or h.path[0] != 42: o = _add(o, limit, path)   # OPTIONS * has none
    if h.query != NULL:
        o = _add(o, limit, _text(b"?", 1))
        o = _add(o, limit, _text(h.query, h.query_len))
    _put(w, b"url.full", _text(room, o - room))


cdef char* _add(char* o, char* limit, Text t) noexcept:
    """As much of it as finds room."""
    cdef size_t n = t.n if <ptrdiff_t>t.n <= limit - o else limit - o
    if n: memcpy(o, t.p, n)
    return o + n


# ---- faces for tests -------------------------------------------------------------------------------------------------

def text_attribute(str key, bytes value):
    """An attribute as it is in a span: a KeyValue behind its tag and length."""
    cdef bytes room = PyBytes_FromStringAndSize(NULL, SPAN_MAX)
    cdef bytes name = key.encode()
    cdef Out w
    w.o = PyBytes_AS_STRING(room)
    w.limit = w.o + SPAN_MAX
    _put(&w, PyBytes_AS_STRING(name), _text(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)))
    return room[:w.o - PyBytes_AS_STRING(room)]


def server_attributes(bytes address):
    """The attributes of `host:port`, likewise."""
    cdef bytes room = PyBytes_FromStringAndSize(NULL, SPAN_MAX)
    cdef Out w
    w.o = PyBytes_AS_STRING(room)
    w.limit = w.o + SPAN_MAX
    _put_server(&w, _text(PyBytes_AS_STRING(address), PyBytes_GET_SIZE(address)))
    return room[:w.o - PyBytes_AS_STRING(room)]
