/* Requests at a constant rate, whatever the answers do: latency counts from when a request was due, so a stall is felt
 * by every request that should have been sent meanwhile (no coordinated omission).
 *
 *   pace PORT PATH CONNECTIONS RATE SECONDS [HEADER...]
 *
 * RATE: requests per second over all connections, in turn; 0: as fast as answers come (a closed loop). A connection
 * has one request on its way; those that fall due meanwhile wait for it. The first half second is not recorded. Prints
 * one line of JSON. */
#include "client.h"
#include <sys/resource.h>

#define WARM_UP 500000000ull
#define PATIENCE 10000000000ull

struct connection {
    int fd, busy;
    uint64_t due;       /* requests whose time has come, not yet sent */
    uint64_t next;      /* when the next request of this connection is (or was) due */
    uint64_t sent_for;  /* when the one on its way was due */
    struct answer answer;
};

static char request[HEAD_MAX];
static size_t request_size;
static uint64_t start, interval, done, outstanding;
static uint64_t lag, lagged;

static void send_next(struct connection *c) {
    uint64_t now = now_ns();
    c->sent_for = interval ? c->next : now;
    c->next += interval;
    c->due--;
    c->busy = 1;
    outstanding++;
    if (interval && now - c->sent_for < 1000000000ull) lag += now - c->sent_for, lagged++;
    if (send(c->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) die("send");
}

static void attend(struct connection *c) {
    if (!c->busy || !read_answer(c->fd, &c->answer)) return;
    uint64_t now = now_ns();
    if (c->sent_for - start >= WARM_UP) record(now - c->sent_for);
    c->busy = 0;
    done++;
    outstanding--;
    if (c->due) send_next(c);
}

static void render(int port, const char *path, char **headers, int count) {
    int size = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n", path, port);
    for (int i = 0; i < count && size < HEAD_MAX; i++)
        size += snprintf(request + size, sizeof request - (size_t)size, "%s\r\n", headers[i]);
    if (size + 2 >= HEAD_MAX) errno = 0, die("a head this long");
    memcpy(request + size, "\r\n", 2);
    request_size = (size_t)size + 2;
}

int main(int count, char **arguments) {
    if (count < 6) return fprintf(stderr, "usage: pace PORT PATH CONNECTIONS RATE SECONDS [HEADER...]\n"), 2;
    int port = atoi(arguments[1]);
    uint64_t connections = strtoull(arguments[3], NULL, 10);
    double rate = atof(arguments[4]), seconds = atof(arguments[5]);
    render(port, arguments[2], arguments + 6, count - 6);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1000ul); /* the kernel's 50 us would be in every latency */
    setpriority(PRIO_PROCESS, 0, -10); /* where allowed: what it waits for its core is not the proxy's delay */
    signal(SIGPIPE, SIG_IGN);
    struct connection *all = calloc(connections, sizeof *all);
    int poller = epoll_create1(EPOLL_CLOEXEC);
    if (!all || poller < 0 || !connections) die("start");
    for (uint64_t i = 0; i < connections; i++) {
        all[i].fd = connect_to(port);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, all[i].fd, &event)) die("epoll_ctl");
    }
    double gap = rate > 0 ? 1e9 / rate : 0;
    interval = (uint64_t)(gap * (double)connections);
    start = now_ns();
    uint64_t end = start + (uint64_t)(seconds * 1e9), total = (uint64_t)(rate * seconds), due = 0;
    for (uint64_t i = 0; i < connections; i++) {
        all[i].next = start + (uint64_t)(gap * (double)i);
        if (!rate) all[i].due = UINT64_MAX / 2, send_next(&all[i]);
    }
    struct epoll_event batch[BATCH];
    for (;;) {
        uint64_t now = now_ns(), wake = end;
        if (!rate && now >= end)
            for (uint64_t i = 0; i < connections; i++) all[i].due = 0;
        for (; due < total; due++) {
            wake = start + (uint64_t)(gap * (double)due);
            if (wake > now) break;
            struct connection *c = &all[due % connections];
            c->due++;
            if (!c->busy) send_next(c);
        }
        if (now >= end && (due == total || !rate) && !outstanding) break;
        if (now > end + PATIENCE) break;
        if (due == total && rate) wake = end;
        if (wake <= now) wake = now + 10000000ull;
        struct timespec left = {.tv_sec = (time_t)((wake - now) / 1000000000ull),
                                .tv_nsec = (long)((wake - now) % 1000000000ull)};
        int ready = epoll_pwait2(poller, batch, BATCH, &left, NULL);
        if (ready < 0 && errno != EINTR) die("epoll_pwait2");
        for (int i = 0; i < ready; i++) attend(batch[i].data.ptr);
    }
    double took = (double)(now_ns() - start) / 1e9;
    printf("{\"requests\":%llu,\"lost\":%llu,\"seconds\":%.6f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,"
           "\"max_us\":%.1f,\"recorded\":%llu,\"lag_us\":%.1f}\n",
           (unsigned long long)done, (unsigned long long)(rate ? total - done : outstanding), took, quantile(0.5),
           quantile(0.99), quantile(0.999), (double)largest / 1e3, (unsigned long long)recorded,
           lagged ? (double)lag / (double)lagged / 1e3 : 0.0);
    return 0;
}
