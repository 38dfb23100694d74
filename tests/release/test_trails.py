"""What a trail says about the chain: who had the mark, between whom it was lost, who did not answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb.release.trails import MAX_ENTRIES, PROBE, TRAIL, Hop, judge, parse
from graylb.sdk import trail as sdk

FINE = "0;users;v2,1;orders;v2,2;stock;v2"


def test_the_names_and_the_bounds_are_those_of_the_sdk() -> None:
    assert (PROBE, TRAIL, MAX_ENTRIES) == (sdk.PROBE, sdk.TRAIL, sdk.MAX_ENTRIES)


CASES: list[tuple[str, str | None, str | None, list[str], list[tuple[str, str | None, str | None]]]] = [
    # title, trail, mark sent, expected services, (kind, before, at) of the findings
    ("all fine", FINE, "v2", ["users", "orders", "stock"], []),
    ("fine, nothing known beforehand", FINE, None, [], []),
    ("no trail", None, "v2", ["users"], [("no-trail", None, "users")]),
    ("no trail, nobody expected", None, None, [], [("no-trail", None, None)]),
    ("rubbish", "hello, world", None, [], [("no-trail", None, None)]),
    ("lost before the first", "0;users;-", "v2", [], [("lost", None, "users")]),
    ("another one from the edge", "0;users;v3", "v2", [], [("changed", None, "users")]),
    ("nobody sent one", "0;users;-,1;orders;-", None, [], []),
    ("one begins in the middle", "0;users;-,1;orders;v2", None, [], []),
    ("lost between two", "0;users;v2,1;orders;-,2;stock;-", "v2", [], [("lost", "users", "orders")]),
    ("lost later", "0;users;v2,1;orders;v2,2;stock;-", None, [], [("lost", "orders", "stock")]),
    ("changed", "0;users;v2,1;orders;v1", None, [], [("changed", "users", "orders")]),
    ("lost on one of two branches", "0;users;v2,1;orders;v2,1;stock;-", None, [], [("lost", "users", "stock")]),
    ("lost in every one of many calls is told once", "0;a;v2,1;b;-,1;b;-,1;b;-", None, [], [("lost", "a", "b")]),
    ("no middleware", "0;users;v2,1;!stock.local/count;-", None, [], [("silent", "users", "stock.local/count")]),
    (
        "no middleware, expected",
        "0;users;v2,1;!stock.local/x;-",
        None,
        ["users", "stock"],
        [("silent", "users", "stock")],
    ),
    ("no middleware, with a port", "0;users;v2,1;!stock:80/x;-", None, ["stock"], [("silent", "users", "stock")]),
    (
        "no middleware, by gRPC: who was called is not known by name",
        "0;users;v2,1;!/shop.Stock/Count;-",
        None,
        ["users", "stock"],
        [("silent", "users", "/shop.Stock/Count"), ("missing", None, "stock")],
    ),
    ("no hook at the client of the last", "0;users;v2,1;orders;v2", "v2", ["stock"], [("missing", "orders", "stock")]),
    ("a partner's service", "0;users;v2,1;!api.partner.com/pay;-", None, ["users"], []),
    (
        "behind a partner's service the trail ends at who called it",
        "0;users;v2,1;!api.partner.com/pay;-",
        None,
        ["orders"],
        [("missing", "users", "orders")],
    ),
    (
        "two may be the one whose client has no hook",
        "0;users;v2,1;orders;v2,1;carts;v2",
        None,
        ["users", "stock"],
        [("missing", None, "stock")],
    ),
    ("two trails in one answer", "0;users;v2,0;orders;v2", "v2", ["orders"], []),
    ("entries that are none are left out", f"x;y;z,{FINE},1;;v2,-1;a;b,0001;a;b,²;a;b,1;a", "v2", ["stock"], []),
    ("spaces behind commas", FINE.replace(",", ", "), "v2", ["stock"], []),
]


@pytest.mark.parametrize(("title", "trail", "sent", "expect", "wanted"), CASES, ids=[case[0] for case in CASES])
def test_verdicts(
    title: str, trail: str | None, sent: str | None, expect: list[str], wanted: list[tuple[str, str | None, str | None]]
) -> None:
    found = judge(trail, sent, expect, ["api.partner.com"])
    assert [(each.kind, each.before, each.at) for each in found.findings] == wanted, title
    assert found.fine == (not wanted)
    assert not found.cut


def test_the_words() -> None:
    (lost,) = judge("0;users;v2,1;orders;-").findings
    assert lost.message.startswith("lost between users and orders: users got v2, orders got none; ")
    (ends,) = judge("0;users;v2,1;orders;v2", None, ["stock"]).findings
    assert "the trail ends at orders: its client has no hook of graylb.sdk" in ends.message
    (silent,) = judge("0;users;v2,1;!stock.local/x;-", None, ["stock"]).findings
    assert silent.message == (
        "stock (stock.local/x), called by users, answered no probe (no middleware of graylb.sdk, or GRAYLB_PROBES=off)"
    )
    assert judge(FINE, "v2").summary() == "all 3 hops had the mark v2"
    assert judge("0;users;v2", "v2").summary() == "the one hop had the mark v2"
    assert "none got a mark" in judge("0;users;-,1;orders;-").summary()
    assert "no mark was lost" in judge("0;users;-,1;orders;v2").summary()


def test_nothing_from_a_trail_gets_at_the_terminal() -> None:
    (hop,) = parse("0;%1b[31musers%0a;v2\x1b[0m")
    assert hop == Hop("?[31musers?", "v2?[0m", None)


def test_of_a_trail_that_may_have_been_cut_nobody_is_blamed() -> None:
    found = judge(",".join(["0;users;v2"] + ["1;orders;v2"] * (MAX_ENTRIES - 1)), "v2", ["stock"])
    assert found.cut
    assert [(each.kind, each.before, each.at) for each in found.findings] == [("missing", None, "stock")]
    assert "may have been cut" in found.findings[0].message
    assert judge("0;" + "u" * 4000 + ";v2").cut


@given(st.text(st.sampled_from("0123;,!-av \x1b%2")) | st.text(), st.none() | st.just("v2"), st.lists(st.text()))
def test_any_text_gets_a_verdict(text: str, sent: str | None, expect: list[str]) -> None:
    found = judge(text, sent, expect)
    assert found.to_data()["fine"] == found.fine
    assert all(hop.caller is None or hop.caller < index for index, hop in enumerate(found.hops))
    assert found.fine is False or found.summary()


@dataclass
class Service:
    """One of a chain that never was: `has` the mark that it got."""

    name: str
    has: str | None
    calls: list[Service] = field(default_factory=list)
    answers: bool = True


def marks() -> st.SearchStrategy[str | None]:
    return st.sampled_from(["v2", "v2", "v2", "v3", None])


NAMES = st.sampled_from(["users", "stock", "a;b", "c,d", "é", "x!", "100%", " "])
TREES = st.recursive(
    st.builds(Service, NAMES, marks(), st.just([]), st.booleans()),
    lambda inner: st.builds(Service, NAMES, marks(), st.lists(inner, max_size=3)),
    max_leaves=12,
)


def written(service: Service) -> str:
    """As the SDK writes it."""
    made = sdk.Trail("1", service.name, service.has)
    for each in service.calls:
        made.add(each.name, written(each) if each.answers else None)
    return made.text()


def wrong(service: Service) -> set[tuple[str, str, str]]:
    """(kind, caller, called) of every place where something is wrong, by walking along the calls."""
    found = set()
    for each in service.calls:
        if not each.answers:
            found.add(("silent", service.name, each.name))
            continue
        if service.has is not None and each.has != service.has:
            found.add(("changed" if each.has else "lost", service.name, each.name))
        found |= wrong(each)
    return found


@given(TREES)
def test_a_verdict_is_what_walking_along_the_calls_finds(root: Service) -> None:
    found = judge(written(root), root.has)
    assert {(each.kind, each.before, each.at) for each in found.findings} == wrong(root)
    assert found.hops[0].name == root.name
    data = found.to_data()
    assert data["hops"][0]["passed"] == [each.has for each in root.calls if each.answers]
