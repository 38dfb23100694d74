"""What requests are counted in: see _meter.pyx."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from graylb._fast cimport Decision, Table
from graylb._limits cimport Breaker
from graylb._retries cimport CAUSES, HEDGED
from graylb._slab cimport Exemplar, Slab

cdef enum Tag:             # what a cell of a Meter counts
    T_REQUESTS = 1         # by rule and version that served: six, by class of status
    T_DECISIONS            # by rule and version that was wanted: three, see Means
    T_ERRORS               # by version: one for each kind
    T_FALLBACKS            # by version that was wanted and version that served
    T_CALLS                # of gRPC, by rule and version that served: one for each status

cdef enum Means:
    BY_RULE = 0
    BY_SLOT
    BY_DRAW

cdef class Series:
    # what one version of one service has answered
    cdef readonly str service
    cdef readonly str version
    cdef Slab slab                 # for all figures that have its version; they go with it
    cdef uint64_t statuses[6]      # of its instances' own answers
    cdef uint64_t failed_calls     # of them: those of gRPC, with 200, that tell of a failure of the server
    cdef uint64_t* bytes_in        # this and what follows: NULL before `open`
    cdef uint64_t* bytes_out
    cdef uint64_t* attempts
    cdef uint64_t* failures
    cdef uint64_t* connects
    cdef uint64_t* in_flight
    cdef uint64_t* waiting
    cdef uint64_t* busy            # connections
    cdef uint64_t* idle
    cdef uint64_t* times           # NULL until there is one
    cdef uint64_t* first_bytes
    cdef Exemplar* examples        # of times
    cdef Breaker breaker
    cdef uint64_t retried[CAUSES]  # attempts of its instances that another one followed
    cdef uint64_t hedged[HEDGED]   # second attempts at its instances
    cdef open(self)
    cdef uint64_t* _histogram(self, str name) noexcept
    cdef void took(self, uint64_t us) noexcept
    cdef void sampled(self, uint64_t us, uint64_t now_us, const char* trace_id, const char* span_id) noexcept
    cdef void began_to_answer(self, uint64_t us) noexcept

cdef struct Cell:
    uint64_t key
    uint64_t* at

cdef class Meter:
    # of one service, for as long as tables have it unchanged
    cdef str service
    cdef readonly list series      # by number of version, and one more for a version that is not known
    cdef readonly uint32_t n_versions
    cdef Cell* cells
    cdef uint32_t n
    cdef uint32_t mask
    cdef uint64_t* of(self, Table t, int service, int tag, int64_t a, uint32_t version) noexcept
    cdef uint64_t* _make(self, Table t, int service, int tag, int64_t a, uint32_t version) except NULL
    cdef int _grow(self) except -1
    cdef void count(self, Table t, Decision* d, int status) noexcept
    cdef void count_call(self, Table t, Decision* d, int status) noexcept
    cdef void count_error(self, Table t, Decision* d, int code) noexcept
    cdef void count_fallback(self, Table t, Decision* d) noexcept
