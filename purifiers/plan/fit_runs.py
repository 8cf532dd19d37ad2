"""The runs that train: a data set's classifiers, and the methods fitted to them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    ClassifierSpec,
    ComponentSpec,
    DatasetSpec,
    MethodSpec,
    PurifierSpec,
)
from purifiers.core.traits import DatasetTraits
from purifiers.plan.chains import check_method
from purifiers.plan.cost import (
    added,
    fit_cost,
    method_traits,
    network_key,
    passes,
    shape_of,
    times,
)
from purifiers.plan.graph import Graph, Run, component_spec
from purifiers.plan.resolve import Setting
from purifiers.plan.scale import UsedDataset


class Defended(NamedTuple):
    """A trained classifier and the methods before it, first to last."""

    classifier: Run
    methods: tuple[MethodSpec, ...]


def dataset_run(graph: Graph, used: UsedDataset) -> Run:
    """The run that prepares a data set."""
    traits: DatasetTraits = registry.describe("dataset", used.name).traits
    pixels = math.prod(traits.shape) * ((traits.train or 0) + (traits.test or 0))
    spec = DatasetSpec(dataset=component_spec("dataset", used.name, used.parameters))
    return graph.add(spec, used.name, size_bytes=pixels)


def classifier_run(graph: Graph, setting: Setting, seed: int, names: Mapping[str, Any]) -> Run:
    """The run that trains a classifier.

    Args:
        names: the recipes' names, under ``classifier`` and ``training``.
    """
    used = setting.used
    classifier = setting.recipe("classifier", names["classifier"])
    training = setting.recipe("training", names["training"])
    formula = registry.describe("training", training.component).traits.passes
    spec = ClassifierSpec(
        data=dataset_run(graph, used).id,
        train=used.train,
        classifier=classifier,
        training=training,
        seed=seed,
    )
    slug = f"{used.name}-{classifier.component}-{training.component}-s{seed}"
    cost = {network_key(classifier, shape_of(used)): passes(formula, training) * used.train}
    return graph.add(spec, slug, cost)


def fitted_method(graph: Graph, setting: Setting, name: str, seed: int) -> MethodSpec:
    """A method ready for use; the run that fits it is added where it has to be fitted.

    Raises:
        UserError: it does not fit the cell, or is to be fitted on other classifiers than the one
            it protects, which it listens to.
    """
    method = setting.recipe("method", name)
    check_method(setting, name, method, shape_of(setting.used))
    fit = method_traits(method).fit
    run_id = None
    if fit is not None:
        cell = setting.cell
        names = cell.get("fit_classifiers") or [cell["classifier"]]
        if names != [cell["classifier"]] and not fit.several_classifiers:
            raise UserError(
                f"{setting.where}: method {name!r} listens to the classifier it protects and "
                f"cannot be fitted on {', '.join(names)}: leave fit_classifiers out"
            )
        classifiers = [
            classifier_run(graph, setting, seed, {**cell, "classifier": n}) for n in names
        ]
        run_id = _purifier_run(graph, setting, method, classifiers, seed).id
    return MethodSpec(
        component=method.component,
        version=method.version,
        parameters=method.parameters,
        run=run_id,
    )


def _purifier_run(
    graph: Graph, setting: Setting, method: ComponentSpec, classifiers: Sequence[Run], seed: int
) -> Run:
    """The run that fits a method; one fit serves all values of its inference's parameters."""
    fit = method_traits(method).fit
    assert fit is not None
    used, (first, *others) = setting.used, classifiers
    kept = {name: v for name, v in method.parameters.items() if name not in fit.inference_only}
    spec = PurifierSpec(
        data=dataset_run(graph, used).id,
        train=used.train,
        classifier=first.id if fit.uses_classifier else None,
        method=dataclasses.replace(method, parameters=kept),
        seed=seed,
        ensemble=tuple(run.id for run in others),
    )
    beside = [_architecture(run) for run in others]
    slug = slug_of(first, ["_and_".join([method.component, *beside])], seed)
    if not fit.uses_classifier:
        slug = f"{used.name}-{method.component}-s{seed}"
    cost = times(used.train, added(*(fit_cost(used, run, method) for run in classifiers)))
    return graph.add(spec, slug, cost, group=first)


def _architecture(classifier: Run) -> str:
    assert isinstance(classifier.spec, ClassifierSpec)
    return classifier.spec.classifier.component


def defended(graph: Graph, setting: Setting, seed: int) -> Defended:
    """The cell's classifier behind its methods."""
    classifier = classifier_run(graph, setting, seed, setting.cell)
    names = setting.cell.get("methods", ())
    return Defended(classifier, tuple(fitted_method(graph, setting, n, seed) for n in names))


def slug_of(classifier: Run, story: Sequence[str], seed: int) -> str:
    """Data set, architecture and training of the classifier, then what was done, then the seed."""
    return "-".join([classifier.id.rsplit("-", 2)[0], *story, f"s{seed}"])
