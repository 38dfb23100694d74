/* Large bodies, one after the other on each connection, as fast as they go.
 *
 *   transfer PORT PATH UPLOAD CONNECTIONS TIMES
 *
 * UPLOAD: bytes of a request body; 0: GET, whatever PATH answers is received. Each connection makes TIMES transfers.
 * Prints one line of JSON: transfers, body bytes both ways, seconds from the first request to the last answer. */
#include "client.h"

struct connection {
    int fd;
    long times;
    uint64_t upload;    /* bytes of the request body still to send */
    struct answer answer;
};

static char head[256];
static size_t head_size;
static uint64_t upload, received;
static long running;

static void push(struct connection *c) {
    while (c->upload) {
        ssize_t sent = send(c->fd, chunk, c->upload < CHUNK ? (size_t)c->upload : CHUNK, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) return;
        if (sent < 0) die("send");
        c->upload -= (uint64_t)sent;
    }
}

static void begin(struct connection *c) {
    if (send(c->fd, head, head_size, MSG_NOSIGNAL | (upload ? MSG_MORE : 0)) != (ssize_t)head_size) die("send");
    c->upload = upload;
    push(c);
}

static void attend(struct connection *c, uint32_t events) {
    if (events & EPOLLOUT) push(c);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP))) return;
    while (read_answer(c->fd, &c->answer)) {
        received += c->answer.length;
        if (c->upload) errno = 0, die("an answer before the request's end");
        if (!--c->times) {
            running--;
            return;
        }
        begin(c);
    }
}

int main(int count, char **arguments) {
    if (count != 6) return fprintf(stderr, "usage: transfer PORT PATH UPLOAD CONNECTIONS TIMES\n"), 2;
    int port = atoi(arguments[1]);
    upload = strtoull(arguments[3], NULL, 10);
    long connections = atol(arguments[4]), times = atol(arguments[5]);
    if (connections < 1 || times < 1) return fprintf(stderr, "nothing to do\n"), 2;
    int size = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n", upload ? "POST" : "GET",
                        arguments[2], port);
    if (upload) size += snprintf(head + size, sizeof head - (size_t)size, "Content-Length: %llu\r\n",
                                 (unsigned long long)upload);
    size += snprintf(head + size, sizeof head - (size_t)size, "\r\n");
    head_size = (size_t)size;
    memset(chunk, 'b', sizeof chunk);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    int poller = epoll_create1(EPOLL_CLOEXEC);
    if (!all || poller < 0) die("start");
    running = connections;
    for (long i = 0; i < connections; i++) {
        all[i].fd = connect_to(port);
        all[i].times = times;
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = &all[i]};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, all[i].fd, &event)) die("epoll_ctl");
    }
    uint64_t start = now_ns();
    for (long i = 0; i < connections; i++) begin(&all[i]);
    struct epoll_event batch[BATCH];
    while (running) {
        int ready = epoll_wait(poller, batch, BATCH, 60000);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        if (!ready) errno = ETIMEDOUT, die("a minute without a byte");
        for (int i = 0; i < ready; i++) attend(batch[i].data.ptr, batch[i].events);
    }
    double took = (double)(now_ns() - start) / 1e9;
    uint64_t transfers = (uint64_t)(connections * times);
    printf("{\"transfers\":%llu,\"bytes\":%llu,\"seconds\":%.6f}\n", (unsigned long long)transfers,
           (unsigned long long)(upload ? transfers * upload : received), took);
    return 0;
}
