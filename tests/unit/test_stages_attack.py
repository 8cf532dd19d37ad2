"""What the record of an adversarial set says beside its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from purifiers.core.spec import AttackSpec, ImagesSpec, Subset
from purifiers.plan.graph import component_spec
from purifiers.stages import attack
from purifiers.stages._context import Context

SHORT = {"apgd_steps": 2, "fab_steps": 1, "targets": 1, "square_queries": 2}
IMAGES = ImagesSpec(data="digits", subset=Subset(split="test", n=12, seed=0), run=None)


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("autoattack", {"eps": "8/255", **SHORT}, {"n", "probe", "batch_size"}),
        ("fgsm", {"eps": "8/255"}, {"n", "probe"}),
        ("common_corruption", {}, {"n"}),
    ],
)
def test_the_batch_is_told_where_it_decides(
    untrained_runs: Path, name: str, parameters: dict[str, Any], told: set[str]
) -> None:
    """AutoAttack draws for a whole batch: other batches, other images. Corruptions ask nobody."""
    spec = AttackSpec(
        images=IMAGES,
        classifier=None if name == "common_corruption" else "one",
        methods=(),
        gradient="exact",
        attack=component_spec("attack", name, parameters),
        seed=0,
    )
    context = Context(untrained_runs, "cpu", 1, 8, 60.0)
    folder = context.folder("attack", name)
    folder.path.mkdir(parents=True)
    summary = attack.run(folder, spec, context).summary
    assert set(summary) - {"flags"} == told  # it may warn of an untrained network
    assert summary.get("batch_size", 8) == 8 and summary["n"] == 12
