"""Time and memory that a cluster's jobs request, from their predicted cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from purifiers.core.artifacts import RunFolder, read_json, write_json
from purifiers.core.errors import UserError, did_you_mean
from purifiers.plan.batches import Batch
from purifiers.plan.plan import Plan
from purifiers.plan.throughput import Throughput

SETTINGS = "profiles/slurm/jobs.yaml"
START_MINUTES = 10
"""Granted to every job beside its predicted time, for slow file systems. Our choice."""
COPIES = 3
"""Files of a run that fit into its memory beside the constant part. Our choice."""


@dataclass(frozen=True)
class Cluster:
    """The content of ``profiles/slurm/jobs.yaml``.

    Attributes:
        card: device kind of the prices, a key of ``workflow/throughput.yaml``; empty: the GPU on
            which most networks are measured. Jobs without a GPU are priced on ``cpu``.
        factor: granted time over predicted time.
        longest_hours: time limit of the partition; no job requests more.
        mem_mb: memory of a job beside its files, in MB.
        largest_mem_mb: memory of a node, in MB; no job requests more.
    """

    card: str = ""
    factor: float = 3.0
    longest_hours: float = 24.0
    mem_mb: int = 12000
    largest_mem_mb: int = 128000

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Cluster:
        """Check the content of the file.

        Raises:
            UserError: an unknown key, or a value of another kind.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        for key, value in content.items():
            where = f"{SETTINGS}: cluster.{key}"
            if key not in defaults:
                raise UserError(f"{where}: there is no such key{did_you_mean(key, defaults)}")
            if isinstance(defaults[key], str):
                right, expected = isinstance(value, str), "a text"
            else:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                right, expected = number and value > 0, "a number above 0"
            if not right:
                raise UserError(f"{where} is {value!r}: write {expected}")
        return cls(**content)

    def runtime(self, predicted: Mapping[str, float], attempt: int = 1) -> int:
        """Minutes that a job requests: twice as many as in the attempt before, up to the limit."""
        minutes = START_MINUTES + predicted["seconds"] * self.factor / 60
        longest = self.longest_hours * 60
        # the power overflows after many attempts, the limit does not
        return max(1, math.floor(min(minutes * 2 ** min(attempt - 1, 30), longest)))

    def memory(self, predicted: Mapping[str, float], attempt: int = 1) -> int:
        """MB that a job requests: its first request again with every attempt, up to the limit."""
        first = math.ceil(self.mem_mb + COPIES * predicted["bytes"] / 1e6)
        return min(first * attempt, self.largest_mem_mb)


def write_predictions(plan: Plan, cluster: Cluster, path: Path) -> dict[str, dict[str, float]]:
    """Add the predicted cost of a plan's jobs to a file, which a cluster's jobs read.

    Args:
        path: JSON file of ``seconds`` and ``bytes`` (of the largest run and what it reads) by
            job.

    Returns:
        The predictions of this plan's jobs.

    Raises:
        UserError: nothing is measured on ``cluster.card``.
    """
    throughput = Throughput.load(plan.root)
    on_processor = plan.scale.setting("device", "auto") == "cpu"
    card = cluster.card or throughput.default_device(plan.scale.setting("device", "auto"))
    device = "cpu" if on_processor else card
    batches = {batch.id: batch for batch in plan.batches.values()}
    predicted = {
        batch.id: _predicted(batch, plan.runs_root, throughput, device)
        for batch in batches.values()
    }
    stored = read_json(path) if path.exists() else {}
    if {**stored, **predicted} != stored:
        write_json(path, {**stored, **predicted})
    return predicted


def _predicted(
    batch: Batch, runs_root: Path, throughput: Throughput, device: str
) -> dict[str, float]:
    """Cost of the runs of a job that have not finished."""
    runs = [r for r in batch.runs if not RunFolder(runs_root, r.stage, r.id).complete()]
    seconds = sum(throughput.seconds(run, device) for run in runs)
    largest = max((sum(r.size_bytes for r in (run, *run.inputs)) for run in runs), default=0)
    return {"seconds": round(seconds, 1), "bytes": largest}


def longer_than_limit(predicted: Mapping[str, Mapping[str, float]], cluster: Cluster) -> str:
    """Describe the jobs that need several attempts; empty if there are none."""
    limit = cluster.longest_hours * 3600
    long = [job["seconds"] for job in predicted.values() if job["seconds"] > limit]
    if not long:
        return ""
    return (
        f"{len(long)} of {len(predicted)} jobs are predicted to need more than "
        f"{cluster.longest_hours:g} h, the longest {max(long) / 3600:.0f} h. Each attempt "
        "continues from the last checkpoint; when the attempts are used up, start again"
    )


def check_status_queries(configuration: str, first_check: float) -> None:
    """Refuse a cluster on which finished jobs cannot be noticed.

    Without accounting only ``squeue`` shows them, for ``MinJobAge`` seconds (slurm.conf(5)). The
    executor plugin uses ``squeue`` only if that is three times its first interval between checks.

    Args:
        configuration: output of ``scontrol show config``.
        first_check: ``slurm-init-seconds-before-status-checks`` of the profile.

    Raises:
        UserError: no accounting, and finished jobs disappear before they are looked at.
    """
    accounting = re.search(r"^AccountingStorageType\s*=\s*(\S+)", configuration, re.MULTILINE)
    age = re.search(r"^MinJobAge\s*=\s*(\d+)", configuration, re.MULTILINE)
    if not accounting or not age or not accounting[1].endswith("/none"):
        return
    if float(age[1]) < 3 * first_check:
        raise UserError(
            f"Slurm has no accounting and forgets finished jobs after {age[1]} s (MinJobAge), "
            f"before they are noticed: set slurm-init-seconds-before-status-checks to at most "
            f"{int(age[1]) // 3} in profiles/slurm/config.yaml, or have MinJobAge raised"
        )
