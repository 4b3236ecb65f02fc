"""Generation with the training model itself: packed prompts, a reserved cache, no finished rows.

Sequences that ended leave the batch, so that a batch of uneven responses costs what its tokens
cost. A model that keeps something else than keys and values (state-space and other recurrent
layers) has transformers' own cache, where that is seen to be right with it; else (RWKV,
RecurrentGemma) it reads its rows anew for each token: slow, and right.

There is no collective in here: ranks may generate for different times, as long as weights are whole
on each of them (`Engine.gathered`).

Shapes: B rows that still grow, P prompts, T response tokens, C columns of the cache, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin

from rlhf_trainer.models.lora import plain_model
from rlhf_trainer.rollout.cache import ReservedCache
from rlhf_trainer.rollout.sampling import Responses, Sampling, sample
from rlhf_trainer.rollout.stop_strings import StopStrings
from rlhf_trainer.sequences import ATTENTION, model_inputs, pack_rows


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    min_new_tokens: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    generator: torch.Generator | None = None,
    row_indices: Sequence[int] | None = None,
    rows_in_all: int | None = None,
    rows_at_once: int | None = None,
    stop: StopStrings | None = None,
) -> Responses:
    """Answer each prompt with a transformers model (or a PEFT model) whose weights are whole.

    Temperature 0 takes the likeliest token and needs no generator. `generator` is a CPU generator:
    it gives one uniform number for each of `rows_in_all` × `max_new_tokens`; prompt i takes those
    of row `row_indices[i]` (default: i). So a row's response depends on its prompt, the weights and
    its number alone, not on which rank answers it beside which others. `rows_at_once` bounds
    memory: more prompts are answered in turns, those of similar length together. A response also
    ends, as finished, with the token that completes a text of `stop`, from `min_new_tokens` on.
    """
    uniform = _uniform_numbers(len(prompts), max_new_tokens, generator, row_indices, rows_in_all)
    if temperature > 0 and generator is None:
        raise ValueError("sampling needs a generator: only temperature 0 goes without")
    sampling = Sampling(temperature, top_k, top_p)
    ends = frozenset(eos_token_ids)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    size = rows_at_once or max(len(prompts), 1)
    tokens: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    with _evaluating(model):
        kind = _kind_of_batch(model)
        for turn in (order[i : i + size] for i in range(0, len(order), size)):
            batch = kind(model, [prompts[i] for i in turn], max_new_tokens, pad_token_id)
            answers = batch.run(sampling, uniform[turn], ends, min_new_tokens, stop)
            for i, (answer, ended) in zip(turn, answers, strict=True):
                tokens[i], finished[i] = answer, ended
    return Responses(tokens, finished)


class _Batch:
    """Rows that are answered together. Row j of the cache belongs to prompt `self.owner[j]`."""

    def __init__(
        self, model: Any, prompts: list[Sequence[int]], max_new_tokens: int, pad_token_id: int
    ) -> None:
        if not all(prompts):
            raise ValueError("a prompt without tokens cannot be answered")
        self.model, self.prompts, self.pad = model, prompts, pad_token_id
        self.device = next(model.parameters()).device
        self.config = model.config.get_text_config()
        self.max_new_tokens = max_new_tokens
        self.width = max(map(len, prompts))  # columns of the prompts
        self.columns = self.width + max_new_tokens
        self.owner = list(range(len(prompts)))
        layers = int(self.config.num_hidden_layers)
        self.cache = ReservedCache(layers, len(prompts), self.columns)
        starts = torch.tensor([self.width - len(p) for p in prompts])
        column_C = torch.arange(self.columns)
        self.seen_BC = (column_C >= starts[:, None]).to(self.device)
        self.position_B = torch.tensor([len(p) for p in prompts], device=self.device)
        self.uniform_BT = torch.zeros(len(prompts), 0, device=self.device)

    def run(
        self,
        sampling: Sampling,
        uniform_BT: Tensor,
        ends: frozenset[int],
        min_new_tokens: int,
        stop: StopStrings | None,
    ) -> list[tuple[list[int], bool]]:
        """Each prompt's response and whether it ended by itself."""
        answers: list[tuple[list[int], bool]] = [([], False) for _ in self.prompts]
        self.uniform_BT = uniform_BT.to(self.device)
        logits_BV = self._prefill()
        for step in range(self.max_new_tokens):
            forbidden = sorted(ends) if step + 1 < min_new_tokens else ()
            tokens_B = sample(logits_BV, self.uniform_BT[:, step], sampling, forbidden)
            chosen = tokens_B.tolist()  # the one wait for a GPU in a step that ends no row
            for row, token in enumerate(chosen):
                answers[self.owner[row]][0].append(token)
            done = [row for row, token in enumerate(chosen) if token in ends]
            if stop is not None and step + 1 >= min_new_tokens:
                said = [answers[owner][0] for owner in self.owner]
                done = [r for r, t in enumerate(said) if t[-1] in ends or stop.complete(t)]
            for row in done:
                answers[self.owner[row]] = (answers[self.owner[row]][0], True)
            if len(done) == len(chosen) or step + 1 == self.max_new_tokens:
                break
            logits_BV = self._decode(self._drop(done, tokens_B), step)
        return answers

    def _prefill(self) -> Tensor:
        """The prompts through the model, into the cache: logits of the first new token (B, V)."""
        if self.config._attn_implementation != ATTENTION:
            return self._padded_prefill()
        prompts = [tuple(prompt) for prompt in self.prompts]
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        packed = pack_rows(list(number), self.device)  # a prompt once, whatever is asked of it
        place, starts = [number[prompt] for prompt in prompts], packed.starts
        lengths = [len(prompt) for prompt in prompts]
        self.cache.expect_packed([starts[i] for i in place], lengths, self.width, self.device)
        last_P = torch.tensor(packed.lengths, device=self.device).cumsum(0) - 1
        inputs, _ = model_inputs(packed, True, last_P)
        inputs |= {"past_key_values": self.cache, "use_cache": True, "logits_to_keep": last_P}
        logits_PV: Tensor = self.model(**inputs).logits[0]
        self.cache.packed_is_in(self.width)
        return logits_PV[torch.tensor(place, device=self.device)]

    def _padded_prefill(self) -> Tensor:
        rows = [[self.pad] * (self.width - len(p)) + list(p) for p in self.prompts]
        seen_BC = self.seen_BC[:, : self.width]
        logits_BTV = self.model(
            input_ids=torch.tensor(rows, device=self.device),
            attention_mask=seen_BC.long(),
            position_ids=(seen_BC.long().cumsum(-1) - 1).clamp_min(0),
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        last_BV: Tensor = logits_BTV[:, -1]
        return last_BV

    def _decode(self, tokens_B: Tensor, step: int) -> Tensor:
        """One token a row through the model: logits of the next one (B, V)."""
        end = self.width + step + 1
        logits_BTV = self.model(
            input_ids=tokens_B[:, None],
            attention_mask=self._mask(end),
            position_ids=(self.position_B + step)[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        last_BV: Tensor = logits_BTV[:, -1]
        return last_BV

    def _mask(self, end: int) -> Tensor:
        """(B, 1, 1, C) where our attention takes it as it is, else (B, C)."""
        first = self.cache.layers[0].first
        seen_BC = self.seen_BC[:, first:end]
        window = getattr(self.config, "sliding_window", None)
        plain = window is None or window >= self.columns
        if plain and self.config._attn_implementation == ATTENTION:
            return seen_BC[:, None, None]
        return seen_BC.long()

    def _drop(self, done: list[int], tokens_B: Tensor) -> Tensor:
        """Take finished rows out of everything; returns the tokens of those that stay."""
        if not done:
            return tokens_B
        order = list(range(len(self.owner)))
        for row in reversed(done):  # from the last: a row that moves down is never one to drop
            order[row] = order[-1]
            order.pop()
        self.owner = [self.owner[i] for i in order]
        keep = torch.tensor(order, device=self.device)
        self.seen_BC, self.position_B = self.seen_BC[keep], self.position_B[keep]
        self.uniform_BT = self.uniform_BT[keep]
        self._forget(done, keep)
        return tokens_B[keep]

    def _forget(self, done: list[int], keep: Tensor) -> None:
        """Take these rows out of the cache, whose rows then are those to keep, in this order."""
        for row in reversed(done):
            self.cache.drop_row(row)
        self.cache.narrow(self.width - max(len(self.prompts[i]) for i in self.owner))


class _OwnCache(_Batch):
    """Rows of a model with states beside keys and values, in transformers' cache of all of them."""

    def __init__(
        self, model: Any, prompts: list[Sequence[int]], max_new_tokens: int, pad_token_id: int
    ) -> None:
        super().__init__(model, prompts, max_new_tokens, pad_token_id)
        plain = plain_model(model)
        self.states = DynamicCache(config=plain.config)
        self.has_keys = any(isinstance(x, CacheLayerMixin) for x in self.states.layers)
        self.name = cache_keyword(plain)
        self.takes_positions = "position_ids" in inspect.signature(plain.forward).parameters

    def _prefill(self) -> Tensor:
        """Pads are to the left, and masked: they leave a state as it was, at 0."""
        rows = [[self.pad] * (self.width - len(p)) + list(p) for p in self.prompts]
        seen_BC = self.seen_BC[:, : self.width].long()
        position_BC = (seen_BC.cumsum(-1) - 1).clamp_min(0)
        return self._read(torch.tensor(rows, device=self.device), seen_BC, position_BC)

    def _decode(self, tokens_B: Tensor, step: int) -> Tensor:
        seen_BC = self.seen_BC[:, : self.width + step + 1].long() if self.has_keys else None
        return self._read(tokens_B[:, None], seen_BC, (self.position_B + step)[:, None])

    def _read(self, tokens_BT: Tensor, seen_BC: Tensor | None, position_BT: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"attention_mask": seen_BC, self.name: self.states}
        if self.takes_positions:
            inputs["position_ids"] = position_BT
        logits_BTV = self.model(input_ids=tokens_BT, use_cache=True, **inputs).logits
        last_BV: Tensor = logits_BTV[:, -1]
        return last_BV

    def _forget(self, done: list[int], keep: Tensor) -> None:
        self.states.reorder_cache(keep)


class _WholeRows(_Batch):
    """Rows of a model that no cache serves: without one, all of a row is read again."""

    def _prefill(self) -> Tensor:
        self.rows = [list(prompt) for prompt in self.prompts]
        return self._next_logits()

    def _decode(self, tokens_B: Tensor, step: int) -> Tensor:
        for owner, token in zip(self.owner, tokens_B.tolist(), strict=True):
            self.rows[owner].append(token)
        return self._next_logits()

    def _next_logits(self) -> Tensor:
        """Logits of the next token (B, V). Pads are to the right, where nothing real reads them."""
        packed = pack_rows([self.rows[owner] for owner in self.owner], self.device)
        inputs, _ = model_inputs(packed, is_packable=False)
        logits_BTV: Tensor = self.model(**inputs).logits
        last_B = torch.tensor(packed.lengths, device=self.device) - 1
        return logits_BTV[torch.arange(len(last_B), device=self.device), last_B]


def cache_keyword(plain: Any) -> str:
    """What a transformers model calls its cache, as an argument and in its output."""
    takes = inspect.signature(plain.forward).parameters
    return "cache_params" if "cache_params" in takes else "past_key_values"


UNFIT: Final = (
    ValueError,
    TypeError,
    NotImplementedError,
    RuntimeError,
    AttributeError,
    LookupError,
)
"""What a model may raise at a cache that is none of its own."""
_KINDS: Final[WeakKeyDictionary[Any, type[_Batch]]] = WeakKeyDictionary()
"""Of models that have been tried; each generates once a rollout."""


def _kind_of_batch(model: Any) -> type[_Batch]:
    if model not in _KINDS:
        if _is_seen_to_take_the_cache(model):
            _KINDS[model] = _Batch
        else:
            _KINDS[model] = _OwnCache if _is_seen_to_keep_its_states(model) else _WholeRows
    return _KINDS[model]


def _is_seen_to_take_the_cache(model: Any) -> bool:
    """By trial: whether the model writes to our cache. Some (Jamba, LFM2) refuse it; others (Mamba,
    RWKV) know their state by another name, and would see the newest token alone."""
    plain = plain_model(model)
    if getattr(plain, "_is_stateful", False):
        return False
    trial = _Batch(model, [[0, 0]], 2, 0)
    try:
        trial._decode(trial._prefill().argmax(-1), 0)
    except UNFIT:
        return False
    return int(trial.cache.layers[0].used) == trial.width + 1


def _is_seen_to_keep_its_states(model: Any) -> bool:
    """By trial: whether rows of two lengths, of which one is done first, have the logits with
    transformers' cache that they have when they are read whole. What may differ is measured by what
    there is to lose: the logits of the newest token alone are the model's without any state.
    """
    prompts: list[Sequence[int]] = [[5, 7, 9, 11, 13], [6, 8, 10]]
    pad = 4  # not the model's own, whose embedding is 0
    try:
        own, whole = _OwnCache(model, prompts, 3, pad), _WholeRows(model, prompts, 3, pad)
        if not any(isinstance(x, LinearAttentionCacheLayerMixin) for x in own.states.layers):
            return False
        found, expected = own._prefill(), whole._prefill()
        alone = _WholeRows(model, [row[-1:] for row in prompts], 3, pad)._prefill()
        at_stake, error = (alone - expected).abs().max(), (found - expected).abs().max()
        for step, done in enumerate(([], [0])):
            own._drop(done, expected.argmax(-1))
            tokens_B = whole._drop(done, expected.argmax(-1))
            found, expected = own._decode(tokens_B, step), whole._decode(tokens_B, step)
            error = torch.maximum(error, (found - expected).abs().max())
    except UNFIT:
        return False
    coarse = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    return bool(error <= (0.05 if coarse else 1e-3) * at_stake)


def _uniform_numbers(
    prompts: int,
    max_new_tokens: int,
    generator: torch.Generator | None,
    row_indices: Sequence[int] | None,
    rows_in_all: int | None,
) -> Tensor:
    rows = range(prompts) if row_indices is None else row_indices
    total = max(rows, default=-1) + 1 if rows_in_all is None else rows_in_all
    if generator is None:
        return torch.zeros(prompts, max_new_tokens)
    # float64: in fp32, one of 16 million numbers would be shared, and the tail never sampled.
    numbers = torch.rand(total, max_new_tokens, generator=generator, dtype=torch.float64)
    return numbers[list(rows)]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
