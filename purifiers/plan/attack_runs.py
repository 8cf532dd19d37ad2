"""The runs that make adversarial sets, and the substitutes that some are made on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    AttackSpec,
    ComponentSpec,
    ImagesSpec,
    MethodSpec,
    Oracle,
    Subset,
    SubstituteSpec,
)
from purifiers.core.traits import AttackTraits
from purifiers.plan.cost import (
    added,
    float_bytes,
    network_key,
    network_of,
    passes,
    purify_cost,
    shape_of,
    times,
)
from purifiers.plan.fit_runs import (
    Defended,
    classifier_run,
    dataset_run,
    fitted_method,
    slug_of,
)
from purifiers.plan.graph import Graph, Run
from purifiers.plan.resolve import NotImplementedHere, Setting
from purifiers.plan.threats import asks_defence, eot, is_random

SUBSET_SEED = 0  # which test images a reduced scale takes; the same for every seed


class ImageSet(NamedTuple):
    """Images, and what was done to them in words, for ids."""

    images: ImagesSpec
    story: tuple[str, ...]


def attacked_images(graph: Graph, setting: Setting, defence: Defended, seed: int) -> ImageSet:
    """The images after the attack; clean ones where nothing attacks."""
    used = setting.used
    subset = Subset(split="test", n=used.test, seed=SUBSET_SEED)
    clean = ImagesSpec(data=dataset_run(graph, used).id, subset=subset, run=None)
    if setting.cell.get("attack", "none") == "none":
        return ImageSet(clean, ("clean",))
    attack = setting.recipe("attack", setting.cell["attack"])
    traits: AttackTraits = registry.describe("attack", attack.component).traits
    if traits.model_free:
        run = _corruption_run(graph, setting, attack, clean, seed)
        story: tuple[str, ...] = (attack.component,)
    else:
        run, story = _attack_run(graph, setting, defence, attack, traits, clean, seed)
    made = ImagesSpec(data=clean.data, subset=subset, run=run.id, stage="attack")
    return ImageSet(made, story)


def _corruption_run(
    graph: Graph, setting: Setting, attack: ComponentSpec, images: ImagesSpec, seed: int
) -> Run:
    """The run of an attack that queries no model: all classifiers of the data set share it."""
    spec = AttackSpec(
        images=images, classifier=None, methods=(), gradient="none", attack=attack, seed=seed
    )
    slug = f"{setting.used.name}-{attack.component}-s{seed}"
    size = float_bytes(setting.used)
    return graph.add(spec, slug, group=dataset_run(graph, setting.used), size_bytes=size)


def _attack_run(
    graph: Graph,
    setting: Setting,
    defence: Defended,
    attack: ComponentSpec,
    traits: AttackTraits,
    images: ImagesSpec,
    seed: int,
) -> tuple[Run, tuple[str, ...]]:
    """The run that makes the adversarial set, and the words for it in ids."""
    cell, used = setting.cell, setting.used
    threat = cell.get("threat_model", "oblivious")
    attacked = defence.methods if asks_defence(cell) else ()
    source = cell.get("source") if threat in ("transfer", "black_box") else None
    random = any(is_random(method) for method in attacked)
    if traits.stops_at_first_success and random:
        raise NotImplementedHere(
            f"{attack.component} on a random defence, where its package takes one lucky "
            "draw for a broken image and returns it unattacked"
        )
    if attack.parameters.get("stop") == "success":
        _check_first_success(setting, bool(source) or defence.methods != attacked, random)
    victim = defence.classifier
    if source is not None:
        victim = _source_run(graph, setting, defence, source, seed)
    gradient = "none" if threat == "black_box" and source is None else "exact"
    if attacked and threat == "white_box":
        gradient = cell.get("gradient", "exact")
    draws = eot(cell["eot"]) if "eot" in cell and random else None
    precision = setting.scale.setting("attack_precision", "float32")
    spec = AttackSpec(
        images=images,
        classifier=victim.id,
        methods=attacked,
        gradient=gradient,
        attack=attack,
        seed=seed,
        classifier_stage=victim.stage,
        eot=draws,
        auxiliary=_auxiliary(graph, setting, seed),
        precision="float32" if traits.float32_only else precision,
    )
    queries = passes(traits.passes, attack) * (draws.samples if draws else 1) * used.test
    # a query with its gradient counts three passes, and BPDA's gradient leaves the methods out
    share = 1.0 if gradient in ("exact", "second_order", "none") else 1 / 3
    behind = added(*(purify_cost(used, victim, method) for method in attacked))
    cost = added({network_of(victim, used): queries}, times(queries * share, behind))
    story = [attack.component]
    if attacked:
        chain = "_".join(method.component for method in attacked)
        story.append(f"{gradient}_{chain}" if gradient != "none" else f"scores_{chain}")
    slug = slug_of(victim, story, seed)
    return graph.add(spec, slug, cost, victim, float_bytes(used)), tuple(story)


def _auxiliary(graph: Graph, setting: Setting, seed: int) -> MethodSpec | None:
    name = setting.cell.get("auxiliary")
    return None if name is None else fitted_method(graph, setting, name, seed)


def _source_run(
    graph: Graph, setting: Setting, defence: Defended, source: Mapping[str, Any], seed: int
) -> Run:
    """The classifier whose adversarial images are carried over to the one that is scored.

    Raises:
        UserError: a substitute's seed images would be among the evaluated ones.
    """
    training = setting.recipe("training", source["training"])
    if not registry.describe("training", training.component).traits.uses_oracle:
        return classifier_run(graph, setting, seed + source.get("seed_offset", 0), source)
    substitute = setting.recipe("classifier", source["classifier"])
    return _substitute_run(graph, setting, defence, substitute, training, seed)


def _substitute_run(
    graph: Graph,
    setting: Setting,
    defence: Defended,
    substitute: ComponentSpec,
    training: ComponentSpec,
    seed: int,
) -> Run:
    used, (classifier, methods) = setting.used, defence
    seeds, rounds = training.parameters["seed_images"], training.parameters["rounds"]
    _check_seeds(setting, seeds)
    spec = SubstituteSpec(
        data=dataset_run(graph, used).id,
        seeds=Subset(split="test", n=seeds, seed=SUBSET_SEED, last=True),
        classifier=substitute,
        training=training,
        oracle=Oracle(classifier=classifier.id, methods=methods),
        seed=seed,
    )
    # the set doubles after each round but the last
    trained, grown = seeds * (2**rounds - 1), seeds * 2 ** (rounds - 1)
    formula = registry.describe("training", training.component).traits.passes
    own = passes(formula, training) * trained + 3 * grown
    answer = {network_of(classifier, used): 1.0}
    behind = [purify_cost(used, classifier, method) for method in methods]
    network = network_key(substitute, shape_of(used))
    cost = added({network: own}, times(grown, added(answer, *behind)))
    chain = [method.component for method in methods]
    slug = slug_of(classifier, [*chain, substitute.component, "substitute"], seed)
    return graph.add(spec, slug, cost, classifier)


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
    available = registry.describe("dataset", used.name).traits.test
    if available is not None and used.test + seeds > available:
        raise UserError(
            f"{setting.where}: {used.test} evaluated images and {seeds} seed images of the "
            f"substitute are more than the {available} test images of {used.name}; set test to at "
            f"most {available - seeds} in workflow/scales/{setting.scale.name}.yaml, or lower "
            "seed_images"
        )
