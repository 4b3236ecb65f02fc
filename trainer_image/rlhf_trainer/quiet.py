"""The one place where third-party chatter is turned off: what is left on a screen is for users."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from typing import Any

LINE_FORMAT = "%(message)s"


def configure_logging(rank: int = 0) -> None:
    """Our own lines on stderr, from rank 0 all of them, from the others what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LINE_FORMAT))
    ours = logging.getLogger("rlhf_trainer")
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(logging.INFO if rank == 0 else logging.WARNING)


def silence_libraries() -> None:
    """Before they are imported: they read these variables as they load."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in ("torch.distributed", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|peft)\b")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def import_deepspeed() -> Any:
    """deepspeed, with errors alone in its log (what it warns of, our own messages say).

    Its autotuner, which nothing here uses, imports MLflow where that is installed: a quarter of
    the time and a tenth of the memory that a trainer needs to start. Muon, which every engine asks
    about and none here uses, has torch's compiler loaded: a third of that time again.
    """
    with _put(sys.modules, "mlflow", None):  # it cannot be imported, whether or not it is there
        import deepspeed
    from deepspeed.runtime import compiler

    uncompiled = _put(vars(compiler), "compile", lambda: lambda function: function)
    with uncompiled, suppress(ImportError):
        import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


@contextmanager
def _put(table: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Within it a name has this value; afterwards its own again, or none."""
    before = {name: table[name]} if name in table else {}
    table[name] = value
    try:
        yield
    finally:
        del table[name]
        table.update(before)


@contextmanager
def no_prints() -> Iterator[None]:
    """Drop what a library prints to stdout; stages say nothing there."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def no_bars() -> Iterator[None]:
    """Drop what a library draws on stderr as well; what is logged still goes there."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield
