"""The head on some positions at a time: the same figures and gradients, in less memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import adapted
from forked import ForkedRun
from preference_stages import losses
from rlhf_api.stages.common import LoRA
from rlhf_trainer.logprobs import packed_logprobs
from rlhf_trainer.models import scored_lm
from rlhf_trainer.models.actor_critic import Actor
from rlhf_trainer.models.scored_lm import ScoredLM, TokenBatch, token_batch
from rlhf_trainer.stages import sft
from trainer_pod import TINY, VOCABULARY, Pod, free_port, gradients, sft_rows

PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63]]
RESPONSES = [[42, 43, 44, 45, 2], [51, 2], [64, 65, 66, 2]]


def language_model(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path)


def batch() -> TokenBatch:
    return token_batch(PROMPTS, RESPONSES, "cpu")


def few_at_once(monkeypatch: pytest.MonkeyPatch, positions: int = 2) -> None:
    monkeypatch.setattr(scored_lm, "LOGITS_AT_ONCE", positions * VOCABULARY)


@pytest.mark.parametrize("family", TINY)
def test_log_probs_are_those_of_the_model_row_by_row(
    family: str, models: Mapping[str, Path]
) -> None:
    plain = language_model(models[family])
    expected = []
    with torch.no_grad():
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
            row = torch.tensor([prompt + response])
            logits = plain(row).logits[0, len(prompt) - 1 : -1]
            expected.append(packed_logprobs(logits, torch.tensor(response)))
        scored = ScoredLM(plain)
        assert scored.splits
        torch.testing.assert_close(scored(batch())[0], torch.cat(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", TINY)
def test_a_few_positions_at_a_time_give_the_same_loss_and_gradients(
    family: str,
    lora: LoRA | None,
    models: Mapping[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = language_model(models[family]).double()
    actor = Actor(lm if lora is None else adapted(lm, lora), temperature=0.7)
    found = []
    for chunked in (False, True):
        if chunked:
            few_at_once(monkeypatch)
        logprobs, entropy, _ = actor(batch(), with_entropy=True)
        (-logprobs.sum() + 0.1 * entropy.sum()).backward()
        found.append((logprobs, entropy, gradients(actor)))
    for whole, parted in zip(*found, strict=True):
        torch.testing.assert_close(parted, whole, atol=1e-12, rtol=1e-10)


def test_no_more_logits_live_at_once_than_allowed(
    models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    few_at_once(monkeypatch)
    seen: list[int] = []

    def figures(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(len(logits_CV))
        return (packed_logprobs(logits_CV, targets_C),)

    (logprobs,) = ScoredLM(language_model(models["llama"]))(batch(), figures)
    assert sum(seen) == len(batch().targets) == 11
    logprobs.sum().backward()
    assert sum(seen) == 22  # once more in the backward pass
    assert max(seen) == 2


def test_a_model_that_does_more_to_its_logits_is_left_to_do_it(
    models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = language_model(models["llama"])
    head = lm.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = head(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    with torch.no_grad():
        plain = ScoredLM(lm)
        expected = plain(batch(), lambda logits, targets: (packed_logprobs(2 * logits, targets),))
        monkeypatch.setattr(lm, "forward", scaled)
        other = ScoredLM(lm, packs=False)
        assert not other.splits
        torch.testing.assert_close(other(batch()), expected, atol=1e-5, rtol=1e-5)


def test_a_trunk_that_is_not_where_its_class_says_is_found() -> None:
    """The text model of Llama 4."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama4_text", **TINY["llama"], vocab_size=VOCABULARY, head_dim=8, num_local_experts=2,
        intermediate_size_mlp=48, attention_chunk_size=4, pad_token_id=0,
    )  # fmt: skip
    plain = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        expected = [
            packed_logprobs(
                plain(torch.tensor([p + r])).logits[0, len(p) - 1 : -1], torch.tensor(r)
            )
            for p, r in zip(PROMPTS, RESPONSES, strict=True)
        ]
        found = ScoredLM(plain)(batch())[0]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_a_rank_without_rows_gives_a_loss_of_0_that_hangs_on_the_graph(
    models: Mapping[str, Path],
) -> None:
    scored = ScoredLM(language_model(models["llama"]))
    (logprobs,) = scored(token_batch([], [], "cpu"))
    logprobs.sum().backward()
    assert logprobs.shape == (0,)
    assert all(not bool(gradient.any()) for gradient in gradients(scored).values())


def few_positions_at_once() -> int:
    """A rank's whole run, its head on 16 positions at a time."""
    from rlhf_trainer.__main__ import main

    scored_lm.LOGITS_AT_ONCE = 16 * VOCABULARY  # type: ignore[misc]
    return main(["run", "config/stage.yaml"])


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_ranks_with_different_numbers_of_positions_run_the_head_equally_often(
    zero: int, in_pod: Pod, open_session: Any
) -> None:
    """Under ZeRO-3 they would hang: each call of the head gathers its weight."""
    chosen = {
        "data": {"source": in_pod.data("sft", sft_rows()), "evalFraction": 0.2},
        "globalBatchSize": 6,
        "microBatchSize": 2,
        "maxLength": 96,
        "learningRate": 1e-2,
        "maxSteps": 4,
    }
    whole = in_pod.stage_run("sft", chosen, digest="222222222222")
    sft.train(open_session(whole))
    run = in_pod.stage_run("sft", chosen | {"zero": {"stage": zero}})
    in_pod.write(run)
    started = ForkedRun(in_pod.directory, 2, free_port(), few_positions_at_once)
    assert started.wait() == [0, 0], started.log
    assert losses(in_pod, run) == pytest.approx(losses(in_pod, whole), abs=2e-4)
