"""Failures made on purpose: which requests are delayed or answered with an error, and with which one. No I/O.

Each request is drawn by itself. Like anonymous splits, draws take a low-discrepancy sequence in place of random numbers, the
multiples of an irrational number modulo 1 (Weyl 1916; Kuipers and Niederreiter, Uniform Distribution of Sequences, chapter 2), so
that shares hold in short windows too. Each kind of draw has its own number, and with the splits' golden ratio they are independent
over the rationals: that a request is delayed says nothing of whether it is aborted, mirrored or which version it went to.
"""

from libc.stdint cimport uint64_t

from dataclasses import replace

from graylb.errors import BY_REASON

cdef uint64_t DELAYS = 0x6a09e667f3bcc909      # the fraction of the square root of 2, times 2^64, made odd
cdef uint64_t ABORTS = 0xbb67ae8584caa73b      # likewise of 3
STEP_MIRRORS = 0x7311c2812425cfa1     # likewise of 6
STEPS = {"delay": DELAYS, "abort": ABORTS, "mirror": STEP_MIRRORS}


cdef void set_share(Draw* d, double percent) noexcept:
    """In steps of 0.01 %; 0: none, 100: all."""
    cdef uint64_t parts = <uint64_t>(percent * 100 + 0.5)
    d.always = parts >= 10000
    d.below = parts * (<uint64_t>0xffffffffffffffff // 10000)


cdef bint drawn(Draw* d) noexcept:
    """Whether this one is among the share."""
    d.n += 1
    return d.always or d.n * d.step < d.below


cdef class Fault:
    """What a service, or one of its rules, has injected. Counters and draws outlive its settings."""

    def __init__(self, str service, str rule, int first_draw):
        self.service = service
        self.rule = rule
        self.delay.n = self.abort.n = <uint64_t>first_draw
        self.delay.step = DELAYS
        self.abort.step = ABORTS

    def configure(self, dict told):
        """told: `snapshot_faults.Fault` as a dict, with the gRPC status as its number."""
        delay, abort = told["delay"], told["abort"]
        set_share(&self.delay, delay["percent"] if delay else 0)
        set_share(&self.abort, abort["percent"] if abort else 0)
        if delay: self.seconds, self.max = delay["time"], delay["max"]
        if abort is None: return
        self.status = abort["status"]
        kind = replace(BY_REASON["injected-fault"], status=self.status, grpc=abort["grpc_status"])
        self.grpc_status = kind.grpc
        self.grpc_answer = kind.grpc_response()
        self.answers = [[kind.response(json=json, close=close) for close in (False, True)] for json in (False, True)]

    cdef bytes answer(self, bint grpc, bint json, bint close):
        return self.grpc_answer if grpc else self.answers[json][close]

    def figures(self):
        """Counters as a dict. overflow: delays that were not made because too many waited."""
        return {"service": self.service, "rule": self.rule, "delay": self.delays, "abort": self.aborts, "overflow": self.overflows,
                "waiting": self.held}


cdef class Faults:
    """The faults of one service: its own, and those of its rules. first_draw: sets a worker's draws apart from its siblings'."""

    def __init__(self, int first_draw=0):
        self.first_draw = first_draw
        self.named = {}

    cpdef configure(self, str service, list told):
        """told: (number of the rule or -1, its name or "", fault as a dict) of each; a table's rules are numbered in their order."""
        cdef Fault fault
        former, self.named, self.own = self.named, {}, None
        self.by_rule = [None] * (1 + max([number for number, _, _ in told], default=-1))
        for number, name, settings in told:
            fault = self.named[name] = former.get(name) or Fault(service, name, self.first_draw)
            fault.configure(settings)
            if number < 0: self.own = fault
            else: self.by_rule[number] = fault

    cdef Fault of_rule(self, int rule):
        """What holds for requests that this rule matched; -1: none did."""
        cdef Fault found = self.by_rule[rule] if 0 <= rule < len(self.by_rule) else None
        return found if found is not None else self.own

    def figures(self):
        return [each.figures() for each in self.named.values()]


def draws(str kind, double percent, int count, uint64_t first=0):
    """Of so many requests in a row, whether each is drawn. For tests."""
    cdef Draw d
    d.n = first
    d.step = STEPS[kind]
    set_share(&d, percent)
    return [drawn(&d) for _ in range(count)]
