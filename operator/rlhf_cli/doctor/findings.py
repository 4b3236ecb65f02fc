"""What a check says."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from rlhf_operator.api import Api, ApiError, Object, Resource

Level = Literal["ok", "warning", "error", "unknown"]
MARKS: Final[dict[Level, tuple[str, str]]] = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "error": ("✗", "red"),
    "unknown": ("?", "dim"),
}


class Finding(NamedTuple):
    """One sentence on what is there, and one on what to do; empty where nothing is."""

    level: Level
    subject: str
    found: str
    advice: str = ""


class Look(NamedTuple):
    """Where is looked."""

    api: Api
    namespace: str

    async def listed(
        self, resource: Resource, *, everywhere: bool = True, **of: Any
    ) -> list[Object]:
        """All objects of a kind. Raises ApiError."""
        namespace = None if everywhere else self.namespace
        items, _ = await self.api.list(resource, namespace, **of)
        return items


def not_seen(subject: str, error: ApiError) -> Finding:
    """A check that this user may not make, or that the API server did not answer."""
    return Finding("unknown", subject, f"cannot be looked at: {error.args[0]}")
