"""W3C Trace Context, level 1, without I/O: what a traceparent says (section 3.2), and ids in hexadecimal."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cdef extern from "<endian.h>" nogil:
    uint64_t gl_big_endian "htobe64"(uint64_t)

cdef enum:
    PARENT = 55            # bytes of a traceparent of version 00


cdef inline int _digit(char c) noexcept nogil:
    """-1: no digit; capitals are none here."""
    if 48 <= c <= 57: return c - 48
    return c - 87 if 97 <= c <= 102 else -1


cdef bint _id(const char* p, int n) noexcept nogil:
    """Hexadecimal digits, not all of them nought."""
    cdef int i
    cdef bint any_ = False
    for i in range(n):
        if _digit(p[i]) < 0: return False
        if p[i] != 48: any_ = True
    return any_


cdef bint read_parent(const char* p, size_t n, Context_* found) noexcept nogil:
    """False: it is not valid, and the trace begins anew. Of later versions what version 00 knows is read."""
    cdef int high, low
    if n < PARENT or _digit(p[0]) < 0 or _digit(p[1]) < 0 or (p[0] == 102 and p[1] == 102): return False
    if p[0] == 48 and p[1] == 48:
        if n != PARENT: return False
    elif n > PARENT and p[PARENT] != 45: return False
    if p[2] != 45 or p[35] != 45 or p[52] != 45: return False
    high = _digit(p[53])
    low = _digit(p[54])
    if high < 0 or low < 0 or not _id(p + 3, 32) or not _id(p + 36, 16): return False
    found.trace_id = p + 3
    found.span_id = p + 36
    found.sampled = low & 1
    return True


cdef void put_hex(char* o, uint64_t n) noexcept nogil:
    """16 digits: eight halves of bytes at a time, each in a byte of its own, and then all of them digits at once."""
    cdef uint64_t half, letters
    cdef int i
    for i in range(2):
        half = n >> 32 if i == 0 else n & <uint64_t>0xffffffff
        half = (half << 16 | half) & <uint64_t>0x0000ffff0000ffff
        half = (half << 8 | half) & <uint64_t>0x00ff00ff00ff00ff
        half = (half << 4 | half) & <uint64_t>0x0f0f0f0f0f0f0f0f
        letters = (half + <uint64_t>0x0606060606060606) >> 4 & <uint64_t>0x0101010101010101
        half = gl_big_endian(half + <uint64_t>0x3030303030303030 + letters * 39)
        memcpy(o + 8 * i, &half, 8)


cdef uint64_t get_hex(const char* digits) noexcept nogil:
    """Of 16 digits, which they must be."""
    cdef uint64_t n = 0
    cdef int i
    for i in range(16): n = n << 4 | <uint64_t>_digit(digits[i])
    return n


cdef uint64_t low_half(const char* trace_id) noexcept nogil:
    """The last 64 bits, by which a share of all traces is taken, as OpenTelemetry's TraceIdRatioBased does."""
    return get_hex(trace_id + 16)


def parent_of(bytes value):
    """(trace id, span id, sampled), or None."""
    cdef Context_ found
    if not read_parent(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), &found): return None
    return found.trace_id[:32].decode(), found.span_id[:16].decode(), bool(found.sampled)


def hex_of(uint64_t n):
    """16 digits."""
    cdef char digits[16]
    put_hex(digits, n)
    return digits[:16].decode()
