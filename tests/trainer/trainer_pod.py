"""Tiny models, a tokenizer and stage files that the trainer's tests share; no downloads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from cluster.programs import free_ports
from forked import ForkedRun
from rlhf_api.run import StageRun

SPECIALS = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
VOCABULARY = 320
TINY: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024},
    "qwen2": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024},
    "mistral": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None,
                "max_position_embeddings": 1024},
    "gpt2": {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 128},
}  # fmt: skip
MIXTURE: dict[str, Any] = {**TINY["mistral"], "num_local_experts": 2, "num_experts_per_tok": 1}


IDS = torch.tensor([[1, 40, 50, 60, 70], [1, 41, 51, 61, 71]])
"""Two rows of tokens that every tiny model knows."""


def logits(model: Any) -> torch.Tensor:
    """What a model says of IDS."""
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those of its parameters by name, which it then has no more."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE tokenizer with few merges: any text, Chinese too, comes back whole."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the colour of a lemon is yellow", "你好，在哪里"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)


def write_model(directory: Path, family: str = "llama", **settings: Any) -> Path:
    """A randomly initialised model of a family, with the tokenizer beside it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        **{**TINY.get(family, {}), **settings},
        vocab_size=VOCABULARY,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


COLOURS = ["red", "blue", "green", "黄色", "black", "white", "白い", "grey"]
THINGS = ["lemon", "sky", "leaf", "香蕉", "night", "snow", "house", "stone", "door", "cat"]


def sft_rows(count: int = 40) -> list[dict[str, str]]:
    """Short questions and answers of different lengths."""
    return [
        {
            "prompt": f"{i}: what colour has a {THINGS[i % 10]}?",
            "answer": f"It is {COLOURS[i % 8]}" + " indeed" * (i % 5),
        }
        for i in range(count)
    ]


def pair_rows(count: int = 24) -> list[dict[str, str]]:
    """Pairs whose chosen answer is the short one."""
    return [
        {
            "query": f"{i}: what colour has a {THINGS[i % 10]}?",
            "chosen": f"{COLOURS[i % 8]}.",
            "rejected": f"{COLOURS[i % 8]}, and {COLOURS[(i + 3) % 8]}, I think",
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSONL, in UTF-8 as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def small_sft(pod: Pod, **changes: Any) -> dict[str, Any]:
    """Settings of SFT on those rows, but for its length."""
    return {
        "data": {"source": pod.data("sft", sft_rows()), "evalFraction": 0.2},
        "globalBatchSize": 8,
        "microBatchSize": 2,
        "maxLength": 96,
        "learningRate": 1e-2,
        **changes,
    }


class Pod:
    """A pod's working directory as local runs lay it out, and the processes that run in it."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory, self.model = directory, model
        for name in ("config", "checkpoints", "inputs", "termination", "tmp"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self.paths: dict[str, str] = {"model": str(model)}

    def data(self, name: str, rows: list[dict[str, Any]]) -> str:
        """Mount rows as a source; gives the source's name in the manifest."""
        source = f"data/{name}.jsonl"
        write_jsonl(self.directory / "inputs" / f"{name}.jsonl", rows)
        self.paths[source] = f"inputs/{name}.jsonl"
        return source

    def stage_run(
        self,
        stage: str,
        settings: Mapping[str, Any],
        *,
        attempt: int = 1,
        digest: str = "0123456789ab",
        **changes: Any,
    ) -> StageRun:
        """The stage file of one attempt; another `digest` is another input hash and lineage."""
        lineage = f"checkpoints/job/{stage}-{digest}"
        fields: dict[str, Any] = {
            "job": {"name": "job", "namespace": "default", "uid": "uid-1"},
            "stage": stage,
            "attempt": attempt,
            "hash": f"sha256:{digest}",
            "seed": 7,
            "model": {"source": "model"},
            "stages": {stage: dict(settings)},
            "inputs": {role: {"path": str(self.model)} for role in ("base", "policy")},
            "paths": self.paths,
            "lineage": lineage,
            "output": f"{lineage}/attempt-{attempt}",
        }
        return StageRun.model_validate(fields | changes)

    def write(self, run: StageRun) -> Path:
        """Write the stage file where a pod finds it."""
        path = self.directory / "config" / "stage.yaml"
        path.write_text(yaml.safe_dump(run.to_dict(), allow_unicode=True), "utf-8")
        return path

    def start(self, run: StageRun, ranks: int = 1, **environment: str) -> subprocess.Popen[str]:
        """Start the stage's processes, as the pod's command does."""
        self.write(run)
        (self.directory / "termination" / "message.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "rlhf_trainer", "launch", "--nproc-per-node", str(ranks)]
        command += ["--master-port", str(free_port()), "config/stage.yaml"]
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, run: StageRun, ranks: int = 1, **environment: str) -> tuple[int, str]:
        """Run the stage to its end: (exit code, log)."""
        process = self.start(run, ranks, **environment)
        log, _ = process.communicate(timeout=600)
        return process.returncode, log

    def fork(self, run: StageRun, ranks: int = 1, *others: Path) -> ForkedRun:
        """Start the ranks as forks: seconds faster than `start`, without the launcher.

        `others` are the directories of further nodes, with as many ranks each.
        """
        self.write(run)
        (self.directory / "termination" / "message.json").unlink(missing_ok=True)
        return ForkedRun(self.directory, ranks, free_port(), None, *others)

    def forked(self, run: StageRun, ranks: int = 1) -> tuple[list[int | None], str]:
        """Run the stage to its end in forks: (exit code of each rank, log)."""
        started = self.fork(run, ranks)
        return started.wait(), started.log

    def result(self) -> dict[str, Any]:
        """The termination message."""
        file = self.directory / "termination" / "message.json"
        message: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return message

    def metrics(self, run: StageRun) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        text = (self.directory / run.output / "metrics.jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def output(self, run: StageRun) -> Path:
        """What the stage handed on."""
        return self.directory / run.output / "output"


def free_port() -> int:
    """A port that nobody listens on."""
    return free_ports(1)[0]
