"""The PROXY protocol: what is written is read, cut anywhere; an obvious reader and another implementation agree."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6
from proxyprotocol.tlv import ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from graylb import _proxy
from tests.proxy_reader import ALPN, AUTHORITY, CRC32C, NOOP, SIGNATURE, SSL, UNIQUE_ID, Seen, crc32c, mapped, obvious

LINE_4 = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
LINE_6 = b"PROXY TCP6 2001:db8::1 2001:DB8:0:0:0:0:0:2 0 65535\r\n"


def ours(data: bytes) -> Seen | int | None:
    found = _proxy.read(data)
    if not isinstance(found, dict):
        return found
    ends = (found["source"], found["source_port"], found["destination"], found["destination_port"])
    if found["local"]:
        assert ends == (bytes(16), 0, bytes(16), 0)
        assert (found["v4"], found["source_text"]) == (False, "")
    else:
        source = ipaddress.IPv6Address(found["source"]).ipv4_mapped
        both = source and ipaddress.IPv6Address(found["destination"]).ipv4_mapped
        assert found["v4"] == (both is not None)
        assert found["source_text"] == str(source or socket.inet_ntop(socket.AF_INET6, found["source"]))
    names = ("used", "version", "alpn", "authority", "unique_id", "ssl")
    return Seen(**{name: found[name] for name in names}, ends=None if found["local"] else ends)


def test_the_checksum_of_the_obvious_reader_has_the_published_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283


# ---- headers


PORTS = st.integers(0, 65535)
ENDS = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)), st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6))
)


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def binary(family: int, block: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(block).to_bytes(2, "big") + block


def summed(family: int, block: bytes, at: int = 12) -> bytes:
    """The block with a CRC32c extension put in behind its addresses, which take `at` bytes."""
    whole = binary(family, block[:at] + tlv(CRC32C, bytes(4)) + block[at:])
    return whole[: 19 + at] + crc32c(whole).to_bytes(4, "big") + whole[23 + at :]


EXTENSIONS = st.lists(
    st.builds(
        tlv,
        st.sampled_from((ALPN, AUTHORITY, NOOP, UNIQUE_ID, SSL, 0x30, 0xE0)),
        st.binary(max_size=9) | st.just(bytes(129)),
    ),
    max_size=3,
).map(b"".join)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """Version 1, in one of the ways to write an IPv6 address."""
    if draw(st.integers(0, 5)) == 0:
        return b"PROXY UNKNOWN" + draw(st.sampled_from((b"", b" ", b" a b", b" " + b"x" * 91))) + b"\r\n"
    ends = draw(ENDS)
    words = [draw(st.sampled_from((str(end), end.exploded, str(end).upper()))) for end in ends]
    return f"PROXY TCP{ends[0].version} {' '.join(words)} {draw(PORTS)} {draw(PORTS)}\r\n".encode()


@st.composite
def binaries(draw: st.DrawFn) -> bytes:
    """Version 2; most of them valid."""
    family = draw(st.sampled_from((0x11, 0x21, 0x11, 0x21, 0x12, 0x22, 0x31, 0x00, 0x10, 0x33, 0x41)))
    room = {0x10: 12, 0x20: 36, 0x30: 216}.get(family & 0xF0, 0)
    block = draw(st.binary(min_size=room, max_size=room)) + draw(EXTENSIONS)
    if draw(st.booleans()):
        return summed(family, block, room)
    return binary(family, block, draw(st.sampled_from((0x21, 0x21, 0x21, 0x20, 0x22, 0x11))))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Any header with up to two bytes replaced, put in or taken out, then whatever follows."""
    data = draw(st.one_of(texts(), binaries()))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        put = draw(st.sampled_from((b"", b"\r", b"\n", b" ", b"0", b":", b".", b"\0", b"\xff", b"%1")))
        data = data[:at] + put + data[at + draw(st.integers(0, 2)) :]
    return data + draw(st.sampled_from((b"", b"GET / HTTP/1.1\r\n\r\n")))


# ---- laws


@given(damaged() | st.binary(max_size=40))
@example(LINE_4)
@example(LINE_6)
@example(b"PROXY TCP6 ::ffff:1.2.3.4 ::ffff:0:1 1 2\r\n")
@example(b"PROXY TCP6 1::2::3 :: 1 2\r\n")
@example(b"PROXY TCP6 1:2:3:4:5:6:7:: ::1 1 2\r\n")
@example(b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n")
@example(b"PROXY TCP4 010.0.0.1 1.1.1.1 1 2\r\n")
@example(b"PROXY TCP4 1.1.1.1 1.1.1.1 01 2\r\n")
@example(b"PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n")
@example(b"PROXY TCP4 1.1.1.1  1.1.1.1 1 2\r\n")
@example(b"PROXY TCP4 1.1.1.1 1.1.1.1 1 2 \r\n")
@example(b"PROXY TCP4 1.1.1.1 1.1.1.1 1 2\n")
@example(b"PROXY TCP4 ::1 ::1 1 2\r\n")
@example(b"PROXY UNKNOWNS\r\n")
@example(summed(0x11, bytes(12)))
@example(summed(0x11, bytes(12))[:-1] + b"\0")
def test_the_obvious_reader_agrees(data: bytes) -> None:
    expected, found = obvious(data), ours(data)
    # that reader cannot tell what is cut from what is wrong
    assert (-1 if found is None else found) == expected


@given(damaged())
@example(LINE_4 + b"x")
@example(b"PROXY UNKNOWN " + b"x" * 91 + b"\r\nGET")
@example(b"PROXY UNKNOWN " + b"x" * 92 + b"\r\nGET")
def test_every_cut_of_a_header_waits_and_no_byte_behind_it_matters(data: bytes) -> None:
    whole = ours(data)
    used = whole.used if isinstance(whole, Seen) else len(data)
    answers = [ours(data[:size]) for size in range(used + 1)]
    if isinstance(whole, Seen):
        assert answers == [None] * used + [whole]
    else:
        # once refused, always refused, and before that it waited
        waited = answers.index(-1) if whole == -1 else len(answers)
        assert answers == [None] * waited + [-1] * (len(answers) - waited)


@given(ENDS, PORTS, PORTS, st.sampled_from((1, 2)))
def test_what_is_written_is_read(ends: tuple[ipaddress.IPv4Address, ...], one: int, two: int, version: int) -> None:
    data = _proxy.write(version, str(ends[0]), str(ends[1]), one, two)
    assert ours(data) == Seen(len(data), version, (mapped(ends[0]), one, mapped(ends[1]), two))
    assert len(data) <= 107


@pytest.mark.parametrize("version", [1, 2])
def test_a_connection_of_the_proxys_own_is_local(version: int) -> None:
    data = _proxy.write(version, local=True)
    assert ours(data) == Seen(len(data), version)
    assert len(data) in (15, 16)


@pytest.mark.parametrize("version", [1, 2])
def test_mapped_addresses_go_out_as_ipv4(version: int) -> None:
    mapped_ends = _proxy.write(version, "::ffff:1.2.3.4", "::ffff:5.6.7.8", 1, 2)
    assert mapped_ends == _proxy.write(version, "1.2.3.4", "5.6.7.8", 1, 2)


@given(ENDS, PORTS, PORTS)
def test_another_implementation_reads_what_is_written(
    ends: tuple[ipaddress.IPv4Address, ...], one: int, two: int
) -> None:
    """Other forms of a mapped address are a matter of taste; all else is the same."""
    if all(mapped(end)[:12] == bytes(10) + b"\xff\xff" for end in ends):
        ends = tuple(ipaddress.IPv4Address(mapped(end)[12:]) for end in ends)
    for version, reader in ((1, ProxyProtocolV1()), (2, ProxyProtocolV2())):
        result = reader.unpack(_proxy.write(version, str(ends[0]), str(ends[1]), one, two))
        assert (result.source, result.dest) == ((ends[0], one), (ends[1], two))


@given(ENDS, PORTS, PORTS, st.binary(max_size=128))
def test_what_another_implementation_writes_is_read(
    ends: tuple[ipaddress.IPv4Address, ...], one: int, two: int, unique_id: bytes
) -> None:
    kind = ProxyResultIPv4 if ends[0].version == 4 else ProxyResultIPv6
    extensions = ProxyProtocolTLV(alpn=b"h2", authority="a.test", unique_id=unique_id)
    result = kind((ends[0], one), (ends[1], two), protocol=socket.SOCK_STREAM, tlv=extensions)
    told = (mapped(ends[0]), one, mapped(ends[1]), two)
    line = ProxyProtocolV1().pack(result)
    assert ours(line) == Seen(len(line), 1, told)
    data = ProxyProtocolV2().pack(result)
    assert tlv(CRC32C, bytes(4))[:3] in data
    assert ours(data) == Seen(len(data), 2, told, b"h2", b"a.test", unique_id)


# ---- what is refused, each by its name


REFUSED = {
    "nothing of the protocol": b"GET / HTTP/1.1\r\n",
    "in lower case": b"proxy TCP4 1.1.1.1 1.1.1.1 1 2\r\n",
    "without a family": b"PROXY 1.1.1.1 1.1.1.1 1 2\r\n",
    "IPv6 told as IPv4": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "a bare line feed": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 2\n",
    "a bare carriage return": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 2\rx",
    "108 bytes": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "version 1 in binary": binary(0x11, bytes(12), 0x11),
    "a command nobody knows": binary(0x11, bytes(12), 0x22),
    "a family nobody knows": binary(0x41, bytes(36)),
    "a transport nobody knows": binary(0x13, bytes(12)),
    "too short for its addresses": binary(0x21, bytes(35)),
    "over 4096 bytes": binary(0x11, bytes(12) + tlv(NOOP, bytes(4096 - 16 - 12 - 3 + 1))),
    "an extension cut short": binary(0x11, bytes(12) + b"\x04\0"),
    "an extension beyond the end": binary(0x11, bytes(12) + b"\x04\0\x01"),
    "two authorities": binary(0x11, bytes(12) + tlv(AUTHORITY, b"a") + tlv(AUTHORITY, b"b")),
    "an endless unique id": binary(0x11, bytes(12) + tlv(UNIQUE_ID, bytes(129))),
    "TLS in four bytes": binary(0x11, bytes(12) + tlv(SSL, bytes(4))),
    "a wrong checksum": binary(0x11, bytes(12) + tlv(CRC32C, b"abcd")),
    "a checksum of three bytes": binary(0x11, bytes(12) + tlv(CRC32C, b"abc")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    assert _proxy.read(REFUSED[name]) == -1


def test_the_largest_header_and_its_extensions() -> None:
    block = bytes(12) + tlv(SSL, b"\x01" + bytes(4) + tlv(0x21, b"TLSv1.3")) + tlv(ALPN, b"h2")
    block += tlv(NOOP, bytes(4096 - 16 - len(block) - 3))
    found = ours(binary(0x11, block))
    assert isinstance(found, Seen)
    assert (found.used, found.ssl, found.alpn) == (_proxy.MAX_BYTES, True, b"h2")


def test_writing_takes_one_family_and_a_known_version() -> None:
    with pytest.raises(ValueError, match="one family"):
        _proxy.write(1, "1.2.3.4", "::1")
    with pytest.raises(ValueError, match="expected 1 or 2"):
        _proxy.write(3)  # type: ignore[arg-type]
