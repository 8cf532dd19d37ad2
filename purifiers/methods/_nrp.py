"""Base of NRP's static and dynamic form: the self-supervised attack and the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.attacks._linf import ascend, random_start
from purifiers.core.choices import Precision, Schedule
from purifiers.core.component import Method
from purifiers.core.errors import UserError
from purifiers.core.numbers import Length
from purifiers.core.precision import at_least_float32
from purifiers.core.ranges import Count, NonNegative, Positive
from purifiers.core.recipe import Recipe
from purifiers.core.taps import deepest_tap, tap_shapes, tapped_features
from purifiers.core.target import as_target, input_gradient
from purifiers.core.traits import Fit, MethodTraits, Network, Taps
from purifiers.methods._nrp_critic import RelativisticCritic, critic_loss, generator_loss
from purifiers.methods._nrp_generators import GENERATORS


class RepresentationPurifier(Method):
    """x -> G(x), with G trained to give perturbed images the features of clean ones.

    Training needs no labels. The perturbation (SSP) starts from the image plus noise and takes sign
    steps up the squared distance between a frozen classifier's features and those of the clean
    image. G is then trained on w_f |f(G(x')) - f(x)| + w_p (G(x') - x)^2 (both means) + w_a times
    the loss of a relativistic critic. Only training uses the classifier.

    The authors publish networks, the attack and weights, but no training code. Unless stated
    otherwise, constants are from `Muzammal-Naseer/NRP`. The three weights are from the unofficial
    port in `jellyfish1456/Paper-ReImplement`.

    Args:
        generator: ``resg`` or ``rrdb``, see :mod:`purifiers.methods._nrp_generators`.
        blocks, channels: of the generator; the critic has as many channels.
        tap: name of the compared features: one of the classifier's ``TAPS``, or a submodule of any
            network (:func:`purifiers.core.taps.tapped_features`). ``deepest``, our choice, is the
            deepest one with more than one pixel. Upstream uses the first 16 layers of a VGG-16
            trained on ImageNet.
        eps, attack_step, attack_steps: of SSP, L-infinity. The start is uniform in the ball, our
            choice. Upstream starts from normal noise alone, which the first projection moves to the
            faces of the ball.
        adversarial_weight: w_a; with 0 there is no critic, and every batch trains G.
        pixel_weight, feature_weight: w_p and w_f.
        learning_rate: Adam's, of both networks; betas .9, .999.
        epochs: passes over the training images; every second batch trains the critic. Our choice,
            as are the batch size and the schedule (see :class:`purifiers.core.recipe.Recipe`;
            ``step`` is a constant rate).
        precision: see :class:`purifiers.core.recipe.Recipe`.

    Raises:
        UserError: an unknown generator or tap, a count below 1, a negative weight, a length outside
            [0, 1], or a classifier without inner representations.
    """

    traits = MethodTraits(
        version=1,
        budget=(
            "blocks",
            "channels",
            "attack_step",
            "attack_steps",
            "learning_rate",
            "epochs",
            "batch_size",
            "schedule",
            "precision",
        ),
        joined_later=("precision",),
        fit=Fit(passes="epochs * (3 * attack_steps + 2.5)"),
        network=Network(
            sized_by=("generator", "blocks", "channels"),
            passes="1",
            fit_passes="4.5 * epochs",  # a pass of the critic counts as one of the generator
        ),
        taps=Taps(parameter="tap", words=("deepest",)),
    )

    def __init__(
        self,
        *,
        generator: Literal["resg", "rrdb"] = "resg",
        blocks: Count = 23,
        channels: Count = 64,
        tap: str = "deepest",
        eps: Length = "16/255",
        attack_step: Length = 0.01,
        attack_steps: Count = 100,
        adversarial_weight: NonNegative = 0.005,
        pixel_weight: NonNegative = 0.01,
        feature_weight: NonNegative = 1.0,
        learning_rate: Positive = 0.0001,
        epochs: Positive = 20,
        batch_size: Count = 64,
        schedule: Schedule = "step",
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.kind, self.blocks, self.channels, self.tap = generator, blocks, channels, tap
        self.eps, self.attack_step = eps, attack_step
        self.attack_steps = attack_steps
        self.adversarial_weight = adversarial_weight
        self.pixel_weight, self.feature_weight = pixel_weight, feature_weight
        self.recipe = Recipe(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer="adam",
            schedule=schedule,
            turns=(("critic", 1), ("generator", 1)) if adversarial_weight else (),
            precision=precision,
        )
        self.critic: RelativisticCritic | None = None
        self._classifier: list[nn.Module] = []  # in a list, so that it is no submodule

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        self._classifier = []
        if classifier is not None:
            if self.tap == "deepest":
                self.compared_tap = deepest_tap(classifier, shape)
            else:
                self.compared_tap = self.tap
                tap_shapes(classifier, shape, [self.tap])  # refuses an unknown name
            self._classifier = [classifier]
        self.generator = GENERATORS[self.kind](shape[0], self.channels, self.blocks)
        if self.adversarial_weight:
            self.critic = RelativisticCritic(shape, self.channels)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: Tensor) -> Tensor:
        """Features of the images that training compares, (n, channels, height, width).

        Raises:
            UserError: no classifier is bound.
        """
        if not self._classifier:
            raise UserError("nrp: bind a classifier before fitting")
        return at_least_float32(
            tapped_features(self._classifier[0], images, [self.compared_tap])[0]
        )

    def perturb(self, images: Tensor, clean_features: Tensor, indices: Tensor, seed: int) -> Tensor:
        """SSP: perturb images (n, C, H, W) within eps, away from ``clean_features``."""
        target = as_target(self.features)

        def gradient_of(
            current: Tensor, clean_features: Tensor, indices: Tensor
        ) -> tuple[Tensor, Tensor]:
            return input_gradient(target, current, clean_features, indices, _squared_distance)[:2]

        return ascend(
            target,
            images,
            clean_features,
            indices,
            start=random_start(images, self.eps, seed, indices, tag="nrp"),
            eps=self.eps,
            step_size=self.attack_step,
            steps=self.attack_steps,
            gradient_of=gradient_of,
        )

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Loss of the network that is trained in this turn.

        If both are trainable, the sum of both losses; each has gradients for its own network only.
        """
        with torch.no_grad():
            clean_features = self.features(images)
        perturbed = self.perturb(images, clean_features, indices, seed)
        with torch.set_grad_enabled(_is_trained(self.generator)):
            purified = at_least_float32(self.generator(perturbed))
        loss = images.new_zeros(())
        if self.critic is not None and _is_trained(self.critic):
            loss = loss + critic_loss(self.critic, images, purified)
        if _is_trained(self.generator):
            loss = loss + self.feature_weight * functional.l1_loss(
                self.features(purified), clean_features
            )
            loss = loss + self.pixel_weight * functional.mse_loss(purified, images)
            if self.critic is not None:
                loss = loss + self.adversarial_weight * generator_loss(
                    self.critic, images, purified
                )
        return loss

    def own_pass(self, images: Tensor) -> Tensor:
        return self.generator(images)

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        return self.generator(images).clamp(0.0, 1.0)


def _squared_distance(features: Tensor, clean_features: Tensor) -> Tensor:
    return (features - clean_features).square().flatten(1).sum(dim=1)


def _is_trained(part: nn.Module) -> bool:
    return next(part.parameters()).requires_grad
