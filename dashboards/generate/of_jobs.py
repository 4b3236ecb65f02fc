"""What the dashboard shows of jobs: how many, why they wait, how they train, what they cost."""

from __future__ import annotations

from typing import Final

from panels import Panel, Query, Row

OF_JOB: Final = '{namespace=~"$namespace",job=~"$job"}'
OF_STAGE: Final = '{namespace=~"$namespace",job=~"$job",stage=~"$stage"}'
JOB: Final = "{{namespace}}/{{job}}"
ALARM: Final = "{{namespace}}/{{job}} {{stage}} {{alarm}}"
STAGE: Final = "{{namespace}}/{{job}} {{stage}}"


def newest(metric: str, by: str) -> str:
    """Each replica tells the same of the jobs; one of them is taken."""
    labels = OF_STAGE if "stage" in by else OF_JOB
    return f"max by ({by}) ({metric}{labels})"


def counted(metric: str, by: str = "") -> str:
    """Each replica of a release tells the same; releases add up. Prometheus says which is whose."""
    within = f"max by ({', '.join(filter(None, ['namespace', 'job', by]))})"
    return f"sum{f' by ({by})' if by else ''} ({within} ({metric}))"


def of_phase(phase: str, color: str) -> Panel:
    expression = counted(f'rlhf_jobs{{phase="{phase}"}}')
    steps = ((None, "text"), (1.0, color))
    text = f"RLHFJobs whose phase is {phase}."
    query = Query(expression, phase, instant=True)
    return Panel(phase, text, (query,), kind="stat", width=3, height=4, thresholds=steps)


def curve(title: str, text: str, metric: str, unit: str = "short") -> Panel:
    """What the trainers of running stages last reported."""
    return Panel(title, text, (Query(newest(metric, "namespace, job, stage"), STAGE),), unit)


JOBS: Final = Row(
    "Jobs",
    (
        of_phase("Running", "green"),
        of_phase("Waiting", "yellow"),
        of_phase("Pending", "yellow"),
        of_phase("Suspended", "blue"),
        of_phase("Failed", "red"),
        of_phase("Succeeded", "green"),
        Panel(
            "GPUs in use",
            "Devices of the stages under way.",
            (Query(counted("rlhf_gpus_in_use"), "devices", instant=True),),
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Jobs by phase",
            "RLHFJobs that are there.",
            (Query(counted("rlhf_jobs", "phase"), "{{phase}}"),),
            width=12,
            stacked=True,
        ),
        Panel(
            "Stages that wait, and why",
            "Stages of jobs that are not over, by the reason in their status; "
            "docs/reference/conditions.md says what to do about each.",
            (Query(counted("rlhf_stages_waiting", "reason"), "{{reason}}"),),
            width=12,
            stacked=True,
        ),
        Panel(
            "Longest wait for a place",
            "Of the jobs of each namespace, by the reason of their condition Scheduled.",
            (
                Query(
                    "time() - min by (namespace, reason) (rlhf_oldest_wait_timestamp_seconds"
                    '{namespace=~"$namespace"})',
                    "{{namespace}} {{reason}}",
                ),
            ),
            "s",
            width=12,
        ),
        Panel(
            "Progress",
            "Share of each running stage that is done.",
            (Query(newest("rlhf_stage_progress_ratio", "namespace, job, stage"), STAGE, True),),
            "percentunit",
            kind="bargauge",
            width=12,
        ),
    ),
)

TRAINING: Final = Row(
    "Training",
    (
        Panel(
            "Reward",
            "Newest mean reward of each running job's PPO.",
            (Query(newest("rlhf_job_reward", "namespace, job"), JOB),),
        ),
        Panel(
            "KL to the reference",
            "Newest KL divergence per response, in nats. A steep rise beside a rising reward is "
            "the mark of a reward model that is being exploited.",
            (Query(newest("rlhf_job_kl", "namespace, job"), JOB),),
        ),
        Panel(
            "Alarms",
            "Metrics of running stages that are out of bounds (see the event MetricAlarm).",
            (Query(newest("rlhf_stage_alarm", "namespace, job, stage, alarm"), ALARM),),
            stacked=True,
        ),
        curve("Loss", "Newest loss of each running stage.", "rlhf_stage_loss"),
        curve(
            "Entropy",
            "Of the policy, in nats a token. A fall towards 0 is a policy that always says the "
            "same.",
            "rlhf_stage_entropy",
        ),
        curve(
            "Response length",
            "Mean tokens of a response. A steady rise may be a reward for length.",
            "rlhf_stage_response_length",
        ),
        Panel(
            "Tokens per second",
            "Of all devices of a stage together, as its trainer reports it.",
            (Query(newest("rlhf_stage_tokens_per_second", "namespace, job, stage"), STAGE),),
            width=24,
        ),
    ),
)

COST: Final = Row(
    "Device time and restarts",
    (
        Panel(
            "Device hours by outcome",
            "Of attempts that ended in the time shown. waiting: from the first pod on a node to "
            "when all ran; repeated: work that a fault has lost.",
            (
                Query(
                    "sum by (outcome) (increase(rlhf_gpu_seconds_total"
                    '{stage=~"$stage"}[$__range])) / 3600',
                    "{{outcome}}",
                    instant=True,
                ),
            ),
            "h",
            kind="bargauge",
        ),
        Panel(
            "Useful share of device time",
            "Of attempts that ended in the hour before.",
            (
                Query(
                    'sum(increase(rlhf_gpu_seconds_total{outcome="useful"}[1h])) / '
                    "sum(increase(rlhf_gpu_seconds_total[1h]))",
                    "useful",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Restarts",
            "Attempts that followed one that did not finish, in the hour before, by its end.",
            (
                Query(
                    'sum by (stage, cause) (increase(rlhf_stage_restarts_total{stage=~"$stage"}'
                    "[1h]))",
                    "{{stage}} {{cause}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Length of attempts",
            "Median, and nine tenths, of attempts that ended in the day before.",
            tuple(
                Query(
                    f"histogram_quantile({share}, sum by (le, stage) "
                    '(increase(rlhf_stage_duration_seconds_bucket{stage=~"$stage"}[1d])))',
                    f"{{{{stage}}}} p{share * 100:.0f}",
                )
                for share in (0.5, 0.9)
            ),
            "s",
            width=12,
        ),
        Panel(
            "Attempts that ended",
            "In the hour before, by how.",
            (
                Query(
                    "sum by (result) (increase(rlhf_stage_duration_seconds_count"
                    '{stage=~"$stage"}[1h]))',
                    "{{result}}",
                ),
            ),
            width=12,
            stacked=True,
        ),
    ),
)
