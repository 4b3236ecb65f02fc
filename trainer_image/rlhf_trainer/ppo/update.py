"""The update of PPO: several epochs of minibatches over one rollout's experience.

Each loss is a mean over the *global* minibatch (of tokens, or as lossAggregation has it), whatever
the split into ranks and micro-batches: a micro-batch contributes its sum over the global count.

Shapes: N response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from rlhf_api.stages.ppo import PPOStage
from torch import Tensor

from rlhf_trainer.engine import Engine, StepStats
from rlhf_trainer.losses import (
    entropy_loss,
    kl_loss,
    ppo_policy_loss,
    ppo_value_loss,
    token_divisors,
)
from rlhf_trainer.models.actor_critic import TokenScores
from rlhf_trainer.models.scored_lm import TokenBatch, token_batch
from rlhf_trainer.ppo.balance import micro_batches_by_prompt, tokens_at_once
from rlhf_trainer.ppo.experience import Experience, flat_rows
from rlhf_trainer.ppo.lanes import may_share_cores, side_by_side
from rlhf_trainer.ppo.pretraining import PretrainingTexts
from rlhf_trainer.ppo.team import Team
from rlhf_trainer.session import Session

Figures = dict[str, Tensor]
"""Scalars that add up over micro-batches, ranks and (as a mean) optimizer steps."""


class MicroBatch(NamedTuple):
    """This rank's share of a minibatch, (N,) each, row after row."""

    tokens: TokenBatch
    mask: Tensor  # all True: only response tokens are here
    old_logprobs: Tensor
    ref_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    importance_weights: Tensor
    global_token_count: int  # response tokens of the whole minibatch
    lengths: Sequence[int]  # tokens of each response
    divisors: Tensor  # of the tokens' losses in the actor: one, or (N,)


class UpdateFigures(NamedTuple):
    """Means over the optimizer steps of one update."""

    means: dict[str, float]
    actor: StepStats | None  # of the last step; None while the critic warms up
    critic: StepStats | None


def minibatches(config: PPOStage, seed: int, rollout: int) -> Iterator[list[int]]:
    """Rows of each optimizer step, a new order each epoch: a pure function of seed and rollout. The
    samples of a prompt stay together, as far as a minibatch goes: advantages within a group add up
    to 0, and the prompt is computed once.
    """
    samples = config.rollout.samples_per_prompt
    rows = np.arange(config.global_batch_size).reshape(-1, samples)
    for epoch in range(config.update_epochs):
        order = np.random.default_rng([seed, rollout, epoch]).permutation(rows).ravel()
        for start in range(0, len(order), config.minibatch_size):
            yield order[start : start + config.minibatch_size].tolist()


def steps_per_rollout(config: PPOStage) -> int:
    """Optimizer steps of one update."""
    return config.update_epochs * -(-config.global_batch_size // config.minibatch_size)


def update(
    session: Session,
    config: PPOStage,
    team: Team,
    experience: Experience,
    pretraining: PretrainingTexts | None,
    rollout: int,
    kl_coef: float,
) -> UpdateFigures:
    """All optimizer steps over one rollout's experience. Actor and critic owe each other nothing in
    it: all of the actor's steps may come before the critic's, or beside them. `kl_coef` is β where
    the KL is a term of the loss.
    """
    for engine in team.engines.values():
        engine.module.train()
    steps = [
        list(_micro_batches(session, config, experience, rows))
        for rows in minibatches(config, session.run.seed, rollout)
    ]
    of_actor = partial(_train_actor, config, team, steps, pretraining, rollout, kl_coef)
    of_critic = partial(_train_critic, config, team, steps)
    if team.critic is not None and may_share_cores(config, session.ranks):
        (actor_parts, actor), (critic_parts, critic) = side_by_side(of_actor, of_critic)
    else:
        (actor_parts, actor), (critic_parts, critic) = of_actor(), of_critic()
    return UpdateFigures(_means(session, config, actor_parts + critic_parts), actor, critic)


def _train_actor(
    config: PPOStage,
    team: Team,
    steps: Sequence[Sequence[MicroBatch]],
    pretraining: PretrainingTexts | None,
    rollout: int,
    kl_coef: float,
) -> tuple[list[Figures], StepStats | None]:
    trains_policy = rollout >= config.critic_warmup_rollouts
    shares_trunk = team.has_values and team.critic is None
    parts: list[Figures] = []
    if not trains_policy and not shares_trunk:
        return parts, None
    stats = None
    first_step = rollout * steps_per_rollout(config)
    for number, batches in enumerate(steps):
        mixed_in = pretraining if trains_policy else None
        texts = mixed_in.micro_batches(first_step + number) if mixed_in else []
        parts += _actor_gradients(config, team, batches, texts, trains_policy, kl_coef)
        stats = team.actor.step(decays=trains_policy)
        if team.average is not None:
            team.average.update(team.actor.module)
    return parts, stats


def _train_critic(
    config: PPOStage, team: Team, steps: Sequence[Sequence[MicroBatch]]
) -> tuple[list[Figures], StepStats | None]:
    parts: list[Figures] = []
    if team.critic is None:
        return parts, None
    stats = None
    for batches in steps:
        parts += _critic_gradients(config, team.critic, batches)
        stats = team.critic.step()
    return parts, stats


def _micro_batches(
    session: Session, config: PPOStage, experience: Experience, rows: Sequence[int]
) -> Iterator[MicroBatch]:
    """This rank's micro-batches, as many as every other rank has; some may hold no rows."""
    ranks, rollout = session.ranks, experience.rollout
    count = int(experience.mask[torch.tensor(rows)].sum())
    shares = micro_batches_by_prompt(
        rows, rollout.prompts, rollout.lengths, tokens_at_once(config), ranks.world_size
    )
    for micro in shares[ranks.rank]:
        tokens = token_batch(
            [rollout.prompts[i] for i in micro], [rollout.responses[i] for i in micro], ranks.device
        )
        old, ref, values, advantages, returns, weights = (
            flat_rows(x_BT, experience.mask, micro).to(ranks.device) for x_BT in experience[2:]
        )
        mask_N = torch.ones(len(tokens.targets), dtype=torch.bool, device=ranks.device)
        lengths = [len(rollout.responses[i]) for i in micro]
        divisors = token_divisors(
            config.loss_aggregation or "token",
            lengths,
            tokens=count,
            responses=len(rows),
            longest=config.rollout.max_new_tokens,
        )
        of_tokens = tokens, mask_N, old, ref, values, advantages, returns, weights
        yield MicroBatch(*of_tokens, count, lengths, torch.as_tensor(divisors, device=ranks.device))


def _actor_gradients(
    config: PPOStage,
    team: Team,
    batches: Sequence[MicroBatch],
    texts: Sequence[tuple[TokenBatch, Tensor]],
    trains_policy: bool,
    kl_coef: float,
) -> list[Figures]:
    """Gradients of policy, entropy, KL and shared value losses, and of language modelling."""
    parts: list[Figures] = []
    backwards = len(batches) + len(texts)
    for batch in batches:
        scores = TokenScores(*team.actor(batch.tokens, config.entropy_coef > 0, trains_policy))
        loss, figures = _actor_loss(config, batch, scores, trains_policy, kl_coef)
        parts.append(figures)
        team.actor.backward(loss, last=len(parts) == backwards)
    for tokens, share_N in texts:
        logprobs_N = team.actor(tokens, temperature=1.0)[0]
        assert config.pretraining is not None
        loss = -(logprobs_N * share_N).sum()
        parts.append({"ppo/pretraining_loss": loss.detach()})
        team.actor.backward(config.pretraining.coef * loss, last=len(parts) == backwards)
    return parts


def _actor_loss(
    config: PPOStage, batch: MicroBatch, scores: TokenScores, trains_policy: bool, kl_coef: float
) -> tuple[Tensor, Figures]:
    """L = L_clip + c_v·L_value (shared critic) − c_e·H + β·KL (GRPO)."""
    policy = ppo_policy_loss(
        scores.logprobs,
        batch.old_logprobs,
        batch.advantages,
        batch.mask,
        config.clip,
        config.dual_clip,
        clip_high=config.clip_high,
        importance_weights=batch.importance_weights,
        global_token_count=batch.global_token_count,
        divisors=batch.divisors,
        lengths=batch.lengths if config.ratio == "sequence" else None,
    )
    loss = policy.loss if trains_policy else 0.0 * policy.loss
    figures = {
        "ppo/policy_loss": policy.loss.detach(),
        "ppo/clip_fraction": policy.clip_fraction,
        "ppo/approx_kl": policy.approx_kl,
    }
    if scores.entropy is not None:
        bonus = entropy_loss(scores.entropy, batch.mask, batch.divisors)
        loss = loss + (config.entropy_coef if trains_policy else 0.0) * bonus
    if config.advantage == "grpo" and kl_coef > 0:
        kl = kl_loss(
            scores.logprobs, batch.ref_logprobs, batch.mask, config.kl.estimator, batch.divisors
        )
        loss = loss + kl_coef * kl
    if scores.values is not None:
        value, value_figures = _value_loss(config, batch, scores.values)
        loss = loss + config.value_coef * value
        figures |= value_figures
    return loss, figures


def _critic_gradients(
    config: PPOStage, critic: Engine, batches: Sequence[MicroBatch]
) -> list[Figures]:
    parts: list[Figures] = []
    for batch in batches:
        loss, figures = _value_loss(config, batch, critic(batch.tokens))
        parts.append(figures)
        critic.backward(loss, last=len(parts) == len(batches))
    return parts


def _value_loss(config: PPOStage, batch: MicroBatch, values_N: Tensor) -> tuple[Tensor, Figures]:
    loss = ppo_value_loss(
        values_N,
        batch.old_values,
        batch.returns,
        batch.mask,
        config.value_clip,
        global_token_count=batch.global_token_count,
    )
    return loss, {"ppo/value_loss": loss.detach()}


def _means(session: Session, config: PPOStage, parts: Sequence[Figures]) -> dict[str, float]:
    """Each figure, summed over micro-batches and ranks, as a mean over optimizer steps."""
    names = sorted({name for part in parts for name in part})
    sums = [sum(part[n].double().cpu() for part in parts if n in part) for n in names]
    total = session.ranks.sum(torch.stack([torch.as_tensor(s) for s in sums]))
    steps = steps_per_rollout(config)
    return {name: float(value) / steps for name, value in zip(names, total, strict=True)}
