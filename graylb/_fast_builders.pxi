# Of `_fast`: what graylb.table needs to agree with the matcher.

def xxh64(bytes data, uint64_t seed=0):
    """XXH64."""
    return gl_xxh64(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), seed)


def fnv1a(bytes data):
    """64-bit FNV-1a, as route prefixes are hashed."""
    cdef uint64_t h = GL_FNV_BASIS
    cdef Py_ssize_t i
    cdef const char* p = PyBytes_AS_STRING(data)
    for i in range(PyBytes_GET_SIZE(data)): h = (h ^ <unsigned char>p[i]) * GL_FNV_PRIME
    return h


def name_hash(bytes name):
    """Hash of a header, cookie or query name."""
    return gl_name_hash(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


def sieve(bytes name):
    """The bit of FieldSet.sieve that a header name sets."""
    return gl_sieve(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


def alias_cells(list weights):
    """Alias table (Vose 1991) over positive weights -> 8 bytes a cell. ValueError when empty or a weight is not positive.

    Integers below 2**31 are used exactly; others are scaled so that the heaviest is 2**31 - 1 (relative error 2**-31).
    """
    cdef Py_ssize_t n = len(weights), i, ns = 0, nl = 0, s, l
    cdef uint64_t total = 0
    if n == 0: raise ValueError("an alias table needs an entry")
    top = max(weights)
    exact = top < 2 ** 31 and all(float(w).is_integer() for w in weights)
    cdef uint64_t* p = <uint64_t*>malloc(n * sizeof(uint64_t))
    cdef uint32_t* small = <uint32_t*>malloc(n * sizeof(uint32_t))
    cdef uint32_t* large = <uint32_t*>malloc(n * sizeof(uint32_t))
    cdef bytes out = PyBytes_FromStringAndSize(NULL, n * sizeof(Cell))
    cdef Cell* t = <Cell*>PyBytes_AS_STRING(out)
    try:
        if p == NULL or small == NULL or large == NULL: raise MemoryError
        for i in range(n):
            if not weights[i] > 0: raise ValueError(f"weight {weights[i]!r}: expected a positive number")
            p[i] = int(weights[i]) if exact else max(1, round(weights[i] / top * (2 ** 31 - 1)))
            total += p[i]
        for i in range(n):
            p[i] *= n
            if p[i] < total: small[ns] = i; ns += 1
            else: large[nl] = i; nl += 1
        while ns and nl:
            ns -= 1
            s = small[ns]
            l = large[nl - 1]
            t[s].threshold = <uint32_t>(<double>p[s] / <double>total * 4294967296.0)
            t[s].alias = l
            p[l] -= total - p[s]
            if p[l] < total:
                nl -= 1
                small[ns] = l
                ns += 1
        # integers leave no remainder: what is left are full columns
        while nl: nl -= 1; t[large[nl]].threshold = NONE32; t[large[nl]].alias = large[nl]
        while ns: ns -= 1; t[small[ns]].threshold = NONE32; t[small[ns]].alias = small[ns]
    finally:
        free(p); free(small); free(large)
    return out


def string_set(list values, uint32_t base):
    """Hash set of distinct byte strings -> (SetEntry table, mask, string bytes); `base` is where the strings will lie."""
    cdef Py_ssize_t n = len(values)
    cdef uint32_t mask = 3, k, off = base
    cdef bytes b
    while mask < 2 * n: mask = mask * 2 + 1
    cdef bytes out = bytes((mask + 1) * sizeof(SetEntry))
    cdef SetEntry* t = <SetEntry*>PyBytes_AS_STRING(out)
    cdef uint32_t hash
    for b in values:
        hash = <uint32_t>gl_xxh64(PyBytes_AS_STRING(b), PyBytes_GET_SIZE(b), 0)
        k = hash & mask
        while t[k].used: k = (k + 1) & mask
        t[k].hash = hash
        t[k].off = off
        t[k].n = <uint32_t>PyBytes_GET_SIZE(b)
        t[k].used = 1
        off += t[k].n
    return out, mask, b"".join(values)


def seal(bytearray image):
    """Writes the checksum of a finished image and returns it as bytes."""
    cdef char* p = image
    (<ImageHeader*>p).size = <uint32_t>len(image)
    (<ImageHeader*>p).checksum = gl_xxh64(p + 16, len(image) - 16, 0)
    return bytes(image)


SIZES = {
    "ImageHeader": sizeof(ImageHeader), "FieldSet": sizeof(FieldSet), "Field": sizeof(Field),
    "NameEntry": sizeof(NameEntry), "Entry": sizeof(Entry), "Cond": sizeof(Cond), "SetEntry": sizeof(SetEntry),
    "Network": sizeof(Network), "NumberBound": sizeof(NumberBound), "VersionBound": sizeof(VersionBound),
    "Group": sizeof(Group), "Rule": sizeof(Rule), "Target": sizeof(Target), "SplitItem": sizeof(SplitItem),
    "Cell": sizeof(Cell), "Column": sizeof(Column), "Instance": sizeof(Instance), "Service": sizeof(Service), "Route": sizeof(Route),
    "Node": sizeof(Node), "Str": sizeof(Str),
}
