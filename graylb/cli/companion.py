"""A command that is registered while it runs: started, waited for, kept in etcd, taken out before it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from graylb.register import Registration

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that end a service: the instance is taken out first."""
PASSED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that services give meanings of their own: passed on at once."""

LOOK_EVERY: Final = 0.1
PROBE_TIMEOUT: Final = 1.0
CHECK_EVERY: Final = 1.0
PATIENCE: Final = 3.0
"""Seconds until it is told that etcd does not have the instance yet."""


class NeverAnswered(Exception):
    """The command runs, but its port does not answer."""


@dataclass(frozen=True, slots=True)
class Manner:
    """Seconds. wait: for the port to answer; drain: between being taken out and being told to end.

    check: without an answer of the port, until the instance is taken out; 0: the port is not asked again.
    probe: the address that is asked.
    """

    probe: str
    wait: float = 30.0
    drain: float = 0.0
    check: float = 0.0


class Companion:
    """Use: `status = asyncio.run(Companion(…).run())`. say: for people who read the log."""

    def __init__(
        self,
        registration: Registration,
        command: Sequence[str],
        manner: Manner,
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._registration, self._command, self._manner = registration, command, manner
        self._environment, self._say = environment, say
        self._process: asyncio.subprocess.Process | None = None
        self._signal: signal.Signals | None = None
        self._told = asyncio.Event()

    async def run(self) -> int:
        """The command's exit status, 128 + n when signal n ended it. Raises OSError, NeverAnswered."""
        loop = asyncio.get_running_loop()
        for each in ENDING:
            loop.add_signal_handler(each, self._end, each)
        for each in PASSED:
            loop.add_signal_handler(each, self._pass, each)
        # In a group of its own: else a Ctrl-C would reach it before it is taken out. A terminal stops those who read
        # from it in the background.
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.DEVNULL if sys.stdin is not None and sys.stdin.isatty() else None,
            env=dict(self._environment),
            process_group=0,
        )
        exited = asyncio.create_task(self._process.wait())
        told = asyncio.create_task(self._told.wait())
        keeping = asyncio.create_task(self._keep())
        await asyncio.wait({exited, told, keeping}, return_when=asyncio.FIRST_COMPLETED)
        failure = keeping.exception() if keeping.done() else None
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        if not exited.done() and failure is None and self._manner.drain:
            await asyncio.wait({exited}, timeout=self._manner.drain)
        if not exited.done():
            self._pass(self._signal or signal.SIGTERM)
        status = await exited
        told.cancel()
        if failure is not None:
            raise failure
        return status if status >= 0 else 128 - status

    def _end(self, number: signal.Signals) -> None:
        """The second time, it is passed on without waiting for anything."""
        if self._signal is not None:
            self._pass(number)
        else:
            self._say(f"{number.name}: taking it out of etcd first")
        self._signal = number
        self._told.set()

    def _pass(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _keep(self) -> None:
        """Registered from the port's first answer until this is cancelled. Raises NeverAnswered."""
        try:
            async with asyncio.timeout(self._manner.wait):
                while not await answers(self._manner.probe):  # noqa: ASYNC110 nobody tells
                    await asyncio.sleep(LOOK_EVERY)
        except TimeoutError:
            raise NeverAnswered(
                f"{self._manner.probe} did not answer within {self._manner.wait:g} s; the command was ended"
            ) from None
        async with self._registration, asyncio.TaskGroup() as group:
            group.create_task(self._tell())
            if self._manner.check:
                group.create_task(self._check())

    async def _tell(self) -> None:
        registration, said = self._registration, ""
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    await registration.settled()
            except TimeoutError:
                problem = registration.problem or "no answer of etcd yet"
                if problem != said:
                    self._say(f"not registered: {problem}")
                said = problem
                continue
            self._say(f"registered as {registration.key}")
            said = ""
            await registration.lost()
            self._say("etcd is silent, or has lost the lease; registering again when it answers")

    async def _check(self) -> None:
        loop = asyncio.get_running_loop()
        offered, last = True, loop.time()
        while True:
            await asyncio.sleep(min(CHECK_EVERY, self._manner.check / 4))
            if await answers(self._manner.probe):
                last = loop.time()
                if not offered:
                    self._registration.offer()
                    self._say(f"{self._manner.probe} answers again: registered")
                offered = True
            elif offered and loop.time() - last >= self._manner.check:
                self._registration.withdraw()
                self._say(f"{self._manner.probe} has not answered for {self._manner.check:g} s: taken out")
                offered = False


async def answers(address: str) -> bool:
    """Whether somebody accepts connections on `host:port` or `unix:/path`."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            if address.startswith("unix:/"):
                _, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
            else:
                host, _, port = address.rpartition(":")
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
