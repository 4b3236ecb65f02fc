"""Bytes of each device, while a stage trains and while it generates.

Model states are those of ZeRO (Rajbhandari et al. 2020, section 3) with the trainer's types: bf16
weights, fp32 gradients, and an fp32 copy with two moments (AdamW). Activations are what autograd
keeps of a layer in the trainer's own forward pass, measured
(tests/planner/test_activation_memory.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from rlhf_api.resources import Resources
from rlhf_api.stages import AnyStage, DPOStage, PPOStage, RewardStage
from rlhf_api.stages.common import StageCommon, Supervised

from rlhf_planner.architecture import Architecture

BUCKETS: Final = 3e9
"""DeepSpeed's buckets of a model that trains: 500 million elements of gradients and weights."""
LOGITS: Final = 1e9
"""Logits are made some at a time (at most so much), whatever the vocabulary."""
RUNTIME: Final = 2e9
"""CUDA's context, NCCL, kernels, fragments."""
WITH_ADAPTERS: Final = 1.42
"""Activations of a layer with adapters on all its linear layers, beside one without; measured."""
IN_FP32: Final = 1.75
"""The same of fp32 beside bf16: norms keep fp32 in both; measured."""

ENDS: Final = ("embed_tokens", "embed_in", "wte", "lm_head", "embed_out")
"""Embeddings and heads, as families of models name them."""

Moment = Literal["training", "generation"]


class Models(NamedTuple):
    """The shapes of a job's models."""

    policy: Architecture
    reward: Architecture  # PPO's reward model and the critic that starts from it


class Memory(NamedTuple):
    """Bytes of one device. What a stage holds from its start to its end, and what comes to it while
    it trains or generates."""

    weights: float  # of models that train
    gradients: float
    optimizer: float
    frozen: float  # models that only read
    reserve: float  # buckets, logits, runtime
    activations: float  # while it trains
    generation: float  # while it generates: whole weights, keys and values

    @property
    def kept(self) -> float:
        """At each moment."""
        return self.weights + self.gradients + self.optimizer + self.frozen + self.reserve

    @property
    def total(self) -> float:
        """At the worst moment."""
        return self.kept + max(self.activations, self.generation)

    @property
    def worst_moment(self) -> Moment:
        """When that is."""
        return "generation" if self.generation > self.activations else "training"


class _States(NamedTuple):
    """Of one model that trains."""

    weights: float
    gradients: float
    optimizer: float
    buckets: float


def of_a_device(
    stage: AnyStage,
    models: Models,
    resources: Resources,
    *,
    evaluates: bool = False,
    device_memory: float | None = None,
) -> Memory:
    """What a stage takes of each of its devices.

    `evaluates`: whether it answers prompts at its end. `device_memory`: bytes; vLLM takes a share
    of them.
    """
    ranks = resources.nodes * resources.ranks_per_node
    on_gpu = resources.gpus_per_node > 0
    trained = [_states(stage, model, ranks, on_gpu) for _, model in trained_models(stage, models)]
    tokens = stage.micro_batch_size * longest_row(stage)
    own = models.reward if isinstance(stage, RewardStage) else models.policy
    return Memory(
        weights=sum(model.weights for model in trained),
        gradients=sum(model.gradients for model in trained),
        optimizer=sum(model.optimizer for model in trained),
        frozen=sum(
            weight_bytes(stage, on_gpu) * model.parameters / _shares(stage, ranks)
            for _, model in frozen_models(stage, models)
        ),
        reserve=sum(model.buckets for model in trained)
        + min(LOGITS, 16.0 * tokens * own.vocabulary)
        + (RUNTIME if on_gpu else 0),
        activations=_activations(stage, models, tokens, on_gpu),
        generation=_generation(stage, models.policy, ranks, on_gpu, evaluates, device_memory),
    )


def of_the_host(stage: AnyStage, models: Models, resources: Resources) -> float:
    """Bytes of a pod's memory that `zero.offload: cpu` takes; 0 without."""
    if stage.zero.offload == "none" or resources.gpus_per_node == 0:
        return 0.0
    each = 16 if stage.zero.stage == 3 else 12
    found = sum(trainable(stage, model) for _, model in trained_models(stage, models))
    return each * found / resources.nodes


def trained_models(stage: AnyStage, models: Models) -> Iterator[tuple[str, Architecture]]:
    """Role and shape of each model that the stage trains."""
    if not isinstance(stage, PPOStage):
        yield "model", models.policy
        return
    yield "actor", models.policy
    if has_critic(stage):
        yield "critic", models.policy if stage.critic == "fresh" else models.reward


def frozen_models(stage: AnyStage, models: Models) -> Iterator[tuple[str, Architecture]]:
    """Role and shape of each model that the stage only reads. With an adapter the reference is the
    model without it."""
    if isinstance(stage, PPOStage):
        if stage.lora is None:
            yield "reference", models.policy
        terms = stage.rewards.values()
        count = sum(1 for term in terms if term.stage or term.model) if stage.rewards else 1
        for _ in range(count):
            yield "reward", models.reward
    elif isinstance(stage, DPOStage):
        reads = stage.loss in ("sigmoid", "ipo", "kto") and not stage.reference_cache
        if reads and stage.lora is None:
            yield "reference", models.policy


def has_critic(stage: PPOStage) -> bool:
    """Whether a model of its own estimates values."""
    return stage.advantage == "gae" and stage.critic != "shared"


def trainable(stage: StageCommon, model: Architecture) -> float:
    """Parameters that train: all, or those of adapters, rank · (inputs + outputs) of a layer, with
    what is trained in full beside them."""
    if stage.lora is None:
        return model.parameters
    wanted, whole = stage.lora.target_modules, stage.lora.modules_to_save or []
    found = 0.0
    for linear in model.linears:
        if linear.name in whole:
            found += model.layers * linear.inner * linear.outer
        elif wanted is None or linear.name in wanted:
            found += model.layers * stage.lora.rank * (linear.inner + linear.outer)
    return found + sum(model.vocabulary * model.hidden for name in whole if name in ENDS)


def weight_bytes(stage: StageCommon, on_gpu: bool) -> int:
    """Of a weight that computes."""
    return 2 if stage.precision == "bf16" or (stage.precision == "auto" and on_gpu) else 4


def longest_row(stage: AnyStage) -> int:
    """Tokens of a row at most."""
    if isinstance(stage, PPOStage):
        return stage.rollout.max_prompt_length + stage.rollout.max_new_tokens
    return stage.max_length


def _shares(stage: StageCommon, ranks: int) -> int:
    return ranks if stage.zero.stage == 3 else 1


def _states(stage: StageCommon, model: Architecture, ranks: int, on_gpu: bool) -> _States:
    learns, width = trainable(stage, model), weight_bytes(stage, on_gpu)
    offloads = stage.zero.offload == "cpu" and on_gpu
    parted = max(stage.zero.stage, 1 if width == 2 or offloads else 0)
    held = model.parameters + (learns if stage.lora is not None else 0)
    weights = width * held / (ranks if parted == 3 else 1)
    gradients = 4 * learns / (ranks if parted >= 2 else 1)
    optimizer = (12 if width == 2 else 8) * learns / (ranks if parted >= 1 else 1)
    buckets = min(BUCKETS, 6 * learns) if parted else 0.0
    if offloads:  # as DeepSpeed's own estimators have it: gradients leave with their buckets
        return _States(0.0 if parted == 3 else weights, 0.0, 0.0, buckets)
    return _States(weights, gradients, optimizer, buckets)


def _activations(stage: AnyStage, models: Models, tokens: int, on_gpu: bool) -> float:
    """Of one micro-batch. PPO's actor and critic are updated one after the other."""
    found = [_of_layers(stage, model, tokens, on_gpu) for _, model in trained_models(stage, models)]
    return max(found)


def _of_layers(stage: StageCommon, model: Architecture, tokens: int, on_gpu: bool) -> float:
    """t·L·(8f + 24h) bytes in bf16, and 4h more for each expert that a token meets; of it
    checkpointing keeps each layer's input, 2h, and one layer at a time."""
    layer = 8.0 * model.intermediate + (24 + 4 * model.experts) * model.hidden
    layer *= model.widening
    layer *= WITH_ADAPTERS if stage.lora is not None else 1.0
    width = weight_bytes(stage, on_gpu)
    layer *= IN_FP32 if width == 4 else 1.0
    if not stage.gradient_checkpointing:
        return tokens * model.layers * layer
    return tokens * (model.layers * width * model.hidden + layer)


def _generation(
    stage: AnyStage,
    policy: Architecture,
    ranks: int,
    on_gpu: bool,
    evaluates: bool,
    device_memory: float | None,
) -> float:
    """Whole weights under ZeRO-3, and keys and values of the rows that are answered at once."""
    width = weight_bytes(stage, on_gpu)
    whole = width * policy.parameters if stage.zero.stage == 3 and ranks > 1 else 0
    if isinstance(stage, Supervised):
        answers = evaluates and not isinstance(stage, RewardStage)
        return float(whole) if answers else 0.0
    if stage.rollout.engine == "vllm":
        share = stage.rollout.gpu_memory_utilization
        return whole + (share * device_memory if device_memory else 2.0 * policy.parameters)
    rows = -(-stage.global_batch_size // ranks)
    return whole + 2.0 * width * policy.layers * policy.key_value * rows * longest_row(stage)
