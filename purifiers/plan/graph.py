"""The units of work, named by what they are made of, and the graph that they form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from purifiers.core import registry
from purifiers.core.artifacts import short_hash
from purifiers.core.spec import ComponentSpec, Spec

Cost = Mapping[str, float]
"""Forward passes of one image, by network."""


@dataclass(frozen=True)
class Run:
    """One unit of work.

    Attributes:
        id: readable slug and eight digits of the hash of stage and spec.
        spec: everything that its result depends on.
        inputs: the runs it is made from.
        job_group: id of the classifier's or data set's run that it shares jobs with.
        cost: predicted cost (keys as :func:`purifiers.plan.cost.network_key` makes them).
        size_bytes: predicted size of its files.
    """

    id: str
    spec: Spec = field(hash=False)
    inputs: tuple[Run, ...] = field(hash=False)
    job_group: str
    cost: Cost = field(hash=False)
    size_bytes: int

    @property
    def stage(self) -> str:
        """The stage that does it."""
        return self.spec.stage

    @property
    def passes(self) -> float:
        """The passes of all its networks together."""
        return sum(self.cost.values())

    def ancestors(self) -> Iterator[Run]:
        """All runs it is made from, directly or not, each once; nearer ones first."""
        return _reached(self.inputs)


def with_ancestors(runs: Iterable[Run]) -> list[Run]:
    """Runs and all they are made from, each once."""
    return list(_reached(runs))


def _reached(runs: Iterable[Run]) -> Iterator[Run]:
    level = {run.id: run for run in runs}
    seen: set[str] = set()
    while level:
        yield from level.values()
        seen |= level.keys()
        level = {i.id: i for run in level.values() for i in run.inputs if i.id not in seen}


class Graph:
    """All runs of a plan; what two cells both need is added once.

    Attributes:
        runs: every run by id.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}

    def add(
        self,
        spec: Spec,
        slug: str,
        cost: Cost | None = None,
        group: Run | None = None,
        size_bytes: int = 0,
    ) -> Run:
        """The run of a spec, whose upstream runs are in the graph already.

        Args:
            slug: readable beginning of the id.
            group: the run whose jobs it shares; None: it founds a group.
        """
        run_id = f"{slug}-{short_hash({'stage': spec.stage, **spec.to_json()})}"
        if run_id not in self.runs:
            inputs = dict.fromkeys(self.runs[upstream] for _, upstream in spec.upstream())
            job_group = group.job_group if group else run_id
            self.runs[run_id] = Run(run_id, spec, tuple(inputs), job_group, cost or {}, size_bytes)
        return self.runs[run_id]


def component_spec(kind: str, name: str, parameters: Mapping[str, Any]) -> ComponentSpec:
    """A component with every parameter.

    Parameters that ``joined_later`` are left out at their defaults: runs that are older than the
    parameter keep their identity.
    """
    described = registry.describe(kind, name)
    filled = {**described.parameters, **parameters}
    for joined in described.traits.joined_later:
        if filled[joined] == described.parameters[joined]:
            del filled[joined]
    return ComponentSpec(component=name, version=described.version, parameters=_plain(filled))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
