"""TRADES (Zhang et al. 2019): cross entropy plus the divergence to adversarial predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from purifiers.core.choices import Mode
from purifiers.core.component import Classifier
from purifiers.core.modes import attack_mode
from purifiers.core.noise import normal
from purifiers.core.numbers import Length
from purifiers.core.ranges import Count, NonNegative
from purifiers.core.target import input_gradient
from purifiers.training._base import Training
from purifiers.training._collapse import collapse_note, compared

START_SPREAD = 0.001  # standard deviation of the inner start, `yaodongyu/TRADES`


class Trades(Training):
    """CE(f(x), y) + beta KL(f(x) || f(x')), x' in the ball maximising it (Zhang et al., eq. 5).

    Args:
        beta: 6.0 for CIFAR-10, 1.0 for MNIST (`yaodongyu/TRADES`).
        eps, steps, step_size: of the inner maximisation; .031, 10 x .007 upstream for CIFAR-10.
        attack_mode: mode of batch normalisation during the attack; ``eval`` upstream.
        common: see :class:`purifiers.training._base.Training`.
    """

    traits = Training.traits.replace(
        version=2,
        budget=(
            "epochs",
            "steps",
            "step_size",
            "learning_rate",
            "optimizer",
            "schedule",
            "precision",
        ),
        passes="3 * epochs * (steps + 3)",
    )

    def __init__(
        self,
        *,
        beta: NonNegative = 6.0,
        eps: Length = 0.031,
        steps: Count = 10,
        step_size: Length = 0.007,
        attack_mode: Mode = "eval",
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
        adversarial_logits = classifier(neighbours)
        # a second pass, as upstream, because each one updates the running statistics
        clean_logits = classifier(images)
        return natural + self.beta * divergence(clean_logits, adversarial_logits).mean()

    def watch(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> dict[str, float]:
        """Accuracies that reveal catastrophic overfitting; measured if the attack has one step."""
        if self.steps > 1:
            return {}
        adversarial = self.neighbours(classifier, images, labels, indices, seed)
        return compared(classifier, adversarial, self.eps, images, labels, indices, seed)

    def note(self, watched: Sequence[dict[str, float]]) -> str:
        return collapse_note(watched)

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
