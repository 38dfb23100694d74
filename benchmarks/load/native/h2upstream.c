/* An HTTP/2 upstream for benchmarks, cleartext with prior knowledge: one process per version, one epoll, libnghttp2.
 *
 *   h2upstream VERSION        prints its port; serves until killed
 *
 *   …/N      any method: a body of N bytes once the request's own body has arrived. Asked with content-type
 *            application/grpc, it is one gRPC message, and trailers with grpc-status 0 follow
 *   /hold    a head, and then nothing
 *   /head    the request's fields as they came in, "name: value" a line, as the body
 *   /count   "requests R bodies B connections C" as upstream.c has it
 *
 * It reads all that is there, then writes all that there is to say with as few sends as the buffer allows. It dies on
 * what it does not do, so that a benchmark cannot go on with wrong figures. */
#include "common.h"

#include <nghttp2/nghttp2.h>

#define FIELDS_MAX 16384
#define BODY_MAX (4ull << 30)
#define OUT_MAX (256 << 10)
#define WINDOW (1 << 20)
#define STREAMS 1000

struct stream {
    uint64_t left;       /* of the answer's body */
    char *own;           /* an answer made for this request only */
    size_t taken;        /* of it */
    size_t held;         /* bytes of `fields` */
    int grpc, begun, head, hold;
    char path[256];
    char *fields;        /* of /head */
};

struct connection {
    int fd, writing;
    nghttp2_session *session;
    size_t out_off, out_len;
    uint8_t out[OUT_MAX];
};

static const char *version;
static int poller;
static nghttp2_session_callbacks *callbacks;
static uint64_t requests, bodies, connections;
static uint8_t scratch[OUT_MAX];

#define FIELD(name, value, length) \
    {(uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, (length), NGHTTP2_NV_FLAG_NONE}

static int is(const uint8_t *text, size_t length, const char *wanted) {
    return length == strlen(wanted) && !memcmp(text, wanted, length);
}

static int begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *context) {
    (void)context;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    struct stream *s = calloc(1, sizeof *s);
    if (!s) die("malloc");
    return nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, s);
}

static int header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                  const uint8_t *value, size_t length, uint8_t flags, void *context) {
    (void)flags, (void)context;
    struct stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (!s || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    if (is(name, name_length, ":path")) {
        if (length >= sizeof s->path) errno = 0, die("a path this long");
        memcpy(s->path, value, length);
        if (!strcmp(s->path, "/head") && !(s->fields = malloc(FIELDS_MAX))) die("malloc");
    } else if (is(name, name_length, ":method")) {
        s->head = is(value, length, "HEAD");
    } else if (is(name, name_length, "content-type")) {
        s->grpc = is(value, length, "application/grpc");
    }
    if (s->fields && s->held + name_length + length + 3 < FIELDS_MAX)
        s->held += (size_t)sprintf(s->fields + s->held, "%.*s: %.*s\n", (int)name_length, (const char *)name,
                                   (int)length, (const char *)value);
    return 0;
}

static int chunk(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t length,
                 void *context) {
    (void)session, (void)flags, (void)id, (void)data, (void)context;
    bodies += length;
    return 0;
}

static ssize_t body(nghttp2_session *session, int32_t id, uint8_t *to, size_t room, uint32_t *flags,
                    nghttp2_data_source *source, void *context) {
    (void)context;
    struct stream *s = source->ptr;
    if (s->hold) return NGHTTP2_ERR_DEFERRED;
    size_t length = s->left < room ? (size_t)s->left : room;
    if (s->own) {
        memcpy(to, s->own + s->taken, length);
        s->taken += length;
    } else {
        memset(to, 'x', length);
    }
    if (s->grpc && !s->begun && length >= 5) { /* the message's prefix */
        uint32_t size = htonl((uint32_t)(s->left - 5));
        *to = 0;
        memcpy(to + 1, &size, 4);
    }
    s->begun = 1;
    s->left -= length;
    if (s->left) return (ssize_t)length;
    *flags |= NGHTTP2_DATA_FLAG_EOF;
    if (s->grpc) {
        nghttp2_nv trailers[] = {FIELD("grpc-status", "0", 1), FIELD("x-trailer", version, strlen(version))};
        *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
        if (nghttp2_submit_trailer(session, id, trailers, 2)) errno = 0, die("trailers");
    }
    return (ssize_t)length;
}

static void answer(nghttp2_session *session, int32_t id, struct stream *s) {
    char count[128];
    const char *number = strrchr(s->path, '/');
    if (!strcmp(s->path, "/count")) {
        s->left = (uint64_t)sprintf(count, "requests %llu bodies %llu connections %llu\n", (unsigned long long)requests,
                                    (unsigned long long)bodies, (unsigned long long)connections);
        if (!(s->own = strdup(count))) die("malloc");
    } else if (!strcmp(s->path, "/hold")) {
        requests++;
        s->hold = 1;
    } else if (s->fields) {
        requests++;
        s->own = s->fields;
        s->fields = NULL;
        s->left = s->held;
    } else {
        char *end = NULL;
        if (number) s->left = strtoull(number + 1, &end, 10);
        if (!number || s->left > BODY_MAX || end == number + 1 || (*end && *end != '?')) errno = 0, die("path");
        requests++;
    }
    size_t digits = (size_t)sprintf(count, "%llu", (unsigned long long)s->left);
    nghttp2_nv plain[] = {FIELD(":status", "200", 3), FIELD("content-type", "application/octet-stream", 24),
                          FIELD("content-length", count, digits), FIELD("cache-control", "no-store", 8),
                          FIELD("x-version", version, strlen(version))};
    nghttp2_nv grpc[] = {FIELD(":status", "200", 3), FIELD("content-type", "application/grpc", 16),
                         FIELD("x-version", version, strlen(version))};
    nghttp2_data_provider provider = {.source.ptr = s, .read_callback = body};
    int open = s->grpc || s->hold; /* of unknown length */
    if (nghttp2_submit_response(session, id, open ? grpc : plain, open ? 3 : 5, s->head ? NULL : &provider))
        errno = 0, die("response");
}

static int frame_received(nghttp2_session *session, const nghttp2_frame *frame, void *context) {
    (void)context;
    if (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS) return 0;
    struct stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (s && frame->hd.type == NGHTTP2_HEADERS && !strcmp(s->path, "/hold")) answer(session, frame->hd.stream_id, s);
    else if (s && frame->hd.flags & NGHTTP2_FLAG_END_STREAM && !s->hold) answer(session, frame->hd.stream_id, s);
    return 0;
}

static int stream_closed(nghttp2_session *session, int32_t id, uint32_t error, void *context) {
    (void)error, (void)context;
    struct stream *s = nghttp2_session_get_stream_user_data(session, id);
    if (s) free(s->own), free(s->fields), free(s);
    return 0;
}

static void drop(struct connection *c) {
    close(c->fd);
    nghttp2_session_del(c->session); /* streams that were open are lost with their few bytes */
    free(c);
}

static void watch(struct connection *c, int writing) {
    struct epoll_event event = {.events = writing ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    if (c->writing == writing) return;
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event)) die("epoll_ctl");
    c->writing = writing;
}

/* Sends until there is nothing to say or no room to say it. */
static void flush_out(struct connection *c) {
    for (;;) {
        int more = 1;
        if (c->out_off == c->out_len) c->out_off = c->out_len = 0;
        while (OUT_MAX - c->out_len > 32768) {
            const uint8_t *piece;
            ssize_t length = nghttp2_session_mem_send(c->session, &piece);
            if (length < 0) errno = 0, die("mem_send");
            if (!length) {
                more = 0;
                break;
            }
            if ((size_t)length > OUT_MAX - c->out_len) errno = 0, die("a frame this long");
            memcpy(c->out + c->out_len, piece, (size_t)length);
            c->out_len += (size_t)length;
        }
        if (c->out_off == c->out_len) break;
        ssize_t sent = send(c->fd, c->out + c->out_off, c->out_len - c->out_off, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) return watch(c, 1);
        if (sent < 0) return drop(c);
        c->out_off += (size_t)sent;
        if (c->out_off < c->out_len) return watch(c, 1);
        if (!more) break;
    }
    if (!nghttp2_session_want_read(c->session) && !nghttp2_session_want_write(c->session)) return drop(c);
    watch(c, 0);
}

static void serve(struct connection *c) {
    if (!c->writing) {
        ssize_t got = recv(c->fd, scratch, sizeof scratch, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0 || nghttp2_session_mem_recv(c->session, scratch, (size_t)got) < 0) return drop(c);
    }
    flush_out(c);
}

static void welcome(int fd) {
    struct connection *c = take(sizeof *c);
    memset(c, 0, sizeof *c - sizeof c->out);
    c->fd = fd;
    if (nghttp2_session_server_new(&c->session, callbacks, c)) errno = 0, die("session");
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, STREAMS},
                                         {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW}};
    if (nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, 2)) errno = 0, die("settings");
    nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, 16 * WINDOW);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    connections++;
    flush_out(c);
}

int main(int count, char **arguments) {
    if (count != 2) return fprintf(stderr, "usage: h2upstream VERSION\n"), 2;
    version = arguments[1];
    if (nghttp2_session_callbacks_new(&callbacks)) errno = 0, die("callbacks");
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, chunk);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, frame_received);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, stream_closed);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_and_tell();
    struct epoll_event batch[BATCH], event = {.events = EPOLLIN, .data.ptr = NULL};
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event)) die("epoll_ctl");
    for (;;) {
        int ready = epoll_wait(poller, batch, BATCH, -1);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            if (batch[i].data.ptr) serve(batch[i].data.ptr);
            else for (int fd; (fd = accept_one(listener)) >= 0;) welcome(fd);
        }
    }
}
