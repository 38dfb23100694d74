/* More requests than can be served: at a constant rate, whatever the answers do, and by clients that give up.
 *
 *   surge PORT PATH CONNECTIONS RATE SECONDS WARM PATIENCE
 *
 * RATE: requests per second; 0: each connection asks again once it has its answer (a closed loop). Who has no answer
 * PATIENCE milliseconds after its request was due gives up, closes its connection and opens another. Requests that are
 * due in the first WARM seconds are not counted. Prints one line of JSON: answers of 200, answers of 503 and 429
 * (`refused`), those that gave up (`late`), those for which no connection was free (`unsent`), and quantiles of the
 * times of the first two. */
#define ANY_STATUS
#include "client.h"
#include <stddef.h>

#define SIZE (sizeof histogram / sizeof *histogram)

struct connection {
    int fd, busy;
    uint64_t serial, sent_for;
    struct answer answer;
};

struct wait {
    struct connection *c;
    uint64_t serial;
};

static char request[HEAD_MAX];
static size_t request_size;
static uint64_t good_histogram[SIZE], good, good_largest, refused, late, unsent, other, offered;
static uint64_t counted_from;
static struct wait *waits; /* of all requests, in their order; a ring */
static size_t first_wait, n_waits, room;
static struct connection **idle;
static size_t n_idle;
static int poller, port;

static void open_again(struct connection *c) {
    c->fd = connect_to(port);
    c->busy = 0;
    memset(&c->answer, 0, offsetof(struct answer, head));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
    idle[n_idle++] = c;
}

static void ask(uint64_t due) {
    if (due >= counted_from) offered++;
    if (!n_idle) {
        if (due >= counted_from) unsent++;
        return;
    }
    struct connection *c = idle[--n_idle];
    c->busy = 1;
    c->sent_for = due;
    c->serial++;
    if (n_waits == room) errno = 0, die("so many requests at once");
    waits[(first_wait + n_waits++) % room] = (struct wait){c, c->serial};
    if (send(c->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) die("send");
}

static void attend(struct connection *c) {
    if (!c->busy || !read_answer(c->fd, &c->answer)) return;
    uint64_t took = now_ns() - c->sent_for;
    c->busy = 0;
    idle[n_idle++] = c;
    if (c->sent_for < counted_from) return;
    if (c->answer.status == 200) {
        good++;
        good_histogram[bucket_of(took)]++;
        if (took > good_largest) good_largest = took;
    } else if (c->answer.status == 503 || c->answer.status == 429) {
        refused++;
        record(took);
    } else other++;
}

int main(int count, char **arguments) {
    if (count != 8) return fprintf(stderr, "usage: surge PORT PATH CONNECTIONS RATE SECONDS WARM PATIENCE\n"), 2;
    port = atoi(arguments[1]);
    request_size = (size_t)snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n",
                                    arguments[2], port);
    size_t connections = strtoull(arguments[3], NULL, 10);
    double rate = atof(arguments[4]), seconds = atof(arguments[5]), warm = atof(arguments[6]);
    uint64_t patience = strtoull(arguments[7], NULL, 10) * 1000000ull;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1000ul);
    signal(SIGPIPE, SIG_IGN);
    struct connection *all = calloc(connections, sizeof *all);
    idle = calloc(connections, sizeof *idle);
    room = 1 << 20; /* entries of requests that are over stay until those before them are */
    waits = calloc(room, sizeof *waits);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!all || !idle || !waits || poller < 0 || !connections) die("start");
    for (size_t i = 0; i < connections; i++) open_again(&all[i]);
    uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9), next = start;
    uint64_t gap = rate > 0 ? (uint64_t)(1e9 / rate) : 0;
    counted_from = start + (uint64_t)(warm * 1e9);
    struct epoll_event batch[BATCH];
    for (;;) {
        uint64_t now = now_ns(), wake = now + 10000000ull;
        if (gap)
            for (; next <= now && next < end; next += gap) ask(next);
        else if (now < end)
            while (n_idle) ask(now_ns());
        while (n_waits) {
            struct wait w = waits[first_wait];
            if (w.c->busy && w.c->serial == w.serial) {
                if (now < w.c->sent_for + patience) break;
                if (w.c->sent_for >= counted_from) late++;
                close(w.c->fd);
                open_again(w.c);
            }
            first_wait = (first_wait + 1) % room;
            n_waits--;
        }
        if (now >= end && !n_waits) break;
        if (gap && next < wake && next < end) wake = next;
        uint64_t wait = wake > now ? wake - now : 0;
        struct timespec left = {(time_t)(wait / 1000000000ull), (long)(wait % 1000000000ull)};
        int ready = epoll_pwait2(poller, batch, BATCH, &left, NULL);
        if (ready < 0 && errno != EINTR) die("epoll_pwait2");
        for (int i = 0; i < ready; i++) attend(batch[i].data.ptr);
    }
    double refused_p50 = quantile(0.5), refused_p99 = quantile(0.99);
    memcpy(histogram, good_histogram, sizeof histogram);
    recorded = good;
    largest = good_largest;
    printf("{\"offered\":%llu,\"good\":%llu,\"refused\":%llu,\"late\":%llu,\"unsent\":%llu,\"other\":%llu,"
           "\"seconds\":%.6f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"refused_p50_us\":%.1f,\"refused_p99_us\":%.1f}\n",
           (unsigned long long)offered, (unsigned long long)good, (unsigned long long)refused,
           (unsigned long long)late, (unsigned long long)unsent, (unsigned long long)other, seconds - warm,
           quantile(0.5), quantile(0.99), refused_p50, refused_p99);
    return 0;
}
