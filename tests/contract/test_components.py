"""What every component file says of itself, of whatever kind."""

from __future__ import annotations

import ast
import json

from purifiers.core.component import Attack, Classifier, Method, build
from purifiers.datasets._base import Dataset
from purifiers.plan import runs
from purifiers.training._base import Training

BASES = {
    "attack": Attack,
    "classifier": Classifier,
    "dataset": Dataset,
    "method": Method,
    "training": Training,
}
NEEDED: dict[str, set[str]] = {
    "attack": {"PASSES"},
    "classifier": set(),
    "dataset": {"SHAPE", "CLASSES", "TRAIN", "TEST"},
    "method": {"PASSES"},
    "training": {"FIT_PASSES"},
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
    for named in ("BUDGET", "LATER", "PURIFYING", "SIZES"):
        names = described.constants.get(named, ())
        assert isinstance(names, tuple) and set(names) <= set(described.parameters)


def test_cost_is_arithmetic_over_parameters(component):
    described = component.description
    assert NEEDED[component.kind] <= set(described.constants)
    formulas = {"PASSES", "FIT_PASSES", "OWN_PASSES", "OWN_FIT_PASSES"}
    for constant in formulas & set(described.constants):
        formula = ast.parse(described.constants[constant], mode="eval").body
        cost = runs._evaluate(formula, {**described.parameters, "images": 1})
        assert cost >= 0
        if component.name != "_template":
            spec = runs.component(component.kind, component.name, {})
            assert runs.passes(component.kind, spec, constant) == cost


def test_parameters_read_from_the_source_are_those_of_the_class(component):
    """Every one of them is accepted, and they fit into a run's identity."""
    described = component.description
    context = ((1, 16, 16), 10) if component.kind == "classifier" else ()
    full = described.parameters | component.small
    made = build(component.cls, *context, **full)
    assert isinstance(made, BASES[component.kind])
    json.dumps(described.parameters, allow_nan=False)
