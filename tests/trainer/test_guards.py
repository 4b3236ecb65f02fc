"""Numbers that are not finite, one roll-back, SIGTERM."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from forked import ForkedRun
from rlhf_api.run import ExitCode
from rlhf_trainer.errors import Diverged, NonFinite
from rlhf_trainer.guards import Guard, with_one_rollback
from rlhf_trainer.ranks import Ranks
from trainer_pod import free_port

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def guard() -> Guard:
    return Guard(Ranks())


def test_finite_numbers_pass(guard: Guard) -> None:
    guard.check_finite("loss", torch.tensor([1.0, -3e38]), step=1, row_ids=["a:1"])


@pytest.mark.parametrize(("value", "shown"), [(NAN, "nan"), (INF, "inf"), (-INF, "-inf")])
def test_the_message_names_tensor_value_step_and_rows(
    guard: Guard, value: float, shown: str
) -> None:
    with pytest.raises(NonFinite) as caught:
        guard.check_finite("ppo/kl", torch.tensor([1.0, value]), 12, ["a.jsonl:3", "a.jsonl:9"])
    error = caught.value
    assert str(error) == (f"ppo/kl is {shown} at step 13; rows of the batch: a.jsonl:3, a.jsonl:9")
    assert (error.name, error.step, error.row_ids) == ("ppo/kl", 12, ("a.jsonl:3", "a.jsonl:9"))


def test_within_a_batch_step_and_rows_are_known(guard: Guard) -> None:
    said = r"loss is nan at step 4; rows of the batch: r:1"
    with pytest.raises(NonFinite, match=said), guard.batch(3, ["r:1"]):
        guard.check_finite("loss", torch.tensor(NAN))
    said = r"gradient norm is inf at step 5; rows .*: r:2"
    with pytest.raises(NonFinite, match=said), guard.batch(4, ["r:2"]):
        raise NonFinite("gradient norm", value="inf")


def test_many_rows_are_cut() -> None:
    text = str(NonFinite("loss", row_ids=[f"r:{i}" for i in range(20)], step=1))
    assert text.endswith("r:15 and 4 more")


def test_a_fault_that_passes_is_healed_by_one_rollback() -> None:
    outcomes = iter([NonFinite("loss", step=5), "trained"])

    def train() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, NonFinite):
            raise outcome
        return outcome

    assert with_one_rollback(train) == "trained"


def test_a_fault_that_stays_ends_as_diverged() -> None:
    calls = []

    def train() -> None:
        calls.append(1)
        raise NonFinite("loss", step=5, row_ids=["a:1"])

    said = r"^loss is not finite at step 6; rows of the batch: a:1, again after a roll-back$"
    with pytest.raises(Diverged, match=said):
        with_one_rollback(train)
    assert len(calls) == 2
    assert Diverged.exit_code == ExitCode.DIVERGED == 66


def test_a_fault_that_moves_is_told_with_where_it_was_first() -> None:
    faults = iter([NonFinite("loss", step=5), NonFinite("gradient norm", step=7)])

    def train() -> None:
        raise next(faults)

    said = r"^gradient norm is .* at step 8 \(after a roll-back from: loss is .* at step 6\)$"
    with pytest.raises(Diverged, match=said):
        with_one_rollback(train)


def test_sigterm_sets_a_flag_and_no_more(guard: Guard) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        guard.listen()
        assert not guard.should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.should_stop()
    finally:
        signal.signal(signal.SIGTERM, before)


def disagree() -> int:
    """Only rank 1 sees a NaN, only rank 0 gets the signal, only rank 0 acts."""
    ranks = Ranks.start()
    guard = Guard(ranks)
    guard.signalled = ranks.is_main
    found = {"stop": guard.should_stop(), "sum": ranks.sum(torch.tensor(ranks.rank + 1.0)).item()}
    try:
        with guard.batch(3, ["both:1", f"rank{ranks.rank}:1"]):
            guard.check_finite("loss", torch.tensor(NAN if ranks.rank == 1 else 1.0))
    except NonFinite as error:
        found["error"] = str(error)
    try:
        ranks.on_main(lambda: 1 / 0)
    except ZeroDivisionError as error:
        found["main"] = str(error)
    Path(f"found-{ranks.rank}.json").write_text(json.dumps(found))
    ranks.stop()
    return 0


def test_ranks_agree_on_what_only_one_of_them_sees(tmp_path: Path) -> None:
    started = ForkedRun(tmp_path, 2, free_port(), disagree)
    assert started.wait() == [0, 0], started.log
    for rank in range(2):
        assert json.loads((tmp_path / f"found-{rank}.json").read_text()) == {
            "stop": True,
            "sum": 3.0,
            "error": "loss is nan at step 4; rows of the batch: both:1, rank0:1, rank1:1",
            "main": "division by zero",
        }
