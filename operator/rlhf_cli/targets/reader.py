"""Runs in a pod, by its text: writes files of a volume to the log, for rlhfctl to read there.

    python -c TEXT '["checkpoints/job/sft-1/attempt-*/metrics.jsonl", …]'

A frame is a line: `file SIZE PATH` (JSON text), then `data BASE64` of compressed pieces, then
`end SHA256`; after the last file `done COUNT`. Standard library only: any image with Python does.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import json
import os
import sys
import time
import zlib

PIECE = 6 << 10
"""Bytes; a line stays below the 16 KiB at which container runtimes cut lines."""
RATE = 24 << 20
"""Bytes a second: what a kubelet that rotates logs can be expected to follow."""


def main(patterns: list[str]) -> None:
    """Write all files that fit, each once, in the order of the patterns."""
    fitting = (path for pattern in patterns for path in sorted(glob.glob(pattern, recursive=True)))
    paths = [path for path in dict.fromkeys(fitting) if os.path.isfile(path)]
    began, written = time.monotonic(), 0
    for path in paths:
        print("file", os.path.getsize(path), json.dumps(path))
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            while piece := stream.read(PIECE):
                digest.update(piece)
                print("data", base64.b64encode(zlib.compress(piece, 1)).decode())
                written += len(piece)
                if written // RATE > (written - len(piece)) // RATE:
                    time.sleep(max(0.0, written / RATE - (time.monotonic() - began)))
        print("end", digest.hexdigest())
    print("done", len(paths), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
