"""Hostile and odd requests, each with its hazard and verdict. `@` stands for the site's host, `\\xc0` for an at sign.

Verdicts:
  refuse   one error answer, then close; nothing reaches the upstream
  cut      the head is good, the body is not: its request may arrive but never completely; then close
  accept   exactly `arrive` requests reach the upstream, canonically, with these bodies
  either   refuse or accept
Statuses, where the law names them, are those a refusal may have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: @\r\n\r\n"
CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"
TE, CL = b"Transfer-Encoding: chunked", b"Content-Length: 5"
BAD = (400,)
HAZARDS = {
    "A": "Content-Length beside Transfer-Encoding, or hidden framing",
    "B": "Content-Length repeated, as a list, signed, hexadecimal, too large",
    "C": "names that are no tokens, white space before the colon",
    "D": "folded lines",
    "E": "bare LF or CR",
    "F": "control characters",
    "G": "chunk sizes and terminators",
    "1": "Upgrade or CONNECT with a body",
    "2": "sizes: head, fields, target, extensions, trailers",
    "3": "Host missing, repeated, or no host",
    "4": "absolute form against Host",
    "5": "other protocols and versions",
    "6": "Transfer-Encoding in HTTP/1.0",
    "7": "codings other than chunked",
    "8": "trailers",
    "9": "leading zeros",
    "10": "targets",
    "11": "hop-by-hop headers and what Connection names",
    "12": "Expect",
    "13": "underscores in names",
    "14": "white space around values, bodies that look like requests, several requests in one read",
    "15": "answers (tests/integration/answers.py)",
}
"""The hazards of HTTP/1: letters for what llhttp refuses too, numbers for what its users must act on themselves."""


@dataclass(frozen=True)
class Payload:
    name: str
    data: bytes
    verdict: Literal["refuse", "cut", "accept", "either"]
    statuses: tuple[int, ...] = ()
    arrive: tuple[tuple[str, bytes], ...] = ()  # (target, body) of what reaches the upstream
    unfinished: bool = False  # no head is complete: closing without a word is as good as 400
    then_refused: bool = False  # behind what arrives comes something that is refused
    keeps: tuple[str, ...] = ()  # fields that the first request has at the upstream
    lacks: tuple[str, ...] = ()  # … and has not
    hazard: str = ""

    def for_host(self, host: str) -> bytes:
        return self.data.replace(b"@", host.encode()).replace(b"\xc0", b"@")


def post(*lines: bytes, body: bytes = b"", target: bytes = b"/", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"POST " + target + b" HTTP/" + version, b"Host: @", *lines, b"", b""]) + body


def get(*lines: bytes, target: bytes = b"/", version: bytes = b"1.1", method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + target + b" HTTP/" + version, b"Host: @", *lines, b"", b""])


def label(prefix: str, text: bytes) -> str:
    return f"{prefix} {text.decode('latin-1').encode('unicode_escape').decode()}"


def framings() -> Iterator[Payload]:
    for name, lines in {
        "length then chunked": (CL, TE),
        "chunked then length": (TE, CL),
        "length 0 and chunked": (b"Content-Length: 0", TE),
        "chunked between lengths": (CL, TE, CL),
        "length and hidden chunked": (CL, b"X: y\r\n" + TE),
        "both, and Connection names the length": (CL, TE, b"Connection: content-length"),
        "both, and Connection names the coding": (CL, TE, b"Connection: transfer-encoding"),
        "both in a GET": (CL, TE, b"X-Http-Method-Override: GET"),
    }.items():
        yield Payload(name, post(*lines, body=CHUNKED + SMUGGLED), "refuse", BAD)
    for line in (
        b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b" Transfer-Encoding: chunked",
        b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding:\n chunked", b"X: y\nTransfer-Encoding: chunked",
        b"X: y\rTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\n", b"Transfer-Encoding\x00: chunked",
        b"Transfer\xadEncoding: chunked", b"Transfer-Encoding\xff: chunked", b"Transfer-Encoding chunked",
        b"\x00Transfer-Encoding: chunked", b"Transfer-Encoding\x0b: chunked", b"Transfer-Encoding\r: chunked",
        b"Transfer\rEncoding: chunked", b"Transfer Encoding: chunked", b"Transfer-Encoding\xa0: chunked",
        b"Content-Length : 30", b"Content-Length\x0b: 30", b" Content-Length: 30", b"X: y\nContent-Length: 30",
        b"Content-Length\x00: 30", b"Content-Length\xa0: 30", b"X: y\r\r\nContent-Length: 30",
    ):  # fmt: skip
        data = post(CL, line, body=b"hello" + SMUGGLED)
        # a folded line is also an empty coding: either is reason enough
        yield Payload(label("hidden framing", line), data, "refuse", (400, 501) if line[18:20] == b"\r\n" else BAD)


def lengths() -> Iterator[Payload]:
    yield Payload("two equal lengths", post(CL, CL, body=b"hello" + SMUGGLED), "refuse", BAD)
    yield Payload("two lengths", post(CL, b"Content-Length: 6", body=b"hello" + SMUGGLED), "refuse", BAD)
    far = post(CL, *[b"X: y"] * 50, b"content-length: 6", body=b"hello" + SMUGGLED)
    yield Payload("two lengths far apart", far, "refuse", BAD)
    yield Payload("two lengths in a GET", get(CL, b"Content-Length: 0") + b"hello" + SMUGGLED, "refuse", BAD)
    for value in (
        b"5, 5", b"5,6", b"+5", b"-5", b"-0", b"0x5", b"5 5", b"5;", b"1e1", b"", b"5\x0b", b"\xd9\xa5", b"5.0", b"5_0",
        b"5,", b",5", b'"5"', b"5\x00", b"\xef\xbc\x95", b"NaN", b"5h", b"0b101", b"\xa05",
    ):  # fmt: skip
        data = post(b"Content-Length: " + value, body=b"hello" + SMUGGLED)
        yield Payload(label("length", value), data, "refuse", BAD)
    for value in (
        b"9223372036854775808", b"18446744073709551616", b"18446744073709551621", b"9" * 40, b"4294967296" * 3,
    ):  # fmt: skip
        data = post(b"Content-Length: " + value, body=b"hello" + SMUGGLED)
        yield Payload(label("length", value), data, "refuse", (400, 413))


def codings() -> Iterator[Payload]:
    yield Payload("chunked twice", post(TE, TE, body=CHUNKED + SMUGGLED), "refuse", BAD)
    lines = (TE, b"Transfer-Encoding: identity")
    yield Payload("chunked and identity lines", post(*lines, body=CHUNKED + SMUGGLED), "refuse", (400, 501))
    lines = (b"Transfer-Encoding: identity", TE)
    yield Payload("identity and chunked lines", post(*lines, body=CHUNKED + SMUGGLED), "refuse", (400, 501))
    for value in (
        b"xchunked", b"chunkedx", b"identity", b"gzip", b"chunked, identity", b"chunked, chunked", b"identity, chunked",
        b"gzip, chunked", b"chunked, gzip", b"chunked;q=1", b'"chunked"', b"'chunked'", b"chu nked", b",chunked",
        b"chunked,", b"", b"chunked\x0b", b"\x0bchunked", b"chunked\xa0", b"deflate;x=chunked", b"c\x00hunked",
        b"chun\xe2\x84\xaaed", b"\xef\xbb\xbfchunked", b"chunked \xa0", b"trailers", b"chunked;",
    ):  # fmt: skip
        data = post(b"Transfer-Encoding: " + value, body=CHUNKED + SMUGGLED)
        yield Payload(label("coding", value), data, "refuse", (400, 501))
        data = post(CL, b"Transfer-Encoding: " + value, body=CHUNKED + SMUGGLED)
        yield Payload(label("length and coding", value), data, "refuse", (400, 501))
    for value in (b"Chunked", b"CHUNKED", b" chunked ", b"\tchunked"):
        data = post(b"Transfer-Encoding:" + value, body=CHUNKED)
        yield Payload(label("spelling", value), data, "either", (400, 501), (("/", b"hello"),))


def old_codings() -> Iterator[Payload]:
    for name, lines in {
        "chunked in HTTP/1.0": (TE,),
        "chunked in HTTP/1.0 with keep-alive": (TE, b"Connection: keep-alive"),
        "both in HTTP/1.0": (CL, TE),
        "both in HTTP/1.0, coding first": (TE, CL, b"Connection: keep-alive"),
        "chunked in HTTP/1.0 that Connection names": (TE, b"Connection: keep-alive, transfer-encoding"),
    }.items():
        yield Payload(name, post(*lines, body=CHUNKED + SMUGGLED, version=b"1.0"), "refuse", BAD)
    yield Payload("gzip in HTTP/1.0", post(b"Transfer-Encoding: gzip", body=b"x", version=b"1.0"), "refuse", (400, 501))


def chunks() -> Iterator[Payload]:
    for size in (
        b"", b" 5", b"5 ", b"5\t", b"+5", b"-5", b"0x5", b"g", b"5g", b"5,", b"5\x00", b"5\x0b", b"\xff", b"5\r",
        b"10000000000000005", b"ffffffffffffffff", b"8000000000000000", b"fffffffffffffffff", b"5 ;a", b"5_0",
        b"\xef\xbc\x95", b"5h", b"5.", b"\t5", b"100000000000000005", b";a", b"5\xa0", b"-0", b"0 ",
    ):  # fmt: skip
        data = post(TE, body=size + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED)
        yield Payload(label("chunk size", size), data, "cut", (400, 413))
    for name, raw in {
        "size ends in LF": b"5\nhello\r\n0\r\n\r\n",
        "data ends in LF": b"5\r\nhello\n0\r\n\r\n",
        "data ends in CR": b"5\r\nhello\r0\r\n\r\n",
        "data without an end": b"5\r\nhello0\r\n\r\n",
        "data longer than said": b"4\r\nhello\r\n0\r\n\r\n",
        "data shorter than said": b"6\r\nhello\r\n0\r\n\r\n",
        "last chunk ends in LF": b"5\r\nhello\r\n0\n\r\n",
        "terminator is LF": b"5\r\nhello\r\n0\r\n\n",
        "terminator is CR X": b"5\r\nhello\r\n0\r\n\rX",
        "LF in an extension": b"5;a=\nb\r\nhello\r\n0\r\n\r\n",
        "CR in an extension": b"5;a=\rb\r\nhello\r\n0\r\n\r\n",
        "NUL in an extension": b"5;a=\x00\r\nhello\r\n0\r\n\r\n",
        "LF ends an extension": b"5;a\nhello\r\n0\r\n\r\n",
        "a chunk behind an empty line": b"\r\n5\r\nhello\r\n0\r\n\r\n",
        "two sizes": b"5\r\n5\r\nhello\r\n0\r\n\r\n",
        "the last chunk has data": b"5\r\nhello\r\n0\r\nX\r\n\r\n",
    }.items():
        yield Payload(name, post(b"Transfer-Encoding: chunked", body=raw + SMUGGLED), "cut", (400, 413, 431))
    for name, raw in {
        "extension": b"5;a=b\r\nhello\r\n0\r\n\r\n",
        "quoted extension": b'5;a="b c"\r\nhello\r\n0\r\n\r\n',
        "one byte chunks": b"1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n",
    }.items():
        yield good_chunks(name, raw)


def good_chunks(name: str, raw: bytes, *lines: bytes) -> Payload:
    data = post(TE, *lines, body=raw) + get(target=b"/then")
    return Payload(f"good chunks: {name}", data, "accept", (), (("/", b"hello"), ("/then", b"")))


def trailers() -> Iterator[Payload]:
    for name, raw in {
        "trailer without a colon": b"5\r\nhello\r\n0\r\ntrailer\r\n\r\n",
        "trailer with LF": b"5\r\nhello\r\n0\r\nx: y\n\r\n",
        "trailer folded": b"5\r\nhello\r\n0\r\nx: y\r\n z\r\n\r\n",
        "trailer with NUL": b"5\r\nhello\r\n0\r\nx: \x00\r\n\r\n",
        "trailer with a space before the colon": b"5\r\nhello\r\n0\r\nx : y\r\n\r\n",
        "trailer begins with a space": b"5\r\nhello\r\n0\r\n x: y\r\n\r\n",
        "trailer without a name": b"5\r\nhello\r\n0\r\n: y\r\n\r\n",
        "trailer with a bare CR": b"5\r\nhello\r\n0\r\nx: y\rz\r\n\r\n",
        "trailer with an unfit name": b"5\r\nhello\r\n0\r\nx\xe4: y\r\n\r\n",
        "trailers end in LF": b"5\r\nhello\r\n0\r\nx: y\r\n\n",
    }.items():
        yield Payload(name, post(TE, body=raw + SMUGGLED), "cut", (400, 413, 431))
    framing = b"5\r\nhello\r\n0\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\nHost: evil\r\n\r\n"
    yield good_chunks("trailers that frame", framing)
    yield good_chunks("an announced trailer", b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", b"Trailer: X-Sum")
    marks = b"5\r\nhello\r\n0\r\nX-Service-Version: v9\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n"
    yield good_chunks("trailers that mark", marks)
    inner = b"5\r\nhello\r\n0\r\nGET /smuggled HTTP/1.1: x\r\n\r\n"
    yield Payload("a request as a trailer", post(TE, body=inner + SMUGGLED), "cut", (400, 413, 431))


def zeros() -> Iterator[Payload]:
    inner = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"
    arrive = (("/", inner), ("/then", b""))
    for zeros in (b"0", b"00", b"0" * 17, b"0" * 300):
        length = b"Content-Length: " + zeros + b"%d" % len(inner)
        yield Payload(
            f"length with {len(zeros)} leading zeros",
            post(length, body=inner) + get(target=b"/then"),
            "accept",
            (),
            arrive,
        )
        size = zeros + b"%x\r\n%b\r\n" % (len(inner), inner)
        data = post(TE, body=size + zeros + b"\r\n\r\n") + get(target=b"/then")
        yield Payload(f"chunk size with {len(zeros)} leading zeros", data, "either", BAD, arrive)
    nothing = post(b"Content-Length: 000") + get(target=b"/then")
    yield Payload("length 000", nothing, "accept", (), (("/", b""), ("/then", b"")))
    octal = post(b"Content-Length: 010", body=b"0123456789") + get(target=b"/then")
    yield Payload("length 010 is ten", octal, "accept", (), (("/", b"0123456789"), ("/then", b"")))


def hosts() -> Iterator[Payload]:
    yield Payload("no Host", b"GET / HTTP/1.1\r\nX: y\r\n\r\n", "refuse", BAD)
    yield Payload("no Host in HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n", "refuse", (400, 404))
    yield Payload("Host twice", get(b"Host: @"), "refuse", BAD)
    yield Payload("another Host", get(b"Host: evil.test"), "refuse", BAD)
    yield Payload("another Host in front", b"GET / HTTP/1.1\r\nHost: evil.test\r\nhost: @\r\n\r\n", "refuse", BAD)
    yield Payload("Host thrice", get(b"X: y", b"Host: @", b"HOST:@"), "refuse", BAD)
    yield Payload("Host twice, one empty", get(b"Host:"), "refuse", BAD)
    yield Payload("Host that Connection names, twice", get(b"Host: evil.test", b"Connection: host"), "refuse", BAD)
    yield Payload("Host in another case", b"GET / HTTP/1.1\r\nHost: @\r\nhOST: @\r\n\r\n", "refuse", BAD)
    for value in (
        b"", b"@,evil.test", b"@, @", b"@ evil.test", b"user\xc0@", b"evil.test\xc0@", b"@:abc", b"@:99999", b"@:-1",
        b"@:80:80",
        b"@/", b"@?x", b"@#x", b"[::1", b"::1", b"@\x00", b"@\x01", b"@\x7f", b"@\xff", b"<@>", b'"@"', b"@:80 ",
        b"http://@", b"@%00", b"%40", b"@:", b"@:0x50", b"[::1]x", b"[::g]", b"[]", b"[::1%25lo]", b"@\t.test", b"@;x",
        b"@\\", b"*", b"@" + b"a" * 300, b"@:00000080", b"*.test", b"\xe2\x93\x90.test",
    ):  # fmt: skip
        verdict: Literal["refuse", "either"] = "either" if value in (b"@:80 ", b"@:") else "refuse"
        arrive = (("/", b""),) if verdict == "either" else ()
        statuses = (400, 404) if value == b"*" else BAD
        yield Payload(
            label("host", value), b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n", verdict, statuses, arrive
        )


def authorities() -> Iterator[Payload]:
    for target in (
        b"http://evil.test/", b"http://@.evil.test/", b"http://@:81/", b"http://evil.test:80/", b"https://evil.test/",
        b"http://user:pass\xc0@/", b"ftp://@/", b"file:///etc/passwd", b"http:///path", b"http://", b"http:/@/",
        b"javascript:x", b"http://@\\evil.test/", b"http://@;evil.test/", b"https://@:443/", b"http://@:/", b"http:@/",
        b"ws://@/", b"http://@,evil.test/", b"http://[@]/", b"http://@%2eevil.test/", b"HTTP://EVIL.test/",
        b"http://evil.test\\\xc0@/", b"http://\xc0@/", b"http://@ /",
    ):  # fmt: skip
        yield Payload(label("authority", target), get(target=target), "refuse", (400, 404))
    for line in (b"Host: @", b"Host: evil.test"):
        data = b"GET http://@/ HTTP/1.1\r\n" + line + b"\r\nHost: @\r\n\r\n"
        yield Payload(label("absolute form and two Hosts", line), data, "refuse", BAD)
    yield Payload("absolute form without a Host", b"GET http://@/ HTTP/1.1\r\n\r\n", "refuse", BAD)
    for scheme in (b"http", b"HTTP", b"https"):
        data = get(target=scheme + b"://@/path?q")
        yield Payload(label("absolute form", scheme), data, "accept", (), (("/path?q", b""),))
    yield Payload("absolute form without a path", get(target=b"http://@"), "accept", (), (("/", b""),))
    yield Payload("absolute form with a query only", get(target=b"http://@?q=1"), "accept", (), (("/?q=1", b""),))
    old = b"GET http://@/old HTTP/1.0\r\n\r\n"
    yield Payload("absolute form of HTTP/1.0", old, "accept", (), (("/old", b""),), keeps=("host",))
    twice = get(target=b"http://@/http://evil.test/")
    yield Payload("absolute form in a path", twice, "accept", (), (("/http://evil.test/", b""),))


def targets() -> Iterator[Payload]:
    for target in (
        b"//", b"*", b"", b"foo", b"foo/bar", b"/a#b", b"/#", b"/a b", b"/a\tb", b"/\x00", b"/\x01", b"/\x7f", b"/\r",
        b"/a\rb", b"@:80", b"?x", b"/\xff", b"/\xc3\xa9", b"/a\x0bb", b"/?a#b", b"/a\x1fb", b"**", b"*/x", b"./x",
        b"\\x",
    ):  # fmt: skip
        verdict: Literal["refuse", "either"] = "either" if target == b"//" else "refuse"
        arrive = (("//", b""),) if verdict == "either" else ()
        yield Payload(label("target", target), get(target=target), verdict, (400, 404), arrive)
    for target in (
        b"/%00", b"/%0d%0aX:%20y", b"/..%2f..", b"/a/../b", b"//evil.test/", b"/;x", b"/?a=b&c", b"/\\", b"/%", b"/%zz",
        b"/*", b"/?", b"/??", b"/'\"<>^`{|}", b"/..;/x", b"/%2e%2e/", b"/a//b",
    ):  # fmt: skip
        text = target.decode()
        yield Payload(label("plain target", target), get(target=target), "either", BAD, ((text, b""),))
    yield Payload("OPTIONS asterisk", get(method=b"OPTIONS", target=b"*"), "either", (400, 404), (("*", b""),))


def versions() -> Iterator[Payload]:
    for line in (
        b"GET / HTTP/1.2", b"GET / HTTP/2.0", b"GET / HTTP/2", b"GET / HTTP/0.9", b"GET / HTTP/1.10", b"GET / HTTP/11",
        b"GET / HTTP/1.1x", b"GET / HTTP/1.", b"GET / HTTP/.1", b"GET / http/1.1", b"GET / HTTP/1.1 ",
        b"GET / HTTP/ 1.1", b"GET / RTSP/1.0", b"GET / ICE/1.0", b"GET /", b"GET", b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1", b"GET\t/ HTTP/1.1", b"GET /\tHTTP/1.1", b" GET / HTTP/1.1", b"\tGET / HTTP/1.1",
        b"G(T / HTTP/1.1", b"G\x00T / HTTP/1.1", b"G\xc4T / HTTP/1.1", b"GET / HTTP/1.1 HTTP/1.1", b"GET / HTTP/1.1\r",
        b"GET / /smuggled HTTP/1.1", b"GET /\x0bHTTP/1.1", b"/ HTTP/1.1", b": / HTTP/1.1", b"HTTP/1.1 200 OK",
        b"GET / HTTP/1,1", b"GET / HTTP/-1.1", b"GET / XHTTP/1.1", b"GET / HTTP/01.1", b"GET / HTTP/3.0",
        b"GET / HTTP/1.1\x00", b"GET / HTTP\\1.1", b"GET / HTTPS/1.1", b"OPTIONS sip:x SIP/2.0", b"SOURCE / ICE/1.0",
        b"SSH-2.0-OpenSSH_9.2", b"EHLO a.test", b"GET / HTTP/1.1,", b"GET / HTTP/\xef\xbc\x91.1", b"GET / HTTP/1.9",
        b"GET:/ HTTP/1.1", b"GET@/ HTTP/1.1", b"GET /HTTP/1.1",
    ):  # fmt: skip
        data = line + b"\r\nHost: @\r\n\r\n"
        yield Payload(label("line", line), data + SMUGGLED, "refuse", (400, 405, 501, 505))
    preface = b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n"  # but for a letter: the right one begins a session
    yield Payload("HTTP/2 preface", preface + b"\x00" * 9, "refuse", (400, 405, 505))
    yield Payload("lower-case method", get(method=b"get"), "either", (400, 405, 501), (("/", b""),))
    yield Payload("unknown method", get(method=b"FOO"), "either", (400, 405, 501), (("/", b""),))
    yield Payload("an endless method", get(method=b"A" * 40), "refuse", (400, 405, 501))
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64
    yield Payload("TLS hello", hello, "refuse", BAD, unfinished=True)
    yield Payload("NUL in front", b"\x00" + get(), "refuse", BAD)
    yield Payload("a body in front", b"hello" + get(), "refuse", (400, 405, 501))
    line = b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"
    yield Payload("a PROXY line that nobody asked for", line + get(), "refuse", (400, 505))
    header = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12)
    yield Payload("a binary PROXY header that nobody asked for", header + get(), "refuse", BAD)


def bad_lines(hazard_lines: tuple[bytes, ...]) -> Iterator[Payload]:
    for line in hazard_lines:
        data = b"GET / HTTP/1.1\r\nHost: @\r\n" + line + b"\r\nLast: 1\r\n\r\n"
        yield Payload(label("field", line), data + SMUGGLED, "refuse", BAD)


def names() -> Iterator[Payload]:
    yield from bad_lines((
        b"X : y", b"X\t: y", b"X y", b"X", b": y", b"X(: y", b"X Y: z", b"X,: y", b'X": y', b"X\xc0: y", b"X\xe4: y",
        b"X/Y: z", b"X{: y", b"X=: y", b"[X]: y", b"X;: y", b"X<: y", b"X?: y", b"X\\: y", b":", b"::", b"X\xa0: y",
    ))  # fmt: skip
    for line in (b"X:y", b"X:", b"X: ", b"X:\t y \t", b"X: \xe4\xff", b"x!#$%&'*+-.^`|~9: y", b"X: :y", b"X::y"):
        yield Payload(label("good field", line), get(line), "accept", (), (("/", b""),))


def folded() -> Iterator[Payload]:
    yield from bad_lines((b" X: y", b"\tX: y", b"X: y\r\n z", b"X: y\r\n\tz", b"X: y\r\n ", b"X:\r\n y", b"X: y\r\n\t"))
    yield Payload("Host folded", b"GET / HTTP/1.1\r\n Host: @\r\n\r\n", "refuse", BAD)
    yield Payload("Host's value folded", b"GET / HTTP/1.1\r\nHost:\r\n @\r\n\r\n", "refuse", BAD)
    yield Payload("a folded request line", b"GET /\r\n HTTP/1.1\r\nHost: @\r\n\r\n", "refuse", BAD)


def line_ends() -> Iterator[Payload]:
    yield from bad_lines(
        (b"X: a\rb", b"X: y\r", b"X: y\r\r", b"X\r: y", b"X: a\nb: c", b"X: y\n", b"X\n: y", b"\nX: y", b"\rX: y")
    )
    yield Payload("all bare LF", b"GET / HTTP/1.1\nHost: @\n\n", "refuse", BAD, unfinished=True)
    yield Payload("line ends in LF", b"GET / HTTP/1.1\nHost: @\r\n\r\n", "refuse", BAD)
    yield Payload("Host ends in LF", b"GET / HTTP/1.1\r\nHost: @\n\r\n", "refuse", BAD, unfinished=True)
    yield Payload("head ends in LF LF", b"GET / HTTP/1.1\r\nHost: @\r\nX: y\n\n" + SMUGGLED, "refuse", BAD)
    yield Payload("head ends in CR LF LF", b"GET / HTTP/1.1\r\nHost: @\r\n\n" + SMUGGLED, "refuse", BAD)
    yield Payload("head ends in LF CR LF", b"GET / HTTP/1.1\r\nHost: @\n\r\n" + SMUGGLED, "refuse", BAD)
    yield Payload("head ends in CR CR LF", b"GET / HTTP/1.1\r\nHost: @\r\n\r\r\n" + SMUGGLED, "refuse", BAD)
    yield Payload("all bare CR", b"GET / HTTP/1.1\rHost: @\r\r", "refuse", BAD, unfinished=True)
    yield Payload("a bare LF in front", b"\n" + get(), "refuse", BAD)
    yield Payload("a bare CR in front", b"\r" + get(), "refuse", BAD)


def controls() -> Iterator[Payload]:
    yield from bad_lines((
        b"X: a\x00b", b"X: a\x01b", b"X: a\x7fb", b"X\x00: y", b"X\x01: y", b"X\x7f: y", b"X: \x0b", b"X:\x0cy",
        b"X: \x08", b"X: \x1b[0m", b"\x00", b"X: y\x00", b"X:\x00", b"\x0bX: y",
    ))  # fmt: skip


def expectations() -> Iterator[Payload]:
    for value in (b"200-ok", b"100-continue, x", b"x", b"100-continue\xa0", b"", b"100-continue;q=1", b"100 continue"):
        data = post(b"Expect: " + value, CL, body=b"hello" + SMUGGLED)
        yield Payload(label("expect", value), data, "refuse", (400, 417))
    data = post(b"Expect: 100-continue", b"Expect: x", CL, body=b"hello" + SMUGGLED)
    yield Payload("expect twice", data, "refuse", (400, 417))
    arrive = (("/", b"hello"), ("/then", b""))
    then = get(target=b"/then")
    known = post(b"Expect: 100-Continue", CL, body=b"hello") + then
    yield Payload("expect and the body at once", known, "accept", (), arrive)
    known = post(b"Expect: 100-continue", TE, body=CHUNKED) + then
    yield Payload("expect and chunks at once", known, "accept", (), arrive)
    old = post(b"Expect: 100-continue", CL, body=b"hello", version=b"1.0")
    yield Payload("expect of HTTP/1.0", old, "accept", (), (("/", b"hello"),), lacks=("expect",))
    named = post(b"Expect: 100-continue", b"Connection: expect", CL, body=b"hello") + then
    yield Payload("expect that Connection names", named, "accept", (), arrive)


def underscores() -> Iterator[Payload]:
    for line in (b"Transfer_Encoding: chunked", b"Content_Length: 50", b"Content-Length_: 50", b"_: 1", b"Host_: evil"):
        lacks = (line.partition(b":")[0].decode().lower(),)
        data = post(CL, line, body=b"hello")
        yield Payload(label("underscore", line), data, "either", BAD, (("/", b"hello"),), lacks=lacks)
    for line in (b"X_Service_Version: v9", b"X_Forwarded_For: 6.6.6.6", b"x-user_id: 1", b"X_Graylb_Rule: x"):
        lacks = (line.partition(b":")[0].decode().lower(),)
        yield Payload(label("underscore", line), get(line), "either", BAD, (("/", b""),), lacks=lacks)
    data = post(b"Transfer_Encoding: chunked", body=CHUNKED + SMUGGLED)
    # without framing there is no body: what follows is no request
    yield Payload("underscore alone frames nothing", data, "accept", BAD, (("/", b""),), then_refused=True)


def hop_by_hop() -> Iterator[Payload]:
    one = (("/", b""),)
    for line in (
        b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"TE: gzip", b"TE: trailers, deflate;q=0.5",
        b"Trailer: X", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ",
        b"Connection: keep-alive, Upgrade, HTTP2-Settings", b"Connection: x", b"Connection:", b"Connection: ,,",
        b"Connection: close, close",
    ):  # fmt: skip
        name = line.partition(b":")[0].decode().lower()
        yield Payload(label("hop by hop", line), get(line), "accept", (), one, lacks=(name,))
    gone = get(b"Connection: X-Gone, x-GONE-too", b"X-Gone: 1", b"x-gone-Too: 2", b"X-Stays: 3")
    yield Payload(
        "what Connection names goes", gone, "accept", (), one, keeps=("x-stays",), lacks=("x-gone", "x-gone-too")
    )
    for name in (
        b"Host", b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X-Service-Version", b"Baggage",
        b"Via", b"Forwarded",
    ):  # fmt: skip
        lines = () if name == b"Host" else (name + b": 1",)
        yield Payload(
            label("Connection cannot remove", name),
            get(b"Connection: close, " + name, *lines), "accept", (), one, keeps=(name.decode().lower(),),
        )  # fmt: skip
    arrive = (("/", b"hello"), ("/then", b""))
    named = post(b"Connection: content-length", CL, body=b"hello") + get(target=b"/then")
    yield Payload("Connection names Content-Length", named, "either", BAD, arrive)
    data = post(b"Connection: transfer-encoding", TE, body=CHUNKED) + get(target=b"/then")
    yield Payload("Connection names Transfer-Encoding", data, "either", BAD, arrive)
    data = get(b"Connection: close") + SMUGGLED
    yield Payload("a request behind Connection: close", data, "accept", (), one)
    old = get(version=b"1.0") + SMUGGLED
    yield Payload("a request behind HTTP/1.0", old, "accept", (), one)


def upgrades() -> Iterator[Payload]:
    """Upgrade stops the framing of many a parser: with a body it is refused, whatever it names."""
    for protocol in (b"websocket", b"h2c", b"TLS/1.0", b"x"):
        up = (b"Connection: Upgrade", b"Upgrade: " + protocol)
        with_length = post(*up, b"Content-Length: 5", body=b"hello" + SMUGGLED)
        yield Payload(label("upgrade and length", protocol), with_length, "refuse")
        with_chunks = post(*up, b"Transfer-Encoding: chunked", body=CHUNKED + SMUGGLED)
        yield Payload(label("upgrade and chunks", protocol), with_chunks, "refuse")
        arrive = (("/", b""), ("/then", b""))
        yield Payload(label("upgrade alone", protocol), get(*up) + get(target=b"/then"), "accept", (), arrive)
    yield Payload("CONNECT", b"CONNECT @:443 HTTP/1.1\r\nHost: @:443\r\n\r\n" + SMUGGLED, "refuse", (405,))
    with_length = b"CONNECT @:443 HTTP/1.1\r\nHost: @:443\r\nContent-Length: 3\r\n\r\nabc"
    yield Payload("CONNECT with a length", with_length + SMUGGLED, "refuse", (400, 405))
    with_chunks = b"CONNECT @:443 HTTP/1.1\r\nHost: @:443\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED
    yield Payload("CONNECT with chunks", with_chunks + SMUGGLED, "refuse", (400, 405))
    yield Payload("CONNECT to a path", get(method=b"CONNECT") + SMUGGLED, "refuse", (400, 405))
    yield Payload("CONNECT of HTTP/1.0", b"CONNECT @:443 HTTP/1.0\r\n\r\n" + SMUGGLED, "refuse", (400, 405))
    up = (b"Connection: Upgrade", b"Upgrade: websocket")
    both = post(*up, CL, TE, body=CHUNKED + SMUGGLED)
    yield Payload("upgrade, length and chunks", both, "refuse", BAD)
    hidden = post(b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c", CL, body=b"hello" + SMUGGLED)
    yield Payload("two upgrades and a length", hidden, "refuse", BAD)
    named = post(b"Connection: Upgrade, content-length", b"Upgrade: x", CL, body=b"hello" + SMUGGLED)
    yield Payload("upgrade and a length that Connection names", named, "refuse", BAD)
    none = get(*up, b"Content-Length: 0") + get(target=b"/then")
    yield Payload("upgrade and length 0", none, "either", BAD, (("/", b""), ("/then", b"")))
    posted = post(*up) + get(target=b"/then")
    yield Payload("upgrade by POST", posted, "accept", (), (("/", b""), ("/then", b"")), lacks=("upgrade",))
    listed = get(b"Connection: Upgrade", b"Upgrade: websocket, h2c") + get(target=b"/then")
    yield Payload("a list of upgrades", listed, "accept", (), (("/", b""), ("/then", b"")), lacks=("upgrade",))
    behind = get(*up, b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Version: 13") + b"\x81\x05hello"
    # frames before the 101 are no request: the handshake is answered as a plain request, and they are the end
    yield Payload("frames behind a handshake", behind, "accept", BAD, (("/", b""),), True, True)
    lone = post(b"Upgrade: websocket", b"Content-Length: 5", body=b"hello") + get(target=b"/then")
    yield Payload("Upgrade that Connection does not name", lone, "either", BAD, (("/", b"hello"), ("/then", b"")))
    data = post(b"Connection: Upgrade", b"Content-Length: 5", body=b"hello") + get(target=b"/then")
    yield Payload("Connection: Upgrade without Upgrade", data, "either", BAD, (("/", b"hello"), ("/then", b"")))


def carried() -> Iterator[Payload]:
    """Good requests whose bodies look like requests; they stay bodies."""
    inner = b"GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"
    length = b"Content-Length: %d" % len(inner)
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    arrive = (("/", inner), ("/then", b""))
    then = get(target=b"/then")
    yield Payload("a request as a body", post(length, body=inner) + then, "accept", (), arrive)
    yield Payload("a request as a chunk", post(b"Transfer-Encoding: chunked", body=chunk) + then, "accept", (), arrive)
    as_get = get(length) + inner
    yield Payload("a request as a GET's body", as_get + then, "accept", (), arrive)
    blanks = post(length.replace(b": ", b":\t ") + b" \t", body=inner) + then
    yield Payload("length with white space", blanks, "accept", (), arrive)
    yield Payload("two requests", get() + then, "accept", (), (("/", b""), ("/then", b"")))
    yield Payload("an empty line between", get() + b"\r\n" + then, "accept", (), (("/", b""), ("/then", b"")))
    yield Payload(
        "length 0 and a request behind it",
        post(b"Content-Length: 0") + then,
        "accept",
        (),
        (("/", b""), ("/then", b"")),
    )


def sizes() -> Iterator[Payload]:
    """Beyond the defaults: head 64 KiB, 100 fields, target 16 KiB, 8 KiB of extensions or trailers."""
    for name, data in {
        "a field of 70 KB": get(b"X: " + b"y" * 70000),
        "a name of 70 KB": get(b"X" * 70000 + b": y"),
        "a head of 70 KB in many fields": get(*[b"X: " + b"y" * 1000] * 70),
        "101 fields": get(*[b"X: y"] * 100),
        "1000 fields": get(*[b"X:"] * 1000),
        "a target of 17 KB": get(target=b"/" + b"a" * 17000),
        "a query of 17 KB": get(target=b"/?" + b"a" * 17000),
        "a host of 300 bytes": b"GET / HTTP/1.1\r\nHost: " + b"a" * 300 + b"\r\n\r\n",
        "white space of 70 KB": get(b"X:" + b" " * 70000 + b"y"),
    }.items():
        yield Payload(name, data + SMUGGLED, "refuse", (400, 414, 431))
    for name, data in {
        "a method without an end": b"A" * 70000,
        "a target without an end": b"GET /" + b"a" * 70000,
        "a field without an end": b"GET / HTTP/1.1\r\nX: " + b"y" * 70000,
    }.items():
        yield Payload(name, data, "refuse", (400, 414, 431), unfinished=True)
    for name, raw in {
        "an extension of 9 KB": b"5;" + b"a" * 9000 + b"\r\nhello\r\n0\r\n\r\n",
        "a trailer of 9 KB": b"5\r\nhello\r\n0\r\nx: " + b"y" * 9000 + b"\r\n\r\n",
        "1000 trailers": b"5\r\nhello\r\n0\r\n" + b"x: y\r\n" * 2000 + b"\r\n",
        "a size of 9 KB": b"0" * 9000 + b"5\r\nhello\r\n0\r\n\r\n",
    }.items():
        yield Payload(name, post(TE, body=raw + SMUGGLED), "cut", (400, 413, 431))
    many = b"\r\n" * 500 + get()
    yield Payload("500 empty lines in front", many, "either", BAD, (("/", b""),))


MAKERS: dict[str, Callable[[], Iterator[Payload]]] = {
    "A": framings, "B": lengths, "C": names, "D": folded, "E": line_ends, "F": controls, "G": chunks, "1": upgrades,
    "2": sizes, "3": hosts, "4": authorities, "5": versions, "6": old_codings, "7": codings, "8": trailers, "9": zeros,
    "10": targets, "11": hop_by_hop, "12": expectations, "13": underscores, "14": carried,
}  # fmt: skip
PAYLOADS = [replace(payload, hazard=hazard) for hazard, make in MAKERS.items() for payload in make()]
