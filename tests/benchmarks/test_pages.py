"""The pure parts of the other benchmarks: what is read, what is judged, what the page says."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import report, stamp
from benchmarks.keep import PAGES, TITLES
from benchmarks.load import attribute, drip, overload, pace, slow, workers, wrk
from benchmarks.load.attribute import Frame, classify
from benchmarks.soak import verdict

KERNEL = "[kernel.kallsyms]"
STAMP = stamp.environment(())


def page(kind: str, result: dict[str, Any]) -> str:
    return report.page({kind: {"stamp": STAMP, **result}}, PAGES, TITLES)


# -- attribution --------------------------------------------------------------------------------------------------


def test_samples_are_read_with_symbols_that_hold_blanks() -> None:
    said = (
        "\tffffffff81 tcp_sendmsg+0x10 ([kernel.kallsyms])\n"
        "\t    7f0011 operator new(unsigned long) (/usr/lib/libx.so)\n\n"
        "\t    7f0012 [unknown] (/usr/lib/libc.so.6)\n"
    )
    assert list(attribute.samples(said)) == [
        [Frame("tcp_sendmsg", KERNEL), Frame("operator new(unsigned long)", "/usr/lib/libx.so")],
        [Frame("[unknown]", "/usr/lib/libc.so.6")],
    ]


@pytest.mark.parametrize(
    ("chain", "row"),
    [
        ([("memcpy", KERNEL), ("__x64_sys_sendto", KERNEL)], ("kernel", "send")),
        (
            [("tcp_v4_rcv", KERNEL), ("net_rx_action", KERNEL), ("__x64_sys_sendto", KERNEL)],
            ("kernel", attribute.DELIVERY),
        ),
        ([("tcp_recvmsg", KERNEL), ("__x64_sys_recvfrom", KERNEL)], ("kernel", "receive")),
        ([("ep_poll", KERNEL), ("__x64_sys_epoll_wait", KERNEL)], ("kernel", "wait for events")),
        ([("x", KERNEL), ("__x64_sys_close", KERNEL)], ("kernel", "other system calls")),
        ([("asm_sysvec_apic_timer_interrupt", KERNEL)], ("kernel", "interrupts and entry")),
        ([("__pyx_f_6graylb_6_http1__scan_fields", "/x/graylb/_http1.cpython-311.so")], ("user", "parse heads")),
        ([("__pyx_f_6graylb_6_http1_write_request", "/x/graylb/_http1.cpython-311.so")], ("user", "write heads")),
        ([("f", "/x/graylb/_gate.cpython-311.so")], ("user", "second parser")),
        ([("f", "/x/httptools/parser/parser.cpython-311.so")], ("user", "second parser")),
        ([("f", "/x/uvloop/loop.cpython-311.so")], ("user", "uvloop")),
        ([("f", "/x/graylb/_engine.cpython-311.so")], ("user", "exchanges and relay")),
        ([("f", "/usr/lib/libpython3.11.so.1.0")], ("user", "Python")),
        ([("f", "/home/uvloop/bin/other")], ("user", "other")),
    ],
)
def test_a_sample_has_one_row(chain: list[tuple[str, str]], row: tuple[str, str]) -> None:
    assert classify([Frame(*each) for each in chain]) == row


def test_system_calls_are_counted_for_each_request() -> None:
    said = "20100,,syscalls:sys_enter_sendto,200,100.00,,\n<not counted>,,syscalls:sys_enter_read,0,0.00,,\n"
    said += "12,,syscalls:sys_enter_close,200,100.00,,\n"
    assert attribute.calls_per_request(said, 10_000) == {"sendto": 2.01}


def test_the_attribution_adds_up() -> None:
    runs = [
        {"where": "kernel", "row": "send", "us": 8.0, "samples": 80},
        {"where": "user", "row": "parse heads", "us": 2.0, "samples": 20},
    ]
    settings = {"seconds": 1, "cpu_us": 10.0, "samples": 100, "case": "128 B"}
    text = page("attribute", {"settings": settings, "runs": runs, "calls": {"read": 0.5, "sendto": 2.0}})
    assert "| **kernel** | **8.00** | **80%** |\n| send | 8.00 | 80.0% |" in text
    assert "| sendto | 2.00 |\n| read | 0.50 |" in text


# -- constant rate ------------------------------------------------------------------------------------------------


def pace_runs(**p99: tuple[float, float]) -> list[dict[str, Any]]:
    """peer=(steady, both cases beside downloads) p99 in ms."""
    return [
        {"round": 1, "case": case, "peer": peer, "behind": 0.0}
        | {"p50_us": 100.0, "p99_us": value * 1000, "p999_us": value * 2000}
        for peer, values in p99.items()
        for case, value in zip(("steady", *pace.BESIDE), (*values, values[1]), strict=True)
    ]


def test_latency_laws_are_judged() -> None:
    names, others = ["graylb", "nginx", "haproxy"], {"nginx": (2.0, 50.0), "haproxy": (3.0, 9.0)}
    for ours, said in (((1.0, 9.0), "holds"), ((2.1, 11.0), "**broken**")):
        assert [row[-1] for row in pace.laws(pace_runs(graylb=ours, **others), names)] == [said] * 5


def test_a_proxy_that_cannot_keep_up_has_no_latency() -> None:
    runs = pace_runs(graylb=(1.0, 9.0), nginx=(2.0, 50.0), haproxy=(3.0, 9.0), envoy=(4000.0, 1.0))
    runs = [run for run in runs if run["peer"] != "envoy" or run["case"] not in pace.BESIDE]
    next(run for run in runs if run["peer"] == "envoy")["behind"] = 0.2
    next(run for run in runs if run["peer"] == "haproxy")["tcp_timeouts"] = 1
    settings = {"rounds": 1, "seconds": 2, "peers": ["graylb", "nginx", "haproxy", "envoy"], "peak": 10.0, "rate": 7.0}
    text = page("pace", {"settings": settings, "runs": runs})
    assert "waited 200 ms or more for some of them: haproxy in round 1 (steady)\n" in text
    assert "| Envoy | does not keep up | – | – | – |" in text
    assert "| graylb | 0.10 | 1.00 | 2.00 | 1.00 |" in text
    assert text.count("Envoy |") == 1


# -- workers, bodies, idle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("two", "spread", "verdicts"), [(10.9, [250, 262], 2), (11.2, [250, 262], 1), (10.9, [200, 312], 1)]
)
def test_two_workers_are_judged(two: float, spread: list[int], verdicts: int) -> None:
    costs = {"one": 10.0, "two": 19.0, "two-twice": two}
    runs = [{"round": 1, "case": "steady", "peer": step, "cpu_us": cpu} for step, cpu in costs.items()]
    settings = {"rounds": 1, "seconds": 1, "rate": 1000.0, "connections": sum(spread)}
    text = page("workers", {"settings": settings, "runs": runs, "spreads": [[256, 256], spread]})
    assert text.count("holds") == verdicts
    assert workers.least_share([[256, 256], spread]) == min(spread) / sum(spread)


def test_bodies_and_idle_connections_stand_in_the_page() -> None:
    runs = [
        {"round": 1, "case": "down-1g", "peer": peer, "mib_s": 1000.0 * speed, "cpu_us_mib": 500.0}
        for peer, speed in (("graylb", 2), ("nginx", 1))
    ]
    text = page("bodies", {"settings": {"rounds": 1, "peers": ["graylb", "nginx"], "cases": ["down-1g"]}, "runs": runs})
    assert "| 1 GiB down | 2,000 | 1,000 |" in text
    assert "| 1 GiB down | **2.00** (2.00–2.00) |" in text
    idle = [{"peer": "graylb", "each": 300.0}, {"peer": "haproxy", "each": 3000.0}]
    text = page("idle", {"settings": {"connections": 10_000, "peers": ["graylb", "haproxy"]}, "runs": idle})
    assert "| graylb | 300 | ≤ 2,048 | holds |" in text
    assert "| HAProxy | 3,000 |  |  |" in text


@pytest.mark.parametrize(("goodput", "refused_ms", "holds"), [(1800.0, 20.0, 8), (1799.0, 20.0, 4), (1990.0, 51.0, 4)])
def test_overload_is_judged(goodput: float, refused_ms: float, holds: int) -> None:
    more = {"peer": "graylb", "peak": 2000.0, "p99_us": 40_000.0, "offered": 18_000, "refused": 12_000, "late": 9}
    runs = [
        {"round": 1, "case": case, "goodput": goodput, "refused_p99_us": refused_ms * 1000, **more}
        for case in overload.CASES
    ]
    settings = {"rounds": 1, "seconds": 3, "cases": list(overload.CASES), "capacity": 2000.0}
    text = page("overload", {"settings": settings, "runs": runs})
    assert text.count("holds") == holds
    assert f"| rate | 2,000 | {goodput:,.0f} | 40.0 | {refused_ms:.1f} | 66.7% | 0.1% |" in text


@pytest.mark.parametrize(
    ("crowded", "longest", "closed", "holds"), [(3.9, 10.1, 5, 4), (4.1, 10.1, 5, 1), (3.9, 14.9, 4, 3)]
)
def test_slow_clients_are_judged(crowded: float, longest: float, closed: int, holds: int) -> None:
    runs: list[dict[str, Any]] = [
        {"round": 1, "case": case, "peer": peer, "p99_us": 2000.0 if case == "nobody" else crowded * 1000}
        | ({} if case == "nobody" else {"crowd": 5, "closed": closed, "longest": longest})
        for peer in ("graylb", "nginx")
        for case in ("nobody", *slow.CROWDS)
    ]
    settings = {"rounds": 1, "seconds": 2, "peers": ["graylb", "nginx"], "crowds": slow.CROWDS}
    text = page("slow", {"settings": settings, "runs": runs})
    assert text.count("holds") == holds
    assert f"| nginx | 5,000 slow heads | {crowded:.2f} | {closed} | {longest:.1f} |" in text


@pytest.mark.parametrize("kind", drip.START)
def test_a_crowd_is_slow_and_counts_who_is_shut_out(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        crowd = drip.Crowd(kind, server.getsockname()[1], 3)
        taken = [server.accept()[0] for _ in range(3)]
        for each in taken:
            assert each.recv(4096).startswith(drip.START[kind])
        crowd.run(0.0)
        assert (len(crowd.clients), crowd.lives) == (3, [])
        taken[0].close()
        while len(crowd.clients) == 3:
            crowd.run(0.4)
        assert len(crowd.lives) == 1
        for each in taken[1:]:
            each.close()
        while crowd.clients:
            crowd.run(0.4)
        assert len(crowd.lives) == 3


# -- soak ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1e3), min_size=2, max_size=20, unique_by=lambda x: round(x, 3)),
    st.floats(-10, 10),
    st.floats(-1e3, 1e3),
)
def test_the_slope_of_a_line_is_its_slope(xs: list[float], rise: float, start: float) -> None:
    assert verdict.slope([(x, start + rise * x) for x in xs]) == pytest.approx(rise, abs=1e-3)


def test_no_slope_without_two_points() -> None:
    assert verdict.slope([]) == verdict.slope([(1.0, 5.0)]) == 0.0


def soaked(growth: float, count: int = 20, wander: int = 0, last: int = 2_000_000) -> dict[str, Any]:
    """Samples that start low, as allocators fill, and then grow by `growth` MB for each million."""
    step = last / count
    samples = [
        {
            "requests": int(step * (each + 1)),
            "rss": 5e7 if each < 3 else 9e7 + growth * step * each,
            "descriptors": 30 + (wander if each % 2 else 0) + each,
            "pooled": each,
        }
        for each in range(count)
    ]
    return {"samples": samples, "unexpected": []}


@pytest.mark.parametrize(
    ("result", "holds"),
    [
        (soaked(0.5), True),
        (soaked(1.5), False),
        (soaked(1.5, last=100_000), True),  # too few requests to judge
        (soaked(0.0, wander=3), False),
        (soaked(0.0) | {"unexpected": ["not HTTP: b''"]}, False),
        (soaked(0.0) | {"tunnels": {"opened": 9, "cut": 0, "changes": 5, "requests": 9, "failed": 0}}, True),
        (soaked(0.0) | {"tunnels": {"opened": 9, "cut": 1, "changes": 5, "requests": 9, "failed": 0}}, False),
        ({"tunnels": {"opened": 9, "cut": 0, "changes": 5, "requests": 9, "failed": 1}}, False),
    ],
)
def test_a_soak_is_judged(result: dict[str, Any], holds: bool) -> None:
    assert verdict.held(result) == holds
    assert ("**broken**" in page("soak", result)) == (not holds)


def test_wrk_failures_are_counted_where_a_run_goes_on() -> None:
    line = '{"requests":5,"errors":{"connect":0,"read":2,"write":0,"status":1,"timeout":0}}\n'
    assert wrk.count(f"Running\n{line}", "x") == (5, 3)
