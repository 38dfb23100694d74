"""What a worker tells of its requests: see _logs.pyx."""

cimport cython
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from graylb._accesslog cimport Asked, Ended, Format, Frames, Text
from graylb._http1 cimport Head
from graylb._live cimport Conn, Exchange, Peer
from graylb._ring cimport Ring

cdef enum:
    ERROR_CODES = 40
    EVENTS_BUFFER = 1048576

cdef enum Captured:
    C_LOG = 1              # for the access log
    C_FULL = 2             # for views
    C_SPAN = 4             # for spans

cdef class Settings:
    # of a table
    cdef Format format             # None: no access log
    cdef uint64_t serial           # of the format
    cdef bint ports                # it tells of clients' ports
    cdef Frames frames
    cdef uint32_t sample[6]        # by class of status: of 2**32
    cdef readonly size_t buffer
    cdef bint tracing
    cdef uint64_t ratio            # of 2**64: traces that begin here and are sampled
    cdef bint parent_based
    cdef bint always_errors
    cdef uint8_t request_ids       # 0 as they come, 1 made where there is none, 2 always made
    cdef bint any_                 # of all these

cdef class Outlet:
    cdef int fd
    cdef char* buf
    cdef size_t off
    cdef size_t len
    cdef size_t size
    cdef bint full                 # the pipe is, as far as we know
    cdef readonly uint64_t lines
    cdef readonly uint64_t dropped

    cdef char* room(self) noexcept
    cdef void wrote(self, char* e) noexcept
    cdef void flush(self) noexcept

cdef struct Told:
    # what `Exchange.log` begins with; behind it is what is told of the head, and the head where it may come again
    uint64_t format        # its serial; 0: this head does not count for another
    const char* listener
    char address[48]
    uint32_t address_n
    uint32_t end           # of what is told
    uint32_t head_n
    uint16_t port
    uint8_t secure
    uint8_t h2

cdef struct View:
    const char* service            # NULL: any
    const char* version
    const char* rule
    uint32_t service_n
    uint32_t version_n
    uint32_t rule_n
    uint16_t low                   # statuses
    uint16_t high

@cython.final
cdef class Logs:
    cdef readonly Ring access
    cdef readonly Outlet events
    cdef Format full
    cdef uint32_t worker
    cdef View views[16]
    cdef int n_views
    cdef list kept
    cdef uint32_t left             # lines for views in this tick
    cdef readonly uint64_t unseen  # lines for views that were too many
    cdef uint32_t spans_left       # in this tick
    cdef Head head                 # of the request whose spans are written
    cdef readonly uint64_t spans
    cdef readonly uint64_t spans_dropped
    cdef uint64_t offset           # of Unix time, to the monotonic one, us
    cdef uint64_t second_us        # Unix time of the second that these are of
    cdef char time[32]             # as `_accesslog.dates` writes it, and `put_micros`
    cdef char local[32]
    cdef uint64_t random_state
    cdef char* scratch
    cdef list texts
    cdef const char* reasons[ERROR_CODES]
    cdef uint32_t reasons_n[ERROR_CODES]
    cdef const char* sources[ERROR_CODES]
    cdef uint32_t sources_n[ERROR_CODES]
    cdef uint16_t statuses[ERROR_CODES]

    cdef void asked(self, Exchange* x, Settings s, Head* h, Peer* peer, const char* listener, uint32_t listener_n,
                    bint secure, bint h2) noexcept
    cdef void ended(self, Exchange* x, uint64_t now_us) noexcept
    cdef void ticked(self) noexcept
    cdef uint64_t random(self) noexcept
    cdef char* lines(self, Exchange* x, char* e) noexcept
    cdef void tried(self, Exchange* x, Conn* u, int32_t instance) noexcept
    cdef void missed(self, Exchange* x, int code) noexcept
    cdef void try_ended(self, Exchange* x, Conn* u, int code, int status, int grpc) noexcept
    cdef bint _log_room(self, Exchange* x, size_t n) noexcept
    cdef void _keep(self, Exchange* x, Head* h, const char* listener, uint32_t listener_n, bint secure, bint h2) noexcept
    cdef void _tell_spans(self, Exchange* x, Ended* e) noexcept
    cdef char* _span_room(self) noexcept
    cdef void _span_done(self, char* o, char* e) noexcept
    cdef void _trace(self, Exchange* x, Settings s, Head* h) noexcept
    cdef void _name_request(self, Exchange* x, Settings s, Head* h) noexcept
    cdef bint _as_before(self, Exchange* x, Settings s, Head* h, Peer* peer, const char* listener, bint secure, bint h2) noexcept
    cdef void _date(self, Ended* e) noexcept
    cdef void _keep_told(self, Exchange* x, Settings s, Head* h, Peer* peer, Text listener, bint secure, bint h2) noexcept
    cdef bint _told(self, Exchange* x, Settings s, Asked* a, char* at, char* end) noexcept
    cdef bint _tell_span(self, Exchange* x, Settings s, uint16_t status) noexcept
    cdef bint _seen(self, Exchange* x, uint16_t status) noexcept
