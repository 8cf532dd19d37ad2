"""A substitute learns from answers alone, on images nobody is judged by, whatever interrupts it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from purifiers.core import registry
from purifiers.core.artifacts import RunFolder, read_json
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    SPECS,
    ClassifierSpec,
    DatasetSpec,
    MethodSpec,
    Oracle,
    Spec,
    Subset,
    SubstituteSpec,
)
from purifiers.core.training_images import to_float
from purifiers.plan.cost import passes
from purifiers.plan.graph import Run, component_spec
from purifiers.plan.plan import Plan, make_plan
from purifiers.stages import classifier, dataset, substitute
from purifiers.stages._context import Context, Data
from purifiers.stages._opening import open_classifier, open_data
from purifiers.stages.job import run_batch
from purifiers.stages.substitute import Extraction, TrainingSet
from purifiers.training.jacobian_substitute import JacobianSubstitute

ROOT = Path(__file__).resolve().parents[2]
NETWORK = component_spec(
    "classifier", "wide_resnet", {"depth": 10, "widen_factor": 1, "first_stride": 2}
)
NATURAL = component_spec("training", "natural", {"epochs": 8, "learning_rate": 0.05})
SIGNS = MethodSpec(
    **component_spec("method", "random_sign", {"eps": 0.6}).to_json(),
    run=None,
)
BRIEF = {"seed_images": 24, "rounds": 3, "epochs": 2, "learning_rate": 0.01, "batch_size": 16}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A runs folder with the data set ``digits`` and the classifier ``victim``."""
    made = Context(tmp_path_factory.mktemp("runs"), "cpu", 1, 64, checkpoint_seconds=0.0)
    finish(made, dataset, "digits", DatasetSpec(dataset=component_spec("dataset", "digits", {})))
    spec = ClassifierSpec(data="digits", train=1400, classifier=NETWORK, training=NATURAL, seed=0)
    finish(replace(made, checkpoint_seconds=60.0), classifier, "victim", spec)
    return made


def folder_of(context: Context, stage: Any, run: str) -> RunFolder:
    folder = context.folder(stage.__name__.rsplit(".", 1)[1], run)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder


def finish(context: Context, stage: Any, run: str, spec: Spec) -> dict[str, Any]:
    """Do a run as a job does, and return its summary."""
    folder = folder_of(context, stage, run)
    with torch.random.fork_rng(devices=[]):
        outcome = stage.run(folder, spec, context)
    for told in outcome.summary.get("rounds", ()):
        assert told.pop("train_seconds") >= 0.0  # no two trainings take the same time
    folder.finish(spec, outcome.files, outcome.summary, 0.0, {})
    (folder.path / "checkpoint").unlink(missing_ok=True)
    return outcome.summary


def spec_of(methods: tuple[MethodSpec, ...] = (), **parameters: Any) -> SubstituteSpec:
    training = component_spec("training", "jacobian_substitute", BRIEF | parameters)
    return SubstituteSpec(
        data="digits",
        seeds=Subset(split="test", n=training.parameters["seed_images"], seed=0, last=True),
        classifier=NETWORK,
        training=training,
        oracle=Oracle(classifier="victim", methods=methods),
        seed=0,
    )


def weights(context: Context, run: str) -> bytes:
    return (context.folder("substitute", run).path / "weights.safetensors").read_bytes()


def extraction(context: Context, spec: SubstituteSpec) -> tuple[Extraction, TrainingSet]:
    """A model extraction before its first round."""
    training = JacobianSubstitute(**spec.training.parameters)
    oracle = substitute._oracle(spec, context)
    folder = folder_of(context, substitute, "unused")
    network = open_classifier(context, "victim")
    made = Extraction(folder, context, 0, training, network, oracle)
    planted = substitute._seed_set(open_data(context, "digits"), spec.seeds, training.seed_labels)
    return made, planted


# what it does


def test_it_agrees_with_the_oracle_and_all_the_more_after_augmentation(context):
    smoke = {"seed_images": 100, "epochs": 8, "batch_size": 128}
    seconds = replace(context, checkpoint_seconds=60.0)
    grown = finish(seconds, substitute, "agreeing", spec_of(**smoke, rounds=4))
    seeds_only = finish(seconds, substitute, "seeds", spec_of(**smoke, rounds=1))
    assert grown["n_compared"] == seeds_only["n_compared"] == 500
    assert grown["n_agreed"] > 400
    assert grown["n_agreed"] > seeds_only["n_agreed"] + 25
    network = open_classifier(context, "agreeing", "substitute")
    data = open_data(context, "digits")
    images = to_float(data.images["test"][np.arange(256)])
    with torch.no_grad():
        found = network(images).argmax(dim=1).numpy()
    assert (found == data.labels["test"][:256]).mean() > 0.75


@pytest.mark.parametrize(("seed_labels", "first"), [("dataset", 0), ("oracle", 150)])
def test_150_images_become_4800_and_the_queries_are_counted(
    context, monkeypatch, seed_labels, first
):
    monkeypatch.setattr(JacobianSubstitute, "augment", lambda self, network, images, *_: images)
    monkeypatch.setattr(Defence, "__call__", lambda self, images, _: images[:, 0, 0, :10])
    full = {"seed_images": 150, "rounds": 6, "epochs": 0.001, "batch_size": 128}
    spec = spec_of(**full, validation=0.0, schedule="step", early_stopping=0)
    spec.training.parameters["seed_labels"] = seed_labels
    told = finish(context, substitute, f"whole_{seed_labels}", spec)
    counts = [150 * 2**number for number in range(6)]
    assert [entry["images"] for entry in told["rounds"]] == counts
    assert [entry["queries"] for entry in told["rounds"]] == [n - 150 + first for n in counts]
    assert told["images"] == 4800 and told["queries"] == 4650 + first


def test_seed_labels_come_from_where_they_should(context):
    theft, planted = extraction(context, spec_of(seed_images=100))
    labels = open_data(context, "digits").labels["test"]
    subset = Subset(split="test", n=100, seed=0, last=True)
    chosen = open_data(context, "digits").indices(subset)
    assert planted.labels.tolist() == labels[chosen].tolist()
    theft.query_oracle(planted)
    assert planted.queries == 0
    _, bare = extraction(context, spec_of(seed_images=100, seed_labels="oracle"))
    assert len(bare.labels) == 0 and torch.equal(bare.images, planted.images)
    theft.query_oracle(bare)
    assert bare.queries == 100
    answers = theft.oracle(bare.images).argmax(dim=1)
    assert torch.equal(bare.labels, answers) and not torch.equal(bare.labels, planted.labels)


def test_only_the_images_without_labels_are_asked_for(context):
    theft, grown = extraction(context, spec_of())
    grown.labels = (grown.labels + 1) % 10  # told wrongly, not to be corrected
    images, labels = grown.images.clone(), grown.labels.clone()
    grown.rounds.append({})
    theft.substitute.train()
    theft.augment(grown)
    theft.query_oracle(grown)
    assert torch.equal(grown.images[:24], images)
    evaluated = theft.substitute.eval()
    assert torch.equal(grown.images[24:], theft.training.augment(evaluated, images, labels, 1))
    assert torch.equal(grown.labels[:24], labels) and grown.queries == 24
    answers = theft.oracle(grown.images[24:]).argmax(dim=1)
    assert torch.equal(grown.labels[24:], answers)
    shutil.rmtree(theft.folder.path)


def test_nothing_but_hard_labels_reaches_the_substitute(context, monkeypatch):
    """A defence that gives other logits with the same largest one is robbed of the same model."""
    finish(context, substitute, "soft", spec_of())
    call = Defence.__call__
    monkeypatch.setattr(
        Defence,
        "__call__",
        lambda self, *rest: call(self, *rest).argsort(dim=1).argsort(dim=1).float() * 1e3,
    )
    finish(context, substitute, "hard", spec_of())
    assert weights(context, "hard") == weights(context, "soft")
    theft, _ = extraction(context, spec_of())
    assert theft.oracle.gradient == "none"


def test_the_whole_defence_answers(context):
    """Not its bare classifier; a random one with fresh coins per query, however many at once."""
    told: list[list[int]] = []
    for size, methods in ((64, ()), (64, (SIGNS,)), (7, (SIGNS,))):
        spec = spec_of(methods, seed_images=100, seed_labels="oracle")
        theft, grown = extraction(replace(context, batch_size=size), spec)
        grown.images = grown.images[:1].repeat(60, 1, 1, 1)
        theft.query_oracle(grown)
        told.append(grown.labels.tolist())
        shutil.rmtree(theft.folder.path)
    assert len(set(told[0])) == 1
    assert len(set(told[1])) > 1
    assert told[2] == told[1]


def test_an_oracle_that_is_broken_is_not_learnt_from(context, monkeypatch):
    monkeypatch.setattr(Defence, "__call__", lambda self, images, _: images.flatten(1) * torch.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        finish(context, substitute, "broken", spec_of())


# interruptions


class Killed(BaseException):
    """No code catches it, as none catches SIGKILL."""


@pytest.fixture(scope="module")
def undisturbed(context: Context) -> tuple[bytes, dict[str, Any]]:
    told = finish(context, substitute, "undisturbed", spec_of())
    return weights(context, "undisturbed"), told


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (JacobianSubstitute, "loss", 1),
        (JacobianSubstitute, "loss", 4),
        (JacobianSubstitute, "loss", 12),
        (JacobianSubstitute, "augment", 1),
        (JacobianSubstitute, "augment", 2),
        (Defence, "__call__", 1),
        (Defence, "__call__", 2),
        (Extraction, "save", 1),
        (Extraction, "save", 3),
        (Extraction, "agreement", 1),
    ],
)
def test_killed_anywhere_it_ends_with_the_same_bits(
    context, undisturbed, monkeypatch, owner, name, calls
):
    run, real, count = f"killed_{owner.__name__}_{name}_{calls}", getattr(owner, name), 0

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            raise Killed
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, deadly)
    with pytest.raises(Killed):
        finish(context, substitute, run, spec_of())
    monkeypatch.setattr(owner, name, real)
    assert not context.folder("substitute", run).complete()
    told = finish(context, substitute, run, spec_of())
    assert (weights(context, run), told) == undisturbed
    names = sorted(path.name for path in context.folder("substitute", run).path.iterdir())
    assert names == ["run.json", "weights.safetensors"]


def test_finished_rounds_are_not_trained_again(context, undisturbed, monkeypatch):
    trained: list[int] = []
    train = Extraction.train

    def counted(self: Extraction, grown: TrainingSet) -> dict[str, Any]:
        trained.append(len(grown.images))
        if trained == [24, 48]:
            raise Killed
        return train(self, grown)

    monkeypatch.setattr(Extraction, "train", counted)
    with pytest.raises(Killed):
        finish(context, substitute, "once", spec_of())
    finish(context, substitute, "once", spec_of())
    assert trained == [24, 48, 48, 96]
    assert weights(context, "once") == undisturbed[0]


def test_another_runs_rounds_are_refused(context, undisturbed, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Extraction, "agreement", lambda *_: (_ for _ in ()).throw(Killed))
        finish(context, substitute, "theirs", spec_of())
    kept = folder_of(context, substitute, "theirs").path / "checkpoint"
    mine = folder_of(context, substitute, "mine").path / "checkpoint"
    shutil.copy(kept, mine)
    with pytest.raises(UserError, match="belongs to run 'theirs', not 'mine'"):
        finish(context, substitute, "mine", spec_of())
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        finish(context, substitute, "theirs", spec_of())


# which images


@pytest.mark.parametrize(("evaluated", "seeds"), [(256, 100), (247, 150), (1, 396)])
def test_seed_images_are_never_evaluated(context, evaluated, seeds):
    data = open_data(context, "digits")
    first = data.indices(Subset(split="test", n=evaluated, seed=0))
    last = data.indices(Subset(split="test", n=seeds, seed=0, last=True))
    assert len(set(first)) == evaluated and len(set(last)) == seeds
    assert not set(first) & set(last)
    assert (np.diff(last) > 0).all()


def test_the_last_of_all_images_are_all():
    data = Data((1, 1, 1), 2, {}, {"test": np.arange(5)})
    whole = Subset(split="test", n=5, seed=0, last=True)
    assert data.indices(whole).tolist() == [0, 1, 2, 3, 4]
    for last in (False, True):
        with pytest.raises(UserError, match="the test split has 5 images, 6 are needed"):
            data.indices(replace(whole, n=6, last=last))


# planned


def declared(folder: Path, train: int = 60, test: int = 20, **changes: Any) -> Path:
    """A root whose paper attacks one defence through a substitute."""
    toy, workflow = ROOT / "tests" / "workflow", folder / "workflow"
    shutil.copytree(ROOT / "workflow", workflow, ignore=shutil.ignore_patterns("*.pyc"))
    scale = (toy / "tiny.yaml").read_text()
    size = "train: 200, test: 64"
    assert size in scale
    scale = scale.replace(size, f"train: {train}, test: {test}")
    (workflow / "scales" / "tiny.yaml").write_text(scale)
    paper = (toy / "toy" / "paper.yaml").read_text()
    stolen = {"component": "jacobian_substitute", "seed_images": 8, "rounds": 3, "epochs": 1}
    listed = ", ".join(f"{key}: {value}" for key, value in (stolen | changes).items())
    paper = paper.replace("methods:\n", "methods:\n  signs: {component: random_sign, eps: 0.1}\n")
    paper = paper.replace("trainings:\n", f"trainings:\n  stolen: {{{listed}}}\n")
    (folder / "benchmarks" / "toy").mkdir(parents=True)
    (folder / "benchmarks" / "toy" / "paper.yaml").write_text(paper)
    (folder / "benchmarks" / "toy" / "table_1.yaml").write_text(
        "table: '1'\ntitle: Through a substitute\nwhere: nowhere\n"
        "defaults: {classifier: small, training: natural, methods: [signs]}\n"
        "rows: [{id: pgd, cell: {attack: pgd}}]\n"
        "columns:\n"
        "  - {id: substitute, cell: {threat_model: black_box,"
        " source: {classifier: small, training: stolen}}}\n"
        "blocks: [{id: digits, cell: {dataset: digits}}]\n"
    )
    return folder


def stage_of(plan: Plan, stage: str) -> Run:
    (run,) = (run for run in plan.runs.values() if run.stage == stage)
    return run


def test_from_the_declaration_to_the_score(tmp_path):
    plan = make_plan(declared(tmp_path), "tiny")
    plan.write_specs()
    for stage in SPECS:
        for batch in {b.id: b for b in plan.batches.values() if b.stage == stage}.values():
            spec = plan.runs_root / "batches" / batch.spec_name
            manifest = plan.runs_root / "batches" / batch.manifest_name
            with torch.random.fork_rng(devices=[]):
                assert run_batch(read_json(spec), manifest, plan.runs_root, 1) == 0
    stolen, attack, score = (stage_of(plan, name) for name in ("substitute", "attack", "score"))
    assert stolen.spec.seeds == Subset(split="test", n=8, seed=0, last=True)
    assert [method.component for method in stolen.spec.oracle.methods] == ["random_sign"]
    assert attack.spec.classifier == stolen.id
    assert attack.spec.classifier_stage == "substitute"
    assert attack.spec.methods == ()
    assert score.spec.classifier == stolen.spec.oracle.classifier
    told = RunFolder(plan.runs_root, "substitute", stolen.id).record().summary
    assert [entry["images"] for entry in told["rounds"]] == [8, 16, 32]
    assert told["queries"] == 24 and told["passes"] == stolen.passes
    assert RunFolder(plan.runs_root, "score", score.id).record().summary["n"] == 20


def test_what_a_substitute_costs(tmp_path):
    """3 epochs: 8 + 16 + 32 images forth and back; 32 labels and moves."""
    plan = make_plan(declared(tmp_path, epochs=3), "tiny")
    signs = passes("method", registry.method_traits(SIGNS.component).passes, SIGNS)
    assert stage_of(plan, "substitute").passes == 9 * 56 + 32 * (3 + 1 + signs)


def test_a_scale_without_room_for_seeds_is_refused(tmp_path):
    """digits has 397 test images."""
    assert make_plan(declared(tmp_path / "fits", test=389), "tiny").runs
    with pytest.raises(UserError) as refused:
        make_plan(declared(tmp_path / "full", test=390), "tiny")
    line = str(refused.value)
    assert "\n" not in line
    for part in ("table_1.yaml: digits/pgd/substitute", "390", "8 seed images", "397", "tiny.yaml"):
        assert part in line
    assert "at most 389" in line
