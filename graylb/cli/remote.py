"""A desk at the running proxy: operations are calls of its admin API, with the outcomes and errors of `LocalDesk`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from graylb.cli.caller import BadAddress, NotAllowed, NotRunning, ask, call
from graylb.cli.common import user

if TYPE_CHECKING:
    from graylb.cli.desk import Applied
    from graylb.control.config_store import Action, View
    from graylb.control.operations import Outcome
    from graylb.model.documents import Document
    from graylb.release.diff import Diff

PATIENCE: Final = 30.0
"""Seconds for an operation: a store may have to be waited for."""
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_OF_REQUESTS: Final = ("body", "query", "path", "header")
"""What a fault names that is one of the request, not of a configuration."""


class RemoteDesk:
    """address: of the admin API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def look(self, key: str = "") -> View:
        from graylb.control.config_store import Item, View

        found = self._call("GET", "/config", query={"key": key or None, "texts": "true"})
        items = {
            name: Item(each["text"].encode(), each["revision"], each["origin"]) for name, each in found["items"].items()
        }
        return View(found["revision"], items, found["ordered"], found["note"])

    def set_split(self, service: str, weights: Mapping[str, float], *, why: str, expected: int | None) -> Outcome:
        body = {"weights": dict(weights), "reason": why, "expected": expected}
        return _outcome(self._call("PUT", f"/services/{_name(service)}/split", body))

    def rollback(self, service: str, to: int | None, *, why: str, expected: int | None) -> Outcome:
        body = {"to": to, "reason": why, "expected": expected}
        return _outcome(self._call("POST", f"/services/{_name(service)}/rollback", body))

    def put(self, items: Mapping[str, bytes | None], *, action: Action, why: str, expected: int | None) -> Outcome:
        from graylb.model import keys

        texts = {}
        for key, value in items.items():
            try:
                texts[key] = None if value is None else value.decode()
            except UnicodeDecodeError:
                keys.decode(key, value or b"")  # says what is wrong with it
                raise
        return _outcome(self._call("POST", "/config", {"texts": texts, "reason": why, "expected": expected}))

    def apply(self, document: Document, *, prune: bool, dry_run: bool, why: str, expected: int | None) -> list[Outcome]:
        body = {
            "document": document.to_data(),
            "prune": prune,
            "dry_run": dry_run,
            "reason": why,
            "expected": expected,
        }
        return [_outcome(each) for each in self._call("POST", "/apply", body)["outcomes"]]

    def export(self) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", "/export")
        return found

    def history(self, service: str | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "/history", query={"service": service})
        return found

    def diff(self, a: int, b: int | None) -> Diff:
        from graylb.release.diff import Diff

        return Diff.from_data(self._call("GET", "/diff", query={"a": a, "b": b}))

    def nodes(self) -> Sequence[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "/nodes")
        return found

    def applied(self, revision: int) -> Applied:
        from graylb.cli.desk import APPLY_PATIENCE, Applied

        deadline = time.monotonic() + APPLY_PATIENCE
        problem = f"no answer within {APPLY_PATIENCE:g} s"
        while time.monotonic() < deadline:
            try:
                status = ask(self.address, "/status")
            except (NotRunning, NotAllowed) as error:
                return Applied(False, "", str(error))
            revisions = [worker["revision"] or 0 for worker in status["workers"] if worker["ready"]]
            if revisions and min(revisions) >= revision:
                return Applied(True, "applied by the running proxy")
            if status["refusal"]:
                problem = "; ".join(error["text"] for error in status["refusal"]["errors"])
            time.sleep(0.02)
        return Applied(False, "", problem)

    def explain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """By the table in force. Raises ValueError for a request that the proxy would not accept."""
        found: dict[str, Any] = self._call("POST", "/explain", dict(request))
        return found

    def _call(self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        from graylb.control.config_store import ConfigStoreError

        try:
            answer = call(self.address, method, path, body, query=query, user=user(), patience=PATIENCE)
        except (NotRunning, NotAllowed, BadAddress) as error:
            raise ConfigStoreError(str(error)) from error
        if answer.status < 300:
            return answer.data
        raise _error(answer.data, f"{self.address} answers {method} {path} with status {answer.status}")


def _error(problem: Any, otherwise: str) -> Exception:
    """What the operation would have raised here."""
    from graylb.control.config_store import ConfigStoreError, Conflict, NotHere
    from graylb.control.state import UnknownTarget
    from graylb.model.problems import ConfigError, ConfigErrors

    if not isinstance(problem, dict) or not {"error", "message", "faults"} <= problem.keys():
        return ConfigStoreError(otherwise)
    kind, message, faults = problem["error"], problem["message"], problem["faults"]
    if kind in ("conflict", "not-here", "store"):
        return {"conflict": Conflict, "not-here": NotHere}.get(kind, ConfigStoreError)(message)
    if kind == "unknown":
        return UnknownTarget(message)
    if kind == "invalid" and faults and not any(each["file"] in _OF_REQUESTS for each in faults):
        return ConfigErrors(
            ConfigError(**{name: value for name, value in each.items() if name != "text"}) for each in faults
        )
    if kind in ("invalid", "bad-revision"):
        return ValueError(message)
    return ConfigStoreError(f"{otherwise}: {message}")


def _name(service: str) -> str:
    """As a part of a path. Raises UnknownTarget for what no service can be called."""
    from graylb.control.state import UnknownTarget

    if not _NAME.fullmatch(service):
        raise UnknownTarget(f"no service {service!r}; expected a name of letters, digits, '.', '_' and '-'")
    return quote(service, safe="")


def _outcome(data: Mapping[str, Any]) -> Outcome:
    from graylb.control.operations import Outcome

    return Outcome(data["service"], data["revision"], data["former"], data["split"], tuple(data["keys"]), data["note"])
