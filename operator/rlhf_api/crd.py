"""The CustomResourceDefinition, made from the models: `make generate` writes it to crds/."""

from __future__ import annotations

from typing import Any, Final

from rlhf_api.job import GROUP, KIND, PLURAL, VERSION, RLHFJob
from rlhf_api.rules import validations
from rlhf_api.structural import Schema, structural_schema

REASON: Final = '.status.conditions[?(@.type=="Ready")].reason'
COLUMNS: Final[tuple[tuple[str, str, str, int, str], ...]] = (
    # name, type, path, priority (1: only with -o wide), description
    ("Phase", "string", ".status.phase", 0, "Pending, Running, Succeeded, Failed, Suspended."),
    ("Stage", "string", ".status.stage", 0, "Stage under way, and its place among all."),
    ("Progress", "string", ".status.progress", 0, "Share of the stages under way that is done."),
    ("ETA", "string", ".status.eta", 0, "Estimate of the time left to the stages under way."),
    ("Reward", "number", ".status.reward", 0, "Newest mean reward of PPO."),
    ("KL", "number", ".status.kl", 0, "Newest KL divergence to the reference."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since the job was created."),
    ("Reason", "string", REASON, 1, "What is waited for, or went wrong, in one word."),
    ("GPUs", "integer", ".status.gpus", 1, "GPUs that the stages under way hold."),
    ("Queue", "string", ".spec.scheduling.queue", 1, "Queue."),
    ("Restarts", "integer", ".status.restarts", 1, "Attempts after one that did not finish."),
    ("Checkpoint", "string", ".status.checkpoint", 1, "Newest output."),
)


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition (apiextensions.k8s.io/v1) of RLHFJob."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["rlhf"],
                # Not in `all`: `kubectl delete all --all` must not delete trained models' jobs.
                "categories": ["ml"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "selectableFields": [
                        {"jsonPath": ".status.phase"},
                        {"jsonPath": ".spec.scheduling.queue"},
                    ],
                    "additionalPrinterColumns": [_column(*column) for column in COLUMNS],
                    "schema": {"openAPIV3Schema": root_schema()},
                }
            ],
        },
    }


def root_schema() -> Schema:
    """The structural schema of the whole object.

    Of metadata a custom resource may constrain the name alone. The status starts at
    observedGeneration -1, so that nobody takes a job for done that no operator has seen.
    """
    schema = structural_schema(RLHFJob, validations)
    fields = schema["properties"]
    name = {key: fields["metadata"]["properties"]["name"][key] for key in ("maxLength", "pattern")}
    fields["metadata"] = {"type": "object", "properties": {"name": {"type": "string"} | name}}
    fields["status"]["default"] = {"observedGeneration": -1}
    return schema


def _column(name: str, kind: str, path: str, priority: int, text: str) -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path, "description": text}
    return column | ({"priority": priority} if priority else {})
