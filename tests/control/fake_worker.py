"""A worker that speaks the channel and serves nothing: what the supervisor does shows without the engine.

It answers every connection with the revision that it serves. An image that contains `refuse-WORKER` is refused by that
worker, one with `die-WORKER` kills it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from typing import Any, Final

import orjson

from graylb.proxy import channel
from graylb.proxy.worker import wait_for_role

HANGS: Final = 13
"""A worker with this revision answers no ping."""


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel")
    args = parser.parse_args()
    told, decoder = socket.socket(fileno=int(args.channel)), channel.Decoder()
    fds, frames = wait_for_role(told, decoder)
    reader, writer = await asyncio.open_connection(sock=told)
    revision = 0
    role: dict[str, Any] = {}
    servers: list[asyncio.Server] = []

    async def answer(_: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        client.write(f"{revision} {os.getpid()}\n".encode())
        client.close()

    while frames:
        for frame in frames:
            if frame.type == channel.ROLE:
                role = frame.json()
            elif frame.type == channel.TABLE:
                table = orjson.loads(frame.payload)
                if f"die-{role['worker']}".encode() in frame.payload:
                    os._exit(9)
                if f"refuse-{role['worker']}".encode() in frame.payload:
                    writer.write(channel.encode_json("A", {"revision": table["revision"], "error": "told to refuse"}))
                    continue
                revision = table["revision"]
                writer.write(channel.encode_json("A", {"revision": revision, "digest": ""}))
            elif frame.type == channel.LISTEN:
                sockets = [socket.socket(fileno=fds[each["fd"]]) for each in role["listeners"]]
                servers += [await asyncio.start_server(answer, sock=each) for each in sockets]
                writer.write(channel.encode_json("R", {"pid": os.getpid()}))
            elif frame.type == channel.PING and revision != HANGS:
                writer.write(channel.encode(channel.PING))
            elif frame.type == channel.STATS:
                writer.write(channel.encode_json("S", {"served": revision}))
            elif frame.type == channel.DRAIN:
                sys.exit(0)
        data = await reader.read(65536)
        frames = decoder.feed(data) or [channel.Frame("", b"")] if data else []


if __name__ == "__main__":
    asyncio.run(main())
