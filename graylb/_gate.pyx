"""The second parser: llhttp, through httptools, beside the scanner of `_http1`."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from graylb._http1 cimport Head, scan_request

import httptools


@cython.final
cdef class View:
    """C memory as a buffer, for httptools."""

    def __getbuffer__(self, Py_buffer* b, int flags):
        PyBuffer_FillInfo(b, self, <void*>self.p, self.n, 1, flags)


@cython.final
cdef class Gate:
    """The second parser: llhttp, through httptools, must accept the same bytes and see a body where the scanner does.

    Framing callbacks only. One parser serves all connections, for it is fed whole heads; it is replaced whenever its state
    would colour the next head (a body to come, a connection to be closed, an error).
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
        self.heads = self.messages = 0
        self.view.p = h.start
        self.view.n = h.end - h.start
        try:
            self.feed(self.view)
        except httptools.HttpParserUpgrade:
            self.renew()
            return not body
        except httptools.HttpParserError:
            self.renew()
            return False
        if body or h.close or h.minor == 0: self.renew()
        return self.heads == 1 and self.messages == (0 if body else 1)

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
