"""Supervised fine-tuning end to end: what it learns, writes, says and refuses."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rlhf_api.run import PEER_LOST
from rlhf_api.stages import SFTStage
from rlhf_trainer.checkpoints.vouched import verify
from rlhf_trainer.data.digests import path_digest
from rlhf_trainer.data.encode import Encoded
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.sequences import pack_rows
from rlhf_trainer.stages import sft
from trainer_pod import TINY, Pod, sft_rows, small_sft


def settings(pod: Pod, **changes: Any) -> dict[str, Any]:
    return small_sft(pod, **{"maxSteps": 6, "epochs": 4, **changes})


def losses(pod: Pod, run: Any) -> list[float]:
    found = {m["step"]: m["metrics"].get("train/loss") for m in pod.metrics(run)[::-1]}
    return [value for _, value in sorted(found.items()) if value is not None]


class Looked(list[Encoded]):
    """Rows that count how many of them were looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Encoded]:
        return (self[index] for index in range(len(self)))


def test_a_step_looks_at_its_own_rows_alone_however_many_there_are() -> None:
    config = SFTStage(data={"source": "a"}, global_batch_size=4, micro_batch_size=2)
    tokenizer, run = SimpleNamespace(eos_token_id=0), SimpleNamespace(seed=7)
    session = SimpleNamespace(ranks=Ranks(), run=run, tokenizer=tokenizer)
    rows = Looked([Encoded(f"a:{n}", [1, 2, 3], [0, 1, 1]) for n in range(1000)])
    task = sft.SFTTask(session, config, rows, [], 9, True)
    rows.looks = 0
    assert len(task.batch(3).row_ids) == 4
    assert rows.looks <= 3 * 4


@pytest.mark.parametrize("family", TINY)
def test_each_family_trains_and_its_output_loads(
    family: str, models: Mapping[str, Path], in_pod: Pod, open_session: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    inputs = {role: {"path": str(models[family])} for role in ("base", "policy")}
    run = in_pod.stage_run("sft", settings(in_pod), inputs=inputs)
    result = sft.train(open_session(run))
    assert (result.exit_code, result.step) == (0, 6)
    curve = losses(in_pod, run)
    assert len(curve) == 6
    assert curve[-1] < curve[0] - 1
    output = in_pod.output(run)
    loaded = AutoModelForCausalLM.from_pretrained(output)
    before = AutoModelForCausalLM.from_pretrained(models[family])
    text = AutoTokenizer.from_pretrained(output)("It is red", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert loaded(text, labels=text).loss < before(text, labels=text).loss - 0.5
    assert result.checkpoint is not None
    verify(output, result.checkpoint.digest)
    for file in output.iterdir():  # nothing of this machine leaks
        content = file.read_bytes()
        assert str(in_pod.directory).encode() not in content, file
        assert str(models[family]).encode() not in content, file
        assert b"rlhf_segments" not in content, file


def test_packing_micro_batches_and_zero_do_not_change_the_curve(
    in_pod: Pod, open_session: Any
) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"packing": False},
        {"microBatchSize": 8},
        {"zero": {"stage": 2}},
        {"gradientCheckpointing": True},
    ]
    curves = []
    for number, changes in enumerate(variants):
        run = in_pod.stage_run("sft", settings(in_pod, **changes), digest=f"{number:012d}")
        sft.train(open_session(run))
        curves.append(losses(in_pod, run))
    assert all(curve == pytest.approx(curves[0], abs=2e-4) for curve in curves[1:])


def test_neither_packing_nor_micro_batches_change_the_noise_of_neftune(
    in_pod: Pod, open_session: Any
) -> None:
    noise = {"neftuneNoiseAlpha": 10.0}
    variants: list[dict[str, Any]] = [
        {},
        noise,
        noise | {"packing": False, "microBatchSize": 8},
        noise
        | {"gradientCheckpointing": True, "lora": {"rank": 2, "targetModules": ["embed_tokens"]}},
        {"neftuneNoiseAlpha": 20.0},
    ]
    curves = []
    for number, changes in enumerate(variants):
        chosen = settings(in_pod, **changes, maxSteps=2)
        run = in_pod.stage_run("sft", chosen, digest=f"{number:012d}")
        sft.train(open_session(run))
        curves.append(losses(in_pod, run))
    plain, noisy, padded, adapted, more = curves
    assert padded == pytest.approx(noisy, abs=2e-4)
    assert adapted[0] == pytest.approx(noisy[0], abs=2e-4)  # an adapter starts at 0
    assert len({round(curve[0], 4) for curve in (plain, noisy, more)}) == 3


def test_lora_trains_adapters_alone_and_merges_them(in_pod: Pod, open_session: Any) -> None:
    from safetensors.torch import load_file

    run = in_pod.stage_run("sft", settings(in_pod, lora={"rank": 4, "targetModules": ["q_proj"]}))
    sft.train(open_session(run))
    before = load_file(in_pod.model / "model.safetensors")
    after = load_file(in_pod.output(run) / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("q_proj" in name for name in changed)


def test_the_best_weights_on_held_out_rows_are_handed_on(in_pod: Pod, open_session: Any) -> None:
    """A rate that makes the model worse and worse: the best evaluation is an early one."""
    wild = settings(
        in_pod,
        learningRate=0.5,
        schedule={"type": "constant", "warmupRatio": 0},
        evalEverySteps=1,
    )
    run = in_pod.stage_run("sft", wild)
    result = sft.train(open_session(run))
    evaluated = {m["step"]: m["metrics"]["eval/loss"] for m in in_pod.metrics(run)[:-1]}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert best < 6
    assert result.metrics["eval/loss"] == evaluated[best]
    kept = Path(run.output) / f"best/step-{best:08d}/model.safetensors"
    output = in_pod.output(run) / "model.safetensors"
    assert kept.read_bytes() == output.read_bytes()

    last = in_pod.stage_run("sft", wild | {"keepBest": False}, digest="222222222222")
    result = sft.train(open_session(last))
    assert result.metrics["eval/loss"] == pytest.approx(evaluated[6], rel=1e-5)


def test_where_the_best_weights_are_damaged_the_last_ones_are_handed_on_with_their_own_metrics(
    in_pod: Pod, open_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = settings(in_pod, learningRate=0.5, schedule={"type": "constant"}, evalEverySteps=1)
    run = in_pod.stage_run("sft", wild)
    session = open_session(run)
    find = session.checkpointer.kept_weights

    def damaged(step: int) -> Path | None:
        for weights in Path(run.output).glob("best/*/model.safetensors"):
            weights.write_bytes(b"damaged")
        found: Path | None = find(step)
        return found

    monkeypatch.setattr(session.checkpointer, "kept_weights", damaged)
    result = sft.train(session)
    evaluated = {m["step"]: m["metrics"]["eval/loss"] for m in in_pod.metrics(run)[:-1]}
    assert min(evaluated.values()) < evaluated[6] - 0.1
    assert result.metrics["eval/loss"] == pytest.approx(evaluated[6], rel=1e-5)


def test_held_out_rows_are_laid_out_one_micro_batch_at_a_time(
    in_pod: Pod, open_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, those of a large data set would fill a GPU."""
    laid, seen = [], []

    def laying(rows: Any, device: Any) -> Any:
        laid.append(rows)
        return pack_rows(rows, device)

    class Untrained:
        module = torch.nn.Identity()

        def __call__(self, batch: Any, figures: Any) -> Any:
            seen.append(len(laid))
            return torch.zeros(len(batch.targets)), torch.zeros(len(batch.targets))

    session = open_session(in_pod.stage_run("sft", settings(in_pod)))
    rows = [Encoded(f"a:{i}", [1, 2, 3] * 20, [True] * 60) for i in range(12)]
    monkeypatch.setattr(sft, "pack_rows", laying)
    task = sft.SFTTask(session, session.config, rows, rows, 1, is_packable=True)
    task.evaluate(Untrained())
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > 3


def test_accuracy_and_loss_are_those_of_the_held_out_rows(in_pod: Pod, open_session: Any) -> None:
    """Against transformers' own loss, row by row, in the output that was handed on."""
    from rlhf_trainer.data.stage_rows import sft_rows as read
    from transformers import AutoModelForCausalLM

    run = in_pod.stage_run("sft", settings(in_pod))
    session = open_session(run)
    result = sft.train(session)
    rows = read(session.config).rows(session.tokenizer, run.paths, run.seed).heldout
    model = AutoModelForCausalLM.from_pretrained(in_pod.output(run)).eval()
    total, right, count = 0.0, 0, 0
    for row in rows:
        ids = torch.tensor([row.tokens])
        labels = ids.where(torch.tensor([list(row.loss_mask)]).bool(), -100)
        with torch.no_grad():
            out = model(ids, labels=labels)
        wanted = labels[0, 1:] != -100
        total += float(out.loss) * int(wanted.sum())
        right += int((out.logits[0, :-1].argmax(-1) == ids[0, 1:])[wanted].sum())
        count += int(wanted.sum())
    assert result.metrics["eval/loss"] == pytest.approx(total / count, abs=1e-5)
    assert result.metrics["eval/accuracy"] == pytest.approx(right / count, abs=1e-6)


def test_two_processes_give_the_curve_of_one_and_say_nothing_else(pod: Pod) -> None:
    chosen = settings(pod, zero={"stage": 2}, neftuneNoiseAlpha=10.0)
    one = pod.stage_run("sft", chosen)
    data = {"stages.sft.data": path_digest(pod.directory / "inputs/sft.jsonl")}
    two = pod.stage_run("sft", chosen, digest="222222222222", sources=data)
    for run, ranks in ((one, 1), (two, 2)):
        codes, log = pod.forked(run, ranks)
        assert codes == [0] * ranks, log
        assert all(line.startswith("sft  step") for line in log.splitlines()), log
    assert (pod.directory / "checkpoints/job/rows/stages.sft.data/encoded").is_file()
    assert losses(pod, two) == pytest.approx(losses(pod, one), abs=1e-5)


def with_nan(pod: Pod) -> None:
    """A base model with one weight that is not a number."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(pod.model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    AutoTokenizer.from_pretrained(pod.model).save_pretrained(pod.directory / "nan")
    pod.model = pod.directory / "nan"
    model.save_pretrained(pod.model)


def test_numbers_that_are_not_finite_roll_back_once_and_exit_66(pod: Pod) -> None:
    with_nan(pod)
    run = pod.stage_run("sft", settings(pod))
    codes, log = pod.forked(run)
    assert codes == [66], log
    result = pod.result()
    assert (result["exitCode"], result["reason"], result["step"]) == (66, "Diverged", 0)
    assert "train/loss is nan at step 1; rows of the batch: sft.jsonl:" in result["message"]
    assert log.count("rolling back") == 1
    assert "Traceback" not in log
    assert not list((pod.directory / run.output).glob("steps/step-*"))
    assert not pod.output(run).exists()


LONG: dict[str, Any] = {
    "maxSteps": 80,
    "epochs": 1000,
    "checkpointing": {"everySteps": 1000},
}


def wait_for_step(pod: Pod, run: Any, step: int) -> None:
    file = pod.directory / run.output / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (file.exists() and file.read_text().count("\n") >= step):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_saved(pod: Pod, run: Any) -> int:
    """The one checkpoint is that of the termination message: its step."""
    result = pod.result()
    assert (result["exitCode"], result["reason"]) == (143, "Terminated")
    names = [p.name for p in (pod.directory / run.output / "steps").iterdir()]
    step: int = result["step"]
    assert names == [f"step-{step:08d}"]
    return step


@pytest.mark.slow
def test_sigterm_to_one_rank_saves_on_all_and_the_next_attempt_goes_on(pod: Pod) -> None:
    chosen = settings(pod, **LONG)
    run = pod.stage_run("sft", chosen)
    started = pod.fork(run, ranks=2)
    wait_for_step(pod, run, 5)
    started.terminate()
    assert started.wait() == [143, 143], started.log
    saved = assert_saved(pod, run)
    assert "Traceback" not in started.log
    again = pod.stage_run("sft", chosen, attempt=2)
    codes, log = pod.forked(again, ranks=2)
    assert codes == [0, 0], log
    assert f"going on from step {saved}" in log
    assert pod.metrics(again)[0]["step"] == saved + 1


@pytest.mark.slow
def test_a_lost_rank_ends_the_others_as_transient(pod: Pod) -> None:
    run = pod.stage_run("sft", settings(pod, **LONG | {"maxSteps": 10_000}))
    started = pod.fork(run, ranks=2)
    wait_for_step(pod, run, 3)
    started.processes[1].kill()
    assert started.wait() == [75, -9], started.log
    assert pod.result()["reason"] == PEER_LOST
    assert "another rank was lost" in pod.result()["message"]
    assert "Traceback" not in started.log


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_launcher_passes_sigterm_on_and_gives_the_trainers_exit_code(
    ranks: int, pod: Pod
) -> None:
    run = pod.stage_run("sft", settings(pod, **LONG | {"maxSteps": 10_000}))
    process = pod.start(run, ranks)
    wait_for_step(pod, run, 5)
    process.send_signal(signal.SIGTERM)
    log, _ = process.communicate(timeout=300)
    assert process.returncode == 143, log
    assert_saved(pod, run)
    assert "Traceback" not in log


def test_bad_rows_end_with_64_and_a_message_that_names_them(pod: Pod) -> None:
    bad = settings(pod)
    rows: list[Any] = [*sft_rows(3), {"prompt": "no answer"}]
    bad["data"] = {"source": pod.data("bad", rows)}
    codes, log = pod.forked(pod.stage_run("sft", bad))
    assert codes == [64], log
    result = pod.result()
    assert result["reason"] == "BadData"
    assert "bad.jsonl:4" in result["message"]
    assert "Traceback" not in log


def test_a_stage_file_that_is_wrong_ends_with_64(pod: Pod) -> None:
    file = pod.write(pod.stage_run("sft", settings(pod)))
    file.write_text(file.read_text().replace("attempt: 1", "attempt: none", 1))
    command = [sys.executable, "-m", "rlhf_trainer", "run", "config/stage.yaml"]
    done = subprocess.run(command, cwd=pod.directory, capture_output=True, text=True)
    assert done.returncode == 64
    assert "config/stage.yaml: attempt" in pod.result()["message"]
    assert "Traceback" not in done.stderr


def test_rows_that_are_left_out_are_listed(in_pod: Pod, open_session: Any) -> None:
    rows: list[Any] = [*sft_rows(), {"prompt": "no answer"}]
    chosen = settings(in_pod)
    chosen["data"] = {
        "source": in_pod.data("some", rows),
        "onError": "skip",
        "maxSkippedFraction": 0.1,
    }
    run = in_pod.stage_run("sft", chosen)
    sft.train(open_session(run))
    about = json.loads((Path(run.output) / "data.json").read_text())
    assert [(row["file"], row["line"]) for row in about["leftOut"]] == [("some.jsonl", 41)]


def test_tensorboard_gets_the_same_figures(in_pod: Pod, open_session: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    run = in_pod.stage_run("sft", settings(in_pod))
    session = open_session(run)
    sft.train(session)
    session.telemetry.close()
    events = EventAccumulator(str(Path(run.output) / "tensorboard"))
    events.Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert [value for _, value in scalars] == pytest.approx(losses(in_pod, run), rel=1e-6)
    assert [step for step, _ in scalars] == [1, 2, 3, 4, 5, 6]
