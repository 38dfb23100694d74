"""The parts without I/O against obvious oracles: ranges of keys, endpoints, backoff, what waits for a consumer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb.control.etcd import values
from graylb.control.etcd.backoff import Backoff
from graylb.control.etcd.bursts import MANY, WITHIN, Bursts
from graylb.control.etcd.errors import Unavailable
from graylb.control.etcd.links import Options, target
from graylb.control.etcd.mailbox import Changed, Loaded, Lost, Mailbox, Restored
from graylb.control.etcd.values import KeyValue, Listing

BYTES = st.binary(max_size=4) | st.lists(st.sampled_from([0, 1, 0x61, 0xFE, 0xFF]), max_size=4).map(bytes)


@given(BYTES, BYTES)
def test_a_range_is_exactly_the_keys_with_that_prefix(prefix: bytes, key: bytes) -> None:
    span = values.span(values.decode(prefix), prefix=True)
    end = span["range_end"]
    # etcd has no empty key, and takes a range_end of one zero byte as: no end
    within = span["key"] <= key and (end == b"\0" or key < end)
    if key:
        assert within == key.startswith(prefix)


@given(st.binary())
def test_every_key_survives_as_text(key: bytes) -> None:
    assert values.encode(values.decode(key)) == key


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("127.0.0.1:2379", "ipv4:127.0.0.1:2379"),
        ("10.0.0.1", "ipv4:10.0.0.1:2379"),
        ("http://10.0.0.1:1", "ipv4:10.0.0.1:1"),
        ("https://etcd-0.etcd.svc:2379/", "dns:///etcd-0.etcd.svc:2379"),
        ("localhost", "dns:///localhost:2379"),
        ("[::1]:2380", "ipv6:[::1]:2380"),
        ("[fd00::1]", "ipv6:[fd00::1]:2379"),
        ("::1", "ipv6:[::1]:2379"),
    ],
)
def test_endpoints(endpoint: str, expected: str) -> None:
    assert target(endpoint) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"endpoints": ()}, "at least one endpoint"),
        ({"endpoints": ("host:port",)}, "'host:port' is no endpoint; expected host:port"),
        ({"endpoints": (":2379",)}, "is no endpoint"),
        ({"endpoints": ("host:0",)}, "is no endpoint"),
        ({"endpoints": ("host:99999",)}, "is no endpoint"),
        ({"endpoints": ("http://host/path",)}, "is no endpoint"),
        ({"endpoints": ("unix:///x",)}, "begin with http:// or https://, not unix://"),
        ({"endpoints": ("http://a", "https://b")}, "some endpoints say http:// while"),
        ({"endpoints": ("http://a",), "ca": Path(__file__)}, "ask for TLS"),
        ({"cert": Path(__file__)}, "needs both cert and key"),
        ({"user": "x"}, "user and password belong together"),
        ({"ca": Path("/nowhere.pem")}, "/nowhere.pem is not a file"),
    ],
)
def test_wrong_options(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=r"^etcd: ") as caught:
        Options(**options)  # type: ignore[arg-type]
    assert expected in str(caught.value)


def test_a_password_is_not_shown() -> None:
    assert "hush" not in repr(Options(user="x", password="hush"))


@given(st.integers(0, 200), st.integers())
def test_backoff_stays_below_its_doubling_ceiling(failures: int, seed: int) -> None:
    backoff = Backoff(0.1, 3.0, random.Random(seed))
    for number in range(failures):
        assert 0 <= backoff.next() <= min(3.0, 0.1 * 2**number)
    backoff.reset()
    assert backoff.ceiling == 0.1


def test_backoff_uses_the_whole_range() -> None:
    backoff = Backoff(1.0, 1.0, random.Random(1))
    waits = [backoff.next() for _ in range(1000)]
    assert min(waits) < 0.01
    assert max(waits) > 0.99
    assert 450 < sum(waits) < 550


def record(key: str, revision: int) -> KeyValue:
    return KeyValue(key, b"%d" % revision, revision, revision, 1, 0)


KEYS = st.sampled_from("abcd")
STEP = st.one_of(
    st.tuples(st.just("change"), st.dictionaries(KEYS, st.booleans(), min_size=1)),
    st.tuples(st.just("load"), st.sets(KEYS)),
    st.tuples(st.sampled_from(["take", "lose", "restore", "drain"]), st.none()),
)


class Consumer:
    """Applies events literally, and complains about any that makes no sense to one who knows what it was told."""

    def __init__(self) -> None:
        self.state: dict[str, KeyValue] = {}
        self.revision = 0
        self.loaded = self.lost = False

    def apply(self, event: object) -> None:
        match event:
            case Loaded():
                self.state, self.revision, self.loaded = dict(event.items), event.revision, True
            case Changed():
                assert self.loaded
                assert event.changes
                assert event.revision > self.revision
                for key, now in event.changes.items():
                    assert now is not None or key in self.state
                    assert now is None or now.mod_revision > self.revision
                    if now is None:
                        del self.state[key]
                    else:
                        self.state[key] = now
                self.revision = event.revision
            case Lost():
                assert not self.lost
                self.lost = True
            case Restored():
                assert self.lost
                self.lost = False


@given(st.lists(STEP, max_size=40))
def test_whenever_a_consumer_comes_it_learns_the_state_and_no_more_than_it_needs(
    steps: list[tuple[str, object]],
) -> None:
    mailbox, consumer, truth, revision = Mailbox(), Consumer(), dict[str, KeyValue](), 1
    mailbox.load(Listing(1, 7, {}))
    for step, what in steps:
        revision += 1
        match step, what:
            case "change", dict():
                pairs = []
                for key, put in what.items():
                    if put or key in truth:
                        pairs.append((key, record(key, revision) if put else None))
                        truth.pop(key, None)
                        if put:
                            truth[key] = record(key, revision)
                if pairs:
                    mailbox.change(revision, pairs)
            case "load", set():
                truth = {key: record(key, revision) for key in what}
                mailbox.load(Listing(revision, 7, dict(truth)))
            case "take", None:
                consumer.apply(mailbox.take())
            case "lose", None:
                mailbox.lose(Unavailable("x"))
            case "restore", None:
                mailbox.restore()
            case _:
                drain(mailbox, consumer)
                assert consumer.state == truth
        assert mailbox.items == truth
        assert mailbox.waiting <= len(truth) + len(consumer.state)
    drain(mailbox, consumer)
    assert consumer.state == truth
    assert consumer.lost == (mailbox.lost is not None)


def drain(mailbox: Mailbox, consumer: Consumer) -> None:
    """At most four things can be waiting."""
    for _ in range(5):
        if (event := mailbox.take()) is None:
            return
        consumer.apply(event)
    raise AssertionError("the mailbox is never empty")


def test_a_key_that_came_and_went_unseen_is_not_mentioned_and_takes_no_room() -> None:
    mailbox = Mailbox()
    mailbox.load(Listing(1, 7, {}))
    mailbox.take()
    for number in range(1000):
        mailbox.change(number + 2, [(f"k{number}", record("k", 2))])
        mailbox.change(number + 2, [(f"k{number}", None)])
    assert mailbox.waiting == 0
    assert mailbox.take() is None


def test_another_cluster_is_told_once() -> None:
    mailbox = Mailbox()
    seen = []
    for cluster in (7, 7, 8, 8):
        mailbox.load(Listing(1, cluster, {}))
        event = mailbox.take()
        assert isinstance(event, Loaded)
        seen.append(event.cluster_changed)
    assert seen == [False, False, True, False]


def test_changes_now_and_then_are_heard_one_by_one() -> None:
    bursts = Bursts()
    step = 1.1 * WITHIN / (MANY - 1)
    assert not any(bursts.rest(1, number * step) for number in range(10 * MANY))
    assert not bursts.rest(100_000, 1e6), "many at once are no storm of responses"


@given(st.lists(st.floats(0, 0.02), max_size=400), st.lists(st.integers(0, 2), min_size=1))
def test_rests_begin_only_after_many_responses_within_the_time(gaps: list[float], sizes: list[int]) -> None:
    bursts, now, heard = Bursts(), 0.0, []
    for number, gap in enumerate(gaps):
        now += gap
        changes = sizes[number % len(sizes)]
        heard += [now] * bool(changes)
        if bursts.rest(changes, now):
            assert heard[-1] - heard[-MANY] <= WITHIN
            heard.clear()
        else:
            assert len(heard) < MANY or heard[-1] - heard[-MANY] > WITHIN or not changes


def test_a_storm_that_goes_on_after_a_rest_is_heard_in_one_response_a_rest() -> None:
    bursts = Bursts()
    assert [bursts.rest(1, 0.0) for _ in range(MANY)] == [False] * (MANY - 1) + [True]
    assert not bursts.rest(0, 1.0)  # the watch stands again
    assert bursts.rest(MANY, 1.1)
    assert not bursts.rest(MANY - 1, 2.0), "it is over"
    assert not bursts.rest(MANY, 3.0)
