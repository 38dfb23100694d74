"""The mark in heads: see _mark.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from graylb._http1 cimport Head

cdef enum:
    MAX_MARK = 128
    MAX_BAGGAGE = 8192     # bytes that are written anew; of more than that other members go on as they came (W3C Baggage 3.3.2)
    MAX_MARK_NAMES = 4
    MAX_PROBE = 128

cdef enum Arrival:         # bits of what was found in a head
    A_MARKED = 1           # something called itself a mark
    A_KEPT = 2             # and is believed
    A_SIGNED = 4           # for its signature
    A_CONFLICT = 8         # headers and baggage, or two headers, differ
    A_TOO_MANY = 16        # headers: there is no room for its own

cdef enum Role:            # of a listener
    EDGE
    INBOUND
    OUTBOUND

cdef struct Name:
    const char* p
    uint32_t n

cdef struct Network:
    uint8_t address[16]
    uint32_t bits
    uint8_t v4

cdef struct Carried:       # the mark of the request that is looked at
    uint32_t n             # 0: none
    uint32_t first         # headers of the head from here to `last` are its own
    uint32_t last
    uint32_t at            # where the other members of baggage begin in `baggage`
    uint32_t baggage_n     # their end; 0: none were taken out of their header
    char mark[MAX_MARK]
    char baggage[MAX_MARK + 2 * MAX_MARK + MAX_BAGGAGE]

cdef class Marks:
    cdef Name names[MAX_MARK_NAMES]
    cdef int n_names
    cdef Name key          # in baggage; n 0: it is not there
    cdef Name signature    # its header; n 0: none is believed
    cdef Network* networks
    cdef int n_networks
    cdef uint64_t lifetime # ms that the mark of a trace is remembered; 0: none is
    cdef list held         # what the names point into
    cdef bytes secret
    cdef readonly dict settings
    cdef int take(self, Head* h, Carried* c, bint trusted, const uint8_t* address, bint v4) noexcept
    cdef int _baggage(self, Head* h, Carried* c, char* member, uint32_t* n) noexcept
    cdef bint is_trusted(self, const uint8_t* address, bint v4) noexcept
    cdef bint _signed(self, const char* mark, uint32_t n, const char* p, uint32_t size) noexcept

cdef class ServiceMark:
    cdef Name names[MAX_MARK_NAMES]
    cdef int n_names       # 0: as all have them
    cdef Name key
    cdef bint own_key
    cdef bint carries
    cdef list held
    cdef list versions     # (version, mark); None: every version but the stable one
    cdef bytes stable
    cdef bint begin(self, Carried* c, const char* version, uint32_t n) noexcept

cdef bint give(Marks m, ServiceMark s, Head* h, Carried* c) noexcept
