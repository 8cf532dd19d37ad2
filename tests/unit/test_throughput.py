"""The routine that measures networks for the prices, with a clock of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from purifiers.core.errors import UserError
from purifiers.plan.throughput import Throughput
from purifiers.stages import throughput
from purifiers.stages.throughput import Subject, measure_networks, measured_passes

KEY = "advae_d(width=200)@1x16x16"


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(throughput, "MINIMUM_SECONDS", 1e-4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    return Subject(network, network, (1, 8, 8))


def test_several_batch_sizes_are_measured(subject: Subject) -> None:
    rows = measured_passes(subject, "cpu", "float32", (2, 8))
    assert [row.batch for row in rows] == [2, 8]
    assert all(0 < row.forward <= row.both for row in rows if row.forward and row.both)


def test_an_implausible_measurement_is_repeated_and_then_refused(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([5.0, 3.0, 1.0, 3.0])  # forward, both; again
    monkeypatch.setattr(throughput, "_seconds", lambda *_, **__: next(seconds))
    (row,) = measured_passes(subject, "cpu", "float32", (4,))
    assert (row.forward, row.both) == (1.0, 3.0)
    times = {False: 5.0, True: 3.0}
    monkeypatch.setattr(throughput, "_seconds", lambda *_, backward: times[backward])
    with pytest.raises(UserError, match="forward pass takes 5 s, forward and backward 3 s; end"):
        measured_passes(subject, "cpu", "float32", (4,))


def test_too_little_memory_ends_the_batch_sizes(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(_: Subject, __: str, batch: int, backward: bool) -> float:
        if batch > 32:
            raise torch.cuda.OutOfMemoryError
        return 2.0 if backward else 1.0

    monkeypatch.setattr(throughput, "_seconds", seconds)
    monkeypatch.setattr(throughput, "device_kind", lambda _: "h200")
    rows = measured_passes(subject, "cuda", "float32", (8, 32, 128, 512))
    assert [row.batch for row in rows] == [8, 32]


def test_a_precision_is_added_and_entries_by_hand_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "MINIMUM_SECONDS", 1e-4)
    path = tmp_path / "workflow" / "throughput.yaml"
    path.parent.mkdir()
    by_hand = {"device": "h200", "precision": "float32", "both": 1.0, "source": "a paper"}
    path.write_text(yaml.safe_dump({KEY: {"macs": 1, "measured": [by_hand]}}))
    measure_networks([KEY], path, "cpu", ["float32"])
    before = path.read_text()
    measure_networks([KEY], path, "cpu", ["float32"])
    assert path.read_text() == before
    measure_networks([KEY], path, "cpu", ["float32", "bfloat16"])
    rows = Throughput.load(tmp_path).measured[KEY]
    assert [(row.device, row.precision) for row in rows] == [
        *(("h200", "float32"), ("cpu", "float32"), ("cpu", "bfloat16"))
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("NVIDIA GeForce RTX 2080 Ti", "geforce-rtx-2080-ti"),
    ],
)
def test_a_card_has_a_short_name(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert throughput.device_kind("cuda") == kind
