"""Plan the runs that make adversarial sets, and the substitutes that transfer attacks use."""

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
    classifier_run,
    data_of,
    fitted_method,
    slug_of,
)
from purifiers.plan.graph import Defended, Graph, Run
from purifiers.plan.resolve import NotImplementedHere, Setting
from purifiers.plan.threats import attacked_methods, eot, is_random, queries_defence

SUBSET_SEED = 0  # chooses the test images of a reduced scale; fixed, so all seeds share them


class PlannedImages(NamedTuple):
    """Images and the processing steps that led to them.

    Attributes:
        images: spec of the images.
        slug_parts: one word per step, for run ids: ``clean`` or the attack, then the methods.
    """

    images: ImagesSpec
    slug_parts: tuple[str, ...]


def attacked_images(graph: Graph, setting: Setting, defence: Defended, seed: int) -> PlannedImages:
    """Plan a cell's images after its attack, or the clean images where the cell has no attack."""
    used = setting.used
    subset = Subset(split="test", n=used.test, seed=SUBSET_SEED)
    clean = ImagesSpec(data=data_of(defence.classifier), subset=subset, run=None)
    if setting.cell.get("attack", "none") == "none":
        return PlannedImages(clean, ("clean",))
    attack = setting.recipe("attack", setting.cell["attack"])
    traits = registry.attack_traits(attack.component)
    if traits.model_free:
        run = _corruption_run(graph, setting, attack, clean, seed)
        slug_parts: tuple[str, ...] = (attack.component,)
    else:
        run, slug_parts = _attack_run(graph, setting, defence, attack, traits, clean, seed)
    images = ImagesSpec(data=clean.data, subset=subset, run=run.id, stage="attack")
    return PlannedImages(images, slug_parts)


def _corruption_run(
    graph: Graph, setting: Setting, attack: ComponentSpec, images: ImagesSpec, seed: int
) -> Run:
    """Plan an attack that queries no model; all classifiers of the data set share the run."""
    spec = AttackSpec(
        images=images, classifier=None, methods=(), gradient="none", attack=attack, seed=seed
    )
    slug = f"{setting.used.name}-{attack.component}-s{seed}"
    size = float_bytes(setting.used)
    return graph.add(spec, slug, group=graph.runs[images.data], size_bytes=size)


def _attack_run(
    graph: Graph,
    setting: Setting,
    defence: Defended,
    attack: ComponentSpec,
    traits: AttackTraits,
    images: ImagesSpec,
    seed: int,
) -> tuple[Run, tuple[str, ...]]:
    """Plan the run that makes an adversarial set; return it with its words for run ids."""
    cell, used = setting.cell, setting.used
    threat = cell.get("threat_model", "oblivious")
    attacked = _attacked_methods(graph, setting, defence, seed) if queries_defence(cell) else ()
    source = cell.get("source") if threat in ("transfer", "black_box") else None
    random = any(is_random(method) for method in attacked)
    lucky_draws = attack.parameters.get("lucky_draws", False)
    if traits.stops_at_first_success and random and not lucky_draws:
        raise NotImplementedHere(
            f"{attack.component} on a random defence: its package counts an image as broken after "
            "one lucky draw and returns it unattacked"
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
    samples = draws.samples if draws else 1
    queries = passes("attack", traits.passes, attack) * samples * used.test
    # a query with its gradient counts three passes; BPDA backpropagates through no method
    share = 1.0 if gradient in ("exact", "second_order", "none") else 1 / 3
    purify_passes = added(*(purify_cost(used, victim, method) for method in attacked))
    cost = added({network_of(victim, used): queries}, times(queries * share, purify_passes))
    slug_parts = [attack.component]
    if attacked:
        chain = "_".join(method.component for method in attacked)
        slug_parts.append(f"{gradient}_{chain}" if gradient != "none" else f"scores_{chain}")
    slug = slug_of(victim, slug_parts, seed)
    return graph.add(spec, slug, cost, victim, float_bytes(used)), tuple(slug_parts)


def _attacked_methods(
    graph: Graph, setting: Setting, defence: Defended, seed: int
) -> tuple[MethodSpec, ...]:
    """The fitted methods that the attack goes through."""
    if "attacked_methods" not in setting.cell:
        return defence.methods
    names = attacked_methods(setting.cell)
    return tuple(fitted_method(graph, setting, name, seed) for name in names)


def _auxiliary(graph: Graph, setting: Setting, seed: int) -> MethodSpec | None:
    name = setting.cell.get("auxiliary")
    return None if name is None else fitted_method(graph, setting, name, seed)


def _source_run(
    graph: Graph, setting: Setting, defence: Defended, source: Mapping[str, Any], seed: int
) -> Run:
    """Plan the source classifier of a transfer attack: another classifier or a substitute.

    Raises:
        UserError: a substitute's seed images would overlap the evaluated images, or another seed
            is requested of weights that depend on none.
    """
    training = setting.recipe("training", source["training"])
    traits = registry.training_traits(training.component)
    if traits.keeps_weights and source.get("seed_offset", 0):
        raise UserError(
            f"{setting.where}: source: training {source['training']!r} has the same weights for "
            "every seed: remove seed_offset or choose another source"
        )
    if not traits.uses_oracle:
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
    for method in methods:
        if registry.method_traits(method.component).batch_dependent:
            raise UserError(
                f"{setting.where}: {method.component} adapts the classifier to each batch of "
                "queries, so no substitute is trained on its answers: choose another source"
            )
    seeds, rounds = training.parameters["seed_images"], training.parameters["rounds"]
    _check_seeds(setting, seeds)
    spec = SubstituteSpec(
        data=data_of(classifier),
        seeds=Subset(split="test", n=seeds, seed=SUBSET_SEED, last=True),
        classifier=substitute,
        training=training,
        oracle=Oracle(classifier=classifier.id, methods=methods),
        seed=seed,
    )
    # the set doubles after each round but the last
    trained, grown = seeds * (2**rounds - 1), seeds * 2 ** (rounds - 1)
    formula = registry.training_traits(training.component).passes
    substitute_passes = passes("training", formula, training) * trained + 3 * grown
    oracle_query = {network_of(classifier, used): 1.0}
    purify_passes = [purify_cost(used, classifier, method) for method in methods]
    network = network_key(substitute, shape_of(used))
    cost = added({network: substitute_passes}, times(grown, added(oracle_query, *purify_passes)))
    chain = [method.component for method in methods]
    slug = slug_of(classifier, [*chain, substitute.component, "substitute"], seed)
    return graph.add(spec, slug, cost, classifier)


def _check_first_success(setting: Setting, transferred: bool, random: bool) -> None:
    """Refuse ``stop: success`` unless the attacked model is the scored one and deterministic."""
    reason = ""
    if transferred:
        reason = "too weak for images that another model or a purifier receives"
    elif random:
        reason = "a later draw of the random defence can undo that success"
    if reason:
        raise UserError(
            f"{setting.where}: attack {setting.cell['attack']!r} stops at its first success: "
            f"{reason}; set stop to never"
        )


def _check_seeds(setting: Setting, seeds: int) -> None:
    """Refuse seed images that overlap the evaluated ones.

    Evaluated images are the first of the shuffled test split, seed images the last.
    """
    used = setting.used
    available = used.available["test"]
    if used.test + seeds > available:
        raise UserError(
            f"{setting.where}: {used.test} evaluated images and {seeds} seed images of the "
            f"substitute exceed the {available} test images of {used.name}; set test to at "
            f"most {available - seeds} in workflow/scales/{setting.scale.name}.yaml, or lower "
            "seed_images"
        )
