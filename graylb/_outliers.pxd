"""Outlier ejection and slow start: see _outliers.pyx."""

from libc.stdint cimport uint32_t, uint64_t
from graylb._live cimport Upstream
from graylb._slab cimport Slab

cdef enum:
    NO_ANSWER = 1000       # in the place of a status: this and the code of the error that there was instead of an answer

cdef enum Reason:
    GATEWAY = 0            # so many gateway failures in a row
    ERRORS                 # so many 5xx in a row
    RATE                   # the success rate of an interval
    SLOW                   # the time of an interval
    REASONS

cdef class Watch:
    # one version of one service: who belongs to it now, and its settings. Times in ms
    cdef readonly str service
    cdef readonly str version
    cdef list members      # Upstreams that have a weight
    cdef uint32_t gateway_limit        # 0: off
    cdef uint32_t error_limit
    cdef dict success_rate             # None: off
    cdef dict latency
    cdef uint64_t interval
    cdef uint64_t base
    cdef uint64_t longest
    cdef uint32_t most_percent
    cdef uint64_t began                # the interval
    cdef uint64_t window               # slow start; 0: off
    cdef double aggression
    cdef double least                  # part
    cdef uint64_t* ejections[REASONS]  # in the slab; NULL: there was none
    cdef uint64_t* ejected
    cdef uint64_t spared               # that the share forbade
    cdef Slab slab                     # its figures go with it

    cdef configure(self, dict outliers, dict slow_start)
    cdef int watched(self)
    cdef bint may_eject(self, Upstream u)
    cdef uint32_t part(self, uint64_t age) noexcept

cdef class Outliers:
    cdef Slab slab
    cdef dict watches      # service -> version -> Watch
    cdef dict out          # the ejected -> why, in words
    cdef set starting      # those that are warming
    cdef uint64_t look_at  # ms; when something may end
    cdef bint changed      # marks have: they are to be counted anew
    cdef bint news         # who is ejected has changed

    cdef follow(self, dict service, list upstreams, list weighted, bint first, uint64_t now)
    cdef forget(self, Upstream u)
    cdef void saw(self, Upstream u, int status, uint64_t us, uint64_t now) noexcept
    cdef void look(self, uint64_t now) noexcept
    cdef void well(self, Upstream u, uint64_t now) noexcept
    cdef _failed(self, Upstream u, int status, uint64_t now)
    cdef bint _eject(self, Upstream u, int reason, str why, uint64_t now)
    cdef _return(self, Upstream u, uint64_t now)
    cdef _judge(self, Watch w, uint64_t now)
    cdef _count(self, Watch w)
    cdef _warm(self, Upstream u, uint64_t now)
    cdef list told(self, uint64_t now)
    cdef list counted(self)

cdef inline bint due(Outliers o, uint64_t now) noexcept:
    return now >= o.look_at
