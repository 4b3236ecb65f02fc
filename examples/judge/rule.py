"""The judge of the demo: a rule that no training stage ever sees.

The pairs prefer an answer that a polite assistant would give: one whole
sentence in the language of the question, then one courteous closing, and
nothing after it.  The rule says so in plain Python, so that the claim "PPO and
DPO learned the preference" is measured by something that neither of them could
have bent.  `score` also has the signature of a reward function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

CLOSINGS: dict[str, tuple[str, ...]] = {
    "en": ("Happy to help!", "Hope this helps!", "You are welcome!", "Glad you asked!"),
    "zh": ("很高兴帮到您！", "希望对您有帮助！", "不用客气！", "欢迎再问我！"),
}

# One sentence: only the letters of its language, and no end mark before its last character.
# Its least length (4 words, 6 characters) is longer than any bare fact of the data set.
_SENTENCE: dict[str, re.Pattern[str]] = {
    "en": re.compile(r"[A-Z0-9][A-Za-z0-9']*(?: [A-Za-z0-9']+){3,15}\."),
    "zh": re.compile(r"[\u4e00-\u9fff0-9]{6,24}。"),
}
_REPEATED = re.compile(r"\b(\w+) \1\b|([\u4e00-\u9fff]{2,})\2", re.IGNORECASE)


def language(text: str) -> str:
    """`zh` if any Chinese character is in the text, else `en`."""
    return "zh" if re.search(r"[\u4e00-\u9fff]", text) else "en"


def split_closing(answer: str, lang: str) -> tuple[str, str]:
    """(what comes before, the closing); the closing is empty if the answer ends without one."""
    for closing in CLOSINGS[lang]:
        if answer.endswith(closing):
            return answer.removesuffix(closing).rstrip(" "), closing
    return answer, ""


def states(sentence: str, fact: str) -> bool:
    """The sentence's last words are the fact; `15` does not state `5`, nor `unhappy` `happy`."""
    ending = re.escape(fact) + "[.。]$"
    boundary = r"(?<![A-Za-z0-9])" if fact[0].isascii() else ""
    return re.search(boundary + ending, sentence, re.IGNORECASE) is not None


def verdict(prompt: str, answer: str, fact: str | None = None) -> str:
    """`preferred`, or the first reason why not: what a report can show beside the answer."""
    lang = language(prompt)
    sentence, closing = split_closing(answer.strip(), lang)
    if language(answer) != lang:
        return "wrong language"
    if not closing:
        return "no closing"
    if not _SENTENCE[lang].fullmatch(sentence):
        return "not one whole sentence"
    if _REPEATED.search(sentence):
        return "repetition"
    if fact is not None and not states(sentence, fact):
        return "wrong fact"
    return "preferred"


def score(
    prompts: Sequence[str],
    answers: Sequence[str],
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> list[float]:
    """1.0 for each preferred answer, else 0.0.

    Where `rows` are given (the JSON rows that the prompts came from) and have a
    `fact`, the sentence must also end in it, so that politeness alone is not enough.
    """
    facts = [row.get("fact") for row in rows] if rows is not None else [None] * len(prompts)
    triples = zip(prompts, answers, facts, strict=True)
    return [float(verdict(*triple) == "preferred") for triple in triples]
