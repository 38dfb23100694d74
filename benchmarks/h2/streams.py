"""Streams that are slow, idle or hostile: what they cost in memory and processor time, and whether others suffer.

Each proxy is started for itself and has served a few small requests before. Memory is what its process tree has more
than then: resident for what passes by, private pages for what stays.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import report, stamp
from benchmarks.failure import BenchError
from benchmarks.h2 import frames
from benchmarks.h2.client import Client
from benchmarks.h2.frames import Attacker, Frames, batches
from benchmarks.h2.peers import KINDS, Side
from benchmarks.h2.scene import Scene, scene
from benchmarks.h2.verify import GRPC, verify
from benchmarks.load.idle import private_bytes, raise_limit
from benchmarks.load.peers import Peer
from benchmarks.load.process import check_pinned, cpu_seconds, tree
from benchmarks.load.stage import drive, finish, my_cores, spawn

MIB = 1 << 20
SIDE = Side("h2")
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    stream: int = 1 << 30  # bytes
    idle: int = 10_000  # streams, 100 on each connection
    frames: int = 100_000
    bombs: int = 200  # header blocks
    bystander: int = 600  # requests, before and during


QUICK = Size(stream=64 * MIB, idle=1000, frames=20_000, bombs=50, bystander=200)
BURST = 4 * MIB
PAUSE = 0.015
"""A slow reader takes BURST bytes, then nothing for so many seconds: 250 MiB a second at most."""
RATE = 200.0
"""Requests a second of a bystander."""


def resident(pids: Sequence[int]) -> int:
    """Bytes; cheap enough to be asked often."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * PAGE


class Watch:
    """The most that a process tree has resident while this runs, less what it had before."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = pids
        self.before = self.most = resident(pids)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        while not self.ended.wait(0.02):
            self.most = max(self.most, resident(self.pids))

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.most = max(self.most, resident(self.pids))

    @property
    def grown(self) -> float:
        return (self.most - self.before) / MIB


# -- slow readers -------------------------------------------------------------------------------------------------


def read_slowly(port: int, size: int, window: int) -> int:
    """Bytes of DATA of one gRPC answer of `size`. The stream has this window, opened anew for what was read; with one
    larger than the answer nothing but TCP holds the sender back. Raises BenchError when it ends early."""
    head = frames.block(f"/bench.Echo/{size}", "POST", *GRPC)
    attacker = Attacker(port)
    attacker.socket.setblocking(True)
    attacker.socket.settimeout(30)
    with attacker.socket as reader:
        opening = frames.opening(window) + frames.window_update(0, 0x7FFFFFFF - 65535)
        reader.sendall(opening + frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, head))
        split, got, due, open_for = Frames(), 0, BURST, 0
        while True:
            received = reader.recv(1 << 18)
            if not received:
                raise BenchError(f"a stream of {size} bytes ended after {got}")
            for kind, flags, stream, payload in split.feed(received):
                if kind in (frames.GOAWAY, frames.RST_STREAM):
                    raise BenchError(f"a stream of {size} bytes was broken off after {got}")
                if kind == frames.DATA:
                    got += len(payload)
                    open_for += len(payload)
                if stream == 1 and flags & frames.END_STREAM and kind in (frames.DATA, frames.HEADERS):
                    return got
            if open_for >= window // 2:
                reader.sendall(frames.window_update(1, open_for))
                open_for = 0
            if got >= due:
                time.sleep(PAUSE)
                due += BURST


WARM = 64 * MIB


def slow_reader(peer: Peer, size: Size, window: int) -> dict[str, Any]:
    # what is still starting, and what is touched for the first time, is not the stream's
    read_slowly(peer.port, WARM, window)
    pids = tree(peer.pid)
    before = cpu_seconds(pids)
    with Watch(pids) as watch:
        got = read_slowly(peer.port, size.stream, window)
    if got != size.stream:
        raise BenchError(f"{peer.name}: {got} of {size.stream} bytes came")
    spent = cpu_seconds(pids) - before
    return {"grown_mib": watch.grown, "cpu_us_mib": spent * 1e6 / (size.stream / MIB)}


# -- idle streams -------------------------------------------------------------------------------------------------

PER_CONNECTION = 100


def hold(port: int, stack: ExitStack, count: int) -> None:
    """`count` streams on one connection that have their answers' heads, and nothing more."""
    client = Attacker(port)
    stack.callback(client.close)
    client.socket.setblocking(True)
    client.socket.settimeout(30)
    head = frames.block("/hold", "POST", *GRPC)
    client.socket.sendall(frames.opening())
    client.socket.sendall(
        b"".join(frames.frame(frames.HEADERS, frames.END_HEADERS, each, head) for each in frames.numbers(count))
    )
    answered: set[int] = set()
    while len(answered) < count:
        received = client.socket.recv(1 << 18)
        if not received:
            raise BenchError(f"a connection was closed that holds {count} streams")
        for kind, _, stream, _ in client.frames.feed(received):
            if kind in (frames.GOAWAY, frames.RST_STREAM):
                raise BenchError(f"{len(answered)} of {count} streams were answered, then one was reset")
            if kind == frames.HEADERS:
                answered.add(stream)


def idle(peer: Peer, size: Size) -> dict[str, Any]:
    with ExitStack() as warm:
        hold(peer.port, warm, PER_CONNECTION)
    before = private_bytes(peer.pid)
    with ExitStack() as stack:
        for _ in range(size.idle // PER_CONNECTION):
            hold(peer.port, stack, PER_CONNECTION)
        used = private_bytes(peer.pid) - before
    return {"streams": size.idle, "each": max(1, used) / size.idle}


# -- floods -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attack:
    """`deaf`: the attacker reads no answers. `few`: of these Size.bombs are sent, of the others Size.frames."""

    name: str
    title: str
    make: Callable[[int], Iterator[bytes]]
    deaf: bool = False
    few: bool = False


ATTACKS = (
    Attack("rapid-reset", "rapid reset", frames.rapid_reset),
    Attack("provoked-reset", "resets provoked by WINDOW_UPDATE 0", frames.provoked_resets),
    Attack("continuation", "CONTINUATION without end", frames.continuation),
    Attack("settings", "SETTINGS, answers unread", frames.settings, deaf=True),
    Attack("ping", "PING, answers unread", frames.ping, deaf=True),
    Attack("empty-data", "empty DATA", frames.empty_data),
    Attack("priority", "PRIORITY", frames.priority),
    Attack("window-update", "WINDOW_UPDATE +1", frames.window_updates),
    Attack("unknown", "unknown frames", frames.unknown),
    Attack("hpack-bomb", "HPACK bombs", frames.hpack_bomb, few=True),
)


def attack(peer: Peer, kind: Attack, size: Size) -> dict[str, Any]:
    """One flood, beside a connection that is served before it and after it."""
    pids = tree(peer.pid)
    count = size.bombs if kind.few else size.frames
    chunks = list(batches((frames.opening(), *kind.make(count))))
    with Client(peer.port, seconds=20) as bystander:
        bystander.ask("/64")
        before = cpu_seconds(pids)
        with Watch(pids) as watch:
            attacker = Attacker(peer.port, deaf=kind.deaf, patience=1.5)
            found = attacker.flood(chunks)
        spent = cpu_seconds(pids) - before
        attacker.close()
        answer = bystander.ask("/64")
    if tree(peer.pid) != pids:
        raise BenchError(f"{peer.name}: its processes changed under {kind.title}")
    if answer.status != 200:
        raise BenchError(f"{peer.name}: a bystander got {answer.status} after {kind.title}")
    return {
        "asked": count, **asdict(found), "streams": (found.last_stream + 1) // 2 if found.goaway else None,
        "cpu_s": spent, "grown_mib": watch.grown,
    }  # fmt: skip


def bystander(peer: Peer, on: Scene, size: Size) -> dict[str, Any]:
    """The latency of a bystander without and with others who reset without pause, one connection after the other."""
    command = [sys.executable, "-m", "benchmarks.h2.bystander", str(peer.port), str(size.bystander), str(RATE)]
    seconds = size.bystander / RATE + 30
    alone = drive(command, on.cores.load, seconds, f"{peer.name}, bystander")
    chunks = list(batches((frames.opening(), *frames.rapid_reset(3000))))
    load = spawn(command, on.cores.load)
    connections = 0
    while load.poll() is None:
        attacker = Attacker(peer.port, patience=0.2)
        attacker.flood(chunks)
        attacker.close()
        connections += 1
        time.sleep(0.02)
    beside = finish(load, seconds, f"{peer.name}, bystander under attack")
    if alone["failed"]:
        raise BenchError(f"{peer.name}: {alone['failed']} requests of a bystander failed with nobody else there")
    return {
        "alone_p99_us": alone["p99_us"], "p99_us": beside["p99_us"], "failed": beside["failed"],
        "connections": connections,
    }  # fmt: skip


# -- the whole ----------------------------------------------------------------------------------------------------

SLOW = {"slow-tcp": 0x7FFFFFFF, "slow-window": 65535}
"""Kind of slow reader -> its stream's window."""


@contextmanager
def up(on: Scene, name: str, connections: int) -> Iterator[Peer]:
    with KINDS[name].start(on.start(SIDE, connections)) as peer:
        check_pinned(tree(peer.pid), on.cores.proxy, name)
        verify(peer, SIDE, on.to["h2"])
        yield peer


def of_peer(name: str, on: Scene, size: Size) -> Iterator[dict[str, Any]]:
    """The rows of one proxy, which is started anew for each kind so that nothing is left of the one before."""
    with up(on, name, 1000) as peer:
        for case, window in SLOW.items():
            yield {"case": case, **slow_reader(peer, size, window)}
    with up(on, name, size.idle + 2000) as peer:
        yield {"case": "idle", **idle(peer, size)}
    with up(on, name, 1000) as peer:
        for kind in ATTACKS:
            yield {"case": kind.name, **attack(peer, kind, size)}
    with up(on, name, 1000) as peer:
        yield {"case": "bystander", **bystander(peer, on, size)}


def tell(row: Mapping[str, Any]) -> None:
    figures = {key: value for key, value in row.items() if key not in ("round", "case", "peer")}
    shown = (f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items())
    print(f"{row['peer']:8} {row['case']:15}", *shown, flush=True)


def run(names: Sequence[str], size: Size) -> dict[str, Any]:
    """The raw result, ready for JSON; proxies run one after the other. Raises BenchError."""
    environment = stamp.environment(("cc", *(KINDS[name].program for name in names if KINDS[name].program)))
    raise_limit(size.idle + 8000)  # of each process: some peers have a connection to the upstream for every stream
    rows: list[dict[str, Any]] = []
    with scene(my_cores()) as on:
        for name in names:
            for row in of_peer(name, on, size):
                rows.append({"round": 1, "peer": name, **row})
                tell(rows[-1])
    settings = {"peers": list(names), "size": asdict(size)}
    return {"kind": "streams", "stamp": environment, "settings": settings, "runs": rows}


SLOW_MIB, IDLE_BYTES, FLOOD_MIB, RESET_STREAMS, RESET_SECONDS, BYSTANDER = 4.0, 10 * 1024, 10.0, 1000, 0.5, 2.0
"""What is promised of graylb."""


def laws(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Each promise with its verdict. `found`: graylb's rows by case."""
    rows = []

    def judge(what: str, value: str, bound: str, held: bool) -> None:
        rows.append([what, value, bound, report.verdict(held)])

    for case, how in (("slow-tcp", "TCP holds it back"), ("slow-window", "its window does")):
        grown = found[case]["grown_mib"]
        judge(f"a slow reader, {how}: MiB", f"{grown:.1f}", f"< {SLOW_MIB:.0f}", grown < SLOW_MIB)
    each = found["idle"]["each"]
    judge("an idle stream: bytes", f"{each:,.0f}", f"< {IDLE_BYTES:,}", each < IDLE_BYTES)
    reset = found["rapid-reset"]
    streams, spent = reset["streams"], reset["cpu_s"]
    few = reset["closed"] and streams is not None and streams <= RESET_STREAMS
    judge("rapid reset: streams before the close", shown_streams(reset), f"≤ {RESET_STREAMS:,}", few)
    judge("rapid reset: CPU seconds", f"{spent:.2f}", f"≤ {RESET_SECONDS}", spent <= RESET_SECONDS)
    times = found["bystander"]["p99_us"] / found["bystander"]["alone_p99_us"]
    judge("a bystander's p99 beside it, to alone", f"{times:.2f}", f"≤ {BYSTANDER:.2f}", times <= BYSTANDER)
    failed = found["bystander"]["failed"]
    judge("a bystander's requests that fail", str(failed), "0", not failed)
    for kind in ATTACKS:
        row = found[kind.name]
        held = row["closed"] and row["grown_mib"] <= FLOOD_MIB
        became = f"{ending(row)}, {row['grown_mib']:.1f}"
        judge(f"{kind.title}: connection, MiB", became, f"closed, ≤ {FLOOD_MIB:.0f}", held)
    return rows


def shown_streams(row: Mapping[str, Any]) -> str:
    return "–" if row["streams"] is None else f"{row['streams']:,}"


def ending(row: Mapping[str, Any]) -> str:
    return "closed" if row["closed"] else "not read" if row["stalled"] else "GOAWAY" if row["goaway"] else "open"


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    settings = result["settings"]
    size, names = settings["size"], settings["peers"]
    titles = {**titles, **{name: kind.title for name, kind in KINDS.items()}}
    rows = {(row["peer"], row["case"]): row for row in result["runs"]}
    about = f"{size['stream'] / MIB:,.0f} MiB to slow readers, {size['idle']:,} idle streams, {size['frames']:,} frames"
    text = f"## Streams\n\n{report.stamp_lines(result)}- {about} of each flood, {size['bombs']} HPACK bombs\n"
    head = ["", *(titles[name] for name in names)]

    def line(title: str, case: str, cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
        return [title, *(cell(rows[name, case]) for name in names)]

    if report.OURS in names:
        ours = {case: row for (name, case), row in rows.items() if name == report.OURS}
        text += "\n### Laws\n\n" + report.table(["graylb", "found", "bound", "verdict"], laws(ours))
    text += "\n### Memory\n\n" + report.table(head, [
        line("slow reader held back by TCP: MiB", "slow-tcp", lambda row: f"{row['grown_mib']:.1f}"),
        line("slow reader held back by its window: MiB", "slow-window", lambda row: f"{row['grown_mib']:.1f}"),
        line("an idle stream: bytes", "idle", lambda row: f"{row['each']:,.0f}"),
    ])  # fmt: skip
    text += "\n### Floods: what becomes of the connection / CPU seconds / MiB\n\n" + report.table(head, [
        line(kind.title, kind.name, lambda row: f"{ending(row)} / {row['cpu_s']:.2f} / {row['grown_mib']:.1f}")
        for kind in ATTACKS
    ])  # fmt: skip
    text += "\n### Rapid reset\n\n" + report.table(head, [
        line("streams before the GOAWAY", "rapid-reset", shown_streams),
        line("bystander's p99 alone, ms", "bystander", lambda row: f"{row['alone_p99_us'] / 1000:.2f}"),
        line("requests of it that fail", "bystander", lambda row: str(row["failed"])),
        line("beside it, ms", "bystander", lambda row: f"{row['p99_us'] / 1000:.2f}"),
    ])  # fmt: skip
    return text
