"""Heads that are lawful, heads that nearly are, and chunked bodies: hypothesis strategies.

@given(grammar.damaged(grammar.requests()))
def test(head): ...
"""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.peers import METHODS

HOST = b"a.test:80"
TARGETS = (
    b"/", b"/a/b?c=d&e", b"//x", b"/%2e%00", b"/?", b"/a?b?c", b"/\\\"<>^`{|}", b"http://a.test:80/x?y",
    b"HTTP://A.test:80",
    b"https://a.test:80?q",
)  # fmt: skip
PLAIN = (
    b"X-Plain", b"x!#$%&'*+-.^`|~9", b"Cookie", b"Accept", b"User-Agent", b"Content-Type", b"X-Forwarded-For",
    b"X-Forwarded-Proto", b"X-Forwarded-Host", b"X-Forwarded-Port", b"Forwarded", b"Via", b"X-Service-Version",
    b"baggage",
    b"x-graylb-rule", b"Under_score", b"x-graylb-a_b", b"Keep-Alive", b"Proxy-Connection", b"HTTP2-Settings",
    b"Trailer",
    b"Date", b"A",
)  # fmt: skip
TOKENS = (
    b"close", b"Keep-Alive", b"x-plain", b"COOKIE", b"content-length", b"transfer-encoding", b"host",
    b"x-forwarded-for",
    b"x-forwarded-port", b"x-service-version", b"baggage", b"via", b"te", b"a", b"nobody", b"upgrade",
)  # fmt: skip
VALUES = (b"", b"y", b"a, b", b'"q;x=1"', b"\xe4\xff", b"a\tb  c", b"x" * 40, b"application/grpc", b":", b"1")
BLANKS = (b" ", b"", b"\t", b"  ", b" \t ")
NASTY = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"_",
    b"\x7f",
    b"\x80",
    b"#",
    b"/",
    b"5",
    b"chunked",
    b"@",
    b";",
)

Line = tuple[bytes, bytes, bytes, bytes]
"""One field line: name, white space, value, white space."""


def lines(names: tuple[bytes, ...] = PLAIN) -> st.SearchStrategy[Line]:
    return st.tuples(st.sampled_from(names), st.sampled_from(BLANKS), st.sampled_from(VALUES), st.sampled_from(BLANKS))


def known(name: bytes, *values: bytes) -> st.SearchStrategy[Line]:
    return st.tuples(st.just(name), st.sampled_from(BLANKS), st.sampled_from(values), st.sampled_from(BLANKS))


def connections() -> st.SearchStrategy[Line]:
    value = st.lists(st.sampled_from(TOKENS), min_size=1, max_size=3).map(b" , ".join)
    return st.tuples(st.just(b"Connection"), st.just(b" "), value, st.sampled_from(BLANKS))


# llhttp alone refuses a tab behind the coding
CODING = st.tuples(
    st.just(b"Transfer-Encoding"), st.sampled_from(BLANKS), st.sampled_from((b"chunked", b"Chunked")), st.just(b" ")
)
LENGTH = known(b"Content-Length", b"0", b"5", b"005", b"12")


def text(first: bytes, fields: list[Line]) -> bytes:
    return b"\r\n".join([first, *(b"%b:%b%b%b" % line for line in fields), b"", b""])


@st.composite
def requests(draw: st.DrawFn, version: bytes | None = None) -> bytes:
    """A lawful request head."""
    minor = version or draw(st.sampled_from((b"1", b"1", b"1", b"0")))
    fields = draw(st.lists(st.one_of(lines(), lines(), connections(), known(b"TE", b"trailers", b"gzip")), max_size=5))
    target = draw(st.sampled_from(TARGETS))
    if minor == b"1" or draw(st.booleans()):
        fields.append(draw(known(b"hOsT", HOST)))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "length":
        fields.append(draw(LENGTH))
    elif framing == "chunked" and minor == b"1":
        fields.append(draw(CODING))
    elif framing == "none" and draw(st.booleans()):
        fields.append(draw(known(b"Upgrade", b"websocket")))
    if draw(st.booleans()):
        fields.append(draw(known(b"Expect", b"100-continue", b"100-Continue")))
    first = b"%b %b HTTP/1.%b" % (draw(st.sampled_from(METHODS)), target, minor)
    return text(first, draw(st.permutations(fields)))


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """A lawful response head."""
    minor = draw(st.sampled_from((b"1", b"1", b"1", b"0")))
    status = draw(st.sampled_from((b"200", b"201", b"204", b"206", b"304", b"404", b"500", b"599")))
    reason = draw(st.sampled_from((b" OK", b" ", b" Not \xe4\t it")))
    fields = draw(st.lists(st.one_of(lines(), lines(), connections()), max_size=5))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "length":
        fields.append(draw(LENGTH))
    elif framing == "chunked" and minor == b"1":
        fields.append(draw(CODING))
    return text(b"HTTP/1.%b %b%b" % (minor, status, reason), draw(st.permutations(fields)))


@st.composite
def damaged(draw: st.DrawFn, heads: st.SearchStrategy[bytes]) -> bytes:
    """Up to three bytes replaced, inserted or removed."""
    data = draw(heads)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(NASTY) | st.just(b"")) + data[at + draw(st.integers(0, 2)) :]
    return data


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A lawful chunked body -> (as sent, decoded)."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
    raw = b""
    for piece in pieces:
        size = draw(st.sampled_from((b"%x", b"%X", b"000%x"))) % len(piece)
        raw += size + draw(st.sampled_from((b"", b";a", b';a="b c"', b";\xe4 \t"))) + b"\r\n" + piece + b"\r\n"
    raw += draw(st.sampled_from((b"0", b"00", b"0;end"))) + b"\r\n"
    for line in draw(st.lists(st.sampled_from((b"x: y", b"Content-Length: 7", b"a:", b"b: \xff")), max_size=2)):
        raw += line + b"\r\n"
    return raw + b"\r\n", b"".join(pieces)
