"""DiffPure (Nie et al. 2022): diffuse an image a little, then solve the reverse diffusion."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from purifiers.core.choices import Augmentation, Precision, Schedule
from purifiers.core.component import Method, default_indices
from purifiers.core.noise import keys_on, normal_on, uniform_on
from purifiers.core.ranges import Count, Interior, NonNegative, Positive, Share, Whole
from purifiers.core.recipe import Recipe
from purifiers.core.traits import Fit, MethodTraits, Network, Rule
from purifiers.methods import _vp_sde
from purifiers.methods._ddpmpp import Ddpmpp
from purifiers.methods._sde_adjoint import Adjoint, solve_back


class DiffPure(Method):
    """Noise up to the time t* of a diffusion, then its reversal from t* to 0.

    The diffusion is score_sde's variance-preserving SDE on pixels in [-1, 1], the network its
    DDPM++ (`yang-song/score_sde_pytorch`, ``configs/vp/cifar10_ddpmpp_deep_continuous.py``), of
    which `NVlabs/DiffPure` uses the average of the weights after 400,000 iterations
    (``checkpoint_8``). Results are clipped to [0, 1], upstream's are not.

    Args:
        stop_time: t*; .1, or .125 for its ResNet-50 (`NVlabs/DiffPure`, ``run_scripts/cifar10``).
        steps: of the reversal; 100 of length .001, the step of upstream's solver.
        sampler: ``sde``: Euler-Maruyama on the reverse SDE; ``ode``: Euler on the probability flow;
            ``ddpm``: ancestral sampling, with the posterior's variance.
        start: noise at t*: ``continuous``, as the SDE has it (section 3.1); ``discrete``: that of
            1000 t* discrete steps, upstream's. At .1 the deviations are .3221 and .3209.
        surrogate_steps: ancestral steps from t* to 0 of :meth:`step`, whose gradient replaces that
            of all steps in the threat model ``one_step``. 1: the expected image; our choice.
        backward: memory and accuracy of the gradient: ``exact``, in which each step is computed
            again, so that only its image is kept; ``adjoint``, which keeps nothing and solves the
            equations backward, as upstream, and errs by the step size. Not for ``ddpm``.
        width, blocks, multipliers, attention, dropout: see :class:`Ddpmpp`.
        iterations, batch_size, learning_rate, warm_up, gradient_clip, averaging: of Adam,
            score_sde's.
        schedule, augmentation, precision: see :class:`purifiers.core.recipe.Recipe`. score_sde
            flips the images of CIFAR-10.

    A surrogate of another size is a second instance with other ``steps`` under
    ``attacked_methods``, which shares the fit.

    Raises:
        UserError: a width that 4 does not divide, or ``adjoint`` for ``ddpm``.
    """

    traits = MethodTraits(
        version=1,
        budget=(
            "steps",
            "width",
            "blocks",
            "multipliers",
            "attention",
            "dropout",
            "iterations",
            "batch_size",
            "learning_rate",
            "warm_up",
            "averaging",
            "schedule",
            "augmentation",
            "precision",
        ),
        random=True,
        provides=("score",),
        fit=Fit(
            uses_classifier=False,
            inference_only=(
                "stop_time",
                "steps",
                "sampler",
                "start",
                "surrogate_steps",
                "backward",
            ),
        ),
        network=Network(
            sized_by=("width", "blocks", "multipliers", "attention"),
            passes="steps",
            fit_passes="3 * iterations * batch_size / images",
        ),
        rules=(
            Rule(holds="width % 4 == 0", text="width is {width}: choose a multiple of 4"),
            Rule(
                when={"sampler": ("ddpm",), "backward": ("adjoint",)},
                text="sampler ddpm has no adjoint: set backward to exact",
            ),
        ),
    )

    def __init__(
        self,
        *,
        stop_time: Interior = 0.1,
        steps: Count = 100,
        sampler: Literal["sde", "ode", "ddpm"] = "sde",
        start: Literal["continuous", "discrete"] = "continuous",
        surrogate_steps: Count = 1,
        backward: Literal["exact", "adjoint"] = "exact",
        width: Count = 128,
        blocks: Count = 8,
        multipliers: Sequence[Count] = (1, 2, 2, 2),
        attention: Count = 16,
        dropout: Share = 0.1,
        iterations: Count = 400_000,
        batch_size: Count = 128,
        learning_rate: Positive = 2e-4,
        warm_up: Whole = 5000,
        gradient_clip: NonNegative = 1.0,
        averaging: Share = 0.9999,
        schedule: Schedule = "step",
        augmentation: Augmentation = "flip",
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.stop_time, self.steps, self.sampler = stop_time, steps, sampler
        self.start, self.surrogate_steps, self.backward = start, surrogate_steps, backward
        self.size = functools.partial(
            Ddpmpp,
            width=width,
            blocks=blocks,
            multipliers=tuple(multipliers),
            attention=attention,
            dropout=dropout,
        )
        self.recipe = Recipe(
            epochs=0,
            steps=iterations,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer="adam",
            schedule=schedule,
            warm_up_steps=warm_up,
            gradient_clip=gradient_clip,
            averaging=averaging,
            augmentation=augmentation,
            precision=precision,
        )

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        """Build the network for the images' channels and height; the classifier is not used."""
        network = self.size(shape[0], shape[1])
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Mean squared error of the predicted noise at times uniform in [1e-5, 1].

        It is denoising score matching, weighted by the noise's variance (score_sde, ``losses.py``).
        """
        keys = keys_on(seed, indices.to(images.device), "diff_pure fit")
        times = uniform_on(keys, (), low=_vp_sde.FIRST_TIME)
        noise = normal_on(keys, images.shape[1:], first=1)
        decay = _vp_sde.log_decay(times).exp().view(-1, 1, 1, 1)
        noisy = decay * (2.0 * images - 1.0) + (1.0 - decay.square()).sqrt() * noise
        predicted: Tensor = self.network(noisy, self.network.shift(times))
        return (predicted - noise).square().mean()

    def own_pass(self, images: Tensor) -> Tensor:
        return self._predicted(2.0 * images - 1.0, self.stop_time)

    def score(self, images: Tensor) -> Tensor:
        """Gradient of the log-density at t* of the images without noise, (n, C, H, W).

        The density is that of clean images with the noise of t*; it is taken at m(t*) (2x - 1).
        """
        decay = _vp_sde.decay(self.stop_time)
        noise = self._predicted(decay * (2.0 * images - 1.0), self.stop_time)
        return (-2.0 * decay / _vp_sde.deviation(self.stop_time)) * noise

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Purified images, float32 (n, C, H, W) in [0, 1]."""
        draws = _Draws(images, seed, indices)
        noisy = self._noisy(images, draws)
        if self.backward == "adjoint" and _tracked(noisy):
            return _pixels(self._by_adjoint(noisy, draws))
        return _pixels(self._solve(noisy, draws, self._reversal()))

    def step(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Images after the same noise and ``surrogate_steps`` ancestral steps in place of all."""
        draws = _Draws(images, seed, indices)
        steps = _vp_sde.reversal("ddpm", self.stop_time, self.surrogate_steps)
        return _pixels(self._solve(self._noisy(images, draws), draws, steps))

    def _reversal(self) -> list[_vp_sde.Step]:
        return _vp_sde.reversal(self.sampler, self.stop_time, self.steps)

    def _noisy(self, images: Tensor, draws: _Draws) -> Tensor:
        """Images at t*, on the scale [-1, 1] of the network."""
        continuous = self.start == "continuous"
        decay = (_vp_sde.decay if continuous else _vp_sde.discrete_decay)(self.stop_time)
        return decay * (2.0 * images - 1.0) + (1.0 - decay**2) ** 0.5 * draws(0)

    def _solve(self, noisy: Tensor, draws: _Draws, steps: list[_vp_sde.Step]) -> Tensor:
        """Images after the steps, of which the gradient computes each again."""
        shifts = self._shifts([step.time for step in steps], noisy)

        def drift(images: Tensor, number: int) -> Tensor:
            return steps[number].drift(images, self.network(images, shifts[number : number + 1]))

        for number, step in enumerate(steps):
            if _tracked(noisy):
                noisy = checkpoint(
                    drift, noisy, number, use_reentrant=False, preserve_rng_state=self.training
                )
            else:
                noisy = drift(noisy, number)
            if step.renoise:
                noisy = noisy + step.renoise * draws(number + 1)
        return noisy

    def _by_adjoint(self, noisy: Tensor, draws: _Draws) -> Tensor:
        steps = _vp_sde.backward_steps(self.sampler, self.stop_time, self.steps)
        shifts = self._shifts([step.time for step in steps], noisy)

        def back(final: Tensor, gradient: Tensor) -> Tensor:
            return solve_back(
                final,
                gradient,
                steps,
                lambda images, number: self.network(images, shifts[number : number + 1]),
                lambda number: draws(number + 1),
            )

        solved: Tensor = Adjoint.apply(
            noisy, lambda images: self._solve(images, draws, self._reversal()), back
        )
        return solved

    def _shifts(self, times: list[float], images: Tensor) -> Tensor:
        """What the network's blocks add at each time, for all images."""
        points = torch.tensor(times, dtype=images.dtype, device=images.device)
        shifts: Tensor = self.network.shift(points)
        return shifts

    def _predicted(self, noisy: Tensor, time: float) -> Tensor:
        predicted: Tensor = self.network(noisy, self._shifts([time], noisy))
        return predicted


class _Draws:
    """Standard normal draws by number, (n, C, H, W); each is a part of its image's one stream."""

    def __init__(self, images: Tensor, seed: int, indices: Sequence[int] | Tensor | None) -> None:
        rows = default_indices(images, indices).to(images.device)
        self._keys = keys_on(seed, rows, "diff_pure")
        self._shape, self._images = images.shape[1:], images.detach()

    def __call__(self, number: int) -> Tensor:
        first = number * self._shape.numel()
        return normal_on(self._keys, self._shape, first).to(self._images)


def _tracked(images: Tensor) -> bool:
    return torch.is_grad_enabled() and images.requires_grad


def _pixels(images: Tensor) -> Tensor:
    """The range [-1, 1] mapped to [0, 1], clipped."""
    return ((images + 1.0) / 2.0).clamp(0.0, 1.0)
