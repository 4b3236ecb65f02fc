"""`python -m rlhf_cli`, the same as `rlhfctl`."""

from __future__ import annotations

import sys

from rlhf_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
