"""Listening sockets: one for each worker, shared, stale, taken, handed on."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb import listeners
from graylb.listeners import Bound, Given, ListenError, bind, open_listeners
from graylb.model import values
from graylb.model.snapshot import Listener

ANYWHERE = Listener("127.0.0.1:0")


@contextmanager
def closing(*bound: Bound) -> Iterator[None]:
    try:
        yield
    finally:
        for each in bound:
            each.close(remove=True)


def handed_on(bound: Bound) -> Given:
    """As a process that inherited the descriptors finds them."""
    told = bound.handed()
    return listeners.inherited({**told, "fds": [os.dup(fd) for fd in told["fds"]]})


def listens(made: socket.socket) -> bool:
    return bool(made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


# -- TCP -----------------------------------------------------------------------------------------------------------


def test_one_port_for_all_workers_and_nobody_else() -> None:
    bound = bind(ANYWHERE, 3)
    with closing(bound):
        assert {made.getsockname() for made in bound.sockets} == {bound.sockets[0].getsockname()}
        assert all(map(listens, bound.sockets))
        with pytest.raises(ListenError, match=f"cannot listen on {bound.address}: Address already in use"):
            bind(Listener(bound.address), 1)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6_is_ipv6_only() -> None:
    six = bind(Listener("[::]:0"), 2)
    port = six.sockets[0].getsockname()[1]
    assert six.address == f"[::]:{port}"
    four = bind(Listener(f"0.0.0.0:{port}"), 2)  # possible only beside a socket that is for IPv6 alone
    with closing(six, four):
        assert four.address == f"0.0.0.0:{port}"


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "nowhere", "256.0.0.1:80", "192.0.2.1:0"])
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(ListenError, match=f"cannot listen on {address}: ."):
        bind(Listener(address), 1)


@given(st.integers(1, 12), st.integers(1, 12))
def test_together_workers_accept_from_all_sockets_each_from_its_own(sockets: int, workers: int) -> None:
    """After a roll there may be more sockets than workers; there are never fewer."""
    made = [socket.socket() for _ in range(max(sockets, workers))]
    bound = Bound(ANYWHERE, "127.0.0.1:1", made)
    with closing(bound):
        own = [bound.of(worker, workers) for worker in range(workers)]
        assert sorted(id(one) for each in own for one in each) == sorted(map(id, made))
        assert max(map(len, own)) - min(map(len, own)) <= 1


def test_a_shared_socket_is_everybodys(tmp_path: Path) -> None:
    bound = bind(Listener(f"unix:{tmp_path}/x"), 3)
    with closing(bound):
        assert len(bound.sockets) == 1
        assert [bound.of(worker, 3) for worker in range(3)] == [bound.sockets] * 3


# -- Unix sockets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, None])
def test_the_mode_of_a_unix_socket(tmp_path: Path, mode: int | None) -> None:
    mask = os.umask(0o027)
    try:
        bound = bind(Listener(f"unix:{tmp_path}/x", mode=mode), 1)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    with closing(bound):
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == (0o750 if mode is None else mode)
    assert not (tmp_path / "x").exists()


def test_a_socket_that_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    bound = bind(Listener(f"unix:{path}"), 1)
    with closing(bound), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ListenError, match=f"cannot listen on unix:{path}: another process listens there"):
            bind(Listener(f"unix:{path}"), 1)
        client.connect(str(path))


def test_a_socket_whose_backlog_is_full_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(ListenError, match="another process listens there"):
            bind(Listener(f"unix:{path}"), 1)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("precious")
    with pytest.raises(ListenError, match="there is a file of that name, which is no socket"):
        bind(Listener(f"unix:{path}"), 1)
    assert path.read_text() == "precious"


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="No such file or directory"):
        bind(Listener(f"unix:{tmp_path}/missing/x"), 1)
    with pytest.raises(ListenError, match="too long"):
        bind(Listener(f"unix:/{'x' * 200}"), 1)


def test_a_file_that_somebody_else_put_there_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    bound = bind(Listener(f"unix:{path}"), 1)
    path.unlink()
    path.write_text("not ours")
    bound.close(remove=True)
    assert path.read_text() == "not ours"


# -- handed over ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["as written", "as it came to be"])
def test_sockets_are_taken_over(named: str) -> None:
    old = bind(ANYWHERE, 2)
    pool = [handed_on(old)]
    wanted = ANYWHERE if named == "as written" else Listener(old.address)
    (new,) = open_listeners([wanted], 2, pool)
    with closing(old, new):
        assert (new.address, len(new.sockets), pool) == (old.address, 2, [])
        assert not any(made.get_inheritable() or made.getblocking() for made in new.sockets)


def test_sockets_that_are_added_listen_only_when_the_roll_is_sure() -> None:
    """A connection in the backlog of a process that then gives up would be lost."""
    old = bind(ANYWHERE, 1)
    (new,) = open_listeners([ANYWHERE], 3, [handed_on(old)])
    with closing(old, new):
        assert [listens(made) for made in new.sockets] == [True, False, False]
        new.start()
        assert all(map(listens, new.sockets))
        assert {made.getsockname() for made in new.sockets} == {old.sockets[0].getsockname()}


def test_listeners_of_the_same_address_take_one_each() -> None:
    old = [bind(ANYWHERE, 1), bind(ANYWHERE, 1)]
    new = open_listeners([ANYWHERE, ANYWHERE, ANYWHERE], 1, [handed_on(each) for each in old])
    with closing(*old, *new):
        assert [each.address for each in new[:2]] == [each.address for each in old]
        assert new[2].address not in [each.address for each in old]


def test_the_file_goes_with_the_sockets(tmp_path: Path) -> None:
    path = tmp_path / "x"
    old = bind(Listener(f"unix:{path}"), 1)
    (refused,) = open_listeners([old.listener], 1, [handed_on(old)])
    refused.close(remove=True)
    assert path.exists(), "a successor that never took over removes nothing"
    (new,) = open_listeners([old.listener], 1, [handed_on(old)])
    new.own()
    old.close()
    assert path.exists()
    new.close(remove=True)
    assert not path.exists()


def test_what_nobody_wants_any_more_ends(tmp_path: Path) -> None:
    path = tmp_path / "x"
    old = bind(Listener(f"unix:{path}"), 1)
    listeners.discard([handed_on(old)])
    assert not path.exists()
    old.close()


def test_nothing_stays_open_when_one_of_them_cannot_be(tmp_path: Path) -> None:
    first = Listener(f"unix:{tmp_path}/x")
    taken = bind(ANYWHERE, 1)
    with closing(taken):
        with pytest.raises(ListenError):
            open_listeners([first, Listener(taken.address)], 1, [])
        assert not (tmp_path / "x").exists()


# -- from systemd --------------------------------------------------------------------------------------------------


def activated(made: socket.socket) -> Given:
    return listeners.activated(os.dup(made.fileno()), "web.socket")


def test_an_activated_socket_serves_the_listener_of_its_address(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        address = f"127.0.0.1:{tcp.getsockname()[1]}"
        pool = [activated(tcp), activated(unix)]
        bound = open_listeners([Listener(f"unix:{path}"), Listener(address), ANYWHERE], 2, pool)
        assert [each.address for each in bound][:2] == [f"unix:{path}", address]
        assert [len(each.sockets) for each in bound] == [1, 1, 2]
        assert bound[1].of(0, 2) == bound[1].of(1, 2)
        again = open_listeners([Listener(address)], 2, [handed_on(bound[1])])
        assert (again[0].origin, len(again[0].sockets)) == ("activated", 1)
        for each in (*bound, *again):
            each.own()
            each.close(remove=True)
        assert path.exists(), "it is systemd's"


def test_what_is_no_listening_socket_is_told(tmp_path: Path) -> None:
    with socket.socket() as idle, pytest.raises(ListenError, match="is no listening stream"):
        activated(idle)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(ListenError, match="ListenStream="):
        activated(datagrams)
    with (tmp_path / "x").open("wb") as file, pytest.raises(ListenError, match="from systemd is no socket"):
        listeners.activated(file.fileno(), "web.socket")


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.8.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.org:1", False),
    ],
)
def test_who_can_reach_it(address: str, local: bool) -> None:
    assert values.is_local(address) is local
