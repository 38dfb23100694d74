"""Background load for tests that change things under it: every answer is counted, every failure kept."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType

from tests.integration.client import Client, Response
from tests.integration.proxies import Proxy, until


class Load:
    """Threads that ask over keep-alive connections until the block ends; sticky users by `x-user-id`.

    A connection that graylb closes without having said so is a failure, like any status but 200. Threads pause a little
    between requests, for they share the interpreter with the test.
    keep_alive: else each request has a connection of its own. address: instead of the proxy's first listener.
    """

    def __init__(
        self,
        proxy: Proxy,
        threads: int = 2,
        body: bytes | None = None,
        pause: float = 0.005,
        *,
        keep_alive: bool = True,
        address: str = "",
    ) -> None:
        self.body, self.pause, self.keep_alive = body, pause, keep_alive
        self.address = address or proxy.address
        self.failures: list[str] = []
        self.versions: Counter[str | None] = Counter()
        self.revisions: Counter[str | None] = Counter()
        self.done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(name,), daemon=True) for name in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_more(20)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.done.set()
        for thread in self._threads:
            thread.join()

    @property
    def count(self) -> int:
        with self._lock:
            return self.versions.total()

    def wait_more(self, answers: int) -> None:
        """Until that many further answers have come."""
        goal = self.count + answers
        until(lambda: self.failures or self.count >= goal, f"{answers} further answers")

    def check(self) -> None:
        assert not self.failures, f"{len(self.failures)} failed: {self.failures[:5]}"
        assert self.count > 0

    def _work(self, name: int) -> None:
        client = Client(self.address)
        turn = 0
        while not self.done.wait(self.pause):
            turn += 1
            try:
                answer = self._ask(client, name, turn)
                self._note(answer)
                if answer.get("connection") == "close":
                    client.close()
                    client = Client(self.address)
                elif client.ended:
                    raise AssertionError("the connection was closed unasked")
            except Exception as error:
                self.failures.append(repr(error))
                client.close()
                client = Client(self.address)
        client.close()

    def _ask(self, client: Client, name: int, turn: int) -> Response:
        method = "GET" if self.body is None else "POST"
        headers = [f"X-User-Id: {name}-{turn % 50}", *([] if self.keep_alive else ["Connection: close"])]
        return client.ask(method, f"/load/{name}/{turn}", headers=headers, body=self.body)

    def _note(self, answer: Response) -> None:
        if answer.status != 200:
            self.failures.append(f"{answer.status} {answer.error}")
        with self._lock:
            self.versions[answer.get("x-graylb-version")] += 1
            self.revisions[answer.get("x-graylb-revision")] += 1
