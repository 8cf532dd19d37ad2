"""The runs that train: a data set's classifiers, and the purifiers fitted to them."""

from __future__ import annotations

import math
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.traits import DatasetTraits, MethodTraits
from purifiers.plan.chains import check_method
from purifiers.plan.resolve import Setting
from purifiers.plan.runs import Cost, Run, added, component, make_run, passes, times
from purifiers.plan.scale import UsedDataset

MethodRun = tuple[dict[str, Any], Run | None]
"""A method's spec, and the run that fits it if it has to be fitted."""


class Trained:
    """Makes runs; what two cells both need is made once.

    Attributes:
        runs: every run made so far, by id.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}

    def _keep(
        self,
        stage: str,
        slug: str,
        spec: dict[str, Any],
        inputs: tuple[Run, ...],
        cost: Cost,
        behind: Run,
        size_bytes: int = 0,
    ) -> Run:
        """A run of the lineage of what is behind it: a classifier, or a data set."""
        unique = tuple(dict.fromkeys(inputs))
        run = make_run(stage, slug, spec, unique, behind.lineage, cost, size_bytes)
        return self.runs.setdefault(run.id, run)

    def _dataset(self, used: UsedDataset) -> Run:
        spec = {"dataset": component("dataset", used.name, used.parameters)}
        traits: DatasetTraits = registry.describe("dataset", used.name).traits
        pixels = math.prod(traits.shape) * ((traits.train or 0) + (traits.test or 0))
        run = make_run("dataset", used.name, spec, size_bytes=pixels)
        return self.runs.setdefault(run.id, run)

    def _classifier(self, setting: Setting, seed: int, names: dict[str, Any]) -> Run:
        """The run that trains a classifier; ``names`` says which, and with which recipe."""
        data = self._dataset(setting.used)
        classifier = setting.recipe("classifier", names["classifier"])
        training = setting.recipe("training", names["training"])
        spec = {
            "data": data.id,
            "train": setting.used.train,
            "classifier": classifier,
            "training": training,
            "seed": seed,
        }
        formula = registry.describe("training", training["component"]).traits.passes
        cost = passes(formula, training) * setting.used.train
        slug = f"{setting.used.name}-{classifier['component']}-{training['component']}-s{seed}"
        network = network_key(classifier, shape_of(setting.used))
        run = make_run("classifier", slug, spec, (data,), cost={network: cost})
        return self.runs.setdefault(run.id, run)

    def _method(self, setting: Setting, name: str, seed: int) -> MethodRun:
        """A method's spec, and the run that fits it if it has to be fitted.

        Raises:
            UserError: it makes no sense there, or is to be fitted on other classifiers than the one
                it protects, which it listens to.
        """
        method = setting.recipe("method", name)
        check_method(setting, name, method, shape_of(setting.used))
        fit = method_traits(method).fit
        if fit is None:
            return {**method, "run": None}, None
        cell = setting.cell
        names = cell.get("fit_classifiers") or [cell["classifier"]]
        if names != [cell["classifier"]] and not fit.several_classifiers:
            raise UserError(
                f"{setting.where}: method {name!r} listens to the classifier it protects and "
                f"cannot be fitted on {', '.join(names)}: leave fit_classifiers out"
            )
        classifiers = [self._classifier(setting, seed, {**cell, "classifier": n}) for n in names]
        first, *others = classifiers
        spec = {
            "data": first.spec["data"],
            "train": setting.used.train,
            "classifier": first.id if fit.uses_classifier else None,
            "method": _as_fitted(method, fit.inference_only),
            "seed": seed,
        }
        if others:
            spec["ensemble"] = [run.id for run in others]
        each = [fit_cost(setting.used, run, method) for run in classifiers]
        cost = times(setting.used.train, added(*each))
        beside = [run.spec["classifier"]["component"] for run in others]
        slug = slug_of(first, ["_and_".join([method["component"], *beside])], seed)
        inputs = (*first.inputs, *classifiers)
        if not fit.uses_classifier:
            slug, inputs = f"{setting.used.name}-{method['component']}-s{seed}", first.inputs
        run = self._keep("purifier", slug, spec, inputs, cost, first)
        return {**method, "run": run.id}, run


def method_traits(method: dict[str, Any]) -> MethodTraits:
    """The traits of a method, given its spec."""
    traits: MethodTraits = registry.describe("method", method["component"]).traits
    return traits


def purify_cost(used: UsedDataset, classifier: Run, method: dict[str, Any]) -> Cost:
    """Passes that purify one image: of the classifier, and of the network the method brings."""
    traits = method_traits(method)
    own = traits.network.passes if traits.network else "0"
    return _method_cost(used, classifier, method, traits.passes, own)


def fit_cost(used: UsedDataset, classifier: Run, method: dict[str, Any]) -> Cost:
    """Passes that fit a method, per training image."""
    traits = method_traits(method)
    own = traits.network.fit_passes if traits.network else "0"
    return _method_cost(used, classifier, method, traits.fit.passes if traits.fit else "0", own)


def _method_cost(
    used: UsedDataset, classifier: Run, method: dict[str, Any], classifier_passes: str, own: str
) -> Cost:
    both = {
        network_of(classifier, used): passes(classifier_passes, method, used.train),
        own_network_key(method, used): passes(own, method, used.train),
    }
    return {network: count for network, count in both.items() if count}


def network_of(trained: Run, used: UsedDataset) -> str:
    """The network that a classifier run, or a substitute's, trains."""
    return network_key(trained.spec["classifier"], shape_of(used))


def own_network_key(method: dict[str, Any], used: UsedDataset) -> str:
    """The network that a method brings: its component, its sizes and the image shape."""
    network = method_traits(method).network
    sizes = network.sized_by if network else ()
    kept = {name: method["parameters"][name] for name in sizes}
    return network_key({**method, "parameters": kept}, shape_of(used))


def _as_fitted(method: dict[str, Any], inference_only: tuple[str, ...]) -> dict[str, Any]:
    """A method's spec without what matters to its purification alone: one fit serves all values."""
    kept = {
        name: value for name, value in method["parameters"].items() if name not in inference_only
    }
    return {**method, "parameters": kept}


def network_key(classifier: dict[str, Any], shape: tuple[int, ...]) -> str:
    """What one forward pass is a pass of: architecture, sizes and image shape."""
    sizes = ",".join(f"{key}={value}" for key, value in sorted(classifier["parameters"].items()))
    return f"{classifier['component']}({sizes})@{'x'.join(map(str, shape))}"


def shape_of(used: UsedDataset) -> tuple[int, ...]:
    """(C, H, W) of the images."""
    shape: tuple[int, ...] = registry.describe("dataset", used.name).traits.shape
    return shape


def slug_of(classifier: Run, story: list[str], seed: int) -> str:
    """Data set, architecture and training of the classifier, then what was done, then the seed."""
    return "-".join([classifier.id.rsplit("-", 2)[0], *story, f"s{seed}"])
