"""Straightforward loops of AdvAE's training, as its paper describes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.attacks._linf import random_start
from purifiers.core.noise import derive_seed
from purifiers.methods.adv_ae import AdvAe


@dataclass(frozen=True)
class Case:
    """Settings of a training.

    Attributes:
        judged: the training is long enough for a meaningful accuracy.
    """

    images: int
    batch_size: int
    eps: float
    steps: int
    step_size: float
    learning_rate: float
    judged: bool = False


class PlainAutoencoder(nn.Module):
    """The layers of section 4.1, one by one, with the weights of ``method``."""

    def __init__(self, method: AdvAe) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, normed in ((1, True), (32, True), (32, False), (32, False)):
            layers.append(nn.Conv2d(inputs, 32, 3, padding=1))
            layers += [nn.BatchNorm2d(32, eps=1e-3, momentum=method.norm_momentum)] * normed
            layers += [nn.ReLU(), nn.MaxPool2d(2) if normed else nn.Upsample(scale_factor=2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(32, 1, 3, padding=1))
        weights = method.autoencoder.state_dict().values()
        named = dict(zip(self.layers.state_dict(), weights, strict=True))
        self.layers.load_state_dict({name: value.contiguous() for name, value in named.items()})

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(images))


def plain_loss(
    autoencoder: nn.Module, classifier: nn.Module, case: Case, careful: bool
) -> Callable[..., Tensor]:
    """Equation 6 in its direct form.

    Args:
        careful: compute gradients of the images alone.
    """

    def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        autoencoder.eval()
        start = derive_seed(seed, 0)
        adversarial = random_start(images, case.eps, start, indices, tag="pgd")
        lower, upper = (images - case.eps).clamp(min=0.0), (images + case.eps).clamp(max=1.0)
        for _ in range(case.steps):
            adversarial.requires_grad_(True)
            attack_loss = functional.cross_entropy(classifier(autoencoder(adversarial)), labels)
            if careful:
                (gradient,) = torch.autograd.grad(attack_loss, adversarial)
            else:
                attack_loss.backward()
                assert adversarial.grad is not None
                gradient = adversarial.grad
            adversarial = adversarial.detach() + case.step_size * gradient.sign()
            adversarial = torch.minimum(torch.maximum(adversarial, lower), upper)
        autoencoder.train()
        autoencoder.zero_grad()
        classifier.zero_grad()
        return functional.cross_entropy(classifier(autoencoder(adversarial)), labels)

    return loss
