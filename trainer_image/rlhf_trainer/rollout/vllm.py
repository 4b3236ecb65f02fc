"""Generation with vLLM, in the processes that train and on their devices.

Each rank has an engine of its own with all of the model (tensor parallel size 1), as TRL's
`vllm_mode="colocate"` and the hybrid engines of verl and OpenRLHF have it. Before each rollout the
actor's weights go to it, with no file between; on a GPU it sleeps while the trainer works.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rlhf_api.run import StageRun
from rlhf_api.stages.ppo import PPOStage, Rollout
from torch import Tensor

from rlhf_trainer.data.rendering import end_token_ids
from rlhf_trainer.engine import model_dtype
from rlhf_trainer.errors import ConfigurationError, first_line
from rlhf_trainer.installed import ENGINE
from rlhf_trainer.models.language_models import input_of
from rlhf_trainer.models.lora import is_adapter_alone, parts_ties
from rlhf_trainer.models.tokenizers import tokenizer_path
from rlhf_trainer.quiet import no_prints
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.rollout.sampling import Responses
from rlhf_trainer.rollout.weights import checkpoint_weights
from rlhf_trainer.session import Session

TOKENS_AT_ONCE: Final = 4096
"""Tokens of one pass through the model on a GPU; vLLM reserves the activations of so many."""
CACHE_ON_CPU: Final = 1 << 30
"""Bytes of a rank's KV cache where there is no GPU; vLLM takes a share of all memory by default."""
SLEEP_LEVEL: Final = 1
"""Asleep, weights lie in the host's memory. Level 2 would drop them, and some models come back from
it other than they were (vllm-project/vllm#29341, NVIDIA-NeMo/RL#2631)."""


class VLLM:
    """Answers with an engine that gets a copy of the actor's weights each time."""

    def __init__(self, session: Session, config: PPOStage, lm: Any) -> None:
        self.settings, self.seed, self.lm = config.rollout, session.run.seed, lm
        self.ends = end_token_ids(session.tokenizer)
        unties = parts_ties(lm)
        self.engine = session.once(
            "vllm", lambda: Colocated(session.run, config, session.ranks, unties)
        )

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        rows_in_all: int,
        rollout: int,
        draw: int = 0,
    ) -> Responses:
        """See `RolloutEngine`. Log-probs are left out where vLLM's are not those of all tokens."""
        seeds = row_seeds(self.seed, rollout, rows_in_all, draw)
        with self.engine.awake(checkpoint_weights(self.lm)):
            outputs = self.engine.generate(prompts, [self._sampling(seeds[row]) for row in rows])
        has_logprobs = logprobs_mode(self.settings) is not None
        return Responses(
            tokens=[list(output.token_ids) for output in outputs],
            finished=[output.finish_reason == "stop" for output in outputs],
            logprobs=[list(output.logprobs.logprobs) for output in outputs]
            if has_logprobs
            else None,
        )

    def _sampling(self, seed: int) -> dict[str, Any]:
        settings = self.settings
        return {
            "max_tokens": settings.max_new_tokens,
            # vLLM forbids the end before as many tokens; ours makes the end one of them.
            "min_tokens": settings.min_new_tokens - 1,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "seed": seed,
            "stop_token_ids": self.ends,
            "ignore_eos": True,  # of its own: ours are given
            **_stops(settings),
        }


class Colocated:
    """vLLM's engine in this process. It starts once in a process and outlives a roll-back."""

    def __init__(self, run: StageRun, config: PPOStage, ranks: Ranks, unties: bool = False) -> None:
        """`unties`: the weights have a head of their own, whatever the policy's config.json says"""
        self._is_on_gpu = ranks.device.type == "cuda"
        self._overrides = {"tie_word_embeddings": False} if unties else {}
        _set_environment(ranks)
        with _process_as_it_was(ranks), no_prints():
            try:
                self._llm = self._start(run, config, ranks)
            except (ValueError, NotImplementedError) as error:
                raise ConfigurationError(
                    f"{ENGINE}: vLLM does not start with this model and these settings: "
                    f"{first_line(error)}; change them (its memory is gpuMemoryUtilization), or "
                    "set it to native"
                ) from None
        self._sleep()

    def _start(self, run: StageRun, config: PPOStage, ranks: Ranks) -> Any:
        from vllm import LLM

        settings = config.rollout
        device: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": CACHE_ON_CPU}
        if self._is_on_gpu:
            torch.cuda.empty_cache()
            device = {
                "gpu_memory_utilization": settings.gpu_memory_utilization,
                "enable_sleep_mode": True,
                "max_num_batched_tokens": TOKENS_AT_ONCE,
            }
        return LLM(
            model=configuration_of(run),
            load_format="dummy",  # the actor's weights come before the first prompt
            tokenizer=tokenizer_path(run),
            skip_tokenizer_init=not settings.stop,
            hf_overrides=self._overrides,
            generation_config="vllm",  # nothing but what each request says
            dtype=str(model_dtype(config, ranks)).removeprefix("torch."),
            max_model_len=settings.max_prompt_length + settings.max_new_tokens,
            logprobs_mode=logprobs_mode(settings) or "raw_logprobs",
            distributed_executor_backend="external_launcher",
            **device,
        )

    @contextmanager
    def awake(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        """Within it the engine answers with these weights, by their names in a checkpoint."""
        if self._is_on_gpu:
            torch.cuda.empty_cache()  # what our allocator keeps, vLLM cannot have
            self._llm.wake_up(tags=["weights"])
        (missing,) = self._llm.collective_rpc(_load, args=(weights,))
        if missing:
            raise ConfigurationError(
                f"{ENGINE}: the model has no weights that vLLM takes for {', '.join(missing[:3])}"
                f" ({len(missing)} in all); set it to native"
            )
        if self._is_on_gpu:
            self._llm.wake_up(tags=["kv_cache"])
        self._llm.reset_prefix_cache()  # of the weights before
        yield
        self._sleep()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[dict[str, Any]]
    ) -> list[Any]:
        """vLLM's output of each prompt, in their order, with log-probs of its tokens."""
        from vllm import SamplingParams

        if not prompts:
            return []
        requests = [
            SamplingParams(**settings, logprobs=0, flat_logprobs=True) for settings in sampling
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return [r.outputs[0] for r in self._llm.generate(inputs, requests, use_tqdm=False)]

    def close(self) -> None:
        """End the engine, and with it the process group: nothing of it may follow."""
        self._llm.llm_engine.engine_core.shutdown()

    def _sleep(self) -> None:
        if self._is_on_gpu:
            self._llm.sleep(level=SLEEP_LEVEL)


def row_seeds(seed: int, rollout: int, rows: int, draw: int = 0) -> list[int]:
    """A seed for each global row of a round: a pure function of the job's seed and its place."""
    states = np.random.SeedSequence([seed, rollout, draw]).generate_state(rows, np.uint64)
    return [int(state >> np.uint64(1)) for state in states]


def _stops(settings: Rollout) -> dict[str, Any]:
    """Texts that end a response. vLLM returns its tokens whole either way; to find the texts it has
    to decode all that is sampled, special tokens as well, as `StopStrings` does."""
    if not settings.stop:
        return {"detokenize": False}
    return {"stop": list(settings.stop), "skip_special_tokens": False}


def logprobs_mode(settings: Rollout) -> str | None:
    """What vLLM shall say of tokens, so that it is log-softmax(logits / temperature) over the whole
    vocabulary, as the trainer's is; None where it cannot: after a temperature, vLLM normalises over
    the tokens that top-k, top-p and minNewTokens leave (vllm-project/vllm#42259).
    """
    if settings.temperature == 1:
        return "raw_logprobs"
    leaves_out = settings.top_k > 0 or settings.top_p < 1 or settings.min_new_tokens > 1
    return None if leaves_out else "processed_logprobs"


def configuration_of(run: StageRun) -> str:
    """Directory of the policy's config.json; of an adapter alone, its base model's."""
    policy = input_of(run, "policy").path
    return input_of(run, "base").path if is_adapter_alone(Path(policy)) else policy


def _load(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Runs in vLLM's worker: put weights in place of those there; names of vLLM's that got none."""
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    model = worker.get_model()
    expected = {name for name, _ in model.named_parameters()}
    initialize_layerwise_reload(model)  # kernels may keep weights in a layout of their own
    loaded = model.load_weights(weights) or expected  # some models do not say
    finalize_layerwise_reload(model, worker.model_config)
    return sorted(expected - loaded)


def _set_environment(ranks: Ranks) -> None:
    """Before vLLM is imported: it reads these as it loads."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, where the weights are
    os.environ["RANK"], os.environ["LOCAL_RANK"] = str(ranks.rank), str(ranks.local_rank)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # compiles, and takes no seed a row


@contextmanager
def _process_as_it_was(ranks: Ranks) -> Iterator[None]:
    """vLLM seeds torch, and on a CPU puts a function of its own in place of one of torch's."""
    set_num_threads = torch.set_num_threads
    devices = [ranks.local_rank] if ranks.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.set_num_threads = set_num_threads
