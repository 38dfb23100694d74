# Of `_h2`: what a peer may make us do.

cdef void _touch(Framer* f) noexcept:
    if f.s.dirty: return
    f.s.dirty = 1
    f.hooks.dirty(f.engine, &f.s)


cdef int _punish(Framer* f, uint32_t error) noexcept:
    """Ends the connection. The answer, from a callback, ends the parsing of what was received with it."""
    if not f.broken:
        f.broken = f.s.ending = 1
        nghttp2_session_terminate_session(f.ng, error)
        _touch(f)
    return NGHTTP2_ERR_CALLBACK_FAILURE


cdef void _refill(Framer* f) noexcept:
    cdef uint64_t now = gl_h2_ms()
    cdef int64_t dt = <int64_t>(now - f.refilled)
    if dt <= 0: return
    f.refilled = now
    if dt > RESET_MS: dt = RESET_MS
    f.resets = min(f.resets + dt * f.limits.resets, <int64_t>f.limits.resets * RESET_MS)
    f.control = min(f.control + dt * f.limits.control, <int64_t>f.limits.control * CONTROL_MS)


cdef inline void _earn(Framer* f, int n) noexcept:
    f.control = min(f.control + n * CONTROL_MS, <int64_t>f.limits.control * CONTROL_MS)


cdef inline int _control(Framer* f) noexcept:
    f.control -= CONTROL_MS
    return 0 if f.control >= 0 else _punish(f, H2_ENHANCE_YOUR_CALM)


cdef inline int _reset(Framer* f) noexcept:
    """A stream was reset by a client, or for its fault; an instance may reset as it likes."""
    if not f.s.server: return 0
    f.resets -= RESET_MS
    return 0 if f.resets >= 0 else _punish(f, H2_ENHANCE_YOUR_CALM)


cdef inline int32_t* _over(Framer* f, int32_t stream) noexcept:
    return &f.over[stream >> 1 & (OVER - 1)]


cdef inline bint _is_late(Framer* f, const uint8_t* head) noexcept:
    """Whether a client's frame goes on with a stream that it has ended (RFC 9113 section 5.1). libnghttp2 takes that for what was under
    way when a stream was reset here, and tells nobody."""
    cdef int32_t stream = _stream_of(head)
    if head[3] == NGHTTP2_RST_STREAM: _over(f, stream)[0] = stream
    return head[3] <= NGHTTP2_HEADERS and stream and _over(f, stream)[0] == stream


cdef inline int32_t _stream_of(const uint8_t* head) noexcept:
    return (head[5] & 127) << 24 | head[6] << 16 | head[7] << 8 | head[8]


cdef int _in_turn(Framer* f, int32_t stream) noexcept:
    """0 unless a client's HEADERS come for a stream that it has passed over (RFC 9113 section 5.1.1): libnghttp2 drops those, for it
    takes them for what follows a stream that it has forgotten."""
    if not stream & 1: return 0
    if stream > f.highest:
        if stream > f.highest + 2:
            f.gap_from = f.highest + 2
            f.gap_to = stream - 2
        f.highest = stream
        return 0
    return _punish(f, H2_PROTOCOL_ERROR) if f.gap_from <= stream <= f.gap_to else 0
