"""Engines with a copy of the actor's weights: what they get, and what is made of what they say.

vLLM itself is tested in with_vllm.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters import adapted
from rlhf_api.stages.common import LoRA
from rlhf_api.stages.ppo import PPOStage, Rollout
from rlhf_trainer import installed
from rlhf_trainer.errors import ConfigurationError
from rlhf_trainer.models.language_models import load_directory, save_model
from rlhf_trainer.ppo import experience
from rlhf_trainer.ppo.experience import TokenFigures
from rlhf_trainer.rollout.engines import rollout_generator
from rlhf_trainer.rollout.vllm import Colocated, logprobs_mode, row_seeds
from rlhf_trainer.rollout.weights import checkpoint_weights
from trainer_pod import MIXTURE, Pod, write_model


def stage(**rollout: Any) -> PPOStage:
    return PPOStage.model_validate({"data": {"source": "x"}, "rollout": rollout})


def rollout(**settings: Any) -> Rollout:
    return stage(**settings).rollout


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_weights_are_named_and_merged_as_in_a_checkpoint(
    family: str, lora: LoRA | None, models: Mapping[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    model: Any = load_directory(models[family])
    model = model if lora is None else adapted(model, lora)
    given = dict(checkpoint_weights(model))
    save_model(model, tokenizer, tmp_path / "saved", lora)
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert given.keys() - {"lm_head.weight"} == written.keys() - {"lm_head.weight"}
    for name, weight in written.items():
        assert torch.equal(given[name], weight), name


def test_weights_of_a_mixtures_experts_are_those_of_its_file(
    tokenizer: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    lora = LoRA(rank=2)
    path = write_model(tmp_path / "mixture", "mixtral", **MIXTURE)
    model = adapted(load_directory(path), lora)
    save_model(model, tokenizer, tmp_path / "saved", lora)
    written = load_file(tmp_path / "saved" / "model.safetensors")
    given = dict(checkpoint_weights(model))
    assert given.keys() == written.keys()
    assert all(torch.equal(given[name], weight) for name, weight in written.items())


def test_a_row_has_a_seed_of_its_own_in_every_rollout() -> None:
    seeds = row_seeds(7, 0, 64) + row_seeds(7, 1, 64) + row_seeds(8, 0, 64)
    seeds += row_seeds(7, 0, 64, draw=1) + row_seeds(7, 0, 64, draw=2)
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert row_seeds(7, 0, 4) == seeds[:4]


def test_a_round_of_sampling_has_random_numbers_of_its_own() -> None:
    places = [(7, 0, 0), (7, 0, 1), (7, 0, 2), (7, 1, 0), (8, 0, 0)]
    drawn = [float(torch.rand(1, generator=rollout_generator(*place))) for place in places]
    assert len(set(drawn)) == len(drawn)
    assert float(torch.rand(1, generator=rollout_generator(7, 0))) == drawn[0]


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, "raw_logprobs"),
        ({"topP": 0.9, "minNewTokens": 5}, "raw_logprobs"),
        ({"temperature": 0.7}, "processed_logprobs"),
        ({"temperature": 0.7, "topK": 5}, None),
        ({"temperature": 0.7, "topP": 0.9}, None),
        ({"temperature": 0.7, "minNewTokens": 2}, None),
    ],
)
def test_logprobs_are_asked_for_where_they_are_of_the_whole_vocabulary(
    settings: dict[str, Any], mode: str | None
) -> None:
    assert logprobs_mode(rollout(**settings)) == mode


def sampled(logprobs: list[list[float]] | None) -> experience.Rollout:
    return experience.Rollout(["a", "b"], [[1], [1]], [[5, 6, 2], [7]], [True, False], logprobs)


TRAINER = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, 0.0, 0.0]])
FIGURES = TokenFigures(TRAINER, TRAINER, TRAINER, TRAINER)


def test_tokens_weigh_as_much_more_as_the_trainer_finds_them_likelier_up_to_the_cap() -> None:
    said = sampled([[-1.0, -2.5, -2.5], [-2.0]])
    weights, figures = experience.importance(stage(), said, FIGURES, said.mask)
    expected = torch.tensor([[0.0, 0.5, 2.0], [-1.0, 0, 0]]).exp().clamp_max(2.0)
    assert torch.allclose(weights[said.mask], expected[said.mask])
    assert figures["ppo/mismatch_abs"] == pytest.approx((0 + 0.5 + 2.0 + 1.0) / 4)
    assert figures["ppo/importance_capped_fraction"] == pytest.approx(1 / 4)
    assert figures["ppo/importance_weight"] == pytest.approx(float(expected[said.mask].mean()))
    assert figures["ppo/mismatch_kl"] > 0


def test_without_a_cap_the_mismatch_is_told_and_nothing_is_corrected() -> None:
    said = sampled([[-1.0, -2.5, -2.5], [-2.0]])
    config = stage(importanceCap=None)
    weights, figures = experience.importance(config, said, FIGURES, said.mask)
    assert torch.equal(weights, torch.ones_like(TRAINER))
    assert figures["ppo/mismatch_abs"] > 0


def test_what_the_actor_sampled_has_no_mismatch() -> None:
    said = sampled(None)
    weights, figures = experience.importance(stage(), said, FIGURES, said.mask)
    assert torch.equal(weights, torch.ones_like(TRAINER))
    assert figures == {}


def test_a_missing_vllm_is_said_with_what_to_do_before_a_model_is_loaded(
    in_pod: Pod, open_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_trainer.ppo.team import assemble_team

    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    source = in_pod.data("prompts", [{"prompt": "a"}])
    run = in_pod.stage_run("ppo", {"data": {"source": source}, "rollout": {"engine": "vllm"}})
    session = open_session(run.model_copy(update={"inputs": {}}))
    with pytest.raises(ConfigurationError, match=r"rollout\.engine: vLLM is not installed") as told:
        assemble_team(session, session.config, 1)
    assert 'EXTRAS="trainer trackers vllm"' in str(told.value)
    assert "set it to native" in str(told.value)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, True),
        ({"image": "with-vllm:1"}, False),
        ({"rollout": {"engine": "native"}}, False),
        ({"image": "own:1", "command": ["train"]}, False),
    ],
)
def test_a_missing_vllm_is_found_before_any_stage_gets_gpus(
    changes: dict[str, Any], refused: bool, in_pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    source = in_pod.data("prompts", [{"prompt": "a"}])
    ppo = {"data": {"source": source}, "rollout": {"engine": "vllm"}} | changes
    run = in_pod.stage_run("ppo", ppo)
    with pytest.raises(ConfigurationError) if refused else nullcontext():
        installed.refuse_missing_for_stages(run)


@pytest.fixture
def start(in_pod: Pod, ranks: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts the engine with a stand-in for vLLM's class."""
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "RANK", "LOCAL_RANK", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "0")
    source = in_pod.data("prompts", [{"prompt": "a"}])

    def with_llm(llm: Any, **options: Any) -> Colocated:
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm))
        run = in_pod.stage_run("ppo", {"data": {"source": source}, "rollout": {"engine": "vllm"}})
        assert isinstance(run.config, PPOStage)
        return Colocated(run, run.config, ranks, **options)

    return with_llm


def test_a_model_that_vllm_does_not_start_with_is_a_configuration_error(start: Any) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("Head size 7 is not supported\nat length")

    with pytest.raises(ConfigurationError, match="Head size 7 is not supported; change"):
        start(refuse)


@pytest.mark.parametrize(("unties", "told"), [(False, {}), (True, {"tie_word_embeddings": False})])
def test_a_head_that_an_adapter_parts_from_the_embeddings_is_read(
    unties: bool, told: dict[str, bool], start: Any
) -> None:
    """vLLM passes over the head's weights where the configuration calls it tied."""
    asked: dict[str, Any] = {}
    start(asked.update, unties=unties)
    assert asked["hf_overrides"] == told


def test_weights_that_the_actor_does_not_have_are_named(start: Any) -> None:
    names = [[f"layer.{i}.weight" for i in range(5)]]
    llm = SimpleNamespace(collective_rpc=lambda *_, **__: names)
    engine = start(lambda **_: llm)
    with pytest.raises(ConfigurationError, match=r"layer\.0\.weight.*5 in all"), engine.awake([]):
        pass


def test_what_is_made_once_outlives_a_rollback_and_ends_with_the_session(
    in_pod: Pod, open_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    session = open_session(in_pod.stage_run("ppo", {"data": {"source": "x"}}))
    made = session.once("engine", lambda: SimpleNamespace(close=lambda: ended.append("it")))
    assert session.once("engine", lambda: SimpleNamespace(close=lambda: None)) is made
    monkeypatch.setattr(type(session.ranks), "stop", lambda *_: ended.append("ranks"))
    session.close()
    assert ended == ["it", "ranks"]
