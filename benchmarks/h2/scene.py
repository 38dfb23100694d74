"""The stage of the HTTP/2 and TLS benchmarks: upstreams of both protocols, certificates, proxies by side."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import programs
from benchmarks.failure import BenchError
from benchmarks.h2.certificates import write_certificates
from benchmarks.h2.peers import KINDS, Side, Start
from benchmarks.h2.verify import verify
from benchmarks.load import peers
from benchmarks.load.peers import Peer, Setting, Upstreams
from benchmarks.load.process import check_idle, check_pinned, tree
from benchmarks.load.stage import Cores

NEEDED = ("graylb", "nghttpx", "haproxy")


@dataclass(frozen=True, slots=True)
class Scene:
    cores: Cores
    work: Path
    to: Mapping[str, Upstreams]  # by protocol, h1 and h2

    def start(self, side: Side, connections: int = 4096) -> Start:
        return Start(Setting(self.work, self.cores.proxy, self.to[side.upstream], connections), side)

    def native(self, name: str, *arguments: object) -> list[str]:
        return [str(self.work / name), *map(str, arguments)]


@contextmanager
def scene(cores: Cores, natives: Sequence[str] = ()) -> Iterator[Scene]:
    """A folder with certificates and native programs, upstreams up. Raises BenchError, say for a missing header."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graylb-bench-")))
        work.chmod(0o755)  # nginx workers run as another user
        write_certificates(work)
        peers.compile_native(work, ("upstream", "h2upstream", *natives))

        def pair(program: str) -> Upstreams:
            return Upstreams(
                *(stack.enter_context(peers.upstream(each, work, cores.load, program)) for each in ("v1", "v2"))
            )

        yield Scene(cores, work, {"h1": pair("upstream"), "h2": pair("h2upstream")})


@contextmanager
def all_up(on: Scene, names: Sequence[str], sides: Sequence[Side]) -> Iterator[dict[tuple[str, Side], Peer]]:
    """These proxies, one for each side, pinned, doing their job, and idle."""
    with ExitStack() as stack:
        up: dict[tuple[str, Side], Peer] = {}
        for side in sides:
            for name in names:
                peer = up[name, side] = stack.enter_context(KINDS[name].start(on.start(side)))
                check_pinned(tree(peer.pid), on.cores.proxy, peer.name)
                verify(peer, side, on.to[side.upstream])
        check_idle({peer.name: tree(peer.pid) for peer in up.values()})
        yield up


def present(names: Sequence[str], needed: Sequence[str] = NEEDED) -> tuple[list[str], list[str]]:
    """(those whose program is there, the others). Raises BenchError for one of `needed` that is missing."""
    there = [name for name in names if not KINDS[name].program or programs.look_up(KINDS[name].program)]
    missing = [name for name in names if name not in there]
    for name in missing:
        if name in needed:
            raise BenchError(f"{name} is not installed; {programs.PROGRAMS[KINDS[name].program].install}")
    return there, missing
