"""Lines of the access log, without I/O: a request and what became of it in, bytes out.

A line is made in two parts, for the head of a request is gone when its answer is complete: `Format.head` writes what is known
then, `Format.line` the line. What neighbours in the format stays one piece between the two. JSON is UTF-8 whatever clients
send: bytes that are none become U+FFFD, by the rule of "maximal subparts" (Unicode 15, section 3.9). Texts escape as nginx
does: `\\x22` for quotes, backslashes and all that is not printable ASCII.

Every value is made a text first, then one loop copies literal texts and values in turn, 32 bytes at a time: between two system
calls the processor has forgotten how code branches, so what matters is how little it does. Fields are of three kinds: those of
the head; those that follow from a few small numbers (a decision, a status), which many requests have in common and which are
kept as they were written; and numbers and times of this one request.
"""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from graylb._fast cimport NONE32, REDIRECT, Rule, Service, Str, Table
from graylb._http1 cimport Head, Header, reset_head, same_name, scan_request
from graylb._live cimport Exchange, Peer

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
    static const char GL_HEX[] = "0123456789abcdef", GL_HEX_UP[] = "0123456789ABCDEF";
    __attribute__((noinline, cold)) static char *gl_json_text(char *o, const char *limit, const char *text, size_t size) {
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
    __attribute__((noinline, cold)) static char *gl_plain_text(char *o, const char *limit, const char *text, size_t size) {
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
    /* A text of 32 bytes at most; 0: it needs escapes, is longer, or ends a page. Up to the end of a page anything may be read,
       which sanitizers need not know */
    #ifdef __SSE2__
    __attribute__((no_sanitize("address")))
    static inline int gl_short(char *o, const char *p, size_t n) {
      if (__builtin_expect(n > 32 || ((uintptr_t)p & 4095) > 4096 - 32, 0)) return 0;
      __m128i t = _mm_loadu_si128((const __m128i *)p);
      uint64_t odd = (uint32_t)gl_escapes(t);
      _mm_storeu_si128((__m128i *)o, t);
      if (n > 16) {
        t = _mm_loadu_si128((const __m128i *)(p + 16));
        odd |= (uint64_t)gl_escapes(t) << 16;
        _mm_storeu_si128((__m128i *)(o + 16), t); }
      return !(odd & (((uint64_t)1 << n) - 1)); }
    /* whether a header's name is that one, of lower-case letters, digits and `-`, in 16 bytes */
    __attribute__((no_sanitize("address")))
    static inline int gl_named(const char *p, const char *low, size_t n) {
      __m128i v;
      if (n > 16 || ((uintptr_t)p & 4095) > 4096 - 16) return gl_same(p, low, n);
      v = _mm_or_si128(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8(0x20));
      v = _mm_cmpeq_epi8(v, _mm_loadu_si128((const __m128i *)low));
      return !(~(uint32_t)_mm_movemask_epi8(v) & ((1u << n) - 1)); }
    #else
    static inline int gl_short(char *o, const char *p, size_t n) { return 0; }
    static inline int gl_named(const char *p, const char *low, size_t n) { return gl_same(p, low, n); }
    #endif
    /* a text with 32 bytes behind it that may be read, to where there is room for so many */
    static inline char *gl_literal(char *o, const char *p, size_t n) {
      memcpy(o, p, 32);
      if (n > 32) memcpy(o + 32, p + 32, n - 32);
      return o + n; }
    /* likewise, of one that is longer as a rule */
    static inline char *gl_copy(char *o, const char *p, size_t n) {
      size_t i = 0;
      do { memcpy(o + i, p + i, 32); i += 32; } while (i < n);
      return o + n; }
    /* The digits of a number below 10^8 as numbers, the first in the lowest byte: halves, pairs and digits are parted in all
       lanes of a word at once (P. Khuong, How to print integers really fast, 2017). Little endian, as x86 and ARM are */
    static inline uint64_t gl_eight(uint32_t n) {
      uint64_t v = n / 10000 | (uint64_t)(n % 10000) << 32, w;
      w = (v * 10486 >> 20) & 0x0000007f0000007full;
      v = w + ((v - 100 * w) << 16);
      w = (v * 103 >> 10) & 0x000f000f000f000full;
      return w + ((v - 10 * w) << 8); }
    #define GL_ZEROS 0x3030303030303030ull
    /* room: 24 bytes */
    static char *gl_decimal(char *o, uint64_t n) {
      uint64_t v; int zeros;
      if (n < 10) { *o = '0' + n; return o + 1; }
      if (n >= 100000000) {
        o = gl_decimal(o, n / 100000000);
        v = gl_eight(n % 100000000) + GL_ZEROS;
        memcpy(o, &v, 8);
        return o + 8; }
      v = gl_eight(n);
      zeros = __builtin_ctzll(v | 1ull << 56) & ~7;      /* the last digit stays */
      v = (v + GL_ZEROS) >> zeros;
      memcpy(o, &v, 8);
      return o + 8 - zeros / 8; }
    /* of microseconds, six digits and two bytes of nothing */
    static inline void gl_six(char *o, uint32_t n) {
      uint64_t v = (gl_eight(n) + GL_ZEROS) >> 16;
      memcpy(o, &v, 8); }
    /* microseconds as seconds */
    static inline char *gl_seconds(char *o, uint64_t us) {
      if (us < 1000000) *o++ = '0';
      else { o = gl_decimal(o, us / 1000000); us %= 1000000; }
      *o = '.';
      gl_six(o + 1, us);
      return o + 7; }
    static const char GL_SCHEME[32] = "https", GL_HTTP10[32] = "HTTP/1.0", GL_HTTP11[32] = "HTTP/1.1", GL_HTTP2[32] = "HTTP/2",
      GL_TRUE[32] = "true", GL_FALSE[32] = "false";
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
    const char* GL_SCHEME
    const char* GL_HTTP10
    const char* GL_HTTP11
    const char* GL_HTTP2
    const char* GL_TRUE
    const char* GL_FALSE
    char* gl_json_text(char*, const char*, const char*, size_t)
    char* gl_plain_text(char*, const char*, const char*, size_t)
    bint gl_copied(char*, const char*, size_t)
    bint gl_short(char*, const char*, size_t)
    bint gl_named(const char*, const char*, size_t)
    char* gl_literal(char*, const char*, size_t)
    char* gl_copy(char*, const char*, size_t)
    char* gl_decimal(char*, uint64_t)
    void gl_six(char*, uint32_t)
    char* gl_seconds(char*, uint64_t)
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

cdef enum Kind:
    K_TEXT = 0             # a literal text alone
    K_HEAD
    K_FOLLOWS
    K_NUMBER

cdef enum:
    PLACES = 128           # a power of two
    NUMBERS = L_LAST + 1 - L_SLOT
    SLOT = 32              # bytes, for a number

cdef uint64_t _formats = 0
cdef Head NO_HEAD                                        # has nothing
memset(&NO_HEAD, 0, sizeof(Head))
# names of headers that fields are of
OF_HEADERS = {L_REQUEST_ID: "x-request-id", L_TRACE_ID: "traceparent", L_STATE: "tracestate"}
# fields of a head that need no escapes, and are followed by what may be read
SAFE = {L_CLIENT_IP, L_CLIENT_PORT, L_SCHEME, L_PROTOCOL, L_TLS, L_SPAN_ID, L_PARENT_ID, L_WORKER}
# fields that JSON has no quotes around
BARE = {L_CLIENT_PORT, L_TLS, L_WORKER, L_REVISION, L_ATTEMPTS, L_STATUS, L_GRPC_STATUS, *range(L_SLOT, L_LAST_BARE + 1), L_NONE}


cdef void dates(uint64_t second, char* date, char* local) noexcept:
    """The second, of Unix time, as RFC 3339 without its zone (19 bytes) and as nginx's time_local (26 bytes)."""
    gl_dates(second, date, local)


cdef void put_micros(char* date, uint32_t us) noexcept:
    """Those of the present second behind such a date, and the zone: 27 bytes in all, of 32."""
    date[19] = 46
    gl_six(date + 20, us)
    date[26] = 90


cdef Text header_of(Head* h, const char* name, uint32_t n) noexcept:
    """The first header of that name."""
    cdef int i
    for i in range(h.count):
        if h.headers[i].name_len == n and same_name(h.headers[i].name, name, n):
            return _text(h.headers[i].value, h.headers[i].value_len)
    return _text(NULL, 0)


cdef inline Text _text(const char* p, size_t n) noexcept:
    cdef Text made
    made.p = p
    made.n = <uint32_t>n
    return made


cdef inline Text _str(Table t, Str s) noexcept:
    return _text(t.base + s.off, s.n)


cdef inline char* _put(bint json, char* o, const char* limit, const Text* t) noexcept:
    """A text that may need escapes; what finds no room before the limit is cut off. MARGIN bytes may be written to."""
    if limit - o >= <ssize_t>t.n and (gl_short(o, t.p, t.n) or gl_copied(o, t.p, t.n)): return o + t.n
    return gl_json_text(o, limit, t.p, t.n) if json else gl_plain_text(o, limit, t.p, t.n)


cdef inline char* _piece(bint json, LogOp* op, const Text* t, char* o, const char* limit) noexcept:
    """A literal text and the value behind it. JSON leaves both out where there is no value, a text has a dash."""
    if (json and t.p == NULL) or limit - o < <ssize_t>(op.n + MARGIN): return o
    o = gl_literal(o, op.text, op.n)
    if t.p == NULL:
        o[0] = 45
        return o + 1
    o = gl_literal(o, t.p, t.n) if op.safe else _put(json, o, limit, t)
    o[0] = 34
    return o + op.quoted


cdef Text decided(int field, Exchange* x, Table t) noexcept:
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
    versions = <const Str*>(t.base + s.versions)
    if field == L_FALLBACK:
        if not x.d.fell_back: return _text(NULL, 0)
        return _str(t, versions[x.d.wanted]) if x.d.wanted != NONE32 else _text(b"subset", 6)
    if x.d.instance < 0: return _text(NULL, 0)
    if field == L_INSTANCE: return _str(t, t.instances[x.d.instance].address)
    if field == L_VERSION: return _str(t, versions[t.instances[x.d.instance].version])
    # L_UPSTREAM_PROTOCOL
    if not x.attempts: return _text(NULL, 0)
    return _text(b"HTTP/2", 6) if x.h2 else _text(b"HTTP/1.1", 8)


cdef Text _following(int field, Ended* e, Table t, char* room) noexcept:
    """A field that follows from a few numbers. room: SLOT bytes."""
    cdef Exchange* x = e.x
    cdef uint64_t n
    if field == L_REVISION: n = t.revision
    elif field == L_ATTEMPTS:
        if not x.attempts: return _text(NULL, 0)
        n = x.attempts
    elif field == L_STATUS:
        if not e.status: return _text(NULL, 0)
        n = e.status
    elif field == L_GRPC_STATUS:
        if not x.grpc_status: return _text(NULL, 0)
        n = x.grpc_status - 1
    elif field == L_ERROR: return e.error
    elif field == L_ERROR_SOURCE: return e.source
    elif field == L_ABORTED:
        if not x.cut: return _text(NULL, 0)
        return _text(b"client", 6) if x.cut == 1 else _text(b"instance", 8)
    else: return decided(field, x, t)
    return _text(room, gl_decimal(room, n) - room)


cdef inline void _key(uint64_t* key, Ended* e) noexcept:
    """The numbers that they follow from, of one table and format."""
    cdef Exchange* x = e.x
    key[0] = <uint64_t><uint32_t>x.d.service << 32 | <uint32_t>x.d.route
    key[1] = <uint64_t><uint32_t>x.d.rule << 32 | <uint32_t>x.d.instance
    key[2] = <uint64_t>x.d.wanted << 32 | <uint64_t>e.status << 16 | <uint64_t>x.attempts << 8 | x.grpc_status
    key[3] = <uint64_t>x.failed << 8 | <uint64_t>x.cut << 4 | (1 if x.d.fell_back else 0) | (2 if x.d.outcome == REDIRECT else 0) \
        | (4 if x.h2 else 0)


@cython.final
cdef class Followings:
    """What requests of one table and format have in common, by what it follows from: as it was written last."""

    def __dealloc__(self):
        free(self.at)

    cdef Following* place(self, const uint64_t* key) noexcept:
        """Where it is, if it is kept. NULL: out of memory."""
        cdef uint64_t h
        if self.at == NULL:
            self.at = <Following*>calloc(PLACES, sizeof(Following))
            if self.at == NULL: return NULL
        # splitmix64's multipliers (Steele, Lea, Flood 2014); the high bits are the mixed ones
        h = (key[0] ^ key[2]) * <uint64_t>0x9e3779b97f4a7c15 + (key[1] ^ key[3]) * <uint64_t>0xbf58476d1ce4e5b9
        return &self.at[(h ^ h >> 29) * <uint64_t>0x94d049bb133111eb >> 57]


@cython.final
cdef class Format:
    """How a line is made. parts: (literal text, name of a field or "") pairs, as graylb.model.log_fields has them. json: lines
    are JSON objects; the texts are `,"name":`, and what has no value is left out with its text. ValueError for an unknown field.
    """

    def __cinit__(self, bint json, parts):
        cdef int i, first = 0, last = -1, kind = K_TEXT
        cdef bytes text
        global _formats
        _formats += 1
        self.serial = _formats
        self.json = json
        self.made_of = json, [tuple(part) for part in parts]
        self.kept = []
        self.n = self.first = len(parts)
        self.ops = <LogOp*>calloc(max(self.n, 1), sizeof(LogOp))
        self.wanted = <Wanted*>calloc(max(self.n, 1), sizeof(Wanted))
        self.values = <Text*>calloc(L_LAST_OF_HEAD + 1 + self.n, sizeof(Text))
        if self.ops == NULL or self.wanted == NULL or self.values == NULL: raise MemoryError
        for i, (literal, name) in enumerate(parts):
            self._name(&self.ops[i], name)
            self.ops[i].quoted = json and self.ops[i].field not in BARE
            text = literal.encode() + b'"' * self.ops[i].quoted
            self.ops[i].following = <uint16_t>self.n
            self.ops[i].n = <uint32_t>len(text)
            self.longest = max(self.longest, self.ops[i].n)
            self.ops[i].text = self._keep(text)
            self.has |= <uint64_t>1 << self.ops[i].field
            if kind == K_TEXT or self.ops[i].kind != kind:   # the first of a run
                kind = self.ops[i].kind
                first = i
                if kind == K_HEAD:
                    if last < 0: self.first = i
                    else: self.ops[last].following = <uint16_t>i
                    last = i
                elif kind == K_FOLLOWS: self.follows += 1
            self.ops[first].run += 1

    cdef const char* _keep(self, bytes text):
        """As long as the format is there, with PADDING behind it."""
        text += bytes(PADDING)
        self.kept.append(text)
        return PyBytes_AS_STRING(text)

    cdef _name(self, LogOp* op, str name):
        cdef Wanted* w = &self.wanted[self.n_wanted]
        cdef bytes header
        field = FIELDS.get(name, OF_SPANS.get(name))
        if field is None and name.startswith("http_"): field = L_HEADER
        if field is None: raise ValueError(f"unknown field {name!r}")
        op.field = op.at = field
        op.safe = field in SAFE
        op.kind = K_TEXT if field == L_NONE else K_HEAD if field <= L_LAST_OF_HEAD \
            else K_FOLLOWS if field <= L_LAST_OF_FOLLOWING else K_NUMBER
        if op.kind == K_NUMBER: op.at = <uint16_t>(field - L_SLOT)
        if field != L_HEADER and field not in OF_HEADERS: return
        header = (OF_HEADERS.get(field) or name[5:].replace("_", "-").lower()).encode()
        w.field = field
        w.name = self._keep(header)
        w.n = <uint32_t>len(header)
        self.lengths |= <uint64_t>1 << min(w.n, 63)
        op.at = <uint16_t>(L_LAST_OF_HEAD + 1 + self.n_wanted)
        self.n_wanted += 1

    def __dealloc__(self):
        free(self.ops)
        free(self.wanted)
        free(self.values)

    cdef void _look_up(self, Asked* a) noexcept:
        """The values that are of a head's headers: the first one of a name is told, so the last one is looked at first."""
        cdef Text* found = self.values + L_LAST_OF_HEAD + 1
        cdef Header* at
        cdef Wanted* w
        cdef int i, k
        for k in range(self.n_wanted): found[k].p = NULL
        for i in range(a.head.count - 1, -1, -1):
            at = &a.head.headers[i]
            if not self.lengths >> (at.name_len if at.name_len < 63 else 63) & 1: continue
            for k in range(self.n_wanted):
                w = &self.wanted[k]
                if w.n != at.name_len or not gl_named(at.name, w.name, w.n): continue
                found[k] = _text(at.value, at.value_len)
                if w.field == L_TRACE_ID: found[k] = _text(at.value + 3 if at.value_len >= 55 else NULL, 32)
        if a.request_id.p == NULL and a.trace_id.p == NULL: return
        for k in range(self.n_wanted):                   # what was made here is what counts
            if self.wanted[k].field == L_REQUEST_ID and a.request_id.p != NULL: found[k] = a.request_id
            elif self.wanted[k].field == L_TRACE_ID and a.trace_id.p != NULL: found[k] = a.trace_id

    cdef void _ask(self, Asked* a, char* numbers) noexcept:
        """All values of a head. numbers: 2 * SLOT bytes."""
        cdef Text* v = self.values
        cdef Head* h = a.head
        cdef Peer* peer = a.peer
        v[L_CLIENT_IP] = _text(peer.text if peer.text_len else NULL, peer.text_len)
        v[L_LISTENER] = a.listener
        v[L_SCHEME] = _text(GL_SCHEME, 4 + a.secure)
        v[L_METHOD] = _text(h.method, h.method_len)
        v[L_HOST] = _text(h.host if h.host_len else NULL, h.host_len)
        v[L_PATH] = _text(h.path, h.path_len)
        v[L_QUERY] = _text(h.query, h.query_len)
        v[L_TARGET] = _text(h.target, h.target_len)
        v[L_PROTOCOL] = _text(GL_HTTP2, 6) if a.h2 else _text(GL_HTTP11 if h.minor else GL_HTTP10, 8)
        if h == &NO_HEAD: v[L_PROTOCOL].p = NULL
        v[L_TLS] = _text(GL_TRUE, 4) if a.secure else _text(GL_FALSE, 5)
        v[L_SPAN_ID] = a.span_id
        v[L_PARENT_ID] = a.parent_id
        if self.has >> L_CLIENT_PORT & 1:
            v[L_CLIENT_PORT] = _text(numbers if peer.port else NULL, gl_decimal(numbers, peer.port) - numbers)
        if self.has >> L_WORKER & 1: v[L_WORKER] = _text(numbers + SLOT, gl_decimal(numbers + SLOT, a.worker) - numbers - SLOT)
        if self.n_wanted: self._look_up(a)

    cdef char* head(self, Asked* a, char* o, char* limit) noexcept:
        """What is known when a head is, for `line`: the pieces in a row, each behind its length. What finds no room before the
        limit is cut off or left out, and then there are less than `longest` + MARGIN bytes up to it."""
        cdef char numbers[2 * SLOT]
        cdef int i = self.first
        cdef bint json = self.json
        cdef uint32_t size
        cdef char* start
        cdef LogOp* op
        cdef LogOp* end
        if a.head == NULL: a.head = &NO_HEAD
        if i < self.n: self._ask(a, numbers)
        while i < self.n:
            if limit - o < MARGIN: break
            start = o
            o += 4
            op = &self.ops[i]
            i = op.following
            end = op + op.run
            while op < end:
                o = _piece(json, op, &self.values[op.at], o, limit)
                op += 1
            size = <uint32_t>(o - start - 4)
            memcpy(start, &size, 4)
        return o

    cdef char* _follow(self, LogOp* op, Ended* e, Table t, char* o, char* limit) noexcept:
        """A run of fields that follow from a few numbers."""
        cdef char room[SLOT]
        cdef LogOp* end = op + op.run
        cdef Text found
        while op < end:
            found = _following(op.field, e, t, room)
            o = _piece(self.json, op, &found, o, limit)
            op += 1
        return o

    cdef Following* _kept(self, Ended* e, Table t, Followings followings) noexcept:
        """All those runs, as they were for a request before this one, or else now are. NULL: they are not kept."""
        cdef uint64_t key[4]
        cdef Following* kept
        cdef char* o
        cdef char* limit
        cdef int i = 0, k = 0
        if followings is None or not 0 < self.follows <= RUNS: return NULL
        _key(key, e)
        kept = followings.place(key)
        if kept == NULL: return NULL
        if not kept.known or memcmp(kept.key, key, sizeof(key)) != 0:
            memcpy(kept.key, key, sizeof(key))
            kept.known = 1
            o = kept.text
            limit = kept.text + sizeof(kept.text) - MARGIN
            while i < self.n:
                if self.ops[i].kind == K_FOLLOWS:
                    o = self._follow(&self.ops[i], e, t, o, limit)
                    kept.ends[k] = <uint16_t>(o - kept.text)
                    k += 1
                i += self.ops[i].run
            kept.whole = limit - o >= <ssize_t>(self.longest + MARGIN)
        return kept if kept.whole else NULL

    cdef void _count(self, Ended* e, char* slots, uint8_t* lengths) noexcept:
        """The numbers and times of a request, SLOT bytes each, and their lengths; 0: there is none."""
        cdef Exchange* x = e.x
        cdef uint64_t has = self.has
        memset(lengths, 0, NUMBERS)
        if has >> L_TIME & 1:
            memcpy(slots + (L_TIME - L_SLOT) * SLOT, e.time, SLOT)
            lengths[L_TIME - L_SLOT] = 27
        if has >> L_TIME_LOCAL & 1:
            memcpy(slots + (L_TIME_LOCAL - L_SLOT) * SLOT, e.local, SLOT)
            lengths[L_TIME_LOCAL - L_SLOT] = 26
        if x.d.service >= 0:
            if has >> L_SLOT & 1 and x.d.slot >= 0: lengths[0] = <uint8_t>(gl_decimal(slots, x.d.slot) - slots)
            if has >> L_DRAW & 1 and x.d.drew: lengths[L_DRAW - L_SLOT] = _number(slots, L_DRAW, x.d.draw)
        if has >> L_BYTES_IN & 1: lengths[L_BYTES_IN - L_SLOT] = _number(slots, L_BYTES_IN, x.bytes_in)
        if has >> L_BYTES_OUT & 1: lengths[L_BYTES_OUT - L_SLOT] = _number(slots, L_BYTES_OUT, x.bytes_out)
        if has >> L_DURATION & 1: lengths[L_DURATION - L_SLOT] = _time(slots, L_DURATION, e.now_us - x.began_us)
        if has >> L_FIRST_BYTE & 1 and x.head_us:
            lengths[L_FIRST_BYTE - L_SLOT] = _time(slots, L_FIRST_BYTE, x.head_us - x.began_us)
        if has >> L_CONNECT & 1 and x.connect_us: lengths[L_CONNECT - L_SLOT] = _time(slots, L_CONNECT, x.connect_us)

    cdef char* line(self, Ended* e, Table t, Followings followings, const char* heads, const char* heads_end, char* o,
                    char* limit) noexcept:
        """The whole line with its end; heads: what `head` wrote; followings: of this table and for this format, or None. There
        must be room for MARGIN bytes behind the limit."""
        cdef char slots[NUMBERS * SLOT]
        cdef uint8_t lengths[NUMBERS]
        cdef bint json = self.json
        cdef uint32_t size, n
        cdef char* start = o
        cdef LogOp* op = self.ops
        cdef LogOp* end = op + self.n
        cdef Following* kept = self._kept(e, t, followings)
        cdef char* text = kept.text if kept != NULL else NULL
        cdef LogOp* following
        cdef int run = 0
        cdef Text nothing = _text(NULL, 0)
        self._count(e, slots, lengths)
        while op < end:
            if op.kind == K_NUMBER:
                following = op + op.run
                while op < following:
                    n = lengths[op.at]
                    if n == 0: o = _piece(json, op, &nothing, o, limit)
                    elif limit - o >= <ssize_t>(op.n + MARGIN):
                        o = gl_literal(o, op.text, op.n)
                        memcpy(o, slots + op.at * SLOT, SLOT)
                        o += n
                        o[0] = 34
                        o += op.quoted
                    op += 1
                continue
            if op.kind == K_HEAD:
                if heads_end - heads >= 4:               # else `head` had no room for it
                    memcpy(&size, heads, 4)
                    heads += 4
                    if limit - o >= <ssize_t>size:
                        memcpy(o, heads, size)
                        o += size
                    heads += size
            elif op.kind == K_FOLLOWS:
                n = <uint32_t>(kept.text + kept.ends[run] - text) if kept != NULL else 0
                if kept != NULL and limit - o >= <ssize_t>n: o = gl_copy(o, text, n)
                else: o = self._follow(op, e, t, o, limit)
                text += n
                run += 1
            elif limit - o >= <ssize_t>(op.n + MARGIN): o = gl_literal(o, op.text, op.n)
            op += op.run
        if json:
            if o == start: o += 1
            start[0] = 123                               # over the comma of the first field
            o[0] = 125
            o += 1
        o[0] = 10
        return o + 1


cdef inline uint8_t _number(char* slots, int field, uint64_t n) noexcept:
    cdef char* o = slots + (field - L_SLOT) * SLOT
    return <uint8_t>(gl_decimal(o, n) - o)


cdef inline uint8_t _time(char* slots, int field, uint64_t us) noexcept:
    cdef char* o = slots + (field - L_SLOT) * SLOT
    return <uint8_t>(gl_seconds(o, us) - o)


# ---- faces for tests -------------------------------------------------------------------------------------------------

def escaped(bytes value, bint json, size_t room=LINE_MAX):
    """A text as a line has it; room: bytes that it may take, with the quotes and MARGIN."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(room + MARGIN))
    cdef char* o = PyBytes_AS_STRING(out)
    cdef Text t = _text(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    cdef char* e = _put(json, o + json, o + room, &t)
    if json: o[0] = e[0] = 34
    return out[:e + json - o]


def number(uint64_t n):
    """As a line has it."""
    cdef char o[SLOT]
    return o[:gl_decimal(o, n) - o]


def seconds(uint64_t us):
    """As a line has such a time."""
    cdef char o[SLOT]
    return o[:gl_seconds(o, us) - o]


def line_of(Format f, bytes head, str address="", uint64_t wall_us=0, uint32_t port=0):
    """The line, without its end, of a request of which only the head is known. ValueError: it is no head."""
    cdef Head* h = <Head*>malloc(sizeof(Head))
    cdef bytes heads = PyBytes_FromStringAndSize(NULL, LINE_MAX + 2 * MARGIN)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, LINE_MAX + 2 * MARGIN)
    cdef char time[SLOT]
    cdef char local[SLOT]
    cdef char* o = PyBytes_AS_STRING(out)
    cdef char* p = PyBytes_AS_STRING(heads)
    cdef Asked a
    cdef Ended e
    cdef Exchange x
    cdef Peer peer
    cdef bytes text = address.encode()
    try:
        memset(&a, 0, sizeof(Asked))
        memset(&e, 0, sizeof(Ended))
        memset(&x, 0, sizeof(Exchange))
        memset(&peer, 0, sizeof(Peer))
        memcpy(peer.text, PyBytes_AS_STRING(text), len(text))
        peer.text_len = len(text)
        peer.port = port
        reset_head(h, 100)
        if scan_request(h, PyBytes_AS_STRING(head), PyBytes_AS_STRING(head) + len(head), 100) <= 0: raise ValueError(h.error)
        a.head = h
        a.peer = &peer
        x.d.service = x.d.instance = x.d.route = x.d.rule = x.d.slot = -1
        e.x = &x
        dates(wall_us // 1000000, time, local)
        put_micros(time, <uint32_t>(wall_us % 1000000))
        e.time = time
        e.local = local
        return out[:f.line(&e, None, None, p, f.head(&a, p, p + LINE_MAX), o, o + LINE_MAX) - o - 1]
    finally:
        free(h)
