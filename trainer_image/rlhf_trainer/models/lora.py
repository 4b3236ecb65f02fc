"""Low-rank adapters: putting them on a model, merging them, writing them alone.

An adapter alone is of use to others only beside what it was trained on. A model that the hub has
is named, with its commit; anything else lies in the same directory, as transformers lays out a
model with an adapter embedded (docs/adr/0008-an-adapter-brings-its-base.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlhf_api.run import StageRun
from rlhf_api.stages.common import LoRA
from torch import Tensor, nn

from rlhf_trainer.data.fetched import fetched
from rlhf_trainer.errors import ConfigurationError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG: Final = "adapter_config.json"
ALL: Final = "all-linear"
GATES: Final = ("gate", "shared_expert_gate")
"""Names of routers that do not say so; what PEFT makes of the first is `gate.weight`."""


class HubModel(NamedTuple):
    """A model that others can fetch by its name."""

    name: str  # owner/name
    commit: str | None

    @classmethod
    def of_start(cls, run: StageRun) -> HubModel | None:
        """What the stage starts from, where that is a hub model as it was fetched."""
        base, start = run.inputs["base"], run.inputs["policy"]
        source = run.model.source
        if start.path != base.path or start.init == "random" or not source.startswith("hf://"):
            return None
        about = fetched(Path(base.path)) or {}
        return cls(source.removeprefix("hf://"), about.get("commit") or run.model.revision)


def add_lora(model: PreTrainedModel, lora: LoRA, is_critic: bool = False) -> nn.Module:
    """The model with all its weights frozen and adapters that train: on the layers that the
    settings name, or on all linear layers but the head and those that are `left_alone`. Layers of
    `modulesToSave` are there twice: as they were, and as a copy that trains. A critic's trunk may
    lack some of them: the head, which its policy has.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=bool(lora.use_rslora),
        target_modules=lora.target_modules or ALL,
        modules_to_save=_modules_to_save(model, lora, is_critic),
        task_type="CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION",
    )
    try:
        if lora.target_modules is None:
            config.exclude_modules = left_alone(model) or None
            # A mixture's experts, and its router, are parameters of other modules than linear ones.
            convert_peft_config_for_transformers(config, model, None)
            if config.target_parameters:
                config.target_parameters -= {f"{GATES[0]}.weight"}
        adapted: nn.Module = get_peft_model(model, config)
    except ValueError as error:
        names = {name.rpartition(".")[2] for name, _ in _linear_layers(model)}
        allowed = ", ".join(sorted(names))
        raise ConfigurationError(
            f"lora.targetModules: {first_line(error)} Linear layers of this model: {allowed}."
        ) from None
    return adapted


def _modules_to_save(model: nn.Module, lora: LoRA, may_lack: bool) -> list[str] | None:
    """Those of the settings that are there, by the ends of names, as PEFT takes them."""
    lists = (nn.ModuleList, nn.ModuleDict)
    names = [name for name, module in model.named_modules() if not isinstance(module, lists)]
    last = {name.rpartition(".")[2] for name in names}
    wanted = lora.modules_to_save or []
    found = [w for w in wanted if any(name.endswith(w) for name in names)]
    if len(found) < len(wanted) and not may_lack:
        allowed = ", ".join(sorted(name for name in last if name and not name.isdigit()))
        missing = next(w for w in wanted if w not in found)
        raise ConfigurationError(
            f"lora.modulesToSave: there is no {missing}. Modules of this model: {allowed}."
        )
    return found or None


def trained_copy(module: Any) -> nn.Module | None:
    """Of a layer that is trained in full beside adapters, the copy that trains."""
    inside = module._modules
    if "original_module" not in inside or "modules_to_save" not in inside:
        return None
    found: nn.Module = inside["modules_to_save"]["default"]
    return found


def left_alone(model: nn.Module) -> list[str]:
    """Linear layers that get no adapter unasked, by the last two parts of their names.

    Routers of a mixture of experts, whose choice of experts is not to be trained by the way (and
    some give more than a tensor, which PEFT's layers cannot); and in Mamba's mixers all but the way
    in: kernels read the other weights past any adapter.
    """
    mixers = tuple(f"{n}." for n, m in model.named_modules() if {"A_log", "D"} <= {*m._parameters})
    found = set()
    for name, _ in _linear_layers(model):
        parts = name.split(".")
        routes = any("router" in part or part in GATES for part in parts)
        if routes or (name.startswith(mixers) and parts[-1] != "in_proj"):
            found.add(".".join(parts[-2:]))
    return sorted(found)


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from transformers.pytorch_utils import Conv1D

    return (item for item in model.named_modules() if isinstance(item[1], nn.Linear | Conv1D))


def is_adapter_alone(directory: Path) -> bool:
    """Whether the directory holds an adapter without the model that it belongs to."""
    return (directory / ADAPTER_CONFIG).exists() and not (directory / "config.json").exists()


def fold_adapters(model: Any) -> None:
    """Merge the adapters that transformers loaded with a model, and leave a plain model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if parts_ties(model):
        model.config.tie_word_embeddings = False
    for name, module in list(model.named_modules()):
        if (copy := trained_copy(module)) is not None:
            model.set_submodule(name, copy)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in reversed(layers):  # from the inside, where one is around another
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    model._hf_peft_config_loaded = False
    model._weight_conversions = None  # the adapter's: under its names nobody finds a saved weight


def save_adapter(model: Any, directory: Path, hub: HubModel | None) -> None:
    """Write the adapter; beside it the model that it was trained on, unless the hub has that."""
    model.save_pretrained(directory, safe_serialization=True)
    file = directory / ADAPTER_CONFIG
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = hub.name if hub else None
    config["revision"] = hub.commit if hub else None
    for targets in ("target_modules", "target_parameters", "exclude_modules", "modules_to_save"):
        if isinstance(config.get(targets), list):
            config[targets] = sorted(config[targets])  # a set, in hash order
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (directory / "README.md").unlink(missing_ok=True)
    if hub is None:
        plain_model(model).save_pretrained(directory, state_dict=base_state_dict(model))


def plain_model(model: Any) -> Any:
    """The transformers model below a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_adapter(module: Any) -> bool:
    """Whether this layer is a base layer with an adapter around it."""
    return hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")


def parts_ties(model: Any) -> bool:
    """Whether embeddings and head are one weight that training makes two: by an adapter on either,
    or by a copy of either that trains."""
    plain = plain_model(model)
    if not getattr(plain.config, "tie_word_embeddings", False):
        return False
    ends = (plain.get_input_embeddings(), plain.get_output_embeddings())
    return any(has_adapter(end) or trained_copy(end) is not None for end in ends if end is not None)


@contextmanager
def told_as_merged(model: Any) -> Iterator[None]:
    """Within it the configuration is that of the model with its adapters merged: who reads one
    weight where there are two loses what was learnt (huggingface/transformers#45127)."""
    config, parted = plain_model(model).config, parts_ties(model)
    if parted:
        config.tie_word_embeddings = False
    try:
        yield
    finally:
        if parted:
            config.tie_word_embeddings = True


def adapted_parameter(module: Any) -> str:
    """The parameter of the base layer that the adapter is for. PEFT adapts the experts of a
    mixture, which are one tensor each, by adapters around each other."""
    name: str = getattr(module, "parameter_name", "weight")
    return name


def merged(weight: Tensor, delta: Tensor) -> Tensor:
    """W + ΔW, added in fp32, in the type of W."""
    return (weight.float() + delta.float()).to(weight.dtype).detach()


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model without its adapters."""
    state = plain_model(model).state_dict()
    return {
        key.replace(".base_layer", "").replace(".original_module", ""): value.detach()
        for key, value in state.items()
        if ".lora_" not in key and ".modules_to_save." not in key
    }
