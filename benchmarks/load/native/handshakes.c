/* A TLS connection for each request, as many at a time as asked for: what handshakes cost a server.
 *
 *   handshakes PORT PATH CONNECTIONS SECONDS full|resumed
 *
 * TLS 1.3, TLS_AES_128_GCM_SHA256 over X25519. `resumed`: each connection after the first of its place offers the newest
 * ticket that the place got. One JSON line; it ends with status 1 when anything but a 200 comes. */
#include "common.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <time.h>

struct place {
    int fd;
    uint32_t watched;
    SSL *ssl;
    SSL_SESSION *ticket;
    int asked;
    size_t received;
};

static int poller, port, resume;
static char request[512];
static SSL_CTX *context;
static uint64_t requests, resumed, bytes;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, ERR_reason_error_string(ERR_peek_error()));
    exit(1);
}

static int keep_ticket(SSL *ssl, SSL_SESSION *session) {
    struct place *p = SSL_get_app_data(ssl);
    if (!resume) return 0;
    if (p->ticket) SSL_SESSION_free(p->ticket);
    p->ticket = session;
    return 1;
}

static void begin(struct place *p) {
    struct sockaddr_in address = loopback(port);
    p->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (p->fd < 0) die("socket");
    no_delay(p->fd);
    if (connect(p->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
    if (!(p->ssl = SSL_new(context)) || !SSL_set_fd(p->ssl, p->fd)) fail("SSL_new");
    SSL_set_app_data(p->ssl, p);
    SSL_set_connect_state(p->ssl);
    SSL_set_quiet_shutdown(p->ssl, 1);
    if (p->ticket && !SSL_set_session(p->ssl, p->ticket)) fail("SSL_set_session");
    p->asked = 0;
    p->received = 0;
    p->watched = EPOLLOUT;
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = p};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, p->fd, &event)) die("epoll_ctl");
}

static void finish(struct place *p) {
    requests++;
    bytes += p->received;
    resumed += (uint64_t)SSL_session_reused(p->ssl);
    SSL_shutdown(p->ssl); /* quiet: it only keeps the ticket good */
    SSL_free(p->ssl);
    close(p->fd);
}

static void wait_for(struct place *p, int error) {
    uint32_t wanted = error == SSL_ERROR_WANT_WRITE ? EPOLLOUT : EPOLLIN;
    if (wanted == p->watched) return;
    struct epoll_event event = {.events = wanted, .data.ptr = p};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, p->fd, &event)) die("epoll_ctl");
    p->watched = wanted;
}

/* 1 when the exchange is over. */
static int go_on(struct place *p) {
    static char answer[65536];
    ERR_clear_error();
    if (!p->asked) {
        int done = SSL_write(p->ssl, request, (int)strlen(request)); /* the handshake first */
        if (done <= 0) {
            int error = SSL_get_error(p->ssl, done);
            if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) fail("handshake");
            return wait_for(p, error), 0;
        }
        p->asked = 1;
    }
    for (;;) {
        int got = SSL_read(p->ssl, answer, sizeof answer);
        if (got > 0) {
            if (!p->received && (got < 12 || memcmp(answer, "HTTP/1.1 200", 12)))
                return fprintf(stderr, "not a 200: %.*s\n", got < 40 ? got : 40, answer), exit(1), 0;
            p->received += (size_t)got;
            continue;
        }
        int error = SSL_get_error(p->ssl, got);
        if (error == SSL_ERROR_ZERO_RETURN && p->received) return 1;
        if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) fail("answer");
        return wait_for(p, error), 0;
    }
}

int main(int count, char **arguments) {
    if (count != 6) return fprintf(stderr, "usage: handshakes PORT PATH CONNECTIONS SECONDS full|resumed\n"), 2;
    int places = atoi(arguments[3]);
    port = atoi(arguments[1]);
    resume = !strcmp(arguments[5], "resumed");
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n", arguments[2]);
    signal(SIGPIPE, SIG_IGN);
    context = SSL_CTX_new(TLS_client_method());
    if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") || !SSL_CTX_set1_groups_list(context, "X25519"))
        fail("SSL_CTX_new");
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, keep_ticket);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct place *all = calloc((size_t)places, sizeof *all);
    if (poller < 0 || !all) die("start");
    for (int i = 0; i < places; i++) begin(&all[i]);
    double start = now(), until = start + atof(arguments[4]), last = start;
    int busy = places;
    struct epoll_event batch[BATCH];
    while (busy) {
        int ready = epoll_wait(poller, batch, BATCH, 10000);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        if (!ready) return fprintf(stderr, "nothing came for 10 s\n"), 1;
        for (int i = 0; i < ready; i++) {
            struct place *p = batch[i].data.ptr;
            if (!go_on(p)) continue;
            finish(p);
            last = now();
            if (last < until) begin(p);
            else busy--;
        }
    }
    printf("{\"requests\":%llu,\"resumed\":%llu,\"bytes\":%llu,\"seconds\":%.6f}\n", (unsigned long long)requests,
           (unsigned long long)resumed, (unsigned long long)bytes, last - start);
    return 0;
}
