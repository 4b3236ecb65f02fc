"""Talking to a trained model."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from rlhf_trainer.chat import Chat, talk
from rlhf_trainer.errors import ConfigurationError
from trainer_pod import write_model


def said(chat: Chat, text: str) -> list[str]:
    target = io.StringIO()
    talk(chat, io.StringIO(text), target)
    return target.getvalue().split("\n")


def test_pieces_make_up_the_answer_that_transformers_gives(models: Mapping[str, Path]) -> None:
    chat = Chat(models["llama"], max_new_tokens=6)
    pieces = list(chat.answer("what colour?"))
    prompt = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "what colour?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    tokens = chat.model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
    whole = chat.tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(pieces) == whole.rstrip("\ufffd")
    assert chat.turns[1] == {"role": "assistant", "content": "".join(pieces)}


def test_each_line_is_a_turn_and_reset_forgets(models: Mapping[str, Path]) -> None:
    chat = Chat(models["llama"], max_new_tokens=4)
    once = said(chat, "hello\n\n/reset\nhello\n/exit\nnever read\n")
    assert once[0] == once[1]
    assert len(chat.turns) == 2
    said(chat, "again")
    assert len(chat.turns) == 4


def test_an_answer_gives_the_terminal_no_orders(
    models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(models["llama"])
    copied = "a\x1b]52;c;aGFybQ==\x07b\x9b2J\r字\n\tc"
    monkeypatch.setattr(chat, "answer", lambda _: iter(copied))
    target = io.StringIO()
    talk(chat, io.StringIO("hello\n"), target)
    assert target.getvalue() == "a]52;c;aGFybQ==b2J字\n\tc\n"


@pytest.mark.parametrize("max_new_tokens", [8, 64])
def test_a_conversation_longer_than_the_model_reads_forgets_its_beginning(
    max_new_tokens: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "short", "gpt2", n_positions=32)
    chat = Chat(path, max_new_tokens=max_new_tokens)
    capsys.readouterr()
    said(chat, "hello\n")
    assert capsys.readouterr().err == ""
    said(chat, "how are you?\nwhat colour?\n")
    assert "the model reads 32 tokens: the oldest turns are forgotten" in capsys.readouterr().err
    said(chat, "word " * 40)
    assert [turn["role"] for turn in chat.turns] == ["user", "assistant"]
    assert "are left out)" in capsys.readouterr().err


def test_what_is_no_model_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model configuration"):
        Chat(tmp_path)
    (write_model(tmp_path, "gpt2") / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match="no tokenizer"):
        Chat(tmp_path)


def test_the_command_reads_a_pipe_and_tells_of_lines_that_are_no_text(
    models: Mapping[str, Path],
) -> None:
    command = [sys.executable, "-m", "rlhf_trainer", "chat", str(models["llama"])]
    command += ["--max-new-tokens", "4"]
    done = subprocess.run(command, input=b"\xff hello\nhello\n", capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b"(not read: this line is not UTF-8 text)\n"
    assert done.stdout.count(b"\n") == 1


def test_a_reader_that_goes_away_ends_it_without_a_traceback(models: Mapping[str, Path]) -> None:
    chat = f"{sys.executable} -m rlhf_trainer chat {models['llama']} --max-new-tokens 4"
    script = f"yes hello | head -100 | {chat} | head -c 1 > /dev/null; echo ${{PIPESTATUS[2]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300)
    assert (result.stdout, "Traceback" in result.stderr) == ("0\n", False), result.stderr
