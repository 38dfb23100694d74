"""`python -m tests.integration.hops NAME OUTBOUND [--no-middleware] [--no-hook]`: a service in Python, as a process.

GET /b.test/c.test calls `http://b.test/c.test` by the Unix socket OUTBOUND, and so on. It prints its address.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

PATIENCE = 30.0
ROOT = Path(__file__).resolve().parents[2]


def main(name: str, outbound: str, *lacks: str) -> None:
    import httpx

    from graylb import sdk
    from graylb.sdk.httpx import instrument
    from graylb.sdk.wsgi import Middleware

    sdk.configure(service=name)
    client = httpx.Client(transport=httpx.HTTPTransport(uds=outbound, verify=False), timeout=PATIENCE)
    if "--no-hook" not in lacks:
        instrument(client)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        following, _, rest = environ["PATH_INFO"].lstrip("/").partition("/")
        said = client.get(f"http://{following}/{rest}").content if following else b""
        start_response("200 OK", [("content-type", "text/plain")])
        return [name.encode(), b" ", said]

    served = app if "--no-middleware" in lacks else Middleware(app)
    with client, make_server("127.0.0.1", 0, served, server_class=_Threads, handler_class=_Quiet) as server:
        print(f"127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


@contextlib.contextmanager
def running(outbound: str, hops: dict[str, tuple[Sequence[str], dict[str, str]]]) -> Iterator[dict[str, str]]:
    """name -> address. hops: name -> (what it lacks, its environment); they start at the same time."""
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.integration.hops", name, outbound, *lacks],
                    cwd=ROOT,
                    env=os.environ | environment,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for name, (lacks, environment) in hops.items()
        }
        try:
            addresses = {
                name: process.stdout.readline().strip() for name, process in processes.items() if process.stdout
            }
            assert all(addresses.values()), f"a service did not start: {addresses}"
            yield addresses
        finally:
            for process in processes.values():
                process.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])
