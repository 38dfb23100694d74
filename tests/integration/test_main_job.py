"""The main job on real input: the demo's document and upstreams, driven by wrk."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from graylb.demo.__main__ import ROOT, start_upstream
from tests.integration import proxies
from tests.integration.proxies import Proxy

SCRIPT = Path(__file__).with_name("main_job.lua")
LEAST = 100_000


@contextlib.contextmanager
def demo(folder: Path) -> Iterator[Proxy]:
    """The demo, but for its ports."""
    document = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    document["listeners"] = [{"address": "127.0.0.1:0"}]
    document["admin"] = {"address": "127.0.0.1:0"}
    with contextlib.ExitStack() as stack:
        for instance in document["services"]["users"]["instances"]:
            with socket.create_server(("127.0.0.1", 0)) as free:
                instance["address"] = f"127.0.0.1:{free.getsockname()[1]}"
            upstream = stack.enter_context(start_upstream("users", instance["version"], instance["address"]))
            assert upstream.stdin is not None
            stack.callback(upstream.stdin.close)
        yield stack.enter_context(proxies.running(folder, document))


def wrk(proxy: Proxy, header: str = "") -> dict[str, Any]:
    """Runs until LEAST requests were answered; the sums of all runs."""
    total: dict[str, Any] = {"requests": 0, "failed": 0, "torn": 0, "versions": {}}
    while total["requests"] < LEAST:
        command = ["wrk", "-t1", "-c64", "-d4s", "-s", str(SCRIPT), f"http://{proxy.address}/", "--", header]
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        found = json.loads(out.splitlines()[-1])
        for key in ("requests", "failed", "torn"):
            total[key] += found[key]
        for version, count in found["versions"].items():
            total["versions"][version] = total["versions"].get(version, 0) + count
    return total


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_main_job(tmp_path: Path) -> None:
    with demo(tmp_path) as proxy:
        anonymous = wrk(proxy)
        testers = wrk(proxy, "user-group=beta")
        users = wrk(proxy, "x-user-id=*")
        print(f"anonymous {anonymous}\ntesters {testers}\nusers {users}")
    for found in (anonymous, testers, users):
        assert found["failed"] == 0
        assert found["torn"] == 0
        assert sum(found["versions"].values()) >= LEAST
    answered = sum(anonymous["versions"].values())
    assert abs(anonymous["versions"]["v2"] - answered * 0.05) <= 3 * math.sqrt(answered * 0.05 * 0.95)
    assert set(testers["versions"]) == {"v2"}
    assert set(users["versions"]) == {"v1", "v2"}
