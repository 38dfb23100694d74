"""What a worker keeps across tables: instances with their pools and counters, draws; and a table bound to them."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.ref cimport PyObject
from graylb._fast cimport Table
from graylb._http1 cimport MAX_HEADERS

import socket

cdef extern from * nogil:
    """
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <string.h>
    #include <sys/socket.h>
    static uint32_t gl_sockaddr(struct sockaddr_storage *s, const char *ip, int port) {
      struct sockaddr_in *a = (struct sockaddr_in *)s; struct sockaddr_in6 *b = (struct sockaddr_in6 *)s;
      memset(s, 0, sizeof *s);
      if (inet_pton(AF_INET, ip, &a->sin_addr) == 1) { a->sin_family = AF_INET; a->sin_port = htons(port); return sizeof *a; }
      if (inet_pton(AF_INET6, ip, &b->sin6_addr) == 1) { b->sin6_family = AF_INET6; b->sin6_port = htons(port); return sizeof *b; }
      return 0; }
    """
    uint32_t gl_sockaddr(sockaddr_storage*, const char*, int)


cdef class Counter:
    """One number that outlives tables, by name."""

    def __cinit__(self, uint64_t value=0):
        self.value = value


cdef class Upstream:
    """One instance of one service, while a table names it or a connection to it lives."""

    def __init__(self, str service, str address, str version):
        self.service = service
        self.address = address
        self.version = version
        host, _, port = address.rpartition(":")
        self.resolve(host.strip("[]"))

    def resolve(self, str ip):
        """Takes an IP address for this instance's host; a host name leaves it unresolved."""
        raw = ip.encode()
        self.sa_len = gl_sockaddr(&self.sa, PyBytes_AS_STRING(raw), int(self.address.rpartition(":")[2]))

    def figures(self):
        """Counters as a dict."""
        return {"service": self.service, "address": self.address, "version": self.version, "requests": self.requests,
                "failures": self.failures, "connects": self.connects, "in_flight": self.in_flight, "idle": self.n_idle}


cdef class TableState:
    """A table bound to the live state of this worker; requests hold it from their head to their end.

    upstreams: one for each instance of the table, in its order. counters: those of its splits, by name.
    """

    def __cinit__(self, Table table, list upstreams, dict counters, uint64_t pick):
        cdef Upstream u
        cdef Counter n
        cdef int i
        cdef int instances = table.header.n_instances
        self.table = table
        self.boxes = upstreams
        self.counters = []
        self.live.draws = <uint64_t**>calloc(table.header.n_splits + 1, sizeof(void*))
        self.live.in_flight = <uint32_t**>calloc(instances + 1, sizeof(void*))
        self.upstreams = <PyObject**>calloc(instances + 1, sizeof(void*))
        if self.live.draws == NULL or self.live.in_flight == NULL or self.upstreams == NULL: raise MemoryError
        self.live.pick = pick
        if len(upstreams) != instances: raise ValueError(f"{len(upstreams)} upstreams for {instances} instances")
        for i, u in enumerate(upstreams):
            self.live.in_flight[i] = &u.in_flight
            self.upstreams[i] = <PyObject*>u
        for i, name in enumerate(table.meta["splits"]):
            n = counters[name]
            self.counters.append(n)
            self.live.draws[i] = &n.value
        self._settings(table.meta)

    def _settings(self, dict meta):
        modes = {"off": 0, "append": 1, "replace": 2}
        limits = meta["limits"]
        self.policy.x_forwarded = modes[meta["forwarding"]["x_forwarded"]]
        self.policy.forwarded = modes[meta["forwarding"]["forwarded"]]
        self.policy.via = meta["forwarding"]["via"]
        self.decision_headers = meta["decision_headers"]
        self.max_headers = min(limits["headers"], MAX_HEADERS)
        self.head_bytes = min(limits["head_bytes"], MAX_HEAD)
        self.uri_bytes = limits["uri_bytes"]
        self.header_ms = round(limits["header_timeout"] * 1000)
        self.client_idle_ms = round(limits["idle_timeout"] * 1000)
        self.body_ms = round(limits["body_timeout"] * 1000)
        self.grace_ms = round(limits["half_close_grace"] * 1000)
        first = meta["services"][0]["connections"] if meta["services"] else {"idle_timeout": 60.0, "idle": 0}
        self.upstream_idle_ms = round(first["idle_timeout"] * 1000)
        self.max_idle = first["idle"]

    def __dealloc__(self):
        free(self.live.draws)
        free(self.live.in_flight)
        free(self.upstreams)


def is_ip(str address):
    """Whether the host of host:port is an IP address and not a name."""
    host = address.rpartition(":")[0].strip("[]")
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False
