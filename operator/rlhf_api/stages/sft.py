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
