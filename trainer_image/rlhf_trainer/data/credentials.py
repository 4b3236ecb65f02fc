"""What a source is fetched with: the keys of a Secret, which are files; else what the process has.

On a cluster the folder of a Secret that a source names is always there: without the Secret, the
pod would not start. On one machine there is none, and the user's own credentials serve.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rlhf_api.run import SECRETS

from rlhf_trainer.errors import ConfigurationError

HUB_TOKEN: Final = "HF_TOKEN"
S3_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
GOOGLE_FILE: Final = "credentials.json"


class Credentials:
    """The Secret of a source, or nothing."""

    def __init__(self, secret: str | None) -> None:
        self._name = secret
        self._folder = Path(SECRETS, secret) if secret else None

    @property
    def is_there(self) -> bool:
        """Whether there is a Secret to read."""
        return self._folder is not None and self._folder.is_dir()

    def get(self, key: str) -> str | None:
        """The value of a key that may be left out."""
        path = self.path(key)
        return path.read_text("utf-8").strip() if path else None

    def require(self, *keys: str) -> None:
        """Raise ConfigurationError where a Secret lacks one of these keys."""
        missing = [key for key in keys if self.is_there and self.path(key) is None]
        if missing and self._folder:
            known = sorted(p.name for p in self._folder.iterdir() if not p.name.startswith(".."))
            raise ConfigurationError(
                f"Secret {self._name} has no key {' and '.join(missing)}; "
                f"it has {', '.join(known) or 'none'}"
            )

    def path(self, key: str) -> Path | None:
        """The file of a key, or None where there is none."""
        path = self._folder / key if self._folder else None
        return path if path and path.is_file() else None
