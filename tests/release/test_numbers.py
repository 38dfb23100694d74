from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graylb.release import numbers


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(-20, 20))
def test_a_range_is_its_comparisons(low: int, high: int, value: int) -> None:
    range_ = numbers.parse_range(f">={low}, <{high} !={low + 1}.0")
    assert numbers.satisfies(str(value), range_) == (low <= value < high and value != low + 1)


@pytest.mark.parametrize(
    "text", ["", "+1", "1e3", "0x1", " 1", "1 ", ".5", "5.", "--1", "1_0", "\u0663", "nan", "1" * 41]
)
def test_other_texts_satisfy_nothing(text: str) -> None:
    assert not numbers.satisfies(text, numbers.parse_range("!=7777"))
    assert not numbers.satisfies(text, numbers.parse_range(">=-1"))


@pytest.mark.parametrize("text", ["1" * 40, "-0", "007", "0.50", "-12.25"])
def test_plain_decimals_are_numbers(text: str) -> None:
    assert numbers.satisfies(text, numbers.parse_range("!=7777"))


def test_operators() -> None:
    assert numbers.parse_range("5") == numbers.parse_range("=5") == numbers.parse_range("== 5") == (("==", 5.0),)
    assert numbers.parse_range(">1,<=2.5 ") == ((">", 1.0), ("<=", 2.5))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "missing"),
        (">=1,", "missing"),
        ("10-20", "not a plain decimal"),
        (">=1e3", "not a plain decimal"),
        (">=1<2", "cannot read"),
        ("=>1", "cannot read"),
        (",1", "cannot read"),
    ],
)
def test_errors_say_what_was_expected(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"{reason}.*expected comparisons"):
        numbers.parse_range(text)
