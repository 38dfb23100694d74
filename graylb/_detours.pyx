"""Requests that do not go the straight way: those that a fault delays or ends.

A delayed request is kept as one that waits for a connection is (`Exchange.waiting`): its head is rewritten, its body stays where it
is, it holds no connection and no place in a queue. A timer of the event loop ends its delay, to the millisecond; the wheel of
deadlines is too coarse for what tests of timeouts need.
"""

from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from graylb._faults cimport Fault, drawn
from graylb._live cimport DELAYED, DUE, Conn, Exchange, ServiceLive
from graylb._sockets cimport gl_now_ms
from graylb._tunnels cimport Tunnels

from graylb.errors import BY_REASON

cdef int E_INJECTED = BY_REASON["injected-fault"].code


cdef class Detour:
    """What is injected into one request. Called when its delay is over."""

    def __call__(self):
        self.timer = None
        if self.x != NULL: self.engine._due(self.x)


cdef class Detours(Tunnels):
    """The requests of one worker that wait on purpose."""

    cdef bint _injects(self, Exchange* x, ServiceLive live) noexcept:
        """Draws what is injected into a request. True: it is to be answered with E_INJECTED now."""
        cdef Fault fault = live.faults.of_rule(x.d.rule)
        cdef Detour made
        cdef bint delay, abort
        if fault is None: return False
        delay = drawn(&fault.delay)
        abort = drawn(&fault.abort)
        if delay and fault.held >= fault.max:
            fault.overflows += 1
            delay = False
        if not (delay or abort): return False
        made = Detour.__new__(Detour)
        made.engine = self
        made.x = x
        made.fault = fault
        made.abort = abort
        made.seconds = fault.seconds if delay else 0
        Py_INCREF(made)
        x.detour = <PyObject*>made
        if delay:
            fault.delays += 1
            fault.held += 1
        return not delay

    cdef void _hold_back(self, Exchange* x) noexcept:
        """A request that is kept waits for as long as its fault says."""
        cdef Detour made = <Detour>x.detour
        x.waiting = DELAYED
        x.client.deadline = 0
        made.timer = self.loop.call_later(made.seconds, made)

    cdef _due(self, Exchange* x):
        """The delay is over; it goes on with the next batch."""
        self.now = gl_now_ms()
        x.waiting = DUE
        self._again(x.client)

    cdef void _go_on(self, Exchange* x) noexcept:
        cdef Detour made = <Detour>x.detour
        cdef Conn* c = x.client
        x.waiting = 0
        if made.abort:
            self._fail(c, E_INJECTED)
            return
        self._end_detour(x)
        self._send_kept(x, False, -1)

    cdef void _end_detour(self, Exchange* x) noexcept:
        cdef Detour made = <Detour>x.detour
        made.x = NULL
        if made.seconds: made.fault.held -= 1
        if made.timer is not None: made.timer.cancel()
        made.timer = None
        x.detour = NULL
        Py_DECREF(made)

    cdef bytes _injected(self, Exchange* x, bint close_after, int* status):
        cdef Detour made = <Detour>x.detour
        made.fault.aborts += 1
        status[0] = made.fault.status
        return made.fault.answer(x.grpc, x.wants_json, close_after)
