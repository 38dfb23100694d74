"""What the control process itself knows and tells as metrics: configuration, sources, instances, processes."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from graylb import __version__
from graylb.control.health import Health
from graylb.control.plane import Plane
from graylb.model.snapshot import Snapshot

Sample = tuple[str, tuple[tuple[str, str], ...], float]
TICKS: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Configured:
    """What is to be told of a snapshot; made anew only when there is another one."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._told: list[Sample] = []
        self._instances: Counter[tuple[str, str]] = Counter()
        self._versions: dict[tuple[str, str], str] = {}  # service and address -> version

    def samples(self, snapshot: Snapshot, health: Health) -> Iterator[Sample]:
        if snapshot is not self._snapshot:
            self._look_at(snapshot)
        yield from self._told
        ill = Counter((key[0], self._versions[key]) for key in health.down() if key in self._versions)
        for (service, version), count in self._instances.items():
            of = (("service", service), ("version", version))
            yield "graylb_instances", (*of, ("state", "well")), count - ill[service, version]
            yield "graylb_instances", (*of, ("state", "ill")), ill[service, version]

    def _look_at(self, snapshot: Snapshot) -> None:
        told: list[Sample] = []
        instances, versions = Counter[tuple[str, str]](), {}
        for service in snapshot.services:
            if service.stable:
                told.append(("graylb_stable_info", (("service", service.name), ("version", service.stable)), 1.0))
            weights = dict(service.split.weights) if service.split is not None else {}
            whole = sum(weights.values())
            for version, weight in weights.items():
                told.append(("graylb_split_ratio", (("service", service.name), ("version", version)), weight / whole))
            for instance in service.instances:
                if instance.weight > 0:
                    instances[service.name, instance.version] += 1
                    versions[service.name, instance.address] = instance.version
        self._snapshot, self._told, self._instances, self._versions = snapshot, told, instances, versions


def of_configuration(plane: Plane) -> Iterator[Sample]:
    """Which revision, since when, what is refused, and how its sources fare. In the event loop only."""
    applied = plane.applied
    if applied is None:
        return
    yield "graylb_config_revision", (), applied.revision
    at = datetime.fromisoformat(plane.applied_at)
    yield "graylb_config_last_change_timestamp_seconds", (), at.timestamp()
    yield "graylb_config_refused", (), float(plane.refusal is not None)
    if plane.side is None:
        return
    etcd = plane.side.status()
    if etcd is not None:
        of = (("source", "etcd"),)
        yield "graylb_config_refused_keys", (), len(etcd["refused"])
        yield "graylb_config_source_connected", of, float(etcd["connected"])
        yield "graylb_config_source_lag_seconds", of, etcd["lag"]
    for registry in plane.side.registry_status():
        yield "graylb_config_source_connected", (("source", registry["name"]),), float(registry["connected"])


def of_workers(status: Mapping[str, Any]) -> Iterator[Sample]:
    """status: of `Supervisor.status`."""
    build = (("version", __version__), ("python", platform.python_version()))
    yield "graylb_build_info", build, 1
    for each in status["workers"]:
        of = (("worker", str(each["worker"])),)
        yield "graylb_worker_up", of, float(each["ready"])
        yield "graylb_worker_restarts_total", of, each["restarts"]
        if each["revision"] is not None:
            yield "graylb_worker_revision", of, each["revision"]
    for alarm, count in status["alarms"].items():
        yield "graylb_alarms_total", (("alarm", alarm),), count
    yield "graylb_access_log_write_failures_total", (), status["access_log"]["lines_dropped"]
    for result in ("exported", "dropped", "failed"):
        yield "graylb_spans_total", (("result", result),), status["tracing"][result]


def of_processes(status: Mapping[str, Any]) -> Iterator[Sample]:
    """From /proc, of the control process and of the workers that run. Takes as long as they have descriptors."""
    yield from of_process("control", status["pid"])
    for each in status["workers"]:
        if each["pid"] is not None:
            yield from of_process(f"worker-{each['worker']}", each["pid"])


def of_process(name: str, pid: int) -> Iterator[Sample]:
    """proc(5). Nothing of one that is gone."""
    of = (("process", name),)
    try:
        with open(f"/proc/{pid}/stat") as file:
            stat = file.read().rpartition(")")[2].split()
        with open(f"/proc/{pid}/statm") as file:
            resident = int(file.read().split()[1]) * PAGE
        with open("/proc/stat") as file:
            booted = next(int(line.split()[1]) for line in file if line.startswith("btime"))
        with open(f"/proc/{pid}/limits") as file:
            limit = next(line.split()[3] for line in file if line.startswith("Max open files"))
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, StopIteration):
        return
    yield "graylb_process_cpu_seconds_total", of, (int(stat[11]) + int(stat[12])) / TICKS
    yield "graylb_process_resident_memory_bytes", of, resident
    yield "graylb_process_open_fds", of, descriptors
    if limit.isdigit():
        yield "graylb_process_max_fds", of, int(limit)
    yield "graylb_process_start_time_seconds", of, booted + int(stat[19]) / TICKS
