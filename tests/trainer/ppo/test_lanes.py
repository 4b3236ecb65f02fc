"""Two pieces of training side by side: their cores, their errors, and not a bit of difference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_trainer.ppo import update as ppo_update
from rlhf_trainer.ppo.lanes import side_by_side
from rlhf_trainer.stages import ppo
from safetensors.torch import load_file
from torch import Tensor
from trainer_pod import pair_rows

WORDS = "def many(prompts, answers, rows):\n    return [float(len(set(a))) for a in answers]\n"


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's threads; they are as before when the test has ended."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "shares"), [(2, (1, 1)), (3, (2, 1)), (4, (2, 2))])
def test_each_has_its_share_of_the_cores_and_all_come_back(
    threads: Callable[[int], None], cores: int, shares: tuple[int, int]
) -> None:
    threads(cores)
    assert side_by_side(torch.get_num_threads, torch.get_num_threads) == shares
    assert torch.get_num_threads() == cores


def test_they_run_at_once(threads: Callable[[int], None]) -> None:
    threads(2)
    meeting = threading.Barrier(2, timeout=120)
    assert sorted(side_by_side(meeting.wait, meeting.wait)) == [0, 1]


def test_gradients_are_off_in_both_where_they_are_off_outside(
    threads: Callable[[int], None],
) -> None:
    threads(2)
    with torch.no_grad():
        assert side_by_side(torch.is_grad_enabled, torch.is_grad_enabled) == (False, False)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_is_raised_when_the_other_has_ended(
    threads: Callable[[int], None], failing: int
) -> None:
    threads(2)
    begun, ended = threading.Event(), threading.Event()

    def fails() -> None:
        begun.set()
        raise ValueError("not finite")

    def goes_on() -> None:
        assert begun.wait(120)
        ended.set()

    pieces = [goes_on, goes_on]
    pieces[failing] = fails
    with pytest.raises(ValueError, match="not finite"):
        side_by_side(*pieces)
    assert ended.is_set()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ppo_learns_the_same_bits_beside_each_other_as_one_after_the_other(
    in_pod: Any,
    open_session: Any,
    threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    threads(2)
    folder = in_pod.directory / "inputs" / "code"
    folder.mkdir()
    (folder / "lanes_reward.py").write_text(WORDS)
    in_pod.paths["code"] = "inputs/code"
    settings = {
        "data": {"source": in_pod.data("pairs", pair_rows()), "evalFraction": 0},
        "rollouts": 2,
        "globalBatchSize": 8,
        "minibatchSize": 4,
        "microBatchSize": 2,
        "precision": precision,
        "rewards": {"many": {"function": {"entrypoint": "lanes_reward:many", "source": "code"}}},
        "rollout": {"maxPromptLength": 64, "maxNewTokens": 8},
    }
    together: list[bool] = []

    def trained(digest: str, beside: Callable[..., Any]) -> dict[str, Tensor]:
        def counted(first: Callable[[], Any], second: Callable[[], Any]) -> Any:
            together.append(True)
            return beside(first, second)

        monkeypatch.setattr(ppo_update, "side_by_side", counted)
        run = in_pod.stage_run("ppo", settings, digest=digest)
        ppo.train(open_session(run))
        return weights(in_pod.output(run))

    def one_after_the_other(first: Callable[[], Any], second: Callable[[], Any]) -> Any:
        threads(1)
        results = first(), second()
        threads(2)
        return results

    beside = trained("a" * 12, side_by_side)
    alone = trained("b" * 12, one_after_the_other)
    assert len(together) == 4
    assert beside.keys() == alone.keys()
    assert all(torch.equal(beside[name], alone[name]) for name in beside)


def weights(output: Path) -> dict[str, Tensor]:
    """All tensors of a model in Hugging Face layout."""
    return {
        name: tensor
        for file in sorted(output.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
