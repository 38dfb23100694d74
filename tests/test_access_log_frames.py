"""Lines of the access log whose texts are kept for the next request that has the same in common."""

from __future__ import annotations

import functools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb import _accesslog, _fast, table
from graylb.model import log_fields
from tests.strategies import random_cases

HEAD = b"GET /a?b HTTP/1.1\r\nhost: example.org\r\nuser-agent: x\r\n\r\n"
OF_HEAD = {"method": "GET", "host": "example.org", "path": "/a", "query": "b", "http_user_agent": "x",
           "protocol": "HTTP/1.1", "client_ip": "10.1.2.3"}  # fmt: skip
OF_END = ("time", "time_local", "service", "route", "version", "rule", "slot", "draw", "fallback", "instance",
          "revision", "attempts", "status", "grpc_status", "error", "error_source", "aborted", "bytes_in", "bytes_out",
          "duration", "first_byte", "connect", "upstream_protocol")  # fmt: skip
TIMES = {"time": "2000-02-29T12:34:56.000042Z", "time_local": "29/Feb/2000:12:34:56 +0000"}
WALL_US = 951_827_696_000_042
NO_VERSION = 2**32 - 1
REDIRECT = 3


@functools.cache
def configured() -> tuple[_fast.Table, list[list[str]]]:
    """A table with rules and instances, and the names of its services' rules."""
    for snapshot, _ in random_cases(7, 200, 1):
        compiled = _fast.Table(table.compile(snapshot))
        services = {service.name: service for service in snapshot.services}
        rules = [[rule.name for rule in services[name].rules] for name in compiled.service_names()]
        if len(rules) > 1 and all(rules) and len(compiled.instance_list()) > 3:
            return compiled, rules
    raise AssertionError("no such table")


FEW: dict[str, tuple[int, ...]] = {
    "route": (-1, 0), "outcome": (0, REDIRECT), "slot": (-1, 0, 9999), "drew": (0, 1), "fell_back": (0, 1),
    "wanted": (0, NO_VERSION), "status": (0, 200, 503), "attempts": (0, 1, 2), "h2": (0, 1), "grpc_status": (0, 1, 17),
    "failed": (0, 1, 12), "cut": (0, 1, 2), "head_us": (0, 1_000_523), "connect_us": (0, 7, 12_345_678),
}  # fmt: skip
"""What frames follow from, but for service, instance and rule; few values, so that some come again."""


def places() -> list[dict[str, int]]:
    """Of these, some that go together."""
    compiled, rules = configured()
    found = [{"service": -1, "instance": -1, "rule": -1}]
    for at, (name, *_) in enumerate(compiled.instance_list()):
        service = compiled.service_names().index(name)
        found += ({"service": service, "instance": at, "rule": rule} for rule in (-1, len(rules[service]) - 1))
    return [*found, {"service": 0, "instance": -1, "rule": -1}]


@st.composite
def became(draw: st.DrawFn) -> dict[str, int]:
    """What became of a request."""
    found = {name: draw(st.sampled_from(values)) for name, values in FEW.items()}
    many = st.one_of(st.integers(0, 12), st.integers(0, 2**40))
    found |= {name: draw(many) for name in ("draw", "bytes_in", "bytes_out")}
    return found | draw(st.sampled_from(places())) | {"began_us": 10**6, "now_us": 10**6 + draw(many)}


def told(name: str, x: dict[str, int]) -> str | int | None:
    """A field, as docs/observability.md describes it. Seconds are texts, for JSON has no quotes around them."""
    compiled, rules = configured()
    at, service = x["instance"], x["service"]
    _, address, version, _ = compiled.instance_list()[at] if at >= 0 else (None, None, None, 0)
    decided = service >= 0
    number = x.get(name, 0)

    def seconds(us: int) -> str:
        return f"{us // 10**6}.{us % 10**6:06}"

    values: dict[str, str | int | None] = OF_HEAD | TIMES | {
        "service": compiled.service_names()[service] if decided else None,
        "route": compiled.route_names()[0] if x["route"] == 0 and (decided or x["outcome"] == REDIRECT) else None,
        "version": version if decided else None,
        "instance": address if decided else None,
        "rule": rules[service][x["rule"]] if decided and x["rule"] >= 0 else None,
        "slot": x["slot"] if decided and x["slot"] >= 0 else None,
        "draw": x["draw"] if decided and x["drew"] else None,
        "fallback": None if not decided or not x["fell_back"] else "subset" if x["wanted"] == NO_VERSION
        else compiled.version_names(service)[x["wanted"]],
        "revision": compiled.revision,
        "attempts": number or None,
        "status": number or None,
        "grpc_status": number - 1 if number else None,
        "error": str(x["failed"]) if x["failed"] else None,
        "error_source": str(x["failed"]) if x["failed"] else None,
        "aborted": (None, "client", "instance")[x["cut"]],
        "bytes_in": number,
        "bytes_out": number,
        "duration": seconds(x["now_us"] - x["began_us"]),
        "first_byte": seconds(x["head_us"] - x["began_us"]) if x["head_us"] else None,
        "connect": seconds(x["connect_us"]) if x["connect_us"] else None,
        "upstream_protocol": None if at < 0 or not decided or not x["attempts"] else ("HTTP/1.1", "HTTP/2")[x["h2"]],
    }  # fmt: skip
    return values[name]


BARE = {"duration", "first_byte", "connect"}


def in_json(names: list[str], x: dict[str, int]) -> str:
    found = [(name, told(name, x)) for name in names]
    values = [(name, v if name in BARE else json.dumps(v, ensure_ascii=False)) for name, v in found if v is not None]
    return "{" + ",".join(f'"{name}":{value}' for name, value in values) + "}"


def in_text(parts: log_fields.Parts, x: dict[str, int]) -> str:
    values = [("" if not name else told(name, x)) for _, name in parts]
    return "".join(text + ("-" if v is None else str(v)) for (text, _), v in zip(parts, values, strict=True))


NAMES = st.lists(st.sampled_from([*OF_HEAD, *OF_END]), unique=True, max_size=30)


def lines(made: _accesslog.Format, requests: list[dict[str, int]]) -> list[tuple[str, str]]:
    found = _accesslog.lines_of(made, configured()[0], HEAD, requests, address=OF_HEAD["client_ip"], wall_us=WALL_US)
    return [(kept.decode(), anew.decode()) for kept, anew, _ in found]


@given(NAMES, st.lists(became(), min_size=1, max_size=12))
def test_json_tells_of_each_request_what_became_of_it(names: list[str], requests: list[dict[str, int]]) -> None:
    made = _accesslog.Format(True, log_fields.json_parts(tuple(names)))
    for x, found in zip(requests, lines(made, requests), strict=True):
        assert found == (in_json(names, x),) * 2


@given(
    st.one_of(NAMES, st.just(list(OF_END) * 3)),
    st.sampled_from([" ", "", "-" * 40]),
    st.lists(became(), min_size=1, max_size=12),
)
def test_a_text_does_too(names: list[str], between: str, requests: list[dict[str, int]]) -> None:
    parts = log_fields.split(between.join(f"${{{name}}}" for name in names) + "$$")
    made = _accesslog.Format(False, parts)
    for x, found in zip(requests, lines(made, requests), strict=True):
        assert found == (in_text(parts, x),) * 2


@pytest.mark.parametrize("seed", range(10))
def test_a_frame_serves_none_that_differs_in_anything_it_follows_from(seed: int) -> None:
    choose = random.Random(seed).choice
    parts = log_fields.split(" ".join("$" + name for name in OF_END))
    one = {name: choose(values) for name, values in FEW.items()} | (choose(places()) if seed > 2 else places()[0])
    one |= {"draw": 3, "began_us": 10**6, "now_us": 10**6}
    others = [one | {name: value} for name, values in FEW.items() for value in values]
    requests = [x for other in (*others, *(one | place for place in places())) for x in (one, other)]
    for x, found in zip(requests, lines(_accesslog.Format(False, parts), requests), strict=True):
        assert found == (in_text(parts, x),) * 2


def test_the_default_line_has_a_frame() -> None:
    """It has few enough gaps, and a frame is what makes it cheap; what has more is written without one."""
    default = log_fields.json_parts(log_fields.DEFAULT)
    numbers = ("time", "time_local", "slot", "draw", "bytes_in", "bytes_out", "duration", "first_byte", "connect")
    spread = tuple((" ", name) for number in numbers for name in (number, "method"))
    whole = {"slot": 1, "drew": 1, "head_us": 10**6, "connect_us": 1, "status": 200, "attempts": 1}
    for json_, parts, frame in ((True, default, True), (False, spread, False)):
        found = _accesslog.lines_of(_accesslog.Format(json_, parts), configured()[0], HEAD, [whole])
        assert found[0][0] == found[0][1]
        assert found[0][2] is frame
