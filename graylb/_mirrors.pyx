"""Copies of requests for another version: which requests, what a copy holds, what became of it. No I/O.

A copy is collected while the request passes, and is sent once the request is complete. Its share is drawn as those of faults are.
"""

from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memmove
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from graylb._faults cimport STEP_MIRRORS, set_share


cdef class Mirror:
    """What a service has mirrored. Counters and draws outlive its settings."""

    def __init__(self, str service, int first_draw):
        self.service = service
        self.draw.n = <uint64_t>first_draw
        self.draw.step = STEP_MIRRORS
        self.counts = {}

    def configure(self, dict told):
        """told: `snapshot_faults.Mirror` as a dict, with the number of the target in place of the subset."""
        set_share(&self.draw, told["percent"])
        self.target = told["target"]
        self.max = told["max"]
        self.body = told["body"]
        self.timeout_ms = round(told["timeout"] * 1000)
        self.methods = tuple(each.encode() for each in told["methods"])
        self.every_method = not self.methods

    cdef bint takes(self, const char* method, size_t n):
        cdef bytes each
        if self.every_method: return True
        for each in self.methods:
            if <size_t>PyBytes_GET_SIZE(each) == n and memcmp(PyBytes_AS_STRING(each), method, n) == 0: return True
        return False

    cdef count(self, str version, str outcome):
        self.counts[version, outcome] = self.counts.get((version, outcome), 0) + 1

    def watch(self, uint64_t until_ms, int requests):
        """Keeps both answers of so many mirrored requests, until a time of the engine's clock."""
        self.watched_ms = until_ms
        self.to_watch = requests

    def figures(self):
        """Counters as a dict."""
        return {"service": self.service, "active": self.active,
                "outcomes": [{"version": version, "outcome": outcome, "count": n} for (version, outcome), n in self.counts.items()]}


cdef class Side:
    """One of the two answers to a request that was mirrored."""

    cdef begin(self, int status, const char* head, size_t n):
        self.status = status
        self.head = head[:n]
        self.body = bytearray()

    cdef add(self, const char* p, size_t n):
        cdef size_t room = WATCH_BODY - len(self.body) if self.body is not None else 0
        self.size += n
        if room and n: self.body += p[:n if n < room else room]

    def told(self):
        """(status, head, body, size of the body, trailers, complete)"""
        return self.status, self.head or b"", bytes(self.body or b""), self.size, self.trailers or b"", bool(self.complete)


cdef class Copy:
    """One request that is mirrored, from the decision to the end of both exchanges."""

    def __dealloc__(self):
        free(self.text)

    cdef bint put(self, const char* p, size_t n) noexcept:
        """More of its text; False: out of memory."""
        cdef char* q
        if self.n + n > self.cap:
            q = <char*>realloc(self.text, 2 * (self.n + n) + 64)
            if q == NULL: return False
            self.text = q
            self.cap = 2 * (self.n + n) + 64
        if n: memcpy(self.text + self.n, p, n)
        self.n += n
        return True

    cdef bint add(self, const char* p, size_t n) noexcept:
        """More of its body; False: it is longer than may be copied."""
        return self.n - self.head + n <= self.mirror.body and self.put(p, n)

    cdef bint close_body(self) noexcept:
        """The body is complete and its head says that it is chunked: one chunk, then the last."""
        cdef char line[24]
        cdef size_t body = self.n - self.head
        cdef int k = snprintf(line, sizeof(line), b"%zx\r\n", body)
        if body:
            if not self.put(line, k): return False       # makes room; what belongs there follows
            memmove(self.text + self.head + k, self.text + self.head, body)
            memcpy(self.text + self.head, line, k)
            if not self.put(b"\r\n", 2): return False
        return self.put(b"0\r\n\r\n", 5)

    cdef char* take(self) noexcept:
        """Its text, which is the caller's from now on."""
        cdef char* text = self.text
        self.text = NULL
        return text
