"""The classifier ``robustbench``: networks of the zoo, from checkpoints in the zoo's layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import purifiers
from purifiers.classifiers import _zoo
from purifiers.classifiers._leaderboard import _lines, reported
from purifiers.core import robustbench_compat
from purifiers.core.artifacts import sha256
from purifiers.core.errors import UserError
from purifiers.core.spec import ClassifierSpec
from purifiers.plan.graph import component_spec
from purifiers.plan.plan import Plan
from purifiers.stages import classifier as stage
from purifiers.stages._context import Context
from purifiers.stages._opening import open_classifier

SHAPE, CLASSES = (3, 32, 32), 10


class Tiny(nn.Module):
    """A network that normalises its input itself, as the zoo's do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(256, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(images - self.mu))).flatten(1))


class Pair(nn.Module):
    """An ensemble of the zoo."""

    def __init__(self) -> None:
        super().__init__()
        self.models = nn.ModuleList([Tiny(), Tiny()])

    def forward(self, images: Tensor) -> Tensor:
        return (self.models[0](images) + self.models[1](images)) / 2


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder; the zoo's entries Tiny2024 and Pair2024 are tiny networks."""
    robustbench_compat.import_robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    entries = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]
    monkeypatch.setitem(entries, "Tiny2024", {"model": Tiny, "gdrive_id": "nowhere"})
    monkeypatch.setitem(entries, "Pair2024", {"model": Pair, "gdrive_id": ["a", "b"]})
    line = reported("Wong2020Fast")
    for name in ("Tiny2024", "Pair2024"):
        monkeypatch.setitem(_lines(), ("cifar10", "Linf", name), line)
    monkeypatch.setenv("PURIFYBENCH_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "robustbench" / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def trained(seed: int, make: type[nn.Module] = Tiny) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
        network(torch.rand(8, *SHAPE))  # moves the running statistics
    return network.eval()


def make(entry: str = "Tiny2024", **parameters: Any) -> Any:
    return purifiers.classifier("robustbench", SHAPE, CLASSES, entry=entry, **parameters)


def plain(state: dict[str, Tensor]) -> Any:
    return state


def of_data_parallel(state: dict[str, Tensor]) -> Any:
    return {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}


def of_a_wrapper(state: dict[str, Tensor]) -> Any:
    return {"state_dict": {f"model.{key}": value for key, value in state.items()}}


@pytest.mark.parametrize("layout", [plain, of_data_parallel, of_a_wrapper])
def test_logits_are_those_of_the_checkpoint(
    zoo: Path, images: Tensor, layout: Callable[[dict[str, Tensor]], Any]
) -> None:
    network = trained(1)
    torch.save(layout(network.state_dict()), zoo / "Tiny2024.pt")
    classifier = make()
    assert not classifier.training
    assert torch.equal(classifier(images), network(images))


def test_an_ensemble_reads_a_file_per_network(zoo: Path, images: Tensor) -> None:
    network = trained(1, Pair)
    for number, member in enumerate(network.models):
        torch.save(member.state_dict(), zoo / f"Pair2024.pt_m{number}.pt")
    assert torch.equal(make("Pair2024")(images), network(images))


def test_a_network_of_timm_reads_the_same_layout(zoo: Path, images: Tensor) -> None:
    entry = _zoo.find("Debenedetti2022Light_XCiT-S12", "cifar10", "Linf")
    (path,) = entry.files
    assert path == zoo / "Debenedetti2022Light_XCiT-S12.pt" and "://" in entry.files[path]
    network = entry.network().eval()
    torch.save({"model": network[1].state_dict()}, path)
    with torch.no_grad():
        assert torch.equal(make(entry.name)(images), network(images))


def test_objects_are_never_unpickled(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({**trained(1).state_dict(), "epoch": Planted()}, zoo / "Tiny2024.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match=r"Tiny2024\.pt: cannot be read without unpickling") as e:
        make()
    assert not (tmp_path / "executed").exists() and "\n" not in str(e.value)
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_weights_of_another_network_are_refused(zoo: Path) -> None:
    state = trained(1).state_dict()
    torch.save({**state, "fc.weight": torch.zeros(3, 256)}, zoo / "Tiny2024.pt")
    with pytest.raises(UserError, match=r"Tiny2024\.pt: does not fit the network of Tiny2024"):
        make()


@pytest.mark.parametrize("outcome", ["raises", "returns"])
def test_a_failed_download_names_the_place(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    def fetch(source: str, path: Path) -> None:
        assert source == "nowhere"
        if outcome == "raises":
            raise OSError("no network")

    monkeypatch.setattr("robustbench.utils.download_gdrive_new", fetch)
    reason = "OSError: no network" if outcome == "raises" else "no file arrived"
    with pytest.raises(UserError, match=rf"Tiny2024\.pt is missing .*\({reason}\): put the file"):
        make()


def test_a_missing_file_is_downloaded(
    zoo: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = trained(1)
    zoo.rmdir()
    monkeypatch.setattr(
        "robustbench.utils.download_gdrive_new",
        lambda source, path: torch.save(network.state_dict(), path),
    )
    assert torch.equal(make()(images), network(images))


def test_digests_hold_the_content(zoo: Path) -> None:
    torch.save(trained(1).state_dict(), zoo / "Tiny2024.pt")
    make(digests=[sha256(zoo / "Tiny2024.pt")])
    with pytest.raises(UserError, match=r"have SHA-256 .* not those of digests"):
        make(digests=["0" * 64])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"entry": "Wong2020Fats"}, "no entry 'Wong2020Fats' .*did you mean 'Wong2020Fast'"),
        ({"entry": "Wong2020Fast", "threat_model": "linf"}, "threat_model is 'linf': choose"),
        ({"entry": "Wong2020Fast", "zoo_dataset": "cifar"}, "zoo_dataset is 'cifar': choose"),
        ({"entry": "Wong2020Fast", "zoo_dataset": "imagenet"}, r"\(3, 288, 288\) of 1000 classes"),
        ({"entry": "Standard_R50", "zoo_dataset": "imagenet"}, "torchvision's weights"),
    ],
)
def test_one_line_for_each_mistake(zoo: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make(**parameters)
    assert "\n" not in str(error.value)


def test_the_leaderboard_covers_the_zoo() -> None:
    robustbench_compat.import_robustbench()
    from robustbench.model_zoo import model_dicts

    entries = [
        (name, dataset.value, threat_model.value)
        for dataset, parts in model_dicts.items()
        for threat_model, part in parts.items()
        for name in part
    ]
    assert len(entries) > 200
    for entry in entries:
        line = reported(*entry)
        assert 50 < line.clean < 100 and 0 <= line.robust < line.clean
        assert (line.eps == "") <= (entry[2] == "corruptions")


def test_reported_numbers() -> None:
    """As printed on the leaderboard of RobustBench."""
    fast = reported("Wong2020Fast")
    assert (fast.clean, fast.robust, fast.authors, fast.eps) == (83.34, 43.21, 46.06, "8/255")
    assert fast.external is None and not fast.unreliable
    sodef = reported("Kang2021Stable", "cifar10", "Linf")
    assert (sodef.robust, sodef.external, sodef.unreliable) == (71.28, 64.20, True)
    with pytest.raises(UserError, match="no entry 'Wong2020' of cifar10, L2"):
        reported("Wong2020", threat_model="L2")


def test_a_run_records_checksums_and_reported_numbers(
    zoo: Path, tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = trained(1)
    torch.save(network.state_dict(), zoo / "Tiny2024.pt")
    context = Context(tmp_path / "runs", "cpu", 1, 16, 60.0)
    data = SimpleNamespace(shape=SHAPE, classes=CLASSES)
    monkeypatch.setattr("purifiers.stages.classifier.open_data", lambda *_: data)
    monkeypatch.setattr("purifiers.stages._opening.open_data", lambda *_: data)
    spec = ClassifierSpec(
        data="data",
        train=0,
        classifier=component_spec("classifier", "robustbench", {"entry": "Tiny2024"}),
        training=component_spec("training", "pretrained", {}),
        seed=0,
    )
    folder = context.folder("classifier", "tiny")
    folder.path.mkdir(parents=True)
    outcome = stage.run(folder, spec, context)
    folder.finish(spec, outcome.files, outcome.summary, 0.0, {})
    digest = sha256(zoo / "Tiny2024.pt")
    summary = folder.record().summary
    assert summary["weights_sha256"] == {"Tiny2024.pt": digest}
    assert summary["reported_elsewhere"] == reported("Wong2020Fast").to_json()
    (zoo / "Tiny2024.pt").unlink()  # later stages read the run's own copy
    assert torch.equal(open_classifier(context, "tiny")(images), network(images))


PAPER = {
    "settings": {"cifar10": {}, "digits": {}},
    "classifiers": {"zoo": {"component": "robustbench", "entry": "Wong2020Fast"}},
    "trainings": {"kept": {"component": "pretrained"}},
    "methods": {},
    "attacks": {},
}
CELL = {"classifier": "zoo", "training": "kept", "methods": []}
CELL |= {"threat_model": "oblivious", "attack": "none"}


def test_images_that_do_not_fit_are_refused_when_planned(toy_plan: Callable[..., Plan]) -> None:
    cell = {**CELL, "dataset": "digits"}
    plan = toy_plan(PAPER, cell, rows={"row": {}}, columns={"column": {}})
    (planned,) = plan.documents["toy/table_1"].cells
    assert planned.state == "not implemented" and not plan.runs
    expected = "robustbench takes images and classes of cifar10 only, not of digits"
    assert planned.reason == expected


def test_a_table_names_an_entry(toy_plan: Callable[..., Plan], tmp_path: Path) -> None:
    scale = tmp_path / "workflow/scales/tiny.yaml"
    scale.write_text(scale.read_text().replace("datasets:", "datasets:\n  cifar10: {use: cifar10}"))
    cell = {**CELL, "dataset": "cifar10"}
    runs = toy_plan(PAPER, cell, rows={"row": {}}, columns={"column": {}}).runs.values()
    (spec,) = (run.spec for run in runs if isinstance(run.spec, ClassifierSpec))
    assert spec.classifier.parameters["entry"] == "Wong2020Fast"
    assert spec.training.component == "pretrained"
