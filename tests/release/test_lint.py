"""Lint's findings: each kind by example, and its `never` against the oracle over many requests aimed at it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from graylb import lint as lint_module
from graylb import table
from graylb.control import prepare
from graylb.control.state import State
from graylb.model.snapshot import Condition, Listener, Match, Route, Rule, Service, Snapshot, Split, Subset
from graylb.release import lint_rules
from graylb.release.findings import CATALOGUE, Finding, catalogue_markdown
from tests import oracle, strategies
from tests.control import parts

ROOT = Path(__file__).resolve().parents[2]


def lint(snapshot: Snapshot, ids: dict[tuple[str, str], list[str]] | None = None) -> list[Finding]:
    return lint_module.lint(snapshot, table.compile(snapshot), ids)


def lint_document(**services: Any) -> list[Finding]:
    return lint_data(parts.document(**services))


def lint_data(data: dict[str, Any]) -> list[Finding]:
    _, snapshot = prepare.prepare(parts.load(data), State(), at="2025-01-01T00:00:00Z")
    return lint(snapshot)


def only(found: Sequence[Finding], *ids: str) -> Finding:
    """The one finding, which is of the first id; others may be there only if named."""
    assert [each.id for each in found if each.id not in ids[1:]] == [ids[0]], found
    return next(each for each in found if each.id == ids[0])


def rule(name: str, match: dict[str, Any], to: Any = "v2", **more: Any) -> dict[str, Any]:
    return {"name": name, "match": match, "to": to, **more}


def header(value: Any, name: str = "group") -> dict[str, Any]:
    return {"headers": {name: value}}


# -- laws --------------------------------------------------------------------------------------------------------------


def crowded(seed: int, count: int) -> Iterator[tuple[strategies.Chooser, Snapshot]]:
    """Services whose rules look at a few fields only, so that they shadow, contradict and overlap one another."""
    choose = strategies.Chooser(random.Random(seed).randint)
    for _ in range(count):
        pools = choose.some(strategies.CONDITIONS, 1, 2)
        rules = []
        for n in range(choose.number(2, 8)):
            conditions = tuple(choose.one(choose.one(pools)) for _ in range(choose.number(1, 2)))
            groups = tuple(
                tuple(choose.one(choose.one(pools)) for _ in range(choose.number(1, 2)))
                for _ in range(max(0, choose.number(-2, 1)))
            )
            rules.append(Rule(f"rule-{n}", Match(conditions, groups), choose.one(strategies.SUBSETS)))
        base = strategies.make_snapshot(choose)
        services = (dataclasses.replace(base.services[0], rules=tuple(rules), split=None),)
        routes = tuple(dataclasses.replace(each, service=each.service and services[0].name) for each in base.routes)
        yield choose, dataclasses.replace(base, services=services, routes=routes)


def aimed(choose: strategies.Chooser, snapshot: Snapshot, rule: Rule, count: int) -> Iterator[oracle.Request]:
    """Requests that are made for one rule, by any route."""
    alone = dataclasses.replace(snapshot, services=(dataclasses.replace(snapshot.services[0], rules=(rule,)),))
    for _ in range(count):
        yield strategies.make_request(choose, alone)


@pytest.mark.parametrize("seed", range(4))
def test_a_rule_that_is_said_to_never_win_never_wins(seed: int) -> None:
    said: dict[str, int] = {}
    for choose, snapshot in crowded(seed, 60):
        service = snapshot.services[0]
        for found in lint(snapshot):
            if found.id not in ("GL001", "GL002"):
                continue
            said[found.id] = said.get(found.id, 0) + 1
            accused = next(rule for rule in service.rules if rule.name == found.place[3])
            for request in aimed(choose, snapshot, accused, 60):
                assert oracle.decide(snapshot, request).rule != accused.name, (found, request)
    assert said["GL001"] > 20
    assert said["GL002"] > 10


@pytest.mark.parametrize("seed", range(4))
def test_an_example_of_an_overlap_satisfies_both_rules(seed: int) -> None:
    examples = 0
    for _, snapshot in crowded(seed, 40):
        service = snapshot.services[0]
        for found in lint(snapshot):
            if found.id == "GL008":
                assert found.witness is not None
                named = [rule for rule in service.rules if f" {rule.name} " in f" {found.what} "]
                assert len(named) == 2
                raw = [(name, value.encode().decode("latin-1")) for name, value in found.witness.headers]
                if not any(name == "host" for name, _ in raw):
                    raw.append(("host", "localhost"))
                shown = found.witness
                request = oracle.Request(shown.method, shown.path, tuple(raw), shown.client_ip, shown.listener)
                assert oracle.decide(snapshot, request).service == service.name
                assert all(oracle.holds(rule.match, request, service) for rule in named), found
                examples += 1
    assert examples > 20


@pytest.mark.parametrize("seed", range(3))
def test_a_route_that_is_said_to_be_never_taken_never_is(seed: int) -> None:
    accused = 0
    choose = strategies.Chooser(random.Random(seed).randint)
    for _ in range(70):
        snapshot = strategies.make_snapshot(choose)
        # few hosts and paths, so that routes meet
        routes = tuple(
            dataclasses.replace(
                route,
                host=choose.one(("*", "example.com")),
                path=choose.one(("/a.*", "/x+", ".*"))
                if route.path_kind == "regex"
                else choose.one(("/abc", "/abc/def")),
                name=f"{choose.one('ab')}{n}",
            )
            for n, route in enumerate(snapshot.routes)
        )
        services = tuple(dataclasses.replace(each, rules=(), split=None) for each in snapshot.services)
        snapshot = dataclasses.replace(snapshot, routes=routes, services=services)
        for found in lint(snapshot):
            if found.id == "GL006":
                accused += 1
                route = next(each for each in routes if each.name == found.what.split()[1])
                alone = dataclasses.replace(snapshot, routes=(route,))
                for _ in range(40):
                    request = strategies.make_request(choose, alone)
                    assert oracle.decide(snapshot, request).route != route.name, (found, request)
    assert accused > 15


# -- each kind ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (header("beta"), header("beta")),
        (header(["beta", "x"]), header("beta")),
        (header({"prefix": "be"}), header("beta")),
        (header({"present": True}), header({"suffix": "ta"})),
        (header({"in": "staff"}), {**header({"in": "staff"}), "method": "GET"}),
        (header({"not": {"prefix": "be"}}), header({"not": {"prefix": "b"}})),
        (header({"number": ">=10"}), header({"number": ">=20,<30"})),
        (header({"semver": "^1.2"}), header("1.3.0")),
        ({"path": {"prefix": "/a"}}, {"path": {"prefix": "/a/b"}}),
        ({"path": {"prefix": "/a"}}, {"path": {"exact": "/a"}, **header("x")}),
        ({"client_ip": "10.0.0.0/8"}, {"client_ip": ["10.1.0.0/16", "10.2.3.4"]}),
        ({"not": {"method": "POST"}}, {"method": "GET"}),
        ({"not": [header("a"), header("b")]}, {"not": header(["a", "b", "c"])}),
        ({"mark": "v2"}, {"headers": {"X-Service-Version": "v2"}}),
        ({}, header("beta")),
    ],
)
def test_a_shadowed_rule(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    lists = {"staff": ["ann"]}

    def of(*rules: dict[str, Any]) -> list[Finding]:
        uses = rule("uses", header({"in": "staff"}, "other"), "v3")
        return [x for x in lint_document(users=parts.users(rules=[*rules, uses], lists=lists)) if "uses" not in x.what]

    found = only(of(rule("first", earlier), rule("second", later, "v3")), "GL001", "GL008", "GL016", "GL005")
    assert (found.severity, found.place) == ("error", ("services", "users", "rules", "second"))
    assert "rule second never wins" in found.what
    assert "rule first is asked first" in found.why
    # the other way round each has requests of its own, unless they are the same
    if earlier not in ({"not": {"method": "POST"}}, later):
        turned = of(rule("first", later), rule("second", earlier, "v3"))
        assert not [each for each in turned if each.id == "GL001"]
    # and a priority turns the order
    turned = of(rule("first", later, priority=5), rule("second", earlier, "v3", priority=10))
    assert only(turned, "GL001", "GL008", "GL016", "GL005").place[-1] == "first"


def test_a_rule_that_is_shadowed_only_as_the_lists_stand_is_a_warning() -> None:
    rules = [rule("staff", header({"in": "staff"})), rule("ann", header("ann"), "v3")]
    found = only(lint_document(users=parts.users(rules=rules, lists={"staff": ["ann"]})), "GL001", "GL005")
    assert found.severity == "warning"
    assert "as the lists stand now" in found.why
    assert not lint_document(users=parts.users(rules=rules, lists={"staff": ["bob"]}))


@pytest.mark.parametrize(
    "match",
    [
        {**header("a"), "not": header("a")},
        {**header("a"), "not": header({"present": True})},
        header({"number": ">5,<5"}),
        {"path": {"prefix": "/a"}, "not": {"path": {"prefix": "/"}}},
    ],
)
def test_a_rule_that_contradicts_itself(match: dict[str, Any]) -> None:
    assert (
        "never holds"
        in only(lint_document(users=parts.users(rules=[rule("odd", match, "v3")])), "GL002", "GL005", "GL009").what
    )


def test_a_rule_for_requests_that_no_route_brings() -> None:
    rules = [rule("odd", {"path": {"prefix": "/admin"}}, "v3")]
    found = only(lint_document(users=parts.users(paths=["/api", "/users"], rules=rules)), "GL002", "GL005")
    assert "no route brings such requests" in found.why
    assert not lint_document(users=parts.users(paths=["/api", "/admin/x"], rules=rules))


def test_a_target_without_instances() -> None:
    rules = [
        rule("nine", header("a"), "v9"),
        rule("gray", header("b"), {"metadata": {"env": "gray"}}),
        rule("three", header("c"), "v3"),
    ]
    found = lint_document(users=parts.users(rules=rules))
    assert [(each.id, each.severity, each.place[3:]) for each in found] == [
        ("GL003", "warning", ("nine", "to")),
        ("GL003", "warning", ("gray", "to")),
    ]
    assert "fall back to v1" in found[0].why
    rules[0]["fallback"] = "strict"
    found = lint_document(users=parts.users(rules=rules))
    assert (found[0].severity, found[0].why) == ("error", "its requests are answered with 503")


def test_weight_for_a_version_without_instances() -> None:
    found = only(lint_document(users=parts.users(split={"v1": 95, "v2": 4, "v3": 1, "v9": 1})), "GL004")
    assert (found.severity, found.place) == ("warning", ("services", "users", "split", "v9"))
    found = only(
        lint_document(users=parts.users(split={"v2": 1, "v3": 1, "v9": 1}, stable="v9", fallback="strict")),
        "GL004",
        "GL005",
    )
    assert found.severity == "error"
    idle = parts.users(split={"v1": 95, "v2": 5})
    idle["instances"][1]["weight"] = 0
    idle["instances"].pop()
    assert "all have weight 0" in only(lint_document(users=idle), "GL004").what


def test_a_version_that_nothing_reaches() -> None:
    found = only(lint_document(users=parts.users()), "GL005")
    assert found.place == ("services", "users", "instances", "127.0.0.1:9003")
    assert "no request reaches version v3" in found.what
    assert not lint_document(users=parts.users(rules=[rule("three", header("a"), {"semver": "v3"})]))


def test_a_route_that_is_never_taken() -> None:
    data = parts.document(users=parts.users(split={"v1": 1, "v2": 1, "v3": 1}))
    data["routes"] = [
        {"name": "rest", "paths": [{"regex": "/.*"}], "service": "users"},
        {"name": "api", "paths": ["/api"], "service": "users"},
    ]
    found = only(lint_data(data), "GL006")
    assert found.place == ("routes", "api")
    assert "route rest" in found.why
    data["routes"][0]["methods"] = ["GET"]
    assert not lint_data(data)


def test_a_route_that_is_taken_by_another_on_its_listeners() -> None:
    users = Service("users", "v1", None)
    inner, other = Listener("127.0.0.1:1", name="inner"), Listener("127.0.0.1:2", name="other")

    def of(*routes: Route) -> list[str]:
        snapshot = Snapshot(1, (inner, other), routes, (users,))
        return [each.what for each in lint(snapshot) if each.id == "GL006"]

    near = Route("a", "*", "prefix", "/x", service="users", listeners=("inner",))
    assert of(near) == []
    assert of(near, dataclasses.replace(near, name="b", listeners=("other",))) == []
    assert of(near, dataclasses.replace(near, name="b", listeners=("inner", "other"))) == []
    assert (
        len(of(dataclasses.replace(near, listeners=()), dataclasses.replace(near, name="b", listeners=("inner",)))) == 1
    )
    assert (
        len(
            of(
                dataclasses.replace(near, listeners=("inner", "other")),
                dataclasses.replace(near, name="b", listeners=()),
            )
        )
        == 1
    )


def test_a_service_without_a_route() -> None:
    bare = Service("users", "v1", None)
    found = only(lint(Snapshot(1, (Listener("127.0.0.1:1"),), (), (bare,))), "GL007")
    assert found.place == ("services", "users")


def test_overlaps_that_are_meant_are_not_told() -> None:
    first, second = rule("first", header("a")), rule("second", header("b", "other"), "v3")
    found = only(lint_document(users=parts.users(rules=[first, second])), "GL008")
    assert found.witness is not None
    assert "-H 'group: a' -H 'other: b'" in found.why
    assert not lint_document(users=parts.users(rules=[first, {**second, "priority": 5}]))
    assert [each.id for each in lint_document(users=parts.users(rules=[first, {**second, "to": "v2"}]))] == ["GL005"]
    special = [rule("one", {**header("a"), "method": "POST"}, "v3"), rule("all", header("a"))]
    assert not lint_document(users=parts.users(rules=special))


def test_overlaps_are_told_up_to_a_number() -> None:
    rules = [rule(f"r{n}", header("a", f"h{n}"), f"v{2 + n % 2}") for n in range(30)]
    assert len([each for each in lint_document(users=parts.users(rules=rules)) if each.id == "GL008"]) == 20


@pytest.mark.parametrize(
    "match",
    [
        header({"regex": ".*"}),
        {"query": {"q": {"regex": ".*"}}},
        {"path": {"prefix": "/"}},
        {"client_ip": ["0.0.0.0/0", "::/0"]},
    ],
)
def test_a_condition_that_holds_for_every_value(match: dict[str, Any]) -> None:
    assert only(lint_document(users=parts.users(rules=[rule("odd", match, "v3")])), "GL009", "GL016").place[-1] == "odd"


def test_lists() -> None:
    rules = [rule("staff", header({"in": "staff"}), "v3")]
    found = lint_document(users=parts.users(rules=rules, lists={"staff": [], "spare": ["x"]}))
    assert [(each.id, each.place[-1]) for each in found if each.id != "GL005"] == [
        ("GL011", "spare"),
        ("GL010", "staff"),
    ]
    snapshot = Snapshot(1, (Listener("127.0.0.1:1"),), (), ())
    (twice,) = lint(snapshot, {("users", "staff"): ["a", "b", "a", "b", "c"]})
    assert (twice.id, twice.why) == ("GL012", "a, b")


def test_the_stable_version_and_its_share() -> None:
    split = {"v2": 50, "v3": 50}
    assert only(lint_document(users=parts.users(split=split)), "GL013").place == ("services", "users", "split")
    found = only(lint_document(users=parts.users(split={"v1": 0, "v2": 100})), "GL014", "GL005", "GL015")
    assert found.hint == "stable: v2"
    assert only(lint_document(users=parts.users(split=split, stable="v9")), "GL017", "GL013", "GL005")


def test_sticky_keys_without_effect() -> None:
    rules = [rule("two", header("a")), rule("three", header("b"), "v3")]
    assert only(lint_document(users=parts.users(split=None, rules=rules)), "GL015").severity == "info"
    behind = parts.users(sticky=[{"client_ip": True}, {"cookie": "uid"}], rules=rules)
    found = only(lint_document(users=behind), "GL015")
    assert (found.severity, found.place) == ("warning", ("services", "users", "sticky", 1))
    data = parts.document(users=behind)
    data["listeners"].append({"address": "unix:/tmp/x.sock"})
    assert not lint_data(data)


def test_a_rule_that_holds_for_everything() -> None:
    rules = [rule("all", {}), rule("three", header("b"), "v3")]
    found = only(lint_document(users=parts.users(rules=rules)), "GL016", "GL001", "GL005")
    assert found.why == "rule three, the split: never asked"


def test_thousands_of_rules_are_compared_by_an_index() -> None:
    rules = [rule(f"r{n}", header(f"u{n}")) for n in range(600)]
    rules += [rule(f"p{n}", {"path": {"prefix": f"/x/{n}"}}) for n in range(400)]
    rules += [rule("last", {**header("u599"), "method": "GET"}), rule("under", {"path": {"prefix": "/x/399/y"}})]
    found = [each for each in lint_document(users=parts.users(rules=rules)) if each.id == "GL001"]
    assert [each.place[-1] for each in found] == ["last", "under"]


def test_it_is_said_when_too_many_rules_cannot_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_rules, "MOST_COMPARED", 100)
    same = Condition("header", "suffix", ("x",), "h")
    rules = tuple(
        Rule(f"r{n}", Match((dataclasses.replace(same, values=(f"-{n:04}",)),)), Subset("v1")) for n in range(20)
    )
    users = Service("users", "v1", None, rules=rules)
    route = Route("users", "*", "prefix", "/", service="users")
    assert "GL018" in {each.id for each in lint(Snapshot(1, (Listener("127.0.0.1:1"),), (route,), (users,)))}


def test_the_guide_has_the_whole_catalogue() -> None:
    assert catalogue_markdown() in (ROOT / "docs" / "releases.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "graylb" / "release").glob("lint*.py"))
    assert all(f'"{id}"' in source for id in CATALOGUE)


@pytest.mark.parametrize("sample", sorted((ROOT / "config").glob("*.yaml")), ids=lambda sample: sample.name)
def test_samples_have_no_findings_but_overlaps(sample: Path) -> None:
    _, snapshot = prepare.prepare(prepare.read(sample), State(), at="2025-01-01T00:00:00Z")
    assert {each.id for each in lint(snapshot)} <= {"GL008"}


def test_findings_as_data() -> None:
    split = Split((("v2", 1.0),), "s", "v2:0-9999")
    users = Service("users", "v1", split)
    route = Route("users", "*", "prefix", "/", service="users")
    found = only(lint(Snapshot(1, (Listener("127.0.0.1:1"),), (route,), (users,))), "GL014").to_data()
    assert (found["id"], found["place"], found["witness"]) == ("GL014", ["services", "users", "split"], None)
    assert found["title"] == CATALOGUE["GL014"].title


def test_an_example_names_the_listener_where_routes_differ_by_it() -> None:
    first, second = rule("first", header("a")), rule("second", header("b", "other"), "v3")
    data = parts.document(users=parts.users(rules=[first, second], listeners=["inner"]))
    data["listeners"] = [{"address": "127.0.0.1:0", "name": "outer"}, {"address": "127.0.0.1:0", "name": "inner"}]
    found = only(lint_data(data), "GL008")
    assert found.witness is not None
    assert found.witness.listener == "inner"
    assert "--listener inner" in found.why
