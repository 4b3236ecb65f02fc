"""A critic that starts from a reward model speaks of the reward as PPO's returns have it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_trainer.models.scalar_models import load_scalar, save_scalar, scalar_from_trunk
from rlhf_trainer.models.scored_lm import token_batch
from rlhf_trainer.ppo.team import assemble_team
from trainer_pod import Pod

PROMPTS, RESPONSES = [[1, 40, 50], [1, 41]], [[60, 70, 2], [61, 71, 81, 91]]


@pytest.fixture
def reward_model(models: Any, tokenizer: Any, tmp_path: Path) -> Path:
    """A reward model with a fresh head, and statistics far from 0 and 1."""
    from transformers import AutoModel

    model = scalar_from_trunk(AutoModel.from_pretrained(models["llama"]), seed=3)
    save_scalar(model, tokenizer, tmp_path / "rm", {"mean": 6.0, "std": 4.0, "count": 9.0})
    return tmp_path / "rm"


@pytest.mark.parametrize("changes", [{}, {"normaliseRewards": False}, {"lora": {"rank": 2}}])
def test_a_critic_from_a_reward_model_has_its_scores_weighed_and_normalised(
    changes: dict[str, Any], reward_model: Path, in_pod: Pod, open_session: Any
) -> None:
    weights = reward_model / "model.safetensors"
    before = hashlib.sha256(weights.read_bytes()).digest()
    in_pod.paths["rm"] = str(reward_model)
    stage = {
        "data": {"source": in_pod.data("prompts", [{"prompt": "q"}])},
        "rewards": {"rm": {"model": {"source": "rm"}, "weight": 3.0}},
        "globalBatchSize": 2,
        "minibatchSize": 2,
        "microBatchSize": 2,
        **changes,
    }
    session = open_session(in_pod.stage_run("ppo", stage))
    team = assemble_team(session, session.config, 1)
    assert team.critic is not None
    raw = load_scalar(reward_model).eval()
    rows = zip(PROMPTS, RESPONSES, strict=True)
    with torch.no_grad():
        found = team.critic(token_batch(PROMPTS, RESPONSES, "cpu"))
        scores = [raw(torch.tensor([p + r]))[0, len(p) - 1 : -1] for p, r in rows]
    mean, std = (0.0, 1.0) if "normaliseRewards" in changes else (6.0, 4.0)
    expected = 3 * (torch.cat(scores) - mean) / std
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert hashlib.sha256(weights.read_bytes()).digest() == before
