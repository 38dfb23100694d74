"""The slab: a worker's figures in memory that outlives it, and that the control process reads.

One writer, no locks. The control process makes a slab for each worker number (`create`), hands its descriptor over with the
role, and keeps it: a worker that is killed loses nothing, and its successor goes on counting in it. All values are u64.

    offset 0   SlabHeader, 64 bytes: magic, version, size, count of records, their end (_slab.pxd has the fields)
    offset 64  records, one behind the other, each `length` bytes long: 64 bytes of Record, `n` values, `text` bytes of JSON

A record is written first and counted then, by a release store, so a reader that has read the count finds it whole. Its
values are read one by one while they change: each is right by itself; exemplars have versions, so that a reader sees whole ones. When
nobody counts in a record any more, it says since when; some time later its place may become another series, and its `generation` is odd as long as that takes.

A series is asked for once, when something is configured; what is given is a pointer, and counting is `p[0] += 1`. Whatever
asks holds a `Slab`: the series of one made by `part` are given up with it. A slab that is full has one more record for each
name, with `(other)` in the place of all label values, in a part that is kept free for it: nothing goes uncounted.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

import os

import orjson

cdef extern from * nogil:
    """
    #include <sys/mman.h>
    #include <time.h>
    static void *gl_map(int fd, size_t n, int writes) {
      void *p = mmap(0, n, writes ? PROT_READ | PROT_WRITE : PROT_READ,
                     fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED, fd, 0);
      return p == MAP_FAILED ? 0 : p; }
    static void gl_unmap(const void *p, size_t n) { munmap((void *)p, n); }
    static uint64_t gl_seconds(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1; }
    #define gl_publish(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define gl_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define gl_read(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define gl_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #define gl_written() __atomic_thread_fence(__ATOMIC_RELEASE)
    """
    void* gl_map(int, size_t, int)
    void gl_unmap(const void*, size_t)
    uint64_t gl_seconds()
    void gl_publish(uint64_t*, uint64_t)
    uint64_t gl_acquire(const uint64_t*)
    uint64_t gl_read(const uint64_t*)
    void gl_fence()
    void gl_written()
    int __builtin_clzll(unsigned long long)

SIZE = 64 << 20            # bytes of address space; memory is taken only as it is written to
GONE_AFTER = 600           # seconds that a series is told of still when nobody counts in it any more
OTHER = "(other)"
KINDS = {COUNTER: "counter", GAUGE: "gauge", HISTOGRAM: "histogram", EXEMPLAR: "exemplar"}
BUCKETS = HISTOGRAM_BUCKETS

cdef uint64_t MAGIC = 0x42414c53424c5947   # "GYLBSLAB"


cdef int bucket(uint64_t us) noexcept:
    """Of a histogram: exact below 16 us, then 16 to each doubling, so a value is known within 3.2 %."""
    cdef int e
    if us < 16: return <int>us
    if us >> 36: us = (<uint64_t>1 << 36) - 1
    e = 63 - __builtin_clzll(us)
    return min((e - 3) * 16 + <int>((us >> (e - 4)) & 15), HISTOGRAM_BUCKETS - 1)


cdef void show(Exemplar* cells, uint64_t us, uint64_t now_us, const char* trace_id, const char* span_id) noexcept:
    """Makes a request the exemplar of times like its own. By a sequence lock (Boehm, "Can seqlocks get along with programming
    language memory models?", 2012): odd while it is written, also when its writer was killed in the middle."""
    cdef Exemplar* e = cells + (bucket(us) >> 4)
    e.version |= 1
    gl_written()
    e.us = us
    e.at_us = now_us
    memcpy(e.trace_id, trace_id, 32)
    memcpy(e.span_id, span_id, 16)
    gl_publish(&e.version, e.version + 1)


def bucket_of(uint64_t us):
    """The histogram bucket of a time in microseconds."""
    return bucket(us)


def bucket_end(int k):
    """The first time in microseconds that is beyond bucket k."""
    return k + 1 if k < 16 else <uint64_t>(16 + k % 16 + 1) << (k // 16 - 1)


def create(str name, size_t size=0):
    """A new slab: the descriptor of anonymous memory that lives as long as anybody has it open. Raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size or SIZE)
    except BaseException:
        os.close(fd)
        raise
    return fd


cdef bint _is_whole(const char* base, size_t size, size_t at) noexcept:
    """Whether a record begins here: a worker that ran wild is not to take its successor, or who reads, with it."""
    cdef uint32_t length
    if at + VALUES_AT > size: return False
    length = (<const Record*>(base + at)).length
    return length >= VALUES_AT and length % 64 == 0 and at + length <= size


def _second(pair):
    return pair[1]


@cython.no_gc_clear
cdef class Memory:
    """A slab as its one writer has it. fd: of `create`, not needed any more afterwards; -1: memory of one's own.

    Raises ValueError for what is no slab, OSError and MemoryError.
    """

    def __cinit__(self, int fd=-1, uint32_t worker=0, size_t size=0):
        self.known, self.users, self.spare = {}, {}, {}
        self.size = os.fstat(fd).st_size if fd >= 0 else size or <size_t>SIZE
        self.reserve = self.size // 16
        if self.size < 65536: raise ValueError(f"a slab of {self.size} bytes: expected at least 65536")
        self.scrap = <uint64_t*>calloc(HISTOGRAM_CELLS, sizeof(uint64_t))
        self.base = <char*>gl_map(fd, self.size, True)
        if self.scrap == NULL or self.base == NULL: raise MemoryError
        self.header = <SlabHeader*>self.base
        if self.header.magic == 0:
            self.header.version = VERSION
            self.header.size = self.size
            self.header.worker = worker
            self.header.end = SERIES_AT
            gl_publish(&self.header.magic, MAGIC)
        elif self.header.magic != MAGIC or self.header.version != VERSION or self.header.size != self.size:
            raise ValueError("not a slab of this version")
        self.predecessors = self.header.lives
        self._go_on()
        self.header.lives += 1

    def __dealloc__(self):
        if self.base != NULL: gl_unmap(self.base, self.size)
        free(self.scrap)

    cdef _go_on(self):
        """Where a former worker has left off, if there was one: nobody counts in any record yet."""
        cdef size_t at = SERIES_AT
        cdef uint64_t now = gl_seconds()
        cdef uint64_t i
        cdef Record* r
        for i in range(self.header.count):
            r = <Record*>(self.base + at)
            if not _is_whole(self.base, self.size, at) or VALUES_AT + 8 * <uint64_t>r.n + (0 if r.generation & 1 else r.text) > r.length:
                gl_publish(&self.header.count, i)  # it ran wild: what stands from here on is lost
                break
            if r.gone == 0: r.gone = now
            if r.kind == GAUGE: memset(self.base + at + VALUES_AT, 0, 8 * r.n)
            # it was killed while it made this one another series
            if r.generation & 1: r.text = 0
            else: self.known[r.kind, self._text(r)] = at
            self.spare.setdefault(r.length, {})[at] = r.gone
            at += r.length
        self.spare = {length: dict(sorted(found.items(), key=_second)) for length, found in self.spare.items()}
        self.header.end = at       # it may have been killed in between count and end

    cdef bytes _text(self, Record* r):
        return PyBytes_FromStringAndSize(<char*>r + VALUES_AT + 8 * r.n, r.text)

    cdef size_t find(self, int kind, bytes text, uint32_t n, bint last_resort) except? 1:
        """Where the record of a series is, which may be a new one; 0: there is no room."""
        cdef size_t at = self.known.get((kind, text), 0)
        cdef uint32_t length
        cdef Record* r
        if at == 0:
            length = (VALUES_AT + 8 * n + <uint32_t>PyBytes_GET_SIZE(text) + 63) & ~<uint32_t>63
            at = self._place(length, last_resort)
            if at == 0: return 0
            r = <Record*>(self.base + at)
            r.length = length
            r.kind = kind
            r.n = n
            r.text = <uint32_t>PyBytes_GET_SIZE(text)
            memset(self.base + at + VALUES_AT, 0, 8 * n)
            memcpy(self.base + at + VALUES_AT + 8 * n, PyBytes_AS_STRING(text), r.text)
            if at == self.header.end:
                r.generation = r.gone = 0
                self.header.end += length
                gl_publish(&self.header.count, self.header.count + 1)
            else: gl_publish(&r.generation, r.generation + 1)
            self.known[kind, text] = at
        r = <Record*>(self.base + at)
        if r.gone:
            self.spare[r.length].pop(at, None)
            r.gone = 0
        self.users[at] = self.users.get(at, 0) + 1
        return at

    cdef size_t _place(self, uint32_t length, bint last_resort):
        """Room for a record: one that has been gone for long, or behind the last one. 0: none."""
        cdef size_t at
        cdef Record* r
        cdef uint64_t now = gl_seconds()
        cdef dict spare = self.spare.get(length) or {}
        for at, gone in spare.items():
            if gone + GONE_AFTER > now: break
            del spare[at]
            r = <Record*>(self.base + at)
            if (r.generation & 1) == 0:
                self.known.pop((r.kind, self._text(r)), None)
                gl_publish(&r.generation, r.generation + 1)
                gl_fence()
            return at
        at = self.header.end
        return at if at + length <= self.size - (0 if last_resort else self.reserve) else 0

    cdef give_up(self, size_t at):
        """One of those who count in it does not any more."""
        cdef Record* r = <Record*>(self.base + at)
        left = self.users[at] - 1
        if left:
            self.users[at] = left
            return
        del self.users[at]
        r.gone = gl_seconds()
        self.spare.setdefault(r.length, {})[at] = r.gone


@cython.no_gc_clear        # nothing here makes a cycle, and its end needs all of it
cdef class Slab:
    """Whom to ask for a series. Those of the first `Slab` of a memory stay; those of a part go when it does."""

    def __init__(self, Memory memory=None):
        self.memory = memory if memory is not None else Memory()
        self.taken = set()

    cpdef Slab part(self):
        """For somebody who may go before the worker does, such as a service."""
        return Slab(self.memory)

    def __dealloc__(self):
        for at in self.taken: self.memory.give_up(at)

    cdef uint64_t* counter(self, str name, tuple labels) except NULL:
        """Of one series, to be added to; labels: pairs of str. The name is Prometheus's, with its `_total`."""
        return self._take(COUNTER, name, labels, None, (), 1)

    cdef uint64_t* gauge(self, str name, tuple labels) except NULL:
        return self._take(GAUGE, name, labels, None, (), 1)

    cdef uint64_t* histogram(self, str name, tuple labels) except NULL:
        """Of times: 512 cells by `bucket`, and the sum of all of them, in microseconds."""
        return self._take(HISTOGRAM, name, labels, None, (), HISTOGRAM_CELLS)

    cdef Exemplar* exemplars(self, str name, tuple labels) except NULL:
        """Of the histogram of this name and these labels, to be written by `show`."""
        return <Exemplar*>self._take(EXEMPLAR, name, labels, None, (), EXEMPLAR_CELLS)

    cdef uint64_t* several(self, int kind, str name, tuple labels, str dimension, tuple values) except NULL:
        """Neighbours that differ in one label, `dimension`: a cell for each of its values, in this order."""
        return self._take(kind, name, labels, dimension, values, <uint32_t>len(values))

    cdef uint64_t* _take(self, int kind, str name, tuple labels, str dimension, tuple values, uint32_t n) except NULL:
        cdef size_t at = self.memory.find(kind, orjson.dumps([name, labels, dimension, values]), n, False)
        if at == 0:
            self.memory.header.refused += 1
            rest = [(label, OTHER) for label, _ in labels]
            at = self.memory.find(kind, orjson.dumps([name, rest, dimension, values]), n, True)
        if at == 0: return self.memory.scrap if n <= HISTOGRAM_CELLS else NULL
        if at in self.taken: self.memory.users[at] -= 1      # one's own, asked for once more
        else: self.taken.add(at)
        return <uint64_t*>(self.memory.base + at + VALUES_AT)

    # for tests and whoever does not count in C

    def value(self, str name, tuple labels):
        """What a counter is at."""
        return self.counter(name, labels)[0]

    def add(self, str name, tuple labels, uint64_t n=1):
        """Counts n in a counter."""
        self.counter(name, labels)[0] += n

    def set(self, str name, tuple labels, uint64_t value):
        """Sets a gauge."""
        self.gauge(name, labels)[0] = value

    def observe(self, str name, tuple labels, uint64_t us):
        """One time, in microseconds, in a histogram."""
        cdef uint64_t* cells = self.histogram(name, labels)
        cells[bucket(us)] += 1
        cells[HISTOGRAM_BUCKETS] += us

    def show(self, str name, tuple labels, uint64_t us, uint64_t at_us, bytes trace_id, bytes span_id):
        """An exemplar of a histogram; ids: 32 and 16 hexadecimal digits."""
        if len(trace_id) != 32 or len(span_id) != 16: raise ValueError((trace_id, span_id))
        show(self.exemplars(name, labels), us, at_us, PyBytes_AS_STRING(trace_id), PyBytes_AS_STRING(span_id))

    def add_several(self, str name, tuple labels, str dimension, tuple values, int cell, uint64_t n=1):
        """Counts n in one of the counters that differ in one label."""
        if not 0 <= cell < len(values): raise IndexError(cell)
        self.several(COUNTER, name, labels, dimension, values)[cell] += n


cdef class Reader:
    """A slab as the control process has it. fd: of `create`, which stays the caller's. Raises OSError, MemoryError."""

    def __cinit__(self, int fd):
        self.texts = {}
        self.size = os.fstat(fd).st_size
        self.base = <const char*>gl_map(fd, self.size, False)
        if self.base == NULL: raise MemoryError
        self.header = <const SlabHeader*>self.base

    def __dealloc__(self):
        if self.base != NULL: gl_unmap(self.base, self.size)

    @property
    def refused(self):
        """How many series have found no room of their own."""
        return gl_read(&self.header.refused)

    @property
    def used(self):
        """Bytes that have been written to."""
        return gl_read(&self.header.end)

    def add_to(self, dict sums, uint64_t gone_after=GONE_AFTER):
        """Adds its series to those of other slabs: (kind, number of values, text) -> Sum. Left out: those gone for longer than that."""
        cdef size_t at = SERIES_AT
        cdef uint64_t i, generation, gone, count, now = gl_seconds()
        cdef const Record* r
        cdef Sum found
        if gl_acquire(&self.header.magic) != MAGIC: return   # its worker has not begun
        count = gl_acquire(&self.header.count)
        for i in range(count):
            if not _is_whole(self.base, self.size, at): return
            r = <const Record*>(self.base + at)
            at += r.length
            gone = gl_read(&r.gone)
            if gone and gone + gone_after <= now: continue
            generation = gl_acquire(&r.generation)
            if generation & 1: continue
            key = self._key_of(r, generation)
            if key is None: continue
            found = sums.get(key)
            if found is None: found = Sum(*key[:2])
            if found.add(r, generation): sums[key] = found

    cdef tuple _key_of(self, const Record* r, uint64_t generation):
        """None: meanwhile it is being made another series."""
        cdef uint32_t n = r.n, length = r.text, kind = r.kind
        cdef tuple key
        at = <size_t>(<const char*>r - self.base)
        known = self.texts.get(at)
        if known is not None and known[0] == generation: return known[1]
        if kind == 0 or kind > EXEMPLAR: return None
        if n != (HISTOGRAM_CELLS if kind == HISTOGRAM else EXEMPLAR_CELLS if kind == EXEMPLAR else n): return None
        if kind == EXEMPLAR and n != EXEMPLAR_CELLS: return None
        if VALUES_AT + 8 * <size_t>n + length > r.length: return None
        key = (kind, n, PyBytes_FromStringAndSize(<const char*>r + VALUES_AT + 8 * n, length))
        gl_fence()
        if gl_read(&r.generation) != generation: return None
        self.texts[at] = generation, key
        return key


cdef void copy_exemplars(const uint64_t* p, uint64_t* to) noexcept:
    """Those that are whole; the version of any other is 0."""
    cdef uint32_t i, k, cells = sizeof(Exemplar) // sizeof(uint64_t)
    cdef uint64_t version
    for i in range(EXEMPLARS):
        version = gl_acquire(p)
        for k in range(1, cells): to[k] = gl_read(p + k)
        gl_fence()
        to[0] = version if version & 1 == 0 and gl_read(p) == version else 0
        p += cells
        to += cells


cdef class Sum:
    """The values of one series, of all workers together."""

    def __cinit__(self, int kind, uint32_t n):
        self.kind, self.n = kind, n
        self.values = <uint64_t*>calloc(2 * n + 1, sizeof(uint64_t))
        if self.values == NULL: raise MemoryError
        self.fresh = self.values + n

    def __dealloc__(self):
        free(self.values)

    cdef bint add(self, const Record* r, uint64_t generation) noexcept:
        """False: meanwhile the record has become another series, and nothing was added."""
        cdef const uint64_t* p = <const uint64_t*>(<const char*>r + VALUES_AT)
        cdef uint32_t i
        if r.n != self.n: return False
        if self.kind == EXEMPLAR: copy_exemplars(p, self.fresh)
        else:
            for i in range(self.n): self.fresh[i] = gl_read(p + i)
        gl_fence()
        if gl_read(&r.generation) != generation: return False
        if self.kind == EXEMPLAR:
            self._newest()
            return True
        for i in range(self.n): self.values[i] += self.fresh[i]
        return True

    cdef void _newest(self) noexcept:
        """Of the exemplars of several workers the newest ones."""
        cdef Exemplar* mine = <Exemplar*>self.values
        cdef const Exemplar* other = <const Exemplar*>self.fresh
        cdef int i
        for i in range(EXEMPLARS):
            if other[i].version and (mine[i].version == 0 or other[i].at_us > mine[i].at_us): mine[i] = other[i]

    def exemplars(self):
        """[(microseconds, microseconds of CLOCK_MONOTONIC when that was, trace id, span id)], by rising times."""
        cdef const Exemplar* e = <const Exemplar*>self.values
        cdef int i
        if self.kind != EXEMPLAR: raise TypeError("no exemplars")
        return [(e[i].us, e[i].at_us, e[i].trace_id[:32].decode("ascii"), e[i].span_id[:16].decode("ascii"))
                for i in range(EXEMPLARS) if e[i].version]

    def __len__(self):
        return self.n

    def __getitem__(self, uint32_t i):
        if i >= self.n: raise IndexError(i)
        return self.values[i]

    def total(self):
        """Of a histogram: how many were observed."""
        cdef uint32_t i
        cdef uint64_t n = 0
        for i in range(min(self.n, HISTOGRAM_BUCKETS)): n += self.values[i]
        return n

    def up_to(self, list ends):
        """Of a histogram: for each of these buckets, rising, how many were observed in all buckets before it."""
        cdef uint32_t k = 0, end
        cdef uint64_t n = 0
        cdef list found = []
        for end in ends:
            while k < end and k < HISTOGRAM_BUCKETS:
                n += self.values[k]
                k += 1
            found.append(n)
        return found

    def cells(self):
        """Of a histogram: {bucket: how many} of those that have any."""
        cdef uint32_t i
        return {i: self.values[i] for i in range(min(self.n, HISTOGRAM_BUCKETS)) if self.values[i]}
