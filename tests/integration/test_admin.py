"""The admin API of a running proxy: what each endpoint tells and does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration import admins, proxies
from tests.integration.admins import says
from tests.integration.client import request
from tests.integration.proxies import Proxy, until
from tests.integration.upstream import Call, Upstream, running

BETA = {"match": {"headers": {"user-group": "beta"}}, "to": "v2"}


@pytest.fixture(scope="module")
def versions() -> Iterator[tuple[Upstream, Upstream]]:
    with running("v1", "v2") as (v1, v2):
        yield v1, v2


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, versions: tuple[Upstream, Upstream]) -> Iterator[Proxy]:
    with proxies.running(tmp_path_factory.mktemp("admin"), admins.document(*versions)) as found:
        yield found


@pytest.fixture(scope="module")
def connection(proxy: Proxy) -> Iterator[httpx.Client]:
    with admins.client(proxy, user="ann") as found:
        yield found


@pytest.fixture
def client(proxy: Proxy, connection: httpx.Client) -> httpx.Client:
    """With everything as the document says."""
    connection.post("/apply", params={"wait": 10}, json={"document": proxy.document, "prune": True}).raise_for_status()
    return connection


def get(client: httpx.Client, path: str, **params: Any) -> Any:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def versions_of(proxy: Proxy, *headers: str, users: int = 200) -> set[str]:
    with proxy.client() as client:
        answers = [client.ask("GET", "/", headers=[f"x-user-id: {n}", *headers]) for n in range(users)]
    return {str(answer.get("x-graylb-version")) for answer in answers}


# -- reading -----------------------------------------------------------------------------------------------------------


def test_what_is_in_force(proxy: Proxy, client: httpx.Client) -> None:
    status = get(client, "/status")
    (short,) = get(client, "/services")
    service = get(client, "/services/users")
    assert (short["name"], short["split"], short["rules"]) == ("users", {"v1": 90.0, "v2": 10.0}, 1)
    assert service["revision"] == status["revision"] == get(client, "/snapshot")["revision"]
    assert (service["stable"], service["rules"], service["sticky"]) == (
        "v1",
        ["testers"],
        [{"kind": "header", "name": "x-user-id"}],
    )
    assert {each["version"] for each in service["instances"]} == {"v1", "v2"}
    assert get(client, "/stats")[0]["worker"] == 0
    assert get(client, "/nodes") == []
    says(client.get("/services/orders"), 404, "no service 'orders'; there is users")


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    says(client.get("/nowhere"), 404)
    says(client.get("/services?wiat=1"), 422, "unknown parameter 'wiat'")
    says(client.get("/history?servic=users"), 422, 'did you mean "service"?')
    assert client.get("/live?wiat=1").status_code == 200
    answer = client.delete("/status")
    says(answer, 405)
    assert answer.headers["allow"] == "GET"


def test_what_is_stored(client: httpx.Client) -> None:
    answer = client.get("/services/users/split")
    split = answer.json()
    assert (split["weights"], split["service"]) == ({"v1": 90.0, "v2": 10.0}, "users")
    assert split["salt"]
    assert split["slots"]
    assert answer.headers["etag"] == f'"{split["revision"]}"'
    (key,) = get(client, "/services/users/rules")["items"]
    rule = get(client, "/services/users/rules/testers")
    assert key == "services/users/rules/testers"
    assert rule == get(client, "/config", key=key)["items"][key]
    assert get(client, "/services/users/settings")["value"]["sticky"] == [{"header": "x-user-id"}]
    assert set(get(client, "/config", key="services/users")["items"]) == set(get(client, "/config")["items"])
    for path in ("split", "rules", "rules/testers", "settings"):
        says(client.get(f"/services/orders/{path}"), 404, "no service 'orders'")
    says(client.get("/services/users/rules/none"), 404, "users has no rule 'none'")
    says(client.get("/config?key=services/users/rules/none"), 404, "no key services/users/rules/none")
    says(client.get("/history?service=orders"), 404, "no service 'orders'")
    says(client.get("/services/a%20b/split"), 422)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_a_split_and_the_way_back(proxy: Proxy, client: httpx.Client) -> None:
    body = {"weights": {"v2": 100}, "reason": "all of it"}
    told = client.put("/services/users/split", params={"wait": 10}, json=body).json()
    assert (told["service"], told["former"], told["split"], told["applied"]) == ("users", "v1=90 v2=10", "v2=100", True)
    assert told["keys"] == ["services/users/split"]
    assert versions_of(proxy) == {"v2"}
    newest = get(client, "/history", service="users")[0]
    assert (newest["who"], newest["why"], newest["action"]) == ("ann", "all of it", "split")
    assert (newest["revision"], newest["split"]) == (told["revision"], "v2=100")
    back = client.post("/services/users/rollback", params={"wait": 10}).json()
    assert (back["split"], back["applied"]) == ("v1=90 v2=10", True)
    assert versions_of(proxy) == {"v1", "v2"}
    again = client.post("/services/users/rollback", params={"wait": 10}, json={"to": told["revision"]}).json()
    assert again["split"] == "v2=100"
    says(client.post("/services/users/rollback", json={"to": told["revision"]}), 404, "already as it was")
    changes = get(client, "/diff", a=told["revision"], b=back["revision"])["changes"]
    assert [(each["service"], each["part"]) for each in changes] == [("users", "split"), ("users", "slots")]
    says(client.get("/diff?a=1000000"), 404, "no revision 1000000")


def test_splits_that_cannot_be(client: httpx.Client) -> None:
    path = "/services/users/split"
    before = get(client, path)
    says(client.put(path, json={"weights": {"v9": 1}}), 422, "no instance of version 'v9'; there is v1, v2")
    says(client.put(path, json={"weights": {"v1": 0}}), 422, "one of them positive")
    for body in ({"weights": {"v1": -1}}, {"weights": {}}, {}, {"weights": {"v1": 1}, "why": "x"}, [1], "x"):
        found = says(client.put(path, json=body), 422)
        assert found["faults"][0]["file"] == "body"
    for text in (b'{"weights": {"v1": NaN}}', b"{", b"\xff", b'{"weights": {"\\ud800": 1}}'):
        says(client.put(path, content=text, headers={"content-type": "application/json"}), 422)
    says(client.put("/services/orders/split", json={"weights": {"v1": 1}}), 404, "no service 'orders'")
    assert get(client, path) == before


def test_rules(proxy: Proxy, client: httpx.Client) -> None:
    path = "/services/users/rules/staff"
    rule = {"match": {"headers": {"x-staff": {"present": True}}}, "to": "v2"}
    assert client.put(path, params={"wait": 10}, json={"rule": rule}).json()["keys"] == ["services/users/rules/staff"]
    assert get(client, path)["value"]["to"] == {"version": "v2"}
    assert versions_of(proxy, "x-staff: 1", users=20) == {"v2"}
    found = says(client.put(path, json={"rule": {"mach": {}, "to": "v2"}}), 422, "services/users/rules/staff", "match")
    assert (found["faults"][0]["path"], found["faults"][0]["suggestion"]) == ("$.mach", "match")
    assert client.delete(path, params={"wait": 10, "reason": "enough"}).json()["applied"]
    assert get(client, "/history", service="users")[0]["why"] == "enough"
    says(client.delete(path), 404)
    says(client.put("/services/orders/rules/staff", json={"rule": rule}), 404, "no service 'orders'")


def test_settings(client: httpx.Client) -> None:
    path = "/services/users/settings"
    settings = get(client, path)["value"]
    told = client.put(path, params={"wait": 10}, json={"settings": {**settings, "fallback": "strict"}}).json()
    assert told["keys"] == ["services/users/service"]
    assert get(client, "/services/users")["fallback"] == "strict"
    says(client.put(path, json={"settings": {**settings, "split": {"v1": 1}}}), 422, "split do not stand here")
    says(client.put(path, json={"settings": {**settings, "fallback": "perhaps"}}), 422, '"perhaps"')


def test_several_keys_at_once_or_none(client: httpx.Client) -> None:
    split, rule = "services/users/split", "services/users/rules/testers"
    told = client.post("/config", params={"wait": 10}, json={"items": {split: {"v1": 1, "v2": 1}, rule: None}}).json()
    assert sorted(told["keys"]) == [rule, split]
    assert get(client, "/services/users")["rules"] == []
    before = get(client, "/config")
    says(client.post("/config", json={"items": {split: {"v1": 1}, rule: {"to": 5}}}), 422, rule)
    says(client.post("/config", json={"items": {split: {"v1": 1}, rule: None}}), 404, rule)
    says(client.post("/config", json={"items": {"services/users/nonsense": 1}}), 422, "nonsense")
    says(client.post("/config", json={"items": {"x": 1}}), 422)
    says(
        client.post("/config", json={"items": {"services/users/instances/a": {"address": "a:1", "version": "v"}}}), 422
    )
    assert get(client, "/config") == before


def test_who_comes_second_is_told(client: httpx.Client) -> None:
    path = "/services/users/split"
    tag = client.get(path).headers["etag"]
    body = {"weights": {"v1": 80, "v2": 20}, "reason": "a ramp"}
    first = client.put(path, json=body, headers={"if-match": tag})
    assert first.status_code == 200
    late = {"weights": {"v1": 70, "v2": 30}}
    for answer in (
        client.put(path, json=late, headers={"if-match": tag}),
        client.put(path, json={**late, "expected": int(tag.strip('"'))}),
        client.put("/services/users/rules/x", json={"rule": BETA}, headers={"if-match": tag}),
        client.delete("/services/users/rules/testers", headers={"if-match": tag}),
        client.post("/services/users/rollback", headers={"if-match": tag}),
        client.post("/config", json={"items": {"services/users/split": {"v1": 1}}}, headers={"if-match": tag}),
    ):
        assert says(answer, 409, "ann", "v1=80 v2=20", "a ramp")["error"] == "conflict"
    assert client.put(path, json=late, headers={"if-match": first.headers["etag"]}).status_code == 200
    says(client.put(path, json=late, headers={"if-match": '"x"'}), 400, "If-Match")
    says(client.put(path, json={**late, "expected": 1}, headers={"if-match": '"2"'}), 400, "If-Match")


def test_export_and_apply(client: httpx.Client) -> None:
    client.put("/services/users/split", json={"weights": {"v1": 60, "v2": 40}})
    exported = get(client, "/export")
    client.put("/services/users/split", json={"weights": {"v1": 10, "v2": 90}})
    client.delete("/services/users/rules/testers")
    dry = client.post("/apply", json={"document": exported, "dry_run": True}).json()
    assert (dry["dry_run"], dry["outcomes"][0]["split"]) == (True, "v1=60 v2=40")
    assert get(client, "/services/users/split")["weights"] == {"v1": 10.0, "v2": 90.0}
    told = client.post("/apply", params={"wait": 10}, json={"document": exported, "reason": "as it was"}).json()
    assert [(each["service"], each["applied"]) for each in told["outcomes"]] == [("users", True)]
    assert get(client, "/export") == exported
    assert client.post("/apply", json={"document": exported}).json()["outcomes"] == []
    found = says(client.post("/apply", json={"document": "services: {users: {splitt: {v1: 1}}}"}), 422, "splitt")
    assert found["faults"][0]["line"] == 1
    says(client.post("/apply", json={"document": "a: [", "dry_run": True}), 422)


# -- explain, process --------------------------------------------------------------------------------------------------


def test_explain_says_what_the_proxy_does(proxy: Proxy, client: httpx.Client) -> None:
    found = client.post("/explain", json={"headers": {"user-group": "beta"}, "path": "/x?y"}).json()
    assert (found["rule"], found["version"]) == ("testers", "v2")
    assert "rule testers holds" in found["because"]
    for number in range(20):
        found = client.post("/explain", json={"headers": [["x-user-id", str(number)]], "host": "a.test"}).json()
        with proxy.client() as asking:
            answer = asking.ask("GET", "/", headers=[f"x-user-id: {number}"])
        assert answer.get("x-graylb-version") == found["version"]
        assert answer.get("x-graylb-revision") == str(found["revision"])
        assert [each["rule"] for each in found["earlier_rules"]] == ["testers"]
    says(client.post("/explain", json={"headers": {"a": "b\r\nc: d"}}), 422, "line break")
    says(client.post("/explain", json={"client_ip": "nobody"}), 422, "expected an IP address")
    says(client.post("/explain", json={"listener": "none"}), 422, "unknown listener")
    says(client.post("/explain", json={"host": "a b"}), 422, "would not accept")


def test_the_log_level(proxy: Proxy, client: httpx.Client) -> None:
    assert get(client, "/log-level") == {"level": "info"}
    assert client.put("/log-level", json={"level": "debug"}).json() == {"level": "debug"}
    get(client, "/services")
    proxy.wait_for_log("debug: admin: GET /services: 200 for ann")
    client.put("/log-level", json={"level": "error"})
    client.put("/services/users/split", params={"wait": 10}, json={"weights": {"v1": 33, "v2": 67}})
    revision = get(client, "/status")["revision"]
    assert f"revision {revision} applied" not in proxy.log()
    client.put("/log-level", json={"level": "info"})
    proxy.wait_for_log("ann: log level error, was debug")
    says(client.put("/log-level", json={"level": "loud"}), 422, "level")


def test_not_ready_without_an_end(proxy: Proxy, client: httpx.Client) -> None:
    assert client.put("/ready", json={"ready": False}).json() == {"ready": False}
    assert client.get("/ready").status_code == 503
    status = get(client, "/status")
    assert (status["withdrawn"], status["draining"], status["ready"]) == (True, False, False)
    assert versions_of(proxy, users=1)
    client.put("/ready", json={"ready": True})
    assert client.get("/ready").status_code == 200


def test_drain_under_load(tmp_path: Path, versions: tuple[Upstream, Upstream]) -> None:
    """What is under way is finished, nobody new is served, and the process ends with status 0."""
    entered, go_on = threading.Semaphore(0), threading.Event()

    def slow(call: Call) -> None:
        entered.release()
        assert go_on.wait(proxies.PATIENCE)
        call.answer(body=b"at last")

    for each in versions:
        each.on("/slow", slow)
    proxy = Proxy(tmp_path, admins.document(*versions))
    try:
        assert proxy.process is not None
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(proxy.client()) for _ in range(16)]
            admin = stack.enter_context(admins.client(proxy, user="ann"))
            for each in waiting:
                each.send(request("GET", "/slow"))
            for _ in waiting:
                assert entered.acquire(timeout=proxies.PATIENCE)
            answer = admin.post("/drain", json={"seconds": 15})
            assert (answer.status_code, answer.json()) == (202, {"draining": True, "seconds": 15.0})
            assert admin.get("/ready").status_code == 503
            assert admin.post("/drain").json() == {"draining": True, "seconds": 15.0}  # and not its end at once
            until(lambda: _refused(proxy), "that nobody is accepted")
            assert get(admin, "/status")["draining"]
            go_on.set()
            answers = [each.response() for each in waiting]
            assert {(each.status, each.body) for each in answers} == {(200, b"at last")}
            assert proxy.process.wait(proxies.PATIENCE) == 0
        proxy.wait_for_log("ann: drain, for at most 15 s")
        proxy.wait_for_log("told to drain: draining for at most 15 s")
        assert "ending the workers at once" not in proxy.log()
    finally:
        go_on.set()
        proxy.kill()


def _refused(proxy: Proxy) -> bool:
    try:
        host, _, port = proxy.address.rpartition(":")
        socket.create_connection((host, int(port)), proxies.PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False
