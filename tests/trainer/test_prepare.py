"""Prepare: fetched, pinned, checked, digested, and refused when it changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from rlhf_api.data import DataSource, ModelSource
from rlhf_api.run import Demonstrations, StageRun
from rlhf_trainer.data import fetched
from rlhf_trainer.data.digests import path_digest, refuse_changed_sources
from rlhf_trainer.data.load import Loaded, load_dialogues
from rlhf_trainer.data.stage_rows import (
    demonstration_rows,
    labelled_rows,
    preference_rows,
    pretraining_rows,
    prompt_rows,
)
from rlhf_trainer.data.stage_rows import sft_rows as sft_recipe
from rlhf_trainer.errors import BadData, ConfigurationError, Transient
from rlhf_trainer.prepare import prepare
from rlhf_trainer.stages import reward, sft
from trainer_pod import (
    TEMPLATE,
    TINY,
    VOCABULARY,
    Pod,
    pair_rows,
    sft_rows,
    small_sft,
    write_jsonl,
    write_model,
)


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def prepare_run(pod: Pod, stages: dict[str, Any], **changes: Any) -> StageRun:
    run = pod.stage_run("sft", {"data": {"source": "unused"}}).to_dict()
    run |= {"stage": "prepare", "stages": stages, "inputs": {}, "paths": pod.paths, **changes}
    return StageRun.model_validate(run)


def every_stage(pod: Pod) -> dict[str, Any]:
    sft, pairs = pod.data("sft", sft_rows()), pod.data("pairs", pair_rows())
    return {
        "sft": {"data": {"source": sft}},
        "reward": {"data": {"source": pairs}},
        "ppo": {"data": {"source": sft}, "pretraining": {"data": {"source": sft}}},
        "dpo": {"data": {"source": pairs}},
    }


def test_every_source_of_every_stage_is_checked_and_digested(in_pod: Pod) -> None:
    evaluation = {"prompts": {"source": in_pod.data("prompts", sft_rows(3))}}
    result = prepare(prepare_run(in_pod, every_stage(in_pod), evaluation=evaluation))
    assert (result.exit_code, result.reason) == (0, "Done")
    data = Path("inputs/sft.jsonl").read_bytes()
    assert result.sources["stages.sft.data"] == sha256(data)
    assert list(result.sources) == [
        "model",
        "stages.sft.data",
        "stages.reward.data",
        "stages.ppo.data",
        "stages.ppo.pretraining.data",
        "stages.dpo.data",
        "evaluation.prompts",
    ]


def test_problems_of_all_data_sets_are_said_at_once(in_pod: Pod) -> None:
    stages = every_stage(in_pod)
    in_pod.data("sft", [*sft_rows(3), {"prompt": "q", "answer": " "}])
    in_pod.data("pairs", [*pair_rows(2), {"query": "q", "chosen": "a", "rejected": "a"}])
    with pytest.raises(BadData) as refusal:
        prepare(prepare_run(in_pod, stages))
    for part in (
        "spec.stages.sft.data: data/sft.jsonl: 1 of 4 rows",
        "sft.jsonl:4: `answer` is blank",
        "spec.stages.reward.data",
        "spec.stages.dpo.data",
        "pairs.jsonl:3: chosen and rejected are the same",
    ):
        assert part in str(refusal.value)


def test_rows_longer_than_the_stage_allows_are_found_before_training(in_pod: Pod) -> None:
    source = in_pod.data("long", [*sft_rows(2), {"prompt": "q", "answer": "word " * 99}])
    with pytest.raises(BadData, match=r"long\.jsonl:3: \d+ tokens, and 64 are allowed"):
        prepare(prepare_run(in_pod, {"sft": {"data": {"source": source}, "maxLength": 64}}))


def test_scores_need_a_whole_demonstration_to_be_normalised_on(in_pod: Pod) -> None:
    source = in_pod.data("long", [{"prompt": f"q{i}", "answer": "word " * 99} for i in range(3)])
    stages = {
        "sft": {"data": {"source": source, "overlong": "truncate"}, "maxLength": 64},
        "reward": every_stage(in_pod)["reward"],
    }
    said = r"spec\.stages\.reward\.normaliseOn: data/long\.jsonl: no dialogue .* has 64 tokens"
    with pytest.raises(BadData, match=said):
        prepare(prepare_run(in_pod, stages))
    stages["reward"]["normaliseOn"] = "chosen"
    assert prepare(prepare_run(in_pod, stages)).exit_code == 0


def test_rows_of_a_trainer_that_is_not_ours_are_digested_and_not_judged(in_pod: Pod) -> None:
    source = in_pod.data("other", [{"conversation_id": 1}])
    stage = {"data": {"source": source}, "command": ["torchrun", "train.py"]}
    assert "stages.sft.data" in prepare(prepare_run(in_pod, {"sft": stage})).sources
    with pytest.raises(BadData):
        prepare(prepare_run(in_pod, {"sft": {"data": {"source": source}}}))


def test_files_that_are_not_read_are_named_beside_the_rows(in_pod: Pod) -> None:
    for name in ("train", "self_eval", "rows-test"):
        write_jsonl(Path("inputs/set") / f"{name}.jsonl", sft_rows(40))
    in_pod.paths["set"] = "inputs/set"
    said = prepare(prepare_run(in_pod, {"sft": {"data": {"source": "set"}}})).message
    told = (
        "spec.stages.sft.data: not read, as no data of this split: rows-test.jsonl, self_eval.jsonl"
    )
    assert said.splitlines()[1:] == [told]


def test_names_in_braces_that_nobody_fills_in_are_told_with_what_fills_them(in_pod: Pod) -> None:
    rows = [{"prompt": f"{i}?", "answer": "I am {{name}}"} for i in range(4)]
    stages = {"sft": {"data": {"source": in_pod.data("who", rows)}}}
    said = prepare(prepare_run(in_pod, stages)).message
    told = "who.jsonl: {{name}} in 4 of 4 rows, which `variables` would fill in"
    assert said.splitlines()[1:] == [f"spec.stages.sft.data: {told}"]
    assert prepare(prepare_run(in_pod, stages)).message == said  # from the rows that are kept
    stages["sft"]["data"]["variables"] = {"name": "Ada"}
    assert prepare(prepare_run(in_pod, stages)).message.endswith("rows")


def test_rows_that_are_left_out_on_request_are_told(in_pod: Pod) -> None:
    source = in_pod.data("some", [*sft_rows(40), {"prompt": "q", "answer": ""}])
    data = {"source": source, "onError": "skip", "maxSkippedFraction": 0.1}
    said = prepare(prepare_run(in_pod, {"sft": {"data": data}})).message
    told = "1 row is left out, the first: some.jsonl:41: `answer` is blank"
    assert said.splitlines()[1:] == [f"spec.stages.sft.data: {told}"]


def test_kto_wants_labels_or_pairs(in_pod: Pod) -> None:
    labelled = in_pod.data("kto", [{"prompt": "q", "completion": "a", "label": True}] * 2)
    kto = {"dpo": {"data": {"source": labelled}, "loss": "kto"}}
    assert prepare(prepare_run(in_pod, kto)).exit_code == 0
    for stage in ("dpo", "reward"):
        with pytest.raises(BadData, match=r"one answer with a label.* `dpo` with `loss: kto`"):
            prepare(prepare_run(in_pod, {stage: {"data": {"source": labelled}}}))


def test_models_and_code_that_are_not_there_are_named(in_pod: Pod) -> None:
    stages = {"sft": every_stage(in_pod)["sft"]}
    in_pod.paths["model"] = "inputs/nothing"
    with pytest.raises(ConfigurationError, match=r"spec\.model: model is not there"):
        prepare(prepare_run(in_pod, stages))
    Path("inputs/nothing").touch()
    with pytest.raises(ConfigurationError, match=r"spec\.model: model is a file, not a folder"):
        prepare(prepare_run(in_pod, stages))
    Path("inputs/nothing").unlink()
    Path("inputs/nothing").mkdir()
    with pytest.raises(ConfigurationError, match=r"config\.json is missing"):
        prepare(prepare_run(in_pod, stages))
    Path("inputs/nothing/config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="init: random"):
        prepare(prepare_run(in_pod, stages))


def test_weights_that_were_cut_short_are_found_before_training(in_pod: Pod) -> None:
    in_pod.paths["model"] = str(shutil.copytree(in_pod.model, "inputs/cut"))
    weights = Path("inputs/cut/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ConfigurationError, match=r"model\.safetensors is no whole file"):
        prepare(prepare_run(in_pod, {"sft": every_stage(in_pod)["sft"]}))


def test_a_reward_model_that_nobody_could_load_is_refused_before_it_is_trained(
    in_pod: Pod, open_session: Any, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "granite", "granite", **TINY["llama"])
    in_pod.paths["model"] = str(path)
    settings = {"data": {"source": in_pod.data("pairs", pair_rows())}}
    with pytest.raises(ConfigurationError, match="no classifier for models of type granite"):
        prepare(prepare_run(in_pod, {"reward": settings}))
    inputs = {role: {"path": str(path)} for role in ("base", "policy")}
    with pytest.raises(ConfigurationError, match="no classifier for models of type granite"):
        reward.train(open_session(in_pod.stage_run("reward", settings, inputs=inputs)))


def with_a_token_too_many(in_pod: Pod, template: str) -> dict[str, str]:
    """The model with a tokenizer that has <|turn|>, which the model does not, and this template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(in_pod.model)
    tokenizer.add_tokens([f"<{i}>" for i in range(VOCABULARY - len(tokenizer))])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained("inputs/tokenizer")
    in_pod.paths["tokenizer"] = "inputs/tokenizer"
    return {"source": "model", "tokenizer": "tokenizer"}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo"])
def test_tokens_that_the_model_does_not_have_are_named(stage: str, in_pod: Pod) -> None:
    model = with_a_token_too_many(in_pod, TEMPLATE.replace("'<|' +", "'<|turn|>' + '<|' +"))
    one = {stage: every_stage(in_pod)[stage]}
    said = r"jsonl:\d+: the tokenizer gives token 320 \('<\|turn\|>'\), and the model has 320"
    with pytest.raises(BadData, match=said):
        prepare(prepare_run(in_pod, one, model=model))


def test_a_template_that_ends_turns_with_a_token_of_no_model_is_found_before_training(
    in_pod: Pod,
) -> None:
    """No prompt holds that token: PPO would sample without an end."""
    model = with_a_token_too_many(in_pod, TEMPLATE.replace("eos_token", "'<|turn|>'"))
    ppo = {"ppo": every_stage(in_pod)["ppo"]}
    with pytest.raises(ConfigurationError, match=r"ends a turn with <\|turn\|>"):
        prepare(prepare_run(in_pod, ppo, model=model))


def test_prompts_of_an_evaluation_that_the_template_refuses_are_found_before_training(
    in_pod: Pod, open_session: Any
) -> None:
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    model = {"source": "model", "chatTemplate": refusing + TEMPLATE}
    asked = [{"prompt": "q", "system": "S"}, {"prompt": "q"}]
    prompts = {"source": in_pod.data("prompts", asked)}
    learnt = {"data": {"source": in_pod.data("sft", sft_rows())}, "maxSteps": 1, "maxLength": 96}
    run = prepare_run(in_pod, {"sft": learnt}, model=model, evaluation={"prompts": prompts})
    said = r"spec\.evaluation\.prompts: .*\n.*prompts\.jsonl:1: the chat template refuses it"
    with pytest.raises(BadData, match=said):
        prepare(run)
    skipping = prompts | {"onError": "skip", "maxSkippedFraction": 0.5}
    changes: dict[str, Any] = {"model": model, "evaluation": {"prompts": skipping}}
    assert (
        "evaluation.prompts 1 + 0 rows"
        in prepare(prepare_run(in_pod, {"sft": learnt}, **changes)).message
    )
    stage = in_pod.stage_run("sft", learnt, **changes)
    assert sft.train(open_session(stage)).exit_code == 0


SCORE = "def score(prompts, answers, rows):\n    return []\n"
CODE = {  # what mine.py holds, and what prepare says of it
    "no file": (None, r"code: there is no mine\.py for mine:score"),
    "syntax": ("x = 1\ndef score(:", r"SyntaxError: invalid syntax \(mine\.py, line 2\)"),
    "another name": ("def other(p, a, r): ...", "module mine has no function score; it has other"),
    "a number": ("score = 3", "it is no function, but 3"),
    "async": ("async " + SCORE, "it is async"),
    "two arguments": ("def score(prompts, answers): ...", "called with 3 arguments"),
    "a keyword": ("def score(prompts, answers, rows, *, k): ...", "called with 3 arguments"),
    "plain": (SCORE, None),
    "wants a GPU": (SCORE + "import torch; torch.zeros(1).cuda()", None),
    "leaves things": (SCORE + "open('left', 'w'); import sys; sys.exit(3)", None),
    "imported": ("from judges import score", None),
    "all of another": ("from judges import *", None),
    "in a branch": (
        "try:\n    from fast import score\nexcept ImportError:\n    " + "score = 3",
        None,
    ),
    "made": ("import functools\nscore = functools.partial(print)", None),
    "later": ("globals()['score'] = print", None),
    "any arguments": ("def score(*args, **kwargs): ...", None),
    "decorated": ("import functools\n@functools.cache\ndef score(): ...", None),
}


@pytest.mark.parametrize("case", CODE)
def test_a_reward_function_that_cannot_work_is_found_before_training(
    case: str, in_pod: Pod
) -> None:
    code, said = CODE[case]
    ppo = every_stage(in_pod)["ppo"]
    function = {"function": {"entrypoint": "mine:score", "source": "code"}}
    in_pod.paths["code"] = "inputs/code"
    Path("inputs/code").mkdir()
    if code is not None:
        Path("inputs/code/mine.py").write_text(code)
    stage = ppo | {"rewards": {"mine": function}}
    if said is None:
        assert (
            "stages.ppo.rewards.mine.function"
            in prepare(prepare_run(in_pod, {"ppo": stage})).sources
        )
        assert [path.name for path in Path("inputs/code").iterdir()] == ["mine.py"]
        assert not Path("left").exists()
        return
    with pytest.raises(ConfigurationError, match=rf"^spec\.stages\.ppo\.rewards\.mine.*{said}"):
        prepare(prepare_run(in_pod, {"ppo": stage}))
    if code is not None:  # another image may have another Python
        prepare(prepare_run(in_pod, {"ppo": stage | {"image": "their/own:1"}}))


def test_modules_that_a_judge_imports_and_nobody_has_are_told_of(in_pod: Pod) -> None:
    sft = every_stage(in_pod)["sft"]
    Path("inputs/code/beside").mkdir(parents=True)
    imports = "import json, beside, no_such_module.part\ntry:\n    import nor_this\nexcept: ...\n"
    Path("inputs/code/mine.py").write_text(imports + SCORE)
    in_pod.paths["code"] = "inputs/code"
    judge = {"entrypoint": "mine:score", "source": "code"}
    evaluation = {"prompts": sft["data"], "score": judge}
    said = prepare(prepare_run(in_pod, {"sft": sft}, evaluation=evaluation)).message
    told = "spec.evaluation.score: it imports no_such_module, not installed here"
    assert said.splitlines()[1:] == [told]


def test_an_endpoint_that_cannot_be_reached_is_told_of_and_not_refused(in_pod: Pod) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/score"
        stage = every_stage(in_pod)["ppo"] | {"rewards": {"judge": {"http": {"url": url}}}}
        assert "reached" not in prepare(prepare_run(in_pod, {"ppo": stage})).message
    said = prepare(prepare_run(in_pod, {"ppo": stage})).message
    assert f"spec.stages.ppo.rewards.judge.http: {url} cannot be reached now: " in said


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% for m in messages %}\n{{ m.content }}",
            r"innermost block .* 'for'\. \(line 2 of it\)",
        ),
        ("{{ nope() }}", "'nope' is undefined; mend `chatTemplate`"),
        ("hello", "does not show turn 2 as it is"),
    ],
)
def test_a_chat_template_with_a_mistake_is_a_mistake_of_the_jobs(
    template: str, said: str, in_pod: Pod, open_session: Any
) -> None:
    stages = every_stage(in_pod)
    model = {"source": "model", "chatTemplate": template}
    with pytest.raises(ConfigurationError, match=said):
        prepare(prepare_run(in_pod, {"sft": stages["sft"]}, model=model))
    ppo = stages["ppo"] | {"rewards": {"judge": {"model": model}}}
    with pytest.raises(
        ConfigurationError, match=rf"^spec\.stages\.ppo\.rewards\.judge\.model: .*{said}"
    ):
        prepare(prepare_run(in_pod, {"ppo": ppo}))


def test_a_reward_model_that_reads_less_than_is_answered_is_found_before_training(
    in_pod: Pod,
) -> None:
    shutil.copytree(in_pod.model, "inputs/short")
    in_pod.paths["short"] = "inputs/short"
    config = json.loads(Path("inputs/short/config.json").read_text())
    Path("inputs/short/config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 64})
    )
    stage = every_stage(in_pod)["ppo"] | {"rewards": {"judge": {"model": {"source": "short"}}}}
    said = r"^spec\.stages\.ppo\.rewards\.judge\.model: .* it reads 64 at most: lower rollout"
    with pytest.raises(ConfigurationError, match=said):
        prepare(prepare_run(in_pod, {"ppo": stage}))


def test_a_folder_digest_covers_names_and_bytes_but_nothing_hidden(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d/a.jsonl", [{"x": 1}])
    write_jsonl(tmp_path / "d/sub/b.jsonl", [{"x": 2}])
    first = path_digest(tmp_path / "d")
    lines = [f"{n} {path_digest(tmp_path / 'd' / n)}\n" for n in ("a.jsonl", "sub/b.jsonl")]
    assert first == sha256("".join(lines).encode())
    (tmp_path / "d/.hidden").write_text("x")
    (tmp_path / "d/__pycache__").mkdir()
    (tmp_path / "d/__pycache__/x.pyc").write_text("x")
    assert path_digest(tmp_path / "d") == first
    (tmp_path / "d/a.jsonl").rename(tmp_path / "d/c.jsonl")
    assert path_digest(tmp_path / "d") != first


def test_a_stage_refuses_data_that_changed_since(in_pod: Pod) -> None:
    source = in_pod.data("sft", sft_rows())
    heldout = in_pod.data("heldout", sft_rows(4))
    stages = {"sft": {"data": {"source": source, "evalSource": heldout}}}
    checked = prepare(prepare_run(in_pod, stages)).sources
    run = in_pod.stage_run("sft", stages["sft"], sources=checked)
    refuse_changed_sources(run)
    in_pod.data("heldout", sft_rows(5))
    with pytest.raises(BadData, match=r"data/heldout\.jsonl \(spec\.stages\.sft\.data\) changed"):
        refuse_changed_sources(run)


def test_what_prepare_has_encoded_no_stage_encodes_again(
    in_pod: Pod, open_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = every_stage(in_pod)
    kto = {**stages["dpo"], "loss": "kto"}
    recipes: list[tuple[str, dict[str, Any], Any, str]] = [
        ("sft", stages["sft"], sft_recipe, "data"),
        ("reward", stages["reward"], preference_rows, "data"),
        ("dpo", stages["dpo"], preference_rows, "data"),
        ("ppo", stages["ppo"], prompt_rows, "data"),
        ("ppo", stages["ppo"], pretraining_rows, "pretraining.data"),
        ("dpo", kto, labelled_rows, "data"),
    ]
    checked = prepare(prepare_run(in_pod, stages)).sources
    opened = []
    for name, settings, recipe_of, part in recipes:
        run = in_pod.stage_run(name, settings, sources=checked)
        session, recipe = open_session(run), recipe_of(run.config)
        expected = recipe.rows(session.tokenizer, run.paths, run.seed)
        opened.append((session, recipe, part, expected))
    *others, last = opened
    with monkeypatch.context() as patch:
        patch.setattr("rlhf_trainer.data.stage_rows.encode_all", no_more)
        assert prepare(prepare_run(in_pod, stages)).sources == checked
        for session, recipe, part, expected in others:
            assert whole(session.rows(recipe, part)) == expected
    prepare(prepare_run(in_pod, {"dpo": kto}))
    monkeypatch.setattr("rlhf_trainer.data.stage_rows.encode_all", no_more)
    session, recipe, part, expected = last
    assert whole(session.rows(recipe, part)) == expected


def test_dialogues_that_scores_are_normalised_on_are_found_where_prepare_kept_them(
    in_pod: Pod, open_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_run(in_pod, every_stage(in_pod))
    checked, wanted = prepare(prepared).sources, Demonstrations.of(prepared.stages)
    assert wanted is not None
    run = in_pod.stage_run(
        "reward", every_stage(in_pod)["reward"], sources=checked, demonstrations=wanted.to_dict()
    )
    session = open_session(run)
    expected = demonstration_rows(wanted).rows(session.tokenizer, run.paths, run.seed).train
    assert len(expected) > 30
    monkeypatch.setattr("rlhf_trainer.data.load._load", no_more)
    found = reward.reference_queries(session, run.config, [])
    assert found == [reward.Query.of_demonstration(row) for row in expected]


def whole(rows: Loaded[Any]) -> Loaded[Any]:
    return rows._replace(train=[*rows.train], heldout=[*rows.heldout])


def test_training_on_rows_that_were_kept_is_the_same_to_the_last_bit(
    in_pod: Pod, open_session: Any
) -> None:
    settings = small_sft(in_pod, maxSteps=2)
    checked = prepare(prepare_run(in_pod, {"sft": settings})).sources
    runs = [
        in_pod.stage_run("sft", settings, digest=digest, sources=known)
        for digest, known in (("000000000001", {}), ("000000000002", checked))
    ]
    for run in runs:
        sft.train(open_session(run))
    first, second = ((in_pod.output(run) / "model.safetensors").read_bytes() for run in runs)
    assert first == second


def no_more(*_: Any) -> Any:
    raise AssertionError("rows are encoded again")


def test_a_started_stage_refuses_changed_data_with_exit_code_64(pod: Pod) -> None:
    settings = {"data": {"source": pod.data("sft", sft_rows())}}
    run = pod.stage_run("sft", settings, sources={"stages.sft.data": sha256(b"other")})
    codes, log = pod.forked(run)
    assert codes == [64], log
    assert pod.result()["reason"] == "BadData"
    assert "changed since it was checked" in pod.result()["message"]


def test_hub_data_is_fetched_once_by_split_and_read_back(
    in_pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    asked: list[tuple[Any, ...]] = []

    class Hub:
        def __init__(self, token: str | None) -> None:
            assert token is None

        def dataset_info(self, name: str, revision: str | None) -> Any:
            return type("Info", (), {"sha": "c0ffee"})()

    def load_dataset(
        name: str, configuration: str | None, *, split: str, revision: str, token: str | None
    ) -> Any:
        asked.append((name, configuration, split, revision))
        return datasets.Dataset.from_list([{"prompt": f"{split}问", "answer": "答"}] * 3)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    uri = "hf://owner/set/main"
    in_pod.paths[uri] = "checkpoints/sources/abc"
    data = {"source": uri, "revision": "v1", "evalSource": uri}
    run = prepare_run(in_pod, {"sft": {"data": data}})
    first = prepare(run)
    assert asked == [("owner/set", "main", s, "c0ffee") for s in ("test", "train")]
    assert prepare(run) == first
    assert len(asked) == 2
    about = json.loads(Path("checkpoints/sources/abc/fetched.json").read_text())
    assert (about["commit"], about["splits"]) == ("c0ffee", ["test", "train"])
    found = load_dialogues(DataSource.model_validate(data), in_pod.paths, 1)
    assert {row.messages[0].content for row in found.train} == {"train问"}
    assert {row.messages[0].content for row in found.heldout} == {"test问"}
    assert found.train[0].id == "part-00000.parquet:1"


def test_hub_models_are_pinned_to_their_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[Any] = []

    class Hub:
        def __init__(self, token: str | None) -> None:
            asked.append(token)

        def model_info(self, name: str, revision: str | None) -> Any:
            return type("Info", (), {"sha": "c0ffee"})()

    def snapshot_download(
        name: str, *, revision: str, local_dir: Path, token: str | None, **_: Any
    ) -> None:
        asked.append((name, revision, token))
        (local_dir / "config.json").write_text("{}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = ModelSource(source="hf://owner/model", revision="main")
    for _ in range(2):
        fetched.fetch_model(source, source.source, tmp_path / "model")
    assert asked == [None, ("owner/model", "c0ffee", None)]
    assert (tmp_path / "model/config.json").exists()


def test_a_hub_that_cannot_be_reached_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def refuse(error: Exception) -> None:
        class Hub:
            def __init__(self, token: str | None) -> None:
                pass

            def model_info(self, *_: Any, **__: Any) -> Any:
                raise error

        monkeypatch.setattr(huggingface_hub, "HfApi", Hub)

    source = ModelSource(source="hf://owner/model")
    refuse(ConnectionError("name or service not known"))
    with pytest.raises(Transient, match="hf://owner/model cannot be fetched now"):
        fetched.fetch_model(source, source.source, tmp_path / "m")
    refuse(type("RepositoryNotFoundError", (Exception,), {})("404"))
    with pytest.raises(ConfigurationError, match="hf://owner/model cannot be fetched"):
        fetched.fetch_model(source, source.source, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_one_address_at_two_revisions_is_refused(in_pod: Pod) -> None:
    stages = every_stage(in_pod)
    stages["sft"]["data"] = {"source": "hf://owner/set", "revision": "one"}
    stages["dpo"]["data"] = {"source": "hf://owner/set", "revision": "two"}
    said = r"spec\.stages\.dpo\.data: hf://owner/set is named with two revisions, one and two"
    with pytest.raises(ConfigurationError, match=said):
        prepare(prepare_run(in_pod, stages))


def test_a_models_revision_is_not_its_tokenizers() -> None:
    model = ModelSource(source="hf://a/model", revision="c0ffee", tokenizer="hf://b/tokenizer")
    assert fetched.revision_of(model, "hf://a/model") == "c0ffee"
    assert fetched.revision_of(model, "hf://b/tokenizer") is None


def test_only_remote_sources_are_fetched() -> None:
    assert [fetched.is_remote(uri) for uri in ("hf://a/b", "s3://a", "gs://a")] == [True] * 3
    assert not any(fetched.is_remote(uri) for uri in ("pvc://a/b", "oci://a", "data/a.jsonl"))
