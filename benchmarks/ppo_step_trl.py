"""The same work given to TRL (`trl.experimental.ppo`), for `ppo_step.py --versus trl`.

TRL steps its optimizer once in four minibatches here: with gradient accumulation, which is how it
reaches a batch of several minibatches, accelerate holds the other steps back. Ours steps each time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each update, and of the generation in it."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.updates: list[float] = []
        self.generations: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.updates.append(now - self.last)
        self.last = now

    def timed(self, generate: Any) -> Any:
        """The same function, timed."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = generate(*args, **kwargs)
            self.generations.append(time.perf_counter() - start)
            return result

        return wrapped


def run(options: argparse.Namespace, work: Any, folder: Path) -> dict[str, float]:
    """Medians over the measured updates."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    rows = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    clock = Clock()
    original = ppo_trainer.batch_generation
    ppo_trainer.batch_generation = clock.timed(original)
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy") for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1)
        for _ in range(2)
    )
    trainer = PPOTrainer(
        args=config(options, work, folder),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        callbacks=[clock],
    )
    clock.last = time.perf_counter()
    try:
        trainer.train()
    finally:
        ppo_trainer.batch_generation = original
    middle = statistics.median
    return {"seconds": middle(clock.updates[1:]), "generate": middle(clock.generations[1:])}


def config(options: argparse.Namespace, work: Any, folder: Path) -> PPOConfig:
    """The settings that make it the same work."""
    return PPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=not torch.cuda.is_available(),
        bf16=options.precision == "bf16",
        per_device_train_batch_size=options.minibatch,
        gradient_accumulation_steps=options.batch // options.minibatch,
        num_mini_batches=options.batch // options.minibatch,
        num_ppo_epochs=options.epochs,
        local_rollout_forward_batch_size=options.batch,
        response_length=work.max_new_tokens,
        stop_token="eos" if work.ends_by_itself else None,
        total_episodes=options.batch * (options.rollouts + 1),
        learning_rate=1e-6,
        temperature=1.0,
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
