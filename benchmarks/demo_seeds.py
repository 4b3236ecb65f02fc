"""What the quickstart job comes to with other seeds: each does its job, or the exit code is 1.

    python benchmarks/demo_seeds.py

    … demo_seeds.py 11 12 13 --json

Whole runs of `rlhfctl run`, one after the other; a row for each as it ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import yaml

REPOSITORY: Final = Path(__file__).parents[1]
FEWEST_RIGHT: Final = 0.9
"""Share of held-out pairs that the reward model has to rank as the rule does."""
LEAST_GAIN: Final = 0.25
"""By which PPO and DPO each have to raise the rule's share of preferred answers over SFT's."""
MOST_KL: Final = 5.0
"""Nats a response by which PPO may be away from SFT."""


class Row(NamedTuple):
    """One seed's figures."""

    seed: int
    seconds: float
    base: float
    sft: float
    ppo: float
    dpo: float
    reward_accuracy: float
    kl: float

    @property
    def is_good(self) -> bool:
        """Whether each stage did its job."""
        gains = self.ppo - self.sft, self.dpo - self.sft
        learns = self.sft > self.base and self.reward_accuracy >= FEWEST_RIGHT
        return learns and min(gains) >= LEAST_GAIN and 0 < self.kl < MOST_KL


def main() -> int:
    """Train and print."""
    options = parsed(sys.argv[1:])
    rows = []
    if not options.json:
        print("  ".join(f"{name:>8}" for name in (*Row._fields[:-2], "accuracy", "kl")))
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="demo-seeds-") as folder:
            rows.append(row := trained(seed, Path(folder) / "run"))
        if not options.json:
            bad = "" if row.is_good else "  misses what it is to reach"
            print("  ".join(f"{value:8.3g}" for value in row) + bad, flush=True)
    if options.json:
        print(json.dumps([row._asdict() | {"is_good": row.is_good} for row in rows], indent=2))
    return 0 if all(row.is_good for row in rows) else 1


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Which seeds."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5], metavar="SEED")
    options.add_argument("--json", action="store_true")
    return options.parse_args(arguments)


def trained(seed: int, directory: Path) -> Row:
    """Runs the job in an empty directory. Raises CalledProcessError where a stage fails."""
    job = REPOSITORY / "examples" / "quickstart.yaml"
    command = ["run", str(job), "--dir", str(directory), f"--set=spec.seed={seed}"]
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "rlhf_cli", *command], check=True, stdout=subprocess.DEVNULL
    )
    seconds = time.monotonic() - began
    status = yaml.safe_load((directory / "status.yaml").read_text("utf-8"))["status"]
    metrics = {name: stage["metrics"] for name, stage in status["stages"].items()}
    score = "eval/score"
    return Row(
        seed=seed,
        seconds=seconds,
        base=metrics["sft"]["eval/base_score"],
        sft=metrics["sft"][score],
        ppo=metrics["ppo"][score],
        dpo=metrics["dpo"][score],
        reward_accuracy=metrics["reward"]["eval/accuracy"],
        kl=metrics["ppo"]["ppo/kl"],
    )


if __name__ == "__main__":
    sys.exit(main())
