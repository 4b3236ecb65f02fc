"""Low-rank adapters: merged, alone beside a name, or beside what they were trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import adapted
from rlhf_api.stages.common import LoRA
from rlhf_trainer.errors import ConfigurationError
from rlhf_trainer.models.language_models import load_directory, load_output, load_policy, save_model
from rlhf_trainer.models.lora import HubModel, add_lora
from rlhf_trainer.models.whole_weights import merged_state_dict
from trainer_pod import IDS, MIXTURE, TINY, Pod, logits, write_model

SFT = {"data": {"source": "unused"}}


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


def test_lora_on_layers_that_are_not_there_is_told_which_there_are(in_pod: Pod) -> None:
    model = load_policy(in_pod.stage_run("sft", SFT))
    said = r"lora\.targetModules: .*no_such_layer.*: down_proj, gate_proj, k_proj, lm_head, o_proj"
    with pytest.raises(ConfigurationError, match=said):
        add_lora(model, LoRA(target_modules=["no_such_layer"]))


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
UNUSUAL: dict[str, tuple[dict[str, Any], set[str]]] = {
    "llama4_text": (
        {**MIXTURE, "head_dim": 8, "intermediate_size_mlp": 48},
        ATTENTION | {"gate_proj", "up_proj", "down_proj"},  # of the shared expert
    ),
    "phimoe": (MIXTURE, ATTENTION),
    "mixtral": (MIXTURE, ATTENTION | {"experts", "base_layer"}),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, {"in_proj"}),
    "bamba": (
        {**TINY["mistral"], "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16},
        ATTENTION | {"gate_proj", "up_proj", "down_proj", "in_proj"},
    ),
}


@pytest.mark.parametrize("family", UNUSUAL)
def test_by_default_routers_and_what_mambas_kernels_read_past_adapters_have_none(
    family: str, in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    settings, expected = UNUSUAL[family]
    path = write_model(tmp_path / family, family, **settings)
    run = starts_from(in_pod, path, path)
    lora = LoRA(rank=2, output="adapter")
    model = adapted(load_policy(run), lora)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == expected
    model.train()(input_ids=IDS).logits.square().mean().backward()
    assert all(model.get_parameter(name).grad.abs().any() for name in names if "lora_B" in name)
    save_model(model, tokenizer, tmp_path / "saved", lora)
    loaded = load_output(run, tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-5, rtol=1e-4)


def test_a_router_that_is_named_has_an_adapter(in_pod: Pod, tmp_path: Path) -> None:
    path = write_model(tmp_path / "jetmoe", "jetmoe", hidden_size=32, num_hidden_layers=1)
    model = load_policy(starts_from(in_pod, path, path))
    asked = add_lora(model, LoRA(rank=2, target_modules=["router.layer"]))
    assert all(".router.layer." in n for n, p in asked.named_parameters() if p.requires_grad)


def test_tied_embeddings_stay_tied(in_pod: Pod, tokenizer: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "tied", "llama", tie_word_embeddings=True)
    run = in_pod.stage_run("sft", SFT, inputs={"policy": {"path": str(path)}})
    model = adapted(load_policy(run), LoRA(rank=2))
    save_model(model, tokenizer, tmp_path / "saved", LoRA(rank=2))
    loaded = load_output(run, tmp_path / "saved")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_tied_embeddings_that_an_adapter_parts_are_told_to_be_two(
    layer: str, in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    """Where the configuration calls them one, vLLM and others read one of them for both."""
    path = write_model(tmp_path / "tied", "llama", tie_word_embeddings=True)
    run = in_pod.stage_run("sft", SFT, inputs={"policy": {"path": str(path)}})
    lora = LoRA(rank=2, target_modules=[layer])
    model = adapted(load_policy(run), lora)
    save_model(model, tokenizer, tmp_path / "saved", lora)
    assert model.config.tie_word_embeddings
    loaded = load_output(run, tmp_path / "saved")
    assert not loaded.config.tie_word_embeddings
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-5, rtol=1e-4)
    assert (logits(loaded) - logits(load_policy(run))).abs().max() > 1e-2


SAVED = LoRA(rank=2, modules_to_save=["embed_tokens", "lm_head", "norm"])


def with_copies(model: Any, lora: LoRA = SAVED) -> Any:
    """Adapters and copies that are other than what they were."""
    wrapped = adapted(model, lora)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".modules_to_save." in name:
                assert parameter.requires_grad
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return wrapped


@pytest.mark.parametrize("output", ["merged", "adapter"])
@pytest.mark.parametrize("ties", [True, False], ids=["tied", "two"])
def test_layers_that_train_in_full_beside_adapters_are_handed_on(
    ties: bool, output: Any, in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "start", "llama", tie_word_embeddings=ties)
    run = starts_from(in_pod, path, path)
    base = logits(load_policy(run))
    lora = SAVED.model_copy(update={"output": output})
    model = with_copies(load_policy(run), lora)
    expected = logits(model)
    assert (expected - base).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model), base)  # the reference of PPO and DPO
    assert torch.equal(logits(model), expected)
    save_model(model, tokenizer, tmp_path / "saved", lora)
    loaded = load_output(run, tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), expected, atol=2e-5, rtol=1e-4)
    save_model(loaded, tokenizer, tmp_path / "again")  # as a stage that starts from it
    again = load_directory(tmp_path / "again")
    torch.testing.assert_close(logits(again), expected, atol=2e-5, rtol=1e-4)
    assert not again.config.tie_word_embeddings


def test_an_adapter_beside_the_hubs_name_of_its_base_brings_layers_that_train_in_full(
    in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    run = starts_from(in_pod, in_pod.model, in_pod.model)
    lora = SAVED.model_copy(update={"output": "adapter"})
    model = with_copies(load_policy(run), lora)
    save_model(model, tokenizer, tmp_path / "saved", lora, HubModel("owner/name", None))
    loaded = load_output(run, tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-5, rtol=1e-4)


def test_a_layer_to_train_in_full_that_is_not_there_is_told_with_those_that_are(
    in_pod: Pod,
) -> None:
    model = load_policy(in_pod.stage_run("sft", SFT))
    said = r"lora\.modulesToSave: there is no wte\. Modules of this model: .*embed_tokens, .*norm"
    with pytest.raises(ConfigurationError, match=said):
        add_lora(model, LoRA(modules_to_save=["lm_head", "wte"]))
    with pytest.raises(ConfigurationError, match=r"there is no layers\."):
        add_lora(model, LoRA(modules_to_save=["layers"]))  # a list, that has no forward pass
    with pytest.raises(ConfigurationError, match=r"there is no lm_head\."):
        add_lora(model.model, SAVED)  # as a reward model has it, without a head
    trunk = add_lora(model.model, SAVED, is_critic=True)
    copies = {n.split(".")[2] for n, _ in trunk.named_parameters() if "modules_to_save" in n}
    assert copies == {"embed_tokens", "layers", "norm"}  # a layer's norms end with that name, too


def test_layers_in_a_module_that_trains_in_full_have_no_adapters(
    in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    run, lora = in_pod.stage_run("sft", SFT), LoRA(rank=2, modules_to_save=["mlp"])
    model = with_copies(load_policy(run), lora)
    assert not [n for n, _ in model.named_parameters() if "mlp" in n and "lora" in n]
    save_model(model, tokenizer, tmp_path / "saved", lora)
    loaded = load_directory(tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("output", ["merged", "adapter"])
def test_adapters_of_a_mixtures_experts_come_back_as_they_were(
    output: Any, in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    """Experts are one tensor each, and PEFT puts their adapters around each other."""
    path = write_model(tmp_path / "mixture", "mixtral", **MIXTURE)
    run = starts_from(in_pod, path, path)
    lora = LoRA(rank=2, output=output)
    model = adapted(load_policy(run), lora)
    assert any("experts" in name for name, p in model.named_parameters() if p.requires_grad)
    save_model(model, tokenizer, tmp_path / "saved", lora)
    loaded = load_output(run, tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-5, rtol=1e-4)
    assert loaded.state_dict().keys() == load_policy(run).state_dict().keys()


@pytest.mark.parametrize("output", ["merged", "adapter"])
def test_rank_stabilised_adapters_are_scaled_by_the_root_of_their_rank(
    output: Any, models: Mapping[str, Path], in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    run = starts_from(in_pod, models["llama"], models["llama"])
    lora = LoRA(rank=4, alpha=8, use_rslora=True, output=output)
    model = adapted(load_policy(run), lora)
    plain = adapted(load_policy(run), LoRA(rank=4, alpha=16))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-6, rtol=1e-6)
    save_model(model, tokenizer, tmp_path / "saved", lora)
    loaded = load_output(run, tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-5, rtol=1e-4)


def test_merged_state_has_the_names_of_the_plain_model(in_pod: Pod) -> None:
    run = in_pod.stage_run("sft", SFT)
    plain = load_policy(run).state_dict()
    assert merged_state_dict(adapted(load_policy(run), LoRA(rank=2))).keys() == plain.keys()


ALONE = LoRA(rank=4, alpha=8, output="adapter")


def starts_from(pod: Pod, base: Path, policy: Path, **changes: Any) -> Any:
    inputs = {"base": {"path": str(base)}, "policy": {"path": str(policy)}}
    return pod.stage_run("sft", SFT, inputs=inputs, **changes)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_with_its_base_beside_it_is_the_trained_model_wherever_it_is_moved(
    family: str, models: Mapping[str, Path], in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    run = starts_from(in_pod, models[family], models[family])
    model = adapted(load_policy(run), ALONE)
    assert HubModel.of_start(run) is None
    save_model(model, tokenizer, Path("checkpoints/adapter"), ALONE, HubModel.of_start(run))
    written = "".join(f.read_text("utf-8") for f in Path("checkpoints/adapter").glob("*.json"))
    assert str(models[family]) not in written
    moved = shutil.move("checkpoints/adapter", tmp_path / "elsewhere")
    expected = logits(model)
    for load in (AutoModelForCausalLM.from_pretrained, load_directory):
        torch.testing.assert_close(logits(load(moved)), expected, atol=2e-5, rtol=1e-4)
    for found in (load_output(run, moved), load_policy(starts_from(in_pod, models[family], moved))):
        torch.testing.assert_close(logits(found), expected, atol=2e-5, rtol=1e-4)
        assert not [name for name in found.state_dict() if "lora" in name]
        save_model(found, tokenizer, tmp_path / "next")  # as a stage that starts from it
        again = load_directory(tmp_path / "next")
        torch.testing.assert_close(logits(again), expected, atol=2e-5, rtol=1e-4)


def test_an_adapter_on_a_hub_model_names_it_with_its_commit(
    models: Mapping[str, Path], in_pod: Pod, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    base = in_pod.directory / "owner/name"  # what the libraries find under the hub's name
    shutil.copytree(models["llama"], base)
    (base / "fetched.json").write_text(json.dumps({"commit": "c0ffee"}))
    hub = {"source": "hf://owner/name", "revision": "main"}
    run = starts_from(in_pod, base, base, model=hub)
    model = adapted(load_policy(run), ALONE)
    save_model(model, tokenizer, Path("checkpoints/adapter"), ALONE, HubModel.of_start(run))
    config = json.loads(Path("checkpoints/adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "c0ffee")
    assert not Path("checkpoints/adapter/config.json").exists()
    for auto in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
        found = logits(auto.from_pretrained("checkpoints/adapter"))
        torch.testing.assert_close(found, logits(model), atol=2e-5, rtol=1e-4)
    next_run = starts_from(in_pod, base, Path("checkpoints/adapter"), model=hub)
    torch.testing.assert_close(logits(load_policy(next_run)), logits(model), atol=2e-5, rtol=1e-4)
    with pytest.raises(ConfigurationError, match="holds an adapter alone"):
        load_directory(Path("checkpoints/adapter"))
    assert HubModel.of_start(next_run) is None  # the adapter is a part of what it starts from
    fresh = run.model_copy(
        update={
            "inputs": run.inputs
            | {"policy": run.inputs["policy"].model_copy(update={"init": "random"})}
        }
    )
    assert HubModel.of_start(fresh) is None


def test_an_adapter_on_an_adapter_is_the_trained_model_as_well(
    models: Mapping[str, Path], in_pod: Pod, tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    hub = HubModel("owner/name", None)
    first = adapted(load_policy(starts_from(in_pod, models["llama"], models["llama"])), ALONE)
    save_model(first, tokenizer, Path("first"), ALONE, hub)
    run = starts_from(in_pod, models["llama"], Path("first"), model={"source": "hf://owner/name"})
    second = adapted(load_policy(run), LoRA(rank=2, output="adapter"))
    assert (logits(second) - logits(first)).abs().max() > 1e-2
    save_model(second, tokenizer, Path("second"), ALONE, HubModel.of_start(run))
    found = AutoModelForCausalLM.from_pretrained("second")
    torch.testing.assert_close(logits(found), logits(second), atol=2e-5, rtol=1e-4)
