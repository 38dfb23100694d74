"""A real Prometheus scrapes a real graylb: its figures are those of the callers, rules and dashboard find them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
import yaml

from tests.integration import proxies
from tests.integration.counting import Crowd, Instance
from tests.integration.proxies import ROOT, Proxy, until

RULES = sorted((ROOT / "config" / "prometheus").glob("*.yaml"))
DASHBOARD = json.loads((ROOT / "config" / "grafana" / "graylb.json").read_text())


class Prometheus:
    """Scrapes this address every second. `ask` is its query API."""

    def __init__(self, folder: Path, target: str) -> None:
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": list(map(str, RULES)),
            "scrape_configs": [{"job_name": "graylb", "static_configs": [{"targets": [target]}]}],
        }
        file, self.log = folder / "prometheus.yaml", folder / "prometheus.log"
        file.write_text(yaml.safe_dump(config))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                    "--enable-feature=exemplar-storage",
                ],
                stdout=log,
                stderr=log,
            )
        self.client = httpx.Client(timeout=20)
        self.address = ""

    def start(self) -> None:
        def listening() -> str | None:
            assert self.process.poll() is None, self.log.read_text()
            found = re.search(r'msg="Listening on" address=(\S+)', self.log.read_text())
            return found[1] if found else None

        self.address = until(listening, "Prometheus to listen")
        until(lambda: self.ask("up == 1"), "a scrape")

    def get(self, path: str, **query: str) -> Any:
        """The answer's data; None as long as Prometheus starts."""
        try:
            answer = self.client.get(f"http://{self.address}/api/v1/{path}", params=query)
        except httpx.HTTPError:
            return None
        if answer.status_code == 503:
            return None
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def ask(self, query: str) -> dict[tuple[str, ...], float]:
        """{values of the labels, in order of their names: value} of an instant query."""
        found = self.get("query", query=query)
        results = found["result"] if found and found["resultType"] == "vector" else []
        return {
            tuple(value for name, value in sorted(each["metric"].items()) if name != "__name__"): float(
                each["value"][1]
            )
            for each in results
        }


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    made = Prometheus(folder, target)
    try:
        made.start()
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        made.client.close()


def shown(within: Any) -> Iterator[str]:
    """The dashboard's queries, with its variables at All."""
    if isinstance(within, list):
        for each in within:
            yield from shown(each)
    elif isinstance(within, dict):
        for key, value in within.items():
            if key == "expr":
                yield re.sub(r"\$(instance|service|version)\b", ".*", value).replace("$__rate_interval", "10s")
            else:
                yield from shown(value)


@pytest.mark.slow
def test_what_prometheus_knows_is_what_happened(tmp_path: Path) -> None:
    """To the request, by version; no rule fails, and the dashboard's queries find something, most of them."""
    requests = 3000

    async def main() -> None:
        loop, asked = asyncio.get_running_loop(), Counter[str]()
        servers = [
            await loop.create_server(lambda name=name: Instance(asked, name), "127.0.0.1", 0)  # type: ignore[misc]
            for name in ("v1", "v2")
        ]
        v1, v2 = (f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers)
        users = proxies.service((v1, "v1"), (v2, "v2"), split={"v1": 80, "v2": 20}, stable="v1")
        tracing = {
            "otlp": {"endpoint": "http://127.0.0.1:9"},
            "sample": "10%",
        }  # nobody is there: exemplars need no collector
        document = proxies.document({"users": users}, admin={"address": "127.0.0.1:0"}, workers=2, tracing=tracing)
        proxy = await asyncio.to_thread(Proxy, tmp_path, document)
        stack = contextlib.ExitStack()
        try:
            seen = await asyncio.to_thread(stack.enter_context, prometheus(tmp_path, proxy.admin))
            crowd = Crowd(proxy.address, callers=4)
            for _ in range(3):  # so that rates have something between two scrapes
                await crowd.ask(requests // 3, 50)
                known = crowd.statuses.total()
                query = f'sum(graylb_requests_total{{code="2xx"}}) == {known}'
                await asyncio.to_thread(until, lambda query=query: seen.ask(query), "it to be scraped")  # type: ignore[misc]
            assert crowd.statuses == {200: requests}
            await asyncio.to_thread(look, seen, asked)
        finally:
            await asyncio.to_thread(stack.close)
            await asyncio.to_thread(proxy.stop)
            for server in servers:
                server.close()

    def look(seen: Prometheus, asked: Counter[str]) -> None:
        found = seen.ask('sum by (version) (graylb_requests_total{service!=""})')
        assert found == {(version,): count for version, count in asked.items()}
        assert seen.ask("graylb_stable_info") != {}
        range_ = {"start": str(time.time() - 600), "end": str(time.time() + 60)}
        exemplars = until(
            lambda: seen.get("query_exemplars", query="graylb_request_duration_seconds_bucket", **range_), "exemplars"
        )
        assert all(
            re.fullmatch("[0-9a-f]{32}", one["labels"]["trace_id"]) for of in exemplars for one in of["exemplars"]
        )
        assert {of["seriesLabels"]["version"] for of in exemplars} == {"v1", "v2"}
        until(lambda: len(seen.ask("service_version:graylb_request_duration_seconds:p99_5m")) == 2, "recording rules")
        rules = [rule for group in seen.get("rules")["groups"] for rule in group["rules"]]
        assert len(rules) > 20
        assert all(rule["health"] in ("ok", "unknown") for rule in rules), rules
        queries = list(shown(DASHBOARD))
        empty = [query for query in queries if not seen.ask(query)]
        assert len(queries) > 35
        assert len(empty) < len(queries) / 3, empty

    uvloop.run(main())
