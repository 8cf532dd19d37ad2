"""Defense-GAN (Samangouei et al. 2018): replace an image by the nearest image of a generator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from purifiers.core.component import Method, default_indices
from purifiers.core.errors import UserError
from purifiers.core.noise import generator, normal
from purifiers.core.ranges import Count, Fraction, NonNegative, Positive, Share, Whole
from purifiers.core.recipe import Recipe
from purifiers.core.traits import Fit, Images, MethodTraits, Network
from purifiers.methods._wgan import Critic, Generator, critic_loss, generator_loss

BETAS = (0.5, 0.9)
"""Adam's betas for both networks (`kabkabm/defensegan`)."""
DECAY_FROM = 0.8
"""Fraction of the steps after which the learning rate decays (`kabkabm/defensegan`)."""
CHUNK = 128
"""Latent codes per gradient on a processor, so that activations stay in its cache; our choice."""


class DefenseGan(Method):
    """Train a WGAN-GP on clean images, then replace an image by its best reconstruction G(z*).

    z* is the best of ``restarts`` descents of the mean squared error (section 3 and Figure 1).
    Defaults are those of `kabkabm/defensegan`, also where the paper gives no value.

    Args:
        latent: length of a latent code z.
        width: of both networks, see :mod:`purifiers.methods._wgan`.
        generator_iterations: steps of the generator, each after ``critic_steps`` of the critic.
        generator_learning_rate: Adam's, of both networks.
        critic_steps: steps of the critic per step of the generator.
        gradient_penalty: weight of the gradient penalty.
        batch_size: of the training.
        steps, restarts: L and R of the paper; upstream's R is 2 for 64x64 images. As upstream, the
            L-th step is not taken: restarts are compared, and the best one is returned, at z_{L-1}.
        learning_rate, momentum: of the descent. It begins at z0 ~ N(0, 1 / latent), although the
            generator is trained on N(0, 1).
        learning_rate_decay: factor on the learning rate from 80 % of the steps on. Upstream has .1,
            but it does not count steps there, so its rate never changes: 1.

    Each restart of an image has its own noise, and each image its own mean error (in [0, 1] for
    grey images, in [-1, 1] for others). Batch mates therefore have no influence.

    Raises:
        UserError: a count below 1.
    """

    traits = MethodTraits(
        version=2,
        budget=(
            "latent",
            "width",
            "generator_iterations",
            "generator_learning_rate",
            "critic_steps",
            "steps",
            "restarts",
            "learning_rate",
        ),
        random=True,
        differentiable=False,
        fit=Fit(
            uses_classifier=False,
            inference_only=(
                "steps",
                "restarts",
                "learning_rate",
                "momentum",
                "learning_rate_decay",
            ),
        ),
        # measured by us; the cost of the fit does not depend on the number of images
        network=Network(
            sized_by=("latent", "width"),
            passes="3 * steps * restarts",  # upper bound
            fit_passes="generator_iterations * batch_size * (8 * critic_steps + 4) / images",
        ),
        images=Images(square_above=4),  # the generator's smallest feature map
    )

    def __init__(
        self,
        *,
        latent: Count = 128,
        width: Count = 64,
        generator_iterations: Count = 200_000,
        generator_learning_rate: Positive = 1e-4,
        critic_steps: Count = 5,
        gradient_penalty: NonNegative = 10.0,
        batch_size: Count = 50,
        steps: Whole = 200,
        restarts: Count = 10,
        learning_rate: Positive = 10.0,
        momentum: Share = 0.7,
        learning_rate_decay: Fraction = 1.0,
    ) -> None:
        super().__init__()
        self.latent, self.width, self.gradient_penalty = latent, width, gradient_penalty
        self.steps, self.restarts = steps, restarts
        self.learning_rate, self.momentum = learning_rate, momentum
        self.learning_rate_decay = learning_rate_decay
        self.recipe = Recipe(
            epochs=0,
            steps=generator_iterations * (critic_steps + 1),
            turns=(("critic", critic_steps), ("generator", 1)),
            batch_size=batch_size,
            learning_rate=generator_learning_rate,
            optimizer="adam",
            betas=BETAS,
        )

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        self.darkest = 0.0 if shape[0] == 1 else -1.0
        self.generator = Generator(shape, self.latent, self.width)
        self.critic = Critic(shape, self.width)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Loss of the network that is trained in this turn.

        If both are trainable, the sum of both losses; each has gradients for its own network only.
        """
        real = self._pixels(images)
        draw = generator(seed, "defense_gan")
        latent = torch.randn(len(real), self.latent, generator=draw).to(real.device)
        loss = real.new_zeros(())
        if _is_trained(self.critic):
            share = torch.rand(len(real), 1, 1, 1, generator=draw).to(real.device)
            with torch.no_grad():
                generated = self.generator(latent)
            loss = loss + critic_loss(self.critic, real, generated, share, self.gradient_penalty)
        if _is_trained(self.generator):
            loss = loss + generator_loss(self.critic, self.generator(latent))
        return loss

    def own_pass(self, images: Tensor) -> Tensor:
        return self.generator(images.new_zeros(len(images), self.latent))

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Best reconstruction of each image.

        Raises:
            UserError: the images require a gradient.
        """
        if torch.is_grad_enabled() and images.requires_grad:
            raise UserError("defense_gan: its descent has no gradient; attack it with bpda")
        where = default_indices(images, indices)
        targets = self._pixels(images)
        starts = [
            normal(seed, where, (self.latent,), tag=f"defense_gan {restart}")
            for restart in range(self.restarts)
        ]
        latent = torch.stack(starts, dim=1).flatten(0, 1).to(images.device) / self.latent**0.5
        image_of = torch.arange(len(images), device=images.device).repeat_interleave(self.restarts)
        parts = max(1, -(-len(latent) // CHUNK)) if images.device.type == "cpu" else 1
        reconstructions, errors = [], []
        with torch.no_grad():
            # of even size: a part of one or two rows would use other, less accurate sums
            for codes, rows in zip(
                latent.tensor_split(parts), image_of.tensor_split(parts), strict=True
            ):
                reconstruction = self.generator(self._descend(codes, targets[rows]))
                reconstructions.append(reconstruction)
                errors.append((reconstruction - targets[rows]).square().flatten(1).mean(dim=1))
            best_restart = torch.cat(errors).view(-1, self.restarts).argmin(dim=1)
            best_rows = best_restart + self.restarts * torch.arange(
                len(best_restart), device=best_restart.device
            )
            return (torch.cat(reconstructions)[best_rows] - self.darkest) / (1.0 - self.darkest)

    def _descend(self, latent: Tensor, targets: Tensor) -> Tensor:
        """Minimise each code's mean squared error by gradient descent with momentum.

        Returns:
            The code before the last step, which upstream's graph evaluates.
        """
        velocity = torch.zeros_like(latent)
        for step in range(self.steps - 1):
            late = step >= math.ceil(DECAY_FROM * self.steps)
            rate = self.learning_rate * (self.learning_rate_decay if late else 1.0)
            velocity = self.momentum * velocity + self._slope(latent, targets)
            latent = latent - rate * velocity
        return latent

    def _slope(self, latent: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = latent.detach().requires_grad_(True)
            reconstructions = self.generator(leaf)
        upstream = (reconstructions.detach() - targets) * (2.0 / targets[0].numel())
        return torch.autograd.grad(reconstructions, leaf, upstream)[0]

    def _pixels(self, images: Tensor) -> Tensor:
        """Map [0, 1] to the generator's range."""
        return images.detach() * (1.0 - self.darkest) + self.darkest


def _is_trained(part: nn.Module) -> bool:
    return next(part.parameters()).requires_grad
