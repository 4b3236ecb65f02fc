"""Attention on packed rows against its equation, for short rows and long ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_trainer.attention import SHORT, causal_attention, segments_attention
from rlhf_trainer.models.language_models import load_directory, trunk_of
from rlhf_trainer.models.scalar_models import load_scalar, save_scalar, scalar_from_trunk
from rlhf_trainer.sequences import enable_packing, model_inputs, of_packed, pack_rows
from torch import Tensor
from trainer_pod import IDS, MIXTURE, TINY, logits, write_model


def by_the_equation(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """softmax(q kᵀ·scale + mask) v, key head h//(H/K) for query head h."""
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    time = torch.arange(k.shape[2])
    past = time[-q.shape[2] :, None] - time[None, :]
    hidden = (past < 0) | (past >= (window or len(time)))
    scores = (torch.einsum("bhtd,bhsd->bhts", q, k) * scale).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(
    ("queries", "time"), [(1, 1), (7, 7), (2, 7), (SHORT, SHORT), (SHORT + 1, SHORT + 1), (9, 300)]
)
def test_attention_and_its_gradients_are_the_equations(
    queries: int, time: int, heads: int, keys: int, window: int | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, queries, 8), (2, keys, time, 8), (2, keys, time, 8)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    towards = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    seen = []
    for attention in (causal_attention, by_the_equation):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = attention(*leaves, 0.3, window)
        seen.append([out, *torch.autograd.grad(out, leaves, towards)])
    for ours, expected in zip(*seen, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_on_a_gpu_attention_is_asked_for_as_its_kernels_know_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None has shared key heads beside a mask, or in heads wider than 256: torch would compute all
    scores of a row at once, 8.6 GB for 8192 tokens and 32 heads."""
    asked: list[tuple[int, bool]] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        asked.append((k.shape[1], options["enable_gqa"]))
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    for window, width in ((None, 128), (3, 128), (None, 512)):
        shapes = [(2, heads, SHORT + 1, width) for heads in (4, 2, 2)]
        q, k, v = (torch.empty(shape, device="meta") for shape in shapes)
        causal_attention(q, k, v, 0.3, window)
    assert asked == [(2, True), (4, False), (4, False)]


@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (4, 2), (4, 1)])
def test_one_token_sees_what_the_mask_leaves_of_the_cache(heads: int, keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, heads, 1, 8), (2, keys, 6, 8), (2, keys, 6, 8))
    )
    seen_BC = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    out, _ = segments_attention(torch.nn.Module(), q, k, v, seen_BC[:, None, None], scaling=0.3)
    for row, first in ((0, 0), (1, 2)):
        one = (x[row : row + 1] for x in (q, k[:, :, first:], v[:, :, first:]))
        expected = by_the_equation_of_the_last(*one, 0.3)
        torch.testing.assert_close(out[row : row + 1].transpose(1, 2), expected)


def by_the_equation_of_the_last(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """What a query at the last key's place sees: all of them."""
    padded = torch.cat([q.new_zeros(*q.shape[:2], k.shape[2] - 1, q.shape[3]), q], dim=2)
    return by_the_equation(padded, k, v, scale, None)[:, :, -1:]


def with_sinks(strength: float) -> Any:
    """A tiny gpt-oss, whose attention has a learnt sink a head that takes weight from all keys."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "gpt_oss", hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=320,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2,
        num_experts_per_tok=1, sliding_window=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(strength)
    return model


@pytest.mark.parametrize("strength", [0.01, 3.0])
def test_a_model_whose_attention_has_sinks_keeps_them(strength: float) -> None:
    model = with_sinks(strength)
    expected = logits(model)
    inputs, cell_N = model_inputs(pack_rows(IDS.tolist()), enable_packing(model))
    with torch.no_grad():
        found = model(**inputs).logits
    torch.testing.assert_close(
        of_packed(found, cell_N), expected.flatten(0, 1), atol=1e-5, rtol=1e-5
    )


def test_a_model_whose_attention_has_a_soft_cap_keeps_it(tokenizer: Any, tmp_path: Path) -> None:
    """torch's own attention knows none, and transformers takes it for Gemma 2 unasked."""
    from transformers import AutoModel

    tiny = {**TINY["llama"], "head_dim": 8, "initializer_range": 0.5}
    path = write_model(tmp_path / "policy", "gemma2", **tiny, attn_logit_softcapping=0.5)
    expected, uncapped = (
        hidden(AutoModel.from_pretrained(path, attn_implementation=kind))
        for kind in ("eager", "sdpa")
    )
    assert (expected - uncapped).abs().max() > 0.1
    trunk = trunk_of(load_directory(path))
    save_scalar(scalar_from_trunk(trunk, seed=0), tokenizer, tmp_path / "reward")
    for found in (trunk, load_scalar(tmp_path / "reward").trunk):
        torch.testing.assert_close(hidden(found), expected, atol=1e-5, rtol=1e-5)


def hidden(trunk: Any) -> Tensor:
    """Last hidden states of IDS."""
    with torch.no_grad():
        found: Tensor = trunk.eval()(input_ids=IDS).last_hidden_state
    return found


@pytest.mark.parametrize(("family", "packs"), [("phimoe", False), ("mistral", True)])
def test_a_window_that_attention_knows_by_the_mask_alone_is_kept(
    family: str, packs: bool, tmp_path: Path
) -> None:
    """The trial's rows are shorter than any real window, and saw no difference."""
    settings = MIXTURE if family == "phimoe" else TINY[family]
    own = {**settings, "sliding_window": 8, "initializer_range": 0.5}
    model = load_directory(write_model(tmp_path, family, **own)).eval()
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        expected = model(ids).logits[0]
        assert enable_packing(model) == packs
        inputs, _ = model_inputs(pack_rows(ids.tolist()), packs)
        torch.testing.assert_close(model(**inputs).logits[0], expected, atol=1e-4, rtol=1e-4)
    assert model.config.sliding_window == 8


@pytest.mark.parametrize("seed", [2, 6, 7, 11])
def test_a_mixture_in_bf16_is_packed_whatever_its_routers_round_to(seed: int) -> None:
    """Two experts that are nearly alike: which of them a token met differed between the trial's
    passes, and with it all of its logits."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {**TINY["mistral"], "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    config = AutoConfig.for_model(
        "mixtral", **shape | {"num_hidden_layers": 4}, num_local_experts=8, initializer_range=0.1
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    assert enable_packing(model)
    chosen = {vars(m)["top_k"] for m in model.modules() if "top_k" in vars(m)}
    assert chosen == {config.num_experts_per_tok}  # as it was


def test_a_model_that_attends_in_a_way_of_its_own_is_not_packed(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def colder(module: Any, q: Tensor, *rest: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(module, 2 * q, *rest, **kwargs)

    model = AutoModelForCausalLM.from_pretrained(models["llama"])
    for layer in model.model.layers:
        for parameter in layer.self_attn.parameters():
            parameter.data.mul_(20)  # attention of a tiny random model tells little
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", colder)
    assert not enable_packing(model)
