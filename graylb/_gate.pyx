"""The second parser: llhttp, through httptools, beside the scanner of `_http1`."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from graylb._http1 cimport Head, scan_request
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcmp, memcpy

import httptools

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>
    static inline uint32_t gl_place(const char *p, size_t n) { /* 0..31; n >= 16 */
      uint64_t a, b, c;
      memcpy(&a, p + 4, 8); memcpy(&b, p + n / 2, 8); memcpy(&c, p + n - 12, 8);
      return (uint32_t)(((a ^ b << 1 ^ c << 2 ^ n) * 0x9E3779B97F4A7C15u) >> 59); }
    """
    uint32_t gl_place(const char*, size_t)

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

    What it has found of some bytes holds for the same bytes again, for nothing else goes into it: the heads that came lately are
    remembered, each in the place that some of its bytes say, and are only compared.

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
        cdef size_t n = h.end - h.start
        cdef Admitted* known
        if n < 16 or n > LONGEST: return self._parse(h)
        known = &self.admitted[gl_place(h.start, n)]
        if known.n == n and memcmp(known.head, h.start, n) == 0: return True
        if not self._parse(h): return False
        known.n = <uint32_t>n
        memcpy(known.head, h.start, n)
        return True

    cdef bint _parse(self, Head* h) noexcept:
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
    """Nanoseconds that the second parser takes over this request head when it is new, over n times."""
    import time
    cdef Head h
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef Gate gate = Gate()
    cdef int i, ok = 0
    if scan_request(&h, p, p + PyBytes_GET_SIZE(data), 100) != 1: raise ValueError("not a request head")
    begin = time.perf_counter_ns()
    for i in range(n): ok += gate._parse(&h)
    took = time.perf_counter_ns() - begin
    if ok != n: raise ValueError("not admitted")
    return took / n
