"""Rules for the addresses of models, data and code."""

from __future__ import annotations

import re
from typing import Any, Final

from rlhf_api.data import DataSource, ModelSource
from rlhf_api.job import Evaluation
from rlhf_api.rules.rule import Rule, Rules
from rlhf_api.stages.ppo import FunctionReward, PPOStage, PretrainingMix

SHAPES: Final = {
    "hf": r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?",
    "s3": r"[A-Za-z0-9_.-]+/.+",
    "gs": r"[A-Za-z0-9_.-]+/.+",
    "pvc": r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?",
    "oci": r"[^ #]+(#[^ #]+)?",
}
"""What stands behind scheme://."""

ADDRESS: Final = "^(" + "|".join(f"{scheme}://{rest}" for scheme, rest in SHAPES.items()) + ")$"
REMOTE: Final = "://|^(" + "|".join(SHAPES) + "):"
"""An address of somewhere else, also where a slash of it was forgotten: hf:/OWNER/NAME."""
CLIMBS: Final = r"://(.*[/#])?[.][.](/|$)"
FETCHED: Final = r"^(hf|s3|gs)://"
KNOWN: Final = (
    "hf://OWNER/NAME, s3://BUCKET/KEY, gs://BUCKET/KEY, pvc://CLAIM/PATH, oci://IMAGE, "
    "oci://IMAGE#PATH, or a local path"
)


def _has_shape(address: str | None) -> bool:
    if address is None or not re.search(REMOTE, address):
        return True
    return bool(re.fullmatch(ADDRESS, address))


def _stays_inside(address: str | None) -> bool:
    return address is None or not re.search(CLIMBS, address)


def _address_rules(field: str, name: str, optional: bool = False) -> tuple[Rule, ...]:
    """The rules of one field that holds an address. Local paths are the user's own."""
    unset = f"!has(self.{field}) || " if optional else ""
    return (
        Rule(
            "addresses_have_shape",
            field,
            lambda value: _has_shape(getattr(value, name)),
            f"{unset}!self.{field}.matches('{REMOTE}') || self.{field}.matches(r'{ADDRESS}')",
            "is not an address that is known",
            KNOWN,
        ),
        Rule(
            "addresses_stay_inside",
            field,
            lambda value: _stays_inside(getattr(value, name)),
            f"{unset}!self.{field}.matches(r'{CLIMBS}')",
            "leaves its volume",
            "a path without '..'",
        ),
    )


REVISION_HAS_A_HUB: Final = Rule(
    "hub_fields_have_a_hub",
    "revision",
    lambda source: source.revision is None or source.source.startswith("hf://"),
    "!has(self.revision) || self.source.startsWith('hf://')",
    "is set, and the source is not on a hub",
    "leave it out, or hf://OWNER/NAME",
)
SPLIT_HAS_A_HUB: Final = Rule(
    "hub_fields_have_a_hub",
    "split",
    lambda data: data.split == "train" or data.source.startswith("hf://"),
    "self.split == 'train' || self.source.startsWith('hf://')",
    "is set, and the source is not on a hub",
    "leave it out, or hf://OWNER/NAME",
)


def _secret_is_used(other: str, name: str) -> Rule:
    """A Secret serves only what is fetched; `other` is the source's second address."""
    return Rule(
        "secrets_of_sources_are_used",
        "secret",
        lambda value: (
            value.secret is None
            or bool(re.match(FETCHED, value.source))
            or bool(re.match(FETCHED, getattr(value, name) or ""))
        ),
        f"!has(self.secret) || self.source.matches('{FETCHED}') || "
        f"(has(self.{other}) && self.{other}.matches('{FETCHED}'))",
        "is set, and nothing is fetched",
        "leave it out; hf://, s3:// and gs:// are fetched",
    )


def _read_whole(field: str, own_trainer: bool = False) -> tuple[Rule, ...]:
    """Rules of an object whose data set in `field` has no held-out rows, unless a trainer that is
    not ours reads it. What evalFraction is by default cannot be told from what is left out.
    """
    share = DataSource.model_fields["eval_fraction"].default
    unless = " || has(self.command)" if own_trainer else ""

    def data(value: Any) -> DataSource | None:
        is_ours = not own_trainer or value.command is None
        return getattr(value, field) if is_ours else None

    return (
        Rule(
            "held_out_rows_are_read",
            f"{field}.evalSource",
            lambda value: (found := data(value)) is None or found.eval_source is None,
            f"!has(self.{field}.evalSource){unless}",
            "is set, and nobody would read it",
            "leave it out; spec.evaluation.prompts are answered by each policy",
        ),
        Rule(
            "held_out_rows_are_read",
            f"{field}.evalFraction",
            lambda value: (found := data(value)) is None or found.eval_fraction in (0, share),
            f"self.{field}.evalFraction in [0.0, {share}]{unless}",
            f"is {{{field}.evalFraction}}, and nobody would read what it holds out",
            "leave it out: all rows are used; spec.evaluation.prompts are answered by each policy",
        ),
    )


SOURCE_HAS_AN_ADDRESS: Final = _address_rules("source", "source")

SOURCE_RULES: Final[Rules] = {
    ModelSource: (
        *SOURCE_HAS_AN_ADDRESS,
        *_address_rules("tokenizer", "tokenizer", optional=True),
        REVISION_HAS_A_HUB,
        _secret_is_used("tokenizer", "tokenizer"),
    ),
    DataSource: (
        *SOURCE_HAS_AN_ADDRESS,
        *_address_rules("evalSource", "eval_source", optional=True),
        REVISION_HAS_A_HUB,
        SPLIT_HAS_A_HUB,
        _secret_is_used("evalSource", "eval_source"),
    ),
    FunctionReward: SOURCE_HAS_AN_ADDRESS,
    PPOStage: _read_whole("data", own_trainer=True),
    PretrainingMix: _read_whole("data"),
    Evaluation: _read_whole("prompts"),
}
