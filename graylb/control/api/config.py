"""Several keys at once, and whole documents: get, set, export, apply."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Response

from graylb.control import operations
from graylb.control.api.answers import ApplyAnswer, ApplyBody, ConfigAnswer, ConfigBody, OutcomeAnswer
from graylb.control.api.changes import READ, answers, put, value_of, view_answer
from graylb.control.api.context import BasedOn, ContextOf, Route, StoreOf, Wait, Who, expected
from graylb.control.api.failures import STORE, WRITE, json_response
from graylb.model import documents

router = APIRouter(tags=["configuration"], route_class=Route)


@router.get("/config", response_model=ConfigAnswer, responses=READ)
async def config(
    store: StoreOf,
    key: Annotated[
        str, Query(max_length=1024, description="One key, or what stands before several: `services/users`.")
    ] = "",
    texts: Annotated[bool, Query(description="The JSON text of each value, as it was written.")] = False,
) -> Response:
    """Keys in force, whether the document or a command gave them."""
    return view_answer(await operations.look(store, key), texts=texts)


@router.post("/config", response_model=OutcomeAnswer, responses=WRITE)
async def set_config(
    body: ConfigBody, context: ContextOf, store: StoreOf, who: Who, based_on: BasedOn, wait: Wait = 0
) -> Response:
    """Write and delete several keys, all or none."""
    items = {key: None if value is None else value_of(value) for key, value in body.items.items()}
    items |= {key: None if text is None else text.encode() for key, text in body.texts.items()}
    if not items:
        raise ValueError("items and texts are empty; expected a key in one of them")
    action: Any = "set" if any(items.values()) else "delete"
    return await put(context, store, items, who, body.reason, expected(body.expected, based_on), wait, action)


@router.get("/export", response_model=dict[str, Any], responses=STORE)
async def export(store: StoreOf) -> Response:
    """The services in force as one document, which `/apply` takes back."""
    return json_response(await operations.export(store))


@router.post("/apply", response_model=ApplyAnswer, responses=WRITE)
async def apply(
    body: ApplyBody, context: ContextOf, store: StoreOf, who: Who, based_on: BasedOn, wait: Wait = 0
) -> Response:
    """The services of a document, in one change. Its listeners and the like are no services, and count for nothing."""
    text = body.document if isinstance(body.document, str) else orjson.dumps(body.document)
    outcomes = await operations.apply(
        store,
        documents.load(text, "document", alone=True),
        prune=body.prune,
        who=who,
        why=body.reason,
        expected=expected(body.expected, based_on),
        dry_run=body.dry_run,
    )
    if body.dry_run:
        found: list[dict[str, Any]] = [each.to_data() for each in outcomes]
        return json_response({"outcomes": found, "dry_run": True})
    return json_response({"outcomes": await answers(context, outcomes, who, wait), "dry_run": False})
