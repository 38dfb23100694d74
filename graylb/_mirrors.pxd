"""Copies of requests for another version: see _mirrors.pyx."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from graylb._faults cimport Draw

cdef enum:
    WATCH_BODY = 65536     # bytes of each answer's body that are kept for a comparison

cdef class Mirror:
    # what a service has mirrored
    cdef readonly str service
    cdef Draw draw
    cdef readonly int32_t target   # of the service, by the table's number
    cdef readonly uint32_t max
    cdef readonly uint32_t active  # copies, from the decision to their end
    cdef readonly uint64_t body
    cdef uint64_t timeout_ms
    cdef bint every_method
    cdef tuple methods             # bytes
    cdef dict counts               # (version, outcome) -> how many
    cdef uint64_t watched_ms       # answers are kept for comparison until then
    cdef uint32_t to_watch         # and of so many requests

    cdef bint takes(self, const char* method, size_t n)
    cdef count(self, str version, str outcome)

cdef class Side:
    # an answer that is kept for a comparison
    cdef readonly int status       # 0: there was none
    cdef readonly bytes head       # its text
    cdef readonly bytes trailers
    cdef bytearray body            # its first WATCH_BODY bytes
    cdef readonly uint64_t size
    cdef readonly bint complete
    cdef int over

    cdef begin(self, int status, const char* head, size_t n)
    cdef add(self, const char* p, size_t n)

cdef class Copy:
    # one request on its way
    cdef Mirror mirror
    cdef str version
    cdef int32_t instance
    cdef uint8_t grpc
    cdef uint8_t kind              # BodyKind of its head
    cdef bint launched
    cdef str outcome               # if it is known already
    cdef char* text                # head, then body
    cdef size_t head
    cdef size_t n
    cdef size_t cap
    # of one whose answers are compared, else None
    cdef bytes line                # its request line, as it was sent
    cdef Side primary
    cdef Side other
    cdef str primary_version

    cdef bint add(self, const char* p, size_t n) noexcept
    cdef bint put(self, const char* p, size_t n) noexcept
    cdef bint close_body(self) noexcept
    cdef char* take(self) noexcept
