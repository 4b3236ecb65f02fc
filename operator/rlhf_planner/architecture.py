"""A model's shape, from its config.json.

Counts agree with transformers' own models to within their biases and norms, which are less than a
thousandth (tests/planner/test_architecture.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

GATED: Final = frozenset(
    {
        *("llama", "mistral", "ministral", "qwen2", "qwen3", "phi3", "olmo", "olmo2", "olmo3"),
        *("gemma", "gemma2", "gemma3_text", "granite", "cohere", "cohere2", "smollm3", "seed_oss"),
        *("glm", "glm4", "exaone4"),
    }
)
"""Model types with three matrices in an MLP: up, gate and down."""
EXPERTS: Final = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe"})
"""The same in each of several experts."""
PLAIN: Final = frozenset({"gpt2", "gpt_neox", "opt", "phi", "starcoder2"})
"""Model types with two."""
TIED: Final = frozenset({"gpt2", "opt", "gemma", "gemma2", "gemma3_text", "cohere", "cohere2"})
"""Whose head is the embedding where config.json does not say so."""
WIDER: Final = {"gemma2": 1.3, "gemma3_text": 1.6, "qwen3": 1.1, "qwen3_moe": 1.1}
"""Activations of a layer as a share of Llama's: norms keep what they read for the backward pass,
and these have more of them. Measured (tests/planner/test_activation_memory.py)."""


class UnknownArchitecture(ValueError):
    """A config.json that this arithmetic cannot read."""


class Linear(NamedTuple):
    """A linear layer that each layer of the model has."""

    name: str  # as LoRA's targetModules name it
    inner: int
    outer: int


class Architecture(NamedTuple):
    """What memory and time depend on."""

    kind: str  # model_type
    parameters: int
    active: int  # parameters that one token meets
    layers: int
    hidden: int
    intermediate: int  # width of the MLP that one token meets: that of all its experts
    key_value: int  # width of a token's keys in one layer
    vocabulary: int
    linears: tuple[Linear, ...]  # that adapters are put on
    experts: int = 0  # that one token meets; 0: the MLP is one
    widening: float = 1.0  # activations of a layer, as a share of Llama's


def read_config(config: Mapping[str, Any]) -> Architecture:
    """The shape that a config.json describes. Raises UnknownArchitecture."""
    config = config.get("text_config") or config
    kind = str(config.get("model_type"))
    if kind not in GATED | EXPERTS | PLAIN:
        known = ", ".join(sorted(GATED | EXPERTS | PLAIN))
        raise UnknownArchitecture(f"model_type {kind} is none of {known}")
    hidden = _number(config, "hidden_size", "n_embd")
    layers = _number(config, "num_hidden_layers", "n_layer")
    heads = _number(config, "num_attention_heads", "n_head")
    key_heads = _number(config, "num_key_value_heads", default=heads)
    head = _number(config, "head_dim", default=hidden // heads)
    width = _number(config, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    vocabulary = _number(config, "vocab_size")
    attention = tuple(_attention(kind, hidden, heads * head, key_heads * head))
    mlp = tuple(_mlp(kind, hidden, width))
    of_attention, of_mlp = _size(attention), _size(mlp)
    total, met, at_once = of_mlp, of_mlp, 0
    if kind in EXPERTS:
        at_once = _number(config, "num_experts_per_tok")
        total, met, width = _experts(config, hidden, width, at_once)
        mlp = ()  # transformers has experts' weights in one tensor: no adapter is put on them
    is_tied = config.get("tie_word_embeddings", kind in TIED)
    ends = vocabulary * hidden * (1 if is_tied else 2) + _positions(kind, config, hidden)
    return Architecture(
        kind=kind,
        parameters=ends + layers * (of_attention + total),
        active=ends + layers * (of_attention + met),
        layers=layers,
        hidden=hidden,
        intermediate=width,
        key_value=key_heads * head,
        vocabulary=vocabulary,
        linears=(*attention, *mlp),
        experts=at_once,
        widening=WIDER.get(kind, 1.0),
    )


def _attention(kind: str, hidden: int, queries: int, keys: int) -> Iterator[Linear]:
    if kind == "gpt2":
        yield Linear("c_attn", hidden, 3 * hidden)
        yield Linear("c_proj", hidden, hidden)
    elif kind == "gpt_neox":
        yield Linear("query_key_value", hidden, 3 * hidden)
        yield Linear("dense", hidden, hidden)
    elif kind == "phi3":
        yield Linear("qkv_proj", hidden, queries + 2 * keys)
        yield Linear("o_proj", queries, hidden)
    else:
        out = {"opt": "out_proj", "phi": "dense"}.get(kind, "o_proj")
        yield Linear("q_proj", hidden, queries)
        yield Linear("k_proj", hidden, keys)
        yield Linear("v_proj", hidden, keys)
        yield Linear(out, queries, hidden)


def _mlp(kind: str, hidden: int, width: int) -> Iterator[Linear]:
    if kind in PLAIN:
        up, down = {
            "gpt2": ("c_fc", "c_proj"),
            "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h"),
        }.get(kind, ("fc1", "fc2") if kind in ("opt", "phi") else ("c_fc", "c_proj"))
        yield Linear(up, hidden, width)
        yield Linear(down, width, hidden)
    elif kind in ("phi3", "glm", "glm4"):
        yield Linear("gate_up_proj", hidden, 2 * width)
        yield Linear("down_proj", width, hidden)
    else:
        yield Linear("gate_proj", hidden, width)
        yield Linear("up_proj", hidden, width)
        yield Linear("down_proj", width, hidden)


def _experts(
    config: Mapping[str, Any], hidden: int, dense: int, at_once: int
) -> tuple[int, int, int]:
    """Parameters of a layer's experts with their router, those that a token meets, and the width of
    these together."""
    count = _number(config, "num_local_experts", "num_experts")
    width = _number(config, "moe_intermediate_size", default=dense)
    shared = _number(config, "shared_expert_intermediate_size", default=0)
    always = hidden * count + 3 * hidden * shared + (hidden if shared else 0)
    return (
        always + 3 * hidden * width * count,
        always + 3 * hidden * width * at_once,
        width * at_once + shared,
    )


def _positions(kind: str, config: Mapping[str, Any], hidden: int) -> int:
    """Parameters of learnt positions."""
    if kind not in ("gpt2", "opt"):
        return 0
    unused = 2 if kind == "opt" else 0
    return hidden * (unused + _number(config, "n_positions", "max_position_embeddings"))


def _size(linears: tuple[Linear, ...]) -> int:
    return sum(linear.inner * linear.outer for linear in linears)


def _number(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    found = next((config[name] for name in names if config.get(name) is not None), default)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise UnknownArchitecture(f"{names[0]} is {found!r}, and has to be a number")
    return found
