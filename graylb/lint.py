"""Lint with the proxy's own matcher: what `graylb.release.lint` finds, its examples confirmed on the compiled table."""

from __future__ import annotations

from graylb import _fast
from graylb.explain import request_head
from graylb.model.snapshot import Snapshot
from graylb.release import lint as findings
from graylb.release.findings import Finding
from graylb.release.lint_rules import Matcher, Verdict
from graylb.release.witness import Request


def lint(snapshot: Snapshot, image: bytes, ids: findings.Ids | None = None) -> list[Finding]:
    """image: the snapshot's compiled table. ids: of lists as written, for repeated ones."""
    return findings.lint(snapshot, matcher(snapshot, image), ids)


def matcher(snapshot: Snapshot, image: bytes) -> Matcher:
    """Which service a request reaches, and which of its rules hold."""
    table = _fast.Table(image)
    bits = table.meta["listener_bits"]
    numbers = {service.name: len(service.rules) for service in snapshot.services}

    def verdict(request: Request) -> Verdict | None:
        try:
            head = request_head(request.method, request.path, request.headers)
            told = table.decide(head, request.client_ip, listener=bits[request.listener] if request.listener else 0)
        except (ValueError, OSError):
            return None
        if told["service"] is None:
            return None, ()
        count = numbers[told["service"]]
        _, rules = table.trace(head, request.client_ip, told["service_number"], count - 1) if count else ((), [])
        return told["service"], [holds for holds, _, _ in rules]

    return verdict
