"""W3C Trace Context: see _trace.pyx."""

from libc.stdint cimport uint64_t

cdef struct Context_:
    # of a traceparent, in place
    const char* trace_id   # 32 hexadecimal digits
    const char* span_id    # 16
    int sampled

cdef bint read_parent(const char* p, size_t n, Context_* found) noexcept nogil
cdef void put_hex(char* o, uint64_t n) noexcept nogil
cdef uint64_t get_hex(const char* digits) noexcept nogil
cdef uint64_t low_half(const char* trace_id) noexcept nogil
