"""Plan the runs that prepare data, train classifiers and fit methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    ClassifierSpec,
    ComponentSpec,
    DatasetSpec,
    MethodSpec,
    PurifierSpec,
)
from purifiers.plan.chains import check_method
from purifiers.plan.cost import (
    added,
    fit_cost,
    network_key,
    passes,
    shape_of,
    times,
)
from purifiers.plan.graph import Defended, Graph, Run, component_spec
from purifiers.plan.resolve import NotImplementedHere, Setting
from purifiers.plan.scale import UsedDataset

_DECIDE_DEFENCE = ("classifier", "training", "methods", "fit_classifiers", "override")
"""Keys of a cell that decide its classifier and methods, beside its data set."""


def dataset_run(graph: Graph, used: UsedDataset) -> Run:
    """Plan the run that prepares a data set."""
    pixels = math.prod(shape_of(used)) * sum(used.available.values())
    spec = DatasetSpec(dataset=component_spec("dataset", used.name, used.parameters))
    return graph.add(spec, used.name, size_bytes=pixels)


def classifier_run(graph: Graph, setting: Setting, seed: int, names: Mapping[str, Any]) -> Run:
    """Plan the run that trains a classifier, or takes the weights that it brings.

    Weights that a classifier brings depend on no training images and no seed, so that all scales
    and seeds share their run.

    Args:
        names: recipe names under the keys ``classifier`` and ``training``.

    Raises:
        UserError: the training keeps a classifier's weights, but the classifier brings none.
        NotImplementedHere: the classifier takes other images or classes.
    """
    used = setting.used
    classifier = setting.recipe("classifier", names["classifier"])
    _check_images(classifier, used)
    training = setting.recipe("training", names["training"])
    traits = registry.training_traits(training.component)
    images = used.train
    if traits.keeps_weights:
        _check_pretrained(setting, classifier, names)
        images, seed = 0, 0
    spec = ClassifierSpec(
        data=dataset_run(graph, used).id,
        train=images,
        classifier=classifier,
        training=training,
        seed=seed,
    )
    slug = f"{used.name}-{classifier.component}-{training.component}-s{seed}"
    passes_per_image = passes("training", traits.passes, training)
    cost = {network_key(classifier, shape_of(used)): passes_per_image * images}
    return graph.add(spec, slug, cost)


def _check_images(classifier: ComponentSpec, used: UsedDataset) -> None:
    """Refuse a classifier on images or classes of another data set than its weights'."""
    parameter = registry.classifier_traits(classifier.component).trained_on
    if not parameter:
        return
    name = classifier.parameters[parameter]
    if not registry.exists("dataset", name):
        return  # the classifier itself refuses what does not fit
    theirs, ours = registry.dataset_traits(name), registry.dataset_traits(used.name)
    if (theirs.shape, theirs.classes) != (shape_of(used), ours.classes):
        raise NotImplementedHere(
            f"{classifier.component} takes images and classes of {name} only, not of {used.name}"
        )


def _check_pretrained(
    setting: Setting, classifier: ComponentSpec, names: Mapping[str, Any]
) -> None:
    """Refuse to keep the weights of a classifier that brings none."""
    traits = registry.classifier_traits(classifier.component)
    if traits.is_pretrained(classifier.parameters):
        return
    remedy = "choose a training that trains it"
    if isinstance(traits.pretrained, str):
        remedy += f", or set its {traits.pretrained}"
    raise UserError(
        f"{setting.where}: training {names['training']!r} keeps the weights that a classifier "
        f"brings, but classifier {names['classifier']!r} brings none: {remedy}"
    )


def fitted_method(graph: Graph, setting: Setting, name: str, seed: int) -> MethodSpec:
    """Resolve a method of a cell; plan the run that fits it where the method needs one.

    Args:
        name: the method's recipe.

    Raises:
        UserError: the method does not fit the cell, or the cell lists ``fit_classifiers`` for a
            method that can only be fitted on the classifier it protects.
    """
    method = setting.recipe("method", name)
    check_method(setting, name, method, shape_of(setting.used))
    fit = registry.method_traits(method.component).fit
    run_id = None
    if fit is not None:
        cell = setting.cell
        names = cell.get("fit_classifiers") or [cell["classifier"]]
        if names != [cell["classifier"]] and not fit.several_classifiers:
            raise UserError(
                f"{setting.where}: method {name!r} can only be fitted on the classifier it "
                f"protects, not on {', '.join(names)}: remove fit_classifiers"
            )
        classifiers = [
            classifier_run(graph, setting, seed, {**cell, "classifier": n}) for n in names
        ]
        run_id = _purifier_run(graph, setting, method, classifiers, seed).id
    return MethodSpec(
        component=method.component,
        version=method.version,
        parameters=method.parameters,
        files=method.files,
        content=method.content,
        run=run_id,
    )


def _purifier_run(
    graph: Graph, setting: Setting, method: ComponentSpec, classifiers: Sequence[Run], seed: int
) -> Run:
    """Plan the run that fits a method, and that of its first training where a second follows.

    Their specs leave out the parameters that have no effect on them.
    """
    fit = registry.method_traits(method.component).fit
    assert fit is not None
    used, (first, *others) = setting.used, classifiers
    uses_classifier = fit.is_using_classifier(method.parameters)
    ignored = fit.without_effect(method.parameters)
    before = None
    cost = times(used.train, added(*(fit_cost(used, run, method) for run in classifiers)))
    if fit.second is not None and method.parameters[fit.second.when]:
        alone = {**method.parameters, fit.second.when: False}
        first_training = dataclasses.replace(method, parameters=alone)
        before = _purifier_run(graph, setting, first_training, classifiers, seed)
        cost = added(cost, times(-1, before.cost))
    kept = {name: value for name, value in method.parameters.items() if name not in ignored}
    spec = PurifierSpec(
        data=data_of(first),
        train=used.train,
        classifier=first.id if uses_classifier else None,
        method=dataclasses.replace(method, parameters=kept),
        seed=seed,
        ensemble=tuple(run.id for run in others),
        first=before.id if before else None,
    )
    architectures = [_architecture(run) for run in others]
    slug = slug_of(first, ["_and_".join([method.component, *architectures])], seed)
    if not uses_classifier:
        slug = f"{used.name}-{method.component}-s{seed}"
    return graph.add(spec, slug, cost, group=first)


def _architecture(classifier: Run) -> str:
    assert isinstance(classifier.spec, ClassifierSpec)
    return classifier.spec.classifier.component


def data_of(classifier: Run) -> str:
    """Id of the data set's run behind a classifier's run."""
    assert isinstance(classifier.spec, ClassifierSpec)
    return classifier.spec.data


def defended(graph: Graph, setting: Setting, seed: int) -> Defended:
    """Plan a cell's classifier and the methods in front of it."""
    cell = setting.cell
    key = setting.key(*(cell.get(name) for name in _DECIDE_DEFENCE), seed)
    if key not in graph.defences:
        classifier = classifier_run(graph, setting, seed, cell)
        methods = (fitted_method(graph, setting, n, seed) for n in cell.get("methods", ()))
        graph.defences[key] = Defended(classifier, tuple(methods))
    return graph.defences[key]


def slug_of(classifier: Run, parts: Sequence[str], seed: int) -> str:
    """Readable beginning of a run id: the classifier's slug, the processing steps and the seed."""
    return "-".join([classifier.id.rsplit("-", 2)[0], *parts, f"s{seed}"])
