"""Which process this is, and the collectives of a group of one."""

from __future__ import annotations

import pytest
import torch
from rlhf_trainer.ranks import Ranks, cpu_threads


def test_a_group_of_one_needs_no_launcher(ranks: Ranks) -> None:
    assert (ranks.rank, ranks.world_size, ranks.is_main) == (0, 1, True)
    assert torch.distributed.is_initialized()


def test_collectives_of_one_rank_are_the_identity() -> None:
    alone = Ranks()
    tensor = torch.tensor([1.0, 2.0])
    assert torch.equal(alone.sum(tensor), tensor)
    assert torch.equal(alone.max(tensor), tensor)
    assert alone.broadcast({"a": 1}) == {"a": 1}
    assert alone.gather_objects("x") == ["x"]
    assert alone.on_main(lambda: 3) == 3
    alone.barrier()


def test_what_fails_on_the_main_rank_is_raised() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Ranks().on_main(fail)


@pytest.mark.parametrize(
    ("env", "threads"),
    [
        ({}, 8),
        ({"LOCAL_WORLD_SIZE": "2"}, 4),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
        ({"OMP_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "2"}, 3),
        ({"OMP_NUM_THREADS": "many"}, 8),
    ],
)
def test_threads_are_the_users_number_or_an_equal_share(env: dict[str, str], threads: int) -> None:
    assert cpu_threads(env, 8) == threads
