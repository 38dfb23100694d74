# Of `_h2`: a face for tests and fuzzing.

cdef void _told_request(void* engine, Session* s, int32_t stream, const KnownHead* head, bint end) noexcept:
    if not read_as_scanned(head, True): (<Probe>engine)._note(("told otherwise", stream))
    (<Probe>engine)._request(stream, head.text[:head.n], end)

cdef void _told_response(void* engine, Conn* u, const KnownHead* head, bint end) noexcept:
    if not read_as_scanned(head, False): (<Probe>engine)._note(("told otherwise", u.stream))
    (<Probe>engine)._note(("response", u.stream, head.text[:head.n], bool(end)))

cdef void _told_data(void* engine, Conn* c, char* p, size_t n) noexcept:
    (<Probe>engine)._data(c, p[:n])

cdef void _told_end(void* engine, Conn* c, char* trailers, size_t n) noexcept:
    (<Probe>engine)._note(("end", c.stream, trailers[:n] if n else b""))

cdef void _told_drained(void* engine, Conn* c) noexcept:
    (<Probe>engine)._note(("drained", c.stream))

cdef void _told_closed(void* engine, Conn* c, uint32_t error) noexcept:
    (<Probe>engine)._closed(c, error)

cdef void _told_leaving(void* engine, Session* s) noexcept:
    (<Probe>engine)._note(("leaving",))

cdef void _told_rejected(void* engine, Session* s, int status) noexcept:
    (<Probe>engine)._note(("rejected", status))

cdef void _told_dirty(void* engine, Session* s) noexcept:
    (<Probe>engine).wakes += 1

cdef H2Hooks _recording
_recording.request = _told_request
_recording.response = _told_response
_recording.data = _told_data
_recording.end = _told_end
_recording.drained = _told_drained
_recording.closed = _told_closed
_recording.leaving = _told_leaving
_recording.rejected = _told_rejected
_recording.dirty = _told_dirty


cdef class Probe:
    """A session with hooks that record: `events` are tuples of the hook's name, the stream and what it was told. `told otherwise`
    comes before a head whose lines are not those of its text.

    A server binds each request, but when `refuses` is an error code: then it refuses it with that. `eager`: bodies are consumed as
    they come. `react` is called with each event, within the hook. `wakes` counts the calls of `dirty`.
    """

    cdef Session* s
    cdef H2Limits limits
    cdef dict conns            # stream -> address of its Conn
    cdef readonly list events
    cdef readonly int wakes
    cdef readonly bint broken
    cdef public object refuses
    cdef public bint eager
    cdef public object react

    def __init__(self, bint server, *, uint32_t streams=100, uint32_t window=65536, uint32_t connection_window=1 << 20,
                 uint32_t head_bytes=65536, uint32_t headers=100, uint32_t resets=500, uint32_t control=1000):
        if self.s != NULL: raise RuntimeError("a Probe begins once")
        self.limits = H2Limits(streams, window, connection_window, head_bytes, headers, resets, control)
        self.conns = {}
        self.events = []
        self.eager = True
        self.s = _open(server, &self.limits, &_recording, <void*>self, NULL)
        if self.s == NULL: raise MemoryError

    def __dealloc__(self):
        cdef Conn* c
        if self.s != NULL: _free(self.s)
        if self.conns is not None:
            for address in self.conns.values(): _drop(<Conn*><size_t>address)

    cdef void _note(self, tuple event) noexcept:
        self.events.append(event)
        if self.react is not None: self.react(event)

    cdef void _request(self, int32_t stream, bytes text, bint end) noexcept:
        if self.refuses is not None: _refuse(self.s, stream, self.refuses)
        else: _bind(self.s, stream, self._made(stream))
        self._note(("request", stream, text, bool(end)))

    cdef void _data(self, Conn* c, bytes data) noexcept:
        if self.eager: _consume(c, len(data))
        self._note(("data", c.stream, data))

    cdef void _closed(self, Conn* c, uint32_t error) noexcept:
        for stream, address in list(self.conns.items()):
            if <Conn*><size_t>address == c:
                del self.conns[stream]
                _drop(c)
                self._note(("closed", stream, error))
                return

    cdef Conn* _made(self, int32_t stream) noexcept:
        cdef Conn* c = <Conn*>calloc(1, sizeof(Conn))
        c.fd = -1
        self.conns[stream] = <size_t>c
        return c

    cdef Conn* _of(self, int32_t stream) except NULL:
        return <Conn*><size_t>self.conns[stream]

    def receive(self, bytes data):
        """0, or -1 when the connection is over."""
        cdef int r = _receive(self.s, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        self.broken = r < 0
        return r

    def produce(self, size_t room=65536, int most=1 << 30):
        """Everything to send, by buffers of so many bytes, in at most so many of them."""
        out = []
        self.s.dirty = 0           # as the engine says when a session has its turn
        buffer = bytearray(room)
        cdef char* o = buffer
        cdef ssize_t n
        while most > 0:
            n = _produce(self.s, o, room)
            if n < 0: raise MemoryError
            if n == 0: break
            out.append(bytes(buffer[:n]))
            most -= 1
        return b"".join(out)

    def respond(self, int32_t stream, bytes text, bint end=False):
        work = bytearray(text)
        return _respond(self._of(stream), work, len(work), end)

    def inform(self, int32_t stream, bytes text):
        work = bytearray(text)
        return _inform(self._of(stream), work, len(work))

    def ask(self, bytes text, bint end=False, bint https=False):
        """The request's stream, or -1."""
        cdef Conn* u = <Conn*>calloc(1, sizeof(Conn))
        work = bytearray(text)
        u.fd = -1
        if _ask(self.s, u, work, len(work), end, https) < 0:
            free(u)
            return -1
        self.conns[u.stream] = <size_t>u
        return u.stream

    def more(self, int32_t stream, bytes data=b"", bint eof=False, bytes trailers=b"", bint quiet=False):
        """Adds to what is pending; quiet: says nothing of it."""
        cdef Conn* c = self._of(stream)
        cdef size_t n = len(data)
        if c.out_off + c.out_len + n > c.out_cap:
            c.out_cap = c.out_off + c.out_len + n
            c.out = <char*>realloc(c.out, c.out_cap)
        if n: memcpy(c.out + c.out_off + c.out_len, PyBytes_AS_STRING(data), n)
        c.out_len += n
        if trailers:
            c.trailers = <char*>realloc(c.trailers, len(trailers) + TRAILERS_SLACK)
            memcpy(c.trailers, PyBytes_AS_STRING(trailers), len(trailers))
            memset(c.trailers + len(trailers), 0, TRAILERS_SLACK)
            c.trailers_len = <uint32_t>len(trailers)
        if eof: c.eof = 1
        if not quiet: _more(c)

    def pending(self, int32_t stream): return self._of(stream).out_len

    def owed(self, int32_t stream): return self._of(stream).owed

    def consume(self, int32_t stream, size_t n): _consume(self._of(stream), n)

    def reset(self, int32_t stream, uint32_t error):
        cdef Conn* c = self._of(stream)
        _reset_stream(c, error)
        _reset_stream(c, error)    # is harmless
        del self.conns[stream]
        _drop(c)

    def was_sent(self, int32_t stream): return bool(_was_sent(self._of(stream)))

    def go_away(self, bint last): _go_away(self.s, last)

    def ping(self): _ping(self.s)

    def use_up_ids(self):
        """As if all but one of a client's stream ids had been used."""
        nghttp2_session_set_next_stream_id((<Framer*>self.s).ng, 0x7fffffff)

    @property
    def state(self):
        names = []
        if self.s.full: names.append("full")
        if self.s.ending: names.append("ending")
        if self.s.acked: names.append("acked")
        if self.s.dirty: names.append("dirty")
        if _finished(self.s): names.append("finished")
        return names

    @property
    def n_streams(self): return self.s.n_streams

    @property
    def max_streams(self): return self.s.max_streams

    @property
    def queued(self):
        """Frames that wait to be sent."""
        return nghttp2_session_get_outbound_queue_size((<Framer*>self.s).ng)

    @property
    def lent(self):
        """Heads that libnghttp2 has yet to pack."""
        cdef Lent* each = (<Framer*>self.s).lent
        n = 0
        while each != NULL:
            n += 1
            each = each.next
        return n

    @property
    def held(self):
        """Bytes kept for a header block."""
        cdef Framer* f = <Framer*>self.s
        return f.text.cap + f.lines.cap + f.cookies.cap

    @property
    def deflater_bytes(self):
        """Of the table of heads that were sent."""
        return nghttp2_session_get_hd_deflate_dynamic_table_size((<Framer*>self.s).ng)

    @property
    def bound(self):
        """Streams in the session's list."""
        cdef Conn* c = self.s.streams
        out = []
        while c != NULL:
            out.append(c.stream)
            c = c.next
        return out


cdef void _drop(Conn* c) noexcept:
    free(c.out)
    free(c.trailers)
    free(c)


def turn_clock(uint64_t ms):
    """For tests of limits: time goes on by so much."""
    global gl_h2_skew
    gl_h2_skew += ms


def stop_clock(bint stopped):
    """For tests whose steps take what they take: time stands still, or goes on."""
    global gl_h2_stopped
    gl_h2_stopped = 0
    if stopped: gl_h2_stopped = gl_h2_ms() - gl_h2_skew


def blocks(steps):
    """For tests of `_pool`. Each step (number, size) resizes a block to that, takes it where there is none, or gives it back (0).

    (whether each had its bytes all along, bytes that are parked by multiples of 64 when all are given back)"""
    cdef dict held = {}
    cdef char* p
    cdef size_t size, old
    cdef int number
    cdef bint kept = True
    for number, size in steps:
        old, address = held.pop(number, (0, 0))
        p = <char*><size_t>address
        if size == 0:
            _give(p, NULL)
            continue
        p = <char*>(_resize(p, size, NULL) if old else _take_zeroed(size, 1, NULL))
        if any([each != (number & 127 if old else 0) for each in p[:min(old, size) if old else size]]): kept = False
        memset(p, number & 127, size)
        held[number] = (size, <size_t>p)
    for _, address in held.values(): _give(<void*><size_t>address, NULL)
    return kept, [_parked[number] for number in range(BINS + 1)]
