"""What people change of one service: split, rules, settings; and the way back. Each is an operation on the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Response

from graylb.control import operations, revisions, views
from graylb.control.api.answers import (
    ConfigAnswer,
    DiffAnswer,
    HistoryEntry,
    ItemAnswer,
    OutcomeAnswer,
    Revision,
    RollbackBody,
    RuleBody,
    SettingsBody,
    SplitAnswer,
    SplitBody,
    Text,
)
from graylb.control.api.context import (
    NAME,
    BasedOn,
    Context,
    ContextOf,
    Route,
    RuleName,
    ServiceName,
    StoreOf,
    Wait,
    Who,
    expected,
)
from graylb.control.api.failures import STORE, TARGET, WRITE, Missing, json_response
from graylb.control.config_store import Action, ConfigStore, Item, View
from graylb.control.logs import log
from graylb.control.operations import Outcome
from graylb.model import keys

router = APIRouter(tags=["change"], route_class=Route)
READ = {**STORE, **TARGET}


@router.get("/services/{name}/split", response_model=SplitAnswer, responses=READ)
async def split(name: ServiceName, store: StoreOf) -> Response:
    """Weights, salt and slots as they are stored."""
    view = await _view(store, name)
    item = view.items.get(keys.suffix_of(name, "split"))
    stored = orjson.loads(item.value) if item else {"weights": None}
    return _tagged({"service": name, "revision": view.revision, **stored}, view.revision)


@router.put("/services/{name}/split", response_model=OutcomeAnswer, responses=WRITE)
async def set_split(
    name: ServiceName, body: SplitBody, context: ContextOf, store: StoreOf, who: Who, based_on: BasedOn, wait: Wait = 0
) -> Response:
    """Set the weights. Salt and slots follow from the former split, so that as few callers as possible move."""
    outcome = await operations.set_split(
        store, name, body.weights, who=who, why=body.reason, expected=expected(body.expected, based_on)
    )
    return await answer(context, outcome, who, wait)


@router.get("/services/{name}/rules", response_model=ConfigAnswer, responses=READ)
async def rules(name: ServiceName, store: StoreOf) -> Response:
    """All rules as they are stored, by key."""
    view = await _view(store, name)
    prefix = f"{keys.ROOT}{name}/rules/"
    return view_answer(replace(view, items={key: item for key, item in view.items.items() if key.startswith(prefix)}))


@router.get("/services/{name}/rules/{rule}", response_model=ItemAnswer, responses=READ)
async def rule(name: ServiceName, rule: RuleName, store: StoreOf) -> Response:
    """One rule as it is stored."""
    view = await _view(store, name)
    item = view.items.get(keys.suffix_of(name, "rules", rule))
    if item is None:
        raise Missing(f"{name} has no rule {rule!r}")
    return _tagged(told(item), view.revision)


@router.put("/services/{name}/rules/{rule}", response_model=OutcomeAnswer, responses=WRITE)
async def set_rule(
    name: ServiceName,
    rule: RuleName,
    body: RuleBody,
    context: ContextOf,
    store: StoreOf,
    who: Who,
    based_on: BasedOn,
    wait: Wait = 0,
) -> Response:
    """Add a rule, or replace the one of that name."""
    await _view(store, name)
    items = {keys.suffix_of(name, "rules", rule): value_of(body.rule)}
    return await put(context, store, items, who, body.reason, expected(body.expected, based_on), wait)


@router.delete("/services/{name}/rules/{rule}", response_model=OutcomeAnswer, responses=WRITE)
async def delete_rule(
    name: ServiceName,
    rule: RuleName,
    context: ContextOf,
    store: StoreOf,
    who: Who,
    based_on: BasedOn,
    reason: Annotated[Text, Query(description="Why, for the history.")] = "",
    wait: Wait = 0,
) -> Response:
    """Take a rule away."""
    items = {keys.suffix_of(name, "rules", rule): None}
    return await put(context, store, items, who, reason, based_on, wait, "delete")


@router.get("/services/{name}/settings", response_model=ItemAnswer, responses=READ)
async def settings(name: ServiceName, store: StoreOf) -> Response:
    """Hosts, paths, sticky keys, fallback, timeouts … as they are stored."""
    view = await _view(store, name)
    item = view.items.get(keys.suffix_of(name, "service"))
    return _tagged(told(item) if item else {"value": {}, "revision": 0, "origin": ""}, view.revision)


@router.put("/services/{name}/settings", response_model=OutcomeAnswer, responses=WRITE)
async def set_settings(
    name: ServiceName,
    body: SettingsBody,
    context: ContextOf,
    store: StoreOf,
    who: Who,
    based_on: BasedOn,
    wait: Wait = 0,
) -> Response:
    """Set all of them; in etcd, also for a service that there is not yet."""
    items = {keys.suffix_of(name, "service"): value_of(body.settings)}
    return await put(context, store, items, who, body.reason, expected(body.expected, based_on), wait)


@router.post("/services/{name}/rollback", response_model=OutcomeAnswer, responses=WRITE)
async def rollback(
    name: ServiceName,
    context: ContextOf,
    store: StoreOf,
    who: Who,
    based_on: BasedOn,
    body: RollbackBody | None = None,
    wait: Wait = 0,
) -> Response:
    """Back to former settings, rules and split, slots included; instances and lists stay as they are."""
    wanted = body or RollbackBody.model_validate({})
    outcome = await operations.rollback(
        store, name, to=wanted.to, who=who, why=wanted.reason, expected=expected(wanted.expected, based_on)
    )
    return await answer(context, outcome, who, wait)


@router.get("/history", response_model=list[HistoryEntry], responses=READ)
async def history(
    store: StoreOf,
    service: Annotated[str | None, Query(pattern=NAME, description="Default: all services.")] = None,
) -> Response:
    """Who changed what, when and why, newest first."""
    return json_response(await operations.history(store, service))


@router.get("/diff", response_model=DiffAnswer, responses=READ)
async def diff(
    store: StoreOf,
    a: Annotated[Revision, Query(description="A revision.")],
    b: Annotated[Revision | None, Query(description="Default: what is in force now.")] = None,
) -> Response:
    """What differs between two revisions, and how many callers change version by it."""
    return json_response((await revisions.diff(store, a, b)).to_data())


# -- what the routers of changes share ---------------------------------------------------------------------------------


async def put(
    context: Context,
    store: ConfigStore,
    items: Mapping[str, bytes | None],
    who: str,
    why: str,
    based_on: int | None,
    wait: float,
    action: Action = "set",
) -> Response:
    outcome = await operations.put(store, items, who=who, why=why, expected=based_on, action=action)
    return await answer(context, outcome, who, wait)


async def answer(context: Context, outcome: Outcome, who: str, wait: float) -> Response:
    """Of a write: that it is stored, and where the caller waits for it, whether the workers have it."""
    _log(outcome, who)
    applied, problem = await context.wait(outcome.revision, wait)
    return _tagged({**outcome.to_data(), "applied": applied, "problem": problem}, outcome.revision)


async def answers(context: Context, outcomes: list[Outcome], who: str, wait: float) -> list[dict[str, Any]]:
    """The same of several."""
    for outcome in outcomes:
        _log(outcome, who)
    newest = max((each.revision for each in outcomes), default=0)
    applied, problem = await context.wait(newest, wait if outcomes else 0)
    return [{**each.to_data(), "applied": applied, "problem": problem} for each in outcomes]


def _log(outcome: Outcome, who: str) -> None:
    if outcome.keys:
        log.info("revision %d: %s changed %s", outcome.revision, who, ", ".join(outcome.keys[:10]))


def told(item: Item, *, text: bool = False) -> dict[str, Any]:
    """The value as it was written, numbers included."""
    value = {"text": item.value.decode()} if text else {"value": orjson.Fragment(item.value)}
    return {**value, "revision": item.revision, "origin": item.origin}


def view_answer(view: View, *, texts: bool = False) -> Response:
    items = {key: told(item, text=texts) for key, item in view.items.items()}
    about = {"revision": view.revision, "ordered": view.ordered, "note": view.note}
    return _tagged({**about, "items": items}, view.revision)


def value_of(data: Any) -> bytes:
    return orjson.dumps(data)


def _tagged(data: dict[str, Any], revision: int) -> Response:
    """ETag: what If-Match may say."""
    return json_response(data, etag=f'"{revision}"')


async def _view(store: ConfigStore, service: str) -> View:
    view = await store.read()
    known = views.services_of(view)
    if service not in known:
        raise Missing(f"no service {service!r}; there is {', '.join(known[:20]) or 'none'}")
    return view
