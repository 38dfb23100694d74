"""A request that satisfies given conditions: an example to show, which the real matcher then has to confirm.

For each field a few values are tried that satisfy all of its tests; a combination that no group excludes becomes a
request. None is found for conditions that are contradictory, and for some that are not.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from urllib.parse import quote

from graylb.model.snapshot import Condition, Operator, Route
from graylb.release import numbers, patterns, semver
from graylb.release.implication import (
    ALWAYS,
    Anything,
    Conjunction,
    Field,
    Interval,
    Networks,
    PathPrefix,
    Pattern,
    Prefix,
    Suffix,
    Test,
    Texts,
    Values,
    Versions,
    values_of,
)

TRIED = 4
"""Values of one field."""
COMBINATIONS = 64


@dataclass(frozen=True, slots=True)
class Request:
    """`path` with the query, as on the request line. listener: where it comes in, if routes differ by that."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    client_ip: str
    listener: str | None = None

    def command(self) -> str:
        """Options for `graylb explain`."""
        words = ["--path", self.path] if self.path != "/" else []
        words += ["--method", self.method] if self.method != "GET" else []
        for name, value in self.headers:
            words += ["-H", f"{name}: {value}"]
        words += ["--client-ip", self.client_ip] if self.client_ip != "127.0.0.1" else []
        words += ["--listener", self.listener] if self.listener is not None else []
        return shlex.join(words)

    def to_data(self) -> dict[str, object]:
        return {
            "method": self.method,
            "path": self.path,
            "headers": [list(each) for each in self.headers],
            "client_ip": self.client_ip,
            "listener": self.listener,
        }


def requests(wanted: Conjunction, host: str) -> Iterator[Request]:
    """Requests that probably satisfy all of it, the simplest first; `host` is a host pattern of a route."""
    choices: list[list[tuple[Field, str | None]]] = []
    fields = {*wanted.tests, *(test.field for group in wanted.groups for test in group), ("path", ""), ("method", "")}
    for field in sorted(fields):
        values = [(field, value) for value in islice(_values(field, wanted.tests.get(field, ())), TRIED)]
        if not values:
            return
        choices.append(values)
    for chosen in islice(product(*choices), COMBINATIONS):
        found = dict(chosen)
        if not any(all(test.holds(found[test.field]) for test in group) for group in wanted.groups):
            yield _request(found, host)


def host_of(pattern: str) -> str:
    """A host name that a route's pattern accepts."""
    if pattern == "*":
        return "localhost"
    return "www" + pattern[1:] if pattern.startswith("*.") else pattern


def path_test(route: Route) -> Test:
    """A route's path as a test of the field."""
    operators: dict[str, Operator] = {"exact": "exact", "prefix": "path_prefix", "regex": "regex"}
    condition = Condition("path", operators[route.path_kind], (route.path,))
    return Test(("path", ""), values_of(condition, None), False)


def _values(field: Field, tests: Sequence[Test]) -> Iterator[str | None]:
    """Values that satisfy every test, None for the lack of one."""
    kind = field[0]
    if kind not in (*ALWAYS, "client_ip") and all(test.holds(None) for test in tests):
        yield None
    seen = set()
    for value in _candidates(field, tests):
        if value not in seen and all(test.holds(value) for test in tests):
            seen.add(value)
            yield value


_DEFAULTS: dict[str, Sequence[str]] = {
    "path": ("/", "/x", "/other/path"),
    "method": ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"),
    "client_ip": ("127.0.0.1", "192.0.2.1", "10.0.0.1", "2001:db8::1"),
    "api_version": ("v1", "v2", "v3", "v99"),
    "device": ("desktop", "mobile", "tablet", "bot"),
    "grpc_service": ("pkg.Service",),
    "grpc_method": ("Get",),
}


def _candidates(field: Field, tests: Sequence[Test]) -> Iterator[str]:
    wanted = [test.values for test in tests if not test.negate]
    heads = [_head(values) for values in wanted]
    tails = [values.text for values in wanted if isinstance(values, Suffix)]
    if tails and any(heads):
        yield from (head + max(tails, key=len) for head in heads if head)
    for values in wanted:
        yield from _samples(values)
    yield from _DEFAULTS.get(field[0], ("1", "x", "other", "42", "1.2.3"))


def _head(values: Values) -> str:
    if isinstance(values, Prefix):
        return values.text
    return values.stem + "/" if isinstance(values, PathPrefix) else ""


def _samples(values: Values) -> Iterable[str]:
    if isinstance(values, Texts):
        return sorted(values.texts)[:50] if len(values.texts) < 1000 else islice(values.texts, 50)
    if isinstance(values, Prefix):
        return values.text, values.text + "1", values.text + "x", values.text + "/x"
    if isinstance(values, PathPrefix):
        return values.stem or "/", values.stem + "/x"
    if isinstance(values, Suffix):
        return values.text, "x" + values.text, "/" + values.text, "/x" + values.text
    if isinstance(values, Pattern):
        return patterns.samples(values.text)
    if isinstance(values, Networks):
        return [str(_first(network)) for network in values.networks]
    if isinstance(values, Interval):
        return _numbers(values)
    if isinstance(values, Versions):
        return _versions(values)
    return ("1", "x") if isinstance(values, Anything) else ()


def _first(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return network[1] if network.num_addresses > 2 else network[0]


def _numbers(values: Interval) -> Iterator[str]:
    bounds = [bound for _, bound in numbers.parse_range(values.text)]
    middle = [sum(bounds) / len(bounds)] if bounds else []
    for value in (*bounds, *middle, *(bound + step for bound in bounds for step in (1, -1, 0.5))):
        yield f"{value:.6f}".rstrip("0").rstrip(".")


def _versions(values: Versions) -> Iterator[str]:
    for bounds in semver.parse_range(values.text):
        for bound in bounds:
            plain = f"{bound.major}.{bound.minor}.{bound.patch}"
            yield f"{plain}-{bound.pre}" if bound.pre else plain
            yield f"{bound.major}.{bound.minor}.{bound.patch + 1}"
            yield f"{max(bound.major - 1, 0)}.99.99"
            if bound.patch or bound.minor:
                yield f"{bound.major}.{max(bound.minor - (not bound.patch), 0)}.{max(bound.patch - 1, 0)}"


_AGENTS = {"mobile": "Mobile", "tablet": "Tablet", "desktop": "Mozilla/5.0", "bot": "bot"}


def _request(found: dict[Field, str | None], host: str) -> Request:
    """Puts the values where the matcher reads them. Derived fields may yet disagree with others: see the module."""
    path = found[("path", "")] or "/"
    grpc = [found.get((kind, "")) for kind in ("grpc_service", "grpc_method")]
    headers: list[tuple[str, str]] = []
    cookies: list[str] = []
    query: list[str] = []
    is_grpc = any(grpc)
    if is_grpc:
        path = f"/{grpc[0] or 'pkg.Service'}/{grpc[1] or 'Get'}"
    for (kind, name), value in found.items():
        if value is None:
            continue
        if kind in ("header", "metadata"):
            headers.append((name, value))
            is_grpc = is_grpc or kind == "metadata"
        elif kind == "cookie":
            cookies.append(f"{name}={value}")
        elif kind == "query":
            query.append(f"{quote(name, safe='')}={quote(value, safe='')}")
        elif kind == "api_version":
            headers.append(("accept", f"application/vnd.example.{value}+json"))
        elif kind == "device":
            headers.append(("user-agent", _AGENTS.get(value, value)))
        elif kind == "mark":
            headers.append(("x-service-version", value))
    if cookies:
        headers.append(("cookie", "; ".join(cookies)))
    if is_grpc and not any(name == "content-type" for name, _ in headers):
        headers.append(("content-type", "application/grpc"))
    if host != "*" and not any(name == "host" for name, _ in headers):
        headers.append(("host", host_of(host)))
    target = path + ("?" + "&".join(query) if query else "")
    unique = tuple(dict.fromkeys(headers))
    return Request(found[("method", "")] or "GET", target, unique, found.get(("client_ip", "")) or "127.0.0.1")
