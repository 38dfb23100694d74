/* An upstream that can do only so much: SLOTS requests at once, each for TIME microseconds; all others stand in line.
 *
 *   queue VERSION SLOTS TIME     prints its port; serves until killed
 *
 * What a client no longer waits for is done all the same, as most servers do it. GET alone, one request at a time on a
 * connection; every path gets the same two bytes. */
#include "client.h"

struct connection {
    int fd, gone, busy;
    size_t held;
    char head[HEAD_MAX];
};

struct entry {
    struct connection *c;
    uint64_t end;
};

struct fifo {
    struct entry *all;
    size_t first, count, room;
};

static char answer_text[256];
static size_t answer_size;

static void push(struct fifo *f, struct connection *c, uint64_t end) {
    if (f->count == f->room) {
        size_t room = f->room ? 2 * f->room : 1024;
        struct entry *all = take(room * sizeof *all);
        for (size_t i = 0; i < f->count; i++) all[i] = f->all[(f->first + i) % f->room];
        free(f->all);
        *f = (struct fifo){all, 0, f->count, room};
    }
    f->all[(f->first + f->count++) % f->room] = (struct entry){c, end};
}

static struct entry pop(struct fifo *f) {
    struct entry found = f->all[f->first];
    f->first = (f->first + 1) % f->room;
    f->count--;
    return found;
}

static void leave(struct connection *c) {
    close(c->fd);
    c->gone = 1;
    if (!c->busy) free(c);
}

int main(int count, char **arguments) {
    if (count != 4) return fprintf(stderr, "usage: queue VERSION SLOTS TIME\n"), 2;
    size_t slots = strtoull(arguments[2], NULL, 10);
    uint64_t time = strtoull(arguments[3], NULL, 10) * 1000;
    answer_size = (size_t)snprintf(answer_text, sizeof answer_text,
                                   "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Version: %s\r\n\r\nok", arguments[1]);
    prctl(PR_SET_TIMERSLACK, 1000ul);
    int poller = epoll_create1(EPOLL_CLOEXEC), listener = listen_and_tell();
    struct epoll_event batch[BATCH], event = {.events = EPOLLIN, .data.ptr = NULL};
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event)) die("epoll_ctl");
    struct fifo line = {0}, busy = {0}; /* of one length each, so they end in the order that they begin in */
    for (;;) {
        uint64_t now = now_ns();
        while (busy.count && busy.all[busy.first].end <= now) {
            struct connection *c = pop(&busy).c;
            c->busy = 0;
            if (c->gone) free(c);
            else if (send(c->fd, answer_text, answer_size, MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET)
                die("send");
        }
        while (line.count && busy.count < slots) push(&busy, pop(&line).c, now + time);
        uint64_t wait = busy.count ? busy.all[busy.first].end - now : 1000000000ull;
        struct timespec left = {(time_t)(wait / 1000000000ull), (long)(wait % 1000000000ull)};
        int ready = epoll_pwait2(poller, batch, BATCH, &left, NULL);
        if (ready < 0 && errno != EINTR) die("epoll_pwait2");
        for (int i = 0; i < ready; i++) {
            struct connection *c = batch[i].data.ptr;
            if (!c) {
                for (int fd; (fd = accept_one(listener)) >= 0;) {
                    c = calloc(1, sizeof *c);
                    if (!c) die("calloc");
                    c->fd = fd;
                    event = (struct epoll_event){.events = EPOLLIN, .data.ptr = c};
                    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
                }
                continue;
            }
            ssize_t got = recv(c->fd, c->head + c->held, HEAD_MAX - c->held, 0);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) {
                leave(c);
                continue;
            }
            c->held += (size_t)got;
            char *end = memmem(c->head, c->held, "\r\n\r\n", 4);
            if (!end && c->held < HEAD_MAX) continue;
            if (!end || c->busy || end + 4 != c->head + c->held) errno = 0, die("a body, or pipelining,");
            c->held = 0;
            c->busy = 1;
            push(&line, c, 0);
        }
    }
}
