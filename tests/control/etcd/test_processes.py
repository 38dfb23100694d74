"""gRPC in a process that starts others, as the control process does."""

from __future__ import annotations

import subprocess
import sys

from tests.control.etcd.servers import Cluster

SPAWN = """
import asyncio, sys, uvloop
from graylb.control.etcd.client import Client
from graylb.control.etcd.links import Options
from graylb.control.etcd.reflector import Loaded, Reflector

async def main():
    async with Client(Options((sys.argv[1],))) as store, Reflector(store, "/processes/") as reflector:
        events = aiter(reflector)
        assert isinstance(await anext(events), Loaded)
        for number in range(5):
            child = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
            await store.put(f"/processes/{number}", b"")
            assert await child.wait() == 0
            await anext(events)

uvloop.run(main())
"""


def test_children_and_watches_do_not_disturb_one_another(etcd: Cluster) -> None:
    """gRPC's own support for forks stops the process's calls, or says on stderr that it could not."""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", SPAWN, *etcd.endpoints]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nobody_there_is_an_error_and_no_noise() -> None:
    code = SPAWN.replace("uvloop.run(main())", "").replace("asyncio, ", "asyncio, contextlib, ")
    code += """
from graylb.control.etcd.errors import Unavailable

async def alone():
    async with Client(Options((sys.argv[1],))) as store:
        with contextlib.suppress(Unavailable):
            await store.get("x")

uvloop.run(alone())
"""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", code, "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
