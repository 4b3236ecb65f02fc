"""One file a stage; its class is validation, CRD schema, documentation and configuration."""

from __future__ import annotations

from rlhf_api.stages.dpo import DPOStage
from rlhf_api.stages.ppo import PPOStage
from rlhf_api.stages.reward import RewardStage
from rlhf_api.stages.sft import SFTStage

AnyStage = SFTStage | RewardStage | PPOStage | DPOStage

__all__ = ["AnyStage", "DPOStage", "PPOStage", "RewardStage", "SFTStage"]
