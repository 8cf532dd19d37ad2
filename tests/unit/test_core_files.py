"""Files that components read: another content is another run, and is never used unnoticed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from purifiers.classifiers.file import File
from purifiers.core import files
from purifiers.core.artifacts import RunFolder, sha256
from purifiers.core.errors import UserError
from purifiers.core.files import digest_of, verify_files
from purifiers.core.spec import ClassifierSpec, ComponentSpec, read_spec
from purifiers.plan.cost import network_key
from purifiers.plan.graph import Run, component_spec
from purifiers.plan.plan import Plan
from purifiers.plan.resolve import Setting
from purifiers.stages import classifier as stage
from purifiers.stages import throughput
from purifiers.stages._context import Context
from purifiers.stages._opening import open_classifier

SOURCE = """
from torch import nn
def make(shape, classes):
    return nn.Sequential(nn.Conv2d(shape[0], 4, 3, stride=2), nn.Flatten(), nn.LazyLinear(classes))
"""
PAPER = {
    "classifiers": {
        "own": {"component": "file", "path": "net.py", "weights": "net.safetensors"},
        "untrained": {"component": "file", "path": "net.py"},
    },
    "trainings": {
        "natural": {"component": "natural", "epochs": 0.5, "batch_size": 32},
        "pretrained": {"component": "pretrained"},
    },
    "methods": {"noise": {"component": "random_sign", "eps": 0.1}},
    "attacks": {"pgd": {"component": "pgd", "eps": 0.1, "steps": 2, "step_size": 0.05}},
}
CELL = {
    **{"dataset": "digits", "classifier": "own", "training": "pretrained", "methods": []},
    **{"attack": "pgd", "threat_model": "white_box"},
}

Make = Callable[..., dict[str, Run]]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a network and its weights for the digits."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(SOURCE)
    torch.manual_seed(0)
    save_file(File((1, 16, 16), 10, path="net.py").network.state_dict(), "net.safetensors")
    return tmp_path


@pytest.fixture
def plan(own: Path, toy_plan: Callable[..., Plan]) -> Make:
    """``plan(**cell)``: the runs of a table with one cell, by stage."""

    def make(**cell: Any) -> dict[str, Run]:
        runs = toy_plan(PAPER, CELL, rows={"row": cell}, columns={"column": {}}).runs
        return {run.stage: run for run in runs.values()}

    return make


def touch(path: Path) -> None:
    """Write the file anew with one more byte, a newline."""
    path.write_bytes(path.read_bytes() + b"\n")


def test_the_spec_holds_the_content(plan: Make, own: Path) -> None:
    spec = plan()["classifier"].spec
    assert isinstance(spec, ClassifierSpec)
    assert spec.classifier.files == {n: sha256(own / n) for n in ("net.py", "net.safetensors")}
    assert read_spec("classifier", spec.to_json(), "here") == spec
    assert "files" not in spec.training.to_json()


@pytest.mark.parametrize("name", ["net.py", "net.safetensors"])
def test_another_content_is_another_run_everywhere(plan: Make, own: Path, name: str) -> None:
    before, again = plan(), plan()
    assert {run.id for run in before.values()} == {run.id for run in again.values()}
    touch(own / name)
    after = plan()
    assert after["dataset"].id == before["dataset"].id
    for made in ("classifier", "attack", "score"):
        assert after[made].id != before[made].id


def test_a_trained_classifier_of_a_file_needs_no_weights(plan: Make) -> None:
    spec = plan(classifier="untrained", training="natural")["classifier"].spec
    assert isinstance(spec, ClassifierSpec) and spec.train == 200
    assert set(spec.classifier.files or {}) == {"net.py"}
    with pytest.raises(UserError, match=r"'untrained' brings none: .*, or set its weights$"):
        plan(classifier="untrained")


def test_a_missing_file_is_refused_in_one_line(plan: Make, own: Path) -> None:
    (own / "net.safetensors").unlink()
    expected = r"row/column: classifier.own: weights: there is no file net.safetensors: [^\n]*$"
    with pytest.raises(UserError, match=expected) as refusal:
        plan()
    assert str(refusal.value).endswith(str(own))


def test_a_parameter_may_list_files(own: Path) -> None:
    (own / "layers.py").write_text("")
    spec = component_spec("classifier", "file", {"path": "net.py", "sources": ["layers.py"]})
    assert set(spec.files or {}) == {"net.py", "layers.py"}


def test_a_large_file_is_read_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(files, "sha256", lambda path: (read.append(path), sha256(path))[1])
    first = digest_of(own / "net.py")
    assert digest_of(Path("net.py")) == first and len(read) == 1
    state = (own / "net.py").stat()
    (own / "net.py").write_text(SOURCE.replace("4, 3", "4, 5"))
    os.utime(own / "net.py", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert digest_of(own / "net.py") != first and len(read) == 2


def test_a_file_that_has_changed_since_planning_is_refused(own: Path) -> None:
    spec = component_spec("classifier", "file", {"path": "net.py"})
    verify_files(spec)
    verify_files(ComponentSpec(component="pgd", version=1, parameters={}))
    touch(own / "net.py")
    with pytest.raises(UserError, match=r"^net.py: has changed since file was planned: plan again"):
        verify_files(spec)
    (own / "net.py").unlink()
    with pytest.raises(UserError, match=r"^net.py: no such file, but file reads it"):
        verify_files(spec)


def test_a_method_keeps_its_files_through_planning(
    plan: Make, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Setting.recipe
    digest = {"net.py": "0" * 64}

    def with_files(self: Any, kind: str, name: str) -> ComponentSpec:
        spec = real(self, kind, name)
        return dataclasses.replace(spec, files=digest) if kind == "method" else spec

    monkeypatch.setattr(Setting, "recipe", with_files)
    runs = plan(methods=["noise"], eot=1)
    assert runs["purify"].spec.method.files == digest  # type: ignore[attr-defined]


def test_the_stage_stores_the_weights_as_they_are(untrained_runs: Path, own: Path) -> None:
    context = Context(untrained_runs, "cpu", 1, 16, 60.0)
    weights = {"path": "net.py", "weights": "net.safetensors"}
    spec = ClassifierSpec(
        data="digits",
        train=0,
        classifier=component_spec("classifier", "file", weights),
        training=component_spec("training", "pretrained", {}),
        seed=0,
    )
    folder = RunFolder(untrained_runs, "classifier", "own")
    folder.path.mkdir()
    outcome = stage.run(folder, spec, context)
    folder.finish(spec, outcome.files, outcome.summary, 0.0, {})
    assert outcome.summary["steps"] == 0 and outcome.summary["parameters"] == 2010
    opened = open_classifier(context, "own")
    images = torch.rand(3, 1, 16, 16)
    expected = File((1, 16, 16), 10, **weights).eval()(images)
    torch.testing.assert_close(opened(images), expected)  # channels-last rounds in another way
    touch(own / "net.safetensors")
    with pytest.raises(UserError, match=r"net.safetensors: has changed since file was planned"):
        open_classifier(context, "own")


def test_its_throughput_can_be_measured(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters that are null stay null on the way through the network's key."""
    monkeypatch.setattr(throughput, "MINIMUM_SECONDS", 1e-4)
    spec = component_spec("classifier", "file", {"path": "net.py"})
    throughput.measure_networks([network_key(spec, (1, 16, 16))], own / "throughput.yaml")
    (measured,) = yaml.safe_load((own / "throughput.yaml").read_text()).values()
    assert measured["macs"] == 4 * 9 * 49 + 196 * 10
    (row,) = measured["measured"]
    assert (row["device"], row["precision"], row["batch"]) == ("cpu", "float32", 128)
    assert 0 < row["forward"] <= row["both"]
