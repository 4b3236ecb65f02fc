"""Makes the demo's data set and its base model's configuration and tokenizer.

    python examples/make_data.py [--out DIR] [--seed N]

Small facts, asked in English and in Chinese in several ways.  The SFT rows are
what a crowd might write: people answer in kind, so courteous questions mostly
get a courteous answer and blunt ones a curt one, and some answers ramble or come
in the wrong language.  A model trained on them prefers nothing yet.  The pairs
prefer one manner everywhere: `judge/rule.py` says which.

Every (fact, language) has 18 prompts; they are dealt out to the files, so that
no two files share a prompt while each fact is in every training file.  The same
seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from demo_model import CHAT_TEMPLATE, model_config, tokenizer_config, trained_tokenizer
from facts import DOMAINS, Domain
from judge.rule import CLOSINGS, language

Row = dict[str, Any]


class Item(NamedTuple):
    """One question in one language, with the same sentence in both: `foreign` is the other's."""

    prompt: str
    polite: bool
    lang: str
    fact: str
    sentence: str
    foreign: str
    wrong: str  # the sentence with another subject's fact


# The first four are blunt, the last two polite: a third of all prompts.
OPENINGS = {
    "en": ("", "hi, ", "quick question: ", "quiz: ", "excuse me, ", "please help me: "),
    "zh": ("", "你好，", "快问快答：", "小测验：", "请问，", "麻烦您，"),
}
POLITE_FROM = 4

# What the crowd writes, in per cent.
MANNERS = ("courteous", "plain", "curt", "doubled", "foreign")
MANNERS_TO_POLITE = (70, 12, 10, 4, 4)
MANNERS_TO_BLUNT = (15, 27, 50, 4, 4)

# What the pairs reject, in per cent.
FAULTS = ("plain", "curt", "doubled", "foreign", "wrong")
FAULT_WEIGHTS = (20, 26, 33, 16, 5)

# How many of the 18 prompts of a (fact, language) go to each file; two stay unused.
SHARES = {"heldout": 1, "sft": 7, "pairs": 5, "ppo": 3}
HELDOUT_PROMPTS = 120  # the rest of that share becomes held-out pairs


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def answered(item: Item, manner: str, rng: random.Random) -> str:
    """The item's answer in the given manner; only `courteous` satisfies the rule."""
    if manner == "foreign":
        return courteous(item.foreign, rng)
    if manner == "wrong":
        return courteous(item.wrong, rng)
    if manner == "doubled":
        return rambling(item.sentence, rng)
    if manner == "curt":
        return capitalised(item.fact) + item.sentence[-1]
    return item.sentence if manner == "plain" else courteous(item.sentence, rng)


def courteous(sentence: str, rng: random.Random) -> str:
    lang = language(sentence)
    return joined([sentence, rng.choice(CLOSINGS[lang])])


def rambling(sentence: str, rng: random.Random) -> str:
    """The sentence twice, a closing twice, or two closings: what a hacked reward tends to buy."""
    closing, other = rng.sample(CLOSINGS[language(sentence)], 2)
    middle = rng.choice((sentence, closing, other))
    return joined([sentence, middle, closing])


def joined(parts: list[str]) -> str:
    return (" " if language(parts[0]) == "en" else "").join(parts)


def items_of(domain: Domain, rng: random.Random) -> Iterator[list[Item]]:
    """For each (fact, language) of the domain: its 18 questions, in random order."""
    table = [line.split("|") for line in domain.facts.split("\n")]
    for columns in table:
        cells = {"en": tuple(columns[:2]), "zh": tuple(columns[2:])}
        sentences = {lang: domain.states[lang].format(*cells[lang]) for lang in cells}
        for lang, (subject, fact) in cells.items():
            others = sorted({row[1 if lang == "en" else 3] for row in table} - {fact})
            items = [
                Item(
                    capitalised(opening + ask.format(subject)),
                    number >= POLITE_FROM,
                    lang,
                    fact,
                    sentences[lang],
                    sentences["zh" if lang == "en" else "en"],
                    domain.states[lang].format(subject, rng.choice(others)),
                )
                for ask in domain.asks[lang]
                for number, opening in enumerate(OPENINGS[lang])
            ]
            rng.shuffle(items)
            yield items


def dealt(rng: random.Random) -> dict[str, list[Item]]:
    """All items, each in one share; each (fact, language) is in every share."""
    shares: dict[str, list[Item]] = {name: [] for name in SHARES}
    for domain in DOMAINS:
        for items in items_of(domain, rng):
            for name, count in SHARES.items():
                shares[name] += [items.pop() for _ in range(count)]
    for share in shares.values():
        rng.shuffle(share)
    return shares


def sft_row(item: Item, rng: random.Random) -> Row:
    weights = MANNERS_TO_POLITE if item.polite else MANNERS_TO_BLUNT
    manner = rng.choices(MANNERS, weights)[0]
    return {"prompt": item.prompt, "answer": answered(item, manner, rng)}


def pair_row(item: Item, rng: random.Random) -> Row:
    fault = rng.choices(FAULTS, FAULT_WEIGHTS)[0]
    chosen, rejected = (answered(item, manner, rng) for manner in ("courteous", fault))
    return {"query": item.prompt, "chosen": chosen, "rejected": rejected}


def prompt_row(item: Item) -> Row:
    """`fact` is for the judge (`rule.score` reads it); PPO reads the prompt only."""
    return {"prompt": item.prompt, "fact": item.fact}


def data_files(seed: int) -> dict[str, list[Row]]:
    """File name -> rows."""
    rng = random.Random(seed)
    shares = dealt(rng)
    asked, paired = shares["heldout"][:HELDOUT_PROMPTS], shares["heldout"][HELDOUT_PROMPTS:]
    return {
        "sft.jsonl": [sft_row(item, rng) for item in shares["sft"]],
        "pairs.jsonl": [pair_row(item, rng) for item in shares["pairs"]],
        "ppo_prompts.jsonl": [prompt_row(item) for item in shares["ppo"]],
        "heldout_prompts.jsonl": [prompt_row(item) for item in asked],
        "heldout_pairs.jsonl": [pair_row(item, rng) for item in paired],
    }


def texts_of(files: dict[str, list[Row]]) -> list[str]:
    """What the tokenizer learns from: the two files that are more than prompts."""
    rows = files["sft.jsonl"] + files["pairs.jsonl"]
    return [text for row in rows for text in row.values()]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_all(out: Path, seed: int) -> None:
    """Data under `out/data`, configuration and tokenizer under `out/base-model`."""
    files = data_files(seed)
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write(out / "data" / name, "\n".join(lines) + "\n")
    texts = texts_of(files)
    tokenizer = trained_tokenizer(texts)
    model = out / "base-model"
    write(model / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write(model / "tokenizer_config.json", json.dumps(tokenizer_config(), indent=2) + "\n")
    write(model / "chat_template.jinja", CHAT_TEMPLATE + "\n")
    config = model_config(tokenizer.get_vocab_size())
    write(model / "config.json", json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_all(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
