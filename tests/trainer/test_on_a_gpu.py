"""A step on tensors without values that say they are on a GPU: nothing of the CPU's is mixed in,
and nothing waits for a value before the backward pass.

torch raises at both (FakeTensorMode). What its kernels do is for a GPU to show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rlhf_api.stages import DPOStage, PPOStage, RewardStage, SFTStage
from rlhf_trainer.data.answer_rows import AnswerRow
from rlhf_trainer.data.encode import Answer, Encoded
from rlhf_trainer.models.actor_critic import Actor, Critic, TokenScores
from rlhf_trainer.models.scalar_models import scalar_from_trunk
from rlhf_trainer.models.scored_lm import ScoredLM, token_batch
from rlhf_trainer.ppo.update import MicroBatch, _actor_loss, _value_loss
from rlhf_trainer.preference.kto import Judged, KtoTask
from rlhf_trainer.preference.reference import Reference
from rlhf_trainer.sequences import enable_packing
from rlhf_trainer.stages.dpo import Compared, PairTask
from rlhf_trainer.stages.reward import Query, RewardTask
from rlhf_trainer.stages.sft import SFTTask
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

CUDA = torch.device("cuda", 0)
PROMPT, LONG, SHORT = [1, 40, 50, 60], [*range(41, 121, 10), 2], [42, 2]
ROWS = tuple(AnswerRow(PROMPT, Answer(a, [True] * len(a))) for a in (LONG, SHORT))
DATA = {"data": {"source": "unused"}}
Step = Callable[[Mapping[str, nn.Module], Any], Tensor]


def models_for_all(path: Path) -> dict[str, nn.Module]:
    """What the stages train, made by trial on the CPU as ever."""
    from transformers import AutoModel, AutoModelForCausalLM

    lm, trunk = AutoModelForCausalLM.from_pretrained(path), AutoModel.from_pretrained(path)
    head = nn.Linear(trunk.config.hidden_size, 1, bias=False)
    assert enable_packing(trunk)
    score = scalar_from_trunk(trunk, seed=0)
    return {
        "lm": ScoredLM(lm),
        "actor": Actor(lm, 0.7, head),
        "reward": score,
        "critic": Critic(score),
    }


def to_cuda(module: nn.Module) -> None:
    """In a FakeTensorMode: bf16 weights, and buffers as they are, on a GPU that is not there."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.device != CUDA:
                made = torch.empty(weight.shape, dtype=torch.bfloat16, device=CUDA)
                part._parameters[name] = nn.Parameter(made)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.device != CUDA:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)


def sft(models: Mapping[str, nn.Module], session: Any) -> Tensor:
    task = SFTTask(session, SFTStage.model_validate(DATA), [], [], 1, True)
    rows = [Encoded("a:1", PROMPT + a, [False] * 4 + [True] * len(a)) for a in (LONG, SHORT)]
    return task.contribution(models["lm"], task.laid(rows, 11)).loss  # type: ignore[arg-type]


def dpo(models: Mapping[str, nn.Module], session: Any) -> Tensor:
    example = Compared("a:1", ROWS, (1, 2), (-3.0, -2.0))
    reference = Reference(None, nullcontext, CUDA)
    config = DPOStage.model_validate(DATA)
    task = PairTask(session, config, [example], [], 1, True, reference)
    return task.contribution(models["lm"], task.laid([example], 1)).loss  # type: ignore[arg-type]


def kto(models: Mapping[str, nn.Module], session: Any) -> Tensor:
    example = Judged("a:1", ROWS, True, (-3.0, -2.0))  # type: ignore[arg-type]
    reference = Reference(None, nullcontext, CUDA)
    config = DPOStage.model_validate(DATA | {"loss": "kto"})
    task = KtoTask(session, config, [example], [], 1, True, reference)
    (batch,) = task.micro_batches("train", [0], [example])
    return task.contribution(models["lm"], batch).loss  # type: ignore[arg-type]


def reward(models: Mapping[str, nn.Module], session: Any) -> Tensor:
    query = Query("a:1", ROWS, (1, 2), 0.0)
    config = RewardStage.model_validate(DATA | {"centerCoef": 0.1})
    task = RewardTask(session, config, [query], [], 1, True)
    return task.contribution(models["reward"], task.laid([query], 1)).loss  # type: ignore[arg-type]


def ppo(models: Mapping[str, nn.Module], session: Any) -> Tensor:
    tokens = token_batch([PROMPT, PROMPT], [LONG, SHORT], CUDA)
    figures = [torch.zeros(11, device=CUDA) for _ in range(6)]
    mask, divisors = torch.ones(11, dtype=torch.bool, device=CUDA), torch.ones(11, device=CUDA)
    batch = MicroBatch(tokens, mask, *figures, 11, [len(LONG), len(SHORT)], divisors)
    more = {"entropyCoef": 0.01, "dualClip": 3.0, "ratio": "sequence"}
    config = PPOStage.model_validate(DATA | more)
    scores = TokenScores(*models["actor"](tokens, True, True))
    actor, _ = _actor_loss(config, batch, scores, True, 0.02)
    return actor + _value_loss(config, batch, models["critic"](tokens))[0]


@pytest.mark.parametrize("step", [sft, dpo, kto, reward, ppo])
def test_a_step_stays_on_its_gpu_and_waits_for_no_value(
    step: Step, models: Mapping[str, Path]
) -> None:
    made = models_for_all(models["llama"])
    ranks = SimpleNamespace(device=CUDA, rank=0, world_size=1, sum=lambda x: x)
    session = SimpleNamespace(ranks=ranks, tokenizer=SimpleNamespace(eos_token_id=2))
    with FakeTensorMode():
        for module in made.values():
            to_cuda(module)
        loss = step(made, session)
    assert (loss.device, loss.shape, loss.dtype) == (CUDA, (), torch.float32)
    assert loss.requires_grad
