"""Passwords, tokens that expire, certificates: each combination against a real etcd that insists on it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from graylb.control.etcd.client import Client
from graylb.control.etcd.errors import Unauthorised, Unavailable
from graylb.control.etcd.links import Options
from graylb.control.etcd.reflector import Loaded, Lost, Reflector, Restored
from tests.control.etcd import servers
from tests.control.etcd.certificates import Certificates
from tests.control.etcd.servers import Cluster, secure
from tests.control.etcd.support import client, following, run, until


def test_a_password_over_plaintext(tmp_path: Path) -> None:
    """grpcio refuses call credentials there; the token goes as metadata."""

    async def test(etcd: Cluster) -> None:
        root = {"user": "root", "password": "secret"}
        async with client(etcd, **root) as early:
            await early.put("/all/a", b"1")  # etcd wants no password yet; having one does no harm
            secure(etcd.nodes[0], reader=("reader", "word", "/all/"))
            await early.put("/all/a", b"2")  # and now it does
            async with client(etcd, user="reader", password="word") as reader:
                assert list((await reader.list("/all/")).items) == ["/all/a"]
                for attempt in (reader.put("/all/a", b"3"), reader.list("/"), reader.get("/other")):
                    with pytest.raises(Unauthorised, match="permission denied"):
                        await attempt
            async with client(etcd) as nobody:
                with pytest.raises(Unauthorised, match="user name is empty"):
                    await nobody.get("/all/a")
            async with client(etcd, user="root", password="wrong") as wrong:
                with pytest.raises(Unauthorised, match="invalid user ID or password"):
                    await wrong.get("/all/a")
            async with client(etcd, user="nobody", password="wrong") as wrong:
                with pytest.raises(Unauthorised):
                    await wrong.get("/all/a")
            lease, _ = await early.grant(10)
            assert await early.keep_alive(lease) == 10

    with servers.running(tmp_path) as etcd:
        run(test(etcd))


def test_tokens_that_were_forgotten_are_renewed_by_calls_and_watches(tmp_path: Path) -> None:
    """Simple tokens live in a member's memory and for --auth-token-ttl."""

    async def test(etcd: Cluster) -> None:
        node = etcd.nodes[0]
        secure(node)
        async with client(etcd, user="root", password="secret") as store, Reflector(store, "/") as reflector:
            events = aiter(reflector)
            assert isinstance(await anext(events), Loaded)
            for number in range(2):
                node.kill()
                node.start()
                await until(node.listens, "etcd is back")
                while True:
                    try:
                        await store.put("/k", b"%d" % number)
                        break
                    except Unavailable:
                        await asyncio.sleep(0.05)
                await until(lambda: "/k" in reflector.items and reflector.items["/k"].value == b"%d" % number, "k")  # noqa: B023
            # many whose token has expired renew it once, and nobody fails
            store._token = "expired.1"
            await asyncio.gather(*(store.put(f"/{number}", b"") for number in range(20)))
            await until(lambda: len(reflector.items) == 21, "all keys")

    with servers.running(tmp_path) as etcd:
        run(test(etcd))


def test_an_expired_token_at_the_start_of_a_watch(tmp_path: Path) -> None:
    """etcd 3.4 ends such a watch with "permission denied"; it is not for ever."""

    async def test(etcd: Cluster) -> None:
        secure(etcd.nodes[0])
        async with (
            client(etcd, user="root", password="secret") as store,
            client(etcd, user="root", password="secret") as other,
            following(Reflector(store, "/")) as follower,
        ):
            await follower.until_kind(Loaded)
            await until(lambda: follower.reflector.counts.quiet, "the watch stands")
            store._token = "expired.1"
            wire = etcd.nodes[0].wire
            assert wire is not None
            wire.snap()
            await other.put("/k", b"1")
            await follower.until_values({"/k": b"1"})

    with servers.running(tmp_path, wired=True) as etcd:
        run(test(etcd))


def test_who_may_not_read_is_told_until_he_may(tmp_path: Path) -> None:
    async def test(etcd: Cluster) -> None:
        secure(etcd.nodes[0], reader=("reader", "word", "/all/"))
        async with client(etcd, user="reader", password="word") as store:
            async with following(Reflector(store, "/other/")) as follower:
                lost = await follower.until_kind(Lost)
                assert isinstance(lost.error, Unauthorised)
                assert follower.kinds() == ["Lost"]
            async with following(Reflector(store, "/all/")) as follower:
                await follower.until_kind(Loaded)
                assert follower.reflector.lost is None

    with servers.running(tmp_path) as etcd:
        run(test(etcd))


def test_tls(tmp_path: Path) -> None:
    """The server's certificate must be signed by the given CA and have the endpoint's name, or the one asked for."""
    made = Certificates(tmp_path, "etcd.internal")

    async def test(etcd: Cluster) -> None:
        [endpoint] = etcd.endpoints
        good = {"endpoints": (f"https://{endpoint}",), "ca": made.ca, "server_name": "etcd.internal"}
        async with Client(Options(**good)) as store, following(Reflector(store, "/")) as follower:
            await store.put("/k", b"1")
            await follower.until_values({"/k": b"1"})
        for bad in (
            {"server_name": ""},
            {"server_name": "elsewhere.internal"},
            {"ca": made.other_ca},
            {"ca": None},
            {"endpoints": (f"http://{endpoint}",), "ca": None},
        ):
            async with Client(Options(**{**good, **bad})) as store:
                with pytest.raises(Unavailable) as caught:
                    await store.get("/k")
                assert not caught.value.maybe_applied

    with servers.running(tmp_path / "etcd", tls=made.tls()) as etcd:
        run(test(etcd))


def test_tls_by_the_endpoints_own_address(tmp_path: Path) -> None:
    made = Certificates(tmp_path, "127.0.0.1")

    async def test(etcd: Cluster) -> None:
        [endpoint] = etcd.endpoints
        dead = servers.free_ports(1)[0]
        async with Client(Options((f"https://127.0.0.1:{dead}", f"https://{endpoint}"), ca=made.ca)) as store:
            await store.put("/k", b"1")

    with servers.running(tmp_path / "etcd", tls=made.tls()) as etcd:
        run(test(etcd))


@pytest.mark.parametrize("password", [False, True])
def test_client_certificates_with_and_without_a_password(tmp_path: Path, password: bool) -> None:
    made = Certificates(tmp_path, "127.0.0.1")

    async def test(etcd: Cluster) -> None:
        cert, key = made.client
        more = {"user": "root", "password": "secret"} if password else {}
        options = Options(etcd.endpoints, ca=made.ca, cert=cert, key=key, **more)
        async with Client(options) as store, following(Reflector(store, "/")) as follower:
            await store.put("/k", b"1")
            await follower.until_values({"/k": b"1"})
            # authentication is turned on while the watch stands; the certificate's common name is root
            await asyncio.to_thread(secure, etcd.nodes[0])
            await store.put("/k", b"2")
            await follower.until_values({"/k": b"2"})
            assert Restored not in map(type, follower.seen)
        cert, key = made.strange
        for bad in ({"cert": None, "key": None}, {"cert": cert, "key": key}):
            async with Client(Options(etcd.endpoints, ca=made.ca, **bad)) as store:
                with pytest.raises(Unavailable):
                    await store.get("/k")

    with servers.running(tmp_path / "etcd", tls=made.tls(mutual=True)) as etcd:
        run(test(etcd))


def test_a_renewed_certificate_is_taken_without_a_restart(tmp_path: Path) -> None:
    """Files are read for each connection."""
    made = Certificates(tmp_path, "127.0.0.1")

    async def test(etcd: Cluster) -> None:
        async with Client(Options(etcd.endpoints, ca=made.ca)) as store:
            await store.put("/k", b"1")
            etcd.nodes[0].kill()
            again = Certificates(tmp_path, "127.0.0.1")  # another CA under the same file names
            assert again.ca == made.ca
            etcd.nodes[0].start()
            await until(etcd.nodes[0].listens, "etcd is back")
            await until_answered(store)

    async def until_answered(store: Client) -> None:
        while True:
            try:
                assert await store.get("/k") is not None
                return
            except Unavailable:
                await asyncio.sleep(0.05)

    with servers.running(tmp_path / "etcd", tls=made.tls()) as etcd:
        run(test(etcd))
