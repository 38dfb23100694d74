"""A real etcd of one benchmark, and puts to it without any code of graylb's between but the messages."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from graylb.control.etcd.messages import rpc, stubs  # isort: skip  before gRPC, which reads its environment once

import grpc
import orjson

from benchmarks import programs
from benchmarks.failure import BenchError
from benchmarks.load.peers import free_port

PATIENCE = 20.0
AT_ONCE = 100
"""Operations of one transaction; etcd takes 128 at most."""


class Etcd:
    """One node in a folder of its own. `kill` and `start` again bring the same data back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self._peer = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.kv = stubs.KVStub(self._channel)

    def start(self) -> None:
        """Returns when it answers. Raises BenchError when it does not."""
        url, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peer}"
        command = [
            programs.find("etcd"), "--name=bench", f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=bench={peer}", "--logger=zap",
            "--log-outputs=stderr", "--log-level=error", "--heartbeat-interval=10", "--election-timeout=100",
        ]  # fmt: skip
        with (self.folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(grpc.RpcError):
                self.kv.Range(rpc.RangeRequest(key=b"x"), timeout=1, wait_for_ready=True)
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "etcd.log").read_text(errors="replace")[-600:]
                raise BenchError(f"etcd did not start: {said}")

    def kill(self) -> None:
        """As by the kernel: no farewell."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"


class Keys:
    """Puts below `PREFIX/services/`; values as JSON."""

    def __init__(self, etcd: Etcd, prefix: str) -> None:
        self.etcd, self.prefix = etcd, prefix

    def begin(self, key: str, value: Any) -> Any:
        """A put on its way: a future whose result has the header with the revision."""
        return self.etcd.kv.Put.future(self._put(key, value), timeout=PATIENCE)

    def put(self, key: str, value: Any) -> int:
        """The revision."""
        return int(self.begin(key, value).result().header.revision)

    def put_all(self, values: Mapping[str, Any]) -> int:
        """In transactions of many; the revision of the last."""
        found, items = 0, list(values.items())
        for start in range(0, len(items), AT_ONCE):
            operations = [rpc.RequestOp(request_put=self._put(*each)) for each in items[start : start + AT_ONCE]]
            found = int(self.etcd.kv.Txn(rpc.TxnRequest(success=operations), timeout=PATIENCE).header.revision)
        return found

    def _put(self, key: str, value: Any) -> Any:
        return rpc.PutRequest(key=f"{self.prefix}/services/{key}".encode(), value=orjson.dumps(value))


@contextmanager
def etcd(folder: Path) -> Iterator[Etcd]:
    made = Etcd(folder)
    try:
        made.start()
        yield made
    finally:
        made.kill()
