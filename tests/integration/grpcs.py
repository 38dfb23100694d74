"""gRPC servers and channels of tests, by grpcio, with bytes as messages. A server is one instance, on its own thread.

`python -m tests.integration.grpcs VERSION` is the same server as a process, to be killed; it prints its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

PATIENCE = 20.0
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
Metadata = tuple[tuple[str, str | bytes], ...]


def told(metadata: Any) -> Metadata:
    """What the caller, or the server, said by names that are not the transport's own."""
    return tuple((key, value) for key, value in metadata or () if key.startswith("x-"))


@dataclass
class Call:
    """One call as its server saw it. ended: "ok", "cancelled" or the status that it was failed with."""

    method: str
    metadata: Metadata
    remaining: float | None
    peer: str
    ended: str = ""
    forwarded: dict[str, str | bytes] = field(default_factory=dict)


def page(count: int, size: int) -> bytes:
    """The request of `Repeat`."""
    return struct.pack("!II", count, size)


class Server:
    """Serves /test.Echo/METHOD for every METHOD of `_METHODS`, and any other service's methods of these names."""

    def __init__(self, version: str = "v1", **options: Any) -> None:
        self.version = version
        self.calls: list[Call] = []
        self.address = ""
        self._options = [*UNLIMITED, *(("grpc." + key, value) for key, value in options.items())]
        self._ready = threading.Event()
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> Server:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def last(self) -> Call:
        return self.calls[-1]

    def wait_end(self, number: int = -1) -> str:
        """How a call ended, once it has."""
        end = time.monotonic() + PATIENCE
        while len(self.calls) <= max(number, 0) or not self.calls[number].ended:
            assert time.monotonic() < end, f"calls of {self.version}: {self.calls[-3:]}"
            time.sleep(0.005)
        return self.calls[number].ended

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers([_Handlers(self)])
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._ready.set()
        await self._stop.wait()
        await server.stop(0)

    # -- methods -------------------------------------------------------------------------------------------------------

    async def echo(self, request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("x-version", self.version), ("x-initial-bin", b"\0\xff")))
        context.set_trailing_metadata(told(context.invocation_metadata()))
        return request

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([each async for each in requests])

    async def repeat(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        count, size = struct.unpack("!II", request)
        for number in range(count):
            yield struct.pack("!I", number).ljust(size, b".")
        context.set_trailing_metadata((("x-count", str(count)),))

    async def talk(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await context.send_initial_metadata((("x-version", self.version),))
        async for each in requests:
            yield each

    async def fail(self, request: bytes, context: Any) -> bytes:
        """With the code and the details that the request has."""
        code, _, details = request.decode().partition(" ")
        await context.abort(grpc.StatusCode[code], details, (("x-why", "asked"), ("x-why-bin", b"\1\2")))
        raise AssertionError

    async def pick(self, request: bytes, context: Any) -> bytes:
        """Its name, unless that is `bad`."""
        if self.version == "bad":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "bad")
        return self.version.encode()

    async def fail_late(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"
        await context.abort(grpc.StatusCode.ABORTED, "after two")

    async def hang(self, request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def quiet(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Answers after as many seconds as the request says, in silence until then."""
        await asyncio.sleep(float(request))
        yield b"done"


_METHODS: dict[str, tuple[str, Callable[..., Any]]] = {
    "Echo": ("echo", grpc.unary_unary_rpc_method_handler),
    "Collect": ("collect", grpc.stream_unary_rpc_method_handler),
    "Repeat": ("repeat", grpc.unary_stream_rpc_method_handler),
    "Talk": ("talk", grpc.stream_stream_rpc_method_handler),
    "Fail": ("fail", grpc.unary_unary_rpc_method_handler),
    "Pick": ("pick", grpc.unary_unary_rpc_method_handler),
    "FailLate": ("fail_late", grpc.unary_stream_rpc_method_handler),
    "Hang": ("hang", grpc.unary_unary_rpc_method_handler),
    "Quiet": ("quiet", grpc.unary_stream_rpc_method_handler),
}


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, server: Server) -> None:
        self.server = server

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        if method not in _METHODS:
            return None
        name, make = _METHODS[method]
        behaviour = getattr(self.server, name)
        streams = make in (grpc.unary_stream_rpc_method_handler, grpc.stream_stream_rpc_method_handler)
        return make((self._streamed if streams else self._single)(details, behaviour))

    def _call(self, details: Any, context: Any) -> Call:
        every = dict(context.invocation_metadata())
        call = Call(details.method, told(details.invocation_metadata), context.time_remaining(), context.peer())
        call.forwarded = {key: value for key, value in every.items() if not key.startswith("x-") or "forward" in key}
        self.server.calls.append(call)
        return call

    def _single(self, details: Any, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def answer(request: Any, context: Any) -> Any:
            call = self._call(details, context)
            with ending(call):
                return await behaviour(request, context)

        return answer

    def _streamed(self, details: Any, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            call = self._call(details, context)
            with ending(call):
                async for each in behaviour(request, context):
                    yield each

        return answer


@contextlib.contextmanager
def ending(call: Call) -> Iterator[None]:
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        call.ended = "cancelled"
        raise
    except BaseException as error:
        call.ended = type(error).__name__
        raise
    call.ended = "ok"


class Channel:
    """A client's channel to a proxy, with the host that it asks for; one connection."""

    def __init__(self, address: str, host: str = "echo.test", **options: Any) -> None:
        pairs = [("grpc.default_authority", host), ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(
            address, [*UNLIMITED, *pairs, *(("grpc." + k, v) for k, v in options.items())]
        )
        self.timeout: float | None = PATIENCE

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def unary(self, method: str, request: bytes = b"", **more: Any) -> Any:
        """(answer, the call) or grpc.RpcError."""
        return self.channel.unary_unary(path(method)).with_call(request, **{"timeout": self.timeout, **more})

    def echo(self, request: bytes = b"hello", *metadata: tuple[str, str | bytes]) -> str:
        """The version that answered, which must have been right."""
        answer, call = self.unary("Echo", request, metadata=metadata)
        assert answer == request
        return str(dict(call.initial_metadata())["x-version"])

    def collect(self, requests: Iterator[bytes], **more: Any) -> Any:
        return self.channel.stream_unary(path("Collect"))(requests, **{"timeout": self.timeout, **more})

    def stream(self, method: str, request: bytes, **more: Any) -> Any:
        return self.channel.unary_stream(path(method))(request, **{"timeout": self.timeout, **more})

    def talk(self, requests: Iterator[bytes], **more: Any) -> Any:
        return self.channel.stream_stream(path("Talk"))(requests, **{"timeout": self.timeout, **more})

    def failure(self, method: str, request: bytes = b"", **more: Any) -> Any:
        """The error that a unary call ends with: `.code()`, `.details()`, `.trailing_metadata()`."""
        try:
            answer, _ = self.unary(method, request, **more)
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"{method} did not fail but answered {answer!r}")


def path(method: str) -> str:
    return method if method.startswith("/") else f"/test.Echo/{method}"


@contextlib.contextmanager
def servers(*versions: str, **options: Any) -> Iterator[Sequence[Server]]:
    made = [Server(version, **options) for version in versions]
    try:
        for each in made:
            each.start()
        yield made
    finally:
        for each in made:
            if each._ready.is_set():
                each.stop()


def main() -> None:
    server = Server(sys.argv[1]).start()
    print(server.address, flush=True)
    sys.stdin.read()  # until whoever started it is gone


if __name__ == "__main__":
    main()
