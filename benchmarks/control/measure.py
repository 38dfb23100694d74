"""The measurements. Each gives a dict of figures, ready for JSON; `verdict` judges them."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.control import content
from benchmarks.control.etcd import Etcd, Keys
from benchmarks.control.node import ASK, Node, Probe, field_of, probes, running, until
from benchmarks.failure import BenchError
from benchmarks.load.process import cpu_seconds, memory, pin
from benchmarks.load.stage import Stage, end, finish, spawn

CONNECTIONS = 16
SERVICES, INSTANCES, RULES = 100, 10_000, 5_000
CHANGES_OF_ONE = 30
AT_REST = 0.1
"""Share of a core below which a process has nothing to do."""
PIPELINED = 64
"""Puts that may be on their way at once in a storm."""


@contextmanager
def load(
    on: Stage, nodes: list[Node], rate: float, seconds: float, cores: frozenset[int] | None = None
) -> Iterator[list[Any]]:
    """A constant rate on each node, asked from these cores (None: any). What is yielded has each one's figures after
    the block, which must not last longer. Any request that fails raises BenchError."""
    where = cores or on.cores.load | on.cores.proxy
    running_ = [
        spawn(on.native("pace", node.port, "/128", CONNECTIONS, rate, seconds), where, session=True) for node in nodes
    ]
    found: list[Any] = []
    try:
        yield found
        found += [
            finish(each, seconds + 60, f"load on {node.name}") for each, node in zip(running_, nodes, strict=True)
        ]
    finally:
        for each in running_:
            end(each)
    for each, node in zip(found, nodes, strict=True):
        if each["lost"]:
            raise BenchError(f"load on {node.name}: {each['lost']} requests were never answered")


def latency(on: Stage, etcd: Etcd, changes: int, rate: float) -> dict[str, Any]:
    """A rule is put; from then until every worker of two nodes has answered a request by it, in ms; and until etcd
    had acknowledged the put."""
    keys = Keys(etcd, "/latency")
    keys.put_all(content.front(on.to.v1, on.to.v2))
    took: list[float] = []
    acknowledged: list[float] = []
    with running(on.work, etcd, keys.prefix, "east", "west") as nodes, probes(nodes) as asked:
        seconds = 3 + changes * 0.15
        with load(on, nodes, rate, seconds) as found:
            time.sleep(0.5)
            stop = time.monotonic() + seconds - 1.5
            for number in range(changes):
                if time.monotonic() > stop:
                    break
                version = "v2" if number % 2 == 0 else "v1"
                began = time.monotonic()
                answer = keys.begin(f"{content.SERVICE}/rules/probe", content.probe(version))
                answer.add_done_callback(lambda _, began=began: acknowledged.append((time.monotonic() - began) * 1000))
                missing = list(asked)
                while missing := [probe for probe in missing if probe.version() != version]:
                    if time.monotonic() - began > 10:
                        raise BenchError(f"change {number} did not decide a request within 10 s")
                    time.sleep(0.0005)
                took.append((time.monotonic() - began) * 1000)
                answer.result()
                time.sleep(0.02 + number % 7 * 0.01)
    if not took:
        raise BenchError("no change was made")
    return {"changes": len(took), "ms": took, "put_ms": acknowledged, "rate": rate, "traffic": found}


def storm(on: Stage, etcd: Etcd, seconds: int, per_second: int, rate: float) -> dict[str, Any]:
    """Traffic without changes; then beside so many a second to keys that nobody watches, which is what etcd and the one
    who puts them cost where they are; then the same to keys that the node follows, and memory of the node's tree.

    etcd and the one who puts take a core between them, which on two cores is half of what traffic has: it would be they
    that the p99 of traffic tells of. Where a fleet is changed a thousand times a second they are other machines. So the
    last core is theirs, and the whole node, its control process too, shares the others with its clients and upstreams,
    in the quiet run as well: what is compared is the node with a storm to follow and the node without.
    """
    keys, aside = Keys(etcd, "/storm"), Keys(etcd, "/aside")
    here = on.cores.load  # where the upstreams are
    held = content.front(on.to.v1, on.to.v2) | content.many(SERVICES, 1_000, 500)
    for each in (keys, aside):
        each.put_all(held)
    with (
        _elsewhere(etcd, on.cores.proxy),
        running(on.work, etcd, keys.prefix, "stormy", cores=here) as nodes,
    ):
        with load(on, nodes, rate, seconds, here) as calm:
            time.sleep(seconds)
        with load(on, nodes, rate, seconds, here) as unwatched:
            _blow(aside, seconds, per_second, lambda: None)
        samples: list[tuple[float, int]] = []
        before = _spent(nodes)
        with load(on, nodes, rate, seconds, here) as traffic:
            began = time.monotonic()
            last = _blow(keys, seconds, per_second, lambda: samples.append((time.monotonic() - began, _pss(nodes))))
            ended = time.monotonic()
            sent = ended - began
            spent = {name: (after - before[name]) / sent for name, after in _spent(nodes).items()}
            until(lambda: all(node.serves(last) for node in nodes), "the storm's last change in force", 60)
            converged = time.monotonic() - ended
        return {
            "seconds": seconds, "sent_seconds": sent, "changes": seconds * per_second, "converged_s": converged,
            "cores": spent,
            "memory": [{"s": at, "bytes": size} for at, size in samples],
            "calm": calm, "unwatched": unwatched, "traffic": traffic, "rate": rate,
        }  # fmt: skip


@contextmanager
def _elsewhere(etcd: Etcd, cores: frozenset[int]) -> Iterator[None]:
    """etcd and this process, which puts, on these cores alone."""
    before = frozenset(os.sched_getaffinity(0))
    for pid in (etcd.pid, os.getpid()):
        pin(pid, cores)
    try:
        yield
    finally:
        pin(os.getpid(), before)


def _spent(nodes: list[Node]) -> dict[str, float]:
    """CPU seconds of all supervisors, and of the worker that had most."""
    workers = [[each["pid"] for each in node.workers()] for node in nodes]
    return {
        "control": cpu_seconds(node.pid for node in nodes),
        "worker": max(cpu_seconds([pid]) for each in workers for pid in each),
    }


def _pss(nodes: list[Node]) -> int:
    sizes = [memory(node.pids()) for node in nodes]
    return sum((each.pss if each.pss is not None else each.rss) * 1024 for each in sizes)


def _blow(keys: Keys, seconds: int, per_second: int, sample: Any) -> int:
    """The revision of the last put. Instances' weights, and one rule's target in ten, over all services."""
    began, last, waiting = time.monotonic(), 0, []
    for number in range(seconds * per_second):
        if number % (per_second * max(1, seconds // 12)) == 0:
            sample()
        due = began + number / per_second
        if (pause := due - time.monotonic()) > 0:
            time.sleep(pause)
        if number % 10:
            key, value = content.instance(number % 1_000, SERVICES, 50 + number // 1_000 % 100)  # another one each time
        else:
            key, value = content.rule(number // 10 % 500, SERVICES)
            value["to"] = f"v{number // 5_000 % 2 + 1}"
        waiting.append(keys.begin(key, value))
        if len(waiting) >= PIPELINED:
            last = max(last, int(waiting.pop(0).result().header.revision))
    sample()
    return max([last, *(int(each.result().header.revision) for each in waiting)])


def large(on: Stage, etcd: Etcd, services: int) -> dict[str, Any]:
    """A start with many instances and rules, from etcd and without it; then one instance's change, in CPU of the
    control process and of each worker."""
    keys = Keys(etcd, f"/large-{services}")
    keys.put_all(content.front(on.to.v1, on.to.v2) | content.many(services, INSTANCES, RULES))
    node = Node(on.work, f"large-{services}", etcd, keys.prefix)
    try:
        from_etcd = node.start()
        start_cpu = cpu_seconds(node.pids())
        changes = _changes(node, keys, services)
        node.stop()  # which writes what was good last
        etcd.kill()
        from_disk = node.start()
        node.stop()
        etcd.start()
        return {"services": services, "from_etcd_s": from_etcd, "from_disk_s": from_disk, "cpu_s": start_cpu, **changes}
    finally:
        node.stop()


def _changes(node: Node, keys: Keys, services: int) -> dict[str, Any]:
    """Single changes, in ms of CPU of the control process and of the worker that had more; less what an idle node uses
    in that time. Looking at `/status` would cost the control process more than the change, so workers are asked."""
    workers = [each["pid"] for each in node.workers()]
    rows = []
    with probes([node]) as asked:
        idle = _idle(node.pid, workers)
        for number in range(CHANGES_OF_ONE):
            change = content.instance(number * 7, services, 50 + number)
            spent, seconds = _cpu_while(node.pid, workers, partial(_change, keys, asked, *change))
            control, *others = [(a - b * seconds) * 1000 for a, b in zip(spent, idle, strict=True)]
            rows.append((control, max(others)))
    return {"control_ms": [a for a, _ in rows], "worker_ms": [b for _, b in rows]}


def _idle(control: int, workers: list[int]) -> list[float]:
    """The part of a core that each uses with nothing to do, once what a start leaves to do is done: the file of what
    was good last, a spare worker, and above all the leader's records of what has changed while nobody led."""
    for _ in range(60):
        spent, seconds = _cpu_while(control, workers, lambda: time.sleep(2))
        shares = [each / seconds for each in spent]
        if max(shares) < AT_REST:
            return shares
    raise BenchError(f"the node uses {max(shares):.0%} of a core two minutes after its start, with nothing to do")


def _change(keys: Keys, asked: list[Probe], key: str, value: Any) -> None:
    """Returns when all workers serve it, and what else it entails has had a moment."""
    revision = keys.put(key, value)
    until(lambda: all(probe.revision() >= revision for probe in asked), f"revision {revision} in force")
    time.sleep(0.1)


def _cpu_while(control: int, workers: list[int], work: Callable[[], Any]) -> tuple[list[float], float]:
    """(CPU seconds of the control process and each worker, seconds) that the work took."""
    pids, began = (control, *workers), time.monotonic()
    before = [cpu_seconds([pid]) for pid in pids]
    work()
    spent = [cpu_seconds([pid]) - then for pid, then in zip(pids, before, strict=True)]
    return spent, time.monotonic() - began


def outage(on: Stage, etcd: Etcd, seconds: int, rate: float) -> dict[str, Any]:
    """etcd is killed under load for so long; one of the nodes is killed and started meanwhile; then etcd is back."""
    keys = Keys(etcd, "/outage")
    keys.put_all(content.front(on.to.v1, on.to.v2))
    split = {"v1": 80, "v2": 20}
    keys.put(f"{content.SERVICE}/service", {"stable": "v1", "sticky": [{"header": "x-user-id"}]})
    keys.put(f"{content.SERVICE}/split", split)
    with running(on.work, etcd, keys.prefix, "steady", "killed") as nodes:
        steady, killed = nodes
        until(lambda: len(set(_users(steady.port).values())) == 2, "the split in force")
        until(lambda: _users(killed.port) == _users(steady.port), "both nodes agree")
        before = _users(killed.port)
        kept = killed.get("/status")["etcd"]["applied"]
        until(lambda: killed.get("/status")["etcd"]["last_good"]["revision"] >= kept, "what was good last is on disk")
        with load(on, [steady], rate, seconds + 10) as traffic:
            began = time.monotonic()
            etcd.kill()
            time.sleep(seconds / 2)
            killed.kill()
            restart = killed.start()
            after = _users(killed.port)
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
            etcd.start()
            revision = keys.put(f"{content.SERVICE}/rules/probe", content.probe("v2"))
            back = time.monotonic()
            until(lambda: all(node.serves(revision) for node in nodes), "the nodes have caught up")
            caught_up = time.monotonic() - back
    moved = sum(before[user] != after[user] for user in before)
    return {"seconds": seconds, "restart_s": restart, "moved": moved, "users": len(before), "caught_up_s": caught_up,
            "traffic": traffic, "rate": rate}  # fmt: skip


def _users(port: int, count: int = 200) -> dict[int, str]:
    """Which version each of so many users gets."""
    client = Probe(port)
    try:
        head = "GET /128 HTTP/1.1\r\nHost: x\r\nX-User-Id: user-{}\r\n\r\n"
        return {user: field_of(client.ask(head.format(user).encode()), b"x-version") for user in range(count)}
    finally:
        client.close()


def respawn(on: Stage, etcd: Etcd, kills: int) -> dict[str, Any]:
    """Workers die by SIGKILL while new clients come without pause: how long until each serves again, and how many
    connections were refused."""
    keys = Keys(etcd, "/respawn")
    keys.put_all(content.front(on.to.v1, on.to.v2))
    with running(on.work, etcd, keys.prefix, "mortal") as (node,), _Callers(node.port) as callers:
        took = []
        for number in range(kills):
            time.sleep(0.7)  # a worker that dies young is given a rest before the next
            worker = node.workers()[number % 2]
            os.kill(worker["pid"], signal.SIGKILL)
            again = until(partial(_again, node, worker), "the worker serves again")
            took.append(again * 1000)
            time.sleep(0.7)
    return {"kills": kills, "ms": took, "refused": callers.refused, "cut": callers.cut, "connections": callers.answered}


def _again(node: Node, worker: dict[str, Any]) -> float:
    now = node.workers()[worker["worker"]]
    return now["recovered"] if now["restarts"] > worker["restarts"] and now["ready"] else 0.0


class _Callers:
    """Threads that connect, ask once, and leave. Those that a worker took with it to its grave are `cut`."""

    def __init__(self, port: int, count: int = 2) -> None:
        self.answered = self.refused = self.cut = 0
        self._port = port
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]

    def __enter__(self) -> _Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(0.001):
            outcome = self._call()
            with self._lock:
                setattr(self, outcome, getattr(self, outcome) + 1)

    def _call(self) -> str:
        try:
            client = socket.create_connection(("127.0.0.1", self._port), 10)
        except OSError:
            return "refused"
        with client:
            try:
                client.sendall(ASK)
                return "answered" if client.recv(4096).startswith(b"HTTP/1.1 200 ") else "cut"
            except OSError:
                return "cut"
