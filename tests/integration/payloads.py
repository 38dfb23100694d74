"""Hostile and odd requests, each with its verdict. `@` in a payload stands for the site's host, `\\xc0` for an at sign.

Verdicts:
  refuse   one error answer, then close; nothing reaches the upstream
  cut      the head is good, the body is not: its request may arrive but never completely; then close
  accept   exactly `arrive` requests reach the upstream, canonically, with these bodies
  either   refuse or accept
Statuses, where the law names them, are those a refusal may have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: @\r\n\r\n"
CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"
BAD = (400,)


@dataclass(frozen=True)
class Payload:
    name: str
    data: bytes
    verdict: Literal["refuse", "cut", "accept", "either"]
    statuses: tuple[int, ...] = ()
    arrive: tuple[tuple[str, bytes], ...] = ()  # (target, body) of what reaches the upstream
    unfinished: bool = False  # no head is complete: closing without a word is as good as 400

    def for_host(self, host: str) -> bytes:
        return self.data.replace(b"@", host.encode()).replace(b"\xc0", b"@")


def post(*lines: bytes, body: bytes = b"", target: bytes = b"/", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"POST " + target + b" HTTP/" + version, b"Host: @", *lines, b"", b""]) + body


def get(*lines: bytes, target: bytes = b"/", version: bytes = b"1.1", method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + target + b" HTTP/" + version, b"Host: @", *lines, b"", b""])


def label(prefix: str, text: bytes) -> str:
    return f"{prefix} {text.decode('latin-1').encode('unicode_escape').decode()}"


def framing() -> Iterator[Payload]:
    """Content-Length and Transfer-Encoding that disagree, repeat or hide."""
    te, cl = b"Transfer-Encoding: chunked", b"Content-Length: 5"
    for name, lines in {
        "length then chunked": (cl, te),
        "chunked then length": (te, cl),
        "length 0 and chunked": (b"Content-Length: 0", te),
        "two equal lengths": (cl, cl),
        "two lengths": (cl, b"Content-Length: 6"),
        "chunked twice": (te, te),
        "chunked and identity lines": (te, b"Transfer-Encoding: identity"),
        "length and hidden chunked": (cl, b"X: y\r\n" + te),
    }.items():
        yield Payload(name, post(*lines, body=CHUNKED + SMUGGLED), "refuse", BAD)
    for value in (
        b"5, 5",
        b"5,6",
        b"+5",
        b"-5",
        b"0x5",
        b"5 5",
        b"5;",
        b"1e1",
        b"",
        b"5\x0b",
        b"\xd9\xa5",
        b"5.0",
        b"5_0",
    ):
        yield Payload(
            label("length", value), post(b"Content-Length: " + value, body=b"hello" + SMUGGLED), "refuse", BAD
        )
    for value in (b"9223372036854775808", b"18446744073709551616", b"18446744073709551621", b"9" * 40):
        yield Payload(
            label("length", value), post(b"Content-Length: " + value, body=b"hello" + SMUGGLED), "refuse", (400, 413)
        )
    for value in (
        b"xchunked", b"chunkedx", b"identity", b"gzip", b"chunked, identity", b"chunked, chunked", b"identity, chunked",
        b"gzip, chunked", b"chunked, gzip", b"chunked;q=1", b'"chunked"', b"'chunked'", b"chu nked", b",chunked",
        b"chunked,",
        b"", b"chunked\x0b", b"\x0bchunked", b"chunked\xa0", b"deflate;x=chunked", b"c\x00hunked",
    ):  # fmt: skip
        data = post(b"Transfer-Encoding: " + value, body=CHUNKED + SMUGGLED)
        yield Payload(label("coding", value), data, "refuse", (400, 501))
        data = post(b"Content-Length: 5", b"Transfer-Encoding: " + value, body=CHUNKED + SMUGGLED)
        yield Payload(label("length and coding", value), data, "refuse", (400, 501))
    for line in (
        b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b" Transfer-Encoding: chunked",
        b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding:\n chunked", b"X: y\nTransfer-Encoding: chunked",
        b"X: y\rTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\n", b"Transfer-Encoding\x00: chunked",
        b"Transfer\xadEncoding: chunked", b"Transfer-Encoding\xff: chunked", b"Transfer-Encoding chunked",
        b"\x00Transfer-Encoding: chunked",
        b"Content-Length : 30", b"Content-Length\x0b: 30", b" Content-Length: 30", b"X: y\nContent-Length: 30",
    ):  # fmt: skip
        data = post(b"Content-Length: 5", line, body=b"hello" + SMUGGLED)
        # a folded line is also an empty coding: either is reason enough
        yield Payload(label("hidden framing", line), data, "refuse", (400, 501) if line[18:20] == b"\r\n" else BAD)
    old = post(te, body=CHUNKED + SMUGGLED, version=b"1.0")
    yield Payload("chunked in HTTP/1.0", old, "refuse", BAD)
    kept = post(te, b"Connection: keep-alive", body=CHUNKED + SMUGGLED, version=b"1.0")
    yield Payload("chunked in HTTP/1.0 with keep-alive", kept, "refuse", BAD)
    yield Payload("both in HTTP/1.0", post(cl, te, body=CHUNKED + SMUGGLED, version=b"1.0"), "refuse", BAD)
    for value in (b"Chunked", b"CHUNKED", b" chunked ", b"\tchunked"):
        data = post(b"Transfer-Encoding:" + value, body=CHUNKED)
        yield Payload(label("spelling", value), data, "either", (400, 501), (("/", b"hello"),))
    data = post(b"Content-Length: 5", b"Transfer_Encoding: chunked", body=b"hello")
    yield Payload("coding with an underscore", data, "either", BAD, (("/", b"hello"),))
    data = post(b"Content-Length: 5", b"Content_Length: 50", body=b"hello")
    yield Payload("length with an underscore", data, "either", BAD, (("/", b"hello"),))


def chunks() -> Iterator[Payload]:
    """Chunked bodies that are none."""
    for size in (
        b"", b" 5", b"5 ", b"5\t", b"+5", b"-5", b"0x5", b"g", b"5g", b"5,", b"5\x00", b"5\x0b", b"\xff", b"5\r",
        b"10000000000000005", b"ffffffffffffffff", b"8000000000000000", b"fffffffffffffffff", b"5 ;a", b"5_0",
        b"\xef\xbc\x95",
    ):  # fmt: skip
        data = post(b"Transfer-Encoding: chunked", body=size + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED)
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
        "trailer without a colon": b"5\r\nhello\r\n0\r\ntrailer\r\n\r\n",
        "trailer with LF": b"5\r\nhello\r\n0\r\nx: y\n\r\n",
        "trailer folded": b"5\r\nhello\r\n0\r\nx: y\r\n z\r\n\r\n",
        "trailer with NUL": b"5\r\nhello\r\n0\r\nx: \x00\r\n\r\n",
        "trailer with a space before the colon": b"5\r\nhello\r\n0\r\nx : y\r\n\r\n",
        "trailer begins with a space": b"5\r\nhello\r\n0\r\n x: y\r\n\r\n",
    }.items():
        yield Payload(name, post(b"Transfer-Encoding: chunked", body=raw + SMUGGLED), "cut", (400, 413, 431))
    for name, raw in {
        "extension": b"5;a=b\r\nhello\r\n0\r\n\r\n",
        "quoted extension": b'5;a="b c"\r\nhello\r\n0\r\n\r\n',
        "leading zeros": b"0000005\r\nhello\r\n000\r\n\r\n",
        "trailers": b"5\r\nhello\r\n0\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\nHost: evil\r\n\r\n",
        "one byte chunks": b"1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n",
    }.items():
        arrive = (("/", b"hello"), ("/then", b""))
        data = post(b"Transfer-Encoding: chunked", body=raw) + get(target=b"/then")
        yield Payload(f"good chunks: {name}", data, "accept", (), arrive)


def hosts() -> Iterator[Payload]:
    """Host missing, repeated, or no host."""
    yield Payload("no Host", b"GET / HTTP/1.1\r\nX: y\r\n\r\n", "refuse", BAD)
    yield Payload("no Host in HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n", "refuse", (400, 404))
    yield Payload("Host twice", get(b"Host: @"), "refuse", BAD)
    yield Payload("another Host", get(b"Host: evil.test"), "refuse", BAD)
    yield Payload("another Host in front", b"GET / HTTP/1.1\r\nHost: evil.test\r\nhost: @\r\n\r\n", "refuse", BAD)
    yield Payload("Host in another case", b"GET / HTTP/1.1\r\nHost: @\r\nhOST: @\r\n\r\n", "refuse", BAD)
    for value in (
        b"", b"@,evil.test", b"@, @", b"@ evil.test", b"user\xc0@", b"evil.test\xc0@", b"@:abc", b"@:99999", b"@:-1",
        b"@:80:80",
        b"@/", b"@?x", b"@#x", b"[::1", b"::1", b"@\x00", b"@\x01", b"@\x7f", b"@\xff", b"<@>", b'"@"', b"@:80 ",
        b"http://@",
    ):  # fmt: skip
        verdict: Literal["refuse", "either"] = "either" if value == b"@:80 " else "refuse"
        arrive = (("/", b""),) if verdict == "either" else ()
        yield Payload(label("host", value), b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n", verdict, BAD, arrive)


def targets() -> Iterator[Payload]:
    """Request lines and targets."""
    for target in (
        b"http://evil.test/", b"http://@.evil.test/", b"http://@:81/", b"http://evil.test:80/", b"https://evil.test/",
        b"http://user:pass\xc0@/", b"ftp://@/", b"file:///etc/passwd", b"http:///path", b"http://", b"http:/@/",
        b"//", b"javascript:x",
        b"*", b"", b"foo", b"foo/bar", b"/a#b", b"/#", b"/a b", b"/a\tb", b"/\x00", b"/\x01", b"/\x7f", b"/\r",
        b"/a\rb", b"@:80", b"?x",
    ):  # fmt: skip
        verdict: Literal["refuse", "either"] = "either" if target == b"//" else "refuse"
        arrive = (("//", b""),) if verdict == "either" else ()
        yield Payload(label("target", target), get(target=target), verdict, (400, 404), arrive)
    for line in (
        b"GET / HTTP/1.2", b"GET / HTTP/2.0", b"GET / HTTP/2", b"GET / HTTP/0.9", b"GET / HTTP/1.10", b"GET / HTTP/11",
        b"GET / HTTP/1.1x", b"GET / HTTP/1.", b"GET / HTTP/.1", b"GET / http/1.1", b"GET / HTTP/1.1 ",
        b"GET / HTTP/ 1.1",
        b"GET / RTSP/1.0", b"GET / ICE/1.0", b"GET /", b"GET", b"GET  / HTTP/1.1", b"GET /  HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET /\tHTTP/1.1", b" GET / HTTP/1.1", b"\tGET / HTTP/1.1", b"G(T / HTTP/1.1", b"G\x00T / HTTP/1.1",
        b"G\xc4T / HTTP/1.1",
        b"GET / HTTP/1.1 HTTP/1.1", b"GET / HTTP/1.1\r", b"GET / /smuggled HTTP/1.1", b"GET /\x0bHTTP/1.1",
        b"/ HTTP/1.1",
        b": / HTTP/1.1", b"HTTP/1.1 200 OK", b"GET / HTTP/1,1", b"GET / HTTP/-1.1", b"GET / XHTTP/1.1",
    ):  # fmt: skip
        data = line + b"\r\nHost: @\r\n\r\n"
        yield Payload(label("line", line), data + SMUGGLED, "refuse", (400, 405, 501, 505))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield Payload("HTTP/2 preface", preface + b"\x00" * 9, "refuse", (400, 405, 505))
    yield Payload("lower-case method", get(method=b"get"), "either", (400, 405, 501), (("/", b""),))
    yield Payload("unknown method", get(method=b"FOO"), "either", (400, 405, 501), (("/", b""),))
    yield Payload(
        "TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, "refuse", BAD, unfinished=True
    )
    yield Payload("CONNECT", b"CONNECT @:443 HTTP/1.1\r\nHost: @:443\r\n\r\n" + SMUGGLED, "refuse", (405,))
    with_length = b"CONNECT @:443 HTTP/1.1\r\nHost: @:443\r\nContent-Length: 3\r\n\r\nabc"
    yield Payload("CONNECT with a length", with_length + SMUGGLED, "refuse", (400, 405))
    yield Payload("CONNECT to a path", get(method=b"CONNECT") + SMUGGLED, "refuse", (400, 405))
    for scheme in (b"http", b"HTTP", b"https"):
        data = get(target=scheme + b"://@/path?q")
        yield Payload(label("absolute form", scheme), data, "accept", (), (("/path?q", b""),))
    yield Payload("absolute form without a path", get(target=b"http://@"), "accept", (), (("/", b""),))
    yield Payload("absolute form with a query only", get(target=b"http://@?q=1"), "accept", (), (("/?q=1", b""),))
    for target in (
        b"/%00",
        b"/%0d%0aX:%20y",
        b"/..%2f..",
        b"/a/../b",
        b"//evil.test/",
        b"/;x",
        b"/?a=b&c#".rstrip(b"#"),
        b"/\\",
    ):
        text = target.decode()
        yield Payload(label("plain target", target), get(target=target), "either", BAD, ((text, b""),))


def fields() -> Iterator[Payload]:
    """Header lines."""
    for line in (
        b"X : y", b"X\t: y", b"X y", b"X", b": y", b" X: y", b"\tX: y", b"X: y\r\n z", b"X: y\r\n\tz", b"X: y\r\n ",
        b"X: a\x00b",
        b"X: a\x01b", b"X: a\x7fb", b"X\x00: y", b"X\x01: y", b"X\x7f: y", b"X\xe4: y", b"X(: y", b"X Y: z", b"X,: y",
        b'X": y', b"X\xc0: y",
        b"X: a\rb", b"X: y\r", b"X: y\r\r", b"X\r: y", b"X: a\nb: c", b"X: y\n", b"X\n: y", b"X/Y: z", b"X{: y",
        b"X=: y", b"[X]: y",
        b"X: \x0b", b"X:\x0cy", b"X: \x08",
    ):  # fmt: skip
        data = b"GET / HTTP/1.1\r\nHost: @\r\n" + line + b"\r\nLast: 1\r\n\r\n"
        yield Payload(label("field", line), data + SMUGGLED, "refuse", BAD)
    yield Payload("field before Host folded", b"GET / HTTP/1.1\r\n Host: @\r\n\r\n", "refuse", BAD)
    yield Payload("all bare LF", b"GET / HTTP/1.1\nHost: @\n\n", "refuse", BAD, unfinished=True)
    yield Payload("line ends in LF", b"GET / HTTP/1.1\nHost: @\r\n\r\n", "refuse", BAD)
    yield Payload("Host ends in LF", b"GET / HTTP/1.1\r\nHost: @\n\r\n", "refuse", BAD, unfinished=True)
    yield Payload("head ends in LF LF", b"GET / HTTP/1.1\r\nHost: @\r\nX: y\n\n" + SMUGGLED, "refuse", BAD)
    yield Payload("head ends in CR LF LF", b"GET / HTTP/1.1\r\nHost: @\r\n\n" + SMUGGLED, "refuse", BAD)
    yield Payload("all bare CR", b"GET / HTTP/1.1\rHost: @\r\r", "refuse", BAD, unfinished=True)
    yield Payload("NUL in front", b"\x00" + get(), "refuse", BAD)
    yield Payload("a body in front", b"hello" + get(), "refuse", (400, 405, 501))
    for line in (b"X:y", b"X:", b"X: ", b"X:\t y \t", b"X: \xe4\xff", b"x!#$%&'*+-.^`|~9: y"):
        yield Payload(label("good field", line), get(line), "accept", (), (("/", b""),))
    for value in (b"200-ok", b"100-continue, x", b"x", b"100-continue\xa0"):
        data = post(b"Expect: " + value, b"Content-Length: 5", body=b"hello" + SMUGGLED)
        yield Payload(label("expect", value), data, "refuse", (400, 417))


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
    named = post(b"Connection: content-length", length, body=inner) + then
    yield Payload("Connection names Content-Length", named, "either", BAD, arrive)
    data = post(b"Connection: transfer-encoding", b"Transfer-Encoding: chunked", body=chunk) + then
    yield Payload("Connection names Transfer-Encoding", data, "either", BAD, arrive)
    zeros = post(length.replace(b": ", b": 00"), body=inner) + then
    yield Payload("length with leading zeros", zeros, "accept", (), arrive)
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


PAYLOADS = [*framing(), *chunks(), *hosts(), *targets(), *fields(), *upgrades(), *carried()]
