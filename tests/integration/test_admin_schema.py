"""The admin API does what its OpenAPI document says: schemathesis makes requests of a running proxy, sound ones and
others, and judges each answer: no 500, no status, header or body that the document does not have, nothing wrong taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from graylb.control.api.app import create_app
from graylb.control.api.context import OPEN, Context
from tests.integration import admins, proxies
from tests.integration.admins import TOKEN, says
from tests.integration.proxies import Proxy
from tests.integration.upstream import Upstream

ENDS = ("POST", "/drain"), ("GET", "/tail")
"""One ends the proxy that the others need, the other does not end; `test_admin` and `test_watching` have them."""
NOBODY: Any = None
OPERATIONS = [
    (method.upper(), path)
    for path, operations in create_app(Context(NOBODY, NOBODY, NOBODY)).openapi()["paths"].items()
    for method in operations
    if (method.upper(), path) not in ENDS
]
TAKEN = {"name": "users", "rule": "testers"}
"""What there is; names out of the air are of nothing."""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("schema")
    (folder / "tokens").write_text(TOKEN)
    v1, v2 = Upstream("v1").start(), Upstream("v2").start()
    with proxies.running(folder, admins.document(v1, v2, token_file="tokens")) as found:
        yield found
    v1.stop()
    v2.stop()


@pytest.fixture(scope="module")
def schema(proxy: Proxy) -> Any:
    return schemathesis.openapi.from_url(f"http://{proxy.admin}/openapi.json", headers=authorized())


def authorized() -> dict[str, str]:
    return {"authorization": f"Bearer {TOKEN}"}


def conforms(schema: Any, method: str, path: str, examples: int) -> None:
    operation = schema[path][method]
    quick = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    # a rule may be sound by the document and no rule of the service; who calls is looked at below
    judged_elsewhere = [positive_data_acceptance, ignored_auth]

    @quick
    @given(operation.as_strategy(generation_mode=GenerationMode.POSITIVE), st.booleans())
    def sound(case: schemathesis.Case, known: bool) -> None:
        if known:
            case.path_parameters = {name: TAKEN[name] for name in case.path_parameters or {}}
        case.call_and_validate(headers=authorized(), excluded_checks=judged_elsewhere)

    @quick
    @given(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def others(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=authorized(), excluded_checks=judged_elsewhere)

    sound()
    if path not in OPEN or method != "GET":  # of these no request is wrong
        others()


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=map(" ".join, OPERATIONS))
def test_answers_are_as_the_document_says(schema: Any, method: str, path: str) -> None:
    conforms(schema, method, path, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=map(" ".join, OPERATIONS))
def test_answers_are_as_the_document_says_at_length(schema: Any, method: str, path: str) -> None:
    conforms(schema, method, path, 100)


def test_every_operation_takes_a_token(proxy: Proxy, schema: Any) -> None:
    assert len(OPERATIONS) + len(ENDS) == len(list(schema.get_all_operations()))
    with httpx.Client(base_url=f"http://{proxy.admin}") as client:
        for method, path in [*OPERATIONS, *ENDS]:
            answer = client.request(method, path.format(**TAKEN), json={})
            if method == "GET" and path in OPEN:
                assert answer.status_code in (200, 503)
            else:
                says(answer, 401, "no token")
