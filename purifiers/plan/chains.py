"""Refuse a method that does not fit its cell, before any job starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from purifiers.core import registry
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.formula import evaluate
from purifiers.core.spec import ComponentSpec
from purifiers.core.traits import IMAGE_SIDES, Taps, check_rules
from purifiers.plan.resolve import Setting


def check_method(setting: Setting, name: str, method: ComponentSpec, shape: Sequence[int]) -> None:
    """Check a method's requirements against the cell that uses it.

    Args:
        name: the method's name in the paper's recipes.
        shape: (C, H, W) of the images.

    Raises:
        UserError: the classifier's training or parts, the number of channels or the image size do
            not fit.
    """
    traits = registry.method_traits(method.component)
    where = f"{setting.where}: method {name!r}"
    channels, height, width = shape
    if traits.trained_with is not None:
        training = setting.recipe("training", setting.cell["training"])
        required = [traits.trained_with.training]
        actual = [training.component]
        for name in traits.trained_with.same:
            required.append(f"{name} {method.parameters[name]}")
            actual.append(f"{name} {training.parameters.get(name)}")
        if required != actual:
            raise UserError(
                f"{where} requires a classifier trained with {', '.join(required)}, but "
                f"{setting.cell['training']!r} is {', '.join(actual)}: choose another training"
            )
    if traits.taps is not None:
        _check_taps(setting, traits.taps, method, where)
    images = traits.images
    if images.channels and channels not in images.channels:
        allowed = " or ".join(str(count) for count in images.channels)
        raise UserError(
            f"{where} takes images of {allowed} channels; these have {channels}: "
            "choose another data set"
        )
    above = images.square_above
    if above is not None and (height != width or height <= above):
        raise UserError(
            f"{where} has no network for {height}x{width} images, only for square images above "
            f"{above}x{above}: choose another data set"
        )
    if images.resized_to and (side := method.parameters[images.resized_to]) is not None:
        height = width = side
    multiple = int(evaluate(images.side_multiple, method.parameters))
    if height % multiple or width % multiple:
        raise UserError(
            f"{where}: the sides of {height}x{width} images are not multiples of {multiple} "
            f"({images.side_multiple}): change these parameters or the data set"
        )
    smallest = evaluate(images.smallest_side, method.parameters)
    if min(height, width) < smallest:
        raise UserError(
            f"{where}: {height}x{width} images are smaller than {smallest:g} "
            f"({images.smallest_side}): change these parameters or the data set"
        )
    root = math.sqrt(math.prod(shape))
    for norm, used_by in images.norms:
        limit = method.parameters[norm]
        if method.parameters[used_by] and limit >= root:
            raise UserError(
                f"{where}: {norm} is {limit:g}, but scores of {height}x{width} images have "
                f"norms of about {root:.1f} at most, the root of their number of values: lower it"
            )
    sides = dict(zip(IMAGE_SIDES, (height, width), strict=True))
    check_rules(images.rules, {**method.parameters, **sides}, where)
    for window in images.windows:
        side = method.parameters[window]
        if side is not None and side > min(height, width):
            raise UserError(
                f"{where}: {window} is {side}, larger than {height}x{width} images: lower it or "
                "choose another data set"
            )


def _check_taps(setting: Setting, taps: Taps, method: ComponentSpec, where: str) -> None:
    """Refuse names that are no part of the classifier, where its source declares its parts.

    A dotted name is checked up to its first dot.
    """
    name = setting.cell["classifier"]
    component = setting.recipe("classifier", name).component
    parts = registry.describe("classifier", component).parts
    value = method.parameters[taps.parameter]
    for tap in (value,) if isinstance(value, str) else value:
        if parts and tap not in taps.words and tap.partition(".")[0] not in parts:
            raise UserError(
                f"{where}: {taps.parameter}: classifier {name!r} has no {tap!r}"
                f"{did_you_mean(tap, parts)}: choose among {', '.join(parts)}, or parts of these"
            )
