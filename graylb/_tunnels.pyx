"""Tunnels: WebSockets after the instance's 101, and the policy that ends them when their version loses its traffic."""

from libc.stdint cimport uint64_t
from graylb._hedges cimport Hedges
from graylb._fast cimport Table
from graylb._live cimport CLIENT, S_TUNNEL, Conn, Exchange, TableState, Upstream


cdef class Tunnels(Hedges):
    """The tunnels of one worker."""

    cdef void _begin_tunnel(self, Exchange* x, size_t head, char* rest, size_t n) noexcept:
        """The upstream has switched to WebSocket: its 101, `head` bytes in `heads`, goes on, and from here on bytes go through as
        they are."""
        cdef Conn* c = x.client
        cdef Conn* u = x.upstream
        x.response_begun = 1
        c.state = u.state = S_TUNNEL
        c.deadline = 0
        x.status = 101
        self.statuses[1] += 1
        self.tunnels += 1
        x.previous = NULL
        x.next = self.tunnel_list
        if x.next != NULL: x.next.previous = x
        self.tunnel_list = x
        self._set_deadline(u, self.now + x.idle_ms)
        if self._send_two(c, self.heads, head, rest, n) < 0:
            self._abort(c)
            return
        # what the client sent meanwhile has waited for this
        if c.readable or c.held_len: self._again(c)
        if u.readable: self._again(u)

    cdef void _tunnel(self, Conn* a, Conn* b) noexcept:
        """Moves what has arrived at one end of a tunnel to the other."""
        cdef size_t have, moved = 0
        cdef ssize_t n
        while not a.dead and b.out_len == 0:
            if moved >= self.slice:
                self._again(a)
                return
            n = self._receive(a, &have, self.gulp)
            if n == -2:
                self._abort(a)
                return
            moved += have
            if have:
                if a.side == CLIENT: a.x.bytes_in += have
                else: a.x.bytes_out += have
                self._set_deadline(a.x.upstream, self._idle_deadline(a.x))
                if self._send(b, self.buf, have) < 0:
                    self._abort(b)
                    return
            if n == 0:
                a.ended = 1
                if b.out_len: b.half_close = 1
                else: self._pass_end(b)
                return
            if n < 0 or not a.readable: return

    cdef bint _pass_end(self, Conn* b) noexcept:
        """The other end has said all: so do we to this one. False: that was the end of the tunnel."""
        cdef Exchange* x = b.x
        cdef Conn* c = x.client
        cdef Conn* u = x.upstream
        b.half_close = 0
        self._say_end(b)
        if not (c.ended and u.ended and c.out_len == 0 and u.out_len == 0): return True
        self._drop_exchange(x)
        self._kill(u)
        self._kill(c)
        return False

    cdef void _tunnel_closed(self, Exchange* x) noexcept:
        self.tunnels -= 1
        if x.previous != NULL: x.previous.next = x.next
        else: self.tunnel_list = x.next
        if x.next != NULL: x.next.previous = x.previous

    cdef void _cut(self, Exchange* x) noexcept:
        """Closes both ends of a tunnel in order; frames are the ends' affair, so none is put in."""
        cdef Conn* c = x.client
        cdef Conn* u = x.upstream
        self.tunnels_cut += 1
        self._drop_exchange(x)
        self._kill(u)
        self._kill(c)

    cdef _judge_tunnels(self, TableState former):
        """The policy of each service decides about the tunnels of a version that a new table takes the traffic from."""
        cdef Exchange* x = self.tunnel_list
        cdef Exchange* following
        while x != NULL:
            following = x.next
            policy, seconds = self._verdict(x, former)
            if policy == "keep":
                if x.cut_ms:
                    x.cut_ms = 0
                    self._set_deadline(x.upstream, self._idle_deadline(x))
            elif policy == "cut": self._cut(x)
            elif x.cut_ms == 0:
                x.cut_ms = self.now + <uint64_t>(seconds * 1000)
                self._set_deadline(x.upstream, self._idle_deadline(x))
            x = following

    cdef _verdict(self, Exchange* x, TableState former):
        """(policy, seconds) for one tunnel. Its version has lost its traffic when what chose it, the split or the rule of
        that name, does not choose it any more, or when its instance is gone."""
        cdef Upstream up = <Upstream>x.upstream.upstream
        cdef Table t = (<TableState>x.state).table
        settings = self.state.service_settings.get(up.service) or former.service_settings.get(up.service)
        keep = ("keep", 0.0)
        if settings is None or settings["tunnels"]["policy"] == "keep": return keep
        policy = settings["tunnels"]["policy"], settings["tunnels"]["seconds"]
        if up.retired: return policy
        rule = t._rule_name(x.d.service, x.d.rule) if x.d.rule >= 0 else None
        if x.d.fell_back: return keep                # it was never this version's traffic
        return keep if up.version in _chosen_by(self.state.service_settings.get(up.service), rule) else policy

    cdef uint64_t _idle_deadline(self, Exchange* x) noexcept:
        """When the exchange has stalled; for a tunnel that is to be cut, when that is, if it comes first."""
        cdef uint64_t when = self.now + x.idle_ms
        return x.cut_ms if x.cut_ms and x.cut_ms < when else when


def _chosen_by(settings, rule):
    """The versions that a service's split, or its rule of that name, sends requests to."""
    if settings is None: return ()
    traffic = settings.get("traffic") or {"split": (), "rules": {}}
    return traffic["split"] if rule is None else traffic["rules"].get(rule, ())
