"""The accepting side: see _clients.pyx."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from graylb._limits cimport Watermarks
from graylb._live cimport Conn, TableState
from graylb._mark cimport Role
from graylb._pools cimport Pools

cdef enum:
    LOOK_EVERY_MS = 1000
    N_CODES = 40
    MAX_LISTENERS = 256

cdef struct Listening:
    int fd
    uint8_t proxy                  # its connections begin with a PROXY header
    uint8_t all_trusted            # whoever they are from; else those of `trusted`, see `_is_trusted`
    uint8_t h1                     # speaks HTTP/1
    uint8_t h2                     # speaks HTTP/2
    uint8_t health                 # calls of grpc.health.v1 are ours
    uint8_t secure                 # over TLS, with its `certificates`
    const char* name
    uint32_t name_n
    Role role                      # who is believed
    uint32_t bit                   # of its name in the current table; 0: no route names it

cdef class Clients(Pools):
    cdef TableState state
    cdef list listeners            # (name, trusted networks, its bytes) by number
    cdef list certificates         # _tls.Certificates or None, by number
    cdef Listening listening[MAX_LISTENERS]
    cdef int n_listening
    cdef int max_clients           # what the descriptors allow
    cdef uint32_t hand             # wheel slot where `_shed` goes on
    cdef bytes full                # the answer to a connection too many
    cdef bytes shedding            # and to one that comes when there is too much of something else
    cdef Watermarks marks          # of resident memory
    cdef uint8_t level             # see _limits
    cdef uint64_t looked           # ms; when that was found
    cdef uint64_t resident         # bytes; 0: nobody has looked
    cdef int statm                 # descriptor of what says so; -1: none
    cdef uint32_t descriptors      # percent
    cdef uint64_t most_sockets     # above which no more clients are taken
    cdef readonly uint64_t accepted
    cdef readonly uint64_t shed    # idle clients closed to make room for others
    cdef uint64_t errors[N_CODES]
    cdef uint64_t statuses[6]
    cdef uint64_t* unrouted        # the same in the slab, of what no service has
    cdef uint64_t* unrouted_errors
    cdef _open_doors(self)
    cdef _name_listeners(self)
    cdef _pause_accepting(self, int number)
    cdef bint _shed(self) noexcept
    cdef void _rotate(self, Conn* slot, Conn* first) noexcept
    cdef void _turn_away(self, int fd, bint secure, bint shedding) noexcept
    cdef uint64_t _sockets(self) noexcept
    cdef _set_marks(self, dict limits)
    cdef void _look(self) noexcept
    cdef bint _is_too_much(self, uint64_t now_us) noexcept
    cdef void _close_unused(self) noexcept
    cdef bint _is_trusted(self, Conn* c)
    cdef bint _proxy_header(self, Conn* c, size_t have, ssize_t n) noexcept
