"""Tasks by Celery: `instrument()` once, in who sends tasks and in who works them off."""

from __future__ import annotations

from contextvars import Token
from typing import Any

from celery import signals

from graylb.sdk import context as sdk
from graylb.sdk.trail import PROBE

KEY = "graylb"  # the header of a task's message that holds what is carried
_tokens: dict[str, Token[sdk.Context]] = {}


def instrument() -> None:
    """Tasks that are sent carry the current context, and are run in it. It is done once, however often it is called."""
    signals.before_task_publish.connect(_publish, dispatch_uid="graylb.sdk", weak=False)
    signals.task_prerun.connect(_begin, dispatch_uid="graylb.sdk", weak=False)
    signals.task_postrun.connect(_end, dispatch_uid="graylb.sdk", weak=False)


def uninstrument() -> None:
    for signal in (signals.before_task_publish, signals.task_prerun, signals.task_postrun):
        signal.disconnect(dispatch_uid="graylb.sdk")


def _publish(headers: dict[str, Any] | None = None, **_: Any) -> None:
    carried = {name: value for name, value in sdk.lines() if name != PROBE}
    if carried and headers is not None and KEY not in headers:
        headers[KEY] = carried


def _begin(task_id: str, task: Any, **_: Any) -> None:
    carried = task.request.get(KEY)
    _tokens[task_id] = sdk.attach(sdk.extract(carried if isinstance(carried, dict) else {}))


def _end(task_id: str, **_: Any) -> None:
    token = _tokens.pop(task_id, None)
    if token is not None:
        sdk.detach(token)
