"""Conditions on who the client's certificate names: what the matcher, explain and lint make of them."""

from __future__ import annotations

import pytest

from graylb import _fast, table
from graylb.explain import explain
from graylb.lint import lint
from graylb.model.documents import load
from tests.model.snapshots import snapshot_of

DOCUMENT = """
listeners: [{address: "127.0.0.1:1"}]
services:
  users:
    stable: v1
    rules:
      - {name: partners, match: {client_certificate: {prefix: "spiffe://example.org/partners/"}}, to: v2}
      - {name: exact, match: {client_certificate: "robot.test"}, to: v2}
      - {name: nobody, match: {client_certificate: {present: false}, headers: {x-strict: "1"}}, to: v3}
    instances:
      - {address: "127.0.0.1:2", version: v1}
      - {address: "127.0.0.1:3", version: v2}
      - {address: "127.0.0.1:4", version: v3}
"""


def head(*lines: str) -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", *lines, "host: a", "", ""]).encode()


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ([":client-certificate: spiffe://example.org/partners/7"], "partners"),
        ([":client-certificate: spiffe://example.org/others/7"], None),
        ([":client-certificate: robot.test"], "exact"),
        (["x-strict: 1"], "nobody"),
        ([":client-certificate: other.test", "x-strict: 1"], None),
        (["x-a: b", ":client-certificate: robot.test"], "exact"),
        (["client-certificate: robot.test"], None),
        ([], None),
    ],
)
def test_rules_see_who_the_certificate_names(lines: list[str], rule: str | None) -> None:
    compiled = _fast.Table(table.compile(snapshot_of(load(DOCUMENT, "x"))))
    assert compiled.decide(head(*lines))["rule"] == rule


def test_it_is_explained() -> None:
    snapshot = snapshot_of(load(DOCUMENT, "x"))
    found = explain(snapshot, table.compile(snapshot), headers=[(":client-certificate", "robot.test")])
    assert (found["rule"], found["version"]) == ("exact", "v2")
    assert found["earlier_rules"][0]["rule"] == "partners"


def test_lint_confirms_its_examples_with_certificates_too() -> None:
    doubled = DOCUMENT.replace('"robot.test"', '"spiffe://example.org/partners/1"')
    snapshot = snapshot_of(load(doubled, "x"))
    found = lint(snapshot, table.compile(snapshot))
    assert any("exact" in str(each) for each in found)
