"""Where things are in the directory of a run (`rlhfctl run --dir DIR`)."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml
from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE, TERMINATION_LOG, StageResult
from rlhf_api.status import CheckpointRef, StageStatus
from rlhf_api.validation import InvalidJob, kept_job
from rlhf_operator.events import Event
from rlhf_operator.names import child_name, claim_name, lineage
from rlhf_operator.observed import parse_result
from rlhf_operator.storage import place_on_volume
from rlhf_operator.times import written

from rlhf_cli.failures import Failure, Unreadable, told_problems
from rlhf_cli.program import program

STATUS_FILE: Final = "status.yaml"
REPORT_FILE: Final = "report.html"
VERSIONS_FILE: Final = "versions.json"
EVENTS_FILE: Final = "events.jsonl"
COPIES: Final = "copies"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RunFolder:
    """The directory of one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def report(self) -> Path:
        """The report of the run."""
        return self.path / REPORT_FILE

    @property
    def versions(self) -> Path:
        """Versions of the packages that the run was made with."""
        return self.path / VERSIONS_FILE

    def job(self) -> RLHFJob:
        """The job with its status. Raises Failure where there is none, Unreadable
        where it is of no use."""
        file = self.path / STATUS_FILE
        try:
            return kept_job(yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader))
        except FileNotFoundError:
            raise Failure(
                f"{self.path} holds no run: there is no {STATUS_FILE} in it",
                f"give the directory of '{program()} run FILE --dir {self.path}'",
            ) from None
        except InvalidJob as error:
            said = f"{file} cannot be read, it is not as a run writes it:"
            raise Unreadable(said, *told_problems(error.problems)) from None
        except (yaml.YAMLError, ValueError) as error:
            raise Unreadable(f"{file} cannot be read: {_cause(error)}") from None
        except OSError as error:
            raise Failure(f"cannot read {file}: {error.strerror}") from None

    def document(self) -> dict[str, Any]:
        """The same as plain values, as an API server would give it. Raises Failure."""
        job = self.job()
        found = job.to_dict()
        if job.status and job.status.start_time:
            found["metadata"].setdefault("creationTimestamp", job.status.start_time)
        return found

    def record_event(self, event: Event) -> None:
        """Appends it to the events of the run."""
        line = {
            "time": written(datetime.now(UTC)),
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
        }
        with (self.path / EVENTS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def volume(self, job: RLHFJob) -> Path:
        """The folder that stands for the job's checkpoint volume, or has copies of what an object
        store keeps."""
        if job.spec.checkpoints.uri:
            return self.path / COPIES
        return self.path / "volumes" / claim_name(job) / job.spec.checkpoints.sub_path

    def attempts(self, job: RLHFJob, stage: str, status: StageStatus) -> list[Path]:
        """Folders of the attempts that led to a stage's output, or work on it, oldest first."""
        place = lineage_of(job, stage, status)
        if place is None:
            return []
        attempts = (self.volume(job) / place).glob("attempt-*")
        found = [path for path in attempts if path.name[8:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[8:]))

    def checkpoint(self, job: RLHFJob, ref: CheckpointRef) -> Path:
        """The folder of a committed checkpoint."""
        return self.volume(job) / place_on_volume(job, ref)

    def pods(self, job: RLHFJob, stage: str, attempt: int) -> list[Path]:
        """Working directories of the pods of one attempt, pod 0 first."""
        found = (self.path / "pods").glob(f"{child_name(job.metadata.name, stage, attempt)}-*")
        return sorted(path for path in found if path.name.rsplit("-", 1)[-1].isdigit())

    def results(self, job: RLHFJob, stage: str, attempt: int) -> list[StageResult]:
        """What the pods of one attempt said at their end."""
        files = [pod / TERMINATION_LOG for pod in self.pods(job, stage, attempt)]
        texts = [file.read_text("utf-8", "replace") for file in files if file.is_file()]
        return [result for text in texts if (result := parse_result(text))]


def _cause(error: yaml.YAMLError | ValueError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        return f"line {mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


def hint_of_a_run(name: str) -> list[str]:
    """What to write for a run on this machine, where one lies here under a name that no RLHFJob of
    a cluster was found by."""
    is_here = bool(name) and Path(name, STATUS_FILE).exists()
    return [f"for the run in ./{name}: --dir {name}"] if is_here else []


def lineage_of(job: RLHFJob, stage: str, status: StageStatus) -> str | None:
    """The folder of all attempts on a stage's inputs, below the volume."""
    if status.checkpoint:
        return str(PurePosixPath(place_on_volume(job, status.checkpoint)).parents[1])
    return lineage(job, stage, status.hash) if status.hash and stage != PREPARE else None
