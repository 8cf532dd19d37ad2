"""Runs, identified by the hash of their spec, and the graph of their dependencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from purifiers.core import registry
from purifiers.core.artifacts import short_hash
from purifiers.core.data_layouts import content_of
from purifiers.core.files import digests
from purifiers.core.spec import ComponentSpec, MethodSpec, Spec

Cost = Mapping[str, float]
"""Number of forward passes of one image, by network."""


@dataclass(frozen=True)
class Run:
    """One unit of work.

    Attributes:
        id: readable slug and eight digits of the hash of stage and spec.
        spec: everything that the result depends on.
        inputs: the runs whose results it reads.
        job_group: id of the classifier's or data set's run whose jobs it shares.
        cost: predicted cost, by :func:`purifiers.plan.cost.network_key`.
        size_bytes: predicted size of its files.
    """

    id: str
    spec: Spec = field(hash=False)
    inputs: tuple[Run, ...] = field(hash=False, repr=False)  # its text would grow exponentially
    job_group: str
    cost: Cost = field(hash=False)
    size_bytes: int

    @property
    def stage(self) -> str:
        """Stage that executes the run."""
        return self.spec.stage

    @property
    def passes(self) -> float:
        """Predicted forward passes, summed over the networks."""
        return sum(self.cost.values())

    def ancestors(self) -> Iterator[Run]:
        """Yield all direct and indirect inputs once, nearer ones first."""
        return _reached(self.inputs)


def with_ancestors(runs: Iterable[Run]) -> list[Run]:
    """List runs and all their direct and indirect inputs, each once."""
    return list(_reached(runs))


def _reached(runs: Iterable[Run]) -> Iterator[Run]:
    level = {run.id: run for run in runs}
    seen: set[str] = set()
    while level:
        yield from level.values()
        seen |= level.keys()
        level = {i.id: i for run in level.values() for i in run.inputs if i.id not in seen}


class Defended(NamedTuple):
    """A trained classifier and the methods in front of it, first to last."""

    classifier: Run
    methods: tuple[MethodSpec, ...]


class Graph:
    """All runs of a plan; cells that need the same result share one run.

    Attributes:
        runs: all runs by id.
        defences: the defences planned so far, by what decides them.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.defences: dict[tuple[str, ...], Defended] = {}

    def add(
        self,
        spec: Spec,
        slug: str,
        cost: Cost | None = None,
        group: Run | None = None,
        size_bytes: int = 0,
    ) -> Run:
        """Add the run of a spec, or return the existing one.

        Args:
            spec: its upstream runs must be in the graph.
            slug: readable beginning of the id.
            cost: predicted cost; None: no forward passes.
            group: the run whose jobs it shares; None: it starts a job group.
            size_bytes: predicted size of its files.
        """
        run_id = f"{slug}-{short_hash({'stage': spec.stage, **spec.to_json()})}"
        if run_id not in self.runs:
            inputs = dict.fromkeys(self.runs[upstream] for _, upstream in spec.upstream())
            job_group = group.job_group if group else run_id
            self.runs[run_id] = Run(run_id, spec, tuple(inputs), job_group, cost or {}, size_bytes)
        return self.runs[run_id]


def component_spec(
    kind: str, name: str, parameters: Mapping[str, Any], where: str = ""
) -> ComponentSpec:
    """Build a component spec with defaults filled in.

    Parameters in ``joined_later`` are left out at their defaults, so that older runs keep their
    identity. The content of files is part of the spec, except that of official data.

    Args:
        where: begins the error message; by default kind and name.

    Raises:
        UserError: a parameter names a file that does not exist, or a file cannot be read.
    """
    described = registry.describe(kind, name)
    filled = {**described.parameters, **parameters}
    files = digests(filled, described.traits.files, where or f"{kind} {name}")
    content = content_of(described.traits, filled)
    for parameter in described.traits.joined_later:
        if filled[parameter] == described.parameters[parameter]:
            del filled[parameter]
    return ComponentSpec(
        component=name,
        version=described.version,
        parameters=_plain(filled),
        files=files,
        content=content,
    )


def _plain(value: Any) -> Any:
    """Convert tuples to lists, as JSON does."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
