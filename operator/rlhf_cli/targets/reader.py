"""Runs in a pod, by its text: writes files of a volume to the log, for rlhfctl to read there.

    python -c TEXT '{"patterns": ["checkpoints/job/sft-1/…", …], "have": {PATH: BYTES, …}}'

Every frame is a line: `total BYTES`; then for each file `file SIZE OFFSET PATH` (JSON text), `data
BASE64` of compressed pieces from the offset on, `end SHA256` of the whole file; after the last one
`done COUNT`. `have` tells what is there already; `copy` are words for the image's trainer, which
brings the files from an object store first. Standard library only: any image with Python does.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence

PIECE = 6 << 10
"""Bytes; a line stays below the 16 KiB at which container runtimes cut lines."""
BLOCK = 1 << 20
RATE = 24 << 20
"""Bytes a second: what a kubelet that rotates logs can be expected to follow."""


class Writer:
    """Writes no faster than a log can be followed."""

    def __init__(self) -> None:
        self.began, self.written = time.monotonic(), 0

    def write(self, path: str, have: int) -> None:
        """One file, from where the other side has it on; if it is shorter by now, all of it."""
        size = os.path.getsize(path)
        offset = have if have <= size else 0
        print("file", size, offset, json.dumps(path))
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            while left := offset - stream.tell():
                digest.update(stream.read(min(BLOCK, left)))
            while piece := stream.read(PIECE):
                digest.update(piece)
                print("data", base64.b64encode(zlib.compress(piece, 1)).decode())
                self._rest(len(piece))
        print("end", digest.hexdigest())

    def _rest(self, size: int) -> None:
        self.written += size
        if self.written // RATE > (self.written - size) // RATE:
            time.sleep(max(0.0, self.written / RATE - (time.monotonic() - self.began)))


def main(patterns: list[str], have: dict[str, int], copy: Sequence[str] = ()) -> None:
    """Write all files that fit, each once, in the order of the patterns."""
    if copy and (code := subprocess.run([sys.executable, "-m", "rlhf_trainer", *copy]).returncode):
        sys.exit(code)
    fitting = (path for pattern in patterns for path in sorted(glob.glob(pattern, recursive=True)))
    paths = [path for path in dict.fromkeys(fitting) if os.path.isfile(path)]
    print("total", sum(map(os.path.getsize, paths)))
    writer = Writer()
    for path in paths:
        writer.write(path, have.get(path, 0))
    print("done", len(paths), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
