"""Work that is done in other threads, in the context of who asked for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import wraps
from typing import ParamSpec, TypeVar

from graylb.sdk import context as sdk

P = ParamSpec("P")
R = TypeVar("R")


class ContextThreadPoolExecutor(ThreadPoolExecutor):
    """Runs each call in a copy of the context variables that its submitter had."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        run: Callable[..., R] = copy_context().run
        return super().submit(run, fn, *args, **kwargs)


def bind(fn: Callable[P, R]) -> Callable[P, R]:
    """A function that runs in what is the current context now, wherever and however often it is called."""
    context = sdk.current()

    @wraps(fn)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        with sdk.use(context):
            return fn(*args, **kwargs)

    return bound
