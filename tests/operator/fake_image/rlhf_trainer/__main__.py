"""Stands in for the trainer image: does what the file in FAKE_BEHAVIOUR says.

The file maps "stage" or "stage/attempt" to {"exit": code, "sleep": seconds, "ignore_term": true,
"metrics": {...}, "silent": true, "child": true, "fetch": true, "starts": lines}. Every start is a
line of FAKE_BEHAVIOUR.started; `starts`: it goes on once there are so many.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml


def say(result: dict[str, Any]) -> None:
    Path("termination/message.json").write_text(json.dumps(result))


def end_on_term(number: int, frame: object) -> None:
    say({"exitCode": 143, "reason": "Terminated", "message": "saved"})
    sys.exit(143)


def main() -> int:
    book = Path(os.environ["FAKE_BEHAVIOUR"])
    run = yaml.load(Path(sys.argv[-1]).read_text(), Loader=yaml.CSafeLoader)
    acts = json.loads(book.read_text())
    act = acts.get(f"{run['stage']}/{run['attempt']}", acts.get(run["stage"], {}))
    signal.signal(signal.SIGTERM, signal.SIG_IGN if act.get("ignore_term") else end_on_term)
    with book.with_suffix(".started").open("a") as started:
        started.write(json.dumps(report(run)) + "\n")
    if act.get("child"):
        code = "import time; time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        draft = book.with_suffix(".tmp")
        draft.write_text(str(child.pid))
        draft.replace(book.with_suffix(".child"))  # whoever sees it finds the number in it
    if act.get("fetch"):
        Path(run["paths"][run["model"]["source"]]).mkdir(parents=True, exist_ok=True)
    while book.with_suffix(".started").read_text().count("\n") < act.get("starts", 0):
        time.sleep(0.02)
    time.sleep(act.get("sleep", 0))
    code = act.get("exit", 0)
    if act.get("silent"):
        print("last words")
        return int(code)
    if code:
        say({"exitCode": code, "reason": "Told", "message": f"told to exit {code}"})
        return int(code)
    say({"exitCode": 0, "reason": "Done", "metrics": act.get("metrics", {}), **output(run)})
    return 0


def report(run: dict[str, Any]) -> dict[str, Any]:
    names = ["JOB_COMPLETION_INDEX", "OMP_NUM_THREADS", "TMPDIR"]
    names += ["HF_HUB_OFFLINE", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"]
    return {
        "stage": run["stage"],
        "attempt": run["attempt"],
        "pid": os.getpid(),
        "time": time.time(),
        "argv": sys.argv[1:],
        "cwd": os.getcwd(),
        "env": {name: os.environ.get(name) for name in names},
        "inputs": {role: Path(item["path"]).exists() for role, item in run["inputs"].items()},
        "files": {path: Path(path).exists() for path in run["paths"].values()},
    }


def output(run: dict[str, Any]) -> dict[str, Any]:
    if run["stage"] == "prepare":
        fields = {"model": run["model"]}
        fields |= {f"stages.{name}.data": stage["data"] for name, stage in run["stages"].items()}
        return {"sources": {f: sha256(Path(run["paths"][v["source"]])) for f, v in fields.items()}}
    folder = Path(run["output"], "output")
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"made by": run["hash"]}))
    uri = str(folder.relative_to("checkpoints"))
    return {"checkpoint": {"uri": uri, "digest": sha256(manifest)}}


def sha256(path: Path) -> str:
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return "sha256:" + hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
