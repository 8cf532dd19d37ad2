"""Adversarial coreset selection (Dolatabadi et al. 2022): training on a weighted subset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from purifiers.attacks.fast_lpa import FastLpa
from purifiers.attacks.pgd import Pgd
from purifiers.core.component import Attack, Classifier
from purifiers.core.coreset import Coreset, facility_location, shares
from purifiers.core.modes import evaluation
from purifiers.core.noise import derive_seed, generator
from purifiers.core.numbers import Length
from purifiers.core.ranges import Chance, Count, Fraction, NonNegative, Positive, Share
from purifiers.core.training_images import TrainingImages
from purifiers.training._perceptual_advex import PerceptualAdvex


class AdvCraig(PerceptualAdvex):
    """Adversarial training on a weighted subset (a coreset), chosen anew every few epochs.

    CRAIG (Mirzasoleiman et al. 2020) chooses, class by class, the images whose gradients represent
    those of the others best; an image's weight is the number of images that it represents. The
    gradient is that of the loss on the image's adversarial example by the logits, softmax(f(x')) -
    onehot(y), as in `hmdolatabadi/ACS`. A batch's loss is its weighted mean.

    Simplified against that repository:

    - the first period trains on a random subset with equal weights, as there without warm start;
      upstream's tables start warm, on all images;
    - it chooses before epochs 20, 40, ..., upstream before epochs 19, 39, ... without warm start;
    - each class gets its share exactly, where upstream rounds up; a chosen image represents itself;
    - when it chooses with ``fast_lpa``, misclassified images stay clean, as in the training;
    - batches are shuffled in each epoch, and made as in
      :class:`purifiers.training._perceptual_advex.PerceptualAdvex`, in evaluation mode (there in
      training mode for PGD);
    - ``fast_lpa`` measures distances in the trained network's own layers; upstream in those of an
      AlexNet, for which it has a checkpoint.

    Args:
        objective: attack of the training: ``pgd`` (L-infinity), or ``fast_lpa`` for perceptual
            adversarial training, for which upstream sets ``only_correct``.
        fraction: of the images in the subset, above 0; .5 upstream.
        select_every: epochs between two choices; 20 upstream. An epoch passes over the subset once.
        eps, step_size: of PGD; 8/255 and 1.25/255 upstream.
        bound, taps: of Fast-LPA, see :class:`purifiers.attacks.fast_lpa.FastLpa`; upstream .5.
        steps: of the attack; 10 upstream.
        common: see :class:`purifiers.training._perceptual_advex.PerceptualAdvex`. Defaults are
            those of the repository's command for PGD: 120 epochs at .01, dropped after epochs 80
            and 100, weight decay 5e-4, batch 128. Its ``fast_lpa`` has weight decay 2e-4, batch 50,
            drops after epochs 45, 60 and 80, and gradients clipped at 1.

    Raises:
        UserError: an unknown objective, or a fraction of 0.
    """

    traits = PerceptualAdvex.traits.replace(
        version=1,
        budget=(
            "epochs",
            "batch_size",
            "select_every",
            "steps",
            "step_size",
            "learning_rate",
            "optimizer",
            "schedule",
            "precision",
        ),
        # of the dearer objective
        passes="epochs * (fraction * (4 * steps + 5) + (4 * steps + 3) / select_every)",
    )

    def __init__(
        self,
        *,
        objective: Literal["pgd", "fast_lpa"] = "pgd",
        fraction: Chance = 0.5,
        select_every: Count = 20,
        eps: Length = "8/255",
        step_size: Length = "1.25/255",
        bound: Positive = 0.5,
        taps: Sequence[str] = (),
        steps: Count = 10,
        epochs: Positive = 120,
        batch_size: Count = 128,
        learning_rate: Positive = 0.01,
        weight_decay: NonNegative = 5e-4,
        milestones: Sequence[Fraction] = (0.66666, 0.83333),
        warm_up: Share = 0.0,
        clip_value: NonNegative = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            milestones=milestones,
            warm_up=warm_up,
            clip_value=clip_value,
            **common,
        )
        self.fraction, self.select_every = fraction, select_every
        self.attack: Attack = (
            Pgd(eps=eps, steps=steps, step_size=step_size)
            if objective == "pgd"
            else FastLpa(bound=bound, steps=steps, taps=taps, projected=False)
        )
        self.chosen: tuple[Tensor, Tensor] | None = None

    def coreset(self, classifier: Classifier) -> Coreset:
        return _Craig(self, classifier)

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        """Weighted mean of the examples' cross entropy; images that are not chosen weigh 1."""
        adversarial = self.adversarial(classifier, images, labels, indices, seed)
        losses = functional.cross_entropy(classifier(adversarial), labels, reduction="none")
        if self.chosen is None:
            return losses.mean()
        rows, represented = self.chosen
        positions = torch.searchsorted(rows, indices).clamp_(max=len(rows) - 1)
        weights = torch.where(rows[positions] == indices, represented[positions], 1.0)
        weights = weights.to(losses.device, non_blocking=True)
        return (weights * losses).sum() / weights.sum()


class _Craig:
    """The training's choice of images, see :class:`purifiers.core.coreset.Coreset`."""

    def __init__(self, training: AdvCraig, classifier: Classifier) -> None:
        self._training, self._classifier = training, classifier

    def size(self, images: int) -> int:
        return max(1, round(self._training.fraction * images))

    def due(self, epoch: int) -> bool:
        return epoch % self._training.select_every == 0

    def choose(
        self, data: TrainingImages, rows: Tensor, epoch: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        count, own_seed = self.size(len(rows)), derive_seed(seed, "coreset", epoch)
        if epoch == 0:  # gradients of an untrained network represent nothing
            drawn = torch.randperm(len(rows), generator=generator(own_seed))[:count]
            return rows[drawn].sort().values, torch.ones(count)
        gradients, labels = self._gradients(data, rows, own_seed)
        counts = torch.bincount(labels)
        chosen, weights = [], []
        for label, share in enumerate(shares(counts, count).tolist()):
            of_class = (labels == label).nonzero().squeeze(1)
            positions, represented = facility_location(gradients[of_class], share)
            chosen.append(rows[of_class[positions]])
            weights.append(represented)
        order = torch.cat(chosen).argsort()
        return torch.cat(chosen)[order], torch.cat(weights)[order]

    def use(self, rows: Tensor, weights: Tensor) -> None:
        self._training.chosen = rows, weights

    def _gradients(self, data: TrainingImages, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Gradients of the rows' losses by the logits, float32 (n, classes), and their labels."""
        gradients, truth = [], []
        for part in rows.split(self._training.recipe.batch_size):
            images, labels = data.batch(part)
            adversarial = self._training.adversarial(self._classifier, images, labels, part, seed)
            with evaluation(self._classifier):
                probabilities = self._classifier(adversarial).float().softmax(dim=1)
            onehot = functional.one_hot(labels, probabilities.shape[1])
            gradients.append((probabilities - onehot).cpu())
            truth.append(labels.cpu())
        return torch.cat(gradients), torch.cat(truth)
