"""Proximal policy optimization from human feedback, and estimators that share its rollouts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from rlhf_api.base import OPERATIONAL, Contract
from rlhf_api.data import DataSource, ModelSource, Source
from rlhf_api.stages.common import StageCommon


def _without(default: str) -> AfterValidator:
    """None says the same, and changes no stage's identity (docs/adr/0018)."""
    return AfterValidator(lambda value: None if value == default else value)


Ratio = Annotated[Literal["token", "sequence"], _without("token")]
StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    Field(max_length=16),
    AfterValidator(lambda texts: texts or None),
]
LossAggregation = Annotated[Literal["token", "sequence", "constant"], _without("token")]


class AdaptiveKL(Contract):
    """Controller of the KL coefficient (Ziegler et al. 2019, section 2.2)."""

    target: float = Field(
        default=6.0, gt=0, description="KL per response, in nats, that is aimed at."
    )
    horizon: int = Field(
        default=10_000, ge=1, le=2**31 - 1, description="Responses over which β adapts."
    )


class KL(Contract):
    """Penalty that ties the actor to the reference."""

    coef: float = Field(
        default=0.02, ge=0, le=10, description="β of the penalty; the start value if adaptive."
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        default="k1",
        description="k1 = x, k2 = x²/2, k3 = e^(−x) − 1 + x with x = log π − log π_ref. "
        "`advantage: grpo` has the KL in its loss: k3 is the paper's, k1 and k2 have its gradient.",
    )
    adaptive: AdaptiveKL | None = Field(
        default=None, description="Adapt β to a target; default: fixed."
    )


class Rollout(Contract):
    """How responses are sampled."""

    engine: Literal["native", "vllm"] = Field(
        default="native",
        description="native: the actor itself; vllm: vLLM beside it, on the same GPUs.",
    )
    gpu_memory_utilization: Annotated[float, OPERATIONAL] = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="`engine: vllm`: share of a GPU's memory for its weights and cache.",
    )
    max_prompt_length: int = Field(
        default=512, ge=1, le=1_048_576, description="Tokens of a prompt at most."
    )
    max_new_tokens: int = Field(
        default=256, ge=1, le=1_048_576, description="Tokens of a response at most."
    )
    min_new_tokens: int = Field(
        default=1,
        ge=1,
        le=1_048_576,
        description="No end of sequence before this many tokens; above 1, KL is biased as by topK.",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="Divides the logits in sampling and in every log-probability.",
    )
    top_k: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        description="Sample among the k likeliest tokens; 0: all. Log-probabilities stay those of "
        "all tokens, so that with a k ppo/kl and the gradient are biased.",
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Sample among the likeliest tokens of this mass; below 1, KL is biased as by "
        "topK.",
    )
    stop: StopStrings | None = Field(
        default=None,
        description="Texts that end a response, as the end of sequence does; default: none. The "
        "token that completes one is kept, and rewards read it.",
        examples=[["</answer>"]],
    )
    samples_per_prompt: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Responses per prompt; group estimators need at least 2.",
    )
    importance_cap: float | None = Field(
        default=2.0,
        gt=0,
        description="Cap of the importance weight that corrects a rollout engine's own log-probs.",
    )


class DynamicSampling(Contract):
    """Prompts in place of those all of whose responses score the same (DAPO, Yu et al. 2025)."""

    max_rounds: int = Field(
        default=10,
        ge=2,
        le=1000,
        description="Rounds of sampling in a rollout, the first one included, after which it goes "
        "on with what it has.",
    )


class FunctionReward(Contract):
    """A Python function of the user's: ``f(prompts, answers, rows) -> list of floats``."""

    entrypoint: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$",
        max_length=256,
        description="module:function.",
        examples=["my_rewards:brevity"],
    )
    source: Source = Field(description="Folder that is mounted and put on the import path.")


class HttpReward(Contract):
    """An endpoint that takes ``{"prompts", "answers"}`` as JSON and gives ``{"rewards"}``."""

    url: str = Field(
        pattern=r"^https?://[^\x00-\x20]+$", max_length=2048, description="Address of the endpoint."
    )
    timeout_seconds: Annotated[float, OPERATIONAL] = Field(
        default=30.0, gt=0, le=3600, description="Seconds to wait for one batch."
    )
    retries: Annotated[int, OPERATIONAL] = Field(
        default=3, ge=0, le=100, description="Tries after a failed one, with growing pauses."
    )


class RewardTerm(Contract):
    """One term of the reward; exactly one of stage, model, function, http."""

    weight: float = Field(default=1.0, ge=-1000, le=1000, description="Factor in the weighted sum.")
    stage: Literal["reward"] | None = Field(default=None, description="The job's own reward stage.")
    model: ModelSource | None = Field(default=None, description="A trained reward model.")
    function: FunctionReward | None = Field(default=None, description="A Python function.")
    http: HttpReward | None = Field(default=None, description="An HTTP endpoint.")


class PretrainingMix(Contract):
    """PPO-ptx (Ouyang et al. 2022): language modelling on pretraining text beside PPO."""

    data: DataSource = Field(description="Plain text or dialogues.")
    coef: float = Field(
        default=1.0, gt=0, le=1000, description="Weight γ of the language-modelling loss."
    )


class EMA(Contract):
    """Exponential moving average of the actor, which then is the stage's output."""

    decay: float = Field(
        default=0.992, ge=0, lt=1, description="Share of the old average at each update."
    )


class Placement(Contract):
    """GPUs of each role, where roles are kept on separate GPUs of the one gang."""

    actor: int = Field(ge=1, le=100_000, description="GPUs that train the actor.")
    critic: int | None = Field(
        default=None, ge=1, le=100_000, description="GPUs that train the critic."
    )
    reference: int | None = Field(
        default=None, ge=1, le=100_000, description="GPUs of the reference model."
    )
    reward: int | None = Field(
        default=None, ge=1, le=100_000, description="GPUs of the reward model."
    )
    rollout: int | None = Field(
        default=None, ge=1, le=100_000, description="GPUs that generate responses."
    )


class PPOStage(StageCommon):
    """Proximal policy optimization (Schulman et al. 2017; Ouyang et al. 2022)."""

    data: DataSource = Field(description="Prompts.")
    rollouts: int = Field(
        default=100, ge=1, le=10_000_000, description="Rounds of make-experience and update."
    )
    global_batch_size: int = Field(
        default=128, ge=1, le=1_000_000, description="Responses per rollout over all GPUs together."
    )
    minibatch_size: int = Field(
        default=32,
        ge=1,
        le=1_000_000,
        description="Responses per optimizer step over all GPUs together; divides globalBatchSize.",
    )
    update_epochs: int = Field(
        default=1, ge=1, le=100, description="Passes over one rollout's responses."
    )
    learning_rate: float = Field(
        default=1e-6, gt=0, le=1, description="Peak learning rate of the actor."
    )
    critic_learning_rate: float = Field(
        default=1e-5, gt=0, le=1, description="Peak learning rate of the critic."
    )
    adam_epsilon: float = Field(default=1e-5, gt=0, le=1e-2, description="AdamW ε.")
    rewards: dict[str, RewardTerm] = Field(
        default_factory=dict,
        max_length=16,
        description="Named terms of the reward; default: the job's reward stage alone.",
    )
    critic: Literal["auto", "reward", "shared", "fresh"] = Field(
        default="auto",
        description="reward: starts from the reward model; shared: a head on the actor's trunk; "
        "fresh: a new head on a copy of the actor's start; `auto`: reward, else fresh.",
    )
    critic_warmup_rollouts: int = Field(
        default=0, ge=0, le=10_000_000, description="First rollouts that train the critic alone."
    )
    advantage: Literal["gae", "grpo", "rloo", "reinforce++", "reinforce++-baseline"] = Field(
        default="gae",
        description="Advantage estimator; all but gae need no critic. reinforce++-baseline takes "
        "the mean of a prompt's scores from each, and whitens over the batch.",
    )
    group_std: bool = Field(
        default=True, description="GRPO: divide by the group's standard deviation."
    )
    kl: KL = Field(default_factory=KL, description="Tie to the reference.")
    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount γ.")
    lam: float = Field(default=0.95, ge=0, le=1, description="GAE λ.")
    clip: float = Field(default=0.2, gt=0, lt=1, description="ε of the clipped ratio.")
    clip_high: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="ε above 1, where it is another (DAPO's clip-higher, 0.28): unlikely tokens "
        "may then become likelier faster; default: clip.",
    )
    ratio: Ratio | None = Field(
        default=None,
        description="Ratio of the new policy to the old that is clipped. token: each token's; "
        "sequence: their geometric mean over the response (GSPO), which wants a clip of 0.0003, "
        "a clipHigh of 0.0004 and lossAggregation: sequence; default: token.",
    )
    loss_aggregation: LossAggregation | None = Field(
        default=None,
        description="How tokens of a minibatch weigh in the loss of the policy, with its entropy "
        "and GRPO's KL. token: all alike (DAPO); sequence: all responses alike, whose tokens share "
        "it (GRPO's paper, GSPO); constant: 1/maxNewTokens of a response's weight each (Dr. GRPO, "
        "with groupStd: false); default: token.",
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="c of dual-clip PPO for negative advantages; default: off."
    )
    value_clip: float = Field(
        default=0.2,
        gt=0,
        description="A value further than this from the old one is clipped, in units of the "
        "reward; of the losses with and without that the larger counts.",
    )
    value_coef: float = Field(
        default=0.5, gt=0, le=100, description="`critic: shared`: weight of the value loss."
    )
    entropy_coef: float = Field(default=0.0, ge=0, le=10, description="Weight of an entropy bonus.")
    whiten_advantages: bool = Field(
        default=True, description="Whiten advantages over the global batch."
    )
    reward_clip: float = Field(default=5.0, gt=0, description="Scores are clipped to ± this.")
    normalise_rewards: bool = Field(
        default=True,
        description="Normalise the reward model's scores by the statistics it carries.",
    )
    missing_eos_penalty: float = Field(
        default=0.0,
        ge=0,
        description="Taken from the score of a response that did not end by itself.",
    )
    overlong_buffer: int = Field(
        default=0,
        ge=0,
        le=1_048_576,
        description="Last tokens of maxNewTokens in which a penalty rises linearly to 1; 0: off.",
    )
    max_kl: float | None = Field(
        default=None,
        gt=0,
        description="Stop rule: KL per response, in nats, above which the update is undone and the "
        "stage ends at its last good state.",
    )
    rollout: Rollout = Field(default_factory=Rollout, description="Sampling of responses.")
    dynamic_sampling: DynamicSampling | None = Field(
        default=None,
        description="Estimators of groups: draw further prompts until all of a rollout's "
        "have responses that score differently (DAPO); default: off.",
    )
    pretraining: PretrainingMix | None = Field(
        default=None, description="Mix in language modelling; default: off."
    )
    placement: Annotated[Placement | None, OPERATIONAL] = Field(
        default=None,
        description="Separate GPUs for each role; default: all models on every GPU.",
    )
    ema: EMA | None = Field(default=None, description="Average the actor's weights; default: off.")

    @property
    def may_take_reward_stage(self) -> bool:
        """Whether it takes the output of the reward stage, where there is one: as its reward, as
        its critic's start, or as both."""
        as_reward = not self.rewards or any(term.stage for term in self.rewards.values())
        return as_reward or (self.advantage == "gae" and self.critic in ("auto", "reward"))
