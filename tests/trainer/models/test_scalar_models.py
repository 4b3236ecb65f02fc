"""Reward models and critics: their heads, and what transformers' own class makes of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import adapted
from rlhf_api.stages.common import LoRA
from rlhf_trainer.models.scalar_models import (
    ScalarHeadModel,
    load_scalar,
    load_statistics,
    save_scalar,
    scalar_from_trunk,
)
from rlhf_trainer.models.tokenizers import reads_tokens_of
from trainer_pod import TINY, VOCABULARY, write_model

IDS = torch.tensor([[1, 40, 50, 60, 70], [1, 41, 51, 61, 71]])


def new_scalar(path: Path, head: str = "normal") -> ScalarHeadModel:
    """The trunk of the language model in a directory, with a fresh head."""
    from transformers import AutoModelForCausalLM

    trunk = AutoModelForCausalLM.from_pretrained(path).base_model
    return scalar_from_trunk(trunk, seed=3, head=head)


@pytest.mark.parametrize("family", TINY)
def test_a_reward_model_loads_as_a_sequence_classifier(
    family: str, models: Mapping[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    model = new_scalar(models[family]).eval()
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


PROJECTED = {
    "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False,
}  # fmt: skip


def beside_a_vision_model(path: Path) -> Path:
    """A tiny Gemma 3 as AutoModelForCausalLM loads it: its text part is nested in its config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    text = {**TINY["llama"], "head_dim": 8, "vocab_size": VOCABULARY, "pad_token_id": 0}
    seeing = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 28,
        "num_attention_heads": 2, "patch_size": 14,
    }  # fmt: skip
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=seeing, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("pads_with_eos", [False, True])
@pytest.mark.parametrize("kind", ["projected", "beside a vision model"])
def test_a_model_whose_width_is_not_in_its_config_can_be_a_reward_model(
    kind: str, pads_with_eos: bool, tokenizer: Any, tmp_path: Path
) -> None:
    """OPT-350M projects its last hidden states; of Gemma 3, the text part has a width."""
    from transformers import AutoModelForSequenceClassification

    if kind == "projected":
        path = write_model(tmp_path / "model", "opt", **PROJECTED)
    else:
        path = beside_a_vision_model(tmp_path / "model")
    tokenizer = copy.deepcopy(tokenizer)
    if pads_with_eos:  # a pad token is added, with a row of the embedding
        tokenizer.add_special_tokens({"pad_token": "<|eos|>"})
    model = new_scalar(path).eval()
    save_scalar(model, tokenizer, tmp_path / "saved")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        scores_BT = model(IDS)
        again_BT = load_scalar(tmp_path / "saved").eval()(IDS)
        torch.testing.assert_close(again_BT, scores_BT, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(theirs(IDS).logits.squeeze(-1), scores_BT[:, -1])


def test_a_fresh_head_is_drawn_with_variance_one_over_width_plus_one_or_zero(
    tmp_path: Path,
) -> None:
    path = write_model(tmp_path, "llama", hidden_size=1024, num_attention_heads=16)
    drawn = new_scalar(path).score.weight
    assert float(drawn.std()) == pytest.approx(1 / math.sqrt(1025), rel=0.1)
    assert not new_scalar(path, head="zero").score.weight.any()


def test_scores_of_a_model_in_bf16_are_not_rounded_to_bf16(
    models: Mapping[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    model = new_scalar(models["llama"])
    with torch.no_grad():
        model.score.weight.mul_(30)
    save_scalar(model, tokenizer, tmp_path / "saved")
    coarse = load_scalar(tmp_path / "saved", dtype=torch.bfloat16).eval()
    with torch.no_grad():
        hidden_BTH = coarse.trunk(IDS, use_cache=False).last_hidden_state
        found_BT = coarse(IDS)
    exact_BT = (hidden_BTH.double() @ coarse.score.weight.double().T).squeeze(-1)
    assert found_BT.dtype == torch.float32
    assert exact_BT.abs().max() > 4
    torch.testing.assert_close(found_BT.double(), exact_BT, atol=1e-5, rtol=1e-6)


def test_a_reward_model_with_adapters_is_saved_merged(
    models: Mapping[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    model = new_scalar(models["llama"])
    model.trunk = adapted(model.trunk, LoRA(rank=2))
    save_scalar(model, tokenizer, tmp_path)
    with torch.no_grad():
        expected, found = model.eval()(IDS), load_scalar(tmp_path).eval()(IDS)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def padded_with_eos(tokenizer: Any) -> Any:
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_a_spare_pad_token(tokenizer: Any) -> Any:
    tokenizer.add_tokens(["<|right_pad|>"], special_tokens=True)
    return padded_with_eos(tokenizer)


ANSWERS = ["It is red<|eos|>", "No, it is blue, I think<|eos|>", "<|eos|>", "it never ends"]


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("prepared", [padded_with_eos, with_a_spare_pad_token])
def test_transformers_scores_right_padded_answers_as_we_do(
    prepared: Any, family: str, lora: LoRA | None, models: Mapping[str, Path], tmp_path: Path
) -> None:
    """Also where the tokenizer pads with EOS: transformers takes the last token that is no pad.

    In float64 but for norms, which round to fp32 inside, and so to 1e-5 of scores of about 1;
    another token's score is off by a hundredth and more.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = prepared(AutoTokenizer.from_pretrained(models[family]))
    model = new_scalar(models[family])
    if lora is not None:
        model.trunk = adapted(model.trunk, lora)
    save_scalar(model.double().eval(), tokenizer, tmp_path)
    own = AutoTokenizer.from_pretrained(tmp_path)
    double = torch.float64
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=double).eval()
    ours = load_scalar(tmp_path, dtype=double).eval()
    batch = own(ANSWERS, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        found_B = theirs(**batch).logits.squeeze(-1)
        rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in ANSWERS]
        expected_B = torch.stack([model(row)[0, -1] for row in rows])
        again_B = torch.stack([ours(row)[0, -1] for row in rows])
    torch.testing.assert_close(found_B.float(), expected_B, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again_B, expected_B, atol=1e-5, rtol=1e-5)
    assert reads_tokens_of(own, tokenizer)  # PPO's critic may start from it


def test_a_pad_token_of_its_own_stays_and_adds_no_row(
    models: Mapping[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    save_scalar(new_scalar(models["llama"]), tokenizer, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.pad_token_id, config.vocab_size) == (0, VOCABULARY)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token == "<|pad|>"
