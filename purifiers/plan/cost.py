"""What runs cost, in forward passes of the networks they use."""

from __future__ import annotations

import math

from purifiers.core import registry
from purifiers.core.formula import evaluate
from purifiers.core.spec import ClassifierSpec, ComponentSpec, SubstituteSpec
from purifiers.core.traits import MethodTraits
from purifiers.plan.graph import Cost, Run
from purifiers.plan.scale import UsedDataset


def passes(formula: str, spec: ComponentSpec, images: int = 1) -> float:
    """Value of a cost formula for a component's parameters and the number of training images."""
    return evaluate(formula, {**spec.parameters, "images": images})


def added(*costs: Cost) -> Cost:
    """The sum of several costs."""
    total: dict[str, float] = {}
    for cost in costs:
        for network, count in cost.items():
            total[network] = total.get(network, 0.0) + count
    return total


def times(factor: float, cost: Cost) -> Cost:
    """A cost so many times."""
    return {network: factor * count for network, count in cost.items()}


def method_traits(method: ComponentSpec) -> MethodTraits:
    """The traits of a method."""
    traits: MethodTraits = registry.describe("method", method.component).traits
    return traits


def purify_cost(used: UsedDataset, classifier: Run, method: ComponentSpec) -> Cost:
    """Passes that purify one image: of the classifier, and of the network the method brings."""
    traits = method_traits(method)
    own = traits.network.passes if traits.network else "0"
    return _method_cost(used, classifier, method, traits.passes, own)


def fit_cost(used: UsedDataset, classifier: Run, method: ComponentSpec) -> Cost:
    """Passes that fit a method, per training image."""
    traits = method_traits(method)
    own = traits.network.fit_passes if traits.network else "0"
    return _method_cost(used, classifier, method, traits.fit.passes if traits.fit else "0", own)


def _method_cost(
    used: UsedDataset, classifier: Run, method: ComponentSpec, of_classifier: str, own: str
) -> Cost:
    both = {
        network_of(classifier, used): passes(of_classifier, method, used.train),
        own_network_key(method, used): passes(own, method, used.train),
    }
    return {network: count for network, count in both.items() if count}


def network_of(trained: Run, used: UsedDataset) -> str:
    """The network that a classifier's or a substitute's run trains."""
    assert isinstance(trained.spec, ClassifierSpec | SubstituteSpec)
    return network_key(trained.spec.classifier, shape_of(used))


def own_network_key(method: ComponentSpec, used: UsedDataset) -> str:
    """The network that a method brings: its component, its sizes and the image shape."""
    network = method_traits(method).network
    sizes = {name: method.parameters[name] for name in (network.sized_by if network else ())}
    sized = ComponentSpec(component=method.component, version=method.version, parameters=sizes)
    return network_key(sized, shape_of(used))


def network_key(spec: ComponentSpec, shape: tuple[int, ...]) -> str:
    """What one forward pass is a pass of: architecture, sizes and image shape."""
    sizes = ",".join(f"{key}={value}" for key, value in sorted(spec.parameters.items()))
    return f"{spec.component}({sizes})@{'x'.join(map(str, shape))}"


def shape_of(used: UsedDataset) -> tuple[int, ...]:
    """(C, H, W) of the images."""
    shape: tuple[int, ...] = registry.describe("dataset", used.name).traits.shape
    return shape


def float_bytes(used: UsedDataset) -> int:
    """Size of the evaluated images in float32."""
    return 4 * math.prod(shape_of(used)) * used.test
