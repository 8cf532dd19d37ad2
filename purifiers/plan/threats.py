"""Who attacks: what the threat model of a cell means, and which ones are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.traits import AttackTraits, MethodTraits

THREAT_MODELS = ("oblivious", "white_box", "transfer", "black_box")
GRADIENTS = ("exact", "bpda", "one_step", "second_order")


def eot(declared: int | dict[str, Any]) -> dict[str, Any]:
    """A declared ``eot`` as it stands in a spec: number of draws, and how they are combined."""
    given = {"samples": declared} if isinstance(declared, int) else declared
    return {"samples": given["samples"], "combine": given.get("combine", "mean")}


def asks_defence(cell: dict[str, Any]) -> bool:
    """Whether the attack asks the purifiers too, and not a bare classifier or a stand-in."""
    threat = cell.get("threat_model", "oblivious")
    return threat == "white_box" or (threat == "black_box" and "source" not in cell)


@dataclass(frozen=True)
class Method:
    """A method of a cell, by its name in the paper's recipes."""

    name: str
    traits: MethodTraits
    parameters: Mapping[str, Any]

    @property
    def random(self) -> bool:
        """Whether two seeds give two outputs."""
        return self.traits.is_random(self.parameters)


@dataclass(frozen=True)
class Parts:
    """The components of a cell that decide which attacks are possible.

    Attributes:
        methods: the purifiers, first to last.
        attack: traits of the attack; None where nothing is attacked.
        auxiliary: the method whose detector is attacked too.
        detector: the method whose detected images count as its success.
    """

    methods: Sequence[Method] = ()
    attack: AttackTraits | None = None
    auxiliary: Method | None = None
    detector: Method | None = None


def is_random(method: dict[str, Any]) -> bool:
    """Whether a method is random, given its spec."""
    traits: MethodTraits = registry.describe("method", method["component"]).traits
    return traits.is_random(method["parameters"])


def check_threat(cell: dict[str, Any], parts: Parts, where: str) -> None:
    """Refuse attacks that are impossible, or that would overstate the defence.

    Raises:
        UserError: a random defence attacked without a word on EOT, an exact gradient through a
            method that has none, a transfer without a source, an attacked detector outside the
            threat model, an attack on a part that no attacked method has, a corruption with a
            threat model, or a detector that detects nothing.
    """
    if parts.detector is not None and "detected" not in parts.detector.traits.provides:
        raise UserError(
            f"{where}: method {parts.detector.name!r} detects nothing; name one that does"
        )
    if parts.attack is None:
        return
    threat = cell.get("threat_model", "oblivious")
    _check_gradient(cell, parts, where)
    if parts.attack.model_free and threat != "oblivious":
        raise UserError(
            f"{where}: attack {cell['attack']!r} queries no model; its threat model is oblivious"
        )
    if threat == "transfer" and "source" not in cell:
        raise UserError(f"{where}: threat model transfer needs a `source` to carry over from")
    attacked = list(parts.methods) if threat == "white_box" else []
    if parts.auxiliary is not None:
        if threat not in ("oblivious", "white_box"):
            raise UserError(
                f"{where}: threat model {threat} does not know the `auxiliary` method; take "
                "oblivious or white_box"
            )
        attacked.append(parts.auxiliary)
    offered = {part for method in attacked for part in method.traits.provides}
    for part in parts.attack.needs:
        if part not in offered:
            raise UserError(
                f"{where}: attack {cell['attack']!r} attacks a method's {part}, and none of "
                "the attacked methods has one"
            )


def _check_gradient(cell: dict[str, Any], parts: Parts, where: str) -> None:
    """Refuse gradients through the defence that do not exist, or that average nothing."""
    if not asks_defence(cell):
        return
    threat, gradient = cell["threat_model"], cell.get("gradient", "exact")
    if any(method.random for method in parts.methods) and "eot" not in cell:
        raise UserError(
            f"{where}: a random defence is attacked {threat} without expectation over its draws; "
            "say `eot: 20`, or `eot: 1` if the paper attacked single draws"
        )
    if threat != "white_box" or gradient == "bpda":
        return
    for method in parts.methods:
        if not method.traits.differentiable:
            raise UserError(
                f"{where}: method {method.name!r} has no gradient, but the cell asks for "
                f"`gradient: {gradient}`; write `gradient: bpda`"
            )
