"""No gang scheduler: a cluster without one, and one machine."""

from __future__ import annotations

from rlhf_operator.render.gang.scheduler import Gang, keep_together

NONE = Gang(kinds=lambda platform: [], objects=lambda pods: [], mark=keep_together)
