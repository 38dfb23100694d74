"""HTTP/1 without I/O: see _http1.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #ifndef GRAYLB_TEXT
    #define GRAYLB_TEXT
    #include <stdint.h>
    #include <string.h>
    #ifdef __SSE2__
    #include <emmintrin.h>
    #endif
    /* token characters (RFC 9110 5.6.2) mapped to lower case; 0: not a token character */
    static const unsigned char GL_TOKEN[256] = {
      ['!']='!',['#']='#',['$']='$',['%']='%',['&']='&',['\\'']='\\'',['*']='*',['+']='+',['-']='-',['.']='.',['^']='^',
      ['_']='_',['`']='`',['|']='|',['~']='~',
      ['0']='0',['1']='1',['2']='2',['3']='3',['4']='4',['5']='5',['6']='6',['7']='7',['8']='8',['9']='9',
      ['a']='a',['b']='b',['c']='c',['d']='d',['e']='e',['f']='f',['g']='g',['h']='h',['i']='i',['j']='j',['k']='k',
      ['l']='l',['m']='m',['n']='n',['o']='o',['p']='p',['q']='q',['r']='r',['s']='s',['t']='t',['u']='u',['v']='v',
      ['w']='w',['x']='x',['y']='y',['z']='z',
      ['A']='a',['B']='b',['C']='c',['D']='d',['E']='e',['F']='f',['G']='g',['H']='h',['I']='i',['J']='j',['K']='k',
      ['L']='l',['M']='m',['N']='n',['O']='o',['P']='p',['Q']='q',['R']='r',['S']='s',['T']='t',['U']='u',['V']='v',
      ['W']='w',['X']='x',['Y']='y',['Z']='z'};
    static inline int gl_is_value(unsigned char c) { return (c >= 0x20 && c != 0x7f) || c == 9; }
    static inline int gl_is_target(unsigned char c) { return c > 0x20 && c < 0x7f && c != '#'; }
    /* first byte that may not stand in a field value; e when there is none */
    static inline const char *gl_skip_value(const char *p, const char *e) {
    #ifdef __SSE2__
      while (e - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)p);
        __m128i low = _mm_cmpeq_epi8(_mm_min_epu8(v, _mm_set1_epi8(0x1f)), v);
        __m128i tab = _mm_cmpeq_epi8(v, _mm_set1_epi8(9)), del = _mm_cmpeq_epi8(v, _mm_set1_epi8(0x7f));
        int m = _mm_movemask_epi8(_mm_or_si128(_mm_andnot_si128(tab, low), del));
        if (m) return p + __builtin_ctz(m);
        p += 16; }
    #endif
      while (p < e && gl_is_value((unsigned char)*p)) p++;
      return p; }
    /* past letters, digits and `-`, as far as a look at several at once tells: all of nearly every name */
    static inline const char *gl_skip_plain(const char *p, const char *e) {
    #ifdef __SSE2__
      while (e - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)p), low = _mm_or_si128(v, _mm_set1_epi8(0x20));
        __m128i letter = _mm_and_si128(_mm_cmpgt_epi8(low, _mm_set1_epi8('a' - 1)), _mm_cmplt_epi8(low, _mm_set1_epi8('z' + 1)));
        __m128i digit = _mm_and_si128(_mm_cmpgt_epi8(v, _mm_set1_epi8('0' - 1)), _mm_cmplt_epi8(v, _mm_set1_epi8('9' + 1)));
        int m = _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(letter, digit), _mm_cmpeq_epi8(v, _mm_set1_epi8('-'))));
        if (m != 0xffff) return p + __builtin_ctz(~m);
        p += 16; }
    #endif
      return p; }
    static inline const char *gl_skip_token(const char *p, const char *e) {
      while (p < e && GL_TOKEN[(unsigned char)*p]) p++;
      return p; }
    #ifdef __SSE2__
    /* which of them may not stand in a target */
    static inline int gl_odd_in_target(__m128i v) { /* as signed bytes: what is above 0x7f is below all */
      __m128i in = _mm_and_si128(_mm_cmpgt_epi8(v, _mm_set1_epi8(0x20)), _mm_cmplt_epi8(v, _mm_set1_epi8(0x7f)));
      return _mm_movemask_epi8(_mm_andnot_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('#')), in)) ^ 0xffff; }
    #endif
    static inline const char *gl_skip_target(const char *p, const char *e) {
    #ifdef __SSE2__
      while (e - p >= 16) {
        int m = gl_odd_in_target(_mm_loadu_si128((const __m128i *)p));
        if (m) return p + __builtin_ctz(m);
        p += 16; }
    #endif
      while (p < e && gl_is_target((unsigned char)*p)) p++;
      return p; }
    static inline unsigned char gl_lower(unsigned char c) { return (c >= 'A' && c <= 'Z') ? c | 0x20 : c; }
    static inline int gl_same(const char *a, const char *low, size_t n) {
      if (__builtin_constant_p(n) && !memcmp(a, low, n)) return 1; /* a few instructions where the length is known */
      for (size_t i = 0; i < n; i++) if (gl_lower((unsigned char)a[i]) != (unsigned char)low[i]) return 0;
      return 1; }
    #endif
    """
    const char* gl_skip_value(const char*, const char*)
    const char* gl_skip_plain(const char*, const char*)
    const char* gl_skip_token(const char*, const char*)
    const char* gl_skip_target(const char*, const char*)
    unsigned char gl_lower(unsigned char)
    bint gl_is_value(unsigned char)
    bint gl_same(const char*, const char*, size_t)
    const unsigned char* GL_TOKEN

cdef enum:
    MAX_HEADERS = 256      # compiled bound; the configured limit is lower or equal

# What a header is to us. Order matters nowhere but in `classify`.
cdef enum HeaderId:
    H_OTHER = 0
    H_CONNECTION
    H_KEEP_ALIVE
    H_PROXY_CONNECTION
    H_TE
    H_TRAILER
    H_TRANSFER_ENCODING
    H_CONTENT_LENGTH
    H_UPGRADE
    H_HTTP2_SETTINGS
    H_HOST
    H_EXPECT
    H_XFF
    H_XFP
    H_XFH
    H_XFCC
    H_FORWARDED
    H_VIA
    H_COOKIE
    H_USER_AGENT
    H_ACCEPT
    H_CONTENT_TYPE
    H_BAGGAGE
    H_MARK
    H_CH_MOBILE
    H_GRAYLB
    H_GRPC_TIMEOUT
    H_GRPC_STATUS
    H_UNDERSCORE

cdef enum HeaderUse:
    DROP = 0               # not forwarded
    RUN = 1                # forwarded as received: the line is `name: value CRLF` and nothing else
    EMIT = 2               # forwarded, but written anew without stray white space

cdef enum BodyKind:
    BODY_NONE = 0
    BODY_LENGTH
    BODY_CHUNKED
    BODY_CLOSE

cdef enum Grpc:
    GRPC_NONE = 0
    GRPC                   # content-type application/grpc: it takes HTTP/2
    GRPC_WEB               # application/grpc-web…: as any other request, but rules on services, methods and metadata hold

cdef struct Header:
    const char* name
    const char* value
    uint32_t name_len
    uint32_t value_len
    uint16_t id
    uint16_t use

cdef struct Head:
    const char* start      # first byte of the message
    const char* fields     # first header line
    const char* end        # behind the blank line
    const char* method
    const char* target     # as received
    const char* path       # origin form, without query; points into target or to a literal "/"
    const char* query      # behind the `?`, or NULL
    const char* host       # the authority that routes: absolute form's, else the Host header's
    const char* reason
    uint32_t method_len
    uint32_t target_len
    uint32_t path_len
    uint32_t query_len
    uint32_t host_len
    uint32_t reason_len
    int64_t content_length # -1: none
    int status
    int count
    uint8_t minor
    uint8_t is_head
    uint8_t is_response
    uint8_t chunked
    uint8_t close          # Connection: close
    uint8_t keep_alive     # Connection: keep-alive
    uint8_t has_tokens     # Connection names further headers
    uint8_t expect_continue
    uint8_t upgrade        # an Upgrade header is there
    uint8_t asks_upgrade   # Connection names it
    uint8_t websocket      # a lawful WebSocket handshake, or the answer that accepts one
    uint8_t is_grpc        # see Grpc
    uint8_t typed          # a Content-Type was seen
    uint8_t absolute
    uint8_t hosts
    int error              # code of graylb.errors when a scan answers -1
    int limit              # headers allowed
    Header headers[MAX_HEADERS]

cdef struct Line:          # of a head, lawful by itself: `name: value CRLF`, no capitals in the name, no white space around the value
    uint32_t at            # in the head's text
    uint32_t name_len
    uint32_t value_len
    int id                 # see HeaderId

cdef struct KnownHead:     # a whole head, its lines told by who wrote it
    char* text
    size_t n
    const Line* lines
    int count
    uint32_t method_len    # a request's
    uint32_t target_len

cdef struct Body:
    uint8_t kind
    uint8_t state
    uint32_t line          # bytes of chunk-size lines, extensions and trailers since the last data byte
    int64_t left

cdef struct Piece:
    char* data             # decoded bytes, contiguous
    size_t length
    size_t used            # bytes of input that belong to this message
    bint done              # the message ends here

cdef struct Client:
    # what the forwarding headers say of the client side
    const char* address
    uint32_t address_len
    const char* scheme
    uint32_t scheme_len
    const char* certificate    # what is told of the one it showed
    uint32_t certificate_len

cdef struct ForwardingPolicy:
    uint8_t x_forwarded    # 0 off, 1 append, 2 replace
    uint8_t forwarded
    uint8_t via

cdef bint same_name(const char* a, const char* low, size_t n) noexcept nogil
cdef void reset_head(Head* h, int limit) noexcept nogil
cdef int scan_request(Head* h, const char* p, const char* e, int limit) noexcept nogil
cdef int scan_response(Head* h, const char* p, const char* e, int limit) noexcept nogil
cdef int read_request(Head* h, const KnownHead* k, int limit) noexcept nogil
cdef int read_response(Head* h, const KnownHead* k, int limit) noexcept nogil
cdef int classify(const char* n, size_t size, bint plain) noexcept nogil
cdef bint find_blank_line(const char* p, const char* e) noexcept nogil
cdef void start_body(Body* b, uint8_t kind, int64_t length) noexcept nogil
cdef int decode_body(Body* b, char* p, size_t n, Piece* out) noexcept nogil
cdef char* write_request(Head* h, char* o, ForwardingPolicy* policy, Client* client, uint8_t body_kind,
                         const char* strip, size_t strip_len, const char* prefix, size_t prefix_len) noexcept nogil
cdef char* write_response(Head* h, char* o, uint8_t body_kind, int connection, bint via,
                          const char* extra, size_t extra_len) noexcept nogil
cdef char* put_line(char* e, const char* line, size_t n) noexcept nogil
cdef char* chunk_head(char* data, size_t n) noexcept nogil
cdef bint read_as_scanned(const KnownHead* k, bint request)
