"""What gRPC over HTTP/2 means to a proxy, without I/O: see _grpc.pyx."""

from libc.stdint cimport int64_t, uint8_t
from graylb._http1 cimport Head

cdef enum:
    TIMEOUT_LINE = 25      # bytes that `put_timeout` adds to a head
    CANCELLED = 1
    UNKNOWN = 2
    INTERNAL = 13
    STATUS_NONE = -1
    STATUS_ODD = -2        # there is one, but it is none of gRPC's codes

cdef int64_t parse_timeout(const char* p, size_t n) noexcept nogil
cdef int64_t take_timeout(Head* h) noexcept nogil
cdef void write_timeout(char* o, int64_t us) noexcept nogil
cdef char* put_timeout(char* e, int64_t us) noexcept nogil
cdef void renew_timeout(char* e, int64_t us) noexcept nogil
cdef int read_status(Head* h) noexcept nogil
cdef int status_in(const char* p, size_t n) noexcept nogil
cdef int http_of(int status) noexcept nogil
cdef bint is_failure(int status) noexcept nogil
cdef int told(int found) noexcept nogil
cdef int final_status(int told, bint gone, bint broken) noexcept nogil
