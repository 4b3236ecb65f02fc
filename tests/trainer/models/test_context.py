"""Rows that are longer than a model reads are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rlhf_api.run import Input
from rlhf_trainer.data.answer_rows import AnswerRow
from rlhf_trainer.data.encode import Answer
from rlhf_trainer.errors import ConfigurationError
from rlhf_trainer.models.context import context_length, refuse_beyond_context, refuse_unknown_tokens
from rlhf_trainer.models.tokenizers import load_tokenizer
from rlhf_trainer.preference.policy_kl import _with_room
from rlhf_trainer.prepare import prepare
from rlhf_trainer.stages import sft
from trainer_pod import TEMPLATE, Pod, pair_rows, sft_rows, write_model

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("gpt2", {"n_positions": 77}, 77),
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("llama", {"max_position_embeddings": 131072, "rope_scaling": LLAMA3}, 131072),
        ("qwen2", {"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ("falcon", {"alibi": True}, None),
        ("bloom", {}, None),
        ("mpt", {}, None),
        ("mamba", {}, None),
    ],
)
def test_what_a_model_reads_at_once_is_known_from_its_configuration(
    family: str, settings: dict[str, Any], expected: int | None
) -> None:
    from transformers import AutoConfig

    assert context_length(AutoConfig.for_model(family, **settings)) == expected


@pytest.fixture
def short(in_pod: Pod) -> Pod:
    """A pod whose base model has learnt positions for 64 tokens."""
    in_pod.model = write_model(in_pod.directory / "short", "gpt2", n_positions=64)
    in_pod.paths["model"] = str(in_pod.model)
    return in_pod


def settings(pod: Pod, **changes: Any) -> dict[str, Any]:
    chosen = {"globalBatchSize": 8, "microBatchSize": 2, "maxLength": 64, "maxSteps": 2}
    return {"data": {"source": pod.data("sft", sft_rows())}, **chosen, **changes}


def test_a_row_may_be_as_long_as_the_model_reads_and_no_longer(short: Pod) -> None:
    refuse_beyond_context(short.stage_run("sft", settings(short)))
    with pytest.raises(ConfigurationError) as refusal:
        refuse_beyond_context(short.stage_run("sft", settings(short, maxLength=65)))
    assert str(refusal.value) == (
        "spec.stages.sft.maxLength: 65 tokens, and model reads 64 at most, by its "
        "config.json; set 64 or less, or use a model that reads more"
    )


def test_prompt_and_response_of_ppo_count_together_and_against_the_reward_model_too(
    short: Pod, models: dict[str, Path]
) -> None:
    ppo = {
        "data": {"source": short.data("prompts", sft_rows())},
        "rollout": {"maxPromptLength": 40, "maxNewTokens": 25},
    }
    with pytest.raises(
        ConfigurationError, match=r"spec\.stages\.ppo\.rollout: 65 tokens"
    ) as refusal:
        refuse_beyond_context(short.stage_run("ppo", ppo))
    assert "(maxPromptLength 40 + maxNewTokens 25), and model reads 64" in str(refusal.value)
    roles = {"policy": str(models["llama"]), "reward": str(short.model)}
    inputs = {role: {"path": path} for role, path in roles.items()}
    with pytest.raises(ConfigurationError, match="and the reward model reads 64 at most"):
        refuse_beyond_context(short.stage_run("ppo", ppo, inputs=inputs))


def test_prepare_says_it_of_all_stages_at_once(short: Pod) -> None:
    pairs = {"data": {"source": short.data("pairs", pair_rows())}, "maxLength": 100}
    stages = {"sft": settings(short, maxLength=99), "reward": pairs, "dpo": pairs}
    evaluation = {"prompts": {"source": short.data("prompts", sft_rows(3))}, "maxNewTokens": 64}
    run = short.stage_run("sft", stages["sft"]).to_dict()
    run |= {"stage": "prepare", "stages": stages, "evaluation": evaluation}
    run["inputs"] = {"base": {"path": str(short.model)}}
    with pytest.raises(ConfigurationError) as refusal:
        prepare(type(short.stage_run("sft", settings(short))).model_validate(run))
    said = str(refusal.value).splitlines()
    assert [line.split(":")[0] for line in said] == [
        "spec.stages.sft.maxLength",
        "spec.stages.reward.maxLength",
        "spec.stages.dpo.maxLength",
        "spec.evaluation.maxNewTokens",
    ]


def test_a_started_stage_ends_with_64(short: Pod) -> None:
    codes, log = short.forked(short.stage_run("sft", settings(short, maxLength=65)))
    assert codes == [64], log
    assert short.result()["reason"] == "ConfigurationError"
    assert "spec.stages.sft.maxLength: 65 tokens" in short.result()["message"]
    assert "Traceback" not in log


def test_prompts_of_an_evaluation_are_cut_to_leave_room_for_the_answer(
    short: Pod, open_session: Any
) -> None:
    prompts = short.data("prompts", [{"prompt": "word " * 90}])
    evaluation = {"prompts": {"source": prompts}, "maxNewTokens": 24}
    run = short.stage_run("sft", settings(short), evaluation=evaluation)
    assert sft.train(open_session(run)).exit_code == 0


def test_prompts_without_room_for_a_response_are_left_out_of_the_kl() -> None:
    rows = [AnswerRow([1] * n, Answer([2], [True])) for n in (3, 4, 5)]
    assert _with_room(rows, 6, 10) == rows[:2]
    assert _with_room(rows, 6, None) == rows


def test_a_template_of_tokens_that_the_model_does_not_know_is_refused(in_pod: Pod) -> None:
    """Somebody added <|im_end|> to the tokenizer, and left the embeddings as they were."""
    from transformers import AutoConfig

    run = in_pod.stage_run("sft", settings(in_pod))
    tokenizer = load_tokenizer(run)
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    known = len(tokenizer) - 1
    AutoConfig.for_model("llama", vocab_size=known).save_pretrained(in_pod.directory / "small")
    small = run.model_copy(update={"inputs": {"policy": Input(path="small")}})
    refuse_unknown_tokens(small, tokenizer)  # no dialogue holds it
    tokenizer.chat_template = TEMPLATE.replace("eos_token", "'<|im_end|>'")
    refuse_unknown_tokens(run, tokenizer)  # whose model has rows to spare
    with pytest.raises(ConfigurationError) as refused:
        refuse_unknown_tokens(small, tokenizer)
    assert f"ends a turn with <|im_end|>, which is token {known}" in str(refused.value)
    assert f"embeddings of {known} tokens alone" in str(refused.value)
