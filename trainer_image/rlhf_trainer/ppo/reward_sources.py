"""Where PPO's scores come from: reward models, functions of the user's, HTTP endpoints; a weighted
sum of them. Every source gives the same numbers on every rank.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import torch
from rlhf_api.run import StageRun
from rlhf_api.stages.ppo import FunctionReward, PPOStage, RewardTerm

from rlhf_trainer.data.examples import Message
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.rendering import as_read, end_token_ids, pieces_of, tokenised, unended
from rlhf_trainer.data.turns import marked
from rlhf_trainer.engine import model_dtype
from rlhf_trainer.errors import ConfigurationError
from rlhf_trainer.models.actor_critic import Critic, Forward, frozen, last_token_batch
from rlhf_trainer.models.context import context_length
from rlhf_trainer.models.language_models import input_of, model_config
from rlhf_trainer.models.scalar_models import load_scalar, load_statistics
from rlhf_trainer.models.tokenizers import read_tokenizer, reads_tokens_of
from rlhf_trainer.ppo.answered import Answered, Question, Scores
from rlhf_trainer.ppo.balance import micro_batches_by_prompt, tokens_at_once
from rlhf_trainer.ppo.http_reward import HttpScore
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.rewards import normalise_scores, weighted_sum
from rlhf_trainer.user_code import Score, call_function, load_function

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ROWS_OF_MICRO_BATCH: Final = 4
"""Without a backward pass, micro-batches of so many times the rows need no more memory."""


class RewardSource(Protocol):
    """One term of the reward. `score` is a collective."""

    def score(self, answered: Answered) -> Scores:
        """Score every response."""


class WeightedSum:
    """All terms of a stage's reward: Σ weight·score."""

    def __init__(self, terms: Mapping[str, tuple[float, RewardSource]]) -> None:
        self.terms = terms

    def score(self, answered: Answered) -> Scores:
        """The weighted sum of all terms."""
        weights = {name: weight for name, (weight, _) in self.terms.items()}
        scores = {name: source.score(answered) for name, (_, source) in self.terms.items()}
        return Scores(
            weighted_sum({name: s.raw for name, s in scores.items()}, weights),
            weighted_sum({name: s.normalised for name, s in scores.items()}, weights),
        )


class ModelReward:
    """A reward model: the score at the last token of each sequence, by position."""

    def __init__(
        self,
        forward: Forward,
        ranks: Ranks,
        capacity: int,
        statistics: Mapping[str, float] | None,
        tokenizer: PreTrainedTokenizerBase | None,
        context: int | None,
    ) -> None:
        self.forward, self.ranks, self.capacity = forward, ranks, capacity
        self.statistics = statistics
        self.tokenizer = tokenizer  # where it is not the policy's: answers are tokenised anew
        self.context = context  # tokens that it reads at most

    @torch.no_grad()
    def score(self, answered: Answered) -> Scores:
        """Each rank scores its share; all get all."""
        prompts, answers = self._split(answered)
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        everyone = micro_batches_by_prompt(
            range(len(prompts)), prompts, lengths, self.capacity, self.ranks.world_size
        )
        mine: list[tuple[int, float]] = []
        for micro in everyone[self.ranks.rank]:
            asked, said = ([x[i] for i in micro] for x in (prompts, answers))
            batch = last_token_batch(asked, said, self.ranks.device)
            mine += zip(micro, self.forward(batch).double().tolist(), strict=True)
        scores = dict(pair for part in self.ranks.gather_objects(mine) for pair in part)
        raw = torch.tensor([scores[i] for i in range(len(prompts))], dtype=torch.float64)
        if self.statistics is None:
            return Scores(raw, raw)
        mean, std = self.statistics["mean"], self.statistics["std"]
        return Scores(raw, normalise_scores(raw, mean, std))

    def _split(self, answered: Answered) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
        """Prompts and answers in the reward model's tokens; no answer is empty."""
        if self.tokenizer is None:
            asked = [len(question.tokens) for question in answered.questions]
            rows = list(zip(answered.tokens, asked, strict=True))
        else:
            said = zip(answered.questions, answered.answers, answered.finished, strict=True)
            rows = [_retokenised(self.tokenizer, *each) for each in said]
            longest = max(len(row) for row, _ in rows)
            _refuse_beyond(self.context, longest, f"has {longest}")
        ends = [(row, min(asked, len(row) - 1)) for row, asked in rows]
        return [row[:end] for row, end in ends], [row[end:] for row, end in ends]


def _refuse_beyond(context: int | None, tokens: int, told: str) -> None:
    if context is not None and tokens > context:
        raise ConfigurationError(
            f"a question with its answer {told} of the reward model's tokens, and it reads "
            f"{context} at most: lower rollout.maxPromptLength or maxNewTokens"
        )


def _retokenised(
    tokenizer: PreTrainedTokenizerBase, question: Question, answer: str, finished: bool
) -> tuple[list[int], int]:
    """The dialogue in the reward model's own template and tokens, up to the end of the answer; and
    how many of them come before it. An answer that was cut for length has no end of turn, as it has
    none in the policy's tokens."""
    turns = (*marked(question.messages, trained=False), Message("assistant", answer))
    try:
        pieces = pieces_of(tokenizer, turns, as_read(tokenizer, question.extras))
    except RowProblem as problem:
        where = f"{question.id}, as the reward model reads it"
        raise ConfigurationError(f"{where}: {problem}") from None
    last = max(i for i, piece in enumerate(pieces) if piece.turn >= 0)
    said = pieces[last] if finished else unended(tokenizer, pieces[last], answer)
    *before, own = tokenised(tokenizer, [*pieces[:last], said])
    asked = [token for part in before for token in part]
    return [*asked, *own], len(asked)


class FunctionScore:
    """A Python function of the user's, called once with the whole batch, on rank 0."""

    def __init__(self, function: FunctionReward, score: Score | None, ranks: Ranks) -> None:
        self.function, self.call, self.ranks = function, score, ranks

    def score(self, answered: Answered) -> Scores:
        """What the function says; ConfigurationError on every rank where it fails."""

        def ask() -> list[float]:
            assert self.call is not None  # rank 0 has it
            rows = [question.row for question in answered.questions]
            return call_function(
                self.function, self.call, answered.prompts, list(answered.answers), rows
            )

        return Scores.said(self.function.entrypoint, self.ranks.on_main(ask), answered)


# --- from the stage's settings --------------------------------------------------------------------


def reward_terms(config: PPOStage) -> dict[str, RewardTerm]:
    """The named terms, or the job's reward stage alone."""
    return config.rewards or {"reward": RewardTerm(stage="reward")}


def reward_source(
    run: StageRun, config: PPOStage, tokenizer: PreTrainedTokenizerBase, ranks: Ranks
) -> WeightedSum:
    """All terms of the stage's reward, ready to score."""
    terms = {}
    for name, term in reward_terms(config).items():
        terms[name] = (term.weight, _source(run, config, term, tokenizer, ranks))
    return WeightedSum(terms)


def reward_model_path(run: StageRun, term: RewardTerm) -> Path | None:
    """Where a term's reward model lies; None where it is no model."""
    if term.stage is not None:
        return Path(input_of(run, "reward").path)
    if term.model is not None:
        return Path(run.paths.get(term.model.source, term.model.source))
    return None


def _source(
    run: StageRun,
    config: PPOStage,
    term: RewardTerm,
    tokenizer: PreTrainedTokenizerBase,
    ranks: Ranks,
) -> RewardSource:
    if term.function is not None:
        function = load_function(term.function, run.paths)
        return FunctionScore(term.function, function, ranks)
    if term.http is not None:
        return HttpScore(term.http, ranks)
    path = reward_model_path(run, term)
    if path is None:
        raise ConfigurationError("a reward term names none of stage, model, function, http")
    statistics = load_statistics(path) if config.normalise_rewards else None
    scalar = load_scalar(path, dtype=model_dtype(config, ranks))
    own, context = foreign_tokenizer(run, term, path, tokenizer), context_length(scalar.config)
    if own is None:  # else what it is given is measured when it is given
        longest = config.rollout.max_prompt_length + config.rollout.max_new_tokens
        _refuse_beyond(context, longest, f"has up to {longest}")
    return ModelReward(
        frozen(Critic(scalar), config, ranks),
        ranks,
        ROWS_OF_MICRO_BATCH * tokens_at_once(config),
        statistics,
        own,
        context,
    )


def refuse_unreadable(
    run: StageRun, config: PPOStage, term: RewardTerm, policy: PreTrainedTokenizerBase
) -> None:
    """ConfigurationError where a reward model of the user's cannot read what the stage answers, as
    far as its tokenizer, template and configuration tell."""
    path = reward_model_path(run, term)
    assert path is not None
    own = foreign_tokenizer(run, term, path, policy)
    if own is not None:
        end_token_ids(own)
        return
    longest = config.rollout.max_prompt_length + config.rollout.max_new_tokens
    _refuse_beyond(context_length(model_config(path)), longest, f"has up to {longest}")


def foreign_tokenizer(
    run: StageRun, term: RewardTerm, path: Path, policy: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase | None:
    """The reward model's tokenizer where it differs from the policy's: the same token ids would
    mean other words to it. None where the two agree.
    """
    own = term.model.tokenizer if term.model is not None else None
    tokenizer = read_tokenizer(path if own is None else run.paths.get(own, own))
    if term.model is not None and term.model.chat_template is not None:
        tokenizer.chat_template = term.model.chat_template
    same_template = tokenizer.chat_template in (None, policy.chat_template)
    if reads_tokens_of(tokenizer, policy) and same_template:
        return None
    if not tokenizer.chat_template:
        tokenizer.chat_template = policy.chat_template
    log.info("the reward model in %s has a tokenizer of its own: answers are tokenised anew", path)
    return tokenizer
