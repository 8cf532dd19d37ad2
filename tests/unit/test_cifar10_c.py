"""The attack ``cifar10_c``: the rows of the official files, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import purifiers
from purifiers.core.errors import UserError
from purifiers.core.robustbench_compat import import_robustbench
from purifiers.plan.plan import Plan

TESTED = 10_000  # test images of CIFAR-10


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10-C's snow in its real size: random pixels in the first 20 images of a severity."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    draw = np.random.default_rng(0)
    shape = (5 * TESTED, 32, 32, 3)
    pixels = np.lib.format.open_memmap(folder / "snow.npy", "w+", np.uint8, shape)
    for severity in range(5):  # the rest stays a hole in the file
        pixels[severity * TESTED : severity * TESTED + 20] = draw.integers(0, 256, (20, *shape[1:]))
    pixels.flush()
    np.save(folder / "labels.npy", np.tile(np.arange(TESTED) % 10, 5).astype(np.uint8))
    monkeypatch.setenv("PURIFYBENCH_DATA", str(tmp_path))
    return folder


@pytest.mark.parametrize("severity", [1, 5])
def test_the_images_are_those_of_robustbench(official: Path, severity: int) -> None:
    import_robustbench()
    from robustbench.data import load_cifar10c

    theirs, labels = load_cifar10c(20, severity, str(official.parent), corruptions=["snow"])
    indices = torch.tensor([7, 0, 19])
    attack = purifiers.attack("cifar10_c", corruption="snow", severity=severity)
    made = attack(None, torch.rand(3, 3, 32, 32), labels[indices].long(), 0, indices)
    assert torch.equal(made, theirs[indices])


@pytest.mark.parametrize(
    ("shape", "label", "index"),
    [
        ((1, 3, 32, 32), 5, 6),  # another order
        ((1, 1, 28, 28), 6, 6),  # another data set
        ((1, 3, 32, 32), 0, TESTED),  # an index of the next severity
    ],
)
def test_other_images_are_refused(
    official: Path, shape: tuple[int, ...], label: int, index: int
) -> None:
    attack = purifiers.attack("cifar10_c", corruption="snow")
    with pytest.raises(UserError, match=r"not those of these images.*use common_corruption") as e:
        attack(None, torch.rand(shape), torch.tensor([label]), 0, [index])
    assert "\n" not in str(e.value)


def test_a_missing_file_names_its_place(official: Path) -> None:
    attack = purifiers.attack("cifar10_c", corruption="fog")
    with pytest.raises(UserError, match=r"CIFAR-10-C/fog\.npy is missing: unpack CIFAR-10-C\.tar"):
        attack(None, torch.rand(1, 3, 32, 32), torch.tensor([0]))


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros(10, np.uint8))
    return buffer.getvalue()


def stored(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


WHOLE = stored(np.zeros((50, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("name", ["fog", "labels"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (WHOLE[:60], "cannot be read"),
        (WHOLE[:-1], "cannot be read"),
        (b"<html>not found</html>" * 9, "cannot be read"),
        (archive(), "cannot be read"),
        (archive()[:-30], "cannot be read"),
        (stored(np.array([{}])), "cannot be read"),
        (stored(np.zeros((5, 2), np.float32)), r"float32 \(5, 2\) is not a file of CIFAR-10-C"),
        (stored(np.zeros((5, 2), np.uint8)), r"uint8 \(5, 2\) is not a file of CIFAR-10-C"),
        (stored(np.uint8(1)), r"uint8 \(\) is not a file of CIFAR-10-C"),
    ],
)
def test_damaged_files_are_one_line(
    official: Path, name: str, content: bytes, message: str
) -> None:
    (official / "fog.npy").write_bytes(WHOLE)
    (official / f"{name}.npy").write_bytes(content)
    attack = purifiers.attack("cifar10_c", corruption="fog")
    told = rf"CIFAR-10-C/{name}\.npy: .*{message}.*; unpack CIFAR-10-C\.tar again$"
    with pytest.raises(UserError, match=told) as error:
        attack(None, torch.rand(1, 3, 32, 32), torch.tensor([0]))
    assert "\n" not in str(error.value)


def test_images_and_labels_of_two_sizes(official: Path) -> None:
    (official / "fog.npy").write_bytes(WHOLE)
    attack = purifiers.attack("cifar10_c", corruption="fog")
    with pytest.raises(UserError, match=r"50 images in fog\.npy, but 50000 labels in labels\.npy"):
        attack(None, torch.rand(1, 3, 32, 32), torch.tensor([0]))


def test_wrong_parameters() -> None:
    with pytest.raises(UserError, match=r"Cifar10C: corruption is 'snwo': choose one of .*snow"):
        purifiers.attack("cifar10_c", corruption="snwo")
    with pytest.raises(UserError, match=r"Cifar10C: severity is 6, but takes .* from 1 to 5"):
        purifiers.attack("cifar10_c", severity=6)


def test_other_data_sets_are_not_run(toy_plan: Callable[..., Plan]) -> None:
    paper = {
        "classifiers": {"small": {"component": "wide_resnet", "depth": 10, "widen_factor": 1}},
        "trainings": {"natural": {"component": "natural", "epochs": 1}},
        "methods": {},
        "attacks": {"snow": {"component": "cifar10_c", "corruption": "snow"}},
    }
    cell = {"dataset": "digits", "classifier": "small", "training": "natural", "methods": []}
    cell |= {"threat_model": "oblivious", "attack": "snow"}
    plan = toy_plan(paper, cell, rows={"row": {}}, columns={"column": {}})
    (planned,) = plan.documents["toy/table_1"].cells
    assert planned.reason == "cifar10_c has images of cifar10 only, not of digits"
    assert not plan.runs
