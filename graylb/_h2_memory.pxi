# Of `_h2`: memory.
#
# libnghttp2 takes and gives back some twenty small blocks for each stream, of many streams at a time: more than malloc keeps at
# hand, which then splits and joins. So blocks that it gives back are kept by size, of each as many as PARKED bytes hold.

cdef struct Kept:                 # at the head of each block, and of its alignment; in a cache line with its first bytes
    Kept* next
    size_t bin                     # its size by GRAINs, this included; 0: too large for any

cdef Kept* _bins[BINS + 1]
cdef size_t _parked[BINS + 1]

cdef void* _take(size_t n, void* user) noexcept:
    cdef size_t bin = (n + sizeof(Kept) + GRAIN - 1) // GRAIN
    cdef Kept* b
    if bin > BINS: bin = 0
    b = _bins[bin]
    if bin and b != NULL:
        _bins[bin] = b.next
        gl_foresee(b.next, 128)        # the next one will be wanted soon, and was used long ago
        _parked[bin] -= bin * GRAIN
        return b + 1
    b = <Kept*>(gl_aligned(bin * GRAIN) if bin else malloc(sizeof(Kept) + n))
    if b == NULL: return NULL
    b.bin = bin
    return b + 1

cdef void _give(void* p, void* user) noexcept:
    cdef Kept* b
    if p == NULL: return
    b = <Kept*>p - 1
    if b.bin == 0 or _parked[b.bin] + b.bin * GRAIN > PARKED: free(b)
    else:
        b.next = _bins[b.bin]
        _bins[b.bin] = b
        _parked[b.bin] += b.bin * GRAIN

cdef void* _take_zeroed(size_t n, size_t each, void* user) noexcept:
    cdef void* p
    if each and n > (<size_t>-1) // each: return NULL
    p = _take(n * each, user)
    if p != NULL: memset(p, 0, n * each)
    return p

cdef void* _resize(void* p, size_t n, void* user) noexcept:
    cdef Kept* b
    cdef void* q
    if p == NULL: return _take(n, user)
    b = <Kept*>p - 1
    if b.bin and n + sizeof(Kept) <= b.bin * GRAIN: return p
    if b.bin == 0 and n + sizeof(Kept) > BINS * GRAIN:
        b = <Kept*>realloc(b, sizeof(Kept) + n)
        return b + 1 if b != NULL else NULL
    q = _take(n, user)
    if q == NULL: return NULL
    # one that is too large for any bin shrinks, any other grows
    memcpy(q, p, b.bin * GRAIN - sizeof(Kept) if b.bin else n)
    _give(p, user)
    return q

cdef nghttp2_mem _pool = nghttp2_mem(NULL, _take, _give, _take_zeroed, _resize)
cdef nghttp2_mem* _mem = NULL if GL_H2_PLAIN_MALLOC else &_pool


# ---- heads on loan -------------------------------------------------------------------------------------------------
#
# libnghttp2 would copy each name and value of a head, byte by byte. So the whole text is copied once, and its frame, which may
# outlive the stream's Conn, keeps that until it is packed, or dropped.

cdef char* _lend(Framer* f, const char* text, size_t n) noexcept:
    """A copy that stays until `_packed` is told of the frame; NULL: out of memory."""
    cdef size_t size = sizeof(Lent) + n + SLACK
    cdef Lent* b = <Lent*>(malloc(size) if GL_H2_PLAIN_MALLOC else _take(size, NULL))
    cdef char* p = <char*>(b + 1)
    if b == NULL: return NULL
    memcpy(p, text, n)
    memset(p + n, 0, SLACK)
    b.previous = NULL
    b.next = f.lent
    if b.next != NULL: b.next.previous = b
    f.lent = b
    return p


cdef void _take_back(Framer* f, char* text) noexcept:
    cdef Lent* b = <Lent*>text - 1
    if b.previous != NULL: b.previous.next = b.next
    else: f.lent = b.next
    if b.next != NULL: b.next.previous = b.previous
    if GL_H2_PLAIN_MALLOC: free(b)
    else: _give(b, NULL)


cdef inline void _packed(Framer* f, const nghttp2_frame* frame) noexcept:
    """A HEADERS frame is in the output, or never will be."""
    cdef nghttp2_nv* nv = frame.headers.nva
    if frame.headers.nvlen == 0 or not nv.flags & UNCOPIED: return      # trailers
    if f.s.server: _take_back(f, <char*>nv.value - STATUS_AT)
    else: _take_back(f, <char*>(nv if nv.namelen == 7 else nv + 1).value)   # the method, which :authority may be before
