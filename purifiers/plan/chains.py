"""Chains that make no sense, refused before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.plan.resolve import Setting
from purifiers.plan.runs import evaluate


def check_method(
    setting: Setting, name: str, method: Mapping[str, Any], shape: Sequence[int]
) -> None:
    """Compare what a method's file says of itself with the cell that wants it.

    Its constants, all optional: ``TRAINED_BY``, the training that its classifier must come from,
    with the same values of the parameters ``SHARED``; ``CHANNELS``, the numbers of channels that it
    takes; ``SQUARE_ABOVE``, square images with longer sides only; ``SIDE_MULTIPLE``, arithmetic
    over its parameters of which both sides must be multiples.

    Args:
        method: its component spec.
        shape: (C, H, W) of the images.

    Raises:
        UserError: they do not fit.
    """
    constants = registry.describe("method", method["component"]).constants
    where = f"{setting.where}: method {name!r}"
    channels, height, width = shape
    if "TRAINED_BY" in constants:
        training = setting.recipe("training", setting.cell["training"])
        wanted = [constants["TRAINED_BY"]]
        found = [training["component"]]
        for shared in constants.get("SHARED", ()):
            wanted.append(f"{shared} {method['parameters'][shared]}")
            found.append(f"{shared} {training['parameters'].get(shared)}")
        if wanted != found:
            raise UserError(
                f"{where} purifies with what its classifier was trained to do: it needs a training "
                f"by {', '.join(wanted)}, not {setting.cell['training']!r}, which is "
                f"{', '.join(found)}"
            )
    if channels not in constants.get("CHANNELS", (channels,)):
        known = " or ".join(str(count) for count in constants["CHANNELS"])
        raise UserError(f"{where} takes images of {known} channels; these have {channels}")
    above = constants.get("SQUARE_ABOVE")
    if above is not None and (height != width or height <= above):
        raise UserError(
            f"{where} has no network for {height}x{width} images: square ones above "
            f"{above}x{above} only"
        )
    multiple = int(evaluate(constants.get("SIDE_MULTIPLE", "1"), method["parameters"]))
    if height % multiple or width % multiple:
        raise UserError(
            f"{where}: the sides of {height}x{width} images are no multiples of {multiple}, "
            f"{constants['SIDE_MULTIPLE']}"
        )
