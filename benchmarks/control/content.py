"""What is put into etcd: the service under load, and many services, instances and rules. Pure."""

from __future__ import annotations

from typing import Any

SERVICE = "front"


def front(v1: int, v2: int) -> dict[str, Any]:
    """The service that load and probes ask: everything to v1, but what the rule `probe` says."""
    return {
        f"{SERVICE}/service": {"hosts": ["*"], "paths": ["/"], "stable": "v1"},
        f"{SERVICE}/instances/one": {"address": f"127.0.0.1:{v1}", "version": "v1"},
        f"{SERVICE}/instances/two": {"address": f"127.0.0.1:{v2}", "version": "v2"},
        f"{SERVICE}/rules/probe": probe("v1"),
    }


def probe(version: str) -> dict[str, Any]:
    return {"match": {"headers": {"x-probe": "on"}}, "to": version}


def instance(number: int, services: int, weight: int = 100) -> tuple[str, dict[str, Any]]:
    """Key and value of one of many; nobody asks them."""
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:80"
    version = f"v{number // services % 2 + 1}"
    env = "gray" if number // services % 3 else "prod"
    return (
        f"{name(number, services)}/instances/i{number}",
        {"address": address, "version": version, "weight": weight, "metadata": {"env": env}},
    )


def rule(number: int, services: int) -> tuple[str, dict[str, Any]]:
    return f"{name(number, services)}/rules/r{number}", {"match": {"headers": {"x-user-id": f"u{number}"}}, "to": "v2"}


def name(number: int, services: int) -> str:
    return f"s{number % services}"


def many(services: int, instances: int, rules: int) -> dict[str, Any]:
    """So many instances and rules, spread over so many services."""
    found: dict[str, Any] = {
        f"{name(n, services)}/service": {
            "hosts": [f"{name(n, services)}.test"], "sticky": [{"header": "x-user-id"}], "stable": "v1"
        } for n in range(services)
    }  # fmt: skip
    found |= dict(instance(number, services) for number in range(instances))
    return found | dict(rule(number, services) for number in range(rules))
