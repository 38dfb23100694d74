"""Spans of requests as OTLP has them: see _spans.pyx."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from graylb._accesslog cimport Asked, Ended, Text
from graylb._live cimport Conn, Exchange
from graylb._retries cimport MAX_ATTEMPTS

cdef enum:
    MAX_TRIES = 2 * MAX_ATTEMPTS
    SPAN_MAX = 65536       # bytes of a span, and of what is around it; attributes beyond are left out
    VALUE_MAX = 4096       # bytes of a text in it; what is beyond is cut off

cdef struct Try:
    # an attempt
    Conn* conn             # NULL: it is over
    uint64_t began_us
    uint64_t ended_us
    uint64_t connect_us    # how long connecting took; 0: the connection was there
    int32_t instance
    uint16_t status        # 0: there was no answer
    uint8_t number         # 1: the first
    uint8_t failed         # code of the error + 1; 0: there was an answer
    uint8_t grpc           # status of gRPC + 1; 0: none was looked at
    uint8_t h2

cdef struct Kept:
    # what is kept of a request whose span may be told; its head is behind it
    uint64_t wall_us       # Unix time of its beginning
    const char* listener
    uint32_t listener_n
    uint32_t head_n
    uint8_t secure
    uint8_t h2
    uint8_t n
    Try tries[MAX_TRIES]

cdef void put_id(char* o, Exchange* x, int number) noexcept nogil
cdef void rename(char* head, size_t n, Exchange* x) noexcept nogil
cdef char* server_span(char* o, Exchange* x, Asked* a, Ended* e) noexcept
cdef char* client_span(char* o, Exchange* x, Asked* a, Kept* k, Try* t, Text error, int cut) noexcept
