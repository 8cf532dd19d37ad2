"""Defense-GAN (Samangouei et al. 2018): the nearest image that a generator can make."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from purifiers.core.component import Classifier, Method, default_indices
from purifiers.core.errors import UserError
from purifiers.core.noise import generator, normal
from purifiers.core.recipe import Recipe
from purifiers.core.traits import Fit, Images, MethodTraits, Network
from purifiers.methods._wgan import Critic, Generator, critic_loss, generator_loss

BETAS = (0.5, 0.9)
"""Adam's, of both networks (`kabkabm/defensegan`)."""
DECAY_FROM = 0.8
"""Share of the steps after which the learning rate decays (`kabkabm/defensegan`)."""
CHUNK = 128
"""Latent codes per gradient on a processor, so that activations stay in its cache; our choice."""


class DefenseGan(Method):
    """Trains a WGAN-GP on clean images, then replaces an image by G(z*), where z* is the best of
    ``restarts`` descents of the mean squared error (section 3 and Figure 1).

    Defaults are those of `kabkabm/defensegan`, also where the paper says nothing.

    Args:
        latent: length of a latent code z.
        width: of both networks, see :mod:`purifiers.methods._wgan`.
        generator_iterations: steps of the generator, each after ``critic_steps`` of the critic.
        generator_learning_rate: Adam's, of both networks.
        gradient_penalty: its weight.
        batch_size: of the training.
        steps, restarts: L and R of the paper; upstream's R is 2 for 64x64 images.
        learning_rate, momentum: of the descent, which begins at z0 ~ N(0, 1 / latent), although
            the generator is trained on N(0, 1).
        learning_rate_decay: factor from 80 % of the steps on. Upstream has .1, but counts no
            steps there, so that its rate never changes: 1.

    Each restart of an image has noise of its own, and the error is each image's own mean (in
    [0, 1] for grey images, in [-1, 1] for others), so that batch mates do not matter.
    """

    traits = MethodTraits(
        version=1,
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
        # by our measurement; the cost does not depend on the number of images
        network=Network(
            sized_by=("latent", "width"),
            passes="3 * steps * restarts",
            fit_passes="generator_iterations * batch_size * (8 * critic_steps + 4) / images",
        ),
        images=Images(square_above=4),  # its smallest feature map
    )

    def __init__(
        self,
        *,
        latent: int = 128,
        width: int = 64,
        generator_iterations: int = 200_000,
        generator_learning_rate: float = 1e-4,
        critic_steps: int = 5,
        gradient_penalty: float = 10.0,
        batch_size: int = 50,
        steps: int = 200,
        restarts: int = 10,
        learning_rate: float = 10.0,
        momentum: float = 0.7,
        learning_rate_decay: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("generator_iterations", generator_iterations),
            ("critic_steps", critic_steps),
            ("restarts", restarts),
        ):
            if value < 1:
                raise UserError(f"defense_gan: {name} is {value}: at least 1")
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

    def bind(self, classifier: Classifier | None, shape: Sequence[int]) -> None:
        self.darkest = 0.0 if shape[0] == 1 else -1.0
        self.generator = Generator(shape, self.latent, self.width)
        self.critic = Critic(shape, self.width)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Loss of the network whose turn it is; with both trainable, the sum of both losses, each
        of which reaches its own network alone."""
        real = self._pixels(images)
        draw = generator(seed, "defense_gan")
        latent = torch.randn(len(real), self.latent, generator=draw).to(real.device)
        loss = real.new_zeros(())
        if _learns(self.critic):
            share = torch.rand(len(real), 1, 1, 1, generator=draw).to(real.device)
            with torch.no_grad():
                made = self.generator(latent)
            loss = loss + critic_loss(self.critic, real, made, share, self.gradient_penalty)
        if _learns(self.generator):
            loss = loss + generator_loss(self.critic, self.generator(latent))
        return loss

    def own_pass(self, images: Tensor) -> Tensor:
        return self.generator(images.new_zeros(len(images), self.latent))

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The best reconstruction of each image.

        Raises:
            UserError: a gradient through the descent is wanted.
        """
        if torch.is_grad_enabled() and images.requires_grad:
            raise UserError("defense_gan: its descent has no gradient; attack it with bpda")
        where = default_indices(images, indices)
        wanted = self._pixels(images)
        starts = [
            normal(seed, where, (self.latent,), tag=f"defense_gan {restart}")
            for restart in range(self.restarts)
        ]
        latent = torch.stack(starts, dim=1).flatten(0, 1).to(images.device) / self.latent**0.5
        owner = torch.arange(len(images), device=images.device).repeat_interleave(self.restarts)
        parts = max(1, -(-len(latent) // CHUNK)) if images.device.type == "cpu" else 1
        made, errors = [], []
        with torch.no_grad():
            # of even size: on one or two rows alone other, less accurate sums would be taken
            for codes, rows in zip(
                latent.tensor_split(parts), owner.tensor_split(parts), strict=True
            ):
                found = self.generator(self._descend(codes, wanted[rows]))
                made.append(found)
                errors.append((found - wanted[rows]).square().flatten(1).mean(dim=1))
            best = torch.cat(errors).view(-1, self.restarts).argmin(dim=1)
            chosen = best + self.restarts * torch.arange(len(best), device=best.device)
            return (torch.cat(made)[chosen] - self.darkest) / (1.0 - self.darkest)

    def _descend(self, latent: Tensor, wanted: Tensor) -> Tensor:
        """Momentum descent of each code's own mean squared error."""
        velocity = torch.zeros_like(latent)
        for step in range(self.steps):
            late = step >= math.ceil(DECAY_FROM * self.steps)
            rate = self.learning_rate * (self.learning_rate_decay if late else 1.0)
            velocity = self.momentum * velocity + self._slope(latent, wanted)
            latent = latent - rate * velocity
        return latent

    def _slope(self, latent: Tensor, wanted: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = latent.detach().requires_grad_(True)
            made = self.generator(leaf)
        upstream = (made.detach() - wanted) * (2.0 / wanted[0].numel())
        return torch.autograd.grad(made, leaf, upstream)[0]

    def _pixels(self, images: Tensor) -> Tensor:
        """[0, 1] to the generator's range."""
        return images.detach() * (1.0 - self.darkest) + self.darkest


def _learns(part: nn.Module) -> bool:
    return next(part.parameters()).requires_grad
