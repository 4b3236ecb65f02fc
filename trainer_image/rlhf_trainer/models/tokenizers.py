"""Tokenizers: the stage's own, with a template and a pad token where it has none."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlhf_api.run import StageRun

from rlhf_trainer.data.rendering import end_token_ids
from rlhf_trainer.errors import ConfigurationError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ message['role'] + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
"""For a tokenizer without a chat template: roles in plain words, no special tokens but EOS. A
prompt ends with a newline: no answer begins after a space that is a token of its own."""

FRESH_PAD: Final = "<|pad|>"


def load_tokenizer(run: StageRun) -> PreTrainedTokenizerBase:
    """The stage's tokenizer: spec.model.tokenizer, else the one beside the policy, else the base's.

    It always has an EOS, a pad token (which may be the EOS: masks are by position) and a template.
    """
    path = tokenizer_path(run)
    tokenizer = read_tokenizer(path)
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(f"the tokenizer in {path} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if run.model.chat_template is not None:
        tokenizer.chat_template = run.model.chat_template
    elif not tokenizer.chat_template:
        tokenizer.chat_template = plain_template(tokenizer)
    return tokenizer


def read_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory, as it lies there. Raises ConfigurationError where none does:
    of Qwen, Gemma, GPT-NeoX and others transformers then makes one of special tokens alone, to
    which every text is nothing, or `<unk>`.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=False
        )
        if set(tokenizer.get_vocab().values()) <= set(tokenizer.added_tokens_decoder):
            raise ValueError("it has special tokens alone")
    except Exception as error:  # of the library in Rust, this very class
        raise ConfigurationError(
            f"no tokenizer can be read from {path} ({first_line(error)}): put its files beside the "
            f"model, or name it in model.tokenizer"
        ) from None
    return tokenizer


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """PLAIN_TEMPLATE, after BOS where the tokenizer has the habit of putting it before a text."""
    has_habit = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if has_habit else "") + PLAIN_TEMPLATE


def with_distinct_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy whose pad token ends no answer.

    transformers' classifiers read a score at the last token that is not the pad token: were it the
    EOS as well, they would read one token early.
    """
    ends = end_token_ids(tokenizer)
    if tokenizer.pad_token_id not in ends:
        return tokenizer
    own = copy.deepcopy(tokenizer)
    special = {i: str(t) for i, t in own.added_tokens_decoder.items() if t.special}
    named = (text for i, text in sorted(special.items()) if "pad" in text and i not in ends)
    own.add_special_tokens({"pad_token": next(named, FRESH_PAD)})
    return own


def reads_tokens_of(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether every token of `other` has the same id here; a pad token may be new."""
    own, asked = tokenizer.get_vocab(), other.get_vocab()
    more = own.keys() - asked.keys()
    return more <= {tokenizer.pad_token} and all(own.get(t) == i for t, i in asked.items())


def tokenizer_path(run: StageRun) -> str:
    if run.model.tokenizer is not None:
        return run.paths[run.model.tokenizer]
    for role in ("policy", "base"):
        source = run.inputs.get(role)
        if source is not None and (Path(source.path) / "tokenizer_config.json").exists():
            return source.path
    if "base" in run.inputs:
        return run.inputs["base"].path
    return run.paths[run.model.source]
