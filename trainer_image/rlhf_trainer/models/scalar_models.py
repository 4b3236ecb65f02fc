"""Scalar models, that is reward models and critics: a trunk with a head that gives scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_trainer.errors import ConfigurationError, first_line
from rlhf_trainer.logprobs import upcast
from rlhf_trainer.models.language_models import (
    model_config,
    refuse_damaged_weights,
    refuse_drawn_weights,
    without_dropout,
)
from rlhf_trainer.models.lora import plain_model
from rlhf_trainer.models.tokenizers import with_distinct_pad
from rlhf_trainer.models.whole_weights import merged_state_dict, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REWARD_STATISTICS: Final = "reward_statistics.json"


class ScoreHead(nn.Linear):
    """A linear head whose products are summed and handed on in fp32, whatever its weights are in:
    as bf16, scores about 6 lie 0.03 apart, and close answers would tie."""

    @classmethod
    def of(cls, linear: nn.Linear) -> ScoreHead:
        """With the parameters of another."""
        head = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(self, hidden: Tensor) -> Tensor:
        """Scores (…, 1) of hidden states (…, H)."""
        bias = None if self.bias is None else upcast(self.bias)
        return F.linear(upcast(hidden), upcast(self.weight), bias)


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


def refuse_without_classifier(config: Any) -> None:
    """ConfigurationError for a kind of model that can be no reward model: one that transformers has
    no classifier of, so that nobody could load what was trained."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ConfigurationError(
            f"spec.stages.reward: transformers has no classifier for models of type "
            f"{config.model_type}, which a reward model is; use another model, or another reward "
            "(ppo.rewards) or dpo in its place"
        )


def scalar_from_trunk(
    trunk: PreTrainedModel, *, seed: int, dtype: torch.dtype = torch.float32, head: str = "normal"
) -> ScalarHeadModel:
    """A fresh scalar head on the trunk of a language model.

    `head`: "normal" draws it from N(0, 1/(h+1)) (Stiennon et al. 2020), "zero" starts at 0.
    """
    width = _width(trunk.config)
    score = ScoreHead(width, 1, bias=False, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = torch.randn(1, width, generator=generator) / math.sqrt(width + 1)
        score.weight.copy_(weight if head == "normal" else torch.zeros_like(weight))
    return ScalarHeadModel(trunk, score)


def load_scalar(path: Path | str, *, dtype: torch.dtype = torch.float32) -> ScalarHeadModel:
    """A trained reward model: any AutoModelForSequenceClassification with one label."""
    from transformers import AutoModelForSequenceClassification

    config = model_config(Path(path))
    refuse_damaged_weights(Path(path))
    config.num_labels = 1
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"no reward model in {path}: {first_line(error)}") from None
    refuse_drawn_weights(Path(path), found, "reward")
    if not isinstance(getattr(model, "score", None), nn.Linear):
        kind = type(model).__name__
        raise ConfigurationError(f"{kind} in {path} has no linear score head on its last layer")
    return ScalarHeadModel(without_dropout(model.base_model), ScoreHead.of(model.score))


def load_statistics(path: Path | str) -> dict[str, float] | None:
    """Mean, std and count of a reward model's scores on its reference data; None: it has none."""
    file = Path(path) / REWARD_STATISTICS
    if not file.exists():
        return None
    values: dict[str, float] = json.loads(file.read_text())
    return values


def save_scalar(
    model: ScalarHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    statistics: Mapping[str, float] | None = None,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a reward model so that AutoModelForSequenceClassification loads it, LoRA merged, and
    gives the same scores: its pad token ends no answer, and may be new (`with_distinct_pad`).

    `statistics` (mean, std, count of its scores on reference data) lie beside it. `state` is
    `scalar_state_dict(model)`, where that was a collective.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    trunk = plain_model(model.trunk)
    prefix = trunk.base_model_prefix
    tensors = scalar_state_dict(model) if state is None else state
    tokenizer = with_distinct_pad(tokenizer)
    config = _classifier_config(trunk.config, tokenizer)
    embedding = f"{prefix}.{_name_of(trunk.get_input_embeddings(), trunk)}.weight"
    tensors[embedding] = _with_rows(tensors[embedding], config.get_text_config().vocab_size)
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


def scalar_state_dict(model: ScalarHeadModel, keep: bool = True) -> dict[str, Tensor]:
    """Trunk and head as `merged_state_dict` gives them, by the names that a classifier has."""
    prefix = plain_model(model.trunk).base_model_prefix
    tensors = {f"{prefix}.{k}": v for k, v in merged_state_dict(model.trunk, keep).items()}
    with whole(list(model.score.parameters())):
        return tensors | ({"score.weight": model.score.weight.detach().clone()} if keep else {})


def _classifier_config(config: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = type(config).from_dict(config.to_dict())
    config.num_labels = 1
    for part in (config, config.get_text_config()):
        part.pad_token_id = tokenizer.pad_token_id
        if hasattr(part, "vocab_size"):  # not beside a vision model, where the text part has it
            part.vocab_size = max(part.vocab_size, int(tokenizer.pad_token_id or 0) + 1)
    config.architectures = [MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].__name__]
    return config


def _name_of(module: nn.Module, model: nn.Module) -> str:
    """A module's name as it is without adapters."""
    name: str = next(name for name, found in model.named_modules() if found is module)
    return name.removesuffix(".base_layer")


def _with_rows(weight_VH: Tensor, rows: int) -> Tensor:
    """The matrix with rows of 0 at its end, up to so many."""
    more = rows - len(weight_VH)
    return (
        torch.cat([weight_VH, weight_VH.new_zeros(more, weight_VH.shape[1])]) if more else weight_VH
    )


def _width(config: Any) -> int:
    """Of the trunk's last hidden states: OPT-350M projects them to the width of its embeddings."""
    text = config.get_text_config()
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)
