"""What headers carry is what is carried on, and nothing that is no mark."""

from __future__ import annotations

import contextvars
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb import sdk
from graylb.sdk import trail
from graylb.sdk.context import MAX_BAGGAGE
from graylb.sdk.threads import ContextThreadPoolExecutor, bind

MARKS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+/:@-]{0,127}", fullmatch=True)
KEYS = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True).filter(lambda key: key != "x-service-version")
BAGGAGE = st.lists(st.tuples(KEYS, st.from_regex(r"[A-Za-z0-9%]{0,20}(;p=1)?", fullmatch=True)), max_size=5)


@pytest.fixture
def restored() -> Iterator[None]:
    before = sdk.settings()
    yield
    sdk.configure(
        service=before.service, headers=before.headers, baggage=before.baggage, answers_probes=before.answers_probes
    )


def injected(context: sdk.Context, headers: dict[str, str] | None = None) -> dict[str, str]:
    headers = headers if headers is not None else {}
    sdk.inject(headers, context)
    return headers


@given(MARKS, BAGGAGE, st.sampled_from([None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]))
def test_what_comes_in_goes_out(mark: str, members: list[tuple[str, str]], parent: str | None) -> None:
    arriving = {"X-Service-Version": mark, "Baggage": ",".join(f"{key}={value}" for key, value in members)}
    if parent is not None:
        arriving |= {"TraceParent": parent, "tracestate": "a=b"}
    found = sdk.extract(arriving)
    assert (found.mark, found.traceparent, found.tracestate) == (mark, parent, parent and "a=b")
    leaving = injected(found)
    assert leaving["x-service-version"] == mark
    assert leaving["baggage"].split(",") == [f"x-service-version={mark}", *(f"{k}={v}" for k, v in members)]
    assert (leaving.get("traceparent"), leaving.get("tracestate")) == (parent, parent and "a=b")
    assert sdk.extract(leaving) == found


@given(st.text(max_size=300), st.text(max_size=300))
def test_no_header_is_too_odd(mark: str, baggage: str) -> None:
    found = sdk.extract([("x-service-version", mark), ("baggage", baggage), ("baggage", mark)])
    assert found.mark is None or found.mark in mark
    injected(found)


@pytest.mark.parametrize(
    ("baggage", "mark"),
    [
        ("x-service-version=v2", "v2"),
        (" a=1 , x-service-version = v2 ;ttl=1, b=2", "v2"),
        ("x-service-version=%76%32", "v2"),
        ("x-service-version=v2,x-service-version=v1", "v2"),
        ("x-service-versions=v2", None),
        ("x-service-version", None),
        ("x-service-version=", None),
        ("x-service-version=a%0d%0ab", None),
        ("", None),
    ],
)
def test_a_mark_in_baggage(baggage: str, mark: str | None) -> None:
    assert sdk.extract({"baggage": baggage}).mark == mark


def test_a_header_counts_more_than_baggage_and_replaces_it_there() -> None:
    found = sdk.extract({"x-service-version": "v3", "baggage": "a=1,x-service-version=v2"})
    assert found.mark == "v3"
    assert injected(found) == {"x-service-version": "v3", "baggage": "x-service-version=v3,a=1"}


@pytest.mark.parametrize("value", ["", "v1, v2", "v 2", "-v", "v2\r\nx: y", "ä", "v" * 129])
def test_what_is_no_mark_is_none(value: str) -> None:
    assert sdk.extract({"x-service-version": value}).mark is None


def test_what_is_set_by_hand_stays() -> None:
    context = sdk.Context(mark="v2", traceparent="ours", baggage="a=1,b=2")
    headers = {"X-Service-Version": "v9", "Traceparent": "theirs", "Baggage": "b=3"}
    assert injected(context, headers) == {
        "X-Service-Version": "v9",
        "Traceparent": "theirs",
        "Baggage": "b=3,x-service-version=v2,a=1",
    }


def test_a_baggage_that_is_too_long_is_left_behind() -> None:
    found = sdk.extract({"baggage": "a=" + "b" * MAX_BAGGAGE + ",x-service-version=v2"})
    assert injected(found) == {"x-service-version": "v2", "baggage": "x-service-version=v2"}


@pytest.mark.usefixtures("restored")
def test_names_of_ones_own() -> None:
    sdk.configure(headers=["X-Lane", "x-env"], baggage="lane")
    assert sdk.extract({"x-env": "gray", "x-service-version": "v2"}).mark == "gray"
    assert sdk.extract({"x-env": "gray", "X-LANE": "blue", "baggage": "lane=red"}).mark == "blue"
    assert injected(sdk.Context(mark="gray")) == {"x-lane": "gray", "x-env": "gray", "baggage": "lane=gray"}
    sdk.configure(headers="x-lane", baggage=None)
    assert sdk.extract({"baggage": "lane=red"}) == sdk.Context(baggage="lane=red")
    assert injected(sdk.Context(mark="gray")) == {"x-lane": "gray"}


def test_the_context_is_of_the_task_or_thread_that_it_was_attached_in() -> None:
    assert sdk.current() == sdk.Context()
    seen = []
    with sdk.use(sdk.Context(mark="v2")):
        token = sdk.attach(sdk.Context(mark="v3"))
        assert sdk.current().mark == "v3"
        contextvars.Context().run(sdk.detach, token)  # elsewhere: nothing happens
        assert sdk.current().mark == "v3"
        sdk.detach(token)
        thread = Thread(target=lambda: seen.append(sdk.current().mark))
        bound = Thread(target=bind(lambda: seen.append(sdk.current().mark)))
        for each in (thread, bound):
            each.start()
            each.join()
    assert seen == [None, "v2"]
    assert sdk.current().mark is None


def test_work_in_a_pool_has_the_context_of_who_gave_it() -> None:
    with ThreadPoolExecutor(1) as plain, ContextThreadPoolExecutor(1) as pool:
        with sdk.use(sdk.Context(mark="v2")):
            ours = bind(lambda n: (n, sdk.current().mark))
            assert pool.submit(lambda: sdk.current().mark).result() == "v2"
            assert list(pool.map(lambda n: (n, sdk.current().mark), range(3))) == [(n, "v2") for n in range(3)]
            assert plain.submit(lambda: sdk.current().mark).result() is None
        assert list(plain.map(ours, range(3))) == [(n, "v2") for n in range(3)]
        assert pool.submit(lambda: sdk.current().mark).result() is None


def test_a_trail_tells_who_was_called_and_stays_within_bounds() -> None:
    own = trail.Trail("1", "users, of all", "v2")
    own.add("orders:80/x", "0;orders;v2,1;stock;-")
    own.add("other:80/y", None)
    own.add("late", lambda: "0;late;v1")
    own.add("odd", "nonsense;;")
    assert own.text() == "0;users%2C%20of%20all;v2,1;orders;v2,2;stock;-,1;!other:80/y;-,1;late;v1"
    for number in range(300):
        own.add(f"host-{number}" + "x" * 100, None)
    assert len(own.text()) <= trail.MAX_BYTES
    assert own.text().startswith("0;users%2C%20of%20all;v2,1;orders;v2")


def test_it_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; import graylb.sdk, graylb.sdk.asgi, graylb.sdk.wsgi, graylb.sdk.threads; "
        "own = {n for n in sys.modules if n.startswith('graylb')}; "
        "print(sorted({n.partition('.')[0] for n in sys.modules} - sys.stdlib_module_names - {'graylb'}), sorted(own))"
    )
    told = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith(("['__main__'] ", "[] "))
    assert "graylb.errors" not in told
    assert "graylb._fast" not in told
