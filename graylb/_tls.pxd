"""TLS on non-blocking sockets: see _tls.pyx. It may be missing from a build, so the floors above find it through `TlsApi`."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from graylb._live cimport Tls

cdef struct TlsApi:
    int version            # of this struct: TLS_API
    # A server's side of a connection; contexts: of a `Certificates`, which chooses by server name. NULL: out of memory.
    Tls* (*accept)(void* contexts, int fd) noexcept
    # A client's side; origin: an `Origin`, which has the name to ask for and to verify. alpn: the protocol to offer, see Alpn.
    # NULL likewise.
    Tls* (*connect)(void* origin, int fd, uint8_t alpn) noexcept
    void (*free)(Tls* t) noexcept
    # Bytes that were received before TLS began (behind a PROXY header): read first. -1: out of memory
    int (*early)(Tls* t, const char* p, size_t n) noexcept
    # 1: done (t.ready, t.alpn are set); 0: goes on when the socket is readable or writable; -1: failed, t.reason tells why
    int (*handshake)(Tls* t) noexcept
    # as recv and send on the socket, errno included; EAGAIN whatever direction TLS itself waits for. Reading loops until `most`
    # or EAGAIN: records behind the first would get no event. 0: the peer's close_notify. A TCP end without it: -1, ECONNRESET.
    # After a read, t.more: there may be something to read, or an end, that no event will tell of.
    ssize_t (*read)(Tls* t, char* p, size_t most) noexcept
    ssize_t (*write)(Tls* t, const char* p, size_t n) noexcept
    # Whether the peer has said nothing, without taking it: as recv with MSG_PEEK that fails with EAGAIN. Session tickets and other
    # records that carry no data are nothing said.
    bint (*quiet)(Tls* t) noexcept
    # our close_notify
    void (*shut)(Tls* t) noexcept
    # Whether a request for this host may come by this connection: the client certificates asked for are those of that name.
    # To be asked where t.mixed only.
    bint (*admits)(Tls* t, const char* host, size_t n) noexcept

cdef enum:
    TLS_API = 2
