"""The runs behind one cell: from a data set to the score of each image."""

from __future__ import annotations

import math
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.plan.resolve import Setting
from purifiers.plan.runs import Run, component, make_run, passes
from purifiers.plan.scale import UsedDataset

SUBSET_SEED = 0  # which test images a reduced scale takes; the same for every seed


class Lineage:
    """Makes runs; what two cells both need is made once.

    Attributes:
        runs: every run made so far, by id.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}

    def score(self, setting: Setting, seed: int) -> Run:
        """The run that scores a cell with one seed, and all it is made from.

        Raises:
            UserError: an early-stopped adversarial set would be purified afterwards.
        """
        classifier = self._classifier(setting, seed)
        methods = [self._method(setting, name, seed) for name in setting.cell.get("methods", ())]
        made_by = classifier.inputs[0]
        subset = {"split": "test", "n": setting.used.test, "seed": SUBSET_SEED}
        images: dict[str, Any] = {"data": made_by.id, "subset": subset, "run": None}
        story, attack = ["clean"], None
        if setting.cell.get("attack", "none") != "none":
            made_by, story = self._attack(setting, classifier, methods, images, seed)
            attack = made_by.spec["attack"]
            images = {**images, "run": made_by.id, "stage": "attack"}
        for method in methods:
            story = [*story, method[0]["component"]]
            made_by = self._purify(setting, classifier, method, made_by, images, story, seed)
            images = {**images, "run": made_by.id, "stage": "purify"}
        spec = {"images": images, "classifier": classifier.id, "attack": attack}
        inputs = (classifier.inputs[0], classifier, made_by)
        slug = _slug(classifier, story, seed)
        return self._keep("score", slug, spec, inputs, setting.used.test, classifier)

    def _keep(
        self,
        stage: str,
        slug: str,
        spec: dict[str, Any],
        inputs: tuple[Run, ...],
        cost: float,
        classifier: Run,
        size_bytes: int = 0,
    ) -> Run:
        unique = tuple(dict.fromkeys(inputs))
        lineage, network = classifier.lineage, classifier.network
        run = make_run(stage, slug, spec, unique, lineage, cost, network, size_bytes)
        return self.runs.setdefault(run.id, run)

    def _dataset(self, used: UsedDataset) -> Run:
        spec = {"dataset": component("dataset", used.name, used.parameters)}
        constants = registry.describe("dataset", used.name).constants
        pixels = math.prod(constants["SHAPE"]) * (constants["TRAIN"] + constants["TEST"])
        run = make_run("dataset", used.name, spec, size_bytes=pixels)
        return self.runs.setdefault(run.id, run)

    def _classifier(self, setting: Setting, seed: int) -> Run:
        data = self._dataset(setting.used)
        classifier = setting.recipe("classifier", setting.cell["classifier"])
        training = setting.recipe("training", setting.cell["training"])
        spec = {
            "data": data.id,
            "train": setting.used.train,
            "classifier": classifier,
            "training": training,
            "seed": seed,
        }
        network = network_key(classifier, _shape(setting.used))
        cost = passes("training", training, "FIT_PASSES") * setting.used.train
        slug = f"{setting.used.name}-{classifier['component']}-{training['component']}-s{seed}"
        run = make_run("classifier", slug, spec, (data,), passes=cost, network=network)
        return self.runs.setdefault(run.id, run)

    def _method(self, setting: Setting, name: str, seed: int) -> tuple[dict[str, Any], Run | None]:
        """A method's spec, and the run that fits it if it has to be fitted."""
        method = setting.recipe("method", name)
        constants = registry.describe("method", method["component"]).constants
        if "FIT_PASSES" not in constants:
            return {**method, "run": None}, None
        classifier = self._classifier(setting, seed)
        spec = {
            "data": classifier.spec["data"],
            "train": setting.used.train,
            "classifier": classifier.id,
            "method": method,
            "seed": seed,
        }
        cost = passes("method", method, "FIT_PASSES") * setting.used.train
        slug = _slug(classifier, [method["component"]], seed)
        inputs = (*classifier.inputs, classifier)
        run = self._keep("purifier", slug, spec, inputs, cost, classifier)
        return {**method, "run": run.id}, run

    def _attack(
        self,
        setting: Setting,
        classifier: Run,
        methods: list[tuple[dict[str, Any], Run | None]],
        images: dict[str, Any],
        seed: int,
    ) -> tuple[Run, list[str]]:
        """The run that makes the adversarial set, and the words for it in ids."""
        attack = setting.recipe("attack", setting.cell["attack"])
        white_box = setting.cell.get("threat_model", "oblivious") == "white_box"
        attacked = methods if white_box else []
        if methods and not attacked and attack["parameters"].get("stop") == "success":
            raise UserError(
                f"{setting.where}: attack {setting.cell['attack']!r} stops at its first success: "
                "far too weak for images that are purified afterwards; set stop to never"
            )
        spec = {
            "images": images,
            "classifier": classifier.id,
            "methods": [method for method, _ in attacked],
            "gradient": setting.cell.get("gradient", "exact") if attacked else "exact",
            "attack": attack,
            "seed": seed,
        }
        per_query = 1 + sum(passes("method", method, "PASSES") for method, _ in attacked) / 3
        cost = passes("attack", attack, "PASSES") * per_query * setting.used.test
        story = [attack["component"]]
        if attacked:
            chain = "_".join(method["component"] for method, _ in attacked)
            story.append(f"{spec['gradient']}_{chain}")
        inputs = (classifier.inputs[0], classifier, *(run for _, run in attacked if run))
        slug = _slug(classifier, story, seed)
        size = _float_bytes(setting.used)
        return self._keep("attack", slug, spec, inputs, cost, classifier, size), story

    def _purify(
        self,
        setting: Setting,
        classifier: Run,
        method: tuple[dict[str, Any], Run | None],
        made_by: Run,
        images: dict[str, Any],
        story: list[str],
        seed: int,
    ) -> Run:
        declared, fitted = method
        spec = {"images": images, "classifier": classifier.id, "method": declared, "seed": seed}
        cost = passes("method", declared, "PASSES") * setting.used.test
        inputs = (classifier.inputs[0], classifier, made_by, *([fitted] if fitted else []))
        slug = _slug(classifier, story, seed)
        size = _float_bytes(setting.used)
        return self._keep("purify", slug, spec, inputs, cost, classifier, size)


def network_key(classifier: dict[str, Any], shape: tuple[int, ...]) -> str:
    """What one forward pass is a pass of: architecture, sizes and image shape."""
    sizes = ",".join(f"{key}={value}" for key, value in sorted(classifier["parameters"].items()))
    return f"{classifier['component']}({sizes})@{'x'.join(map(str, shape))}"


def _shape(used: UsedDataset) -> tuple[int, ...]:
    return registry.describe("dataset", used.name).constants["SHAPE"]


def _float_bytes(used: UsedDataset) -> int:
    return 4 * math.prod(_shape(used)) * used.test


def _slug(classifier: Run, story: list[str], seed: int) -> str:
    """Data set, architecture and training of the classifier, then what was done, then the seed."""
    return "-".join([classifier.id.rsplit("-", 2)[0], *story, f"s{seed}"])
