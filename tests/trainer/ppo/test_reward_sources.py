"""Scores of responses by reward models, in tokens of their own too."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_api.stages.ppo import PPOStage
from rlhf_trainer.data.examples import Extras, Message
from rlhf_trainer.errors import ConfigurationError
from rlhf_trainer.models.scalar_models import load_scalar, save_scalar, scalar_from_trunk
from rlhf_trainer.ppo.answered import Answered, Question
from rlhf_trainer.ppo.reward_sources import reward_source
from rlhf_trainer.ranks import Ranks
from trainer_pod import Pod

ASKED = ["what colour has a lemon?", "香蕉是什么颜色？", "and the sky above us?"]
SAID = ["yellow", "", "黄色, I think"]
REFUSES_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
)

FORGETS_THOUGHTS = (  # of earlier turns, as Qwen3's
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if loop.last %}{{ message['content'] }}"
    "{% else %}{{ message['content'].split('</think>')[-1] }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture
def reward_model(models: Any, tokenizer: Any, tmp_path: Path) -> Path:
    """A reward model with a fresh head, and statistics."""
    from transformers import AutoModel

    model = scalar_from_trunk(AutoModel.from_pretrained(models["llama"]), seed=3)
    save_scalar(model, tokenizer, tmp_path / "rm", {"mean": 0.5, "std": 2.0, "count": 9.0})
    return tmp_path / "rm"


def answered(tokenizer: Any, *before: Message) -> Answered:
    questions, tokens = [], []
    for number, (asked, said) in enumerate(zip(ASKED, SAID, strict=True)):
        prompt = tokenizer(f"<|bos|><|user|>{asked}<|assistant|>")["input_ids"]
        turns = (*before, Message("user", asked))
        questions.append(Question(f"a.jsonl:{number}", asked, turns, Extras(), {}, prompt))
        tokens.append([*prompt, *tokenizer(f"{said}<|eos|>")["input_ids"]])
    return Answered(questions, SAID, tokens, [True] * len(SAID))


def source_of(pod: Pod, reward_model: Path, policy: Any, **settings: Any) -> Any:
    stage = {
        "data": {"source": pod.data("prompts", [{"prompt": "q"}])},
        "rewards": {"rm": {"model": {"source": "rm"}, "weight": 3.0}},
        **settings,
    }
    pod.paths["rm"] = str(reward_model)
    run = pod.stage_run("ppo", stage)
    assert isinstance(run.config, PPOStage)
    return reward_source(run, run.config, policy, Ranks())


def with_a_template_of_its_own(
    reward_model: Path, tokenizer: Any, template: str = REFUSES_SYSTEM
) -> Any:
    """The tokenizer that the reward model then has."""
    own = deepcopy(tokenizer)
    own.chat_template = template
    own.save_pretrained(reward_model)
    return own


def last_scores(reward_model: Path, rows: list[list[int]]) -> torch.Tensor:
    model = load_scalar(reward_model).eval()
    with torch.no_grad():
        return torch.stack([model(torch.tensor([row]))[0, -1] for row in rows]).double()


def test_a_reward_model_scores_the_last_token_and_is_normalised_by_its_statistics(
    in_pod: Pod, reward_model: Path, tokenizer: Any
) -> None:
    questions, said, tokens, finished = answered(tokenizer)
    again = [*questions[0].tokens, *tokens[2][-4:]]  # another answer to a question
    asked = Answered(
        [*questions, questions[0]], [*said, "again"], [*tokens, again], [*finished, True]
    )
    scores = source_of(in_pod, reward_model, tokenizer).score(asked)
    expected = last_scores(reward_model, [list(row) for row in asked.tokens])
    torch.testing.assert_close(scores.raw, 3 * expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.normalised, 3 * (expected - 0.5) / 2, atol=1e-5, rtol=1e-5)
    plain = source_of(in_pod, reward_model, tokenizer, normaliseRewards=False).score(asked)
    assert torch.equal(plain.normalised, plain.raw)


def test_a_reward_model_with_another_template_reads_the_words_in_its_own(
    in_pod: Pod, reward_model: Path, tokenizer: Any
) -> None:
    own = with_a_template_of_its_own(reward_model, tokenizer)
    asked = answered(tokenizer)
    extras = Extras(kwargs=(("enable_thinking", True),))  # for the policy's template
    questions = [question._replace(extras=extras) for question in asked.questions]
    scores = source_of(in_pod, reward_model, tokenizer).score(asked._replace(questions=questions))
    texts = [f"<|user|>{q}<|eos|><|assistant|>{a}<|eos|>" for q, a in zip(ASKED, SAID, strict=True)]
    expected = last_scores(reward_model, [own(text)["input_ids"] for text in texts])
    torch.testing.assert_close(scores.raw, 3 * expected, atol=1e-5, rtol=1e-5)


def test_a_reward_model_that_reads_the_policys_tokens_must_read_as_many(
    in_pod: Pod, reward_model: Path, tokenizer: Any
) -> None:
    file = reward_model / "config.json"
    config = json.loads(file.read_text()) | {"max_position_embeddings": 40}
    file.write_text(json.dumps(config))
    rollout = {"maxPromptLength": 32, "maxNewTokens": 8}
    source_of(in_pod, reward_model, tokenizer, rollout=rollout)
    rollout["maxNewTokens"] = 9
    with pytest.raises(ConfigurationError, match=r"has up to 41 .*tokens, and it reads 40"):
        source_of(in_pod, reward_model, tokenizer, rollout=rollout)


def test_an_answer_that_was_cut_has_no_end_in_the_reward_models_tokens_either(
    in_pod: Pod, reward_model: Path, tokenizer: Any
) -> None:
    own = with_a_template_of_its_own(reward_model, tokenizer)
    asked = answered(tokenizer)._replace(finished=[False, False, True])
    scores = source_of(in_pod, reward_model, tokenizer).score(asked)
    ends = ("", "", "<|eos|>")
    texts = [
        f"<|user|>{question}<|eos|><|assistant|>{answer}{end}"
        for question, answer, end in zip(ASKED, SAID, ends, strict=True)
    ]
    expected = last_scores(reward_model, [own(text)["input_ids"] for text in texts])
    torch.testing.assert_close(scores.raw, 3 * expected, atol=1e-5, rtol=1e-5)


def test_a_question_that_the_reward_models_template_refuses_is_named(
    in_pod: Pod, reward_model: Path, tokenizer: Any
) -> None:
    with_a_template_of_its_own(reward_model, tokenizer)
    asked = answered(tokenizer, Message("system", "Be kind."))
    said = r"a\.jsonl:0, as the reward model reads it: the chat template refuses it: System role"
    with pytest.raises(ConfigurationError, match=said):
        source_of(in_pod, reward_model, tokenizer).score(asked)


def test_a_reward_model_whose_template_forgets_earlier_thoughts_scores_what_follows(
    in_pod: Pod, reward_model: Path, tokenizer: Any
) -> None:
    own = with_a_template_of_its_own(reward_model, tokenizer, FORGETS_THOUGHTS)
    before = Message("user", "hi"), Message("assistant", "<think>so</think>yes")
    scores = source_of(in_pod, reward_model, tokenizer).score(answered(tokenizer, *before))
    shown = "<|user|>hi<|eos|><|assistant|>yes<|eos|>"
    pairs = zip(ASKED, SAID, strict=True)
    texts = [f"{shown}<|user|>{asked}<|eos|><|assistant|>{said}<|eos|>" for asked, said in pairs]
    expected = last_scores(reward_model, [own(text)["input_ids"] for text in texts])
    assert torch.allclose(scores.raw, 3.0 * expected)
