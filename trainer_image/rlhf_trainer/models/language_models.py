"""Language models: loading, fresh ones, adapters merged, saving for Hugging Face."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from rlhf_api.run import Input, StageRun
from rlhf_api.stages.common import LoRA
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rlhf_trainer.checkpoints.vouched import verify_once
from rlhf_trainer.data.rendering import end_token_ids
from rlhf_trainer.errors import CheckpointUnusable, ConfigurationError, first_line
from rlhf_trainer.models.lora import (
    ADAPTER_CONFIG,
    HubModel,
    fold_adapters,
    is_adapter_alone,
    parts_ties,
    plain_model,
    save_adapter,
    told_as_merged,
)
from rlhf_trainer.models.whole_weights import merged_state_dict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOISE_OF_TRAINING: Final = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")
"""What mixtures of experts multiply a router's inputs by in training alone. PhiMoE's
`router_jitter_noise` is none of it: it decides on experts in evaluation, too."""
DRAWS_EXPERTS: Final = "PhimoeTopKRouter"
"""A router that in training mode takes experts at random (SparseMixer, Liu et al. 2024)."""


def load_policy(
    run: StageRun, role: str = "policy", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The causal language model that `role` names in the stage file, dropout off, in `dtype`.

    An input that is an adapter is merged into the base model. Fresh weights are drawn from the
    job's seed, so that all ranks draw the same ones. For ZeRO-3, and on GPUs, the weights stay in
    the pages of the file until they are partitioned or moved: the ranks of a machine share them.
    """
    source = input_of(run, role)
    path = Path(source.path)
    if is_adapter_alone(path):
        return _merged_adapter(input_of(run, "base"), path, run.seed, dtype)
    return _causal_lm(path, source.init, run.seed, dtype, in_file=run.config.zero.stage == 3)


def load_output(
    run: StageRun, directory: Path, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The model that this run wrote to `directory`; an adapter is merged into the run's policy."""
    if is_adapter_alone(directory):
        return _merged_adapter(input_of(run, "policy"), directory, run.seed, dtype)
    return _causal_lm(directory, "pretrained", run.seed, dtype)


def load_directory(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A whole model by its directory, outside any run."""
    if is_adapter_alone(directory):
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
        verify_once(Path(source.path), source.digest)
    return source


def trunk_of(model: PreTrainedModel) -> Any:
    """The model below its head. A Llama 4 has it by another name than it says in its class."""
    trunk = model.base_model
    return getattr(model, "model", model) if trunk is model else trunk


def without_dropout(model: Any) -> Any:
    """The same model, in training mode as in evaluation: dropout and other noise off. Else PPO's
    ratio is not 1 at its first step, and DPO's reference is not the policy that it starts from.
    """
    for settings in (model.config, model.config.get_text_config()):
        _silence(settings, ())
    for module in model.modules():
        _silence(module, NOISE_OF_TRAINING)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if type(module).__name__ == DRAWS_EXPERTS:
            module.register_forward_pre_hook(_in_evaluation)
    return model


def _silence(owner: Any, others: Collection[str]) -> None:
    """Probabilities of dropout go by many names: residual_dropout, attn_pdrop, layerdrop."""
    for name, value in vars(owner).items():
        if isinstance(value, float) and ("drop" in name or name in others):
            setattr(owner, name, 0.0)


def _in_evaluation(module: nn.Module, _: Any) -> None:
    module.eval()


def save_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    lora: LoRA | None = None,
    hub: HubModel | None = None,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a causal language model and its tokenizer in Hugging Face layout.

    Call it on one rank. `state` is `merged_state_dict(model)`, where that was a collective. An
    adapter is merged, without touching the model, unless `lora.output` is "adapter": then the
    adapter is written, within `Engine.gathered()`, and beside it the model that it was trained on,
    if that is not what the hub has as `hub`. The generation config of a model also names the token
    that ends a turn, at which those who serve the model stop.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _settle_generation(plain_model(model), tokenizer)
    if lora is not None and lora.output == "adapter":
        save_adapter(model, directory, hub)
    else:
        state = merged_state_dict(model) if state is None else state
        with told_as_merged(model):
            plain_model(model).save_pretrained(directory, state_dict=state)
    tokenizer.save_pretrained(directory)


def generation_ends(model: Any) -> set[int]:
    """Tokens that end an answer by the model's generation config."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return {int(i) for i in (found if isinstance(found, list) else [found]) if i is not None}


def _settle_generation(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the generation config one that ends answers, and that transformers agrees to write."""
    known, ends = generation_ends(model), set(end_token_ids(tokenizer))
    if not ends <= known:  # a base model's EOS may not be the end of a turn (Qwen2.5)
        model.generation_config.eos_token_id = sorted(known | ends)
    if not _is_valid(model.generation_config):
        # It is read without complaint. Nearly always it has a temperature and no do_sample (Vicuna,
        # Llama 2); whoever wrote that meant to sample.
        model.generation_config.do_sample = True
    if not _is_valid(model.generation_config):
        kept = ("bos_token_id", "eos_token_id", "pad_token_id")
        kept_values = {name: getattr(model.generation_config, name) for name in kept}
        model.generation_config = type(model.generation_config)(**kept_values)


def _is_valid(config: Any) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


def _merged_adapter(base: Input, path: Path, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    from peft import PeftModel

    refuse_damaged_weights(path)
    model = _causal_lm(Path(base.path), base.init, seed, torch.float32)
    try:
        adapted = PeftModel.from_pretrained(model, path)
        parted = parts_ties(adapted)
        merged = adapted.merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        message = f"the adapter in {path} does not fit the base model: {first_line(error)}"
        raise CheckpointUnusable(message) from None
    if parted:
        merged.config.tie_word_embeddings = False
    whole: PreTrainedModel = merged.to(dtype)
    return whole


def _causal_lm(
    path: Path, init: str, seed: int, dtype: torch.dtype, in_file: bool = False
) -> PreTrainedModel:
    """The language model in a directory, dropout off; an adapter that lies in it is merged. With
    `in_file`, and where it is to be moved to a GPU, its weights stay in the pages of the file that
    they were read from.
    """
    from transformers import AutoModelForCausalLM

    config = model_config(path)
    try:
        if init == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(dtype)
        else:
            refuse_damaged_weights(path)
            has_adapter = (path / ADAPTER_CONFIG).exists()
            model, found = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=torch.float32 if has_adapter else dtype,
                trust_remote_code=False,
                output_loading_info=True,
            )
            refuse_drawn_weights(path, found, "language")
            if has_adapter:
                fold_adapters(model)
                model = model.to(dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"no language model in {path}: {first_line(error)}") from None
    stays = in_file or torch.cuda.is_available()
    loaded: PreTrainedModel = without_dropout(model if stays else _in_own_memory(model))
    return loaded


def _in_own_memory(model: PreTrainedModel) -> PreTrainedModel:
    """Copies of the weights where torch's kernels like them: what safetensors maps from a file lies
    at any offset, which costs time, and rounds otherwise than the same weights elsewhere.
    """
    for parameter in model.parameters():  # tied ones once
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
    return model


def refuse_damaged_weights(path: Path) -> None:
    """Raises ConfigurationError where a file of weights has another length than its head says."""
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise ConfigurationError(
                f"{file} is no whole file of weights ({error}): a download that broke off, or a "
                f"pointer that Git LFS left; fetch it again"
            ) from None


def refuse_drawn_weights(path: Path, found: Mapping[str, Any], kind: str) -> None:
    """Raises ConfigurationError where the model has weights that the files have not: transformers
    draws them at random, and tells it in a table. `found` is what it says of its loading."""
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" ({len(missing)} in all)" if len(missing) > 1 else ""
        raise ConfigurationError(
            f"the files in {path} have no weights for {missing[0]}{more}, as transformers names "
            f"them: name a whole {kind} model in Hugging Face layout"
        )


def model_config(path: Path) -> Any:
    """The configuration in a model's directory, for a model that runs as our stages run it.

    Attention keeps its soft cap (Gemma 2), which torch's own, taken unasked, leaves out; routers of
    experts give no logits, with which transformers cannot decode (huggingface/transformers#30731).
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        message = f"no model configuration in {path}: {first_line(error)}"
        raise ConfigurationError(message) from None
    text = config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None) is not None:
        config._attn_implementation = "eager"
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False
    return config
