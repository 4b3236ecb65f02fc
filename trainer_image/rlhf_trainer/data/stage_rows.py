"""The rows of each stage, read, checked and encoded: the same for prepare and for training."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rlhf_api.job import Evaluation
from rlhf_api.run import Demonstrations
from rlhf_api.stages import DPOStage, PPOStage, RewardStage, SFTStage

from rlhf_trainer.data.encode import (
    Encoded,
    EncodedLabelled,
    EncodedPreference,
    EncodedPrompt,
    encode_all,
    encode_dialogue,
    encode_labelled,
    encode_preference,
    encode_prompt,
    encode_text,
)
from rlhf_trainer.data.examples import Dialogue, PlainText
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
from rlhf_trainer.errors import BadData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEFT_OUT: Final = "data.json"
UNLIMITED: Final = 1 << 30
log = logging.getLogger(__name__)


def sft_rows(
    stage: SFTStage, tokenizer: PreTrainedTokenizerBase, paths: Mapping[str, str], seed: int
) -> Loaded[Encoded]:
    """Dialogues with the loss mask that the stage asks for."""
    return encode_all(
        load_dialogues(stage.data, paths, seed),
        lambda row: encode_dialogue(
            tokenizer, row, stage.max_length, stage.train_on, stage.data.overlong
        ),
        stage.data,
    )


def demonstration_rows(
    demonstrations: Demonstrations,
    tokenizer: PreTrainedTokenizerBase,
    paths: Mapping[str, str],
    seed: int,
    count: int,
) -> list[Encoded]:
    """At most so many dialogues of the SFT data's training part, drawn by the seed, each up to the
    end of its last answer: that is what PPO's prompts, of the same rows, ask for.

    Left out are those that are too long, which end in mid-answer where SFT cuts them, and those
    whose last answer SFT does not learn. Raises BadData where none is left.
    """
    source, longest = demonstrations.data, demonstrations.max_length
    dialogues = load_dialogues(source, paths, seed).train
    found: list[Encoded] = []
    for index in np.random.default_rng(seed).permutation(len(dialogues)).tolist():
        with suppress(RowProblem):
            row = encode_dialogue(tokenizer, dialogues[index], longest)
            if row.loss_mask[-1]:
                found.append(row)
        if len(found) == count:
            break
    if not found:
        raise BadData(
            f"{source.source}: no dialogue with an answer to learn at its end has {longest} tokens "
            "or less, to normalise scores on: raise maxLength of sft and reward, or set "
            "reward.normaliseOn to chosen or all"
        )
    return found


def preference_rows(
    stage: RewardStage | DPOStage,
    tokenizer: PreTrainedTokenizerBase,
    paths: Mapping[str, str],
    seed: int,
) -> Loaded[EncodedPreference]:
    """Pairs and ranked lists."""
    return encode_all(
        load_preferences(stage.data, paths, seed),
        lambda row: encode_preference(tokenizer, row, stage.max_length, stage.data.overlong),
        stage.data,
    )


def labelled_rows(
    stage: DPOStage, tokenizer: PreTrainedTokenizerBase, paths: Mapping[str, str], seed: int
) -> Loaded[EncodedLabelled]:
    """Answers with a label, for KTO."""
    return encode_all(
        load_labelled(stage.data, paths, seed),
        lambda row: encode_labelled(tokenizer, row, stage.max_length, stage.data.overlong),
        stage.data,
    )


def prompt_rows(
    stage: PPOStage, tokenizer: PreTrainedTokenizerBase, paths: Mapping[str, str], seed: int
) -> Loaded[EncodedPrompt]:
    """Prompts to sample from."""
    length = stage.rollout.max_prompt_length
    return encode_all(
        load_prompts(stage.data, paths, seed),
        lambda row: encode_prompt(tokenizer, row, length, stage.data.overlong),
        stage.data,
    )


def pretraining_rows(
    stage: PPOStage, tokenizer: PreTrainedTokenizerBase, paths: Mapping[str, str], seed: int
) -> Loaded[Encoded]:
    """Text or dialogues of PPO's pretraining mix, no longer than a prompt and its response."""
    assert stage.pretraining is not None
    source = stage.pretraining.data
    length = stage.rollout.max_prompt_length + stage.rollout.max_new_tokens

    def encode(row: PlainText | Dialogue) -> Encoded:
        if isinstance(row, PlainText):
            return encode_text(tokenizer, row, length, source.overlong)
        return encode_dialogue(tokenizer, row, length, overlong=source.overlong)

    return encode_all(load_language(source, paths, seed), encode, source)


def evaluation_rows(
    evaluation: Evaluation,
    tokenizer: PreTrainedTokenizerBase,
    paths: Mapping[str, str],
    seed: int,
) -> Loaded[EncodedPrompt]:
    """All prompts of an evaluation, whole."""
    return encode_all(
        load_prompts(evaluation.prompts, paths, seed),
        lambda row: encode_prompt(tokenizer, row, UNLIMITED),
        evaluation.prompts,
    )


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
