"""Before a proxy is measured over HTTP/2, it must do the job."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.failure import BenchError
from benchmarks.h2.certificates import trusting
from benchmarks.h2.client import Answer, Client
from benchmarks.h2.h2load import message
from benchmarks.h2.peers import Side
from benchmarks.load import verify as h1
from benchmarks.load.cases import SPLIT
from benchmarks.load.peers import Peer, Upstreams
from benchmarks.load.verify import Counts, check_share, parse_counts

CLIENTS = 4
REQUESTS_EACH = 60
GRPC = (("content-type", "application/grpc"), ("te", "trailers"))


def counts_at(port: int, protocol: str) -> Counts:
    """What an upstream has seen since it started; `protocol` is h1 or h2."""
    if protocol == "h1":
        return h1.count_at(port)
    try:
        with Client(port) as client:
            return parse_counts(client.ask("/count").body.decode())
    except OSError as error:
        raise BenchError(f"an upstream tells no counts: {error}") from error


def chosen_by(name: str) -> list[tuple[str, str, str]]:
    """(header, its value, authority) of requests that a rule sends to v2; nghttpx knows rules by authority only."""
    if name == "nghttpx":
        return [("x-any", "1", "beta.test")]
    return [("user-group", "beta", "bench"), ("x-service-version", "v2", "bench")]


class Verifier:
    def __init__(self, peer: Peer, clients: list[Client]) -> None:
        self.peer = peer
        self.clients = clients

    def fail(self, text: str) -> BenchError:
        return BenchError(f"{self.peer.name} does not do the job: {text}")

    def ask(
        self, client: Client, path: str, headers: tuple[tuple[str, str], ...] = (), authority: str = "bench"
    ) -> Answer:
        found = client.ask(path, headers, authority=authority)
        if found.status != 200:
            raise self.fail(f"{path}: status {found.status}, expected 200")
        return found

    def bodies(self) -> None:
        for size in (64, 64 << 10):
            body = self.ask(self.clients[0], f"/{size}").body
            if body != b"x" * size:
                raise self.fail(f"/{size} brought {len(body)} bytes, or other ones")

    def grpc(self) -> None:
        found = self.clients[0].ask("/bench.Echo/64", GRPC, "POST", message())
        if (found.status, len(found.body), found.trailers.get("grpc-status")) != (200, 64, "0"):
            raise self.fail(f"a gRPC request got {found.status}, {len(found.body)} bytes, trailers {found.trailers}")

    def rules(self) -> None:
        for name, value, authority in chosen_by(self.peer.name.partition("-")[0]):
            asked = [self.ask(each, "/64", ((name, value),), authority=authority) for each in self.clients * 5]
            versions = {each.fields.get("x-version") for each in asked}
            if versions != {"v2"}:
                raise self.fail(f"{name}: {value} to {authority} went to {versions}, expected v2 alone")

    def split(self) -> None:
        versions = [self.ask(each, "/64").fields.get("x-version") for each in self.clients * REQUESTS_EACH]
        if set(versions) != {"v1", "v2"}:
            raise self.fail(f"the split answered from {set(versions)}")
        check_share(versions.count("v2"), len(versions), SPLIT, f"{self.peer.name}, split")

    def forwarding(self) -> None:
        head = self.ask(self.clients[0], "/head").body.decode().lower()
        if "x-forwarded-for: " not in head:
            raise self.fail(f"no X-Forwarded-For of the client arrives upstream: {head!r}")


def verify(peer: Peer, side: Side, to: Upstreams) -> None:
    """Raises BenchError unless the proxy routes, splits, forwards, passes trailers on and pools as the job says."""

    def connections() -> int:
        return sum(counts_at(port, side.upstream).connections for port in (to.v1, to.v2))

    before = connections()
    try:
        with ExitStack() as stack:
            context = trusting() if side.tls else None
            verifier = Verifier(peer, [stack.enter_context(Client(peer.port, context)) for _ in range(CLIENTS)])
            verifier.bodies()
            if side.upstream == "h2":
                verifier.grpc()
            verifier.rules()
            verifier.split()
            verifier.forwarding()
    except (BenchError, OSError) as error:
        raise BenchError(f"{peer.name}: {error}") from error
    opened = connections() - before
    if opened > 2 * CLIENTS + 2:  # asking for counts takes two
        raise BenchError(f"{peer.name}: {opened} upstream connections for {CLIENTS} clients: it does not pool them")
