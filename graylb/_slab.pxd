"""A worker's figures in memory that it shares with the control process: see _slab.pyx."""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    VERSION = 1
    SERIES_AT = 64         # the first record
    VALUES_AT = 64         # in a record; its text is behind them
    HISTOGRAM_BUCKETS = 512
    HISTOGRAM_CELLS = 513  # the buckets, and the sum of what was observed
    EXEMPLARS = 32         # of a histogram: one for each doubling
    EXEMPLAR_CELLS = 288   # see Exemplar

cdef enum Kind:
    COUNTER = 1
    GAUGE                  # a worker that takes the place of another begins with 0
    HISTOGRAM
    EXEMPLAR               # of a histogram of the same name and labels

cdef struct Exemplar:      # 9 cells: a request that was traced
    uint64_t version       # odd while it is written; 0: there is none
    uint64_t us            # what was observed
    uint64_t at_us         # of CLOCK_MONOTONIC
    char trace_id[32]      # in hexadecimal
    char span_id[16]

cdef struct SlabHeader:    # 64 bytes
    uint64_t magic
    uint32_t version
    uint32_t worker
    uint64_t size          # bytes of the whole slab
    uint64_t count         # records that may be read
    uint64_t end           # bytes up to the end of the last of them
    uint64_t refused       # series that found no room of their own
    uint64_t lives         # workers that have written here
    uint64_t pad

cdef struct Record:        # 64 bytes, then u64[n] values, then the text
    uint32_t length        # bytes of all three, a multiple of 64
    uint32_t kind
    uint32_t n
    uint32_t text          # bytes of JSON: [name, [[label, value], ...], dimension or null, [its value for each cell]]
    uint64_t generation    # odd while it is made another series
    uint64_t gone          # seconds of CLOCK_MONOTONIC since when nobody counts here; 0: somebody does
    uint64_t pad[4]

cdef class Memory:
    cdef char* base
    cdef SlabHeader* header
    cdef size_t size
    cdef size_t reserve
    cdef uint64_t* scrap
    cdef dict known        # (kind, text) -> offset of its record
    cdef dict users        # offset -> how many have taken it
    cdef dict spare        # length -> {offset: gone} of the records that nobody counts in, oldest first
    cdef readonly int predecessors
    cdef size_t find(self, int kind, bytes text, uint32_t n, bint last_resort) except? 1
    cdef size_t _place(self, uint32_t length, bint last_resort)
    cdef give_up(self, size_t at)
    cdef _go_on(self)
    cdef bytes _text(self, Record* r)

cdef class Slab:
    cdef readonly Memory memory
    cdef set taken         # offsets of its records
    cdef uint64_t* counter(self, str name, tuple labels) except NULL
    cdef uint64_t* gauge(self, str name, tuple labels) except NULL
    cdef uint64_t* histogram(self, str name, tuple labels) except NULL
    cdef Exemplar* exemplars(self, str name, tuple labels) except NULL
    cdef uint64_t* several(self, int kind, str name, tuple labels, str dimension, tuple values) except NULL
    cdef uint64_t* _take(self, int kind, str name, tuple labels, str dimension, tuple values, uint32_t n) except NULL
    cpdef Slab part(self)

cdef class Reader:
    cdef const char* base
    cdef const SlabHeader* header
    cdef size_t size
    cdef dict texts        # offset -> (generation, its key in sums)
    cdef tuple _key_of(self, const Record* r, uint64_t generation)

cdef class Sum:
    cdef uint64_t* values
    cdef uint64_t* fresh
    cdef readonly int kind
    cdef readonly uint32_t n
    cdef bint add(self, const Record* r, uint64_t generation) noexcept
    cdef void _newest(self) noexcept

cdef int bucket(uint64_t us) noexcept
cdef void show(Exemplar* cells, uint64_t us, uint64_t now_us, const char* trace_id, const char* span_id) noexcept
