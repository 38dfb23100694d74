"""Lines of the access log, without I/O: a request and what became of it in, bytes out.

A line is made in two parts, for the head of a request is gone when its answer is complete: `Format.head` writes what is known
then, `Format.line` the line. What neighbours in the format stays one piece between the two. JSON is UTF-8 whatever clients
send: bytes that are none become U+FFFD, by the rule of "maximal subparts" (Unicode 15, section 3.9). Texts escape as nginx
does: `\\x22` for quotes, backslashes and all that is not printable ASCII.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from graylb._fast cimport NONE32, REDIRECT, Decision, Rule, Service, Str, Table
from graylb._http1 cimport Head, reset_head, same_name, scan_request
from graylb._live cimport HTTP2, Exchange, Peer, TableState

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <stdio.h>
    #include <string.h>
    #include <time.h>
    #ifdef __SSE2__
    #include <emmintrin.h>
    #endif
    static const unsigned char *gl_json_plain(const unsigned char *p, const unsigned char *e) {
    #ifdef __SSE2__
      while (e - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)p);
        /* signed: bytes over 0x7f are below 0x20, too */
        int m = _mm_movemask_epi8(_mm_or_si128(_mm_cmplt_epi8(v, _mm_set1_epi8(0x20)),
          _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('"')), _mm_cmpeq_epi8(v, _mm_set1_epi8('\\\\')))));
        if (m) return p + __builtin_ctz(m);
        p += 16; }
    #endif
      while (p < e && *p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\\\') p++;
      return p; }
    /* bytes of the UTF-8 sequence at p, or minus those of the ill-formed one */
    static int gl_utf8(const unsigned char *p, const unsigned char *e) {
      unsigned char c = *p, low = 0x80, high = 0xbf; int n, i;
      if (c >= 0xc2 && c <= 0xdf) n = 1;
      else if (c >= 0xe0 && c <= 0xef) { n = 2; if (c == 0xe0) low = 0xa0; if (c == 0xed) high = 0x9f; }
      else if (c >= 0xf0 && c <= 0xf4) { n = 3; if (c == 0xf0) low = 0x90; if (c == 0xf4) high = 0x8f; }
      else return -1;
      for (i = 1; i <= n; i++) {
        if (p + i >= e || p[i] < low || p[i] > high) return -i;
        low = 0x80; high = 0xbf; }
      return n + 1; }
    static const char GL_HEX[] = "0123456789abcdef", GL_HEX_UP[] = "0123456789ABCDEF";
    static char *gl_json_text(char *o, const char *limit, const char *text, size_t size) {
      const unsigned char *p = (const unsigned char *)text, *e = p + size, *q; size_t k; int n;
      while (p < e) {
        q = gl_json_plain(p, e); k = q - p;
        if (limit - o < (ptrdiff_t)k) { k = limit > o ? limit - o : 0; memcpy(o, p, k); return o + k; }
        memcpy(o, p, k); o += k; p = q;
        if (p == e) break;
        if (limit - o < 8) break;
        if (*p >= 0x80) {
          n = gl_utf8(p, e);
          if (n > 0) { memcpy(o, p, n); o += n; p += n; }
          else { memcpy(o, "\\xef\\xbf\\xbd", 3); o += 3; p -= n; }
          continue; }
        *o++ = '\\\\';
        if (*p == '"' || *p == '\\\\') *o++ = *p;
        else if (*p == '\\n') *o++ = 'n';
        else if (*p == '\\r') *o++ = 'r';
        else if (*p == '\\t') *o++ = 't';
        else { memcpy(o, "u00", 3); o[3] = GL_HEX[*p >> 4]; o[4] = GL_HEX[*p & 15]; o += 5; }
        p++; }
      return o; }
    static char *gl_plain_text(char *o, const char *limit, const char *text, size_t size) {
      const unsigned char *p = (const unsigned char *)text, *e = p + size;
      for (; p < e && limit - o >= 8; p++) {
        if (*p >= 0x20 && *p < 0x7f && *p != '"' && *p != '\\\\') *o++ = *p;
        else { o[0] = '\\\\'; o[1] = 'x'; o[2] = GL_HEX_UP[*p >> 4]; o[3] = GL_HEX_UP[*p & 15]; o += 4; } }
      return o; }
    /* copies a text that needs no escape in either format; 0: it may need some. Pieces may overlap */
    #ifdef __SSE2__
    static inline int gl_escapes(__m128i t) {            /* signed: bytes over 0x7f are below 0x20, too */
      return _mm_movemask_epi8(_mm_or_si128(
        _mm_or_si128(_mm_cmplt_epi8(t, _mm_set1_epi8(0x20)), _mm_cmpeq_epi8(t, _mm_set1_epi8(0x7f))),
        _mm_or_si128(_mm_cmpeq_epi8(t, _mm_set1_epi8('"')), _mm_cmpeq_epi8(t, _mm_set1_epi8('\\\\'))))); }
    static inline int gl_copied(char *o, const char *p, size_t n) {
      uint64_t v, w; uint32_t a, b; size_t i;
      if (n >= 16) {
        for (i = 0; i + 16 < n; i += 16) {
          __m128i t = _mm_loadu_si128((const __m128i *)(p + i));
          if (gl_escapes(t)) return 0;
          _mm_storeu_si128((__m128i *)(o + i), t); }
        __m128i last = _mm_loadu_si128((const __m128i *)(p + n - 16));
        _mm_storeu_si128((__m128i *)(o + n - 16), last);
        return !gl_escapes(last); }
      if (n >= 8) { memcpy(&v, p, 8); memcpy(&w, p + n - 8, 8); memcpy(o, &v, 8); memcpy(o + n - 8, &w, 8); }
      else if (n >= 4) {
        memcpy(&a, p, 4); memcpy(&b, p + n - 4, 4); memcpy(o, &a, 4); memcpy(o + n - 4, &b, 4);
        v = w = (uint64_t)a << 32 | b; }
      else if (n) {
        o[0] = p[0]; o[n >> 1] = p[n >> 1]; o[n - 1] = p[n - 1];
        v = w = ((uint8_t)p[0] * 0x0101010101010101u & ~(uint64_t)0xffff00) | (uint64_t)(uint8_t)p[n >> 1] << 8
              | (uint64_t)(uint8_t)p[n - 1] << 16; }
      else return 1;
      return !gl_escapes(_mm_set_epi64x((long long)v, (long long)w)); }
    #else
    static inline int gl_copied(char *o, const char *p, size_t n) { return 0; }
    #endif
    /* a text with 32 bytes behind it that may be read, to where there is room for so many */
    static inline char *gl_literal(char *o, const char *p, size_t n) {
      memcpy(o, p, 32);
      if (n > 32) memcpy(o + 32, p + 32, n - 32);
      return o + n; }
    static const char GL_PAIRS[] =
      "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
      "5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";
    static char *gl_long_decimal(char *o, uint64_t n) {
      char digits[20]; int k = 20;
      while (n >= 10) { k -= 2; memcpy(digits + k, GL_PAIRS + n % 100 * 2, 2); n /= 100; }
      if (n) digits[--k] = '0' + n;
      memcpy(o, digits + k, 20 - k);
      return o + 20 - k; }
    static inline char *gl_decimal(char *o, uint64_t n) {
      if (n < 10) { *o = '0' + n; return o + 1; }
      if (n < 100) { memcpy(o, GL_PAIRS + n * 2, 2); return o + 2; }
      if (n < 1000) { *o = '0' + n / 100; memcpy(o + 1, GL_PAIRS + n % 100 * 2, 2); return o + 3; }
      return gl_long_decimal(o, n); }
    static inline char *gl_six(char *o, uint32_t n) {
      uint32_t thousands = n / 10000, rest = n % 10000;
      memcpy(o, GL_PAIRS + thousands * 2, 2);
      memcpy(o + 2, GL_PAIRS + rest / 100 * 2, 2);
      memcpy(o + 4, GL_PAIRS + rest % 100 * 2, 2);
      return o + 6; }
    static void gl_dates(uint64_t second, char *date, char *local) {
      static const char *months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
      time_t t = second; struct tm m; char text[64];
      gmtime_r(&t, &m);
      snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d", m.tm_year + 1900, m.tm_mon + 1, m.tm_mday, m.tm_hour,
               m.tm_min, m.tm_sec);
      memcpy(date, text, 19);
      snprintf(text, sizeof text, "%02d/%s/%04d:%02d:%02d:%02d +0000", m.tm_mday, months[m.tm_mon], m.tm_year + 1900, m.tm_hour,
               m.tm_min, m.tm_sec);
      memcpy(local, text, 26); }
    """
    char* gl_json_text(char*, const char*, const char*, size_t)
    char* gl_plain_text(char*, const char*, const char*, size_t)
    bint gl_copied(char*, const char*, size_t)
    char* gl_literal(char*, const char*, size_t)
    char* gl_decimal(char*, uint64_t)
    char* gl_six(char*, uint32_t)
    void gl_dates(uint64_t, char*, char*)


# name -> field; those of graylb.model.log_fields, which a test compares, and those of spans
FIELDS = {
    "time": L_TIME, "time_local": L_TIME_LOCAL, "client_ip": L_CLIENT_IP, "client_port": L_CLIENT_PORT, "listener": L_LISTENER,
    "scheme": L_SCHEME, "method": L_METHOD, "host": L_HOST, "path": L_PATH, "query": L_QUERY, "target": L_TARGET,
    "protocol": L_PROTOCOL, "tls": L_TLS, "request_id": L_REQUEST_ID, "trace_id": L_TRACE_ID, "span_id": L_SPAN_ID,
    "worker": L_WORKER, "service": L_SERVICE, "route": L_ROUTE, "version": L_VERSION, "rule": L_RULE, "slot": L_SLOT,
    "draw": L_DRAW, "fallback": L_FALLBACK, "instance": L_INSTANCE, "revision": L_REVISION, "attempts": L_ATTEMPTS,
    "status": L_STATUS, "grpc_status": L_GRPC_STATUS, "error": L_ERROR, "error_source": L_ERROR_SOURCE, "aborted": L_ABORTED,
    "bytes_in": L_BYTES_IN, "bytes_out": L_BYTES_OUT, "duration": L_DURATION, "first_byte": L_FIRST_BYTE, "connect": L_CONNECT,
    "upstream_protocol": L_UPSTREAM_PROTOCOL, "": L_NONE,
}
OF_SPANS = {"parent_id": L_PARENT_ID, "tracestate": L_STATE}

cdef enum:
    PIECES = 256           # a power of two

cdef Head NO_HEAD                                        # has nothing
memset(&NO_HEAD, 0, sizeof(Head))
cdef const char* REQUEST_ID = b"x-request-id"
cdef const char* TRACEPARENT = b"traceparent"
cdef const char* TRACESTATE = b"tracestate"


cdef void dates(uint64_t second, char* date, char* local) noexcept:
    """The second, of Unix time, as RFC 3339 without its zone (19 bytes) and as nginx's time_local (26 bytes)."""
    gl_dates(second, date, local)


cdef Text header_of(Head* h, const char* name, uint32_t n) noexcept:
    """The first header of that name."""
    cdef Text found
    cdef int i
    found.p = NULL
    found.n = 0
    for i in range(h.count):
        if h.headers[i].name_len == n and same_name(h.headers[i].name, name, n):
            found.p = h.headers[i].value
            found.n = h.headers[i].value_len
            break
    return found


cdef inline Text _text(const char* p, uint32_t n) noexcept:
    cdef Text made
    made.p = p
    made.n = n
    return made


cdef inline Text _str(Table t, Str s) noexcept:
    return _text(t.base + s.off, s.n)


cdef inline char* _put(bint json, char* o, const char* limit, Text t) noexcept:
    """A text, quoted in JSON."""
    if json:
        o[0] = 34
        o += 1
    if limit - o >= <ssize_t>t.n and gl_copied(o, t.p, t.n): o += t.n
    elif json: o = gl_json_text(o, limit, t.p, t.n)
    else: return gl_plain_text(o, limit, t.p, t.n)
    if not json: return o
    o[0] = 34
    return o + 1


cdef inline char* _sure(bint json, char* o, const char* text, uint32_t n) noexcept:
    """A text of 8 bytes, of which n count, that needs no escape."""
    if json:
        o[0] = 34
        memcpy(o + 1, text, 8)
        o[n + 1] = 34
        return o + n + 2
    memcpy(o, text, 8)
    return o + n


cdef inline char* _address(bint json, char* o, Peer* peer) noexcept:
    """An address, which needs no escape either; NULL: there is none."""
    cdef uint32_t n = peer.text_len
    if n == 0: return NULL
    if json:
        o[0] = 34
        o += 1
    memcpy(o, peer.text, sizeof(peer.text))
    o[n] = 34
    return o + n + 1 if json else o + n


cdef inline char* _seconds(char* o, uint64_t us) noexcept:
    if us < 1000000:
        o[0] = 48
        o += 1
    else: o = gl_decimal(o, us // 1000000)
    o[0] = 46
    return gl_six(o + 1, <uint32_t>(us % 1000000))


cdef inline char* _date(bint json, Asked* a, char* o) noexcept:
    if json:
        o[0] = 34
        o += 1
    memcpy(o, a.date, 24)                                # which is longer than what counts: so it is one or two moves
    o[19] = 46
    o = gl_six(o + 20, <uint32_t>(a.wall_us % 1000000))
    o[0] = 90
    o[1] = 34
    return o + 2 if json else o + 1


cdef Text _odd_text(LogOp* op, Asked* a) noexcept:
    """Of a head's fields those that are searched for."""
    cdef Text found = _text(NULL, 0)
    if op.field == L_HEADER: return header_of(a.head, op.name, op.name_n)
    elif op.field == L_STATE: return header_of(a.head, TRACESTATE, 10)
    elif op.field == L_REQUEST_ID: return a.request_id if a.request_id.p != NULL else header_of(a.head, REQUEST_ID, 12)
    elif op.field == L_TRACE_ID:
        if a.trace_id.p != NULL: return a.trace_id
        found = header_of(a.head, TRACEPARENT, 11)
        if found.p != NULL and found.n >= 55: return _text(found.p + 3, 32)
        return _text(NULL, 0)
    return found


cdef inline char* _asked(bint json, LogOp* op, Asked* a, char* o, const char* limit) noexcept:
    """A field of the head; NULL: it has no value. One chain over the fields, which becomes a table of jumps."""
    cdef Head* h = a.head
    cdef Text t
    cdef int field = op.field
    if field == L_TIME: return _date(json, a, o)
    elif field == L_TIME_LOCAL: t = _text(a.local, 26)
    elif field == L_WORKER: return gl_decimal(o, a.worker)
    elif field == L_CLIENT_PORT: return gl_decimal(o, a.peer.port) if a.peer.port else NULL
    elif field == L_TLS:
        if a.secure: memcpy(o, b"true", 4)
        else: memcpy(o, b"false", 5)
        return o + (4 if a.secure else 5)
    elif field == L_CLIENT_IP: return _address(json, o, a.peer)
    elif field == L_LISTENER: t = a.listener
    elif field == L_SCHEME: return _sure(json, o, b"https\0\0\0", 4 + a.secure)
    elif field == L_SPAN_ID: t = a.span_id
    elif field == L_PARENT_ID: t = a.parent_id
    elif field == L_METHOD: t = _text(h.method, h.method_len)
    elif field == L_HOST: t = _text(h.host if h.host_len else NULL, h.host_len)
    elif field == L_PATH: t = _text(h.path, h.path_len)
    elif field == L_QUERY: t = _text(h.query, h.query_len)
    elif field == L_TARGET: t = _text(h.target, h.target_len)
    elif field == L_PROTOCOL:
        if h == &NO_HEAD: return NULL
        if a.h2: return _sure(json, o, b"HTTP/2\0\0", 6)
        return _sure(json, o, b"HTTP/1.1" if h.minor else b"HTTP/1.0", 8)
    else: t = _odd_text(op, a)
    return _put(json, o, limit, t) if t.p != NULL else NULL


cdef inline Text _decided(int field, Exchange* x, Table t) noexcept:
    """The fields of a decision that are texts."""
    cdef const Service* s
    cdef const Str* versions
    if field == L_ROUTE:
        if x.d.route < 0 or (x.d.service < 0 and x.d.outcome != REDIRECT): return _text(NULL, 0)
        return _str(t, t.routes[x.d.route].name)
    if x.d.service < 0: return _text(NULL, 0)
    s = &t.services[x.d.service]
    if field == L_SERVICE: return _str(t, s.name)
    if field == L_RULE: return _str(t, (<const Rule*>(t.base + s.rules))[x.d.rule].name) if x.d.rule >= 0 else _text(NULL, 0)
    if field == L_FALLBACK:
        if not x.d.fell_back: return _text(NULL, 0)
        versions = <const Str*>(t.base + s.versions)
        return _str(t, versions[x.d.wanted]) if x.d.wanted != NONE32 else _text(b"subset", 6)
    if x.d.instance < 0: return _text(NULL, 0)
    if field == L_INSTANCE: return _str(t, t.instances[x.d.instance].address)
    # L_VERSION
    versions = <const Str*>(t.base + s.versions)
    return _str(t, versions[t.instances[x.d.instance].version])


cdef Text decided(int field, Exchange* x, Table t) noexcept:
    """The same, for spans."""
    return _decided(field, x, t)


cdef inline char* _ended(bint json, LogOp* op, Ended* e, Table t, char* o, const char* limit) noexcept:
    """A field of the end; NULL: it has no value. One chain, as in `_asked`."""
    cdef Exchange* x = e.x
    cdef Text found
    cdef int field = op.field
    if field == L_STATUS: return gl_decimal(o, e.status) if e.status else NULL
    elif field == L_GRPC_STATUS: return gl_decimal(o, x.grpc_status - 1) if x.grpc_status else NULL
    elif field == L_BYTES_IN: return gl_decimal(o, x.bytes_in)
    elif field == L_BYTES_OUT: return gl_decimal(o, x.bytes_out)
    elif field == L_DURATION: return _seconds(o, e.now_us - x.began_us)
    elif field == L_FIRST_BYTE: return _seconds(o, x.head_us - x.began_us) if x.head_us else NULL
    elif field == L_CONNECT: return _seconds(o, x.connect_us) if x.connect_us else NULL
    elif field == L_ATTEMPTS: return gl_decimal(o, x.attempts) if x.attempts else NULL
    elif field == L_REVISION: return gl_decimal(o, t.revision)
    elif field == L_SLOT: return gl_decimal(o, x.d.slot) if x.d.service >= 0 and x.d.slot >= 0 else NULL
    elif field == L_DRAW: return gl_decimal(o, x.d.draw) if x.d.service >= 0 and x.d.drew else NULL
    elif field == L_ERROR: found = e.error
    elif field == L_ERROR_SOURCE: found = e.source
    elif field == L_ABORTED:
        if not x.cut: return NULL
        found = _text(b"client", 6) if x.cut == 1 else _text(b"instance", 8)
    elif field == L_UPSTREAM_PROTOCOL:
        if x.d.service < 0 or x.d.instance < 0 or not x.attempts: return NULL
        found = _text(b"HTTP/2", 6) if x.h2 else _text(b"HTTP/1.1", 8)
    elif field == L_SERVICE: found = _decided(L_SERVICE, x, t)
    elif field == L_ROUTE: found = _decided(L_ROUTE, x, t)
    elif field == L_VERSION: found = _decided(L_VERSION, x, t)
    elif field == L_RULE: found = _decided(L_RULE, x, t)
    elif field == L_FALLBACK: found = _decided(L_FALLBACK, x, t)
    elif field == L_INSTANCE: found = _decided(L_INSTANCE, x, t)
    else: return NULL
    return _put(json, o, limit, found) if found.p != NULL else NULL


cdef inline char* _one(bint json, LogOp* op, char* value, char* o) noexcept:
    """The end of the line after a field's text at o and its value, which ends at `value`; NULL: it has none."""
    if value != NULL: return value
    if json: return o
    o[op.n] = 45
    return o + op.n + 1


cdef inline uint64_t _ends(Ended* e) noexcept:
    """All fields but those of the end that have no value, by their numbers."""
    cdef Exchange* x = e.x
    cdef uint64_t absent = 0
    if x.d.slot < 0: absent |= <uint64_t>1 << L_SLOT
    if not x.d.drew: absent |= <uint64_t>1 << L_DRAW
    if not x.head_us: absent |= <uint64_t>1 << L_FIRST_BYTE
    if not x.connect_us: absent |= <uint64_t>1 << L_CONNECT
    if not x.grpc_status: absent |= <uint64_t>1 << L_GRPC_STATUS
    if not x.cut: absent |= <uint64_t>1 << L_ABORTED
    if e.error.p == NULL: absent |= <uint64_t>1 << L_ERROR | <uint64_t>1 << L_ERROR_SOURCE
    return ~absent


cdef inline void _decided_key(uint64_t* key, int first, Decision* d) noexcept:
    """What the fields of a decision from the first one on, of a format and a table, follow from."""
    key[0] = <uint64_t><uint32_t>d.service << 32 | <uint32_t>d.route
    key[1] = <uint64_t><uint32_t>d.rule << 32 | <uint32_t>d.instance
    key[2] = <uint64_t>d.wanted << 32 | <uint64_t>first << 2 | (2 if d.fell_back else 0) | (d.outcome == REDIRECT)


cdef class DecidedPieces:
    """Pieces of lines by what they follow from: requests that are decided alike have them in common."""

    def __dealloc__(self):
        free(self.at)

    cdef DecidedPiece* place(self, const uint64_t* key) noexcept:
        """Where the piece of that key is, if it is kept. NULL: out of memory."""
        cdef uint64_t h
        if self.at == NULL:
            self.at = <DecidedPiece*>calloc(PIECES, sizeof(DecidedPiece))
            if self.at == NULL: return NULL
        # splitmix64's multipliers (Steele, Lea, Flood 2014); the high bits are the mixed ones
        h = (key[0] ^ key[2]) * <uint64_t>0x9e3779b97f4a7c15 + key[1] * <uint64_t>0xbf58476d1ce4e5b9
        return &self.at[(h ^ h >> 29) * <uint64_t>0x94d049bb133111eb >> 56]


cdef class Format:
    """How a line is made. parts: (literal text, name of a field or "") pairs, as graylb.model.log_fields has them. json: lines
    are JSON objects; the texts are `,"name":`, and what has no value is left out with its text. ValueError for an unknown field.
    """

    def __cinit__(self, bint json, parts):
        cdef int i, first = -1, decided = -1, last = -1
        cdef bytes text
        self.json = json
        self.made_of = json, [tuple(part) for part in parts]
        self.kept = []
        self.n = self.first = len(parts)
        self.ops = <LogOp*>calloc(max(self.n, 1), sizeof(LogOp))
        if self.ops == NULL: raise MemoryError
        for i, (literal, name) in enumerate(parts):
            text = literal.encode()
            self.ops[i].following = <uint16_t>self.n
            self.ops[i].n = <uint32_t>PyBytes_GET_SIZE(text)
            self.longest = max(self.longest, self.ops[i].n)
            text += bytes(PADDING)
            self.kept.append(text)
            self.ops[i].text = PyBytes_AS_STRING(text)
            self._name(&self.ops[i], name)
            if L_NONE < self.ops[i].field <= L_LAST_OF_HEAD:
                if first < 0:
                    first = i
                    if last < 0: self.first = i
                    else: self.ops[last].following = <uint16_t>i
                    last = i
                self.ops[first].run += 1
            else: first = -1
            if L_LAST_OF_HEAD < self.ops[i].field <= L_LAST_OF_DECISION:
                if decided < 0: decided = i
                self.ops[decided].decided += 1
            else: decided = -1

    cdef _name(self, LogOp* op, str name):
        cdef bytes header
        field = FIELDS.get(name, OF_SPANS.get(name))
        if field is None and name.startswith("http_"):
            header = name[5:].replace("_", "-").lower().encode()
            self.kept.append(header)
            op.name = PyBytes_AS_STRING(header)
            op.name_n = <uint32_t>PyBytes_GET_SIZE(header)
            field = L_HEADER
        if field is None: raise ValueError(f"unknown field {name!r}")
        op.field = field

    def __dealloc__(self):
        free(self.ops)

    cdef char* head(self, Asked* a, char* o, char* limit) noexcept:
        """What is known when a head is, for `line`: the pieces in a row, each behind its length. What finds no room before the
        limit is cut off or left out, and then there are less than `longest` + MARGIN bytes up to it."""
        cdef int i = self.first
        cdef bint json = self.json
        cdef uint32_t size
        cdef char* start
        cdef LogOp* op
        cdef LogOp* end
        if a.head == NULL: a.head = &NO_HEAD
        while i < self.n:
            if limit - o < MARGIN: break
            start = o
            o += 4
            op = &self.ops[i]
            i = op.following
            end = op + op.run
            while op < end:
                if limit - o >= <ssize_t>(op.n + MARGIN):
                    gl_literal(o, op.text, op.n)
                    o = _one(json, op, _asked(json, op, a, o + op.n, limit), o)
                op += 1
            size = <uint32_t>(o - start - 4)
            memcpy(start, &size, 4)
        return o

    cdef char* _decision(self, int first, Ended* e, Table t, DecidedPieces pieces, char* o, char* limit) noexcept:
        """The fields of the decision from there on: as they were when a request was decided like that before."""
        cdef uint64_t key[3]
        cdef DecidedPiece* kept = NULL
        cdef char* start = o
        cdef LogOp* op
        cdef int k
        if pieces is not None:
            _decided_key(key, first, &e.x.d)
            kept = pieces.place(key)
        if kept != NULL and kept.n and kept.key[0] == key[0] and kept.key[1] == key[1] and kept.key[2] == key[2] \
                and limit - o >= <ssize_t>kept.n:
            memcpy(o, kept.text, kept.n)
            return o + kept.n
        for k in range(first, first + self.ops[first].decided):
            op = &self.ops[k]
            if limit - o < <ssize_t>(op.n + MARGIN): continue
            gl_literal(o, op.text, op.n)
            o = _one(self.json, op, _ended(self.json, op, e, t, o + op.n, limit), o)
        # whole, and small enough
        if kept != NULL and limit - o >= <ssize_t>(self.longest + MARGIN) and o - start <= <ssize_t>sizeof(kept.text):
            memcpy(kept.key, key, sizeof(key))
            kept.n = <uint32_t>(o - start)
            memcpy(kept.text, start, kept.n)
        return o

    cdef char* line(self, Ended* e, Table t, DecidedPieces pieces, const char* heads, const char* heads_end, char* o,
                    char* limit) noexcept:
        """The whole line with its end; heads: what `head` wrote; pieces: of this table and for this format, or None. There must
        be room for MARGIN bytes behind the limit."""
        cdef bint json = self.json
        cdef uint64_t there = _ends(e) if json else <uint64_t>-1
        cdef uint32_t size
        cdef char* start = o
        cdef LogOp* op = self.ops
        cdef LogOp* end = op + self.n
        while op < end:
            if op.run:
                op += op.run
                if heads_end - heads < 4: continue       # `head` had no room for it
                memcpy(&size, heads, 4)
                heads += 4
                if limit - o >= <ssize_t>size:
                    memcpy(o, heads, size)
                    o += size
                heads += size
            elif op.decided:
                o = self._decision(<int>(op - self.ops), e, t, pieces, o, limit)
                op += op.decided
            else:
                if there >> op.field & 1 and limit - o >= <ssize_t>(op.n + MARGIN):
                    gl_literal(o, op.text, op.n)
                    if op.field == L_NONE: o += op.n
                    else: o = _one(json, op, _ended(json, op, e, t, o + op.n, limit), o)
                op += 1
        if self.json:
            if o == start: o += 1
            start[0] = 123                               # over the comma of the first field
            o[0] = 125
            o += 1
        o[0] = 10
        return o + 1


# ---- faces for tests -------------------------------------------------------------------------------------------------

def escaped(bytes value, bint json, size_t room=LINE_MAX):
    """A text as a line has it; room: bytes that it may take, with the quotes and MARGIN."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(room + MARGIN))
    cdef char* o = PyBytes_AS_STRING(out)
    return out[:_put(json, o, o + room, _text(PyBytes_AS_STRING(value), <uint32_t>PyBytes_GET_SIZE(value))) - o]


def first_part(Format f, bytes head, str address="", uint64_t wall_us=0, uint32_t port=0):
    """The pieces of a request's head in a row, without their lengths. ValueError: it is no head."""
    cdef Head* h = <Head*>malloc(sizeof(Head))
    cdef bytes out = PyBytes_FromStringAndSize(NULL, LINE_MAX + 2 * MARGIN)
    cdef char date[24]
    cdef char local[26]
    cdef char* o = PyBytes_AS_STRING(out)
    cdef char* e
    cdef Asked a
    cdef Peer peer
    cdef uint32_t size
    cdef bytes text = address.encode()
    try:
        memset(&a, 0, sizeof(Asked))
        memset(&peer, 0, sizeof(Peer))
        memcpy(peer.text, PyBytes_AS_STRING(text), len(text))
        peer.text_len = len(text)
        peer.port = port
        reset_head(h, 100)
        if scan_request(h, PyBytes_AS_STRING(head), PyBytes_AS_STRING(head) + len(head), 100) <= 0: raise ValueError(h.error)
        a.head = h
        a.peer = &peer
        dates(wall_us // 1000000, date, local)
        a.wall_us = wall_us
        a.date = date
        a.local = local
        e = f.head(&a, o, o + LINE_MAX)
        found = []
        while o < e:
            memcpy(&size, o, 4)
            found.append(o[4:4 + size])
            o += 4 + size
        return b"".join(found)
    finally:
        free(h)
