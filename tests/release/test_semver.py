"""SemVer order and ranges against the semantic_version library."""

from __future__ import annotations

import pytest
import semantic_version  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from graylb.release import semver

NUMBERS = st.integers(0, 3).map(str)
PRE = st.lists(st.sampled_from(["0", "1", "2", "10", "a", "b", "rc", "rc1", "-", "0a"]), min_size=1, max_size=3)
TRIPLES = st.tuples(NUMBERS, NUMBERS, NUMBERS).map(".".join)
SUFFIXES = st.one_of(st.just(""), PRE.map(lambda parts: "-" + ".".join(parts)))
VERSIONS = st.tuples(TRIPLES, SUFFIXES).map("".join)
PARTIALS = st.lists(NUMBERS, min_size=1, max_size=2).map(".".join)
OPS = st.sampled_from(["", "=", "==", "!=", "<", "<=", ">", ">="])
TERMS = st.one_of(
    st.tuples(OPS, st.one_of(VERSIONS, PARTIALS)).map("".join),
    st.tuples(st.just("~"), st.one_of(TRIPLES, PARTIALS)).map("".join),
    # The library reads the missing parts of ^0 and ^0.0 as zeros; ours keep them open, as npm does.
    st.tuples(st.just("^"), st.one_of(TRIPLES, PARTIALS.filter(lambda text: text not in ("0", "0.0")))).map("".join),
    st.sampled_from(["*", ">=*"]),
)


def key(text: str) -> semver.Key:
    version = semver.parse_version(text)
    assert version is not None
    return version.key


def range_or_none(text: str) -> semver.Range | None:
    """None when the comparators contradict one another; the grammar itself must be accepted."""
    try:
        return semver.parse_range(text)
    except ValueError as error:
        if "no version can satisfy" not in str(error):
            raise
        return None


@given(VERSIONS, VERSIONS)
def test_order_is_the_librarys(a: str, b: str) -> None:
    assert (key(a) < key(b)) == (semantic_version.Version(a) < semantic_version.Version(b))
    assert (key(a) == key(b)) == (semantic_version.Version(a) == semantic_version.Version(b))


@given(st.lists(TERMS, min_size=1, max_size=3), st.lists(VERSIONS, min_size=1, max_size=20))
def test_ranges_are_the_librarys(terms: list[str], versions: list[str]) -> None:
    spec = semantic_version.SimpleSpec(",".join(terms))
    range_ = range_or_none(" , ".join(terms))
    if range_ is None:
        assert not any(spec.match(semantic_version.Version(text)) for text in versions)
        return
    for text in versions:
        assert semver.satisfies(text, range_) == spec.match(semantic_version.Version(text)), (terms, text)


@given(st.lists(TERMS, min_size=1, max_size=3), VERSIONS)
def test_alternatives_are_an_or(terms: list[str], version: str) -> None:
    alone = any(semver.satisfies(version, semver.parse_range(term)) for term in terms)
    assert semver.satisfies(version, semver.parse_range("||".join(terms))) == alone


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v2", (2, 0, 0, "")),
        ("1.2", (1, 2, 0, "")),
        ("v1.2.3-rc.1+build.007", (1, 2, 3, "rc.1")),
        ("2-rc1", (2, 0, 0, "rc1")),
        ("1.2.3--", (1, 2, 3, "-")),
        ("9223372036854775807.0.0", (2**63 - 1, 0, 0, "")),
        ("9223372036854775808", None),
        ("9" * 5000, None),
        ("", None),
        ("v", None),
        ("V1", (1, 0, 0, "")),
        ("vv1", None),
        ("01.2.3", None),
        ("1.2.3-01", None),
        ("1.2.3-", None),
        ("1.2.3-a..b", None),
        ("1.2.3.4", None),
        ("1.2.3\n", None),
        ("commit-abc123", None),
        ("\u0661.2.3", None),
    ],
)
def test_parse_version(text: str, expected: tuple[int, int, int, str] | None) -> None:
    assert semver.parse_version(text) == expected


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("<2", ["1.9.9", "1.9.9-rc1", "v0"], ["2.0.0-rc1", "2.0.0", "commit-abc"]),
        (">=1.2.0", ["1.2.0", "1.3.0-rc1"], ["1.2.0-rc1"]),
        (">=1.2.0-rc.2", ["1.2.0-rc.10", "1.2.0"], ["1.2.0-rc.1"]),
        ("1.x", ["1.0.0", "1.99.0"], ["2.0.0", "1.0.0-rc1", "2.0.0-a"]),
        ("1.2.*", ["1.2.9"], ["1.3.0-rc1", "1.3.0"]),
        ("V1.X.x", ["1.5.0"], ["2.0.0"]),
        ("^0.0", ["0.0.0", "0.0.9"], ["0.1.0"]),
        ("^0", ["0.9.0"], ["1.0.0"]),
        ("^1.2.0-rc.1", ["1.2.0-rc.2", "1.9.0"], ["1.2.0-alpha", "2.0.0-rc1"]),
        ("=v1.2.3-rc.1+b", ["1.2.3-rc.1+c"], ["1.2.3"]),
        (">=1.2 <2 || 3", ["1.2.0", "v3.1"], ["2.0.0", "4.0.0"]),
    ],
)
def test_range_examples(text: str, inside: list[str], outside: list[str]) -> None:
    range_ = semver.parse_range(text)
    assert [v for v in inside if not semver.satisfies(v, range_)] == []
    assert [v for v in outside if semver.satisfies(v, range_)] == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "missing"),
        ("1||", "missing"),
        (">=1,", "missing"),
        (",1", "cannot read"),
        (">=1<2", "cannot read"),
        ("~=1.2", "cannot read"),
        ("=>1", "cannot read"),
        ("1 | 2", "cannot read"),
        (">=", "cannot read"),
        ("one", "not a version"),
        ("01.2", "not a version"),
        ("1.x.3", "not a version"),
        ("1.2.x.x", "not a version"),
        ("1.2.*-rc", "not a version"),
        ("1.2-rc", "all three numbers"),
        ("<*", "cannot be used"),
        (">2,<1", "no version can satisfy"),
        ("1 || >2,<1", "no version can satisfy"),
        (str(2**63 - 1), "too large"),
        ("9" * 5000, "too large"),
    ],
)
def test_range_errors_say_what_was_expected(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        semver.parse_range(text)


@given(st.lists(TERMS, min_size=1, max_size=3).map(" ".join))
def test_comparators_are_ready_for_a_compiled_matcher(text: str) -> None:
    for bound in (bound for bounds in range_or_none(text) or () for bound in bounds):
        assert max(bound[1:4]) < semver.LIMIT
        assert (bound.rank == semver.PRE) == bool(bound.pre)
        assert bound.op != "!="


def test_many_exclusions_stay_few_alternatives() -> None:
    assert len(semver.parse_range(" ".join(f"!=1.{n}.0" for n in range(50)))) == 51
