"""What the record of an adversarial set says beside its images."""

from __future__ import annotations

from typing import Any

import pytest

from purifiers.core.artifacts import RunFolder
from purifiers.plan.runs import component
from purifiers.stages import attack, dataset
from purifiers.stages._context import Context, new_classifier, open_data, save_weights

NETWORK = component(
    "classifier", "wide_resnet", {"depth": 10, "widen_factor": 1, "first_stride": 2}
)
SHORT = {"apgd_steps": 2, "fab_steps": 1, "targets": 1, "square_queries": 2}
IMAGES = {"data": "digits", "subset": {"split": "test", "n": 12, "seed": 0}, "run": None}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A runs folder with the data set ``digits`` and the untrained classifier ``victim``."""
    made = Context(tmp_path_factory.mktemp("runs"), "cpu", 1, 8, 60.0)
    spec: dict[str, Any] = {"dataset": component("dataset", "digits", {})}
    folder = folder_of(made, "dataset", "digits")
    outcome = dataset.run(folder, spec, made)
    folder.finish(spec, outcome.files, outcome.summary, 0.0, {})
    folder = folder_of(made, "classifier", "victim")
    save_weights(new_classifier(NETWORK, open_data(made, "digits")), folder)
    folder.finish({"data": "digits", "classifier": NETWORK}, ["weights.safetensors"], {}, 0.0, {})
    return made


def folder_of(context: Context, stage: str, run: str) -> RunFolder:
    folder = context.folder(stage, run)
    folder.path.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("autoattack", {"eps": "8/255", **SHORT}, {"n", "probe", "batch_size"}),
        ("fgsm", {"eps": "8/255"}, {"n", "probe"}),
        ("common_corruption", {}, {"n"}),
    ],
)
def test_the_batch_is_told_where_it_decides(
    context: Context, name: str, parameters: dict[str, Any], told: set[str]
) -> None:
    """AutoAttack draws for a whole batch: other batches, other images. Corruptions ask nobody."""
    spec = {
        "images": IMAGES,
        "classifier": None if name == "common_corruption" else "victim",
        "methods": [],
        "gradient": "exact",
        "attack": component("attack", name, parameters),
        "seed": 0,
    }
    summary = attack.run(folder_of(context, "attack", name), spec, context).summary
    assert set(summary) == told
    assert summary.get("batch_size", 8) == 8 and summary["n"] == 12
