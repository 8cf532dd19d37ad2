"""Classifiers and methods of finished runs are opened from Python by id or folder."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

import purifiers
from purifiers.core.artifacts import RunFolder, write_json
from purifiers.core.errors import UserError
from purifiers.core.spec import ImagesSpec, PurifierSpec, Subset
from purifiers.plan.graph import component_spec
from purifiers.stages._context import Context, save_weights
from purifiers.stages._opening import new_method, open_classifier, open_images

AID = {"taps": ["conv1"], "width": 16}


@pytest.fixture
def runs(untrained_runs: Path) -> Path:
    """With the runs ``fitted`` of AID, on classifier ``one``, and ``gan``, which needs none."""
    torch.manual_seed(0)  # a discriminator with other random weights may have no gradient
    context = Context(untrained_runs, "cpu", 1, 16, 60.0)
    classifier = open_classifier(context, "one")
    for run, name, parameters, on in (
        ("fitted", "aid", AID, "one"),
        ("gan", "defense_gan", {"latent": 4, "width": 4}, None),
    ):
        spec = PurifierSpec(
            data="digits",
            train=0,
            classifier=on,
            method=component_spec("method", name, parameters),
            seed=0,
        )
        folder = context.folder("purifier", run)
        folder.path.mkdir(parents=True)
        save_weights(new_method(spec.method, classifier, classifier.shape, context), folder)
        folder.finish(spec, ["weights.safetensors"], {}, 0.0, {})
    return untrained_runs


def images(runs: Path) -> torch.Tensor:
    context = Context(runs, "cpu", 1, 16, 60.0)
    subset = Subset(split="test", n=4, seed=0)
    return open_images(context, ImagesSpec(data="digits", subset=subset, run=None)).batch(
        0, 4, "cpu"
    )[0]


def test_a_classifier_by_id_and_by_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_id = purifiers.load_classifier("one", runs=runs)
    by_folder = purifiers.load_classifier(str(runs / "classifier" / "one"))
    monkeypatch.chdir(runs / "classifier")
    relative = purifiers.load_classifier("one")
    assert not by_id.training and not any(p.requires_grad for p in by_id.parameters())
    logits = by_id(images(runs))
    assert logits.shape == (4, 10)
    for other in (by_folder, relative):
        assert torch.equal(other(images(runs)), logits)
    two = purifiers.load_classifier("two", runs=runs)
    assert not torch.equal(two(images(runs)), logits)


def test_a_method_has_its_weights_its_classifier_and_your_parameters(runs: Path) -> None:
    method = purifiers.load_method("fitted", runs=runs)
    assert not method.training and not any(p.requires_grad for p in method.parameters())
    purified = method.purify(images(runs))
    one, two = (purifiers.load_classifier(name, runs=runs) for name in ("one", "two"))
    bound = purifiers.load_method("fitted", one, runs=runs)
    assert torch.equal(bound.purify(images(runs)), purified)
    assert not torch.equal(
        purifiers.load_method("fitted", two, runs=runs).purify(images(runs)), purified
    )
    still = purifiers.load_method("fitted", runs=runs, eps="0/255")
    assert torch.equal(still.purify(images(runs)), images(runs))


def test_a_method_that_needs_no_classifier(runs: Path) -> None:
    method = purifiers.load_method("gan", runs=runs, steps=2, restarts=1)
    assert method.purify(images(runs)).shape == (4, 1, 16, 16)


def refused(
    message: str, load: str = "load_classifier", run: str = "one", **options: object
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        getattr(purifiers, load)(run, **options)
    assert "\n" not in str(caught.value)


def test_refusals(runs: Path, tmp_path: Path) -> None:
    refused(r"there is no run 'ome' \(did you mean 'one'\?\)", run="ome", runs=runs)
    refused("there is no run 'xyz'; it has 2 runs of stage classifier", run="xyz", runs=runs)
    refused("does not exist; pass the folder of your runs", runs=tmp_path / "none")
    refused("a run of stage 'purifier', expected classifier or substitute", run="fitted", runs=runs)
    refused("a run of stage 'classifier', expected purifier", "load_method", runs=runs)
    refused(r"no parameter 'epsi' \(did you mean 'eps'", "load_method", "fitted", runs=runs, epsi=0)
    refused("width affects the fit.*only eps, ", "load_method", "fitted", runs=runs, width=8)
    folder = RunFolder(runs, "purifier", "fitted")
    record = folder.record()
    content = record.spec.to_json()
    content["method"]["version"] = 99
    stored = {**vars(record), "spec": content}
    write_json(folder.record_path, stored)
    refused("fitted by version 99 of aid.*fit it again", "load_method", "fitted", runs=runs)
    folder.record_path.unlink()
    refused("this run is not finished", "load_method", "fitted", runs=runs)


def test_names_and_version() -> None:
    assert "pgd" in purifiers.names("attack") and "aid" in purifiers.names("method")
    with pytest.raises(UserError, match=r"names: kind is 'atack': .*did you mean 'attack'\?"):
        purifiers.names("atack")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert purifiers.__version__ == project["version"]
