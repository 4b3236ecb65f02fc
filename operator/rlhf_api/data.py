"""Where models and data come from, and how rows are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_api.base import OPERATIONAL, Contract, ObjectName

Source = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[^\x00-\x1f]+$",
        description=(
            "Where it is: hf://OWNER/NAME, s3://BUCKET/KEY, gs://BUCKET/KEY, pvc://CLAIM/PATH, "
            "oci://IMAGE or oci://IMAGE#PATH, or a path of this machine (relative to the manifest)."
        ),
        examples=["hf://Qwen/Qwen2.5-7B", "pvc://datasets/sft.jsonl", "data/sft.jsonl"],
    ),
]

Revision = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9_./-]+$")]
"""A commit, branch or tag."""

SourceSecret = Annotated[
    ObjectName | None,
    OPERATIONAL,
    Field(
        description=(
            "Secret that a remote source is fetched with; only the prepare pod sees it. Keys: "
            "HF_TOKEN; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where needed, "
            "AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION; credentials.json (Google)."
        )
    ),
]

Format = Literal[
    "auto", "prompt", "alpaca", "messages", "sharegpt", "preference", "ranked", "kto", "hh", "text"
]


class ModelSource(Contract):
    """A causal language model in Hugging Face layout."""

    source: Source
    revision: Revision | None = Field(
        default=None, description="Commit of a hub model; pins what is fetched."
    )
    secret: SourceSecret = None
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


ColumnName = Annotated[str, Field(min_length=1, max_length=256)]


class Columns(Contract):
    """Names of the columns that hold each part of a row; unset ones are recognised."""

    prompt: ColumnName | None = Field(
        default=None, description="The question, as text or messages."
    )
    input: ColumnName | None = Field(
        default=None, description="Further input below an instruction."
    )
    answer: ColumnName | None = Field(default=None, description="The wanted answer.")
    system: ColumnName | None = Field(default=None, description="A system message.")
    history: ColumnName | None = Field(
        default=None, description="Earlier turns: pairs of question and answer."
    )
    messages: ColumnName | None = Field(
        default=None, description="A whole dialogue as a list of turns."
    )
    chosen: ColumnName | None = Field(default=None, description="The preferred answer or dialogue.")
    rejected: ColumnName | None = Field(default=None, description="The other answer or dialogue.")
    answers: ColumnName | None = Field(default=None, description="K answers, ranked.")
    ranks: ColumnName | None = Field(
        default=None, description="Rank of each of the K answers; 0 is the best."
    )
    margin: ColumnName | None = Field(
        default=None, description="By how much the chosen answer is better."
    )
    label: ColumnName | None = Field(
        default=None, description="Whether the answer is a good one (KTO)."
    )
    text: ColumnName | None = Field(
        default=None, description="Plain text, as for the pretraining mix."
    )


class DataSource(Contract):
    """A data set: JSONL, JSON, Parquet or CSV, a folder of them, or a Hugging Face data set."""

    source: Source
    revision: Revision | None = Field(default=None, description="Commit of a hub data set.")
    secret: SourceSecret = None
    split: str = Field(default="train", description="Split of a hub data set.", max_length=128)
    format: Format = Field(
        default="auto", description="Format of the rows; `auto` recognises it by the columns."
    )
    columns: Columns = Field(
        default_factory=Columns, description="Columns with names of their own."
    )
    variables: dict[str, Annotated[str, Field(max_length=1024)]] = Field(
        default_factory=dict,
        max_length=64,
        description="Text that fills `{{name}}` placeholders in the rows.",
        examples=[{"name": "Ada", "author": "Example Lab"}],
    )
    limit: int | None = Field(default=None, ge=1, le=2**31 - 1, description="Rows to read at most.")
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
