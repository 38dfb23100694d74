"""The one table of metrics: names, kinds, labels, what they tell. docs/metrics.md is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram", "info"]
Source = Literal["worker", "control"]

BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds: `le` of every histogram. The slab has 16 buckets to each doubling; a bound is met within 3.2 %."""
CODES: Final = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
GRPC_FAILURES: Final = ("Unknown", "DeadlineExceeded", "Unimplemented", "Internal", "Unavailable", "DataLoss")
"""Of the server, by OpenTelemetry's semantic conventions for gRPC; `_grpc.is_failure` says the same."""
SHOWN_AT_ZERO: Final = frozenset(("2xx", "5xx", "OK", *GRPC_FAILURES))
"""Codes that a series tells of from its first request on, so that rates see the first error."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. source: who counts; what workers count is summed over them, and survives a worker that is killed."""

    name: str  # of a counter with its `_total`
    kind: Kind
    labels: tuple[str, ...]
    text: str
    source: Source = "worker"


_OF = ("service", "version")

METRICS: Final = (
    # ---- requests
    Metric(
        "graylb_requests_total",
        "counter",
        (*_OF, "rule", "code"),
        "Requests, each counted once, when it ends. version: of the instance that answered or was to; rule: the "
        "name of the rule that decided, `(split)` or `(stable)`; all three empty where no route was found. code: "
        "the class of the status that the client was sent, `none` where it went away before.",
    ),
    Metric(
        "graylb_route_requests_total",
        "counter",
        ("service", "route", "code"),
        "The same requests by route.",
    ),
    Metric(
        "graylb_grpc_requests_total",
        "counter",
        (*_OF, "rule", "grpc_code"),
        "Of these the calls of gRPC over HTTP/2 that were answered as such, with 200 and a grpc-status, or not "
        "at all. grpc_code: as grpc_server_handled_total names them, `OK`, `Unavailable`; `Canceled` where the client "
        "went away before, `Internal` where the instance cut its answer off, `Unknown` where it ended without a "
        "status. A failure of the server is one of " + ", ".join(f"`{code}`" for code in GRPC_FAILURES) + ".",
    ),
    Metric(
        "graylb_route_grpc_requests_total",
        "counter",
        ("service", "route", "grpc_code"),
        "The same calls by route.",
    ),
    Metric(
        "graylb_request_duration_seconds",
        "histogram",
        _OF,
        "From the complete head of a request to the end of its answer. Answers that graylb gave in the place of a"
        " chosen instance, such as 504, are among them; WebSockets are not.",
    ),
    Metric(
        "graylb_time_to_first_byte_seconds",
        "histogram",
        _OF,
        "From the complete head of a request to the head of the instance's answer.",
    ),
    Metric(
        "graylb_request_body_bytes_total",
        "counter",
        _OF,
        "Bytes of requests' bodies, and of tunnels towards instances.",
    ),
    Metric(
        "graylb_response_body_bytes_total",
        "counter",
        _OF,
        "Bytes of answers' bodies, and of tunnels towards clients.",
    ),
    Metric(
        "graylb_errors_total",
        "counter",
        (*_OF, "reason"),
        "Requests that graylb itself answered with an error. reason: as in the header x-graylb-error; "
        "docs/reference has the list.",
    ),
    Metric(
        "graylb_requests_in_flight",
        "gauge",
        _OF,
        "Requests that an instance has and has not answered yet.",
    ),
    Metric(
        "graylb_requests_lost_total",
        "counter",
        (),
        "Requests that were under way when their worker was killed; they are in no other figure.",
    ),
    Metric(
        "graylb_requests_aborted_total",
        "counter",
        (),
        "Exchanges that were cut short: the client went away, or the instance did in the middle of its answer.",
    ),
    # ---- decisions
    Metric(
        "graylb_decisions_total",
        "counter",
        (*_OF, "rule", "by"),
        "Decisions, by the version that was wanted. by: `exact` for a rule or a version, `slot` for a split by a "
        "sticky key, `draw` for a split without one.",
    ),
    Metric(
        "graylb_fallbacks_total",
        "counter",
        ("service", "wanted", "got"),
        "Requests that another version served, because the wanted one had no instance that was well. got is empty"
        " where no other one had any either.",
    ),
    # ---- instances
    Metric(
        "graylb_upstream_attempts_total",
        "counter",
        _OF,
        "Requests sent to instances, repeated ones and copies included.",
    ),
    Metric(
        "graylb_upstream_failures_total",
        "counter",
        _OF,
        "Attempts that failed without an answer.",
    ),
    Metric(
        "graylb_upstream_connects_total",
        "counter",
        _OF,
        "Connections opened to instances.",
    ),
    Metric(
        "graylb_upstream_connections",
        "gauge",
        (*_OF, "state"),
        "Connections to instances. state: `idle` or `busy`.",
    ),
    Metric(
        "graylb_upstream_requests_waiting",
        "gauge",
        _OF,
        "Requests that wait for a connection to an instance.",
    ),
    Metric(
        "graylb_retries_total",
        "counter",
        (*_OF, "reason"),
        "Attempts that failed and that another one followed. reason: `unseen`, `refused`, `stale`, `reset`, `timeout`, "
        "`invalid`, `status` or `grpc-status`.",
    ),
    Metric(
        "graylb_hedges_total",
        "counter",
        (*_OF, "outcome"),
        "Second attempts at instances of this version, made because the answer of the first was late. outcome: `won` "
        "(the request went on with it), `lost` (the first answered), `failed`, or `cancelled` with the request.",
    ),
    Metric(
        "graylb_retry_budget_exhausted_total",
        "counter",
        ("service",),
        "Attempts, after a failed or beside a late one, that were not made because the service's budget of retries was "
        "used up.",
    ),
    Metric(
        "graylb_limited_total",
        "counter",
        (*_OF, "limit"),
        "Requests that a limit turned away. limit: `requests`, `pending`, `connections`, `adaptive` or `rate NAME`; "
        "version: empty where it is the service's.",
    ),
    Metric(
        "graylb_adaptive_concurrency_limit",
        "gauge",
        _OF,
        "Requests at once that `limits.adaptive` allows just now, summed over the workers; version: empty where it is "
        "the service's. 0: it has none any more.",
    ),
    Metric(
        "graylb_ejections_total",
        "counter",
        (*_OF, "reason"),
        "Instances that were left alone for a time because they answered badly, by each worker for itself.",
    ),
    Metric("graylb_ejected_instances", "gauge", _OF, "Instances that are ejected now, summed over the workers."),
    Metric(
        "graylb_panic_picks_total",
        "counter",
        ("service",),
        "Requests that went to instances that are out, because too few others are left.",
    ),
    Metric(
        "graylb_mirrored_requests_total",
        "counter",
        (*_OF, "outcome"),
        "Copies of requests, which are in no other figure of requests. version: of the copy.",
    ),
    Metric(
        "graylb_faults_injected_total",
        "counter",
        ("service", "rule", "kind"),
        "Faults on purpose. kind: `delay` or `abort`; rule is empty for a fault of the whole service.",
    ),
    # ---- clients
    Metric(
        "graylb_connections",
        "gauge",
        (),
        "Open connections of clients.",
    ),
    Metric(
        "graylb_connections_accepted_total",
        "counter",
        (),
        "Connections of clients.",
    ),
    Metric(
        "graylb_connections_shed_total",
        "counter",
        (),
        "Idle connections of clients that were closed because there were too many, or no descriptors left.",
    ),
    Metric(
        "graylb_tunnels",
        "gauge",
        (),
        "Open WebSockets.",
    ),
    Metric(
        "graylb_tunnels_cut_total",
        "counter",
        (),
        "WebSockets that were ended because their version lost its traffic.",
    ),
    Metric(
        "graylb_h2_sessions",
        "gauge",
        (),
        "Open HTTP/2 connections, of clients and to instances.",
    ),
    Metric(
        "graylb_h2_streams",
        "gauge",
        (),
        "Open HTTP/2 streams on them.",
    ),
    Metric(
        "graylb_h2_sessions_cut_total",
        "counter",
        (),
        "HTTP/2 connections that were ended for an error of the other side.",
    ),
    Metric(
        "graylb_tls_handshakes_total",
        "counter",
        ("result",),
        "TLS handshakes. result: `full` or `resumed`, of clients and with instances; `failed`, of clients.",
    ),
    Metric(
        "graylb_parser_disagreements_total",
        "counter",
        (),
        "Requests refused because two parsers did not read them alike; see docs/security.",
    ),
    Metric(
        "graylb_access_log_lines_total",
        "counter",
        ("result",),
        "Lines of the access log. result: `written`, or `dropped` because the writer was too slow.",
    ),
    Metric(
        "graylb_access_log_write_failures_total",
        "counter",
        (),
        "Lines of the access log that its file did not take: a full disk, say.",
        "control",
    ),
    Metric(
        "graylb_worker_spans_total",
        "counter",
        ("result",),
        "Spans of traces at the workers. result: `written`, or `dropped` because they were too many at once.",
    ),
    Metric(
        "graylb_spans_total",
        "counter",
        ("result",),
        "Spans of traces. result: `exported`, `dropped` because too many waited, or `failed` at the collector.",
        "control",
    ),
    # ---- configuration
    Metric(
        "graylb_config_revision",
        "gauge",
        (),
        "The revision in force.",
        "control",
    ),
    Metric(
        "graylb_config_last_change_timestamp_seconds",
        "gauge",
        (),
        "When it was applied.",
        "control",
    ),
    Metric(
        "graylb_config_refused",
        "gauge",
        (),
        "1 where a newer configuration is refused and the last good one is served; `graylb status` says why.",
        "control",
    ),
    Metric(
        "graylb_config_refused_keys",
        "gauge",
        (),
        "Keys of etcd whose value is refused.",
        "control",
    ),
    Metric(
        "graylb_config_source_connected",
        "gauge",
        ("source",),
        "Whether etcd, or another registry, can be reached: 1 or 0.",
        "control",
    ),
    Metric(
        "graylb_config_source_lag_seconds",
        "gauge",
        ("source",),
        "For how long the oldest change that the source has told and that is not in force yet has waited.",
        "control",
    ),
    Metric(
        "graylb_split_ratio",
        "gauge",
        _OF,
        "What a service's split wants a version to get, of 1; compare it with the rates of graylb_requests_total "
        "of rule `(split)`.",
        "control",
    ),
    Metric(
        "graylb_stable_info",
        "gauge",
        _OF,
        "1 for the stable version of each service.",
        "control",
    ),
    Metric(
        "graylb_instances",
        "gauge",
        (*_OF, "state"),
        "Instances in the configuration that have a weight. state: `well`, or `ill` where health checks say so.",
        "control",
    ),
    # ---- processes
    Metric(
        "graylb_build_info",
        "gauge",
        ("version", "python"),
        "Always 1.",
        "control",
    ),
    Metric(
        "graylb_worker_up",
        "gauge",
        ("worker",),
        "Whether a worker serves: 1 or 0.",
        "control",
    ),
    Metric(
        "graylb_worker_revision",
        "gauge",
        ("worker",),
        "The revision that a worker serves.",
        "control",
    ),
    Metric(
        "graylb_worker_restarts_total",
        "counter",
        ("worker",),
        "How often a worker died and was started again.",
        "control",
    ),
    Metric(
        "graylb_alarms_total",
        "counter",
        ("alarm",),
        "What went wrong and was lived through. alarm: `worker_respawns`, `worker_hung`, `store_errors`, "
        "`descriptors_exhausted`, `control_stalls`, `control_errors` or `clock_jumps`.",
        "control",
    ),
    Metric(
        "graylb_process_cpu_seconds_total",
        "counter",
        ("process",),
        "User and system time. process: `control`, or `worker-` and its number; of a worker that was started "
        "again, the present one's.",
        "control",
    ),
    Metric(
        "graylb_process_resident_memory_bytes",
        "gauge",
        ("process",),
        "Resident memory.",
        "control",
    ),
    Metric(
        "graylb_process_open_fds",
        "gauge",
        ("process",),
        "Open descriptors.",
        "control",
    ),
    Metric(
        "graylb_process_max_fds",
        "gauge",
        ("process",),
        "The limit on them.",
        "control",
    ),
    Metric(
        "graylb_process_start_time_seconds",
        "gauge",
        ("process",),
        "When it was started.",
        "control",
    ),
    # ---- the metrics themselves
    Metric(
        "graylb_metrics_memory_bytes",
        "gauge",
        (),
        "Written to in the workers' slabs, of 64 MiB each.",
        "control",
    ),
    Metric(
        "graylb_metrics_series_refused_total",
        "counter",
        (),
        "Series that found no room of their own and are counted together in one with `(other)` for labels.",
        "control",
    ),
)
BY_NAME: Final = {metric.name: metric for metric in METRICS}


def page() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` of the admin API tells them in Prometheus's text format, or as OpenMetrics where `Accept` asks",
        "for that. [observability.md](observability.md) says how to scrape.",
        "This page is made from the table in `graylb/observe/metrics.py`; a test says that it is current.",
        "",
        "What workers count is summed over them, survives a worker that dies, and begins anew with a start or a roll",
        "of graylb. The bounds (`le`) of histograms are, in seconds: "
        + ", ".join(f"{bound:g}" for bound in BOUNDS[: len(BOUNDS) // 2])
        + ",",
        ", ".join(f"{bound:g}" for bound in BOUNDS[len(BOUNDS) // 2 :]) + ".",
        "",
        "| metric | kind | labels | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels) or "–"
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.text} |")
    return "\n".join(lines) + "\n"
