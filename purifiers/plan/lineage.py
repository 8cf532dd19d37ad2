"""The runs behind one cell: from its defence to the score of each image."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.traits import AttackTraits
from purifiers.plan.resolve import NotImplementedHere, Setting
from purifiers.plan.runs import Run, added, passes, times
from purifiers.plan.scale import UsedDataset
from purifiers.plan.threats import asks_defence, eot, is_random
from purifiers.plan.trained import (
    MethodRun,
    Trained,
    network_key,
    network_of,
    purify_cost,
    shape_of,
    slug_of,
)

SUBSET_SEED = 0  # which test images a reduced scale takes; the same for every seed


class Made(NamedTuple):
    """Images as a stage is told of them, the run that made them, and the words for it in ids."""

    images: dict[str, Any]
    made_by: Run
    story: list[str]


class Lineage(Trained):
    """The chain of one cell: its images attacked, purified and scored."""

    def score(self, setting: Setting, seed: int) -> Run:
        """The run that scores a cell with one seed, and all it is made from.

        Raises:
            UserError: an early-stopped adversarial set would be purified afterwards.
        """
        classifier, methods = self._defence(setting, seed)
        attacked = self._attacked(setting, classifier, methods, seed)
        made = self._purified(setting, classifier, methods, attacked, seed)
        attack = attacked.made_by.spec.get("attack")
        spec = {"images": made.images, "classifier": classifier.id, "attack": attack}
        inputs, story = [classifier.inputs[0], classifier, made.made_by], made.story
        if "detector" in setting.cell:
            detector, fitted = self._method(setting, setting.cell["detector"], seed)
            spec["detector"] = detector
            inputs += [fitted] if fitted else []
            story = [*story, f"detected_by_{detector['component']}"]
        slug = slug_of(classifier, story, seed)
        cost = {network_of(classifier, setting.used): float(setting.used.test)}
        return self._keep("score", slug, spec, tuple(inputs), cost, classifier)

    def _defence(self, setting: Setting, seed: int) -> tuple[Run, list[MethodRun]]:
        """The run that trains the cell's classifier, and the methods before it."""
        classifier = self._classifier(setting, seed, setting.cell)
        names = setting.cell.get("methods", ())
        return classifier, [self._method(setting, name, seed) for name in names]

    def _attacked(
        self, setting: Setting, classifier: Run, methods: list[MethodRun], seed: int
    ) -> Made:
        """The images as the attack leaves them; clean ones where nothing attacks."""
        data = classifier.inputs[0]
        subset = {"split": "test", "n": setting.used.test, "seed": SUBSET_SEED}
        images: dict[str, Any] = {"data": data.id, "subset": subset, "run": None}
        if setting.cell.get("attack", "none") == "none":
            return Made(images, data, ["clean"])
        made_by, story = self._attack(setting, classifier, methods, images, seed)
        return Made({**images, "run": made_by.id, "stage": "attack"}, made_by, story)

    def _purified(
        self, setting: Setting, classifier: Run, methods: list[MethodRun], made: Made, seed: int
    ) -> Made:
        """The images behind the methods, first to last."""
        images, made_by, story = made
        for method in methods:
            story = [*story, method[0]["component"]]
            made_by = self._purify(setting, classifier, method, made_by, images, story, seed)
            images = {**images, "run": made_by.id, "stage": "purify"}
        return Made(images, made_by, story)

    def _attack(
        self,
        setting: Setting,
        classifier: Run,
        methods: list[MethodRun],
        images: dict[str, Any],
        seed: int,
    ) -> tuple[Run, list[str]]:
        """The run that makes the adversarial set, and the words for it in ids."""
        cell = setting.cell
        attack = setting.recipe("attack", cell["attack"])
        traits: AttackTraits = registry.describe("attack", attack["component"]).traits
        if traits.model_free:
            return self._corruption(setting, attack, classifier.inputs[0], images, seed)
        threat = cell.get("threat_model", "oblivious")
        attacked = methods if asks_defence(cell) else []
        source = cell.get("source") if threat in ("transfer", "black_box") else None
        random = any(is_random(method) for method, _ in attacked)
        if traits.stops_at_first_success and random:
            raise NotImplementedHere(
                f"{attack['component']} on a random defence, where its package takes one lucky "
                "draw for a broken image and returns it unattacked"
            )
        if attack["parameters"].get("stop") == "success":
            _check_first_success(setting, bool(source) or methods != attacked, random)
        victim = classifier
        if source is not None:
            victim = self._source(setting, classifier, methods, source, seed)
        gradient = "none" if threat == "black_box" and source is None else "exact"
        if attacked and threat == "white_box":
            gradient = cell.get("gradient", "exact")
        spec: dict[str, Any] = {
            "images": images,
            "classifier": victim.id,
            "methods": [method for method, _ in attacked],
            "gradient": gradient,
            "attack": attack,
            "seed": seed,
        }
        if victim.stage != "classifier":
            spec["classifier_stage"] = victim.stage
        fitted = [run for _, run in attacked if run]
        draws = 1
        if "eot" in cell and random:
            spec["eot"] = eot(cell["eot"])
            draws = spec["eot"]["samples"]
        if "auxiliary" in cell:
            spec["auxiliary"], run = self._method(setting, cell["auxiliary"], seed)
            fitted += [run] if run else []
        precision = setting.scale.setting("attack_precision", "float32")
        if precision != "float32" and not traits.float32_only:
            spec["precision"] = precision
        asked = passes(traits.passes, attack) * draws * setting.used.test
        # a query with its gradient counts three passes, and BPDA's gradient leaves the methods out
        share = 1.0 if gradient in ("exact", "second_order", "none") else 1 / 3
        behind = [purify_cost(setting.used, victim, method) for method, _ in attacked]
        cost = added(
            {network_of(victim, setting.used): asked}, times(asked * share, added(*behind))
        )
        story = [attack["component"]]
        if attacked:
            chain = "_".join(method["component"] for method, _ in attacked)
            story.append(f"{gradient}_{chain}" if gradient != "none" else f"scores_{chain}")
        inputs = (classifier.inputs[0], victim, *fitted)
        slug = slug_of(victim, story, seed)
        size = _float_bytes(setting.used)
        return self._keep("attack", slug, spec, inputs, cost, victim, size), story

    def _corruption(
        self,
        setting: Setting,
        attack: dict[str, Any],
        data: Run,
        images: dict[str, Any],
        seed: int,
    ) -> tuple[Run, list[str]]:
        """The run of an attack that knows no model: every classifier of the data set shares it."""
        spec: dict[str, Any] = {
            "images": images,
            "classifier": None,
            "methods": [],
            "gradient": "none",
            "attack": attack,
            "seed": seed,
        }
        slug = f"{setting.used.name}-{attack['component']}-s{seed}"
        size = _float_bytes(setting.used)
        return self._keep("attack", slug, spec, (data,), {}, data, size), [attack["component"]]

    def _source(
        self,
        setting: Setting,
        classifier: Run,
        methods: list[MethodRun],
        source: dict[str, Any],
        seed: int,
    ) -> Run:
        """The classifier whose adversarial images are carried over to the one that is scored.

        Raises:
            UserError: a substitute's seed images would be among the evaluated ones.
        """
        recipe = setting.recipe("training", source["training"])
        described = registry.describe("training", recipe["component"])
        if not described.traits.uses_oracle:
            return self._classifier(setting, seed + source.get("seed_offset", 0), source)
        substitute = setting.recipe("classifier", source["classifier"])
        seeds, rounds = recipe["parameters"]["seed_images"], recipe["parameters"]["rounds"]
        _check_seeds(setting, seeds)
        spec = {
            "data": classifier.spec["data"],
            "seeds": {"split": "test", "n": seeds, "seed": SUBSET_SEED, "last": True},
            "classifier": substitute,
            "training": recipe,
            "oracle": {"classifier": classifier.id, "methods": [method for method, _ in methods]},
            "seed": seed,
        }
        # the set doubles after each round but the last
        trained, grown = seeds * (2**rounds - 1), seeds * 2 ** (rounds - 1)
        own = passes(described.traits.passes, recipe) * trained + 3 * grown
        answer = {network_of(classifier, setting.used): 1.0}
        asked = [purify_cost(setting.used, classifier, method) for method, _ in methods]
        network = network_key(substitute, shape_of(setting.used))
        cost = added({network: own}, times(grown, added(answer, *asked)))
        chain = [method["component"] for method, _ in methods]
        slug = slug_of(classifier, [*chain, substitute["component"], "substitute"], seed)
        inputs = (*classifier.inputs, classifier, *(run for _, run in methods if run))
        return self._keep("substitute", slug, spec, inputs, cost, classifier)

    def _purify(
        self,
        setting: Setting,
        classifier: Run,
        method: MethodRun,
        made_by: Run,
        images: dict[str, Any],
        story: list[str],
        seed: int,
    ) -> Run:
        declared, fitted = method
        spec = {"images": images, "classifier": classifier.id, "method": declared, "seed": seed}
        cost = times(setting.used.test, purify_cost(setting.used, classifier, declared))
        inputs = (classifier.inputs[0], classifier, made_by, *([fitted] if fitted else []))
        slug = slug_of(classifier, story, seed)
        size = _float_bytes(setting.used)
        return self._keep("purify", slug, spec, inputs, cost, classifier, size)


def _check_first_success(setting: Setting, elsewhere: bool, random: bool) -> None:
    """The first success must count where the images are scored, and at every draw."""
    reason = ""
    if elsewhere:
        reason = "far too weak for images that another model or a purifier sees"
    elif random:
        reason = "a success at one draw of a random defence, which another draw undoes"
    if reason:
        raise UserError(
            f"{setting.where}: attack {setting.cell['attack']!r} stops at its first success: "
            f"{reason}; set stop to never"
        )


def _check_seeds(setting: Setting, seeds: int) -> None:
    """Evaluated images are the first of the shuffled test split, seed images the last."""
    used = setting.used
    there = registry.describe("dataset", used.name).traits.test
    if used.test + seeds > there:
        raise UserError(
            f"{setting.where}: {used.test} evaluated images and {seeds} seed images of the "
            f"substitute are more than the {there} test images of {used.name}; set test to at most "
            f"{there - seeds} in workflow/scales/{setting.scale.name}.yaml, or lower seed_images"
        )


def _float_bytes(used: UsedDataset) -> int:
    return 4 * math.prod(shape_of(used)) * used.test
