"""Arithmetic on Kubernetes quantities, exact and in the user's own unit."""

from __future__ import annotations

import re
from decimal import Decimal

QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)")


def times(quantity: str | int, factor: int) -> str:
    """A quantity of one pod for a number of pods: 1.5Gi for 4 pods is 6Gi.

    Raises ValueError for what is no quantity.
    """
    match = QUANTITY.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"{quantity!r} is not a quantity")
    amount, unit = match.groups()
    product = Decimal(amount) * factor
    return f"{product.normalize():f}{unit}"
