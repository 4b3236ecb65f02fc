"""A KV cache that is reserved once, filled in place, and shrinks as rows finish.

transformers' DynamicCache copies all keys and values at every token. Here a token costs what it
writes. Rows are right-aligned: the last prompt token of every row is in the same column, so that
all rows write their next token at one place.

Shapes: B rows, K key heads, C columns, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class ReservedLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer in a buffer (B, K, C, D) that never grows."""

    is_sliding = False

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.first, self.used = 0, 0  # columns in use: first..used
        self.slots: tuple[Tensor, ...] | None = None  # (packed token, row, column) of each write

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Reserve the buffers, in the type and on the device of the first keys."""
        for name, x in (("keys", key_states), ("values", value_states)):
            shape = (self.rows, x.shape[1], self.columns, x.shape[3])
            setattr(self, name, torch.zeros(shape, dtype=x.dtype, device=x.device))
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, K, q, D), or packed ones (1, K, N, D) to their slots.

        Returns what attention shall see: all columns in use; of packed rows, the rows themselves.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.slots is not None:
            token_M, row_M, column_M = self.slots
            self.keys[row_M, :, column_M] = key_states[0].transpose(0, 1)[token_M]
            self.values[row_M, :, column_M] = value_states[0].transpose(0, 1)[token_M]
            return key_states, value_states
        new = slice(self.used, self.used + key_states.shape[2])
        self.keys[: self.rows, :, new] = key_states
        self.values[: self.rows, :, new] = value_states
        self.used = new.stop
        live = (slice(0, self.rows), slice(None), slice(self.first, self.used))
        return self.keys[live], self.values[live]

    def drop_row(self, row: int) -> None:
        """Give the row's place to the last row."""
        last = self.rows - 1
        if row != last and self.is_initialized:
            end = self.used
            self.keys[row, :, self.first : end] = self.keys[last, :, self.first : end]
            self.values[row, :, self.first : end] = self.values[last, :, self.first : end]
        self.rows = last

    def get_seq_length(self) -> int:
        """Columns that hold tokens."""
        return self.used - self.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the next query of this length will see, and the offset of the first."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Columns reserved."""
        return self.columns


class ReservedCache(Cache):  # type: ignore[misc]
    """One `ReservedLayer` a layer; rows are dropped from all of them alike."""

    def __init__(self, layers: int, rows: int, columns: int) -> None:
        super().__init__(layers=[ReservedLayer(rows, columns) for _ in range(layers)])

    def expect_packed(
        self, starts: Sequence[int], lengths: Sequence[int], prompt_columns: int, device: Any
    ) -> None:
        """The next forward pass brings packed prompts, to be right-aligned: that of each row begins
        at a packed position and has a length. Rows may have the same one."""
        spans = list(zip(starts, lengths, strict=True))
        slots_3M = torch.stack(
            [
                torch.cat([torch.arange(start, start + n) for start, n in spans]),
                torch.cat([torch.full((n,), row) for row, n in enumerate(lengths)]),
                torch.cat([torch.arange(prompt_columns - n, prompt_columns) for n in lengths]),
            ]
        )
        slots = tuple(slots_3M.to(device))
        for layer in self.layers:
            layer.slots = slots

    def packed_is_in(self, prompt_columns: int) -> None:
        """From now on, one token a row comes in."""
        for layer in self.layers:
            layer.slots, layer.used = None, prompt_columns

    def drop_row(self, row: int) -> None:
        """Give the row's place to the last row, in every layer."""
        for layer in self.layers:
            layer.drop_row(row)

    def narrow(self, first: int) -> None:
        """Columns before this one are pads in every row that is left: attention skips them."""
        for layer in self.layers:
            layer.first = first
