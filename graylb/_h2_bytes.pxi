# Of `_h2`: bytes looked at many at a time, and other C.

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
