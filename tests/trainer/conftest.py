"""Fixtures of the trainer's tests: tiny models, pods, a process group of one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from rlhf_api.run import StageRun
from trainer_pod import TINY, Pod, write_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A directory with a tiny model for each family."""
    top = tmp_path_factory.mktemp("models")
    return {family: write_model(top / family, family) for family in TINY}


@pytest.fixture(scope="session")
def tokenizer(models: Mapping[str, Path]) -> Any:
    """The tiny tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models["llama"])


@pytest.fixture
def pod(tmp_path: Path, models: Mapping[str, Path]) -> Pod:
    """A pod with the tiny Llama as its base model."""
    return Pod(tmp_path, models["llama"])


@pytest.fixture
def in_pod(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> Pod:
    """The same, with this process in its working directory."""
    monkeypatch.chdir(pod.directory)
    return pod


@pytest.fixture(scope="session")
def ranks() -> Iterator[Any]:
    """A process group of one, for tests that make engines in this process."""
    from rlhf_trainer.quiet import silence_libraries
    from rlhf_trainer.ranks import Ranks

    silence_libraries()
    started = Ranks.start()
    yield started
    started.stop()


@pytest.fixture
def open_session(in_pod: Pod, ranks: Any) -> Iterator[Any]:
    """Opens a Session on the shared process group, for stages that are trained in this process."""
    from rlhf_trainer.checkpoints.checkpoint import Checkpointer
    from rlhf_trainer.checkpoints.disk import SharedDisk
    from rlhf_trainer.guards import Guard
    from rlhf_trainer.models.tokenizers import load_tokenizer
    from rlhf_trainer.session import Session, seed_everything
    from rlhf_trainer.telemetry import Telemetry

    opened = []

    def open_one(run: StageRun) -> Session:
        seed_everything(run.seed)
        session = Session(
            run=run,
            ranks=ranks,
            tokenizer=load_tokenizer(run),
            telemetry=Telemetry(run, ranks, {}),
            checkpointer=Checkpointer(run, ranks, run.config.checkpointing.keep, SharedDisk(ranks)),
            guard=Guard(ranks),
        )
        opened.append(session)
        return session

    yield open_one
    for session in opened:
        session.telemetry.close()
