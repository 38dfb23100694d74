"""HTTP/2 sessions without I/O, over libnghttp2: what they promise stands in _h2.pxd.

Bytes that came go into `receive`, which calls the engine's hooks; bytes to send come out of `produce`. libnghttp2 frames, compresses
heads, keeps windows and stream states. Here stands the rest: heads to and from HTTP/1.1 text, bodies straight from a
Conn's pending bytes into the output, early answers, and the limits on what a peer may make us do.

libnghttp2 must not be entered from its own callbacks but to submit, resume, consume and reset; hooks run inside of them. A
Conn is found by its stream's number, never by a pointer that libnghttp2 keeps: frames outlive streams.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pycapsule cimport PyCapsule_New
from graylb._http1 cimport (GL_TOKEN, H_CONNECTION, H_CONTENT_LENGTH, H_COOKIE, H_HOST, H_HTTP2_SETTINGS, H_KEEP_ALIVE,
                            H_PROXY_CONNECTION, H_TE, H_TRANSFER_ENCODING, H_UPGRADE, MAX_HEADERS, KnownHead, Line, classify,
                            gl_same, gl_skip_token, read_as_scanned)
from graylb._live cimport MAX_HEAD, TRAILERS_SLACK, Conn, Exchange, Session
from graylb.nghttp2 cimport *

cdef extern from * nogil:
    """
    #include <stdlib.h>
    #include <time.h>
    /* sanitizers see what becomes of each block */
    #if defined(__SANITIZE_ADDRESS__)
    #define GL_H2_PLAIN_MALLOC 1
    #elif defined(__has_feature)
    #if __has_feature(address_sanitizer)
    #define GL_H2_PLAIN_MALLOC 1
    #endif
    #endif
    #ifndef GL_H2_PLAIN_MALLOC
    #define GL_H2_PLAIN_MALLOC 0
    #endif
    static uint64_t gl_h2_skew, gl_h2_stopped; /* ms; tests turn the clock by the one, and stop it at the other */
    static inline uint64_t gl_h2_ms(void) {
      if (gl_h2_stopped) return gl_h2_stopped + gl_h2_skew;
      struct timespec t; clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
      return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000 + gl_h2_skew; }
    /* the first c in [p, e), or e: what is looked for is near, and a call of memchr costs more */
    static inline char *gl_find(char *p, char *e, char c) {
    #ifdef __SSE2__
      while (e - p >= 16) {
        int m = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8(c)));
        if (m) return p + __builtin_ctz(m);
        p += 16; }
    #endif
      while (p < e && *p != c) p++;
      return p; }
    /* The colon behind the name at p, or e or more; makes the name lower case. SLACK bytes behind e are looked at, and are no
       colons; few names have anything to be made. */
    static inline char *gl_name(char *p, char *e) {
    #ifdef __SSE2__
      for (; p < e; p += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)p);
        unsigned colon = _mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_set1_epi8(':')));
        unsigned big = _mm_movemask_epi8(_mm_and_si128(_mm_cmpgt_epi8(v, _mm_set1_epi8('A' - 1)),
                                                       _mm_cmplt_epi8(v, _mm_set1_epi8('Z' + 1))));
        for (big &= colon ^ (colon - 1); big; big &= big - 1) p[__builtin_ctz(big)] |= 32;
        if (colon) return p + __builtin_ctz(colon); }
    #else
      for (; p < e && *p != ':'; p++) if (*p >= 'A' && *p <= 'Z') *p |= 32;
    #endif
      return p; }
    #ifdef __SSE2__
    /* of a name that is a token without capitals (RFC 9113 section 8.2.1) nearly always 0 */
    static inline int gl_odd_in_name(__m128i v) {
      __m128i letter = _mm_and_si128(_mm_cmpgt_epi8(v, _mm_set1_epi8('a' - 1)), _mm_cmplt_epi8(v, _mm_set1_epi8('z' + 1)));
      __m128i digit = _mm_and_si128(_mm_cmpgt_epi8(v, _mm_set1_epi8('0' - 1)), _mm_cmplt_epi8(v, _mm_set1_epi8('9' + 1)));
      return _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(letter, digit), _mm_cmpeq_epi8(v, _mm_set1_epi8('-')))) ^ 0xffff; }
    static inline int gl_odd_in_value(__m128i v) {
      __m128i low = _mm_cmpeq_epi8(_mm_min_epu8(v, _mm_set1_epi8(0x1f)), v);
      __m128i tab = _mm_cmpeq_epi8(v, _mm_set1_epi8(9)), del = _mm_cmpeq_epi8(v, _mm_set1_epi8(0x7f));
      return _mm_movemask_epi8(_mm_or_si128(_mm_andnot_si128(tab, low), del)); }
    /* 4 to 15 bytes in one register, some of them twice */
    static inline __m128i gl_few(const char *p, size_t n) {
      int32_t a, b;
      if (n >= 8) return _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)p), _mm_loadl_epi64((const __m128i *)(p + n - 8)));
      memcpy(&a, p, 4); memcpy(&b, p + n - 4, 4);
      return _mm_set_epi32(a, b, a, b); }
    /* what is odd in n bytes, 4 or more */
    static inline __attribute__((always_inline)) int gl_odd(const char *p, size_t n, int (*of)(__m128i)) {
      if (n < 16) return of(gl_few(p, n));
      int odd = of(_mm_loadu_si128((const __m128i *)(p + n - 16)));
      for (size_t i = 0; i + 16 < n; i += 16) odd |= of(_mm_loadu_si128((const __m128i *)(p + i)));
      return odd; }
    #endif
    enum { GL_LOW_TOKEN = 1, GL_PLAIN = 2 }; /* the latter of nothing but letters, digits and `-` */
    static inline int gl_name_kind(const char *p, size_t n) {
    #ifdef __SSE2__
      if (n >= 4 && !gl_odd(p, n, gl_odd_in_name)) return GL_PLAIN;
    #endif
      for (size_t i = 0; i < n; i++) if (!p[i] || GL_TOKEN[(unsigned char)p[i]] != (unsigned char)p[i]) return 0;
      return n ? GL_LOW_TOKEN : 0; }
    /* whether a value is one, without white space around it (section 8.2.1) */
    static inline int gl_is_bare_value(const char *p, size_t n) {
      if (n && (*p == ' ' || *p == 9 || p[n - 1] == ' ' || p[n - 1] == 9)) return 0;
    #ifdef __SSE2__
      if (n >= 4) return !gl_odd(p, n, gl_odd_in_value);
    #endif
      return gl_skip_value(p, p + n) == p + n; }
    static inline int gl_is_target_text(const char *p, size_t n) {
    #ifdef __SSE2__
      if (n >= 4) return !gl_odd(p, n, gl_odd_in_target);
    #endif
      return gl_skip_target(p, p + n) == p + n; }
    /* n bytes, few of them mostly; a call of memcmp costs more */
    static inline __attribute__((always_inline)) int gl_equal(const char *p, const char *q, size_t n) {
      uint64_t a, b, x, y; uint32_t c, d, u, v;
    #ifdef __SSE2__
      if (n >= 16) {
        __m128i same = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(p + n - 16)), _mm_loadu_si128((const __m128i *)(q + n - 16)));
        for (size_t i = 0; i + 16 < n; i += 16)
          same = _mm_and_si128(same, _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(p + i)), _mm_loadu_si128((const __m128i *)(q + i))));
        return _mm_movemask_epi8(same) == 0xffff; }
    #else
      if (n >= 16) return !memcmp(p, q, n);
    #endif
      if (n >= 8) {
        memcpy(&a, p, 8); memcpy(&b, p + n - 8, 8); memcpy(&x, q, 8); memcpy(&y, q + n - 8, 8);
        return a == x && b == y; }
      if (n >= 4) {
        memcpy(&c, p, 4); memcpy(&d, p + n - 4, 4); memcpy(&u, q, 4); memcpy(&v, q + n - 4, 4);
        return c == u && d == v; }
      for (size_t i = 0; i < n; i++) if (p[i] != q[i]) return 0;
      return 1; }
    #define gl_prefetch(p) __builtin_prefetch((p), 1)
    /* n bytes that will be wanted soon */
    static inline void gl_foresee(const void *p, size_t n) {
      size_t i; for (i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + i, 1); }
    static inline void *gl_aligned(size_t n) { void *p; return posix_memalign(&p, 64, n) ? NULL : p; }
    """
    bint GL_H2_PLAIN_MALLOC
    uint64_t gl_h2_skew, gl_h2_stopped
    uint64_t gl_h2_ms()
    char* gl_find(char*, char*, char)
    char* gl_name(char*, char*)
    int GL_PLAIN
    int gl_name_kind(const char*, size_t)
    bint gl_is_bare_value(const char*, size_t)
    bint gl_is_target_text(const char*, size_t)
    bint gl_equal(const char*, const char*, size_t)
    void gl_prefetch(const void*)
    void gl_foresee(const void*, size_t)
    void* gl_aligned(size_t)

cdef enum:
    FIELDS = MAX_HEADERS + 64      # of a head or of trailers that is sent, with what forwarding adds
    FRAME_HEAD = 9
    TIGHT = 1024                   # less room than that is no place for a frame
    ADDED = 64                     # bytes of a text that no field accounts for
    MAX_FIELDS = MAX_HEADERS - 2   # room for what the text adds, a cookie and the coding, is left in a `Head`
    CONTINUATIONS = 64             # frames of one header block
    BLOCK_FACTOR = 4               # a header block so many times over the limit ends the connection: it is a bomb
    QUEUED = 2048                  # frames that wait to be sent besides those of streams: who makes us answer must read
    RESET_MS = 10000               # a burst is refilled within
    CONTROL_MS = 1000
    NO_RFC7540_PRIORITIES = 9      # of SETTINGS, RFC 9218 section 2.1.1; older headers do not name it
    EARNED = 4                     # control frames that a DATA frame of ours allows: updates of two windows, a PING
    GRAIN = 64                     # blocks of libnghttp2 are kept by multiples of it
    BINS = 32                      # so many of them
    PARKED = 262144                # bytes of each that are kept for the next streams
    ASKED = 32                     # requests that are told at once …
    ASKED_BYTES = 24576            # … and what their texts may take
    AHEAD = 16                     # answers whose streams are brought into the cache at once
    OVER = 64                      # a power of 2
    BEFORE_BYTES = 1024            # a longer text is not kept for the next one
    BEFORE_LINES = 32
    NEVER = 1 << 30                # bytes of a line that no text is long enough for
    SPARE = 4                      # text buffers kept
    SPARE_MAX = 32768
    UNCOPIED = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
    SLACK = TRAILERS_SLACK         # bytes behind a lent text, to look at several at once
    PECULIAR = 1 << 2 | 1 << 4 | 1 << 7 | 1 << 10 | 1 << 14 | 1 << 16 | 1 << 17     # lengths of names that `_left_out` looks at
    # ids of fields that `_is_line` looks at
    SPECIAL = 1 << H_CONTENT_LENGTH | 1 << H_HOST | 1 << H_COOKIE | 1 << H_TE | 1 << H_CONNECTION | 1 << H_KEEP_ALIVE \
        | 1 << H_PROXY_CONNECTION | 1 << H_TRANSFER_ENCODING | 1 << H_UPGRADE | 1 << H_HTTP2_SETTINGS
    MALFORMED = 1                  # a verdict: no request at all (RFC 9113 section 8.1.1); its stream is reset
    STATUS_AT = 9                  # of a response's text

cdef enum Phase:                   # Conn.phase
    SENT = 1                       # the request's HEADERS have left
    HEADED = 2                     # the final response head has come
    ENDED = 4                      # the peer's side of the stream has ended
    BODILESS = 8                   # the answer to HEAD has no body, whatever length it says
    SPOILT = 16                    # its body is not as long as it says; what still comes of it is nothing

cdef enum Pseudo:                  # Framer.seen
    METHOD = 1
    SCHEME = 2
    PATH = 4
    AUTHORITY = 8
    NEEDED = METHOD | SCHEME | PATH

cdef enum Block:                   # what header block is arriving
    NOTHING = 0
    REQUEST
    RESPONSE
    TRAILERS

cdef struct Text:
    char* p
    size_t n
    size_t cap

cdef struct Span:
    uint32_t at
    uint32_t n

cdef struct Before:               # a head or trailers that a session had before; most lines of the next are the same
    Line* lines                    # of `text`
    char* text                     # in the same block
    int n

cdef struct Lent:                 # before the text of a head that libnghttp2 has not packed yet: it reads the fields from there
    Lent* next
    Lent* previous

cdef struct Asked:                 # a request that the engine is to be told of
    int32_t stream
    uint8_t end                    # no body follows
    uint8_t ended                  # behind `data`
    KnownHead head                 # its `text` and `lines` are set when it is told: the texts move as they grow
    size_t at                      # of the one
    size_t lines_at                # and of the others
    int64_t length
    const uint8_t* data            # what has come of its body, where it was received
    size_t data_n

cdef struct Framer:
    Session s                      # first: this is what the engine sees of it
    nghttp2_session* ng
    const H2Limits* limits
    const H2Hooks* hooks
    void* engine
    # the header block that is arriving; text is borrowed for that long
    uint8_t block
    uint8_t begun                  # its first line is in the text
    uint8_t has_length
    uint8_t has_host
    uint16_t verdict               # the status that it has earned, or MALFORMED; 0: fine
    uint16_t status                # a response's
    uint8_t seen                   # which pseudo-header fields
    uint32_t fields
    uint32_t most_fields
    int64_t length                 # that its body has, as it says; -1: it does not
    size_t size                    # bytes, as text
    size_t most_bytes
    Text text
    Text lines                     # Lines of the text
    Text cookies
    Before came[2]                 # heads, trailers
    Before went[2]
    int next                       # line of what came that is expected
    uint32_t missed                # fields that were none of its lines
    size_t start                   # where the head begins in the text; before it stand the pseudo-header fields
    size_t lines_at                # and where its Lines begin
    Span method
    Span path
    Span scheme
    Span authority
    Lent* lent
    # the stream whose Conn was looked for last, and that Conn
    int32_t last
    Conn* of_last
    size_t ahead                   # bytes of what will be received before the next frame begins
    uint8_t part[FRAME_HEAD]       # what has come of the next one's head
    uint8_t part_n
    # what is being produced
    char* o
    size_t room
    size_t used
    const uint8_t* rest            # a frame that found no room
    size_t rest_len
    int n_asked                    # requests that have come and not been told, `_asked_for`
    size_t consumed                # bytes of bodies that this receive has brought
    # limits
    uint8_t broken                 # nothing more is received
    uint16_t continuations
    int64_t resets                 # left, times RESET_MS
    int64_t control                # left, times CONTROL_MS
    uint64_t refilled              # ms
    int32_t over[OVER]             # streams that a client has ended and that are closed: the newest of each number modulo OVER
    int32_t highest                # of a client's streams
    int32_t gap_from               # those that it passed over last
    int32_t gap_to

cdef nghttp2_session_callbacks* _callbacks = NULL
cdef nghttp2_nv _nv[FIELDS + 8]    # scratch
cdef Asked _asked_for[ASKED]       # of the session that receives
cdef Text _spare[SPARE]
cdef int _n_spare = 0


# ---- memory --------------------------------------------------------------------------------------------------------
#
# libnghttp2 takes and gives back some twenty small blocks for each stream, of many streams at a time: more than malloc keeps at
# hand, which then splits and joins. So blocks that it gives back are kept by size, of each as many as PARKED bytes hold.

cdef struct Kept:                 # at the head of each block, and of its alignment; in a cache line with its first bytes
    Kept* next
    size_t bin                     # its size by GRAINs, this included; 0: too large for any

cdef Kept* _bins[BINS + 1]
cdef size_t _parked[BINS + 1]

cdef void* _take(size_t n, void* user) noexcept:
    cdef size_t bin = (n + sizeof(Kept) + GRAIN - 1) // GRAIN
    cdef Kept* b
    if bin > BINS: bin = 0
    b = _bins[bin]
    if bin and b != NULL:
        _bins[bin] = b.next
        gl_foresee(b.next, 128)        # the next one will be wanted soon, and was used long ago
        _parked[bin] -= bin * GRAIN
        return b + 1
    b = <Kept*>(gl_aligned(bin * GRAIN) if bin else malloc(sizeof(Kept) + n))
    if b == NULL: return NULL
    b.bin = bin
    return b + 1

cdef void _give(void* p, void* user) noexcept:
    cdef Kept* b
    if p == NULL: return
    b = <Kept*>p - 1
    if b.bin == 0 or _parked[b.bin] + b.bin * GRAIN > PARKED: free(b)
    else:
        b.next = _bins[b.bin]
        _bins[b.bin] = b
        _parked[b.bin] += b.bin * GRAIN

cdef void* _take_zeroed(size_t n, size_t each, void* user) noexcept:
    cdef void* p
    if each and n > (<size_t>-1) // each: return NULL
    p = _take(n * each, user)
    if p != NULL: memset(p, 0, n * each)
    return p

cdef void* _resize(void* p, size_t n, void* user) noexcept:
    cdef Kept* b
    cdef void* q
    if p == NULL: return _take(n, user)
    b = <Kept*>p - 1
    if b.bin and n + sizeof(Kept) <= b.bin * GRAIN: return p
    if b.bin == 0 and n + sizeof(Kept) > BINS * GRAIN:
        b = <Kept*>realloc(b, sizeof(Kept) + n)
        return b + 1 if b != NULL else NULL
    q = _take(n, user)
    if q == NULL: return NULL
    # one that is too large for any bin shrinks, any other grows
    memcpy(q, p, b.bin * GRAIN - sizeof(Kept) if b.bin else n)
    _give(p, user)
    return q

cdef nghttp2_mem _pool = nghttp2_mem(NULL, _take, _give, _take_zeroed, _resize)
cdef nghttp2_mem* _mem = NULL if GL_H2_PLAIN_MALLOC else &_pool


# ---- heads on loan -------------------------------------------------------------------------------------------------
#
# libnghttp2 would copy each name and value of a head, byte by byte. So the whole text is copied once, and its frame, which may
# outlive the stream's Conn, keeps that until it is packed, or dropped.

cdef char* _lend(Framer* f, const char* text, size_t n) noexcept:
    """A copy that stays until `_packed` is told of the frame; NULL: out of memory."""
    cdef size_t size = sizeof(Lent) + n + SLACK
    cdef Lent* b = <Lent*>(malloc(size) if GL_H2_PLAIN_MALLOC else _take(size, NULL))
    cdef char* p = <char*>(b + 1)
    if b == NULL: return NULL
    memcpy(p, text, n)
    memset(p + n, 0, SLACK)
    b.previous = NULL
    b.next = f.lent
    if b.next != NULL: b.next.previous = b
    f.lent = b
    return p


cdef void _take_back(Framer* f, char* text) noexcept:
    cdef Lent* b = <Lent*>text - 1
    if b.previous != NULL: b.previous.next = b.next
    else: f.lent = b.next
    if b.next != NULL: b.next.previous = b.previous
    if GL_H2_PLAIN_MALLOC: free(b)
    else: _give(b, NULL)


cdef inline void _packed(Framer* f, const nghttp2_frame* frame) noexcept:
    """A HEADERS frame is in the output, or never will be."""
    cdef nghttp2_nv* nv = frame.headers.nva
    if frame.headers.nvlen == 0 or not nv.flags & UNCOPIED: return      # trailers
    if f.s.server: _take_back(f, <char*>nv.value - STATUS_AT)
    else: _take_back(f, <char*>(nv if nv.namelen == 7 else nv + 1).value)   # the method, which :authority may be before


# ---- text ----------------------------------------------------------------------------------------------------------

cdef inline bint _fits(Text* t, size_t more) noexcept:
    """Makes room for so many bytes more; False: out of memory."""
    cdef size_t cap
    cdef char* p
    if t.n + more <= t.cap: return True
    cap = t.cap * 2 if t.cap else 4096
    while cap < t.n + more: cap *= 2
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


# ---- limits --------------------------------------------------------------------------------------------------------

cdef void _touch(Framer* f) noexcept:
    if f.s.dirty: return
    f.s.dirty = 1
    f.hooks.dirty(f.engine, &f.s)


cdef int _punish(Framer* f, uint32_t error) noexcept:
    """Ends the connection. The answer, from a callback, ends the parsing of what was received with it."""
    if not f.broken:
        f.broken = f.s.ending = 1
        nghttp2_session_terminate_session(f.ng, error)
        _touch(f)
    return NGHTTP2_ERR_CALLBACK_FAILURE


cdef void _refill(Framer* f) noexcept:
    cdef uint64_t now = gl_h2_ms()
    cdef int64_t dt = <int64_t>(now - f.refilled)
    if dt <= 0: return
    f.refilled = now
    if dt > RESET_MS: dt = RESET_MS
    f.resets = min(f.resets + dt * f.limits.resets, <int64_t>f.limits.resets * RESET_MS)
    f.control = min(f.control + dt * f.limits.control, <int64_t>f.limits.control * CONTROL_MS)


cdef inline void _earn(Framer* f, int n) noexcept:
    f.control = min(f.control + n * CONTROL_MS, <int64_t>f.limits.control * CONTROL_MS)


cdef inline int _control(Framer* f) noexcept:
    f.control -= CONTROL_MS
    return 0 if f.control >= 0 else _punish(f, H2_ENHANCE_YOUR_CALM)


cdef inline int _reset(Framer* f) noexcept:
    """A stream was reset by a client, or for its fault; an instance may reset as it likes."""
    if not f.s.server: return 0
    f.resets -= RESET_MS
    return 0 if f.resets >= 0 else _punish(f, H2_ENHANCE_YOUR_CALM)


cdef inline int32_t* _over(Framer* f, int32_t stream) noexcept:
    return &f.over[stream >> 1 & (OVER - 1)]


cdef inline bint _is_late(Framer* f, const uint8_t* head) noexcept:
    """Whether a client's frame goes on with a stream that it has ended (RFC 9113 section 5.1). libnghttp2 takes that for what was under
    way when a stream was reset here, and tells nobody."""
    cdef int32_t stream = _stream_of(head)
    if head[3] == NGHTTP2_RST_STREAM: _over(f, stream)[0] = stream
    return head[3] <= NGHTTP2_HEADERS and stream and _over(f, stream)[0] == stream


cdef inline int32_t _stream_of(const uint8_t* head) noexcept:
    return (head[5] & 127) << 24 | head[6] << 16 | head[7] << 8 | head[8]


cdef int _in_turn(Framer* f, int32_t stream) noexcept:
    """0 unless a client's HEADERS come for a stream that it has passed over (RFC 9113 section 5.1.1): libnghttp2 drops those, for it
    takes them for what follows a stream that it has forgotten."""
    if not stream & 1: return 0
    if stream > f.highest:
        if stream > f.highest + 2:
            f.gap_from = f.highest + 2
            f.gap_to = stream - 2
        f.highest = stream
        return 0
    return _punish(f, H2_PROTOCOL_ERROR) if f.gap_from <= stream <= f.gap_to else 0


# ---- streams and their Conns ---------------------------------------------------------------------------------------

cdef inline Conn* _conn(Framer* f, int32_t stream) noexcept:
    """Callbacks for one stream follow each other: most look for the same Conn as the one before."""
    if stream != f.last or f.of_last == NULL:
        f.of_last = <Conn*>nghttp2_session_get_stream_user_data(f.ng, stream)
        f.last = stream
    return f.of_last


cdef void _link(Framer* f, Conn* c, int32_t stream) noexcept:
    c.session = &f.s
    c.stream = stream
    c.phase = c.deferred = 0
    c.left = f.length if f.s.server else -1
    c.previous = NULL
    f.last = stream
    f.of_last = c
    c.next = f.s.streams
    if c.next != NULL: c.next.previous = c
    f.s.streams = c
    f.s.n_streams += 1


cdef void _unlink(Conn* c) noexcept:
    cdef Session* s = c.session
    if (<Framer*>s).of_last == c: (<Framer*>s).of_last = NULL
    if c.previous != NULL: c.previous.next = c.next
    else: s.streams = c.next
    if c.next != NULL: c.next.previous = c.previous
    s.n_streams -= 1
    c.next = c.previous = NULL
    c.stream = 0
    c.deferred = 0


# ---- receiving: heads ----------------------------------------------------------------------------------------------

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
    cdef const Line* line = &b.lines[f.next]
    cdef const char* p
    if f.next >= b.n: return NULL
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
    _give(b.lines, NULL)
    b.lines = <Line*>_take(room + n, NULL) if n <= BEFORE_BYTES and 0 < lines <= BEFORE_LINES else NULL
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


# ---- receiving: the rest -------------------------------------------------------------------------------------------

cdef int _on_data_chunk(nghttp2_session* ng, uint8_t flags, int32_t stream, const uint8_t* p, size_t n, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef Asked* a = _asked(f, stream)
    cdef Conn* c
    f.consumed += n
    if a != NULL:
        if a.data_n == 0 and (a.length < 0 or n <= <size_t>a.length):
            a.data = p
            a.data_n = n
            return 0
        _tell(f)
    c = _conn(f, stream)
    if c == NULL or c.phase & SPOILT: return 0
    if not f.s.server and not c.phase & HEADED or c.left >= 0 and <size_t>c.left < n:
        _spoil(f, c)
        return 0
    if c.left >= 0: c.left -= n
    c.owed += n
    f.hooks.data(f.engine, c, <char*>p, n)
    return 0


cdef void _spoil(Framer* f, Conn* c) noexcept:
    """A body that comes before its head, or is longer or shorter than that says."""
    c.phase |= SPOILT
    _reset_unlawful(f, c.stream)


cdef int _on_frame_recv(nghttp2_session* ng, const nghttp2_frame* frame, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef uint8_t type = frame.hd.type
    cdef bint end = frame.hd.flags & NGHTTP2_FLAG_END_STREAM
    cdef Asked* a
    cdef Conn* c
    if type == NGHTTP2_DATA:
        if end:
            a = _asked(f, frame.hd.stream_id)
            if a != NULL:
                if a.length < 0 or a.data_n == <size_t>a.length:
                    a.ended = 1
                    return 0
                _tell(f)
            c = _conn(f, frame.hd.stream_id)
            if c == NULL or c.phase & SPOILT: return 0
            if c.left > 0 or (not f.s.server and not c.phase & HEADED): _spoil(f, c)
            else:
                c.phase |= ENDED
                f.hooks.end(f.engine, c, NULL, 0)
        elif frame.hd.length <= frame.data.padlen: return _control(f)
        return 0
    if type == NGHTTP2_HEADERS: return _head_done(f, frame.hd.stream_id, end)
    if type == NGHTTP2_RST_STREAM: return _reset(f)
    if type == NGHTTP2_PING:
        if frame.hd.flags & NGHTTP2_FLAG_ACK: f.s.acked = 1
    elif type == NGHTTP2_SETTINGS:
        if not f.s.server and not frame.hd.flags & NGHTTP2_FLAG_ACK:
            f.s.max_streams = min(nghttp2_session_get_remote_settings(ng, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS),
                                  <uint32_t>0x7fffffff)
    elif type == NGHTTP2_GOAWAY and not f.s.server:
        f.s.full = 1
        f.hooks.leaving(f.engine, &f.s)
    return 0


cdef int _on_invalid_frame(nghttp2_session* ng, const nghttp2_frame* frame, int error, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    if frame.hd.type == NGHTTP2_HEADERS and f.block != NOTHING:
        f.block = NOTHING
        if f.n_asked: _tell(f)
        if f.s.server and frame.headers.cat == NGHTTP2_HCAT_REQUEST: f.hooks.rejected(f.engine, &f.s, 400)
    return _reset(f) if error == NGHTTP2_ERR_REFUSED_STREAM else 0


cdef int _on_stream_close(nghttp2_session* ng, int32_t stream, uint32_t error, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef Conn* c = _conn(f, stream)
    # a client may reset as many as it lets end, besides its burst
    if f.s.server and error == H2_NO_ERROR: f.resets = min(f.resets + RESET_MS, <int64_t>f.limits.resets * RESET_MS)
    if c == NULL: return 0
    if not f.s.server:
        if not c.phase & SENT: error = H2_REFUSED_STREAM
        elif error == H2_NO_ERROR and not c.phase & ENDED: error = H2_PROTOCOL_ERROR    # cut off, or refused by us
    _unlink(c)
    f.hooks.closed(f.engine, c, error)
    f.of_last = NULL               # libnghttp2 names it until this returns
    return 0


# ---- sending -------------------------------------------------------------------------------------------------------

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


# ---- what the engine calls -----------------------------------------------------------------------------------------

cdef bint _make_callbacks() noexcept:
    global _callbacks
    if _callbacks != NULL: return True
    if nghttp2_session_callbacks_new(&_callbacks) != 0: return False
    nghttp2_session_callbacks_set_send_data_callback(_callbacks, _send_data)
    nghttp2_session_callbacks_set_on_frame_recv_callback(_callbacks, _on_frame_recv)
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(_callbacks, _on_invalid_frame)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(_callbacks, _on_data_chunk)
    nghttp2_session_callbacks_set_on_frame_send_callback(_callbacks, _on_frame_send)
    nghttp2_session_callbacks_set_on_frame_not_send_callback(_callbacks, _on_frame_not_send)
    nghttp2_session_callbacks_set_on_stream_close_callback(_callbacks, _on_stream_close)
    nghttp2_session_callbacks_set_on_begin_headers_callback(_callbacks, _on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(_callbacks, _on_header)
    nghttp2_session_callbacks_set_on_begin_frame_callback(_callbacks, _on_begin_frame)
    nghttp2_session_callbacks_set_unpack_extension_callback(_callbacks, _on_extension)
    return True


cdef bint _start(Framer* f) noexcept:
    """Makes libnghttp2's session and submits the first SETTINGS; False: out of memory."""
    cdef nghttp2_settings_entry settings[4]
    cdef nghttp2_option* option
    cdef const H2Limits* limits = f.limits
    cdef int r
    if nghttp2_option_new(&option) != 0: return False
    nghttp2_option_set_no_auto_window_update(option, 1)
    # it would keep a hundred for a tree of priorities, and take new memory for each new stream; see Framer.over
    nghttp2_option_set_no_closed_streams(option, 1)
    # the laws of messages (RFC 9113 section 8) are held here, where their fields are looked at anyway
    nghttp2_option_set_no_http_messaging(option, 1)
    nghttp2_option_set_max_send_header_block_length(option, 4 * 131072)
    gl_option_continuations(option, CONTINUATIONS)
    for r in range(NGHTTP2_CONTINUATION + 1, 256): nghttp2_option_set_user_recv_extension_type(option, <uint8_t>r)
    # its own limit only queues a GOAWAY and parses on: ours comes first
    gl_option_resets(option, 2 * <uint64_t>limits.resets + 1000, limits.resets + 1000)
    if f.s.server: r = nghttp2_session_server_new3(&f.ng, _callbacks, f, option, _mem)
    else: r = nghttp2_session_client_new3(&f.ng, _callbacks, f, option, _mem)
    nghttp2_option_del(option)
    if r != 0: return False
    settings[0].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    settings[0].value = limits.window
    settings[1].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    settings[1].value = limits.head_bytes + 32 * limits.headers if f.s.server else MAX_HEAD
    settings[2].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    settings[2].value = limits.streams
    if not f.s.server:
        settings[2].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
        settings[2].value = 0
        # RFC 9218: our streams to an instance need no tree of priorities. One that has much to send is before others at most
        # with what is pending of it, which is as much as a window.
        settings[3].settings_id = NO_RFC7540_PRIORITIES
        settings[3].value = 1
    if nghttp2_submit_settings(f.ng, NGHTTP2_FLAG_NONE, settings, 3 if f.s.server else 4) != 0: return False
    return nghttp2_session_set_local_window_size(f.ng, NGHTTP2_FLAG_NONE, 0, <int32_t>limits.connection_window) == 0


cdef Session* _open(bint server, const H2Limits* limits, const H2Hooks* hooks, void* engine, Conn* conn) noexcept:
    cdef Framer* f = <Framer*>calloc(1, sizeof(Framer))
    if f == NULL: return NULL
    f.limits = limits
    f.hooks = hooks
    f.engine = engine
    f.s.conn = conn
    f.s.server = server
    f.s.max_streams = 100
    f.highest = -1
    f.ahead = PREFACE if server else 0
    f.gap_to = -1
    f.resets = <int64_t>limits.resets * RESET_MS
    f.control = <int64_t>limits.control * CONTROL_MS
    f.refilled = gl_h2_ms()
    if not _make_callbacks() or not _start(f):
        _free(&f.s)
        return NULL
    _touch(f)
    return &f.s


cdef void _free(Session* s) noexcept:
    cdef Framer* f = <Framer*>s
    cdef int i
    if f.ng != NULL: nghttp2_session_del(f.ng)
    while f.lent != NULL: _take_back(f, <char*>(f.lent + 1))
    _forget_text(f)
    for i in range(2):
        _give(f.came[i].lines, NULL)
        _give(f.went[i].lines, NULL)
    free(f)


cdef size_t _look_ahead(Framer* f, const uint8_t* p, size_t n, bint* late) noexcept:
    """How many bytes are to be received at once: until a frame that is late, or as many answers as the cache holds the streams of."""
    cdef int32_t streams[AHEAD]
    cdef int k = 0
    cdef size_t at = f.ahead
    if f.part_n:                   # a frame whose head was cut
        at = min(n, <size_t>(FRAME_HEAD - f.part_n))
        memcpy(f.part + f.part_n, p, at)
        f.part_n += <uint8_t>at
        if f.part_n < FRAME_HEAD: return n
        f.part_n = 0
        late[0] = f.s.server and _is_late(f, f.part)
        if late[0]: return at
        at += f.part[0] << 16 | f.part[1] << 8 | f.part[2]
    while at + FRAME_HEAD <= n and k < AHEAD:
        if f.s.server:
            late[0] = _is_late(f, p + at)
            if late[0]: return at
        elif p[at + 3] == NGHTTP2_HEADERS and (k == 0 or streams[k - 1] != _stream_of(p + at)):
            streams[k] = _stream_of(p + at)
            k += 1
        at += FRAME_HEAD + (p[at] << 16 | p[at + 1] << 8 | p[at + 2])
    _foresee(f, streams, k)
    if k == AHEAD and at < n:
        f.ahead = 0
        return at
    f.ahead = at - n if at > n else 0
    if at < n:
        f.part_n = <uint8_t>(n - at)
        memcpy(f.part, p + at, f.part_n)
    return n


cdef void _foresee(Framer* f, const int32_t* streams, int n) noexcept:
    """Brings what the next answers need into the cache, for all of them at once rather than one after the other: their streams have
    waited for long."""
    cdef Conn* found[AHEAD]
    cdef Conn* c
    cdef int i, k = 0
    for i in range(n):
        c = <Conn*>nghttp2_session_get_stream_user_data(f.ng, streams[i])
        if c != NULL:
            gl_foresee(c, sizeof(Conn))
            found[k] = c
            k += 1
    for i in range(k):
        if found[i].x != NULL: gl_foresee(found[i].x, sizeof(Exchange))
    for i in range(k):
        if found[i].x != NULL and found[i].x.client != NULL: gl_foresee(found[i].x.client, sizeof(Conn))


cdef int _receive(Session* s, const char* p, size_t n) noexcept:
    cdef Framer* f = <Framer*>s
    cdef ssize_t r = 0
    cdef size_t k
    cdef bint late = False
    if f.broken: return -1
    _refill(f)
    while n and r >= 0 and not late:
        k = _look_ahead(f, <const uint8_t*>p, n, &late)
        r = nghttp2_session_mem_recv(f.ng, <const uint8_t*>p, k)
        p += k
        n -= k
    if f.n_asked: _tell(f)
    if f.block == NOTHING: _forget_text(f)
    # the connection's window opens at once: a stream whose reader is slow must not stall the others
    if f.consumed: nghttp2_session_consume_connection(f.ng, f.consumed)
    f.consumed = 0
    if late: _punish(f, H2_STREAM_CLOSED)
    elif r < 0: _punish(f, H2_PROTOCOL_ERROR if r == NGHTTP2_ERR_BAD_CLIENT_MAGIC else H2_ENHANCE_YOUR_CALM)
    elif nghttp2_session_get_outbound_queue_size(f.ng) > QUEUED + 8 * f.limits.streams: _punish(f, H2_ENHANCE_YOUR_CALM)
    if nghttp2_session_want_write(f.ng): _touch(f)
    return -1 if f.broken else 0


cdef ssize_t _produce(Session* s, char* o, size_t room) noexcept:
    cdef Framer* f = <Framer*>s
    cdef ssize_t n
    f.o = o
    f.room = room
    f.used = 0
    while True:
        if f.rest_len == 0:
            n = nghttp2_session_mem_send(f.ng, &f.rest)
            if n < 0: return -1
            if n == 0: break
            f.rest_len = n
        if f.rest_len > room - f.used: break
        memcpy(o + f.used, f.rest, f.rest_len)
        f.used += f.rest_len
        f.rest_len = 0
    return <ssize_t>f.used


cdef bint _finished(Session* s) noexcept:
    cdef Framer* f = <Framer*>s
    if f.rest_len or nghttp2_session_want_write(f.ng): return False
    return f.broken or not nghttp2_session_want_read(f.ng)


cdef void _bind(Session* s, int32_t stream, Conn* c) noexcept:
    cdef Framer* f = <Framer*>s
    cdef Conn* old = _conn(f, stream)
    if old != NULL: _unlink(old)
    if nghttp2_session_set_stream_user_data(f.ng, stream, c) == 0 and c != NULL: _link(f, c, stream)


cdef void _refuse(Session* s, int32_t stream, uint32_t error) noexcept:
    cdef Framer* f = <Framer*>s
    nghttp2_submit_rst_stream(f.ng, NGHTTP2_FLAG_NONE, stream, error)
    _touch(f)


cdef nghttp2_data_provider* _provider(Conn* c) noexcept:
    """Of a body that follows; NULL: none does."""
    if c.eof and c.out_len == 0 and c.trailers_len == 0: return NULL
    _body.read_callback = _read
    return &_body

cdef nghttp2_data_provider _body


cdef char* _head(Conn* c, const char* text, size_t n, int* k) noexcept:
    """A response's text -> a copy of it on loan, and k pairs in `_nv` that lie in there; NULL: it cannot be sent."""
    cdef Framer* f = <Framer*>c.session
    cdef const char* line = <const char*>memchr(text, 10, n)
    cdef char* p = _lend(f, text, n) if c.stream and line != NULL and n >= 14 else NULL
    if p == NULL: return NULL
    _pair(&_nv[0], b":status", 7, p + STATUS_AT, 3, UNCOPIED)
    k[0] = _pairs(&f.went[0], p + (line + 1 - text), p + n, &_nv[1], NULL, UNCOPIED) + 1
    if k[0] > 0: return p
    _take_back(f, p)
    return NULL


cdef int _respond(Conn* c, char* text, size_t n, bint end) noexcept:
    cdef Framer* f = <Framer*>c.session
    cdef int k
    cdef char* lent = _head(c, text, n, &k)
    if lent == NULL: return -1
    if nghttp2_submit_response(f.ng, c.stream, _nv, k, NULL if end else _provider(c)) != 0:
        _take_back(f, lent)
        return -1
    _touch(f)
    return 0


cdef int _inform(Conn* c, char* text, size_t n) noexcept:
    cdef Framer* f = <Framer*>c.session
    cdef int k
    cdef char* lent = _head(c, text, n, &k)
    if lent == NULL: return -1
    if nghttp2_submit_headers(f.ng, NGHTTP2_FLAG_NONE, c.stream, NULL, _nv, k, NULL) != 0:
        _take_back(f, lent)
        return -1
    _touch(f)
    return 0


cdef int _ask(Session* s, Conn* u, char* text, size_t n, bint end, bint https) noexcept:
    cdef Framer* f = <Framer*>s
    cdef nghttp2_nv* nv = &_nv[0]
    cdef char* p = _lend(f, text, n) if not s.full and not f.broken else NULL
    cdef char* e = p + n
    cdef char* target
    cdef char* space
    cdef char* line
    cdef int k = -1
    cdef int32_t stream
    if p == NULL: return -1
    target = gl_find(p, e, 32)
    space = gl_find(target + 1, e, 32)
    line = gl_find(space, e, 10)
    if line < e:
        _pair(&nv[0], b":authority", 10, NULL, 0, UNCOPIED)
        _pair(&nv[1], b":method", 7, p, target - p, UNCOPIED)
        _pair(&nv[2], b":scheme", 7, b"https" if https else b"http", 5 if https else 4, UNCOPIED)
        _pair(&nv[3], b":path", 5, target + 1, space - target - 1, UNCOPIED)
        k = _pairs(&f.went[0], line + 1, e, nv + 4, nv, UNCOPIED)
    if k < 0:
        _take_back(f, p)
        return -1
    k += 4
    if nv[0].valuelen == 0:
        nv += 1
        k -= 1
    stream = nghttp2_submit_request(f.ng, NULL, nv, k, NULL if end else _provider(u), u)
    if stream < 0:
        _take_back(f, p)
        if stream != NGHTTP2_ERR_NOMEM: s.full = 1
        return -1
    _link(f, u, stream)
    if n > 5 and memcmp(text, b"HEAD ", 5) == 0: u.phase = BODILESS
    _touch(f)
    return 0


cdef void _more(Conn* c) noexcept:
    cdef Framer* f = <Framer*>c.session
    if c.stream == 0: return
    if c.deferred:
        c.deferred = 0
        nghttp2_session_resume_data(f.ng, c.stream)
    _touch(f)


cdef void _consume(Conn* c, size_t n) noexcept:
    cdef Framer* f = <Framer*>c.session
    if n > c.owed: n = c.owed
    c.owed -= n
    if c.stream == 0 or n == 0 or c.phase & ENDED: return
    nghttp2_session_consume_stream(f.ng, c.stream, n)
    if nghttp2_session_get_outbound_queue_size(f.ng): _touch(f)


cdef void _reset_stream(Conn* c, uint32_t error) noexcept:
    cdef Framer* f = <Framer*>c.session
    cdef int32_t stream = c.stream
    if stream == 0: return
    nghttp2_session_set_stream_user_data(f.ng, stream, NULL)
    _unlink(c)
    nghttp2_submit_rst_stream(f.ng, NGHTTP2_FLAG_NONE, stream, error)
    _touch(f)


cdef bint _was_sent(Conn* u) noexcept:
    return (u.phase & SENT) != 0


cdef void _go_away(Session* s, bint last) noexcept:
    cdef Framer* f = <Framer*>s
    if last: nghttp2_submit_goaway(f.ng, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(f.ng), H2_NO_ERROR, NULL, 0)
    else: nghttp2_submit_shutdown_notice(f.ng)
    _touch(f)


cdef void _ping(Session* s) noexcept:
    cdef Framer* f = <Framer*>s
    s.acked = 0
    nghttp2_submit_ping(f.ng, NGHTTP2_FLAG_NONE, NULL)
    _touch(f)


cdef H2Api _api
_api.version = H2_API
_api.open = _open
_api.free = _free
_api.receive = _receive
_api.produce = _produce
_api.finished = _finished
_api.bind = _bind
_api.refuse = _refuse
_api.respond = _respond
_api.inform = _inform
_api.ask = _ask
_api.more = _more
_api.consume = _consume
_api.reset = _reset_stream
_api.was_sent = _was_sent
_api.go_away = _go_away
_api.ping = _ping
api = PyCapsule_New(&_api, b"graylb._h2.api", NULL)


# ---- a face for tests and fuzzing -----------------------------------------------------------------------------------

cdef void _told_request(void* engine, Session* s, int32_t stream, const KnownHead* head, bint end) noexcept:
    if not read_as_scanned(head, True): (<Probe>engine)._note(("told otherwise", stream))
    (<Probe>engine)._request(stream, head.text[:head.n], end)

cdef void _told_response(void* engine, Conn* u, const KnownHead* head, bint end) noexcept:
    if not read_as_scanned(head, False): (<Probe>engine)._note(("told otherwise", u.stream))
    (<Probe>engine)._note(("response", u.stream, head.text[:head.n], bool(end)))

cdef void _told_data(void* engine, Conn* c, char* p, size_t n) noexcept:
    (<Probe>engine)._data(c, p[:n])

cdef void _told_end(void* engine, Conn* c, char* trailers, size_t n) noexcept:
    (<Probe>engine)._note(("end", c.stream, trailers[:n] if n else b""))

cdef void _told_drained(void* engine, Conn* c) noexcept:
    (<Probe>engine)._note(("drained", c.stream))

cdef void _told_closed(void* engine, Conn* c, uint32_t error) noexcept:
    (<Probe>engine)._closed(c, error)

cdef void _told_leaving(void* engine, Session* s) noexcept:
    (<Probe>engine)._note(("leaving",))

cdef void _told_rejected(void* engine, Session* s, int status) noexcept:
    (<Probe>engine)._note(("rejected", status))

cdef void _told_dirty(void* engine, Session* s) noexcept:
    (<Probe>engine).wakes += 1

cdef H2Hooks _recording
_recording.request = _told_request
_recording.response = _told_response
_recording.data = _told_data
_recording.end = _told_end
_recording.drained = _told_drained
_recording.closed = _told_closed
_recording.leaving = _told_leaving
_recording.rejected = _told_rejected
_recording.dirty = _told_dirty


cdef class Probe:
    """A session with hooks that record: `events` are tuples of the hook's name, the stream and what it was told. `told otherwise`
    comes before a head whose lines are not those of its text.

    A server binds each request, but when `refuses` is an error code: then it refuses it with that. `eager`: bodies are consumed as
    they come. `react` is called with each event, within the hook. `wakes` counts the calls of `dirty`.
    """

    cdef Session* s
    cdef H2Limits limits
    cdef dict conns            # stream -> address of its Conn
    cdef readonly list events
    cdef readonly int wakes
    cdef readonly bint broken
    cdef public object refuses
    cdef public bint eager
    cdef public object react

    def __init__(self, bint server, *, uint32_t streams=100, uint32_t window=65536, uint32_t connection_window=1 << 20,
                 uint32_t head_bytes=65536, uint32_t headers=100, uint32_t resets=500, uint32_t control=1000):
        if self.s != NULL: raise RuntimeError("a Probe begins once")
        self.limits = H2Limits(streams, window, connection_window, head_bytes, headers, resets, control)
        self.conns = {}
        self.events = []
        self.eager = True
        self.s = _open(server, &self.limits, &_recording, <void*>self, NULL)
        if self.s == NULL: raise MemoryError

    def __dealloc__(self):
        cdef Conn* c
        if self.s != NULL: _free(self.s)
        if self.conns is not None:
            for address in self.conns.values(): _drop(<Conn*><size_t>address)

    cdef void _note(self, tuple event) noexcept:
        self.events.append(event)
        if self.react is not None: self.react(event)

    cdef void _request(self, int32_t stream, bytes text, bint end) noexcept:
        if self.refuses is not None: _refuse(self.s, stream, self.refuses)
        else: _bind(self.s, stream, self._made(stream))
        self._note(("request", stream, text, bool(end)))

    cdef void _data(self, Conn* c, bytes data) noexcept:
        if self.eager: _consume(c, len(data))
        self._note(("data", c.stream, data))

    cdef void _closed(self, Conn* c, uint32_t error) noexcept:
        for stream, address in list(self.conns.items()):
            if <Conn*><size_t>address == c:
                del self.conns[stream]
                _drop(c)
                self._note(("closed", stream, error))
                return

    cdef Conn* _made(self, int32_t stream) noexcept:
        cdef Conn* c = <Conn*>calloc(1, sizeof(Conn))
        c.fd = -1
        self.conns[stream] = <size_t>c
        return c

    cdef Conn* _of(self, int32_t stream) except NULL:
        return <Conn*><size_t>self.conns[stream]

    def receive(self, bytes data):
        """0, or -1 when the connection is over."""
        cdef int r = _receive(self.s, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        self.broken = r < 0
        return r

    def produce(self, size_t room=65536, int most=1 << 30):
        """Everything to send, by buffers of so many bytes, in at most so many of them."""
        out = []
        self.s.dirty = 0           # as the engine says when a session has its turn
        buffer = bytearray(room)
        cdef char* o = buffer
        cdef ssize_t n
        while most > 0:
            n = _produce(self.s, o, room)
            if n < 0: raise MemoryError
            if n == 0: break
            out.append(bytes(buffer[:n]))
            most -= 1
        return b"".join(out)

    def respond(self, int32_t stream, bytes text, bint end=False):
        work = bytearray(text)
        return _respond(self._of(stream), work, len(work), end)

    def inform(self, int32_t stream, bytes text):
        work = bytearray(text)
        return _inform(self._of(stream), work, len(work))

    def ask(self, bytes text, bint end=False, bint https=False):
        """The request's stream, or -1."""
        cdef Conn* u = <Conn*>calloc(1, sizeof(Conn))
        work = bytearray(text)
        u.fd = -1
        if _ask(self.s, u, work, len(work), end, https) < 0:
            free(u)
            return -1
        self.conns[u.stream] = <size_t>u
        return u.stream

    def more(self, int32_t stream, bytes data=b"", bint eof=False, bytes trailers=b"", bint quiet=False):
        """Adds to what is pending; quiet: says nothing of it."""
        cdef Conn* c = self._of(stream)
        cdef size_t n = len(data)
        if c.out_off + c.out_len + n > c.out_cap:
            c.out_cap = c.out_off + c.out_len + n
            c.out = <char*>realloc(c.out, c.out_cap)
        if n: memcpy(c.out + c.out_off + c.out_len, PyBytes_AS_STRING(data), n)
        c.out_len += n
        if trailers:
            c.trailers = <char*>realloc(c.trailers, len(trailers) + TRAILERS_SLACK)
            memcpy(c.trailers, PyBytes_AS_STRING(trailers), len(trailers))
            memset(c.trailers + len(trailers), 0, TRAILERS_SLACK)
            c.trailers_len = <uint32_t>len(trailers)
        if eof: c.eof = 1
        if not quiet: _more(c)

    def pending(self, int32_t stream): return self._of(stream).out_len

    def owed(self, int32_t stream): return self._of(stream).owed

    def consume(self, int32_t stream, size_t n): _consume(self._of(stream), n)

    def reset(self, int32_t stream, uint32_t error):
        cdef Conn* c = self._of(stream)
        _reset_stream(c, error)
        _reset_stream(c, error)    # is harmless
        del self.conns[stream]
        _drop(c)

    def was_sent(self, int32_t stream): return bool(_was_sent(self._of(stream)))

    def go_away(self, bint last): _go_away(self.s, last)

    def ping(self): _ping(self.s)

    def use_up_ids(self):
        """As if all but one of a client's stream ids had been used."""
        nghttp2_session_set_next_stream_id((<Framer*>self.s).ng, 0x7fffffff)

    @property
    def state(self):
        names = []
        if self.s.full: names.append("full")
        if self.s.ending: names.append("ending")
        if self.s.acked: names.append("acked")
        if self.s.dirty: names.append("dirty")
        if _finished(self.s): names.append("finished")
        return names

    @property
    def n_streams(self): return self.s.n_streams

    @property
    def max_streams(self): return self.s.max_streams

    @property
    def queued(self):
        """Frames that wait to be sent."""
        return nghttp2_session_get_outbound_queue_size((<Framer*>self.s).ng)

    @property
    def lent(self):
        """Heads that libnghttp2 has yet to pack."""
        cdef Lent* each = (<Framer*>self.s).lent
        n = 0
        while each != NULL:
            n += 1
            each = each.next
        return n

    @property
    def held(self):
        """Bytes kept for a header block."""
        cdef Framer* f = <Framer*>self.s
        return f.text.cap + f.lines.cap + f.cookies.cap

    @property
    def deflater_bytes(self):
        """Of the table of heads that were sent."""
        return nghttp2_session_get_hd_deflate_dynamic_table_size((<Framer*>self.s).ng)

    @property
    def bound(self):
        """Streams in the session's list."""
        cdef Conn* c = self.s.streams
        out = []
        while c != NULL:
            out.append(c.stream)
            c = c.next
        return out


cdef void _drop(Conn* c) noexcept:
    free(c.out)
    free(c.trailers)
    free(c)


def turn_clock(uint64_t ms):
    """For tests of limits: time goes on by so much."""
    global gl_h2_skew
    gl_h2_skew += ms


def stop_clock(bint stopped):
    """For tests whose steps take what they take: time stands still, or goes on."""
    global gl_h2_stopped
    gl_h2_stopped = 0
    if stopped: gl_h2_stopped = gl_h2_ms() - gl_h2_skew


def blocks(steps):
    """For tests of `_pool`. Each step (number, size) resizes a block to that, takes it where there is none, or gives it back (0).

    (whether each had its bytes all along, bytes that are parked by multiples of 64 when all are given back)"""
    cdef dict held = {}
    cdef char* p
    cdef size_t size, old
    cdef int number
    cdef bint kept = True
    for number, size in steps:
        old, address = held.pop(number, (0, 0))
        p = <char*><size_t>address
        if size == 0:
            _give(p, NULL)
            continue
        p = <char*>(_resize(p, size, NULL) if old else _take_zeroed(size, 1, NULL))
        if any([each != (number & 127 if old else 0) for each in p[:min(old, size) if old else size]]): kept = False
        memset(p, number & 127, size)
        held[number] = (size, <size_t>p)
    for _, address in held.values(): _give(<void*><size_t>address, NULL)
    return kept, [_parked[number] for number in range(BINS + 1)]
