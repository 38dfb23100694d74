"""What a worker tells of its requests: lines of the access log, and of live views, on their way to the control process.

Lines of the access log are made in memory that the control process reads (`_ring`), all else goes through a pipe from a
bounded buffer: whole lines or none. What finds no room is dropped and counted; nothing waits. `asked` keeps what is known of a
request when its head is, for the head is gone at the end; `ended` makes the lines, and is the only place that does. For spans the
head is kept as it is and read once more at the end: of a hundred requests one has to have any, but which one is known only then,
for errors always have.
"""

cimport cython
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from graylb._accesslog cimport L_CLIENT_PORT, LINE_MAX, MARGIN, Asked, Ended, Format, Frames, Text, dates, put_micros
from graylb._fast cimport Rule, Service, Str, Table
from graylb._http1 cimport DROP, MAX_HEADERS, Head, Header, put_line, same_name, scan_request
from graylb._live cimport T_CHILD, T_ON, T_SAMPLED, Conn, Exchange, Peer, TableState
from graylb._ring cimport Ring
from graylb._spans cimport MAX_TRIES, Kept, Try, client_span, put_id, server_span
from graylb._trace cimport Context_, gl_get_hex, gl_put_hex, read_parent
from graylb._sockets cimport gl_now_us

import os

from graylb.errors import BY_REASON, KINDS

cdef int E_UPSTREAM_RESET = BY_REASON["upstream-reset"].code

cdef extern from * nogil:
    """
    #include <poll.h>
    #include <time.h>
    #include <unistd.h>
    static uint64_t gl_wall_us(void) {
      struct timespec t; clock_gettime(CLOCK_REALTIME, &t);
      return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000; }
    static int gl_wait_out(int fd, int ms) {
      struct pollfd p = {fd, POLLOUT, 0}; return poll(&p, 1, ms) > 0 && (p.revents & POLLOUT); }
    """
    uint64_t gl_wall_us()
    int gl_wait_out(int, int)
    ssize_t write(int, const void*, size_t)

cdef enum:
    FLUSH = 65536          # so many bytes are worth a system call
    SPANS_A_TICK = 400     # likewise
    VIEWS_A_TICK = 100     # lines, of each worker, in 100 ms
    MAX_VIEWS = 16
    LAST_MS = 500          # for the rest, when a worker ends

# every field, for whoever looks on: the names of graylb.model.log_fields
FULL = ("time", "client_ip", "client_port", "listener", "scheme", "method", "host", "path", "query", "protocol",
        "http_user_agent", "http_referer", "request_id", "trace_id", "service", "route", "version", "rule", "slot", "draw",
        "fallback", "instance", "revision", "attempts", "status", "error", "error_source", "aborted", "bytes_in", "bytes_out",
        "duration", "first_byte", "connect", "upstream_protocol", "worker",
        "http_content_type", "span_id", "parent_id", "tracestate")


cdef class Settings:
    """Of a table: what is told of its requests. meta: the table's. former: whose format is kept where it is the same."""

    def __cinit__(self, dict meta, Settings former=None):
        cdef int i
        told = meta["access_log"]
        tracing = meta["tracing"]
        self.request_ids = ("pass", "generate", "replace").index(meta["forwarding"]["request_id"])
        self.any_ = told is not None or tracing is not None or self.request_ids > 0
        if tracing is not None:
            self.tracing = True
            self.ratio = <uint64_t>min(round(tracing["sample"] / 100 * 2.0**64), 2**64 - 1)
            self.parent_based = tracing["parent_based"]
            self.always_errors = tracing["always_errors"]
        if told is None: return
        parts = [tuple(part) for part in told["parts"]]
        if former is not None and former.format is not None and former.format.made_of == (told["json"], parts):
            self.format = former.format
        else: self.format = Format(told["json"], parts)
        self.serial = self.format.serial
        self.ports = self.format.has >> L_CLIENT_PORT & 1
        self.frames = Frames()
        self.buffer = told["buffer"]
        for i in range(5): self.sample[i + 1] = <uint32_t>min(told["sample"][i] / 100 * 4294967296.0, 4294967295.0)


cdef class Outlet:
    """A pipe and what is to go into it. size: bytes, beside one more line."""

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        free(self.buf)

    def open(self, int fd):
        """Takes the descriptor of a pipe's end, non-blocking, which stays the caller's. -1: what is told goes nowhere."""
        if fd >= 0: os.set_blocking(fd, False)
        self.fd = fd

    def resize(self, size_t size):
        """For so many bytes. Raises MemoryError."""
        cdef char* q
        if size == self.size: return
        self.flush()
        if self.off: memmove(self.buf, self.buf + self.off, self.len)
        self.off = 0
        if self.len > size: return                   # smaller when there is less to tell: at the next table
        q = <char*>realloc(self.buf, size + LINE_MAX + 2 * MARGIN)
        if q == NULL: raise MemoryError
        self.buf = q
        self.size = size

    cdef char* room(self) noexcept:
        """Where LINE_MAX bytes and MARGIN may be written; NULL: this line is dropped."""
        if self.off and self.off + self.len >= self.size:
            memmove(self.buf, self.buf + self.off, self.len)
            self.off = 0
        if self.fd < 0 or self.len >= self.size:
            self.dropped += 1
            return NULL
        return self.buf + self.off + self.len

    cdef void wrote(self, char* e) noexcept:
        """A line was written to where there was room, up to e."""
        self.len = e - self.buf - self.off
        self.lines += 1
        if self.len >= FLUSH and not self.full: self.flush()

    cdef void flush(self) noexcept:
        """What the pipe takes now."""
        cdef ssize_t n
        while self.len and self.fd >= 0:
            n = write(self.fd, self.buf + self.off, self.len)
            if n < 0 and errno == EINTR: continue
            self.full = n < 0 or <size_t>n < self.len
            if n < 0 and errno != EAGAIN:            # nobody reads any more
                self.fd = -1
                self.len = 0
            if n <= 0: return
            self.off += n
            self.len -= n
            if self.len == 0: self.off = 0

    def close(self):
        """The rest, for which the reader has half a second."""
        self.flush()
        while self.len and self.fd >= 0 and gl_wait_out(self.fd, LAST_MS): self.flush()
        self.fd = -1


@cython.final
cdef class Logs:
    """Of one worker. worker: its number."""

    def __cinit__(self, uint32_t worker=0):
        self.worker = worker
        self.access = Ring(LINE_MAX + 2 * MARGIN)
        self.events = Outlet()
        self.full = Format(True, [(f',"{name}":', name) for name in FULL])
        self.kept = []
        self.scratch = <char*>malloc(2 * LINE_MAX + 6 * MARGIN)
        if self.scratch == NULL: raise MemoryError
        self.random_state = int.from_bytes(os.urandom(8), "little")
        self.texts = []
        for kind in KINDS:
            reason, source = kind.reason.encode(), kind.source.encode()
            self.texts += (reason, source)
            self.reasons[<int>kind.code] = PyBytes_AS_STRING(reason)
            self.reasons_n[<int>kind.code] = <uint32_t>len(reason)
            self.sources[<int>kind.code] = PyBytes_AS_STRING(source)
            self.sources_n[<int>kind.code] = <uint32_t>len(source)
            self.statuses[<int>kind.code] = kind.status
        self.spans_left = SPANS_A_TICK
        self.offset = gl_wall_us() - gl_now_us()

    def __dealloc__(self):
        free(self.scratch)

    def open(self, int access, int bell, int events):
        """A ring and its bell, as `Ring.open` takes them, and a pipe's end as `Outlet.open` does."""
        self.access.open(access, bell)
        self.events.open(events)

    def close(self):
        self.access.flush()
        self.events.close()

    def watch(self, views):
        """Who looks on, as dicts of `service`, `version`, `rule` (None: any) and `status` (low, high). None: nobody."""
        cdef bytes text
        self.n_views = 0
        self.kept = []
        for told in views[:MAX_VIEWS]:
            v = &self.views[self.n_views]
            memset(v, 0, sizeof(View))
            v.low, v.high = told["status"]
            for name in ("service", "version", "rule"):
                if told[name] is None: continue
                text = told[name].encode()
                self.kept.append(text)
                if name == "service": v.service, v.service_n = PyBytes_AS_STRING(text), <uint32_t>len(text)
                elif name == "version": v.version, v.version_n = PyBytes_AS_STRING(text), <uint32_t>len(text)
                else: v.rule, v.rule_n = PyBytes_AS_STRING(text), <uint32_t>len(text)
            self.n_views += 1
        if self.n_views: self.events.resize(EVENTS_BUFFER)
        self.left = VIEWS_A_TICK

    def stats(self):
        return {"written": self.access.lines, "dropped": self.access.dropped, "unseen": self.unseen, "spans": self.spans,
                "spans_dropped": self.spans_dropped}

    cdef uint64_t random(self) noexcept:
        """splitmix64 (Steele, Lea, Flood 2014), seeded by the kernel."""
        cdef uint64_t z
        self.random_state += <uint64_t>0x9e3779b97f4a7c15
        z = self.random_state
        z = (z ^ (z >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
        z = (z ^ (z >> 27)) * <uint64_t>0x94d049bb133111eb
        return z ^ (z >> 31)

    cdef void ticked(self) noexcept:
        """Ten times a second: what waits is sent on, and the clock is set."""
        self.access.ticked()
        self.events.flush()
        self.left = VIEWS_A_TICK
        self.spans_left = SPANS_A_TICK
        self.offset = gl_wall_us() - gl_now_us()

    cdef void asked(self, Exchange* x, Settings s, Head* h, Peer* peer, const char* listener, uint32_t listener_n,
                    bint secure, bint h2) noexcept:
        """Keeps what will be told of a request's head, if anything will be. h: NULL where it is none."""
        if not s.any_ and not self.n_views: return
        if h != NULL and s.tracing: self._trace(x, s, h)
        if h != NULL and s.request_ids: self._name_request(x, s, h)
        if s.format is not None: x.captured |= C_LOG
        if self.n_views: x.captured |= C_FULL
        if x.captured and not self._as_before(x, s, h, peer, listener, secure, h2):
            self._keep_told(x, s, h, peer, _text(listener, listener_n), secure, h2)
        if x.traced: self._keep(x, h, listener, listener_n, secure, h2)

    cdef bint _as_before(self, Exchange* x, Settings s, Head* h, Peer* peer, const char* listener, bint secure,
                                bint h2) noexcept:
        """What is told of its head is there already: it is, byte for byte, the one before it in this place, as those of clients
        are that ask for the same again and again."""
        cdef Told* of = <Told*>x.log
        if x.log_cap == 0 or of.format != s.serial or x.captured != C_LOG or h == NULL or x.traced or x.request_id_n: return False
        if of.head_n != <uint32_t>(h.end - h.start) or of.listener != listener or of.secure != secure or of.h2 != h2: return False
        if memcmp(x.log + of.end, h.start, of.head_n) != 0: return False
        # most are of version 4
        if of.address_n != peer.text_len or memcmp(of.address, peer.text, 16) != 0: return False
        if of.address_n > 16 and memcmp(of.address, peer.text, of.address_n) != 0: return False
        if of.port != peer.port and s.ports: return False
        x.full_at = of.end
        x.log_len = of.end + of.head_n
        return True

    cdef void _keep_told(self, Exchange* x, Settings s, Head* h, Peer* peer, Text listener, bint secure, bint h2) noexcept:
        """What both formats tell of a head; and the head itself, for the next one that is the same."""
        cdef uint32_t n = <uint32_t>(h.end - h.start) if h != NULL else 0
        cdef Asked a
        cdef Told* of
        a.head = h
        a.peer = peer
        a.listener = listener
        a.secure = secure
        a.h2 = h2
        a.worker = self.worker
        a.request_id = _text(x.request_id if x.request_id_n else NULL, x.request_id_n)
        a.trace_id = _text(x.trace_id if x.traced else NULL, 32)
        a.span_id = _text(x.span_id if x.traced else NULL, 16)
        a.parent_id = _text(x.parent_id if x.traced & T_CHILD else NULL, 16)
        if not (x.log_cap and self._told(x, s, &a, x.log, x.log + x.log_cap - 2 * MARGIN)):
            # its first one, or one of which there is much to tell
            self._told(x, s, &a, self.scratch, self.scratch + 2 * LINE_MAX + 3 * MARGIN)
            if not self._log_room(x, x.log_len + 2 * MARGIN + 768):
                x.captured = 0
                return
            memcpy(x.log + sizeof(Told), self.scratch + sizeof(Told), x.log_len - sizeof(Told))
        of = <Told*>x.log
        of.format = 0
        if x.captured != C_LOG or h == NULL or x.traced or x.request_id_n or x.log_len + n > x.log_cap: return
        of.format = s.serial
        of.address_n = peer.text_len
        memcpy(of.address, peer.text, sizeof(of.address))
        of.port = peer.port
        of.listener = listener.p
        of.secure = secure
        of.h2 = h2
        of.end = x.log_len
        of.head_n = n
        memcpy(x.log + x.log_len, h.start, n)
        x.log_len += n

    cdef bint _told(self, Exchange* x, Settings s, Asked* a, char* at, char* end) noexcept:
        """Writes what both formats tell of a head. False: perhaps there was no room for all of it."""
        cdef char* o = at + sizeof(Told)
        cdef char* limit = at
        cdef uint32_t longest = 0
        if x.captured & C_LOG:
            limit = min(o + LINE_MAX, end)
            longest = s.format.longest
            o = s.format.head(a, o, limit)
            if limit - o < <ssize_t>(longest + MARGIN) and limit == end: return False
        x.full_at = <uint32_t>(o - at)
        if x.captured & C_FULL:
            limit = min(o + LINE_MAX, end)
            longest = self.full.longest
            o = self.full.head(a, o, limit)
            if limit - o < <ssize_t>(longest + MARGIN) and limit == end: return False
        x.log_len = <uint32_t>(o - at)
        return True

    cdef bint _log_room(self, Exchange* x, size_t n) noexcept:
        """For so many bytes in all. False: out of memory."""
        cdef char* q
        if n <= x.log_cap: return True
        q = <char*>realloc(x.log, n + 256)
        if q == NULL: return False
        x.log = q
        x.log_cap = <uint32_t>(n + 256)
        return True

    cdef void _keep(self, Exchange* x, Head* h, const char* listener, uint32_t listener_n, bint secure, bint h2) noexcept:
        """For a request's spans, if it may have any, behind what is kept for lines."""
        cdef Settings s = <Settings>(<TableState>x.state).log
        cdef size_t at = ((x.log_len or sizeof(Told)) + 7) & ~<size_t>7
        cdef size_t n = h.end - h.start
        cdef Kept* k
        if not s.always_errors and not x.traced & T_SAMPLED: return
        if not self._log_room(x, at + sizeof(Kept) + n): return
        if not x.captured: (<Told*>x.log).format = 0
        x.captured |= C_SPAN
        x.span_at = <uint32_t>at
        k = <Kept*>(x.log + at)
        k.wall_us = x.began_us + self.offset
        k.listener = listener
        k.listener_n = listener_n
        k.secure = secure
        k.h2 = h2
        k.n = 0
        k.head_n = <uint32_t>n
        memcpy(k + 1, h.start, n)

    cdef void tried(self, Exchange* x, Conn* u, int32_t instance) noexcept:
        """An attempt begins on that connection to an instance, of a request that is kept for spans."""
        cdef Kept* k = <Kept*>(x.log + x.span_at)
        cdef Try* t
        if k.n >= MAX_TRIES: return
        t = &k.tries[k.n]
        k.n += 1
        memset(t, 0, sizeof(Try))
        t.conn = u
        t.began_us = gl_now_us()
        t.instance = instance
        t.number = x.attempts
        t.h2 = x.h2

    cdef void missed(self, Exchange* x, int code) noexcept:
        """An attempt had no connection."""
        self.tried(x, NULL, x.d.instance)
        self.try_ended(x, NULL, code, 0, -1)

    cdef void try_ended(self, Exchange* x, Conn* u, int code, int status, int grpc) noexcept:
        """The attempt on that connection is over, if it was not already: by an error (-1: none), an answer's status (0: none), a
        status of gRPC (-1: none)."""
        cdef Kept* k = <Kept*>(x.log + x.span_at)
        cdef Try* t
        cdef int i
        for i in range(k.n):
            t = &k.tries[i]
            if t.ended_us or t.conn != u: continue
            t.conn = NULL
            t.ended_us = gl_now_us()
            t.connect_us = x.connect_us
            t.failed = <uint8_t>(code + 1)
            t.status = <uint16_t>status
            t.grpc = <uint8_t>(grpc + 1)

    cdef void ended(self, Exchange* x, uint64_t now_us) noexcept:
        """An exchange that was kept something of is over: its lines."""
        cdef TableState state = <TableState>x.state
        cdef Settings s = <Settings>state.log
        cdef Ended e
        cdef char* o
        cdef uint32_t one_of
        e.x = x
        e.now_us = now_us
        e.error.p = e.source.p = NULL
        e.status = x.status
        if x.captured & (C_LOG | C_FULL): self._date(&e)
        if x.failed:
            e.error.p = self.reasons[x.failed - 1]
            e.error.n = self.reasons_n[x.failed - 1]
            e.source.p = self.sources[x.failed - 1]
            e.source.n = self.sources_n[x.failed - 1]
            if not e.status: e.status = 200 if x.grpc else self.statuses[x.failed - 1]
        elif not e.status: e.status = 499
        if x.captured & C_LOG:
            one_of = s.sample[e.status // 100 if e.status < 600 else 5]
            if one_of == <uint32_t>0xffffffff or <uint32_t>self.random() < one_of:
                o = self.access.place()
                if o != NULL:
                    self.access.wrote(s.format.line(&e, state.table, s.frames, x.log + sizeof(Told), x.log + x.full_at, o,
                                                    o + LINE_MAX))
        if x.captured & C_FULL and self._seen(x, e.status):
            if not self.left: self.unseen += 1
            else:
                self.left -= 1
                o = self.events.room()
                if o == NULL: self.unseen += 1
                else: self.events.wrote(self.full.line(&e, state.table, None, x.log + x.full_at, x.log + x.log_len, o, o + LINE_MAX))
        if x.captured & C_SPAN and self._tell_span(x, s, e.status): self._tell_spans(x, &e)
        x.captured = 0
        if x.log_cap > 4096:
            free(x.log)
            x.log = NULL
            x.log_cap = 0

    cdef void _date(self, Ended* e) noexcept:
        """When it began."""
        cdef uint64_t wall_us = e.x.began_us + self.offset
        if wall_us - self.second_us >= 1000000:
            self.second_us = wall_us - wall_us % 1000000
            dates(wall_us // 1000000, self.time, self.local)
        put_micros(self.time, <uint32_t>(wall_us - self.second_us))
        e.time = self.time
        e.local = self.local

    cdef void _tell_spans(self, Exchange* x, Ended* e) noexcept:
        """The attempts' spans, and the request's."""
        cdef Kept* k = <Kept*>(x.log + x.span_at)
        cdef const char* head = <const char*>(k + 1)
        cdef Asked a
        cdef Try* t
        cdef Text error
        cdef int i
        if scan_request(&self.head, head, head + k.head_n, MAX_HEADERS) <= 0: return     # it was a head, and is what it was
        memset(&a, 0, sizeof(Asked))
        a.head = &self.head
        a.peer = &x.client.peer
        a.listener.p = k.listener
        a.listener.n = k.listener_n
        a.secure = k.secure
        a.h2 = k.h2
        a.worker = self.worker
        a.wall_us = k.wall_us
        if x.request_id_n:
            a.request_id.p = x.request_id
            a.request_id.n = x.request_id_n
        for i in range(k.n):
            t = &k.tries[i]
            error.p = NULL
            error.n = 0
            if t.ended_us == 0:                      # what became of it became of the request
                t.ended_us = e.now_us
                t.connect_us = x.connect_us
                t.failed = <uint8_t>(E_UPSTREAM_RESET + 1) if x.cut == 2 else x.failed
                t.status = 0 if x.failed else x.status
            if t.failed:
                error.p = self.reasons[t.failed - 1]
                error.n = self.reasons_n[t.failed - 1]
            o = self._span_room()
            if o != NULL: self._span_done(o, client_span(o + 5, x, &a, k, t, error, x.cut if i == k.n - 1 else 0))
        o = self._span_room()
        if o != NULL: self._span_done(o, server_span(o + 5, x, &a, e))

    cdef char* _span_room(self) noexcept:
        """For a span and five bytes before it; NULL: it is dropped."""
        cdef char* o = self.events.room() if self.spans_left else NULL
        if o == NULL: self.spans_dropped += 1
        return o

    cdef void _span_done(self, char* o, char* e) noexcept:
        """It was written behind o, up to e. What is no line for views is an S, its length in four bytes, and itself."""
        cdef uint32_t size = <uint32_t>(e - o - 5)
        o[0] = 83
        memcpy(o + 1, &size, 4)
        self.spans_left -= 1
        self.spans += 1
        self.events.wrote(e)

    cdef bint _tell_span(self, Exchange* x, Settings s, uint16_t status) noexcept:
        """Whether its span is exported: it is sampled, or an error."""
        if x.traced & T_SAMPLED: return True
        return s.always_errors and (status >= 500 or x.cut == 2 or (x.failed and x.grpc))

    cdef void _trace(self, Exchange* x, Settings s, Head* h) noexcept:
        """Begins the span of a request, in the client's trace or in a new one."""
        cdef Context_ parent
        cdef Header* each
        cdef Header* at = NULL
        cdef bint valid, stateful = False
        cdef uint64_t low
        cdef int i, times = 0
        for i in range(h.count):
            each = &h.headers[i]
            if each.name_len == 11 and same_name(each.name, b"traceparent", 11):
                times += 1
                at = each
                at.use = DROP
            elif each.name_len == 10 and same_name(each.name, b"tracestate", 10): stateful = True
        valid = times == 1 and read_parent(at.value, at.value_len, &parent)
        x.traced = T_ON
        gl_put_hex(x.span_id, self.random() | 1)
        if valid:
            x.traced |= T_CHILD
            memcpy(x.trace_id, parent.trace_id, 32)
            memcpy(x.parent_id, parent.span_id, 16)
            low = gl_get_hex(x.trace_id + 16)
        else:
            low = self.random()
            gl_put_hex(x.trace_id, self.random() | 1)
            gl_put_hex(x.trace_id + 16, low)
            # the state of a trace that is not gone on with (section 3.3)
            for i in range(h.count if stateful else 0):
                if h.headers[i].name_len == 10 and same_name(h.headers[i].name, b"tracestate", 10): h.headers[i].use = DROP
        if valid and s.parent_based:
            if parent.sampled: x.traced |= T_SAMPLED
        # the last 64 bits, by which OpenTelemetry's TraceIdRatioBased takes a share of all traces, too
        elif s.ratio == <uint64_t>0xffffffffffffffff or low < s.ratio: x.traced |= T_SAMPLED

    cdef void _name_request(self, Exchange* x, Settings s, Head* h) noexcept:
        """An id for a request that has none, or that is to have ours: a UUID of version 4, as Envoy makes it."""
        cdef uint64_t high, low
        cdef char text[32]
        cdef int i
        for i in range(h.count):
            if h.headers[i].name_len == 12 and same_name(h.headers[i].name, b"x-request-id", 12):
                if s.request_ids == 1 and h.headers[i].value_len: return
                h.headers[i].use = DROP
        high = (self.random() & <uint64_t>0xffffffffffff0fff) | 0x4000
        low = (self.random() & <uint64_t>0x3fffffffffffffff) | <uint64_t>0x8000000000000000
        gl_put_hex(text, high)
        gl_put_hex(text + 16, low)
        memcpy(x.request_id, text, 8)
        memcpy(x.request_id + 9, text + 8, 4)
        memcpy(x.request_id + 14, text + 12, 4)
        memcpy(x.request_id + 19, text + 16, 4)
        memcpy(x.request_id + 24, text + 20, 12)
        x.request_id[8] = x.request_id[13] = x.request_id[18] = x.request_id[23] = 45
        x.request_id_n = 36

    cdef char* lines(self, Exchange* x, char* e) noexcept:
        """What a request says of its trace and its id to the instance, behind the head that ends at e; the new end."""
        cdef char line[80]
        if x.traced:
            memcpy(line, b"traceparent: 00-", 16)
            memcpy(line + 16, x.trace_id, 32)
            line[48] = 45
            put_id(line + 49, x, 1)                  # the span of the attempt that it is sent with
            memcpy(line + 65, b"-01\r\n", 5)
            if not x.traced & T_SAMPLED: line[67] = 48
            e = put_line(e, line, 70)
        if x.request_id_n:
            memcpy(line, b"x-request-id: ", 14)
            memcpy(line + 14, x.request_id, 36)
            memcpy(line + 50, b"\r\n", 2)
            e = put_line(e, line, 52)
        return e

    cdef bint _seen(self, Exchange* x, uint16_t status) noexcept:
        """Whether anybody wants to see it."""
        cdef Table t = (<TableState>x.state).table
        cdef const Service* s = NULL
        cdef const Str* versions = NULL
        cdef const Str* rule = NULL
        cdef int i
        cdef View* v
        if x.d.service >= 0:
            s = &t.services[x.d.service]
            if x.d.rule >= 0: rule = &(<const Rule*>(t.base + s.rules))[x.d.rule].name
            if x.d.instance >= 0: versions = <const Str*>(t.base + s.versions) + t.instances[x.d.instance].version
        for i in range(self.n_views):
            v = &self.views[i]
            if status < v.low or status > v.high: continue
            if v.service != NULL and (s == NULL or not _same(t, &s.name, v.service, v.service_n)): continue
            if v.version != NULL and not _same(t, versions, v.version, v.version_n): continue
            if v.rule != NULL and not _same(t, rule, v.rule, v.rule_n): continue
            return True
        return False


cdef inline Text _text(const char* p, uint32_t n) noexcept:
    cdef Text made
    made.p = p
    made.n = n
    return made


cdef bint _same(Table t, const Str* a, const char* p, uint32_t n) noexcept:
    return a != NULL and a.n == n and memcmp(t.base + a.off, p, n) == 0
