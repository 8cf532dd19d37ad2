"""The signs that an attack of an audit was weak, by the rules of the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from purifiers.auditing.protocol import name_of
from purifiers.auditing.report import AttackResult
from purifiers.core.component import Method
from purifiers.core.formula import evaluate
from purifiers.core.spec import AttackSpec, ComponentSpec, Eot, ImagesSpec, MethodSpec, Subset
from purifiers.report import signs
from purifiers.report.attacked import ONE_GRADIENT

MODEL = "audited"
"""Stands for the audited classifier and data in specs, which name runs in the tables."""


def find_signs(
    results: Sequence[AttackResult], methods: Sequence[Method], seed: int
) -> list[AttackResult]:
    """The results with their signs; clean and undefended ones have none."""
    cells = {id(result): _cell(result, methods, seed) for result in results if _adverse(result)}
    return [
        dataclasses.replace(
            result, signs=signs.signs(cells[id(result)], list(cells.values())).texts
        )
        if id(result) in cells
        else result
        for result in results
    ]


def _adverse(result: AttackResult) -> bool:
    return result.plan is not None and result.threat_model != "undefended"


def _cell(result: AttackResult, methods: Sequence[Method], seed: int) -> signs.Attacked:
    plan = result.plan
    assert plan is not None
    scored_methods = tuple(_method_spec(method) for method in methods)
    attacked_methods = () if plan.threat_model == "oblivious" else scored_methods
    count = len(result.rows.labels)
    images = ImagesSpec(data=MODEL, subset=Subset(split=MODEL, n=count, seed=0), run=None)
    parameters = plan.parameters_with_defaults
    passes = evaluate(plan.attack.traits.passes, parameters)
    recipe = ComponentSpec(
        component=plan.name,
        version=plan.attack.traits.version,
        parameters={k: v for k, v in parameters.items() if _plain(v)},
    )
    spec = AttackSpec(
        images=images,
        classifier=MODEL,
        methods=attacked_methods,
        gradient=plan.gradient,
        attack=recipe,
        seed=seed,
        eot=Eot(samples=plan.eot_samples, combine="mean") if plan.eot_samples > 1 else None,
        auxiliary=None if plan.auxiliary is None else _method_spec(plan.auxiliary),
    )
    scores = pd.DataFrame(
        {"label": result.rows.labels, "correct": result.rows.correct[0]},
        index=np.arange(count),
    )
    run = signs.AttackedRun(
        model=signs.Scored(MODEL, scored_methods, MODEL, images.subset),
        attack=spec,
        direct=plan.gradient != "none" and passes > 0 and attacked_methods == scored_methods,
        probe=result.probe,
        scores=scores,
    )
    return signs.Attacked(
        name=result.label,
        threat_model=plan.threat_model,
        recipe=recipe,
        one_step=0 < passes <= ONE_GRADIENT,
        stochastic=any(method.random for method in methods),
        seeds={seed: run},
    )


def _method_spec(method: Method) -> MethodSpec:
    return MethodSpec(
        component=name_of(method),
        version=method.traits.version,
        parameters={},
        run=None,
    )


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | str | bool | None)
