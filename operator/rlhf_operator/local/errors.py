"""What can be wrong with a run on one machine that its user can mend."""

from __future__ import annotations


class LocalRunError(Exception):
    """A sentence that says what is wrong and what to do; never shown with a traceback."""
