"""The attacks of an audit, chosen from the traits of a defence's methods and a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from purifiers.core import registry
from purifiers.core.binding import component_name
from purifiers.core.component import Attack, Method, build
from purifiers.core.errors import UserError, check_choice
from purifiers.core.numbers import read_length

NORMS = ("linf", "l2")

RELATIVE_STEP = 2.5
"""Step size of PGD in units of eps / steps (Madry et al. 2018, section 5)."""

FAB_STEPS = 100
"""AutoAttack's own number of iterations (Croce and Hein 2020)."""


@dataclass(frozen=True)
class Budget:
    """Extent of an audit.

    Attributes:
        pgd_steps: steps of PGD.
        apgd_steps: steps of APGD; 0: none.
        restarts: runs of PGD and APGD on images that are unbroken.
        square_queries: queries of Square; 0: none.
        autoattack: whether AutoAttack's standard version runs.
        eot_samples: draws behind each gradient of a random defence.
        draws: the defender's random draws that score a random defence.
        every_gradient: also one-step gradients, and attacks on the methods' detectors and scores.
    """

    pgd_steps: int
    apgd_steps: int
    restarts: int
    square_queries: int
    autoattack: bool
    eot_samples: int
    draws: int
    every_gradient: bool = False


BUDGETS = {
    "quick": Budget(20, 20, 1, 300, autoattack=False, eot_samples=5, draws=5),
    "standard": Budget(50, 100, 1, 1000, autoattack=True, eot_samples=10, draws=10),
    "strong": Budget(
        *(100, 100, 5, 5000), autoattack=True, eot_samples=20, draws=20, every_gradient=True
    ),
}
"""Budgets by name. Our choice; 100 steps, 5 restarts and 5000 queries are AutoAttack's, 20 draws
those of its rand version."""

GRADIENT_NAMES = {
    "exact": "exact gradient",
    "bpda": "BPDA",
    "one_step": "one-step gradient",
    "second_order": "second order",
    "none": "scores",
}


@dataclass(frozen=True)
class Planned:
    """One attack of an audit.

    Attributes:
        name: registry name, or the class's name for an attack from elsewhere.
        attack: the attack.
        parameters: its parameters, for records.
        threat_model: ``oblivious`` (the attacker sees the classifier alone), ``white_box`` (the
            whole defence with a gradient) or ``black_box`` (scores of the whole defence).
        gradient: as in :class:`purifiers.core.defence.Defence`.
        eot_samples: draws per gradient or query of a random defence, else 1.
        auxiliary: the method whose detector or score is attacked too.
    """

    name: str
    attack: Attack
    parameters: dict[str, Any]
    threat_model: str
    gradient: str = "exact"
    eot_samples: int = 1
    auxiliary: Method | None = field(default=None, compare=False)

    @property
    def parameters_with_defaults(self) -> dict[str, Any]:
        """All parameters of the attack; an attack stores each as an attribute of its name."""
        parameters = dict(self.parameters)
        if name_of(self.attack) in registry.names("attack"):
            for name in registry.describe("attack", self.name).parameters:
                if hasattr(self.attack, name):
                    parameters[name] = getattr(self.attack, name)
        return parameters

    @property
    def label(self) -> str:
        """Name in the report, such as ``pgd, BPDA, EOT 10``."""
        if self.threat_model == "oblivious":
            return f"{self.name}, oblivious"
        eot = f", EOT {self.eot_samples}" if self.eot_samples > 1 else ""
        return f"{self.name}, {GRADIENT_NAMES[self.gradient]}{eot}"


def read_budget(budget: str) -> Budget:
    """The budget of a name.

    Raises:
        UserError: no such budget.
    """
    check_choice("audit: budget", budget, tuple(BUDGETS))
    return BUDGETS[budget]


def read_radius(eps: float | str, norm: str) -> float:
    """The radius of the perturbation, from a number or text such as ``"8/255"``.

    Raises:
        UserError: an unknown norm, or a radius out of range.
    """
    check_choice("audit: norm", norm, NORMS)
    return read_length("Length" if norm == "linf" else "Radius", eps, "audit: eps")


def gradients(methods: Sequence[Method], every: bool = False) -> list[str]:
    """The kinds of gradient through ``methods`` that an attacker should try, BPDA first.

    The exact gradient exists if all methods are differentiable. Second order and one step exist in
    addition where a method implements them.
    """
    if not methods:
        return ["exact"]
    listed = ["bpda"]
    if all(method.traits.differentiable for method in methods):
        listed.append("exact")
        if _implemented(methods, "unrolled"):
            listed.append("second_order")
        if every and _implemented(methods, "step"):
            listed.append("one_step")
    return listed


def _implemented(methods: Sequence[Method], name: str) -> bool:
    return any(getattr(type(method), name) is not getattr(Method, name) for method in methods)


def choose_attacks(
    methods: Sequence[Method], radius: float, norm: str, budget: Budget, classes: int
) -> list[Planned]:
    """The attacks of an audit, weakest threat model first.

    PGD on the classifier alone is the oblivious attack of most papers. The others attack the whole
    defence: PGD and APGD with every gradient of :func:`gradients`, AutoAttack (not on random
    defences, where it keeps the first lucky draw), Square, and with ``every_gradient`` all attacks
    on a part that a method provides.

    Args:
        methods: the defence's purifiers.
        radius: from :func:`read_radius`.
        classes: number of classes.
    """
    random = any(method.random for method in methods)
    draws = budget.eot_samples if random else 1
    pgd = _recipe(norm, radius, budget)
    planned = [_plan(*pgd, "oblivious")] if methods else []
    for gradient in gradients(methods, budget.every_gradient):
        planned.append(_plan(*pgd, "white_box", gradient, draws))
        if norm == "linf" and budget.apgd_steps:
            apgd = {"eps": radius, "steps": budget.apgd_steps, "restarts": budget.restarts}
            planned.append(_plan("apgd", apgd, "white_box", gradient, draws))
    if budget.autoattack and not random:
        name, size = ("autoattack", "eps") if norm == "linf" else ("autoattack_l2", "radius")
        parameters = {size: radius, "targets": min(9, classes - 1)}
        gradient = gradients(methods)[-1]
        planned.append(_plan(name, parameters, "white_box", gradient))
    if norm == "linf" and budget.square_queries:
        square = {"eps": radius, "queries": budget.square_queries}
        planned.append(_plan("square", square, "black_box", "none", draws))
    if norm == "linf" and budget.every_gradient:
        planned.extend(_on_parts(methods, radius, draws))
    return planned


def _recipe(norm: str, radius: float, budget: Budget) -> tuple[str, dict[str, Any]]:
    step = min(RELATIVE_STEP * radius / budget.pgd_steps, 1.0)
    if norm == "l2":
        return "pgd_l2", {"radius": radius, "step_length": step, "steps": budget.pgd_steps}
    return "pgd", {
        "eps": radius,
        "step_size": step,
        "steps": budget.pgd_steps,
        "restarts": budget.restarts,
    }


def _on_parts(methods: Sequence[Method], radius: float, draws: int) -> Iterator[Planned]:
    """Attacks that need a part, such as a detector's logit, which one of the methods provides."""
    for name in registry.names("attack"):
        traits = registry.attack_traits(name)
        for part in traits.needs[:1]:
            owners = [method for method in methods if part in method.traits.provides]
            declared = registry.describe("attack", name).parameters
            if owners and traits.norm == "linf" and "eps" in declared:
                yield _plan(name, {"eps": radius}, "white_box", "bpda", draws, owners[0])


def _plan(
    name: str,
    parameters: dict[str, Any],
    threat_model: str,
    gradient: str = "exact",
    eot_samples: int = 1,
    auxiliary: Method | None = None,
) -> Planned:
    attack = build(registry.load("attack", name), **parameters)
    return Planned(name, attack, parameters, threat_model, gradient, eot_samples, auxiliary)


def given_attacks(
    attacks: Sequence[Attack], methods: Sequence[Method], budget: Budget
) -> list[Planned]:
    """Your own attacks, each oblivious and through the whole defence with every gradient.

    Raises:
        UserError: something that is not an attack, or an attack that stops at its first success, on
            a random defence.
    """
    random = any(method.random for method in methods)
    draws = budget.eot_samples if random else 1
    planned = []
    for attack in attacks:
        if not isinstance(attack, Attack):
            raise UserError(
                f"audit: attacks holds a {type(attack).__name__}: create attacks with "
                "purifiers.attack(name, ...)"
            )
        name = name_of(attack)
        lucky_draws = getattr(attack, "lucky_draws", False)
        if random and attack.traits.stops_at_first_success and not lucky_draws:
            raise UserError(
                f"audit: attack {name!r} keeps the first lucky draw of a random defence: "
                "choose another, such as apgd, or set its lucky_draws"
            )
        parameters = {key: value for key, value in vars(attack).items() if not key.startswith("_")}
        if methods:
            planned.append(Planned(name, attack, parameters, "oblivious"))
        for gradient in gradients(methods, budget.every_gradient):
            planned.append(Planned(name, attack, parameters, "white_box", gradient, draws))
    return planned


def name_of(component: object) -> str:
    """Registry name of a component of the suite, or the class's name for one from elsewhere."""
    own = type(component).__module__.startswith("purifiers.")
    return component_name(type(component)) if own else type(component).__name__
