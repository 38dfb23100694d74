"""The stamp, the page, the command line."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import __main__ as command
from benchmarks import programs, report, stamp
from benchmarks.failure import BenchError
from benchmarks.keep import PAGES, TITLES, keep
from benchmarks.load.cases import CASES, LAWS
from benchmarks.load.peers import KINDS
from benchmarks.load.run import participants
from benchmarks.micro import run as micro
from benchmarks.micro import snapshots
from benchmarks.micro.run import Operation


def page(kind: str, result: dict[str, Any], titles: dict[str, str] | None = None) -> str:
    return report.page({kind: result}, PAGES, titles or TITLES)


def load_result(**figures: list[float]) -> dict[str, Any]:
    """One case over as many rounds as there are figures. figures: peer=cpu_us by round."""
    runs = [
        {
            "round": number, "case": "get-128", "peer": peer, "rps": 1e6 / cpu, "cpu_us": cpu,
            "p50_us": 1000, "p99_us": 2000, "p999_us": 3000, "pss_kib": 2048, "rss_kib": 4096,
            "disturbance": 0.01,
        }
        for peer, values in figures.items()
        for number, cpu in enumerate(values, 1)
    ]  # fmt: skip
    settings = {
        "rounds": 3, "seconds": 1, "peers": list(figures), "cases": ["get-128"], "proxy_cores": [1], "load_cores": [0],
    }  # fmt: skip
    return {"kind": "load", "stamp": stamp.environment(()), "settings": settings, "runs": runs}


def test_the_stamp_says_what_it_was_measured_on() -> None:
    found = stamp.environment(("cc",))
    age = datetime.now(UTC) - datetime.fromisoformat(found["date"])
    assert 0 <= age.total_seconds() < 60
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", found["commit"])
    assert isinstance(found["dirty"], bool)
    assert found["kernel"]
    assert found["cpu"]
    assert found["cores"] >= 1
    assert re.match(r"\d+\.", found["versions"]["cc"])
    assert re.match(r"\d+\.", found["libraries"]["uvloop"])
    assert str(stamp.REPOSITORY) not in orjson.dumps(found).decode()


def test_outside_of_git_the_commit_is_unknown(tmp_path: Path) -> None:
    assert stamp.commit_of(tmp_path) == ("unknown", True)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("nginx version: nginx/1.22.1\n", "1.22.1"),
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "2.6.12-1+deb12u4"),
        ("wrk debian/4.1.0-3+b2 [epoll] Copyright", "4.1.0-3+b2"),
        ("cc (Debian 12.2.0-14) 12.2.0", "12.2.0-14"),
        ("envoy  version: 9e5580933739775e8bce/1.40.0/Clean/RELEASE/BoringSSL", "1.40.0"),
        ("v2.11.7 h1:yj0Y4fYZGPkSvibBJ1sTWE33xC0fxztVyXEW5iIdUT4=", "2.11.7"),
    ],
)
def test_versions_are_found_in_what_programs_say(text: str, version: str) -> None:
    assert programs.first_version(text, "x") == version


def test_a_program_without_a_version_is_refused() -> None:
    with pytest.raises(BenchError, match="no version"):
        programs.first_version("hello", "x")


def test_ratios_stand_in_the_page() -> None:
    text = page("load", load_result(graylb=[10.0, 12.0, 11.0], nginx=[20.0, 20.0, 22.0]), {"get-128": "small"})
    assert "| small | 11.0 | 20.0 |" in text
    assert "| small | **0.50** (0.50–0.60) |" in text
    assert "| small | 1,000 | 1,000 |" in text
    assert "PSS in MiB" in text
    assert "| small | 2.00 | 2.00 |" in text


def test_laws_of_the_load_are_judged() -> None:
    text = page("load", load_result(graylb=[10.0], nginx=[20.0], haproxy=[11.0]))
    assert "| graylb / nginx | **0.50** (0.50–0.50) | ≤ 0.80 | holds |" in text
    assert "| graylb / HAProxy | **0.91** (0.91–0.91) | ≤ 0.85 | **broken** |" in text


def test_many_rules_stand_among_the_laws_alone() -> None:
    result = load_result(**{"graylb": [10.0], "graylb-10k": [10.4]})
    result["settings"]["cases"] = ["users-128"]
    for run in result["runs"]:
        run["case"] = "users-128"
    text = page("load", result)
    assert (
        "| 128 B, 10,000 users in turn | graylb, many rules / graylb | **1.04** (1.04–1.04) | ≤ 1.05 | holds |" in text
    )
    assert text.count("10,000 users") == 1


def test_every_law_names_a_case_and_peers_that_meet_in_it() -> None:
    for law in LAWS:
        case = next(case for case in CASES if case.name == law.case)
        assert participants(case, [law.ours, law.other]) == [law.ours, law.other]


def test_missing_peers_are_named() -> None:
    result = load_result(graylb=[10.0])
    assert "not installed" not in page("load", result)
    result["settings"]["missing"] = ["envoy", "caddy"]
    assert "not installed, so not measured: Envoy, Caddy" in page("load", result)


def test_a_disturbed_run_says_so() -> None:
    result = load_result(graylb=[10.0, 11.0, 12.0])
    assert "disturbed" not in page("load", result)
    for run in result["runs"]:
        run["disturbance"] = 0.2
    assert "**disturbed**: others took 20% of the proxy's core" in page("load", result)


def test_a_proxy_that_a_case_leaves_out_is_a_dash() -> None:
    result = load_result(graylb=[10.0], floor=[])
    text = page("load", result, {"get-128": "small"})
    assert "| small | 10.0 | – |" in text
    assert "| small | – |" in text


def test_a_zero_never_reaches_the_page() -> None:
    with pytest.raises(BenchError, match="not a positive number"):
        page("load", load_result(graylb=[10.0, 0.5], nginx=[20.0, 20.0]) | {"runs": broken()})


def broken() -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = load_result(graylb=[10.0, 0.5], nginx=[20.0, 20.0])["runs"]
    runs[0]["cpu_us"] = 0.0
    return runs


def test_a_lost_or_doubled_round_never_reaches_the_page() -> None:
    with pytest.raises(BenchError, match="cannot be compared"):
        page("load", load_result(graylb=[10.0, 11.0], nginx=[20.0]))
    result = load_result(graylb=[10.0])
    with pytest.raises(BenchError, match="stands twice"):
        page("load", result | {"runs": result["runs"] * 2})


@pytest.mark.parametrize(("large", "verdict"), [(110.0, "holds"), (130.0, "**broken**")])
def test_growth_is_judged_by_its_law(large: float, verdict: str) -> None:
    law = {"small": "a", "large": "b", "below": 1.2}
    rows = [{"round": 1, "operation": "a", "ns": 100.0}, {"round": 1, "operation": "b", "ns": large}]
    settings = {"rounds": 1, "operations": ["a", "b"], "growth": [law]}
    text = page("micro", {"stamp": stamp.environment(()), "settings": settings, "runs": rows})
    assert f"| < 1.2 | {verdict} |" in text


def test_every_operation_runs_once_in_every_round() -> None:
    calls: list[tuple[str, int]] = []

    def operation(name: str) -> Operation:
        def time(n: int) -> float:
            calls.append((name, n))
            return 5.0

        return Operation(name, time, 100)

    rows = micro.measure([operation("a"), operation("b")], 3, lambda text: None)
    assert sorted((row["operation"], row["round"]) for row in rows) == [(o, r) for o in "ab" for r in (1, 2, 3)]
    assert calls[:2] == [("a", 10), ("b", 10)]
    assert all(n == 100 for _, n in calls[2:])


def test_all_operations_give_figures_over_real_tables() -> None:
    operations = micro.build(micro.GROUPS)
    names = [each.name for each in operations]
    assert len(set(names)) == len(names)
    for law in micro.LAWS:
        assert {law.small, law.large} <= set(names)
    for each in operations:
        assert each.time(3) > 0


def test_heads_are_heads() -> None:
    for user in (None, "u1"):
        head = snapshots.head(user)
        assert head.endswith(b"\r\n\r\n")
        assert head.count(b"\r\n\r\n") == 1
        assert (b"\r\nX-User-Id: u1\r\n" in head) == (user is not None)
    addresses = {snapshots.address(each) for each in range(100_000)}
    assert len(addresses) == 100_000


def test_an_operation_without_a_figure_is_refused() -> None:
    with pytest.raises(BenchError, match="a: the figure"):
        micro.measure([Operation("a", lambda n: 0.0, 10)], 1, lambda text: None)


def test_only_whole_runs_stand_as_the_projects_figures(tmp_path: Path) -> None:
    parse = command.parser().parse_args
    for more in ([], ["--rounds", "9"], ["--peers", ",".join(KINDS)]):
        assert command.whole(parse(["load", *more]), "load")
    for cut in (["--quick"], ["--rounds", "1"], ["--seconds", "1"], ["--only", "get-128"], ["--peers", "nginx"]):
        assert not command.whole(parse(["load", *cut]), "load")
    keep(tmp_path, "load", load_result(graylb=[10.0]), complete=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["partial-load.json", "partial.md"]
    keep(tmp_path, "load", load_result(graylb=[10.0]), complete=True)
    assert orjson.loads((tmp_path / "load.json").read_bytes())["kind"] == "load"
    assert "# Benchmark results" in (tmp_path / "latest.md").read_text()


@pytest.mark.parametrize(
    "wrong", [["--peers", "apache"], ["--peers", "nginx,nginx"], ["--rounds", "0"], ["--only", "x"]]
)
def test_wrong_usage_exits_with_status_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["load", *wrong])
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_only_chooses_cases_and_groups() -> None:
    parse = command.parser().parse_args
    plan = command.load_plan(parse(["--only", "get-1m", "--only", "pick"]), ["graylb"], 3)
    assert plan.chosen
    assert [case.name for case in plan.cases] == ["get-1m"]
    assert micro.wanted(["get-1m", "pick"]) == ["pick"]
    quick = command.load_plan(parse(["--quick"]), ["graylb"], 3)
    assert quick.cases
    assert all(case.quick for case in quick.cases)
