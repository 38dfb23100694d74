"""The mark in heads: the engine's reading against the same law in Python, and forged marks in many spellings."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb import _mark
from graylb._fast import pack_address
from graylb.model.snapshot import Marks, Pem
from graylb.release import marks as law

SECRET = Pem.of("secret", "correct horse battery staple")
FILES = {str(SECRET): SECRET.text.encode()}
PLAIN = Marks()
GUARDED = Marks(trusted=("10.0.0.0/8", "2001:db8::/32"), key=SECRET, signature="x-service-version-signature")
OWN = Marks(headers=("x-lane", "x-service-version"), baggage="lane")
NO_BAGGAGE = Marks(baggage=None)
LATER = 4_000_000_000

Headers = list[tuple[str, str]]


def arriving(marks: Marks, role: str, client_ip: str, headers: Headers) -> tuple[str | None, Headers]:
    """As the engine sees it: the mark, and the headers that rules see."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in [("host", "h"), *headers])
    address = pack_address(client_ip) if client_ip else b""
    head = f"GET / HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
    found, mark, seen = _mark.arriving(asdict(marks), FILES, role, address, head)
    assert bool(found & 2) == (mark is not None)
    left = [(name.decode().lower(), value.decode("latin-1")) for name, value in seen if name != b"host"]
    return mark.decode() if mark is not None else None, left


def plain(headers: Headers) -> tuple[Headers, list[str]]:
    """(all but baggage, in order of their names, the members of baggage)."""
    members = [each.strip(" \t") for name, value in headers if name.lower() == "baggage" for each in value.split(",")]
    rest = sorted((name.lower(), value.strip(" \t")) for name, value in headers if name.lower() != "baggage")
    return rest, [each for each in members if each]


MARK = st.sampled_from(["v1", "v2", "V2", "gray", "v2 ", "", "v1, v2", "a b", "x" * 129, "-v", "é", "v2;x"])
MEMBER = st.one_of(
    st.sampled_from(
        ["x-service-version=v2", " x-service-version = v3 ; ttl=1", "x-service-version=%762", "lane=gray", "lane=",
         "x-service-version", "X-Service-Version=v2", "k=x-service-version=v2", "", "a=1", "a=b;c=d", "%78=1",
         "lane=%zz"]
    ),
)  # fmt: skip
SIGNED = st.builds(
    lambda mark, key, expires: ("x-service-version-signature", law.sign(mark, key, expires)),
    st.sampled_from(["v1", "v2", "gray"]),
    st.sampled_from([SECRET.text, "another secret of some length"]),
    st.sampled_from([LATER, 1]),
)
HEADER = st.one_of(
    st.tuples(st.sampled_from(["x-service-version", "X-Service-Version", "x-lane", "X-LANE"]), MARK),
    st.tuples(st.sampled_from(["baggage", "Baggage"]), st.lists(MEMBER, max_size=4).map(",".join)),
    SIGNED,
    st.tuples(
        st.sampled_from(["accept", "x-service-versions", "x-other", "X-Graylb-Probe"]), st.sampled_from(["1", "v2"])
    ),
)


@given(
    st.sampled_from([PLAIN, GUARDED, OWN, NO_BAGGAGE]),
    st.sampled_from(["edge", "inbound", "outbound"]),
    st.sampled_from(["10.1.2.3", "11.1.2.3", "2001:db8::1", "2001:db9::1", ""]),
    st.lists(HEADER, max_size=6),
)
def test_the_engine_and_the_law_agree(marks: Marks, role: str, client_ip: str, headers: Headers) -> None:
    wanted, wanted_headers = law.arriving(marks, role, client_ip, headers, SECRET.text, 1_700_000_000)
    mark, seen = arriving(marks, role, client_ip, headers)
    assert mark == wanted
    assert plain(seen) == plain(wanted_headers)


FORGED: list[Headers] = [
    [("x-service-version", "v2")],
    [("X-SERVICE-VERSION", "v2")],
    [("x-SeRvIcE-vErSiOn", " \tv2\t ")],
    [("x-service-version", "v2"), ("x-service-version", "v2")],
    [("x-service-version", "v1"), ("X-Service-Version", "v2")],
    [("x-service-version", "v2, v2")],
    [("x-service-version", "")],
    [("baggage", "x-service-version=v2")],
    [("Baggage", "a=1,x-service-version=v2"), ("BAGGAGE", "\tx-service-version\t=\tv2 ;p=1,b=2")],
    [("baggage", "x-service-version=%76%32")],
    [("baggage", "x-service-version=v1,x-service-version=v2")],
    [("baggage", "a=" + "b" * 9000 + ",x-service-version=v2")],
    # one byte more than was kept of the longer was compared with it
    [("x-service-version", "v" * 130), ("baggage", "x-service-version=" + "v" * 130)],
    [("connection", "x-service-version"), ("x-service-version", "v2")],
    [("x-service-version", "v2"), ("x-service-version-signature", "")],
    [("x-service-version", "v2"), ("x-service-version-signature", f"{LATER}." + "0" * 64)],
    [("x-service-version", "v2"), ("x-service-version-signature", law.sign("v1", SECRET.text, LATER))],
    [("x-service-version", "v2"), ("x-service-version-signature", law.sign("v2", SECRET.text, 1))],
    [("x-service-version", "v2"), ("x-service-version-signature", law.sign("v2", SECRET.text.upper(), LATER))],
    [("x-service-version", "v2"), ("x-service-version-signature", law.sign("v2", SECRET.text, LATER).upper())],
    [
        ("x-service-version", "v2"),
        ("x-service-version-signature", law.sign("v2", SECRET.text, LATER)),
        ("x-service-version-signature", law.sign("v2", SECRET.text, LATER)),
    ],
    [
        ("x-service-version", "v1"),
        ("x-service-version", "v2"),
        ("x-service-version-signature", law.sign("v2", SECRET.text, LATER)),
    ],
]  # fmt: skip


@pytest.mark.parametrize("headers", FORGED)
def test_a_forged_mark_is_gone(headers: Headers) -> None:
    for client_ip in ("192.0.2.1", "2001:db9::1", ""):
        mark, seen = arriving(GUARDED, "edge", client_ip, headers)
        assert mark is None
        assert not [pair for pair in seen if "x-service-version" in str(pair) and pair[0] != "connection"]
    kept = [member for name, value in headers if name.lower() == "baggage" for member in value.split(",")]
    kept = [member.strip() for member in kept if "x-service-version" not in member and len(member) < 8192]
    assert plain(seen)[1] == kept


@pytest.mark.parametrize("headers", FORGED)
def test_within_the_mesh_the_engine_and_the_law_agree_on_each_of_them(headers: Headers) -> None:
    for marks in (PLAIN, GUARDED, OWN, NO_BAGGAGE):
        for role in ("inbound", "outbound"):
            wanted, wanted_headers = law.arriving(marks, role, "192.0.2.1", headers, SECRET.text, 1_700_000_000)
            mark, seen = arriving(marks, role, "192.0.2.1", headers)
            assert mark == wanted
            if all(len(value) < 8192 for _, value in headers):
                assert plain(seen) == plain(wanted_headers)


@pytest.mark.parametrize(
    ("headers", "mark"),
    [
        ([("x-service-version", "v1"), ("X-Service-Version", "v2")], None),
        ([("x-service-version", "v2"), ("X-Service-Version", " v2 ")], "v2"),
        ([("x-service-version", "v1"), ("x-service-version", "")], None),
        ([("x-service-version", "v1"), ("baggage", "x-service-version=v2")], "v1"),
        ([("baggage", "x-service-version=v1,x-service-version=v2")], "v1"),
        ([("x-service-version", "a b"), ("baggage", "x-service-version=v2")], None),
    ],
)
def test_of_several_marks_one_is_believed_or_none(headers: Headers, mark: str | None) -> None:
    """Hypothesis seldom draws two that are good and differ."""
    assert arriving(PLAIN, "inbound", "192.0.2.1", headers)[0] == mark


def test_a_signed_mark_is_believed_and_its_signature_goes_no_further() -> None:
    signature = law.sign("v2", SECRET.text, LATER)
    assert (
        signature == f"{LATER}." + __import__("hmac").digest(SECRET.text.encode(), f"{LATER}.v2".encode(), sha256).hex()
    )
    for name in ("x-service-version", "X-Service-Version"):
        mark, seen = arriving(
            GUARDED, "edge", "192.0.2.1", [(name, "v2"), ("X-Service-Version-Signature", signature), ("baggage", "a=1")]
        )
        assert mark == "v2"
        assert plain(seen) == ([("x-service-version", "v2")], ["x-service-version=v2", "a=1"])
    mark, _ = arriving(
        GUARDED, "edge", "", [("baggage", "x-service-version=v2"), ("x-service-version-signature", signature)]
    )
    assert mark == "v2"


def test_the_probe_of_a_stranger_is_gone() -> None:
    """It is answered by who the services are; `graylb doctor` signs a mark, or asks from a network that is trusted."""
    probe = ("x-graylb-probe", "1")
    signed = [("x-service-version", "v2"), ("x-service-version-signature", law.sign("v2", SECRET.text, LATER))]
    forged = [("x-service-version", "v2"), ("x-service-version-signature", law.sign("v2", "no such secret", LATER))]
    for headers, client_ip, role, kept in (
        ([probe], "192.0.2.1", "edge", False),
        ([probe, probe], "192.0.2.1", "edge", False),
        ([probe, *forged], "192.0.2.1", "edge", False),
        ([*signed, probe], "192.0.2.1", "edge", True),
        ([probe], "10.1.2.3", "edge", True),
        ([probe], "192.0.2.1", "inbound", True),
    ):
        assert (probe in arriving(GUARDED, role, client_ip, headers)[1]) == kept


def test_what_no_mark_came_with_is_left_as_it_is() -> None:
    headers = [("baggage", "a=1 , b=2"), ("baggage", "c=3"), ("x-service-versions", "1")]
    for role in ("edge", "inbound"):
        assert arriving(PLAIN, role, "192.0.2.1", headers) == (None, headers)
