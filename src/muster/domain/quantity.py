"""Kubernetes-style quantities ("500m", "1.5Gi", "1e3") to integers in base units, and back.

The grammar is that of Kubernetes' `resource.Quantity`: a signed decimal number, then one of
the decimal suffixes n u m k M G T P E, one of the binary suffixes Ki Mi Gi Ti Pi Ei, or an
exponent (`e3`, `E-2`); nothing between them and nothing around them.
"""

import math
import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal, Inexact, InvalidOperation, Overflow
from enum import Enum
from types import MappingProxyType

from muster.domain.errors import InvalidInput

# The largest integer that float64 and JSON numbers carry exactly: amounts pass through both.
MAX_AMOUNT = 2**53 - 1

# Longer than any amount up to MAX_AMOUNT needs with nine decimals; bounds the arithmetic.
MAX_QUANTITY_CHARS = 64


class Unit(Enum):
    """In what an amount is counted; the member says what one base unit is."""

    MILLI = "a thousandth of a cpu core"
    BYTE = "a byte"
    BIT_PER_S = "a bit per second"
    COUNT = "one"
    DEVICE_MILLI = "a thousandth of a device"


_BASE_UNITS_PER_ONE: Mapping[Unit, int] = MappingProxyType(
    {Unit.MILLI: 1000, Unit.BYTE: 1, Unit.BIT_PER_S: 1, Unit.COUNT: 1, Unit.DEVICE_MILLI: 1000}
)

_DECIMAL_FACTORS: Mapping[str, int] = MappingProxyType(
    {suffix: 1000**power for power, suffix in enumerate(("", "k", "M", "G", "T", "P", "E"))}
)
_BINARY_FACTORS: Mapping[str, int] = MappingProxyType(
    {suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
)
_FACTORS: Mapping[str, Decimal] = MappingProxyType(
    {s: Decimal(factor) for s, factor in {**_DECIMAL_FACTORS, **_BINARY_FACTORS}.items()}
    | {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")}
)

_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?:[eE](?P<exponent>[+-]?[0-9]+)|(?P<suffix>[KMGTPE]i|[numkMGTPE]))?"
)

# 64 digits times 1024**6 times 1000 has 86 digits, so nothing is ever rounded; were it, the
# Inexact trap would tell.
_EXACT = Context(prec=128, traps=[Inexact, InvalidOperation, Overflow])

# Past this a number of at most 64 characters is either zero, above MAX_AMOUNT, or a tiny
# fraction of a base unit, whatever the exponent: clamping keeps the result and bounds the work.
_EXPONENT_BOUND = 200

_GRAMMAR = (
    "a number of at least 0 with an optional suffix n, u, m, k, M, G, T, P, E, "
    "Ki, Mi, Gi, Ti, Pi, Ei or exponent, such as 500m, 2, 1.5Gi or 1e3"
)


def parse_quantity(text: str | int | float, *, field: str, unit: Unit) -> int:
    """Return the amount in base units of `unit`, 0 to MAX_AMOUNT.

    A value finer than the base unit is rounded up, as Kubernetes does. A float stands for its
    shortest decimal text: 0.1 is one tenth, not the binary fraction next to it.

    Raises InvalidInput naming `field`.
    """
    value = _decimal_of(text, field)
    amount = _EXACT.multiply(value, Decimal(_BASE_UNITS_PER_ONE[unit]))
    if amount < 0:
        raise InvalidInput(field, text, "must be at least 0")
    if amount > MAX_AMOUNT:
        raise InvalidInput(field, text, f"must be at most {format_quantity(MAX_AMOUNT, unit)}")
    return int(amount.to_integral_value(rounding=ROUND_CEILING))


def format_quantity(amount: int, unit: Unit) -> str:
    """Return the shortest exact text without a fraction; binary suffixes only for bytes.

    Amounts above MAX_AMOUNT (sums over a cluster) are formatted too, although no single
    quantity may be parsed to one. Raises ValueError when `amount` is negative: our own bug.
    """
    if amount < 0:
        raise ValueError(f"an amount is never negative, got {amount}")
    whole, rest = divmod(amount, _BASE_UNITS_PER_ONE[unit])
    if rest:
        return f"{amount}m"
    if whole == 0:
        return "0"
    decimal_text = _with_largest_suffix(whole, _DECIMAL_FACTORS)
    if unit is not Unit.BYTE:
        return decimal_text
    binary_text = _with_largest_suffix(whole, {"": 1, **_BINARY_FACTORS})
    # On equal length binary wins, as memory is read: 9875Ki, not 10112k.
    return decimal_text if len(decimal_text) < len(binary_text) else binary_text


def _with_largest_suffix(whole: int, factors: Mapping[str, int]) -> str:
    suffix, factor = max(
        ((s, f) for s, f in factors.items() if whole % f == 0), key=lambda pair: pair[1]
    )
    return f"{whole // factor}{suffix}"


def _decimal_of(value: object, field: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidInput(field, value, f"must be {_GRAMMAR}")
    if isinstance(value, int):
        return _decimal_of_int(value, field)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(field, value, "must be a finite number")
        return Decimal(repr(float(value)))
    if len(value) > MAX_QUANTITY_CHARS:
        limit = f"must have at most {MAX_QUANTITY_CHARS} characters, got {len(value)}"
        raise InvalidInput(field, value, limit)
    return _decimal_of_text(value, field)


def _decimal_of_int(value: int, field: str) -> Decimal:
    if value.bit_length() > 64:
        # Python refuses to print integers above 4300 digits, so such a one is described.
        sign = "a negative" if value < 0 else "an"
        shown = f"{sign} integer of {value.bit_length()} bits"
        raise InvalidInput(field, shown, f"must be from 0 to {MAX_AMOUNT} base units")
    return Decimal(value)


def _decimal_of_text(text: str, field: str) -> Decimal:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidInput(field, text, f"must be {_GRAMMAR}")
    number = Decimal(match["number"])
    if match["exponent"] is not None:
        exponent = max(-_EXPONENT_BOUND, min(_EXPONENT_BOUND, int(match["exponent"])))
        return number.scaleb(exponent, context=_EXACT)
    return _EXACT.multiply(number, _FACTORS[match["suffix"] or ""])
