"""What a plan is said to cost: passes of every network that works, at its own measured price."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.spec import ClassifierSpec, ComponentSpec, DatasetSpec, PurifySpec
from purifiers.plan.cost import added, times
from purifiers.plan.graph import Graph, Run
from purifiers.plan.plan import Plan, make_plan
from purifiers.plan.price import describe_price, price
from purifiers.plan.throughput import Measurement, Throughput

ROOT = Path(__file__).resolve().parents[2]


def test_costs_are_added_network_by_network() -> None:
    assert added({"a": 1.0}, {"b": 2.0}, {"a": 3.0}) == {"a": 4.0, "b": 2.0}
    assert times(2, {"a": 1.5}) == {"a": 3.0}


def a_run(**cost: float) -> Run:
    spec = DatasetSpec(dataset=ComponentSpec(component="toy", version=1, parameters={}))
    return Graph().add(spec, "toy", cost)


def throughput(**networks: tuple[float, list[dict[str, Any]]]) -> Throughput:
    """Multiply-adds and measurements of each network."""
    content = {name: {"macs": m, "measured": rows} for name, (m, rows) in networks.items()}
    return Throughput.parse(content, "made.yaml")


def on(device: str, **numbers: Any) -> dict[str, Any]:
    return {"device": device, "precision": "float32", **numbers}


def test_a_network_is_priced_by_its_own_measurement() -> None:
    known = throughput(a=(10, [on("cpu", forward=0.5)]), b=(20, [on("cpu", forward=2, both=9)]))
    estimates = known.estimates(a_run(a=4.0, b=2.0), "cpu")
    assert estimates is not None
    # a gradient counts as 3 passes
    assert {name: e.seconds for name, e in estimates.items()} == {"a": 0.5, "b": 3.0}
    assert known.estimates(a_run(c=1.0), "cpu") is None
    assert known.estimates(a_run(), "cpu") == {}


def test_a_network_without_measurement_names_the_one_it_is_scaled_from() -> None:
    names = ["net(size=1)@x", "net(size=9)@x", "other()@x", "net(size=2)@x"]
    macs = dict(zip(names, (10, 90, 20, 20), strict=True))
    rows = {name: (Measurement("h200", forward=m / 10),) for name, m in list(macs.items())[:3]}
    found = Throughput(macs, rows).estimate("net(size=2)@x", "h200")
    # of the same component first, then the most similar number of multiply-adds
    assert (found.seconds, found.scaled_from) == (2.0, "net(size=1)@x")
    assert Throughput(macs, rows).estimate("net(size=9)@x", "h200").scaled_from == ""


def test_the_component_counts_more_than_the_precision() -> None:
    """Another network's gain from bfloat16 is not assumed."""
    low = Measurement("h200", "bfloat16", forward=0.01)
    rows = {"net(a=1)@x": (Measurement("h200", forward=1.0),), "other()@x": (low,)}
    macs = {"net(a=1)@x": 10, "other()@x": 20, "net(a=2)@x": 20, "third()@x": 20}
    known = Throughput(macs, rows)
    assert known.estimate("net(a=2)@x", "h200", "bfloat16").seconds == 2.0
    assert known.estimate("third()@x", "h200", "bfloat16").seconds == 0.01


def test_precision_and_batch_size_decide() -> None:
    rows = [
        on("h200", batch=32, both=6.0),
        on("h200", batch=512, both=3.0),
        {**on("h200", batch=512, both=0.3), "precision": "bfloat16"},
    ]
    known = throughput(a=(10, rows), b=(10, [on("h200", batch=512, both=1.5)]))
    assert known.estimate("a", "h200").seconds == 1.0  # the fastest
    assert known.estimate("a", "h200", batch=48).seconds == 2.0
    assert known.estimate("a", "h200", "bfloat16").seconds == pytest.approx(0.1)
    assert known.estimate("a", "h200", "tf32").seconds == 1.0
    # float32 is an upper bound where bfloat16 is not measured
    assert known.estimate("b", "h200", "bfloat16").seconds == 0.5


def test_trainings_in_bfloat16_cost_what_bfloat16_costs(plan: Plan) -> None:
    run = next(r for r in plan.runs.values() if isinstance(r.spec, ClassifierSpec))
    (network,) = run.cost
    low = {**on("h200", batch=128, both=0.3), "precision": "bfloat16"}
    known = Throughput.parse({network: {"macs": 1, "measured": [on("h200", both=3), low]}}, "made")
    parameters = {**run.spec.training.parameters, "precision": "bfloat16"}
    spec = replace(run.spec, training=replace(run.spec.training, parameters=parameters))
    low_run = replace(run, spec=spec)
    in_float32, in_bfloat16 = (price([r], plan, known, "h200") for r in (run, low_run))
    assert in_bfloat16.hours == pytest.approx(in_float32.hours / 10)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (on("h200", forward=2.0, both=1.0), "a forward pass takes 2 s, forward and backward 1 s"),
        (on("h200"), "needs forward or both"),
        ({**on("h200", forward=1.0), "precision": "float8"}, "'float8' is not one of"),
    ],
)
def test_impossible_measurements_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        throughput(a=(10, [row]))


def test_an_unmeasured_card_is_refused(plan: Plan) -> None:
    with pytest.raises(UserError, match=r"'rtx' \(measured: cpu, h200\); choose one of these"):
        describe_price(plan, "rtx")


def test_a_rate_adds_money_and_scaling_is_named(plan: Plan) -> None:
    text = describe_price(plan, "h200", rate=100.0)
    total = next(line for line in text.splitlines() if line.startswith("total")).split()
    assert float(total[7]) == pytest.approx(100 * float(total[5]), abs=0.6)
    assert "Not measured on h200, scaled from wide_resnet(depth=34" in text
    assert "money" not in describe_price(plan)


PEAK = {"float32": 67e12, "tf32": 494e12, "bfloat16": 989e12}
"""Operations per second of an H200 (NVIDIA's data sheet, without sparsity)."""


def test_stored_measurements_stay_below_the_peak_of_the_card() -> None:
    known = Throughput.load(ROOT)
    for network, rows in known.measured.items():
        for row in rows:
            assert row.device in ("cpu", "h200")
            if row.device == "h200":
                assert row.source and math.isfinite(row.seconds)
                assert 2 * known.macs[network] / row.seconds < PEAK[row.precision]


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
        assert planned <= known.macs.keys(), "run python -m purifiers measure"


def test_a_method_that_brings_a_network_is_priced_by_it(plan: Plan) -> None:
    """A network has its sizes and its passes; who brings none costs passes of the classifier."""
    for name in registry.names("method"):
        network = registry.describe("method", name).traits.network
        for run in plan.runs.values():
            if isinstance(run.spec, PurifySpec) and run.spec.method.component == name:
                assert (name in costs(run)) is (network is not None and network.passes != "0")
