"""What lint concludes about conditions, against every pair of the pools evaluated on every value of the pools."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from graylb.model.snapshot import Condition, Match
from graylb.release import implication, patterns
from graylb.release.implication import Conjunction, Texts, disjoint, subset, values_of
from tests import oracle, strategies

LISTS = {name: Texts(frozenset(ids)) for name, ids in strategies.LISTS.items()}

EXTRA = (
    *(
        Condition("header", "number", (text,), "x")
        for text in (">=10,<50", ">=20,<=30", "<10", ">=50", "!=20", ">5,<=5")
    ),
    *(
        Condition("header", "semver", (text,), "x")
        for text in ("^1.2", ">=1.2.1,<1.3", "1.x || 3.x", ">=3,<4", "1.2.x")
    ),
    *(Condition("header", "regex", (text,), "x") for text in ("^be.*$", "beta|be", ".*ta", "be(ta)?", "[ab]", "v\\d")),
    *(Condition("header", "prefix", (text,), "x") for text in ("b", "bet", "1.2", "/a")),
)
PATH_EXTRA = (
    *(Condition("path", "prefix", (text,)) for text in ("/", "/a", "/abc", "/abc/", "/abcd", "/ab")),
    *(Condition("path", "regex", (text,)) for text in ("/abc.*", "/abc/.*", "^/abc$", ".*/def")),
)
IP_EXTRA = (
    Condition("client_ip", "cidr", ("0.0.0.0/1", "128.0.0.0/1")),
    Condition("client_ip", "cidr", ("10.0.0.0/9", "10.128.0.0/9")),
    Condition("client_ip", "cidr", ("0.0.0.0/0", "::/0")),
)


def positive(conditions: Sequence[Condition]) -> list[Condition]:
    return list(dict.fromkeys(condition for condition in conditions if not condition.negate))


POOLS = {
    "header": (
        [*positive(strategies.HEADER_CONDITIONS[0]), *EXTRA],
        [*strategies.TEXTS, *strategies.NUMBER_TEXTS, *strategies.SEMVER_TEXTS, "be", "b", "eta", "xta", "19.5", "20",
         "30", "1.2.9", "3.1", "v3", "betax", "a", "user-7", *itertools.chain(*strategies.REGEXES.values())],
    ),
    "path": (
        [*positive(strategies.PATH_CONDITIONS), *PATH_EXTRA],
        [*strategies.PATHS, "/abc/x", "/abcx", "/ab", "/abc/x/def", "*",
         *itertools.chain(*strategies.PATH_REGEXES.values())],
    ),
    "client_ip": (
        [*positive(strategies.CONDITIONS[-1]), *IP_EXTRA],
        [*strategies.CLIENT_IPS, "10.127.255.255", "10.128.0.0", "11.0.0.0", "9.255.255.255", "255.255.255.255"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("pool", POOLS)
def test_every_conclusion_about_two_conditions_holds_for_every_value(pool: str) -> None:
    conditions, texts = POOLS[pool]
    raw = [text.encode().decode("latin-1") for text in dict.fromkeys(texts)]
    truth = []
    for condition in conditions:
        values = strategies.LISTS[condition.list_name] if condition.list_name else condition.values
        truth.append({text for text in raw if oracle.operator_true(condition.op, text, values)})
    concluded = 0
    for (a, in_a), (b, in_b) in itertools.product(zip(conditions, truth, strict=True), repeat=2):
        for lists in (LISTS, None):
            x, y = values_of(a, lists), values_of(b, lists)
            if subset(x, y):
                concluded += a is not b
                assert in_a <= in_b, (a, b, in_a - in_b)
            if disjoint(x, y):
                concluded += 1
                assert not in_a & in_b, (a, b, in_a & in_b)
    assert concluded > len(conditions)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (("exact", "beta"), ("in", "beta", "x")),
        (("in", "beta", "be"), ("prefix", "be")),
        (("in", "beta", "zeta"), ("suffix", "eta")),
        (("exact", "beta"), ("regex", "[a-z]+")),
        (("prefix", "beta"), ("prefix", "be")),
        (("prefix", "bet"), ("regex", "be.*")),
        (("regex", "be.*"), ("prefix", "b")),
        (("regex", "(a|b)c"), ("in", "ac", "bc", "x")),
        (("suffix", ".js"), ("present",)),
        (("exact", "15"), ("number", ">=10,<20")),
        (("number", ">=12,<15"), ("number", ">=10,<20,!=19")),
        (("exact", "1.2.3"), ("semver", "^1.2")),
        (("semver", ">=1.3,<1.5"), ("semver", "^1.2 || ^3")),
        (("number", "==5"), ("present",)),
    ],
)
def test_what_is_seen(narrow: tuple[str, ...], wide: tuple[str, ...]) -> None:
    a, b = (Condition("header", op, tuple(values), "x") for op, *values in (narrow, wide))  # type: ignore[arg-type]
    assert subset(values_of(a, None), values_of(b, None))
    assert not subset(values_of(b, None), values_of(a, None))
    # and for whole matches, where negation turns the direction
    not_a, not_b = (Condition(c.kind, c.op, c.values, c.name, negate=True) for c in (a, b))
    assert conjunction(a).implies(conjunction(b))
    assert conjunction(not_b).implies(conjunction(not_a))
    assert conjunction(a, not_b).impossible
    assert not conjunction(b, not_a).impossible


def conjunction(*conditions: Condition, none: tuple[tuple[Condition, ...], ...] = ()) -> Conjunction:
    return Conjunction.of(Match(conditions, none), None)


A, B, C = (Condition("header", "exact", ("1",), name) for name in "abc")


def test_groups() -> None:
    both = conjunction(C, none=((A, B),))
    assert conjunction(C, none=((A, B),)).implies(both)
    assert conjunction(C, none=((A,),)).implies(both)
    assert not both.implies(conjunction(C, none=((A,),)))
    assert conjunction(A, B, none=((A, B),)).impossible
    assert not conjunction(A, none=((A, B),)).impossible
    assert conjunction(none=((A, B),)).implies(conjunction(none=((A, B, C),)))
    assert not conjunction(none=((A, B, C),)).implies(conjunction(none=((A, B),)))


def test_values_that_pass_to_another_field() -> None:
    metadata = Condition("metadata", "exact", ("v2",), "x-service-version")
    header = Condition("header", "exact", ("v2",), "x-service-version")
    mark = Condition("mark", "in", ("v2", "v3"))
    assert conjunction(metadata).implies(conjunction(header))
    assert conjunction(metadata).implies(conjunction(mark))
    assert conjunction(header).implies(conjunction(mark))
    assert not conjunction(header).implies(conjunction(metadata))
    assert not conjunction(Condition("header", "exact", ("v2",), "x-service-version", negate=True)).implies(
        conjunction(Condition("mark", "exact", ("v2",), negate=True))
    )


def test_a_list_is_known_by_its_name_only_unless_its_ids_are_given() -> None:
    listed = Condition("header", "in", (), "x", list_name="staff")
    exact = Condition("header", "exact", ("ann",), "x")
    assert conjunction(listed).implies(conjunction(listed))
    assert not conjunction(exact).implies(conjunction(listed))
    ids = {"staff": Texts(frozenset({"ann"}))}
    assert Conjunction.of(Match((exact,)), ids).implies(Conjunction.of(Match((listed,)), ids))
    negated = Condition("header", "in", (), "x", negate=True, list_name="staff")
    assert not conjunction(exact).implies(conjunction(negated))


def test_a_line_break_is_no_value_of_dot_star() -> None:
    """`.` does not match one, and a query parameter may hold it."""
    for kind, universal in (("header", True), ("query", False), ("mark", False)):
        pattern = values_of(Condition(kind, "regex", (".*",), "x"), None)  # type: ignore[arg-type]
        assert isinstance(pattern, implication.Anything) == universal
        assert universal or not pattern.holds("a\nb")


ALPHABET = "ab1.-/ä\\n"


@st.composite
def some_patterns(draw: st.DrawFn) -> str:
    atoms = [
        "a", "b", "ab", ".", ".*", ".+", r"\.", r"\d", r"\w", r"\s", r"\D", "[ab]", "[^a]", "[a-b1]", "ä", "(a|b)",
        "(?:ab|1)", "(a)?", "a?", "a*", "b+", "a{2}", "a{1,2}", "|", "^", "$", "(?i)", r"\-", "/", "(?P<n>a|)", "[]a]",
        "ä?", "[-a]",
    ]  # fmt: skip
    return "".join(draw(st.lists(st.sampled_from(atoms), max_size=5)))


@given(some_patterns(), st.integers())
def test_a_simple_pattern_means_what_is_said_of_it(pattern: str, seed: int) -> None:
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern.encode(), options)
    except re2.error:
        return
    chooser = random.Random(seed)
    texts = ["", "a", "b", "ab", "aab", "1", "ä", "."] + [
        "".join(chooser.choices("ab1.-/ä", k=n % 5)) for n in range(40)
    ]
    found = patterns.simple(pattern)
    for text in [*texts, *patterns.samples(pattern), *(found[1] if found else ())]:
        if found is None:
            break
        matches = compiled.fullmatch(text.encode()) is not None
        shape, given = found
        means = {
            "texts": text in given,
            "prefix": bool(given) and text.startswith(given[0]),
            "suffix": bool(given) and text.endswith(given[0]),
            "anything": True,
        }[shape]
        assert matches == (means and (shape == "texts" or "\n" not in text)), (pattern, found, text)


@pytest.mark.parametrize("pattern", [*strategies.REGEXES, *strategies.PATH_REGEXES, "(?i)be-[0-9a-f]{2,}", "[^/]+/x"])
def test_samples_match(pattern: str) -> None:
    texts = patterns.samples(pattern)
    assert any(re2.compile(pattern.encode()).fullmatch(text.encode()) for text in texts)
