"""The graph of runs: one run per spec, and its ancestors in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from purifiers.core.spec import (
    AttackSpec,
    ClassifierSpec,
    ComponentSpec,
    DatasetSpec,
    ImagesSpec,
    MethodSpec,
    PurifierSpec,
    PurifySpec,
    ScoreSpec,
    Subset,
)
from purifiers.plan.graph import Graph, Run, with_ancestors
from purifiers.plan.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ComponentSpec(component="any", version=1, parameters={})


def chain(graph: Graph) -> dict[str, Run]:
    """A fitted method, attacked and purified by it, and the score, by stage."""
    data = graph.add(DatasetSpec(dataset=RECIPE), "digits", size_bytes=5)
    subset = Subset(split="test", n=4, seed=0)
    clean = ImagesSpec(data=data.id, subset=subset, run=None)
    net = graph.add(
        ClassifierSpec(data=data.id, train=8, classifier=RECIPE, training=RECIPE, seed=0), "net"
    )
    fit = graph.add(
        PurifierSpec(data=data.id, train=8, classifier=net.id, method=RECIPE, seed=0),
        "fit",
        group=net,
    )
    method = MethodSpec(component="aid", version=1, parameters={}, run=fit.id)
    attack = graph.add(
        AttackSpec(
            images=clean,
            classifier=net.id,
            methods=(method, method),
            gradient="exact",
            attack=RECIPE,
            seed=0,
        ),
        "pgd",
        {"net": 3.0, "aid": 2.0},
        net,
    )
    made = ImagesSpec(data=data.id, subset=subset, run=attack.id, stage="attack")
    purify = graph.add(
        PurifySpec(images=made, classifier=net.id, method=method, seed=0), "purify", group=net
    )
    purified = ImagesSpec(data=data.id, subset=subset, run=purify.id, stage="purify")
    graph.add(ScoreSpec(images=purified, classifier=net.id, attack=RECIPE), "score", group=net)
    return {run.stage: run for run in graph.runs.values()}


@pytest.fixture
def runs() -> dict[str, Run]:
    return chain(Graph())


def stages(runs: list[Run]) -> list[str]:
    return [run.stage for run in runs]


def test_ancestors_come_once_and_nearer_ones_first(runs: dict[str, Run]) -> None:
    """The classifier is behind all the others, too."""
    assert stages(list(runs["score"].ancestors())) == [
        *("dataset", "purify", "classifier"),
        *("attack", "purifier"),
    ]
    assert stages(list(runs["attack"].ancestors())) == ["dataset", "classifier", "purifier"]
    assert list(runs["dataset"].ancestors()) == []


def test_ancestors_in_the_real_plan() -> None:
    """The distance of a run is one more than that of the nearest run that is made from it."""
    plan = make_plan(ROOT, "smoke", ["aid/audit"])
    for run in plan.runs.values():
        ancestors = list(run.ancestors())
        distance = {run.id: 0}
        pending = [run]
        for reached in pending:  # grows while it is walked through
            for made in reached.inputs:
                if distance.get(made.id, len(plan.runs)) > distance[reached.id] + 1:
                    distance[made.id] = distance[reached.id] + 1
                    pending.append(made)
        assert {made.id for made in ancestors} == distance.keys() - {run.id}
        assert len(ancestors) == len(distance) - 1
        assert [distance[made.id] for made in ancestors] == sorted(list(distance.values())[1:])


def test_runs_with_their_ancestors_come_once(runs: dict[str, Run]) -> None:
    score, attack = runs["score"], runs["attack"]
    found = with_ancestors([score, attack, score])
    assert found[:2] == [score, attack]
    assert len(found) == len(runs) and set(found) == set(runs.values())
    assert with_ancestors([]) == []


def test_what_two_cells_need_is_added_once(runs: dict[str, Run]) -> None:
    graph = Graph()
    first, again = chain(graph), chain(graph)
    assert first == again == runs and len(graph.runs) == len(runs)
    for stage, run in first.items():
        assert again[stage] is run


def test_a_run_is_what_its_spec_says(runs: dict[str, Run]) -> None:
    attack = runs["attack"]
    assert attack.id.startswith("pgd-") and attack.passes == 5.0
    assert stages(list(attack.inputs)) == ["dataset", "classifier", "purifier"]  # of two uses once
    assert {run.job_group for run in runs.values()} == {runs["dataset"].id, runs["classifier"].id}
    assert runs["dataset"].size_bytes == 5 and runs["dataset"].cost == {}


def test_what_is_upstream_has_to_be_there() -> None:
    spec = ClassifierSpec(data="digits-0", train=8, classifier=RECIPE, training=RECIPE, seed=0)
    with pytest.raises(KeyError, match="digits-0"):
        Graph().add(spec, "net")
