"""Direct preference optimization and its relatives: no reward model, no sampling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf_api.data import DataSource
from rlhf_api.stages.common import Supervised


class DPOStage(Supervised):
    """Direct preference optimization (Rafailov et al. 2023)."""

    data: DataSource = Field(
        description="Pairs (query, chosen, rejected); for `kto`, labelled answers."
    )
    loss: Literal["sigmoid", "ipo", "simpo", "orpo", "kto"] = Field(
        default="sigmoid", description="sigmoid is DPO; simpo and orpo need no reference."
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        le=100,
        description="Strength of the tie to the reference. `loss: simpo` scales log-probabilities "
        "per token by it, and wants 2 to 10 (the default is refused); with `loss: orpo` it is λ.",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        le=0.49,
        description="Share of pairs taken to be labelled the wrong way (cDPO).",
    )
    simpo_gamma: float = Field(
        default=0.5,
        ge=0,
        description="SimPO's target margin γ, at most beta: γ/β is one in nats per token.",
    )
    sft_coef: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Weight of the chosen answer's own log-likelihood (RPO).",
    )
    desirable_weight: float = Field(default=1.0, ge=0, description="KTO: weight of good answers.")
    undesirable_weight: float = Field(default=1.0, ge=0, description="KTO: weight of bad answers.")
    reference_cache: bool = Field(
        default=True,
        description="Compute the reference's log-probabilities once, then free its memory.",
    )
