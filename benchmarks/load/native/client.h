/* What the benchmark's load generators share: connections, reading answers, a clock, a histogram. */
#ifndef GRAYLB_BENCH_CLIENT_H
#define GRAYLB_BENCH_CLIENT_H

#include "common.h"
#include <time.h>

#define HEAD_MAX 8192
#define CHUNK (1 << 20)

struct answer {
    size_t held;        /* bytes of an incomplete head */
    uint64_t length;    /* of the body */
    uint64_t left;      /* of it, still to come */
    int in_body;
    int status;
    char head[HEAD_MAX];
};

static char chunk[CHUNK];

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Connects (on loopback that does not wait) and makes the socket non-blocking. */
static inline int connect_to(int port) {
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    no_delay(fd);
    if (fcntl(fd, F_SETFL, O_NONBLOCK)) die("fcntl");
    return fd;
}

static inline void refuse(const char *what, const char *data, size_t length) {
    fprintf(stderr, "%s: %.*s\n", what, (int)(length < 200 ? length : 200), data);
    exit(1);
}

/* Reads the head in answer->head; dies unless it is a 200 (with ANY_STATUS: any answer) with a length. Returns its size,
 * 0 when it is incomplete. */
static inline size_t read_head(struct answer *a) {
    char *end = memmem(a->head, a->held, "\r\n\r\n", 4);
    if (!end) {
        if (a->held == HEAD_MAX) refuse("a head this long", a->head, a->held);
        return 0;
    }
    if (a->held < 12 || memcmp(a->head, "HTTP/1.1 ", 9)) refuse("not an answer", a->head, a->held);
    a->status = atoi(a->head + 9);
#ifndef ANY_STATUS
    if (a->status != 200) refuse("not a 200", a->head, a->held);
#endif
    *end = 0;
    char *length = strcasestr(a->head, "\r\ncontent-length:");
    if (!length) refuse("an answer without a length", a->head, a->held);
    a->left = a->length = strtoull(length + 17, NULL, 10);
    return (size_t)(end + 4 - a->head);
}

/* Reads what has come. 1: the answer is complete, 0: more is to come. Dies when the connection ends or says too much.
 * The bytes of a large body are dropped in the kernel, uncopied. */
static inline int read_answer(int fd, struct answer *a) {
    for (;;) {
        int drop = a->in_body && a->left > CHUNK / 16;
        char *to = a->in_body ? chunk : a->head + a->held;
        size_t room = a->in_body ? (a->left < CHUNK ? (size_t)a->left : CHUNK) : HEAD_MAX - a->held;
        ssize_t got = recv(fd, to, room, drop ? MSG_TRUNC : 0);
        if (got < 0 && errno == EAGAIN) return 0;
        if (got < 0) die("recv");
        if (got == 0) errno = ECONNRESET, die("the connection ended in an answer");
        if (a->in_body) {
            a->left -= (uint64_t)got;
        } else {
            a->held += (size_t)got;
            size_t head = read_head(a);
            if (!head) continue;
            if (a->held - head > a->left) refuse("more than the answer", a->head, a->held);
            a->left -= a->held - head;
            a->in_body = 1;
        }
        if (!a->left) {
            a->held = 0;
            a->in_body = 0;
            return 1;
        }
    }
}

/* Log-linear: 128 steps for each power of two of 64 ns, so within 1 % of the truth. */
#define STEPS 7
static uint64_t histogram[64 << STEPS], recorded, largest;

static inline size_t bucket_of(uint64_t ns) {
    uint64_t units = ns >> 6;
    if (units < 1u << STEPS) return (size_t)units;
    int shift = 63 - __builtin_clzll(units) - STEPS;
    return ((size_t)(shift + 1) << STEPS) + (size_t)((units >> shift) - (1u << STEPS));
}

static inline double bucket_us(size_t bucket) {
    size_t shift = bucket >> STEPS;
    double low = shift ? (double)((bucket & ((1u << STEPS) - 1)) + (1u << STEPS)) : (double)bucket;
    return (low + 1) * (double)(1ull << (shift ? shift - 1 : 0)) * 0.064;
}

static inline void record(uint64_t ns) {
    histogram[bucket_of(ns)]++;
    recorded++;
    if (ns > largest) largest = ns;
}

/* Microseconds below which `share` of what was recorded lies. */
static inline double quantile(double share) {
    uint64_t rank = (uint64_t)(share * (double)recorded), seen = 0;
    for (size_t i = 0; i < sizeof histogram / sizeof *histogram; i++) {
        seen += histogram[i];
        if (seen > rank) return bucket_us(i) < (double)largest / 1e3 ? bucket_us(i) : (double)largest / 1e3;
    }
    return (double)largest / 1e3;
}

#endif
