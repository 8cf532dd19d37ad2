"""TRADES (Zhang et al. 2019): cross entropy plus the divergence to adversarial predictions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from purifiers.core.component import Classifier
from purifiers.core.noise import normal
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count, NonNegative
from purifiers.core.target import input_gradient
from purifiers.core.traits import TrainingTraits
from purifiers.training._base import Training, attack_mode

START_SPREAD = 0.001  # standard deviation of the inner start, `yaodongyu/TRADES`


class Trades(Training):
    """CE(f(x), y) + beta KL(f(x) || f(x')), x' in the ball maximising it (Zhang et al., eq. 5).

    Args:
        beta: 6.0 for CIFAR-10, 1.0 for MNIST (`yaodongyu/TRADES`).
        eps, steps, step_size: of the inner maximisation; .031, 10 x .007 upstream for CIFAR-10.
        attack_mode: mode of batch normalisation during the attack; ``eval`` upstream.
        common: see :class:`purifiers.training._base.Training`.
    """

    traits = TrainingTraits(
        version=1,
        budget=("epochs", "steps", "step_size", "learning_rate", "optimizer", "schedule"),
        passes="3 * epochs * (steps + 2)",
    )

    def __init__(
        self,
        *,
        beta: NonNegative = 6.0,
        eps: Length = 0.031,
        steps: Count = 10,
        step_size: Length = 0.007,
        attack_mode: str = "eval",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.beta, self.steps, self.attack_mode = beta, steps, attack_mode
        self.eps, self.step_size = eps, step_size

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        neighbours = self.neighbours(classifier, images, labels, indices, seed)
        clean_logits = classifier(images)
        natural = functional.cross_entropy(clean_logits, labels)
        return natural + self.beta * divergence(clean_logits, classifier(neighbours)).mean()

    def neighbours(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        """Images in the ball that diverge most from the clean prediction, float32 (n, C, H, W)."""
        start = START_SPREAD * normal(seed, indices, images.shape[1:], tag="trades")
        adversarial = images + start.to(images.device)
        with attack_mode(classifier, self.attack_mode):
            clean_logits = classifier(images).detach()
            for _ in range(self.steps):
                gradient, _, _ = input_gradient(
                    lambda inputs, _: classifier(inputs),
                    adversarial,
                    labels,
                    indices,
                    lambda logits, _: divergence(clean_logits, logits),
                )
                adversarial = adversarial + self.step_size * gradient.sign()
                adversarial = images + (adversarial - images).clamp(-self.eps, self.eps)
                adversarial = adversarial.clamp(0.0, 1.0)
        return adversarial


def divergence(clean_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(clean_logits) || softmax(logits)) per image, in nats, (n,)."""
    clean = functional.softmax(clean_logits, dim=1)
    return functional.kl_div(functional.log_softmax(logits, dim=1), clean, reduction="none").sum(1)
