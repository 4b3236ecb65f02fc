"""The same cluster interface on one machine: pods become processes, volumes directories.

`run` blocks until the job has ended and raises LocalRunError for what its user can mend;
`annotate` does to a run what `kubectl annotate` does to a job; `fit_to_machine` and `smaller_here`,
which tells what came of it, are pure.
"""

from rlhf_operator.local.errors import LocalRunError
from rlhf_operator.local.loop import run
from rlhf_operator.local.machine import Machine, fit_to_machine, smaller_here, this_machine
from rlhf_operator.local.store import annotate

__all__ = [
    "LocalRunError",
    "Machine",
    "annotate",
    "fit_to_machine",
    "run",
    "smaller_here",
    "this_machine",
]
