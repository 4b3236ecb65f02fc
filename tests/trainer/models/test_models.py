"""Loading and saving language models: four families, fresh weights, what is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_api.run import StageRun
from rlhf_trainer.errors import CheckpointUnusable, ConfigurationError
from rlhf_trainer.models.language_models import load_directory, load_policy, save_model
from rlhf_trainer.models.scalar_models import load_scalar
from rlhf_trainer.models.tokenizers import load_tokenizer, read_tokenizer
from rlhf_trainer.rollout.native import generate
from rlhf_trainer.sequences import enable_packing
from safetensors.torch import load_file, save_file
from trainer_pod import IDS, MIXTURE, TINY, Pod, logits, write_model, write_tokenizer

SFT = {"data": {"source": "unused"}}


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


def test_saving_twice_gives_the_same_bytes(in_pod: Pod, tokenizer: Any, tmp_path: Path) -> None:
    run = in_pod.stage_run("sft", SFT)
    for name in ("a", "b"):
        save_model(load_policy(run), tokenizer, tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "model.safetensors" in files
    assert [(tmp_path / "a" / f).read_bytes() for f in files] == [
        (tmp_path / "b" / f).read_bytes() for f in files
    ]


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6, "do_sample": True}),
        ({"early_stopping": True}, {}),  # without beams
        ({"eos_token_id": [2, 4]}, {"eos_token_id": [2, 4]}),
    ],
)
def test_a_generation_config_that_transformers_reads_and_would_not_write_is_settled(
    found: dict[str, Any], left: dict[str, Any], in_pod: Pod, tokenizer: Any, tmp_path: Path
) -> None:
    own = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    path = write_model(tmp_path / "model")
    (path / "generation_config.json").write_text(json.dumps(own | found))
    run = in_pod.stage_run("sft", SFT, inputs={"policy": {"path": str(path)}})
    save_model(load_policy(run), tokenizer, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    del written["transformers_version"]
    assert written == own | left


@pytest.mark.parametrize(("zero", "gpu"), [(0, False), (2, False), (3, False), (0, True)])
def test_ranks_share_the_pages_of_the_file_until_weights_are_partitioned_or_on_a_gpu(
    zero: int, gpu: bool, in_pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole copies on every rank would need the model's size in host memory times their number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    model = load_policy(in_pod.stage_run("sft", SFT | {"zero": {"stage": zero}}))
    mapped = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(in_pod.model / "model.safetensors"))
    ]
    places = [parameter.data_ptr() for parameter in model.parameters()]
    in_file = [any(first <= place < last for first, last in mapped) for place in places]
    assert in_file == [zero == 3 or gpu] * len(in_file)


EXPERTS = {**TINY["mistral"], "num_local_experts": 4, "num_experts_per_tok": 2}
NOISY: dict[str, dict[str, Any]] = {
    "gpt2": {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.5},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "attn_pdrop": 0.5},
    "starcoder2": {**TINY["mistral"], "residual_dropout": 0.5, "embedding_dropout": 0.5},
    "seed_oss": {**TINY["mistral"], "head_dim": 8, "residual_dropout": 0.5},
    "mixtral": {**EXPERTS, "router_jitter_noise": 0.5},
    "phimoe": {**EXPERTS, "router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
}


@pytest.mark.parametrize("family", NOISY)
def test_a_model_says_in_training_what_it_says_in_evaluation(
    family: str, in_pod: Pod, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    path = write_model(tmp_path / family, family, **NOISY[family])
    run = in_pod.stage_run("sft", SFT, inputs={"policy": {"path": str(path)}})
    model = load_policy(run)
    expected = logits(AutoModelForCausalLM.from_pretrained(path))
    assert torch.equal(logits(model), expected)
    for _ in range(2):
        torch.testing.assert_close(
            model.train()(input_ids=IDS).logits, expected, atol=1e-6, rtol=1e-5
        )


def test_a_mixture_whose_routers_are_to_give_their_logits_is_read_and_answers(
    tmp_path: Path,
) -> None:
    """With them, transformers puts a loss before the logits, and raises at a token with a cache."""
    path = write_model(tmp_path, "mixtral", **MIXTURE, output_router_logits=True)
    model = load_directory(path)
    assert enable_packing(model)
    prompts = [[1, 40, 50], [1, 41]]
    found = generate(
        model, prompts, max_new_tokens=3, temperature=0, eos_token_ids=[2], pad_token_id=0
    )
    for prompt, answer in zip(prompts, found.tokens, strict=True):
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        assert logits_TV.argmax(-1)[len(prompt) - 1 : -1].tolist() == answer


def test_fresh_weights_come_from_the_seed_and_leave_the_random_state_alone(in_pod: Pod) -> None:
    inputs = {"policy": {"path": str(in_pod.model), "init": "random"}}
    runs = [in_pod.stage_run("sft", SFT, inputs=inputs, seed=seed) for seed in (1, 1, 2)]
    before = torch.get_rng_state()
    one, same, other = (logits(load_policy(run)) for run in runs)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def without(run: StageRun, **changes: Any) -> StageRun:
    return run.model_copy(update=changes)


@pytest.mark.parametrize(
    ("load", "lost"), [(load_directory, "lm_head.weight"), (load_scalar, "score.weight")]
)
def test_weights_that_the_files_do_not_have_are_named_and_not_drawn(
    load: Callable[[Path], Any], lost: str, models: Mapping[str, Path], tmp_path: Path
) -> None:
    """Of a trunk alone, a head by another name, a language model in a reward's place."""
    shutil.copytree(models["llama"], tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    state.pop(lost, None)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=rf"no weights for {re.escape(lost)}"):
        load(tmp_path)


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


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2471\n"


@pytest.mark.parametrize("load", [load_directory, load_scalar])
def test_a_file_that_holds_no_whole_weights_is_named(
    load: Callable[[Path], Any], tmp_path: Path
) -> None:
    weights = write_model(tmp_path) / "model.safetensors"
    for content in (LFS_POINTER, weights.read_bytes()[:-8]):
        weights.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"model\.safetensors is no whole file"):
            load(tmp_path)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt_neox", "llama"])
def test_a_model_without_a_tokenizer_gets_none_made_up(family: str, tmp_path: Path) -> None:
    """transformers makes one of special tokens alone for some families, for others none."""
    from transformers import AutoConfig

    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no tokenizer .*: put its files beside"):
        read_tokenizer(tmp_path)


def test_a_tokenizer_that_the_library_in_rust_does_not_read_is_said_in_one_line(
    tmp_path: Path,
) -> None:
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"type": "BPE"', '"type": "newer"'))
    with pytest.raises(ConfigurationError, match=r"no tokenizer .*did not match any variant"):
        read_tokenizer(tmp_path)


def test_an_input_that_is_not_what_its_stage_committed_is_unusable(in_pod: Pod) -> None:
    inputs = {"policy": {"path": str(in_pod.model), "digest": "sha256:00"}}
    with pytest.raises(CheckpointUnusable, match="manifest"):
        load_policy(in_pod.stage_run("reward", SFT, inputs=inputs))
