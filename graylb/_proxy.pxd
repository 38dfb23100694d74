"""The PROXY protocol without I/O: see _proxy.pyx."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    MAX_PROXY = 4096       # bytes of a header that are read, at most; version 1 alone: 107
    PROXY_ROOM = 256       # bytes that write_proxy may need

cdef struct ProxyInfo:
    uint8_t version        # 1 or 2
    uint8_t local          # no addresses were given: those of the socket hold
    uint8_t v4             # both addresses are IPv4
    uint8_t ssl            # the client spoke TLS to the sender (PP2_TYPE_SSL)
    uint8_t source[16]     # network order; IPv4 as ::ffff:a.b.c.d
    uint8_t destination[16]
    uint16_t source_port
    uint16_t destination_port
    char source_text[48]   # as graylb writes addresses: IPv4 with dots, IPv6 after RFC 5952
    uint32_t source_text_len
    # extensions of version 2: within the input, NULL when they are not there
    const char* alpn
    const char* authority
    const char* unique_id
    uint32_t alpn_len
    uint32_t authority_len
    uint32_t unique_id_len

cdef ssize_t read_proxy(const char* p, size_t n, ProxyInfo* out) noexcept nogil
cdef size_t write_proxy(int version, const uint8_t* source, const uint8_t* destination, int v4,
                        uint16_t source_port, uint16_t destination_port, bint local, char* out) noexcept nogil
