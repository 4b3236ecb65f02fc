"""Tokenizers of every make: templates, BOS, pads, and the border between prompt and answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rlhf_trainer.data.encode import encode_dialogue, encode_preference, encode_prompt
from rlhf_trainer.data.examples import Dialogue, Message, Preference, Prompt
from rlhf_trainer.models.tokenizers import (
    PLAIN_TEMPLATE,
    load_tokenizer,
    plain_template,
    reads_tokens_of,
    with_distinct_pad,
)
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from trainer_pod import TEMPLATE, VOCABULARY, Pod

SFT = {"data": {"source": "unused"}}
TEXTS = ["user: what is it? assistant: It is a lemon", "assistant: It is red", "你好，在哪里"] * 4
SPECIALS = ["<unk>", "<s>", "</s>"]
ENDS_WITH_A_SPACE = PLAIN_TEMPLATE.replace(":\\n", ": ")
SPACE = {"▁", "Ġ", " "}


def byte_level(add_prefix_space: bool) -> Tokenizer:
    """As GPT-2 and Qwen; as RoBERTa."""
    made = Tokenizer(kinds.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    return _trained(made, trainer)


def sentencepiece() -> Tokenizer:
    """As Llama 2 was converted: a space before the text, merges across spaces."""
    made = Tokenizer(kinds.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, show_progress=False)
    return _trained(made, trainer)


def metaspace() -> Tokenizer:
    """As Llama 2 in newer files."""
    made = Tokenizer(kinds.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, show_progress=False)
    return _trained(made, trainer)


def unigram() -> Tokenizer:
    """As T5 and XLM-R."""
    made = Tokenizer(kinds.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    return _trained(made, trainer)


def _trained(made: Tokenizer, trainer: Any) -> Tokenizer:
    made.train_from_iterator([*TEXTS, "\n"], trainer)
    return made


MAKES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: byte_level(False),
    "byte-level with a prefix": lambda: byte_level(True),
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "unigram": unigram,
}


def fast(made: Tokenizer, template: str | None = None) -> Any:
    from transformers import PreTrainedTokenizerFast

    own = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    own.chat_template = template
    return own


ASKED = (Message("user", "what is it?"),)
SAID = Message("assistant", "It is a lemon")


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, ENDS_WITH_A_SPACE, TEMPLATE])
@pytest.mark.parametrize("make", MAKES)
def test_a_prompt_has_the_same_tokens_alone_as_before_an_answer(make: str, template: str) -> None:
    tokenizer = fast(MAKES[make](), template)
    prompt = encode_prompt(tokenizer, Prompt("a:1", ASKED, {}), 999).tokens
    row = encode_dialogue(tokenizer, Dialogue("a:1", (*ASKED, SAID)), 999)
    assert row.tokens[: len(prompt)] == prompt
    assert row.loss_mask == [False] * len(prompt) + [True] * (len(row.tokens) - len(prompt))
    other = (Message("assistant", "It is red"),)
    pair = encode_preference(tokenizer, Preference("a:1", ASKED, ((SAID,), other), (0, 1)), 999)
    assert pair.prompt == prompt
    assert pair.answers[0].tokens == row.tokens[len(prompt) :]
    assert tokenizer.decode(row.tokens[len(prompt) :]).strip() == "It is a lemon</s>"


@pytest.mark.parametrize("make", MAKES)
def test_with_the_plain_template_no_answer_begins_after_a_lone_space(make: str) -> None:
    tokenizer = fast(MAKES[make](), PLAIN_TEMPLATE)
    row = encode_dialogue(tokenizer, Dialogue("a:1", (*ASKED, SAID)), 999)
    first = row.loss_mask.index(True)
    around = tokenizer.convert_ids_to_tokens(row.tokens[first - 1 : first + 1])
    assert not SPACE & set(around)
    whole = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in (*ASKED, SAID)], tokenize=False
    )
    assert row.tokens == tokenizer(whole.rstrip("\n"), add_special_tokens=False)["input_ids"]


def test_a_tokenizer_gets_a_template_and_a_pad_token_where_it_has_none(
    in_pod: Pod, tmp_path: Path, models: Mapping[str, Path]
) -> None:
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(models["llama"])
    bare.chat_template, bare.pad_token = None, None
    bare.save_pretrained(tmp_path / "bare")
    run = in_pod.stage_run("sft", SFT, inputs={"base": {"path": str(tmp_path / "bare")}})
    found = load_tokenizer(run)
    assert found.chat_template == PLAIN_TEMPLATE
    assert found.pad_token_id == found.eos_token_id == 2
    text = found.apply_chat_template(
        [{"role": "user", "content": "你好"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "user:\n你好\nassistant:\n"
    own = in_pod.stage_run("sft", SFT, model={"source": "model", "chatTemplate": "own"})
    assert load_tokenizer(own).chat_template == "own"
    assert len(found) <= VOCABULARY


def test_the_plain_template_begins_with_bos_where_the_tokenizer_has_the_habit() -> None:
    made = metaspace()
    assert plain_template(fast(made)) == PLAIN_TEMPLATE
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer = fast(made)
    tokenizer.chat_template = plain_template(tokenizer)
    prompt = encode_prompt(tokenizer, Prompt("a:1", ASKED, {}), 999).tokens
    assert prompt[0] == 1
    assert prompt.count(1) == 1


def test_a_pad_token_that_ends_answers_gives_way_to_one_of_its_own(tokenizer: Any) -> None:
    from copy import deepcopy

    assert with_distinct_pad(tokenizer) is tokenizer
    shared = deepcopy(tokenizer)
    shared.pad_token = shared.eos_token  # an unused <|pad|> is among its special tokens
    assert with_distinct_pad(shared).pad_token_id == 0
    assert shared.pad_token_id == 2
    bare = fast(metaspace(), PLAIN_TEMPLATE)
    bare.pad_token = bare.eos_token
    own = with_distinct_pad(bare)
    assert own.pad_token_id == len(bare)
    assert reads_tokens_of(own, bare)
    assert not reads_tokens_of(bare, fast(unigram()))
