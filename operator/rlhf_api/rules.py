"""Rules across fields: what each field alone allows, but together makes no sense.

Each rule is a small pure function that yields problems; a field that could not be read is absent
(see partial.py), and a rule that reads it falls silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from rlhf_api.base import Contract
from rlhf_api.job import JobSpec
from rlhf_api.partial import is_absent
from rlhf_api.problems import Problem
from rlhf_api.source_rules import SOURCE_RULES, sources_in
from rlhf_api.stage_rules import STAGE_RULES
from rlhf_api.stages import AnyStage

JobRule = Callable[[JobSpec], Iterator[Problem]]


def some_stage(spec: JobSpec) -> Iterator[Problem]:
    """A job without stages would do nothing."""
    if not spec.stages.present():
        yield Problem("spec.stages", "no stage is set", "at least one of sft, reward, ppo, dpo")


def ppo_has_reward(spec: JobSpec) -> Iterator[Problem]:
    """PPO needs something to maximise."""
    ppo = spec.stages.ppo
    if ppo and not ppo.rewards and not spec.stages.reward:
        yield Problem(
            "spec.stages.ppo.rewards",
            "there is no reward stage and no reward is named",
            "add spec.stages.reward, or name a model, a function or an http endpoint here",
        )


def reward_stage_is_there(spec: JobSpec) -> Iterator[Problem]:
    """A term may name the reward stage only where the job has one."""
    ppo = spec.stages.ppo
    for name, term in (ppo.rewards if ppo else {}).items():
        if term.stage and not spec.stages.reward:
            yield Problem(
                f"spec.stages.ppo.rewards.{name}.stage",
                "names the reward stage, which this job does not have",
                "add spec.stages.reward, or name a model, a function or an http endpoint",
            )


def critic_has_reward_model(spec: JobSpec) -> Iterator[Problem]:
    """A critic that starts from the reward model needs one."""
    ppo = spec.stages.ppo
    if not ppo or ppo.critic != "reward" or spec.stages.reward:
        return
    if not any(term.model for term in ppo.rewards.values()):
        yield Problem(
            "spec.stages.ppo.critic",
            "starts from the reward model, and there is none",
            "auto, shared or fresh; or add spec.stages.reward or a reward term with a model",
        )


def reward_start_is_there(spec: JobSpec) -> Iterator[Problem]:
    """The reward model may start from the SFT stage only where the job has one."""
    reward = spec.stages.reward
    if reward and reward.start_from == "sft" and not spec.stages.sft:
        yield Problem(
            "spec.stages.reward.startFrom",
            "is sft, and this job has no sft stage",
            "auto, base or random; or add spec.stages.sft",
        )


def adapters_are_handed_on_merged(spec: JobSpec) -> Iterator[Problem]:
    """A later stage starts from whole weights; an adapter alone is none."""
    later = {"sft": ("reward", "ppo", "dpo"), "reward": ("ppo",)}
    for name, followers in later.items():
        stage = getattr(spec.stages, name)
        following = [other for other in followers if getattr(spec.stages, other)]
        if stage and stage.lora and stage.lora.output == "adapter" and following:
            yield Problem(
                f"spec.stages.{name}.lora.output",
                f"is adapter, and {' and '.join(following)} would start from it",
                "merged; adapter only where no later stage uses the result",
            )


def one_place_for_checkpoints(spec: JobSpec) -> Iterator[Problem]:
    """Checkpoints live in one volume."""
    if spec.checkpoints.claim and spec.checkpoints.existing_claim:
        yield Problem(
            "spec.checkpoints",
            "claim and existingClaim are both set",
            "claim makes a new volume, existingClaim uses one that is there; keep one of them",
        )


def volume_reaches_all_nodes(spec: JobSpec) -> Iterator[Problem]:
    """Pods on several nodes share the checkpoint volume."""
    claim = spec.checkpoints.claim
    if not claim or claim.access_mode == "ReadWriteMany":
        return
    for name, stage in spec.stages.present().items():
        nodes = spec.resources.overridden_by(stage.resources).nodes
        if nodes > 1:
            yield Problem(
                "spec.checkpoints.claim.accessMode",
                f"is {claim.access_mode}, and stage {name} runs on {nodes} nodes",
                "ReadWriteMany",
            )
            return


def tolerations_make_sense(spec: JobSpec) -> Iterator[Problem]:
    """The API server's own rules for tolerations, told before pods are refused."""
    for index, item in enumerate(spec.resources.tolerations or ()):
        path = f"spec.resources.tolerations[{index}]"
        if item.operator == "Exists" and item.value:
            yield Problem(
                f"{path}.value", "is set, and operator is Exists", "leave value out, or use Equal"
            )
        if item.operator != "Exists" and not item.key:
            yield Problem(
                f"{path}.key",
                "is missing",
                "a taint's key; only with operator Exists may it be left out",
            )
        if item.toleration_seconds is not None and item.effect != "NoExecute":
            yield Problem(
                f"{path}.tolerationSeconds", "is set without effect NoExecute", "effect: NoExecute"
            )


JOB_RULES: Final[tuple[JobRule, ...]] = (
    some_stage,
    ppo_has_reward,
    reward_stage_is_there,
    critic_has_reward_model,
    reward_start_is_there,
    adapters_are_handed_on_merged,
    one_place_for_checkpoints,
    volume_reaches_all_nodes,
    tolerations_make_sense,
)


def broken_rules(spec: JobSpec) -> list[Problem]:
    """Everything that the rules have to say of what could be read."""
    checks: list[Iterator[Problem]] = [rule(spec) for rule in JOB_RULES]
    for name, stage in _stages(spec):
        for kind, rules in STAGE_RULES.items():
            if isinstance(stage, kind):
                checks += [rule(f"spec.stages.{name}", stage, spec) for rule in rules]
    for ref in sources_in(spec, "spec"):
        checks += [rule(ref.field, ref.value) for rule in SOURCE_RULES]
    return [problem for check in checks for problem in _readable(check)]


def _stages(spec: JobSpec) -> Iterator[tuple[str, AnyStage]]:
    stages = spec.__dict__.get("stages")
    for name in type(stages).model_fields if isinstance(stages, Contract) else ():
        if stage := stages.__dict__.get(name):
            yield name, stage


def _readable(check: Iterator[Problem]) -> Iterator[Problem]:
    """A rule's problems, up to where it reads a field that is absent."""
    try:
        yield from check
    except AttributeError as error:
        if not is_absent(error):
            raise
