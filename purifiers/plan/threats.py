"""Who attacks: what the threat model of a cell means, and which ones are refused."""

from __future__ import annotations

from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError

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


def is_random(method: str) -> bool:
    """Whether a method's component says that it is random."""
    return bool(registry.describe("method", method).constants.get("STOCHASTIC", False))


def check_threat(
    cell: dict[str, Any], constants: dict[str, list[dict[str, Any]]], where: str
) -> None:
    """Refuse attacks that cannot be, or that would flatter the defence.

    Raises:
        UserError: a random defence attacked without a word on EOT, a transfer without a source,
            a detector attacked by somebody who does not know it, an attack on a part of the
            defence that it does not have, one that knows no model but should, or a detector that
            detects nothing.
    """
    methods = constants["method"][: len(cell.get("methods", ()))]
    if "detector" in cell and "detected" not in constants["method"][len(methods)].get(
        "PROVIDES", ()
    ):
        raise UserError(f"{where}: method {cell['detector']!r} detects nothing; name one that does")
    if cell.get("attack", "none") == "none":
        return
    threat = cell.get("threat_model", "oblivious")
    random = any(method.get("STOCHASTIC") for method in methods)
    if asks_defence(cell) and random and "eot" not in cell:
        raise UserError(
            f"{where}: a random defence is attacked {threat} without expectation over its draws; "
            "say `eot: 20`, or `eot: 1` if the paper attacked single draws"
        )
    if constants["attack"][0].get("BLIND") and threat != "oblivious":
        raise UserError(
            f"{where}: attack {cell['attack']!r} knows no model; its threat model is oblivious"
        )
    if threat == "transfer" and "source" not in cell:
        raise UserError(f"{where}: threat model transfer needs a `source` to carry over from")
    known = methods if threat == "white_box" else []
    if "auxiliary" in cell:
        if threat not in ("oblivious", "white_box"):
            raise UserError(
                f"{where}: threat model {threat} does not know the `auxiliary` method; take "
                "oblivious or white_box"
            )
        known = [*known, constants["method"][-1]]
    offered = {part for method in known for part in method.get("PROVIDES", ())}
    for part in constants["attack"][0].get("NEEDS", ()):
        if part not in offered:
            raise UserError(
                f"{where}: attack {cell['attack']!r} goes against a method's {part}, and none of "
                "the attacked methods has one"
            )
