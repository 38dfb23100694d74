"""The PROXY protocol read slowly and obviously: what graylb's reader is compared with.

The whole header at once, by regular expressions, ipaddress and slices (HAProxy's proxy-protocol.txt of 2020/03/05).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL = 1, 2, 3, 4, 5, 0x20


@dataclass(frozen=True)
class Seen:
    """What a header says; without ends it is local."""

    used: int
    version: int
    ends: tuple[bytes, int, bytes, int] | None = None
    alpn: bytes | None = None
    authority: bytes | None = None
    unique_id: bytes | None = None
    ssl: bool = False


def mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def obvious(data: bytes) -> Seen | int:
    """The header that data is or begins with; -1 for everything else, incomplete ones too."""
    if line := re.match(rb"PROXY ([ -~]*)\r\n", data[:107]):
        return obvious_text(line[1].decode(), line.end())
    if len(data) < 16 or data[:12] != SIGNATURE:
        return -1
    command, family = data[12], data[13]
    size = 16 + int.from_bytes(data[14:16], "big")
    if command not in (0x20, 0x21) or size > min(4096, len(data)):
        return -1
    if command == 0x20 or (family in (0x00, 0x01, 0x02, 0x10, 0x20, 0x30)):
        return Seen(size, 2)
    rooms = {0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
    if family not in rooms or size < 16 + rooms[family]:
        return -1
    ends = None
    if family in (0x11, 0x21):
        width = 4 if family == 0x11 else 16
        first, second, ports = data[16 : 16 + width], data[16 + width : 16 + 2 * width], data[16 + 2 * width :]
        source, destination = (mapped(ipaddress.ip_address(end)) for end in (first, second))
        ends = (source, int.from_bytes(ports[:2], "big"), destination, int.from_bytes(ports[2:4], "big"))
    return obvious_extensions(data[:size], 16 + rooms[family], ends)


def obvious_text(line: str, used: int) -> Seen | int:
    if line == "UNKNOWN" or line.startswith("UNKNOWN "):
        return Seen(used, 1)
    kind, *words = line.split(" ")
    parse = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}.get(kind)
    if parse is None or len(words) != 4 or any("%" in word for word in words):  # of zones the protocol knows nothing
        return -1
    if not all(re.fullmatch("0|[1-9][0-9]{0,4}", word) and int(word) < 65536 for word in words[2:]):
        return -1
    try:
        source, destination = (mapped(parse(word)) for word in words[:2])
    except ValueError:
        return -1
    return Seen(used, 1, (source, int(words[2]), destination, int(words[3])))


def obvious_extensions(header: bytes, at: int, ends: tuple[bytes, int, bytes, int] | None) -> Seen | int:
    found: dict[int, bytes] = {}
    while at < len(header):
        kind, size, value = header[at], int.from_bytes(header[at + 1 : at + 3], "big"), header[at + 3 :]
        if len(header) - at < 3 or len(value) < size:
            return -1
        value = value[:size]
        if kind in (ALPN, AUTHORITY, CRC32C, UNIQUE_ID, SSL):
            if kind in found:
                return -1
            found[kind] = value
        if kind == CRC32C:
            plain = header[: at + 3] + bytes(4) + header[at + 7 :]
            if size != 4 or crc32c(plain) != int.from_bytes(value, "big"):
                return -1
        at += 3 + size
    if len(found.get(UNIQUE_ID, b"")) > 128 or len(found.get(SSL, bytes(5))) < 5:
        return -1
    tls = bool(found.get(SSL, b"\0")[0] & 1)
    return Seen(len(header), 2, ends, found.get(ALPN), found.get(AUTHORITY), found.get(UNIQUE_ID), tls)


def crc32c(data: bytes) -> int:
    """Remainder of a division in GF(2), bit by bit (RFC 4960 appendix B)."""
    crc = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            low = (crc ^ byte >> bit) & 1
            crc = crc >> 1 ^ (0x82F63B78 if low else 0)
    return crc ^ 0xFFFFFFFF
