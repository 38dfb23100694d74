"""W3C Trace Context: see _trace.pyx."""

from libc.stdint cimport uint64_t

cdef extern from * nogil:
    """
    #ifndef GRAYLB_TRACE
    #define GRAYLB_TRACE
    #include <endian.h>
    #include <stdint.h>
    #include <string.h>
    #ifdef __SSE2__
    #include <emmintrin.h>
    #endif
    /* 16 digits of a number. Each half of a byte in a byte of its own, then all of them digits at once */
    static inline void gl_put_hex(char *o, uint64_t n) {
      n = htobe64(n);
    #ifdef __SSE2__
      __m128i v = _mm_cvtsi64_si128((long long)n), low = _mm_set1_epi8(15);
      v = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi64(v, 4), low), _mm_and_si128(v, low));
      v = _mm_add_epi8(_mm_add_epi8(v, _mm_set1_epi8('0')), _mm_and_si128(_mm_cmpgt_epi8(v, _mm_set1_epi8(9)), _mm_set1_epi8(39)));
      _mm_storeu_si128((__m128i *)o, v);
    #else
      const unsigned char *p = (const unsigned char *)&n; int i;
      for (i = 0; i < 8; i++) { o[2 * i] = "0123456789abcdef"[p[i] >> 4]; o[2 * i + 1] = "0123456789abcdef"[p[i] & 15]; }
    #endif
    }
    /* of 8 digits, which they must be: from bytes to numbers, and neighbours together, three times */
    static inline uint64_t gl_get_half(const char *p) {
      uint64_t v; memcpy(&v, p, 8); v = be64toh(v);
      v = (v & 0x0f0f0f0f0f0f0f0full) + 9 * ((v >> 6) & 0x0101010101010101ull);
      v = (v | v >> 4) & 0x00ff00ff00ff00ffull; v = (v | v >> 8) & 0x0000ffff0000ffffull;
      return (v | v >> 16) & 0xffffffffu; }
    static inline uint64_t gl_get_hex(const char *p) { return gl_get_half(p) << 32 | gl_get_half(p + 8); }
    #endif
    """
    void gl_put_hex(char*, uint64_t)             # 16 digits
    uint64_t gl_get_hex(const char*)             # of 16 digits, which they must be

cdef struct Context_:
    # of a traceparent, in place
    const char* trace_id   # 32 hexadecimal digits
    const char* span_id    # 16
    int sampled

cdef bint read_parent(const char* p, size_t n, Context_* found) noexcept nogil
