"""What goes wrong, as answers: a machine-readable word, one message, and for a configuration each of its faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from graylb.control.config_store import ConfigStoreError, Conflict, NotHere
from graylb.control.logs import log
from graylb.control.state import UnknownTarget
from graylb.model.problems import ConfigErrors, json_path


class Fault(BaseModel):
    """One fault. path: JSON path in the file, key or body that `file` names; line and column from 1, 0 for none."""

    file: str
    line: int = 0
    column: int = 0
    path: str
    value: str = ""
    expected: str = ""
    message: str = ""
    suggestion: str | None = None
    text: str = Field(description="All of it in one line.")


class Problem(BaseModel):
    """Why a request was not carried out. Nothing was changed."""

    error: str = Field(description="A word that stays the same, such as `conflict`.")
    message: str
    faults: list[Fault] = []


def json_response(value: Any, status: int = 200, **headers: str) -> Response:
    return Response(orjson.dumps(value), status, headers=headers, media_type="application/json")


def refusal(status: int, error: str, message: str, faults: list[dict[str, Any]] | None = None) -> Response:
    """A Problem."""
    return json_response({"error": error, "message": _clean(message), "faults": faults or []}, status)


COMMON: Final[dict[int | str, dict[str, Any]]] = {
    401: {"model": Problem, "description": "Neither a known token nor a certificate."},
    403: {"model": Problem, "description": "Sent by a web page of another origin, or for another host."},
    413: {"model": Problem, "description": "The body is too large."},
    422: {"model": Problem, "description": "The request is not valid; `faults` has every fault."},
}
"""Answers that any request may get."""
STORE: Final[dict[int | str, dict[str, Any]]] = {
    503: {"model": Problem, "description": "The store, etcd or the state file, cannot be reached."}
}
TARGET: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": Problem, "description": "There is no such service, rule, key or revision."}
}
WRITE: Final[dict[int | str, dict[str, Any]]] = {
    **STORE,
    **TARGET,
    400: {"model": Problem, "description": "If-Match is no revision."},
    409: {"model": Problem, "description": "Somebody else wrote first: the message says who, what and when."},
}


class BadRevision(ValueError):
    """What stands in If-Match is no revision."""


class Missing(LookupError):
    """There is nothing of that name."""


def install(app: FastAPI) -> None:
    """Every error that routers may raise becomes its answer."""
    handlers: dict[type[Exception], Callable[[Any], Response]] = {
        RequestValidationError: _invalid,
        HTTPException: lambda error: _with(
            refusal(error.status_code, _WORDS.get(error.status_code, "refused"), str(error.detail)), error.headers
        ),
        UnknownTarget: lambda error: refusal(404, "unknown", _said(error)),
        Missing: lambda error: refusal(404, "unknown", _said(error)),
        BadRevision: lambda error: refusal(400, "bad-revision", str(error)),
        ConfigErrors: lambda error: refusal(422, "invalid", _lines(error), [each.to_dict() for each in error.errors]),
        Conflict: lambda error: refusal(409, "conflict", str(error)),
        NotHere: lambda error: refusal(422, "not-here", str(error)),
        ConfigStoreError: lambda error: refusal(503, "store", str(error)),
        ValueError: lambda error: refusal(422, "invalid", str(error)),
        Exception: _own_fault,
    }
    for kind, answer in handlers.items():
        app.add_exception_handler(kind, _handler(answer))


_WORDS: Final = {404: "no-such-path", 405: "no-such-method", 413: "too-large"}


def _handler(answer: Callable[[Any], Response]) -> Callable[[Request, Exception], Any]:
    async def handle(_: Request, error: Exception) -> Response:
        return answer(error)

    return handle


def _invalid(error: RequestValidationError) -> Response:
    """Of bodies and parameters, in the words of configuration errors."""
    faults = []
    for each in error.errors():
        where, *rest = each["loc"] or ("body",)
        path = "$" if each["type"] == "json_invalid" else json_path(tuple(rest))
        said = _clean(each["msg"])
        faults.append(Fault(file=str(where), path=path, message=said, text=_clean(f"{where}: {path}: {said}")))
    data = [each.model_dump() for each in faults]
    return refusal(422, "invalid", "; ".join(each.text for each in faults), data)


def _own_fault(error: Exception) -> Response:
    log.error("admin API: a fault of graylb's own", exc_info=error)
    return refusal(500, "internal", f"a fault of graylb's own: {error!r}")


def _with(answer: Response, headers: Any) -> Response:
    answer.headers.update(headers or {})
    return answer


def _said(error: LookupError) -> str:
    return str(error.args[0]) if error.args else str(error)


def _lines(error: ConfigErrors) -> str:
    return "\n".join(map(str, error.errors))


def _clean(text: str) -> str:
    """Without what no JSON can hold."""
    return text.encode("utf-8", "replace").decode()
