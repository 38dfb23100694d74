"""Lines of the access log: see _accesslog.pyx."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from graylb._fast cimport Table
from graylb._http1 cimport Head
from graylb._live cimport Exchange, Peer

cdef enum:
    LINE_MAX = 131072      # bytes of a line; what is beyond is left out
    MARGIN = 64            # room for the end of a value that is cut off
    PADDING = 32           # bytes behind a literal text that may be read

cdef enum LogField:
    L_NONE = 0
    # known when a request's head is
    L_TIME
    L_TIME_LOCAL
    L_CLIENT_IP
    L_CLIENT_PORT
    L_LISTENER
    L_SCHEME
    L_METHOD
    L_HOST
    L_PATH
    L_QUERY
    L_TARGET
    L_PROTOCOL
    L_TLS
    L_HEADER
    L_REQUEST_ID
    L_TRACE_ID
    L_SPAN_ID
    L_PARENT_ID
    L_STATE
    L_WORKER
    L_LAST_OF_HEAD = L_WORKER
    # known at the end: what follows from the numbers of a decision, by its table
    L_SERVICE
    L_ROUTE
    L_VERSION
    L_RULE
    L_FALLBACK
    L_INSTANCE
    L_REVISION
    L_LAST_OF_DECISION = L_REVISION
    # and the rest
    L_SLOT
    L_DRAW
    L_ATTEMPTS
    L_STATUS
    L_GRPC_STATUS
    L_ERROR
    L_ERROR_SOURCE
    L_ABORTED
    L_BYTES_IN
    L_BYTES_OUT
    L_DURATION
    L_FIRST_BYTE
    L_CONNECT
    L_UPSTREAM_PROTOCOL

cdef struct LogOp:
    const char* text       # before the value, and PADDING bytes
    uint32_t n
    uint8_t field
    uint16_t run           # so many operations from here on are of the head; 0: this is not, or not the first
    uint16_t decided       # likewise, of the decision
    uint16_t following     # behind a run of the head: where the next one begins
    const char* name       # of a header, lower case
    uint32_t name_n

cdef struct Text:
    const char* p          # NULL: there is none
    uint32_t n

cdef struct DecidedPiece:
    # of a line: fields of a decision that neighbour in the format
    uint64_t key[3]        # the numbers that it follows from, see `_accesslog._decided_key`
    uint32_t n             # 0: nothing is kept here
    char text[228]

cdef class DecidedPieces:
    # those of one table that were written last; each has one place
    cdef DecidedPiece* at  # PIECES; NULL before the first

    cdef DecidedPiece* place(self, const uint64_t* key) noexcept

cdef struct Asked:
    # what is known of a request when its head is
    Head* head             # NULL: it was none
    Peer* peer
    Text listener
    uint8_t secure
    uint8_t h2
    uint32_t worker
    uint64_t wall_us       # Unix time
    const char* date       # of that second: 2026-11-22T15:21:45, in 24 bytes
    const char* local      # 22/Nov/2026:15:21:45 +0000
    Text request_id        # made here; else the client's
    Text trace_id
    Text span_id
    Text parent_id

cdef struct Ended:
    # and at its end
    Exchange* x
    uint64_t now_us
    uint16_t status
    Text error
    Text source

cdef class Format:
    cdef readonly bint json
    cdef readonly object made_of   # what it was made of: (json, parts)
    cdef LogOp* ops
    cdef int n
    cdef int first                 # where the first run of the head begins
    cdef uint32_t longest          # of the literal texts
    cdef list kept

    cdef _name(self, LogOp* op, str name)
    cdef char* head(self, Asked* a, char* o, char* limit) noexcept
    cdef char* _decision(self, int first, Ended* e, Table t, DecidedPieces pieces, char* o, char* limit) noexcept
    cdef char* line(self, Ended* e, Table t, DecidedPieces pieces, const char* heads, const char* heads_end, char* o,
                    char* limit) noexcept

cdef void dates(uint64_t second, char* date, char* local) noexcept
cdef Text header_of(Head* h, const char* name, uint32_t n) noexcept
cdef Text decided(int field, Exchange* x, Table t) noexcept
