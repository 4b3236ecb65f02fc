"""Where models and data come from, and how rows are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_api.base import Contract

Source = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[^\x00-\x1f]+$",
        description=(
            "Where it is: hf://OWNER/NAME, s3://BUCKET/KEY, gs://BUCKET/KEY, pvc://CLAIM/PATH, "
            "oci://IMAGE, or a path of this machine (relative to the manifest)."
        ),
        examples=["hf://Qwen/Qwen2.5-7B", "pvc://datasets/sft.jsonl", "data/sft.jsonl"],
    ),
]

Format = Literal[
    "auto", "prompt", "alpaca", "messages", "sharegpt", "preference", "ranked", "kto", "hh", "text"
]


class ModelSource(Contract):
    """A causal language model in Hugging Face layout."""

    source: Source
    revision: str | None = Field(
        default=None,
        description="Commit of a hub model; pins what is fetched.",
        max_length=128,
        pattern=r"^[\w./-]+$",
    )
    tokenizer: Source | None = Field(
        default=None, description="A tokenizer of its own; default: the one beside the model."
    )
    init: Literal["pretrained", "random"] = Field(
        default="pretrained",
        description="`random` draws weights from the seed; config.json and a tokenizer suffice.",
    )
    chat_template: str | None = Field(
        default=None,
        description="Jinja chat template that replaces the tokenizer's own.",
        max_length=65536,
    )


class Columns(Contract):
    """Names of the columns that hold each part of a row; unset ones are recognised."""

    prompt: str | None = Field(default=None, description="The question, as text or messages.")
    input: str | None = Field(default=None, description="Further input below an instruction.")
    answer: str | None = Field(default=None, description="The wanted answer.")
    system: str | None = Field(default=None, description="A system message.")
    history: str | None = Field(
        default=None, description="Earlier turns: pairs of question and answer."
    )
    messages: str | None = Field(default=None, description="A whole dialogue as a list of turns.")
    chosen: str | None = Field(default=None, description="The preferred answer or dialogue.")
    rejected: str | None = Field(default=None, description="The other answer or dialogue.")
    answers: str | None = Field(default=None, description="K answers, ranked.")
    ranks: str | None = Field(
        default=None, description="Rank of each of the K answers; 0 is the best."
    )
    margin: str | None = Field(default=None, description="By how much the chosen answer is better.")
    label: str | None = Field(default=None, description="Whether the answer is a good one (KTO).")
    text: str | None = Field(default=None, description="Plain text, as for the pretraining mix.")


class DataSource(Contract):
    """A data set: JSONL, JSON, Parquet or CSV, a folder of them, or a Hugging Face data set."""

    source: Source
    revision: str | None = Field(
        default=None, description="Commit of a hub data set.", max_length=128
    )
    split: str = Field(default="train", description="Split of a hub data set.", max_length=128)
    format: Format = Field(
        default="auto", description="Format of the rows; `auto` recognises it by the columns."
    )
    columns: Columns = Field(
        default_factory=Columns, description="Columns with names of their own."
    )
    variables: dict[str, str] = Field(
        default_factory=dict,
        description="Text that fills `{{name}}` placeholders in the rows.",
        examples=[{"name": "Ada", "author": "Example Lab"}],
    )
    limit: int | None = Field(default=None, ge=1, description="Rows to read at most.")
    on_error: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="What a bad row does: stop the job before training, or be left out.",
    )
    max_skipped_fraction: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="With `onError: skip`: the share of rows that may be left out.",
    )
    overlong: Literal["refuse", "truncate"] = Field(
        default="refuse",
        description="What a row longer than maxLength is: a bad row (see onError), or cut to fit.",
    )
    eval_fraction: float = Field(
        default=0.05,
        ge=0,
        le=0.5,
        description="Share of rows held out for evaluation, chosen by the seed; 0: none.",
    )
    eval_source: Source | None = Field(
        default=None, description="A held-out data set of its own, instead of evalFraction."
    )
