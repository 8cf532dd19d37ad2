"""What the planner refuses and shares."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.recorded_csv import write_recorded
from purifiers.plan.graph import component_spec, with_ancestors
from purifiers.plan.plan import make_plan
from purifiers.plan.resolve import merge
from purifiers.plan.scale import load_scale, scale_names

ROOT = Path(__file__).resolve().parents[2]


AID = "  aid: {documents: {audit: {images: 24}}}"
"""What the scale smoke declares of the paper."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("benchmarks/aid", "workflow"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def edit(path: Path, *changes: tuple[str, str]) -> None:
    """Replace every occurrence of each first text, which must be there, by the second."""
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def test_an_early_stopped_set_is_never_purified(root: Path) -> None:
    path = root / "benchmarks" / "aid" / "paper.yaml"
    edit(path, ("steps: 40, step_size: $attack_step", "stop: success, steps: 40"))
    with pytest.raises(UserError, match="set stop to never"):
        make_plan(root, "smoke", ["aid/table_11b"])


def test_a_learning_rate_says_its_optimizer(root: Path) -> None:
    """A rate for SGD would reach recipes that train the same component with Adam."""
    path = root / "workflow" / "scales" / "smoke.yaml"
    text = path.read_text()
    budget = "training.natural: {epochs: 8, "
    silent = text.replace(f"{budget}optimizer: sgd, ", budget)
    assert silent != text
    path.write_text(silent)
    told = r"smoke.yaml: budgets.training.natural: learning_rate without optimizer"
    with pytest.raises(UserError, match=told):
        make_plan(root, "smoke", ["aid/table_11b"])


def set_budget(root: Path, steps: str) -> None:
    """Give PGD another budget of steps at smoke scale."""
    path = root / "workflow" / "scales" / "smoke.yaml"
    edit(path, ("attack.pgd: {steps: {at_most: 5}}", f"attack.pgd: {{steps: {steps}}}"))


@pytest.mark.parametrize(
    ("budget", "steps"), [("7", 7), ("{at_most: 7}", 7), ("{at_most: 99}", 40)]
)
def test_a_budget_may_be_a_ceiling(root: Path, budget: str, steps: int) -> None:
    """Table 11b's first row overrides nothing; its recipe says 40 steps."""
    set_budget(root, budget)
    plan = make_plan(root, "smoke", ["aid/table_3"])
    sets = [run.spec.attack.parameters for run in plan.runs.values() if run.stage == "attack"]
    assert {made["steps"] for made in sets if "random_start" in made} == {steps}


def pgd_with(root: Path, budget: str, override: str) -> set[float]:
    """Steps of PGD in Table 11b's row of 100, whose recipe says 40, when these two change them."""
    set_budget(root, budget)
    new = f"{{steps: {override}}}"
    table = root / "benchmarks" / "aid" / "table_11b.yaml"
    edit(table, ("{steps: 100}", new), ("{steps: 200}", new))
    plan = make_plan(root, "smoke", ["aid/table_11b"])
    wanted = {
        identity
        for cell in plan.documents["aid/table_11b"].cells
        if cell.row == "steps_100"
        for scores in cell.scores
        for identity in scores
    }
    return {plan.runs[identity].spec.attack.parameters["steps"] for identity in wanted}


@pytest.mark.parametrize(
    ("budget", "override", "steps"),
    [
        ("7", "{times: 2}", 14),
        ("{at_most: 7}", "{times: 2}", 14),
        ("{at_most: 99}", "{times: 2}", 80),
        ("{at_most: 7}", "100", 100),
    ],
)
def test_an_override_may_be_relative(root: Path, budget: str, override: str, steps: int) -> None:
    """To the recipe as the scale has it."""
    assert pgd_with(root, budget, override) == {steps}


def test_an_override_does_not_undo_the_scale(root: Path) -> None:
    """Steps of 0.01 in a fit that a scale shortens to five would go nowhere."""
    told = "override sets steps to 100, but scale smoke sets it to 7: write {times: n} for"
    with pytest.raises(UserError, match=told):
        pgd_with(root, "7", "100")


def test_repeated_cells_cost_nothing(root: Path) -> None:
    """Table 11b's row of 40 iterations is a cell of Table 3."""
    alone = make_plan(root, "paper", ["aid/table_3"])
    together = make_plan(root, "paper", ["aid/table_3", "aid/table_11b"])
    added = set(together.runs) - set(alone.runs)
    repeated = set(make_plan(root, "paper", ["aid/table_11b"]).runs) - added
    assert repeated and repeated <= set(alone.runs)


def test_stand_ins_share_one_run_where_settings_agree(root: Path) -> None:
    document = make_plan(root, "smoke", ["aid/table_3"]).documents["aid/table_3"]
    cells = {(c.block, c.row, c.column): c.scores for c in document.cells}
    assert cells["svhn", "madry", "pgd"] == cells["cifar10", "madry", "pgd"] != ()


def test_a_seed_or_version_changes_every_identity(root: Path) -> None:
    before = make_plan(root, "smoke", ["aid/table_11b"])
    edit(root / "workflow" / "scales" / "smoke.yaml", ("seeds: [0]", "seeds: [1]"))
    after = make_plan(root, "smoke", ["aid/table_11b"])
    shared = {run.stage for run in after.runs.values() if run.id in before.runs}
    assert shared == {"dataset"}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{steps: 100}", "{steps: ten}", "steps is 'ten', but takes a whole number"),
        (
            "{steps: 100}",
            "{steps: 1e2}",
            r"'1e2' \(text; write 100.0\), but takes a whole",
        ),
        ("{steps: 100}", "{steps: 10.5}", "steps is 10.5, but takes a whole number"),
        ("{steps: 100}", "{steps: null}", "steps is None, but takes a whole number"),
        ("{steps: 100}", "{steps: {at_mots: 5}}", "steps is {'at_mots': 5}, but takes"),
        ("{steps: 100}", "{steps: {times: ten}}", "times is 'ten' and applies to 5: both"),
        ("{steps: 100}", "{eps: {at_most: eight}}", "at_most is 'eight' and applies to 0.15: "),
        ("{steps: 100}", "{random_start: 1}", "random_start is 1, but takes true or false"),
        ("{steps: 100}", "{steps: 0}", "table_11b.*steps is 0, but takes a whole number of at"),
        ("{steps: 100}", "{steps: true}", "steps is True, but takes a whole number of at least"),
        ("{steps: 100}", "{steps: .nan}", "steps is nan, but takes a whole number of at least 1"),
        ("{steps: 100}", "{eps: .inf}", r"eps is inf, but lengths lie in \[0, 1\]"),
        ("{steps: 100}", "{steps: {times: -1}}", "steps is -5, but takes a whole number of at"),
        ("{steps: 100}", "{steps: {times: 0.01}}", "steps is 0.05, but takes a whole number of"),
        ("{steps: 100}", "{steps: {at_most: 0}}", "steps is 0, but takes a whole number of at"),
        (
            "{steps: 100}",
            "{steps: {at_most: .nan}}",
            "at_most is nan and applies to 5: both",
        ),
        ("{steps: 100}", "{eps: {times: 255}}", r"eps is 38\.25, but lengths lie in \[0, 1\]"),
        (
            "attack.pgd: {steps: 100}",
            "attack.pdg: {steps: 100}",
            "override: attack 'pdg' is not in",
        ),
    ],
)
def test_a_parameter_of_another_type(root: Path, old: str, new: str, told: str) -> None:
    edit(root / "benchmarks" / "aid" / "table_11b.yaml", (old, new))
    with pytest.raises(UserError, match=told):
        make_plan(root, "smoke", ["aid/table_11b"])


def test_a_whole_number_may_have_a_decimal_point(root: Path) -> None:
    """It is the same run."""
    path = root / "benchmarks" / "aid" / "table_11b.yaml"
    before = set(make_plan(root, "smoke", ["aid/table_11b"]).runs)
    edit(path, ("{steps: 100}", "{steps: 100.0}"))
    assert set(make_plan(root, "smoke", ["aid/table_11b"]).runs) == before


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("test: 48", "test: 4800", r"test is 4800, but there are \d+ images"),
        ("use: digits", "use: digits, parameters: {sise: 16}", "has no parameter 'sise'"),
        (
            "use: digits",
            "use: image_folder, parameters: {shape: [3, 32, 0]}",
            r"shape is \[3, 32, 0\], but takes a list, each a whole number of at least 1",
        ),
    ],
)
def test_a_data_set_that_is_not_there(root: Path, old: str, new: str, told: str) -> None:
    edit(root / "workflow" / "scales" / "smoke.yaml", (old, new))
    with pytest.raises(UserError, match=told):
        make_plan(root, "smoke", ["aid/table_11b"])


def report_specs(root: Path, *wanted: str) -> dict[str, str]:
    """What the reports' specs say after planning."""
    make_plan(root, "smoke", wanted).write_specs()
    folder = root / "results" / "runs" / "batches" / "report" / "smoke"
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.json")}


def finish(root: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that a table's jobs are done and that it is written."""
    monkeypatch.setattr(RunFolder, "complete", lambda _: True)
    for name in json.loads(spec)["made_from"]:
        (root / name).write_text("{}")
    table = root / "results" / "tables" / "smoke" / "aid" / "table_11b.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    write_recorded(table, "row\n1\n", {})


@pytest.mark.parametrize("change", ["nothing", "label", "published", "table gone", "table damaged"])
def test_a_table_is_written_anew_when_it_would_say_something_else(
    root: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = report_specs(root, "aid/table_11b")
    assert set(before) == {"aid/table_11b.spec.json"}  # the paper is more than this table
    finish(root, before["aid/table_11b.spec.json"], monkeypatch)
    assert report_specs(root, "aid/table_11b") == before
    path = root / "benchmarks" / "aid" / "table_11b.yaml"
    if change == "label":
        edit(path, ('label: "100"', 'label: "a hundred"'))
    elif change == "published":
        edit(path, ("34.86", "34.9"))
    elif change == "table gone":
        (root / "results" / "tables" / "smoke" / "aid" / "table_11b.csv").unlink()
    elif change == "table damaged":
        (root / "results" / "tables" / "smoke" / "aid" / "table_11b.csv").write_text("row\n2\n")
    after = report_specs(root, "aid/table_11b")
    assert (after == before) == (change == "nothing")


def test_a_parameter_that_joined_later_keeps_old_names() -> None:
    """At its default it is left out of the identity, else it is part of it."""
    late = {"train_cw_const", "train_cw_learning_rate"}
    old = component_spec("method", "aid", {"train_cw_const": 0.01}).parameters
    new = component_spec("method", "aid", {"train_cw_const": 1.0}).parameters
    assert not late & set(old)
    assert new == {**old, "train_cw_const": 1.0}


def test_a_later_fragment_wins_and_overrides_add_up() -> None:
    merged = merge(
        {"attack": "pgd", "override": {"attack.pgd": {"steps": 5}}, "flags": ["a"]},
        {"attack": "mim", "override": {"attack.pgd": {"eps": 0.1}}, "flags": ["b"]},
    )
    assert merged == {
        "attack": "mim",
        "override": {"attack.pgd": {"steps": 5, "eps": 0.1}},
        "flags": ["a", "b"],
    }


def test_times_of_a_row_come_from_one_run(root: Path) -> None:
    """Table 2: one image, the best batch and the training; four data sets, at smoke one."""
    plan = make_plan(root, "smoke", ["aid/table_2"])
    cells = plan.documents["aid/table_2"].cells
    assert {cell.state for cell in cells} == {"planned"} and len(cells) == 36
    assert {cell.stage for cell in cells} == {"time"}
    assert {cell.scores for cell in cells if cell.row == "aid"} == {cells[6].scores}
    timed = {run.id: run for run in plan.runs.values() if run.stage == "time"}
    assert len(timed) == 3
    assert {method.component for run in timed.values() for method in run.spec.methods} == {
        *("defense_gan", "pixel_defend", "aid")
    }
    for run in timed.values():
        assert run.spec.methods[0].run in {made.id for made in run.inputs}
        assert run.spec.images.run is None  # the time of purifying clean images
        assert run.spec.timing.images == 4 and run.passes > 0
    assert not [run for run in plan.runs.values() if run.stage in ("purify", "score")]


def test_information_is_estimated_with_the_papers_estimator(root: Path) -> None:
    plan = make_plan(root, "smoke", ["aid/table_19"])
    found = [run for run in plan.runs.values() if run.stage == "information"]
    assert len(found) == 4 and len({plan.batches[run.id].id for run in found}) == 1
    for run in found:
        estimator = run.spec.estimator
        assert estimator["taps"] == ["conv1", "stage3"] and estimator["layers"] == 2
        assert estimator["steps"] == 200  # the scale's
        assert run.spec.images.run is None or run.spec.images.stage == "attack"
    paper = make_plan(root, "paper", ["aid/table_19"])
    specs = [run.spec.estimator for run in paper.runs.values() if run.stage == "information"]
    assert {(spec["steps"], spec["width"], spec["learning_rate"]) for spec in specs} == {
        (2000, 512, 1e-4)
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("benchmarks/aid/paper.yaml", "estimator:", "estimators:", "unknown key 'estimators'"),
        ("benchmarks/aid/paper.yaml", "  held_out: 0.25\n", "", "'held_out' is a required"),
        ("workflow/scales/smoke.yaml", "estimator: {width", "estimator: {layers", "'layers'"),
        ("workflow/scales/smoke.yaml", "timing: {images", "timing: {image", "mean 'images'"),
    ],
)
def test_estimator_and_timing_are_checked(
    root: Path, file: str, old: str, new: str, told: str
) -> None:
    text = (root / file).read_text()
    assert text.count(old) == 1
    (root / file).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=told):
        make_plan(root, "smoke", ["aid/table_19"])


def test_what_cannot_be_measured_is_refused(root: Path) -> None:
    path = root / "benchmarks" / "aid" / "table_2.yaml"
    edit(path, ("methods: [aid]", "methods: []"))
    with pytest.raises(UserError, match="no methods to time"):
        make_plan(root, "smoke", ["aid/table_2"])
    path = root / "benchmarks" / "aid" / "paper.yaml"
    before, _, after = path.read_text().partition("estimator:\n")
    path.write_text(before + after.partition("\n\n")[2])
    with pytest.raises(UserError, match="needs an `estimator`"):
        make_plan(root, "smoke", ["aid/table_19"])


def test_a_data_set_may_have_seeds_of_its_own(root: Path) -> None:
    edit(
        root / "workflow" / "scales" / "smoke.yaml",
        ("cifar10: *digits", "cifar10: {use: digits, train: 1400, test: 256, seeds: [4, 7]}"),
    )
    plan = make_plan(root, "smoke", ["aid/table_3"])
    seeds = {cell.dataset: cell.seeds for cell in plan.documents["aid/table_3"].cells}
    assert seeds["svhn"] == (0,) and seeds["cifar10"] == (4, 7)
    of_cell = next(c for c in plan.documents["aid/table_3"].cells if c.dataset == "cifar10")
    assert len(set(of_cell.scores)) == 2


def test_a_document_may_have_seeds_and_images_of_its_own(root: Path) -> None:
    path = root / "workflow" / "scales" / "smoke.yaml"
    entry = "  aid: {images: 9, documents: {table_11b: {images: 7, seeds: [2, 3]}}}"
    edit(path, (AID, entry))
    plan = make_plan(root, "smoke", ["aid/table_3", "aid/table_11b"])
    for name, images, seeds in (("aid/table_3", 9, (0,)), ("aid/table_11b", 7, (2, 3))):
        for cell in plan.documents[name].cells:
            runs = [plan.runs[run] for scores in cell.scores for run in scores]
            assert all(run.spec.images.subset.n == images for run in runs)  # type: ignore[attr-defined]
            assert cell.seeds == (seeds if runs else ())


def test_a_row_may_have_seeds_of_its_own(root: Path) -> None:
    path = root / "workflow" / "scales" / "smoke.yaml"
    entry = "  aid: {documents: {table_3: {seeds: [2]}}, rows: {natural: {seeds: [0, 1]}}}"
    edit(path, (AID, entry))
    plan = make_plan(root, "smoke", ["aid/table_3"])
    seeds = {(c.row, c.seeds) for c in plan.documents["aid/table_3"].cells if c.scores}
    assert ("natural", (0, 1)) in seeds and ("natural", (2,)) not in seeds
    assert {own for row, own in seeds if row != "natural"} == {(2,)}


def test_a_scale_may_omit_a_document(root: Path) -> None:
    path = root / "workflow" / "scales" / "smoke.yaml"
    edit(path, (AID, "  aid: {documents: {table_3: {omitted: true}}}"))
    plan = make_plan(root, "smoke", ["aid/table_3", "aid/table_10"])
    cells = plan.documents["aid/table_3"].cells
    assert {(c.state, c.reason) for c in cells} == {
        ("not run", "table_3 is not part of scale smoke")
    }
    assert not any(cell.scores for cell in cells)
    assert any(cell.scores for cell in plan.documents["aid/table_10"].cells)


def test_a_document_may_compare_precisions_whatever_the_scale_declares(root: Path) -> None:
    path = root / "workflow" / "scales" / "smoke.yaml"
    edit(path, ("training.natural: {", "training.natural: {precision: bfloat16, "))
    runs = make_plan(root, "smoke", ["aid/audit_precision"]).runs.values()
    trained = [run.spec.training for run in runs if run.stage == "classifier"]  # type: ignore[attr-defined]
    of_natural = [t.parameters.get("precision") for t in trained if t.component == "natural"]
    assert sorted(of_natural, key=str) == [None, "bfloat16"]  # float32 is left out


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("documents: {table_33: {images: 9}}", "papers.aid.documents: aid has no 'table_33'"),
        ("rows: {naturall: {seeds: [1]}}", "papers.aid.rows: aid has no 'naturall'"),
    ],
)
def test_an_entry_for_an_unknown_document_or_row(root: Path, entry: str, message: str) -> None:
    path = root / "workflow" / "scales" / "smoke.yaml"
    edit(path, (AID, f"  aid: {{{entry}}}"))
    with pytest.raises(UserError, match=rf"smoke.yaml: {message} \(did you mean"):
        make_plan(root, "smoke", ["aid/table_3"])


@pytest.mark.parametrize("scale", scale_names(ROOT))
def test_the_scales_name_papers_that_exist(scale: str) -> None:
    for paper in load_scale(ROOT, scale).setting("papers", {}):
        assert (ROOT / "benchmarks" / paper / "paper.yaml").exists(), paper
    if first := load_scale(ROOT, scale).first:
        assert (ROOT / "benchmarks" / f"{first}.yaml").exists()


def test_the_text_of_a_plan_and_of_a_run_is_short(plans) -> None:
    """Inputs of inputs would be printed once per path to them, which filled the memory."""
    plan = plans["paper"]
    assert len(repr(plan)) < 200
    assert max(len(repr(run)) for run in plan.runs.values()) < 20_000


def test_the_first_document_waits_for_no_run_of_others(plans) -> None:
    plan = plans["smoke"]
    own = {run.id for run in with_ancestors(plan.score_runs(plan.scale.first))}
    assert own and len(own) < len(plan.runs)
    batches = {batch.id: batch for batch in plan.batches.values()}.values()
    assert {run.id for batch in batches if batch.first for run in batch.runs} == own
    assert all(b.first for batch in batches if batch.first for b in batch.upstream)
    alone = make_plan(ROOT, "smoke", [plan.scale.first])  # the same jobs: none is repeated
    assert {b.id for b in alone.batches.values()} == {b.id for b in batches if b.first}


def test_the_first_document_must_exist(root: Path) -> None:
    edit(
        root / "workflow" / "scales" / "smoke.yaml", ("first: advae/table_1", "first: aid/table_99")
    )
    make_plan(root, "smoke", ["aid/table_11b"])  # it is not asked for
    with pytest.raises(UserError, match=r"smoke.yaml: first: there is no document 'aid/table_99'"):
        make_plan(root, "smoke")
