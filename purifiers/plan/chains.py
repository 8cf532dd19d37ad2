"""Refuse a method that does not fit its cell, before any job starts."""

from __future__ import annotations

from collections.abc import Sequence

from purifiers.core import registry
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.spec import ComponentSpec
from purifiers.core.traits import Taps
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
    traits.images.check(shape, method.parameters, where)


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
