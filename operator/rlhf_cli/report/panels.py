"""Which curves each stage's part of the report has."""

from __future__ import annotations

from typing import Final, NamedTuple


class Line(NamedTuple):
    """One curve of a panel."""

    metric: str
    label: str


class Panel(NamedTuple):
    """One small plot."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    is_noisy: bool = True  # a smoothed line is drawn over the raw one


LOSS: Final = Panel("Loss", "nats", (Line("train/loss", "training"), Line("eval/loss", "held-out")))
ACCURACY: Final = Panel(
    "Accuracy",
    "share of pairs",
    (Line("train/accuracy", "training"), Line("eval/accuracy", "held-out")),
)
LEARNING_RATE: Final = Panel(
    "Learning rate", "per step", (Line("train/lr", "learning rate"),), False
)
MEMORY: Final = Panel(
    "Peak memory",
    "GB a process",
    (Line("memory/train", "training"), Line("memory/evaluate", "evaluation")),
)
GRADIENT: Final = Panel("Gradient norm", "before clipping", (Line("train/grad_norm", "norm"),))
SPEED: Final = Panel("Throughput", "tokens/s", (Line("train/tokens_per_second", "tokens"),))

TOKEN_LOSS: Final = LOSS._replace(unit="nats per token")
TOKEN_ACCURACY: Final = ACCURACY._replace(unit="share of tokens")

PANELS: Final[dict[str, tuple[Panel, ...]]] = {
    "sft": (TOKEN_LOSS, TOKEN_ACCURACY, LEARNING_RATE, GRADIENT, SPEED, MEMORY),
    "reward": (
        LOSS,
        ACCURACY,
        Panel("Margin", "chosen − rejected", (Line("reward/margin", "margin"),)),
        LEARNING_RATE,
        GRADIENT,
        SPEED,
        MEMORY,
    ),
    "ppo": (
        Panel(
            "Reward",
            "mean score",
            (Line("ppo/reward", "raw score"), Line("eval/reward", "held-out")),
        ),
        Panel("KL to the reference", "nats per response", (Line("ppo/kl", "KL"),)),
        Panel("Entropy", "nats per token", (Line("ppo/entropy", "entropy"),)),
        Panel("Response length", "tokens", (Line("ppo/response_length", "length"),)),
        Panel("Finished responses", "share", (Line("ppo/eos_fraction", "ended by themselves"),)),
        Panel(
            "Prompts that tell nothing",
            "share",
            (
                Line("ppo/equal_scores_fraction", "all responses score the same"),
                Line("ppo/dropped_groups_fraction", "dropped by dynamic sampling"),
            ),
        ),
        Panel("Policy loss", "", (Line("ppo/policy_loss", "policy"),)),
        Panel("Value loss", "", (Line("ppo/value_loss", "value"),)),
        Panel("Explained variance", "of returns", (Line("ppo/explained_variance", "critic"),)),
        Panel("Clipped tokens", "share", (Line("ppo/clip_fraction", "clipped"),)),
        Panel("Pretraining loss", "nats per token", (Line("ppo/pretraining_loss", "loss"),)),
        Panel(
            "Gradient norm",
            "before clipping",
            (Line("ppo/actor_grad_norm", "actor"), Line("ppo/critic_grad_norm", "critic")),
        ),
        Panel("KL coefficient", "β", (Line("ppo/kl_coef", "β"),), False),
        Panel(
            "Learning rate",
            "per step",
            (Line("ppo/actor_lr", "actor"), Line("ppo/critic_lr", "critic")),
            False,
        ),
        Panel(
            "Time per rollout",
            "s",
            (
                Line("time/generate", "generate"),
                Line("time/score", "score"),
                Line("time/update", "update"),
            ),
        ),
        Panel(
            "Peak memory",
            "GB a process",
            (
                Line("memory/generate", "generate"),
                Line("memory/score", "score"),
                Line("memory/update", "update"),
            ),
        ),
    ),
    "dpo": (
        LOSS,
        ACCURACY._replace(unit="share of pairs; KTO: of answers"),
        Panel(
            "Implicit reward",
            "nats × β",
            (Line("dpo/chosen_reward", "chosen"), Line("dpo/rejected_reward", "rejected")),
        ),
        Panel("Margin", "chosen − rejected", (Line("dpo/margin", "margin"),)),
        LEARNING_RATE,
        GRADIENT,
        MEMORY,
    ),
}
STEP_NAMES: Final = {"ppo": "rollout"}
"""What a step of a stage is called, where it is not an optimizer step."""
