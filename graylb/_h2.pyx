"""HTTP/2 sessions without I/O, over libnghttp2: what they promise stands in _h2.pxd.

Bytes that came go into `receive`, which calls the engine's hooks; bytes to send come out of `produce`. libnghttp2 frames, compresses
heads, keeps windows and stream states. Here stands the rest: heads to and from HTTP/1.1 text, bodies straight from a
Conn's pending bytes into the output, early answers, and the limits on what a peer may make us do.

libnghttp2 must not be entered from its own callbacks but to submit, resume, consume and reset; hooks run inside of them. A
Conn is found by its stream's number, never by a pointer that libnghttp2 keeps: frames outlive streams.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pycapsule cimport PyCapsule_New
from graylb._http1 cimport (GL_TOKEN, H_CONNECTION, H_CONTENT_LENGTH, H_COOKIE, H_HOST, H_HTTP2_SETTINGS, H_KEEP_ALIVE,
                            H_PROXY_CONNECTION, H_TE, H_TRANSFER_ENCODING, H_UPGRADE, MAX_HEADERS, KnownHead, Line, classify,
                            gl_same, gl_skip_token, read_as_scanned)
from graylb._live cimport MAX_HEAD, TRAILERS_SLACK, Conn, Exchange, Session
from graylb.nghttp2 cimport *

include "_h2_bytes.pxi"

cdef enum:
    FIELDS = MAX_HEADERS + 64      # of a head or of trailers that is sent, with what forwarding adds
    FRAME_HEAD = 9
    TIGHT = 1024                   # less room than that is no place for a frame
    ADDED = 64                     # bytes of a text that no field accounts for
    MAX_FIELDS = MAX_HEADERS - 2   # room for what the text adds, a cookie and the coding, is left in a `Head`
    CONTINUATIONS = 64             # frames of one header block
    BLOCK_FACTOR = 4               # a header block so many times over the limit ends the connection: it is a bomb
    QUEUED = 2048                  # frames that wait to be sent besides those of streams: who makes us answer must read
    RESET_MS = 10000               # a burst is refilled within
    CONTROL_MS = 1000
    NO_RFC7540_PRIORITIES = 9      # of SETTINGS, RFC 9218 section 2.1.1; older headers do not name it
    EARNED = 4                     # control frames that a DATA frame of ours allows: updates of two windows, a PING
    GRAIN = 64                     # blocks of libnghttp2 are kept by multiples of it
    BINS = 32                      # so many of them
    PARKED = 262144                # bytes of each that are kept for the next streams
    ASKED = 32                     # requests that are told at once …
    ASKED_BYTES = 24576            # … and what their texts may take
    AHEAD = 16                     # answers whose streams are brought into the cache at once
    OVER = 64                      # a power of 2
    BEFORE_BYTES = 1024            # a longer text is not kept for the next one
    BEFORE_LINES = 32
    NEVER = 1 << 30                # bytes of a line that no text is long enough for
    SPARE = 4                      # text buffers kept
    SPARE_MAX = 32768
    UNCOPIED = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
    SLACK = TRAILERS_SLACK         # bytes behind a lent text, to look at several at once
    PECULIAR = 1 << 2 | 1 << 4 | 1 << 7 | 1 << 10 | 1 << 14 | 1 << 16 | 1 << 17     # lengths of names that `_left_out` looks at
    # ids of fields that `_is_line` looks at
    SPECIAL = 1 << H_CONTENT_LENGTH | 1 << H_HOST | 1 << H_COOKIE | 1 << H_TE | 1 << H_CONNECTION | 1 << H_KEEP_ALIVE \
        | 1 << H_PROXY_CONNECTION | 1 << H_TRANSFER_ENCODING | 1 << H_UPGRADE | 1 << H_HTTP2_SETTINGS
    MALFORMED = 1                  # a verdict: no request at all (RFC 9113 section 8.1.1); its stream is reset
    STATUS_AT = 9                  # of a response's text

cdef enum Phase:                   # Conn.phase
    SENT = 1                       # the request's HEADERS have left
    HEADED = 2                     # the final response head has come
    ENDED = 4                      # the peer's side of the stream has ended
    BODILESS = 8                   # the answer to HEAD has no body, whatever length it says
    SPOILT = 16                    # its body is not as long as it says; what still comes of it is nothing

cdef enum Pseudo:                  # Framer.seen
    METHOD = 1
    SCHEME = 2
    PATH = 4
    AUTHORITY = 8
    NEEDED = METHOD | SCHEME | PATH

cdef enum Block:                   # what header block is arriving
    NOTHING = 0
    REQUEST
    RESPONSE
    TRAILERS

cdef struct Text:
    char* p
    size_t n
    size_t cap

cdef struct Span:
    uint32_t at
    uint32_t n

cdef struct Before:               # a head or trailers that a session had before; most lines of the next are the same
    Line* lines                    # of `text`
    char* text                     # in the same block
    int n

cdef struct Lent:                 # before the text of a head that libnghttp2 has not packed yet: it reads the fields from there
    Lent* next
    Lent* previous

cdef struct Asked:                 # a request that the engine is to be told of
    int32_t stream
    uint8_t end                    # no body follows
    uint8_t ended                  # behind `data`
    KnownHead head                 # its `text` and `lines` are set when it is told: the texts move as they grow
    size_t at                      # of the one
    size_t lines_at                # and of the others
    int64_t length
    const uint8_t* data            # what has come of its body, where it was received
    size_t data_n

cdef struct Framer:
    Session s                      # first: this is what the engine sees of it
    nghttp2_session* ng
    const H2Limits* limits
    const H2Hooks* hooks
    void* engine
    # the header block that is arriving; text is borrowed for that long
    uint8_t block
    uint8_t begun                  # its first line is in the text
    uint8_t has_length
    uint8_t has_host
    uint16_t verdict               # the status that it has earned, or MALFORMED; 0: fine
    uint16_t status                # a response's
    uint8_t seen                   # which pseudo-header fields
    uint32_t fields
    uint32_t most_fields
    int64_t length                 # that its body has, as it says; -1: it does not
    size_t size                    # bytes, as text
    size_t most_bytes
    Text text
    Text lines                     # Lines of the text
    Text cookies
    Before came[2]                 # heads, trailers
    Before went[2]
    int next                       # line of what came that is expected
    uint32_t missed                # fields that were none of its lines
    size_t start                   # where the head begins in the text; before it stand the pseudo-header fields
    size_t lines_at                # and where its Lines begin
    Span method
    Span path
    Span scheme
    Span authority
    Lent* lent
    # the stream whose Conn was looked for last, and that Conn
    int32_t last
    Conn* of_last
    size_t ahead                   # bytes of what will be received before the next frame begins
    uint8_t part[FRAME_HEAD]       # what has come of the next one's head
    uint8_t part_n
    # what is being produced
    char* o
    size_t room
    size_t used
    const uint8_t* rest            # a frame that found no room
    size_t rest_len
    int n_asked                    # requests that have come and not been told, `_asked_for`
    size_t consumed                # bytes of bodies that this receive has brought
    # limits
    uint8_t broken                 # nothing more is received
    uint16_t continuations
    int64_t resets                 # left, times RESET_MS
    int64_t control                # left, times CONTROL_MS
    uint64_t refilled              # ms
    int32_t over[OVER]             # streams that a client has ended and that are closed: the newest of each number modulo OVER
    int32_t highest                # of a client's streams
    int32_t gap_from               # those that it passed over last
    int32_t gap_to

cdef nghttp2_session_callbacks* _callbacks = NULL
cdef nghttp2_nv _nv[FIELDS + 8]    # scratch
cdef Asked _asked_for[ASKED]       # of the session that receives
cdef Text _spare[SPARE]
cdef int _n_spare = 0

include "_h2_memory.pxi"
include "_h2_limits.pxi"


# ---- streams and their Conns ---------------------------------------------------------------------------------------

cdef inline Conn* _conn(Framer* f, int32_t stream) noexcept:
    """Callbacks for one stream follow each other: most look for the same Conn as the one before."""
    if stream != f.last or f.of_last == NULL:
        f.of_last = <Conn*>nghttp2_session_get_stream_user_data(f.ng, stream)
        f.last = stream
    return f.of_last


cdef void _link(Framer* f, Conn* c, int32_t stream) noexcept:
    c.session = &f.s
    c.stream = stream
    c.phase = c.deferred = 0
    c.left = f.length if f.s.server else -1
    c.previous = NULL
    f.last = stream
    f.of_last = c
    c.next = f.s.streams
    if c.next != NULL: c.next.previous = c
    f.s.streams = c
    f.s.n_streams += 1


cdef void _unlink(Conn* c) noexcept:
    cdef Session* s = c.session
    if (<Framer*>s).of_last == c: (<Framer*>s).of_last = NULL
    if c.previous != NULL: c.previous.next = c.next
    else: s.streams = c.next
    if c.next != NULL: c.next.previous = c.previous
    s.n_streams -= 1
    c.next = c.previous = NULL
    c.stream = 0
    c.deferred = 0


include "_h2_heads.pxi"


# ---- receiving -----------------------------------------------------------------------------------------------------

cdef int _on_data_chunk(nghttp2_session* ng, uint8_t flags, int32_t stream, const uint8_t* p, size_t n, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef Asked* a = _asked(f, stream)
    cdef Conn* c
    f.consumed += n
    if a != NULL:
        if a.data_n == 0 and (a.length < 0 or n <= <size_t>a.length):
            a.data = p
            a.data_n = n
            return 0
        _tell(f)
    c = _conn(f, stream)
    if c == NULL or c.phase & SPOILT: return 0
    if not f.s.server and not c.phase & HEADED or c.left >= 0 and <size_t>c.left < n:
        _spoil(f, c)
        return 0
    if c.left >= 0: c.left -= n
    c.owed += n
    f.hooks.data(f.engine, c, <char*>p, n)
    return 0


cdef void _spoil(Framer* f, Conn* c) noexcept:
    """A body that comes before its head, or is longer or shorter than that says."""
    c.phase |= SPOILT
    _reset_unlawful(f, c.stream)


cdef int _on_frame_recv(nghttp2_session* ng, const nghttp2_frame* frame, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef uint8_t type = frame.hd.type
    cdef bint end = frame.hd.flags & NGHTTP2_FLAG_END_STREAM
    cdef Asked* a
    cdef Conn* c
    if type == NGHTTP2_DATA:
        if end:
            a = _asked(f, frame.hd.stream_id)
            if a != NULL:
                if a.length < 0 or a.data_n == <size_t>a.length:
                    a.ended = 1
                    return 0
                _tell(f)
            c = _conn(f, frame.hd.stream_id)
            if c == NULL or c.phase & SPOILT: return 0
            if c.left > 0 or (not f.s.server and not c.phase & HEADED): _spoil(f, c)
            else:
                c.phase |= ENDED
                f.hooks.end(f.engine, c, NULL, 0)
        elif frame.hd.length <= frame.data.padlen: return _control(f)
        return 0
    if type == NGHTTP2_HEADERS: return _head_done(f, frame.hd.stream_id, end)
    if type == NGHTTP2_RST_STREAM: return _reset(f)
    if type == NGHTTP2_PING:
        if frame.hd.flags & NGHTTP2_FLAG_ACK: f.s.acked = 1
    elif type == NGHTTP2_SETTINGS:
        if not f.s.server and not frame.hd.flags & NGHTTP2_FLAG_ACK:
            f.s.max_streams = min(nghttp2_session_get_remote_settings(ng, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS),
                                  <uint32_t>0x7fffffff)
    elif type == NGHTTP2_GOAWAY and not f.s.server:
        f.s.full = 1
        f.hooks.leaving(f.engine, &f.s)
    return 0


cdef int _on_invalid_frame(nghttp2_session* ng, const nghttp2_frame* frame, int error, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    if frame.hd.type == NGHTTP2_HEADERS and f.block != NOTHING:
        f.block = NOTHING
        if f.n_asked: _tell(f)
        if f.s.server and frame.headers.cat == NGHTTP2_HCAT_REQUEST: f.hooks.rejected(f.engine, &f.s, 400)
    return _reset(f) if error == NGHTTP2_ERR_REFUSED_STREAM else 0


cdef int _on_stream_close(nghttp2_session* ng, int32_t stream, uint32_t error, void* user) noexcept:
    cdef Framer* f = <Framer*>user
    cdef Conn* c = _conn(f, stream)
    # a client may reset as many as it lets end, besides its burst
    if f.s.server and error == H2_NO_ERROR: f.resets = min(f.resets + RESET_MS, <int64_t>f.limits.resets * RESET_MS)
    if c == NULL: return 0
    if not f.s.server:
        if not c.phase & SENT: error = H2_REFUSED_STREAM
        elif error == H2_NO_ERROR and not c.phase & ENDED: error = H2_PROTOCOL_ERROR    # cut off, or refused by us
    _unlink(c)
    f.hooks.closed(f.engine, c, error)
    f.of_last = NULL               # libnghttp2 names it until this returns
    return 0


include "_h2_sending.pxi"


# ---- what the engine calls -----------------------------------------------------------------------------------------

cdef bint _make_callbacks() noexcept:
    global _callbacks
    if _callbacks != NULL: return True
    if nghttp2_session_callbacks_new(&_callbacks) != 0: return False
    nghttp2_session_callbacks_set_send_data_callback(_callbacks, _send_data)
    nghttp2_session_callbacks_set_on_frame_recv_callback(_callbacks, _on_frame_recv)
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(_callbacks, _on_invalid_frame)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(_callbacks, _on_data_chunk)
    nghttp2_session_callbacks_set_on_frame_send_callback(_callbacks, _on_frame_send)
    nghttp2_session_callbacks_set_on_frame_not_send_callback(_callbacks, _on_frame_not_send)
    nghttp2_session_callbacks_set_on_stream_close_callback(_callbacks, _on_stream_close)
    nghttp2_session_callbacks_set_on_begin_headers_callback(_callbacks, _on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(_callbacks, _on_header)
    nghttp2_session_callbacks_set_on_begin_frame_callback(_callbacks, _on_begin_frame)
    nghttp2_session_callbacks_set_unpack_extension_callback(_callbacks, _on_extension)
    return True


cdef bint _start(Framer* f) noexcept:
    """Makes libnghttp2's session and submits the first SETTINGS; False: out of memory."""
    cdef nghttp2_settings_entry settings[4]
    cdef nghttp2_option* option
    cdef const H2Limits* limits = f.limits
    cdef int r
    if nghttp2_option_new(&option) != 0: return False
    nghttp2_option_set_no_auto_window_update(option, 1)
    # it would keep a hundred for a tree of priorities, and take new memory for each new stream; see Framer.over
    nghttp2_option_set_no_closed_streams(option, 1)
    # the laws of messages (RFC 9113 section 8) are held here, where their fields are looked at anyway
    nghttp2_option_set_no_http_messaging(option, 1)
    nghttp2_option_set_max_send_header_block_length(option, 4 * 131072)
    gl_option_continuations(option, CONTINUATIONS)
    for r in range(NGHTTP2_CONTINUATION + 1, 256): nghttp2_option_set_user_recv_extension_type(option, <uint8_t>r)
    # its own limit only queues a GOAWAY and parses on: ours comes first
    gl_option_resets(option, 2 * <uint64_t>limits.resets + 1000, limits.resets + 1000)
    if f.s.server: r = nghttp2_session_server_new3(&f.ng, _callbacks, f, option, _mem)
    else: r = nghttp2_session_client_new3(&f.ng, _callbacks, f, option, _mem)
    nghttp2_option_del(option)
    if r != 0: return False
    settings[0].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    settings[0].value = limits.window
    settings[1].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    settings[1].value = limits.head_bytes + 32 * limits.headers if f.s.server else MAX_HEAD
    settings[2].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    settings[2].value = limits.streams
    if not f.s.server:
        settings[2].settings_id = NGHTTP2_SETTINGS_ENABLE_PUSH
        settings[2].value = 0
        # RFC 9218: our streams to an instance need no tree of priorities. One that has much to send is before others at most
        # with what is pending of it, which is as much as a window.
        settings[3].settings_id = NO_RFC7540_PRIORITIES
        settings[3].value = 1
    if nghttp2_submit_settings(f.ng, NGHTTP2_FLAG_NONE, settings, 3 if f.s.server else 4) != 0: return False
    return nghttp2_session_set_local_window_size(f.ng, NGHTTP2_FLAG_NONE, 0, <int32_t>limits.connection_window) == 0


cdef Session* _open(bint server, const H2Limits* limits, const H2Hooks* hooks, void* engine, Conn* conn) noexcept:
    cdef Framer* f = <Framer*>calloc(1, sizeof(Framer))
    if f == NULL: return NULL
    f.limits = limits
    f.hooks = hooks
    f.engine = engine
    f.s.conn = conn
    f.s.server = server
    f.s.max_streams = 100
    f.highest = -1
    f.ahead = PREFACE if server else 0
    f.gap_to = -1
    f.resets = <int64_t>limits.resets * RESET_MS
    f.control = <int64_t>limits.control * CONTROL_MS
    f.refilled = gl_h2_ms()
    if not _make_callbacks() or not _start(f):
        _free(&f.s)
        return NULL
    _touch(f)
    return &f.s


cdef void _free(Session* s) noexcept:
    cdef Framer* f = <Framer*>s
    cdef int i
    if f.ng != NULL: nghttp2_session_del(f.ng)
    while f.lent != NULL: _take_back(f, <char*>(f.lent + 1))
    _forget_text(f)
    for i in range(2):
        free(f.came[i].lines)
        free(f.went[i].lines)
    free(f)


cdef size_t _look_ahead(Framer* f, const uint8_t* p, size_t n, bint* late) noexcept:
    """How many bytes are to be received at once: until a frame that is late, or as many answers as the cache holds the streams of."""
    cdef int32_t streams[AHEAD]
    cdef int k = 0
    cdef size_t at = f.ahead
    if f.part_n:                   # a frame whose head was cut
        at = min(n, <size_t>(FRAME_HEAD - f.part_n))
        memcpy(f.part + f.part_n, p, at)
        f.part_n += <uint8_t>at
        if f.part_n < FRAME_HEAD: return n
        f.part_n = 0
        late[0] = f.s.server and _is_late(f, f.part)
        if late[0]: return at
        at += f.part[0] << 16 | f.part[1] << 8 | f.part[2]
    while at + FRAME_HEAD <= n and k < AHEAD:
        if f.s.server:
            late[0] = _is_late(f, p + at)
            if late[0]: return at
        elif p[at + 3] == NGHTTP2_HEADERS and (k == 0 or streams[k - 1] != _stream_of(p + at)):
            streams[k] = _stream_of(p + at)
            k += 1
        at += FRAME_HEAD + (p[at] << 16 | p[at + 1] << 8 | p[at + 2])
    _foresee(f, streams, k)
    if k == AHEAD and at < n:
        f.ahead = 0
        return at
    f.ahead = at - n if at > n else 0
    if at < n:
        f.part_n = <uint8_t>(n - at)
        memcpy(f.part, p + at, f.part_n)
    return n


cdef void _foresee(Framer* f, const int32_t* streams, int n) noexcept:
    """Brings what the next answers need into the cache, for all of them at once rather than one after the other: their streams have
    waited for long."""
    cdef Conn* found[AHEAD]
    cdef Conn* c
    cdef int i, k = 0
    for i in range(n):
        c = <Conn*>nghttp2_session_get_stream_user_data(f.ng, streams[i])
        if c != NULL:
            gl_foresee(c, sizeof(Conn))
            found[k] = c
            k += 1
    for i in range(k):
        if found[i].x != NULL: gl_foresee(found[i].x, sizeof(Exchange))
    for i in range(k):
        if found[i].x != NULL and found[i].x.client != NULL: gl_foresee(found[i].x.client, sizeof(Conn))


cdef int _receive(Session* s, const char* p, size_t n) noexcept:
    cdef Framer* f = <Framer*>s
    cdef ssize_t r = 0
    cdef size_t k
    cdef bint late = False
    if f.broken: return -1
    _refill(f)
    while n and r >= 0 and not late:
        k = _look_ahead(f, <const uint8_t*>p, n, &late)
        r = nghttp2_session_mem_recv(f.ng, <const uint8_t*>p, k)
        p += k
        n -= k
    if f.n_asked: _tell(f)
    if f.block == NOTHING: _forget_text(f)
    # the connection's window opens at once: a stream whose reader is slow must not stall the others
    if f.consumed: nghttp2_session_consume_connection(f.ng, f.consumed)
    f.consumed = 0
    if late: _punish(f, H2_STREAM_CLOSED)
    elif r < 0: _punish(f, H2_PROTOCOL_ERROR if r == NGHTTP2_ERR_BAD_CLIENT_MAGIC else H2_ENHANCE_YOUR_CALM)
    elif nghttp2_session_get_outbound_queue_size(f.ng) > QUEUED + 8 * f.limits.streams: _punish(f, H2_ENHANCE_YOUR_CALM)
    if nghttp2_session_want_write(f.ng): _touch(f)
    return -1 if f.broken else 0


cdef ssize_t _produce(Session* s, char* o, size_t room) noexcept:
    cdef Framer* f = <Framer*>s
    cdef ssize_t n
    f.o = o
    f.room = room
    f.used = 0
    while True:
        if f.rest_len == 0:
            n = nghttp2_session_mem_send(f.ng, &f.rest)
            if n < 0: return -1
            if n == 0: break
            f.rest_len = n
        if f.rest_len > room - f.used: break
        memcpy(o + f.used, f.rest, f.rest_len)
        f.used += f.rest_len
        f.rest_len = 0
    return <ssize_t>f.used


cdef bint _finished(Session* s) noexcept:
    cdef Framer* f = <Framer*>s
    if f.rest_len or nghttp2_session_want_write(f.ng): return False
    return f.broken or not nghttp2_session_want_read(f.ng)


cdef void _bind(Session* s, int32_t stream, Conn* c) noexcept:
    cdef Framer* f = <Framer*>s
    cdef Conn* old = _conn(f, stream)
    if old != NULL: _unlink(old)
    if nghttp2_session_set_stream_user_data(f.ng, stream, c) == 0 and c != NULL: _link(f, c, stream)


cdef void _refuse(Session* s, int32_t stream, uint32_t error) noexcept:
    cdef Framer* f = <Framer*>s
    nghttp2_submit_rst_stream(f.ng, NGHTTP2_FLAG_NONE, stream, error)
    _touch(f)


cdef nghttp2_data_provider* _provider(Conn* c) noexcept:
    """Of a body that follows; NULL: none does."""
    if c.eof and c.out_len == 0 and c.trailers_len == 0: return NULL
    _body.read_callback = _read
    return &_body

cdef nghttp2_data_provider _body


cdef char* _head(Conn* c, const char* text, size_t n, int* k) noexcept:
    """A response's text -> a copy of it on loan, and k pairs in `_nv` that lie in there; NULL: it cannot be sent."""
    cdef Framer* f = <Framer*>c.session
    cdef const char* line = <const char*>memchr(text, 10, n)
    cdef char* p = _lend(f, text, n) if c.stream and line != NULL and n >= 14 else NULL
    if p == NULL: return NULL
    _pair(&_nv[0], b":status", 7, p + STATUS_AT, 3, UNCOPIED)
    k[0] = _pairs(&f.went[0], p + (line + 1 - text), p + n, &_nv[1], NULL, UNCOPIED) + 1
    if k[0] > 0: return p
    _take_back(f, p)
    return NULL


cdef int _respond(Conn* c, char* text, size_t n, bint end) noexcept:
    cdef Framer* f = <Framer*>c.session
    cdef int k
    cdef char* lent = _head(c, text, n, &k)
    if lent == NULL: return -1
    if nghttp2_submit_response(f.ng, c.stream, _nv, k, NULL if end else _provider(c)) != 0:
        _take_back(f, lent)
        return -1
    _touch(f)
    return 0


cdef int _inform(Conn* c, char* text, size_t n) noexcept:
    cdef Framer* f = <Framer*>c.session
    cdef int k
    cdef char* lent = _head(c, text, n, &k)
    if lent == NULL: return -1
    if nghttp2_submit_headers(f.ng, NGHTTP2_FLAG_NONE, c.stream, NULL, _nv, k, NULL) != 0:
        _take_back(f, lent)
        return -1
    _touch(f)
    return 0


cdef int _ask(Session* s, Conn* u, char* text, size_t n, bint end, bint https) noexcept:
    cdef Framer* f = <Framer*>s
    cdef nghttp2_nv* nv = &_nv[0]
    cdef char* p = _lend(f, text, n) if not s.full and not f.broken else NULL
    cdef char* e = p + n
    cdef char* target
    cdef char* space
    cdef char* line
    cdef int k = -1
    cdef int32_t stream
    if p == NULL: return -1
    target = gl_find(p, e, 32)
    space = gl_find(target + 1, e, 32)
    line = gl_find(space, e, 10)
    if line < e:
        _pair(&nv[0], b":authority", 10, NULL, 0, UNCOPIED)
        _pair(&nv[1], b":method", 7, p, target - p, UNCOPIED)
        _pair(&nv[2], b":scheme", 7, b"https" if https else b"http", 5 if https else 4, UNCOPIED)
        _pair(&nv[3], b":path", 5, target + 1, space - target - 1, UNCOPIED)
        k = _pairs(&f.went[0], line + 1, e, nv + 4, nv, UNCOPIED)
    if k < 0:
        _take_back(f, p)
        return -1
    k += 4
    if nv[0].valuelen == 0:
        nv += 1
        k -= 1
    stream = nghttp2_submit_request(f.ng, NULL, nv, k, NULL if end else _provider(u), u)
    if stream < 0:
        _take_back(f, p)
        if stream != NGHTTP2_ERR_NOMEM: s.full = 1
        return -1
    _link(f, u, stream)
    if n > 5 and memcmp(text, b"HEAD ", 5) == 0: u.phase = BODILESS
    _touch(f)
    return 0


cdef void _more(Conn* c) noexcept:
    cdef Framer* f = <Framer*>c.session
    if c.stream == 0: return
    if c.deferred:
        c.deferred = 0
        nghttp2_session_resume_data(f.ng, c.stream)
    _touch(f)


cdef void _consume(Conn* c, size_t n) noexcept:
    cdef Framer* f = <Framer*>c.session
    if n > c.owed: n = c.owed
    c.owed -= n
    if c.stream == 0 or n == 0 or c.phase & ENDED: return
    nghttp2_session_consume_stream(f.ng, c.stream, n)
    if nghttp2_session_get_outbound_queue_size(f.ng): _touch(f)


cdef void _reset_stream(Conn* c, uint32_t error) noexcept:
    cdef Framer* f = <Framer*>c.session
    cdef int32_t stream = c.stream
    if stream == 0: return
    nghttp2_session_set_stream_user_data(f.ng, stream, NULL)
    _unlink(c)
    nghttp2_submit_rst_stream(f.ng, NGHTTP2_FLAG_NONE, stream, error)
    _touch(f)


cdef bint _was_sent(Conn* u) noexcept:
    return (u.phase & SENT) != 0


cdef void _go_away(Session* s, bint last) noexcept:
    cdef Framer* f = <Framer*>s
    if last: nghttp2_submit_goaway(f.ng, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(f.ng), H2_NO_ERROR, NULL, 0)
    else: nghttp2_submit_shutdown_notice(f.ng)
    _touch(f)


cdef void _ping(Session* s) noexcept:
    cdef Framer* f = <Framer*>s
    s.acked = 0
    nghttp2_submit_ping(f.ng, NGHTTP2_FLAG_NONE, NULL)
    _touch(f)


cdef H2Api _api
_api.version = H2_API
_api.open = _open
_api.free = _free
_api.receive = _receive
_api.produce = _produce
_api.finished = _finished
_api.bind = _bind
_api.refuse = _refuse
_api.respond = _respond
_api.inform = _inform
_api.ask = _ask
_api.more = _more
_api.consume = _consume
_api.reset = _reset_stream
_api.was_sent = _was_sent
_api.go_away = _go_away
_api.ping = _ping
api = PyCapsule_New(&_api, b"graylb._h2.api", NULL)


include "_h2_probe.pxi"
