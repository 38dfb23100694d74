"""The PROXY protocol, versions 1 and 2, without I/O: which client a connection that a balancer made is for.

Source: proxy-protocol.txt of HAProxy (2020/03/05), sections 2.1 and 2.2. Works on bytes in place at C level; the `def`
functions at the end are faces for tests and fuzzing.

A header is taken whole or not at all. What the specification lets a receiver take leniently is refused where two readers
could differ: a line without CRLF, leading zeros, spaces in excess, extensions that do not fill their room, a checksum that
fails. What says nothing of a client (UNKNOWN, LOCAL, unspecified, datagrams, Unix sockets) is `local`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

import ipaddress

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char* text, void* out)
    const char* inet_ntop(int family, const void* address, char* out, unsigned int size)
    enum: AF_INET
    enum: AF_INET6

cdef enum:
    V1_BYTES = 107         # the longest line there can be, CRLF included
    V2_FIXED = 16
    TLV_ALPN = 0x01
    TLV_AUTHORITY = 0x02
    TLV_CRC32C = 0x03
    TLV_UNIQUE_ID = 0x05
    TLV_SSL = 0x20
    UNIQUE_ID_BYTES = 128
    CLIENT_SSL = 0x01

MAX_BYTES = MAX_PROXY

cdef const char* SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


cdef ssize_t read_proxy(const char* p, size_t n, ProxyInfo* out) noexcept nogil:
    """The header that [p, p+n) begins with -> its bytes; 0 more are needed; -1 this is none, or none that is valid.

    An answer other than 0 is the same however many bytes follow. The caller need not keep more than MAX_PROXY bytes.
    """
    memset(out, 0, sizeof(ProxyInfo))
    if n == 0: return 0
    if p[0] == 80: return _read_text(p, n, out)
    return _read_binary(p, n, out)


# ---- version 1 -----------------------------------------------------------------------------------------------------

cdef ssize_t _read_text(const char* start, size_t n, ProxyInfo* out) noexcept nogil:
    cdef const char* p = start + 6
    cdef const char* q = p
    cdef const char* e
    if memcmp(start, b"PROXY ", n if n < 6 else 6) != 0: return -1
    e = start + (n if n < V1_BYTES else V1_BYTES)
    while q < e and 32 <= q[0] <= 126: q += 1
    if e - q < 2:
        if q < e and q[0] != 13: return -1
        return 0 if n < V1_BYTES else -1
    if q[0] != 13 or q[1] != 10: return -1
    out.version = 1
    if q - p >= 7 and memcmp(p, b"UNKNOWN", 7) == 0 and (q - p == 7 or p[7] == 32): out.local = 1
    elif not _text_addresses(p, q, out): return -1
    return q + 2 - start


cdef bint _text_addresses(const char* p, const char* e, ProxyInfo* out) noexcept nogil:
    """`TCP4 source destination port port`, single spaces."""
    cdef const char* words[5]
    cdef size_t sizes[5]
    cdef const char* q
    cdef int i
    for i in range(5):
        q = <const char*>memchr(p, 32, e - p) if p < e else NULL
        if q == NULL: q = e
        if (q == e) != (i == 4): return False
        words[i] = p
        sizes[i] = q - p
        p = q + 1
    if sizes[0] != 4 or memcmp(words[0], b"TCP", 3) != 0 or (words[0][3] != 52 and words[0][3] != 54): return False
    i = words[0][3] == 52
    if not _address(words[1], sizes[1], i, out.source): return False
    if not _address(words[2], sizes[2], i, out.destination): return False
    if not _port(words[3], sizes[3], &out.source_port): return False
    if not _port(words[4], sizes[4], &out.destination_port): return False
    _settle(out)
    return True


cdef bint _address(const char* p, size_t n, bint v4, uint8_t* out) noexcept nogil:
    """What inet_pton takes: four decimal numbers without leading zeros, or the text of RFC 4291 section 2.2."""
    cdef char text[48]
    if n == 0 or n >= sizeof(text): return False
    memcpy(text, p, n)
    text[n] = 0
    if not v4: return inet_pton(AF_INET6, text, out) == 1
    _map(out)
    return inet_pton(AF_INET, text, out + 12) == 1


cdef bint _port(const char* p, size_t n, uint16_t* out) noexcept nogil:
    cdef uint32_t port = 0
    cdef size_t i
    if n == 0 or n > 5 or (n > 1 and p[0] == 48): return False
    for i in range(n):
        if p[i] < 48 or p[i] > 57: return False
        port = port * 10 + (p[i] - 48)
    out[0] = <uint16_t>port
    return port < 65536


cdef void _map(uint8_t* out) noexcept nogil:
    memset(out, 0, 10)
    memset(out + 10, 0xff, 2)


cdef bint _mapped(const uint8_t* a) noexcept nogil:
    cdef uint8_t prefix[12]
    _map(prefix)
    return memcmp(a, prefix, 12) == 0


cdef void _settle(ProxyInfo* out) noexcept nogil:
    """What follows from the addresses. A mapped address is IPv4 however it came: one client, one name."""
    cdef bint v4 = _mapped(out.source)
    out.v4 = v4 and _mapped(out.destination)
    inet_ntop(AF_INET if v4 else AF_INET6, out.source + (12 if v4 else 0), out.source_text, sizeof(out.source_text))
    out.source_text_len = <uint32_t>strlen(out.source_text)


# ---- version 2 -----------------------------------------------------------------------------------------------------

cdef ssize_t _read_binary(const char* p, size_t n, ProxyInfo* out) noexcept nogil:
    cdef const uint8_t* u = <const uint8_t*>p
    cdef size_t size, room
    cdef int family, transport
    if memcmp(p, SIGNATURE, n if n < 12 else 12) != 0: return -1
    if n > 12 and u[12] != 0x20 and u[12] != 0x21: return -1
    if n > 13 and u[12] == 0x21 and (u[13] > 0x32 or (u[13] & 15) > 2): return -1
    if n < V2_FIXED: return 0
    size = V2_FIXED + (u[14] << 8 | u[15])
    if size > MAX_PROXY: return -1
    family = u[13] >> 4
    transport = u[13] & 15
    out.version = 2
    # of these the rest means nothing and is passed over
    if u[12] == 0x20 or family == 0 or transport == 0:
        out.local = 1
        return size if n >= size else 0
    room = 12 if family == 1 else 36 if family == 2 else 216
    if size < V2_FIXED + room: return -1
    if n < size: return 0
    if family == 3 or transport == 2: out.local = 1
    else: _binary_addresses(u + V2_FIXED, 4 if family == 1 else 16, out)
    return <ssize_t>size if _extensions(u, V2_FIXED + room, size, out) else -1


cdef void _binary_addresses(const uint8_t* u, size_t width, ProxyInfo* out) noexcept nogil:
    if width == 4:
        _map(out.source)
        _map(out.destination)
    memcpy(out.source + 16 - width, u, width)
    memcpy(out.destination + 16 - width, u + width, width)
    u += 2 * width
    out.source_port = <uint16_t>(u[0] << 8 | u[1])
    out.destination_port = <uint16_t>(u[2] << 8 | u[3])
    _settle(out)


cdef bint _extensions(const uint8_t* u, size_t i, size_t size, ProxyInfo* out) noexcept nogil:
    """Type-length-value triples in [i, size): they fill it exactly; those that mean something to us come once."""
    cdef const char* value
    cdef uint32_t n
    cdef bint crc = False, tls = False
    while i < size:
        if size - i < 3: return False
        n = u[i + 1] << 8 | u[i + 2]
        value = <const char*>(u + i + 3)
        if n > size - i - 3: return False
        if u[i] == TLV_ALPN:
            if not _keep(value, n, &out.alpn, &out.alpn_len): return False
        elif u[i] == TLV_AUTHORITY:
            if not _keep(value, n, &out.authority, &out.authority_len): return False
        elif u[i] == TLV_UNIQUE_ID:
            if n > UNIQUE_ID_BYTES or not _keep(value, n, &out.unique_id, &out.unique_id_len): return False
        elif u[i] == TLV_SSL:
            if tls or n < 5: return False
            tls = True
            out.ssl = value[0] & CLIENT_SSL
        elif u[i] == TLV_CRC32C:
            if crc or n != 4 or not _checks(u, size, i + 3): return False
            crc = True
        i += 3 + n
    return True


cdef bint _keep(const char* value, uint32_t n, const char** at, uint32_t* length) noexcept nogil:
    if at[0] != NULL: return False
    at[0] = value
    length[0] = n
    return True


cdef bint _checks(const uint8_t* u, size_t size, size_t at) noexcept nogil:
    """CRC32c (RFC 4960 appendix B) of the header, its own four bytes taken as 0."""
    cdef uint32_t crc = 0xffffffff
    cdef uint32_t told = <uint32_t>u[at] << 24 | <uint32_t>u[at + 1] << 16 | <uint32_t>u[at + 2] << 8 | u[at + 3]
    cdef size_t i
    cdef int bit
    for i in range(size):
        if i < at or i >= at + 4: crc ^= u[i]
        for bit in range(8): crc = crc >> 1 ^ (<uint32_t>0x82f63b78 & -(crc & 1))
    return told == ~crc


# ---- writing -------------------------------------------------------------------------------------------------------

cdef size_t write_proxy(int version, const uint8_t* source, const uint8_t* destination, int v4,
                        uint16_t source_port, uint16_t destination_port, bint local, char* out) noexcept nogil:
    """A header into out (PROXY_ROOM bytes) -> its size. Addresses are 16 bytes; v4: the last four of each count.

    local: the connection is the proxy's own (LOCAL; UNKNOWN in version 1, which has no such word), addresses are not read.
    """
    # mapped addresses go out as IPv4: TCP6 with a dotted tail is not in the specification
    if not local and not v4: v4 = _mapped(source) and _mapped(destination)
    if version == 1: return _write_text(source, destination, v4, source_port, destination_port, local, out)
    cdef size_t width = 0 if local else 4 if v4 else 16
    cdef uint8_t* u = <uint8_t*>out
    memcpy(u, SIGNATURE, 12)
    u[12] = 0x20 if local else 0x21
    u[13] = 0 if local else 0x11 if v4 else 0x21
    u[14] = 0
    u[15] = 0 if local else 12 if v4 else 36
    if local: return V2_FIXED
    u += V2_FIXED
    memcpy(u, source + 16 - width, width)
    memcpy(u + width, destination + 16 - width, width)
    u += 2 * width
    u[0] = source_port >> 8
    u[1] = source_port & 255
    u[2] = destination_port >> 8
    u[3] = destination_port & 255
    return V2_FIXED + 2 * width + 4


cdef size_t _write_text(const uint8_t* source, const uint8_t* destination, bint v4, uint16_t source_port,
                        uint16_t destination_port, bint local, char* out) noexcept nogil:
    cdef char* o = out
    if local:
        memcpy(out, b"PROXY UNKNOWN\r\n", 15)
        return 15
    memcpy(o, b"PROXY TCP4 ", 11)
    if not v4: o[9] = 54
    o = _put_address(o + 11, source, v4)
    o = _put_address(o, destination, v4)
    o = _put_port(o, source_port)
    o[0] = 32
    o = _put_port(o + 1, destination_port)
    o[0] = 13
    o[1] = 10
    return o + 2 - out


cdef char* _put_address(char* o, const uint8_t* address, bint v4) noexcept nogil:
    """The address and a space."""
    inet_ntop(AF_INET if v4 else AF_INET6, address + (12 if v4 else 0), o, 48)
    o += strlen(o)
    o[0] = 32
    return o + 1


cdef char* _put_port(char* o, uint32_t port) noexcept nogil:
    cdef char digits[5]
    cdef int i = 5
    while True:
        i -= 1
        digits[i] = <char>(48 + port % 10)
        port //= 10
        if port == 0: break
    memcpy(o, digits + i, 5 - i)
    return o + 5 - i


# ---- faces for tests and fuzzing -----------------------------------------------------------------------------------

cdef object _value(const char* p, uint32_t n):
    return PyBytes_FromStringAndSize(p, n) if p != NULL else None


def read(bytes data):
    """The header that data begins with -> dict, None when incomplete, -1 when refused."""
    cdef ProxyInfo info
    cdef ssize_t used = read_proxy(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &info)
    if used <= 0: return None if used == 0 else -1
    return {
        "used": used, "version": info.version, "local": bool(info.local), "v4": bool(info.v4), "ssl": bool(info.ssl),
        "source": PyBytes_FromStringAndSize(<char*>info.source, 16),
        "destination": PyBytes_FromStringAndSize(<char*>info.destination, 16),
        "source_port": info.source_port, "destination_port": info.destination_port,
        "source_text": info.source_text[:info.source_text_len].decode(),
        "alpn": _value(info.alpn, info.alpn_len), "authority": _value(info.authority, info.authority_len),
        "unique_id": _value(info.unique_id, info.unique_id_len),
    }


def write(int version, str source="::", str destination="::", uint16_t source_port=0, uint16_t destination_port=0, *,
          bint local=False):
    """A header for these addresses, both IPv4 or both IPv6; ValueError for others, or another version than 1 and 2."""
    cdef char out[PROXY_ROOM]
    if version not in (1, 2): raise ValueError(f"version {version}: expected 1 or 2")
    ends = [ipaddress.ip_address(source), ipaddress.ip_address(destination)]
    if ends[0].version != ends[1].version: raise ValueError(f"{source} and {destination}: expected one family")
    packed = [end.packed.rjust(16, b"\0") for end in ends]
    cdef bytes first = packed[0], second = packed[1]
    cdef size_t size = write_proxy(version, <const uint8_t*>PyBytes_AS_STRING(first), <const uint8_t*>PyBytes_AS_STRING(second),
                                   ends[0].version == 4, source_port, destination_port, local, out)
    return PyBytes_FromStringAndSize(out, size)
