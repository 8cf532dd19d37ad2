"""Run an audit: attack, purify and score in memory, with the steps of the suite's own stages."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from purifiers.auditing.protocol import (
    Budget,
    Planned,
    choose_attacks,
    given_attacks,
    read_budget,
    read_radius,
)
from purifiers.auditing.report import AttackResult, AuditReport, Rows
from purifiers.auditing.weakness import find_signs
from purifiers.core.component import Attack, Method, default_indices, equipped
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.evaluation import (
    attacked,
    attacked_defence,
    distances,
    finite_logits,
    predicted,
    purified,
    unprepared,
)
from purifiers.core.foreign import Foreign, measure_traits
from purifiers.core.formula import evaluate
from purifiers.core.images import check_images, check_labels
from purifiers.core.modes import refuse_training_mode
from purifiers.core.probe import PROBED_IMAGES, probe
from purifiers.core.progress import Progress, duration
from purifiers.core.provenance import provenance
from purifiers.core.taps import device_of

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (n, C, H, W), labels (n,) and indices (n,) of one batch."""


def audit(
    defence: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float | str = "8/255",
    norm: str = "linf",
    budget: str = "quick",
    *,
    attacks: Sequence[Attack] | None = None,
    seed: int = 0,
    indices: Sequence[int] | Tensor | None = None,
    batch_size: int = 128,
    progress: bool = True,
) -> AuditReport:
    """Measure the accuracy of a defence under the strongest attacks that fit it.

    Args:
        defence: a :class:`purifiers.core.defence.Defence`, or a classifier without purifiers.
        images: clean images, float32 (n, C, H, W) in [0, 1].
        labels: true labels, int64 (n,).
        eps: radius of the perturbation on the [0, 1] scale; an L2 distance for norm ``l2``.
        norm: ``linf`` or ``l2``.
        budget: ``quick``, ``standard`` or ``strong``; see
            :data:`purifiers.auditing.protocol.BUDGETS`.
        attacks: attacks to run instead of the suite's choice, each against the classifier alone and
            through the whole defence; ``eps`` and ``norm`` are then theirs.
        seed: random seed; attacks and defender derive their own from it.
        indices: the images' indices in their data set; 0 ... n-1 by default.
        batch_size: images per batch. Results of most attacks do not depend on it.
        progress: print the price before the run, and progress, on stderr.

    Returns:
        One result per attack, and the worst case of each image.

    Raises:
        UserError: wrong images, labels or settings, or a classifier that is itself random.
    """
    limits = read_budget(budget)
    radius = read_radius(eps, norm)
    classifier, methods = _parts(defence)
    check_images(images, "audit")
    if check_labels(labels, images, "audit") < 0:
        raise UserError("audit: there are no images; give at least one")
    refuse_training_mode(defence, "audit")
    device = device_of(classifier)
    rows = default_indices(images, indices)
    batches = [
        (part.to(device), truth.to(device), row)
        for part, truth, row in zip(
            *(tensor.split(batch_size) for tensor in (images, labels, rows)), strict=True
        )
    ]
    for method in methods:
        measure_traits(method, batches[0][0])
    classes = _classes(classifier, batches[0][0])
    if attacks is None:
        planned = choose_attacks(methods, radius, norm, limits, classes)
    else:
        planned = given_attacks(attacks, methods, limits)
    run = _Run(classifier, methods, batches, seed, limits, progress)
    if progress:
        run.announce(planned)
    results = [*run.clean(), *(result for plan in planned for result in run.under(plan))]
    return AuditReport(
        results=tuple(find_signs(results, methods, seed)),
        labels=labels.cpu().numpy(),
        indices=rows.numpy(),
        eps=radius,
        norm=norm,
        budget=budget if attacks is None else f"own attacks, {budget}",
        defence=" + ".join(_title(part) for part in (*methods, classifier)),
        random=run.random,
        reported_elsewhere=getattr(classifier, "reported_elsewhere", ""),
        provenance=provenance(device.type, torch.get_num_threads()),
    )


class _Run:
    """The audited defence, its images and what all attacks share."""

    def __init__(
        self,
        classifier: nn.Module,
        methods: Sequence[Method],
        batches: Sequence[Batch],
        seed: int,
        budget: Budget,
        progress: bool,
    ) -> None:
        self.classifier, self.methods, self.batches = classifier, methods, batches
        self.seed, self.progress = seed, progress
        self.network = equipped(classifier, methods)
        self.random = any(method.random for method in methods)
        self.draws = budget.draws if self.random else 1
        self.images = sum(len(images) for images, _, _ in batches)

    def clean(self) -> Iterator[AttackResult]:
        """The clean images, without the purifiers (if there are any) and with them."""
        clean = [images for images, _, _ in self.batches]
        if self.methods:
            yield self._result("clean, no purifier", "undefended", clean, ())
        yield self._result("clean", "clean", clean, self.methods)

    def under(self, plan: Planned) -> Iterator[AttackResult]:
        """One attack; an oblivious one is also scored on the classifier without purifiers."""
        start = time.monotonic()
        attacked_methods = () if plan.threat_model == "oblivious" else self.methods
        defence = attacked_defence(
            self.classifier,
            attacked_methods,
            self.seed,
            gradient=plan.gradient,
            eot_samples=plan.eot_samples,
            auxiliary=plan.auxiliary,
        )
        progress = Progress(f"audit: {plan.label}", self.images)
        adversarial = []
        for images, labels, indices in self.batches:
            adversarial.append(attacked(plan.attack, defence, images, labels, self.seed, indices))
            if self.progress:
                progress.add(len(images))
        images, labels, indices = (torch.cat(parts) for parts in zip(*self.batches, strict=True))
        first = slice(0, PROBED_IMAGES)
        statistics = probe(
            defence,
            *(part[first] for part in (images, torch.cat(adversarial), labels, indices)),
        )
        common: dict[str, Any] = {
            "plan": plan,
            "probe": statistics,
            "unprepared": unprepared(defence),
        }
        if plan.threat_model == "oblivious":
            label = f"{plan.name}, no purifier"
            yield self._result(label, "undefended", adversarial, (), **common)
        yield self._result(
            plan.label,
            plan.threat_model,
            adversarial,
            self.methods,
            seconds=time.monotonic() - start,
            **common,
        )

    def _result(
        self,
        label: str,
        threat_model: str,
        adversarial: Sequence[Tensor],
        methods: Sequence[Method],
        **fields: Any,
    ) -> AttackResult:
        """Purify and score; every random draw of the defender is apart from the attacker's."""
        draws = self.draws if methods else 1
        predictions, linf, l2 = [], [], []
        for images, (clean, _, indices) in zip(adversarial, self.batches, strict=True):
            by_draw = [self._predicted(images, indices, methods, d) for d in range(draws)]
            predictions.append(torch.stack(by_draw))
            moved = distances(images, clean)
            linf.append(moved[0].cpu())
            l2.append(moved[1].cpu())
        return AttackResult(
            label=label,
            threat_model=threat_model,
            rows=Rows(
                labels=torch.cat([labels.cpu() for _, labels, _ in self.batches]).numpy(),
                predictions=torch.cat(predictions, dim=1).numpy(),
                linf=torch.cat(linf).numpy(),
                l2=torch.cat(l2).numpy(),
            ),
            **fields,
        )

    def _predicted(
        self, images: Tensor, indices: Tensor, methods: Sequence[Method], draw: int
    ) -> Tensor:
        for method in methods:
            images = purified(method, images, self.seed, indices, draw)
        return predicted(self.network if methods else self.classifier, images)

    def announce(self, planned: Sequence[Planned]) -> None:
        """Print the number of attacks and a rough price, from one measured batch."""
        images, _, indices = self.batches[0]
        classify = _seconds(lambda: self.classifier(images)) / len(images)
        purify = 0.0
        if self.methods:
            defence = Defence(self.classifier, self.methods, seed=self.seed)
            purify = _seconds(lambda: defence.purify(images, indices)) / len(images)
        seconds = 0.0
        for plan in planned:
            passes = float(evaluate(plan.attack.traits.passes, plan.parameters_with_defaults))
            own = 0.0 if plan.threat_model == "oblivious" else purify
            through = own / 3 if plan.gradient == "bpda" else own
            seconds += passes * plan.eot_samples * (classify + through)
            seconds += self.draws * (classify + purify)
        price = duration(math.ceil(seconds * self.images))
        print(
            f"audit: {len(planned)} attacks on {self.images} images, roughly {price}",
            file=sys.stderr,
            flush=True,
        )


def _parts(defence: nn.Module) -> tuple[nn.Module, list[Method]]:
    """The classifier and the methods of a defence; a bare classifier has no methods."""
    if isinstance(defence, Defence):
        classifier, methods = defence.classifier, cast(list[Method], list(defence.methods))
    else:
        classifier, methods = defence, []
    if not isinstance(classifier, nn.Module):
        raise UserError(
            f"audit: the classifier is a {type(classifier).__name__}: wrap it in an nn.Module"
        )
    return classifier, methods


def _title(part: nn.Module) -> str:
    """Name of a purifier or classifier in the report."""
    if isinstance(part, Foreign):
        purifier = part.purifier
        return getattr(purifier, "__name__", type(purifier).__name__)
    entry = getattr(part, "entry", None)  # of RobustBench's zoo
    return getattr(entry, "name", type(part).__name__)


def _classes(classifier: nn.Module, images: Tensor) -> int:
    """The number of classes; refuses a classifier that is random itself."""
    first, second = (finite_logits(classifier, images[:8]) for _ in range(2))
    if not torch.equal(first, second):
        raise UserError(
            "audit: two calls of the classifier give other logits: move its random part into a "
            "purifier, purifiers.defend(classifier, [purifier]), so that attacks average its draws"
        )
    return first.shape[1]


def _seconds(call: Callable[[], Any]) -> float:
    """Seconds of the second of two calls."""
    with torch.no_grad():
        call()
        start = time.perf_counter()
        result = call()
        if isinstance(result, Tensor):
            result.sum().item()  # waits for a GPU
    return time.perf_counter() - start
