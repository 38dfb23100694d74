"""What gRPC over HTTP/2 means to a proxy, without I/O: deadlines and statuses in heads.

After "gRPC over HTTP2" (PROTOCOL-HTTP2.md of github.com/grpc/grpc). Times are microseconds; a time of less counts as one.
"""

from libc.string cimport memchr, memcmp, memcpy, memset
from graylb._http1 cimport (BODY_NONE, DROP, H_GRPC_STATUS, H_GRPC_TIMEOUT, MAX_HEADERS, Client, ForwardingPolicy, Head, scan_request,
                            scan_response, write_request)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cdef enum:
    DIGITS = 8             # of a TimeoutValue, at most
    LONGEST = 99999999
    NAME = 14              # of "grpc-timeout: "

CODE_NAMES = ("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
              "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
              "DataLoss", "Unauthenticated")   # as grpc_server_handled_total of gRPC's own middlewares has them

cdef int[17] HTTP = [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401]


cdef int64_t parse_timeout(const char* p, size_t n) noexcept nogil:
    """The value of a grpc-timeout field, `1*8DIGIT unit`, as microseconds; -1: it is none."""
    cdef size_t i
    cdef int64_t value = 0
    if n < 2 or n > DIGITS + 1: return -1
    for i in range(n - 1):
        if p[i] < 48 or p[i] > 57: return -1
        value = value * 10 + (p[i] - 48)
    if p[n - 1] == 109: return value * 1000                   # m: milliseconds
    if p[n - 1] == 117: return value                          # u
    if p[n - 1] == 110: return (value + 999) // 1000          # n
    if p[n - 1] == 83: return value * 1000000                 # S
    if p[n - 1] == 77: return value * 60000000                # M: minutes
    if p[n - 1] == 72: return value * 3600000000LL            # H
    return -1


cdef int64_t take_timeout(Head* h) noexcept nogil:
    """How long the caller waits, by the first of its grpc-timeout fields; these are then left out of what is forwarded.

    -1: it does not say. One that is malformed is forwarded, for whoever serves the call to complain about.
    """
    cdef int i
    cdef int64_t us = -1
    for i in range(h.count):
        if h.headers[i].id != H_GRPC_TIMEOUT: continue
        if us < 0:
            us = parse_timeout(h.headers[i].value, h.headers[i].value_len)
            if us < 0: return -1
        h.headers[i].use = DROP
    return us


cdef void write_timeout(char* o, int64_t us) noexcept nogil:
    """Nine bytes, so that it can be written over: eight digits and the finest unit that they suffice for, rounded down."""
    cdef int i
    cdef int64_t value = us if us > 0 else 1
    cdef char unit = 117
    if value > LONGEST:
        value //= 1000
        unit = 109
    if value > LONGEST:
        value //= 1000
        unit = 83
    if value > LONGEST:
        value //= 60
        unit = 77
    if value > LONGEST:
        value //= 60
        unit = 72
    for i in range(DIGITS - 1, -1, -1):
        o[i] = <char>(48 + value % 10)
        value //= 10
    o[DIGITS] = unit


cdef char* put_timeout(char* e, int64_t us) noexcept nogil:
    """Puts a grpc-timeout at the end of a head, of which e is the end; its new end. Room needed: TIMEOUT_LINE."""
    e -= 2
    memcpy(e, b"grpc-timeout: ", NAME)
    write_timeout(e + NAME, us)
    memcpy(e + NAME + DIGITS + 1, b"\r\n\r\n", 4)
    return e + NAME + DIGITS + 5


cdef void renew_timeout(char* e, int64_t us) noexcept nogil:
    """Writes another time over that of a head which `put_timeout` has made; e: its end."""
    write_timeout(e - 4 - DIGITS - 1, us)


cdef int read_status(Head* h) noexcept nogil:
    """The grpc-status of a head, which has one where the call failed before it began ("Trailers-Only"), or STATUS_…."""
    cdef int i, value
    cdef const char* p
    for i in range(h.count):
        if h.headers[i].id != H_GRPC_STATUS: continue
        p = h.headers[i].value
        if h.headers[i].value_len == 1 and 48 <= p[0] <= 57: return p[0] - 48
        if h.headers[i].value_len == 2 and p[0] == 49 and 48 <= p[1] <= 54: return 10 + p[1] - 48
        return STATUS_ODD
    return STATUS_NONE


cdef int http_of(int status) noexcept nogil:
    """The HTTP status that comes nearest to a grpc-status, as Envoy maps them; one that does not exist is as UNKNOWN."""
    return HTTP[status] if 0 <= status <= 16 else 500


cdef bint is_failure(int status) noexcept nogil:
    """Whether a status tells of a failure of the server: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and
    DATA_LOSS (OpenTelemetry, semantic conventions for gRPC). These are those whose HTTP status would be 5xx."""
    return http_of(status) >= 500


cdef int told(int found) noexcept nogil:
    """A status as an exchange keeps it, of what `read_status` or `status_in` finds: + 1, 0: there is none. A status that does
    not exist is UNKNOWN to a client."""
    if found == STATUS_NONE: return 0
    return (found if found >= 0 else UNKNOWN) + 1


cdef int final_status(int told, bint gone, bint broken) noexcept nogil:
    """What a call that is over has come to, see `told`. gone: the client did not wait; broken: the answer was cut off, which
    is INTERNAL to a client ("gRPC over HTTP2", errors). An answer without a status is UNKNOWN to it."""
    if told: return told - 1
    if gone: return CANCELLED
    return INTERNAL if broken else UNKNOWN


cdef int status_in(const char* p, size_t n) noexcept nogil:
    """The grpc-status of trailers, as the text of their lines; STATUS_NONE: there is none."""
    cdef const char* e = p + n
    cdef const char* q
    while e - p > 13:
        q = <const char*>memchr(p, 10, e - p)
        if q == NULL: q = e - 1
        if q - p > 12 and memcmp(p, b"grpc-status:", 12) == 0:
            p += 12
            while p < q and p[0] == 32: p += 1
            if q > p and (q - 1)[0] == 13: q -= 1
            if q - p == 1 and 48 <= p[0] <= 57: return p[0] - 48
            if q - p == 2 and p[0] == 49 and 48 <= p[1] <= 54: return 10 + p[1] - 48
            return STATUS_ODD
        p = q + 1
    return STATUS_NONE


# ---- faces for tests and fuzzing -----------------------------------------------------------------------------------

def timeout_us(bytes value):
    """parse_timeout; None for what is no timeout."""
    us = parse_timeout(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    return us if us >= 0 else None


def timeout_text(int64_t us):
    """write_timeout."""
    cdef char o[16]
    write_timeout(o, us)
    return o[:DIGITS + 1]


def forwarded(bytes head, int64_t spent, int64_t later=-1):
    """A request's head as its upstream gets it `spent` microseconds after it came, and, for another attempt, `later`.

    ValueError for what is no request's head.
    """
    cdef Head h
    cdef ForwardingPolicy policy
    cdef Client client
    cdef const char* p = PyBytes_AS_STRING(head)
    if scan_request(&h, p, p + PyBytes_GET_SIZE(head), MAX_HEADERS) != 1: raise ValueError("not a request's head")
    memset(&policy, 0, sizeof(policy))
    memset(&client, 0, sizeof(client))
    cdef int64_t us = take_timeout(&h)
    out = bytearray(2 * len(head) + 1024 + TIMEOUT_LINE)
    cdef char* o = out
    cdef char* e = write_request(&h, o, &policy, &client, BODY_NONE, NULL, 0, NULL, 0)
    if us >= 0: e = put_timeout(e, us - spent)
    if us >= 0 and later >= 0: renew_timeout(e, us - later)
    return bytes(out[:e - o])


def status_of(bytes head):
    """read_status of a response's head; ValueError for what is none."""
    cdef Head h
    cdef const char* p = PyBytes_AS_STRING(head)
    if scan_response(&h, p, p + PyBytes_GET_SIZE(head), MAX_HEADERS) != 1: raise ValueError("not a response's head")
    return read_status(&h)


def http_status_of(bytes trailers):
    """http_of what status_in finds; None where it finds none."""
    cdef int found = status_in(PyBytes_AS_STRING(trailers), PyBytes_GET_SIZE(trailers))
    return http_of(found) if found != STATUS_NONE else None
