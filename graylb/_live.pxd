"""Connections, exchanges and the live state of a worker: see _live.pyx and _engine.pyx."""

from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from graylb._faults cimport Faults
from graylb._mirrors cimport Mirror
from graylb._fast cimport Context, Decision, Live, Query, Table
from graylb._mark cimport Marks, ServiceMark
from graylb._http1 cimport Body, Client, ForwardingPolicy, Head, Piece
from graylb._limits cimport Breaker, Limits
from graylb._meter cimport Meter, Series
from graylb._retries cimport MAX_ATTEMPTS, Budget, RetryPolicy
from graylb._slab cimport Slab

cdef extern from "<sys/socket.h>" nogil:
    cdef struct sockaddr_storage:
        pass

cdef enum:
    MAX_HEAD = 131072      # bytes of a head, whatever the configuration allows

cdef struct Peer:
    # who is at the other end, as the socket or a PROXY header says
    uint8_t address[16]    # IPv4 as ::ffff:a.b.c.d
    char text[48]
    uint32_t text_len      # 0: a Unix socket has no address
    uint16_t port
    uint8_t v4

cdef enum Side:
    CLIENT = 0
    UPSTREAM = 1

cdef enum State:
    # client side
    S_HEAD = 0             # between messages, or a head is arriving
    S_BODY                 # the request body is arriving
    S_WAIT                 # the request is complete, the answer is not
    S_PROXY                # its PROXY header has not arrived yet
    S_TUNNEL               # either side: bytes go through as they are, after an upstream's 101
    S_LINGER               # answered and half closed; what still arrives is read and thrown away (RFC 9112 9.6)
    S_SESSION              # either side: a socket that carries an HTTP/2 session
    # upstream side
    U_HEAD                 # waiting for the response head
    U_BODY
    U_IDLE                 # in the pool

cdef struct Pipe:
    # body bytes on their way through the kernel
    int into
    int out
    size_t filled          # bytes in it
    Pipe* next

cdef struct Tls:           # of one connection; _tls.pyx knows more of it
    uint8_t alpn           # see Alpn
    uint8_t ready          # the handshake is done
    uint8_t more           # something to read, or an end, that no event will tell of
    uint8_t mixed          # names of its listener differ in the client certificates they ask for: see TlsApi.admits
    uint8_t resumed
    uint8_t plain_http     # the handshake failed: the client spoke HTTP
    uint8_t unreached      # the handshake failed: the connection did, before anything was received
    const char* reason     # why the handshake failed; static
    # Who the peer's certificate names: its first URI, else its first DNS name, else its subject; and all of it in the form of
    # Envoy's x-forwarded-client-cert. NULL: none was shown.
    const char* identity
    uint32_t identity_len
    const char* told
    uint32_t told_len

cdef enum Alpn:
    ALPN_NONE = 0
    ALPN_HTTP1
    ALPN_H2

cdef struct Session:
    # HTTP/2 on one connection, either side; _h2.pyx knows more of it
    Conn* conn             # its socket
    Conn* streams          # those that are open, by next and previous
    uint32_t n_streams
    uint32_t max_streams   # upstream: as many as the peer allows; 100 until it has said
    uint8_t server         # the peer is a client
    uint8_t full           # upstream: takes no more requests: GOAWAY has come, or its ids are used up
    uint8_t dirty          # in the list of those that may have something to send
    uint8_t ending         # what is to be sent is sent, then the connection is closed
    uint8_t acked          # our PING was answered
    Session* following     # of that list
    Session* next          # sessions of an instance
    Session* previous

cdef enum:
    TRAILERS_SLACK = 16

cdef struct Conn:
    # one end of an exchange: a socket, or a stream of an HTTP/2 session
    int fd                 # -1: a stream
    uint8_t side
    uint8_t state
    uint8_t readable       # bytes, or the end, may wait in the kernel
    uint8_t shut           # the peer has shut its write side: read on until 0
    uint8_t dead
    uint8_t connecting
    uint8_t queued         # in the ready-again list
    uint8_t closing        # close once everything pending is sent
    uint8_t reused         # has had an exchange before
    uint8_t no_reuse       # upstream: closes when its answer is complete
    uint8_t ended          # tunnel: its end was read and passed on
    uint8_t half_close     # tunnel: shut the write side once everything pending is sent
    uint8_t partial        # client: part of a head is held
    uint8_t listener       # client: which one it came by
    uint8_t preface        # upstream: this many of the pending bytes are its PROXY header
    uint8_t timed_out      # upstream: it could not be connected in time
    uint8_t sink           # client: nobody; it swallows the answer to a copy of a request
    uint8_t eof            # stream: nothing follows what is pending
    uint8_t deferred       # stream: libnghttp2 waits to be told that there is more to send
    uint8_t phase          # stream: how far it has come; _h2.pyx's
    Session* session       # of a stream: where it belongs; of a socket: what it carries, or NULL
    Tls* tls               # of a socket, or NULL
    Pipe* pipe             # not NULL: what is pending to send lies in there
    char* out              # pending to send: out_len bytes at out + out_off
    size_t out_off
    size_t out_len
    size_t out_cap
    char* held             # received and not yet used
    size_t held_len
    size_t held_cap
    uint64_t deadline      # ms; 0: none
    uint64_t limit         # ms; client: of the whole request, whatever else is waited for; upstream: of this try; 0: none
    uint64_t slot_time     # ms; where in the wheel it sits
    Conn* later            # wheel list
    Conn* earlier
    Conn* next             # idle or dead list
    Conn* previous         # idle list
    Conn* after            # ready-again list
    Exchange* x
    PyObject* upstream     # Upstream of an upstream connection
    # of a stream
    int32_t stream         # its number; 0: it has none yet, or is over
    uint32_t code          # what it is reset with if it has to be; 0: INTERNAL_ERROR to a client, CANCEL to an instance
    int64_t left           # bytes of its body that are still to come, as its head says; -1: it does not say
    size_t owed            # received bytes that its window does not count as used yet; of a socket: those thrown away
    char* trailers         # to be sent behind what is pending; TRAILERS_SLACK bytes behind them may be looked at
    uint32_t trailers_len
    Peer peer              # the client; of an upstream connection that names its client, that client

cdef enum Waiting:
    WAITS = 1              # for a connection to its instance
    CALLED                 # one is kept for it
    RESTS                  # for the time of its next attempt
    RESTED                 # that has come
    DELAYED                # on purpose
    DUE                    # that is over

cdef enum Hedging:
    MAY_HEDGE = 1          # a late answer is a reason to ask a second instance
    ARMED                  # likewise, and it waits for its answer in the list of its service's Retries
    RACES                  # two are asked: the exchange of the second attempt is its `rival`
    HEDGE                  # is that exchange; its `rival` is the request

cdef enum Traced:
    T_ON = 1               # has a span
    T_CHILD = 2            # of a span of the client
    T_SAMPLED = 4

cdef struct Exchange:
    Conn* client
    Conn* upstream
    PyObject* state        # TableState, kept through retries
    PyObject* detour       # a _detours.Detour, or NULL
    PyObject* copy         # a _mirrors.Copy of a request that is mirrored, or NULL
    Exchange* next         # free list, waiting requests of an instance, resting ones, those that may be late, open tunnels
    Exchange* previous
    Decision d
    Body request
    Body response
    uint8_t request_kind   # BodyKind as sent upstream
    uint8_t response_kind  # BodyKind as sent to the client
    uint8_t request_done
    uint8_t response_begun
    uint8_t websocket      # the client asked for a tunnel
    uint8_t head_only      # the request was HEAD
    uint8_t minor
    uint8_t keep_alive     # what the client asked for
    uint8_t close_client   # after this exchange
    uint8_t wants_json
    uint8_t safe           # idempotent method (RFC 9110 9.2.2)
    uint8_t listed         # its method is one that its service retries
    uint8_t attempts
    uint8_t unseen         # of them: those that nobody can have looked at
    uint8_t n_tried
    int32_t tried[MAX_ATTEMPTS]  # instances that have failed it
    uint8_t heard          # an interim answer has come
    uint8_t whole_limit    # its client's `limit` is the service's, not the caller's
    uint8_t waiting        # see Waiting
    uint8_t counted        # has a status, for the record
    uint8_t h2             # goes to its instance as a stream
    uint8_t health         # a call of grpc.health.v1, ours to answer: 1 Check, 2 another
    uint8_t grpc           # the client is to be told of errors as gRPC tells them
    uint8_t grpc_status    # what it was told, or is to be, + 1; 0: nothing yet
    uint8_t is_copy        # nobody's request, but the copy of one, or its second attempt: 1; 2: a copy that was answered
    uint8_t hedging        # see Hedging; 0: it has one attempt at a time
    uint8_t keeping        # what is sent is kept too, until it cannot be repeated any more
    uint16_t status
    uint64_t began_us
    uint64_t tried_us      # when its attempt began, where the times of its instance are watched
    uint64_t took_us       # from then to the head of the answer
    uint64_t until_us      # gRPC: the caller's deadline; 0: none
    uint64_t bytes_in      # of the request's body
    uint64_t bytes_out     # of the answer's
    uint64_t cut_ms        # tunnel: when it is to be cut; 0: not
    char* saved            # the request as sent, for one more attempt
    size_t saved_len
    size_t saved_cap
    uint32_t keep_max      # bytes that are kept at most
    uint64_t due_us        # when it is to go on, while it rests; while it is ARMED, when its answer is late
    uint64_t connect_ms
    uint64_t response_ms
    uint64_t try_ms        # 0: none
    uint64_t idle_ms
    # for the access log and traces, see _logs.pyx
    uint8_t captured       # see Captured
    uint8_t failed         # code of the error of ours that it was answered with, + 1; 0: none
    uint8_t cut            # ended before its time, by 1 the client, 2 the instance
    uint64_t head_us       # when the head of the answer was here
    uint64_t connecting_us # when the connection to the instance was begun; 0: it was there
    uint64_t connect_us    # how long that took
    char* log              # what is told of its head
    uint32_t log_len
    uint32_t log_cap
    uint32_t full_at       # where in it that for views begins
    uint32_t span_at       # and what is kept for spans, see _spans.Kept
    Exchange* rival        # the other one of two attempts, see Hedging
    Breaker* of_service    # where it counts; NULL: its service has no limits
    Breaker* of_version
    uint8_t traced         # see Traced
    char trace_id[32]      # of graylb's span, in hexadecimal
    char span_id[16]
    char parent_id[16]
    uint8_t request_id_n   # of one that was made here; 0: none was
    char request_id[36]

cdef enum Protocol:
    AUTO = 0               # HTTP/2 for gRPC requests, HTTP/1.1 for others
    HTTP1
    HTTP2

cdef struct Conduct:
    # how an instance has answered, for _outliers.pyx. Times in ms
    uint8_t watched        # see Watched
    uint8_t fresh          # it was not there before: slow start begins when its version is watched
    uint32_t gateway_run   # answers in a row that were none, or 502, 503, 504
    uint32_t error_run     # likewise, or any other 5xx
    uint32_t times         # ejections in a row, as of when the last one ended
    uint64_t until         # of the present ejection, or when the last one ended
    uint64_t warm_since
    # of the interval
    uint64_t answers
    uint64_t errors
    uint64_t timed         # answers whose time was taken
    uint64_t us            # what they took, together

cdef enum Watched:
    RUNS = 1
    RATES = 2              # answers and errors of an interval are counted
    TIMES = 4              # likewise what they take

cdef class Upstream:
    # one instance of one service, while a table names it or a connection to it lives
    cdef readonly str service
    cdef readonly str address
    cdef readonly str version
    cdef Series series
    cdef sockaddr_storage sa
    cdef uint32_t sa_len   # 0: the name is not resolved (yet)
    cdef uint32_t in_flight
    cdef uint8_t down      # what speaks against it: bits of Mark
    cdef uint32_t warmth   # slow start: which part of its weight it gets, of FULL, while it is WARMING
    cdef Conduct conduct
    cdef object watch      # _outliers.Watch of its version
    cdef bint retired
    cdef bint large        # its last answer was: of the next one little is read with the head, the rest goes uncopied
    # settings, see snapshot.Connections
    cdef uint32_t max      # 0: no limit
    cdef uint32_t queue
    cdef uint32_t warm
    cdef uint32_t max_idle
    cdef uint64_t queue_ms
    cdef uint32_t max_requests     # at once; 0: no limit
    cdef uint32_t max_pending      # that wait, beside `queue`
    cdef Limits limits     # of its service; a shadow has its own
    cdef Breaker* whole    # where its connections and waiting requests count: of its service
    cdef Breaker* own      # and of its version
    cdef uint64_t idle_ms
    cdef int proxy         # version of the PROXY header; 0: none
    cdef public object origin      # _tls.Origin where it is called over TLS, else None
    cdef const char* tls_failed    # why its last handshake failed; NULL: it did not
    cdef uint8_t protocol  # see Protocol
    cdef uint32_t streams  # at once on one session, as far as the instance allows
    cdef Upstream shadow   # the same instance for copies of requests, or None: they have connections of their own
    # connections
    cdef uint32_t n_open   # all of them
    cdef uint32_t n_idle
    cdef Conn* idle        # last in, first out
    cdef Session* sessions # those of HTTP/2, of which n_open counts the connections too
    # requests that wait for one, first in, first out; for n_called of them, which have left the list, one is kept
    cdef uint32_t n_waiting
    cdef uint32_t n_called
    cdef Exchange* first
    cdef Exchange* last
    cdef readonly uint64_t requests
    cdef readonly uint64_t failures
    cdef readonly uint64_t connects

cdef class Retries:
    # what a service says of retries, for the requests that were decided by a table in which it says so
    cdef RetryPolicy policy
    cdef Exchange* first   # of these, those whose answer may come to be late, in order of when
    cdef Exchange* last
    cdef object alarm      # for the first, or one that was there before it; None: there is none

cdef class ServiceLive:
    # one service, while tables name it
    cdef readonly str name
    cdef dict settings     # what it says, as Table.settings
    cdef int worker
    cdef Faults faults     # None: nothing is injected
    cdef Slab slab         # for figures of this service; they go with it
    cdef Mirror mirror     # None: nothing is mirrored
    cdef readonly dict series              # version -> Series
    cdef dict left         # versions that tables do not name any more -> since when
    cdef Meter meter       # of the newest table

    cdef bind(self, Table table, int number)
    cdef Limits limits
    cdef ServiceMark mark  # None: there are no marks
    cdef uint64_t* panics  # requests that were given to instances that are out, see Decision.panic
    cdef uint64_t requests
    cdef uint64_t request_ms       # for a whole request; 0: as long as it takes
    cdef Retries retries   # of the newest table; a request has that of its own
    cdef Budget budget
    cdef uint64_t unaffordable     # retries that the budget had nothing for
    cdef uint64_t left_version     # retries that went to the stable version

    cpdef configure(self, dict settings)

cdef class Counter:
    cdef readonly uint64_t value

cdef class TableState:
    # a table bound to the live state of this worker
    cdef readonly Table table
    cdef Live live
    cdef PyObject** upstreams
    cdef PyObject** services               # ServiceLive by the table's number
    cdef list boxes
    cdef list service_boxes
    cdef PyObject** meters                 # Meter by the table's number of its service
    cdef list meter_boxes
    cdef PyObject** retries                # Retries, likewise
    cdef list retry_boxes
    cdef uint64_t** routes                 # requests by class of status, by number of route; NULL before the first
    cdef uint64_t** calls                  # likewise those of gRPC, by status; NULL before the first of all
    cdef list counters
    cdef Marks marks       # None: there are none
    cdef readonly dict service_settings    # name -> what its table says of it, as Table.settings
    cdef object log                        # _logs.Settings
    cdef ForwardingPolicy policy
    cdef bint decision_headers
    cdef int max_headers
    cdef size_t head_bytes
    cdef uint32_t uri_bytes
    cdef int client_connections
    cdef uint64_t header_ms
    cdef uint64_t client_idle_ms
    cdef uint64_t body_ms
    cdef uint64_t grace_ms

    cdef uint64_t* _route(self, int route, Slab own) noexcept
    cdef uint64_t* _calls(self, int route) noexcept

cdef bint same_service(Table a, int i, Table b, int k) noexcept
cdef bint same_settings(Table a, int i, Table b, int k) noexcept
cdef bint same_names(Table a, int i, Table b, int k) noexcept
cdef void record(Exchange* x, uint64_t now_us, Slab own) noexcept
