"""Strategies: whole valid documents as plain data, and data that only looks like one."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

VERSIONS = st.sampled_from(["v1", "v2", "v1.2.3-rc.1", "commit-abc123", "1.10"])
WORDS = st.sampled_from(["a", "beta", "on", "1.0", "", "ü", "true", "x y", "2024-11-05", "0x10", "~"])
NAMES = st.sampled_from(["a", "b", "x-user-id", "uid", "r.1", "_z"])
PATHS = st.sampled_from(["/", "/a", "/a/", "/a/b", "/%C3%BC", "/x.js"])
HOSTS = st.sampled_from(["*", "*.example.com", "a.example.com", "10.0.0.1", "::1"])
REGEXES = st.sampled_from(["a+", "/x/[0-9]+", "(a|b)?", "\\d{3}", ".*"])
EDGE = st.just(["edge"])
DURATIONS = st.sampled_from([1, 0.5, "250ms", "5s", "2m", "1.5h"])


def optional(required: dict[str, Any], **rest: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=rest)


def one_key(**kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of([st.fixed_dictionaries({key: value}) for key, value in kinds.items()])


OPERATORS: st.SearchStrategy[Any] = st.deferred(
    lambda: one_key(
        exact=WORDS,
        prefix=WORDS.filter(bool),
        suffix=WORDS.filter(bool),
        regex=REGEXES,
        present=st.booleans(),
        **{"in": st.lists(WORDS, min_size=1, max_size=3), "not": VALUES},
        number=st.sampled_from([">=1,<5", "==2.5", 5]),
        semver=st.sampled_from([">=1.2,<2", "^1", 1]),
    )
)
VALUES = st.one_of(WORDS, st.integers(), st.booleans(), st.lists(WORDS, min_size=1, max_size=3), OPERATORS)
RULE_VALUES = VALUES | st.just({"in": "people"}) | st.just({"not": {"in": "others"}})


def kind(exact: st.SearchStrategy[Any], *more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Of a condition with a form of its own."""
    plain = st.one_of(exact, st.lists(exact, min_size=1, max_size=3), one_key(exact=exact), *more)
    return plain | one_key(**{"not": plain})


def named(values: st.SearchStrategy[Any], names: st.SearchStrategy[str] = NAMES) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(names, values, min_size=1, max_size=3)


CONDITIONS: dict[str, st.SearchStrategy[Any]] = {
    "path": kind(PATHS, one_key(prefix=PATHS), one_key(regex=REGEXES), one_key(suffix=st.just(".js"))),
    "method": kind(st.sampled_from(["GET", "POST", "M-SEARCH"])),
    "headers": named(RULE_VALUES),
    "cookies": named(RULE_VALUES),
    "query": named(RULE_VALUES, WORDS.filter(bool)),
    "metadata": named(RULE_VALUES),
    "grpc": optional({"service": RULE_VALUES}, method=RULE_VALUES),
    "client_ip": kind(st.sampled_from(["10.0.0.0/8", "10.1.2.3", "::1", "2001:db8::/32"])),
    "client_certificate": kind(st.sampled_from(["spiffe://example.org/a", "a.test"]), one_key(present=st.booleans())),
    "api_version": kind(st.sampled_from(["v1", 2, "3"]), one_key(present=st.booleans())),
    "device": kind(st.sampled_from(["mobile", "bot", "desktop"])),
    "mark": RULE_VALUES,
}
GROUP = st.fixed_dictionaries({}, optional=CONDITIONS).filter(bool)
MATCH = st.fixed_dictionaries({}, optional={**CONDITIONS, "not": GROUP | st.lists(GROUP, min_size=1, max_size=2)})
WEIGHTS = st.dictionaries(VERSIONS, st.sampled_from([0, 1, 5, 0.01, 95.5]), min_size=1).filter(
    lambda w: any(w.values())
)
SPLIT = WEIGHTS | optional({"weights": WEIGHTS}, salt=st.just("s.1"))
TARGET = VERSIONS | optional(
    {"metadata": named(WORDS)}, version=VERSIONS, semver=st.sampled_from([">=2,<3", "1.x || ^2"])
)
FALLBACK = st.sampled_from(["strict", "stable", "any"])


def listed(
    part: st.SearchStrategy[dict[str, Any]], most: int, **numbered: str
) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Up to so many, each with keys that hold its number, so that they differ."""

    def number(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**{key: text.format(i) for key, text in numbered.items()}, **each} for i, each in enumerate(found)]

    return st.lists(part, max_size=most).map(number)


RULE = optional({"match": MATCH}, priority=st.integers(-2, 2), fallback=FALLBACK)
TARGETED_RULE = st.builds(dict.__or__, RULE, one_key(to=TARGET, split=SPLIT))
INSTANCE = optional({"version": VERSIONS}, weight=st.integers(0, 200), metadata=named(WORDS), zone=WORDS)
STICKY = st.lists(
    one_key(header=NAMES, cookie=NAMES, query=NAMES, metadata=NAMES, client_ip=st.just(True)),
    min_size=1,
    max_size=3,
    unique_by=repr,
)
SERVICE = optional(
    {
        "stable": VERSIONS,
        "rules": listed(TARGETED_RULE, 2, name="r{}"),
        "instances": listed(INSTANCE, 3, address="[::1]:800{}"),
        "lists": optional({"people": st.lists(WORDS.filter(bool), max_size=3), "others": st.just(["u1"])}),
    },
    sticky=STICKY,
    split=SPLIT,
    fallback=FALLBACK,
    policy=st.sampled_from(["weighted", "least_request"]),
    timeouts=optional({}, connect=DURATIONS, response=DURATIONS, idle=DURATIONS),
    paths=st.lists(PATHS | one_key(exact=PATHS, prefix=PATHS, regex=REGEXES), min_size=1, max_size=1),
    listeners=EDGE,
    connections=optional(
        {},
        max=st.sampled_from([0, 5]),
        queue=st.integers(0, 9),
        queue_timeout=DURATIONS,
        warm=st.just(0),
        idle=st.integers(0, 9),
        idle_timeout=DURATIONS,
        proxy_protocol=st.sampled_from(["off", "v1", "v2"]),
        protocol=st.sampled_from(["auto", "http1"]),
        streams=st.sampled_from([1, 100]),
    ),
    mark=optional(
        {},
        prefer=st.booleans(),
        otherwise=st.sampled_from(["stable", "split"]),
        carry=st.one_of(st.booleans(), st.sampled_from([{}, {"v1": "gray"}])),
        headers=st.sampled_from([["x-lane"], ["x-a", "X-B"]]),
        baggage=st.sampled_from([False, "off", "lane"]),
    ),
    retries=optional(
        {},
        grpc_status=st.sampled_from([[], ["unavailable"], ["unknown", "cancelled"]]),
        attempts=st.just(3),
        on=st.sampled_from([[], ["5xx", "reset"], ["timeout", "retriable-4xx"]]),
        statuses=st.sampled_from([[], [503, 429]]),
        methods=st.sampled_from([["GET"], ["PUT", "POST"]]),
        per_try_timeout=st.sampled_from([0, "250ms"]),
        backoff=optional({}, base=st.sampled_from([0, "10ms"]), max=st.just("1s")),
        budget=optional({}, percent=st.just(50), min_per_second=st.sampled_from([0, 1.5])),
        other_version=st.booleans(),
        same_instance=st.booleans(),
        buffer=st.sampled_from([0, "8KiB"]),
        hedge=st.fixed_dictionaries({"delay": st.sampled_from([0.001, "20ms"])}),
    ),
    tunnels=st.sampled_from(["keep", "cut", "drain 30s", {"drain": "1.5m"}, {"drain": 0.25}]),
    health=optional(
        {},
        panic=st.integers(0, 100),
        outliers=optional(
            {},
            consecutive_gateway_failures=st.integers(0, 9),
            consecutive_5xx=st.integers(0, 9),
            success_rate=optional({}, instances=st.integers(2, 9), stdev_factor=st.sampled_from([1, 1.9])),
            latency=optional({}, requests=st.integers(1, 9), factor=st.sampled_from([2, 2.5])),
            interval=st.sampled_from(["10s", 0.5]),
            max_ejection_time=st.sampled_from(["5m", 30]),
            max_ejection_percent=st.integers(0, 100),
        ),
    ),
    slow_start=st.sampled_from(["30s", 7, {"window": "1m"}, {"aggression": 0.5, "min_percent": 20}]),
)
ROUTE = optional(
    {},
    listeners=EDGE,
    methods=st.lists(st.sampled_from(["GET", "PUT"]), min_size=1, max_size=2),
    paths=st.lists(PATHS, min_size=1, max_size=1),
    headers=named(VALUES),
    query=named(VALUES),
)
REDIRECT = optional({"host": st.just("b.example")}, status=st.just(308))
TARGETED_ROUTE = st.builds(dict.__or__, ROUTE, one_key(service=st.just("s0"), redirect=REDIRECT))
LISTENERS = st.builds(
    lambda one, two: [{"address": "127.0.0.1:0"}, {"address": "[::]:80", **one}, {"address": "unix:/run/x", **two}],
    optional(
        {},
        role=st.just("inbound"),
        proxy_protocol=st.booleans() | st.just({"trusted": ["10.0.0.0/8", "2001:db8::/32"]}),
        protocols=st.just(["http/1.1"]),
        grpc_health=st.just(False),
    ),
    optional({}, name=st.just("second"), mode=st.sampled_from(["0660", "600", 777]), proxy_protocol=st.booleans()),
)
DOCUMENTS = optional(
    {
        "listeners": LISTENERS,
        "services": st.lists(SERVICE, min_size=1, max_size=2).map(
            # Hosts of their own, so that no two routes are the same.
            lambda found: {
                f"s{i}": {**each, "hosts": [f"s{i}.example", f"*.s{i}.example"]} for i, each in enumerate(found)
            }
        ),
        "routes": st.lists(TARGETED_ROUTE, max_size=2).map(
            lambda found: [{**each, "hosts": [f"r{i}.example"]} for i, each in enumerate(found)]
        ),
    },
    admin=st.sampled_from(
        [
            {"address": "127.0.0.1:9900"},
            {"address": "unix:/run/admin.sock"},
            {"address": "0.0.0.0:9900", "token_file": "tokens", "tls": {"cert": "a.pem", "key": "a.key"}},
            {"address": "[::]:9900", "tls": {"cert": "a.pem", "key": "a.key", "client_ca": "ca.pem"}},
        ]
    ),
    workers=st.sampled_from([1, 4, "auto"]),
    pin_workers=st.booleans(),
    watchdog=st.sampled_from(["500ms", 10, "off", False]),
    decision_headers=st.booleans(),
    forwarding=optional({}, via=st.booleans(), x_forwarded=st.sampled_from(["append", "replace", "off"])),
    limits=optional(
        {},
        client_connections=st.sampled_from([7, "auto"]),
        head_bytes=st.sampled_from([4096, "64KiB"]),
        idle_timeout=DURATIONS,
        h2=optional({}, streams=st.just(7), window=st.sampled_from([16384, "64KiB"]), resets=st.just(10)),
    ),
)
SIDECAR = optional(
    {"service": st.sampled_from(["s0", "s9"]), "version": VERSIONS, "app": st.just("127.0.0.1:81")},
    inbound=st.sampled_from(["0.0.0.0:82", "unix:/run/in"]),
    outbound=st.just("127.0.0.1:83"),
    namespace=st.just("shop"),
    domain=st.just("corp.example"),
)
PRESETS = st.just({"preset": "edge"}) | optional({"sidecar": SIDECAR}, preset=st.just("sidecar"))


def leaving_out(data: dict[str, Any], preset: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """A document that leaves to its preset what it need not say; `hosts`: of all services of a sidecar."""
    parts: list[dict[str, Any]] = [*data["services"].values(), *data["routes"]]
    for part in parts if "sidecar" in preset else ():
        if "listeners" in keys:
            part.pop("listeners", None)  # only the document's own are called edge
        if "hosts" in keys and "instances" in part:
            part.pop("hosts")
    return {**preset, **{key: value for key, value in data.items() if key not in keys}}


LEFT_OUT = st.sets(st.sampled_from(["listeners", "admin", "workers", "forwarding", "limits", "hosts"]))
PRESET_DOCUMENTS = st.builds(leaving_out, DOCUMENTS, PRESETS, LEFT_OUT)
WORDS_OF_DOCUMENTS = """
listeners services routes admin workers limits forwarding address users hosts paths sticky stable split weights salt
slots rules name match to headers not in regex path exact prefix client_ip lists file instances version metadata weight
redirect rewrite service methods header present number semver grpc role mode proxy_protocol trusted connections max warm
idle tunnels drain protocols protocol streams h2 window preset sidecar edge inbound service app
"""
KEYS = st.sampled_from(WORDS_OF_DOCUMENTS.split())
NEARLY: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WORDS
    | PATHS
    | KEYS
    | VERSIONS
    | REGEXES
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)
