"""How long one PPO rollout and its update take, and how near that is to what the machine can do.

    python benchmarks/ppo_step.py                          the two works in fp32
    python benchmarks/ppo_step.py --work ragged --precision bf16
    python benchmarks/ppo_step.py --versus trl             the same work, given to TRL as well

The limit: FLOPs of the matrix products that the work cannot do without (projections, MLPs, head,
causal attention; forward once per model and token, backward twice) over the rate at which this
machine multiplies matrices of the same shapes at its best, measured in the same run. Products
alone: the same FLOPs at the rate of these products one after another, as the update computes them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
import torch.nn.functional as F
from rlhf_api.run import StageRun
from rlhf_api.stages.ppo import PPOStage

PAD, EOS = 0, 1


class Work(NamedTuple):
    """What is computed; every trainer gets the same."""

    prompt_lengths: list[int]
    max_new_tokens: int
    ends_by_itself: bool
    mean_response: int


class Timing(NamedTuple):
    """Of one rollout and its update."""

    generate: float
    score: float
    update: float
    prompt_lengths: list[int]
    response_lengths: list[int]
    pad_fraction: float

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.generate + self.score + self.update


def main() -> int:
    """Measure and print."""
    options = parsed(sys.argv[1:])
    if options.threads:
        torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for name in ["fixed", "ragged"] if options.work == "both" else [options.work]:
        report[name] = measured(options, work_of(options, name))
    print(json.dumps(report, indent=2) if options.json else table(report))
    return 0


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Model, lengths and batches, by default those of the two works."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = options.add_argument
    add("--work", choices=["fixed", "ragged", "both"], default="both")
    add("--precision", choices=["fp32", "bf16"], default="fp32")
    add("--layers", type=int, default=6)
    add("--hidden", type=int, default=256)
    add("--heads", type=int, default=8)
    add("--kv-heads", type=int, default=4)
    add("--intermediate", type=int, default=768)
    add("--vocabulary", type=int, default=1024)
    add("--batch", type=int, default=32, help="responses a rollout")
    add("--minibatch", type=int, default=8, help="responses an optimizer step")
    add("--micro-batch", type=int, default=8, help="rows that are computed at once")
    add("--epochs", type=int, default=4)
    add("--prompt-tokens", type=int, nargs=2, metavar=("FROM", "TO"), help="default: by the work")
    add("--new-tokens", type=int, default=64, help="of a response at most")
    add("--mean-response", type=int, default=24, help="of the ragged work")
    add("--critic", choices=["reward", "shared", "fresh"], default="reward")
    add("--samples", type=int, default=1, help="of a prompt; more than 1: GRPO, without a critic")
    add("--zero", type=int, choices=[0, 1, 2, 3], default=0)
    add("--rollouts", type=int, default=3, help="that are measured, after one that is not")
    add("--threads", type=int, default=0, help="default: torch's own choice")
    add("--versus", choices=["trl"], help="another trainer, if it can be imported")
    add("--profile", action="store_true", help="print where the time of the last update goes")
    add("--json", action="store_true")
    return options.parse_args(arguments)


def work_of(options: argparse.Namespace, name: str) -> Work:
    """Prompts of the work; the same in every run."""
    default = (32, 32) if name == "fixed" else (8, 64)
    first, last = options.prompt_tokens or default
    prompts = options.batch // options.samples
    lengths = np.linspace(first, last, prompts).round().astype(int).tolist()
    return Work(lengths, options.new_tokens, name == "ragged", options.mean_response)


def measured(options: argparse.Namespace, work: Work) -> dict[str, Any]:
    """Ours, the limit, and TRL where asked for."""
    with tempfile.TemporaryDirectory() as folder:
        write_models(options, work, Path(folder))
        before = peak_memory()
        ours = run_ours(options, work, Path(folder))
        memory = peak_memory()
        rate = gemm_rate(options, ours[0])
        result = summary(options, ours, rate)
        sustained = sustained_rate(options, ours[0])
        result["sustained_gflops_per_second"] = sustained / 1e9
        result["products_alone_seconds"] = result["limit_seconds"] * rate / sustained
        result["peak_memory_mib"] = {"before": before, "after": memory}
        if options.versus == "trl":
            import ppo_step_trl

            theirs = ppo_step_trl.run(options, work, Path(folder))
            result["trl"] = theirs
            result["times_as_fast_as_trl"] = theirs["seconds"] / result["seconds"]
    return result


def summary(options: argparse.Namespace, timings: list[Timing], rate: float) -> dict[str, Any]:
    """Medians over the measured rollouts."""
    tokens = [sum(t.prompt_lengths) + sum(t.response_lengths) for t in timings]
    limits = [flops(options, t) / rate for t in timings]
    shares = [limit / t.total for limit, t in zip(limits, timings, strict=True)]
    middle = statistics.median
    return {
        "seconds": middle(t.total for t in timings),
        "generate": middle(t.generate for t in timings),
        "score": middle(t.score for t in timings),
        "update": middle(t.update for t in timings),
        "tokens_per_second": middle(n / t.total for n, t in zip(tokens, timings, strict=True)),
        "mean_response": middle(np.mean(t.response_lengths).item() for t in timings),
        "pad_fraction": middle(t.pad_fraction for t in timings),
        "gemm_gflops_per_second": rate / 1e9,
        "limit_seconds": middle(limits),
        "share_of_limit": middle(shares),
    }


# --- the work -------------------------------------------------------------------------------------


def write_models(options: argparse.Namespace, work: Work, folder: Path) -> None:
    """A policy, a reward model, a tokenizer whose words are single tokens, and prompts."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        max_position_embeddings=max(work.prompt_lengths) + work.max_new_tokens,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    policy = AutoModelForCausalLM.from_config(config)
    if work.ends_by_itself:
        end_at_times(policy, work, options.vocabulary)
    policy.save_pretrained(folder / "policy")
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "reward")
    tokenizer = word_tokenizer(options.vocabulary, PreTrainedTokenizerFast)
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    rows = [rng.integers(2, options.vocabulary, n) for n in work.prompt_lengths]
    lines = [json.dumps({"prompt": " ".join(f"w{t}" for t in row)}) for row in rows]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")


def end_at_times(policy: Any, work: Work, vocabulary: int) -> None:
    """Give EOS the probability at which responses have the wanted mean length."""
    low, high = 1e-4, 1.0
    for _ in range(60):
        p = (low * high) ** 0.5
        mean = (1 - (1 - p) ** work.max_new_tokens) / p
        low, high = (p, high) if mean > work.mean_response else (low, p)
    width = policy.config.hidden_size
    with torch.no_grad():
        policy.get_input_embeddings().weight += 1  # all hidden states share this direction,
        strength = np.log(p * (vocabulary - 1) / (1 - p)) / width
        policy.get_output_embeddings().weight[EOS] = strength  # and EOS points in it
        policy.get_output_embeddings().weight[2:].sub_(
            policy.get_output_embeddings().weight[2:].mean(-1, keepdim=True)
        )


def word_tokenizer(vocabulary: int, kind: Any) -> Any:
    """Each word w<i> is token i: a prompt of n words has n tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = kind(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ ' ' + eos_token }}{% else %} {% endif %}{% endfor %}"
    )
    return fast


# --- ours -----------------------------------------------------------------------------------------


def run_ours(options: argparse.Namespace, work: Work, folder: Path) -> list[Timing]:
    """The stage's own functions, one rollout after another."""
    from rlhf_trainer.ppo.experience import assemble
    from rlhf_trainer.ppo.team import assemble_team
    from rlhf_trainer.ppo.update import steps_per_rollout, update
    from rlhf_trainer.session import Session
    from rlhf_trainer.stages import ppo

    timings = []
    with inside(folder):
        session = Session.open(stage_run(options, work, folder))
        if options.threads:
            torch.set_num_threads(options.threads)
        config = session.config
        assert isinstance(config, PPOStage)
        prompts = ppo.Prompts(session, config)
        team = assemble_team(session, config, steps_per_rollout(config))
        for number in range(options.rollouts + 1):
            clock = ppo.Clock(session.ranks)
            questions = prompts.of_rollout(number)
            rollout = ppo.answer(session, config, team, questions, number)
            clock.lap("generate")
            tokens = ppo.score_by_models(session, config, team, rollout)
            scores = team.reward.score(ppo.answered(session, questions, rollout))
            experience, _ = assemble(config, rollout, tokens, scores, config.kl.coef)
            clock.lap("score")
            with profiled(options.profile and number == options.rollouts):
                update(session, config, team, experience, None, number, config.kl.coef)
            clock.lap("update")
            timings.append(
                Timing(
                    **clock.seconds,
                    prompt_lengths=[len(p) for p in rollout.prompts],
                    response_lengths=[len(r) for r in rollout.responses],
                    pad_fraction=ppo.pad_fraction(config, team, rollout),
                )
            )
        session.telemetry.close()  # the process group stays: another work may follow
    return timings[1:]


def stage_run(options: argparse.Namespace, work: Work, folder: Path) -> StageRun:
    """The stage file of the work."""
    longest = max(work.prompt_lengths)
    settings = {
        "data": {"source": "prompts.jsonl", "evalFraction": 0, "format": "prompt"},
        "rollouts": options.rollouts + 1,
        "globalBatchSize": options.batch,
        "minibatchSize": options.minibatch,
        "microBatchSize": options.micro_batch,
        "updateEpochs": options.epochs,
        "precision": options.precision,
        **({"critic": options.critic} if options.samples == 1 else {"advantage": "grpo"}),
        "zero": {"stage": options.zero},
        "rewards": {"reward": {"model": {"source": "reward"}}},
        "rollout": {
            "maxPromptLength": longest,
            "maxNewTokens": work.max_new_tokens,
            "samplesPerPrompt": options.samples,
            "minNewTokens": 1 if work.ends_by_itself else work.max_new_tokens,
        },
    }
    return StageRun.model_validate(
        {
            "job": {"name": "benchmark", "namespace": "default", "uid": "benchmark"},
            "stage": "ppo",
            "attempt": 1,
            "hash": "benchmark",
            "seed": 0,
            "model": {"source": "policy"},
            "stages": {"ppo": settings},
            "inputs": {role: {"path": str(folder / "policy")} for role in ("base", "policy")},
            "paths": {name: str(folder / name) for name in ("policy", "reward", "prompts.jsonl")},
            "lineage": "checkpoints/benchmark",
            "output": "checkpoints/benchmark/attempt-1",
        }
    )


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In this working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def profiled(wanted: bool) -> Iterator[None]:
    """Print torch's own account of where the time went."""
    if not wanted:
        yield
        return
    with torch.profiler.profile() as profiler:
        yield
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40))


# --- the limit ------------------------------------------------------------------------------------


def flops(options: argparse.Namespace, timing: Timing) -> float:
    """Of the matrix products that the work needs: generation once, actor, reference, reward and
    critic once, and in each epoch forward and backward of actor and critic; a prompt once for all
    of its samples.
    """
    lengths = list(zip(timing.prompt_lengths, timing.response_lengths, strict=True))
    again = 1 - 1 / options.samples
    trunk = sum(trunk_flops(options, p + r) - again * trunk_flops(options, p) for p, r in lengths)
    head = sum(2 * r * options.hidden * options.vocabulary for _, r in lengths)
    critics = 0 if options.critic == "shared" or options.samples > 1 else 1
    experience = (2 * trunk + 2 * head) + trunk * (1 + critics)
    update = 3 * ((1 + critics) * trunk + head) * options.epochs
    return float(trunk + head + experience + update)


def trunk_flops(options: argparse.Namespace, tokens: int) -> float:
    """Forward pass of one row through the layers; attention is causal: half of its square."""
    head = options.hidden // options.heads
    projections = options.hidden * (2 * options.hidden + 2 * options.kv_heads * head)
    weights = options.layers * (projections + 3 * options.hidden * options.intermediate)
    attention = options.layers * 2 * tokens * options.hidden  # 4·T·h, halved
    return float(tokens * (2 * weights + attention))


def gemm_rate(options: argparse.Namespace, timing: Timing) -> float:
    """FLOP/s of this machine at the products of one minibatch: forward and both backward ones, each
    at its fastest."""
    products = list(products_of(options, timing))
    return sum(done for done, _ in products) / sum(fastest(action) for _, action in products)


def sustained_rate(options: argparse.Namespace, timing: Timing, seconds: float = 3.0) -> float:
    """FLOP/s of the same products one after another, on average, and as the update computes them:
    a core for each model, where there are two."""
    from concurrent.futures import ThreadPoolExecutor

    cores = torch.get_num_threads()
    lanes = 2 if cores > 1 and options.critic != "shared" and options.samples == 1 else 1

    def lane() -> float:
        torch.set_num_threads(cores // lanes)
        products, done, start = list(products_of(options, timing)), 0.0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for count, action in products:
                action()
                done += count
        return done / (time.perf_counter() - start)

    with ThreadPoolExecutor(lanes) as pool:
        rates = [pool.submit(lane) for _ in range(lanes)]
    torch.set_num_threads(cores)
    return sum(rate.result() for rate in rates)


def products_of(
    options: argparse.Namespace, timing: Timing
) -> Iterator[tuple[float, Callable[[], Any]]]:
    """FLOPs and action of each product of a layer and the head, over the tokens of a minibatch."""
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    head = options.hidden // options.heads
    count = sum(timing.prompt_lengths) + sum(timing.response_lengths)
    tokens = max(1, round(count * options.minibatch / options.batch))
    shapes = [
        (options.hidden, options.hidden),
        (options.hidden, options.kv_heads * head),
        (options.hidden, options.intermediate),
        (options.intermediate, options.hidden),
        (options.hidden, options.vocabulary),
    ]
    for inner, outer in shapes:
        x, w = torch.randn(tokens, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype)
        g = torch.randn(tokens, outer, dtype=dtype)
        done = 2.0 * tokens * inner * outer
        yield done, partial(F.linear, x, w)
        yield done, partial(torch.matmul, g, w)
        yield done, partial(torch.matmul, g.t(), x)


def fastest(action: Any, repeats: int = 30) -> float:
    """Seconds of the fastest of several runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def peak_memory() -> float:
    """MiB that this process has had resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(report: dict[str, Any]) -> str:
    """For people."""
    lines = [f"torch {report['torch']}, {report['threads']} threads"]
    for name in ("fixed", "ragged"):
        if name not in report:
            continue
        r = report[name]
        lines.append(
            f"{name}: {r['seconds']:.2f} s (generation {r['generate']:.2f}, scoring "
            f"{r['score']:.2f}, update {r['update']:.2f}); {r['tokens_per_second']:.0f} tokens/s; "
            f"mean response {r['mean_response']:.1f}; pads {r['pad_fraction']:.1%}; "
            f"peak {r['peak_memory_mib']['after']:.0f} MiB; limit {r['limit_seconds']:.2f} s "
            f"at {r['gemm_gflops_per_second']:.0f} GFLOP/s, {r['share_of_limit']:.2f} of it reached"
        )
        lines.append(
            f"  products alone: {r['products_alone_seconds']:.2f} s at a sustained "
            f"{r['sustained_gflops_per_second']:.0f} GFLOP/s"
        )
        if "trl" in r:
            lines.append(
                f"  TRL: {r['trl']['seconds']:.2f} s; ours is "
                f"{r['times_as_fast_as_trl']:.2f} times as fast"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
