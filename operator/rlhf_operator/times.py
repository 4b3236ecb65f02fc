"""Points in time as Kubernetes writes them: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from rlhf_api.resources import RetryPolicy


def written(moment: datetime) -> str:
    """2026-01-31T12:00:00Z. `moment` must know its time zone."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(text: str) -> datetime:
    """The inverse of `written`."""
    return datetime.fromisoformat(text)


def pause(policy: RetryPolicy, times: int) -> timedelta:
    """How long to wait after something has happened for the n-th time: doubling, with a ceiling."""
    return timedelta(seconds=doubled(policy.backoff_seconds, times, policy.max_backoff_seconds))


def doubled(first: float, times: int, ceiling: float) -> float:
    """`first` for the first time, twice that for the second, and so on; 0 for none."""
    if times < 1:
        return 0.0
    return min(first * 2.0 ** min(times - 1, 40), ceiling)  # 40: past every ceiling, no overflow
