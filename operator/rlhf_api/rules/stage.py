"""Rules across the fields of one stage, by the class that they are about."""

from __future__ import annotations

from typing import Final

from rlhf_api.resources import RetryPolicy
from rlhf_api.rules.ppo import PPO_RULES
from rlhf_api.rules.rule import Rule, Rules, read_only_by
from rlhf_api.stages.common import MetricGate, Supervised, Zero
from rlhf_api.stages.dpo import DPOStage
from rlhf_api.stages.ppo import PPOStage
from rlhf_api.stages.reward import RewardStage
from rlhf_api.stages.sft import SFTStage


def _format_fits(wrong: tuple[str, ...], wanted: str) -> Rule:
    """A named format must hold what the stage reads; `auto` is judged by the rows themselves."""
    return Rule(
        "rows_fit_stage",
        "data.format",
        lambda stage: stage.data.format not in wrong,
        f"!(self.data.format in {list(wrong)})",
        f"is {{data.format}}, and this stage reads {wanted}",
        "auto, or the rows' own format",
    )


HELDOUT_METRICS: Final = ("eval/loss", "eval/accuracy")
"""Final metrics of our trainer that there are with held-out rows alone."""

SUPERVISED_RULES: Final = (
    Rule(
        "micro_batch_fits",
        "microBatchSize",
        lambda stage: stage.micro_batch_size <= stage.global_batch_size,
        "self.microBatchSize <= self.globalBatchSize",
        "{microBatchSize} is more than globalBatchSize, which is {globalBatchSize}",
        "a whole number from 1 to {globalBatchSize}, or a larger globalBatchSize",
    ),
    Rule(
        "gate_can_pass",
        "gate.metric",
        lambda stage: (
            stage.gate is None
            or stage.gate.metric not in HELDOUT_METRICS
            or stage.command is not None
            or stage.data.eval_source is not None
            or stage.data.eval_fraction > 0
        ),
        "!has(self.gate) || !has(self.gate.metric) || "
        f"!(self.gate.metric in {list(HELDOUT_METRICS)}) || has(self.command) || "
        "has(self.data.evalSource) || self.data.evalFraction > 0.0",
        "is measured on held-out rows, and data.evalFraction is 0",
        "an evalFraction above 0, an evalSource, or another metric",
    ),
)

ZERO_RULES: Final = (
    Rule(
        "offload_needs_partitions",
        "offload",
        lambda zero: zero.offload == "none" or zero.stage > 0,
        "self.offload == 'none' || self.stage > 0",
        "is set, and zero.stage is 0",
        "zero.stage 1, 2 or 3, or none",
    ),
)

RETRY_RULES: Final = (
    Rule(
        "backoff_grows",
        "backoffSeconds",
        lambda retry: retry.backoff_seconds <= retry.max_backoff_seconds,
        "self.backoffSeconds <= self.maxBackoffSeconds",
        "{backoffSeconds} is above maxBackoffSeconds, {maxBackoffSeconds}",
        "at most {maxBackoffSeconds}",
    ),
)

GATE_RULES: Final = (
    Rule(
        "gate_holds_something",
        "",
        lambda gate: gate.metric is None or gate.min is not None or gate.max is not None,
        "!has(self.metric) || has(self.min) || has(self.max)",
        "names a metric without a bound",
        "min, max or both",
    ),
    Rule(
        "gate_holds_something",
        "metric",
        lambda gate: gate.metric is not None or (gate.min is None and gate.max is None),
        "has(self.metric) || !(has(self.min) || has(self.max))",
        "is missing beside min or max",
        "the name of a final metric, such as eval/accuracy",
    ),
    Rule(
        "gate_holds_something",
        "",
        lambda gate: (
            gate.metric is not None or gate.min is not None or gate.max is not None or gate.approval
        ),
        "has(self.metric) || has(self.min) || has(self.max) || self.approval",
        "holds nothing back",
        "metric with min or max, or approval: true",
    ),
    Rule(
        "gate_can_pass",
        "min",
        lambda gate: gate.min is None or gate.max is None or gate.min <= gate.max,
        "!has(self.min) || !has(self.max) || self.min <= self.max",
        "is above max, so that no value passes",
        "at most max",
    ),
)


def _of_loss(field: str, loss: str) -> Rule:
    """A setting of one loss."""
    return read_only_by(
        DPOStage,
        field,
        lambda dpo: dpo.loss == loss,
        f"self.loss == '{loss}'",
        "loss {loss}",
        f"loss: {loss}",
    )


DPO_RULES: Final = (
    _of_loss("labelSmoothing", "sigmoid"),
    _of_loss("simpoGamma", "simpo"),
    _of_loss("desirableWeight", "kto"),
    _of_loss("undesirableWeight", "kto"),
    Rule(
        "margin_is_in_reach",
        "beta",
        lambda dpo: dpo.loss != "simpo" or dpo.simpo_gamma <= dpo.beta,
        "self.loss != 'simpo' || self.simpoGamma <= self.beta",
        "{beta} is below simpoGamma, {simpoGamma}: loss simpo then wants each token of the better "
        "answer to be likelier, on average, by more than a nat",
        "2 to 10, with a simpoGamma of 0.1 to 0.8 times as much",
    ),
    Rule(
        "rows_fit_stage",
        "data.format",
        lambda dpo: dpo.loss == "kto" or dpo.data.format != "text",
        "self.loss == 'kto' || self.data.format != 'text'",
        "is {data.format}, and this stage reads preferences",
        "auto, or the rows' own format",
    ),
    Rule(
        "rows_fit_stage",
        "data.format",
        lambda dpo: dpo.loss == "kto" or dpo.data.format != "kto",
        "self.loss == 'kto' || self.data.format != 'kto'",
        "is kto, and loss {loss} compares answers to one prompt",
        "loss: kto, which learns from answers with a label; or the format of rows with pairs",
    ),
    Rule(
        "rows_fit_stage",
        "data.format",
        lambda dpo: dpo.loss != "kto" or dpo.data.format not in ("text", "ranked"),
        "self.loss != 'kto' || !(self.data.format in ['text', 'ranked'])",
        "is {data.format}, and this stage reads labelled answers (loss: kto)",
        "auto, or the rows' own format",
    ),
)

STAGE_RULES: Final[Rules] = {
    **PPO_RULES,
    Supervised: SUPERVISED_RULES,
    Zero: ZERO_RULES,
    RetryPolicy: RETRY_RULES,
    MetricGate: GATE_RULES,
    SFTStage: (_format_fits(("text", "kto"), "prompts with answers, or dialogues"),),
    RewardStage: (_format_fits(("text", "kto"), "preferences"),),
    PPOStage: (*PPO_RULES[PPOStage], _format_fits(("text",), "prompts")),
    DPOStage: DPO_RULES,
}
