"""Scores of responses: by reward models, in tokens of their own too, and over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_api.stages.ppo import HttpReward, PPOStage
from rlhf_trainer.data.examples import Message
from rlhf_trainer.errors import ConfigurationError, Transient
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.reward_sources import Answered, HttpScore, Question, reward_source
from rlhf_trainer.scalar_models import load_scalar, save_scalar, scalar_from_trunk
from trainer_pod import Pod

ASKED = ["what colour has a lemon?", "香蕉是什么颜色？", "and the sky above us?"]
SAID = ["yellow", "", "黄色, I think"]
REFUSES_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
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
        questions.append(Question(f"a.jsonl:{number}", asked, turns, (), {}, prompt))
        tokens.append([*prompt, *tokenizer(f"{said}<|eos|>")["input_ids"]])
    return Answered(questions, SAID, tokens)


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


def last_scores(reward_model: Path, rows: list[list[int]]) -> torch.Tensor:
    model = load_scalar(reward_model).eval()
    with torch.no_grad():
        return torch.stack([model(torch.tensor([row]))[0, -1] for row in rows]).double()


def test_a_reward_model_scores_the_last_token_and_is_normalised_by_its_statistics(
    in_pod: Pod, reward_model: Path, tokenizer: Any
) -> None:
    asked = answered(tokenizer)
    scores = source_of(in_pod, reward_model, tokenizer).score(asked)
    expected = last_scores(reward_model, [list(row) for row in asked.tokens])
    torch.testing.assert_close(scores.raw, 3 * expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.normalised, 3 * (expected - 0.5) / 2, atol=1e-5, rtol=1e-5)
    plain = source_of(in_pod, reward_model, tokenizer, normaliseRewards=False).score(asked)
    assert torch.equal(plain.normalised, plain.raw)


def test_a_reward_model_with_another_template_reads_the_words_in_its_own(
    in_pod: Pod, reward_model: Path, tokenizer: Any
) -> None:
    own = deepcopy(tokenizer)
    own.chat_template = REFUSES_SYSTEM
    own.save_pretrained(reward_model)
    scores = source_of(in_pod, reward_model, tokenizer).score(answered(tokenizer))
    texts = [f"<|user|>{q}<|eos|><|assistant|>{a}<|eos|>" for q, a in zip(ASKED, SAID, strict=True)]
    expected = last_scores(reward_model, [own(text)["input_ids"] for text in texts])
    torch.testing.assert_close(scores.raw, 3 * expected, atol=1e-5, rtol=1e-5)


def test_a_question_that_the_reward_models_template_refuses_is_named(
    in_pod: Pod, reward_model: Path, tokenizer: Any
) -> None:
    own = deepcopy(tokenizer)
    own.chat_template = REFUSES_SYSTEM
    own.save_pretrained(reward_model)
    asked = answered(tokenizer, Message("system", "Be kind."))
    said = r"a\.jsonl:0, as the reward model reads it: the chat template refuses it: System role"
    with pytest.raises(ConfigurationError, match=said):
        source_of(in_pod, reward_model, tokenizer).score(asked)


@pytest.fixture
def endpoint() -> Iterator[Any]:
    """An endpoint that gives the prepared replies in turn, and keeps what it was asked."""
    replies: list[tuple[int, Any]] = []
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, reply = replies.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(*prepared: tuple[int, Any]) -> tuple[Any, list[Any]]:
        replies[:], seen[:] = prepared, []
        http = HttpReward(url=f"http://127.0.0.1:{server.server_port}/", retries=1)
        return HttpScore(http, Ranks(), sleep=lambda _: None), seen

    yield ask
    server.shutdown()
    server.server_close()


def test_an_endpoint_gets_prompts_and_answers_and_another_try(
    endpoint: Any, tokenizer: Any
) -> None:
    source, seen = endpoint((503, {}), (200, {"rewards": [1, 2.5, -3]}))
    assert source.score(answered(tokenizer)).raw.tolist() == [1, 2.5, -3]
    assert seen == [{"prompts": ASKED, "answers": SAID}] * 2


@pytest.mark.parametrize(
    ("replies", "error", "said"),
    [
        ([(503, {}), (503, {})], Transient, "failed 2 times: HTTP 503"),
        ([(200, {"rewards": [1]})], ConfigurationError, "gave 1 rewards for 3 answers"),
        ([(200, {"rewards": [1, True, 3]})], ConfigurationError, "gave True where a number"),
        ([(200, {"scores": []})], ConfigurationError, 'no list "rewards"'),
        ([(200, {"rewards": [1, float("inf"), 3]})], ConfigurationError, "gave inf as a reward"),
    ],
)
def test_an_endpoint_that_fails_or_answers_nonsense_is_blamed(
    replies: Any, error: Any, said: str, endpoint: Any, tokenizer: Any
) -> None:
    source, _ = endpoint(*replies)
    with pytest.raises(error, match=said):
        source.score(answered(tokenizer))
