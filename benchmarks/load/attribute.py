"""Where the microseconds of a 128 B request go: samples of the worker under load, by what it was doing.

`perf record` interrupts the worker 5,000 times a second of its processor time, in the kernel and out of it. A sample in
the kernel counts for the system call that it is under, one outside for the library and, in graylb's own, for the
function. The shares are then laid over the processor time per request that was measured without perf.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import programs, report, stamp
from benchmarks.failure import BenchError
from benchmarks.load import wrk
from benchmarks.load.cases import CASES
from benchmarks.load.process import cpu_seconds, tree
from benchmarks.load.stage import Stage, all_up, end, my_cores, spawn, stage
from benchmarks.load.verify import count_at

FREQUENCY = 5000
CASE = next(case for case in CASES if case.name == "get-128")
SYSTEM_CALL = re.compile(r"^__(?:x64|arm64)_sys_(\w+)$")
CALLS = {  # kernel entry -> row
    "recvfrom": "receive", "recvmsg": "receive", "read": "receive",
    "sendto": "send", "sendmsg": "send", "write": "send", "writev": "send",
    "epoll_wait": "wait for events", "epoll_pwait": "wait for events", "epoll_pwait2": "wait for events",
}  # fmt: skip
COUNTED = (
    "recvfrom", "recvmsg", "read", "sendto", "sendmsg", "write", "splice", "epoll_wait", "epoll_pwait", "epoll_pwait2",
    "epoll_ctl", "accept4", "connect", "close", "getpid", "futex",
)  # fmt: skip
DELIVERY = "send: delivery over loopback"
OWN = (  # (file name of the library, or a part of its path; function; row): the first that fits
    ("_http1", r"http1_(write_|_put|_number|_fields|_joined|_tell|_framing|chunk_head)", "write heads"),
    ("_http1", r"decode|chunk|body|hex", "bodies"),
    ("_http1", r"", "parse heads"),
    ("_gate", r"", "second parser"),
    ("httptools/parser/", r"", "second parser"),
    ("_fast", r"", "match and pick"),
    ("_live", r"", "instances, counters"),
    ("_pools", r"", "upstream pools"),
    ("_sockets", r"", "events and sockets"),
    ("_engine", r"", "exchanges and relay"),
    ("uvloop/loop.", r"", "uvloop"),
    ("python", r"", "Python"),
    ("vdso", r"", "clock"),
    ("libc", r"", "libc"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    symbol: str
    library: str


def samples(text: str) -> Iterator[list[Frame]]:
    """Call chains, innermost first, of `perf script -F ip,sym,dso`: an empty line ends each."""
    chain: list[Frame] = []
    for line in text.splitlines():
        found = re.match(r"\s*[0-9a-f]+\s+(.*?)(?:\+0x[0-9a-f]+)?\s+\((.*)\)\s*$", line)
        if found:
            chain.append(Frame(found.group(1), found.group(2)))
        elif chain:
            yield chain
            chain = []
    if chain:
        yield chain


def in_kernel(frame: Frame) -> bool:
    return frame.library in ("[kernel.kallsyms]", "[kernel]", "[unknown]") or frame.library.endswith(".ko")


def classify(chain: list[Frame]) -> tuple[str, str]:
    """(user or kernel, row) of one sample."""
    if in_kernel(chain[0]):
        symbols = [frame.symbol for frame in chain]
        call = next((found.group(1) for found in map(SYSTEM_CALL.match, symbols) if found), None)
        if call is None:
            return "kernel", "interrupts and entry"
        row = CALLS.get(call, "other system calls")
        return "kernel", DELIVERY if row == "send" and "net_rx_action" in symbols else row
    path, symbol = chain[0].library, chain[0].symbol
    for part, function, row in OWN:
        if part in (path if "/" in part else Path(path).name) and re.search(function, symbol):
            return "user", row
    return "user", "other"


def attribute(chains: Iterable[list[Frame]]) -> Counter[tuple[str, str]]:
    return Counter(classify(chain) for chain in chains)


def calls_per_request(said: str, requests: int) -> dict[str, float]:
    """Of `perf stat -x,`'s lines for the kernel's entry points: system call -> how many for each request."""
    found = {}
    for line in said.splitlines():
        match = re.match(r"(\d+),[^,]*,syscalls:sys_enter_(\w+),", line)
        if match and int(match.group(1)) / requests >= 0.005:
            found[match.group(2)] = int(match.group(1)) / requests
    return found


def under_load(on: Stage, port: int, seconds: int, watch: list[str] | None, what: str) -> tuple[int, str]:
    """Requests answered during a run, with `watch` beside it (perf, for as long); what that said."""
    load = spawn(wrk.command(CASE, port, seconds), on.cores.load)
    said = ""
    try:
        if watch:
            time.sleep(0.3)
            done = subprocess.run(watch, capture_output=True, text=True, check=False, timeout=seconds + 60)
            if done.returncode:
                raise BenchError(f"{what}: {watch[0]} ended with status {done.returncode}: {done.stderr[-400:]}")
            said = done.stdout + done.stderr
        return wrk.finish(load, CASE, seconds, what).requests, said
    finally:
        end(load)


def run(seconds: int) -> dict[str, Any]:
    """The raw result, ready for JSON. Raises BenchError, also where perf is missing or not allowed."""
    perf = programs.find("perf")
    environment = stamp.environment(("wrk", "cc", "perf"))
    with stage(my_cores()) as on, all_up(on, ["graylb"]) as up:
        peer = up["graylb"]
        pids = tree(peer.pid)
        under_load(on, peer.port, 1, None, "warm-up")
        before = cpu_seconds(pids)
        requests, _ = under_load(on, peer.port, seconds, None, "cost")
        cpu_us = (cpu_seconds(pids) - before) / requests * 1e6
        workers = ",".join(str(pid) for pid in pids)
        data = on.work / "perf.data"
        record = [perf, "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "-g", "-p", workers, "-o", str(data),
                  "--", "sleep", str(seconds)]  # fmt: skip
        under_load(on, peer.port, seconds + 2, record, "perf record")
        script = [perf, "script", "-i", str(data), "-F", "ip,sym,dso"]
        shown = subprocess.run(script, capture_output=True, text=True, check=False)
        found = attribute(samples(shown.stdout))
        if sum(found.values()) < 500:
            raise BenchError(f"perf took {sum(found.values())} samples, expected 500 at least: {shown.stderr[-300:]}")
        calls = count_calls(on, peer.port, perf, workers, seconds)
    total = sum(found.values())
    rows = [
        {"where": where, "row": row, "us": count / total * cpu_us, "samples": count}
        for (where, row), count in found.most_common()
    ]
    settings = {"seconds": seconds, "cpu_us": cpu_us, "samples": total, "case": CASE.title}
    for row in rows:
        print(f"{row['where']:7} {row['row']:24} {row['us']:6.2f} us", flush=True)
    return {"kind": "attribute", "stamp": environment, "settings": settings, "runs": rows, "calls": calls}


def served(on: Stage) -> int:
    return sum(count_at(port).requests for port in (on.to.v1, on.to.v2))


def count_calls(on: Stage, port: int, perf: str, pids: str, seconds: int) -> dict[str, float]:
    """System calls for each request, counted in the kernel, over the requests that upstreams served meanwhile."""
    events = [part for call in COUNTED for part in ("-e", f"syscalls:sys_enter_{call}")]
    before = served(on)
    command = [perf, "stat", "-x,", *events, "-p", pids, "--", "sleep", str(seconds + 2)]
    watch = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)
    under_load(on, port, seconds, None, "perf stat")
    _, said = watch.communicate(timeout=seconds + 30)
    if watch.returncode:
        raise BenchError(f"perf stat ended with status {watch.returncode}: {said[-400:]}")
    return calls_per_request(said, served(on) - before)


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    settings = result["settings"]
    cpu = settings["cpu_us"]
    rows = []
    for where in ("kernel", "user"):
        part = [run for run in result["runs"] if run["where"] == where]
        us = sum(run["us"] for run in part)
        rows.append([f"**{where}**", f"**{us:.2f}**", f"**{us / cpu:.0%}**"])
        rows.extend([f"{run['row']}", f"{run['us']:.2f}", f"{run['us'] / cpu:.1%}"] for run in part)
    text = f"## Where a request's microseconds go\n\n{report.stamp_lines(result)}"
    text += f"- {settings['case']}; {cpu:.1f} µs of processor time each; {settings['samples']:,} samples\n\n"
    text += report.table(["what", "µs", "share"], rows)
    calls = sorted(result["calls"].items(), key=lambda item: -item[1])
    text += "\n" + report.table(["system call", "for each request"], [[name, f"{each:.2f}"] for name, each in calls])
    return text
