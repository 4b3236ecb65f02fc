"""One stage attempt as Kubernetes objects, as plain dicts. Pure.

    render(job, "ppo", 3, hash, settings, platform) ->
        [PersistentVolumeClaim?, ConfigMap, Service?, PodGroup?, Job]

The Job comes last: where it exists, all that it needs exists.
"""

from rlhf_operator.render.attempt import preview, render
from rlhf_operator.render.gang import GangChoice, gang_choice
from rlhf_operator.render.platform import Defaults, Platform

__all__ = ["Defaults", "GangChoice", "Platform", "gang_choice", "preview", "render"]
