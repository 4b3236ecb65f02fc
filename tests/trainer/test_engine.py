"""DeepSpeed as the engine: schedule, groups, clipping, accumulation, ZeRO 0 to 3, save and load."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_curve import curve, ids, make_engine, settings, weights
from forked import ForkedRun
from rlhf_api.stages.common import Schedule
from rlhf_trainer.engine import parameter_groups, schedule_factor
from rlhf_trainer.errors import ConfigurationError, NonFinite
from torch import nn
from trainer_pod import free_port


def factors(total: int, **fields: Any) -> list[float]:
    return [schedule_factor(Schedule(**fields), step, total) for step in range(total)]


def test_warm_up_rises_linearly_to_the_peak_and_cosine_ends_at_the_minimum() -> None:
    found = factors(9, type="cosine", warmup_ratio=0.3, min_ratio=0.1)
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(7)]
    assert found == pytest.approx([1 / 3, 2 / 3, *cosine], abs=1e-12)


def test_linear_and_constant_schedules() -> None:
    assert factors(5, type="linear", warmup_ratio=0, min_ratio=0) == pytest.approx(
        [1, 0.75, 0.5, 0.25, 0], abs=1e-12
    )
    assert factors(4, type="constant", warmup_ratio=0.5, min_ratio=0.1) == [0.5, 1, 1, 1]
    assert factors(1, type="cosine", warmup_ratio=0.03) == [1.0]


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    model[1].bias.requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert groups[0]["params"] == [model[0].weight]
    assert [p.shape for p in groups[1]["params"]] == [(2,), (2,)]


def test_a_model_without_trainable_parameters_is_refused() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no trainable parameters"):
        parameter_groups(model.named_parameters(), 0.0)


def test_engine_steps_as_torch_adamw_does(models: Mapping[str, Path], ranks: Any) -> None:
    """Against a plain torch loop: clipping, weight decay, accumulation, schedule."""
    from transformers import AutoModelForCausalLM

    engine = make_engine(models["llama"], ranks, 0)
    found = curve(engine, steps=4)
    plain = AutoModelForCausalLM.from_pretrained(models["llama"])
    chosen = settings(0)
    optimizer = torch.optim.AdamW(
        parameter_groups(plain.named_parameters(), chosen.weight_decay),
        betas=(chosen.adam_beta1, chosen.adam_beta2),
        eps=chosen.adam_epsilon,
    )
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = chosen.learning_rate * schedule_factor(chosen.schedule, step, 8)
        loss = plain(input_ids=ids(), labels=ids()).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), chosen.max_grad_norm)
        assert found[step] == pytest.approx([float(loss.detach()), float(norm)], abs=2e-5)
        assert float(norm) > chosen.max_grad_norm  # or clipping would not be seen
        optimizer.step()
        optimizer.zero_grad()
    ours = engine.module.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_saved_state_goes_on_bit_for_bit(
    stage: int, models: Mapping[str, Path], ranks: Any, tmp_path: Path
) -> None:
    engine = make_engine(models["llama"], ranks, stage)
    curve(engine, steps=2)
    engine.save(tmp_path / "engine")
    expected = curve(engine, steps=3)
    again = make_engine(models["llama"], ranks, stage)
    again.load(tmp_path / "engine")
    assert again.steps_done == 2
    assert curve(again, steps=3) == expected
    after = weights(again)
    assert all(torch.equal(value, after[name]) for name, value in weights(engine).items())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(
    stage: int, models: Mapping[str, Path], ranks: Any
) -> None:
    engine = make_engine(models["llama"], ranks, stage)
    curve(engine, steps=1)
    before = {name: value.clone() for name, value in weights(engine).items()}
    engine.backward(engine(input_ids=ids(), labels=ids()).loss * float("nan"), last=True)
    with pytest.raises(NonFinite, match="gradient norm"):
        engine.step()
    after = weights(engine)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_that_does_not_decay_leaves_weights_without_a_gradient_alone(
    stage: int, models: Mapping[str, Path], ranks: Any
) -> None:
    engine = make_engine(models["llama"], ranks, stage)
    seen = [weights(engine)]
    for decays in (False, True):
        engine.backward(engine(input_ids=ids(), labels=ids()).loss * 0, last=True)
        engine.step(decays=decays)
        seen.append(weights(engine))
    changed = [{n for n in a if not torch.equal(a[n], b[n])} for a, b in itertools.pairwise(seen)]
    assert changed[0] == set()
    assert changed[1] == {name for name, weight in seen[0].items() if weight.dim() > 1}


def test_bf16_keeps_fp32_masters_and_follows_the_fp32_curve(
    models: Mapping[str, Path], ranks: Any
) -> None:
    fine = curve(make_engine(models["llama"], ranks, 0), steps=6)
    coarse = curve(make_engine(models["llama"], ranks, 0, precision="bf16"), steps=6)
    assert coarse != fine
    for (a, _), (b, _) in zip(coarse, fine, strict=True):
        assert a == pytest.approx(b, rel=0.01)


def test_zero3_generates_within_gathered_and_trains_on(
    models: Mapping[str, Path], ranks: Any
) -> None:
    whole, parted = (make_engine(models["llama"], ranks, stage) for stage in (0, 3))
    answers = []
    for engine in (whole, parted):
        curve(engine, steps=2)
        with engine.gathered():
            answers.append(engine.module.generate(ids()[:2], max_new_tokens=4, do_sample=False))
    assert torch.equal(answers[0], answers[1])
    assert curve(parted, steps=1)[0] == pytest.approx(curve(whole, steps=1)[0], abs=1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_optimizer_in_the_hosts_memory_takes_the_same_steps(
    stage: int, models: Mapping[str, Path], ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed is told what it is told on a GPU, and keeps the books as there: of gradients of
    several micro-batches, in the host's memory between them."""
    from rlhf_trainer import engine as engines

    expected = curve(make_engine(models["llama"], ranks, stage, "bf16"), steps=4)
    asked, on_a_gpu = engines._offload, SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(
        engines, "_offload", lambda chosen, stage, _: asked(chosen, stage, on_a_gpu)
    )
    found = curve(make_engine(models["llama"], ranks, stage, "bf16", "cpu"), steps=4)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def write_other_weights() -> int:
    """The body of a forked rank: all weights 3, as written after a step under ZeRO-3."""
    from rlhf_trainer.models.actor_critic import copy_weights, weights_replaced
    from rlhf_trainer.models.whole_weights import merged_state_dict
    from rlhf_trainer.ranks import Ranks

    ranks = Ranks.start()
    engine = make_engine(Path("model"), ranks, 3)
    curve(engine, steps=1)
    own = copy_weights(engine.module)
    others = {name: torch.full_like(w, 3) for name, w in own.items()}
    with weights_replaced(engine, others):
        written = merged_state_dict(engine.module)
    after = copy_weights(engine.module)
    ranks.stop()
    assert [name for name, w in written.items() if not bool((w == 3).all())] == []
    assert [name for name, w in after.items() if not torch.equal(w, own[name])] == []
    return 0


def test_an_average_is_written_whole_by_ranks_that_keep_small_parameters_gathered(
    models: Mapping[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(models["llama"])
    started = ForkedRun(tmp_path, 2, free_port(), write_other_weights)
    assert started.wait() == [0, 0], started.log


def test_ranks_meet_before_a_frozen_model_is_partitioned(
    ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are read from a slow disk, and DeepSpeed's collectives do not wait for long."""
    import deepspeed
    from rlhf_trainer.models.actor_critic import frozen

    order: list[str] = []

    def initialize(model: nn.Module, **_: Any) -> tuple[nn.Module]:
        order.append("initialize")
        return (model,)

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    monkeypatch.setattr(type(ranks), "barrier", lambda _: order.append("barrier"))
    frozen(nn.Linear(2, 2), settings(3), ranks)
    assert order == ["barrier", "initialize"]


def test_deepspeed_saves_and_loads_where_ranks_wait_for_slow_disks(
    models: Mapping[str, Path], ranks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    @contextmanager
    def patient(_: Any) -> Iterator[None]:
        order.append("patient")
        yield
        order.append("as ever")

    monkeypatch.setattr(type(ranks), "patient", patient, raising=False)
    monkeypatch.setattr(type(ranks), "barrier", lambda _: order.append("barrier"))
    engine = make_engine(models["llama"], ranks, 0)
    order.clear()
    for name in ("save", "load"):
        told = lambda *_, _name=name, **__: order.append(_name)  # noqa: E731
        monkeypatch.setattr(engine._engine, f"{name}_checkpoint", told)
    engine.save(tmp_path / "engine")
    engine.load(tmp_path / "engine")
    assert order == ["patient", "save", "as ever", "patient", "load", "as ever", "barrier"]


@pytest.mark.slow
def test_two_ranks_follow_the_curve_of_one_under_zero_0_to_3(
    models: Mapping[str, Path], ranks: Any, tmp_path: Path
) -> None:
    """Micro-batches differ by rank, in rows and tokens; the token mean is over the whole batch."""
    out = tmp_path / "curves.json"
    worker = Path(__file__).with_name("engine_curve.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", str(worker), str(models["llama"]), str(out)]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    one = curve(make_engine(models["llama"], ranks, 0), steps=5)
    for stage, two in json.loads(out.read_text()).items():
        for found, expected in zip(two, one, strict=True):
            assert found == pytest.approx(expected, abs=5e-5), f"ZeRO-{stage}"
