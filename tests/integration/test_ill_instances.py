"""Instances that are known to be ill: who gets their requests, and what that never does to the shares of versions."""

from __future__ import annotations

import pytest

from graylb.model.snapshot import Health, Instance, Service
from tests.integration.engines import Origin, Rig, run, service, split
from tests.integration.tally import statuses


async def origins(rig: Rig, count: int) -> list[Origin]:
    return [await rig.origin() for _ in range(count)]


def down(rig: Rig, *ill: Origin) -> None:
    rig.engine.set_down([("up", origin.address) for origin in ill])


async def shares(rig: Rig, asked: list[Origin], count: int) -> list[int]:
    """How many of so many requests each origin gets; all are answered."""
    before = [len(origin.asks) for origin in asked]
    caller = await rig.caller()
    for _ in range(count):
        assert (await caller.ask()).status == 200
    return [len(origin.asks) - known for origin, known in zip(asked, before, strict=True)]


@pytest.mark.parametrize("policy", ["weighted", "least_request"])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_ill_instance_gets_nothing_and_its_version_keeps_its_share(policy: str, weighted: bool) -> None:
    async def test(rig: Rig) -> None:
        one, two, three, other = await origins(rig, 4)
        weights = (300, 100, 100) if weighted else (100, 100, 100)
        instances = [
            Instance(each.address, "v1", weight) for each, weight in zip((one, two, three), weights, strict=True)
        ]
        rig.swap(service(*instances, (other, "v2"), split=split(v1=60, v2=40), policy=policy))
        down(rig, two)
        found = await shares(rig, [one, two, three, other], 500)
        assert found[1] == 0
        assert abs(found[3] - 200) <= 2  # the shares of versions hold as ever
        if policy == "weighted":
            assert abs(found[0] / (found[0] + found[2]) - (0.75 if weighted else 0.5)) < 0.1
        down(rig)
        assert (await shares(rig, [one, two, three, other], 300))[1] > 0

    run(test)


@pytest.mark.parametrize(
    ("fallback", "wanted"), [("strict", (503, None)), ("stable", (200, "v1")), ("any", (200, "v1"))]
)
def test_a_version_whose_instances_are_all_ill_is_as_good_as_empty(fallback: str, wanted: tuple[int, str]) -> None:
    async def test(rig: Rig) -> None:
        one, two, three = await origins(rig, 3)
        both = ((one, "v1"), (two, "v2"), (three, "v2"))
        rig.swap(service(*both, split=split(v2=100), fallback=fallback, health=Health(panic=0)))
        down(rig, two, three)
        assert await statuses(rig, 20) == {wanted: 20}
        assert (two.asks, three.asks) == ([], [])
        counted = rig.engine.stats()["fallbacks"]
        got = [] if fallback == "strict" else ["v1"]
        assert [each["got"] for each in counted if each["got"] is not None] == got
        down(rig)
        assert await statuses(rig, 10) == {(200, "v2"): 10}

    run(test)


@pytest.mark.parametrize(("panic", "ill", "all_get"), [(50, 2, False), (50, 3, True), (0, 3, False), (80, 1, True)])
def test_below_the_panic_threshold_all_get_requests_again(panic: int, ill: int, all_get: bool) -> None:
    async def test(rig: Rig) -> None:
        four = await origins(rig, 4)
        rig.swap(service(*four, health=Health(panic=panic)))
        down(rig, *four[:ill])
        found = await shares(rig, four, 200)
        assert all(found[ill:])
        assert all(found[:ill]) if all_get else not any(found[:ill])

    run(test)


@pytest.mark.parametrize("panic", [0, 50])
def test_when_nobody_is_well_health_is_not_believed_unless_it_always_counts(panic: int) -> None:
    async def test(rig: Rig) -> None:
        one, two = await origins(rig, 2)
        rig.swap(service((one, "v1"), (two, "v2"), split=split(v1=50, v2=50), health=Health(panic=panic)))
        down(rig, one, two)
        found = await statuses(rig, 40)
        assert found == ({(200, "v1"): 20, (200, "v2"): 20} if panic else {(503, None): 40})

    run(test)


def test_what_is_ill_stays_ill_in_the_next_table_and_for_an_instance_that_comes_back() -> None:
    async def test(rig: Rig) -> None:
        one, two = await origins(rig, 2)
        rig.swap(service(one, two))
        down(rig, two)
        rig.swap(service(one, two, sticky=()))
        assert (await shares(rig, [one, two], 50))[1] == 0
        rig.swap(service(one))
        rig.swap(service(one, two))
        assert (await shares(rig, [one, two], 50))[1] == 0

    run(test)


def test_another_attempt_goes_to_an_instance_that_is_well() -> None:
    async def test(rig: Rig) -> None:
        well, ill = await origins(rig, 2)
        nobody = rig.refusing()
        rig.swap(service(well, ill, nobody, health=Health(panic=10)))
        down(rig, ill)
        assert await shares(rig, [well, ill], 100) == [100, 0]

    run(test)


def test_health_of_one_service_is_nothing_to_another_at_the_same_address() -> None:
    async def test(rig: Rig) -> None:
        (one,) = await origins(rig, 1)
        services: list[Service] = [service(one), service(one, name="other", health=Health(panic=0))]
        rig.swap(*services)
        rig.engine.set_down([("other", one.address)])
        assert (await rig.ask()).status == 200
        assert (await rig.ask(host="other")).status == 503

    run(test)
