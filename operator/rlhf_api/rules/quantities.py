"""Quantities of bytes: what they come to, and that their unit was not forgotten."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from rlhf_api.rules.rule import Rule

UNITS: Final = {
    "": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6),
    "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip
LEAST: Final = 2**20
"""No pod and no volume is smaller: containers do not start below some MiB of memory."""


def in_bytes(quantity: int | str) -> Decimal:
    """What a quantity comes to; 0 of what is none."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    return Decimal(found[1]) * UNITS[found[2]] if found else Decimal(0)


def bytes_have_a_unit(field: str, name: str) -> Rule:
    """`memory: 64` is 64 bytes, and `64m` less than one. 0 is a number that somebody meant."""

    def holds(value: object) -> bool:
        quantity = getattr(value, name)
        return quantity is None or in_bytes(quantity) == 0 or in_bytes(quantity) >= LEAST

    return Rule(
        "bytes_have_a_unit",
        field,
        holds,
        f"!has(self.{field}) || (type(self.{field}) == int "
        f"? self.{field} == 0 || self.{field} >= {LEAST} "
        f": quantity(self.{field}).compareTo(quantity('0')) == 0 || "
        f"quantity(self.{field}).compareTo(quantity('{LEAST}')) >= 0)",
        "is less than 1Mi",
        "bytes, with a unit such as Gi; without one, 64 is 64 bytes",
    )
