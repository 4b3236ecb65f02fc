"""Rules across stages: what starts from what, and how stages share checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from rlhf_api.job import JobSpec, Stages
from rlhf_api.rules.gang import GANG_RULES
from rlhf_api.rules.quantities import bytes_have_a_unit
from rlhf_api.rules.rule import Rule, Rules
from rlhf_api.storage import Checkpoints, Claim

FOLLOWERS: Final[Mapping[str, Mapping[str, str]]] = {
    "sft": {
        "reward": "(has(self.reward) && self.reward.startFrom in ['auto', 'sft'])",
        "ppo": "has(self.ppo)",
        "dpo": "has(self.dpo)",
    },
    "reward": {
        "ppo": "(has(self.ppo) && (size(self.ppo.rewards) == 0 || "
        "self.ppo.rewards.exists(name, has(self.ppo.rewards[name].stage)) || "
        "(self.ppo.advantage == 'gae' && self.ppo.critic in ['auto', 'reward'])))",
    },
}
"""`Stages.followers` in CEL: those that may take a stage's output, and when each of them does."""


def _terms(stages: Any) -> list[Any]:
    return list(stages.ppo.rewards.values()) if stages.ppo else []


def _hands_on_an_adapter(stage: Any) -> bool:
    return stage is not None and stage.lora is not None and stage.lora.output == "adapter"


POLICIES_ARE_WHOLE: Final = Rule(
    "adapters_are_handed_on_merged",
    "sft.lora.output",
    lambda stages: not _hands_on_an_adapter(stages.sft) or not stages.followers("sft"),
    "!self.?sft.?lora.hasValue() || self.sft.lora.output != 'adapter' || "
    f"!({' || '.join(FOLLOWERS['sft'].values())})",
    f"is adapter, and {' or '.join(FOLLOWERS['sft'])} would start from it",
    "merged; adapter only where no later stage uses the result",
)
REWARD_MODELS_ARE_WHOLE: Final = Rule(
    "adapters_are_handed_on_merged",
    "reward.lora.output",
    lambda stages: (
        not _hands_on_an_adapter(stages.reward)
        or (stages.reward.command is not None and stages.ppo is None)
    ),
    "!self.?reward.?lora.hasValue() || self.reward.lora.output != 'adapter' || "
    "(has(self.reward.command) && !has(self.ppo))",
    "is adapter, and a reward model is handed on whole, with its head",
    "merged",
)


def _gate_has_followers(name: str) -> Rule:
    """A gate holds later stages back and nothing else: the job is ready without it."""
    following = "".join(f"{takes_it} || " for takes_it in FOLLOWERS.get(name, {}).values())

    def holds(stages: Any) -> bool:
        stage = getattr(stages, name)
        return not (stage and stage.gate) or bool(stages.followers(name))

    return Rule(
        "gate_holds_something",
        f"{name}.gate",
        holds,
        f"{following}!self.?{name}.?gate.hasValue()",
        f"holds nothing back: no stage of this job starts from {name}",
        "leave it out; a gate belongs to a stage that others start from",
    )


STAGES_RULES: Final = (
    Rule(
        "some_stage",
        "",
        lambda stages: bool(stages.present()),
        " || ".join(f"has(self.{name})" for name in Stages.model_fields),
        "no stage is set",
        f"at least one of {', '.join(Stages.model_fields)}",
    ),
    Rule(
        "ppo_has_reward",
        "ppo.rewards",
        lambda stages: not stages.ppo or bool(stages.reward or stages.ppo.rewards),
        "has(self.reward) || !has(self.ppo) || size(self.ppo.rewards) > 0",
        "there is no reward stage and no reward is named",
        "add spec.stages.reward, or name a model, a function or an http endpoint here",
    ),
    Rule(
        "reward_stage_is_there",
        "ppo.rewards",
        lambda stages: all(not term.stage for term in _terms(stages)) or bool(stages.reward),
        "has(self.reward) || !has(self.ppo) || "
        "self.ppo.rewards.all(name, !has(self.ppo.rewards[name].stage))",
        "a term names the reward stage, which this job does not have",
        "add spec.stages.reward, or name a model, a function or an http endpoint",
    ),
    Rule(
        "critic_has_reward_model",
        "ppo.critic",
        lambda stages: (
            not stages.ppo
            or stages.ppo.critic != "reward"
            or bool(stages.reward)
            or any(term.model for term in _terms(stages))
        ),
        "has(self.reward) || !has(self.ppo) || self.ppo.critic != 'reward' || "
        "self.ppo.rewards.exists(name, has(self.ppo.rewards[name].model))",
        "starts from the reward model, and there is none",
        "auto, shared or fresh; or add spec.stages.reward or a reward term with a model",
    ),
    Rule(
        "reward_start_is_there",
        "reward.startFrom",
        lambda stages: not stages.reward or stages.reward.start_from != "sft" or bool(stages.sft),
        "has(self.sft) || !has(self.reward) || self.reward.startFrom != 'sft'",
        "is sft, and this job has no sft stage",
        "auto, base or random; or add spec.stages.sft",
    ),
    Rule(
        "demonstrations_are_there",
        "reward.normaliseOn",
        lambda stages: (
            not stages.reward or stages.reward.normalise_on != "demonstrations" or bool(stages.sft)
        ),
        "has(self.sft) || !has(self.reward) || self.reward.normaliseOn != 'demonstrations'",
        "is demonstrations, and this job has no sft stage, whose data they are",
        "auto, chosen or all; or add spec.stages.sft",
    ),
    Rule(
        "demonstrations_are_there",
        "reward.normaliseOn",
        lambda stages: (
            not stages.reward
            or stages.reward.normalise_on != "demonstrations"
            or not stages.sft
            or stages.sft.command is None
        ),
        "!self.?sft.?command.hasValue() || !has(self.reward) || "
        "self.reward.normaliseOn != 'demonstrations'",
        "is demonstrations, and only sft.command knows how the SFT data are read",
        "auto, chosen or all; or leave out sft.command",
    ),
    POLICIES_ARE_WHOLE,
    REWARD_MODELS_ARE_WHOLE,
    *(_gate_has_followers(name) for name in Stages.model_fields),
)

CHECKPOINT_RULES: Final = (
    Rule(
        "one_place_for_checkpoints",
        "",
        lambda place: sum(map(bool, (place.claim, place.existing_claim, place.uri))) < 2,
        "[has(self.claim), has(self.existingClaim), has(self.uri)].filter(given, given).size() < 2",
        "more than one of claim, existingClaim and uri is set",
        "claim makes a new volume, existingClaim uses one that is there; keep one of them",
    ),
    Rule(
        "folder_is_in_a_claim",
        "subPath",
        lambda place: not place.sub_path or place.uri is None,
        "!has(self.uri) || !has(self.subPath) || size(self.subPath) == 0",
        "is set, and checkpoints are in an object store",
        "leave it out; uri may name a folder itself",
    ),
    Rule(
        "checkpoint_secret_is_used",
        "secret",
        lambda place: place.secret is None or place.uri is not None,
        "!has(self.secret) || has(self.uri)",
        "is set, and there is no uri",
        "leave it out",
    ),
    Rule(
        "local_size_is_used",
        "localSize",
        lambda place: place.local_size is None or place.uri is not None,
        "!has(self.localSize) || has(self.uri)",
        "is set, and there is no uri",
        "leave it out; claim.size is the size of a volume",
    ),
    bytes_have_a_unit("localSize", "local_size"),
)

CLAIM_RULES: Final = (
    Rule(
        "claim_has_room",
        "size",
        lambda claim: bool(re.search("[1-9]", str(claim.size))),
        "type(self.size) == int ? self.size > 0 : self.size.matches('[1-9]')",
        "is 0",
        "a quantity above 0, such as 100Gi",
    ),
    bytes_have_a_unit("size", "size"),
)

JOB_RULES: Final[Rules] = {
    JobSpec: GANG_RULES,
    Stages: STAGES_RULES,
    Checkpoints: CHECKPOINT_RULES,
    Claim: CLAIM_RULES,
}
