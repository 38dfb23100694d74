"""The mark in a request's head, without I/O: taken off what arrives, put onto what is decided and forwarded.

A mark that is believed stands in the head once for each of its names, and in baggage, when routes and rules look at it;
whatever else called itself one is out of sight by then: its header is dropped and has no name any more. `graylb.release.marks`
says the same in Python, and tests hold the two together.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from graylb._http1 cimport (DROP, EMIT, H_BAGGAGE, H_MARK, H_OTHER, MAX_HEADERS, Head, Header, gl_same, reset_head, scan_request)

import hmac
import ipaddress
import re
import time
from hashlib import sha256

cdef enum:
    PROBE_N = 14

cdef const char* PROBE = b"x-graylb-probe"     # of `graylb doctor`, see graylb.release.trails
SIGNATURE = re.compile(rb"([0-9]{1,12})\.([0-9a-f]{64})")


cdef bytes _named(list held, Name* name, str text):
    cdef bytes raw = text.encode()
    held.append(raw)
    name.p = PyBytes_AS_STRING(raw)
    name.n = <uint32_t>PyBytes_GET_SIZE(raw)
    return raw


cdef inline bint _alnum(unsigned char c) noexcept:
    return 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122


cdef bint _is_mark(const char* p, size_t n) noexcept:
    cdef size_t i
    if n == 0 or n > MAX_MARK or not _alnum(p[0]): return False
    for i in range(1, n):
        # . _ + / : @ -
        if not (_alnum(p[i]) or p[i] == 46 or p[i] == 95 or p[i] == 43 or p[i] == 47 or p[i] == 58 or p[i] == 64 or p[i] == 45):
            return False
    return True


cdef inline bint _blank(char c) noexcept:
    return c == 32 or c == 9


cdef inline void _trim(const char** p, const char** e) noexcept:
    while p[0] < e[0] and _blank(p[0][0]): p[0] += 1
    while e[0] > p[0] and _blank((e[0] - 1)[0]): e[0] -= 1


cdef inline int _hex(char c) noexcept:
    if 48 <= c <= 57: return c - 48
    if 65 <= c <= 70: return c - 55
    if 97 <= c <= 102: return c - 87
    return -1


cdef uint32_t _decoded(const char* p, const char* e, char* o, uint32_t room) noexcept:
    """A baggage value without its percent encoding, as far as there is room."""
    cdef uint32_t n = 0
    cdef char c
    while p < e:
        c = p[0]
        if c == 37 and e - p >= 3 and _hex(p[1]) >= 0 and _hex(p[2]) >= 0:
            c = <char>(_hex(p[1]) * 16 + _hex(p[2]))
            p += 2
        p += 1
        if n == room: return room
        o[n] = c
        n += 1
    return n


cdef inline bint _is(Header* x, Name* name) noexcept:
    return x.name_len == name.n and gl_same(x.name, name.p, name.n)


cdef inline void _hide(Header* x) noexcept:
    """Not forwarded, and nothing that looks for a name finds it."""
    x.use = DROP
    x.id = H_OTHER
    x.name_len = 0


cdef void _hide_all(Head* h, const char* name, uint32_t n) noexcept:
    cdef int i
    for i in range(h.count):
        if h.headers[i].name_len == n and gl_same(h.headers[i].name, name, n): _hide(&h.headers[i])


cdef class Marks:
    """How marks are read and believed, by a table: its meta["marks"]. files: secrets by their digests.

    Raises KeyError for a secret that is not among these.
    """

    def __cinit__(self, dict settings, dict files):
        cdef int i
        self.settings = settings
        self.held = []
        for i, text in enumerate(settings["headers"]): _named(self.held, &self.names[i], text)
        self.n_names = len(settings["headers"])
        self.lifetime = <uint64_t>(settings["memory"] * 1000)
        if settings["baggage"]: _named(self.held, &self.key, settings["baggage"])
        if settings["key"] is not None:
            self.secret = files[settings["key"]]
            _named(self.held, &self.signature, settings["signature"])
        networks = [ipaddress.ip_network(each, strict=False) for each in settings["trusted"]]
        self.n_networks = len(networks)
        self.networks = <Network*>calloc(len(networks) + 1, sizeof(Network))
        if self.networks == NULL: raise MemoryError
        for i, network in enumerate(networks):
            packed = network.network_address.packed
            self.networks[i].v4 = network.version == 4
            if network.version == 4: packed = b"\0" * 10 + b"\xff\xff" + packed
            memcpy(self.networks[i].address, PyBytes_AS_STRING(packed), 16)
            self.networks[i].bits = network.prefixlen + (96 if network.version == 4 else 0)

    def __dealloc__(self):
        free(self.networks)

    cdef bint is_trusted(self, const uint8_t* address, bint v4) noexcept:
        cdef int i
        cdef uint32_t whole, rest
        for i in range(self.n_networks):
            if self.networks[i].v4 != v4: continue
            whole = self.networks[i].bits >> 3
            rest = self.networks[i].bits & 7
            if memcmp(self.networks[i].address, address, whole) != 0: continue
            if rest and (self.networks[i].address[whole] ^ address[whole]) >> (8 - rest): continue
            return True
        return False

    cdef bint _signed(self, const char* mark, uint32_t n, const char* p, uint32_t size) noexcept:
        """Cold: only who sends a signature has it looked at."""
        found = SIGNATURE.fullmatch(PyBytes_FromStringAndSize(p, size))
        if found is None or int(found[1]) < time.time(): return False
        told = b"%d.%b" % (int(found[1]), PyBytes_FromStringAndSize(mark, n))
        return hmac.compare_digest(hmac.digest(self.secret, told, sha256).hex().encode(), found[2])

    cdef int take(self, Head* h, Carried* c, bint trusted, const uint8_t* address, bint v4) noexcept:
        """Takes every mark off the head and puts the one that is believed onto it -> bits of Arrival.

        trusted: the listener is not an edge. address: the client's; NULL: it has none. `c` is valid as long as the head is.
        A probe, whose answer tells of services, is taken off as a mark is, but for who signs his mark.
        """
        cdef Header* x
        cdef Header* probe = NULL
        cdef const char* at[MAX_MARK_NAMES]
        cdef uint32_t size[MAX_MARK_NAMES]
        cdef uint8_t seen[MAX_MARK_NAMES]
        cdef const char* signature = NULL
        cdef uint32_t signature_n = 0
        cdef char member[MAX_MARK + 1]
        cdef uint32_t member_n = 0
        cdef bint in_header = False, in_baggage = False, baggage = False
        cdef int i, k, signatures = 0, found = 0
        cdef const char* p
        cdef const char* e
        c.n = c.baggage_n = 0
        c.first = c.last = h.count
        for k in range(self.n_names): seen[k] = 0
        for i in range(h.count):
            x = &h.headers[i]
            if x.id == H_BAGGAGE:
                baggage = self.key.n > 0
                continue
            for k in range(self.n_names):
                if not _is(x, &self.names[k]): continue
                p = x.value
                e = p + x.value_len
                _trim(&p, &e)
                if not seen[k]:
                    at[k] = p
                    size[k] = <uint32_t>(e - p)
                elif size[k] != <uint32_t>(e - p) or memcmp(at[k], p, size[k]) != 0:
                    found |= A_CONFLICT
                    seen[k] = 2                      # two that differ are none
                seen[k] |= 1
                in_header = True
                _hide(x)
                break
            else:
                if self.signature.n and _is(x, &self.signature):
                    signatures += 1
                    signature = x.value
                    signature_n = x.value_len
                    _hide(x)
                elif x.name_len == PROBE_N and not trusted and gl_same(x.name, PROBE, PROBE_N): probe = x
        if probe != NULL: trusted = address != NULL and self.is_trusted(address, v4)
        if baggage and self._baggage(h, c, member, &member_n) < 0: in_baggage = True
        if not in_header and not in_baggage:
            if probe != NULL and not trusted: _hide_all(h, PROBE, PROBE_N)
            return 0
        found |= A_MARKED
        if in_header:
            for k in range(self.n_names):
                if seen[k]: break
            if in_baggage and (size[k] != member_n or memcmp(at[k], member, member_n) != 0): found |= A_CONFLICT
            p = at[k]
            c.n = size[k] if seen[k] == 1 else 0
        else:
            p = member
            c.n = member_n
        if not _is_mark(p, c.n): c.n = 0
        if c.n and not trusted and not (address != NULL and self.is_trusted(address, v4)):
            if signatures == 1:
                e = signature + signature_n
                _trim(&signature, &e)
                if self._signed(p, c.n, signature, <uint32_t>(e - signature)): found |= A_SIGNED
            if not found & A_SIGNED: c.n = 0
        if probe != NULL and not trusted and not found & A_SIGNED: _hide_all(h, PROBE, PROBE_N)
        if c.n:
            memcpy(c.mark, p, c.n)
            found |= A_KEPT
        if (c.n or c.baggage_n) and not give(self, None, h, c): found |= A_TOO_MANY
        return found

    cdef int _baggage(self, Head* h, Carried* c, char* member, uint32_t* n) noexcept:
        """Looks for the mark's member. -1: there is one: it is in `member`, and the others have gone from their headers into
        `c.baggage`, as far as there is room."""
        cdef Header* x
        cdef const char* p
        cdef const char* e
        cdef const char* s
        cdef const char* v
        cdef const char* z
        cdef const char* key_end
        cdef int i
        cdef bint found = False
        for i in range(h.count):
            if h.headers[i].id != H_BAGGAGE: continue
            if _find(&self.key, h.headers[i].value, h.headers[i].value + h.headers[i].value_len): found = True
        if not found: return 0
        c.at = 3 * MAX_MARK                          # what stands before is for the mark's own member
        c.baggage_n = c.at
        n[0] = 0
        found = False
        for i in range(h.count):
            x = &h.headers[i]
            if x.id != H_BAGGAGE: continue
            p = x.value
            e = p + x.value_len
            _hide(x)
            while p < e:
                s = <const char*>memchr(p, 44, e - p)
                if s == NULL: s = e
                v = _value(&self.key, p, s)
                if v == NULL:
                    z = s
                    _trim(&p, &z)
                    if z > p and c.baggage_n + (z - p) + 1 <= sizeof(c.baggage):
                        if c.baggage_n > c.at:
                            c.baggage[c.baggage_n] = 44
                            c.baggage_n += 1
                        memcpy(c.baggage + c.baggage_n, p, z - p)
                        c.baggage_n += <uint32_t>(z - p)
                elif not found:
                    found = True
                    z = <const char*>memchr(v, 59, s - v) if s > v else NULL
                    if z == NULL: z = s
                    _trim(&v, &z)
                    n[0] = _decoded(v, z, member, MAX_MARK + 1)   # one more than a mark may have
                p = s + 1
        return -1


cdef const char* _value(Name* key, const char* p, const char* e) noexcept:
    """Where the value of a baggage member begins, if it is that key's, else NULL."""
    cdef const char* v = <const char*>memchr(p, 61, e - p) if e > p else NULL
    cdef const char* z = v
    if v == NULL: return NULL
    _trim(&p, &z)
    return v + 1 if <size_t>(z - p) == key.n and memcmp(p, key.p, key.n) == 0 else NULL


cdef bint _find(Name* key, const char* p, const char* e) noexcept:
    cdef const char* s
    while p < e:
        s = <const char*>memchr(p, 44, e - p)
        if s == NULL: s = e
        if _value(key, p, s) != NULL: return True
        p = s + 1
    return False


cdef bint _add(Head* h, Name* name, int id, const char* value, uint32_t n) noexcept:
    cdef Header* x = &h.headers[h.count]
    if h.count == MAX_HEADERS: return False
    x.name = name.p
    x.name_len = name.n
    x.value = value
    x.value_len = n
    x.id = id
    x.use = EMIT
    h.count += 1
    return True


cdef bytes _BAGGAGE = b"baggage"


cdef bint give(Marks m, ServiceMark s, Head* h, Carried* c) noexcept:
    """Puts the mark, and the members of baggage that had to leave their header, onto the head, in place of what an earlier
    call put there. s: by the names of that service; None: by those that all have. False: there is no room."""
    cdef Name* names = &m.names[0]
    cdef int n = m.n_names
    cdef Name* key = &m.key
    cdef Name line
    cdef uint32_t first, size
    cdef int i, k
    cdef bint room = True
    if s is not None and s.n_names:
        names = &s.names[0]
        n = s.n_names
    if s is not None and s.own_key: key = &s.key
    for i in range(<int>c.first, <int>c.last): _hide(&h.headers[i])
    c.first = h.count
    if c.n:
        for k in range(n):
            # to rules on the mark the first of its headers is it, whatever that is called
            room = _add(h, &names[k], H_MARK if k == 0 else H_OTHER, c.mark, c.n) and room
        if key.n:
            if c.baggage_n == 0: room = _gather(h, c) and room
            size = key.n + 1 + c.n
            first = c.at - size - (c.baggage_n > c.at)
            memcpy(c.baggage + first, key.p, key.n)
            c.baggage[first + key.n] = 61
            memcpy(c.baggage + first + key.n + 1, c.mark, c.n)
            if c.baggage_n > c.at: c.baggage[c.at - 1] = 44
        else: first = c.at
    else: first = c.at
    if c.baggage_n > first:
        line.p = PyBytes_AS_STRING(_BAGGAGE)
        line.n = 7
        room = _add(h, &line, H_BAGGAGE, c.baggage + first, c.baggage_n - first) and room
    c.last = h.count
    return room


cdef bint _gather(Head* h, Carried* c) noexcept:
    """Moves the lines of baggage into `c.baggage`, for there is a member to be put before them. Long ones stay as they are."""
    cdef int i
    cdef Header* x
    c.at = c.baggage_n = 3 * MAX_MARK
    for i in range(h.count):
        x = &h.headers[i]
        if x.id != H_BAGGAGE or x.value_len == 0: continue
        if c.baggage_n + x.value_len + 1 > sizeof(c.baggage): continue
        if c.baggage_n > c.at:
            c.baggage[c.baggage_n] = 44
            c.baggage_n += 1
        memcpy(c.baggage + c.baggage_n, x.value, x.value_len)
        c.baggage_n += x.value_len
        _hide(x)
    return True


cdef class ServiceMark:
    """What marks are to one service: its settings' "marks"."""

    def __cinit__(self, dict settings):
        cdef int i
        self.held = []
        for i, text in enumerate(settings["headers"] or ()): _named(self.held, &self.names[i], text)
        self.n_names = len(settings["headers"] or ())
        self.own_key = settings["baggage"] is not None
        if settings["baggage"]: _named(self.held, &self.key, settings["baggage"])
        carry = settings["carry"]
        self.carries = carry is not False
        self.versions = None if isinstance(carry, bool) else [(v.encode(), mark.encode()) for v, mark in carry]
        self.stable = settings["stable"].encode()

    cdef bint begin(self, Carried* c, const char* version, uint32_t n) noexcept:
        """The mark of an unmarked request that this version was chosen for; False: it gets none."""
        cdef bytes known, mark
        cdef const char* p = version
        cdef uint32_t size = n
        if not self.carries: return False
        if self.versions is None:
            if <uint32_t>PyBytes_GET_SIZE(self.stable) == n and memcmp(PyBytes_AS_STRING(self.stable), version, n) == 0: return False
        else:
            for known, mark in self.versions:
                if <uint32_t>PyBytes_GET_SIZE(known) == n and memcmp(PyBytes_AS_STRING(known), version, n) == 0:
                    p = PyBytes_AS_STRING(mark)
                    size = <uint32_t>PyBytes_GET_SIZE(mark)
                    break
            else: return False
        if not _is_mark(p, size): return False       # a version's name that no header could carry back
        memcpy(c.mark, p, size)
        c.n = size
        return True


def arriving(dict settings, dict files, str role, bytes address, bytes head):
    """(what was found, the mark or None, the headers that are seen then), of a request's head; for tests.

    settings: as meta["marks"]. address: 16 bytes, IPv4 as ::ffff:a.b.c.d; empty: none. ValueError for what is no head.
    """
    cdef Marks m = Marks(settings, files)
    cdef Head h
    cdef Carried c
    cdef const char* p = PyBytes_AS_STRING(head)
    cdef bint v4 = address[:12] == b"\0" * 10 + b"\xff\xff"
    reset_head(&h, MAX_HEADERS)
    if scan_request(&h, p, p + len(head), MAX_HEADERS) <= 0: raise ValueError("not a head")
    found = m.take(&h, &c, role != "edge", <const uint8_t*>PyBytes_AS_STRING(address) if address else NULL, v4)
    headers = [(h.headers[i].name[:h.headers[i].name_len], h.headers[i].value[:h.headers[i].value_len])
               for i in range(h.count) if h.headers[i].name_len]
    return found, c.mark[:c.n] if c.n else None, headers
