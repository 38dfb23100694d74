"""Failures made on purpose: see _faults.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef uint64_t STEP_MIRRORS

cdef struct Draw:
    uint64_t n             # the next one
    uint64_t step
    uint64_t below
    uint8_t always

cdef void set_share(Draw* d, double percent) noexcept
cdef bint drawn(Draw* d) noexcept

cdef class Fault:
    # what a service, or one of its rules, has injected
    cdef readonly str service
    cdef readonly str rule         # "": the service's own
    cdef Draw delay
    cdef Draw abort
    cdef readonly double seconds   # of a delay
    cdef uint32_t max
    cdef uint32_t held             # that wait now
    cdef bytes grpc_answer
    cdef list answers              # [json][close]
    cdef readonly int status
    cdef readonly int grpc_status
    cdef readonly uint64_t delays
    cdef readonly uint64_t aborts
    cdef readonly uint64_t overflows

    cdef bytes answer(self, bint grpc, bint json, bint close)

cdef class Faults:
    # of one service
    cdef int first_draw
    cdef Fault own                 # None: it has none
    cdef dict named
    cdef list by_rule              # by the rule's number; None: the service's
    cdef Fault of_rule(self, int rule)
    cpdef configure(self, str service, list told)
