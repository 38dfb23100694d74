"""Lines on their way from one process to another through shared memory; without a copy, without locks, without waiting.

One process writes (`Ring`), one reads (`Reader`). What was written and not taken outlives the writer. The memory is a memfd:

    offset 0     u64 head, base, room; at 64 u64 tail (see Shared)
    offset PAGE  the room: a position p is at (p - base) % room of it

Both ends map the room twice, one behind the other, so what goes over its end still is one piece. `head` is stored behind the
bytes that it counts, `tail` behind their use (release, acquire): no line is seen before it is whole, none is written over
before it is taken. The writer moves `base`, and the size of the room, only while nothing is unread, and the reader looks at
them only while something is. So a reader that keeps up has the writer always begin anew, in memory that is warm.
The bell is a pipe: a byte when there is half of the size more to read; its end tells that the writer is gone.
"""

cimport cython
from libc.errno cimport EAGAIN, EINTR, EINVAL, errno
from libc.stdint cimport uint64_t
from libc.string cimport memcpy
from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.memoryview cimport PyMemoryView_FromMemory

import fcntl
import os

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <unistd.h>
    #define GL_PAGE 65536                                /* of any machine: offsets of mappings are multiples of pages */
    static void *gl_map_page(int fd) {
      void *p = mmap(0, GL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      return p == MAP_FAILED ? 0 : p; }
    static void gl_unmap_page(void *p) { munmap(p, GL_PAGE); }
    static void *gl_map_twice(int fd, size_t n) {
      char *p = mmap(0, 2 * n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) return 0;
      if (mmap(p, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, GL_PAGE) == MAP_FAILED
          || mmap(p + n, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, GL_PAGE) == MAP_FAILED) {
        munmap(p, 2 * n); return 0; }
      return p; }
    /* grows and never shrinks, but gives back what is too much */
    static int gl_resized(int fd, size_t n) {
      struct stat is;
      if (fstat(fd, &is)) return 0;
      if (is.st_size < (off_t)(GL_PAGE + n)) return !ftruncate(fd, GL_PAGE + n);
      fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, GL_PAGE + n, is.st_size);
      return 1; }
    static size_t gl_most(int fd) {
      struct stat is;
      return fstat(fd, &is) || is.st_size < GL_PAGE ? 0 : is.st_size - GL_PAGE; }
    static void gl_unmap_twice(void *p, size_t n) { munmap(p, 2 * n); }
    #define gl_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define gl_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    """
    enum: GL_PAGE
    void* gl_map_page(int)
    void gl_unmap_page(void*)
    void* gl_map_twice(int, size_t)
    void gl_unmap_twice(void*, size_t)
    uint64_t gl_load(uint64_t*)
    void gl_store(uint64_t*, uint64_t)
    ssize_t write(int, const void*, size_t)
    void* memrchr(const void*, int, size_t)
    int gl_resized(int, size_t)
    size_t gl_most(int)
    int close(int)

cdef enum:
    TELL_AT_MOST = 4194304  # bytes that are worth a wake-up, whatever the size


def create():
    """A new ring without room: the descriptor of what lives as long as anybody has it open. Raises OSError."""
    fd = os.memfd_create("graylb-lines", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, GL_PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # or whoever reads could be killed by whoever writes
    except BaseException:
        os.close(fd)
        raise
    return fd


@cython.final
cdef class Ring:
    """The writer's end. What finds no room is dropped and counted.

    largest: bytes that one line has at most; there is room for one more of them beside what `resize` says.
    """

    def __cinit__(self, size_t largest):
        self.fd = self.bell = -1
        self.largest = largest

    def __dealloc__(self):
        self._forget()

    cdef void _forget(self) noexcept:
        if self.data != NULL: gl_unmap_twice(self.data, self.room)
        if self.shared != NULL: gl_unmap_page(self.shared)
        if self.fd >= 0: close(self.fd)
        self.shared = NULL
        self.data = NULL
        self.room = self.fitted = 0
        self.fd = -1

    def open(self, int fd, int bell):
        """Takes the descriptors of a new ring and of the bell, which stay the caller's; the bell has to stay open. -1: what is
        written goes nowhere. Raises OSError."""
        self._forget()
        self.bell = bell
        self.head = self.told = self.at = 0
        if fd < 0: return
        os.set_blocking(bell, False)
        self.shared = <Shared*>gl_map_page(fd)
        if self.shared == NULL: raise OSError(errno, "the ring of lines cannot be mapped")
        self.fd = os.dup(fd)
        if self.size: self._fit()

    def resize(self, size_t size):
        """So many bytes may be unread, from when nothing is."""
        self.size = size
        self.every = min(size // 2, TELL_AT_MOST)
        if self.shared != NULL and self.fitted != size and self.head == gl_load(&self.shared.tail): self._fit()

    cdef void _fit(self) noexcept:
        """Makes the room what it should be, while nothing is unread. It stays as it is where there is no memory."""
        cdef size_t wanted = (self.size + self.largest + GL_PAGE - 1) // GL_PAGE * GL_PAGE
        cdef char* made
        if not gl_resized(self.fd, wanted): return
        made = <char*>gl_map_twice(self.fd, wanted)
        if made == NULL: return
        if self.data != NULL: gl_unmap_twice(self.data, self.room)
        self.data = made
        self.room = wanted
        self.fitted = self.size
        self.shared.room = wanted

    cdef char* place(self) noexcept:
        """Where a line may be written; NULL: it is dropped."""
        cdef uint64_t unread
        if self.shared != NULL and self.size:
            unread = self.head - gl_load(&self.shared.tail)
            if not unread:
                self.shared.base = self.head
                self.at = 0
                if self.fitted != self.size: self._fit()
            if unread < self.fitted: return self.data + self.at
        self.dropped += 1
        return NULL

    cdef void wrote(self, char* e) noexcept:
        """A line was written to that place, up to e."""
        cdef size_t n = e - (self.data + self.at)
        self.head += n
        self.at += n
        if self.at >= self.room: self.at -= self.room
        self.lines += 1
        gl_store(&self.shared.head, self.head)
        if self.head - self.told >= self.every: self._ring_bell()

    cdef void _ring_bell(self) noexcept:
        cdef char one = 0
        self.told = self.head
        self.rang = True
        if self.bell >= 0 and write(self.bell, &one, 1) < 0 and errno != EAGAIN and errno != EINTR:
            self._forget()                           # nobody reads any more
            self.bell = -1

    cdef void ticked(self) noexcept:
        """Ten times a second: `flush`, unless the bell rang for so much in between: what came after it is little, and waits."""
        if not self.rang: self.flush()
        self.rang = False

    cdef void flush(self) noexcept:
        """Tells the reader of all that was written."""
        if self.shared != NULL and self.head != self.told and self.head != gl_load(&self.shared.tail): self._ring_bell()

    def write(self, bytes line):
        """Puts in a line; for tests. Whether it found room. ValueError: it is longer than the largest."""
        cdef char* at
        if len(line) > self.largest: raise ValueError("longer than the largest")
        at = self.place()
        if at == NULL: return False
        memcpy(at, PyBytes_AS_STRING(line), len(line))
        self.wrote(at + len(line))
        return True

    def tell(self, bint tick=False):
        """`flush`, or `ticked`, for tests."""
        if tick: self.ticked()
        else: self.flush()


cdef class Reader:
    """The reader's end. fd: of a ring; stays the caller's. Raises OSError."""

    def __cinit__(self, int fd):
        self.fd = -1
        self.shared = <Shared*>gl_map_page(fd)
        if self.shared == NULL: raise OSError(errno, "the ring of lines cannot be mapped")
        self.fd = os.dup(fd)

    def __dealloc__(self):
        self.close()

    def unread(self, size_t most=-1):
        """Whole lines, of so many bytes at most if they are not longer: a view that is good until the next call of any of these.

        Raises OSError.
        """
        cdef uint64_t tail = self.shared.tail if self.shared != NULL else 0
        cdef uint64_t head = gl_load(&self.shared.head) if self.shared != NULL else 0
        cdef uint64_t room, n
        cdef char* at
        cdef char* end
        if head == tail: return memoryview(b"")
        room = self.shared.room
        # the writer serves strangers: what it says is looked at
        if not 0 < room <= gl_most(self.fd) or room % GL_PAGE or head - tail > room: raise OSError(EINVAL, "the lines are broken")
        if room != self.room:
            if self.data != NULL: gl_unmap_twice(self.data, self.room)
            self.room = 0
            self.data = <char*>gl_map_twice(self.fd, room)
            if self.data == NULL: raise OSError(errno, "the ring of lines cannot be mapped")
            self.room = room
        n = head - tail
        at = self.data + (tail - self.shared.base) % room
        if n > most:
            end = <char*>memrchr(at, 10, most)
            if end != NULL: n = end + 1 - at
        return PyMemoryView_FromMemory(at, <Py_ssize_t>n, PyBUF_READ)

    def taken(self, size_t n):
        """So many bytes of what was unread are done with."""
        gl_store(&self.shared.tail, self.shared.tail + n)

    def close(self):
        if self.data != NULL: gl_unmap_twice(self.data, self.room)
        if self.shared != NULL: gl_unmap_page(self.shared)
        if self.fd >= 0: close(self.fd)
        self.data = NULL
        self.shared = NULL
        self.room = 0
        self.fd = -1
