"""A small versioned HTTP upstream for the demo: answers GET with what it saw, and a body with that body.

It ends when its standard input does, so that no crash of its parent leaves it behind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import Final, cast

import httptools
import orjson
import uvloop

MAX_BODY: Final = 16 << 20
"""Bytes of a body that is echoed; a longer one is answered with 413."""
BACKLOG: Final = 4096


class Upstream(asyncio.Protocol):
    """One connection. Pipelined requests are answered in order, as each is complete when the next begins."""

    def __init__(self, service: str, version: str) -> None:
        self.service, self.version = service, version
        self.parser = httptools.HttpRequestParser(self)
        self.headers: dict[str, str] = {}
        self.url = b""
        self.body = bytearray()
        self.size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not registered as asyncio's
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.transport.close()

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    # -- called by the parser ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.headers, self.url, self.body, self.size = {}, b"", bytearray(), 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self.headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self.size += len(body)
        if self.size <= MAX_BODY:
            self.body += body

    def on_message_complete(self) -> None:
        status, kind, body = self._answer()
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
            f"x-upstream: {self.service}/{self.version}\r\n"
        )
        keep = self.parser.should_keep_alive()
        head += "\r\n" if keep else "connection: close\r\n\r\n"
        self.transport.write(head.encode() + (b"" if self.parser.get_method() == b"HEAD" else body))
        if not keep:
            self.transport.close()

    def _answer(self) -> tuple[str, str, bytes]:
        """(status, content type, body)"""
        if self.size > MAX_BODY:
            return "413 Content Too Large", "text/plain", b"at most 16 MiB\n"
        if self.size:
            return "200 OK", self.headers.get("content-type", "application/octet-stream"), bytes(self.body)
        seen = {
            "service": self.service,
            "version": self.version,
            "path": self.url.decode("latin-1"),
            "headers": self.headers,
        }
        return "200 OK", "application/json", orjson.dumps(seen) + b"\n"


async def serve(host: str, port: int, service: str, version: str) -> None:
    """Until standard input ends. Prints one line once it listens."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(service, version), host, port, backlog=BACKLOG)
    print("listening", flush=True)
    ended = asyncio.Event()
    loop.add_reader(0, lambda: None if os.read(0, 1024) else ended.set())
    await ended.wait()
    loop.remove_reader(0)
    server.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--service", required=True)
    parser.add_argument("--version", required=True)
    options = parser.parse_args()
    try:
        uvloop.run(serve(options.host, options.port, options.service, options.version))
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
