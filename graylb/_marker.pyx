"""The marks of one worker's requests: between a request's head and its decision, and between that and its instance."""

from graylb._fast cimport Service, Str, Table
from graylb._http1 cimport Head
from graylb._live cimport Conn, Exchange, ServiceLive, TableState
from graylb._mark cimport A_CONFLICT, A_KEPT, A_MARKED, A_SIGNED, A_TOO_MANY, ServiceMark, give


cdef class Marker:
    """Counters, and the mark of the request that is being decided: a head is decided and rewritten in one go."""

    cdef bint take(self, Conn* c, Head* h, TableState state, bint edge) noexcept:
        """Before the decision. edge: the listener's role. False: the head has no room for what it should say."""
        cdef int found = state.marks.take(h, &self.carried, not edge, c.peer.address if c.peer.text_len else NULL, c.peer.v4)
        self.edge = edge
        if found:
            if found & A_KEPT: self.kept += 1
            elif found & A_MARKED: self.stripped += 1
            if found & A_SIGNED: self.signed += 1
            if found & A_CONFLICT: self.conflicts += 1
        return not found & A_TOO_MANY

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
        """kept: believed, of these `signed` for a signature; stripped: not believed; conflicts: two that differ; begun: by us."""
        return {"kept": self.kept, "signed": self.signed, "stripped": self.stripped, "conflicts": self.conflicts,
                "begun": self.begun}
