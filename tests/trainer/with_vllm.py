"""vLLM answers as the actor would, with the actor's newest weights, on any number of ranks.

Run by `make vllm-test`, in an environment with vLLM: pytest does not collect it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from rlhf_trainer.models.language_models import load_directory
from rlhf_trainer.rollout.native import generate
from rlhf_trainer.rollout.sampling import Responses
from rlhf_trainer.rollout.stop_strings import StopStrings
from rlhf_trainer.rollout.vllm import VLLM, Colocated
from trainer_pod import Pod, write_model

LONGEST = {"maxPromptLength": 64, "maxNewTokens": 32}
PROMPTS = [[1, 40, 50, 60, 70], [1, 41, 51], [1, *range(30, 60)], [1, 99]]
WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
"""vLLM has kernels for heads of 32 and more."""
REWARD = "def score(prompts, answers, rows):\n    return [-len(a) / 8 for a in answers]\n"
CURVE = ("ppo/reward", "ppo/kl", "ppo/entropy", "ppo/response_length", "ppo/policy_loss")


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("wide"), **WIDE)


def settings(pod: Pod, **rollout: Any) -> dict[str, Any]:
    """A short PPO stage that rewards short answers."""
    folder = pod.directory / "inputs" / "code"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "short_reward.py").write_text(REWARD)
    pod.paths["code"] = "inputs/code"
    prompts = [{"prompt": f"{'long ' * (i % 6)}question {i}"} for i in range(12)]
    return {
        "data": {"source": pod.data("prompts", prompts), "evalFraction": 0},
        "rollouts": 3,
        "globalBatchSize": 6,
        "minibatchSize": 3,
        "microBatchSize": 2,
        "learningRate": 1e-2,
        "criticLearningRate": 1e-3,
        "rewards": {"short": {"function": {"entrypoint": "short_reward:score", "source": "code"}}},
        "rollout": {"engine": "vllm", **LONGEST, **rollout},
    }


@pytest.fixture(scope="module")
def engine(
    model_directory: Path, tmp_path_factory: pytest.TempPathFactory, ranks: Any
) -> Iterator[Colocated]:
    """One engine for the tests in this process: its end is the end of the process group."""
    pod = Pod(tmp_path_factory.mktemp("pod"), model_directory)
    run = pod.stage_run("ppo", settings(pod, stop=["needs the tokenizer"]))
    started = Colocated(run, run.config, ranks)  # type: ignore[arg-type]
    yield started
    started.close()


@pytest.fixture
def vllm(engine: Colocated, model_directory: Path, tmp_path: Path, tokenizer: Any) -> Any:
    """Answers by the engine with a fresh model, under the rollout settings that are given."""
    model = load_directory(model_directory)

    def with_settings(**rollout: Any) -> VLLM:
        pod = Pod(tmp_path, model_directory)
        run = pod.stage_run("ppo", settings(pod, **rollout))
        session: Any = SimpleNamespace(run=run, tokenizer=tokenizer, once=lambda *_: engine)
        return VLLM(session, run.config, model)  # type: ignore[arg-type]

    return with_settings


def all_rows(vllm: VLLM, rollout: int = 0) -> Responses:
    return vllm.answer(PROMPTS, range(len(PROMPTS)), len(PROMPTS), rollout)


def of_the_actor(vllm: VLLM, **changes: Any) -> Responses:
    """The likeliest tokens, by the native engine."""
    asked = {"max_new_tokens": vllm.settings.max_new_tokens, "eos_token_ids": vllm.ends, **changes}
    return generate(vllm.lm, PROMPTS, temperature=0, pad_token_id=0, **asked)


def test_the_likeliest_tokens_are_the_actors(vllm: Any) -> None:
    greedy = vllm(topK=1)
    assert all_rows(greedy).tokens == of_the_actor(greedy).tokens


def test_weights_that_changed_are_used_from_the_next_rollout_on(vllm: Any) -> None:
    greedy = vllm(topK=1)
    before = all_rows(greedy)
    with torch.no_grad():
        for parameter in greedy.lm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded(3)) * 0.05)
    after = all_rows(greedy)
    assert after.tokens == of_the_actor(greedy).tokens
    assert after.tokens != before.tokens


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("least", [1, 2, 7])
def test_an_answer_ends_where_the_actors_would(vllm: Any, least: int) -> None:
    greedy = vllm(topK=1, minNewTokens=least)
    whole = of_the_actor(greedy)
    greedy.ends = [whole.tokens[0][0], whole.tokens[1][4], whole.tokens[2][12]]
    ours = all_rows(greedy)
    theirs = of_the_actor(greedy, min_new_tokens=least)
    assert (ours.tokens, ours.finished) == (theirs.tokens, theirs.finished)
    assert True in ours.finished
    assert min(map(len, ours.tokens)) >= least


@pytest.mark.parametrize("least", [1, 9])
def test_an_answer_ends_with_a_text_where_the_actors_would(
    vllm: Any, least: int, tokenizer: Any
) -> None:
    greedy = vllm(topK=1)
    whole = of_the_actor(greedy)
    said = [[tokenizer.decode([token]) for token in row] for row in whole.tokens]
    texts = [next(text for text in row[4:] if text.isascii() and text) for row in said]
    pairs = ("".join(two) for row in said for two in pairwise(row[9:]))
    texts.append(next(two for two in pairs if two.isascii() and len(two) > 1))
    stopping = vllm(topK=1, minNewTokens=least, stop=texts)
    ours = all_rows(stopping)
    stop = StopStrings(tokenizer, texts)
    theirs = of_the_actor(stopping, min_new_tokens=least, stop=stop)
    assert (ours.tokens, ours.finished) == (theirs.tokens, theirs.finished)
    assert ours.tokens != whole.tokens
    assert True in ours.finished
    assert [len(row) for row in ours.logprobs or []] == [len(row) for row in ours.tokens]


def test_a_rows_answer_does_not_depend_on_who_is_answered_beside_it(vllm: Any) -> None:
    sampling = vllm()
    together = all_rows(sampling)
    alone = sampling.answer([PROMPTS[2]], [2], len(PROMPTS), 0)
    assert alone.tokens == [together.tokens[2]]
    assert all_rows(sampling).tokens == together.tokens
    assert all_rows(sampling, rollout=1).tokens != together.tokens
    same = sampling.answer([PROMPTS[0]] * 2, [0, 1], 2, 0).tokens
    assert same[0] != same[1]


def test_a_rank_without_prompts_takes_part(vllm: Any) -> None:
    assert vllm().answer([], [], 4, 0) == Responses([], [], [])


@pytest.mark.parametrize("rollout", [{}, {"topP": 0.8}, {"topK": 4, "minNewTokens": 3}])
def test_logprobs_are_of_the_whole_vocabulary_as_the_actors(
    vllm: Any, rollout: dict[str, Any]
) -> None:
    sampling = vllm(**rollout)
    found = all_rows(sampling)
    assert found.logprobs is not None
    for prompt, answer, logprobs in zip(PROMPTS, found.tokens, found.logprobs, strict=True):
        with torch.no_grad():
            logits = sampling.lm(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        scores = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        expected = scores.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_logprobs_that_vllm_normalises_otherwise_are_left_out(vllm: Any) -> None:
    assert all_rows(vllm(temperature=1.5, topP=0.8)).logprobs is None


def test_torch_is_left_as_it_was(engine: Colocated) -> None:
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"


def trained(
    pod: Pod, ranks: int = 1, rollout: Mapping[str, Any] = MappingProxyType({}), **changes: Any
) -> list[Mapping[str, float]]:
    """Metrics of each rollout of a run in processes of its own."""
    run = pod.stage_run("ppo", settings(pod, **rollout) | changes)
    code, log = pod.run(run, ranks)
    assert code == 0, log
    return [line["metrics"] for line in pod.metrics(run)][:3]


@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": {"rank": 4}, "rollout": {"temperature": 1.5}}],
    ids=["full", "lora-temperature"],
)
def test_two_ranks_with_zero_3_give_the_curve_of_one(
    changes: dict[str, Any], model_directory: Path, tmp_path: Path
) -> None:
    one = trained(Pod(tmp_path / "one", model_directory), **changes)
    two = trained(Pod(tmp_path / "two", model_directory), 2, zero={"stage": 3}, **changes)
    for ours, theirs in zip(two, one, strict=True):
        for name in CURVE:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-4, abs=2e-5)
        assert ours["ppo/mismatch_abs"] == pytest.approx(0, abs=1e-5)
        assert ours["ppo/importance_weight"] == pytest.approx(1, abs=1e-5)
    assert abs(one[2]["ppo/kl"]) > 1e-3, "nothing was learnt: stale weights would not show"


def test_a_model_with_tied_embeddings_is_answered_for_after_updates(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "tied", "qwen2", **WIDE, tie_word_embeddings=True)
    for line in trained(Pod(tmp_path / "run", directory)):
        assert line["ppo/mismatch_abs"] == pytest.approx(0, abs=1e-5)
