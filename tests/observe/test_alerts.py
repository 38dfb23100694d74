"""The rules and the dashboard of config/: every alert fires when it should, and names nothing that is not counted."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from graylb.observe.metrics import BY_NAME

CONFIG = Path(__file__).resolve().parents[2] / "config"
RULES = [CONFIG / "prometheus" / "rules.yaml", CONFIG / "prometheus" / "alerts.yaml"]
DASHBOARD = json.loads((CONFIG / "grafana" / "graylb.json").read_text())
GROUPS = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}

Series = dict[str, str]
"""Series -> values in promtool's notation, one every minute."""


def requests(version: str, ok: float, failed: float = 0.0, rule: str = "(split)") -> Series:
    """A second."""
    of = f'service="users", version="{version}", rule="{rule}"'
    return {
        f'graylb_requests_total{{{of}, code="2xx"}}': f"0+{60 * ok}x40",
        f'graylb_requests_total{{{of}, code="5xx"}}': f"0+{60 * failed}x40",
    }


def calls(version: str, failed: float, code: str = "Unavailable") -> Series:
    """Of gRPC, a second, which are answered with 200."""
    return {
        f'graylb_grpc_requests_total{{service="users", version="{version}", rule="(split)", grpc_code="{code}"}}': (
            f"0+{60 * failed}x40"
        )
    }


def latency(version: str, quick: float, slow: float) -> Series:
    """Requests a second of at most 10 ms, and of 250 ms to 1 s."""
    of = f'graylb_request_duration_seconds_bucket{{service="users", version="{version}", le='
    both = quick + slow
    return {
        f'{of}"0.005"}}': "0x40",
        f'{of}"0.01"}}': f"0+{60 * quick}x40",
        f'{of}"0.25"}}': f"0+{60 * quick}x40",
        f'{of}"1.0"}}': f"0+{60 * both}x40",
        f'{of}"+Inf"}}': f"0+{60 * both}x40",
    }


STABLE = {'graylb_stable_info{service="users", version="v1"}': "1x40"}
RATIO = {
    'graylb_split_ratio{service="users", version="v1"}': "0.9x40",
    'graylb_split_ratio{service="users", version="v2"}': "0.1x40",
}


def gauge(name: str, value: float) -> Series:
    return {name: f"{value}x40"}


# alert -> (series with which it fires, series with which it nearly does)
CASES: dict[str, tuple[list[Series], list[list[Series]]]] = {
    "GraylbCanaryErrors": (
        [STABLE, requests("v1", 90), requests("v2", 9, 1)],
        [
            [STABLE, requests("v1", 90), requests("v2", 10)],
            [STABLE, requests("v1", 81, 9), requests("v2", 9, 1)],  # no worse than the stable version
            [STABLE, requests("v1", 81, 9), requests("v2", 10)],  # it is the stable version that fails
            [STABLE, requests("v1", 90), requests("v2", 0.04, 0.04)],  # too few to tell
            [STABLE, requests("v1", 90), requests("v2", 10), calls("v2", 1, "NotFound")],  # no failure of the server
            [STABLE, requests("v1", 90), calls("v1", 9), requests("v2", 10), calls("v2", 1)],
        ],
    ),
    "GraylbCanarySlow": (
        [STABLE, requests("v1", 90), requests("v2", 10), latency("v1", 90, 0), latency("v2", 9, 1)],
        [
            [STABLE, requests("v1", 90), requests("v2", 10), latency("v1", 90, 0), latency("v2", 10, 0)],
            [STABLE, requests("v1", 90), requests("v2", 10), latency("v1", 80, 10), latency("v2", 9, 1)],
            [STABLE, requests("v1", 90), requests("v2", 0.05), latency("v1", 90, 0), latency("v2", 0.01, 0.04)],
        ],
    ),
    "GraylbFallback": (
        [requests("v1", 100), {'graylb_fallbacks_total{service="users", wanted="v2", got="v1"}': "0+300x40"}],
        [[requests("v1", 100), {'graylb_fallbacks_total{service="users", wanted="v2", got="v1"}': "0+30x40"}]],
    ),
    "GraylbSplitMissed": (
        [RATIO, requests("v1", 60), requests("v2", 40)],
        [
            [RATIO, requests("v1", 88), requests("v2", 12)],
            [RATIO, requests("v1", 90), requests("v2", 10), requests("v2", 900, rule="testers")],
            [RATIO, requests("v1", 0.4), requests("v2", 0.4)],
        ],
    ),
    "GraylbInstancesIll": (
        [
            gauge('graylb_instances{service="users", version="v2", state="ill"}', 2),
            gauge('graylb_instances{service="users", version="v2", state="well"}', 2),
        ],
        [
            [
                gauge('graylb_instances{service="users", version="v2", state="ill"}', 1),
                gauge('graylb_instances{service="users", version="v2", state="well"}', 2),
            ],
            [gauge('graylb_instances{service="users", version="v2", state="ill"}', 0)],
        ],
    ),
    "GraylbConfigRefused": ([gauge("graylb_config_refused", 1)], [[gauge("graylb_config_refused", 0)]]),
    "GraylbKeysRefused": ([gauge("graylb_config_refused_keys", 2)], [[gauge("graylb_config_refused_keys", 0)]]),
    "GraylbConfigStale": (
        [gauge('graylb_config_source_connected{source="etcd"}', 0)],
        [
            [
                gauge('graylb_config_source_connected{source="etcd"}', 1),
                gauge('graylb_config_source_lag_seconds{source="etcd"}', 30),
            ]
        ],
    ),
    "GraylbWorkersDisagree": (
        [
            gauge('graylb_worker_revision{instance="a", worker="0"}', 7),
            gauge('graylb_worker_revision{instance="a", worker="1"}', 8),
        ],
        [
            [
                gauge('graylb_worker_revision{instance="a", worker="0"}', 8),
                gauge('graylb_worker_revision{instance="a", worker="1"}', 8),
                gauge('graylb_worker_revision{instance="b", worker="0"}', 9),
            ]
        ],
    ),
    "GraylbWorkerDied": (
        [{'graylb_worker_restarts_total{worker="0"}': "0x20 1x20"}],
        [[{'graylb_worker_restarts_total{worker="0"}': "1x40"}]],
    ),
    "GraylbWorkerDown": ([gauge("graylb_worker_up", 0)], [[gauge("graylb_worker_up", 1)]]),
    "GraylbAlarm": (
        [{'graylb_alarms_total{alarm="store_errors"}': "0x20 1x20"}],
        [
            [{'graylb_alarms_total{alarm="store_errors"}': "1x40"}],
            [{'graylb_alarms_total{alarm="worker_respawns"}': "0x20 1x20"}],
        ],
    ),
    "GraylbLogLost": (
        [{'graylb_access_log_lines_total{result="dropped"}': "0x20 9x20"}],
        [
            [{'graylb_access_log_lines_total{result="written"}': "0x20 9x20"}],
            [{"graylb_access_log_write_failures_total": "3x40"}],
        ],
    ),
    "GraylbShedding": (
        [{'graylb_errors_total{service="users", version="v1", reason="circuit-open"}': "0+60x40"}],
        [[{'graylb_errors_total{service="users", version="v1", reason="upstream-reset"}': "0+60x40"}]],
    ),
    "GraylbFileDescriptors": (
        [gauge("graylb_process_open_fds", 90), gauge("graylb_process_max_fds", 100)],
        [[gauge("graylb_process_open_fds", 70), gauge("graylb_process_max_fds", 100)]],
    ),
    "GraylbTooManySeries": (
        [{"graylb_metrics_series_refused_total": "0x20 5x20"}],
        [[{"graylb_metrics_series_refused_total": "0x40"}]],
    ),
}


def own(series: str, case: str) -> str:
    """A series of one case: with a service and an instance of its own, so that all cases fit into one test."""
    name, _, labels = series.rstrip("}").partition("{")
    if "instance=" not in labels:
        labels = ", ".join(filter(None, [labels, 'instance="a"']))
    labels = labels.replace('"users"', f'"{case}"').replace('instance="', f'instance="{case}')
    return f"{name}{{{labels}}}"


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", *RULES)


def test_every_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    """Half an hour on, in one Prometheus for all cases."""
    assert CASES.keys() == ALERTS.keys()
    series, expected = {}, []
    for number, (alert, (firing, quiet)) in enumerate(CASES.items()):
        for each, parts in (("firing", firing), *((f"quiet{n}", parts) for n, parts in enumerate(quiet))):
            case = f"case{number}{each}"
            series |= {own(name, case): values for part in parts for name, values in part.items()}
        by = "service" if "service" in "".join(name for part in firing for name in part) else "instance"
        label = f"case{number}firing" if by == "service" else f"case{number}firinga"
        expected.append(
            {
                "expr": f'group by ({by}) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
                "eval_time": "30m",
                "exp_samples": [{"labels": f'{{{by}="{label}"}}', "value": 1}],
            }
        )
    values = [{"series": name, "values": found} for name, found in series.items()]
    tests = [{"interval": "1m", "input_series": values, "promql_expr_test": expected}]
    file = tmp_path / "alerts.test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": list(map(str, RULES)), "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", file)


def test_an_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    for name, alert in ALERTS.items():
        assert name.startswith("Graylb")
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["annotations"]["summary"]


def names(text: str) -> set[str]:
    """Metrics of graylb in an expression, histograms' parts by their family."""
    found = set(re.findall(r"(?<![:\w])graylb_[a-z0-9_]+(?![:\w])", text))
    return {name if name in BY_NAME else re.sub("_(bucket|count|sum)$", "", name) for name in found}


def expressions(within: Any) -> Iterator[str]:
    """Every query in a dashboard."""
    if isinstance(within, dict):
        for key, value in within.items():
            if key in ("expr", "query", "definition") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(within, list):
        for each in within:
            yield from expressions(each)


def test_what_rules_and_dashboard_name_is_counted() -> None:
    rules = set().union(*(names(rule["expr"]) for group in GROUPS for rule in group["rules"]))
    shown = set().union(*(names(each) for each in expressions(DASHBOARD)))
    assert len(rules) > 15
    assert len(shown) > 30
    assert rules | shown <= BY_NAME.keys(), (rules | shown) - BY_NAME.keys()
    recorded = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
    used = {name for alert in ALERTS.values() for name in re.findall(r"[a-z_]+:graylb_[a-z0-9_:]+", alert["expr"])}
    assert used <= recorded


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    """https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/"""
    assert DASHBOARD["schemaVersion"] >= 39
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    variables = [each["name"] for each in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "instance", "service", "version"]
    used = set(re.findall(r"\$(\w+)", " ".join(expressions(DASHBOARD))))
    assert used <= {*variables, "__rate_interval"}
