"""DeepSpeed as the engine: one model, its optimizer and its schedule, over all ranks.

What DeepSpeed is told, and what it is not: it partitions, reduces, clips and steps. The schedule is
a pure function of the step and is ours; the loss is already a share of the global batch's loss, so
DeepSpeed's averaging over ranks is undone and its scaling by accumulation steps is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from rlhf_api.stages.common import Schedule, StageCommon
from torch import Tensor, nn

from rlhf_trainer.errors import ConfigurationError, NonFinite
from rlhf_trainer.quiet import import_deepspeed, no_prints
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.regroup import lay_out_whole

M = TypeVar("M", bound=nn.Module)
Once = Callable[[Callable[[], object]], None]
LARGEST_BUCKET = 500_000_000
"""Elements reduced at once at most: DeepSpeed's default, which it allocates for any model."""


class StepStats(NamedTuple):
    """What one optimizer step did."""

    grad_norm: float  # global, before clipping
    learning_rate: float


class Engine:
    """A module that trains. Every rank makes the same calls in the same order."""

    def __init__(
        self,
        deepspeed_engine: Any,
        settings: StageCommon,
        ranks: Ranks,
        total_steps: int,
        peak: float,
    ) -> None:
        self._engine = deepspeed_engine
        self._settings, self._ranks = settings, ranks
        self._total_steps, self._peak = total_steps, peak
        self._stage = zero_stage(settings, ranks)
        # Kept here: DeepSpeed's ZeRO-3 gives all groups the first one's as it regroups.
        self._decays = [group["weight_decay"] for group in deepspeed_engine.optimizer.param_groups]

    @classmethod
    def create(
        cls,
        module: nn.Module,
        settings: StageCommon,
        *,
        ranks: Ranks,
        total_steps: int,
        learning_rate: float | None = None,
    ) -> Engine:
        """Hand the module's trainable parameters to DeepSpeed with AdamW.

        `learning_rate` replaces settings.learning_rate as the peak (PPO's critic has its own).
        `total_steps` are the optimizer steps that the schedule spans.
        """
        deepspeed = import_deepspeed()
        peak = settings.learning_rate if learning_rate is None else learning_rate
        if settings.gradient_checkpointing and hasattr(module, "gradient_checkpointing_enable"):
            cast(Any, module).gradient_checkpointing_enable({"use_reentrant": False})
        parameters = parameter_groups(module.named_parameters(), settings.weight_decay)
        optimizer = torch.optim.AdamW(
            parameters,
            lr=peak,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
            fused=True,
        )
        config = deepspeed_config(settings, ranks, parameters)
        ranks.barrier()  # slow disks let ranks come minutes apart, and DeepSpeed's collectives fail
        with no_prints():
            engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        if ranks.world_size == 1:
            engine.enable_backward_allreduce = zero_stage(settings, ranks) > 0
        return cls(engine, settings, ranks, total_steps, peak)

    @property
    def module(self) -> nn.Module:
        """The model itself; under ZeRO-3 its parameters are whole only within `gathered`."""
        module: nn.Module = self._engine.module
        return module

    @property
    def steps_done(self) -> int:
        """Optimizer steps so far; a checkpoint restores it."""
        return int(self._engine.global_steps)

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        schedule = self._settings.schedule
        return self._peak * schedule_factor(schedule, self.steps_done, self._total_steps)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass, in training."""
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of this micro-batch's contribution to the global batch's loss.

        Contributions sum over micro-batches and ranks: `loss` is divided by the *global* token or
        row count already. `last` is True at the step's last micro-batch. Every rank calls it
        equally often; a rank without rows passes a loss of 0 that hangs on the graph.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._ranks.world_size, scale_wrt_gas=False)

    def step(self, decays: bool = True) -> StepStats:
        """Clip, step, clear gradients. NonFinite, on every rank and with the weights untouched,
        where the global gradient norm is not finite. Without `decays`, weights whose gradients have
        all been 0 so far stay as they are.
        """
        rate = self.learning_rate
        for group, decay in zip(self._engine.optimizer.param_groups, self._decays, strict=True):
            group["lr"], group["weight_decay"] = rate, decay if decays else 0.0
        norm = self._clip() if self._stage == 0 else None
        self._engine.step()
        if norm is None:
            norm = _number(self._engine.optimizer._global_grad_norm)
            if self._engine.optimizer.overflow or not math.isfinite(norm):
                raise NonFinite("gradient norm", value=str(norm))
        return StepStats(norm, rate)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it plain parameters are whole on every rank, so that the module may generate or be
        saved; ranks may call it different numbers of times. Only ZeRO-3 has to do anything.
        """
        if self._stage < 3:
            yield
            return
        import deepspeed

        offload = self._engine.optimizer.parameter_offload
        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            offload._remove_module_hooks()  # they would gather and release at every layer
            try:
                yield
            finally:
                for parameter in cast(Any, self.module).parameters():
                    parameter.ds_active_sub_modules.clear()
                offload._register_deepspeed_module(offload.module)

    def save(self, directory: Path) -> None:
        """Model, optimizer and position, one file a rank. All ranks call it."""
        with self._ranks.patient():  # they write at a disk's pace, and wait for each other in NCCL
            self._engine.save_checkpoint(
                str(directory.parent),
                tag=directory.name,
                save_latest=False,
                exclude_frozen_parameters=True,
            )

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote. DeepSpeed unpickles it: verify its manifest before."""
        with no_prints(), self._ranks.patient():
            self._engine.load_checkpoint(
                str(directory.parent),
                tag=directory.name,
                load_module_strict=False,  # frozen parameters are not in it
                load_lr_scheduler_states=False,
            )
        self._ranks.barrier()  # the next collective may be one that does not wait as long

    def load_regrouped(self, directory: Path, scratch: Path, once: Once) -> None:
        """Restore what `save` wrote on another number of ranks, with the same ZeRO stage. The state
        of the whole model is laid out in `scratch`, `once` on each disk.
        """
        if self._stage == 0:
            self.load(directory)  # every rank holds all of it
            return
        once(lambda: lay_out_whole(directory, scratch / directory.name))
        self._engine._config.load_universal_checkpoint = True
        self.load(scratch / directory.name)
        self._engine._config.load_universal_checkpoint = False
        # DeepSpeed's ZeRO-3 gives all groups one tensor to count steps.
        for state in self._engine.optimizer.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()

    def _clip(self) -> float:
        """Clip to the global norm and return it; DeepSpeed's own clipping of fp32 gradients is a
        Python loop over parameters.
        """
        parameters = [p for g in self._engine.optimizer.param_groups for p in g["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            self._engine.optimizer.zero_grad(set_to_none=True)
            raise NonFinite("gradient norm", value=str(float(norm)))
        torch.nn.utils.clip_grads_with_norm_(parameters, self._settings.max_grad_norm, norm)
        return float(norm)


def schedule_factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at a step (counted from 0) of `total_steps`.

    A linear rise that reaches 1 at the last warm-up step, then a cosine, a line or a constant that
    reaches `min_ratio` at the last step.
    """
    warmup = math.ceil(schedule.warmup_ratio * total_steps)
    peak = max(warmup - 1, 0)
    if step < peak:
        return (step + 1) / warmup
    progress = min((step - peak) / max(total_steps - 1 - peak, 1), 1.0)
    match schedule.type:
        case "cosine":
            shape = (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            shape = 1 - progress
        case "constant":
            shape = 1.0
    return schedule.min_ratio + (1 - schedule.min_ratio) * shape


def uses_bf16(settings: StageCommon, ranks: Ranks) -> bool:
    """Whether this run computes in bf16: `auto` is bf16 on GPUs and fp32 on CPUs."""
    if settings.precision == "auto":
        return ranks.device.type == "cuda"
    return settings.precision == "bf16"


def model_dtype(settings: StageCommon, ranks: Ranks) -> torch.dtype:
    """Type of the weights that compute; the optimizer keeps fp32 masters."""
    return torch.bfloat16 if uses_bf16(settings, ranks) else torch.float32


def zero_stage(settings: StageCommon, ranks: Ranks) -> int:
    """ZeRO stage as DeepSpeed gets it: fp32 masters of bf16 weights, and offload, need stage 1."""
    offloads = settings.zero.offload != "none" and ranks.device.type == "cuda"
    least = 1 if uses_bf16(settings, ranks) or offloads else 0
    return max(settings.zero.stage, least)


def on_device(module: M, settings: StageCommon, ranks: Ranks) -> M:
    """The module on this rank's device. For ZeRO-3 it stays where it is: DeepSpeed moves a share of
    each parameter, and the whole may be larger than the device.
    """
    return module if zero_stage(settings, ranks) == 3 else module.to(ranks.device)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; norms and biases do not."""
    trainable = [p for _, p in named if p.requires_grad]
    if not trainable:
        raise ConfigurationError("the model has no trainable parameters")
    matrices = [p for p in trainable if _dimensions(p) >= 2]
    vectors = [p for p in trainable if _dimensions(p) < 2]
    groups = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def deepspeed_config(
    settings: StageCommon, ranks: Ranks, groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """What DeepSpeed is told; see https://www.deepspeed.ai/docs/config-json."""
    stage = zero_stage(settings, ranks)
    elements = sum(p.numel() for group in groups for p in group["params"])
    bucket = min(LARGEST_BUCKET, max(elements, 1))
    zero: dict[str, Any] = {"stage": stage}
    if stage > 0:
        zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        zero |= _offload(settings, stage, ranks)
    return {
        "train_micro_batch_size_per_gpu": 1,  # ours are counted by us
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm if stage > 0 else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW needs no compiler in the image
        "bf16": {"enabled": uses_bf16(settings, ranks)},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
    }


def _offload(settings: StageCommon, stage: int, ranks: Ranks) -> dict[str, Any]:
    if settings.zero.offload == "none" or ranks.device.type == "cpu":
        return {}  # on a CPU everything is where offload would put it
    target = {"device": "cpu", "pin_memory": True}
    return {"offload_optimizer": target} | ({"offload_param": target} if stage == 3 else {})


def _dimensions(parameter: nn.Parameter) -> int:
    """Dimensions of the whole parameter: under ZeRO-3 what is at hand is a flat share of it."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _number(value: Any) -> float:
    return float(value.item() if isinstance(value, Tensor) else value)
