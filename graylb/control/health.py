"""Active health checks: the control process asks each instance, for all workers, and tells them which ones are ill.

An instance is well until it is found ill: by a failure of its first check, or by as many in a row as the service says.
What changes is told at once; what is known of an instance outlives tables, as long as one names it and its check is the
same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from graylb.control.logs import log
from graylb.control.probes import Probe, probe_for
from graylb.model.snapshot import Check, Service, Snapshot

JITTER: Final = 0.1
"""Of the interval, both ways: checks of many instances drift apart."""
SPREAD: Final = 0.5
"""Seconds, or the interval if that is less, over which first checks are spread."""

Key = tuple[str, str]
"""Service and address."""


@dataclass
class Opinion:
    """What the checks of one instance have come to."""

    check: Check
    down: bool = False
    checks: int = 0
    run: int = 0  # results in a row that speak against `down`'s present value
    why: str = ""  # the last failure

    def take(self, failure: str) -> bool:
        """One more result; empty: it was well. Whether the opinion changes."""
        first = self.checks == 0
        self.checks += 1
        if failure:
            self.why = failure
        if bool(failure) == self.down:
            self.run = 0
            return False
        self.run += 1
        needed = self.check.healthy if self.down else self.check.unhealthy
        if self.run < needed and not (first and failure):
            return False
        self.down, self.run = not self.down, 0
        return True


@dataclass
class _Asked:
    opinion: Opinion
    task: asyncio.Task[None]
    probe: Probe = field(repr=False)


class Health:
    """Checks the instances of the snapshot that `follow` was given last.

    changed: called when one falls ill or gets well.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._asked: dict[Key, _Asked] = {}

    def follow(self, snapshot: Snapshot) -> None:
        """Begins and ends checks as this snapshot's services want them."""
        wanted = {(service.name, address): service for service in snapshot.services for address in _addresses(service)}
        gone = [key for key, asked in self._asked.items() if not self._stays(key, asked, wanted)]
        ill = [self._drop(key) for key in gone]
        for (name, address), service in wanted.items():
            if (name, address) not in self._asked:
                self._begin((name, address), service)
        if any(ill):
            self._changed()

    def _stays(self, key: Key, asked: _Asked, wanted: dict[Key, Service]) -> bool:
        service = wanted.get(key)
        return service is not None and service.health.check == asked.opinion.check and asked.probe.serves(service)

    def _drop(self, key: Key) -> bool:
        asked = self._asked.pop(key)
        asked.task.cancel()
        return asked.opinion.down

    def _begin(self, key: Key, service: Service) -> None:
        check = service.health.check
        assert check is not None
        opinion, probe = Opinion(check), probe_for(service, check, key[1])
        task = asyncio.get_running_loop().create_task(self._keep_asking(key, opinion, probe))
        self._asked[key] = _Asked(opinion, task, probe)

    async def _keep_asking(self, key: Key, opinion: Opinion, probe: Probe) -> None:
        check = opinion.check
        try:
            await asyncio.sleep(random.uniform(0, min(SPREAD, check.interval)))
            while True:
                if opinion.take(await ask(probe, check.timeout)):
                    self._tell(key, opinion)
                await asyncio.sleep(check.interval * random.uniform(1 - JITTER, 1 + JITTER))
        finally:
            await probe.close()

    def _tell(self, key: Key, opinion: Opinion) -> None:
        if opinion.down:
            log.warning("health: instance %s of %s is ill: %s", key[1], key[0], opinion.why)
        else:
            log.info("health: instance %s of %s is well again", key[1], key[0])
        self._changed()

    def down(self) -> list[Key]:
        """The instances that are ill, in order."""
        return sorted(key for key, asked in self._asked.items() if asked.opinion.down)

    def of(self, service: str) -> dict[str, dict[str, Any]]:
        """By address: whether it is ill, how often it was asked, and the last failure."""
        return {
            address: {
                "well": not asked.opinion.down,
                "checks": asked.opinion.checks,
                "last_failure": asked.opinion.why or None,
            }
            for (name, address), asked in self._asked.items()
            if name == service
        }

    async def close(self) -> None:
        """No more checks."""
        tasks = [asked.task for asked in self._asked.values()]
        for key in list(self._asked):
            self._drop(key)
        await asyncio.gather(*tasks, return_exceptions=True)


def _addresses(service: Service) -> Iterable[str]:
    if service.health.check is None:
        return ()
    return {instance.address for instance in service.instances if instance.weight > 0}


async def ask(probe: Probe, seconds: float) -> str:
    """The failure in words; empty: it is well."""
    try:
        async with asyncio.timeout(seconds):
            return await probe.ask()
    except TimeoutError:
        return f"no answer within {seconds:g} s"
