"""HTTP/2 sessions without I/O: see _h2.pyx. It may be missing from a build, so the engine finds it through `H2Api`.

Heads and trailers cross this border in the form of HTTP/1.1 text, so that one scanner holds the law of every message and one
writer makes every head that is forwarded. A request's text is `METHOD TARGET HTTP/1.1`, `host: …` from `:authority`, its fields
(cookies joined into one), `transfer-encoding: chunked` where a body of unknown length follows, and the blank line; a
response's `HTTP/1.1 STATUS ` likewise, without a reason. In the other direction names are made lower case in place, and fields that
HTTP/2 forbids (RFC 9113 section 8.2.2; `te` but for `trailers`) are left out. Trailers: lines and the blank line.

A head that came is told with its lines: each is lawful by itself, which was looked at before it was written, and has its id. What
they mean together is for the scanner's law to say.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from graylb._http1 cimport KnownHead
from graylb._live cimport Conn, Session

cdef enum H2Error:         # RFC 9113 section 7
    H2_NO_ERROR = 0
    H2_PROTOCOL_ERROR = 1
    H2_INTERNAL_ERROR = 2
    H2_STREAM_CLOSED = 5
    H2_REFUSED_STREAM = 7
    H2_CANCEL = 8
    H2_ENHANCE_YOUR_CALM = 11

cdef struct H2Limits:
    uint32_t streams       # that a client may have open
    uint32_t window        # bytes, of a stream
    uint32_t connection_window
    uint32_t head_bytes    # of one header block of a client, as text; instances may say as much as over HTTP/1.1
    uint32_t headers       # fields of one
    uint32_t resets        # streams a client may reset, or have reset, in a burst; refilled within 10 s
    uint32_t control       # PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA and unknown frames in a burst; refilled within 1 s

cdef struct H2Hooks:
    # What a session tells its engine, from inside `receive`; `drained` and `closed` from inside `produce` too. A hook may submit to any
    # session and reset streams; it must not call `receive` or `produce`, nor free a session or a Conn with a stream.
    # A server's new stream: the engine makes a Conn and calls `bind`, or `refuse`s the stream. end: no body follows.
    void (*request)(void* engine, Session* s, int32_t stream, const KnownHead* head, bint end) noexcept
    # a response's head, 1xx included
    void (*response)(void* engine, Conn* u, const KnownHead* head, bint end) noexcept
    void (*data)(void* engine, Conn* c, char* p, size_t n) noexcept
    # the message ends, with trailers or n == 0; not called for heads that came with `end`
    void (*end)(void* engine, Conn* c, char* trailers, size_t n) noexcept
    # all that was pending in c.out has gone into the session's output
    void (*drained)(void* engine, Conn* c) noexcept
    # The stream is over: both sides have ended, or one has reset it (error). The Conn is not bound any more. An upstream's says
    # H2_NO_ERROR only when its response was complete.
    void (*closed)(void* engine, Conn* c, uint32_t error) noexcept
    # a peer's GOAWAY: s.full is set; streams that it did not process are told `closed` with H2_REFUSED_STREAM
    void (*leaving)(void* engine, Session* s) noexcept
    # a request's head is not lawful or too large, and no Conn is there: answered, or reset, by the session itself; for counters
    void (*rejected)(void* engine, Session* s, int status) noexcept
    # s.dirty was 0, is 1 now, and the session may have something to send: the engine lists it, and calls `produce` later
    void (*dirty)(void* engine, Session* s) noexcept

cdef struct H2Api:
    int version            # of this struct: H2_API
    # a session on conn, with its first SETTINGS submitted; NULL: out of memory. limits and hooks must outlive it.
    Session* (*open)(bint server, const H2Limits* limits, const H2Hooks* hooks, void* engine, Conn* conn) noexcept
    # no hooks are called; Conns of its streams are the caller's affair
    void (*free)(Session* s) noexcept
    # 0; -1: the peer broke the law or a limit: s.ending is set, GOAWAY is in the output, nothing more is to be received. What
    # libnghttp2 itself found unlawful shows in s.ending and `finished` when the GOAWAY has been produced.
    int (*receive)(Session* s, const char* p, size_t n) noexcept
    # Bytes written at o, whole frames; 0: nothing now; -1: out of memory. room: at least 17 KiB. s.dirty is the caller's
    # to clear, before: hooks may set it again meanwhile.
    ssize_t (*produce)(Session* s, char* o, size_t room) noexcept
    # whether it is over: neither wants to read nor to write
    bint (*finished)(Session* s) noexcept
    # ties a server's stream to its Conn, or unties it (c NULL)
    void (*bind)(Session* s, int32_t stream, Conn* c) noexcept
    # resets a stream that has no Conn
    void (*refuse)(Session* s, int32_t stream, uint32_t error) noexcept
    # Submits a response from its text; pending bytes of c.out follow unless `end`. 0, or -1: it cannot be sent.
    int (*respond)(Conn* c, char* text, size_t n, bint end) noexcept
    # likewise a 1xx
    int (*inform)(Conn* c, char* text, size_t n) noexcept
    # Submits a request from its text on s and binds u to its stream (u.stream, u.session are set); pending bytes of u.out follow
    # unless `end`. 0; -1: this session can take no more (s.full is set).
    int (*ask)(Session* s, Conn* u, char* text, size_t n, bint end, bint https) noexcept
    # bytes were added to c.out, or c.eof or c.trailers were set
    void (*more)(Conn* c) noexcept
    # n received bytes of this stream's body are used: its window opens. The connection's opened when they came.
    void (*consume)(Conn* c, size_t n) noexcept
    # Resets the stream and unbinds c; `closed` is not called. Harmless when the stream is over.
    void (*reset)(Conn* c, uint32_t error) noexcept
    # whether the request's HEADERS have left this process (a stream that has not may be repeated elsewhere)
    bint (*was_sent)(Conn* u) noexcept
    # GOAWAY: first (last False) with the highest id there is, then, a round trip later, with the last one taken
    void (*go_away)(Session* s, bint last) noexcept
    # a PING of ours; when its ACK has come, s says so in `acked`
    void (*ping)(Session* s) noexcept

cdef enum:
    H2_API = 2
    PREFACE = 24           # bytes of a client's connection preface
