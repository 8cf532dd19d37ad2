"""What a plan is said to cost: passes of every network that works, at its own measured price."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.spec import ComponentSpec, DatasetSpec, PurifySpec
from purifiers.plan.cost import added, times
from purifiers.plan.graph import Graph, Run
from purifiers.plan.plan import Plan, make_plan
from purifiers.plan.price import ASSUMED_FLOPS, Throughput, describe_price

ROOT = Path(__file__).resolve().parents[2]


def test_costs_are_added_network_by_network() -> None:
    assert added({"a": 1.0}, {"b": 2.0}, {"a": 3.0}) == {"a": 4.0, "b": 2.0}
    assert times(2, {"a": 1.5}) == {"a": 3.0}


def a_run(**cost: float) -> Run:
    spec = DatasetSpec(dataset=ComponentSpec(component="toy", version=1, parameters={}))
    return Graph().add(spec, "toy", cost)


def test_every_network_has_its_own_price() -> None:
    known = Throughput({"a": {"macs": 10, "cpu": 0.5}, "b": {"macs": 3e12}})
    both = known.seconds(a_run(a=4.0, b=2.0), "cpu")
    assert both == pytest.approx(4 * 0.5 + 2 * 2 * 3e12 / ASSUMED_FLOPS)
    assert known.seconds(a_run(c=1.0), "cpu") is None
    assert known.seconds(a_run(), "cpu") == 0.0


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(ROOT, "smoke", ["aid/table_1", "aid/audit", "advae/table_1"])


def one(plan: Plan, stage: str, words: str) -> Run:
    return next(run for run in plan.runs.values() if run.stage == stage and words in run.id)


def costs(run: Run) -> dict[str, float]:
    return {network.split("(")[0]: passes for network, passes in run.cost.items()}


def test_a_purifier_is_priced_by_its_own_network(plan: Plan) -> None:
    run = one(plan, "purify", "-natural-clean-defense_gan-")
    parameters, images = run.spec.method.parameters, run.spec.images.subset.n
    each = 3 * parameters["steps"] * parameters["restarts"]
    assert costs(run) == {"defense_gan": images * each}
    fit = one(plan, "purifier", "defense_gan")
    known = fit.spec.method.parameters
    turns = 8 * known["critic_steps"] + 4
    drawn = known["generator_iterations"] * known["batch_size"]
    assert costs(fit) == {"defense_gan": pytest.approx(drawn * turns)}


def test_a_gradient_that_leaves_the_purifier_out_costs_its_forward_pass_alone(plan: Plan) -> None:
    exact = one(plan, "attack", "-natural-pgd-exact_nrp-")
    asked = 3 * exact.spec.attack.parameters["steps"] * exact.spec.images.subset.n
    assert costs(exact) == {"wide_resnet": asked, "nrp": asked}
    around = one(plan, "attack", "-natural-pgd-bpda_defense_gan-")
    purified = around.spec.methods[0].parameters
    each = 3 * purified["steps"] * purified["restarts"]
    assert costs(around) == {"wide_resnet": asked, "defense_gan": pytest.approx(asked / 3 * each)}


@pytest.mark.parametrize(("document", "told"), [("advae/table_1", True), ("aid/table_1", False)])
def test_a_price_says_what_may_stop_early(tmp_path: Path, document: str, told: bool) -> None:
    """Until those trainings are done: what uses them later never stops early."""
    asked = replace(make_plan(ROOT, "smoke", [document]), root=tmp_path)
    assert ("counted to their last epoch" in describe_price(asked)) is told
    for run in asked.runs.values():
        if run.stage in ("classifier", "purifier", "substitute"):
            RunFolder(asked.runs_root, run.stage, run.id).finish(run.spec, [], {}, 0.0, {})
    assert "counted to their last epoch" not in describe_price(asked)


def test_all_planned_networks_are_measured(plans: dict[str, Plan]) -> None:
    known = Throughput.load(ROOT)
    for scale in ("smoke", "desk", "paper"):
        planned = {n for run in plans[scale].runs.values() for n in run.cost}
        assert planned <= known.networks.keys(), "run python -m purifiers measure"


def test_a_method_that_brings_a_network_is_priced_by_it(plan: Plan) -> None:
    """A network has its sizes and its passes; who brings none costs passes of the classifier."""
    for name in registry.names("method"):
        network = registry.describe("method", name).traits.network
        for run in plan.runs.values():
            if isinstance(run.spec, PurifySpec) and run.spec.method.component == name:
                assert (name in costs(run)) is (network is not None and network.passes != "0")
