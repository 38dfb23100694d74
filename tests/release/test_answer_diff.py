"""Comparisons of answers: laws against a slow oracle, masks, and bounds of a report."""

from __future__ import annotations

import gzip
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb.release import answer_diff
from graylb.release.answer_diff import ABSENT, Answer, Difference, Mask, Place, Report, Settings, compare, differing

names = st.text("ab*", min_size=1, max_size=2).filter(lambda name: name != "*")
scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0]) | st.text("xy", max_size=2)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
NOTHING = Settings(headers=())


def said(document: Any, status: int = 200, *headers: tuple[str, str]) -> Answer:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return Answer(status, headers, body, len(body))


def changed(document: Any, place: Place, value: Any) -> Any:
    """With another value at a place, or none; a list has what follows a gap."""
    if not place:
        return value
    key, *rest = place
    if isinstance(document, list):
        assert isinstance(key, int)
        old = document[key] if key < len(document) else ABSENT
        made = changed(old, tuple(rest), value)
        return document[:key] + ([] if made is ABSENT else [made]) + document[key + 1 :]
    base = dict(document)
    made = changed(base.get(key, ABSENT), tuple(rest), value)
    base.pop(key, None)
    return base if made is ABSENT else {**base, key: made}


def same(one: Any, two: Any) -> bool:
    """The oracle: equal as JSON values, where 1 and 1.0 are one number and true is none."""
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    numbers = type(one) in (int, float) and type(two) in (int, float)
    return (numbers or type(one) is type(two)) and bool(one == two)


@given(documents, documents)
def test_differences_are_found_where_documents_differ_and_nowhere_else(one: Any, two: Any) -> None:
    found = list(differing(one, two))
    assert bool(found) == (not same(one, two))
    assert bool(compare(said(one), said(two), NOTHING)) == bool(found)
    assert sorted(map(repr, found)) == sorted(
        repr((place, (second, first))) for place, (first, second) in differing(two, one)
    )


@given(documents, documents)
def test_the_differences_are_all_there_is_between_the_two(one: Any, two: Any) -> None:
    """Putting each second value in its place makes the second document; last places first, for lists grow shorter."""
    made = one
    added = [each for each in differing(one, two) if each[1][1] is not ABSENT]
    gone = [each for each in differing(one, two) if each[1][1] is ABSENT]
    for place, (_, value) in (*added, *reversed(gone)):
        made = changed(made, place, value)
    assert same(made, two)


@given(documents, documents)
def test_a_mask_of_each_difference_makes_answers_equal(one: Any, two: Any) -> None:
    places = [place for place, _ in differing(one, two)]
    if () in places:
        return  # the root has no pattern
    exact = ["$" + "".join(f"[{step}]" if isinstance(step, int) else f"['{step}']" for step in each) for each in places]
    assert compare(said(one), said(two), Settings((), tuple(map(Mask.parse, exact)))) == {}


@pytest.mark.parametrize(
    ("pattern", "covered", "others"),
    [
        ("$.a", [("a",), ("a", "b"), ("a", 0)], [("b",), ("b", "a"), (0, "a")]),
        ("$.a.b", [("a", "b"), ("a", "b", "c")], [("a",), ("b",), ("a", 0, "b")]),
        ("$.items[*].id", [("items", 0, "id"), ("items", 7, "id", "x")], [("items", 0), ("items", 0, "name")]),
        ("$.items[1]", [("items", 1)], [("items", 0), ("items", "1")]),
        ("$['a.b'].c", [("a.b", "c")], [("a", "b", "c")]),
        ("$..id", [("id",), ("a", "id"), ("a", 3, "id", "x")], [("a",), ("ids",)]),
        ("$.a..id", [("a", "id"), ("a", 1, "b", "id")], [("id",), ("b", "id")]),
        ("$.*", [("a",), (0,)], [()]),
        ("$[*].at", [(0, "at")], [("at",), (0,)]),
    ],
)
def test_patterns(pattern: str, covered: list[Place], others: list[Place]) -> None:
    mask = Mask.parse(pattern)
    assert all(map(mask.covers, covered))
    assert not any(map(mask.covers, others))


@pytest.mark.parametrize(
    "text", ["", "$", "a.b", "$a", "$.", "$.a[", "$.a[x]", "$..", "$.a..", "$.a b[?(@.x)]", "x$.a"]
)
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a pattern such as"):
        Mask.parse(text)


def test_status_headers_and_missing_answers() -> None:
    settings = Settings(("content-type", "etag"))
    one = said({}, 200, ("content-type", "a"), ("date", "now"))
    two = said({}, 500, ("content-type", "b"), ("content-type", "c"), ("etag", "e"), ("grpc-status", "3"))
    assert compare(one, two, settings) == {
        Difference("status"): ("200", "500"),
        Difference("header", "content-type"): ("a", "b, c"),
        Difference("header", "etag"): ("absent", "e"),
        Difference("header", "grpc-status"): ("absent", "3"),
    }
    assert compare(one, Answer(0), settings) == {Difference("answer"): ("200", "no answer")}
    assert compare(Answer(0), Answer(0), settings) == {}


def test_bodies() -> None:
    assert compare(said(b"a"), said(b"b\x1b"), NOTHING) == {Difference("body"): ("a", "b\\x1b")}
    assert compare(said(b""), said(b"{}"), NOTHING) == {Difference("body"): ("empty", "{}")}
    long = Answer(200, (), b"x" * 10, 11)
    assert compare(long, Answer(200, (), b"y" * 10, 11), NOTHING) == {}
    packed = ("content-encoding", "gzip")
    document = {"a": list(range(1000))}
    level = [said(gzip.compress(orjson.dumps(document), n, mtime=n), 200, packed) for n in (1, 9)]
    assert level[0].body != level[1].body
    assert compare(*level, NOTHING) == {}
    bomb = said(gzip.compress(b" " * (answer_diff.MAX_BODY + 1)), 200, packed)
    assert compare(bomb, said(b"cut", 200, packed), NOTHING).keys() == {Difference("body")}


def test_an_answer_is_read_from_its_texts() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nX: a:b\r\n\r\n"
    made = answer_diff.answer(200, head, b"body", 4, b"grpc-status: 0\r\n\r\n", True)
    assert made.headers == (("content-type", "application/grpc"), ("x", "a:b"), ("grpc-status", "0"))
    assert (made.status, made.whole) == (200, True)
    assert answer_diff.answer(200, head, b"bo", 4, b"", False).status == 0


def test_a_report_counts_by_path_and_stays_small() -> None:
    report = Report(Settings((), (Mask.parse("$.at"),)))
    for number in range(500):
        report.add(f"GET /users/{number}?q={number} HTTP/1.1", said({"at": number, "n": 1}), said({"at": 0, "n": 2}))
        report.add(f"GET /x{number} HTTP/1.1", said({str(number): 1}), said({str(number): 1}, 200 + number % 2))
    told = report.told()
    assert (told["compared"], told["different"]) == (1000, 750)
    first = told["paths"][0]
    assert first == {
        "path": "GET /users/*", "compared": 500, "different": 500,
        "differences": [
            {"kind": "json", "where": "$.n", "count": 500, "request": "GET /users/0?q=0 HTTP/1.1", "primary": "1",
             "mirror": "2"}
        ],
    }  # fmt: skip
    assert len(told["paths"]) == answer_diff.MAX_PATHS + 1
    crowd = Report(NOTHING)
    for number in range(300):
        crowd.add("GET / HTTP/1.1", said({str(number): 1}), said({}))
    assert len(crowd.told()["paths"][0]["differences"]) == answer_diff.MAX_KINDS
    assert orjson.dumps(crowd.told())


@pytest.mark.parametrize("depth", [300, 1020])
@pytest.mark.parametrize(("opening", "closing", "where"), [(b"[", b"]", "$[*][*]"), (b'{"a":', b"}", "$.a.a")])
def test_bodies_nest_as_deep_as_they_like(depth: int, opening: bytes, closing: bytes, where: str) -> None:
    """As deep as they are read: recursion ended, and so did writing the value that an example shows."""
    one, two = (said(opening * depth + leaf + closing * depth) for leaf in (b"1", b"2"))
    (difference,) = compare(one, two, NOTHING)
    assert difference.where.startswith(where)
    assert len(difference.where) <= answer_diff.MAX_SHOWN
    (shown,) = compare(one, said(b"2"), NOTHING).values()
    assert shown == ((opening[:1] + b"\xe2\x80\xa6 nested too deep" + closing).decode(), "2")


def test_a_mask_of_many_depths_takes_no_longer_than_its_document() -> None:
    assert not Mask.parse("$" + "..a" * 12 + "..b").covers(("a",) * 1000)
    assert Mask.parse("$" + "..a" * 12 + "..b").covers((*("a",) * 1000, "b", "c"))


def test_a_place_is_shown_fit_for_a_terminal_and_not_longer_than_a_value() -> None:
    (difference,) = compare(said({"\x1b[2J" + "x" * 1000: 1}), said({}), NOTHING)
    assert difference.where.startswith(r"$.\x1b[2Jxxx")
    assert len(difference.where) < 2 * answer_diff.MAX_SHOWN
