"""`graylb mirror diff`: both answers to real requests of two versions that differ, and what it costs nobody."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from graylb.model.snapshot import Subset
from graylb.model.snapshot_faults import Mirror
from tests.integration import proxies, upstream
from tests.integration.engines import Ask, Rig, run, service, turns, until
from tests.integration.upstream import Call

Pair = tuple[bytes, str, str, tuple[Any, ...], tuple[Any, ...]]


def test_both_answers_are_kept_while_somebody_watches() -> None:
    async def test(rig: Rig) -> None:
        one, two = await rig.origin(), await rig.origin()

        async def large(ask: Ask) -> None:
            ask.answer(b"x" * 300_000)

        async def reset(ask: Ask) -> None:
            ask.link.reset()

        one.handlers["/large"] = two.handlers["/large"] = large
        two.handlers["/reset"] = reset
        rig.swap(service((one, "v1"), (two, "v2"), mirror=Mirror(Subset(version="v2"))))
        pairs: list[Pair] = []
        assert not rig.engine.watch_mirror("nobody", 30, 1, lambda name, pair: None)
        assert (await rig.ask("GET", "/before")).status == 200
        assert rig.engine.watch_mirror("up", 30, 3, lambda name, pair: pairs.append(pair))
        for path in ("/a?b=c", "/large", "/reset", "/beyond"):
            answer = await rig.ask("GET", path)
            assert (answer.status, len(answer.body)) == (200, 300_000 if path == "/large" else 5)
            await until(lambda: rig.engine.exchanges == 0, lambda: rig.stats)
            await turns()
        assert [(line, first, second) for line, first, second, *_ in pairs] == [
            (b"GET %s HTTP/1.1" % path, "v1", "v2") for path in (b"/a?b=c", b"/large", b"/reset")
        ]
        for primary, copy in (pairs[0][3:], pairs[1][3:]):
            assert primary == copy
        assert pairs[0][3] == (200, b"HTTP/1.1 200 Status\r\ncontent-length: 5\r\n\r\n", b"hello", 5, b"", True)
        assert (len(pairs[1][3][2]), pairs[1][3][3]) == (65536, 300_000)
        assert (pairs[2][3][0], pairs[2][4]) == (200, (0, b"", b"", 0, b"", False))

    run(test)


def answers(version: int) -> Any:
    """JSON whose time always differs, and one of whose fields differs by version."""
    seen = iter(range(1, 1_000_000))

    def handle(call: Call) -> None:
        call.body()
        body = {"at": 10 * next(seen) + version, "name": "same", "items": [{"price": version}]}
        call.answer(200, json.dumps(body).encode(), "content-type: application/json")

    return handle


def test_the_command_reports_what_differs(tmp_path: Path) -> None:
    with upstream.running("v1", "v2") as (one, two):
        for number, each in enumerate((one, two), 1):
            each.paths["/json"] = answers(number)
        pair = (one.address, "v1"), (two.address, "v2")
        doc = proxies.document(
            {
                "users": proxies.service(*pair, hosts=["users.test"], mirror={"to": "v2", "methods": ["GET"]}),
                "quiet": proxies.service(*pair, hosts=["quiet.test"]),
            }
        )
        with proxies.running(tmp_path, doc, "--workers", "2") as proxy:
            stop = threading.Event()

            def traffic() -> None:
                while not stop.is_set():
                    with proxy.client() as client:
                        for target in ("/json?x=1", "/same"):
                            assert client.ask("GET", target, host="users.test").status == 200

            asking = threading.Thread(target=traffic)
            asking.start()
            try:
                command = ("mirror", "diff", "users", "--requests", "20", "--duration", "20s", "--admin", proxy.admin)
                told = proxies.cli(*command, "--mask", "$.at", "--json")
                masked = proxies.cli(*command, "--mask", "$.at", "--mask", "$..price")
                plain = proxies.cli(*command)
            finally:
                stop.set()
                asking.join()
            assert told.returncode == 1, told.stderr
            found = json.loads(told.stdout)
            assert (found["service"], found["compared"], found["dropped"]) == ("users", 20, 0)
            paths = {each["path"]: each for each in found["paths"]}
            assert paths["GET /same"]["different"] == 0
            (difference,) = paths["GET /json"]["differences"]
            assert difference == {
                "kind": "json",
                "where": "$.items[*].price",
                "count": paths["GET /json"]["compared"],
                "request": "GET /json?x=1 HTTP/1.1",
                "primary": "1",
                "mirror": "2",
            }
            assert (masked.returncode, masked.stdout) == (0, "users: 20 compared, 0 differ\n")
            assert "json $.items[*].price: 1 -> 2" in plain.stdout
            quiet = proxies.cli("mirror", "diff", "quiet", "--admin", proxy.admin)
            assert (quiet.returncode, "mirrors nothing" in quiet.stderr) == (1, True)
            nobody = proxies.cli("mirror", "diff", "nobody", "--admin", proxy.admin)
            assert (nobody.returncode, "no service 'nobody'" in nobody.stderr) == (1, True)
            wrong = proxies.cli("mirror", "diff", "users", "--mask", "at", "--admin", proxy.admin)
            assert (wrong.returncode, "expected a pattern" in wrong.stderr) == (2, True)
            late = proxies.cli("mirror", "diff", "users", "--duration", "1h", "--admin", proxy.admin)
            assert (late.returncode, "up to 10m" in late.stderr) == (2, True)
            stats = proxy.call("/stats")
            assert sum(each["stats"]["exchanges"] for each in stats) == 0
