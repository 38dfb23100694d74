"""Puts a service's block into a table image: its offsets and numbers become those of the image (see graylb.blocks).

Every record is visited once. A set of strings may serve several conditions, so those seen are remembered.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING
from graylb._fast cimport Cond, Entry, Field, FieldSet, Group, Instance, Rule, Service, SetEntry, SplitItem, Str, Target, VersionBound

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object)
    unsigned char* PyUnicode_1BYTE_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)

# places in graylb.rulebook.OPS
cdef enum:
    EXACT = 0
    PREFIX = 1
    SUFFIX = 2
    REGEX = 3
    PRESENT = 4
    IN = 5
    PATH_PREFIX = 6
    CIDR = 7
    NUMBER = 8
    SEMVER = 9


cdef class Placing:
    cdef char* base                # of the image
    cdef uint32_t at               # where the block begins
    cdef uint32_t first_instance
    cdef uint32_t first_split
    cdef list patterns
    cdef set seen

    cdef inline uint32_t _to(self, uint32_t off) noexcept:
        return off + self.at if off else 0

    cdef void _text(self, Str* s) noexcept:
        s.off = self._to(s.off)

    cdef _fields(self, uint32_t off):
        cdef FieldSet* f = <FieldSet*>(self.base + off)
        cdef Field* field
        cdef uint32_t i
        f.fields = self._to(f.fields)
        f.names = self._to(f.names)
        field = <Field*>(self.base + f.fields)
        for i in range(f.n): self._text(&field[i].name)

    cdef _conds(self, uint32_t off, uint32_t n):
        cdef Cond* x = <Cond*>(self.base + off)
        cdef VersionBound* w
        cdef uint32_t i, k
        for i in range(n):
            if x[i].op == REGEX: x[i].a = self.patterns[x[i].a]
            elif x[i].op != PRESENT: x[i].a = self._to(x[i].a)
            if x[i].op == IN: self._strings(x[i].a, x[i].b)
            elif x[i].op == SEMVER:
                w = <VersionBound*>(self.base + x[i].a)
                for k in range(x[i].b): self._text(&w[k].pre)

    cdef _strings(self, uint32_t off, uint32_t mask):
        cdef SetEntry* s = <SetEntry*>(self.base + off)
        cdef uint32_t i
        if off in self.seen: return
        self.seen.add(off)
        for i in range(mask + 1):
            if s[i].used: s[i].off += self.at

    cdef _rules(self, uint32_t off, uint32_t n):
        cdef Rule* r = <Rule*>(self.base + off)
        cdef Group* g
        cdef uint32_t i, k
        for i in range(n):
            r[i].conds = self._to(r[i].conds)
            r[i].groups = self._to(r[i].groups)
            self._text(&r[i].name)
            self._conds(r[i].conds, r[i].n_conds)
            g = <Group*>(self.base + r[i].groups)
            for k in range(r[i].n_groups):
                g[k].conds = self._to(g[k].conds)
                self._conds(g[k].conds, g[k].n)

    cdef _index(self, uint32_t off, uint32_t mask):
        """An entry of several rules points at their list; one of a single rule is that rule's number."""
        cdef Entry* e = <Entry*>(self.base + off)
        cdef uint32_t i
        if mask == 0: return
        for i in range(mask + 1):
            if e[i].n > 1: e[i].value = self._to(e[i].value)

    cdef _targets(self, uint32_t off, uint32_t n):
        cdef Target* t = <Target*>(self.base + off)
        cdef uint32_t* members
        cdef uint32_t i, k
        for i in range(n):
            t[i].items = self._to(t[i].items)
            t[i].cells = self._to(t[i].cells)
            t[i].owners = self._to(t[i].owners)
            self._text(&t[i].label)
            if t[i].is_split: t[i].split_id += self.first_split
            else:
                t[i].first += self.first_instance
                if t[i].items:
                    members = <uint32_t*>(self.base + t[i].items)
                    for k in range(t[i].n): members[k] += self.first_instance

    cdef _service(self, Service* s):
        cdef Str* versions
        cdef uint32_t i
        self._text(&s.name)
        s.fields = self._to(s.fields)
        s.rules = self._to(s.rules)
        s.index = self._to(s.index)
        s.rest = self._to(s.rest)
        s.targets = self._to(s.targets)
        s.sticky = self._to(s.sticky)
        s.versions = self._to(s.versions)
        s.digest = self._to(s.digest)
        s.first_instance = self.first_instance
        self._text(&s.settings)
        self._fields(s.fields)
        self._rules(s.rules, s.n_rules)
        self._index(s.index, s.index_mask)
        self._targets(s.targets, s.n_targets)
        versions = <Str*>(self.base + s.versions)
        for i in range(s.n_versions): self._text(&versions[i])


def place(bytearray image, uint32_t at, uint32_t number, bytes record, bytes instances, uint32_t first_instance,
          uint32_t first_split, list patterns):
    """Fits the block that lies at `at` of the image to its place: (record of the service, records of its instances).

    number: of the service. patterns: the image's number of each pattern of the block.
    """
    cdef Placing p = Placing()
    cdef bytearray whole = bytearray(record)
    cdef bytearray members = bytearray(instances)
    cdef char* raw = members
    cdef Instance* each = <Instance*>raw
    cdef char* own = whole
    cdef Py_ssize_t i
    p.base = image
    p.at = at
    p.first_instance = first_instance
    p.first_split = first_split
    p.patterns = patterns
    p.seen = set()
    p._service(<Service*>own)
    for i in range(len(members) // <Py_ssize_t>sizeof(Instance)):
        p._text(&each[i].address)
        each[i].service = number
    return bytes(whole), bytes(members)


# ---- instances of a block --------------------------------------------------------------------------------------------

def arranged(tuple instances):
    """(instances: those of one version side by side, by its name, those of weight 0 behind all others;
    version -> (first, number) of those that have weight)."""
    cdef dict live = {}
    cdef dict idle = {}
    cdef dict runs = {}
    cdef dict into
    cdef list ordered = []
    cdef object x, version, found
    for x in instances:
        into = live if x.weight else idle
        version = x.version
        found = into.get(version)
        if found is None: into[version] = [x]
        else: (<list>found).append(x)
    for version in sorted(live):
        runs[version] = len(ordered), len(<list>live[version])
        ordered += <list>live[version]
    for version in sorted(idle): ordered += <list>idle[version]
    return ordered, runs


def alike(tuple a, tuple b):
    """How many at the beginning, and how many others at the end, are the very same objects in both."""
    cdef Py_ssize_t n = min(len(a), len(b)), start = 0, end = 0
    while start < n and a[start] is b[start]: start += 1
    while end < n - start and a[len(a) - 1 - end] is b[len(b) - 1 - end]: end += 1
    return start, end


def place_of(list instances, object x):
    """Where that very object is; -1 where it is not."""
    cdef Py_ssize_t i, n = len(instances)
    for i in range(n):
        if instances[i] is x: return i
    return -1


def look_up(tuple instances, dict seen, see):
    """(id of each instance -> what `see(instance)` said of it, the second elements of that in a row).

    seen: as returned the time before. What it has of an instance is not asked again.
    """
    cdef dict found = {}
    cdef list digests = []
    cdef object x, number, entry
    for x in instances:
        number = <Py_ssize_t><void*>x
        entry = seen.get(number)
        if entry is None: entry = see(x)
        found[number] = entry
        digests.append((<tuple>entry)[1])
    return found, b"".join(digests)


def members(list instances, dict versions, uint32_t at):
    """(addresses in a row, which will lie at `at` of the block; records of the instances).

    versions: name -> number; names that it has not are added.
    """
    cdef Py_ssize_t n = len(instances), i, size, used = 0, room = 32 * n
    cdef bytearray records = bytearray(n * sizeof(Instance))
    cdef bytearray texts = bytearray(room)
    cdef char* raw = records
    cdef Instance* each = <Instance*>raw
    cdef const char* text
    cdef bytes other
    cdef object x, address, version, number
    for i in range(n):
        x = instances[i]
        address = x.address
        if PyUnicode_IS_COMPACT_ASCII(address):
            text = <const char*>PyUnicode_1BYTE_DATA(address)
            size = PyUnicode_GET_LENGTH(address)
        else:
            other = (<str>address).encode("utf-8", "surrogateescape")
            text, size = PyBytes_AS_STRING(other), len(other)
        if used + size > room:
            room = 2 * (room + size)
            PyByteArray_Resize(texts, room)
        memcpy(PyByteArray_AS_STRING(texts) + used, text, size)
        version = x.version
        number = versions.get(version)
        if number is None: number = versions[version] = len(versions)
        each[i].address.off = at + <uint32_t>used
        each[i].address.n = <uint32_t>size
        each[i].version = number
        each[i].weight = x.weight
        used += size
    return bytes(texts[:used]), bytes(records)
