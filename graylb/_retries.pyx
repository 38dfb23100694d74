"""Retries without I/O: whether a failed attempt may be followed by another one, where that goes, when, and what it costs.

`judge` reads a service's policy and what is known of the failure. The budget is asked after it, for attempts that may load an
instance with work that was done before: after Envoy's retry budget, as two purses (token buckets) that every retry is paid from.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cdef extern from * nogil:
    """
    #include <string.h>
    """
    void* memmem(const void*, size_t, const void*, size_t)

cdef enum:
    LONGEST_METHOD = 22    # with a blank on each side

cdef double CALLS_SAVED = 100      # retries that requests may save up
cdef double SECONDS_SAVED = 3      # time may save up what so many seconds earn

# the conditions of a document: the causes that each names
CONDITIONS = {
    "connect-failure": (), "refused-stream": (),     # retried whatever a service says
    "reset": (RESET,), "timeout": (TIMED_OUT,), "gateway-error": (), "5xx": (RESET, TIMED_OUT, INVALID), "retriable-4xx": (),
}
STATUSES = {"gateway-error": (502, 503, 504), "5xx": tuple(range(500, 600)), "retriable-4xx": (409,)}
HEDGE_NAMES = ("won", "lost", "failed", "cancelled")      # by Hedged
CAUSE_NAMES = ("unseen", "refused", "stale", "reset", "timeout", "invalid", "status", "grpc-status")
DEFAULTS = {
    "on": ["connect-failure", "refused-stream", "reset"], "statuses": [], "grpc": 0, "attempts": 2, "methods": None,
    "per_try_timeout": 0.0, "backoff": {"base": 0.025, "max": 0.25}, "budget": {"percent": 20.0, "min_per_second": 3.0},
    "other_version": False, "same_instance": False, "buffer": 65536, "hedge": None,
}


cdef void set_policy(RetryPolicy* p, Budget* b, dict settings) except *:
    """Takes a service's settings, as `blocks` writes them; {}: the defaults. What its budget has saved stays."""
    cdef int status
    cdef bytes methods
    own = {**DEFAULTS, **settings}
    memset(p, 0, sizeof(RetryPolicy))
    for word in own["on"]:
        for cause in CONDITIONS[word]: p.on |= <uint32_t>1 << <int>cause
    for status in {*own["statuses"], *(each for word in own["on"] for each in STATUSES.get(word, ()))}:
        p.statuses[status // 64] |= <uint64_t>1 << (status % 64)
        p.on |= 1 << STATUS
    p.grpc = own["grpc"]
    if p.grpc: p.on |= 1 << GRPC_STATUS
    p.answers = (p.on >> STATUS) & 1
    p.attempts = own["attempts"]
    p.idempotent = own["methods"] is None
    p.keeps = bool(settings)
    if not p.idempotent:
        methods = " ".join(["", *own["methods"], ""]).encode()
        if len(methods) > METHODS_ROOM: raise ValueError("too many methods")
        memcpy(p.methods, PyBytes_AS_STRING(methods), PyBytes_GET_SIZE(methods))
        p.methods_len = <uint32_t>PyBytes_GET_SIZE(methods)
    p.other_version = own["other_version"]
    p.same_instance = own["same_instance"]
    p.hedge_us = round(own["hedge"]["delay"] * 1e6) if own["hedge"] is not None else 0
    p.try_ms = round(own["per_try_timeout"] * 1000)
    p.base_us = round(own["backoff"]["base"] * 1e6)
    p.max_us = round(own["backoff"]["max"] * 1e6)
    p.buffer = own["buffer"]
    b.percent = own["budget"]["percent"] / 100
    b.per_us = own["budget"]["min_per_second"] / 1e6


cdef bint lists(const RetryPolicy* p, const char* method, size_t n) noexcept nogil:
    """Whether a method is one of those that the policy names."""
    cdef char word[LONGEST_METHOD]
    if n == 0 or n + 2 > LONGEST_METHOD: return False
    word[0] = word[n + 1] = 32
    memcpy(word + 1, method, n)
    return memmem(p.methods, p.methods_len, word, n + 2) != NULL


cdef bint names_status(const RetryPolicy* p, int cause, int status) noexcept nogil:
    """Whether an answer of this status (cause: of HTTP or of gRPC) is a failure to the policy."""
    if cause == GRPC_STATUS: return 0 <= status <= 16 and (p.grpc >> status) & 1
    return 0 <= status < 600 and (p.statuses[status // 64] >> (status % 64)) & 1


cdef int judge(const RetryPolicy* p, const Failure* f) noexcept nogil:
    """-> Verdict. Work that may have been done is done again only where the method, or the document, says that it may be."""
    if not f.kept: return STANDS
    if f.cause == UNSEEN: return OTHER if f.attempts < MAX_ATTEMPTS else STANDS
    if f.cause == REFUSED or (f.cause == STALE and f.idempotent): return AGAIN if f.attempts < MAX_ATTEMPTS else STANDS
    if f.attempts - f.unseen >= p.attempts or f.attempts >= MAX_ATTEMPTS: return STANDS
    if f.cause == GRPC_STATUS:
        if not names_status(p, f.cause, f.status): return STANDS
        return OTHER_VERSION if p.other_version else OTHER
    if not f.listed: return STANDS
    if f.cause == STALE: return AGAIN if (p.on >> RESET) & 1 else STANDS
    if not (p.on >> f.cause) & 1: return STANDS
    if f.cause == STATUS and not names_status(p, f.cause, f.status): return STANDS
    return OTHER_VERSION if p.other_version else OTHER


cdef bint spend(Budget* b, uint64_t calls, uint64_t now_us) noexcept nogil:
    """Takes one retry out of both purses where either has one; calls: requests of the service so far.

    So their number is that of the purse that earns more, not the sum of both. The first may owe a little, so that what few
    requests were given in advance is not given again.
    """
    cdef double most = b.per_us * 1e6 * SECONDS_SAVED
    if most < 1 and b.per_us > 0: most = 1
    if b.us == 0: b.by_time = most
    else: b.by_time += (now_us - b.us) * b.per_us
    b.us = now_us
    b.by_calls += (calls - b.calls) * b.percent
    b.calls = calls
    if b.by_calls > CALLS_SAVED: b.by_calls = CALLS_SAVED
    if b.by_time > most: b.by_time = most
    if b.by_calls < 1 and b.by_time < 1: return False
    b.by_calls -= 1
    b.by_time -= 1
    if b.by_calls < -most: b.by_calls = -most
    if b.by_time < 0: b.by_time = 0
    return True


cdef uint64_t scramble(uint64_t z) noexcept nogil:
    """A number that looks drawn (the finaliser of splitmix64)."""
    z = (z ^ (z >> 30)) * <uint64_t>0xbf58476d1ce4e5b9ULL
    z = (z ^ (z >> 27)) * <uint64_t>0x94d049bb133111ebULL
    return z ^ (z >> 31)


cdef uint64_t backoff(const RetryPolicy* p, int attempts, uint64_t random) noexcept nogil:
    """Microseconds to wait before the attempt that follows so many ("full jitter", drawn by `random`)."""
    cdef uint64_t most = p.base_us << (attempts - 1 if attempts > 0 else 0)
    if most > p.max_us: most = p.max_us
    return random % (most + 1)


# ---- faces for tests -----------------------------------------------------------------------------------------------

def judged(dict settings, dict failure):
    """What `judge` says -> the name of a verdict. failure: as Failure, its cause by name; its method instead of the two flags
    that follow from it is `method`, bytes."""
    cdef RetryPolicy p
    cdef Budget b
    cdef Failure f
    cdef bytes method = failure["method"]
    set_policy(&p, &b, settings)
    f.cause = CAUSE_NAMES.index(failure["cause"])
    f.attempts = failure["attempts"]
    f.unseen = failure["unseen"]
    f.kept = failure["kept"]
    f.status = failure["status"]
    f.idempotent = failure["idempotent"]
    f.listed = f.idempotent if p.idempotent else lists(&p, PyBytes_AS_STRING(method), len(method))
    return ("stands", "again", "other", "other-version")[judge(&p, &f)]


def spent(dict settings, events):
    """Which of these retries a new budget affords. events: (requests so far, microseconds) of each that is wanted."""
    cdef RetryPolicy p
    cdef Budget b
    memset(&b, 0, sizeof(b))
    set_policy(&p, &b, settings)
    return [spend(&b, calls, us) for calls, us in events]


def backoff_us(dict settings, int attempts, uint64_t random):
    """`backoff`."""
    cdef RetryPolicy p
    cdef Budget b
    set_policy(&p, &b, settings)
    return backoff(&p, attempts, random)
