# Part of _accesslog.pyx: texts, numbers and times as bytes; escapes.

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
