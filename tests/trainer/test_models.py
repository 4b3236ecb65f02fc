"""Loading and saving: four families, LoRA merged and alone, scalar heads, fresh weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, VOCABULARY, Pod, write_model
from rlhf_api.run import StageRun
from rlhf_api.stages.common import LoRA
from rlhf_trainer.errors import CheckpointUnusable, ConfigurationError
from rlhf_trainer.models import (
    PLAIN_TEMPLATE,
    add_lora,
    load_output,
    load_policy,
    load_scalar,
    load_statistics,
    load_tokenizer,
    merged_state_dict,
    new_scalar,
    save_model,
    save_scalar,
)

IDS = torch.tensor([[1, 40, 50, 60, 70], [1, 41, 51, 61, 71]])
SFT = {"data": {"source": "unused"}}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def adapted(model: Any, lora: LoRA) -> Any:
    """With adapters that do something: their B is 0 at first."""
    wrapped = add_lora(model, lora)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return wrapped


@pytest.mark.parametrize("family", TINY)
def test_a_saved_model_loads_with_transformers_alone(
    family: str, models: Mapping[str, Path], in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = in_pod.stage_run("sft", SFT, inputs={"policy": {"path": str(models[family])}})
    model = load_policy(run)
    save_model(model, tokenizer, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded), logits(model))
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.chat_template == tokenizer.chat_template
    assert again("你好")["input_ids"] == tokenizer("你好")["input_ids"]


@pytest.mark.parametrize("family", TINY)
def test_merged_lora_computes_what_the_adapter_does_and_leaves_the_model_alone(
    family: str, models: Mapping[str, Path], in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    run = in_pod.stage_run("sft", SFT, inputs={"policy": {"path": str(models[family])}})
    base = logits(load_policy(run))
    lora = LoRA(rank=4, alpha=8)
    model = adapted(load_policy(run), lora)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = logits(model)
    assert (expected - base).abs().max() > 1e-2
    save_model(model, tokenizer, tmp_path / "saved", lora)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), expected, atol=2e-5, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_adapter_alone_names_its_base_and_no_path_of_this_machine(
    in_pod: Pod, tokenizer: Any
) -> None:
    run = in_pod.stage_run("sft", SFT)
    lora = LoRA(rank=4, alpha=8, output="adapter")
    model = adapted(load_policy(run), lora)
    directory = Path("checkpoints/adapter")
    save_model(model, tokenizer, directory, lora, base="hf://some/model")
    written = "".join(f.read_text("utf-8") for f in directory.glob("*.json"))
    assert str(in_pod.model) not in written
    assert json.loads((directory / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == ("hf://some/model")
    torch.testing.assert_close(
        logits(load_output(run, directory)), logits(model), atol=2e-5, rtol=1e-4
    )
    inputs = {"base": {"path": str(in_pod.model)}, "policy": {"path": str(directory)}}
    next_run = in_pod.stage_run("dpo", SFT, inputs=inputs)
    torch.testing.assert_close(logits(load_policy(next_run)), logits(model), atol=2e-5, rtol=1e-4)


def test_saving_twice_gives_the_same_bytes(in_pod: Pod, tokenizer: Any, tmp_path: Path) -> None:
    run = in_pod.stage_run("sft", SFT)
    for name in ("a", "b"):
        save_model(load_policy(run), tokenizer, tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "model.safetensors" in files
    assert [(tmp_path / "a" / f).read_bytes() for f in files] == [
        (tmp_path / "b" / f).read_bytes() for f in files
    ]


def test_lora_on_layers_that_are_not_there_is_a_configuration_error(in_pod: Pod) -> None:
    model = load_policy(in_pod.stage_run("sft", SFT))
    with pytest.raises(ConfigurationError, match=r"lora\.targetModules"):
        add_lora(model, LoRA(target_modules=["no_such_layer"]))


def test_every_dropout_is_off(in_pod: Pod, tmp_path: Path) -> None:
    path = write_model(tmp_path / "gpt2", "gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    run = in_pod.stage_run("sft", SFT, inputs={"policy": {"path": str(path)}})
    model = load_policy(run).train()
    first, second = (model(input_ids=IDS).logits for _ in range(2))
    assert torch.equal(first, second)


def test_fresh_weights_come_from_the_seed_and_leave_the_random_state_alone(in_pod: Pod) -> None:
    inputs = {"policy": {"path": str(in_pod.model), "init": "random"}}
    runs = [in_pod.stage_run("sft", SFT, inputs=inputs, seed=seed) for seed in (1, 1, 2)]
    before = torch.get_rng_state()
    one, same, other = (logits(load_policy(run)) for run in runs)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("family", TINY)
def test_a_reward_model_loads_as_a_sequence_classifier(
    family: str, models: Mapping[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    model = new_scalar(models[family], seed=3).eval()
    save_scalar(model, tokenizer, tmp_path, {"mean": 0.5, "std": 2.0, "count": 10})
    with torch.no_grad():
        scores_BT = model(IDS)
        again_BT = load_scalar(tmp_path).eval()(IDS)
        theirs_B = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()(IDS).logits
    assert scores_BT.shape == IDS.shape
    torch.testing.assert_close(again_BT, scores_BT, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(theirs_B.squeeze(-1), scores_BT[:, -1])
    assert load_statistics(tmp_path) == {"mean": 0.5, "std": 2.0, "count": 10}
    assert load_statistics(models[family]) is None


def test_a_fresh_head_is_drawn_with_variance_one_over_width_plus_one_or_zero(
    tmp_path: Path,
) -> None:
    path = write_model(tmp_path, "llama", hidden_size=1024, num_attention_heads=16)
    drawn = new_scalar(path, seed=3).score.weight
    assert float(drawn.std()) == pytest.approx(1 / math.sqrt(1025), rel=0.1)
    assert not new_scalar(path, seed=3, head="zero").score.weight.any()


def test_a_reward_model_with_adapters_is_saved_merged(
    models: Mapping[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    model = new_scalar(models["llama"], seed=3)
    model.trunk = adapted(model.trunk, LoRA(rank=2))
    save_scalar(model, tokenizer, tmp_path)
    with torch.no_grad():
        expected, found = model.eval()(IDS), load_scalar(tmp_path).eval()(IDS)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_tied_embeddings_stay_tied(in_pod: Pod, tokenizer: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "tied", "llama", tie_word_embeddings=True)
    run = in_pod.stage_run("sft", SFT, inputs={"policy": {"path": str(path)}})
    model = adapted(load_policy(run), LoRA(rank=2))
    save_model(model, tokenizer, tmp_path / "saved", LoRA(rank=2))
    loaded = load_output(run, tmp_path / "saved")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-5, rtol=1e-4)


def test_merged_state_has_the_names_of_the_plain_model(in_pod: Pod) -> None:
    run = in_pod.stage_run("sft", SFT)
    plain = load_policy(run).state_dict()
    assert merged_state_dict(adapted(load_policy(run), LoRA(rank=2))).keys() == plain.keys()


def without(run: StageRun, **changes: Any) -> StageRun:
    return run.model_copy(update=changes)


def test_what_is_missing_is_said_without_a_traceback(in_pod: Pod, tmp_path: Path) -> None:
    run = in_pod.stage_run("sft", SFT)
    with pytest.raises(ConfigurationError, match="names no policy model"):
        load_policy(without(run, inputs={}))
    gone = in_pod.stage_run("sft", SFT, inputs={"policy": {"path": "inputs/gone"}})
    with pytest.raises(ConfigurationError, match="inputs/gone is no directory"):
        load_policy(gone)
    (tmp_path / "empty").mkdir()
    empty = in_pod.stage_run("sft", SFT, inputs={"policy": {"path": str(tmp_path / "empty")}})
    with pytest.raises(ConfigurationError, match="no model configuration"):
        load_policy(empty)
    with pytest.raises(ConfigurationError, match="no tokenizer"):
        load_tokenizer(without(empty, inputs={"base": empty.inputs["policy"]}))


def test_an_input_that_is_not_what_its_stage_committed_is_unusable(in_pod: Pod) -> None:
    inputs = {"policy": {"path": str(in_pod.model), "digest": "sha256:00"}}
    with pytest.raises(CheckpointUnusable, match="manifest"):
        load_policy(in_pod.stage_run("reward", SFT, inputs=inputs))


def test_a_tokenizer_gets_a_template_and_a_pad_token_where_it_has_none(
    in_pod: Pod, tmp_path: Path, models: Mapping[str, Path]
) -> None:
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(models["llama"])
    bare.chat_template, bare.pad_token = None, None
    bare.save_pretrained(tmp_path / "bare")
    run = in_pod.stage_run("sft", SFT, inputs={"base": {"path": str(tmp_path / "bare")}})
    found = load_tokenizer(run)
    assert found.chat_template == PLAIN_TEMPLATE
    assert found.pad_token_id == found.eos_token_id == 2
    text = found.apply_chat_template(
        [{"role": "user", "content": "你好"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "user: 你好\nassistant: "
    own = in_pod.stage_run("sft", SFT, model={"source": "model", "chatTemplate": "own"})
    assert load_tokenizer(own).chat_template == "own"
    assert len(found) <= VOCABULARY
