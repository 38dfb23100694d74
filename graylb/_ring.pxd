"""Lines on their way through shared memory: see _ring.pyx."""

cimport cython
from libc.stdint cimport uint64_t

cdef struct Shared:
    uint64_t head          # the writer's: bytes written, ever
    uint64_t base          # the position that is at the beginning of the room
    uint64_t room          # bytes; a multiple of a page
    uint64_t pad[5]
    uint64_t tail          # the reader's: bytes taken, ever; in a line of cache of its own

@cython.final
cdef class Ring:
    cdef int fd
    cdef int bell
    cdef Shared* shared
    cdef char* data        # the room
    cdef size_t room       # bytes of it
    cdef size_t fitted     # the size that it was made for
    cdef size_t size       # bytes that may be unread
    cdef size_t largest
    cdef size_t every      # bytes for each of which the bell rings
    cdef uint64_t head
    cdef size_t at         # of the head, in the room
    cdef uint64_t told     # the head when the bell rang
    cdef bint rang         # since the last tick
    cdef readonly uint64_t lines
    cdef readonly uint64_t dropped

    cdef char* place(self) noexcept
    cdef void wrote(self, char* e) noexcept
    cdef void ticked(self) noexcept
    cdef void flush(self) noexcept
    cdef void _fit(self) noexcept
    cdef void _ring_bell(self) noexcept
    cdef void _forget(self) noexcept

cdef class Reader:
    cdef int fd
    cdef Shared* shared
    cdef char* data
    cdef size_t room
