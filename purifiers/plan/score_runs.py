"""Plan the runs that measure a cell: accuracy, mutual information, score norm or time."""

from __future__ import annotations

from collections.abc import Callable

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    AttackSpec,
    ImagesSpec,
    InformationSpec,
    MethodSpec,
    NormSpec,
    PredictSpec,
    PurifySpec,
    ScoreSpec,
    Smoothing,
    SmoothSpec,
    TimeSpec,
    Timing,
    TraceSpec,
)
from purifiers.core.votes import fewest_for_certificate, fewest_for_prediction
from purifiers.plan.attack_runs import PlannedImages, attacked_images
from purifiers.plan.cost import added, float_bytes, network_of, own_network_key, purify_cost, times
from purifiers.plan.fit_runs import defended, fitted_method, slug_of
from purifiers.plan.graph import Defended, Graph, Run
from purifiers.plan.resolve import Setting
from purifiers.plan.threats import is_random

ESTIMATOR_VERSION = 1
"""Raised when a change of :mod:`purifiers.core.information` changes its estimates."""

SMOOTHING = {"selection": 100, "estimation": 100_000, "alpha": 0.001}
"""Votes per image and error probability of Cohen et al. 2019, section 4."""

DRAWS_PER_RUN = 5
"""Draws that one run classifies, unless the scale limits cells to fewer: our choice. The tables of
ADP combine 10 (Yoon et al. 2021)."""

TIMING = Timing(images=8, batches=(8, 32, 128, 512), limit_seconds=600)
"""Default timing, which a scale's ``timing`` may change: the number of images timed one by one, the
larger batch sizes to try, and the time limit in seconds. Our choice; Table 2 of the AID-Purifier
paper gives batch size one only."""


def score_run(graph: Graph, setting: Setting, seed: int) -> Run:
    """Plan the run that scores a cell under one seed.

    Raises:
        UserError: the attack stops at its first success, but its images would be purified
            afterwards; the cell combines draws or steps that it cannot combine.
    """
    defence = defended(graph, setting, seed)
    attacked = attacked_images(graph, setting, defence, seed)
    draws, states = _draws(setting, defence), _states(setting, defence)
    predictions: tuple[str, ...] = ()
    combine_draws = ""
    if draws * states > 1:
        images, slug_parts = attacked
        predictions = _predictions(graph, setting, defence, attacked, seed, draws, states)
        combine_draws = setting.cell.get("combine_draws", "softmax")
        names = (method.component for method in defence.methods)
        of_steps = ("all_steps",) if states > 1 else ()
        slug_parts = (*slug_parts, *names, f"{combine_draws}_of_{draws}", *of_steps)
    else:
        images, slug_parts = _purified_images(graph, setting, defence, attacked, seed)
    detector = None
    if "detector" in setting.cell:
        detector = fitted_method(graph, setting, setting.cell["detector"], seed)
        slug_parts = (*slug_parts, f"detected_by_{detector.component}")
    attack = None
    if attacked.images.run is not None:
        attack_spec = graph.runs[attacked.images.run].spec
        assert isinstance(attack_spec, AttackSpec)
        attack = attack_spec.attack
    classifier = defence.classifier
    restorers = () if predictions else tuple(m for m in defence.methods if _restores(m))
    spec = ScoreSpec(
        images=images,
        classifier=classifier.id,
        attack=attack,
        detector=detector,
        restorers=restorers,
        predictions=predictions,
        draws=draws,
        combine_draws=combine_draws,
        all_steps=states > 1,
    )
    cost = {network_of(classifier, setting.used): float(setting.used.test)}
    return graph.add(spec, slug_of(classifier, slug_parts, seed), cost, classifier)


def _draws(setting: Setting, defence: Defended) -> int:
    """Number of random draws that the cell's prediction combines; 1 if no method is random.

    Raises:
        UserError: several draws for a metric that a single purified image decides.
    """
    random = any(is_random(method) for method in defence.methods)
    draws = int(setting.cell.get("draws", 1)) if random else 1
    if draws > 1 and setting.cell.get("metric", "accuracy") != "accuracy":
        raise UserError(
            f"{setting.where}: metric {setting.cell['metric']} needs a single purified image, but "
            f"the cell combines {draws} draws: set `draws: 1`"
        )
    return draws


def _states(setting: Setting, defence: Defended) -> int:
    """Number of images of each draw that the cell's prediction combines.

    Raises:
        UserError: ``all_steps`` with another number of methods than one, with a method that has no
            steps, or for a metric that a single purified image decides.
    """
    if not setting.cell.get("all_steps", False):
        return 1
    method = _only_method(setting, defence, "all_steps")
    states = registry.method_traits(method.component).states_under(method.parameters)
    if states == 1:
        raise UserError(
            f"{setting.where}: all_steps is true, but {method.component} has no steps to classify: "
            "remove all_steps or choose a method such as adp"
        )
    if (metric := setting.cell.get("metric", "accuracy")) != "accuracy":
        raise UserError(
            f"{setting.where}: metric {metric} needs a single purified image, but the cell "
            "combines all steps: remove all_steps"
        )
    return states


def _predictions(
    graph: Graph,
    setting: Setting,
    defence: Defended,
    attacked: PlannedImages,
    seed: int,
    draws: int,
    states: int,
) -> tuple[str, ...]:
    """Plan the runs that classify several draws, ``DRAWS_PER_RUN`` each; return their ids.

    Cells with other numbers of draws share the runs.
    """
    classifier, used = defence.classifier, setting.used
    limits = setting.scale.limits(setting.paper.id)
    per_run = min(DRAWS_PER_RUN, limits.get("draws", DRAWS_PER_RUN))
    per_image = added(*(purify_cost(used, classifier, method) for method in defence.methods))
    names = (method.component for method in defence.methods)
    slug = slug_of(classifier, [*attacked.slug_parts, *names], seed)
    classified = {network_of(classifier, used): float(states)}
    cost = times(used.test * per_run, added(per_image, classified))
    runs = []
    for first in range(0, draws, per_run):
        spec = PredictSpec(
            images=attacked.images,
            classifier=classifier.id,
            methods=defence.methods,
            first_draw=first,
            draws=per_run,
            seed=seed,
            all_steps=states > 1,
        )
        # an image has at least about as many pixels as its draws have logits
        runs.append(graph.add(spec, slug, cost, classifier, float_bytes(used)).id)
    return tuple(runs)


def _restores(method: MethodSpec) -> bool:
    return registry.method_traits(method.component).is_restoring(method.parameters)


def information_run(graph: Graph, setting: Setting, seed: int) -> Run:
    """Plan the run that estimates the mutual information of two layers on a cell's images.

    Raises:
        UserError: the paper declares no estimator.
    """
    declared = setting.paper.declared.get("estimator")
    if declared is None:
        raise UserError(
            f"{setting.where}: mutual_information needs an `estimator` in "
            f"{setting.paper.folder / 'paper.yaml'}: add one"
        )
    defence = defended(graph, setting, seed)
    attacked = attacked_images(graph, setting, defence, seed)
    images, slug_parts = _purified_images(graph, setting, defence, attacked, seed)
    classifier, budget = defence.classifier, setting.scale.setting("estimator", {})
    spec = InformationSpec(
        images=images,
        classifier=classifier.id,
        estimator={"version": ESTIMATOR_VERSION, **declared, **budget},
        seed=seed,
    )
    cost = {network_of(classifier, setting.used): float(setting.used.test)}
    return graph.add(spec, slug_of(classifier, slug_parts, seed), cost, classifier)


def trace_run(graph: Graph, setting: Setting, seed: int) -> Run:
    """Plan the run that traces a cell's images through its method.

    Raises:
        UserError: the cell does not have exactly one method.
    """
    defence = defended(graph, setting, seed)
    method = _only_method(setting, defence)
    attacked = attacked_images(graph, setting, defence, seed)
    classifier, used = defence.classifier, setting.used
    spec = TraceSpec(images=attacked.images, classifier=classifier.id, method=method, seed=seed)
    words = (*attacked.slug_parts, method.component, "traced")
    cost = times(used.test, purify_cost(used, classifier, method))
    return graph.add(spec, slug_of(classifier, words, seed), cost, classifier)


def _only_method(setting: Setting, defence: Defended, needed_by: str = "") -> MethodSpec:
    """The single method of a cell; the cell's metric needs it, unless ``needed_by`` is given."""
    if len(defence.methods) != 1:
        needed_by = needed_by or f"metric {setting.cell['metric']}"
        raise UserError(
            f"{setting.where}: {needed_by} needs exactly one method, not "
            f"{len(defence.methods)}: correct `methods`"
        )
    return defence.methods[0]


def norm_run(graph: Graph, setting: Setting, seed: int) -> Run:
    """Plan the run that measures the score's norm at a cell's images.

    Raises:
        UserError: the cell does not have exactly one method, or the method has learned no score.
    """
    defence = defended(graph, setting, seed)
    method = _only_method(setting, defence)
    if "score" not in registry.method_traits(method.component).provides:
        raise UserError(
            f"{setting.where}: metric {setting.cell['metric']} needs a method with a learned "
            f"score such as adp, not {method.component}: correct `methods`"
        )
    attacked = attacked_images(graph, setting, defence, seed)
    classifier, used = defence.classifier, setting.used
    purified = setting.cell["metric"] == "purified_score_norm"
    spec = NormSpec(
        images=attacked.images,
        classifier=classifier.id,
        method=method,
        purified=purified,
        seed=seed,
    )
    words = (*attacked.slug_parts, method.component, *(("purified",) if purified else ()))
    cost = {own_network_key(method, used): used.test * (3.0 if purified else 1.0)}
    return graph.add(spec, slug_of(classifier, words, seed), cost, classifier)


def smooth_run(graph: Graph, setting: Setting, seed: int) -> Run:
    """Plan the run that predicts and certifies by randomised smoothing.

    Raises:
        UserError: the cell has no ``smoothing``, too few votes to certify or predict anything, or a
            method that adapts to its batches.
    """
    metric = setting.cell["metric"]
    if "smoothing" not in setting.cell:
        raise UserError(
            f"{setting.where}: metric {metric} needs the noise: add `smoothing: {{sigma: 0.25}}`"
        )
    defence = defended(graph, setting, seed)
    for method in defence.methods:
        if registry.method_traits(method.component).batch_dependent:
            raise UserError(
                f"{setting.where}: {method.component} adapts the classifier to each batch, but "
                f"metric {metric} needs votes of one fixed classifier: correct `methods`"
            )
    smoothing = Smoothing.from_json({**SMOOTHING, **setting.cell["smoothing"]}, setting.where)
    fewest = max(fewest_for_certificate(smoothing.alpha), fewest_for_prediction(smoothing.alpha))
    if smoothing.estimation < fewest:
        raise UserError(
            f"{setting.where}: {smoothing.estimation} votes cannot certify and predict at alpha "
            f"{smoothing.alpha:g}, even if all agree: set `estimation` to at least {fewest}"
        )
    attacked = attacked_images(graph, setting, defence, seed)
    classifier, used = defence.classifier, setting.used
    spec = SmoothSpec(
        images=attacked.images,
        classifier=classifier.id,
        methods=defence.methods,
        smoothing=smoothing,
        seed=seed,
    )
    per_vote = added(*(purify_cost(used, classifier, method) for method in defence.methods))
    votes = smoothing.selection + smoothing.estimation
    cost = times(used.test * votes, added(per_vote, {network_of(classifier, used): 1.0}))
    words = (*attacked.slug_parts, *(method.component for method in defence.methods), "smoothed")
    return graph.add(spec, slug_of(classifier, words, seed), cost, classifier)


def time_run(graph: Graph, setting: Setting, seed: int) -> Run:
    """Plan the run that times a cell's methods.

    The training time is read from the runs that fitted the methods. The predicted cost includes
    every batch size that may be tried.

    Raises:
        UserError: the cell has no method.
    """
    defence, used = defended(graph, setting, seed), setting.used
    classifier, methods = defence
    if not methods:
        raise UserError(
            f"{setting.where}: no methods to time: add `methods` or choose another metric"
        )
    images, slug_parts = attacked_images(graph, setting, defence, seed)
    changes = setting.scale.setting("timing", {})
    timing = Timing.from_json(
        {**TIMING.to_json(), **changes}, f"scale {setting.scale.name}: timing"
    )
    spec = TimeSpec(
        images=images, classifier=classifier.id, methods=methods, timing=timing, seed=seed
    )
    batch_sizes = [size for size in timing.batches if size <= used.test]
    cost_per_image = added(*(purify_cost(used, classifier, method) for method in methods))
    cost = times(1 + timing.images + sum(batch_sizes), cost_per_image)
    slug = slug_of(classifier, [*slug_parts, *(method.component for method in methods)], seed)
    return graph.add(spec, slug, cost, classifier)


def _purified_images(
    graph: Graph, setting: Setting, defence: Defended, attacked: PlannedImages, seed: int
) -> PlannedImages:
    """Plan the runs that purify images, one per method, first to last."""
    images, slug_parts = attacked
    classifier, used = defence.classifier, setting.used
    for method in defence.methods:
        slug_parts = (*slug_parts, method.component)
        spec = PurifySpec(images=images, classifier=classifier.id, method=method, seed=seed)
        cost = times(used.test, purify_cost(used, classifier, method))
        slug = slug_of(classifier, slug_parts, seed)
        run = graph.add(spec, slug, cost, classifier, float_bytes(used))
        images = ImagesSpec(data=images.data, subset=images.subset, run=run.id, stage="purify")
    return PlannedImages(images, slug_parts)


MEASURED: dict[str, Callable[[Graph, Setting, int], Run]] = {
    "score": score_run,
    "information": information_run,
    "norm": norm_run,
    "trace": trace_run,
    "smooth": smooth_run,
    "time": time_run,
}
"""Stage to the function that plans its runs."""
