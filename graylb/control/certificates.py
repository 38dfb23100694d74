"""What workers are told of TLS beside their tables, and what people are told of certificates.

Texts of certificates and keys go to workers over the channel, and nowhere else: tables, answers and logs name them by
their digests and files.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from graylb import builds
from graylb.model.certificates import dated
from graylb.model.snapshot import Certificate, Listener, Origination, Pem, Snapshot

RENEW_TICKETS: Final = 12 * 3600.0
"""Seconds. A session can be resumed for two hours, so the key before is all that is still needed."""


class Tickets:
    """The keys of session tickets, shared by all workers so that any of them resumes a session of another."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.renew()

    def renew(self) -> None:
        if builds.has("tls"):
            from graylb import _tls

            self.keys = [_tls.random_ticket_key(), *self.keys][:2]


def key_of(listener: Listener, among: Iterable[Listener]) -> str:
    """What a listener is called between us and workers: its address, counted where several share it (port 0)."""
    before = 0
    for each in among:
        if each is listener:
            break
        before += each.address == listener.address
    return f"{listener.address} {before}" if before else listener.address


def told(snapshot: Snapshot, tickets: Tickets) -> bytes:
    """The payload of a frame: JSON {"listeners": {key: {"protocols", "certificates"}}, "files": {digest: text},
    "tickets": [base64]}; certificates, and the secret of marks, are named by digest. Empty where there is none."""
    listeners = {key_of(each, snapshot.listeners): each for each in snapshot.listeners if each.tls}
    originations = [each.connections.tls for each in snapshot.services if each.connections.tls is not None]
    secret = snapshot.marks.key if snapshot.marks is not None else None
    if not listeners and not originations and secret is None:
        return b""
    parts: list[Certificate | Origination] = [*originations, *(own for each in listeners.values() for own in each.tls)]
    return orjson.dumps(
        {
            "listeners": {
                key: {
                    "protocols": [name for name in ("h2", "http/1.1") if name in protocols_of(each)],
                    "certificates": each.tls,
                }
                for key, each in listeners.items()
            },
            "files": {str(pem): pem.text for part in parts for _, pem in pems_of(part)}
            | ({str(secret): secret.text} if secret is not None else {}),
            "tickets": [base64.b64encode(key).decode() for key in tickets.keys],
        }
    )


def protocols_of(listener: Listener) -> list[str]:
    """As far as this build has them."""
    return [each for each in listener.protocols if each != "h2" or builds.has("h2")]


def pems_of(part: Certificate | Origination) -> Iterator[tuple[str, Pem]]:
    for name in ("cert", "key", "client_ca", "ca"):
        pem = getattr(part, name, None)
        if pem is not None:
            yield name, pem


def report(snapshot: Snapshot, now: int) -> list[dict[str, Any]]:
    """Every certificate in force: whose it is, its file, names and time, and what is wrong with that."""
    if not builds.has("tls"):
        return []
    from graylb import _tls

    owned: list[tuple[str, Certificate | Origination]] = []
    for listener in snapshot.listeners:
        owned += [(f"listener {listener.address}", each) for each in listener.tls]
    for service in snapshot.services:
        if service.connections.tls is not None:
            owned.append((f"service {service.name}", service.connections.tls))
    found = []
    for of, part in owned:
        for name, pem in pems_of(part):
            if name == "key":
                continue
            for each in _tls.describe(pem.text.encode()):
                row = {key: each[key] for key in ("subject", "names", "not_before", "not_after", "sha256")}
                found.append({"of": of, "as": name, "file": pem.name, **row, "problem": dated(each, now) or None})
                if name == "cert":
                    break  # what stands behind it is its chain
    return found
