"""PurifyBench: a benchmark reproduction suite for adversarial purification.

The library can be used without the workflow::

    import purifiers

    attack = purifiers.attack("pgd", eps="8/255", steps=20, step_size="2/255")
    adversarial = attack(logits_fn, images, labels, seed=0)
    method = purifiers.method("random_sign", eps="8/255")
    defended = purifiers.defend(classifier, [method])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purifiers.core.component import Attack, Classifier, Method
    from purifiers.core.defence import Defence


def attack(name: str, **parameters: Any) -> Attack:
    """Create an attack by name; lengths may be written as ``"8/255"``.

    Raises:
        UserError: no such attack or parameter (with a suggestion), or a length out of range.
    """
    return _make("attack", name, **parameters)


def method(name: str, **parameters: Any) -> Method:
    """Create a purifier by name. Some need ``.bind(classifier, shape)`` and weights before use.

    Raises:
        UserError: as :func:`attack`.
    """
    return _make("method", name, **parameters)


def classifier(name: str, shape: Sequence[int], classes: int, **parameters: Any) -> Classifier:
    """Create a classifier for images of ``shape`` (C, H, W).

    It is untrained unless it brings weights, as ``robustbench`` and ``file`` do.

    Raises:
        UserError: as :func:`attack`, or the weights that it brings are missing or do not fit.
    """
    made: Classifier = _make("classifier", name, shape, classes, **parameters)
    made.load_pretrained()
    return made


def defend(classifier: Classifier, methods: Sequence[Method], **threat: Any) -> Defence:
    """Create a classifier behind purifiers: images (n, C, H, W) to logits (n, classes).

    Args:
        threat: settings of the threat model (``gradient``, ``seed``, ``eot_samples``,
            ``eot_combine``, ``auxiliary``), as in :class:`purifiers.core.defence.Defence`.
    """
    from purifiers.core.defence import Defence

    return Defence(classifier, methods, **threat)


def _make(kind: str, name: str, *context: Any, **parameters: Any) -> Any:
    from purifiers.core import registry
    from purifiers.core.component import build

    registry.describe(kind, name).check_parameters(parameters, kind)
    return build(registry.load(kind, name), *context, **parameters)
