"""The floor under the engine: see _sockets.pyx."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from graylb._live cimport Conn, Peer, Pipe, Session, sockaddr_storage
from graylb._slab cimport Slab
from graylb._tls cimport TlsApi

cdef extern from * nogil:
    """
    #ifndef GRAYLB_SOCKETS
    #define GRAYLB_SOCKETS
    #include <errno.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    static inline uint64_t gl_now_ms(void) {
      struct timespec t; clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
      return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000; }
    static inline uint64_t gl_now_us(void) {
      struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
      return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000; }
    static inline ssize_t gl_send2(int fd, const char *a, size_t an, const char *b, size_t bn) {
      struct iovec v[2] = {{(void *)a, an}, {(void *)b, bn}}; struct msghdr m;
      memset(&m, 0, sizeof m); m.msg_iov = v; m.msg_iovlen = 2;
      return sendmsg(fd, &m, MSG_NOSIGNAL); }
    /* n bytes that will be wanted soon */
    static inline void gl_soon(const void *p, size_t n) {
      size_t i; for (i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + i, 1); }
    /* where its compiler sees how many bytes they are it takes `rep stos`, which is slow to begin */
    static inline void gl_clear(void *p, size_t n) { __asm__("" : "+r"(n)); memset(p, 0, n); }
    #endif
    """
    void gl_soon(const void*, size_t)
    void gl_clear(void*, size_t)
    uint64_t gl_now_ms()
    uint64_t gl_now_us()
    ssize_t gl_send2(int, const char*, size_t, const char*, size_t)
    ctypedef union epoll_data_t:
        void* ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_wait(int, epoll_event*, int, int)
    ssize_t send(int, const void*, size_t, int)
    ssize_t recv(int, void*, size_t, int)
    int shutdown(int, int)
    int close(int)
    enum: EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLL_CLOEXEC, MSG_NOSIGNAL, MSG_PEEK, SHUT_WR

cdef enum:
    HEADROOM = 64          # before received bytes: a chunk head is written there
    RECEIVE = 262144
    BLOCK = 262272         # HEADROOM + RECEIVE + slack
    SMALL = 8192           # a body piece up to this long is copied behind its head: one buffer, one send
    TICK_MS = 100
    WHEEL = 1024           # slots; later deadlines go round again
    SLICE = 131072         # bytes that one connection may move before others have their turn, where there are several
    LITTLE = 16384         # read with the head of an answer whose body will likely be spliced
    SPLICE_FROM = 49152    # so many bytes of a body still to come go through a pipe, uncopied
    SHAKE_US = 2000        # what handshakes may take of one batch

cdef struct Block:
    Block* next

cdef class Sockets:
    cdef Slab slab                 # for figures of the worker's own
    cdef object loop
    cdef object on_ready
    cdef object ticker
    cdef int ep_clients            # what has come from clients, and room to send to them
    cdef int ep_instances
    cdef epoll_event* events
    cdef char* memory              # a block; the one that is received into
    cdef char* buf                 # behind its headroom
    cdef Block* blocks             # spare ones
    cdef int n_blocks
    cdef Block* outs               # spare ones of SMALL_OUT bytes
    cdef int n_outs
    cdef Conn* conns               # spare ones, for streams
    cdef int n_conns
    cdef Pipe* pipes               # spare ones
    cdef int n_pipes               # spare ones and those in use
    cdef Conn* again               # first come, first served
    cdef Conn* again_last
    cdef int n_again
    cdef Conn* dead
    cdef Conn wheel[WHEEL]         # list heads
    cdef uint64_t now              # ms
    cdef uint64_t lag_us           # who has waited for longer is refused; 0: nobody is, and it is not measured
    cdef uint64_t behind_us        # for which what this batch brought may have waited before it
    cdef uint64_t batch_began      # us; like the next two only where lag is measured
    cdef uint64_t batch_ended
    cdef bint cut_short            # the last batch was full: what it left behind is in this one
    cdef void _measure(self, int n) noexcept
    cdef void _take(self, epoll_event* events, int n) noexcept
    cdef uint64_t ticked
    cdef size_t slice              # bytes that one connection may move in its turn, in this batch
    cdef size_t gulp               # bytes to receive at once
    cdef void _share(self, int n) noexcept
    cdef bint in_batch
    cdef bint kicked
    cdef bint closed
    cdef readonly int clients
    cdef readonly int upstream_connections
    cdef TlsApi* secure            # NULL: not in this build
    cdef uint64_t shaken           # us that this batch's handshakes have taken
    cdef readonly uint64_t handshakes
    cdef readonly uint64_t resumed
    cdef dict handshakes_failed    # reason -> how often, of clients

    cdef _open(self, loop)
    cdef _shut(self)
    cdef _kick(self)
    cdef Conn* _new(self, int fd, int side) noexcept
    cdef void _place(self, Conn* c) noexcept
    cdef void _unplace(self, Conn* c) noexcept
    cdef void _set_deadline(self, Conn* c, uint64_t when) noexcept
    cdef void _kill(self, Conn* c) noexcept
    cdef void _bury(self, Conn* c) noexcept
    cdef void _reap(self) noexcept
    cdef void _again(self, Conn* c) noexcept
    cdef int _keep(self, Conn* c, const char* p, size_t n) noexcept
    cdef void _set_trailers(self, Conn* c, const char* p, size_t n) noexcept
    cdef void _forget_trailers(self, Conn* c) noexcept
    cdef char* _small_out(self) noexcept
    cdef void _spare_out(self, char* p) noexcept
    cdef int _rest_of(self, Conn* c, const char* p, size_t n) noexcept
    cdef void _forget(self, Conn* c) noexcept
    cdef void _shake(self, Conn* c, uint32_t ev) noexcept
    cdef bint _accept_tls(self, Conn* c, object certificates) noexcept
    cdef bint _connect_tls(self, Conn* c, object origin, uint8_t alpn) noexcept
    cdef ssize_t _recv(self, Conn* c, char* p, size_t n) noexcept
    cdef bint _says_nothing(self, Conn* c) noexcept
    cdef void _say_end(self, Conn* c) noexcept
    cdef char* _block(self) noexcept
    cdef Pipe* _pipe(self) noexcept
    cdef void _drop_pipe(self, Pipe* p) noexcept
    cdef void _close_pipe(self, Pipe* p) noexcept
    cdef bint _can_splice(self, Conn* a, Conn* b, int64_t left) noexcept
    cdef ssize_t _splice(self, Conn* a, Conn* b, int64_t left) noexcept
    cdef int _send(self, Conn* c, const char* p, size_t n) noexcept
    cdef int _send_two(self, Conn* c, char* a, size_t an, const char* b, size_t bn) noexcept
    cdef void _writable(self, Conn* c) noexcept
    cdef ssize_t _receive(self, Conn* c, size_t* have, size_t most) noexcept
    cdef int _hold(self, Conn* c, const char* p, size_t n) noexcept
    # what happens to connections is for the floors above to say
    cdef void _event(self, Conn* c, uint32_t ev) noexcept
    cdef void _readable(self, Conn* c) noexcept
    cdef void _expired(self, Conn* c) noexcept
    cdef bint _connected(self, Conn* c) noexcept
    cdef void _progress(self, Conn* c) noexcept
    cdef void _sent(self, Conn* c) noexcept
    cdef void _broken(self, Conn* c) noexcept
    cdef void _gone(self, Conn* c) noexcept
    cdef void _batch_done(self) noexcept
    cdef void _ticked(self) noexcept
    cdef void _secured(self, Conn* c) noexcept
    cdef void _insecure(self, Conn* c) noexcept
    cdef int _push(self, Conn* c, const char* p, size_t n) noexcept
    cdef void _free_session(self, Session* s) noexcept

cdef int accept_from(int listener, Peer* peer) noexcept
cdef void local_address(int fd, uint8_t* packed, uint16_t* port) noexcept
cdef int connect_to(const sockaddr_storage* s, uint32_t n) noexcept
cdef int socket_error(int fd) noexcept
cdef bint exhausted() noexcept
cdef void reset_on_close(int fd) noexcept
