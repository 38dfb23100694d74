"""Health checks of a whole proxy: what they see reaches every worker, one started later too, and the admin API."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from threading import Event

from tests.integration import proxies, upstream
from tests.integration.proxies import until
from tests.integration.upstream import Call


def test_an_instance_that_says_it_is_ill_gets_no_requests_until_it_is_well(tmp_path: Path) -> None:
    ill = Event()

    def checked(call: Call) -> None:
        call.answer(503 if ill.is_set() else 200, b"")

    with upstream.running("well", "moody") as (well, moody):
        well.on("/healthz", lambda call: call.answer(204))
        moody.on("/healthz", checked)
        check = {"http": "/healthz", "interval": "50ms", "unhealthy": 2, "healthy": 2}
        users = proxies.service(well.address, moody.address, health={"check": check})
        doc = proxies.document({"users": users})
        with proxies.running(tmp_path, doc, "--workers", "2") as proxy:

            def is_well() -> bool:
                told = {each["address"]: each["health"] for each in proxy.call("/services/users")["instances"]}
                return bool(told[moody.address]["well"])

            def asked(count: int) -> int:
                before = len(moody.of("/work"))
                for _ in range(count):
                    with proxy.client() as client:
                        assert client.ask(target="/work").status == 200
                return len(moody.of("/work")) - before

            assert asked(40) > 0
            ill.set()
            until(lambda: None if is_well() else True, "the check to see it")
            until(lambda: True if asked(20) == 0 else None, "every worker to know")
            # one that is started now knows before it serves
            victim = proxy.workers()[0]
            os.kill(victim, signal.SIGKILL)

            def all_new() -> bool:
                workers = proxy.status()["workers"]
                return all(each["ready"] and each["pid"] != victim for each in workers)

            until(lambda: all_new() or None, "a new worker")
            assert asked(40) == 0
            ill.clear()
            until(lambda: True if is_well() else None, "the check to see it is well")
            until(lambda: True if asked(20) else None, "requests again")
