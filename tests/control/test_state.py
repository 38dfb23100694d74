"""What the store remembers: completion, newest wins, rollback, against a slow and obvious model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from graylb.control import state as states
from graylb.control.state import SERVICE_SPLIT, Completion, State
from graylb.model.problems import ConfigErrors
from graylb.release.slots import Slots
from tests.control.parts import document, load, users
from tests.control.parts import with_split as with_split_by_command

AT = "2026-01-01T00:00:00Z"


def complete(data: dict[str, Any], state: State | None = None) -> Completion:
    return states.complete(load(data), state or State(), at=AT)


def split(state: State, **weights: float) -> State:
    return with_split_by_command(state, weights, AT, "ann", "ramp")


def back(state: State, to: int | None = None) -> State:
    return states.rollback(state, "users", at=AT, who="bob", to=to)


def weights(state: State, service: str = "users") -> dict[str, float]:
    content = state.services[service].in_force
    assert content is not None
    return content.splits[SERVICE_SPLIT].weights


def owners(state: State, service: str = "users") -> list[str]:
    content = state.services[service].in_force
    assert content is not None
    return Slots.parse(content.splits[SERVICE_SPLIT].slots).owners()


def with_split(**weights: float) -> dict[str, Any]:
    return document(users=users(split=weights))


def test_the_first_document_is_revision_1_and_says_so_in_the_history() -> None:
    state = complete(document()).state
    (change,) = state.services["users"].changes
    assert (state.revision, change.revision, change.previous, change.who, change.what) == (1, 1, 0, "file", ("new",))
    assert owners(state).count("v2") == 500


def test_the_same_document_again_changes_nothing() -> None:
    first = complete(document())
    again = complete(document(), first.state)
    assert again.state is first.state
    assert again.splits == first.splits


def test_a_change_beyond_services_gets_a_revision_and_leaves_services_alone() -> None:
    state = complete(document()).state
    after = complete({**document(), "decision_headers": True}, state).state
    assert after.revision == 2
    assert after.services == state.services


def test_only_the_edited_service_gets_a_record() -> None:
    state = complete(document(users=users(), orders=users(hosts=["orders"]))).state
    after = complete(document(users=users(fallback="strict"), orders=users(hosts=["orders"])), state).state
    assert after.services["orders"] == state.services["orders"]
    assert [change.what for change in after.services["users"].changes] == [("new",), ("settings",)]
    assert owners(after) == owners(state)


def test_a_ramp_in_the_document_moves_callers_only_into_the_rising_version() -> None:
    state = complete(document()).state
    for share in (20, 50, 100):
        after = complete(with_split(v1=100 - share, v2=share), state).state
        moved = {(a, b) for a, b in zip(owners(state), owners(after), strict=True) if a != b}
        assert moved == {("v1", "v2")}
        state = after


def test_a_command_overrides_the_document_until_that_service_is_edited() -> None:
    state = split(complete(document()).state, v1=50, v2=50)
    assert complete(document(), state).state is state
    assert state.services["users"].overridden
    unrelated = complete({**document(), "decision_headers": True}, state)
    assert unrelated.splits["users", SERVICE_SPLIT].weights == {"v1": 50, "v2": 50}
    edited = complete(document(users=users(fallback="strict")), unrelated.state)
    assert edited.splits["users", SERVICE_SPLIT].weights == {"v1": 95, "v2": 5}
    last = edited.state.services["users"].changes[-1]
    assert (last.who, last.action, last.what) == ("file", "file", ("split", "settings"))
    assert not edited.state.services["users"].overridden


def test_instances_and_lists_are_data_and_do_not_end_an_override() -> None:
    state = split(complete(document()).state, v1=50, v2=50)
    more = users(lists={"staff": ["a"]})
    more["instances"] = [*more["instances"], {"address": "127.0.0.1:9009", "version": "v2"}]
    after = complete(document(users=more), state)
    assert after.splits["users", SERVICE_SPLIT].weights == {"v1": 50, "v2": 50}
    assert len(after.document.services["users"].instances) == 4
    assert after.state.services["users"].changes[-1].what == ("instances",)


def test_writing_the_override_into_the_document_moves_nobody() -> None:
    state = split(complete(document()).state, v1=50, v2=50)
    after = complete(with_split(v1=50, v2=50), state)
    assert owners(after.state) == owners(state)
    assert after.state.revision == 3
    assert not after.state.services["users"].overridden


def test_the_stable_version_does_not_flip_in_a_ramp_by_command() -> None:
    state = complete(document(users=users(stable=None))).state
    after = complete(document(users=users(stable=None)), split(state, v1=5, v2=95))
    assert after.document.services["users"].stable_version() == "v1"


def test_a_document_that_gives_salt_and_slots_is_obeyed() -> None:
    given_slots = "v1:5000-9999 v2:0-4999"
    full = {"weights": {"v1": 1, "v2": 1}, "salt": "mine", "slots": given_slots}
    found = complete(document(users=users(split=full)), complete(document()).state)
    own = found.splits["users", SERVICE_SPLIT]
    assert (own.salt, own.slots) == ("mine", given_slots)


def test_rules_have_splits_of_their_own() -> None:
    rule = {"name": "ab", "match": {"query": {"exp": "a"}}, "split": {"v1": 1, "v2": 1}}
    found = complete(document(users=users(rules=[rule])))
    assert found.splits["users", "ab"].salt != found.splits["users", SERVICE_SPLIT].salt
    assert Slots.parse(found.splits["users", "ab"].slots).counts() == {"v1": 5000, "v2": 5000}


def test_a_service_that_comes_back_finds_its_callers_where_they_were() -> None:
    state = split(complete(document()).state, v1=60, v2=40)
    gone = complete(document(orders=users()), state).state
    assert gone.services["users"].in_force is None
    assert complete(document(orders=users()), gone).state is gone
    there = complete(document(users=users(split={"v1": 60, "v2": 40})), gone).state
    assert owners(there) == owners(state)
    with pytest.raises(states.UnknownTarget, match="no service 'users'; there is orders"):
        split(gone, v1=1)


def test_a_split_by_command_for_a_service_without_one() -> None:
    single = users(split=None)
    state = complete(document(users=single)).state
    after = complete(document(users=single), split(state, v1=90, v3=10))
    assert after.splits["users", SERVICE_SPLIT].weights == {"v1": 90, "v3": 10}
    assert after.document.services["users"].split is not None


def test_rolling_back_twice_is_back() -> None:
    first = complete(document()).state
    ramped = split(first, v1=50, v2=50)
    once, twice = back(ramped), back(back(ramped))
    assert owners(once) == owners(first)
    assert owners(twice) == owners(ramped)
    assert [change.to for change in twice.services["users"].changes] == [None, None, 1, 2]
    assert not once.services["users"].overridden


def test_rollback_brings_back_rules_and_settings_but_not_instances() -> None:
    rule = {"name": "beta", "match": {"headers": {"group": "beta"}}, "to": "v2"}
    old, new = users(rules=[rule], fallback="strict"), users(split={"v1": 1, "v2": 1})
    new["instances"] = new["instances"][:2]
    state = complete(document(users=new), complete(document(users=old)).state).state
    found = complete(document(users=new), back(state, to=1))
    service = found.document.services["users"]
    assert [each.name for each in service.rules] == ["beta"]
    assert (service.fallback, len(service.instances)) == ("strict", 2)
    assert found.splits["users", SERVICE_SPLIT].weights == {"v1": 95, "v2": 5}


def test_rollback_to_a_revision_between_two_changes_means_what_was_in_force_then() -> None:
    state = complete({**document(), "decision_headers": True}, complete(document()).state).state
    ramped = split(state, v1=1, v2=1)
    assert (ramped.revision, weights(back(ramped, to=2))) == (3, {"v1": 95, "v2": 5})


@pytest.mark.parametrize(
    ("to", "message"),
    [(None, "no former split"), (0, "no revision 0"), (1, "already as it was at revision 1"), (9, "already as it was")],
)
def test_rollback_to_nowhere(to: int | None, message: str) -> None:
    with pytest.raises(states.UnknownTarget, match=message):
        back(complete(document()).state, to)


def test_rollback_to_rules_whose_list_is_gone_is_found_when_it_is_completed() -> None:
    rule = {"name": "staff", "match": {"headers": {"id": {"in": "staff"}}}, "to": "v2"}
    state = complete(document(users=users(rules=[rule], lists={"staff": ["a"]}))).state
    bare = document()
    rolled = back(complete(bare, state).state, to=1)
    with pytest.raises(ConfigErrors, match="staff"):
        complete(bare, rolled)


def test_the_history_is_bounded_and_what_is_in_force_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "KEEP_CONTENTS", 3)
    monkeypatch.setattr(states, "KEEP_CHANGES", 5)
    state = complete(document()).state
    for share in range(10, 90, 10):
        state = split(state, v1=100 - share, v2=share)
    service = state.services["users"]
    assert (len(service.changes), len(service.contents)) == (5, 3)
    assert weights(state) == {"v1": 20, "v2": 80}
    with pytest.raises(states.UnknownTarget, match="no longer kept"):
        back(state, to=service.changes[0].revision)


# -- any sequence of edits and commands, against a model --------------------------------------------------------

shares = st.sampled_from([1, 5, 20, 50, 80])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), shares),
        st.tuples(st.just("split"), shares),
        st.tuples(st.just("rollback"), st.none()),
        st.tuples(st.just("unrelated"), st.booleans()),
    ),
    max_size=12,
)


@dataclass
class Model:
    """The words of the release model, taken literally: weights in force, and every value they ever had."""

    document: int = 5
    in_force: int = 5
    past: list[int] = field(default_factory=lambda: [5])

    def take(self, share: int) -> None:
        self.in_force = share
        self.past.append(share)

    def undo(self) -> int | None:
        return next((share for share in reversed(self.past) if share != self.in_force), None)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_newest_wins_whatever_happens(todo: list[tuple[str, Any]]) -> None:
    model, data = Model(), document()
    state = complete(data).state
    for what, value in todo:
        before = state
        if what == "edit":
            data = {**data, "services": {"users": users(split={"v1": 100 - value, "v2": value})}}
            state = complete(data, state).state
            if value != model.document:
                model.document = value
                model.take(value)
        elif what == "split":
            state = split(state, v1=100 - value, v2=value)
            model.take(value)
        elif what == "unrelated":
            data = {**data, "decision_headers": value}
            state = complete(data, state).state
        elif (target := model.undo()) is not None:
            state = back(state)
            model.take(target)
        completed = complete(data, state)
        assert completed.state == state
        assert completed.splits["users", SERVICE_SPLIT].weights == {"v1": 100 - model.in_force, "v2": model.in_force}
        assert owners(state).count("v2") == model.in_force * 100
        assert before.revision <= state.revision <= before.revision + 1
        again = TypeAdapter(State).validate_python(orjson.loads(orjson.dumps(state)))
        assert again == state
