"""Predicted cost of runs, in forward passes of one image by network."""

from __future__ import annotations

import math

from purifiers.core import registry
from purifiers.core.formula import evaluate
from purifiers.core.spec import ClassifierSpec, ComponentSpec, SubstituteSpec
from purifiers.plan.graph import Cost, Run
from purifiers.plan.scale import UsedDataset


def passes(kind: str, formula: str, spec: ComponentSpec, images: int = 1) -> float:
    """Evaluate a cost formula.

    Args:
        kind: kind of the component.
        formula: arithmetic over its parameters and ``images``.
        spec: the component; a parameter that it lacks has the default.
        images: number of training images.
    """
    defaults = registry.describe(kind, spec.component).parameters
    return evaluate(formula, {**defaults, **spec.parameters, "images": images})


def added(*costs: Cost) -> Cost:
    """Add costs network by network."""
    total: dict[str, float] = {}
    for cost in costs:
        for network, count in cost.items():
            total[network] = total.get(network, 0.0) + count
    return total


def times(factor: float, cost: Cost) -> Cost:
    """Multiply a cost by a factor."""
    return {network: factor * count for network, count in cost.items()}


def purify_cost(used: UsedDataset, classifier: Run, method: ComponentSpec) -> Cost:
    """Passes to purify one image, of the classifier and of the method's own network."""
    traits = registry.method_traits(method.component)
    own_passes = traits.network.passes if traits.network else "0"
    return _method_cost(used, classifier, method, traits.passes, own_passes)


def fit_cost(used: UsedDataset, classifier: Run, method: ComponentSpec) -> Cost:
    """Passes to fit a method, per training image."""
    traits = registry.method_traits(method.component)
    classifier_passes = traits.fit.passes if traits.fit else "0"
    own_passes = traits.network.fit_passes if traits.network else "0"
    return _method_cost(used, classifier, method, classifier_passes, own_passes)


def _method_cost(
    used: UsedDataset,
    classifier: Run,
    method: ComponentSpec,
    classifier_passes: str,
    own_passes: str,
) -> Cost:
    by_network = {
        network_of(classifier, used): passes("method", classifier_passes, method, used.train),
        own_network_key(method, used): passes("method", own_passes, method, used.train),
    }
    return {network: count for network, count in by_network.items() if count}


def network_of(trained: Run, used: UsedDataset) -> str:
    """Key of the network that a classifier's or substitute's run trains."""
    assert isinstance(trained.spec, ClassifierSpec | SubstituteSpec)
    return network_key(trained.spec.classifier, shape_of(used))


def own_network_key(method: ComponentSpec, used: UsedDataset) -> str:
    """Key of a method's own network: component, sizes and image shape."""
    network = registry.method_traits(method.component).network
    sizes = {name: method.parameters[name] for name in (network.sized_by if network else ())}
    sized = ComponentSpec(component=method.component, version=method.version, parameters=sizes)
    return network_key(sized, shape_of(used))


def network_key(spec: ComponentSpec, shape: tuple[int, ...]) -> str:
    """Key of a network in a cost: architecture, sizes and image shape."""
    given = {key: value for key, value in spec.parameters.items() if value is not None}
    sizes = ",".join(f"{key}={value}" for key, value in sorted(given.items()))
    return f"{spec.component}({sizes})@{'x'.join(map(str, shape))}"


def shape_of(used: UsedDataset) -> tuple[int, ...]:
    """Shape (C, H, W) of the data set's images."""
    declared = registry.dataset_traits(used.name).shape
    return tuple(used.parameters.get("shape", declared))


def float_bytes(used: UsedDataset) -> int:
    """Size of the evaluated images in float32, in bytes."""
    return 4 * math.prod(shape_of(used)) * used.test
