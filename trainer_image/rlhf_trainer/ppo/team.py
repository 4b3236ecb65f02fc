"""The models of PPO and its relatives: actor, critic, reference, reward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rlhf_api.stages.ppo import PPOStage, RewardTerm
from torch import Tensor, nn

from rlhf_trainer.checkpoints.checkpoint import Restored
from rlhf_trainer.engine import Engine, model_dtype
from rlhf_trainer.errors import CheckpointUnusable, ConfigurationError
from rlhf_trainer.installed import refuse_missing
from rlhf_trainer.models.actor_critic import (
    Actor,
    Average,
    Critic,
    copy_weights,
    frozen,
    value_head,
    weights_replaced,
)
from rlhf_trainer.models.language_models import load_policy, trunk_of, without_dropout
from rlhf_trainer.models.lora import add_lora
from rlhf_trainer.models.scalar_models import (
    ScalarHeadModel,
    load_scalar,
    load_statistics,
    scalar_from_trunk,
)
from rlhf_trainer.models.scored_lm import TokenBatch
from rlhf_trainer.ppo.reward_sources import (
    WeightedSum,
    foreign_tokenizer,
    reward_model_path,
    reward_source,
    reward_terms,
)
from rlhf_trainer.rollout.engines import RolloutEngine, rollout_engine
from rlhf_trainer.session import Session

Reference = Callable[[TokenBatch], Tensor]


@dataclass
class Team:
    """Who takes part; `critic` is None where it shares the actor's trunk, or there is none."""

    actor: Engine
    critic: Engine | None
    reference: Reference  # log-probs of response tokens, (N,)
    reward: WeightedSum
    rollout: RolloutEngine
    average: Average | None  # of the actor, where the stage hands an average on
    good: dict[str, Tensor] | None = None  # actor's weights before an update that may be undone

    @property
    def engines(self) -> dict[str, Engine]:
        """What trains, by name."""
        return {"actor": self.actor} | ({} if self.critic is None else {"critic": self.critic})

    @property
    def _policy(self) -> Actor:
        policy = self.actor.module
        assert isinstance(policy, Actor)
        return policy

    @property
    def lm(self) -> nn.Module:
        """The actor's language model."""
        return self._policy.lm

    @property
    def has_values(self) -> bool:
        """Whether somebody estimates values."""
        return self.critic is not None or self._policy.value_head is not None

    @property
    def is_packable(self) -> bool:
        """Whether the actor takes rows end to end, without pads."""
        return self._policy.is_packable

    def remember_good(self) -> None:
        """The actor's weights as they are now are good ones."""
        self.good = copy_weights(self.actor.module)

    def weights(self, session: Session) -> dict[str, Any]:
        """Weights beside those of the engines that this rank has to write: under ZeRO-3 its share,
        else all of them on rank 0 alone, as every rank has the same.
        """
        if not (session.ranks.is_main or session.config.zero.stage == 3):
            return {}
        average = None if self.average is None else self.average.weights
        return {k: v for k, v in (("average", average), ("good", self.good)) if v is not None}

    def load_weights(self, session: Session, restored: Restored) -> None:
        """Take back this rank's part of `weights`. CheckpointUnusable where it has none: ZeRO-3
        gave shares to another number of ranks.
        """
        weights, wrote, now = restored.weights, restored.wrote_weights, session.ranks.world_size
        if weights and wrote != now and session.config.zero.stage == 3:
            raise CheckpointUnusable(
                f"with ZeRO-3, an average of weights (ema) or weights to go back to (maxKl) cannot "
                f"be shared out anew: the checkpoint is of {wrote} processes, these are {now}; run "
                f"it with {wrote} again (nodes × GPUs per node)"
            )
        if self.average is not None:
            for name, weight in weights["average"].items():
                self.average.weights[name].copy_(weight)
        self.good = weights.get("good")

    def write(self, session: Session, directory: Path, undo: bool) -> None:
        """Save what the stage hands on: the actor, its average, or its last good weights."""
        weights = self.good if undo else None
        if weights is None and self.average is not None:
            weights = self.average.weights
        with weights_replaced(self.actor, weights):
            session.save_policy(self.actor, self.lm, directory)


def assemble_team(session: Session, config: PPOStage, steps_per_rollout: int) -> Team:
    """Load every model, hand those that train to their engines, and start who answers prompts."""
    refuse_missing(config)
    lm: Any = load_policy(session.run, dtype=model_dtype(config, session.ranks))
    if config.lora is not None:
        # Dropout in an adapter would make the ratio differ from 1 before the first update.
        lm = without_dropout(add_lora(lm, config.lora))
    reference = None if config.lora is not None else _frozen_reference(session, config)
    kind = _critic_kind(session, config)
    head = value_head(lm) if kind == "shared" else None
    module = Actor(lm, config.rollout.temperature, head)
    updates = config.rollouts - (0 if head is not None else config.critic_warmup_rollouts)
    actor = Engine.create(
        module,
        config,
        ranks=session.ranks,
        total_steps=max(1, updates * steps_per_rollout),
    )
    critic = None
    if kind in ("reward", "fresh"):
        critic = Engine.create(
            _critic(session, config, kind),
            config,
            ranks=session.ranks,
            total_steps=config.rollouts * steps_per_rollout,
            learning_rate=config.critic_learning_rate,
        )
    return Team(
        actor=actor,
        critic=critic,
        reference=reference or _adapter_off(actor, module),
        reward=reward_source(session.run, config, session.tokenizer, session.ranks),
        rollout=rollout_engine(session, config, actor, lm),
        average=None if config.ema is None else Average(actor.module, config.ema.decay),
    )


def _adapter_off(engine: Engine, module: Actor) -> Reference:
    """With LoRA the reference is the actor with its adapter switched off: no second model."""

    def logprobs(batch: TokenBatch) -> Tensor:
        with module.without_adapter():
            scores: Tensor = engine(batch)[0]
        return scores

    return logprobs


def _frozen_reference(session: Session, config: PPOStage) -> Reference:
    lm = load_policy(session.run, dtype=model_dtype(config, session.ranks))
    forward = frozen(Actor(lm, config.rollout.temperature), config, session.ranks)

    def logprobs(batch: TokenBatch) -> Tensor:
        scores: Tensor = forward(batch)[0]
        return scores

    return logprobs


def _critic_kind(session: Session, config: PPOStage) -> str:
    """reward, shared, fresh, or none."""
    if config.advantage != "gae":
        return "none"
    if config.critic != "auto":
        return config.critic
    return "fresh" if _critic_source(session, config) is None else "reward"


def _critic_source(session: Session, config: PPOStage) -> tuple[Path, RewardTerm] | None:
    """The reward model that a critic may start from: one that reads the policy's tokens."""
    for term in reward_terms(config).values():
        path = reward_model_path(session.run, term)
        if path is None:
            continue
        if foreign_tokenizer(session.run, term, path, session.tokenizer) is None:
            return path, term
    return None


def _critic(session: Session, config: PPOStage, kind: str) -> Critic:
    dtype = model_dtype(config, session.ranks)
    if kind == "fresh":
        trunk = trunk_of(load_policy(session.run, dtype=dtype))
        model = scalar_from_trunk(trunk, seed=session.run.seed, dtype=dtype, head="zero")
        offset = 0.0
    else:
        source = _critic_source(session, config)
        if source is None:
            raise ConfigurationError(
                "critic: reward needs a reward model with the policy's tokenizer; "
                "there is none: use `fresh` or `shared`"
            )
        path, term = source
        model = load_scalar(path, dtype=dtype)
        offset = _as_rewarded(model, path, term, config)
    if config.lora is not None:
        model.trunk = without_dropout(add_lora(model.trunk, config.lora, is_critic=True))
    return Critic(model, offset)


@torch.no_grad()
def _as_rewarded(model: ScalarHeadModel, path: Path, term: RewardTerm, config: PPOStage) -> float:
    """Scale the head as the stage's reward scales its scores: weight·(s − mean)/std. Returns what
    is then to be added. Raw scores are off by a constant that advantages would spread unevenly over
    a response, and that `valueClip` lets the critic unlearn in small steps alone.
    """
    found = load_statistics(path) if config.normalise_rewards else None
    mean, std = (found["mean"], found["std"]) if found else (0.0, 1.0)
    factor = term.weight / (std or 1.0)
    model.score.weight.mul_(factor)
    return -mean * factor


@torch.no_grad()
def value_of(team: Team, batch: TokenBatch, shared: Tensor | None) -> Tensor:
    """Values of the batch's tokens; zeros where nobody estimates them."""
    if shared is not None:
        return shared
    if team.critic is not None:
        values: Tensor = team.critic(batch)
        return values
    return torch.zeros(len(batch.targets))
