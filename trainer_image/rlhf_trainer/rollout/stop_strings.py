"""Texts at which a response ends, as vLLM's `stop` and transformers' `stop_strings`.

The token that completes such a text is the response's last one. It stays, with whatever follows the
text within it: what is learnt from is what was sampled, and a cut token would be none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

SPARE: Final = 4
"""Tokens before those that may hold the text: decoding a row from its middle may change its start,
a space of SentencePiece's or a part of a character."""


class StopStrings:
    """Tells where one of several texts is complete. Special tokens are read as they are written."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self.tokenizer, self.texts = tokenizer, tuple(texts)
        longest = max(len(text.encode()) for text in texts)
        self.window = longest + SPARE  # a token has a byte or more

    def complete(self, tokens: Sequence[int]) -> bool:
        """Whether the newest of a response's tokens completes one of them."""
        newest = tokens[-self.window :]
        said = self._text(newest)
        found = [text for text in self.texts if text in said]
        if not found:
            return False
        before = len(self._text(newest[:-1]).rstrip("\ufffd"))  # the middle of a character
        return any(said.find(text, max(0, before + 1 - len(text))) >= 0 for text in found)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def stop_strings(tokenizer: Any, texts: Sequence[str] | None) -> StopStrings | None:
    """None where there are none."""
    return StopStrings(tokenizer, texts) if texts else None
