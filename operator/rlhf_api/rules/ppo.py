"""Rules across the fields of PPO."""

from __future__ import annotations

import re
from typing import Any, Final

from rlhf_api.fields import Model
from rlhf_api.rules.rule import Rule, read_only_by
from rlhf_api.stages.ppo import KL, PPOStage, RewardTerm, Rollout

TERM_NAME: Final = "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
REWARD_KINDS: Final = {
    "stage": "has(self.stage)",
    "model": "has(self.model)",
    "function": "has(self.__function__)",
    "http": "has(self.http)",
}
"""What may give a term's reward, and how CEL sees that it is there."""


def _kinds(term: Any) -> int:
    return sum(getattr(term, kind) is not None for kind in REWARD_KINDS)


ROLLOUT_RULES: Final = (
    Rule(
        "responses_have_lengths",
        "minNewTokens",
        lambda rollout: rollout.min_new_tokens <= rollout.max_new_tokens,
        "self.minNewTokens <= self.maxNewTokens",
        "{minNewTokens} is above maxNewTokens, {maxNewTokens}",
        "from 1 to {maxNewTokens}",
    ),
)

KL_RULES: Final = (
    Rule(
        "adaptive_kl_has_a_start",
        "coef",
        lambda kl: kl.adaptive is None or kl.coef > 0,
        "!has(self.adaptive) || self.coef > 0.0",
        "is 0, and adaptive multiplies it, so that it stays 0",
        "a start value such as 0.02",
    ),
)

TERM_RULES: Final = (
    Rule(
        "reward_terms_have_one_source",
        "",
        lambda term: _kinds(term) > 0,
        " || ".join(REWARD_KINDS.values()),
        "names nothing that gives a reward",
        f"exactly one of {', '.join(REWARD_KINDS)}",
    ),
    Rule(
        "reward_terms_have_one_source",
        "",
        lambda term: _kinds(term) < 2,
        f"[{', '.join(REWARD_KINDS.values())}].filter(given, given).size() < 2",
        "names several things that give a reward",
        f"exactly one of {', '.join(REWARD_KINDS)}",
    ),
    Rule(
        "reward_models_are_trained",
        "model.init",
        lambda term: term.model is None or term.model.init != "random",
        "!has(self.model) || self.model.init != 'random'",
        "is random, and a reward model must be trained",
        "pretrained",
    ),
)

GROUP_ESTIMATORS: Final = ("grpo", "rloo", "reinforce++-baseline")
"""Advantages that compare responses to one prompt."""

BATCH_RULES: Final = (
    Rule(
        "micro_batch_fits",
        "microBatchSize",
        lambda ppo: ppo.micro_batch_size <= ppo.minibatch_size,
        "self.microBatchSize <= self.minibatchSize",
        "{microBatchSize} is more than minibatchSize, which is {minibatchSize}",
        "a whole number from 1 to {minibatchSize}, or a larger minibatchSize",
    ),
    Rule(
        "minibatches_divide",
        "minibatchSize",
        lambda ppo: ppo.global_batch_size % ppo.minibatch_size == 0,
        "self.globalBatchSize % self.minibatchSize == 0",
        "{minibatchSize} does not divide globalBatchSize, {globalBatchSize}",
        "a divisor of it",
    ),
    Rule(
        "groups_fill_the_batch",
        "rollout.samplesPerPrompt",
        lambda ppo: ppo.global_batch_size % ppo.rollout.samples_per_prompt == 0,
        "self.globalBatchSize % self.rollout.samplesPerPrompt == 0",
        "{rollout.samplesPerPrompt} does not divide globalBatchSize, {globalBatchSize}",
        "a divisor of it",
    ),
    Rule(
        "groups_have_members",
        "rollout.samplesPerPrompt",
        lambda ppo: ppo.advantage not in GROUP_ESTIMATORS or ppo.rollout.samples_per_prompt >= 2,
        f"!(self.advantage in {list(GROUP_ESTIMATORS)}) || self.rollout.samplesPerPrompt >= 2",
        "is {rollout.samplesPerPrompt}, and advantage {advantage} compares responses to one prompt",
        "at least 2; 4 to 16 is usual",
    ),
    Rule(
        "overlong_buffer_fits",
        "overlongBuffer",
        lambda ppo: ppo.overlong_buffer < ppo.rollout.max_new_tokens,
        "self.overlongBuffer < self.rollout.maxNewTokens",
        "{overlongBuffer} leaves nothing of maxNewTokens, {rollout.maxNewTokens}",
        "from 0 to less than {rollout.maxNewTokens}",
    ),
)

CLIP_RULES: Final = (
    Rule(
        "clip_fits_the_ratio",
        "clip",
        lambda ppo: ppo.ratio != "sequence" or ppo.clip <= 0.1,
        "!has(self.ratio) || self.ratio == 'token' || self.clip <= 0.1",
        "is {clip}, and ratio: sequence is a mean over a response, which moves far less than a "
        "token's: nothing would be clipped",
        "0.0003 with a clipHigh of 0.0004 as in GSPO, at most 0.1",
    ),
)

CRITIC_RULES: Final = (
    Rule(
        "critic_is_used",
        "critic",
        lambda ppo: ppo.advantage == "gae" or ppo.critic == "auto",
        "self.advantage == 'gae' || self.critic == 'auto'",
        "is {critic}, and advantage {advantage} has no critic",
        "leave it out, or advantage: gae",
    ),
    Rule(
        "critic_is_used",
        "criticWarmupRollouts",
        lambda ppo: ppo.advantage == "gae" or ppo.critic_warmup_rollouts == 0,
        "self.advantage == 'gae' || self.criticWarmupRollouts == 0",
        "is set, and advantage {advantage} has no critic",
        "leave it out, or advantage: gae",
    ),
    Rule(
        "critic_warmup_ends",
        "criticWarmupRollouts",
        lambda ppo: ppo.critic_warmup_rollouts < ppo.rollouts,
        "self.criticWarmupRollouts < self.rollouts",
        "{criticWarmupRollouts} leaves the actor none of {rollouts} rollouts",
        "less than {rollouts}",
    ),
)

DISCOUNTING_ESTIMATORS: Final = ("gae", "reinforce++", "reinforce++-baseline")
GAE: Final = "self.advantage == 'gae'"


def _is_gae(ppo: Any) -> bool:
    return bool(ppo.advantage == "gae")


READ_RULES: Final = (
    Rule(
        "settings_are_read",
        "lora.dropout",
        lambda ppo: ppo.lora is None or ppo.lora.dropout == 0 or ppo.command is not None,
        "!has(self.lora) || self.lora.dropout == 0.0 || has(self.command)",
        "is set, and PPO has none: the ratio would differ from 1 before the first update",
        "leave it out",
    ),
    read_only_by(
        PPOStage,
        "criticLearningRate",
        lambda ppo: _is_gae(ppo) and ppo.critic != "shared",
        f"({GAE} && self.critic != 'shared')",
        "advantage {advantage} with critic {critic}",
        "advantage: gae with critic: reward or fresh; a shared critic learns at learningRate",
    ),
    read_only_by(
        PPOStage,
        "valueCoef",
        lambda ppo: _is_gae(ppo) and ppo.critic == "shared",
        f"({GAE} && self.critic == 'shared')",
        "advantage {advantage} with critic {critic}",
        "advantage: gae with critic: shared; another critic has a loss of its own",
    ),
    *(
        read_only_by(PPOStage, field, _is_gae, GAE, "advantage {advantage}", "advantage: gae")
        for field in ("valueClip", "lam", "whitenAdvantages")
    ),
    read_only_by(
        PPOStage,
        "gamma",
        lambda ppo: ppo.advantage in DISCOUNTING_ESTIMATORS,
        f"self.advantage in {list(DISCOUNTING_ESTIMATORS)}",
        "advantage {advantage}",
        "advantage: gae, reinforce++ or reinforce++-baseline",
    ),
    read_only_by(
        PPOStage,
        "groupStd",
        lambda ppo: ppo.advantage == "grpo",
        "self.advantage == 'grpo'",
        "advantage {advantage}",
        "advantage: grpo",
    ),
    Rule(
        "settings_are_read",
        "dynamicSampling",
        lambda ppo: ppo.dynamic_sampling is None or ppo.advantage in GROUP_ESTIMATORS,
        f"!has(self.dynamicSampling) || self.advantage in {list(GROUP_ESTIMATORS)}",
        "is set, and advantage {advantage} compares no responses to one prompt",
        f"leave it out, or one of {', '.join(GROUP_ESTIMATORS)}",
    ),
)

REWARD_RULES: Final = (
    Rule(
        "reward_terms_have_names",
        "rewards",
        lambda ppo: all(re.search(TERM_NAME, name) for name in ppo.rewards),
        f"self.rewards.all(name, name.matches('{TERM_NAME}'))",
        "has a key that is not a name",
        "letters, digits, '_' and '-', at most 63",
    ),
    Rule(
        "some_reward_counts",
        "rewards",
        lambda ppo: not ppo.rewards or any(term.weight != 0 for term in ppo.rewards.values()),
        "size(self.rewards) == 0 || self.rewards.exists(name, self.rewards[name].weight != 0.0)",
        "every weight is 0",
        "at least one weight that is not 0",
    ),
)

OWN_TRAINER_RULES: Final = (
    Rule(
        "placement_is_there",
        "placement",
        lambda ppo: ppo.placement is None or ppo.command is not None,
        "!has(self.placement) || has(self.command)",
        "separate GPUs for each role are not trained with in this version",
        "leave it out: all models on every GPU; or a command of your own",
    ),
)
"""What the contract names before our trainer has it."""

PPO_RULES: Final[dict[Model, tuple[Rule, ...]]] = {
    PPOStage: (
        *BATCH_RULES,
        *CLIP_RULES,
        *CRITIC_RULES,
        *READ_RULES,
        *REWARD_RULES,
        *OWN_TRAINER_RULES,
    ),
    Rollout: ROLLOUT_RULES,
    KL: KL_RULES,
    RewardTerm: TERM_RULES,
}
