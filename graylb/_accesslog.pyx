"""Lines of the access log, without I/O: a request and what became of it in, bytes out.

A line is made in two parts, for the head of a request is gone when its answer is complete: `Format.head` writes what is known
then, `Format.line` the line. What neighbours in the format stays one piece between the two. JSON is UTF-8 whatever clients
send: bytes that are none become U+FFFD, by the rule of "maximal subparts" (Unicode 15, section 3.9). Texts escape as nginx
does: `\\x22` for quotes, backslashes and all that is not printable ASCII.

Between two system calls the processor has forgotten how code branches, so what matters is how little it does. Fields are of three
kinds: those of the head; those that follow from a few small numbers (a decision, a status), which many requests have in common;
and numbers and times of this one request. A line without the first and the last is a `Frame`, kept as it was written for the
request before that had those numbers: it is copied, 32 bytes at a time, and its gaps are filled.
"""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from graylb._fast cimport NONE32, REDIRECT, Rule, Service, Str, Table
from graylb._http1 cimport Head, Header, reset_head, same_name, scan_request
from graylb._live cimport Exchange, Peer

include "_accesslog_text.pxi"


# name -> field; those of graylb.model.log_fields, which a test compares, and those of spans
FIELDS = {
    "time": L_TIME, "time_local": L_TIME_LOCAL, "client_ip": L_CLIENT_IP, "client_port": L_CLIENT_PORT, "listener": L_LISTENER,
    "scheme": L_SCHEME, "method": L_METHOD, "host": L_HOST, "path": L_PATH, "query": L_QUERY, "target": L_TARGET,
    "protocol": L_PROTOCOL, "tls": L_TLS, "request_id": L_REQUEST_ID, "trace_id": L_TRACE_ID, "span_id": L_SPAN_ID,
    "worker": L_WORKER, "service": L_SERVICE, "route": L_ROUTE, "version": L_VERSION, "rule": L_RULE, "slot": L_SLOT,
    "draw": L_DRAW, "fallback": L_FALLBACK, "instance": L_INSTANCE, "revision": L_REVISION, "attempts": L_ATTEMPTS,
    "status": L_STATUS, "grpc_status": L_GRPC_STATUS, "error": L_ERROR, "error_source": L_ERROR_SOURCE, "aborted": L_ABORTED,
    "bytes_in": L_BYTES_IN, "bytes_out": L_BYTES_OUT, "duration": L_DURATION, "first_byte": L_FIRST_BYTE, "connect": L_CONNECT,
    "upstream_protocol": L_UPSTREAM_PROTOCOL, "": L_NONE,
}
OF_SPANS = {"parent_id": L_PARENT_ID, "tracestate": L_STATE}

cdef enum Kind:
    K_TEXT = 0             # a literal text alone
    K_HEAD
    K_FOLLOWS
    K_NUMBER

cdef enum Fill:
    F_END = 0              # nothing: the text before it was the last
    F_HEAD                 # a run of fields of the head
    F_NUMBER
    F_SECONDS
    F_TIME
    F_LOCAL

cdef enum:
    PLACES = 128           # a power of two
    NUMBERS = L_LAST_BARE + 1 - L_SLOT
    SLOT = 32              # bytes, for a number or a time
    FILLED = FRAME_TEXT + (GAPS + 2) * SLOT

cdef uint64_t _formats = 0
cdef Head NO_HEAD                                        # has nothing
memset(&NO_HEAD, 0, sizeof(Head))
# names of headers that fields are of
OF_HEADERS = {L_REQUEST_ID: "x-request-id", L_TRACE_ID: "traceparent", L_STATE: "tracestate"}
# fields of a head that need no escapes, and are followed by what may be read
SAFE = {L_CLIENT_IP, L_CLIENT_PORT, L_SCHEME, L_PROTOCOL, L_TLS, L_SPAN_ID, L_PARENT_ID, L_WORKER}
# fields that JSON has no quotes around
BARE = {L_CLIENT_PORT, L_TLS, L_WORKER, L_REVISION, L_ATTEMPTS, L_STATUS, L_GRPC_STATUS, *range(L_SLOT, L_LAST_BARE + 1), L_NONE}


cdef void dates(uint64_t second, char* date, char* local) noexcept:
    """The second, of Unix time, as RFC 3339 without its zone (19 bytes) and as nginx's time_local (26 bytes)."""
    gl_dates(second, date, local)


cdef void put_micros(char* date, uint32_t us) noexcept:
    """Those of the present second behind such a date, and the zone: 27 bytes in all, of 32."""
    date[19] = 46
    gl_six(date + 20, us)
    date[26] = 90


cdef Text header_of(Head* h, const char* name, uint32_t n) noexcept:
    """The first header of that name."""
    cdef int i
    for i in range(h.count):
        if h.headers[i].name_len == n and same_name(h.headers[i].name, name, n):
            return _text(h.headers[i].value, h.headers[i].value_len)
    return _text(NULL, 0)


cdef inline Text _text(const char* p, size_t n) noexcept:
    cdef Text made
    made.p = p
    made.n = <uint32_t>n
    return made


cdef inline Text _str(Table t, Str s) noexcept:
    return _text(t.base + s.off, s.n)


cdef inline char* _put(bint json, char* o, const char* limit, const Text* t) noexcept:
    """A text that may need escapes; what finds no room before the limit is cut off. MARGIN bytes may be written to."""
    if limit - o >= <ssize_t>t.n and (gl_short(o, t.p, t.n) or gl_copied(o, t.p, t.n)): return o + t.n
    return gl_json_text(o, limit, t.p, t.n) if json else gl_plain_text(o, limit, t.p, t.n)


cdef inline char* _piece(bint json, LogOp* op, const Text* t, char* o, const char* limit) noexcept:
    """A literal text and the value behind it. JSON leaves both out where there is no value, a text has a dash."""
    if (json and t.p == NULL) or limit - o < <ssize_t>(op.n + MARGIN): return o
    o = gl_literal(o, op.text, op.n)
    if t.p == NULL:
        o[0] = 45
        return o + 1
    o = gl_literal(o, t.p, t.n) if op.safe else _put(json, o, limit, t)
    o[0] = 34
    return o + op.quoted


cdef Text decided(int field, Exchange* x, Table t) noexcept:
    """The fields of a decision that are texts."""
    cdef const Service* s
    cdef const Str* versions
    if field == L_ROUTE:
        if x.d.route < 0 or (x.d.service < 0 and x.d.outcome != REDIRECT): return _text(NULL, 0)
        return _str(t, t.routes[x.d.route].name)
    if x.d.service < 0: return _text(NULL, 0)
    s = &t.services[x.d.service]
    if field == L_SERVICE: return _str(t, s.name)
    if field == L_RULE: return _str(t, (<const Rule*>(t.base + s.rules))[x.d.rule].name) if x.d.rule >= 0 else _text(NULL, 0)
    versions = <const Str*>(t.base + s.versions)
    if field == L_FALLBACK:
        if not x.d.fell_back: return _text(NULL, 0)
        return _str(t, versions[x.d.wanted]) if x.d.wanted != NONE32 else _text(b"subset", 6)
    if x.d.instance < 0: return _text(NULL, 0)
    if field == L_INSTANCE: return _str(t, t.instances[x.d.instance].address)
    if field == L_VERSION: return _str(t, versions[t.instances[x.d.instance].version])
    # L_UPSTREAM_PROTOCOL
    if not x.attempts: return _text(NULL, 0)
    return _text(b"HTTP/2", 6) if x.h2 else _text(b"HTTP/1.1", 8)


cdef bint _there(int field, Exchange* x) noexcept:
    """Whether a request has that number or time."""
    if field == L_SLOT: return x.d.service >= 0 and x.d.slot >= 0
    if field == L_DRAW: return x.d.service >= 0 and x.d.drew
    if field == L_FIRST_BYTE: return x.head_us != 0
    if field == L_CONNECT: return x.connect_us != 0
    return True


cdef Text _value(int field, Ended* e, Table t, char* room) noexcept:
    """A field that is not of the head. room: SLOT bytes."""
    cdef Exchange* x = e.x
    cdef uint64_t n
    if field >= L_SLOT and not _there(field, x): return _text(NULL, 0)
    if field == L_TIME: return _text(e.time, 27)
    if field == L_TIME_LOCAL: return _text(e.local, 26)
    if field == L_DURATION: return _text(room, gl_seconds(room, e.now_us - x.began_us) - room)
    if field == L_FIRST_BYTE: return _text(room, gl_seconds(room, x.head_us - x.began_us) - room)
    if field == L_CONNECT: return _text(room, gl_seconds(room, x.connect_us) - room)
    if field == L_SLOT: n = x.d.slot
    elif field == L_DRAW: n = x.d.draw
    elif field == L_BYTES_IN: n = x.bytes_in
    elif field == L_BYTES_OUT: n = x.bytes_out
    elif field == L_REVISION: n = t.revision
    elif field == L_ATTEMPTS:
        if not x.attempts: return _text(NULL, 0)
        n = x.attempts
    elif field == L_STATUS:
        if not e.status: return _text(NULL, 0)
        n = e.status
    elif field == L_GRPC_STATUS:
        if not x.grpc_status: return _text(NULL, 0)
        n = x.grpc_status - 1
    elif field == L_ERROR: return e.error
    elif field == L_ERROR_SOURCE: return e.source
    elif field == L_ABORTED:
        if not x.cut: return _text(NULL, 0)
        return _text(b"client", 6) if x.cut == 1 else _text(b"instance", 8)
    else: return decided(field, x, t)
    return _text(room, gl_decimal(room, n) - room)


cdef inline void _key(uint64_t* key, Ended* e) noexcept:
    """The numbers that a frame follows from, of one table and format."""
    cdef Exchange* x = e.x
    memcpy(key, &x.d.route, 8)                           # and the service
    key[1] = <uint64_t><uint32_t>x.d.rule << 32 | <uint32_t>x.d.instance
    key[2] = <uint64_t>x.d.wanted << 32 | <uint32_t>e.status << 16 | <uint32_t>x.attempts << 8 | x.grpc_status
    key[3] = <uint64_t>x.failed << 32 | <uint32_t>x.cut << 16 | x.d.fell_back << 6 | (x.d.outcome == REDIRECT) << 5 | x.h2 << 4 \
        | (x.d.slot >= 0) << 3 | x.d.drew << 2 | (x.head_us != 0) << 1 | (x.connect_us != 0)


@cython.final
cdef class Frames:
    """What lines of one table and format have in common, by what it follows from: as it was written last."""

    def __dealloc__(self):
        free(self.at)

    cdef Frame* place(self, const uint64_t* key) noexcept:
        """Where it is, if it is kept. NULL: out of memory."""
        cdef uint64_t h
        if self.at == NULL:
            self.at = <Frame*>calloc(PLACES, sizeof(Frame))
            if self.at == NULL: return NULL
        # splitmix64's multipliers (Steele, Lea, Flood 2014); the high bits are the mixed ones
        h = (key[0] ^ key[2]) * <uint64_t>0x9e3779b97f4a7c15 + (key[1] ^ key[3]) * <uint64_t>0xbf58476d1ce4e5b9
        return &self.at[(h ^ h >> 29) * <uint64_t>0x94d049bb133111eb >> 57]


@cython.final
cdef class Format:
    """How a line is made. parts: (literal text, name of a field or "") pairs, as graylb.model.log_fields has them. json: lines
    are JSON objects; the texts are `,"name":`, and what has no value is left out with its text. ValueError for an unknown field.
    """

    def __cinit__(self, bint json, parts):
        cdef int i, first = 0, last = -1, former = K_TEXT
        cdef bytes text
        global _formats
        _formats += 1
        self.serial = _formats
        self.json = json
        self.made_of = json, [tuple(part) for part in parts]
        self.kept = []
        self.n = self.first = len(parts)
        self.ops = <LogOp*>calloc(max(self.n, 1), sizeof(LogOp))
        self.wanted = <Wanted*>calloc(max(self.n, 1), sizeof(Wanted))
        self.values = <Text*>calloc(L_LAST_OF_HEAD + 1 + self.n, sizeof(Text))
        if self.ops == NULL or self.wanted == NULL or self.values == NULL: raise MemoryError
        for i, (literal, name) in enumerate(parts):
            self._name(&self.ops[i], name)
            self.ops[i].quoted = json and self.ops[i].field not in BARE
            text = literal.encode() + b'"' * self.ops[i].quoted
            self.ops[i].following = <uint16_t>self.n
            self.ops[i].n = <uint32_t>len(text)
            self.longest = max(self.longest, self.ops[i].n)
            self.ops[i].text = self._keep(text)
            self.has |= <uint64_t>1 << self.ops[i].field
            if self.ops[i].kind == K_HEAD:
                if former != K_HEAD:                     # the first of a run
                    if last < 0: self.first = i
                    else: self.ops[last].following = <uint16_t>i
                    first = last = i
                self.ops[first].run += 1
            former = self.ops[i].kind

    cdef const char* _keep(self, bytes text):
        """As long as the format is there, with PADDING behind it."""
        text += bytes(PADDING)
        self.kept.append(text)
        return PyBytes_AS_STRING(text)

    cdef _name(self, LogOp* op, str name):
        cdef Wanted* w = &self.wanted[self.n_wanted]
        cdef bytes header
        field = FIELDS.get(name, OF_SPANS.get(name))
        if field is None and name.startswith("http_"): field = L_HEADER
        if field is None: raise ValueError(f"unknown field {name!r}")
        op.field = op.at = field
        op.safe = field in SAFE
        op.kind = K_TEXT if field == L_NONE else K_HEAD if field <= L_LAST_OF_HEAD \
            else K_FOLLOWS if field <= L_LAST_OF_FOLLOWING else K_NUMBER
        op.fill = F_TIME if field == L_TIME else F_LOCAL if field == L_TIME_LOCAL \
            else F_SECONDS if field in (L_DURATION, L_FIRST_BYTE, L_CONNECT) else F_NUMBER
        if field != L_HEADER and field not in OF_HEADERS: return
        header = (OF_HEADERS.get(field) or name[5:].replace("_", "-").lower()).encode()
        w.field = field
        w.name = self._keep(header)
        w.n = <uint32_t>len(header)
        self.lengths |= <uint64_t>1 << min(w.n, 63)
        op.at = <uint16_t>(L_LAST_OF_HEAD + 1 + self.n_wanted)
        self.n_wanted += 1

    def __dealloc__(self):
        free(self.ops)
        free(self.wanted)
        free(self.values)

    cdef void _look_up(self, Asked* a) noexcept:
        """The values that are of a head's headers: the first one of a name is told, so the last one is looked at first."""
        cdef Text* found = self.values + L_LAST_OF_HEAD + 1
        cdef Header* at
        cdef Wanted* w
        cdef int i, k
        for k in range(self.n_wanted): found[k].p = NULL
        for i in range(a.head.count - 1, -1, -1):
            at = &a.head.headers[i]
            if not self.lengths >> (at.name_len if at.name_len < 63 else 63) & 1: continue
            for k in range(self.n_wanted):
                w = &self.wanted[k]
                if w.n != at.name_len or not gl_named(at.name, w.name, w.n): continue
                found[k] = _text(at.value, at.value_len)
                if w.field == L_TRACE_ID: found[k] = _text(at.value + 3 if at.value_len >= 55 else NULL, 32)
        if a.request_id.p == NULL and a.trace_id.p == NULL: return
        for k in range(self.n_wanted):                   # what was made here is what counts
            if self.wanted[k].field == L_REQUEST_ID and a.request_id.p != NULL: found[k] = a.request_id
            elif self.wanted[k].field == L_TRACE_ID and a.trace_id.p != NULL: found[k] = a.trace_id

    cdef void _ask(self, Asked* a, char* numbers) noexcept:
        """All values of a head. numbers: 2 * SLOT bytes."""
        cdef Text* v = self.values
        cdef Head* h = a.head
        cdef Peer* peer = a.peer
        v[L_CLIENT_IP] = _text(peer.text if peer.text_len else NULL, peer.text_len)
        v[L_LISTENER] = a.listener
        v[L_SCHEME] = _text(GL_SCHEME, 4 + a.secure)
        v[L_METHOD] = _text(h.method, h.method_len)
        v[L_HOST] = _text(h.host if h.host_len else NULL, h.host_len)
        v[L_PATH] = _text(h.path, h.path_len)
        v[L_QUERY] = _text(h.query, h.query_len)
        v[L_TARGET] = _text(h.target, h.target_len)
        v[L_PROTOCOL] = _text(GL_HTTP2, 6) if a.h2 else _text(GL_HTTP11 if h.minor else GL_HTTP10, 8)
        if h == &NO_HEAD: v[L_PROTOCOL].p = NULL
        v[L_TLS] = _text(GL_TRUE, 4) if a.secure else _text(GL_FALSE, 5)
        v[L_SPAN_ID] = a.span_id
        v[L_PARENT_ID] = a.parent_id
        if self.has >> L_CLIENT_PORT & 1:
            v[L_CLIENT_PORT] = _text(numbers if peer.port else NULL, gl_decimal(numbers, peer.port) - numbers)
        if self.has >> L_WORKER & 1: v[L_WORKER] = _text(numbers + SLOT, gl_decimal(numbers + SLOT, a.worker) - numbers - SLOT)
        if self.n_wanted: self._look_up(a)

    cdef char* head(self, Asked* a, char* o, char* limit) noexcept:
        """What is known when a head is, for `line`: the pieces in a row, each behind its length. What finds no room before the
        limit is cut off or left out, and then there are less than `longest` + MARGIN bytes up to it."""
        cdef char numbers[2 * SLOT]
        cdef int i = self.first
        cdef bint json = self.json
        cdef uint32_t size
        cdef char* start
        cdef LogOp* op
        cdef LogOp* end
        if a.head == NULL: a.head = &NO_HEAD
        if i < self.n: self._ask(a, numbers)
        while i < self.n:
            if limit - o < MARGIN: break
            start = o
            o += 4
            op = &self.ops[i]
            i = op.following
            end = op + op.run
            while op < end:
                o = _piece(json, op, &self.values[op.at], o, limit)
                op += 1
            size = <uint32_t>(o - start - 4)
            memcpy(start, &size, 4)
        return o

    cdef Frame* _frame(self, Ended* e, Table t, Frames frames) noexcept:
        """As it was for a request before this one, or else is now. NULL: it is not kept."""
        cdef uint64_t key[4]
        cdef Frame* f
        if frames is None: return NULL
        _key(key, e)
        f = frames.place(key)
        if f == NULL: return NULL
        if not f.known or f.key[0] ^ key[0] | f.key[1] ^ key[1] | f.key[2] ^ key[2] | f.key[3] ^ key[3]:
            memcpy(f.key, key, sizeof(key))
            f.known = 1
            f.whole = self._framed(f, e, t)
        return f if f.whole else NULL

    cdef bint _framed(self, Frame* f, Ended* e, Table t) noexcept:
        """Writes it. False: it finds no room."""
        cdef Gap* gap = f.gaps
        cdef char* start = f.text                        # of the text before the gap
        cdef char* o = f.text
        cdef char* limit = f.text + sizeof(f.text) - MARGIN
        cdef LogOp* op = self.ops
        cdef LogOp* end = op + self.n
        while op < end:
            if gap == f.gaps + GAPS - 1 or limit - o < <ssize_t>(self.longest + MARGIN): return False
            if op.kind == K_HEAD or (op.kind == K_NUMBER and _there(op.field, e.x)):
                if op.kind == K_NUMBER: o = gl_literal(o, op.text, op.n)
                gap.n = <uint16_t>(o - start)
                gap.fill = F_HEAD if op.kind == K_HEAD else op.fill
                gap.at = <uint8_t>(op.field - L_SLOT)
                gap += 1
                start = o
                o[0] = 34
                o += op.quoted if op.kind == K_NUMBER else 0
            else: o = self._piece_of(op, e, t, o, limit)
            op += op.run or 1
        gap.n = <uint16_t>(o - start)
        gap.fill = F_END
        return limit - o >= <ssize_t>(self.longest + MARGIN)

    cdef char* _piece_of(self, LogOp* op, Ended* e, Table t, char* o, char* limit) noexcept:
        """A text alone, or with a field that is not of the head."""
        cdef char room[SLOT]
        cdef Text value
        if op.kind == K_TEXT: return gl_literal(o, op.text, op.n) if limit - o >= <ssize_t>(op.n + MARGIN) else o
        value = _value(op.field, e, t, room)
        return _piece(self.json, op, &value, o, limit)

    cdef char* _pieces(self, Ended* e, Table t, const char* heads, const char* heads_end, char* o, char* limit) noexcept:
        """A line without a frame."""
        cdef LogOp* op = self.ops
        cdef LogOp* end = op + self.n
        cdef uint32_t size
        while op < end:
            if op.kind != K_HEAD: o = self._piece_of(op, e, t, o, limit)
            elif heads_end - heads >= 4:                 # else `head` had no room for it
                memcpy(&size, heads, 4)
                heads += 4
                if limit - o >= <ssize_t>size:
                    memcpy(o, heads, size)
                    o += size
                heads += size
            op += op.run or 1
        return o

    cdef char* _filled(self, Frame* f, Ended* e, const char* heads, char* o) noexcept:
        """A line with one; its gaps are filled. There must be room for FILLED bytes beside the head's."""
        cdef Exchange* x = e.x
        cdef uint64_t numbers[NUMBERS]
        cdef Gap* gap = f.gaps
        cdef const char* text = f.text
        cdef uint32_t size
        numbers[0] = x.d.slot
        numbers[L_DRAW - L_SLOT] = x.d.draw
        numbers[L_BYTES_IN - L_SLOT] = x.bytes_in
        numbers[L_BYTES_OUT - L_SLOT] = x.bytes_out
        numbers[L_DURATION - L_SLOT] = e.now_us - x.began_us
        numbers[L_FIRST_BYTE - L_SLOT] = x.head_us - x.began_us
        numbers[L_CONNECT - L_SLOT] = x.connect_us
        while True:
            o = gl_copy(o, text, gap.n)
            text += gap.n
            if gap.fill == F_SECONDS: o = gl_seconds(o, numbers[gap.at])
            elif gap.fill == F_NUMBER: o = gl_decimal(o, numbers[gap.at])
            elif gap.fill == F_HEAD:
                memcpy(&size, heads, 4)
                memcpy(o, heads + 4, size)
                heads += 4 + size
                o += size
            elif gap.fill == F_TIME:
                memcpy(o, e.time, SLOT)
                o += 27
            elif gap.fill == F_LOCAL:
                memcpy(o, e.local, SLOT)
                o += 26
            else: return o
            gap += 1

    cdef char* line(self, Ended* e, Table t, Frames frames, const char* heads, const char* heads_end, char* o,
                    char* limit) noexcept:
        """The whole line with its end; heads: what `head` wrote; frames: of this table and for this format, or None. There must
        be room for MARGIN bytes behind the limit."""
        cdef char* start = o
        cdef Frame* f = self._frame(e, t, frames)
        # a head that was cut off is so long that there is no such room
        if f != NULL and limit - o >= heads_end - heads + FILLED: o = self._filled(f, e, heads, o)
        else: o = self._pieces(e, t, heads, heads_end, o, limit)
        if self.json:
            if o == start: o += 1
            start[0] = 123                               # over the comma of the first field
            o[0] = 125
            o += 1
        o[0] = 10
        return o + 1


# ---- faces for tests -------------------------------------------------------------------------------------------------

def escaped(bytes value, bint json, size_t room=LINE_MAX):
    """A text as a line has it; room: bytes that it may take, with the quotes and MARGIN."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(room + MARGIN))
    cdef char* o = PyBytes_AS_STRING(out)
    cdef Text t = _text(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    cdef char* e = _put(json, o + json, o + room, &t)
    if json: o[0] = e[0] = 34
    return out[:e + json - o]


def number(uint64_t n):
    """As a line has it."""
    cdef char o[SLOT]
    return o[:gl_decimal(o, n) - o]


def seconds(uint64_t us):
    """As a line has such a time."""
    cdef char o[SLOT]
    return o[:gl_seconds(o, us) - o]


def line_of(Format f, bytes head, str address="", uint64_t wall_us=0, uint32_t port=0):
    """The line, without its end, of a request of which only the head is known. ValueError: it is no head."""
    cdef dict nothing = dict.fromkeys(("route", "service", "rule", "slot", "instance"), -1)
    return lines_of(f, None, head, [nothing], address, wall_us, port)[0][0]


def lines_of(Format f, Table t, bytes head, list requests, str address="", uint64_t wall_us=0, uint32_t port=0):
    """The lines, without their ends, of requests with that head: each as it is, as it is without a frame, and whether it has one.
    What became of one is a dict of numbers, named as in Exchange and Decision, and `now_us`; 0 where it says nothing. An error has its code as its
    reason. ValueError: it is no head."""
    cdef Head* h = <Head*>malloc(sizeof(Head))
    cdef bytes heads = PyBytes_FromStringAndSize(NULL, LINE_MAX + 2 * MARGIN)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, LINE_MAX + 2 * MARGIN)
    cdef Frames frames = Frames()
    cdef char time[SLOT]
    cdef char local[SLOT]
    cdef char* o = PyBytes_AS_STRING(out)
    cdef char* p = PyBytes_AS_STRING(heads)
    cdef char* end
    cdef Asked a
    cdef Ended e
    cdef Exchange x
    cdef Peer peer
    cdef bytes text = address.encode(), error
    try:
        memset(&a, 0, sizeof(Asked))
        memset(&peer, 0, sizeof(Peer))
        memcpy(peer.text, PyBytes_AS_STRING(text), len(text))
        peer.text_len = len(text)
        peer.port = port
        reset_head(h, 100)
        if scan_request(h, PyBytes_AS_STRING(head), PyBytes_AS_STRING(head) + len(head), 100) <= 0: raise ValueError(h.error)
        a.head = h
        a.peer = &peer
        end = f.head(&a, p, p + LINE_MAX)
        dates(wall_us // 1000000, time, local)
        put_micros(time, <uint32_t>(wall_us % 1000000))
        found = []
        for said in requests:
            memset(&e, 0, sizeof(Ended))
            e.x = &x
            e.time = time
            e.local = local
            _became(&x, &e, said)
            error = b"%d" % x.failed
            if x.failed: e.error = e.source = _text(PyBytes_AS_STRING(error), len(error))
            found.append((out[:f.line(&e, t, frames, p, end, o, o + LINE_MAX) - o - 1],
                          out[:f.line(&e, t, None, p, end, o, o + LINE_MAX) - o - 1], f._frame(&e, t, frames) != NULL))
        return found
    finally:
        free(h)


cdef _became(Exchange* x, Ended* e, dict said):
    """What became of a request, for `lines_of`."""
    def of(str name): return said.get(name, 0)
    memset(x, 0, sizeof(Exchange))
    x.d.route, x.d.service, x.d.rule, x.d.slot, x.d.instance = map(of, ("route", "service", "rule", "slot", "instance"))
    x.d.wanted, x.d.draw, x.d.drew, x.d.fell_back, x.d.outcome = map(of, ("wanted", "draw", "drew", "fell_back", "outcome"))
    x.attempts, x.h2, x.grpc_status, x.failed, x.cut = map(of, ("attempts", "h2", "grpc_status", "failed", "cut"))
    x.bytes_in, x.bytes_out, x.began_us = map(of, ("bytes_in", "bytes_out", "began_us"))
    x.head_us, x.connect_us, e.now_us, e.status = map(of, ("head_us", "connect_us", "now_us", "status"))
