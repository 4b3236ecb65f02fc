"""Reward model: a scalar score that ranks answers as people ranked them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf_api.data import DataSource
from rlhf_api.stages.common import Supervised


class RewardStage(Supervised):
    """Reward model on pairs or ranked lists (Ouyang et al. 2022, section 3.5)."""

    data: DataSource = Field(
        description="Pairs (query, chosen, rejected) or ranked lists of K answers."
    )
    start_from: Literal["auto", "sft", "base", "random"] = Field(
        default="auto",
        description="Weights of the trunk: the SFT stage's, spec.model's, or fresh ones; "
        "`auto` is sft where that stage is there, else base.",
    )
    center_coef: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Weight of (s_chosen + s_rejected)² in the loss, which keeps scores near 0.",
    )
    normalise_on: Literal["auto", "demonstrations", "chosen", "all"] = Field(
        default="auto",
        description="Answers whose scores' mean and deviation travel with the model: "
        "demonstrations, those of the SFT data; chosen or all, those of this stage's data; `auto` "
        "is demonstrations where our trainer runs an sft stage in this job, else all.",
    )

    @property
    def may_start_from_sft(self) -> bool:
        """Whether it takes the output of the SFT stage, where there is one."""
        return self.start_from in ("auto", "sft")
