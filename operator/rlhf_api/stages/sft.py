"""Supervised fine-tuning: the model learns to give the answers of a data set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf_api.data import DataSource
from rlhf_api.stages.common import Supervised


class SFTStage(Supervised):
    """Supervised fine-tuning on prompt/answer pairs or dialogues."""

    data: DataSource = Field(description="Prompt/answer rows or dialogues.")
    packing: bool = Field(
        default=True,
        description="Put several short rows into one sequence, with no attention between them.",
    )
    train_on: Literal["answers", "all"] = Field(
        default="answers",
        description="Tokens that count in the loss: the assistant's turns, or all.",
    )
    neftune_noise_alpha: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="α of NEFTune (Jain et al. 2024): noise of at most α/√(tokens · width) on a "
        "row's embeddings as it is trained on; the paper's are 5, 10 and 15; default: none.",
    )
