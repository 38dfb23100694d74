"""W3C Trace Context, level 1, without I/O: what a traceparent says (section 3.2), and ids in hexadecimal."""

from libc.stdint cimport uint64_t
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cdef extern from * nogil:
    """
    #include <stdint.h>
    #ifdef __SSE2__
    #include <emmintrin.h>
    #endif
    /* of 16 characters: -1: one is no lower-case digit; else whether one of them is not 0 */
    static inline int gl_id(const char *p) {
    #ifdef __SSE2__
      __m128i v = _mm_loadu_si128((const __m128i *)p);
      __m128i number = _mm_and_si128(_mm_cmpgt_epi8(v, _mm_set1_epi8('0' - 1)), _mm_cmplt_epi8(v, _mm_set1_epi8('9' + 1)));
      __m128i letter = _mm_and_si128(_mm_cmpgt_epi8(v, _mm_set1_epi8('a' - 1)), _mm_cmplt_epi8(v, _mm_set1_epi8('f' + 1)));
      if (_mm_movemask_epi8(_mm_or_si128(number, letter)) != 0xffff) return -1;
      return _mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_set1_epi8('0'))) != 0xffff;
    #else
      int i, some = 0;
      for (i = 0; i < 16; i++) {
        if (!((p[i] >= '0' && p[i] <= '9') || (p[i] >= 'a' && p[i] <= 'f'))) return -1;
        some |= p[i] != '0'; }
      return some;
    #endif
    }
    """
    int gl_id(const char*)

cdef enum:
    PARENT = 55            # bytes of a traceparent of version 00


cdef inline int _digit(char c) noexcept nogil:
    """-1: no digit; capitals are none here."""
    if 48 <= c <= 57: return c - 48
    return c - 87 if 97 <= c <= 102 else -1


cdef bint read_parent(const char* p, size_t n, Context_* found) noexcept nogil:
    """False: it is not valid, and the trace begins anew. Of later versions what version 00 knows is read."""
    cdef int high, low, first, second
    if n < PARENT or _digit(p[0]) < 0 or _digit(p[1]) < 0 or (p[0] == 102 and p[1] == 102): return False
    if p[0] == 48 and p[1] == 48:
        if n != PARENT: return False
    elif n > PARENT and p[PARENT] != 45: return False
    if p[2] != 45 or p[35] != 45 or p[52] != 45: return False
    high = _digit(p[53])
    low = _digit(p[54])
    first = gl_id(p + 3)
    second = gl_id(p + 19)
    if high < 0 or low < 0 or first < 0 or second < 0 or not (first or second) or gl_id(p + 36) <= 0: return False
    found.trace_id = p + 3
    found.span_id = p + 36
    found.sampled = low & 1
    return True


def parent_of(bytes value):
    """(trace id, span id, sampled), or None."""
    cdef Context_ found
    if not read_parent(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), &found): return None
    return found.trace_id[:32].decode(), found.span_id[:16].decode(), bool(found.sampled)


def hex_of(uint64_t n):
    """16 digits."""
    cdef char digits[16]
    gl_put_hex(digits, n)
    return digits[:16].decode()
