"""Limits of traffic: see _limits.pyx."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:                 # by what a request was refused
    L_NONE = 0
    L_REQUESTS
    L_PENDING
    L_CONNECTIONS
    L_ADAPTIVE
    L_RATE
    N_LIMITED

cdef enum:
    SAMPLES = 128          # of one window of a gradient
    MAX_RATES = 16         # of a service
    MAX_KEY = 8            # sources of a rate's key
    WAYS = 8               # keys that share a line of a rate's table

cdef struct Gradient:      # adaptive concurrency of one service or version; times in microseconds
    uint32_t limit
    uint32_t least
    uint32_t most
    uint32_t kept          # the limit from before a probe
    uint8_t probing        # 1: requests from before it may still be under way; 2: what ends now has begun within it
    double tolerance       # share of the shortest time that counts as none
    uint64_t interval
    uint64_t probe_every
    uint64_t shortest      # time of a request that met no queue; 0: not known yet
    uint64_t window_end
    uint64_t next_probe
    uint32_t peak          # requests at once within the window
    uint32_t n
    uint32_t samples[SAMPLES]

cdef struct Breaker:       # of a service or a version
    uint32_t requests
    uint32_t pending
    uint32_t connections
    uint32_t max_requests  # of this worker; 0: no limit
    uint32_t max_pending
    uint32_t max_connections
    Gradient* gradient     # NULL: none
    uint64_t limited[N_LIMITED]

cdef struct Slot:
    uint64_t key           # its hash; 0: empty
    uint64_t full          # ns; when its bucket is full again

cdef class Rate:
    cdef readonly str name
    cdef readonly uint64_t every    # ns; between two tokens
    cdef readonly uint64_t span     # ns; in which an empty bucket fills
    cdef uint64_t full     # of the one bucket, where there is no key
    cdef uint64_t seed
    cdef Slot* slots
    cdef uint32_t lines    # of WAYS slots each; 0: there is no key
    cdef int rule          # the only one that it is for; -1: all requests
    cdef int n_key
    cdef uint16_t key[MAX_KEY]
    cdef uint64_t limited
    cdef uint64_t converted(self, Rate former, uint64_t full, uint64_t now) noexcept
    cdef Slot* slot(self, uint64_t key, uint64_t now) noexcept
    cdef uint64_t wait(self, uint64_t full, uint64_t now) noexcept
    cdef uint64_t less(self, uint64_t full, uint64_t now) noexcept

cdef class Limits:
    # of one service
    cdef Breaker breaker
    cdef bint any          # there is something to look at
    cdef int n_rates
    cdef tuple rates
    cdef dict told         # its settings
    cdef uint64_t wait_ns(self, const void* values, int rule, uint64_t now_us) noexcept

cdef enum:
    CALM = 0
    HIGH                   # no more connections
    FULL                   # no more requests either

cdef struct Watermarks:
    uint64_t soft          # 0: none
    uint64_t hard
    uint8_t level

cdef int refuses(Breaker* b) noexcept
cdef void begin(Breaker* b) noexcept
cdef void end(Breaker* b, uint64_t us, uint64_t now) noexcept
cdef uint64_t late(Breaker* b, uint64_t us) noexcept
cdef bint configure(Breaker* b, dict bounds, int workers, uint64_t now) except False
cdef dict figures(Breaker* b)
cdef uint32_t share(uint32_t number, int workers) noexcept
cdef bint weigh(Watermarks* w, uint64_t used) noexcept
