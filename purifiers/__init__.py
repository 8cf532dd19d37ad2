"""PurifyBench: a benchmark reproduction suite for adversarial purification.

The library can be used without the workflow::

    import purifiers

    attack = purifiers.attack("pgd", eps="8/255", steps=20, step_size="2/255")
    adversarial = attack(logits_fn, images, labels, seed=0)
    method = purifiers.method("random_sign", eps="8/255")
    defended = purifiers.defend(classifier, [method])
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from purifiers.auditing.data import load_images
    from purifiers.auditing.report import AuditReport
    from purifiers.auditing.run import audit
    from purifiers.core.component import Attack, Classifier, Method
    from purifiers.core.defence import Defence
    from purifiers.core.fitting import fit
    from purifiers.core.image_file import save_images
    from purifiers.stages._finished import load_classifier, load_method

    __version__: str


__all__ = [
    "AuditReport",
    "__version__",
    "attack",
    "audit",
    "classifier",
    "defend",
    "fit",
    "load_classifier",
    "load_images",
    "load_method",
    "method",
    "names",
    "save_images",
]

_ELSEWHERE = {
    "AuditReport": "purifiers.auditing.report",
    "audit": "purifiers.auditing.run",
    "fit": "purifiers.core.fitting",
    "load_classifier": "purifiers.stages._finished",
    "load_images": "purifiers.auditing.data",
    "load_method": "purifiers.stages._finished",
    "save_images": "purifiers.core.image_file",
}
"""Public name to the module that defines it, imported on first use because that imports torch."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from purifiers.core.provenance import version_of

        return version_of("purifybench")
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)


def names(kind: str) -> tuple[str, ...]:
    """Names of all components of a kind, in alphabetical order.

    Args:
        kind: ``attack``, ``classifier``, ``dataset``, ``method`` or ``training``.

    Raises:
        UserError: no such kind (with a suggestion).
    """
    from purifiers.core import registry
    from purifiers.core.errors import check_choice

    return registry.names(check_choice("names: kind", kind, registry.KINDS))


def attack(name: str, **parameters: Any) -> Attack:
    """Create an attack by name; lengths may be written as ``"8/255"``.

    Raises:
        UserError: no such attack or parameter (with a suggestion), or a number out of range.
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


def defend(
    classifier: nn.Module, methods: Sequence[Method | Callable[[Tensor], Tensor]], **threat: Any
) -> Defence:
    """Create a classifier behind purifiers: images (n, C, H, W) to logits (n, classes).

    Args:
        classifier: any module from images to logits, frozen, in evaluation mode.
        methods: applied first to last; from :func:`method`, or your own modules or functions from
            images to images.
        threat: settings of the threat model (``gradient``, ``seed``, ``eot_samples``,
            ``eot_combine``, ``auxiliary``), as in :class:`purifiers.core.defence.Defence`.
    """
    from purifiers.core.defence import Defence
    from purifiers.core.foreign import as_methods

    return Defence(classifier, as_methods(methods), **threat)


def _make(kind: str, name: str, *context: Any, **parameters: Any) -> Any:
    from purifiers.core import registry
    from purifiers.core.component import build

    registry.describe(kind, name).check_parameters(parameters, kind)
    return build(registry.load(kind, name), *context, **parameters)
