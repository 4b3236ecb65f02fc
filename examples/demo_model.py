"""The demo's base model: its configuration, tokenizer and chat template; the demo draws weights."""

from __future__ import annotations

from typing import Any

from judge.rule import language
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 1280
CHARACTER_WEIGHT = 1000  # above any count in the texts: no Chinese character is left in pieces
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>", *ROLES)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def trained_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: any text survives a round trip.  Digits stand alone, for the sums."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(text, special=True, normalized=False) for text in SPECIALS]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    weighted = [*texts, *characters(texts) * CHARACTER_WEIGHT]
    tokenizer.train_from_iterator(weighted, trainer)
    return tokenizer


def tokenizer_config() -> dict[str, Any]:
    """Written by hand, not by `save_pretrained`, so that no library version changes its bytes."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "additional_special_tokens": list(ROLES),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "padding_side": "left",
    }


def model_config(vocabulary: int) -> dict[str, Any]:
    """A Llama of about 0.5 million parameters: it learns the facts within seconds on one core."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "pad_token_id": SPECIALS.index("<|pad|>"),
        "bos_token_id": SPECIALS.index("<|bos|>"),
        "eos_token_id": SPECIALS.index("<|eos|>"),
        "torch_dtype": "float32",
    }


def characters(texts: list[str]) -> list[str]:
    """Each Chinese character of the texts, once."""
    return sorted({c for text in texts for c in text if language(c) == "zh"})
