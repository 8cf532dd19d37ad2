"""Stages that measure: times and mutual information, from the run to the table's cell."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from purifiers.core.artifacts import RunFolder
from purifiers.core.component import default_indices
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    ClassifierSpec,
    DatasetSpec,
    ImagesSpec,
    InformationSpec,
    MethodSpec,
    PurifierSpec,
    Spec,
    Subset,
    TimeSpec,
    Timing,
)
from purifiers.methods.identity import Identity
from purifiers.plan.cells import Cell, Document, Flag, ScaleInfo
from purifiers.plan.graph import component_spec
from purifiers.report.aggregate import aggregate
from purifiers.report.layout import remarks
from purifiers.report.results import Results
from purifiers.stages import classifier, dataset, information, time
from purifiers.stages._context import Context

NETWORK = component_spec("classifier", "wide_resnet", {"depth": 10, "widen_factor": 1})
NATURAL = component_spec("training", "natural", {"epochs": 0.01, "batch_size": 8})
IDENTITY = MethodSpec(**component_spec("method", "identity", {}).to_json(), run=None)
IMAGES = ImagesSpec(data="digits", subset=Subset(split="test", n=20, seed=0), run=None)
ESTIMATOR = {
    **{"version": 1, "taps": ["conv1", "stage3"], "layers": 1, "width": 4, "steps": 2},
    **{"learning_rate": 1e-3, "averaging": 0.01, "batch_size": 4, "held_out": 0.25},
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A runs folder with the data set ``digits`` and the classifier ``victim``."""
    made = Context(tmp_path_factory.mktemp("runs"), "cpu", 1, 8, checkpoint_seconds=60.0)
    with torch.random.fork_rng(devices=[]):
        digits = component_spec("dataset", "digits", {})
        finish(made, dataset, "digits", DatasetSpec(dataset=digits))
        spec = ClassifierSpec(
            data="digits", train=100, classifier=NETWORK, training=NATURAL, seed=0
        )
        finish(made, classifier, "victim", spec)
    return made


def finish(context: Context, stage: Any, run: str, spec: Spec) -> dict[str, Any]:
    """Do a run as a job does, and return its summary."""
    folder = context.folder(stage.__name__.rsplit(".", 1)[1], run)
    folder.path.mkdir(parents=True, exist_ok=True)
    outcome = stage.run(folder, spec, context)
    folder.finish(spec, outcome.files, outcome.summary, 0.0, {"device": "cpu"})
    return outcome.summary


def rows(context: Context, stage: str, run: str) -> pd.DataFrame:
    return pd.read_parquet(context.folder(stage, run).path / "scores.parquet")


def timing(limit_seconds: float = 60) -> TimeSpec:
    return TimeSpec(
        images=IMAGES,
        classifier="victim",
        methods=(IDENTITY,),
        timing=Timing(images=3, batches=(4, 16, 64), limit_seconds=limit_seconds),
        seed=0,
    )


def informed() -> InformationSpec:
    return InformationSpec(images=IMAGES, classifier="victim", estimator=ESTIMATOR, seed=0)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Which images each call of the method saw; every call takes 15 ms, 10 ms of them its own."""
    seen: list[list[int]] = []

    def purify(
        self: Identity, images: Tensor, seed: int = 0, indices: Sequence[int] | None = None
    ) -> Tensor:
        seen.append(default_indices(images, indices).tolist())
        return images

    def seconds(work: Callable[[], None], device: str) -> tuple[float, float]:
        work()
        return 0.015, 0.01

    monkeypatch.setattr(Identity, "purify", purify)
    monkeypatch.setattr(time, "_seconds", seconds)
    return seen


def test_two_clocks() -> None:
    def work() -> None:
        begun = clock.process_time()
        while clock.process_time() - begun < 0.02:
            pass
        clock.sleep(0.05)

    wall, own = time._seconds(work, "cpu")
    assert own >= 0.02 and wall >= own + 0.04


def test_one_by_one_and_in_batches(context: Context, batches: list[list[int]]) -> None:
    told = finish(context, time, "one", timing())
    found = rows(context, "time", "one")
    chosen = [image for call in batches[-1:] for image in call]
    assert [len(call) for call in batches] == [1, 1, 1, 1, 4, 16]  # 64 are more than there are
    assert found["index"].tolist() == chosen[1:4] == [i for call in batches[1:4] for i in call]
    assert found["seconds"].tolist() == [0.015] * 3 and found["cpu_seconds"].tolist() == [0.01] * 3
    assert told["n"] == 3 and told["threads"] == 1 and told["device_name"]
    assert told["cpu_seconds_per_image"] == pytest.approx(0.01)
    assert told["batches"] == pytest.approx({"1": 0.015, "4": 0.015 / 4, "16": 0.015 / 16})
    assert told["best_batch"] == 16 and told["seconds_per_image_batched"] == 0.015 / 16


def test_no_batch_that_would_take_too_long(context: Context, batches: list[list[int]]) -> None:
    """4 images are judged to take 60 ms."""
    told = finish(context, time, "short", timing(limit_seconds=0.05))
    assert [len(call) for call in batches] == [1, 1, 1, 1]
    assert told["best_batch"] == 1 and list(told["batches"]) == ["1"]
    assert told["seconds_per_image_batched"] == told["batches"]["1"]


def test_no_batch_that_memory_does_not_hold(
    context: Context, batches: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Identity.purify

    def purify(self: Identity, images: Tensor, *more: Any) -> Tensor:
        if len(images) > 4:
            raise MemoryError
        return slow(self, images, *more)

    monkeypatch.setattr(Identity, "purify", purify)
    assert finish(context, time, "memory", timing())["best_batch"] == 4
    monkeypatch.setattr(Identity, "purify", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finish(context, time, "broken", timing())


def test_one_image_only_warms_up(context: Context, batches: list[list[int]]) -> None:
    single = replace(IMAGES, subset=replace(IMAGES.subset, n=1))
    with pytest.raises(UserError, match="at least 2 images"):
        finish(context, time, "single", replace(timing(), images=single))


def test_information_of_two_layers(context: Context) -> None:
    spec = informed()
    told = finish(context, information, "both", spec)
    found = rows(context, "information", "both")
    assert told == {"n": 5, "n_trained": 15} and len(found) == 5
    assert list(found) == ["index", "label", "information"]
    whole = Context(context.runs_root, "cpu", 1, 64, 60.0)
    finish(whole, information, "other_batches", spec)
    again = rows(context, "information", "other_batches")
    assert again["index"].equals(found["index"]) and again["label"].equals(found["label"])
    assert again["information"].tolist() == pytest.approx(found["information"].tolist(), abs=1e-4)


# What the report makes of it


@pytest.fixture
def report(context: Context) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """The aggregate's row of a cell, and the remarks under its table."""

    def write(run: str, metric: str, **changes: Any) -> tuple[dict[str, Any], list[str]]:
        cell = Cell(
            **{"paper": "aid", "table": "2", "document": "table_2", "block": "b", "row": "r"},
            **{"column": metric, "block_label": "", "row_label": "", "column_label": ""},
            **{"dataset": "digits", "used_dataset": "digits", "classifier": "c", "training": "t"},
            **{"methods": (), "attack": "none", "threat_model": "oblivious", "gradient": ""},
            **{"metric": metric, "unit": "seconds", "published": 0.5},
            **{"flags": (Flag("note", "on a card"),)},
            **{"state": "planned", "reason": "", "scores": ((run,),), "seeds": (0,)},
        )
        cell = replace(cell, **changes)
        document = Document("aid", "table_2", "Times", "Table 2", (), "measured", (cell,))
        runs = Results(context.runs_root, lambda _: None)
        frame = aggregate(document, ScaleInfo("paper", "paper", "", False), runs)
        return frame.to_dict("records")[0], remarks(document, frame)

    return write


def test_times_are_shown_and_never_compared(
    context: Context, batches: list[list[int]], report: Callable[..., Any]
) -> None:
    told = finish(context, time, "shown", timing())
    row, noted = report("shown", "seconds_per_image")
    assert row["reproduced"] == pytest.approx(told["batches"]["1"])
    assert row["verdict"] == "not comparable"
    where = f"timed on {told['device_name']}, 1 thread, busy with other work, batch 1"
    assert row["flags"] == f"on a card; {where}"
    assert f"all cells: {where}" in noted
    row, noted = report("shown", "seconds_per_image_batched", published=None)
    assert row["reproduced"] == pytest.approx(told["batches"]["16"])
    assert row["verdict"] == "no published value" and row["flags"].endswith("batch 16")


@pytest.mark.parametrize(
    ("summaries", "minutes"),
    [
        ([], 0.0),
        ([{"train_seconds": 90.0, "device_name": "a card"}], 1.5),
        ([{"train_seconds": 90.0, "device_name": "a card"}] * 2, 3.0),
        ([{"steps": 4}], None),
        ([{"train_seconds": 90.0, "device_name": "a card"}, {}], None),
        ([None], None),
    ],
)
def test_minutes_of_training(
    context: Context,
    report: Callable[..., Any],
    tmp_path: Path,
    summaries: list[dict[str, Any] | None],
    minutes: float | None,
) -> None:
    """Of all methods together; never zero where one is not known."""
    methods = [IDENTITY]
    fit = PurifierSpec(
        data="digits",
        train=8,
        classifier="victim",
        method=component_spec("method", "aid", {}),
        seed=0,
    )
    for number, summary in enumerate(summaries):
        run = f"{tmp_path.name}-{number}"
        methods.append(MethodSpec(**fit.method.to_json(), run=run))
        if summary is not None:
            folder = RunFolder(context.runs_root, "purifier", run)
            folder.path.mkdir(parents=True)
            folder.finish(fit, [], summary, 0.0, {})
    RunFolder(context.runs_root, "time", tmp_path.name).path.mkdir(parents=True)
    record = RunFolder(context.runs_root, "time", tmp_path.name)
    spec = replace(timing(), methods=tuple(methods))
    record.finish(spec, [], {"n": 3, "threads": 1}, 0.0, {"device": "cpu"})
    row, noted = report(tmp_path.name, "train_minutes", unit="minutes")
    if minutes is None:
        assert row["verdict"] == "not run" and pd.isna(row["reproduced"])
        assert noted[-1] == "all cells: not run: fitted before training times were recorded"
    else:
        assert row["verdict"] == "not comparable" and row["reproduced"] == minutes
        assert row["flags"] == ("on a card; trained on a card" if summaries else "on a card")


def test_information_is_a_mean_over_held_out_images(
    context: Context, report: Callable[..., Any]
) -> None:
    finish(context, information, "mean", informed())
    mean = rows(context, "information", "mean")["information"].mean()
    row, _ = report("mean", "mutual_information", unit="nats", attack="pgd", published=50.0)
    assert row["reproduced"] == pytest.approx(mean) and row["verdict"] == "differs"
