"""What every component file says of itself, of whatever kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from purifiers.core.component import Attack, Classifier, Method, build
from purifiers.core.errors import UserError
from purifiers.core.formula import evaluate
from purifiers.core.parameters import is_numeric, is_ranged
from purifiers.core.ranges import RANGES
from purifiers.core.traits import TRAITS
from purifiers.datasets._base import Dataset
from purifiers.plan.cost import passes
from purifiers.plan.graph import component_spec
from purifiers.training._base import Training

BASES = {
    "attack": Attack,
    "classifier": Classifier,
    "dataset": Dataset,
    "method": Method,
    "training": Training,
}


def test_the_class_is_of_its_kind_and_explains_itself(component):
    assert issubclass(component.cls, BASES[component.kind])
    assert component.cls.__module__ == component.module.__name__
    assert (component.cls.__doc__ or "").strip()


def test_the_first_line_says_what_it_is(component):
    assert 15 <= len(component.description.summary) <= 120


def test_version_is_a_count(component):
    assert type(component.description.version) is int and component.description.version >= 1


def test_lists_of_parameters_name_parameters(component):
    described = component.description
    for field, names in described.traits.parameter_names().items():
        assert isinstance(names, tuple) and set(names) <= set(described.parameters), field


def test_traits_read_from_the_source_are_those_of_the_class(component):
    traits = component.description.traits
    assert type(traits) is TRAITS[component.kind]
    assert component.cls.traits == traits


def test_cost_is_arithmetic_over_parameters(component):
    described = component.description
    for field, formula in described.traits.formulas().items():
        cost = evaluate(formula, {**described.parameters, "images": 1})
        assert cost >= 0, field
        if component.name != "_template":
            spec = component_spec(component.kind, component.name, {})
            assert passes(component.kind, formula, spec) == cost, field


def test_parameters_read_from_the_source_are_those_of_the_class(component):
    """Every one of them is accepted, and they fit into a run's identity."""
    described = component.description
    full = described.parameters | component.small
    context: tuple[Any, ...] = ()
    if component.kind == "classifier":
        one_shape = described.traits.pretrained is True
        context = ((3, 32, 32) if one_shape else (1, 16, 16), 10)
    made = build(component.cls, *context, **full)
    assert isinstance(made, BASES[component.kind])
    json.dumps(described.parameters, allow_nan=False)


def context_of(component) -> tuple[Any, ...]:
    """What the constructor takes besides its parameters."""
    return ((3, 32, 32), 10) if component.kind == "classifier" else ()


def test_every_number_declares_its_range(component):
    for parameter, types in component.description.types.items():
        assert is_ranged(types) or not is_numeric(types), (
            f"{parameter} is annotated {' | '.join(types)}: use a range of core/ranges.py"
        )


def test_defaults_are_in_range(component):
    described = component.description
    for parameter, value in described.parameters.items():
        if parameter not in described.required:
            described.checked(parameter, value, "default")


def outside(types: tuple[str, ...]) -> list[Any]:
    """Values outside the range of a number or of a list of numbers."""
    (name,) = (name for name in types if name != "None")
    wrong = [float("nan"), float("inf"), float("-inf"), -1, True, "many"]
    if name.startswith("Sequence"):
        return [*([value] for value in wrong), 0.5]
    return [*wrong, 7.5] if name in RANGES and RANGES[name].whole else wrong


def test_numbers_out_of_range_are_refused(component):
    """When a table is planned and when the component is built, in one line with the place."""
    described, cls = component.description, component.cls
    others = dict.fromkeys(described.required, "x") | component.small
    for parameter, types in described.types.items():
        for value in outside(types) if is_ranged(types) else ():
            for act in (
                lambda p=parameter, v=value: described.checked(p, v, "table_1.yaml"),
                lambda p=parameter, v=value: build(
                    cls, *context_of(component), **(others | {p: v})
                ),
            ):
                with pytest.raises(UserError, match=rf": {parameter} is ") as refused:
                    act()
                assert "\n" not in str(refused.value)
