"""What is fuzzed: each parser of ours with a corpus and the law that must hold (the other modules here).

A target takes any bytes and fails by an AssertionError, by an exception nobody promised, or by a sanitizer's report.
`python -m tests.fuzz` mutates blindly, in any build; `python -m tests.fuzz.guided` follows coverage (`make fuzz`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from graylb import builds
from tests.fuzz import fields, messages, shared, tables, told
from tests.integration.payloads import PAYLOADS
from tests.proxy_reader import SIGNATURE

Target = Callable[[bytes], None]
CHUNKS = (
    b'5;a="b c"\r\nhello\r\n0\r\nx: y\r\n\r\nGET',
    b"A\r\n0123456789\r\n00\r\n\r\n",
    b"1\r\n\r\r\n1\r\n\n\r\n0;\r\nContent-Length: 5\r\nHost:\r\n\r\n",
)
RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 005\r\nConnection: x, close\r\nX: y\r\n\r\nhello",
    b"HTTP/1.0 404\r\nKeep-Alive:  a \r\nSet-Cookie:b\r\n\r\n",
    b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\nX-Graylb-Rule: z\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
)
HANDSHAKE = (
    b"GET /chat?a HTTP/1.1\r\nHost: a.test\r\n"
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nTE: trailers\r\n\r\n"
)


PROXIED = (
    b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET / HTTP/1.1\r\n",
    b"PROXY TCP6 2001:db8::1 ::ffff:1.2.3.4 0 65535\r\n",
    b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
    SIGNATURE + b"\x21\x11\0\x17\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\x01\xbb\x01\0\x02h2\x04\0\0\x30\0\0",
    SIGNATURE + b"\x21\x21\0\x30" + bytes(36) + b"\x20\0\x05\x01\0\0\0\0\x05\0\x01u",
    # the checksum of this one is right
    SIGNATURE + b"\x21\x11\0\x13" + bytes(12) + b"\x03\0\x04" + bytes.fromhex("a0b28795"),
    SIGNATURE + b"\x20\0\0\0GET / HTTP/1.1\r\n",
    SIGNATURE + b"\x21\x31\0\xd8" + bytes(216),
)


def requests() -> list[bytes]:
    return [*{payload.for_host("a.test"): None for payload in PAYLOADS}, HANDSHAKE]


@dataclass(frozen=True)
class Fuzzed:
    run: Target
    corpus: Callable[[], list[bytes]]


TARGETS = {
    "scan": Fuzzed(messages.scan, requests),
    "scan-response": Fuzzed(messages.scan_response, lambda: list(RESPONSES)),
    "gate": Fuzzed(messages.gate, requests),
    "body": Fuzzed(messages.body, lambda: list(CHUNKS)),
    "rewrite": Fuzzed(messages.rewrite, lambda: requests() + list(RESPONSES)),
    "stream": Fuzzed(messages.stream, requests),
    "proxy": Fuzzed(messages.proxy, lambda: list(PROXIED)),
    "load": Fuzzed(tables.load, lambda: list(tables.images())),
    "decide": Fuzzed(tables.decide, lambda: requests()[::10] + tables.asked()),
    "marks": Fuzzed(fields.marks, lambda: requests()[::10] + fields.marked()),
    "parent": Fuzzed(fields.parent, lambda: list(fields.PARENTS)),
    "grpc": Fuzzed(fields.grpc, lambda: list(fields.CALLS)),
    "log": Fuzzed(fields.log, lambda: requests()[::10] + list(fields.LOGGED)),
    "line": Fuzzed(told.line, lambda: list(told.LINES)),
    "health": Fuzzed(told.health, lambda: list(told.CHECKS)),
    "trails": Fuzzed(told.trails_of, lambda: list(told.TRAILS)),
    "carried": Fuzzed(told.carried, lambda: list(told.CARRIED)),
    "answers": Fuzzed(told.answers, lambda: list(told.PAIRS)),
    "frames": Fuzzed(told.frames, lambda: list(told.FRAMES)),
    "slab": Fuzzed(shared.slab, shared.images),
    "memory": Fuzzed(shared.memory, lambda: list(shared.STEPS)),
}
if builds.has("h2"):
    from tests.fuzz import streams

    TARGETS |= {
        "h2-server": Fuzzed(streams.server, streams.from_client),
        "h2-cut": Fuzzed(streams.cut, streams.from_client),
        "h2-client": Fuzzed(streams.client, streams.from_server),
    }
SPLICES = (
    b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"5", b"f", b"\x7f", b"\xff", b"_", b"#",
    b"@", b"[", b"]",
    b"chunked", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Host: b\r\n", b"Connection: x\r\n",
    b"HTTP/1.1",
    b"X: y\r\n" * 100, b"\r\n\r\n", b"http://a.test",
    b"x-service-version", b"baggage: ", b"x-service-version=v2", b"=", b"%", b"-", b'"', b"\\", b"{", b"[[", b"]]",
    b"grpc-status:", b"grpc-timeout: ",
)  # fmt: skip


def mutate(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """One to four small changes: bytes flipped, cut, doubled, spliced in, or the tail of another input."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(out))
        kind = chance.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[at : at + chance.randint(1, 8)]
        elif kind == 2:
            out[at:at] = out[at : at + chance.randint(1, 40)]
        elif kind == 3:
            out[at:] = other[chance.randint(0, len(other)) :]
        elif kind == 4:
            del out[at:]
        else:
            out[at:at] = chance.choice(SPLICES)
    return bytes(out)
