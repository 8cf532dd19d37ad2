"""The variance-preserving diffusion of score_sde (Song et al. 2021) and steps of its reversal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BETA_MIN, BETA_MAX = 0.1, 20.0
"""Rate of the noise at times 0 and 1 (score_sde, ``beta_min`` and ``beta_max``)."""
FIRST_TIME = 1e-5
"""Smallest time of training and of the reversal, whose score is finite (score_sde, DiffPure)."""
DISCRETE_STEPS = 1000
"""Steps of the discrete diffusion (score_sde, ``num_scales``)."""


def rate(time: float) -> float:
    """beta(t), the rate of the noise."""
    return BETA_MIN + time * (BETA_MAX - BETA_MIN)


def log_decay(time: Any) -> Any:
    """log m(t): an image x has become N(m x, 1 - m^2) at time t, a number or a tensor."""
    return -0.25 * time**2 * (BETA_MAX - BETA_MIN) - 0.5 * time * BETA_MIN


def decay(time: float) -> float:
    """m(t), the factor on the image."""
    return math.exp(log_decay(time))


def deviation(time: float) -> float:
    """Standard deviation of the noise at ``time``, sqrt(1 - m^2)."""
    return math.sqrt(-math.expm1(2.0 * log_decay(time)))


def discrete_decay(time: float) -> float:
    """Factor on the image after round(1000 t) discrete steps of noise, at least one."""
    steps = max(round(DISCRETE_STEPS * time), 1)
    rates = torch.linspace(BETA_MIN, BETA_MAX, DISCRETE_STEPS, dtype=torch.float64)
    return math.sqrt(float((1.0 - rates[:steps] / DISCRETE_STEPS).prod()))


@dataclass(frozen=True)
class Step:
    """x -> ``keep`` x + ``denoise`` e(x, ``time``) + ``renoise`` z; e predicts the noise in x.

    Attributes:
        time: at which the noise is predicted.
        keep, denoise, renoise: factors; z is standard normal.
    """

    time: float
    keep: float
    denoise: float
    renoise: float

    def drift(self, images: Tensor, noise: Tensor) -> Tensor:
        """The step without its random part."""
        return self.keep * images + self.denoise * noise


Rule = Callable[[float, float], Step]
"""The step from one time to an earlier one."""


def euler_maruyama(time: float, earlier: float) -> Step:
    """Of the reverse SDE: x + (beta x / 2 + beta score) dt + sqrt(beta dt) z; score = -e / std."""
    change = rate(time) * (time - earlier)
    return Step(time, 1.0 + change / 2.0, -change / deviation(time), math.sqrt(change))


def probability_flow(time: float, earlier: float) -> Step:
    """Of the ODE with the same marginals, by Euler: x + (beta x / 2 + beta score / 2) dt."""
    change = rate(time) * (time - earlier) / 2.0
    return Step(time, 1.0 + change, -change / deviation(time), 0.0)


def ancestral(time: float, earlier: float) -> Step:
    """Of DDPM (Ho et al. 2020, algorithm 2), with the variance of the true posterior.

    A step to time 0 gives the expected image without noise.
    """
    alpha = math.exp(2.0 * (log_decay(time) - log_decay(earlier)))
    std = deviation(time)
    earlier_std = deviation(earlier) if earlier > 0.0 else 0.0
    renoise = math.sqrt(1.0 - alpha) * earlier_std / std
    return Step(time, alpha**-0.5, (alpha - 1.0) / (std * math.sqrt(alpha)), renoise)


SAMPLERS: dict[str, tuple[Rule, float]] = {
    "sde": (euler_maruyama, FIRST_TIME),
    "ode": (probability_flow, FIRST_TIME),
    "ddpm": (ancestral, 0.0),
}
"""Sampler to its rule and last time."""


def times(stop_time: float, steps: int, last: float) -> list[float]:
    """``steps`` + 1 times from ``stop_time`` down to ``last``.

    They are equally spaced but for the end: the last step is shorter by ``last``, as in DiffPure's
    solver of step size .001. Where so many steps would pass ``last``, all are equally long.
    """
    if stop_time / steps > last:
        return [stop_time * (1.0 - number / steps) for number in range(steps)] + [last]
    return [stop_time + (last - stop_time) * number / steps for number in range(steps + 1)]


def reversal(sampler: str, stop_time: float, steps: int) -> list[Step]:
    """The steps that lead from noise at ``stop_time`` to an image."""
    rule, last = SAMPLERS[sampler]
    grid = times(stop_time, steps, last)
    return [rule(time, earlier) for time, earlier in itertools.pairwise(grid)]


def backward_steps(sampler: str, stop_time: float, steps: int) -> list[Step]:
    """The same steps, but with rates and predictions at their ends, from which an adjoint leaves.

    Only for ``sde`` and ``ode``, whose steps are those of a differential equation.
    """
    rule, last = SAMPLERS[sampler]
    grid = times(stop_time, steps, last)
    ends = itertools.pairwise(grid)
    return [rule(earlier, 2.0 * earlier - time) for time, earlier in ends]
