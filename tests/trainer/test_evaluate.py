"""The evaluation's prompts, answered by base and trained model; the user's judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rlhf_api.stages.ppo import FunctionReward
from rlhf_trainer import evaluate
from rlhf_trainer.errors import ConfigurationError
from rlhf_trainer.models.language_models import load_policy
from rlhf_trainer.stages import sft
from rlhf_trainer.user_code import call_function, load_function
from trainer_pod import TEMPLATE, Pod, sft_rows

PROMPTS = [{"prompt": "what colour has a lemon?", "fact": "yellow"}, {"prompt": "香蕉是什么颜色？"}]
JUDGE = """
def length(prompts, answers, rows):
    assert rows[0]["fact"] == "yellow"
    assert prompts[1] == "香蕉是什么颜色？"
    return [len(answer) for answer in answers]

def broken(prompts, answers, rows):
    return [1 / 0 for _ in answers]

def leaving(prompts, answers, rows):
    raise SystemExit(3)

def short(prompts, answers, rows):
    return [1.0]

def nan(prompts, answers, rows):
    return [float("nan")] * len(answers)
"""


def judged(pod: Pod, function: str = "length") -> dict[str, Any]:
    folder = pod.directory / "inputs" / "judge"
    folder.mkdir(exist_ok=True)
    (folder / "my_judge.py").write_text(JUDGE, "utf-8")
    pod.paths["judge"] = "inputs/judge"
    return {
        "prompts": {"source": pod.data("prompts", PROMPTS), "evalFraction": 0.4},
        "maxNewTokens": 8,
        "score": {"entrypoint": f"my_judge:{function}", "source": "judge"},
    }


def settings(pod: Pod) -> dict[str, Any]:
    return {
        "data": {"source": pod.data("sft", sft_rows()), "evalFraction": 0.2},
        "globalBatchSize": 8,
        "maxLength": 96,
        "learningRate": 1e-2,
        "maxSteps": 8,
        "epochs": 9,
    }


def samples(pod: Pod, run: Any) -> list[dict[str, Any]]:
    text = (pod.directory / run.output / "samples.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_base_and_trained_model_answer_all_prompts_in_order(in_pod: Pod, open_session: Any) -> None:
    run = in_pod.stage_run("sft", settings(in_pod), evaluation=judged(in_pod))
    result = sft.train(open_session(run))
    rows = samples(in_pod, run)
    assert [(r["model"], r["id"]) for r in rows] == [
        ("base", "prompts.jsonl:1"),
        ("base", "prompts.jsonl:2"),
        ("sft", "prompts.jsonl:1"),
        ("sft", "prompts.jsonl:2"),
    ]
    assert rows[1]["prompt"] == "香蕉是什么颜色？"
    assert set(rows[0]) == {"model", "id", "prompt", "answer", "score", "finished"}
    for row in rows:
        assert row["score"] == len(row["answer"])
        assert "<|" not in row["answer"]
    mean = (rows[2]["score"] + rows[3]["score"]) / 2
    assert result.metrics["eval/score"] == mean
    assert result.metrics["eval/base_score"] == (rows[0]["score"] + rows[1]["score"]) / 2
    text = rows[0]["answer"][1:3]
    more = judged(in_pod) | {"stop": [text]}
    run = in_pod.stage_run("sft", settings(in_pod), digest="ba9876543210", evaluation=more)
    evaluate.answer_as_base(open_session(run), load_policy(run))
    found = samples(in_pod, run)[0]
    assert found["answer"] == rows[0]["answer"][: rows[0]["answer"].index(text) + 2]
    assert found["finished"]


def test_answers_are_those_of_the_committed_output(in_pod: Pod, open_session: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = in_pod.stage_run("sft", settings(in_pod), evaluation=judged(in_pod))
    sft.train(open_session(run))
    tokenizer = AutoTokenizer.from_pretrained(in_pod.output(run))
    model = AutoModelForCausalLM.from_pretrained(in_pod.output(run)).eval()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]["prompt"]}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    tokens = model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :]
    answer = samples(in_pod, run)[2]
    assert answer["answer"] == tokenizer.decode(tokens, skip_special_tokens=True)
    assert answer["finished"] == (int(tokens[-1]) == tokenizer.eos_token_id)


def test_answers_end_where_a_turn_ends_in_the_template(in_pod: Pod, open_session: Any) -> None:
    """As with Qwen2.5's base models: EOS is one token, and a turn ends with another."""
    from transformers import AutoModelForCausalLM

    template = TEMPLATE.replace("{{ eos_token }}", "{{ '<|system|>' }}")
    model = {"source": "model", "chatTemplate": template}
    rows = [{"prompt": f"{i}?", "answer": "yes"} for i in range(8)]
    learnt = {"data": {"source": in_pod.data("yes", rows)}, "maxSteps": 20}
    evaluation = judged(in_pod) | {"maxNewTokens": 24}
    run = in_pod.stage_run("sft", settings(in_pod) | learnt, model=model, evaluation=evaluation)
    sft.train(open_session(run))
    trained = samples(in_pod, run)[2:]
    assert [(row["answer"], row["finished"]) for row in trained] == [("yes", True)] * 2
    output = AutoModelForCausalLM.from_pretrained(in_pod.output(run))
    assert output.generation_config.eos_token_id == [2, 3]  # whoever serves it stops there too


def test_a_stage_that_starts_from_another_model_answers_as_itself_alone(
    in_pod: Pod, open_session: Any
) -> None:
    import shutil

    shutil.copytree(in_pod.model, "inputs/other")
    inputs = {"base": {"path": str(in_pod.model)}, "policy": {"path": "inputs/other"}}
    evaluation = judged(in_pod)
    run = in_pod.stage_run("sft", settings(in_pod), inputs=inputs, evaluation=evaluation)
    sft.train(open_session(run))
    assert {row["model"] for row in samples(in_pod, run)} == {"sft"}


def test_samples_of_a_second_try_replace_the_first(in_pod: Pod, open_session: Any) -> None:
    run = in_pod.stage_run("sft", settings(in_pod), evaluation=judged(in_pod))
    session = open_session(run)
    sft.train(session)
    once = samples(in_pod, run)
    sft.train(session)
    assert sorted(map(str, samples(in_pod, run))) == sorted(map(str, once))


def function(pod: Pod, name: str) -> FunctionReward:
    return FunctionReward.model_validate(judged(pod, name)["score"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", r"my_judge:broken: ZeroDivisionError: division by zero \(my_judge.py, line 8\)"),
        ("leaving", r"my_judge:leaving: SystemExit: 3 \(my_judge.py, line 11\)"),
        ("short", r"gave 1 scores for 2 answers"),
    ],
)
def test_what_goes_wrong_in_the_users_code_is_said_with_file_and_line(
    name: str, said: str, in_pod: Pod
) -> None:
    judge = function(in_pod, name)
    loaded = load_function(judge, in_pod.paths)
    with pytest.raises(ConfigurationError, match=said):
        call_function(judge, loaded, ["p", "q"], ["a", "b"], [{}, {}])


def test_a_judge_that_gives_no_number_is_named(in_pod: Pod, open_session: Any) -> None:
    run = in_pod.stage_run("sft", settings(in_pod), evaluation=judged(in_pod, "nan"))
    said = "evaluation.score: my_judge:nan gave nan for the answer"
    with pytest.raises(ConfigurationError, match=said):
        evaluate.answer(open_session(run), load_policy(run), "sft")


def test_a_function_or_module_that_is_not_there_is_said(in_pod: Pod) -> None:
    with pytest.raises(ConfigurationError, match="has no function gone"):
        load_function(function(in_pod, "gone"), in_pod.paths)
    missing = function(in_pod, "length").model_copy(update={"entrypoint": "no_such:f"})
    with pytest.raises(ConfigurationError, match=r"No module named 'no_such' \(looked in"):
        load_function(missing, in_pod.paths)
    Path("inputs/judge/syntax.py").write_text("def f(:\n")
    bad = missing.model_copy(update={"entrypoint": "syntax:f"})
    with pytest.raises(ConfigurationError, match=r"SyntaxError.*\(syntax.py, line 1\)"):
        load_function(bad, in_pod.paths)
    Path("inputs/judge/script.py").write_text("import sys\n\nsys.exit(2)\n")
    script = missing.model_copy(update={"entrypoint": "script:f"})
    with pytest.raises(ConfigurationError, match=r"SystemExit: 2 \(script.py, line 3\)"):
        load_function(script, in_pod.paths)
