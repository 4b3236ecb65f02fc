"""Where PPO's scores come from: reward models, functions of the user's, HTTP endpoints; a weighted
sum of them. Every source gives the same numbers on every rank.
"""

from __future__ import annotations

import json
import logging
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import torch
from rlhf_api.run import StageRun
from rlhf_api.stages.ppo import FunctionReward, HttpReward, PPOStage, RewardTerm
from torch import Tensor

from rlhf_trainer.actor_critic import Critic, Forward, frozen, last_token_batch
from rlhf_trainer.balance import balanced_micro_batches, tokens_at_once
from rlhf_trainer.context import context_length
from rlhf_trainer.data.examples import Message
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.rendering import pieces_of, tokenised, unended
from rlhf_trainer.engine import model_dtype
from rlhf_trainer.errors import ConfigurationError, Transient
from rlhf_trainer.models import input_of
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.rewards import normalise_scores, weighted_sum
from rlhf_trainer.scalar_models import load_scalar, load_statistics
from rlhf_trainer.tokenizers import reads_tokens_of
from rlhf_trainer.user_code import Score, call_function, load_function

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0
LONGEST_REPLY: Final = 64 << 20
"""Bytes of an endpoint's reply; that of a thousand answers has some ten thousand."""
PIECE: Final = 1 << 16
ROWS_OF_MICRO_BATCH: Final = 4
"""Without a backward pass, micro-batches of so many times the rows need no more memory."""


class Question(NamedTuple):
    """A prompt as reward sources see it."""

    id: str
    text: str
    messages: tuple[Message, ...]
    tools: tuple[Any, ...]
    row: dict[str, Any]  # the whole row of the data set
    tokens: list[int]  # in the policy's tokens


class Answered(NamedTuple):
    """Responses to score, of all ranks, in the order of their global rows."""

    questions: Sequence[Question]
    answers: Sequence[str]  # without special tokens
    tokens: Sequence[Sequence[int]]  # prompt and response, in the policy's tokens
    finished: Sequence[bool]  # ended by itself, and was not cut for length

    @property
    def prompts(self) -> list[str]:
        """The questions in words."""
        return [question.text for question in self.questions]


class Scores(NamedTuple):
    """One number a response, (B,) float64 each, the same on every rank."""

    raw: Tensor
    normalised: Tensor  # by the statistics that a reward model carries, where asked for


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
        rows = self._rows(answered)
        lengths = [len(row) for row in rows]
        world = self.ranks.world_size
        everyone = balanced_micro_batches(range(len(rows)), lengths, self.capacity, world)
        mine: list[tuple[int, float]] = []
        for micro in everyone[self.ranks.rank]:
            batch = last_token_batch([rows[i] for i in micro], self.ranks.device)
            mine += zip(micro, self.forward(batch).double().tolist(), strict=True)
        scores = dict(pair for part in self.ranks.gather_objects(mine) for pair in part)
        raw = torch.tensor([scores[i] for i in range(len(rows))], dtype=torch.float64)
        if self.statistics is None:
            return Scores(raw, raw)
        mean, std = self.statistics["mean"], self.statistics["std"]
        return Scores(raw, normalise_scores(raw, mean, std))

    def _rows(self, answered: Answered) -> Sequence[Sequence[int]]:
        if self.tokenizer is None:
            return answered.tokens
        asked = zip(answered.questions, answered.answers, answered.finished, strict=True)
        rows = [_retokenised(self.tokenizer, *each) for each in asked]
        longest = max(map(len, rows))
        if self.context is not None and longest > self.context:
            raise ConfigurationError(
                f"a question with its answer has {longest} of the reward model's tokens, and it "
                f"reads {self.context} at most: lower rollout.maxPromptLength or maxNewTokens"
            )
        return rows


def _retokenised(
    tokenizer: PreTrainedTokenizerBase, question: Question, answer: str, finished: bool
) -> list[int]:
    """The dialogue in the reward model's own template and tokens, up to the end of the answer. One
    that was cut for length has no end of turn, as it has none in the policy's tokens."""
    turns = (*question.messages, Message("assistant", answer))
    try:
        pieces = pieces_of(tokenizer, turns, question.tools)
    except RowProblem as problem:
        where = f"{question.id}, as the reward model reads it"
        raise ConfigurationError(f"{where}: {problem}") from None
    last = max(i for i, piece in enumerate(pieces) if piece.turn >= 0)
    said = pieces[last] if finished else unended(tokenizer, pieces[last], answer)
    return [t for part in tokenised(tokenizer, [*pieces[:last], said]) for t in part]


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

        values = torch.tensor(self.ranks.on_main(ask), dtype=torch.float64)
        return Scores(values, values)


class HttpScore:
    """An endpoint that gets the whole batch from rank 0; Transient where it stays down."""

    def __init__(
        self, endpoint: HttpReward, ranks: Ranks, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.endpoint, self.ranks, self.sleep = endpoint, ranks, sleep

    def score(self, answered: Answered) -> Scores:
        """What the endpoint says."""
        values = self.ranks.on_main(lambda: self._ask(answered))
        rewards = torch.tensor(values, dtype=torch.float64)
        return Scores(rewards, rewards)

    def _ask(self, answered: Answered) -> list[float]:
        question = {"prompts": answered.prompts, "answers": list(answered.answers)}
        body = json.dumps(question, ensure_ascii=False).encode()
        pause, tries = FIRST_PAUSE_SECONDS, self.endpoint.retries + 1
        for attempt in range(1, tries + 1):
            try:
                return _rewards(self.endpoint.url, self._post(body), len(answered.answers))
            except (OSError, ValueError, HTTPException) as error:  # time-outs are OSErrors
                reason = _reason(error)
            if attempt < tries:
                log.warning("%s: %s; trying again in %.0f s", self.endpoint.url, reason, pause)
                self.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise Transient(f"the reward at {self.endpoint.url} failed {tries} times: {reason}")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json; charset=utf-8"}
        request = urllib.request.Request(self.endpoint.url, body, headers, method="POST")
        with urllib.request.urlopen(request, timeout=self.endpoint.timeout_seconds) as reply:
            return _whole(reply, time.monotonic() + self.endpoint.timeout_seconds)


def _whole(reply: Any, until: float) -> bytes:
    """The body. The socket's own time-out begins anew with each piece, and a body may be endless:
    neither may hold all ranks, or fill the memory of one.
    """
    content = bytearray()
    while piece := reply.read1(PIECE):
        content += piece
        if len(content) > LONGEST_REPLY:
            raise ValueError(f"its reply has more than {LONGEST_REPLY >> 20} MiB")
        if time.monotonic() > until:
            raise TimeoutError("its reply did not end in time (timeoutSeconds)")
    if reply.length:  # bytes that were announced and did not come
        raise ValueError("the connection broke in mid-reply")
    return bytes(content)


def _rewards(url: str, reply: bytes, expected: int) -> list[float]:
    """The numbers in a reply. A reply that can never be right is ConfigurationError: no retry."""
    try:
        found = json.loads(reply)
    except RecursionError:
        raise ValueError("its reply is nested too deeply") from None
    rewards = found.get("rewards") if isinstance(found, dict) else None
    if not isinstance(rewards, list) or len(rewards) != expected:
        shape = f"{len(rewards)} rewards" if isinstance(rewards, list) else 'no list "rewards"'
        raise ConfigurationError(f"{url} gave {shape} for {expected} answers")
    return [_number(url, value) for value in rewards]


def _number(url: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{url} gave {repr(value)[:80]} where a number was expected")
    try:
        number = float(value)
    except OverflowError:  # JSON's integers have any length
        number = math.inf
    if not math.isfinite(number):
        raise ConfigurationError(f"{url} gave {number} as a reward")
    return number


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    cause = getattr(error, "reason", error)
    return str(cause) or type(cause).__name__


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
    return ModelReward(
        frozen(Critic(scalar), config, ranks),
        ranks,
        ROWS_OF_MICRO_BATCH * tokens_at_once(config),
        statistics,
        foreign_tokenizer(run, term, path, tokenizer),
        context_length(scalar.config),
    )


def foreign_tokenizer(
    run: StageRun, term: RewardTerm, path: Path, policy: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase | None:
    """The reward model's tokenizer where it differs from the policy's: the same token ids would
    mean other words to it. None where the two agree.
    """
    from transformers import AutoTokenizer

    own = term.model.tokenizer if term.model is not None else None
    where = Path(run.paths.get(own, own)) if own is not None else path
    if own is None and not (where / "tokenizer_config.json").exists():
        raise ConfigurationError(
            f"the reward model in {path} has no tokenizer beside it: name it in model.tokenizer"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(f"no tokenizer can be read from {where}: {first}") from None
    if term.model is not None and term.model.chat_template is not None:
        tokenizer.chat_template = term.model.chat_template
    same_template = tokenizer.chat_template in (None, policy.chat_template)
    if reads_tokens_of(tokenizer, policy) and same_template:
        return None
    if not tokenizer.chat_template:
        tokenizer.chat_template = policy.chat_template
    log.info("the reward model in %s has a tokenizer of its own: answers are tokenised anew", path)
    foreign: PreTrainedTokenizerBase = tokenizer
    return foreign
