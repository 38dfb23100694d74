"""What may be sent once more: see _retries.pyx."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    MAX_ATTEMPTS = 4
    METHODS_ROOM = 384     # 16 methods of 20 letters, and blanks between them

cdef enum Cause:
    UNSEEN = 0             # nobody can have looked at the request
    REFUSED                # likewise, as the instance itself says
    STALE                  # a connection that had served others was closed under it: most likely nobody has
    RESET                  # the connection ended before any byte of an answer
    TIMED_OUT
    INVALID                # what came was no answer
    STATUS                 # an answer, of a status that is to be retried
    GRPC_STATUS            # likewise a call that failed before it began
    CAUSES

cdef enum Hedged:          # what became of a second attempt
    HEDGE_WON = 0          # the request went on with it: it answered first, or the first attempt failed
    HEDGE_LOST             # the first attempt answered
    HEDGE_FAILED
    HEDGE_CANCELLED        # with the request: its client has gone, or its time is over
    HEDGED

cdef enum Verdict:
    STANDS = 0             # the failure is the answer
    AGAIN                  # the same instance, by a new connection
    OTHER                  # another instance of the same version
    OTHER_VERSION          # one of the stable version, else as before

cdef struct RetryPolicy:   # of one service; see snapshot.Retries
    uint32_t on            # bits by Cause
    uint8_t attempts
    uint8_t answers        # some statuses are retried, so heads of answers are looked at
    uint8_t idempotent     # methods are those of RFC 9110 section 9.2.2
    uint8_t keeps          # a body is kept as it arrives, for another attempt
    uint8_t other_version
    uint8_t same_instance
    uint32_t grpc          # bits by status
    uint64_t statuses[10]  # likewise
    uint64_t try_ms        # 0: none
    uint64_t hedge_us      # an answer that takes longer is late; 0: none is
    uint64_t base_us
    uint64_t max_us
    uint32_t buffer
    uint32_t methods_len
    char methods[METHODS_ROOM]   # ` GET PUT `

cdef struct Failure:       # of one attempt
    uint8_t cause          # see Cause
    uint8_t attempts       # so far, this one included
    uint8_t unseen         # of them, without this one, that most likely nobody has looked at
    uint8_t kept           # all that was sent of the request is here
    uint8_t idempotent     # its method is
    uint8_t listed         # its method is one of the policy's
    uint16_t status        # of STATUS and GRPC_STATUS

cdef struct Budget:
    double percent         # as a share of 1
    double per_us
    double by_calls        # retries that requests have earned and that were not made
    double by_time
    uint64_t calls         # that was as of so many requests,
    uint64_t us            # at this time

cdef void set_policy(RetryPolicy* p, Budget* b, dict settings) except *
cdef bint lists(const RetryPolicy* p, const char* method, size_t n) noexcept nogil
cdef bint names_status(const RetryPolicy* p, int cause, int status) noexcept nogil
cdef int judge(const RetryPolicy* p, const Failure* f) noexcept nogil
cdef bint spend(Budget* b, uint64_t calls, uint64_t now_us) noexcept nogil
cdef uint64_t scramble(uint64_t z) noexcept nogil
cdef uint64_t backoff(const RetryPolicy* p, int attempts, uint64_t random) noexcept nogil
