"""Celery with a real worker on a thread, by a broker in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from graylb import sdk
from graylb.sdk import celery as sdk_celery


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("marks", broker="memory://", backend="cache+memory://")
    app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=False)
    sdk_celery.instrument()
    sdk_celery.instrument()
    yield app
    sdk_celery.uninstrument()
    app.close()


@pytest.mark.filterwarnings("ignore")  # of Celery's own
def test_a_task_runs_in_the_context_of_who_sent_it_and_so_do_those_that_it_sends(app: Celery) -> None:
    @app.task
    def last() -> list[str | None]:
        return [sdk.current().mark, sdk.current().baggage]

    @app.task
    def first() -> str:
        return str(last.delay().id)

    with start_worker(app, perform_ping_check=False, pool="solo", loglevel="ERROR"):
        with sdk.use(sdk.Context(mark="v2", baggage="k=1")):
            sent = first.delay()
        plain = last.delay()
        onward = app.AsyncResult(sent.get(timeout=30))
        assert onward.get(timeout=30) == ["v2", "k=1"]
        assert plain.get(timeout=30) == [None, None]
