"""Which mark a trace has, for services that pass on nothing but `traceparent`; without I/O and clock.

All workers of a proxy share one memory, for the calls that a request makes may come to another worker than it did itself.
It is a table of fixed size, and what finds no room takes the place of what would be forgotten first:

    offset 0   64 bytes: magic, a random seed
    offset 64  buckets of 8 entries of 160 bytes: u64 sum, u64 trace[2], u64 forgotten << 8 | n, char mark[128]

No locks: a worker may be killed at any moment. An entry is written and read word by word, and its `sum` is one of all the
words that it has: one that is read while it is written, that two have written at once, or that was left half-written, has
another sum and is none. (A sum of 64 bits: a wrong entry would be taken for a right one once in 2**64 such accidents.)
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from graylb._mark cimport MAX_MARK

import os
import struct

cdef extern from * nogil:
    """
    #include <sys/mman.h>
    static void *gl_map_memory(int fd, size_t n) {
      void *p = mmap(0, n, PROT_READ | PROT_WRITE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED, fd, 0);
      return p == MAP_FAILED ? 0 : p; }
    static void gl_unmap_memory(void *p, size_t n) { munmap(p, n); }
    #define gl_put_word(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define gl_put_sum(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define gl_word(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    """
    void* gl_map_memory(int, size_t)
    void gl_unmap_memory(void*, size_t)
    void gl_put_word(uint64_t*, uint64_t)
    void gl_put_sum(uint64_t*, uint64_t)
    uint64_t gl_word(const uint64_t*)

cdef enum:
    HEADER = 64
    WORDS = 20             # of an entry
    FIRST = 4              # words before the mark

WAYS = N_WAYS
BUCKETS = 8192
"""Of a proxy's memory: 65,536 traces, 10 MiB, which are taken only as they are written to."""

cdef uint64_t MAGIC = 0x314b52414d4c5947   # "GYLMARK1"


def create(int buckets=BUCKETS):
    """A new, empty memory: the descriptor of what lives as long as anybody has it open. Raises OSError."""
    fd = os.memfd_create("graylb-marks", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, HEADER + buckets * N_WAYS * WORDS * 8)
        os.pwrite(fd, struct.pack("=QQ", MAGIC, int.from_bytes(os.urandom(8), "little")), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


cdef inline uint64_t _mixed(uint64_t h, uint64_t w) noexcept nogil:
    """One step of a hash over words: both multiplications are by odd numbers, so no two words of one place come out alike."""
    h = (h ^ w) * <uint64_t>0x9e3779b97f4a7c15
    h ^= h >> 32
    h *= <uint64_t>0xd6e8feb86659fd93
    return h ^ h >> 29


cdef inline uint64_t _half(const char* p) noexcept nogil:
    """16 hexadecimal digits, lower case."""
    cdef uint64_t n = 0
    cdef int i
    for i in range(16): n = n << 4 | <uint64_t>(p[i] - 48 if p[i] <= 57 else p[i] - 87)
    return n


cdef class Memory:
    """fd: of `create`, not needed any more afterwards; -1: a memory of one's own, of so many buckets.

    Raises ValueError for what is no memory, OSError and MemoryError.
    """

    def __cinit__(self, int fd=-1, int buckets=BUCKETS):
        cdef size_t bucket = N_WAYS * WORDS * 8
        self.size = os.fstat(fd).st_size if fd >= 0 else HEADER + buckets * bucket
        if self.size < HEADER + bucket or (self.size - HEADER) % bucket:
            raise ValueError(f"{self.size} bytes: expected a memory of marks")
        self.buckets = (self.size - HEADER) // bucket
        self.base = <char*>gl_map_memory(fd, self.size)
        if self.base == NULL: raise MemoryError
        if fd < 0:
            (<uint64_t*>self.base)[0] = MAGIC
            (<uint64_t*>self.base)[1] = int.from_bytes(os.urandom(8), "little")
        if (<uint64_t*>self.base)[0] != MAGIC: raise ValueError("expected a memory of marks")
        self.seed = (<uint64_t*>self.base)[1]

    def __dealloc__(self):
        if self.base != NULL: gl_unmap_memory(self.base, self.size)

    cdef uint64_t* _bucket(self, uint64_t high, uint64_t low) noexcept:
        cdef uint64_t at = _mixed(_mixed(self.seed, high), low) % self.buckets
        return <uint64_t*>(self.base + HEADER) + at * N_WAYS * WORDS

    cdef bint _read(self, const uint64_t* at, uint64_t* found) noexcept:
        """Copies an entry, its mark padded with noughts. False: it is none."""
        cdef uint64_t told = gl_word(at)
        cdef uint64_t sum = self.seed
        cdef int i, words
        if told == 0: return False
        for i in range(1, FIRST): found[i] = gl_word(at + i)
        if found[3] & 255 > MAX_MARK: return False
        words = FIRST + <int>((found[3] & 255) + 7) // 8
        for i in range(FIRST, words): found[i] = gl_word(at + i)
        for i in range(1, words): sum = _mixed(sum, found[i])
        return sum | 1 == told

    cdef int recall(self, const char* trace_id, uint64_t now, char* mark) noexcept:
        """The mark of a trace, given by 32 hexadecimal digits: its length, 0 without one.

        now: ms of a clock that all workers share. mark: room for 128 bytes.
        """
        cdef uint64_t high = _half(trace_id), low = _half(trace_id + 16)
        cdef uint64_t* at = self._bucket(high, low)
        cdef uint64_t found[WORDS]
        cdef int i, m, n = -1
        for i in range(N_WAYS):
            if gl_word(at + i * WORDS + 1) != high or not self._read(at + i * WORDS, found): continue
            if found[1] != high or found[2] != low or found[3] >> 8 <= now: continue
            m = <int>(found[3] & 255)
            # two workers may have written it at once: two marks that differ are none
            if n >= 0 and (m != n or memcmp(mark, &found[FIRST], n) != 0): return 0
            n = m
            memcpy(mark, &found[FIRST], n)
        return max(n, 0)

    cdef bint remember(self, const char* trace_id, const char* mark, int n, uint64_t now, uint64_t lifetime) noexcept:
        """False: the trace has another mark already, and none from now on. mark: n bytes, 1 to 128. now, lifetime: ms."""
        cdef uint64_t high = _half(trace_id), low = _half(trace_id + 16)
        cdef uint64_t* bucket = self._bucket(high, low)
        cdef uint64_t* place = NULL
        cdef uint64_t found[WORDS]
        cdef uint64_t fresh[WORDS]
        cdef uint64_t oldest = <uint64_t>-1, end
        cdef bint alike = True
        cdef int i
        memset(fresh, 0, sizeof(fresh))
        memcpy(&fresh[FIRST], mark, n)
        for i in range(N_WAYS):
            # what is none, or forgotten, is the first to go
            end = found[3] >> 8 if self._read(bucket + i * WORDS, found) else 0
            if end > now and found[1] == high and found[2] == low:
                alike = <int>(found[3] & 255) == n and memcmp(&found[FIRST], mark, n) == 0
                place = bucket + i * WORDS
                break
            if end <= now: end = 0
            if end < oldest:
                oldest = end
                place = bucket + i * WORDS
        fresh[1] = high
        fresh[2] = low
        fresh[3] = (now + lifetime) << 8 | <uint64_t>(n if alike else 0)
        self._write(place, fresh)
        return alike

    cdef void _write(self, uint64_t* at, uint64_t* fresh) noexcept:
        cdef uint64_t sum = self.seed
        cdef int i, words = FIRST + <int>((fresh[3] & 255) + 7) // 8
        for i in range(1, words): sum = _mixed(sum, fresh[i])
        for i in range(1, words): gl_put_word(at + i, fresh[i])
        gl_put_sum(at, sum | 1)

    def keep(self, bytes trace_id, bytes mark, uint64_t now, uint64_t lifetime):
        """`remember`, for tests. ValueError for what is no trace id or no mark."""
        self._check(trace_id)
        if not 1 <= len(mark) <= MAX_MARK: raise ValueError(f"a mark of 1 to {MAX_MARK} bytes was expected")
        return self.remember(PyBytes_AS_STRING(trace_id), PyBytes_AS_STRING(mark), <int>PyBytes_GET_SIZE(mark), now, lifetime)

    def find(self, bytes trace_id, uint64_t now):
        """`recall`, for tests: the mark, or None."""
        cdef char mark[MAX_MARK]
        self._check(trace_id)
        n = self.recall(PyBytes_AS_STRING(trace_id), now, mark)
        return mark[:n] if n else None

    def _check(self, bytes trace_id):
        if len(trace_id) != 32 or trace_id.strip(b"0123456789abcdef"): raise ValueError("32 hexadecimal digits were expected")
