"""What the limits of a service say to a request: before it goes to an instance, and at each instance.

`_admit` is asked once for each request, `_bars` at each attempt. The counts are those of `_limits`: requests of a service and of
a version from `_admit` to the end of the exchange, of an instance as long as it has one (`in_flight`), connections as
long as they are open, pending requests as long as they wait.
"""

from libc.stdint cimport uint32_t
from graylb._exchanges cimport Exchanges
from graylb._fast cimport Instance, Table, Value
from graylb._limits cimport L_CONNECTIONS, L_NONE, L_PENDING, L_REQUESTS, Breaker, begin, refuses
from graylb._live cimport CALLED, Exchange, ServiceLive, TableState, Upstream
from graylb._streams cimport open_session

from graylb.errors import BY_REASON

cdef enum:
    LOOKED_AT = 256        # instances that are asked for an unused connection

cdef int E_RATE_LIMITED = BY_REASON["rate-limited"].code
cdef int E_CIRCUIT_OPEN = BY_REASON["circuit-open"].code


cdef class Admission(Exchanges):
    """The limits of one worker's services."""

    cdef int _admit(self, Exchange* x, const Value* values) noexcept:
        """The error that a request of a service with limits is answered with; -1: none, and it counts from here on."""
        cdef TableState state = <TableState>x.state
        cdef ServiceLive service = <ServiceLive>state.services[x.d.service]
        cdef Breaker* whole = &service.limits.breaker
        cdef Breaker* own = (<Upstream>state.upstreams[x.d.instance]).own
        cdef int why = refuses(whole)
        if why:
            whole.limited[why] += 1
            return E_CIRCUIT_OPEN
        why = refuses(own)
        if why:
            own.limited[why] += 1
            return E_CIRCUIT_OPEN
        if service.limits.n_rates:
            self.retry_after = service.limits.wait_ns(values, x.d.rule, x.began_us)
            if self.retry_after:
                self.retry_after = (self.retry_after + 999999999) // 1000000000
                return E_RATE_LIMITED
        begin(whole)
        begin(own)
        x.of_service = whole
        x.of_version = own
        return -1

    cdef int _bars(self, Exchange* x, Upstream up) noexcept:
        """What keeps an instance from getting this request now; L_NONE: nothing does."""
        cdef Breaker* whole = up.whole
        cdef Breaker* own = up.own
        cdef bint at_whole, at_own
        if up.max_requests and up.in_flight >= up.max_requests:
            own.limited[L_REQUESTS] += 1
            return L_REQUESTS
        at_whole = whole.max_connections and whole.connections >= whole.max_connections
        at_own = own.max_connections and own.connections >= own.max_connections
        if not at_whole and not at_own: return L_NONE
        if (open_session(up) != NULL if x.h2 else up.idle != NULL) or self._make_room(x, at_own): return L_NONE
        (own if at_own else whole).limited[L_CONNECTIONS] += 1
        return L_CONNECTIONS

    cdef int _bars_waiting(self, Upstream up) noexcept:
        """Likewise what keeps it from having this request wait."""
        cdef Breaker* whole = up.whole
        cdef Breaker* own = up.own
        if whole.max_pending and whole.pending >= whole.max_pending: whole.limited[L_PENDING] += 1
        elif (own.max_pending and own.pending >= own.max_pending) or (up.max_pending and up.n_waiting + up.n_called >= up.max_pending):
            own.limited[L_PENDING] += 1
        else: return L_NONE
        return L_PENDING

    cdef bint _make_room(self, Exchange* x, bint same_version) noexcept:
        """Closes an unused connection of another instance, for this request to have one. False: none was found."""
        cdef TableState state = <TableState>x.state
        cdef Table t = state.table
        cdef const Instance* own = &t.instances[x.d.instance]
        cdef uint32_t n = t.header.n_instances
        cdef uint32_t i = x.d.instance
        cdef int looked
        cdef Upstream up
        for looked in range(LOOKED_AT):
            i += 1
            if i == n or t.instances[i].service != own.service:      # a service's instances are neighbours: round to its first
                i = x.d.instance
                while i and t.instances[i - 1].service == own.service: i -= 1
            if i == <uint32_t>x.d.instance: return False
            up = <Upstream>state.upstreams[i]
            if up.idle == NULL or (same_version and t.instances[i].version != own.version): continue
            self._kill(up.idle)
            return True
        return False
