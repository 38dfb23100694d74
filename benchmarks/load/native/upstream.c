/* A lean HTTP/1.1 upstream for benchmarks: one process per version, one epoll, keep-alive.
 *
 *   upstream VERSION          prints its port; serves until killed
 *
 *   /N       any method: a body of N bytes once the request's own body has arrived
 *   /head    the request head as it came in, as the body (to check what a proxy sends on)
 *   /count   "requests R bodies B connections C": requests answered, request-body bytes read, connections accepted
 *            (asking for it counts in neither R nor B)
 *
 * Two system calls a request beside epoll_wait. It dies on what it does not do (chunked requests, pipelining), so that
 * a benchmark cannot go on with wrong figures. */
#include "common.h"

#define HEAD_MAX 16384
#define WHOLE_MAX (4 << 20) /* bodies up to here are kept in one piece with their heads */
#define BODY_MAX (64ull << 30)
#define SCRATCH (1 << 20)
#define BURST 8 /* sends in a row for one connection */

struct reply {  /* head of /N, with the body in one piece unless that is large */
    struct reply *next;
    uint64_t body, more; /* `more`: bytes of the body that are not in `bytes` */
    size_t length;
    char *bytes;
};

struct connection {
    int fd, writing;
    size_t held;         /* bytes of an incomplete head in `head` */
    uint64_t body_left;  /* of the request that is arriving */
    const char *out;     /* of the answer that is leaving */
    size_t out_left;
    uint64_t more;       /* bytes of a large body that follow `out` */
    char *own;           /* an answer made for this request only */
    const struct reply *next_reply;
    char head[HEAD_MAX];
};

static const char *version;
static int poller;
static struct reply *replies;
static uint64_t requests, bodies, connections;
static char scratch[SCRATCH], block[WHOLE_MAX];

/* A head that announces `announced` bytes, and `length` of them behind it: those at `body`, or x's. */
static size_t render(char **to, const char *body, size_t length, uint64_t announced) {
    char head[256];
    int size = snprintf(head, sizeof head,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %llu\r\n"
                        "Cache-Control: no-store\r\nX-Version: %s\r\n\r\n", (unsigned long long)announced, version);
    *to = take((size_t)size + length);
    memcpy(*to, head, (size_t)size);
    memcpy(*to + size, body, length);
    return (size_t)size + length;
}

static const struct reply *reply_of(uint64_t body) {
    for (struct reply *each = replies; each; each = each->next)
        if (each->body == body) return each;
    struct reply *made = take(sizeof *made);
    size_t whole = body <= WHOLE_MAX ? (size_t)body : 0;
    made->body = body;
    made->more = body - whole;
    made->length = render(&made->bytes, block, whole, body);
    made->next = replies;
    return replies = made;
}

static void watch(struct connection *c, int writing) {
    struct epoll_event event = {.events = writing ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event)) die("epoll_ctl");
    c->writing = writing;
}

static void drop(struct connection *c) {
    close(c->fd);
    free(c->own);
    free(c);
}

/* 0 when the connection is gone. */
static int flush_out(struct connection *c) {
    for (int burst = 0; c->out_left && burst < BURST; burst++) {
        ssize_t sent = send(c->fd, c->out, c->out_left, MSG_NOSIGNAL | (c->more ? MSG_MORE : 0));
        if (sent < 0 && errno != EAGAIN) return drop(c), 0;
        if (sent < 0) break;
        c->out += sent;
        c->out_left -= (size_t)sent;
        if (c->out_left || !c->more) break;
        c->out = block;
        c->out_left = c->more < WHOLE_MAX ? (size_t)c->more : WHOLE_MAX;
        c->more -= c->out_left;
    }
    if (!c->out_left) free(c->own), c->own = NULL;
    if (c->writing != (c->out_left > 0)) watch(c, c->out_left > 0);
    return 1;
}

static int answer(struct connection *c) {
    if (c->own) {
        /* made when the head was read */
    } else {
        requests++;
        c->out = c->next_reply->bytes;
        c->out_left = c->next_reply->length;
        c->more = c->next_reply->more;
    }
    return flush_out(c);
}

static void plan(struct connection *c, const char *head, size_t length) {
    const char *path = memchr(head, ' ', length);
    if (!path) die("request line");
    path++;
    if (!strncmp(path, "/head ", 6)) {
        requests++;
        c->out_left = render(&c->own, head, length, length);
    } else if (!strncmp(path, "/count ", 7)) {
        char text[128];
        int size = snprintf(text, sizeof text, "requests %llu bodies %llu connections %llu\n",
                            (unsigned long long)requests, (unsigned long long)bodies, (unsigned long long)connections);
        c->out_left = render(&c->own, text, (size_t)size, (uint64_t)size);
    } else {
        char *end;
        uint64_t body = *path == '/' ? strtoull(path + 1, &end, 10) : BODY_MAX + 1;
        if (body > BODY_MAX || end == path + 1 || (*end != ' ' && *end != '?')) die("path");
        c->next_reply = reply_of(body);
    }
    if (c->own) c->out = c->own;
}

/* Length of the complete head at `data`, 0 when its end is not there yet; sets body_left. */
static size_t scan(struct connection *c, const char *data, size_t length) {
    const char *line = data, *end = data + length, *newline;
    uint64_t body = 0;
    while ((newline = memchr(line, '\n', (size_t)(end - line)))) {
        if (newline == line || (newline == line + 1 && *line == '\r')) {
            c->body_left = body;
            return (size_t)(newline + 1 - data);
        }
        if ((*line | 32) == 'c' && newline - line > 15 && !strncasecmp(line, "content-length:", 15))
            body = strtoull(line + 15, NULL, 10);
        if ((*line | 32) == 't' && newline - line > 18 && !strncasecmp(line, "transfer-encoding:", 18))
            errno = 0, die("a request with a transfer coding");
        line = newline + 1;
    }
    return 0;
}

/* Takes `length` received bytes; 0 when the connection is gone. */
static int feed(struct connection *c, const char *data, size_t length) {
    if (!c->body_left) {
        if (c->held) {
            if (c->held + length > HEAD_MAX) errno = 0, die("a head this long, or a body in its wake,");
            memcpy(c->head + c->held, data, length);
            data = c->head;
            length += c->held;
        }
        size_t head = scan(c, data, length);
        if (!head) {
            if (length > HEAD_MAX) errno = 0, die("a head this long");
            if (data != c->head) memcpy(c->head, data, length);
            c->held = length;
            return 1;
        }
        plan(c, data, head);
        c->held = 0;
        data += head;
        length -= head;
        if (!c->body_left && !length) return answer(c);
    }
    if (length > c->body_left) errno = 0, die("pipelining");
    c->body_left -= length;
    bodies += length;
    return c->body_left ? 1 : answer(c);
}

static void serve(struct connection *c, uint32_t events) {
    if (c->writing) {
        if (flush_out(c) && events & (EPOLLERR | EPOLLHUP)) drop(c);
        return;
    }
    /* what is body and nothing else is dropped in the kernel, uncopied */
    ssize_t got = recv(c->fd, scratch, SCRATCH, c->body_left > SCRATCH ? MSG_TRUNC : 0);
    if (got > 0) feed(c, scratch, (size_t)got);
    else if (got == 0 || errno != EAGAIN) drop(c);
}

int main(int count, char **arguments) {
    if (count != 2) return fprintf(stderr, "usage: upstream VERSION\n"), 2;
    version = arguments[1];
    memset(block, 'x', sizeof block);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_and_tell();
    struct epoll_event batch[BATCH], event = {.events = EPOLLIN, .data.ptr = NULL};
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event)) die("epoll_ctl");
    for (;;) {
        int ready = epoll_wait(poller, batch, BATCH, -1);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            if (batch[i].data.ptr) {
                serve(batch[i].data.ptr, batch[i].events);
                continue;
            }
            for (int fd; (fd = accept_one(listener)) >= 0; connections++) {
                struct connection *c = take(sizeof *c);
                memset(c, 0, sizeof *c - sizeof c->head);
                c->fd = fd;
                event = (struct epoll_event){.events = EPOLLIN, .data.ptr = c};
                if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
            }
        }
    }
}
