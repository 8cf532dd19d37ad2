"""Values that no component can be built with are refused from its source, in the same words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from purifiers.core import registry
from purifiers.core.component import build
from purifiers.core.errors import UserError
from purifiers.methods.comdefend import Comdefend

REFUSED = [
    ("method", "comdefend", {"test_sigma": 2}, "test_sigma is 2: choose one of 0, 1"),
    ("method", "comdefend", {"width": 5}, "width is 5: choose an even number"),
    ("method", "idfr", {"residual": "foo"}, "residual is 'foo': choose one of none, signed, pos"),
    ("method", "idfr", {"loss": "foo"}, "loss is 'foo': choose one of cross_entropy, features"),
    ("method", "idfr", {"restorer_width": 4}, "restorer_width is 4, but FR's narrowest layer"),
    ("method", "idfr", {"snapshots": 3}, "snapshots is 3, but FR is fitted behind the last ID"),
    ("method", "atop", {"snapshot": 13}, "snapshot is 13, but the second training keeps 0"),
    ("method", "atop", {"masks": 3}, "3 masks of 0.25 of the image do not cover it once"),
    ("method", "atop", {"width": 6}, "width is 6, but the last layers have a quarter of it"),
    ("method", "atop", {"target": "foo"}, "target is 'foo': choose one of adversarial, clean"),
    (
        *("method", "diff_pure", {"sampler": "ddpm", "backward": "adjoint"}),
        "sampler ddpm has no adjoint: set backward to exact",
    ),
    ("classifier", "vgg", {"depth": 17}, "depth is 17: choose one of 11, 13, 16, 19"),
    ("classifier", "resnet18", {"stem": "foo"}, "stem is 'foo': choose one of small, imagenet"),
    ("attack", "pgd", {"stop": "sucess"}, r"never, success \(did you mean 'success'\?\)"),
    ("training", "natural", {"schedule": "foo"}, "schedule is 'foo': choose one of step, one_cy"),
]
CONTEXT = {"classifier": ((3, 32, 32), 10)}


@pytest.mark.parametrize(("kind", "name", "parameters", "message"), REFUSED)
def test_planning_and_building_refuse_it(
    kind: str, name: str, parameters: dict[str, Any], message: str
) -> None:
    described = registry.describe(kind, name)
    with pytest.raises(UserError, match=message) as planned:
        checked = {key: described.checked(key, value, "toy") for key, value in parameters.items()}
        described.check_rules(checked, "toy")
    assert str(planned.value).startswith("toy: ") and "\n" not in str(planned.value)
    with pytest.raises(UserError, match=message):
        build(registry.load(kind, name), *CONTEXT.get(kind, ()), **parameters)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_defaults_meet_every_rule(kind: str) -> None:
    for name in registry.names(kind):
        described = registry.describe(kind, name)
        if not described.required:
            described.check_rules({}, name)


def test_an_entry_of_the_zoo_is_looked_up_in_its_list() -> None:
    described = registry.describe("classifier", "robustbench")
    described.check_rules({"entry": "Wong2020Fast"}, "toy")
    message = (
        r"^toy: entry is 'Wong2020Fst', which _leaderboard.csv does not list for zoo_dataset "
        r"cifar10, threat_model Linf \(did you mean 'Wong2020Fast'\?\): choose another$"
    )
    with pytest.raises(UserError, match=message):
        described.check_rules({"entry": "Wong2020Fst"}, "toy")
    with pytest.raises(UserError, match="threat_model L2"):
        described.check_rules({"entry": "Wong2020Fast", "threat_model": "L2"}, "toy")


def test_images_of_other_channels_than_bound_for() -> None:
    method = Comdefend(width=2)
    method.bind(None, (3, 16, 16))
    assert method.purify(torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)
    with pytest.raises(
        UserError, match=r"^comdefend: images have 1 channels, .* bound for 3: bind"
    ):
        method.purify(torch.rand(2, 1, 16, 16))
