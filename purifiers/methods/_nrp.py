"""What NRP's static and dynamic form share: the self-supervised attack and the training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.attacks._linf import ascend, check_count, random_start
from purifiers.core.component import Classifier, Method
from purifiers.core.errors import UserError, check_choice
from purifiers.core.numbers import Length
from purifiers.core.recipe import Recipe
from purifiers.core.target import as_target, input_gradient
from purifiers.core.traits import Fit, MethodTraits, Network
from purifiers.methods._nrp_critic import RelativisticCritic, critic_loss, generator_loss
from purifiers.methods._nrp_generators import GENERATORS


class RepresentationPurifier(Method):
    """x -> G(x), with G trained to give perturbed images the features of clean ones.

    Training needs no labels. The perturbation (SSP) starts from the image plus noise and takes
    sign steps up the squared distance of a frozen classifier's features to the clean image's. G is
    then trained on w_f |f(G(x')) - f(x)| + w_p (G(x') - x)^2 (both means) + w_a times a
    relativistic critic's loss. Only training looks into the classifier.

    The authors publish networks, the attack and weights, but no training code: where nothing else
    is said, constants are `Muzammal-Naseer/NRP`'s, the three weights those of the unofficial port
    in `jellyfish1456/Paper-ReImplement`.

    Args:
        generator: ``resg`` or ``rrdb``, see :mod:`purifiers.methods._nrp_generators`.
        blocks, channels: of the generator; the critic is as wide.
        tap: the features that count, a name out of the classifier's ``TAPS``. ``deepest``, our
            choice: the deepest that has rows and columns. Upstream takes the first 16 layers of a
            VGG-16 trained on ImageNet.
        eps, attack_step, attack_steps: of SSP, L-infinity. The start is uniform in the ball, our
            choice; upstream starts from normal noise alone, which the first projection takes to
            the faces of the ball.
        adversarial_weight: w_a; where it is 0 there is no critic, and every batch trains G.
        pixel_weight, feature_weight: w_p and w_f.
        learning_rate: Adam's, of both networks; betas .9, .999.
        epochs: passes over the training images, of which the critic takes every second batch; our
            choice, as the batch's size and the schedule (see
            :class:`purifiers.core.recipe.Recipe`; ``step`` is a constant rate).

    Raises:
        UserError: an unknown generator or tap, a count below 1, a negative weight, a length outside
            [0, 1], or a classifier that shows no features.
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
        ),
        fit=Fit(passes="epochs * (3 * attack_steps + 2.5)"),
        network=Network(  # the critic's passes count as the generator's
            sized_by=("generator", "blocks", "channels"), passes="1", fit_passes="4.5 * epochs"
        ),
    )

    def __init__(
        self,
        *,
        generator: str = "resg",
        blocks: int = 23,
        channels: int = 64,
        tap: str = "deepest",
        eps: Length = "16/255",
        attack_step: Length = 0.01,
        attack_steps: int = 100,
        adversarial_weight: float = 0.005,
        pixel_weight: float = 0.01,
        feature_weight: float = 1.0,
        learning_rate: float = 0.0001,
        epochs: float = 20,
        batch_size: int = 64,
        schedule: str = "step",
    ) -> None:
        super().__init__()
        check_choice("nrp: generator", generator, GENERATORS)
        check_count("nrp", blocks=blocks, channels=channels, attack_steps=attack_steps)
        for name, weight in (
            ("adversarial_weight", adversarial_weight),
            ("pixel_weight", pixel_weight),
            ("feature_weight", feature_weight),
        ):
            if weight < 0.0:
                raise UserError(f"nrp: {name} is {weight}: a weight, at least 0")
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
        )
        self.critic: RelativisticCritic | None = None
        self._classifier: list[Classifier] = []  # in a list, so that its weights are not ours

    def bind(self, classifier: Classifier | None, shape: Sequence[int]) -> None:
        self._classifier = []
        if classifier is not None:
            self._listen(classifier, shape)
        self.generator = GENERATORS[self.kind](shape[0], self.channels, self.blocks)
        if self.adversarial_weight:
            self.critic = RelativisticCritic(shape, self.channels)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _listen(self, classifier: Classifier, shape: Sequence[int]) -> None:
        if not classifier.TAPS:
            raise UserError(
                f"nrp: {type(classifier).__name__} has no inner representations to train on; take "
                "a classifier with TAPS, such as wide_resnet or resnet_v2"
            )
        probe = torch.zeros(1, *shape, device=next(classifier.parameters()).device)
        taps = classifier.TAPS if self.tap == "deepest" else (self.tap,)
        with torch.no_grad():
            found = zip(taps, classifier.features(probe, taps), strict=True)
        mapped = [tap for tap, features in found if features[0, 0].numel() > 1]
        self.listened = (mapped or taps)[-1]
        self._classifier = [classifier]

    def features(self, images: Tensor) -> Tensor:
        """The classifier's representation of images (n, C, H, W) that training compares.

        Raises:
            UserError: no classifier is bound.
        """
        if not self._classifier:
            raise UserError("nrp: bind a classifier before fitting")
        return self._classifier[0].features(images, [self.listened])[0]

    def perturb(self, images: Tensor, wanted: Tensor, indices: Tensor, seed: int) -> Tensor:
        """SSP: images (n, C, H, W) within eps whose features lie far from ``wanted``."""
        target = as_target(self.features)

        def gradient_of(current: Tensor, wanted: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
            return input_gradient(target, current, wanted, where, _squared_distance)[:2]

        return ascend(
            target,
            images,
            wanted,
            indices,
            start=random_start(images, self.eps, seed, indices, tag="nrp"),
            eps=self.eps,
            step_size=self.attack_step,
            steps=self.attack_steps,
            gradient_of=gradient_of,
        )

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Loss of the network whose turn it is; with both trainable, the sum of both losses, each
        of which reaches its own network alone."""
        with torch.no_grad():
            wanted = self.features(images)
        perturbed = self.perturb(images, wanted, indices, seed)
        with torch.set_grad_enabled(_learns(self.generator)):
            made = self.generator(perturbed)
        loss = images.new_zeros(())
        if self.critic is not None and _learns(self.critic):
            loss = loss + critic_loss(self.critic, images, made)
        if _learns(self.generator):
            loss = loss + self.feature_weight * functional.l1_loss(self.features(made), wanted)
            loss = loss + self.pixel_weight * functional.mse_loss(made, images)
            if self.critic is not None:
                loss = loss + self.adversarial_weight * generator_loss(self.critic, images, made)
        return loss

    def own_pass(self, images: Tensor) -> Tensor:
        return self.generator(images)

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        return self.generator(images).clamp(0.0, 1.0)


def _squared_distance(features: Tensor, wanted: Tensor) -> Tensor:
    return (features - wanted).square().flatten(1).sum(dim=1)


def _learns(part: nn.Module) -> bool:
    return next(part.parameters()).requires_grad
