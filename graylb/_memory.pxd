"""Which mark a trace has: see _memory.pyx."""

from libc.stdint cimport uint64_t

cdef enum:
    N_WAYS = 8             # entries of a bucket

cdef class Memory:
    cdef char* base
    cdef size_t size
    cdef uint64_t buckets
    cdef uint64_t seed
    cdef uint64_t* _bucket(self, uint64_t high, uint64_t low) noexcept
    cdef bint _read(self, const uint64_t* at, uint64_t* found) noexcept
    cdef void _write(self, uint64_t* at, uint64_t* fresh) noexcept
    cdef int recall(self, const char* trace_id, uint64_t now, char* mark) noexcept
    cdef bint remember(self, const char* trace_id, const char* mark, int n, uint64_t now, uint64_t lifetime) noexcept
