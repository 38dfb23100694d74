"""Before a proxy is measured, it must do the job; while it is measured, the upstreams are counted."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from benchmarks.failure import BenchError
from benchmarks.load.cases import CASES, SPLIT
from benchmarks.load.peers import Peer, Upstreams
from benchmarks.stats import share_bounds

CLIENTS = 20
REQUESTS_EACH = 50
QUIET = 0.02
"""Seconds without a request, after which none is on its way any more."""
PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What an upstream has seen since it started."""

    requests: int
    bodies: int
    connections: int

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.requests - before.requests, self.bodies - before.bodies, self.connections - before.connections
        )


def parse_counts(text: str) -> Counts:
    """Reads what an upstream answers to /count."""
    found = re.fullmatch(r"requests (\d+) bodies (\d+) connections (\d+)\n", text)
    if found is None:
        raise BenchError(f"an upstream's /count said {text!r}")
    return Counts(*(int(group) for group in found.groups()))


def ask(
    client: http.client.HTTPConnection,
    path: str,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    body: bytes | None = None,
) -> tuple[str, bytes, bool]:
    """(version, body, connection kept) of one 200 answer; anything else raises BenchError."""
    try:
        client.request(method, path, body, dict(headers or {}))
        answer = client.getresponse()
        kept = not answer.will_close
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"{method} {path}: {type(error).__name__}: {error}") from error
    if answer.status != 200:
        raise BenchError(f"{method} {path}: status {answer.status}, expected 200")
    return answer.getheader("x-version", ""), content, kept


def count_at(port: int) -> Counts:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        return parse_counts(ask(client, "/count")[1].decode())
    finally:
        client.close()


def at_rest(to: Upstreams, count: Callable[[int], Counts] = count_at) -> tuple[Counts, Counts]:
    """What both have counted, once they count no more: what clients left unanswered may still be on its way to them.

    Raises BenchError when they are asked without end.
    """
    deadline = time.monotonic() + PATIENCE
    seen = count(to.v1), count(to.v2)
    while time.monotonic() < deadline:
        time.sleep(QUIET)
        before, seen = seen, (count(to.v1), count(to.v2))
        if [each.requests for each in before] == [each.requests for each in seen]:
            return seen
    raise BenchError(f"the upstreams are asked although nobody has had a load for {PATIENCE:.0f} s")


def check_share(seen: int, count: int, share: float, what: str) -> None:
    """Raises BenchError when v2's part of `count` answers cannot come from this share."""
    low, high = share_bounds(share, count)
    if not low <= seen / count <= high:
        raise BenchError(f"{what}: v2 got {seen} of {count}, expected between {low:.2%} and {high:.2%}")


class Verifier:
    """Checks one proxy over CLIENTS connections that stay open all along."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.clients = [http.client.HTTPConnection("127.0.0.1", peer.port, timeout=10) for _ in range(CLIENTS)]

    def fail(self, text: str) -> BenchError:
        return BenchError(f"{self.peer.name} does not do the job: {text}")

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def bodies(self) -> None:
        for size in sorted({case.size for case in CASES}):
            content = ask(self.clients[0], f"/{size}")[1]
            if content != b"x" * size:
                raise self.fail(f"/{size} brought {len(content)} bytes, or other ones")

    def uploads(self, to: Upstreams) -> None:
        before = count_at(to.v1), count_at(to.v2)
        sizes = [case.body for case in CASES if case.body]
        for size in sizes:
            ask(self.clients[0], "/128", method="POST", body=b"b" * size)
        arrived = sum(count_at(port).since(seen).bodies for port, seen in zip((to.v1, to.v2), before, strict=True))
        if arrived != sum(sizes):
            raise self.fail(f"{arrived} of {sum(sizes)} bytes of request bodies arrived")

    def rules(self) -> None:
        for name, value in (("user-group", "beta"), ("x-service-version", "v2")):
            versions = {ask(self.clients[each % CLIENTS], "/128", {name: value})[0] for each in range(200)}
            if versions != {"v2"}:
                raise self.fail(f"{name}: {value} went to {sorted(versions)}, expected v2 alone")

    def users(self, numbers: Iterable[int] = (0, 1, 19, 20, 9_980, 9_999)) -> None:
        """The peer of many rules: a rule for each user, every twentieth goes to v2."""
        for number in numbers:
            version = ask(self.clients[0], "/128", {"x-user-id": f"u{number}"})[0]
            if version != ("v2" if number % 20 == 0 else "v1"):
                raise self.fail(f"user u{number} went to {version}")

    def split(self) -> None:
        versions = [ask(client, "/128")[0] for _ in range(REQUESTS_EACH) for client in self.clients]
        if set(versions) != {"v1", "v2"}:
            raise self.fail(f"the split answered from {sorted(set(versions))}")
        check_share(versions.count("v2"), len(versions), SPLIT, f"{self.peer.name}, split")

    def forwarding(self) -> None:
        _, content, kept = ask(self.clients[0], "/head")
        head = content.decode().lower()
        if not kept:
            raise self.fail("it closes a client's connection after one request")
        if " http/1.1\r\n" not in head or "connection: close" in head:
            raise self.fail(f"upstream it does not speak HTTP/1.1 with keep-alive: {head!r}")
        # Envoy puts the machine's own address in place of a loopback one
        if not re.search(r"\r\nx-forwarded-for: [0-9.]+\r\n", head):
            raise self.fail(f"no X-Forwarded-For of the client arrives upstream: {head!r}")

    def pooling(self, before: int, to: Upstreams) -> None:
        opened = count_at(to.v1).connections + count_at(to.v2).connections - before
        if opened > 2 * CLIENTS:
            raise self.fail(f"{opened} upstream connections for {CLIENTS} clients: it does not pool them")


def verify(peer: Peer, to: Upstreams) -> None:
    """Raises BenchError unless the proxy routes, splits, forwards, keeps alive and pools as the job says.

    The floor only copies: it is checked for bodies alone.
    """
    before = count_at(to.v1).connections + count_at(to.v2).connections
    verifier = Verifier(peer)
    try:
        verifier.bodies()
        verifier.uploads(to)
        if peer.name != "floor":
            verifier.rules()
            verifier.split()
            verifier.forwarding()
            verifier.pooling(before, to)
        if peer.name == "graylb-10k":
            verifier.users()
    except BenchError as error:
        raise BenchError(f"{peer.name}: {error}") from error
    finally:
        verifier.close()
