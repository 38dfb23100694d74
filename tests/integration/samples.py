"""Random but valid documents, and requests aimed at them: many rules hold, many just miss. All from one seed."""

from __future__ import annotations

import random
from typing import Any

VERSIONS = ["1.2.0", "1.10.3", "2.0.0", "2.1.0-rc.1"]
HOSTS = ["shop.test", "api.shop.test", "www.shop.test", "other.test"]
PATTERNS = ["shop.test", "*.shop.test", "*", "api.shop.test"]
PATHS = ["/", "/a", "/a/b", "/a/bc", "/api/v1/users", "/api/v2/users", "/v1", "/internal/x", "/a/", "/ab"]
PREFIXES = ["/", "/a", "/a/b", "/api", "/internal"]
METHODS = ["GET", "POST", "DELETE"]
VALUES = ["beta", "beta-2", "alpha", "7", "12.5", "1.4.0", "u-1", "u-17", "", "a b"]
AGENTS = [
    "Mozilla/5.0 (iPhone) Mobile",
    "Googlebot/2.1",
    "Mozilla/5.0 (X11; Linux)",
    "Mozilla/5.0 (Linux; Android 14) X",
]
USERS = [f"u-{number}" for number in range(60)]


class Sample:
    """`document(addresses)` and `request()` draw from the same dice."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def some(self, most: int) -> int:
        return self.dice.randint(1, most)

    def operator(self) -> Any:
        pick = self.dice.choice
        return pick(
            [
                pick(VALUES[:8]),
                [pick(VALUES), pick(VALUES)],
                {"prefix": pick(["be", "u-", "1"])},
                {"suffix": pick(["a", "7", "-2"])},
                {"regex": pick(["u-[0-9]+", "(alpha|beta)", ".*2.*"])},
                {"present": self.dice.random() < 0.7},
                {"in": "staff"},
                {"number": pick([">=7", ">5,<13", "<0"])},
                {"semver": pick([">=1.2,<2", ">=1.4 || 0.x"])},
                {"not": pick(["beta", {"prefix": "u-"}, {"present": True}])},
            ]
        )

    def condition(self) -> dict[str, Any]:
        pick = self.dice.choice
        return pick(
            [
                {"headers": {pick(["x-group", "X-User-Id", "x-n"]): self.operator()}},
                {"headers": {"x-group": self.operator(), "x-n": self.operator()}},
                {"cookies": {pick(["uid", "ab"]): self.operator()}},
                {"query": {pick(["exp", "q"]): self.operator()}},
                {"path": pick([{"prefix": pick(PREFIXES)}, pick(PATHS), {"regex": "/a/.*"}, {"suffix": "users"}])},
                {"method": pick([pick(METHODS), ["GET", "POST"], {"not": "GET"}])},
                {"client_ip": pick(["127.0.0.1", ["10.0.0.0/8", "127.0.0.0/8"], {"not": "127.0.0.0/8"}])},
                {"api_version": pick(["v1", ["v1", "v2"]])},
                {"device": pick(["mobile", ["bot", "tablet"], {"not": "desktop"}])},
                {"mark": pick(["2.0.0", {"prefix": "1."}])},
            ]
        )

    def match(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self.some(2)):
            found.update(self.condition())
        if self.dice.random() < 0.25:
            found["not"] = [self.condition() for _ in range(self.some(2))]
        return found

    def split(self) -> dict[str, float]:
        return {version: self.dice.choice([1, 5, 20, 50, 0.5]) for version in self.dice.sample(VERSIONS, self.some(3))}

    def rule(self, number: int) -> dict[str, Any]:
        pick = self.dice.choice
        rule: dict[str, Any] = {"name": f"rule-{number}", "match": self.match(), "priority": pick([0, 0, 0, 5])}
        if self.dice.random() < 0.3:
            rule["split"] = self.split()
        else:
            rule["to"] = pick([pick(VERSIONS), {"semver": ">=1.5,<3"}, {"metadata": {"env": pick(["gray", "prod"])}}])
        if self.dice.random() < 0.4:
            rule["fallback"] = pick(["strict", "stable", "any"])
        return rule

    def service(self, addresses: list[str], paths: list[str]) -> dict[str, Any]:
        pick = self.dice.choice
        hosts = self.dice.sample(PATTERNS, self.some(2))
        if self.dice.random() < 0.6:
            hosts.append("*")
        instances = [
            {
                "address": address,
                "version": pick(VERSIONS),
                "weight": pick([100, 100, 10, 0]),
                "metadata": {"env": pick(["gray", "prod"])},
            }
            for address in self.dice.sample(addresses, min(len(addresses), 2 + self.some(4)))
        ]
        service: dict[str, Any] = {
            "hosts": list(dict.fromkeys(hosts)),
            "paths": paths,
            "stable": pick(instances)["version"],
            "fallback": pick(["strict", "stable", "any"]),
            "policy": pick(["weighted", "least_request"]),
            "lists": {"staff": self.dice.sample(USERS, 20)},
            "instances": instances,
            "rules": [self.rule(number) for number in range(self.dice.randint(0, 6))],
        }
        if self.dice.random() < 0.7:
            service["split"] = self.split()
        if self.dice.random() < 0.6:
            keys = [{"header": "x-user-id"}, {"cookie": "uid"}, {"query": "q"}, {"client_ip": True}]
            service["sticky"] = self.dice.sample(keys, self.some(2))
        return service

    def services(self, addresses: list[str]) -> dict[str, Any]:
        """Up to three; no two of them have a path in common, so no two have the same route."""
        paths = self.dice.sample(PREFIXES, len(PREFIXES))
        count = self.some(3)
        return {f"service-{number}": self.service(addresses, paths[number::count]) for number in range(count)}

    def request(self) -> tuple[str, str, str, list[str]]:
        """(method, target, host, header lines)."""
        pick, chance = self.dice.choice, self.dice.random
        target = pick(PATHS)
        query = [
            f"{name}={pick(['beta', 'alpha', '7', 'u-1', 'a+b', 'be%74a'])}" for name in ("exp", "q") if chance() < 0.3
        ]
        lines = [f"{name}: {pick(VALUES)}" for name in ("X-Group", "x-n") if chance() < 0.5]
        if chance() < 0.6:
            lines.append(f"X-User-Id: {pick(USERS)}")
        if chance() < 0.4:
            lines.append(
                "Cookie: " + "; ".join(f"{name}={pick(VALUES[:8])}" for name in ("uid", "ab") if chance() < 0.7)
            )
        if chance() < 0.3:
            lines.append(f"User-Agent: {pick(AGENTS)}")
        if chance() < 0.2:
            lines.append("Accept: application/vnd.shop.v1+json")
        if chance() < 0.2:
            lines.append(f"X-Service-Version: {pick(VERSIONS)}")
        self.dice.shuffle(lines)
        return pick(METHODS), target + ("?" + "&".join(query) if query else ""), pick(HOSTS), lines
