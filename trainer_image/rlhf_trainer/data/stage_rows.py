"""The rows of each stage, read, checked and encoded: the same for prepare and for training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
from rlhf_api.base import identity
from rlhf_api.data import DataSource
from rlhf_api.job import Evaluation
from rlhf_api.run import Demonstrations
from rlhf_api.stages import DPOStage, PPOStage, RewardStage, SFTStage

from rlhf_trainer.data.encode import (
    Encoded,
    EncodedLabelled,
    EncodedPreference,
    EncodedPrompt,
    Keep,
    compact,
    encode_all,
    encode_dialogue,
    encode_labelled,
    encode_language,
    encode_preference,
    encode_prompt,
)
from rlhf_trainer.data.load import (
    Loaded,
    load_dialogues,
    load_labelled,
    load_language,
    load_preferences,
    load_prompts,
    prompts_in_turn,
)
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.together import Encoder
from rlhf_trainer.errors import BadData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEFT_OUT: Final = "data.json"
UNLIMITED: Final = 1 << 30
REFERENCE_QUERIES: Final = 1024
"""Demonstrations or training queries, drawn by the seed, whose answers' scores give mean and
deviation."""
E = TypeVar("E")
T = TypeVar("T")
log = logging.getLogger(__name__)


class Recipe(NamedTuple, Generic[E]):
    """How a data set is read and encoded: with its files, the tokenizer and the seed, all that
    decides what its rows are."""

    load: Callable[[DataSource, Mapping[str, str], int], Loaded[Any]]
    encode: Encoder[..., E]
    source: DataSource
    settings: Mapping[str, Any]

    def rows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        paths: Mapping[str, str],
        seed: int,
        keep: Keep[E] = list,
    ) -> Loaded[E]:
        """The rows, encoded, where `keep` has them. Raises BadData."""
        steps = partial(self.encode.steps, tokenizer, **self.settings)
        loaded = self.load(self.source, paths, seed)
        return encode_all(loaded, steps, self.source, tokenizer, keep)

    @property
    def text(self) -> str:
        """All of it in words: another recipe has others."""
        names = self.load.__name__, self.encode.__name__
        return json.dumps([names, identity(self.source), dict(self.settings)], sort_keys=True)


def sft_rows(stage: SFTStage) -> Recipe[Encoded]:
    """Dialogues with the loss mask that the stage asks for."""
    settings = {
        "max_length": stage.max_length,
        "train_on": stage.train_on,
        "overlong": stage.data.overlong,
    }
    return Recipe(load_dialogues, encode_dialogue, stage.data, settings)


class Demonstrated(Recipe[Encoded]):
    """At most so many dialogues of the SFT data's training part, drawn by the seed, each up to the
    end of its last answer: that is what PPO's prompts, of the same rows, ask for.

    Left out are those that are too long, which end in mid-answer where SFT cuts them, and those
    whose last answer SFT does not learn.
    """

    def rows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        paths: Mapping[str, str],
        seed: int,
        keep: Keep[Encoded] = list,
    ) -> Loaded[Encoded]:
        """They are few, and encoded one by one. Raises BadData where none is left."""
        longest, count = self.settings["max_length"], self.settings["count"]
        dialogues = self.load(self.source, paths, seed).train
        found: list[Encoded] = []
        for dialogue in drawn(dialogues, seed, 2 * count):
            with suppress(RowProblem):
                row = self.encode(tokenizer, dialogue, longest)
                if row.loss_mask[-1]:
                    found.append(compact(row))
            if len(found) == count:
                break
        if not found:
            raise BadData(
                f"{self.source.source}: no dialogue with an answer to learn at its end has "
                f"{longest} tokens or less, to normalise scores on: raise maxLength of sft and "
                "reward, or set reward.normaliseOn to chosen or all"
            )
        return Loaded(keep(found), keep([]), [])


def drawn(items: Sequence[T], seed: int, at_once: int) -> Iterator[T]:
    """All of them, in an order by the seed; they are read in order, so many at a time."""
    order = np.random.default_rng(seed).permutation(len(items))
    for begin in range(0, len(items), at_once):
        wanted = order[begin : begin + at_once].tolist()
        places = set(wanted)
        found = {place: item for place, item in enumerate(items) if place in places}
        yield from (found[place] for place in wanted)


def demonstration_rows(demonstrations: Demonstrations) -> Demonstrated:
    """Dialogues whose answers' scores a reward model is normalised by."""
    settings = {"max_length": demonstrations.max_length, "count": REFERENCE_QUERIES}
    return Demonstrated(load_dialogues, encode_dialogue, demonstrations.data, settings)


def preference_rows(stage: RewardStage | DPOStage) -> Recipe[EncodedPreference]:
    """Pairs and ranked lists."""
    return Recipe(load_preferences, encode_preference, stage.data, _lengths(stage))


def labelled_rows(stage: DPOStage) -> Recipe[EncodedLabelled]:
    """Answers with a label, for KTO."""
    return Recipe(load_labelled, encode_labelled, stage.data, _lengths(stage))


def _lengths(stage: RewardStage | DPOStage) -> dict[str, Any]:
    return {"max_length": stage.max_length, "overlong": stage.data.overlong}


def prompt_rows(stage: PPOStage) -> Recipe[EncodedPrompt]:
    """Prompts to sample from."""
    source, length = stage.data, stage.rollout.max_prompt_length
    settings = {"max_length": length, "overlong": source.overlong}
    return Recipe(load_prompts, encode_prompt, source, settings)


def pretraining_rows(stage: PPOStage) -> Recipe[Encoded]:
    """Text or dialogues of PPO's pretraining mix, no longer than a prompt and its response."""
    assert stage.pretraining is not None
    source = stage.pretraining.data
    length = stage.rollout.max_prompt_length + stage.rollout.max_new_tokens
    settings = {"max_length": length, "overlong": source.overlong}
    return Recipe(load_language, encode_language, source, settings)


def evaluation_rows(evaluation: Evaluation) -> Recipe[EncodedPrompt]:
    """All prompts of an evaluation, whole."""
    settings = {"max_length": UNLIMITED}
    return Recipe(load_prompts, encode_prompt, evaluation.prompts, settings)


def evaluation_prompts(
    evaluation: Evaluation,
    tokenizer: PreTrainedTokenizerBase,
    paths: Mapping[str, str],
    length: int,
) -> list[EncodedPrompt]:
    """The first of the rows that `evaluation_rows` has accepted, each cut to so many tokens."""
    found: list[EncodedPrompt] = []
    for prompt in prompts_in_turn(evaluation.prompts, paths):
        with suppress(RowProblem):  # may be left out, or would have been refused
            found.append(encode_prompt(tokenizer, prompt, length, "truncate"))
        if len(found) == evaluation.limit:
            break
    return found


def write_left_out(directory: Path, rows: Loaded[Any]) -> None:
    """Say in ``data.json`` how many rows are trained on and held out, which rows were left out, and
    which files were not read."""
    directory.mkdir(parents=True, exist_ok=True)
    skipped = [{"file": r.file, "line": r.line, "reason": r.reason} for r in rows.skipped]
    about = {
        "train": len(rows.train),
        "heldout": len(rows.heldout),
        "leftOut": skipped,
        "unread": rows.unread,
    }
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    (directory / LEFT_OUT).write_text(text, "utf-8")
    if skipped:
        log.warning("%d rows were left out, the first: %s", len(skipped), rows.skipped[0])
    if rows.unread:
        log.warning("not read, as no data of this split: %s", ", ".join(rows.unread))
