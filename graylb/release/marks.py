"""What a mark is, how it is signed, and what arrives at a listener: what the engine's own reading is held to. Pure."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable
from hashlib import sha256
from urllib.parse import unquote_to_bytes

from graylb.model.snapshot import Marks
from graylb.release.trails import PROBE

MARK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/:@-]{0,127}")
SIGNATURE = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})")

Header = tuple[str, str]


def is_mark(text: str) -> bool:
    return MARK.fullmatch(text) is not None


def sign(mark: str, secret: str, expires: int) -> str:
    """`EXPIRES.HEX`. expires: Unix seconds, after which it is not believed."""
    return f"{expires}.{hmac.new(secret.encode(), f'{expires}.{mark}'.encode(), sha256).hexdigest()}"


def is_signed(mark: str, signature: str, secret: str, now: int) -> bool:
    found = SIGNATURE.fullmatch(signature)
    if found is None or int(found[1]) < now:
        return False
    return hmac.compare_digest(sign(mark, secret, int(found[1])), f"{int(found[1])}.{found[2]}")


def arriving(
    marks: Marks, role: str, client_ip: str, headers: Iterable[Header], secret: str = "", now: int = 0
) -> tuple[str | None, list[Header]]:
    """(the mark that is believed, the headers that rules see), of a request that comes in by a listener of that role.

    The mark is a header of each of its names there, and a member of baggage; whatever else called itself one is gone.
    So is a probe of whoever is not trusted and has not signed a mark.
    """
    marks_found: dict[str, list[str]] = {}
    signatures: list[str] = []
    rest: list[Header] = []
    members: list[str] = []
    for name, value in headers:
        key = name.lower()
        if key in marks.headers:
            marks_found.setdefault(key, []).append(value.strip(" \t"))
        elif key == marks.signature:
            signatures.append(value.strip(" \t"))
        elif key == "baggage" and marks.baggage is not None:
            members += value.split(",")
        else:
            rest.append((name, value))
    mark, others = _baggage(members, marks.baggage or "")
    for header in marks.headers:
        if header in marks_found:
            alike = set(marks_found[header])
            mark = alike.pop() if len(alike) == 1 else ""
            break
    if not is_mark(mark) or not _is_believed(marks, role, client_ip, mark, signatures, secret, now):
        mark = ""
    if not mark and not _is_trusted(marks, role, client_ip):
        rest = [(name, value) for name, value in rest if name.lower() != PROBE]
    if mark:
        rest += [(name, mark) for name in marks.headers]
        if marks.baggage is not None:
            others.insert(0, f"{marks.baggage}={mark}")
    if others:
        rest.append(("baggage", ",".join(others)))
    return mark or None, rest


def _baggage(members: Iterable[str], key: str) -> tuple[str, list[str]]:
    """(the mark's member, decoded, "" without one; the other members)."""
    mark: str | None = None
    others = []
    for member in members:
        name, equals, rest = member.strip(" \t").partition("=")
        if equals and name.strip(" \t") == key:
            if mark is None:
                mark = unquote_to_bytes(rest.partition(";")[0].strip(" \t")).decode("latin-1")
        elif member.strip(" \t"):
            others.append(member.strip(" \t"))
    return mark or "", others


def _is_trusted(marks: Marks, role: str, client_ip: str) -> bool:
    if role != "edge":
        return True
    networks = (ipaddress.ip_network(each, strict=False) for each in marks.trusted)
    return bool(client_ip) and any(ipaddress.ip_address(client_ip) in each for each in networks)


def _is_believed(
    marks: Marks, role: str, client_ip: str, mark: str, signatures: list[str], secret: str, now: int
) -> bool:
    if _is_trusted(marks, role, client_ip):
        return True
    return marks.key is not None and len(signatures) == 1 and is_signed(mark, signatures[0], secret, now)
