"""Lines of the access log: see _accesslog.pyx."""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from graylb._fast cimport Table
from graylb._http1 cimport Head
from graylb._live cimport Exchange, Peer

cdef extern from * nogil:
    """
    #ifndef GRAYLB_UTF8
    #define GRAYLB_UTF8
    /* bytes of the UTF-8 sequence at p, or minus those of the ill-formed one */
    static int gl_utf8(const unsigned char *p, const unsigned char *e) {
      unsigned char c = *p, low = 0x80, high = 0xbf; int n, i;
      if (c < 0x80) return 1;
      if (c >= 0xc2 && c <= 0xdf) n = 1;
      else if (c >= 0xe0 && c <= 0xef) { n = 2; if (c == 0xe0) low = 0xa0; if (c == 0xed) high = 0x9f; }
      else if (c >= 0xf0 && c <= 0xf4) { n = 3; if (c == 0xf0) low = 0x90; if (c == 0xf4) high = 0x8f; }
      else return -1;
      for (i = 1; i <= n; i++) {
        if (p + i >= e || p[i] < low || p[i] > high) return -i;
        low = 0x80; high = 0xbf; }
      return n + 1; }
    #endif
    """
    int gl_utf8(const unsigned char*, const unsigned char*)

cdef enum:
    LINE_MAX = 131072      # bytes of a line; what is beyond is left out
    MARGIN = 64            # room for the end of a value that is cut off
    PADDING = 32           # bytes behind a literal text that may be read
    GAPS = 16              # of a frame, and its bytes; a line that has more has none
    FRAME_TEXT = 414

cdef enum:
    # fields
    L_NONE = 0
    # known when a request's head is, and nothing but its connection's and its bytes
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
    # known at the end: what follows from a few small numbers, by their table
    L_SERVICE
    L_ROUTE
    L_VERSION
    L_RULE
    L_FALLBACK
    L_INSTANCE
    L_REVISION
    L_ATTEMPTS
    L_UPSTREAM_PROTOCOL
    L_STATUS
    L_GRPC_STATUS
    L_ERROR
    L_ERROR_SOURCE
    L_ABORTED
    L_LAST_OF_FOLLOWING = L_ABORTED
    # numbers and times
    L_SLOT
    L_DRAW
    L_BYTES_IN
    L_BYTES_OUT
    L_DURATION
    L_FIRST_BYTE
    L_CONNECT
    L_LAST_BARE = L_CONNECT
    L_TIME
    L_TIME_LOCAL

cdef struct Text:
    const char* p          # NULL: there is none
    uint32_t n

cdef struct LogOp:
    const char* text       # before the value, with the quote that it has in JSON, and PADDING bytes
    uint32_t n
    uint8_t field
    uint8_t kind           # see _accesslog.Kind
    uint8_t quoted         # a quote is behind the value
    uint8_t safe           # the value needs no escapes, and PADDING bytes of it may be read
    uint8_t fill           # a number: see _accesslog.Fill
    uint16_t at            # of the head: where in `values` it is
    uint16_t run           # so many operations from here on are of the head; 0: this is not, or not the first
    uint16_t following     # behind a run of the head: where the next one begins

cdef struct Wanted:
    # a header that a field is of
    const char* name       # lower case, and PADDING bytes
    uint32_t n
    uint8_t field

cdef struct Gap:
    uint16_t n             # of the text before it
    uint8_t fill           # see _accesslog.Fill
    uint8_t at             # a number: which one

cdef struct Frame:
    # a line without what is of the head, and without numbers and times
    uint64_t key[4]        # what it follows from, see `_accesslog._key`
    Gap gaps[GAPS]         # up to an F_END
    uint8_t known
    uint8_t whole          # 0: it finds no room here
    char text[FRAME_TEXT]

@cython.final
cdef class Frames:
    # those of one table and format that were written last; each has one place
    cdef Frame* at         # PLACES; NULL before the first

    cdef Frame* place(self, const uint64_t* key) noexcept

cdef struct Asked:
    # what is known of a request when its head is
    Head* head             # NULL: it was none
    Peer* peer
    Text listener
    uint8_t secure
    uint8_t h2
    uint32_t worker
    uint64_t wall_us       # Unix time
    Text request_id        # made here; else the client's
    Text trace_id
    Text span_id
    Text parent_id

cdef struct Ended:
    # and at its end
    Exchange* x
    const char* time       # of its beginning, 2026-11-22T15:21:45.123456Z, of 32 bytes
    const char* local      # 22/Nov/2026:15:21:45 +0000, likewise
    uint64_t now_us
    uint16_t status
    Text error
    Text source

@cython.final
cdef class Format:
    cdef readonly bint json
    cdef uint64_t serial           # no other format has it
    cdef readonly object made_of   # what it was made of: (json, parts)
    cdef LogOp* ops
    cdef int n
    cdef int first                 # where the first run of the head begins
    cdef uint32_t longest          # of the literal texts
    cdef uint64_t has              # fields
    cdef Text* values              # of a head: of its fields, then of the headers that are wanted
    cdef Wanted* wanted
    cdef int n_wanted
    cdef uint64_t lengths          # of their names; 63: that or longer
    cdef list kept

    cdef const char* _keep(self, bytes text)
    cdef _name(self, LogOp* op, str name)
    cdef void _look_up(self, Asked* a) noexcept
    cdef void _ask(self, Asked* a, char* numbers) noexcept
    cdef char* head(self, Asked* a, char* o, char* limit) noexcept
    cdef Frame* _frame(self, Ended* e, Table t, Frames frames) noexcept
    cdef bint _framed(self, Frame* f, Ended* e, Table t) noexcept
    cdef char* _piece_of(self, LogOp* op, Ended* e, Table t, char* o, char* limit) noexcept
    cdef char* _pieces(self, Ended* e, Table t, const char* heads, const char* heads_end, char* o, char* limit) noexcept
    cdef char* _filled(self, Frame* f, Ended* e, const char* heads, char* o) noexcept
    cdef char* line(self, Ended* e, Table t, Frames frames, const char* heads, const char* heads_end, char* o,
                    char* limit) noexcept

cdef void dates(uint64_t second, char* date, char* local) noexcept
cdef void put_micros(char* date, uint32_t us) noexcept
cdef Text header_of(Head* h, const char* name, uint32_t n) noexcept
cdef Text decided(int field, Exchange* x, Table t) noexcept
