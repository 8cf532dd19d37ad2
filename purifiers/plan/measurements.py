"""The runs behind numbers that are no accuracies: how dependent layers are, how long it takes."""

from __future__ import annotations

from purifiers.core.errors import UserError
from purifiers.plan.lineage import Lineage
from purifiers.plan.resolve import Setting
from purifiers.plan.runs import Run, added, times
from purifiers.plan.trained import network_of, purify_cost, slug_of

ESTIMATOR_VERSION = 1
"""Raised when :mod:`purifiers.core.information` finds other numbers."""

TIMING = {"images": 8, "batches": [8, 32, 128, 512], "limit_seconds": 600}
"""What a scale's ``timing`` may change: images timed one by one, the larger batches that are tried,
and for how long at most. Our choice; the AID-Purifier paper's Table 2 says batch size one alone."""


class Measurements(Lineage):
    """Runs of the stages that :data:`purifiers.plan.cells.STAGE_OF` names."""

    def information(self, setting: Setting, seed: int) -> Run:
        """The run that estimates the mutual information of two layers on a cell's images.

        Raises:
            UserError: the paper declares no estimator.
        """
        declared = setting.paper.declared.get("estimator")
        if declared is None:
            raise UserError(
                f"{setting.where}: mutual_information needs an `estimator` in "
                f"{setting.paper.folder / 'paper.yaml'}"
            )
        classifier, methods = self._defence(setting, seed)
        attacked = self._attacked(setting, classifier, methods, seed)
        made = self._purified(setting, classifier, methods, attacked, seed)
        budget = setting.scale.setting("estimator", {})
        spec = {
            "images": made.images,
            "classifier": classifier.id,
            "estimator": {"version": ESTIMATOR_VERSION, **declared, **budget},
            "seed": seed,
        }
        inputs = (classifier.inputs[0], classifier, made.made_by)
        slug = slug_of(classifier, made.story, seed)
        cost = {network_of(classifier, setting.used): float(setting.used.test)}
        return self._keep("information", slug, spec, inputs, cost, classifier)

    def time(self, setting: Setting, seed: int) -> Run:
        """The run that times the cell's methods; it also stands for the time of their training.

        Its price is that of every batch that may be tried.

        Raises:
            UserError: the cell has no method.
        """
        classifier, methods = self._defence(setting, seed)
        if not methods:
            raise UserError(f"{setting.where}: there are no methods whose time could be taken")
        made = self._attacked(setting, classifier, methods, seed)
        timing = {**TIMING, **setting.scale.setting("timing", {})}
        spec = {
            "images": made.images,
            "classifier": classifier.id,
            "methods": [method for method, _ in methods],
            "timing": timing,
            "seed": seed,
        }
        tried = [size for size in timing["batches"] if size <= setting.used.test]
        each = added(*(purify_cost(setting.used, classifier, method) for method, _ in methods))
        cost = times(1 + timing["images"] + sum(tried), each)
        fitted = (run for _, run in methods if run)
        inputs = (classifier.inputs[0], classifier, made.made_by, *fitted)
        slug = slug_of(classifier, [*made.story, *(m["component"] for m, _ in methods)], seed)
        return self._keep("time", slug, spec, inputs, cost, classifier)
