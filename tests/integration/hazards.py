"""The hazards of HTTP/1 against a running graylb: `python -m tests.integration.hazards` prints the score.

Every payload goes to a proxy of its own in several ways. What reaches the upstream is judged there by two readers that
are not graylb's: `wire` on each message as it arrives, and h11 on each connection's bytes as a whole.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import IMPATIENT, Site
from tests.fuzz.messages import h11_stream
from tests.integration import answers, proxies
from tests.integration.payloads import HAZARDS, PAYLOADS, Payload
from tests.integration.upstream import Call, Request

WAYS = ("whole", "by bytes", "by sevens", "behind a good request")
"""How a payload is sent: the verdict must not depend on it."""
PIECES = 2000
"""Sends of one payload at most; larger ones go in larger crumbs."""


def name_back(call: Call) -> None:
    call.body()
    call.answer(200, call.request.target.encode("latin-1"))


def statuses(raw: bytes) -> list[int]:
    """Statuses of the answers in `raw`; all our answers and the upstream's here have their length."""
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ", head)
        assert status, f"no answer: {raw[:200]!r}"
        found.append(int(status[1]))
        length = re.search(rb"(?i)\r\ncontent-length: ([0-9]+)", head)
        assert length or status[1] == b"100", f"no length: {head!r}"
        raw = rest[int(length[1]) if length else 0 :]
    return found


def send(site: Site, payload: Payload, way: str) -> tuple[list[int], list[Request]]:
    """The statuses that the client gets until the connection's end, and what reached the upstream."""
    site.upstream.default = name_back
    data = payload.for_host(site.host)
    if way == "behind a good request":
        data = site.request(target="/first") + data
    step = max({"by bytes": 1, "by sevens": 7}.get(way, len(data)), len(data) // PIECES)
    before = len(site.requests)
    with site.proxy.client() as client:
        with contextlib.suppress(OSError):  # refused before its last byte was sent
            client.drip(data, step)
            client.half_close()
        got = statuses(client.rest())
    site.upstream.settle()
    reached = site.requests[before:]
    canary = site.ask(target="/canary")
    assert (canary.status, canary.body) == (200, b"/canary"), "the next client got somebody else's answer"
    site.upstream.check()
    if way == "behind a good request":
        # where an error follows at once, the client may be told of it before the good answer has come
        assert got, "no answer to the good request"
        if got[0] == 200:
            assert [request.target for request in reached[:1]] == ["/first"]
            got, reached = got[1:], reached[1:]
    return got, reached


def judge(payload: Payload, got: list[int], reached: list[Request]) -> None:
    told = [(request.target, bytes(request.body)) for request in reached]
    refused = payload.verdict == "refuse" or (payload.verdict == "either" and not (got and got[0] == 200))
    if refused:
        assert told == [], f"reached the upstream; answers {got}"
        assert len(got) == 1 or (payload.unfinished and not got), f"answers {got}"
        assert not got or got[0] in (payload.statuses or range(400, 600)), f"answers {got}"
    elif payload.verdict == "cut":
        assert not any(request.complete for request in reached), f"a complete request reached the upstream: {told}"
        assert len(reached) <= 1
        assert all(status in payload.statuses for status in got), f"answers {got}"
        assert len(got) <= 1
    else:
        assert told == list(payload.arrive), f"reached the upstream: {told}; answers {got}"
        assert all(request.complete for request in reached)
        good = [status for status in got if status != 100]
        assert good[: len(told)] == [200] * len(told), f"answers {got}"
        rest = good[len(told) :]
        assert len(rest) == payload.then_refused or (payload.unfinished and not rest), f"answers {got}"
        assert all(status in (payload.statuses or range(400, 600)) for status in rest), f"answers {got}"
        for name in payload.keeps:
            assert reached[0].all(name), f"{name} is missing"
        for name in payload.lacks:
            assert not reached[0].all(name), f"{name} reached the upstream"


def check_wire(site: Site) -> int:
    """h11 reads from each upstream connection's bytes the requests that `wire` read; their number."""
    for connection in site.upstream.connections:
        seen = [request for request in site.requests if request.connection == connection.number]
        whole = [request for request in seen if request.complete]
        assert whole == seen[: len(whole)], "a request behind one that was cut"
        for request, theirs in zip(whole, h11_stream(bytes(connection.raw), len(whole)), strict=True):
            assert (request.method.encode(), request.target.encode("latin-1")) == (theirs.method, theirs.target)
            assert bytes(request.body) == theirs.body
    return len(site.requests)


@contextlib.contextmanager
def own_site() -> Iterator[Site]:
    """A site of a proxy for it alone."""
    site = Site("hazards")
    service = proxies.service(site.upstream.address, hosts=[site.host], timeouts=IMPATIENT)
    document = proxies.document({site.name: service})
    with tempfile.TemporaryDirectory() as folder, proxies.running(Path(folder), document) as proxy:
        site.proxy = proxy
        site.upstream.start()
        yield site
        site.finish()


def main() -> int:
    """The score; 1 when a payload was not treated as the law has it."""
    score = {hazard: [0, 0] for hazard in HAZARDS}
    wrong = []
    with own_site() as site:
        for payload in PAYLOADS:
            for way in WAYS:
                before = len(site.requests)
                try:
                    judge(payload, *send(site, payload, way))
                except AssertionError as error:
                    wrong.append(f"{payload.hazard} {payload.name}, {way}: {error}")
                    site.upstream.faults.clear()
                # the canary is one, and so is the good request in front
                own = len(site.requests) - before - 1 - (way == WAYS[-1])
                score[payload.hazard][own > 0] += 1
        for number, answer in enumerate(answers.ANSWERS):
            try:
                answers.ask(site, answer, number)
            except AssertionError as error:
                wrong.append(f"15 {answer.name}: {error}")
                site.upstream.faults.clear()
            score["15"][answer.verdict == "pass"] += 1
        arrived = check_wire(site)
    print(f"{'hazard':76} refused  passed canonically")
    for hazard, (refused, passed) in score.items():
        print(f"{hazard:>2} {HAZARDS[hazard]:73} {refused:7} {passed:19}")
    print(f"{len(PAYLOADS)} payloads x {len(WAYS)} ways, {len(answers.ANSWERS)} answers; {arrived} requests arrived;")
    print(f"{len(wrong)} reached the upstream in a non-canonical form, or were not treated as the law has it")
    for line in wrong:
        print("  ", line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
