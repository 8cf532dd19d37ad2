"""What a cluster's jobs request, and how short runs are joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from purifiers.core.artifacts import read_json
from purifiers.core.errors import UserError
from purifiers.core.spec import ComponentSpec, DatasetSpec
from purifiers.plan.batches import _joined
from purifiers.plan.cluster import (
    START_MINUTES,
    Cluster,
    check_status_queries,
    longer_than_limit,
    write_predictions,
)
from purifiers.plan.graph import Graph, Run
from purifiers.plan.plan import make_plan
from purifiers.plan.throughput import Measurement, Throughput

ROOT = Path(__file__).resolve().parents[2]


def test_time_grows_with_every_attempt_up_to_the_limit() -> None:
    cluster = Cluster(factor=3, longest_hours=2)
    job = {"seconds": 600.0, "bytes": 0.0}
    minutes = START_MINUTES + 30
    assert [cluster.runtime(job, n) for n in (1, 2, 3, 9999)] == [minutes, 2 * minutes, 120, 120]
    assert cluster.runtime({"seconds": 1e9, "bytes": 0.0}) == 120
    assert cluster.runtime({"seconds": 0.0, "bytes": 0.0}) == START_MINUTES


def test_memory_grows_with_every_attempt_up_to_the_node() -> None:
    cluster = Cluster(mem_mb=1000, largest_mem_mb=2500)
    job = {"seconds": 0.0, "bytes": 100e6}
    assert [cluster.memory(job, n) for n in (1, 2)] == [1300, 2500]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"factr": 2}, r"cluster\.factr: there is no such key.*factor"),
        ({"factor": "2"}, r"cluster\.factor is '2': write a number above 0"),
        ({"longest_hours": 0}, r"cluster\.longest_hours is 0: write a number above 0"),
        ({"card": 5}, r"cluster\.card is 5: write a text"),
    ],
)
def test_wrong_settings_are_one_line(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"profiles/slurm/jobs\.yaml: {message}"):
        Cluster.parse(content)


def test_the_profile_names_the_settings() -> None:
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    settings = yaml.safe_load((ROOT / profile["configfile"]).read_text())
    Cluster.parse(settings["cluster"])
    assert "cores" not in profile and "resources" not in profile and profile["retries"] > 0


def run(name: str, group: Run | None = None, **cost: float) -> Run:
    spec = DatasetSpec(dataset=ComponentSpec(component=name, version=1, parameters={}))
    return Graph().add(spec, name, cost, group)


def test_a_run_takes_the_time_of_its_networks() -> None:
    """One that was never measured counts as the median one."""
    rows = {
        name: (Measurement("h200", forward=s),) for name, s in zip("abc", (1, 4, 9), strict=True)
    }
    throughput = Throughput(dict.fromkeys("abc", 1.0), rows)
    assert throughput.seconds(run("toy", a=2.0, c=1.0), "h200") == 11
    assert throughput.seconds(run("toy", new=2.0), "h200") == 8
    assert throughput.seconds(run("toy"), "h200") == 0
    with pytest.raises(UserError, match="measured on 'cpu'"):
        throughput.seconds(run("toy", new=2.0), "cpu")


def test_short_runs_of_a_lineage_share_jobs(workspace: Any) -> None:
    """Runs, files and the order of the stages stay; a job waits for one classifier."""
    path = workspace.path / "workflow" / "scales" / "tiny.yaml"
    declared = yaml.safe_load(path.read_text())
    separate = make_plan(workspace.path, "tiny")
    stages = ("classifier", "purifier", "attack", "purify", "score")
    for minutes, seconds in ((1e-9, "long"), (1e9, "short")):
        declared["jobs"] = {"dataset": "run", **{stage: {"minutes": minutes} for stage in stages}}
        path.write_text(yaml.safe_dump(declared))
        plan = make_plan(workspace.path, "tiny")
        assert plan.runs.keys() == separate.runs.keys()
        batches = {batch.id: batch for batch in plan.batches.values()}
        groups = {(r.stage, r.job_group) for r in plan.runs.values()}
        for batch in batches.values():
            assert len({r.job_group for r in batch.runs}) == 1
        if seconds == "short":
            assert len(batches) == len(groups)
        else:
            assert len(batches) == len(plan.runs) > len(groups)


def test_the_longest_fitting_runs_come_first() -> None:
    root = run("root")
    costs = {"a": 70.0, "b": 50.0, "c": 40.0, "d": 10.0, "e": 300.0}
    runs = [run(name, root, n=cost) for name, cost in costs.items()]
    groups = _joined(runs, 100, lambda r: r.cost["n"])
    assert sorted("".join(sorted(r.id[0] for r in group)) for group in groups) == ["ad", "bc", "e"]


def test_predictions_are_of_unfinished_runs(
    workspace: Any, undisturbed: Any, tmp_path: Path
) -> None:
    path = tmp_path / "predictions.json"
    plan = make_plan(workspace.path, "tiny")
    found = write_predictions(plan, Cluster(card="h200"), path)
    assert found == read_json(path) and found.keys() == {b.id for b in plan.batches.values()}
    (attack,) = {b.id for b in plan.batches.values() if b.stage == "attack"}
    throughput = Throughput.load(plan.root)
    attacks = [r for r in plan.runs.values() if r.stage == "attack"]
    seconds = sum(throughput.seconds(r, "cpu") for r in attacks)  # the scale's device, no card
    assert found[attack]["seconds"] == pytest.approx(seconds, abs=0.06) and seconds > 0
    assert found[attack]["bytes"] > 0
    finished = write_predictions(make_plan(undisturbed.path, "tiny"), Cluster(), path)
    assert {job["seconds"] for job in finished.values()} == {0}


def test_data_sets_are_prepared_without_a_gpu(workspace: Any) -> None:
    path = workspace.path / "workflow" / "scales" / "tiny.yaml"
    path.write_text(path.read_text().replace("device: cpu", "device: auto"))
    plan = make_plan(workspace.path, "tiny")
    plan.write_specs()
    folder = workspace.runs / "batches"
    devices = {b.stage: read_json(folder / b.spec_name)["device"] for b in plan.batches.values()}
    assert devices.pop("dataset") == "cpu" and set(devices.values()) == {"auto"}


def test_jobs_that_need_several_attempts_are_announced() -> None:
    jobs = {"a": {"seconds": 90000.0}, "b": {"seconds": 360000.0}, "c": {"seconds": 9.0}}
    line = longer_than_limit(jobs, Cluster(longest_hours=24))
    assert line.startswith("2 of 3 jobs") and "the longest 100 h" in line
    assert longer_than_limit({"c": jobs["c"]}, Cluster()) == ""


def test_finished_jobs_must_be_noticed() -> None:
    shown = "AccountingStorageType   = accounting_storage/{}\nMinJobAge               = {} sec\n"
    check_status_queries(shown.format("none", 60), 20)
    check_status_queries(shown.format("slurmdbd", 2), 20)
    with pytest.raises(UserError, match=r"after 59 s \(MinJobAge\).* to at most 19 in"):
        check_status_queries(shown.format("none", 59), 20)


def test_the_profile_for_one_machine_is_not_mixed_in(workspace: Any) -> None:
    done = workspace.snakemake("-n", "--profile", "profiles/slurm")
    assert done.returncode == 1
    assert "error: --profile also reads profiles/default" in done.stdout
    assert "Traceback" not in done.stdout
