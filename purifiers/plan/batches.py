"""Group runs into jobs, so that small runs share the start-up time of one process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from purifiers.core.artifacts import RunFolder, read_json, short_hash, write_json
from purifiers.core.spec import SPECS
from purifiers.plan.graph import Run, with_ancestors
from purifiers.plan.scale import Scale

WITHOUT_GPU = ("dataset",)
"""Stages that compute nothing, so that they never hold a GPU."""


@dataclass(frozen=True)
class Batch:
    """One job: runs of one stage, executed one after the other.

    Attributes:
        id: stage, and the hash of the runs' ids and the upstream batches.
        stage: the stage of all its runs.
        runs: in the order of execution.
        upstream: the batches whose results its runs read.
        first: the document that the scale wants first waits for it.
    """

    id: str
    stage: str
    runs: tuple[Run, ...]
    upstream: tuple[Batch, ...]
    first: bool = False

    @property
    def spec_name(self) -> str:
        """Name of the file with the runs' specs, below ``results/runs/batches``."""
        return f"{self.stage}/{self.id}.spec.json"

    @property
    def manifest_name(self) -> str:
        """Name of the file that is written when all runs are finished, in the same folder."""
        return f"{self.stage}/{self.id}.done.json"


def gather(
    runs: Iterable[Run],
    scale: Scale,
    seconds: Callable[[Run], float] | None = None,
    first: Iterable[Run] = (),
) -> dict[str, Batch]:
    """Assign runs and all their ancestors to batches.

    Args:
        seconds: predicted duration of a run; needed if the scale declares minutes per job.
        first: runs that share no batch with others, nor do their ancestors, so that they need not
            wait for these.

    Returns:
        The batch of each run, by run id.
    """
    by_stage: dict[str, list[Run]] = {stage: [] for stage in SPECS}
    for run in with_ancestors(runs):
        by_stage[run.stage].append(run)
    first_ids = {run.id for run in with_ancestors(first)}
    batch_of: dict[str, Batch] = {}
    for stage in SPECS:
        ordered = sorted(by_stage[stage], key=lambda run: (-run.passes, run.id))
        groups = [
            group
            for part in (True, False)
            for group in _groups(
                [run for run in ordered if (run.id in first_ids) is part],
                scale.jobs(stage),
                seconds,
            )
        ]
        for group in groups:
            # A later purification of a chain reads the images of the earlier one, and a second
            # training the weights of the first, so runs are ordered by depth.
            group = sorted(group, key=lambda run: (_depth(run), run.id))
            own_ids = {run.id for run in group}
            inputs = (i.id for run in group for i in run.inputs if i.id not in own_ids)
            by_id = {batch_of[run_id].id: batch_of[run_id] for run_id in inputs}
            upstream = tuple(by_id[key] for key in sorted(by_id))
            content = [[run.id for run in group], [batch.id for batch in upstream]]
            batch_id, is_first = f"{stage}-{short_hash(content)}", group[0].id in first_ids
            batch = Batch(batch_id, stage, tuple(group), upstream, is_first)
            batch_of.update({run.id: batch for run in group})
    return batch_of


def _depth(run: Run) -> int:
    """Length of the longest chain of runs of the same stage that ends in this run."""
    return 1 + max((_depth(i) for i in run.inputs if i.stage == run.stage), default=0)


def _groups(
    runs: list[Run],
    jobs: int | str | dict[str, float],
    seconds: Callable[[Run], float] | None = None,
) -> list[list[Run]]:
    """Split runs into one group per run, per job group, or into groups of about equal cost.

    A run that reads another of its stage stays in its group, or is in a later one.

    Args:
        jobs: ``run``, ``lineage`` (one group per job group), the number of groups, or ``minutes``
            up to which chains of one job group are joined.
        seconds: predicted duration of a run.
    """
    if isinstance(jobs, dict):
        assert seconds is not None, "minutes per job need predicted durations"
        return _joined(runs, jobs["minutes"] * 60, seconds)
    if jobs == "run":
        return [[run] for run in sorted(runs, key=_depth)]
    if isinstance(jobs, str):
        by_group: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            by_group[_root(run).job_group].append(run)
        return list(by_group.values())
    chains: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        chains[_root(run).id].append(run)
    groups: list[list[Run]] = [[] for _ in range(min(jobs, len(chains)))]
    loads = [0.0] * len(groups)
    for chain in sorted(chains.values(), key=lambda c: (-sum(r.passes for r in c), c[0].id)):
        lightest = loads.index(min(loads))
        groups[lightest].extend(chain)
        loads[lightest] += sum(run.passes for run in chain) + 1.0
    return [group for group in groups if group]


def _joined(runs: list[Run], longest: float, seconds: Callable[[Run], float]) -> list[list[Run]]:
    """Join chains of one job group while their predicted durations sum to at most ``longest``.

    Only chains of one job group, so that a job does not wait for several classifiers. The runs of a
    chain that is longer by itself are jobs of their own.
    """
    chains: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        chains[_root(run).id].append(run)
    lineages: dict[str, list[list[Run]]] = defaultdict(list)
    groups: list[list[Run]] = []
    for chain in chains.values():
        if sum(map(seconds, chain)) > longest:
            groups += [[run] for run in sorted(chain, key=_depth)]
        else:
            lineages[chain[0].job_group].append(chain)
    for lineage in lineages.values():
        loads: list[float] = []
        open_groups: list[list[Run]] = []
        # first fit, the longest first
        costs = sorted(((-sum(map(seconds, c)), c[0].id, c) for c in lineage), key=lambda x: x[:2])
        for cost, _, chain in costs:
            fits = (i for i, load in enumerate(loads) if load - cost <= longest)
            place = next(fits, len(loads))
            if place == len(loads):
                loads.append(0.0)
                open_groups.append([])
            loads[place] -= cost
            open_groups[place].extend(chain)
        groups += open_groups
    return groups


def _root(run: Run) -> Run:
    """The first run of the chain of runs of the same stage that ends in this run."""
    same_stage = [i for i in run.inputs if i.stage == run.stage]
    return _root(same_stage[0]) if same_stage else run


def write_specs(batches: Iterable[Batch], runs_root: Path, scale: Scale) -> None:
    """Write the spec files that jobs read; delete manifests whose runs are incomplete."""
    folder = runs_root / "batches"
    for batch in batches:
        spec = {
            "stage": batch.stage,
            "batch": batch.id,
            "upstream": [b.manifest_name for b in batch.upstream],
            "threads": scale.setting("threads", 1),
            "device": "cpu" if batch.stage in WITHOUT_GPU else scale.setting("device", "auto"),
            "batch_size": scale.setting("batch_size", 128),
            "checkpoint_seconds": scale.setting("checkpoint_seconds", 60),
            "runs": [
                {
                    "id": r.id,
                    "spec": r.spec.to_json(),
                    "passes": r.passes,
                    "size_bytes": r.size_bytes,
                }
                for r in batch.runs
            ],
            **({"first": True} if batch.first else {}),
        }
        path = folder / batch.spec_name
        if not path.exists() or read_json(path) != spec:
            write_json(path, spec)
        manifest = folder / batch.manifest_name
        complete = all(RunFolder(runs_root, r.stage, r.id).complete() for r in batch.runs)
        if manifest.exists() and not complete:
            manifest.unlink()
