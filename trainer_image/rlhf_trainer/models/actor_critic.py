"""Actor, critic and frozen models, as the modules that an engine runs on packed rows.

All of them read `TokenBatch`: rows end to end, and the positions whose outputs are wanted. The head
is applied there alone, so that prompts cost no logits.

Shapes: N wanted positions (response tokens of all rows, row by row), V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from rlhf_api.stages.common import StageCommon
from torch import Tensor, nn

from rlhf_trainer.engine import Engine, zero_stage
from rlhf_trainer.logprobs import packed_logprobs, packed_logprobs_and_entropy
from rlhf_trainer.models.lora import plain_model
from rlhf_trainer.models.scalar_models import ScalarHeadModel, ScoreHead
from rlhf_trainer.models.scored_lm import ScoredLM, TokenBatch, token_batch
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.sequences import enable_packing, pack_answers_to, packed_hidden


class TokenScores(NamedTuple):
    """What an actor says of response tokens, (N,) each."""

    logprobs: Tensor
    entropy: Tensor | None
    values: Tensor | None  # where the critic shares the trunk


class Actor(ScoredLM):
    """A policy, with a value head on its trunk where the critic is shared."""

    def __init__(
        self, lm: nn.Module, temperature: float, value_head: nn.Linear | None = None
    ) -> None:
        super().__init__(lm)
        self.value_head, self.temperature = value_head, temperature

    def forward(  # type: ignore[override]
        self,
        batch: TokenBatch,
        with_entropy: bool = False,
        value_trains_trunk: bool = True,
        temperature: float | None = None,
    ) -> TokenScores:
        """Log-probs, under the sampling temperature by default, and what else is asked for."""
        temperature = self.temperature if temperature is None else temperature
        hidden_NH, logits_NV = self.read(batch)

        def figures(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, ...]:
            if with_entropy:
                return packed_logprobs_and_entropy(logits_CV, targets_C, temperature)
            return (packed_logprobs(logits_CV, targets_C, temperature),)

        scores = self.score(hidden_NH, logits_NV, batch.targets, figures)
        values = None
        if self.value_head is not None:
            hidden_NH = hidden_NH if value_trains_trunk else hidden_NH.detach()
            values = self.value_head(hidden_NH).squeeze(-1).float()
        return TokenScores(scores[0], scores[1] if with_entropy else None, values)


class Critic(nn.Module):
    """A trunk with a scalar head; the value of the state in which each token was sampled.

    `offset` is added to each score: it is no weight, and does not train.
    """

    def __init__(self, model: ScalarHeadModel, offset: float = 0.0) -> None:
        super().__init__()
        self.model, self.offset = model, offset
        self.is_packable = enable_packing(plain_model(model.trunk))

    def forward(self, batch: TokenBatch) -> Tensor:
        """Scores at the batch's positions: (N,) fp32."""
        trunk = plain_model(self.model.trunk)
        hidden_NH = packed_hidden(trunk, batch.packed, batch.positions, self.is_packable)
        scores_N: Tensor = self.model.score(hidden_NH).squeeze(-1).float()
        return scores_N + self.offset

    def gradient_checkpointing_enable(self, options: dict[str, Any] | None = None) -> None:
        """Recompute the trunk's activations in the backward pass."""
        plain_model(self.model.trunk).gradient_checkpointing_enable(options)


def last_token_batch(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    device: torch.device | str,
) -> TokenBatch:
    """Prompts with their answers, of which the last token alone is scored, as a reward model does:
    N is the rows. No answer is empty."""
    if not prompts:
        return token_batch([], [], device)
    packed, last = pack_answers_to(prompts, answers, device)
    ends = [at + len(answer) for at, answer in zip(last, answers, strict=True)]
    targets = [answer[-1] for answer in answers]
    return TokenBatch(packed, *torch.tensor([ends, targets], device=device))


def value_head(lm: nn.Module) -> nn.Linear:
    """A fresh head for a shared critic, at 0: advantages then start as the returns themselves."""
    plain = plain_model(lm)
    weight = plain.get_output_embeddings().weight
    width = int(getattr(weight, "ds_shape", weight.shape)[1])
    head = ScoreHead(width, 1, bias=False, dtype=weight.dtype)
    nn.init.zeros_(head.weight)
    return head


Forward = Callable[..., Any]


def frozen(module: nn.Module, settings: StageCommon, ranks: Ranks) -> Forward:
    """A model that only runs forward, on this rank's device; with ZeRO-3 its weights are
    partitioned, and every rank must call it equally often.
    """
    module.requires_grad_(False).eval()
    if zero_stage(settings, ranks) < 3:
        return module.to(ranks.device)
    import deepspeed

    elements = sum(p.numel() for p in module.parameters())
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "reduce_bucket_size": max(elements, 1)},
        "bf16": {"enabled": next(module.parameters()).dtype == torch.bfloat16},
        "steps_per_print": None,
    }
    ranks.barrier()  # as for those that train: slow disks let ranks come minutes apart
    engine, *_ = deepspeed.initialize(model=module, config=config)
    engine.eval()
    forward: Forward = engine
    return forward


def local_weights(module: nn.Module) -> dict[str, Tensor]:
    """What this rank holds of each trainable parameter: all of it, or under ZeRO-3 its share."""
    return {
        name: getattr(p, "ds_tensor", p).data
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def copy_weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of this rank's trainable weights, on the CPU."""
    return {name: w.detach().to("cpu", copy=True) for name, w in local_weights(module).items()}


@contextmanager
def weights_replaced(engine: Engine, weights: dict[str, Tensor] | None) -> Iterator[None]:
    """Within it the module has other weights (an average, an earlier state); then its own again."""
    if weights is None:
        yield
        return
    own = copy_weights(engine.module)
    _set_weights(engine.module, weights)
    try:
        yield
    finally:
        _set_weights(engine.module, own)


def _set_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, weight in local_weights(module).items():
        weight.copy_(weights[name])
    # Under ZeRO-3 small parameters are whole between two steps: they are to be gathered anew.
    gathered = [p for p in module.parameters() if _is_gathered(p)]
    if gathered:
        cast(Any, gathered[0]).partition(gathered)


def _is_gathered(parameter: nn.Parameter) -> bool:
    status = getattr(parameter, "ds_status", None)
    return status is not None and status.name == "AVAILABLE"


class Average:
    """Exponential moving average of this rank's trainable weights, in fp32 on their device."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {n: w.detach().float().clone() for n, w in local_weights(module).items()}

    def update(self, module: nn.Module) -> None:
        """θ̄ ← decay·θ̄ + (1 − decay)·θ, after each optimizer step."""
        for name, weight in local_weights(module).items():
            self.weights[name].lerp_(weight.detach().float(), 1 - self.decay)
