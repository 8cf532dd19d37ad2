"""AdvAE (Li et al. 2019): an auto-encoder, adversarially trained before a frozen classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.core.choices import Statistics
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.modes import attack_mode, frozen_meanwhile
from purifiers.core.noise import derive_seed
from purifiers.core.ranges import Fraction, NonNegative
from purifiers.core.step_count import StepCount
from purifiers.core.traits import Fit, Network
from purifiers.methods._fitted_autoencoder import FittedAutoencoder


class AdvAe(FittedAutoencoder):
    """min over AE of E[max CE(F(AE(x + d)), y)] + lambda D(AE(x), x), the classifier F frozen.

    Equations 6 and 7. The attack differentiates through auto-encoder and classifier, both in
    evaluation mode. D is the cross entropy of each pixel, averaged. With classifiers F_1 ... F_k,
    the loss is the sum over i of the same with F_i, each with its own attack (equation 8).

    Args:
        reconstruction_weight: lambda; 0 on MNIST and 1 on CIFAR-10 (section 4.1).
        eps_ramp: fraction of the training over which eps and the step size of the attack grow from
            0 to their full size; 0 in the paper. Our choice for short trainings on MNIST, which
            otherwise predict the same class for all images. Held-out images are always attacked
            with the full eps.
        statistics: ``adversarial``: the attack uses evaluation mode, and running statistics of
            batch normalisation come from adversarial batches. ``clean``, as upstream: attack and
            loss use the statistics of the batch, in the classifiers too, and running statistics
            come from clean images. The paper does not specify it.
        common: see :class:`FittedAutoencoder`.
    """

    traits = FittedAutoencoder.traits.replace(
        version=1,
        budget=(
            "width",
            "norm_momentum",
            "steps",
            "step_size",
            "attack_precision",
            "compiled",
            "eps_ramp",
            "epochs",
            "batch_size",
            "learning_rate",
            "schedule",
            "validation",
            "early_stopping",
            "precision",
        ),
        joined_later=("compiled", "precision", "statistics"),
        fit=Fit(passes="3 * epochs * (steps + 1)", several_classifiers=True),
        network=Network(
            sized_by=("variant", "width"), passes="1", fit_passes="3 * epochs * (steps + 1)"
        ),
    )

    def __init__(
        self,
        *,
        reconstruction_weight: NonNegative = 0.0,
        eps_ramp: Fraction = 0.0,
        statistics: Statistics = "adversarial",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.reconstruction_weight = reconstruction_weight
        self.statistics = statistics
        self.eps_ramp = eps_ramp
        self._planned: float | None = None  # number of batches of the training
        self._fitted = StepCount(self, "batches")

    def fit_on(self, classifiers: Sequence[nn.Module], images: int) -> None:
        super().fit_on(classifiers, images)
        self._fitted.begin()
        trained = images * (1.0 - self.recipe.validation)
        self._planned = math.ceil(trained / self.recipe.batch_size) * self.recipe.epochs

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Loss of one batch: equation 8, which is equation 7 for one classifier."""
        share = self._share()
        loss = images.new_zeros(())
        targets = self.targets()
        by_batch = self.training and self.statistics == "clean"
        if by_batch and not self.reconstruction_weight:  # else the reconstruction updates them
            with torch.no_grad():
                self.autoencoder(images)
        for number, target in enumerate(targets):
            batch = (images, labels, indices, derive_seed(seed, number), share)
            if by_batch:
                logits = self._by_batch(self._classifiers[number], *batch)
            else:
                with frozen_meanwhile(self):
                    adversarial = self.attack(Defence(target, [self]), *batch)
                logits = target(self.autoencoder(adversarial))
            loss = loss + functional.cross_entropy(logits, labels)
        if self.reconstruction_weight:
            reconstruction_loss = functional.binary_cross_entropy_with_logits(
                self.autoencoder.decoded(images), images
            )
            loss = loss + len(targets) * self.reconstruction_weight * reconstruction_loss
        return loss

    def _by_batch(self, classifier: nn.Module, *batch: Any) -> Tensor:
        """Logits of adversarial images, made and classified with the statistics of the batch.

        No running statistics are updated.

        Args:
            batch: what :meth:`attack` takes after the model.
        """
        with attack_mode(self.autoencoder, "train"), attack_mode(classifier, "train"):
            for part in classifier.modules():
                if isinstance(part, nn.Dropout):
                    part.train(self.dropout == "train")

            def model(inputs: Tensor) -> Tensor:
                logits: Tensor = classifier(self.autoencoder(inputs))
                return logits

            return model(self.attack(model, *batch))

    def _share(self) -> float:
        """Fraction of eps that the attack may use in this batch."""
        if not self.training or self.eps_ramp == 0.0:
            return 1.0
        if self._planned is None:
            raise UserError(
                "adv_ae: eps_ramp needs the number of training images: call fit_on first"
            )
        self._fitted.advance()
        return min(1.0, self._fitted.value / (self.eps_ramp * self._planned))
