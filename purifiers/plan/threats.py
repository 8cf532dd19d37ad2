"""Threat models: which part of a defence an attack queries, and which combinations are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.spec import ComponentSpec, Eot
from purifiers.core.traits import AttackTraits, MethodTraits


def eot(declared: int | dict[str, Any]) -> Eot:
    """Parse a declared ``eot``: a number of samples, or ``samples`` and ``combine``."""
    if isinstance(declared, int):
        return Eot(samples=declared, combine="mean")
    return Eot(samples=declared["samples"], combine=declared.get("combine", "mean"))


def eot_samples(cell: Mapping[str, Any]) -> int:
    """EOT samples per gradient of a cell's attack; 0: not declared."""
    return eot(cell["eot"]).samples if "eot" in cell else 0


def queries_defence(cell: dict[str, Any]) -> bool:
    """Whether the attack queries the whole defence, not only a classifier or a substitute."""
    threat = cell.get("threat_model", "oblivious")
    return threat == "white_box" or (threat == "black_box" and "source" not in cell)


def attacked_methods(cell: dict[str, Any]) -> list[str]:
    """Recipes of the methods that a defence contains for its attacker, first to last.

    They are the cell's own unless it declares others, such as a single draw of an ensemble.
    """
    names: list[str] = cell.get("attacked_methods", cell.get("methods", []))
    return names


@dataclass(frozen=True)
class CellMethod:
    """A method of a cell.

    Attributes:
        name: the method's recipe.
        traits: traits of its component.
        parameters: its parameters, without budgets.
    """

    name: str
    traits: MethodTraits
    parameters: Mapping[str, Any]

    @property
    def random(self) -> bool:
        """Whether the method's output depends on the seed."""
        return self.traits.is_random(self.parameters)


@dataclass(frozen=True)
class CellParts:
    """The components of a cell that decide which attacks are possible.

    Attributes:
        methods: the purifiers, first to last, as the attack meets them.
        attack: traits of the attack; None for clean images.
        auxiliary: the method whose detector the attack evades as well.
        detector: the method whose detections count as correct on attacked images.
    """

    methods: Sequence[CellMethod] = ()
    attack: AttackTraits | None = None
    auxiliary: CellMethod | None = None
    detector: CellMethod | None = None


def is_random(method: ComponentSpec) -> bool:
    """Whether a method's output depends on the seed."""
    return registry.method_traits(method.component).is_random(method.parameters)


def check_threat(cell: dict[str, Any], parts: CellParts, where: str) -> None:
    """Refuse attacks that are impossible or that would overstate robustness.

    Args:
        cell: the merged declaration of the cell.
        parts: its components.
        where: file and cell, for the error message.

    Raises:
        UserError: one of

            - a random defence attacked without a declared ``eot``,
            - a gradient through a method that is not differentiable,
            - an attack that queries a method which adapts to its batches,
            - a transfer attack without a source,
            - attacked methods under a threat model whose attack meets none,
            - an auxiliary method under a threat model that excludes it,
            - an attack on a part that no attacked method provides,
            - a corruption with a threat model other than oblivious,
            - a detector that does not detect adversarial examples.
    """
    if parts.detector is not None and "detected" not in parts.detector.traits.provides:
        raise UserError(
            f"{where}: method {parts.detector.name!r} detects nothing, but the cell uses it as "
            "`detector`: choose a method that detects adversarial examples"
        )
    if parts.attack is None:
        return
    threat = cell.get("threat_model", "oblivious")
    _check_gradient(cell, parts, where)
    if parts.attack.model_free and threat != "oblivious":
        raise UserError(
            f"{where}: attack {cell['attack']!r} queries no model, so threat model {threat} does "
            "not apply: remove threat_model or set it to oblivious"
        )
    if threat == "transfer" and "source" not in cell:
        raise UserError(
            f"{where}: threat model transfer needs a `source`: add the classifier and training "
            "that the adversarial examples are made on"
        )
    if "attacked_methods" in cell and not queries_defence(cell):
        raise UserError(
            f"{where}: threat model {threat} queries no method, so attacked_methods does not "
            "apply: remove it or set threat_model to white_box"
        )
    attacked = list(parts.methods) if threat == "white_box" else []
    if parts.auxiliary is not None:
        if threat not in ("oblivious", "white_box"):
            raise UserError(
                f"{where}: threat model {threat} excludes the `auxiliary` method: remove it or "
                "set threat_model to oblivious or white_box"
            )
        attacked.append(parts.auxiliary)
    provided = {part for method in attacked for part in method.traits.provides}
    for part in parts.attack.needs:
        if part not in provided:
            raise UserError(
                f"{where}: attack {cell['attack']!r} attacks a method's {part}, and none of the "
                "attacked methods provides it: add one that does or choose another attack"
            )


def _check_gradient(cell: dict[str, Any], parts: CellParts, where: str) -> None:
    """Refuse gradients that do not exist, and random defences attacked without ``eot``."""
    if not queries_defence(cell):
        return
    threat, gradient = cell["threat_model"], cell.get("gradient", "exact")
    for method in parts.methods:
        if method.traits.batch_dependent:
            raise UserError(
                f"{where}: method {method.name!r} adapts the classifier to each batch of queries, "
                f"so it is not attacked {threat}: set threat_model to oblivious or transfer, or "
                "leave it out of `attacked_methods`"
            )
    if any(method.random for method in parts.methods) and "eot" not in cell:
        raise UserError(
            f"{where}: a random defence is attacked {threat} without EOT: add "
            "`eot: 20`, or `eot: 1` if the paper attacked single draws"
        )
    if threat != "white_box" or gradient == "bpda":
        return
    for method in parts.methods:
        if not method.traits.differentiable:
            raise UserError(
                f"{where}: method {method.name!r} has no gradient, but the cell has "
                f"`gradient: {gradient}`: write `gradient: bpda`"
            )
