"""The second parser: llhttp, through httptools, beside the scanner of `_http1`."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from graylb._http1 cimport Head, scan_request
from libc.stdint cimport int64_t

import httptools

cdef char ZEROS[65536]                    # any body of that length, as far as the second parser is concerned
cdef const char* LAST_CHUNK = b"0\r\n\r\n"


@cython.final
cdef class View:
    """C memory as a buffer, for httptools."""

    def __getbuffer__(self, Py_buffer* b, int flags):
        PyBuffer_FillInfo(b, self, <void*>self.p, self.n, 1, flags)


@cython.final
cdef class Gate:
    """The second parser: llhttp, through httptools, must accept the same bytes and see a body where the scanner does.

    Framing callbacks only. One parser serves all connections, for it is fed whole heads, and a body that stands in for the
    one to come: it only counts those bytes. It is replaced whenever its state would colour the next head (a long body, a
    connection to be closed, an error).
    """

    def __cinit__(self):
        self.view = View()
        self.renew()

    def on_headers_complete(self):
        self.heads += 1

    def on_message_complete(self):
        self.messages += 1

    cdef renew(self):
        self.feed = httptools.HttpRequestParser(self).feed_data

    cdef bint admits(self, Head* h) noexcept:
        """Whether llhttp agrees with the scanner on this head."""
        cdef bint body = h.chunked or h.content_length > 0
        cdef bint spent = h.close or h.minor == 0 or (not h.chunked and h.content_length > <int64_t>sizeof(ZEROS))
        cdef bint agreed = False
        self.heads = self.messages = 0
        try:
            self._feed(h.start, h.end - h.start)
            agreed = self.heads == 1 and self.messages == (0 if body else 1)
            if body and agreed and not spent:
                if h.chunked: self._feed(LAST_CHUNK, 5)
                else: self._feed(ZEROS, h.content_length)
                spent = self.messages != 1
        except httptools.HttpParserUpgrade:
            self.renew()
            return not body
        except httptools.HttpParserError:
            self.renew()
            return False
        if spent or not agreed: self.renew()
        return agreed

    cdef _feed(self, const char* p, size_t n):
        self.view.p = p
        self.view.n = n
        self.feed(self.view)

    def check(self, bytes data):
        """Whether both parsers admit the head that data begins with; None when the scanner alone does not: for fuzzing."""
        cdef Head h
        cdef const char* p = PyBytes_AS_STRING(data)
        if scan_request(&h, p, p + PyBytes_GET_SIZE(data), 100) != 1: return None
        return self.admits(&h)


def bench_admits(bytes data, int n):
    """Nanoseconds that the second parser takes over this request head, over n times."""
    import time
    cdef Head h
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef Gate gate = Gate()
    cdef int i, ok = 0
    if scan_request(&h, p, p + PyBytes_GET_SIZE(data), 100) != 1: raise ValueError("not a request head")
    begin = time.perf_counter_ns()
    for i in range(n): ok += gate.admits(&h)
    took = time.perf_counter_ns() - begin
    if ok != n: raise ValueError("not admitted")
    return took / n
