"""Quantities: the grammar of Kubernetes, exact, bounded, and back to text."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster.domain.quantity import (
    MAX_AMOUNT,
    MAX_QUANTITY_CHARS,
    Unit,
    format_quantity,
    parse_quantity,
)

BASE_UNITS_PER_ONE = {
    Unit.MILLI: 1000,
    Unit.BYTE: 1,
    Unit.BIT_PER_S: 1,
    Unit.COUNT: 1,
    Unit.DEVICE_MILLI: 1000,
}

FACTORS = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}

units = st.sampled_from(list(Unit))


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("500m", Unit.MILLI, 500),
        ("2", Unit.MILLI, 2000),
        (0.5, Unit.MILLI, 500),
        (0.1, Unit.MILLI, 100),
        (3, Unit.MILLI, 3000),
        ("100u", Unit.MILLI, 1),
        ("1000001n", Unit.MILLI, 2),
        ("256Mi", Unit.BYTE, 268_435_456),
        ("1.5Gi", Unit.BYTE, 1_610_612_736),
        ("1G", Unit.BYTE, 1_000_000_000),
        ("1e3", Unit.BYTE, 1000),
        ("1E3", Unit.BYTE, 1000),
        ("5E-1", Unit.BYTE, 1),
        ("0.001E", Unit.BYTE, 10**15),
        ("0.001Ei", Unit.BYTE, 1_152_921_504_606_847),
        (".5k", Unit.BYTE, 500),
        ("1.", Unit.BYTE, 1),
        ("+1", Unit.BYTE, 1),
        ("-0", Unit.BYTE, 0),
        (1e15, Unit.BYTE, 10**15),
        (1e-7, Unit.BYTE, 1),
        ("0e999999999999999999", Unit.BYTE, 0),
        ("1e-999999999999999999", Unit.BYTE, 1),
        ("0." + "0" * 40 + "1e43", Unit.BYTE, 100),
        ("1" + "0" * 50 + "e-48", Unit.BYTE, 100),
        ("10M", Unit.BIT_PER_S, 10_000_000),
        ("3", Unit.COUNT, 3),
        ("2k", Unit.COUNT, 2000),
        (1, Unit.DEVICE_MILLI, 1000),
        ("0.5", Unit.DEVICE_MILLI, 500),
        (str(MAX_AMOUNT), Unit.COUNT, MAX_AMOUNT),
        (MAX_AMOUNT, Unit.COUNT, MAX_AMOUNT),
        ("0" * (MAX_QUANTITY_CHARS - 1) + "7", Unit.COUNT, 7),
    ],
)
def test_parses(text: str | int | float, unit: Unit, amount: int) -> None:
    assert parse_quantity(text, field="f", unit=unit) == amount


REFUSED: list[Any] = [
    *("", " ", "1 Gi", " 1", "1 ", "1\n", "--1", "+-1", "1GiB", "Gi", ".", "+", "1e", "1e+"),
    *("1e3Mi", "1K", "1ki", "1i", "1mm", "0x10", "1_000", "1,5", "1.2.3", "e3", "٣"),
    *("nan", "NaN", "inf", "-inf", "Infinity"),
    *(float("nan"), float("inf"), float("-inf")),
    *("-1", "-1m", "-0.1", "-1e-999999999999", -1, -0.5, -(10**30)),
    *(True, False, None, b"1", [1]),
    *("1e16", "8Pi", "1E", "1e999999999999999999", 1e300, MAX_AMOUNT + 1, 10**30, 10**5000),
    *("9007199254740991.5", "0" * MAX_QUANTITY_CHARS + "1"),
]


@pytest.mark.parametrize("value", REFUSED, ids=range(len(REFUSED)))
def test_refuses_naming_field_value_and_limit(value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_quantity(value, field="tasks[3].resources.memory", unit=Unit.BYTE)
    error = caught.value
    assert error.field == "tasks[3].resources.memory"
    assert error.limit.startswith("must ")
    if not isinstance(value, int) or value.bit_length() <= 64:
        assert error.value is value
    else:
        assert str(value.bit_length()) in str(error.value)
    assert "tasks[3].resources.memory" in str(error)


def test_limits_say_which_bound_is_broken() -> None:
    cases: list[tuple[str | float, Unit, str]] = [
        ("-1", Unit.BYTE, "at least 0"),
        ("8Pi", Unit.BYTE, str(MAX_AMOUNT)),
        ("10000000000000", Unit.MILLI, f"{MAX_AMOUNT}m"),
        (float("nan"), Unit.BYTE, "finite"),
        ("9" * 65, Unit.BYTE, "64 characters, got 65"),
        ("1GiB", Unit.BYTE, "suffix"),
    ]
    for value, unit, limit in cases:
        with pytest.raises(InvalidInput, match=limit):
            parse_quantity(value, field="f", unit=unit)


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (0, Unit.MILLI, "0"),
        (500, Unit.MILLI, "500m"),
        (1500, Unit.MILLI, "1500m"),
        (2000, Unit.MILLI, "2"),
        (2_000_000, Unit.MILLI, "2k"),
        (0, Unit.BYTE, "0"),
        (1, Unit.BYTE, "1"),
        (1000, Unit.BYTE, "1k"),
        (1024, Unit.BYTE, "1Ki"),
        (1536, Unit.BYTE, "1536"),
        (1_024_000, Unit.BYTE, "1024k"),
        (10_112_000, Unit.BYTE, "9875Ki"),
        (1_610_612_736, Unit.BYTE, "1536Mi"),
        (10**9, Unit.BYTE, "1G"),
        (1024, Unit.COUNT, "1024"),
        (10_000_000, Unit.BIT_PER_S, "10M"),
        (1000, Unit.DEVICE_MILLI, "1"),
        (250, Unit.DEVICE_MILLI, "250m"),
        (2**60 * 16, Unit.BYTE, "16Ei"),
    ],
)
def test_formats_canonically(amount: int, unit: Unit, text: str) -> None:
    assert format_quantity(amount, unit) == text


@given(units)
def test_a_negative_amount_is_our_own_bug(unit: Unit) -> None:
    with pytest.raises(ValueError, match="-1"):
        format_quantity(-1, unit)


round_amounts = st.builds(
    lambda digits, base, power: min(digits * base**power, MAX_AMOUNT),
    st.integers(0, 2000),
    st.sampled_from([10, 1000, 1024]),
    st.integers(0, 5),
)


@given(st.integers(0, MAX_AMOUNT) | round_amounts, units)
def test_what_is_formatted_parses_to_the_same(amount: int, unit: Unit) -> None:
    text = format_quantity(amount, unit)
    assert parse_quantity(text, field="f", unit=unit) == amount


@given(round_amounts, units)
def test_no_shorter_whole_number_with_a_suffix_says_the_same(amount: int, unit: Unit) -> None:
    text = format_quantity(amount, unit)
    base_units = BASE_UNITS_PER_ONE[unit]
    for suffix, factor in FACTORS.items():
        number = Fraction(amount, base_units) / factor
        allowed = unit is Unit.BYTE or not suffix.endswith("i")
        if allowed and number.denominator == 1:
            assert len(text) <= len(f"{number.numerator}{suffix}")


decimal_numbers = st.from_regex(r"\A([0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12})\Z")


@given(decimal_numbers, st.sampled_from(list(FACTORS)), units)
def test_parsing_agrees_with_exact_fractions_rounded_up(
    number: str, suffix: str, unit: Unit
) -> None:
    exact = Fraction(f"0{number}") * FACTORS[suffix] * BASE_UNITS_PER_ONE[unit]
    if exact > MAX_AMOUNT:
        with pytest.raises(InvalidInput):
            parse_quantity(number + suffix, field="f", unit=unit)
    else:
        expected = -(-exact.numerator // exact.denominator)
        assert parse_quantity(number + suffix, field="f", unit=unit) == expected


@given(decimal_numbers, st.sampled_from("eE"), st.integers(-30, 30), units)
def test_exponents_agree_with_exact_fractions(
    number: str, letter: str, exponent: int, unit: Unit
) -> None:
    exact = Fraction(f"0{number}") * Fraction(10) ** exponent * BASE_UNITS_PER_ONE[unit]
    text = f"{number}{letter}{exponent}"
    if exact > MAX_AMOUNT:
        with pytest.raises(InvalidInput):
            parse_quantity(text, field="f", unit=unit)
    else:
        expected = -(-exact.numerator // exact.denominator)
        assert parse_quantity(text, field="f", unit=unit) == expected


@given(st.text(max_size=70) | st.floats() | st.integers())
def test_whatever_comes_is_parsed_within_bounds_or_refused(value: str | float | int) -> None:
    try:
        amount = parse_quantity(value, field="f", unit=Unit.MILLI)
    except InvalidInput:
        return
    assert 0 <= amount <= MAX_AMOUNT
