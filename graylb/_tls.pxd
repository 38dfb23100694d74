"""TLS on non-blocking sockets: see _tls.pyx. It may be missing from a build, so the floors above find it through `TlsApi`."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from graylb._live cimport Tls

cdef struct TlsApi:
    int version            # of this struct: TLS_API
    # A server's side of a connection; contexts: of a `Certificates`, which chooses by server name. NULL: out of memory.
    Tls* (*accept)(void* contexts, int fd) noexcept
    # A client's side; origin: of an `Origination`, which has the name to ask for and to verify. NULL likewise.
    Tls* (*connect)(void* origin, int fd) noexcept
    void (*free)(Tls* t) noexcept
    # 1: done (t.ready, t.alpn are set); 0: goes on when the socket is readable or writable; -1: failed
    int (*handshake)(Tls* t) noexcept
    # as recv and send on the socket, errno included; EAGAIN whatever direction TLS itself waits for. Reading loops until `most`
    # or EAGAIN: records behind the first would get no event. 0: the peer's close_notify. A TCP end without it: -1, ECONNRESET.
    ssize_t (*read)(Tls* t, char* p, size_t most) noexcept
    ssize_t (*write)(Tls* t, const char* p, size_t n) noexcept
    # Whether the peer has said nothing, without taking it: as recv with MSG_PEEK that fails with EAGAIN. Session tickets and other
    # records that carry no data are nothing said.
    bint (*quiet)(Tls* t) noexcept
    # our close_notify
    void (*shut)(Tls* t) noexcept
    # who the client's certificate names, as text (SPIFFE URI, DNS name, else subject), and its SHA-256; 0: none was shown
    size_t (*identity)(Tls* t, char* o, size_t room) noexcept

cdef enum:
    TLS_API = 1
