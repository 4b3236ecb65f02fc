"""Models and tokenizers: loading, fresh ones, LoRA, a scalar head, saving for Hugging Face."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from rlhf_api.run import Input, StageRun
from rlhf_api.stages.common import LoRA
from torch import Tensor, nn

from rlhf_trainer.checkpoint import verify
from rlhf_trainer.errors import CheckpointUnusable, ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REWARD_STATISTICS: Final = "reward_statistics.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
DROPOUTS: Final = (
    "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout",
    "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout",
    "dropout", "embedding_dropout", "classifier_dropout", "layerdrop",
)  # fmt: skip
PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""For a tokenizer without a chat template: roles in plain words, no special tokens but EOS."""


def load_tokenizer(run: StageRun) -> PreTrainedTokenizerBase:
    """The stage's tokenizer: spec.model.tokenizer, else the one beside the policy, else the base's.

    It always has an EOS, a pad token (which may be the EOS: masks are by position) and a template.
    """
    from transformers import AutoTokenizer

    path = _tokenizer_path(run)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        message = f"no tokenizer can be read from {path}: {_first_line(error)}"
        raise ConfigurationError(message) from None
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(f"the tokenizer in {path} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if run.model.chat_template is not None:
        tokenizer.chat_template = run.model.chat_template
    elif not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def load_policy(
    run: StageRun, role: str = "policy", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The causal language model that `role` names in the stage file, dropout off, in `dtype`.

    An input that is an adapter is merged into the base model. Fresh weights are drawn from the
    job's seed, so that all ranks draw the same ones.
    """
    source = input_of(run, role)
    path = Path(source.path)
    if (path / ADAPTER_CONFIG).exists():
        return _merged_adapter(input_of(run, "base"), path, run.seed, dtype)
    return _causal_lm(path, source.init, run.seed, dtype)


def load_output(
    run: StageRun, directory: Path, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The model that this run wrote to `directory`; an adapter is merged into the run's policy."""
    if (directory / ADAPTER_CONFIG).exists():
        return _merged_adapter(input_of(run, "policy"), directory, run.seed, dtype)
    return _causal_lm(directory, "pretrained", run.seed, dtype)


def load_directory(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A whole model by its directory, outside any run."""
    if (directory / ADAPTER_CONFIG).exists():
        raise ConfigurationError(
            f"{directory} holds an adapter alone: with lora.output merged it is a whole model"
        )
    return _causal_lm(directory, "pretrained", 0, dtype)


def input_of(run: StageRun, role: str) -> Input:
    """The input of a role, its files verified where a stage of this job made them."""
    if role not in run.inputs:
        raise ConfigurationError(f"the stage file names no {role} model")
    source = run.inputs[role]
    if not Path(source.path).is_dir():
        raise ConfigurationError(f"the {role} model is not there: {source.path} is no directory")
    if source.digest is not None:
        verify(Path(source.path), source.digest)
    return source


def add_lora(model: PreTrainedModel, lora: LoRA) -> nn.Module:
    """The model with all its weights frozen and adapters that train."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
        task_type="CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION",
    )
    try:
        adapted: nn.Module = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigurationError(f"lora.targetModules: {_first_line(error)}") from None
    return adapted


class ScalarHeadModel(nn.Module):
    """A trunk and a linear head that gives one score a token: reward model and critic."""

    def __init__(self, trunk: PreTrainedModel, score: nn.Linear) -> None:
        super().__init__()
        self.trunk, self.score = trunk, score

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Scores of the tokens (B, T), in fp32."""
        hidden_BTH = self.trunk(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            **kwargs,
        ).last_hidden_state
        scores_BT: Tensor = self.score(hidden_BTH).squeeze(-1).float()
        return scores_BT

    @property
    def config(self) -> Any:
        """The trunk's configuration."""
        return self.trunk.config

    def gradient_checkpointing_enable(self, options: dict[str, Any] | None = None) -> None:
        """Recompute the trunk's activations in the backward pass."""
        self.trunk.gradient_checkpointing_enable(options)


def new_scalar(
    path: Path | str,
    *,
    seed: int,
    init: str = "pretrained",
    dtype: torch.dtype = torch.float32,
    head: str = "normal",
) -> ScalarHeadModel:
    """The trunk of the language model in `path` with a fresh head.

    `head`: "normal" draws it from N(0, 1/(h+1)) (Stiennon et al. 2020), "zero" starts at 0.
    """
    trunk = _causal_lm(Path(path), init, seed, dtype).base_model
    return scalar_from_trunk(trunk, seed=seed, dtype=dtype, head=head)


def scalar_from_trunk(
    trunk: PreTrainedModel, *, seed: int, dtype: torch.dtype = torch.float32, head: str = "normal"
) -> ScalarHeadModel:
    """A fresh scalar head on a trunk that is at hand."""
    width = _width(trunk.config)
    score = nn.Linear(width, 1, bias=False, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = torch.randn(1, width, generator=generator) / math.sqrt(width + 1)
        score.weight.copy_(weight if head == "normal" else torch.zeros_like(weight))
    return ScalarHeadModel(trunk, score)


def load_scalar(path: Path | str, *, dtype: torch.dtype = torch.float32) -> ScalarHeadModel:
    """A trained reward model: any AutoModelForSequenceClassification with one label."""
    from transformers import AutoModelForSequenceClassification

    config = model_config(Path(path))
    config.num_labels = 1
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=dtype, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"no reward model in {path}: {_first_line(error)}") from None
    if not isinstance(getattr(model, "score", None), nn.Linear):
        kind = type(model).__name__
        raise ConfigurationError(f"{kind} in {path} has no linear score head on its last layer")
    return ScalarHeadModel(without_dropout(model.base_model), model.score)


def load_statistics(path: Path | str) -> dict[str, float] | None:
    """Mean, std and count of a reward model's scores on its reference data; None: it has none."""
    file = Path(path) / REWARD_STATISTICS
    if not file.exists():
        return None
    values: dict[str, float] = json.loads(file.read_text())
    return values


def without_dropout(model: Any) -> Any:
    """The same model with every dropout at 0: else PPO's ratio is not 1 at its first step."""
    for name in DROPOUTS:
        if isinstance(getattr(model.config, name, None), float):
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def save_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    lora: LoRA | None = None,
    base: str | None = None,
) -> None:
    """Write a causal language model and its tokenizer in Hugging Face layout.

    Call it on one rank, within `Engine.gathered()`. An adapter is merged, without touching the
    model, unless `lora.output` is "adapter"; then the adapter alone is written, with `base` as the
    name of what it belongs to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if lora is not None and lora.output == "adapter":
        _save_adapter(model, directory, base)
    else:
        plain = plain_model(model)
        plain.save_pretrained(directory, state_dict=merged_state_dict(model))
    tokenizer.save_pretrained(directory)


def save_scalar(
    model: ScalarHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    statistics: Mapping[str, float] | None = None,
) -> None:
    """Write a reward model so that AutoModelForSequenceClassification loads it, LoRA merged.

    `statistics` (mean, std, count of its scores on reference data) lie beside it.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    trunk = plain_model(model.trunk)
    prefix = trunk.base_model_prefix
    tensors = {f"{prefix}.{k}": v for k, v in merged_state_dict(model.trunk).items()}
    tensors["score.weight"] = model.score.weight.detach()
    config = _classifier_config(trunk.config, tokenizer)
    save_file(
        {k: v.cpu().contiguous().clone() for k, v in tensors.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if statistics is not None:
        text = json.dumps(dict(statistics), indent=2, sort_keys=True)
        (directory / REWARD_STATISTICS).write_text(text + "\n")


def plain_model(model: Any) -> Any:
    """The transformers model below a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the model would have with its adapters merged: W + α/r·BA.

    The model is left as it is: merging in place and back is not exact.
    """
    plain = plain_model(model)
    deltas = {
        name: module.get_delta_weight("default")
        for name, module in plain.named_modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    }
    merged: dict[str, Tensor] = {}
    for key, value in plain.state_dict().items():
        if ".lora_" in key:
            continue
        owner, _, leaf = key.rpartition(".base_layer.")
        if owner in deltas and leaf == "weight":
            value = (value.float() + deltas[owner].float()).to(value.dtype)
        merged[key.replace(".base_layer.", ".")] = value.detach()
    return merged


def _save_adapter(model: Any, directory: Path, base: str | None) -> None:
    model.save_pretrained(directory, safe_serialization=True)
    file = directory / ADAPTER_CONFIG
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = base  # PEFT writes the path on this machine
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])  # a set, in hash order
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (directory / "README.md").unlink(missing_ok=True)


def _merged_adapter(base: Input, path: Path, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    from peft import PeftModel

    model = _causal_lm(Path(base.path), base.init, seed, torch.float32)
    try:
        merged = PeftModel.from_pretrained(model, path).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        message = f"the adapter in {path} does not fit the base model: {_first_line(error)}"
        raise CheckpointUnusable(message) from None
    adapted: PreTrainedModel = merged.to(dtype)
    return adapted


def _causal_lm(path: Path, init: str, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    config = model_config(path)
    try:
        if init == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"no language model in {path}: {_first_line(error)}") from None
    loaded: PreTrainedModel = without_dropout(_in_own_memory(model))
    return loaded


def _in_own_memory(model: Any) -> Any:
    """Copies of the weights where torch's kernels like them: what safetensors maps from a file lies
    at any offset, which costs time, and rounds otherwise than the same weights elsewhere.
    """
    for parameter in model.parameters():  # tied ones once
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
    return model


def model_config(path: Path) -> Any:
    """The configuration in a model's directory."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        message = f"no model configuration in {path}: {_first_line(error)}"
        raise ConfigurationError(message) from None


def _classifier_config(config: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = type(config).from_dict(config.to_dict())
    config.num_labels = 1
    config.pad_token_id = tokenizer.pad_token_id
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if kind is not None:
        config.architectures = [kind.__name__]
    return config


def _tokenizer_path(run: StageRun) -> str:
    if run.model.tokenizer is not None:
        return run.paths[run.model.tokenizer]
    for role in ("policy", "base"):
        source = run.inputs.get(role)
        if source is not None and (Path(source.path) / "tokenizer_config.json").exists():
            return source.path
    if "base" in run.inputs:
        return run.inputs["base"].path
    return run.paths[run.model.source]


def _width(config: Any) -> int:
    return int(config.hidden_size)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
