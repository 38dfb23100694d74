"""HTTP/1 without I/O: see _http1.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    MAX_HEADERS = 256      # compiled bound; the configured limit is lower or equal

# What a header is to us. Order matters nowhere but in `classify`.
cdef enum HeaderId:
    H_OTHER = 0
    H_CONNECTION
    H_KEEP_ALIVE
    H_PROXY_CONNECTION
    H_TE
    H_TRAILER
    H_TRANSFER_ENCODING
    H_CONTENT_LENGTH
    H_UPGRADE
    H_HTTP2_SETTINGS
    H_HOST
    H_EXPECT
    H_XFF
    H_XFP
    H_XFH
    H_FORWARDED
    H_VIA
    H_COOKIE
    H_USER_AGENT
    H_ACCEPT
    H_CONTENT_TYPE
    H_BAGGAGE
    H_MARK
    H_CH_MOBILE
    H_GRAYLB
    H_UNDERSCORE

cdef enum HeaderUse:
    DROP = 0               # not forwarded
    RUN = 1                # forwarded as received: the line is `name: value CRLF` and nothing else
    EMIT = 2               # forwarded, but written anew without stray white space

cdef enum BodyKind:
    BODY_NONE = 0
    BODY_LENGTH
    BODY_CHUNKED
    BODY_CLOSE

cdef struct Header:
    const char* name
    const char* value
    uint32_t name_len
    uint32_t value_len
    uint16_t id
    uint16_t use

cdef struct Head:
    const char* start      # first byte of the message
    const char* fields     # first header line
    const char* end        # behind the blank line
    const char* method
    const char* target     # as received
    const char* path       # origin form, without query; points into target or to a literal "/"
    const char* query      # behind the `?`, or NULL
    const char* host       # the authority that routes: absolute form's, else the Host header's
    const char* reason
    uint32_t method_len
    uint32_t target_len
    uint32_t path_len
    uint32_t query_len
    uint32_t host_len
    uint32_t reason_len
    int64_t content_length # -1: none
    int status
    int count
    uint8_t minor
    uint8_t is_head
    uint8_t is_response
    uint8_t chunked
    uint8_t close          # Connection: close
    uint8_t keep_alive     # Connection: keep-alive
    uint8_t has_tokens     # Connection names further headers
    uint8_t expect_continue
    uint8_t upgrade        # an Upgrade header is there
    uint8_t asks_upgrade   # Connection names it
    uint8_t websocket      # a lawful WebSocket handshake, or the answer that accepts one
    uint8_t is_grpc
    uint8_t typed          # a Content-Type was seen
    uint8_t absolute
    uint8_t hosts
    int error              # code of graylb.errors when a scan answers -1
    int limit              # headers allowed
    Header headers[MAX_HEADERS]

cdef struct Body:
    uint8_t kind
    uint8_t state
    uint32_t line          # bytes of chunk-size lines, extensions and trailers since the last data byte
    int64_t left

cdef struct Piece:
    char* data             # decoded bytes, contiguous
    size_t length
    size_t used            # bytes of input that belong to this message
    bint done              # the message ends here

cdef struct Client:
    # what the forwarding headers say of the client side
    const char* address
    uint32_t address_len
    const char* scheme
    uint32_t scheme_len

cdef struct ForwardingPolicy:
    uint8_t x_forwarded    # 0 off, 1 append, 2 replace
    uint8_t forwarded
    uint8_t via

cdef bint same_name(const char* a, const char* low, size_t n) noexcept nogil
cdef void reset_head(Head* h, int limit) noexcept nogil
cdef int scan_request(Head* h, const char* p, const char* e, int limit) noexcept nogil
cdef int scan_response(Head* h, const char* p, const char* e, int limit) noexcept nogil
cdef bint find_blank_line(const char* p, const char* e) noexcept nogil
cdef void start_body(Body* b, uint8_t kind, int64_t length) noexcept nogil
cdef int decode_body(Body* b, char* p, size_t n, Piece* out) noexcept nogil
cdef char* write_request(Head* h, char* o, ForwardingPolicy* policy, Client* client, uint8_t body_kind,
                         const char* strip, size_t strip_len, const char* prefix, size_t prefix_len) noexcept nogil
cdef char* write_response(Head* h, char* o, uint8_t body_kind, int connection, bint via,
                          const char* extra, size_t extra_len) noexcept nogil
cdef char* chunk_head(char* data, size_t n) noexcept nogil
