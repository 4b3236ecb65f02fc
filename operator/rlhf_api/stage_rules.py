"""Rules across the fields of one stage, by the class of the stage."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from rlhf_api.job import JobSpec
from rlhf_api.problems import Problem
from rlhf_api.stages.common import StageCommon
from rlhf_api.stages.dpo import DPOStage
from rlhf_api.stages.ppo import PPOStage
from rlhf_api.stages.reward import RewardStage
from rlhf_api.stages.sft import SFTStage

StageRule = Callable[[str, Any, JobSpec], Iterator[Problem]]
"""A rule gets the stage's path, the stage, and the spec; it yields problems."""

GROUP_ESTIMATORS: Final = ("grpo", "rloo")


def micro_batch_fits(path: str, stage: StageCommon, spec: JobSpec) -> Iterator[Problem]:
    """No GPU can compute more rows at once than one optimizer step has."""
    name, rows = _step_rows(stage)
    if stage.micro_batch_size > rows:
        yield Problem(
            f"{path}.microBatchSize",
            f"{stage.micro_batch_size} is more than {name}, which is {rows}",
            f"a whole number from 1 to {rows}, or a larger {name}",
        )


def every_rank_has_rows(path: str, stage: StageCommon, spec: JobSpec) -> Iterator[Problem]:
    """A GPU without a row in each optimizer step would only wait."""
    name, rows = _step_rows(stage)
    resources = spec.resources.overridden_by(stage.resources)
    ranks = resources.nodes * resources.ranks_per_node
    if rows < ranks:
        yield Problem(
            f"{path}.{name}",
            f"{rows} rows cannot keep {ranks} processes busy ({resources.nodes} nodes with "
            f"{resources.ranks_per_node} each)",
            f"at least {ranks}, or fewer nodes or GPUs",
        )


def processes_follow_gpus(path: str, stage: StageCommon, spec: JobSpec) -> Iterator[Problem]:
    """There is one process per GPU; their number is free only without GPUs."""
    resources = spec.resources.overridden_by(stage.resources)
    if resources.gpus_per_node and resources.processes_per_node not in (1, resources.gpus_per_node):
        yield Problem(
            f"{path}.resources.processesPerNode",
            f"is {resources.processes_per_node}, and gpusPerNode is {resources.gpus_per_node}",
            "leave it out: there is one process per GPU",
        )


def offload_needs_partitions(path: str, stage: StageCommon, spec: JobSpec) -> Iterator[Problem]:
    """DeepSpeed offloads only what ZeRO manages."""
    if stage.zero.offload != "none" and stage.zero.stage == 0:
        yield Problem(
            f"{path}.zero.offload", "is set, and zero.stage is 0", "zero.stage 1, 2 or 3, or none"
        )


def gate_holds_something(path: str, stage: StageCommon, spec: JobSpec) -> Iterator[Problem]:
    """A gate names a metric with a bound, or asks for approval."""
    gate = stage.gate
    if gate is None:
        return
    bounded = gate.min is not None or gate.max is not None
    if gate.metric and not bounded:
        yield Problem(f"{path}.gate", f"names {gate.metric} without a bound", "min, max or both")
    if bounded and not gate.metric:
        yield Problem(
            f"{path}.gate.metric",
            "is missing beside min or max",
            "the name of a final metric, such as eval/accuracy",
        )
    if not gate.metric and not bounded and not gate.approval:
        yield Problem(
            f"{path}.gate", "holds nothing back", "metric with min or max, or approval: true"
        )


def gate_can_pass(path: str, stage: StageCommon, spec: JobSpec) -> Iterator[Problem]:
    """No metric lies above max's minimum and below it at once."""
    gate = stage.gate
    if gate and gate.min is not None and gate.max is not None and gate.min > gate.max:
        yield Problem(
            f"{path}.gate.min", f"{gate.min:g} is above max, {gate.max:g}", f"at most {gate.max:g}"
        )


def backoff_grows(path: str, stage: StageCommon, spec: JobSpec) -> Iterator[Problem]:
    """The first pause is no longer than the longest one."""
    first, longest = stage.retry.backoff_seconds, stage.retry.max_backoff_seconds
    if first > longest:
        yield Problem(
            f"{path}.retry.backoffSeconds",
            f"{first:g} is above maxBackoffSeconds, {longest:g}",
            f"at most {longest:g}",
        )


def minibatches_divide(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """Each optimizer step takes an equal share of the rollout."""
    if ppo.global_batch_size % ppo.minibatch_size:
        yield Problem(
            f"{path}.minibatchSize",
            f"{ppo.minibatch_size} does not divide globalBatchSize, {ppo.global_batch_size}",
            f"a divisor of it, such as {_divisor(ppo.global_batch_size, ppo.minibatch_size)}",
        )


def groups_fill_the_batch(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """All responses to one prompt are in the same rollout."""
    samples = ppo.rollout.samples_per_prompt
    if ppo.global_batch_size % samples:
        yield Problem(
            f"{path}.rollout.samplesPerPrompt",
            f"{samples} does not divide globalBatchSize, {ppo.global_batch_size}",
            f"a divisor of it, such as {_divisor(ppo.global_batch_size, samples)}",
        )


def groups_have_members(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """A group estimator compares the responses to one prompt."""
    if ppo.advantage in GROUP_ESTIMATORS and ppo.rollout.samples_per_prompt < 2:
        yield Problem(
            f"{path}.rollout.samplesPerPrompt",
            f"is {ppo.rollout.samples_per_prompt}, and advantage {ppo.advantage} compares "
            "responses to one prompt",
            "at least 2; 4 to 16 is usual",
        )


def critic_is_used(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """Only GAE has a critic to configure."""
    if ppo.advantage == "gae":
        return
    if ppo.critic != "auto":
        yield Problem(
            f"{path}.critic",
            f"is {ppo.critic}, and advantage {ppo.advantage} has no critic",
            "leave it out, or advantage: gae",
        )
    if ppo.critic_warmup_rollouts:
        yield Problem(
            f"{path}.criticWarmupRollouts",
            f"is set, and advantage {ppo.advantage} has no critic",
            "leave it out, or advantage: gae",
        )


def critic_warmup_ends(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """Some rollouts must be left that train the actor."""
    if ppo.critic_warmup_rollouts >= ppo.rollouts:
        yield Problem(
            f"{path}.criticWarmupRollouts",
            f"{ppo.critic_warmup_rollouts} leaves the actor none of {ppo.rollouts} rollouts",
            f"at most {ppo.rollouts - 1}",
        )


def responses_have_lengths(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """The shortest allowed response is no longer than the longest."""
    rollout = ppo.rollout
    if rollout.min_new_tokens > rollout.max_new_tokens:
        yield Problem(
            f"{path}.rollout.minNewTokens",
            f"{rollout.min_new_tokens} is above maxNewTokens, {rollout.max_new_tokens}",
            f"from 1 to {rollout.max_new_tokens}",
        )


def overlong_buffer_fits(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """The buffer is the last part of a response."""
    longest = ppo.rollout.max_new_tokens
    if ppo.overlong_buffer >= longest:
        yield Problem(
            f"{path}.overlongBuffer",
            f"{ppo.overlong_buffer} leaves nothing of maxNewTokens, {longest}",
            f"from 0 to {longest - 1}",
        )


def rollout_engine_is_there(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """The contract names vLLM before the trainer has it."""
    if ppo.rollout.engine != "native":
        yield Problem(
            f"{path}.rollout.engine",
            f"{ppo.rollout.engine} is not available in this version",
            "native",
        )


def adaptive_kl_has_a_start(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """The controller multiplies β; from 0 it never moves."""
    if ppo.kl.adaptive and ppo.kl.coef == 0:
        yield Problem(
            f"{path}.kl.coef",
            "is 0, and adaptive multiplies it, so that it stays 0",
            "a start value such as 0.02",
        )


def reward_terms_have_one_source(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """Each term of the reward is exactly one thing."""
    kinds = ("stage", "model", "function", "http")
    for name, term in ppo.rewards.items():
        given = [kind for kind in kinds if getattr(term, kind) is not None]
        if len(given) != 1:
            yield Problem(
                f"{path}.rewards.{name}",
                f"sets {' and '.join(given)}" if given else "names nothing that gives a reward",
                f"exactly one of {', '.join(kinds)}",
            )


def reward_terms_have_names(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """A term's name is part of its metric's name."""
    for name in ppo.rewards:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
            yield Problem(
                f"{path}.rewards.{name}",
                "is not a name",
                "letters, digits, '_' and '-', at most 63",
            )


def some_reward_counts(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """With every weight at 0 there is nothing to maximise."""
    if ppo.rewards and all(term.weight == 0 for term in ppo.rewards.values()):
        yield Problem(f"{path}.rewards", "every weight is 0", "at least one weight that is not 0")


def reward_models_are_trained(path: str, ppo: PPOStage, spec: JobSpec) -> Iterator[Problem]:
    """Random weights reward noise."""
    for name, term in ppo.rewards.items():
        if term.model and term.model.init == "random":
            yield Problem(
                f"{path}.rewards.{name}.model.init",
                "is random, and a reward model must be trained",
                "pretrained",
            )


def smoothing_has_its_loss(path: str, dpo: DPOStage, spec: JobSpec) -> Iterator[Problem]:
    """Label smoothing is defined for the logistic loss (cDPO)."""
    if dpo.label_smoothing and dpo.loss != "sigmoid":
        yield Problem(
            f"{path}.labelSmoothing", f"is set, and loss {dpo.loss} has none", "0, or loss: sigmoid"
        )


def rows_fit_stage(path: str, stage: StageCommon, spec: JobSpec) -> Iterator[Problem]:
    """A named format must hold what the stage reads; `auto` is judged by the rows themselves."""
    if not isinstance(stage, SFTStage | RewardStage | PPOStage | DPOStage):
        return
    wrong, wanted = _wrong_formats(stage)
    if stage.data.format in wrong:
        yield Problem(
            f"{path}.data.format",
            f"is {stage.data.format}, and this stage reads {wanted}",
            "auto, or the rows' own format",
        )


STAGE_RULES: Final[dict[type[StageCommon], tuple[StageRule, ...]]] = {
    StageCommon: (
        micro_batch_fits,
        every_rank_has_rows,
        processes_follow_gpus,
        offload_needs_partitions,
        gate_holds_something,
        gate_can_pass,
        backoff_grows,
        rows_fit_stage,
    ),
    PPOStage: (
        minibatches_divide,
        groups_fill_the_batch,
        groups_have_members,
        critic_is_used,
        critic_warmup_ends,
        responses_have_lengths,
        overlong_buffer_fits,
        rollout_engine_is_there,
        adaptive_kl_has_a_start,
        reward_terms_have_one_source,
        reward_terms_have_names,
        some_reward_counts,
        reward_models_are_trained,
    ),
    DPOStage: (smoothing_has_its_loss,),
}


def _step_rows(stage: StageCommon) -> tuple[str, int]:
    """The field that gives the rows of one optimizer step, and its value."""
    if isinstance(stage, PPOStage):
        return "minibatchSize", stage.minibatch_size
    return "globalBatchSize", stage.global_batch_size


def _wrong_formats(stage: StageCommon) -> tuple[tuple[str, ...], str]:
    """Formats that cannot hold what a stage reads, and what that is."""
    if isinstance(stage, DPOStage) and stage.loss == "kto":
        return ("text", "ranked"), "labelled answers (loss: kto)"
    if isinstance(stage, DPOStage | RewardStage):
        return ("text", "kto"), "preferences"
    if isinstance(stage, SFTStage):
        return ("text", "kto"), "prompts with answers, or dialogues"
    return ("text",), "prompts"


def _divisor(total: int, near: int) -> int:
    """The largest divisor of total that is at most near."""
    return next(size for size in range(min(near, total), 0, -1) if total % size == 0)
