"""Forward and backward pass of answers to prompts, as the reward model and DPO make them: once with
a prompt that all of its answers share, once with a prompt for each answer that no other has.

    python benchmarks/preference_step.py
    python benchmarks/preference_step.py --prompt-tokens 512 --answer-tokens 256 --answers 4
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from rlhf_trainer.data.answer_rows import AnswerRow, AnswerRows, pack_answers
from rlhf_trainer.data.encode import Answer
from rlhf_trainer.models.scored_lm import ScoredLM, TokenBatch


def main() -> None:
    """Measure by turns, and print the fastest of each."""
    options = parsed()
    model = ScoredLM(language_model(options))
    batches = {shared: batch(options, shared) for shared in (False, True)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.repeats):
        for shared, rows in batches.items():
            start = time.perf_counter()
            pass_through(model, rows)
            seconds[shared].append(time.perf_counter() - start)
    for shared, rows in batches.items():
        tokens = rows.packed.input_ids.shape[1]
        name = "a prompt for all answers" if shared else "a prompt for each answer"
        print(f"{name}: {min(seconds[shared]):.2f} s, {tokens} tokens")
    print(f"{min(seconds[False]) / min(seconds[True]):.2f} times as fast")


def parsed() -> argparse.Namespace:
    """Model and lengths."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = options.add_argument
    add("--layers", type=int, default=6)
    add("--hidden", type=int, default=512)
    add("--heads", type=int, default=8)
    add("--intermediate", type=int, default=1408)
    add("--prompts", type=int, default=4)
    add("--answers", type=int, default=2, help="of each prompt")
    add("--prompt-tokens", type=int, default=128)
    add("--answer-tokens", type=int, default=64, help="on average; each up to a fifth off it")
    add("--repeats", type=int, default=5)
    return options.parse_args()


def language_model(options: argparse.Namespace) -> torch.nn.Module:
    """A Llama with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads // 2,
        vocab_size=2048,
    )
    torch.manual_seed(0)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def batch(options: argparse.Namespace, shared: bool) -> AnswerRows:
    """The same lengths either way; a first token of its own makes a prompt another one."""
    random = np.random.default_rng(0)
    off = options.answer_tokens // 5
    rows = []
    for _ in range(options.prompts):
        prompt = random.integers(100, 2048, options.prompt_tokens).tolist()
        for number in range(options.answers):
            length = options.answer_tokens + int(random.integers(-off, off + 1))
            answer = random.integers(100, 2048, length).tolist()
            first = [0] if shared else [number]
            rows.append(AnswerRow([*first, *prompt[1:]], Answer(answer, [True] * length)))
    return pack_answers(rows, torch.device("cpu"))


def pass_through(model: ScoredLM, rows: AnswerRows) -> None:
    """Log-probs of all answers, and the gradients of their sum."""
    (logprobs,) = model(TokenBatch(rows.packed, rows.before_M, rows.targets_M))
    logprobs.sum().backward()
    model.zero_grad()


if __name__ == "__main__":
    main()
