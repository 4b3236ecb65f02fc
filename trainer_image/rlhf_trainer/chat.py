"""`python -m rlhf_trainer chat DIRECTORY`: talk to a trained model on stdin and stdout.

In a terminal the answer appears token by token; from a pipe each line is a turn.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from rlhf_trainer.errors import ConfigurationError, TrainerError
from rlhf_trainer.models.context import context_length

HELP = "Type a message; /reset starts afresh, /exit leaves."


def main(directory: str, arguments: Sequence[str]) -> int:
    """The chat command; its exit code."""
    options = argparse.ArgumentParser(prog="rlhf_trainer chat")
    options.add_argument("--max-new-tokens", type=int, default=256)
    options.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--stop", action="append", help="a text that ends an answer, and stays")
    chosen = options.parse_args(arguments)
    try:
        settings = chosen.max_new_tokens, chosen.temperature, chosen.seed, chosen.stop
        chat = Chat(Path(directory), *settings)
    except TrainerError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    assert isinstance(sys.stdin, io.TextIOWrapper)
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # `talk` tells what is not
    try:
        talk(chat, sys.stdin, sys.stdout)
    except KeyboardInterrupt:
        print()
    except BrokenPipeError:  # the reader has gone, as `| head` does; Python flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def talk(chat: Chat, source: TextIO, target: TextIO) -> None:
    """Turn by turn, until the source ends or the user leaves."""
    terminal = source.isatty() and target.isatty()
    if terminal:
        print(HELP, file=target)
    while (line := _next_line(source, target, terminal)) is not None:
        match line.strip():
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/reset":
                chat.reset()
            case message if not _is_text(message):
                print("(not read: this line is not UTF-8 text)", file=sys.stderr)
            case message:
                for text in chat.answer(message):
                    print(shown(text), end="", flush=True, file=target)
                print(file=target, flush=True)
                if chat.left_out:
                    print(f"({chat.left_out})", file=sys.stderr)


def _is_text(line: str) -> bool:
    """Whether a line has no bytes that are not UTF-8: they come as lone surrogates."""
    return not any(unicodedata.category(c) == "Cs" for c in line)


def shown(text: str) -> str:
    """The text without what a terminal obeys: a model of somebody else's may say anything."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


class Chat:
    """One conversation with one model."""

    def __init__(
        self,
        directory: Path,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] | None = None,
    ) -> None:
        from rlhf_trainer.models.language_models import load_directory
        from rlhf_trainer.models.tokenizers import plain_template, read_tokenizer
        from rlhf_trainer.rollout.stop_strings import stop_strings

        self.model = load_directory(directory).eval()
        self.tokenizer = read_tokenizer(directory)
        if not self.tokenizer.chat_template:
            self.tokenizer.chat_template = plain_template(self.tokenizer)
        if self.tokenizer.eos_token_id is None:
            raise ConfigurationError(f"the tokenizer in {directory} has no end-of-sequence token")
        self.stop = stop_strings(self.tokenizer, stop)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.generator = torch.Generator().manual_seed(seed)
        self.turns: list[dict[str, str]] = []
        self.left_out = ""  # what the model could not read of the conversation, at the last answer

    def reset(self) -> None:
        """Forget what was said."""
        self.turns = []

    def answer(self, message: str) -> Iterator[str]:
        """The model's answer in pieces, whole characters each."""
        self.turns.append({"role": "user", "content": message})
        ids = self._prompt()
        said, tokens = "", []
        for token in self._tokens(ids):
            tokens.append(token)
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # the middle of a character
                yield text[len(said) :]
                said = text
        self.turns.append({"role": "assistant", "content": said})

    def _prompt(self) -> list[int]:
        """Tokens of the conversation. What the model cannot read beside its answer is forgotten:
        the oldest exchanges, then the start of the message."""
        limit = context_length(self.model.config)
        self.left_out = ""
        while True:
            text = self.tokenizer.apply_chat_template(
                self.turns, add_generation_prompt=True, tokenize=False
            )
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            room = len(ids) if limit is None else max(limit // 2, limit - self.max_new_tokens)
            if len(ids) <= room:
                return ids
            self.left_out = f"the model reads {limit} tokens: the oldest turns are forgotten"
            if len(self.turns) == 1:
                self.left_out = (
                    f"the model reads {limit} tokens, of which {room} are for what you say: of "
                    f"{len(ids)}, the first {len(ids) - room} are left out"
                )
                return ids[-room:]
            del self.turns[:2]

    @torch.no_grad()
    def _tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        from rlhf_trainer.evaluate import end_tokens
        from rlhf_trainer.rollout.native import cache_keyword

        keyword = cache_keyword(self.model)
        ends = end_tokens(self.tokenizer, self.model)
        row = list(prompt)
        feed, cache = torch.tensor([row], device=self.device), None
        limit = context_length(self.model.config) or sys.maxsize
        for _ in range(min(self.max_new_tokens, limit - len(prompt))):
            kept: dict[str, Any] = {} if cache is None else {keyword: cache}
            out: Any = self.model(feed, use_cache=True, logits_to_keep=1, **kept)
            cache = getattr(out, keyword, None)
            token = self._pick(out.logits[0, -1].float().cpu())
            if token in ends:
                return
            yield token
            row.append(token)
            if self.stop is not None and self.stop.complete(row[len(prompt) :]):
                return
            # RWKV and the first GPT give no such cache: they read the whole row again.
            feed = torch.tensor([row if cache is None else [token]], device=self.device)

    def _pick(self, logits_V: torch.Tensor) -> int:
        if self.temperature == 0:
            return int(logits_V.argmax())
        probabilities_V = (logits_V / self.temperature).softmax(-1)
        return int(torch.multinomial(probabilities_V, 1, generator=self.generator))


def _next_line(source: TextIO, target: TextIO, terminal: bool) -> str | None:
    if terminal:
        print("> ", end="", flush=True, file=target)
    return source.readline() or None
