"""Base of AdvAE and HGD: an auto-encoder in front of frozen classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from purifiers.attacks.pgd import Pgd
from purifiers.core.choices import AttackLabels, Mode, Precision, Schedule
from purifiers.core.component import Method
from purifiers.core.errors import UserError, check_choice
from purifiers.core.numbers import Length
from purifiers.core.precision import computing
from purifiers.core.prepare import Prepared
from purifiers.core.ranges import Count, Fraction, NonNegative, Positive, Share, Whole
from purifiers.core.recipe import Recipe
from purifiers.core.traits import Fit, MethodTraits, Network
from purifiers.methods._autoencoder import Autoencoder, MnistAutoencoder
from purifiers.methods._unet import PaperUnet, Unet

Makers = dict[str, Callable[[int, int, float], Autoencoder]]
"""Variant to its constructor, called with channels, width and norm_momentum."""


class FittedAutoencoder(Method):
    """x -> AE(x), fitted on PGD examples so that frozen classifiers classify AE(x) correctly.

    Purification does not use a classifier, so one fit serves any of them.

    Defaults are AdvAE's for MNIST (section 4.1); those that the paper omits are from `lihebi/AdvAE`
    (May 2019).

    Args:
        variant: ``mnist``, ``unet`` (the authors' U-Net) or ``unet_paper`` (as the paper describes
            it).
        width: channels of the first level.
        norm_momentum: weight of a new batch in the running statistics of batch normalisation; .01
            is Keras's default. Trainings of a few hundred steps need a larger one. Variant
            ``mnist`` only.
        eps, steps, step_size: PGD attack for the training examples, L-infinity, random start. 0.3,
            40 x 0.01; on CIFAR-10 8/255, 10 x 1/255 (upstream: 2/255).
        attack_labels: as in :class:`purifiers.attacks.pgd.Pgd`; upstream uses ``predicted``.
        attack_precision: precision of that attack's gradients, ``float32`` or ``bfloat16``; the
            loss on the examples is computed in float32. Our choice to save time. bfloat16 rounds a
            pixel by up to .002, too much for steps as short as CIFAR-10's 1/255.
        compiled: compile forward and gradient of auto-encoder and classifiers for the fit
            (:func:`torch.compile`): fewer and larger kernels, the same results up to rounding.
            Compilation takes a minute. Our choice for a GPU; on a processor it is not faster.
        dropout: ``eval`` disables dropout in the classifiers. ``train`` enables it in the attack
            and in the loss while the auto-encoder is trained, as upstream does.
        epochs, batch_size, learning_rate: of Adam; at most 100 epochs and batch 32 from upstream.
        schedule, milestones, learning_rate_decay, validation, patience, min_learning_rate,
            early_stopping, precision: see :class:`purifiers.core.recipe.Recipe`. The paper halves
            the rate after 4 epochs without a lower validation loss and stops after 10.
    """

    traits = MethodTraits(
        version=1,
        budget=(
            "width",
            "norm_momentum",
            "steps",
            "step_size",
            "attack_precision",
            "compiled",
            "epochs",
            "batch_size",
            "learning_rate",
            "schedule",
            "validation",
            "early_stopping",
            "precision",
        ),
        joined_later=("compiled", "precision"),
        fit=Fit(several_classifiers=True),
        network=Network(sized_by=("variant", "width"), passes="1"),
    )
    VARIANTS: ClassVar[Makers] = {
        "mnist": MnistAutoencoder,
        "unet": lambda channels, width, _: Unet(channels, width),
        "unet_paper": lambda channels, width, _: PaperUnet(channels, width),
    }

    def __init__(
        self,
        *,
        variant: str = "mnist",
        width: Count = 32,
        norm_momentum: Fraction = 0.01,
        eps: Length = 0.3,
        steps: Count = 40,
        step_size: Length = 0.01,
        attack_labels: AttackLabels = "true",
        attack_precision: Precision = "float32",
        compiled: bool = False,
        dropout: Mode = "eval",
        epochs: Positive = 100,
        batch_size: Count = 32,
        learning_rate: Positive = 0.001,
        schedule: Schedule = "plateau",
        milestones: Sequence[Fraction] = (0.5, 0.75),
        learning_rate_decay: Fraction = 0.5,
        validation: Share = 0.1,
        patience: Count = 4,
        min_learning_rate: NonNegative = 5e-5,
        early_stopping: Whole = 10,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        check_choice(f"{type(self).__name__}: variant", variant, self.VARIANTS)
        self.variant, self.width, self.norm_momentum = variant, width, norm_momentum
        self.eps, self.steps, self.step_size = eps, steps, step_size
        self.attack_labels, self.dropout = attack_labels, dropout
        self.attack_precision, self.compiled = attack_precision, compiled
        self.recipe = Recipe(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer="adam",
            schedule=schedule,
            milestones=tuple(milestones),
            learning_rate_decay=learning_rate_decay,
            validation=validation,
            patience=patience,
            min_learning_rate=min_learning_rate,
            early_stopping=early_stopping,
            precision=precision,
        )
        # in lists, so that the classifiers are no submodules of this one
        self._classifiers: list[nn.Module] = []
        self._prepared: list[Prepared] = []

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        autoencoder = self.VARIANTS[self.variant](shape[0], self.width, self.norm_momentum)
        self.autoencoder = autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._classifiers = [] if classifier is None else [classifier]
        self._prepared = []

    def fit_on(self, classifiers: Sequence[nn.Module], images: int) -> None:
        """Fit on these frozen classifiers; on several, the losses add up (AdvAE, equation 8)."""
        self._classifiers, self._prepared = list(classifiers), []

    def own_pass(self, images: Tensor) -> Tensor:
        return self.autoencoder(images)

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        return self.autoencoder(images)

    def targets(self) -> list[Prepared]:
        """Classifiers prepared for many gradient computations.

        Raises:
            UserError: no classifier is bound.
        """
        if not self._classifiers:
            raise UserError(
                f"{type(self).__name__}: bind a classifier before fitting, with bind or fit_on"
            )
        if not self._prepared:
            self._prepared = [Prepared(classifier) for classifier in self._classifiers]
            if self.compiled:
                for part in (self.autoencoder, *(target.module for target in self._prepared)):
                    part.forward = torch.compile(part.forward)
        for target in self._prepared:
            for part in target.module.modules():
                if isinstance(part, nn.Dropout):
                    part.train(self.training and self.dropout == "train")
        return self._prepared

    def attack(
        self,
        model: Callable[..., Tensor],
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        seed: int,
        share: float = 1.0,
    ) -> Tensor:
        """PGD examples (n, C, H, W) against ``model``.

        Args:
            share: factor on eps and on the step size, in [0, 1].
        """
        pgd = Pgd(
            eps=share * self.eps,
            step_size=share * self.step_size,
            steps=self.steps,
            attack_labels=self.attack_labels,
        )
        with computing(self.attack_precision, images.device):
            return pgd(model, images, labels, seed, indices)
