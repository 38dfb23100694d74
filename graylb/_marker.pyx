"""The marks of one worker's requests: between a request's head and its decision, and between that and its instance."""

from graylb._fast cimport Service, Str, Table
from graylb._http1 cimport Head, Header, same_name
from graylb._live cimport Conn, Exchange, ServiceLive, TableState
from graylb._mark cimport A_CONFLICT, A_KEPT, A_MARKED, A_SIGNED, A_TOO_MANY, EDGE, INBOUND, Role, ServiceMark, give
from graylb._memory cimport Memory
from graylb._trace cimport Context_, read_parent


cdef class Marker:
    """Counters, and the mark of the request that is being decided: a head is decided and rewritten in one go.

    memory: the descriptor of the one of all workers, not needed any more afterwards; -1: one of its own.
    """

    def __init__(self, int memory=-1):
        self.memory = Memory(memory)

    cdef bint take(self, Conn* c, Head* h, TableState state, Role role) noexcept:
        """Before the decision. role: the listener's. False: the head has no room for what it should say."""
        cdef int found = state.marks.take(h, &self.carried, role != EDGE, c.peer.address if c.peer.text_len else NULL, c.peer.v4)
        self.edge = role == EDGE
        if found:
            if found & A_KEPT: self.kept += 1
            elif found & A_MARKED: self.stripped += 1
            if found & A_SIGNED: self.signed += 1
            if found & A_CONFLICT: self.conflicts += 1
        if found & A_TOO_MANY: return False
        if state.marks.lifetime == 0 or role == EDGE or (self.carried.n == 0 if role == INBOUND else found): return True
        return self._trace(c, h, state, role)

    cdef bint _trace(self, Conn* c, Head* h, TableState state, Role role) noexcept:
        """Remembers the mark of an inbound request by its trace, puts it onto outbound ones that have none. Else as `take`."""
        cdef Context_ parent
        cdef Header* at = NULL
        cdef uint64_t now = c.x.began_us // 1000
        cdef int i
        if c.x.traced: parent.trace_id = c.x.trace_id        # what the service gets to know, even if it begins here
        else:
            for i in range(h.count):
                if h.headers[i].name_len == 11 and same_name(h.headers[i].name, b"traceparent", 11):
                    if at != NULL: return True               # two are none
                    at = &h.headers[i]
            if at == NULL or not read_parent(at.value, at.value_len, &parent): return True
        if role == INBOUND:
            if self.memory.remember(parent.trace_id, self.carried.mark, self.carried.n, now, state.marks.lifetime):
                self.remembered += 1
            else: self.ambiguous += 1
            return True
        self.carried.n = self.memory.recall(parent.trace_id, now, self.carried.mark)
        if self.carried.n == 0: return True
        self.recalled += 1
        return give(state.marks, None, h, &self.carried)

    cdef bint give(self, Exchange* x, Head* h, TableState state, ServiceLive live) noexcept:
        """After it: a mark begins at the edge, and has the names that the service wants. False: as for `take`."""
        cdef Table t = state.table
        cdef const Service* s = &t.services[x.d.service]
        cdef const Str* version
        cdef ServiceMark own = live.mark
        if own is None: return True
        if self.carried.n == 0:
            if not self.edge: return True
            version = &(<const Str*>(t.base + s.versions))[t.instances[x.d.instance].version]
            if not own.begin(&self.carried, t.base + version.off, version.n): return True
            self.begun += 1
        elif own.n_names == 0 and not own.own_key: return True     # it is there already
        return give(state.marks, own, h, &self.carried)

    def figures(self):
        """kept: believed, of these `signed` for a signature; stripped: not believed; conflicts: two that differ; begun: by us;
        remembered, recalled: by traces; ambiguous: traces with two of them."""
        return {"kept": self.kept, "signed": self.signed, "stripped": self.stripped, "conflicts": self.conflicts,
                "begun": self.begun, "remembered": self.remembered, "recalled": self.recalled, "ambiguous": self.ambiguous}
