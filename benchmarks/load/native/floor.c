/* The floor: what any user-space proxy pays at least. A relay that copies bytes and looks at none of them.
 *
 *   floor SHARE PORT1 PORT2   prints its port; every SHAREth client connection goes to PORT2, the others to PORT1
 *
 * One upstream connection for each client connection. Edge-triggered, registered once; one shared receive buffer;
 * a side owns memory only while its peer could not take all. */
#include "common.h"

#define BUFFER (256 << 10)
#define BUDGET 16 /* receives in a row for one side, so that a large body does not starve the others */

struct side {
    int fd, ended;
    struct side *peer;
    struct side *again;      /* list of sides whose budget ran out */
    int queued;
    struct pair *pair;
    char *pending;           /* not yet taken by this socket */
    size_t offset, left;
};

struct pair {
    struct side client, upstream;
    struct pair *dead;
    int closed;
};

static int poller;
static struct pair *graveyard;
static struct side *unfinished;
static char buffer[BUFFER];

static void bury(struct pair *pair) {
    if (pair->closed) return;
    pair->closed = 1;
    close(pair->client.fd);
    close(pair->upstream.fd);
    pair->dead = graveyard; /* events of this batch may still name it */
    graveyard = pair;
}

static void sweep(void) {
    while (graveyard) {
        struct pair *next = graveyard->dead;
        free(graveyard->client.pending);
        free(graveyard->upstream.pending);
        free(graveyard);
        graveyard = next;
    }
}

/* 0: error. Keeps what the socket does not take. */
static int deliver(struct side *to, const char *data, size_t length) {
    ssize_t sent = send(to->fd, data, length, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN) return 0;
        sent = 0;
    }
    if ((size_t)sent < length) {
        to->left = length - (size_t)sent;
        to->offset = 0;
        to->pending = take(to->left);
        memcpy(to->pending, data + sent, to->left);
    }
    return 1;
}

static void pump(struct side *from) {
    struct side *to = from->peer;
    for (int round = 0; !to->left; round++) {
        if (round == BUDGET) {
            if (!from->queued) from->queued = 1, from->again = unfinished, unfinished = from;
            return;
        }
        ssize_t got = recv(from->fd, buffer, BUFFER, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0 || !deliver(to, buffer, (size_t)got)) return bury(from->pair);
        /* After a short read the next byte brings a new edge; after a half-close none does. */
        if (got < BUFFER && !from->ended) return;
    }
}

static void writable(struct side *to) {
    ssize_t sent = send(to->fd, to->pending + to->offset, to->left, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN) bury(to->pair);
        return;
    }
    to->offset += (size_t)sent;
    to->left -= (size_t)sent;
    if (to->left) return;
    free(to->pending);
    to->pending = NULL;
    pump(to->peer);
}

static void attend(struct side *side, uint32_t events) {
    if (side->pair->closed) return;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) side->ended = 1;
    if (events & EPOLLOUT && side->left) writable(side);
    if (!side->pair->closed && events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) pump(side);
}

static void add(struct side *side, struct side *peer, struct pair *pair, int fd) {
    *side = (struct side){.fd = fd, .peer = peer, .pair = pair};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = side};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static void welcome(int client, int port) {
    struct sockaddr_in address = loopback(port);
    int upstream = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); /* on loopback connecting does not wait */
    if (upstream < 0 || connect(upstream, (struct sockaddr *)&address, sizeof address)) die("connect");
    no_delay(upstream);
    if (fcntl(upstream, F_SETFL, O_NONBLOCK)) die("fcntl");
    struct pair *pair = take(sizeof *pair);
    pair->closed = 0;
    add(&pair->client, &pair->upstream, pair, client);
    add(&pair->upstream, &pair->client, pair, upstream);
}

int main(int count, char **arguments) {
    if (count != 4) return fprintf(stderr, "usage: floor SHARE PORT1 PORT2\n"), 2;
    long share = atol(arguments[1]), first = atol(arguments[2]), second = atol(arguments[3]);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_and_tell();
    struct epoll_event batch[BATCH], event = {.events = EPOLLIN, .data.ptr = NULL};
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event)) die("epoll_ctl");
    for (long accepted = 1;;) {
        int ready = epoll_wait(poller, batch, BATCH, unfinished ? 0 : -1);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            if (batch[i].data.ptr) {
                attend(batch[i].data.ptr, batch[i].events);
                continue;
            }
            for (int fd; (fd = accept_one(listener)) >= 0; accepted++)
                welcome(fd, (int)(accepted % share ? first : second));
        }
        struct side *list = unfinished, *next;
        for (unfinished = NULL; list; list = next) {
            next = list->again;
            list->queued = 0;
            if (!list->pair->closed) pump(list);
        }
        if (!unfinished) sweep(); /* the list may name sides of buried pairs */
    }
}
